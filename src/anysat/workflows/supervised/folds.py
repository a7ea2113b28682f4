"""Probes and fine-tuning over folds and repeated seeds: a run for each, and one file that summarises them."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from scipy.stats import t as student

from anysat.data.work import fingerprint, to_json
from anysat.errors import InputError
from anysat.geo.claims import make_folder
from anysat.model.digest import digest
from anysat.model.load import load
from anysat.tasks.scores import LIMITS
from anysat.train.run import BEGUN_WITH, CONFIG, FACTS, keep_config, open_run
from anysat.train.trainer import num_processes
from anysat.whole_files import write_whole
from anysat.workflows.answer import Answer
from anysat.workflows.kept import FOLDS_FILE
from anysat.workflows.supervised.answers import join_answers
from anysat.workflows.supervised.data import open_data
from anysat.workflows.supervised.folds_report import write_folds_report
from anysat.workflows.supervised.sheets import SCORES
from anysat.workflows.supervised.text import NOTHING, paper_line, spread_lines

FOLDS = FOLDS_FILE


def run_all(config: Any, out: Path, resume: bool, run: Callable[[Any, Path, bool], Answer]) -> Answer:
    """Run every fold and repeat of a config, each in a folder of its own; a config without them is one run in `out`.

    With `resume`, finished runs are not repeated. If one stops early, so does the command; it can be resumed.

    Raises:
        RunExistsError: A run was started, and `resume` is False.
        RecordError: A run was started with other options.
        InputError: A finished run used other tiles, or a run was started with other weights.
    """
    runs = config.runs()
    if list(runs) == [""]:
        return run(config, out, resume)
    found: dict[str, dict[str, Any]] = {}
    is_begun = any((out / name).exists() for name in (FACTS, *(f"{one}/{CONFIG}" for one in runs)))
    if not is_begun or not (out / CONFIG).exists():  # so that `--out` and `--resume` suffice to continue
        make_folder(out)
        keep_config(out, config.to_dict())
    if resume:
        _check_weights(config, out, [out / name for name in runs])
    for name, one in runs.items():
        path = out / name
        if resume and (path / SCORES).is_file():
            with open_run(
                path, config=one.to_dict(), seed=one.seed, resume=True, may_change=one.MAY_CHANGE,
                processes=num_processes(one.engine) if hasattr(one, "engine") else 1,
            ):  # fmt: skip
                _check_tiles(one, out, name)  # same options
        else:
            told = run(one, path, resume)
            if not (path / SCORES).is_file():
                return Answer(f"{_noun(config)} {name}: {told.content}", exit_status=told.exit_status)
        found[name] = json.loads((path / SCORES).read_text())
    content = joined(found) | {"config": config.to_dict()}
    write_whole(out / FOLDS, to_json(content))
    lines = [*spread_lines(content), *paper_line(type(config), content["config"]), f"scores: {out / FOLDS}"]
    if (answers := join_answers(out, runs)) is not None:
        lines.append(f"answers for every tile: {answers}")
    if config.report:
        lines.append(f"report: {write_folds_report(out, json.loads((out / FOLDS).read_text()))}")
    return Answer("\n".join(lines))


def _noun(config: Any) -> str:
    return "fold" if config.repeats == 1 else "run"


def _check_weights(config: Any, out: Path, folders: Sequence[Path]) -> None:
    """Check that all runs were started with the present weights, because means must be over one encoder."""
    begun = [folder for folder in folders if (folder / BEGUN_WITH).is_file()]
    if config.weights is None or not begun:
        return
    now = digest(load(config.weights))
    for folder in begun:
        kept = json.loads((folder / BEGUN_WITH).read_text())["weights"]
        if kept != now:
            raise InputError(
                f"{out}, {_noun(config)} {folder.relative_to(out)}, weights",
                f"those it was started with (digest {kept[:12]}…)", f"others ({now[:12]}…)",
                "restore the weights, or start another run with another --out",
            )  # fmt: skip


def _check_tiles(config: Any, out: Path, name: str) -> None:
    """Check that a finished run used the present tiles, because means must be over one dataset."""
    begun, now = json.loads((out / name / SCORES).read_text())["data"], open_data(config.data, config.seed)
    for split, told in begun.items():
        tiles = getattr(now, split)
        if told["fingerprint"] != fingerprint(tiles):
            raise InputError(
                f"{out}, fold {name}, {split}",
                f"the {told['tiles']} tiles it was scored with, of the same names, layout and columns",
                f"others, {len(tiles)}",
                f"restore the data, remove {out / name} to run it again, or give another --out",
            )


def joined(found: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Return mean, deviation and interval of each test score over runs, which are folds and repeats, and their results.

    A score that is undefined in a run is left out of its mean. `num_folds` is the number of runs in the mean.
    """
    first = next(iter(found.values()))
    folds = {
        name: {"figures": one["scores"]["test"]["figures"], "intervals": one["scores"]["test"]["intervals"],
               "selected_on": one["selected_on"], "weights": one["weights"], "data": one["data"], "seed": one["seed"],
               "selection": {k: v for k, v in one["selection"].items() if k not in _LONG}}
        for name, one in found.items()
    }  # fmt: skip
    figures = spread_of([one["figures"] for one in folds.values()])
    kept = {name: first[name] for name in ("command", "target", "primary", "seed", "versions")}
    seeds = sorted({one["seed"] for one in folds.values()})
    return {**kept, "seeds": seeds, "selected_on": _selected_on(folds), "figures": figures,
            "intervals": intervals_of(figures, folds), "folds": folds}  # fmt: skip


_LONG = ("curve", "tried")


def _selected_on(folds: Mapping[str, Mapping[str, Any]]) -> str:
    """Return what settings were chosen on, and in which runs there was no choice."""
    without = [name for name, one in folds.items() if one["selected_on"] == NOTHING]
    chosen = {one["selected_on"] for one in folds.values()} - {NOTHING}
    if not chosen:
        return NOTHING
    told = chosen.pop() if len(chosen) == 1 else "the fold before"
    return told + (f", in {', '.join(without)} {NOTHING}" if without else "")


def spread_of(figures: Sequence[Mapping[str, float | None]]) -> dict[str, dict[str, Any]]:
    """Return mean, deviation and range of each score over the runs in which it is defined, and their number."""
    found = {}
    for name in figures[0]:
        values = [value for one in figures if (value := one[name]) is not None]
        if values:
            spread = statistics.stdev(values) if len(values) > 1 else None
            found[name] = {"mean": statistics.fmean(values), "deviation": spread, "least": min(values),
                           "greatest": max(values), "num_folds": len(values)}  # fmt: skip
    return found


def intervals_of(
    figures: Mapping[str, Mapping[str, Any]], folds: Mapping[str, Mapping[str, Any]]
) -> dict[str, list[float]]:
    """Return 95 % intervals of mean scores, by Student's t, clipped to the possible values of a score.

    Runs over folds share most of their training tiles, so they differ less than independent ones would. The variance of
    their mean is therefore increased by the ratio of test to training tiles (Nadeau and Bengio 2003, Inference for the
    generalization error). If all runs are scored on the same tiles, the interval is over random draws only.

    Args:
        figures: Means and deviations, from `spread_of`.
        folds: The runs, each with its `data`: the tiles it was trained on, and in `test` those that were scored.
    """
    data = [one["data"] for one in folds.values() if one["data"]]
    is_crossed = len({one["test"]["fingerprint"] for one in data}) > 1
    overlap = statistics.fmean(one["test"]["tiles"] / one["train"]["tiles"] for one in data) if is_crossed else 0.0
    found = {}
    for name, one in figures.items():
        if one["deviation"] is not None:
            width = float(student.ppf(0.975, one["num_folds"] - 1)) * math.sqrt(1 / one["num_folds"] + overlap)
            half = one["deviation"] * width
            least, greatest = LIMITS.get(name, (-math.inf, math.inf))
            found[name] = [max(least, one["mean"] - half), min(greatest, one["mean"] + half)]
    return found
