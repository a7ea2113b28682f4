"""Facts particular to SICKLE."""

import shutil

import numpy as np
import pytest

from anysat.data.layout import DatasetFolder
from anysat.data.open import find_dataset
from anysat.data.world import World
from anysat.errors import MissingFileError, SourceError
from anysat.modalities import MODALITIES
from miniatures import copied, gap, index_of, samples_of


def sickle_world(index):
    return World(0).tile(index, extent_m=320.0, year=2018)


@pytest.mark.parametrize(("key", "step"), [("s2", 0.01), ("s1", 1e-4)])
def test_sickle_is_read_as_the_world_showed_it(key, step):
    seen = samples_of("sickle", modalities=[key])[1].observations[key]
    assert gap(seen, sickle_world(1).observe(key, count=4, keep_clouds=True)) < step


def test_sickle_landsat_is_reflectance_and_kelvin_of_the_nearest_pixel():
    seen = samples_of("sickle", modalities=["l8"])[1].observations["l8"]
    shown = sickle_world(1).observe("l8", count=4, keep_clouds=True, gsd_m=30.0, extent_m=330.0)
    nearest = (np.arange(32) * 11 + 5) // 32
    difference = np.abs(seen.values - shown.values[..., nearest[:, None], nearest])
    assert difference[seen.valid].max() < 0.14  # half a number of the product is 0.1375
    assert seen.units[index_of("l8", "B10")] == "K"


def test_sickle_bands_are_matched_by_name_whatever_their_order(tmp_path):
    root = copied("sickle", tmp_path)
    for path in (root / "images" / "S2" / "npy" / "100").glob("*.npz"):
        names = ["B12", "B8A", "B8", "B11", "B9", "B7", "B6", "B5", "B4", "B3", "B2", "B1"]
        np.savez(path, **{name: np.full((32, 32), 100 + int(name[1:].rstrip("A")) + 50 * (name == "B8A"), np.float32)
                          for name in names})  # fmt: skip
    s2 = samples_of("sickle", root=root, modalities=["s2"])[0].observations["s2"]
    assert s2.values[0, :, 0, 0].tolist() == [102, 103, 104, 105, 106, 107, 108, 158, 111, 112]


def test_sickle_bands_of_landsat_that_are_not_there_are_invalid():
    l8 = samples_of("sickle", modalities=["l8"])[0].observations["l8"]
    names = np.array(MODALITIES["l8"].band_names)
    assert set(names[~l8.valid.any(axis=(0, 2, 3))]) == {"B8", "B9", "B11"}


def test_sickle_file_without_the_thermal_band_lacks_only_that():
    valid = samples_of("sickle", modalities=["l8"])[0].observations["l8"].valid.any(axis=(2, 3))
    thermal = index_of("l8", "B10")
    assert valid[:, thermal].tolist() == [True, True, True, False]
    assert valid[:, index_of("l8", "B1")].all()


@pytest.mark.parametrize("key", ["s2", "s1", "l8"])
def test_sickle_zeros_and_nan_are_invalid(key):
    valid = samples_of("sickle", modalities=[key])[0].observations[key].valid
    assert not valid[0, :, :2].any()
    assert valid[0, :, -1].any()


@pytest.mark.parametrize(
    ("sensor", "name"),
    [
        ("S2", "T44PLU_20190203T050211.npz"),
        ("S2", "20190203T050211_20190204T051211_T44PLU.npz"),
        ("S1", "S1A_IW_GRDH_1SDV_20190203T003045_20190204T003110_020036_02224F_1B2C.npz"),
        ("L8", "LC08_142053_20190203.npz"),
    ],
)
def test_sickle_dates_are_in_the_file_names(sensor, name, tmp_path):
    root = copied("sickle", tmp_path)
    home = root / "images" / sensor / "npy" / "100"
    first, *others = home.glob("*.npz")
    first.rename(home / name)
    for path in others:
        path.unlink()
    key = sensor.lower()
    dates = samples_of("sickle", root=root, modalities=[key])[0].observations[key].dates
    assert dates.astype(str).tolist() == ["2019-02-03"]


def test_sickle_file_without_a_date_is_named(tmp_path):
    root = copied("sickle", tmp_path)
    path = next((root / "images" / "L8" / "npy" / "100").glob("*.npz"))
    path.rename(path.with_name("LC08_scene.npz"))
    with pytest.raises(SourceError, match=r"LC08_scene.npz: no date"):
        samples_of("sickle", root=root)[0]


def test_sickle_sample_without_a_sensor_lacks_it_and_a_sensor_without_a_folder_is_named(tmp_path):
    root = copied("sickle", tmp_path)
    shutil.rmtree(root / "images" / "S1" / "npy" / "100")
    assert set(samples_of("sickle", root=root)[0].observations) == {"s2", "l8"}
    shutil.rmtree(root / "images" / "S1")
    with pytest.raises(MissingFileError, match=r"images/S1/npy: "):
        samples_of("sickle", root=root)[0]


@pytest.mark.parametrize(("key", "band"), [("s2", "B12"), ("s1", "VH")])
def test_sickle_file_without_the_last_band_lacks_only_that(key, band, tmp_path):
    root = copied("sickle", tmp_path)
    path = sorted((root / "images" / key.upper() / "npy" / "100").glob("*.npz"))[0]
    with np.load(path) as file:
        arrays = {name: file[name] for name in file.files if name != band}
    np.savez(path, **arrays)
    valid = samples_of("sickle", root=root, modalities=[key])[0].observations[key].valid.any(axis=(2, 3))
    assert valid[:, index_of(key, band)].sum() == len(valid) - 1
    assert valid[:, 0].all()


def write_table(root, rows):
    lines = ["UNIQUE_ID,PLOT_ID,SPLIT", *(",".join(map(str, row)) for row in rows)]
    (root / "sickle_dataset_tabular.csv").write_text("\n".join(lines) + "\n")


def test_sickle_is_never_tested_on_what_it_is_validated_on(tmp_path):
    write_table(tmp_path, [(i, i // 3, "val" if i >= 200 else "train") for i in range(300)])
    samples = samples_of("sickle", root=tmp_path).samples
    assert set(samples.of("test").columns["id"].astype(int)) == set(range(200, 300))
    plots = [set(samples.of(split).columns["plot"].tolist()) for split in ("train", "val")]
    assert all(plots)
    assert not plots[0] & plots[1]


def test_sickle_official_test_samples_are_test_only_where_they_have_a_mask(tmp_path):
    root = copied("sickle", tmp_path)
    write_table(root, [(i, i, "train") for i in range(40)] + [(100, 50, "test"), (901, 51, "val"), (902, 52, "test")])
    columns = samples_of("sickle", root=root).samples.columns
    found = dict(zip(columns["id"].tolist(), columns["split"].tolist(), strict=True))
    assert (found.pop("100"), found.pop("901")) == ("test", "test")
    assert set(found.values()) == {"train", "val"}
    assert "902" not in found


def test_sickle_unknown_split_is_refused(tmp_path):
    write_table(tmp_path, [(0, 0, "train"), (1, 1, "dev")])
    with pytest.raises(SourceError, match=r"sickle_dataset_tabular.csv.*dev"):
        samples_of("sickle", root=tmp_path)


def labelled(tmp_path, plot, crop, splits):
    """Labels of sample 100 where the mask's first row has these plots and crops."""
    root = copied("sickle", tmp_path)
    write_table(root, [(100 + i, 10 + i, split) for i, split in enumerate(splits)])
    mask = np.zeros((6, 32, 32), np.float32)
    mask[0, 0, : len(plot)], mask[1, 0, : len(crop)] = plot, crop
    DatasetFolder(root, find_dataset("sickle").layouts[0]).write({"masks": mask}, id=100)
    return samples_of("sickle", root=root, modalities=["s2"])[0].targets["paddy"]


def test_sickle_labels_are_paddy_other_crops_and_nothing_else(tmp_path):
    paddy = labelled(tmp_path, [10] * 6 + [0], [1, 2, 21, 0, -5, -999, 1], ["train", "test"])
    assert paddy[0, :7].tolist() == [0, 1, 1, -1, -1, -1, -1]
    assert (paddy[1:] == -1).all()


def test_sickle_plots_of_another_split_are_ignored(tmp_path):
    paddy = labelled(tmp_path, [10, 11, 12, 77], [1, 1, 1, 1], ["train", "test", "train"])
    assert paddy[0, :4].tolist() == [0, -1, 0, -1]


def test_sickle_arrays_of_another_side_are_brought_to_the_grid_by_the_nearest_pixel(tmp_path):
    root = copied("sickle", tmp_path)
    for path in (root / "images" / "S1" / "npy" / "100").glob("*.npz"):
        rows, cols = np.arange(64, dtype=np.float32)[:, None], np.arange(16, dtype=np.float32)
        np.savez(path, VV=-1 - (rows + 0 * cols), VH=-1 - (0 * rows + cols))
    s1 = samples_of("sickle", root=root, modalities=["s1"])[0].observations["s1"].values
    assert s1[0, 0, :, 0].tolist() == [-2.0 - 2 * row for row in range(32)]
    assert s1[0, 1, 0].tolist() == [-1.0 - col // 2 for col in range(32)]
