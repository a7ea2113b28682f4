"""Labels of a user's own data: which stored number is which class, what has no label, what is no label raster."""

import numpy as np
import pytest
import rasterio
from affine import Affine
from odc.geo.geobox import GeoBox
from rasterio.enums import ColorInterp

from anysat.data.open import find_dataset
from anysat.data.own.rasters import read_nearest
from anysat.errors import RecordError, SourceError
from anysat.geo.grid import mapped
from geo_builders import LEFT, TOP, geobox, write_tif
from own_builders import COVER, cover, described, tabled

ONE_TO_THREE = np.array([[[1, 2], [3, 1]]], "uint8")


@pytest.mark.parametrize("classes", [[1, 2, 3], ["1", "2", "3"], [3, 1, 2]])
def test_classes_of_a_raster_that_are_whole_numbers_are_the_stored_ones(tmp_path, classes):
    labels = cover(tmp_path, ONE_TO_THREE, COVER | {"classes": classes})
    names = np.array(find_dataset(str(tmp_path / "mine.yaml")).target("cover").classes)
    assert names[labels].tolist() == [["1", "2"], ["3", "1"]]


def test_numbers_given_as_values_count_before_those_in_names(tmp_path):
    labels = cover(tmp_path, ONE_TO_THREE, COVER | {"classes": [10, 20, 30], "values": [3, 2, 1]})
    assert labels.tolist() == [[2, 1], [0, 2]]


def test_two_names_of_one_number_are_refused(tmp_path):
    with pytest.raises(RecordError, match=r"targets\.cover, values: expected one number for each of the 2 classes"):
        find_dataset(described(tmp_path, targets={"cover": COVER | {"classes": ["1", "01"]}}))


def test_zero_may_stand_for_no_label_and_becomes_a_number_that_is_no_class(tmp_path):
    stored = np.array([[[0, 1], [2, 0]]], "uint8")
    labels = cover(tmp_path, stored, COVER | {"values": [1, 2], "ignore": 0})
    ignore = find_dataset(str(tmp_path / "mine.yaml")).target("cover").ignore
    assert (labels.tolist(), ignore) == ([[255, 0], [1, 255]], 255)


def test_a_class_may_be_stored_as_255_where_another_number_stands_for_no_label(tmp_path):
    stored = np.array([[[0, 255], [1, 0]]], "uint8")
    assert cover(tmp_path, stored, COVER | {"values": [1, 255], "ignore": 0}).tolist() == [[255, 1], [0, 255]]


def test_more_than_255_classes_leave_minus_one_for_no_label(tmp_path):
    stored = np.array([[[0, 300], [1, 0]]], "uint16")
    labels = cover(tmp_path, stored, COVER | {"classes": list(range(1, 301)), "ignore": 0})
    assert labels.tolist() == [[-1, 299], [0, -1]]


def test_zero_for_no_label_asks_for_the_stored_numbers_of_the_classes(tmp_path):
    with pytest.raises(RecordError, match=r"targets\.cover, ignore: expected a number that is none of `values` \(0, 1"):
        find_dataset(described(tmp_path, targets={"cover": COVER | {"ignore": 0}}))


def test_a_stored_number_that_is_no_class_is_told_with_the_number_for_no_label(tmp_path):
    stored = np.array([[[0, 9], [2, 0]]], "uint8")
    with pytest.raises(SourceError, match=r"holds 9, .* its classes are 1, 2; pixels without a label are 0 or nodata"):
        cover(tmp_path, stored, COVER | {"values": [1, 2], "ignore": 0})


@pytest.mark.parametrize("num_bands", [2, 3, 7])
def test_a_label_raster_of_several_bands_is_refused(tmp_path, num_bands):
    """One-hot bands, or a picture in colours: the first band alone is no label."""
    with pytest.raises(SourceError, match=rf"t0\.tif: it has {num_bands} bands, expected one"):
        cover(tmp_path, np.ones((num_bands, 2, 2), "uint8"), COVER)


def test_transparency_beside_the_labels_is_no_second_band(tmp_path, monkeypatch):
    import own_builders

    def with_alpha(path, *args, **options):
        write_tif(path, *args, **options)
        if "cover" in str(path):
            with rasterio.open(path, "r+") as file:
                file.colorinterp = [ColorInterp.gray, ColorInterp.alpha]

    monkeypatch.setattr(own_builders, "write_tif", with_alpha)
    stored = np.stack([ONE_TO_THREE[0] - 1, np.full((2, 2), 255, "uint8")])
    assert cover(tmp_path, stored, COVER | {"classes": ["a", "b", "c"]}).tolist() == [[0, 1], [2, 0]]


@pytest.mark.parametrize("name", ["parcels.gpkg", "{id}.geojson", "parcels.shp", "parcels.parquet"])
def test_polygons_as_labels_of_pixels_are_refused_when_the_description_is_read(tmp_path, name):
    with pytest.raises(RecordError, match=r"targets\.cover, path: expected a GeoTIFF.*gdal_rasterize"):
        find_dataset(described(tmp_path, targets={"cover": COVER | {"path": name}}, tiles="tiles.csv"))


@pytest.mark.parametrize("word", ["NA", "N/A", "NULL", "None", "#N/A"])
def test_a_word_for_what_is_missing_is_no_class_found_in_the_table(tmp_path, word):
    with pytest.raises(SourceError, match=rf"tiles\.csv: '{word}' in column 'crop' .*empty.*`classes`"):
        tabled(tmp_path, f"id,crop\nt0,rye\nt1,{word}\n", targets={"crop": {"column": "crop", "ignore": -1}})


def test_a_word_for_what_is_missing_among_several_labels_is_no_class(tmp_path):
    with pytest.raises(SourceError, match=r"tiles\.csv: 'NA' in column 'crop'"):
        tabled(tmp_path, "id,crop\nt0,rye;oat\nt1,NA\n", targets={"crop": {"column": "crop", "separator": ";"}})


def test_a_word_for_what_is_missing_may_be_a_class_that_is_listed(tmp_path):
    target = {"column": "pest", "classes": ["None", "aphid"]}
    assert tabled(tmp_path, "id,pest\nt0,None\nt1,aphid\n", targets={"pest": target}).labels().tolist() == [0, 1]


def test_a_word_for_what_is_missing_beside_listed_classes_is_to_be_left_empty(tmp_path):
    target = {"column": "crop", "classes": ["rye"], "ignore": -1}
    with pytest.raises(SourceError, match=r"tile 't1' has 'NA' in column 'crop'.*leave cells without a label empty"):
        tabled(tmp_path, "id,crop\nt0,rye\nt1,NA\n", targets={"crop": target})


@pytest.mark.parametrize("colours", [["#1F5D2B", "#2f6fb0"], {"b": "#2f6fb0", "a": "#1F5D2B"}])
def test_classes_have_the_colours_that_are_given(tmp_path, colours):
    target = COVER | {"colours": colours}
    assert find_dataset(described(tmp_path, targets={"cover": target})).target("cover").colours == (
        "#1f5d2b",
        "#2f6fb0",
    )


@pytest.mark.parametrize(("target", "told"), [
    (COVER | {"colours": ["#1f5d2b"]}, r"cover, colours: expected a colour for each of the 2 classes \(a, b\), such as '#"),
    (COVER | {"colours": {"a": "#1f5d2b", "c": "#2f6fb0"}}, r"cover, colours: expected a colour for each"),
    (COVER | {"colours": {"a": "#1f5d2b", "b": "#1f5d2b", "c": "#2f6fb0"}}, r"cover, colours: expected a colour for"),
    (COVER | {"colours": ["green", "#2f6fb0"]}, r"cover, colours: .*as '#1f77b4' in quotes, got \['green'"),
    (COVER | {"colours": [None, None]}, r"cover, colours: .*in quotes"),
    ({"path": "{id}.tif", "gsd_m": 20, "unit": "m", "colours": ["#1f5d2b"]}, r"cover, colours: expected no value"),
])  # fmt: skip
def test_colours_that_cannot_be_are_refused_by_file_and_key(tmp_path, target, told):
    with pytest.raises(RecordError, match=rf"mine\.yaml, targets\.{told}"):
        find_dataset(described(tmp_path, targets={"cover": target}))


@pytest.mark.parametrize("nodata", [None, 0, 255])
@pytest.mark.parametrize("place", [0, 1])
def test_labels_under_transparency_are_none(tmp_path, place, nodata):
    """Whatever number is stored there, and whichever band the transparency is."""
    bands = [np.array([[1, 1], [2, 2]], "uint8")]
    bands.insert(place, np.array([[0, 9], [0, 255]], "uint8"))
    (tmp_path / "cover").mkdir()
    path = write_tif(tmp_path / "cover" / "t0.tif", np.stack(bands), geobox((2, 2), 20.0, LEFT + 20, TOP - 20),
                     nodata=nodata)  # fmt: skip
    with rasterio.open(path, "r+") as file:
        meanings = [ColorInterp.gray]
        meanings.insert(place, ColorInterp.alpha)
        file.colorinterp = meanings
    seen = tabled(tmp_path, "id\nt0\n", targets={"cover": COVER | {"values": [1, 2]}})[0].targets["cover"]
    assert seen.tolist() == [[255, 0], [255, 1]]


@pytest.mark.parametrize("values", [[1, 1, 2], [1, 2, 3], [1]])
def test_there_is_one_stored_number_for_each_class(tmp_path, values):
    with pytest.raises(RecordError, match="cover, values: expected one number for each of the 2 classes, each once"):
        find_dataset(described(tmp_path, targets={"cover": COVER | {"values": values}}))


# columns of classes


@pytest.mark.parametrize("none", ["-1", "0", "255", "-1.0", "", "nan"])
def test_a_cell_of_the_number_that_ignore_is_has_no_label(tmp_path, none):
    """As of what is empty, it is no class."""
    ignore = int(float(none)) if none not in ("", "nan") else -1
    dataset = tabled(tmp_path, f"id,crop\nt0,{none}\nt1,1\nt2,2\n", targets=_crop(ignore=ignore))
    target = dataset.record.target("crop")
    assert target.classes == ("1", "2")
    assert dataset.labels().tolist() == [-1, 0, 1]
    assert int(dataset[0].targets["crop"]) == target.ignore
    assert target.ignore not in (0, 1)


def test_classes_that_are_given_leave_out_the_number_that_ignore_is(tmp_path):
    dataset = tabled(tmp_path, "id,crop\nt0,255\nt1,1\n", targets=_crop(classes=[1, 2], ignore=255))
    assert dataset.labels().tolist() == [-1, 0]
    with pytest.raises(RecordError, match=r"crop, ignore: expected a number that is none of `classes`, .* got 2"):
        find_dataset(described(tmp_path, tiles="tiles.csv", targets=_crop(classes=[1, 2], ignore=2)))


def _crop(**said):
    return {"crop": {"column": "crop"} | said}


def test_labels_in_another_projection_lie_where_it_says(tmp_path):
    """Also of a large tile: fewer than one in sixty pixels lies so near the edge of a label that the next one is read."""
    tile = GeoBox((500, 500), Affine(10, 0, 700_000, 0, -10, 5_400_000), "EPSG:32631")
    lon, lat = tile.crs.transformer_to_crs("EPSG:4326")(*mapped(tile.affine, *np.indices(tile.shape)[::-1] + 0.5))
    left, top, side = lon.min() - 0.01, lat.max() + 0.01, 1e-4
    rows, cols = int((top - lat.min()) / side) + 99, int((lon.max() - left) / side) + 99
    own = GeoBox((rows, cols), Affine(side, 0, left, 0, -side, top), "EPSG:4326")
    labels = np.arange(rows * cols, dtype="int32").reshape(1, rows, cols)
    found = read_nearest(write_tif(tmp_path / "labels.tif", labels, own), tile)
    expected = labels[0, ((top - lat) / side).astype(int), ((lon - left) / side).astype(int)]
    assert (found != expected).mean() < 1 / 60
