"""The command that fine-tunes an encoder, or parts of it, with a head on labelled tiles."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal, get_args

from anysat.errors import InputError, RecordError, UnknownNameError
from anysat.train.config import EngineConfig, KeepConfig, OptimiserConfig
from anysat.workflows.answer import Answer
from anysat.workflows.kept import check_heard, kept_options, preset_config
from anysat.workflows.pretrain import ModelOptions
from anysat.workflows.probe import ClassWeights
from anysat.workflows.supervised import LabelledData

Trained = Literal["head", "projectors", "lora", "all"]


@dataclass(frozen=True, kw_only=True)
class FinetuneConfig:
    """Train an encoder and a head on labelled tiles, and score them on the test split.

    `--preset NAME` or `--config FILE` gives all of it; what else is given replaces single options.
    """

    preset: str | None = None
    """Options to start from, such as world-land-cover, which needs no files, or pastis, an experiment of the paper."""
    out: str | None = None
    """Run folder; load it with `anysat.load_task`."""
    resume: bool = False
    """Continue the run in that folder, from the start if it has no checkpoint."""
    max_steps: int | None = None
    """Stop after this many steps in total, including those of earlier sessions. Schedules do not change."""
    weights: str | None = "nano"
    """Encoder to start from: nano, a file, a run folder or a hub id; null is a new one with the shape in --model."""
    trained: Trained = "all"
    """What to train besides the head: `head`, nothing; `projectors`, the layers that turn pixels into tokens (for new
    sensors); `lora`, low-rank additions to the transformers; `all`, everything."""
    data: LabelledData = field(default_factory=LabelledData)
    patch_sizes_m: list[float] = field(default_factory=list)
    """Patch sizes in metres. One is drawn for each step; predictions are averaged over all. If empty, the first one
    recommended for the dataset."""
    dense: str | None = None
    """Modality whose sub-patches are classified, for a target per pixel; null chooses as `anysat probe` does."""
    head: str | None = None
    """Kind of head: tile, pooled or both for a target per tile; dense, patches or conv for a target per pixel. Null
    uses `both` and `dense`."""
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
    class_weights: ClassWeights = "none"
    """`balanced` gives all classes the same weight in the loss."""
    void_output: bool = False
    """Add an output for pixels or tiles without a label, as in the published heads."""
    cut_at_random: bool = True
    """Cut photos that are larger than a tile (FLAIR, TreeSatAI) at a random place; packed photos are already cut."""
    turns_and_flips: bool = True
    """Rotate and flip each training tile at random, in one of the 8 ways a square fits on itself."""
    keep_dates_frac: float = 1.0
    """Share of the dates of each series that a training step sees, drawn anew each time."""
    day_convention: str | None = None
    """How dates become day numbers, `day_of_year` or `days_since YYYY-MM-DD`; null does it as the weights were
    trained."""
    statistics: str | None = None
    """JSON file of statistics, or a preset; null uses those of the weights for this dataset, or computes them from the
    training split."""
    block_km: float | None = None
    """Side in kilometres of a block of ground, for tiles with coordinates: confidence intervals resample whole blocks.
    Null resamples tiles."""
    seed: int = 0
    """Seed of all random draws."""
    model: ModelOptions = field(default_factory=ModelOptions)
    """Shape of a new encoder, used if --weights is null."""
    optimiser: OptimiserConfig = field(default_factory=lambda: OptimiserConfig(learning_rate=3e-4, clip_norm=1.0))
    engine: EngineConfig = field(default_factory=EngineConfig)
    patience: int | None = 10
    """Stop after this many epochs without a better validation score; null never does."""
    min_epochs: int = 0
    """Epochs to train before patience can end the run."""
    monitor: str | None = None
    """Validation score that selects the best weights, such as accuracy or f1_macro; null uses the task's own."""
    keep: KeepConfig = field(default_factory=lambda: KeepConfig(save_every=100))
    report: bool = True
    """Write an HTML page, report.html."""

    MAY_CHANGE: ClassVar[frozenset[str]] = frozenset(
        {"preset", "out", "resume", "max_steps", "root", "report", "block_km"}
    )
    """Options that may differ in another session of a run, besides those of the engine."""

    def __post_init__(self) -> None:
        if isinstance(self.data, Mapping):
            object.__setattr__(self, "data", LabelledData(**self.data))
        if self.trained not in get_args(Trained):
            raise RecordError("--trained", self.trained, f"one of {', '.join(get_args(Trained))}")
        if self.class_weights not in get_args(ClassWeights):
            raise RecordError("--class-weights", self.class_weights, f"one of {', '.join(get_args(ClassWeights))}")
        for name in ("epochs", "batch_size", "lora_rank"):
            if getattr(self, name) < 1:
                raise RecordError(f"--{name.replace('_', '-')}", getattr(self, name), "1 or more")
        for name in ("patience", "max_steps"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise RecordError(f"--{name.replace('_', '-')}", getattr(self, name), "1 or more, or null")
        for name in ("layer_decay", "keep_dates_frac"):
            if not 0 < getattr(self, name) <= 1:
                raise RecordError(f"--{name.replace('_', '-')}", getattr(self, name), "a share above 0, up to 1")
        if self.pixel_dropout_prob is not None and not 0 <= self.pixel_dropout_prob < 1:
            raise RecordError("--pixel-dropout-prob", self.pixel_dropout_prob, "a probability below 1, or null")
        if self.block_km is not None and not self.block_km > 0:
            raise RecordError("--block-km", self.block_km, "a length above 0, or null")
        for name in ("min_epochs", "warmup_epochs"):
            if getattr(self, name) < 0:
                raise RecordError(f"--{name.replace('_', '-')}", getattr(self, name), "0 or more")
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
        if self.seed < 0:
            raise RecordError("--seed", self.seed, "0 or more")
        if not self.resume:  # an existing run may have been started when these were accepted
            self.data.check_heard()
            self._check_heard()

    def _check_heard(self) -> None:
        """Check that no options are given for parts that are not trained."""
        from_preset = preset_config("finetune", self.preset)
        if self.trained == "head":
            check_heard(self, ("layer_decay",), "with --trained head, which trains no blocks", from_preset)
        if self.trained in ("head", "lora"):
            why = f"with --trained {self.trained}, which trains no projectors"
            check_heard(self, ("pixel_dropout_prob",), why, from_preset)
        if self.trained != "lora":
            check_heard(self, ("lora_rank",), f"with --trained {self.trained}, which has no additions", from_preset)

    @staticmethod
    def starting_point(given: Mapping[str, Any]) -> dict[str, Any]:
        """Return the options that given ones replace: those of the preset, or of the run to resume.

        Raises:
            UnknownNameError: There is no such preset.
        """
        from anysat.workflows.task_presets import FINETUNES

        if given.get("preset") is None:
            return kept_options(given)
        if given["preset"] not in FINETUNES:
            raise UnknownNameError("preset", given["preset"], FINETUNES)
        return asdict(FINETUNES[given["preset"]]())

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for YAML, as stored in the run folder.

        `resume` is always False, because it is not of the run.
        """
        return asdict(self) | {"resume": False}


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
    from anysat.workflows.finetune_run import run_finetuning

    out = Path(config.out)
    if config.data.folds is not None:
        if (config.engine.devices, config.engine.num_nodes) != (1, 1):
            got = f"{config.engine.devices} devices on {config.engine.num_nodes} nodes"
            raise InputError(
                "--data.folds", "one process", got, "run each fold with --data.train, --data.val, --data.test"
            )
        from anysat.workflows.folds import run_folds

        return run_folds(config, out, config.resume, run_finetuning)
    return run_finetuning(config, out, config.resume)
