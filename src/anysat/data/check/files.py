"""Checks of files against the layout table: all exist and are not empty; those of sampled tiles fit type and shape.

Looking up a file takes microseconds and is done for all samples; only files of sampled tiles are opened.
"""

from __future__ import annotations

import glob
import stat
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from anysat.data.base import Samples
from anysat.data.check.evidence import Evidence, Hit, SeenFile
from anysat.data.files import FORMATS, read_file
from anysat.data.layout import FIELD, SOURCE, TEXT, DatasetFolder, Entry, has_lengths
from anysat.errors import AnySatError, MissingFileError, MissingKeyError

LARGE_BYTES = 200_000_000
"""Size in bytes above which only the first row of an array is read."""
MAX_LOOKED_UP = 200_000
"""Number of files that are looked up; in larger datasets, those of samples chosen evenly."""
MAX_NAN_FRAC = 0.5
"""Share of NaN in a stored array above which it is reported; gaps of real radar and optical files stay far below."""
_ROWS_OF = (".npy", ".npz", ".h5", ".hdf5", ".pt", ".pth")


def see_files(
    folder: DatasetFolder,
    row: Mapping[str, Any],
    done: set[tuple[str, Path]],
    entries: Iterable[Entry] | None = None,
) -> Iterator[SeenFile]:
    """Yield the entries of a sample, or some of them, without those in `done`, and add them to `done`."""
    for entry in folder.layout.entries if entries is None else entries:
        for path in list(_paths(folder, entry, row)):
            if (entry.name, path) not in done:
                done.add((entry.name, path))
                yield from _see(folder, entry, path)


def is_told(folder: DatasetFolder, row: Mapping[str, Any], told: Collection[str]) -> bool:
    """Whether a file of a sample is among those already reported, given as paths below the folder."""
    paths = (path for entry in folder.layout.entries for path in _paths(folder, entry, row))
    return any(path.relative_to(folder.root).as_posix() in told for path in paths)


def look_up(
    folder: DatasetFolder, samples: Samples, done: Collection[tuple[str, Path]], limit: int = MAX_LOOKED_UP
) -> tuple[int, list[SeenFile]]:
    """Look up the files that every sample must have, without opening them, and return those missing or empty.

    Paths with a number are left out, because only the dataset knows its digits; so are those in `done`.

    Returns:
        The number of samples that were looked up, with at most `limit` files, and the files.
    """
    kept = {
        entry.path: entry for entry in reversed(folder.layout.entries)
        if entry.fields and not entry.is_optional
        and all(name in samples.columns and samples.columns[name].dtype.kind == "U" for name in entry.fields)
    }  # fmt: skip
    count = min(len(samples), max(1, limit // max(1, len(kept))))
    rows = np.linspace(0, len(samples) - 1, count).astype(np.int64)
    found = []
    for entry in kept.values():
        columns = (samples.columns[name][rows].tolist() for name in entry.fields)
        for fields in dict.fromkeys(zip(*columns, strict=True)):
            path = folder.path(entry.name, **dict(zip(entry.fields, fields, strict=True)))
            if (entry.name, path) not in done and (seen := _stat(folder, entry, path)) is not None:
                found.append(seen)
    return (count if kept else 0), found


def _stat(folder: DatasetFolder, entry: Entry, path: Path) -> SeenFile | None:
    """Return a file if it is missing or empty, otherwise None. Folders never count as empty."""
    where = path.relative_to(folder.root).as_posix()
    try:
        facts = path.stat()
    except OSError:
        return SeenFile(entry=entry.name, path=where, problem="missing")
    if facts.st_size or stat.S_ISDIR(facts.st_mode):
        return None
    return SeenFile(entry=entry.name, path=where, problem="unreadable", message="it has no bytes")


def _paths(folder: DatasetFolder, entry: Entry, row: Mapping[str, Any]) -> Iterator[Path]:
    """Yield the paths of an entry of a sample.

    A field that is not in the sample's row matches any name, and a number matches any name that ends in it, since only
    the dataset knows how many digits it writes.
    """
    known = [row.get(name) for name in entry.fields]
    exact = folder.path(entry.name, **row) if None not in known else None
    if exact is not None and (exact.is_file() or all(isinstance(value, str) for value in known)):
        yield exact
        return
    patterns = [_pattern(path, row) for path in (entry.path, *entry.also)]
    found = next((paths for pattern in patterns if (paths := sorted(folder.root.glob(pattern)))), None)
    yield from found if found is not None else [exact or folder.root / patterns[0]]


def _pattern(path: str, row: Mapping[str, Any]) -> str:
    def shown(name: str) -> str:
        value = row.get(name, "")
        return f"{glob.escape(value)}*" if isinstance(value, str) else f"*{value}"

    parts = FIELD.split(path)
    return "".join(shown(part) if index % 2 else glob.escape(part) for index, part in enumerate(parts))


def _see(folder: DatasetFolder, entry: Entry, path: Path) -> Iterator[SeenFile]:
    where = path.relative_to(folder.root).as_posix()
    if path.is_file() and not _is_known(path):
        return
    if entry.dtype == SOURCE:
        if not path.exists() and not entry.is_optional:
            yield SeenFile(entry=entry.name, path=where, problem="missing")
        return
    try:
        is_part = path.is_file() and path.stat().st_size > LARGE_BYTES and path.suffix.lower() in _ROWS_OF
        (value,) = read_file(path, [entry.key], 0 if is_part else None, entry.described)
    except MissingFileError:
        if not entry.is_optional:
            yield SeenFile(entry=entry.name, path=where, problem="missing")
        return
    except AnySatError as error:
        if entry.is_optional and isinstance(error, MissingKeyError):
            return
        message = str(error).removeprefix(f"{path}: ")
        yield SeenFile(entry=entry.name, path=where, problem="unreadable", message=message)
        return
    if entry.dtype == TEXT or not isinstance(value, np.ndarray):
        yield SeenFile(entry=entry.name, path=where)
        return
    nan_frac = float(np.isnan(value).mean()) if value.dtype.kind == "f" and value.size else 0.0
    yield SeenFile(entry=entry.name, path=where, dtype=value.dtype.newbyteorder("=").name, shape=value.shape,
                   is_part=is_part, nan_frac=nan_frac)  # fmt: skip


def _is_known(path: Path) -> bool:
    """Whether a file is of a common format; others are left to the dataset's own reader."""
    return any(path.suffix.lower() in form.suffixes for form in FORMATS)


def missing_files(evidence: Evidence) -> Iterator[Hit]:
    """Files of the layout table that do not exist."""
    for file in evidence.files:
        if file.problem == "missing":
            expected = evidence.folder.layout[file.entry].described
            yield Hit(subject=file.entry, example=file.path, message=f"no such file; expected {expected}. Get it "
                      f"from {evidence.record.homepage}, or take the sample out of the lists")  # fmt: skip


def unreadable_files(evidence: Evidence) -> Iterator[Hit]:
    """Files that are truncated, of another format, or lack a key."""
    for file in evidence.files:
        if file.problem == "unreadable":
            yield Hit(subject=file.entry, example=file.path, message=f"{file.message}; fetch it again")


def wrong_types(evidence: Evidence) -> Iterator[Hit]:
    """Arrays of another number type than in the layout table."""
    for file in evidence.files:
        entry = evidence.folder.layout[file.entry]
        if file.dtype and file.dtype != entry.dtype:
            message = f"stored as {file.dtype}, expected {entry.dtype}{_doubt(evidence)}"
            yield Hit(subject=file.entry, example=file.path, message=message)


def wrong_shapes(evidence: Evidence) -> Iterator[Hit]:
    """Arrays of another rank or length than in the layout table."""
    for file in evidence.files:
        entry = evidence.folder.layout[file.entry]
        expected = entry.shape[1:] if file.is_part else entry.shape
        if file.shape is None or not expected or has_lengths(file.shape, expected):
            continue
        shapes = " x ".join(map(str, file.shape)), " x ".join(map(str, expected))
        yield Hit(subject=file.entry, example=file.path,
                  message=f"stored as {shapes[0]}, expected {shapes[1]}{_doubt(evidence)}")  # fmt: skip


def too_many_nan(evidence: Evidence) -> Iterator[Hit]:
    """Arrays that are mostly NaN, unless the table says that NaN means "no data"."""
    for file in evidence.files:
        nodata = evidence.folder.layout[file.entry].nodata
        if file.nan_frac > MAX_NAN_FRAC and not (nodata is not None and np.isnan(nodata)):
            message = (
                f"{file.nan_frac:.0%} of the values are NaN, expected at most {MAX_NAN_FRAC:.0%}; was a gap filled?"
            )
            yield Hit(subject=file.entry, example=file.path, message=message)


def _doubt(evidence: Evidence) -> str:
    layout = evidence.folder.layout
    told = "; convert it, or correct the layout table"
    return told if layout.checked_against else f"{told} (layout {layout.name!r} was not checked against a real file)"
