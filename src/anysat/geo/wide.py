"""Grids of whole continents in another reference system, for which transforming the edges is not enough.

Both sides of a world map are the same meridian, and far from its area a map projection folds.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
from affine import Affine
from odc.geo import CRS
from odc.geo.geobox import GeoBox

from anysat.geo.degrees import WGS84

_WIDE_DEG, _WIDE_M = 20.0, 2e6
"""Grids with a longer side count as wide."""
_AROUND_DEG, _HALF_DEG, _POLE_DEG = 37.0, 180.0, 90.0
"""How far beyond the area of a projection it is still used, in longitude; half a turn; latitude of a pole."""
_ZONE_HALF_DEG = 3.0
_EDGE_POINTS = 41


def is_wide(geobox: GeoBox) -> bool:
    """Return whether a grid is too large to be treated as flat."""
    assert geobox.crs is not None, geobox
    bounds, factor = geobox.boundingbox, geobox.crs.proj.axis_info[0].unit_conversion_factor
    longest = max(bounds.span_x, bounds.span_y) * factor
    return longest > (math.radians(_WIDE_DEG) if geobox.crs.geographic else _WIDE_M)


def parts_near(geobox: GeoBox, crs: CRS) -> list[GeoBox]:
    """Return the parts of a wide grid around the area that a reference system is made for, each as one pixel.

    The list is empty if the grid lies elsewhere. It is the whole grid if the system is in degrees or has no known area,
    or if the grid is rotated.
    """
    around = list(_surroundings(crs))
    if crs.geographic or not around or geobox.affine.b or geobox.affine.d:
        return [geobox]
    a, _, c, _, e, f, *_ = geobox.affine
    assert geobox.crs is not None, geobox
    transform = WGS84.transformer_to_crs(geobox.crs)
    found = []
    for west, east, south, north in around:
        across, along = np.linspace(west, east, _EDGE_POINTS), np.linspace(south, north, _EDGE_POINTS)
        lon = np.concatenate([across, across, np.full(_EDGE_POINTS, west), np.full(_EDGE_POINTS, east)])
        lat = np.concatenate([np.full(_EDGE_POINTS, south), np.full(_EDGE_POINTS, north), along, along])
        x, y = transform(lon, lat)
        seen = np.isfinite(x) & np.isfinite(y)
        if not seen.any():
            return [geobox]
        cols, rows = (x[seen] - c) / a, (y[seen] - f) / e
        left, right = max(cols.min(), 0.0), min(cols.max(), geobox.width)
        top, bottom = max(rows.min(), 0.0), min(rows.max(), geobox.height)
        if not seen.all():  # a pole that the grid's own map cannot show
            top, bottom = 0.0, geobox.height
        if left < right and top < bottom:
            x, y = a * left + c, e * top + f
            found.append(GeoBox((1, 1), Affine(a * (right - left), 0, x, 0, e * (bottom - top), y), geobox.crs))
    return found


def _surroundings(crs: CRS) -> Iterator[tuple[float, float, float, float]]:
    """Yield west, east, south and north, in degrees, of where a projection is usable, cut at 180; none if unknown."""
    place = _made_for(crs)
    if place is None:
        return
    west, east, south, north = place
    west, east = west - _AROUND_DEG, east + _AROUND_DEG
    south, north = max(south - _POLE_DEG, -_POLE_DEG), min(north + _POLE_DEG, _POLE_DEG)
    if east - west >= 2 * _HALF_DEG:
        west, east = -_HALF_DEG, _HALF_DEG
    yield max(west, -_HALF_DEG), min(east, _HALF_DEG), south, north
    if west < -_HALF_DEG:
        yield west + 2 * _HALF_DEG, _HALF_DEG, south, north
    if east > _HALF_DEG:
        yield -_HALF_DEG, east - 2 * _HALF_DEG, south, north


def _made_for(crs: CRS) -> tuple[float, float, float, float] | None:
    """Return west, east (beyond 180 if it crosses that), south and north of a system's area in degrees, or None."""
    if (area := crs.proj.area_of_use) is not None:
        return area.west, area.east + (2 * _HALF_DEG if area.east < area.west else 0), area.south, area.north
    projection = crs.proj.coordinate_operation
    if projection is None or projection.method_name != "Transverse Mercator":
        return None
    middle = next((p for p in projection.params if p.name == "Longitude of natural origin"), None)
    if middle is None:
        return None
    longitude = math.degrees(float(middle.value) * middle.unit_conversion_factor)
    return longitude - _ZONE_HALF_DEG, longitude + _ZONE_HALF_DEG, -_POLE_DEG, _POLE_DEG
