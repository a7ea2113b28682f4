"""How much of an area is held at once: shards and blocks that keep within a memory budget, and what they take.

An estimate from above; `docs/howto/areas.md` says how it compares with what was measured.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from anysat.areas.windows import Windowing
from anysat.errors import RecordError
from anysat.geo.source import Source
from anysat.modalities import Modality
from anysat.model.config import ModelConfig

BASE_BYTES = 900e6
"""Interpreter, libraries and work space of a process, without weights."""
READ_BYTES, ENCODE_BYTES, WAIT_BYTES = 20, 40, 6
"""Per pixel value of a block: being read, being encoded, waiting."""
KEPT_TIMES = 4
"""How often what is kept of a block lies in memory: as it was, as it is, in parts, and on its way to the disk."""
SHARDS = (64, 32, 16, 8, 4, 2, 1)
"""Patches along a side of a shard, of which the first that fits is taken."""
_FLOAT = 4


@dataclass(frozen=True, kw_only=True)
class Load:
    """What the sources put on each patch."""

    values: float
    """Pixel values of a patch, of all dates."""
    modalities: int
    """That give it a token."""
    dim: int
    dense_side: int = 0
    """Sub-patches along its side that get an embedding each; 0 for none."""
    kept_bytes: float = 0.0
    """What is kept of a patch so that dates can be added."""

    @classmethod
    def of(
        cls, sources: Mapping[str, Source], patch_size_m: float, dim: int, dense: Modality | None,
        between: tuple[np.datetime64, np.datetime64] | None = None,
    ) -> Load:  # fmt: skip
        """Of sources, with every date that any place of them has."""
        tiling = [source for source in sources.values() if not source.modality.covers_tile]
        values = sum(
            num_dates(source, between) * len(source.modality.bands) * (patch_size_m / source.modality.gsd_m) ** 2
            for source in tiling
        )
        side = 0 if dense is None else round(patch_size_m / dense.subpatch_m)
        return cls(values=values, modalities=len(tiling), dim=dim, dense_side=side)

    def shard_bytes(self, shard: int, windowing: Windowing) -> float:
        """While the windows of a shard are fused, and others wait to be written."""
        around = (shard + 2 * windowing.side) ** 2 * self.modalities * 2
        own = shard**2 * self.dim * (6 + 5 * 2 * self.dense_side**2 + self.modalities)
        return _FLOAT * (around * self.dim + own)

    def block_bytes(self, block: int, readers: int) -> float:
        """While blocks are read ahead and one is encoded."""
        seen = self.values * (readers * READ_BYTES + WAIT_BYTES + ENCODE_BYTES)
        return block**2 * (seen + KEPT_TIMES * self.kept_bytes)


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """What is held at once."""

    shard: int
    """Patches along a side of what is written at once."""
    block: int
    """Patches along a side of what is read and encoded at once."""
    peak_bytes: float
    """Estimate of the whole process."""


def choose_sizes(
    load: Load, windowing: Windowing, config: ModelConfig, *, memory_gb: float, readers: int, block: int | None = None,
    shard: int | None = None,
) -> Sizes:  # fmt: skip
    """The largest shards and blocks within a budget.

    Args:
        load: what the sources put on each patch.
        windowing: how windows lie.
        config: of the model.
        memory_gb: the budget.
        readers: threads that read ahead.
        block: the only size of block there is; None for any that fits in a shard.
        shard: the only size of shard there is; None for any that fits.

    Raises:
        RecordError: the smallest does not fit; it says what would.
    """
    fixed = BASE_BYTES + 1.1 * weight_bytes(config)
    budget = memory_gb * 1e9 - fixed

    def peak(shard: int, block: int) -> float:
        return load.shard_bytes(shard, windowing) + load.block_bytes(block, readers)

    for across in SHARDS if shard is None else (shard,):
        if load.shard_bytes(across, windowing) > budget / 2 and across > 1 and shard is None:
            continue
        for side in SHARDS if block is None else (block,):
            if peak(across, side) <= budget and (side <= across or block is not None):
                return Sizes(shard=across, block=side, peak_bytes=fixed + peak(across, side))
    least = math.ceil((fixed + peak(shard or 1, block or 1)) / 1e8) / 10
    smaller = "for one patch at a time" if block is None else f"for windows of {block} patches a side"
    raise RecordError("--memory-gb", memory_gb, f"at least {least:g} GB {smaller} of these inputs")


def weight_bytes(config: ModelConfig) -> float:
    """Of a model's weights, nearly: the transformers' blocks and the projectors."""
    blocks = 2 * config.depth + 1
    return _FLOAT * (12 * config.dim**2 * blocks + len(config.modalities) * 4 * config.dim**2)


def num_dates(source: Source, between: tuple[np.datetime64, np.datetime64] | None) -> int:
    """Dates a series has in some days; 1 of an image."""
    if source.dates is None or not source.modality.is_temporal:
        return 1
    if between is None:
        return len(source.dates)
    return int(((source.dates >= between[0]) & (source.dates <= between[1])).sum())
