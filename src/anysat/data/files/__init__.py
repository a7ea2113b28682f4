"""Array and text files by suffix: one reader and one writer for each format, listed in `FORMATS`.

Only tensors, arrays and dates are ever unpickled. A file that asks for more is refused, and nothing in it runs
(`tensor_files`, `numpy_files`). To add a format, write the two functions and add them to the table.
"""

from __future__ import annotations

import csv
import io
import json
import math
import pickle
import re
import struct
import tokenize
import warnings
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from anysat.data.files.numpy_files import Part as Part
from anysat.data.files.numpy_files import npy_shape, read_npy, read_npz, refuse_giant
from anysat.data.files.png_files import require_whole_png
from anysat.data.files.tensor_files import read_tensors
from anysat.errors import MissingFileError, MissingKeyError, SourceError, UnknownNameError
from anysat.geo.read.layers import reading

Keys = Sequence[str | None]
"""Names inside a file; a file that is one array has the single key None."""
_DAMAGED = (EOFError, zipfile.BadZipFile, struct.error, zlib.error, pickle.UnpicklingError, csv.Error, MemoryError,
            ArithmeticError, AssertionError, AttributeError, SyntaxError, tokenize.TokenError)  # fmt: skip
"""Errors that libraries raise about damaged files, in addition to those that `reading` handles."""


@dataclass(frozen=True)
class Format:
    """How files with certain suffixes are read and written."""

    suffixes: tuple[str, ...]
    read: Callable[[Path, Keys, Part], tuple[Any, ...]]
    """Takes path, keys and rows; returns one value per key."""
    write: Callable[[Path, Mapping[str | None, Any], Any], None]
    """Takes path, values by key, and georeference (an `odc.geo.GeoBox` or None)."""


def read_file(path: Path, keys: Keys = (None,), rows: Part = None, expected: str = "a file") -> tuple[Any, ...]:
    """Read the values of some keys of a file.

    Raises:
        MissingFileError: There is no such file. `expected` says in the message what should be there.
        SourceError: The file is truncated or of another format, lacks a key, or asks for code to be run.
    """
    with _opening(path, expected):
        return find_format(path).read(path, keys, rows)


def read_shape(path: Path, expected: str = "an array") -> tuple[int, ...]:
    """Return the shape of a .npy file without reading its values. Raises as `read_file`."""
    with _opening(path, expected):
        return npy_shape(path)


@contextmanager
def _opening(path: Path, expected: str) -> Iterator[None]:
    """Check that a file can be read at all, and turn errors raised inside the block into ones that name it."""
    with reading(path):
        try:
            if path.is_dir():
                raise SourceError(path, "it is a folder, not a file", f"expected {expected}")
            if not path.is_file():
                raise MissingFileError(path, expected)
            path.open("rb").close()
            if not path.stat().st_size:
                raise SourceError(path, "it is empty (0 bytes)", f"expected {expected}; get it again")
            yield
        except PermissionError as error:
            raise SourceError(path, "there is no permission to read it", "ask its owner, or chmod it") from error
        except _DAMAGED as error:
            problem = str(error).strip().split("\n")[0] or type(error).__name__
            raise SourceError(path, f"it cannot be read ({problem})", "check that the file is complete") from error


def write_file(path: Path, contents: Mapping[str | None, Any], geobox: Any = None) -> None:
    """Write values by key; folders are created as needed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    find_format(path).write(path, contents, geobox)


def find_format(path: Path) -> Format:
    """Return the format of a file, by its suffix."""
    for form in FORMATS:
        if path.suffix.lower() in form.suffixes:
            return form
    raise UnknownNameError("file suffix", path.suffix, [suffix for form in FORMATS for suffix in form.suffixes])


def _sliced(array: Any, rows: Part) -> Any:
    return array if rows is None else array[rows]


def _only(keys: Keys, path: Path) -> None:
    if any(key is not None for key in keys):
        raise SourceError(path, f"a {path.suffix} file has no parts, asked for {', '.join(map(str, keys))}")


def _read_npy(path: Path, keys: Keys, rows: Part) -> tuple[Any, ...]:
    _only(keys, path)
    return (read_npy(path, rows),) * len(keys)


def _write_npy(path: Path, contents: Mapping[str | None, Any], _geobox: Any) -> None:
    np.save(path, contents[None], allow_pickle=False)


def _write_npz(path: Path, contents: Mapping[str | None, Any], _geobox: Any) -> None:
    np.savez_compressed(path, **{str(key): value for key, value in contents.items()})


def _known(key: str | None, names: Sequence[str], path: Path) -> str:
    if key not in names:
        raise MissingKeyError(path, f"it has no {key!r}, only {', '.join(map(str, names))}")
    return str(key)


def _read_hdf5(path: Path, keys: Keys, rows: Part) -> tuple[Any, ...]:
    import h5py

    with h5py.File(path, "r") as file:
        return tuple(_hdf5_array(file[_known(key, list(file), path)], path, key, rows) for key in keys)


def _hdf5_array(dataset: Any, path: Path, key: str | None, rows: Part) -> Any:
    import h5py

    if not isinstance(dataset, h5py.Dataset):
        raise SourceError(path, f"{key!r} is a {type(dataset).__name__.lower()}, not an array")
    refuse_giant(path, str(key), _asked_size(dataset.shape, rows) * dataset.dtype.itemsize)
    return dataset[() if rows is None else rows]


def _asked_size(shape: Sequence[int], rows: Part) -> int:
    """Return the number of values in a part of an array."""
    parts = rows if isinstance(rows, tuple) else () if rows is None else (rows,)
    asked = [1 if isinstance(part, int) else len(range(*part.indices(length)))
             for part, length in zip(parts, shape, strict=False)]  # fmt: skip
    return math.prod((*asked, *shape[len(asked) :]))


def _write_hdf5(path: Path, contents: Mapping[str | None, Any], _geobox: Any) -> None:
    import h5py

    with h5py.File(path, "w") as file:
        for key, value in contents.items():
            array = np.asarray(value)
            file[str(key)] = array.astype(bytes) if array.dtype.kind == "U" else array


def _read_raster(path: Path, keys: Keys, _rows: Part) -> tuple[Any, ...]:
    _only(keys, path)
    if _driver(path) == "PNG":
        require_whole_png(path)
    with _raster(path) as file:
        refuse_giant(path, "the raster", file.count * file.width * file.height * np.dtype(file.dtypes[0]).itemsize)
        return (file.read(),) * len(keys)


@contextmanager
def _raster(path: Path, mode: str = "r", **options: Any) -> Iterator[Any]:
    """Open a raster; that it has no georeference is no warning."""
    import rasterio
    from rasterio.errors import NotGeoreferencedWarning

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        with rasterio.open(path, mode, driver=_driver(path), **options) as file:
            yield file


def _driver(path: Path) -> str:
    """Return the only driver allowed for a suffix: others, such as VRT, could lead to other files or to the network."""
    return "PNG" if path.suffix.lower() == ".png" else "GTiff"


def _write_raster(path: Path, contents: Mapping[str | None, Any], geobox: Any) -> None:
    array = np.asarray(contents[None])
    is_png = _driver(path) == "PNG"
    options: dict[str, Any] = {} if is_png else {"compress": "deflate"}
    if geobox is not None and not is_png:
        options |= {"crs": str(geobox.crs), "transform": geobox.affine}
    count, height, width = array.shape
    with _raster(path, "w", count=count, height=height, width=width, dtype=array.dtype.name, **options) as file:
        file.write(array)


def read_geobox(path: Path) -> Any:
    """Return the georeference of a raster (an `odc.geo.GeoBox`), or None if it has none."""
    from anysat.geo.read.addresses import geobox_of

    with _opening(path, "a raster"), _raster(path) as file:
        return geobox_of(file)


def _read_tensors(path: Path, keys: Keys, rows: Part) -> tuple[Any, ...]:
    content = read_tensors(path)
    if list(keys) == [None]:
        return (_sliced(content, rows),)
    if not isinstance(content, Mapping):
        raise SourceError(path, f"it holds a {type(content).__name__}, not {', '.join(map(str, keys))} by name")
    return tuple(_sliced(content[_known(key, list(content), path)], rows) for key in keys)


def _write_tensors(path: Path, contents: Mapping[str | None, Any], _geobox: Any) -> None:
    import torch

    def stored(value: Any) -> Any:
        return torch.from_numpy(np.array(value)) if isinstance(value, np.ndarray) else value

    if list(contents) == [None]:
        torch.save(stored(contents[None]), path)
    else:
        torch.save({key: stored(value) for key, value in contents.items()}, path)


def _read_json(path: Path, keys: Keys, _rows: Part) -> tuple[Any, ...]:
    content = json.loads(path.read_text("utf-8"))
    if any(key is not None for key in keys) and not isinstance(content, Mapping):
        raise SourceError(path, f"it holds a {type(content).__name__}, not {', '.join(map(str, keys))} by name")
    return tuple(content if key is None else content[_known(key, list(content), path)] for key in keys)


def _write_json(path: Path, contents: Mapping[str | None, Any], _geobox: Any) -> None:
    path.write_text(json.dumps(contents[None] if list(contents) == [None] else dict(contents)), "utf-8")


def _read_csv(path: Path, keys: Keys, _rows: Part) -> tuple[Any, ...]:
    """Read columns by name as arrays of text or, without a key, the whole file as rows by column name.

    The keys `#1`, `#2` … are the columns of a table without a header.
    """
    text = io.StringIO(path.read_text("utf-8-sig"))
    names = _numbered(keys)
    reader = csv.DictReader(text, fieldnames=names, strict=True)
    reader.fieldnames = [name.strip() for name in reader.fieldnames or ()]
    rows = list(reader)
    twice = next((name for name, count in Counter(reader.fieldnames or ()).items() if count > 1 and name), None)
    if twice is not None:
        raise SourceError(path, f"the header has {twice!r} twice", "give each column its own name")
    if any(None in row for row in rows) and names is None:
        raise SourceError(path, "a row has more values than the table has columns", "check that it is a table")
    short = next((number for number, row in enumerate(rows, 1) if None in row.values()), None)
    if short is not None:
        raise SourceError(path, f"row {short} has fewer values than it has columns", "check that the file is complete")
    if list(keys) == [None]:
        return (rows,)
    if not rows:
        raise SourceError(path, "the table has no rows")
    return tuple(np.array([row[_known(key, list(row), path)] for row in rows]) for key in keys)


def _write_csv(path: Path, contents: Mapping[str | None, Any], _geobox: Any) -> None:
    """Write a list of rows by column name, or columns by name."""
    if list(contents) == [None]:
        rows = list(contents[None])
        names = list(rows[0]) if rows else []
        table = [[row[name] for name in names] for row in rows]
    else:
        names = [str(key) for key in contents]
        table = [list(row) for row in zip(*contents.values(), strict=True)]
        names = [] if _numbered(names) else names
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([names, *table] if names else table)


def _numbered(keys: Keys) -> list[str] | None:
    """Return the columns of a table without a header up to the highest asked for; None if the keys are names."""
    numbers = [re.fullmatch(r"#(\d+)", key or "") for key in keys]
    if not numbers or not all(numbers):
        return None
    return [f"#{place + 1}" for place in range(max(int(number[1]) for number in numbers if number))]


def _read_lines(path: Path, keys: Keys, _rows: Part) -> tuple[Any, ...]:
    _only(keys, path)
    return ([line for line in path.read_text("utf-8").splitlines() if line.strip()],) * len(keys)


def _write_lines(path: Path, contents: Mapping[str | None, Any], _geobox: Any) -> None:
    path.write_text("".join(f"{line}\n" for line in contents[None]), "utf-8")


FORMATS = (
    Format((".npy",), _read_npy, _write_npy),
    Format((".npz",), read_npz, _write_npz),
    Format((".h5", ".hdf5"), _read_hdf5, _write_hdf5),
    Format((".tif", ".tiff", ".png"), _read_raster, _write_raster),
    Format((".pt", ".pth"), _read_tensors, _write_tensors),
    Format((".json", ".geojson"), _read_json, _write_json),
    Format((".csv",), _read_csv, _write_csv),
    Format((".lst", ".txt"), _read_lines, _write_lines),
)
"""Formats of files, by suffix."""
