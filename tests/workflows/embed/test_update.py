"""`anysat embed --keep` and `--update`: dates are added to a store, and it is as if they had always been there."""

import json
import signal
import subprocess
import sys

import numpy as np
import pytest
import rasterio
import rasterio.shutil

from anysat.cli import main
from anysat.modalities import MODALITIES as M
from geo_builders import geobox, write_tif
from series_builders import COLS, KEYS, ROWS, S1_DAYS, S2_DAYS, WAY, patches, write_dates


@pytest.fixture
def inputs(tmp_path):
    """Words of inputs whose last dates are still to come."""
    return [write_dates(tmp_path / "in", key, days[:-1]) for key, days in KEYS.items()]


def later(tmp_path, keys=("s2", "s1")):
    for key in keys:
        write_dates(tmp_path / "in", key, KEYS[key][-1:])


def embed(inputs, out, *words):
    return main(["embed", *inputs, f"--out={out}", *WAY, *words])


@pytest.mark.parametrize("keep", ["series", "features"])
def test_an_updated_store_is_that_of_all_dates_at_once(inputs, tmp_path, capsys, keep):
    out = tmp_path / "a.zarr"
    assert embed(inputs, out, f"--keep={keep}", "--dense=s1", "--also=.tif") == 0
    assert "keeping up to" in capsys.readouterr().err
    before = patches(out).load()
    later(tmp_path)
    assert main(["embed", "--update", str(out)]) == 0
    said = capsys.readouterr()
    assert "added to s2: 1 dates, 2020-06-30 to 2020-06-30" in said.out
    assert embed(inputs, tmp_path / "all.zarr", "--dense=s1") == 0
    for group in ("patch", "dense"):
        found, wanted = patches(out, group), patches(tmp_path / "all.zarr", group)
        np.testing.assert_array_equal(found.valid.values, wanted.valid.values)
        np.testing.assert_allclose(found.embedding.values, wanted.embedding.values, rtol=1e-5, atol=1e-5)
        np.testing.assert_array_equal(found.time.values, wanted.time.values)
    assert np.abs(before.embedding.values - patches(out).embedding.values).max() > 1e-3
    assert main(["catalog", "validate", str(out)]) == 0
    told = json.loads((out / "zarr.json").read_text())["attributes"]["anysat"]
    assert told["made_from"]["inputs"]["s1"]["dates"] == S1_DAYS
    assert len(list((tmp_path / "a.series").iterdir())) == 1
    with rasterio.open(tmp_path / "a.tif") as image:
        np.testing.assert_array_equal(image.read(), patches(out).embedding.values[0])


def test_dates_that_are_there_are_not_read_again(inputs, tmp_path, capsys):
    """Not even there: the new dates lie in folders of their own, and one sensor has none."""
    out = tmp_path / "a.zarr"
    assert embed(inputs, out, "--keep=series") == 0
    later(tmp_path)
    assert embed([inputs[0], write_dates(tmp_path / "three", "s1", S1_DAYS[:-1])], tmp_path / "all.zarr") == 0
    for day in S2_DAYS[:-1]:
        (tmp_path / "in" / "s2" / f"{day}.tif").unlink()
    write_dates(tmp_path / "in", "s2", S2_DAYS[-1:])
    capsys.readouterr()
    assert main(["embed", f"s1={tmp_path / 'three' / 's1'}", "--update", str(out)]) == 0
    said = capsys.readouterr().out
    assert "added to s1: nothing" in said
    assert "added to s2: 1 dates" in said
    all_at_once = tmp_path / "whole.zarr"
    write_dates(tmp_path / "in", "s2", S2_DAYS)
    assert embed([inputs[0], f"s1={tmp_path / 'three' / 's1'}"], all_at_once) == 0
    np.testing.assert_allclose(patches(out).embedding.values, patches(all_at_once).embedding.values, atol=1e-5)


def test_months_grow_and_new_ones_begin(inputs, tmp_path):
    out = tmp_path / "a.zarr"
    assert embed(inputs, out, "--keep=series", "--period=season") == 0
    later(tmp_path)
    write_dates(tmp_path / "in", "s1", ["2020-03-20"])
    assert main(["embed", "--update", str(out)]) == 0
    assert embed(inputs, tmp_path / "all.zarr", "--period=season") == 0
    found, wanted = patches(out), patches(tmp_path / "all.zarr")
    assert found.sizes["time"] == 3
    np.testing.assert_array_equal(found.valid.values, wanted.valid.values)
    np.testing.assert_allclose(found.embedding.values, wanted.embedding.values, atol=1e-5)


def test_with_nothing_new_nothing_is_computed(inputs, tmp_path, capsys, monkeypatch):
    out = tmp_path / "a.zarr"
    assert embed(inputs, out, "--keep=series") == 0
    monkeypatch.setattr("anysat.workflows.areas.run.run_here", None)
    before = patches(out).load()
    drawn = out.with_suffix(".png").stat().st_mtime_ns
    capsys.readouterr()
    assert main(["embed", "--update", str(out)]) == 0
    said = capsys.readouterr().out
    assert "computed by an earlier run" in said
    assert f"nothing new: {out} and the files made from it are unchanged" in said
    assert "wrote" not in said
    assert out.with_suffix(".png").stat().st_mtime_ns == drawn
    np.testing.assert_array_equal(patches(out).embedding.values, before.embedding.values)


def test_statistics_places_and_steps_are_those_of_the_first_time(inputs, tmp_path):
    out = tmp_path / "a.zarr"
    words = ["--statistics=from-data", "--places=removed", "--store=int8-scale", "--keep=series"]
    way = [word for word in WAY if "places" not in word and "dataset" not in word]
    assert main(["embed", *inputs, f"--out={out}", *way, *words]) == 0
    old = json.loads((out / "zarr.json").read_text())["attributes"]["anysat"]["made_from"]
    scale = patches(out).scale.values
    later(tmp_path)
    assert main(["embed", "--update", str(out)]) == 0
    new = json.loads((out / "zarr.json").read_text())["attributes"]["anysat"]["made_from"]
    assert new["statistics"] == old["statistics"]
    assert new["options"] == old["options"]
    np.testing.assert_array_equal(patches(out).scale.values, scale)


def test_an_updated_store_tells_how_its_own_places_were_measured(inputs, tmp_path, monkeypatch):
    out = tmp_path / "a.zarr"
    with monkeypatch.context() as patch:
        patch.setattr("anysat.workflows.embed.area.REMOVED", "removed, measured elsewhere")
        assert main(["embed", *inputs, f"--out={out}", *(w for w in WAY if "places" not in w), "--keep=series"]) == 0
    later(tmp_path)
    assert main(["embed", "--update", str(out)]) == 0
    told = json.loads((out / "zarr.json").read_text())["attributes"]["anysat"]["made_from"]
    assert told["inputs"]["s1"]["dates"] == S1_DAYS
    assert told["options"]["places"] == "removed, measured elsewhere"


def test_an_update_that_is_killed_leaves_the_store_and_goes_on(inputs, tmp_path):
    out = tmp_path / "a.zarr"
    assert embed(inputs, out, "--keep=series", "--period=season") == 0
    before = patches(out).embedding.values
    later(tmp_path)
    program = (
        "import os, signal, sys; from anysat.areas import growing; from anysat.cli import main\n"
        "kept, calls = growing.encode_growing, []\n"
        "def last(*a, **k):\n"
        "    calls.append(1)\n"
        "    if len(calls) == 3: os.kill(os.getpid(), signal.SIGKILL)\n"
        "    return kept(*a, **k)\n"
        "import anysat.areas.job; anysat.areas.job.encode_growing = last\n"
        f"main(['embed', '--update', {str(out)!r}])"
    )
    assert subprocess.run([sys.executable, "-c", program]).returncode == -signal.SIGKILL
    np.testing.assert_array_equal(patches(out).embedding.values, before)
    assert main(["embed", "--update", str(out)]) == 0
    assert embed(inputs, tmp_path / "all.zarr", "--period=season") == 0
    np.testing.assert_allclose(
        patches(out).embedding.values, patches(tmp_path / "all.zarr").embedding.values, atol=1e-5
    )
    assert not out.with_name("a.zarr.partial").exists()


def test_what_could_not_be_read_is_read_with_the_new_dates(inputs, tmp_path, monkeypatch):
    monkeypatch.setattr("anysat.areas.job.RETRY_AFTER_S", 0.0)
    out, broken = tmp_path / "a.zarr", tmp_path / "in" / "s1" / f"{S1_DAYS[1]}.tif"
    whole = broken.read_bytes()
    rasterio.shutil.copy(broken, tmp_path / "cog.tif", driver="COG")  # what says where pixels lie comes first
    cog = (tmp_path / "cog.tif").read_bytes()
    broken.write_bytes(cog[: len(cog) // 2])
    assert embed(inputs, out, "--keep=series") == 1
    broken.write_bytes(whole)
    later(tmp_path)
    assert main(["embed", "--update", str(out)]) == 0
    assert embed(inputs, tmp_path / "all.zarr") == 0
    np.testing.assert_allclose(
        patches(out).embedding.values, patches(tmp_path / "all.zarr").embedding.values, atol=1e-5
    )


MISTAKES = [
    (["--update", "{out}", "--window=16"], "unknown option '--window'"),
    (["--update", "{out}", "--readers=0"], "--readers: expected one or more"),
    (["--update", "{tmp}/none.zarr"], "none.zarr"),
    (["--update", "{out}", "--out={tmp}/b.zarr"], "unknown option '--out'"),
    (["--update", "{tmp}/z.zarr"], "z.zarr: no such file, but one store per zone: z-utm31n.zarr, z-utm32n.zarr"),
    (["--update", "{tmp}/y[1].zarr"], "one store per zone: y[1]-utm31n.zarr, y[1]-utm32n.zarr"),
    (["s2={tmp}/in/s2", "--update", "{plain}"], "--keep series"),
    (["l8={tmp}/in/s2", "--update", "{out}"], "l8"),
    (["--update", "{out}", "--period=month", "--dates=2020-02-01/2020-03-31"], "2020-01-03"),
    (["--out={tmp}/b.zarr", "--patch-size-m=20"], "expected inputs, such as s2=cube.nc"),
    (["s2={tmp}/in/s2", "--patch-size-m=20"], "--out"),
    (["s2={tmp}/in/s2", "--patch-size-m=20", "--out={tmp}/b.tif", "--keep=series"], "NAME.zarr"),
    (["s2={tmp}/in/s2", "--patch-size-m=20", "--out={tmp}/b.zarr", "--keep=all"], "features"),
    (["s2={tmp}/in/s2", "--patch-size-m=20", "--out={tmp}/b.zarr", "--keep=series", "--precision=bf16"], "float32"),
]


def test_mistakes_have_one_clear_message_and_change_nothing(inputs, tmp_path, capsys):
    out, plain = tmp_path / "a.zarr", tmp_path / "plain.zarr"
    assert embed(inputs, out, "--keep=series") == 0
    assert embed(inputs[:1], plain) == 0
    names, before = {"out": out, "tmp": tmp_path, "plain": plain}, patches(out).embedding.values
    for zone in (31, 32):
        (tmp_path / f"z-utm{zone}n.zarr").mkdir()
        (tmp_path / f"y[1]-utm{zone}n.zarr").mkdir()
    there = sorted(path.name for path in tmp_path.iterdir())
    for words, told in MISTAKES:
        capsys.readouterr()
        assert main(["embed", *(word.format(**names) for word in words)]) == 2, words
        said = capsys.readouterr().err
        assert told in said, (words, said)
        assert len(said.strip().splitlines()) == 1, said
    assert sorted(path.name for path in tmp_path.iterdir()) == there
    np.testing.assert_array_equal(patches(out).embedding.values, before)


def test_an_option_that_is_typed_counts_though_it_is_the_default(inputs, tmp_path, monkeypatch):
    out, seen = tmp_path / "a.zarr", []
    assert embed(inputs, out, "--keep=series", "--dates=2020-01-01/2020-05-31", "--period=month") == 0
    monkeypatch.setattr(
        "anysat.workflows.embed.area.open_inputs", lambda config, *_, **__: seen.append(config) or 1 / 0
    )
    for words in ([], ["--dates=null"]):
        with pytest.raises(ZeroDivisionError):
            main(["embed", "--update", str(out), *words])
    assert [(config.dates, config.period, config.window) for config in seen] == [
        ("2020-01-01/2020-05-31", "month", 8), (None, "month", 8)
    ]  # fmt: skip


def test_a_store_of_a_version_with_other_options_is_refused(inputs, tmp_path, capsys):
    out = tmp_path / "a.zarr"
    assert embed(inputs, out, "--keep=series") == 0
    about = next((tmp_path / "a.series").iterdir()) / "about.json"
    kept = json.loads(about.read_text())
    kept["config"]["modalities"] = kept["config"].pop("sensors")
    about.write_text(json.dumps(kept))
    assert main(["embed", "--update", str(out)]) == 2
    assert "with other options (modalities, sensors); embed again with --overwrite" in capsys.readouterr().err


def test_inputs_in_a_file_that_is_gone_are_given_anew_by_another(inputs, tmp_path, capsys):
    for name in ("a", "b"):
        said = "".join(f"{key}: {{path: {tmp_path / 'in' / key}}}\n" for key in KEYS)
        (tmp_path / f"{name}.yaml").write_text(said)
    out = tmp_path / "a.zarr"
    assert embed([str(tmp_path / "a.yaml")], out, "--keep=series") == 0
    (tmp_path / "a.yaml").unlink()
    later(tmp_path)
    assert main(["embed", "--update", str(out)]) == 2
    assert "a.yaml" in capsys.readouterr().err
    assert main(["embed", str(tmp_path / "b.yaml"), "--update", str(out)]) == 0
    np.testing.assert_allclose(patches(out).embedding.values, store_of(inputs, tmp_path), atol=1e-5)


def store_of(inputs, tmp_path, *words):
    """The store of all dates at once."""
    assert embed(inputs, tmp_path / "all.zarr", "--overwrite", *words) == 0
    return patches(tmp_path / "all.zarr").embedding.values


def cut_in_half(path, tmp_path):
    """Make a file unreadable but for its head; gives the whole content."""
    whole = path.read_bytes()
    rasterio.shutil.copy(path, tmp_path / "cog.tif", driver="COG")
    cog = (tmp_path / "cog.tif").read_bytes()
    path.write_bytes(cog[: len(cog) // 2])
    return whole


def test_a_new_date_that_cannot_be_read_comes_in_when_it_can(inputs, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("anysat.areas.job.RETRY_AFTER_S", 0.0)
    out = tmp_path / "a.zarr"
    assert embed(inputs, out, "--keep=series") == 0
    later(tmp_path, ["s1"])
    broken = tmp_path / "in" / "s1" / f"{S1_DAYS[-1]}.tif"
    whole = cut_in_half(broken, tmp_path)
    assert main(["embed", "--update", str(out)]) == 1
    assert "could not be read" in capsys.readouterr().out
    broken.write_bytes(whole)
    write_dates(tmp_path / "new", "s1", ["2020-08-01"])
    assert main(["embed", f"s1={tmp_path / 'new' / 's1'}", "--update", str(out)]) == 2  # the others are needed again
    assert S1_DAYS[0] in capsys.readouterr().err
    assert main(["embed", "--update", str(out)]) == 0
    np.testing.assert_allclose(patches(out).embedding.values, store_of(inputs, tmp_path), atol=1e-5)


def test_dates_outside_the_periods_are_not_in_the_store(inputs, tmp_path, capsys):
    out = tmp_path / "a.zarr"
    assert embed(inputs, out, "--keep=series", "--period=2020-01-01/2020-02-28") == 0
    later(tmp_path)
    assert main(["embed", "--update", str(out)]) == 0
    assert "added to s1: nothing" in capsys.readouterr().out
    assert main(["embed", "--update", str(out), "--period=2020-01-01/2020-12-31"]) == 0
    assert "added to s1: 3 dates, 2020-03-01" in capsys.readouterr().out
    wanted = store_of(inputs, tmp_path, "--period=2020-01-01/2020-12-31")
    np.testing.assert_allclose(patches(out).embedding.values, wanted, atol=1e-5)


def test_scenes_of_other_ground_are_not_in_the_store(inputs, tmp_path, capsys):
    out = tmp_path / "a.zarr"
    assert embed(inputs, out, "--keep=series") == 0
    (tmp_path / "far").mkdir()
    far = geobox((ROWS, COLS)).translate_pix(5000, 0)
    values = np.full((len(M["s1"].band_names), ROWS, COLS), -12, np.float32)
    write_tif(tmp_path / "far" / f"{S1_DAYS[-1]}.tif", values, far, names=M["s1"].band_names)
    assert main(["embed", f"s1={tmp_path / 'far'}", "--update", str(out)]) == 0
    assert "added to s1: nothing" in capsys.readouterr().out
    later(tmp_path)
    assert main(["embed", *inputs, "--update", str(out)]) == 0
    np.testing.assert_allclose(patches(out).embedding.values, store_of(inputs, tmp_path), atol=1e-5)


def test_what_cannot_be_added_to_is_refused(inputs, tmp_path, capsys):
    """Another image, though not the same one that was moved."""
    image = np.full((4, 26 * 50, 30 * 50), 120, np.float32)
    fine = geobox((ROWS, COLS)).zoom_out(0.02)
    photo = write_tif(tmp_path / "photo.tif", image, fine, names=M["aerial"].band_names)
    words = [f"s1={tmp_path / 'in' / 's1'}", f"aerial={photo}@2020-05-01"]
    way = [*(word for word in WAY if "dataset" not in word), "--statistics=from-data"]
    assert main(["embed", *words, f"--out={tmp_path / 'a.zarr'}", *way, "--keep=series", "--memory-gb=2"]) == 0
    before = patches(tmp_path / "a.zarr").embedding.values
    write_tif(tmp_path / "other.tif", image + 1, fine, names=M["aerial"].band_names)
    later(tmp_path, ["s1"])
    (tmp_path / "moved").mkdir()
    photo.rename(tmp_path / "moved" / "same.tif")  # the same image, wherever it lies
    moved = f"aerial={tmp_path / 'moved' / 'same.tif'}@2020-05-01"
    assert main(["embed", moved, "--update", str(tmp_path / "a.zarr")]) == 0
    assert np.abs(patches(tmp_path / "a.zarr").embedding.values - before).max() > 1e-3
    capsys.readouterr()
    assert main(["embed", "--update", str(tmp_path / "a.zarr")]) == 0
    assert "computed by an earlier run" in capsys.readouterr().out
    assert main(["embed", f"aerial={tmp_path / 'other.tif'}@2021-05-01", "--update", str(tmp_path / "a.zarr")]) == 2
    assert "not the aerial image" in capsys.readouterr().err


def test_a_store_of_which_nothing_was_kept_says_so(inputs, tmp_path, capsys):
    """Of a tile and of an area; a store that tells nothing of its making, and a folder that is no store, are others."""
    import zarr

    assert main(["embed", *inputs, f"--out={tmp_path / 'tile.zarr'}", *WAY[:3]]) == 0
    assert embed(inputs, tmp_path / "area.zarr") == 0
    assert embed(inputs, tmp_path / "gone.zarr", "--keep=series") == 0
    (next((tmp_path / "gone.series").iterdir()) / "about.json").unlink()
    zarr.open_group(tmp_path / "area.zarr").attrs.clear()
    told = {"tile": "it was made without --keep; embed again with --keep series", "area": "does not record how it was made",
            "gone": "the data for updates are not in gone.series", "in": "it is not a Zarr store"}  # fmt: skip
    for name, message in told.items():
        store = tmp_path / (name if name == "in" else f"{name}.zarr")
        assert main(["embed", "--update", str(store)]) == 2
        assert message in capsys.readouterr().err


def test_files_made_from_a_store_follow_it(inputs, tmp_path):
    out = tmp_path / "a.zarr"
    assert embed(inputs, out, "--keep=series", "--period=season", "--dates=2020-01-01/2020-02-28", "--also=.tif") == 0
    assert (tmp_path / "a.tif").exists()
    later(tmp_path)
    assert main(["embed", "--update", str(out), "--dates=2020-01-01/2020-12-31"]) == 0
    assert not (tmp_path / "a.tif").exists()  # there are several periods now, each with a file of its own
    names = sorted(path.name for path in tmp_path.glob("a_*.tif"))
    assert len(names) == patches(out).sizes["time"]
    with rasterio.open(tmp_path / names[0]) as image:
        np.testing.assert_array_equal(image.read(), patches(out).embedding.values[0])


def test_a_store_whose_replacement_was_stopped_comes_back(inputs, tmp_path):
    out = tmp_path / "a.zarr"
    assert embed(inputs, out, "--keep=series") == 0
    (tmp_path / "a.zarr.partial").mkdir()
    out.rename(tmp_path / "a.zarr.partial" / "replaced")
    later(tmp_path)
    assert main(["embed", "--update", str(out)]) == 0
    np.testing.assert_allclose(patches(out).embedding.values, store_of(inputs, tmp_path), atol=1e-5)


def test_what_was_kept_goes_with_a_store_that_keeps_nothing(inputs, tmp_path):
    out = tmp_path / "a.zarr"
    assert embed(inputs, out, "--keep=series") == 0
    assert embed(inputs, out, "--overwrite") == 0
    assert not (tmp_path / "a.series").exists()
