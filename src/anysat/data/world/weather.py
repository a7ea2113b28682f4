"""Weather of the generated world: clouds and their shadows, haze, wet soil and wind, as functions of place and day."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from anysat.data.world.noise import Floats, Grid, hashed, spline, spline_of_time, uniform
from anysat.data.world.parameters import PARAMETERS
from anysat.dates import Dates

P = PARAMETERS
_CLOUD, _REGION, _GAIN, _HAZE, _MOISTURE, _WIND = 100, 200, 300, 400, 500, 600
_SHADOW_M = (-340.0, 410.0)
"""Distance of a cloud's shadow to the east and to the north of it, in metres."""


def day_numbers_1970(dates: Dates) -> NDArray[np.int64]:
    """Return the number of days since 1970-01-01."""
    return np.asarray(dates, "datetime64[D]").astype(np.int64)


def cloud_opacity(seed: int, grid: Grid, dates: Dates) -> Floats:
    """Return the share of light that clouds absorb (date row col)."""
    days = day_numbers_1970(dates)
    middle, spread = P.cloud_cover
    wet = middle + spread * 2 * (uniform(hashed(seed, _REGION, days)) - 0.5)
    region = spline(seed, _REGION + 7 * days, grid, 60_000.0)
    shape = 0.75 * spline(seed, _CLOUD + 7 * days, grid, 3000.0)
    shape += 0.5 * spline(seed, _CLOUD + 1 + 7 * days, grid, 900.0)
    shape += 0.28 * spline(seed, _CLOUD + 2 + 7 * days, grid, 250.0)
    amount = (wet - 0.5)[:, None, None] * 5.0 + 0.7 * region
    return np.clip(1.6 * (shape + amount - 0.25), 0, 1).astype(np.float32)


def shadow(seed: int, grid: Grid, dates: Dates) -> Floats:
    """Return the share of direct light absorbed by clouds beside the line of sight (date row col)."""
    east, north = _SHADOW_M
    return cloud_opacity(seed, Grid(grid.x - east, grid.y - north, grid.step_m), dates)


def gain_and_haze(seed: int, grid: Grid, dates: Dates) -> tuple[Floats, Floats]:
    """Return the brightness factor of each date, and the light that haze adds in the blue (date row col)."""
    days = day_numbers_1970(dates)
    base = (uniform(hashed(seed, _GAIN, days)) - 0.5)[:, None, None]
    gain = 1 + P.gain_spread * (2.4 * base + 0.7 * spline(seed, _GAIN + 7 * days, grid, 21_000.0))
    haze = P.haze * np.maximum(0.6 + spline(seed, _HAZE + 7 * days, grid, 16_000.0), 0)
    return gain.astype(np.float32), haze.astype(np.float32)


def moisture(seed: int, dates: Dates) -> Floats:
    """Return the wetness of the soil (date), with mean 0 and deviation 1; the same everywhere."""
    return spline_of_time(seed, _MOISTURE, day_numbers_1970(dates), 7.0)


def wind(seed: int, dates: Dates) -> Floats:
    """Return the roughness of open water (date), from 0 to 1."""
    return uniform(hashed(seed, _WIND, day_numbers_1970(dates)))
