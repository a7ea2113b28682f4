"""Scores of answers to a real task, with intervals by groups; for any model, by arrays alone.

Classes: accuracy, balanced accuracy, macro F1. Values: RMSE, MAE, R2. All are of all folds' answers taken together.
An answer is given by one run or several with other seeds: the score is the mean of theirs.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

RESAMPLES = 2000
Score = dict[str, NDArray[np.float64]]


def score(
    truth: NDArray[Any], answers: NDArray[Any], groups: NDArray[np.int64], num_classes: int = 0
) -> dict[str, dict[str, Any]]:
    """Each score with `interval`, 95 % of draws of groups, and `seeds`, that of each run.

    Args:
        truth: (sample) class numbers, or values where `num_classes` is 0.
        answers: (run sample) the same.
        groups: (sample) what is drawn together.
        num_classes: of the task.
    """
    tally = _tally(truth, answers, groups, num_classes)
    found, drawn = _scores(tally.sum(1), num_classes), _drawn(tally, num_classes)
    return {
        name: {"score": float(runs.mean()), "interval": _interval(drawn[name]), "seeds": runs.tolist()}
        for name, runs in found.items()
    }


def difference(
    truth: NDArray[Any], ours: NDArray[Any], theirs: NDArray[Any], groups: NDArray[np.int64], num_classes: int = 0
) -> dict[str, dict[str, Any]]:
    """How much higher ours are than theirs, arguments as in `score`; both in the same draws of groups."""
    tallies = [_tally(truth, answers, groups, num_classes) for answers in (ours, theirs)]
    one, other = (_scores(tally.sum(1), num_classes) for tally in tallies)
    drawn, beside = (_drawn(tally, num_classes) for tally in tallies)
    return {
        name: {"difference": float(one[name].mean() - other[name].mean()),
               "interval": _interval(drawn[name] - beside[name])}
        for name in one
    }  # fmt: skip


def _tally(
    truth: NDArray[Any], answers: NDArray[Any], groups: NDArray[np.int64], num_classes: int
) -> NDArray[np.float64]:
    """(run group number…) what scores are made of, to be added over groups: confusions, or sums of values."""
    assert answers.shape[1:] == truth.shape == groups.shape, (answers.shape, truth.shape, groups.shape)
    names, at = np.unique(groups, return_inverse=True)
    if num_classes:
        tally = np.zeros((len(answers), len(names), num_classes, num_classes))
        for run, found in zip(tally, answers, strict=True):
            np.add.at(run, (at, truth, found), 1)
        return tally
    tally = np.zeros((len(answers), len(names), 5))
    for run, found in zip(tally, answers, strict=True):
        error = found - truth
        np.add.at(run, at, np.stack([np.ones_like(error), error**2, np.abs(error), truth, truth**2], axis=1))
    return tally


def _scores(total: NDArray[np.float64], num_classes: int) -> Score:
    """From tallies (… number…) of all groups."""
    if num_classes:
        right = np.diagonal(total, axis1=-2, axis2=-1)
        asked, told = total.sum(-1), total.sum(-2)
        count = np.maximum((asked > 0).sum(-1), 1)  # a draw may lack a class
        recall, f1 = right / np.maximum(asked, 1), 2 * right / np.maximum(asked + told, 1)
        return {
            "accuracy": right.sum(-1) / np.maximum(asked.sum(-1), 1),
            "balanced accuracy": recall.sum(-1) / count,
            "macro F1": (f1 * (asked > 0)).sum(-1) / count,
        }
    number, squares, absolute, values, values_squared = np.moveaxis(total, -1, 0)
    variation = values_squared - values**2 / number
    return {"RMSE": np.sqrt(squares / number), "MAE": absolute / number, "R2": 1 - squares / variation}


def _drawn(tally: NDArray[np.float64], num_classes: int) -> Score:
    """Scores of every draw, means over the runs."""
    count = tally.shape[1]
    weight = np.random.default_rng(0).multinomial(count, np.full(count, 1 / count), RESAMPLES).astype(np.float64)
    found = [_scores(np.tensordot(weight, run, axes=1), num_classes) for run in tally]
    return {name: np.mean([one[name] for one in found], axis=0) for name in found[0]}


def _interval(drawn: NDArray[np.float64]) -> list[float]:
    return [float(edge) for edge in np.percentile(drawn, (2.5, 97.5))]
