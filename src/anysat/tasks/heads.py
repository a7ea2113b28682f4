"""Heads, which turn embeddings into the outputs of a task, for tiles or for pixels.

A head takes `Embeddings` and returns outputs, channels-last, NaN where nothing was observed. The linear heads are as
published: a layer norm, then one linear map.

To add a head, write one class and register it in `HEADS`. A head of your own can be registered from its own module,
which must then be imported wherever the head is used (docs/howto/tasks.md).
"""

from __future__ import annotations

from collections.abc import Sequence
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
from anysat.tasks.base import task_class

NORM_EPS = 1e-5


@dataclass(frozen=True, kw_only=True)
class HeadConfig:
    """Configuration of a head."""

    name: str
    """One of `HEADS`."""
    dim: int
    """Width of the encoder."""
    num_outputs: int
    """Number of outputs per tile or pixel."""
    pixels_per_step: tuple[int, int] = (1, 1)
    """For heads for pixels: the number of output pixels per side for this number of sub-patches (for `patches`,
    patches) per side. One of the two is 1."""
    width: int = 64
    """Number of hidden channels of `conv`."""
    kind: str = "class"
    """For neighbours: the kind of the target, whose task turns mean targets into outputs."""
    num_samples: int = 0
    """For neighbours: the number of training embeddings that are stored."""
    num_neighbours: int = 0
    """For neighbours: the number of nearest ones whose targets are averaged."""


class TileHead(nn.Module):
    """Predict targets of tiles from the tile embedding: layer norm and linear map."""

    dense = False

    def __init__(self, config: HeadConfig) -> None:
        super().__init__()
        self.norm, self.linear = nn.LayerNorm(config.dim, NORM_EPS), nn.Linear(config.dim, config.num_outputs)

    def forward(self, seen: Embeddings) -> Tensor:
        """Return the outputs (tile output)."""
        return _of_tiles(self, seen.tile, seen)


class PooledHead(TileHead):
    """Predict targets of tiles from the mean of the patch embeddings: layer norm and linear map."""

    def forward(self, seen: Embeddings) -> Tensor:
        """Return the outputs (tile output)."""
        return _of_tiles(self, pooled(seen), seen)


class BothHead(nn.Module):
    """Predict targets of tiles from the tile embedding and the mean of the patch embeddings, concatenated."""

    dense = False

    def __init__(self, config: HeadConfig) -> None:
        super().__init__()
        self.norm, self.linear = nn.LayerNorm(2 * config.dim, NORM_EPS), nn.Linear(2 * config.dim, config.num_outputs)

    def forward(self, seen: Embeddings) -> Tensor:
        """Return the outputs (tile output)."""
        return _of_tiles(self, torch.cat([seen.tile, pooled(seen)], dim=-1), seen)


class DenseHead(nn.Module):
    """Predict targets of pixels from dense embeddings: layer norm and linear map, as published.

    If a sub-patch holds several pixels, the linear map gives all of them; the index of an output is
    (row · side + column) · outputs + output. If a pixel holds several sub-patches, their embeddings are averaged.
    """

    dense = True

    def __init__(self, config: HeadConfig) -> None:
        super().__init__()
        self.side, self.pool = config.pixels_per_step
        self.norm = nn.LayerNorm(2 * config.dim, NORM_EPS)
        self.linear = nn.Linear(2 * config.dim, config.num_outputs * self.side**2)

    def forward(self, seen: Embeddings) -> Tensor:
        """Return the outputs (tile row col output)."""
        dense, valid = dense_of(seen, self.pool)
        outputs = self.linear(self.norm(dense.masked_fill(~valid[..., None], 0.0)))
        outputs = rearrange(outputs, "b row col (y x out) -> b (row y) (col x) out", y=self.side, x=self.side)
        return _marked(outputs, valid, self.side)


class PatchHead(nn.Module):
    """Predict all pixels of a patch from its patch embedding: the naive head of an ablation in the paper.

    The index of an output is output · side² + row · side + column.
    """

    dense = False

    def __init__(self, config: HeadConfig) -> None:
        super().__init__()
        self.side, self.pool = config.pixels_per_step
        self.norm = nn.LayerNorm(config.dim, NORM_EPS)
        self.linear = nn.Linear(config.dim, config.num_outputs * self.side**2)

    def forward(self, seen: Embeddings) -> Tensor:
        """Return the outputs (tile row col output)."""
        patch, valid = averaged(seen.patch, seen.valid, self.pool)
        outputs = self.linear(self.norm(patch.masked_fill(~valid[..., None], 0.0)))
        outputs = rearrange(outputs, "b row col (out y x) -> b (row y) (col x) out", y=self.side, x=self.side)
        return _marked(outputs, valid, self.side)


class ConvHead(nn.Module):
    """Predict targets of pixels from dense embeddings with a small U-shaped convolutional decoder."""

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
        """Return the outputs (tile row col output)."""
        dense, valid = dense_of(seen, self.pool)
        x = self.embed(self.norm(dense.masked_fill(~valid[..., None], 0.0))) * valid[..., None]
        x = self.fine(rearrange(x, "b row col dim -> b dim row col"))
        half = self.coarse(functional.avg_pool2d(x, 2, ceil_mode=True, count_include_pad=False))
        x = self.joined(torch.cat([x, functional.interpolate(half, size=x.shape[-2:], mode="nearest")], dim=1))
        outputs = self.linear(rearrange(x, "b dim row col -> b row col dim"))
        outputs = rearrange(outputs, "b row col (y x out) -> b (row y) (col x) out", y=self.side, x=self.side)
        return _marked(outputs, valid, self.side)


class NeighbourHead(nn.Module):
    """Predict targets of tiles as the mean of those of the nearest training tiles, by cosine. Nothing is trained.

    What is averaged, and which outputs that gives, are `wanted` and `outputs_of` of the task.
    """

    dense = False
    vectors: Tensor
    targets: Tensor

    def __init__(self, config: HeadConfig) -> None:
        super().__init__()
        if config.num_samples < 1 or config.num_neighbours < 1:
            raise InputError(f"head {config.name!r}", "stored training embeddings", "none",
                             "create it with `anysat probe --method knn`")  # fmt: skip
        self.outputs_of, self.num_neighbours = task_class(config.kind).outputs_of, config.num_neighbours
        self.side, self.pool = config.pixels_per_step
        width = config.dim * (2 if self.dense else 1)
        self.register_buffer("vectors", torch.zeros(config.num_samples, width))
        self.register_buffer("targets", torch.zeros(config.num_samples, config.num_outputs))

    def forward(self, seen: Embeddings) -> Tensor:
        """Return the outputs (tile output), or (tile row col output) for pixels."""
        return self.of_counts(seen, (self.num_neighbours,))[0]

    def of_counts(self, seen: Embeddings, counts: Sequence[int]) -> list[Tensor]:
        """Return the outputs for several numbers of neighbours, which are searched for only once."""
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
        """Return the vectors to compare, and which of them were observed."""
        return seen.tile, seen.tile.isfinite().all(-1)

    def _placed(self, mean: Tensor, valid: Tensor) -> Tensor:
        """Turn the mean targets of observed places into outputs, at their places."""
        outputs = mean.new_full((*valid.shape, mean.shape[1]), torch.nan)
        outputs[valid] = self.outputs_of(mean)
        return outputs


class DenseNeighbourHead(NeighbourHead):
    """Predict targets of pixels like `NeighbourHead`, from sub-patches. All pixels of a sub-patch have one answer."""

    dense = True

    def look(self, seen: Embeddings) -> tuple[Tensor, Tensor]:
        """Return the vectors to compare, and which of them were observed."""
        return dense_of(seen, self.pool)

    def _placed(self, mean: Tensor, valid: Tensor) -> Tensor:
        outputs = super()._placed(mean, valid)
        return outputs.repeat_interleave(self.side, dim=1).repeat_interleave(self.side, dim=2)


Head = TileHead | BothHead | DenseHead | PatchHead | ConvHead | NeighbourHead
DEFAULT_HEADS = {"tile": "both", "pixel": "dense"}
"""Default heads by the level of the target."""
NEIGHBOURS = {"tile": "neighbours", "pixel": "dense-neighbours"}
"""Names of the heads of `anysat probe --method knn`, by the level of the target."""
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
"""Heads by name. Add new ones here."""
_OF_LEVEL = {"tile": ("tile", "pooled", "both"), "pixel": ("dense", "patches", "conv")}


def check_head(name: str, target: Target) -> None:
    """Check that there is a head of this name, and that it fits the target.

    Raises:
        UnknownNameError: There is no such head.
        RecordError: The head does not fit the level of the target.
    """
    if name not in HEADS:
        raise UnknownNameError("head", name, HEADS)
    if target.level in _OF_LEVEL and name in sum(_OF_LEVEL.values(), ()) and name not in _OF_LEVEL[target.level]:
        fitting = " or ".join(map(repr, _OF_LEVEL[target.level]))
        raise RecordError("--head", name, f"{fitting} for target {target.name!r}, of each {target.level}")


def head_config(
    name: str, target: Target, num_outputs: int, dim: int, *, patch_size_m: float, dense: Modality | None,
    width: int = 64,
) -> HeadConfig:  # fmt: skip
    """Return the configuration that a head needs for a target.

    Args:
        name: One of `HEADS`.
        target: What is predicted. Its pixels must be multiples of the sub-patches, or the other way round.
        num_outputs: Number of outputs per tile or pixel.
        dim: Width of the encoder.
        patch_size_m: Side of a patch in metres.
        dense: Modality whose dense embeddings are used, for a target of pixels.
        width: Number of hidden channels of `conv`.

    Raises:
        UnknownNameError: There is no such head.
        RecordError: The head does not fit the level of the target.
        InputError: Pixels and sub-patches do not fit into each other, or `dense` is needed.
    """
    check_head(name, target)
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
    """Create an untrained head.

    Raises:
        UnknownNameError: There is no head of this name.
    """
    if config.name not in HEADS:
        raise UnknownNameError("head", config.name, HEADS)
    head: Head = HEADS[config.name](config)
    return head


def pooled(seen: Embeddings) -> Tensor:
    """Return the mean of the valid patch embeddings, (tile dim)."""
    weight = seen.valid[..., None]
    total = seen.patch.masked_fill(~weight, 0.0).sum((1, 2))
    return total / weight.sum((1, 2)).clamp_min(1)


def dense_of(seen: Embeddings, pool: int = 1) -> tuple[Tensor, Tensor]:
    """Return dense embeddings (tile row col dim), averaged over squares of `pool` sub-patches per side, and validity.

    Raises:
        InputError: There are no dense embeddings.
    """
    if seen.dense is None or seen.dense_valid is None:
        raise InputError("embeddings", "dense ones, for a head of pixels", "none", "name a modality in `dense`")
    return averaged(seen.dense, seen.dense_valid, pool)


def averaged(vectors: Tensor, valid: Tensor, pool: int) -> tuple[Tensor, Tensor]:
    """Average the valid ones of each `pool` by `pool` vectors (tile row col dim); return also where there are any."""
    if pool == 1:
        return vectors, valid
    square = "b (row y) (col x) ... -> b row col ..."
    total = reduce(vectors.masked_fill(~valid[..., None], 0.0), square, "sum", y=pool, x=pool)
    count = reduce(valid[..., None].to(vectors.dtype), square, "sum", y=pool, x=pool)
    return total / count.clamp_min(1), count[..., 0] > 0


def _of_tiles(head: TileHead | BothHead, vectors: Tensor, seen: Embeddings) -> Tensor:
    """Return outputs (tile output) of vectors (tile dim). A tile without observation has NaN and gives no gradient."""
    known = seen.tile.isfinite().all(-1, keepdim=True)
    outputs: Tensor = head.linear(head.norm(vectors.where(known, 0.0)))
    return outputs.masked_fill(~known, torch.nan)


def _marked(outputs: Tensor, valid: Tensor, side: int) -> Tensor:
    """Put NaN into outputs (tile row col output) where nothing was observed; `valid` has one flag per `side` pixels."""
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
        "resample the target, or select another modality with `dense`",
    )  # fmt: skip


def _convolutions(width_in: int, width: int) -> nn.Sequential:
    groups = next(count for count in (8, 4, 2, 1) if width % count == 0)
    return nn.Sequential(
        nn.Conv2d(width_in, width, 3, padding=1), nn.GroupNorm(groups, width), nn.GELU(),
        nn.Conv2d(width, width, 3, padding=1), nn.GroupNorm(groups, width), nn.GELU(),
    )  # fmt: skip
