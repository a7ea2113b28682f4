"""The probes by which pretraining is judged: fair splits, honest intervals, the same features however they are made."""

import json
import sys

import numpy as np
import pretraining_features as features
import pretraining_probe as probes
import pretraining_real as real
import pretraining_scores as scores
import pretraining_unlabelled as unlabelled
import pretraining_world as generated
import pytest
import torch

from anysat.batch import Batch, Tile
from anysat.data.mixture import Mixture, Part
from anysat.errors import InputError
from anysat.modalities import MODALITIES
from anysat.model.checkpoint import save
from anysat.model.config import ModelConfig
from anysat.normalise import Normaliser
from anysat.observation import Observation

TINY = ModelConfig(dim=64, depth=1, num_heads=2, modalities=(MODALITIES["s2"], MODALITIES["s1"]))


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return generated.world_set(tmp_path_factory.mktemp("world"), num_tiles=9)


@pytest.fixture(scope="module")
def model(world):
    made = features.untrained(TINY, 0)
    for part in made.parameters():  # no token is a constant
        torch.nn.init.normal_(part, std=0.1)
    features.with_statistics(made, world.batch(list(range(world.num_train))))
    return made


def separable(count=400, groups=20, seed=0):
    """Two classes on one axis among noise."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(2, size=count)
    found = rng.normal(size=(count, 5))
    found[:, 0] += 3 * labels
    return found, scores.Samples(labels, np.arange(count) % groups)


def test_a_probe_finds_what_is_there_and_guesses_where_nothing_is():
    found, samples = separable()
    train = samples.groups < 12
    good, bad = (scores.probe({"one": part}, samples, train, ~train) for part in (found, found[:, 1:]))
    assert float(good.score()) > 0.75
    assert abs(float(bad.score())) < 0.2


def test_test_labels_choose_nothing():
    found, samples = separable()
    train = samples.groups < 12
    sets = {"own": found[:, 1:3], "all": found[:, 1:]}
    turned = scores.Samples(np.where(train, samples.labels, 1 - samples.labels), samples.groups)
    one, other = (scores.probe(sets, each, train, ~train) for each in (samples, turned))
    assert (one.features, one.penalties) == (other.features, other.penalties)
    assert float(one.score()) == pytest.approx(-float(other.score()))


def test_the_feature_set_is_the_best_on_validation_groups():
    found, samples = separable()
    train = samples.groups < 12
    assert scores.probe({"noise": found[:, 1:], "good": found}, samples, train, ~train).features == "good"


def test_every_sample_of_a_cross_probe_is_answered_once():
    found, samples = separable()
    answers = scores.cross_probe({"one": found}, samples, samples.groups % 5)
    assert answers.total.sum() == len(found)
    assert float(answers.score()) > 0.75


def test_an_interval_holds_the_score_and_equals_differ_by_nothing():
    found, samples = separable()
    train = samples.groups < 12
    answers = scores.probe({"one": found}, samples, train, ~train)
    made = scores.compare(answers, {"itself": answers})
    low, high = made["interval"]
    assert low < made["score"] < high
    assert made["minus"]["itself"] == {"difference": 0.0, "interval": [0.0, 0.0]}


def test_several_questions_are_scored_one_by_one():
    right, total = np.array([[[1, 2], [4, 0]]]), np.array([[[2, 2], [4, 4]]])
    assert float(scores.Answers(right, total).score()) == pytest.approx((0.5 + 0.0) / 2)


def test_what_nobody_saw_becomes_the_training_mean():
    columns = np.array([[1.0], [3.0], [100.0], [np.nan]])
    filled = scores._finite(columns, np.array([True, True, False, False]))
    assert filled[:, 0].tolist() == [1, 3, 100, 2]


def test_tokens_that_agree_are_found_and_a_constant_offset_hides_only_raw_ones():
    token = torch.randn(50, 8, generator=torch.Generator().manual_seed(0))
    found = scores.without_labels({"fused": token, "s2": token, "s1": token - 30 * torch.ones(8)})["retrieval"]
    assert found["centred"] == 1
    assert found["raw"] < 0.5
    assert found["chance"] == 1 / 50


def test_the_evaluation_world_is_read_back_as_it_was_generated(tmp_path):
    one, other = (generated.world_set(tmp_path, num_tiles=3) for _ in range(2))
    assert len(list(tmp_path.iterdir())) == 1
    assert all(np.array_equal(one.arrays[name], other.arrays[name], equal_nan=True) for name in one.arrays)


def test_statistics_of_the_world_are_those_of_the_difficulty_benchmark(world):
    import world_difficulty

    found, table = generated.statistics(world), world_difficulty.collect(generated.SEED, 3)
    for task in ("land_cover", "crop", "change"):  # flood is drawn in another turn
        values, labels, _, _ = table[task].stacked()
        order = np.r_[0:10, 12:22, 10:12, 22:24]  # theirs is sensor by sensor
        np.testing.assert_allclose(found[task][: len(values), order], values, rtol=1e-5)
        assert np.array_equal(world.samples(task).labels[: len(labels)], labels)


@pytest.mark.parametrize("keys", [("s2", "s1"), ("s1",)])
def test_pixel_features_are_what_encode_gives(world, model, keys):
    batch = world.batch([0, 1], keys)
    found = features.pixel_features(model, batch, 40)
    with torch.inference_mode():
        for number, key in enumerate(keys):
            dense = model.encode(batch, 40, dense=key).dense.permute(0, 3, 1, 2).numpy()
            ours = found[:, [*range(64), *range(64 * (number + 1), 64 * (number + 2))]]
            np.testing.assert_allclose(ours, dense, atol=1e-4)


def test_pixels_a_modality_did_not_see_are_nan_and_the_others_are_not(world, model):
    tile = world._tile(0, ("s2", "s1"), False)
    s2 = tile.observations["s2"]
    hidden = np.ones((1, 1, *s2.shape_px), bool)
    hidden[..., :4, :8] = False
    seen = Observation.of(s2.modality, s2.values, dates=s2.dates, valid=s2.valid & hidden)
    batch = Batch.of([Tile.of(seen, tile.observations["s1"], dataset="world")])
    found = features.pixel_features(model, batch, 40)[0]
    assert np.isnan(found[64:128, :4, :8]).all()
    assert np.isfinite(found[:64]).all()
    assert np.isfinite(found[128:]).all()


def test_feature_sets_are_made_of_the_blocks_they_name():
    columns = np.repeat(np.arange(3), 2)[None]
    found = features.feature_sets(columns, ["fused", "s2", "s1"])
    assert {name: one[0].tolist() for name, one in found.items()} == {
        "own": [1, 1, 2, 2], "dense": [0, 0, 1, 1], "all": [0, 0, 1, 1, 2, 2]
    }  # fmt: skip


def test_a_model_keeps_its_own_statistics_and_gets_those_it_lacks(world):
    batch = world.batch([0])
    own = Normaliser.from_batch(world.batch([1]))
    made = features.untrained(TINY, 0)
    made.normaliser = own
    assert "own" in features.with_statistics(made, batch)
    assert made.normaliser is own
    assert "has none" in features.with_statistics(made, Batch.of([Tile.of(*_seen(), dataset="other")]))
    assert set(made.normaliser.statistics) == {"world", "other"}


def _seen():
    return [Observation.of(MODALITIES["s2"], np.ones((1, 10, 4, 4)), dates=["2020-01-01"])]


def test_world_command_writes_what_the_table_shows(world, model, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(probes, "world_set", lambda *_, **__: world)
    monkeypatch.setattr(probes, "TASKS", ("land_cover", "crop"))  # a small world has both classes of few others
    save(model, tmp_path / "model.safetensors")
    words = ["world", "--weights", tmp_path / "model.safetensors", "--json", tmp_path / "a.json"]
    words += ["--cache", tmp_path / "cache", "--note", "objective=none"]
    monkeypatch.setattr(sys, "argv", ["probe", *map(str, words)])
    probes.main()
    record = json.loads((tmp_path / "a.json").read_text())
    assert record["about"] == {"objective": "none"}
    assert set(record["tasks"]) == {"land_cover", "crop"}
    minus = record["tasks"]["crop"]["encoder"]["minus"]
    assert set(minus) == {"encoder + statistics", *generated.BASELINES, "untrained"}
    assert len(list((tmp_path / "cache").iterdir())) == 1
    beginning = record["untrained"]["retrieval"]
    assert beginning["patches"] == record["retrieval"]["patches"]
    assert beginning["centred"] != record["retrieval"]["centred"]
    said = capsys.readouterr().out
    assert f"{record['tasks']['crop']['encoder']['score']:.2f} (" in said
    assert "a minus untrained" in said


def test_without_the_real_data_the_command_says_so(tmp_path, monkeypatch, capsys):
    words = ["real", "--data", tmp_path / "no", "--weights", "untrained", "--json", tmp_path / "a.json"]
    monkeypatch.setattr(sys, "argv", ["probe", *map(str, words)])
    probes.main()
    assert "skipped: there is no folder" in capsys.readouterr().out


def test_crops_are_told_from_the_numbers_that_the_dense_term_asks(monkeypatch, tmp_path):
    rng, months = (
        np.random.default_rng(0),
        np.arange("2017-01", "2018-09", dtype="datetime64[M]").astype("datetime64[D]"),
    )
    labels = rng.integers(2, size=60)

    def pixel(key, label):
        values = rng.normal(size=(len(months), len(MODALITIES[key].bands), 1, 1))
        return Observation.of(MODALITIES[key], values + 2 * label * (months > np.datetime64("2018"))[:, None, None, None],
                              dates=months)  # fmt: skip

    tiles = [Tile.of(pixel("s2", label), pixel("s1", label), id=str(n)) for n, label in enumerate(labels)]
    place, regions = np.stack([np.arange(60), np.zeros(60, int), np.zeros(60, int)], axis=1), np.arange(60) // 6
    task = real.RealTask(real.RealTiles("points", tiles), 10.0, place, labels, ("wheat", "maize"), regions,
                         {"regions": regions % 3}, is_series=True)  # fmt: skip
    monkeypatch.setattr(unlabelled, "tasks", lambda data: {"crops": task})
    found = unlabelled.asked(tmp_path)
    assert found["all months"]["score"] > 0.8
    assert found["2017"]["score"] < 0.5  # the classes differ in the year after


def test_pretraining_tiles_leave_out_every_fold_0(shared_data):
    points, scenes, tasks = real.points(shared_data), real.scenes(shared_data), real.tasks(shared_data)
    for task in tasks.values():
        for split in task.fold_0_is_unseen:
            test = {task.tiles.ids[index] for index in np.flatnonzero(task.folds[split] == 0)}
            rest = set(task.tiles.ids) - test
            assert test
            assert not test & {*points.ids, *scenes.ids}
            assert rest <= {*points.ids, *scenes.ids}
    looked_at = set(real.unseen(shared_data).ids)
    assert {tile.id for tile in real.pairs(shared_data).tiles} < looked_at
    assert not looked_at & set(scenes.ids)


def test_regions_are_in_one_fold_each(shared_data):
    task = real.tasks(shared_data)["crops"]
    assert max(len(np.unique(task.folds["regions"][task.groups == number])) for number in np.unique(task.groups)) == 1


def test_real_tiles_hold_what_the_files_say(shared_data):
    task = real.tasks(shared_data)["crops"]
    first = task.tiles[0]
    assert first.observations["s2"].valid[:, 7].sum() == 0  # B8A is not in the file
    assert first.observations["s1"].values[0, 0, 0, 0] == pytest.approx(20 * np.log10(4216) - 83, abs=1e-4)
    assert task.classes[task.labels[0]] == "Maize"
    assert max(float(tile.observations["s2"].values.max()) for tile in task.tiles.tiles) <= real.S2_LIMIT


def test_labels_of_scenes_are_those_under_the_pixels(shared_data):
    import rasterio

    task = real.tasks(shared_data)["water"]
    with rasterio.open(next((shared_data / "sen1floods11" / "LabelHand").glob("*.tif"))) as file:
        whole = file.read(1)
    for (tile, row, col), label in zip(task.place[::50], task.labels[::50], strict=True):
        _, down, right = task.tiles.ids[tile].split("/")
        assert whole[int(down) * 32 + row, int(right) * 32 + col] == label


def test_real_features_are_in_the_order_of_the_samples(shared_data):
    task = real.tasks(shared_data)["land cover"]
    found = task.baselines()["statistics"]
    assert len(found) == len(task.labels)
    for number in (0, len(found) // 2, len(found) - 1):
        tile, row, col = task.place[number]
        assert found[number][0] == task.tiles[tile].observations["s2"].values[0, 0, row, col]


def test_real_tiles_are_drawn_in_a_mixture(shared_data):
    parts = [Part(tiles=real.points(shared_data), batch_size=4, patch_sizes_m=(10,)),
             Part(tiles=real.scenes(shared_data), batch_size=2, patch_sizes_m=(20, 40))]  # fmt: skip
    drawn = [Mixture(parts=parts).draw(step) for step in range(4)]
    assert {draw.dataset for draw in drawn} == {real.POINTS, real.SCENES}
    with pytest.raises(InputError, match="to balance classes"):
        parts[0].tiles.labels()
