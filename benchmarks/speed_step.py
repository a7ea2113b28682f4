"""Seconds and memory of a step of pretraining at the base size, against the plain forward passes.

python benchmarks/speed_step.py run [--times 3] [--json docs/experiments/speed-step.json]
python benchmarks/speed_step.py print docs/experiments/speed-step.json

Four tiles like TreeSatAI's (60 m: aerial photo, 20 dates of Sentinel-2, 30 of Sentinel-1; patches of 10 m), the
published objective: teacher, prediction and contrast. *Plain*: student and teacher by `plain.py`, every pixel, date and
token at once, AdamW as torch makes it by default, float32. *float32* and *bf16*: as `anysat pretrain` trains, what is
freed kept for the next step (`train/memory.py`).
*recomputed*: activations of the student are computed again for the gradient (`--recompute`). *saving memory*: besides,
weights are updated during the backward pass (`--engine.save-memory`). Each way takes its steps in a process of its own,
in turns with another that takes plain ones.
"""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from machine import machine_facts, measure_or_print, small_pages
from plain import plain, seen
from pretraining_step import make_tiles
from torch import Tensor
from torch.nn import functional

from anysat.batch import Batch
from anysat.data.loader import Draw
from anysat.model.config import ModelConfig
from anysat.model.encoder import AnySat
from anysat.model.steps import SeenPatches
from anysat.normalise import Normaliser
from anysat.pretrain.config import ObjectiveConfig
from anysat.pretrain.goals import FEATURE_NORM_EPS, Targets
from anysat.pretrain.objective import Pretraining
from anysat.train.memory import give_back, memory_kept, update_in_backward

DATES = {"aerial": 0, "s2": 20, "s1-asc": 30}
PLAIN = "plain float32"
SAVING = "saving memory"
WAYS = ("float32", "bf16", "bf16 recomputed", f"bf16 {SAVING}", f"float32 {SAVING}")


def objective_of(way: str) -> tuple[Pretraining, Any]:
    """The published objective and a batch."""
    batch = Batch.of(make_tiles(DATES, 60, 4))
    draw = Draw(step=0, dataset="random", patch_size_m=10, batch=batch)
    torch.manual_seed(0)
    student = AnySat(ModelConfig.base(), normaliser=Normaliser.from_batch(batch))
    config = ObjectiveConfig(centred=False, complete_weight=0.0, dense_weight=0.0, spread_weight=0.0)
    objective = Pretraining(student, config=config, recompute=way.endswith(("recomputed", SAVING))).train()
    if way.startswith("plain"):
        objective.see = lambda inputs, grid: plain_see(student, inputs, grid.patch_size_m)
        objective.goal.forward = lambda inputs, grid: plain_goal(objective.goal.encoder, inputs, grid.patch_size_m)
    return objective, draw


def plain_see(model: AnySat, inputs: Mapping[str, Any], patch_m: float) -> dict[str, SeenPatches]:
    """The student's tokens by the plain forward pass."""
    rows, cols = model._count_patches(inputs, patch_m)
    found = {}
    for key, pixels in inputs.items():
        one = seen(model, key, pixels, patch_m)
        patch, flag = (part.unflatten(1, (rows, cols)) for part in (one.patch, one.flag))
        found[key] = SeenPatches(patch, flag, None, None)
    return found


@torch.no_grad()
def plain_goal(teacher: AnySat, inputs: Mapping[str, Any], patch_m: float) -> dict[str, Targets]:
    """The teacher's features by the plain forward pass."""
    tokens = plain(teacher, inputs, patch_m).patch
    tokens = functional.layer_norm(tokens, tokens.shape[-1:], eps=FEATURE_NORM_EPS)
    return {"patch": Targets(tokens, tokens.new_ones(tokens.shape[:2], dtype=torch.bool))}


def stepping(way: str) -> Callable[[int], Tensor]:
    """A step, which tells its loss."""
    objective, draw = objective_of(way)
    parameters = [p for p in objective.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(parameters, lr=1e-5, fused=None if way.startswith("plain") else True)
    tidy = give_back if way.endswith(SAVING) else lambda: None
    if way.endswith(SAVING):
        update_in_backward(optimiser, lambda _: None)

    def step(number: int) -> Tensor:
        optimiser.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=way.startswith("bf16")):
            loss = objective(draw, torch.Generator().manual_seed(number))["loss"]
        tidy()
        loss.backward()
        optimiser.step()
        objective.after_update(number, 1000)
        tidy()
        return loss.detach()

    return step


def working(way: str, pipe: Any) -> None:
    """Take a step for each word that comes, and tell seconds and loss; at the end the most memory held."""
    step, number = stepping(way), 0
    with contextlib.nullcontext() if way.startswith("plain") or way.endswith(SAVING) else memory_kept():
        while pipe.recv():
            start = time.perf_counter()
            loss = float(step(number))
            pipe.send((time.perf_counter() - start, loss))
            number += 1
    lines = Path("/proc/self/status").read_text().splitlines()
    pipe.send(next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1e6)


def in_turns(ways: Sequence[str], times: int) -> list[dict[str, Any]]:
    """Steps of each way, one after the other, without the first, which warms up; seconds, losses, memory."""
    context = multiprocessing.get_context("spawn")
    rows: list[dict[str, Any]] = []
    for way in ways:
        mine, theirs = context.Pipe()
        worker = context.Process(target=working, args=(way, theirs), daemon=True)
        with small_pages():
            worker.start()
        rows.append({"way": way, "pipe": mine, "worker": worker, "wall": [], "losses": []})
    for _ in range(times + 1):
        for row in rows:
            row["pipe"].send(True)
            seconds, loss = row["pipe"].recv()
            row["wall"].append(seconds)
            row["losses"].append(loss)
    for row in rows:
        row["pipe"].send(False)
        row["peak_gb"] = row.pop("pipe").recv()
        row.pop("worker").join()
        row["wall"] = row["wall"][1:]
    return rows


def run(times: int, others: float, path: Path | None) -> None:
    """Measure, print, and keep."""
    found: dict[str, Any] = {"machine": machine_facts(times, others), "rows": []}
    for way in WAYS:
        before, row = in_turns((PLAIN, way), times)
        row["ratio"] = statistics.median(p / s for p, s in zip(before["wall"], row["wall"], strict=True))
        found["rows"] += [row] if found["rows"] else [before | {"ratio": 1.0}, row]
    for row in found["rows"]:
        row["step_s"] = statistics.median(row.pop("wall"))
    print(table(found))
    if path is not None:
        path.write_text(json.dumps(found, indent=1) + "\n")


def table(found: Mapping[str, Any]) -> str:
    """Markdown."""
    machine = found["machine"]
    lines = [
        f"{machine['processor']}, {machine['threads']} threads, torch {machine['torch']}; medians of "
        f"{machine['times']}.", "",
        "| step of pretraining | s | to plain | peak GB | first loss |", "|---|---|---|---|---|",
    ]  # fmt: skip
    for row in found["rows"]:
        lines.append(f"| {row['way']} | {row['step_s']:.2f} | {row['ratio']:.2f} | {row['peak_gb']:.2f} "
                     f"| {row['losses'][0]:.5f} |")  # fmt: skip
    return "\n".join(lines)


if __name__ == "__main__":
    measure_or_print(__doc__, run, table, times=3)
