"""Files of data are read without running anything in them, and what is wrong with one is said in a sentence."""

import contextlib
import csv
import datetime
import io
import json
import os
import pickle
import random
import struct
import warnings
import zipfile
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from anysat.data.files import FORMATS, read_file, read_geobox, write_file
from anysat.data.files.numpy_files import read_npz
from anysat.errors import AnySatError, MissingFileError, MissingKeyError, SourceError

GOOD = {
    "a.npy": {None: np.arange(600, dtype=np.float32).reshape(5, 120)},
    "a.npz": {"x": np.arange(600.0), "y": np.ones((3, 4), np.uint8)},
    "a.h5": {"x": np.arange(600.0), "names": np.array(["one", "two"])},
    "a.tif": {None: np.arange(600, dtype=np.uint8).reshape(1, 20, 30)},
    "a.png": {None: np.arange(600, dtype=np.uint8).reshape(1, 20, 30)},
    "a.pt": {"x": np.arange(600.0), "dates": [datetime.datetime(2020, 1, 2)]},
    "a.json": {"x": [1, 2, 3], "y": {"z": 1}},
    "a.csv": {"x": ["1", "2"], "y": ["a", "b"]},
    "a.lst": {None: ["one", "two"]},
}
every_format = pytest.mark.parametrize("name", GOOD)


def written(tmp_path, name):
    path = tmp_path / name
    write_file(path, GOOD[name])
    return path


def read(path):
    return read_file(path, list(GOOD[path.name]))


class Planted:
    """Unpickling it leaves a mark."""

    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return Path.touch, (self.mark,)


@pytest.fixture
def mark(tmp_path):
    return tmp_path / "it-ran"


def test_every_suffix_is_tried_here():
    assert {Path(name).suffix for name in GOOD} == {form.suffixes[0] for form in FORMATS} | {".png"}


@every_format
def test_what_was_written_is_read(name, tmp_path):
    for value, (key, expected) in zip(read(written(tmp_path, name)), GOOD[name].items(), strict=True):
        if key == "names":
            assert [word.decode() for word in value] == list(expected)
        else:
            np.testing.assert_array_equal(value, expected)


# Nothing runs


def legacy(content, path):
    torch.save(content, path, _use_new_zipfile_serialization=False)


def pickled(content, path):
    path.write_bytes(pickle.dumps(content))


def object_npy(content, path):
    with path.open("wb") as file:
        np.save(file, np.array([content], object), allow_pickle=True)


def object_npz(content, path):
    with path.open("wb") as file:
        np.savez(file, x=np.arange(3), y=np.array([content], object))


PLANTS = {
    "zip.pt": torch.save,
    "legacy.pt": legacy,
    "pickle.pt": pickled,
    "pickle.pth": pickled,
    "pickle.npy": pickled,
    "object.npy": object_npy,
    "pickle.npz": pickled,
    "object.npz": object_npz,
}


@pytest.mark.parametrize("name", PLANTS)
@pytest.mark.parametrize("rows", [None, 0])
def test_a_planted_object_is_refused_and_does_not_run(name, rows, tmp_path, mark):
    path = tmp_path / name
    PLANTS[name](Planted(mark), path)
    with pytest.raises(SourceError, match=f"{name}.*could run code") as caught:
        read_file(path, ["y"] if name.endswith("npz") else [None], rows)
    assert not mark.exists(), caught.value


def test_the_planted_object_would_run(tmp_path, mark):
    pickle.loads(pickle.dumps(Planted(mark)))
    assert mark.exists()


@pytest.mark.parametrize("save", [torch.save, legacy])
def test_a_planted_object_deep_in_good_tensors_does_not_run(save, tmp_path, mark):
    path = tmp_path / "a.pt"
    save({"image": torch.ones(3), "dates": [datetime.date(2020, 1, 1), {"deep": (Planted(mark),)}]}, path)
    with pytest.raises(SourceError, match="asks for more than tensors and dates.*could run code"):
        read_file(path, ["image"])
    assert not mark.exists()


def test_an_object_array_in_a_tensor_file_does_not_run(tmp_path, mark):
    path = tmp_path / "a.pt"
    torch.save({"image": np.array([Planted(mark)], object)}, path)
    with pytest.raises(SourceError, match="could run code"):
        read_file(path, ["image"])
    assert not mark.exists()


def test_good_members_beside_a_planted_one_are_read(tmp_path, mark):
    path = tmp_path / "a.npz"
    object_npz(Planted(mark), path)
    np.testing.assert_array_equal(read_file(path, ["x"])[0], np.arange(3))
    assert not mark.exists()


def test_members_that_are_no_arrays_are_refused(tmp_path, mark):
    path = tmp_path / "a.npz"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x.npy", pickle.dumps(Planted(mark)))
    with pytest.raises(SourceError, match="x is no NumPy array.*a pickle could run code"):
        read_file(path, ["x"])
    assert not mark.exists()


def test_a_program_in_a_tensor_file_is_refused(tmp_path):
    path = tmp_path / "a.pt"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.script(torch.nn.Linear(2, 2)).save(path)
        with pytest.raises(SourceError, match="TorchScript program.*could run code"):
            read_file(path)


class Rebuilt:
    """Pickles as a call of numpy's with a state of its own choice."""

    def __init__(self, function, args, state=None):
        self.call = (function, args) if state is None else (function, args, state)

    def __reduce__(self):
        return self.call


RECONSTRUCT = np.array([1]).__reduce__()[0]
SCALAR = np.float64(1).__reduce__()[0]
FIELDS = (3, "|", None, ("a",), {"a": (np.dtype("O"), 0)}, 8, 1, 0)
ABUSES = {
    "fields of objects that claim to be bytes": Rebuilt(np.dtype, ("V8", False, True), FIELDS),
    "raw bytes as pointers": Rebuilt(RECONSTRUCT, (np.ndarray, (0,), b"b"), (1, (1,), np.dtype("O"), False, b"\1" * 8)),
    "scalar of a pointer": Rebuilt(SCALAR, (np.dtype("O"), b"\1" * 8)),
    "more shape than bytes": Rebuilt(
        RECONSTRUCT, (np.ndarray, (0,), b"b"), (1, (9**12,), np.dtype("f4"), False, b"abcd")
    ),
}


@pytest.mark.parametrize("abuse", ABUSES)
def test_numpy_cannot_be_made_to_read_memory_by_a_state_in_a_tensor_file(abuse, tmp_path):
    path = tmp_path / "a.pt"
    torch.save({"x": ABUSES[abuse]}, path)
    with pytest.raises(SourceError, match="a.pt"):
        read_file(path, ["x"])


ARRAYS = [
    np.arange(6, dtype=np.int16).reshape(2, 3),
    np.asfortranarray(np.arange(6, dtype=np.float32).reshape(2, 3)),
    np.arange(3, dtype=">u2"),
    np.array([True, False]),
    np.array(["2020-01-01", "2021-05-06"], "datetime64[D]"),
    np.array(["2020-01-01T01", "2021-05-06T02"], "datetime64[ns]"),
    np.array(["a", "bcd"]),
    np.array([b"a", b"bcd"]),
    np.array([datetime.datetime(2020, 1, 2), datetime.datetime(2020, 1, 3)], object),
    np.zeros((0, 3)),
]


@pytest.mark.parametrize("array", ARRAYS, ids=lambda array: array.dtype.str)
@pytest.mark.parametrize("module", ["numpy.core.multiarray", "numpy._core.multiarray"])
@pytest.mark.parametrize("save", [torch.save, legacy])
def test_arrays_in_tensor_files_of_both_numpy_generations_are_read(array, module, save, tmp_path):
    path = tmp_path / "a.pt"
    save({"x": array, "y": [array.dtype.type(array.flat[0]) if array.size and array.dtype != object else 1]}, path)
    content = path.read_bytes()
    if save is legacy:
        content = content.replace(b"numpy._core.multiarray", module.encode())
    elif module == "numpy.core.multiarray":
        with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(path, "w") as new:
            for name in old.namelist():
                part = old.read(name)
                new.writestr(
                    name, part.replace(b"numpy._core.multiarray", module.encode()) if name.endswith("pkl") else part
                )
        content = path.read_bytes()
    path.write_bytes(content)
    x, y = read_file(path, ["x", "y"])
    np.testing.assert_array_equal(x, array)
    assert x.dtype.newbyteorder("=") == array.dtype.newbyteorder("=")
    if array.size and array.dtype != object:
        assert y[0] == array.flat[0]


def test_dates_of_a_tensor_file_are_dates(tmp_path):
    path = tmp_path / "a.pt"
    dates = [datetime.datetime(2020, 1, 2, 3, tzinfo=datetime.timezone.utc), datetime.date(2021, 1, 1)]  # noqa: UP017
    torch.save({"dates": dates}, path)
    assert read_file(path, ["dates"])[0] == dates


# Claims


def header(shape, kind="<f8"):
    text = repr({"descr": kind, "fortran_order": False, "shape": shape}).encode()
    text += b" " * (-(len(text) + 11) % 64) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text


@pytest.mark.parametrize("rows", [None, 0])
def test_an_array_that_claims_a_giant_shape_is_refused_before_memory_is_asked_for(rows, tmp_path):
    path = tmp_path / "a.npy"
    path.write_bytes(header((10**7, 10**7)) + b"\0" * 64)
    with pytest.raises(SourceError, match=r"a.npy: it claims float64 of shape \(10000000, 10000000\).*64 are there"):
        read_file(path, rows=rows)


def test_a_member_that_claims_a_giant_shape_is_refused(tmp_path):
    path = tmp_path / "a.npz"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x.npy", header((10**13,)) + b"\0" * 64)
    with pytest.raises(SourceError, match=r"a.npz: x claims float64 of shape \(10000000000000,\)"):
        read_file(path, ["x"])


def test_a_member_that_would_fill_the_memory_is_refused(tmp_path, monkeypatch):
    path = written(tmp_path, "a.npz")
    monkeypatch.setattr("os.sysconf", lambda name: 16)  # a machine of 256 bytes
    with pytest.raises(SourceError, match="x claims 0.0 GB, and this machine has"):
        read_npz(path, ["x"], None)


def test_an_hdf5_dataset_that_claims_a_giant_shape_is_refused_but_its_rows_are_read(tmp_path):
    path = tmp_path / "a.h5"
    with h5py.File(path, "w") as file:
        file.create_dataset("x", (10**9, 10**6), "f4", chunks=(1, 10**6))
    with pytest.raises(SourceError, match="x claims 4,000,000.0 GB"):
        read_file(path, ["x"])
    assert not read_file(path, ["x"], 5)[0].any()


def test_a_tensor_that_claims_a_giant_shape_is_refused(tmp_path):
    path = tmp_path / "a.pt"
    torch.save({"x": torch.zeros(1).expand(10**9, 10**6)}, path)
    with pytest.raises(SourceError, match="a tensor claims 4,000,000.0 GB"):
        read_file(path, ["x"])


def test_a_raster_that_claims_a_giant_shape_is_refused(tmp_path):
    import rasterio

    path = tmp_path / "a.tif"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with rasterio.open(path, "w", driver="GTiff", count=9, width=900_000, height=900_000, dtype="float32",
                           SPARSE_OK=True, BIGTIFF="YES", tiled=True, blockxsize=4096, blockysize=4096):  # fmt: skip
            pass
    with pytest.raises(SourceError, match="the raster claims 29,160.0 GB"):
        read_file(path)


def test_a_raster_that_leads_elsewhere_is_not_followed(tmp_path):
    elsewhere = written(tmp_path, "a.tif")
    path = tmp_path / "b.tif"
    path.write_text(
        '<VRTDataset rasterXSize="30" rasterYSize="20"><VRTRasterBand dataType="Byte" band="1"><SimpleSource>'
        f"<SourceFilename>{elsewhere}</SourceFilename></SimpleSource></VRTRasterBand></VRTDataset>"
    )
    with pytest.raises(SourceError, match="b.tif: it cannot be read"):
        read_file(path)
    with pytest.raises(SourceError, match="b.tif: it cannot be read"):
        read_geobox(path)


# What is wrong is said


@every_format
def test_an_empty_file_is_named_with_what_was_expected(name, tmp_path):
    path = tmp_path / name
    path.touch()
    with pytest.raises(SourceError, match=f"{name}: it is empty .0 bytes.; expected pixels"):
        read_file(path, list(GOOD[name]), expected="pixels")


@every_format
def test_a_missing_file_is_named_with_what_was_expected(name, tmp_path):
    with pytest.raises(MissingFileError, match=f"{name}: no such file or folder; expected pixels"):
        read_file(tmp_path / name, list(GOOD[name]), expected="pixels")


@every_format
def test_a_folder_in_place_of_a_file_is_named(name, tmp_path):
    (tmp_path / name).mkdir()
    with pytest.raises(SourceError, match=f"{name}: it is a folder, not a file; expected pixels"):
        read_file(tmp_path / name, list(GOOD[name]), expected="pixels")


@contextlib.contextmanager
def without_rights():
    """As a user who is not root, whom permissions bind."""
    is_root = os.geteuid() == 0
    if is_root:
        os.seteuid(65534)
    try:
        yield
    finally:
        if is_root:
            os.seteuid(0)


@every_format
def test_a_file_without_permission_is_named(name, tmp_path):
    path = written(tmp_path, name)
    for folder in (tmp_path, *list(tmp_path.parents)[:-2]):
        with contextlib.suppress(PermissionError):
            folder.chmod(folder.stat().st_mode | 0o755)
    path.chmod(0)
    with without_rights(), pytest.raises(SourceError, match=f"{name}: there is no permission to read it"):
        read(path)


@pytest.mark.parametrize("name", [name for name in GOOD if None not in GOOD[name]])
def test_a_missing_key_is_named_with_those_there_are(name, tmp_path):
    with pytest.raises(MissingKeyError, match=f"{name}: it has no 'nothing', only .*x"):
        read_file(written(tmp_path, name), ["nothing"])


@pytest.mark.parametrize("name", [name for name in GOOD if None in GOOD[name]])
def test_a_key_of_a_file_without_parts_is_refused(name, tmp_path):
    with pytest.raises(SourceError, match=f"{name}: a .* file has no parts"):
        read_file(written(tmp_path, name), ["x"])


@pytest.mark.parametrize("name", [name for name in GOOD if name not in ("a.lst", "a.csv")])
def test_text_under_another_suffix_is_named(name, tmp_path):
    path = tmp_path / name
    path.write_text("id,split\nnot at all what it should be\n" * 40)
    with pytest.raises(SourceError, match=name):
        read(path)


@pytest.mark.parametrize("name", ["a.csv", "a.lst", "a.json"])
def test_bytes_that_are_no_text_are_named(name, tmp_path):
    path = tmp_path / name
    path.write_bytes(bytes(range(256)) * 4)
    with pytest.raises(SourceError, match=name):
        read(path)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("x,y\n1\n", "row 1 has fewer values"),
        ("x,y\n1,2,3\n", "more values than the table has columns"),
        ('x,y\n"1,2\n', "cannot be read"),
        ("x,y\n" + "a" * (csv.field_size_limit() + 1) + ",1\n", "field larger than field limit"),
        ("x,y\n", "no rows"),
    ],
)
def test_a_broken_table_is_named(text, reason, tmp_path):
    path = tmp_path / "a.csv"
    path.write_text(text)
    with pytest.raises(SourceError, match=f"a.csv: .*{reason}"):
        read(path)


@pytest.mark.parametrize("content", ["[1, 2]", "3", "null", '"x"', "[" * 100_000])
def test_a_document_without_names_is_named(content, tmp_path):
    path = tmp_path / "a.json"
    path.write_text(content)
    with pytest.raises(SourceError, match="a.json"):
        read_file(path, ["x"])


def test_a_group_in_place_of_an_array_is_named(tmp_path):
    path = tmp_path / "a.h5"
    with h5py.File(path, "w") as file:
        file.create_group("x")
    with pytest.raises(SourceError, match="a.h5: 'x' is a group, not an array"):
        read_file(path, ["x"])


def test_an_archive_under_the_suffix_of_an_array_is_named(tmp_path):
    path = written(tmp_path, "a.npz").rename(tmp_path / "b.npy")
    with pytest.raises(SourceError, match="b.npy: it is no NumPy array"):
        read_file(path)


def test_an_array_under_the_suffix_of_an_archive_is_named(tmp_path):
    path = written(tmp_path, "a.npy").rename(tmp_path / "b.npz")
    with pytest.raises(SourceError, match="b.npz: it is no .npz archive"):
        read_file(path, ["x"])


@every_format
def test_a_file_cut_anywhere_is_read_or_named(name, tmp_path):
    path = written(tmp_path, name)
    content = path.read_bytes()
    for size in sorted({1, 5, 8, 60, *range(1, len(content), max(1, len(content) // 40))}):
        path.write_bytes(content[:size])
        said = _complaint(path)
        assert said is None or name in said


@pytest.mark.parametrize("name", [name for name in GOOD if name != "a.h5"])  # HDF5's own library may end the process
def test_a_file_with_flipped_bytes_is_read_or_named(name, tmp_path):
    path, draw = written(tmp_path, name), random.Random(0)
    content = path.read_bytes()
    for _ in range(60):
        damaged = bytearray(content)
        for _ in range(3):
            damaged[draw.randrange(len(damaged))] ^= 1 << draw.randrange(8)
        path.write_bytes(damaged)
        said = _complaint(path)
        assert said is None or name in said


def _complaint(path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # GDAL warns of odd headers
        try:
            read(path)
        except AnySatError as error:
            return str(error)
    return None


def test_json_keeps_what_it_was_given(tmp_path):
    path = tmp_path / "a.json"
    write_file(path, {None: [{"a": 1}]})
    assert json.loads(path.read_text()) == read_file(path)[0]


def test_a_tensor_file_that_unfolds_is_refused_before_it_does(tmp_path):
    plain, bomb = tmp_path / "plain.pt", tmp_path / "bomb.pt"
    torch.save({"image": torch.zeros(1000, 1000)}, plain)
    with zipfile.ZipFile(plain) as source, zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as target:
        for member in source.namelist():
            target.writestr(member, source.read(member))
    assert bomb.stat().st_size < 100_000
    with pytest.raises(SourceError, match=r"bomb\.pt: its member .* would unpack to 4000000 bytes"):
        read_file(bomb, ["image"])
