"""Windows on both sides of 180 degrees over files in degrees: what they need is read, and no whole rows."""

import numpy as np
import pytest
from affine import Affine
from odc.geo.geobox import GeoBox
from pyproj import Transformer

from anysat.geo.grid import mapped
from anysat.geo.read.layers import Layer
from anysat.geo.read.resample import place
from geo_builders import S2_NAMES, opened, ramp, write_tif

SIDES = {"east": 179.0, "west": -180.0, "far": 10.0}
"""Western edges of three files of one degree."""


def window(pixel_m=1000.0, shape=(20, 24), crs="EPSG:32701", lat=-17.5):
    """A window in metres whose middle is 180 degrees."""
    x, y = Transformer.from_crs("EPSG:4326", crs, always_xy=True).transform(180.0, lat)
    left, top = x - shape[1] / 2 * pixel_m, y + shape[0] / 2 * pixel_m
    return GeoBox(shape, Affine(pixel_m, 0, left, 0, -pixel_m, top), crs)


def degrees(west, width_deg, step):
    """A grid of 0.3 degrees from north to south."""
    return GeoBox((round(0.3 / step), round(width_deg / step)), Affine(step, 0, west, 0, -step, -17.35), "EPSG:4326")


def layer(values, box, read):
    """A layer of one band (row col) that notes the pixels that are read of it."""

    def load(times, bands, row, col):
        read.append((row.stop - row.start) * (col.stop - col.start))
        return values[None, None, row, col]

    return Layer(path="a.tif", bands=(("B2",),), units=(None,), shape_px=values.shape, geobox=box, load=load)


def smooth(box):
    """Values that tell where they lie, the same on both sides of 180 degrees."""
    lon, lat = (box.coordinates[name].values for name in ("longitude", "latitude"))
    return (100 * np.cos(np.radians(lon[None] * 50)) + 10 * lat[:, None]).astype(np.float32)


def middles(box):
    """Longitudes and latitudes (row col) of a window's pixels."""
    rows, cols = np.mgrid[: box.height, : box.width] + 0.5
    back = Transformer.from_crs(str(box.crs), "EPSG:4326", always_xy=True)
    return back.transform(*mapped(box.affine, cols, rows))


@pytest.mark.parametrize("step", [0.01, 0.004])
def test_of_a_map_of_the_world_a_window_reads_a_few_columns_at_both_ends(step):
    box, target, read = degrees(-180, 360, step), window(), []
    found, how = place(layer(smooth(box), box, read), target, [0], [0])
    lon, lat = middles(target)
    expected = 100 * np.cos(np.radians(lon * 50)) + 10 * lat
    np.testing.assert_allclose(found[0, 0], expected, atol=1.0)
    assert how.startswith("bilinear" if step == 0.01 else "average")
    assert sum(read) < 0.02 * np.prod(box.shape)


def test_the_nearest_pixels_on_both_sides_are_those_under_the_middles():
    box, target, read = degrees(-180, 360, 0.01), window(), []
    found, _ = place(layer(ramp(*box.shape, dtype="float32"), box, read), target, [0], [0], "nearest")
    lon, lat = middles(target)
    rows, cols = (box.affine.f - lat) / 0.01, (lon + 180) / 0.01
    inside = (np.abs(rows - rows.round()) > 0.01) & (np.abs(cols - cols.round()) > 0.01)  # not on an edge of pixels
    expected = ramp(*box.shape, dtype="float32")[rows.astype(int), cols.astype(int)]
    np.testing.assert_array_equal(found[0, 0][inside], expected[inside])
    assert sum(read) < 0.02 * np.prod(box.shape)


def test_files_on_both_sides_are_read_where_the_window_is_and_no_others(tmp_path):
    for name, west in SIDES.items():
        box = degrees(west, 1, 0.005)
        values = np.repeat(smooth(box)[None], 10, axis=0)
        write_tif(tmp_path / f"{name}_20200103.tif", values, box, names=S2_NAMES)
    source, target = opened(f"s2={tmp_path}"), window()
    assert {one.layer.scene.split("_")[0] for one in source.touching(target)} == {"east", "west"}
    (tmp_path / "far_20200103.tif").unlink()
    observation, _ = source.observe(target)
    lon, lat = middles(target)
    np.testing.assert_allclose(observation.values[0, 0], 100 * np.cos(np.radians(lon * 50)) + 10 * lat, atol=1.0)


def test_a_window_beside_180_needs_one_side():
    box, read = degrees(-180, 360, 0.01), []
    east = window().translate_pix(40, 0)
    place(layer(smooth(box), box, read), east, [0], [0])
    assert len(read) == 1
