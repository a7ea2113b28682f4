"""Scores of what a run has learnt, beside the paper's; or of simple models and encoders side by side."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from anysat.errors import InputError, RecordError, UnknownNameError
from anysat.model.precision import PRECISIONS
from anysat.workflows.answer import Answer
from anysat.workflows.kept import check_heard
from anysat.workflows.supervised import LabelledData

BLOCK_KM = 10.0
"""Side of a block of folds, where none is given."""
_OF_COMPARISONS = (
    "weights", "patch_sizes_m", "dense", "day_convention", "statistics", "layers", "models", "max_pixels", "folds",
    "seed", "cache",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """Score a probe or fine-tuning run again, on any split; or compare encoders with simple models on one dataset.

    `anysat evaluate --run RUN` reads the run's data and prints its scores beside the paper's figure. `anysat evaluate
    --compare --data.dataset NAME …` fits the same models to statistics of the bands, to their pixels and to embeddings.
    """

    run: str | None = None
    """Run folder of `anysat probe` or `finetune`; of a run over folds, each is scored by its own predictor."""
    compare: bool = False
    """Compare feature sets and models on --data instead."""
    split: str = "test"
    """Split to score a run on: `train`, `val` and `test` are those of the run, others those of the dataset; members may
    be joined by `+`."""
    crop_m: float | None = None
    """Answer each tile of a run by five overlapping crops of this side, in its corners and its middle, and average
    their outputs; null for whole tiles. Of FLAIR, 100 covers the whole photo, as published."""
    data: LabelledData = field(default_factory=LabelledData)
    """Of a comparison; of a run only `root` counts, where the data have moved."""
    weights: list[str] = field(default_factory=lambda: ["nano"])
    """Encoders to compare: nano, files, run folders, hub ids. `untrained:PATH` for new weights of the same shape as the
    published training begins with them, `isometric:PATH` as `nano` and the generated world's presets do."""
    patch_sizes_m: list[float] = field(default_factory=list)
    """Patch sizes in metres to compare; empty for the first of the dataset's."""
    dense: str | None = None
    """Of a comparison: modality whose sub-patches stand for pixels; null chooses as `anysat probe` does."""
    day_convention: str | None = None
    """Of a comparison: how day numbers are made from dates, `day_of_year` or `days_since YYYY-MM-DD`; null as the
    weights were trained."""
    statistics: str | None = None
    """Of a comparison: JSON file of statistics, or a preset; null takes those of the weights for this dataset, else
    computes them from the training tiles."""
    layers: list[str] = field(default_factory=lambda: ["last"])
    """Layers of the encoders to compare: `last`; `fusion.N`, the tokens after N blocks of the fusion transformer; or
    `spatial.N`, each modality by itself after N blocks of the spatial transformer, mean over modalities."""
    models: list[str] = field(default_factory=lambda: ["logistic", "neighbours", "forest", "boosting"])
    """Models fitted to each feature set, all tuned alike on the validation split; `logistic` is a ridge regression of
    values, and called `ridge` there."""
    max_pixels: int = 20_000
    """Most labelled pixels of each split, of a comparison over folds of all tiles, that models are fitted to and scored
    on: as many from each tile, drawn from the seed."""
    folds: int | None = None
    """Of a comparison: cross-validate over so many folds of whole blocks of ground, all tiles of the splits together;
    intervals are over blocks. Needs coordinates; null for the splits as they are, or for --data.folds."""
    block_km: float | None = None
    """Side of a block of ground, where tiles have coordinates: intervals draw whole blocks instead of tiles, and of
    `folds` neighbours in one block are never on two sides. Null for 10 with `folds`, and for tiles without."""
    seed: int = 0
    """Of everything that is drawn in a comparison."""
    cache: str | None = None
    """Of a comparison: folder of embeddings; null for one in the cache of the package."""
    json: str | None = None
    """File for the figures."""
    device: str = "cpu"
    """Device the encoder computes on: cpu, cuda, cuda:1, mps, or auto, a graphics card where there is one."""
    precision: str = "float32"
    """In what the encoder's matrices are multiplied: float32, bf16, or auto, bf16 where the device has units for it.
    float32 gives the same figures on every machine."""
    batch_size: int = 8
    """Tiles of a run at a time."""

    def __post_init__(self) -> None:
        if isinstance(self.data, Mapping):
            object.__setattr__(self, "data", LabelledData(**self.data))
        if not self.layers:
            raise RecordError("--layers", self.layers, "at least one, such as last")
        for name in ("batch_size", "max_pixels"):
            if getattr(self, name) < 1:
                raise RecordError(f"--{name.replace('_', '-')}", getattr(self, name), "1 or more")
        if self.precision not in PRECISIONS:
            raise UnknownNameError("--precision", self.precision, PRECISIONS)
        if self.folds is not None and self.folds < 3:
            raise RecordError("--folds", self.folds, "3 or more, for one chooses and one is scored, or null")
        if self.compare and self.split != "test":
            raise RecordError("--split", self.split, "test in a comparison; name another in --data.test")
        if self.compare and self.data.train_frac < 1 and (self.folds is not None or self.data.folds):
            raise RecordError("--data.train-frac", self.data.train_frac, "1 with folds, in which every tile is scored")
        if self.run is not None and not self.compare:
            self._check_of_run()
        if self.compare:
            self.data.check_heard()
            check_heard(self, ("batch_size",), "with --compare, which reads a file of tiles at a time")
        if self.crop_m is not None:
            check_heard(self, ("batch_size",), "with --crop-m, which answers one tile at a time")
        if self.crop_m is not None and (self.compare or not self.crop_m > 0):
            raise RecordError("--crop-m", self.crop_m, "a length above 0, with --run")
        if self.block_km is not None and not self.block_km > 0:
            raise RecordError("--block-km", self.block_km, "a length above 0")
        if self.json is not None and Path(self.json).suffix != ".json":
            raise RecordError("--json", self.json, "a name ending in .json")

    def _check_of_run(self) -> None:
        """A run is scored as it is: refuse what would ask for something else, and would not be heard."""
        usual, data = EvaluateConfig(compare=True), LabelledData()
        given = [(name, getattr(self, name), getattr(usual, name)) for name in _OF_COMPARISONS]
        given += [(f"data.{name}", value, getattr(data, name)) for name, value in vars(self.data).items()]
        for name, value, default in given:
            if value != default and name != "data.root":
                raise RecordError(f"--{name.replace('_', '-')}", value, "nothing with --run, whose own options count")


def evaluate(config: EvaluateConfig) -> Answer:
    """Score a run, or compare.

    Raises:
        InputError: neither a run nor a comparison is asked for, or both.
        MissingFileError, WeightsError: there is no such run.
        WriteError: the folder of --json cannot be made.
    """
    if (config.run is not None) == config.compare:
        raise InputError("evaluate", "either --run RUN or --compare", "both" if config.compare else "neither")
    if config.json is not None:  # before hours of work, not after
        from anysat.data.work import make_folder

        make_folder(Path(config.json).parent)
    if config.compare:
        from anysat.workflows.compare import compare

        return compare(config)
    from anysat.workflows.evaluate_run import evaluate_run

    return evaluate_run(config)
