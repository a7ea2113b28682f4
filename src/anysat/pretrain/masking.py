"""What is hidden from the student: blocks of patches, modalities of a patch, dates of a series.

Everything is drawn for the whole batch at once, on the CPU, from the given generator, so it is the same on every
device.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Generator, Tensor

from anysat.model.inputs import PixelInput
from anysat.pretrain.config import MaskingConfig

_REDRAWS = 4


class BlockMasks(NamedTuple):
    """Which patches are context and which are predicted. Patches are numbered row by row."""

    context: Tensor
    """(batch patch), True where the student sees the patch."""
    targets: Tensor
    """(block batch target), numbers of the patches to predict."""
    targets_valid: Tensor
    """(block batch), False for a block that a tile does not predict."""

    def to(self, device: torch.device) -> BlockMasks:
        """Return the masks on another device."""
        return BlockMasks(*(tensor.to(device) for tensor in self))


def draw_masks(rows: int, cols: int, batch: int, config: MaskingConfig, generator: Generator) -> BlockMasks:
    """Draw the masks of a batch of tiles of `rows` x `cols` patches.

    Context and targets never share a patch. The exception is a tile of a single patch, which is both: the student then
    predicts what it does not see of the patch's dates and modalities.
    """
    if rows * cols == 1:
        seen = torch.ones(batch, 1, dtype=torch.bool)
        return BlockMasks(seen, torch.zeros(1, batch, 1, dtype=torch.long), torch.ones(1, batch, dtype=torch.bool))
    if config.pattern == "random":
        return _scatter(rows * cols, batch, config, generator)
    return _draw_blocks(rows, cols, batch, config, generator)


def _scatter(num_patches: int, batch: int, config: MaskingConfig, generator: Generator) -> BlockMasks:
    """Draw scattered patches as context; all others are targets."""
    count = min(max(1, round(config.random_context_frac * num_patches)), num_patches - 1)
    order = torch.rand(batch, num_patches, generator=generator).argsort(1)
    context = torch.zeros(batch, num_patches, dtype=torch.bool).scatter_(1, order[:, :count], True)
    targets = order[:, count:].sort(1).values[None]
    return BlockMasks(context, targets, torch.ones(1, batch, dtype=torch.bool))


def _draw_blocks(rows: int, cols: int, batch: int, config: MaskingConfig, generator: Generator) -> BlockMasks:
    """Draw target blocks, of one size in the whole batch, and the context: what they leave of its rectangle.

    If nothing is left of it, a tile predicts fewer blocks. If even one block leaves nothing, the context is drawn
    again, and after a few attempts it is the rest of the tile outside this block.
    """
    size = _draw_size(rows, cols, config.block_area_frac, config.block_aspect, generator)
    is_whole = min(config.context_area_frac) >= 1
    context_size = _draw_size(rows, cols, config.context_area_frac, (1.0, 1.0), generator, leaves=not is_whole)
    blocks = _place(rows, cols, size, (config.num_blocks, batch), generator)
    left = _place(rows, cols, context_size, (batch,), generator)
    valid = torch.ones(config.num_blocks, batch, dtype=torch.bool)
    for last in range(config.num_blocks - 1, 0, -1):
        is_empty = ~(left & ~_union(blocks, valid)).any(1)
        valid[last] &= ~is_empty
    for _ in range(_REDRAWS):
        is_empty = ~(left & ~_union(blocks, valid)).any(1)
        left = torch.where(is_empty[:, None], _place(rows, cols, context_size, (batch,), generator), left)
    free = ~_union(blocks, valid)
    context = torch.where((left & free).any(1, keepdim=True), left & free, free)
    targets = blocks.flatten(0, 1).nonzero()[:, 1].view(config.num_blocks, batch, -1)
    return BlockMasks(context, targets, valid)


def _union(blocks: Tensor, valid: Tensor) -> Tensor:
    """Return (batch patch), True inside a valid block (block batch patch)."""
    return (blocks & valid[..., None]).any(0)


def _draw_size(
    rows: int, cols: int, area_frac: tuple[float, float], aspect: tuple[float, float], generator: Generator,
    leaves: bool = True,
) -> tuple[int, int]:  # fmt: skip
    """Draw the rows and columns of a rectangle.

    With `leaves`, at least one row and one column of the tile stay free if it has two or more.
    """
    area, ratio = (
        low + (high - low) * float(drawn)
        for (low, high), drawn in zip((area_frac, aspect), torch.rand(2, generator=generator), strict=True)
    )
    height, width = rows * math.sqrt(area * ratio), cols * math.sqrt(area / ratio)
    return tuple(  # type: ignore[return-value]
        min(max(1, round(length)), max(1, limit - leaves)) for length, limit in ((height, rows), (width, cols))
    )


def _place(rows: int, cols: int, size: tuple[int, int], shape: tuple[int, ...], generator: Generator) -> Tensor:
    """Draw rectangles of one size at uniformly random places: (*shape patch), True inside."""
    height, width = size
    top = torch.randint(rows - height + 1, (*shape, 1, 1), generator=generator)
    left = torch.randint(cols - width + 1, (*shape, 1, 1), generator=generator)
    row, col = torch.arange(rows)[:, None], torch.arange(cols)[None]
    inside = (row >= top) & (row < top + height) & (col >= left) & (col < left + width)
    return inside.flatten(-2)


def hide_modalities(valid: Tensor, hide_frac: float, generator: Generator) -> Tensor:
    """Draw which modality tokens of the context are hidden (paper section 3.2).

    In each patch, one random valid modality is kept. Of all other valid tokens of a tile, the fraction `hide_frac` is
    hidden, rounded up.

    Args:
        valid: (batch modality patch), True where the modality observed the patch.
        hide_frac: Fraction of the other tokens to hide.
        generator: Source of randomness, on the CPU.

    Returns:
        (batch modality patch), True where a token is hidden.
    """
    chance = torch.rand(valid.shape, generator=generator)
    kept = chance.masked_fill(~valid, 2.0).argmin(1, keepdim=True)
    others = valid & torch.ones_like(valid).scatter_(1, kept, False)
    flat = others.flatten(1)
    num_hidden = flat.sum(1) - (flat.sum(1) * (1 - hide_frac) + 1e-6).floor().long()
    rank = torch.rand(flat.shape, generator=generator).masked_fill(~flat, 2.0).argsort(1).argsort(1)
    return (rank < num_hidden[:, None]).view(valid.shape) & others


def drop_dates(pixels: PixelInput, keep_frac: tuple[float, float], generator: Generator) -> PixelInput:
    """Keep a random part of the dates of a series. A single image is returned unchanged.

    The dates of each tile are drawn among those with a valid value, and keep their order. At least one is kept.

    Args:
        pixels: The series.
        keep_frac: Smallest and largest fraction of the dates to keep; one fraction is drawn for the whole batch.
        generator: Source of randomness, on the CPU.
    """
    low, high = keep_frac
    if pixels.days is None or low >= 1:
        return pixels
    share = low if low == high else low + (high - low) * float(torch.rand((), generator=generator))
    num_tiles, num_dates = pixels.days.shape
    seen = torch.ones(num_tiles, num_dates, dtype=torch.bool)
    if pixels.valid is not None:
        seen = pixels.valid.flatten(2).any(-1).cpu()
    count = (seen.sum(1) * share + 1e-6).floor().long().clamp_min(1)
    chance = torch.rand(num_tiles, num_dates, generator=generator).masked_fill(~seen, 2.0)
    is_kept = chance.argsort(1).argsort(1) < count[:, None]
    most = int(count.max())
    order = torch.where(is_kept, 0, 1).argsort(dim=1, stable=True)[:, :most]
    is_filler = ~is_kept.gather(1, order)
    order, tile = order.to(pixels.values.device), torch.arange(num_tiles, device=pixels.values.device)[:, None]
    valid = None if pixels.valid is None else pixels.valid[tile, order]
    if bool(is_filler.any()):
        values = pixels.values[tile, order]
        valid = torch.ones_like(values, dtype=torch.bool) if valid is None else valid
        valid = valid & ~is_filler.to(valid.device)[..., None, None, None]
        return PixelInput(values, pixels.days[tile, order], valid)
    return PixelInput(pixels.values[tile, order], pixels.days[tile, order], valid)


def every_other_date(pixels: PixelInput, start: int) -> PixelInput:
    """Return a series of only the dates `start`, `start + 2`, and so on."""
    assert pixels.days is not None, "an image has no dates"
    valid = None if pixels.valid is None else pixels.valid[:, start::2]
    return PixelInput(pixels.values[:, start::2], pixels.days[:, start::2], valid)
