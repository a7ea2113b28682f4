"""Splits where a dataset gives none: seeded by name, or by place so that neighbours stay together."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from anysat.errors import RecordError


def split_by_name(names: Sequence[str], shares: Mapping[str, float], seed: int = 0) -> NDArray[np.str_]:
    """A split for each name, by a hash of seed and name: the same whatever else is in the list.

    Names of one group (a place, a scene, a plot) belong together when the group's name is given.

    >>> split_by_name(["a", "b", "a"], {"train": 0.8, "val": 0.2}).tolist()
    ['train', 'val', 'train']
    """
    total = sum(shares.values())
    if not shares or min(shares.values()) < 0 or total <= 0:
        raise RecordError("split shares", dict(shares), "a positive share for at least one split")
    unique, places = np.unique(np.asarray(names, dtype=str), return_inverse=True)
    draws = np.array([_draw(f"{seed}:{name}") for name in unique])
    ends = np.cumsum(list(shares.values())) / total
    chosen = np.searchsorted(ends, draws, side="right").clip(0, len(shares) - 1)
    return np.array(list(shares))[chosen][places]


def split_by_place(
    x_m: ArrayLike, y_m: ArrayLike, shares: Mapping[str, float], block_m: float, seed: int = 0
) -> NDArray[np.str_]:
    """A split for each place, the same for all places of one square block of the ground."""
    columns, rows = (np.floor(np.asarray(values, float) / block_m).astype(int) for values in (x_m, y_m))
    return split_by_name([f"{row}/{column}" for row, column in zip(rows, columns, strict=True)], shares, seed)


def _draw(text: str) -> float:
    """A number in [0, 1) that only depends on the text."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") / 2.0**64
