"""A dataset prepared for training: a packed copy and its statistics in a folder, resumed after an interruption.

What exists is not made again. Two processes that ask for the same wait for each other.
"""

from __future__ import annotations

import contextlib
import hashlib
import shutil
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING

from anysat.data.base import DatasetRecord
from anysat.data.open import find_dataset, open_dataset
from anysat.data.pack import FORMAT, read_index
from anysat.data.pack.record import record_facts
from anysat.data.work import Advance, to_json
from anysat.errors import AnySatError, OtherWorkError, SourceError
from anysat.geo.claims import alone_in
from anysat.whole_files import write_whole

if TYPE_CHECKING:
    from anysat.data.datasets.world import WorldSettings
    from anysat.normalise import Normaliser

Progress = Callable[[str, int], AbstractContextManager[Advance]]
"""Displays progress of work, given its name and number of tiles; `workflows.progress.progress_bar` is one."""
SHARD_MB = 8.0
"""Size of shards. They are small because a killed process loses one, and processes share the work by shards."""


@contextlib.contextmanager
def silent(_what: str, _total: int) -> Iterator[Advance]:
    """Show nothing."""
    yield lambda _: None


def prepare(
    name: str, root: Path | Callable[[], Path], home: Path, *, workers: int = 1, progress: Progress = silent
) -> tuple[Path, Normaliser]:
    """Return the folder of a packed copy of a dataset, and the statistics of its training split.

    What is in `home` but cannot be opened or resumed is made again, as is a copy with a shard that is missing or has
    another length than when it was written.

    Args:
        name: Name of the dataset.
        root: Folder of the dataset, or a function that makes it, called by one process at a time if there is no copy.
        home: Folder for the copy (`packed`) and `statistics.json`. Use the same folder for the same `root` only.
        workers: Number of processes.
        progress: Shows progress.

    Raises:
        UnfinishedError: The disk is full. Finished parts are kept.
        WriteError: The folder cannot be created.
        MissingFileError, SourceError: A tile cannot be read.
    """
    packed, statistics = home / "packed", home / "statistics.json"
    with alone_in(home, waits=True):
        if not _is_sound(lambda: _open(name, packed)):
            shutil.rmtree(packed, ignore_errors=True)
            _pack(name, root() if callable(root) else root, packed, workers, progress)
        if not _is_sound(lambda: _read(statistics)):
            _count(name, packed, statistics, workers, progress)
    return packed, _read(statistics)


def prepare_fetched(name: str, cache: Path, *, progress: Progress = silent) -> tuple[Path, Normaliser]:
    """Prepare a dataset whose record has `fetch` in a folder of the cache, such as `cache_folder()`; see `prepare`."""
    record = find_dataset(name)
    fetch, home = record.fetch, cache / f"{record.name}-{_digest(record)}"
    assert fetch is not None, name
    return prepare(name, lambda: fetch(home / "files"), home, progress=progress)


def prepare_world(
    settings: WorldSettings, cache: Path, *, workers: int = 1, progress: Progress = silent
) -> tuple[Path, Normaliser]:
    """Prepare tiles of the generated world; see `prepare`.

    They are kept in a folder of the cache whose name follows from the settings, the parameters of the world and the way
    it is packed, so that another world or version is never taken for this one.
    """
    from anysat.data.datasets.world import MARKER
    from anysat.data.world import PARAMETERS_SHA256

    content = to_json(settings.to_dict())
    home = cache / f"world-{_digest(find_dataset('world'), content + PARAMETERS_SHA256.encode())}"
    with alone_in(home, waits=True):
        if not (home / MARKER).is_file():  # written once, because its time tells whether finished shards are up to date
            write_whole(home / MARKER, content)
    return prepare("world", home, home, workers=workers, progress=progress)


def _digest(record: DatasetRecord, content: bytes = b"") -> str:
    """Return a text that identifies the pack format, targets, splits and other content."""
    facts = record_facts(record, record.modalities, [target.name for target in record.targets])
    return hashlib.sha256(to_json({"format": FORMAT, **facts}) + content).hexdigest()[:16]


def _pack(name: str, root: Path, packed: Path, workers: int, progress: Progress) -> None:
    from anysat.data.pack.write import pack_dataset

    every = open_dataset(name, root, "all")
    with progress(f"packing {name}", len(every)) as advance:
        resume(
            packed.with_name(f"{packed.name}.partial"),
            lambda: pack_dataset(every, packed, shard_mb=SHARD_MB, workers=workers, advance=advance),
        )


def _count(name: str, packed: Path, statistics: Path, workers: int, progress: Progress) -> None:
    from anysat.data.statistics import compute_statistics

    train, partial = open_dataset(name, packed, "train", targets=()), statistics.with_name("statistics.partial")
    with progress(f"statistics of {name}", len(train)) as advance:
        resume(partial, lambda: compute_statistics(
            train, partial=partial, workers=workers, advance=advance,
            keep=lambda made: write_whole(statistics, to_json(made.to_dict())),
        ))  # fmt: skip


def resume(partial: Path, work: Callable[[], object]) -> None:
    """Resume unfinished work; if it belongs to something else, such as an earlier version, start again."""
    try:
        work()
    except OtherWorkError:
        shutil.rmtree(partial, ignore_errors=True)
        work()


def _open(name: str, packed: Path) -> None:
    open_dataset(name, packed, "all", layout="packed")
    for shard in read_index(packed)["shards"]:
        path = packed / shard["file"]
        if not path.is_file() or path.stat().st_size != shard["bytes"]:
            raise SourceError(path, f"the shard is missing or no longer has {shard['bytes']} bytes")


def _read(statistics: Path) -> Normaliser:
    from anysat.normalise import Normaliser

    return Normaliser.read(statistics)


def _is_sound(opened: Callable[[], object]) -> bool:
    try:
        opened()
    except (AnySatError, ValueError, LookupError, TypeError, AttributeError):  # of damaged content
        return False
    return True
