"""Zonal statistics: a store averaged over polygons, as mean vectors, class shares or mean values, one row for each.

Each pixel is weighted by its share in the polygon. The store is read shard by shard, a few rows of pixels at once.
Apart from these, memory holds one number per polygon, period and column.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from anysat.errors import InputError, MissingFileError, UnknownNameError
from anysat.geo.coverage import Coverage, cover
from anysat.geo.ground import file_and_layer, read_table
from anysat.geo.parcels import Parcels, place_parcels
from anysat.geo.polygons import write_layer
from anysat.geo.stored import StoredGroup, find_group
from anysat.geo.tables import times_of
from anysat.geo.writers import staged

TABLE_SUFFIXES = (".parquet", ".gpkg", ".csv")
_BLOCK_VALUES = 4_000_000
"""The most values multiplied, or pixels covered, at once."""

Advance = Callable[[int], object]


class Summary(NamedTuple):
    """The result of `summarise`."""

    table: Any
    """A geopandas GeoDataFrame."""
    notes: tuple[str, ...]
    """Which polygons were repaired."""


class _Sums(NamedTuple):
    """Sums over the pixels that were seen, by polygon and period."""

    share: NDArray[np.float64]
    """Sum of the pixels' shares in the polygon."""
    patches: NDArray[np.int64]
    """Number of pixels, whole or partial."""
    total: NDArray[np.float64]
    """Values times shares (polygon period value); for classes, the sum of shares of each class."""


def zonal(store: Path | str, polygons: Any, *, group: str | None = None) -> Any:
    """Summarise a store over polygons in a geopandas GeoDataFrame, with one row per polygon and period.

    Columns: those of the polygons; `polygon`, their number from 0; for an area `start_datetime` and `end_datetime`;
    `num_patches`, the number of patches (for a map, pixels) seen at least partly inside; `seen_frac`, the share of the
    polygon that was seen. Then, for embeddings, their mean in `e0`, `e1` …; for a class map `majority`, the class with
    the largest share, and `NAME_frac`, each class's share of what was seen; for probabilities their mean, by class;
    for values their mean, named like the group. If nothing was seen, these are empty and `seen_frac` is 0.

    Args:
        store: NAME.zarr, made by `anysat embed` or `anysat predict`.
        polygons: A vector file or GeoDataFrame of polygons and multi-polygons in any reference system. Invalid ones
            are repaired (`shapely.make_valid`), with a warning.
        group: Name of the group; None for the first that exists of `patch`, `class`, `value` and `probability`.

    Raises:
        MissingFileError, SourceError, UnknownNameError: There is no such store or group; the file cannot be read, has
            no reference system, or holds something other than polygons.
        InputError: A column of the polygons has the name of an added one.

    Example:
        fields = anysat.zonal("area.zarr", "fields.gpkg")
    """
    table, notes = summarise(find_group(Path(store), group), polygons)
    for note in notes:
        warnings.warn(note, stacklevel=2)
    return table


def summarise(group: StoredGroup, polygons: Any, *, advance: Advance = lambda _: None) -> Summary:
    """Summarise an opened group like `zonal`. `advance` is called with the number of shards just done."""
    name, given = _given(polygons)
    parcels = place_parcels(given, name, group.geobox)
    columns = _names(group)
    _check_names(name, given, [*_facts_names(group), *columns])
    shape = len(parcels.shapes), max(1, len(group.periods))
    width = len(_classes(group)) or group.dim or 1
    sums = _Sums(np.zeros(shape), np.zeros(shape, np.int64), np.zeros((*shape, width)))
    for unit in group.units(0):
        rows, cols = group.slices(unit)
        for chosen in _batches(parcels.bounds, rows, cols):
            for part in _strips(group, cover(parcels.shapes[chosen], rows, cols), rows.start):
                _add(sums, group, part._replace(shape=chosen[part.shape]))
        advance(1)
    return Summary(_table(group, given, parcels, sums, columns), parcels.notes)


def write_zonal(table: Any, out: Path, told: Mapping[str, Any], *, overwrite: bool = False) -> None:
    """Write the rows to a file in the format of its suffix. CSV has no geometry.

    Raises:
        UnknownNameError: No format has this suffix.
        WriteError: The file exists or cannot be written. Nothing is left behind.
    """
    if out.suffix not in TABLE_SUFFIXES:
        raise UnknownNameError("format of rows", out.suffix, TABLE_SUFFIXES)
    with staged([out], overwrite=overwrite) as folder:
        path = folder / out.name
        if out.suffix == ".csv":
            table.drop(columns=table.geometry.name).to_csv(path, index=False)
        elif out.suffix == ".gpkg":
            own = {"FID": "row"} if any(str(name).lower() == "fid" for name in table.columns) else {}
            write_layer(table, path, out.stem, told, **own)
        else:
            _write_parquet(table, path, told)


def _write_parquet(table: Any, path: Path, told: Mapping[str, Any]) -> None:
    """Write GeoParquet 1.1 with a column of bounds, and the provenance under `anysat`."""
    import json

    import pyarrow.parquet

    table.to_parquet(path, index=False, compression="zstd", schema_version="1.1.0", write_covering_bbox=True)
    found = pyarrow.parquet.read_table(path)
    meta = {**(found.schema.metadata or {}), b"anysat": json.dumps(dict(told), default=str).encode()}
    pyarrow.parquet.write_table(found.replace_schema_metadata(meta), path, compression="zstd")


def _given(polygons: Any) -> tuple[str, Any]:
    """Return a name for messages, and the polygons."""
    if not isinstance(polygons, str | Path):
        return "polygons", polygons
    path, layer = file_and_layer(str(polygons))
    if not path.exists():
        raise MissingFileError(path, "a vector file of polygons, such as fields.gpkg")
    return str(path), read_table(path, layer)


def _classes(group: StoredGroup) -> Sequence[str]:
    return group.variable_attributes.get("class_names", ())


def _names(group: StoredGroup) -> list[str]:
    """Return the names of the value columns."""
    if classes := _classes(group):
        return ["majority", *(f"{name}_frac" for name in classes)]
    if group.dim is None:
        return [group.variable]
    return list(group.bands) or [f"e{number}" for number in range(group.dim)]


def _facts_names(group: StoredGroup) -> list[str]:
    times = ["start_datetime", "end_datetime"] if group.periods else []
    return ["polygon", *times, "num_patches", "seen_frac"]


def _check_names(name: str, given: Any, added: Sequence[str]) -> None:
    taken = {word.lower() for word in added}
    if both := [str(word) for word in given.columns if str(word).lower() in taken]:
        raise InputError(f"columns of {name}", "none with the name of a column that is added", ", ".join(both),
                         "rename them")  # fmt: skip


def _batches(bounds: NDArray[np.float64], rows: slice, cols: slice) -> Iterator[NDArray[np.int64]]:
    """Yield the numbers of the polygons that may lie in a shard, in batches that cover few enough pixels."""
    left, top, right, bottom = bounds.T
    height = np.minimum(bottom, rows.stop) - np.maximum(top, rows.start)
    width = np.minimum(right, cols.stop) - np.maximum(left, cols.start)
    near = np.nonzero((height > 0) & (width > 0))[0]  # excludes empty polygons, whose bounds are NaN
    pixels = np.cumsum((height[near] + 2) * (width[near] + 2))
    cuts = np.nonzero(np.diff(pixels // _BLOCK_VALUES))[0] + 1
    return (chosen for chosen in np.split(near, cuts) if len(chosen))


def _strips(group: StoredGroup, found: Coverage, first: int) -> Iterator[Coverage]:
    """Yield the entries of one row of chunks at a time, which is read at once."""
    strip = (found.row - first) // int(group.array.chunks[-2])
    order = np.argsort(strip, kind="stable")
    for chosen in np.split(order, np.nonzero(np.diff(strip[order]))[0] + 1):
        if len(chosen):
            yield found.where(chosen)


def _add(sums: _Sums, group: StoredGroup, part: Coverage) -> None:
    """Add the stored values of some entries to the sums, in all periods."""
    rows, cols = (slice(int(one.min()), int(one.max()) + 1) for one in (part.row, part.col))
    place = part.row - rows.start, part.col - cols.start
    for period in range(sums.share.shape[1]):
        values, valid = group.window(period, rows, cols)
        is_seen = valid[place]
        seen, row, col = part.where(is_seen), place[0][is_seen], place[1][is_seen]
        if not len(seen.share):
            continue
        np.add.at(sums.share[:, period], seen.shape, seen.share)
        np.add.at(sums.patches[:, period], seen.shape, 1)
        if _classes(group):
            np.add.at(sums.total[:, period], (seen.shape, values[row, col]), seen.share)
            continue
        deep = values if group.dim else values[..., None]
        step = max(1, _BLOCK_VALUES // deep.shape[-1])
        for start in range(0, len(row), step):
            some = slice(start, start + step)
            first = np.nonzero(np.diff(seen.shape[some], prepend=-1))[0]
            product = deep[row[some], col[some]] * seen.share[some, None]
            sums.total[seen.shape[some][first], period] += np.add.reduceat(product, first, axis=0)


def _table(group: StoredGroup, given: Any, parcels: Parcels, sums: _Sums, columns: Sequence[str]) -> Any:
    """Return the rows, sorted by polygon and period."""
    import pandas

    num_polygons, num_periods = sums.share.shape
    number = np.repeat(np.arange(num_polygons), num_periods)
    rows = given.iloc[number]
    told: dict[str, Any] = {"polygon": number}
    if group.periods:
        times = [times_of(period, 1) for period in group.periods]
        for name in ("start_datetime", "end_datetime"):
            told[name] = pandas.to_datetime([time[name][0] for time in times] * num_polygons, utc=True)
    area, share = np.repeat(parcels.areas, num_periods), sums.share.ravel()
    told["num_patches"] = sums.patches.ravel()
    told["seen_frac"] = np.minimum(np.divide(share, area, out=np.zeros_like(share), where=area > 0), 1.0)
    total, is_seen = sums.total.reshape(len(number), -1), share > 0
    if classes := _classes(group):
        names = np.array([*classes, None], object)
        told["majority"] = names[np.where(is_seen, total.argmax(axis=1), len(classes))]
        columns = columns[1:]
    means = np.divide(total, share[:, None], out=total, where=is_seen[:, None]).astype(np.float32)
    means[~is_seen] = np.nan
    parts = [rows, pandas.DataFrame(told, index=rows.index), pandas.DataFrame(means, rows.index, list(columns))]
    place = given.geometry.name
    found = pandas.concat(parts, axis=1)
    return found[[name for name in found.columns if name != place] + [place]]
