"""Cubes in memory become sources: axes in any order, lazy blocks window by window, mistakes named."""

import sys
from concurrent.futures import ThreadPoolExecutor

import cloudpickle
import dask
import dask.array
import numpy as np
import pytest
import xarray
from odc.geo.xr import xr_coords

from anysat.errors import SourceError, UnknownNameError
from anysat.geo.read.sources import open_sources
from anysat.modalities import MODALITIES as M
from geo_builders import LEFT, TOP, cube, geobox, ramp, source_of, write_nc, write_tif

S2 = M["s2"].band_names
DATES = ["2020-01-03", "2020-06-30", "2021-02-11"]
BOX = geobox((5, 7))


def array(values=None, **attrs):
    values = ramp(3, 10, 5, 7) if values is None else values
    dataset = cube(values, BOX, DATES[: len(values)], S2, **attrs)
    return dataset.set_coords("spatial_ref")["pixels"] if "spatial_ref" in dataset.data_vars else dataset["pixels"]


@pytest.mark.parametrize("order", [("y", "x", "band", "time"), ("band", "time", "x", "y"), ("time", "band", "y", "x")])
def test_axes_may_be_in_any_order(order):
    observation, how = source_of(array().transpose(*order), M["s2"]).observe(
        geobox((3, 4), left=LEFT + 20, top=TOP - 10)
    )
    np.testing.assert_array_equal(observation.values, ramp(3, 10, 5, 7)[:, :, 1:4, 2:6])
    assert how == "exact"


def test_a_dataset_of_a_variable_per_band_is_read():
    dataset = array().to_dataset("band")
    observation, _ = source_of(dataset, M["s2"]).observe(BOX)
    np.testing.assert_array_equal(observation.values, ramp(3, 10, 5, 7))


def test_a_cube_without_time_is_an_image():
    photo = array()[0, :3].drop_vars("time").assign_coords(band=["R", "G", "B"])
    source = source_of(photo, M["spot"])
    assert source.dates is None
    np.testing.assert_array_equal(source.observe(BOX)[0].values, ramp(3, 10, 5, 7)[0, :3])


def test_one_date_may_be_a_scalar_coordinate():
    assert source_of(array()[1], M["s2"]).dates.astype(str).tolist() == [DATES[1]]


def test_two_scenes_of_a_day_in_a_cube_are_joined_the_first_counts_pixel_by_pixel():
    """Whether bands lie on an axis or are variables; dates come in their order."""
    data = array(ramp(3, 10, 5, 7, dtype="float32"))
    data = data.assign_coords(time=np.array(["2020-07-01", "2020-06-01T10:00", "2020-06-01T10:05"], "datetime64[ns]"))
    data.values[1, :, 0] = np.nan
    expected = data.values[[1, 0]]
    expected[0, :, 0] = data.values[2, :, 0]
    for given in (data, data.to_dataset("band")):
        source = source_of(given, M["s2"])
        found, _ = source.observe(BOX)
        assert found.dates.astype(str).tolist() == source.dates.astype(str).tolist() == ["2020-06-01", "2020-07-01"]
        np.testing.assert_array_equal(found.values, expected)


def test_a_day_written_with_an_offset_is_that_of_greenwich():
    west = array().assign_coords(time=["2020-01-02T23:30:00-08:00", "2020-06-30T01:00:00Z", "2021-02-11"])
    assert source_of(west, M["s2"]).dates.astype(str).tolist() == DATES


def test_a_calendar_that_needs_a_package_is_told(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "cftime", None)
    data = array().to_dataset(name="pixels").drop_vars("time")
    data = data.assign_coords(time=("time", [2, 180, 400], {"units": "days since 2020-01-01", "calendar": "noleap"}))
    with pytest.raises(SourceError, match=r"a.nc: its dates are of the calendar 'noleap'.*; `pip install cftime`"):
        open_sources([f"s2={write_nc(tmp_path / 'a.nc', data)}"], M)


def test_rows_from_the_south_are_turned():
    observation, _ = source_of(array()[:, :, ::-1], M["s2"]).observe(BOX)
    np.testing.assert_array_equal(observation.values, ramp(3, 10, 5, 7))


class Blocks:
    """Blocks that count which of them were computed, and in how many threads."""

    def __init__(self):
        self.seen = []

    def __call__(self, block_info=None):
        self.seen.append(block_info[None]["chunk-location"])
        return np.ones(block_info[None]["chunk-shape"], np.float32)


def lazy(blocks):
    pixels = dask.array.map_blocks(
        blocks, chunks=((1, 1, 1), (10,), (4,) * 4, (4,) * 4), dtype=np.float32, meta=np.empty(0)
    )
    box = geobox((16, 16))
    coords = {**xr_coords(box), "time": np.array(DATES, "datetime64[ns]"), "band": list(S2)}
    return xarray.DataArray(pixels, dims=("time", "band", "y", "x"), coords=coords)


def test_lazy_blocks_are_computed_where_the_window_lies_and_when():
    blocks = Blocks()
    source = source_of(lazy(blocks), M["s2"])
    assert blocks.seen == []
    window = geobox((4, 4), left=LEFT + 40, top=TOP - 80)
    source.observe(window, between=(np.datetime64("2020-06-01"), np.datetime64("2020-07-01")))
    assert blocks.seen == [(1, 0, 2, 1)]


def test_lazy_blocks_are_computed_in_the_thread_that_asks():
    import threading

    threads = set()

    def block(block_info=None):
        threads.add(threading.get_ident())
        return np.ones(block_info[None]["chunk-shape"], np.float32)

    with dask.config.set(scheduler="threads"), ThreadPoolExecutor(1) as pool:
        source = source_of(lazy(block), M["s2"])
        worker = pool.submit(threading.get_ident).result()
        threads.clear()
        pool.submit(source.observe, geobox((16, 16))).result()
    assert threads == {worker}


def test_a_lazy_source_travels():
    source = cloudpickle.loads(cloudpickle.dumps(source_of(array().chunk(x=3), M["s2"])))
    np.testing.assert_array_equal(source.observe(BOX)[0].values, ramp(3, 10, 5, 7))


def test_scale_offset_and_nodata_in_the_attributes_are_applied_once():
    """As rioxarray leaves them; a cube that xarray has decoded keeps them in its encoding, and they are done."""
    stored = array(np.full((1, 10, 5, 7), 3000, np.uint16), scale_factor=1e-4, add_offset=-0.1, _FillValue=7)
    stored.values[0, 0, 0, 0] = 7
    source = source_of(stored, M["s2"])
    observation, _ = source.observe(BOX)
    assert observation.values[0, 1] == pytest.approx(0.2)
    assert not observation.valid[0, 0, 0, 0]
    assert set(source.units.values()) == {"reflectance"}
    decoded = xarray.decode_cf(stored.to_dataset(name="pixels"))["pixels"]
    again = source_of(decoded, M["s2"]).observe(BOX)[0]
    assert again.values[0, 1] == pytest.approx(0.2)
    assert again.units == observation.units


@pytest.mark.parametrize("said", [{"scale": 2e-4}, {"offset": 5.0}, {"nodata": 0}, {"nodata": 3000}])
def test_what_is_said_of_stored_numbers_means_the_same_of_a_decoded_cube_and_its_file(tmp_path, said):
    """Whose encoding tells how it was stored."""
    stored = array(np.full((1, 10, 5, 7), 3000, np.uint16), scale_factor=1e-4, add_offset=-0.1, _FillValue=7)
    stored.values[0, :, 0, 0], stored.values[0, :, 0, 1] = 7, 0
    path = write_nc(tmp_path / "a.nc", stored.to_dataset(name="pixels"))
    of_file = open_sources({"s2": {"path": str(path), **said}}, M)["s2"].observe(BOX)[0]
    for decoded in (True, False):
        with xarray.open_dataset(path, decode_coords="all", mask_and_scale=decoded) as held:
            found = source_of(held.load(), M["s2"], **said).observe(BOX)[0]
        np.testing.assert_array_equal(found.valid, of_file.valid)
        np.testing.assert_allclose(found.values, of_file.values, rtol=1e-5)


def test_names_of_bands_may_be_in_the_long_name():
    raster = array()[0].assign_coords(band=range(1, 11)).assign_attrs(long_name=S2[::-1])
    values = source_of(raster, M["s2"]).observe(BOX)[0].values
    np.testing.assert_array_equal(values[0], ramp(3, 10, 5, 7)[0, ::-1])


def test_units_of_an_array_are_those_given():
    radar = array()[:, :2].assign_coords(band=["VV", "VH"])
    assert source_of(radar, M["s1"], units={None: "linear"}).units == {0: "linear", 1: "linear"}
    assert source_of(radar, M["s1"], units={"VH": "linear"}).units == {0: "dB", 1: "linear"}


def test_bands_of_an_array_may_be_named():
    other = array()[:, :2].assign_coords(band=["one", "two"])
    source = source_of(other, M["s2"], bands={"B3": "one"})
    assert source.bands == ("B3",)
    np.testing.assert_array_equal(source.observe(BOX)[0].values[:, 1], ramp(3, 10, 5, 7)[:, 0])


def test_a_number_that_a_band_has_as_its_name_in_the_file_can_be_given_as_such(tmp_path):
    numbered = array()[:, :2].assign_coords(band=["band_1", "band_2"])
    tif = write_tif(tmp_path / "x_20200103.tif", ramp(1, 2, 5, 7)[0], BOX, names=("band_1", "band_2"))
    for given in ({"cube": numbered}, {"cube": numbered.to_dataset("band")}, {"path": str(tif)}):
        source = open_sources({"s2": {**given, "bands": {"B3": "band_2"}}}, M)["s2"]
        assert source.bands == ("B3",)
        np.testing.assert_array_equal(source.observe(BOX)[0].values[0, 1], ramp(3, 2, 5, 7)[0, 1])
        with pytest.raises(UnknownNameError, match="'band_3'; closest: band_"):
            open_sources({"s2": {**given, "bands": {"B3": "band_3"}}}, M)


def test_a_mapping_may_hold_arrays_and_paths():
    sources = open_sources({"s2": array()}, M, {("s2", None): "reflectance"})
    assert sources["s2"].name == "s2"
    assert set(sources["s2"].units.values()) == {"reflectance"}


def test_an_array_without_a_reference_system_is_refused():
    bare = array().drop_vars("spatial_ref")
    for axis in "yx":
        bare[axis].attrs.clear()
    bare.encoding.clear()
    with pytest.raises(SourceError, match=r"no georeference .*`.odc.assign_crs"):
        source_of(bare, M["s2"])


def test_an_array_of_other_bands_is_refused():
    with pytest.raises(SourceError, match=r"none of its 10 bands \(tree0, tree1.*the modality has B2"):
        source_of(array().assign_coords(band=[f"tree{k}" for k in range(10)]), M["s2"])
    with pytest.raises(UnknownNameError, match="unknown band of s2::pixels 'B02x'; closest"):
        source_of(array(), M["s2"], bands={"B2": "B02x"})


def test_uneven_coordinates_are_refused():
    with pytest.raises(SourceError, match="its coordinate 'x' is not evenly spaced"):
        source_of(array()[..., [0, 1, 3, 4]], M["s2"])


def test_degrees_rounded_to_float32_are_evenly_spaced_but_gaps_are_not():
    lon = (115.9 + 8.983e-5 * (np.arange(50) + 0.5)).astype(np.float32)
    lat = (-32 - 8.983e-5 * (np.arange(50) + 0.5)).astype(np.float32)
    coords = {"time": np.array(DATES[:1], "datetime64[ns]"), "latitude": lat, "longitude": lon}
    pixels = xarray.DataArray(np.ones((1, 50, 50)), coords, ("time", "latitude", "longitude"), name="B2")
    located = pixels.to_dataset().odc.assign_crs("EPSG:4326")
    (box,) = source_of(located, M["s2"]).footprint.geoboxes
    assert box.affine.a == pytest.approx(8.983e-5, rel=0.01)
    with pytest.raises(SourceError, match="not evenly spaced"):
        source_of(located.isel(longitude=[0, 1, 3, 4]), M["s2"])


def test_what_is_no_cube_is_refused():
    with pytest.raises(SourceError, match="a ndarray is not an xarray cube"):
        source_of(np.ones((3, 4)), M["s2"])
    with pytest.raises(SourceError, match=r"dimensions .*'depth'.* are not \(time, band, y, x\)"):
        source_of(array().expand_dims(depth=2), M["s2"])
