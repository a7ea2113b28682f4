"""A linear probe in closed form: ridge regression onto the classes, with the same weight for every class."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from anysat.errors import InputError
from anysat.probing.samples import checked, distinct

PENALTIES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
"""Penalties to choose from, in units of the variance of the standardised features, whatever the number of samples."""
FOLDS = 4
"""Number of folds of a cross-validation."""
_FLAT = 1e-6
"""A dimension counts as constant if its standard deviation is below this fraction of its size."""


@dataclass(frozen=True, kw_only=True, eq=False)
class LinearProbe:
    """A fitted linear probe, in float64 on the CPU. Create it with `fit_linear`."""

    weight: Tensor
    """(dim class)"""
    bias: Tensor
    """(class)"""
    classes: Tensor
    """(class), the class numbers in ascending order."""
    penalty: float
    """The penalty that was chosen."""

    def predict(self, features: Tensor) -> Tensor:
        """Predict the classes (sample) of features (sample dim).

        Raises:
            InputError: The dimensions are not those of the training, or values are not finite.
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
    """Fit a linear probe, and choose the penalty with the best balanced score.

    Features are standardised, the bias is not penalised, and every class has the same total weight. Penalties are
    compared on `validation`. Without it, they are compared by leaving out every group in turn (computed exactly from
    one decomposition; classes keep the weights they have in all samples). Of equally good penalties, the largest is
    chosen.

    Args:
        features: (sample dim) vectors.
        labels: (sample) class numbers.
        penalties: Penalties of the squared weights to choose from. For scale: the mean squared error over classes is 1
            for a probe that predicts nothing.
        groups: (sample) group numbers, such as the tile of each patch. None makes each sample its own group.
        validation: Features and labels to compare penalties on.

    Raises:
        InputError: The lengths differ, there are fewer than two classes, or values are not finite.
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


def cross_told(features: Tensor, labels: Tensor, groups: Tensor, *, penalties: Sequence[float] = PENALTIES) -> Tensor:
    """Predict the class of every sample by cross-validation, with a probe that was fitted to the other folds.

    There are `FOLDS` folds, but never more than groups. The penalty is chosen within the other folds, see `fit_linear`.
    If they have only one class, it is predicted.

    Args:
        features: (sample dim) vectors.
        labels: (sample) class numbers.
        groups: (sample) group numbers, such as the tile of each patch. Groups are assigned to the folds in turn, and no
            group lies in two folds.
        penalties: Penalties to choose from.

    Returns:
        (sample), the predicted class numbers.

    Raises:
        InputError: As `fit_linear`, or there are fewer than three groups.
    """
    found, places = distinct(groups.cpu())
    if len(places) != len(features) or len(found) < 3:
        raise InputError("groups", f"one for each of {len(features)} samples and at least 3", tuple(groups.shape))
    folds = places % min(FOLDS, len(found))
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
    """Compute the mean over the classes in `truth` of the fraction found, rescaled so that guessing gives 0.

    Without mistakes the score is 1.

    Raises:
        InputError: The lengths differ, or there are fewer than two classes.
    """
    classes, places = _classes(truth.cpu(), len(found))
    right = (found.cpu() == classes[places]).double()
    share = torch.zeros(len(classes), dtype=torch.float64).index_add(0, places, right) / places.bincount()
    chance = 1 / len(classes)
    return (float(share.mean()) - chance) / (1 - chance)


def _classes(labels: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Return the classes that occur, and the place of each label among them."""
    if labels.is_floating_point() or labels.shape != (count,):
        raise InputError("labels", f"{count} whole numbers", f"{labels.dtype} of shape {tuple(labels.shape)}")
    classes, places = distinct(labels)
    if len(classes) < 2:
        raise InputError("labels", "at least 2 classes", f"only {classes.tolist()}")
    return classes, places


@dataclass(frozen=True, kw_only=True, eq=False)
class _System:
    """The weighted least-squares system of a probe, decomposed once for all penalties."""

    inputs: Tensor
    """(sample dim), standardised to a weighted mean of 0 and deviation of 1."""
    share: Tensor
    """(sample), the weights of the samples, which sum to 1."""
    wanted: Tensor
    """(sample class), -1 or 1."""
    mean: Tensor
    deviation: Tensor
    variances: Tensor
    """(dim), variances of the weighted inputs along `axes`."""
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
        """Return the weights (dim class) for the standardised inputs, and the bias (class)."""
        bias = self.share @ self.wanted
        right = (self.inputs.T * self.share) @ (self.wanted - bias)
        return self.axes @ ((self.axes.T @ right) / (self.variances + penalty)[:, None]), bias


def _probe(system: _System, classes: Tensor, penalty: float) -> LinearProbe:
    weight, bias = system.solved(penalty)
    weight = weight / system.deviation[:, None]
    return LinearProbe(weight=weight, bias=bias - system.mean @ weight, classes=classes, penalty=penalty)


def _left_out(system: _System, penalty: float, groups: Tensor) -> Tensor:
    """Return the outputs (sample class) for each sample of a probe fitted without its group.

    With H the matrix that turns wanted values into predicted ones, the error without a group is (I - H_group)^-1 times
    the error with it.
    """
    weight, bias = system.solved(penalty)
    told = system.inputs @ weight + bias
    # The bias is a column of ones, to which the weighted inputs are orthogonal.
    spread = torch.cat([system.inputs @ (system.axes / (system.variances + penalty).sqrt()),
                        torch.ones(len(told), 1, dtype=told.dtype)], dim=1)  # fmt: skip
    _, places = distinct(groups)
    order, counts = places.argsort(stable=True), places.bincount()
    for rows in torch.split(order, counts.tolist()):
        hat = spread[rows] @ spread[rows].T * system.share[rows]
        error = torch.linalg.solve(torch.eye(len(rows), dtype=hat.dtype) - hat, system.wanted[rows] - told[rows])
        told[rows] = system.wanted[rows] - error
    return told
