"""Where a user's own files lie, and what is said about their numbers: odd names, folders that are splits, masks."""

import datetime
import re

import numpy as np
import pytest

from anysat.batch import Batch
from anysat.data.check import check_dataset
from anysat.data.open import find_dataset, open_dataset
from anysat.errors import MissingFileError, RecordError, SourceError, UnknownNameError
from anysat.modalities import MODALITIES
from geo_builders import LEFT, TOP, geobox, ramp, write_tif
from own_builders import COVER, S2, described, image, tabled


def _open(root, **content):
    return open_dataset(described(root, **content), root, "all")


def _at(path, **more):
    return {"modalities": {"s2": {"path": path, **more}}}


@pytest.mark.parametrize("name", ["t0@20cm.tif", "t0@2020.tif"])
def test_only_a_day_behind_an_at_sign_is_a_date(tmp_path, name):
    image(tmp_path / "s2" / name)
    dataset = _open(tmp_path, **_at("s2/" + name.replace("t0", "{id}")))
    assert (dataset.ids, len(dataset[0].observations)) == (["t0"], 1)
    assert check_dataset(str(tmp_path / "mine.yaml"), tmp_path).num_read == 1


def test_the_date_of_a_path_may_be_a_column(tmp_path):
    image(tmp_path / "s2" / "t0.tif", tags={})
    dataset = tabled(tmp_path, "id,day\nt0,2021-07-01\n", **_at("s2/{id}.tif@{day}"))
    assert dataset[0].observations["s2"].dates.astype(str).tolist() == ["2021-07-01"]
    assert dataset.folder.layout["s2"].path == "s2/{id}.tif"


@pytest.mark.parametrize("folder", ["S2 [L2A]", "a*b", "what?"])
def test_a_folder_with_brackets_or_stars_is_taken_by_its_name(tmp_path, folder):
    image(tmp_path / folder / "t0.tif")
    image(tmp_path / "axb" / "t1.tif")
    assert _open(tmp_path, **_at(folder + "/{id}.tif")).ids == ["t0"]


def test_the_table_s_split_leads_to_the_file_whatever_split_is_drawn(tmp_path):
    for split in ("train", "test"):
        image(tmp_path / split / "t0.tif", ramp(len(S2), 8, 8, start=1 + 1000 * (split == "test")))
    dataset = tabled(
        tmp_path, "id,split\nt0,test\n", splits={"shares": {"train": 1}}, **_at("{split}/{id}.tif"),
    )  # fmt: skip
    assert dataset.samples.columns["split"].tolist() == ["train"]
    assert dataset[0].observations["s2"].values.min() > 1000
    report = check_dataset(str(tmp_path / "mine.yaml"), tmp_path)
    assert [finding.kind for finding in report.findings if finding.kind == "missing-file"] == []


@pytest.mark.parametrize("field", ["fold", "split"])
def test_folders_may_be_the_splits_without_a_table(tmp_path, field):
    for folder in ("training", "testing"):
        image(tmp_path / folder / f"{folder}0.tif")
    splits = {"column": field, "train": ["training"], "test": ["testing"]}
    content = _at(f"{{{field}}}/{{id}}.tif")
    assert open_dataset(described(tmp_path, splits=splits, **content), tmp_path, "test").ids == ["testing0"]


@pytest.mark.parametrize("field", ["label", "split"])
@pytest.mark.parametrize("said", [{}, {"classes": ["Forest", "Water"]}])
def test_folders_may_be_the_classes_without_a_table(tmp_path, field, said):
    for folder in ("Water", "Forest"):
        image(tmp_path / folder / f"{folder}_1.tif")
    (tmp_path / "about").mkdir()
    (tmp_path / "about" / ".hidden.tif").write_text("")
    splits = {"shares": {"train": 1}}
    dataset = _open(
        tmp_path, targets={"lc": {"column": field, **said}}, splits=splits, **_at(f"{{{field}}}/{{id}}.tif")
    )
    assert dataset.record.target("lc").classes == ("Forest", "Water")
    assert dataset.labels().tolist() == [int(tile.targets["lc"]) for tile in dataset] == [0, 1]


def test_a_value_may_be_a_field_of_the_path(tmp_path):
    image(tmp_path / "t0_12.5.tif")
    dataset = _open(tmp_path, targets={"height": {"column": "m", "unit": "m"}}, **_at("{id}_{m}.tif"))
    assert float(dataset[0].targets["height"]) == 12.5


@pytest.mark.parametrize(
    ("target", "told"),
    [
        ({"column": "labels"}, "column: expected a raster, or a field of the path '{label}/{id}.tif', because"),
        ({"column": "label"}, "classes: expected a list of names, because no file beside mine.yaml fits the path"),
    ],
)
def test_classes_that_no_path_has_are_asked_for(tmp_path, target, told):
    with pytest.raises(RecordError, match=re.escape(told)):
        find_dataset(described(tmp_path, targets={"lc": target}, **_at("{label}/{id}.tif")))


def test_a_class_that_is_not_listed_is_named_with_its_tile(tmp_path):
    image(tmp_path / "Water" / "t0.tif")
    with pytest.raises(SourceError, match="tile 't0' has 'Water' in column 'label'; its classes are Forest"):
        _open(tmp_path, targets={"lc": {"column": "label", "classes": ["Forest"]}}, **_at("{label}/{id}.tif"))


def test_a_split_column_that_no_path_has_needs_a_table(tmp_path):
    with pytest.raises(RecordError, match=r"tiles: expected a table, because .*splits by column 'fold'"):
        find_dataset(described(tmp_path, splits={"column": "fold"}))


def test_kinds_of_file_that_are_not_read_are_no_tiles(tmp_path):
    image(tmp_path / "s2" / "t0" / "20200601.tif")
    (tmp_path / "s2" / "README.txt").write_text("about")
    assert _open(tmp_path, **_at("s2/{id}")).ids == ["t0"]


# What is said about stored numbers.


def test_nodata_of_the_description_is_no_value(tmp_path):
    image(tmp_path / "s2" / "t0.tif", np.where(ramp(len(S2), 8, 8) % 8 < 4, 0, 500).astype("uint16"))
    assert _open(tmp_path, **_at("s2/{id}.tif", nodata=0))[0].observations["s2"].valid.mean() == 0.5


def test_scale_and_offset_of_the_description_make_the_values(tmp_path):
    image(tmp_path / "s2" / "t0.tif", np.full((len(S2), 8, 8), 3000, "uint16"))
    said = {"scale": 0.0001, "offset": -0.1, "units": "reflectance"}
    np.testing.assert_allclose(
        _open(tmp_path, **_at("s2/{id}.tif", **said))[0].observations["s2"].values, 0.2, rtol=1e-5
    )


def test_an_offset_may_begin_on_a_day(tmp_path):
    image(tmp_path / "s2" / "t0.tif", np.full((len(S2), 8, 8), 3000, "uint16"))
    for day, expected in ((datetime.date(2020, 6, 1), 2000), (datetime.date(2020, 6, 2), 3000)):
        content = _at("s2/{id}.tif", offset=-1000, offset_from=day)
        assert _open(tmp_path, **content)[0].observations["s2"].values.max() == expected


def test_dates_of_the_description_are_those_taken(tmp_path):
    for day in ("20200601", "20200801"):
        image(tmp_path / "s2" / "t0" / f"{day}.tif", tags={})
    content = _at("s2/{id}", dates=[datetime.date(2020, 7, 1), datetime.date(2020, 9, 1)])
    assert _open(tmp_path, **content)[0].observations["s2"].dates.astype(str).tolist() == ["2020-08-01"]


def _mask(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    write_tif(
        path, np.where(np.arange(64) % 8 < 4, 9, 4).reshape(1, 8, 8).astype("uint8"), geobox((8, 8)), names=["SCL"]
    )


@pytest.mark.parametrize(
    ("mask", "quality"),
    [("s2/t0/20200601_SCL.tif", "scl"), ("scl/t0.tif", {"kind": "scl", "layer": "scl/{id}.tif"})],
)
def test_a_quality_layer_masks_clouds(tmp_path, mask, quality):
    image(tmp_path / "s2" / "t0" / "20200601.tif", tags={})
    _mask(tmp_path / mask)
    seen = _open(tmp_path, **_at("s2/{id}", quality=quality))[0].observations["s2"]
    assert seen.valid[..., 2:].all()
    assert not seen.valid[..., :2].any()


def test_the_split_in_the_path_of_a_mask_is_the_cell_of_the_table(tmp_path):
    write_tif(image(tmp_path / "mask" / "there" / "t0.tif"), np.zeros((1, 8, 8), "uint8"), geobox((8, 8)))
    quality = {"kind": "scl", "layer": "mask/{split}/{id}.tif"}
    content = _at("s2/{id}.tif", quality=quality) | {"splits": {"shares": {"train": 0.5, "val": 0.5}}}
    seen = tabled(tmp_path, "id,split\nt0,there\n", **content)[0].observations["s2"]
    assert not seen.valid.any()


def test_a_mask_of_a_sensor_that_is_not_asked_for_is_not_looked_for(tmp_path):
    for name in ("s2", "s1"):
        image(tmp_path / name / "t0.tif")
    masked = {
        "path": "s2/{id}.tif",
        "quality": {"kind": "scl", "layer": "scl/{id}.tif"},
        "dates": ["1999-01-01", "1999-12-31"],
    }
    both = {"s1": {"path": "s1/{id}.tif", "bands": [*["-"] * 8, "VV", "VH"]}, "s2": masked}
    dataset = open_dataset(described(tmp_path, modalities=both), tmp_path, "all", modalities=["s1"])
    assert dataset[0].observations["s1"].valid.any()


def test_label_rasters_that_are_not_asked_for_are_not_read(tmp_path):
    image(tmp_path / "s2" / "t0.tif")
    described(tmp_path, targets={"cover": COVER})
    assert open_dataset(str(tmp_path / "mine.yaml"), tmp_path, "all", targets=())[0].targets == {}
    with pytest.raises(MissingFileError, match="raster of target 'cover'"):
        open_dataset(str(tmp_path / "mine.yaml"), tmp_path, "all")[0]


def test_a_quality_raster_that_is_missing_is_named(tmp_path):
    image(tmp_path / "s2" / "t0.tif")
    content = _at("s2/{id}.tif", quality={"kind": "scl", "layer": "scl/{id}.tif"})
    with pytest.raises(MissingFileError, match=r"scl/t0\.tif: no such file.*quality layer of 's2'"):
        _open(tmp_path, **content)[0]
    report = check_dataset(str(tmp_path / "mine.yaml"), tmp_path)
    assert [finding.where for finding in report.findings if finding.kind == "missing-file"] == [
        "s2-quality: scl/t0.tif"
    ]


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ({"scale": 0}, r"mine\.yaml, modalities\.s2, scale: expected a number other than 0"),
        ({"nodata": "none"}, r"mine\.yaml, modalities\.s2, nodata: expected a number"),
        ({"quality": "sql"}, r"mine\.yaml, modalities\.s2.* 'sql'; closest: scl"),
        ({"quality": {"kind": "scl", "band": 1}}, r"mine\.yaml, modalities\.s2.* 'band'"),
        ({"quality": {"kind": "scl", "layer": "../scl/{id}.tif"}}, r"modalities\.s2, quality: expected a layer below"),
        ({"dates": ["2020-01-02", "2020-01-01"]}, r"modalities\.s2, dates: expected a first day that is not after"),
        ({"dates": "2020"}, r"mine\.yaml, modalities\.s2, dates: expected the first and the last day"),
    ],
)
def test_what_cannot_be_said_is_named_by_file_and_key(tmp_path, said, message):
    with pytest.raises((RecordError, UnknownNameError), match=message):
        find_dataset(described(tmp_path, **_at("s2/{id}.tif", **said)))


def test_days_of_a_single_image_are_refused(tmp_path):
    photo = {"aerial": {"path": "aerial/{id}.tif", "dates": ["2020-01-01", "2020-12-31"]}}
    message = r"mine\.yaml, modalities\.aerial, dates: expected no value, because 'aerial' is a single image"
    with pytest.raises(RecordError, match=message):
        find_dataset(described(tmp_path, modalities=photo))


def test_a_tile_without_the_optional_sensor_asked_for_is_one_that_nothing_is_known_of(tmp_path):
    image(tmp_path / "s2" / "t0.tif")
    both = {"s2": {"path": "s2/{id}.tif"}, "s1": {"path": "s1/{id}.tif", "optional": True}}
    dataset = open_dataset(described(tmp_path, modalities=both), tmp_path, "all", modalities=["s1"])
    seen = dataset[0].observations["s1"]
    assert seen.values.shape == (1, 3, 4, 4)
    assert not seen.valid.any()
    assert dataset[0].geobox is not None


def test_context_that_is_missing_has_the_pixels_of_context_that_is_there(tmp_path):
    """A tile of 600 m has 3 x 3 pixels of MODIS, so that tiles with and without it make one batch."""
    both = {"s2": {"path": "s2/{id}.tif"}, "modis": {"path": "modis/{id}.tif", "optional": True}}
    for name in ("t0", "t1"):
        path = image(tmp_path / "s2" / f"{name}.tif")
        write_tif(path, ramp(10, 60, 60), geobox((60, 60)), names=S2, tags={"DATETIME": "2020:06:01"})
    box, bands = geobox((6, 6), 250.0, LEFT - 500, TOP + 500), MODALITIES["modis"].band_names
    (tmp_path / "modis").mkdir()
    write_tif(tmp_path / "modis" / "t0.tif", ramp(7, 6, 6), box, names=bands, tags={"DATETIME": "2020:06:01"})
    name = described(tmp_path, tile_m=600, modalities=both)
    tiles = list(open_dataset(name, tmp_path, "all", modalities=["modis"]))
    assert Batch.of(tiles).observations["modis"].values.shape == (2, 1, 7, 3, 3)
    assert [tile.observations["modis"].valid.any() for tile in tiles] == [True, False]


def _optional(path="s1/{scene}", **more):
    """Two tiles of `s2`, and `s1` by a column of the table that is empty for the second."""
    return {
        "modalities": {
            "s2": {"path": "s2/{id}.tif"},
            "s1": {"path": path, "bands": [*["-"] * 8, "VV", "VH"], "optional": True, **more},
        }
    }


def test_an_empty_cell_is_no_path_to_the_folder_of_other_tiles(tmp_path):
    for name in ("s2/t0.tif", "s2/t1.tif", "s1/20200601.tif"):
        image(tmp_path / name)
    for path in ("s1/{scene}", "{scene}"):
        table = f"id,scene\nt0,{'20200601.tif' if '/' in path else 's1'}\nt1,\n"
        dataset = tabled(tmp_path, table, **_optional(path))
        assert [sorted(tile.observations) for tile in dataset] == [["s1", "s2"], ["s2"]]


def test_an_empty_cell_in_a_path_that_every_tile_has_is_refused_by_row(tmp_path):
    message = r"tiles\.csv: row 2, tile 't1', has nothing in column 'scene', which 's2/\{scene\}' needs; .*optional"
    with pytest.raises(SourceError, match=message):
        tabled(tmp_path, "id,scene\nt0,t0.tif\nt1,\n", **_at("s2/{scene}"))


def test_an_empty_cell_in_the_path_of_a_mask_is_refused_by_row(tmp_path):
    masked = _optional("s1/{id}.tif", quality={"kind": "scl", "layer": "scl/{mask}"})
    with pytest.raises(
        SourceError, match=r"row 1, tile 't0', has nothing in column 'mask', which 'scl/\{mask\}' needs"
    ):
        tabled(tmp_path, "id,mask\nt0,\n", **masked)


@pytest.mark.parametrize(
    ("files", "told"), [(["20190601.tif"], "none of its dates is between 2020-01-01 and 2020-12-31"),
                        ([], "the folder has no GeoTIFF")],
)  # fmt: skip
def test_optional_imagery_with_nothing_to_give_counts_as_absent_and_is_told(tmp_path, files, told):
    image(tmp_path / "s2" / "t0.tif")
    (tmp_path / "s1" / "t0").mkdir(parents=True)
    for name in files:
        image(tmp_path / "s1" / "t0" / name, tags={})
    dataset = _open(tmp_path, **_optional("s1/{id}", dates=["2020-01-01", "2020-12-31"]))
    assert sorted(dataset[0].observations) == ["s2"]
    report = check_dataset(str(tmp_path / "mine.yaml"), tmp_path)
    assert (report.num_read, f"s1: counts as absent: {told}" in report.notes) == (1, True)
    alone = open_dataset(str(tmp_path / "mine.yaml"), tmp_path, "all", modalities=["s1"])
    assert not alone[0].observations["s1"].valid.any()


def test_optional_imagery_that_counts_as_absent_does_not_move_the_ground(tmp_path):
    image(tmp_path / "s2" / "t0.tif")
    write_tif(image(tmp_path / "s1" / "t0" / "20190601.tif"), ramp(10, 4, 4), geobox((4, 4), 10.0, LEFT + 40, TOP - 40))
    dated = _optional("s1/{id}", dates=["2020-01-01", "2020-12-31"])
    for asked in (None, ["s2"]):
        tile = open_dataset(described(tmp_path, **dated), tmp_path, "all", modalities=asked)[0]
        assert tile.geobox.boundingbox.left == LEFT + 20


def test_a_folder_of_another_kind_of_imagery_is_no_absent_one(tmp_path):
    image(tmp_path / "s2" / "t0.tif")
    (tmp_path / "s1" / "t0").mkdir(parents=True)
    (tmp_path / "s1" / "t0" / "20200601.jp2").write_bytes(b"")
    with pytest.raises(SourceError, match=r"the folder has no GeoTIFF, only 20200601\.jp2"):
        _open(tmp_path, **_optional("s1/{id}"))[0]


@pytest.mark.parametrize("name", ["a@2021-06-01", "a::b"])
def test_a_cell_that_looks_like_a_date_or_a_part_is_neither(tmp_path, name):
    """Only what the description writes behind a path is one; else the files of another tile would be read."""
    for number, each in enumerate(("a", name)):
        image(tmp_path / "s2" / each / "20200601.tif", ramp(len(S2), 8, 8, start=number), tags={})
        _mask(tmp_path / "scl" / each / "20200601.tif")
    quality = {"kind": "scl", "layer": "scl/{id}"}
    dataset = _open(tmp_path, **_at("s2/{id}", quality=quality))
    seen = {each: dataset[number].observations["s2"] for number, each in enumerate(dataset.ids)}
    assert seen[name].dates.astype(str).tolist() == ["2020-06-01"]
    assert (seen[name].values == seen["a"].values + 1)[seen["a"].valid].all()


def test_a_part_and_a_date_written_behind_such_a_cell_count(tmp_path):
    image(tmp_path / "s2" / "a@2021-06-01" / "image.tif", tags={})
    content = _at("s2/{id}@{day}") | {"tiles": "tiles.csv"}
    (tmp_path / "tiles.csv").write_text("id,day\na@2021-06-01,2020-05-01\n")
    assert _open(tmp_path, **content)[0].observations["s2"].dates.astype(str).tolist() == ["2020-05-01"]


@pytest.mark.parametrize("cell", ["20210701", "2021-13-01", "2021-07-01::x"])
def test_a_cell_that_is_no_date_is_refused_where_one_is_written(tmp_path, cell):
    image(tmp_path / "s2" / "t0.tif", tags={})
    dataset = tabled(tmp_path, f"id,day\nt0,{cell}\n", **_at("s2/{id}.tif@{day}"))
    with pytest.raises(
        SourceError, match=rf"sample t0 .*the day at the end of the path of s2: expected one .*, got '{cell}'"
    ):
        dataset[0]


def _grounds(root, **more):
    """Where tiles lie by what is asked for: photos of 80 m over a series whose files of 2019 show a part of it."""
    for side, day in ((16, "20200601"), (12, "20190601")):
        path = root / "s2" / "t0" / f"{day}.tif"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_tif(path, ramp(len(S2), side, side), geobox((side, side)), names=S2)
    (root / "aerial").mkdir()
    write_tif(root / "aerial" / "t0.tif", np.ones((4, 800, 800), "uint8"), geobox((800, 800), 0.2))
    both = {"aerial": {"path": "aerial/{id}.tif"}, "s2": {"path": "s2/{id}", **more}}
    name = described(root, modalities=both)
    return {asked: open_dataset(name, root, "all", modalities=asked)[0].geobox for asked in (None, ("aerial",))}


def test_the_ground_follows_from_the_dates_of_the_description_whatever_is_asked_for(tmp_path):
    found = _grounds(tmp_path, dates=[datetime.date(2020, 1, 1), datetime.date(2020, 12, 31)])
    assert found[None] == found["aerial",]


def test_optional_imagery_without_a_date_that_counts_is_not_there(tmp_path):
    found = _grounds(tmp_path, optional=True, dates=[datetime.date(2018, 1, 1), datetime.date(2018, 12, 31)])
    assert found[None] == found["aerial",]
    tile = open_dataset(str(tmp_path / "mine.yaml"), tmp_path, "all")[0]
    assert tuple(tile.observations) == ("aerial",)


def test_imagery_that_is_asked_for_has_a_date_that_counts(tmp_path):
    dates = [datetime.date(2018, 1, 1), datetime.date(2018, 12, 31)]
    with pytest.raises(SourceError, match="none of its dates is between 2018-01-01 and 2018-12-31"):
        _grounds(tmp_path, dates=dates)
