"""Ground in degrees, and beyond the UTM zones: which system it is seen in, and that what is read there lies where it should."""

import math

import numpy as np
import pytest
import shapely
from affine import Affine
from odc.geo.geobox import GeoBox

from anysat.geo.area import plan_areas
from anysat.geo.grid import Footprint, is_metric, plan_grid
from anysat.geo.read.sources import InputPath, open_source
from anysat.modalities import MODALITIES as M
from geo_builders import geobox, write_tif

NORTH, SOUTH = "EPSG:32661", "EPSG:32761"


def degrees(longitude, latitude, shape=(80, 80)):
    """A grid of pixels of about 10 m, around a place."""
    rows, cols = shape
    step = 9e-5
    wide = step / math.cos(math.radians(latitude))
    return GeoBox(
        shape, Affine(wide, 0, longitude - cols / 2 * wide, 0, -step, latitude + rows / 2 * step), "EPSG:4326"
    )


def of(box):
    return Footprint(name="s2.tif", modality=M["s2"], geoboxes=(box,))


def degrees_of(x, y, *, is_north):
    """Longitude and latitude of places in UPS, after Snyder (1987), equations 20-16, 7-9 and 21-33; slowly."""
    semi_major, flattening = 6_378_137.0, 1 / 298.257223563
    e = math.sqrt(flattening * (2 - flattening))
    east, away = x - 2_000_000, (2_000_000 - y) if is_north else (y - 2_000_000)
    factor = math.sqrt((1 + e) ** (1 + e) * (1 - e) ** (1 - e)) / (2 * semi_major * 0.994)
    t = np.hypot(east, away) * factor
    latitude = math.pi / 2 - 2 * np.arctan(t)
    for _ in range(20):
        sine = e * np.sin(latitude)
        latitude = math.pi / 2 - 2 * np.arctan(t * ((1 - sine) / (1 + sine)) ** (e / 2))
    return np.degrees(np.arctan2(east, away)), np.degrees(latitude) * (1 if is_north else -1)


@pytest.mark.parametrize(
    ("latitude", "system"), [(86.0, NORTH), (84.01, NORTH), (83.9, "EPSG:32632"), (-79.9, "EPSG:32732"), (-82.0, SOUTH)]
)
def test_beyond_the_zones_ground_in_degrees_is_seen_in_polar_stereographic(latitude, system):
    box = degrees(9.0, latitude)
    grid, (area,) = plan_grid([of(box)], 100), plan_areas([of(box)], 100, "cell", shard=4)
    assert (grid.geobox.crs, area.geobox.crs, area.name) == (system, system, "")
    assert ("UPS" if "61" in system else "UTM") in area.crs_reason
    assert 6 <= min(area.geobox.shape) <= max(area.geobox.shape) <= 10


@pytest.mark.parametrize(("crs", "left", "top", "is_kept"), [
    ("EPSG:3413", -1_500_000, -1_000_000, True), ("EPSG:3031", 1_200_000, 1_500_000, True), (SOUTH, 2_100_000, 1_900_000, True),
    ("EPSG:3413", -100_000, -100_000, False),
])  # fmt: skip
def test_polar_systems_are_kept_where_their_metres_are_true(crs, left, top, is_kept):
    """The first at 73.5 degrees north; at the pole its metre is 3.01 % off."""
    box = geobox((60, 60), left=left, top=top, crs=crs)
    assert is_metric(box) == is_kept
    assert plan_grid([of(box)], 100).geobox.crs == (crs if is_kept else NORTH)


def test_a_grid_around_the_pole_is_one_area():
    box = geobox((400, 400), left=-2000, top=2000, crs="EPSG:3413")
    (area,) = plan_areas([of(box)], 100, "cell", shard=8)
    x, y = area.geobox.affine @ (area.geobox.width / 2, area.geobox.height / 2)
    assert area.geobox.crs == NORTH
    assert (x, y) == pytest.approx((2_000_000, 2_000_000), abs=100)


@pytest.mark.parametrize("latitude", [86.0, -82.0])
def test_pixels_read_beyond_the_zones_are_those_of_an_independent_calculation(latitude, tmp_path):
    box = degrees(30.0, latitude)
    cols, rows = np.meshgrid(np.arange(80) + 0.5, np.arange(80) + 0.5)
    values = np.stack([1000 + 10 * cols, 1000 + 10 * rows] + [np.ones((80, 80))] * 8).astype(np.float32)
    path = write_tif(tmp_path / "s2_20200103.tif", values, box, names=M["s2"].band_names, nodata=-9999)
    grid = plan_grid([of(box)], 100)
    seen = open_source(InputPath.parse(f"s2={path}"), M["s2"]).observe(grid.of(M["s2"]))[0]
    affine, (height, width) = grid.of(M["s2"]).affine, seen.values.shape[-2:]
    x, y = affine.c + 10 * (np.arange(width) + 0.5), affine.f - 10 * (np.arange(height) + 0.5)
    lon, lat = degrees_of(*np.meshgrid(x, y), is_north=latitude > 0)
    col, row = (lon - box.affine.c) / box.affine.a, (lat - box.affine.f) / box.affine.e
    valid = seen.valid[0, 0]
    assert valid.mean() > 0.6, "the grid is turned against the file's"
    np.testing.assert_allclose(seen.values[0, 0][valid], (1000 + 10 * col)[valid], atol=6)  # of a pixel: 0.6
    np.testing.assert_allclose(seen.values[0, 1][valid], (1000 + 10 * row)[valid], atol=6)
    assert valid[(col > 1) & (col < 79) & (row > 1) & (row < 79)].all()


@pytest.mark.parametrize(("west", "system"), [(1.0, "EPSG:32631"), (13.0, "EPSG:32633"), (28.0, "EPSG:32635")])
def test_an_area_of_a_wide_file_in_degrees_is_seen_in_its_own_zone(west, system):
    wide = GeoBox((1000, 30_000), Affine(1e-3, 0, 0, 0, -1e-3, 51), "EPSG:4326")
    wanted = shapely.box(west, 50.2, west + 0.1, 50.3)
    (found,) = plan_areas([of(wide)], 100, "cell", shard=8, wanted=wanted)
    assert found.geobox.crs == system
    assert found.crs_reason == "the UTM zone of the centre, because no input is in true metres"
