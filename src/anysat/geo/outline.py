"""Outlines of grids on the globe for GeoJSON and STAC, cut at 180 degrees longitude (RFC 7946, section 3.1.9)."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from odc.geo.geobox import GeoBox

from anysat.geo.degrees import WGS84
from anysat.geo.grid import boundary_in

_DIGITS = 7
"""Decimals of degrees, about a centimetre."""


class Outline(NamedTuple):
    """The edge of a grid in longitude and latitude (WGS 84)."""

    geometry: dict[str, Any]
    """A polygon, or polygons on both sides of 180 degrees."""
    bbox: list[float]
    """West, south, east and north; west is greater than east if it lies on both sides of 180 degrees."""


def outline(geobox: GeoBox) -> Outline:
    """Return the outline of a grid. A grid with a pole in it gets the whole cap, from its edge nearest the equator."""
    import shapely

    lon, lat = boundary_in(geobox, WGS84)
    closed = np.unwrap(np.append(lon, lon[:1]), period=360).round(_DIGITS)
    lon, lat = closed[:-1], lat.round(_DIGITS)
    holds_pole = abs(closed[-1] - closed[0]) > 180
    if holds_pole or np.ptp(lon) >= 360:
        south, north = float(lat.min()), float(lat.max())
        if holds_pole:
            south, north = (south, 90.0) if lat.mean() > 0 else (-90.0, north)
        return Outline(_geometry([shapely.box(-180, south, 180, north)]), [-180.0, south, 180.0, north])
    bbox = [_wrapped(lon.min(), -180), float(lat.min()), _wrapped(lon.max(), 180), float(lat.max())]
    return Outline(_geometry(_pieces(lon, lat)), bbox)


def _pieces(lon: NDArray[np.float64], lat: NDArray[np.float64]) -> list[Any]:
    """Cut a ring that may reach beyond ±180 degrees into polygons between -180 and 180 degrees."""
    import shapely

    whole = shapely.Polygon(np.stack([lon, lat], -1))
    first, last = math.floor((lon.min() + 180) / 360), math.ceil((lon.max() + 180) / 360) - 1
    if first == last == 0:
        return [whole]
    found: list[Any] = []
    for turn in range(first, last + 1):  # 360 degrees each
        west = 360 * turn - 180
        inside = shapely.get_parts(shapely.intersection(whole, shapely.box(west, -90, west + 360, 90)))
        found += [
            shapely.transform(piece, lambda points, turn=turn: (points - (360 * turn, 0)).round(_DIGITS))
            for piece in inside
            if piece.geom_type == "Polygon"
        ]
    return found


def _geometry(polygons: list[Any]) -> dict[str, Any]:
    from shapely.geometry import mapping
    from shapely.geometry.polygon import orient

    rings = [mapping(orient(polygon))["coordinates"] for polygon in polygons]
    if len(rings) == 1:
        return {"type": "Polygon", "coordinates": rings[0]}
    return {"type": "MultiPolygon", "coordinates": rings}


def _wrapped(longitude: float, end: int) -> float:
    """Wrap a longitude into -180 to 180. Both ends are the same meridian; `end` is the one to return for it."""
    found = round((float(longitude) + 180) % 360 - 180, _DIGITS)
    return float(end) if found in (-180, 180) else found
