"""Scores of one model on one set of tiles, with bootstrap intervals.

Every score is a function of weighted sums over tiles (`tasks.figures`). With all weights 1, this is the score itself;
with the number of times that each tile was drawn as weights, it is one draw of the bootstrap.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from anysat.errors import InputError, UnknownNameError
from anysat.probing.samples import slices
from anysat.tasks.figures import (
    ClassTotals,
    LabelTotals,
    ValueTotals,
    accuracy,
    bias,
    calibration_error,
    f1,
    f1_micro,
    f1_weighted,
    iou,
    kappa,
    label_accuracy,
    mae,
    precision,
    r2,
    ratio,
    recall,
    rmse,
)

NUM_BINS = 15
"""Number of bins of confidence, equally wide, from 0 to 1."""


# --- counts of each tile


Interval = tuple[float, float]
Formulas = Mapping[str, Callable[[Any], Tensor]]
_PER_CLASS: Formulas = {"f1": f1, "precision": precision, "recall": recall}
_F1: Formulas = {
    "f1_macro": lambda totals: f1(totals).nanmean(-1), "f1_micro": f1_micro, "f1_weighted": f1_weighted
}  # fmt: skip


class Counts(Protocol):
    """Counts of each tile, in float64 on the CPU, and the scores that follow from them."""

    formulas: ClassVar[Formulas]
    """Formulas of the scores, (...) from totals."""
    per_class: ClassVar[Formulas]
    """Formulas of the scores of each class, (... class) from totals."""

    @property
    def truth(self) -> Tensor:
        """(tile any), the same for every model on the same tiles."""

    @property
    def places(self) -> Tensor:
        """(tile), the number of places with a label in each tile."""

    def totals(self, weights: Tensor) -> Any:
        """Return the sums over tiles, weighted by (draw tile)."""


@dataclass(frozen=True, kw_only=True, eq=False)
class ClassCounts:
    """Counts for one of several classes at every labelled place."""

    margins: Tensor
    """(tile 3 class): how often the class is true, is predicted, and is predicted rightly."""
    bins: Tensor
    """(tile 3 bin), see `BinnedTotals`."""

    formulas: ClassVar[Formulas] = {
        "accuracy": accuracy, "balanced_accuracy": lambda totals: recall(totals).nanmean(-1), **_F1,
        "miou": lambda totals: iou(totals).nanmean(-1), "kappa": kappa, "calibration_error": calibration_error,
    }  # fmt: skip
    per_class: ClassVar[Formulas] = {"iou": iou, **_PER_CLASS}

    @property
    def truth(self) -> Tensor:
        """(tile class) how often each class or label is true."""
        return self.margins[:, 0]

    @property
    def places(self) -> Tensor:
        """(tile), the number of places with a label in each tile."""
        return self.margins[:, 0].sum(-1)

    def totals(self, weights: Tensor) -> ClassTotals:
        """Return the sums over tiles, weighted by (draw tile)."""
        support, predicted, right = _weighted(weights, self.margins).unbind(1)
        return ClassTotals(support=support, predicted=predicted, right=right, bins=_weighted(weights, self.bins))


@dataclass(frozen=True, kw_only=True, eq=False)
class LabelCounts:
    """Counts for any of several labels of a tile."""

    margins: Tensor
    """(tile 3 label), 0 or 1: the truth, the prediction, and both."""
    bins: Tensor
    """(tile 3 bin), see `LabelTotals`."""
    outputs: Tensor
    """(tile label), logits."""

    formulas: ClassVar[Formulas] = {
        "accuracy": label_accuracy, **_F1, "map_macro": lambda totals: totals.average_precision.nanmean(-1),
        "calibration_error": calibration_error,
    }  # fmt: skip
    per_class: ClassVar[Formulas] = {**_PER_CLASS, "average_precision": lambda totals: totals.average_precision}

    @property
    def truth(self) -> Tensor:
        """(tile class) how often each class or label is true."""
        return self.margins[:, 0]

    @property
    def places(self) -> Tensor:
        """(tile), the number of places with a label in each tile."""
        return torch.ones(len(self.margins), dtype=torch.float64)

    def totals(self, weights: Tensor) -> LabelTotals:
        """Return the sums over tiles, weighted by (draw tile)."""
        support, predicted, right = _weighted(weights, self.margins).unbind(1)
        return LabelTotals(support=support, predicted=predicted, right=right, bins=_weighted(weights, self.bins),
                           weights=weights, outputs=self.outputs, truth=self.truth)  # fmt: skip


@dataclass(frozen=True, kw_only=True, eq=False)
class ValueCounts:
    """Sums for values at every labelled place."""

    sums: Tensor
    """(tile 6), see `ValueTotals`."""
    centre: float
    """Value that is subtracted from the truth before it is summed."""

    formulas: ClassVar[Formulas] = {"rmse": rmse, "mae": mae, "bias": bias, "r2": r2}
    per_class: ClassVar[Formulas] = {}

    @property
    def truth(self) -> Tensor:
        """(tile 2), number and mean of the truth."""
        count, truth = self.sums[:, :2].unbind(1)
        return torch.stack([count, ratio(truth, count).nan_to_num() + self.centre], 1)

    @property
    def places(self) -> Tensor:
        """(tile), the number of places with a label in each tile."""
        return self.sums[:, 0]

    def totals(self, weights: Tensor) -> ValueTotals:
        """Return the sums over tiles, weighted by (draw tile)."""
        return ValueTotals(self.centre, *_weighted(weights, self.sums).unbind(-1))


def _weighted(weights: Tensor, table: Tensor) -> Tensor:
    """Return the sums (draw any) of a table (tile any), weighted by (draw tile). The table may have more axes."""
    return (weights @ table.flatten(1)).view(len(weights), *table.shape[1:])


LIMITS: dict[str, Interval] = {
    **dict.fromkeys((*ClassCounts.formulas, *LabelCounts.formulas), (0.0, 1.0)), "kappa": (-1.0, 1.0),
    "rmse": (0.0, math.inf), "mae": (0.0, math.inf), "r2": (-math.inf, 1.0),
}  # fmt: skip
"""Least and greatest possible value of scores by name; one that is not listed has no limits."""


# --- scores


@dataclass(frozen=True, kw_only=True, eq=False)
class Scores:
    """Scores of one model on one set of tiles. A score that is undefined is NaN."""

    figures: dict[str, float]
    """Scores by name."""
    per_class: dict[str, list[float]]
    """Scores of each class by name, in the order of the classes. The last is `support`, how often each class occurs."""
    confusion: NDArray[np.int64] | None
    """(class class+1), truth by prediction. The last column counts places without an answer. None for labels and
    values."""
    num_tiles: int
    """Number of tiles."""
    num_samples: int
    """Number of labelled places; for labels, of tiles."""
    num_unanswered: int
    """Number of these that have no answer, because nothing was observed there."""
    counts: Counts = field(repr=False)
    """Counts of each tile, from which intervals are computed."""
    groups: Tensor | None = field(repr=False, default=None)
    """(tile), the group of each tile, such as its spatial block."""

    @classmethod
    def of(
        cls, counts: Counts, *, num_samples: int, num_unanswered: int, groups: Tensor | None = None,
        confusion: Tensor | None = None,
    ) -> Scores:  # fmt: skip
        """Compute the scores from the counts of each tile."""
        num_tiles = len(counts.truth)
        totals = counts.totals(torch.ones(1, num_tiles, dtype=torch.float64))
        per_class = {name: formula(totals)[0].tolist() for name, formula in counts.per_class.items()}
        if counts.per_class:
            per_class["support"] = totals.support[0].tolist()
        return cls(
            figures={name: float(formula(totals)) for name, formula in counts.formulas.items()}, per_class=per_class,
            confusion=None if confusion is None else confusion.cpu().numpy(),
            num_tiles=num_tiles, num_samples=num_samples, num_unanswered=num_unanswered, counts=counts, groups=groups,
        )  # fmt: skip

    @property
    def num_labelled_tiles(self) -> int:
        """Number of tiles with a labelled place. Only these are scored."""
        return int((self.counts.places > 0).sum())

    def interval(
        self, name: str, level: float = 0.95, resamples: int = 2000, seed: int = 0, groups: ArrayLike | None = None
    ) -> tuple[float, float]:
        """Compute a confidence interval of a score, by the percentile bootstrap over tiles or groups of tiles.

        Only tiles with a labelled place are drawn. Draws in which the score is undefined are left out.

        Args:
            name: One of `figures`.
            level: Confidence level, between 0 and 1.
            resamples: Number of draws.
            seed: Seed of the draws.
            groups: (tile) group numbers; the tiles of a group are drawn together. None uses the groups given to
                `update`, or draws every tile by itself if there are none.

        Returns:
            Lower and upper bound. Both are NaN for fewer than two tiles, or groups with a tile, that have a label.

        Raises:
            UnknownNameError: There is no such score.
            InputError: The level is not between 0 and 1, there are no draws, or `groups` has not one number per tile.
        """
        self._check(name)
        found = self._bounds(lambda weights: {name: self._figure(name, weights)}, level, resamples, seed, groups)
        return _pair(found[name])

    def intervals(
        self, level: float = 0.95, resamples: int = 2000, seed: int = 0
    ) -> tuple[dict[str, Interval], dict[str, list[Interval]]]:
        """Compute the intervals of all scores, and of those of each class, on the same draws as `interval`."""

        def measure(weights: Tensor) -> dict[str, Tensor]:
            totals = self.counts.totals(weights)
            return {
                name: formula(totals) for name, formula in {**self.counts.formulas, **self.counts.per_class}.items()
            }

        found = self._bounds(measure, level, resamples, seed, None)
        classes = {name: [_pair(one) for one in found[name].T] for name in self.counts.per_class}
        return {name: _pair(found[name]) for name in self.counts.formulas}, classes

    def difference(
        self, other: Scores, name: str, level: float = 0.95, resamples: int = 2000, seed: int = 0,
        groups: ArrayLike | None = None,
    ) -> tuple[float, float]:  # fmt: skip
        """Compute a confidence interval of a score of this model minus that of another, on the same draws of tiles.

        Arguments as of `interval`.

        Raises:
            UnknownNameError: There is no such score.
            InputError: The tiles are not the same in the same order; or as `interval`.
        """
        if self.num_tiles != other.num_tiles:
            raise InputError("difference", f"the same {self.num_tiles} tiles in the same order",
                             f"{other.num_tiles} tiles")  # fmt: skip
        ours, theirs = self.counts.truth, other.counts.truth
        if (
            type(self.counts) is not type(other.counts)
            or ours.shape != theirs.shape
            or not torch.allclose(ours, theirs, rtol=1e-6)
        ):
            raise InputError("difference", "the same tiles in the same order", "tiles with another truth",
                             "score both models on the same split, with the same number of ranks")  # fmt: skip
        self._check(name)
        found = self._bounds(
            lambda weights: {name: self._figure(name, weights) - other._figure(name, weights)},
            level, resamples, seed, groups,
        )  # fmt: skip
        return _pair(found[name])

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON, with None for NaN."""
        return {
            "figures": {name: _plain(value) for name, value in self.figures.items()},
            "per_class": {name: [_plain(value) for value in values] for name, values in self.per_class.items()},
            "confusion": None if self.confusion is None else self.confusion.tolist(),
            "num_tiles": self.num_tiles,
            "num_labelled_tiles": self.num_labelled_tiles,
            "num_samples": self.num_samples,
            "num_unanswered": self.num_unanswered,
        }

    @property
    def num_groups(self) -> int:
        """Number of tiles with a labelled place, or of groups with such a tile, that intervals are over."""
        groups = torch.arange(self.num_tiles) if self.groups is None else self.groups
        return len(np.unique(groups[self.counts.places > 0].numpy()))

    def _figure(self, name: str, weights: Tensor) -> Tensor:
        return self.counts.formulas[name](self.counts.totals(weights))

    def _check(self, name: str) -> None:
        if name not in self.figures:
            raise UnknownNameError("figure", name, self.figures)

    def _bounds(
        self, measure: Callable[[Tensor], Mapping[str, Tensor]], level: float, resamples: int, seed: int,
        groups: ArrayLike | None,
    ) -> dict[str, Tensor]:  # fmt: skip
        """Return the lower and upper bounds, (2) or (2 class), of everything that `measure` returns for a draw."""
        if not 0 < level < 1 or resamples < 1:
            raise InputError("interval", "a level between 0 and 1 and at least one draw", (level, resamples))
        if groups is None:
            groups = np.arange(self.num_tiles) if self.groups is None else self.groups.numpy()
        if np.shape(groups) != (self.num_tiles,):
            raise InputError("groups", f"one for each of {self.num_tiles} tiles", f"shape {np.shape(groups)}")
        is_labelled = self.counts.places > 0
        found, places = np.unique(np.asarray(groups)[is_labelled.numpy()], return_inverse=True)
        if len(found) < 2:
            once = measure(torch.ones(1, self.num_tiles, dtype=torch.float64))
            return {name: torch.full((2, *one.shape[1:]), torch.nan) for name, one in once.items()}
        draws = []
        for drawn in _draws(torch.from_numpy(places), len(found), resamples, seed):
            weights = drawn.new_zeros(len(drawn), self.num_tiles)
            weights[:, is_labelled] = drawn
            draws.append(measure(weights))
        edges = torch.tensor([(1 - level) / 2, (1 + level) / 2], dtype=torch.float64)
        return {name: torch.cat([one[name] for one in draws]).nanquantile(edges, dim=0) for name in draws[0]}


def _pair(bounds: Tensor) -> Interval:
    low, high = bounds.tolist()
    return low, high


def _draws(places: Tensor, num_groups: int, resamples: int, seed: int) -> Iterator[Tensor]:
    """Yield weights (draw tile) of some draws at a time. Each draws as many groups as there are, with replacement.

    Args:
        places: (tile), the group of each tile that may be drawn.
        num_groups: Number of groups.
        resamples: Number of draws.
        seed: Seed of the draws.
    """
    generator = torch.Generator().manual_seed(seed)
    for part in slices(resamples, 2 * len(places)):
        drawn = torch.randint(num_groups, (part.stop - part.start, num_groups), generator=generator)
        times = torch.zeros(drawn.shape, dtype=torch.float64)
        times.scatter_add_(1, drawn, torch.ones((), dtype=torch.float64).expand(drawn.shape))
        yield times[:, places]


def _plain(value: float) -> float | None:
    return None if math.isnan(value) else value
