"""Labelled tiles for tests of tasks: the meadow's targets, and an encoder for its modalities with its statistics."""

import torch

from anysat.batch import Batch
from anysat.data.base import Target
from anysat.modalities import MODALITIES
from anysat.model.config import ModelConfig
from anysat.normalise import Normaliser
from builders import random_model
from meadow import Meadow

KEYS = ("s2", "spot", "modis")
COVER = Target(
    name="cover", level="pixel", kind="class", classes=tuple(f"cover {n}" for n in range(26)), ignore=-1, gsd_m=10.0
)
KIND = Target(name="kind", level="tile", kind="class", classes=("wheat", "maize", "beet"))


def meadow_batch(count=3, first=0):
    """Some tiles of the meadow; the first has no spot image."""
    return Batch.of([Meadow()[index] for index in range(first, first + count)])


def meadow_encoder(**changes):
    """A small encoder with random weights for the meadow."""
    options = {"dim": 64, "depth": 1, "num_heads": 2, "modalities": tuple(MODALITIES[key] for key in KEYS), **changes}
    encoder = random_model(ModelConfig(**options))
    encoder.normaliser = Normaliser.from_batch(meadow_batch(4))
    return encoder


def randomise(module, seed=0):
    """Every parameter random, so that nothing hides behind a zero."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return module
