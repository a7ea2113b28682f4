"""Scoring of the pretraining probes: the same linear model for every feature set, intervals, and label-free measures.

Everything here works on arrays, without knowing data or encoders.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.linear_model import RidgeClassifier
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.class_weight import compute_sample_weight
from torch import Tensor

from anysat.probing.health import cross_modal_retrieval, effective_rank

PENALTIES = tuple(10.0**power for power in range(-5, 2))
"""Penalties to choose from, for every feature set, whatever the number of samples."""
RESAMPLES = 2000
FeatureSets = Mapping[str, NDArray[Any]]
"""Feature sets (sample feature) that a probe may choose from, by name."""


@dataclass(frozen=True, eq=False)
class Samples:
    """Labels and groups of samples."""

    labels: NDArray[Any]
    """(sample) class numbers, or (sample question) answers 0 and 1 to several questions."""
    groups: NDArray[np.int64]
    """(sample) number of the tile, block or region, which is drawn as a whole and never split."""


@dataclass(frozen=True, eq=False)
class Answers:
    """The number of right answers of a probe, by group."""

    right: NDArray[np.float64]
    """(group question class), number of right answers."""
    total: NDArray[np.float64]
    """Same shape, number of samples."""
    features: str = ""
    """Name of the feature set that was chosen."""
    penalties: tuple[float, ...] = ()
    """Penalties that were chosen, one for each question and fold."""

    def score(self, weight: NDArray[np.float64] | None = None) -> NDArray[np.float64]:
        """Return balanced accuracy over questions, rescaled so that guessing gives 0, for each weighting (… group)."""
        weight = np.ones(len(self.total)) if weight is None else weight
        right, total = (np.einsum("...g,gqc->...qc", weight, part) for part in (self.right, self.total))
        classes = (self.total.sum(0) > 0).sum(-1)  # a resample may lack one
        accuracy = (right / np.maximum(total, 1e-9)).sum(-1) / np.maximum((total > 0).sum(-1), 1)
        return ((accuracy - 1 / classes) / (1 - 1 / classes)).mean(-1)


def probe(features: FeatureSets, samples: Samples, train: NDArray[Any], test: NDArray[Any]) -> Answers:
    """Fit on the samples `train` and predict those of `test` (both are masks).

    Feature set and penalty are those that score best on the last third of the training groups when fitted to the
    others. The final fit uses all training groups.
    """
    groups = np.unique(samples.groups[train])
    later = np.isin(samples.groups, groups[round(len(groups) * 2 / 3) :])
    fit, check = train & ~later, train & later
    labels = samples.labels.reshape(len(samples.labels), -1).astype(np.int64)
    tried = {}
    for name, columns in features.items():
        values = _finite(columns, fit)
        found = [_best(values, truth, fit, check) for truth in labels.T]
        tried[name] = np.mean([score for score, _ in found]), [penalty for _, penalty in found]
    name = max(tried, key=lambda name: tried[name][0])
    values, penalties = _finite(features[name], train), tried[name][1]
    answers = [
        _fit(values, truth, train, penalty).predict(values[test])
        for truth, penalty in zip(labels.T, penalties, strict=True)
    ]
    return _tally(np.stack(answers, axis=1), labels[test], samples.groups[test], name, tuple(penalties))


def cross_probe(features: FeatureSets, samples: Samples, folds: NDArray[np.int64]) -> Answers:
    """Predict every fold with a model fitted to the others, and count all together."""
    parts = [probe(features, samples, folds != number, folds == number) for number in np.unique(folds)]
    width = int(samples.labels.max()) + 1
    right, total = (
        np.concatenate([np.pad(part, ((0, 0), (0, 0), (0, width - part.shape[2]))) for part in tallies])
        for tallies in ([part.right for part in parts], [part.total for part in parts])
    )
    names = ", ".join(sorted({part.features for part in parts}))
    return Answers(right, total, names, tuple(penalty for part in parts for penalty in part.penalties))


def _finite(columns: NDArray[Any], train: NDArray[Any]) -> NDArray[np.float64]:
    """Replace missing values by the training mean."""
    missing = ~np.isfinite(columns)
    if missing.any():
        mean = np.nanmean(np.where(missing, np.nan, columns)[train], axis=0)
        columns = np.where(missing, mean, columns)
    return np.ascontiguousarray(columns, dtype=np.float64)


def _fit(values: NDArray[np.float64], truth: NDArray[np.int64], train: NDArray[Any], penalty: float) -> Pipeline:
    """Return ridge regression of standardised features onto the classes, with the same weight for every class."""
    weights = compute_sample_weight("balanced", truth[train])
    model = Pipeline([("scale", StandardScaler()), ("ridge", RidgeClassifier(penalty * train.sum()))])
    return model.fit(values[train], truth[train], scale__sample_weight=weights, ridge__sample_weight=weights)


def _best(
    values: NDArray[np.float64], truth: NDArray[np.int64], fit: NDArray[Any], check: NDArray[Any]
) -> tuple[float, float]:
    """Return the best score on the samples `check`, and its penalty; of equally good ones, the largest."""
    scores = {}
    for penalty in sorted(PENALTIES, reverse=True):
        found = _fit(values, truth, fit, penalty).predict(values[check])
        one = _tally(found[:, None], truth[check][:, None], np.zeros(len(found), np.int64), "", ())
        scores[penalty] = float(one.score())
    penalty = max(scores, key=lambda penalty: scores[penalty])
    return scores[penalty], penalty


def _tally(
    found: NDArray[np.int64],
    truth: NDArray[np.int64],
    groups: NDArray[np.int64],
    features: str,
    penalties: tuple[float, ...],
) -> Answers:
    """Count right answers. Answers and truth are (sample question)."""
    numbers, places = np.unique(groups, return_inverse=True)
    total = np.zeros((len(numbers), truth.shape[1], int(truth.max()) + 1))
    right = np.zeros_like(total)
    where = places[:, None], np.arange(truth.shape[1])[None], truth
    np.add.at(total, where, 1)
    np.add.at(right, where, found == truth)
    return Answers(right, total, features, penalties)


def compare(ours: Answers, others: Mapping[str, Answers], seed: int = 0) -> dict[str, Any]:
    """Return score, 95 % interval, and differences to others with theirs, on the same draws of groups."""
    count = len(ours.total)
    weight = np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), RESAMPLES).astype(float)
    drawn = ours.score(weight)
    found: dict[str, Any] = {
        "score": float(ours.score()), "interval": _interval(drawn), "features": ours.features,
        "penalties": list(ours.penalties),
    }  # fmt: skip
    found["minus"] = {
        name: {"difference": float(ours.score() - o.score()), "interval": _interval(drawn - o.score(weight))}
        for name, o in others.items()
    }
    return found


def _interval(drawn: NDArray[np.float64]) -> list[float]:
    return [float(edge) for edge in np.percentile(drawn, (2.5, 97.5))]


def without_labels(tokens: Mapping[str, Tensor]) -> dict[str, Any]:
    """Return retrieval between two modalities and effective ranks, from patch tokens (patch dim) by name.

    The first tokens are the fused ones. `centred` is the retrieval after subtracting each modality's mean, so that a
    constant offset between modalities does not matter.
    """
    seen = torch.stack([part.isfinite().all(1) for part in tokens.values()]).all(0)
    kept = {name: part[seen].double() for name, part in tokens.items()}
    _, one, other = kept.values()
    raw, chance = cross_modal_retrieval(one, other)
    centred, _ = cross_modal_retrieval(one - one.mean(0), other - other.mean(0))
    return {
        "retrieval": {"raw": raw, "centred": centred, "chance": chance, "patches": int(seen.sum())},
        "effective_rank": {name: effective_rank(part) for name, part in kept.items()},
    }
