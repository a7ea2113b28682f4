"""Read the ground of an area, given as bounds in degrees or a file of polygons, as one geometry in degrees."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

from odc.geo import CRS

from anysat.errors import AnySatError, MissingFileError, RecordError, SourceError, UnknownNameError
from anysat.geo.degrees import WGS84, projected
from anysat.geo.zones import NORTHERNMOST_DEG, SOUTHERNMOST_DEG

NO_SYSTEM = "its polygons have no reference system"
_PARTS = 64
"""Number of parts into which the longest side of projected polygons is cut before they are transformed to degrees."""


def read_ground(words: str) -> Any:
    """Read `WEST,SOUTH,EAST,NORTH` in degrees, or the polygons of a vector file, as a shapely geometry in degrees.

    If the file has several layers, name one after a colon, as in `areas.gpkg:north`.

    Raises:
        RecordError: The numbers are not bounds; the area crosses the antimeridian, or extends beyond the UTM zones.
        MissingFileError, SourceError: The file is missing, cannot be read, has no reference system, a geometry that is
            not a valid polygon, or several layers of which none is named.
        UnknownNameError: It has no layer of that name.

    Examples:
        >>> read_ground("4.3,50.8,4.4,50.9").bounds
        (4.3, 50.8, 4.4, 50.9)
    """
    try:
        bounds = [float(word) for word in re.split(r"[,\s]+", words.strip().strip("[]()"))]
    except ValueError:
        bounds = []
    is_box = len(bounds) == 4 and all(map(math.isfinite, bounds))
    return _checked(words, _box(words, *bounds) if is_box else _polygons(words))


def ground_of(polygons: Any) -> Any:
    """Return the ground of polygons in memory as a shapely geometry in degrees.

    Args:
        polygons: A geopandas GeoDataFrame or GeoSeries with a reference system, or a shapely geometry in degrees.

    Raises:
        SourceError, RecordError: As `read_ground`.
    """
    import geopandas

    series = (
        polygons.geometry if hasattr(polygons, "geometry") else geopandas.GeoSeries([polygons], crs=WGS84.to_epsg())
    )
    return _checked("polygons", _joined("area", series))


def _box(words: str, west: float, south: float, east: float, north: float) -> Any:
    import shapely

    if west > east and east >= -180 and west <= 180:
        raise RecordError("area", words, f"west before east; give an area across the antimeridian as two areas, "
                          f"{west:g},{south:g},180,{north:g} and -180,{south:g},{east:g},{north:g}")  # fmt: skip
    if not (west < east and south < north):
        raise RecordError("area", words, "WEST,SOUTH,EAST,NORTH in degrees, west before east and south before north")
    return shapely.box(west, south, east, north)


def _polygons(words: str) -> Any:
    path, layer = file_and_layer(words)
    if not path.exists():
        raise MissingFileError(path, "polygons of an area, or WEST,SOUTH,EAST,NORTH in degrees")
    table = read_table(path, layer, ", or WEST,SOUTH,EAST,NORTH in degrees")
    return _joined(path, table.geometry)


def _joined(name: object, series: Any) -> Any:
    """Join the polygons of a GeoSeries in degrees. `name` is that of their file."""
    import shapely

    if series.crs is None:
        raise SourceError(name, NO_SYSTEM, "write one into the file, or give them one with `.set_crs(...)`")
    found = [one for one in series.values if one is not None and not one.is_empty]
    if not found or any(one.geom_type not in ("Polygon", "MultiPolygon") for one in found):
        kinds = ", ".join(dict.fromkeys(one.geom_type for one in found)) or "nothing"
        raise SourceError(name, f"it holds {kinds}", "give polygons only")
    for number, one in enumerate(found):
        if not one.is_valid:
            raise SourceError(name, f"polygon {number} is not valid: {shapely.is_valid_reason(one)}",
                              "repair it, for example with shapely.make_valid")  # fmt: skip
    return shapely.union_all(_in_degrees(found, series.crs))


def file_and_layer(words: str) -> tuple[Path, str | None]:
    """Split `FILE:LAYER` if FILE exists; otherwise, or if there is a file of the whole name, the layer is None."""
    file, _, layer = words.rpartition(":")
    if file and Path(file).exists() and not Path(words).exists():
        return Path(file), layer
    return Path(words), None


def area_files(words: str | None) -> list[str]:
    """Return the file with the polygons of an area; nothing for bounds in degrees, or if no area is given."""
    path = None if words is None else file_and_layer(words)[0]
    return [] if path is None or not path.exists() else [str(path)]


def read_table(path: Path, layer: str | None = None, otherwise: str = "") -> Any:
    """Read a vector file as a geopandas table, with any geometries, and possibly without a reference system.

    Args:
        path: The file.
        layer: Name of the layer. None if there is only one with geometries.
        otherwise: What else may be given; part of the error if the file cannot be read.

    Raises:
        SourceError: The file cannot be read, or it has several layers and none is named.
        UnknownNameError: It has no such layer.
    """
    import geopandas
    from shapely.errors import ShapelyError

    is_table = path.suffix.lower() == ".parquet"
    if is_table and layer is not None:
        raise SourceError(path, f"it has no layers, and {layer!r} is named", "give the file alone")
    try:
        table = geopandas.read_parquet(path) if is_table else geopandas.read_file(path, layer=_layer(path, layer))
        assert table.geometry is not None  # a table without one has no such attribute
        return table
    except AnySatError:
        raise
    except (OSError, ValueError, RuntimeError, AttributeError, ShapelyError) as error:
        raise SourceError(path, f"it cannot be read ({str(error).splitlines()[0].partition('; It might')[0]})",
                          f"give GeoJSON, GeoPackage, Shapefile or GeoParquet{otherwise}") from error  # fmt: skip


def _layer(path: Path, wanted: str | None) -> str | None:
    """Return the layer of that name, or the only one with geometries; others are tables, for example of styles."""
    import geopandas

    table = geopandas.list_layers(path)
    names = [str(name) for name in table["name"][table["geometry_type"].notna()]]
    if wanted is not None and wanted not in names:
        raise UnknownNameError(f"layer of {path}", wanted, names)
    if wanted is None and len(names) > 1:
        raise SourceError(path, f"it has several layers with geometries: {', '.join(names)}",
                          f"name one after a colon, as in {path}:{names[0]}")  # fmt: skip
    return wanted or next(iter(names), None)


def _in_degrees(geometries: list[Any], crs: Any) -> Any:
    import shapely

    if crs.is_projected:  # its straight edges bend in degrees
        west, south, east, north = shapely.total_bounds(geometries)
        if (longest := max(east - west, north - south)) > 0:
            geometries = shapely.segmentize(geometries, longest / _PARTS)
    return projected(geometries, CRS(crs), WGS84)


def _checked(words: str, ground: Any) -> Any:
    west, south, east, north = ground.bounds
    if not all(map(math.isfinite, ground.bounds)) or west < -180 or east > 180:
        raise RecordError("area", words, f"longitudes from -180 to 180, but it has {west:g} to {east:g}")
    if east - west > 180:
        raise RecordError("area", words, f"less than half the Earth, but it extends from {west:g} to {east:g} degrees; "
                          "give polygons across the antimeridian as two areas")  # fmt: skip
    if south < SOUTHERNMOST_DEG or north > NORTHERNMOST_DEG:
        raise RecordError("area", words, f"latitudes from {SOUTHERNMOST_DEG:g} to {NORTHERNMOST_DEG:g}, where there "
                          f"are UTM zones, but it extends from {south:g} to {north:g}; to use all of files that lie "
                          "beyond them, leave it out")  # fmt: skip
    return ground
