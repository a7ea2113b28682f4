"""Place polygons on a grid: check and repair them, and transform them to its columns and rows."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from odc.geo import CRS
from odc.geo.geobox import GeoBox

from anysat.errors import InputError, SourceError
from anysat.geo.grid import boundary_in, crs_of
from anysat.geo.ground import NO_SYSTEM

_LONGEST_DEG, _LONGEST = 0.01, 1000.0
"""Longest part, in degrees or map units, of edges that are cut because they bend in another reference system."""
_POLYGON, _MULTI, _MISSING = 3, 6, -1
"""Type numbers of shapely."""


class Parcels(NamedTuple):
    """Polygons in columns (x) and rows (y) of a grid."""

    shapes: NDArray[Any]
    """Valid polygons and multi-polygons; empty if there is none, or the grid's system cannot show it."""
    bounds: NDArray[np.float64]
    """Left, top, right and bottom of each; NaN if empty."""
    areas: NDArray[np.float64]
    """In pixels."""
    notes: tuple[str, ...]
    """Which polygons were repaired."""


def place_parcels(table: Any, name: str, geobox: GeoBox) -> Parcels:
    """Place the polygons of a table on a grid. Messages call the table by `name`.

    Raises:
        InputError: It is not a table of geometries.
        SourceError: It has no polygon, holds other geometries, or has no reference system; a polygon near the grid
            reaches beyond what the grid's reference system can show.
    """
    import shapely

    if not hasattr(table, "geometry"):
        raise InputError(name, "a geopandas GeoDataFrame, or a file", type(table).__name__)
    given = np.asarray(table.geometry.values, object)
    kinds = shapely.get_type_id(given)
    is_other = ~np.isin(kinds, (_POLYGON, _MULTI, _MISSING)) & ~shapely.is_empty(given)
    if is_other.any() or not len(given):
        told = ", ".join(dict.fromkeys(one.geom_type for one in given[is_other])) or "no polygon"
        raise SourceError(name, f"it holds {told}", "give polygons or multi-polygons")
    if table.crs is None:
        raise SourceError(name, NO_SYSTEM, "write one into the file")
    found = np.where(kinds == _MISSING, shapely.Polygon(), shapely.force_2d(given))
    if crs_of(geobox) != CRS(table.crs):
        found = _projected(found, CRS(table.crs), name, geobox)
    inverse = ~geobox.affine
    shapes = shapely.transform(found, lambda points: np.stack([
        inverse.a * points[:, 0] + inverse.b * points[:, 1] + inverse.c,
        inverse.d * points[:, 0] + inverse.e * points[:, 1] + inverse.f], axis=1))  # fmt: skip
    notes: tuple[str, ...] = ()
    broken = np.nonzero(~shapely.is_valid(shapes))[0]
    for number in broken:
        parts = shapely.get_parts(shapely.get_parts(shapely.make_valid(shapes[number])))
        shapes[number] = shapely.union_all(parts[shapely.area(parts) > 0])
    if len(broken):
        why = shapely.is_valid_reason(given[broken[0]])
        notes = (f"{name}: {len(broken)} polygons were not valid and have been repaired (shapely.make_valid); the "
                 f"first is number {broken[0]}: {why}",)  # fmt: skip
    return Parcels(shapes, shapely.bounds(shapes), shapely.area(shapes), notes)


def _projected(given: NDArray[Any], crs: CRS, name: str, geobox: GeoBox) -> NDArray[Any]:
    """Transform polygons to the reference system of a grid; those that it cannot show become empty."""
    import shapely
    from pyproj import Transformer

    transformer = Transformer.from_crs(crs.proj, crs_of(geobox).proj, always_xy=True)
    fine = shapely.segmentize(given, _LONGEST_DEG if crs.geographic else _LONGEST)
    found = shapely.transform(fine, lambda points: np.stack(transformer.transform(*points.T), axis=1))
    is_beyond = ~np.isfinite(shapely.bounds(found)).all(axis=1) & ~shapely.is_empty(given)
    x, y = boundary_in(geobox, crs)
    near = shapely.intersects(given, shapely.box(x.min(), y.min(), x.max(), y.max())) & is_beyond
    if near.any():
        raise SourceError(name, f"polygon {np.nonzero(near)[0][0]} reaches beyond what {geobox.crs} can show",
                          "cut it to the neighbourhood of the store")  # fmt: skip
    return np.where(is_beyond, shapely.Polygon(), found)
