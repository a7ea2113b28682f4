"""Resampling: planes that share their nodata are warped together, with the values of each one alone."""

import numpy as np
import pytest
from affine import Affine
from odc.geo.geobox import GeoBox
from rasterio import warp

from anysat.geo.grid import mapped
from anysat.geo.read import resample
from anysat.geo.read.layers import Layer

SOURCE = GeoBox((9, 9), Affine(10, 0, 500_000, 0, -10, 5_000_000), "EPSG:32631")
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


@pytest.mark.parametrize("how", ["bilinear", "average"])
def test_planes_with_one_mask_are_warped_together(calls, how):
    together = resample._reproject(planes(), SOURCE, TARGET, how)
    assert calls == [4, 1]
    alone = [resample._reproject(plane[None], SOURCE, TARGET, how) for plane in planes()]
    assert np.array_equal(together, np.concatenate(alone), equal_nan=True)


@pytest.mark.parametrize("how", ["bilinear", "average"])
def test_the_nodata_of_a_plane_stays_its_own(calls, how):
    found = resample._reproject(planes(1), SOURCE, TARGET, how)
    assert calls == [1, 1, 1, 1, 4]
    whole = resample._reproject(planes(), SOURCE, TARGET, how)
    assert np.array_equal(found[[0, 2, 3]], whole[[0, 2, 3]], equal_nan=True)
    assert not np.array_equal(found[1], whole[1], equal_nan=True)


def test_no_planes_need_no_warping(calls):
    assert resample._reproject(planes()[:0], SOURCE, TARGET, "bilinear").shape == (0, 1, 5, 5)
    assert calls == []


def test_the_nearest_pixels_of_a_band_on_several_dates_are_those_of_each_date():
    dates = planes(1)[:, 0]

    def load(times, bands, row, col):
        return dates[list(times)][:, None, row, col]

    layer = Layer(path="cube", bands=(("a",),), units=(None,), shape_px=(9, 9), load=load, geobox=SOURCE)
    together = resample.place(layer, TARGET, range(4), [0], "nearest")[0]
    alone = [resample.place(layer, TARGET, [time], [0], "nearest")[0] for time in range(4)]
    assert np.array_equal(together, np.concatenate(alone), equal_nan=True)
    assert np.isfinite(together).any()


@pytest.mark.parametrize(("source_crs", "side"), [("EPSG:32632", 10.0), ("EPSG:3035", 10.0), ("EPSG:32632", 7.0)])
@pytest.mark.parametrize("shape", [(240, 240), (60, 600)])
def test_bilinear_pixels_lie_where_the_projection_says(source_crs, side, shape):
    """Whatever the shape of the window, and though the grids are turned against each other by some degrees."""
    target = GeoBox(shape, Affine(10, 0, 770_000, 0, -10, 5_400_000), "EPSG:32631")
    rows, cols = np.indices(shape) + 0.5
    x, y = target.crs.transformer_to_crs(source_crs)(*mapped(target.affine, cols, rows))
    left, top = x.min() - 50, y.max() + 50
    sides = round((y.max() - y.min() + 100) / side), round((x.max() - x.min() + 100) / side)
    source = GeoBox(sides, Affine(side, 0, left, 0, -side, top), source_crs)
    ramps = np.indices(sides, np.float32)[:, None] + np.float32(0.5)
    found = resample._reproject(ramps, source, target, "bilinear")[:, 0]
    assert np.abs(found - [(top - y) / side, (x - left) / side]).max() < 0.01
