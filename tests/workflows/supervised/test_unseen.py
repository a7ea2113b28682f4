"""Labelled tiles that lack a sensor, or saw nothing: they are answered as unseen, and end nothing."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from anysat.batch import Batch
from anysat.data.base import Target
from anysat.data.loader import Draw
from anysat.errors import InputError
from anysat.modalities import MODALITIES
from anysat.tasks.base import make_task
from anysat.tasks.finetune import FineTuning, score
from anysat.tasks.predictor import Predictor, View
from anysat.tasks.regression import Regression
from anysat.workflows.evaluate.features import _side_by_side
from anysat.workflows.probe import ProbeConfig
from anysat.workflows.supervised.parts import described
from anysat.workflows.supervised.report import best_and_worst, render
from anysat.workflows.supervised.text import summary
from labelled import COVER, KEYS, KIND, meadow_batch, meadow_encoder, randomise
from meadow import Meadow

DENSE = View(patch_sizes_m=(20.0,), modalities=KEYS, dense="s2")


def predictor_of(target=COVER, view=DENSE, head="dense"):
    made = Predictor(meadow_encoder(), make_task(target), view, head)
    randomise(made.head)
    return made


def lacking(batch, *keys):
    return replace(batch, observations={k: seen for k, seen in batch.observations.items() if k not in keys})


class Lacking:
    """Tiles of the meadow, some without a modality."""

    name = "meadow"

    def __init__(self, key, *places):
        self.key, self.places, self.tiles = key, places, Meadow()

    def __len__(self):
        return 4

    def __getitem__(self, index):
        tile = self.tiles[index]
        seen = {k: o for k, o in tile.observations.items() if k != self.key or index not in self.places}
        return replace(tile, observations=seen)


def test_a_modality_that_no_tile_has_is_there_and_unseen():
    batch = lacking(meadow_batch(2), "s2")
    having = batch.having(MODALITIES["s2"])
    seen, whole = having.observations["s2"], meadow_batch(2).observations["s2"]
    assert (seen.values.shape[0], seen.values.shape[2:]) == (2, whole.values.shape[2:])
    assert seen.units == MODALITIES["s2"].units
    assert not seen.valid.any()
    assert having.having(MODALITIES["s2"]) is having
    with pytest.raises(InputError, match="aerial"):
        lacking(batch, "spot").having(MODALITIES["aerial"])  # of MODIS alone nobody knows the ground


def test_a_tile_without_the_dense_modality_is_answered_alone_as_beside_others():
    predictor, tiles = predictor_of().eval(), Lacking("s2", 1)
    assert score(predictor, tiles, 1).figures == pytest.approx(score(predictor, tiles, 4).figures, nan_ok=True)
    with pytest.raises(InputError, match="the modality s2"):  # of a user's input that is told, not answered by nothing
        predictor.predict(Batch.of([tiles[1]]))


def test_pixels_of_values_without_an_answer_are_scored_as_the_mean_counted_and_told(tmp_path):
    height = Target(name="height", level="pixel", kind="value", unit="m", ignore=-1, gsd_m=10.0)
    task = Regression(target=height, mean=5.0, deviation=2.0)
    outputs, truth = torch.zeros(2, 2, 2, 1), torch.tensor([[[5.0, -1.0], [7.0, 5.0]], [[5.0, 5.0], [5.0, 5.0]]])
    outputs[0, :, :, 0] = float("nan")
    sheet = task.metric()
    task.score(sheet, outputs, truth)
    found = sheet.compute()
    assert (found.num_samples, found.num_unanswered) == (7, 3)
    assert found.figures["mae"] == pytest.approx(2 / 7)
    told = {"scores": {"test": described(found)}, "command": "probe", "config": {"preset": None}, "primary": "rmse",
            "selected_on": "val", "head": "dense", "head_parameters": 1, "target": "height", "dense": "s2"}  # fmt: skip
    assert told["scores"]["test"]["num_unanswered"] == 3
    assert "dense: s2; 42.9 % of the labelled test pixels are not predicted" in summary(told, tmp_path, ProbeConfig)
    assert "scored as the mean of the training data" in summary(told, tmp_path, ProbeConfig)
    told |= {"selection": {}, "classes": [], "config": {"weights": None, "data": {"dataset": "own"}}, "data": {},
             "weights": {}, "encoder_parameters": 1, "versions": {}}  # fmt: skip
    assert "Not predicted, because nothing was observed there: 3 of 7 labels." in render(told, height, [])


@pytest.mark.parametrize("target", [COVER, KIND, replace(KIND, kind="labels")])
def test_of_classes_and_labels_what_has_no_answer_is_counted_too(target):
    task, is_many = make_task(target), target.kind == "labels"
    sheet = task.metric()
    outputs = torch.zeros(2, len(target.classes))
    outputs[0] = float("nan")
    task.score(sheet, outputs, torch.ones(2, 3) if is_many else torch.tensor([1, 2]))
    assert sheet.compute().num_unanswered == 1


def test_the_page_shows_tiles_beside_one_that_lacks_the_dense_modality():
    shown = best_and_worst(predictor_of().eval(), Lacking("s2", 1, 3))
    assert {one.tile.id for one in shown} <= {Meadow()[index].id for index in range(4)}
    assert shown


def test_a_step_on_tiles_without_the_dense_modality_teaches_nothing_and_ends_nothing():
    objective = FineTuning(predictor_of(), "all").train()
    draw = Draw(step=0, dataset="meadow", patch_size_m=20.0, batch=lacking(meadow_batch(2), "s2"))
    loss = objective(draw, torch.Generator())["loss"]
    loss.backward()
    assert loss.item() == 0.0
    assert all(bool((p.grad == 0).all()) for p in objective.parameters() if p.grad is not None)


def test_a_step_on_tiles_that_saw_nothing_has_a_loss_of_0_and_a_broken_model_none():
    nothing = meadow_batch(2)
    hidden = {k: replace(seen, valid=torch.zeros_like(seen.valid)) for k, seen in nothing.observations.items()}
    draw = Draw(step=0, dataset="meadow", patch_size_m=20.0, batch=replace(nothing, observations=hidden))
    objective = FineTuning(predictor_of(KIND, replace(DENSE, dense=None), "both"), "all").train()
    loss = objective(draw, torch.Generator())["loss"]
    loss.backward()
    assert loss.item() == 0.0
    with torch.no_grad():
        next(objective.predictor.head.parameters()).fill_(float("nan"))
    seen = replace(draw, batch=meadow_batch(2))
    assert objective(seen, torch.Generator())["loss"].isnan()


def test_features_of_sensors_that_tiles_lack_stand_in_their_own_columns():
    one, two = np.ones((2, 3)), np.full((1, 3), 2.0)
    table = _side_by_side([(np.array([0, 2]), {"a": one}), (np.array([1]), {"b": two}),
                           (np.array([3]), {"b": two, "a": one[:1]})], 4)  # fmt: skip
    gap = [np.nan] * 3
    wanted = [[1, 1, 1, *gap], [*gap, 2, 2, 2], [1, 1, 1, *gap], [1, 1, 1, 2, 2, 2]]
    assert np.array_equal(table, np.array(wanted), equal_nan=True)
