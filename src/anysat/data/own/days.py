"""Days of a table of series: in a column, or in the names of columns if there is one row per id."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from anysat.data.own.columns import read_cells
from anysat.data.own.tables import as_number, say_column
from anysat.dates import Dates, calendar_date
from anysat.errors import SourceError, UnknownNameError

_FIRST_DAY, _END = np.datetime64("1900-01-01", "D"), np.datetime64("2200-01-01", "D")
_DAY = r"(?P<year>\d{4})(?P<mark>[-_.]?)(?P<month>\d\d)(?P=mark)(?P<day>\d\d)"
_WIDE = re.compile(rf"(?P<name>.+?)[-_. ]?{_DAY}"), re.compile(rf"{_DAY}[-_. ]?(?P<name>.+)")
"""Column names of a table with one row per id: band and day, or day and band."""


@dataclass(frozen=True, kw_only=True)
class TableColumns:
    """Which columns of a table of series hold the id and the date of a row."""

    id: str = "id"
    date: str = "date"
    days_since: np.datetime64 | None = None
    """Day that the number 0 stands for, if dates are numbers of days; None if they are dates."""


class DayColumns(NamedTuple):
    """Columns of one day in a table with one row per id, by the name before or after the day."""

    day: np.datetime64
    columns: Mapping[str, str]


def read_days(path: Path, columns: TableColumns) -> Dates:
    """Return the day of each row, in whatever form it is written.

    Raises:
        SourceError: A row has no valid date. The message names row and cell.
    """
    cells = read_cells(path, [columns.date])[columns.date]
    days = np.empty(len(cells.names), "datetime64[D]")
    for place, cell in enumerate(cells.names):
        day = _day(cell, columns.days_since)
        if day is None or not _FIRST_DAY <= day < _END:
            what = "no date" if cell in (None, "") else f"the date {cell!r}"
            raise SourceError(
                path, f"row {cells.first_row(place)} has {what} in column {columns.date!r}",
                "write days as 2020-03-01" if columns.days_since is None else
                f"expected a number of days since {columns.days_since}",
            )  # fmt: skip
        days[place] = day
    return days[cells.codes]


def _day(cell: Any, zero: np.datetime64 | None) -> np.datetime64 | None:
    """Return the day in a cell; None if it holds none."""
    if zero is not None:
        number = as_number(cell) if isinstance(cell, (str, int, float)) else np.nan
        return zero + int(number) if abs(number) < 1e6 and number == int(number) else None
    if isinstance(cell, (int, float)) and not isinstance(cell, bool):
        cell = f"{cell:.0f}"
    if isinstance(cell, str):
        cell = cell.strip()
    try:
        day = None if cell is None else np.datetime64(calendar_date(cell), "D")  # type: ignore[call-overload]
    except (ValueError, TypeError):
        return None
    return None if day is None or np.isnat(day) else day


def read_day_columns(path: Path, columns: TableColumns, names: Sequence[str]) -> list[DayColumns]:
    """Return the columns of each day of a table with one row per id.

    Raises:
        UnknownNameError: There is neither a date column nor a column with a day in its name.
        SourceError: Two columns are of the same band and day.
    """
    found: dict[np.datetime64, dict[str, str]] = {}
    for column in names:
        read = column_day(column) if column != columns.id else None
        if read is not None:
            name, day = read
            if name in found.setdefault(day, {}):
                other = found[day][name]
                raise SourceError(path, f"columns {other!r} and {column!r} are both {name!r} of one day", "remove one")
            found[day][name] = column
    if not found:
        hint = f"{say_column('date')}; without a date column, columns are named as B4_2020-03-01"
        raise UnknownNameError(f"column of {path}", columns.date, names, hint)
    return [DayColumns(day, found[day]) for day in sorted(found)]


def column_day(column: str) -> tuple[str, np.datetime64] | None:
    """Return the name and the day in a column's name; None without a day.

    >>> column_day("B4_2020-03-01"), column_day("20200301_B4"), column_day("B4")
    (('B4', np.datetime64('2020-03-01')), ('B4', np.datetime64('2020-03-01')), None)
    """
    for pattern in _WIDE:
        if found := pattern.fullmatch(column.strip()):
            with suppress(ValueError):  # eight digits that are no date
                return found["name"], np.datetime64("-".join(found.group("year", "month", "day")), "D")
    return None
