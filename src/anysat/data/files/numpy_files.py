"""Arrays of .npy and .npz files, read without unpickling and without trusting the sizes that headers claim."""

from __future__ import annotations

import math
import os
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any, Literal

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from anysat.errors import MissingKeyError, SourceError

Part = int | slice | tuple[slice, ...] | None
"""Part of an array to read: an index or slice of its first axis, or slices of its first axes; None for all."""
_MAGIC = b"\x93NUMPY"
_AT_ONCE = 1 << 22
"""Number of bytes of a member that are unpacked at a time."""
_NOT_READ = "it could run code, so it is not read; have it saved as plain numbers"


def npy_shape(path: Path) -> tuple[int, ...]:
    """Return the shape in the header of a .npy file.

    Raises:
        SourceError: The file is not an array of plain values.
    """
    with path.open("rb") as file:
        return _header(file, path, "it")[0]


def read_npy(path: Path, rows: Part) -> Any:
    """Read the array of a .npy file, or only a part of it.

    Raises:
        SourceError: The file is not an array of plain values, or is shorter than its header claims.
    """
    with path.open("rb") as file:
        shape, dtype, _ = _header(file, path, "it")
        _refuse_short(path, "it", shape, dtype, path.stat().st_size - file.tell())
        if rows is None:
            file.seek(0)
            return npy.read_array(file, allow_pickle=False)
    return np.array(np.load(path, allow_pickle=False, mmap_mode="r")[rows])


def read_npz(path: Path, keys: Sequence[str | None], rows: Part) -> tuple[Any, ...]:
    """Read arrays of a .npz file by key, and no others.

    Raises:
        SourceError: The file is not an archive or lacks a key, or an array asked for does not hold plain values.
    """
    if not zipfile.is_zipfile(path):
        reason = f"it is no .npz archive {begins(path)}"
        raise SourceError(path, reason, "check that it is complete; a pickle could run code and is never read")
    with zipfile.ZipFile(path) as archive:
        names = {name.removesuffix(".npy"): name for name in archive.namelist()}
        return tuple(_member(archive, key, names, path, rows) for key in keys)


def _member(archive: zipfile.ZipFile, key: str | None, names: dict[str, str], path: Path, rows: Part) -> Any:
    if key is None or key not in names:
        raise MissingKeyError(path, f"it has no {key!r}, only {', '.join(names)}")
    with archive.open(names[key]) as file:
        shape, dtype, is_fortran = _header(file, path, key)
        _refuse_short(path, key, shape, dtype, archive.getinfo(names[key]).file_size - file.tell())
        refuse_giant(path, key, _size(shape, dtype))
        array = _filled(file, shape, dtype, "F" if is_fortran else "C")
        while file.read(_AT_ONCE):  # the checksum is checked at the end of a member
            pass
    return array if rows is None else array[rows]


def _filled(file: IO[bytes], shape: tuple[int, ...], dtype: np.dtype[Any], order: Literal["C", "F"]) -> NDArray[Any]:
    """Read the array whose values come next in a stream."""
    content = np.empty(_size(shape, dtype), np.uint8)
    at = 0
    while at < len(content):
        part = file.read(min(_AT_ONCE, len(content) - at))
        if not part:
            raise EOFError(f"it ends after {at} of {len(content)} bytes")
        content[at : at + len(part)] = np.frombuffer(part, np.uint8)
        at += len(part)
    return np.ndarray(shape, dtype, content if len(content) else None, order=order)


def _header(file: IO[bytes], path: Path, name: str) -> tuple[tuple[int, ...], np.dtype[Any], bool]:
    """Read shape, type and order from the header of an array; a pickle has no header and is not read."""
    begin = file.read(len(_MAGIC))
    if begin != _MAGIC:
        reason = f"{name} is no NumPy array (it begins with {begin!r})"
        raise SourceError(path, reason, "a pickle could run code and is never read; have it saved with numpy.save")
    major = file.read(2)[:1]
    if major not in (b"\x01", b"\x02", b"\x03"):
        raise SourceError(path, f"{name} is in version {major!r} of the NumPy format, or cut off", "known: 1 to 3")
    shape, is_fortran, dtype = npy.read_array_header_1_0(file) if major == b"\x01" else npy.read_array_header_2_0(file)
    if dtype.hasobject:
        raise SourceError(path, f"{name} holds pickled objects", _NOT_READ)
    if any(side < 0 for side in shape):
        raise SourceError(path, f"{name} claims shape {shape}", "check that the file is complete")
    return shape, dtype, is_fortran


def _size(shape: tuple[int, ...], dtype: np.dtype[Any]) -> int:
    return math.prod(map(int, shape)) * dtype.itemsize


def _refuse_short(path: Path, name: str, shape: tuple[int, ...], dtype: np.dtype[Any], stored: int) -> None:
    if _size(shape, dtype) > stored:
        reason = f"{name} claims {dtype} of shape {shape}, {_size(shape, dtype):,} bytes, and {stored:,} are there"
        raise SourceError(path, reason, "check that the file is complete")


def refuse_giant(path: Path, name: str, num_bytes: int) -> None:
    """Refuse an array that claims to be larger than this machine's memory, before allocating it.

    Raises:
        SourceError: It claims to be larger.
    """
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else 1 << 40
    if num_bytes > memory:
        reason = f"{name} claims {num_bytes / 1e9:,.1f} GB, and this machine has {memory / 1e9:,.1f} GB of memory"
        raise SourceError(path, reason, "the file is damaged or not meant to be read whole")


def begins(path: Path) -> str:
    """Return the first bytes of a file, for messages."""
    with path.open("rb") as file:
        return f"(it begins with {file.read(8)!r})"
