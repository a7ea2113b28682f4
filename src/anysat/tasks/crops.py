"""Predictions for ground larger than a predictor's tile: the averaged outputs of overlapping crops.

The published scores of FLAIR are computed in this way, from five crops of 100 m for each photo of 102.4 m.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from anysat.batch import Batch, Tile
from anysat.data.base import TileDataset
from anysat.data.transforms import Crops, crop, extent_m, five_corners
from anysat.errors import InputError
from anysat.geo.degrees import place_deg
from anysat.model.modes import evaluating
from anysat.model.precision import Precision, multiplying
from anysat.model.ready import keeping_ready
from anysat.tasks.predictor import Prediction, Predictor
from anysat.tasks.scores import Scores


def five_crops(tile: Tile, side_m: float) -> Crops:
    """Return the crops in the corners and in the middle of a tile.

    Raises:
        InputError: The tile is no larger than a crop, or a crop would cut through a pixel.
    """
    corners = five_corners(tile, side_m)
    return Crops(tiles=tuple(crop(tile, top, left, side_m) for top, left in corners), corners_m=corners,
                 extent_m=extent_m(tile), targets=tile.targets, geobox=tile.geobox)  # fmt: skip


def crops_of(tiles: Any, index: int, side_m: float) -> Crops:
    """Return the crops of a sample: the dataset's own ones if it has some of this side, otherwise five of its tile."""
    read = tiles.record.read_crops
    if read is None or side_m != tiles.record.tile_m or not isinstance(tiles, TileDataset):  # packs hold only tiles
        return five_crops(tiles[index], side_m)
    found: Crops = read(tiles.folder, tiles.samples.row(index), tiles.modalities)
    return found


def outputs_of_crops(predictor: Predictor, crops: Crops) -> Tensor:
    """Return outputs (row col output) for the ground of some crops, or (output) for a target of tiles.

    Each place gets the mean over the crops that observed it, or NaN if none did. The predictor's mode is not changed.

    Raises:
        InputError: A crop does not start at a pixel of the target, or crops leave some pixels out.
    """
    target = predictor.task.target
    if target.gsd_m is not None:
        _check_covered(crops)
    found = predictor(predictor.of_dataset(Batch.of(crops.tiles)).to(predictor.device))
    if target.gsd_m is None:
        return found.nanmean(0)
    rows, cols = (_pixels(length, target.gsd_m) for length in crops.extent_m)
    total = found.new_zeros(rows, cols, found.shape[-1])
    count = found.new_zeros(rows, cols, 1)
    for outputs, corner in zip(found, crops.corners_m, strict=True):
        top, left = (_pixels(length, target.gsd_m) for length in corner)
        place = (slice(top, top + outputs.shape[0]), slice(left, left + outputs.shape[1]))
        seen = outputs.isfinite().all(-1, keepdim=True)
        total[place] += outputs.where(seen, 0.0)
        count[place] += seen
    return total / count.where(count > 0, torch.nan)


def _check_covered(crops: Crops) -> None:
    """Check that crops cover the ground: those in the corners must be at least half as long as it."""
    sides, extent = extent_m(crops.tiles[0]), crops.extent_m
    if any(2 * side < length - 1e-6 for side, length in zip(sides, extent, strict=True)):
        raise InputError(
            f"five crops of tile {crops.tiles[0].id!r}",
            f"a side of at least {max(extent) / 2:g} m, so that they cover its {extent[0]:g} x {extent[1]:g} m",
            f"{sides[0]:g} m", "give a larger --crop-m, or none to predict the whole tile",
        )  # fmt: skip


def score_crops(
    predictor: Predictor, tiles: Any, side_m: float, advance: Any = lambda _: None, precision: Precision = "float32",
    places: list[tuple[float, float]] | None = None,
) -> Scores:  # fmt: skip
    """Return the scores on tiles with targets, each predicted from crops of this side; see `finetune.score`."""
    task, sheet = predictor.task, predictor.task.metric().to(predictor.device)
    with keeping_ready(), evaluating(predictor), torch.inference_mode(), multiplying(precision, predictor.device):
        for index in range(len(tiles)):
            crops = crops_of(tiles, index, side_m)
            truth = torch.as_tensor(crops.targets[task.target.name], device=predictor.device)
            task.score(sheet, outputs_of_crops(predictor, crops)[None], truth[None])
            if places is not None:
                places.append(place_deg(crops.geobox))
            advance(1)
    found: Scores = sheet.compute()
    return found


def predict_crops(predictor: Predictor, tile: Tile, side_m: float) -> Prediction:
    """Return the prediction for a tile from five crops of it."""
    with evaluating(predictor), torch.inference_mode():
        outputs = outputs_of_crops(predictor, five_crops(tile, side_m))[None]
        return Prediction(predictor.task.answer(outputs), predictor.task.probabilities(outputs), outputs)


def _pixels(length_m: float, gsd_m: float) -> int:
    count = round(length_m / gsd_m)
    if abs(count * gsd_m - length_m) > 1e-6:
        raise InputError("crops", f"places at whole pixels of the target, {gsd_m:g} m", f"{length_m:g} m",
                         "give another side in --crop-m")  # fmt: skip
    return count
