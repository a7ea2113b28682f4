"""Read the layers of each kind of file or folder, with one function per kind, listed in `KINDS`.

To add a kind, write a function that turns a path into layers, and add it to `KINDS`.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from odc.geo import CRS

from anysat.errors import EmptySourceError, SourceError, UnknownNameError, some
from anysat.geo.read.addresses import GEOTIFF, geobox_of, opened, suffix_of, unsigned
from anysat.geo.read.arrays import file_layers
from anysat.geo.read.descriptions import RASTERS
from anysat.geo.read.layers import Layer, Load, Pixels, date_in, known_unit, names_in_stem, names_of, reading
from anysat.modalities import Modality

_TIFF = (".tif", ".tiff")
_OTHER = tuple(suffix for suffix in RASTERS if suffix not in _TIFF)
"""Other rasters. In a folder of GeoTIFFs, they are not read."""
_DATE_TAGS = ("ACQUISITIONDATETIME", "ACQUISITION_DATETIME", "ACQUISITION_DATE", "DATE_ACQUIRED", "DATETIME")
"""Tags with the date of acquisition."""
_WRITTEN_TAG = "TIFFTAG_DATETIME"
"""Tag with the time of writing, which software often sets to the time of acquisition."""
_SERIES_BANDS = {
    "sen-1": ("VV", "VH"),
    "sen-2": ("B02", "B03", "B04", "B05", "B06", "B07", "B08", "B8A", "B11", "B12"),
}
_SERIES_UNITS = {"sen-1": "linear", "sen-2": "reflectance_1e4"}


class Wanted(NamedTuple):
    """What to look for in a file."""

    modality: Modality
    part: str | None = None
    """Series of an HDF5 file, or variable of a cube."""
    also: tuple[str, ...] = ()
    """Variables to read besides the imagery, if there are any: quality layers."""


def read_geotiff(path: Path, wanted: Wanted) -> list[Layer]:
    """Read a GeoTIFF: all its bands, one date."""
    _refuse_part(path, wanted.part)
    return [_tiff_layer(path, wanted, (*_DATE_TAGS, _WRITTEN_TAG))]


def read_address(address: str, wanted: Wanted) -> list[Layer]:
    """Read a GeoTIFF at an address, or at a path that only GDAL can open: all its bands, one date."""
    if suffix_of(address) in _OTHER or address.endswith("/"):
        raise SourceError(
            unsigned(address), "only single GeoTIFFs can be read from an address",
            "copy it to a disk, or describe many GeoTIFFs as STAC items (see `anysat embed --help`)",
        )  # fmt: skip
    _refuse_part(address, wanted.part)
    return [_tiff_layer(address, wanted, (*_DATE_TAGS, _WRITTEN_TAG))]


def read_folder(path: Path, wanted: Wanted) -> list[Layer]:
    """Read a folder of GeoTIFFs of several dates, or of several bands."""
    _refuse_part(path, wanted.part)
    files = sorted(file for file in path.iterdir() if file.suffix.lower() in _TIFF and not file.is_dir())
    if not files:
        left, advice = beside_geotiffs(path), "give a folder of .tif files, a file or a .zarr folder"
        if left:
            raise SourceError(path, f"the folder has no GeoTIFF, only {some(left)}", advice)
        raise EmptySourceError(path, "the folder has no GeoTIFF", advice)
    tags = _DATE_TAGS if len(files) > 1 else (*_DATE_TAGS, _WRITTEN_TAG)  # all may have been written on one day
    return [_tiff_layer(file, wanted, tags) for file in files]


def beside_geotiffs(path: Path) -> list[str]:
    """Return the imagery in a folder that is not read with its GeoTIFFs: other rasters, and folders of GeoTIFFs."""
    return sorted(
        f"{entry.name}/" if entry.is_dir() else entry.name
        for entry in path.iterdir()
        if (any(entry.glob("*.[tT][iI][fF]*")) if entry.is_dir() and entry.suffix not in _OTHER
            else entry.suffix.lower() in _OTHER)
    )  # fmt: skip


def read_netcdf(path: Path, wanted: Wanted) -> list[Layer]:
    """Read a NetCDF-4 cube."""
    import h5netcdf  # noqa: F401  (xarray would report a missing engine as an unreadable file)

    return file_layers(path, wanted.part, wanted.also, {"engine": "h5netcdf"})


def read_zarr(path: Path, wanted: Wanted) -> list[Layer]:
    """Read a Zarr cube."""
    import zarr  # noqa: F401

    return file_layers(path, wanted.part, wanted.also, {"engine": "zarr", "chunks": None, "consolidated": False})


def read_treesatai(path: Path, wanted: Wanted) -> list[Layer]:
    """Read one series of a TreeSatAI-TS HDF5 file. Radar is linear power, optical is reflectance times 10 000."""
    import h5py

    with reading(path), h5py.File(path) as file:
        names = [key.removesuffix("-data") for key in file if key.endswith("-data")]
        if not names:
            raise SourceError(
                path, f"it has no series, only {', '.join(file)}", "expected sen-2-data and sen-2-products"
            )
        name = _pick_series(path, names, wanted)
        sensor = name[:5]
        shape = file[f"{name}-data"].shape
        products = [str(product, "utf-8") for product in file[f"{name}-products"][:]]
    stamped = [next((f for f in product.split("_") if re.match(r"\d{8}T", f)), "") for product in products]
    dates = np.array([date_in(stamp[:8]) or np.datetime64("NaT") for stamp in stamped], "datetime64[D]")
    if len(shape) != 4 or len(dates) != shape[0] or np.isnat(dates).any():
        raise SourceError(path, f"{name}-data of shape {shape} with {len(dates)} products is not a dated series")
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
    read: Callable[[Path, Wanted], list[Layer]]
    is_georeferenced: bool = True
    """False for a kind without georeference, which is placed by the other inputs."""
    left_out: Callable[[Path], Sequence[str]] = lambda _: ()
    """Returns the names of imagery that is not read."""


def _suffix(*suffixes: str) -> Callable[[Path], bool]:
    return lambda path: path.suffix.lower() in suffixes and not path.is_dir()


KINDS = (
    Kind("GeoTIFF (.tif)", _suffix(*_TIFF), read_geotiff),
    Kind("NetCDF (.nc)", _suffix(".nc", ".nc4"), read_netcdf),
    Kind("TreeSatAI-TS HDF5 (.h5)", _suffix(".h5", ".hdf5"), read_treesatai, is_georeferenced=False),
    Kind("Zarr (.zarr)", lambda path: path.suffix == ".zarr" or (path / "zarr.json").is_file(), read_zarr),
    Kind("folder of GeoTIFFs", Path.is_dir, read_folder, left_out=beside_geotiffs),
)
"""Kinds of input. The first that fits is taken."""


def _refuse_part(path: Path | str, part: str | None) -> None:
    if part is not None:
        raise SourceError(path, f"a GeoTIFF has no part called {part!r}", "leave ::NAME out")


def _pick_series(path: Path, names: Sequence[str], wanted: Wanted) -> str:
    modality, part, _ = wanted
    if part is not None:
        if part not in names:
            raise UnknownNameError(f"series of {path}", part, names)
        return part
    fitting = [name for name in names if name.startswith("sen-1") == modality.is_radar]
    if len(fitting) > 1 and "-" in modality.key:
        fitting = [name for name in fitting if name.endswith(modality.key.partition("-")[2])]
    if len(fitting) != 1:
        raise SourceError(
            path, f"several or no series fit {modality.key!r}; it has {', '.join(names)}",
            f"choose one: {modality.key}={path}::{names[0]}",
        )  # fmt: skip
    return fitting[0]


def _open_tiff(path: Path | str) -> Any:
    """Open a GeoTIFF by its path or address; refuse other formats under such a name."""
    import rasterio

    return opened(path) if isinstance(path, str) else rasterio.open(path, driver=GEOTIFF)


def _tiff_layer(path: Path | str, wanted: Wanted, date_tags: Sequence[str]) -> Layer:
    from rasterio.errors import NotGeoreferencedWarning

    name = unsigned(path) if isinstance(path, str) else str(path)
    where, stem = path if isinstance(path, str) else path.absolute(), Path(name).stem
    with reading(path), warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)  # reported later, if it matters
        with _open_tiff(path) as file:
            labels = tuple(description or "" for description in file.descriptions)
            bands = [names_of(label) for label in labels]
            tags = {key.upper(): value for key, value in file.tags().items()}
            geobox = geobox_of(file)
            shape, units = file.shape, _units(file, geobox.crs if geobox else None, wanted.modality)
            scalings = tuple(zip(file.scales, file.offsets, strict=True))
            stated = [number for number in file.nodatavals if number is not None and np.isfinite(number)]
    if len(bands) == 1 and not bands[0]:
        bands = [names_in_stem(Path(name))]
    date = date_in(stem, is_strict=not wanted.modality.is_temporal)
    for tag in date_tags:
        date = date or date_in(re.sub(r"^(\d{4}):(\d\d):(\d\d)", r"\1-\2-\3", tags.get(tag, "")))
    scaled = any(scaling != (1, 0) for scaling in scalings)
    load, load_stored = partial(_read_tiff, where, scalings), partial(_read_tiff, where, None)
    if geobox is None:
        load, load_stored = partial(_quietly, load), partial(_quietly, load_stored)
    return Layer(
        path=name,
        bands=tuple(bands),
        labels=labels,
        units=units,
        shape_px=shape,
        geobox=geobox,
        load=load,
        dates=None if date is None else np.array([date]),
        scalings=scalings if scaled else (),
        load_stored=load_stored,
        nodata=stated[0] if stated else None,
        scene=stem,
    )


def _units(file: Any, crs: CRS | None, modality: Modality) -> tuple[str | None, ...]:
    """Return the units of the bands, without metres that GDAL reports for every band if the system has heights."""
    units = tuple(unit or None for unit in file.units)
    has_heights = crs is not None and len(crs.proj.axis_info) > 2
    if has_heights and all(known_unit(unit) == "m" for unit in units) and all(b.unit != "m" for b in modality.bands):
        return (None,) * len(units)
    return units


def _read_tiff(
    path: Path | str, scalings: Sequence[tuple[float, float]] | None, _times: Sequence[int], bands: Sequence[int],
    row: slice, col: slice,
) -> Pixels:  # fmt: skip
    """Read a part of a GeoTIFF. `scalings` are scale and offset of each band; None reads the numbers as stored."""
    with reading(path), _open_tiff(path) as file:
        window = ((row.start, row.stop), (col.start, col.stop))
        stored = file.read([band + 1 for band in bands], window=window)
        seen = unmasked(file, bands, window, None if scalings is None else stored)
    pixels = stored.astype(np.float32)
    if scalings is not None and any(scalings[band] != (1, 0) for band in bands):
        scale, offset = np.array([scalings[band] for band in bands]).T[..., None, None]
        pixels = stored * scale + offset
    return np.where(seen, pixels, np.nan).astype(np.float32)[None]


def _quietly(load: Load, *where: Any) -> Pixels:
    """Read a part of a raster without georeference, without GDAL's warning that it has none."""
    from rasterio.errors import NotGeoreferencedWarning

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        return load(*where)


def unmasked(
    file: Any, bands: Sequence[int], window: Any, stored: NDArray[Any] | None, beside: Sequence[int] = ()
) -> NDArray[np.bool_]:
    """Return where neither a mask nor an alpha band hides pixels, nor, if `stored` is given, the nodata number.

    If the alpha band is one of the bands that are read (`bands` and `beside`), as in infrared photos stored as RGBA, it
    is imagery, not a mask.
    """
    from rasterio.enums import ColorInterp, MaskFlags

    flags, meanings = [file.mask_flag_enums[band] for band in bands], list(file.colorinterp)
    alpha = meanings.index(ColorInterp.alpha) if ColorInterp.alpha in meanings else None
    if alpha in (*bands, *beside) and any(MaskFlags.alpha in some_flags for some_flags in flags):
        return np.array(True)
    if alpha is not None and any(MaskFlags.nodata in some_flags for some_flags in flags):
        # GDAL ignores the alpha band if there is a nodata number
        seen = np.array(True) if alpha in bands else file.read(alpha + 1, window=window) > 0
        nodata = np.array([file.nodatavals[band] for band in bands], np.float32)[:, None, None]
        return seen if stored is None else seen & (stored.astype(np.float32) != nodata)
    if stored is None and not any(MaskFlags.per_dataset in some_flags for some_flags in flags):
        return np.array(True)
    return np.asarray(file.read_masks([band + 1 for band in bands], window=window) > 0)
