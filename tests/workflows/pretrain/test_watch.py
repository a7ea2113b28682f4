"""What is watched in pretraining: losses and health of held-out tiles, a collapse."""

from dataclasses import replace

import numpy as np
import pytest
import torch

import anysat
from anysat.data.base import DatasetRecord, Target
from anysat.data.mixture import Mixture
from anysat.errors import CollapseError, RecordError
from anysat.pretrain.objective import Pretraining
from anysat.train.config import EngineConfig
from anysat.workflows.pretrain import WatchConfig, pretrain
from anysat.workflows.pretrain.objective import make_objective
from anysat.workflows.pretrain.run import monitors, open_part
from tiny_pretraining import held_out, tiny, world


def prepared(config):
    """Parts, objective and monitors of a configuration, without a run."""
    parts = [open_part(config, part) for part in config.data]
    return parts, make_objective(config, parts[0].normaliser), monitors(config, parts)


def test_validation_is_the_same_number_at_the_same_weights_whatever_the_step():
    _, objective, (validation, _) = prepared(tiny("none"))
    objective.eval()
    found = []
    for step in (0, 4000):
        torch.manual_seed(step)
        with torch.no_grad():
            found.append(validation(objective, step))
    first, again = found
    assert again == first
    assert {"loss", "predict", "contrast"} <= set(first)


def test_validation_sees_held_out_tiles_only():
    parts, _, (validation, _) = prepared(tiny("none"))
    held = {tile.id for tile in held_out(world())}
    drawn = {
        name for number in range(3) for name in Mixture(parts=validation.mixture_parts, seed=1).draw(number).batch.ids
    }
    assert drawn <= held
    assert not held & set(parts[0].train.ids)


def test_validation_is_the_same_number_whatever_the_number_of_processes(monkeypatch):
    """Each looks at its batches, of which there may be different numbers, and of different datasets."""
    _, _, (validation, _) = prepared(tiny("none"))
    several = replace(validation, steps=3)

    def loss(draw, generator):
        return {"loss": torch.tensor(float(generator.initial_seed() % 5) ** 2)}

    alone = several(loss, 0)
    found: dict[int, dict] = {}
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    monkeypatch.setattr(torch.distributed, "all_gather_object",
                        lambda every, own: found.update({len(own): own}) or every.__setitem__(slice(None), found.values()))  # fmt: skip
    for rank in (0, 1):
        monkeypatch.setattr(torch.distributed, "get_rank", lambda rank=rank: rank)
        told = several(loss, 0)
    assert told == alone
    _, _, (far, _) = prepared(tiny("none", engine=EngineConfig(accelerator="cpu", num_workers=2)))
    assert far.num_workers == 2
    assert replace(several, num_workers=2)(loss, 0) == alone


def test_held_out_tiles_that_hold_nothing_end_no_run():
    _, objective, (_, health) = prepared(tiny("none"))
    tiles = health.chosen()
    empty = {k: replace(o, valid=np.zeros_like(o.valid)) for k, o in tiles[1].observations.items()}
    tiles[1] = replace(tiles[1], observations=empty)
    found = replace(health, tiles=tiles, target=None)(objective.eval(), 0)
    assert np.isfinite(list(found.values())).all()


def test_held_out_tiles_are_cut_to_whole_patches():
    """Of 60 m and patches of 40 m, which a crop to 40 m makes right for training."""
    part = world("s1", "s2", patch_sizes_m=[40], crop_m=40)
    _, objective, (_, health) = prepared(tiny("none", part))
    assert {tile.observations["s1"].shape_px for tile in health.chosen()} == {(4, 4)}
    assert np.isfinite(list(health(objective.eval(), 0).values())).all()


@pytest.mark.parametrize(
    ("part", "watch", "told"),
    [
        (world(val_split=None), {"target": "land_cover"}, "watch.target.*held-out"),
        (world(val_split=None), {"stop_on_collapse": True}, "watch.stop_on_collapse.*held-out"),
    ],
)
def test_what_could_not_be_watched_is_refused(part, watch, told, tmp_path):
    config = tiny(tmp_path / "run", part)
    with pytest.raises(RecordError, match=told):
        pretrain(replace(config, watch=replace(config.watch, **watch)))
    assert not (tmp_path / "run").exists()


def test_only_a_target_of_classes_can_be_watched(monkeypatch, tmp_path):
    value = Target(name="height", level="pixel", kind="value", gsd_m=10.0, unit="m")
    monkeypatch.setattr(DatasetRecord, "target", lambda self, name: value)
    config = tiny(tmp_path / "run")
    with pytest.raises(RecordError, match="watch.target.*classes"):
        pretrain(replace(config, watch=replace(config.watch, target="height")))
    assert not (tmp_path / "run").exists()


def collapse(objective):
    """Every patch gets the same vector."""
    with torch.no_grad():
        for parameter in objective.encoder().fusion.parameters():
            parameter.zero_()


def test_collapsed_embeddings_are_named_and_end_the_run_if_asked(capsys):
    _, objective, (_, health) = prepared(tiny("none"))
    collapse(objective.eval())
    assert health(objective, 3)["spread"] < 0.05
    assert "possible collapse" in capsys.readouterr().err
    strict = replace(health, stop_on_collapse=True)
    strict(objective, 0)  # before the first step it says nothing of the training
    with pytest.raises(CollapseError, match="almost the same vector"):
        strict(objective, 3)


def test_a_run_that_collapses_stops_with_a_checkpoint(tmp_path, monkeypatch):
    watch = WatchConfig(
        validate_every=40, val_batches=1, health_every=3, health_tiles=4, stop_on_collapse=True, report=False
    )
    updated = Pretraining.after_update

    def broken(objective, step, num_steps):
        updated(objective, step, num_steps)
        collapse(objective)

    monkeypatch.setattr(Pretraining, "after_update", broken)
    with pytest.raises(CollapseError, match="step 3"):
        pretrain(tiny(tmp_path / "run", num_steps=40, watch=watch))
    assert max(folder.name for folder in (tmp_path / "run" / "checkpoints").iterdir()) == "step-00000003"
    assert anysat.load(tmp_path / "run").config.dim == 64
