"""Probes on a few labelled held-out tiles during pretraining: nearest neighbours and a linear probe.

Both predict each tile only from other tiles. The labels are used for nothing else.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from anysat.probing.neighbours import leave_one_out
from anysat.probing.samples import distinct
from anysat.tasks.simple import mean_and_spread, statistics

if TYPE_CHECKING:
    from anysat.batch import Embeddings, Tile
    from anysat.data.base import Target

_FEWEST_TILES = 3
"""Smallest number of tiles for a linear probe, which chooses its penalty between the tiles it is fitted to."""
_FOLDS = 4
_PENALTIES = (1.0, 1e-1, 1e-2, 1e-3, 1e-4)
"""Penalties to choose from, for standardised features, whatever the number of samples; of equally good ones, the first
is chosen."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Labelled:
    """Vectors of patches, or of whole tiles, with their classes."""

    features: Tensor
    """(sample dim), on the CPU, finite."""
    labels: Tensor
    """(sample), class numbers."""
    tiles: Tensor
    """(sample), tile numbers."""

    @classmethod
    def of(cls, vectors: Tensor, tiles: Sequence[Tile], target: Target) -> Labelled:
        """Select the vectors (tile row col dim) that are finite and have a class.

        The class is that of the tile, or the most frequent one of the patch.
        """
        count, rows, cols, _ = vectors.shape
        if target.level == "tile":
            labels = np.array([int(tile.targets[target.name]) for tile in tiles])
        else:
            labels = np.stack([_majority(tile.targets[target.name], rows, cols, len(target.classes)) for tile in tiles])
        features, numbers = vectors.flatten(0, 2).cpu(), torch.from_numpy(labels.ravel().astype(np.int64))
        known = (numbers >= 0) & (numbers < len(target.classes)) & features.isfinite().all(-1)
        own = torch.arange(count).repeat_interleave(rows * cols)
        return cls(features=features[known], labels=numbers[known], tiles=own[known])


def vectors_of(found: Embeddings, target: Target) -> Tensor:
    """Return the vectors to probe (tile row col dim): patch embeddings, or tile embeddings for a target of tiles."""
    return found.tile[:, None, None] if target.level == "tile" else found.patch


def band_statistics(tiles: Sequence[Tile], rows: int, cols: int) -> Tensor:
    """Return features without a network (tile row col dim): mean and deviation over time of every band, by patch.

    Each is summarised by its mean and deviation over the pixels of the patch. Missing values become the mean of the
    others.
    """
    keys = dict.fromkeys(key for tile in tiles for key in tile.observations)
    maps = [statistics(tile) for tile in tiles]
    parts = []
    for key in keys:
        pooled = [None if key not in one else _pooled(one[key], rows, cols) for one in maps]
        blank = np.full_like(next(one for one in pooled if one is not None), np.nan)
        parts.append(np.stack([blank if one is None else one for one in pooled]))
    found = np.concatenate(parts, axis=-1)
    mean, _ = mean_and_spread(found, (0, 1, 2))
    return torch.from_numpy(np.where(np.isnan(found), np.nan_to_num(mean), found))


def _pooled(values: NDArray[Any], rows: int, cols: int) -> NDArray[Any]:
    """Pool maps (feature row col) to (row col feature): mean and deviation over the pixels of each patch.

    A map whose pixels do not divide evenly into patches is pooled as a whole, the same for every patch.
    """
    height, width = values.shape[1:]
    by_patch = height % rows == 0 and width % cols == 0
    cut = values.reshape(len(values), rows if by_patch else 1, -1, cols if by_patch else 1,
                         width // cols if by_patch else width)  # fmt: skip
    both = np.concatenate(mean_and_spread(cut, (2, 4)))
    return np.broadcast_to(both.transpose(1, 2, 0), (rows, cols, 2 * len(values)))


def scores(found: Labelled) -> Mapping[str, float]:
    """Return balanced accuracies `neighbours` and `linear`, with `…_chance`, where there are enough tiles and classes.

    Neighbours are taken from other tiles, and a linear probe is fitted in turn to three quarters of the tiles. Both
    miss a class that occurs in only one tile.
    """
    num_tiles, num_classes = len(distinct(found.tiles)[0]), len(distinct(found.labels)[0])
    figures: dict[str, float] = {}
    if num_classes > 1 and num_tiles > 1:
        score = leave_one_out(found.features, found.labels, groups=found.tiles)
        figures |= {"neighbours": score.balanced_accuracy, "neighbours_chance": score.chance}
    if num_classes > 1 and num_tiles >= _FEWEST_TILES:
        figures |= {"linear": _linear(found), "linear_chance": 1 / num_classes}
    return figures


def _linear(found: Labelled) -> float:
    """Return the balanced accuracy of ridge regression onto the classes, fitted for each fold to the others.

    Every class has the same total weight. The penalty is chosen between the tiles of the other folds.
    """
    from sklearn.linear_model import RidgeClassifier
    from sklearn.metrics import balanced_accuracy_score
    from sklearn.model_selection import GridSearchCV, GroupKFold
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    features, labels, tiles = found.features.double().numpy(), found.labels.numpy(), distinct(found.tiles)[1].numpy()
    folds = tiles % min(_FOLDS, tiles.max() + 1)
    told = np.empty_like(labels)
    for fold in range(folds.max() + 1):
        rest = folds != fold
        model = make_pipeline(StandardScaler(), RidgeClassifier(class_weight="balanced"))
        penalties = {"ridgeclassifier__alpha": np.multiply(_PENALTIES, rest.sum())}
        inner = GroupKFold(min(_FOLDS, len(np.unique(tiles[rest]))))
        search = GridSearchCV(model, penalties, scoring=_balanced, cv=inner)
        told[~rest] = search.fit(features[rest], labels[rest], groups=tiles[rest]).predict(features[~rest])
    return float(balanced_accuracy_score(labels, told))


def _balanced(model: Any, features: NDArray[Any], labels: NDArray[Any]) -> float:
    """Return the mean over the classes in `labels` of the fraction found; others may have been predicted."""
    from sklearn.metrics import recall_score

    return float(recall_score(labels, model.predict(features), average="macro", zero_division=np.nan))


def _majority(raster: NDArray[Any], rows: int, cols: int, num_classes: int) -> NDArray[np.int64]:
    """Return the most frequent class of each patch (row col), -1 if there is none."""
    height, width = (length // count for length, count in zip(raster.shape, (rows, cols), strict=True))
    cut = raster[: rows * height, : cols * width].reshape(rows, height, cols, width)
    counts = np.stack([(cut == number).sum((1, 3)) for number in range(num_classes)])
    return np.where(counts.any(0), counts.argmax(0), -1)
