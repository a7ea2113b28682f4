"""Tables of pixel series as own data: one pixel for each id, rows by id and date or columns by band and day."""

import json
import re
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import yaml
from pyarrow import csv, parquet

from anysat.cli import main
from anysat.data.check import check_dataset
from anysat.data.open import open_dataset
from anysat.data.own.days import column_day
from anysat.errors import AnySatError
from anysat.picture_samples import sample_figure

ROWS = """id,date,B2,B03,nir,crop,lon,lat
b,2020-05-01,100,200,3000,maize,10.0,50.0
a,2020-06-01,110,210,3100,wheat,10.2,50.2
a,2020-04-01,120,,3200,wheat,10.2,50.2
b,2020-07-01,130,230,NA,maize,10.0,50.0
"""


def _open(root: Path, text=ROWS, file="series.csv", split="all", said=None, **content):
    (root / file).write_text(text)
    modality = {"table": file, **(said or {})}
    given = {"name": "mine", "modalities": {"s2": modality}, "splits": {"shares": {"train": 1.0}}} | content
    (root / "mine.yaml").write_text(yaml.safe_dump(given))
    return open_dataset(str(root / "mine.yaml"), root, split)


def _s2(dataset, index=0):
    return dataset[index].observations["s2"]


def _refused(root, text=ROWS, **options) -> str:
    with pytest.raises(AnySatError) as caught:
        _open(root, text, **options)[0]
    return str(caught.value)


def _one(rows: str) -> str:
    """A table of one band."""
    return f"id,date,B2\n{rows}"


@pytest.mark.parametrize("table", ["series", "fields"])
def test_an_id_that_is_no_number_is_as_none(tmp_path, table):
    """As polars and R write what is missing."""
    ids = pa.array([1.0, float("nan")], from_pandas=False)
    parquet.write_table(pa.table({"id": ids, "date": ["2020-05-01"] * 2, "B2": [1, 2]}), tmp_path / f"{table}.parquet")
    given = {"said": {"table": "series.parquet"}} if table == "series" else {"tiles": "fields.parquet"}
    told = _refused(tmp_path, _one("1,2020-05-01,1\nnan,2020-05-01,2\n"), **given)
    assert f"{table}.parquet" in told
    assert "row 2 has" in told


def test_each_id_is_a_tile_of_one_pixel_with_its_dates_in_order(tmp_path):
    dataset = _open(tmp_path)
    assert dataset.ids == ["b", "a"]  # in the order of the table
    seen = _s2(dataset, 1)
    assert seen.dates.astype(str).tolist() == ["2020-04-01", "2020-06-01"]
    assert seen.values.shape == (2, 10, 1, 1)
    assert seen.values[:, 0, 0, 0].tolist() == [120, 110]


def test_an_empty_cell_is_a_band_that_was_not_seen(tmp_path):
    seen = _s2(_open(tmp_path), 1)
    place = seen.modality.find_band("B3")
    assert seen.valid[:, place, 0, 0].tolist() == [False, True]
    assert not seen.valid[:, seen.modality.find_band("B4")].any()  # a column that is not there


def test_labels_and_place_are_columns_of_the_same_table(tmp_path):
    dataset = _open(tmp_path, targets={"crop": {"column": "crop"}})
    assert dataset.record.target("crop").classes == ("maize", "wheat")
    assert dataset.labels().tolist() == [0, 1]
    left, bottom, right, top = dataset[0].geobox.geographic_extent.boundingbox.bbox
    assert left < 10.0 < right
    assert bottom < 50.0 < top


def test_a_label_that_changes_within_an_id_is_refused(tmp_path):
    told = _refused(tmp_path, ROWS.replace("3200,wheat", "3200,barley"), targets={"crop": {"column": "crop"}})
    assert "'a' has both 'wheat' and 'barley' in column 'crop'" in told


PLOTS = "plot,date,B2,id,crop\n1,2020-05-01,100,3,wheat\n2,2020-05-01,200,1,maize\n3,2020-05-01,300,2,oats\n"


def test_labels_go_by_the_column_that_is_given_for_ids_and_not_by_another_called_id(tmp_path):
    dataset = _open(tmp_path, PLOTS, said={"columns": {"id": "plot"}}, targets={"crop": {"column": "crop"}})
    classes = dataset.record.target("crop").classes
    told = {float(_s2(dataset, n).values[0, 0, 0, 0]): classes[dataset.labels()[n]] for n in range(3)}
    assert told == {100: "wheat", 200: "maize", 300: "oats"}


def test_another_column_called_id_cannot_be_what_is_asked_for(tmp_path):
    for content in ({"targets": {"n": {"column": "id", "unit": "m"}}}, {"splits": {"column": "id", "train": [1]}}):
        told = _refused(tmp_path, PLOTS, said={"columns": {"id": "plot"}}, **content)
        assert (
            "column: expected a column with another name, because `id` is the name of a tile, from column 'plot', got 'id'"
            in told
        )


def test_a_split_that_changes_within_an_id_is_refused(tmp_path):
    text = "id,date,B2,split\na,2020-05-01,1,train\na,2020-06-01,1,test\n"
    assert "'a' has both 'train' and 'test' in column 'split'" in _refused(tmp_path, text, splits={})
    assert _open(tmp_path, text, splits={"shares": {"train": 1.0}}).ids == ["a"], "which is not asked for"


def test_a_place_that_changes_within_an_id_is_refused_where_it_is_needed_and_told_else(tmp_path):
    text = ROWS.replace("3100,wheat,10.2,50.2", "3100,wheat,10.2,50.20001")
    told = _refused(tmp_path, text, splits={"block_m": 5000})
    assert "'a' has both '50.20001' and '50.2' in column 'lat'" in told
    assert _open(tmp_path, text)[1].geobox is None
    (note,) = [note for note in check_dataset(str(tmp_path / "mine.yaml"), tmp_path).notes if "'lat'" in note]
    assert "place" in note


def test_tiles_may_have_a_table_of_their_own(tmp_path):
    (tmp_path / "fields.csv").write_text("id,split\na,test\n")
    assert _open(tmp_path, tiles="fields.csv", split="test", splits={}).ids == ["a"]


def test_parquet_and_csv_are_one_dataset(tmp_path):
    """With categories, days and numbers as pandas writes them."""
    table = csv.read_csv(pa.BufferReader(ROWS.encode()))
    table = table.set_column(0, "id", table["id"].dictionary_encode())
    parquet.write_table(table, tmp_path / "series.parquet")
    content = {
        "name": "mine",
        "modalities": {"s2": {"table": "series.parquet"}},
        "targets": {"crop": {"column": "crop"}},
    }
    (tmp_path / "p.yaml").write_text(yaml.safe_dump(content))
    other = open_dataset(str(tmp_path / "p.yaml"), tmp_path, "all")
    first = _open(tmp_path, targets={"crop": {"column": "crop"}})
    assert other.ids == first.ids
    for index in range(2):
        np.testing.assert_array_equal(_s2(other, index).values, _s2(first, index).values)
        np.testing.assert_array_equal(_s2(other, index).dates, _s2(first, index).dates)
    assert other.labels().tolist() == first.labels().tolist()


def test_a_table_of_tiles_may_be_parquet(tmp_path):
    parquet.write_table(pa.table({"id": ["a"], "height": [2.5], "shape": [b"wkb"]}), tmp_path / "fields.parquet")
    dataset = _open(tmp_path, tiles="fields.parquet", targets={"height": {"column": "height", "unit": "m"}})
    assert float(dataset[0].targets["height"]) == 2.5


def test_the_section_of_the_page_is_a_dataset(tmp_path):
    page = (Path(__file__).parents[3] / "docs" / "howto" / "own-data.md").read_text()
    section = page.split("## Pixel series in a table")[1]
    for kind, file in (("csv", "series.csv"), ("yaml", "crops.yaml")):
        (tmp_path / file).write_text(re.search(rf"```{kind}\n(.*?)```", section, re.S)[1])
    dataset = open_dataset(str(tmp_path / "crops.yaml"), tmp_path, "all")
    assert dataset.ids == ["f1", "f2"]
    assert dataset.record.tile_m == 10
    assert [len(_s2(dataset, index).dates) for index in range(2)] == [2, 2]  # a cloud is left out


@pytest.mark.parametrize("name", ["B2_2020-05-01", "2020-05-01_B2", "B2_20200501", "B220200501", "B2.2020.05.01"])
def test_columns_may_be_band_and_day(tmp_path, name):
    seen = _s2(_open(tmp_path, f"id,{name},B3_2020-05-01,B2_2020-06-01\na,1,2,\n"))
    assert seen.dates.astype(str).tolist() == ["2020-05-01"]  # of the other day nothing was seen
    assert seen.values[0, :2, 0, 0].tolist() == [1, 2]


def test_a_column_that_only_looks_like_a_day_is_none():
    assert column_day("B2_20201341") is None


@pytest.mark.parametrize("day", ["2020-05-01", "20200501", "2020-05-01T10:30:00Z"])
def test_days_are_written_as_a_calendar_has_them(tmp_path, day):
    assert str(_s2(_open(tmp_path, _one(f"a,{day},1\n"))).dates[0]) == "2020-05-01"


def test_numbers_of_days_need_the_day_they_count_from(tmp_path):
    assert "row 1 has the date '121' in column 'date'" in _refused(tmp_path, _one("a,121,1\n"))
    columns = {"columns": {"days_since": "2020-01-01"}}
    assert str(_s2(_open(tmp_path, _one("a,121,1\n"), said=columns)).dates[0]) == "2020-05-01"
    assert "expected a number of days since 2020-01-01" in _refused(tmp_path, _one("a,2020-05-01,1\n"), said=columns)


def test_columns_may_have_any_name(tmp_path):
    said = {"columns": {"id": "plot", "date": "day"}, "bands": {"B2": "blue reflectance"}}
    dataset = _open(tmp_path, "plot,day,blue reflectance,B3\n7,2020-05-01,5,6\n", said=said)
    assert dataset.ids == ["7"]
    assert _s2(dataset).valid.sum() == 1  # bands not listed are not read


def test_spaces_around_names_and_cells_of_a_csv_do_not_count(tmp_path):
    text = "id, date , B2,crop\na, 2020-05-01, 5 , wheat\n b ,2020-05-01,6,maize\n"
    dataset = _open(tmp_path, text, targets={"crop": {"column": "crop"}}, said={"bands": {"B2": "B2"}})
    assert dataset.ids == ["a", "b"]
    assert dataset.record.target("crop").classes == ("maize", "wheat")
    assert str(_s2(dataset).dates[0]) == "2020-05-01"
    assert [_s2(dataset, n).values[0, 0, 0, 0] for n in range(2)] == [5, 6]
    assert "row 1 has 'x' in column 'B2'" in _refused(tmp_path, "id, date, B2\na,2020-05-01,x\n")
    assert "the header has 'B2' twice" in _refused(tmp_path, "id,date,B2, B2\na,2020-05-01,1,1\n")


def test_rows_of_one_day_are_joined_and_told(tmp_path):
    dataset = _open(tmp_path, "id,date,B2,B3\na,2020-05-01,,2\na,2020-05-01,3,9\na,2020-06-01,4,4\n")
    assert _s2(dataset).values[:, :2, 0, 0].tolist() == [[3, 2], [4, 4]]
    report = check_dataset(str(tmp_path / "mine.yaml"), tmp_path)
    assert any("1 rows repeat a day of their id and are merged" in note for note in report.notes)


def test_scale_offset_and_nodata_are_applied_to_stored_numbers(tmp_path):
    said = {"scale": 0.0001, "offset": -0.1, "offset_from": "2020-06-01", "nodata": 0}
    dataset = _open(tmp_path, _one("a,2020-05-01,2000\na,2020-06-01,2000\na,2020-07-01,0\n"), said=said)
    assert _s2(dataset).values[:, 0, 0, 0] == pytest.approx([0.2, 0.1])
    assert _s2(dataset).units[0] == "reflectance"


@pytest.mark.parametrize(
    ("quality", "header", "cells"),
    [("scl", "SCL", (4, 9, "")), ({"kind": "values", "layer": "ok", "valid": [1]}, "ok", ("True", "False", ""))],
)
def test_a_column_masks_dates(tmp_path, quality, header, cells):
    rows = "".join(f"a,2020-0{month}-01,1,{cell}\n" for month, cell in enumerate(cells, 4))
    seen = _s2(_open(tmp_path, f"id,date,B2,{header}\n{rows}", said={"quality": quality}))
    assert seen.dates.astype(str).tolist() == ["2020-04-01"]


def test_a_mask_may_be_of_days_too(tmp_path):
    text = "id,B2_20200401,SCL_20200401,B2_20200501,SCL_20200501\na,1,9,2,4\n"
    assert _s2(_open(tmp_path, text, said={"quality": "scl"})).dates.astype(str).tolist() == ["2020-05-01"]


def test_an_id_of_which_nothing_was_seen_is_a_tile_without_a_valid_value(tmp_path):
    seen = _s2(_open(tmp_path, _one("a,2020-05-01,\na,2020-06-01,\nb,2020-05-01,1\n")))
    assert len(seen.dates) == 1
    assert not seen.valid.any()


def test_a_tile_without_a_row_is_refused_unless_it_may_be(tmp_path):
    (tmp_path / "fields.csv").write_text("id\na\nx\n")
    told = _refused(tmp_path, tiles="fields.csv")
    assert "1 of 2 tiles" in told
    assert "'x'" in told
    modalities = {"s2": {"table": "series.csv"}, "s1": {"table": "s1.csv", "optional": True}}
    (tmp_path / "s1.csv").write_text("id,date,VV,VH\na,2020-05-01,-9,-15\n")
    dataset = _open(tmp_path, modalities=modalities)
    assert [sorted(tile.observations) for tile in dataset] == [["s2"], ["s1", "s2"]]


def test_a_pixel_is_drawn_as_a_curve_of_each_band_that_was_seen(tmp_path):
    panel = sample_figure(_open(tmp_path)[0], [], "mine").axes[0]
    assert {line.get_label(): len(line.get_xdata()) for line in panel.lines} == {"B2": 2, "B3": 2, "B8": 1}


def test_two_sensors_may_share_a_table(tmp_path):
    text = "id,date,B2,VV,VH\na,2020-05-01,100,,\na,2020-05-03,,-9,-15\n"
    modalities = {"s2": {"table": "series.csv"}, "s1": {"table": "series.csv", "units": "dB"}}
    tile = _open(tmp_path, text, modalities=modalities)[0]
    assert {key: str(seen.dates[0]) for key, seen in tile.observations.items()} == {
        "s2": "2020-05-01",
        "s1": "2020-05-03",
    }


def test_a_changed_table_is_read_anew(tmp_path):
    _open(tmp_path, _one("a,2020-05-01,1\n"))[0]
    assert _s2(_open(tmp_path, _one("a,2020-05-01,222\n"))).values[0, 0, 0, 0] == 222


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (_one(",2020-05-01,1\n"), "row 1 has no 'id'"),
        (_one("a,,1\n"), "row 1 has no date in column 'date'"),
        (_one("a,2020-05-01,1\na,03/04/2020,1\n"), "row 2 has the date '03/04/2020'.*write days as 2020-03-01"),
        (_one("a,1820-05-01,1\n"), "row 1 has the date '1820-05-01'"),
        (_one("a,2020-05-01,1\na,2020-05-02,cloud\n"), "row 2 has 'cloud' in column 'B2'; write a number"),
        (_one('a,2020-05-01,"0,5"\n'), "row 1 has '0,5' in column 'B2'; write a number with a decimal point"),
        (_one("a,2020-05-01\n"), "cannot be read .*Expected 3 columns"),
        (_one(""), "no rows"),
        ("id;date;B2\na;2020-05-01;1\n", "separated by semicolons"),
        ("id;date;B2\na;2020-05-01;0,5\n", "separated by semicolons"),
        ("id,date,B2,blue\na,2020-05-01,1,1\n", "'B2' and 'blue' are both B2 of 's2'; say which as `bands"),
        ("id,date,red_edge\na,2020-05-01,1\n", "none of its columns .* is known to be a band of 's2'"),
        ("plot,date,B2\na,2020-05-01,1\n", "unknown column of .* 'id'.*`columns: {id: NAME}`"),
        ("id,day,B2\na,2020-05-01,1\n", "unknown column of .* 'date'.*B4_2020-03-01"),
        ("id,date,B2,B2\na,2020-05-01,1,1\n", "the header has 'B2' twice"),
    ],
)
def test_what_cannot_be_read_is_named_by_row_and_column(tmp_path, text, message):
    with pytest.raises(AnySatError, match=message):
        _open(tmp_path, text)


@pytest.mark.parametrize("coding", ["utf-16", "latin-1"])
def test_a_table_in_another_coding_than_utf_8_is_told(tmp_path, coding):
    text = "id,date,B2,crop\na,2020-05-01,1,blé\n"
    _open(tmp_path, text, targets={"crop": {"column": "crop"}})
    (tmp_path / "series.csv").write_text(text, coding)
    with pytest.raises(AnySatError, match=r"series\.csv: it is not in UTF-8.*; save it as CSV in UTF-8"):
        open_dataset(str(tmp_path / "mine.yaml"), tmp_path, "all")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tile_m": 60}, "tile_m: expected 10, the pixel size of s2"),
        ({"centre": "table"}, "centre: expected no value"),
        ({"targets": {"c": {"path": "{id}.tif", "classes": ["a"], "gsd_m": 10}}}, "targets: expected columns"),
        ({"modalities": {"s2": {"table": "series.csv", "path": "{id}.tif"}}}, "either the `path` .* or a `table`"),
        ({"modalities": {"s2": {"table": "{id}.csv"}}}, "table: expected one file"),
        ({"modalities": {"s2": {"path": "{id}.tif", "columns": {"id": "a"}}}}, "columns: expected no value"),
        ({"modalities": {"s2": {"table": "series.csv", "columns": {"day": "a"}}}}, "unknown key .*'day'"),
        ({"modalities": {"s2": {"table": "series.csv", "bands": ["B2"]}}}, "bands: expected a column for each band"),
        ({"modalities": {"aerial": {"table": "series.csv"}}}, "table: expected the `path` of files"),
    ],
)
def test_a_description_that_cannot_be_is_refused(tmp_path, change, message):
    with pytest.raises(AnySatError, match=message):
        _open(tmp_path, **change)


def test_a_classifier_is_made_of_a_table_and_no_code(tmp_path):
    """Crops that differ in the month of their green peak: the page's commands, from check to scores."""
    rng = np.random.default_rng(0)
    rows = ["id,date,B4,B8,crop,split"]
    for number in range(18):
        crop = ("wheat", "maize")[number % 2]
        for month in range(4, 10):
            green = np.exp(-((month - (5 if crop == "wheat" else 8)) ** 2)) + rng.normal(0, 0.02)
            row = f"f{number},2020-{month:02d}-10,{1500 - 1000 * green:.0f},{2000 + 2500 * green:.0f},{crop}"
            rows.append(f"{row},{('train', 'val', 'test')[number // 2 % 3]}")
    _open(tmp_path, "\n".join(rows), targets={"crop": {"column": "crop"}}, splits={})
    data = ["--data.dataset", str(tmp_path / "mine.yaml"), "--data.root", str(tmp_path), "--data.target", "crop"]
    assert main(["probe", *data, "--weights", "nano", "--out", str(tmp_path / "run")]) == 0
    scores = json.loads(next((tmp_path / "run").glob("scores*.json")).read_text())
    assert "accuracy" in json.dumps(scores)
    page = (Path(__file__).parents[3] / "docs" / "howto" / "own-data.md").read_text()
    section = page.split("### Classify the fields of another table")[1]
    fields = [",".join((*row.split(",")[:4], "4" if number else "SCL")) for number, row in enumerate(rows)]
    (tmp_path / "fields.csv").write_text("\n".join(fields))
    (tmp_path / "fields.yaml").write_text(re.search(r"```yaml\n(.*?)```", section, re.S)[1])
    words = re.search(r"```bash\nanysat (.*?)```", section, re.S)[1].split()
    paths = {"runs/crops": "run", "crops/fields.yaml": "fields.yaml", "crops": ".", "predictions.parquet": "p.parquet"}
    assert main([str(tmp_path / paths[word]) if word in paths else word for word in words]) == 0
    table = parquet.read_table(tmp_path / "p.parquet")
    assert len(table) == 18
    assert set(table["predicted_name"].to_pylist()) <= {"wheat", "maize"}
