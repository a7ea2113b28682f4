"""Damage to a packed dataset is found and named."""

import json
import shutil

import pytest

from anysat.cli import main
from anysat.data.base import PACK_INDEX
from anysat.data.open import open_dataset
from anysat.data.pack import verify_pack
from anysat.errors import MissingFileError, SourceError
from pack_builders import NAME, pack_of


@pytest.fixture
def copied(tmp_path):
    """A packed folder that may be changed."""
    return shutil.copytree(pack_of(NAME), tmp_path / "copy")


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


def test_verifying_a_sound_folder_counts_its_tiles(capsys):
    assert main(["datasets", "pack", NAME, str(pack_of(NAME)), "--verify", "true"]) == 0
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
