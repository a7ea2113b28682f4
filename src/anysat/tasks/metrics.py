"""Metrics: they collect counts per tile, join them across ranks, and compute scores from them.

Only places without a label are left out. Wherever there is a label, the prediction counts, whatever it is.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from types import SimpleNamespace

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from anysat.errors import InputError, RecordError
from anysat.probing.samples import slices
from anysat.tasks.scores import NUM_BINS, ClassCounts, LabelCounts, Scores, ValueCounts

_NO_GROUP = torch.iinfo(torch.int64).min


class _Sheet(Metric):
    """A metric whose state is lists of tensors with one row per tile, among them the groups of the tiles."""

    full_state_update = False
    is_differentiable = False

    groups: list[Tensor]

    def __init__(self, rows: Mapping[str, tuple[tuple[int, ...], torch.dtype]]) -> None:
        super().__init__()
        self._rows = {**rows, "groups": ((), torch.int64)}
        for name in self._rows:
            self.add_state(name, [], dist_reduce_fx="cat")
        self._begin()

    def _begin(self) -> None:
        # So that a rank without tiles takes part in the exchange with tensors of the right shape and type.
        for name, (shape, dtype) in self._rows.items():
            getattr(self, name).append(torch.zeros(0, *shape, dtype=dtype, device=self.device))

    def reset(self) -> None:
        """Forget every tile."""
        super().reset()
        self._begin()

    def _wrap_compute(self, compute: Callable[[], Scores]) -> Callable[[], Scores]:
        # torchmetrics would try to change the fields of the result, a frozen dataclass.
        wrapped = super()._wrap_compute(lambda: SimpleNamespace(scores=compute()))
        return lambda: wrapped().scores

    def _append(self, groups: Tensor | None, num_tiles: int, **rows: Tensor) -> None:
        if groups is None:
            groups = torch.full((num_tiles,), _NO_GROUP, device=self.device)
        elif groups.shape != (num_tiles,) or groups.is_floating_point():
            raise InputError("groups", f"a whole number for each of {num_tiles} tiles", _kind(groups))
        for name, tensor in {**rows, "groups": groups}.items():
            getattr(self, name).append(tensor.to(self.device, self._rows[name][1]))

    def _joined(self, name: str) -> Tensor:
        return dim_zero_cat(getattr(self, name)).cpu()

    def _groups(self) -> Tensor | None:
        groups = self._joined("groups")
        without = int((groups == _NO_GROUP).sum())
        if 0 < without < len(groups):
            raise InputError("groups", "one for every tile or for none", f"none for {without} of {len(groups)}")
        return None if without == len(groups) else groups


class ClassScores(_Sheet):
    """Scores of a classification of tiles or of their pixels into one of several classes.

    The scores are `accuracy`, `balanced_accuracy` (mean recall), `miou`, `f1_macro`, `f1_micro`, `f1_weighted` (by
    support), `kappa` and `calibration_error` (ECE over 15 bins of confidence), and for each class `iou`, `f1`,
    `precision`, `recall` and `support`.

    Means are taken over the classes that occur in the truth or the predictions, and for recall over those in the truth.
    If `ignore` is one of the classes, this class is not scored, and predicting it where another class is true is a
    mistake. So is giving no answer (NaN or infinity, as for patches that nothing observed): it lowers recall and
    accuracy, but not precision, and has no confidence.

    >>> scores = ClassScores(3, ignore=-1)
    >>> scores.update(10 * torch.eye(3)[[0, 0, 2, 2]], torch.tensor([0, 1, 2, -1]))
    >>> scores.compute().figures["miou"]  # mean of 1/2, 0 and 1
    0.5

    Args:
        num_classes: Number of outputs.
        ignore: Number that marks places without a label.

    Raises:
        RecordError: An argument has a value that is not possible.
    """

    margins: list[Tensor]
    bins: list[Tensor]
    confusion: Tensor

    def __init__(self, num_classes: int, ignore: int | None = None) -> None:
        if num_classes < 2:
            raise RecordError("num_classes", num_classes, "at least 2")
        super().__init__({"margins": ((3, num_classes), torch.int32), "bins": ((3, NUM_BINS), torch.float64)})
        self.num_classes, self.ignore = num_classes, ignore
        empty = torch.zeros(num_classes, num_classes + 1, dtype=torch.int64)
        self.add_state("confusion", empty, dist_reduce_fx="sum")

    def update(self, outputs: Tensor, truth: Tensor, groups: Tensor | None = None) -> None:
        """Add tiles.

        Args:
            outputs: (tile … class) logits.
            truth: (tile …) class numbers.
            groups: (tile) group numbers, the same on every rank; for all tiles or for none. See `Scores.interval`.

        Raises:
            InputError: The shapes do not fit, or the truth is not a class.
        """
        num_tiles, num_classes = len(truth), self.num_classes
        if truth.is_floating_point() or not outputs.is_floating_point() or outputs.shape != (*truth.shape, num_classes):
            expected = f"logits (tile … class) of {num_classes} classes and whole numbers (tile …)"
            raise InputError("outputs and truth", expected, f"{_kind(outputs)} and {_kind(truth)}")
        tiles = torch.arange(num_tiles, device=truth.device).repeat_interleave(math.prod(truth.shape[1:]))
        labels, nothing = truth.long().flatten(), num_classes
        kept = torch.ones_like(labels, dtype=torch.bool) if self.ignore is None else labels != self.ignore
        self._refuse_strangers(labels, kept)
        answers, confidence = _answers(outputs.detach().flatten(0, -2))
        answered, right = kept & (answers != nothing), kept & (answers == labels)
        labels = labels.where(kept, nothing)
        scored = kept if self.ignore is None else kept & (answers != self.ignore)
        columns = [labels, answers.where(scored, nothing), labels.where(right, nothing)]
        margins = torch.stack([_count(tiles, one, num_tiles, num_classes + 1) for one in columns], 1)[..., :-1]
        bins = _bins(tiles, confidence, answered, right, num_tiles)
        self._append(groups, num_tiles, margins=margins, bins=bins)
        self.confusion = self.confusion + _count(labels, answers, num_classes + 1, num_classes + 1)[:-1]

    def compute(self) -> Scores:
        """Return the scores of all tiles on all ranks."""
        counts = ClassCounts(margins=self._joined("margins").double(), bins=self._joined("bins"))
        num_samples, num_unanswered = int(self.confusion.sum()), int(self.confusion[:, -1].sum())
        return Scores.of(counts, num_samples=num_samples, num_unanswered=num_unanswered, groups=self._groups(),
                         confusion=self.confusion)  # fmt: skip

    def _refuse_strangers(self, labels: Tensor, kept: Tensor) -> None:
        strange = kept & ((labels < 0) | (labels >= self.num_classes))
        num_strange = int(strange.sum())
        if num_strange:
            advice = "no number is ignored" if self.ignore is None else f"missing labels are {self.ignore} (ignore)"
            got = f"{num_strange} others, such as {labels[strange][:5].tolist()}"
            raise InputError("truth", f"classes 0 to {self.num_classes - 1}", got, advice)


class LabelScores(_Sheet):
    """Scores of a multi-label classification of tiles.

    The scores are `f1_micro`, `f1_macro`, `f1_weighted` (by support), `accuracy` (fraction of all single labels that
    are right), `map_macro` (mean average precision) and `calibration_error` (ECE of all single labels over 15 bins of
    probability), and for each label `f1`, `precision`, `recall`, `average_precision` and `support`.

    `f1_macro` is the mean over the labels that occur in the truth or the predictions, `map_macro` over those in the
    truth. Where outputs are NaN or infinite, as for a tile that nothing observed, no label is predicted, and there is
    no confidence.

    >>> scores = LabelScores(2)
    >>> scores.update(torch.tensor([[2.0, -1.0], [1.0, 3.0]]), torch.tensor([[1, 0], [0, 1]]))
    >>> scores.compute().per_class["precision"]
    [0.5, 1.0]

    Args:
        num_labels: Number of outputs.
        threshold: Probability above which a label is predicted.

    Raises:
        RecordError: An argument has a value that is not possible.
    """

    outputs: list[Tensor]
    truth: list[Tensor]

    def __init__(self, num_labels: int, threshold: float = 0.5) -> None:
        if num_labels < 1:
            raise RecordError("num_labels", num_labels, "at least 1")
        if not 0 < threshold < 1:
            raise RecordError("threshold", threshold, "a probability between 0 and 1")
        super().__init__({"outputs": ((num_labels,), torch.float32), "truth": ((num_labels,), torch.uint8)})
        self.num_labels, self.threshold = num_labels, threshold

    def update(self, outputs: Tensor, truth: Tensor, groups: Tensor | None = None) -> None:
        """Add tiles.

        Args:
            outputs: (tile label) logits.
            truth: (tile label) 0 and 1.
            groups: (tile) group numbers, the same on every rank; for all tiles or for none. See `Scores.interval`.

        Raises:
            InputError: The shapes do not fit, or the truth is neither 0 nor 1.
        """
        num_tiles = len(truth)
        if not outputs.is_floating_point() or not outputs.shape == truth.shape == (num_tiles, self.num_labels):
            expected = f"logits and 0 or 1 of (tile label) with {self.num_labels} labels"
            raise InputError("outputs and truth", expected, f"{_kind(outputs)} and {_kind(truth)}")
        strange = truth[(truth != 0) & (truth != 1)]
        if len(strange):
            raise InputError("truth", "0 or 1", f"{len(strange)} others, such as {strange[:5].tolist()}")
        seen = outputs.isfinite()
        self._append(groups, num_tiles, outputs=outputs.detach().where(seen, float("-inf")), truth=truth)

    def compute(self) -> Scores:
        """Return the scores of all tiles on all ranks."""
        outputs, truth = self._joined("outputs"), self._joined("truth").double()
        predicted = (outputs.sigmoid() > self.threshold).double()
        tiles = torch.arange(len(truth)).repeat_interleave(self.num_labels)
        answered, there = outputs.isfinite().flatten(), truth.flatten() > 0
        bins = _bins(tiles, outputs.double().sigmoid().flatten(), answered, answered & there, len(truth))
        margins = torch.stack([truth, predicted, truth * predicted], 1)
        counts = LabelCounts(margins=margins, bins=bins, outputs=outputs)
        num_unanswered = int((~outputs.isfinite()).any(1).sum())
        return Scores.of(counts, num_samples=len(outputs), num_unanswered=num_unanswered, groups=self._groups())


class ValueScores(_Sheet):
    """Scores of a regression for tiles or for their pixels, in the unit of the values.

    The scores are `rmse`, `mae`, `bias` (prediction minus truth) and `r2` (undefined if all truth is the same). All
    labelled places count equally. A truth that is NaN or `ignore` is left out.

    >>> scores = ValueScores()
    >>> scores.update(torch.tensor([[1.0, 5.0]]), torch.tensor([[2.0, torch.nan]]))
    >>> scores.compute().figures["bias"]
    -1.0

    Args:
        ignore: Value that marks places without a label.
        missing: Value that is scored where there is no answer (NaN), such as the mean of the training data. None
            refuses such outputs.
    """

    moments: list[Tensor]
    unanswered: Tensor

    def __init__(self, ignore: float | None = None, missing: float | None = None) -> None:
        super().__init__({"moments": ((6,), torch.float64)})
        self.ignore, self.missing = ignore, missing
        self.add_state("unanswered", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, outputs: Tensor, truth: Tensor, groups: Tensor | None = None) -> None:
        """Add tiles.

        Args:
            outputs: (tile …) or (tile … 1), in the unit of the truth.
            truth: (tile …).
            groups: (tile) group numbers, the same on every rank; for all tiles or for none. See `Scores.interval`.

        Raises:
            InputError: The shapes do not fit, the truth is infinite, or an output at a labelled place is infinite or,
                without `missing`, NaN.
        """
        found = outputs.detach()[..., 0] if outputs.shape == (*truth.shape, 1) else outputs.detach()
        if found.shape != truth.shape:
            raise InputError("outputs and truth", "(tile …) or (tile … 1), and (tile …)",
                             f"{_kind(outputs)} and {_kind(truth)}")  # fmt: skip
        wanted = truth.double()
        known = ~wanted.isnan() if self.ignore is None else ~wanted.isnan() & (wanted != self.ignore)
        if bool((known & wanted.isinf()).any()):
            raise InputError("truth", "finite values, or NaN where there is none", "infinity")
        unanswered = known & found.isnan()
        if self.missing is not None:
            found = found.where(~found.isnan(), self.missing)
        _refuse_missing(found.isfinite(), known, "give NaN as truth of patches that nothing observed")
        rows = (len(truth), math.prod(truth.shape[1:]))
        self._append(groups, len(truth), moments=_moments(found.double().reshape(rows), wanted.reshape(rows),
                                                          known.reshape(rows)))  # fmt: skip
        self.unanswered = self.unanswered + unanswered.sum()

    def compute(self) -> Scores:
        """Return the scores of all tiles on all ranks."""
        count, mean, spread, *errors = self._joined("moments").unbind(1)
        total = float(count.sum())
        centre = float(count @ mean) / total if total else 0.0
        truth = count * (mean - centre)
        sums = torch.stack([count, truth, spread + truth * (mean - centre), *errors], 1)
        return Scores.of(ValueCounts(sums=sums, centre=centre), num_samples=int(total),
                         num_unanswered=int(self.unanswered), groups=self._groups())  # fmt: skip


def _kind(tensor: Tensor) -> str:
    return f"{tensor.dtype} of shape {tuple(tensor.shape)}"


def _answers(outputs: Tensor) -> tuple[Tensor, Tensor]:
    """Return the class with the highest output of (place class), and its probability.

    Where outputs are not finite, the class is the number of classes.
    """
    num_places, num_classes = outputs.shape
    answers = torch.empty(num_places, dtype=torch.int64, device=outputs.device)
    confidence = torch.empty(num_places, dtype=torch.float64, device=outputs.device)
    for part in slices(num_places, num_classes):
        values = outputs[part].float() if outputs.itemsize < 4 else outputs[part]
        top, found = values.max(-1)
        answers[part] = found.where(top.isfinite(), num_classes)
        confidence[part] = (values - top[:, None]).exp().sum(-1).reciprocal().double()
    return answers, confidence


def _count(rows: Tensor, columns: Tensor, num_rows: int, num_columns: int) -> Tensor:
    """Return (row column), how often each pair occurs."""
    counts = (rows * num_columns + columns).bincount(minlength=num_rows * num_columns)
    return counts.view(num_rows, num_columns)


def _bins(tiles: Tensor, confidence: Tensor, answered: Tensor, right: Tensor, num_tiles: int) -> Tensor:
    """Return (tile 3 bin) as in `BinnedTotals`. Places without an answer go to an extra bin, which is cut off."""
    places = (confidence * NUM_BINS).long().clamp_max(NUM_BINS - 1).where(answered, NUM_BINS)
    sums = confidence.new_zeros(num_tiles * (NUM_BINS + 1)).index_add_(0, tiles * (NUM_BINS + 1) + places, confidence)
    number, number_right = (
        _count(tiles, one, num_tiles, NUM_BINS + 1).double() for one in (places, places.where(right, NUM_BINS))
    )
    return torch.stack([number, sums.view_as(number), number_right], 1)[..., :-1]


def _moments(found: Tensor, wanted: Tensor, known: Tensor) -> Tensor:
    """Return (tile 6) from (tile place).

    For each tile: the number of known places, the mean of the truth, its sum of squared deviations, and the sums of the
    errors, of the absolute errors and of the squared errors.
    """
    count = known.sum(1).double()
    mean = wanted.where(known, 0).sum(1) / count.clamp_min(1)
    spread = ((wanted - mean[:, None]) ** 2).where(known, 0).sum(1)
    error = (found - wanted).where(known, 0)
    return torch.stack([count, mean, spread, error.sum(1), error.abs().sum(1), (error**2).sum(1)], 1)


def _refuse_missing(seen: Tensor, known: Tensor, advice: str) -> None:
    num_missing = int((known & ~seen).sum())
    if num_missing:
        got = f"{num_missing} of {int(known.sum())} NaN or infinite"
        raise InputError("outputs", "finite ones wherever there is a label", got, advice)
