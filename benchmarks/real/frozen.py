"""Encoders as they are: which weights, how they look at the tiles of a task, and their frozen tokens."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pretraining_features import pixel_features

import anysat
from anysat.batch import Batch, Tile
from anysat.model.encoder import AnySat
from anysat.normalise import Normaliser
from anysat.workflows.pretrain.objective import new_encoder
from anysat.workflows.pretrain.presets import nano
from real.protocol import RealTask
from real.unlabelled import in_year

UNTRAINED = "untrained"
LABEL_YEAR = {"crop_canada": 0, "parcels_belgium": -1}
"""Tasks with series over several calendar years, of which day numbers would come twice: place of the label's year."""
AT_ONCE = 256
"""Tiles of one pixel that are looked at at once."""


def looks(task: RealTask) -> list[list[Tile]]:
    """Tiles as an encoder sees them: without labels' years apart, one list for each calendar year; the label's first.

    Years are counted from each tile's first, as tiles of several seasons stand beside each other.
    """
    if task.name not in LABEL_YEAR:
        return [task.tiles]
    years = [_years(tile) for tile in task.tiles]
    count = min(map(len, years))
    order = sorted(range(count), key=lambda n: n != LABEL_YEAR[task.name] % count)
    return [[_of_year(tile, own[n]) for tile, own in zip(task.tiles, years, strict=True)] for n in order]


def _years(tile: Tile) -> NDArray[np.datetime64]:
    return np.unique(np.concatenate([_dates(seen).astype("datetime64[Y]") for seen in tile.observations.values()]))


def _dates(seen: Any) -> NDArray[np.datetime64]:
    assert seen.dates is not None, seen.modality.key
    return seen.dates


def _of_year(tile: Tile, year: np.datetime64) -> Tile:
    return replace(tile, observations={key: in_year(seen, year) for key, seen in tile.observations.items()})


def encoder_of(weights: str, seed: int) -> AnySat:
    """An encoder: `untrained`, with the first weights that the seed draws, or what `anysat.load` takes."""
    if weights == UNTRAINED:
        return new_encoder(nano().model, seed)
    return anysat.load(weights)


def embedded(
    task: RealTask, model: AnySat, train: NDArray[np.bool_], most_years: int | None = None
) -> NDArray[np.float32]:
    """Frozen tokens (sample feature) of all samples, NaN where nothing was seen; of 1 year, that of the label."""
    model, (tile, row, col) = model.eval().requires_grad_(False), task.places().T
    found = []
    for tiles in looks(task)[:most_years]:
        model.normaliser = Normaliser.from_batch(
            Batch.of([t for t, is_used in zip(tiles, train, strict=True) if is_used])
        )
        at_once = AT_ONCE if task.target.level == "tile" else 4
        maps = [
            pixel_features(model, Batch.of(tiles[start : start + at_once]), task.patch_size_m)
            for start in range(0, len(tiles), at_once)
        ]
        found.append(np.concatenate(maps)[tile, :, row, col])
    return np.concatenate(found, axis=1).astype(np.float32)
