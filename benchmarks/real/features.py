"""Samples of a task as a table: features that need no network, and what they are to tell."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from pretraining_world import moments

from anysat.dates import day_numbers
from real.protocol import RealTask

DAYS_OF_SEASON = 31


@dataclass(frozen=True, eq=False)
class Samples:
    """Everything of a task that has a label."""

    features: dict[str, NDArray[np.float32]]
    """(sample feature) by the name of the feature set; NaN where nothing was ever seen."""
    truth: NDArray[np.float64] | NDArray[np.int64]
    """(sample) class number or value."""
    groups: NDArray[np.int64]
    """(sample)"""
    tile: NDArray[np.int64]
    """(sample) number of the tile."""


def samples(task: RealTask) -> Samples:
    """A task's samples with their features.

    - `statistics`: mean and deviation of each band over its valid dates;
    - `series`: every band at every date, a missing one filled with the band's mean over the series;
    - `series and season`: also the day of the year of the first date, as sine and cosine; only where that differs by
      more than a month between tiles. An encoder is told the dates too.

    Bands that are made from others (a ratio) or valid nowhere are left out.
    """
    tile, row, col = task.places().T
    parts: dict[str, list[NDArray[np.float32]]] = {"statistics": [], "series": []}
    for key in task.tiles[0].observations:
        seen = [one.observations[key] for one in task.tiles]
        assert seen[0].modality.is_temporal, key
        assert len({one.values.shape for one in seen}) == 1, key  # a date has the same place in every series
        values, valid = np.stack([one.values for one in seen]), np.stack([one.valid for one in seen])
        kept = [n for n, band in enumerate(seen[0].modality.bands) if band.ratio_of is None and valid[:, :, n].any()]
        time_first = [part[:, :, kept][tile, :, :, row, col].swapaxes(0, 1) for part in (values, valid)]
        mean, deviation = moments(*time_first)
        never = ~time_first[1].any(0)
        mean, deviation = (np.where(never, np.nan, part) for part in (mean, deviation))
        filled = np.where(time_first[1], time_first[0], mean).swapaxes(0, 1)
        parts["statistics"] += [mean, deviation]
        parts["series"].append(filled.reshape(len(tile), -1))
    day = day_numbers(np.array([next(iter(one.observations.values())).dates[0] for one in task.tiles]))[tile]
    if np.ptp(day) > DAYS_OF_SEASON:
        angle = 2 * np.pi * day / 365.25
        parts["series and season"] = [*parts["series"], np.stack([np.sin(angle), np.cos(angle)], axis=1)]
    return Samples(
        {name: np.concatenate(found, axis=1).astype(np.float32) for name, found in parts.items()},
        task.truth(), task.groups[tile], tile,
    )  # fmt: skip
