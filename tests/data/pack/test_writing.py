"""Packing is all or nothing: killed, on a full disk, over what exists, and taken up again."""

import os
import shutil
import signal
import subprocess
import sys

import pytest

from anysat.cli import main
from anysat.data.base import PACK_INDEX, TileDataset
from anysat.data.open import open_dataset
from anysat.errors import AnySatError
from miniatures import miniature
from pack_builders import NAME, command, content_of, pack_of


def test_two_processes_write_the_bytes_of_one(tmp_path):
    assert main([*command(tmp_path / "out"), "--num-workers", "2", "--verify", "true"]) == 0
    assert content_of(tmp_path / "out") == content_of(pack_of(NAME))
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
def test_killed_and_taken_up_again_gives_the_bytes_of_an_uninterrupted_run(stage, tmp_path, monkeypatch):
    out, expected = tmp_path / "out", content_of(pack_of(NAME))
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


@pytest.fixture
def stopped(tmp_path, monkeypatch):
    """The output of a run that a full disk ended after a shard; there is room again since."""
    fsync, calls = os.fsync, []

    def full(number):
        calls.append(number)
        if len(calls) == 4:  # the plan, a shard, its record, and then
            raise OSError(28, "No space left on device")
        return fsync(number)

    monkeypatch.setattr(os, "fsync", full)
    assert main(command(tmp_path / "out")) == 2
    return tmp_path / "out"


def test_the_beginning_of_another_pack_is_refused(stopped, capsys):
    assert main([*command(stopped), "--shard-mb", "2"]) == 2
    assert "expected the same work (shard_mb 2.0)" in capsys.readouterr().err


def test_a_full_disk_leaves_nothing_that_is_taken_as_complete(capsys, stopped):
    said = capsys.readouterr().err
    assert "No space left on device" in said
    assert "out.partial" in said
    assert not stopped.exists()
    partial = stopped.with_name("out.partial")
    assert len(list(partial.glob("*.tar"))) == 1
    assert not list(partial.rglob("*.tmp"))
    assert main(command(stopped)) == 0
    assert content_of(stopped) == content_of(pack_of(NAME))


def test_an_existing_folder_is_not_replaced_unless_asked(tmp_path, capsys):
    copied = shutil.copytree(pack_of(NAME), tmp_path / "copy")
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
