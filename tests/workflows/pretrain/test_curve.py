"""A stored curve of losses: a change of the mathematics is a visible act.

The curve goes through `fit`. On the kind of processor and the torch it was stored with (`made_on`), it is compared
exactly; elsewhere within 1e-4: sums are ordered, and multiplications fused, as processor and library of linear algebra
like, and training carries the difference on. In one process the same steps are the same (one thread).
After a change that is meant: python tests/workflows/pretrain/test_curve.py
"""

import hashlib
import json
import platform
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch

from anysat.data.loader import Plan
from anysat.model.config import ModelConfig
from anysat.pretrain.config import ObjectiveConfig
from anysat.pretrain.objective import Pretraining
from anysat.train.config import EngineConfig, KeepConfig, OptimiserConfig
from anysat.train.metrics import read_metrics
from anysat.train.run import open_run
from anysat.train.trainer import fit
from builders import GOLDEN, random_model
from objective_builders import make_tiles, unit_statistics

FILE = GOLDEN / "pretrain_curve.json"
STEPS = 30
GOALS = ("teacher", "projection")


class Turns:
    """Three batches of different modalities and patch sizes, in turn."""

    def __init__(self):
        self.batches = [
            (20.0, make_tiles(("s2", "s1"), dates=4, seed=1)),
            (10.0, make_tiles(("aerial", "s2"), 30.0, dates=3, seed=2)),
            (30.0, make_tiles(("s2", "l7", "modis"), dates=3, batch=3, seed=3)),
        ]

    def plan(self, step):
        size, tiles = self.batches[step % 3]
        return Plan(step=step, dataset="d", patch_size_m=size, indices=np.arange(len(tiles)), part=step % 3)

    def read(self, plan):
        return self.batches[plan.part][1]


def curve(goal, out):
    """Losses of the steps of a run."""
    # Weights of unit size: what patches differ in is far above rounding from the first step on.
    student = random_model(ModelConfig(dim=64, depth=1, num_heads=2)).requires_grad_(True)
    student.normaliser = unit_statistics()
    torch.manual_seed(0)
    objective = Pretraining(student, config=ObjectiveConfig(goal=goal, predictor_depth=1, predictor_heads=2))
    with open_run(out, config={}, seed=0) as run:
        fit(
            objective, lambda rank, world_size: Turns(), seed=0, num_steps=STEPS, run=run,
            optimiser=OptimiserConfig(learning_rate=1e-5, warmup_steps=5, clip_norm=1.0),
            engine=EngineConfig(accelerator="cpu", threads=1),
            keep=KeepConfig(save_every=100, log_every=1, loggers=("csv",)),
        )  # fmt: skip
    return [loss for _, loss in read_metrics(out / "metrics.csv")["train/loss"]]


def made_on():
    """What an exact curve depends on."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    facts = dict(map(str.strip, line.split(":", 1)) for line in lines if ":" in line)  # of the last processor
    kind = [facts.get(name, "") for name in ("model name", "cpu family", "model", "stepping")]
    kind.append(hashlib.sha256(facts.get("flags", platform.machine()).encode()).hexdigest()[:12])
    return {"processor": kind, "capability": torch.backends.cpu.get_cpu_capability(), "torch": torch.__version__}


@pytest.fixture(autouse=True)
def same_threads_again():
    count = torch.get_num_threads()
    yield
    torch.set_num_threads(count)


@pytest.mark.parametrize("goal", GOALS)
def test_losses_are_those_on_record_and_the_same_again(goal, tmp_path):
    found, stored = curve(goal, tmp_path / "one"), json.loads(FILE.read_text())
    is_exact = stored["made_on"] == made_on()
    assert found == (stored[goal] if is_exact else pytest.approx(stored[goal], rel=1e-4))
    assert curve(goal, tmp_path / "again") == found


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        stored = {"made_on": made_on(), **{goal: curve(goal, Path(folder) / goal) for goal in GOALS}}
    FILE.write_text(json.dumps(stored, indent=1) + "\n")
