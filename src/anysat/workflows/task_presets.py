"""Presets of probes and fine-tuning: the paper's experiments as published, and tasks of the generated world."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

from anysat.data.base import find_dataset
from anysat.train.config import EngineConfig, OptimiserConfig, Schedule
from anysat.workflows.finetune import FinetuneConfig
from anysat.workflows.probe import ProbeConfig
from anysat.workflows.supervised import LabelledData

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


def recommended(published: Callable[[], Any]) -> Callable[[], Any]:
    """Return a preset with the weights, data and view of a published experiment, and otherwise our own settings.

    A probe tries several learning rates and decays and ends early. Fine-tuning warms up for a tenth of its epochs,
    lowers the rate by a cosine, clips gradients, and trains lower blocks less if blocks are trained.
    """

    def made() -> Any:
        given = published()
        kept = {
            name: getattr(given, name)
            for name in ("weights", "data", "patch_sizes_m", "dense", "batch_size", "day_convention")
        }
        if isinstance(given, ProbeConfig):
            return ProbeConfig(**kept)
        decay = 1.0 if given.trained == "projectors" else 0.8
        return FinetuneConfig(**kept, trained=given.trained, engine=given.engine, warmup_epochs=5, layer_decay=decay)

    return made


def _published(
    dataset: str, target: str, modalities: list[str], patch_size_m: float, batch_size: int, learning_rate: float,
    schedule: Literal["plateau", "cosine"] = "plateau", **options: Any,
) -> ProbeConfig:  # fmt: skip
    """Return a linear probe as published (spec 5): one learning rate, no decay, no clipping."""
    return ProbeConfig(
        weights=PUBLISHED_WEIGHTS, data=LabelledData(dataset=dataset, target=target, modalities=modalities),
        patch_sizes_m=[patch_size_m], batch_size=batch_size, learning_rates=[learning_rate], weight_decays=[0.0],
        epochs=200, min_epochs=MIN_EPOCHS, patience=10, clip_norm=None, schedule=schedule,
        warmup_epochs=WARMUP_EPOCHS if schedule == "cosine" else None, day_convention=_days_of(dataset), **options,
    )  # fmt: skip


def _days_of(dataset: str) -> str:
    """Return the day convention with which the published weights saw the dataset."""
    return find_dataset(dataset).day_convention


def pastis() -> ProbeConfig:
    """PASTIS crops per pixel, tested on fold 5, with Sentinel-2 only as in the published settings."""
    return _published("pastis_hd", "crops", ["s2"], 40, 4, 5e-5, dense="s2", head="dense", void_output=True)


PASTIS_FOLDS = [f"fold{number}" for number in range(1, 6)]
"""Each is tested once: training on folds 1 to 3, validation on 4 and test on 5, as published; then 2 to 4, 5 and 1;
etc."""


def pastis_folds() -> ProbeConfig:
    """The same over all five folds in turn."""
    return _over_folds(pastis())


def _over_folds(config: Any) -> Any:
    return replace(config, data=replace(config.data, folds=PASTIS_FOLDS))


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


WORLD_TASKS = {"land_cover": "s2", "species": "s2", "crop": "s2", "change": "s2", "flood": "s1"}
"""Targets of the generated world, and the modality whose sub-patches are classified. Floods need radar: clouds hide
them."""


def _world(target: str) -> Callable[[], ProbeConfig]:
    """Return a task of the generated world for the small model that ships. It needs no files."""

    def made() -> ProbeConfig:
        world = {"tiles": 600, "seed": 100, "modalities": ["s2", "s1"]}
        data = LabelledData(dataset="world", target=target, world=world, modalities=["s2", "s1"])
        return ProbeConfig(data=data, patch_sizes_m=[30], dense=WORLD_TASKS[target])

    return made


_PUBLISHED_PROBES: dict[str, Callable[[], ProbeConfig]] = {
    "pastis": pastis,
    "pastis-folds": pastis_folds,
    "bradd": bradd,
    "sickle": sickle,
    "timesen2crop": timesen2crop,
    "sen1floods11": sen1floods11,
    "so2sat": so2sat,
}
PROBES: dict[str, Callable[[], ProbeConfig]] = {
    **_PUBLISHED_PROBES,
    **{f"{name}{RECOMMENDED}": recommended(made) for name, made in _PUBLISHED_PROBES.items()},
    **{f"world-{target.replace('_', '-')}": _world(target) for target in WORLD_TASKS},
}
"""Probe presets by name. Add new ones here."""


def _world_finetune(target: str) -> Callable[[], FinetuneConfig]:
    """Return the same task with everything trained."""

    def made() -> FinetuneConfig:
        probe = _world(target)()
        optimiser = OptimiserConfig(learning_rate=1e-3, schedule="cosine", clip_norm=1.0)
        return FinetuneConfig(data=probe.data, patch_sizes_m=probe.patch_sizes_m, dense="s2", epochs=12,
                              warmup_epochs=1, optimiser=optimiser)  # fmt: skip

    return made


def _published_finetune(
    dataset: str, target: str, modalities: list[str], patch_size_m: float, batch_size: int, learning_rate: float = 5e-5,
    *, schedule: Schedule = "plateau", weight_decay: float = 0.0, epochs: int = 200, **options: Any,
) -> FinetuneConfig:  # fmt: skip
    """Return settings as published (spec 5): all weights, half precision, no clipping, no projector dropout (2.16)."""
    return FinetuneConfig(
        weights=PUBLISHED_WEIGHTS, data=LabelledData(dataset=dataset, target=target, modalities=modalities),
        patch_sizes_m=[patch_size_m], batch_size=batch_size, epochs=epochs, min_epochs=MIN_EPOCHS, patience=10,
        warmup_epochs=WARMUP_EPOCHS if schedule == "cosine" else 0, day_convention=_days_of(dataset),
        turns_and_flips=False, pixel_dropout_prob=0.0,
        optimiser=OptimiserConfig(
            learning_rate=learning_rate, weight_decay=weight_decay, schedule=schedule, decay_all=True
        ),
        engine=EngineConfig(precision="bf16", num_workers=8), **options,
    )  # fmt: skip


def _tsaits() -> FinetuneConfig:
    return _published_finetune(
        "treesatai_ts", "genera", ["aerial", "s2", "s1-asc"], 10, 256, schedule="cosine", head="tile"
    )


def _pastis_labels() -> FinetuneConfig:
    return _published_finetune(
        "pastis_hd", "crops_present", ["spot", "s2", "s1"], 40, 4, schedule="cosine", head="tile", monitor="f1_macro"
    )


def _pastis() -> FinetuneConfig:
    return _published_finetune("pastis_hd", "crops", ["spot", "s2", "s1"], 40, 4, dense="s2", void_output=True)


def _flair() -> FinetuneConfig:
    return _published_finetune("flair", "land_cover", ["aerial-flair", "s2"], 10, 32, weight_decay=1e-2,
                               dense="aerial-flair", void_output=True, keep_dates_frac=0.3)  # fmt: skip


def _planted() -> FinetuneConfig:
    return _published_finetune("planted", "species", ["s2", "s1", "l7", "alos", "modis"], 30, 64, weight_decay=1e-4,
                               head="tile", keep_dates_frac=0.7)  # fmt: skip


def _bradd() -> FinetuneConfig:
    return _published_finetune("bradd_s1ts", "deforestation", ["s1"], 40, 8, dense="s1", keep_dates_frac=0.5)


def _sickle() -> FinetuneConfig:
    return _published_finetune("sickle", "paddy", ["l8", "s2", "s1"], 10, 12, dense="s2", keep_dates_frac=0.8)


def _timesen2crop() -> FinetuneConfig:
    return _published_finetune("timesen2crop", "crop", ["s2"], 10, 2048, schedule="cosine", epochs=100, head="tile",
                               monitor="accuracy", keep_dates_frac=0.7)  # fmt: skip


def _burn_scars() -> FinetuneConfig:
    return _published_finetune("hls_burn_scars", "burn", ["hls"], 240, 4, dense="hls")


def _burn_scars_projectors() -> FinetuneConfig:
    return _projectors(_burn_scars(), 2e-4)


def _spacenet7() -> FinetuneConfig:
    return _published_finetune("spacenet7", "buildings", ["planet"], 48, 8, dense="planet")


def _spacenet7_projectors() -> FinetuneConfig:
    return _projectors(_spacenet7(), 5e-5)


def _projectors(config: FinetuneConfig, learning_rate: float) -> FinetuneConfig:
    """Return the paper's probe of new sensors: projectors and head are trained, the transformers are not."""
    optimiser = replace(config.optimiser, learning_rate=learning_rate)
    return replace(config, trained="projectors", optimiser=optimiser)


_PUBLISHED_FINETUNES: dict[str, Callable[[], FinetuneConfig]] = {
    "treesatai-ts": _tsaits,
    "pastis": _pastis,
    "pastis-folds": lambda: _over_folds(_pastis()),
    "pastis-labels": _pastis_labels,
    "pastis-labels-folds": lambda: _over_folds(_pastis_labels()),
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
FINETUNES: dict[str, Callable[[], FinetuneConfig]] = {
    **_PUBLISHED_FINETUNES,
    **{f"{name}{RECOMMENDED}": recommended(made) for name, made in _PUBLISHED_FINETUNES.items()},
    **{f"world-{target.replace('_', '-')}": _world_finetune(target) for target in WORLD_TASKS},
}
"""Fine-tuning presets by name. Add new ones here."""
PRESETS: dict[str, dict[str, Callable[[], Any]]] = {"probe": PROBES, "finetune": FINETUNES}
"""Presets by command."""

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
