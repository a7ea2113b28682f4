"""Dates: what is accepted as one, and the day numbers that the model receives."""

from __future__ import annotations

import contextlib
import re
from datetime import UTC, datetime
from numbers import Number

import numpy as np
from numpy.typing import NDArray

from anysat.errors import RecordError

Dates = NDArray[np.datetime64]
_TIME, _ZONE = r"[T ]\d\d(?::?\d\d){0,2}(?:[.,]\d+)?", r"[+-]\d\d(?::?\d\d)?"
"""Patterns for the time and time zone of a moment in text."""


def day_numbers(dates: Dates, convention: str = "day_of_year") -> NDArray[np.float32]:
    """Convert dates to the day numbers that the model receives.

    All day numbers in the package are computed here.

    Args:
        dates: dates of any shape. NaT, which pads shorter series in a batch, becomes day 0 as in the published code.
        convention: `day_of_year` counts from 1 on 1 January and starts again each year, as in most of the
            published loaders. `days_since YYYY-MM-DD` counts from 0 on that date, as in the published PASTIS loader.

    Returns:
        Day numbers, of the shape of `dates`.

    Raises:
        RecordError: The convention is neither of the two.

    Examples:
        >>> day_numbers(np.array(["2020-01-01", "2021-02-01"], "datetime64[D]")).tolist()
        [1.0, 32.0]
    """
    dates = dates.astype("datetime64[D]")
    kind, *since = convention.split()
    if kind == "day_of_year" and not since:
        start = dates.astype("datetime64[Y]").astype("datetime64[D]")
        return np.where(np.isnat(dates), 0, (dates - start).astype(np.int64) + 1).astype(np.float32)
    try:
        origin = np.datetime64(since[0], "D") if kind == "days_since" and len(since) == 1 else None
    except ValueError:
        origin = None
    if origin is None:
        raise RecordError("day convention", convention, "'day_of_year' or 'days_since YYYY-MM-DD'")
    return np.where(np.isnat(dates), 0, (dates - origin).astype(np.int64)).astype(np.float32)


def calendar_date(date: object) -> object:
    """Turn a date into one that numpy reads as a day in UTC.

    Text must be a full calendar date, such as 2020-06-01 or 20200601, or a moment, so that nothing is guessed. Numbers,
    and months and other times longer than a day, are no dates.

    Raises:
        ValueError: It is no date.
    """
    if isinstance(date, datetime | float) and date != date:  # a missing date of pandas, or in a column of floats
        return "NaT"
    if isinstance(date, Number | np.bool_):  # numpy would count days from 1970
        raise ValueError(f"the number {date}")
    is_long = isinstance(date, np.datetime64) and np.datetime_data(date.dtype)[0] in "YMW"
    if isinstance(last := getattr(date, "end_time", None), datetime):  # a period of pandas
        is_long = last.date() != date.start_time.date()  # type: ignore[attr-defined]
    if is_long:
        raise ValueError(f"{date}, which is longer than a day")
    if isinstance(date, datetime) and date.tzinfo is not None:
        return date.astimezone(UTC).date()
    if not isinstance(date, (str, bytes)) or date in ("NaT", b"NaT"):
        return date
    text = date.decode() if isinstance(date, bytes) else date
    moment = rf"{_TIME}\s*{_ZONE}|(?:{_TIME})?\s*(?:Z|UTC|GMT)?"
    found = re.fullmatch(rf"\s*(\d{{4}})(-?)(\d\d)\2(\d\d)(?:{moment})\s*", text)
    if found is None:
        raise ValueError(f"{text!r}")
    zone = re.search(rf"{_TIME}(\s*){_ZONE}\s*$", text)
    if zone is not None:  # the day may differ
        with contextlib.suppress(ValueError, OverflowError):  # such as a leap second: keep the day as written
            whole = text[: zone.start(1)] + text[zone.end(1) :]
            return datetime.fromisoformat(whole.strip()).astimezone(UTC).date()
    return "-".join(found.group(1, 3, 4))
