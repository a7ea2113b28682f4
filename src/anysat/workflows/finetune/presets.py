"""Presets of fine-tuning: the paper's experiments as published, the same with our settings, and the generated world."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from anysat.train.config import EngineConfig, OptimiserConfig, Schedule
from anysat.workflows.finetune import FinetuneConfig
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
    dataset: str, target: str, modalities: list[str], patch_size_m: float, batch_size: int, learning_rate: float = 5e-5,
    *, schedule: Schedule = "plateau", weight_decay: float = 0.0, epochs: int = 200, **options: Any,
) -> FinetuneConfig:  # fmt: skip
    """Return settings as published (spec 5): all weights, half precision, no clipping, no projector dropout (2.16)."""
    return FinetuneConfig(
        weights=PUBLISHED_WEIGHTS, data=LabelledData(dataset=dataset, target=target, modalities=modalities),
        patch_sizes_m=[patch_size_m], batch_size=batch_size, epochs=epochs, min_epochs=MIN_EPOCHS, patience=10,
        warmup_epochs=WARMUP_EPOCHS if schedule == "cosine" else 0, day_convention=days_of(dataset),
        turns_and_flips=False, pixel_dropout_prob=0.0,
        optimiser=OptimiserConfig(
            learning_rate=learning_rate, weight_decay=weight_decay, schedule=schedule, decay_all=True
        ),
        engine=EngineConfig(precision="bf16", num_workers=8), **options,
    )  # fmt: skip


def _tsaits() -> FinetuneConfig:
    return _published("treesatai_ts", "genera", ["aerial", "s2", "s1-asc"], 10, 256, schedule="cosine", head="tile")


def _pastis_labels() -> FinetuneConfig:
    return _published(
        "pastis_hd", "crops_present", ["spot", "s2", "s1"], 40, 4, schedule="cosine", head="tile", monitor="f1_macro"
    )


def _pastis() -> FinetuneConfig:
    return _published("pastis_hd", "crops", ["spot", "s2", "s1"], 40, 4, dense="s2", void_output=True)


def _flair() -> FinetuneConfig:
    return _published("flair", "land_cover", ["aerial-flair", "s2"], 10, 32, weight_decay=1e-2,
                               dense="aerial-flair", void_output=True, keep_dates_frac=0.3)  # fmt: skip


def _planted() -> FinetuneConfig:
    return _published("planted", "species", ["s2", "s1", "l7", "alos", "modis"], 30, 64, weight_decay=1e-4,
                               head="tile", keep_dates_frac=0.7)  # fmt: skip


def _bradd() -> FinetuneConfig:
    return _published("bradd_s1ts", "deforestation", ["s1"], 40, 8, dense="s1", keep_dates_frac=0.5)


def _sickle() -> FinetuneConfig:
    return _published("sickle", "paddy", ["l8", "s2", "s1"], 10, 12, dense="s2", keep_dates_frac=0.8)


def _timesen2crop() -> FinetuneConfig:
    return _published("timesen2crop", "crop", ["s2"], 10, 2048, schedule="cosine", epochs=100, head="tile",
                               monitor="accuracy", keep_dates_frac=0.7)  # fmt: skip


def _burn_scars() -> FinetuneConfig:
    return _published("hls_burn_scars", "burn", ["hls"], 240, 4, dense="hls")


def _burn_scars_projectors() -> FinetuneConfig:
    return _projectors(_burn_scars(), 2e-4)


def _spacenet7() -> FinetuneConfig:
    return _published("spacenet7", "buildings", ["planet"], 48, 8, dense="planet")


def _spacenet7_projectors() -> FinetuneConfig:
    return _projectors(_spacenet7(), 5e-5)


def _projectors(config: FinetuneConfig, learning_rate: float) -> FinetuneConfig:
    """Return the paper's probe of new sensors: projectors and head are trained, the transformers are not."""
    optimiser = replace(config.optimiser, learning_rate=learning_rate)
    return replace(config, trained="projectors", optimiser=optimiser)


def _recommended(published: Callable[[], FinetuneConfig]) -> Callable[[], FinetuneConfig]:
    """Return a preset with our own settings.

    They warm up for a tenth of the epochs, lower the rate by a cosine, clip gradients, and train lower blocks less if
    blocks are trained.
    """

    def made() -> FinetuneConfig:
        given = published()
        decay = 1.0 if given.trained == "projectors" else 0.8
        return FinetuneConfig(
            **shared_with(given), trained=given.trained, engine=given.engine, warmup_epochs=5, layer_decay=decay
        )

    return made


def _world(target: str) -> Callable[[], FinetuneConfig]:
    """Return a task of the generated world with everything trained."""

    def made() -> FinetuneConfig:
        optimiser = OptimiserConfig(learning_rate=1e-3, schedule="cosine", clip_norm=1.0)
        return FinetuneConfig(data=world_data(target), patch_sizes_m=[30], dense="s2", epochs=12, warmup_epochs=1,
                              optimiser=optimiser)  # fmt: skip

    return made


_PUBLISHED: dict[str, Callable[[], FinetuneConfig]] = {
    "treesatai-ts": _tsaits,
    "pastis": _pastis,
    "pastis-folds": lambda: over_folds(_pastis()),
    "pastis-labels": _pastis_labels,
    "pastis-labels-folds": lambda: over_folds(_pastis_labels()),
    "flair": _flair,
    "planted": _planted,
    "bradd": _bradd,
    "sickle": _sickle,
    "timesen2crop": _timesen2crop,
    "burn-scars": _burn_scars,
    "burn-scars-projectors": _burn_scars_projectors,
    "spacenet7": _spacenet7,
    "spacenet7-projectors": _spacenet7_projectors,
}
PRESETS: dict[str, Callable[[], FinetuneConfig]] = {
    **_PUBLISHED,
    **{f"{name}{RECOMMENDED}": _recommended(made) for name, made in _PUBLISHED.items()},
    **{world_name(target): _world(target) for target in WORLD_TASKS},
}
"""Presets by name. Add new ones here."""
