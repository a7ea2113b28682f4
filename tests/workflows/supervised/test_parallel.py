"""Scores of a predictor whose held-out tiles several processes share out."""

import pytest
import torch
from torch import distributed, multiprocessing

from anysat.tasks.base import make_task
from anysat.tasks.finetune import FineTuning, Scoring
from anysat.tasks.predictor import Predictor, View
from labelled import KEYS, KIND, meadow_encoder, randomise
from meadow import Meadow

NUM_TILES = 5
"""Three of one process and two of the other."""


def found():
    torch.manual_seed(0)
    view = View(patch_sizes_m=(10.0,), modalities=KEYS, dense=None)
    predictor = Predictor(meadow_encoder(), make_task(KIND), view, "both")
    randomise(predictor.head)
    return Scoring(every_steps=1, tiles=Meadow(NUM_TILES), batch_size=2)(FineTuning(predictor, "head"), 0)


def work(rank, folder):
    distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    torch.save(found(), f"{folder}/{rank}.pt")
    distributed.destroy_process_group()


def test_two_processes_tell_the_loss_of_all_tiles_as_one_does(tmp_path):
    multiprocessing.spawn(work, (str(tmp_path),), nprocs=2)
    one, first, second = found(), *(torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1))
    assert first["loss"] == second["loss"] == pytest.approx(one["loss"], rel=1e-6)
