"""A pretraining in miniature: the real objective on a few small tiles of the generated world; runs by itself, too."""

import os
import sys

import torch
from torch.optim.optimizer import register_optimizer_step_pre_hook

from anysat.cli import main as command
from anysat.data.open import open_dataset
from anysat.pretrain.config import ObjectiveConfig
from anysat.pretrain.objective import Pretraining
from anysat.train.config import KeepConfig, OptimiserConfig
from anysat.workflows.pretrain import ModelOptions, PartConfig, PretrainConfig, WatchConfig
from anysat.workflows.pretrain.run import open_part

RADAR = ("alos", "s1")
STEPS = 4


def world(*keys, tiles=30, **changes):
    """A part of a few small generated tiles; those of radar are quick to make."""
    content = {"tiles": tiles, "seed": 1, "dates": 4, "extent_m": 60, "modalities": list(keys or RADAR)}
    return PartConfig(**{"dataset": "world", "world": content, "batch_size": 3, "patch_sizes_m": [30], **changes})


def held_out(part):
    """The tiles of a part that are not trained on."""
    opened = open_part(PretrainConfig(data=[part]), part)
    return open_dataset("world", opened.train.folder.root, "val", targets=())


def tiny(out, *parts, goal="teacher", **changes):
    """The options of a run of a few steps."""
    options = {
        "data": list(parts) or [world()],
        "num_steps": STEPS,
        "model": ModelOptions(dim=64, depth=1, num_heads=2),
        "objective": ObjectiveConfig(goal=goal, predictor_depth=1, predictor_heads=2),
        "optimiser": OptimiserConfig(learning_rate=1e-3, warmup_steps=2),
        "keep": KeepConfig(save_every=2, log_every=1, loggers=("csv",)),
        "watch": WatchConfig(validate_every=2, val_batches=1, health_every=4, health_tiles=4, report=False),
    }
    return PretrainConfig(out=str(out), **{**options, **changes})


def main(out, *words):
    """Run the command with these words; of every step, note what its batch had and what became of each projector."""
    steps, seen = [], {}
    forward, updated = Pretraining.forward, Pretraining.after_update

    def call(objective, draw, generator):
        seen["keys"] = sorted(draw.batch.observations)
        return forward(objective, draw, generator)

    def after(objective, step, num_steps):
        (optimiser,) = optimisers
        found = {}
        for name, parameter in objective.student.projectors.named_parameters():
            moments = optimiser.state.get(parameter, {})
            found[name] = {"weight": parameter, **{key: moments[key] for key in ("exp_avg", "exp_avg_sq") if moments}}
            found[name] = {key: tensor.detach().clone() for key, tensor in found[name].items()}
            if parameter.grad is not None:
                found[name]["grad"] = parameter.grad.clone()
        steps.append({"keys": seen["keys"], "projectors": found})
        updated(objective, step, num_steps)

    optimisers = set()
    Pretraining.forward, Pretraining.after_update = call, after
    register_optimizer_step_pre_hook(lambda optimiser, *_: optimisers.add(optimiser))
    status = command(list(words))
    torch.save(steps, f"{out}.{os.environ.get('LOCAL_RANK', 0)}.pt")
    return status


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
