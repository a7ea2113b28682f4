"""Seeded corruptions of datasets on disk, each found under its right name; and none on clean and on real data."""

import json
import shutil
from pathlib import Path

import h5py
import numpy as np
import pytest
import rasterio
from affine import Affine

from anysat.data.check import CHECKS, check_dataset, spread_choice
from anysat.data.check.dates import first_date
from anysat.data.files import read_file, write_file
from anysat.data.open import find_dataset, open_dataset
from anysat.errors import InputError, MissingFileError
from anysat.modalities import MODALITIES
from miniatures import LAYOUTS, TILES, copied, miniature

S2 = ("B2", "B3", "B4", "B5", "B6", "B7", "B8", "B8A", "B11", "B12")


def found(name, root, **options):
    return {finding.kind for finding in check_dataset(name, root, **options).findings}


def edit_hdf5(path, key, change):
    with h5py.File(path, "r+") as file:
        value = change(file[key][()])
        del file[key]
        file[key] = value


def edit_series(root, key, change):
    for path in sorted((root / "sentinel-ts").glob("*.h5")):
        edit_hdf5(path, key, change)


def edit_rasters(root, pattern, change):
    paths = sorted(root.glob(pattern))
    assert paths
    for path in paths:
        with rasterio.open(path) as file:
            values, profile = file.read(), file.profile
        values = change(values)
        profile.update(dtype=values.dtype.name, count=len(values), height=values.shape[1], width=values.shape[2])
        with rasterio.open(path, "w", **profile) as file:
            file.write(values)


def exchanged(first, second, axis=1):
    def change(values):
        order = np.arange(values.shape[axis])
        order[[first, second]] = second, first
        return np.take(values, order, axis)

    return change


def with_band(index, make, axis=1):
    def change(values):
        values = np.moveaxis(values.copy(), axis, 0)
        values[index] = make(values)
        return np.moveaxis(values, 0, axis)

    return change


def products_of(change):
    return lambda products: np.array([change(str(product, "utf-8")) for product in products]).astype(bytes)


def first_of(root, pattern):
    return sorted(root.glob(pattern))[0]


def photo_is_missing(root, rng):
    first_of(root, "aerial/*.tif").unlink()


def list_is_missing(root, rng):
    first_of(root, "train_filenames.lst").unlink()


def series_is_truncated(root, rng):
    path = first_of(root, "sentinel-ts/*.h5")
    path.write_bytes(path.read_bytes()[: int(rng.integers(100, 2000))])


def series_is_in_double_precision(root, rng):
    edit_series(root, "sen-2-data", lambda values: values.astype(np.float64))


def bands_are_the_last_axis(root, rng):
    edit_series(root, "sen-2-data", lambda values: np.moveaxis(values, 1, -1))


def radar_bands_are_exchanged(root, rng):
    edit_series(root, "sen-1-asc-data", exchanged(0, 1))


def red_and_infrared_are_exchanged(root, rng):
    edit_series(root, "sen-2-data", exchanged(S2.index("B4"), S2.index("B8")))


def red_edge_and_shortwave_are_exchanged(root, rng):
    edit_series(root, "sen-2-data", exchanged(S2.index("B6"), S2.index("B12")))


def photos_are_red_first(root, rng):
    edit_rasters(root, "aerial/*.tif", exchanged(0, 3, axis=0))


def radar_is_in_decibel(root, rng):
    edit_series(root, "sen-1-asc-data", lambda values: 10 * np.log10(np.maximum(values, 1e-4)))


def reflectance_is_below_one(root, rng):
    edit_series(root, "sen-2-data", lambda values: values / 1e4)


def values_are_standardised(root, rng):
    edit_series(root, "sen-2-data", lambda values: (values - values.mean()) / values.std())


def offset_is_left_in(root, rng):
    edit_series(root, "sen-2-data", lambda values: values + 1000)


def offset_is_left_in_one_tile(root, rng):
    paths = sorted((root / "sentinel-ts").glob("*.h5"))
    edit_hdf5(paths[int(rng.integers(len(paths)))], "sen-2-data", lambda values: values + 1000)


def offset_begins_in_june(root, rng):
    for path in sorted((root / "sentinel-ts").glob("*.h5")):
        (products,) = read_file(path, ["sen-2-products"])
        late = np.array([str(product, "utf-8").split("_")[2][4:8] >= "0601" for product in products])
        edit_hdf5(path, "sen-2-data", lambda values, late=late: values + 1000 * late[:, None, None, None])


def a_band_is_constant(root, rng):
    edit_series(root, "sen-2-data", with_band(S2.index("B5"), lambda values: 500))


def a_band_is_nan(root, rng):
    edit_series(root, "sen-2-data", with_band(S2.index("B11"), lambda values: np.nan))


def a_band_is_written_twice(root, rng):
    edit_series(root, "sen-2-data", with_band(S2.index("B8A"), lambda values: values[S2.index("B8")]))


def every_third_date_is_zero(root, rng):
    def change(values):
        values[::3] = 0
        return values

    edit_series(root, "sen-1-des-data", change)


def most_values_are_nan(root, rng):
    def change(values):
        return np.where(rng.random(values.shape) < 0.7, np.nan, values).astype(np.float32)

    edit_series(root, "sen-1-des-data", change)


def one_tile_is_all_nan(root, rng):
    edit_hdf5(first_of(root, "sentinel-ts/*.h5"), "sen-1-asc-data", lambda values: np.full_like(values, np.nan))


def photos_are_clipped(root, rng):
    edit_rasters(root, "aerial/*.tif", lambda values: np.minimum(values.astype(int) * 3, 255).astype(np.uint8))


def dates_are_shuffled(root, rng):
    edit_series(root, "sen-2-products", rng.permutation)


def one_date_is_written_for_all(root, rng):
    edit_series(root, "sen-1-asc-products", lambda products: np.repeat(products[:1], len(products)))


def dates_are_before_the_launch(root, rng):
    edit_series(root, "sen-2-products", products_of(lambda product: product.replace("_2018", "_2008")))


def dates_are_in_the_future(root, rng):
    edit_series(root, "sen-2-products", products_of(lambda product: product.replace("_2018", "_2118")))


def a_date_has_day_zero(root, rng):
    edit_series(
        root, "sen-2-products", products_of(lambda product: product.replace(product.split("_")[2], "20180100T1"))
    )


def pixels_are_twice_as_large(root, rng):
    for path in root.glob("aerial/*.tif"):
        with rasterio.open(path, "r+") as file:
            file.transform = file.transform @ Affine.scale(2)


def a_test_tile_is_copied_into_training(root, rng):
    (name,) = read_file(root / "test_filenames.lst")[0]
    stem = Path(name).stem
    shutil.copy(root / "aerial" / name, root / "aerial/Copy_1.tif")
    shutil.copy(first_of(root, f"sentinel-ts/{stem}_*.h5"), root / "sentinel-ts/Copy_1_2018.h5")
    with (root / "train_filenames.lst").open("a") as file:
        file.write("Copy_1.tif\n")
    path = root / "labels/TreeSatBA_v9_60m_multi_labels.json"
    labels = json.loads(path.read_text())
    path.write_text(json.dumps({**labels, "Copy_1.tif": labels[name]}))


def a_test_tile_is_listed_in_training(root, rng):
    with (root / "train_filenames.lst").open("a") as file:
        file.write((root / "test_filenames.lst").read_text())


def edit_arrays(root, pattern, change):
    paths = sorted(root.glob(pattern))
    assert paths
    for path in paths:
        write_file(path, {None: change(read_file(path)[0])})


def decibel_is_linear(root, rng):
    keys = ["image", "image_dates", "label", "label_dates"]
    for path in root.glob("Samples/*"):
        values = dict(zip(keys, read_file(path, keys), strict=True))
        write_file(path, {**values, "image": (10 ** (values["image"] / 10)).astype(np.float32)})


def reflectance_is_times_ten_thousand(root, rng):
    for path in root.glob("*.h5"):
        edit_hdf5(path, "sen2", lambda values: values * 1e4)


def every_sample_has_one_class(root, rng):
    for path in root.glob("*.h5"):
        edit_hdf5(path, "label", lambda values: np.eye(values.shape[1], dtype=values.dtype)[np.full(len(values), 4)])


def biomass_is_too_large(root, rng):
    edit_arrays(root, "train_agbm/*.tif", lambda values: values * 1e6)


CORRUPTIONS = [
    ("treesatai_ts", photo_is_missing, "missing-file"),
    ("treesatai_ts", list_is_missing, "missing-file"),
    ("treesatai_ts", series_is_truncated, "unreadable-file"),
    ("treesatai_ts", series_is_in_double_precision, "wrong-type"),
    ("treesatai_ts", bands_are_the_last_axis, "wrong-shape"),
    ("treesatai_ts", radar_bands_are_exchanged, "swapped-bands"),
    ("treesatai_ts", red_and_infrared_are_exchanged, "swapped-bands"),
    ("treesatai_ts", red_edge_and_shortwave_are_exchanged, "swapped-bands"),
    ("treesatai_ts", photos_are_red_first, "swapped-bands"),
    ("treesatai_ts", radar_is_in_decibel, "wrong-unit"),
    ("treesatai_ts", reflectance_is_below_one, "wrong-unit"),
    ("treesatai_ts", values_are_standardised, "wrong-unit"),
    ("treesatai_ts", offset_is_left_in, "raised-level"),
    ("treesatai_ts", offset_is_left_in_one_tile, "raised-level"),
    ("treesatai_ts", offset_begins_in_june, "offset"),
    ("treesatai_ts", a_band_is_constant, "constant-band"),
    ("treesatai_ts", every_third_date_is_zero, "constant-band"),
    ("treesatai_ts", a_band_is_nan, "empty-band"),
    ("treesatai_ts", a_band_is_written_twice, "duplicated-band"),
    ("treesatai_ts", most_values_are_nan, "nan"),
    ("treesatai_ts", one_tile_is_all_nan, "nothing-valid"),
    ("treesatai_ts", photos_are_clipped, "saturated-band"),
    ("treesatai_ts", dates_are_shuffled, "unordered-dates"),
    ("treesatai_ts", one_date_is_written_for_all, "repeated-dates"),
    ("treesatai_ts", dates_are_before_the_launch, "impossible-date"),
    ("treesatai_ts", dates_are_in_the_future, "impossible-date"),
    ("treesatai_ts", a_date_has_day_zero, "unreadable-sample"),
    ("treesatai_ts", pixels_are_twice_as_large, "wrong-extent"),
    ("treesatai_ts", a_test_tile_is_copied_into_training, "repeated-tile"),
    ("treesatai_ts", a_test_tile_is_copied_into_training, "leaked-place"),
    ("treesatai_ts", a_test_tile_is_listed_in_training, "leaked-name"),
    ("bradd_s1ts", decibel_is_linear, "wrong-unit"),
    ("so2sat", reflectance_is_times_ten_thousand, "wrong-unit"),
    ("so2sat", every_sample_has_one_class, "one-class"),
    ("biomassters", biomass_is_too_large, "label-range"),
]


@pytest.mark.parametrize(("name", "corrupt", "kind"), CORRUPTIONS)
def test_a_corrupted_dataset_is_found_out(name, corrupt, kind, tmp_path):
    root = tmp_path / "copy"
    shutil.copytree(miniature(name, tiles=2 if name == "biomassters" else TILES), root)
    corrupt(root, np.random.default_rng(1))
    assert kind in found(name, root)


@pytest.mark.parametrize(("name", "layout"), LAYOUTS)
def test_nothing_is_found_on_a_clean_miniature(name, layout):
    assert check_dataset(name, miniature(name, layout), layout=layout).findings == ()


def test_a_split_without_files_is_noted(tmp_path):
    root = copied("so2sat", tmp_path)
    (root / "validation.h5").unlink()
    assert check_dataset("so2sat", root).notes == ("no sample of the split val",)
    assert check_dataset("so2sat", root, "train").notes == ()


@pytest.fixture
def real_tiles(shared_data, tmp_path):
    """The real TreeSatAI-TS tiles in the published layout."""
    source = shared_data / "treesatai_ts"
    (tmp_path / "labels").mkdir()
    for name in ("aerial", "sentinel-ts"):
        (tmp_path / name).symlink_to(source / name)
    labels = "labels/TreeSatBA_v9_60m_multi_labels.json"
    shutil.copy(source / labels, tmp_path / labels)
    photos = sorted(path.name for path in (source / "aerial").glob("*.tif"))
    (tmp_path / "train_filenames.lst").write_text("\n".join(photos[:-1]))
    (tmp_path / "test_filenames.lst").write_text(photos[-1])
    return tmp_path


def test_nothing_is_found_on_real_tiles(real_tiles):
    assert check_dataset("treesatai_ts", real_tiles).findings == ()


def test_nothing_is_found_on_a_real_chip(shared_data, tmp_path):
    hand, lists = tmp_path / "data/flood_events/HandLabeled", tmp_path / "splits/flood_handlabeled"
    for folder in (hand, lists):
        folder.mkdir(parents=True)
    for name in ("S1Hand", "S2Hand", "LabelHand"):
        (hand / name).symlink_to(shared_data / "sen1floods11" / name)
    shutil.copy(shared_data / "sen1floods11/Sen1Floods11_Metadata.geojson", tmp_path)
    for split, chip in (("train", "Spain_7370579"), ("valid", "Spain_1"), ("test", "Spain_2")):
        (lists / f"flood_{split}_data.csv").write_text(f"{chip}_S1Hand.tif,{chip}_LabelHand.tif\n")
    assert check_dataset("sen1floods11", tmp_path, "train").findings == ()


def test_exchanged_bands_of_real_tiles_are_named(real_tiles, tmp_path):
    root = tmp_path / "changed"
    shutil.copytree(real_tiles, root)
    edit_series(root, "sen-2-data", exchanged(S2.index("B4"), S2.index("B8")))
    edit_series(root, "sen-1-des-data", exchanged(0, 1))
    edit_rasters(root, "aerial/*.tif", exchanged(0, 3, axis=0))
    told = {f.where: f.message for f in check_dataset("treesatai_ts", root).findings if f.kind == "swapped-bands"}
    assert "B4 and B8 look exchanged" in told["s2"]
    assert "R and NIR look exchanged" in told["aerial"]


def test_one_fault_in_many_samples_is_one_finding_that_counts_them(tmp_path):
    root = copied("treesatai_ts", tmp_path)
    for path in root.glob("aerial/*.tif"):
        path.unlink()
    (finding,) = check_dataset("treesatai_ts", root).findings
    assert finding.count == 6
    assert finding.where.endswith(", and 3 more")
    assert "expected aerial, uint8 (4, 304, 304)" in finding.message


def test_a_finding_about_a_layout_nobody_has_seen_says_so(tmp_path):
    root = copied("treesatai_ts", tmp_path, "training")
    for path in root.glob("sentinel/*.h5"):
        edit_hdf5(path, "sen-2-data", lambda values: values.astype(np.float64))
    (finding,) = check_dataset("treesatai_ts", root).findings
    assert "layout 'training' was not checked against a real file" in finding.message


def test_samples_are_spread_over_the_table_and_every_split():
    samples = open_dataset("treesatai_ts", miniature("treesatai_ts"), "all").samples
    many = samples.take(np.arange(1000) % len(samples))
    many = many.with_columns(split=np.where(np.arange(1000) < 997, "train", "test"))
    chosen = spread_choice(many, 10, np.random.default_rng(0))
    assert len(chosen) in (10, 11)
    assert max(np.diff([index for index in chosen if index < 997])) < 250
    assert max(chosen) >= 997


def test_the_same_seed_reads_the_same_samples():
    samples = open_dataset("treesatai_ts", miniature("treesatai_ts"), "all").samples
    one, same, other = (spread_choice(samples, 3, np.random.default_rng(seed)) for seed in (5, 5, 6))
    assert one == same
    assert len(other) >= 3


def test_a_folder_without_the_dataset_is_a_mistake_in_the_call(tmp_path):
    with pytest.raises(MissingFileError, match="expected the folder of TreeSatAI-TS"):
        check_dataset("treesatai_ts", tmp_path)


def test_a_split_without_samples_is_a_mistake_in_the_call(tmp_path):
    root = copied("treesatai_ts", tmp_path)
    (root / "val_filenames.lst").write_text(read_file(root / "train_filenames.lst")[0][0])
    (root / "test_filenames.lst").write_text("\n")
    with pytest.raises(InputError, match="a split of treesatai_ts with samples"):
        check_dataset("treesatai_ts", root, "test")


def test_every_kind_of_finding_says_what_it_finds():
    for kind, check in CHECKS.items():
        assert check.severity in ("error", "warning"), kind
        assert len(check.about.split()) > 4, kind


@pytest.mark.parametrize("key", [key for key in MODALITIES if MODALITIES[key].is_temporal])
def test_every_series_has_a_sensor_with_a_launch(key):
    assert first_date(MODALITIES[key]) > np.datetime64("1990-01-01")


def test_every_corruption_is_of_a_known_kind():
    assert {kind for _, _, kind in CORRUPTIONS} <= set(CHECKS)
    assert find_dataset("treesatai_ts").name == "treesatai_ts"
