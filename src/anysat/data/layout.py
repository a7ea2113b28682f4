"""Layouts: how a dataset is stored on disk, as a table used by its reader, its miniature writer, `check` and the docs.

An entry of the table is one kind of file, or one key in it. `DatasetFolder` applies a layout to a folder: it reads and
writes arrays and observations by the name of their entry.
"""

from __future__ import annotations

import glob
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from anysat.data.files import Part, read_file, read_geobox, read_shape, write_file
from anysat.errors import AnySatError, InputError, RecordError, SourceError, UnknownNameError
from anysat.modalities import MODALITIES, UNITS, Modality, band_key, find_modality
from anysat.observation import Observation

FIELD = re.compile(r"{(\w+)}")
"""A field of a path, such as `{id}`."""
TEXT = "text"
"""`dtype` of an entry that is text or a document. Its shape is not checked."""
SOURCE = "source"
"""`dtype` of an entry that is a file or folder of imagery read by `geo.read`. Only its path is checked, and its unit
comes from the file."""


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One kind of file of a dataset, or one key in it."""

    name: str
    """Name of the entry for readers and writers, unique in a layout."""
    path: str
    """Path below the dataset's folder, with fields in braces, such as `DATA_S2/S2_{id}.npy`."""
    also: tuple[str, ...] = ()
    """Other possible paths, tried in order."""
    key: str | None = None
    """Name inside the file. None if the file is one array or document."""
    dtype: str
    """Name of the stored numpy type, or `text` for names, dates and documents."""
    shape: tuple[int | str, ...] = ()
    """Length of each axis; a word such as `T` for a length that varies."""
    modality: str | None = None
    """Key of the modality whose values it holds, or None."""
    bands: tuple[str, ...] = ()
    """Names of all stored bands, in stored order. Those that the modality does not have are not read."""
    unit: str | tuple[str, ...] = ""
    """With `modality`, one of `UNITS`, or one per stored band. Otherwise the meaning of the numbers, in words."""
    nodata: float | None = None
    """Stored value that means "no data"."""
    is_optional: bool = False
    """True if a sample may lack it."""
    about: str = ""
    """What a reader of the table should know."""
    source: str = ""
    """Where these facts come from, if not from the source of the layout."""

    def __post_init__(self) -> None:
        if self.modality is None or self.dtype == SOURCE:
            return
        given = (self.unit,) if isinstance(self.unit, str) else self.unit
        for unit in given:
            if unit not in UNITS:
                raise UnknownNameError("unit", unit, UNITS, f"It was given for entry {self.name!r}")
        if not self.bands:
            raise RecordError(f"entry {self.name!r}, bands", self.bands, "the stored bands of its modality")

    @property
    def fields(self) -> tuple[str, ...]:
        """Names of the fields of the path."""
        return tuple(dict.fromkeys(FIELD.findall(self.path)))

    @property
    def described(self) -> str:
        """Description of what should be there, for messages."""
        shape = f" ({', '.join(map(str, self.shape))})" if self.shape else ""
        key = f"{self.key!r}: " if self.key else ""
        return f"{key}{self.name}, {self.dtype}{shape}" + (f", {self.about}" if self.about else "")


@dataclass(frozen=True, kw_only=True)
class Layout:
    """One way of storing a dataset on disk."""

    name: str
    """`published` for the authors' release, `training` for what the published training code expects."""
    marker: str
    """Path pattern (glob) below the folder by which the layout is recognised."""
    also: tuple[str, ...] = ()
    """Other patterns by which it is recognised."""
    entries: tuple[Entry, ...]
    """The entries, each name once."""
    source: str = ""
    """Where the facts of the entries come from."""
    checked_against: str | None = None
    """Real files that the layout was tested with. None if it was written from descriptions only."""

    def __post_init__(self) -> None:
        names = [entry.name for entry in self.entries]
        if len(set(names)) < len(names):
            raise RecordError(f"layout {self.name!r}, entries", names, "each name once")

    @cached_property
    def by_name(self) -> Mapping[str, Entry]:
        """Entries by name."""
        return {entry.name: entry for entry in self.entries}

    def __getitem__(self, name: str) -> Entry:
        if name not in self.by_name:
            raise UnknownNameError(f"entry of layout {self.name!r}", name, self.by_name)
        return self.by_name[name]

    def __contains__(self, name: str) -> bool:
        return name in self.by_name

    def is_at(self, root: Path) -> bool:
        """Whether one of the markers is found below a folder."""
        return any(next(root.glob(pattern), None) is not None for pattern in (self.marker, *self.also))


@dataclass(frozen=True)
class DatasetFolder:
    """A dataset's folder on disk, with its layout."""

    root: Path
    layout: Layout
    targets: tuple[str, ...] | None = None
    """Names of the requested targets; None for all."""
    sensors: Mapping[str, Modality] = field(default_factory=dict, hash=False)
    """The dataset's own modalities, by key; others are taken from the table of modalities."""

    def wants(self, *targets: str) -> bool:
        """Whether one of these targets is requested. If not, a reader may skip files that only they need."""
        return self.targets is None or not set(targets).isdisjoint(self.targets)

    def path(self, name: str, /, **fields: Any) -> Path:
        """Return the path of an entry of a sample; if no file is there, the first of its possible paths."""
        entry = self.layout[name]
        first = self.root / entry.path.format(**fields)
        if not entry.also or first.exists():
            return first
        others = (self.root / path.format(**fields) for path in entry.also)
        return next((path for path in others if path.exists()), first)

    def has(self, name: str, /, **fields: Any) -> bool:
        """Whether the file of an entry exists."""
        return name in self.layout and self.path(name, **fields).is_file()

    def find(self, *names: str) -> Iterator[dict[str, str]]:
        """Yield the fields of every file that matches an entry's path, sorted by path.

        If several entries with the same fields are given, every combination of fields that has a file of any of them is
        found once, those of the first entry first. So a sample without its image is still found by its label.
        """
        seen: set[tuple[str, ...]] = set()
        for pattern in (self.layout[name].path for name in names):
            expression = re.compile(_regex(pattern))
            for path in sorted(self.root.glob(glob_of(pattern))):
                found = expression.fullmatch(path.relative_to(self.root).as_posix())
                fields = found.groupdict() if found is not None else {}
                key = tuple(fields[name] for name in sorted(fields))
                if found is not None and key not in seen:
                    seen.add(key)
                    yield fields

    def read(self, *names: str, rows: Part = None, **fields: Any) -> Any:
        """Read one or several entries of a sample. Entries of one file are read together.

        Args:
            *names: Names of the entries.
            rows: Part of the first axis to read, or slices of the first axes, for files that allow it (npy, npz, HDF5).
            **fields: Fields of the path.

        Returns:
            The value of the entry, or a tuple of the values of several.

        Raises:
            MissingFileError: There is no such file. The message says what it should be.
            SourceError: The file is truncated or unsafe, or has another shape or type than the layout says.
        """
        found: dict[str, Any] = {}
        for path, group in self._by_file(names, fields).items():
            expected = "; ".join(self.layout[name].described for name in group)
            values = read_file(path, [self.layout[name].key for name in group], rows, expected)
            for name, value in zip(group, values, strict=True):
                _check_stored(self.layout[name], value, path, is_part=isinstance(rows, int))
                found[name] = value
        return found[names[0]] if len(names) == 1 else tuple(found[name] for name in names)

    def read_kept(self, name: str, **fields: Any) -> Any:
        """Read an entry as `read` does, but unchecked, and from memory as long as its file does not change."""
        entry, path = self.layout[name], self.path(name, **fields)
        facts = path.stat() if path.is_file() else None
        return _read_kept(path, entry.key, entry.described, facts and (facts.st_mtime_ns, facts.st_size))

    @contextmanager
    def understood(self, name: str, **fields: Any) -> Iterator[None]:
        """Turn errors that unexpected content causes inside the `with` block into one that names the entry's file.

        Raises:
            SourceError: The block failed with an `AttributeError`, `IndexError`, `KeyError`, `TypeError` or
                `ValueError`.
        """
        try:
            yield
        except AnySatError:
            raise
        except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
            entry = self.layout[name]
            expected = f"expected {entry.unit or entry.described}"
            raise SourceError(self.path(name, **fields), f"it cannot be understood ({error!r})", expected) from error

    def shape(self, name: str, **fields: Any) -> tuple[int, ...]:
        """Return the shape of an entry that is a .npy file, from its header.

        Raises:
            MissingFileError, SourceError: As `read`.
        """
        path, entry = self.path(name, **fields), self.layout[name]
        found = read_shape(path, entry.described)
        if entry.shape and len(found) != len(entry.shape):
            raise SourceError(path, f"it is of shape {found}", f"expected {entry.described}")
        return found

    def write(self, contents: Mapping[str, Any], geobox: Any = None, **fields: Any) -> None:
        """Write entries of a sample in the types of the layout. Entries of one file are written together."""
        for path, group in self._by_file(tuple(contents), fields).items():
            values: dict[str | None, Any] = {}
            for name in group:
                entry, value = self.layout[name], contents[name]
                _check_stored(entry, value, path)
                is_typed = isinstance(value, np.ndarray) and entry.dtype != TEXT
                values[entry.key] = value.astype(entry.dtype) if is_typed else value
            write_file(path, values, geobox)

    def observe(
        self, name: str, values: ArrayLike, *, dates: Any = None, valid: ArrayLike | None = None, **fields: Any
    ) -> Observation:
        """Turn stored values of an entry into an observation, with the bands, units and nodata value of the layout.

        Stored bands that the modality does not have are left out.

        Raises:
            SourceError: The values, dates or mask do not fit. The message names the file.
            UnknownNameError: There is no record of the modality.
        """
        entry = self.layout[name]
        modality = self._modality(entry)
        used = _used(entry, modality)
        units = entry.unit if isinstance(entry.unit, str) else [entry.unit[place] for place in used]
        array = np.asanyarray(values)
        try:
            if len(used) < len(entry.bands) == array.shape[-3]:
                array = array[..., used, :, :]
            return Observation.of(
                modality, array, bands=[entry.bands[place] for place in used], units=units, dates=dates, valid=valid,
                nodata=entry.nodata,
            )  # fmt: skip
        except (InputError, IndexError) as error:
            raise SourceError(self.path(name, **fields), str(error), f"expected {entry.described}") from error

    def store(self, name: str, observation: Observation) -> NDArray[Any]:
        """Turn an observation into stored values: the inverse of `observe`.

        Invalid values, and bands that the modality does not have, become `nodata`. If the entry has none, they become
        NaN, or 0 in integers.
        """
        entry, modality = self.layout[name], observation.modality
        used = _used(entry, modality)
        indices = [modality.find_band(entry.bands[place]) for place in used]
        units = list(observation.units)
        for place, index in zip(used, indices, strict=True):
            if modality.bands[index].ratio_of is None:
                units[index] = entry.unit if isinstance(entry.unit, str) else entry.unit[place]
        observation = observation.in_units(units)
        dtype = np.dtype(entry.dtype)
        values, valid = (part[..., indices, :, :] for part in (observation.values, observation.valid))
        empty = entry.nodata if entry.nodata is not None else (np.nan if dtype.kind == "f" else 0)
        if dtype.kind in "iu":
            values = np.rint(values).clip(np.iinfo(dtype).min, np.iinfo(dtype).max)
        stored = np.full((*values.shape[:-3], len(entry.bands), *values.shape[-2:]), empty, dtype)
        stored[..., used, :, :] = np.where(valid, values, empty).astype(dtype)
        return stored

    def geobox(self, name: str, /, **fields: Any) -> Any:
        """Return the georeference of a raster entry, or None."""
        return read_geobox(self.path(name, **fields))

    def _modality(self, entry: Entry) -> Modality:
        if entry.modality is None:
            raise RecordError(f"entry {entry.name!r}", entry.modality, "an entry with a modality")
        return find_modality(entry.modality, {**MODALITIES, **self.sensors}.values())

    def _by_file(self, names: Sequence[str], fields: Mapping[str, Any]) -> dict[Path, list[str]]:
        files: dict[Path, list[str]] = {}
        for name in names:
            files.setdefault(self.path(name, **fields), []).append(name)
        return files


@lru_cache(maxsize=64)
def _read_kept(path: Path, key: str | None, expected: str, _state: tuple[int, int] | None) -> Any:
    return read_file(path, [key], expected=expected)[0]


def glob_of(path: str) -> str:
    """Return the glob pattern of the files that a path with fields stands for. The rest of the path is literal.

    >>> glob_of("S2 [L2A]/{id}.tif")
    'S2 [[]L2A]/*.tif'
    """
    return "*".join(glob.escape(part) for part in FIELD.split(path)[::2])


def _regex(pattern: str) -> str:
    """Turn a path pattern into a regular expression. A field that occurs twice must have the same value."""
    seen: set[str] = set()
    made = []
    for index, part in enumerate(FIELD.split(pattern)):
        if index % 2 == 0:
            made.append(re.escape(part))
        else:
            made.append(f"(?P={part})" if part in seen else f"(?P<{part}>[^/]+)")
            seen.add(part)
    return "".join(made)


def _used(entry: Entry, modality: Modality) -> list[int]:
    """Return the places of the stored bands that the modality has."""
    known = frozenset().union(*(band.match_keys for band in modality.bands))
    return [place for place, name in enumerate(entry.bands) if band_key(name) in known]


def has_lengths(shape: Sequence[int], wanted: Sequence[int | str]) -> bool:
    """Whether a shape has the lengths of an entry, where words stand for any length."""
    return len(shape) == len(wanted) and all(
        isinstance(want, str) or want == got for want, got in zip(wanted, shape, strict=True)
    )


def _check_stored(entry: Entry, value: Any, path: Path, is_part: bool = False) -> None:
    """Check that an array has the kind of number, rank and lengths of the layout."""
    if entry.dtype == TEXT or not entry.shape:
        return
    array = np.asarray(value)
    fits = has_lengths(array.shape, entry.shape[1:] if is_part else entry.shape)
    numeric = array.dtype.kind in ("biuf" if np.dtype(entry.dtype).kind in "biuf" else np.dtype(entry.dtype).kind)
    if not fits or not numeric:
        where = f"{entry.key} is" if entry.key else "it is"
        raise SourceError(path, f"{where} {array.dtype} of shape {array.shape}", f"expected {entry.described}")
