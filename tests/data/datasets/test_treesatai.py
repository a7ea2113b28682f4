"""Facts particular to TreeSatAI-TS, on real files and on its miniature."""

import json
import shutil

import h5py
import numpy as np
import pytest

from anysat.data.datasets.treesatai_ts import GENERA, MIN_AREA_FRAC
from anysat.data.open import open_dataset
from anysat.data.world import World
from anysat.errors import SourceError
from miniatures import copied, miniature


@pytest.fixture(scope="session")
def real_root(shared_data, tmp_path_factory):
    """A folder with the real tiles that are at hand, and the official lists cut to them."""
    root, source = tmp_path_factory.mktemp("treesatai"), shared_data / "treesatai_ts"
    for part in ("aerial", "sentinel-ts"):
        (root / part).symlink_to(source / part)
    (root / "labels").mkdir()
    shutil.copy(source / "labels" / "TreeSatBA_v9_60m_multi_labels.json", root / "labels")
    present = {path.name for path in (source / "aerial").glob("*.tif")}
    for split in ("train", "test"):
        names = (source / "labels" / f"{split}_filenames.lst").read_text().split()
        (root / f"{split}_filenames.lst").write_text("".join(f"{name}\n" for name in names if name in present))
    return root


@pytest.fixture
def copy(tmp_path):
    return copied("treesatai_ts", tmp_path)


def test_real_tiles_are_read_whole(real_root):
    tiles = list(open_dataset("treesatai_ts", real_root, "all"))
    assert len(tiles) == 5
    for tile in tiles:
        assert set(tile.observations) == {"aerial", "s2", "s1-asc", "s1-des"}
        assert tile.geobox.shape == (300, 300)
        assert "25832" in str(tile.geobox.crs)
        assert tile.targets["genera"].sum() >= 1


def test_real_photos_show_infrared_first(real_root):
    for tile in open_dataset("treesatai_ts", real_root, "all", modalities=["aerial"]):
        nir, green, _, red = tile.observations["aerial"].values.mean((1, 2))
        assert nir > 1.3 * max(green, red)  # forest


def test_real_clouds_are_masked(real_root):
    """What is left of a forest is darker in the blue than a cloud ever is."""
    for tile in open_dataset("treesatai_ts", real_root, "all", modalities=["s2"]):
        s2 = tile.observations["s2"]
        share = s2.valid.mean()
        assert 0.3 < share < 0.8
        assert np.median(s2.values[:, 0][s2.valid[:, 0]]) < 1500


def test_real_radar_is_linear_power_with_its_own_dates(real_root):
    tile = open_dataset("treesatai_ts", real_root, "all")[0]
    for key in ("s1-asc", "s1-des"):
        seen = tile.observations[key]
        assert set(seen.units) == {"linear"}
        assert 0 < np.median(seen.values[seen.valid]) < 1
        assert (np.diff(seen.dates).astype(int) >= 0).all()
    assert len(tile.observations["s1-asc"].dates) != len(tile.observations["s1-des"].dates)


def test_all_tiles_of_the_official_lists_have_a_place(shared_data, tmp_path):
    """50,379 labels, 45,336 + 5,043 names: those with a genus above the threshold, each in one split."""
    (tmp_path / "sentinel-ts").mkdir()
    shutil.copytree(shared_data / "treesatai_ts" / "labels", tmp_path / "labels")
    samples = open_dataset("treesatai_ts", tmp_path, "all").samples
    labels = json.loads((tmp_path / "labels" / "TreeSatBA_v9_60m_multi_labels.json").read_text())
    assert len(labels) == 50_379
    kept = {name.removesuffix(".tif") for name, found in labels.items() if any(a > MIN_AREA_FRAC for _, a in found)}
    assert set(samples.columns["id"].tolist()) == kept
    counts = {split: len(samples.of(split)) for split in ("train", "val", "test")}
    assert counts["test"] == 5_043 - sum(
        not any(a > MIN_AREA_FRAC for _, a in labels[name])
        for name in (tmp_path / "labels" / "test_filenames.lst").read_text().split()
    )
    assert abs(counts["val"] / (counts["train"] + counts["val"]) - 0.15) < 0.005
    assert {genus for row in samples.columns["genera"] for genus in row.split(",")} == set(GENERA)


def test_a_photo_shows_the_ground_of_the_series():
    tile = open_dataset("treesatai_ts", miniature("treesatai_ts"), "all")[0]
    place = World(0).tile(0, extent_m=60.0)
    assert tile.geobox.boundingbox == place.geobox(0.2).boundingbox


def test_the_validation_list_of_the_folder_counts(copy):
    names = (copy / "train_filenames.lst").read_text().split()
    (copy / "val_filenames.lst").write_text("".join(f"{name}\n" for name in names[:2]))
    assert open_dataset("treesatai_ts", copy, "val").ids == [name.removesuffix(".tif") for name in names[:2]]


def test_the_offset_of_newer_baselines_is_taken_away(copy):
    before = open_dataset("treesatai_ts", copy, "all", modalities=["s2"])[0].observations["s2"]
    dataset = open_dataset("treesatai_ts", copy, "all", modalities=["s2"])
    path = dataset.folder.path("s2", **dataset.samples.row(0))
    with h5py.File(path, "r+") as file:
        products = [product.decode().replace("_N0207_", "_N0510_") for product in file["sen-2-products"][:]]
        file["sen-2-products"][:] = np.array(products, dtype=bytes)
        file["sen-2-data"][:] += 1000
    after = dataset[0].observations["s2"]
    np.testing.assert_allclose(after.values, before.values, atol=1e-3)


def _first_s2_with(copy, baseline, value):
    """The first tile's series with one stored value changed and the baseline in all product names."""
    dataset = open_dataset("treesatai_ts", copy, "all", modalities=["s2"])
    with h5py.File(dataset.folder.path("s2", **dataset.samples.row(0)), "r+") as file:
        words = [product.decode().replace("_N0207_", f"_N{baseline}_") for product in file["sen-2-products"][:]]
        file["sen-2-products"][:] = np.array(words, dtype=bytes)
        file["sen-2-masks"][:] = 0
        file["sen-2-data"][:] = 3000
        file["sen-2-data"][2, 3, 1, 4] = value
    return dataset[0].observations["s2"]


@pytest.mark.parametrize("baseline", ["0207", "0510"])
@pytest.mark.parametrize("value", [0, -5])
def test_stored_zeros_are_no_data_whatever_the_baseline(copy, baseline, value):
    valid = _first_s2_with(copy, baseline, value).valid
    assert not valid[2, 3, 1, 4]
    assert valid.sum() == valid.size - 1


@pytest.mark.parametrize(("baseline", "seen"), [("0301", 3000), ("0400", 2000), ("0511", 2000), ("9999", 3000)])
def test_the_offset_is_that_of_official_baselines_from_0400_on(copy, baseline, seen):
    assert set(np.unique(_first_s2_with(copy, baseline, 3000).values)) == {seen}


def test_a_listed_tile_without_labels_is_named(copy):
    with (copy / "train_filenames.lst").open("a") as file:
        file.write("nobody.tif\n")
    with pytest.raises(SourceError, match=r"labels for nobody\.tif"):
        open_dataset("treesatai_ts", copy)


def test_a_small_share_is_no_label(copy):
    path = copy / "labels" / "TreeSatBA_v9_60m_multi_labels.json"
    labels = json.loads(path.read_text())
    first = next(iter(labels))
    labels[first] = [["Abies", MIN_AREA_FRAC], ["Tilia", MIN_AREA_FRAC + 0.001]]
    path.write_text(json.dumps(labels))
    dataset = open_dataset("treesatai_ts", copy, "all", modalities=["aerial"])
    genera = dataset[dataset.ids.index(first.removesuffix(".tif"))].targets["genera"]
    assert [GENERA[i] for i in np.flatnonzero(genera)] == ["Tilia"]


def _changed(copy, change):
    """The first tile after a change of its file of series."""
    path = next(copy.glob("sentinel-ts/World_0_0_*.h5"))
    with h5py.File(path, "r+") as file:
        change(file)
    dataset = open_dataset("treesatai_ts", copy, "all")
    return dataset[dataset.ids.index("World_0_0_GEN_NLF")]


def _emptied(file, key):
    for name in [name for name in file if name.startswith(key)]:
        kept = file[name][:0]
        del file[name]
        file[name] = kept


def _deleted(file, key):
    for name in [name for name in file if name.startswith(key)]:
        del file[name]


@pytest.mark.parametrize("change", [_emptied, _deleted])
@pytest.mark.parametrize(("key", "left_out"), [("sen-1-asc", "s1-asc"), ("sen-1-des", "s1-des"), ("sen-2", "s2")])
def test_a_series_without_dates_or_keys_is_left_out(copy, change, key, left_out):
    tile = _changed(copy, lambda file: change(file, key))
    assert set(tile.observations) == {"aerial", "s2", "s1-asc", "s1-des"} - {left_out}


@pytest.mark.parametrize("key", ["sen-1-asc-products", "sen-2-masks"])
def test_values_without_what_belongs_to_them_are_refused(copy, key):
    with pytest.raises(SourceError, match=f"h5: it has no '{key}'"):
        _changed(copy, lambda file: _deleted(file, key))
