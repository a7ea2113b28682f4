"""Statistics kept in a file, with one beside it that says what they are of; computed again where that has changed."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from anysat.data.prepare import silent
from anysat.data.statistics import compute_statistics, taken
from anysat.data.work import Advance, TileFiles, fingerprint, place_facts, to_json, write_whole
from anysat.errors import OtherWorkError

if TYPE_CHECKING:
    from anysat.data.work import AnyDataset


def keep_statistics(
    path: Path, dataset: AnyDataset, *, num_samples: int | None = None, seed: int = 0, workers: int = 1,
    opened: Callable[[int], AbstractContextManager[Advance]] = lambda total: silent("statistics", total),
) -> None:  # fmt: skip
    """Write the statistics of a dataset, unless the file holds those of its tiles and files as they are now.

    Args:
        path: The file. Beside it lie `of_file(path)` and, until all is done, a folder of the same name in `.tmp`.
        dataset: See `compute_statistics`.
        num_samples: See `compute_statistics`.
        seed: See `compute_statistics`.
        workers: Number of processes.
        opened: Opens a display of the work, told the number of tiles. Not called where nothing is to be computed.

    Raises:
        See `compute_statistics`.
    """
    used = taken(dataset, num_samples, seed)
    sources, beside = _sources(used), of_file(path)  # first: of files that change meanwhile they are computed again
    if path.is_file() and beside.is_file() and json.loads(beside.read_bytes()) == sources:
        return
    beside.unlink(missing_ok=True)  # it says nothing of what will lie in the file
    unfinished = path.with_suffix(".tmp")
    with opened(len(used)) as advance:
        compute = partial(
            compute_statistics, dataset, partial=unfinished, workers=workers, num_samples=num_samples, seed=seed,
            advance=advance, keep=lambda made: write_whole(path, to_json(made.to_dict())),
        )  # fmt: skip
        try:
            compute()
        except OtherWorkError:  # the beginning of others, as where the description was corrected meanwhile
            shutil.rmtree(unfinished)
            compute()
    write_whole(beside, to_json(sources))


def of_file(path: Path) -> Path:
    """The file that says what kept statistics are of.

    >>> of_file(Path("statistics.json")).name
    'statistics.of.json'
    """
    return path.with_suffix(f".of{path.suffix}")


def _sources(dataset: AnyDataset) -> dict[str, Any]:
    """Which tiles statistics are of, how they are read, and the files they lie in; no tile is read.

    The provenance in statistics says less, because it is the same on every machine.
    """
    files = TileFiles(dataset).digest(range(len(dataset)))
    found: dict[str, Any] = {"fingerprint": fingerprint(dataset), **place_facts(dataset), "files": files}
    plain: dict[str, Any] = json.loads(to_json(found))
    return plain
