"""Periods, the ranges of days that give one embedding each: months, seasons, years, or ranges given by the user."""

from __future__ import annotations

from collections.abc import Callable
from datetime import date, timedelta

from anysat.errors import RecordError

Period = tuple[date, date]
"""First and last day."""


def read_range(words: str, option: str = "dates") -> Period:
    """Read a range of days written `FIRST/LAST`.

    Raises:
        RecordError: It is not such a range.

    Examples:
        >>> read_range("2020-01-01/2020-12-31")[1].year
        2020
    """
    first, slash, last = words.partition("/")
    try:
        found = date.fromisoformat(first.strip()), date.fromisoformat(last.strip())
    except ValueError:
        found = None
    if not slash or found is None or found[0] > found[1]:
        raise RecordError(option, words, "FIRST/LAST, two days such as 2020-01-01/2020-12-31")
    return found


def cut_periods(words: str, whole: Period) -> list[Period]:
    """Divide a range of days into periods.

    Args:
        words: `all` for one period, `month`, `season` (December to February …) or `year`, or your own periods
            `FIRST/LAST,FIRST/LAST,…`, which may overlap and are sorted by time.
        whole: The range. Months, seasons and years at its ends are cut to it.

    Examples:
        >>> [str(first) for first, _ in cut_periods("month", read_range("2020-01-20/2020-03-02"))]
        ['2020-01-20', '2020-02-01', '2020-03-01']

    Raises:
        RecordError: `words` is none of these, or a period is given twice.
    """
    if words == "all":
        return [whole]
    if words in _STARTS:
        days = [whole[0] + timedelta(days=n) for n in range((whole[1] - whole[0]).days + 1)]
        starts = [day for day in days if day == whole[0] or _STARTS[words](day)]
        ends = [*(start - timedelta(days=1) for start in starts[1:]), whole[1]]
        return list(zip(starts, ends, strict=True))
    if "/" not in words:
        raise RecordError("period", words, f"all, {', '.join(_STARTS)}, or FIRST/LAST,FIRST/LAST,…")
    found = [read_range(one, "period") for one in words.split(",")]
    if len(set(found)) < len(found):
        raise RecordError("period", words, "periods that differ; one of them is given twice")
    return sorted(found)


_STARTS: dict[str, Callable[[date], bool]] = {
    "month": lambda day: day.day == 1,
    "season": lambda day: day.day == 1 and day.month in (3, 6, 9, 12),
    "year": lambda day: day.day == 1 and day.month == 1,
}
