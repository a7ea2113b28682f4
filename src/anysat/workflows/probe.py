"""The command that probes a frozen encoder: a small head on its embeddings."""

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
    """Options to start from, such as world-land-cover, which needs no files, or pastis, an experiment of the paper."""
    out: str | None = None
    """Run folder; load it with `anysat.load_task`."""
    resume: bool = False
    """Continue the run in that folder; existing embeddings are not computed again."""
    weights: str = "nano"
    """Encoder: nano, a file, a run folder or a hub id."""
    data: LabelledData = field(default_factory=LabelledData)
    patch_sizes_m: list[float] = field(default_factory=list)
    """Patch sizes in metres; the outputs of several are averaged. If empty, the first one recommended for the
    dataset."""
    dense: str | None = None
    """Modality whose sub-patches are classified, for a target per pixel. Null chooses among the modalities that most
    tiles have: the one with the finest sub-patches that are not finer than the target's pixels, else the finest. The
    choice is printed."""
    head: str | None = None
    """Kind of head. For a target per tile: tile (the tile embedding), pooled (the mean of the patches) or both. For a
    target per pixel: dense, patches or conv. Null uses `both` and `dense`."""
    method: Method = "linear"
    """`linear` trains a head. `knn` trains nothing: it uses the nearest training tiles or, for a target per pixel, the
    nearest sub-patches, of which up to 20,000 are kept in the predictor."""
    learning_rates: list[float] = field(default_factory=lambda: [3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1])
    """Learning rates to try, each with every weight decay; all are trained at once, and the best on the validation
    split is kept."""
    weight_decays: list[float] = field(default_factory=lambda: [0.0, 0.1])
    """Weight decays to try with each learning rate."""
    epochs: int = 50
    """Largest number of passes over the training tiles."""
    patience: int | None = 15
    """Stop after this many epochs without a better validation score, counted from the first score; null never does."""
    min_epochs: int = 0
    """Epochs to train before patience can end the run."""
    monitor: str | None = None
    """Validation score that selects settings and epoch, such as accuracy or f1_macro; null uses the task's own."""
    schedule: Schedule = "cosine"
    """`cosine` lowers the learning rate to 0 over all epochs; `plateau` divides it by ten each time the validation loss
    has not fallen for 10 epochs."""
    warmup_epochs: int | None = None
    """Epochs of warm-up before `cosine`; null is a tenth of the epochs."""
    clip_norm: float | None = 1.0
    """Largest norm of the gradient, above which it is clipped; null does not clip."""
    batch_size: int = 32
    """Tiles per step."""
    class_weights: ClassWeights = "none"
    """`balanced` gives all classes the same weight in the loss."""
    void_output: bool = False
    """Add an output for pixels or tiles without a label, as in the published heads."""
    day_convention: str | None = None
    """How dates become day numbers, `day_of_year` or `days_since YYYY-MM-DD`; null does it as the weights were
    trained."""
    statistics: str | None = None
    """JSON file of statistics, or a preset; null uses those of the weights for this dataset, or computes them from the
    training split."""
    block_km: float | None = None
    """Side in kilometres of a block of ground, for tiles with coordinates: confidence intervals resample whole blocks.
    Null resamples tiles."""
    num_neighbours: list[int] = field(default_factory=lambda: [1, 3, 10, 30, 100])
    """For `knn`: numbers of neighbours to try; the best on the validation split is kept."""
    seed: int = 0
    """Seed of all random draws."""
    cache: str | None = None
    """Folder for embeddings; null uses one in the run folder."""
    device: str = "cpu"
    """Device for the encoder: cpu, cuda, cuda:1, mps, or auto, which uses a GPU if there is one."""
    precision: str = "float32"
    """Precision of the encoder's matrix products: float32, bf16, or auto, which uses bf16 if the device has units for
    it. float32 gives the same scores on every machine."""
    num_workers: int = 0
    """Number of processes that read tiles; 0 reads in the main process."""
    report: bool = True
    """Write an HTML page, report.html."""

    MAY_CHANGE: ClassVar[frozenset[str]] = frozenset(
        {"preset", "out", "resume", "root", "cache", "device", "num_workers", "report", "block_km"}
    )
    """Options that may differ in another session of a run."""

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
            raise RecordError(name, self.head or self.class_weights, "the default, with --method knn")
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
        if not self.resume:  # an existing run may have been started when these were accepted
            self.data.check_heard()
            self._check_heard()

    def _check_heard(self) -> None:
        """Check that no options are given that the method does not use."""
        from_preset = preset_config("probe", self.preset)
        if self.method == "knn":
            check_heard(self, _OF_TRAINING, "with --method knn, which trains nothing", from_preset)
        else:
            check_heard(self, ("num_neighbours",), f"with --method {self.method}, which has none", from_preset)

    @staticmethod
    def starting_point(given: Mapping[str, Any]) -> dict[str, Any]:
        """Return the options that given ones replace: those of the preset, or of the run to resume.

        Raises:
            UnknownNameError: There is no such preset.
        """
        from anysat.workflows.task_presets import PROBES

        if given.get("preset") is None:
            return kept_options(given)
        if given["preset"] not in PROBES:
            raise UnknownNameError("preset", given["preset"], PROBES)
        return asdict(PROBES[given["preset"]]())

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for YAML, as stored in the run folder.

        `resume` is always False, because it is not of the run.
        """
        return asdict(self) | {"resume": False}


def probe(config: ProbeConfig) -> Answer:
    """Embed, train, choose on the validation split, and score on the test split.

    The run folder then holds a `Predictor` and its scores.

    Raises:
        InputError: The run folder or the data are not given.
        RunExistsError: There is a run in the folder, and `resume` is False.
        RecordError: The run was started with other options.
    """
    if config.out is None:
        raise InputError("--out", "a folder for the run", "none")
    from anysat.workflows.probe_run import run_probe

    out = Path(config.out)
    if config.data.folds is not None:
        from anysat.workflows.folds import run_folds

        return run_folds(config, out, config.resume, run_probe)
    return run_probe(config, out, config.resume)
