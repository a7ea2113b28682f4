"""Tiles that a table of pixel series is the table of, as a description asks for them."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from anysat.data.base import Row
from anysat.data.own.columns import column_names
from anysat.data.own.description import OwnData
from anysat.data.own.series import Series, read_tile_rows
from anysat.data.own.tables import SPLIT, place_columns
from anysat.errors import RecordError


def rows_of_series(data: OwnData, root: Path, fields: Collection[str]) -> list[dict[str, str]]:
    """The tiles of a table of series, one for each of its ids.

    Args:
        data: the description, one of whose tables of series is that of the tiles.
        root: the data folder.
        fields: columns that paths and targets need.

    Raises:
        RecordError: a target or the splits ask for a column `id` that is not that of the ids.
        UnknownNameError, SourceError: see `read_tile_rows`; columns that split or place tiles are needed, too.
    """
    own = data.tables_of_tiles[0]
    assert own.columns is not None, own.key
    claimed = [column for one in data.tables_of_tiles for column in one.claimed(root)]
    names = column_names(root / own.path)
    _check_id_column(data, own.columns.id, names)
    needed = {*fields, *([data.splits.column] if data.splits.column else [])} - {"id"}
    if not data.splits.is_given:
        needed |= {SPLIT} & set(names)
    if data.splits.block_m is not None or data.is_centred_on_table:
        needed |= set(place_columns(names))
    return read_tile_rows(root / own.path, own.columns, claimed, sorted(needed))


def _check_id_column(data: OwnData, column: str, names: Collection[str]) -> None:
    """Refuse to take the names of the tiles for another column that is called `id`."""
    asked = {f"targets.{own.target.name}": own.column for own in data.targets} | {"splits": data.splits.column}
    for key, name in asked.items():
        if name == "id" != column and "id" in names:
            expected = f"a column of another name: `id` is the name of a tile, from column {column!r}"
            raise RecordError(f"{data.file}, {key}, column", name, expected)


def lost_places(series: Series, row: Row) -> tuple[str, ...]:
    """Notes on columns of longitude and latitude that tiles lack, because they change within an id."""
    lost = [name for name in place_columns(series.columns) if name not in row]
    return tuple(f"tiles have no place, because column {name!r} is not the same in all rows of an id" for name in lost)
