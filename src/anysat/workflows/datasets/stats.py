"""The command that computes statistics of a dataset, for `--statistics`."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from anysat.errors import OutputExistsError, RecordError
from anysat.geo.write.outputs import Result, check_output, named


@dataclass(frozen=True, kw_only=True)
class StatsConfig:
    """Compute statistics of every band over a split: mean, deviation, percentiles, share of invalid values."""

    name: str = field(
        metadata={"positional": "NAME", "help": "Dataset: a name from `anysat datasets list`, a module or a YAML file."}
    )
    path: str = field(metadata={"positional": "PATH", "help": "Its folder, loose or packed."})
    out: str = field(
        metadata={
            "help": f"File to write: {named(Result.FIGURES)}. After an interruption, the same command continues from "
            "OUT.partial; the result is identical to the last bit."
        }
    )
    """File to write."""
    split: str = "train"
    """Split to use. A model's statistics should come from the split it is trained on."""
    modalities: list[str] = field(default_factory=list)
    """Modalities to read, such as [s2,aerial]; all if not given."""
    samples: int | None = None
    """Number of tiles to read, spread over the split; null reads all."""
    seed: int = 0
    """Seed for choosing the tiles."""
    num_workers: int = 2
    """Number of processes that read tiles; 0 reads in the main process. The result does not depend on it."""
    overwrite: bool = False
    """Replace OUT."""

    def __post_init__(self) -> None:
        check_output("--out", self.out, Result.FIGURES)
        if self.samples is not None and self.samples < 1:
            raise RecordError("--samples", self.samples, "1 or more")
        for option in ("seed", "num_workers"):
            if getattr(self, option) < 0:
                raise RecordError(f"--{option.replace('_', '-')}", getattr(self, option), "0 or more")


def stats(config: StatsConfig) -> Any:
    """Compute statistics, write them, and return a table."""
    from anysat.data.open import open_dataset
    from anysat.data.statistics import compute_statistics
    from anysat.data.work import to_json
    from anysat.whole_files import write_whole
    from anysat.workflows.progress import progress_bar

    out = Path(config.out)
    if out.exists() and not config.overwrite:
        raise OutputExistsError([out])
    dataset = open_dataset(
        config.name, config.path, config.split, modalities=config.modalities or None, targets=()
    )  # only pixels, because targets may be slow to compute
    total = min(len(dataset), config.samples or len(dataset))
    with progress_bar(f"reading {dataset.name}", total) as advance:
        normaliser = compute_statistics(
            dataset, partial=out.with_name(f"{out.name}.partial"), workers=config.num_workers,
            num_samples=config.samples, seed=config.seed, advance=advance,
            keep=lambda made: write_whole(out, to_json(made.to_dict())),
        )  # fmt: skip
    return _shown(normaliser, out)


def _shown(normaliser: Any, out: Path) -> Any:
    from rich.console import Group
    from rich.table import Column, Table
    from rich.text import Text

    from anysat.data.statistics import never_valid

    names = ("modality", "band", "mean", "std", *_PERCENTS.values(), "invalid")
    kept_whole = [Column(name, no_wrap=True, justify="left" if name in names[:2] else "right") for name in names]
    table = Table(*kept_whole, "unit", title=Text(normaliser.source), padding=(0, 0), collapse_padding=True)
    for statistics_of in normaliser.statistics.values():
        for key, statistics in statistics_of.items():
            for index in range(len(statistics.bands)):
                table.add_row(key, *_row(statistics, index))
    parts: list[Any] = [table]
    never = never_valid(normaliser)
    if never:
        told = f"warning: no valid values for {', '.join(never)}: mean 0 and deviation 1 were written"
        parts.append(Text(told, style="yellow"))
    missing = [key for facts in normaliser.provenance.values() for key in facts["modalities"]
               if not any(key in table for table in normaliser.statistics.values())]  # fmt: skip
    if missing:
        parts.append(Text(f"warning: left out, because no tile has them: {', '.join(missing)}", style="yellow"))
    return Group(*parts, Text(f"wrote {out}"))


_PERCENTS = {"1": "1 %", "50": "median", "99": "99 %", "100": "max"}


def _row(statistics: Any, index: int) -> list[str]:
    figures = [statistics.mean[index], statistics.std[index]]
    figures += [statistics.percentiles[percent][index] for percent in _PERCENTS]
    return [
        statistics.bands[index], *(f"{figure:.4g}" for figure in figures), f"{statistics.invalid_frac[index]:.1%}",
        statistics.units[index],
    ]  # fmt: skip
