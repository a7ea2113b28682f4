"""Random numbers as a function of seed, purpose, step and rank, so that nothing of them needs to be saved."""

from __future__ import annotations

import numpy as np
import torch

_OBJECTIVE, _GLOBAL, _MONITOR = 101, 102, 103  # what a number is for; never renumbered; those of the data are below


def draw_seed(seed: int, purpose: int, step: int, rank: int) -> int:
    """A seed of 64 bits."""
    return int(np.random.SeedSequence((seed, purpose, step, rank)).generate_state(1, np.uint64)[0])


def seed_step(seed: int, step: int, rank: int) -> torch.Generator:
    """Seed torch's global generators for one micro-batch, and give the objective's own, on the CPU.

    Args:
        seed: of the run.
        step: the optimiser step.
        rank: the virtual rank: micro-batches of one step are told apart by it, in one process or in several.
    """
    torch.manual_seed(draw_seed(seed, _GLOBAL, step, rank))
    return torch.Generator().manual_seed(draw_seed(seed, _OBJECTIVE, step, rank))


def seed_monitor(seed: int, step: int, rank: int) -> None:
    """Seed torch's global generators for what is measured after so many steps."""
    torch.manual_seed(draw_seed(seed, _MONITOR, step, rank))
