"""What may go wrong around packing and statistics: other classes, changed files, two runs at once, foreign indexes."""

import fcntl
import json
import shutil
import warnings

import h5py
import numpy as np
import pytest
import yaml

from anysat.cli import main
from anysat.data.base import PACK_INDEX, open_dataset
from anysat.data.pack.write import pack_dataset
from anysat.data.statistics import compute_statistics
from anysat.errors import AnySatError, SourceError, WriteError
from geo_builders import geobox, ramp, write_tif
from miniatures import miniature

NAME = "treesatai_ts"


@pytest.fixture
def trees(tmp_path):
    return shutil.copytree(miniature(NAME), tmp_path / "loose")


@pytest.fixture
def forest(tmp_path):
    """Own data: two photos and a table with a class column."""
    root = tmp_path / "forest"
    for number, name in enumerate(("a", "b")):
        box = geobox((50, 50), 0.2)
        path = root / "aerial" / f"{name}.tif"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_tif(path, ramp(4, 50, 50, dtype="uint8", start=number), box, names=["NIR", "G", "B", "R"])
    (root / "tiles.csv").write_text("id,kind\na,beech\nb,spruce\n")
    content = {
        "name": "my_forest", "tile_m": 10, "tiles": "tiles.csv", "modalities": {"aerial": {"path": "aerial/{id}.tif"}},
        "targets": {"kind": {"column": "kind"}}, "splits": {"shares": {"train": 1.0}},
    }  # fmt: skip
    (root / "forest.yaml").write_text(yaml.safe_dump(content))
    return root


def damage(root, index=0, split="all"):
    """Cut one series in half; the function that repairs it."""
    dataset = open_dataset(NAME, root, split)
    path = dataset.folder.path("s2", **dataset.samples.row(index))
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    return lambda: path.write_bytes(content)


def test_a_pack_whose_classes_are_others_by_now_is_not_opened(forest, tmp_path):
    name = str(forest / "forest.yaml")
    pack_dataset(open_dataset(name, forest, "all"), tmp_path / "packed")
    assert len(open_dataset(name, tmp_path / "packed", "all")) == 2
    (forest / "tiles.csv").write_text("id,kind\na,beech\nb,spruce\nc,alder\n")
    with pytest.raises(AnySatError, match="kind"):
        open_dataset(name, tmp_path / "packed", "all")


@pytest.mark.parametrize("command", ["stats", "pack"])
def test_work_goes_on_after_a_damaged_file_was_repaired_as_if_nothing_had_been(trees, tmp_path, command, capsys):
    repair = damage(trees, 2, "train")
    words = ["datasets", command, NAME, str(trees), "--workers", "1", "--out"]
    one, other = (tmp_path / (f"{name}.json" if command == "stats" else name) for name in ("one", "other"))
    assert main([*words, str(one)]) == 2
    repair()
    assert main([*words, str(one)]) == 0
    assert main([*words, str(other)]) == 0
    pairs = [(one, other)] if one.is_file() else [(path, other / path.name) for path in one.glob("*.tar")]
    assert pairs
    for first, second in pairs:
        assert first.read_bytes() == second.read_bytes()


def test_a_tile_that_changed_while_work_rested_is_read_anew(trees, tmp_path):
    repair = damage(trees, 4)
    dataset = open_dataset(NAME, trees, "all", modalities=["s2"])
    with pytest.raises(AnySatError):
        compute_statistics(dataset, partial=tmp_path / "partial")
    repair()
    path = dataset.folder.path("s2", **dataset.samples.row(0))
    with h5py.File(path, "r+") as file:
        file["sen-2-data"][:] += 500
    assert compute_statistics(dataset, partial=tmp_path / "partial") == compute_statistics(dataset)


def test_a_pack_that_fails_says_so_once(trees, tmp_path, capsys):
    damage(trees)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert main(["datasets", "pack", NAME, str(trees), "--workers", "1", "--out", str(tmp_path / "p")]) == 2
    said = capsys.readouterr().err
    assert "Traceback" not in said
    assert ".h5" in said


@pytest.mark.parametrize("command", ["stats", "check"])
def test_a_seed_below_0_is_refused(trees, tmp_path, command, capsys):
    out = ["--out", str(tmp_path / "s.json")] if command == "stats" else []
    assert main(["datasets", command, NAME, str(trees), "--seed", "-1", *out]) == 2
    assert "seed" in capsys.readouterr().err


def test_two_runs_into_one_place_are_refused(trees, tmp_path):
    partial = tmp_path / "partial"
    partial.mkdir()
    with (partial / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(AnySatError, match="partial"):
            compute_statistics(open_dataset(NAME, trees, "all", modalities=["s2"]), partial=partial)


def test_a_link_is_not_replaced(trees, tmp_path):
    (tmp_path / "there").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "there")
    with pytest.raises(AnySatError, match="link"):
        pack_dataset(open_dataset(NAME, trees, "all"), tmp_path / "link", overwrite=True)
    assert (tmp_path / "link").is_symlink()


def test_an_output_below_a_file_is_refused_with_advice(trees, tmp_path):
    (tmp_path / "afile").touch()
    with pytest.raises(WriteError, match="afile"):
        pack_dataset(open_dataset(NAME, trees, "all"), tmp_path / "afile" / "p")


def test_an_index_that_leads_out_of_its_folder_is_refused(trees, tmp_path):
    packed = tmp_path / "packed"
    pack_dataset(open_dataset(NAME, trees, "all"), packed)
    index = json.loads((packed / PACK_INDEX).read_text())
    shutil.copy(packed / index["shards"][0]["file"], tmp_path / "outside.tar")
    index["shards"][0]["file"] = "../outside.tar"
    (packed / PACK_INDEX).write_text(json.dumps(index))
    with pytest.raises(SourceError, match="outside"):
        open_dataset(NAME, packed, "all")


def test_a_photo_cut_in_half_is_not_read_as_zeros(tmp_path):
    from anysat.data.files import read_file, write_file

    path = tmp_path / "photo.png"
    write_file(path, {None: np.random.default_rng(0).integers(0, 255, (4, 64, 64), dtype=np.uint8)})
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(SourceError, match=r"photo\.png: its end is missing"):
        read_file(path)
