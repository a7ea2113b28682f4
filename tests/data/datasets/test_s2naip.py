"""S2NAIP-URBAN: what their files hold is what is read, and damage is named."""

import json
import shutil

import numpy as np
import pytest
import rasterio

from anysat.data.datasets import s2naip_urban
from anysat.data.files import write_file
from anysat.data.open import open_dataset
from anysat.data.world import World
from anysat.errors import MissingFileError, SourceError, UnknownNameError
from miniatures import copied, folder_of, miniature


def first(root, **options):
    return open_dataset("s2naip_urban", root, "all", **options)[0]


def stack_path(root, folder, suffix):
    return sorted((root / folder).glob(f"*{suffix}"))[0]


def overwritten(path, array):
    with rasterio.open(path) as file:
        profile = {**file.profile, "dtype": array.dtype.name, "count": len(array)}
    with rasterio.open(path, "w", **profile) as file:
        file.write(array)


STORED = {
    "s2": {"_8.tif": ("B2", "B3", "B4", "B8"), "_16.tif": ("B5", "B6", "B7", "B11", "B12", "B8A")},
    "s1": {".tif": ("VV", "VH")},
    "l8": {"_8.tif": ("B8",), "_16.tif": ("B1", "B2", "B3", "B4", "B5", "B6", "B7", "B9", "B10", "B11")},
}
FOLDERS = {"s2": "sentinel2", "s1": "sentinel1", "l8": "landsat"}


@pytest.mark.parametrize("key", ["s2", "s1", "l8"])
def test_every_layer_is_the_band_and_date_it_is_stored_as(tmp_path, key):
    """Each layer holds one number, 100 for each date plus one for each band of the model."""
    root = copied("s2naip_urban", tmp_path)
    names = [band.name for band in s2naip_urban.MODALITIES[key].bands]
    for suffix, bands in STORED[key].items():
        path = stack_path(root, FOLDERS[key], suffix)
        with rasterio.open(path) as file:
            shape, kind, dates = file.shape, file.dtypes[0], file.count // len(bands)
        numbers = [100 * (date + 1) + names.index(band) for date in range(dates) for band in bands]
        overwritten(path, np.ones((len(numbers), *shape), kind) * np.array(numbers, kind)[:, None, None])
    seen = first(root).observations[key]
    measured = [i for i, band in enumerate(seen.modality.bands) if band.ratio_of is None]
    assert seen.values.shape == (dates, len(names), 64, 64)
    for date in range(dates):
        for band in measured:
            np.testing.assert_allclose(seen.values[date, band], 100 * (date + 1) + band)


def test_values_above_32767_stay_what_they_are(tmp_path):
    root = copied("s2naip_urban", tmp_path)
    for suffix in ("_8.tif", "_16.tif"):
        path = stack_path(root, "landsat", suffix)
        with rasterio.open(path) as file:
            overwritten(path, np.full((file.count, *file.shape), 50_000, np.uint16))
    assert (first(root).observations["l8"].values == 50_000).all()


def test_bands_of_20_m_are_refined_between_their_pixel_centres(tmp_path):
    root = copied("s2naip_urban", tmp_path)
    path = stack_path(root, "sentinel2", "_16.tif")
    with rasterio.open(path) as file:
        ramp = np.broadcast_to(1000 + 10 * np.arange(32, dtype=np.uint16), (file.count, 32, 32))
    overwritten(path, np.array(ramp))
    seen = first(root).observations["s2"].values[0, 3, 20]
    np.testing.assert_allclose(seen[1:-1], 1000 + 10 * (np.arange(1, 63) + 0.5 - 1) / 2)
    np.testing.assert_allclose(seen[[0, -1]], [1000, 1310])


def test_a_missing_20_m_pixel_makes_invalid_all_it_touches_and_nothing_else(tmp_path):
    root = copied("s2naip_urban", tmp_path)
    path = stack_path(root, "sentinel2", "_16.tif")
    with rasterio.open(path) as file:
        values = np.full((file.count, 32, 32), 2000, np.uint16)
    values[:, 10, 10] = 0
    overwritten(path, values)
    seen = first(root).observations["s2"]
    invalid = ~seen.valid[0, 3]
    assert np.argwhere(invalid).min(axis=0).tolist() == [19, 19]
    assert np.argwhere(invalid).max(axis=0).tolist() == [22, 22]
    assert (seen.values[0, 3][~invalid] == 2000).all()


def test_a_photo_is_invalid_where_all_four_bands_are_zero(tmp_path):
    root = copied("s2naip_urban", tmp_path)
    path = stack_path(root, "naip", ".png")
    image = np.full((4, 512, 512), 90, np.uint8)
    image[:, :7], image[0, 7:9] = 0, 0
    write_file(path, {None: image})
    valid = first(root).observations["naip"].valid
    assert not valid[:, :7].any()
    assert valid[:, 7:].all()


def test_the_photo_has_red_first_and_infrared_last(tmp_path):
    root = copied("s2naip_urban", tmp_path)
    image = np.ones((4, 512, 512), np.uint8) * np.array([10, 20, 30, 40], np.uint8)[:, None, None]
    write_file(stack_path(root, "naip", ".png"), {None: image})
    seen = first(root).observations["naip"]
    assert {name: int(seen.values[i, 0, 0]) for i, name in enumerate(seen.modality.band_names)} == {
        "R": 10, "G": 20, "B": 30, "NIR": 40,
    }  # fmt: skip


def scene_rows(root, table):
    lines = (root / table).read_text().splitlines()
    return lines[0], lines[1:]


def test_dates_come_from_the_names_of_scenes(tmp_path):
    root = copied("s2naip_urban", tmp_path)
    zone, col, row = first(root).id.split("_")
    header, rows = scene_rows(root, "landsat.csv")
    kept = [line for line in rows if not line.startswith(f"{zone},{col},{row},")]
    kept += [f"{zone},{col},{row},0,LC09_L1TP_033033_20211130_20211201_02_T1",
             f"{zone},{col},{row},1,LC08_L1TP_033033_20200229_20201201_02_T1"]  # fmt: skip
    (root / "landsat.csv").write_text("\n".join([header, *kept]))
    assert first(root).observations["l8"].dates.astype(str).tolist() == ["2021-11-30", "2020-02-29"]


def test_the_offset_of_newer_processing_is_taken_off(tmp_path):
    root = copied("s2naip_urban", tmp_path)
    zone, col, row = first(root).id.split("_")
    before = first(root).observations["s2"]
    text = (root / "sentinel2.csv").read_text().splitlines()
    wanted = next(i for i, line in enumerate(text) if line.startswith(f"{zone},{col},{row},1,"))
    text[wanted] = text[wanted].replace("_N0209_", "_N0400_")
    (root / "sentinel2.csv").write_text("\n".join(text))
    after = first(root).observations["s2"]
    moved = (before.values - after.values)[:, 0]
    assert np.unique(moved[1][after.valid[1, 0]]).tolist() == [1000]
    assert not moved[[0, 2, 3]].any()


def test_processing_of_ones_own_carries_no_offset(tmp_path):
    root = copied("s2naip_urban", tmp_path)
    before = first(root).observations["s2"]
    path = root / "sentinel2.csv"
    path.write_text(path.read_text().replace("_N0209_", "_N9999_"))
    np.testing.assert_array_equal(first(root).observations["s2"].values, before.values)


def test_a_tile_whose_photo_is_missing_is_not_passed_over(tmp_path):
    root = copied("s2naip_urban", tmp_path)
    photo = sorted((root / "naip").glob("*.png"))[0]
    photo.unlink()
    with pytest.raises(MissingFileError, match=photo.name):
        list(open_dataset("s2naip_urban", root, "all"))


def test_a_series_of_another_length_than_its_scenes_is_named(tmp_path):
    root = copied("s2naip_urban", tmp_path)
    path = stack_path(root, "sentinel1", ".tif")
    with rasterio.open(path) as file:
        overwritten(path, file.read()[:3])
    with pytest.raises(SourceError, match=f"{path.name}: it has 3 layers; expected 2 images of 2 bands"):
        first(root)


def test_a_series_without_scenes_is_absent(tmp_path):
    root = copied("s2naip_urban", tmp_path)
    (root / "sentinel1.csv").write_text("projection,col,row,index,scene\n")
    assert set(first(root).observations) == {"naip", "s2", "l8"}


@pytest.mark.parametrize("table", ["sentinel2.csv", "sentinel1.csv", "landsat.csv"])
def test_a_missing_table_of_scenes_is_named(tmp_path, table):
    root = copied("s2naip_urban", tmp_path)
    (root / table).unlink()
    with pytest.raises(MissingFileError, match=table):
        open_dataset("s2naip_urban", root, layout="published")


def test_scenes_out_of_order_are_refused(tmp_path):
    root = copied("s2naip_urban", tmp_path)
    header, rows = scene_rows(root, "sentinel2.csv")
    (root / "sentinel2.csv").write_text("\n".join([header, rows[1], rows[0], *rows[2:]]))
    with pytest.raises(SourceError, match=r"sentinel2.csv: image 1 of tile .* is out of order"):
        open_dataset("s2naip_urban", root)


def test_a_scene_without_a_date_is_named(tmp_path):
    root = copied("s2naip_urban", tmp_path)
    header, rows = scene_rows(root, "sentinel2.csv")
    (root / "sentinel2.csv").write_text("\n".join([header, rows[0].rsplit(",", 1)[0] + ",S2A_nothing", *rows[1:]]))
    with pytest.raises(SourceError, match=r"sentinel2.csv: a row is .*S2A_nothing"):
        open_dataset("s2naip_urban", root)


def test_a_tile_lies_where_its_name_says():
    """The example of the dataset's card: 32612_960_-6049 spans 614400, 3871360 to 615040, 3870720."""
    box = s2naip_urban._geobox(32612, 960, -6049)
    assert box.crs.to_epsg() == 32612
    assert tuple(box.boundingbox) == (614400, 3870720, 615040, 3871360)


def test_a_photo_whose_name_is_no_place_is_refused(tmp_path):
    root = copied("s2naip_urban", tmp_path)
    stack_path(root, "naip", ".png").rename(root / "naip/denver.png")
    with pytest.raises(SourceError, match=r"denver.png: its name is not a place; expected EPSG_COLUMN_ROW"):
        open_dataset("s2naip_urban", root)


def test_neighbours_stay_in_one_split_and_zones_are_told_apart(tmp_path):
    folder = folder_of("s2naip_urban", tmp_path)
    (tmp_path / "naip").mkdir()
    for zone in (32611, 32612):
        for col in range(0, 640, 16):
            for row in (-6016, -6015):
                (tmp_path / f"naip/{zone}_{col}_{row}.png").touch()
    for table in ("sentinel2.csv", "sentinel1.csv", "landsat.csv"):
        (tmp_path / table).write_text("projection,col,row,index,scene\n")
    samples = s2naip_urban.list_samples(folder)
    split_of = dict(zip(samples.columns["id"].tolist(), samples.columns["split"].tolist(), strict=True))
    for zone in (32611, 32612):
        for col in range(0, 640, 32):
            assert len({split_of[f"{zone}_{col + x}_{row}"] for x in (0, 16) for row in (-6016, -6015)}) == 1
    first_zone, second_zone = (
        [split_of[f"{zone}_{col}_-6016"] for col in range(0, 640, 32)] for zone in (32611, 32612)
    )
    assert first_zone != second_zone
    assert set(split_of.values()) == {"train", "val", "test"}


def test_the_map_is_drawn_only_when_asked_for(tmp_path):
    root = copied("s2naip_urban", tmp_path)
    shutil.rmtree(root / "openstreetmap")
    assert first(root, targets=()).targets == {}
    with pytest.raises(MissingFileError, match="geojson"):
        first(root)


def test_targets_not_asked_for_are_left_out_of_any_dataset():
    root = miniature("timesen2crop")
    assert open_dataset("timesen2crop", root, "all", targets=[])[0].targets == {}
    assert set(open_dataset("timesen2crop", root, "all", targets=["crop"])[0].targets) == {"crop"}
    with pytest.raises(UnknownNameError, match="unknown target of timesen2crop 'crops'; closest: crop"):
        open_dataset("timesen2crop", root, "all", targets=["crops"])


def drawn(*shapes):
    geometries = [{"type": kind, "coordinates": coordinates} for kind, coordinates, _ in shapes]
    return s2naip_urban.rasterise(geometries, np.array([number for *_, number in shapes], np.int64))


def square(left, top, side):
    right, bottom = left + side, top + side
    return [[[left, top], [right, top], [right, bottom], [left, bottom], [left, top]]]


def test_an_area_covers_columns_from_the_left_and_rows_from_the_top():
    found = drawn(("Polygon", square(100, 20, 5), 4))
    assert (found[20:25, 100:105] == 4).all()
    assert np.count_nonzero(found) == 25


def test_a_line_is_two_pixels_wide_and_a_point_has_a_radius_of_one():
    found = drawn(("LineString", [[50, 30], [150, 30]], 2), ("Point", [300, 300], 3))
    assert (found[29:31, 50:150] == 2).all()
    assert np.count_nonzero(found == 2) - 200 in range(5)  # the round ends
    assert np.argwhere(found == 3).tolist() == [[299, 299], [299, 300], [300, 299], [300, 300]]


def test_where_features_overlap_the_lowest_class_is_seen_whatever_their_order():
    shapes = [
        ("Polygon", square(0, 0, 30), 5),
        ("Polygon", square(10, 10, 10), 1),
        ("LineString", [[0, 15], [40, 15]], 2),
    ]
    found = drawn(*shapes)
    np.testing.assert_array_equal(found, drawn(*shapes[::-1]))
    assert (found[15, 5], found[15, 15], found[25, 25]) == (2, 1, 5)


def test_parts_of_many_are_drawn_each():
    found = drawn(("MultiPolygon", [square(0, 0, 4), square(100, 100, 4)], 1), ("MultiPoint", [[50, 50], [60, 60]], 3))
    assert np.count_nonzero(found == 1) == 32
    assert np.count_nonzero(found == 3) == 8


def test_nothing_mapped_gives_an_empty_map(tmp_path):
    root = copied("s2naip_urban", tmp_path)
    path = root / f"openstreetmap/{first(root).id}.geojson"
    for document in ({"type": "FeatureCollection", "features": []}, {}):
        path.write_text(json.dumps(document))
        assert not first(root).targets["osm"].any()


def test_categories_fall_into_their_classes_and_unknown_ones_into_other(tmp_path):
    root = copied("s2naip_urban", tmp_path)
    names = ["building", "road", "highway", "power_plant", "river", "leisure", "gazebo"]
    features = [{"type": "Feature", "properties": {"category": name},
                 "geometry": {"type": "Polygon", "coordinates": square(20 * place, 0, 10)}}
                for place, name in enumerate(names)]  # fmt: skip
    (root / f"openstreetmap/{first(root).id}.geojson").write_text(json.dumps({"features": features}))
    assert first(root).targets["osm"][5, 5 : 20 * len(names) : 20].tolist() == [1, 2, 2, 3, 4, 5, 5]


def test_a_map_that_makes_no_sense_is_named(tmp_path):
    root = copied("s2naip_urban", tmp_path)
    path = root / f"openstreetmap/{first(root).id}.geojson"
    for feature in ({"geometry": {"type": "Blob"}, "properties": {"category": "road"}}, {"geometry": square(0, 0, 1)}):
        path.write_text(json.dumps({"features": [feature]}))
        with pytest.raises(SourceError, match=f"{path.name}: it cannot be understood"):
            first(root)


def test_lists_of_the_training_layout_give_splits_and_dates(tmp_path):
    root = copied("s2naip_urban", tmp_path, "training")
    table = json.loads((root / "val_dict.json").read_text())
    tile = open_dataset("s2naip_urban", root, "val")[0]
    assert tile.id == table["name"][0]
    assert [str(date).replace("-", "") for date in tile.observations["s2"].dates] == table["s2_dates"][0]
    numbered = {name: {str(i): value for i, value in enumerate(column)} for name, column in table.items()}
    numbered["s2_dates"]["0"] = [int(word) for word in numbered["s2_dates"]["0"]]
    (root / "val_dict.json").write_text(json.dumps(numbered))
    again = open_dataset("s2naip_urban", root, "val")[0]
    np.testing.assert_array_equal(again.observations["s2"].dates, tile.observations["s2"].dates)


def test_dates_of_the_training_layout_tell_which_images_carry_an_offset(tmp_path):
    root = copied("s2naip_urban", tmp_path, "training")
    before = open_dataset("s2naip_urban", root, "val")[0].observations["s2"]
    table = json.loads((root / "val_dict.json").read_text())
    table["s2_dates"][0][1:3] = ["20220124", "20220125"]
    (root / "val_dict.json").write_text(json.dumps(table))
    after = open_dataset("s2naip_urban", root, "val")[0].observations["s2"]
    moved = (before.values - after.values).transpose(1, 0, 2, 3)[0]
    assert np.unique(moved[2][after.valid[2, 0]]).tolist() == [1000]
    assert not moved[[0, 1, 3]].any()


def test_a_list_without_a_column_is_named(tmp_path):
    root = copied("s2naip_urban", tmp_path, "training")
    (root / "val_dict.json").write_text(json.dumps({"name": ["x"], "s1_dates": [[]]}))
    with pytest.raises(SourceError, match=r"val_dict.json: .*s2_dates"):
        open_dataset("s2naip_urban", root)


def test_s2naip_shows_what_the_world_showed():
    root = miniature("s2naip_urban", "training")
    seen = open_dataset("s2naip_urban", root, "train")[0].observations
    tile = World(0).tile(0, extent_m=640.0, year=2020)
    shown = tile.observe("s2", dates=seen["s2"].dates)
    both = seen["s2"].valid & shown.valid
    fine = [0, 1, 2, 6]
    np.testing.assert_allclose(
        seen["s2"].values[:, fine][both[:, fine]], shown.values[:, fine][both[:, fine]], atol=0.51
    )
    radar = tile.observe("s1", dates=seen["s1"].dates)
    np.testing.assert_allclose(seen["s1"].values[:, :2], np.where(radar.valid, radar.values, 0)[:, :2], atol=1e-4)
