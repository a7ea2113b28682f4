"""A packed dataset is the loose one to the last bit, only quicker; damage is found and named."""

import functools
import gc
import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
import tarfile
import warnings
from dataclasses import replace

import numpy as np
import pytest
import safetensors.numpy
from odc.geo.geobox import GeoBox

from anysat.batch import Batch, Tile
from anysat.cli import main
from anysat.data.base import PACK_INDEX, TileDataset, dataset_names, open_dataset
from anysat.data.pack import verify_pack
from anysat.data.pack.tile import decode_tile, encode_tile, narrow
from anysat.data.pack.write import MEMBER, pack_dataset
from anysat.data.statistics import compute_statistics
from anysat.errors import AnySatError, InputError, MissingFileError, SourceError, UnknownNameError
from anysat.modalities import MODALITIES, Band, Modality
from anysat.observation import Observation
from miniatures import miniature

NAME = "treesatai_ts"
DATES = np.array(["2020-01-01", "2020-01-05", "2021-12-31", "1999-02-03"], "datetime64[D]")
every_dataset = pytest.mark.parametrize("name", dataset_names())


def bits(array):
    return array.dtype.str, array.shape, np.ascontiguousarray(array).tobytes()


def assert_same(packed, loose):
    """Every value, flag, date, unit, target, name and place is the same to the last bit."""
    assert (packed.id, packed.dataset, packed.geobox) == (loose.id, loose.dataset, loose.geobox)
    assert list(packed.observations) == list(loose.observations)
    for key, seen in loose.observations.items():
        found = packed.observations[key]
        assert (found.modality, found.units) == (seen.modality, seen.units)
        assert bits(found.values) == bits(seen.values)
        assert bits(found.valid) == bits(seen.valid)
        assert (found.dates is None) == (seen.dates is None)
        assert seen.dates is None or bits(found.dates) == bits(seen.dates)
    assert list(packed.targets) == list(loose.targets)
    for name, target in loose.targets.items():
        assert bits(np.asarray(packed.targets[name])) == bits(np.asarray(target))


@pytest.fixture(scope="module")
def packed_root(tmp_path_factory):
    home = tmp_path_factory.mktemp("packed")

    @functools.cache
    def root(name):
        return pack_dataset(open_dataset(name, miniature(name), "all"), home / name, shard_mb=1.0)

    return root


@pytest.fixture
def copied(packed_root, tmp_path):
    """A packed folder that may be changed."""
    shutil.copytree(packed_root(NAME), tmp_path / "copy")
    return tmp_path / "copy"


@every_dataset
def test_a_packed_dataset_is_the_loose_one(name, packed_root):
    loose = open_dataset(name, miniature(name), "all")
    packed = open_dataset(name, packed_root(name), "all")
    assert packed.pack is not None
    assert (packed.name, packed.ids, packed.modalities) == (loose.name, loose.ids, loose.modalities)
    for index in range(len(loose)):
        assert_same(packed[index], loose[index])


@every_dataset
def test_splits_and_labels_are_those_of_the_loose_dataset(name, packed_root):
    for split in ("train", "val", "test"):
        loose, packed = (open_dataset(name, root, split) for root in (miniature(name), packed_root(name)))
        assert packed.ids == loose.ids
        if loose.record.list_labels is not None:
            np.testing.assert_array_equal(packed.labels(), loose.labels())
        else:
            with pytest.raises(InputError, match="one class per sample"):
                packed.labels()


@every_dataset
def test_modalities_and_targets_not_asked_for_are_not_read(name, packed_root):
    loose = open_dataset(name, miniature(name), "all")
    for key in loose.modalities:
        packed = open_dataset(name, packed_root(name), "all", modalities=[key], targets=())
        number = next(i for i in range(len(loose)) if key in loose[i].observations)
        tile = packed[number]
        assert set(tile.observations) == {key}
        assert not tile.targets
        assert bits(tile.observations[key].values) == bits(loose[number].observations[key].values)


def test_bytes_of_other_modalities_are_not_touched(packed_root):
    packed = open_dataset(NAME, packed_root(NAME), "all", modalities=["s1-asc"])
    read, original = [], packed.pack.shards.read
    packed.pack.shards.read = lambda shard, offset, size: (read.append(size), original(shard, offset, size))[1]
    assert packed[0]
    assert sum(read) < 10_000 < packed.samples.columns["pack_size"][0]


def test_a_packed_dataset_travels_to_a_worker_process(packed_root):
    packed = open_dataset(NAME, packed_root(NAME), "all")
    assert packed[0]
    assert_same(pickle.loads(pickle.dumps(packed))[1], packed[1])


def test_packed_tiles_stack_without_a_warning(packed_root):
    packed = open_dataset(NAME, packed_root(NAME), "all")
    assert len(Batch.of([packed[0], packed[1]])) == 2


def test_taking_some_samples_keeps_their_places(packed_root):
    packed = open_dataset(NAME, packed_root(NAME), "all")
    assert_same(packed.take([4, 1])[0], packed[4])
    assert packed.take([4, 1]).ids == [packed.ids[4], packed.ids[1]]


def test_statistics_of_the_packed_dataset_are_those_of_the_loose_one(packed_root):
    loose, packed = (open_dataset(NAME, root) for root in (miniature(NAME), packed_root(NAME)))
    assert compute_statistics(packed).statistics == compute_statistics(loose).statistics


def test_a_modality_that_was_not_packed_is_said(tmp_path):
    loose = open_dataset(NAME, miniature(NAME), "all", modalities=["s2"])
    root = pack_dataset(loose, tmp_path / "s2")
    assert open_dataset(NAME, root).modalities == ("s2",)
    with pytest.raises(SourceError, match="aerial was not packed, only s2"):
        open_dataset(NAME, root, modalities=["aerial"])


def test_a_packed_folder_of_another_dataset_is_refused(copied):
    with pytest.raises(SourceError, match="holds the packed treesatai_ts, not pastis_hd"):
        open_dataset("pastis_hd", copied)


def test_unknown_splits_are_refused(packed_root):
    with pytest.raises(UnknownNameError, match="split of treesatai_ts"):
        open_dataset(NAME, packed_root(NAME), "tain")


# One tile as bytes


def tile_of(*observations, **options):
    return Tile.of(*observations, **{"id": "a/b.c d", "dataset": "mine", **options})


def s2(values, **options):
    return Observation.of(MODALITIES["s2"], values, dates=DATES[: len(values)], **options)


def random(*shape, seed=0):
    return np.random.default_rng(seed).normal(0, 100, shape)


DRAW = np.random.default_rng(0)
WHOLE = DRAW.integers(0, 12_000, (4, 10, 5, 5)).astype(np.float32)
TILES = {
    "whole numbers": tile_of(s2(WHOLE)),
    "negative whole numbers": tile_of(s2(-WHOLE)),
    "above 16 bits": tile_of(s2(WHOLE + 60_000)),
    "halves": tile_of(s2(np.round(WHOLE / 100) / 2)),
    "any number": tile_of(s2(random(4, 10, 5, 5))),
    "minus zero": tile_of(s2(np.where(WHOLE > 6000, -0.0, WHOLE))),
    "tiny and huge": tile_of(s2(np.where(WHOLE > 6000, 1e-40, 3e38).astype(np.float32))),
    "bands of different kinds": tile_of(
        Observation.of(
            MODALITIES["aerial-flair"],
            np.concatenate([DRAW.integers(0, 255, (4, 50, 50)), random(1, 50, 50)]),
        )
    ),
    "a band that is absent": tile_of(s2(WHOLE[:, :9], bands=MODALITIES["s2"].band_names[1:])),
    "every other band is absent": tile_of(s2(WHOLE[:, ::2], bands=MODALITIES["s2"].band_names[::2])),
    "nothing valid": tile_of(s2(WHOLE, valid=np.zeros(4, bool))),
    "some dates invalid": tile_of(s2(WHOLE, valid=[True, False, True, True])),
    "some pixels invalid": tile_of(s2(WHOLE, valid=DRAW.random((1, 1, 5, 5)) > 0.5)),
    "clouds": tile_of(s2(WHOLE, valid=DRAW.random((4, 1, 5, 5)) > 0.5)),
    "clouds and an absent band": tile_of(
        s2(WHOLE[:, 1:], bands=MODALITIES["s2"].band_names[1:], valid=DRAW.random((4, 1, 5, 5)) > 0.5)
    ),
    "anything invalid": tile_of(s2(WHOLE, valid=DRAW.random((4, 10, 5, 5)) > 0.5)),
    "a ratio that follows": tile_of(
        Observation.of(MODALITIES["s1"], random(4, 2, 5, 5), bands=["VV", "VH"], dates=DATES, valid=DRAW.random((4, 1, 5, 5)) > 0.5)
    ),
    "a ratio of its own": tile_of(Observation.of(MODALITIES["s1"], random(4, 3, 5, 5), dates=DATES)),
    "a ratio of absent parts": tile_of(Observation.of(MODALITIES["s1"], random(4, 1, 5, 5), bands=["VV"], dates=DATES)),
    "other units": tile_of(s2(WHOLE / 1e4, units="reflectance")),
    "context of the tile": tile_of(
        s2(WHOLE), Observation.of(MODALITIES["modis"], random(3, 7, 1, 1), dates=DATES[:3])
    ),
    "a place": tile_of(s2(WHOLE), geobox=GeoBox((5, 5), __import__("affine").Affine(10 / 3, 0.1, 1e6 / 7, 0, -9.7, 1 / 3), "EPSG:25832")),
    "a place without a code": tile_of(s2(WHOLE), geobox=GeoBox((5, 5), __import__("affine").Affine(10, 0, 5, 0, -10, 3), "+proj=sinu +R=6371007.181")),
    "targets": tile_of(
        s2(WHOLE),
        targets={
            "class": np.int64(-1), "raster": np.arange(25).reshape(5, 5), "value": np.float32(0.1), "none": np.zeros(0),
            "nan": np.array([np.nan, 1.0], np.float32), "flags": np.array([True, False]), "large": np.array([2**62]),
        },
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", TILES)
def test_a_tile_comes_back_as_it_was(case):
    content, _ = encode_tile(TILES[case])
    assert_same(decode_tile(content), TILES[case])


@pytest.mark.parametrize("case", TILES)
def test_a_tile_is_a_safetensors_file(case):
    loaded = safetensors.numpy.load(encode_tile(TILES[case])[0])
    assert set(loaded) or case == "nothing valid"


@pytest.mark.parametrize(
    ("case", "parts"),
    [
        ("whole numbers", {"s2.values.0": "<u2", "s2.days": "<i4"}),
        ("negative whole numbers", {"s2.values.0": "<i2", "s2.days": "<i4"}),
        ("halves", {"s2.values.0": "<f2", "s2.days": "<i4"}),
        ("bands of different kinds", {"aerial-flair.values.0": "|u1", "aerial-flair.values.1": "<f4"}),
        ("nothing valid", {"s2.days": "<i4"}),
        ("a ratio that follows", {"s1.values.0": "<f4", "s1.valid": "|u1", "s1.days": "<i4"}),
    ],
)
def test_only_what_is_needed_is_stored(case, parts):
    loaded = safetensors.numpy.load(encode_tile(TILES[case])[0])
    assert {name: array.dtype.str for name, array in loaded.items()} == parts


@pytest.mark.parametrize(
    ("case", "num_bytes"),
    [("some dates invalid", 1), ("some pixels invalid", 4), ("clouds", 13), ("clouds and an absent band", 13),
     ("anything invalid", 125)],
)  # fmt: skip
def test_masks_are_stored_without_the_axes_that_do_not_matter(case, num_bytes):
    assert safetensors.numpy.load(encode_tile(TILES[case])[0])["s2.valid"].nbytes == num_bytes


def test_bands_made_from_others_are_found_bit_for_bit():
    s1 = TILES["a ratio that follows"].observations["s1"]
    values = s1.values.copy()
    values[0, 2, 0, 0] = np.nextafter(values[0, 2, 0, 0], np.float32(9e9))
    tile = tile_of(replace(s1, values=values))
    assert_same(decode_tile(encode_tile(tile)[0]), tile)


def test_numbers_are_narrowed_only_where_every_bit_comes_back():
    draw = np.random.default_rng(0)
    for kind in ("float32", "float64", "int64", "uint16"):
        for scale in (1, 100, 1e4, 1e9):
            with np.errstate(invalid="ignore"):
                array = draw.normal(0, scale, 50).astype(kind)
            for given in (array, np.rint(array), np.abs(array)):
                assert bits(narrow(given).astype(given.dtype)) == bits(given)


def test_a_target_of_words_is_refused():
    with pytest.raises(InputError, match="target 'name': expected an array of numbers"):
        encode_tile(tile_of(s2(WHOLE), targets={"name": np.array(["a"])}))


def test_a_strangers_modality_is_packed(tmp_path):
    thermal = Modality(key="thermal", sensor="x", bands=(Band(name="T", unit="K"),), gsd_m=5.0, is_temporal=False)
    tile = tile_of(Observation.of(thermal, np.full((1, 8, 8), 300.5)))
    assert_same(decode_tile(encode_tile(tile)[0], records={"thermal": thermal}), tile)


def test_bytes_of_something_else_are_refused():
    for content in (b"", b"\0" * 4, b"\xff" * 64, b"\2" + b"\0" * 7 + b"{}"):
        with pytest.raises(SourceError, match="packed tile"):
            decode_tile(content)


# Shards


def test_webdataset_reads_the_shards(packed_root):
    import webdataset

    loose = open_dataset(NAME, miniature(NAME), "all")
    shards = sorted(str(path) for path in packed_root(NAME).glob("*.tar"))
    assert len(shards) > 2
    found = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # it leaves files open
        for sample in webdataset.WebDataset(shards, shardshuffle=False):
            tile = decode_tile(sample[MEMBER])
            found[tile.id] = tile
            assert loose.ids[int(sample["__key__"])] == tile.id
        gc.collect()
    for index, name in enumerate(loose.ids):
        assert_same(found[name], loose[index])


def test_the_index_says_where_each_tile_lies(packed_root):
    packed = open_dataset(NAME, packed_root(NAME), "all")
    places = {}
    for number, name in enumerate(packed.pack.shards.names):
        with tarfile.open(packed_root(NAME) / name) as file:
            places |= {(number, m.offset_data, m.size): (m.mtime, m.uid, m.gid, m.name) for m in file.getmembers()}
    columns = (packed.samples.columns[f"pack_{name}"].tolist() for name in ("shard", "offset", "size"))
    assert set(zip(*columns, strict=True)) == set(places)
    assert {facts[:3] for facts in places.values()} == {(0, 0, 0)}


def test_a_shard_holds_one_split_only(packed_root):
    columns = open_dataset(NAME, packed_root(NAME), "all").samples.columns
    for shard in np.unique(columns["pack_shard"]):
        assert len(set(columns["split"][columns["pack_shard"] == shard])) == 1


def test_shards_are_about_as_large_as_asked(packed_root):
    sizes = [path.stat().st_size for path in packed_root(NAME).glob("train*.tar")]
    assert 0.6e6 < max(sizes) < 1.5e6


def content_of(root):
    return {path.name: path.read_bytes() for path in sorted(root.iterdir())}


def command(out, *more):
    return [
        "datasets",
        "pack",
        NAME,
        str(miniature(NAME)),
        "--out",
        str(out),
        "--shard-mb",
        "1",
        "--num-workers",
        "1",
        *more,
    ]


def test_two_processes_write_the_bytes_of_one(packed_root, tmp_path):
    assert main([*command(tmp_path / "out"), "--num-workers", "2", "--verify", "true"]) == 0
    assert content_of(tmp_path / "out") == content_of(packed_root(NAME))
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


KILL = """
import os, pathlib, re, signal, shutil, sys
from pathlib import Path
from anysat.cli import main
where, calls = sys.argv[1], []
def deadly(owner, name, test, before):
    original = getattr(owner, name)
    def call(*args, **options):
        hit = test(*args)
        if hit and before: os.kill(os.getpid(), signal.SIGKILL)
        done = original(*args, **options)
        if hit: os.kill(os.getpid(), signal.SIGKILL)
        return done
    setattr(owner, name, call)
plain = lambda path: re.sub(r"\\.\\w{8}\\.tmp$", ".tmp", str(path))
nth = lambda n, suffix: lambda path, *rest: plain(path).endswith(suffix) and (calls.append(path), len(calls) == n)[1]
if where == "in a shard": deadly(Path, "replace", nth(2, ".tar.tmp"), True)
if where == "before its record": deadly(Path, "replace", nth(2, ".tar.json.tmp"), True)
if where == "after its record": deadly(Path, "replace", nth(2, ".tar.json.tmp"), False)
if where == "before the index": deadly(Path, "replace", nth(1, "pack.json.tmp"), True)
if where == "before the name": deadly(Path, "rename", lambda *_: True, True)
main(sys.argv[2:])
"""
STAGES = ["in a shard", "before its record", "after its record", "before the index", "before the name"]


@pytest.mark.parametrize("stage", STAGES)
def test_killed_and_taken_up_again_gives_the_bytes_of_an_uninterrupted_run(stage, packed_root, tmp_path, monkeypatch):
    out, expected = tmp_path / "out", content_of(packed_root(NAME))
    done = subprocess.run([sys.executable, "-c", KILL, stage, *command(out)], check=False)
    assert done.returncode == -signal.SIGKILL
    assert not out.exists()
    with pytest.raises(AnySatError):
        open_dataset(NAME, out)
    read, original = [], TileDataset.__getitem__
    monkeypatch.setattr(TileDataset, "__getitem__", lambda self, i: (read.append(i), original(self, i))[1])
    assert main(command(out)) == 0
    assert content_of(out) == expected
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    probes = 6
    assert len(read) - probes <= (5 if stage in STAGES[:3] else 0)


def test_the_beginning_of_another_pack_is_refused(tmp_path, capsys):
    out = tmp_path / "out"
    subprocess.run([sys.executable, "-c", KILL, "after its record", *command(out)], check=False)
    assert main([*command(out), "--shard-mb", "2"]) == 2
    assert "expected the same work (shard_mb 2.0)" in capsys.readouterr().err


def test_a_full_disk_leaves_nothing_that_is_taken_as_complete(packed_root, tmp_path, capsys, monkeypatch):
    out, fsync, calls = tmp_path / "out", os.fsync, []

    def full(number):
        calls.append(number)
        if len(calls) == 4:  # the plan, a shard, its record, and then
            raise OSError(28, "No space left on device")
        return fsync(number)

    monkeypatch.setattr(os, "fsync", full)
    assert main(command(out)) == 2
    said = capsys.readouterr().err
    assert "No space left on device" in said
    assert "out.partial" in said
    assert not out.exists()
    assert len(list((tmp_path / "out.partial").glob("*.tar"))) == 1
    assert not list((tmp_path / "out.partial").rglob("*.tmp"))
    assert main(command(out)) == 0
    assert content_of(out) == content_of(packed_root(NAME))


def test_an_existing_folder_is_not_replaced_unless_asked(copied, capsys):
    before = content_of(copied)
    assert main(command(copied)) == 2
    assert "copy exists" in capsys.readouterr().err
    (copied / PACK_INDEX).write_text("{}")
    assert main(command(copied, "--overwrite", "true")) == 0
    assert content_of(copied) == before


def test_a_folder_of_something_else_is_never_replaced(tmp_path, capsys):
    (tmp_path / "photo.jpg").touch()
    assert main(command(tmp_path, "--overwrite", "true")) == 2
    assert "is not a packed dataset, so it is not replaced" in capsys.readouterr().err
    assert (tmp_path / "photo.jpg").exists()


def test_without_an_output_nothing_but_a_check_can_be_asked(capsys):
    assert main(["datasets", "pack", NAME, str(miniature(NAME))]) == 2
    assert "--out: expected a folder to write, or --verify true" in capsys.readouterr().err


# Damage


def flip(path, place):
    content = bytearray(path.read_bytes())
    content[place] ^= 4
    path.write_bytes(content)


def shard_and_place(root, index, column):
    dataset = open_dataset(NAME, root, "all")
    row = dataset.samples.row(index)
    place = row["pack_offset"] + {"header": 20, "targets": row["pack_head"] - 1, "pixels": row["pack_size"] - 1}[column]
    return root / dataset.pack.shards.names[row["pack_shard"]], place, dataset.ids[index]


@pytest.mark.parametrize("part", ["header", "targets", "pixels"])
def test_a_flipped_byte_is_found_when_the_tile_is_read(part, copied):
    path, place, name = shard_and_place(copied, 2, part)
    flip(path, place)
    dataset = open_dataset(NAME, copied, "all")
    with pytest.raises(SourceError, match=f"{path.name}: sample {name}: .*damaged.*checksum differs"):
        dataset[2]
    assert dataset[0]
    assert dataset[3]


@pytest.mark.parametrize("part", ["header", "targets", "pixels"])
def test_verifying_names_the_shard_and_the_sample_of_a_flipped_byte(part, copied, capsys):
    path, place, name = shard_and_place(copied, 2, part)
    flip(path, place)
    assert main(["datasets", "pack", NAME, str(copied), "--verify", "true"]) == 2
    said = capsys.readouterr().err
    assert f"shard {path.name} differs, in sample {name};" in said.replace("\n", " ")


def test_verifying_finds_a_flipped_byte_between_the_samples(copied):
    path, place, _ = shard_and_place(copied, 0, "header")
    flip(path, place - 20 - 400)
    with pytest.raises(SourceError, match=f"shard {path.name} differs, outside of its samples"):
        verify_pack(copied)


def test_verifying_a_sound_folder_counts_its_tiles(packed_root, capsys):
    assert main(["datasets", "pack", NAME, str(packed_root(NAME)), "--verify", "true"]) == 0
    assert "all checksums are correct, 6 tiles" in capsys.readouterr().out


def test_a_shard_that_is_cut_off_is_named(copied):
    path, _, name = shard_and_place(copied, 0, "pixels")
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(SourceError, match=f"{path.name}: sample {name}"):
        open_dataset(NAME, copied, "all")[0]
    with pytest.raises(SourceError, match=f"shard {path.name} differs, in sample {name}"):
        verify_pack(copied)


def test_a_shard_that_is_missing_is_named(copied):
    path, _, _ = shard_and_place(copied, 0, "pixels")
    path.unlink()
    with pytest.raises(MissingFileError, match=f"{path.name}: no such file"):
        open_dataset(NAME, copied, "all")[0]
    with pytest.raises(MissingFileError, match=f"{path.name}: no such file"):
        verify_pack(copied)


def test_a_damaged_table_of_samples_is_named(copied):
    path = copied / "samples.npz"
    flip(path, path.stat().st_size // 2)
    with pytest.raises(SourceError, match="samples.npz: its checksum differs"):
        verify_pack(copied)


@pytest.mark.parametrize("content", ["", "{}", "[]", "not json", '{"format": 1}'])
def test_a_damaged_index_is_named(content, copied):
    (copied / PACK_INDEX).write_text(content)
    with pytest.raises(SourceError, match=PACK_INDEX):
        open_dataset(NAME, copied)


def test_an_index_of_a_later_version_is_refused(copied):
    index = json.loads((copied / PACK_INDEX).read_text())
    (copied / PACK_INDEX).write_text(json.dumps({**index, "format": 99}))
    with pytest.raises(SourceError, match="format 99, this version reads 2"):
        open_dataset(NAME, copied)
