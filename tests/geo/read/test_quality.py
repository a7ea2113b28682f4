"""Quality layers become valid masks: classes, bits and masks of one's own, in folders and cubes, date by date."""

import numpy as np
import pytest
import rasterio

from anysat.errors import SourceError, UnknownNameError
from anysat.geo.read.quality import Quality
from anysat.geo.read.sources import open_sources
from anysat.modalities import MODALITIES as M
from geo_builders import LEFT, TOP, cube, geobox, ramp, source_of, write_nc, write_tif

S2 = M["s2"].band_names
DATES = ["2020-01-03", "2020-06-30"]
BOX = geobox((6, 8))
COARSE = geobox((3, 4), 20.0)


def pixels(folder, name, values=None, box=BOX):
    write_tif(folder / f"{name}_B02.tif", ramp(1, *box.shape) if values is None else values[None], box)


def mask(folder, name, classes, box=COARSE, word="SCL"):
    write_tif(folder / f"{name}_{word}.tif", np.asarray(classes, np.uint16).reshape(1, *box.shape), box, nodata=0)


def valid(path, box=BOX, key="s2", band=0, **described):
    observation = open_sources({key: {"path": str(path), **described}}, M)[key].observe(box)[0]
    return observation.valid[..., band, :, :]


def test_the_scene_classification_masks_the_classes_it_is_known_for(tmp_path):
    """Twelve classes, one to each 20 m pixel; the numbers that stay are those of clear ground, water and snow."""
    pixels(tmp_path, "T31_20200103")
    mask(tmp_path, "T31_20200103", np.arange(12))
    seen = valid(tmp_path, quality="scl")[0]
    clear = np.isin(np.arange(12), [2, 4, 5, 6, 7, 11]).reshape(3, 4)
    np.testing.assert_array_equal(seen, clear.repeat(2, 0).repeat(2, 1))


def test_the_numbers_can_be_listed_either_way(tmp_path):
    pixels(tmp_path, "T31_20200103")
    mask(tmp_path, "T31_20200103", np.arange(12))
    some = valid(tmp_path, quality={"kind": "scl", "invalid": [4, 5]})[0, ::2, ::2]
    assert np.flatnonzero(~some.ravel()).tolist() == [4, 5]
    only = valid(tmp_path, quality={"kind": "scl", "valid": [4, 5]})[0, ::2, ::2]
    assert np.flatnonzero(only.ravel()).tolist() == [4, 5]


def test_landsat_flags_mask_fill_dilated_cloud_cirrus_cloud_and_shadow(tmp_path):
    flags = [1 << bit for bit in range(11)] + [0b1000_0000_0000_1000]
    write_tif(tmp_path / "LC08_20200103_B4.tif", ramp(1, 3, 4), geobox((3, 4), 30.0))
    mask(tmp_path, "LC08_20200103", flags, geobox((3, 4), 30.0), "QA_PIXEL")
    seen = valid(tmp_path, geobox((3, 4), 30.0), "l8", 4, quality="qa_pixel")[0].ravel()
    assert np.flatnonzero(~seen).tolist() == [0, 1, 2, 3, 4, 11]


def test_a_mask_takes_the_number_under_the_centre_of_a_pixel(tmp_path):
    """Its pixels of 20 m begin 10 m to the west of those of the imagery."""
    pixels(tmp_path, "T31_20200103")
    box = geobox((3, 5), 20.0, left=LEFT - 10)
    mask(tmp_path, "T31_20200103", np.tile([4, 9, 4, 9, 4], 3), box)
    assert valid(tmp_path, quality="scl")[0, 0].tolist() == [True, False, False, True, True, False, False, True]


def test_ground_that_the_mask_does_not_cover_is_invalid(tmp_path):
    pixels(tmp_path, "T31_20200103")
    mask(tmp_path, "T31_20200103", np.full(9, 4), geobox((3, 3), 20.0))
    seen = valid(tmp_path, quality="scl")[0]
    assert seen[:, :6].all()
    assert not seen[:, 6:].any()


def test_each_date_has_its_own_mask_and_a_date_without_one_is_left_out_and_told(tmp_path):
    for date, number in (("20200103", 4), ("20200630", 9), ("20200701", None)):
        pixels(tmp_path, f"T31_{date}")
        if number is not None:
            mask(tmp_path, f"T31_{date}", np.append(np.full(11, number), 4))
    source = open_sources({"s2": {"path": str(tmp_path), "quality": "scl"}}, M)["s2"]
    observation, _ = source.observe(BOX)
    assert observation.dates.astype(str).tolist() == ["2020-01-03", "2020-06-30"]
    assert observation.valid[:, 0].sum(axis=(1, 2)).tolist() == [48, 4]
    assert "left out, because the quality layer lacks them: 2020-07-01" in source.notes


def test_a_date_that_is_masked_all_over_is_left_out_unread(tmp_path):
    for date, number in (("20200103", 4), ("20200630", 9)):
        pixels(tmp_path, f"T31_{date}")
        mask(tmp_path, f"T31_{date}", np.full(12, number))
    source = open_sources({"s2": {"path": str(tmp_path), "quality": "scl"}}, M)["s2"]
    (tmp_path / "T31_20200630_B02.tif").unlink()
    assert source.observe(BOX)[0].dates.astype(str).tolist() == ["2020-01-03"]


def test_two_scenes_of_a_date_have_each_their_own_mask(tmp_path):
    """Cloud over the western half of one, over the eastern half of the other; both see all of the ground."""
    west, east = np.tile([9, 9, 4, 4], 3), np.tile([4, 4, 9, 9], 3)
    for name, value, classes in (("T31UES_20200103", 1, west), ("T31UFS_20200103", 2, east)):
        pixels(tmp_path, name, np.full((6, 8), value, np.uint16))
        mask(tmp_path, name, classes)
    source = open_sources({"s2": {"path": str(tmp_path), "quality": "scl"}}, M)["s2"]
    found = source.observe(BOX)[0].values[0, 0]
    assert (found[:, :4] == 2).all()
    assert (found[:, 4:] == 1).all()


def test_a_mask_of_one_s_own_may_have_no_date_and_holds_for_all(tmp_path):
    (tmp_path / "s2").mkdir()
    for date in ("20200103", "20200630"):
        pixels(tmp_path / "s2", f"T31_{date}")
    lake = np.zeros((1, 6, 8), np.uint8)
    lake[0, :2] = 1
    write_tif(tmp_path / "lake.tif", lake, BOX)
    seen = valid(tmp_path / "s2", quality={"layer": str(tmp_path / "lake.tif"), "invalid": [1]})
    assert not seen[:, :2].any()
    assert seen[:, 2:].all()


def test_a_mask_whose_nodata_is_a_number_that_counts_is_read_as_stored(tmp_path):
    """Masks are often written with 0 as no-data, and 0 is what means clear."""
    pixels(tmp_path, "T31_20200103")
    mask(tmp_path, "T31_20200103", np.append(np.zeros(11), 1), word="CLOUD")
    seen = valid(tmp_path, quality={"layer": "cloud", "invalid": [1]})[0]
    assert seen.sum() == 44


def test_what_the_own_mask_of_a_mask_hides_is_invalid(tmp_path):
    pixels(tmp_path, "T31_20200103")
    mask(tmp_path, "T31_20200103", np.full(12, 4))
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True), rasterio.open(tmp_path / "T31_20200103_SCL.tif", "r+") as file:
        file.write_mask(np.arange(12).reshape(3, 4) % 4 > 0)
    seen = valid(tmp_path, quality="scl")[0]
    assert not seen[:, :2].any()
    assert seen[:, 2:].all()


@pytest.mark.parametrize("kind", ["nc", "zarr", "memory"])
@pytest.mark.parametrize("south_up", [False, True])
def test_a_variable_of_a_cube_masks_it(tmp_path, kind, south_up):
    dataset = cube(ramp(2, 10, 6, 8), BOX, DATES, S2)
    classes = np.full((2, 6, 8), 4, np.uint8)
    classes[0, 0], classes[1, :, 0] = 8, 3
    dataset["scl"] = (("time", "y", "x"), classes, {"_FillValue": 4} if kind == "nc" else {})
    dataset["scl"].encoding["grid_mapping"] = "spatial_ref"
    dataset = dataset.isel(y=slice(None, None, -1)) if south_up else dataset
    if kind == "memory":
        source = source_of(dataset, M["s2"], quality="scl")
    else:
        path = tmp_path / f"c.{kind}"
        write_nc(path, dataset) if kind == "nc" else dataset.to_zarr(path, zarr_format=2, consolidated=True)
        source = open_sources({"s2": {"path": str(path), "quality": "scl"}}, M)["s2"]
    seen = source.observe(BOX)[0].valid[:, 0]
    np.testing.assert_array_equal(seen, classes == 4)


def test_a_band_of_a_cube_masks_it(tmp_path):
    values = ramp(2, 3, 6, 8)
    values[:, 2] = 4
    values[1, 2, :, :5] = 9
    source = source_of(cube(values, BOX, DATES, ["B02", "B03", "SCL"]), M["s2"], quality="scl")
    observation, _ = source.observe(geobox((6, 4), left=LEFT + 40, top=TOP))
    assert source.bands == ("B2", "B3")
    assert observation.valid[:, 1, 0].tolist() == [[True] * 4, [False, True, True, True]]


def test_several_readings_of_one_day_keep_each_their_own_mask():
    """They are joined: where the first is masked the second counts, and nothing where both are."""
    values = ramp(2, 3, 6, 8)
    values[:, 2] = 4
    values[0, 2, :3] = values[1, 2, 2:] = 9
    twice = cube(values, BOX, ["2020-01-03", "2020-01-03"], ["B02", "B03", "SCL"])
    found = source_of(twice, M["s2"], quality="scl").observe(BOX)[0]
    expected = np.concatenate([values[1, 0, :2], np.full((1, 8), np.nan), values[0, 0, 3:]])
    np.testing.assert_array_equal(np.where(found.valid[:, 0], found.values[:, 0], np.nan), expected[None])


def test_a_quality_layer_that_is_there_and_not_asked_for_is_told(tmp_path):
    pixels(tmp_path, "T31_20200103")
    mask(tmp_path, "T31_20200103", np.full(12, 9))
    source = open_sources([f"s2={tmp_path}"], M)["s2"]
    assert "nothing is masked, though it has a layer for `quality: scl`" in source.notes
    assert not any("not used" in note for note in source.notes)
    assert source.observe(BOX)[0].valid[0, 0].all()


def test_a_quality_layer_that_is_not_there_is_refused(tmp_path):
    pixels(tmp_path, "T31_20200103")
    with pytest.raises(UnknownNameError, match="unknown quality layer of .* 'SCL'; "):
        valid(tmp_path, quality="scl")


def test_a_quality_layer_of_other_dates_is_refused(tmp_path):
    pixels(tmp_path, "T31_20200103")
    mask(tmp_path, "T31_20200104", np.full(12, 4))
    with pytest.raises(
        SourceError, match=r"its quality layer \(scl of SCL, not \[0, 1, 3, 8, 9, 10\]\) has none of its"
    ):
        valid(tmp_path, quality="scl")


def test_a_quality_layer_without_a_place_is_refused(tmp_path):
    pixels(tmp_path, "T31_20200103")
    write_tif(tmp_path / "T31_20200103_SCL.tif", np.full((1, 3, 4), 4, np.uint8), None)
    with pytest.raises(SourceError, match="the quality layer has no georeference"):
        valid(tmp_path, quality="scl")


def test_flags_count_bit_by_bit():
    flags = Quality(kind="bits", layer="x", invalid=(0, 2))
    assert flags.is_clear(np.arange(8, dtype=np.float32)).tolist() == [True, False, True, False] + [False] * 4


@pytest.mark.parametrize("order", [1, -1])
def test_a_cube_whose_file_name_is_that_of_its_quality_layer_is_masked_by_that_layer(tmp_path, order):
    """Its other variables are not, whether the modality has them (B02) or not (B01)."""
    dataset = cube(ramp(1, 11, 6, 8), BOX, DATES[:1], ["B01", *S2]).pixels.to_dataset("band")
    classes = np.full((1, 6, 8), 4, np.uint8)
    classes[0, :2] = 9
    dataset["SCL"] = (("time", "y", "x"), classes)
    names = [*dataset.data_vars][::order]
    path = write_nc(tmp_path / "scl.nc", dataset[names].odc.assign_crs(str(BOX.crs)))
    source = open_sources({"s2": {"path": str(path), "quality": "scl"}}, M)["s2"]
    assert "masked by scl of SCL, not [0, 1, 3, 8, 9, 10] (scl.nc::SCL)" in source.notes
    seen = source.observe(BOX)[0].valid[0, 0]
    assert not seen[:2].any()
    assert seen[2:].all()


@pytest.mark.parametrize("order", [1, -1])
def test_the_exact_name_of_a_quality_layer_comes_before_names_that_contain_it(tmp_path, order):
    dataset = cube(ramp(1, 10, 6, 8), BOX, DATES[:1], S2).pixels.to_dataset("band")
    for name, number in {"SCL": 4, "std_SCL": 9, "band_7": 1}.items():
        dataset[name] = (("time", "y", "x"), np.full((1, 6, 8), number, np.uint8))
    dataset = dataset[[*dataset.data_vars][::order]]
    path = write_nc(tmp_path / "c.nc", dataset.odc.assign_crs(str(BOX.crs)))
    source = open_sources({"s2": {"path": str(path), "quality": "scl"}}, M)["s2"]
    assert source.notes[-1].endswith("(c.nc::SCL)")
    assert "std_SCL" in next(doubt for doubt in source.doubts if doubt.startswith("not used"))
    assert source.observe(BOX)[0].valid.all()
    assert not valid(path, quality={"kind": "values", "layer": "band_7", "invalid": [1]}).any()


def test_a_band_whose_file_name_has_the_word_of_the_quality_layer_is_no_mask(tmp_path):
    write_tif(tmp_path / "T32_20200103_B02_scl.tif", ramp(1, 6, 8), BOX)
    with pytest.raises(UnknownNameError, match="unknown quality layer of .* 'SCL'; "):
        valid(tmp_path, quality="scl")
    mask(tmp_path, "T32_20200103", np.append(np.full(11, 9), 4))
    source = open_sources({"s2": {"path": str(tmp_path), "quality": "scl"}}, M)["s2"]
    assert source.notes[-1].endswith("(T32_20200103_SCL.tif)")
    assert source.observe(BOX)[0].valid[0, 0].sum() == 4


def test_a_cube_without_the_layer_is_not_masked_by_another_variable_because_of_its_file_name(tmp_path):
    dataset = cube(ramp(1, 11, 6, 8), BOX, DATES[:1], ["B01", *S2]).pixels.to_dataset("band")
    path = write_nc(tmp_path / "scl.nc", dataset.odc.assign_crs(str(BOX.crs)))
    with pytest.raises(UnknownNameError, match="unknown quality layer of .* 'SCL'; "):
        valid(path, quality="scl")


def test_a_layer_of_one_s_own_may_bear_the_name_of_a_band(tmp_path):
    dataset = cube(ramp(1, 2, 6, 8), BOX, DATES[:1], ["B2", "qa_B2"]).pixels.to_dataset("band")
    path = write_nc(tmp_path / "c.nc", dataset.odc.assign_crs(str(BOX.crs)))
    seen = valid(path, quality={"layer": "qa_B2", "valid": [148]})
    assert seen.sum() == 1


def test_bands_that_a_source_lacks_are_told(tmp_path):
    source = source_of(cube(ramp(1, 9, 6, 8), BOX, DATES[:1], [name for name in S2 if name != "B8A"]), M["s2"])
    assert "lacks B8A" in source.notes
    assert source.doubts == ("lacks B8A",)
    radar = source_of(cube(ramp(1, 2, 6, 8, dtype="float32"), BOX, DATES[:1], ["VV", "VH"]), M["s1"])
    assert radar.doubts == ()  # the ratio is computed
