"""Resampling: planes that share their nodata are warped together, with the values of each one alone."""

import numpy as np
import pytest
from affine import Affine
from odc.geo import CRS
from odc.geo.geobox import GeoBox
from rasterio import warp

from anysat.geo import resample
from anysat.geo.layers import Layer

AFFINE, SOURCE = Affine(10, 0, 500_000, 0, -10, 5_000_000), CRS("EPSG:32631")
TARGET = GeoBox((5, 5), Affine(10, 0, 500_013, 0, -10, 4_999_987), "EPSG:32631")


@pytest.fixture
def calls(monkeypatch):
    """Number of planes in each call of GDAL."""
    found, warped = [], warp.reproject

    def noted(planes, *given, **named):
        found.append(len(planes))
        return warped(planes, *given, **named)

    monkeypatch.setattr(warp, "reproject", noted)
    return found


def planes(*holes):
    values = np.random.default_rng(0).normal(size=(4, 1, 9, 9)).astype(np.float32)
    values[..., 3, 3] = np.nan
    for number in holes:
        values[number, 0, 5, 5] = np.nan
    return values


@pytest.mark.parametrize("average", [False, True])
def test_planes_with_one_mask_are_warped_together(calls, average):
    together = resample._reproject(planes(), AFFINE, SOURCE, TARGET, average)
    assert calls == [4, 1]
    alone = [resample._reproject(plane[None], AFFINE, SOURCE, TARGET, average) for plane in planes()]
    assert np.array_equal(together, np.concatenate(alone), equal_nan=True)


@pytest.mark.parametrize("average", [False, True])
def test_the_nodata_of_a_plane_stays_its_own(calls, average):
    found = resample._reproject(planes(1), AFFINE, SOURCE, TARGET, average)
    assert calls == [1, 1, 1, 1, 4]
    whole = resample._reproject(planes(), AFFINE, SOURCE, TARGET, average)
    assert np.array_equal(found[[0, 2, 3]], whole[[0, 2, 3]], equal_nan=True)
    assert not np.array_equal(found[1], whole[1], equal_nan=True)


def test_no_planes_need_no_warping(calls):
    assert resample._reproject(planes()[:0], AFFINE, SOURCE, TARGET, average=False).shape == (0, 1, 5, 5)
    assert calls == []


def test_the_nearest_pixels_of_a_band_on_several_dates_are_those_of_each_date():
    dates = planes(1)[:, 0]

    def load(times, bands, row, col):
        return dates[list(times)][:, None, row, col]

    layer = Layer(path="cube", bands=(("a",),), units=(None,), shape_px=(9, 9), load=load,
                  geobox=GeoBox((9, 9), AFFINE, SOURCE))  # fmt: skip
    together = resample.place_nearest(layer, TARGET, range(4), 0)
    alone = [resample.place_nearest(layer, TARGET, [time], 0) for time in range(4)]
    assert np.array_equal(together, np.concatenate(alone), equal_nan=True)
    assert np.isfinite(together).any()
