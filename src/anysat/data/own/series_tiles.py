"""Tiles of a table of pixel series, for descriptions in which it is also the table of the tiles."""

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
    """Refuse targets and splits from a column `id` that is not the column of the ids, which names the tiles."""
    asked = {f"targets.{own.target.name}": own.column for own in data.targets} | {"splits": data.splits.column}
    for key, name in asked.items():
        if name == "id" != column and "id" in names:
            expected = f"a column with another name, because `id` is the name of a tile, from column {column!r}"
            raise RecordError(f"{data.file}, {key}, column", name, expected)


def lost_places(series: Series, row: Row) -> tuple[str, ...]:
    """Return notes on columns of longitude and latitude that are left out because they change within an id."""
    lost = [name for name in place_columns(series.columns) if name not in row]
    return tuple(f"tiles have no place, because column {name!r} has several values for one id" for name in lost)
