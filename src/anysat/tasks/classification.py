"""Classes and labels, of tiles or of pixels: land cover, crops, floods, burns, changes, species."""

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
"""Answer where nothing was seen."""


@dataclass(frozen=True, kw_only=True)
class Classification:
    """One of several classes, of a tile or of every pixel."""

    target: Target
    class_weights: tuple[float, ...] | None = None
    """Of each class in the loss; None: all the same."""
    label_smoothing: float = 0.0
    """Share of the wanted probability that is spread over all classes."""
    void_output: bool = False
    """True for one output more, of what has no label, as in the published heads (PASTIS: 20 for 19 classes). Nothing
    trains it to be high, and it is never an answer."""
    monitor: str | None = None
    """Score by which settings are chosen; None for mean intersection over union of pixels, macro F1 of tiles."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "class_weights", _checked(self.target, self.class_weights))
        check_monitor(self.monitor, ClassCounts.formulas)

    @property
    def num_outputs(self) -> int:
        """One for each class, and the void one."""
        return len(self.target.classes) + self.void_output

    @property
    def primary(self) -> str:
        """What settings are chosen by."""
        return self.monitor or ("miou" if self.target.level == "pixel" else "f1_macro")

    @property
    def highest_is_best(self) -> bool:
        """Whether a higher one is better."""
        return self.primary not in LOWEST_IS_BEST

    def loss(self, outputs: Tensor, truth: Tensor) -> Tensor:
        """Cross-entropy."""
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
                f"the number of what has no label is {self.target.ignore}",
            )  # fmt: skip
        weights = torch.zeros(self.num_outputs, device=wanted.device)  # which the void output keeps
        weights[:count] = 1.0 if self.class_weights is None else torch.tensor(self.class_weights)
        if not bool(weights[wanted].any()):
            return nothing(outputs)
        return functional.cross_entropy(
            outputs[kept].float(), wanted, weight=weights, label_smoothing=self.label_smoothing
        )

    def probabilities(self, outputs: Tensor) -> Tensor:
        """Softmax over the classes."""
        return self._classes(outputs).float().softmax(-1)

    def answer(self, outputs: Tensor) -> Tensor:
        """The class with the highest output, -1 where nothing was seen."""
        seen = outputs.isfinite().all(-1)
        return self._classes(outputs).nan_to_num().argmax(-1).where(seen, NOBODY)

    def metric(self) -> ClassScores:
        """Scores of classes; what was not seen counts as a mistake."""
        from anysat.tasks.metrics import ClassScores

        return ClassScores(len(self.target.classes), ignore=self.target.ignore)

    def score(self, sheet: ClassScores, outputs: Tensor, truth: Tensor, groups: Tensor | None = None) -> None:
        """Put some tiles on a score sheet."""
        sheet.update(self._classes(outputs), truth.long(), groups)

    def right(self, outputs: Tensor, truth: Tensor) -> Tensor:
        """Share of the labelled pixels answered rightly, or 1 and 0 of tiles."""
        known = labelled(self.target, truth)
        right = ((self.answer(outputs) == truth) & known).reshape(len(truth), -1)
        return right.sum(1) / known.reshape(len(truth), -1).sum(1)

    def _classes(self, outputs: Tensor) -> Tensor:
        """Outputs without the void one."""
        return outputs[..., : len(self.target.classes)]

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        weights = None if self.class_weights is None else list(self.class_weights)
        return {"class_weights": weights, "label_smoothing": self.label_smoothing, "void_output": self.void_output,
                "monitor": self.monitor}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class MultiLabel:
    """Any of several labels of a tile."""

    target: Target
    class_weights: tuple[float, ...] | None = None
    """Of each label's positives in the loss; None: all the same."""
    threshold: float = 0.5
    """Probability above which a label is given."""

    monitor: str | None = None
    """Score by which settings are chosen; None for weighted F1."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "class_weights", _checked(self.target, self.class_weights))
        check_monitor(self.monitor, LabelCounts.formulas)
        if not 0 < self.threshold < 1:
            raise RecordError("threshold", self.threshold, "a probability between 0 and 1")

    @property
    def primary(self) -> str:
        """What settings are chosen by."""
        return self.monitor or "f1_weighted"

    @property
    def highest_is_best(self) -> bool:
        """Whether a higher one is better."""
        return self.primary not in LOWEST_IS_BEST

    @property
    def num_outputs(self) -> int:
        """One for each label."""
        return len(self.target.classes)

    def loss(self, outputs: Tensor, truth: Tensor) -> Tensor:
        """Binary cross-entropy, mean over labels."""
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
        """Sigmoid of each label."""
        return outputs.float().sigmoid()

    def answer(self, outputs: Tensor) -> Tensor:
        """1 where a label's probability is above the threshold."""
        return (self.probabilities(outputs) > self.threshold).long()

    def metric(self) -> LabelScores:
        """Scores of labels."""
        from anysat.tasks.metrics import LabelScores

        return LabelScores(self.num_outputs, threshold=self.threshold)

    def score(self, sheet: LabelScores, outputs: Tensor, truth: Tensor, groups: Tensor | None = None) -> None:
        """Put some tiles on a score sheet; who saw nothing names no label."""
        sheet.update(outputs, truth.long(), groups)

    def right(self, outputs: Tensor, truth: Tensor) -> Tensor:
        """Share of the labels answered rightly."""
        return (self.answer(outputs) == truth).float().mean(1)

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        weights = None if self.class_weights is None else list(self.class_weights)
        return {"class_weights": weights, "threshold": self.threshold, "monitor": self.monitor}


def inverse_frequency(counts: Tensor) -> tuple[float, ...]:
    """Weights of classes that make all weigh the same, mean 1 over the samples; 0 for a class that never occurs.

    Args:
        counts: (class), how often each occurs.
    """
    seen = counts > 0
    weight = torch.where(seen, counts.sum() / (seen.sum() * counts.clamp_min(1)), 0.0)
    return tuple(weight.tolist())


def _checked(target: Target, weights: Sequence[float] | None) -> tuple[float, ...] | None:
    """Weights of classes as they are kept, from a tuple or, out of a file, a list."""
    if weights is not None and (len(weights) != len(target.classes) or not all(weight >= 0 for weight in weights)):
        raise RecordError(f"target {target.name!r}, class_weights", weights, f"{len(target.classes)} numbers from 0")
    return None if weights is None else tuple(weights)
