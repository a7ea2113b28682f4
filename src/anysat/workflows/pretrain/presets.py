"""Presets of pretraining: the published code's, the paper's, our recommendation, and two for a laptop."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from anysat.pretrain.config import MaskingConfig, ObjectiveConfig
from anysat.train.config import EngineConfig, KeepConfig, OptimiserConfig
from anysat.workflows.pretrain import ModelOptions, PartConfig, PretrainConfig, WatchConfig

_STEPS_PER_EPOCH, _EPOCHS = 2244, 200  # 359 046 // (10 * 2 * 8 devices), spec 3.6
_VAL_BATCHES = 513 * 8 // 5 + 1  # of each dataset: 82 140 // (10 * 2 * 8 devices) of each device, spec 3.6
_PAPER_DEVICES = 8


def _geoplex_parts(*, paper: bool) -> list[PartConfig]:
    from anysat.data.mixture import GEOPLEX

    return [
        PartConfig(
            dataset=name, modalities=list(recipe.modalities), weight=recipe.weight,
            batch_size=recipe.paper_batch_size // _PAPER_DEVICES if paper else recipe.batch_size,
            patch_sizes_m=list(recipe.paper_patch_sizes_m if paper else recipe.patch_sizes_m),
            max_dates=recipe.max_dates,
            # On PASTIS the code pretrains on folds 1 to 3. The paper uses all folds, so none is held out.
            split="all" if paper and name == "pastis_hd" else "train",
            val_split=None if paper and name == "pastis_hd" else "val",
        )
        for name, recipe in GEOPLEX.items()
    ]  # fmt: skip


def geoplex() -> PretrainConfig:
    """Return the settings of the published code (spec 3.6 and 3.7) on its 8 devices, without its faults."""
    return PretrainConfig(
        preset="geoplex",
        data=_geoplex_parts(paper=False),
        num_steps=_STEPS_PER_EPOCH * _EPOCHS,
        seed=32,
        model=ModelOptions(subpatch_order="cell", rpe_heads="first"),
        objective=ObjectiveConfig(centred=False, complete_weight=0.0, dense_weight=0.0, spread_weight=0.0),
        optimiser=OptimiserConfig(learning_rate=5e-5, weight_decay=0.05, decay_all=True, schedule="plateau"),
        engine=EngineConfig(devices=8, precision="float16", num_workers=8),
        keep=KeepConfig(save_every=_STEPS_PER_EPOCH, keep_best="val/loss"),
        watch=WatchConfig(validate_every=_STEPS_PER_EPOCH, val_batches=_VAL_BATCHES, health_every=_STEPS_PER_EPOCH),
    )


def geoplex_paper() -> PretrainConfig:
    """Return the settings of the paper where they differ from those of the code (spec 3.6 and 7 D).

    These are batch sizes of the whole machine, patch sizes, all folds of PASTIS, five hidden rectangles with the rest
    as context, squared distance, constant momentum, a predictor of three blocks, and patch positions in metres. The
    encoder keeps six blocks: with the three of the text it would not have the number of parameters in the paper. The
    contrastive loss keeps the code's denominator, over all tokens except those of the same modality and tile (the
    paper's Eq. 2 uses fewer).
    """
    return replace(
        geoplex(),
        preset="geoplex-paper",
        data=_geoplex_parts(paper=True),
        model=replace(geoplex().model, patch_position_unit_m=1.0),
        masking=MaskingConfig(num_blocks=5, context_area_frac=(1.0, 1.0)),
        objective=replace(geoplex().objective, distance="l2", final_momentum=0.996, predictor_depth=3),
    )


def geoplex_fixed() -> PretrainConfig:
    """Return our recommendation: true positions, warm-up, cosine, decay of weight matrices only, clipping, bf16."""
    return replace(
        geoplex(),
        preset="geoplex-fixed",
        data=[replace(part, turns_and_flips=True) for part in _geoplex_parts(paper=False)],
        model=ModelOptions(),
        objective=ObjectiveConfig(),
        optimiser=OptimiserConfig(
            learning_rate=2e-4, weight_decay=0.05, betas=(0.9, 0.95), warmup_steps=5 * _STEPS_PER_EPOCH, clip_norm=1.0
        ),
        engine=EngineConfig(devices=8, precision="bf16", num_workers=8),
        watch=replace(geoplex().watch, val_batches=WatchConfig().val_batches),  # not needed for a schedule here
    )


def _world_parts() -> list[PartConfig]:
    """Return the generated world as five datasets with the modalities of GeoPlex, all 11 released ones."""

    def part(keys: str, weight: int, tiles: int, batch_size: int, sizes: list[float], **options: Any) -> PartConfig:
        world = {"tiles": tiles, "seed": 1, "modalities": keys.split(), "extent_m": options.pop("extent_m", 120)}
        return PartConfig(dataset="world", modalities=keys.split(), weight=weight, batch_size=batch_size, world=world,
                          patch_sizes_m=sizes, turns_and_flips=True, **options)  # fmt: skip

    return [
        part("s2 s1", 5, 800, 16, [10, 20, 30], crop_m=60),
        part("aerial s2 s1-asc", 1, 150, 8, [10, 20], extent_m=60),
        part("aerial-flair s2", 1, 150, 8, [10, 20], extent_m=60),
        part("spot naip l8 s2 s1", 1, 300, 8, [20, 30], crop_m=60),
        part("s2 s1 l7 alos modis", 2, 300, 8, [30, 60]),
    ]


def world_nano() -> PretrainConfig:
    """Return settings for minutes on a laptop: a small encoder on the generated world, all 11 modalities, no files."""
    return PretrainConfig(
        preset="world-nano",
        data=_world_parts(),
        num_steps=1200,
        model=ModelOptions(dim=160, depth=2, num_heads=4, pixel_widths=[160], pixel_dropout_prob=0.0,
                           temporal_dropout_prob=0.0, first_weights="isometric"),
        masking=MaskingConfig(keep_dates_frac=(0.6, 1.0)),
        objective=ObjectiveConfig(momentum=0.99, predictor_depth=2, predictor_heads=4, projection_loss="regress"),
        optimiser=OptimiserConfig(learning_rate=1e-3, warmup_steps=30, clip_norm=1.0, betas=(0.9, 0.95)),
        keep=KeepConfig(save_every=10, log_every=10, keep_best="val/loss"),
        watch=WatchConfig(validate_every=200, val_batches=2, health_every=100, target="land_cover"),
    )  # fmt: skip


def nano() -> PretrainConfig:
    """Return the settings of the model that ships: `world-nano`, longer, with five real pairs beside the world."""
    real = PartConfig(
        dataset="bigearthnet_pairs", modalities=["s2", "s1"], weight=1, batch_size=5, patch_sizes_m=[10, 20, 30],
        crop_m=120, turns_and_flips=True,
    )  # fmt: skip
    start = world_nano()
    return replace(
        start,
        preset="nano",
        data=[*start.data, real],
        num_steps=3000,
        engine=replace(start.engine, threads=1),
        objective=replace(start.objective, goal="projection"),
    )


PRESETS: dict[str, Callable[[], PretrainConfig]] = {
    "geoplex": geoplex,
    "geoplex-paper": geoplex_paper,
    "geoplex-fixed": geoplex_fixed,
    "world-nano": world_nano,
    "nano": nano,
}
"""Presets by name. Add new ones here."""
