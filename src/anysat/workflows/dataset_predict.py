"""Options of `anysat datasets predict`: what a trained run says of the tiles of a dataset, with splits and labels."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from anysat.errors import RecordError, UnknownNameError
from anysat.model.precision import PRECISIONS

if TYPE_CHECKING:
    from anysat.workflows.answer import Answer


@dataclass(frozen=True, kw_only=True)
class TilesConfig:
    """Apply a trained probe or fine-tuned model to the tiles of a dataset: one row per tile, or one raster.

    Columns: `id`, `split`, the label if there is one, `lon`, `lat` and `geometry`, and `predicted`, with the
    `probabilities` of the classes.
    """

    run: str = field(
        metadata={"positional": "RUN", "help": "Run folder of `anysat probe` or `finetune`, or its predictor file."}
    )
    name: str = field(
        metadata={"positional": "NAME", "help": "Dataset: a name from `anysat datasets list`, a module or a YAML file."}
    )
    path: str = field(metadata={"positional": "PATH", "help": "Its folder, loose or packed."})
    out: str
    """Output. For a target per tile: a file, NAME.parquet. For a target per pixel: a folder, with a raster per tile and
    the table `tiles.parquet`."""
    split: str = "all"
    """Split to predict: train, val, test or all; members may be joined by `+`, as fold1+fold2."""
    labels: bool = True
    """Also write the labels that tiles have. False does not read them, for tiles whose labels are missing."""
    probabilities: bool = False
    """For a target per pixel: also write the probability of every class. Tables of tiles always hold it."""
    device: str = "cpu"
    """Device to compute on: cpu, cuda, cuda:1, mps, or auto, a graphics card where there is one."""
    precision: str | None = None
    """In what matrices are multiplied: float32, bf16, or auto, bf16 where the device has units for it. Null does it as
    the run was scored."""
    batch_size: int = 8
    """Tiles to predict at a time. The scores of a run are computed from 8 at a time; others may differ from them in the
    last digits. Small tiles, such as pixel series, are several times faster with 256."""
    workers: int = 2
    """Number of reading processes, 0 to read in this one; the result does not depend on it."""
    overwrite: bool = False
    """Replace OUT."""

    def __post_init__(self) -> None:
        if self.precision is not None and self.precision not in PRECISIONS:
            raise UnknownNameError("--precision", self.precision, PRECISIONS)
        if self.batch_size < 1:
            raise RecordError("--batch-size", self.batch_size, "1 or more")
        if self.workers < 0:
            raise RecordError("--workers", self.workers, "0 or more")


def predict_dataset(config: TilesConfig) -> Answer:
    """Predict, write and return a report.

    Raises:
        MissingFileError, WeightsError: There is no such run, or it is not finished.
        OutputExistsError: The output exists and is not to be replaced.
        UnknownNameError, MissingFileError, SourceError: See `open_dataset`.
        InputError: There is no tile, the tiles lack what the run looks at, or their labels are not those it knows.
        RecordError: An option does not fit the run's target; or the target has the name of another column.
        WriteError: The output cannot be written; nothing is left behind.
    """
    from anysat.workflows.dataset_predict_run import run_predict_dataset

    return run_predict_dataset(config)
