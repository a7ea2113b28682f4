"""A dataset made ready to train on: a packed copy and its statistics, in a folder that is taken up where it was left.

Whatever is there already is not made again; two processes that ask for the same wait for each other.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import shutil
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING

from anysat.data.base import DatasetRecord, find_dataset, open_dataset
from anysat.data.work import Advance, make_folder, to_json, write_whole
from anysat.errors import AnySatError, OtherWorkError, SourceError

if TYPE_CHECKING:
    from anysat.data.datasets.world import WorldSettings
    from anysat.normalise import Normaliser

Progress = Callable[[str, int], AbstractContextManager[Advance]]
"""Opens a display of some work, told its name and its number of tiles; `workflows.progress.progress_bar` is one."""
SHARD_MB = 8.0
"""Small shards: one is what a killed process loses, and what processes share out among them."""


@contextlib.contextmanager
def silent(_what: str, _total: int) -> Iterator[Advance]:
    """Shows nothing."""
    yield lambda _: None


def prepare(
    name: str, root: Path | Callable[[], Path], home: Path, *, workers: int = 1, progress: Progress = silent
) -> tuple[Path, Normaliser]:
    """The folder of a packed copy of a dataset, and the statistics of its training split.

    What lies in `home` and cannot be opened or gone on with is made again, as is a copy of which a shard is not there
    or is not as long as it was written.

    Args:
        name: dataset.
        root: its folder, or what makes it, which is called where there is no copy, by one process at a time.
        home: folder in which the copy (`packed`) and `statistics.json` are kept; the same for the same `root` only.
        workers: processes to work with.
        progress: shows what is done and how far it is.

    Raises:
        UnfinishedError: the disk is full; what is done is kept.
        WriteError: the folder cannot be made.
        MissingFileError, SourceError: a tile cannot be read.
    """
    packed, statistics = home / "packed", home / "statistics.json"
    with _waiting(home):
        if not _is_sound(lambda: _open(name, packed)):
            shutil.rmtree(packed, ignore_errors=True)
            _pack(name, root() if callable(root) else root, packed, workers, progress)
        if not _is_sound(lambda: _read(statistics)):
            _count(name, packed, statistics, workers, progress)
    return packed, _read(statistics)


def prepare_fetched(
    name: str, cache: Path, *, workers: int = 1, progress: Progress = silent
) -> tuple[Path, Normaliser]:
    """Tiles that an installed package holds, packed, and their statistics; see `prepare`.

    Args:
        name: dataset whose record has `fetch`.
        cache: folder of all that is prepared, as `data.cache.cache_folder` gives.
        workers: processes to work with.
        progress: shows what is done and how far it is.
    """
    record = find_dataset(name)
    fetch, home = record.fetch, cache / f"{record.name}-{_digest(record)}"
    assert fetch is not None, name
    return prepare(name, lambda: fetch(home / "files"), home, workers=workers, progress=progress)


def prepare_world(
    settings: WorldSettings, cache: Path, *, workers: int = 1, progress: Progress = silent
) -> tuple[Path, Normaliser]:
    """Generated tiles, packed, and their statistics; see `prepare`.

    They are kept in a folder of the cache whose name follows from the settings, from the parameters of the world
    and from how it is packed, so that another world, or that of another version, is never taken for this one.

    Args:
        settings: which tiles.
        cache: folder of all prepared worlds, as `data.cache.cache_folder` gives.
        workers: processes to work with.
        progress: shows what is done and how far it is.
    """
    from anysat.data.datasets.world import MARKER
    from anysat.data.world import PARAMETERS_SHA256

    content = to_json(settings.to_dict())
    home = cache / f"world-{_digest(find_dataset('world'), content + PARAMETERS_SHA256.encode())}"
    with _waiting(home):
        if not (home / MARKER).is_file():  # written once: its time tells whether finished shards are still true
            write_whole(home / MARKER, content)
    return prepare("world", home, home, workers=workers, progress=progress)


def _digest(record: DatasetRecord, content: bytes = b"") -> str:
    """Another text for another way to pack, other targets or splits, and other content."""
    from anysat.data.pack import FORMAT
    from anysat.data.pack.record import record_facts

    facts = record_facts(record, record.modalities, [target.name for target in record.targets])
    return hashlib.sha256(to_json({"format": FORMAT, **facts}) + content).hexdigest()[:16]


def _pack(name: str, root: Path, packed: Path, workers: int, progress: Progress) -> None:
    from anysat.data.pack.write import pack_dataset

    every = open_dataset(name, root, "all")
    with progress(f"packing {name}", len(every)) as advance:
        _do(
            packed.with_name(f"{packed.name}.partial"),
            lambda: pack_dataset(every, packed, shard_mb=SHARD_MB, workers=workers, advance=advance),
        )


def _count(name: str, packed: Path, statistics: Path, workers: int, progress: Progress) -> None:
    from anysat.data.statistics import compute_statistics

    train, partial = open_dataset(name, packed, "train", targets=()), statistics.with_name("statistics.partial")
    with progress(f"statistics of {name}", len(train)) as advance:
        _do(partial, lambda: compute_statistics(
            train, partial=partial, workers=workers, advance=advance,
            keep=lambda made: write_whole(statistics, to_json(made.to_dict())),
        ))  # fmt: skip


def _do(partial: Path, work: Callable[[], object]) -> None:
    """Go on with unfinished work; where it is that of something else, such as an earlier version, begin again."""
    try:
        work()
    except OtherWorkError:
        shutil.rmtree(partial, ignore_errors=True)
        work()


def _open(name: str, packed: Path) -> None:
    from anysat.data.pack import read_index

    open_dataset(name, packed, "all", layout="packed")
    for shard in read_index(packed)["shards"]:
        path = packed / shard["file"]
        if not path.is_file() or path.stat().st_size != shard["bytes"]:
            raise SourceError(path, f"a shard of {shard['bytes']} bytes is not there as it was written")


def _read(statistics: Path) -> Normaliser:
    from anysat.normalise import Normaliser

    return Normaliser.read(statistics)


def _is_sound(opened: Callable[[], object]) -> bool:
    try:
        opened()
    except (AnySatError, ValueError, LookupError, TypeError, AttributeError):  # of values that are not what they were
        return False
    return True


@contextlib.contextmanager
def _waiting(home: Path) -> Iterator[None]:
    """Make a folder and wait until no other process works in it; a dead process keeps nobody waiting."""
    make_folder(home)
    with (home / "lock").open("a") as file:
        with contextlib.suppress(OSError):  # a disk that knows no locks
            fcntl.flock(file, fcntl.LOCK_EX)
        yield
