"""Tasks: a target with its number of outputs, their loss, their meaning and their scores.

To add a task, write one file with a class that implements `Task`, and name it in `make_task`. A new kind of target
takes more: nearest-neighbour heads, simple models, maps, pictures and reports also look at `Target.kind`.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

from anysat.data.base import Target
from anysat.errors import UnknownNameError

if TYPE_CHECKING:
    from torchmetrics import Metric


class Task(Protocol):
    """A target and everything that depends on its kind: number of outputs, loss, answers and scores.

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

    def loss(self, outputs: Tensor, truth: Tensor) -> Tensor:
        """Return the mean loss over the places that have a label and were observed.

        It is 0 if there are none, and NaN if no output is finite.
        """

    def probabilities(self, outputs: Tensor) -> Tensor | None:
        """Return the probability of every class or label, in the shape of `outputs`; None for values."""

    def answer(self, outputs: Tensor) -> Tensor:
        """Turn outputs into answers.

        They are class numbers (tile) or (tile row col), -1 where nothing was observed; labels 0 and 1; or values.
        """

    def metric(self) -> Metric:
        """Return an empty score sheet, which `score` fills and whose `compute()` returns `Scores`."""

    def score(self, sheet: Any, outputs: Tensor, truth: Tensor, groups: Tensor | None = None) -> None:
        """Add tiles to a score sheet. Tiles with the same number in `groups` (tile) are resampled together."""

    def right(self, outputs: Tensor, truth: Tensor) -> Tensor:
        """Return how well each tile is predicted (tile): higher is better, NaN for a tile without a label."""

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON, without the target. `make_task` takes them."""


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


def mean_loss(losses: Sequence[float], labels: Sequence[int]) -> float:
    """Return the mean of the losses of several batches, weighted by their numbers of labels.

    Batches without a label or with a loss of NaN do not count. The mean is NaN if no batch is left.
    """
    told, counts = torch.tensor(losses, dtype=torch.float64), torch.tensor(labels, dtype=torch.float64)
    known = (counts > 0) & ~told.isnan()
    return float((told * counts)[known].sum() / counts[known].sum())


def make_task(target: Target, options: Mapping[str, Any] | None = None) -> Task:
    """Create the task that fits the kind of a target.

    Args:
        target: What is predicted.
        options: Fields of the task's class, such as `class_weights`.

    Returns:
        The task: `Classification`, `MultiLabel` or `Regression`.

    Raises:
        UnknownNameError: There is no task for this kind of target, or it has no such option.
    """
    from anysat.tasks.classification import Classification, MultiLabel
    from anysat.tasks.regression import Regression

    tasks: dict[str, Any] = {"class": Classification, "labels": MultiLabel, "value": Regression}
    if target.kind not in tasks:
        raise UnknownNameError("kind of target", target.kind, tasks)
    made = tasks[target.kind]
    known = [name for name in made.__dataclass_fields__ if name != "target"]
    for name in options or {}:
        if name not in known:
            raise UnknownNameError(f"option of {made.__name__}", name, known)
    task: Task = made(target=target, **dict(options or {}))
    return task
