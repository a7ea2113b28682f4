"""Features from a table, such as embeddings of another system: a vector per tile, matched to the tiles by `id`."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from anysat.data.own.tables import as_text, is_no_id
from anysat.errors import InputError, MissingFileError, SourceError, UnknownNameError, some
from anysat.geo.read.layers import reading
from anysat.geo.write.tables import TileTable
from anysat.tasks.simple import SIMPLE
from anysat.whole_files import sha256_of
from anysat.workflows.evaluate import CompareConfig
from anysat.workflows.supervised.data import OpenData
from anysat.workflows.tile_tables.columns import target_kinds

SUFFIXES = (".parquet", ".csv")
_EMBEDDING = "embedding"
"""Column of vectors that is used if a table has several."""
_ROW_NUMBERS = ("", "Unnamed: 0", "__index_level_0__")
"""Names under which pandas writes the index of a table."""
_NO_FEATURES = {
    *TileTable.OWN, "longitude", "latitude", "easting", "northing", "seen_frac", "fold", "tile", "index", "fid",
    *map(str.lower, _ROW_NUMBERS),
}  # fmt: skip
"""Columns that say what a tile is or where, not what it looks like, in lower case."""
_UNCLEAR = {"x", "y"}
"""Columns that may be either, in lower case."""


@dataclass(frozen=True, kw_only=True, eq=False)
class GivenTable:
    """A table of features."""

    name: str
    path: Path
    columns: Sequence[str]
    """One column of vectors, or columns of numbers."""
    left_out: Sequence[str]
    """Other columns."""
    ids: Sequence[str]
    vectors: NDArray[np.float64] = field(repr=False)
    """(row feature), NaN where there is no value."""

    def of(self, ids: Sequence[str]) -> NDArray[np.float64]:
        """Return the features of some tiles (tile feature).

        Raises:
            InputError: The table has no row for a tile, or no value for any.
        """
        rows = {name: row for row, name in enumerate(self.ids)}
        if missing := [name for name in ids if name not in rows]:
            raise InputError(
                f"--features {self.name}, {self.path}", f"a row for each of the {len(ids)} labelled tiles",
                f"none for {len(missing)}: {_some(missing)}", "add them, with null for a tile without an embedding",
            )  # fmt: skip
        found: NDArray[np.float64] = self.vectors[[rows[name] for name in ids]]
        if np.isnan(found).all():
            raise InputError(f"--features {self.name}, {self.path}", "values for the labelled tiles", "none for any")
        return found

    def facts(self, num_missing: int) -> dict[str, Any]:
        """Return what results record of the table, with the number of used tiles that it has no values for."""
        return {
            "name": self.name, "file": str(self.path), "sha256": sha256_of(self.path), "columns": list(self.columns),
            "left_out": list(self.left_out), "rows": len(self.ids), "tiles_without_values": num_missing,
        }  # fmt: skip


def given_tables(config: CompareConfig, data: OpenData) -> list[GivenTable]:
    """Read the tables of `--features`, and check all that can be checked before any tile is read.

    Raises:
        InputError: The target is one per pixel, a name is taken, or no row is of a tile of the dataset.
        MissingFileError, SourceError, UnknownNameError: See `read_given`.
    """
    known = {name for tiles in data.splits.values() for name in tiles.ids}
    labels = {name for target in data.record.targets if target.level == "tile" for name in target_kinds(target)}
    found = []
    for name, path in config.tables.items():
        where = f"--features {name}"
        if data.target.level == "pixel":
            raise InputError(where, "a target per tile", f"{data.target.name!r}, a target per pixel",
                             "tables hold one vector per tile; leave --features out")  # fmt: skip
        if name in (taken := [*SIMPLE, *config.weights]):
            raise InputError(where, f"another name than those of other features ({', '.join(taken)})", repr(name))
        table = read_given(name, path, labels)
        if known.isdisjoint(table.ids):
            raise InputError(
                f"{where}, {path}", f"the names of tiles of {data.record.name} as `id`, such as {_some(sorted(known))}",
                _some(table.ids), "`anysat datasets embed` lists them all",
            )  # fmt: skip
        found.append(table)
    return found


def read_given(name: str, path: Path, labels: Collection[str] = ()) -> GivenTable:
    """Read a table of features: the column `embedding`, else the only column of vectors, else all columns of numbers.

    Columns of labels, and those that by their names say what a tile is (`_NO_FEATURES`), are never features.

    Args:
        name: Name of the features.
        path: A Parquet file, or a CSV with a header.
        labels: Columns that hold labels, which are never features.

    Raises:
        MissingFileError: There is no such file.
        UnknownNameError: It has another suffix, or no column `id`.
        SourceError: It cannot be read, an `id` is missing or repeated, there is no column of features or more than one
            of vectors, columns of numbers may be places, or vectors differ in length or have an infinite value.
    """
    if path.suffix.lower() not in SUFFIXES:
        raise UnknownNameError(f"kind of table {path}", path.suffix, SUFFIXES)
    if not path.is_file():
        raise MissingFileError(path, "a table of features")
    with reading(path):
        table = _read(path)
    if len(set(table.column_names)) < len(table.column_names):
        raise SourceError(path, f"two of its columns have the same name: {', '.join(table.column_names)}")
    if "id" not in table.column_names:
        raise UnknownNameError(f"column of {path}", "id", table.column_names, "It holds the names of the tiles")
    ids = [as_text(one) for one in table["id"].to_pylist()]
    _check_ids(path, ids)
    columns = _columns(path, table.schema, labels)
    vectors = _vectors(path, table, columns, ids)
    if len(infinite := np.flatnonzero(np.isinf(vectors).any(1))):
        raise SourceError(path, f"the values of {_some([ids[row] for row in infinite])} are not all finite",
                          "write null where there is no value")  # fmt: skip
    others = [one for one in table.column_names if one not in ("id", *columns)]
    return GivenTable(name=name, path=path, columns=columns, left_out=others, ids=ids, vectors=vectors)


def _read(path: Path) -> Any:
    from pyarrow import csv, parquet, string

    if path.suffix.lower() == ".csv":
        return csv.read_csv(path, convert_options=csv.ConvertOptions(column_types={"id": string()}))
    return parquet.ParquetFile(path).read()  # folders named `key=value` above it are no columns


def _check_ids(path: Path, ids: Sequence[str]) -> None:
    seen: set[str] = set()
    for number, name in enumerate(ids, 1):
        if is_no_id(name):
            raise SourceError(path, f"row {number} has no `id`")
        if name in seen:
            raise SourceError(path, f"the id {name!r} is repeated, in row {number}", "write one row per tile")
        seen.add(name)


def _columns(path: Path, schema: Any, labels: Collection[str]) -> list[str]:
    """Return the columns that hold the features."""
    kinds = {one.name: one.type for one in schema if one.name not in labels and one.name.lower() not in _NO_FEATURES}
    lists = [name for name, kind in kinds.items() if _is_vector(kind)]
    if _EMBEDDING in lists:
        return [_EMBEDDING]
    if len(lists) > 1:
        raise SourceError(path, f"it has several columns of vectors: {', '.join(lists)}",
                          f"keep one of them, or name it `{_EMBEDDING}`")  # fmt: skip
    found = lists or [name for name, kind in kinds.items() if _is_number(kind)]
    if not found:
        raise SourceError(path, f"it has neither a column of vectors nor columns of numbers (it has {_some(kinds)})",
                          "write a list of numbers, or a column for each")  # fmt: skip
    if not lists and (unclear := [name for name in found if name.lower() in _UNCLEAR]):
        raise SourceError(path, f"its columns of numbers {_some(unclear)} may be places, which are no features",
                          "leave them out; if they are features, give them other names")  # fmt: skip
    return found


def _is_number(kind: Any) -> bool:
    from pyarrow import types

    return bool(types.is_floating(kind) or types.is_integer(kind))


def _is_vector(kind: Any) -> bool:
    from pyarrow import types

    is_list = types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind)
    return bool(is_list and (_is_number(kind.value_type) or types.is_null(kind.value_type)))


def _vectors(path: Path, table: Any, columns: Sequence[str], ids: Sequence[str]) -> NDArray[np.float64]:
    if not _is_vector(table.schema.field(columns[0]).type):
        numbers = [table[name].to_pandas().to_numpy(np.float64, na_value=np.nan) for name in columns]
        return np.stack(numbers, axis=1)
    cells = table[columns[0]].to_pandas()
    lengths = {row: len(cell) for row, cell in enumerate(cells) if cell is not None}
    for row, length in lengths.items():
        first = next(iter(lengths))
        if length != lengths[first]:
            problem = (f"the vector of {ids[row]!r} in `{columns[0]}` has {length} numbers, "
                       f"that of {ids[first]!r} has {lengths[first]}")  # fmt: skip
            raise SourceError(path, problem, "write vectors of one length, or null where there is none")
    found = np.full((len(cells), next(iter(lengths.values()), 0)), np.nan)
    for row in lengths:
        found[row] = cells[row]
    if not found.size:
        raise SourceError(path, f"`{columns[0]}` has no numbers")
    return found


def given_lines(given: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    """Return a line about each table, from its facts by name."""
    for name, one in given.items():
        columns = one["columns"]
        which = f"`{columns[0]}`" if len(columns) == 1 else f"{len(columns)} columns, {_ranges(columns)},"
        missing = f"; {count} tiles without values" if (count := one["tiles_without_values"]) else ""
        others = f"; not used: {_some(one['left_out'])}" if one["left_out"] else ""
        yield f"{name}: {which} of {one['file']} (SHA-256 {one['sha256'][:12]}…){missing}{others}"


def _ranges(names: Sequence[str]) -> str:
    """Return names in words; those that differ in a number at the end are told by the first and the last of them.

    >>> _ranges(["e0", "e1", "e2", "fold", "height"])
    'e0 to e2, fold, height'
    """
    alike = [list(group) for _, group in itertools.groupby(names, lambda name: name.rstrip("0123456789"))]
    return ", ".join(group[0] if len(group) == 1 else f"{group[0]} to {group[-1]}" for group in alike)


def _some(names: Iterable[str]) -> str:
    return some(map(repr, names), 3)
