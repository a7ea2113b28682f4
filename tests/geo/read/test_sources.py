"""Files to observations: bands, dates, units, nodata, scale, grids; and what is refused."""

from pathlib import Path

import h5py
import numpy as np
import pytest
import rasterio.shutil

from anysat.errors import MissingFileError, RecordError, SourceError, UnknownNameError
from anysat.geo.read.layers import date_in
from anysat.geo.read.sources import InputPath, open_source, open_sources, parse_units
from anysat.modalities import MODALITIES as M
from geo_builders import LEFT, S2_NAMES, SOUTH, TOP, cube, geobox, opened, ramp, write_nc, write_tif

DATES = ["2020-01-03", "2020-06-30", "2021-02-11"]


def read(words, box, units=()):
    return opened(words, units).observe(box)[0]


def write_series(path, num_dates=2, bands=10, name="sen-2", products=None, shape=(6, 6)):
    with h5py.File(path, "a") as file:
        file[f"{name}-data"] = np.random.default_rng(0).random((num_dates, bands, *shape), dtype=np.float32)
        radar = name.startswith("sen-1")
        stems = [f"S1A_IW_GRDH_1SDV_2019010{d}T17_2019010{d}T18_X" if radar else f"S2A_MSIL2A_2019010{d}T10_N0211"
                 for d in range(1, num_dates + 1)]  # fmt: skip
        file[f"{name}-products"] = np.array(products or stems, dtype="S70")
    return path


def test_a_geotiff_on_the_grid_is_cut_out_bit_by_bit(tmp_path):
    values = ramp(10, 13, 9)
    write_tif(tmp_path / "s2_20200103.tif", values, geobox((13, 9)), names=S2_NAMES)
    target = geobox((4, 6), left=LEFT + 30, top=TOP - 50)
    observation, how = opened(f"s2={tmp_path / 's2_20200103.tif'}").observe(target)
    assert how == "exact"
    assert (observation.values[0] == values[:, 5:9, 3:9]).all()
    assert observation.dates.tolist() == np.array(["2020-01-03"], "datetime64[D]").tolist()


def test_bands_are_matched_by_name_whatever_their_order(tmp_path):
    values = ramp(10, 4, 5)
    write_tif(tmp_path / "a_20200103.tif", values[::-1].copy(), geobox((4, 5)), names=S2_NAMES[::-1])
    assert (read(f"s2={tmp_path / 'a_20200103.tif'}", geobox((4, 5))).values[0] == values).all()


def test_bands_the_file_lacks_are_invalid_and_those_it_has_too_many_are_told(tmp_path):
    path = write_tif(tmp_path / "a_20200103.tif", ramp(3, 4, 5), geobox((4, 5)), names=("B1", "B3", "B11"))
    source = opened(f"s2={path}")
    assert source.bands == ("B3", "B11")
    assert "not used: B1" in source.notes
    assert source.observe(geobox((4, 5)))[0].valid.any(axis=(0, 2, 3)).tolist() == [0, 1, 0, 0, 0, 0, 0, 0, 1, 0]


def test_unnamed_bands_are_taken_in_order_when_their_number_agrees(tmp_path):
    path = write_tif(tmp_path / "naip.tif", ramp(4, 16, 24, dtype="uint8", start=0), geobox((16, 24), 1.25))
    assert opened(f"naip={path}").bands == ("R", "G", "B", "NIR")


def test_bands_nobody_knows_are_refused_with_their_names_and_ours(tmp_path):
    path = write_tif(tmp_path / "a_20200103.tif", ramp(2, 4, 5), geobox((4, 5)), names=("tree", "water"))
    with pytest.raises(SourceError, match=r"none of its 2 bands \(tree, water\).*the modality has B2, B3"):
        opened(f"s2={path}")


def test_infrared_said_to_be_transparency_is_no_mask(tmp_path):
    import rasterio

    path = write_tif(tmp_path / "photo.tif", ramp(4, 20, 20, dtype="uint8"), geobox((20, 20), 1.25))
    with rasterio.open(path, "r+") as file:
        file.colorinterp = [rasterio.enums.ColorInterp[name] for name in ("red", "green", "blue", "alpha")]
        file.write(np.zeros((20, 20), np.uint8), 4)
    assert read(f"naip={path}", geobox((20, 20), 1.25)).valid.all()


def _photo(path, *, mask=None, last="alpha", nodata=None):
    """A photo of infrared, green, blue and red, of which the last band is said to be something, with a mask."""
    write_tif(path, ramp(4, 20, 20, dtype="uint8", start=1) | 1, geobox((20, 20), 0.2), names=["R", "G", "B", "NIR"])
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True), rasterio.open(path, "r+") as file:
        file.colorinterp = [rasterio.enums.ColorInterp[name] for name in ("red", "green", "blue", last)]
        if mask is not None:
            file.write_mask(mask)
        file.nodata = nodata
    return path


HALF = np.arange(400).reshape(20, 20) % 20 < 10


@pytest.mark.parametrize("last", ["alpha", "undefined"])
@pytest.mark.parametrize("said", [{}, {"nodata": 0}, {"scale": 2.0}, {"nodata": 3, "scale": 2.0}])
def test_what_the_mask_of_a_file_hides_stays_hidden(tmp_path, last, said):
    """Whatever its last band is called, and whatever is said of its numbers."""
    path = _photo(tmp_path / "photo.tif", mask=HALF, last=last)
    source = open_sources({"aerial": {"path": str(path), **said}}, M)["aerial"]
    valid = source.observe(geobox((20, 20), 0.2))[0].valid
    assert not valid[:, ~HALF].any()
    assert (valid[:, HALF].mean() == 1) == (said.get("nodata") != 3)


def test_a_number_that_is_said_to_be_no_data_counts_beside_infrared_said_to_be_transparency(tmp_path):
    path = _photo(tmp_path / "photo.tif", nodata=3)
    seen = read(f"aerial={path}", geobox((20, 20), 0.2))
    assert 0 < seen.valid.mean() < 1
    assert not (seen.values[seen.valid] == 3).any()


@pytest.mark.parametrize("nodata", [None, 78])
def test_transparency_that_is_not_read_hides_whatever_number_is_no_data(tmp_path, nodata):
    path = write_tif(tmp_path / "photo.tif", np.stack([*ramp(3, 20, 20, dtype="uint8", start=1), HALF * np.uint8(255)]),
                     geobox((20, 20), 0.2), names=["R", "G", "B", "A"], nodata=nodata)  # fmt: skip
    with rasterio.open(path, "r+") as file:
        file.colorinterp = [rasterio.enums.ColorInterp[name] for name in ("red", "green", "blue", "alpha")]
    for said in ({}, {"nodata": 77}):
        source = open_sources({"aerial": {"path": str(path), **said}}, M)["aerial"]
        assert not source.observe(geobox((20, 20), 0.2))[0].valid[:, ~HALF].any()


def test_a_folder_has_one_date_per_file_and_files_of_a_date_are_its_bands(tmp_path):
    for date in ("20200630", "2020-01-03"):
        write_tif(tmp_path / f"T37_{date}_B02.tif", ramp(1, 6, 8), geobox((6, 8)))
        write_tif(tmp_path / f"T37_{date}_B11.tif", ramp(1, 3, 4, start=500), geobox((3, 4), 20.0))
        write_tif(tmp_path / f"T37_{date}_B09.tif", ramp(1, 1, 2), geobox((1, 2), 60.0))
    source = opened(f"s2={tmp_path}")
    observation, how = source.observe(geobox((6, 8)))
    assert [str(date) for date in source.dates] == ["2020-01-03", "2020-06-30"]
    assert source.bands == ("B2", "B11")
    assert how == "exact and bilinear of 20 m pixels"
    assert (observation.values[1, 0] == ramp(6, 8)).all()
    assert observation.valid[:, [0, 8]].all()
    assert not observation.valid[:, 1:8].any()


def test_files_without_a_date_are_all_named(tmp_path):
    for name in ("a.tif", "b.tif", "c_20200103.tif"):
        write_tif(tmp_path / name, ramp(10, 4, 5), geobox((4, 5)), names=S2_NAMES)
    with pytest.raises(SourceError, match=r"a.tif, .*b.tif: no date in the file name .*as 20200601$"):
        opened(f"s2={tmp_path}")


@pytest.mark.parametrize("given", ["aerial={}", "aerial={}@2020-06-01"])
def test_undated_files_of_the_same_ground_are_told_to_make_one_image(tmp_path, given):
    for name in ("a.tif", "b.tif"):
        write_tif(tmp_path / name, ramp(4, 10, 10), geobox((10, 10), 0.2))
    write_tif(tmp_path / "c.tif", ramp(4, 10, 10), geobox((10, 10), 0.2, LEFT + 1.2))  # shares less than half
    note = "files without a date that show the same ground are merged into one image, the first on top: a.tif, b.tif"
    assert note in opened(given.format(tmp_path)).notes
    (tmp_path / "b.tif").unlink()
    assert not any("one image" in note for note in opened(given.format(tmp_path)).notes)


def test_undated_pieces_of_one_image_may_be_given_its_date(tmp_path):
    for name, left in (("a.tif", 0), ("b.tif", 50)):
        write_tif(tmp_path / name, ramp(10, 4, 5), geobox((4, 5), left=LEFT + left), names=S2_NAMES)
    with pytest.raises(
        SourceError,
        match=r"as 20200601; or give it: s2=.*@2020-06-01; in YAML behind the `path:`, too, as @{column} of a table or @2020-06-01$",
    ):
        opened(f"s2={tmp_path}")
    assert len(opened(f"s2={tmp_path}@2020-06-01").footprint.geoboxes) == 2


@pytest.mark.parametrize("name", ["s2_2020_04_12", "S2.2020.04.12.T31", "20200412101031", "IMG_202004121010_P"])
def test_a_date_is_found_in_a_name(tmp_path, name):
    path = write_tif(tmp_path / f"{name}.tif", ramp(10, 4, 5), geobox((4, 5)), names=S2_NAMES)
    assert str(opened(f"s2={path}").dates[0]) == "2020-04-12"


@pytest.mark.parametrize("text", ["tile_2020_10_20m", "20200412991031", "GOES_s20201101201150"])
def test_other_numbers_are_no_date(text):
    assert date_in(text) is None


def test_numbers_of_a_grid_are_no_dates_of_a_photo(tmp_path):
    for name, left in (("ortho_2000_10_11.tif", 0), ("ortho_2000_10_12.tif", 2)):
        write_tif(tmp_path / name, ramp(4, 10, 10), geobox((10, 10), 0.2, LEFT + left))
    assert len(opened(f"aerial={tmp_path}").footprint.geoboxes) == 2


def test_files_written_on_one_day_are_no_series_of_that_day(tmp_path):
    tags = {"TIFFTAG_DATETIME": "2023:01:15 10:00:00"}
    write_tif(tmp_path / "a.tif", ramp(10, 4, 5), geobox((4, 5)), names=S2_NAMES, tags=tags)
    assert str(opened(f"s2={tmp_path}").dates[0]) == "2023-01-15"
    for name in ("a.tif", "b.tif"):
        write_tif(tmp_path / name, ramp(10, 4, 5), geobox((4, 5)), names=S2_NAMES, tags=tags)
    with pytest.raises(SourceError, match=r"a.tif, .*b.tif: no date in the file name"):
        opened(f"s2={tmp_path}")


@pytest.mark.parametrize("tags", [{"TIFFTAG_DATETIME": "2020:06:30 10:00:00"}, {"ACQUISITION_DATE": "2020-06-30"},
                                  {"TIFFTAG_DATETIME": "2021:05:05 10:00:00", "ACQUISITION_DATE": "2020-06-30"}])  # fmt: skip
def test_a_date_may_come_from_the_tags(tmp_path, tags):
    path = write_tif(tmp_path / "a.tif", ramp(10, 4, 5), geobox((4, 5)), names=S2_NAMES, tags=tags)
    assert str(opened(f"s2={path}").dates[0]) == "2020-06-30"


def test_a_date_may_be_typed(tmp_path):
    path = write_tif(tmp_path / "a.tif", ramp(10, 4, 5), geobox((4, 5)), names=S2_NAMES)
    assert str(opened(f"s2={path}@2019-05-04").dates[0]) == "2019-05-04"
    with pytest.raises(RecordError, match="a calendar date after @"):
        InputPath.parse("s2=a.tif@2019-13-04")


def test_several_dates_for_a_single_image_are_refused_until_one_is_chosen(tmp_path):
    for date in ("20200103", "20200630"):
        write_tif(tmp_path / f"{date}.tif", ramp(3, 10, 10, start=int(date[4:])), geobox((10, 10), 1.0))
    with pytest.raises(SourceError, match=r"'spot' is a single image, and this holds 2 dates .*@2020-01-03"):
        opened(f"spot={tmp_path}")
    assert read(f"spot={tmp_path}@2020-06-30", geobox((10, 10), 1.0)).values[0, 0, 0] == 630


def test_a_chosen_date_that_is_not_there_is_refused(tmp_path):
    path = write_nc(tmp_path / "c.nc", cube(ramp(3, 10, 4, 5), geobox((4, 5)), DATES, S2_NAMES))
    with pytest.raises(SourceError, match="it has no date 2020-01-04; it has 2020-01-03"):
        opened(f"s2={path}@2020-01-04")


@pytest.mark.parametrize("suffix", ["nc", "zarr"])
@pytest.mark.parametrize("layout", ["one variable", "a variable per band"])
@pytest.mark.parametrize("south_up", [False, True])
def test_a_cube_is_read_with_its_dates_bands_and_place(tmp_path, suffix, layout, south_up):
    values = ramp(3, 10, 5, 7)
    dataset = cube(values, geobox((5, 7)), DATES, S2_NAMES)
    if layout == "a variable per band":
        dataset = dataset["pixels"].to_dataset("band")
    if south_up:
        dataset = dataset.isel(y=slice(None, None, -1))
    path = tmp_path / f"cube.{suffix}"
    if suffix == "nc":
        write_nc(path, dataset)
    else:
        dataset.drop_vars("band", errors="ignore").to_zarr(path, zarr_format=3, consolidated=False) \
            if layout != "one variable" else dataset.to_zarr(path, zarr_format=2, consolidated=True)  # fmt: skip
    observation, how = opened(f"s2={path}").observe(geobox((3, 4), left=LEFT + 20, top=TOP - 10))
    assert how == "exact"
    assert (observation.values == values[:, :, 1:4, 2:6]).all()
    assert [str(date) for date in observation.dates] == DATES


def test_scale_and_offset_are_applied_once_and_give_reflectance(tmp_path):
    path = write_tif(
        tmp_path / "a_20200103.tif", ramp(10, 4, 5), geobox((4, 5)), names=S2_NAMES, scale=(1e-4, -0.1), nodata=101
    )
    source = opened(f"s2={path}")
    observation, _ = source.observe(geobox((4, 5)))
    assert observation.values[0, 0, 0, 0] == pytest.approx(100e-4 - 0.1)
    assert not observation.valid[0, 0, 0, 1]
    assert set(observation.units) == {"reflectance"}
    assert any("applied scale 0.0001 and offset -0.1" in note for note in source.notes)


def test_a_packed_cube_is_decoded_once(tmp_path):
    dataset = cube(np.full((1, 10, 4, 5), 0.25), geobox((4, 5)), DATES[:1], S2_NAMES)
    dataset["pixels"].values[0, 0, 0, 0] = np.nan
    dataset["pixels"].encoding |= {"scale_factor": 1e-4, "add_offset": -0.1, "dtype": "uint16", "_FillValue": 65535}
    observation = read(f"s2={write_nc(tmp_path / 'c.nc', dataset)}", geobox((4, 5)))
    assert observation.values[0, 1] == pytest.approx(0.25)
    assert not observation.valid[0, 0, 0, 0]
    assert observation.units[0] == "reflectance"


def test_nodata_of_a_cube_attribute_is_invalid(tmp_path):
    path = write_nc(tmp_path / "c.nc", cube(ramp(1, 10, 4, 5), geobox((4, 5)), DATES[:1], S2_NAMES, nodata=100))
    observation = read(f"s2={path}", geobox((4, 5)))
    assert (~observation.valid).sum() == 1
    assert not observation.valid[0, 0, 0, 0]


def test_units_come_from_the_user_then_the_file_then_the_record(tmp_path):
    radar = np.ones((2, 4, 5), np.float32)
    silent = write_tif(tmp_path / "silent_20200103.tif", radar, geobox((4, 5)), names=("VV", "VH"))
    spoken = write_tif(
        tmp_path / "spoken_20200103.tif", radar, geobox((4, 5)), names=("VV", "VH"), units="Linear Power"
    )
    assert opened(f"s1={silent}").units[0] == "dB"
    assert opened(f"s1={spoken}").units[0] == "linear"
    source = opened(f"s1={spoken}", ["s1=dB", "s1.VH=DN"])
    assert source.units == {0: "dB", 1: "DN"}
    assert "dB (as given, though the file says linear)" in source.notes


def test_units_that_are_misspelt_are_refused():
    with pytest.raises(UnknownNameError, match="unknown unit 'decibel'; closest: .*--units s1=decibel"):
        parse_units(["s1=decibel"], M)
    with pytest.raises(UnknownNameError, match="modality in --units 's3'"):
        parse_units(["s3=dB"], M)
    with pytest.raises(RecordError, match="--units: expected MODALITY=UNIT"):
        parse_units(["linear"], M)


def test_pixels_outside_the_source_are_invalid(tmp_path):
    path = write_tif(tmp_path / "a_20200103.tif", ramp(10, 4, 5), geobox((4, 5)), names=S2_NAMES)
    observation = read(f"s2={path}", geobox((6, 7), left=LEFT - 10, top=TOP + 10))
    assert observation.valid[0, 0].sum() == 20
    assert observation.valid[0, 0, 1:5, 1:6].all()


def test_resampling_never_smears_nodata(tmp_path):
    values = np.full((10, 12, 12), 50, np.uint16)
    values[0, 4:8, 4:8] = 60000
    path = write_tif(tmp_path / "a_20200103.tif", values, geobox((12, 12)), names=S2_NAMES, nodata=60000)
    observation, how = opened(f"s2={path}").observe(geobox((10, 10), left=LEFT + 4, top=TOP - 4))
    assert how.startswith("bilinear")
    assert set(np.unique(observation.values[observation.valid])) == {50}
    assert 12 <= (~observation.valid[0, 0]).sum() <= 20
    assert observation.valid[0, 1].all()


def test_a_finer_source_is_averaged_over_its_valid_pixels(tmp_path):
    values = ramp(3, 20, 30).astype(np.float32)
    values[:, 0, :10] = np.nan
    values[:, 10:20, 0:6] = np.nan
    path = write_tif(tmp_path / "photo.tif", values, geobox((20, 30), 0.1))
    observation, how = opened(f"spot={path}").observe(geobox((2, 3), 1.0))
    assert how == "average of 0.1 m pixels"
    assert observation.values[0, 0, 0] == pytest.approx(np.nanmean(values[0, :10, :10]), rel=1e-5)
    assert observation.values[0, 1, 1] == pytest.approx(values[0, 10:, 10:20].mean(), rel=1e-5)
    assert not observation.valid[0, 1, 0]
    assert observation.valid.sum() == 3 * 5


def test_pixels_of_a_source_in_feet_are_told_in_metres(tmp_path):
    feet = geobox((12, 12), 10 / 0.3048006096, crs="EPSG:2263", left=980_000, top=200_000)
    path = write_tif(tmp_path / "feet_20200103.tif", ramp(10, 12, 12), feet, names=S2_NAMES)
    left, bottom, _, top = feet.extent.to_crs("EPSG:32618").boundingbox
    _, how = opened(f"s2={path}").observe(geobox((4, 4), left=left + 30, top=(bottom + top) / 2, crs="EPSG:32618"))
    assert how == "bilinear of 10 m pixels"


def test_a_source_in_degrees_lands_in_its_place(tmp_path):
    fine = geobox((60, 60))
    x, y = np.meshgrid(np.arange(60), np.arange(60))
    path = write_tif(tmp_path / "metres_20200103.tif", np.stack([x + 2 * y] * 2).astype(np.float32), fine)
    from rasterio.warp import reproject

    degrees = fine.to_crs("EPSG:4326")
    values = np.full((2, *degrees.shape), np.nan, np.float32)
    reproject(np.stack([x + 2 * y] * 2).astype(np.float32), values, src_transform=fine.affine, src_crs=SOUTH,
              dst_transform=degrees.affine, dst_crs="EPSG:4326", src_nodata=np.nan, dst_nodata=np.nan,
              resampling=1)  # fmt: skip
    path = write_tif(tmp_path / "degrees_20200103.tif", values, degrees, names=("VV", "VH"))
    inner = geobox((20, 20), left=LEFT + 200, top=TOP - 200)
    observation = read(f"s1={path}", inner)
    assert np.abs(observation.values[0, 0] - (x + 2 * y)[20:40, 20:40]).max() < 0.1


def test_the_h5_series_of_the_kind_is_taken(tmp_path):
    path = write_series(tmp_path / "t.h5")
    write_series(path, name="sen-1-asc", bands=2)
    assert opened(f"s2={path}").chosen[0].layer.path.endswith("::sen-2")
    source = opened(f"s1={path}")
    assert (source.dates.astype(str).tolist(), source.units[0]) == (["2019-01-01", "2019-01-02"], "linear")


def test_of_several_h5_series_the_one_named_like_the_modality_is_taken(tmp_path):
    path = write_series(tmp_path / "t.h5", name="sen-1-asc", bands=2)
    write_series(path, name="sen-1-des", bands=2)
    assert opened(f"s1-des={path}").chosen[0].layer.path.endswith("::sen-1-des")
    with pytest.raises(SourceError, match=r"it has sen-1-asc, sen-1-des; choose one: s1=.*::sen-1-asc"):
        opened(f"s1={path}")
    assert opened(f"s1={path}::sen-1-asc").bands == ("VV", "VH")
    with pytest.raises(UnknownNameError, match="unknown series of .* 'sen-2'"):
        opened(f"s1={path}::sen-2")


def test_a_path_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(MissingFileError, match="nowhere.tif: no such file or folder; expected an input for 's2'"):
        opened(f"s2={tmp_path / 'nowhere.tif'}")


@pytest.mark.parametrize("name", ["a.tif", "a.nc", "a.h5", "a.zarr/zarr.json"])
def test_a_corrupt_file_is_refused(tmp_path, name):
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(b"no raster at all")
    with pytest.raises(SourceError, match="it cannot be read .*check that the file is complete"):
        opened(f"s2={tmp_path / name.split('/')[0]}")


def test_a_truncated_file_is_refused(tmp_path):
    noise = np.random.default_rng(0).integers(0, 9999, (10, 64, 64)).astype(np.uint16)
    path = write_tif(tmp_path / "a_20200103.tif", noise, geobox((64, 64)), names=S2_NAMES)
    path.write_bytes(path.read_bytes()[:30_000])
    with pytest.raises(SourceError, match="it cannot be read"):
        read(f"s2={path}", geobox((64, 64)))


def test_a_raster_without_georeference_is_refused(tmp_path):
    path = write_tif(tmp_path / "a_20200103.tif", ramp(10, 4, 5), None, names=S2_NAMES)
    with pytest.raises(SourceError, match="it has no georeference .*write one into the file"):
        opened(f"s2={path}")


def test_a_cube_without_a_reference_system_is_refused(tmp_path):
    dataset = cube(ramp(1, 10, 4, 5), geobox((4, 5)), DATES[:1], S2_NAMES).drop_vars("spatial_ref")
    dataset["pixels"].encoding.pop("grid_mapping")
    for axis in "yx":
        dataset[axis].attrs.clear()
    with pytest.raises(SourceError, match="it has no georeference"):
        opened(f"s2={write_nc(tmp_path / 'c.nc', dataset)}")


def test_a_cube_of_one_column_with_a_reference_system_lacks_the_size_of_its_pixels(tmp_path):
    dataset = cube(ramp(1, 10, 4, 5), geobox((4, 5)), DATES[:1], S2_NAMES).isel(x=[0])
    dataset.spatial_ref.attrs.pop("GeoTransform", None)
    with pytest.raises(
        SourceError, match="the size of its pixels is not known: it has one row or column.*GeoTransform"
    ):
        opened(f"s2={write_nc(tmp_path / 'c.nc', dataset)}")
    dataset.spatial_ref.attrs["GeoTransform"] = f"{LEFT} 10 0 {TOP} 0 -10"
    assert opened(f"s2={write_nc(tmp_path / 'd.nc', dataset)}").chosen[0].layer.geobox.shape == (4, 1)


def test_an_unknown_kind_of_file_is_refused(tmp_path):
    (tmp_path / "a.png").write_bytes(b"")
    with pytest.raises(SourceError, match=r"unknown kind of file '.png'; give a GeoTIFF \(.tif\)"):
        opened(f"s2={tmp_path / 'a.png'}")
    (tmp_path / "empty").mkdir()
    with pytest.raises(SourceError, match="the folder has no GeoTIFF"):
        opened(f"s2={tmp_path / 'empty'}")


def test_a_cube_without_dates_is_refused(tmp_path):
    dataset = cube(ramp(2, 10, 4, 5), geobox((4, 5)), DATES[:2], S2_NAMES).drop_vars("time")
    with pytest.raises(SourceError, match="its axis 'time' has no dates"):
        opened(f"s2={write_nc(tmp_path / 'c.nc', dataset)}")


def test_a_variable_of_a_cube_can_be_chosen(tmp_path):
    dataset = cube(ramp(1, 10, 4, 5), geobox((4, 5)), DATES[:1], S2_NAMES)
    dataset["other"] = dataset["pixels"] + 1
    dataset["other"].encoding["grid_mapping"] = "spatial_ref"
    path = write_nc(tmp_path / "c.nc", dataset)
    with pytest.raises(SourceError, match="several variables have bands: pixels, other"):
        opened(f"s2={path}")
    assert read(f"s2={path}::other", geobox((4, 5))).values[0, 0, 0, 0] == 101
    with pytest.raises(UnknownNameError, match="unknown variable of"):
        opened(f"s2={path}::third")


def test_what_is_typed_must_be_a_modality_and_a_path():
    with pytest.raises(RecordError, match="expected MODALITY=PATH"):
        InputPath.parse("cube.nc")


def test_a_virtual_raster_under_the_name_of_a_geotiff_leads_nowhere(tmp_path):
    """It could name any other file, or an address on the network."""
    write_tif(tmp_path / "secret.tif", ramp(4, 300, 300), geobox((300, 300), 0.2))
    path = tmp_path / "a.tif"
    rasterio.shutil.copy(tmp_path / "secret.tif", path, driver="VRT")
    with pytest.raises(SourceError, match=r"a\.tif: it cannot be read"):
        open_source(InputPath.parse(f"aerial={path}"), M["aerial"])


@pytest.mark.parametrize("name", ["LC80200392015216LGN00_B4", "LC08_L2SP_020039_20150804_20200908_02_T1_SR_B4"])
def test_a_date_is_found_in_the_name_of_a_landsat_scene(name):
    assert str(date_in(name, is_strict=True)) == "2015-08-04"


def test_bands_without_names_may_be_named_in_yaml(tmp_path):
    path = write_tif(tmp_path / "20200601.tif", ramp(12, 4, 5), geobox((4, 5)))
    with pytest.raises(
        SourceError, match="name them in the file, or give `bands` in a description of the source; the modality"
    ):
        opened(f"s2={path}")


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="the system does not list open files there")
def test_however_many_files_a_source_has_none_stays_open(tmp_path):
    for number in range(40):
        write_tif(tmp_path / f"{number}_20200103.tif", ramp(10, 2, 2), geobox((2, 2), left=LEFT + 20 * number),
                  names=S2_NAMES)  # fmt: skip
    before = len(list(Path("/proc/self/fd").iterdir()))
    source = opened(f"s2={tmp_path}")
    assert source.observe(geobox((2, 80)))[0].valid.all()
    assert len(list(Path("/proc/self/fd").iterdir())) <= before + 3  # files of the libraries
