"""Files that lie where nobody expects them, or say odd things: read as they should be, or refused under their name."""

import numpy as np
import pytest
from affine import Affine
from odc.geo.geobox import GeoBox

from anysat.errors import SourceError
from anysat.geo.grid import plan_grid
from geo_builders import geobox, ramp, write_tif
from test_geo_sources import S2_NAMES, opened

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
    with pytest.raises(SourceError, match=r"a_20200103.tif: where it lies on Earth is not known"):
        opened(f"s2={path}")
