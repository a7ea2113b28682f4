"""A cache in the user's folder for arrays that take long to gather from a dataset's files."""

from __future__ import annotations

import hashlib
import os
import time
import zipfile
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from anysat.errors import RecordError
from anysat.whole_files import appearing

WORTH_S = 2.0
"""Work that takes less than this is repeated rather than cached."""
Item = TypeVar("Item")
Arrays = Mapping[str, NDArray[Any]]


def cache_folder() -> Path:
    """Return `$XDG_CACHE_HOME/anysat` or `~/.cache/anysat`. Its content may be deleted at any time."""
    home = os.environ.get("XDG_CACHE_HOME")
    return (Path(home) if home else Path.home() / ".cache") / "anysat"


def cached(name: str, files: Iterable[Path], make: Callable[[], Arrays], version: int = 1) -> Arrays:
    """Return the result of `make`, which is called once as long as some files stay the same.

    Args:
        name: Name of the folder in the cache.
        files: Files that the arrays are gathered from. If a path, size or time changes, `make` is called again.
        make: Gathers the arrays. Its result is kept only if it took longer than `WORTH_S`.
        version: Increase it when the results of `make` change.
    """
    path = cache_folder() / name / f"{_fingerprint(files, version)}.npz"
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as kept:
            return {key: kept[key] for key in kept.files}
    except (OSError, ValueError, EOFError, KeyError, zlib.error, zipfile.BadZipFile):
        pass  # absent or damaged: gather it again
    started = time.monotonic()
    arrays = make()
    if time.monotonic() - started > WORTH_S:
        _keep(path, arrays)
    return arrays


def _keep(path: Path, arrays: Arrays) -> None:
    for name, array in arrays.items():
        if array.dtype.hasobject:
            raise RecordError(f"array {name!r} of the cache", array.dtype, "plain values, not objects")
    named = dict[str, Any](arrays)
    with suppress(OSError):  # the disk is full or read-only: the work is repeated next time
        path.parent.mkdir(parents=True, exist_ok=True)
        with appearing(path, to_disk=False) as new, new.open("wb") as file:
            np.savez(file, **named)  # numpy before 2.1 has no other argument


def _fingerprint(files: Iterable[Path], version: int) -> str:
    digest = hashlib.sha256(str(version).encode())
    for path in files:
        state = path.stat()
        digest.update(f"{path.resolve()}\0{state.st_size}\0{state.st_mtime_ns}\0".encode())
    return digest.hexdigest()[:32]


def watched(items: Sequence[Item], title: str) -> Iterable[Item]:
    """Yield the items; on a terminal, with a progress bar on stderr that disappears at the end."""
    from rich.console import Console
    from rich.progress import track

    console = Console(stderr=True)
    return track(items, title, console=console, transient=True, disable=not console.is_terminal)
