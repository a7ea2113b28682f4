"""Outlines of grids on the globe, as GeoJSON and STAC tell them: cut at 180 degrees (RFC 7946, section 3.1.9)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from odc.geo import CRS
from odc.geo.geobox import GeoBox

from anysat.geo.grid import boundary_in

_DIGITS = 7
"""Of degrees: to the centimetre."""


def outline(geobox: GeoBox) -> dict[str, Any]:
    """The edge of a grid in longitude and latitude (WGS 84): a polygon, or one on either side of 180 degrees."""
    import shapely
    from shapely.geometry import mapping
    from shapely.geometry.polygon import orient

    lon, lat = boundary_in(geobox, CRS("EPSG:4326"))
    lon, lat = np.unwrap(lon, period=360).round(_DIGITS), lat.round(_DIGITS)
    whole = orient(shapely.Polygon(np.stack([lon, lat], -1)))
    first, last = math.floor((lon.min() + 180) / 360), math.ceil((lon.max() + 180) / 360) - 1
    if first == last == 0:
        return {"type": "Polygon", "coordinates": mapping(whole)["coordinates"]}
    pieces = []
    for turn in range(first, last + 1):  # once round the globe each
        west = 360 * turn - 180
        piece = orient(shapely.intersection(whole, shapely.box(west, -90, west + 360, 90)))
        pieces.append(shapely.transform(piece, lambda points, turn=turn: (points - (360 * turn, 0)).round(_DIGITS)))
    return {"type": "MultiPolygon", "coordinates": [mapping(piece)["coordinates"] for piece in pieces]}


def bbox_of(outline: Mapping[str, Any]) -> list[float]:
    """West, south, east and north of an outline; west is greater than east where it lies on both sides of 180 degrees.

    >>> bbox_of({"type": "Polygon", "coordinates": [[[5, 50], [6, 50], [6, 51], [5, 50]]]})
    [5.0, 50.0, 6.0, 51.0]
    """
    polygons = outline["coordinates"] if outline["type"] == "MultiPolygon" else [outline["coordinates"]]
    edges = [np.asarray(polygon[0], float) for polygon in polygons]
    low, high = (np.array([limit(edge, axis=0) for edge in edges]) for limit in (np.min, np.max))
    return [float(low[0, 0]), float(low[:, 1].min()), float(high[-1, 0]), float(high[:, 1].max())]
