"""Names that merely hold that of a band: they neither fill its holes nor take its place, and that is said."""

import numpy as np
import pytest
import xarray
from odc.geo.xr import wrap_xr

from anysat.errors import SourceError
from anysat.geo.read.sources import SourceDescription, open_sources
from anysat.modalities import MODALITIES as M
from geo_builders import geobox, ramp, write_tif

BOX = geobox((4, 4))


def folder(path, *stems, box=BOX):
    for stem in stems:
        write_tif(path / f"{stem}.tif", ramp(1, *box.shape), box)
    return open_sources({"s2": str(path)}, M)["s2"]


def names(source):
    return {one.layer.scene for one in source.chosen}


def variables(*keys):
    return xarray.Dataset(
        {key: wrap_xr(ramp(1, 4, 4, dtype="float32"), BOX, time=["2020-06-01"], axis=1) for key in keys}
    )


def test_a_file_with_more_words_than_the_band_is_not_it(tmp_path):
    source = folder(tmp_path, "20200601_B4", "20200601_B4_std", "20200601_B4_cloudmask")
    assert names(source) == {"20200601_B4"}
    assert "not used: 20200601_B4_cloudmask.tif, 20200601_B4_std.tif" in source.notes


def test_a_word_that_not_all_bands_have_tells_other_numbers_even_on_other_days(tmp_path):
    source = folder(tmp_path, "20200601_B2", "20200601_B4", "20200701_B4_std")
    assert names(source) == {"20200601_B2", "20200601_B4"}
    assert "not used: 20200701_B4_std.tif" in source.notes


def test_what_all_bands_have_twice_counts_once(tmp_path):
    source = folder(tmp_path, "20200601_B2", "20200601_B4", "20200601_B2_std", "20200601_B4_std")
    assert names(source) == {"20200601_B2", "20200601_B4"}


def test_files_of_one_band_that_cannot_be_told_apart_are_refused(tmp_path):
    with pytest.raises(SourceError, match="several of its files may be one band of one image"):
        folder(tmp_path, "20200601_B4_mean", "20200601_B4_std")


@pytest.mark.parametrize("ends", [("_10m",), ("_v2",), ("_20200601T1010",), ("_sr",), ("-0000-0256",), ("_aid0001",)])
def test_words_that_say_nothing_of_the_numbers_may_follow(tmp_path, ends):
    stems = [f"S2_20200601_{band}{end}" for band in ("B02", "B03") for end in ends]
    source = folder(tmp_path, *stems)
    assert names(source) == set(stems)
    assert not any("not used" in note for note in source.notes)


def test_pieces_of_a_band_side_by_side_are_all_read(tmp_path):
    folder(tmp_path, "20200601_B4_north")
    source = folder(tmp_path, "20200601_B4_south", box=geobox((4, 4), top=BOX.boundingbox.bottom))
    assert names(source) == {"20200601_B4_north", "20200601_B4_south"}


@pytest.mark.parametrize("stem", ["count_B4", "B4_std", "20200601_qa_B4", "B4_MASK_v2"])
def test_a_file_that_says_it_is_no_band_is_none_though_no_other_is_there(tmp_path, stem):
    with pytest.raises(SourceError, match=f"{stem}.tif.*not a band, but a statistic or mask of one"):
        folder(tmp_path, stem)
    source = folder(tmp_path, "20200601_B2", "20200601_SR_B3")
    assert {one.layer.scene for one in source.chosen} == {"20200601_B2", "20200601_SR_B3"}
    assert any(note.startswith("not used") and stem in note for note in source.notes)


def test_a_file_that_is_named_as_a_band_by_the_user_is_it(tmp_path):
    write_tif(tmp_path / "20200601_std_B4.tif", ramp(1, 4, 4), BOX)
    given = SourceDescription(path=str(tmp_path / "20200601_std_B4.tif"), bands=["B4"])
    assert len(open_sources({"s2": given}, M)["s2"].chosen) == 1


@pytest.mark.parametrize("keys", [("B2", "B4", "std_B4", "count_B4"), ("NDVI_B8-B4", "B2", "B4")])
def test_of_several_variables_the_one_called_as_the_band_is_it(keys):
    source = open_sources({"s2": variables(*keys)}, M)["s2"]
    assert [one.layer.bands[0][0] for one in source.chosen] == ["B2", "B4"]
    assert any(
        note.startswith("not used") and all(key in note for key in set(keys) - {"B2", "B4"}) for note in source.notes
    )


def test_variables_that_cannot_be_told_apart_are_refused():
    with pytest.raises(SourceError, match="several of its variables may be one band: mean_B4, std_B4"):
        open_sources({"s2": variables("mean_B4", "std_B4")}, M)
    (one,) = open_sources({"s2": variables("SR_B4")}, M)["s2"].chosen
    assert np.array_equal(one.bands, [0])
