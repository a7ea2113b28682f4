"""Outlines on the globe, and what lies on both sides of 180 degrees."""

import numpy as np
import pytest
import shapely
from affine import Affine
from odc.geo.geobox import GeoBox
from shapely.geometry import shape

from anysat.geo.outline import outline


def grid(left, bottom, side, crs, pixels=64):
    return GeoBox((pixels, pixels), Affine(side / pixels, 0, left, 0, -side / pixels, bottom + side), crs)


def test_an_outline_is_a_polygon_to_the_left_of_whoever_walks_along_it():
    found, bbox = outline(grid(500_000, 5_000_000, 10_000, "EPSG:32631"))
    polygon = shape(found)
    assert found["type"] == "Polygon"
    assert polygon.exterior.is_ccw
    assert bbox == pytest.approx([*polygon.bounds], abs=1e-9)
    assert polygon.contains(shapely.Point(3.06, 45.2))


def test_an_outline_across_180_degrees_is_cut_there():
    found, bbox = outline(grid(560_000, 8_000_000, 100_000, "EPSG:32660"))  # the last zone, and beyond its end
    east, west = (shapely.Polygon(polygon[0]) for polygon in found["coordinates"])
    assert found["type"] == "MultiPolygon"
    assert east.bounds[2] == 180
    assert west.bounds[0] == -180
    assert east.exterior.is_ccw
    assert west.exterior.is_ccw
    assert bbox == [east.bounds[0], min(east.bounds[1], west.bounds[1]), west.bounds[2],
                    max(east.bounds[3], west.bounds[3])]  # fmt: skip
    widths = east.bounds[2] - east.bounds[0], west.bounds[2] - west.bounds[0]
    assert 2 < sum(widths) < 4  # not round the Earth


@pytest.mark.parametrize("longitude", [-180, 179.0, 0])
def test_a_grid_that_ends_at_180_degrees_is_one_polygon(longitude):
    found, bbox = outline(grid(longitude, 10, 1.0, "EPSG:4326"))
    assert found["type"] == "Polygon"
    assert np.allclose(bbox, [longitude, 10, longitude + 1, 11])


def test_a_grid_that_holds_a_pole_reaches_to_it():
    north, south = (outline(grid(-1_000_000, -1_000_000, 2_000_000, crs)) for crs in ("EPSG:3413", "EPSG:3031"))
    assert (north.bbox[::2], south.bbox[::2]) == ([-180, 180], [-180, 180])
    assert (north.bbox[3], south.bbox[1]) == (90, -90)
    assert 70 < north.bbox[1] < 85
    assert shape(north.geometry).contains(shapely.Point(100, 89))


def test_a_grid_round_the_globe_is_one_polygon_whatever_its_longitudes_begin_with():
    world = GeoBox((18, 36), Affine(10, 0, 0, 0, -10, 90), "EPSG:4326")
    assert outline(world).bbox == [-180, -90, 180, 90]
    assert shape(outline(world).geometry).area == 360 * 180


@pytest.mark.parametrize("metres", [0.0, 3.0, 40.0, 500.0])
def test_an_edge_close_to_180_degrees_makes_no_invalid_outline(metres):
    """The western edge of zone 1 is 180 degrees at the equator, 166 021 m."""
    found, bbox = outline(grid(166_021.443 - metres, -5_000, 10_000, "EPSG:32601"))
    assert shape(found).is_valid
    assert len(bbox) == 4
