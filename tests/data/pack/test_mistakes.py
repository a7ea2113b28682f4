"""What may go wrong around packing and statistics: other classes, changed files, two runs at once, foreign indexes."""

import errno
import fcntl
import json
import os
import shutil
import unicodedata
import warnings
from dataclasses import replace

import h5py
import numpy as np
import pytest
import yaml

from anysat.batch import Batch, Tile
from anysat.cli import main
from anysat.data.base import PACK_INDEX
from anysat.data.open import find_dataset, open_dataset
from anysat.data.pack import Shards
from anysat.data.pack.record import record_facts
from anysat.data.pack.tile import decode_tile, encode_tile
from anysat.data.pack.write import pack_dataset
from anysat.data.statistics import compute_statistics
from anysat.errors import AnySatError, InputError, OtherWorkError, SourceError, WriteError
from anysat.modalities import MODALITIES
from anysat.observation import Observation
from geo_builders import geobox, ramp, write_tif
from miniatures import miniature
from own_builders import described, image

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


def edited(root, **changes):
    """The description of own data, with other values under some of its keys."""
    path = root / "forest.yaml"
    path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | changes))
    return str(path)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"splits": {"shares": {"train": 0.5, "test": 0.5}}}, "splits"),
        ({"tile_m": 20}, "tile_m"),
        ({"modalities": {"aerial": {"path": "aerial/{id}.tif", "bands": ["G", "NIR", "B", "R"]}}}, "modalities.aerial"),
        ({"targets": {"kind": {"column": "id"}}}, "kind"),
    ],
)
def test_a_pack_whose_description_says_something_else_by_now_is_not_opened(changes, told, forest, tmp_path):
    name = str(forest / "forest.yaml")
    pack_dataset(open_dataset(name, forest, "all"), tmp_path / "packed")
    with pytest.raises(SourceError, match=f"changed since it was packed: .*{told}.*pack the dataset again"):
        open_dataset(edited(forest, **changes), tmp_path / "packed", "all")


def test_words_of_a_description_and_what_was_not_packed_may_change(forest, tmp_path):
    name = str(forest / "forest.yaml")
    pack_dataset(open_dataset(name, forest, "all", targets=()), tmp_path / "packed")
    both = {"aerial": {"path": "aerial/{id}.tif"}, "spot": {"path": "spot/{id}.tif", "optional": True}}
    with (forest / "forest.yaml").open("a") as file:
        file.write("# a remark\n")
    name = edited(forest, title="My forest", modalities=both, targets={"kind": {"column": "id"}})
    assert len(open_dataset(name, tmp_path / "packed", "all")) == 2


@pytest.mark.parametrize("key", ["description", "tile_m", "split_names", "targets_left_out"])
def test_a_pack_that_does_not_say_what_its_tiles_follow_from_is_refused(key, forest, tmp_path):
    name = str(forest / "forest.yaml")
    pack_dataset(open_dataset(name, forest, "all"), tmp_path / "packed")
    index = json.loads((tmp_path / "packed" / PACK_INDEX).read_text())
    del index[key]
    (tmp_path / "packed" / PACK_INDEX).write_text(json.dumps(index))
    with pytest.raises(SourceError, match=f"it lacks {key}; pack the dataset again"):
        open_dataset(name, tmp_path / "packed", "all")


@pytest.mark.parametrize("fact", ["tile_m", "split_names"])
def test_a_pack_of_a_dataset_that_is_cut_or_split_otherwise_by_now_is_not_opened(fact, trees, tmp_path):
    pack_dataset(open_dataset(NAME, trees, "all", modalities=["s2"]), tmp_path / "packed")
    index = json.loads((tmp_path / "packed" / PACK_INDEX).read_text())
    index[fact] = {"tile_m": 30.0, "split_names": ["train", "val"]}[fact]
    (tmp_path / "packed" / PACK_INDEX).write_text(json.dumps(index))
    told = {"tile_m": "tile_m was 30 and is 60 now", "split_names": "splits were train, val and are test, train, val"}
    with pytest.raises(SourceError, match=f"changed since it was packed: {told[fact]}"):
        open_dataset(NAME, tmp_path / "packed", "all")


def test_targets_that_were_not_packed_are_refused(forest, tmp_path):
    name = str(forest / "forest.yaml")
    pack_dataset(open_dataset(name, forest, "all", targets=()), tmp_path / "packed")
    pack_dataset(open_dataset(name, tmp_path / "packed", "all"), tmp_path / "again")
    for folder in ("packed", "again"):
        assert not open_dataset(name, tmp_path / folder, "all")[0].targets
        with pytest.raises(SourceError, match="kind was not packed, only none; pack it again"):
            open_dataset(name, tmp_path / folder, "all", targets=("kind",))


def test_a_packed_tile_without_what_was_asked_for_is_wholly_invalid(forest, tmp_path):
    """Not damaged: a sample may lack a sensor."""
    box = geobox((10, 10), 1.0)
    (forest / "spot").mkdir()
    write_tif(forest / "spot" / "a.tif", ramp(3, 10, 10, dtype="uint8"), box)
    spot = {"path": "spot/{id}.tif", "optional": True}
    name = edited(forest, modalities={"aerial": {"path": "aerial/{id}.tif"}, "spot": spot})
    pack_dataset(open_dataset(name, forest, "all"), tmp_path / "packed")
    having, lacking = open_dataset(name, tmp_path / "packed", "all", modalities=["spot"])
    assert having.observations["spot"].valid.all()
    assert not lacking.observations["spot"].valid.any()
    assert lacking.observations["spot"].values.shape == (3, 10, 10)
    assert Batch.of([having, lacking]).observations["spot"].valid.flatten(1).all(1).tolist() == [True, False]


def test_a_pack_in_which_no_tile_has_an_optional_sensor_is_opened(forest, tmp_path):
    spot = {"path": "spot/{id}.tif", "optional": True}
    name = edited(forest, modalities={"aerial": {"path": "aerial/{id}.tif"}, "spot": spot})
    pack_dataset(open_dataset(name, forest, "all"), tmp_path / "packed")
    assert len(open_dataset(name, tmp_path / "packed", "all")) == 2


def test_a_key_of_a_description_may_be_a_number_beside_words(forest, tmp_path):
    path = tmp_path / "odd.yaml"
    path.write_text("title: odd\nsplits: {shares: {1: a, b: 2}}\n")
    record = replace(find_dataset(str(forest / "forest.yaml")), found_as=str(path))
    assert record_facts(record, (), ())["description"].keys() == {"splits"}


def test_a_member_of_a_shard_without_what_was_asked_for_says_what_it_has():
    seen = Observation.of(MODALITIES["s2"], np.ones((1, 10, 4, 4)), dates=["2020-01-01"])
    with pytest.raises(SourceError, match="sample t has none of s1, only s2"):
        decode_tile(encode_tile(Tile.of(seen, id="t"))[0], modalities=["s1"])


@pytest.mark.parametrize(
    ("number", "advice"), [(errno.EMFILE, "ulimit -n"), (errno.EIO, "disk or the network"), (errno.ESTALE, "network")]
)
def test_a_shard_that_the_system_cannot_read_is_not_called_damaged(number, advice, trees, tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(number, os.strerror(number))

    pack_dataset(open_dataset(NAME, trees, "all", modalities=["s2"]), tmp_path / "packed")
    tiles = open_dataset(NAME, tmp_path / "packed", "all")
    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(SourceError, match=rf"\.tar: sample .*{os.strerror(number)}.*{advice}") as caught:
        tiles[0]
    assert "anew" not in str(caught.value)


@pytest.mark.parametrize("command", ["stats", "pack"])
def test_work_goes_on_after_a_damaged_file_was_repaired_as_if_nothing_had_been(trees, tmp_path, command, capsys):
    repair = damage(trees, 2, "train")
    words = ["datasets", command, NAME, str(trees), "--num-workers", "1", "--out"]
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
        assert main(["datasets", "pack", NAME, str(trees), "--num-workers", "0", "--out", str(tmp_path / "p")]) == 2
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


@pytest.mark.parametrize("values", [("fold 1", "fold-1", "Fold 1"), ("a b", "a-b", "a-b-2"), ("ä", "a\u0308", "Ä")])
def test_splits_whose_names_look_alike_in_files_are_packed_apart(values, tmp_path):
    """Not even by upper and lower case or by composed accents may names of shards agree: some disks do not tell them."""
    rows = zip("abc", values, strict=True)
    for number, name in enumerate("abc"):
        image(tmp_path / "s2" / f"{name}.tif", ramp(10, 8, 8, start=1000 * number))
    (tmp_path / "tiles.csv").write_text("id,fold\n" + "".join(f"{name},{value}\n" for name, value in rows))
    splits = {"column": "fold", "train": list(values)}
    name = described(tmp_path, tiles="tiles.csv", splits=splits)
    loose = open_dataset(name, tmp_path, "all")
    packed = open_dataset(name, pack_dataset(loose, tmp_path / "packed"), "all")
    assert len({unicodedata.normalize("NFC", shard).casefold() for shard in packed.pack.shards.names}) == 3
    for before, after in zip(loose, packed, strict=True):
        np.testing.assert_array_equal(before.observations["s2"].values, after.observations["s2"].values)


def test_an_index_that_names_a_shard_twice_is_refused(trees, tmp_path):
    """As earlier versions wrote it of two splits whose shards had the same name: tiles of one are lost."""
    packed = pack_dataset(open_dataset(NAME, trees, "all", modalities=["s2"]), tmp_path / "packed")
    index = json.loads((packed / PACK_INDEX).read_text())
    index["shards"][1]["file"] = index["shards"][0]["file"]
    (packed / PACK_INDEX).write_text(json.dumps(index))
    with pytest.raises(SourceError, match=r"names the shard .* twice.*pack the dataset again"):
        open_dataset(NAME, packed, "all")


CAMERA = {"key": "cam", "sensor": "my camera", "bands": ["red", "nir"], "gsd_m": 10, "is_temporal": False}


def _photographed(root, **changes):
    """Two tiles of a sensor of the user's own, whose record is changed as given."""
    for name in "ab":
        if not (path := root / "cam" / f"{name}.tif").exists():
            image(path, ramp(2, 8, 8, dtype="uint8"), names=["red", "nir"], tags={})
    (root / "sensors.yaml").write_text(yaml.safe_dump(CAMERA | changes))
    name = described(root, modality_records="sensors.yaml", modalities={"cam": {"path": "cam/{id}.tif", "units": "DN"}})
    return open_dataset(name, root, "all")


CHANGES = [{"gsd_m": 20}, {"bands": ["nir", "red"]}, {"bands": [{"name": "red", "unit": "dB"}, "nir"]}]


@pytest.mark.parametrize("changes", CHANGES)
def test_a_pack_of_a_sensor_that_is_another_by_now_is_not_opened(changes, tmp_path):
    pack_dataset(_photographed(tmp_path), tmp_path / "packed")
    name = _photographed(tmp_path, **changes).record.found_as
    with pytest.raises(
        SourceError, match=f"{', '.join(changes)} of the modality record of cam.*pack the dataset again"
    ):
        open_dataset(name, tmp_path / "packed", "all")


def test_a_pack_of_a_sensor_of_another_name_is_opened(tmp_path):
    pack_dataset(_photographed(tmp_path), tmp_path / "packed")
    name = _photographed(tmp_path, sensor="our camera").record.found_as
    assert len(open_dataset(name, tmp_path / "packed", "all")) == 2


@pytest.mark.parametrize("changes", CHANGES)
@pytest.mark.parametrize("command", ["pack", "statistics"])
def test_unfinished_work_does_not_go_on_with_a_sensor_that_is_another_by_now(changes, command, tmp_path):
    def work(dataset):
        if command == "pack":
            return pack_dataset(dataset, tmp_path / "out")
        return compute_statistics(dataset, partial=tmp_path / "out")

    broken = _photographed(tmp_path)
    (tmp_path / "cam" / "b.tif").write_bytes(b"II*\0")
    with pytest.raises(SourceError, match=r"b\.tif"):
        work(broken)
    (plan,) = tmp_path.glob("out*/**/plan.json")
    (plan.parent / "first").touch()  # as where something was done before; else it is begun anew
    with pytest.raises(OtherWorkError, match="fingerprint"):
        work(_photographed(tmp_path, **changes))


def test_a_long_read_that_the_system_cuts_short_goes_on(tmp_path, monkeypatch):
    """Linux gives no more than 2 GiB at once."""
    (tmp_path / "a.tar").write_bytes(content := np.random.default_rng(0).bytes(3 * 2**22 + 7))
    short = os.preadv
    monkeypatch.setattr(os, "preadv", lambda number, parts, place: short(number, [parts[0][: 2**22]], place))
    assert bytes(Shards(tmp_path, ["a.tar"]).read(0, 5, len(content))) == content[5:]


def test_columns_of_the_table_whose_names_those_of_a_pack_begin_with_are_kept(forest, tmp_path):
    (forest / "tiles.csv").write_text("id,kind,pack_type\na,beech,x\nb,spruce,y\n")
    dataset = open_dataset(str(forest / "forest.yaml"), forest, "all")
    packed = open_dataset(dataset.record.found_as, pack_dataset(dataset, tmp_path / "packed"), "all")
    assert packed.samples.columns["pack_type"].tolist() == ["x", "y"]
    again = open_dataset(dataset.record.found_as, pack_dataset(packed, tmp_path / "again"), "all")
    assert again.samples.columns["pack_type"].tolist() == ["x", "y"]


@pytest.mark.parametrize("column", ["pack_size", "pack_label"])
def test_columns_of_the_table_that_are_called_as_those_of_a_pack_are_refused(forest, tmp_path, column):
    (forest / "tiles.csv").write_text(f"id,kind,{column}\na,beech,1\nb,spruce,2\n")
    dataset = open_dataset(str(forest / "forest.yaml"), forest, "all")
    with pytest.raises(InputError, match=f"no column {column}.*rename"):
        pack_dataset(dataset, tmp_path / "packed")
