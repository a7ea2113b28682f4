"""Classification of tiles or pixels, with one class or several labels: land cover, crops, floods, burns, species."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional

from anysat.data.base import Target
from anysat.errors import InputError, RecordError
from anysat.tasks.base import LOWEST_IS_BEST, check_monitor, labelled, nothing
from anysat.tasks.scores import ClassCounts, LabelCounts

if TYPE_CHECKING:
    from anysat.tasks.metrics import ClassScores, LabelScores

NOBODY = -1
"""Answer where nothing was observed."""


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

    def loss(self, outputs: Tensor, truth: Tensor) -> Tensor:
        """Return the mean cross-entropy."""
        truth = truth.long()
        kept = outputs.isfinite().all(-1) & labelled(self.target, truth)
        if not bool(kept.any()):
            return nothing(outputs)
        wanted = truth[kept]
        count = len(self.target.classes)
        if int(wanted.min()) < 0 or int(wanted.max()) >= count:
            found = sorted(set(wanted.unique().tolist()) - set(range(count)))  # type: ignore[no-untyped-call]
            raise InputError(
                f"target {self.target.name!r}", f"classes 0 to {count - 1}", f"also {found[:5]}",
                f"places without a label are marked by {self.target.ignore}",
            )  # fmt: skip
        weights = torch.zeros(self.num_outputs, device=wanted.device)  # the weight of the void output stays 0
        weights[:count] = 1.0 if self.class_weights is None else torch.tensor(self.class_weights)
        if not bool(weights[wanted].any()):
            return nothing(outputs)
        return functional.cross_entropy(
            outputs[kept].float(), wanted, weight=weights, label_smoothing=self.label_smoothing
        )

    def probabilities(self, outputs: Tensor) -> Tensor:
        """Return the softmax over the classes."""
        return self._classes(outputs).float().softmax(-1)

    def answer(self, outputs: Tensor) -> Tensor:
        """Return the class with the highest output, -1 where nothing was observed."""
        seen = outputs.isfinite().all(-1)
        return self._classes(outputs).nan_to_num().argmax(-1).where(seen, NOBODY)

    def metric(self) -> ClassScores:
        """Return an empty score sheet. Places that were not observed count as mistakes."""
        from anysat.tasks.metrics import ClassScores

        return ClassScores(len(self.target.classes), ignore=self.target.ignore)

    def score(self, sheet: ClassScores, outputs: Tensor, truth: Tensor, groups: Tensor | None = None) -> None:
        """Add tiles to a score sheet."""
        sheet.update(self._classes(outputs), truth.long(), groups)

    def right(self, outputs: Tensor, truth: Tensor) -> Tensor:
        """Return the fraction of labelled pixels answered correctly; for tiles, 1 or 0."""
        known = labelled(self.target, truth)
        right = ((self.answer(outputs) == truth) & known).reshape(len(truth), -1)
        return right.sum(1) / known.reshape(len(truth), -1).sum(1)

    def _classes(self, outputs: Tensor) -> Tensor:
        """Return the outputs without the void one."""
        return outputs[..., : len(self.target.classes)]

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        weights = None if self.class_weights is None else list(self.class_weights)
        return {"class_weights": weights, "label_smoothing": self.label_smoothing, "void_output": self.void_output,
                "monitor": self.monitor}  # fmt: skip


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

    def loss(self, outputs: Tensor, truth: Tensor) -> Tensor:
        """Return the mean binary cross-entropy."""
        kept = outputs.isfinite().all(-1)
        if not bool(kept.any()):
            return nothing(outputs)
        wanted = truth[kept].float()
        strange = wanted[(wanted != 0) & (wanted != 1)]
        if len(strange):
            raise InputError(f"target {self.target.name!r}", "labels 0 and 1", f"also {strange[:5].tolist()}")
        weight = None if self.class_weights is None else torch.tensor(self.class_weights, device=wanted.device)
        return functional.binary_cross_entropy_with_logits(outputs[kept].float(), wanted, pos_weight=weight)

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

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        weights = None if self.class_weights is None else list(self.class_weights)
        return {"class_weights": weights, "threshold": self.threshold, "monitor": self.monitor}


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
