"""A training in miniature: an encoder for Sentinel-2 that predicts its own average, on a meadow; runs by itself, too."""

import copy
import json
import os
import sys
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn
from torch.optim.optimizer import register_optimizer_step_post_hook

from anysat.batch import Batch
from anysat.data.mixture import Mixture, Part
from anysat.errors import CollapseError
from anysat.modalities import MODALITIES
from anysat.model.config import ModelConfig
from anysat.model.encoder import AnySat
from anysat.normalise import Normaliser
from anysat.train.checkpoints import newest_checkpoint
from anysat.train.config import EngineConfig, KeepConfig, OptimiserConfig
from anysat.train.metrics import read_metrics
from anysat.train.run import open_run
from anysat.train.trainer import fit, num_processes
from meadow import Meadow

NUM_STEPS = 6
ACCUMULATED = {"num_steps": 4, "optimiser": {"learning_rate": 1e-4}}


def only(batch, *keys):
    """A batch with some of its modalities."""
    return replace(batch, observations={key: batch.observations[key] for key in keys})


class Toy(nn.Module):
    """Predicts the averaged teacher's tile tokens from a noisy batch."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(5)
        config = ModelConfig(dim=64, depth=1, num_heads=2, modalities=(MODALITIES["s2"], MODALITIES["l8"]))
        meadow = Meadow()
        statistics = Normaliser.from_batch(only(Batch.of([meadow[index] for index in range(4)]), "s2"))
        self.student = AnySat(config, normaliser=statistics)
        self.teacher = copy.deepcopy(self.student).requires_grad_(False)
        self.predictor = nn.Linear(64, 64)
        self.updates = []

    def forward(self, draw, generator):
        batch = only(draw.batch, "s2")
        seen = batch.observations["s2"]
        noise = torch.randn(seen.values.shape, generator=generator)
        noisy = replace(batch, observations={"s2": replace(seen, values=seen.values + 5 * noise.to(seen.values))})
        predicted = self.predictor(self.student.encode(noisy, draw.patch_size_m).tile)
        with torch.no_grad():
            wanted = self.teacher.encode(batch, draw.patch_size_m).tile
        predict = nn.functional.smooth_l1_loss(predicted, wanted)
        spread = (1 - predicted.std(0)).relu().mean()
        return {"loss": predict + spread, "predict": predict, "spread": spread}

    def after_update(self, step, num_steps):
        self.updates.append(step)
        for ours, theirs in zip(self.teacher.parameters(), self.student.parameters(), strict=True):
            ours.lerp_(theirs, 0.1)

    def encoder(self):
        return self.teacher


def sources(rank, world_size):
    return Mixture(
        parts=[Part(tiles=Meadow(), batch_size=2, patch_sizes_m=(20.0, 40.0))], seed=3, rank=rank, world_size=world_size
    )


def train(
    out,
    *,
    objective=None,
    resume=False,
    max_steps=None,
    num_steps=NUM_STEPS,
    monitors=(),
    optimiser=None,
    engine=None,
    keep=None,
    config=None,
    seed=1,
):
    """A short training in a folder, with one thread: more would round otherwise."""
    threads = torch.get_num_threads()
    options = {"learning_rate": 1e-2, "warmup_steps": 2, **(optimiser or {})}
    engine = EngineConfig(**{"accelerator": "cpu", "threads": 1, **(engine or {})})
    begun = {"config": config or {"out": str(out)}, "seed": seed, "resume": resume}
    try:
        with open_run(Path(out), **begun, processes=num_processes(engine)) as run:
            return fit(
                objective or Toy(),
                sources,
                optimiser=OptimiserConfig(**options),
                engine=engine,
                keep=KeepConfig(**{"save_every": 2, "log_every": 1, "loggers": ("csv",), **(keep or {})}),
                seed=seed,
                num_steps=num_steps,
                max_steps=max_steps,
                run=run,
                monitors=monitors,
            )
    finally:
        torch.set_num_threads(threads)


def tensors_of(run):
    """Everything a run remembers in tensors."""
    return newest_checkpoint(Path(run) / "checkpoints").tensors()


def losses_of(run):
    """The loss of each step."""
    return read_metrics(Path(run) / "metrics.csv")["train/loss"]


def assert_same(ours, theirs):
    """Two sets of tensors are the same, bit by bit."""
    assert ours.keys() == theirs.keys()
    differing = [name for name in ours if not torch.equal(ours[name], theirs[name])]
    assert differing == [], differing


class Watch:
    """A monitor that gives the numbers it was made with, one after the other."""

    name = "val"

    def __init__(self, values, every_steps=2):
        self.values, self.every_steps, self.seen = values, every_steps, []

    def __call__(self, objective, step):
        self.seen.append((step, objective.training, torch.is_grad_enabled(), torch.rand(()).item()))
        return {"loss": self.values[len(self.seen) - 1]}


class CollapsingOn:
    """A monitor that finds a collapse on one rank, after some steps."""

    name, every_steps = "health", 2

    def __init__(self, rank):
        self.rank = rank

    def __call__(self, objective, step):
        if step and int(os.environ.get("LOCAL_RANK", 0)) == self.rank:
            raise CollapseError("all alike", step=step)
        return {"spread": 1.0}


def main(out, *sessions):
    """Train in some sessions, and leave the names of what has moments on this rank after the last."""
    for options in sessions:
        if "collapsing_on" in options:
            options["monitors"] = [CollapsingOn(options.pop("collapsing_on"))]
        optimisers, objective = set(), Toy()
        hook = register_optimizer_step_post_hook(lambda optimiser, *_, seen=optimisers: seen.add(optimiser))
        train(out, objective=objective, **options)
        hook.remove()
    having = [name for name, p in objective.named_parameters() if any(p in optimiser.state for optimiser in optimisers)]
    Path(f"{out}.{os.environ.get('LOCAL_RANK', 0)}.json").write_text(json.dumps(having))


if __name__ == "__main__":
    main(sys.argv[1], *json.loads(sys.argv[2]))
