"""Simple models of embeddings and a few labels: standardised, linear, and checked over blocks of ground.

The strength of the penalty is chosen within the training blocks of every fold, so scores are of ground that neither the
model nor the choice has seen.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from anysat.data.splits import TEST, TRAIN, VAL, fold_numbers, roles_of
from anysat.tasks.metrics import ClassScores, ValueScores
from anysat.tasks.scores import Scores

PENALTIES = (1.0, 0.1, 0.01, 0.001)
"""Penalties of the squared weights to choose from, for standardised features, whatever the number of samples."""
NUM_FOLDS = 5
_USUAL = 0.1
"""Penalty where there is nothing to choose it on."""
_LEAST = 1e-6
"""Probability below which a wrong prediction costs no more."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Samples:
    """Embeddings with labels."""

    vectors: NDArray[np.float32]
    """(sample dim)"""
    truth: NDArray[Any]
    """(sample), class numbers or values."""
    weights: NDArray[np.float64]
    """(sample), above 0."""
    groups: NDArray[np.int64]
    """(sample), the block of ground."""
    num_classes: int
    """0 for values."""

    def where(self, chosen: NDArray[np.bool_]) -> Samples:
        """Return some of the samples."""
        return Samples(vectors=self.vectors[chosen], truth=self.truth[chosen], weights=self.weights[chosen],
                       groups=self.groups[chosen], num_classes=self.num_classes)  # fmt: skip

    @property
    def balanced(self) -> NDArray[np.float64]:
        """Weights with a mean of 1, and the same total for every class that occurs."""
        total = np.ones(len(self.truth))
        if self.num_classes:
            total = np.bincount(self.truth, self.weights, self.num_classes)[self.truth]
        weights = self.weights / total
        return np.asarray(weights / weights.mean())


@dataclass(frozen=True, kw_only=True, eq=False)
class Checked:
    """The result of a cross-validation."""

    penalty: float
    """The best over all folds, or the usual one with fewer than 3."""
    num_folds: int
    scores: Scores | None
    """None if there is only one block, or fewer than two classes lie in several."""


def fit(samples: Samples, penalty: float) -> Any:
    """Fit a scikit-learn pipeline: standardisation, then logistic regression or, for values, ridge regression."""
    from sklearn.dummy import DummyClassifier
    from sklearn.linear_model import LogisticRegression, Ridge
    from sklearn.pipeline import Pipeline
    from sklearn.preprocessing import StandardScaler

    weights, strength = samples.balanced, penalty * len(samples.truth)
    if not samples.num_classes:
        model: Any = Ridge(alpha=strength)
    elif len(np.unique(samples.truth)) == 1:  # in a fold
        model = DummyClassifier(strategy="prior")
    else:
        model = LogisticRegression(C=1 / strength, max_iter=2000)
    return Pipeline([("scale", StandardScaler()), ("model", model)]).fit(
        samples.vectors, samples.truth, scale__sample_weight=weights, model__sample_weight=weights
    )


def told(model: Any, vectors: NDArray[np.float32], num_classes: int) -> NDArray[np.float32]:
    """Return probabilities (sample class), or values (sample) if there are no classes."""
    if not num_classes:
        return np.asarray(model.predict(vectors), np.float32)
    found = np.zeros((len(vectors), num_classes), np.float32)
    found[:, model.classes_] = model.predict_proba(vectors)
    return found


def num_groups(groups: NDArray[np.int64], classes: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the number of groups in which each class that occurs lies."""
    pairs = np.unique(np.stack([classes, groups]), axis=1)
    return np.unique(pairs[0], return_counts=True)[1]


def check(samples: Samples, seed: int = 0) -> Checked:
    """Score a model on blocks of ground that it was not fitted to, and choose the penalty.

    Every fold is predicted once, by a model that was fitted to the others, with the penalty that was best for the fold
    before. The final penalty is the best over all folds: of log loss by class, or of squared errors. Of equally good
    ones, the largest is taken. Without two classes in several blocks, nothing is scored.
    """
    num_folds = min(NUM_FOLDS, len(np.unique(samples.groups)))
    spread = num_groups(samples.groups, samples.truth) if samples.num_classes else np.array([2, 2])
    if num_folds < 2 or (spread > 1).sum() < 2:
        return Checked(penalty=_USUAL, num_folds=1, scores=None)
    roles = roles_of(fold_numbers(samples.groups, num_folds, seed))
    losses = np.zeros((num_folds, len(PENALTIES)))
    found = np.zeros((len(samples.truth), samples.num_classes or 1), np.float32)
    for turn, role in enumerate(roles):
        penalty = _USUAL
        if num_folds > 2:
            train, chosen_on = samples.where(role == TRAIN), role == VAL
            for number, one in enumerate(PENALTIES):
                losses[turn, number] = _loss(samples, chosen_on, told(fit(train, one), samples.vectors[chosen_on],
                                                                      samples.num_classes))  # fmt: skip
            penalty = PENALTIES[losses[turn].argmin()]
        scored = role == TEST
        answers = told(fit(samples.where(~scored), penalty), samples.vectors[scored], samples.num_classes)
        found[scored] = answers.reshape(len(answers), -1)
    best = PENALTIES[losses.sum(0).argmin()] if num_folds > 2 else _USUAL
    return Checked(penalty=best, num_folds=num_folds, scores=_scores(samples, found))


def _loss(samples: Samples, chosen: NDArray[np.bool_], answers: NDArray[np.float32]) -> float:
    """Return the sum of the weighted losses of some samples."""
    truth, weights = samples.truth[chosen], samples.balanced[chosen]
    if not samples.num_classes:
        return float((weights * (answers - truth) ** 2).sum())
    return float(-(weights * np.log(np.maximum(answers[np.arange(len(truth)), truth], _LEAST))).sum())


def _scores(samples: Samples, found: NDArray[np.float32]) -> Scores:
    """Return the scores, in which every sample counts as a tile."""
    sheet: Any = ClassScores(samples.num_classes) if samples.num_classes else ValueScores()
    outputs = np.log(np.maximum(found, _LEAST)) if samples.num_classes else found[:, 0]
    truth = torch.from_numpy(samples.truth)
    sheet.update(torch.from_numpy(outputs), truth, torch.from_numpy(samples.groups))
    scores: Scores = sheet.compute()
    return scores
