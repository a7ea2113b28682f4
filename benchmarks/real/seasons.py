"""What scores at home tell of scores in another place and year: crops of Flanders, by some of the dates at a time.

python benchmarks/real/seasons.py run --data DATA
python benchmarks/real/seasons.py print

The simple models of `simple.py`, tuned as there, on the series of `parcels_belgium`, of the label's year: all of its
dates or those of some months, of one sensor or both. *At home* is the accuracy of the chosen setting in the inner folds
of the patch that is trained on; *away* that in the patch tested, mean of the seeds. The record is
docs/experiments/real/seasons.json.
"""

from __future__ import annotations

import sys
from collections.abc import Collection, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

if __name__ == "__main__":  # as a script: the folder of the package, not the package, is where to look
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import numpy as np
from scipy.stats import spearmanr

from anysat.batch import Tile
from real.encoders import RECORDS
from real.features import samples
from real.frozen import looks
from real.protocol import RealTask
from real.record import measure_or_print
from real.simple import MODELS, answered, inner_answers
from real.tasks import load

RECORD, TASK = RECORDS / "seasons.json", "parcels_belgium"
MONTHS = {"all": range(1, 13), "January to April": range(1, 5), "May and June": range(5, 7),
          "July and August": range(7, 9), "September to November": range(9, 12)}  # fmt: skip


def of_months(tile: Tile, keys: Collection[str], months: Collection[int]) -> Tile:
    """A tile with some of its sensors, and of those the dates of some months."""
    found = {}
    for key in keys:
        seen = tile.observations[key]
        assert seen.dates is not None, key
        month = seen.dates.astype("datetime64[M]").astype(np.int64) % 12 + 1
        is_kept = np.isin(month, list(months))
        found[key] = replace(seen, values=seen.values[is_kept], valid=seen.valid[is_kept], dates=seen.dates[is_kept])
    return replace(tile, observations=found)


def some_dates(task: RealTask) -> Iterator[tuple[str, str, RealTask]]:
    """The task as it is with some sensors and months, and their names."""
    tiles = looks(task)[0]
    every = tuple(tiles[0].observations)
    for keys in dict.fromkeys([*((key,) for key in every), every]):
        for name, months in MONTHS.items():
            yield " and ".join(keys), name, replace(task, tiles=[of_months(tile, keys, months) for tile in tiles])


def measured(task: RealTask) -> dict[str, Any]:
    """The record: a row for each choice of dates and model."""
    rows = []
    for sensors, months, seen in some_dates(task):
        asked = samples(seen)
        columns = asked.features["series"]
        [(train, test)] = ((train[asked.tile], test[asked.tile]) for train, test in task.splits())
        for name, model in MODELS.items():
            answers, (setting, *_) = answered(seen, asked, columns, model)
            at_home = inner_answers(columns[train], asked.truth[train], asked.groups[train], model, setting, False)
            row = {
                "sensors": sensors, "months": months, "model": name,
                "home": round(float(np.mean(at_home == asked.truth[train])), 4),
                "away": round(float(np.mean(answers[:, test] == asked.truth[test])), 4),
            }  # fmt: skip
            rows.append(row)
            print(row, flush=True)
    return {"kind": "seasons", "task": task.name, "rows": rows}


def table(record: dict[str, Any]) -> str:
    """Markdown: a row for each choice of dates, a column for each model; what is best of each choice of sensors."""
    rows = record["rows"]
    models, every = (list(dict.fromkeys(row[key] for row in rows)) for key in ("model", "sensors"))
    lines = [f"| sensors | months | {' | '.join(models)} |", f"|---|---|{'---|' * len(models)}"]
    cells: dict[tuple[str, str], list[str]] = {}
    for row in rows:
        cells.setdefault((row["sensors"], row["months"]), []).append(f"{row['home']:.3f} / {row['away']:.3f}")
    lines += [f"| {' | '.join([*key, *found])} |" for key, found in cells.items()]
    lines += ["", "At home / away.", ""]
    for sensors in every:
        some = [row for row in rows if row["sensors"] == sensors]
        home, away = (np.array([row[key] for row in some]) for key in ("home", "away"))
        best, rank = some[int(home.argmax())], float(spearmanr(home, away).statistic)
        lines.append(f"- {sensors}: {away.min():.3f} to {away.max():.3f} away; ranks at home and away correlate by "
                     f"{rank:.2f}; best at home is {best['model']}, {best['months']}, which has {best['away']:.3f} "
                     "away.")  # fmt: skip
    return "\n".join(lines)


if __name__ == "__main__":
    measure_or_print(__doc__, RECORD, lambda data: measured(load(TASK, data)), table)
