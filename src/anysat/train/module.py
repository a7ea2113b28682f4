"""The Lightning module of a training step: random draws, loss, learning rate, gradients and update."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor
from torch.utils.hooks import RemovableHandle

from anysat.data.loader import Draw, Loader
from anysat.train.config import EngineConfig, OptimiserConfig
from anysat.train.memory import give_back
from anysat.train.objective import LOSS, SourceFactory, sharded_parts
from anysat.train.randomness import seed_step
from anysat.train.release import update_in_backward
from anysat.train.schedule import Plateau, learning_rate
from anysat.train.source import MicroBatches, TimedLoader
from anysat.train.tensors import load_moments


class Training(LightningModule):
    """Training of an objective from one step of its schedules to another.

    Args:
        objective: The objective to minimise.
        sources: Makes the source of the micro-batches of a rank.
        optimiser: Options of AdamW and its schedule.
        engine: Options of accumulation, precision and workers.
        seed: Seed of all random draws.
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
            for part in sharded_parts(self.objective):
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
        fused = not isinstance(self.objective, FSDPModule) and self.engine.precision != "16"
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
        if self.engine.precision != "16":  # fp16's scaler checks it
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
