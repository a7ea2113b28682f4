"""Commands about datasets: list them, describe one, check one for problems, and draw a sample."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from anysat.errors import RecordError
from anysat.geo.write.outputs import Result, check_output, named
from anysat.workflows.answer import Answer, as_json

_NAME = "Dataset: a name from `anysat datasets list`, a dotted module name, or a YAML file of your own data."
_PATH = "Its folder on disk."


@dataclass(frozen=True, kw_only=True)
class ListConfig:
    """List the datasets: modalities, tile and patch sizes, download size, licence."""

    json: bool = False
    """Print JSON."""


def list_datasets(config: ListConfig) -> Answer:
    """Return a table with one row per known dataset. Nothing needs to be on disk."""
    from rich.table import Column, Table
    from rich.text import Text

    from anysat.data.open import dataset_names, find_dataset
    from anysat.workflows.datasets.facts import facts, patch_sizes

    records = [find_dataset(name) for name in dataset_names()]
    if config.json:
        return Answer(as_json([facts(record) for record in records]))
    folded = [Column(name, overflow="fold") for name in ("modalities", "patches", "size", "licence")]
    table = Table(Column("name", no_wrap=True), folded[0], Column("tile", no_wrap=True), *folded[1:])
    for record in records:
        table.add_row(
            record.name,
            " ".join(record.modalities),
            f"{record.tile_m:g} m",
            f"{patch_sizes(record)} m",
            Text(record.size),
            Text(record.licence),
        )
    return Answer(table)


@dataclass(frozen=True, kw_only=True)
class DescribeConfig:
    """Describe one dataset: files, bands, targets, splits, dates, licence."""

    name: str = field(metadata={"positional": "NAME", "help": _NAME})
    json: bool = False
    """Print JSON."""


def describe(config: DescribeConfig) -> Answer:
    """Return the record of a dataset and its layout tables."""
    from rich.console import Group

    from anysat.data.open import find_dataset
    from anysat.workflows.datasets.facts import description, facts

    record = find_dataset(config.name)
    if config.json:
        return Answer(as_json(facts(record)))
    return Answer(Group(*description(record)))


@dataclass(frozen=True, kw_only=True)
class CheckConfig:
    """Check a dataset on disk for problems before you train. Exit status 1 if any are found."""

    name: str = field(metadata={"positional": "NAME", "help": _NAME})
    path: str = field(metadata={"positional": "PATH", "help": _PATH})
    split: str = "all"
    """Split to check: train, val, test or all. Only `all` finds ground that splits share."""
    samples: int = 64
    """Number of tiles to read, spread over the dataset; all if there are fewer. More tiles find rarer problems."""
    seed: int = 0
    """Seed for choosing the tiles."""
    form: str | None = None
    """Which of its layouts it has, such as published, training or packed; null detects it."""
    json: bool = False
    """Print JSON."""

    def __post_init__(self) -> None:
        if self.samples < 1:
            raise RecordError("--samples", self.samples, "one tile or more")
        if self.seed < 0:
            raise RecordError("--seed", self.seed, "0 or more")


def check(config: CheckConfig) -> Answer:
    """Read samples, their files and targets, and report problems."""
    from anysat.data.check import check_dataset
    from anysat.workflows.datasets.facts import findings
    from anysat.workflows.progress import progress_bar

    def watch(indices: list[int]) -> Iterator[int]:
        with progress_bar("reading tiles", len(indices)) as advance:
            for index in indices:
                yield index
                advance(1)

    report = check_dataset(config.name, config.path, config.split, layout=config.form, samples=config.samples,
                           seed=config.seed, watch=watch)  # fmt: skip
    if config.json:
        from rich.text import Text

        return Answer(Text(report.to_json()), report.exit_status)
    return Answer(findings(report), report.exit_status)


@dataclass(frozen=True, kw_only=True)
class ShowConfig:
    """Draw one sample of a dataset: every modality with its dates, and the targets."""

    name: str = field(metadata={"positional": "NAME", "help": _NAME})
    path: str = field(metadata={"positional": "PATH", "help": _PATH})
    split: str = "train"
    """Split that the sample is in: train, val, test or all."""
    index: int = 0
    """Number of the sample in the split, from 0."""
    out: str = field(default="sample.png", metadata={"help": f"Picture to write: {named(Result.PICTURE)}."})
    """Picture to write."""
    form: str | None = None
    """Which of its layouts it has, such as published, training or packed; null detects it."""
    overwrite: bool = False
    """Replace an existing picture."""

    def __post_init__(self) -> None:
        check_output("--out", self.out, Result.PICTURE)


def show(config: ShowConfig) -> str:
    """Write the picture, and return what it shows.

    Raises:
        OutputExistsError: The picture exists, and `overwrite` is False.
        WriteError: It cannot be written. Nothing is left behind.
    """
    from anysat.data.open import open_dataset
    from anysat.geo.write.writers import check_free, staged
    from anysat.picture_samples import sample_figure

    out = Path(config.out)
    check_free([out], overwrite=config.overwrite)
    dataset = open_dataset(config.name, config.path, config.split, layout=config.form)
    if not 0 <= config.index < len(dataset):
        raise RecordError("--index", config.index, f"0 to {len(dataset) - 1}, the samples of split {config.split!r}")
    tile = dataset[config.index]
    with staged([out], overwrite=config.overwrite) as folder:
        sample_figure(tile, dataset.record.targets, dataset.record.title).savefig(folder / out.name)
    return f"wrote {out}: sample {tile.id}, number {config.index} of {len(dataset)} in split {config.split}"
