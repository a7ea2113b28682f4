"""Mistakes in the description of a user's own data, its table and its labels are refused by file and key or row."""

from pathlib import Path

import numpy as np
import pytest

from anysat.data.open import find_dataset, open_dataset
from anysat.data.own.rasters import read_nearest
from anysat.errors import InputError, MissingFileError, RecordError, SourceError, UnknownNameError
from anysat.workflows.supervised.config import LabelledData
from anysat.workflows.supervised.data import open_data
from geo_builders import geobox, ramp, write_tif
from own_builders import COVER, cover, described, tabled


def _photos(root: Path, bands):
    (root / "aerial").mkdir()
    write_tif(root / "aerial" / "t0.tif", ramp(4, 200, 200, dtype="uint8"), geobox((200, 200), 0.2))
    return open_dataset(
        described(root, modalities={"aerial": {"path": "aerial/{id}.tif", "bands": bands}}), root, "all"
    )


@pytest.mark.parametrize(
    ("bands", "message"),
    [
        (["X", "G", "B", "NIR"], r"band of .*mine\.yaml, modalities\.aerial, bands 'X'; .*null or '-'"),
        (["R", "G", "B", "NIRR"], r"modalities\.aerial, bands 'NIRR'; closest: .*NIR"),
        ([None, None], r"modalities\.aerial, bands: expected at least one band of aerial"),
        (["R", "G", "B", "R"], r"modalities\.aerial, bands: expected each band once"),
        ([1, 2, 3], r"modalities\.aerial, bands: expected a list of names, null or '-'"),
    ],
)
def test_bands_that_the_modality_does_not_have_are_refused(tmp_path, bands, message):
    modality = {"path": "{id}.tif", "bands": bands}
    with pytest.raises((RecordError, UnknownNameError), match=message):
        find_dataset(described(tmp_path, modalities={"aerial": modality}))


@pytest.mark.parametrize("skip", [None, "-"])
def test_a_band_is_skipped_only_when_that_is_written(tmp_path, skip):
    photo = _photos(tmp_path, [skip, "G", "B", "NIR"])[0].observations["aerial"]
    valid = {name: bool(seen.all()) for name, seen in zip(photo.modality.band_names, photo.valid, strict=True)}
    assert [name for name, seen in valid.items() if not seen] == ["R"]


def test_a_band_of_the_units_that_is_no_name_is_refused_by_file_and_key(tmp_path):
    modality = {"path": "{id}.tif", "units": {2: "DN"}}
    with pytest.raises(UnknownNameError, match=r"band of .*mine\.yaml, modalities\.s2, units 2"):
        find_dataset(described(tmp_path, modalities={"s2": modality}))


def test_nan_in_a_class_column_is_no_label_and_no_class(tmp_path):
    text = "id,crop\nt0,wheat\nt1,nan\nt2,NaN\nt3,\n"
    dataset = tabled(tmp_path, text, targets={"crop": {"column": "crop", "ignore": -1}})
    assert (dataset.record.target("crop").classes, dataset.labels().tolist()) == (("wheat",), [0, -1, -1, -1])


def test_nan_among_several_labels_is_no_class(tmp_path):
    text = "id,crop\nt0,wheat;nan\nt1,nan\nt2,rye\n"
    dataset = tabled(tmp_path, text, targets={"crop": {"column": "crop", "separator": ";"}})
    assert dataset.record.target("crop").classes == ("rye", "wheat")


def test_nan_in_a_class_column_without_ignore_says_so(tmp_path):
    with pytest.raises(
        SourceError, match=r"tiles\.csv: tile 't1' has 'nan' in column 'crop'.*`ignore`.*without a label"
    ):
        tabled(tmp_path, "id,crop\nt0,wheat\nt1,nan\n", targets={"crop": {"column": "crop"}})


@pytest.mark.parametrize("cell", ["inf", "-inf", "nan", "NaN", "1e39", "tall"])
def test_a_value_that_is_no_finite_number_is_refused_with_file_and_tile(tmp_path, cell):
    with pytest.raises(
        SourceError, match=rf"tiles\.csv: tile 't1' has '{cell}' in column 'h'; write a number, or leave the cell empty"
    ):
        tabled(tmp_path, f"id,h\nt0,1\nt1,{cell}\n", targets={"h": {"column": "h", "unit": "m"}})


def test_an_infinite_value_of_a_raster_is_refused_with_its_file(tmp_path):
    values = np.array([[[1, np.inf], [2, 3]]], "float32")
    with pytest.raises(SourceError, match=r"t0\.tif: it holds inf, which is not a value of 'cover'"):
        cover(tmp_path, values, {"path": "cover/{id}.tif", "unit": "m", "gsd_m": 20})


def test_an_infinite_class_of_a_raster_is_refused_with_its_file(tmp_path):
    with pytest.raises(SourceError, match=r"t0\.tif: it holds inf, which is not a class of 'cover'"):
        cover(tmp_path, np.array([[[1, np.inf], [0, 1]]], "float32"), COVER)


def test_nan_of_a_class_raster_is_no_label(tmp_path):
    assert cover(tmp_path, np.array([[[1, np.nan], [0, 1]]], "float32"), COVER).tolist() == [[1, 255], [0, 1]]


HUGE = 99999999999999999999


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"targets": {"a": {**COVER, "ignore": HUGE}}}, r"targets\.a, ignore: expected a whole number from -9223"),
        ({"targets": {"a": {**COVER, "ignore": -HUGE}}}, r"targets\.a, ignore: expected a whole number from -9223"),
        (
            {"targets": {"a": {**COVER, "values": [1, HUGE]}}},
            r"targets\.a, values: expected a list, each a whole number",
        ),
        ({"targets": {"a": {**COVER, "values": [1, 255]}}}, r"targets\.a, ignore: expected a number that is none of"),
        ({"targets": {"a": {**COVER, "classes": ["nan", "b"]}}}, r"targets\.a, classes: expected names other than nan"),
        ({"splits": {"seed": HUGE}}, r"splits, seed: expected a whole number from"),
        ({"splits": {"block_m": 10**400}}, r"splits, block_m: expected a number from 0\.01 to 1e\+07"),
        ({"splits": {"block_m": 1e-300}}, r"splits, block_m: expected a number from 0\.01 to 1e\+07"),
        ({"tile_m": 1e30}, r"mine\.yaml, tile_m: expected a number from 0 to 1e\+07"),
        ({"name": ""}, r"mine\.yaml, name: expected text that is not empty, got ''"),
        ({"name": "  "}, r"mine\.yaml, name: expected text that is not empty, got '  '"),
        ({"modalities": {"s2": {"path": ""}}}, r"modalities\.s2, path: expected text that is not empty"),
        ({"tiles": "plots.xlsx"}, r"mine\.yaml, tiles: expected a table of a kind .*\.csv, \.geojson.*'plots\.xlsx'"),
    ],
)
def test_a_value_that_cannot_be_is_named_by_file_and_key(tmp_path, change, message):
    with pytest.raises(RecordError, match=message):
        find_dataset(described(tmp_path, **change))


@pytest.mark.parametrize(
    "limits", [[], [0], [10, 5], [5, 5], [0, 1, 2], [0, float("inf")], [float("nan"), 1], [0, 10**400]]
)
def test_limits_are_two_numbers_in_order(tmp_path, limits):
    target = {"path": "h/{id}.tif", "unit": "m", "gsd_m": 10, "limits": limits}
    with pytest.raises(RecordError, match=r"targets\.h, limits: expected the least and the greatest value"):
        find_dataset(described(tmp_path, targets={"h": target}))


@pytest.mark.parametrize("text", ["name: 2020-13-45", "tile_m: " + "9" * 5000])
def test_a_date_or_number_that_cannot_be_is_no_valid_yaml(tmp_path, text):
    (tmp_path / "mine.yaml").write_text(text)
    with pytest.raises(RecordError, match=r"mine\.yaml: expected valid YAML"):
        find_dataset(str(tmp_path / "mine.yaml"))


def test_a_table_that_is_not_there_is_named_where_its_classes_are_needed(tmp_path):
    with pytest.raises(
        MissingFileError, match=r"plots\.csv: no such file.*mine\.yaml, tiles; give targets\.crop, classes"
    ):
        find_dataset(described(tmp_path, tiles="plots.csv", targets={"crop": {"column": "crop"}}))


def test_a_table_that_is_in_neither_place_is_named_with_both(tmp_path):
    tabled(tmp_path, "id\nt0\n")
    (tmp_path / "tiles.csv").unlink()
    (tmp_path / "there").mkdir()
    (tmp_path / "mine.yaml").rename(tmp_path / "there" / "mine.yaml")
    with pytest.raises(MissingFileError, match=r"tiles\.csv: no such file.* beside .*there/mine\.yaml"):
        open_dataset(str(tmp_path / "there" / "mine.yaml"), tmp_path, "all")


def test_a_column_called_split_splits_where_nothing_else_is_said(tmp_path):
    dataset = tabled(tmp_path, "id,split\nt0,test\nt1,val\nt2,train\n")
    assert dataset.samples.columns["split"].tolist() == ["test", "val", "train"]


def test_shares_count_more_than_a_column_called_split(tmp_path):
    dataset = tabled(tmp_path, "id,split\nt0,test\nt1,holdout\n", splits={"shares": {"train": 1}})
    assert dataset.samples.columns["split"].tolist() == ["train", "train"]


def test_splits_that_say_nothing_leave_the_column_called_split(tmp_path):
    dataset = tabled(tmp_path, "id,split\nt0,test\nt1,val\nt2,train\n", splits={})
    assert dataset.samples.columns["split"].tolist() == ["test", "val", "train"]
    assert "column 'split'" in dataset.record.split_rule


def test_a_seed_beside_a_column_called_split_is_refused(tmp_path):
    with pytest.raises(RecordError, match=r"mine\.yaml, splits, seed: expected no value.* column 'split' .*`shares`"):
        tabled(tmp_path, "id,split\nt0,test\n", splits={"seed": 1})


def test_a_seed_alone_draws_other_splits_of_a_table_without_them(tmp_path):
    text = "id\n" + "".join(f"t{number}\n" for number in range(30))
    drawn = [tabled(tmp_path, text, **said).samples.columns["split"].tolist()
             for said in ({}, {"splits": {"seed": 0}}, {"splits": {"seed": 1}})]  # fmt: skip
    assert drawn[0] == drawn[1] != drawn[2]


def test_a_target_of_the_column_called_split_is_its_cell_whatever_split_is_drawn(tmp_path):
    target = {"part": {"column": "split", "classes": ["train", "val", "test"]}}
    splits = {"shares": {"val": 1}}
    dataset = tabled(tmp_path, "id,split\nt0,test\n", targets=target, splits=splits)
    assert dataset.samples.columns["split"].tolist() == ["val"]
    assert (int(dataset[0].targets["part"]), dataset.labels().tolist()) == (2, [2])


@pytest.mark.parametrize("value", ["trian", ""])
def test_a_column_called_split_with_another_value_is_refused_by_row(tmp_path, value):
    with pytest.raises(UnknownNameError, match=rf"column 'split' of .*tiles\.csv '{value}'; .*Row 2 has it, tile 't1'"):
        tabled(tmp_path, f"id,split\nt0,train\nt1,{value}\n")


@pytest.mark.parametrize("name", ["", "..", ".", "../t0", "a/b", "/etc/t0", "a\\b"])
def test_an_id_that_is_no_name_is_refused_by_row(tmp_path, name):
    with pytest.raises(SourceError, match=r"tiles\.csv: row 2 has the id .*without slashes"):
        tabled(tmp_path, f"id,n\nt0,1\n{name},2\n")


@pytest.mark.parametrize("cell", ["../../etc", "/etc", "a/../..", "..\\x"])
def test_a_cell_that_leads_out_of_the_data_folder_is_refused_by_row(tmp_path, cell):
    target = {"path": "{where}/{id}.tif", "classes": ["a"], "gsd_m": 20}
    with pytest.raises(SourceError, match=r"tiles\.csv: row 2, tile 't1', makes '\{where\}/\{id\}\.tif' the path"):
        tabled(tmp_path, f"id,where\nt0,s2\nt1,{cell}\n", targets={"cover": target})


def test_a_cell_may_name_a_folder_inside_the_data_folder(tmp_path):
    target = {"path": "{where}/{id}.tif", "classes": ["a"], "gsd_m": 20}
    assert len(tabled(tmp_path, "id,where\nt0,s2/north\n", targets={"cover": target})) == 1


def test_a_label_raster_that_is_a_virtual_raster_in_disguise_is_not_followed(tmp_path, monkeypatch):
    box = geobox((2, 2), 20.0)
    real = write_tif(tmp_path / "real.tif", np.ones((1, 2, 2), "uint8"), box)
    disguised = tmp_path / "t0.tif"
    disguised.write_text(
        f'<VRTDataset rasterXSize="2" rasterYSize="2"><VRTRasterBand dataType="Byte" band="1"><SimpleSource>'
        f"<SourceFilename>{real}</SourceFilename><SourceBand>1</SourceBand>"
        f"</SimpleSource></VRTRasterBand></VRTDataset>"
    )
    monkeypatch.setattr("anysat.data.own.rasters.read_geobox", lambda _: box)
    with pytest.raises(SourceError, match=r"t0\.tif: it cannot be read"):
        read_nearest(disguised, box)


def test_tiles_without_a_label_are_no_class_to_balance_whatever_their_number(tmp_path):
    text = "id,crop\nt1,maize\nt2,\nt3,rape\nt4,\n"
    dataset = tabled(tmp_path, text, targets={"crop": {"column": "crop", "ignore": 255}})
    assert dataset.labels().tolist() == [0, -1, 1, -1]


def test_a_number_of_no_label_is_refused_where_a_tile_has_several(tmp_path):
    targets = {"genera": {"column": "genera", "separator": ";", "classes": ["Abies", "Acer"], "ignore": -1}}
    with pytest.raises(RecordError, match="ignore: expected no value, it has no effect here"):
        tabled(tmp_path, "id,genera\nt1,Abies\n", targets=targets)


@pytest.mark.parametrize(("option", "rows"), [("train", "t0,val\nt1,test\n"), ("test", "t0,train\nt1,val\n")])
def test_a_split_without_tiles_says_how_many_each_has_and_where_that_is_decided(tmp_path, option, rows):
    dataset = tabled(tmp_path, f"id,part\n{rows}", splits={"column": "part"}, targets={"cover": COVER})
    told = ", ".join(f"{split} {int(split != option)}" for split in ("train", "val", "test"))
    asked = LabelledData(dataset=dataset.record.found_as, root=str(tmp_path))
    with pytest.raises(InputError, match=rf"split {option}: .*none of 2 \({told}\); change `splits` in .*mine\.yaml"):
        open_data(asked, seed=0)
