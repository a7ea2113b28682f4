"""Median time and peak memory of one pretraining step, and what its parts take, on random pixels; a markdown table.

python benchmarks/pretraining_step.py --size tiny --repeat 5
python benchmarks/pretraining_step.py --size base --repeat 3 --cases 1 --recompute
"""

import argparse
import multiprocessing
import resource
import statistics
import time
from collections import defaultdict

import numpy as np
import torch

from anysat.batch import Batch, Tile
from anysat.data.loader import Draw
from anysat.modalities import MODALITIES
from anysat.model.config import ModelConfig
from anysat.model.encoder import AnySat
from anysat.normalise import Normaliser
from anysat.observation import Observation
from anysat.pretrain import objective as stage
from anysat.pretrain.config import ObjectiveConfig

CASES = {
    "TreeSatAI-like, 10 m": ({"aerial": 0, "s2": 20, "s1-asc": 30}, 60, 10, 4),
    "TreeSatAI-like, 20 m": ({"aerial": 0, "s2": 20, "s1-asc": 30}, 60, 20, 4),
    "PASTIS-like, 40 m": ({"spot": 0, "s2": 20, "s1": 20}, 320, 40, 1),
}
"""Dates of each modality, side of a tile and of a patch in metres, tiles in the batch."""
PARTS = ("preparation", "masking", "student", "teacher", "loss", "other", "backward", "optimiser", "follow")
"""`other` is the rest of the forward pass: gathers, sums, what is counted. `follow` moves the teacher."""


class Stopwatch:
    """Seconds of each part of a step."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.spent = device, defaultdict(float)

    def now(self) -> float:
        """The time when all that was launched is done."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()

    def timed(self, part: str, function):
        """The function, whose time counts to a part."""

        def call(*given, **named):
            start = self.now()
            found = function(*given, **named)
            self.spent[part] += self.now() - start
            return found

        return call


def make_draw(dates: dict[str, int], side_m: int, patch_size_m: int, batch: int, device: torch.device) -> Draw:
    """Random pixels of some modalities."""
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
    made = Batch.of(tiles)
    return Draw(step=0, dataset="random", patch_size_m=patch_size_m, batch=made.map(lambda tensor: tensor.to(device)))


def watch(watched: Stopwatch, objective: stage.Pretraining) -> None:
    """Time the leaves of the forward pass."""
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


def measure(case: str, size: str, goal: str, repeat: int, device_name: str, threads: int, recompute: bool) -> str:
    """A row of the table."""
    torch.set_num_threads(threads)
    device = torch.device(device_name)
    dates, side_m, patch_size_m, batch = CASES[case]
    draw = make_draw(dates, side_m, patch_size_m, batch, device)
    torch.manual_seed(0)
    student = AnySat(getattr(ModelConfig, size)(), normaliser=Normaliser.from_batch(draw.batch))
    heads = {"predictor_heads": student.config.num_heads}
    objective = (
        stage.Pretraining(student, config=ObjectiveConfig(goal=goal, **heads), recompute=recompute).to(device).train()
    )
    optimiser = torch.optim.AdamW([p for p in objective.parameters() if p.requires_grad], lr=1e-5, fused=True)
    watched = Stopwatch(device)
    watch(watched, objective)
    steps = []
    for step in range(repeat + 1):
        watched.spent.clear()
        start = watched.now()
        optimiser.zero_grad()
        found = objective(draw, torch.Generator().manual_seed(step))["loss"]
        forward = watched.now() - start
        watched.spent["other"] = forward - sum(watched.spent.values())
        watched.timed("backward", found.backward)()
        watched.timed("optimiser", optimiser.step)()
        watched.timed("follow", objective.after_update)(step, repeat + 1)
        steps.append({"whole": watched.now() - start, **watched.spent})
    steps = steps[1:]  # the first one warms up
    whole = statistics.median(step["whole"] for step in steps)
    shares = [statistics.median(step.get(part, 0.0) / step["whole"] for step in steps) for part in PARTS]
    on_gpu = device.type == "cuda"
    peak = torch.cuda.max_memory_allocated() if on_gpu else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    columns = [case, f"{whole:.3f}", f"{peak / 1e9:.2f}", *(f"{100 * share:.1f}" for share in shares)]
    return f"| {' | '.join(columns)} |"


def main() -> None:
    """Measure every case in a process of its own."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", default="tiny", choices=["tiny", "small", "base"])
    parser.add_argument("--goal", default="teacher", choices=["teacher", "projection"])
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--cases", type=int, default=len(CASES), help="only the first few")
    parser.add_argument("--recompute", action="store_true", help="activations of the student are computed again")
    options = parser.parse_args()
    head = ["case", "step (s)", "peak (GB)", *(f"{part} (%)" for part in PARTS)]
    print(f"| {' | '.join(head)} |\n|{'---|' * len(head)}")
    with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
        for case in [*CASES][: options.cases]:
            given = (case, options.size, options.goal, options.repeat, options.device, options.threads,
                     options.recompute)  # fmt: skip
            print(pool.apply(measure, given), flush=True)


if __name__ == "__main__":
    main()
