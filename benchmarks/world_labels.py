"""What pretraining is worth when labels are few: the five tasks of the generated world with 1, 10 and 100 % of labels.

python benchmarks/world_labels.py run --runs runs/labels     # goes on where it was stopped
python benchmarks/world_labels.py print

Every line is `anysat probe` on tiles of a world that no pretraining saw: one head, settings chosen on the same
validation tiles, the same test tiles; the share is of the training tiles, drawn from the seed. `nano`, the network
it began with; both sensors, and each alone. Records lie in docs/experiments/world-labels.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

import anysat
from anysat.model.checkpoint import save
from anysat.workflows.pretrain_presets import nano
from anysat.workflows.pretrain_run import new_encoder
from anysat.workflows.probe import ProbeConfig
from anysat.workflows.probe_run import run_probe
from anysat.workflows.task_presets import PROBES

RECORDS = Path(__file__).parents[1] / "docs" / "experiments" / "world-labels"
TASKS, SHARES, SEEDS = ("land-cover", "species", "crop", "change", "flood"), (0.01, 0.1, 1.0), (0, 1, 2)
VIEWS = {"both": ["s2", "s1"], "s2": ["s2"], "s1": ["s1"]}
KEPT = ("scores", "primary", "selected_on", "selection", "data", "config", "versions", "seed")


def beginning(runs: Path) -> Path:
    """The weights that `nano` began with, with its statistics."""
    path = runs / "untrained.safetensors"
    if not path.exists():
        model = new_encoder(nano())
        model.normaliser = anysat.load("nano").normaliser
        save(model, path)
    return path


def configured(task: str, share: float, view: str, weights: str, seed: int, runs: Path) -> ProbeConfig:
    """The options of one line."""
    start = PROBES[f"world-{task}"]()
    keys = VIEWS[view]
    dense = start.dense if start.dense in keys else keys[0]
    data = replace(start.data, modalities=keys, train_frac=share)
    return replace(start, data=data, dense=dense, weights=weights, seed=seed, epochs=30, patience=10, report=False,
                   learning_rates=[3e-3, 1e-2], weight_decays=[0.0, 0.1], cache=str(runs / "features"))  # fmt: skip


def run(runs: Path, tasks: list[str], seeds: list[int]) -> None:
    """Every line that has no record yet."""
    runs.mkdir(parents=True, exist_ok=True)
    RECORDS.mkdir(parents=True, exist_ok=True)
    encoders = {"nano": "nano", "untrained": str(beginning(runs))}
    for seed in seeds:
        for task in tasks:
            for share in SHARES:
                for view in VIEWS:
                    for name, weights in encoders.items():
                        line = f"{task}-{share:g}-{view}-{name}-{seed}"
                        if not (RECORDS / f"{line}.json").exists():
                            run_probe(configured(task, share, view, weights, seed, runs), runs / line, resume=True)
                            found = json.loads((runs / line / "scores.json").read_text())
                            kept = {name: found[name] for name in KEPT}
                            kept["selection"] = {
                                k: v for k, v in kept["selection"].items() if k not in ("curve", "tried")
                            }
                            (RECORDS / f"{line}.json").write_text(json.dumps(kept, indent=1) + "\n")
                            print(line, found["scores"]["test"]["figures"][found["primary"]], flush=True)


def table() -> str:
    """Mean over seeds and range, a row for each task and share."""
    found: dict[tuple[str, str, str, str], list[float]] = {}
    for path in sorted(RECORDS.glob("*.json")):
        record: dict[str, Any] = json.loads(path.read_text())
        task, share, view, name, _ = path.stem.rsplit("-", 4)
        score = record["scores"]["test"]["figures"][record["primary"]]
        found.setdefault((task, share, view, name), []).append(score)
    columns = [(view, name) for view in VIEWS for name in ("nano", "untrained")]
    lines = ["| task | labels | " + " | ".join(f"{view}, {name}" for view, name in columns) + " |",
             "|---" * (2 + len(columns)) + "|"]  # fmt: skip
    for task in TASKS:
        for share in SHARES:
            cells = [_cell(found.get((task, f"{share:g}", view, name))) for view, name in columns]
            lines.append(f"| {task} | {share:.0%} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _cell(scores: list[float] | None) -> str:
    if not scores:
        return "–"
    return f"{np.mean(scores):.3f} ({min(scores):.3f} to {max(scores):.3f}, {len(scores)})"


def main() -> None:
    """Run, or print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    one = commands.add_parser("run")
    one.add_argument("--runs", type=Path, default=Path("runs/labels"), help="folder of runs and embeddings")
    one.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS))
    one.add_argument("--seeds", nargs="+", type=int, default=list(SEEDS))
    commands.add_parser("print")
    options = parser.parse_args()
    if options.command == "print":
        print(table())
        return
    torch.set_num_threads(1)
    run(options.runs, options.tasks, options.seeds)


if __name__ == "__main__":
    main()
