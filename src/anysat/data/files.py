"""Array and text files, by suffix: one reader and one writer each, listed in `FORMATS`.

Nothing is ever unpickled beyond tensors, arrays and dates: a file that asks for more is refused and
does not run. To add a format, write the two functions and add them to the table.
"""

from __future__ import annotations

import csv
import datetime
import io
import json
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from anysat.errors import MissingFileError, SourceError, UnknownNameError
from anysat.geo.layers import reading

Keys = Sequence[str | None]
"""Names inside a file; a file that is one array has the single key None."""
Rows = int | slice | None
"""Part of the first axis to read; None for all of it."""


@dataclass(frozen=True)
class Format:
    """How files with certain suffixes are read and written."""

    suffixes: tuple[str, ...]
    read: Callable[[Path, Keys, Rows], tuple[Any, ...]]
    """Path, keys and rows to one value per key."""
    write: Callable[[Path, Mapping[str | None, Any], Any], None]
    """Path, value by key, and georeference (an `odc.geo.GeoBox` or None)."""


def read_file(path: Path, keys: Keys = (None,), rows: Rows = None, expected: str = "a file") -> tuple[Any, ...]:
    """Values of some keys of a file.

    Raises:
        MissingFileError: there is no such file; `expected` says what should be there.
        SourceError: it is truncated, of another format, lacks a key, or asks for code to be run.
    """
    if not path.is_file():
        raise MissingFileError(path, expected)
    with reading(path):
        return find_format(path).read(path, keys, rows)


def write_file(path: Path, contents: Mapping[str | None, Any], geobox: Any = None) -> None:
    """Write values by key; folders are made as needed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    find_format(path).write(path, contents, geobox)


def find_format(path: Path) -> Format:
    """The format of a file, by its suffix."""
    for form in FORMATS:
        if path.suffix.lower() in form.suffixes:
            return form
    raise UnknownNameError("file suffix", path.suffix, [suffix for form in FORMATS for suffix in form.suffixes])


def _plain(array: Any, path: Path, key: str | None = None) -> Any:
    if isinstance(array, np.ndarray) and array.dtype.hasobject:
        raise SourceError(path, f"{key or 'it'} holds pickled objects", "they could run code, so they are not read")
    return array


def _sliced(array: Any, rows: Rows) -> Any:
    return array if rows is None else array[rows]


def _only(keys: Keys, path: Path) -> None:
    if any(key is not None for key in keys):
        raise SourceError(path, f"a {path.suffix} file has no parts, asked for {', '.join(map(str, keys))}")


def _read_npy(path: Path, keys: Keys, rows: Rows) -> tuple[Any, ...]:
    _only(keys, path)
    array = np.load(path, allow_pickle=False, mmap_mode=None if rows is None else "r")
    return (np.array(_sliced(_plain(array, path), rows)),) * len(keys)


def _write_npy(path: Path, contents: Mapping[str | None, Any], _geobox: Any) -> None:
    np.save(path, contents[None], allow_pickle=False)


def _read_npz(path: Path, keys: Keys, rows: Rows) -> tuple[Any, ...]:
    try:
        with np.load(path, allow_pickle=False) as file:
            return tuple(_sliced(_plain(file[_known(key, file.files, path)], path, key), rows) for key in keys)
    except zipfile.BadZipFile as error:
        raise SourceError(path, f"it cannot be read ({error})", "check that the file is complete") from error


def _write_npz(path: Path, contents: Mapping[str | None, Any], _geobox: Any) -> None:
    np.savez_compressed(path, **{str(key): value for key, value in contents.items()})


def _known(key: str | None, names: Sequence[str], path: Path) -> str:
    if key not in names:
        raise SourceError(path, f"it has no {key!r}, only {', '.join(map(str, names))}")
    return str(key)


def _read_hdf5(path: Path, keys: Keys, rows: Rows) -> tuple[Any, ...]:
    import h5py

    with h5py.File(path) as file:
        return tuple(file[_known(key, list(file), path)][() if rows is None else rows] for key in keys)


def _write_hdf5(path: Path, contents: Mapping[str | None, Any], _geobox: Any) -> None:
    import h5py

    with h5py.File(path, "w") as file:
        for key, value in contents.items():
            array = np.asarray(value)
            file[str(key)] = array.astype(bytes) if array.dtype.kind == "U" else array


def _read_raster(path: Path, keys: Keys, _rows: Rows) -> tuple[Any, ...]:
    import warnings

    import rasterio
    from rasterio.errors import NotGeoreferencedWarning

    _only(keys, path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        with rasterio.open(path) as file:
            return (file.read(),) * len(keys)


def _write_raster(path: Path, contents: Mapping[str | None, Any], geobox: Any) -> None:
    import warnings

    import rasterio
    from rasterio.errors import NotGeoreferencedWarning

    array = np.asarray(contents[None])
    is_png = path.suffix.lower() == ".png"
    options: dict[str, Any] = {} if is_png else {"compress": "deflate"}
    if geobox is not None and not is_png:
        options |= {"crs": str(geobox.crs), "transform": geobox.affine}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        with rasterio.open(
            path, "w", driver="PNG" if is_png else "GTiff", count=len(array), height=array.shape[1],
            width=array.shape[2], dtype=array.dtype.name, **options,
        ) as file:  # fmt: skip
            file.write(array)


def read_geobox(path: Path) -> Any:
    """Georeference of a raster (an `odc.geo.GeoBox`), or None where it has none."""
    import warnings

    import rasterio
    from odc.geo.geobox import GeoBox
    from rasterio.errors import NotGeoreferencedWarning

    with reading(path), warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        with rasterio.open(path) as file:
            if file.crs is None or file.transform.is_identity:
                return None
            return GeoBox(file.shape, file.transform, file.crs.to_string())


def _read_tensors(path: Path, keys: Keys, rows: Rows) -> tuple[Any, ...]:
    """A file of `torch.save`, tensors, numpy arrays, dates and plain containers only."""
    import pickle

    import torch

    try:
        with torch.serialization.safe_globals(_harmless()):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        reason = next((line for line in str(error).splitlines() if "GLOBAL" in line or "global" in line), str(error))
        raise SourceError(path, f"it asks for more than tensors and dates ({reason.strip()})",
                          "such a file could run code, so it is not read") from error  # fmt: skip
    if list(keys) == [None]:
        return (_sliced(_as_array(content), rows),)
    if not isinstance(content, Mapping):
        raise SourceError(path, f"it holds a {type(content).__name__}, not {', '.join(map(str, keys))} by name")
    return tuple(_sliced(_as_array(content[_known(key, list(content), path)]), rows) for key in keys)


def _harmless() -> list[Any]:
    """What a tensor file may hold beyond tensors: numpy arrays and dates; none of these runs code."""
    from numpy.core.multiarray import _reconstruct, scalar  # the names old files carry

    dtypes = [type(np.dtype(kind)) for kind in "?bBhHiIlLqQefdSUM"]
    import _codecs

    return [
        np.ndarray, np.dtype, _reconstruct, scalar, _codecs.encode, *dtypes,
        datetime.datetime, datetime.date, datetime.timedelta, datetime.timezone,
    ]  # fmt: skip


def _as_array(content: Any) -> Any:
    import torch

    return content.numpy() if isinstance(content, torch.Tensor) else content


def _write_tensors(path: Path, contents: Mapping[str | None, Any], _geobox: Any) -> None:
    import torch

    def stored(value: Any) -> Any:
        return torch.from_numpy(np.array(value)) if isinstance(value, np.ndarray) else value

    if list(contents) == [None]:
        torch.save(stored(contents[None]), path)
    else:
        torch.save({key: stored(value) for key, value in contents.items()}, path)


def _read_json(path: Path, keys: Keys, _rows: Rows) -> tuple[Any, ...]:
    content = json.loads(path.read_text("utf-8"))
    return tuple(content if key is None else content[_known(key, list(content), path)] for key in keys)


def _write_json(path: Path, contents: Mapping[str | None, Any], _geobox: Any) -> None:
    path.write_text(json.dumps(contents[None] if list(contents) == [None] else dict(contents)), "utf-8")


def _read_csv(path: Path, keys: Keys, _rows: Rows) -> tuple[Any, ...]:
    """Columns by name as arrays of text; the whole file, without a key, as a list of rows by column name."""
    rows = list(csv.DictReader(io.StringIO(path.read_text("utf-8-sig"))))
    if list(keys) == [None]:
        return (rows,)
    if not rows:
        raise SourceError(path, "the table has no rows")
    return tuple(np.array([row[_known(key, list(row), path)] for row in rows]) for key in keys)


def _write_csv(path: Path, contents: Mapping[str | None, Any], _geobox: Any) -> None:
    """A list of rows by column name, or columns by name."""
    if list(contents) == [None]:
        rows = list(contents[None])
        names = list(rows[0]) if rows else []
        table = [[row[name] for name in names] for row in rows]
    else:
        names = [str(key) for key in contents]
        table = [list(row) for row in zip(*contents.values(), strict=True)]
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([names, *table])


def _read_lines(path: Path, keys: Keys, _rows: Rows) -> tuple[Any, ...]:
    _only(keys, path)
    return ([line for line in path.read_text("utf-8").splitlines() if line.strip()],) * len(keys)


def _write_lines(path: Path, contents: Mapping[str | None, Any], _geobox: Any) -> None:
    path.write_text("".join(f"{line}\n" for line in contents[None]), "utf-8")


FORMATS = (
    Format((".npy",), _read_npy, _write_npy),
    Format((".npz",), _read_npz, _write_npz),
    Format((".h5", ".hdf5"), _read_hdf5, _write_hdf5),
    Format((".tif", ".tiff", ".png"), _read_raster, _write_raster),
    Format((".pt", ".pth"), _read_tensors, _write_tensors),
    Format((".json", ".geojson"), _read_json, _write_json),
    Format((".csv",), _read_csv, _write_csv),
    Format((".lst", ".txt"), _read_lines, _write_lines),
)
"""Kinds of file, by suffix."""
