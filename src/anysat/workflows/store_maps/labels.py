"""Labels of points, polygons or rasters: their classes or values, the samples they take of stores, and their blocks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from anysat.data.splits import METRES_PER_DEGREE
from anysat.errors import InputError, RecordError, UnknownNameError, some
from anysat.geo.parcels import place_parcels
from anysat.geo.periods import read_range
from anysat.geo.samples import choose_patches, read_vectors
from anysat.geo.zonal import read_shapes
from anysat.tasks.shallow import NUM_FOLDS, Samples, num_groups
from anysat.workflows.ground_blocks import blocks
from anysat.workflows.store_maps import is_raster
from anysat.workflows.store_maps.maps import Stores
from anysat.workflows.store_maps.rasters import LABEL, read_points
from anysat.workflows.supervised.config import BLOCK_KM

MOST = 20_000
"""Largest number of samples, which are drawn evenly over points and polygons."""
_FEW = 20
"""Number of points and polygons of a class below which the report says that they are few."""
_SIDES_KM = (BLOCK_KM, 5.0, 2.0, 1.0, 0.5, 0.2, 0.1, 0.05, 0.02)
_LEAST_PATCHES = 2
"""Smallest side of a block, in patches."""
_NAMED = 4
"""Largest number of rows that are named."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Labelled:
    """Samples of stores with labels."""

    samples: Samples
    classes: tuple[str, ...]
    """Names, by number; empty for values."""
    block_km: float
    is_joined: bool
    """Whether nothing can be scored only because blocks whose labels share a patch are joined."""
    lines: list[str]
    """What to report."""


def read_labelled(
    stores: Stores, given: Any, column: str | None, *, values: bool, dates: str | None, block_km: float | None
) -> Labelled:
    """Read labels, and the embeddings of the patches that they take.

    Args:
        stores: The stores.
        given: A vector file or GeoDataFrame of points and polygons; or a raster.
        column: Its column with the class or value; None for a raster.
        values: Whether it holds values.
        dates: Days in which the labels hold, FIRST/LAST; None for all.
        block_km: Side of a block; None to choose it.

    Raises:
        MissingFileError, SourceError, UnknownNameError: The file cannot be read, or has no such column.
        InputError: There are fewer than two classes or values, or none on ground that was seen.
        RecordError: No period lies within the days, or the side is not above 0.
    """
    periods, lines = _within(stores, dates), []
    if is_raster(given):
        name, where, at = str(given), str(given), "patches"
        table, total = read_points(stores, Path(given), periods, MOST // len(periods), values=values)
        found = table[LABEL]
        if total > len(table):
            lines.append(
                f"{len(table)} of {total} labelled patches drawn" + ("" if values else ", evenly over classes")
            )
    else:
        (name, table), at = read_shapes(given, "samples"), "points or polygons"
        known = [one for one, kind in table.dtypes.items() if str(kind) != "geometry"]
        if column not in known:
            raise UnknownNameError("--column", column, [str(one) for one in known], f"It must be one of {name}")
        where, found = f"column {column!r} of {name}", table[column]
    labels, is_known, every = _labels(where, found, values)
    _need_two(where, labels[is_known])
    shapes = table.geometry[is_known].reset_index(drop=True).explode()  # parts may lie far apart
    labels, table = labels[is_known][shapes.index], shapes.to_frame("geometry")
    placed = [place_parcels(table, name, group.geobox) for group in stores.groups]
    patches = choose_patches(stores.groups, placed, MOST // len(periods))
    vectors, seen, num_twice = read_vectors(stores.groups, patches, periods)
    kept, owner = np.unique(np.broadcast_to(patches.shape, seen.shape)[seen], return_inverse=True)
    if not len(kept):
        raise InputError(name, f"labels on ground that {stores.name} has seen", f"{len(table)} elsewhere, or "
                         "polygons without a patch mostly inside",
                         "check their reference system, or give points")  # fmt: skip
    lines += placed[0].notes
    if unlabelled := int((~is_known).sum()):
        lines.append(f"rows of {name} without a label: {unlabelled}")
    if len(table) > len(kept):
        lines.append(f"{len(table) - len(kept)} of {len(table)} labelled points and polygons of {name} give no sample: "
                     "they lie on ground that was not seen, or are polygons without a patch mostly inside "
                     "(give a point there instead)")  # fmt: skip
    labels, classes = labels[kept], tuple(one for one in every if one in set(labels[kept]))
    if gone := [one for one in every if one not in classes]:
        lines.append(f"no sample, so not in the map: {', '.join(gone)}")
    if not values:
        _need_two(where, labels, f" on ground that {stores.name} has seen")
        labels = np.array([classes.index(one) for one in labels])
    place = np.stack([patches.store, patches.row, patches.col], axis=1)
    place = np.broadcast_to(np.unique(place, axis=0, return_inverse=True)[1].reshape(-1), seen.shape)[seen]
    if num_twice:
        lines.append(f"stores overlap: {num_twice} samples left out, of ground that a store named earlier has seen")
    rows = np.nonzero(is_known)[0][shapes.index][kept]
    told_as = [f"row {row} ({classes[label] if classes else label})" for row, label in zip(rows, labels, strict=True)]
    if clashing := _clashing(place, owner, labels, told_as):
        lines.append(f"{clashing}, all of which count: correct the rows of {name} (counted from 0) that should not "
                     "overlap")  # fmt: skip
    middle = np.searchsorted(patches.shape, kept) + np.bincount(patches.shape)[kept] // 2
    km, groups, is_joined = _blocks(
        stores.places_deg(patches.where(middle)), labels if classes else np.zeros(len(kept), int), owner, place,
        block_km, _side_m(stores),
    )  # fmt: skip
    samples = Samples(vectors=vectors[seen], truth=labels[owner], groups=groups[owner], num_classes=len(classes),
                      weights=np.broadcast_to(patches.share, seen.shape)[seen])  # fmt: skip
    told = _told(samples, classes, labels, groups, km, repr(column or name), at)
    return Labelled(samples=samples, classes=classes, block_km=km, is_joined=is_joined, lines=[*told, *lines])


def _clashing(
    place: NDArray[np.int64], owner: NDArray[np.int64], labels: NDArray[Any], told_as: Sequence[str]
) -> str:  # fmt: skip
    """Return how many patches have different labels, and which rows have most of them; empty if none has.

    Args:
        place: For each sample, a number of its patch.
        owner: For each sample, the number of its point or polygon.
        labels: Label of each point or polygon.
        told_as: Row and label of each point or polygon, in words.
    """
    pairs = np.unique(np.stack([place, labels[owner]]), axis=1)[0].astype(np.int64)
    found = np.nonzero(np.bincount(pairs) > 1)[0]
    places, owners = np.unique(np.stack([place, owner]), axis=1)
    counts = np.bincount(owners[np.isin(places, found)], minlength=len(labels))
    rows = list(dict.fromkeys(told_as[number] for number in np.argsort(-counts, kind="stable") if counts[number]))
    return f"patches with different labels ({len(found)}, most of them in {some(rows, _NAMED)})" if rows else ""


def _labels(where: str, given: Any, values: bool) -> tuple[NDArray[Any], NDArray[np.bool_], tuple[str, ...]]:
    """Return the text or value of each row, which rows have one, and the classes in order (none for values)."""
    import pandas

    if values:
        numbers = pandas.to_numeric(given, errors="coerce").to_numpy(np.float64)
        if (strange := given.notna().to_numpy() & ~np.isfinite(numbers)).any():
            raise InputError(where, "numbers, for --values", repr(given[strange].iloc[0]),
                             "leave --values out to map classes")  # fmt: skip
        return numbers, np.isfinite(numbers), ()
    is_known = given.notna().to_numpy() & (given.astype(str).str.strip() != "").to_numpy()
    words = given[is_known]
    if pandas.api.types.is_float_dtype(words):  # whole numbers beside empty cells
        if (strange := (words % 1 != 0)).any():
            raise InputError(where, "classes: texts or whole numbers", words[strange].iloc[0],
                             "for a map of values, give --values")  # fmt: skip
        words = words.astype(int)
    order = sorted(words.unique(), key=lambda one: (str(type(one)), one))
    texts = np.full(len(given), "", object)
    texts[is_known] = [str(one).strip() for one in words]
    return texts, is_known, tuple(dict.fromkeys(str(one).strip() for one in order))


def _need_two(where: str, labels: NDArray[Any], of: str = "") -> None:
    """Refuse fewer than two different labels."""
    if len(found := np.unique(labels)) < 2:
        raise InputError(where, f"two classes or values{of}, or more", ", ".join(map(str, found)) or "none",
                         "add samples of another class, or use `anysat similar`")  # fmt: skip


def _within(stores: Stores, dates: str | None) -> list[int]:
    """Return the numbers of the periods within some days."""
    if dates is None:
        return list(range(len(stores.periods)))
    first, last = read_range(dates, "--dates")
    found = [number for number, (begin, end) in enumerate(stores.periods) if first <= begin and end <= last]
    if not found:
        periods = ", ".join(f"{begin}/{end}" for begin, end in stores.periods)
        raise RecordError("--dates", dates, f"days that hold a period of {stores.name} ({periods})")
    return found


def _side_m(stores: Stores) -> float:
    """Return about the side of a patch in metres."""
    geobox = stores.groups[0].geobox
    return abs(geobox.affine.a) * (METRES_PER_DEGREE if geobox.crs is not None and geobox.crs.geographic else 1)


def _blocks(
    places: NDArray[np.float64], classes: NDArray[np.int64], owner: NDArray[np.int64], place: NDArray[np.int64],
    given_km: float | None, side_m: float,
) -> tuple[float, NDArray[np.int64], bool]:  # fmt: skip
    """Return the side of the blocks, and the block of each point or polygon, which lies in one as a whole.

    The last answer is `Labelled.is_joined`.

    Of `_SIDES_KM`, it is the largest with which every class of several points or polygons lies in as many blocks as
    there are folds, or at least in 3, or in 2.

    Args:
        places: Longitude and latitude of a patch of each point or polygon.
        classes: Its class.
        owner: For each sample, the number of its point or polygon.
        place: For each sample, a number of its patch. Blocks with labels of one patch are joined.
        given_km: Side of the blocks; None to choose it.
        side_m: Side of a patch.
    """
    if given_km is not None and not given_km > 0:
        raise RecordError("--block-km", given_km, "a length above 0, or null")
    least_m = _LEAST_PATCHES * side_m
    sides = [km for km in _SIDES_KM if 1000 * km >= least_m or km == BLOCK_KM] if given_km is None else [given_km]
    names = [str(number) for number in range(len(places))]
    tried = [(km, _joined(blocks(places, names, km), owner, place)) for km in sides]
    several = np.unique(classes, return_counts=True)[1] > 1
    for needed in (NUM_FOLDS, 3, 2):
        for km, found in tried:
            if (num_groups(found, classes)[several] >= needed).all():
                return km, found, False
    km, found = tried[-1]
    needed = min(2, len(several))
    spread = [(num_groups(one, classes) > 1).sum() >= needed for one in (blocks(places, names, km), found)]
    return km, found, spread == [True, False]


def _joined(found: NDArray[np.int64], owner: NDArray[np.int64], place: NDArray[np.int64]) -> NDArray[np.int64]:
    """Join blocks that have labels of one patch, which else could be both fitted to and scored."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    first = found.max() + 1
    pairs = coo_array((np.ones(len(place)), (found[owner], first + place)), (first + place.max() + 1,) * 2)
    return np.asarray(connected_components(pairs, directed=False)[1][found], np.int64)


def _told(
    samples: Samples,
    names: tuple[str, ...],
    labels: NDArray[Any],
    groups: NDArray[np.int64],
    km: float,
    of: str,
    at: str,
) -> list[str]:
    """Return lines about the samples, and whether they are few."""
    head = f"{len(samples.truth)} samples of {of} at {len(labels)} {at}"
    if not names:
        return [f"{head}, {samples.truth.min():g} to {samples.truth.max():g}"]
    rows, patches = np.bincount(labels, minlength=len(names)), np.bincount(samples.truth, minlength=len(names))
    lines = [f"{head}: " + ", ".join(f"{name} {count}" for name, count in zip(names, patches, strict=True))]
    if few := [f"{name} {count}" for name, count in zip(names, rows, strict=True) if count < _FEW]:
        lines.append(f"few labels ({', '.join(few)} {at}): treat scores and map as a first draft, and "
                     "add labels where the map is wrong")  # fmt: skip
    single = [name for name, count in zip(names, num_groups(groups, labels), strict=True) if count < 2]
    if 0 < len(single) < len(names) - 1:  # else nothing is scored
        lines.append(f"in one block of {km:g} km only, so never found when that block is held out: "
                     f"{', '.join(single)}")  # fmt: skip
    return lines
