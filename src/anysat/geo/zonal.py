"""Zonal statistics: stores averaged over polygons, as mean vectors, class shares or mean values, one row for each.

Each pixel is weighted by its share in the polygon. The store is read shard by shard, a few rows of pixels at once.
Apart from these, memory holds one number per polygon, period and column.
"""

from __future__ import annotations

import json
import tempfile
import textwrap
import warnings
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from anysat.errors import InputError, MissingFileError
from anysat.geo.coverage import Coverage, cover
from anysat.geo.ground import file_and_layer, read_table
from anysat.geo.overlap import seen_before
from anysat.geo.parcels import Parcels, check_shapes, place_parcels
from anysat.geo.stores.stored import StoredGroup, find_group, provenance_of, zone_stores
from anysat.geo.write.outputs import Result, find_writer
from anysat.geo.write.polygons import write_layer
from anysat.geo.write.tables import times_of
from anysat.geo.write.writers import staged

_BLOCK_VALUES = 4_000_000
"""The most values multiplied, or pixels covered, at once."""

_TWICE_FRAC = 1e-3
"""Largest share of a polygon that several stores have seen without a note."""

Advance = Callable[[int], object]


class Summary(NamedTuple):
    """The result of `summarise`."""

    table: Any
    """A geopandas GeoDataFrame."""
    notes: tuple[str, ...]
    """Which polygons were repaired, and whether stores overlap."""


class Asked(NamedTuple):
    """Checked input of `summarise`."""

    groups: Sequence[StoredGroup]
    """One group of each store, all of one kind (see `find_alike`)."""
    given: Any
    """The polygons, a geopandas GeoDataFrame."""
    placed: Sequence[Parcels]
    """The polygons on the grid of each group."""


class _Sums(NamedTuple):
    """Sums over the pixels that were seen, by polygon and period."""

    share: NDArray[np.float64]
    """Sum of the pixels' shares in the polygon; `_sums` divides it, and `total`, by the polygon's area."""
    patches: NDArray[np.int64]
    """Number of pixels, whole or partial."""
    total: NDArray[np.float64]
    """Values times shares (polygon period value); for classes, the sum of shares of each class."""
    twice: NDArray[np.float64]
    """Sum of the shares that were left out, because an earlier store has seen this ground; divided like `share`."""


def zonal(store: Path | str | Sequence[Path | str], polygons: Any, *, group: str | None = None) -> Any:
    """Summarise stores over polygons in a geopandas GeoDataFrame, with one row per polygon and period.

    Columns: those of the polygons; `polygon`, their number from 0; for an area `start_datetime` and `end_datetime`;
    `num_patches`, the number of patches (for a map, pixels) seen at least partly inside; `seen_frac`, the share of the
    polygon that was seen. Then, for embeddings, their mean in `e0`, `e1` …; for a class map `majority`, the class with
    the largest share, and `NAME_frac`, each class's share of what was seen; for probabilities their mean, by class;
    for values their mean, named like the group. If nothing was seen, these are empty and `seen_frac` is 0.

    Args:
        store: NAME.zarr, made by `anysat embed` or `anysat predict`; the NAME given to an area in several UTM zones,
            which has one store per zone; or several stores of one kind. Pixels of all stores are weighted by their area
            in the polygon. Ground that several stores have seen counts in the first named, with a warning.
        polygons: A vector file or GeoDataFrame of polygons and multi-polygons in any reference system. Invalid ones
            are repaired (`shapely.make_valid`), with a warning. A point takes the patch in which it lies.
        group: Name of the group; None for the first that exists of `patch`, `class`, `value` and `probability`.

    Raises:
        MissingFileError, SourceError, UnknownNameError: There is no such store or group; the file cannot be read, has
            no reference system, or holds something other than polygons and points.
        InputError: A store is not a path; a column of the polygons has the name of an added one, or of another one; or
            the stores are not of one kind.

    Example:
        fields = anysat.zonal("area.zarr", "fields.gpkg")
    """
    table, notes = summarise(prepare(find_alike(find_stores(store), group), polygons))
    for note in notes:
        warnings.warn(note, stacklevel=2)
    return table


def find_stores(given: Path | str | Sequence[Path | str]) -> list[Path]:
    """Return the paths of a store or several, each once; for an area in several UTM zones, those of its zones.

    Raises:
        InputError: There are none, or one is not a path.
    """
    every: list[Any] = [given] if isinstance(given, str | Path) or hasattr(given, "dims") else list(given or ())
    if not every:
        raise InputError("store", "the path of a store, or several", repr(every))
    for one in every:
        if not isinstance(one, str | Path):
            raise InputError("store", "the path of a store, or several", f"a {type(one).__name__}",
                             'what `anysat.embed` returns must be written first: `data.to_zarr("area.zarr", '
                             'group="patch")`')  # fmt: skip
    return list(dict.fromkeys(path for one in every for path in zone_stores(Path(one))))


def find_alike(paths: Sequence[Path], group: str | None = None) -> list[StoredGroup]:
    """Return one group of each store.

    Raises:
        MissingFileError, SourceError, UnknownNameError: See `find_group`.
        InputError: They cannot be combined, because they differ in group, columns, periods, patch size, weights, head
            or statistics.
    """
    groups = [find_group(path, group) for path in paths]
    first = _kind_of(paths[0], groups[0])
    for path, one in zip(paths[1:], groups[1:], strict=True):
        for what, own in _kind_of(path, one).items():
            if own != first[what]:
                expected = f"the same as in {paths[0].name} ({_short(first[what])})"
                raise InputError(f"{what} of {path.name}", expected, _short(own), "summarise each store on its own")
    return groups


def _kind_of(path: Path, group: StoredGroup) -> dict[str, Any]:
    """Return what must be the same in stores that are combined."""
    made_from = provenance_of(path).get("made_from", {})
    weights, statistics = made_from.get("weights"), made_from.get("statistics")
    periods = [f"{first} to {last}" for first, last in group.periods]
    return {
        "group": group.name, "columns": _names(group), "periods": periods,
        "patch size": round(abs(group.geobox.affine.a), 6),
        "weights": weights.get("digest") if isinstance(weights, Mapping) else weights, "head": made_from.get("head"),
        "statistics": statistics.get("digest") if isinstance(statistics, Mapping) else statistics,
    }  # fmt: skip


def _short(what: Any) -> str:
    return textwrap.shorten(", ".join(what) if isinstance(what, list) else str(what), 60, placeholder=" …")


def prepare(groups: Sequence[StoredGroup], polygons: Any, suffix: str = "") -> Asked:
    """Read the polygons and place them on opened groups of one kind, for `summarise`.

    Raises:
        MissingFileError, SourceError, UnknownNameError: See `zonal`.
        InputError: See `zonal`; or a file with this suffix cannot hold the columns of the polygons.
    """
    name, given = read_shapes(polygons)
    placed = [place_parcels(given, name, group.geobox) for group in groups]
    _check_columns(name, given, [*_facts_names(groups[0]), *_names(groups[0])], suffix)
    return Asked(groups, given, placed)


def summarise(asked: Asked, *, advance: Advance = lambda _: None) -> Summary:
    """Summarise what `prepare` returned. `advance` is called with the number of shards just done."""
    groups, given, placed = asked
    every = _sums(groups[:1], placed[0], advance)
    for number, parcels in enumerate(placed[1:], start=1):
        own = _sums(groups[: number + 1], parcels, advance)
        every = _Sums(every.share + own.share, every.patches + own.patches, every.total + own.total,
                      every.twice + own.twice)  # fmt: skip
    notes = list(dict.fromkeys(note for parcels in placed for note in parcels.notes))
    if num_twice := int((every.twice > _TWICE_FRAC).any(axis=1).sum()):
        notes.append(f"stores overlap: in {num_twice} polygons or points, ground that several have seen counts only in "
                     "the store named first")  # fmt: skip
    return Summary(_table(groups[0], given, every), tuple(notes))


def _sums(groups: Sequence[StoredGroup], parcels: Parcels, advance: Advance) -> _Sums:
    """Return the sums over the last store, with shares and totals divided by the areas of the polygons."""
    group = groups[-1]
    shape = len(parcels.shapes), max(1, len(group.periods))
    width = len(_classes(group)) or group.dim or 1
    sums = _Sums(np.zeros(shape), np.zeros(shape, np.int64), np.zeros((*shape, width)), np.zeros(shape))
    for unit in group.units(0):
        rows, cols = group.slices(unit)
        for chosen in batches(parcels.bounds, rows, cols):
            for part in _strips(group, cover(parcels.shapes[chosen], rows, cols), rows.start):
                _add(sums, groups, part._replace(shape=chosen[part.shape]))
        advance(1)
    areas = np.where(parcels.areas > 0, parcels.areas, np.inf)
    sums.share[:] /= areas[:, None]
    sums.twice[:] /= areas[:, None]
    sums.total[:] /= areas[:, None, None]
    return sums


def write_zonal(table: Any, out: Path, told: Mapping[str, Any], *, overwrite: bool = False) -> None:
    """Write the rows to a file in the format of its suffix. CSV has no geometry.

    Raises:
        UnknownNameError: No format has this suffix.
        WriteError: The file exists or cannot be written. Nothing is left behind.
    """
    write = find_writer(Result.POLYGONS, out.suffix)
    with staged([out], overwrite=overwrite) as folder:
        write(table, folder / out.name, told)


def write_csv(table: Any, path: Path, told: Mapping[str, Any]) -> None:  # noqa: ARG001 - CSV has no place for it
    """Write the rows without their polygons."""
    table.drop(columns=table.geometry.name).to_csv(path, index=False)


def write_package(table: Any, path: Path, told: Mapping[str, Any]) -> None:
    """Write one layer. It holds only one geometry column, so others are written as text (WKT)."""
    place = table.geometry.name
    beside = [name for name, kind in table.dtypes.items() if str(kind) == "geometry" and name != place]
    taken = {str(name).lower() for name in table.columns if name != place}
    own = {"GEOMETRY_NAME": _free("geom", taken)} | ({"FID": _free("row", taken)} if "fid" in taken else {})
    if beside:
        table = table.assign(**{name: table[name].to_wkt() for name in beside})
    write_layer(table, path, path.stem, told, **own)


def _free(wanted: str, taken: Container[str]) -> str:
    """Return the name, with underscores added until it is free."""
    while wanted in taken:
        wanted += "_"
    return wanted


def write_parquet(table: Any, path: Path, told: Mapping[str, Any]) -> None:
    """Write GeoParquet 1.1 with the provenance under `anysat`, and bounds in the column `bbox` if that name is free."""
    import pyarrow.parquet

    table.to_parquet(path, index=False, compression="zstd", schema_version="1.1.0",
                     write_covering_bbox="bbox" not in table.columns)  # fmt: skip
    found = pyarrow.parquet.read_table(path)
    meta = {**(found.schema.metadata or {}), b"anysat": json.dumps(dict(told), default=str).encode()}
    pyarrow.parquet.write_table(found.replace_schema_metadata(meta), path, compression="zstd")


def read_shapes(polygons: Any, name: str = "polygons") -> tuple[str, Any]:
    """Return a name for messages, and the table of polygons or points, which is read if a file is given.

    Raises:
        MissingFileError, SourceError, UnknownNameError: The file cannot be read.
        InputError: It is neither a file nor a table of geometries.
    """
    if not isinstance(polygons, str | Path):
        check_shapes(polygons, name)
        return name, polygons
    path, layer = file_and_layer(str(polygons))
    if not path.exists():
        raise MissingFileError(path, "a vector file of polygons, such as fields.gpkg")
    table = read_table(path, layer)
    if any(name is not None for name in table.index.names):
        table = table.reset_index(allow_duplicates=True)  # so that the index of a saved GeoDataFrame is not lost
    return str(path), table


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


def _check_columns(name: str, given: Any, added: Sequence[str], suffix: str) -> None:
    """Refuse columns of the polygons whose names are taken, or that a file with this suffix cannot hold."""
    own = [str(word) for word in given.columns]
    where, taken = f"columns of {name}", {word.lower() for word in added}
    if both := [word for word in own if word.lower() in taken]:
        raise InputError(where, "none with the name of a column that is added", ", ".join(both), "rename them")
    is_package = suffix == ".gpkg"
    kind = "names that differ in more than case, for a GeoPackage" if is_package else "each name once"
    other = "write .parquet or .csv" if is_package else "give the class of the map another name"
    for place, words, advice in ((where, own, "rename them"), ("columns to add", added, other)):
        every = [word.lower() if is_package else word for word in words]
        if twice := [word for word, key in zip(words, every, strict=True) if every.count(key) > 1]:
            raise InputError(place, kind, ", ".join(twice), advice)
    if is_package:
        with tempfile.TemporaryDirectory() as folder:
            try:
                write_package(given.iloc[:1], Path(folder) / "trial.gpkg", {})
            except OSError as error:
                advice = "convert them, or write .parquet"
                raise InputError(where, "types that a GeoPackage can hold", error, advice) from error


def batches(bounds: NDArray[np.float64], rows: slice, cols: slice) -> Iterator[NDArray[np.int64]]:
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


def _add(sums: _Sums, groups: Sequence[StoredGroup], part: Coverage) -> None:
    """Add the stored values of the last group at some entries to the sums, in all periods."""
    *earlier, group = groups
    rows, cols = (slice(int(one.min()), int(one.max()) + 1) for one in (part.row, part.col))
    place = part.row - rows.start, part.col - cols.start
    for period in range(sums.share.shape[1]):
        values, valid = group.window(period, rows, cols)
        before = seen_before(earlier, group, period, rows, cols)
        twice = part.where((valid & before)[place])
        np.add.at(sums.twice[:, period], twice.shape, twice.share)
        is_seen = (valid & ~before)[place]
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


def _table(group: StoredGroup, given: Any, sums: _Sums) -> Any:
    """Return the rows, sorted by polygon and period. `group` is one of the groups, which are all of one kind."""
    import pandas

    num_polygons, num_periods = sums.share.shape
    number = np.repeat(np.arange(num_polygons), num_periods)
    rows = given.iloc[number]
    told: dict[str, Any] = {"polygon": number}
    if group.periods:
        times = [times_of(period, 1) for period in group.periods]
        for name in ("start_datetime", "end_datetime"):
            told[name] = pandas.to_datetime([time[name][0] for time in times] * num_polygons, utc=True)
    columns, share = _names(group), sums.share.ravel()
    told["num_patches"] = sums.patches.ravel()
    told["seen_frac"] = np.minimum(share, 1.0)
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
