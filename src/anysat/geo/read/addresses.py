"""Rasters at addresses such as http:// and s3://, or at paths that only GDAL can open, such as /vsicurl/."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from affine import Affine
from odc.geo.geobox import GeoBox

GEOTIFF = "GTiff"
"""The driver of GeoTIFFs. No other is tried: a VRT under the name of a GeoTIFF could lead to other files."""
_DRIVER_OF = {".jp2": "JP2OpenJPEG"}
_REMOTE = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://|/vsi\w+/")


def is_remote(location: str) -> bool:
    """Whether a location is an address, or a path that only GDAL can open.

    >>> is_remote("s3://bucket/a.tif"), is_remote("/vsicurl/https://host/a.tif"), is_remote("/data/a.tif")
    (True, True, False)
    """
    return _REMOTE.match(location) is not None


def unsigned(uri: str) -> str:
    """Return an address without its signature, which changes every time; for a `file:` address, its path."""
    parts = urlsplit(uri)
    if parts.scheme == "file":
        return unquote(parts.path)
    return uri if "://" not in uri else parts._replace(query="", fragment="").geturl()


def suffix_of(location: str) -> str:
    """Return the suffix of the file at an address or path, in lower case.

    >>> suffix_of("https://host/scene.TIF?signature=a.b")
    '.tif'
    """
    return Path(unsigned(location)).suffix.lower()


def geobox_of(file: Any) -> GeoBox | None:
    """Return the pixel grid of an open raster; None without a georeference."""
    located = file.crs is not None and not file.transform.is_identity
    return GeoBox(file.shape, file.transform, file.crs.to_string()) if located else None


@contextmanager
def opened(uri: str) -> Iterator[Any]:
    """Open a raster in the environment of `odc.stac.configure_rio`. Errors name its address without the signature."""
    import rasterio
    from odc.loader import RioDriver
    from rasterio.errors import NotGeoreferencedWarning, RasterioError

    from anysat.geo.read.layers import reading

    env, name = RioDriver(), _DRIVER_OF.get(suffix_of(uri), GEOTIFF)
    nowhere = GeoBox((1, 1), Affine.identity(), None)
    with reading(unsigned(uri)), env.restore_env(env.capture_env(), env.new_load(nowhere)), warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)  # its STAC item may have a georeference
        try:
            with rasterio.open(uri, driver=name) as file:
                yield file
        except RasterioError as error:
            raise OSError(str(error.__cause__ or error)) from error
