"""Seeded fields of the generated world: functions of ground coordinates, without state, edges or pixel loops.

A value depends only on seed, salt and place, never on the grid, so that overlapping tiles agree.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

Hashes = NDArray[np.uint64]
Floats = NDArray[np.float32]

_ODD = tuple(np.uint64(n) for n in (0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB))
_SPLINE_STD = 0.277
"""Standard deviation of a cubic B-spline surface through uniform values from -1 to 1."""


@dataclass(frozen=True, eq=False)
class Grid:
    """Points of the ground in rows and columns, with coordinates in metres."""

    x: NDArray[np.float64]
    """Eastings (col)."""
    y: NDArray[np.float64]
    """Northings (row)."""
    step_m: float
    """Distance between neighbouring points."""

    @classmethod
    def over(cls, west_m: float, north_m: float, rows: int, cols: int, step_m: float) -> Grid:
        """Return cell centres from a north-west corner, rounded to a millimetre wherever the corner is."""
        x = np.rint((west_m + (np.arange(cols) + 0.5) * step_m) * 1e3) / 1e3
        y = np.rint((north_m - (np.arange(rows) + 0.5) * step_m) * 1e3) / 1e3
        return cls(x, y, step_m)

    @property
    def shape(self) -> tuple[int, int]:
        """Number of rows and of columns."""
        return len(self.y), len(self.x)


def hashed(*parts: ArrayLike) -> Hashes:
    """Return a well-mixed 64-bit number for every combination of whole numbers; the parts broadcast."""
    mixed: Hashes = np.zeros((1,) * max(np.ndim(part) for part in parts) or (1,), np.uint64)
    for place, part in enumerate(parts):
        number = np.atleast_1d(np.asarray(part))
        number = number if number.dtype == np.uint64 else number.astype(np.int64).astype(np.uint64)
        mixed = (mixed ^ (number + _ODD[place % 2])) * _ODD[2]
        mixed ^= mixed >> np.uint64(29)
    mixed *= _ODD[3]
    return mixed ^ (mixed >> np.uint64(32))


def uniform(hashes: Hashes, draw: int = 0) -> Floats:
    """Return a number in [0, 1) for each hash; different draws are independent."""
    mixed = (hashes + np.uint64((draw * 0x632BE59BD9B4E019) % 2**64)) * _ODD[2]
    mixed ^= mixed >> np.uint64(31)
    return ((mixed * _ODD[3]) >> np.uint64(40)).astype(np.float32) * np.float32(2.0**-24)


def normal(hashes: Hashes, draw: int = 0) -> Floats:
    """Return a bell-shaped number with mean 0 and deviation 1, at most 3 in size, for each hash."""
    total = sum((uniform(hashes, 1000 + 3 * draw + part) for part in range(3)), np.float32(0))
    return np.asarray((total - np.float32(1.5)) * np.float32(2.0), np.float32)


def _weights(fraction: Floats, is_slope: bool) -> tuple[Floats, ...]:
    """Return the weights of the four neighbours of a cubic B-spline, or of its slope."""
    f, g = fraction, np.float32(1) - fraction
    if is_slope:
        made = -g * g / 2, (3 * f * f - 4 * f) / 2, (4 * g - 3 * g * g) / 2, f * f / 2
    else:
        made = g**3 / 6, (3 * f**3 - 6 * f * f + 4) / 6, (3 * g**3 - 6 * g * g + 4) / 6, f**3 / 6
    return tuple(np.asarray(weight, np.float32) for weight in made)


def _lattice(coordinates: NDArray[np.float64], cell: float) -> tuple[NDArray[np.int64], NDArray[np.int64], Floats]:
    """Return the lattice points that are used, the place of each point among them, and the fraction to the next."""
    scaled = coordinates / cell
    floor = np.floor(scaled)
    first = floor.astype(np.int64) - 1
    low = int(first.min())
    return np.arange(low, int(first.max()) + 4), first - low, (scaled - floor).astype(np.float32)


def spline(seed: int, salt: ArrayLike, grid: Grid, cell_m: float, slope: str = "") -> Floats:
    """Return a smooth field (row col) with mean 0, deviation 1 and bumps of about `cell_m`; a field for each salt.

    `slope` is `x` or `y` for its slope along an axis, per metre.
    """
    columns, left, fx = _lattice(grid.x, cell_m)
    rows, top, fy = _lattice(grid.y, cell_m)
    salts = np.asarray(salt)[..., None, None]
    knots = hashed(seed, salts, rows[:, None], columns[None, :]).reshape(*np.shape(salt), len(rows), len(columns))
    knots_unit = (2 * uniform(knots) - 1) / np.float32(_SPLINE_STD)
    wx, wy = _weights(fx, slope == "x"), _weights(fy, slope == "y")
    along = wx[0] * knots_unit[..., left]
    for k in range(1, 4):
        along += wx[k] * knots_unit[..., left + k]
    field = wy[0][:, None] * along[..., top, :]
    for k in range(1, 4):
        field += wy[k][:, None] * along[..., top + k, :]
    return field / np.float32(cell_m) if slope else np.asarray(field, np.float32)


def spline_of_time(seed: int, salt: int, days: ArrayLike, cell_days: float) -> Floats:
    """Return a smooth series with mean 0 and deviation 1 that changes over about `cell_days`."""
    numbers, first, fraction = _lattice(np.asarray(days, np.float64), cell_days)
    knots = (2 * uniform(hashed(seed, salt, numbers)) - 1) / np.float32(0.4)
    weights = _weights(fraction, False)
    return np.stack([weights[k] * knots[first + k] for k in range(4)]).sum(0)


@dataclass(frozen=True, eq=False)
class Cells:
    """The irregular cell of each point."""

    hashes: Hashes
    """A number for each point's cell."""
    dx: NDArray[np.float64]
    """Metres to the east of the cell's seed."""
    dy: NDArray[np.float64]
    """Metres to the north of the cell's seed."""
    border_m: Floats
    """Approximate distance to the cell's border in metres."""
    table: Hashes
    """Numbers of all cells in use."""
    index: NDArray[np.int64]
    """Index of each point's cell in `table`."""

    def draw(self, number: int) -> Floats:
        """Return a number in [0, 1) for each point's cell."""
        return uniform(self.table, number)[self.index]


def cells(seed: int, salt: int, x: NDArray[np.float64], y: NDArray[np.float64], cell_m: float, jitter: float) -> Cells:
    """Find the nearest jittered grid point (Voronoi cells) of points of any shape; `jitter` is a fraction of a cell."""
    left, top = (np.floor(values / cell_m - 0.5).astype(np.int64) for values in (x, y))
    columns, rows = (np.arange(int(part.min()), int(part.max()) + 2) for part in (left, top))
    table = hashed(seed, salt, rows[:, None], columns[None, :])
    seed_x = (columns[None, :] + 0.5 + jitter * (uniform(table, 1) - 0.5)) * cell_m
    seed_y = (rows[:, None] + 0.5 + jitter * (uniform(table, 2) - 0.5)) * cell_m
    base = (top - rows[0]) * len(columns) + (left - columns[0])
    flat_x, flat_y = seed_x.ravel(), seed_y.ravel()
    best = np.full(base.shape, np.inf)
    second, chosen = best.copy(), base
    for step in (0, 1, len(columns), len(columns) + 1):
        place = base + step
        distance = (x - flat_x[place]) ** 2 + (y - flat_y[place]) ** 2
        is_nearer = distance < best
        second = np.where(is_nearer, best, np.minimum(second, distance))
        best = np.where(is_nearer, distance, best)
        chosen = np.where(is_nearer, place, chosen)
    border = ((second - best) / (2 * cell_m)).astype(np.float32)
    table = table.ravel()
    return Cells(table[chosen], x - flat_x[chosen], y - flat_y[chosen], border, table, chosen)
