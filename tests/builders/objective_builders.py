"""Tiny objectives of pretraining, and tiles and draws for them."""

from dataclasses import replace

import numpy as np
import torch

from anysat.batch import Batch, Tile
from anysat.data.loader import Draw
from anysat.modalities import MODALITIES, RELEASED
from anysat.normalise import Normaliser
from anysat.observation import Observation
from anysat.pretrain.config import ObjectiveConfig
from anysat.pretrain.objective import Pretraining
from builders import random_input, random_model

GOALS = ("teacher", "projection")
TINY = {"predictor_depth": 1, "predictor_heads": 4}


def make_tiles(keys, side_m=60.0, *, batch=2, dates=4, width_m=None, seed=0):
    x = random_input(keys, side_m, width_m=width_m, batch=batch, times=dates, seed=seed)
    tiles = []
    for index in range(batch):
        seen = []
        for key in keys:
            modality = MODALITIES[key]
            when = np.datetime64("2020-01-01") + x[f"{key}_dates"][index].numpy() if modality.is_temporal else None
            seen.append(Observation.of(modality, x[key][index].numpy(), dates=when))
        tiles.append(Tile.of(*seen, id=f"t{index}"))
    return tiles


def make_batch(keys, side_m=60.0, **options):
    return Batch.of(make_tiles(keys, side_m, **options))


def make_draw(keys, patch_size_m, **options):
    return Draw(step=0, dataset="d", patch_size_m=patch_size_m, batch=make_batch(keys, **options))


def make_objective(goal="teacher", masking=None, normaliser=None, **config):
    student = random_model(subpatch_order="raster").requires_grad_(True)
    student.normaliser = normaliser or unit_statistics()
    torch.manual_seed(0)
    made = Pretraining(student, masking, ObjectiveConfig(goal=goal, **{**TINY, **config}))
    torch.manual_seed(1)
    with torch.no_grad():  # nothing hides behind a zero
        for parameter in made.predictor.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
        made.hidden_token.normal_()
    return made.eval()


def unit_statistics():
    batch = make_batch([m.key for m in RELEASED if not m.covers_tile] + ["modis"], 60.0, batch=1)
    found = Normaliser.from_batch(batch)
    table = next(iter(found.statistics.values()))
    plain = {k: replace(s, mean=(0.0,) * len(s.bands), std=(1.0,) * len(s.bands)) for k, s in table.items()}
    return Normaliser(statistics={"d": plain})


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def with_nothing(batch, tile, key):
    seen = batch.observations[key]
    valid = seen.valid.clone()
    valid[tile] = False
    return replace(batch, observations={**batch.observations, key: replace(seen, valid=valid)})


def drawn(*shape, seed=0):
    return torch.randn(*shape, generator=generator(seed))
