"""Regression of values of tiles or pixels, such as biomass, moisture or height."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args

import torch
from torch import Tensor
from torch.nn import functional

from anysat.data.targets import Target
from anysat.errors import InputError, RecordError
from anysat.tasks.base import LOWEST_IS_BEST, TASKS, check_monitor, labelled, nothing
from anysat.tasks.scores import ValueCounts

if TYPE_CHECKING:
    from anysat.tasks.metrics import ValueScores

Distance = Literal["l2", "smooth_l1"]


@dataclass(frozen=True, kw_only=True)
class Regression:
    """Regression of a value of each tile or pixel, trained in units of the standard deviation."""

    target: Target
    mean: float = 0.0
    """Mean of the training values, in the target's unit."""
    deviation: float = 1.0
    """Standard deviation of the training values, in the target's unit."""
    distance: Distance = "l2"
    """`l2` (squared error) or `smooth_l1`, which outliers affect less."""
    monitor: str | None = None
    """Score by which settings are chosen. None is the root of the mean squared error."""

    num_outputs = 1

    def __post_init__(self) -> None:
        if not self.deviation > 0:
            raise RecordError("deviation", self.deviation, "a number above 0")
        if self.distance not in get_args(Distance):
            raise RecordError("distance", self.distance, "'l2' or 'smooth_l1'")
        check_monitor(self.monitor, ValueCounts.formulas)

    @property
    def primary(self) -> str:
        """Name of the score by which settings are chosen."""
        return self.monitor or "rmse"

    @property
    def highest_is_best(self) -> bool:
        """Whether a higher primary score is better."""
        return self.primary not in LOWEST_IS_BEST

    @staticmethod
    def learned(target: Target, truth: Tensor, *, balanced: bool, is_sample: bool = False) -> dict[str, Any]:  # noqa: ARG004 - for all tasks
        """Return mean and deviation of the known values.

        Raises:
            InputError: There are fewer than two.
        """
        values = truth.double().flatten()
        values = values[labelled(target, values)]
        if len(values) < 2:
            raise InputError(f"target {target.name!r}", "at least two training values", len(values))
        return {"mean": float(values.mean()), "deviation": float(values.std(correction=0)) or 1.0}

    def loss(self, outputs: Tensor, truth: Tensor) -> Tensor:
        """Return the mean distance in units of the deviation."""
        found, wanted = outputs[..., 0].float(), (truth.float() - self.mean) / self.deviation
        kept = found.isfinite() & labelled(self.target, truth)
        if not bool(kept.any()):
            return nothing(outputs)
        measure = functional.mse_loss if self.distance == "l2" else functional.smooth_l1_loss
        return measure(found[kept], wanted[kept])

    def loss_weight(self, outputs: Tensor, truth: Tensor) -> float:
        """Return the number of places that have a label and were observed."""
        return float((outputs[..., 0].isfinite() & labelled(self.target, truth)).sum())

    def wanted(self, truth: Tensor) -> tuple[Tensor, Tensor]:
        """Return the values in units of the deviation from the mean, 0 if not known."""
        known = labelled(self.target, truth)
        return ((truth.float() - self.mean) / self.deviation).nan_to_num()[..., None], known

    @staticmethod
    def outputs_of(mean: Tensor) -> Tensor:
        """Return the mean as it is."""
        return mean

    def probabilities(self, outputs: Tensor) -> None:
        """Return None, because outputs are values."""

    def answer(self, outputs: Tensor) -> Tensor:
        """Return values in the target's unit, clamped to its limits, NaN where nothing was observed."""
        found = outputs[..., 0].float() * self.deviation + self.mean
        return found if self.target.limits is None else found.clamp(*self.target.limits)

    def metric(self) -> ValueScores:
        """Return an empty score sheet. Places that were not observed are scored as if the mean had been predicted."""
        from anysat.tasks.metrics import ValueScores

        return ValueScores(ignore=self.target.ignore, missing=self.mean)

    def score(self, sheet: ValueScores, outputs: Tensor, truth: Tensor, groups: Tensor | None = None) -> None:
        """Add tiles to a score sheet."""
        sheet.update(self.answer(outputs), truth.float(), groups)

    def right(self, outputs: Tensor, truth: Tensor) -> Tensor:
        """Return the negative mean absolute error of each tile."""
        known = labelled(self.target, truth).reshape(len(truth), -1)
        answer = self.answer(outputs)
        apart = (answer.where(~answer.isnan(), self.mean) - truth.float()).abs().reshape(len(truth), -1)
        return -torch.where(known, apart, 0.0).sum(1) / known.sum(1)


TASKS["value"] = Regression
