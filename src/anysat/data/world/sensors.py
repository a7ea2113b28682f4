"""How each sensor sees the generated world: sharpness, revisit time, noise and looks, and its dates.

Modalities that are not in the table get properties that their records suggest.
"""

from __future__ import annotations

import math
import zlib

import numpy as np
from numpy.typing import NDArray

from anysat.data.world.noise import Grid, hashed, uniform
from anysat.data.world.parameters import SENSORS, Optics
from anysat.data.world.weather import cloud_opacity
from anysat.dates import Dates
from anysat.errors import InputError
from anysat.modalities import Modality

_MOST_DATES = 365


def optics_of(modality: Modality) -> Optics:
    """Return the optics of a modality; those suggested by its record if it is not in the table."""
    blur_m = 0.5 * modality.gsd_m if modality.is_temporal else 0.4 * modality.gsd_m
    return SENSORS.get(modality.key) or Optics(blur_m=blur_m, revisit_days=8 if modality.is_temporal else 365)


def choose_dates(seed: int, modality: Modality, grid: Grid, year: int, count: int | None) -> Dates:
    """Choose the dates of a series, in order: the year is divided into equal parts, and one pass is taken from each.

    Every other part of an optical series takes its clearest pass; the others take any, so that some clouds remain.

    Raises:
        InputError: A year does not have this many dates.
    """
    if count is not None and not 1 <= count <= _MOST_DATES:
        raise InputError(f"{modality.key}, count of dates", f"1 to {_MOST_DATES} in a year", count)
    salt = zlib.crc32(modality.key.encode())
    start = np.datetime64(f"{year}-01-01", "D")
    step = min(optics_of(modality).revisit_days, _MOST_DATES / (count or 1))
    phase = float(uniform(hashed(seed, salt))[0]) * step
    days = np.floor(phase + step * np.arange(math.ceil((_MOST_DATES - phase) / step - 1e-9))).astype(np.int64)
    count = min(12, len(days)) if count is None else count
    groups = np.array_split(days, count)
    if modality.is_radar:
        picked = [group[len(group) // 2] for group in groups]
    else:
        cover = cloud_opacity(seed, grid, start + days).mean(axis=(1, 2))
        picked = [_pick(seed, salt, number, group, cover, days) for number, group in enumerate(groups)]
    return np.asarray(start + np.array(picked))


def _pick(
    seed: int, salt: int, number: int, group: NDArray[np.int64], cover: NDArray[np.floating], days: NDArray[np.int64]
) -> int:
    of_group = cover[np.searchsorted(days, group)]
    clear = group[of_group < 0.9]
    if number % 2 == 0 or not len(clear):
        return int(group[of_group.argmin()])
    return int(clear[int(uniform(hashed(seed, salt, number, days[0]))[0] * len(clear))])
