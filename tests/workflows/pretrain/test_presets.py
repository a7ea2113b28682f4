"""Presets of pretraining: those of the paper have its settings and those of its code, differences are told."""

import json
from dataclasses import replace

import pytest

import anysat
from anysat.pretrain.config import ObjectiveConfig
from anysat.train.config import KeepConfig, OptimiserConfig
from anysat.workflows.pretrain import ModelOptions, PretrainConfig, WatchConfig
from anysat.workflows.pretrain.presets import PRESETS


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_survives_being_written_down(name):
    made = PRESETS[name]()
    assert made.preset == name
    plain = json.loads(json.dumps(made.to_dict()))
    parts = {
        "model": ModelOptions, "masking": type(made.masking), "objective": ObjectiveConfig, "optimiser": OptimiserConfig,
        "engine": type(made.engine), "keep": KeepConfig, "watch": WatchConfig,
    }  # fmt: skip
    again = PretrainConfig(**plain | {key: kind(**plain[key]) for key, kind in parts.items()})
    assert again == made
    assert made.model.config().depth == made.model.depth


def of_parts(config, name):
    return [getattr(part, name) for part in config.data]


def test_geoplex_has_the_settings_of_the_published_code():
    """Spec 3.2 to 3.7."""
    found = PRESETS["geoplex"]()
    assert of_parts(found, "dataset") == ["treesatai_ts", "pastis_hd", "flair", "planted", "s2naip_urban"]
    assert of_parts(found, "weight") == [1, 1, 1, 2, 4]
    assert of_parts(found, "batch_size") == [128, 1, 32, 256, 2]
    assert of_parts(found, "patch_sizes_m") == [[10, 20], [40, 80, 160], [10, 20], [30], [40, 80, 160]]
    assert of_parts(found, "modalities") == [
        ["aerial", "s2", "s1-asc"], ["spot", "s2", "s1"], ["aerial-flair", "s2"], ["s2", "s1", "l7", "alos", "modis"],
        ["naip", "l8", "s2", "s1"],
    ]  # fmt: skip
    assert of_parts(found, "max_dates") == [None, 20, None, None, None]
    assert of_parts(found, "split") == ["train"] * 5
    assert not any(of_parts(found, "turns_and_flips"))
    assert (found.num_steps, found.seed) == (448_800, 32)
    shape = found.model
    assert (shape.dim, shape.depth, shape.num_heads, shape.subpatch_order, shape.rpe_heads) == (
        768, 6, 12, "cell", "first",
    )  # fmt: skip
    masking, objective, optimiser = found.masking, found.objective, found.optimiser
    assert (masking.pattern, masking.num_blocks, masking.block_area_frac, masking.block_aspect) == (
        "blocks", 4, (0.2, 0.8), (0.75, 1.5),
    )  # fmt: skip
    assert (masking.context_area_frac, masking.keep_dates_frac) == ((0.85, 1), (0.5, 0.5))
    assert masking.hide_modalities_frac == 0.5
    assert (objective.goal, objective.distance, objective.momentum, objective.final_momentum) == (
        "teacher", "smooth_l1", 0.996, 1,
    )  # fmt: skip
    assert (objective.predict_weight, objective.contrast_weight, objective.complete_weight) == (1, 1, 0)
    assert objective.spread_weight == 0
    assert (objective.temperature, objective.centred, objective.gather_negatives) == (0.1, False, False)
    assert (objective.predictor_depth, objective.predictor_heads) == (4, 16)
    assert (optimiser.learning_rate, optimiser.weight_decay, optimiser.decay_all) == (5e-5, 0.05, True)
    assert (optimiser.betas, optimiser.warmup_steps, optimiser.clip_norm) == ((0.9, 0.999), 0, None)
    assert (optimiser.schedule, optimiser.plateau_metric, optimiser.plateau_factor, optimiser.plateau_patience) == (
        "plateau", "val/loss", 0.1, 10,
    )  # fmt: skip
    assert (found.engine.devices, found.engine.precision, found.engine.accumulate) == (8, "float16", 1)
    assert found.watch.validate_every == 2244  # once per epoch, which the patience counts
    on_each_device = round(found.watch.val_batches * len(found.data) / found.engine.devices)
    assert on_each_device == 513


def test_geoplex_paper_differs_where_the_paper_does():
    """Spec 3.6 and 7 D; batches of the whole machine are shared out among its devices."""
    code, found = PRESETS["geoplex"](), PRESETS["geoplex-paper"]()
    devices = found.engine.devices
    assert [devices * size for size in of_parts(found, "batch_size")] == [384, 8, 96, 2048, 16]
    assert of_parts(found, "patch_sizes_m") == [[10, 20, 30], [40, 80, 160], [10, 20, 50], [30, 60], [40, 80, 160]]
    assert of_parts(found, "split") == ["train", "all", "train", "train", "train"]
    assert of_parts(found, "val_split") == ["val", None, "val", "val", "val"]  # nothing is held out of all folds
    assert (found.masking.num_blocks, found.masking.context_area_frac) == (5, (1, 1))
    objective = found.objective
    assert (objective.distance, objective.momentum, objective.final_momentum, objective.predictor_depth) == (
        "l2", 0.996, 0.996, 3,
    )  # fmt: skip
    assert (objective.centred, objective.complete_weight) == (False, 0)
    in_metres = replace(code.model, patch_position_unit_m=1.0)
    assert (found.optimiser, found.model, found.num_steps) == (code.optimiser, in_metres, code.num_steps)


def test_geoplex_fixed_has_neither_the_code_s_places_nor_its_decay_of_everything():
    found = PRESETS["geoplex-fixed"]()
    assert (found.model.subpatch_order, found.model.rpe_heads) == ("raster", "each")
    assert not found.optimiser.decay_all
    assert (found.optimiser.schedule, found.optimiser.clip_norm, found.engine.precision) == ("cosine", 1.0, "bf16")
    assert found.optimiser.warmup_steps == 5 * 2244
    assert all(of_parts(found, "turns_and_flips"))
    assert of_parts(found, "split") == ["train"] * 5


def test_world_nano_sees_every_released_modality():
    keys = {key for part in PRESETS["world-nano"]().data for key in part.modalities}
    assert keys == {modality.key for modality in anysat.modalities.RELEASED}


def test_world_nano_loses_ten_steps_at_most_and_keeps_the_best():
    keep = PRESETS["world-nano"]().keep
    assert (keep.save_every, keep.keep_best) == (10, "val/loss")
