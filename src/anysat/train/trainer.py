"""The training loop `fit`, on Lightning's Trainer, which trains an objective in a run folder and can resume."""

from __future__ import annotations

import contextlib
import json
import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from lightning.fabric.utilities.rank_zero import rank_zero_only
from lightning.fabric.utilities.warnings import PossibleUserWarning
from lightning.pytorch import Trainer
from lightning.pytorch.loggers import Logger
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy, Strategy
from torch import Tensor, nn

from anysat.errors import RecordError
from anysat.model.checkpoint import OWN_FILE
from anysat.model.config import ModelConfig
from anysat.train.checkpoints import Checkpoint, clear_away, newest_checkpoint, publish
from anysat.train.config import EngineConfig, KeepConfig, OptimiserConfig
from anysat.train.keeper import Keeper, check_metric
from anysat.train.memory import memory_kept
from anysat.train.metrics import METRICS, cut_metrics
from anysat.train.module import Plateau, Training
from anysat.train.objective import Monitor, SourceFactory, blocks_of
from anysat.train.run import RunFolder, check_same
from anysat.train.signals import handlers_put_back
from anysat.train.tensors import load_objective

_log = logging.getLogger(__name__)
_PRECISIONS: dict[str, Any] = {"float32": "32-true", "bf16": "bf16-mixed", "float16": "16-mixed"}
"""Lightning's names."""


@dataclass(frozen=True, kw_only=True)
class Fitted:
    """The outcome of `fit`."""

    steps: int
    """Number of steps done, including those of earlier sessions."""
    num_steps: int
    """Number of steps of the whole training."""
    interrupted: bool = False
    """Whether a signal stopped it."""
    finished: bool = False
    """Whether it ended before the last step because there was no improvement (`KeepConfig.patience`)."""
    metrics: Mapping[str, float] = field(default_factory=dict)
    """The last value of each metric in this session."""

    @property
    def stopped_early(self) -> bool:
        """Whether steps are left to do."""
        return self.steps < self.num_steps and not self.finished

    @property
    def exit_status(self) -> int:
        """Exit status of the command: 130 after a signal, else 0."""
        return 130 if self.interrupted else 0


def fit(
    objective: nn.Module, sources: SourceFactory, *, optimiser: OptimiserConfig, engine: EngineConfig,
    keep: KeepConfig, seed: int, num_steps: int, run: RunFolder, max_steps: int | None = None,
    monitors: Sequence[Monitor] = (),
) -> Fitted:  # fmt: skip
    """Train an objective, from the newest checkpoint of the run if there is one, otherwise from step 0.

    The result depends only on the options and the seed, not on the number of sessions or workers, nor, except for
    rounding, on the number of processes. `model.safetensors`, `checkpoints/` and the metrics are written to the run
    folder.

    Args:
        objective: The objective, see `Objective`. It is trained in place.
        sources: Makes the source of batches, see `SourceFactory`.
        optimiser: Options of AdamW and the learning rate.
        engine: Devices, precision and accumulation.
        keep: Checkpoints and metrics.
        seed: Seed of masks, dates, dropout and everything else that an objective draws.
        num_steps: Number of optimiser steps of the whole training, for which the schedules are made.
        run: The run folder from `open_run`, which decides whether a run may be resumed.
        max_steps: Stop after this many steps, including those of earlier sessions. The schedules do not change.
        monitors: What is measured during training.

    Returns:
        How the training ended.

    Raises:
        RecordError: The checkpoint was made with other options or another model, or an option is not possible.
        WeightsError: The tensors of the checkpoint do not fit the objective.
        RunStoppedError: A file could not be written, for example because the disk is full. The last checkpoint is kept.
        DivergedError: The loss became NaN or infinite.
        CollapseError: A monitor found that the embeddings collapsed.
    """
    _check(optimiser, engine, keep, num_steps, max_steps, monitors)
    if engine.threads is not None:
        torch.set_num_threads(engine.threads)
    found = newest_checkpoint(run.checkpoints)
    state: Mapping[str, Any] = {} if found is None else found.state
    start = 0 if found is None else found.step
    stop = num_steps if max_steps is None else min(max_steps, num_steps)
    mathematics = {
        "optimiser": asdict(optimiser), "seed": seed, "num_steps": num_steps,
        "precision": _PRECISIONS[engine.precision].split("-")[0],
        "micro_batches_per_step": micro_batches_per_step(engine),
    }  # fmt: skip
    tensors: dict[str, Tensor] = {}
    if found is not None:
        check_same(str(found.path), state["mathematics"], json.loads(json.dumps(mathematics)))
        _check_model(found, objective)
        tensors = found.tensors()
        load_objective(objective, tensors, found.path)
    if run.is_writer:
        clear_away(run.checkpoints, start)
        cut_metrics(run.path / METRICS, start if found else -1)
        if found is not None:
            publish(found.path, run.path / OWN_FILE)
    if start >= stop or state.get("finished"):
        return Fitted(steps=start, num_steps=num_steps, finished=bool(state.get("finished")))
    objective.train()
    for part in blocks_of(objective) if engine.compile else ():
        part.compile()
    training = Training(
        objective, sources, optimiser=optimiser, engine=engine, seed=seed, num_steps=num_steps, start=start, stop=stop,
        moments=tensors, plateau=Plateau(**state.get("plateau", {})),
    )  # fmt: skip
    keeper = Keeper(run, keep, monitors, _loggers(run, keep, start), mathematics, state)
    kept = contextlib.nullcontext() if engine.save_memory else memory_kept()
    with _quiet_lightning(), handlers_put_back(), kept, _as_keyboard_interrupt(), _first_if_alone(engine):
        try:
            _trainer(engine, run, keeper).fit(training)
        finally:
            training.let_go()
    return Fitted(
        steps=training.steps_done, num_steps=num_steps, interrupted=keeper.interrupted, finished=keeper.finished,
        metrics=keeper.metrics,
    )  # fmt: skip


def _check(
    optimiser: OptimiserConfig, engine: EngineConfig, keep: KeepConfig, num_steps: int, max_steps: int | None,
    monitors: Sequence[Monitor],
) -> None:  # fmt: skip
    if num_steps < 1:
        raise RecordError("num_steps", num_steps, "1 or more")
    if max_steps is not None and max_steps < 1:
        raise RecordError("max_steps", max_steps, "1 or more, or null")
    if engine.precision == "float16" and not _uses_cuda(engine):
        raise RecordError("precision", engine.precision, "float32 or bf16 on a CPU")
    if engine.save_memory and num_processes(engine) > 1:
        raise RecordError("save_memory", True, f"false with {num_processes(engine)} processes")
    if engine.save_memory and optimiser.clip_norm is not None:
        raise RecordError("save_memory", True, "false with clip_norm, which needs all gradients at once")
    if optimiser.warmup_steps >= num_steps:
        _log.warning(
            "the learning rate only rises: %d warm-up steps in a training of %d", optimiser.warmup_steps, num_steps
        )
    if optimiser.schedule == "plateau":
        check_metric("plateau_metric", optimiser.plateau_metric, monitors)
    if keep.keep_best is not None:
        check_metric("keep_best", keep.keep_best, monitors)


def _check_model(found: Checkpoint, objective: Any) -> None:
    """Check that the encoder has the configuration of the checkpoint, including the records of its modalities.

    Raises:
        RecordError: A field differs. The message names all that do.
    """
    old, new = found.encoder().config, objective.encoder().config
    assert old is not None, found.path
    check_same(str(found.path), {"model": _learned(old)}, {"model": _learned(new)}, _WORDS)


_WORDS = ("sensor", "wavelength_nm", "polarisation", "common_name")
"""Descriptive fields of modalities and bands, which may change because training does not depend on them."""


def _learned(config: ModelConfig) -> dict[str, Any]:
    """Return a model's options after a round trip through JSON, with modalities by key."""
    plain = json.loads(json.dumps(config.to_dict()))
    return plain | {"modalities": {modality["key"]: modality for modality in plain["modalities"]}}


def _trainer(engine: EngineConfig, run: RunFolder, keeper: Keeper) -> Trainer:
    return Trainer(
        accelerator=engine.accelerator, devices=_num_devices(engine), num_nodes=engine.num_nodes,
        strategy=_strategy(engine), precision=_PRECISIONS[engine.precision], accumulate_grad_batches=engine.accumulate,
        plugins=_Alone() if num_processes(engine) == 1 else None, callbacks=[keeper], max_epochs=1,
        default_root_dir=run.path, logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, use_distributed_sampler=False,
    )  # fmt: skip


class _Alone(LightningEnvironment):
    """Environment of a single process, which ignores what a launcher such as `srun -n 4` says about other processes."""

    def local_rank(self) -> int:
        """Return 0, the rank of the only process."""
        return 0

    def node_rank(self) -> int:
        """Return 0, the rank of the only node."""
        return 0


def _strategy(engine: EngineConfig) -> Strategy | str:
    if engine.strategy == "fsdp":
        return ModelParallelStrategy(data_parallel_size=num_processes(engine), tensor_parallel_size=1)
    if engine.strategy == "ddp" or num_processes(engine) > 1:
        return DDPStrategy(find_unused_parameters=True)  # a step's dataset does not have every modality
    return "auto"


def _uses_cuda(engine: EngineConfig) -> bool:
    return engine.accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available()


def device_of(engine: EngineConfig) -> torch.device:
    """Return the device for what this process computes after training, which leaves the objective on the CPU."""
    return torch.device("cuda" if _uses_cuda(engine) else "cpu")


def micro_batches_per_step(engine: EngineConfig) -> int:
    """Return the number of micro-batches per step of all processes together."""
    return num_processes(engine) * engine.accumulate


def num_processes(engine: EngineConfig) -> int:
    """Return the number of processes that train together, on all machines."""
    return _num_devices(engine) * engine.num_nodes


def _num_devices(engine: EngineConfig) -> int:
    if engine.devices == "auto":
        return torch.cuda.device_count() if _uses_cuda(engine) else 1
    return engine.devices


def _loggers(run: RunFolder, keep: KeepConfig, start: int) -> list[Logger]:
    if not run.is_writer:
        return []
    made: list[Logger] = []
    if "tensorboard" in keep.loggers:
        from lightning.pytorch.loggers import TensorBoardLogger

        made.append(TensorBoardLogger(run.path, name="tensorboard", version="", purge_step=start + 1))
    if "wandb" in keep.loggers:
        from lightning.pytorch.loggers import WandbLogger

        made.append(WandbLogger(name=run.path.name, project="anysat", save_dir=run.path))
    if "mlflow" in keep.loggers:
        from lightning.pytorch.loggers import MLFlowLogger

        made.append(MLFlowLogger(experiment_name="anysat", run_name=run.path.name, save_dir=str(run.path / "mlflow")))
    return made


@contextlib.contextmanager
def _quiet_lightning() -> Iterator[None]:
    """Silence Lightning's messages, which are about options that users of this package do not have."""
    log = logging.getLogger("lightning.pytorch")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".*LeafSpec", FutureWarning)  # of torch 2.13, caused by Lightning 2.6
            warnings.filterwarnings("ignore", category=PossibleUserWarning)
            yield
    finally:
        log.setLevel(level)


@contextlib.contextmanager
def _first_if_alone(engine: EngineConfig) -> Iterator[None]:
    """Make a single process rank 0, because Lightning's loggers use the rank that any launcher has set."""
    shared: Any = rank_zero_only
    rank = getattr(shared, "rank", None)
    shared.rank = 0 if num_processes(engine) == 1 else rank
    try:
        yield
    finally:
        shared.rank = rank


@contextlib.contextmanager
def _as_keyboard_interrupt() -> Iterator[None]:
    """Raise KeyboardInterrupt on Ctrl-C, which Lightning turns into SystemExit."""
    try:
        yield
    except SystemExit as exit_:
        if isinstance(exit_.__context__, KeyboardInterrupt):
            raise KeyboardInterrupt from exit_
        raise
