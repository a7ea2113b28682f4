"""So2Sat and BioMassters: which numbers in their files mean what, and that nothing is loaded whole."""

from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
import rasterio

from anysat.data.datasets import biomassters, so2sat
from anysat.data.files import write_file
from anysat.data.layout import DatasetFolder
from anysat.data.open import find_dataset, open_dataset
from anysat.errors import MissingFileError, SourceError
from miniatures import copied, miniature

FIXTURES = "format_fixtures_synthetic"
S2 = ["B2", "B3", "B4", "B5", "B6", "B7", "B8", "B8A", "B11", "B12"]


def _so2sat(root: Path, count=2) -> dict[str, np.ndarray]:
    """Three files whose values all differ; returns those of the training file."""
    generator = np.random.default_rng(0)
    for part in ("training", "validation", "testing"):
        written = {
            "sen1": generator.uniform(0.1, 1, (count, 32, 32, 8)),
            "sen2": generator.uniform(0, 1, (count, 32, 32, 10)),
            "label": np.eye(17)[generator.integers(0, 17, count)],
        }
        write_file(root / f"{part}.h5", written)
        if part == "training":
            training = written
    return training


def test_so2sat_radar_is_the_filtered_intensities_vv_then_vh_not_the_complex_parts(tmp_path):
    stored = _so2sat(tmp_path)["sen1"][1]
    s1 = open_dataset("so2sat", tmp_path)[1].observations["s1"]
    np.testing.assert_allclose(s1.values[0, :2], np.stack([stored[..., 5], stored[..., 4]]), rtol=1e-6)
    assert s1.units == ("linear", "linear", "ratio")


def test_so2sat_rows_are_rows_and_columns_are_columns(tmp_path):
    stored = _so2sat(tmp_path)["sen2"][0]
    s2 = open_dataset("so2sat", tmp_path)[0].observations["s2"]
    assert s2.values[0, 2, 3, 20] == np.float32(stored[3, 20, 2])


def test_so2sat_optical_values_are_reflectance_in_the_model_s_band_order(tmp_path):
    stored = _so2sat(tmp_path)["sen2"][0]
    s2 = open_dataset("so2sat", tmp_path)[0].observations["s2"]
    np.testing.assert_allclose(s2.values[0], stored.transpose(2, 0, 1), rtol=1e-6)
    assert set(s2.units) == {"reflectance"}


def test_so2sat_ids_name_the_file_and_the_row(tmp_path):
    _so2sat(tmp_path)
    assert open_dataset("so2sat", tmp_path, "test").ids == ["testing-000000", "testing-000001"]


def test_so2sat_reads_one_row_and_no_more(tmp_path, monkeypatch):
    _so2sat(tmp_path)
    dataset = open_dataset("so2sat", tmp_path)
    asked = []
    original = h5py.Dataset.__getitem__
    monkeypatch.setattr(
        h5py.Dataset, "__getitem__", lambda self, args, **k: (asked.append(args), original(self, args, **k))[1]
    )
    dataset[1]
    assert asked == [1, 1, 1]


@pytest.mark.parametrize("at_once", [1, 2, 100])
def test_so2sat_labels_read_in_pieces_are_those_of_the_tiles(tmp_path, monkeypatch, at_once):
    monkeypatch.setattr(so2sat, "_LABELS_AT_ONCE", at_once)
    _so2sat(tmp_path, count=5)
    dataset = open_dataset("so2sat", tmp_path, "all").take([14, 3, 0, 9, 4])
    assert dataset.labels().tolist() == [int(tile.targets["lcz"]) for tile in dataset]


def test_so2sat_refuses_a_label_that_is_not_one_zone(tmp_path):
    _so2sat(tmp_path)
    with h5py.File(tmp_path / "training.h5", "r+") as file:
        file["label"][1] = 0
    with pytest.raises(SourceError, match=r"training.h5.*row 1 .*not one zone"):
        open_dataset("so2sat", tmp_path)[1]


@pytest.mark.parametrize("part", ["training", "validation", "testing"])
def test_so2sat_needs_the_file_of_the_split_that_is_opened_and_no_other(tmp_path, part):
    _so2sat(tmp_path)
    for other in {"training", "validation", "testing"} - {part}:
        (tmp_path / f"{other}.h5").unlink()
    split = {"training": "train", "validation": "val", "testing": "test"}[part]
    assert len(list(open_dataset("so2sat", tmp_path, split))) == len(open_dataset("so2sat", tmp_path, "all")) == 2


def test_so2sat_without_any_file_says_what_is_missing(tmp_path):
    with pytest.raises(MissingFileError, match=r"training\.h5 or validation\.h5 or testing\.h5"):
        open_dataset("so2sat", tmp_path)


def test_so2sat_layout_fits_the_layout_fixtures(shared_data):
    root = shared_data / FIXTURES / "So2Sat"
    tiles = list(open_dataset("so2sat", root, "all"))
    with h5py.File(root / "testing.h5") as file:
        assert int(tiles[-1].targets["lcz"]) == int(file["label"][-1].argmax())
        np.testing.assert_array_equal(tiles[-1].observations["s1"].values[0, 0], file["sen1"][-1, :, :, 5])


def _read(path: Path) -> np.ndarray:
    with rasterio.open(path) as file:
        return file.read()


@pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
def test_biomassters_radar_has_two_time_steps_a_month_ascending_first(tmp_path):
    root = miniature("biomassters")
    tile = open_dataset("biomassters", root, "all")[0]
    stored = _read(root / "train_features" / f"{tile.id}_S1_09.tif")
    s1 = tile.observations["s1"]
    np.testing.assert_array_equal(s1.values[2:, :2].reshape(4, 256, 256), stored)
    assert s1.units[:2] == ("dB", "dB")


def test_biomassters_month_00_is_september_and_09_is_june(tmp_path):
    s1 = open_dataset("biomassters", miniature("biomassters"), "all")[0].observations["s1"]
    assert [str(date)[5:] for date in s1.dates] == ["09-15", "09-15", "06-15", "06-15"]


def test_biomassters_months_that_are_missing_are_no_dates():
    dataset = open_dataset("biomassters", miniature("biomassters"), "all")
    counts = {len(tile.observations["s2"].dates) for tile in dataset}
    assert counts == {1, 2}


@pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
def test_biomassters_optical_bands_are_in_the_model_s_order_without_the_cloud_channel():
    root = miniature("biomassters")
    dataset = open_dataset("biomassters", root, "all", modalities=["s2"])
    stored = _read(root / "train_features" / f"{dataset.ids[0]}_S2_{dataset.samples.row(0)['s2']}.tif")
    clear = stored[10] < 50
    np.testing.assert_array_equal(dataset[0].observations["s2"].values[0][:, clear], stored[:10, clear])


@pytest.mark.parametrize(("percent", "is_valid"), [(49, True), (50, False), (100, False), (255, False)])
@pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
def test_biomassters_pixels_that_are_probably_cloud_are_invalid(tmp_path, percent, is_valid):
    root = copied("biomassters", tmp_path)
    dataset = open_dataset("biomassters", root, "all", modalities=["s2"])
    path = root / "train_features" / f"{dataset.ids[0]}_S2_{dataset.samples.row(0)['s2']}.tif"
    stored = _read(path)
    stored[-1] = 0
    stored[-1, 7, 11] = percent
    write_file(path, {None: stored})
    valid = dataset[0].observations["s2"].valid[0]
    assert valid[:, 7, 11].all() == valid[:, 7, 11].any() == is_valid
    assert valid.sum() == valid.size - (0 if is_valid else 10)


@pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
def test_biomassters_radar_fill_is_invalid_in_its_orbit_only(tmp_path):
    root = copied("biomassters", tmp_path)
    dataset = open_dataset("biomassters", root, "all", modalities=["s1"])
    path = root / "train_features" / f"{dataset.ids[0]}_S1_00.tif"
    stored = _read(path)
    stored[2:] = -9999
    write_file(path, {None: stored})
    valid = dataset[0].observations["s1"].valid
    assert [bool(step.any()) for step in valid] == [True, False, True, True]


@pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
def test_biomassters_target_is_the_raster_in_tonnes_per_hectare():
    root = miniature("biomassters")
    tile = open_dataset("biomassters", root, "all")[2]
    np.testing.assert_array_equal(tile.targets["biomass"], _read(root / "train_agbm" / f"{tile.id}_agbm.tif")[0])


def test_biomassters_official_test_chips_are_the_test_where_they_have_labels():
    root = miniature("biomassters")
    test = open_dataset("biomassters", root, "test")
    assert test.ids == [path.name[:8] for path in sorted((root / "test_agbm").iterdir())]


def test_biomassters_without_test_labels_holds_a_test_out_of_the_training_chips(tmp_path):
    rows = [
        {"filename": f"{chip:08x}_S1_00.tif", "chip_id": f"{chip:08x}", "satellite": "S1", "split": part}
        for part, chips in (("train", range(200)), ("test", range(200, 230)))
        for chip in chips
    ]
    write_file(tmp_path / "features_metadata.csv", {None: rows})
    samples = open_dataset("biomassters", tmp_path, "all").samples
    shares = {split: len(samples.of(split)) / len(samples) for split in ("train", "val", "test")}
    assert len(samples) == 200
    assert shares == pytest.approx({"train": 0.7, "val": 0.15, "test": 0.15}, abs=0.05)


def test_biomassters_lists_decide_in_the_training_layout():
    root = miniature("biomassters", "training")
    for split in ("train", "val", "test"):
        listed = (root / f"{split}_Data_list.csv").read_text().split()[1:]
        assert open_dataset("biomassters", root, split).ids == listed


def test_biomassters_chip_of_a_list_without_images_is_named(tmp_path):
    root = copied("biomassters", tmp_path, "training")
    with (root / "val_Data_list.csv").open("a") as file:
        file.write("deadbeef\n")
    with pytest.raises(SourceError, match=r"val_Data_list.csv: it names 'deadbeef'"):
        open_dataset("biomassters", root)


def test_biomassters_table_with_a_row_cut_short_is_refused(tmp_path):
    root = copied("biomassters", tmp_path)
    path = root / "biomassters_features_metadata.csv"
    path.write_text(path.read_text().rstrip().rpartition(",")[0])
    with pytest.raises(SourceError, match=r"row \d+ has fewer values"):
        open_dataset("biomassters", root)


def test_biomassters_layout_fits_the_layout_fixtures_but_for_their_size(shared_data, monkeypatch):
    monkeypatch.setattr(biomassters, "CLOUD_PERCENT", 40_000)  # the fixtures are random over all 16 bits
    root = shared_data / FIXTURES / "BioMassters"
    record = find_dataset("biomassters")
    small = [replace(e, shape=(e.shape[0], "row", "col") if e.shape else ()) for e in biomassters.PUBLISHED.entries]
    folder = DatasetFolder(root, replace(biomassters.PUBLISHED, entries=tuple(small)))
    assert record.folder(root).layout.name == "published"
    samples = record.list_samples(folder)
    assert samples.columns["id"].tolist() == ["0003d2eb", "000aa810"]
    tile = record.read_sample(folder, samples.row(0), record.modalities)
    s1, s2 = tile.observations["s1"], tile.observations["s2"]
    assert (len(s1.dates), len(s2.dates)) == (6, 2)
    np.testing.assert_array_equal(s1.values[5, 1], _read(root / "train_features" / "0003d2eb_S1_02.tif")[3])
    stored = _read(root / "train_features" / "0003d2eb_S2_02.tif")
    np.testing.assert_array_equal(s2.values[1], np.where(stored[10] < 40_000, stored[:10], 0))
    np.testing.assert_array_equal(tile.targets["biomass"], _read(root / "train_agbm" / "0003d2eb_agbm.tif")[0])


def test_biomassters_chip_of_a_list_without_radar_is_read(tmp_path):
    root = copied("biomassters", tmp_path, "training")
    tile = open_dataset("biomassters", root, "all")[0]
    for path in root.glob(f"*_features/{tile.id}_S1_*.tif"):
        path.unlink()
    assert set(open_dataset("biomassters", root, "all")[0].observations) == {"s2"}
