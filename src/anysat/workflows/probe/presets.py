"""Presets of probes: the paper's experiments as published, the same with our settings, and the generated world."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

from anysat.workflows.probe import ProbeConfig
from anysat.workflows.supervised.config import LabelledData
from anysat.workflows.supervised.experiments import (
    MIN_EPOCHS,
    PUBLISHED_WEIGHTS,
    RECOMMENDED,
    WARMUP_EPOCHS,
    WORLD_TASKS,
    days_of,
    over_folds,
    shared_with,
    world_data,
    world_name,
)


def _published(
    dataset: str, target: str, modalities: list[str], patch_size_m: float, batch_size: int, learning_rate: float,
    schedule: Literal["plateau", "cosine"] = "plateau", **options: Any,
) -> ProbeConfig:  # fmt: skip
    """Return a linear probe as published (spec 5): one learning rate, no decay, no clipping."""
    return ProbeConfig(
        weights=PUBLISHED_WEIGHTS, data=LabelledData(dataset=dataset, target=target, modalities=modalities),
        patch_sizes_m=[patch_size_m], batch_size=batch_size, learning_rates=[learning_rate], weight_decays=[0.0],
        epochs=200, min_epochs=MIN_EPOCHS, patience=10, clip_norm=None, schedule=schedule,
        warmup_epochs=WARMUP_EPOCHS if schedule == "cosine" else None, day_convention=days_of(dataset), **options,
    )  # fmt: skip


def pastis() -> ProbeConfig:
    """PASTIS crops per pixel, tested on fold 5, with Sentinel-2 only as in the published settings."""
    return _published("pastis_hd", "crops", ["s2"], 40, 4, 5e-5, dense="s2", head="dense", void_output=True)


def pastis_folds() -> ProbeConfig:
    """The same over all five folds in turn."""
    return over_folds(pastis())


def bradd() -> ProbeConfig:
    """BraDD-S1TS deforestation per pixel."""
    return _published("bradd_s1ts", "deforestation", ["s1"], 40, 8, 2e-4, dense="s1", head="dense")


def sickle() -> ProbeConfig:
    """SICKLE paddy per pixel."""
    return _published("sickle", "paddy", ["l8", "s2", "s1"], 10, 12, 5e-5, dense="s2", head="dense")


def timesen2crop() -> ProbeConfig:
    """TimeSen2Crop crop of a pixel."""
    return _published("timesen2crop", "crop", ["s2"], 10, 2048, 2e-4, "cosine", head="tile", monitor="accuracy")


def sen1floods11() -> ProbeConfig:
    """Sen1Floods11 water per pixel."""
    return _published("sen1floods11", "flood", ["s2", "s1"], 80, 4, 2e-4, dense="s2", head="dense")


def so2sat() -> ProbeConfig:
    """So2Sat local climate zone of a tile."""
    return _published("so2sat", "lcz", ["s2", "s1"], 80, 768, 2e-3, "cosine", head="tile", monitor="accuracy")


def _recommended(published: Callable[[], ProbeConfig]) -> Callable[[], ProbeConfig]:
    """Return a preset with our own settings, which try several learning rates and decays and end early."""
    return lambda: ProbeConfig(**shared_with(published()))


def _world(target: str) -> Callable[[], ProbeConfig]:
    """Return a task of the generated world for the small model that ships."""
    return lambda: ProbeConfig(data=world_data(target), patch_sizes_m=[30], dense=WORLD_TASKS[target])


_PUBLISHED: dict[str, Callable[[], ProbeConfig]] = {
    "pastis": pastis,
    "pastis-folds": pastis_folds,
    "bradd": bradd,
    "sickle": sickle,
    "timesen2crop": timesen2crop,
    "sen1floods11": sen1floods11,
    "so2sat": so2sat,
}
PRESETS: dict[str, Callable[[], ProbeConfig]] = {
    **_PUBLISHED,
    **{f"{name}{RECOMMENDED}": _recommended(made) for name, made in _PUBLISHED.items()},
    **{world_name(target): _world(target) for target in WORLD_TASKS},
}
"""Presets by name. Add new ones here."""
