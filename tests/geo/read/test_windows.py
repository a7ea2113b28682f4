"""A window of a source: only what touches it is read, within dates; from several threads, and from another process."""

from concurrent.futures import ThreadPoolExecutor

import cloudpickle
import numpy as np
import pytest
from odc.geo.geobox import GeoBox

from anysat.errors import SourceError
from anysat.geo.read.sources import InputPath, open_source, open_sources
from anysat.modalities import MODALITIES as M
from geo_builders import LEFT, TOP, cube, geobox, ramp, write_nc, write_tif

S2 = M["s2"].band_names
DATES = ["2020-01-03", "2020-06-30", "2021-02-11"]


def day(text):
    return np.datetime64(text, "D")


def opened(words):
    given = InputPath.parse(words)
    return open_source(given, M[given.key])


def series(folder, dates=DATES, box=None, **options):
    """A file of ten bands for each date; each begins 1000 later than the one before."""
    box = box or geobox((6, 8))
    for number, date in enumerate(dates):
        values = ramp(10, *box.shape, start=100 + 1000 * number)
        write_tif(folder / f"{date}.tif", values, box, names=S2, **options)
    return opened(f"s2={folder}")


def test_a_window_opens_no_other_files_than_those_it_touches(tmp_path):
    """The others are gone by then, and the window does not notice."""
    for row in range(6):
        for col in range(6):
            box = geobox((10, 10), left=LEFT + 100 * col, top=TOP - 100 * row)
            write_tif(tmp_path / f"{row}{col}_20200103.tif", ramp(10, 10, 10, start=100 * row + col), box, names=S2)
    source = opened(f"s2={tmp_path}")
    window = geobox((8, 8), left=LEFT + 260, top=TOP - 260)
    expected = source.observe(window)[0]
    touched = {(row, col) for row in (2, 3) for col in (2, 3)}
    assert len(source.touching(window)) == 4
    for path in tmp_path.iterdir():
        if (int(path.name[0]), int(path.name[1])) not in touched:
            path.unlink()
    observation = source.observe(window)[0]
    assert observation.valid.all()
    np.testing.assert_array_equal(observation.values, expected.values)


def test_a_window_in_another_reference_system_finds_what_it_touches(tmp_path):
    for col in range(4):
        box = geobox((10, 10), left=LEFT + 100 * col)
        write_tif(tmp_path / f"{col}_20200103.tif", np.full((10, 10, 10), col + 1.0, np.float32), box, names=S2)
    source = opened(f"s2={tmp_path}")
    window = geobox((4, 4), left=LEFT + 230, top=TOP - 30).to_crs("EPSG:4326")
    assert {one.layer.scene[0] for one in source.touching(window)} == {"2"}
    assert set(np.unique(source.observe(window)[0].values)) == {3.0}


def test_dates_outside_the_range_are_not_read(tmp_path):
    source = series(tmp_path)
    (tmp_path / "2021-02-11.tif").unlink()
    observation, _ = source.observe(geobox((6, 8)), between=(day("2020-01-03"), day("2020-06-30")))
    assert observation.dates.astype(str).tolist() == DATES[:2]
    assert observation.values[1, 0, 0, 0] == 1100


def test_both_ends_of_a_range_count(tmp_path):
    source = series(tmp_path)
    observation, _ = source.observe(geobox((6, 8)), between=(day("2020-06-30"), day("2021-02-11")))
    assert observation.dates.astype(str).tolist() == DATES[1:]


def test_dates_without_a_valid_pixel_here_are_left_out(tmp_path):
    for number, date in enumerate(DATES):
        box = geobox((6, 8), left=LEFT + 80 * number)
        write_tif(tmp_path / f"{date}.tif", ramp(10, 6, 8), box, names=S2)
    source = opened(f"s2={tmp_path}")
    observation, _ = source.observe(geobox((6, 8), left=LEFT + 80))
    assert observation.dates.astype(str).tolist() == [DATES[1]]
    assert observation.valid.all()


def test_where_no_date_remains_there_is_one_that_is_all_invalid(tmp_path):
    source = series(tmp_path)
    observation, how = source.observe(geobox((4, 4), left=LEFT + 5000))
    assert (observation.values.shape, observation.valid.any()) == ((1, 10, 4, 4), False)
    assert observation.dates.astype(str).tolist() == [DATES[0]]
    assert how == "it has no data here"
    observation, _ = source.observe(geobox((4, 4)), between=(day("2020-03-01"), day("2020-04-01")))
    assert observation.dates.astype(str).tolist() == ["2020-03-01"]
    assert not observation.valid.any()


def test_a_cube_is_read_at_the_dates_asked_for(tmp_path):
    values = ramp(3, 10, 5, 7)
    path = write_nc(tmp_path / "c.nc", cube(values, geobox((5, 7)), DATES, S2))
    observation, _ = opened(f"s2={path}").observe(geobox((5, 7)), between=(day(DATES[1]), day(DATES[1])))
    np.testing.assert_array_equal(observation.values, values[1:2])


def test_an_image_is_read_whatever_the_dates(tmp_path):
    path = write_tif(tmp_path / "photo_20180101.tif", ramp(3, 10, 10), geobox((10, 10), 1.0))
    observation, _ = opened(f"spot={path}").observe(
        geobox((10, 10), 1.0), between=(day("2020-01-01"), day("2020-12-31"))
    )
    assert observation.valid.all()


@pytest.mark.parametrize("kind", ["folder", "nc", "zarr"])
def test_threads_read_what_one_reads(tmp_path, kind):
    values = np.random.default_rng(0).integers(1, 9999, (3, 10, 64, 64)).astype("uint16")
    if kind == "folder":
        path = tmp_path
        for date, plane in zip(DATES, values, strict=True):
            write_tif(tmp_path / f"{date}.tif", plane, geobox((64, 64)), names=S2)
    else:
        path, dataset = tmp_path / f"c.{kind}", cube(values, geobox((64, 64)), DATES, S2)
        write_nc(path, dataset) if kind == "nc" else dataset.to_zarr(path, zarr_format=2, consolidated=True)
    source = opened(f"s2={path}")
    windows = [geobox((16, 16), left=LEFT + 160 * col, top=TOP - 160 * row) for row in range(4) for col in range(4)]
    with ThreadPoolExecutor(6) as pool:
        found = [observation.values for observation, _ in pool.map(source.observe, windows)]
    for place, seen in enumerate(found):
        row, col = 16 * (place // 4), 16 * (place % 4)
        np.testing.assert_array_equal(seen, values[:, :, row : row + 16, col : col + 16])


@pytest.mark.parametrize("kind", ["folder", "nc", "zarr"])
def test_a_source_travels_to_a_worker_in_another_folder(tmp_path, monkeypatch, kind):
    values = ramp(3, 10, 6, 8)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    if kind == "folder":
        series(tmp_path / "data")
        path = "data"
    else:
        path, dataset = f"data/c.{kind}", cube(values, geobox((6, 8)), DATES, S2)
        write_nc(path, dataset) if kind == "nc" else dataset.to_zarr(path, zarr_format=2, consolidated=True)
    source = opened(f"s2={path}")
    packed = cloudpickle.dumps(source)
    expected = source.observe(geobox((6, 8)))[0].values
    monkeypatch.chdir("/")
    np.testing.assert_array_equal(cloudpickle.loads(packed).observe(geobox((6, 8)))[0].values, expected)


def test_a_range_without_a_date_is_refused_with_the_dates_there_are(tmp_path):
    series(tmp_path)
    with pytest.raises(SourceError, match=r"none of its dates is between 2022-01-01 and 2022-12-31; it has 3 dates from "
                                          r"2020-01-03 to 2021-02-11: 2020-01-03, 2020-06-30, 2021-02-11"):  # fmt: skip
        open_sources([f"s2={tmp_path}"], M, between=(day("2022-01-01"), day("2022-12-31")))


def test_a_range_leaves_its_dates_to_the_source(tmp_path):
    series(tmp_path)
    source = open_sources([f"s2={tmp_path}"], M, between=(day("2020-02-01"), day("2022-12-31")))["s2"]
    assert source.dates.astype(str).tolist() == DATES[1:]
    observation, _ = source.observe(geobox((6, 8)))
    assert observation.values[:, 0, 0, 0].tolist() == [1100, 2100]


def test_a_source_beside_the_area_is_refused(tmp_path):
    series(tmp_path)
    with pytest.raises(SourceError, match=r"no part of it lies in the area, longitude 10 to 11 and latitude 50 to 51"):
        open_sources([f"s2={tmp_path}"], M, bbox=(10, 50, 11, 51))
    west, south, east, north = geobox((6, 8)).extent.to_crs("EPSG:4326").boundingbox.bbox
    where = rf"it lies in {west:.4f},{south:.4f},{east:.4f},{north:.4f} \(WEST,SOUTH,EAST,NORTH\)"
    with pytest.raises(SourceError, match=where):  # of latitude and longitude in the other order
        open_sources([f"s2={tmp_path}"], M, bbox=(south, west, north, east))
    assert open_sources([f"s2={tmp_path}"], M, bbox=(west, south, east, north))["s2"].bands == S2


def test_the_footprint_names_each_grid_once(tmp_path):
    assert series(tmp_path).footprint.geoboxes == (geobox((6, 8)),)


def test_overlapping_files_of_a_date_are_joined_pixel_by_pixel(tmp_path):
    first = np.full((10, 6, 8), 1, np.uint16)
    first[:, :, 4:] = 0
    write_tif(tmp_path / "a_20200103.tif", first, geobox((6, 8)), names=S2, nodata=0)
    write_tif(tmp_path / "b_20200103.tif", np.full((10, 6, 8), 2, np.uint16), geobox((6, 8)), names=S2, nodata=0)
    values = opened(f"s2={tmp_path}").observe(geobox((6, 8)))[0].values[0, 0]
    assert (values[:, :4] == 1).all()
    assert (values[:, 4:] == 2).all()


def test_a_window_costs_by_what_it_touches_not_by_what_there_is(tmp_path):
    """Where a thousand scenes lie is compared at once: no more work per scene than a few numbers."""
    source = series(tmp_path, dates=DATES[:1])
    one = source.chosen[0]
    from dataclasses import replace

    far = [
        one._replace(layer=replace(one.layer, geobox=geobox((6, 8), left=LEFT + 1000 * k), path=f"{k}"))
        for k in range(1000)
    ]
    many = replace(source, chosen=tuple(far))
    assert [c.layer.path for c in many.touching(geobox((4, 4), left=LEFT + 500_010))] == ["500"]
    assert isinstance(far[0].layer.geobox, GeoBox)
