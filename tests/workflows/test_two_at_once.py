"""Two commands that write one output at a time: the second ends at once, says why, and changes nothing."""

import errno
import multiprocessing
import os
from pathlib import Path

import pytest

from anysat.cli import main
from anysat.errors import InputError
from anysat.geo.claims import alone_at, make_folder

GIVEN = "s2=a.nc --patch-size-m 20 --weights nano --out"


@pytest.mark.parametrize("words", [
    f"embed {GIVEN} out/x.zarr --dates 2020-01-01/2020-12-31", f"embed {GIVEN} out/x", f"embed {GIVEN} out/x.tif",
    "embed --update out/x.zarr", "zonal a.zarr f.gpkg --out out/x.gpkg", "similar a.zarr --to 1,2 --out out/x.tif",
    "classify a.zarr f.gpkg --column a --out out/x.tif", "export a.zarr --out out/x.tif", "datasets embed world data --out out/x.parquet",
    "datasets predict run world data --out out/x.parquet", "datasets predict run world data --out out/x", "predict run s2=a.nc --out out/x.tif", "predict run s2=a.nc --out out/x.zarr",
])  # fmt: skip
def test_the_second_of_two_is_refused_before_anything_is_read(words, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with alone_at(Path("out/x.zarr")):
        assert main(words.split()) == 2
        said = capsys.readouterr().err
        assert f"expected no other process working there, got process {os.getpid()}; wait until it ends" in said
    assert list(tmp_path.iterdir()) == []


def hold(out, is_held, may_end):
    with alone_at(out):
        is_held.set()
        may_end.wait(30)


def test_another_process_keeps_an_output_to_itself_until_it_ends_however_it_ends(tmp_path):
    context = multiprocessing.get_context("fork")
    is_held, may_end = context.Event(), context.Event()
    other = context.Process(target=hold, args=(tmp_path / "new" / "x.zarr", is_held, may_end))
    other.start()
    assert is_held.wait(30)
    with pytest.raises(InputError, match=f"process {other.pid}"), alone_at(tmp_path / "new" / "x.tif"):
        pass
    with alone_at(tmp_path / "new" / "y.tif"):  # another name
        pass
    other.kill()
    other.join()
    with alone_at(tmp_path / "new" / "x.tif"):
        (tmp_path / "new" / "x.tif").touch()
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["x.tif"]


def test_on_a_full_disk_the_lock_holds_without_the_number_of_its_process(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "pwrite", full)
    with (
        alone_at(tmp_path / "x.tif"),
        pytest.raises(InputError, match="no other process"),
        alone_at(tmp_path / "x.tif"),
    ):
        pass
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_another_process_removes_meanwhile_is_made_again(tmp_path, monkeypatch):
    made, exists = tmp_path / "new", Path.exists

    def removed(path):
        was_there = exists(path)
        if path == made and was_there:
            made.rmdir()
        return was_there

    made.mkdir()
    monkeypatch.setattr(Path, "exists", removed)
    make_folder(made)
    assert made.is_dir()
