"""Open cubes with named axes, in files or in memory, as layers. They are decoded by xarray as far as possible."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from anysat.dates import calendar_date
from anysat.errors import SourceError, UnknownNameError
from anysat.geo.read.layers import Layer, Pixels, date_in, names_of, reading
from anysat.observation import AXIS_NAMES, nodata_in

if TYPE_CHECKING:
    import xarray

_TIME_NAMES, _BAND_NAMES = AXIS_NAMES["time"], AXIS_NAMES["band"]
Opening = Callable[[bool], AbstractContextManager["xarray.Dataset"]]
"""A function that opens the cube for reading; its argument is True for numbers as stored."""


def file_layers(path: Path, part: str | None, also: Sequence[str], options: dict[str, Any]) -> list[Layer]:
    """Open a file with xarray and return its layers. `also` names variables to include besides the imagery, if any."""
    opening = partial(_opened, path.absolute(), options)
    with reading(path), opening(False) as dataset:
        return _layers(str(path), dataset, part, also, opening)


def array_layers(name: str, data: xarray.Dataset | xarray.DataArray, also: Sequence[str] = ()) -> list[Layer]:
    """Return the layers of a cube in memory, or of lazy blocks that are computed window by window."""
    import xarray

    if not isinstance(data, (xarray.Dataset, xarray.DataArray)):
        raise SourceError(name, f"a {type(data).__name__} is not an xarray cube", "give a Dataset or a DataArray")
    if isinstance(data, xarray.DataArray):
        data = data.rename("pixels" if data.name is None else data.name).to_dataset()
    grids = {v.attrs.get("grid_mapping", v.encoding.get("grid_mapping", "")) for v in data.data_vars.values()}
    data = data.set_coords([grid for grid in grids if grid in data.data_vars])
    return _layers(name, data, None, also, partial(_held, data))


@contextmanager
def _opened(path: Path, options: dict[str, Any], stored: bool) -> Iterator[xarray.Dataset]:
    import xarray

    try:
        dataset = xarray.open_dataset(path, decode_coords="all", mask_and_scale=not stored, **options)
    except ValueError as error:
        if "cftime" not in str(error):
            raise
        calendar = re.search(r"calendar '(\w+)'", str(error))
        raise SourceError(
            path, f"its dates are of the calendar {calendar[1] if calendar else 'of a model'!r}, which needs a package",
            "`pip install cftime`; days that the common calendar lacks, such as 30 February, are refused",
        ) from error  # fmt: skip
    with dataset:
        yield dataset


def _held(dataset: xarray.Dataset, stored: bool) -> AbstractContextManager[xarray.Dataset]:
    del stored  # a cube in memory is already decoded; its encoding says how it was stored
    return nullcontext(dataset)


def _layers(path: str, dataset: xarray.Dataset, part: str | None, also: Sequence[str], opening: Opening) -> list[Layer]:
    """Return one layer per variable, with the file's own fill value, scale and offset applied."""
    import odc.geo.xr  # noqa: F401  (gives xarray its `odc` accessor)

    if part is not None and part not in dataset.data_vars:
        raise UnknownNameError(f"variable of {path}", part, map(str, dataset.data_vars))
    names = [part] if part is not None else _raster_variables(path, dataset, also)
    beside = [str(v) for v in dataset.data_vars if str(v).upper() in {name.upper() for name in also}]
    return [_layer(path, dataset[name], opening) for name in dict.fromkeys([*names, *beside])]


def _raster_variables(path: str, dataset: xarray.Dataset, also: Sequence[str]) -> list[str]:
    """Return the variable with a band axis if there is one, else all that have rows and columns."""
    import odc.geo.xr

    beside = {name.upper() for name in also}
    rasters = [
        str(name) for name, v in dataset.data_vars.items() if v.dtype.kind in "fiu" and odc.geo.xr.spatial_dims(v)
    ]
    stacked = [name for name in rasters if _axis(dataset[name], _BAND_NAMES) and name.upper() not in beside]
    if len(stacked) > 1:
        raise SourceError(
            path,
            f"several variables have bands: {', '.join(stacked)}",
            f"choose one: PATH::{stacked[0]}, or of a cube in memory cube[[{stacked[0]!r}]]",
        )
    if not rasters:
        expected = "expected a cube with dimensions (time, band, y, x)"
        raise SourceError(path, f"no variable has rows and columns: {', '.join(map(str, dataset.data_vars))}", expected)
    return stacked or rasters


def _axis(array: xarray.DataArray, names: Sequence[str]) -> str | None:
    return next((str(dim) for dim in array.dims if str(dim).lower() in names), None)


def _layer(path: str, array: xarray.DataArray, opening: Opening) -> Layer:
    import odc.geo.xr

    where = f"{path}::{array.name}"
    time, band, spatial = _axis(array, _TIME_NAMES), _axis(array, _BAND_NAMES), odc.geo.xr.spatial_dims(array)
    known = {time, band, *(spatial or ())}
    if spatial is None or not known >= set(array.dims):
        raise SourceError(where, f"its dimensions {array.dims} are not (time, band, y, x)")
    for dim in spatial:
        _check_even(where, array, str(dim))
    array = _unrounded(array, [str(dim) for dim in spatial])
    labels = _labels(array, band)
    bands = tuple(map(names_of, labels))
    decoded = float(array.encoding.get("scale_factor", 1.0)), float(array.encoding.get("add_offset", 0.0))
    pending = float(array.attrs.get("scale_factor", 1.0)), float(array.attrs.get("add_offset", 0.0))
    read = partial(_read, opening, path, str(array.name), (time, band, str(spatial[0]), str(spatial[1])))
    pending_fill, decoded_fill = nodata_in(array.attrs), nodata_in(array.encoding)
    fill = None if pending_fill is None else pending_fill * decoded[0] + decoded[1]
    scaling = pending if decoded == (1, 0) else decoded
    return Layer(
        path=where,
        bands=bands,
        labels=labels,
        units=(array.attrs.get("units"),) * len(bands),
        shape_px=(array.sizes[spatial[0]], array.sizes[spatial[1]]),
        geobox=array.odc.geobox if array.odc.crs is not None else None,
        has_crs=array.odc.crs is not None,
        load=partial(read, fill, pending),
        dates=_dates(path, array, time),
        scalings=() if scaling == (1, 0) else (scaling,) * len(bands),
        load_stored=partial(read, None, None),
        nodata=decoded_fill if pending_fill is None else pending_fill,
        scene=Path(path).stem,
    )


def _labels(array: xarray.DataArray, band: str | None) -> tuple[str, ...]:
    """Return what the bands are called: the labels of their axis, else `long_name`, where rioxarray stores them."""
    if band is None:
        return (str(array.name),)
    labels = list(array[band].values) if band in array.coords else [""] * array.sizes[band]
    long = array.attrs.get("long_name")
    if (
        not any(names_of(str(label)) for label in labels)
        and isinstance(long, (tuple, list))
        and len(long) == len(labels)
    ):
        labels = list(long)
    return tuple(map(str, labels))


def _read(
    opening: Opening, path: str, name: str, axes: tuple[str | None, str | None, str, str], fill: float | None,
    pending: tuple[float, float] | None, times: Sequence[int], bands: Sequence[int], row: slice, col: slice,
) -> Pixels:  # fmt: skip
    """Read a part of a variable. `pending` is the scale and offset that xarray does not apply; None for raw numbers."""
    time, band, y, x = axes
    with reading(path), opening(pending is None) as dataset:
        window: dict[str, Any] = {y: row, x: col}
        window |= {time: list(times)} if time else {}
        window |= {band: list(bands)} if band else {}
        lazy = dataset[name].isel(window).transpose(*(axis for axis in axes if axis is not None))
        pixels = lazy.compute(scheduler="synchronous").values  # windows are read in parallel already
        if pending is None:
            pixels = _encoded(pixels, dataset[name].encoding)
    if fill is not None:
        pixels = np.where(np.isclose(pixels, fill), np.nan, pixels)
    if pending is not None and pending != (1, 0):
        pixels = pixels * pending[0] + pending[1]
    pixels = pixels[None] if time is None else pixels
    return np.asarray(pixels if band else pixels[:, None], np.float32)


def _encoded(pixels: NDArray[Any], encoding: Mapping[str, Any]) -> NDArray[Any]:
    """Undo the decoding by xarray, including nodata. Numbers of a file opened undecoded stay as they are."""
    scale, offset = float(encoding.get("scale_factor", 1.0)), float(encoding.get("add_offset", 0.0))
    fill = nodata_in(encoding)
    if (scale, offset) != (1, 0):
        pixels = (pixels.astype(np.float64) - offset) / scale
        if np.dtype(encoding.get("dtype", float)).kind in "iu":
            pixels = np.round(pixels)
    return pixels if fill is None else np.where(np.isnan(pixels), fill, pixels)


def _check_even(path: str, array: xarray.DataArray, dim: str) -> None:
    """Refuse unevenly spaced coordinates, which are not a pixel grid."""
    places = array[dim].values if dim in array.coords else np.empty(0)
    steps = np.diff(np.asarray(places, np.float64))
    rounded = np.finfo(np.float32).eps * np.abs(places).max() if places.dtype == np.float32 and len(steps) else 0.0
    allowed = max(0.01 * abs(steps.mean()), min(rounded, 0.5 * abs(steps.mean()))) if len(steps) else 0.0
    if len(steps) and np.abs(steps - steps.mean()).max() > allowed:
        raise SourceError(
            path, f"its coordinate {dim!r} is not evenly spaced: steps from {steps.min():g} to {steps.max():g}",
            "resample it to a regular grid",
        )  # fmt: skip


def _unrounded(array: xarray.DataArray, dims: Sequence[str]) -> xarray.DataArray:
    """Replace float32 coordinates by evenly spaced ones, because their first step differs from the mean by rounding."""
    even = {
        dim: (dim, np.linspace(float(array[dim][0]), float(array[dim][-1]), array.sizes[dim]), array[dim].attrs)
        for dim in dims
        if dim in array.coords and array[dim].dtype == np.float32 and array.sizes[dim] > 1
    }
    return array.assign_coords(even) if even else array


def _dates(path: str, array: xarray.DataArray, time: str | None) -> Any:
    if time is None:
        scalar = next((array.coords[name].values for name in _TIME_NAMES if name in array.coords), None)
        if scalar is None:
            return None
        stamps = np.atleast_1d(scalar)
    elif time in array.coords:
        stamps = array.coords[time].values
    else:
        raise SourceError(path, f"its axis {time!r} has no dates", "give it a coordinate with dates")
    if stamps.dtype.kind not in "MUSO":
        raise SourceError(
            path, f"its axis {time!r} holds {stamps.dtype}, not dates", "write a coordinate with dates (CF time)"
        )
    dates = [_day(str(stamp)) for stamp in stamps]
    if unread := [str(stamp) for stamp, date in zip(stamps, dates, strict=True) if date is None]:
        raise SourceError(path, f"{unread[0]!r} on its axis {time!r} is not a date", "write dates as 2020-06-01")
    return np.array(dates, "datetime64[D]")


def _day(stamp: str) -> np.datetime64 | None:
    """Return the day in UTC of a time stamp, else the first date in the text, else None."""
    try:
        day = np.datetime64(str(calendar_date(stamp)), "D")
    except ValueError:  # text that does not begin with a date
        return date_in(stamp)
    return None if np.isnat(day) else day
