"""The command that fine-tunes an encoder, or parts of it, with a head on labelled tiles."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

from anysat.errors import InputError, RecordError
from anysat.train.config import EngineConfig, KeepConfig, OptimiserConfig
from anysat.workflows.answer import Answer
from anysat.workflows.kept import check_heard
from anysat.workflows.pretrain import ModelOptions
from anysat.workflows.supervised.config import SupervisedConfig

Trained = Literal["head", "projectors", "lora", "all"]


@dataclass(frozen=True, kw_only=True)
class FinetuneConfig(SupervisedConfig):
    """Train an encoder and a head on labelled tiles, and score them on the test split.

    `--preset NAME` or `--config FILE` gives all of it; what else is given replaces single options.
    """

    resume: bool = False
    """Continue the run in that folder, from the start if it has no checkpoint."""
    max_steps: int | None = None
    """Stop after this many steps in total, including those of earlier sessions. Schedules do not change."""
    weights: str | None = "nano"
    """Encoder to start from: nano, a file, a run folder or a hub id; null is a new one with the shape in --model."""
    trained: Trained = "all"
    """What to train besides the head: `head`, nothing; `projectors`, the layers that turn pixels into tokens (for new
    sensors); `lora`, low-rank additions to the transformers; `all`, everything."""
    patch_sizes_m: list[float] = field(default_factory=list)
    """Patch sizes in metres. One is drawn for each step; predictions are averaged over all. If empty, the first one
    recommended for the dataset."""
    epochs: int = 50
    """Passes over the training tiles, of at least one step each; schedules are based on them."""
    warmup_epochs: int = 0
    """Epochs of learning-rate warm-up, in place of --optimiser.warmup-steps."""
    batch_size: int = 16
    """Tiles in a micro-batch of one process."""
    layer_decay: float = 1.0
    """Factor by which the learning rate falls from each block to the one below it; 1 for none. Projectors that the
    weights lack learn at the full rate."""
    pixel_dropout_prob: float | None = None
    """Dropout in the projectors of series during training; null keeps that of the weights."""
    lora_rank: int = 8
    """Rank of the additions of `lora`. Weight decay applies to them only with --optimiser.decay-all."""
    cut_at_random: bool = True
    """Cut photos that are larger than a tile (FLAIR, TreeSatAI) at a random place; packed photos are already cut."""
    turns_and_flips: bool = True
    """Rotate and flip each training tile at random, in one of the 8 ways a square fits on itself."""
    keep_dates_frac: float = 1.0
    """Share of the dates of each series that a training step sees, drawn anew each time."""
    model: ModelOptions = field(default_factory=ModelOptions)
    """Shape of a new encoder, used if --weights is null."""
    optimiser: OptimiserConfig = field(default_factory=lambda: OptimiserConfig(learning_rate=3e-4, clip_norm=1.0))
    engine: EngineConfig = field(default_factory=EngineConfig)
    patience: int | None = 10
    """Stop after this many epochs without a better validation score; null never does."""
    keep: KeepConfig = field(default_factory=lambda: KeepConfig(save_every=100))
    COMMAND: ClassVar[str] = "finetune"
    MAY_CHANGE: ClassVar[frozenset[str]] = frozenset(
        {"preset", "out", "resume", "max_steps", "root", "report", "block_km"}
    )
    """Options that may differ in another session of a run, besides those of the engine."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, least in (("lora_rank", 1), ("warmup_epochs", 0)):
            if getattr(self, name) < least:
                raise RecordError(f"--{name.replace('_', '-')}", getattr(self, name), f"{least} or more")
        if self.max_steps is not None and self.max_steps < 1:
            raise RecordError("--max-steps", self.max_steps, "1 or more, or null")
        for name in ("layer_decay", "keep_dates_frac"):
            if not 0 < getattr(self, name) <= 1:
                raise RecordError(f"--{name.replace('_', '-')}", getattr(self, name), "a share above 0, up to 1")
        if self.pixel_dropout_prob is not None and not 0 <= self.pixel_dropout_prob < 1:
            raise RecordError("--pixel-dropout-prob", self.pixel_dropout_prob, "a probability below 1, or null")
        for name, instead in (("keep_best", "monitor"), ("best_is_highest", "monitor"), ("patience", "patience"),
                              ("min_steps", "min-epochs")):  # fmt: skip
            if getattr(self.keep, name) != getattr(KeepConfig(), name):
                raise RecordError(f"--keep.{name.replace('_', '-')}", getattr(self.keep, name), f"--{instead} instead")
        if self.engine.strategy == "fsdp":
            raise RecordError("--engine.strategy", "fsdp", "auto or ddp: the best weights are kept unsharded")
        if self.warmup_epochs and self.optimiser.warmup_steps:
            raise RecordError("--warmup-epochs", self.warmup_epochs, "0 if --optimiser.warmup-steps is given")
        if not self.resume and self.weights is not None and self.model != ModelOptions():
            raise RecordError("--model", "a shape", f"--weights null with it: {self.weights} has its own shape")

    @classmethod
    def presets(cls) -> Mapping[str, Callable[[], FinetuneConfig]]:
        """Return the presets of the command by name."""
        from anysat.workflows.finetune.presets import PRESETS

        return PRESETS

    def _check_heard(self, preset: Any) -> None:
        if self.trained == "head":
            check_heard(self, ("layer_decay",), "with --trained head, which trains no blocks", preset)
        if self.trained in ("head", "lora"):
            why = f"with --trained {self.trained}, which trains no projectors"
            check_heard(self, ("pixel_dropout_prob",), why, preset)
        if self.trained != "lora":
            check_heard(self, ("lora_rank",), f"with --trained {self.trained}, which has no additions", preset)


def finetune(config: FinetuneConfig) -> Answer:
    """Train, keep the best weights on the validation split, and score them on the test split.

    The run folder then holds a `Predictor` and its scores.

    Raises:
        InputError: The run folder or the data are not given.
        RunExistsError: There is a run in the folder, and `resume` is False.
        RecordError: The run was started with other options.
        RunStoppedError, DivergedError: The run ended early. The last checkpoint, if there is one, is kept.
    """
    if config.out is None:
        raise InputError("--out", "a folder for the run", "none")
    runs = config.runs()
    if list(runs) != [""] and (config.engine.devices, config.engine.num_nodes) != (1, 1):
        got = f"{config.engine.devices} devices on {config.engine.num_nodes} nodes"
        raise InputError(
            "--folds, --data.folds, --repeats", "one process", got,
            "run each with its own --seed, --data.train, --data.val, --data.test",
        )  # fmt: skip
    from anysat.workflows.finetune.run import run_finetuning
    from anysat.workflows.supervised.folds import run_all

    return run_all(config, Path(config.out), config.resume, run_finetuning)
