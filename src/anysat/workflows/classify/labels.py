"""Labels of points and polygons: their classes or values, the samples that they take of stores, and their blocks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from odc.geo import CRS

from anysat.data.splits import METRES_PER_DEGREE
from anysat.errors import InputError, RecordError, UnknownNameError
from anysat.geo.degrees import WGS84, projected
from anysat.geo.parcels import place_parcels
from anysat.geo.periods import read_range
from anysat.geo.samples import choose_patches, read_vectors
from anysat.geo.stores.layout import NO_CLASS
from anysat.geo.zonal import read_shapes
from anysat.tasks.shallow import NUM_FOLDS, Samples
from anysat.workflows.ground_blocks import blocks
from anysat.workflows.store_maps.run import Stores
from anysat.workflows.supervised.config import BLOCK_KM

MOST = 20_000
"""Largest number of samples, which are drawn evenly over points and polygons."""
_FEW = 20
"""Number of points and polygons of a class below which the report says that they are few."""
_SIDES_KM = (BLOCK_KM, 5.0, 2.0, 1.0, 0.5, 0.2, 0.1, 0.05, 0.02)
_LEAST_PATCHES = 2
"""Smallest side of a block, in patches."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Labelled:
    """Samples of stores with labels."""

    samples: Samples
    classes: tuple[str, ...]
    """Names, by number; empty for values."""
    block_km: float
    lines: list[str]
    """What to report."""


def read_labelled(
    stores: Stores, given: Any, column: str, *, values: bool, dates: str | None, block_km: float | None
) -> Labelled:
    """Read labels, and the embeddings of the patches that they take.

    Args:
        stores: The stores.
        given: A vector file or GeoDataFrame of points and polygons.
        column: Its column with the class or value.
        values: Whether it holds values.
        dates: Days in which the labels hold, FIRST/LAST; None for all.
        block_km: Side of a block; None to choose it.

    Raises:
        MissingFileError, SourceError, UnknownNameError: The file cannot be read, or has no such column.
        InputError: There are fewer than two classes or values, or none on ground that was seen.
        RecordError: No period lies within the days, or the side is not above 0.
    """
    name, table = read_shapes(given)
    if hasattr(table, "columns") and column not in table.columns:
        known = [str(one) for one in table.columns if one != getattr(table, "_geometry_column_name", None)]
        raise UnknownNameError("--column", column, known, f"It must be one of {name}")
    placed = [place_parcels(table, name, group.geobox) for group in stores.groups]
    names, labels, is_known = _labels(name, table[column], values)
    periods = _within(stores, dates)
    patches = choose_patches(stores.groups, placed, MOST // len(periods))
    patches = patches.where(is_known[patches.shape])
    vectors, seen = read_vectors(stores.groups, patches, [stores.views[one] for one in periods])
    shape = np.broadcast_to(patches.shape, seen.shape)[seen]
    kept = np.unique(shape)
    lines = _losses(name, placed[0].notes, is_known, kept)
    if not len(kept):
        raise InputError(name, f"labels on ground that {stores.name} has seen", f"{is_known.sum()} elsewhere, or "
                         "polygons without a patch mostly inside",
                         "check their reference system, or give points")  # fmt: skip
    if not values:
        names, labels, gone = _present(names, labels, kept)
        if gone:
            lines.append(f"no sample, so not in the map: {', '.join(gone)}")
        if len(names) < 2:
            raise InputError(f"column {column!r} of {name}", f"two classes or more on ground that {stores.name} has "
                             "seen", ", ".join(names),
                             "add samples of another class, or use `anysat similar`")  # fmt: skip
        lines += _disputed(patches, labels)
    places, side_m = _places_deg(table)[kept], _side_m(stores)
    km, numbers = _blocks(places, labels[kept] if names else np.zeros(len(kept), int), block_km, side_m)
    group_of = np.full(len(labels), -1)
    group_of[kept] = numbers
    samples = Samples(vectors=vectors[seen], truth=labels[shape], groups=group_of[shape], num_classes=len(names),
                      weights=np.broadcast_to(patches.share, seen.shape)[seen])  # fmt: skip
    told = _told(samples, names, labels[kept], numbers, km, column)
    return Labelled(samples=samples, classes=names, block_km=km, lines=[*told, *lines])


def _labels(name: str, given: Any, values: bool) -> tuple[tuple[str, ...], NDArray[Any], NDArray[np.bool_]]:
    """Return the names of classes, the class number or value of each row, and which rows have one."""
    import pandas

    if values:
        numbers = pandas.to_numeric(given, errors="coerce").to_numpy(np.float64)
        if (strange := given.notna().to_numpy() & ~np.isfinite(numbers)).any():
            raise InputError(f"column {given.name!r} of {name}", "numbers, for --values",
                             repr(given[strange].iloc[0]), "leave --values out to map classes")  # fmt: skip
        if len(np.unique(numbers[np.isfinite(numbers)])) < 2:
            raise InputError(f"column {given.name!r} of {name}", "two values or more", given.nunique())
        return (), numbers, np.isfinite(numbers)
    is_known = given.notna().to_numpy() & (given.astype(str).str.strip() != "").to_numpy()
    words = given[is_known]
    if pandas.api.types.is_float_dtype(words) and (words % 1 == 0).all():  # whole numbers beside empty cells
        words = words.astype(int)
    order = sorted(words.unique(), key=lambda one: (str(type(one)), one))
    names = tuple(dict.fromkeys(str(one).strip() for one in order))
    if len(names) < 2:
        raise InputError(f"column {given.name!r} of {name}", "two classes or more", ", ".join(names) or "none",
                         "add samples of another class, or use `anysat similar`")  # fmt: skip
    if len(names) > NO_CLASS:
        raise InputError(f"column {given.name!r} of {name}", f"at most {NO_CLASS} classes", len(names),
                         "for numbers, give --values")  # fmt: skip
    numbers = np.full(len(given), -1, np.int64)
    numbers[is_known] = [names.index(str(one).strip()) for one in words]
    return names, numbers, is_known


def _within(stores: Stores, dates: str | None) -> list[int]:
    """Return the numbers of the views within some days."""
    if dates is None:
        return list(range(len(stores.views)))
    first, last = read_range(dates, "--dates")
    found = [number for number, (begin, end) in enumerate(stores.periods) if first <= begin and end <= last]
    if not found:
        periods = ", ".join(f"{begin}/{end}" for begin, end in stores.periods)
        raise RecordError("--dates", dates, f"days that hold a period of {stores.name} ({periods})")
    return found


def _losses(name: str, notes: Sequence[str], is_known: NDArray[np.bool_], kept: NDArray[np.int64]) -> list[str]:
    """Return lines about rows that give no sample."""
    lines = list(notes)
    if count := int((~is_known).sum()):
        lines.append(f"{count} rows of {name} have no label")
    if count := int(is_known.sum()) - len(kept):
        lines.append(f"{count} labelled rows of {name} give no sample: they lie on ground that was not seen, or are "
                     "polygons without a patch mostly inside (give a point there instead)")  # fmt: skip
    return lines


def _present(
    names: tuple[str, ...], labels: NDArray[np.int64], kept: NDArray[np.int64]
) -> tuple[tuple[str, ...], NDArray[np.int64], list[str]]:
    """Leave out classes without a sample; return the others, the new numbers, and the names that were left out."""
    found = np.unique(labels[kept])
    new = np.full(len(names) + 1, -1, np.int64)  # the last for -1
    new[found] = np.arange(len(found))
    gone = [name for number, name in enumerate(names) if number not in found]
    return tuple(names[number] for number in found), new[labels], gone


def _disputed(patches: Any, labels: NDArray[np.int64]) -> list[str]:
    """Return a line about patches that have labels of several classes."""
    place = np.stack([patches.store, patches.row, patches.col, labels[patches.shape]], axis=1)
    counts = np.unique(np.unique(place, axis=0)[:, :3], axis=0, return_counts=True)[1]
    several = int((counts > 1).sum())
    return [f"{several} patches have labels of several classes; all count"] if several else []


def _places_deg(table: Any) -> NDArray[np.float64]:
    """Return longitude and latitude (row 2) of a point inside each shape."""
    import shapely

    points = shapely.point_on_surface(np.asarray(table.geometry.values, object))
    points = np.where(shapely.is_missing(points) | shapely.is_empty(points), shapely.Point(0, 0), points)
    return np.asarray(shapely.get_coordinates(projected(points, CRS(table.crs), WGS84)))


def _side_m(stores: Stores) -> float:
    """Return about the side of a patch in metres."""
    geobox = stores.groups[0].geobox
    return abs(geobox.affine.a) * (METRES_PER_DEGREE if geobox.crs is not None and geobox.crs.geographic else 1)


def _blocks(
    places: NDArray[np.float64], classes: NDArray[np.int64], given_km: float | None, side_m: float
) -> tuple[float, NDArray[np.int64]]:
    """Return the side of the blocks, and the block of each place.

    Of `_SIDES_KM`, it is the largest with which every class lies in as many blocks as there are
    folds, or at least in 3, or in 2. A polygon lies in one block as a whole.
    """
    if given_km is not None and not given_km > 0:
        raise RecordError("--block-km", given_km, "a length above 0, or null")
    least_m = _LEAST_PATCHES * side_m
    sides = [km for km in _SIDES_KM if 1000 * km >= least_m or km == BLOCK_KM] if given_km is None else [given_km]
    names = [str(number) for number in range(len(places))]
    tried = [(km, blocks(places, names, km)) for km in sides]
    fewest = [min(_num_blocks(found, classes)) for _, found in tried]
    for needed in (NUM_FOLDS, 3, 2):
        for number, least in enumerate(fewest):
            if least >= needed:
                return tried[number]
    return tried[-1]


def _num_blocks(found: NDArray[np.int64], classes: NDArray[np.int64]) -> list[int]:
    """Return the number of blocks in which each class lies."""
    return [len(np.unique(found[classes == one])) for one in np.unique(classes)]


def _told(
    samples: Samples, names: tuple[str, ...], labels: NDArray[Any], numbers: NDArray[np.int64], km: float, column: str
) -> list[str]:
    """Return lines about the samples, and whether they are few."""
    head = f"{len(samples.truth)} samples of {column!r} at {len(labels)} points or polygons"
    if not names:
        return [f"{head}, {samples.truth.min():g} to {samples.truth.max():g}"]
    rows, patches = np.bincount(labels, minlength=len(names)), np.bincount(samples.truth, minlength=len(names))
    lines = [f"{head}: " + ", ".join(f"{name} {count}" for name, count in zip(names, patches, strict=True))]
    if few := [f"{name} {count}" for name, count in zip(names, rows, strict=True) if count < _FEW]:
        lines.append(f"few labels ({', '.join(few)} points or polygons): treat scores and map as a first draft, and "
                     "add labels where the map is wrong")  # fmt: skip
    single = [name for name, count in zip(names, _num_blocks(numbers, labels), strict=True) if count < 2]
    if single:
        lines.append(f"in one block of {km:g} km only, so never found when that block is held out: "
                     f"{', '.join(single)}")  # fmt: skip
    return lines
