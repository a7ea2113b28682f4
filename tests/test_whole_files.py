"""Files that appear complete or not at all."""

import os
from pathlib import Path

import pytest

from anysat.errors import WriteError
from anysat.whole_files import appearing, put_in_place, sweep, take_over, write_output, write_whole


def test_a_file_appears_when_the_block_ends_and_not_after_an_error(tmp_path):
    path = tmp_path / "a"
    with appearing(path) as new:
        new.write_text("one")
        assert not path.exists()
    with pytest.raises(KeyError), appearing(path) as new:  # noqa: PT012
        new.write_text("two")
        raise KeyError
    assert path.read_text() == "one"
    assert list(tmp_path.iterdir()) == [path]


def test_the_content_is_on_the_disk_before_the_name(tmp_path, monkeypatch):
    done, fsync, replace = [], os.fsync, Path.replace
    monkeypatch.setattr(os, "fsync", lambda number: (done.append("fsync"), fsync(number)))
    monkeypatch.setattr(Path, "replace", lambda *paths: (done.append("replace"), replace(*paths))[1])
    write_whole(tmp_path / "a", b"x")
    write_whole(tmp_path / "a", "é", to_disk=False)
    assert done == ["fsync", "replace", "replace"]
    assert (tmp_path / "a").read_bytes() == "é".encode()


def test_permissions_are_those_of_the_older_file_or_of_a_new_one(tmp_path):
    plain = tmp_path / "plain"
    plain.touch()
    for name, mode in (("new", plain.stat().st_mode & 0o777), ("old", 0o640)):
        path = tmp_path / name
        if name == "old":
            path.touch()
            path.chmod(mode)
        with appearing(path) as new:
            new.chmod(0o600)  # as safetensors does
        assert path.stat().st_mode & 0o777 == mode


def test_one_file_can_be_written_twice_at_the_same_time(tmp_path):
    path = tmp_path / "a"
    with appearing(path) as one, appearing(path) as other:
        one.write_text("one")
        other.write_text("other")
    assert path.read_text() == "one"  # renamed last


def test_an_output_that_cannot_be_written_is_told(tmp_path):
    write_output(tmp_path / "new" / "a", "x")
    with pytest.raises(WriteError, match="b: could not be written"):
        write_output(tmp_path / "new" / "a" / "b", "x")


@pytest.mark.parametrize("has_links", [True, False])
def test_a_file_that_is_taken_over_is_the_same_and_stays(tmp_path, monkeypatch, has_links):
    (tmp_path / "a").write_text("new")
    (tmp_path / "b").write_text("old")

    def refuse(*_):
        raise OSError

    if not has_links:
        monkeypatch.setattr(os, "link", refuse)
    take_over(tmp_path / "b", tmp_path / "a")
    assert (tmp_path / "b").read_text() == (tmp_path / "a").read_text() == "new"
    assert (tmp_path / "b").samefile(tmp_path / "a") == has_links


def test_the_old_folder_comes_back_if_the_new_one_cannot_be_put_in_its_place(tmp_path):
    (tmp_path / "old").mkdir()
    with pytest.raises(OSError, match="No such file"):
        put_in_place(tmp_path / "missing", tmp_path / "old", tmp_path / "aside")
    assert [path.name for path in tmp_path.iterdir()] == ["old"]
    (tmp_path / "new").mkdir()
    put_in_place(tmp_path / "new", tmp_path / "old", tmp_path / "aside")
    assert {path.name for path in tmp_path.iterdir()} == {"old", "aside"}


def test_what_a_kill_left_is_swept(tmp_path):
    (tmp_path / "a").touch()
    (tmp_path / ".a.0123abcd.tmp").touch()
    sweep(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
