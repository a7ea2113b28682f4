"""The formulas of all figures, of sums over tiles; each stands here once.

With all weights 1 the sums are those of the tiles; with the number of times each was drawn, those of one draw.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

_SAME = 1e-12
"""A deviation below this share of the mean is that of a constant."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Totals:
    """Weighted sums over tiles, float64; axes before the class are draws."""

    support: Tensor
    """(... class), how many are of the class."""
    predicted: Tensor
    """(... class), how many were said to be of the class."""
    right: Tensor
    """(... class), how many are and were said to be."""


@dataclass(frozen=True, kw_only=True, eq=False)
class BinnedTotals(Totals):
    """Sums in bins of confidence, too."""

    bins: Tensor
    """(... 3 bin): number, sum of confidence and number right of what was answered."""


@dataclass(frozen=True, kw_only=True, eq=False)
class ClassTotals(BinnedTotals):
    """Sums for one of several classes."""


@dataclass(frozen=True, kw_only=True, eq=False)
class LabelTotals(BinnedTotals):
    """Sums for any of several labels, of whose bins confidence is the probability of a label and right its presence.

    The ranking is what they cannot tell.
    """

    weights: Tensor
    """(draw tile)"""
    outputs: Tensor
    """(tile label), logits."""
    truth: Tensor
    """(tile label), 0 and 1."""

    @cached_property
    def average_precision(self) -> Tensor:
        """Of each label: mean over its positives of the precision down to their output; NaN without a positive."""
        weights = self.weights.T.contiguous()
        labels = zip(self.outputs.unbind(1), self.truth.unbind(1), strict=True)
        return torch.stack([_average_precision(weights, outputs, truth) for outputs, truth in labels], -1)


@dataclass(frozen=True, eq=False)
class ValueTotals:
    """Sums for values, each (...): of truth less the centre, and of errors, which are prediction less truth."""

    centre: float
    """Near the mean of the truth, so that squares stay small."""
    count: Tensor
    truth: Tensor
    truth_squared: Tensor
    error: Tensor
    error_size: Tensor
    error_squared: Tensor


def ratio(part: Tensor, whole: Tensor) -> Tensor:
    """NaN where there is no whole."""
    return part / whole.where(whole > 0, torch.nan)


def recall(totals: Totals) -> Tensor:
    """Of each class; NaN where it does not occur in truth."""
    return ratio(totals.right, totals.support)


def precision(totals: Totals) -> Tensor:
    """Of each class; NaN where it was never predicted."""
    return ratio(totals.right, totals.predicted)


def f1(totals: Totals) -> Tensor:
    """Of each class; NaN where it occurs neither in truth nor in predictions."""
    return ratio(2 * totals.right, totals.support + totals.predicted)


def iou(totals: Totals) -> Tensor:
    """Intersection over union of each class; NaN where it occurs neither in truth nor in predictions."""
    return ratio(totals.right, totals.support + totals.predicted - totals.right)


def accuracy(totals: ClassTotals) -> Tensor:
    """Share of all that is right."""
    return ratio(totals.right.sum(-1), totals.support.sum(-1))


def f1_micro(totals: Totals) -> Tensor:
    """Of all classes together."""
    return ratio(2 * totals.right.sum(-1), (totals.support + totals.predicted).sum(-1))


def f1_weighted(totals: Totals) -> Tensor:
    """Mean over classes, by support."""
    return ratio((f1(totals).nan_to_num() * totals.support).sum(-1), totals.support.sum(-1))


def kappa(totals: ClassTotals) -> Tensor:
    """Accuracy beyond chance, as a share of what is possible; 1 where all is right, though chance would be, too."""
    total = totals.support.sum(-1)
    chance = ratio((totals.support * totals.predicted).sum(-1), total**2)
    right = accuracy(totals)
    return ratio(right - chance, 1 - chance).where(right < 1, right)


def calibration_error(totals: BinnedTotals) -> Tensor:
    """Mean distance of confidence and accuracy over bins, by what is in them."""
    number, confidence, right = totals.bins.unbind(-2)
    return ratio((confidence - right).abs().sum(-1), number.sum(-1))


def label_accuracy(totals: LabelTotals) -> Tensor:
    """Share of all single labels that is right."""
    mistakes = (totals.support + totals.predicted - 2 * totals.right).sum(-1)
    total = totals.weights.sum(-1) * totals.support.shape[-1]
    return ratio(total - mistakes, total)


def _average_precision(weights: Tensor, outputs: Tensor, truth: Tensor) -> Tensor:
    """(draw) of one label, from weights (tile draw), outputs (tile) and truth (tile)."""
    falling, order = (-outputs).sort()
    last = torch.searchsorted(falling, falling, right=True) - 1  # of those with the same output
    positive = truth[order] > 0
    drawn = weights[order]
    gained = drawn[positive]
    found = gained.cumsum(0)[positive.cumsum(0)[last[positive]] - 1]
    given = drawn.cumsum(0)[last[positive]]
    return ratio((gained * found / given.clamp_min(1)).sum(0), gained.sum(0))


def rmse(totals: ValueTotals) -> Tensor:
    """Root of the mean squared error."""
    return ratio(totals.error_squared, totals.count).sqrt()


def mae(totals: ValueTotals) -> Tensor:
    """Mean size of the error."""
    return ratio(totals.error_size, totals.count)


def bias(totals: ValueTotals) -> Tensor:
    """Mean error."""
    return ratio(totals.error, totals.count)


def r2(totals: ValueTotals) -> Tensor:
    """Share of the variance that is told; NaN where all truth is the same."""
    spread = totals.truth_squared - ratio(totals.truth**2, totals.count)
    constant = totals.count * (_SAME * totals.centre) ** 2
    return 1 - totals.error_squared / spread.where(spread > constant, torch.nan)
