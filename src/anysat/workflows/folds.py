"""Probes and fine-tuning over folds that take turns: one run for each, and one file that summarises them."""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from anysat.data.work import fingerprint, make_folder, to_json, write_whole
from anysat.errors import InputError
from anysat.model.checkpoint import load
from anysat.model.digest import digest
from anysat.train.run import BEGUN_WITH, CONFIG, FACTS, keep_config, open_run
from anysat.train.trainer import num_processes
from anysat.workflows.answer import Answer
from anysat.workflows.kept import FOLDS_FILE
from anysat.workflows.labelled_data import open_data
from anysat.workflows.task_parts import SCORES
from anysat.workflows.task_text import FIGURES, NOTHING, paper_line

FOLDS = FOLDS_FILE


def run_folds(config: Any, out: Path, resume: bool, run: Callable[[Any, Path, bool], Answer]) -> Answer:
    """Run every turn of `config.data.folds`, each in a folder named after the fold that is scored.

    With `resume`, finished folds are not run again. If a fold stops early, so does the command; it can be resumed.

    Raises:
        RunExistsError: A fold was started, and `resume` is False.
        RecordError: A fold was started with other options.
        InputError: A finished fold used other tiles, or a fold was started with other weights.
    """
    found: dict[str, dict[str, Any]] = {}
    is_begun = any((out / name).exists() for name in (FACTS, *(f"{turn}/{CONFIG}" for turn in config.data.turns())))
    if not is_begun or not (out / CONFIG).exists():  # so that `--out` and `--resume` suffice to continue
        make_folder(out)
        keep_config(out, config.to_dict())
    if resume:
        _check_weights(config, [out / name for name in config.data.turns()])
    for name, data in config.data.turns().items():
        one, path = replace(config, data=data), out / name
        if resume and (path / SCORES).is_file():
            with open_run(
                path, config=one.to_dict(), seed=one.seed, resume=True, may_change=one.MAY_CHANGE,
                defaults=type(one)().to_dict(),
                processes=num_processes(one.engine) if hasattr(one, "engine") else 1,
            ):  # fmt: skip
                _check_tiles(one, path)  # same options
        else:
            told = run(one, path, resume)
            if not (path / SCORES).is_file():
                return Answer(f"fold {name}: {told.content}", exit_status=told.exit_status)
        found[name] = json.loads((path / SCORES).read_text())
    content = joined(found) | {"config": config.to_dict()}
    write_whole(out / FOLDS, to_json(content))
    lines = [*spread_lines(content), *paper_line(content["command"], content["config"]), f"scores: {out / FOLDS}"]
    if config.report:
        from anysat.workflows.folds_report import write_folds_report

        lines.append(f"report: {write_folds_report(out, json.loads((out / FOLDS).read_text()))}")
    return Answer("\n".join(lines))


def _check_weights(config: Any, folders: Sequence[Path]) -> None:
    """Check that all folds were started with the present weights, because means must be over one encoder."""
    begun = [folder for folder in folders if (folder / BEGUN_WITH).is_file()]
    if config.weights is None or not begun:
        return
    now = digest(load(config.weights))
    for folder in begun:
        kept = json.loads((folder / BEGUN_WITH).read_text())["weights"]
        if kept != now:
            raise InputError(
                f"{folder.parent}, fold {folder.name}, weights", f"those it was started with (digest {kept[:12]}…)",
                f"others ({now[:12]}…)", "restore the weights, or start another run with another --out",
            )  # fmt: skip


def _check_tiles(config: Any, path: Path) -> None:
    """Check that a finished fold used the present tiles, because means must be over one dataset."""
    begun, now = json.loads((path / SCORES).read_text())["data"], open_data(config.data, config.seed)
    for split, told in begun.items():
        tiles = getattr(now, split)
        if told["fingerprint"] != fingerprint(tiles):
            raise InputError(
                f"{path.parent}, fold {path.name}, {split}",
                f"the {told['tiles']} tiles it was scored with, of the same names, layout and columns",
                f"others, {len(tiles)}",
                f"restore the data, remove {path} to run that fold again, or give another --out",
            )


def joined(found: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Return mean and standard deviation of each test score over folds, and the results of each fold.

    A score that is undefined in a fold is left out of its mean. `num_folds` is the number of folds in the mean.
    """
    first = next(iter(found.values()))
    folds = {
        name: {"figures": one["scores"]["test"]["figures"], "intervals": one["scores"]["test"]["intervals"],
               "selected_on": one["selected_on"], "weights": one["weights"], "data": one["data"],
               "selection": {k: v for k, v in one["selection"].items() if k not in _LONG}}
        for name, one in found.items()
    }  # fmt: skip
    figures = spread_of([one["figures"] for one in folds.values()])
    kept = {name: first[name] for name in ("command", "target", "primary", "seed", "versions")}
    return {**kept, "selected_on": _selected_on(folds), "figures": figures, "folds": folds}


_LONG = ("curve", "tried")


def _selected_on(folds: Mapping[str, Mapping[str, Any]]) -> str:
    """Return what settings were chosen on, and in which folds there was no choice."""
    without = [name for name, one in folds.items() if one["selected_on"] == NOTHING]
    if len(without) == len(folds):
        return NOTHING
    return "the fold before" + (f", in {', '.join(without)} {NOTHING}" if without else "")


def spread_of(figures: Sequence[Mapping[str, float | None]]) -> dict[str, dict[str, Any]]:
    """Return mean, deviation and range of each score over the folds in which it is defined, and their number."""
    found = {}
    for name in figures[0]:
        values = [value for one in figures if (value := one[name]) is not None]
        if values:
            spread = statistics.stdev(values) if len(values) > 1 else None
            found[name] = {"mean": statistics.fmean(values), "deviation": spread, "least": min(values),
                           "greatest": max(values), "num_folds": len(values)}  # fmt: skip
    return found


def spread_lines(content: Mapping[str, Any]) -> list[str]:
    """Return a line for each score, from `target`, `folds` and `figures` as returned by `joined`."""
    lines = [f"{content['target']} in {len(content['folds'])} folds, mean ± deviation (minimum to maximum)"]
    for name, title in FIGURES.items():
        one = content["figures"].get(name)
        if one is not None:
            spread = "" if one["deviation"] is None else f" ± {one['deviation']:.3f}"
            lines.append(f"  {title:18} {one['mean']:.3f}{spread} ({one['least']:.3f} to {one['greatest']:.3f})")
    return lines
