"""Options of `anysat datasets predict`, which applies a trained run to the tiles of a dataset."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from anysat.choices import check_choices
from anysat.errors import RecordError
from anysat.geo.write.outputs import Result, named
from anysat.model.precision import AnyPrecision

if TYPE_CHECKING:
    from anysat.workflows.answer import Answer


@dataclass(frozen=True, kw_only=True)
class TilesConfig:
    """Predict the tiles of a dataset with a trained run, and write a row or a raster for each tile.

    Columns of a table: `id`, `split`, the label if there is one, `lon`, `lat`, `geometry`, `predicted`, and for classes
    their `probabilities`.
    """

    run: str = field(
        metadata={"positional": "RUN", "help": "Run folder of `anysat probe` or `finetune`, or its predictor file."}
    )
    name: str = field(
        metadata={"positional": "NAME", "help": "Dataset: a name from `anysat datasets list`, a module or a YAML file."}
    )
    path: str = field(metadata={"positional": "PATH", "help": "Its folder, loose or packed."})
    out: str = field(
        metadata={
            "help": f"Output. For a target per tile, a table {named(Result.TILES)}; for a target per pixel, a folder "
            "with a raster per tile and the table `tiles.parquet`."
        }
    )
    """Table or folder to write."""
    split: str = "all"
    """Split to predict: train, val, test or all. Join members with `+`, for example fold1+fold2."""
    labels: bool = True
    """Also write the labels of the tiles. False does not read labels, for example because their files are missing."""
    probabilities: bool = False
    """For a target per pixel: also write the probability of every class. Other tables always hold them."""
    device: str = "cpu"
    """Device to compute on: cpu, cuda, cuda:1, mps, or auto (a GPU if there is one)."""
    precision: AnyPrecision | None = None
    """Precision of matrix products; auto uses bf16 if the device has units for it. Null uses that with which the run
    was scored."""
    batch_size: int = 8
    """Number of tiles to predict at a time. The scores of a run are computed with 8; with another number, predictions
    may differ in the last digits. Small tiles, such as pixel series, are several times faster with 256."""
    num_workers: int = 2
    """Number of processes that read tiles; 0 reads in the main process. The result does not depend on it."""
    overwrite: bool = False
    """Replace OUT."""

    def __post_init__(self) -> None:
        check_choices(self)
        if self.batch_size < 1:
            raise RecordError("--batch-size", self.batch_size, "1 or more")
        if self.num_workers < 0:
            raise RecordError("--num-workers", self.num_workers, "0 or more")


def predict_dataset(config: TilesConfig) -> Answer:
    """Predict, write the output and return a report.

    Raises:
        MissingFileError, WeightsError: There is no such run, or it is not finished.
        OutputExistsError: The output exists, and `overwrite` is False.
        UnknownNameError, MissingFileError, SourceError: See `open_dataset`.
        InputError: There is no tile, the tiles lack the run's modalities, or their labels do not fit the run's target.
            Or another process is writing the same output.
        RecordError: An option does not fit the run's target, or the target has the name of another column.
        WriteError: The output cannot be written. Nothing is left behind.
    """
    from anysat.geo.claims import alone_at
    from anysat.workflows.datasets.predict.run import run_predict_dataset

    with alone_at(Path(config.out)):
        return run_predict_dataset(config)
