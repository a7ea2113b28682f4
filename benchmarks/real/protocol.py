"""What a real labelled task is, and how its tiles are cut into folds that share no ground.

Knows no data set and no model; the tasks themselves are in `tasks.py`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from anysat.batch import Tile
from anysat.data.base import Target

NUM_FOLDS = 5
TRAIN, VALIDATION, TEST = 0, 1, 2
"""Folds of an official split."""


@dataclass(frozen=True, eq=False)
class RealTask:
    """Real tiles, what is asked of them, and what is tested on what."""

    name: str
    tiles: list[Tile]
    """With source values and `targets` under the target's name."""
    target: Target
    groups: NDArray[np.int64]
    """(tile) hexagon, place or block: never split between folds, drawn together in intervals."""
    folds: NDArray[np.int64]
    """(tile) number of the fold; of an official split `TRAIN`, `VALIDATION` or `TEST`."""
    about: str
    patch_size_m: float = 10.0
    """Patch size an encoder is to use: the spacing of what is asked."""
    is_official: bool = False
    """True where `folds` is one split into training, validation and test; False for folds tested in turn."""

    def __post_init__(self) -> None:
        lengths = len(self.tiles), len(self.groups), len(self.folds)
        assert len(set(lengths)) == 1, (self.name, lengths)

    def __repr__(self) -> str:
        count = len(np.unique(self.groups))
        return f"RealTask({self.name!r}, {len(self.tiles)} tiles in {count} groups, {self.target.name})"

    def splits(self) -> Iterator[tuple[NDArray[np.bool_], NDArray[np.bool_]]]:
        """Masks (tile) of training and test tiles, each fold tested once.

        Of an official split only the last: its validation tiles count as training tiles here.
        """
        for number in [TEST] if self.is_official else np.unique(self.folds):
            yield self.folds != number, self.folds == number

    def places(self) -> NDArray[np.int64]:
        """(sample 3) tile, row and column of everything with a label; row and column are 0 for a whole tile."""
        if self.target.level == "tile":
            return np.stack([np.arange(len(self.tiles)), *np.zeros((2, len(self.tiles)), np.int64)], axis=1)
        return np.argwhere(self._targets() != self.target.ignore)

    def truth(self) -> NDArray[Any]:
        """(sample) class number or value, or (sample class) of several labels, at `places`."""
        found, (tile, row, col) = self._targets(), self.places().T
        return found if self.target.level == "tile" else found[tile, row, col]

    def _targets(self) -> NDArray[Any]:
        return np.stack([np.asarray(tile.targets[self.target.name]) for tile in self.tiles])


def numbers(keys: ArrayLike) -> NDArray[np.int64]:
    """Number of the group of each sample, from keys (sample) or (sample part)."""
    _, found = np.unique(np.asarray(keys), axis=0, return_inverse=True)
    return found.reshape(-1).astype(np.int64)


def cells(lat: ArrayLike, lon: ArrayLike, decimals: int) -> NDArray[np.int64]:
    """Number of the cell of latitude and longitude, both rounded; one decimal is about 11 km, two about 1 km."""
    return numbers(np.round(np.stack([lat, lon], axis=1).astype(np.float64), decimals))


def blocked_folds(
    groups: NDArray[np.int64], labels: NDArray[np.int64] | None = None, num_folds: int = NUM_FOLDS
) -> NDArray[np.int64]:
    """Folds (sample) made of whole groups: the largest first, each to the emptiest fold.

    With labels, to the fold that has least of the group's main class, so that a class of few groups is spread.
    The last fold is filled first, so fold 0 has no very large group (as in `pretraining_real.py`).
    """
    labels = np.zeros_like(groups) if labels is None else labels
    count = np.zeros((groups.max() + 1, labels.max() + 1))
    np.add.at(count, (groups, labels), 1)
    fold_of, filled = np.zeros(len(count), np.int64), np.zeros((num_folds, count.shape[1]))
    for number in np.argsort(-count.sum(1), kind="stable"):
        main = filled[:, count[number].argmax()]
        emptiest = int(np.lexsort((filled.sum(1), main))[0])
        filled[emptiest] += count[number]
        fold_of[number] = num_folds - 1 - emptiest
    return fold_of[groups]
