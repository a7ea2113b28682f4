"""`anysat evaluate --compare`: the same models on band statistics, pixel series and embeddings, on the same splits."""

from __future__ import annotations

import math
import tempfile
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from anysat.data.splits import TEST, TRAIN, VAL
from anysat.data.work import to_json
from anysat.errors import InputError, UnknownNameError
from anysat.tasks.base import Task
from anysat.tasks.simple import (
    SIMPLE,
    called,
    check_models,
    draw_places,
    joined_places,
    mean_and_spread,
    models,
    outputs,
)
from anysat.whole_files import write_output
from anysat.workflows.answer import Answer
from anysat.workflows.evaluate import CompareConfig
from anysat.workflows.evaluate.features import FeatureSet, Samples, Table, check_encoders, feature_sets, one_by_one
from anysat.workflows.evaluate.given import given_tables
from anysat.workflows.evaluate.told import Comparison, Line
from anysat.workflows.evaluate.turns import make_turns
from anysat.workflows.ground_blocks import known_places, places_of
from anysat.workflows.progress import progress_bar
from anysat.workflows.supervised.data import OpenData, open_data
from anysat.workflows.supervised.parts import fitted_task


def compare(config: CompareConfig) -> Answer:
    """Fit every model to every feature set. All are tuned on validation tiles and scored once, on test tiles."""
    check_models(config.models)
    if config.against not in (known := [*SIMPLE, *config.tables, *config.weights]):
        raise UnknownNameError("--against", config.against, known)
    data = open_data(config.data, config.seed)
    given = given_tables(config, data)
    check_encoders(config)
    samples = _samples(config, data)
    task = fitted_task(data.target, torch.as_tensor(samples.places.truth), balanced=False)
    lines = []
    with tempfile.TemporaryDirectory(prefix="anysat-compare-") as folder:
        for features, tables in feature_sets(config, data, samples, given, Path(folder)):
            lines += _fitted(features, tables, samples, task, config)
    found = Comparison(
        lines=lines, task=task, turns=samples.turns, num_tiles=samples.num_scored_tiles, against=config.against
    )  # fmt: skip
    if config.out is not None:
        write_output(Path(config.out), to_json(found.to_dict(config, data)))
    return Answer(str(found))


def _samples(config: CompareConfig, data: OpenData) -> Samples:
    """Draw the places to use: a number in each split, or in all tiles together if folds take turns."""
    truths: list[NDArray[Any]] = []
    places: list[NDArray[np.float64]] = []
    for split, tiles in data.splits.items():
        boxes: list[Any] = []
        with progress_bar(f"targets of {tiles.name}, {split}", len(tiles)) as advance:
            for draw in one_by_one(tiles, config.num_workers):
                truths.append(draw.batch.targets[data.target.name][0].numpy().copy())
                boxes += draw.batch.geoboxes
                advance(1)
        places.append(known_places(tiles, places_of(boxes)))
    turns = make_turns(config, data, np.concatenate(places))
    together = [range(len(truths))] if turns.is_crossed else [np.flatnonzero(turns.roles[0] == r) for r in range(3)]
    drawn = [draw_places([truths[n] for n in tiles], data.target, config.max_pixels, config.seed) for tiles in together]
    shapes = tuple(one.shape[-2:] if one.ndim >= 2 else None for one in truths)
    samples = Samples(places=joined_places(drawn, list(map(len, together))), shapes=shapes, turns=turns)
    for turn in range(len(turns.roles)):
        for role, split in enumerate(data.splits):
            where = f"{data.record.name}, " + (f"{split} part of turn {turn + 1}" if turns.is_crossed else split)
            truth = samples.places.truth[samples.rows(turn, role)]
            if not len(truth):
                raise InputError(where, f"labels of {data.target.name!r}", "none")
            if role == TRAIN and data.target.is_multiclass and len(np.unique(truth)) < 2:
                raise InputError(where, "at least two classes", "one", "take fewer folds, or smaller blocks")
    return samples


def _fitted(
    features: FeatureSet, tables: Sequence[Table], samples: Samples, task: Task, config: CompareConfig
) -> list[Line]:
    """Return a line for each model, which is tuned in every turn and then scored on one sheet for all turns."""
    lines = []
    with progress_bar(f"models on {features.name}", len(config.models)) as advance:
        for model in config.models:
            began, sheet, is_constant = time.process_time(), task.metric(), True
            for turn in range(len(samples.turns.roles)):
                train, val, test = (samples.rows(turn, role) for role in (TRAIN, VAL, TEST))
                ready = _standardised(tables[turn], train)
                best: tuple[float, Any] | None = None
                for setting in models(task.target, config.seed, len(train))[model]:
                    fitted = _fit(setting, ready[train], samples.places.truth[train])
                    trial = task.metric()
                    _score(trial, fitted, ready, val, samples, task)
                    found = trial.compute().figures[task.primary]
                    value = found if task.highest_is_best else -found
                    if best is None or math.isnan(best[0]) or value > best[0]:
                        best = value, fitted
                assert best is not None, model
                is_constant &= _score(sheet, best[1], ready, test, samples, task)
            lines.append(Line(features=features, model=called(model, task.target), scores=sheet.compute(),
                              seconds=time.process_time() - began, is_constant=is_constant))  # fmt: skip
            advance(1)
    return lines


def _fit(setting: Any, features: Table, truth: NDArray[Any]) -> Any:
    from sklearn.base import clone
    from sklearn.exceptions import ConvergenceWarning

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # validation shows whether it is good enough
        return clone(setting).fit(features, truth)


def _standardised(table: Table, train: NDArray[np.int64]) -> Table:
    """Standardise to mean 0 and deviation 1 over the training samples, and replace missing values by the mean."""
    mean, spread = mean_and_spread(table[train], 0)
    mean, spread = np.nan_to_num(mean), np.where(np.nan_to_num(spread) > 1e-9, spread, 1.0)
    return np.nan_to_num((table - mean) / spread)


def _score(sheet: Any, model: Any, ready: Table, rows: NDArray[np.int64], samples: Samples, task: Task) -> bool:
    """Add samples to a score sheet, with the groups of the turns, and return whether all get the same answer.

    Answers are the likeliest class or the assigned labels, even if probabilities differ.
    """
    told = outputs(model, ready[rows], task)
    truth = torch.as_tensor(samples.places.truth[rows])
    groups = torch.from_numpy(samples.turns.groups[samples.places.tile[rows]])
    task.score(sheet, told, truth, groups)
    answers = task.answer(told)
    return bool((answers == answers[:1]).all())
