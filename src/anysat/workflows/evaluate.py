"""The command that scores a trained run, or compares encoders with simple models."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from anysat.errors import InputError, RecordError, UnknownNameError
from anysat.geo.outputs import Result, check_output
from anysat.model.precision import PRECISIONS
from anysat.workflows.answer import Answer
from anysat.workflows.kept import check_heard
from anysat.workflows.supervised import FEWEST_FOLDS, LabelledData

_OF_COMPARISONS = (
    "weights", "patch_sizes_m", "dense", "day_convention", "statistics", "layers", "models", "max_pixels", "folds",
    "seed", "cache",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """Score a trained run again, on any split; or compare encoders with simple models on one dataset.

    `anysat evaluate --run RUN` reads the run's data and prints its scores beside the paper's figure. `anysat evaluate
    --compare --data.dataset NAME …` fits the same models to statistics of the bands, to their pixels and to embeddings.
    """

    run: str | None = None
    """Run folder of `anysat probe` or `finetune`. In a run over folds, each fold is scored by its own predictor."""
    compare: bool = False
    """Instead of scoring a run, compare feature sets and models on --data."""
    split: str = "test"
    """Split to score a run on. `train`, `val` and `test` are those of the run, other names those of the dataset; join
    several with `+`."""
    crop_m: float | None = None
    """Predict each tile of a run in five overlapping crops of this side in metres, in the corners and the middle, and
    average their outputs; null predicts whole tiles. For FLAIR, 100 covers the whole photo, as published."""
    data: LabelledData = field(default_factory=LabelledData)
    """The data to compare on. With --run, only `root` is used, for data that have moved."""
    weights: list[str] = field(default_factory=lambda: ["nano"])
    """Encoders to compare: nano, files, run folders or hub ids. `untrained:PATH` is an untrained encoder of the same
    shape, initialised as for the published training; `isometric:PATH` is one initialised as `nano` and the presets of
    the generated world are."""
    patch_sizes_m: list[float] = field(default_factory=list)
    """Patch sizes in metres to compare; if empty, the first one recommended for the dataset."""
    dense: str | None = None
    """In a comparison: modality whose sub-patches represent the pixels; null chooses as `anysat probe` does."""
    day_convention: str | None = None
    """In a comparison: how dates become day numbers, `day_of_year` or `days_since YYYY-MM-DD`; null does it as the
    weights were trained."""
    statistics: str | None = None
    """In a comparison: JSON file of statistics, or a preset; null uses those of the weights for this dataset, or
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
    """In a comparison: cross-validate over this many folds of whole blocks of ground, with the tiles of all splits
    together; intervals are over blocks. Needs coordinates. Null uses the splits as they are, or --data.folds."""
    block_km: float | None = None
    """Side in kilometres of a block of ground, for tiles with coordinates. Intervals resample whole blocks instead of
    tiles, and --folds never separates tiles of one block. Null is 10 with --folds; without, intervals are over
    tiles."""
    seed: int = 0
    """Seed of all random draws in a comparison."""
    cache: str | None = None
    """In a comparison: folder for embeddings; null uses the cache of the package."""
    json: str | None = None
    """JSON file to write the scores to."""
    device: str = "cpu"
    """Device for the encoder: cpu, cuda, cuda:1, mps, or auto, which uses a GPU if there is one."""
    precision: str = "float32"
    """Precision of the encoder's matrix products: float32, bf16, or auto, which uses bf16 if the device has units for
    it. float32 gives the same scores on every machine."""
    batch_size: int = 8
    """Tiles of a run to predict at a time."""
    num_workers: int = 0
    """Number of processes that read tiles; 0 reads in the main process."""

    def __post_init__(self) -> None:
        if isinstance(self.data, Mapping):
            object.__setattr__(self, "data", LabelledData(**self.data))
        if not self.layers:
            raise RecordError("--layers", self.layers, "at least one, such as last")
        for name in ("batch_size", "max_pixels"):
            if getattr(self, name) < 1:
                raise RecordError(f"--{name.replace('_', '-')}", getattr(self, name), "1 or more")
        if self.num_workers < 0:
            raise RecordError("--num-workers", self.num_workers, "0 or more")
        if self.precision not in PRECISIONS:
            raise UnknownNameError("--precision", self.precision, PRECISIONS)
        if self.folds is not None and self.folds < 3:
            raise RecordError("--folds", self.folds, FEWEST_FOLDS)
        if self.compare and self.split != "test":
            raise RecordError("--split", self.split, "test in a comparison; set --data.test to score another")
        if self.compare and self.data.train_frac < 1 and (self.folds is not None or self.data.folds):
            raise RecordError("--data.train-frac", self.data.train_frac, "1 with folds, where every tile is scored")
        if self.run is not None and not self.compare:
            self._check_of_run()
        if self.compare:
            self.data.check_heard()
            check_heard(self, ("batch_size",), "with --compare, which reads a file of tiles at a time")
        if self.crop_m is not None:
            check_heard(self, ("batch_size", "num_workers"), "with --crop-m, which answers one tile at a time")
        if self.crop_m is not None and (self.compare or not self.crop_m > 0):
            raise RecordError("--crop-m", self.crop_m, "a length above 0, with --run")
        if self.block_km is not None and not self.block_km > 0:
            raise RecordError("--block-km", self.block_km, "a length above 0")
        if self.json is not None:
            check_output("--json", self.json, Result.FIGURES)

    def _check_of_run(self) -> None:
        """Raise RecordError for options of comparisons, which have no effect on a run that is scored."""
        usual, data = EvaluateConfig(compare=True), LabelledData()
        given = [(name, getattr(self, name), getattr(usual, name)) for name in _OF_COMPARISONS]
        given += [(f"data.{name}", value, getattr(data, name)) for name, value in vars(self.data).items()]
        for name, value, default in given:
            if value != default and name != "data.root":
                raise RecordError(f"--{name.replace('_', '-')}", value, "no value with --run, which has its own")


def evaluate(config: EvaluateConfig) -> Answer:
    """Score a run, or compare.

    Raises:
        InputError: Neither `run` nor `compare` is given, or both.
        MissingFileError, WeightsError: There is no such run.
        WriteError: The folder of `json` cannot be created.
    """
    if (config.run is not None) == config.compare:
        raise InputError("evaluate", "either --run RUN or --compare", "both" if config.compare else "neither")
    if config.json is not None:  # fails before hours of work, not after
        from anysat.geo.claims import make_folder

        make_folder(Path(config.json).parent)
    if config.compare:
        from anysat.workflows.compare import compare

        return compare(config)
    from anysat.workflows.evaluate_run import evaluate_run

    return evaluate_run(config)
