"""Our encoders on the real labelled tasks: probes, tuned as the simple models are, and fine-tuning, on the same folds.

python benchmarks/real/encoders.py run crop_canada --weights untrained --method finetune --seed 0 --data DATA
python benchmarks/real/encoders.py run crop_canada --weights runs/real-unseen --name real --method probe --data DATA
python benchmarks/real/encoders.py compare crop_canada --data DATA     # all records of a task, and the simple models
python benchmarks/real/encoders.py print                               # the tables of all comparisons

Protocol. For every fold that is tested, statistics of the bands are those of the training tiles.
`probe`: the linear model of `simple.py`, tuned and fitted as there, on the frozen tokens of the pixel asked (fused, and
of each modality by itself), of every calendar year that a series has; `probe-label-year`: of that of the label, as
fine-tuning; `probe+statistics` joins the simple statistics.
`finetune`: all weights, from `--weights`. The encoder sees the calendar year that the label is of. An
encoder leaves two folds out: for either of them it is one of those that answer, and the other tells when to stop. The
number of steps is that with the best accuracy (values: RMSE) in these other folds; the means of what the encoders tell
after it are the answers. Of an official split, the other fold is an inner fold of whole groups of the training part.

A run leaves one record, with its answers; a fold that is done is kept in `--runs`, so that a run goes on where it was
stopped. `compare` scores the answers, together over seeds, and pairs them with the best simple model (fitted again with
the settings of its record) and with the untrained weights of the same method. Fold 0 is also told by itself: it is
what `unlabelled.py` leaves out.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import platform
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

if __name__ == "__main__":  # as a script: the folder of the package, not the package, is where to look
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import numpy as np
import torch
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

import anysat
from anysat.model.digest import digest
from real.features import Samples
from real.finetuning import RECIPES, Recipe, finetuned
from real.frozen import UNTRAINED, embedded, encoder_of
from real.protocol import RealTask
from real.scores import difference, score
from real.simple import CONSTANT, MODELS, answered, seen_alike
from real.tasks import SMOKE, TASKS, load

RECORDS = Path(__file__).parents[2] / "docs" / "experiments" / "real"
LABEL_YEAR_ALONE = "probe-label-year"
METHODS = ("probe", "probe+statistics", LABEL_YEAR_ALONE, "finetune")


def probed(task: RealTask, weights: str, method: str, seed: int) -> tuple[NDArray[Any], list[Any]]:
    """Answers (sample) of the linear model, and its setting for each test fold."""
    asked, model = seen_alike(task), encoder_of(weights, seed)
    most = 1 if method == LABEL_YEAR_ALONE else None
    columns = [embedded(task, model, train, most) for train, _ in task.splits()]
    if method == "probe+statistics":
        columns = [np.concatenate([part, asked.features["statistics"]], axis=1) for part in columns]
    answers, chosen = answered(task, asked, columns, MODELS["linear"])
    return answers[0], chosen


def record_of(task: RealTask, weights: str, name: str, method: str, seed: int, runs: Path) -> dict[str, Any]:
    """One run: its answers, scores, and what was chosen."""
    begun, recipe = time.process_time(), RECIPES.get(task.name, Recipe())
    of_weights = encoder_of(weights, seed)
    if method == "finetune":
        facts = json.dumps([asdict(recipe), digest(of_weights)])
        folder = runs / "finetune" / f"{task.name}-{name}-{hashlib.sha256(facts.encode()).hexdigest()[:12]}"
        answers, chosen, seconds = finetuned(
            task, weights, seed, lambda *of: folder / f"{'-'.join(map(str, of))}.npz", recipe
        )
    else:
        answers, chosen = probed(task, weights, method, seed)
        seconds = time.process_time() - begun
    tested = _tested(task)
    groups = task.groups[task.places()[:, 0]]
    found = score(task.truth()[tested], answers[None, tested], groups[tested], len(task.target.classes))
    return {
        "kind": "encoder", "task": task.name, "weights": name, "method": method, "seed": seed,
        "digest": digest(of_weights), "provenance": of_weights.provenance,
        "scores": found, "settings": chosen, "recipe": asdict(recipe) if method == "finetune" else None,
        "cpu_s": round(seconds, 1),
        "answers": " ".join(f"{one:.2f}" if answers.dtype.kind == "f" else str(one) for one in answers[tested]),
        "versions": {"anysat": anysat.__version__, "torch": torch.__version__, "python": platform.python_version()},
    }  # fmt: skip


def _tested(task: RealTask) -> NDArray[np.bool_]:
    """(sample) what is tested at all."""
    every = np.any([test for _, test in task.splits()], axis=0)
    return every[task.places()[:, 0]]


def compared(task: RealTask, simple: Mapping[str, Any], records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Scores over seeds, and paired differences to the best simple model and to the untrained weights."""
    asked, tested, count = seen_alike(task), _tested(task), len(task.target.classes)
    truth, groups = asked.truth[tested], asked.groups[tested]
    rows: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for one in sorted(records, key=lambda one: one["seed"]):
        rows.setdefault((one["weights"], one["method"]), []).append(one)
    answers = {
        key: np.array([np.array(one["answers"].split(), truth.dtype) for one in group]) for key, group in rows.items()
    }
    label, theirs = best_simple(task, asked, simple)
    answers = {label: theirs[:, tested], **answers}
    unseen = task.folds[asked.tile][tested] == 0
    found = []
    for key, own in answers.items():
        row = {
            "weights": key[0], "method": key[1], "runs": len(own),
            "scores": score(truth, own, groups, count),
            "against_simple": difference(truth, own, answers[label], groups, count),
            "cpu_s": sum(one["cpu_s"] for one in rows.get(key, [])),
        }  # fmt: skip
        untrained = answers.get((UNTRAINED, key[1]))
        if untrained is not None and key[0] != UNTRAINED:
            row["against_untrained"] = difference(truth, own, untrained, groups, count)
        if not task.is_official:
            row["fold_0"] = score(truth[unseen], own[:, unseen], groups[unseen], count)
            row["fold_0_against_simple"] = difference(
                truth[unseen], own[:, unseen], answers[label][:, unseen], groups[unseen], count
            )
            if "against_untrained" in row:
                row["fold_0_against_untrained"] = difference(
                    truth[unseen], own[:, unseen], untrained[:, unseen], groups[unseen], count
                )
        found.append(row)
    return {"kind": "encoders", "task": task.name, "about": task.about, "num_tested": int(tested.sum()),
            "num_fold_0": int(unseen.sum()), "rows": found}  # fmt: skip


def best_simple(task: RealTask, asked: Samples, simple: Mapping[str, Any]) -> tuple[tuple[str, str], NDArray[Any]]:
    """Name and answers (run sample) of the simple model with the best score, fitted again with its settings."""
    first = next(iter(simple["rows"][0]["scores"]))
    sign = -1 if first == "RMSE" else 1
    row = max(simple["rows"], key=lambda row: sign * row["scores"][first]["score"])
    model = MODELS.get(row["model"], CONSTANT)
    answers, _ = answered(task, asked, asked.features[row["features"]], model, settings=row["settings"])
    return (row["model"], row["features"]), answers


def table(record: Mapping[str, Any]) -> str:
    """Markdown: a row for each kind of weights and method."""
    first = next(iter(record["rows"][0]["scores"]))
    digits = 1 if first == "RMSE" else 3
    has_fold = "fold_0" in record["rows"][0]
    lines = [
        f"**{record['task']}** — {record['about']}; {record['num_tested']} samples tested"
        + (f", {record['num_fold_0']} of them in fold 0." if has_fold else "."), "",
        f"| weights | method | seeds | {first} | minus best simple | minus untrained | "
        + ("fold 0 | fold 0 minus best simple | fold 0 minus untrained |" if has_fold else ""),
        "|---|---|---|---|---|---|" + ("---|---|---|" if has_fold else ""),
    ]  # fmt: skip

    def cell(found: Mapping[str, Any] | None, key: str) -> str:
        if found is None:
            return ""
        one, (low, high) = found[first][key], found[first]["interval"]
        sign = "+" if key == "difference" else ""
        return f"{one:{sign}.{digits}f} ({low:{sign}.{digits}f} to {high:{sign}.{digits}f})"

    for number, row in enumerate(record["rows"]):
        name, method = row["weights"], row["method"]
        cells = [name, method, str(row["runs"]), cell(row["scores"], "score"),
                 cell(row["against_simple"] if number else None, "difference"),
                 cell(row.get("against_untrained"), "difference")]  # fmt: skip
        if has_fold:
            cells += [cell(row["fold_0"], "score"),
                      cell(row["fold_0_against_simple"] if number else None, "difference"),
                      cell(row.get("fold_0_against_untrained"), "difference")]  # fmt: skip
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def records_of(task: str) -> list[dict[str, Any]]:
    """The records of a task's runs."""
    return [json.loads(path.read_text()) for path in sorted(RECORDS.glob(f"encoder-{task}-*.json"))]


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    one, against = commands.add_parser("run", help="one task"), commands.add_parser("compare", help="score the records")
    for command in (one, against):
        command.add_argument("task", choices=[name for name in TASKS if name not in SMOKE])
        command.add_argument("--data", type=Path, help="folder of the real data")
    one.add_argument("--weights", default=UNTRAINED, help="untrained, nano, or what anysat.load takes")
    one.add_argument("--name", help="of the weights in records; as --weights where it is not given")
    one.add_argument("--method", choices=METHODS, default="finetune")
    one.add_argument("--seed", type=int, default=0)
    one.add_argument("--runs", type=Path, default=Path("runs"), help="folder of what is kept of unfinished runs")
    one.add_argument("--json", type=Path, help="the record; by default where `compare` finds it")
    commands.add_parser("print", help="Markdown tables of all comparisons")
    return parser.parse_args()


def main() -> None:
    """Run one task, compare, or print tables."""
    options = _options()
    if options.command == "print":
        print("\n\n".join(table(json.loads(path.read_text())) for path in sorted(RECORDS.glob("encoders-*.json"))))
        return
    if options.data is None or not options.data.is_dir():
        print("skipped: there is no folder" + (f" {options.data}" if options.data else ", give it with --data"))
        return
    torch.set_num_threads(1)
    with threadpool_limits(1):
        task = load(options.task, options.data)
        if options.command == "compare":
            simple = json.loads((RECORDS / f"simple-{task.name}.json").read_text())
            record, path = compared(task, simple, records_of(task.name)), RECORDS / f"encoders-{task.name}.json"
            print(table(record))
        else:
            name = options.name or options.weights
            path = options.json or RECORDS / f"encoder-{task.name}-{name}-{options.method}-{options.seed}.json"
            if path.exists():
                print(f"{path} is there")
                return
            record = record_of(task, options.weights, name, options.method, options.seed, options.runs)
            first, found = next(iter(record["scores"].items()))
            print(f"{path.stem}: {first} {found['score']:.3f}, {record['cpu_s']:.0f} s", flush=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
