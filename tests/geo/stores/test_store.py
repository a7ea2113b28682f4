"""A store that is written shard by shard: whole or not at all, taken up again, at the right place to the pixel."""

import json
import os
import pickle
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jsonschema
import numpy as np
import pytest
import xarray
import zarr_cm

from anysat.errors import InputError, OutputExistsError, RecordError, StoreMismatchError, UnfinishedError, WriteError
from anysat.geo.stores import store as store_module
from anysat.geo.stores.store import AreaStore, Unit, partial_of
from builders import child_environment
from geo_builders import SOUTH, geobox
from store_builders import (
    GRID,
    MADE_FROM,
    PERIODS,
    begin,
    class_layout,
    content,
    dense_layout,
    finished,
    parts,
    patch_layout,
)  # fmt: skip

STANDARDS = Path(__file__).parents[4] / "shared" / "standards"
ALL = ("float32", "float16", "int8-power", "int8-scale")


def all_layouts():
    return [patch_layout(), dense_layout(), class_layout()]


def write_all(store, units=None):
    for unit in store.remaining() if units is None else units:
        store.write(unit, parts(list(store.layouts.values()), unit))


def same(one: Path, other: Path) -> bool:
    """Whether two stores hold the same files, byte for byte."""
    files = [sorted(path.relative_to(root) for path in root.rglob("*") if path.is_file()) for root in (one, other)]
    return files[0] == files[1] and all((one / name).read_bytes() == (other / name).read_bytes() for name in files[0])


def test_a_store_holds_what_was_written_and_nan_where_nothing_was_seen(tmp_path):
    for layout in (patch_layout(), dense_layout()):
        finished(tmp_path / f"{layout.name}.zarr", [layout])
        values, valid = content(layout)
        with xarray.open_zarr(tmp_path / f"{layout.name}.zarr", group=layout.name) as cube:
            found = np.moveaxis(cube["embedding"].values, 1, -1)
            assert np.array_equal(found, np.where(valid[..., None], values, np.nan), equal_nan=True)
            assert (cube["valid"].values == valid).all()


def test_class_maps_hold_255_where_nothing_was_seen(tmp_path):
    finished(tmp_path / "a.zarr", [class_layout()])
    values, valid = content(class_layout())
    with xarray.open_zarr(tmp_path / "a.zarr", group="classes", mask_and_scale=False) as cube:
        assert cube["class"].dtype == np.uint8
        assert (cube["class"].values == np.where(valid, values, 255)).all()


@pytest.mark.filterwarnings("ignore:Use `@` matmul:PendingDeprecationWarning")  # rioxarray 0.19 with affine 3.1
def test_rioxarray_and_odc_geo_find_the_store_at_its_place(tmp_path):
    import odc.geo.xr  # noqa: F401
    import rioxarray  # noqa: F401

    finished(tmp_path / "a.zarr", all_layouts())
    for layout in all_layouts():
        with xarray.open_zarr(tmp_path / "a.zarr", group=layout.name) as cube:
            array = cube[layout.variable]
            assert array.odc.geobox == layout.geobox
            assert str(array.rio.crs) == SOUTH
            assert array.rio.transform(recalc=True) == layout.geobox.affine == array.rio.transform()
            assert array.dims[0] == "time"
            assert array.rio.encoded_nodata is not None


def test_time_is_the_start_of_each_period_with_its_bounds(tmp_path):
    finished(tmp_path / "a.zarr")
    with xarray.open_zarr(tmp_path / "a.zarr", group="patch") as cube:
        assert list(cube["time"].values) == [np.datetime64(first) for first, _ in PERIODS]
        assert list(cube["time_bnds"].values[:, 1]) == [
            np.datetime64(last) + np.timedelta64(1, "D") for _, last in PERIODS
        ]
        assert {"time_bnds", "spatial_ref"} <= set(cube.coords)


def test_the_groups_follow_the_conventions(tmp_path):
    finished(tmp_path / "a.zarr", [patch_layout(kind, name=kind) for kind in ALL])
    for kind in ALL:
        metadata = json.loads((tmp_path / "a.zarr" / kind / "zarr.json").read_text())
        zarr_cm.validate_many(metadata["attributes"], ["proj", "spatial"])
        assert {c["name"] for c in metadata["attributes"]["zarr_conventions"]} == {"geoemb:", "proj:", "spatial"}
        if STANDARDS.is_dir():
            for convention in ("geoemb", "proj", "spatial"):
                jsonschema.validate(metadata, json.loads((STANDARDS / f"zarr-{convention}.schema.json").read_text()))


def test_nothing_lies_under_the_final_name_before_the_end(tmp_path):
    store = begin(tmp_path / "a.zarr", [patch_layout()])
    write_all(store)
    assert [path.name for path in tmp_path.iterdir()] == ["a.zarr.partial"]
    store.finish()
    assert [path.name for path in tmp_path.iterdir()] == ["a.zarr"]


def test_a_store_does_not_end_while_units_are_missing(tmp_path):
    store = begin(tmp_path / "a.zarr", [patch_layout()])
    write_all(store, store.remaining()[1:])
    with pytest.raises(UnfinishedError, match=r"1 of 12 units are missing: \(0, 0, 0\).*kept in .*a.zarr.partial"):
        store.finish()


def test_summary_loss_and_what_it_is_made_from_are_kept_in_the_store(tmp_path):
    finished(tmp_path / "a.zarr", [patch_layout("int8-power")], attributes={"version": "0"})
    with xarray.open_zarr(tmp_path / "a.zarr") as root:
        found = root.attrs["anysat"]
    assert (found["version"], found["made_from"], found["summary"]) == ("0", MADE_FROM, {"seam_score": 1.05})
    loss = found["quantisation_loss"]["patch"]
    assert loss["vectors"] == int(content(patch_layout())[1].sum())
    assert 0 < loss["relative_l2"] < 0.02
    assert 0.999 < loss["cosine_worst"] < 1


def test_notes_of_the_units_come_back(tmp_path):
    store = begin(tmp_path / "a.zarr", [patch_layout()])
    store.write(Unit(1, 2, 0), parts([patch_layout()], Unit(1, 2, 0)), {"seam": [1.0, 2.0]})
    assert list(begin(tmp_path / "a.zarr", [patch_layout()]).notes()) == [(Unit(1, 2, 0), {"seam": [1.0, 2.0]})]


def test_an_unfinished_store_is_taken_up_and_ends_as_if_undisturbed(tmp_path):
    finished(tmp_path / "whole.zarr", all_layouts())
    store = begin(tmp_path / "a.zarr", all_layouts())
    write_all(store, list(store.units())[::3])
    again = begin(tmp_path / "a.zarr", all_layouts())
    assert set(again.remaining()) == set(again.units()) - set(list(again.units())[::3])
    write_all(again)
    again.finish({"seam_score": 1.05})
    assert same(tmp_path / "a.zarr", tmp_path / "whole.zarr")


def test_a_unit_whose_file_is_not_as_it_was_written_is_done_again(tmp_path):
    finished(tmp_path / "whole.zarr")
    store = begin(tmp_path / "a.zarr", [patch_layout()])
    write_all(store)
    file = store.data / "patch" / "embedding" / "c" / "1" / "0" / "1" / "0"
    file.write_bytes(file.read_bytes()[:-7])
    again = begin(tmp_path / "a.zarr", [patch_layout()])
    assert again.remaining() == [Unit(1, 1, 0)]
    write_all(again)
    again.finish({"seam_score": 1.05})
    assert same(tmp_path / "a.zarr", tmp_path / "whole.zarr")


@pytest.mark.parametrize("left", ["", "{", "[]", "{}", "\0" * 40])
def test_a_unit_whose_note_is_damaged_is_done_again(tmp_path, left):
    """As a power cut may leave it."""
    finished(tmp_path / "whole.zarr")
    store = begin(tmp_path / "a.zarr", [patch_layout()])
    write_all(store)
    (store.partial / "done" / "1-1-0.json").write_text(left)
    again = begin(tmp_path / "a.zarr", [patch_layout()])
    assert again.remaining() == [Unit(1, 1, 0)]
    assert len(list(again.notes())) == 11
    write_all(again)
    again.finish({"seam_score": 1.05})
    assert same(tmp_path / "a.zarr", tmp_path / "whole.zarr")


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("left", ["", "{", "[]"])
def test_a_store_that_does_not_say_what_it_is_made_from_is_begun_anew(tmp_path, left, overwrite):
    write_all(begin(tmp_path / "a.zarr", [patch_layout()]))
    (tmp_path / "a.zarr.partial" / "made-from.json").write_text(left)
    again = begin(tmp_path / "a.zarr", [patch_layout()], overwrite=overwrite)
    assert len(again.remaining()) == 12
    assert "started again, because" in again.begun_anew
    assert "made-from.json" in again.begun_anew
    assert not begin(tmp_path / "a.zarr", [patch_layout()]).begun_anew


def test_what_a_killed_writer_left_is_swept(tmp_path):
    store = begin(tmp_path / "a.zarr", [patch_layout()])
    left = [store.data / "patch" / "embedding" / "0.1f.partial", store.partial / "done" / "0-0-0.json.7.tmp",
            tmp_path / ".a.zarr.partial-x" / "store.zarr" / "zarr.json"]  # fmt: skip
    for path in left:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("half")
    begin(tmp_path / "a.zarr", [patch_layout()])
    assert not any(path.exists() for path in left)
    assert [path.name for path in tmp_path.iterdir()] == ["a.zarr.partial"]


def test_what_a_killed_writer_left_is_swept_only_of_the_store_itself(tmp_path):
    left, other = tmp_path / ".a[12].zarr.partial-x", tmp_path / ".a1.zarr.partial-x"
    left.mkdir()
    other.mkdir()
    for _ in range(2):
        begin(tmp_path / "a[12].zarr", [patch_layout()])
    assert (left.exists(), other.exists()) == (False, True)


def test_a_store_made_from_something_else_is_not_taken_up(tmp_path):
    begin(tmp_path / "a.zarr", [patch_layout()])
    other = MADE_FROM | {"weights": "xyz", "options": {"patch_size_m": 30.0}}
    with pytest.raises(
        StoreMismatchError, match=r'weights was "abc", now "xyz"; options.patch_size_m was 20.0, now 30.0'
    ):
        begin(tmp_path / "a.zarr", [patch_layout()], made_from=other)
    with pytest.raises(StoreMismatchError, match=r"layouts.patch.values was .*float32.*, now .*float16"):
        begin(tmp_path / "a.zarr", [patch_layout("float16")])
    assert begin(tmp_path / "a.zarr", [patch_layout()], made_from=other, overwrite=True).remaining()


def test_a_finished_store_is_replaced_only_at_the_end_and_only_when_asked_to(tmp_path):
    finished(tmp_path / "a.zarr", attributes={"version": "old"})
    with pytest.raises(OutputExistsError, match="a.zarr exists"):
        begin(tmp_path / "a.zarr", [patch_layout()])
    store = begin(tmp_path / "a.zarr", [patch_layout()], overwrite=True, attributes={"version": "new"})
    write_all(store)
    for version, end in (("old", store.finish), ("new", None)):
        with xarray.open_zarr(tmp_path / "a.zarr") as root:
            assert root.attrs["anysat"]["version"] == version
        if end:
            end()
    assert [path.name for path in tmp_path.iterdir()] == ["a.zarr"]


@pytest.mark.parametrize("renames", [0, 1, 2])
def test_stopping_within_the_last_steps_loses_neither_store(tmp_path, monkeypatch, renames):
    """Killed before, between and after the renames of old and new: the same call goes on, or finds it finished."""
    finished(tmp_path / "a.zarr", attributes={"version": "old"})
    store = begin(tmp_path / "a.zarr", [patch_layout()], overwrite=True, attributes={"version": "new"})
    write_all(store)
    rename, rmtree, done = Path.rename, store_module.shutil.rmtree, []

    def counted(self, target):
        if len(done) == renames:
            raise KeyboardInterrupt
        done.append(self)
        return rename(self, target)

    def stopped(path, **options):
        if len(done) == renames == 2:
            raise KeyboardInterrupt
        return rmtree(path, **options)

    monkeypatch.setattr(Path, "rename", counted)
    monkeypatch.setattr(store_module.shutil, "rmtree", stopped)
    with pytest.raises(KeyboardInterrupt):
        store.finish()
    monkeypatch.undo()
    if renames < 2:
        again = begin(tmp_path / "a.zarr", [patch_layout()], overwrite=True, attributes={"version": "new"})
        assert not again.remaining()
        again.finish()
    else:
        with pytest.raises(OutputExistsError):
            begin(tmp_path / "a.zarr", [patch_layout()])
    assert [path.name for path in tmp_path.iterdir()] == ["a.zarr"]
    with xarray.open_zarr(tmp_path / "a.zarr") as root:
        assert root.attrs["anysat"]["version"] == "new"


def test_values_that_are_said_to_be_valid_must_be_numbers(tmp_path):
    store = begin(tmp_path / "a.zarr", [patch_layout()])
    (values, valid) = parts([patch_layout()], Unit(0, 1, 0))["patch"]
    values[np.nonzero(valid)[0][0], np.nonzero(valid)[1][0], 3] = np.nan
    with pytest.raises(InputError, match="layout patch: expected finite values where valid"):
        store.write(Unit(0, 1, 0), {"patch": (values, valid)})
    with pytest.raises(InputError, match=r"values of shape \(4, 4, 6\), got \(3, 4, 6\)"):
        store.write(Unit(0, 1, 0), {"patch": (values[1:], valid)})
    assert not store.is_done(Unit(0, 1, 0))


def test_a_full_disk_leaves_the_unit_undone_and_the_rest_as_it_was(tmp_path, monkeypatch):
    import zarr.storage._local as local

    finished(tmp_path / "whole.zarr")
    store = begin(tmp_path / "a.zarr", [patch_layout()])
    write_all(store, store.remaining()[:7])
    put = local._put

    def full(path, value, exclusive=False):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.with_name("left.partial").write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(local, "_put", full)
    with pytest.raises(UnfinishedError, match=r"No space left on device.*kept in .*a.zarr.partial"):
        write_all(store)
    monkeypatch.setattr(local, "_put", put)
    again = begin(tmp_path / "a.zarr", [patch_layout()])
    assert len(again.remaining()) == 5
    write_all(again)
    again.finish({"seam_score": 1.05})
    assert same(tmp_path / "a.zarr", tmp_path / "whole.zarr")


def test_a_disk_that_is_full_at_the_start_says_so_and_nothing_is_left(tmp_path, monkeypatch):
    import zarr.storage._local as local

    def full(path, value, exclusive=False):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(local, "_put", full)
    with pytest.raises(WriteError, match="No space left on device"):
        begin(tmp_path / "a.zarr", [patch_layout()])
    assert not list(tmp_path.iterdir())


WRITER = """
import sys
from pathlib import Path
from store_builders import begin, parts, patch_layout
store = begin(Path(sys.argv[1]), [patch_layout()])
print("begun", flush=True)
for unit in store.remaining():
    store.write(unit, parts([patch_layout()], unit))
    print(unit, flush=True)
"""


def child(script: str, *words: object) -> subprocess.Popen:
    return subprocess.Popen([sys.executable, "-c", script, *map(str, words)], env=child_environment(),
                            stdout=subprocess.PIPE, text=True)  # fmt: skip


@pytest.mark.parametrize("delay_s", [0.0, 0.013])
def test_kill_9_loses_at_most_the_unit_in_flight(tmp_path, delay_s):
    finished(tmp_path / "whole.zarr")
    with child(WRITER, tmp_path / "a.zarr") as process:
        seen = [process.stdout.readline() for _ in range(4)]
        time.sleep(delay_s)
        process.send_signal(signal.SIGKILL)
        seen += process.stdout.readlines()
    again = begin(tmp_path / "a.zarr", [patch_layout()])
    assert 12 - len(seen) <= len(again.remaining()) <= 12 - (len(seen) - 1) < 12
    write_all(again)
    again.finish({"seam_score": 1.05})
    assert same(tmp_path / "a.zarr", tmp_path / "whole.zarr")


def test_a_second_process_does_not_take_up_a_store_that_is_being_written(tmp_path):
    store = begin(tmp_path / "a.zarr", [patch_layout()])
    script = WRITER.replace("store = begin", "from anysat.errors import InputError\ntry: begin").replace(
        "print(", "except InputError as error: print(error, flush=True); sys.exit()\nprint(", 1
    )
    with child(script, tmp_path / "a.zarr") as process:
        assert f"no other process working there, got process {os.getpid()}" in process.stdout.read()
    store.close()
    with child(WRITER, tmp_path / "a.zarr") as process:
        assert process.stdout.readline() == "begun\n"
        process.stdout.read()


HALF = """
import pickle, sys
from pathlib import Path
from store_builders import parts
store = pickle.loads(Path(sys.argv[1]).read_bytes())
for unit in list(store.units())[int(sys.argv[2])::2]:
    store.write(unit, parts(list(store.layouts.values()), unit))
"""


def test_two_processes_write_one_store(tmp_path):
    finished(tmp_path / "whole.zarr", all_layouts())
    store = begin(tmp_path / "a.zarr", all_layouts())
    (tmp_path / "store").write_bytes(pickle.dumps(store))
    writers = [child(HALF, tmp_path / "store", number) for number in range(2)]
    for process in writers:
        with process:
            assert process.wait() == 0
    store.finish({"seam_score": 1.05})
    assert same(tmp_path / "a.zarr", tmp_path / "whole.zarr")


def test_threads_write_one_store_in_any_order(tmp_path):
    finished(tmp_path / "whole.zarr", all_layouts())
    store = begin(tmp_path / "a.zarr", all_layouts())
    units = store.remaining()
    np.random.default_rng(0).shuffle(units)
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda unit: write_all(store, [Unit(*unit)]), units))
    store.finish({"seam_score": 1.05})
    assert same(tmp_path / "a.zarr", tmp_path / "whole.zarr")


def test_layouts_that_cannot_be_are_refused(tmp_path):
    with pytest.raises(RecordError, match="expected a north-up grid"):
        patch_layout(grid=GRID.flipy())
    with pytest.raises(RecordError, match="the same number of shards in all"):
        begin(tmp_path / "a.zarr", [patch_layout(), patch_layout(name="b", grid=geobox((40, 40)))])
    with pytest.raises(RecordError, match="different names"):
        begin(tmp_path / "a.zarr", [patch_layout(), patch_layout()])
    with pytest.raises(RecordError, match="a multiple of chunk_px = 3"):
        begin(tmp_path / "a.zarr", [patch_layout().__class__(name="a", geobox=GRID, shard_px=4, chunk_px=3)])
    assert not list(tmp_path.iterdir())


def test_the_place_of_an_unfinished_store_is_known():
    assert partial_of(Path("x/a.zarr")) == Path("x/a.zarr.partial")
    assert AreaStore(Path("x/a.zarr"), [patch_layout()], 2).shape == (2, 3, 2)
