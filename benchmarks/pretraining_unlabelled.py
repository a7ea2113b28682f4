"""Does pretraining learn on real imagery? Runs on the unlabelled real data alone, then probed.

python benchmarks/pretraining_unlabelled.py run real --seed 0 --data DATA --runs runs   # continues an interrupted run
python benchmarks/pretraining_unlabelled.py all --data DATA --runs runs                 # all without a record yet
python benchmarks/pretraining_unlabelled.py print                                       # the tables of all records
python benchmarks/pretraining_unlabelled.py places runs/real-0 --data DATA              # position, place by place
python benchmarks/pretraining_unlabelled.py asked --data DATA   # crops, predicted from the targets of `dense`

The encoder of `world-nano` with new weights is trained on the points of `crop_points_canada` and the scenes of
Sentinel-1 and Sentinel-2 (`pretraining_real.py`), without fold 0 and one of the four pairs. So the probes of fold 0
(`unseen`) are on ground that no training saw. Of the other folds (`cross`) it saw the pixels, but no label. The
untrained network has exactly the weights that the run started from. Each run leaves a record in
docs/experiments/pretraining, made on one core in float32.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pretraining_tables as pages
import torch
from einops import rearrange
from pretraining_experiments import RECORDS, SEEDS, detected, kept
from pretraining_nano import Kept
from pretraining_probe import probe_real, record
from pretraining_real import POINTS, SCENES, RealTiles, points, scenes, tasks, unseen
from pretraining_scores import compare, cross_probe
from real.unlabelled import Source, in_year, pretrain

import anysat
from anysat.batch import Batch, Tile
from anysat.errors import InputError
from anysat.normalise import Normaliser
from anysat.pretrain.goals import describe
from anysat.train.config import KeepConfig
from anysat.train.run import spent
from anysat.workflows.pretrain import PretrainConfig
from anysat.workflows.pretrain.objective import new_encoder
from anysat.workflows.pretrain.presets import world_nano
from anysat.workflows.pretrain.watch import HealthMonitor

SOURCES = {
    POINTS: Source(2, 96),
    SCENES: Source(1, 8, (20.0, 40.0), 120.0),
}
"""How the tiles are drawn, by the name under which their statistics are stored."""
NUM_STEPS, PATCH_SIZE_M = 500, 40.0
LOOKED_AT = 64
"""Number of left-out tiles that the detector uses, from all places: those of one place differ in little but
position."""
VARIANTS: dict[str, dict[str, dict[str, Any]]] = {
    "real": {},
    "real-projection": {"objective": {"goal": "projection"}},
}
"""Differences from `world-nano` besides the data, by group of options."""


def configured(variant: str, seed: int) -> PretrainConfig:
    """Return the options of a run."""
    config = world_nano()
    changed = {group: replace(getattr(config, group), **options) for group, options in VARIANTS[variant].items()}
    return replace(
        config, preset=None, data=[], num_steps=NUM_STEPS, seed=seed, engine=replace(config.engine, threads=1),
        keep=KeepConfig(save_every=50, log_every=10, loggers=("csv",)), **changed,
    )  # fmt: skip


def run(variant: str, seed: int, data: Path, runs: Path) -> Path:
    """Train or continue, probe, and write the record."""
    path = RECORDS / f"{variant}-{seed}.json"
    if path.exists():
        return path
    out, config = runs / f"{variant}-{seed}", configured(variant, seed)
    found = {POINTS: list(points(data).tiles), SCENES: list(scenes(data).tiles)}
    health = HealthMonitor(every_steps=100, tiles=unseen(data), num_tiles=LOOKED_AT, patch_size_m=PATCH_SIZE_M)
    fitted = pretrain(config, found, out, sources=SOURCES, about={"variant": variant}, monitors=[health])
    if fitted.interrupted:
        raise SystemExit(fitted.exit_status)
    model = anysat.load(out).requires_grad_(False)
    scores = probe_real(model, data, twin_seed=seed, twin=new_encoder(config.model, config.seed), cache=runs / "cache")
    about = {"variant": variant, "seed": seed, "steps": config.num_steps, "training": spent(out),
             "changed": VARIANTS[variant], "tiles": {name: len(tiles) for name, tiles in found.items()},
             "detector": detected(out)}  # fmt: skip
    path.write_text(json.dumps(record("real", out.name, about, model, PATCH_SIZE_M, seed, scores), indent=1) + "\n")
    return path


def tables() -> list[str]:
    """Return the tables of real data: the model that ships, scores and gains of each split, detector reports."""
    records = kept("real")
    shipped = {"nano": records.pop("nano-real")}
    made = [pages.scores(shipped, "cross"), pages.differences(shipped, "cross")]
    for part in ("cross", "unseen"):
        made += [pages.scores(records, part), pages.differences(records, part, each=True)]
    return [*made, pages.looks(records)]


def places(run: Path, data: Path) -> dict[str, float]:
    """Return the position share of a run's fused tokens, on left-out tiles of all places, and on nine of each place."""
    encoder, tiles = anysat.load(run).requires_grad_(False), unseen(data).tiles
    found: dict[str, list[Tile]] = {"all places": list(tiles)}
    for tile in tiles:
        found.setdefault(tile.id.split("/")[0], []).append(tile)
    shares = {}
    for place, some in found.items():
        looked_at = RealTiles(SCENES, some if place == "all places" else some[:9])
        health = HealthMonitor(every_steps=1, tiles=looked_at, num_tiles=LOOKED_AT, patch_size_m=PATCH_SIZE_M)
        shares[place] = health(Kept(encoder), step=0)["position_share"]
    return shares


def asked(data: Path) -> dict[str, Any]:
    """Return how well the numbers that the dense loss predicts tell crops apart, for all months and for 2017."""
    task, encoder = tasks(data)["crops"], new_encoder(configured("real", 0).model, 0)
    folds = task.folds["regions"][task.place[:, 0]]
    chosen = [task.tiles[int(index)] for index in task.place[:, 0]]
    found: dict[str, Any] = {}
    for name, tiles in (("all months", chosen), ("2017", [_of_year(tile, "2017") for tile in chosen])):
        encoder.normaliser = Normaliser.from_batch(Batch.of(tiles))
        numbers = []
        for seen in encoder.prepare(Batch.of(tiles), 10.0)[0].values():
            known = torch.ones_like(seen.values, dtype=torch.bool) if seen.valid is None else seen.valid
            pixels, known = (rearrange(one, "tile time band 1 1 -> tile 1 time band") for one in (seen.values, known))
            told, is_known = describe(pixels, known, seen.days, configured("real", 0).objective.harmonics)
            numbers.append(told.masked_fill(~is_known, torch.nan)[:, 0, is_known.any(0)[0]])
        answers = cross_probe({name: torch.cat(numbers, dim=1).numpy()}, task.samples, folds)
        found[name] = compare(answers, {})
    return found


def _of_year(tile: Tile, year: str) -> Tile:
    return replace(tile, observations={k: in_year(seen, np.datetime64(year)) for k, seen in tile.observations.items()})


def main() -> None:
    """Run a command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    one = commands.add_parser("run")
    one.add_argument("variant", choices=VARIANTS)
    one.add_argument("--seed", type=int, default=0)
    every = commands.add_parser("all")
    targets = commands.add_parser("asked")
    where = commands.add_parser("places")
    where.add_argument("run", type=Path, help="run folder")
    for command in (one, every, targets, where):
        command.add_argument("--data", type=Path, required=True, help="folder of the real data")
    for command in (one, every):
        command.add_argument("--runs", type=Path, default=Path("runs"), help="folder of the run folders")
    commands.add_parser("print")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.command == "print":
        print("\n\n".join(tables()))
        return
    if not options.data.is_dir():
        print(f"skipped: there is no folder {options.data}")
        return
    if options.command == "places":
        for place, share in places(options.run, options.data).items():
            print(f"{place}: {share:.2f}")
        return
    if options.command == "asked":
        for name, told in asked(options.data).items():
            low, high = told["interval"]
            print(f"crops, regions, from what is asked, {name}: {told['score']:.2f} ({low:.2f} to {high:.2f})")
        return
    wanted = (
        [(options.variant, options.seed)] if options.command == "run" else [(v, s) for v in VARIANTS for s in SEEDS]
    )
    for variant, seed in wanted:
        try:
            print(run(variant, seed, options.data, options.runs), flush=True)
        except InputError as error:  # another process is running it
            print(error, flush=True)


if __name__ == "__main__":
    main()
