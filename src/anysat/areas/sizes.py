"""Choose the sizes of shards and blocks of an area for a memory budget.

Memory is estimated from above. `docs/howto/areas.md` compares the estimate with measurements.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from anysat.areas.windows import Windowing
from anysat.errors import RecordError
from anysat.geo.read.source import Source
from anysat.modalities import Modality
from anysat.model.config import ModelConfig

BASE_BYTES = 900e6
"""Memory of interpreter, libraries and working buffers of a process, without weights."""
READ_BYTES, ENCODE_BYTES, WAIT_BYTES = 20, 40, 6
"""Bytes per pixel value of a block that is being read, is being encoded, or waits."""
KEPT_TIMES = 4
"""Copies in memory of what is stored of a block: the old, the new, its parts, and that being written."""
SHARDS = (64, 32, 16, 8, 4, 2, 1)
"""Numbers of patches along a side of a shard. The first that fits is taken."""
_FLOAT = 4


@dataclass(frozen=True, kw_only=True)
class Load:
    """The amount of data per patch."""

    values: float
    """Number of pixel values of a patch, over all dates."""
    modalities: int
    """Number of modalities that give it a token."""
    dim: int
    dense_side: int = 0
    """Number of sub-patches along its side that get a dense embedding; 0 for none."""
    kept_bytes: float = 0.0
    """Bytes stored per patch so that dates can be added later."""

    @classmethod
    def of(
        cls, sources: Mapping[str, Source], patch_size_m: float, dim: int, dense: Modality | None,
        between: tuple[np.datetime64, np.datetime64] | None = None,
    ) -> Load:  # fmt: skip
        """Compute the load of sources, as if every place had all of their dates."""
        tiling = [source for source in sources.values() if not source.modality.covers_tile]
        values = sum(
            num_dates(source, between) * len(source.modality.bands) * (patch_size_m / source.modality.gsd_m) ** 2
            for source in tiling
        )
        side = 0 if dense is None else round(patch_size_m / dense.subpatch_m)
        return cls(values=values, modalities=len(tiling), dim=dim, dense_side=side)

    @property
    def tokens_bytes(self) -> float:
        """Bytes on disk between the two steps of the work: vectors of patches and sub-patches and their validity."""
        return (self.modalities + self.dense_side**2) * (_FLOAT * self.dim + 1)

    def shard_bytes(self, shard: int, windowing: Windowing) -> float:
        """Return the memory in bytes for fusing the windows of a shard while others wait to be written."""
        around = (shard + 2 * windowing.side) ** 2 * self.modalities * 2
        own = shard**2 * self.dim * (6 + 5 * 2 * self.dense_side**2 + self.modalities)
        return _FLOAT * (around * self.dim + own)

    def block_bytes(self, block: int, readers: int) -> float:
        """Return the memory in bytes for encoding a block while others are read ahead."""
        seen = self.values * (readers * READ_BYTES + WAIT_BYTES + ENCODE_BYTES)
        return block**2 * (seen + KEPT_TIMES * self.kept_bytes)


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """Sizes of shards and blocks, and the memory that they need."""

    shard: int
    """Number of patches along a side of a shard, which is written at once."""
    block: int
    """Number of patches along a side of a block, which is read and encoded at once."""
    peak_bytes: float
    """Estimated peak memory of the process."""


def choose_sizes(
    load: Load, windowing: Windowing, config: ModelConfig, *, memory_gb: float, readers: int,
    blocks: Sequence[int] | None = None, shard: int | None = None,
) -> Sizes:  # fmt: skip
    """Choose the largest shards and blocks within a memory budget.

    Args:
        blocks: Allowed sizes of blocks, largest first; None for any that fits in a shard.
        shard: Required size of shards; None for any that fits.

    Raises:
        RecordError: Even the smallest sizes do not fit. The message says which budget is enough.
    """
    fixed = BASE_BYTES + 1.1 * weight_bytes(config)
    budget = memory_gb * 1e9 - fixed

    def peak(shard: int, block: int) -> float:
        return load.shard_bytes(shard, windowing) + load.block_bytes(block, readers)

    for across in SHARDS if shard is None else (shard,):
        if load.shard_bytes(across, windowing) > budget / 2 and across > 1 and shard is None:
            continue
        for side in SHARDS if blocks is None else blocks:
            if peak(across, side) <= budget and (side <= across or blocks is not None):
                return Sizes(shard=across, block=side, peak_bytes=fixed + peak(across, side))
    smallest = 1 if blocks is None else blocks[-1]
    least = math.ceil((fixed + peak(shard or 1, smallest)) / 1e8) / 10
    smaller = "for one patch at a time" if blocks is None else f"for windows with {smallest} patches along a side"
    raise RecordError("--memory-gb", memory_gb, f"at least {least:g} GB {smaller} of these inputs")


def weight_bytes(config: ModelConfig) -> float:
    """Return the approximate memory in bytes of a model's weights, from transformer blocks and projectors."""
    blocks = 2 * config.depth + 1
    return _FLOAT * (12 * config.dim**2 * blocks + len(config.modalities) * 4 * config.dim**2)


def num_dates(source: Source, between: tuple[np.datetime64, np.datetime64] | None) -> int:
    """Return the number of dates of a series in a range of days; 1 for an image."""
    if source.dates is None or not source.modality.is_temporal:
        return 1
    if between is None:
        return len(source.dates)
    return int(((source.dates >= between[0]) & (source.dates <= between[1])).sum())
