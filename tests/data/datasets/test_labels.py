"""Labels are read where they are asked for, and of large arrays only the window that is needed."""

import shutil
import tracemalloc

import numpy as np
import pytest

from anysat.data.files import read_file
from anysat.data.files.numpy_files import npy_shape
from anysat.data.open import find_dataset, open_dataset
from anysat.errors import MissingFileError, SourceError
from anysat.picture_samples import colours_of
from miniatures import LAYOUTS, copied, miniature

LABELS = {
    "biomassters": "*_agbm/*", "flair": "flair*_labels_*/*/*/msk/*", "hls_burn_scars": "*/*.mask.tif",
    "pastis_hd": "ANNOTATIONS/*", "sen1floods11": "data/flood_events/HandLabeled/LabelHand/*", "sickle": "masks/*/*",
    "spacenet7": "train/*/labels*/*_Buildings.*", "s2naip_urban": "openstreetmap/*",
}  # fmt: skip
"""Files of labels, by dataset."""


@pytest.mark.parametrize(("name", "layout"), [pair for pair in LAYOUTS if pair[0] in LABELS])
def test_labels_that_are_not_asked_for_are_not_read(name, layout, tmp_path):
    """Damaged, they are noticed only where they are asked for; nothing else changes."""
    root = copied(name, tmp_path, layout)
    for path in root.glob(LABELS[name]):
        path.write_bytes(b"")
    found = open_dataset(name, root, "all", targets=())[0]
    assert found.targets == {}
    whole = open_dataset(name, miniature(name, layout), "all")[0]
    for key, seen in whole.observations.items():
        np.testing.assert_array_equal(found.observations[key].valid, seen.valid)
    assert found.geobox == whole.geobox
    with pytest.raises(SourceError, match="0 bytes"):
        open_dataset(name, root, "all")[0]


def test_one_of_two_targets_is_read_alone():
    asked = open_dataset("flair", miniature("flair"), "all", targets=["land_cover_present"])[0]
    assert set(asked.targets) == {"land_cover_present"}
    asked = open_dataset("pastis_hd", miniature("pastis_hd"), "all", targets=["crops"], modalities=["s2"])[0]
    assert set(asked.targets) == {"crops"}


def test_a_tile_drawn_for_training_needs_no_labels_either(tmp_path):
    root = copied("flair", tmp_path)
    for path in root.glob(LABELS["flair"]):
        path.unlink()
    drawn = open_dataset("flair", root, "all", targets=(), modalities=["aerial-flair"])
    assert drawn.drawn(0, np.random.default_rng(0)).observations["aerial-flair"].shape_px == (500, 500)
    with pytest.raises(MissingFileError, match="MSK_"):
        open_dataset("flair", root, "all")[0]


def test_a_part_of_every_axis_of_an_array_is_read(tmp_path):
    array = np.arange(3 * 4 * 50 * 60, dtype=np.int16).reshape(3, 4, 50, 60)
    np.save(tmp_path / "a.npy", array)
    np.savez(tmp_path / "a.npz", x=array)
    part = (slice(None), slice(1, 2), slice(40, 70), slice(0, 5))
    for name, key in (("a.npy", None), ("a.npz", "x")):
        np.testing.assert_array_equal(read_file(tmp_path / name, [key], part)[0], array[part])
    assert npy_shape(tmp_path / "a.npy") == array.shape


def large(tmp_path, side_px=1200):
    """A copy of FLAIR whose first sample lies in an array of some 70 MB; its row and the array."""
    root = copied("flair", tmp_path)
    dataset = open_dataset("flair", root, "all", modalities=["s2"], targets=())
    row, folder = dataset.samples.row(0), dataset.folder
    stored = np.zeros((5, 10, side_px, side_px // 2), np.uint16)
    stored[..., : row["row_px"] + 5, : row["col_px"] + 5] = 700
    stored[..., row["row_px"], row["col_px"]] = 900
    np.save(folder.path("s2", **row), stored)
    np.save(folder.path("s2-masks", **row), np.zeros((5, 2, side_px, side_px // 2), np.uint8))
    return dataset, row


def test_flair_reads_the_window_and_no_more(tmp_path):
    dataset, row = large(tmp_path)
    dataset[0]
    tracemalloc.start()
    seen = dataset[0].observations["s2"]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2_000_000
    outside = max(0, 5 - row["row_px"])
    assert (seen.values[:, :, 5, 5] == 900).all()
    assert not seen.valid[:, :, :outside].any()
    assert set(np.unique(seen.values[:, :, outside:])) == {700, 900}


@pytest.mark.parametrize(("row_px", "col_px"), [(0, 0), (25, 59), (2, 57)])
def test_flair_windows_at_every_edge_are_where_they_were(tmp_path, row_px, col_px):
    from anysat.data.datasets import flair

    dataset = open_dataset("flair", miniature("flair"), "all", modalities=["s2"], targets=())
    row = {**dataset.samples.row(0), "row_px": row_px, "col_px": col_px}
    whole = np.pad(dataset.folder.read("s2", **row), ((0, 0), (0, 0), (5, 5), (5, 5)))
    wanted = whole[..., row_px : row_px + 10, col_px : col_px + 10]
    seen = flair.read_sample(dataset.folder, row, ["s2"]).observations["s2"]
    np.testing.assert_array_equal(seen.values, np.where(seen.valid, wanted, 0))
    assert seen.valid[..., 5, 5].any()


def test_flair_masks_of_another_area_are_refused(tmp_path):
    root = copied("flair", tmp_path)
    for path in root.glob("flair*_sen_*/*/*/sen/*_masks.npy"):
        np.save(path, np.pad(np.load(path), ((0, 0), (0, 0), (0, 3), (0, 0))))
    with pytest.raises(SourceError, match=r"masks.npy: masks of shape .* for SEN2.*_data.npy of shape"):
        open_dataset("flair", root, "all")[0]


def test_flair_crops_for_evaluation_have_their_labels():
    dataset = open_dataset("flair", miniature("flair"), "all", targets=())
    crops = find_dataset("flair").read_crops(dataset.folder, dataset.samples.row(0), dataset.modalities)
    assert crops.targets["land_cover"].shape == (512, 512)


@pytest.mark.parametrize("kind", ["_merged.tif", ".mask.tif"])
def test_hls_burn_scars_are_tested_without_the_training_scenes(tmp_path, kind):
    root = copied("hls_burn_scars", tmp_path)
    shutil.rmtree(root / "training")
    count = len(open_dataset("hls_burn_scars", root, "test"))
    assert count == len(open_dataset("hls_burn_scars", root, "all")) > 0
    for path in root.glob(f"validation/*{kind}"):
        path.unlink()
    assert len(open_dataset("hls_burn_scars", root, "test")) == count


def test_paddy_is_green_and_the_background_of_crops_is_grey_and_not_like_what_has_no_label():
    paddy, other = colours_of(find_dataset("sickle").target("paddy"))
    assert paddy.argmax() == 1
    assert other.min() > paddy.max(), "what is not asked for is pale"
    crops = colours_of(find_dataset("pastis_hd").target("crops"))
    assert np.ptp(crops[0]) == 0
    apart = np.abs(crops[:, None] - crops).sum(-1) + np.eye(len(crops))
    assert apart.min() > 0.15
    assert np.abs(crops - 0.85).sum(1).min() > 0.3
    np.testing.assert_array_equal(colours_of(find_dataset("pastis_hd").target("crops_present")), crops[1:])
