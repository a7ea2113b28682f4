"""The formulas of all scores, from weighted sums over tiles. Each is written only here.

With all weights 1 the sums are those of the tiles; with the number of times each tile was drawn, those of one draw.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

_SAME = 1e-12
"""If the deviation is below this fraction of the mean, values count as constant."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Totals:
    """Weighted sums over tiles, float64. The leading axes are draws."""

    support: Tensor
    """(... class), how often the class is true."""
    predicted: Tensor
    """(... class), how often the class is predicted."""
    right: Tensor
    """(... class), how often the class is predicted rightly."""


@dataclass(frozen=True, kw_only=True, eq=False)
class BinnedTotals(Totals):
    """Sums that also have bins of confidence."""

    bins: Tensor
    """(... 3 bin): number, sum of confidence and number right of the places with an answer."""


@dataclass(frozen=True, kw_only=True, eq=False)
class ClassTotals(BinnedTotals):
    """Sums for one of several classes."""


@dataclass(frozen=True, kw_only=True, eq=False)
class LabelTotals(BinnedTotals):
    """Sums for any of several labels. In the bins, confidence is the probability of a label, and right is its presence.

    Average precision does not follow from these sums, so outputs and truth are kept as well.
    """

    weights: Tensor
    """(draw tile)"""
    outputs: Tensor
    """(tile label), logits."""
    truth: Tensor
    """(tile label), 0 and 1."""

    @cached_property
    def average_precision(self) -> Tensor:
        """Average precision of each label: the mean over its positives of the precision down to their output.

        NaN for a label without a positive.
        """
        labels = zip(self.outputs.unbind(1), self.truth.unbind(1), strict=True)
        return torch.stack([_average_precision(self.weights, outputs, truth) for outputs, truth in labels], -1)


@dataclass(frozen=True, eq=False)
class ValueTotals:
    """Sums for values, each (...): of the truth minus the centre, and of the errors (prediction minus truth)."""

    centre: float
    """A value near the mean of the truth, so that squares stay small."""
    count: Tensor
    truth: Tensor
    truth_squared: Tensor
    error: Tensor
    error_size: Tensor
    error_squared: Tensor


def ratio(part: Tensor, whole: Tensor) -> Tensor:
    """Return `part / whole`, NaN where `whole` is 0."""
    return part / whole.where(whole > 0, torch.nan)


def recall(totals: Totals) -> Tensor:
    """Recall of each class; NaN if it does not occur in the truth."""
    return ratio(totals.right, totals.support)


def precision(totals: Totals) -> Tensor:
    """Precision of each class; NaN if it was never predicted."""
    return ratio(totals.right, totals.predicted)


def f1(totals: Totals) -> Tensor:
    """F1 of each class; NaN if it occurs neither in the truth nor in the predictions."""
    return ratio(2 * totals.right, totals.support + totals.predicted)


def iou(totals: Totals) -> Tensor:
    """Intersection over union of each class; NaN if it occurs neither in the truth nor in the predictions."""
    return ratio(totals.right, totals.support + totals.predicted - totals.right)


def accuracy(totals: ClassTotals) -> Tensor:
    """Fraction of all places that are right."""
    return ratio(totals.right.sum(-1), totals.support.sum(-1))


def f1_micro(totals: Totals) -> Tensor:
    """F1 of all classes together."""
    return ratio(2 * totals.right.sum(-1), (totals.support + totals.predicted).sum(-1))


def f1_weighted(totals: Totals) -> Tensor:
    """Mean F1 over classes, weighted by support."""
    return ratio((f1(totals).nan_to_num() * totals.support).sum(-1), totals.support.sum(-1))


def kappa(totals: ClassTotals) -> Tensor:
    """Accuracy beyond chance, as a fraction of what is possible; 1 if everything is right."""
    total = totals.support.sum(-1)
    chance = ratio((totals.support * totals.predicted).sum(-1), total**2)
    right = accuracy(totals)
    return ratio(right - chance, 1 - chance).where(right < 1, right)


def calibration_error(totals: BinnedTotals) -> Tensor:
    """Mean distance between confidence and accuracy over bins, weighted by their number of places."""
    number, confidence, right = totals.bins.unbind(-2)
    return ratio((confidence - right).abs().sum(-1), number.sum(-1))


def label_accuracy(totals: LabelTotals) -> Tensor:
    """Fraction of all single labels that are right."""
    mistakes = (totals.support + totals.predicted - 2 * totals.right).sum(-1)
    total = totals.weights.sum(-1) * totals.support.shape[-1]
    return ratio(total - mistakes, total)


def _average_precision(weights: Tensor, outputs: Tensor, truth: Tensor) -> Tensor:
    """Return (draw) for one label, from weights (draw tile), outputs (tile) and truth (tile)."""
    falling, order = (-outputs).sort()
    positive = (truth[order] > 0).nonzero()[:, 0]
    last = torch.searchsorted(falling, falling[positive], right=True) - 1  # of those with the same output
    drawn = weights.index_select(1, order)
    gained = drawn.index_select(1, positive)
    found = gained.cumsum(1).index_select(1, torch.searchsorted(positive, last, right=True) - 1)
    given = drawn.cumsum(1).index_select(1, last)
    return ratio((gained * found / given.clamp_min(1)).sum(1), gained.sum(1))


def rmse(totals: ValueTotals) -> Tensor:
    """Root of the mean squared error."""
    return ratio(totals.error_squared, totals.count).sqrt()


def mae(totals: ValueTotals) -> Tensor:
    """Mean absolute error."""
    return ratio(totals.error_size, totals.count)


def bias(totals: ValueTotals) -> Tensor:
    """Mean error."""
    return ratio(totals.error, totals.count)


def r2(totals: ValueTotals) -> Tensor:
    """Fraction of the variance that is explained; NaN if all truth is the same."""
    spread = totals.truth_squared - ratio(totals.truth**2, totals.count)
    constant = totals.count * (_SAME * totals.centre) ** 2
    return 1 - totals.error_squared / spread.where(spread > constant, torch.nan)
