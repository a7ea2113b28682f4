"""The modality whose sub-patches are classified, where nobody names one: one that tiles hold, told with its gaps."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from anysat.data.base import Target
from anysat.data.open import find_dataset
from anysat.errors import InputError
from anysat.model.config import ModelConfig
from anysat.model.encoder import AnySat
from anysat.probing.cache import extract
from anysat.tasks.base import make_task
from anysat.tasks.heads import head_config, make_head
from anysat.tasks.probe import check_answered
from anysat.workflows.probe import ProbeConfig
from anysat.workflows.supervised.data import OpenData
from anysat.workflows.supervised.parts import extended, make_view
from anysat.workflows.supervised.text import summary
from labelled import COVER, meadow_encoder
from meadow import Meadow
from task_commands import scores_of, world_words

COARSE = Target(name="cover", level="pixel", kind="class", classes=("a", "b"), gsd_m=10.0)
FINE = replace(COARSE, gsd_m=1.0)


@pytest.mark.parametrize(("keys", "held", "target", "wanted"), [
    (["l8", "s2", "s1"], {"s2": 1.0, "s1": 1.0}, COARSE, "s2"),  # as fine, but in no tile
    (["spot", "s2"], {"spot": 0.6, "s2": 1.0}, COARSE, "s2"),  # as fine, but in fewer tiles
    (["spot", "s2"], {"spot": 0.95, "s2": 1.0}, COARSE, "spot"),  # a few clouds decide nothing
    (["aerial", "s2"], {"aerial": 0.8, "s2": 1.0}, FINE, "aerial"),  # finer, and most have it
    (["aerial", "s2"], {"aerial": 0.4, "s2": 1.0}, FINE, "s2"),
    (["aerial", "s2"], {}, FINE, "aerial"),  # what nobody holds is told when embeddings are there
])  # fmt: skip
def test_pixels_are_told_by_a_modality_that_most_tiles_hold(keys, held, target, wanted):
    encoder = extended(AnySat(ModelConfig(dim=64, depth=1, num_heads=2)), keys, {})[0]
    view = make_view(encoder, find_dataset("world"), target, modalities=keys, patch_sizes_m=[60], dense=None,
                     needs_dense=True, held=lambda: held)  # fmt: skip
    assert view.dense == wanted


def test_the_share_of_tiles_that_hold_a_modality_is_of_valid_values():
    class Dark(Meadow):
        def __getitem__(self, index):
            tile = super().__getitem__(index)
            dark = replace(tile.observations["modis"], valid=np.zeros_like(tile.observations["modis"].valid))
            return replace(tile, observations={**tile.observations, "modis": dark})

    data = OpenData(record=find_dataset("world"), target=COARSE, train=Dark(8), val=None, test=None)
    assert data.held == {"s2": 1.0, "spot": 0.75}


@pytest.mark.parametrize("command", ["probe", "finetune", "probe --method=knn"])
def test_a_world_is_told_by_what_it_holds_and_it_is_said_which(command, run_task, tmp_path):
    words = [word for word in world_words() if not word.startswith(("--dense", "--data.modalities"))]
    words += [] if "knn" in command else ["--epochs=1"]
    status, out, err = run_task(*command.split(), *words)
    assert status == 0, err
    assert "dense: s1\n" in out  # as fine as s2, and before it in the record
    assert "without valid values" not in out
    assert scores_of(tmp_path / "run")["dense"] == "s1"
    assert ">s1<" in (tmp_path / "run" / "report.html").read_text()


@pytest.mark.parametrize("command", ["probe", "finetune", "probe --method=knn"])
def test_a_dense_modality_that_no_training_tile_holds_is_refused(command, run_task):
    words = [word for word in world_words() if not word.startswith(("--dense", "--data.modalities"))]
    status, _, err = run_task(*command.split(), *words, "--dense=l8")
    assert status == 2
    assert "a valid value of l8" in err
    assert "--dense" in err


def test_a_comparison_refuses_dense_embeddings_that_no_tile_has(run_task):
    words = ["--compare", *(word for word in world_words() if not word.startswith(("--dense", "--data.modalities")))]
    words += ["--models=[neighbours]", "--max-pixels=100"]
    status, _, err = run_task("evaluate", *words, "--dense=l8")
    assert status == 2
    assert "a valid value of l8" in err
    status, out, err = run_task("evaluate", *words)
    assert status == 0, err
    assert "sub-patches of s1" in out


def test_labels_only_where_nothing_was_seen_teach_nothing_and_are_refused(tmp_path):
    encoder = meadow_encoder()
    train = extract(encoder, Meadow(4), 20.0, tmp_path, modalities=["s2", "spot"], dense="spot")
    config = head_config("dense", COVER, 26, 64, patch_size_m=20.0, dense=encoder.config.modality("spot"))
    head = make_head(config)
    check_answered(make_task(COVER), head, [train])
    train.targets["cover"][1:] = COVER.ignore  # the first tile has no spot image
    with pytest.raises(InputError, match="a valid value of spot"):
        check_answered(make_task(COVER), head, [train])


def test_pixels_without_an_answer_are_told_with_what_they_do_to_scores(tmp_path):
    figures = {"figures": {"accuracy": 0.6, "f1_micro": 0.7}, "intervals": {}, "num_tiles": 2,
               "num_samples": 10, "num_unanswered": 3, "per_class": {}, "confusion": [[6, 0, 2], [0, 1, 1]]}  # fmt: skip
    found = {"scores": {"test": figures}, "command": "probe", "config": {"preset": None}, "selected_on": "val",
             "primary": "miou", "head": "dense", "head_parameters": 1, "target": "cover", "dense": "spot"}  # fmt: skip
    told = summary(found, tmp_path, ProbeConfig)
    assert "dense: spot; 30.0 % of the labelled test pixels are not predicted" in told
    assert "accuracy" in told.partition("not predicted")[2]
    found["scores"]["test"]["num_unanswered"] = 0
    assert "not predicted" not in summary(found, tmp_path, ProbeConfig)


def test_tiles_without_the_dense_modality_are_named_as_such(tmp_path):
    found = extract(meadow_encoder(), Meadow(8), 20.0, tmp_path, modalities=["s2", "spot"], dense="spot")
    assert found.unseen == ("m0", "m4")
    assert torch.isfinite(found.embeddings([0]).tile).all()
    assert extract(meadow_encoder(), Meadow(8), 20.0, tmp_path, modalities=["s2", "spot"]).unseen == ()
