"""The callback that measures, logs, saves checkpoints and decides when a training stops."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.loggers import Logger
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

from anysat.data.work import versions
from anysat.errors import CollapseError, DivergedError, RecordError, RunStoppedError
from anysat.model.checkpoint import OWN_FILE
from anysat.model.modes import evaluating
from anysat.train.checkpoints import keep_only, publish, write_checkpoint
from anysat.train.config import KeepConfig
from anysat.train.metrics import METRICS, read_metrics, write_metrics
from anysat.train.module import Training, seed_monitor
from anysat.train.objective import Monitor, is_due
from anysat.train.progress import TrainingProgress
from anysat.train.run import RunFolder
from anysat.train.signals import StopWish
from anysat.train.tensors import on_cpu, training_tensors

_LEAST_SCALE = 2.0**-20
"""Scale of half-precision gradients below which a training counts as diverged. The scaler starts at 2**16, halves it at
an overflow and seldom doubles it."""


class Keeper(Callback):
    """Lightning callback that measures, logs, saves checkpoints and stops a training.

    Args:
        loggers: Where metrics go besides `metrics.csv`.
        mathematics: Options that every session must share. Stored in each checkpoint.
        state: State of the checkpoint that the training starts from. Empty if there is none.
    """

    def __init__(
        self, run: RunFolder, keep: KeepConfig, monitors: Sequence[Monitor], loggers: Iterable[Logger],
        mathematics: Mapping[str, Any], state: Mapping[str, Any],
    ) -> None:  # fmt: skip
        self.run, self.keep, self.monitors, self.loggers = run, keep, monitors, list(loggers)
        self.mathematics, self.state = mathematics, state
        best, wanted = state.get("best"), {"name": keep.keep_best, "is_highest": keep.best_is_highest}
        self.best: dict[str, Any] | None = best if best is not None and best.items() >= wanted.items() else None
        self.metrics: dict[str, float] = {}
        self.wish = StopWish()
        self.interrupted = False
        self.finished = False
        """Whether the run ended because the metric of `keep_best` no longer improved."""
        self._saved: int | None = state.get("step")
        self._clock = (0.0, 0.0, 0)  # time, seconds waited and tiles, when metrics were last logged

    # -- hooks of Lightning ------------------------------------------------------------------------

    def on_train_start(self, trainer: Trainer, pl_module: Training) -> None:  # type: ignore[override]
        """Measure before the first step."""
        self.wish.listen()
        if self.state.get("precision"):
            trainer.precision_plugin.load_state_dict(dict(self.state["precision"]))
        self.progress = TrainingProgress(pl_module.start, pl_module.stop, shown=trainer.is_global_zero)
        if pl_module.start == 0:
            metrics, collapse = self._measure(trainer, pl_module, 0, self.monitors)
            self._log(trainer, 0, metrics)
            self._end_if_collapsed(trainer, pl_module, collapse)
            self._check_names(pl_module, metrics)
        elif (self.run.path / METRICS).is_file():
            self._check_names(pl_module, read_metrics(self.run.path / METRICS))
        self._clock = self._now(pl_module)

    def on_train_batch_end(  # type: ignore[override]
        self,
        trainer: Trainer,
        pl_module: Training,
        outputs: Any,  # noqa: ARG002
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Count a micro-batch. After the last one of a step, do what is due."""
        if (batch_idx + 1) % pl_module.engine.accumulate:
            if self.wish.wished and trainer.world_size == 1:  # the unfinished step will be repeated
                self._interrupt(trainer, pl_module)
            return
        rate = pl_module.learning_rate  # of the step just taken
        pl_module.steps_done += 1
        step, last = pl_module.steps_done, pl_module.steps_done == pl_module.stop
        self.progress.advance(step)
        due = [monitor for monitor in self.monitors if last or is_due(step, monitor.every_steps)]
        metrics = {}
        if step % self.keep.log_every == 0 or due or last:
            metrics = self._training_metrics(trainer, pl_module, batch.dataset) | {"learning_rate": rate}
        measured, collapse = self._measure(trainer, pl_module, step, due)
        self._log(trainer, step, metrics | measured)
        counts = [monitor for monitor in due if is_due(step, monitor.every_steps) or step == pl_module.num_steps]
        self._follow_plateau(pl_module, measured, counts)
        is_best = self._follow_best(step, measured, counts)
        self.finished = self._waited_enough(step, counts)
        self._end_if_collapsed(trainer, pl_module, collapse)
        if step % self.keep.save_every == 0 or last or is_best or self.finished:
            self.save(trainer, pl_module)
        if due:
            self._clock = self._now(pl_module)  # so that the speed is that of training alone
        wished = trainer.strategy.reduce_boolean_decision(self.wish.wished, all=False)
        if wished and not last:
            self._interrupt(trainer, pl_module)
        trainer.should_stop = trainer.should_stop or self.finished

    def teardown(self, trainer: Trainer, pl_module: Any, stage: str) -> None:  # noqa: ARG002
        """Close the progress bar and the loggers, however the training ended."""
        if hasattr(self, "progress"):
            self.progress.close()
        for logger in self.loggers:
            logger.finalize("success")

    # -- checkpoints -------------------------------------------------------------------------------

    def save(self, trainer: Trainer, module: Training) -> None:
        """Write a checkpoint of the steps done, unless there is one.

        Raises:
            DivergedError: A loss or a weight is NaN or infinite.
            RunStoppedError: The checkpoint could not be written. Raised on every rank.
        """
        step = module.steps_done
        if self._saved == step:
            return
        self._check_finite(trainer, module)
        optimiser = trainer.optimizers[0]
        tensors = training_tensors(module.objective, optimiser, wanted=self.run.is_writer)
        encoder = _whole_encoder(module.objective)
        state = {
            "plateau": asdict(module.plateau), "best": self.best, "finished": self.finished,
            "precision": trainer.precision_plugin.state_dict(),
            "mathematics": self.mathematics, "versions": versions() | {"torch": str(torch.__version__)},
        }  # fmt: skip

        def write() -> None:
            path = write_checkpoint(self.run.checkpoints, step, tensors, encoder, state)
            publish(path, self.run.path / OWN_FILE)
            keep_only(self.run.checkpoints, self.keep.keep_last, self.best["step"] if self.best else None)

        self._write(trainer, step, write)
        self._saved = step

    def _write(self, trainer: Trainer, step: int, write: Callable[[], None]) -> None:
        """Let the first process write. If it cannot, raise RunStoppedError on every rank."""
        problem = None
        if self.run.is_writer:
            try:
                write()
            except OSError as error:
                problem = str(error)
        problem = trainer.strategy.broadcast(problem)
        if problem is not None:
            raise RunStoppedError(self.run.path, step, problem)

    def _check_finite(self, trainer: Trainer, module: Training) -> None:
        """Raise DivergedError if a loss or a weight is NaN or infinite.

        In half precision the gradient scaler handles overflows, so a loss counts only once its scale is below
        `_LEAST_SCALE`.
        """
        if module.finite is None:
            return
        scaler = getattr(trainer.precision_plugin, "scaler", None)
        if scaler is not None:
            if scaler.get_scale() < _LEAST_SCALE:
                raise DivergedError(self.run.path, module.steps_done, "NaN or infinite at every scale", self._saved)
        elif trainer.strategy.reduce_boolean_decision(not bool(module.finite), all=False):
            raise DivergedError(self.run.path, module.steps_done, "NaN or infinite", self._saved)
        if trainer.strategy.reduce_boolean_decision(not _weights_are_finite(module.objective), all=False):
            raise DivergedError(self.run.path, module.steps_done, "NaN or infinite", self._saved, "a weight")

    def _interrupt(self, trainer: Trainer, module: Training) -> None:
        self.save(trainer, module)
        self.interrupted = True
        trainer.should_stop = True

    def _end_if_collapsed(self, trainer: Trainer, module: Training, collapse: CollapseError | None) -> None:
        if collapse is not None:
            self.save(trainer, module)
            raise collapse

    # -- metrics -----------------------------------------------------------------------------------

    def _measure(
        self, trainer: Trainer, module: Training, step: int, due: Sequence[Monitor]
    ) -> tuple[dict[str, float], CollapseError | None]:
        """Return the averages over ranks of what monitors measured, up to the first collapse that any rank found."""
        metrics: dict[str, float] = {}
        for monitor in due:
            seed_monitor(module.seed, step, trainer.global_rank)
            found: dict[str, float] = {}
            collapse = None
            with _evaluating(module.objective):
                try:
                    found = {name: float(value) for name, value in monitor(module.objective, step).items()}
                except CollapseError as error:
                    collapse = error
            if (collapse := _of_any_rank(trainer, collapse)) is not None:
                return metrics, collapse
            metrics |= _mean_over_ranks(trainer, {f"{monitor.name}/{name}": value for name, value in found.items()})
        return metrics, None

    def _training_metrics(self, trainer: Trainer, module: Training, dataset: str) -> dict[str, float]:
        """Return the metrics of the last step, and speeds since metrics were last logged."""
        self._check_finite(trainer, module)
        parts = {name: float(torch.stack(values).mean()) for name, values in module.parts.items()}
        then, now = self._clock, self._now(module)
        self._clock = now
        seconds = max(now[0] - then[0], 1e-9)
        metrics = {f"train/{name}": value for name, value in parts.items()}
        metrics |= {f"train/{dataset}/{name}": value for name, value in parts.items()}
        metrics["wait_frac"] = (now[1] - then[1]) / seconds
        metrics["tiles_per_s"] = (now[2] - then[2]) / seconds
        metrics = _mean_over_ranks(trainer, metrics)
        metrics["tiles_per_s"] *= trainer.world_size
        assert module.grad_norm is not None, module.steps_done
        return metrics | {"grad_norm": float(module.grad_norm)}

    def _now(self, module: Training) -> tuple[float, float, int]:
        return time.perf_counter(), module.loader.waited_s if module.loader else 0.0, module.num_tiles

    def _log(self, trainer: Trainer, step: int, metrics: Mapping[str, float]) -> None:
        if not metrics:
            return
        self.metrics |= metrics
        self.progress.tell(step, metrics)

        def write() -> None:
            if "csv" in self.keep.loggers:
                write_metrics(self.run.path / METRICS, step, metrics)
            for logger in self.loggers:
                logger.log_metrics(dict(metrics), step=step)

        self._write(trainer, step, write)

    def _check_names(self, module: Training, measured: Iterable[str]) -> None:
        """Check that the metrics that options name were measured before the first step. If not, they are misspelt.

        Raises:
            RecordError: `keep_best` or `plateau_metric` names a metric that was not measured.
        """
        every = list(measured)
        plateau = module.settings.plateau_metric if module.settings.schedule == "plateau" else None
        for option, name in (("keep_best", self.keep.keep_best), ("plateau_metric", plateau)):
            monitor = _monitor_of(name, self.monitors)
            names = [one for one in every if monitor is not None and _monitor_of(one, self.monitors) is monitor]
            if names and name not in names:
                raise RecordError(option, name, f"a metric that is measured: {', '.join(names)}")

    def _value(self, name: str | None, measured: Mapping[str, float], counts: Sequence[Monitor]) -> float | None:
        """Return the value of a metric, if its monitor is in `counts` and a collapse did not come before it.

        Only regular measurements count, so that the end of a session changes nothing.
        """
        monitor = _monitor_of(name, self.monitors)
        if name is None or monitor is None or monitor not in counts:
            return None
        if not any(key.startswith(f"{monitor.name}/") for key in measured):
            return None
        if name not in measured:
            raise RecordError("metric", name, f"one of {', '.join(measured)}")
        return measured[name]

    def _follow_plateau(self, module: Training, measured: Mapping[str, float], counts: Sequence[Monitor]) -> None:
        settings = module.settings
        name = settings.plateau_metric if settings.schedule == "plateau" else None
        if (value := self._value(name, measured, counts)) is not None:
            module.plateau = module.plateau.after(value, settings)

    def _follow_best(self, step: int, measured: Mapping[str, float], counts: Sequence[Monitor]) -> bool:
        """Update the best value of the metric of `keep_best`, and return whether it improved."""
        value = self._value(self.keep.keep_best, measured, counts)
        sign = -1 if self.keep.best_is_highest else 1
        if value is None or math.isnan(value) or (self.best is not None and sign * value >= sign * self.best["value"]):
            return False
        wanted = {"name": self.keep.keep_best, "is_highest": self.keep.best_is_highest}
        self.best = {**wanted, "value": value, "step": step}
        return True

    def _waited_enough(self, step: int, counts: Sequence[Monitor]) -> bool:
        """Whether the metric of `keep_best` has not improved for `patience` measurements."""
        monitor, patience = _monitor_of(self.keep.keep_best, self.monitors), self.keep.patience
        if patience is None or self.best is None or monitor is None or monitor not in counts:
            return False
        if step < self.keep.min_steps:
            return False
        return step // monitor.every_steps - int(self.best["step"]) // monitor.every_steps >= patience


def check_metric(option: str, name: str, monitors: Sequence[Monitor]) -> None:
    """Check that a monitor measures a metric.

    Raises:
        RecordError: No monitor has its prefix.
    """
    if _monitor_of(name, monitors) is None:
        names = ", ".join(f"{monitor.name}/…" for monitor in monitors) or "none: there is no monitor"
        raise RecordError(option, name, f"a metric that is measured ({names})")


def _monitor_of(metric: str | None, monitors: Sequence[Monitor]) -> Monitor | None:
    return next((monitor for monitor in monitors if metric and metric.startswith(f"{monitor.name}/")), None)


@contextlib.contextmanager
def _evaluating(objective: nn.Module) -> Iterator[None]:
    """Put the objective in eval mode, without gradients and with whole weights, and restore all modes afterwards."""
    sharded = [module for module in objective.modules() if isinstance(module, FSDPModule)]
    with evaluating(objective), torch.no_grad():
        if isinstance(objective, FSDPModule):
            objective._get_fsdp_state()._lazy_init()  # otherwise the first block called would be taken for the root
        try:
            for module in sharded:
                module.unshard()
            yield
        finally:
            for module in sharded:
                module.reshard()


def _of_any_rank(trainer: Trainer, error: CollapseError | None) -> CollapseError | None:
    """Return the error of the first rank that has one, on every rank."""
    if trainer.world_size == 1 or not trainer.strategy.reduce_boolean_decision(error is not None, all=False):
        return error
    found: list[CollapseError | None] = [None] * trainer.world_size
    torch.distributed.all_gather_object(found, error)
    return next(one for one in found if one is not None)


def _mean_over_ranks(trainer: Trainer, metrics: Mapping[str, float]) -> dict[str, float]:
    """Return the mean of each metric over the ranks that have it and for which it is not NaN."""
    if trainer.world_size == 1:
        return dict(metrics)
    listed: list[list[str]] = [[] for _ in range(trainer.world_size)]
    torch.distributed.all_gather_object(listed, sorted(metrics))
    names = sorted({name for each in listed for name in each})
    values = torch.tensor([metrics.get(name, math.nan) for name in names], dtype=torch.float64)
    told = ~values.isnan()
    both = torch.stack([values.nan_to_num(nan=0.0, posinf=math.inf, neginf=-math.inf), told.double()])
    both = trainer.strategy.reduce(both.float().to(trainer.strategy.root_device), reduce_op="sum")
    assert isinstance(both, Tensor), type(both)
    return dict(zip(names, (both[0] / both[1]).tolist(), strict=True))


def _weights_are_finite(objective: nn.Module) -> bool:
    """Whether all weights are finite. Of sharded weights, only this process's part is checked."""
    own = (weight.to_local() if isinstance(weight, DTensor) else weight for weight in objective.parameters())
    return all(bool(weight.isfinite().all()) for weight in own)


def _whole_encoder(objective: nn.Module) -> Any:
    """Return the encoder, or a whole copy if it is sharded."""
    encoder: Any = objective.encoder()  # type: ignore[operator]
    if not any(isinstance(module, FSDPModule) for module in objective.modules()):
        return encoder
    whole = type(encoder)(encoder.config, normaliser=encoder.normaliser)
    whole.load_state_dict({name: on_cpu(tensor) for name, tensor in encoder.state_dict().items()})
    whole.provenance = encoder.provenance
    return whole
