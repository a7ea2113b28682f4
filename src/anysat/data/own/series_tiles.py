"""Tiles of a table of pixel series, for descriptions in which it is also the table of the tiles."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from anysat.data.base import Row
from anysat.data.own.columns import column_names
from anysat.data.own.content import OwnData
from anysat.data.own.description import refuse_id
from anysat.data.own.series import Series, claimed_columns, read_tile_rows
from anysat.data.own.tables import SPLIT, place_columns


def rows_of_series(data: OwnData, root: Path, fields: Collection[str]) -> list[dict[str, str]]:
    """Return the tiles of a table of series, one per id.

    Args:
        data: The description. Its table of tiles must be a table of series (`tables_of_tiles`).
        root: The data folder.
        fields: Columns that paths and targets need.

    Raises:
        RecordError: A target or the splits use a column `id` that is not the column of the ids.
        UnknownNameError, SourceError: See `read_tile_rows`. Columns that split or place tiles are needed, too.
    """
    own = data.tables_of_tiles[0]
    assert own.columns is not None, own.key
    path = root / own.path
    names = column_names(path)
    claimed = [column for one in data.tables_of_tiles if one.columns is not None
               for column in claimed_columns(path, one.columns, one.record, one.source)]  # fmt: skip
    if "id" in names:
        refuse_id(data, own.columns.id)
    needed = {*fields, *([data.splits.column] if data.splits.column else [])} - {"id"}
    if not data.splits.is_given:
        needed |= {SPLIT} & set(names)
    if data.splits.block_m is not None or data.is_centred_on_table:
        needed |= set(place_columns(names))
    return read_tile_rows(path, own.columns, claimed, sorted(needed))


def lost_places(series: Series, row: Row) -> tuple[str, ...]:
    """Return notes on columns of longitude and latitude that are left out because they change within an id."""
    lost = [name for name in place_columns(series.columns) if name not in row]
    return tuple(f"tiles have no place, because column {name!r} has several values for one id" for name in lost)
