"""Seeds derived from the run's seed, purpose, step and rank, so that no random state has to be saved."""

from __future__ import annotations

import numpy as np
import torch

_OBJECTIVE, _GLOBAL, _MONITOR = 101, 102, 103  # purposes, never renumbered; those of the data are below 101


def draw_seed(seed: int, purpose: int, step: int, rank: int) -> int:
    """Return a 64-bit seed."""
    return int(np.random.SeedSequence((seed, purpose, step, rank)).generate_state(1, np.uint64)[0])


def seed_step(seed: int, step: int, rank: int) -> torch.Generator:
    """Seed torch's global generators for one micro-batch, and return the objective's own generator, on the CPU.

    Args:
        seed: Seed of the run.
        step: Optimiser step.
        rank: Virtual rank, which tells the micro-batches of a step apart, in one process or in several.
    """
    torch.manual_seed(draw_seed(seed, _GLOBAL, step, rank))
    return torch.Generator().manual_seed(draw_seed(seed, _OBJECTIVE, step, rank))


def seed_monitor(seed: int, step: int, rank: int) -> None:
    """Seed torch's global generators for a measurement after `step` steps."""
    torch.manual_seed(draw_seed(seed, _MONITOR, step, rank))
