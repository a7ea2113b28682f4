"""What each kind of file or folder holds: one function per kind, listed in `KINDS`.

To add a kind, write a function that turns a path into layers, and add it to the table.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from anysat.errors import SourceError, UnknownNameError
from anysat.geo.layers import Layer, Pixels, date_in, names_in_stem, names_of, reading
from anysat.modalities import Modality

if TYPE_CHECKING:
    import xarray

_TIFF = (".tif", ".tiff")
_DRIVER = "GTiff"
"""No other: a VRT under another name could lead to other files, or to the network."""
_DATE_TAGS = ("TIFFTAG_DATETIME", "DATETIME", "ACQUISITIONDATETIME", "ACQUISITION_DATETIME", "ACQUISITION_DATE",
              "DATE_ACQUIRED")  # fmt: skip
_TIME_NAMES, _BAND_NAMES = ("time", "t", "date", "dates"), ("band", "bands", "channel", "variable")
_SERIES_BANDS = {
    "sen-1": ("VV", "VH"),
    "sen-2": ("B02", "B03", "B04", "B05", "B06", "B07", "B08", "B8A", "B11", "B12"),
}
_SERIES_UNITS = {"sen-1": "linear", "sen-2": "reflectance_1e4"}


def read_geotiff(path: Path, part: str | None, _modality: Modality) -> list[Layer]:
    """One GeoTIFF: all its bands, one date."""
    _refuse_part(path, part)
    return [_tiff_layer(path)]


def read_folder(path: Path, part: str | None, _modality: Modality) -> list[Layer]:
    """GeoTIFFs of several dates, or of several bands, in one folder."""
    _refuse_part(path, part)
    files = sorted(file for file in path.iterdir() if file.suffix.lower() in _TIFF)
    if not files:
        raise SourceError(path, "the folder holds no GeoTIFF", "give a folder of .tif files, a file or a .zarr folder")
    return [_tiff_layer(file) for file in files]


def read_netcdf(path: Path, part: str | None, _modality: Modality) -> list[Layer]:
    """A NetCDF-4 cube."""
    import h5netcdf  # noqa: F401  (xarray would call a missing engine a file that it cannot read)

    return _cube_layers(path, part, {"engine": "h5netcdf"})


def read_zarr(path: Path, part: str | None, _modality: Modality) -> list[Layer]:
    """A Zarr cube."""
    import zarr  # noqa: F401

    return _cube_layers(path, part, {"engine": "zarr", "chunks": None, "consolidated": False})


def read_treesatai(path: Path, part: str | None, modality: Modality) -> list[Layer]:
    """One series of a TreeSatAI-TS HDF5 file: radar is linear power, optical is reflectance times 10 000."""
    import h5py

    with reading(path), h5py.File(path) as file:
        names = [key.removesuffix("-data") for key in file if key.endswith("-data")]
        if not names:
            raise SourceError(
                path, f"it holds no series, only {', '.join(file)}", "expected sen-2-data and sen-2-products"
            )
        name = _pick_series(path, names, part, modality)
        sensor = name[:5]
        shape = file[f"{name}-data"].shape
        products = [str(product, "utf-8") for product in file[f"{name}-products"][:]]
    stamped = [next((f for f in product.split("_") if re.match(r"\d{8}T", f)), "") for product in products]
    dates = np.array([date_in(stamp[:8]) or np.datetime64("NaT") for stamp in stamped], "datetime64[D]")
    if len(shape) != 4 or len(dates) != shape[0] or np.isnat(dates).any():
        raise SourceError(path, f"{name}-data of shape {shape} with {len(dates)} products does not make a dated series")
    bands = _SERIES_BANDS.get(sensor, ())

    def load(times: Sequence[int], bands: Sequence[int], row: slice, col: slice) -> Pixels:
        with reading(path), h5py.File(path) as file:
            pixels = file[f"{name}-data"][:, :, row, col]
        return np.asarray(pixels[np.ix_(times, bands)], np.float32)

    return [
        Layer(
            path=f"{path}::{name}",
            bands=tuple((band,) for band in bands) if len(bands) == shape[1] else ((),) * shape[1],
            units=(_SERIES_UNITS.get(sensor),) * shape[1],
            shape_px=shape[2:],
            geobox=None,
            load=load,
            dates=dates,
        )
    ]


@dataclass(frozen=True)
class Kind:
    """One kind of input."""

    name: str
    fits: Callable[[Path], bool]
    read: Callable[[Path, str | None, Modality], list[Layer]]
    is_georeferenced: bool = True
    """False for a kind that never says where it lies, and is placed by the other inputs."""


def _suffix(*suffixes: str) -> Callable[[Path], bool]:
    return lambda path: path.suffix.lower() in suffixes


KINDS = (
    Kind("GeoTIFF (.tif)", _suffix(*_TIFF), read_geotiff),
    Kind("NetCDF (.nc)", _suffix(".nc", ".nc4"), read_netcdf),
    Kind("TreeSatAI-TS HDF5 (.h5)", _suffix(".h5", ".hdf5"), read_treesatai, is_georeferenced=False),
    Kind("Zarr (.zarr)", lambda path: path.suffix == ".zarr" or (path / "zarr.json").is_file(), read_zarr),
    Kind("folder of GeoTIFFs", Path.is_dir, read_folder),
)
"""Kinds of input, the first that fits is taken."""


def _refuse_part(path: Path, part: str | None) -> None:
    if part is not None:
        raise SourceError(path, f"a GeoTIFF has no part called {part!r}", "leave ::NAME out")


def _pick_series(path: Path, names: Sequence[str], part: str | None, modality: Modality) -> str:
    if part is not None:
        if part not in names:
            raise UnknownNameError(f"series of {path}", part, names)
        return part
    fitting = [name for name in names if name.startswith("sen-1") == modality.is_radar]
    if len(fitting) > 1 and "-" in modality.key:
        fitting = [name for name in fitting if name.endswith(modality.key.partition("-")[2])]
    if len(fitting) != 1:
        raise SourceError(
            path, f"several or no series fit {modality.key!r}; it holds {', '.join(names)}",
            f"choose one: {modality.key}={path}::{names[0]}",
        )  # fmt: skip
    return fitting[0]


def _tiff_layer(path: Path) -> Layer:
    import rasterio
    from odc.geo.geobox import GeoBox
    from rasterio.errors import NotGeoreferencedWarning

    with reading(path), warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)  # said in our own words, where it matters
        with rasterio.open(path, driver=_DRIVER) as file:
            bands = [names_of(description) for description in file.descriptions]
            tags = {key.upper(): value for key, value in file.tags().items()}
            located = file.crs is not None and not file.transform.is_identity
            geobox = GeoBox(file.shape, file.transform, file.crs.to_string()) if located else None
            shape, units = file.shape, tuple(unit or None for unit in file.units)
            scalings = tuple(zip(file.scales, file.offsets, strict=True))
    if len(bands) == 1 and not bands[0]:
        bands = [names_in_stem(path)]
    date = date_in(path.stem)
    for tag in _DATE_TAGS:
        date = date or date_in(re.sub(r"^(\d{4}):(\d\d):(\d\d)", r"\1-\2-\3", tags.get(tag, "")))

    def load(_times: Sequence[int], bands: Sequence[int], row: slice, col: slice) -> Pixels:
        with reading(path), rasterio.open(path, driver=_DRIVER) as file:
            window = ((row.start, row.stop), (col.start, col.stop))
            indexes = [band + 1 for band in bands]
            stored = file.read(indexes, window=window)
            seen = np.True_ if _alpha_is_read(file, bands) else file.read_masks(indexes, window=window) > 0
        scale, offset = (np.array([scalings[band][part] for band in bands])[:, None, None] for part in (0, 1))
        plain = bool((scale == 1).all() and (offset == 0).all())
        pixels = stored.astype(np.float32) if plain else stored * scale + offset
        return np.where(seen, pixels, np.nan).astype(np.float32)[None]

    scaled = any(scaling != (1, 0) for scaling in scalings)
    return Layer(
        path=str(path),
        bands=tuple(bands),
        units=units,
        shape_px=shape,
        geobox=geobox,
        load=load,
        dates=None if date is None else np.array([date]),
        scalings=scalings if scaled else (),
    )


def _alpha_is_read(file: Any, bands: Sequence[int]) -> bool:
    """Whether a band said to be transparency is taken as imagery, as in infrared photos written as RGBA."""
    from rasterio.enums import ColorInterp

    return ColorInterp.alpha in [file.colorinterp[band] for band in bands]


def _cube_layers(path: Path, part: str | None, options: dict[str, Any]) -> list[Layer]:
    """Variables on one grid are one layer; xarray applies fill value, scale and offset when it decodes."""
    import odc.geo.xr  # noqa: F401  (gives xarray its `odc` accessor)
    import xarray

    with reading(path), xarray.open_dataset(path, decode_coords="all", **options) as dataset:
        if part is not None and part not in dataset.data_vars:
            raise UnknownNameError(f"variable of {path}", part, map(str, dataset.data_vars))
        names = [part] if part is not None else _raster_variables(path, dataset)
        return [_cube_layer(path, dataset[name], options) for name in names]


def _raster_variables(path: Path, dataset: xarray.Dataset) -> list[str]:
    """The variable with a band axis if there is one, else all that have rows and columns."""
    import odc.geo.xr

    rasters = [
        str(name) for name, v in dataset.data_vars.items() if v.dtype.kind in "fiu" and odc.geo.xr.spatial_dims(v)
    ]
    stacked = [name for name in rasters if _axis(dataset[name], _BAND_NAMES)]
    if len(stacked) > 1:
        raise SourceError(
            path, f"several variables have bands: {', '.join(stacked)}", f"choose one: PATH::{stacked[0]}"
        )
    if not rasters:
        expected = "expected a cube with dimensions (time, band, y, x)"
        raise SourceError(
            path, f"no variable lies on rows and columns: {', '.join(map(str, dataset.data_vars))}", expected
        )
    return stacked or rasters


def _axis(array: xarray.DataArray, names: Sequence[str]) -> str | None:
    return next((str(dim) for dim in array.dims if str(dim).lower() in names), None)


def _cube_layer(path: Path, array: xarray.DataArray, options: dict[str, Any]) -> Layer:
    import odc.geo.xr
    import xarray

    time, band, spatial = _axis(array, _TIME_NAMES), _axis(array, _BAND_NAMES), odc.geo.xr.spatial_dims(array)
    known = {time, band, *(spatial or ())}
    if spatial is None or not known >= set(array.dims):
        raise SourceError(f"{path}::{array.name}", f"its dimensions {array.dims} are not (time, band, y, x)")
    for dim in spatial:
        _check_even(f"{path}::{array.name}", array, str(dim))
    order = [dim for dim in (time, band, *spatial) if dim is not None]
    if band is None:
        bands: tuple[tuple[str, ...], ...] = (names_of(str(array.name)),)
    else:
        labels = array[band].values if band in array.coords else [""] * array.sizes[band]
        bands = tuple(names_of(str(label)) for label in labels)
    name, nodata = array.name, array.attrs.get("nodata")
    scaling = (float(array.encoding.get("scale_factor", 1.0)), float(array.encoding.get("add_offset", 0.0)))

    def load(times: Sequence[int], bands: Sequence[int], row: slice, col: slice) -> Pixels:
        with reading(path), xarray.open_dataset(path, **options) as dataset:
            window: dict[str, Any] = {spatial[0]: row, spatial[1]: col}
            window |= {time: list(times)} if time else {}
            window |= {band: list(bands)} if band else {}
            pixels = dataset[name].transpose(*order).isel(window).values
        if nodata is not None:
            pixels = np.where(np.isclose(pixels, float(nodata) * scaling[0] + scaling[1]), np.nan, pixels)
        pixels = pixels[None] if time is None else pixels
        return np.asarray(pixels if band else pixels[:, None], np.float32)

    geobox = array.odc.geobox if array.odc.crs is not None else None
    return Layer(
        path=f"{path}::{name}",
        bands=bands,
        units=(array.attrs.get("units"),) * len(bands),
        shape_px=(array.sizes[spatial[0]], array.sizes[spatial[1]]),
        geobox=geobox,
        load=load,
        dates=_cube_dates(path, array, time),
        scalings=() if scaling == (1, 0) else (scaling,) * len(bands),
    )


def _check_even(path: str, array: xarray.DataArray, dim: str) -> None:
    """Refuse coordinates with gaps: they are no pixel grid."""
    steps = np.diff(np.asarray(array[dim].values, np.float64)) if dim in array.coords else np.empty(0)
    if len(steps) and np.abs(steps - steps.mean()).max() > 0.01 * abs(steps.mean()):
        raise SourceError(
            path, f"its coordinate {dim!r} is not evenly spaced: steps from {steps.min():g} to {steps.max():g}",
            "resample it to a regular grid",
        )  # fmt: skip


def _cube_dates(path: Path, array: xarray.DataArray, time: str | None) -> Any:
    if time is None:
        scalar = next((array.coords[name].values for name in _TIME_NAMES if name in array.coords), None)
        stamps = None if scalar is None else np.atleast_1d(scalar)
    elif time in array.coords:
        stamps = array.coords[time].values
    else:
        raise SourceError(path, f"its axis {time!r} has no dates", "give it a coordinate of dates")
    if stamps is None:
        return None
    if stamps.dtype.kind not in "MUSO":
        raise SourceError(
            path, f"its axis {time!r} holds {stamps.dtype}, not dates", "write a coordinate of dates (CF time)"
        )
    dates = [date_in(str(stamp)) for stamp in stamps]
    if unread := [str(stamp) for stamp, date in zip(stamps, dates, strict=True) if date is None]:
        raise SourceError(path, f"{unread[0]!r} on its axis {time!r} is no date", "write dates as 2020-06-01")
    return np.array(dates, "datetime64[D]")
