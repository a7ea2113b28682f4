"""Statistics in a file, with a second file that says what they were computed from. If that changes, so do they."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from anysat.data.prepare import resume, silent
from anysat.data.statistics import compute_statistics, taken
from anysat.data.work import Advance, TileFiles, fingerprint, place_facts, to_json
from anysat.whole_files import write_whole

if TYPE_CHECKING:
    from anysat.data.base import TileDataset


def keep_statistics(
    path: Path, dataset: TileDataset, *, num_samples: int | None = None, seed: int = 0, workers: int = 1,
    opened: Callable[[int], AbstractContextManager[Advance]] = lambda total: silent("statistics", total),
) -> None:  # fmt: skip
    """Write the statistics of a dataset to a file, unless it already holds those of the current tiles and files.

    Other arguments and errors are those of `compute_statistics`.

    Args:
        path: The file. `of_file(path)` is written beside it, and unfinished work in a folder that ends in `.tmp`.
        opened: Opens a progress display, given the number of tiles. Not called if nothing needs to be computed.
    """
    used = taken(dataset, num_samples, seed)
    sources, beside = _sources(used), of_file(path)  # taken first, so that files that change meanwhile count as changed
    if path.is_file() and beside.is_file() and json.loads(beside.read_bytes()) == sources:
        return
    beside.unlink(missing_ok=True)  # it does not describe the new statistics
    unfinished = path.with_suffix(".tmp")
    with opened(len(used)) as advance:
        resume(unfinished, lambda: compute_statistics(
            dataset, partial=unfinished, workers=workers, num_samples=num_samples, seed=seed, advance=advance,
            keep=lambda made: write_whole(path, to_json(made.to_dict())),
        ))  # fmt: skip
    write_whole(beside, to_json(sources))


def sources_of(dataset: TileDataset, *, num_samples: int | None = None, seed: int = 0) -> dict[str, Any]:
    """Return what statistics of a dataset are computed from now, as it is stored in `of_file`. Reads no tiles.

    Arguments are those of `compute_statistics`.
    """
    return _sources(taken(dataset, num_samples, seed))


def of_file(path: Path) -> Path:
    """Return the file that says what statistics in a file were computed from.

    >>> of_file(Path("statistics.json")).name
    'statistics.of.json'
    """
    return path.with_suffix(f".of{path.suffix}")


def _sources(dataset: TileDataset) -> dict[str, Any]:
    """Return which tiles statistics are computed from, how these are read, and from which files. Reads no tiles.

    The provenance stored in statistics says less, because it must be the same on every machine.
    """
    files = TileFiles(dataset).digest(range(len(dataset)))
    found: dict[str, Any] = {"fingerprint": fingerprint(dataset), **place_facts(dataset), "files": files}
    plain: dict[str, Any] = json.loads(to_json(found))
    return plain
