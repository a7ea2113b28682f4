"""Small rasters and cubes with a georeference, for the tests of files."""

import warnings
from pathlib import Path

import numpy as np
import rasterio
import xarray
from affine import Affine
from odc.geo.geobox import GeoBox
from odc.geo.xr import xr_coords

from anysat.geo.read.descriptions import DescribedCube
from anysat.geo.read.sources import Source, SourceDescription, open_sources, parse_units
from anysat.modalities import MODALITIES as M

SOUTH = "EPSG:32737"
"""UTM zone 37 south: the tests' ground lies in Tanzania."""
S2_NAMES = ("B02", "B03", "B04", "B05", "B06", "B07", "B08", "B8A", "B11", "B12")
LEFT, TOP = 260_900.0, 9_595_800.0


def geobox(shape_px, pixel_m=10.0, left=LEFT, top=TOP, crs=SOUTH) -> GeoBox:
    return GeoBox(shape_px, Affine(pixel_m, 0, left, 0, -pixel_m, top), crs)


def ramp(*shape, dtype="uint16", start=100) -> np.ndarray:
    """Values that all differ, so that a shifted or flipped pixel shows."""
    return (np.arange(np.prod(shape)) + start).reshape(shape).astype(dtype)


def write_tif(path: Path, values, box: GeoBox | None, *, names=None, nodata=None, tags=None, scale=None, units=None):
    """A GeoTIFF of (band row col); no georeference without a geobox."""
    count, height, width = values.shape
    place = {} if box is None else {"crs": str(box.crs), "transform": box.affine}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", rasterio.errors.NotGeoreferencedWarning)
        with rasterio.open(path, "w", driver="GTiff", count=count, height=height, width=width, dtype=values.dtype,
                           nodata=nodata, **place) as file:  # fmt: skip
            file.write(values)
            if names:
                file.descriptions = names
            if scale:
                file.scales, file.offsets = [scale[0]] * count, [scale[1]] * count
            if units:
                file.units = [units] * count
            file.update_tags(**(tags or {}))
    return path


def cube(values, box: GeoBox, dates, bands, **attrs) -> xarray.Dataset:
    """One variable (time band y x) with dates, band names and a reference system."""
    y, x = box.dimensions
    coords = {**xr_coords(box), "time": np.array(dates, "datetime64[ns]"), "band": list(bands)}
    data = xarray.DataArray(values, dims=("time", "band", y, x), coords=coords, attrs=attrs, name="pixels")
    dataset = data.to_dataset()
    dataset["pixels"].encoding["grid_mapping"] = "spatial_ref"
    return dataset


def write_nc(path: Path, dataset: xarray.Dataset) -> Path:
    dataset.to_netcdf(path, engine="h5netcdf")
    return path


def opened(words, units=()):
    (source,) = open_sources([words], M, parse_units(units, M)).values()
    return source


def source_of(data, modality, units=None, **described) -> Source:
    """The source of a cube in memory or of STAC items, with units by band and fields of its description."""
    by_band = {(modality.key, band): unit for band, unit in (units or {}).items()}
    given = {modality.key: DescribedCube(data, SourceDescription(**described))}
    return open_sources(given, {modality.key: modality}, by_band)[modality.key]
