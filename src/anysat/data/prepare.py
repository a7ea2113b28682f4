"""A dataset made ready to train on: a packed copy and its statistics, in a folder that is taken up where it was left.

Whatever is there already is not made again; two processes that ask for the same wait for each other.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING

from anysat.data.base import PACK_INDEX, open_dataset
from anysat.data.work import Advance, make_folder, to_json, write_whole

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
    name: str, root: Path, home: Path, *, workers: int = 1, progress: Progress = silent
) -> tuple[Path, Normaliser]:
    """The folder of a packed copy of a dataset, and the statistics of its training split.

    Args:
        name: dataset.
        root: its folder.
        home: folder in which the copy (`packed`) and `statistics.json` are kept; the same for the same `root` only.
        workers: processes to work with.
        progress: shows what is done and how far it is.

    Raises:
        UnfinishedError: the disk is full; what is done is kept.
        WriteError: the folder cannot be made.
        MissingFileError, SourceError: a tile cannot be read.
    """
    from anysat.data.pack.write import pack_dataset
    from anysat.data.statistics import compute_statistics
    from anysat.normalise import Normaliser

    packed, statistics = home / "packed", home / "statistics.json"
    with _waiting(home):
        if not (packed / PACK_INDEX).is_file():
            every = open_dataset(name, root, "all")
            with progress(f"packing {name}", len(every)) as advance:
                pack_dataset(every, packed, shard_mb=SHARD_MB, workers=workers, advance=advance)
        if not statistics.is_file():
            train = open_dataset(name, packed, "train", targets=())
            with progress(f"statistics of {name}", len(train)) as advance:
                compute_statistics(
                    train, partial=home / "statistics.partial", workers=workers, advance=advance,
                    keep=lambda made: write_whole(statistics, to_json(made.to_dict())),
                )  # fmt: skip
    return packed, Normaliser.read(statistics)


def prepare_world(
    settings: WorldSettings, cache: Path, *, workers: int = 1, progress: Progress = silent
) -> tuple[Path, Normaliser]:
    """Generated tiles, packed, and their statistics; see `prepare`.

    They are kept in a folder of the cache whose name follows from the settings and from the parameters of
    the world, so that another world is never taken for this one.

    Args:
        settings: which tiles.
        cache: folder of all prepared worlds, as `data.cache.cache_folder` gives.
        workers: processes to work with.
        progress: shows what is done and how far it is.
    """
    from anysat.data.datasets.world import MARKER
    from anysat.data.world import PARAMETERS_SHA256

    content = to_json(settings.to_dict())
    home = cache / f"world-{hashlib.sha256(content + PARAMETERS_SHA256.encode()).hexdigest()[:16]}"
    with _waiting(home):
        if not (home / MARKER).is_file():  # written once: its time tells whether finished shards are still true
            write_whole(home / MARKER, content)
    return prepare("world", home, home, workers=workers, progress=progress)


@contextlib.contextmanager
def _waiting(home: Path) -> Iterator[None]:
    """Make a folder and wait until no other process works in it; a dead process keeps nobody waiting."""
    make_folder(home)
    with (home / "lock").open("a") as file:
        with contextlib.suppress(OSError):  # a disk that knows no locks
            fcntl.flock(file, fcntl.LOCK_EX)
        yield
