"""Pixel series of a user's own table, with a row for each id and date or for each id, looked up by id.

It is kept as arrays sorted by id and date.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from anysat.data.own.columns import Cells, check_column, column_names, read_numbers, read_texts
from anysat.data.own.days import TableColumns, read_day_columns, read_days
from anysat.data.own.tables import as_number, is_no_id, say_column, with_place
from anysat.dates import Dates
from anysat.errors import EmptySourceError, SourceError, UnknownNameError, some
from anysat.geo.read.descriptions import SourceDescription
from anysat.geo.read.matching import unit_once_scaled
from anysat.modalities import Modality, band_key
from anysat.observation import Observation

_TRUTHS = {"true": 1.0, "false": 0.0}


@dataclass(frozen=True, eq=False, kw_only=True)
class Series:
    """All series of a table for one modality: source values, NaN where there is none."""

    path: Path
    modality: Modality
    bands: tuple[str, ...]
    units: tuple[str, ...]
    ids: list[str]
    """The ids, sorted."""
    starts: NDArray[np.int64]
    """(id + 1) First row of each id, and the end of the last."""
    dates: Dates
    """(row) Sorted within each id."""
    values: NDArray[np.float32]
    """(row band)"""
    notes: tuple[str, ...]
    """Notes for the user."""
    columns: tuple[str, ...]
    """All columns of the table."""

    def has(self, ids: NDArray[np.str_]) -> NDArray[np.bool_]:
        """Return which of these ids have a row."""
        return np.isin(ids, np.array(self.ids, str))

    def observe(self, name: str) -> Observation:
        """Return the observation of an id: one pixel.

        Raises:
            EmptySourceError: The id has no row, or none within the days that count.
        """
        place = bisect_left(self.ids, name)
        if self.ids[place : place + 1] != [name]:
            raise EmptySourceError(self.path, f"it has no row of {name!r}")
        rows = slice(int(self.starts[place]), int(self.starts[place + 1]))
        if rows.start == rows.stop:
            raise EmptySourceError(self.path, f"it has no row of {name!r} on the days that count")
        return Observation.of(self.modality, self.values[rows, :, None, None], bands=self.bands, units=self.units,
                              dates=self.dates[rows])  # fmt: skip


def read_series(path: Path, columns: TableColumns, modality: Modality, source: SourceDescription) -> Series:
    """Read the series of a table.

    Args:
        path: A CSV or Parquet file.
        columns: Which columns hold the id and the date of a row.
        modality: The modality of the series.
        source: Which columns hold the bands, how to decode their numbers, and their units.

    Raises:
        MissingFileError: There is no such table.
        SourceError: The table cannot be read, a row has no id or no date, or a cell is not a number.
        UnknownNameError: A column is missing.
    """
    names = column_names(path)
    ids = read_texts(path, [_id_column(path, columns, names)])[columns.id]
    _check_ids(path, columns, ids)
    rows = (_rows if columns.date in names else _rows_of_days)(path, columns, names, modality, source)
    days, stored, screen = rows.days, rows.stored, rows.screen
    codes = np.repeat(ids.codes, len(days) // len(ids.codes))
    values = _decoded(stored, days, source)
    if source.quality is not None and screen is not None:
        values[~source.quality.is_clear(screen)] = np.nan
    if source.dates is not None:
        kept = (days >= source.dates[0]) & (days <= source.dates[1])
        codes, days, values = codes[kept], days[kept], values[kept]
    codes, days, values, num_joined = _sorted(codes, days, values)
    notes = [f"{num_joined} rows repeat a day of their id and are merged: the first number of each band counts"]
    unit_of, told = _units(modality, rows.bands, source)
    return Series(
        path=path, modality=modality, bands=rows.bands, units=unit_of, ids=ids.names,
        starts=np.searchsorted(codes, np.arange(len(ids.names) + 1)), dates=days, values=values,
        notes=(told, *(notes if num_joined else ())), columns=names,
    )  # fmt: skip


class _Rows(NamedTuple):
    """Rows of a table as stored; a table with one row per id gives one row for each id and day."""

    bands: tuple[str, ...]
    days: Dates
    stored: NDArray[np.float32]
    screen: NDArray[np.float32] | None
    """Numbers of the quality column; None if there is none."""


def _rows(
    path: Path, columns: TableColumns, names: Sequence[str], modality: Modality, source: SourceDescription
) -> _Rows:
    bands = _bands_of(path, names, source, modality)
    layer = None if source.quality is None else _named(path, names, source.quality.names)
    stored = read_numbers(path, list(bands.values()))
    return _Rows(tuple(bands), read_days(path, columns), stored, None if layer is None else _screen(path, layer))


def _rows_of_days(
    path: Path, columns: TableColumns, names: Sequence[str], modality: Modality, source: SourceDescription
) -> _Rows:
    wide = read_day_columns(path, columns, names)
    known = list(dict.fromkeys(name for one in wide for name in one.columns))
    bands = _bands_of(path, known, source, modality)
    stored = _of_days(path, [[one.columns.get(name) for name in bands.values()] for one in wide])
    screen = None
    if source.quality is not None:
        layer = _named(path, known, source.quality.names)
        read = [_screen(path, one.columns[layer]) if layer in one.columns else None for one in wide]
        nothing = np.full(len(stored), np.nan, np.float32)
        screen = np.stack([nothing if numbers is None else numbers for numbers in read], axis=1).ravel()
    days = np.tile(np.array([one.day for one in wide], "datetime64[D]"), len(stored))
    return _Rows(tuple(bands), days, stored.reshape(-1, len(bands)), screen)


def _id_column(path: Path, columns: TableColumns, names: Sequence[str]) -> str:
    if columns.id not in names:
        raise UnknownNameError(f"column of {path}", columns.id, names, say_column("id"))
    return columns.id


def _check_ids(path: Path, columns: TableColumns, ids: Cells) -> None:
    """Refuse a table without rows, or with a row without id."""
    if not ids.names:
        raise SourceError(path, "the table has no rows")
    for place, name in enumerate(ids.names):
        if is_no_id(name):
            what = f"{name!r} as" if name else "no"
            problem = f"row {ids.first_row(place)} has {what} {columns.id!r}"
            raise SourceError(path, problem, "fill it in, or remove the row")


def _bands_of(
    path: Path, names: Mapping[str, Any] | Sequence[str], source: SourceDescription, modality: Modality
) -> dict[str, str]:
    """Return the column of each band that is there, by band name in the modality's order."""
    if source.bands:
        assert isinstance(source.bands, Mapping), source.bands
        for column in source.bands.values():
            if column not in names:
                raise UnknownNameError(f"column of {path}", column, names)
        given = {modality.find_band(band): column for band, column in source.bands.items()}
        return {modality.band_names[place]: given[place] for place in sorted(given)}
    found = {}
    for band in modality.bands:
        fitting = [name for name in names if band_key(name) in band.match_keys]
        if len(fitting) > 1:
            raise SourceError(path, f"{' and '.join(map(repr, fitting))} are both {band.name} of {modality.key!r}",
                              f"say which as `bands: {{{band.name}: {fitting[0]}, …}}`")  # fmt: skip
        if fitting:
            found[band.name] = fitting[0]
    if not found:
        raise SourceError(
            path, f"none of its columns ({some(names)}) is known to be a band of {modality.key!r}",
            f"say which they are as `bands: {{{modality.band_names[0]}: COLUMN, …}}`; the modality has "
            f"{', '.join(modality.band_names)}",
        )  # fmt: skip
    return found


def _of_days(path: Path, wanted: Sequence[Sequence[str | None]]) -> NDArray[np.float32]:
    """Read numbers (id day band) of columns by day and band; NaN where there is no such column."""
    places = [(day, band) for day, group in enumerate(wanted) for band, name in enumerate(group) if name is not None]
    numbers = read_numbers(path, [str(wanted[day][band]) for day, band in places])
    found = np.full((len(numbers), len(wanted), len(wanted[0])), np.nan, np.float32)
    for column, (day, band) in enumerate(places):
        found[:, day, band] = numbers[:, column]
    return found


def _named(path: Path, names: Mapping[str, Any] | Sequence[str], wanted: Sequence[str]) -> str:
    """Return the column that has one of these names, whatever their case."""
    found = [name for name in names if name.upper() in {one.upper() for one in wanted}]
    if not found:
        raise UnknownNameError(f"column of {path} for `quality`", " or ".join(wanted), names)
    return found[0]


def _screen(path: Path, column: str) -> NDArray[np.float32]:
    """Read the numbers of a quality column: 1 for true, 0 for false, NaN for anything else that is not a number."""
    cells = read_texts(path, [column])[column]
    numbers = [_TRUTHS.get(name.lower(), as_number(name)) for name in cells.names]
    return np.array(numbers, np.float32)[cells.codes]


def _decoded(stored: NDArray[np.float32], days: Dates, source: SourceDescription) -> NDArray[np.float32]:
    """Turn stored numbers into source values; NaN where there is none."""
    seen = np.isfinite(stored)
    if source.nodata is not None:
        seen &= stored != np.float32(source.nodata)
    values = np.where(seen, stored, np.float32(np.nan))
    if source.scaling is not None:
        scale, offset = (np.float32(number) for number in source.scaling)
        values *= scale
        values[slice(None) if source.offset_from is None else days >= source.offset_from] += offset
    return values


def _sorted(
    codes: NDArray[np.int64], days: Dates, values: NDArray[np.float32]
) -> tuple[NDArray[np.int64], Dates, NDArray[np.float32], int]:
    """Sort rows by id and day, merge those of one day, and drop days without values unless an id has no others.

    Returns:
        Ids, days and values, and how many rows were merged into an earlier one.
    """
    order = np.lexsort((days, codes))
    codes, days, values = codes[order], days[order], values[order]
    is_new = np.ones(len(codes), bool)
    is_new[1:] = (codes[1:] != codes[:-1]) | (days[1:] != days[:-1])
    firsts = np.flatnonzero(is_new)
    num_joined = len(codes) - len(firsts)
    if num_joined:
        rows = np.where(np.isnan(values), len(codes), np.arange(len(codes))[:, None])
        rows = np.minimum.reduceat(rows, firsts)
        there = rows < len(codes)
        joined = np.take_along_axis(values, np.where(there, rows, 0), axis=0)
        codes, days, values = codes[firsts], days[firsts], np.where(there, joined, np.float32(np.nan))
    seen = np.isfinite(values).any(1)
    has_seen = np.bincount(codes, seen, int(codes[-1]) + 1 if len(codes) else 0) > 0
    is_first = np.ones(len(codes), bool)
    is_first[1:] = codes[1:] != codes[:-1]
    kept = seen | (is_first & ~has_seen[codes])
    return codes[kept], days[kept], values[kept], num_joined


def _units(modality: Modality, bands: Sequence[str], source: SourceDescription) -> tuple[tuple[str, ...], str]:
    """Return the unit of each band, as given or else as in the record, and a note that says which."""
    scaling = source.scaling
    found = []
    for name in bands:
        band = modality.bands[modality.find_band(name)]
        assumed = band.unit if scaling is None else unit_once_scaled(band.unit, scaling[0])
        asked = source.units if isinstance(source.units, str) else source.units.get(name)
        found.append(assumed if asked is None or band.ratio_of is not None else asked)
    return tuple(found), f"{', '.join(dict.fromkeys(found))} ({'as given' if source.units else 'assumed'})"


def read_tile_rows(
    path: Path, columns: TableColumns, claimed: Sequence[str], needed: Sequence[str]
) -> list[dict[str, str]]:
    """Return the tiles of a table of series: a row per id, with the columns that are constant within every id.

    Args:
        path: The table.
        columns: Which columns hold the id and the date of a row.
        claimed: Columns that are bands or masks.
        needed: Columns that the table must have.

    Raises:
        UnknownNameError: A column is missing.
        SourceError: An id has several values in a needed column, or the table cannot be read.
    """
    names = column_names(path)
    for name in needed:
        check_column(path, name, names)
    # a column `id` that is not the one of the ids must not replace the names of the tiles
    left = {"id", columns.date, *claimed} - {_id_column(path, columns, names), *needed}
    texts = read_texts(path, [name for name in names if name not in left])
    ids = texts.pop(columns.id) if columns.id not in needed else texts[columns.id]
    _check_ids(path, columns, ids)
    _, firsts = np.unique(ids.codes, return_index=True)
    kept = {"id": np.array(ids.names, object)}
    for name, cells in texts.items():
        differs = cells.codes != cells.codes[firsts][ids.codes]
        if not differs.any():
            kept[name] = np.array(cells.names, object)[cells.codes[firsts]]
        elif name in needed:
            row = int(np.argmax(differs))
            one, other = (cells.names[cells.codes[place]] for place in (firsts[ids.codes[row]], row))
            raise SourceError(
                path, f"{ids.names[ids.codes[row]]!r} has both {one!r} and {other!r} in column {name!r}",
                "an id is one tile with one value: give each season or place its own id, or use a table of `tiles`",
            )  # fmt: skip
    order = np.argsort(firsts)
    listed = zip(*(column[order].tolist() for column in kept.values()), strict=True)
    return with_place([dict(zip(kept, row, strict=True)) for row in listed])


def claimed_columns(path: Path, columns: TableColumns, modality: Modality, source: SourceDescription) -> list[str]:
    """Return the columns of a table that are bands of a modality or mask them."""
    names = column_names(path)
    quality = () if source.quality is None else source.quality.names
    if columns.date in names:
        bands = _bands_of(path, names, source, modality).values()
        return [*bands, *([_named(path, names, quality)] if quality else [])]
    return [column for one in read_day_columns(path, columns, names) for column in one.columns.values()]
