"""Which pretraining serves a probe: scores on folds 1 to 4 alone, so that fold 0 and the tested patch choose nothing.

python benchmarks/real/choice.py run untrained --data DATA
python benchmarks/real/choice.py run all-dates --weights runs/all-dates --data DATA   # a run of `unlabelled.py`
python benchmarks/real/choice.py print                                                # the table of all that was tried

The linear model of `simple.py` on frozen tokens, as `encoders.py` probes, but in the training part of fold 0: each of
folds 1 to 4 is told from the other three, of the parcels five parts of the training patch in turn. One penalty of three
for a task, the best of them; statistics of the bands are of the whole training part. Pretraining saw these folds
without labels. Records are lines of docs/experiments/real/choice.jsonl.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

if __name__ == "__main__":  # as a script: the folder of the package, not the package, is where to look
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import numpy as np
import torch
import yaml
from threadpoolctl import threadpool_limits

from real.encoders import RECORDS
from real.features import samples
from real.frozen import UNTRAINED, embedded, encoder_of
from real.protocol import RealTask, blocked_folds, numbers
from real.simple import MODELS, answered
from real.tasks import SMOKE, TASKS, load

CHOICES = RECORDS / "choice.jsonl"
PENALTIES = (0.01, 0.1, 1.0)


def training_part(task: RealTask) -> RealTask:
    """What is learnt from where fold 0 is tested, with folds of its own."""
    train, _ = next(task.splits())
    kept = np.flatnonzero(train)
    groups = task.groups[kept]
    folds = blocked_folds(numbers(groups)) if task.is_official else task.folds[kept]
    return replace(task, tiles=[task.tiles[n] for n in kept], groups=groups, folds=folds, is_official=False)


def inner_score(task: RealTask, weights: str, seed: int) -> float:
    """Accuracy, or RMSE, over all samples of the training part, of the best penalty."""
    part = training_part(task)
    asked, count = samples(part), len(np.unique(part.folds))
    columns = embedded(part, encoder_of(weights, seed), np.ones(len(part.tiles), np.bool_))
    found = []
    for penalty in PENALTIES:
        answers, _ = answered(part, asked, columns, MODELS["linear"], settings=count * [{"C": penalty}])
        is_value = task.target.kind == "value"
        found.append(
            -np.sqrt(np.mean((answers[0] - asked.truth) ** 2)) if is_value else np.mean(answers[0] == asked.truth)
        )
    return abs(float(max(found)))


def records() -> list[dict[str, Any]]:
    """What was tried, in order."""
    return [json.loads(line) for line in CHOICES.read_text().splitlines()] if CHOICES.exists() else []


def table() -> str:
    """Markdown: a row for each kind of weights, means over seeds."""
    tried = records()
    names = list(tried[0]["scores"])
    lines = [f"| weights | steps | seeds | {' | '.join(names)} |", f"|---|---|---|{'---|' * len(names)}"]
    for name in dict.fromkeys(one["name"] for one in tried):
        own = [one for one in tried if one["name"] == name]
        cells = [
            f"{np.mean([one['scores'][task] for one in own]):.{1 if task == 'fuel_moisture' else 3}f}" for task in names
        ]
        lines.append(f"| {name} | {own[0]['steps']} | {len(own)} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    """Score one kind of weights, or print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    one = commands.add_parser("run", help="one kind of weights, all tasks")
    one.add_argument("name", help="of the weights in the table")
    one.add_argument("--weights", default=UNTRAINED, help="untrained, nano, or what anysat.load takes")
    one.add_argument("--seed", type=int, default=0, help="of the untrained weights, or of what the run was made with")
    one.add_argument("--data", type=Path, required=True, help="folder of the real data")
    commands.add_parser("print", help="the table of all that was tried")
    options = parser.parse_args()
    if options.command == "print":
        print(table())
        return
    torch.set_num_threads(1)
    begun, found = time.process_time(), {}
    with threadpool_limits(1):
        for name in TASKS:
            if name not in SMOKE:
                found[name] = round(inner_score(load(name, options.data), options.weights, options.seed), 4)
    options_of = _options_of(options.weights)
    with CHOICES.open("a") as file:
        file.write(json.dumps({"name": options.name, "seed": options.seed, "scores": found, **options_of}) + "\n")
    print(options.name, found, f"{time.process_time() - begun:.0f} s", flush=True)


def _options_of(weights: str) -> dict[str, Any]:
    """Of a run of pretraining what it was told, but for its data."""
    path = Path(weights) / "config.yaml"
    if not path.exists():
        return {"steps": 0}
    config = yaml.safe_load(path.read_text())
    return {"steps": config["num_steps"], "begun_from": config["weights"],
            **{group: config[group] for group in ("masking", "objective", "optimiser")}}  # fmt: skip


if __name__ == "__main__":
    main()
