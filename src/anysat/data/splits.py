"""Splits for datasets that have none: seeded by name, or by place so that neighbours stay together."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from anysat.errors import RecordError

TRAIN, VAL, TEST = range(3)
"""Roles of places."""
METRES_PER_DEGREE = 111_195.0
"""Length of a degree of a great circle on a sphere of the Earth's size."""


def split_by_name(names: Sequence[str], shares: Mapping[str, float], seed: int = 0) -> NDArray[np.str_]:
    """Draw a split for each name from a hash of seed and name, whatever else is in the list.

    To keep a group (a place, a scene, a plot) together, give the name of the group for each of its members.

    >>> split_by_name(["a", "b", "a"], {"train": 0.8, "val": 0.2}).tolist()
    ['train', 'val', 'train']
    """
    total = _total(shares)
    unique, places = np.unique(np.asarray(names, dtype=str), return_inverse=True)
    draws = np.array([_draw(f"{seed}:{name}") for name in unique])
    ends = np.cumsum(list(shares.values())) / total
    chosen = np.searchsorted(ends, draws, side="right").clip(0, len(shares) - 1)
    return np.array(list(shares))[chosen][places]


def split_by_place(
    x_m: ArrayLike, y_m: ArrayLike, shares: Mapping[str, float], block_m: float, seed: int = 0
) -> NDArray[np.str_]:
    """Draw a split for each place, the same for all places in a square block of ground; see `ground_m`.

    Blocks are drawn one by one, the largest first and equal ones in random order. Each goes to a random one of the
    splits that it brings nearer to their share of the places, in proportion to what they lack. A split is empty only if
    there are fewer blocks than splits. The draws depend on seed and block alone, but what splits lack depends on all
    places.

    >>> split_by_place([5, 6, 15, 25], [5, 5, 5, 5], {"train": 0.5, "test": 0.5}, block_m=10).tolist() in (
    ...     ["train", "train", "test", "test"], ["test", "test", "train", "train"])
    True
    """
    columns, rows = (np.floor(np.asarray(values, float) / block_m).astype(int) for values in (x_m, y_m))
    blocks = np.array([f"{row}/{column}" for row, column in zip(rows, columns, strict=True)], str)
    names, places, counts = np.unique(blocks, return_inverse=True, return_counts=True)
    lacking = np.array(list(shares.values())) / _total(shares) * len(blocks)
    is_empty = lacking > 0
    order = sorted(range(len(names)), key=lambda block: (-counts[block], _draw(f"order:{seed}:{names[block]}")))
    chosen = np.zeros(len(names), np.int64)
    for num_left, block in zip(range(len(names), 0, -1), order, strict=True):
        may = is_empty if num_left <= is_empty.sum() else lacking >= counts[block] / 2
        weights = np.where(may, lacking, 0) if may.any() else lacking == lacking.max()
        ends = np.cumsum(weights) / weights.sum()
        split = int(np.searchsorted(ends, _draw(f"{seed}:{names[block]}"), side="right"))
        lacking[split] -= counts[block]
        is_empty[split] = False
        chosen[block] = split
    return np.array(list(shares))[chosen][places]


def ground_m(lon: ArrayLike, lat: ArrayLike, block_m: float) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return metres to the east and north of degrees (WGS 84); blocks of `block_m` are then as wide as they are high.

    Blocks lie in rows from the equator. Metres to the east are measured along the middle of a place's row, from 0
    degrees, so that the block beside 180 degrees may be narrower.

    >>> [values.round().tolist() for values in ground_m([0.2, 0.2], [0.0, 60.0], 10_000.0)]
    [[22239.0, 11110.0], [0.0, 6671700.0]]
    """
    east, y_m = np.asarray(lon, float), METRES_PER_DEGREE * np.asarray(lat, float)
    east = np.where(east >= 180, east - 360, np.where(east < -180, east + 360, east))
    middle = np.clip((np.floor(y_m / block_m) + 0.5) * block_m / METRES_PER_DEGREE, -90, 90)
    return METRES_PER_DEGREE * east * np.cos(np.radians(middle)), y_m


def block_numbers(x_m: ArrayLike, y_m: ArrayLike, block_m: float) -> NDArray[np.int64]:
    """Number the square blocks of ground from 0, and return the block of each place.

    >>> block_numbers([10.0, 1010.0, 990.0], [10.0, 10.0, 10.0], 1000.0).tolist()
    [0, 1, 0]
    """
    corners = np.stack([np.floor(np.asarray(values, float) / block_m) for values in (x_m, y_m)], axis=-1)
    return np.unique(corners, axis=0, return_inverse=True)[1].reshape(-1)


def fold_numbers(groups: ArrayLike, num_folds: int, seed: int = 0) -> NDArray[np.int64]:
    """Draw a fold for each place, the same for all places of a group, with about as many places in every fold.

    Groups are assigned one by one, the largest first and equal ones in random order, to the fold that has the fewest.

    >>> fold_numbers([7, 7, 7, 8, 8, 9], 2).tolist() in ([0, 0, 0, 1, 1, 1], [1, 1, 1, 0, 0, 0])
    True
    """
    names, places, counts = np.unique(np.asarray(groups), return_inverse=True, return_counts=True)
    drawn = np.random.default_rng([seed, 4]).permutation(len(names))
    fold_of, held = np.empty(len(names), dtype=np.int64), np.zeros(num_folds, dtype=np.int64)
    for group in drawn[np.argsort(-counts[drawn], kind="stable")]:
        fold_of[group] = held.argmin()
        held[fold_of[group]] += counts[group]
    return fold_of[places.reshape(-1)]


def roles_of(folds: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the roles (turn place) if folds take turns: each is scored once, the one before it selects, others train.

    >>> roles_of(np.array([0, 1, 2])).tolist() == [[TEST, TRAIN, VAL], [VAL, TEST, TRAIN], [TRAIN, VAL, TEST]]
    True
    """
    count = int(folds.max()) + 1
    turn = np.arange(count)[:, None]
    return np.where(folds == turn, TEST, np.where(folds == (turn - 1) % count, VAL, TRAIN))


def _total(shares: Mapping[str, float]) -> float:
    total = sum(shares.values())
    if not shares or min(shares.values()) < 0 or total <= 0:
        raise RecordError("split shares", dict(shares), "a positive share for at least one split")
    return total


def _draw(text: str) -> float:
    """Return a number in [0, 1) that depends only on the text."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") / 2.0**64
