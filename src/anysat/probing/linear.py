"""Linear probe in closed form: ridge regression onto the classes, every class with the same weight."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from anysat.errors import InputError
from anysat.probing.samples import checked, distinct

PENALTIES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
"""From which the penalty is chosen: in units of the standardised features' variance, whatever the number of samples."""
_FLAT = 1e-6
"""A dimension whose deviation is below this share of its size is constant."""


@dataclass(frozen=True, kw_only=True, eq=False)
class LinearProbe:
    """Weights from features to classes; float64, on the CPU."""

    weight: Tensor
    """(dim class)"""
    bias: Tensor
    """(class)"""
    classes: Tensor
    """(class), whole numbers, rising."""
    penalty: float
    """That was used."""

    def predict(self, features: Tensor) -> Tensor:
        """Classes (sample) of features (sample dim).

        Raises:
            InputError: other dimensions than in training, or values that are not finite.
        """
        values = checked("features", features).cpu().double()
        if values.shape[1] != len(self.weight):
            raise InputError("features", f"{len(self.weight)} dimensions as in training", values.shape[1])
        return self.classes[(values @ self.weight + self.bias).argmax(1)]


def fit_linear(
    features: Tensor,
    labels: Tensor,
    *,
    penalties: Sequence[float] = PENALTIES,
    groups: Tensor | None = None,
    validation: tuple[Tensor, Tensor] | None = None,
) -> LinearProbe:
    """Probe of samples (sample dim) with classes (sample), at the penalty with the best balanced score.

    Features are standardised, the bias is not penalised, and every class has the same weight in all. Of several
    penalties the best one on `validation` is taken; without it, the best one when every group in turn is left out
    (exactly, from one decomposition; classes keep the weights they have in all samples). Of equals, the largest.

    Args:
        features: vectors.
        labels: whole numbers.
        penalties: of the squared weights; the mean squared error over classes is 1 for a probe that says nothing.
        groups: (sample), such as the tile a patch is of; each sample is one when not given.
        validation: features and labels.

    Raises:
        InputError: lengths that differ, fewer than two classes, or values that are not finite.
    """
    values = checked("features", features, fewest=2).cpu().double()
    classes, places = _classes(labels.cpu(), len(values))
    if not penalties or any(not penalty > 0 for penalty in penalties):
        raise InputError("penalties", "at least one, each above 0", list(penalties))
    system = _System.of(values, places, len(classes))
    probes = {penalty: _probe(system, classes, penalty) for penalty in sorted(penalties, reverse=True)}
    if len(probes) == 1:
        return next(iter(probes.values()))
    if validation is not None:
        unseen, truth = validation
        scores = {penalty: balanced_score(probe.predict(unseen), truth) for penalty, probe in probes.items()}
    else:
        own = torch.arange(len(values)) if groups is None else groups.cpu()
        if own.shape != (len(values),) or len(distinct(own)[0]) < 2:
            raise InputError("groups", f"one for each of {len(values)} samples and at least 2", tuple(own.shape))
        scores = {penalty: balanced_score(_left_out(system, penalty, own).argmax(1), places) for penalty in probes}
    return probes[max(scores, key=lambda penalty: scores[penalty])]


def cross_told(
    features: Tensor, labels: Tensor, groups: Tensor, *, num_folds: int = 4, penalties: Sequence[float] = PENALTIES
) -> Tensor:
    """Class (sample) of every sample, told by a probe of the other folds, whose penalty these chose among themselves.

    Groups are dealt out to the folds in turn; see `fit_linear`. Where the others hold one class alone, it is told.

    Args:
        features: vectors (sample dim).
        labels: whole numbers (sample).
        groups: (sample), such as the tile a patch is of; no group lies in two folds.
        num_folds: at most; no more than there are groups.
        penalties: of the squared weights.

    Raises:
        InputError: as `fit_linear`; fewer than three groups.
    """
    found, places = distinct(groups.cpu())
    if len(places) != len(features) or len(found) < 3:
        raise InputError("groups", f"one for each of {len(features)} samples and at least 3", tuple(groups.shape))
    folds = places % min(num_folds, len(found))
    told = torch.zeros(len(features), dtype=torch.int64)
    for number in range(int(folds.max()) + 1):
        rest = folds != number
        if len(classes := distinct(labels[rest].cpu())[0]) == 1:
            told[~rest] = int(classes)
            continue
        probe = fit_linear(features[rest], labels[rest], groups=places[rest], penalties=penalties)
        told[~rest] = probe.predict(features[~rest])
    return told


def balanced_score(found: Tensor, truth: Tensor) -> float:
    """Mean over the classes in `truth` of the share found, rescaled: guessing is 0, no mistake is 1.

    Raises:
        InputError: lengths that differ, or fewer than two classes.
    """
    classes, places = _classes(truth.cpu(), len(found))
    right = (found.cpu() == classes[places]).double()
    share = torch.zeros(len(classes), dtype=torch.float64).index_add(0, places, right) / places.bincount()
    chance = 1 / len(classes)
    return (float(share.mean()) - chance) / (1 - chance)


def _classes(labels: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The classes that occur, and the place of each label among them."""
    if labels.is_floating_point() or labels.shape != (count,):
        raise InputError("labels", f"{count} whole numbers", f"{labels.dtype} of shape {tuple(labels.shape)}")
    classes, places = distinct(labels)
    if len(classes) < 2:
        raise InputError("labels", "at least 2 classes", f"only {classes.tolist()}")
    return classes, places


@dataclass(frozen=True, kw_only=True, eq=False)
class _System:
    """The weighted least squares of a probe, decomposed once for every penalty."""

    inputs: Tensor
    """(sample dim), standardised: weighted mean 0, deviation 1."""
    share: Tensor
    """(sample), the samples' weights; they add up to 1."""
    wanted: Tensor
    """(sample class), -1 or 1."""
    mean: Tensor
    deviation: Tensor
    variances: Tensor
    """(dim) of the weighted inputs along `axes`."""
    axes: Tensor
    """(dim axis)"""

    @classmethod
    def of(cls, values: Tensor, places: Tensor, num_classes: int) -> _System:
        share = 1 / (num_classes * places.bincount()[places].double())
        mean = share @ values
        deviation = (share @ (values - mean) ** 2).sqrt()
        floor = _FLAT * (share @ values**2).sqrt()
        deviation = deviation.where(deviation > floor, torch.inf)
        inputs = (values - mean) / deviation
        variances, axes = torch.linalg.eigh((inputs.T * share) @ inputs)
        wanted = 2 * torch.nn.functional.one_hot(places, num_classes).double() - 1
        return cls(
            inputs=inputs, share=share, wanted=wanted, mean=mean, deviation=deviation,
            variances=variances.clamp_min(0), axes=axes,
        )  # fmt: skip

    def solved(self, penalty: float) -> tuple[Tensor, Tensor]:
        """Weights (dim class) of the standardised inputs, and bias (class)."""
        bias = self.share @ self.wanted
        right = (self.inputs.T * self.share) @ (self.wanted - bias)
        return self.axes @ ((self.axes.T @ right) / (self.variances + penalty)[:, None]), bias


def _probe(system: _System, classes: Tensor, penalty: float) -> LinearProbe:
    weight, bias = system.solved(penalty)
    weight = weight / system.deviation[:, None]
    return LinearProbe(weight=weight, bias=bias - system.mean @ weight, classes=classes, penalty=penalty)


def _left_out(system: _System, penalty: float, groups: Tensor) -> Tensor:
    """What each sample would be told (sample class) by the probe without its group.

    With H the matrix that turns wanted values into told ones, the error without a group is (I - H_group)^-1 times the
    error with it.
    """
    weight, bias = system.solved(penalty)
    told = system.inputs @ weight + bias
    # The bias is a column of ones, which the weighted inputs are orthogonal to.
    spread = torch.cat([system.inputs @ (system.axes / (system.variances + penalty).sqrt()),
                        torch.ones(len(told), 1, dtype=told.dtype)], dim=1)  # fmt: skip
    _, places = distinct(groups)
    order, counts = places.argsort(stable=True), places.bincount()
    for rows in torch.split(order, counts.tolist()):
        hat = spread[rows] @ spread[rows].T * system.share[rows]
        error = torch.linalg.solve(torch.eye(len(rows), dtype=hat.dtype) - hat, system.wanted[rows] - told[rows])
        told[rows] = system.wanted[rows] - error
    return told
