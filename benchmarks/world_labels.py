"""What pretraining is worth with few labels: the five tasks of the generated world with 1, 10 and 100 % of the labels.

python benchmarks/world_labels.py run --runs runs/labels     # continues an interrupted run
python benchmarks/world_labels.py finetune --runs runs/labels
python benchmarks/world_labels.py print

Every line is `anysat probe` on tiles of a world that no pretraining saw, with the same head, validation tiles and test
tiles. The share is that of the training tiles, drawn by the seed. A draw without two classes of a task is left out.
Encoders are `nano` and the network it started from; inputs are both sensors, and each alone. With `finetune` all
weights of either are trained. For comparison, `anysat evaluate --compare` fits a linear model to the same tiles and
sensors without a network: on mean and deviation of each band, and on its monthly means. Records are lines of
docs/experiments/world-labels.jsonl.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch

import anysat
from anysat.model.checkpoint import save
from anysat.workflows.evaluate import CompareConfig
from anysat.workflows.evaluate.comparison import compare
from anysat.workflows.finetune import FinetuneConfig
from anysat.workflows.finetune.presets import PRESETS as FINETUNES
from anysat.workflows.finetune.run import run_finetuning
from anysat.workflows.pretrain.objective import new_encoder
from anysat.workflows.pretrain.presets import nano
from anysat.workflows.probe import ProbeConfig
from anysat.workflows.probe.presets import PRESETS as PROBES
from anysat.workflows.probe.run import run_probe
from anysat.workflows.supervised.data import open_data

RECORDS = Path(__file__).parents[1] / "docs" / "experiments" / "world-labels.jsonl"
TASKS, SEEDS = ("land-cover", "species", "crop", "change", "flood"), (0, 1)
SHARES = {0.01: 60, 0.1: 40, 1.0: 24}
"""Shares of the training tiles, and numbers of passes over them: few tiles are seen more often."""
FINETUNED_SHARES = {0.1: 60, 1.0: 12}
"""The same for fine-tuning."""
ENCODERS = ("nano", "untrained")
FINETUNED = tuple(f"{name} finetuned" for name in ENCODERS)
SIMPLE = ("statistics", "months")
SIMPLE_PIXELS = 10_000
VIEWS = {"both": ["s2", "s1"], "s2": ["s2"], "s1": ["s1"]}
FACTS = ("num_tiles", "num_samples", "figures", "intervals")


def weights_of(name: str, runs: Path) -> str:
    """Return the model that ships, or the weights it started from with its statistics."""
    if name == "nano":
        return name
    path = runs / "untrained.safetensors"
    if not path.exists():
        model = new_encoder(nano().model, nano().seed)
        model.normaliser = anysat.load("nano").normaliser
        save(model, path)
    return str(path)


def configured(task: str, share: float, view: str, name: str, seed: int, runs: Path) -> ProbeConfig:
    """Return the options of one line."""
    start = PROBES[f"world-{task}"]()
    keys = VIEWS[view]
    dense = start.dense if start.dense in keys else keys[0]
    data = replace(start.data, modalities=keys, train_frac=share)
    return replace(start, data=data, dense=dense, weights=weights_of(name, runs), seed=seed, epochs=SHARES[share],
                   patience=15, report=False, learning_rates=[1e-2, 3e-2, 1e-1], weight_decays=[0.0],
                   cache=str(runs / "features"))  # fmt: skip


def finetuning(task: str, share: float, view: str, name: str, seed: int, runs: Path) -> FinetuneConfig:
    """Return the options of a line in which all weights are trained."""
    start, keys = FINETUNES[f"world-{task}"](), VIEWS[view]
    data = replace(start.data, modalities=keys, train_frac=share)
    dense = start.dense if start.dense in keys else keys[0]
    epochs = FINETUNED_SHARES[share]
    return replace(start, data=data, dense=dense, weights=weights_of(name, runs), seed=seed, epochs=epochs,
                   warmup_epochs=epochs // 10, patience=None, report=False)  # fmt: skip


def has_classes(config: ProbeConfig) -> bool:
    """Whether the training tiles have two classes to learn from."""
    data = open_data(config.data, config.seed)
    found: set[int] = set()
    for tile in data.train:
        found |= set(np.unique(tile.targets[data.target.name]).tolist()) - {data.target.ignore}
        if len(found) > 1:
            return True
    return False


def finetune(asked: argparse.Namespace) -> None:
    """Run every line of fine-tuning without a record."""
    asked.runs.mkdir(parents=True, exist_ok=True)
    done = {_line(record) for record in records()}
    for seed, task, share, name, view in product(asked.seeds, asked.tasks, asked.shares, asked.encoders, asked.views):
        line = f"{task}-{share:g}-{view}-{name} finetuned-{seed}"
        if share in FINETUNED_SHARES and line not in done:
            out = asked.runs / line.replace(" ", "-")
            run_finetuning(finetuning(task, share, view, name, seed, asked.runs), out, out.exists())
            _keep(task, share, view, f"{name} finetuned", seed, json.loads((out / "scores.json").read_text()))


def run(asked: argparse.Namespace) -> None:
    """Run every line of probes and simple models without a record."""
    asked.runs.mkdir(parents=True, exist_ok=True)
    done = {_line(record) for record in records()}
    for seed, task, share in product(asked.seeds, asked.tasks, asked.shares):
        if not has_classes(configured(task, share, "both", "nano", seed, asked.runs)):
            print(f"{task}-{share:g}-{seed}: fewer than two classes among the tiles drawn", flush=True)
            continue
        for view, name in product(asked.views, asked.encoders):
            line = f"{task}-{share:g}-{view}-{name}-{seed}"
            if line not in done:
                run_probe(configured(task, share, view, name, seed, asked.runs), asked.runs / line, resume=True)
                _keep(task, share, view, name, seed, json.loads((asked.runs / line / "scores.json").read_text()))
        for view in asked.views:
            if f"{task}-{share:g}-{view}-{SIMPLE[-1]}-{seed}" in done:
                continue
            data, path = configured(task, share, view, "nano", seed, asked.runs).data, asked.runs / "simple.json"
            compare(CompareConfig(data=data, weights=[], models=["logistic"], seed=seed,
                                   max_pixels=SIMPLE_PIXELS, out=str(path)))  # fmt: skip
            found = json.loads(path.read_text())
            for one in (line for line in found["lines"] if line["features"] in SIMPLE):
                _keep(task, share, view, one["features"], seed, found | {"scores": {"test": one}})


def records() -> list[dict[str, Any]]:
    """Return the records."""
    return [json.loads(line) for line in RECORDS.read_text().splitlines()] if RECORDS.exists() else []


def _line(record: Mapping[str, Any]) -> str:
    return "{task}-{share:g}-{view}-{features}-{seed}".format(**record)


def _keep(task: str, share: float, view: str, features: str, seed: int, found: Mapping[str, Any]) -> None:
    tiles = {split: one["tiles"] for split, one in found["data"].items()}
    test = {name: found["scores"]["test"][name] for name in FACTS}
    record = {"task": task, "share": share, "view": view, "features": features, "seed": seed,
              "primary": found["primary"], "tiles": tiles, "test": test, "versions": found["versions"]}  # fmt: skip
    record |= {name: found[name] for name in ("weights", "selected_on") if name in found}
    if "selection" in found:
        record["selection"] = {k: v for k, v in found["selection"].items() if k not in ("curve", "tried")}
    with RECORDS.open("a") as file:
        file.write(json.dumps(record) + "\n")
    print(_line(record), record["test"]["figures"][record["primary"]], flush=True)


def table(features: Sequence[str]) -> str:
    """Of some features: mean over seeds, their range where there are several; a row for each known task and share.

    Below, for each share the mean over all tasks, where all are known.
    """
    found: dict[tuple[str, str, str, str], list[float]] = {}
    for one in records():
        key = (one["task"], f"{one['share']:g}", one["view"], one["features"])
        found.setdefault(key, []).append(one["test"]["figures"][one["primary"]])
    columns = list(product(VIEWS, features))
    lines = ["| task | labels | " + " | ".join(f"{view}, {name}" for view, name in columns) + " |",
             "|---" * (2 + len(columns)) + "|"]  # fmt: skip
    for task in TASKS:
        for share in SHARES:
            known = [found.get((task, f"{share:g}", view, name)) for view, name in columns]
            if any(known):
                lines.append(f"| {task} | {share:.0%} | {' | '.join(map(_cell, known))} |")
    for share in SHARES:
        cells = [[found.get((task, f"{share:g}", view, name)) for task in TASKS] for view, name in columns]
        means = ["–" if None in of else f"{np.mean([np.mean(one or []) for one in of]):.3f}" for of in cells]
        if set(means) != {"–"}:
            lines.append(f"| mean of the five | {share:.0%} | {' | '.join(means)} |")
    return "\n".join(lines)


def _cell(scores: list[float] | None) -> str:
    if not scores:
        return "–"
    spread = f" ({min(scores):.3f} to {max(scores):.3f})" if len(scores) > 1 else ""
    return f"{np.mean(scores):.3f}{spread}"


def main() -> None:
    """Run, or print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    for name, told in (("run", "probes and simple models"), ("finetune", "all weights trained")):
        one = commands.add_parser(name, help=told)
        one.add_argument("--runs", type=Path, default=Path("runs/labels"), help="folder of runs and embeddings")
        one.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS))
        one.add_argument("--shares", nargs="+", type=float, choices=SHARES, default=list(SHARES))
        one.add_argument("--seeds", nargs="+", type=int, default=list(SEEDS))
        one.add_argument("--encoders", nargs="+", choices=ENCODERS, default=list(ENCODERS))
        one.add_argument("--views", nargs="+", choices=VIEWS, default=list(VIEWS))
    commands.add_parser("print")
    options = parser.parse_args()
    if options.command == "print":
        print(table(ENCODERS), table(FINETUNED), table(SIMPLE), sep="\n\n")
        return
    torch.set_num_threads(1)
    (run if options.command == "run" else finetune)(options)


if __name__ == "__main__":
    main()
