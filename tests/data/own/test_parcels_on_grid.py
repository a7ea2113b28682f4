"""Polygons put on a grid: those that its reference system cannot show right are left out where far, and refused near."""

import geopandas
import numpy as np
import pytest
import shapely
from pyproj import Transformer

from anysat.errors import InputError, SourceError
from anysat.geo.parcels import place_parcels
from geo_builders import LEFT, SOUTH, TOP, geobox
from store_builders import GRID

LON, LAT = Transformer.from_crs(SOUTH, 4326, always_xy=True).transform(LEFT + 70, TOP - 110)
AMERICAS, FAR_HALF = (-170, -56, -30, 72), (119, -50, 319, 50)


def place(*bounds, grid=GRID, crs=4326):
    return place_parcels(geopandas.GeoDataFrame(geometry=[shapely.box(*bounds)], crs=crs), "a", grid)


@pytest.mark.parametrize("bounds", [AMERICAS, FAR_HALF, (-74, -34, -34, 6), (95, -50, 170, 50), (-92, -56, -30, 30)])
def test_a_continent_elsewhere_does_not_hold_the_grid(bounds):
    """Those around 90 degrees from the middle of a UTM zone come out of its formulas inside out."""
    placed = place(*bounds)
    assert not shapely.intersects(placed.shapes[0], shapely.box(0, 0, GRID.width, GRID.height))
    assert placed.notes == ()


@pytest.mark.parametrize("bounds", [
    (-180, -90, 180, 90), (-170, -80, 170, 80), (-130, -60, 170, 60), (30, -80, 180, 80), (30, -80, 390, 80),
])  # fmt: skip
def test_a_polygon_around_the_grid_and_what_its_system_cannot_show_is_refused(bounds):
    with pytest.raises(SourceError, match="polygon 0 reaches beyond what EPSG:32737 can show; cut it to"):
        place(*bounds)


@pytest.mark.parametrize("bounds", [(20, -35, 55, 10), (-20, -35, 52, 38), (-40, -60, 60, 80), (30, -10, 100, 60)])
def test_a_continent_around_the_grid_holds_it(bounds):
    assert shapely.contains(place(*bounds).shapes[0], shapely.box(0, 0, GRID.width, GRID.height))


@pytest.mark.parametrize(("crs", "lon", "bounds"), [
    ("EPSG:3857", LON, (-180, -60, 180, 60)), ("ESRI:54009", LON, (-180, -90, 180, 90)), ("EPSG:6933", LON, (-180, -90, 180, 90)),
    ("EPSG:3413", -45, (-180, 60, 180, 90)), ("EPSG:3031", 0, (-180, -90, 180, -60)), ("EPSG:32701", -179, (170, -70, 190, 20)),
])  # fmt: skip
def test_the_whole_of_what_a_system_shows_is_taken(crs, lon, bounds):
    lat = {"EPSG:3413": 80, "EPSG:3031": -80}.get(crs, LAT)
    x, y = Transformer.from_crs(4326, crs, always_xy=True).transform(lon, lat)
    grid = geobox((11, 7), 20.0, left=round(x), top=round(y), crs=crs)
    assert shapely.contains(place(*bounds, grid=grid).shapes[0], shapely.box(0, 0, 7, 11))


def test_a_field_across_180_degrees_of_a_grid_in_degrees_is_refused():
    grid = geobox((11, 7), 0.001, left=179.9, top=-17.0, crs="EPSG:4326")
    x, y = Transformer.from_crs(4326, 32701, always_xy=True).transform(179.9, -17.0)
    with pytest.raises(SourceError, match="polygon 0 reaches beyond what EPSG:4326 can show"):
        place(x - 20000, y - 1000, x + 20000, y, grid=grid, crs=32701)
    assert place(x, y - 1000, x + 1000, y, grid=grid, crs=32701).areas > 0


def test_the_reason_for_a_repair_is_that_of_the_shape_which_is_repaired():
    """The outline of all that lies north of 60 degrees meets itself at 180 degrees and at the pole."""
    (note,) = place(-180, 60, 180, 90, grid=geobox((11, 7), 20.0, left=0, top=-9e5, crs="EPSG:3413")).notes
    assert "number 0" in note
    assert "Valid" not in note


def test_coordinates_that_are_no_numbers_and_tables_without_columns_are_told():
    with np.errstate(invalid="ignore"):
        broken = shapely.Polygon([(LEFT, TOP), (LEFT + 50, np.nan), (LEFT + 50, TOP - 50)])
    for crs in (SOUTH, 4326):
        table = geopandas.GeoDataFrame(geometry=[shapely.box(LEFT, TOP - 50, LEFT + 50, TOP), broken], crs=crs)
        with pytest.raises(
            SourceError, match="polygon 1 has coordinates that are not finite numbers; correct it, or leave"
        ):
            place_parcels(table, "a", GRID)
    with pytest.raises(InputError, match="expected a geopandas GeoDataFrame, or a file, got GeoSeries"):
        place_parcels(table.geometry, "a", GRID)
