"""Validity, from the values of the input to the embeddings. Projectors and transformers leave out what is invalid.

A flag of None means that everything is valid; nothing is then computed for it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor

from anysat.errors import EmptyTileError
from anysat.model.inputs import PixelInput

Refuse = Literal["one", "all", "none"]
"""When empty tiles are an error: if one tile is empty, only if all tiles of a batch are, or never."""


def mark_invalid(
    inputs: Mapping[str, PixelInput], ids: Sequence[object], refuse: Refuse = "one", *, keep_unseen: bool = False
) -> tuple[dict[str, PixelInput], dict[str, int]]:
    """Mark values that are not finite as invalid, and drop modalities without a valid value unless `keep_unseen`.

    If no modality has a valid value, none is dropped.

    Returns:
        The inputs, with `valid=None` where everything is valid, and how many tiles lack each modality.

    Raises:
        EmptyTileError: One tile, or every tile, has no valid value in any modality, depending on `refuse`.
    """
    marked, absent, anything = {}, {}, None
    for key, pixels in inputs.items():
        valid = torch.isfinite(pixels.values)
        if pixels.valid is not None:
            valid = valid & pixels.valid
        present = valid.flatten(1).any(1)
        anything = present if anything is None else anything | present
        missing = int((~present).sum())
        if missing:
            absent[key] = missing
        if missing < len(present) or keep_unseen:
            marked[key] = pixels._replace(valid=None if bool(valid.all()) else valid)
    assert anything is not None, "no modality"
    if (refuse == "one" and not bool(anything.all())) or (refuse == "all" and not bool(anything.any())):
        raise EmptyTileError([ids[index] for index in torch.nonzero(~anything).flatten().tolist()])
    if not marked:
        marked = {key: nothing_of(pixels) for key, pixels in inputs.items()}
    return marked, absent


def tiles_seen(inputs: Mapping[str, PixelInput]) -> Bool[Tensor, " batch"] | None:
    """Return which tiles have a valid value in any modality; None (all) if one modality is valid everywhere."""
    return any_of([None if pixels.valid is None else pixels.valid.flatten(1).any(1) for pixels in inputs.values()])


def nothing_of(pixels: PixelInput) -> PixelInput:
    """Return the same pixels, all of them invalid."""
    return pixels._replace(valid=torch.zeros_like(pixels.values, dtype=torch.bool))


def any_of(flags: Sequence[Bool[Tensor, "*place"] | None]) -> Bool[Tensor, "*place"] | None:
    """Return where any modality is valid; None (everywhere) if one is valid everywhere."""
    seen = [flag for flag in flags if flag is not None]
    return torch.stack(seen).any(0) if len(seen) == len(flags) else None


def pool_valid(
    valid: Bool[Tensor, "batch row col"] | None, rows: int, cols: int
) -> Bool[Tensor, "batch patch_row patch_col"] | None:
    """Return which patches contain a valid context pixel."""
    if valid is None:
        return None
    return rearrange(valid, "batch (pr sr) (pc sc) -> batch pr pc (sr sc)", pr=rows, pc=cols).any(-1)


def mark_unseen(
    vectors: Float[Tensor, "*place dim"], valid: Bool[Tensor, "*place"] | None
) -> Float[Tensor, "*place dim"]:
    """Set vectors to NaN where nothing was observed."""
    return vectors if valid is None else vectors.masked_fill(~valid[..., None], float("nan"))


def valid_or_all(vectors: Float[Tensor, "*place dim"], valid: Bool[Tensor, "*place"] | None) -> Bool[Tensor, "*place"]:
    """Return the flags as a tensor, also if they are None."""
    return torch.ones(vectors.shape[:-1], dtype=torch.bool, device=vectors.device) if valid is None else valid
