"""The Lightning module of a training step: random draws, loss, learning rate, gradients and update."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor
from torch.utils.hooks import RemovableHandle

from anysat.batch import Tile
from anysat.data.loader import Draw, Loader, Plan, Source
from anysat.train.config import EngineConfig, OptimiserConfig
from anysat.train.memory import give_back, update_in_backward
from anysat.train.objective import LOSS, SourceFactory, blocks_of
from anysat.train.tensors import load_moments

_LEAST_GAIN = 1e-4
"""Least relative improvement that counts, as in torch's `ReduceLROnPlateau`."""


def learning_rate(step: int, num_steps: int, config: OptimiserConfig, plateau_factor: float = 1.0) -> float:
    """Return the learning rate of a step, counted from 0, in a training of `num_steps` steps.

    >>> config = OptimiserConfig(learning_rate=1.0, warmup_steps=2)
    >>> [round(learning_rate(step, 6, config), 3) for step in range(6)]
    [0.5, 1.0, 1.0, 0.854, 0.5, 0.146]
    """
    highest = config.learning_rate
    if step < config.warmup_steps:
        return highest * (step + 1) / config.warmup_steps
    if config.schedule == "cosine":
        done = (step - config.warmup_steps) / max(1, num_steps - config.warmup_steps)
        least = config.final_learning_rate_frac
        return highest * (least + (1 - least) * (1 + math.cos(math.pi * min(done, 1.0))) / 2)
    return highest * (plateau_factor if config.schedule == "plateau" else 1.0)


@dataclass(frozen=True, kw_only=True)
class Plateau:
    """The state of the schedule `plateau`."""

    factor: float = 1.0
    """Factor of the learning rate."""
    best: float | None = None
    """Lowest value so far."""
    num_without_gain: int = 0
    """Number of consecutive measurements without improvement."""

    def after(self, value: float, config: OptimiserConfig) -> Plateau:
        """Return the state after one more measurement. NaN is not an improvement."""
        if not math.isnan(value) and (self.best is None or value < self.best - _LEAST_GAIN * abs(self.best)):
            return replace(self, best=value, num_without_gain=0)
        if self.num_without_gain < config.plateau_patience:
            return replace(self, num_without_gain=self.num_without_gain + 1)
        return replace(self, factor=self.factor * config.plateau_factor, num_without_gain=0)


class Training(LightningModule):
    """Training of an objective from one step of its schedules to another.

    Args:
        num_steps: Length of the schedules in steps.
        start: First step.
        stop: Step at which training stops, which is not taken.
        moments: The optimiser's moments at `start`, from `training_tensors`. Emptied once the optimiser has them.
        plateau: State of the plateau schedule at `start`.
    """

    def __init__(
        self, objective: nn.Module, sources: SourceFactory, *, optimiser: OptimiserConfig, engine: EngineConfig,
        seed: int, num_steps: int, start: int, stop: int, moments: dict[str, Tensor], plateau: Plateau,
    ) -> None:  # fmt: skip
        super().__init__()
        self.objective = objective
        self.sources, self.settings, self.engine = sources, optimiser, engine
        self.seed, self.num_steps, self.start, self.stop = seed, num_steps, start, stop
        self.plateau = plateau
        self._moments = moments
        self.steps_done = start
        self.loader: TimedLoader | None = None
        self.parts: dict[str, list[Tensor]] = {}
        """Parts of the loss, by name, for each micro-batch of this step."""
        self.num_tiles = 0
        """Number of tiles that this process has trained on."""
        self.grad_norm: Tensor | None = None
        self.finite: Tensor | None = None
        """Whether all losses and gradients so far were finite; None before the first."""
        self._norms: list[Tensor] = []
        """Norms of the gradients of this step that are already freed."""
        self._hooks: list[RemovableHandle] = []

    @property
    def learning_rate(self) -> float:
        """Learning rate of the current step."""
        return learning_rate(self.steps_done, self.num_steps, self.settings, self.plateau.factor)

    def configure_model(self) -> None:
        """Shard the weights block by block if the strategy is FSDP2."""
        if isinstance(self.trainer.strategy, ModelParallelStrategy) and not isinstance(self.objective, FSDPModule):
            mesh = self.trainer.strategy.device_mesh["data_parallel"]
            for part in blocks_of(self.objective):
                fully_shard(part, mesh=mesh)
            scalars = {p for p in self.objective.parameters() if p.ndim == 0}  # cannot be sharded
            fully_shard(self.objective, mesh=mesh, ignored_params=scalars)

    def train_dataloader(self) -> TimedLoader:
        """Return the loader of this process's micro-batches, from the first step on."""
        count = self.engine.accumulate
        ranks = [
            self.sources(self.trainer.global_rank * count + number, self.trainer.world_size * count)
            for number in range(count)
        ]
        loader = Loader(
            source=MicroBatches(ranks=ranks), start=self.start * count, stop=self.stop * count,
            num_workers=self.engine.num_workers, pin_memory=self.device.type == "cuda",
        )  # fmt: skip
        self.loader = TimedLoader(loader=loader)
        return self.loader

    def transfer_batch_to_device(self, batch: Draw, device: torch.device, dataloader_idx: int) -> Draw:  # noqa: ARG002
        """Return a micro-batch on the device."""
        return replace(batch, batch=batch.batch.map(lambda tensor: tensor.to(device, non_blocking=True)))

    def training_step(self, draw: Draw, batch_idx: int) -> Tensor:
        """Return the loss of a micro-batch."""
        number = batch_idx % self.engine.accumulate
        assert draw.step == self.steps_done, (draw.step, self.steps_done)
        rank = self.trainer.global_rank * self.engine.accumulate + number
        parts: dict[str, Tensor] = self.objective(draw, seed_step(self.seed, draw.step, rank))
        if number == 0:
            self.parts = {}
        for name, part in parts.items():
            self.parts.setdefault(name, []).append(part.detach())
        is_finite = parts[LOSS].detach().isfinite()
        self.finite = is_finite if self.finite is None else self.finite & is_finite
        self.num_tiles += len(draw.batch)
        return parts[LOSS]

    def configure_optimizers(self) -> torch.optim.AdamW:
        """Return AdamW for the trainable parameters. A parameter without a gradient in a step stays as it is."""
        # A fused update is several times as fast on a CPU. Not with fp16: its scaler then calls the step and its hooks
        # even if gradients overflow.
        fused = not isinstance(self.objective, FSDPModule) and self.engine.precision != "float16"
        optimiser = torch.optim.AdamW(
            _groups(self.objective, self.settings), lr=self.learning_rate, betas=self.settings.betas, fused=fused
        )
        load_moments(self.objective, optimiser, self._moments)
        self._moments.clear()  # with the checkpoint's weights, as large as the training itself
        optimiser.register_step_post_hook(self._after_update)  # not called if fp16 overflows and skips the step
        if self.engine.save_memory:
            self._hooks = update_in_backward(optimiser, lambda grad: self._norms.append(_whole_norm([grad])))
        return optimiser

    def on_before_backward(self, loss: Tensor) -> None:  # noqa: ARG002
        """Set the step's learning rate."""
        for group in self.trainer.optimizers[0].param_groups:
            group["lr"] = self.learning_rate * group["scale"]
        if self.engine.save_memory:
            give_back()

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:  # noqa: ARG002
        """Measure and clip the gradient."""
        self._join_scalars()
        having = [p for p in self.objective.parameters() if p.grad is not None]
        kinds = [[p for p in having if isinstance(p, DTensor) is in_shards] for in_shards in (False, True)]
        norms = [_whole_norm([p.grad for p in kind if p.grad is not None]) for kind in kinds if kind]
        norms += self._norms
        self._norms = []
        self.grad_norm = norms[0] if len(norms) == 1 else torch.stack(norms).norm()
        if self.engine.precision != "float16":  # fp16's scaler checks it
            is_finite = self.grad_norm.isfinite()
            self.finite = is_finite if self.finite is None else self.finite & is_finite
        if self.settings.clip_norm is not None:
            for kind in kinds:
                torch.nn.utils.clip_grads_with_norm_(kind, self.settings.clip_norm, self.grad_norm)

    def _join_scalars(self) -> None:
        """Average the gradients of scalars over processes under FSDP2, which does not shard them."""
        if not isinstance(self.objective, FSDPModule) or self.trainer.world_size == 1:
            return
        for parameter in self.objective.parameters():
            if parameter.ndim == 0 and parameter.requires_grad:
                seen = parameter.grad is not None
                if self.trainer.strategy.reduce_boolean_decision(seen, all=False):
                    grad = parameter.grad if parameter.grad is not None else torch.zeros_like(parameter)
                    parameter.grad = self.trainer.strategy.reduce(grad, reduce_op="mean")

    def _after_update(self, *_: Any) -> None:
        with torch.no_grad():
            self.objective.after_update(self.steps_done, self.num_steps)  # type: ignore[operator]
        if self.engine.save_memory:
            give_back()

    def let_go(self) -> None:
        """Remove the hooks from the weights."""
        for hook in self._hooks:
            hook.remove()


def _whole_norm(grads: list[Tensor]) -> Tensor:
    norm = torch.nn.utils.get_total_norm(grads)
    return norm.full_tensor() if isinstance(norm, DTensor) else norm


def _groups(objective: nn.Module, settings: OptimiserConfig) -> list[dict[str, Any]]:
    """Return AdamW's parameter groups, by weight decay and learning rate.

    Weight matrices are the parameters called `weight` with at least two axes longer than 1. An objective may have a
    method `learning_rate_scale(name)`, which returns the factor of a parameter's learning rate.
    """
    scale_of: Callable[[str], float] = getattr(objective, "learning_rate_scale", lambda _: 1.0)
    groups: dict[tuple[bool, float, bool], list[nn.Parameter]] = {}
    for decays in (True, False):  # keep this order: checkpoints of earlier runs have it
        for in_shards in (False, True):
            for name, parameter in objective.named_parameters():
                is_matrix = name.rpartition(".")[2] == "weight" and sum(length > 1 for length in parameter.shape) > 1
                wanted = (settings.decay_all or is_matrix) == decays and isinstance(parameter, DTensor) is in_shards
                if parameter.requires_grad and wanted:
                    groups.setdefault((decays, scale_of(name), in_shards), []).append(parameter)
    return [
        {"params": parameters, "weight_decay": settings.weight_decay if decays else 0.0, "scale": scale}
        for (decays, scale, _), parameters in groups.items()
    ]


_OBJECTIVE, _GLOBAL, _MONITOR = 101, 102, 103
"""Purposes of random draws, never renumbered; those of the data are below 101."""


def _draw_seed(seed: int, purpose: int, step: int, rank: int) -> int:
    """Return a 64-bit seed. Seeds depend on nothing else, so no random state has to be saved."""
    return int(np.random.SeedSequence((seed, purpose, step, rank)).generate_state(1, np.uint64)[0])


def seed_step(seed: int, step: int, rank: int) -> torch.Generator:
    """Seed torch's global generators for one micro-batch, and return the objective's own generator, on the CPU.

    Args:
        rank: Virtual rank, which tells the micro-batches of a step apart, in one process or in several.
    """
    torch.manual_seed(_draw_seed(seed, _GLOBAL, step, rank))
    return torch.Generator().manual_seed(_draw_seed(seed, _OBJECTIVE, step, rank))


def seed_monitor(seed: int, step: int, rank: int) -> None:
    """Seed torch's global generators for a measurement after `step` steps."""
    torch.manual_seed(_draw_seed(seed, _MONITOR, step, rank))


@dataclass(frozen=True, kw_only=True)
class MicroBatches:
    """Virtual ranks of one process: micro-batch `m` is what rank `m % n` of them reads at optimiser step `m // n`."""

    ranks: Sequence[Source]

    def plan(self, step: int) -> Plan:
        """Return what a micro-batch reads. Its step is that of the optimiser."""
        number, rank = divmod(step, len(self.ranks))
        return self.ranks[rank].plan(number)

    def read(self, plan: Plan) -> list[Tile]:
        """Return the tiles of a micro-batch."""
        return self.ranks[0].read(plan)


@dataclass(kw_only=True)
class TimedLoader:
    """A loader that counts the seconds in which training waited for data."""

    loader: Loader
    waited_s: float = 0.0

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[Draw]:
        draws = iter(self.loader)
        while True:
            asked = time.perf_counter()
            draw = next(draws, None)
            self.waited_s += time.perf_counter() - asked
            if draw is None:
                return
            yield draw
            del draw
