"""The place of grids in longitude and latitude (WGS 84)."""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any

import numpy as np
from affine import Affine
from numpy.typing import NDArray
from odc.geo import CRS
from odc.geo.geobox import GeoBox

WGS84 = CRS("EPSG:4326")
"""Longitude and latitude in degrees."""
_TURN_DEG, _HALF_DEG, _QUARTER_DEG = 360.0, 180.0, 90.0


def centre_deg(geobox: GeoBox) -> tuple[float, float]:
    """Return longitude and latitude (WGS 84) of the centre of a grid, which may lie on both sides of 180 degrees."""
    assert geobox.crs is not None, geobox
    affine, col, row = geobox.affine, geobox.width / 2, geobox.height / 2
    x, y = affine.a * col + affine.b * row + affine.c, affine.d * col + affine.e * row + affine.f
    longitude, latitude = geobox.crs.transformer_to_crs(WGS84)(x, y)
    return float(longitude), float(latitude)


def middle_deg(ground: Any) -> tuple[float, float]:
    """Return the centre of the bounds of a geometry in degrees. Its parts may lie on both sides of 180 degrees."""
    import shapely

    west, south, east, north = ground.bounds
    if east - west > _HALF_DEG:
        parts = [shapely.transform(part, lambda points: np.add(points, (_TURN_DEG, 0))) if part.centroid.x < 0 else part
                 for part in shapely.get_parts(ground)]  # fmt: skip
        moved_west, _, moved_east, _ = shapely.GeometryCollection(parts).bounds
        if moved_east - moved_west < east - west:
            west, east = moved_west, moved_east
    longitude = (west + east) / 2
    return longitude - _TURN_DEG * math.floor((longitude + _HALF_DEG) / _TURN_DEG), (south + north) / 2


def projected(shapes: Any, of: CRS, crs: CRS) -> Any:
    """Transform geometries (shapely) from one reference system to another, point by point."""
    import shapely

    transform = of.transformer_to_crs(crs)
    return shapely.transform(shapes, lambda points: np.stack(transform(*points.T), axis=1))


def is_on_earth(crs: CRS) -> bool:
    """Return whether places in a reference system have a longitude and latitude. A local system has none."""
    from pyproj.exceptions import ProjError

    try:
        crs.transformer_to_crs(WGS84)
    except ProjError:
        return False
    return True


@lru_cache(maxsize=8192)
def has_place(geobox: GeoBox) -> bool:
    """Return whether the centre of a grid is a place on Earth, within the map of its reference system."""
    if geobox.crs is None or not is_on_earth(geobox.crs):
        return False
    longitude, latitude = centre_deg(geobox)
    return math.isfinite(longitude) and abs(latitude) <= _QUARTER_DEG


def place_deg(geobox: GeoBox | None) -> tuple[float, float]:
    """Return longitude and latitude of the centre of a grid; NaN without a grid, or if it has no place on Earth."""
    return (math.nan, math.nan) if geobox is None or not has_place(geobox) else centre_deg(geobox)


def wrapped(geobox: GeoBox) -> GeoBox:
    """Shift a grid in degrees by whole turns, so that its centre lies between -180 and 180 degrees; others stay."""
    assert geobox.crs is not None, geobox
    affine = geobox.affine
    if not geobox.crs.geographic:
        return geobox
    middle = affine.a * geobox.width / 2 + affine.b * geobox.height / 2 + affine.c
    turns = math.floor((middle + _HALF_DEG) / _TURN_DEG)
    moved = Affine(affine.a, affine.b, affine.c - turns * _TURN_DEG, affine.d, affine.e, affine.f)
    return geobox if turns == 0 else GeoBox(geobox.shape, moved, geobox.crs)


def turns_of(crs: CRS, x: NDArray[np.float64]) -> tuple[NDArray[np.float64], tuple[float, ...]]:
    """Return positions along a line without a jump at 180 degrees, and offsets that lead to the same places.

    Positions in metres and lines around a pole are returned unchanged, with 0 as the only offset.

    >>> [list(map(float, part)) for part in turns_of(CRS("EPSG:4326"), np.array([179.5, -179.5]))]
    [[179.5, 180.5], [0.0, -360.0, 360.0]]
    """
    if not crs.geographic or not np.isfinite(x).all():
        return x, (0.0,)
    in_turn = np.unwrap(x, period=_TURN_DEG)
    if np.ptp(in_turn) >= _HALF_DEG:
        return x, (0.0,)
    return in_turn, (0.0, -_TURN_DEG, _TURN_DEG)


def crosses_180(geobox: GeoBox) -> bool:
    """Return whether a grid in degrees reaches beyond 180 degrees east or west by more than a pixel."""
    assert geobox.crs is not None, geobox
    if not geobox.crs.geographic:
        return False
    bounds, pixel = geobox.boundingbox, abs(geobox.affine.a) + abs(geobox.affine.b)
    return bool(bounds.left < -_HALF_DEG - pixel or bounds.right > _HALF_DEG + pixel)
