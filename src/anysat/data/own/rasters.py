"""Label rasters of a user's own data, read onto the grid of a tile."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from odc.geo import CRS

from anysat.data.files import read_geobox
from anysat.errors import SourceError
from anysat.geo.grid import boundary_in
from anysat.geo.read.layers import reading
from anysat.geo.read.resample import WARP_MB

if TYPE_CHECKING:
    from odc.geo.geobox import GeoBox


def read_nearest(path: Path, geobox: GeoBox) -> NDArray[np.float64]:
    """Read the only band of a raster onto a grid by nearest neighbour; NaN outside, in nodata and where transparent.

    Raises:
        SourceError: The raster cannot be read, has several bands or no georeference, or lies elsewhere; or its size is
            not that of a grid without a reference system.
    """
    if geobox.crs is not None and not _overlaps(path, geobox):
        raise SourceError(path, "it does not overlap the imagery of its tile", "check its georeference")
    return _read(path, geobox)


def read_nearest_if_met(path: Path, geobox: GeoBox) -> NDArray[np.float64] | None:
    """Read like `read_nearest`, or return None if the raster lies elsewhere.

    Raises:
        SourceError: The raster cannot be read, has several bands or no georeference.
    """
    return _read(path, geobox) if _overlaps(path, geobox) else None


def _read(path: Path, geobox: GeoBox) -> NDArray[np.float64]:
    import rasterio
    from rasterio.enums import ColorInterp
    from rasterio.errors import NotGeoreferencedWarning

    with reading(path), warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        file = rasterio.open(path, driver="GTiff")
    with reading(path), file:
        meant = [meaning != ColorInterp.alpha for meaning in file.colorinterp]
        if sum(meant) != 1:
            advice = "write one number per pixel: the class, or the value"
            raise SourceError(path, f"it has {sum(meant)} bands, expected one", advice)
        if geobox.crs is None and file.shape != geobox.shape:
            problem = (
                f"its {file.height} x {file.width} pixels are not the {geobox.height} x {geobox.width} of its tile"
            )
            raise SourceError(
                path, problem, "a tile without a georeference needs labels of its own size: check `gsd_m`"
            )
        place = meant.index(True)
        found = _nearest(file, place, geobox) * file.scales[place] + file.offsets[place]
        for band in (band for band, is_meant in enumerate(meant) if not is_meant):
            seen = _nearest(file, band, geobox)  # NaN where it equals the nodata number, whatever that is
            is_hidden = (seen == 0) | (np.isnan(seen) if file.nodatavals[band] == 0 else False)
            found[is_hidden] = np.nan
        return found


def _overlaps(path: Path, geobox: GeoBox) -> bool:
    own = read_geobox(path)
    if own is None:
        raise SourceError(path, "it has no georeference", "write one into the file, so that its place is known")
    x, y = boundary_in(geobox, CRS(own.crs))
    box = own.boundingbox
    return bool(x.max() > box.left and x.min() < box.right and y.max() > box.bottom and y.min() < box.top)


def _nearest(file: Any, band: int, geobox: GeoBox) -> NDArray[np.float64]:
    """Read a band (from 0) of an open raster onto a grid; NaN outside and where it has no data.

    On a grid without a reference system, the pixels are those of the raster.
    """
    import rasterio
    from rasterio.enums import Resampling
    from rasterio.warp import reproject

    if geobox.crs is None:
        return np.asarray(file.read(band + 1, masked=True).astype(np.float64).filled(np.nan))
    found = np.full(geobox.shape, np.nan)
    reproject(
        rasterio.band(file, band + 1), found, dst_transform=geobox.affine,
        dst_crs=rasterio.crs.CRS.from_wkt(CRS(geobox.crs).to_wkt()), dst_nodata=np.nan,
        resampling=Resampling.nearest, warp_mem_limit=WARP_MB,
    )  # fmt: skip
    return found
