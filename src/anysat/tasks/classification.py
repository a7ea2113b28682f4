"""Classification of tiles or pixels, with one class or several labels: land cover, crops, floods, burns, species."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional

from anysat.data.targets import NOBODY, Target
from anysat.errors import InputError, RecordError
from anysat.tasks.base import LOWEST_IS_BEST, NO_SHARE, TASKS, check_monitor, labelled, nothing
from anysat.tasks.scores import ClassCounts, LabelCounts

if TYPE_CHECKING:
    from anysat.tasks.metrics import ClassScores, LabelScores


@dataclass(frozen=True, kw_only=True)
class Classification:
    """Classification of each tile or pixel into one of several classes."""

    target: Target
    class_weights: tuple[float, ...] | None = None
    """Weight of each class in the loss; None for equal weights."""
    label_smoothing: float = 0.0
    """Fraction of the target probability that is spread over all classes."""
    void_output: bool = False
    """Add an output for places without a label, as in the published heads (PASTIS: 20 for 19 classes). It is not
    trained to be high, and it is never an answer."""
    monitor: str | None = None
    """Score by which settings are chosen. None is mean intersection over union for pixels and macro F1 for tiles."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "class_weights", _checked(self.target, self.class_weights))
        check_monitor(self.monitor, ClassCounts.formulas)

    @property
    def num_outputs(self) -> int:
        """One for each class, plus the void one."""
        return len(self.target.classes) + self.void_output

    @property
    def primary(self) -> str:
        """Name of the score by which settings are chosen."""
        return self.monitor or ("miou" if self.target.level == "pixel" else "f1_macro")

    @property
    def highest_is_best(self) -> bool:
        """Whether a higher primary score is better."""
        return self.primary not in LOWEST_IS_BEST

    @staticmethod
    def learned(target: Target, truth: Tensor, *, balanced: bool, is_sample: bool = False) -> dict[str, Any]:
        """Return weights inversely proportional to frequency, if `balanced`.

        In a sample, a class that does not occur gets the weight of the rarest one that does.
        """
        if not balanced:
            return {}
        labels, count = truth.long().flatten(), len(target.classes)
        weights = inverse_frequency(labels[(labels >= 0) & (labels < count)].bincount(minlength=count))
        return {"class_weights": tuple(weight or max(weights) for weight in weights) if is_sample else weights}

    def loss(self, outputs: Tensor, truth: Tensor) -> Tensor:
        """Return the mean cross-entropy."""
        kept, wanted, weights = self._counted(outputs, truth)
        if not bool(weights[wanted].any()):
            return nothing(outputs)
        weights = functional.pad(weights, (0, self.void_output))  # the weight of the void output is 0
        return functional.cross_entropy(
            outputs[kept].float(), wanted, weight=weights, label_smoothing=self.label_smoothing
        )

    def loss_weight(self, outputs: Tensor, truth: Tensor) -> float:
        """Return the sum of the class weights of the places that the loss is over."""
        _, wanted, weights = self._counted(outputs, truth)
        return float(weights[wanted].sum())

    def _counted(self, outputs: Tensor, truth: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the places that the loss is over, their classes, and the weight of each class."""
        truth = truth.long()
        kept = outputs.isfinite().all(-1) & labelled(self.target, truth)
        self._check(truth[kept])
        weights = torch.ones(len(self.target.classes), device=truth.device)
        return kept, truth[kept], weights if self.class_weights is None else weights.new_tensor(self.class_weights)

    def wanted(self, truth: Tensor) -> tuple[Tensor, Tensor]:
        """Return 1 for the right output and 0 for the others."""
        truth = truth.long()
        known = labelled(self.target, truth)
        self._check(truth[known])
        return functional.one_hot(truth.where(known, 0), self.num_outputs).float(), known

    @staticmethod
    def outputs_of(mean: Tensor) -> Tensor:
        """Return the logarithm of shares of classes."""
        return mean.clamp_min(NO_SHARE).log()

    def probabilities(self, outputs: Tensor) -> Tensor:
        """Return the softmax over the classes."""
        return self.logits(outputs).float().softmax(-1)

    def answer(self, outputs: Tensor) -> Tensor:
        """Return the class with the highest output, -1 where nothing was observed."""
        seen = outputs.isfinite().all(-1)
        return self.logits(outputs).nan_to_num().argmax(-1).where(seen, NOBODY)

    def metric(self) -> ClassScores:
        """Return an empty score sheet. Places that were not observed count as mistakes."""
        from anysat.tasks.metrics import ClassScores

        return ClassScores(len(self.target.classes), ignore=self.target.ignore)

    def score(self, sheet: ClassScores, outputs: Tensor, truth: Tensor, groups: Tensor | None = None) -> None:
        """Add tiles to a score sheet."""
        sheet.update(self.logits(outputs), truth.long(), groups)

    def right(self, outputs: Tensor, truth: Tensor) -> Tensor:
        """Return the fraction of labelled pixels answered correctly; for tiles, 1 or 0."""
        known = labelled(self.target, truth)
        right = ((self.answer(outputs) == truth) & known).reshape(len(truth), -1)
        return right.sum(1) / known.reshape(len(truth), -1).sum(1)

    def _check(self, known: Tensor) -> None:
        """Raise InputError for numbers that are not classes."""
        count = len(self.target.classes)
        strange = known[(known < 0) | (known >= count)]
        if len(strange):
            found = sorted(set(strange.tolist()))[:5]
            raise InputError(
                f"target {self.target.name!r}", f"classes 0 to {count - 1}", f"also {found}",
                f"places without a label are marked by {self.target.ignore}",
            )  # fmt: skip

    def logits(self, outputs: Tensor) -> Tensor:
        """Return the logits of the classes: the outputs without the void one."""
        return outputs[..., : len(self.target.classes)]


@dataclass(frozen=True, kw_only=True)
class MultiLabel:
    """Classification of each tile with any of several labels."""

    target: Target
    class_weights: tuple[float, ...] | None = None
    """Weight of each label's positives in the loss; None for equal weights."""
    threshold: float = 0.5
    """Probability above which a label is assigned."""

    monitor: str | None = None
    """Score by which settings are chosen. None is weighted F1."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "class_weights", _checked(self.target, self.class_weights))
        check_monitor(self.monitor, LabelCounts.formulas)
        if not 0 < self.threshold < 1:
            raise RecordError("threshold", self.threshold, "a probability between 0 and 1")

    @property
    def primary(self) -> str:
        """Name of the score by which settings are chosen."""
        return self.monitor or "f1_weighted"

    @property
    def highest_is_best(self) -> bool:
        """Whether a higher primary score is better."""
        return self.primary not in LOWEST_IS_BEST

    @property
    def num_outputs(self) -> int:
        """One for each label."""
        return len(self.target.classes)

    @staticmethod
    def learned(target: Target, truth: Tensor, *, balanced: bool, is_sample: bool = False) -> dict[str, Any]:  # noqa: ARG004 - for all tasks
        """Return negatives per positive of each label, if `balanced`; 1 for a label that never or always occurs."""
        if not balanced:
            return {}
        positive = truth.double().mean(0)
        differs = (positive > 0) & (positive < 1)  # otherwise a weight of 0 would teach nothing
        return {"class_weights": torch.where(differs, (1 - positive) / positive.clamp_min(1e-9), 1.0).tolist()}

    def loss(self, outputs: Tensor, truth: Tensor) -> Tensor:
        """Return the mean binary cross-entropy."""
        kept = outputs.isfinite().all(-1)
        if not bool(kept.any()):
            return nothing(outputs)
        wanted, _ = self.wanted(truth[kept])
        weight = None if self.class_weights is None else torch.tensor(self.class_weights, device=wanted.device)
        return functional.binary_cross_entropy_with_logits(outputs[kept].float(), wanted, pos_weight=weight)

    def loss_weight(self, outputs: Tensor, truth: Tensor) -> float:  # noqa: ARG002 - every tile has all labels
        """Return the number of tiles that were observed."""
        return float(outputs.isfinite().all(-1).sum())

    def wanted(self, truth: Tensor) -> tuple[Tensor, Tensor]:
        """Return the labels themselves. Every tile has all of them."""
        wanted = truth.float()
        strange = wanted[(wanted != 0) & (wanted != 1)]
        if len(strange):
            raise InputError(f"target {self.target.name!r}", "labels 0 and 1", f"also {strange[:5].tolist()}")
        return wanted, torch.ones(len(truth), dtype=torch.bool, device=truth.device)

    @staticmethod
    def outputs_of(mean: Tensor) -> Tensor:
        """Return the log odds of shares of labels."""
        return mean.clamp(NO_SHARE, 1 - NO_SHARE).logit()

    def probabilities(self, outputs: Tensor) -> Tensor:
        """Return the sigmoid of each label."""
        return outputs.float().sigmoid()

    def answer(self, outputs: Tensor) -> Tensor:
        """Return 1 where a label's probability is above the threshold, else 0."""
        return (self.probabilities(outputs) > self.threshold).long()

    def metric(self) -> LabelScores:
        """Return an empty score sheet."""
        from anysat.tasks.metrics import LabelScores

        return LabelScores(self.num_outputs, threshold=self.threshold)

    def score(self, sheet: LabelScores, outputs: Tensor, truth: Tensor, groups: Tensor | None = None) -> None:
        """Add tiles to a score sheet. A tile that was not observed has no label as its answer."""
        sheet.update(outputs, truth.long(), groups)

    def right(self, outputs: Tensor, truth: Tensor) -> Tensor:
        """Return the fraction of each tile's labels answered correctly."""
        return (self.answer(outputs) == truth).float().mean(1)


TASKS |= {"class": Classification, "labels": MultiLabel}


def inverse_frequency(counts: Tensor) -> tuple[float, ...]:
    """Return class weights inversely proportional to frequency, with mean 1 over the samples.

    A class that never occurs has weight 0.

    Args:
        counts: (class), how often each class occurs.
    """
    seen = counts > 0
    weight = torch.where(seen, counts.sum() / (seen.sum() * counts.clamp_min(1)), 0.0)
    return tuple(weight.tolist())


def _checked(target: Target, weights: Sequence[float] | None) -> tuple[float, ...] | None:
    """Return the class weights as a tuple, which files store as a list, and raise RecordError if they do not fit."""
    if weights is not None and (len(weights) != len(target.classes) or not all(weight >= 0 for weight in weights)):
        raise RecordError(f"target {target.name!r}, class_weights", weights, f"{len(target.classes)} numbers from 0")
    return None if weights is None else tuple(weights)
