"""Work in parts, so that memory does not grow with the tile."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

LARGEST_KEPT = 2**25 - 2**16
"""Bytes of the largest piece of memory that glibc keeps for the next of its kind once one was freed; larger and, at
first, smaller ones it gives back to the system, which fills them with zeros at each use."""

torch.empty(LARGEST_KEPT, dtype=torch.uint8, device="cpu")  # freed at once: a pass in bfloat16 takes a tenth less


def slices(whole: slice, chunk_rows: int | None, rows_each: int) -> list[slice]:
    """Consecutive parts of at most `chunk_rows` rows, one item at least; everything at once without a limit.

    Parts are alike in size: a small last one would be multiplied slowly.
    """
    length = whole.stop - whole.start
    if chunk_rows is None:
        return [whole]
    if not length:
        return []
    count = math.ceil(length / max(1, chunk_rows // rows_each))
    step = math.ceil(length / count)
    return [slice(start, min(start + step, whole.stop)) for start in range(whole.start, whole.stop, step)]


def joined(parts: Sequence[Sequence[Tensor | None]], dim: int) -> list[Tensor | None]:
    """Each of several results over all parts; None stays None, which it is in every part or in none."""
    return [
        None if found[0] is None else torch.cat([one for one in found if one is not None], dim)
        for found in zip(*parts, strict=True)
    ]
