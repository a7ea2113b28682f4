"""The page of a run: which tiles are shown as its worst and best, and what is said of them."""

import re
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from anysat.data.base import Target
from anysat.picture_samples import colours_of
from anysat.tasks.base import make_task
from anysat.tasks.predictor import Prediction
from anysat.workflows.supervised.report import (
    SHOWN,
    Shown,
    _classes,
    _facts,
    _number,
    _selection,
    _tiles,
    best_and_worst,
    render,
)
from meadow import Meadow

TARGET = Target(name="cover", level="pixel", kind="class", classes=("water", "wood"), gsd_m=10.0)
GENUS = Target(name="genus", level="tile", kind="class", classes=("oak", "pine", "larch"))
COUNT = 2 * SHOWN + 5


def tiles_of(truth, name):
    one = Meadow()[0]
    return [replace(one, id=f"tile{number}", targets={name: value}) for number, value in enumerate(truth)]


class Told:
    """Says of each tile what it was told to."""

    device = torch.device("cpu")

    def __init__(self, target, answers):
        self.task, self.answers = make_task(target), answers

    def of_dataset(self, batch):
        return batch

    def predict(self, batch):
        told = torch.stack([torch.as_tensor(self.answers[name]) for name in batch.ids])
        outputs = 9.0 * torch.nn.functional.one_hot(told, len(self.task.target.classes)).float()
        return Prediction(self.task.answer(outputs), self.task.probabilities(outputs), outputs)


def test_the_worst_tiles_come_first_and_the_best_last():
    rights = np.random.default_rng(0).permutation(COUNT) % 5  # of four pixels so many are answered rightly
    truth = [np.zeros((2, 2), np.int64)] * COUNT
    answers = {f"tile{n}": (np.arange(4).reshape(2, 2) >= right).astype(np.int64) for n, right in enumerate(rights)}
    shown = best_and_worst(Told(TARGET, answers), tiles_of(truth, "cover"))
    assert len(shown) == 2 * SHOWN
    shares = [one.right for one in shown]
    assert shares == sorted(shares)
    assert shares[:SHOWN] == sorted(rights / 4)[:SHOWN]
    assert shares[SHOWN:] == sorted(rights / 4)[-SHOWN:]
    for one in shown:
        assert np.array_equal(one.answer, answers[one.tile.id])


def test_a_tile_s_truth_and_answer_are_said_as_what_they_are():
    shown = best_and_worst(Told(GENUS, {"tile0": 1, "tile1": 2}), tiles_of([np.int64(0), np.int64(2)], "genus"))
    said = re.findall(r"<h3>(.*?)</h3><p>(.*?)</p>", _tiles(shown, GENUS))
    assert [(one, words.split(" (")[0]) for one, words in said] == [
        ("tile0, 0% correct", "truth: oak; prediction: pine"), ("tile1, 100% correct", "truth: larch; prediction: larch"),
    ]  # fmt: skip


def test_where_there_is_no_answer_nobody_is_said_to_be_sure_of_it():
    (tile,) = tiles_of([np.int64(0)], "genus")
    unseen = Shown(tile=tile, right=0.0, answer=np.array(-1), probabilities=np.full(3, np.nan, np.float32))
    assert "<p>truth: oak; prediction: none</p>" in _tiles([unseen], GENUS)


def test_answer_and_truth_of_pixels_stand_under_their_names():
    truth, answer = np.zeros((2, 2), np.int64), np.ones((2, 2), np.int64)
    (shown,) = best_and_worst(Told(TARGET, {"tile0": answer}), tiles_of([truth], "cover"))
    seen = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("anysat.workflows.page.img", lambda image, caption: seen.append((caption, image)) or "")
        page = _tiles([shown], TARGET)
    assert "tile0, 0% correct" in page
    pictures = {caption.rpartition(": ")[2]: image for caption, image in seen}
    water, wood = (colours_of(TARGET) * 255).astype(np.uint8)
    assert not np.array_equal(water, wood)
    assert np.array_equal(pictures["truth"], np.broadcast_to(water, (2, 2, 3)))
    assert np.array_equal(pictures["prediction"], np.broadcast_to(wood, (2, 2, 3)))
    whole = _tiles([SimpleNamespace(tile=shown.tile, right=1.0, answer=truth, probabilities=None)], TARGET)
    assert "tile0, 100% correct" in whole


def test_values_of_answer_and_truth_have_one_scale_and_no_data_is_grey():
    mass = Target(name="mass", level="pixel", kind="value", gsd_m=10.0, unit="t/ha", limits=(0, 10_000), ignore=-9999)
    truth, answer = np.array([[-9999.0, 100.0], [100.0, 400.0]]), np.array([[np.nan, 400.0], [250.0, 0.0]])
    (tile,) = tiles_of([truth], "mass")
    seen = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("anysat.workflows.page.img",
                      lambda image, caption: seen.update({caption.rpartition(": ")[2]: image}) or "")  # fmt: skip
        page = _tiles([SimpleNamespace(tile=tile, right=-1.0, answer=answer, probabilities=None)], mass)
    grey = np.full(3, 216)
    assert np.array_equal(seen["truth"][0, 0], grey)
    assert np.array_equal(seen["prediction"][0, 0], grey)
    assert np.array_equal(seen["truth"][1, 1], seen["prediction"][0, 1])  # 400 in both
    assert seen["prediction"][1, 1].tolist() == [255, 255, 255]
    assert seen["truth"][1, 1].tolist() == [0, 127, 0]
    assert ">0.000 t/ha<" in page
    assert ">400 t/ha<" in page


@pytest.mark.parametrize(
    ("value", "told"), [(36.21, "36.21"), (35.84, "35.84"), (0.5, "0.500"), (1234.5, "1,234"), (12, "12"), (None, "–")]
)
def test_figures_above_one_keep_the_digits_by_which_they_differ(value, told):
    assert _number(value) == told


def test_weights_are_told_as_what_the_run_began_with():
    found = {
        "config": {"weights": "nano", "data": {"dataset": "world"}}, "began_with": {"weights": "pretrained"},
        "weights": {"weights": "fine-tuned"}, "data": {}, "head": "both", "head_parameters": 1,
        "encoder_parameters": 1, "versions": {},
    }  # fmt: skip
    assert dict(_facts(found))["Weights"] == "nano: pretrained"


@pytest.mark.parametrize(("target", "unit"), [(TARGET, "pixels"), (GENUS, "tiles")])
def test_support_is_a_count_and_says_of_what(target, unit):
    per_class = {"f1": [0.5, 1.0], "support": [1.0, 12345.0]}
    test = {"per_class": per_class, "class_intervals": {"f1": [[0.4, 0.6], [1.0, 1.0]]}}
    page = _classes({"scores": {"test": test}, "classes": target.classes[:2]}, target)
    assert f">support, {unit}<" in page
    assert "<td>1</td>" in page
    assert "<td>12,345</td>" in page
    assert "<td>1.000</td>" in page, "and no interval of no width"


def test_no_label_is_in_the_legend_only_where_a_tile_shown_has_none():
    truth, answer = np.zeros((2, 2), np.int64), np.zeros((2, 2), np.int64)
    target = replace(TARGET, ignore=-1)
    for label, is_told in ((0, False), (-1, True)):
        truth[0, 0] = label
        shown = best_and_worst(Told(target, {"tile0": answer}), tiles_of([truth], "cover"))
        assert ("no label" in _tiles(shown, target)) == is_told


def test_values_have_no_label_in_the_legend_only_where_a_pixel_has_none():
    mass = Target(name="mass", level="pixel", kind="value", gsd_m=10.0, unit="t/ha", ignore=-9999)
    for least, is_told in ((3.0, False), (-9999.0, True)):
        (tile,) = tiles_of([np.array([[least, 100.0], [100.0, 400.0]])], "mass")
        page = _tiles([SimpleNamespace(tile=tile, right=-1.0, answer=np.ones((2, 2)), probabilities=None)], mass)
        assert ("no label" in page) == is_told


def test_curves_are_by_epoch_and_of_the_chosen_setting():
    seen = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("anysat.workflows.pretrain.curves._draw", lambda axes, panel: seen.append(panel.along))
        point = {"loss": 0.5, "miou": 0.1}
        tried = [{"learning_rate": 0.1, "miou": 0.1}, {"learning_rate": 0.01, "miou": 0.0}]
        page = _selection({"primary": "miou", "selection": {"curve": [point, point], "tried": tried}})
        alone = _selection({"primary": "miou", "selection": {"curve": [point, point]}})
    assert seen == ["epoch"] * 4
    assert "Curves of the chosen setting" in page
    assert "chosen setting" not in alone


def test_the_page_says_what_intervals_over_few_tiles_are_worth():
    test = {"figures": {"accuracy": 1.0}, "intervals": {"accuracy": [1.0, 1.0]}, "intervals_over": "tiles",
            "per_class": {}, "class_intervals": {}, "num_tiles": 18, "num_labelled_tiles": 11}  # fmt: skip
    found = {"scores": {"test": test}, "primary": "accuracy", "selected_on": "val", "selection": {}, "classes": [],
             "config": {"weights": "nano", "data": {"dataset": "x"}}, "weights": {}, "head": "both", "versions": {},
             "data": {"test": {"tiles": 18}}, "head_parameters": 1, "encoder_parameters": 1}  # fmt: skip
    page = render(found, GENUS, [])
    assert "<h1>genus: the 11 of 18 test tiles that have a label</h1>" in page
    assert "A draw that lacks a class leaves it out" in page
