"""Median time and peak memory of one pretraining step, and the share of its parts, on random pixels; a Markdown table.

The steps are those of `fit`, with a checkpoint after each. `save` is separate, in seconds, because how often it happens
is an option.

python benchmarks/pretraining_step.py --size tiny --repeat 5
python benchmarks/pretraining_step.py --size base --repeat 3 --cases 1 --recompute
"""

import argparse
import multiprocessing
import resource
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from machine import processor
from torch import Tensor

from anysat.batch import Batch, Tile
from anysat.data.loader import Plan
from anysat.modalities import MODALITIES
from anysat.model.config import ModelConfig
from anysat.model.encoder import AnySat
from anysat.normalise import Normaliser
from anysat.observation import Observation
from anysat.pretrain import objective as stage
from anysat.pretrain.config import ObjectiveConfig
from anysat.train.config import EngineConfig, KeepConfig, OptimiserConfig
from anysat.train.keeper import Keeper
from anysat.train.module import Training
from anysat.train.run import open_run
from anysat.train.trainer import fit

CASES = {
    "TreeSatAI-like, 10 m": ({"aerial": 0, "s2": 20, "s1-asc": 30}, 60, 10, 4),
    "TreeSatAI-like, 20 m": ({"aerial": 0, "s2": 20, "s1-asc": 30}, 60, 20, 4),
    "PASTIS-like, 40 m": ({"spot": 0, "s2": 20, "s1": 20}, 320, 40, 1),
}
"""Dates of each modality, side of a tile and of a patch in metres, and number of tiles in the batch."""
PARTS = ("data", "preparation", "masking", "student", "teacher", "loss", "backward", "optimiser", "follow", "other")
"""Parts of a step. `data` stacks tiles, `optimiser` includes clipping, `follow` updates the teacher. `other` is the
rest: indexing and sums of the forward pass, counting and logging, Lightning."""


class Stopwatch:
    """The seconds of each part of a step."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.spent = device, defaultdict(float)

    def now(self) -> float:
        """Return the time when all launched work is done."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()

    def timed(self, part: str, function):
        """Return a function whose time counts towards a part."""

        def call(*given, **named):
            start = self.now()
            found = function(*given, **named)
            self.spent[part] += self.now() - start
            return found

        return call


@dataclass(frozen=True)
class Same:
    """A source that gives the same tiles at every step."""

    tiles: list[Tile]
    patch_size_m: float

    def plan(self, step: int) -> Plan:
        """Plan all tiles."""
        return Plan(step=step, dataset="random", patch_size_m=self.patch_size_m, indices=np.arange(len(self.tiles)))

    def read(self, plan: Plan) -> list[Tile]:
        """Return all tiles."""
        assert len(plan.indices) == len(self.tiles), plan
        return self.tiles


def make_tiles(dates: dict[str, int], side_m: int, batch: int) -> list[Tile]:
    """Create tiles of random pixels."""
    drawn, tiles = np.random.default_rng(0), []
    for number in range(batch):
        seen = []
        for key, count in dates.items():
            modality = MODALITIES[key]
            side, time_axis = round(side_m / modality.gsd_m), (count,) if count else ()
            values = drawn.normal(size=(*time_axis, len(modality.bands), side, side)).astype(np.float32)
            when = np.datetime64("2020-01-01") + 365 * np.arange(count) // count if count else None
            seen.append(Observation.of(modality, values, dates=when))
        tiles.append(Tile.of(*seen, id=f"{number}", dataset="random"))
    return tiles


def watch(watched: Stopwatch, objective: stage.Pretraining) -> None:
    """Time the innermost functions of the forward pass."""
    for name in ("draw_masks", "drop_dates"):
        setattr(stage, name, watched.timed("masking", getattr(stage, name)))
    leaves = [
        (objective.student, "prepare", "preparation"), (objective, "show", "masking"), (objective, "see", "student"),
        (objective, "fuse", "student"), (objective, "contrast", "loss"), (objective.goal, "loss", "loss"),
        (objective.goal, "forward", "teacher"), (objective.predictor, "forward", "student"),
        (objective.completer, "forward", "student"), (objective, "dense_loss", "loss"), (objective, "spread", "loss"),
    ]  # fmt: skip
    for owner, name, part in leaves:
        setattr(owner, name, watched.timed(part, getattr(owner, name)))


def watch_engine(watched: Stopwatch, steps: list[dict[str, float]]) -> Callable[[], None]:
    """Time what `fit` does around the forward pass, and record every step.

    Returns a function that records the last one.
    """
    began: dict[str, float] = {}
    step, before, after, save = (
        Training.training_step,
        Training.on_before_optimizer_step,
        Training._after_update,
        Keeper.save,
    )

    def note(waited_s: float = 0.0) -> None:
        now = watched.now()
        if began:
            steps.append({"whole": now - began["step"] - watched.spent["save"], **watched.spent})
        watched.spent.clear()
        watched.spent["data"] = waited_s - began.get("waited", 0.0)
        began.update(step=now - watched.spent["data"], waited=waited_s)

    def step_noted(training: Training, *given: Any) -> Tensor:
        note(training.loader.waited_s if training.loader else 0.0)
        return step(training, *given)

    def before_noted(training: Training, *given: Any) -> None:
        began["update"] = watched.now()
        before(training, *given)

    def after_noted(training: Training, *given: Any) -> None:
        watched.spent["optimiser"] += watched.now() - began["update"]
        watched.timed("follow", after)(training, *given)

    Training.training_step, Training.on_before_optimizer_step = step_noted, before_noted  # type: ignore[method-assign]
    Training._after_update, Keeper.save = after_noted, watched.timed("save", save)  # type: ignore[method-assign]
    Tensor.backward = watched.timed("backward", Tensor.backward)  # type: ignore[method-assign]
    return note


def measure(case: str, size: str, goal: str, repeat: int, device_name: str, threads: int, recompute: bool) -> str:
    """Return a row of the table."""
    device = torch.device(device_name)
    dates, side_m, patch_size_m, batch = CASES[case]
    source = Same(make_tiles(dates, side_m, batch), patch_size_m)
    torch.manual_seed(0)
    student = AnySat(getattr(ModelConfig, size)(), normaliser=Normaliser.from_batch(Batch.of(source.tiles)))
    config = ObjectiveConfig(goal=goal, predictor_heads=student.config.num_heads)
    objective = stage.Pretraining(student, config=config, recompute=recompute)
    watched, steps = Stopwatch(device), []
    watch(watched, objective)
    note = watch_engine(watched, steps)
    with tempfile.TemporaryDirectory() as folder, open_run(Path(folder) / "run", config={}, seed=0) as run:
        fit(
            objective, lambda *_: source, optimiser=OptimiserConfig(learning_rate=1e-5), seed=0,
            engine=EngineConfig(accelerator=device.type, threads=threads), num_steps=repeat + 2, run=run,
            keep=KeepConfig(save_every=1, log_every=1),
        )  # fmt: skip
        note()
    steps = steps[1:-1]  # the first warms up, the last closes
    for one in steps:
        one["other"] = one["whole"] - sum(one.get(part, 0.0) for part in PARTS if part != "other")
    shares = [statistics.median(step.get(part, 0.0) / step["whole"] for step in steps) for part in PARTS]
    on_gpu = device.type == "cuda"
    peak = torch.cuda.max_memory_allocated() if on_gpu else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    whole, save = (statistics.median(step[part] for step in steps) for part in ("whole", "save"))
    columns = [case, f"{whole:.3f}", f"{peak / 1e9:.2f}", *(f"{100 * share:.1f}" for share in shares), f"{save:.3f}"]
    return f"| {' | '.join(columns)} |"


def main() -> None:
    """Measure every case in its own process."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", default="tiny", choices=["tiny", "small", "base"])
    parser.add_argument("--goal", default="teacher", choices=["teacher", "projection"])
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--cases", type=int, default=len(CASES), help="only the first few")
    parser.add_argument("--recompute", action="store_true", help="activations of the student are computed again")
    options = parser.parse_args()
    print(f"{processor()}, {options.threads} thread(s), torch {torch.__version__}, size {options.size}\n")
    head = ["case", "step (s)", "peak (GB)", *(f"{part} (%)" for part in PARTS), "save (s)"]
    print(f"| {' | '.join(head)} |\n|{'---|' * len(head)}")
    with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
        for case in [*CASES][: options.cases]:
            given = (case, options.size, options.goal, options.repeat, options.device, options.threads,
                     options.recompute)  # fmt: skip
            print(pool.apply(measure, given), flush=True)


if __name__ == "__main__":
    main()
