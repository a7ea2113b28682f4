"""Files that lie where nobody expects them, or say odd things: read as they should be, or refused under their name."""

import re

import numpy as np
import pyproj
import pytest
from affine import Affine
from odc.geo.geobox import GeoBox

from anysat.errors import InputError, SourceError
from anysat.geo.grid import plan_grid
from geo_builders import LEFT, S2_NAMES, SOUTH, geobox, opened, ramp, write_tif

SITE = 'ENGCRS["site",EDATUM["site"],CS[Cartesian,2],AXIS["x",east],AXIS["y",north],LENGTHUNIT["metre",1]]'


def degrees(left, top=50.0, shape=(60, 60)):
    return GeoBox(shape, Affine(1e-4, 0, left, 0, -1e-4, top), "EPSG:4326")


def test_longitudes_beyond_180_degrees_are_those_west_of_greenwich(tmp_path):
    values = ramp(10, 60, 60)
    east = opened(f"s2={write_tif(tmp_path / 'a_20200103.tif', values, degrees(355.0), names=S2_NAMES)}")
    west = opened(f"s2={write_tif(tmp_path / 'b_20200103.tif', values, degrees(-5.0), names=S2_NAMES)}")
    target = plan_grid([east.footprint], 40).of(east.modality)
    assert str(target.crs) == "EPSG:32630"
    np.testing.assert_allclose(east.observe(target)[0].values, west.observe(target)[0].values, rtol=1e-6)
    assert east.observe(target)[0].valid.any()


@pytest.mark.parametrize("left", [179.998, -180.004, 539.998])
def test_a_file_in_degrees_on_both_sides_of_180_is_refused(tmp_path, left):
    path = write_tif(tmp_path / "a_20200103.tif", ramp(10, 60, 60), degrees(left), names=S2_NAMES)
    with pytest.raises(
        SourceError, match=r"a_20200103.tif: it is in degrees and lies on both sides of 180 degrees; cut"
    ):
        opened(f"s2={path}")


def test_a_file_whose_edge_is_180_degrees_is_taken(tmp_path):
    path = write_tif(tmp_path / "a_20200103.tif", ramp(10, 60, 60), degrees(179.994), names=S2_NAMES)
    assert str(plan_grid([opened(f"s2={path}").footprint], 40).geobox.crs) == "EPSG:32660"


@pytest.mark.parametrize("box", [geobox((60, 60), crs=SITE), geobox((60, 60), left=4e7, top=4e8)])
def test_a_file_that_does_not_lie_on_earth_is_refused(tmp_path, box):
    path = write_tif(tmp_path / "a_20200103.tif", ramp(10, 60, 60), box, names=S2_NAMES)
    with pytest.raises(SourceError, match=r"a_20200103.tif: its place on Earth is not known"):
        opened(f"s2={path}")


def test_a_folder_tells_what_it_holds_beside_its_geotiffs(tmp_path):
    write_tif(tmp_path / "a_20200103.tif", ramp(10, 6, 6), geobox((6, 6)), names=S2_NAMES)
    for name in ("more", "odd.tif", "cube.zarr", "texts"):
        (tmp_path / name).mkdir()
    for name in ("more/b_20200104.TIF", "odd.tif/c_20200105.tiff", "d_20200106.jp2", "texts/read.me", "a.json"):
        (tmp_path / name).touch()
    source = opened(f"s2={tmp_path}")
    assert "not read, because only GeoTIFFs are: cube.zarr/, d_20200106.jp2, more/, odd.tif/" in source.notes
    (tmp_path / "a_20200103.tif").unlink()
    with pytest.raises(SourceError, match=r"the folder has no GeoTIFF, only cube.zarr/, d_20200106.jp2, more/, odd"):
        opened(f"s2={tmp_path}")


def test_a_folder_of_geotiffs_may_have_any_name(tmp_path):
    (tmp_path / "s2.tif").mkdir()
    write_tif(tmp_path / "s2.tif" / "a_20200103.tif", ramp(10, 6, 6), geobox((6, 6)), names=S2_NAMES)
    source = opened(f"s2={tmp_path / 's2.tif'}")
    assert len(source.dates) == 1
    assert not any("not read" in note for note in source.notes)


def test_metres_of_heights_are_no_unit_of_a_reflectance(tmp_path):
    heights = geobox((6, 6), crs=pyproj.CRS("EPSG:32631+5773").to_wkt())
    path = write_tif(tmp_path / "a_20200103.tif", ramp(10, 6, 6), heights, names=S2_NAMES)
    assert set(opened(f"s2={path}").units.values()) == {"reflectance_1e4"}
    path = write_tif(tmp_path / "b_20200103.tif", ramp(10, 6, 6), geobox((6, 6)), names=S2_NAMES, units="metre")
    observation = opened(f"s2={path}").observe(geobox((6, 6)))[0]
    with pytest.raises(
        InputError, match=r"s2 band B2: .* got 'm'; give the unit .*, as `--units \[s2=reflectance_1e4\]`"
    ):
        observation.in_units("reflectance_1e4")


def test_a_file_of_a_folder_whose_header_cannot_be_read_is_named(tmp_path):
    paths = [
        write_tif(tmp_path / f"{k}_2020010{k}.tif", ramp(10, 6, 6), geobox((6, 6)), names=S2_NAMES) for k in (1, 2)
    ]
    paths[1].write_bytes(paths[1].read_bytes()[:100])
    with pytest.raises(SourceError, match=r"2_20200102.tif: it cannot be read .*; check that the file is complete"):
        opened(f"s2={tmp_path}")


@pytest.mark.parametrize("names", [S2_NAMES, None], ids=["named", "unnamed"])
def test_a_folder_of_chips_of_different_places_is_told(tmp_path, names):
    for number, (left, crs) in enumerate([(LEFT, SOUTH), (LEFT + 5000, SOUTH), (LEFT, "EPSG:32736")]):
        count = len(S2_NAMES) if names else 12
        box = geobox((6, 8), left=left, crs=crs)
        write_tif(tmp_path / f"chip{number}_20200601.tif", ramp(count, 6, 8), box, names=names)
    told = "its files lie in 3 places that share no ground; .* `anysat datasets embed`"
    if names:
        source = opened(f"s2={tmp_path}")
        assert re.search(told, source.doubts[-1])
    else:
        with pytest.raises(SourceError, match=told):
            opened(f"s2={tmp_path}")


def test_neighbouring_files_of_a_folder_are_one_place(tmp_path):
    for number in range(2):
        box = geobox((6, 8), left=LEFT + 80 * number)
        write_tif(tmp_path / f"part{number}_20200601.tif", ramp(10, 6, 8), box, names=S2_NAMES)
    assert opened(f"s2={tmp_path}").doubts == ()
