"""What a task is: a target, how many numbers tell it, the loss that trains them, what they mean, how they are scored.

To add a task, write one file with a class that has what `Task` asks for, and name it in `make_task`. A new kind of
target takes more: heads of neighbours, simple models, maps, pictures and reports look at `Target.kind`, too.
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
    """One target and everything that depends on its kind.

    Outputs are channel-last: (tile output) of a tile's target, (tile row col output) of a pixel's. NaN where the
    encoder saw nothing; such places are never trained on. In scores they count: a class as a mistake, a value as the
    mean.
    """

    @property
    def target(self) -> Target:
        """What is predicted."""

    @property
    def num_outputs(self) -> int:
        """Numbers per tile or pixel."""

    @property
    def primary(self) -> str:
        """Name of the score by which settings are chosen."""

    @property
    def highest_is_best(self) -> bool:
        """Whether a higher one is better."""

    def loss(self, outputs: Tensor, truth: Tensor) -> Tensor:
        """Mean over what has a label and was seen; 0 where nothing has, NaN where no output is a number."""

    def probabilities(self, outputs: Tensor) -> Tensor | None:
        """Of every class or label, same shape; None where outputs are values."""

    def answer(self, outputs: Tensor) -> Tensor:
        """Class number ((tile) or (tile row col), -1 where nothing was seen), labels 0 and 1, or values."""

    def metric(self) -> Metric:
        """An empty score sheet, which `score` fills and whose `compute()` gives `Scores`."""

    def score(self, sheet: Any, outputs: Tensor, truth: Tensor, groups: Tensor | None = None) -> None:
        """Put some tiles on a score sheet; `groups` (tile) are what intervals draw together."""

    def right(self, outputs: Tensor, truth: Tensor) -> Tensor:
        """How well each tile is answered (tile), higher is better, NaN for a tile without a label."""

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON, without the target; `make_task` takes them."""


LOWEST_IS_BEST = frozenset({"calibration_error", "rmse", "mae"})
"""Figures of which a lower one is better."""


def check_monitor(name: str | None, figures: Collection[str]) -> None:
    """Refuse a score to choose by that a task does not have, or of which neither end is the best.

    Raises:
        UnknownNameError: naming those there are.
    """
    known = [figure for figure in figures if figure != "bias"]
    if name is not None and name not in known:
        raise UnknownNameError("score to choose by", name, known)


def nothing(outputs: Tensor) -> Tensor:
    """Loss of a batch where nothing has a label and was seen: 0, with a gradient of 0.

    NaN where no output at all is a number: somebody always sees some of a batch, so that the model has diverged.
    """
    finite = outputs.isfinite()
    return (0.0 * (outputs.where(finite, 0.0) if bool(finite.any()) else outputs).float()).sum()


def labelled(target: Target, truth: Tensor) -> Tensor:
    """Which of a target's numbers are known, same shape."""
    return truth.isfinite() if target.ignore is None else truth.isfinite() & (truth != target.ignore)


def mean_loss(losses: Sequence[float], labels: Sequence[int]) -> float:
    """Mean of the losses of some batches, each as often as it has labels; NaN where none has one and a loss."""
    told, counts = torch.tensor(losses, dtype=torch.float64), torch.tensor(labels, dtype=torch.float64)
    known = (counts > 0) & ~told.isnan()
    return float((told * counts)[known].sum() / counts[known].sum())


def make_task(target: Target, options: Mapping[str, Any] | None = None) -> Task:
    """The task that fits a target's kind.

    Args:
        target: what is predicted.
        options: fields of the task's class, such as `class_weights`.

    Raises:
        UnknownNameError: no task has such a kind or option.
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
