"""Options of training: optimiser, devices, and what is kept. Does not import torch, so that help loads quickly."""

from __future__ import annotations

import math
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any, Literal

from anysat.choices import check_choices
from anysat.errors import RecordError

Schedule = Literal["cosine", "constant", "plateau"]
Strategy = Literal["auto", "ddp", "fsdp"]
Precision = Literal["float32", "bf16", "float16"]
Logger = Literal["csv", "tensorboard", "wandb", "mlflow"]


@dataclass(frozen=True, kw_only=True)
class OptimiserConfig:
    """Options of the AdamW optimiser and its learning rate.

    Raises:
        RecordError: A field has a value that is not possible.
    """

    learning_rate: float = 1e-4
    """Highest learning rate."""
    weight_decay: float = 0.05
    """Decoupled weight decay: each step reduces the weights by this times the learning rate."""
    betas: tuple[float, float] = (0.9, 0.999)
    """Decay rates of the running means of the gradients and of their squares."""
    decay_all: bool = False
    """Apply weight decay to norms, biases and tokens, too, as in the published training. False: to weight matrices
    only."""
    schedule: Schedule = "cosine"
    """`cosine` lowers the learning rate to its final value over the run, `constant` keeps it, `plateau` lowers it by a
    factor each time a metric has stopped improving. All start with the warm-up."""
    warmup_steps: int = 0
    """Number of steps over which the learning rate rises linearly."""
    final_learning_rate_frac: float = 0.0
    """Final value of `cosine`, as a fraction of the learning rate."""
    clip_norm: float | None = None
    """Largest norm of the gradient over all weights; longer ones are scaled down. None does not clip."""
    plateau_metric: str = "val/loss"
    """Metric that `plateau` watches each time it is measured; lower is better."""
    plateau_factor: float = 0.1
    """Factor by which `plateau` multiplies the learning rate."""
    plateau_patience: int = 10
    """Number of measurements without improvement that `plateau` tolerates."""

    def __post_init__(self) -> None:
        check_choices(self, "optimiser.")
        object.__setattr__(self, "betas", tuple(self.betas))
        _check(self, "learning_rate", 0 < self.learning_rate < math.inf, "a positive number")
        _check(self, "weight_decay", 0 <= self.weight_decay < math.inf, "0 or more")
        _check(self, "betas", len(self.betas) == 2 and all(0 <= b < 1 for b in self.betas), "two numbers from 0 to 1")
        _check(self, "warmup_steps", self.warmup_steps >= 0, "0 or more")
        _check(self, "final_learning_rate_frac", 0 <= self.final_learning_rate_frac <= 1, "a share, from 0 to 1")
        _check(self, "clip_norm", self.clip_norm is None or 0 < self.clip_norm < math.inf, "a positive number or null")
        _check(self, "plateau_factor", 0 < self.plateau_factor < 1, "a factor between 0 and 1")
        _check(self, "plateau_patience", self.plateau_patience >= 0, "0 or more")


@dataclass(frozen=True, kw_only=True)
class EngineConfig:
    """Devices, precision and processes of a training.

    Raises:
        RecordError: A field has a value that is not possible.
    """

    devices: Literal["auto"] | int = 1
    """Number of processes per node, each with its own GPU if there are GPUs. `auto` uses every GPU."""
    num_nodes: int = 1
    """Number of machines."""
    accelerator: str = "auto"
    """`auto`, `cpu`, `cuda`, or another accelerator that Lightning knows."""
    strategy: Strategy = "auto"
    """How several processes share the work. `ddp` keeps a copy of the weights in each (`auto` with several processes);
    `fsdp` (FSDP2) distributes the weights. `fsdp` has been tested with one process only."""
    precision: Precision = "float32"
    """`bf16` and `float16` compute in half precision where this is safe; weights stay in single precision."""
    accumulate: int = 1
    """Number of micro-batches per step in each process. One process with 2 computes the same as 2 processes with 1."""
    compile: bool = False
    """Compile the blocks with `torch.compile`."""
    num_workers: int = 0
    """Number of data-loading processes for each training process, for training, validation and scores. 0 reads data in
    the training process."""
    threads: int | None = None
    """Number of CPU threads of torch; null does not change it."""
    save_memory: bool = False
    """Update each weight as soon as its gradient is known, so that gradients are not held, and return free memory to
    the system in each step. The result is the same. Needs one process, no `accumulate` and no `clip_norm`."""

    def __post_init__(self) -> None:
        check_choices(self, "engine.")
        _check(self, "devices", self.devices == "auto" or _is_count(self.devices), "a number of processes or 'auto'")
        _check(self, "num_nodes", _is_count(self.num_nodes), "1 or more")
        _check(self, "accumulate", _is_count(self.accumulate), "1 or more")
        _check(self, "num_workers", self.num_workers >= 0, "0 or more")
        _check(self, "threads", self.threads is None or _is_count(self.threads), "1 or more, or null")
        if self.save_memory:
            _check(self, "save_memory", self.accumulate == 1, f"false with accumulate {self.accumulate}")
            _check(self, "save_memory", self.precision != "float16",
                   "false with precision float16, whose scaler needs gradients")  # fmt: skip
            _check(self, "save_memory", self.strategy == "auto", f"false with strategy {self.strategy}")
        if (self.strategy, self.precision) == ("fsdp", "float16"):
            _check(self, "precision", False, "float32 or bf16 with strategy fsdp")


@dataclass(frozen=True, kw_only=True)
class KeepConfig:
    """Checkpoints, metrics and early stopping of a run.

    Raises:
        RecordError: A field has a value that is not possible.
    """

    save_every: int = 1000
    """Number of steps between two checkpoints. A killed run loses at most this many."""
    keep_last: int = 2
    """Number of checkpoints to keep; older ones are deleted."""
    keep_best: str | None = None
    """Metric, such as `val/loss`, whose best checkpoint is also kept; null for none."""
    best_is_highest: bool = False
    """Whether a higher value of that metric is better; by default a lower one is."""
    patience: int | None = None
    """Stop the run after this many measurements of that metric without a better value; null runs to the last step."""
    min_steps: int = 0
    """Number of steps before which `patience` does not stop the run."""
    log_every: int = 10
    """Number of steps between two rows of metrics. There is one whenever something is measured, too, such as after
    each epoch of fine-tuning."""
    loggers: tuple[Logger, ...] = ("csv", "tensorboard")
    """Where metrics are written: `csv` (metrics.csv, from which the report is made), `tensorboard`, and, if installed,
    `wandb` and `mlflow`."""

    def __post_init__(self) -> None:
        check_choices(self, "keep.")
        object.__setattr__(self, "loggers", tuple(self.loggers))
        _check(self, "save_every", _is_count(self.save_every), "1 or more")
        _check(self, "keep_last", _is_count(self.keep_last), "1 or more")
        _check(self, "patience", self.patience is None or _is_count(self.patience), "1 or more, or null")
        _check(self, "patience", self.patience is None or self.keep_best is not None, "null without keep_best")
        _check(self, "min_steps", self.min_steps >= 0, "0 or more")
        _check(self, "log_every", _is_count(self.log_every), "1 or more")
        for name in self.loggers:
            if name in ("wandb", "mlflow") and find_spec(name) is None:
                raise RecordError("loggers", name, f"a logger that is installed (pip install {name})")


def _check(config: Any, name: str, holds: bool, expected: str) -> None:
    if not holds:
        raise RecordError(name, getattr(config, name), expected)


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1
