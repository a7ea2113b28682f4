"""Tiles of samples that lack some or all of the sensors asked for."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from anysat.batch import Tile
from anysat.modalities import MODALITIES, Modality
from anysat.observation import Observation

PLACEHOLDER_DATE = "2020-01-01"
"""Date of a series without observations; every sensor of the table was in operation then."""


def tile_of(
    seen: Iterable[Observation | None], asked: Sequence[str], extent_m: float, *,
    sensors: Mapping[str, Modality] | None = None, **options: Any,
) -> Tile:  # fmt: skip
    """Return a tile of the observations that are there, for samples that may lack a sensor.

    If there are none, an all-invalid observation of the first modality asked for stands in, with one date if it is a
    series. Batches and models accept such a tile, so that the sample does not stop a training.

    Args:
        seen: Observations; None for a sensor that has nothing of the sample.
        asked: Keys of the modalities asked for.
        extent_m: Side of the ground in metres.
        sensors: The dataset's own modalities, by key; others are taken from the table of modalities.
        options: Other fields of the tile.
    """
    present = [observation for observation in seen if observation is not None]
    table = {**MODALITIES, **(sensors or {})}
    return Tile.of(*(present or [nothing_of(table[key], extent_m) for key in asked[:1]]), **options)


def nothing_of(modality: Modality, extent_m: float) -> Observation:
    """Return an observation without a valid value, of a square of ground with this side in metres."""
    dates = [PLACEHOLDER_DATE] if modality.is_temporal else None
    count = math.ceil if modality.covers_tile else round  # as in `geo.grid.TileGrid.of`
    side_px = count(round(extent_m / modality.gsd_m, 6))
    shape = (*([1] if dates else []), len(modality.bands), side_px, side_px)
    return Observation.of(modality, np.zeros(shape, np.float32), dates=dates, valid=np.zeros(shape, bool))
