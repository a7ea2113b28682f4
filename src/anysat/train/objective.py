"""What the engine trains, and what watches it: two protocols, fulfilled by any module and any callable."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from fractions import Fraction
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from anysat.data.loader import Draw, Source
from anysat.model.encoder import AnySat
from anysat.model.layers import Block

LOSS = "loss"
"""Key of the part that is minimised."""


@runtime_checkable
class Objective(Protocol):
    """What is minimised: an `nn.Module` with three methods. Its `state_dict` is all it remembers.

    It is only ever trained through its own call, so that gradients of several devices are joined.
    A module that must not change mode (a teacher) overrides `train`.
    """

    def forward(self, draw: Draw, generator: torch.Generator) -> dict[str, Tensor]:
        """Scalar parts of the loss of one micro-batch; `loss` is minimised, the others are logged.

        Args:
            draw: a batch of one dataset, on the device, with its patch size and step.
            generator: on the CPU, a function of seed, step and rank; everything random is drawn from it.
                Dropout takes torch's global generators, which are seeded likewise.
        """

    def after_update(self, step: int, num_steps: int) -> None:
        """Called once after every real optimiser step, under `no_grad`: moves an averaged teacher.

        Args:
            step: number of the step just made, from 0.
            num_steps: length of the schedules, in steps.
        """

    def encoder(self) -> AnySat:
        """The encoder that the run leaves, with its normaliser."""


class Monitor(Protocol):
    """Something measured every so many steps, such as a validation loss or the health of the embeddings."""

    @property
    def name(self) -> str:
        """What its metrics' names begin with: `val` gives `val/loss`."""

    @property
    def every_steps(self) -> int | Fraction:
        """Steps between two measurements, 1 or more; there is one before the first step and one after the last, too.

        Of a fraction, such as 31/16 for a pass over 31 tiles in batches of 16, each comes after the step that completes
        a multiple of it.
        """

    def __call__(self, objective: nn.Module, step: int) -> Mapping[str, float]:
        """Scalars by name, averaged over ranks by the engine (NaN: this rank has nothing to tell).

        Called on every rank, in eval mode, without gradients, with torch's global generators seeded.

        Args:
            objective: what is trained, on its device.
            step: steps done so far.

        Raises:
            CollapseError: to end the run, after a checkpoint.
        """


class SourceFactory(Protocol):
    """Makes the source of one virtual rank, such as a `Mixture`."""

    def __call__(self, rank: int, world_size: int) -> Source:
        """A source whose step `n` is what this one of `world_size` ranks reads at step `n`.

        `read` must not depend on the rank: any of them may be asked to read what another planned.
        """


def is_due(step: int, every_steps: int | Fraction) -> bool:
    """Whether a step is the first to reach a multiple of so many steps.

    >>> [step for step in range(1, 9) if is_due(step, Fraction(5, 2))]
    [3, 5, 8]
    """
    return step // every_steps > (step - 1) // every_steps


def compiled_parts(objective: nn.Module) -> list[nn.Module]:
    """What `compile` compiles: what the objective's own `compiled_parts()` names, else every transformer block."""
    named = getattr(objective, "compiled_parts", None)
    parts: Iterable[nn.Module] = named() if callable(named) else _blocks(objective)
    return list(parts)


def sharded_parts(objective: nn.Module) -> list[nn.Module]:
    """What FSDP2 shards one by one: every transformer block. The rest is sharded as one."""
    return list(_blocks(objective))


def _blocks(objective: nn.Module) -> Iterable[nn.Module]:
    return (module for module in objective.modules() if isinstance(module, Block))
