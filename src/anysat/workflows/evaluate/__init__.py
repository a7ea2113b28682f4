"""The command that scores a trained run, or compares encoders with simple models."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from anysat.choices import check_choices
from anysat.errors import RecordError
from anysat.geo.write.outputs import Result, check_output
from anysat.model.precision import AnyPrecision
from anysat.workflows.answer import Answer
from anysat.workflows.kept import check_heard
from anysat.workflows.supervised.config import FEWEST_FOLDS, LabelledData


@dataclass(frozen=True, kw_only=True)
class MovedData:
    """The data of the run, if they have moved."""

    root: str | None = None
    """Their folder; null uses that of the run."""


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """Score a trained run again, on any split, beside the paper's figure. With --compare, compare encoders instead."""

    run: str = field(
        metadata={
            "positional": "RUN",
            "expected": "a run to score, or --compare",
            "help": "Run folder of `anysat probe` or `finetune`. In a run over folds, each fold is scored by its own "
            "predictor.",
        }
    )
    split: str = "test"
    """Split to score on. `train`, `val` and `test` are those of the run, other names those of the dataset; join several
    with `+`. Nearest neighbours are not scored on their training tiles."""
    crop_m: float | None = None
    """Predict each tile in five overlapping crops of this side in metres, in the corners and the middle, and average
    their outputs; null predicts whole tiles. For FLAIR, 100 covers the whole photo, as published."""
    data: MovedData = field(default_factory=MovedData)
    block_km: float | None = None
    """Side in kilometres of a block of ground, for tiles with coordinates: intervals resample whole blocks. Null
    resamples tiles."""
    out: str | None = None
    """JSON file to write the scores to."""
    device: str = "cpu"
    """Device for the encoder: cpu, cuda, cuda:1, mps, or auto, which uses a GPU if there is one."""
    precision: AnyPrecision = "float32"
    """Precision of the encoder's matrix products; auto uses bf16 if the device has units for it. float32 gives the same
    scores on every machine."""
    batch_size: int = 8
    """Tiles to predict at a time."""
    num_workers: int = 0
    """Number of processes that read tiles; 0 reads in the main process."""

    def __post_init__(self) -> None:
        check_choices(self)
        if isinstance(self.data, Mapping):
            object.__setattr__(self, "data", MovedData(**self.data))
        if self.batch_size < 1:
            raise RecordError("--batch-size", self.batch_size, "1 or more")
        if self.crop_m is not None:
            check_heard(self, ("batch_size", "num_workers"), "with --crop-m, which answers one tile at a time")
            if not self.crop_m > 0:
                raise RecordError("--crop-m", self.crop_m, "a length above 0")
        _check_shared(self)


@dataclass(frozen=True, kw_only=True)
class CompareConfig:
    """Compare encoders with simple models on one dataset.

    The same models are fitted to statistics of the bands, to their pixels and to embeddings.
    """

    compare: bool = True
    """Compare, instead of scoring a run."""
    data: LabelledData = field(default_factory=LabelledData)
    """The data to compare on."""
    weights: list[str] = field(default_factory=lambda: ["nano"])
    """Encoders to compare: nano, files, run folders or hub ids. `untrained:PATH` is an untrained encoder of the same
    shape, initialised as for the published training; `isometric:PATH` is one initialised as `nano` and the presets of
    the generated world are."""
    features: list[str] = field(default_factory=list)
    """Tables of features to compare, such as embeddings of another system, for targets per tile: NAME=FILE, such as
    [theirs=theirs.parquet]. A Parquet or CSV file with a row per tile: its name in `id`, and a column of vectors or
    columns of numbers. Labels, and columns named fold, split, tile, index, lon, lat and the like, are never features;
    numbers named x or y are refused."""
    against: str = "statistics"
    """Baseline that every other score is compared with, on the same draws: statistics (of the bands), months, series, a
    name of --features, or one of --weights. Its best model counts."""
    patch_sizes_m: list[float] = field(default_factory=list)
    """Patch sizes in metres to compare; if empty, the first one recommended for the dataset."""
    dense: str | None = None
    """Modality whose sub-patches represent the pixels; null chooses as `anysat probe` does."""
    day_convention: str | None = None
    """How dates become day numbers, `day_of_year` or `days_since YYYY-MM-DD`; null does it as the
    weights were trained."""
    statistics: str | None = None
    """JSON file of statistics, or a preset; null uses those of the weights for this dataset, or
    computes them from the training tiles."""
    layers: list[str] = field(default_factory=lambda: ["last"])
    """Layers of the encoders to compare: `last`; `fusion.N`, the tokens after N blocks of the fusion transformer; or
    `spatial.N`, the mean over modalities of the tokens after N blocks of the spatial transformer."""
    models: list[str] = field(default_factory=lambda: ["logistic", "neighbours", "forest", "boosting"])
    """Models fitted to each feature set, all tuned in the same way on the validation split. For values, `logistic` is a
    ridge regression, and is called `ridge`."""
    max_pixels: int = 20_000
    """Largest number of labelled pixels per split (with folds: of all tiles together) to fit and score models on: an
    equal number from each tile, drawn at random."""
    folds: int | None = None
    """Cross-validate over this many folds of whole blocks of ground, with the tiles of all splits
    together; intervals are over blocks. Needs coordinates. Null uses the splits as they are, or --data.folds."""
    block_km: float | None = None
    """Side in kilometres of a block of ground, for tiles with coordinates. Intervals resample whole blocks instead of
    tiles, and --folds never separates tiles of one block. Null is 10 with --folds; without, intervals are over
    tiles."""
    seed: int = 0
    """Seed of all random draws."""
    cache: str | None = None
    """Folder for embeddings; null uses the cache of the package."""
    out: str | None = None
    """JSON file to write the scores to."""
    device: str = "cpu"
    """Device for the encoder: cpu, cuda, cuda:1, mps, or auto, which uses a GPU if there is one."""
    precision: AnyPrecision = "float32"
    """Precision of the encoder's matrix products; auto uses bf16 if the device has units for it. float32 gives the same
    scores on every machine."""
    num_workers: int = 0
    """Number of processes that read tiles; 0 reads in the main process."""

    def __post_init__(self) -> None:
        check_choices(self)
        if not self.compare:
            raise RecordError("--compare", self.compare, "true, or RUN without it")
        if isinstance(self.data, Mapping):
            object.__setattr__(self, "data", LabelledData(**self.data))
        self.data.check_heard()
        if len(self.tables) < len(self.features):
            raise RecordError("--features", self.features, "NAME=FILE, each name once, such as theirs=theirs.parquet")
        if not self.layers:
            raise RecordError("--layers", self.layers, "at least one, such as last")
        if self.max_pixels < 1:
            raise RecordError("--max-pixels", self.max_pixels, "1 or more")
        if self.folds is not None and self.folds < 3:
            raise RecordError("--folds", self.folds, FEWEST_FOLDS)
        if self.data.train_frac < 1 and (self.folds is not None or self.data.folds):
            raise RecordError("--data.train-frac", self.data.train_frac, "1 with folds, where every tile is scored")
        _check_shared(self)

    @property
    def tables(self) -> dict[str, Path]:
        """The files of `features` by name."""
        pairs = [word.partition("=") for word in self.features]
        return {name: Path(file) for name, _, file in pairs if name and file}


def _check_shared(config: EvaluateConfig | CompareConfig) -> None:
    if config.num_workers < 0:
        raise RecordError("--num-workers", config.num_workers, "0 or more")
    if config.block_km is not None and not config.block_km > 0:
        raise RecordError("--block-km", config.block_km, "a length above 0")
    if config.out is not None:
        check_output("--out", config.out, Result.FIGURES)


def evaluate(config: EvaluateConfig) -> Answer:
    """Score a run.

    Raises:
        MissingFileError, WeightsError: There is no such run.
        WriteError: The folder of `out` cannot be created.
    """
    from anysat.workflows.evaluate.run import evaluate_run

    _make_folder(config.out)
    return evaluate_run(config)


def compare(config: CompareConfig) -> Answer:
    """Fit every model to every feature set, and score them.

    Raises:
        WriteError: The folder of `out` cannot be created.
    """
    from anysat.workflows.evaluate.comparison import compare

    _make_folder(config.out)
    return compare(config)


def _make_folder(out: str | None) -> None:
    """Create the folder of a file, so that hours of work do not end in an error."""
    from anysat.geo.claims import make_folder

    if out is not None:
        make_folder(Path(out).parent)
