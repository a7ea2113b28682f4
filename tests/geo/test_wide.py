"""Rasters of whole continents beside small ones, and wide areas: nothing that they hold is left out."""

import pytest
import shapely
from affine import Affine
from odc.geo import CRS
from odc.geo.geobox import GeoBox
from pyproj import Transformer

from anysat.errors import SourceError
from anysat.geo.area import plan_areas
from anysat.geo.grid import Footprint, bounds_of, plan_grid, plan_tile
from anysat.geo.read.sources import open_sources
from anysat.modalities import MODALITIES as M
from geo_builders import geobox, ramp, write_tif

S2 = geobox((80, 160), left=499_200, top=5_600_000, crs="EPSG:32631")  # on both sides of 3 degrees east
WORLD = (-180, -90, 180, 90)


def of(key, box):
    return Footprint(name=f"{key}.tif", modality=M[key], geoboxes=(box,))


def degrees(west, south, east, north, step):
    shape = round((north - south) / step), round((east - west) / step)
    return GeoBox(shape, Affine(step, 0, west, 0, -step, north), "EPSG:4326")


def bounds(area):
    return tuple(area.geobox.boundingbox.bbox)


def mercator(step=20_000.0):
    half, count = 20_037_508.34, 2 * 20_037_508.34 / step
    return GeoBox((int(count), int(count)), Affine(step, 0, -half, 0, -step, half), "EPSG:3857")


@pytest.mark.parametrize("wide", [
    degrees(*WORLD, 0.25), degrees(-180, -60, 180, 80, 0.25), degrees(-20, -35, 60, 72, 0.25),
    degrees(-10, 0, 170, 75, 0.25), mercator(),
])  # fmt: skip
def test_a_second_input_of_whole_continents_removes_no_ground(wide):
    alone, both = ([of("s2", S2)], [of("s2", S2), of("modis", wide)])
    (first,), (second,) = (plan_areas(some, 20, "cell", shard=16) for some in (alone, both))
    assert bounds(first) == bounds(second)
    assert plan_grid(both, 20).geobox == plan_grid(alone, 20).geobox


def test_a_zone_beside_180_sees_both_ends_of_a_world_map():
    west, south, east, north = bounds_of([degrees(*WORLD, 0.25)], CRS("EPSG:32601"))
    x, y = Transformer.from_crs("EPSG:4326", "EPSG:32601", always_xy=True).transform([170.0, -150.0], [10.0, 10.0])
    assert west < x[0] < x[1] < east
    assert south < min(y) < max(y) < north


def test_a_continent_elsewhere_does_not_overlap():
    with pytest.raises(SourceError, match="ground far away, which does not overlap"):
        plan_areas([of("s2", S2), of("modis", degrees(113, -44, 154, -10, 0.25))], 20, "cell", shard=16)


@pytest.mark.parametrize("bbox", [
    (2.9, 50.4, 3.3, 50.7), (-5, 42, 9, 51), (-80, -40, 90, 80), WORLD, (-179, -89, 20, 89),
])  # fmt: skip
def test_an_area_that_holds_the_source_is_not_refused(tmp_path, bbox):
    write_tif(tmp_path / "20200601.tif", ramp(1, *S2.shape), S2, names=["B2"])
    open_sources({"s2": str(tmp_path)}, M, bbox=bbox)


@pytest.mark.parametrize("bbox", [(4.0, 50.5, 4.1, 50.6), (110, -40, 155, -10), (-180, -90, -60, 90)])
def test_an_area_elsewhere_is_refused(tmp_path, bbox):
    write_tif(tmp_path / "20200601.tif", ramp(1, *S2.shape), S2, names=["B2"])
    with pytest.raises(SourceError, match="no part of it lies in the area"):
        open_sources({"s2": str(tmp_path)}, M, bbox=bbox)


SMALL, AUSTRALIA = degrees(115.9, -32.02, 115.92, -32, 1e-4), degrees(113, -44, 154, -10, 0.01)


@pytest.mark.parametrize("wide", [AUSTRALIA, degrees(-180, -60, 180, 80, 0.05)])
@pytest.mark.parametrize("is_first", [True, False])
def test_the_zone_is_that_of_the_ground_that_all_share_whatever_comes_first(wide, is_first):
    given = [of("s2", SMALL), of("l8", wide)][:: 1 if is_first else -1]
    (area,) = plan_areas(given, 60, "cell", shard=16)
    assert area.geobox.crs == plan_grid(given, 60).geobox.crs == "EPSG:32750"
    assert bounds(area)[2] - bounds(area)[0] < 2100


@pytest.mark.parametrize("wanted", [shapely.box(115.9, -32.01, 115.91, -32.0), shapely.box(110, -32.01, 125, -32.0)])
def test_the_zone_is_that_of_the_shared_ground_in_the_area(wanted):
    (area,) = plan_areas([of("l8", AUSTRALIA), of("s2", SMALL)], 60, "cell", shard=16, wanted=wanted)
    assert (area.geobox.crs, area.name) == ("EPSG:32750", "")


def test_a_tile_around_a_place_lies_in_the_zone_of_the_place():
    assert plan_tile([of("l8", AUSTRALIA)], 600.0, (116.0, -32.0)).geobox.crs == "EPSG:32750"


def test_rasters_on_both_sides_of_180_degrees_have_their_middle_there():
    boxes = degrees(179.99, -17.01, 180, -17, 1e-4), degrees(-180, -17.01, -179.98, -17, 1e-4)
    pair = Footprint(name="s2", modality=M["s2"], geoboxes=boxes)
    grid = plan_tile([pair], 100.0, (-179.99, -17.005))
    assert grid.geobox.crs == "EPSG:32701"
    areas = plan_areas([pair], 60, "cell", shard=16)
    assert [area.name for area in areas] == ["utm01s", "utm60s"]
    assert all(max(area.geobox.shape) < 60 for area in areas)
