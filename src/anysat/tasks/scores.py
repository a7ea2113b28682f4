"""Scores of one model on one set of tiles: figures, and intervals that say how sure they are.

Every figure is a function of weighted sums over tiles (`tasks.figures`). With all weights 1 that is the figure; with
the number of times that each tile was drawn it is one draw of the bootstrap.
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
"""Of confidence, equally wide, from 0 to 1."""


# --- what is known of each tile


Interval = tuple[float, float]
Formulas = Mapping[str, Callable[[Any], Tensor]]
_PER_CLASS: Formulas = {"f1": f1, "precision": precision, "recall": recall}
_F1: Formulas = {
    "f1_macro": lambda totals: f1(totals).nanmean(-1), "f1_micro": f1_micro, "f1_weighted": f1_weighted
}  # fmt: skip


class Counts(Protocol):
    """What is known of each tile, float64 on the CPU, and which figures follow."""

    formulas: ClassVar[Formulas]
    """Of figures: (...) from totals."""
    per_class: ClassVar[Formulas]
    """Of figures of each class: (... class) from totals."""

    @property
    def truth(self) -> Tensor:
        """(tile any), the same for every model on the same tiles."""

    @property
    def places(self) -> Tensor:
        """(tile) how many of its places have a label."""

    def totals(self, weights: Tensor) -> Any:
        """Sums weighted by (draw tile)."""


@dataclass(frozen=True, kw_only=True, eq=False)
class ClassCounts:
    """One of several classes at every labelled place."""

    margins: Tensor
    """(tile 3 class): support, predicted, right."""
    bins: Tensor
    """(tile 3 bin), see `BinnedTotals`."""

    formulas: ClassVar[Formulas] = {
        "accuracy": accuracy, "balanced_accuracy": lambda totals: recall(totals).nanmean(-1), **_F1,
        "miou": lambda totals: iou(totals).nanmean(-1), "kappa": kappa, "calibration_error": calibration_error,
    }  # fmt: skip
    per_class: ClassVar[Formulas] = {"iou": iou, **_PER_CLASS}

    @property
    def truth(self) -> Tensor:
        """Support."""
        return self.margins[:, 0]

    @property
    def places(self) -> Tensor:
        """(tile) how many of its places have a label."""
        return self.margins[:, 0].sum(-1)

    def totals(self, weights: Tensor) -> ClassTotals:
        """Sums weighted by (draw tile)."""
        support, predicted, right = _weighted(weights, self.margins).unbind(1)
        return ClassTotals(support=support, predicted=predicted, right=right, bins=_weighted(weights, self.bins))


@dataclass(frozen=True, kw_only=True, eq=False)
class LabelCounts:
    """Any of several labels of a tile."""

    margins: Tensor
    """(tile 3 label), 0 and 1: truth, predicted, both."""
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
        """Support."""
        return self.margins[:, 0]

    @property
    def places(self) -> Tensor:
        """(tile) how many of its places have a label."""
        return torch.ones(len(self.margins), dtype=torch.float64)

    def totals(self, weights: Tensor) -> LabelTotals:
        """Sums weighted by (draw tile)."""
        support, predicted, right = _weighted(weights, self.margins).unbind(1)
        return LabelTotals(support=support, predicted=predicted, right=right, bins=_weighted(weights, self.bins),
                           weights=weights, outputs=self.outputs, truth=self.truth)  # fmt: skip


@dataclass(frozen=True, kw_only=True, eq=False)
class ValueCounts:
    """Values at every labelled place."""

    sums: Tensor
    """(tile 6), see `ValueTotals`."""
    centre: float

    formulas: ClassVar[Formulas] = {"rmse": rmse, "mae": mae, "bias": bias, "r2": r2}
    per_class: ClassVar[Formulas] = {}

    @property
    def truth(self) -> Tensor:
        """Number and mean."""
        count, truth = self.sums[:, :2].unbind(1)
        return torch.stack([count, ratio(truth, count).nan_to_num() + self.centre], 1)

    @property
    def places(self) -> Tensor:
        """(tile) how many of its places have a label."""
        return self.sums[:, 0]

    def totals(self, weights: Tensor) -> ValueTotals:
        """Sums weighted by (draw tile)."""
        return ValueTotals(self.centre, *_weighted(weights, self.sums).unbind(-1))


def _weighted(weights: Tensor, table: Tensor) -> Tensor:
    """(draw any) of weights (draw tile) and a table (tile any), which may have more axes."""
    return (weights @ table.flatten(1)).view(len(weights), *table.shape[1:])


# --- scores


@dataclass(frozen=True, kw_only=True, eq=False)
class Scores:
    """Figures of one model on one set of tiles. NaN where a figure is undefined."""

    figures: dict[str, float]
    per_class: dict[str, list[float]]
    """Figures of each class, in the order of the classes; the keys end with `support`, how often it occurs."""
    confusion: NDArray[np.int64] | None
    """(class class+1), truth by prediction; the last column is what got no answer. None for labels and values."""
    num_tiles: int
    num_samples: int
    """Labelled places; tiles for labels."""
    num_unanswered: int
    """Of `num_samples` those without an answer, because nothing was seen there."""
    counts: Counts = field(repr=False)
    groups: Tensor | None = field(repr=False, default=None)
    """(tile), such as the spatial block each is in."""

    @classmethod
    def of(
        cls, counts: Counts, *, num_samples: int, num_unanswered: int, groups: Tensor | None = None,
        confusion: Tensor | None = None,
    ) -> Scores:  # fmt: skip
        """From what is known of each tile."""
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
        """Tiles of which a place has a label: no others are scored."""
        return int((self.counts.places > 0).sum())

    def interval(
        self, name: str, level: float = 0.95, resamples: int = 2000, seed: int = 0, groups: ArrayLike | None = None
    ) -> tuple[float, float]:
        """Bounds between which a figure lies, by the percentile bootstrap over tiles or groups of tiles.

        Draws in which the figure is undefined are left out. Both are NaN for fewer than two tiles or groups.

        Args:
            name: one of `figures`.
            level: how often such an interval holds the figure.
            resamples: number of draws.
            seed: of the draws.
            groups: (tile), drawn as a whole; those given to `update` if None, and else every tile by itself.

        Raises:
            UnknownNameError: there is no such figure.
            InputError: a level that is no share, no draw, or not one group for each tile.
        """
        self._check(name)
        found = self._bounds(lambda weights: {name: self._figure(name, weights)}, level, resamples, seed, groups)
        return _pair(found[name])

    def intervals(
        self, level: float = 0.95, resamples: int = 2000, seed: int = 0
    ) -> tuple[dict[str, Interval], dict[str, list[Interval]]]:
        """Bounds as of `interval`, on the same draws, of all figures, and of those of each class in their order."""

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
        """Bounds of this figure less the other's; both are taken on the same draws of the same tiles.

        Raises:
            UnknownNameError: there is no such figure.
            InputError: not the same tiles in the same order; or see `interval`.
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
        """Plain values for JSON; None for NaN."""
        return {
            "figures": {name: _plain(value) for name, value in self.figures.items()},
            "per_class": {name: [_plain(value) for value in values] for name, values in self.per_class.items()},
            "confusion": None if self.confusion is None else self.confusion.tolist(),
            "num_tiles": self.num_tiles,
            "num_labelled_tiles": self.num_labelled_tiles,
            "num_samples": self.num_samples,
            "num_unanswered": self.num_unanswered,
        }

    def _figure(self, name: str, weights: Tensor) -> Tensor:
        return self.counts.formulas[name](self.counts.totals(weights))

    def _check(self, name: str) -> None:
        if name not in self.figures:
            raise UnknownNameError("figure", name, self.figures)

    def _bounds(
        self, measure: Callable[[Tensor], Mapping[str, Tensor]], level: float, resamples: int, seed: int,
        groups: ArrayLike | None,
    ) -> dict[str, Tensor]:  # fmt: skip
        """Lower and upper (2) or (2 class) of everything that is measured in each draw."""
        if not 0 < level < 1 or resamples < 1:
            raise InputError("interval", "a level between 0 and 1 and at least one draw", (level, resamples))
        if groups is None:
            groups = np.arange(self.num_tiles) if self.groups is None else self.groups.numpy()
        if np.shape(groups) != (self.num_tiles,):
            raise InputError("groups", f"one for each of {self.num_tiles} tiles", f"shape {np.shape(groups)}")
        found, places = np.unique(np.asarray(groups), return_inverse=True)
        if len(found) < 2:
            once = measure(torch.ones(1, self.num_tiles, dtype=torch.float64))
            return {name: torch.full((2, *one.shape[1:]), torch.nan) for name, one in once.items()}
        draws = [measure(weights) for weights in _draws(torch.from_numpy(places), len(found), resamples, seed)]
        edges = torch.tensor([(1 - level) / 2, (1 + level) / 2], dtype=torch.float64)
        return {name: torch.cat([one[name] for one in draws]).nanquantile(edges, dim=0) for name in draws[0]}


def _pair(bounds: Tensor) -> Interval:
    low, high = bounds.tolist()
    return low, high


def _draws(places: Tensor, num_groups: int, resamples: int, seed: int) -> Iterator[Tensor]:
    """Weights (draw tile), a few draws at once: as many groups as there are, drawn with replacement."""
    generator = torch.Generator().manual_seed(seed)
    for part in slices(resamples, 2 * len(places)):
        drawn = torch.randint(num_groups, (part.stop - part.start, num_groups), generator=generator)
        times = torch.zeros(drawn.shape, dtype=torch.float64)
        times.scatter_add_(1, drawn, torch.ones((), dtype=torch.float64).expand(drawn.shape))
        yield times[:, places]


def _plain(value: float) -> float | None:
    return None if math.isnan(value) else value
