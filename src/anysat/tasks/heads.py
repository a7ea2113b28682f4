"""From embeddings to outputs: of a tile, of every pixel. To add a head, write one class and name it in `HEADS`.

One of your own may do so from its own module, which has to be imported wherever the head is used (docs/howto/tasks.md).

A head takes `Embeddings` and gives outputs channel-last, NaN where nothing was seen. The linear ones are the published
layout (spec section 5): layer norm, then one linear map.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from einops import rearrange, reduce
from torch import Tensor, nn
from torch.nn import functional

from anysat.batch import Embeddings
from anysat.data.base import Target
from anysat.errors import InputError, RecordError, UnknownNameError
from anysat.modalities import Modality
from anysat.patches import centimetres
from anysat.probing.samples import directions, slices

NORM_EPS = 1e-5
_NO_SHARE = 1e-6
"""What a class or label that no neighbour has is worth."""


@dataclass(frozen=True, kw_only=True)
class HeadConfig:
    """What a head is made of."""

    name: str
    """One of `HEADS`."""
    dim: int
    """Width of the encoder."""
    num_outputs: int
    pixels_per_step: tuple[int, int] = (1, 1)
    """Of a head of pixels: so many output pixels a side for so many sub-patches (of `patches`: patches) a side; one of
    the two is 1."""
    width: int = 64
    """Channels of the hidden layers of `conv`."""
    kind: str = "class"
    """Of neighbours: what the target is, `class`, `labels` or `value`."""
    num_samples: int = 0
    """Of neighbours: training embeddings that are held."""
    num_neighbours: int = 0
    """Of neighbours: of how many of these the answer is the mean."""


class TileHead(nn.Module):
    """From the tile's token."""

    dense = False

    def __init__(self, config: HeadConfig) -> None:
        super().__init__()
        self.norm, self.linear = nn.LayerNorm(config.dim, NORM_EPS), nn.Linear(config.dim, config.num_outputs)

    def forward(self, seen: Embeddings) -> Tensor:
        """Outputs (tile output)."""
        return _of_tiles(self, seen.tile, seen)


class PooledHead(TileHead):
    """From the mean of the tile's patches."""

    def forward(self, seen: Embeddings) -> Tensor:
        """Outputs (tile output)."""
        return _of_tiles(self, pooled(seen), seen)


class BothHead(nn.Module):
    """From the tile's token and the mean of its patches, side by side."""

    dense = False

    def __init__(self, config: HeadConfig) -> None:
        super().__init__()
        self.norm, self.linear = nn.LayerNorm(2 * config.dim, NORM_EPS), nn.Linear(2 * config.dim, config.num_outputs)

    def forward(self, seen: Embeddings) -> Tensor:
        """Outputs (tile output)."""
        return _of_tiles(self, torch.cat([seen.tile, pooled(seen)], dim=-1), seen)


class DenseHead(nn.Module):
    """From each sub-patch's dense embedding to its pixels, one or several (published layout).

    Of several pixels, the output's index is (row · side + column) · outputs + output. Where a pixel holds several
    sub-patches, their embeddings are averaged.
    """

    dense = True

    def __init__(self, config: HeadConfig) -> None:
        super().__init__()
        self.side, self.pool = config.pixels_per_step
        self.norm = nn.LayerNorm(2 * config.dim, NORM_EPS)
        self.linear = nn.Linear(2 * config.dim, config.num_outputs * self.side**2)

    def forward(self, seen: Embeddings) -> Tensor:
        """Outputs (tile row col output)."""
        dense, valid = dense_of(seen, self.pool)
        outputs = self.linear(self.norm(dense.masked_fill(~valid[..., None], 0.0)))
        outputs = rearrange(outputs, "b row col (y x out) -> b (row y) (col x) out", y=self.side, x=self.side)
        return _marked(outputs, valid, self.side)


class PatchHead(nn.Module):
    """From each patch's token to all its pixels: the paper's naive head, an ablation.

    The output's index is output · side² + row · side + column.
    """

    dense = False

    def __init__(self, config: HeadConfig) -> None:
        super().__init__()
        self.side, self.pool = config.pixels_per_step
        self.norm = nn.LayerNorm(config.dim, NORM_EPS)
        self.linear = nn.Linear(config.dim, config.num_outputs * self.side**2)

    def forward(self, seen: Embeddings) -> Tensor:
        """Outputs (tile row col output)."""
        patch, valid = averaged(seen.patch, seen.valid, self.pool)
        outputs = self.linear(self.norm(patch.masked_fill(~valid[..., None], 0.0)))
        outputs = rearrange(outputs, "b row col (out y x) -> b (row y) (col x) out", y=self.side, x=self.side)
        return _marked(outputs, valid, self.side)


class ConvHead(nn.Module):
    """A small U-shaped convolutional decoder over the dense embeddings: borders and textures, few weights."""

    dense = True

    def __init__(self, config: HeadConfig) -> None:
        super().__init__()
        (self.side, self.pool), width = config.pixels_per_step, config.width
        self.norm = nn.LayerNorm(2 * config.dim, NORM_EPS)
        self.embed = nn.Linear(2 * config.dim, width)
        self.fine, self.coarse = _convolutions(width, width), _convolutions(width, width)
        self.joined = _convolutions(2 * width, width)
        self.linear = nn.Linear(width, config.num_outputs * self.side**2)

    def forward(self, seen: Embeddings) -> Tensor:
        """Outputs (tile row col output)."""
        dense, valid = dense_of(seen, self.pool)
        x = self.embed(self.norm(dense.masked_fill(~valid[..., None], 0.0))) * valid[..., None]
        x = self.fine(rearrange(x, "b row col dim -> b dim row col"))
        half = self.coarse(functional.avg_pool2d(x, 2, ceil_mode=True, count_include_pad=False))
        x = self.joined(torch.cat([x, functional.interpolate(half, size=x.shape[-2:], mode="nearest")], dim=1))
        outputs = self.linear(rearrange(x, "b dim row col -> b row col dim"))
        outputs = rearrange(outputs, "b row col (y x out) -> b (row y) (col x) out", y=self.side, x=self.side)
        return _marked(outputs, valid, self.side)


class NeighbourHead(nn.Module):
    """From the training tiles whose tokens point the same way (cosine): the mean of their targets; trains nothing.

    Outputs are log shares of classes, log odds of labels, or values in units of the task's deviation.
    """

    dense = False
    vectors: Tensor
    targets: Tensor

    def __init__(self, config: HeadConfig) -> None:
        super().__init__()
        if config.num_samples < 1 or config.num_neighbours < 1:
            raise InputError(f"head {config.name!r}", "training embeddings to look among", "none",
                             "`anysat probe --method knn` makes it")  # fmt: skip
        self.kind, self.num_neighbours = config.kind, config.num_neighbours
        self.side, self.pool = config.pixels_per_step
        width = config.dim * (2 if self.dense else 1)
        self.register_buffer("vectors", torch.zeros(config.num_samples, width))
        self.register_buffer("targets", torch.zeros(config.num_samples, config.num_outputs))

    def forward(self, seen: Embeddings) -> Tensor:
        """Outputs (tile output), or (tile row col output) of pixels."""
        return self.of_counts(seen, (self.num_neighbours,))[0]

    def of_counts(self, seen: Embeddings, counts: Sequence[int]) -> list[Tensor]:
        """Outputs for several numbers of neighbours, looked up once."""
        vectors, valid = self.look(seen)
        asked, most = vectors[valid], len(self.vectors)
        means = [asked.new_zeros(len(asked), self.targets.shape[1]) for _ in counts]
        for rows in slices(len(asked), most):
            near = (directions(asked[rows]) @ self.vectors.T).topk(min(max(counts), most), dim=1).indices
            total = self.targets[near].cumsum(1)
            for mean, count in zip(means, counts, strict=True):
                mean[rows] = total[:, min(count, most) - 1] / min(count, most)
        return [self._placed(mean, valid) for mean in means]

    def look(self, seen: Embeddings) -> tuple[Tensor, Tensor]:
        """The vectors that are compared, and which were seen."""
        return seen.tile, seen.tile.isfinite().all(-1)

    def _placed(self, mean: Tensor, valid: Tensor) -> Tensor:
        """Mean targets of what was seen as outputs, at their places."""
        if self.kind == "class":
            mean = mean.clamp_min(_NO_SHARE).log()
        elif self.kind == "labels":
            mean = mean.clamp(_NO_SHARE, 1 - _NO_SHARE).logit()
        outputs = mean.new_full((*valid.shape, mean.shape[1]), torch.nan)
        outputs[valid] = mean
        return outputs


class DenseNeighbourHead(NeighbourHead):
    """The same from sub-patches; pixels of one sub-patch have one answer."""

    dense = True

    def look(self, seen: Embeddings) -> tuple[Tensor, Tensor]:
        """The vectors that are compared, and which were seen."""
        return dense_of(seen, self.pool)

    def _placed(self, mean: Tensor, valid: Tensor) -> Tensor:
        outputs = super()._placed(mean, valid)
        return outputs.repeat_interleave(self.side, dim=1).repeat_interleave(self.side, dim=2)


Head = TileHead | BothHead | DenseHead | PatchHead | ConvHead | NeighbourHead
DEFAULT_HEADS = {"tile": "both", "pixel": "dense"}
"""By the target's level."""
NEIGHBOURS = {"tile": "neighbours", "pixel": "dense-neighbours"}
"""Heads of `anysat probe --method knn`, by the target's level."""
HEADS: dict[str, type[Any]] = {
    "tile": TileHead,
    "pooled": PooledHead,
    "both": BothHead,
    "dense": DenseHead,
    "patches": PatchHead,
    "conv": ConvHead,
    NEIGHBOURS["tile"]: NeighbourHead,
    NEIGHBOURS["pixel"]: DenseNeighbourHead,
}
"""By name; add one here."""
_OF_LEVEL = {"tile": ("tile", "pooled", "both"), "pixel": ("dense", "patches", "conv")}


def head_config(
    name: str, target: Target, num_outputs: int, dim: int, *, patch_size_m: float, dense: Modality | None,
    width: int = 64,
) -> HeadConfig:  # fmt: skip
    """What a head has to be for a target.

    Args:
        name: one of `HEADS`.
        target: tile or pixel; its pixels and the sub-patches must be multiples of each other.
        num_outputs: numbers per tile or pixel.
        dim: width of the encoder.
        patch_size_m: side of a patch.
        dense: modality whose sub-patches are taken; of a target of pixels.
        width: hidden channels of `conv`.

    Raises:
        UnknownNameError: there is no such head.
        RecordError: it does not fit the target's level.
        InputError: pixels do not nest.
    """
    if name not in HEADS:
        raise UnknownNameError("head", name, HEADS)
    if target.level in _OF_LEVEL and name in sum(_OF_LEVEL.values(), ()) and name not in _OF_LEVEL[target.level]:
        fitting = " or ".join(map(repr, _OF_LEVEL[target.level]))
        raise RecordError("--head", name, f"{fitting} for target {target.name!r}, of each {target.level}")
    made = HeadConfig(name=name, dim=dim, num_outputs=num_outputs, width=width, kind=target.kind)
    if target.gsd_m is None:
        return made
    step_m = patch_size_m
    if HEADS[name].dense:
        if dense is None:
            raise InputError("--dense", "the modality whose sub-patches are classified", "none")
        step_m = dense.subpatch_m
    return replace(made, pixels_per_step=_nested(step_m, target))


def make_head(config: HeadConfig) -> Head:
    """A new head.

    Raises:
        UnknownNameError: there is none of this name.
    """
    if config.name not in HEADS:
        raise UnknownNameError("head", config.name, HEADS)
    head: Head = HEADS[config.name](config)
    return head


def pooled(seen: Embeddings) -> Tensor:
    """Mean of the patches that somebody saw (tile dim)."""
    weight = seen.valid[..., None]
    total = seen.patch.masked_fill(~weight, 0.0).sum((1, 2))
    return total / weight.sum((1, 2)).clamp_min(1)


def dense_of(seen: Embeddings, pool: int = 1) -> tuple[Tensor, Tensor]:
    """Dense embeddings (tile row col dim) and which were seen, averaged over squares of `pool` sub-patches."""
    if seen.dense is None or seen.dense_valid is None:
        raise InputError("embeddings", "dense ones, for a head of pixels", "none", "name a modality in `dense`")
    return averaged(seen.dense, seen.dense_valid, pool)


def averaged(vectors: Tensor, valid: Tensor, pool: int) -> tuple[Tensor, Tensor]:
    """Means over squares of `pool` by `pool` vectors (tile row col dim), of those that were seen, and where any was."""
    if pool == 1:
        return vectors, valid
    square = "b (row y) (col x) ... -> b row col ..."
    total = reduce(vectors.masked_fill(~valid[..., None], 0.0), square, "sum", y=pool, x=pool)
    count = reduce(valid[..., None].to(vectors.dtype), square, "sum", y=pool, x=pool)
    return total / count.clamp_min(1), count[..., 0] > 0


def _of_tiles(head: TileHead | BothHead, vectors: Tensor, seen: Embeddings) -> Tensor:
    """Outputs (tile output) of vectors (tile dim), NaN for a tile that nobody saw, which leaves no gradient."""
    known = seen.tile.isfinite().all(-1, keepdim=True)
    outputs: Tensor = head.linear(head.norm(vectors.where(known, 0.0)))
    return outputs.masked_fill(~known, torch.nan)


def _marked(outputs: Tensor, valid: Tensor, side: int) -> Tensor:
    """NaN where nothing was seen; (tile row col output), validity by step."""
    seen = valid.repeat_interleave(side, dim=1).repeat_interleave(side, dim=2)
    return outputs.masked_fill(~seen[..., None], torch.nan)


def _nested(step_m: float, target: Target) -> tuple[int, int]:
    step, pixel = centimetres(step_m, "sub-patch"), centimetres(target.gsd_m or 0, f"target {target.name!r}")
    if step % pixel == 0:
        return step // pixel, 1
    if pixel % step == 0:
        return 1, pixel // step
    raise InputError(
        f"target {target.name!r}", f"pixels that nest in {step_m:g} m, or the other way round", f"{target.gsd_m:g} m",
        "resample the target, or take another modality in `dense`",
    )  # fmt: skip


def _convolutions(width_in: int, width: int) -> nn.Sequential:
    groups = next(count for count in (8, 4, 2, 1) if width % count == 0)
    return nn.Sequential(
        nn.Conv2d(width_in, width, 3, padding=1), nn.GroupNorm(groups, width), nn.GELU(),
        nn.Conv2d(width, width, 3, padding=1), nn.GroupNorm(groups, width), nn.GELU(),
    )  # fmt: skip


def config_of(content: Mapping[str, Any]) -> HeadConfig:
    """A head's record from plain values."""
    pixels = tuple(int(number) for number in content.get("pixels_per_step", (1, 1)))
    return HeadConfig(**{**content, "pixels_per_step": pixels})
