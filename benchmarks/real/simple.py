"""Simple models on the real labelled tasks: same folds, same budget of tuning, scores with intervals.

python benchmarks/real/simple.py run crop_canada --data DATA --json docs/experiments/real/simple-crop_canada.json
python benchmarks/real/simple.py print docs/experiments/real/simple-*.json

Protocol. Feature sets of `features.py`, and those of the label's year where fine-tuning sees no other; four models. For
every fold that is tested, a model's setting is the best of six or fewer by accuracy (values: by RMSE) in three inner
folds of whole groups of the other tiles; then it is fitted to all of them. Features are standardised on the training
samples; what was never seen is their mean. Of a pixel task, at most 4000 labelled pixels are trained on, all are
tested. Models that use chance run with 3 seeds; their score is the mean. Intervals hold 95 % of 2000 draws of test
groups (`scores.py`). `constant` answers the commonest class, or mean.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

if __name__ == "__main__":  # as a script: the folder of the package, not the package, is where to look
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import numpy as np
import sklearn
from numpy.typing import NDArray
from sklearn.base import BaseEstimator
from sklearn.dummy import DummyClassifier, DummyRegressor
from sklearn.ensemble import (
    HistGradientBoostingClassifier,
    HistGradientBoostingRegressor,
    RandomForestClassifier,
    RandomForestRegressor,
)
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.neighbors import KNeighborsClassifier, KNeighborsRegressor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits

import anysat
from real.features import Samples, samples
from real.frozen import LABEL_YEAR, looks
from real.protocol import RealTask, blocked_folds, numbers
from real.scores import score
from real.tasks import SMOKE, TASKS, load

INNER_FOLDS, NUM_SEEDS, MOST_TRAINING = 3, 3, 4000
PENALTIES, NEIGHBOURS = (1e-4, 1e-3, 1e-2, 0.1, 1.0, 10.0), (1, 3, 7, 15, 30, 60)
Setting = Mapping[str, Any]


@dataclass(frozen=True)
class Model:
    """A kind of model: how to make one, and the settings to choose from."""

    make: Callable[[bool, Setting, int], BaseEstimator]
    """From: is the task about a value, setting, seed."""
    settings: tuple[Setting, ...]
    is_random: bool = False
    in_choice: Setting | None = None
    """What else holds while the setting is chosen, to save time."""


def _constant(is_value: bool, _: Setting, __: int) -> BaseEstimator:
    return DummyRegressor() if is_value else DummyClassifier(strategy="most_frequent")


def _linear(is_value: bool, setting: Setting, _: int) -> BaseEstimator:
    if is_value:
        return Ridge(alpha=1 / setting["C"])
    return LogisticRegression(**setting, max_iter=2000, tol=1e-3)


def _neighbours(is_value: bool, setting: Setting, _: int) -> BaseEstimator:
    return (KNeighborsRegressor if is_value else KNeighborsClassifier)(**setting, weights="distance")


def _forest(is_value: bool, setting: Setting, seed: int) -> BaseEstimator:
    return (RandomForestRegressor if is_value else RandomForestClassifier)(
        **{"n_estimators": 100, **setting}, random_state=seed
    )


def _boosting(is_value: bool, setting: Setting, seed: int) -> BaseEstimator:
    return (HistGradientBoostingRegressor if is_value else HistGradientBoostingClassifier)(
        **{"max_iter": 100, "learning_rate": 0.1, **setting},
        max_features=0.1, max_bins=64, early_stopping=False, random_state=seed,
    )  # fmt: skip


MODELS: dict[str, Model] = {
    "linear": Model(_linear, tuple({"C": penalty} for penalty in PENALTIES)),
    "neighbours": Model(_neighbours, tuple({"n_neighbors": count} for count in NEIGHBOURS)),
    "forest": Model(
        _forest, tuple({"min_samples_leaf": leaf, "max_features": most} for leaf in (1, 5) for most in ("sqrt", 0.1)),
        is_random=True, in_choice={"n_estimators": 50},
    ),
    "boosting": Model(
        _boosting,
        tuple({"max_leaf_nodes": most, "min_samples_leaf": leaf} for most in (5, 15) for leaf in (5, 20)),
        is_random=True, in_choice={"max_iter": 30, "learning_rate": 0.25},
    ),
}  # fmt: skip
"""`C` of the linear model is the inverse of the penalty of logistic or ridge regression."""
CONSTANT = Model(_constant, ({},))


def seen_alike(task: RealTask) -> Samples:
    """A task's samples; where fine-tuning sees the year of the label alone, features of that year beside all others."""
    asked = samples(task)
    if task.name in LABEL_YEAR:
        one_year = samples(replace(task, tiles=looks(task)[0])).features
        asked.features.update({f"{name}, label's year": one_year[name] for name in ("statistics", "series")})
    return asked


def evaluate(task: RealTask) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
    """The record of all models with all features, and arrays for other comparisons.

    The record holds scores, settings chosen for each test fold, seconds of CPU. The arrays are what was tested:
    `truth` and `groups` (sample), and answers (run sample) by `features, model`, as `scores.difference` takes them.
    """
    asked = seen_alike(task)
    tested = np.isin(asked.tile, np.flatnonzero(np.any([test for _, test in task.splits()], axis=0)))
    arrays = {"truth": asked.truth[tested], "groups": asked.groups[tested]}
    rows = []
    for features, name, model in [
        ("none", "constant", CONSTANT),
        *((f, n, m) for f in asked.features for n, m in MODELS.items()),
    ]:
        columns = asked.features.get(features, np.zeros((len(asked.truth), 1), np.float32))
        begun = time.process_time()
        answers, chosen = answered(task, asked, columns, model)
        seconds = time.process_time() - begun
        arrays[f"{features}, {name}"] = answers[:, tested]
        found = score(arrays["truth"], answers[:, tested], arrays["groups"], len(task.target.classes))
        rows.append({"features": features, "num_features": columns.shape[1], "model": name, "scores": found,
                     "settings": chosen, "cpu_s": round(seconds, 1)})  # fmt: skip
        first, one = next(iter(found.items()))
        print(f"{task.name}: {features}, {name}: {first} {one['score']:.3f}, {seconds:.0f} s", flush=True)
    return {
        "kind": "simple", "task": task.name, "about": task.about, "is_official": task.is_official,
        "num_tiles": len(task.tiles), "num_samples": len(asked.truth), "num_tested": int(tested.sum()),
        "num_groups": len(np.unique(asked.groups)), "num_groups_tested": len(np.unique(arrays["groups"])),
        "classes": _counts(task, asked),
        "protocol": {"inner_folds": INNER_FOLDS, "seeds": NUM_SEEDS, "most_training_samples": MOST_TRAINING,
                     "chosen_by": "accuracy" if task.target.classes else "RMSE"},
        "rows": rows,
        "versions": {"anysat": anysat.__version__, "numpy": np.__version__, "scikit-learn": sklearn.__version__,
                     "python": platform.python_version()},
    }, arrays  # fmt: skip


def answered(
    task: RealTask,
    asked: Samples,
    columns: NDArray[np.float32] | Sequence[NDArray[np.float32]],
    model: Model,
    settings: Sequence[Setting] | None = None,
) -> tuple[NDArray[Any], list[Setting]]:
    """Answers (run sample) to what is tested, 0 elsewhere; and the setting chosen for each test fold.

    Args:
        task: with its folds.
        asked: its samples.
        columns: features (sample feature); or, for features that depend on the training part, those of each split.
        model: kind of model.
        settings: of each test fold, where they were chosen before.
    """
    is_value = task.target.kind == "value"
    runs = NUM_SEEDS if model.is_random else 1
    answers, chosen = np.zeros((runs, len(asked.truth)), asked.truth.dtype), []
    for number, (train_tiles, test_tiles) in enumerate(task.splits()):
        of_split = columns if isinstance(columns, np.ndarray) else columns[number]
        train, test = np.flatnonzero(train_tiles[asked.tile]), np.flatnonzero(test_tiles[asked.tile])
        train = np.sort(np.random.default_rng(0).permutation(train)[:MOST_TRAINING])
        if settings is None:
            setting = _chosen(of_split[train], asked.truth[train], asked.groups[train], model, is_value)
        else:
            setting = settings[number]
        chosen.append(setting)
        for seed in range(runs):
            fitted = _pipeline(model, is_value, setting, seed).fit(of_split[train], asked.truth[train])
            answers[seed, test] = fitted.predict(of_split[test])
    return answers, chosen


def _pipeline(model: Model, is_value: bool, setting: Setting, seed: int) -> Any:
    fill = SimpleImputer(keep_empty_features=True)
    return make_pipeline(fill, StandardScaler(), model.make(is_value, setting, seed))


def _chosen(
    columns: NDArray[np.float32], truth: NDArray[Any], groups: NDArray[np.int64], model: Model, is_value: bool
) -> Setting:
    """The best setting in inner folds of whole groups; of equals the first."""
    if len(model.settings) == 1:
        return model.settings[0]
    losses = []
    for setting in model.settings:
        tried = {**setting, **(model.in_choice or {})}
        found = inner_answers(columns, truth, groups, model, tried, is_value)
        losses.append(np.mean((found - truth) ** 2) if is_value else np.mean(found != truth))
    return model.settings[int(np.argmin(losses))]


def inner_answers(
    columns: NDArray[np.float32], truth: NDArray[Any], groups: NDArray[np.int64], model: Model, setting: Setting,
    is_value: bool,
) -> NDArray[Any]:  # fmt: skip
    """What a model with a setting says of samples (sample) of groups that it was not fitted to."""
    folds = blocked_folds(numbers(groups), None if is_value else truth, INNER_FOLDS)
    found = np.empty_like(truth)
    for fold in range(INNER_FOLDS):
        fit, check = folds != fold, folds == fold
        tried = _pipeline(model, is_value, setting, 0)
        found[check] = tried.fit(columns[fit], truth[fit]).predict(columns[check])
    return found


def _counts(task: RealTask, asked: Samples) -> dict[str, list[int]]:
    """Samples of each class in each fold; nothing for a value."""
    folds = task.folds[asked.tile]
    return {
        name: [int(((asked.truth == number) & (folds == fold)).sum()) for fold in np.unique(task.folds)]
        for number, name in enumerate(task.target.classes)
    }


def table(records: list[Mapping[str, Any]]) -> str:
    """Markdown: for each task a row for each feature set and model."""
    return "\n\n".join(_table(record) for record in records)


def _table(record: Mapping[str, Any]) -> str:
    names = list(record["rows"][0]["scores"])
    lines = [
        f"**{record['task']}** — {record['about']}. {record['num_samples']} samples, {record['num_tested']} tested "
        f"in {record['num_groups_tested']} groups.", "",
        f"| features | model | {' | '.join(names)} | CPU |", f"|---|---|{'---|' * len(names)}---|",
    ]  # fmt: skip
    for row in record["rows"]:
        cells = []
        for name in names:
            digits = 1 if name in ("RMSE", "MAE") else 3
            low, high = row["scores"][name]["interval"]
            cells.append(f"{row['scores'][name]['score']:.{digits}f} ({low:.{digits}f} to {high:.{digits}f})")
        lines.append(f"| {row['features']} | {row['model']} | {' | '.join(cells)} | {row['cpu_s']:.0f} s |")
    return "\n".join(lines)


def main() -> None:
    """Run one task, or print tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    one = commands.add_parser("run", help="one task")
    one.add_argument("task", choices=[name for name in TASKS if name not in SMOKE])
    one.add_argument("--data", type=Path, help="folder of the real data")
    one.add_argument("--json", type=Path, required=True, help="the record")
    one.add_argument("--answers", type=Path, help="every answer, as .npz")
    many = commands.add_parser("print", help="Markdown tables")
    many.add_argument("files", type=Path, nargs="+")
    options = parser.parse_args()
    if options.command == "print":
        print(table([json.loads(path.read_text()) for path in options.files]))
    elif options.data is None or not options.data.is_dir():
        print("skipped: there is no folder" + (f" {options.data}" if options.data else ", give it with --data"))
    else:
        with threadpool_limits(1):
            record, arrays = evaluate(load(options.task, options.data))
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(record, indent=1) + "\n")
        if options.answers is not None:
            np.savez_compressed(options.answers, **arrays)


if __name__ == "__main__":
    main()
