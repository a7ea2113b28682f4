"""The map of the generated world: what is at each point of the ground, and what happens there when.

It has rivers and lakes, forests in stands, farmland in rotated fields, and towns with streets and roofs. Clearings,
burns and floods are functions of place and day.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from anysat.data.world.noise import Cells, Floats, Grid, Hashes, cells, hashed, normal, spline, spline_of_time, uniform
from anysat.data.world.parameters import MATERIALS, PARAMETERS

P = PARAMETERS
NUMBER = {material.name: number for number, material in enumerate(MATERIALS)}
FIRST_SPECIES, FIRST_CROP, NUM_SPECIES, NUM_CROPS = NUMBER["spruce"], NUMBER["wheat"], 6, 6
_FOREST_SALT, _TOWN_SALT, _RIVER_SALT, _FLOOD_SALT, _PARCEL_SALT = 10, 20, 30, 40, 50
_NEVER, _SLAB_POINTS = -(10**6), 2**16


@dataclass(frozen=True, eq=False)
class Ground:
    """What is at the points of a grid in one year; arrays are (row col)."""

    material: NDArray[np.int8]
    """Number in `MATERIALS`."""
    unit: Hashes
    """A number for each parcel, stand or roof, which has one material and develops as one over the year."""
    burn: Hashes
    """The burn that happens here; 0 if none ever does."""
    water_m: Floats
    """Flood reach in metres beyond which this point is under water; see `flood_reach`."""
    u: Floats
    """Metres across the field or along the street."""


@dataclass(frozen=True, eq=False)
class Units:
    """The distinct pieces of ground of a scene."""

    place: NDArray[np.int64]
    """Index of each point's piece (row col)."""
    material: NDArray[np.int8]
    unit: Hashes
    burn: Hashes

    @classmethod
    def of(cls, ground: Ground) -> Units:
        """Group equal points into pieces; runs along rows are joined first, because sorting is slow."""
        shape = ground.unit.shape
        key = (ground.unit ^ (ground.burn * np.uint64(3))).ravel()
        is_start = np.r_[True, key[1:] != key[:-1]]
        starts = np.flatnonzero(is_start)
        _, first, place = np.unique(key[starts], return_index=True, return_inverse=True)
        picked = starts[first]
        everywhere = np.repeat(place, np.diff(np.r_[starts, key.size])).reshape(shape)
        return cls(everywhere, ground.material.flat[picked], ground.unit.flat[picked], ground.burn.flat[picked])

    @cached_property
    def has_stand(self) -> NDArray[np.bool_]:
        """True for pieces of forest."""
        return is_forest(self.material)


def is_forest(material: NDArray[np.int8]) -> NDArray[np.bool_]:
    """Return where a material is a tree species of the forest."""
    return (material >= FIRST_SPECIES) & (material < FIRST_SPECIES + NUM_SPECIES)


def year_and_day(dates: ArrayLike) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the year, and the day of the year from 1, of dates."""
    dates = np.asarray(dates, "datetime64[D]")
    years = dates.astype("datetime64[Y]")
    return years.astype(np.int64) + 1970, (dates - years.astype("datetime64[D]")).astype(np.int64) + 1


def days_since(hashes: Hashes, dates: ArrayLike, period_years: int, span: tuple[float, float]) -> NDArray[np.int64]:
    """Return days since the last event (date, event); events come once in `period_years`, in a span of the year."""
    years, days = (part[:, None] for part in year_and_day(np.atleast_1d(dates)))
    turn = (uniform(hashes, 71) * period_years).astype(np.int64)
    day = (span[0] + (span[1] - span[0]) * uniform(hashes, 72)).astype(np.int64)
    ago = (years - turn) % period_years
    ago = np.where((ago == 0) & (days < day), period_years, ago)
    return ago * 365 + days - day


def days_since_cut(stand: Hashes, dates: ArrayLike) -> NDArray[np.int64]:
    """Return days since each stand was cut (date, stand); a very large number if it never is."""
    since = days_since(stand, dates, P.cut_years, P.cut_span)
    return np.where(uniform(stand, 70) < P.cut_frac, since, -_NEVER)


def days_since_burn(burn: Hashes, dates: ArrayLike) -> NDArray[np.int64]:
    """Return days since the land burnt (date, burn); a very large number where it never does."""
    return np.where(burn == 0, -_NEVER, days_since(burn, dates, P.burn_years, P.burn_span))


def flood_reach(seed: int, date: np.datetime64) -> float:
    """Return how far rivers reach along the flat on a day, in metres; 0 at low water."""
    day = date.astype("datetime64[D]").astype(np.int64)
    level = P.flood_level[0] + P.flood_level[1] * float(spline_of_time(seed, _FLOOD_SALT, [day], 19.0)[0])
    return P.flood_m * max(0.0, min(1.0, level)) ** 2


def look(seed: int, grid: Grid, year: int) -> Ground:
    """Return the ground at the points of a grid, made in slabs of rows that fit a processor's cache."""
    slab = max(1, _SLAB_POINTS // len(grid.x))
    parts = [
        _look(seed, Grid(grid.x, grid.y[top : top + slab], grid.step_m), year) for top in range(0, len(grid.y), slab)
    ]
    return Ground(*(np.concatenate([getattr(part, field.name) for part in parts]) for field in fields(Ground)))


def _look(seed: int, grid: Grid, year: int) -> Ground:
    east, north = grid.x[None, :], grid.y[:, None]
    district = cells(seed, 1, east, north, P.district_m, P.district_jitter)
    u, v = _turned(district)
    river_m, width_m = _rivers(seed, grid)
    is_water = (river_m < width_m / 2) | (spline(seed, 33, grid, 900.0) > P.lake_above)
    wood = 0.5 * (district.draw(3) - 0.5)
    for salt, (cell_m, weight) in enumerate(zip(P.forest_cells_m, P.forest_weights, strict=True), _FOREST_SALT):
        wood += weight * spline(seed, salt, grid, cell_m)
    is_town = spline(seed, _TOWN_SALT, grid, P.town_cell_m) + 0.25 * spline(seed, 21, grid, 330.0) > P.town_above
    is_wood = (wood > P.forest_above) & ~is_town & ~is_water
    is_shrub = (spline(seed, 13, grid, 1300.0) + 0.3 * spline(seed, 14, grid, 140.0) > P.shrub_above) & ~is_wood
    is_quarry = (spline(seed, 15, grid, 620.0) > P.quarry_above) & ~is_wood
    material, unit = _fields(district, u, v, year)
    for mask, name in ((is_shrub & ~is_town, "shrub"), (is_quarry & ~is_town, "gravel")):
        material[mask] = NUMBER[name]
        unit[mask] = hashed(district.hashes[mask], NUMBER[name])
    if is_wood.any():
        _plant(seed, grid, is_wood, material, unit)
    if is_town.any():
        _build(district.hashes[is_town], u[is_town], v[is_town], is_town, material, unit)
    is_road = (district.border_m < P.road_m) & ~is_town
    material[is_road], unit[is_road] = NUMBER["asphalt"], hashed(seed, 2, 0)[0]
    material[is_water], unit[is_water] = NUMBER["water"], hashed(seed, 2, 1)[0]
    burn = _burns(seed, grid, material)
    rough = 1.0 + 0.35 * spline(seed, 41, grid, 420.0)
    water_m = (river_m - width_m / 2) * np.maximum(rough, 0.2) + 14 * (1 + spline(seed, 42, grid, 70.0))
    return Ground(material, unit, burn, water_m.astype(np.float32), u)


def _turned(district: Cells) -> tuple[Floats, Floats]:
    """Return coordinates along the fields and streets of each district."""
    angle = np.float32(np.pi) * uniform(district.table, 4)
    cosine, sine = np.cos(angle)[district.index], np.sin(angle)[district.index]
    return (
        (district.dx * cosine + district.dy * sine).astype(np.float32),
        (district.dy * cosine - district.dx * sine).astype(np.float32),
    )


def _rivers(seed: int, grid: Grid) -> tuple[Floats, Floats]:
    """Return the approximate distance to the middle of the nearest river, and the width of the river."""
    level, slope_x, slope_y = (
        spline(seed, _RIVER_SALT, grid, P.river_cell_m, slope) + 0.16 * spline(seed, 31, grid, 700.0, slope)
        for slope in ("", "x", "y")
    )
    distance = np.abs(level) / np.sqrt(slope_x**2 + slope_y**2 + np.float32(1e-8))
    width = P.river_m[0] + P.river_m[1] * np.clip(0.5 + 0.5 * spline(seed, 32, grid, 5200.0), 0, 1)
    return distance, width


def _fields(district: Cells, u: Floats, v: Floats, year: int) -> tuple[NDArray[np.int8], Hashes]:
    """Make farmland: rows of fields, each row with its own width, and crops that change with the year."""
    low_u, more_u, low_v, more_v = P.field_m
    length = low_v + more_v * district.draw(5)
    row = hashed(district.hashes, np.floor(v / length).astype(np.int64), _PARCEL_SALT)
    width = low_u + more_u * uniform(row, 1)
    parcel = hashed(row, np.floor(u / width + uniform(row, 2)).astype(np.int64))
    use, unit = uniform(parcel, 6), hashed(parcel, year)
    crop = (uniform(unit, 7) * NUM_CROPS).astype(np.int8) + np.int8(FIRST_CROP)
    ends = np.cumsum([P.crop_frac, P.grass_frac, P.fallow_frac])
    grass, fallow, shrub = (np.int8(NUMBER[name]) for name in ("grassland", "fallow", "shrub"))
    other = np.select([use < ends[1], use < ends[2]], [grass, fallow], shrub)
    return np.where(use < ends[0], crop, other).astype(np.int8), unit


def _plant(seed: int, grid: Grid, mask: NDArray[np.bool_], material: NDArray[np.int8], unit: Hashes) -> None:
    """Make forest: stands of one species, or of two in clumps."""
    rows, cols = np.nonzero(mask)
    bend = spline(seed, 16, grid, 60.0)[mask] * 9.0
    stand = cells(seed, 17, grid.x[cols] + bend, grid.y[rows] - bend, P.stand_m, 0.8).hashes
    clump = spline(seed, 18, grid, 24.0)[mask] > 0.25
    is_second = clump & (uniform(stand, 1) < P.mixed_stand_frac)
    species = (np.where(is_second, uniform(stand, 2), uniform(stand, 3)) * NUM_SPECIES).astype(np.int8)
    material[mask] = species + np.int8(FIRST_SPECIES)
    unit[mask] = stand + species.astype(np.uint64)


def stand_of(unit: Hashes, material: NDArray[np.int8]) -> Hashes:
    """Return the stand that a unit of forest belongs to."""
    return unit - np.where(is_forest(material), material - FIRST_SPECIES, 0).astype(np.uint64)


def _build(
    district: Hashes, u: Floats, v: Floats, mask: NDArray[np.bool_], material: NDArray[np.int8], unit: Hashes
) -> None:
    """Make towns: streets, lots with a house and a garden, halls and parks."""
    across, along = 62.0 + 30 * uniform(district, 8), 84.0 + 60 * uniform(district, 9)
    block = hashed(district, np.floor(u / across).astype(np.int64), np.floor(v / along).astype(np.int64))
    in_u, in_v = u - np.floor(u / across) * across, v - np.floor(v / along) * along
    kind = uniform(block, 1)
    is_hall, is_park = kind < 0.18, kind > 0.9
    lot_u, lot_v = np.where(is_hall, across, across / 3), np.where(is_hall, along, along / 5)
    lot = hashed(block, np.floor(in_u / lot_u).astype(np.int64), np.floor(in_v / lot_v).astype(np.int64))
    x, y = in_u % lot_u - lot_u / 2, in_v % lot_v - lot_v / 2
    half_u = lot_u * np.where(is_hall, 0.36, 0.20 + 0.13 * uniform(lot, 2))
    half_v = lot_v * np.where(is_hall, 0.36, 0.22 + 0.13 * uniform(lot, 3))
    shift_u, shift_v = (0.16 * (uniform(lot, k) - 0.5) * side for k, side in ((4, lot_u), (5, lot_v)))
    is_house = (np.abs(x - shift_u) < half_u) & (np.abs(y - shift_v) < half_v) & ~is_park & (uniform(lot, 6) > 0.06)
    reach = 2.0 + 2.5 * uniform(lot, 7)
    tree_u, tree_v = (lot_u * 0.36 * np.sign(uniform(lot, 8) - 0.5), lot_v * 0.38 * np.sign(uniform(lot, 9) - 0.5))
    is_tree = ((x - tree_u) ** 2 + (y - tree_v) ** 2 < reach**2) & ~is_hall
    is_street = (np.minimum(in_u, across - in_u) < 3.6) | (np.minimum(in_v, along - in_v) < 3.6)
    yard = np.where(is_hall | (uniform(lot, 10) < 0.22), NUMBER["yard"], NUMBER["lawn"])
    roof = np.where(is_hall | (uniform(lot, 11) < 0.3), NUMBER["metal"], NUMBER["tiles"])
    park = np.where(is_park, NUMBER["lawn"], yard)
    found = np.select([is_street, is_house, is_tree], [NUMBER["asphalt"], roof, NUMBER["garden tree"]], park)
    material[mask] = found
    unit[mask] = hashed(np.where(is_street, district, lot), found)


def _burns(seed: int, grid: Grid, material: NDArray[np.int8]) -> Hashes:
    """Return the burn at each point that ever burns: ragged spots of land with plants."""
    fuel = is_forest(material) | np.isin(material, (NUMBER["shrub"], NUMBER["grassland"]))
    burn = np.zeros(material.shape, np.uint64)
    if fuel.any():
        rows, cols = np.nonzero(fuel)
        spot = cells(seed, 60, grid.x[cols], grid.y[rows], P.burn_cell_m, 0.5)
        radius = P.burn_m[0] + P.burn_m[1] * uniform(spot.hashes, 1) + 55 * spline(seed, 61, grid, 130.0)[fuel]
        burn[fuel] = np.where(np.hypot(spot.dx, spot.dy) < radius, spot.hashes, 0)
    return burn


def heights(seed: int, grid: Grid, ground: Ground, since_cut: Any) -> Floats:
    """Return the height above ground (row col) in metres; `since_cut` is in days, per point."""
    base = np.array([material.height_m for material in MATERIALS], np.float32)[ground.material]
    stand = stand_of(ground.unit, ground.material)
    grown = 1 - np.exp(-np.maximum(since_cut, 0) / np.float32(2600.0))
    crowns = 1 + 0.16 * spline(seed, 81, grid, 7.0)
    is_tall_plant = is_forest(ground.material) | (ground.material == NUMBER["garden tree"])
    spread = np.exp(0.16 * normal(stand, 4))
    tall = base * spread * np.where(is_tall_plant, crowns * grown, 1)
    return np.maximum(tall, 0).astype(np.float32)
