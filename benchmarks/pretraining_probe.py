"""What a frozen encoder is worth: linear probes beside simple features and the same network untrained, same protocol.

python benchmarks/pretraining_probe.py world --weights runs/a --json docs/experiments/pretraining/a.json --cache DIR
python benchmarks/pretraining_probe.py world --weights untrained --dim 128 --depth 2 --heads 4 --json OUT.json
python benchmarks/pretraining_probe.py real --data DATA --weights runs/a --json OUT.json
python benchmarks/pretraining_probe.py table docs/experiments/pretraining/*.json

Protocol. Every feature set gets the same linear model: ridge regression onto the classes, with equal weight for each
class, standardised features, and the penalty that is best on the last third of the training tiles, chosen from the same
list. The feature set of an encoder (`own`, `dense` or `all`) is also chosen there; test tiles are only scored. The
score is balanced accuracy, rescaled so that guessing gives 0. Intervals contain 95 % of 2000 draws of test tiles. Those
of differences use the same draws for both.

- `world`: the five tasks of `world_difficulty.py` in 576 tiles of the generated world 100, which no pretraining may
  use.
- `real`: see `pretraining_real.py`. `cross` predicts each fold from the others; `unseen` predicts fold 0 alone, where
  no pretraining has seen it.

Features without a network: `statistics` (mean and deviation of each band over the year, or the bands of an image),
`neighbourhood` (the same, and their mean and deviation over 50 m), `series` (every band at every date).
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pretraining_real as real
import pretraining_world as generated
import torch
from pretraining_features import digest, patch_tokens, remembered, twin_file, untrained, with_statistics
from pretraining_scores import Answers, FeatureSets, Samples, compare, cross_probe, probe, without_labels
from pretraining_world import TASKS, WorldSet, world_set

import anysat
from anysat.batch import Batch
from anysat.data.world import VERSION
from anysat.model.config import ModelConfig
from anysat.model.encoder import AnySat
from anysat.model.load import load

HELD_OUT = 8
"""Number of the last test tiles, which are used for retrieval between modalities."""


def probe_world(
    model: AnySat, world: WorldSet, patch_size_m: float = 40.0, *, twin_seed: int | None = 0, cache: Path | None = None,
    twin: AnySat | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Return the scores of an encoder on the five tasks, with intervals and baselines. Can be used during training.

    Args:
        model: An encoder in eval mode. It keeps its statistics, or gets those of the training tiles.
        world: The evaluation set, from `world_set`.
        patch_size_m: 20, 40 or another size that divides 320 m.
        twin_seed: Seed of the untrained network of the same shape to compare with; None for no such comparison.
        cache: Folder for the untrained network's features.
        twin: The untrained network, if it does not have torch's default initialisation.
    """
    start = time.process_time()
    statistics = with_statistics(model, world.batch(list(range(world.num_train))))
    encoded = generated.encoded(world, model, patch_size_m)
    seconds = time.process_time() - start
    others = {name: make(world) for name, make in generated.BASELINES.items()}
    asked, beginning = world.batch(list(range(world.num_tiles))[-HELD_OUT:]), None
    if twin_seed is not None:
        twin = (twin or untrained(model.config, twin_seed)).eval().requires_grad_(False)
        others["untrained"] = _twin_of_world(twin, world, patch_size_m, twin_seed, cache)
        beginning = without_labels(patch_tokens(twin, asked, patch_size_m))
    tasks = {}
    for task in TASKS:
        samples = world.samples(task)
        train = samples.groups < world.num_train
        sets: dict[str, FeatureSets] = {"encoder": generated.sets_of(task, encoded[task])}
        sets["encoder + statistics"] = _joined(sets["encoder"], others["statistics"][task])
        for name, found in others.items():
            sets[name] = generated.sets_of(task, found[task]) if name == "untrained" else {name: found[task]}
        answers = {name: probe(one, samples, train, ~train) for name, one in sets.items()}
        tasks[task] = _compared(answers) | _facts(samples, train)
    tokens = patch_tokens(model, asked, patch_size_m)
    return {"tasks": tasks, **without_labels(tokens), "untrained": beginning, "statistics": statistics,
            "encode_cpu_s": round(seconds, 1),
            "probe_cpu_s": round(time.process_time() - start - seconds, 1)}  # fmt: skip


def _twin_of_world(twin: AnySat, world: WorldSet, patch_size_m: float, seed: int, cache: Path | None) -> generated.Maps:
    with_statistics(twin, world.batch(list(range(world.num_train))))
    kept = twin_file(cache, twin, seed, patch_size_m, world.num_tiles, digest(twin))
    return remembered(kept, lambda: generated.encoded(world, twin, patch_size_m))


def _joined(sets: FeatureSets, statistics: np.ndarray) -> FeatureSets:
    return {f"{name} + statistics": np.concatenate([one, statistics], axis=1) for name, one in sets.items()}


def _compared(answers: Mapping[str, Answers]) -> dict[str, Any]:
    """Return the encoder's scores beside the others', and each of those alone."""
    others = {name: one for name, one in answers.items() if name != "encoder"}
    return {"encoder": compare(answers["encoder"], others), **{name: compare(o, {}) for name, o in others.items()}}


def _facts(samples: Samples, train: np.ndarray) -> dict[str, Any]:
    return {
        "train": int(train.sum()),
        "test": int((~train).sum()),
        "test_groups": len(np.unique(samples.groups[~train])),
    }


def probe_real(
    model: AnySat, data: Path, *, twin_seed: int | None = 0, isometric: bool = False, cache: Path | None = None,
    twin: AnySat | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Return the scores of an encoder on the real data: for each `<task>, <split>`, `cross` and, if possible, `unseen`.

    Args:
        model: An encoder in eval mode. It keeps its statistics, or gets those of the training tiles.
        data: Folder of the real data.
        twin_seed: Seed of the untrained network of the same shape to compare with; None for no such comparison.
        isometric: Initialise the untrained network isometrically.
        cache: Folder for the untrained network's features.
        twin: The untrained network itself.
    """
    start = time.process_time()
    sources = {real.POINTS: real.points(data), real.SCENES: real.scenes(data)}
    batches = {name: Batch.of(list(source.tiles)) for name, source in sources.items()}
    statistics = {name: with_statistics(model, batch) for name, batch in batches.items()}
    asked, beginning, first = Batch.of(list(real.pairs(data).tiles)), None, None
    if twin_seed is not None:
        first = (twin or untrained(model.config, twin_seed, isometric=isometric)).eval().requires_grad_(False)
        for batch in batches.values():
            with_statistics(first, batch)
        beginning = without_labels(patch_tokens(first, asked, 40.0))
    tasks: dict[str, Any] = {}
    for name, task in real.tasks(data).items():
        sets: dict[str, FeatureSets] = {"encoder": task.sets_of(task.encoded(model))}
        baselines = task.baselines()
        sets["encoder + statistics"] = _joined(sets["encoder"], baselines["statistics"])
        if first is not None:
            kept = twin_file(cache, first, twin_seed, name, task.place.tolist(), digest(first))
            features = remembered(kept, lambda first=first, task=task: {"features": task.encoded(first)})
            sets["untrained"] = task.sets_of(features["features"])
        sets |= {other: {other: features} for other, features in baselines.items()}
        for split, of_tile in task.folds.items():
            folds = of_tile[task.place[:, 0]]
            tasks[f"{name}, {split}"] = _real_scores(task, sets, split, folds)
    tokens = patch_tokens(model, asked, 40.0)
    return {"tasks": tasks, **without_labels(tokens), "untrained": beginning, "statistics": statistics,
            "cpu_s": round(time.process_time() - start, 1)}  # fmt: skip


def _real_scores(task: real.RealTask, sets: Mapping[str, FeatureSets], split: str, folds: np.ndarray) -> dict[str, Any]:
    samples = task.samples
    found = {"cross": _compared({name: cross_probe(one, samples, folds) for name, one in sets.items()})}
    found["cross"] |= {"samples": len(folds), "folds": len(np.unique(folds))}
    if split in task.fold_0_is_unseen:
        answers = {name: probe(one, samples, folds != 0, folds == 0) for name, one in sets.items()}
        found["unseen"] = _compared(answers) | _facts(samples, folds != 0)
    return found


def record(
    kind: str, weights: str, about: Mapping[str, Any], model: AnySat, patch_size_m: float, twin_seed: int,
    scores: Mapping[str, Any],
) -> dict[str, Any]:  # fmt: skip
    """Return everything that a table needs, and how it was measured."""
    config = model.config.to_dict()
    config["modalities"] = [modality.key for modality in model.config.modalities]
    return {
        "kind": kind,
        "weights": weights,
        "about": about,
        "provenance": model.provenance,
        "config": config,
        "parameters": sum(part.numel() for part in model.parameters()),
        "patch_size_m": patch_size_m,
        "twin_seed": twin_seed,
        "versions": {"anysat": anysat.__version__, "world": VERSION, "torch": torch.__version__,
                     "numpy": np.__version__, "python": platform.python_version()},
        **scores,
    }  # fmt: skip


def table(paths: list[Path]) -> str:
    """Return Markdown tables of record files: one for the world and one for each part of the real tasks."""
    records = [(path.stem, json.loads(path.read_text())) for path in paths]
    parts = []
    for kind, part in (("world", None), ("real", "cross"), ("real", "unseen")):
        chosen = [(name, one) for name, one in records if one["kind"] == kind]
        columns = [t for t, found in (chosen[0][1]["tasks"] if chosen else {}).items() if part is None or part in found]
        if columns:
            parts.append(_table(chosen, columns, part))
    return "\n\n".join(parts)


def _table(records: list[tuple[str, dict[str, Any]]], columns: list[str], part: str | None) -> str:
    titles = [column.replace("_", " ") for column in columns]
    head = ["run" if part is None else f"run ({part})", *titles, "retrieval", "effective rank"]
    lines = [head, ["---"] * len(head)]
    baselines: dict[str, list[str]] = {}
    for name, record in records:
        found = [record["tasks"][c] if part is None else record["tasks"][c][part] for c in columns]
        for other in ("statistics", "neighbourhood", "series", "untrained"):
            row = [_cell(one.get(other)) for one in found]
            if any(cell != "–" for cell in row):
                title = f"untrained, seed {record['twin_seed']}" if other == "untrained" else other
                baselines.setdefault(" ".join([title, *row]), [title, *row, "", ""])  # the same in every run
        retrieval, rank = record["retrieval"], record["effective_rank"]["fused"]
        end = [f"{retrieval['centred']:.1%} (chance {retrieval['chance']:.2%})", f"{rank:.0f}"]
        lines.append([name, *(_cell(one["encoder"]) for one in found), *end])
        for other in [one for one in found[0]["encoder"]["minus"] if one != "encoder + statistics"]:
            cells = [_difference(one["encoder"]["minus"].get(other)) for one in found]
            lines.append([f"{name} minus {other}", *cells, "", ""])
        lines.append([f"{name} + statistics", *(_cell(one["encoder + statistics"]) for one in found), "", ""])
    return "\n".join(f"| {' | '.join(line)} |" for line in [*lines[:2], *baselines.values(), *lines[2:]])


def _cell(found: Mapping[str, Any] | None) -> str:
    if found is None:
        return "–"
    low, high = found["interval"]
    return f"{found['score']:.2f} ({low:.2f} to {high:.2f})"


def _difference(found: Mapping[str, Any] | None) -> str:
    if found is None:
        return "–"
    low, high = found["interval"]
    return f"{found['difference']:+.2f} ({low:+.2f} to {high:+.2f})"


def _model(options: argparse.Namespace) -> AnySat:
    if options.weights != "untrained":
        return load(options.weights).requires_grad_(False)
    return untrained(ModelConfig(dim=options.dim, depth=options.depth, num_heads=options.heads), options.seed)


def main() -> None:
    """Probe, or print tables."""
    torch.set_num_threads(1)
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    for name in ("world", "real"):
        one = commands.add_parser(name)
        one.add_argument("--weights", required=True, help="file or run folder, or `untrained`")
        one.add_argument("--json", type=Path, required=True)
        one.add_argument("--cache", type=Path, help="folder in which what is generated is kept")
        one.add_argument("--patch-size-m", type=float, default=40.0, help="of the generated world")
        one.add_argument("--seed", type=int, default=0, help="of the untrained network")
        one.add_argument("--isometric", action="store_true", help="the untrained network begins isometric")
        one.add_argument("--note", action="append", default=[], help="KEY=VALUE kept in the file: objective=jepa")
        for option, default in (("--dim", 128), ("--depth", 2), ("--heads", 4)):
            one.add_argument(option, type=int, default=default, help="shape of `untrained`")
        if name == "real":
            one.add_argument("--data", type=Path, required=True)
        else:
            one.add_argument("--tiles", type=int, default=generated.NUM_TILES)
    one = commands.add_parser("table")
    one.add_argument("files", type=Path, nargs="+")
    options = parser.parse_args()
    if options.command == "table":
        print(table(options.files))
        return
    if options.command == "real" and not options.data.is_dir():
        print(f"skipped: there is no folder {options.data}")
        return
    model, twin_seed = _model(options), None if options.weights == "untrained" else options.seed
    if options.command == "world":
        world = world_set(options.cache, num_tiles=options.tiles)
        twin = None if twin_seed is None else untrained(model.config, twin_seed, isometric=options.isometric)
        scores = probe_world(model, world, options.patch_size_m, twin_seed=twin_seed, cache=options.cache, twin=twin)
    else:
        scores = probe_real(model, options.data, twin_seed=twin_seed, isometric=options.isometric, cache=options.cache)
    options.json.parent.mkdir(parents=True, exist_ok=True)
    about = dict(note.split("=", 1) for note in options.note)
    made = record(options.command, Path(options.weights).name, about, model, options.patch_size_m, options.seed, scores)
    options.json.write_text(json.dumps(made, indent=1) + "\n")
    print(table([options.json]))


if __name__ == "__main__":
    main()
