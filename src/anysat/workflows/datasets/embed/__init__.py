"""Options of `anysat datasets embed`: tile embeddings of a whole dataset in one table, with splits and labels."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from anysat.choices import check_choices
from anysat.errors import RecordError
from anysat.geo.write.outputs import Result, check_output, named
from anysat.model.precision import AnyPrecision

if TYPE_CHECKING:
    from anysat.workflows.answer import Answer


@dataclass(frozen=True, kw_only=True)
class TableConfig:
    """Embed all tiles of a dataset into one Parquet table with splits, places and labels, for example for scikit-learn.

    Columns: `id`, `split`, the labels of targets per tile, `lon`, `lat` and `geometry` if places are known, `seen_frac`
    and `embedding`.
    """

    name: str = field(
        metadata={"positional": "NAME", "help": "Dataset: a name from `anysat datasets list`, a module or a YAML file."}
    )
    path: str = field(metadata={"positional": "PATH", "help": "Its folder, loose or packed."})
    out: str = field(
        metadata={
            "help": f"Table to write: {named(Result.TILES)}. After an interruption, the same command continues from "
            "OUT.partial."
        }
    )
    """Table to write."""
    weights: str = "nano"
    """Encoder: nano, a file, a run folder, or a hub id."""
    split: str = "all"
    """Split to embed: train, val, test or all; join several with `+`, such as fold1+fold2."""
    patch_size_m: float | None = None
    """Side of a patch in metres; null uses the dataset's first."""
    modalities: list[str] = field(default_factory=list)
    """Modalities to use, such as [s2,aerial]; all if not given."""
    statistics: str | None = None
    """JSON file of statistics, or a preset; null uses those of the weights for this dataset, or computes them from the
    training split."""
    day_convention: str | None = None
    """How dates become day numbers, `day_of_year` or `days_since YYYY-MM-DD`; null does it as the weights were
    trained."""
    device: str = "cpu"
    """Device to compute on: cpu, cuda, cuda:1, mps, or auto, which uses a GPU if there is one."""
    precision: AnyPrecision = "auto"
    """Precision of matrix products; auto uses bf16 if the device has units for it."""
    num_workers: int = 2
    """Number of processes that read tiles; 0 reads in the main process. The result does not depend on it."""
    overwrite: bool = False
    """Replace OUT, if it is a table of embeddings."""

    def __post_init__(self) -> None:
        check_choices(self)
        check_output("--out", self.out, Result.TILES)
        if self.patch_size_m is not None and not self.patch_size_m > 0:
            raise RecordError("--patch-size-m", self.patch_size_m, "a length above 0, or null")
        if self.num_workers < 0:
            raise RecordError("--num-workers", self.num_workers, "0 or more")


def embed_dataset(config: TableConfig) -> Answer:
    """Embed, write the table and return a report.

    Raises:
        OutputExistsError: The table exists, and `overwrite` is False.
        UnknownNameError, MissingFileError, SourceError: See `open_dataset`.
        InputError: There is no tile or no patch size. Or OUT is not a table of embeddings, OUT.partial holds other
            files, or another process is working on OUT.
        RecordError: A target has the name of another column.
        WriteError: The table cannot be written. Finished embeddings are kept.
    """
    from anysat.geo.claims import alone_at
    from anysat.workflows.datasets.embed.run import run_embed_dataset

    with alone_at(Path(config.out)):
        return run_embed_dataset(config)
