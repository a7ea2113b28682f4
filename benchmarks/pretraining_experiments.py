"""Does pretraining learn, and which parts of it help? Runs of `world-nano` with one change each, then probed.

python benchmarks/pretraining_experiments.py run teacher --seed 0 --runs runs       # continues an interrupted run
python benchmarks/pretraining_experiments.py all --runs runs                        # all without a record yet
python benchmarks/pretraining_experiments.py print                                  # the tables of all records

Every run leaves one record in docs/experiments/pretraining, made on one core in float32. The untrained network that it
is compared with has exactly the weights that the run started from.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pretraining_tables as pages
import torch
from pretraining_probe import probe_world, record
from pretraining_world import world_set

import anysat
from anysat.errors import InputError
from anysat.probing.health import problems
from anysat.train.metrics import METRICS, read_metrics
from anysat.train.run import spent
from anysat.workflows.pretrain import PretrainConfig
from anysat.workflows.pretrain.objective import new_encoder
from anysat.workflows.pretrain.presets import world_nano
from anysat.workflows.pretrain.run import run_pretraining

RECORDS = Path(__file__).parents[1] / "docs" / "experiments" / "pretraining"
SEEDS, GOALS = (0, 1, 2), ("teacher", "projection", "projection-discriminate")
PATCH_SIZE_M = 20.0
VARIANTS: dict[str, dict[str, dict[str, Any]]] = {
    "teacher": {},
    "projection": {"objective": {"goal": "projection"}},
    "projection-discriminate": {"objective": {"goal": "projection", "projection_loss": "discriminate"}},
    "no-contrast": {"objective": {"contrast_weight": 0.0}},
    "dates": {"objective": {"dates_weight": 1.0}},
    "all-dates": {"masking": {"keep_dates_frac": (1.0, 1.0)}},
    "all-modalities": {"masking": {"hide_modalities_frac": 0.0}},
    "random-tokens": {"masking": {"pattern": "random"}},
    "no-spread": {"objective": {"spread_weight": 0.0}},
    "half-dates": {"masking": {"keep_dates_frac": (0.5, 0.5)}},
    "dropout": {"model": {"pixel_dropout_prob": None, "temporal_dropout_prob": 0.1}},
    "narrow-pixels": {"model": {"pixel_widths": None}},
    "first-weights": {"model": {"first_weights": "published"}},
    "as-published": {
        "objective": {"centred": False, "complete_weight": 0.0, "dense_weight": 0.0, "spread_weight": 0.0},
        "masking": {"keep_dates_frac": (0.5, 0.5)},
        "model": {"first_weights": "published", "pixel_widths": None, "pixel_dropout_prob": None,
                  "temporal_dropout_prob": 0.1},
    },
    "no-dense": {"objective": {"dense_weight": 0.0}},
    "broken-as-asked": {"objective": {"contrast_weight": 0.0, "momentum": 0.0, "final_momentum": 0.0}},
    "broken": {
        "objective": {"contrast_weight": 0.0, "spread_weight": 0.0, "dense_weight": 0.0, "momentum": 0.0,
                      "final_momentum": 0.0, "centred": False},
    },
}  # fmt: skip
"""Differences from the preset, by group of options."""


def configured(variant: str, seed: int) -> PretrainConfig:
    """Return the options of a run."""
    config = world_nano()
    changed = {group: replace(getattr(config, group), **options) for group, options in VARIANTS[variant].items()}
    return replace(config, seed=seed, engine=replace(config.engine, threads=1), **changed)


def run(variant: str, seed: int, runs: Path) -> Path:
    """Train or continue, probe, and write the record."""
    path = RECORDS / f"{variant}-{seed}.json"
    if path.exists():
        return path
    out, config = runs / f"{variant}-{seed}", configured(variant, seed)
    if stopped := run_pretraining(config, out, resume=True).exit_status:
        raise SystemExit(stopped)
    model = anysat.load(out).requires_grad_(False)
    scores = probe_world(model, world_set(runs / "cache"), PATCH_SIZE_M, twin_seed=seed,
                         cache=runs / "cache", twin=new_encoder(config.model, config.seed))  # fmt: skip
    about = {"variant": variant, "seed": seed, "steps": config.num_steps, "training": spent(out),
             "preset": "world-nano", "changed": VARIANTS[variant], "detector": detected(out)}  # fmt: skip
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(record("world", out.name, about, model, PATCH_SIZE_M, seed, scores), indent=1) + "\n")
    return path


def detected(run: Path) -> dict[str, list[str]]:
    """Return what the collapse detector reported, by step. Steps without problems have an empty list."""
    looks: dict[int, dict[str, float]] = {}
    for name, values in read_metrics(run / METRICS).items():
        if name.startswith("health/"):
            for step, value in values:
                looks.setdefault(step, {})[name.removeprefix("health/")] = value
    return {str(step): [said.split(":")[0] for said in problems(figures)] for step, figures in looks.items() if step}


def kept(kind: str) -> dict[str, dict[str, Any]]:
    """Return the records of the generated world or of real data, ordered by variant, with the model that ships last."""
    found = {path.stem: json.loads(path.read_text()) for path in RECORDS.glob("*.json")}
    order = [*VARIANTS, "real", "real-projection"]
    chosen = [name for name, record in found.items() if record["kind"] == kind]
    places = {name: [*order, name].index(found[name]["about"].get("variant", name)) for name in chosen}
    return {name: found[name] for name in sorted(chosen, key=lambda name: (places[name], name))}


def tables() -> list[str]:
    """Return the tables of the generated world: scores, gains of runs and variants, and reports of the detector."""
    records = kept("world")
    goals = {name: record for name, record in records.items() if record["about"].get("variant") in GOALS}
    others = {name: record for name, record in records.items() if name not in goals}
    return [pages.scores(records), pages.differences(goals, each=True), pages.differences(others), pages.looks(records)]


def main() -> None:
    """Run a command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    one = commands.add_parser("run")
    one.add_argument("variant", choices=VARIANTS)
    one.add_argument("--seed", type=int, default=0)
    every = commands.add_parser("all")
    for command in (one, every):
        command.add_argument("--runs", type=Path, default=Path("runs"), help="folder of the run folders")
    commands.add_parser("print")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.command == "print":
        print("\n\n".join(tables()))
        return
    wanted = (
        [(options.variant, options.seed)] if options.command == "run" else [(v, s) for s in SEEDS for v in VARIANTS]
    )
    for variant, seed in wanted:
        try:
            print(run(variant, seed, options.runs), flush=True)
        except InputError as error:  # another process is running it
            print(error, flush=True)


if __name__ == "__main__":
    main()
