"""What is said of a result: the paper's figure beside ours only as what it is, with what keeps it from being compared."""

from dataclasses import replace

import pytest
import torch

from anysat.data.base import Target
from anysat.tasks.base import make_task
from anysat.workflows.finetune import FinetuneConfig
from anysat.workflows.finetune.presets import PRESETS as FINETUNES
from anysat.workflows.probe import ProbeConfig
from anysat.workflows.probe.presets import PRESETS as PROBES
from anysat.workflows.supervised.text import (
    _edge_lines,
    _start_lines,
    paper_line,
    score_lines,
    tiles_told,
    with_interval,
)


def line(command, name, split=None, **changes):
    config = replace((PROBES if command == "probe" else FINETUNES)[name](), preset=name)
    data = {key: changes.pop(key) for key in list(changes) if hasattr(config.data, key)}
    return paper_line(type(config), replace(config, data=replace(config.data, **data), **changes).to_dict(), split)


@pytest.mark.parametrize("name", ["bradd", "bradd-recommended"])
def test_the_papers_figure_stands_alone_where_data_weights_and_split_are_the_presets(name):
    for split in (None, "test"):
        assert line("probe", name, split, root="somewhere") == ["  paper: mean IoU 0.789 (table B, linear probe)"]


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"weights": "nano"}, "weights nano, not g-astruc/AnySat"),
        ({"train_frac": 0.1}, "data.train_frac 0.1, not 1.0"),
        ({"modalities": None}, "data.modalities None, not ['s1']"),
        ({"split": "val"}, "split val, not test"),
        ({"method": "knn", "head": None}, "method knn, not linear; head None, not dense"),
        ({"patch_sizes_m": [80]}, "patch_sizes_m [80], not [40]"),
    ],
)
def test_what_is_not_the_presets_is_named_beside_the_papers_figure(changes, told):
    (found,) = line("probe", "bradd", **changes)
    assert found.endswith(f", not comparable: {told}")


def test_one_fold_is_not_the_papers_mean_over_all_of_them():
    whole = PROBES["pastis-folds"]()
    one = replace(whole, preset="pastis-folds", data=whole.data.turns()["fold2"])
    (found,) = paper_line(ProbeConfig, one.to_dict())
    assert "not comparable: data.train fold3+fold4+fold5" in found
    assert "comparable" not in line("probe", "pastis-folds")[0]


def test_answers_by_crops_stand_beside_their_like_alone():
    flair = replace(FINETUNES["flair"](), preset="flair").to_dict()
    assert "predicted from whole tiles, not from five crops of 100 m" in paper_line(FinetuneConfig, flair)[0]
    assert paper_line(FinetuneConfig, flair, crop_m=100.0) == ["  paper: mean IoU 0.551 (table A)"]
    burn = replace(FINETUNES["burn-scars"](), preset="burn-scars").to_dict()
    assert "predicted from five crops of 60 m, not from whole tiles" in paper_line(FinetuneConfig, burn, crop_m=60.0)[0]


@pytest.mark.parametrize(("command", "name", "where"), [
    ("probe", "pastis", "table 1, linear probe; it does not say of which folds"),
    ("finetune", "pastis", "table A, which does not say of which folds; of fold 1 it is 0.659, table 1"),
    ("finetune", "pastis-labels", "table A, which does not say of which folds"),
])  # fmt: skip
def test_of_the_papers_figures_of_pastis_it_is_said_that_their_folds_are_not_known(command, name, where):
    """Spec 6; the published settings test on fold 5."""
    assert line(command, name) == line(command, f"{name}-folds")
    assert line(command, name)[0].endswith(f"({where})")


def test_what_the_paper_does_not_have_has_no_line():
    assert line("probe", "world-crop") == []


@pytest.mark.parametrize(
    ("scores", "told"),
    [
        ({0.1: 0.5, 0.01: 0.6, 0.001: 0.3}, []),
        ({0.1: 0.7, 0.01: 0.6}, ["best learning rate is the largest one tried, 0.1: try larger ones"]),
        ({0.1: 0.5, 0.01: 0.6, 0.001: 0.8}, ["best learning rate is the smallest one tried, 0.001: try smaller ones"]),
        ({0.1: 1.0, 0.01: 1.0, 0.001: 0.8}, []),
        ({0.1: 0.7}, []),
    ],
)
def test_a_learning_rate_at_the_edge_of_those_tried_is_told(scores, told):
    tried = [{"learning_rate": rate, "weight_decay": decay, "miou": score - decay}
             for rate, score in scores.items() for decay in (0.0, 0.1)]  # fmt: skip
    chosen = max(tried, key=lambda one: one["miou"])
    found = _edge_lines({"primary": "miou", "selection": {**chosen, "tried": tried}})
    assert [word in line for word, line in zip(told, found, strict=True)] == [True] * len(told)


def test_what_has_no_learning_rates_has_no_edge():
    assert _edge_lines({"primary": "miou"}) == []
    assert _edge_lines({"primary": "miou", "selection": {"miou": 1, "tried": [{"num_neighbours": 3, "miou": 1}]}}) == []


def test_a_start_that_no_epoch_was_as_good_as_is_told():
    found = {"primary": "rmse", "selected_on": "val", "selection": {"start": 5.4753, "start_was_better": True}}
    (line,) = _start_lines(found)
    assert "RMSE on val was better before training, 5.475: try a lower --optimiser.learning-rate" in line
    assert _start_lines({**found, "selection": {"start": 5.4753, "start_was_better": False}}) == []
    assert _start_lines({**found, "selection": {}}) == [], "a probe, or a run of an earlier version"


@pytest.mark.parametrize(("kind", "truth", "outputs", "wanted"), [
    ("class", torch.tensor([0, -1, 1]), torch.eye(2)[[0, 1, 1]], "the 2 of 3 test tiles that have a label"),
    ("class", torch.tensor([0, 0, 1]), torch.eye(2)[[0, 1, 1]], "3 test tiles"),
    ("labels", torch.tensor([[0, 0], [1, 0], [0, 1]]), torch.zeros(3, 2), "3 test tiles"),
    ("value", torch.tensor([torch.nan, 1.0, 2.0]), torch.zeros(3, 1), "the 2 of 3 test tiles that have a label"),
])  # fmt: skip
def test_tiles_without_a_label_are_not_said_to_be_scored(kind, truth, outputs, wanted):
    target = Target(name="t", level="tile", kind=kind, classes=("a", "b") if kind != "value" else (),
                    ignore=-1 if kind == "class" else None)  # fmt: skip
    task = make_task(target)
    sheet = task.metric()
    task.score(sheet, outputs, truth)
    assert tiles_told(sheet.compute().to_dict(), "test tiles") == wanted


def test_an_interval_of_no_width_is_not_told_as_if_it_were_certain():
    scores = {"figures": {"accuracy": 0.0, "f1_macro": 0.5}, "intervals": {"accuracy": [0, 0], "f1_macro": [0.4, 0.6]}}
    assert with_interval(scores, "accuracy") == "0.000"
    assert with_interval(scores, "f1_macro") == "0.500 (0.400 to 0.600)"


def test_intervals_say_over_how_many_blocks_they_are_and_when_these_are_too_few():
    def told(count, unit="blocks of 1 km"):
        sheet = {"figures": {"miou": 0.82}, "intervals": {"miou": [0.729, 0.82]}, "intervals_over": unit}
        lines = score_lines(sheet | ({} if count is None else {"num_intervals_over": count}), ProbeConfig, {})
        assert lines[0].split() == ["mean", "IoU", "0.820", "(0.729", "to", "0.820)"]
        return lines[1:]

    assert told(3) == ["  intervals over 3 blocks of 1 km, too few for a reliable interval"]
    assert told(1) == ["  intervals over 1 block of 1 km, too few for a reliable interval"]
    assert told(12) == ["  intervals over 12 blocks of 1 km"]
    assert told(9, "tiles") == ["  intervals over 9 tiles, too few for a reliable interval"]
    assert told(10, "tiles") == told(None, "tiles") == []
    assert told(None) == ["  intervals over blocks of 1 km"]
