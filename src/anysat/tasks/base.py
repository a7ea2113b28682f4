"""Tasks: a target with its number of outputs, their loss, their meaning and their scores.

To add a task, write one file with a class that implements `Task`, and register it in `TASKS`. For a new kind of target,
also add to `KINDS` how it is stored. That file must be imported wherever the kind is used (docs/howto/tasks.md).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import fields
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

from anysat.data.base import Target
from anysat.errors import UnknownNameError

if TYPE_CHECKING:
    from torchmetrics import Metric


class Task(Protocol):
    """A target and what is learned about it: number of outputs, loss, answers and scores.

    It is a frozen dataclass. Its fields besides `target` have defaults and are its options; one called `class_weights`
    or `void_output` makes it accept the command line's option of that name.

    Outputs are channels-last: (tile output) for a target of tiles, (tile row col output) for one of pixels. They are
    NaN where the encoder observed nothing. Such places are not trained on, but they count in the scores: a class as a
    mistake, a value as if the mean had been predicted.
    """

    @property
    def target(self) -> Target:
        """What is predicted."""

    @property
    def num_outputs(self) -> int:
        """Number of outputs per tile or pixel."""

    @property
    def primary(self) -> str:
        """Name of the score by which settings are chosen."""

    @property
    def highest_is_best(self) -> bool:
        """Whether a higher primary score is better."""

    @staticmethod
    def learned(target: Target, truth: Tensor, *, balanced: bool, is_sample: bool = False) -> Mapping[str, Any]:
        """Return the options that follow from training labels, such as a mean, or class weights if `balanced`.

        Args:
            target: What is predicted.
            truth: Training labels. There may be none if the target has classes and is not `balanced`.
            balanced: Whether rare classes are to count as much as frequent ones.
            is_sample: Whether the labels are a sample, so that a class may be missing by chance.
        """

    def loss(self, outputs: Tensor, truth: Tensor) -> Tensor:
        """Return the mean loss over the places that have a label and were observed.

        It is 0 if there are none, and NaN if no output is finite.
        """

    def loss_weight(self, outputs: Tensor, truth: Tensor) -> float:
        """Return the weight of a batch's loss in a mean over batches: what `loss` divides by.

        It is the number of places that have a label and were observed, or the sum of their class weights.
        """

    def wanted(self, truth: Tensor) -> tuple[Tensor, Tensor]:
        """Return numbers (… output) whose mean over similar places is a prediction, and where the truth is known.

        For classes they are 0 and 1, whose mean is a share.

        Raises:
            InputError: The truth has numbers that are not possible.
        """

    @staticmethod
    def outputs_of(mean: Tensor) -> Tensor:
        """Return the outputs, in its shape, that say the same as a mean of `wanted`, such as log shares of classes."""

    def probabilities(self, outputs: Tensor) -> Tensor | None:
        """Return the probability of every class or label (… class); None for values.

        A map of classes shows the class with the highest probability.
        """

    def answer(self, outputs: Tensor) -> Tensor:
        """Turn outputs into answers.

        They are class numbers (tile) or (tile row col), -1 where nothing was observed; labels 0 and 1; or values.
        """

    def metric(self) -> Metric:
        """Return an empty score sheet, which `score` fills and whose `compute()` returns `Scores`."""

    def score(self, sheet: Any, outputs: Tensor, truth: Tensor, groups: Tensor | None = None) -> None:
        """Add tiles to a score sheet. Tiles with the same number in `groups` (tile) are resampled together."""

    def right(self, outputs: Tensor, truth: Tensor) -> Tensor:
        """Return how well each tile is predicted (tile): higher is better, NaN for a tile without a label.

        It is the correct fraction for classes, and the negative error in the target's unit for values.
        """


TASKS: dict[str, type[Any]] = {}
"""Classes of tasks by kind of target. The module of each adds it here."""
NO_SHARE = 1e-6
"""Share given to a class or label that no similar place has."""

LOWEST_IS_BEST = frozenset({"calibration_error", "rmse", "mae"})
"""Scores of which a lower one is better."""


def check_monitor(name: str | None, figures: Collection[str]) -> None:
    """Check that a task has the score to choose by, and that either high or low values of it are good.

    Raises:
        UnknownNameError: It does not. The message names the scores to choose from.
    """
    known = [figure for figure in figures if figure != "bias"]
    if name is not None and name not in known:
        raise UnknownNameError("score to choose by", name, known)


def nothing(outputs: Tensor) -> Tensor:
    """Return the loss of a batch in which no place has a label and was observed: 0, with a gradient of 0.

    It is NaN if no output is finite. Some place of a batch is always observed, so the model has then diverged.
    """
    finite = outputs.isfinite()
    return (0.0 * (outputs.where(finite, 0.0) if bool(finite.any()) else outputs).float()).sum()


def labelled(target: Target, truth: Tensor) -> Tensor:
    """Return where the target is known, in the shape of `truth`."""
    return truth.isfinite() if target.ignore is None else truth.isfinite() & (truth != target.ignore)


def mean_loss(batches: Sequence[tuple[float, float]]) -> float:
    """Return the loss of several batches together, from the loss of each and its `Task.loss_weight`.

    Batches of weight 0 or with a loss of NaN do not count. The mean is NaN if no batch is left.
    """
    losses, weights = torch.tensor(batches, dtype=torch.float64).view(-1, 2).unbind(1)
    known = (weights > 0) & ~losses.isnan()
    return float((losses * weights)[known].sum() / weights[known].sum())


def task_class(kind: str) -> type[Any]:
    """Return the class of the task for a kind of target.

    Raises:
        UnknownNameError: There is none.
    """
    if kind not in TASKS:
        raise UnknownNameError("kind of target", kind, TASKS)
    return TASKS[kind]


def options_of(task: Any) -> dict[str, Any]:
    """Return a task's options, which `make_task` takes, as values that JSON can hold."""
    return {one.name: getattr(task, one.name) for one in fields(task) if one.name != "target"}


def make_task(target: Target, options: Mapping[str, Any] | None = None) -> Task:
    """Create the task that fits the kind of a target.

    Args:
        target: What is predicted.
        options: Fields of the task's class, such as `class_weights`.

    Returns:
        The task: `Classification`, `MultiLabel`, `Regression`, or another of `TASKS`.

    Raises:
        UnknownNameError: There is no task for this kind of target, or it has no such option.
    """
    made = task_class(target.kind)
    known = [one.name for one in fields(made) if one.name != "target"]
    for name in options or {}:
        if name not in known:
            raise UnknownNameError(f"option of {made.__name__}", name, known)
    task: Task = made(target=target, **dict(options or {}))
    return task
