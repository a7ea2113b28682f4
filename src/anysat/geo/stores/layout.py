"""The layout of an area store: groups of arrays, each over one grid, divided into the same shards.

A shard of one array is one file. This module creates the empty groups and encodes shards; `store` beside it writes
them.
"""

from __future__ import annotations

import base64
import math
import struct
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from odc.geo.geobox import GeoBox

from anysat.errors import InputError, RecordError
from anysat.geo.periods import Period
from anysat.geo.stores.classes import free_code
from anysat.geo.stores.conventions import grid_attributes, joined
from anysat.geo.stores.quantise import NODATA, Loss, from_power, from_scale, quantisation, to_power, to_scale

Kind = Literal["float32", "float16", "int8-power", "int8-scale", "uint8", "uint16"]
STORED = {"float32": "float32", "float16": "float16", "int8-power": "int8", "int8-scale": "int8", "uint8": "uint8",
          "uint16": "uint16"}  # fmt: skip
_FILL: dict[str, float] = {"float32": math.nan, "float16": math.nan, "int8": NODATA}
_BLOCK_VALUES = 4_000_000
"""Number of values converted at once, so that memory does not hold several copies of a shard."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Layout:
    """One group of the store: vectors, values or classes on a grid, in shards."""

    name: str
    """Name of the group: `patch`, `dense`, or that of a map."""
    geobox: GeoBox
    """Grid with one pixel per vector, north-up."""
    shard_px: int
    """Pixels along a side of a shard. All layouts of a store have the same number of shards."""
    dim: int | None = None
    """Length of a vector; None for one number per pixel (`time y x` instead of `time dim y x`)."""
    kind: Kind = "float32"
    """How numbers are stored."""
    variable: str = "embedding"
    """Name of the array in the group."""
    bands: Sequence[str] = ()
    """Names of the values in a vector, if they have any; the axis is then `band`."""
    chunk_px: int = 32
    """Pixels along a side of a chunk, the least that can be read. A shard is a whole number of chunks."""
    scale: NDArray[np.float32] | None = None
    """Step per dimension, for `int8-scale` (`quantise.fit_scale`)."""
    attributes: Mapping[str, Any] = field(default_factory=dict)
    """Attributes of the group, such as `conventions.embedding_attributes`; those of the grid are added."""
    variable_attributes: Mapping[str, Any] = field(default_factory=dict)
    """Attributes of the array, such as `units`, `long_name`, `flag_values`."""

    def __post_init__(self) -> None:
        if self.shard_px < 1 or self.chunk_px < 1:
            raise RecordError(f"layout {self.name}: shard_px, chunk_px", (self.shard_px, self.chunk_px), "1 or more")
        if self.kind not in STORED:
            raise RecordError(f"layout {self.name}: kind", self.kind, f"one of {', '.join(STORED)}")
        if (self.kind == "int8-scale") != (self.scale is not None):
            raise RecordError(
                f"layout {self.name}: scale", self.scale, "a step per dimension, with kind int8-scale only"
            )
        if self.scale is not None and self.scale.shape != (self.dim,):
            raise RecordError(f"layout {self.name}: scale", self.scale.shape, f"{self.dim} steps")
        if self.kind.startswith("int8") and self.dim is None:
            raise RecordError(f"layout {self.name}: kind", self.kind, "float32, float16 or uint8 without a dim")
        if self.bands and len(self.bands) != self.dim:
            raise RecordError(f"layout {self.name}: bands", list(self.bands), f"{self.dim} names")
        affine = self.geobox.affine
        if affine.b or affine.d or affine.a <= 0 or affine.e >= 0:
            raise RecordError(f"layout {self.name}: geobox", affine, "a north-up grid")

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of the stored numbers."""
        return np.dtype(STORED[self.kind])

    @property
    def codes(self) -> Sequence[int]:
        """Stored number of each class; empty if it is no class map, and numbers are stored as they are."""
        found: Sequence[int] = self.variable_attributes.get("flag_values", ())
        return found

    @property
    def fill(self) -> float:
        """Number stored where nothing was seen."""
        return free_code(self.codes) if self.dtype.kind == "u" else _FILL[self.dtype.name]

    @property
    def shards(self) -> tuple[int, int]:
        """Number of rows and columns of shards."""
        return math.ceil(self.geobox.height / self.shard_px), math.ceil(self.geobox.width / self.shard_px)

    @property
    def arrays(self) -> tuple[str, ...]:
        """Names of the arrays that are written in shards."""
        return (self.variable, "valid", *(("norm",) if self.kind == "int8-power" else ()))

    def shard_slices(self, row: int, col: int) -> tuple[slice, slice]:
        """Return the rows and columns of a shard. The last shards may be smaller."""
        side, height, width = self.shard_px, self.geobox.height, self.geobox.width
        return (slice(row * side, min((row + 1) * side, height)), slice(col * side, min((col + 1) * side, width)))

    def facts(self) -> dict[str, Any]:
        """Return what must be the same for an unfinished store to be continued, as JSON-serialisable values."""
        own_codes = list(self.codes) != list(range(len(self.codes)))
        return {
            "grid": [str(self.geobox.crs), list(self.geobox.affine)[:6], self.geobox.height, self.geobox.width],
            "shards": [self.shard_px, self.chunk_px],
            "values": [self.variable, self.kind, self.dim, list(self.bands)],
            "scale": None if self.scale is None else [float(step) for step in self.scale],
        } | ({"codes": list(self.codes)} if own_codes else {})

    def stored(self, values: NDArray[Any], valid: NDArray[np.bool_]) -> tuple[dict[str, NDArray[Any]], Loss | None]:
        """Encode values (row col dim) or (row col), with validity (row col), as the arrays of a shard.

        Of a class map, the values are the numbers of classes from 0, which are stored as their codes.
        Float32 values that are NaN wherever they are not valid are not copied.

        Returns:
            The arrays by name, and the quantisation loss; None if the kind loses nothing.

        Raises:
            InputError: Shapes do not fit, or a valid value is not finite.
        """
        shape = valid.shape if self.dim is None else (*valid.shape, self.dim)
        if values.shape != shape:
            raise InputError(f"layout {self.name}", f"values of shape {shape}", values.shape)
        as_given = self.kind == "float32" and values.dtype == np.float32 and bool(np.isnan(values[~valid]).all())
        deep = values if self.dim else values[..., None]
        out = np.moveaxis(deep, -1, 0) if as_given else np.full((deep.shape[-1], *valid.shape), self.fill, self.dtype)
        arrays = {self.variable: out if self.dim else out[0], "valid": valid}
        if self.kind == "int8-power":
            arrays["norm"] = np.full(valid.shape, np.nan, np.float32)
        total = Loss() if quantisation(self.kind) else None
        for rows in _row_blocks(len(valid), deep[0].size):
            seen = valid[rows]
            given = deep[rows][seen]
            if not np.isfinite(given).all():
                raise InputError(f"layout {self.name}", "finite values where valid", "NaN or infinity")
            if as_given:
                continue
            codes, norms, loss = self._encoded(given)
            np.moveaxis(out, 0, -1)[rows][seen] = codes
            if norms is not None:
                arrays["norm"][rows][seen] = norms
            total = total + loss if total is not None and loss is not None else total
        return arrays, total

    def _encoded(self, given: NDArray[Any]) -> tuple[NDArray[Any], NDArray[np.float32] | None, Loss | None]:
        if self.kind == "int8-power":
            codes, norms = to_power(given)
            return codes, norms, Loss.between(given, from_power(codes, norms))
        if self.codes:
            return np.asarray(self.codes, self.dtype)[given.astype(np.intp)], None, None
        if self.scale is not None:
            codes, clipped = to_scale(given, self.scale)
            return codes, None, Loss.between(given, from_scale(codes, self.scale), clipped)
        largest = float(np.finfo(self.dtype).max) if self.dtype.kind == "f" else math.inf
        clipped = int((np.abs(given) > largest).sum()) if self.kind == "float16" else 0
        codes = (given if not clipped else np.clip(given, -largest, largest)).astype(self.dtype)
        return codes, None, Loss.between(given, codes, clipped) if self.kind == "float16" else None


def _row_blocks(rows: int, values_per_row: int) -> Iterator[slice]:
    step = max(1, _BLOCK_VALUES // max(1, values_per_row))
    for first in range(0, rows, step):
        yield slice(first, min(first + step, rows))


def create_group(root: Path, layout: Layout, periods: Sequence[Period]) -> None:
    """Create a group with its coordinates, and its arrays without data."""
    import zarr
    from zarr.codecs import ZstdCodec

    skeleton = coordinates_of(layout, periods)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Consolidated metadata")
        skeleton.to_zarr(root, group=layout.name, zarr_format=3, consolidated=False, mode="w")
    group = zarr.open_group(root, path=layout.name, mode="r+")
    y, x = layout.geobox.dimensions
    sides = layout.geobox.height, layout.geobox.width
    chunk = min(layout.chunk_px, layout.shard_px)
    if layout.shard_px % chunk:
        raise RecordError(f"layout {layout.name}: shard_px", layout.shard_px, f"a multiple of chunk_px = {chunk}")
    for name in layout.arrays:
        is_main = name == layout.variable
        axes = ((layout.dim, "band" if layout.bands else "dim"),) if is_main and layout.dim else ()
        dtype = layout.dtype if is_main else np.dtype("float32" if name == "norm" else "bool")
        fill = layout.fill if is_main else (math.nan if name == "norm" else False)
        depth = tuple(size for size, _ in axes)
        group.create_array(
            name, shape=(len(periods), *depth, *sides), dtype=dtype, fill_value=fill, compressors=[ZstdCodec(level=1)],
            chunks=(1, *depth, chunk, chunk), shards=(1, *depth, layout.shard_px, layout.shard_px),
            dimension_names=("time", *(axis for _, axis in axes), y, x),
            attributes=_array_attributes(layout, name, dtype, fill),
        )  # fmt: skip


def _array_attributes(layout: Layout, name: str, dtype: np.dtype[Any], fill: float) -> dict[str, Any]:
    found: dict[str, Any] = {"grid_mapping": "spatial_ref"}
    if name == layout.variable:
        return found | {"_FillValue": _fill_attribute(dtype, fill)} | dict(layout.variable_attributes)
    if name == "norm":
        return found | {"_FillValue": _fill_attribute(dtype, fill), "long_name": "length of the vector"}
    return found | {"long_name": "whether anything was seen here", "dtype": "bool"}


def _fill_attribute(dtype: np.dtype[Any], fill: float) -> Any:
    """Return `_FillValue` as xarray reads it from Zarr 3: integers as numbers, floats in base 64."""
    return base64.b64encode(struct.pack("<d", fill)).decode() if dtype.kind == "f" else int(fill)


def coordinates_of(layout: Layout, periods: Sequence[Period]) -> Any:
    """Return coordinates and attributes by the CF conventions, as an xarray Dataset."""
    import xarray
    from odc.geo.xr import xr_coords

    coords: dict[Any, Any] = dict(xr_coords(layout.geobox))
    y, x = layout.geobox.dimensions
    for axis, name in ((y, "Y"), (x, "X")):
        coords[axis].attrs.update(axis=name)
    edges = [(np.datetime64(first, "ns"), np.datetime64(last + timedelta(days=1), "ns")) for first, last in periods]
    bounds = np.array(edges, "datetime64[ns]").reshape(-1, 2)
    coords["time"] = ("time", bounds[:, 0], {"bounds": "time_bnds", "axis": "T", "standard_name": "time"})
    coords["time_bnds"] = (("time", "nv"), bounds)
    if layout.bands:
        coords["band"] = ("band", np.array(list(layout.bands), dtype=object))
    if layout.scale is not None:
        coords["scale"] = ("dim" if not layout.bands else "band", layout.scale)
    attributes = joined(layout.attributes, grid_attributes(layout.geobox)) | {"Conventions": "CF-1.11"}
    found = xarray.Dataset(coords=coords, attrs=attributes)
    for name in ("time", "time_bnds"):
        found[name].encoding.update(units="days since 1970-01-01", calendar="standard", dtype="int64")
    return found
