"""Protocols of the training loop: the objective that it trains, the monitors that watch it, and the source of data."""

from __future__ import annotations

from collections.abc import Mapping
from fractions import Fraction
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from anysat.data.loader import Draw, Source
from anysat.model.encoder import AnySat
from anysat.model.layers import Block

LOSS = "loss"
"""Key of the term that is minimised."""


@runtime_checkable
class Objective(Protocol):
    """What is minimised: an `nn.Module` with three methods, whose whole state is in its `state_dict`.

    It is trained only through its own call, so that the gradients of several devices are joined. A module whose mode
    must not change, such as a teacher, overrides `train`.
    """

    def forward(self, draw: Draw, generator: torch.Generator) -> dict[str, Tensor]:
        """Return the scalar terms of the loss of one micro-batch. `loss` is minimised, the others are logged.

        Args:
            draw: A batch of one dataset, on the device, with its patch size and step.
            generator: Source of all randomness, on the CPU, determined by seed, step and rank. Dropout uses torch's
                global generators, which are seeded in the same way.
        """

    def after_update(self, step: int, num_steps: int) -> None:
        """Update what is not learned, such as an averaged teacher.

        Called once after every optimiser step, under `no_grad`.

        Args:
            step: Number of the step just done, from 0.
            num_steps: Number of steps of the whole training.
        """

    def encoder(self) -> AnySat:
        """Return the encoder to keep, with its normaliser."""


class Monitor(Protocol):
    """Something that is measured at intervals, such as a validation loss or the health of the embeddings."""

    @property
    def name(self) -> str:
        """Start of the names of its metrics: `val` gives `val/loss`."""

    @property
    def every_steps(self) -> int | Fraction:
        """Steps between two measurements, at least 1. There is also one before the first step and one after the last.

        It may be a fraction, such as 31/16 for a pass over 31 tiles in batches of 16. A measurement then follows the
        step that completes a multiple of it.
        """

    def __call__(self, objective: nn.Module, step: int) -> Mapping[str, float]:
        """Return scalars by name, which are averaged over the ranks. NaN means that this rank has no value.

        Called on every rank, in eval mode, without gradients, with torch's global generators seeded.

        Args:
            step: Number of steps done so far.

        Raises:
            CollapseError: To end the run, after a checkpoint.
        """


class SourceFactory(Protocol):
    """A function that makes the source of batches of one rank, such as a `Mixture`."""

    def __call__(self, rank: int, world_size: int) -> Source:
        """Return a source whose step `n` is what this rank of `world_size` reads at step `n`.

        `read` must not depend on the rank, because any rank may have to read the plan of another.
        """


def is_due(step: int, every_steps: int | Fraction) -> bool:
    """Whether a step is the first to reach a multiple of `every_steps`.

    >>> [step for step in range(1, 9) if is_due(step, Fraction(5, 2))]
    [3, 5, 8]
    """
    return step // every_steps > (step - 1) // every_steps


def blocks_of(objective: nn.Module) -> list[nn.Module]:
    """Return every transformer block: what is compiled, and what FSDP2 shards one by one."""
    return [module for module in objective.modules() if isinstance(module, Block)]
