"""Write cloud-optimised GeoTIFFs, north-up, from blocks in any order, in little memory."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from odc.geo.geobox import GeoBox

_CACHE_MB, _BLOCK_PX, _DEEP_BLOCK_PX, _DEEP = 256, 256, 128, 16
_LEVEL = 1  # of compression: higher levels take longer, and hardly make such numbers smaller

Block = tuple[tuple[slice, slice], NDArray[Any]]
"""Rows and columns, and the values (band row col) there."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Cog:
    """Grid, bands and metadata of a file."""

    geobox: GeoBox
    """Its reference system may be None."""
    dtype: str
    """float32, int8, uint8 or uint16."""
    names: Sequence[str]
    """Names of the bands."""
    nodata: float
    resampling: str
    """How overviews are made: nearest, average or mode."""
    tags: Mapping[str, Any]
    """Anything that can be written as JSON. Stored in the tag `ANYSAT`."""
    texts: Mapping[str, str] = field(default_factory=dict)
    """Further tags."""
    palette: Mapping[int, Any] = field(default_factory=dict)
    """Colours of classes, RGBA from 0 to 255."""
    scales: Sequence[float] = ()
    """Scale of each band, if codes are stored."""
    unit: str = ""

    @property
    def block_px(self) -> int:
        """Side of a block in pixels. It is smaller in files with many bands."""
        return _DEEP_BLOCK_PX if len(self.names) > _DEEP else _BLOCK_PX

    @property
    def overviews(self) -> list[int]:
        """Factor by which each overview is smaller than the raster, until one block holds it all."""
        longest = max(self.geobox.shape)
        return [2**n for n in range(1, 32) if longest > self.block_px * 2 ** (n - 1)]


def write_cog(path: Path, cog: Cog, blocks: Iterable[Block]) -> None:
    """Write blocks into a plain GeoTIFF, which can be filled in parts, and let GDAL copy it to a COG.

    Overviews are made in the plain file, band by band, because GDAL takes minutes for them if hundreds of bands are
    interleaved. The COG is read back at the end: GDAL reports a full disk only when closing a file, and that is lost.

    Raises:
        RasterioError, OSError: The file could not be written, or not be read back.
    """
    import rasterio
    from rasterio.shutil import copy

    raw = path.with_name(f"raw-{path.name}")
    try:
        with rasterio.Env(GDAL_CACHEMAX=_CACHE_MB, GDAL_NUM_THREADS="1"):
            _write_plain(raw, cog, blocks)
            copy(
                raw, path, driver="COG", compress="DEFLATE", level=_LEVEL, predictor="NO" if cog.palette else "YES",
                blocksize=cog.block_px, bigtiff="IF_SAFER",
            )  # fmt: skip
            with rasterio.open(path) as file:
                for _, window in file.block_windows(1):
                    file.read(1, window=window)
    finally:
        raw.unlink(missing_ok=True)


def whole(geobox: GeoBox) -> tuple[slice, slice]:
    """Return slices of all rows and columns of a grid."""
    return slice(0, geobox.height), slice(0, geobox.width)


def _write_plain(path: Path, cog: Cog, blocks: Iterable[Block]) -> None:
    import rasterio

    crs = cog.geobox.crs
    with rasterio.open(
        path, "w", driver="GTiff", count=len(cog.names), height=cog.geobox.height, width=cog.geobox.width,
        dtype=cog.dtype, nodata=cog.nodata, crs=crs and crs.to_wkt(), transform=cog.geobox.affine, tiled=True,
        blockxsize=cog.block_px, blockysize=cog.block_px, interleave="band", bigtiff="IF_SAFER", sparse_ok=True,
    ) as file:  # fmt: skip
        file.descriptions = tuple(cog.names)
        if cog.palette:
            file.write_colormap(1, dict(cog.palette))
        if cog.scales:
            file.scales = tuple(cog.scales)
        if cog.unit:
            file.units = (cog.unit,) * len(cog.names)
        file.update_tags(ANYSAT=json.dumps(cog.tags), **cog.texts)
        for (rows, cols), bands in blocks:
            window = ((rows.start, rows.stop), (cols.start, cols.stop))
            file.write(np.ascontiguousarray(bands, dtype=cog.dtype), window=window)
    with rasterio.open(path, "r+") as file:
        file.build_overviews(cog.overviews, rasterio.enums.Resampling[cog.resampling])
