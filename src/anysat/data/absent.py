"""Tiles of samples that lack sensors, down to those that lack all that were asked for."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from anysat.batch import Tile
from anysat.modalities import MODALITIES, Modality
from anysat.observation import Observation

PLACEHOLDER_DATE = "2020-01-01"
"""Date of a series of which nothing was seen, in the life of every sensor of the table."""


def tile_of(seen: Iterable[Observation | None], asked: Sequence[str], extent_m: float, **options: Any) -> Tile:
    """A tile of the observations that are there, for readers of samples that may lack a sensor.

    Where there is none, the first modality asked for stands in, wholly invalid, a series with one date: the sample is
    a tile that nothing is known of, which a batch and a model take, and ends no training.

    Args:
        seen: observations; None where a sensor has nothing of the sample.
        asked: keys of the modalities asked for.
        extent_m: side of the ground.
        options: the other fields of the tile.
    """
    present = [observation for observation in seen if observation is not None]
    return Tile.of(*(present or [nothing_of(MODALITIES[key], extent_m) for key in asked[:1]]), **options)


def nothing_of(modality: Modality, extent_m: float) -> Observation:
    """An observation of so much ground (side in metres) without a valid value."""
    dates = [PLACEHOLDER_DATE] if modality.is_temporal else None
    count = math.ceil if modality.covers_tile else round  # as in `geo.grid.TileGrid.of`
    side_px = count(round(extent_m / modality.gsd_m, 6))
    shape = (*([1] if dates else []), len(modality.bands), side_px, side_px)
    return Observation.of(modality, np.zeros(shape, np.float32), dates=dates, valid=np.zeros(shape, bool))
