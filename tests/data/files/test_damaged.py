"""Damage in the middle of a file, where libraries give wrong values without a word, and what reading costs."""

import struct
import zipfile

import numpy as np
import pytest
import torch

from anysat.data.files import read_file, write_file
from anysat.errors import SourceError

NOISE = np.random.default_rng(0).integers(0, 255, (4, 96, 96)).astype(np.uint8)


@pytest.fixture
def png(tmp_path):
    write_file(tmp_path / "a.png", {None: NOISE})
    return tmp_path / "a.png"


def overwritten(path, at, content):
    whole = bytearray(path.read_bytes())
    whole[at : at + len(content)] = content
    path.write_bytes(whole)


# Pictures


def test_a_sound_picture_is_read(png):
    np.testing.assert_array_equal(read_file(png)[0], NOISE)


@pytest.mark.parametrize("where", [0.3, 0.5, 0.9])
def test_a_picture_damaged_in_the_middle_is_refused(png, where):
    overwritten(png, int(where * png.stat().st_size), b"\0" * 64)
    with pytest.raises(SourceError, match=r"a.png: its chunk IDAT at byte \d+ does not fit its checksum"):
        read_file(png)


def test_a_picture_whose_part_claims_another_length_is_refused(png):
    at = png.read_bytes().index(b"IDAT")
    overwritten(png, at - 4, struct.pack(">I", 1 << 30))
    with pytest.raises(
        SourceError, match=rf"a.png: its end is missing: chunk IDAT at byte {at - 4} is longer than the file"
    ):
        read_file(png)


def test_a_picture_without_its_end_is_refused(png):
    png.write_bytes(png.read_bytes()[:-12])
    with pytest.raises(SourceError, match=r"a.png: its end is missing"):
        read_file(png)


# Tensors


@pytest.mark.parametrize("suffix", [".pt", ".pth"])
def test_a_tensor_file_damaged_in_the_middle_is_refused(tmp_path, suffix):
    path = tmp_path / f"a{suffix}"
    torch.save({"x": torch.arange(10_000.0)}, path)
    overwritten(path, path.stat().st_size // 2, b"\xff" * 16)
    with pytest.raises(SourceError, match=rf"a{suffix}: its member '.*data/0' does not fit its checksum"):
        read_file(path, ["x"])


class State:
    """Pickles as an array of numpy's whose content is this."""

    def __init__(self, values, shape=(4,)):
        self.values, self.shape = values, shape

    def __reduce__(self):
        rebuild = np.array([1]).__reduce__()[0]
        return rebuild, (np.ndarray, (0,), b"b"), (1, self.shape, np.dtype("u1"), False, self.values)


@pytest.mark.parametrize("values", [1 << 40, [1, 2, 3, 4], 3.5])
def test_content_of_an_array_that_is_no_bytes_is_refused_before_memory_is_asked_for(tmp_path, values):
    torch.save({"x": State(values)}, tmp_path / "a.pt")
    with pytest.raises(SourceError, match=r"a.pt: it asks for more than tensors and dates .*content is a"):
        read_file(tmp_path / "a.pt", ["x"])


@pytest.mark.parametrize("values", [b"abc", b"abcde"])
def test_content_of_an_array_of_another_length_than_its_shape_is_refused(tmp_path, values):
    torch.save({"x": State(values)}, tmp_path / "a.pt")
    with pytest.raises(SourceError, match=rf"a.pt: .*{len(values)} bytes.*, 4 expected"):
        read_file(tmp_path / "a.pt", ["x"])


def test_content_of_an_array_as_bytes_of_any_kind_is_read(tmp_path):
    torch.save({"x": [State(b"abcd"), State("abcd")]}, tmp_path / "a.pt")
    for array in read_file(tmp_path / "a.pt", ["x"])[0]:
        assert array.tolist() == [97, 98, 99, 100]


# Archives


def test_a_member_of_an_archive_is_opened_once(tmp_path, monkeypatch):
    opened = []
    real = zipfile.ZipFile.open
    np.savez_compressed(tmp_path / "a.npz", x=NOISE, y=NOISE)
    monkeypatch.setattr(
        zipfile.ZipFile, "open", lambda self, name, *args: opened.append(name) or real(self, name, *args)
    )
    np.testing.assert_array_equal(read_file(tmp_path / "a.npz", ["x"])[0], NOISE)
    assert opened == ["x.npy"]


ARRAYS = [NOISE, np.asfortranarray(NOISE), np.arange(3, dtype=">f8"), np.array(5.0), np.zeros((0, 3)),
          np.array(["a", "bcd"]), np.array(["", ""]), np.array(["2020-01-01"], "datetime64[D]"),
          np.array([True, False]), np.arange(4)[::2]]  # fmt: skip


@pytest.mark.parametrize("array", ARRAYS, ids=lambda array: f"{array.dtype.str}-{array.ndim}")
@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_members_of_every_kind_come_back_and_may_be_changed(tmp_path, array, save):
    save(tmp_path / "a.npz", x=array)
    found = read_file(tmp_path / "a.npz", ["x"])[0]
    np.testing.assert_array_equal(found, array)
    assert (found.dtype, found.flags.writeable) == (array.dtype, True)
    assert found.flags.f_contiguous == array.flags.f_contiguous or array.ndim < 2


@pytest.mark.parametrize("rows", [None, 0])
@pytest.mark.parametrize("tail", [0, 16])
def test_a_damaged_member_of_an_archive_is_refused(tmp_path, rows, tail):
    """Its checksum is looked at even where more bytes follow than its header claims."""
    path = tmp_path / "a.npz"
    np.savez(tmp_path / "b.npz", x=NOISE)
    with zipfile.ZipFile(tmp_path / "b.npz") as source, zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x.npy", source.read("x.npy") + b"\0" * tail)
    overwritten(path, path.stat().st_size // 2, b"\xff" * 16)
    with pytest.raises(SourceError, match="a.npz: it cannot be read .*CRC-32"):
        read_file(path, ["x"], rows)


def test_a_member_that_ends_early_is_refused(tmp_path):
    path = tmp_path / "a.npz"
    np.savez(tmp_path / "b.npz", x=NOISE)
    with zipfile.ZipFile(tmp_path / "b.npz") as source, zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x.npy", source.read("x.npy")[:-1])
    with pytest.raises(SourceError, match=r"a.npz: x claims uint8 of shape \(4, 96, 96\)"):
        read_file(path, ["x"])
