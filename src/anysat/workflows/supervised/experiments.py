"""What presets of probes and fine-tuning share: the paper's experiments, with its scores, and the generated world."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, TypeVar

from anysat.data.open import find_dataset
from anysat.workflows.supervised.config import LabelledData, SupervisedConfig

Config = TypeVar("Config", bound=SupervisedConfig)

PUBLISHED_WEIGHTS = "g-astruc/AnySat"
WARMUP_EPOCHS = 20
MIN_EPOCHS = 50
"""Epochs before which published trainings never end."""


RECOMMENDED = "-recommended"
"""Suffix of presets with the data of a published experiment and our own settings."""


@dataclass(frozen=True, kw_only=True)
class Published:
    """A score in the paper."""

    score: str
    value: float
    where: str
    crop_m: float | None = None
    """Side of the five crops that each tile was predicted from; None for whole tiles."""


def shared_with(published: SupervisedConfig) -> dict[str, Any]:
    """Return the options that our recommended settings share with a published experiment: weights, data and view."""
    names = ("weights", "data", "patch_sizes_m", "dense", "batch_size", "day_convention")
    return {name: getattr(published, name) for name in names}


def days_of(dataset: str) -> str:
    """Return the day convention with which the published weights saw the dataset."""
    return find_dataset(dataset).day_convention


PASTIS_FOLDS = [f"fold{number}" for number in range(1, 6)]
"""Each is tested once: training on folds 1 to 3, validation on 4 and test on 5, as published; then 2 to 4, 5 and 1;
etc."""


def over_folds(config: Config) -> Config:
    """Return the same experiment over all five folds of PASTIS in turn."""
    return replace(config, data=replace(config.data, folds=PASTIS_FOLDS))


WORLD_TASKS = {"land_cover": "s2", "species": "s2", "crop": "s2", "change": "s2", "flood": "s1"}
"""Targets of the generated world, and the modality whose sub-patches are classified. Floods need radar: clouds hide
them."""


def world_data(target: str) -> LabelledData:
    """Return a task of the generated world, which needs no files."""
    world = {"tiles": 600, "seed": 100, "modalities": ["s2", "s1"]}
    return LabelledData(dataset="world", target=target, world=world, modalities=["s2", "s1"])


def world_name(target: str) -> str:
    """Return the name of the preset for a task of the generated world.

    >>> world_name("land_cover")
    'world-land-cover'
    """
    return f"world-{target.replace('_', '-')}"


_PASTIS_PROBE = "table 1, linear probe; it does not say of which folds"
_PASTIS_LABELS = "table A, which does not say of which folds"
_PASTIS = f"{_PASTIS_LABELS}; of fold 1 it is 0.659, table 1"
PAPER: dict[tuple[str, str], Published] = {
    ("probe", "pastis"): Published(score="miou", value=0.427, where=_PASTIS_PROBE),
    ("probe", "pastis-folds"): Published(score="miou", value=0.427, where=_PASTIS_PROBE),
    ("probe", "bradd"): Published(score="miou", value=0.789, where="table B, linear probe"),
    ("probe", "sickle"): Published(score="miou", value=0.820, where="table B, linear probe"),
    ("probe", "timesen2crop"): Published(score="accuracy", value=0.703, where="table B, linear probe"),
    ("probe", "sen1floods11"): Published(score="miou", value=0.911, where="table B, linear probe"),
    ("probe", "so2sat"): Published(score="accuracy", value=0.591, where="table B, linear probe"),
    ("finetune", "treesatai-ts"): Published(score="f1_weighted", value=0.751, where="table A"),
    ("finetune", "pastis"): Published(score="miou", value=0.665, where=_PASTIS),
    ("finetune", "pastis-folds"): Published(score="miou", value=0.665, where=_PASTIS),
    ("finetune", "pastis-labels"): Published(score="f1_macro", value=0.728, where=_PASTIS_LABELS),
    ("finetune", "pastis-labels-folds"): Published(score="f1_macro", value=0.728, where=_PASTIS_LABELS),
    ("finetune", "flair"): Published(score="miou", value=0.551, where="table A", crop_m=100),
    ("finetune", "planted"): Published(score="f1_macro", value=0.615, where="table A"),
    ("finetune", "bradd"): Published(score="miou", value=0.809, where="table B"),
    ("finetune", "sickle"): Published(score="miou", value=0.893, where="table B"),
    ("finetune", "timesen2crop"): Published(score="accuracy", value=0.922, where="table B"),
    ("finetune", "burn-scars"): Published(score="miou", value=0.906, where="table B"),
    ("finetune", "burn-scars-projectors"): Published(score="miou", value=0.877, where="table B, projectors and head"),
    ("finetune", "spacenet7"): Published(score="miou", value=0.588, where="table 1"),
    ("finetune", "spacenet7-projectors"): Published(score="miou", value=0.581, where="table 1, projectors and head"),
}
"""The paper's score by command and preset."""
