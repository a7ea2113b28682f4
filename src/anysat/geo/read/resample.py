"""Put the pixels of a layer on another grid: cut out exactly if the grids agree, else resampled once."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from odc.geo import CRS
from odc.geo.geobox import GeoBox

from anysat.geo.degrees import turns_of
from anysat.geo.grid import ALIGNED_PX, boundary_in, crs_of, mapped
from anysat.geo.read.layers import Layer, Pixels

AVERAGE_FROM = 1.5
"""A source with more pixels than this along a target pixel is averaged, others are interpolated."""
_MIN_SEEN_FRAC = 0.5
WARP_MB = 1
"""GDAL interpolates positions within parts of a grid of so many megabytes; they are precise in small parts."""


def place(
    layer: Layer, geobox: GeoBox, times: Sequence[int], bands: Sequence[int], way: Literal["nearest"] | None = None
) -> tuple[Pixels, str]:
    """Return the pixels of some times and bands on a grid, NaN without data, and a description of how they were made.

    On the layer's own grid, the values are those of the file. Otherwise they are bilinear, or averages of a finer
    source, without its nodata. A pixel is valid if the nearest source pixel is, or half of the averaged ones are. If
    `way` is "nearest", each pixel is the source pixel at its centre.
    """
    grid = layer.geobox
    assert grid is not None, layer.path
    offset = _whole_offset(grid, geobox)
    if offset is not None:
        return _cut(layer, times, bands, *offset, (geobox.height, geobox.width)), "exact"
    windows, pixels_along = _windows(grid, geobox)
    how = way or ("average" if pixels_along > AVERAGE_FROM else "bilinear")
    placed = np.full((len(times), len(bands), *geobox.shape), np.nan, dtype=np.float32)
    for row, col in windows:
        source = _cut(layer, times, bands, row.start, col.start, (row.stop - row.start, col.stop - col.start))
        here = _reproject(source, grid.translate_pix(col.start, row.start), geobox, how)
        placed = np.where(np.isnan(placed), here, placed)
    return placed, f"{how} of {_pixel_size(grid)} pixels"


def _whole_offset(source: GeoBox, target: GeoBox) -> tuple[int, int] | None:
    """Return the first row and column of the target in the source if they are the same grid, else None."""
    if source.crs != target.crs:
        return None
    height, width = target.height, target.width
    x, y = mapped(target.affine, np.array([0.0, width, 0.0]), np.array([0.0, 0.0, height]))
    col, row = mapped(~source.affine, x, y)
    top, left = round(row[0]), round(col[0])
    drift_px = np.abs([*(col - left - (0, width, 0)), *(row - top - (0, 0, height))]).max()
    return (top, left) if drift_px < ALIGNED_PX else None


def _cut(
    layer: Layer, times: Sequence[int], bands: Sequence[int], top: int, left: int, shape_px: tuple[int, int]
) -> Pixels:
    """Read a window of the layer, which may extend beyond its edges, where it is NaN."""
    rows, cols = shape_px
    cut = np.full((len(times), len(bands), rows, cols), np.nan, dtype=np.float32)
    row = slice(max(top, 0), min(top + rows, layer.shape_px[0]))
    col = slice(max(left, 0), min(left + cols, layer.shape_px[1]))
    if row.start < row.stop and col.start < col.stop:
        inside = (slice(row.start - top, row.stop - top), slice(col.start - left, col.stop - left))
        cut[:, :, *inside] = layer.load(times, bands, row, col)
    return cut


def _windows(source: GeoBox, target: GeoBox) -> tuple[list[tuple[slice, slice]], float]:
    """Return source rows and columns under the target, with a margin, and source pixels along a target pixel.

    There are two windows if the source is a map of the world that has the target at both of its ends, else one.
    """
    x, y = boundary_in(target, crs_of(source))
    x, turns = turns_of(crs_of(source), x)
    found = []
    for turn in turns:
        col, row = mapped(~source.affine, x + turn, y)
        area_px = 0.5 * abs(np.dot(col, np.roll(row, 1)) - np.dot(row, np.roll(col, 1)))
        pixels_along = math.sqrt(area_px / (target.height * target.width))
        margin = 2 + math.ceil(2 * pixels_along)
        window = _around(row, source.height, margin), _around(col, source.width, margin)
        is_met = all(part.stop > 0 and part.start < side for part, side in zip(window, source.shape, strict=True))
        found.append((is_met, window))
    return [window for is_met, window in found if is_met] or [found[0][1]], pixels_along


def _around(positions: NDArray[np.float64], length: int, margin: int) -> slice:
    """Return the rows or columns around all positions, with a margin, and at most that margin beyond the grid."""
    start = min(max(math.floor(positions.min()) - margin, -margin), length)
    return slice(start, max(min(math.ceil(positions.max()) + margin, length + margin), start + 1))


def _reproject(source: Pixels, grid: GeoBox, target: GeoBox, how: str) -> Pixels:
    """Return pixels on another grid. The first source pixel is the first of `grid`."""
    planes = source.reshape(-1, *source.shape[-2:])
    placed = np.full((len(planes), *target.shape), np.nan, dtype=np.float32)
    _warp(planes, placed, grid, target, how)
    if how != "nearest":
        seen = np.isfinite(planes)
        seen = seen[:1] if _are_alike(seen) else seen
        fractions = np.zeros((len(seen), *target.shape), dtype=np.float32)
        _warp(seen.astype(np.float32), fractions, grid, target, "average" if how == "average" else "nearest", nodata=0)
        placed = np.where(fractions >= _MIN_SEEN_FRAC, placed, np.nan)
    return placed.reshape(*source.shape[:2], *target.shape)


def _warp(planes: Pixels, out: Pixels, grid: GeoBox, target: GeoBox, how: str, nodata: float = np.nan) -> None:
    """Fill planes of a grid from others. NaN is ignored; `nodata` is written where there are no values.

    GDAL warps planes together several times as fast, but as if the NaN of one were in all. Without a
    fixed scale, it would blur and shift bilinear pixels by amounts that depend on the window.
    """
    from rasterio.enums import Resampling
    from rasterio.warp import reproject

    together = max(len(planes), 1) if _are_alike(np.isfinite(planes)) else 1
    for part in (slice(start, start + together) for start in range(0, len(planes), together)):
        reproject(
            planes[part], out[part], src_transform=grid.affine, src_crs=_crs(crs_of(grid)), src_nodata=np.nan,
            dst_transform=target.affine, dst_crs=_crs(crs_of(target)), dst_nodata=nodata,
            resampling=Resampling[how], warp_mem_limit=WARP_MB, XSCALE=1, YSCALE=1,
        )  # fmt: skip


def _are_alike(masks: NDArray[np.bool_]) -> bool:
    return bool((masks == masks[:1]).all())


@lru_cache(maxsize=64)
def _crs(crs: CRS) -> object:
    from rasterio.crs import CRS

    return CRS.from_wkt(crs.to_wkt())


def _pixel_size(geobox: GeoBox) -> str:
    side, crs = abs(geobox.affine.determinant) ** 0.5, crs_of(geobox)
    return f"{side * crs.proj.axis_info[0].unit_conversion_factor:.4g} m" if crs.projected else f"{side:.3g} degree"
