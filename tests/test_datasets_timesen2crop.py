"""TimeSen2Crop as it is published: columns by place, rows without values, and files without any."""

import shutil

import numpy as np
import pytest

from anysat.data.base import open_dataset
from anysat.errors import SourceError
from miniatures import miniature

GENERIC = ["B1", "B2", "B3", "B4", "B5", "B6", "B7", "B8", "B9", "Flag"]
REAL = ["B2", "B3", "B4", "B5", "B6", "B7", "B8A", "B11", "B12", "Flag"]


@pytest.fixture
def root(tmp_path):
    return shutil.copytree(miniature("timesen2crop"), tmp_path / "copy")


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
    assert bands == {"B2": 100, "B3": 200, "B4": 300, "B5": 400, "B6": 500, "B7": 600, "B8": 0, "B8A": 700,
                     "B11": 800, "B12": 900}  # fmt: skip


def test_columns_with_the_names_of_the_bands_are_read_by_name(root):
    whole = rewritten(root, REAL)
    turned = rewritten(root, REAL[::-1], lambda rows: [row[::-1] for row in rows])
    np.testing.assert_array_equal(whole.values, turned.values)
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
