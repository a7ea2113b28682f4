"""The command that probes a frozen encoder: a small head on its embeddings."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

from anysat.errors import InputError, RecordError
from anysat.model.precision import AnyPrecision
from anysat.workflows.answer import Answer
from anysat.workflows.kept import check_heard
from anysat.workflows.supervised.config import SupervisedConfig

Method = Literal["linear", "knn"]
Schedule = Literal["cosine", "plateau"]
_OF_TRAINING = (
    "learning_rates", "weight_decays", "epochs", "patience", "min_epochs", "schedule", "warmup_epochs", "clip_norm",
    "batch_size", "void_output",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class ProbeConfig(SupervisedConfig):
    """Train a head on the embeddings of a frozen encoder, and score it on the test split.

    `--preset NAME` or `--config FILE` gives all of it; what else is given replaces single options.
    """

    resume: bool = False
    """Continue the run in that folder; existing embeddings are not computed again."""
    weights: str = "nano"
    """Encoder: nano, a file, a run folder or a hub id."""
    patch_sizes_m: list[float] = field(default_factory=list)
    """Patch sizes in metres; the outputs of several are averaged. If empty, the first one recommended for the
    dataset."""
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
    schedule: Schedule = "cosine"
    """`cosine` lowers the learning rate to 0 over all epochs; `plateau` divides it by ten each time the validation loss
    has not fallen for 10 epochs."""
    warmup_epochs: int | None = None
    """Epochs of warm-up before `cosine`; null is a tenth of the epochs."""
    clip_norm: float | None = 1.0
    """Largest norm of the gradient, above which it is clipped; null does not clip."""
    batch_size: int = 32
    """Tiles per step."""
    num_neighbours: list[int] = field(default_factory=lambda: [1, 3, 10, 30, 100])
    """For `knn`: numbers of neighbours to try; the best on the validation split is kept."""
    cache: str | None = None
    """Folder for embeddings; null uses one in the run folder."""
    device: str = "cpu"
    """Device for the encoder: cpu, cuda, cuda:1, mps, or auto, which uses a GPU if there is one."""
    precision: AnyPrecision = "float32"
    """Precision of the encoder's matrix products; auto uses bf16 if the device has units for it. float32 gives the same
    scores on every machine."""
    num_workers: int = 0
    """Number of processes that read tiles; 0 reads in the main process."""
    COMMAND: ClassVar[str] = "probe"
    MAY_CHANGE: ClassVar[frozenset[str]] = frozenset(
        {"preset", "out", "resume", "root", "cache", "device", "num_workers", "report", "block_km"}
    )
    """Options that may differ in another session of a run."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.num_neighbours or min(self.num_neighbours) < 1:
            raise RecordError("--num-neighbours", self.num_neighbours, "at least one, each 1 or more")
        if self.method == "knn" and (self.head is not None or self.class_weights != "none"):
            name = "--head" if self.head is not None else "--class-weights"
            raise RecordError(name, self.head or self.class_weights, "the default, with --method knn")
        if self.warmup_epochs is not None and self.warmup_epochs < 0:
            raise RecordError("--warmup-epochs", self.warmup_epochs, "0 or more")
        if self.clip_norm is not None and not self.clip_norm > 0:
            raise RecordError("--clip-norm", self.clip_norm, "a number above 0, or null")
        if self.schedule == "plateau" and self.warmup_epochs is not None:
            raise RecordError("--warmup-epochs", self.warmup_epochs, "null with --schedule plateau, which has none")
        for name in ("learning_rates", "weight_decays"):
            values = getattr(self, name)
            if not values or any(value < 0 or (name == "learning_rates" and value == 0) for value in values):
                raise RecordError(f"--{name.replace('_', '-')}", values, "at least one, none negative")

    @classmethod
    def presets(cls) -> Mapping[str, Callable[[], ProbeConfig]]:
        """Return the presets of the command by name."""
        from anysat.workflows.probe.presets import PRESETS

        return PRESETS

    def _check_heard(self, preset: Any) -> None:
        if self.method == "knn":
            check_heard(self, _OF_TRAINING, "with --method knn, which trains nothing", preset)
        else:
            check_heard(self, ("num_neighbours",), f"with --method {self.method}, which has none", preset)


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
    from anysat.workflows.probe.run import run_probes

    return run_probes(config, Path(config.out), config.resume)
