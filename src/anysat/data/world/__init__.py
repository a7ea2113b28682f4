"""The generated world, which every modality can observe, for tests, documentation, demos and ablations.

The map is a function of the ground coordinates and a seed, so it has no edges, and all modalities see the same place.
Nothing in it is real: results on it show only that code works and that models learn.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from anysat.data.world.map import (
    FIRST_CROP,
    FIRST_SPECIES,
    NUM_CROPS,
    NUM_SPECIES,
    NUMBER,
    Ground,
    Units,
    days_since_burn,
    days_since_cut,
    flood_reach,
    heights,
    is_forest,
    look,
    stand_of,
)
from anysat.data.world.noise import Grid, hashed, uniform
from anysat.data.world.parameters import MATERIALS, PARAMETERS_SHA256, VERSION
from anysat.data.world.scene import material_field
from anysat.data.world.sensors import choose_dates
from anysat.data.world.view import Frame, points_per_side, view
from anysat.dates import Dates
from anysat.errors import UnknownNameError
from anysat.modalities import MODALITIES, Modality, find_modality
from anysat.observation import Observation

EPSG = 32632
FACTORS: dict[str, tuple[str, ...]] = {
    "land_cover": ("water", "forest", "cropland", "grassland", "built", "bare", "shrub"),
    "species": tuple(material.name for material in MATERIALS[FIRST_SPECIES : FIRST_SPECIES + NUM_SPECIES]),
    "crop": tuple(material.name for material in MATERIALS[FIRST_CROP : FIRST_CROP + NUM_CROPS]),
    "change": ("stable", "cleared"),
    "flood": ("dry", "flooded"),
    "burn": ("unburnt", "burnt"),
    "building": ("open", "building"),
}
"""Maps of the world and their classes. A map is -1 where it has no meaning, such as the crop of a forest.

`change`, `flood`, `burn` and `building` have a class everywhere; open water counts as flooded.
"""
THEMES = ("flood", "crop", "change", "species", "burn", "town")
"""What tiles are placed at, in turn, so that every kind of target is frequent."""
_WEST, _SOUTH, _SIDE_M = 300_000, 5_200_000, 400_000
_SEARCH_STEPS, _SEARCH_M = 40, 150.0
_LAND_COVER = np.array([FACTORS["land_cover"].index(material.land_cover) for material in MATERIALS])


@dataclass(frozen=True)
class World:
    """An unlimited generated map. The same seed gives the same world.

    >>> World(0).tile(0, extent_m=60.0).observe("s2", count=3).values.shape
    (3, 10, 6, 6)
    """

    seed: int = 0
    on_tile: Callable[[int], object] | None = field(default=None, compare=False, repr=False)
    """Called with the index of every requested tile, to show progress."""

    def tile(self, index: int, *, extent_m: float, year: int = 2020) -> WorldTile:
        """Return a square of ground, whose place depends only on the seed, the index and the year.

        The places follow `THEMES` in turn: beside a river, on a field, at a clearing of the year, in mixed forest, at a
        burn of the year, in a town. If there is no such place within a few kilometres, any place is taken.

        Args:
            index: Number of the tile.
            extent_m: Side of the square in metres.
            year: Year of what is observed.
        """
        if self.on_tile is not None:
            self.on_tile(index)
        rng = np.random.default_rng([self.seed, index])
        west, south = (
            int(start + 10 * n) for start, n in zip((_WEST, _SOUTH), rng.integers(0, _SIDE_M // 10, 2), strict=True)
        )
        grid = Grid.over(west, south, _SEARCH_STEPS, _SEARCH_STEPS, _SEARCH_M)
        fits = self._fits(THEMES[(index + self.seed) % len(THEMES)], grid, year)
        rows, cols = np.nonzero(fits if fits.any() else np.ones_like(fits))
        chosen = int(rng.integers(len(rows)))
        x, y = (
            round(float(axis[place]) / 10) * 10.0 for axis, place in ((grid.x, cols[chosen]), (grid.y, rows[chosen]))
        )
        return WorldTile(self, index, x, y, float(extent_m), year)

    def _fits(self, theme: str, grid: Grid, year: int) -> NDArray[np.bool_]:
        """Return where a theme is found (row col)."""
        ground = look(self.seed, grid, year)
        if theme == "flood":
            return (ground.material != NUMBER["water"]) & (ground.water_m > 15) & (ground.water_m < 130)
        if theme == "crop":
            return (ground.material >= FIRST_CROP) & (ground.material < FIRST_CROP + NUM_CROPS)
        if theme == "species":
            return is_forest(ground.material)
        if theme == "town":
            return np.asarray(np.isin(ground.material, [NUMBER[name] for name in ("tiles", "lawn", "garden tree")]))
        return _event(theme, ground, year, None) == 1


@dataclass(frozen=True)
class WorldTile:
    """A square of ground in a world. All its data is determined by the world's seed and the place."""

    world: World
    index: int
    """Number of the tile."""
    x_m: float
    """Easting of the centre in metres (EPSG:32632)."""
    y_m: float
    """Northing of the centre in metres."""
    extent_m: float
    """Side of the square in metres."""
    year: int
    """Year of what is observed."""

    def geobox(self, gsd_m: float, extent_m: float | None = None) -> Any:
        """Return the pixel grid (`odc.geo.GeoBox`) of the tile, or of a square of another side with the same centre."""
        from affine import Affine
        from odc.geo.geobox import GeoBox

        frame = self._frame(gsd_m, extent_m)
        affine = Affine(gsd_m, 0, frame.west_m, 0, -gsd_m, frame.north_m)
        return GeoBox((frame.rows, frame.cols), affine, f"EPSG:{EPSG}")

    @property
    def lon_lat(self) -> tuple[float, float]:
        """Longitude and latitude of the centre, in WGS 84 degrees."""
        from anysat.geo.degrees import centre_deg

        return centre_deg(self.geobox(self.extent_m))

    def dates(self, key: str | Modality, count: int | None = None) -> Dates:
        """Return acquisition dates of a modality in the year, in order, as its revisit time allows.

        Half of the dates of an optical series are the clearest of their part of the year; the others may be cloudy.

        Args:
            key: Key of the modality, or a record of your own.
            count: Number of dates, spread over the year. None for 12, or all if there are fewer.
        """
        return choose_dates(self.world.seed, _record(key), self._frame(75.0, 300.0).grid(), self.year, count)

    def observe(
        self, key: str | Modality, *, dates: Any = None, count: int | None = None, gsd_m: float | None = None,
        extent_m: float | None = None, keep_clouds: bool = False,
    ) -> Observation:  # fmt: skip
        """Observe the tile with a modality, in the modality's own units, with clouds and gaps masked.

        Args:
            key: Key of the modality, or a record of your own.
            dates: Dates of a series; None for those of `dates(key, count)`. For an image, its day; None for a day in
                summer.
            count: Number of dates.
            gsd_m: Size of a pixel in metres; None for the modality's own.
            extent_m: Side of the observed square in metres, around the tile's centre; None for that of the tile.
            keep_clouds: Leave cloudy values in, marked as valid, as providers deliver them.

        Raises:
            UnknownNameError: There is no modality with this key.
        """
        modality = _record(key)
        if modality.covers_tile:
            extent_m = gsd_m = modality.gsd_m
        if dates is None:
            dates = self.dates(modality, count) if modality.is_temporal else [self._summer_day(modality)]
        days: Dates = np.atleast_1d(np.asarray(dates, "datetime64[D]"))
        frame = self._frame(gsd_m or modality.gsd_m, extent_m)
        values, valid = view(self.world.seed, modality, frame, days, keep_clouds)
        if not modality.is_temporal:
            return Observation.of(modality, values[0], valid=valid[0])
        return Observation.of(modality, values, dates=days, valid=valid)

    def raster(
        self, factor: str, gsd_m: float, extent_m: float | None = None, date: np.datetime64 | None = None
    ) -> NDArray[np.int64]:
        """Return a map of `FACTORS`: class numbers at pixel centres (row col), -1 where it has no meaning.

        Args:
            factor: Name of the map.
            gsd_m: Size of a pixel in metres.
            extent_m: Side of the square in metres, around the tile's centre; None for that of the tile.
            date: `change` and `burn` show what happened from the first day of the year to this date, by default the
                last day of the year. `flood` shows what is under water on this date, by default on any day of the year.

        Raises:
            UnknownNameError: There is no such map.
        """
        if factor not in FACTORS:
            raise UnknownNameError("factor of the world", factor, FACTORS)
        ground = look(self.world.seed, self._frame(gsd_m, extent_m).grid(), self.year)
        if factor == "land_cover":
            return np.asarray(_LAND_COVER[ground.material], np.int64)
        if factor == "building":
            return np.isin(ground.material, (NUMBER["tiles"], NUMBER["metal"])).astype(np.int64)
        if factor in ("species", "crop"):
            first = FIRST_SPECIES if factor == "species" else FIRST_CROP
            found = ground.material.astype(np.int64) - first
            return np.where((found >= 0) & (found < len(FACTORS[factor])), found, -1)
        if factor == "flood":
            days = self._days() if date is None else np.array([date], "datetime64[D]")
            reach = max(flood_reach(self.world.seed, day) for day in days)
            return ((ground.material == NUMBER["water"]) | (ground.water_m < reach)).astype(np.int64)
        return _event(factor, ground, self.year, date)

    def fractions(self, factor: str, gsd_m: float = 10.0) -> NDArray[np.float64]:
        """Return the fraction of the whole tile's area in each class of a map, (class)."""
        found = self.raster(factor, gsd_m)
        return np.bincount(found[found >= 0], minlength=len(FACTORS[factor])) / found.size

    def height_m(self, gsd_m: float, extent_m: float | None = None) -> NDArray[np.float32]:
        """Return the height above ground (row col) in metres, on the last day of June, the mean of each pixel."""
        return self._tall(gsd_m, extent_m)[0]

    def biomass(self, gsd_m: float, extent_m: float | None = None) -> NDArray[np.float32]:
        """Return the above-ground biomass (row col) in tonnes per hectare, on the last day of June."""
        return self._tall(gsd_m, extent_m)[1]

    def _tall(self, gsd_m: float, extent_m: float | None) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        fine, frame = points_per_side(gsd_m), self._frame(gsd_m, extent_m)
        grid = frame.grid(fine=fine)
        ground = look(self.world.seed, grid, self.year)
        units = Units.of(ground)
        since = days_since_cut(stand_of(units.unit, units.material), np.datetime64(f"{self.year}-06-30"))[0]
        tall = heights(self.world.seed, grid, ground, since[units.place])
        mass = material_field("biomass_frac", ground.material) * tall ** np.float32(1.4)
        made = (part.reshape(frame.rows, fine, frame.cols, fine).mean(axis=(1, 3)) for part in (tall, mass))
        height, biomass = (np.round(part, 2).astype(np.float32) for part in made)
        return height, biomass

    def _frame(self, gsd_m: float, extent_m: float | None) -> Frame:
        count = round((extent_m or self.extent_m) / gsd_m)
        half = count * gsd_m / 2
        return Frame(
            west_m=self.x_m - half, north_m=self.y_m + half, rows=count, cols=count, gsd_m=gsd_m, year=self.year
        )

    def _days(self) -> Dates:
        return np.arange(f"{self.year}-01-01", f"{self.year + 1}-01-01", dtype="datetime64[D]")

    def _summer_day(self, modality: Modality) -> np.datetime64:
        later = float(uniform(hashed(self.world.seed, int(modality.gsd_m * 100), self.year))[0])
        return np.datetime64(f"{self.year}-06-20") + np.timedelta64(int(55 * later))


def _record(key: str | Modality) -> Modality:
    return key if isinstance(key, Modality) else find_modality(key, MODALITIES.values())


def _event(factor: str, ground: Ground, year: int, date: np.datetime64 | None) -> NDArray[np.int64]:
    """Return 1 where forest was cut, or land burnt, from the first day of the year to a date (row col)."""
    day = np.array(f"{year}-12-31" if date is None else date, "datetime64[D]")
    elapsed = int((day - np.array(f"{year}-01-01", "datetime64[D]")).astype(int)) + 1
    units = Units.of(ground)
    if factor == "change":
        stand = stand_of(units.unit, units.material)
        happened = units.has_stand & (days_since_cut(stand, day)[0] < elapsed) & (days_since_cut(stand, day)[0] >= 0)
    else:
        since = days_since_burn(units.burn, day)[0]
        happened = (since >= 0) & (since < elapsed)
    return np.asarray(happened[units.place], np.int64)


__all__ = ["EPSG", "FACTORS", "PARAMETERS_SHA256", "THEMES", "VERSION", "World", "WorldTile"]
