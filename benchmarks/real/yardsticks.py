"""How far a simple model's score moves with the split alone: untuned models, on splits that others may have used.

python benchmarks/real/yardsticks.py run --data DATA
python benchmarks/real/yardsticks.py print

Figures for the same data that stand elsewhere came from other splits, models and columns. Each line here is a model of
scikit-learn with fixed settings, on the series of a task or on all columns of its file (indices that are made from
bands; weather, terrain and place for fuel moisture), over five folds: ours, whole groups dealt otherwise, or single
samples dealt at random. No setting is chosen. The record is docs/experiments/real/yardsticks.json.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

if __name__ == "__main__":  # as a script: the folder of the package, not the package, is where to look
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import numpy as np
from numpy.typing import NDArray
from sklearn.base import BaseEstimator
from sklearn.ensemble import RandomForestClassifier, RandomForestRegressor
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.neighbors import KNeighborsClassifier, KNeighborsRegressor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from real import points
from real.encoders import RECORDS
from real.features import samples
from real.protocol import NUM_FOLDS, RealTask
from real.record import measure_or_print
from real.tasks import load

RECORD = RECORDS / "yardsticks.json"
MODELS: dict[str, tuple[Any, Any]] = {
    "linear": (lambda: LogisticRegression(C=0.1, max_iter=2000, tol=1e-3), lambda: Ridge(alpha=100.0)),
    "neighbours": (lambda: KNeighborsClassifier(5), lambda: KNeighborsRegressor(15)),
    "forest": (
        lambda: RandomForestClassifier(50, random_state=0),
        lambda: RandomForestRegressor(50, max_features=0.1, random_state=0),
    ),
}
"""Of classes, of values."""


def tables(data: Path) -> Iterator[tuple[RealTask, str, NDArray[np.float32]]]:
    """Tasks with the columns that are given to models."""
    for name in ("crop_canada", "landuse_modis", "fuel_moisture"):
        task = load(name, data)
        found = samples(task).features
        yield task, "series", found.get("series and season", found["series"])
        if name == "landuse_modis":
            z = points._columns(data / "modis_mato_grosso" / "points_9classes.npz")
            yield task, "with indices", z["series"].reshape(len(z["series"]), -1)
        elif name == "fuel_moisture":
            z = points._columns(data / "s1s2_pixel_tasks" / "fuel_moisture.npz")
            parts = [z["series"].reshape(len(z["series"]), -1), z["month"], z["latlon"]]
            yield task, "all columns", np.concatenate(parts, axis=1).astype(np.float32)


def deals(task: RealTask) -> Iterator[tuple[str, NDArray[np.int64]]]:
    """Folds (sample) by the kind of split."""
    order = np.random.default_rng(0)
    names, at = np.unique(task.groups, return_inverse=True)
    yield "our folds", task.folds
    yield "other folds of groups", order.permutation(np.arange(len(names)) % NUM_FOLDS)[at]
    yield "random samples", order.permutation(np.arange(len(task.tiles)) % NUM_FOLDS)


def scored(task: RealTask, columns: NDArray[np.float32], folds: NDArray[np.int64], make: Any) -> float:
    """Accuracy, or RMSE, over all samples."""
    truth, answers = task.truth(), np.empty_like(task.truth())
    for fold in np.unique(folds):
        fit, test = folds != fold, folds == fold
        model: BaseEstimator = make_pipeline(SimpleImputer(keep_empty_features=True), StandardScaler(), make())
        answers[test] = model.fit(columns[fit], truth[fit]).predict(columns[test])
    is_value = task.target.kind == "value"
    return float(np.sqrt(np.mean((answers - truth) ** 2)) if is_value else np.mean(answers == truth))


def measured(data: Path) -> dict[str, Any]:
    """The record: scores of each task, columns, model and kind of split."""
    rows = []
    for task, label, columns in tables(data):
        for name, makes in MODELS.items():
            make = makes[task.target.kind == "value"]
            found = {kind: round(scored(task, columns, folds, make), 4) for kind, folds in deals(task)}
            rows.append({"task": task.name, "columns": label, "model": name, "scores": found})
            print(rows[-1], flush=True)
    return {"kind": "yardsticks", "rows": rows}


def table(record: dict[str, Any]) -> str:
    """Markdown: a row for each task, columns and model."""
    kinds = list(record["rows"][0]["scores"])
    lines = [f"| task | columns | model | {' | '.join(kinds)} |", f"|---|---|---|{'---|' * len(kinds)}"]
    for row in record["rows"]:
        digits = 1 if row["task"] == "fuel_moisture" else 3
        cells = [f"{score:.{digits}f}" for score in row["scores"].values()]
        lines.append(f"| {row['task']} | {row['columns']} | {row['model']} | {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    measure_or_print(__doc__, RECORD, measured, table)
