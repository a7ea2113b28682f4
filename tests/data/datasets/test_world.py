"""Generated and shipped data: the world as a dataset, six real pairs, and folders made ready to train on."""

import fcntl
import importlib.util
import json
import multiprocessing
import os
import shutil
import signal
import sys
import time
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from anysat.data.base import PACK_INDEX
from anysat.data.datasets import bigearthnet_pairs as pairs
from anysat.data.datasets.world import KEYS, MARKER, WorldSettings
from anysat.data.open import find_dataset, open_dataset
from anysat.data.pack import verify_pack
from anysat.data.prepare import prepare, prepare_fetched, prepare_world
from anysat.data.statistics import compute_statistics
from anysat.data.work import fingerprint
from anysat.data.world import FACTORS, THEMES, World
from anysat.errors import RecordError, SourceError, UnknownNameError
from anysat.normalise import Normaliser
from anysat.patches import PatchGrid
from anysat.picture_samples import colours_of
from miniatures import miniature

RADAR = ("alos", "s1")
"""Modalities that are generated quickly."""


def settings(**changes):
    return WorldSettings(**{"tiles": 3, "dates": 2, "modalities": RADAR, **changes})


def write_world(root, content):
    (root / MARKER).write_text(json.dumps(content))
    return root


def assert_equal(tile, other):
    for key, seen in other.observations.items():
        np.testing.assert_array_equal(tile.observations[key].values, seen.values)
        np.testing.assert_array_equal(tile.observations[key].valid, seen.valid)


# the generated world


def test_a_tile_is_that_of_the_world_with_its_seed_number_year_and_dates(tmp_path):
    root = write_world(tmp_path, {"tiles": 2, "seed": 5, "first": 7, "year": 2018, "dates": 3, "modalities": ["s1"]})
    tile = open_dataset("world", root, "all")[1]
    expected = World(5).tile(8, extent_m=120.0, year=2018).observe("s1", count=3)
    np.testing.assert_array_equal(tile.observations["s1"].values, expected.values)
    np.testing.assert_array_equal(tile.observations["s1"].dates, expected.dates)


def test_a_tile_knows_where_it_lies(tmp_path):
    tile = open_dataset("world", write_world(tmp_path, settings().to_dict()), "all")[2]
    assert tile.geobox == World(0).tile(2, extent_m=120.0).geobox(10.0)


def test_targets_are_the_maps_of_the_world_and_cost_nothing_where_they_are_not_asked_for(tmp_path, monkeypatch):
    root = write_world(tmp_path, settings().to_dict())
    crop = open_dataset("world", root, "all", targets=["crop"])[1].targets["crop"]
    np.testing.assert_array_equal(crop, World(0).tile(1, extent_m=120.0).raster("crop", 10.0))
    monkeypatch.setattr("anysat.data.world.WorldTile.raster", None)
    assert not open_dataset("world", root, "all", targets=())[1].targets


def test_classes_of_targets_are_those_of_the_world():
    record = open_dataset("world", miniature("world"), "all").record
    assert {target.name: target.classes for target in record.targets}.items() <= FACTORS.items()


@pytest.mark.parametrize("name", ["land_cover", "crop", "change", "flood"])
def test_classes_have_colours_of_the_ground_that_are_told_apart(name, tmp_path):
    """They take no part in what a dataset is known by: results and prepared copies of the world keep theirs."""
    write_world(tmp_path, {"tiles": 3})
    dataset = open_dataset("world", tmp_path, "all")
    target = dataset.record.target(name)
    colours = colours_of(target)
    apart = np.abs(colours[:, None] - colours).sum(-1) + np.eye(len(colours))
    assert apart.min() > 0.3
    plain = replace(dataset.record, targets=tuple(replace(one, colours=()) for one in dataset.record.targets))
    assert fingerprint(dataset) == fingerprint(replace(dataset, record=plain))


def test_water_is_blue_and_forest_green():
    (water, forest), found = (0, 1), colours_of(find_dataset("world").target("land_cover"))
    assert (found[water].argmax(), found[forest].argmax()) == (2, 1)


def test_every_split_meets_every_theme(tmp_path):
    root = write_world(tmp_path, {"tiles": 132, "first": 1000})
    for split in ("train", "val", "test"):
        numbers = open_dataset("world", root, split).samples.columns["number"]
        assert set(np.unique(numbers % len(THEMES))) == set(range(len(THEMES)))


def test_a_tile_keeps_its_split_in_any_folder_that_holds_it(tmp_path):
    whole = open_dataset("world", write_world(tmp_path, {"tiles": 100}), "all").samples
    part = open_dataset("world", write_world(tmp_path, {"tiles": 20, "first": 50}), "all").samples
    assert [row["split"] for row in part] == [row["split"] for row in whole.take(range(50, 70))]


def test_missing_settings_have_defaults_and_null_stands_for_all_modalities(tmp_path):
    root = write_world(tmp_path, {"tiles": 1, "modalities": None, "seed": 0})
    assert WorldSettings.of(json.loads((root / MARKER).read_text())) == WorldSettings(tiles=1, modalities=KEYS)


def test_settings_come_back_from_their_file():
    made = settings(seed=4, first=9, year=2011, extent_m=60)
    assert WorldSettings.of(json.loads(json.dumps(made.to_dict()))) == made


@pytest.mark.parametrize("side_m", [30, 60])
def test_tiles_may_be_smaller(side_m, tmp_path):
    root = write_world(tmp_path, {"tiles": 1, "extent_m": side_m, "dates": 1})
    tile = open_dataset("world", root, "all", modalities=["spot", "s1", "alos"])[0]
    shapes = {seen.modality: seen.shape_px for seen in tile.observations.values()}
    assert PatchGrid.fit(shapes, side_m, "cell")
    assert tile.targets["crop"].shape == (side_m // 10, side_m // 10)


def test_patches_of_10_m_fit_without_the_modalities_of_30_m():
    tile = open_dataset("world", miniature("world"), modalities=["aerial", "s2", "s1-asc", "modis"])[0]
    for patch_size_m in (10, 20, 40):
        assert PatchGrid.fit({o.modality: o.shape_px for o in tile.observations.values()}, patch_size_m, "cell")


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ({"seed": 1}, "`tiles`"),
        ([3], "`tiles`"),
        ({"tiles": 3, "colour": 1}, "colour"),
        ({"tiles": 0}, "tiles"),
        ({"tiles": 2.5}, "tiles"),
        ({"tiles": 3, "seed": -1}, "seed"),
        ({"tiles": 3, "year": 1066}, "year"),
        ({"tiles": 3, "dates": 400}, "dates"),
        ({"tiles": 3, "extent_m": 100}, "multiple of 30 m"),
        ({"tiles": 3, "extent_m": "120"}, "multiple of 30 m"),
        ({"tiles": 3, "modalities": ["s3"]}, "unknown modality"),
        ({"tiles": 3, "modalities": []}, "unknown modality"),
        ({"tiles": 3, "modalities": 3}, "modalities"),
    ],
)
def test_a_wrong_setting_is_named_with_its_file(content, told, tmp_path):
    with pytest.raises(SourceError, match=told) as caught:
        open_dataset("world", write_world(tmp_path, content))
    assert str(tmp_path / MARKER) in str(caught.value)


def test_settings_made_in_code_are_checked_as_well():
    with pytest.raises(RecordError, match="first"):
        settings(first=-1)
    with pytest.raises(UnknownNameError, match="hls"):
        settings(modalities=("hls",))


def test_asking_for_a_modality_that_is_not_generated_is_refused(tmp_path):
    root = write_world(tmp_path, settings().to_dict())
    with pytest.raises(SourceError, match="it has no s2, only alos, s1"):
        open_dataset("world", root, "all", modalities=["s2"])[0]


# real pairs

needs_pairs = pytest.mark.skipif(
    importlib.util.find_spec(pairs.PACKAGE) is None, reason=f"imagery is missing: {pairs.INSTALL}"
)


@needs_pairs
def test_five_real_pairs_train_and_one_validates(tmp_path):
    root = pairs.write_pairs(pairs.write_pairs(tmp_path))
    assert [len(open_dataset("bigearthnet_pairs", root, split)) for split in ("train", "val", "test")] == [5, 1, 0]


@needs_pairs
def test_a_real_pair_has_its_real_dates(tmp_path):
    tile = open_dataset("bigearthnet_pairs", pairs.write_pairs(tmp_path), "all")[3]
    assert tile.id == "S2B_MSIL2A_20170924T93020_69_24"
    assert str(tile.observations["s2"].dates[0]) == "2017-09-24"
    assert str(tile.observations["s1"].dates[0]) == "2017-09-25"


@needs_pairs
def test_a_real_pair_is_what_geo_sources_read(tmp_path):
    """Bands of 10 m and radar exactly; bands of 20 m are interpolated there and repeated here."""
    from anysat.workflows.demo.data import read_pairs

    known = {pair.tile.id: pair.tile for pair in read_pairs(pairs.find_archives())}
    for tile in open_dataset("bigearthnet_pairs", pairs.write_pairs(tmp_path), "all"):
        other = known[tile.id]
        np.testing.assert_allclose(tile.observations["s1"].values, other.observations["s1"].values)
        for band in ("B2", "B3", "B4", "B8"):
            index = tile.observations["s2"].modality.find_band(band)
            stored = (part.observations["s2"].values[:, index] for part in (tile, other))
            np.testing.assert_array_equal(*stored)


def test_pairs_of_the_miniature_are_what_was_written():
    tile = open_dataset("bigearthnet_pairs", miniature("bigearthnet_pairs"), "all")[0]
    world = World(0).tile(int(tile.id.split("_")[-2]), extent_m=1200.0, year=2017)
    for key, half in (("s1", 1), ("s2", 2)):
        expected = world.observe(key, count=1)
        seen = tile.observations[key]
        np.testing.assert_array_equal(seen.dates, expected.dates)
        np.testing.assert_allclose(seen.values[..., ::half, ::half], expected.values[..., ::half, ::half])


def test_a_band_of_20_m_is_repeated_over_its_ground():
    tile = open_dataset("bigearthnet_pairs", miniature("bigearthnet_pairs"), "all", modalities=["s2"])[1]
    band = tile.observations["s2"].values[0, tile.observations["s2"].modality.find_band("B11")]
    for row, col in ((0, 1), (1, 0), (1, 1)):
        np.testing.assert_array_equal(band[row::2, col::2], band[::2, ::2])


def test_without_the_package_the_command_that_installs_it_is_told(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, pairs.PACKAGE, None)
    with pytest.raises(SourceError, match=r"pip install --no-deps bigearthnet-common==2\.8\.0"):
        pairs.write_pairs(tmp_path)


def test_an_archive_that_is_none_is_named(tmp_path):
    (tmp_path / "broken.tar.bz2").write_bytes(b"nothing")
    with pytest.raises(SourceError, match="broken.tar.bz2"):
        pairs.write_pairs(tmp_path / "out", {"s1": tmp_path / "broken.tar.bz2"})


# made ready to train on


def test_prepared_tiles_are_the_generated_ones(tmp_path):
    root, _ = prepare_world(settings(), tmp_path / "cache")
    loose = open_dataset("world", write_world(tmp_path, settings().to_dict()), "all")
    packed = open_dataset("world", root, "all")
    assert (root / PACK_INDEX).is_file()
    assert packed.ids == loose.ids
    assert packed.modalities == RADAR
    for index in range(len(loose)):
        assert_equal(packed[index], loose[index])
        np.testing.assert_array_equal(packed[index].targets["flood"], loose[index].targets["flood"])


def test_prepared_statistics_are_those_of_the_training_split(tmp_path):
    root, found = prepare_world(settings(tiles=6), tmp_path)
    expected = compute_statistics(open_dataset("world", root, "train"))
    assert found.statistics == expected.statistics
    assert "4 of 4 tiles of world, split train" in found.source


def test_the_second_call_reads_what_the_first_made(tmp_path, monkeypatch):
    first = prepare_world(settings(), tmp_path)
    monkeypatch.setattr("anysat.data.world.World.tile", None)
    again = prepare_world(settings(), tmp_path)
    assert (again[0], again[1].statistics) == (first[0], first[1].statistics)


@pytest.mark.parametrize("change", [{"seed": 1}, {"tiles": 2}, {"first": 1}, {"year": 2019}, {"dates": 3},
                                    {"extent_m": 60}, {"modalities": ("s1",)}])  # fmt: skip
def test_other_settings_are_prepared_elsewhere(change, tmp_path, monkeypatch):
    monkeypatch.setattr("anysat.data.prepare.prepare", lambda name, root, home, **_: (home, None))
    assert prepare_world(settings(), tmp_path)[0] != prepare_world(settings(**change), tmp_path)[0]


def test_other_parameters_of_the_world_are_prepared_elsewhere(tmp_path, monkeypatch):
    monkeypatch.setattr("anysat.data.prepare.prepare", lambda name, root, home, **_: (home, None))
    before, _ = prepare_world(settings(), tmp_path)
    monkeypatch.setattr("anysat.data.world.PARAMETERS_SHA256", "other")
    assert prepare_world(settings(), tmp_path)[0] != before


def test_another_format_of_packs_is_prepared_elsewhere(tmp_path, monkeypatch):
    """An upgrade leaves alone what the version before it, which may still be in use, has made."""
    monkeypatch.setattr("anysat.data.prepare.prepare", lambda name, root, home, **_: (home, None))
    before, _ = prepare_world(settings(), tmp_path)
    monkeypatch.setattr("anysat.data.prepare.FORMAT", 3)
    assert prepare_world(settings(), tmp_path)[0] != before


@pytest.mark.parametrize("change", [{"format": 1}, {"targets": []}, {"shards": None}])
def test_a_prepared_copy_that_cannot_be_opened_is_made_again(change, tmp_path):
    root, _ = prepare_world(settings(), tmp_path)
    index = json.loads((root / PACK_INDEX).read_text())
    (root / PACK_INDEX).write_text(json.dumps(index | change))
    root, _ = prepare_world(settings(), tmp_path)
    assert json.loads((root / PACK_INDEX).read_text()) == index


@pytest.mark.parametrize("damage", [lambda path: path.unlink(), lambda path: os.truncate(path, 1000)])
def test_a_prepared_copy_whose_shard_is_gone_or_cut_off_is_made_again(damage, tmp_path):
    root, _ = prepare_world(settings(), tmp_path)
    damage(next(root.glob("*.tar")))
    root, _ = prepare_world(settings(), tmp_path)
    assert verify_pack(root) == 3


def test_statistics_that_cannot_be_read_are_made_again(tmp_path):
    root, before = prepare_world(settings(), tmp_path)
    (root.parent / "statistics.json").write_text("{")
    assert prepare_world(settings(), tmp_path)[1].statistics == before.statistics


def test_unfinished_work_of_another_version_is_begun_again(tmp_path, monkeypatch):
    """Nobody could name another place for it, as the messages of the commands advise."""
    with monkeypatch.context() as other:
        other.setattr("anysat.data.pack.write.versions", lambda: {"numpy": "1"})
        other.setattr("anysat.data.pack.write._finish", None)
        with pytest.raises(TypeError):
            prepare_world(settings(), tmp_path)
    assert list(tmp_path.glob("*/packed.partial/*.tar"))
    root, _ = prepare_world(settings(), tmp_path)
    with monkeypatch.context() as other:
        other.setattr("anysat.data.statistics.versions", lambda: {"numpy": "1"})
        other.setattr("anysat.data.statistics._joined", None)
        (root.parent / "statistics.json").unlink()
        with pytest.raises(TypeError):
            prepare_world(settings(), tmp_path)
    assert list(tmp_path.glob("*/statistics.partial"))
    assert prepare_world(settings(), tmp_path)[0] == root


def test_files_are_fetched_only_where_there_is_no_copy_and_by_one_process_at_a_time(tmp_path, monkeypatch):
    fetched = []

    def fetch(folder):
        with (folder.parent / "lock").open() as lock, pytest.raises(BlockingIOError):
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        fetched.append(folder)
        return shutil.copytree(miniature("bigearthnet_pairs"), folder)

    monkeypatch.setattr(pairs, "DATASET", replace(pairs.DATASET, fetch=fetch))
    first = prepare_fetched("bigearthnet_pairs", tmp_path)
    again = prepare_fetched("bigearthnet_pairs", tmp_path)
    assert len(fetched) == 1
    assert (again[0], again[1].statistics) == (first[0], first[1].statistics)


def test_what_is_done_is_shown(tmp_path):
    shown = {}

    @contextmanager
    def progress(what, total):
        counts = []
        yield counts.append
        shown[what] = (total, sum(counts))

    prepare_world(settings(tiles=6), tmp_path, progress=progress)
    assert shown == {"packing world": (6, 6), "statistics of world": (4, 4)}


def test_any_dataset_is_prepared(tmp_path):
    root, normaliser = prepare("bigearthnet_pairs", miniature("bigearthnet_pairs"), tmp_path)
    assert verify_pack(root) == 6
    assert set(normaliser.table("bigearthnet_pairs")) == {"s2", "s1"}
    assert Normaliser.read(tmp_path / "statistics.json").statistics == normaliser.statistics


SMALL = {"tiles": 8, "modalities": ("s1",), "dates": 1}


def _prepare(folder: str) -> None:
    prepare_world(settings(**SMALL), Path(folder))


def _files(root):
    return {path.name: path.read_bytes() for path in root.iterdir()}


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    return _files(prepare_world(settings(**SMALL), tmp_path_factory.mktemp("whole"))[0])


def test_work_that_was_killed_goes_on_to_the_same_bytes(tmp_path, uninterrupted):
    process = multiprocessing.get_context("spawn").Process(target=_prepare, args=(str(tmp_path),))
    process.start()
    while not list(tmp_path.glob("*/packed.partial/*.tar")) and process.is_alive():
        time.sleep(0.002)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    assert not list(tmp_path.glob("*/statistics.json"))
    assert _files(prepare_world(settings(**SMALL), tmp_path)[0]) == uninterrupted


def test_two_processes_at_once_leave_one_right_result(tmp_path, uninterrupted):
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=_prepare, args=(str(tmp_path),)) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0]
    (home,) = tmp_path.iterdir()
    assert _files(home / "packed") == uninterrupted
    assert {path.name for path in home.iterdir()} == {"packed", "statistics.json", MARKER}
