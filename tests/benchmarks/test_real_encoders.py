"""Encoders on the real labelled tasks: what they see, that no test label reaches them, that records can be compared."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from real_builders import made_task, once

pytest.importorskip("sklearn")

from real import choice, encoders, finetuning, frozen, protocol, seasons, simple, unlabelled, yardsticks
from real.features import samples
from real.record import measure_or_print

from anysat.batch import Batch

TINY = finetuning.Recipe(
    members=2, inner_folds=2, num_steps=60, learning_rate=6e-4, batch_size=16, looks=2, warmup_steps=2, averaging=0.8
)


def part_of(task, count):
    """The first tiles of every fold of a task."""
    kept = np.sort(np.concatenate([np.flatnonzero(task.folds == n)[:count] for n in np.unique(task.folds)]))
    return replace(task, tiles=[task.tiles[n] for n in kept], groups=task.groups[kept], folds=task.folds[kept])


def test_the_label_year_comes_first_and_no_day_number_twice(shared_data):
    canada, parcels = (frozen.looks(once(name, shared_data)) for name in ("crop_canada", "parcels_belgium"))
    assert [str(year[0].observations["s2"].dates[0])[:4] for year in canada] == ["2017", "2018"]
    assert [str(parcels[0][n].observations["s2"].dates[0])[:4] for n in (0, -1)] == ["2018", "2019"]
    assert frozen.looks(once("landuse_modis", shared_data)) == [once("landuse_modis", shared_data).tiles]


def test_pretraining_sees_no_label_and_no_tile_of_fold_0(shared_data):
    for name in ("landcover_global", "parcels_belgium"):
        task = once(name, shared_data)
        found = unlabelled.prepared("it", unlabelled._of_task(name, shared_data, see_all=False))
        assert not any(tile.targets for tile in found)
        seen = {values(tile) for tile in found}
        unseen = protocol.TEST if task.is_official else 0
        for tile, fold in zip(task.tiles, task.folds, strict=True):
            years = {values(year) for year in unlabelled.calendar_years(tile)}
            assert not years & seen if fold == unseen else years <= seen, tile


def test_options_replace_those_of_the_run_and_no_others():
    usual = unlabelled.config()
    assert (usual.seed, usual.weights, usual.objective.goal) == (0, None, "teacher")
    changed = unlabelled.config(10, 3, "nano", objective={"goal": "projection"}, masking={"keep_dates_frac": (0.5, 1)})
    assert (changed.num_steps, changed.seed, changed.weights) == (10, 3, "nano")
    assert (changed.objective.goal, changed.masking.keep_dates_frac) == ("projection", (0.5, 1))
    assert (changed.objective.harmonics, changed.objective.momentum) == (6, usual.objective.momentum)
    assert changed.optimiser == usual.optimiser


def values(tile):
    return b"".join(seen.values.tobytes() + seen.dates.tobytes() for seen in tile.observations.values())


def test_a_probe_of_frozen_tokens_and_a_fine_tuned_encoder_answer_real_points(shared_data, tmp_path):
    task = part_of(once("landcover_global", shared_data), 12)
    record = encoders.record_of(task, "nano", "nano", "probe", 0, tmp_path)
    assert len(record["answers"].split()) == 60
    assert record["scores"]["accuracy"]["score"] > 0.2


def one_split():
    """The made task, trained on four folds and tested on one."""
    task = made_task()
    folds = np.where(task.folds == 0, protocol.TEST, protocol.TRAIN)
    return replace(task, folds=folds, is_official=True)


def kept(folder):
    """Where members are kept."""
    return lambda seed, name: folder / f"{seed}-{name}.npz"


@pytest.fixture
def quick(monkeypatch):
    """Fine-tuning in seconds."""
    monkeypatch.setitem(finetuning.RECIPES, "made", TINY)


@pytest.mark.usefixtures("quick")
def test_fine_tuning_finds_what_is_there_goes_on_and_is_compared(tmp_path, monkeypatch):
    task = one_split()
    records = [encoders.record_of(task, frozen.UNTRAINED, frozen.UNTRAINED, "finetune", n, tmp_path) for n in (0, 1)]
    assert min(one["scores"]["accuracy"]["score"] for one in records) > 0.8
    monkeypatch.setattr(finetuning.Trainer, "trained", None)  # what is kept is not done again
    again = encoders.record_of(task, frozen.UNTRAINED, frozen.UNTRAINED, "finetune", 1, tmp_path)
    assert again["answers"] == records[1]["answers"]

    for name in ("neighbours", "forest", "boosting"):
        monkeypatch.delitem(simple.MODELS, name)
    chosen, _ = simple.evaluate(task)
    found = encoders.compared(task, chosen, [*records, {**records[0], "weights": "other"}])
    assert [row["runs"] for row in found["rows"]][1:] == [2, 1]
    best = max(row["scores"]["accuracy"]["score"] for row in chosen["rows"])
    assert found["rows"][0]["scores"]["accuracy"]["score"] == pytest.approx(best)
    assert "against_untrained" in found["rows"][2]
    assert encoders.table(found).count("\n| ") == 4


@pytest.mark.usefixtures("quick")
def test_no_test_label_reaches_a_fine_tuned_encoder(tmp_path):
    task = one_split()
    hidden = task.folds == protocol.TEST
    turned = [
        replace(tile, targets={"kind": 1 - tile.targets["kind"]}) if is_hidden else tile
        for tile, is_hidden in zip(task.tiles, hidden, strict=True)
    ]
    turned = replace(task, tiles=turned)
    found = [
        finetuning.finetuned(one, frozen.UNTRAINED, 1, kept(tmp_path / str(n)), TINY)
        for n, one in enumerate((task, turned))
    ]
    assert found[0][1] == found[1][1]
    assert (found[0][0] == found[1][0]).all()


def test_members_answer_together_where_what_they_left_out_beside_has_least_errors():
    truth, at = np.array([0, 1, 1, 0]), np.arange(4)
    right = np.array([[0.9, 0.1], [0.1, 0.9], [0.2, 0.8], [0.6, 0.4]])
    one = {"steps": np.arange(10, 60, 10), "at": at,
           "told": np.stack([1 - right, 1 - right, right, right, right])}  # fmt: skip
    other = {**one, "told": np.stack([1 - right, 1 - right, right, right, 1 - right])}
    checks, tested = [np.array([0, 1]), np.array([2])], np.array([3])
    answers, setting = finetuning.together(truth, [one, other], checks, tested)
    assert setting == {"num_steps": 40, "score": pytest.approx(1 - 1 / 9, abs=1e-4)}
    assert answers.tolist() == [0]
    values = [{**part, "told": part["told"][:, :, 1]} for part in (one, other)]
    answers, setting = finetuning.together(truth.astype(float), values, checks, tested)
    assert answers == pytest.approx([0.4])
    assert setting["score"] < 0
    assert finetuning.together(1 - truth, [one, other], [tested, tested], checks[0])[1]["num_steps"] == 10


def test_every_encoder_leaves_out_the_fold_it_answers_for_and_the_one_it_is_stopped_by():
    task = made_task()
    trainer = finetuning.Trainer(task, frozen.UNTRAINED, replace(TINY, members=4))
    names = []
    for fold, (test, pairs) in enumerate(trainer.pairs()):
        assert test.tolist() == np.flatnonzero(task.folds == fold).tolist()
        assert len(pairs) == 4
        for name, check in pairs:
            assert set(task.folds[np.concatenate([test, check])]) == set(map(int, name))
            names.append(name)
    assert sorted(names) == sorted(2 * [f"{a}{b}" for a in range(5) for b in range(a + 1, 5)])


def test_the_learning_rate_rises_and_falls_to_nothing():
    rates = [finetuning.scale(step, TINY) for step in range(1, TINY.num_steps + 1)]
    assert rates[0] == pytest.approx(0.5)
    assert max(rates) == rates[1]
    assert rates == [*rates[:1], *sorted(rates[1:], reverse=True)]
    assert 0 < rates[-1] < 0.01


def test_dates_are_hidden_but_never_all():
    batch = Batch.of(made_task().tiles)
    thin = finetuning.thinned(batch, 1.0, torch.Generator().manual_seed(0)).observations["s1-asc"]
    given = batch.observations["s1-asc"].valid
    assert thin.valid.sum() < given.sum()
    assert (thin.valid <= given).all()
    assert thin.valid.flatten(1).any(1).all()


def test_the_answers_of_the_best_simple_model_are_fitted_again_from_its_record(monkeypatch):
    task = made_task()
    for name in ("neighbours", "forest", "boosting"):
        monkeypatch.delitem(simple.MODELS, name)
    record, arrays = simple.evaluate(task)
    (model, features), answers = encoders.best_simple(task, samples(task), record)
    assert (answers == arrays[f"{features}, {model}"]).all()


def test_what_chooses_a_pretraining_never_sees_what_is_tested():
    for task in (made_task(), one_split()):
        part, (train, _) = choice.training_part(task), next(task.splits())
        assert len(part.tiles) == train.sum()
        assert all(tile is task.tiles[n] for tile, n in zip(part.tiles, np.flatnonzero(train), strict=True))
        assert len(np.unique(part.folds)) > 1
        assert not any(set(part.groups[fit]) & set(part.groups[test]) for fit, test in part.splits())


def test_yardsticks_deal_every_sample_and_split_groups_only_where_they_say_so():
    task = made_task()
    found = dict(yardsticks.deals(task))
    split = {kind: any(len(set(folds[task.groups == g])) > 1 for g in task.groups) for kind, folds in found.items()}
    assert split == {"our folds": False, "other folds of groups": False, "random samples": True}
    columns = samples(task).features["series"]
    make, _ = yardsticks.MODELS["linear"]
    assert all(yardsticks.scored(task, columns, folds, make) > 0.9 for folds in found.values())


def test_of_some_months_nothing_else_is_seen_and_what_holds_at_home_is_told_beside_what_holds_away(monkeypatch):
    task = one_split()
    key, *_ = task.tiles[0].observations
    seen = seasons.of_months(task.tiles[0], (key,), range(6, 9)).observations[key]
    assert seen.dates.astype(str).tolist() == ["2020-07-01"]
    assert np.array_equal(seen.values, task.tiles[0].observations[key].values[1:])
    for name in ("neighbours", "forest", "boosting"):
        monkeypatch.delitem(simple.MODELS, name)
    monkeypatch.setattr(seasons, "MONTHS", {"all": range(1, 13), "July": (7,)})
    found = seasons.measured(task)
    assert [row["months"] for row in found["rows"]] == ["all", "July"]
    assert min(min(row["home"], row["away"]) for row in found["rows"]) > 0.7
    found["rows"][0] |= {"home": 0.9, "away": 0.8}
    found["rows"][1] |= {"home": 0.7, "away": 0.6}
    printed = seasons.table(found)
    assert f"| {key} | July | 0.700 / 0.600 |" in printed
    assert (
        f"- {key}: 0.600 to 0.800 away; ranks at home and away correlate by 1.00; best at home is linear, all"
        in printed
    )


def test_a_record_is_kept_by_the_one_command_and_printed_by_both(tmp_path, monkeypatch, capsys):
    path, asked = tmp_path / "kept.json", []
    for words in (["run", "--data", "here"], ["print"]):
        monkeypatch.setattr("sys.argv", ["one.py", *words])
        measure_or_print(
            "About.", path, lambda data: asked.append(str(data)) or {"n": 3}, lambda kept: f"n {kept['n']}"
        )
        assert capsys.readouterr().out == "n 3\n"
    assert asked == ["here"]
