"""Probes: a frozen encoder's embeddings, and a small head trained on them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal, get_args

from anysat.errors import InputError, RecordError, UnknownNameError
from anysat.model.precision import PRECISIONS
from anysat.workflows.answer import Answer
from anysat.workflows.kept import check_heard, kept_options, preset_config
from anysat.workflows.supervised import LabelledData

Method = Literal["linear", "knn"]
Schedule = Literal["cosine", "plateau"]
ClassWeights = Literal["none", "balanced"]
_OF_TRAINING = (
    "learning_rates", "weight_decays", "epochs", "patience", "min_epochs", "schedule", "warmup_epochs", "clip_norm",
    "batch_size", "void_output",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class ProbeConfig:
    """Train a head on the embeddings of a frozen encoder, and score it on the test split.

    `--preset NAME` or `--config FILE` gives all of it; what else is given replaces single options.
    """

    preset: str | None = None
    """Options to begin with, such as world-land-cover, which needs no files, or pastis, an experiment of the paper."""
    out: str | None = None
    """Run folder; `anysat.load_task` takes it."""
    resume: bool = False
    """Go on in that folder: embeddings that are there are not computed again."""
    weights: str = "nano"
    """Encoder: nano, a file, a run folder, or a hub id."""
    data: LabelledData = field(default_factory=LabelledData)
    patch_sizes_m: list[float] = field(default_factory=list)
    """Patch sizes in metres; outputs of several are averaged. Empty: the first of the dataset's that fits."""
    dense: str | None = None
    """Modality whose sub-patches are classified, for a target of pixels; null takes, of those that most tiles hold, the
    one with the finest sub-patches that are no finer than the target's pixels, else the finest; it is told which."""
    head: str | None = None
    """tile, pooled or both (tile token, mean of the patches, both) for a target of tiles; dense, patches or conv for
    one of pixels; null for `both` and `dense`."""
    method: Method = "linear"
    """`linear` trains the head; `knn` trains nothing: it asks the nearest training tiles, or sub-patches for a target
    of pixels, up to 20,000 of which are kept in the predictor."""
    learning_rates: list[float] = field(default_factory=lambda: [3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1])
    """Each is tried with each weight decay, all at once; the best on the validation split is kept."""
    weight_decays: list[float] = field(default_factory=lambda: [0.0, 0.1])
    """See learning_rates."""
    epochs: int = 50
    """Most passes over the training tiles."""
    patience: int | None = 15
    """Epochs without a better validation score after which it ends, once there is a score; null for none."""
    min_epochs: int = 0
    """Epochs before which patience ends nothing."""
    monitor: str | None = None
    """Validation score, as accuracy or f1_macro, by which settings and epochs are chosen; null for the task's own."""
    schedule: Schedule = "cosine"
    """`cosine` falls to 0 over all epochs; `plateau` falls by ten when the validation loss has not become lower for 10
    epochs."""
    warmup_epochs: int | None = None
    """Epochs over which the learning rate of `cosine` rises first; null for a tenth of them."""
    clip_norm: float | None = 1.0
    """Longest gradient; null does not clip."""
    batch_size: int = 32
    """Tiles per step."""
    class_weights: ClassWeights = "none"
    """`balanced` gives all classes the same weight in the loss."""
    void_output: bool = False
    """One output more, of what has no label, as in the published heads."""
    day_convention: str | None = None
    """How day numbers are made from dates, `day_of_year` or `days_since YYYY-MM-DD`; null as the weights were
    trained."""
    statistics: str | None = None
    """JSON file of statistics, or a preset; null takes those of the weights for this dataset, else computes them from
    the training split."""
    block_km: float | None = None
    """Side of a block of ground, where tiles have coordinates: intervals draw whole blocks. Null for tiles."""
    num_neighbours: list[int] = field(default_factory=lambda: [1, 3, 10, 30, 100])
    """Of knn; each is tried, and the best on the validation split is kept."""
    seed: int = 0
    """Of everything that is drawn."""
    cache: str | None = None
    """Folder of embeddings; null for one in the run folder."""
    device: str = "cpu"
    """Device the encoder computes on: cpu, cuda, cuda:1, mps, or auto, a graphics card where there is one."""
    precision: str = "float32"
    """In what the encoder's matrices are multiplied: float32, bf16, or auto, bf16 where the device has units for it.
    float32 gives the same figures on every machine."""
    num_workers: int = 0
    """Processes that read tiles."""
    report: bool = True
    """Write a page, report.html."""

    MAY_CHANGE: ClassVar[frozenset[str]] = frozenset(
        {"preset", "out", "resume", "root", "cache", "device", "num_workers", "report", "block_km"}
    )
    """Options that another session of a run may have otherwise."""

    def __post_init__(self) -> None:
        if isinstance(self.data, Mapping):
            object.__setattr__(self, "data", LabelledData(**self.data))
        choices = {"method": Method, "class_weights": ClassWeights, "schedule": Schedule}
        for name, known in ((name, get_args(choice)) for name, choice in choices.items()):
            if getattr(self, name) not in known:
                raise RecordError(f"--{name.replace('_', '-')}", getattr(self, name), f"one of {', '.join(known)}")
        for name in ("epochs", "batch_size"):
            if getattr(self, name) < 1:
                raise RecordError(f"--{name.replace('_', '-')}", getattr(self, name), "1 or more")
        if self.block_km is not None and not self.block_km > 0:
            raise RecordError("--block-km", self.block_km, "a length above 0, or null")
        if self.precision not in PRECISIONS:
            raise UnknownNameError("--precision", self.precision, PRECISIONS)
        if self.seed < 0:
            raise RecordError("--seed", self.seed, "0 or more")
        if self.patience is not None and self.patience < 1:
            raise RecordError("--patience", self.patience, "1 or more, or null")
        if not self.num_neighbours or min(self.num_neighbours) < 1:
            raise RecordError("--num-neighbours", self.num_neighbours, "at least one, each 1 or more")
        if self.method == "knn" and (self.head is not None or self.class_weights != "none"):
            name = "--head" if self.head is not None else "--class-weights"
            raise RecordError(name, self.head or self.class_weights, "what is the default, with --method knn")
        for name in ("min_epochs", "warmup_epochs"):
            if (getattr(self, name) or 0) < 0:
                raise RecordError(f"--{name.replace('_', '-')}", getattr(self, name), "0 or more")
        if self.clip_norm is not None and not self.clip_norm > 0:
            raise RecordError("--clip-norm", self.clip_norm, "a number above 0, or null")
        if self.schedule == "plateau" and self.warmup_epochs is not None:
            raise RecordError("--warmup-epochs", self.warmup_epochs, "null with --schedule plateau, which has none")
        for name in ("learning_rates", "weight_decays"):
            values = getattr(self, name)
            if not values or any(value < 0 or (name == "learning_rates" and value == 0) for value in values):
                raise RecordError(f"--{name.replace('_', '-')}", values, "at least one, none negative")
        if not self.resume:  # a run may have been begun when these were accepted
            self.data.check_heard()
            self._check_heard()

    def _check_heard(self) -> None:
        """Refuse options that the method does not hear."""
        from_preset = preset_config("probe", self.preset)
        if self.method == "knn":
            check_heard(self, _OF_TRAINING, "with --method knn, which trains nothing", from_preset)
        else:
            check_heard(self, ("num_neighbours",), f"with --method {self.method}, which asks none", from_preset)

    @staticmethod
    def starting_point(given: Mapping[str, Any]) -> dict[str, Any]:
        """Plain options of the preset that was asked for; where a run is gone on with, those that it was begun with.

        Raises:
            UnknownNameError: no such preset.
        """
        from anysat.workflows.task_presets import PROBES

        if given.get("preset") is None:
            return kept_options(given)
        if given["preset"] not in PROBES:
            raise UnknownNameError("preset", given["preset"], PROBES)
        return asdict(PROBES[given["preset"]]())

    def to_dict(self) -> dict[str, Any]:
        """Plain values for YAML, as kept in the run folder; whether it was gone on with is nothing of the run."""
        return asdict(self) | {"resume": False}


def probe(config: ProbeConfig) -> Answer:
    """Embed, train, choose on the validation split, score on the test split; leaves a `Predictor` and the scores.

    Raises:
        InputError: no run folder, no data.
        RunExistsError: there is a run in the folder and --resume is not given.
        RecordError: the run was begun with other options.
    """
    if config.out is None:
        raise InputError("--out", "a folder for the run", "none")
    from anysat.workflows.probe_run import run_probe

    out = Path(config.out)
    if config.data.folds is not None:
        from anysat.workflows.folds import run_folds

        return run_folds(config, out, config.resume, run_probe)
    return run_probe(config, out, config.resume)
