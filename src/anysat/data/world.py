"""A generated world seen by every modality of the table: tests, docs, demos, ablations.

The map is a function of the ground coordinates and a seed, so it has no edges and every modality
sees the same place. Nothing here is real; what it shows is only that code works and that models learn.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from anysat.modalities import MODALITIES
from anysat.observation import Dates, Observation

EPSG = 32632
FACTORS: dict[str, tuple[str, ...]] = {
    "land_cover": ("water", "forest", "cropland", "grassland", "built", "bare"),
    "species": ("spruce", "pine", "beech", "oak", "birch", "larch"),
    "crop": ("wheat", "maize", "rapeseed", "beet", "barley"),
    "change": ("stable", "cleared"),
    "flood": ("dry", "flooded"),
    "burn": ("unburnt", "burnt"),
}
"""Maps of the world and their classes; -1 where a map has no meaning (the crop of a forest)."""


@dataclass(frozen=True)
class World:
    """An unlimited map. The same seed gives the same world."""

    seed: int = 0

    def tile(self, index: int, *, extent_m: float, year: int = 2020) -> WorldTile:
        """A square of ground; its place depends on the seed and the index only."""
        rng = np.random.default_rng([self.seed, index])
        x_m, y_m = rng.integers(0, 20_000, 2) * 10.0
        return WorldTile(self, index, 300_000.0 + x_m, 5_300_000.0 + y_m, float(extent_m), year)


@dataclass(frozen=True)
class WorldTile:
    """One place of a world; everything asked of it is a function of the world's seed and the ground."""

    world: World
    index: int
    x_m: float
    """Easting of the centre (EPSG:32632)."""
    y_m: float
    """Northing of the centre."""
    extent_m: float
    """Side of the square."""
    year: int

    def geobox(self, gsd_m: float, extent_m: float | None = None) -> Any:
        """Pixel grid (`odc.geo.GeoBox`) over the tile, or over a square of another side with the same centre."""
        from affine import Affine
        from odc.geo.geobox import GeoBox

        side = extent_m or self.extent_m
        count = round(side / gsd_m)
        half = count * gsd_m / 2
        return GeoBox((count, count), Affine(gsd_m, 0, self.x_m - half, 0, -gsd_m, self.y_m + half), f"EPSG:{EPSG}")

    @property
    def lon_lat(self) -> tuple[float, float]:
        """Centre, WGS 84 degrees."""
        from anysat.geo.grid import centre_deg

        return centre_deg(self.geobox(self.extent_m))

    def dates(self, key: str, count: int | None = None) -> Dates:
        """Acquisition dates of a modality in the year, in order; `count` of them spread over the year."""
        rng = np.random.default_rng([self.world.seed, self.index, zlib.crc32(key.encode())])
        count = count or 12
        days = np.sort(rng.choice(365, count, replace=False))
        return np.datetime64(f"{self.year}-01-01", "D") + days

    def observe(
        self, key: str, *, dates: Any = None, count: int | None = None, gsd_m: float | None = None,
        extent_m: float | None = None, keep_clouds: bool = False,
    ) -> Observation:  # fmt: skip
        """What a modality of the table sees, in its own units, clouds and gaps masked.

        Args:
            key: modality.
            dates: acquisition dates of a series; None for those of `dates(key, count)`.
            count: number of dates.
            gsd_m: pixel size, None for the modality's own.
            extent_m: side of the square seen, around the tile's centre; None for the tile.
            keep_clouds: True to leave cloudy values in, valid, as a provider delivers them.
        """
        del keep_clouds
        modality = MODALITIES[key]
        if modality.covers_tile:
            extent_m = gsd_m = modality.gsd_m
        cover = self.raster("land_cover", gsd_m or modality.gsd_m, extent_m)
        rng = np.random.default_rng([self.world.seed, self.index, 1, zlib.crc32(key.encode())])
        if modality.is_temporal and dates is None:
            dates = self.dates(key, count)
        times = len(dates) if modality.is_temporal else 1
        base = {"dB": -14.0, "linear": 0.05, "K": 285.0, "DN": 100.0, "reflectance_1e4": 1500.0, "m": 20.0}
        shape = (times, len(modality.bands), *cover.shape)
        values = np.empty(shape, np.float32)
        for band, record in enumerate(modality.bands):
            mid = base.get(record.unit, 1.0)
            tint = 1 + 0.1 * np.cos(band + np.arange(6)).astype(np.float32)
            values[:, band] = mid * tint[cover] * (1 + 0.05 * rng.standard_normal((times, *cover.shape)))
        kept = [i for i, record in enumerate(modality.bands) if record.ratio_of is None]
        values = values[:, kept]
        return Observation.of(modality, values if modality.is_temporal else values[0], dates=dates)

    def raster(
        self, factor: str, gsd_m: float, extent_m: float | None = None, date: np.datetime64 | None = None
    ) -> NDArray[np.int64]:
        """A map (row col) of `FACTORS`, class numbers, -1 where it has no meaning; `date` matters for events."""
        del date
        box = self.geobox(gsd_m, extent_m)
        rows, cols = box.shape
        x = box.affine.c + (np.arange(cols) + 0.5) * gsd_m
        y = box.affine.f - (np.arange(rows) + 0.5) * gsd_m
        field = (
            np.sin(x / 97.0 + self.world.seed)[None] + np.sin(y / 71.0)[:, None] + np.sin((x[None] + y[:, None]) / 43.0)
        )
        classes = FACTORS[factor]
        return np.floor((field + 3) / 6.0001 * len(classes)).astype(np.int64)

    def fractions(self, factor: str, gsd_m: float = 10.0) -> NDArray[np.float64]:
        """Share of the tile's area in each class of a factor (class), of the whole tile."""
        found = self.raster(factor, gsd_m)
        return np.bincount(found[found >= 0], minlength=len(FACTORS[factor])) / found.size

    def height_m(self, gsd_m: float, extent_m: float | None = None) -> NDArray[np.float32]:
        """Height above ground (row col) in metres."""
        return 10.0 * (self.raster("land_cover", gsd_m, extent_m) == 1).astype(np.float32)

    def biomass(self, gsd_m: float, extent_m: float | None = None) -> NDArray[np.float32]:
        """Above-ground biomass (row col) in tonnes per hectare."""
        return 12.0 * self.height_m(gsd_m, extent_m)
