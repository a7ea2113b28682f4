"""TimeSen2Crop: what its files hold is what is read, by either header, and damage is named."""

import shutil

import numpy as np
import pytest

from anysat.data.datasets import timesen2crop
from anysat.data.open import open_dataset
from anysat.data.world import World
from anysat.errors import SourceError
from miniatures import copied, miniature

GENERIC = ["B1", "B2", "B3", "B4", "B5", "B6", "B7", "B8", "B9", "Flag"]
REAL = ["B2", "B3", "B4", "B5", "B6", "B7", "B8A", "B11", "B12", "Flag"]


@pytest.fixture
def root(tmp_path):
    return copied("timesen2crop", tmp_path)


def series(root):
    return sorted(root.glob("32TNT/*/*.csv"))[0]


def rewritten(root, header, change=lambda rows: rows):
    """The tile of a series whose nine columns hold 1 to 9 hundred, under this header."""
    path = series(root)
    count = len(path.read_text().splitlines()) - 1
    rows = change([[*(str(100 * number) for number in range(1, 10)), "0"] for _ in range(count)])
    path.write_text("\n".join(",".join(row) for row in [header, *rows]) + "\n")
    dataset = open_dataset("timesen2crop", root, "all")
    return dataset[dataset.ids.index(path.relative_to(root).as_posix()[:-4])].observations["s2"]


def test_columns_b1_to_b9_are_the_nine_bands_in_order(root):
    seen = rewritten(root, GENERIC)
    bands = dict(zip(seen.modality.band_names, seen.values[0, :, 0, 0].tolist(), strict=True))
    known = dict(zip(bands, seen.valid.all(axis=(0, 2, 3)).tolist(), strict=True))
    assert [name for name, is_known in known.items() if not is_known] == ["B8"]
    assert bands == {"B2": 100, "B3": 200, "B4": 300, "B5": 400, "B6": 500, "B7": 600, "B8": 0, "B8A": 700,
                     "B11": 800, "B12": 900}  # fmt: skip


def test_columns_with_the_names_of_the_bands_are_read_by_name(root):
    whole = rewritten(root, REAL)
    turned = rewritten(root, REAL[::-1], lambda rows: [row[::-1] for row in rows])
    np.testing.assert_array_equal(whole.values, turned.values)
    np.testing.assert_array_equal(whole.values, rewritten(root, GENERIC).values)
    assert whole.values[0, whole.modality.find_band("B8A"), 0, 0] == 700


@pytest.mark.parametrize("header", [["index", *GENERIC], [*REAL, "B1", "B9"], [*REAL, "B8"]])
def test_further_columns_are_left_out(root, header):
    count = len(header) - 10
    seen = rewritten(root, header, lambda rows: [["7"] * count + row if header[0] == "index" else row + ["7"] * count
                                                 for row in rows])  # fmt: skip
    assert seen.values[0, seen.modality.find_band("B12"), 0, 0] == 900
    assert not (seen.values == 7).any()


@pytest.mark.parametrize(
    "header",
    [
        [*REAL[:8], "B9", "Flag"],
        [*GENERIC[:1], *REAL[1:]],
        [*GENERIC[:7], "B8A", "B9", "Flag"],
        [*GENERIC[1::-1], *GENERIC[2:]],
        [*GENERIC[:9], "B10"],
    ],
)
def test_a_mix_of_both_headers_is_refused(root, header):
    with pytest.raises(
        SourceError, match=r"csv: it has columns .*expected columns B1, .* B9 and Flag or B2, .* and Flag"
    ):
        rewritten(root, header)


def test_the_generated_set_has_the_published_header(root):
    assert series(root).read_text().splitlines()[0].split(",") == GENERIC


def test_a_cell_that_is_no_number_is_named(root):
    with pytest.raises(SourceError, match=r"csv: it cannot be understood .*'cloud'.*expected numbers"):
        rewritten(root, GENERIC, lambda rows: [[*rows[0][:9], "cloud"], *rows[1:]])


@pytest.mark.parametrize("cell", ["", "NaN"])
def test_rows_without_values_are_invalid_and_keep_their_date(root, cell):
    seen = rewritten(root, GENERIC, lambda rows: [[cell] * 10, [*rows[1][:9], cell], [cell, *rows[2][1:]], *rows[3:]])
    valid = seen.valid[:, :, 0, 0]
    assert not valid[:2].any()  # without a flag nobody knows whether it is clear
    assert seen.modality.band_names[int(np.flatnonzero(valid[3] & ~valid[2])[0])] == "B2"
    assert valid[2].sum() == 8
    assert len(seen.dates) == len(valid) == 29


def test_a_series_of_no_bytes_is_named(root):
    path = series(root)
    path.write_bytes(b"")
    with pytest.raises(SourceError, match=rf"{path.name}: it is empty \(0 bytes\)"):
        list(open_dataset("timesen2crop", root, "all"))


def test_a_series_of_a_header_only_is_named(root):
    with pytest.raises(SourceError, match=r"csv: it has 0 rows"):
        rewritten(root, GENERIC, lambda rows: [])


def rows_of(path):
    return [line.split(",") for line in path.read_text().splitlines()]


def of_file(root, path):
    dataset = open_dataset("timesen2crop", root, "all")
    return dataset[dataset.ids.index("/".join(path.with_suffix("").parts[-3:]))]


def test_cloud_and_shadow_are_invalid_and_snow_is_not(root):
    path = series(root)
    header, *rows = rows_of(path)
    rows = [[*["100"] * 9, str(i % 4)] for i in range(len(rows))]
    path.write_text("\n".join(",".join(row) for row in [header, *rows]))
    valid = of_file(root, path).observations["s2"].valid[:, 0, 0, 0]
    assert valid[:4].tolist() == [True, False, False, True]


def test_splits_are_sentinel_tiles_and_the_other_year_is_left_out(root):
    extra = root / "2019_33UVP/3"
    extra.mkdir()
    shutil.copy(series(root), extra / "7.csv")
    places = {split: {name.split("/")[0] for name in open_dataset("timesen2crop", root, split).ids}
              for split in ("train", "val", "test")}  # fmt: skip
    assert places == {"train": {"32TNT", "32TPT"}, "val": {"33TWN"}, "test": {"33UVP"}}


def test_listing_series_opens_none(root):
    for path in root.glob("*/*/*.csv"):
        path.write_bytes(b"\xff\xfe")
    assert len(open_dataset("timesen2crop", root, "all").labels()) == 6


def test_the_class_is_the_name_of_the_folder(root):
    path = root / "32TNT/15/x.csv"
    path.parent.mkdir(exist_ok=True)
    shutil.copy(sorted(root.glob("32TNT/*/*.csv"))[0], path)
    dataset = open_dataset("timesen2crop", root, "train")
    number = dataset.ids.index("32TNT/15/x")
    assert dataset.labels()[number] == dataset[number].targets["crop"] == 15
    assert timesen2crop.CROPS[15] == "Other Crops"


def test_a_folder_that_is_no_class_is_named(root):
    (root / "32TNT/16").mkdir()
    with pytest.raises(SourceError, match=r"32TNT/16: '16' is not a class"):
        open_dataset("timesen2crop", root)


def test_a_series_of_another_length_than_the_dates_is_named(root):
    path = series(root)
    path.write_text("\n".join(path.read_text().splitlines()[:-1]))
    with pytest.raises(SourceError, match=rf"{path.name}: it has 28 rows; .*dates.csv has 29"):
        of_file(root, path)


def test_a_series_without_flags_is_named(root):
    path = series(root)
    path.write_text(path.read_text().replace("Flag", "flags"))
    with pytest.raises(
        SourceError, match=rf"{path.name}: it has columns B1, .* flags; expected columns B1, .* and Flag"
    ):
        of_file(root, path)


def test_dates_that_change_on_disk_are_read_again(root):
    path = series(root)
    of_file(root, path)
    table = path.parents[1] / "dates.csv"
    lines = table.read_text().splitlines()
    table.write_text("\n".join([lines[0], "20171001", *lines[2:]]) + "\n\n")
    assert of_file(root, path).observations["s2"].dates.astype(str)[0] == "2017-10-01"


def test_timesen2crop_shows_what_the_world_showed():
    dataset = open_dataset("timesen2crop", miniature("timesen2crop"), "test")
    seen = next(tile for tile in dataset if tile.id.endswith("/0")).observations["s2"]
    shown = World(0).tile(0, extent_m=10.0, year=2018).observe("s2", dates=seen.dates, keep_clouds=True)
    both = seen.valid & shown.valid
    assert both.any()
    np.testing.assert_allclose(seen.values[both], shown.values[both], atol=0.51)
