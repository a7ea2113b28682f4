"""Place polygons and points on a grid: check and repair them, and transform them to its columns and rows."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from odc.geo import CRS
from odc.geo.geobox import GeoBox

from anysat.errors import InputError, SourceError
from anysat.geo.degrees import projected
from anysat.geo.grid import boundary_in, crs_of, mapped
from anysat.geo.ground import NO_SYSTEM

_LONGEST_DEG, _LONGEST = 0.01, 1000.0
"""Longest part, in degrees or map units, of edges that are cut because they bend in another reference system."""
_POLYGON, _MULTI, _MISSING = 3, 6, -1
_POINT, _POINTS = 0, 4
"""Type numbers of shapely."""
_VALID = "Valid Geometry"
"""What shapely says of a valid polygon."""
_LONG = 10.0
"""Edges longer than this multiple of the median are checked for tears; torn ones are about as long as the Earth."""
_TORN_FRAC = 0.25
"""An edge is torn if its projected middle is farther than this share of its length from the middle of its ends."""


class Parcels(NamedTuple):
    """Polygons in columns (x) and rows (y) of a grid. A point is the pixel in which it lies."""

    shapes: NDArray[Any]
    """Valid polygons and multi-polygons; empty if there is none, or the grid's system cannot show it."""
    bounds: NDArray[np.float64]
    """Left, top, right and bottom of each; NaN if empty."""
    areas: NDArray[np.float64]
    """In pixels."""
    notes: tuple[str, ...]
    """Which polygons were repaired."""


def check_shapes(table: Any, name: str) -> None:
    """Refuse what is not a table of geometries, with an `InputError`."""
    if not (hasattr(table, "columns") and hasattr(table, "geometry")):
        raise InputError(name, "a geopandas GeoDataFrame, or a file", type(table).__name__)


def place_parcels(table: Any, name: str, geobox: GeoBox) -> Parcels:
    """Place the polygons and points of a table on a grid. Messages call the table by `name`.

    Raises:
        InputError: It is not a table of geometries.
        SourceError: It has no polygon or point, holds other geometries, or has no reference system; a polygon near the
            grid reaches beyond what the grid's reference system can show.
    """
    import shapely

    check_shapes(table, name)
    given = np.asarray(table.geometry.values, object)
    kinds = shapely.get_type_id(given)
    is_other = ~np.isin(kinds, (_POLYGON, _MULTI, _MISSING, _POINT, _POINTS)) & ~shapely.is_empty(given)
    if is_other.any() or not len(given):
        told = ", ".join(dict.fromkeys(one.geom_type for one in given[is_other])) or "no polygon"
        raise SourceError(name, f"it holds {told}", "give polygons or points")
    if table.crs is None:
        raise SourceError(name, NO_SYSTEM, "write one into the file")
    flat = found = np.where(kinds == _MISSING, shapely.Polygon(), shapely.force_2d(given))
    points, number = shapely.get_coordinates(flat, return_index=True)
    if not (is_number := np.isfinite(points).all(axis=1)).all():
        raise SourceError(name, f"polygon {number[~is_number][0]} has coordinates that are not finite numbers",
                          "correct it, or leave it out")  # fmt: skip
    if crs_of(geobox) != CRS(table.crs):
        found = _projected(flat, CRS(table.crs), name, geobox)
    shapes = shapely.transform(found, lambda points: np.stack(mapped(~geobox.affine, *points.T), axis=1))
    is_point = np.isin(shapely.get_type_id(shapes), (_POINT, _POINTS))
    shapes[is_point] = _pixels_of(shapes[is_point])
    notes: tuple[str, ...] = ()
    broken = np.nonzero(~shapely.is_valid(shapes))[0]
    why = next((told for one in (flat, found, shapes) for first in broken[:1]
                if (told := shapely.is_valid_reason(one[first])) != _VALID), "")  # fmt: skip
    for number in broken:
        parts = shapely.get_parts(shapely.get_parts(shapely.make_valid(shapes[number])))
        shapes[number] = shapely.union_all(parts[shapely.area(parts) > 0])
    if len(broken):
        notes = (f"{name}: {len(broken)} polygons were not valid and have been repaired (shapely.make_valid); the "
                 f"first is number {broken[0]}: {why}",)  # fmt: skip
    return Parcels(shapes, shapely.bounds(shapes), shapely.area(shapes), notes)


def _pixels_of(points: NDArray[Any]) -> NDArray[Any]:
    """Return the pixels in which points and multi-points lie, as polygons and multi-polygons."""
    import shapely

    places, owner = shapely.get_coordinates(points, return_index=True)
    left, top = np.floor(places).T
    pixels = shapely.box(left, top, left + 1, top + 1)
    if len(places) == len(points) == len(np.unique(owner)):
        return pixels
    return np.array([shapely.union_all(pixels[owner == number]) for number in range(len(points))], object)


def _projected(given: NDArray[Any], crs: CRS, name: str, geobox: GeoBox) -> NDArray[Any]:
    """Transform polygons to the reference system of a grid; those that it cannot show correctly become empty."""
    import shapely

    fine = shapely.segmentize(given, _LONGEST_DEG if crs.geographic else _LONGEST)
    found = projected(fine, crs, crs_of(geobox))
    is_beyond = ~np.isfinite(shapely.bounds(found)).all(axis=1) & ~shapely.is_empty(given)
    fine, found, flat = (np.where(is_beyond, shapely.Polygon(), one) for one in (fine, found, given))
    is_beyond |= _torn(fine, found, crs, geobox) | _turned(flat, found, crs, geobox)
    x, y = boundary_in(geobox, crs)
    boxes = [shapely.box(x.min() + turn, y.min(), x.max() + turn, y.max()) for turn in _turns(crs)]
    near = np.any([shapely.intersects(given, box) for box in boxes], axis=0) & is_beyond
    if near.any():
        raise SourceError(name, f"polygon {np.nonzero(near)[0][0]} reaches beyond what {geobox.crs} can show",
                          "cut it to the neighbourhood of the store")  # fmt: skip
    return np.where(is_beyond, shapely.Polygon(), found)


def _torn(fine: NDArray[Any], found: NDArray[Any], crs: CRS, geobox: GeoBox) -> NDArray[np.bool_]:
    """Return which polygons cross a line along which the projection cuts the Earth open.

    There the ends of an edge are projected far apart, and its middle lies near one of them. `fine` are the outlines cut
    into short edges, `found` the same projected.
    """
    import shapely

    rings, owner = shapely.get_rings(fine, return_index=True)
    points, ring = shapely.get_coordinates(rings, return_index=True)
    ends = shapely.get_coordinates(shapely.get_rings(found))
    is_torn = np.zeros(len(fine), bool)
    if not len(ends):
        return is_torn
    length = np.where(ring[1:] == ring[:-1], np.hypot(*np.diff(ends, axis=0).T), 0.0)
    edges = np.nonzero(length > _LONG * np.median(length))[0]
    middles = crs.transformer_to_crs(crs_of(geobox))(*((points[edges] + points[edges + 1]) / 2).T)
    beside = np.stack(middles, axis=1) - (ends[edges] + ends[edges + 1]) / 2
    is_torn[owner[ring[edges[np.hypot(*beside.T) > _TORN_FRAC * length[edges] + abs(geobox.affine.a)]]]] = True
    return is_torn


def _turned(given: NDArray[Any], found: NDArray[Any], crs: CRS, geobox: GeoBox) -> NDArray[np.bool_]:
    """Return which polygons projection turned inside out: most sample points of the grid changed sides."""
    import shapely

    parts = np.array([0.25, 0.5, 0.75])
    x, y = mapped(geobox.affine, parts * geobox.width, parts * geobox.height)
    own_x, own_y = crs_of(geobox).transformer_to_crs(crs)(x, y)
    is_shown = np.isfinite(own_x) & np.isfinite(own_y)
    differ = np.zeros(len(given), np.int64)
    for point in np.nonzero(is_shown)[0]:
        held = [shapely.contains_xy(given, own_x[point] + turn, own_y[point]) for turn in _turns(crs)]
        differ += np.any(held, axis=0) != shapely.contains_xy(found, x[point], y[point])
    return np.asarray(differ > is_shown.sum() / 2)


def _turns(crs: CRS) -> tuple[float, ...]:
    """Return the offsets of x that lead to the same place."""
    return (-360.0, 0.0, 360.0) if crs.geographic else (0.0,)
