"""Facts particular to PASTIS-HD and FLAIR #2."""

import json

import numpy as np
import pytest

from anysat.data.open import find_dataset, open_dataset
from anysat.data.world import World
from anysat.dates import day_numbers
from anysat.errors import MissingFileError, SourceError
from anysat.modalities import MODALITIES
from miniatures import copied, gap, index_of, miniature, samples_of

STORED_ORDERS = [
    ("pastis_hd", "s2", (11, 10, 128, 128), "B2 B3 B4 B5 B6 B7 B8 B8A B11 B12"),
    ("pastis_hd", "s1", (3, 3, 128, 128), "VV VH VV/VH"),
    ("pastis_hd", "s1-des", (2, 3, 128, 128), "VV VH"),
    ("pastis_hd", "spot", (3, 1280, 1280), "R G B"),
    ("flair", "s2", (5, 10, 26, 60), "B2 B3 B4 B5 B6 B7 B8 B8A B11 B12"),
    ("flair", "aerial-flair", (5, 512, 512), "R G B NIR elevation"),
]


@pytest.mark.parametrize(("name", "key", "shape", "bands"), STORED_ORDERS)
def test_stored_bands_are_known_by_name(name, key, shape, bands, tmp_path):
    """Band after band holds 1, 2, 3 … in the file."""
    dataset = samples_of(name, root=copied(name, tmp_path), modalities=[key])
    stored = np.ones(shape) * np.arange(1, shape[-3] + 1)[:, None, None]
    dataset.folder.write({key: stored}, **dataset.samples.row(0))
    values = dataset[0].observations[key].values
    middle = values.shape[-1] // 2
    indices = [index_of(key, band) for band in bands.split()]
    assert values.reshape(-1, *values.shape[-3:])[0, indices, middle, middle].tolist() == list(
        range(1, len(indices) + 1)
    )


# PASTIS-HD


def pastis_world(index):
    return World(0).tile(index, extent_m=1280.0, year=2019)


def test_pastis_series_is_read_as_the_world_showed_it():
    place = pastis_world(1)
    seen = samples_of("pastis_hd", modalities=["s2"])[1].observations["s2"]
    assert gap(seen, place.observe("s2", dates=place.dates("s2", 3))) < 0.51


def test_pastis_image_is_read_as_the_world_showed_it():
    seen = samples_of("pastis_hd", modalities=["spot"])[1].observations["spot"].values[:, 2::4, 2::4]
    assert np.abs(seen - pastis_world(1).observe("spot", gsd_m=4.0).values.clip(0, 255)).max() < 0.51


@pytest.mark.parametrize("key", ["s1", "s1-des"])
def test_pastis_radar_is_decibels_of_its_own_orbit(key):
    seen = samples_of("pastis_hd", modalities=[key])[1].observations[key]
    place = pastis_world(1)
    shown = place.observe(key, dates=place.dates(key, 3 if key == "s1" else 2)).in_units("dB")
    measured = np.isin(MODALITIES[key].band_names, ("VV", "VH"))
    both = (seen.valid & shown.valid)[:, measured]
    assert np.abs(seen.values - shown.values)[:, measured][both].max() < 0.02


def test_pastis_keeps_the_third_radar_band_as_stored():
    s1 = samples_of("pastis_hd", modalities=["s1"])[0].observations["s1"]
    difference = s1.values[:, 0] - s1.values[:, 1]
    assert np.abs(s1.values[:, 2] - difference)[s1.valid[:, 2]].max() < 0.05


def test_pastis_dates_are_in_the_order_of_their_numbers():
    s2 = samples_of("pastis_hd", modalities=["s2"])[0].observations["s2"]
    np.testing.assert_array_equal(s2.dates, pastis_world(0).dates("s2", 11))


@pytest.mark.parametrize(("key", "name"), [("s2", "dates-S2"), ("s1", "dates-S1A"), ("s1-des", "dates-S1D")])
def test_pastis_series_have_their_own_dates(key, name):
    facts = json.loads((miniature("pastis_hd") / "metadata.geojson").read_text())["features"][1]["properties"]
    dates = samples_of("pastis_hd", modalities=[key])[1].observations[key].dates
    assert sorted(int(str(date).replace("-", "")) for date in dates) == sorted(facts[name].values())


def test_pastis_days_count_from_september_2018():
    dates = np.array(["2018-09-01", "2019-11-01"], "datetime64[D]")
    assert day_numbers(dates, find_dataset("pastis_hd").day_convention).tolist() == [0, 426]


def test_pastis_folds_can_be_asked_for_in_other_turns():
    wanted = samples_of("pastis_hd", "fold2+fold3+fold4")
    assert wanted.ids == ["10007", "10014", "10021"]


def test_pastis_official_turn_tests_on_fold_five():
    assert samples_of("pastis_hd", "test").ids == ["10028"]


def test_pastis_fill_of_sentinel_2_is_invalid():
    valid = samples_of("pastis_hd", modalities=["s2"])[0].observations["s2"].valid
    assert not valid[0, :, :2, :2].any()
    assert not valid[-1, :, -2:].any()
    assert valid[0, :, 10:20, 10:20].any()


def test_pastis_nan_of_radar_is_invalid():
    valid = samples_of("pastis_hd", modalities=["s1"])[0].observations["s1"].valid
    assert not valid[0, :, :3].any()
    assert valid[0, :, 3:].all()


def test_pastis_labels_of_a_tile_leave_out_background_and_void():
    tile = samples_of("pastis_hd", modalities=["s2"])[0]
    crops = set(np.unique(tile.targets["crops"]).tolist())
    assert {0, 19} < crops
    assert set((np.flatnonzero(tile.targets["crops_present"]) + 1).tolist()) == crops - {0, 19}


def test_pastis_georeference_is_that_of_the_spot_image():
    assert samples_of("pastis_hd")[2].geobox == pastis_world(2).geobox(1.0)


@pytest.mark.parametrize("modalities", [["s2"], ["spot"]])
def test_pastis_files_of_another_extent_are_refused(modalities, tmp_path):
    root = copied("pastis_hd", tmp_path)
    np.save(root / "ANNOTATIONS" / "TARGET_10000.npy", np.zeros((3, 64, 64), np.uint8))
    with pytest.raises(SourceError, match=r"TARGET_10000.*same ground"):
        samples_of("pastis_hd", root=root, modalities=modalities)[0]


def test_pastis_patches_of_a_fixture_of_the_layout_fit_the_table(shared_data):
    """Random numbers in the layout of PASTIS-R, 32 x 32 pixels."""
    folder = find_dataset("pastis_hd").folder(shared_data / "format_fixtures_synthetic" / "PASTIS-R")
    shapes = [folder.read(name, id=3).shape for name in ("s2", "s1", "s1-des", "crops")]
    assert shapes == [(9, 10, 32, 32), (8, 3, 32, 32), (4, 3, 32, 32), (3, 32, 32)]


def test_pastis_fixture_has_five_folds_and_its_missing_dates_are_said(shared_data):
    root = shared_data / "format_fixtures_synthetic" / "PASTIS-R"
    dataset = samples_of("pastis_hd", root=root, modalities=["s2"])
    assert dataset.samples.columns["split"].tolist() == [f"fold{fold}" for fold in range(1, 6)]
    with pytest.raises(SourceError, match=r"metadata.geojson: dates-S2 of patch 0"):
        dataset[0]


def test_pastis_dates_that_are_no_table_are_refused(tmp_path):
    root = copied("pastis_hd", tmp_path)
    document = json.loads((root / "metadata.geojson").read_text())
    document["features"][0]["properties"]["dates-S2"] = "20180903"
    (root / "metadata.geojson").write_text(json.dumps(document))
    with pytest.raises(SourceError, match=r"metadata.geojson: dates are '20180903'"):
        samples_of("pastis_hd", root=root)


# FLAIR #2


def flair_world(number):
    """The place of a photo: numbers run against the order of the places."""
    return World(0).tile(900 - int(number), extent_m=100.0, year=2020)


def flair_tiles(**options):
    dataset = samples_of("flair", **options)
    numbers = dataset.samples.columns["number"].tolist()
    return dict(zip(numbers, dataset, strict=True))


def test_flair_labels_are_matched_to_photos_by_name():
    for number, tile in flair_tiles(modalities=["aerial-flair"]).items():
        stored = 1 + (3 * flair_world(number).raster("land_cover", 0.2, 102.4)[6:-6, 6:-6]) % 18
        np.testing.assert_array_equal(tile.targets["land_cover"], np.where(stored > 12, 12, stored - 1))


def test_flair_photos_are_cut_at_their_centre_in_the_order_of_the_bands():
    for number, tile in flair_tiles(modalities=["aerial-flair"]).items():
        shown = flair_world(number).observe("aerial-flair", extent_m=102.4)
        photo = tile.observations["aerial-flair"]
        difference = np.abs(photo.values - shown.values[:, 6:-6, 6:-6].clip(0, 255))
        assert difference.max() < 0.51
        assert tile.geobox.shape == (500, 500)


def test_flair_series_is_the_window_around_the_photo():
    for number, tile in flair_tiles(modalities=["s2"]).items():
        place = flair_world(number)
        seen = tile.observations["s2"]
        shown = place.observe("s2", dates=seen.dates, extent_m=300.0).values[:, :, 10:20, 10:20]
        assert np.abs(seen.values - shown)[seen.valid].max() < 0.51


def test_flair_georeference_is_that_of_the_cut_photo():
    for number, tile in flair_tiles(modalities=["aerial-flair"]).items():
        assert tile.geobox == flair_world(number).geobox(0.2, 102.4)[6:-6, 6:-6]


def test_flair_window_over_the_edge_is_invalid_there_and_never_wrapped():
    dataset = samples_of("flair", modalities=["s2"])
    for row, tile in zip(dataset.samples, dataset, strict=True):
        outside = max(0, 5 - row["row_px"])
        assert not tile.observations["s2"].valid[:, :, :outside].any()
        assert tile.observations["s2"].valid[:, :, outside].any()
    assert dataset.samples.columns["row_px"].min() == 3


def test_flair_clouds_are_invalid_and_snow_is_kept(tmp_path):
    root = copied("flair", tmp_path)
    path = next(root.glob("flair_sen_train/D012_2019/*/sen/*_masks.npy"))
    masks = np.zeros_like(np.load(path))
    masks[0, 0], masks[1, 1], masks[2, 1] = 100, 50, 49
    np.save(path, masks)
    valid = samples_of("flair", "train", root, modalities=["s2"])[0].observations["s2"].valid
    assert valid.all(axis=(1, 2, 3)).tolist() == [True, False, True, True, True]
    assert not valid[1].any()


def test_flair_dates_are_in_the_product_names(tmp_path):
    root = copied("flair", tmp_path)
    path = next(root.glob("flair_sen_train/D012_2019/*/sen/*_products.txt"))
    path.write_text("".join(f"S2B_MSIL2A_2018020{day}T105221_N0206_R051_T31TEL\n" for day in range(1, 6)))
    dates = samples_of("flair", "train", root, modalities=["s2"])[0].observations["s2"].dates
    assert dates.astype(str).tolist() == [f"2018-02-0{day}" for day in range(1, 6)]


def test_flair_stored_numbers_outside_the_classes_are_ignored(tmp_path):
    root = copied("flair", tmp_path)
    dataset = samples_of("flair", root=root, modalities=["aerial-flair"])
    stored = np.zeros((1, 512, 512), np.uint8)
    stored[0, 6, 6:11] = [1, 12, 13, 19, 0]
    dataset.folder.write({"labels": stored}, **dataset.samples.row(0))
    targets = dataset[0].targets
    assert targets["land_cover"][0, :5].tolist() == [0, 11, 12, 12, 12]
    assert np.flatnonzero(targets["land_cover_present"]).tolist() == [0, 11]


def test_flair_validates_on_the_domains_of_the_baseline_and_tests_in_the_test_folders():
    columns = samples_of("flair").samples.columns
    found = set(zip(columns["part"].tolist(), columns["domain"].tolist(), columns["split"].tolist(), strict=True))
    assert found == {("train", "D012_2019", "train"), ("train", "D004_2021", "val"), ("test", "D064_2021", "test")}


def test_flair_list_of_domains_is_used_where_it_lies(tmp_path):
    root = copied("flair", tmp_path)
    (root / "splits.json").write_text(json.dumps({"val": ["D012_2019"], "train": ["D004_2021"], "test": ["D064_2021"]}))
    assert set(samples_of("flair", "val", root).samples.columns["domain"]) == {"D012_2019"}


def test_flair_list_with_another_split_is_refused(tmp_path):
    root = copied("flair", tmp_path)
    (root / "splits.json").write_text(json.dumps({"validation": ["D012_2019"]}))
    with pytest.raises(SourceError, match=r"splits.json.*'validation'"):
        samples_of("flair", root=root)


def test_flair_holds_out_whole_domains_where_the_baseline_has_none(tmp_path):
    for number in range(40):
        photo = tmp_path / "flair_aerial_train" / f"D{100 + number // 2}_2020" / f"Z{number}_UU" / "img"
        photo.mkdir(parents=True)
        (photo / f"IMG_{number:06d}.tif").touch()
    samples = samples_of("flair", root=tmp_path).samples
    held_out, kept = (set(samples.of(split).columns["domain"].tolist()) for split in ("val", "train"))
    assert not held_out & kept
    assert 1 <= len(held_out) <= 8


def test_flair_photos_are_read_without_the_file_of_centres(tmp_path):
    root = copied("flair", tmp_path)
    (root / "flair-2_centroids_sp_to_patch.json").unlink()
    assert samples_of("flair", root=root, modalities=["aerial-flair"])[0].observations
    with pytest.raises(MissingFileError, match=r"centroids_sp_to_patch.json.*no georeference"):
        samples_of("flair", root=root)[0]


def test_flair_photo_without_a_centre_is_named(tmp_path):
    root = copied("flair", tmp_path)
    path = root / "flair-2_centroids_sp_to_patch.json"
    path.write_text(json.dumps({"IMG_000900.tif": [15, 15]}))
    with pytest.raises(SourceError, match=r"place of IMG_\d{6}.tif is None"):
        samples_of("flair", root=root)


def test_flair_centre_outside_the_array_is_refused(tmp_path):
    root = copied("flair", tmp_path)
    path = root / "flair-2_centroids_sp_to_patch.json"
    path.write_text(json.dumps({name: [400, 15] for name in json.loads(path.read_text())}))
    with pytest.raises(SourceError, match=r"outside \(\d+, \d+\) pixels"):
        samples_of("flair", root=root)[0]


@pytest.mark.parametrize(
    ("name", "photo", "side_px"), [("flair", "aerial-flair", 500), ("treesatai_ts", "aerial", 300)]
)
def test_for_training_a_photo_is_cut_at_a_place_drawn_anew_and_the_series_stays(name, photo, side_px):
    tiles = open_dataset(name, miniature(name), "all")
    middle, drawn = tiles[0], [tiles.drawn(0, np.random.default_rng(seed)) for seed in range(60)]
    assert {tile.observations[photo].shape_px for tile in drawn} == {(side_px, side_px)}
    assert all(np.array_equal(tile.observations["s2"].values, middle.observations["s2"].values) for tile in drawn)
    assert all((tile.id, tile.dataset) == (middle.id, name) for tile in drawn)
    free = tiles.folder.read(photo, **tiles.samples.row(0)).shape[-1] - side_px
    corners = [_corner(tiles, tile, photo) for tile in drawn]
    for axis in zip(*corners, strict=True):
        assert min(axis) == 0
        assert max(axis) == free
    again = tiles.drawn(0, np.random.default_rng(3))
    assert np.array_equal(again.observations[photo].values, drawn[3].observations[photo].values)


def _corner(tiles, tile, photo):
    """Where a tile begins in its photo, found by its georeference; its pixels, and labels, are those of that place."""
    whole = tiles.folder.geobox(photo, **tiles.samples.row(0))
    col, row = (round(number) for number in ~whole.affine @ (tile.geobox.affine @ (0, 0)))
    pixels = tiles.folder.read(photo, **tiles.samples.row(0))
    rows, cols = (slice(start, start + side) for start, side in zip((row, col), tile.geobox.shape, strict=True))
    seen = tile.observations[photo]
    assert np.array_equal(seen.values[0], pixels[0, rows, cols])
    if "land_cover" in tile.targets:
        stored = tiles.folder.read("labels", **tiles.samples.row(0))[0, rows, cols].astype(int)
        known = (stored >= 1) & (stored <= 12)
        assert np.array_equal(tile.targets["land_cover"][known], stored[known] - 1)
    return row, col
