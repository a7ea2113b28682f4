"""Outlines on the globe, and what lies on both sides of 180 degrees."""

import numpy as np
import pytest
import shapely
from affine import Affine
from odc.geo.geobox import GeoBox
from shapely.geometry import shape

from anysat.geo.outline import bbox_of, outline


def grid(left, bottom, side, crs, pixels=64):
    return GeoBox((pixels, pixels), Affine(side / pixels, 0, left, 0, -side / pixels, bottom + side), crs)


def test_an_outline_is_a_polygon_to_the_left_of_whoever_walks_along_it():
    found = outline(grid(500_000, 5_000_000, 10_000, "EPSG:32631"))
    polygon = shape(found)
    assert found["type"] == "Polygon"
    assert polygon.exterior.is_ccw
    assert bbox_of(found) == pytest.approx([*polygon.bounds], abs=1e-9)
    assert polygon.contains(shapely.Point(3.06, 45.2))


def test_an_outline_across_180_degrees_is_cut_there():
    found = outline(grid(560_000, 8_000_000, 100_000, "EPSG:32660"))  # the last zone, and beyond its end
    east, west = (shapely.Polygon(polygon[0]) for polygon in found["coordinates"])
    assert found["type"] == "MultiPolygon"
    assert east.bounds[2] == 180
    assert west.bounds[0] == -180
    assert east.exterior.is_ccw
    assert west.exterior.is_ccw
    assert bbox_of(found) == [east.bounds[0], min(east.bounds[1], west.bounds[1]), west.bounds[2],
                              max(east.bounds[3], west.bounds[3])]  # fmt: skip
    widths = east.bounds[2] - east.bounds[0], west.bounds[2] - west.bounds[0]
    assert 2 < sum(widths) < 4  # not round the Earth


@pytest.mark.parametrize("longitude", [-180, 179.0, 0])
def test_a_grid_that_ends_at_180_degrees_is_one_polygon(longitude):
    found = outline(grid(longitude, 10, 1.0, "EPSG:4326"))
    assert found["type"] == "Polygon"
    assert np.allclose(bbox_of(found), [longitude, 10, longitude + 1, 11])
