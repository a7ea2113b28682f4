"""The reference system in true metres of a place: its UTM zone, or polar stereographic where there is none."""

from __future__ import annotations

from affine import Affine
from odc.geo import CRS
from odc.geo.geobox import GeoBox

from anysat.geo.degrees import WGS84

NORTHERNMOST_DEG, SOUTHERNMOST_DEG = 84.0, -80.0
"""Latitudes between which there are UTM zones."""
_LONGEST = 20
"""The most characters of a code such as EPSG:32631."""
_NORTH_POLE, _SOUTH_POLE = "EPSG:32661", "EPSG:32761"


def system_name(crs: CRS | None) -> str:
    """Return a short name of a reference system: its code, else its name, else the name of its projection.

    >>> system_name(CRS("EPSG:32631")), system_name(CRS("+proj=sinu +R=6371007.181"))
    ('EPSG:32631', 'Sinusoidal without a code')
    """
    if crs is None or len(str(crs)) <= _LONGEST:
        return str(crs)
    own = crs.proj
    named = own.name if own.name.lower() not in ("unnamed", "unknown", "undefined") else None
    projection = own.coordinate_operation.method_name if own.coordinate_operation is not None else "a system"
    return f"{named or projection} without a code"


def system_at(longitude: float, latitude: float) -> tuple[CRS, str]:
    """Return the UTM system of a place in WGS 84 degrees, or UPS beyond the UTM zones, and the reason for messages."""
    crs, what = None, "the UTM zone of the centre"
    if latitude > NORTHERNMOST_DEG or latitude < SOUTHERNMOST_DEG:
        crs, what = CRS(_NORTH_POLE if latitude > 0 else _SOUTH_POLE), "polar stereographic (UPS)"
    return crs or CRS.utm(longitude, latitude), f"{what}, because no input is in true metres"


def square_at(longitude: float, latitude: float, side_m: float) -> GeoBox:
    """Return a square around a place in WGS 84 degrees, as one pixel in the reference system of its zone.

    >>> square_at(9.0, 0.0, 10.0).boundingbox.left
    499995.0
    """
    crs, _ = system_at(longitude, latitude)
    x, y = WGS84.transformer_to_crs(crs)(longitude, latitude)
    return GeoBox((1, 1), Affine(side_m, 0, round(x - side_m / 2, 4), 0, -side_m, round(y + side_m / 2, 4)), crs)
