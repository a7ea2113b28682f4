"""Statistics over a dataset equal a direct computation, whoever computes them and however often they are stopped."""

import json
import math
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import anysat
from anysat.batch import Batch, Tile
from anysat.cli import main
from anysat.data.base import DatasetRecord, Samples, TileDataset
from anysat.data.layout import DatasetFolder, Layout
from anysat.data.open import open_dataset
from anysat.data.statistics import PERCENTS, RESOLUTION, compute_statistics, draw_evenly, never_valid
from anysat.errors import InputError, MissingFileError, OutputExistsError, RecordError, StatisticsError
from anysat.modalities import MODALITIES
from anysat.model import checkpoint
from anysat.normalise import BandStatistics, Normaliser
from anysat.observation import Observation
from builders import random_model
from miniatures import copied, miniature

NAME = "treesatai_ts"
DATES = np.datetime64("2020-01-01") + np.arange(9)


def made(tiles, modalities=("s2",), tmp=Path("made")):
    """A dataset of tiles that a function makes of their number."""
    record = DatasetRecord(
        name="made", title="Made", about="", modalities=modalities, tile_m=40.0, patch_sizes_m=(20.0,), targets=(),
        splits={"train": ("train",)}, split_rule="", date_rule="", licence="", size="", homepage="", citation="",
        layouts=(), list_samples=lambda folder: None,
        read_sample=lambda folder, row, keys: Tile.of(*tiles(int(row["id"]))),
    )  # fmt: skip
    samples = Samples(id=[str(i) for i in range(20)], split=["train"] * 20)
    return TileDataset(record, DatasetFolder(tmp, Layout(name="made", marker="", entries=())), samples, modalities)


def ragged(index):
    """One to nine dates of values whose level and spread differ from tile to tile, a third of them invalid."""
    rng = np.random.default_rng(index)
    values = 1e4 * index + rng.normal(0, 1 + 50 * index, (1 + index % 9, 10, 4, 4))
    return (
        Observation.of(MODALITIES["s2"], values, dates=DATES[: len(values)], valid=rng.random(values.shape) > 1 / 3),
    )


def pooled(dataset, key):
    """Valid values of each band of all tiles together."""
    seen = [tile.observations[key] for tile in dataset if key in tile.observations]
    return [
        np.concatenate([o.values[..., b, :, :][o.valid[..., b, :, :]].astype(np.float64) for o in seen])
        for b in range(len(seen[0].modality.bands))
    ]


@pytest.fixture(scope="module")
def train():
    return open_dataset(NAME, miniature(NAME))


@pytest.fixture(scope="module")
def computed(train):
    return compute_statistics(train)


def test_mean_and_deviation_are_those_of_all_valid_values_together(train, computed):
    for key, statistics in computed.statistics[NAME].items():
        bands = pooled(train, key)
        np.testing.assert_allclose(statistics.mean, [band.mean() for band in bands], rtol=1e-12)
        np.testing.assert_allclose(statistics.std, [band.std() for band in bands], rtol=1e-10)


def test_counts_and_shares_are_exact(train, computed):
    for key, statistics in computed.statistics[NAME].items():
        total = sum(tile.observations[key].valid[..., 0, :, :].size for tile in train)
        counts = [len(band) for band in pooled(train, key)]
        assert list(statistics.count) == counts
        np.testing.assert_allclose(statistics.invalid_frac, [1 - count / total for count in counts], atol=1e-12)


def test_percentiles_are_right_to_the_stated_resolution(train, computed):
    for key, statistics in computed.statistics[NAME].items():
        for index, band in enumerate(pooled(train, key)):
            found = [statistics.percentiles[str(percent)][index] for percent in PERCENTS]
            expected = np.percentile(band, PERCENTS, method="inverted_cdf")
            np.testing.assert_allclose(found, expected, rtol=RESOLUTION)
            assert (found[0], found[-1]) == (band.min(), band.max())


def test_percentiles_of_small_whole_numbers_are_exact(train, computed):
    photo = computed.statistics[NAME]["aerial"]
    for index, band in enumerate(pooled(train, "aerial")):
        for percent in PERCENTS:
            assert photo.percentiles[str(percent)][index] == np.percentile(band, percent, method="inverted_cdf")


@pytest.mark.parametrize("level", [0.0, -1e3, 1e4])
def test_values_around_zero_and_below_are_ranked_as_they_are(level):
    dataset = made(lambda i: (replace_values(ragged(i)[0], level, i),))
    statistics = compute_statistics(dataset).statistics["made"]["s2"]
    band = pooled(dataset, "s2")[3]
    expected = np.percentile(band, PERCENTS, method="inverted_cdf")
    found = [statistics.percentiles[str(percent)][3] for percent in PERCENTS]
    np.testing.assert_allclose(found, expected, rtol=RESOLUTION, atol=1e-30)
    assert statistics.mean[3] == pytest.approx(band.mean(), rel=1e-9)
    assert statistics.std[3] == pytest.approx(band.std(), rel=1e-9)


def replace_values(observation, level, seed):
    values = np.random.default_rng(seed).normal(level, 3.0, observation.values.shape).astype(np.float32)
    return replace(observation, values=np.where(observation.valid, values, 0))


def test_a_large_level_does_not_swallow_a_small_spread():
    def tiles(index):
        values = 1e7 + np.random.default_rng(index).integers(0, 4, (5, 10, 4, 4))
        return (Observation.of(MODALITIES["s2"], values, dates=DATES[:5]),)

    dataset = made(tiles)
    statistics = compute_statistics(dataset).statistics["made"]["s2"]
    np.testing.assert_allclose(statistics.std, [band.std() for band in pooled(dataset, "s2")], rtol=1e-9)


# Faults of the published computation (spec 4.0, C7 to C9)


@pytest.mark.parametrize("chunks", [200, 3])
def test_ragged_series_weigh_by_their_valid_values_not_by_tile(chunks, monkeypatch):
    monkeypatch.setattr("anysat.data.statistics._MOST_CHUNKS", chunks)
    dataset = made(ragged)
    statistics = compute_statistics(dataset).statistics["made"]["s2"]
    tiles = [tile.observations["s2"] for tile in dataset]
    of_tiles = np.mean([[o.values[:, b][o.valid[:, b]].mean() for b in range(10)] for o in tiles], axis=0)
    together = [band.mean() for band in pooled(dataset, "s2")]
    np.testing.assert_allclose(statistics.mean, together, rtol=1e-12)
    assert (abs(np.array(statistics.mean) / of_tiles - 1) > 0.01).all()


def test_the_deviation_is_not_the_mean_of_deviations_of_tiles():
    dataset = made(ragged)
    statistics = compute_statistics(dataset).statistics["made"]["s2"]
    tiles = [tile.observations["s2"] for tile in dataset]
    of_tiles = np.mean([[o.values[:, b][o.valid[:, b]].std() for b in range(10)] for o in tiles], axis=0)
    np.testing.assert_allclose(statistics.std, [band.std() for band in pooled(dataset, "s2")], rtol=1e-12)
    assert (np.array(statistics.std) > 10 * of_tiles).all()


@pytest.mark.parametrize("last", [0, 19])
def test_every_tile_has_a_part_in_the_figures(last):
    def shifted(index):
        (observation,) = ragged(index)
        values = observation.values + (1e5 if index == last else 0) * observation.valid
        return (replace(observation, values=values),)

    plain, moved = (compute_statistics(made(tiles)).statistics["made"]["s2"].mean for tiles in (ragged, shifted))
    assert (np.subtract(moved, plain) > 100).all()


def test_figures_are_of_bands_and_of_no_other_axis():
    def tiles(index):
        values = np.broadcast_to(100.0 * np.arange(10)[:, None, None], (10, 4, 4)) + index % 2
        return (Observation.of(MODALITIES["s2"], values[None], dates=DATES[:1]),)

    statistics = compute_statistics(made(tiles)).statistics["made"]["s2"]
    np.testing.assert_allclose(statistics.mean, 100.0 * np.arange(10) + 0.5)
    np.testing.assert_allclose(statistics.std, 0.5)


# Bands and modalities that are missing


def test_a_band_that_is_never_valid_is_said_and_left_as_it_is():
    def tiles(index):
        values = np.random.default_rng(index).normal(5, 1, (2, 9, 4, 4))
        names = [name for name in MODALITIES["s2"].band_names if name != "B8A"]
        return (Observation.of(MODALITIES["s2"], values, bands=names, dates=DATES[:2]),)

    normaliser = compute_statistics(made(tiles))
    statistics = normaliser.statistics["made"]["s2"]
    assert (statistics.mean[7], statistics.std[7], statistics.invalid_frac[7], statistics.count[7]) == (0, 1, 1, 0)
    assert never_valid(normaliser) == ["s2 B8A"]


def test_a_band_without_spread_has_deviation_one():
    value = np.float32(0.1)
    dataset = made(lambda i: (Observation.of(MODALITIES["s2"], np.full((3, 10, 4, 4), value), dates=DATES[:3]),))
    statistics = compute_statistics(dataset).statistics["made"]["s2"]
    assert set(statistics.std) == {1.0}
    assert set(statistics.mean) == {float(value)}


def test_a_modality_that_some_tiles_lack_is_counted_where_it_is():
    def tiles(index):
        photo = Observation.of(MODALITIES["aerial"], np.full((4, 200, 200), 7.0))
        return (*ragged(index), photo) if index % 2 else ragged(index)

    statistics = compute_statistics(made(tiles, ("s2", "aerial"))).statistics["made"]
    assert statistics["aerial"].count == (10 * 200 * 200,) * 4
    assert statistics["aerial"].invalid_frac == (0.0,) * 4


@pytest.mark.parametrize("chunks", [200, 2])
def test_tiles_with_other_units_are_refused(chunks, monkeypatch):
    monkeypatch.setattr("anysat.data.statistics._MOST_CHUNKS", chunks)

    def tiles(index):
        unit = "linear" if index < 15 else "dB"
        return (
            Observation.of(MODALITIES["s1"], np.ones((1, 2, 4, 4)), bands=["VV", "VH"], units=unit, dates=DATES[:1]),
        )

    with pytest.raises(StatisticsError, match="units are dB.*earlier tiles have linear"):
        compute_statistics(made(tiles, ("s1",)))


def test_no_tile_is_an_error(train):
    with pytest.raises(InputError, match=f"{NAME}, split train: expected at least one tile"):
        compute_statistics(train.take(np.zeros(len(train), bool)))


# Part of a dataset


def test_the_drawn_tiles_are_spread_over_the_dataset_and_depend_on_the_seed_only():
    drawn = draw_evenly(1000, 10, seed=3)
    assert (drawn // 100 == np.arange(10)).all()
    assert (drawn == draw_evenly(1000, 10, seed=3)).all()
    assert (drawn != draw_evenly(1000, 10, seed=4)).any()


@pytest.mark.parametrize(("available", "wanted"), [(7, 5), (7, 7), (100, 99), (3, 1)])
def test_no_tile_is_drawn_twice(available, wanted):
    assert len(set(draw_evenly(available, wanted, 0).tolist())) == wanted


@pytest.mark.parametrize("wanted", [0, 8])
def test_more_tiles_than_there_are_or_none_cannot_be_drawn(wanted):
    with pytest.raises(RecordError, match="--samples: expected a number from 1 to 7"):
        draw_evenly(7, wanted, 0)


def test_statistics_of_a_part_say_so():
    dataset = made(ragged)
    normaliser = compute_statistics(dataset, num_samples=5, seed=2)
    chosen = dataset.take(draw_evenly(20, 5, 2))
    np.testing.assert_allclose(
        normaliser.statistics["made"]["s2"].mean, [band.mean() for band in pooled(chosen, "s2")], rtol=1e-12
    )
    facts = normaliser.provenance["made"]
    assert (facts["tiles"], facts["tiles_available"], facts["seed"]) == (5, 20, 2)
    assert "5 of 20 tiles" in normaliser.source


# The same bytes, always


def command(out, *more):
    return ["datasets", "stats", NAME, str(miniature(NAME)), "--out", str(out), "--num-workers", "0", *more]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The file of an uninterrupted run."""
    out = tmp_path_factory.mktemp("whole") / "stats.json"
    assert main(command(out)) == 0
    return out.read_bytes()


def test_two_processes_give_the_bytes_of_one(whole, tmp_path):
    assert main([*command(tmp_path / "stats.json"), "--num-workers", "2"]) == 0
    assert (tmp_path / "stats.json").read_bytes() == whole
    assert not (tmp_path / "stats.json.partial").exists()


KILL = """
import os, signal, sys
from pathlib import Path
from anysat.cli import main
replace, calls = Path.replace, []
def deadly(self, target):
    calls.append(target)
    if len(calls) == 4 and sys.argv[1] == "before": os.kill(os.getpid(), signal.SIGKILL)
    done = replace(self, target)
    if len(calls) == 4: os.kill(os.getpid(), signal.SIGKILL)
    return done
Path.replace = deadly
main(sys.argv[2:])
"""


@pytest.fixture(scope="module", params=["before", "after"])
def killed(request, tmp_path_factory):
    """A folder in which a run was killed just before or after its third chunk got its name."""
    folder = tmp_path_factory.mktemp(request.param)
    done = subprocess.run([sys.executable, "-c", KILL, request.param, *command(folder / "stats.json")], check=False)
    assert done.returncode == -signal.SIGKILL
    return folder


@pytest.fixture
def out(killed, tmp_path):
    """The file that the killed run was to write, in a folder of its own."""
    shutil.copytree(killed, tmp_path / "copy")
    assert [path.name for path in (tmp_path / "copy").iterdir()] == ["stats.json.partial"]
    return tmp_path / "copy" / "stats.json"


def test_killed_and_taken_up_again_gives_the_bytes_of_an_uninterrupted_run(out, whole):
    assert main(command(out)) == 0
    assert out.read_bytes() == whole
    assert not out.with_name("stats.json.partial").exists()


def test_what_was_finished_is_not_read_again(out, killed, monkeypatch):
    read, original = [], TileDataset.__getitem__
    monkeypatch.setattr(TileDataset, "__getitem__", lambda self, i: (read.append(i), original(self, i))[1])
    assert main(command(out)) == 0
    assert read == ([2, 3, 4] if killed.name.startswith("before") else [3, 4])


@pytest.mark.parametrize(
    "other", [["--split", "test"], ["--modalities", "[s2]"], ["--samples", "3"], ["--split", "all"]]
)
def test_the_beginning_of_something_else_is_refused(other, out, capsys):
    before = sorted(out.with_name("stats.json.partial").glob("*.*"))  # all but the lock of the dead process
    assert main([*command(out), *other]) == 2
    assert "stats.json.partial: expected the same work" in capsys.readouterr().err
    assert sorted(out.with_name("stats.json.partial").glob("*.*")) == before


def test_a_folder_with_other_files_is_not_taken_for_unfinished_work(train, tmp_path):
    (tmp_path / "mine.txt").touch()
    with pytest.raises(InputError, match="expected an empty folder or unfinished work"):
        compute_statistics(train, partial=tmp_path)


def test_an_unreadable_tile_is_named_and_what_was_done_is_kept(tmp_path):
    root = copied(NAME, tmp_path)
    dataset = open_dataset(NAME, root)
    photo = root / "aerial" / f"{dataset.ids[3]}.tif"
    kept = photo.read_bytes()
    photo.unlink()
    with pytest.raises(MissingFileError, match=photo.name):
        compute_statistics(dataset, partial=tmp_path / "partial")
    assert len(list((tmp_path / "partial").glob("chunk*"))) == 3
    photo.write_bytes(kept)
    assert compute_statistics(dataset, partial=tmp_path / "partial") == compute_statistics(dataset)


def test_an_error_in_a_worker_process_comes_through(tmp_path, capsys):
    root = copied(NAME, tmp_path)
    photo = sorted((root / "aerial").iterdir())[0]
    photo.unlink()
    words = [
        "datasets",
        "stats",
        NAME,
        str(root),
        "--out",
        str(tmp_path / "s.json"),
        "--num-workers",
        "2",
        "--split",
        "all",
    ]
    assert main(words) == 2
    assert f"{photo.name}: no such file" in capsys.readouterr().err


def test_a_full_disk_keeps_what_is_done_and_says_so(tmp_path, capsys, monkeypatch):
    out = tmp_path / "stats.json"
    fsync, calls = os.fsync, []

    def full(number):
        calls.append(number)
        if len(calls) == 4:
            raise OSError(28, "No space left on device")
        return fsync(number)

    monkeypatch.setattr(os, "fsync", full)
    assert main(command(out)) == 2
    said = capsys.readouterr().err
    assert "No space left on device" in said
    assert "what is finished is kept in" in said
    assert len(list((tmp_path / "stats.json.partial").glob("*"))) == 3  # the plan and two chunks, no half of a third


# The file, and where it travels


def test_the_file_is_read_as_it_was_written(whole, computed, tmp_path):
    (tmp_path / "stats.json").write_bytes(whole)
    assert Normaliser.read(tmp_path / "stats.json") == computed


def test_the_file_knows_nothing_of_this_machine(whole):
    assert str(miniature(NAME).parent) not in whole.decode()
    assert json.loads(whole)["provenance"][NAME]["folder"] == miniature(NAME).name


def test_an_existing_file_is_not_replaced_unless_asked(whole, tmp_path, capsys):
    out = tmp_path / "stats.json"
    out.write_text("mine")
    assert main(command(out)) == 2
    assert "stats.json exists" in capsys.readouterr().err
    assert out.read_text() == "mine"
    assert main([*command(out), "--overwrite", "true"]) == 0
    assert out.read_bytes() == whole
    assert issubclass(OutputExistsError, FileExistsError)


def test_a_warning_line_names_bands_never_valid(capsys, tmp_path, monkeypatch):
    original = TileDataset.__getitem__

    def without_b2(self, index):
        tile = original(self, index)
        s2 = tile.observations["s2"]
        valid = s2.valid.copy()
        valid[:, 0] = False
        return replace(tile, observations={**tile.observations, "s2": replace(s2, valid=valid)})

    monkeypatch.setattr(TileDataset, "__getitem__", without_b2)
    assert main(command(tmp_path / "stats.json")) == 0
    assert "warning: no valid values for s2 B2: mean 0 and deviation 1 were written" in capsys.readouterr().out


def test_statistics_travel_with_a_checkpoint(computed, tmp_path):
    model = random_model(dim=64, depth=1, num_heads=2)
    model.normaliser = computed
    checkpoint.save(model, tmp_path / "w.safetensors")
    assert anysat.load(tmp_path / "w.safetensors").normaliser == computed


def test_content_of_earlier_versions_still_loads():
    old = {"bands": ["B"], "mean": [1.0], "std": [2.0], "units": ["DN"]}
    normaliser = Normaliser.from_dict({"source": "x", "statistics": {"d": {"m": old}}})
    assert normaliser.statistics["d"]["m"] == BandStatistics(bands=("B",), mean=(1.0,), std=(2.0,), units=("DN",))
    assert normaliser.to_dict() == {"source": "x", "statistics": {"d": {"m": old}}}


def test_the_published_preset_is_written_as_before():
    preset = Normaliser.preset(NAME)
    assert set(preset.to_dict()) == {"source", "statistics"}
    assert set(preset.to_dict()["statistics"][NAME]["s2"]) == {"bands", "mean", "std", "units"}
    assert Normaliser.from_dict(preset.to_dict()) == preset


@pytest.mark.parametrize(
    "odd", [{"count": (1,)}, {"invalid_frac": (math.nan, 0.0)}, {"percentiles": {"50": (1.0, 2.0, 3.0)}}]
)
def test_figures_that_do_not_fit_the_bands_are_refused(odd):
    with pytest.raises(StatisticsError, match="give one finite figure per band"):
        BandStatistics(bands=("a", "b"), mean=(0, 0), std=(1, 1), units=("DN", "DN"), **odd)


def test_statistics_of_several_datasets_are_joined_for_a_mixture(computed):
    other = compute_statistics(made(ragged))
    joined = Normaliser.joined([computed, other])
    assert set(joined.statistics) == set(joined.provenance) == {NAME, "made"}
    assert Normaliser.from_dict(json.loads(json.dumps(joined.to_dict()))) == joined
    with pytest.raises(StatisticsError, match="'made': they are given twice"):
        Normaliser.joined([joined, other])


def test_standardised_values_of_the_dataset_have_mean_zero_and_deviation_one(train, computed):
    batches = [computed.standardise(Batch.of([tile])) for tile in train]
    for key in train.modalities:
        values = torch.cat([batch[key].movedim(-3, 0).flatten(1) for batch in batches], 1).double()
        valid = torch.cat([Batch.of([tile]).observations[key].valid.movedim(-3, 0).flatten(1) for tile in train], 1)
        for band, mask in zip(values, valid, strict=True):
            assert float(band[mask].mean()) == pytest.approx(0, abs=1e-4)
            assert float(band[mask].std(correction=0)) == pytest.approx(1, abs=1e-4)


def test_the_source_of_one_of_several_datasets_is_its_own(computed):
    assert computed.source_of(None) == computed.source_of(NAME) == computed.source
    joined = Normaliser.joined([computed, compute_statistics(made(ragged))])
    assert joined.source_of(NAME) == computed.source
    assert replace(joined, source="by hand").source_of("made") == "those of made, among: by hand"
