"""Open a finished store of an area or a tile, and read its groups shard by shard."""

from __future__ import annotations

import glob
import json
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import date, timedelta
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from affine import Affine
from numpy.typing import NDArray
from odc.geo.geobox import GeoBox

from anysat.errors import MissingFileError, SourceError, UnknownNameError
from anysat.geo.periods import Period
from anysat.geo.stores.quantise import from_power, from_scale
from anysat.geo.stores.store import Unit, partial_of

DAMAGED = (OSError, ValueError, KeyError, IndexError, TypeError, AttributeError, RuntimeError, OverflowError)
"""Exceptions that zarr, its codecs, pyproj and Python raise if files or metadata of a store are damaged."""

STRIP_VALUES = 4_000_000
"""The most values read at once, if one row of chunks has no more."""
_COORDINATES = frozenset({"time", "time_bnds", "band", "y", "x", "spatial_ref", "scale", "valid", "norm", "tile"})
_MAIN = ("patch", "class", "value", "probability")
"""Main groups in order of precedence. `dense` and `uncertainty` only accompany them."""


@dataclass(frozen=True, eq=False, kw_only=True)
class StoredGroup:
    """One group of a store: vectors, values or classes on a grid."""

    name: str
    group: Any
    """The Zarr group."""
    variable: str
    """Name of its main array."""
    geobox: GeoBox
    periods: tuple[Period, ...]
    """First and last day of each period; empty for a tile, which has no time axis."""
    bands: tuple[str, ...]
    """Names of the values in a vector; empty if they have none."""

    @cached_property
    def array(self) -> Any:
        """The main array."""
        return self.group[self.variable]

    @property
    def attributes(self) -> dict[str, Any]:
        """Attributes of the group."""
        return dict(self.group.attrs)

    @property
    def variable_attributes(self) -> dict[str, Any]:
        """Attributes of the main array."""
        return dict(self.array.attrs)

    @property
    def dim(self) -> int | None:
        """Length of a vector; None for one number per pixel."""
        axes = self.array.ndim - (1 if self.periods else 0)
        return None if axes == 2 else int(self.array.shape[-3])

    @property
    def class_names(self) -> dict[int, str]:
        """Names of the classes by the code that is stored for them; empty if it is no class map."""
        told = self.variable_attributes
        return dict(zip(told["flag_values"], told["class_names"], strict=True)) if "class_names" in told else {}

    @property
    def is_embedding(self) -> bool:
        """Whether it holds embeddings, not a map."""
        return "geoemb:type" in self.group.attrs

    @property
    def arrays(self) -> tuple[str, ...]:
        """Names of the arrays that are written in shards."""
        return tuple(name for name in (self.variable, "valid", "norm") if name in self.group)

    @property
    def shard_px(self) -> int:
        """Pixels along a side of a shard."""
        return int((self.array.shards or self.array.chunks)[-1])

    @property
    def shards(self) -> tuple[int, int]:
        """Number of rows and columns of shards."""
        side = self.shard_px
        return math.ceil(self.geobox.height / side), math.ceil(self.geobox.width / side)

    def units(self, period: int | None = None) -> Iterator[Unit]:
        """Return the shards of one period, or of all."""
        periods = range(max(1, len(self.periods))) if period is None else (period,)
        return (Unit(number, *map(int, index)) for number in periods for index in np.ndindex(self.shards))

    def slices(self, unit: Unit) -> tuple[slice, slice]:
        """Return the rows and columns of a shard."""
        side, height, width = self.shard_px, self.geobox.height, self.geobox.width
        return (slice(unit.row * side, min((unit.row + 1) * side, height)),
                slice(unit.col * side, min((unit.col + 1) * side, width)))  # fmt: skip

    def strips(self, unit: Unit) -> Iterator[tuple[slice, slice]]:
        """Yield the rows and columns of parts of a shard, each of whole rows of chunks, with few enough values."""
        rows, cols = self.slices(unit)
        chunk = int(self.array.chunks[-2])
        step = chunk * max(1, STRIP_VALUES // (chunk * self.shard_px * (self.dim or 1)))
        return ((slice(first, min(first + step, rows.stop)), cols) for first in range(rows.start, rows.stop, step))

    def valid(self, unit: Unit) -> NDArray[np.bool_]:
        """Read the validity (row col) of a shard."""
        return self.part("valid", unit)

    def codes(self, unit: Unit) -> NDArray[Any]:
        """Read the numbers of a shard as stored, (row col dim) or (row col)."""
        return self._codes(self._place(unit))

    def part(self, name: str, unit: Unit) -> NDArray[Any]:
        """Read another array (row col) of the group over a shard."""
        return np.asarray(self.group[name][self._place(unit)])

    def norms(self, unit: Unit) -> NDArray[Any] | None:
        """Read the lengths (row col) of a shard's vectors; None if they are not stored by the power rule."""
        return self.part("norm", unit) if "norm" in self.group else None

    @property
    def scale(self) -> NDArray[np.float32] | None:
        """Step per dimension of codes by the `scale` rule; None for others."""
        return np.asarray(self.group["scale"][:]) if "scale" in self.group else None

    def values(self, unit: Unit) -> NDArray[Any]:
        """Read the decoded values of a shard, (row col dim) or (row col); of a class map, the numbers from 0."""
        return self._values(self._place(unit))

    def window(self, period: int, rows: slice, cols: slice) -> tuple[NDArray[Any], NDArray[np.bool_]]:
        """Read decoded values (row col dim) or (row col), and validity (row col), of some rows and columns."""
        return self._values(self._at(period, rows, cols)), self.seen(period, rows, cols)

    def seen(self, period: int, rows: slice, cols: slice) -> NDArray[np.bool_]:
        """Read the validity (row col) of some rows and columns."""
        return np.asarray(self.group["valid"][self._at(period, rows, cols)])

    def _values(self, place: tuple[Any, ...]) -> NDArray[Any]:
        codes, scale = self._codes(place), self.scale
        if "norm" in self.group:
            return from_power(codes, np.asarray(self.group["norm"][place]))
        if self.class_names:
            return self._class_numbers[codes]
        return codes if scale is None else from_scale(codes, scale)

    @cached_property
    def _class_numbers(self) -> NDArray[np.int32]:
        """Number of the class of each code, -1 for codes of none."""
        found = np.full(np.iinfo(self.array.dtype).max + 1, -1, np.int32)
        found[list(self.class_names)] = range(len(self.class_names))
        return found

    def _codes(self, place: tuple[Any, ...]) -> NDArray[Any]:
        found = np.asarray(self.array[place])
        return found if self.dim is None else np.moveaxis(found, 0, -1)

    def _place(self, unit: Unit) -> tuple[Any, ...]:
        return self._at(unit.period, *self.slices(unit))

    def _at(self, period: int, rows: slice, cols: slice) -> tuple[Any, ...]:
        return (*((period,) if self.periods else ()), ..., rows, cols)


def open_stored(path: Path) -> dict[str, StoredGroup]:
    """Return the groups of a store that lie on a grid, by name.

    Raises:
        MissingFileError: There is nothing at the path.
        SourceError: It is not a Zarr store, is unfinished or damaged, or has no such group.
    """
    import zarr

    if not path.exists() and partial_of(path).exists():
        raise SourceError(
            path, f"it is unfinished, and its finished part is in {partial_of(path)}",
            "give the same command again to continue",
        )  # fmt: skip
    if not path.exists():
        raise MissingFileError(path, "a store written by `anysat embed` or `anysat predict`")
    with _undamaged(path):
        names = sorted(name for name, _ in zarr.open_group(path, mode="r", use_consolidated=False).groups())
    found = {}
    for name in names:
        with _undamaged(path / name):
            group = zarr.open_group(path, path=name, mode="r", use_consolidated=False)
            if "spatial:transform" in group.attrs:
                found[name] = _stored_group(path, name, group)
    if not found:
        raise SourceError(path, "it has no group with spatial: attributes", "give a store written by `anysat embed`")
    return found


def find_group(path: Path, name: str | None = None) -> StoredGroup:
    """Return a group of a store by name; if that is None, the first of `patch`, `class`, `value`, `probability`, …."""
    groups = open_stored(path)
    name = name or next((main for main in _MAIN if main in groups), next(iter(groups)))
    if name not in groups:
        raise UnknownNameError("group", name, groups, f"It must be one of {path}")
    return groups[name]


def zone_stores(path: Path) -> list[Path]:
    """Return the store of that name or, if it was given to an area in several UTM zones, the stores of the zones."""
    if path.exists() or partial_of(path).exists():
        return [path]
    names = {one.name.removesuffix(".partial") for one in path.parent.glob(f"{glob.escape(path.stem)}-utm*")}
    return [path.with_name(name) for name in sorted(names) if name.endswith(path.suffix)] or [path]


def provenance_of(path: Path) -> Mapping[str, Any]:
    """Return what a store says about its making: inputs, weights, options, version, summary."""
    import zarr

    found = zarr.open_group(path, mode="r", use_consolidated=False).attrs.get("anysat", {})
    return found if isinstance(found, Mapping) else {}


def told_of(error: Exception) -> str:
    """Describe an error of damaged data in one line."""
    return str(error) if isinstance(error, SourceError) else f"{type(error).__name__}: {error}"


@contextmanager
def _undamaged(path: Path) -> Iterator[None]:
    """Turn errors of opening a store or a group into a `SourceError`, which names the damaged file if it is known."""
    try:
        yield
    except SourceError:
        raise
    except DAMAGED as error:
        if path.is_file():
            todo = "give the store that the file was made from, or give `--out NAME.zarr` to the command that wrote it"
            raise SourceError(path, "it is a file, not a Zarr store", todo) from error
        where = _damaged_file(path) or path
        raise SourceError(where, f"it is not a Zarr store, or it is damaged ({told_of(error)})") from error


def _damaged_file(path: Path) -> Path | None:
    """Return the first metadata file that is not a JSON object, or None."""
    for pattern in ("zarr.json", "*/zarr.json", "*/*/zarr.json"):
        for file in sorted(path.glob(pattern)):
            try:
                told = json.loads(file.read_text())
            except (OSError, ValueError):
                return file
            if not isinstance(told, dict):
                return file
    return None


def _stored_group(path: Path, name: str, group: Any) -> StoredGroup:
    arrays = {key: array for key, array in group.arrays() if key not in _COORDINATES}
    if len(arrays) != 1:
        raise SourceError(path, f"its group {name} has {sorted(arrays) or 'no arrays'}, expected one main array")
    (variable, array), attributes = next(iter(arrays.items())), group.attrs
    height, width = array.shape[-2:]
    crs = attributes.get("proj:code") or attributes.get("proj:wkt2") or attributes.get("proj:projjson")
    if crs is None:
        raise SourceError(path, f"its group {name} has no reference system (proj:code, proj:wkt2 or proj:projjson)")
    transform = attributes["spatial:transform"]
    if not (isinstance(transform, list) and len(transform) == 6 and all(isinstance(n, int | float) for n in transform)):
        raise SourceError(path / name / "zarr.json", f"spatial:transform is {transform!r}, expected six numbers")
    axes = array.metadata.dimension_names or ()
    if missing := [key for key in ("time", "time_bnds") if "time" in axes and key not in group]:
        raise SourceError(path / name, f"{' and '.join(missing)} is missing, so its periods are not known")
    return StoredGroup(
        name=name, group=group, variable=variable, geobox=GeoBox((height, width), Affine(*transform), crs),
        periods=_periods(group), bands=tuple(map(str, group["band"][:])) if "band" in group else (),
    )  # fmt: skip


def _periods(group: Any) -> tuple[Period, ...]:
    """Return first and last day of each period, which are stored as days since the day in `units`."""
    if "time_bnds" not in group:
        return ()
    bounds = group["time_bnds"]
    first = date.fromisoformat(str(bounds.attrs.get("units", group["time"].attrs["units"])).split()[-1][:10])
    days = [(first + timedelta(days=int(a)), first + timedelta(days=int(b) - 1)) for a, b in bounds[:]]
    return tuple(days)
