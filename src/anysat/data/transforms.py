"""Random augmentation of tiles for training: crops, flips, quarter turns, and fewer dates.

All modalities, target rasters and the georeference are changed together. Randomness comes from a given generator, and
the original tile is not changed.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from anysat.batch import Tile
from anysat.errors import InputError, RecordError
from anysat.observation import Observation
from anysat.patches import centimetres

Array = NDArray[Any]


@dataclass(frozen=True, kw_only=True)
class Augmentation:
    """Random changes, drawn anew for every sample. By default there are none.

    Raises:
        RecordError: A field has a value that is not possible.

    Examples:
        >>> Augmentation(keep_dates_frac=0.5, max_dates=20).num_dates("s2", 61)
        20
    """

    turns_and_flips: bool = False
    """Turn and flip the tile at random: one of the 8 ways to place a square on itself, or 4 if it is no square."""
    cut_at_random: bool = False
    """If samples are larger than tiles (photos of FLAIR and TreeSatAI), cut them at a random place, not in the middle.
    Has no effect on packed datasets, whose tiles are cut already."""
    crop_m: float | None = None
    """Side in metres of a square of ground to keep, at a random place. None for the whole tile."""
    max_dates: int | None = None
    """Largest number of dates kept of each series; None for all."""
    keep_dates_frac: float = 1.0
    """Fraction of the dates kept of each series; at least one date is kept."""
    max_dates_of: Mapping[str, int] = field(default_factory=dict)
    """`max_dates` for single modalities, by key."""
    keep_dates_frac_of: Mapping[str, float] = field(default_factory=dict)
    """`keep_dates_frac` for single modalities, by key."""

    def __post_init__(self) -> None:
        if self.crop_m is not None:
            centimetres(self.crop_m, "crop_m")
        for key, count in {"": self.max_dates, **self.max_dates_of}.items():
            if count is not None and not (isinstance(count, int) and count >= 1):
                expected = "a number of dates, at least one; max_dates_of takes numbers by modality"
                raise RecordError(f"max_dates {key}".strip(), count, expected)
        for key, share in {"": self.keep_dates_frac, **self.keep_dates_frac_of}.items():
            if not 0 < share <= 1:
                raise RecordError(f"keep_dates_frac {key}".strip(), share, "a share above 0, up to 1")

    def num_dates(self, key: str, given: int) -> int:
        """Return how many dates are kept of a series of the modality `key` that has `given` dates."""
        share = self.keep_dates_frac_of.get(key, self.keep_dates_frac)
        most = self.max_dates_of.get(key, self.max_dates)
        kept = max(1, math.floor(given * share + 1e-9))
        return kept if most is None else min(kept, most)


@dataclass(frozen=True, kw_only=True, eq=False)
class Crops:
    """Overlapping tiles of one sample, and the targets of all the ground that they cover together."""

    tiles: tuple[Tile, ...]
    corners_m: tuple[tuple[float, float], ...]
    """Upper left corner of each tile, in metres down and right from the upper left corner of that ground."""
    extent_m: tuple[float, float]
    """Height and width of that ground, in metres."""
    targets: Mapping[str, NDArray[Any]]
    """Targets of that ground, by name."""
    geobox: Any = None
    """Georeference of that ground or of its centre; None if unknown."""


def augment(tile: Tile, augmentation: Augmentation, generator: np.random.Generator) -> Tile:
    """Return a randomly changed copy of a tile. The same state of the generator gives the same copy.

    The tile is first cropped, then flipped and turned, then some dates are left out. The dates stay in order, and if
    any date has a valid value, one such date is kept. Arrays may be views of those of the original tile.

    Raises:
        InputError: The crop does not fit, or a context modality has more than one pixel, which would no longer lie over
            its ground.
    """
    if augmentation.crop_m is not None:
        top_m, left_m = _draw_place(tile, augmentation.crop_m, generator)
        tile = crop(tile, top_m, left_m, augmentation.crop_m)
    if augmentation.turns_and_flips:
        is_square = len(set(_extent_cm(tile))) == 1
        quarters = generator.integers(4) if is_square else 2 * generator.integers(2)
        tile = turn(tile, int(quarters), is_mirrored=bool(generator.integers(2)))
    thinned = {key: _thin(seen, augmentation, generator) for key, seen in tile.observations.items()}
    is_same = all(thinned[key] is seen for key, seen in tile.observations.items())
    return tile if is_same else replace(tile, observations=thinned)


def crop(tile: Tile, top_m: float, left_m: float, side_m: float) -> Tile:
    """Cut a square out of a tile, given the distance of its upper left corner from that of the tile.

    The georeference is cut, too. It is dropped if the square does not hold a whole number of its pixels.

    Raises:
        InputError: The square is not inside the tile, or cuts through a pixel of a modality or a target.
    """
    height, width = _extent_cm(tile)
    unit = _unit_cm(tile)
    top, left = (round(100 * length) for length in (top_m, left_m))
    side = centimetres(side_m, "crop side")
    _check_context(tile)
    where = f"crop of tile {tile.id!r}"
    if any(length % unit for length in (top, left, side)):
        given = f"{side_m:g} m at {top_m:g}, {left_m:g} m"
        raise InputError(where, f"multiples of {unit / 100:g} m, so that no pixel is cut", given)
    if min(top, left) < 0 or top + side > height or left + side > width:
        given = f"{side_m:g} m at {top_m:g}, {left_m:g} m"
        raise InputError(where, f"a square inside {height / 100:g} x {width / 100:g} m", given)

    def cut(array: Array) -> Array:
        rows, cols = (slice(start * count // extent, (start + side) * count // extent) for start, count, extent
                      in ((top, array.shape[-2], height), (left, array.shape[-1], width)))  # fmt: skip
        return array[..., rows, cols]

    return replace(_on_ground(tile, cut), geobox=_cut_geobox(tile.geobox, top / height, left / width,
                                                             side / height, side / width))  # fmt: skip


def five_corners(tile: Tile, side_m: float) -> tuple[tuple[float, float], ...]:
    """Return the upper left corners, in metres down and right, of squares in the four corners and middle of a tile.

    The middle square is moved towards the upper left by less than one step, so that it cuts no pixel.

    Raises:
        InputError: The tile is not larger than the square.
    """
    unit, side, extent = _unit_cm(tile), centimetres(side_m, "crop side"), _extent_cm(tile)
    free = [length - side for length in extent]
    if min(free) < 0 or max(free) == 0:
        shape = f"{extent[0] / 100:g} x {extent[1] / 100:g} m"
        raise InputError(f"five crops of tile {tile.id!r}", f"a side below that of the tile, {shape}", f"{side_m:g} m")
    tops, lefts = (dict.fromkeys((0.0, length / 100)) for length in free)
    middle_top, middle_left = (length // 2 // unit * unit / 100 for length in free)
    return (*itertools.product(tops, lefts), (middle_top, middle_left))


def turn(tile: Tile, quarters: int, *, is_mirrored: bool = False) -> Tile:
    """Mirror a tile left to right, if wanted, and then turn it counterclockwise by quarter turns.

    A changed tile has no georeference, because its rows no longer follow the axes of a map.

    Raises:
        InputError: The tile is not square and would change its shape.
    """
    height, width = _extent_cm(tile)
    _check_context(tile)
    if quarters % 2 and height != width:
        shape = f"{height / 100:g} x {width / 100:g} m"
        raise InputError(f"turn of tile {tile.id!r}", "half turns, because the tile is not square", shape)
    if quarters % 4 == 0 and not is_mirrored:
        return tile

    def place(array: Array) -> Array:
        array = array[..., ::-1] if is_mirrored else array
        array = array[..., ::-1, ::-1] if quarters % 4 > 1 else array
        return array[..., ::-1].swapaxes(-2, -1) if quarters % 2 else array

    return replace(_on_ground(tile, place), geobox=None)


def _on_ground(tile: Tile, move: Callable[[Array], Array]) -> Tile:
    """Apply `move` to everything that lies on the ground. Context modalities stay."""
    tiling = _tiling(tile)
    observations = {
        key: replace(seen, values=move(seen.values), valid=move(seen.valid)) if key in tiling else seen
        for key, seen in tile.observations.items()
    }
    targets = {name: move(value) if np.ndim(value) >= 2 else value for name, value in tile.targets.items()}
    return replace(tile, observations=observations, targets=targets)


def _tiling(tile: Tile) -> Mapping[str, Observation]:
    """Return the modalities whose pixels make up the ground; context modalities only if there are no others."""
    return {k: o for k, o in tile.observations.items() if not o.modality.covers_tile} or tile.observations


def _check_context(tile: Tile) -> None:
    tiling = _tiling(tile)
    for key, observation in tile.observations.items():
        if key not in tiling and observation.shape_px != (1, 1):
            expected = "one pixel of a modality that covers the tile, so that crops and turns keep it over its ground"
            raise InputError(f"tile {tile.id!r}, {key}", expected, f"{observation.shape_px} pixels")


def extent_m(tile: Tile) -> tuple[float, float]:
    """Return the height and width of a tile, in metres."""
    height, width = _extent_cm(tile)
    return height / 100, width / 100


def _extent_cm(tile: Tile) -> tuple[int, int]:
    seen = next(iter(_tiling(tile).values()))
    gsd_cm = centimetres(seen.modality.gsd_m, f"gsd_m of {seen.modality.key!r}")
    return seen.shape_px[0] * gsd_cm, seen.shape_px[1] * gsd_cm


def _unit_cm(tile: Tile) -> int:
    """Return the shortest length that holds whole pixels of every modality and every target raster."""
    extent = _extent_cm(tile)
    sides = [centimetres(o.modality.gsd_m, f"gsd_m of {key!r}") for key, o in _tiling(tile).items()]
    for name, target in tile.targets.items():
        if np.ndim(target) >= 2:
            for length, count in zip(extent, np.shape(target)[-2:], strict=True):
                if length % count:
                    shape = f"{extent[0] / 100:g} x {extent[1] / 100:g} m"
                    raise InputError(f"tile {tile.id!r}, target {name!r}",
                                     f"pixels of whole centimetres over {shape}", np.shape(target))  # fmt: skip
                sides.append(length // count)
    return math.lcm(*sides)


def _draw_place(tile: Tile, side_m: float, generator: np.random.Generator) -> tuple[float, float]:
    """Draw a random place for a square, such that it cuts no pixel."""
    unit, side = _unit_cm(tile), centimetres(side_m, "crop_m")
    free = [max(0, length - side) // unit for length in _extent_cm(tile)]
    top, left = (int(generator.integers(count + 1)) * unit / 100 for count in free)
    return top, left


def _cut_geobox(geobox: Any, top: float, left: float, height: float, width: float) -> Any:
    """Return a part of a georeference, given as fractions of its sides."""
    if geobox is None:
        return None
    rows, cols = geobox.shape
    counts = (height * rows, width * cols)
    if any(abs(count - round(count)) > 1e-6 for count in counts):
        return None
    return geobox.translate_pix(left * cols, top * rows).crop((round(counts[0]), round(counts[1])))


def _thin(observation: Observation, augmentation: Augmentation, generator: np.random.Generator) -> Observation:
    """Return a series with fewer dates, in their order; if any date has a valid value, one such date is kept."""
    if observation.dates is None:
        return observation
    given = len(observation.dates)
    count = augmentation.num_dates(observation.modality.key, given)
    if count >= given:
        return observation
    kept = generator.permutation(given)[:count]
    if not any(observation.valid[index].any() for index in kept):
        seen = np.flatnonzero([date.any() for date in observation.valid])
        if seen.size:
            kept[0] = generator.choice(seen)
    kept.sort()
    values, valid = _at_dates(observation.values, kept), _at_dates(observation.valid, kept)
    return replace(observation, values=values, valid=valid, dates=observation.dates[kept])


def _at_dates(array: Array, kept: NDArray[np.int64]) -> Array:
    """Return some dates of a series. Axes repeated without taking memory (stride 0) stay so."""
    is_repeated = [stride == 0 for stride in array.strides]
    if not any(is_repeated):
        return array[kept]
    once = array[tuple(slice(1 if repeated else None) for repeated in is_repeated)]
    return np.broadcast_to(once if is_repeated[0] else once[kept], (len(kept), *array.shape[1:]))
