"""A finished store of an area, or of a tile, as its readers here see it: its groups, their place, shard by shard."""

from __future__ import annotations

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
from anysat.geo.layout import Period
from anysat.geo.quantise import from_power, from_scale
from anysat.geo.store import Unit, partial_of

DAMAGED = (OSError, ValueError, KeyError, IndexError, TypeError, AttributeError, RuntimeError, OverflowError)
"""What zarr, its codecs, pyproj and Python raise where files or metadata of a store are not as they must be."""

_COORDINATES = frozenset({"time", "time_bnds", "band", "y", "x", "spatial_ref", "scale", "valid", "norm", "tile"})
_MAIN = ("patch", "class", "value", "probability")
"""Groups that are what is asked for, the first before the others; `dense` and `uncertainty` come beside them."""


@dataclass(frozen=True, eq=False, kw_only=True)
class StoredGroup:
    """One group of a store: vectors, values or classes on a grid."""

    name: str
    group: Any
    """The Zarr group."""
    variable: str
    """Its main array."""
    geobox: GeoBox
    periods: tuple[Period, ...]
    """First and last day of each; empty for a tile, which has no time axis."""
    bands: tuple[str, ...]
    """Names along a vector; empty where they have none."""

    @cached_property
    def array(self) -> Any:
        """The main array."""
        return self.group[self.variable]

    @property
    def attributes(self) -> dict[str, Any]:
        """Of the group."""
        return dict(self.group.attrs)

    @property
    def variable_attributes(self) -> dict[str, Any]:
        """Of the main array."""
        return dict(self.array.attrs)

    @property
    def dim(self) -> int | None:
        """Length of a vector; None for one number per pixel."""
        axes = self.array.ndim - (1 if self.periods else 0)
        return None if axes == 2 else int(self.array.shape[-3])

    @property
    def is_embedding(self) -> bool:
        """Whether it holds embeddings and not a map."""
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
        """Rows and columns of shards."""
        side = self.shard_px
        return math.ceil(self.geobox.height / side), math.ceil(self.geobox.width / side)

    def units(self, period: int | None = None) -> Iterator[Unit]:
        """Shards, of one period or all."""
        periods = range(max(1, len(self.periods))) if period is None else (period,)
        return (Unit(number, *map(int, index)) for number in periods for index in np.ndindex(self.shards))

    def slices(self, unit: Unit) -> tuple[slice, slice]:
        """Rows and columns of a shard."""
        side, height, width = self.shard_px, self.geobox.height, self.geobox.width
        return (slice(unit.row * side, min((unit.row + 1) * side, height)),
                slice(unit.col * side, min((unit.col + 1) * side, width)))  # fmt: skip

    def valid(self, unit: Unit) -> NDArray[np.bool_]:
        """Validity (row col) of a shard."""
        return self.part("valid", unit)

    def codes(self, unit: Unit) -> NDArray[Any]:
        """What is stored in a shard, (row col dim) or (row col)."""
        return self._codes(self._place(unit))

    def part(self, name: str, unit: Unit) -> NDArray[Any]:
        """Another array (row col) of the group over a shard."""
        return np.asarray(self.group[name][self._place(unit)])

    def norms(self, unit: Unit) -> NDArray[Any] | None:
        """Lengths (row col) of a shard's vectors, where codes of the power rule are stored."""
        return self.part("norm", unit) if "norm" in self.group else None

    @property
    def scale(self) -> NDArray[np.float32] | None:
        """Step per dimension kept beside linear codes."""
        return np.asarray(self.group["scale"][:]) if "scale" in self.group else None

    def values(self, unit: Unit) -> NDArray[Any]:
        """Values of a shard, (row col dim) or (row col), codes turned back."""
        return self._values(self._place(unit))

    def window(self, period: int, rows: slice, cols: slice) -> tuple[NDArray[Any], NDArray[np.bool_]]:
        """Values (row col dim), or (row col), codes turned back, and validity (row col) of some rows and columns."""
        place = self._at(period, rows, cols)
        return self._values(place), np.asarray(self.group["valid"][place])

    def _values(self, place: tuple[Any, ...]) -> NDArray[Any]:
        codes, scale = self._codes(place), self.scale
        if "norm" in self.group:
            return from_power(codes, np.asarray(self.group["norm"][place]))
        return codes if scale is None else from_scale(codes, scale)

    def _codes(self, place: tuple[Any, ...]) -> NDArray[Any]:
        found = np.asarray(self.array[place])
        return found if self.dim is None else np.moveaxis(found, 0, -1)

    def _place(self, unit: Unit) -> tuple[Any, ...]:
        return self._at(unit.period, *self.slices(unit))

    def _at(self, period: int, rows: slice, cols: slice) -> tuple[Any, ...]:
        return (*((period,) if self.periods else ()), ..., rows, cols)


def open_stored(path: Path) -> dict[str, StoredGroup]:
    """The groups of a store that lie on a grid.

    Raises:
        MissingFileError: there is nothing at the path.
        SourceError: it is no Zarr store, is unfinished or damaged, or has no such group.
    """
    import zarr

    if not path.exists() and partial_of(path).exists():
        raise SourceError(path, f"it is unfinished: what is done lies in {partial_of(path)}", "give its command again")
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
    """One group of a store: that of the name, else the first there is of `patch`, `class`, `value` and others."""
    groups = open_stored(path)
    name = name or next((main for main in _MAIN if main in groups), next(iter(groups)))
    if name not in groups:
        raise UnknownNameError("group", name, groups, f"It must be one of {path}")
    return groups[name]


def provenance_of(path: Path) -> Mapping[str, Any]:
    """What a store says it is made from, by what, and how that went."""
    import zarr

    found = zarr.open_group(path, mode="r", use_consolidated=False).attrs.get("anysat", {})
    return found if isinstance(found, Mapping) else {}


def told_of(error: Exception) -> str:
    """What is wrong with something damaged, in a line."""
    return str(error) if isinstance(error, SourceError) else f"{type(error).__name__}: {error}"


@contextmanager
def _undamaged(path: Path) -> Iterator[None]:
    """Opening a store, or a group of one.

    Raises:
        SourceError: it names the file that is damaged, where that is known.
    """
    try:
        yield
    except SourceError:
        raise
    except DAMAGED as error:
        where = _damaged_file(path) or path
        raise SourceError(where, f"it is no Zarr store, or a damaged one ({told_of(error)})") from error


def _damaged_file(path: Path) -> Path | None:
    """The first file of metadata that is no JSON object."""
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
        raise SourceError(
            path, f"its group {name} has {sorted(arrays) or 'no arrays'} where one main array was expected"
        )
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
        raise SourceError(path / name, f"{' and '.join(missing)} is missing, by which its periods are known")
    return StoredGroup(
        name=name, group=group, variable=variable, geobox=GeoBox((height, width), Affine(*transform), crs),
        periods=_periods(group), bands=tuple(map(str, group["band"][:])) if "band" in group else (),
    )  # fmt: skip


def _periods(group: Any) -> tuple[Period, ...]:
    """First and last day of each period, from whole days since a day that the units name."""
    if "time_bnds" not in group:
        return ()
    bounds = group["time_bnds"]
    first = date.fromisoformat(str(bounds.attrs.get("units", group["time"].attrs["units"])).split()[-1][:10])
    days = [(first + timedelta(days=int(a)), first + timedelta(days=int(b) - 1)) for a, b in bounds[:]]
    return tuple(days)
