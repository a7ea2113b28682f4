"""Named options of pretraining: the published code's, the paper's, ours, and one for a laptop."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from anysat.pretrain.config import MaskingConfig, ObjectiveConfig
from anysat.train.config import EngineConfig, KeepConfig, OptimiserConfig
from anysat.workflows.pretrain import ModelOptions, PartConfig, PretrainConfig, WatchConfig

_STEPS_PER_EPOCH, _EPOCHS = 2244, 200  # 359 046 // (10 * 2 * 8 devices), spec 3.6
_PAPER_DEVICES = 8


def _geoplex_parts(*, paper: bool) -> list[PartConfig]:
    from anysat.data.mixture import GEOPLEX

    return [
        PartConfig(
            dataset=name, modalities=list(recipe.modalities), weight=recipe.weight,
            batch_size=recipe.paper_batch_size // _PAPER_DEVICES if paper else recipe.batch_size,
            patch_sizes_m=list(recipe.paper_patch_sizes_m if paper else recipe.patch_sizes_m),
            max_dates=recipe.max_dates,
            # Of PASTIS the code pretrains on folds 1 to 3, the paper on all.
            split="all" if paper and name == "pastis_hd" else "train",
        )
        for name, recipe in GEOPLEX.items()
    ]  # fmt: skip


def geoplex() -> PretrainConfig:
    """The settings of the published code (spec 3.6 and 3.7), on its 8 devices; not its faults."""
    return PretrainConfig(
        preset="geoplex",
        data=_geoplex_parts(paper=False),
        num_steps=_STEPS_PER_EPOCH * _EPOCHS,
        seed=32,
        model=ModelOptions(subpatch_order="cell", rpe_heads="first"),
        objective=ObjectiveConfig(centred=False, complete_weight=0.0),
        optimiser=OptimiserConfig(learning_rate=5e-5, weight_decay=0.05, decay_all=True, schedule="plateau"),
        engine=EngineConfig(devices=8, precision="16", num_workers=8),
        keep=KeepConfig(save_every=_STEPS_PER_EPOCH, keep_best="val/loss"),
        watch=WatchConfig(validate_every=_STEPS_PER_EPOCH, health_every=_STEPS_PER_EPOCH),
    )


def geoplex_paper() -> PretrainConfig:
    """The paper's settings where they differ from the code's (spec 3.6 and 7 D).

    Batches of the whole machine, patch sizes, all folds of PASTIS, five hidden rectangles of which the rest is context,
    squared distance, a constant momentum, a predictor of three blocks. The encoder keeps six blocks: with the three of
    the text it would not have the parameters the paper counts.
    """
    return replace(
        geoplex(),
        preset="geoplex-paper",
        data=_geoplex_parts(paper=True),
        masking=MaskingConfig(num_blocks=5, context_area_frac=(1.0, 1.0)),
        objective=ObjectiveConfig(
            centred=False, complete_weight=0.0, distance="l2", final_momentum=0.996, predictor_depth=3
        ),
    )


def geoplex_fixed() -> PretrainConfig:
    """What we recommend: true sub-patch places, warm-up and cosine, no decay of norms and tokens, clipping, bf16."""
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
    )


def _world_parts(*, tiles: int, batch_size: int) -> list[PartConfig]:
    """The generated world as five datasets with the modalities of GeoPlex; all 11 released ones take part."""
    groups = {
        ("s2", "s1"): (4, 80.0, [10.0, 20.0, 40.0]),
        ("aerial", "s2", "s1-asc"): (1, 40.0, [10.0, 20.0]),
        ("aerial-flair", "s2"): (1, 40.0, [10.0, 20.0]),
        ("spot", "naip", "l8", "s2", "s1"): (2, 80.0, [20.0, 40.0]),
        ("s2", "s1", "l7", "alos", "modis"): (2, 120.0, [30.0, 60.0]),
    }
    return [
        PartConfig(
            dataset="world", modalities=list(keys), weight=weight, batch_size=batch_size, patch_sizes_m=sizes,
            crop_m=None if crop_m == 120 else crop_m, turns_and_flips=True,
            world={"tiles": tiles if crop_m > 40 else tiles // 4, "seed": 1, "modalities": list(keys)},
        )
        for keys, (weight, crop_m, sizes) in groups.items()
    ]  # fmt: skip


def world_nano() -> PretrainConfig:
    """Minutes on a laptop: a small encoder on the generated world, all 11 modalities; needs no files."""
    return PretrainConfig(
        preset="world-nano",
        data=_world_parts(tiles=800, batch_size=16),
        num_steps=600,
        statistics_tiles=400,
        model=ModelOptions(dim=128, depth=2, num_heads=4),
        objective=ObjectiveConfig(predictor_depth=2, predictor_heads=4),
        optimiser=OptimiserConfig(learning_rate=1e-3, warmup_steps=30, clip_norm=1.0, betas=(0.9, 0.95)),
        keep=KeepConfig(save_every=10, log_every=5, keep_best="val/loss"),
        watch=WatchConfig(validate_every=100, val_batches=2, health_every=100, target="land_cover"),
    )


PRESETS: dict[str, Callable[[], PretrainConfig]] = {
    "geoplex": geoplex,
    "geoplex-paper": geoplex_paper,
    "geoplex-fixed": geoplex_fixed,
    "world-nano": world_nano,
}
"""By name; add one here."""
