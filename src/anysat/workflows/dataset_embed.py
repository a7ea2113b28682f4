"""Tile embeddings of a whole dataset in one table, with splits, places and labels: what can be asked for."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from anysat.errors import RecordError, UnknownNameError
from anysat.model.precision import PRECISIONS

if TYPE_CHECKING:
    from anysat.workflows.datasets import Answer


@dataclass(frozen=True, kw_only=True)
class TableConfig:
    """Embed every tile of a dataset into one Parquet table, with split, place and labels, for scikit-learn and others.

    Columns: `id`, `split`, `lon` and `lat` (and `geometry`) where tiles know their place, a column per target of tiles,
    `seen_frac` and `embedding`.
    """

    name: str = field(
        metadata={"positional": "NAME", "help": "Dataset: a name of `anysat datasets list`, a module or a YAML file."}
    )
    path: str = field(metadata={"positional": "PATH", "help": "Its folder, loose or packed."})
    out: str
    """File to write, ending in .parquet. Until it is complete, OUT.partial keeps embeddings, from which the same
    command goes on after an interruption."""
    weights: str = "nano"
    """Encoder: nano, a file, a run folder, or a hub id."""
    split: str = "all"
    """Split to embed: train, val, test or all; members may be joined by `+`, as fold1+fold2."""
    patch_size_m: float | None = None
    """Side of a patch in metres; null for the first of the dataset's."""
    modalities: list[str] = field(default_factory=list)
    """Modalities to look at, as [s2,aerial]; all when not given."""
    statistics: str | None = None
    """JSON file of statistics, or a preset; null takes those of the weights for this dataset, else computes them from
    the training split, as `anysat probe` does."""
    day_convention: str | None = None
    """How day numbers are made from dates, `day_of_year` or `days_since YYYY-MM-DD`; null as the weights were
    trained."""
    device: str = "cpu"
    """Device to compute on: cpu, cuda, cuda:1, mps, or auto, a graphics card where there is one."""
    precision: str = "auto"
    """In what matrices are multiplied: float32, bf16, or auto, bf16 where the device has units for it."""
    workers: int = 2
    """Processes to read with, 0 for none beside this one; the result does not depend on it."""
    overwrite: bool = False
    """Replace OUT."""

    def __post_init__(self) -> None:
        if Path(self.out).suffix != ".parquet":
            raise RecordError("--out", self.out, "a file ending in .parquet")
        if self.patch_size_m is not None and not self.patch_size_m > 0:
            raise RecordError("--patch-size-m", self.patch_size_m, "a length above 0, or null")
        if self.precision not in PRECISIONS:
            raise UnknownNameError("--precision", self.precision, PRECISIONS)
        if self.workers < 0:
            raise RecordError("--workers", self.workers, "0 or more")


def embed_dataset(config: TableConfig) -> Answer:
    """Embed, write, and return what was done.

    Raises:
        OutputExistsError: the table exists and is not to be replaced.
        UnknownNameError, MissingFileError, SourceError: see `open_dataset`.
        InputError: no tile, no patch size, or a target with the name of another column.
        WriteError: it cannot be written; embeddings that are finished are kept.
    """
    from anysat.workflows.dataset_embed_run import run_embed_dataset

    return run_embed_dataset(config)
