"""What fine-tuning minimises and watches: the task's loss, and its scores on held-out tiles."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Self

import torch
from torch import Generator, Tensor, nn

from anysat.batch import Batch
from anysat.data.base import Tiles
from anysat.data.loader import Draw
from anysat.model.encoder import AnySat
from anysat.model.modes import evaluating
from anysat.model.precision import Precision, multiplying
from anysat.model.ready import keeping_ready
from anysat.tasks.adapt import Trained, adapt, depth_scale, frozen_parts, merged, set_pixel_dropout
from anysat.tasks.base import labelled, mean_loss
from anysat.tasks.predictor import Predictor
from anysat.tasks.scores import Scores


class FineTuning(nn.Module):
    """A predictor in training, as the engine takes it.

    Args:
        predictor: encoder, head and task; trained in place.
        trained: which part of the encoder.
        layer_decay: what the learning rate of each block is multiplied with, relative to the block above; 1 for none.
        rank: of `lora`.
        new: modalities whose projectors have random weights: they learn at the full rate.
        pixel_dropout_prob: dropout in the projectors of series; None for what they have.
    """

    def __init__(
        self, predictor: Predictor, trained: Trained, *, layer_decay: float = 1.0, rank: int = 8,
        new: Collection[str] = (), pixel_dropout_prob: float | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        self.predictor, self.trained, self.layer_decay = predictor, trained, layer_decay
        self._new = tuple(f"projectors.{key}." for key in new)
        adapt(predictor.encoder, trained, rank=rank, modalities=predictor.view.modalities)
        if pixel_dropout_prob is not None:
            set_pixel_dropout(predictor.encoder, pixel_dropout_prob)
        self.predictor.head.requires_grad_(True)

    def train(self, mode: bool = True) -> Self:
        """What is frozen stays in eval mode."""
        super().train(mode)
        for part in frozen_parts(self.predictor.encoder, self.trained):
            part.eval()
        return self

    def forward(self, draw: Draw, generator: Generator) -> dict[str, Tensor]:  # noqa: ARG002 - nothing is drawn here
        """The task's loss of a batch at its patch size."""
        predictor = self.predictor
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.trained != "head"):
            seen = predictor.see(predictor.of_dataset(draw.batch), draw.patch_size_m)
        loss = predictor.task.loss(predictor.head(seen), draw.batch.targets[predictor.task.target.name])
        looked_at = seen.dense_valid if predictor.head.dense else seen.valid
        if bool(loss.isnan()) and looked_at is not None and not bool(looked_at.any()):  # not diverged: nothing was seen
            loss = torch.stack([p.sum() for p in self.parameters() if p.requires_grad]).sum() * 0.0
        return {"loss": loss}

    def after_update(self, step: int, num_steps: int) -> None:
        """Nothing follows."""

    def encoder(self) -> AnySat:
        """The encoder, low-rank additions taken into its weights."""
        return merged(self.predictor.encoder)

    def learning_rate_scale(self, name: str) -> float:
        """Less for lower blocks of the encoder, 1 for the head and for new projectors, which have all to learn."""
        of_encoder = name.removeprefix("predictor.encoder.")
        if self.layer_decay == 1 or of_encoder == name or of_encoder.startswith(self._new):
            return 1.0
        return depth_scale(of_encoder, self.predictor.encoder.config.depth, self.layer_decay)

    def finished(self) -> Predictor:
        """The predictor that is left, in eval mode."""
        own = self.predictor
        done = Predictor(merged(own.encoder), own.task, own.view, own.head_config.name, width=own.head_config.width)
        done.head.load_state_dict(own.head.state_dict())
        return done.to(own.encoder.device).eval()


_Loss = tuple[float, int]
"""Mean loss of a batch, and the number of its labels."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Scoring:
    """Loss and scores on held-out tiles, shared out among the processes; `val/<score>` are those of all of them."""

    every_steps: int | Fraction
    tiles: Tiles
    batch_size: int = 8
    precision: Precision = "float32"
    """In what the encoder's matrices are multiplied."""
    name: str = "val"

    def __call__(self, objective: nn.Module, step: int) -> Mapping[str, float]:  # noqa: ARG002 - the same at each step
        """Figures by name."""
        predictor: Any = objective.predictor
        losses: list[_Loss] = []
        found = score(predictor, self.tiles, self.batch_size, losses=losses, share=_share(), precision=self.precision)
        losses = _of_all_processes(losses)
        return {"loss": mean_loss([loss for loss, _ in losses], [count for _, count in losses]), **found.figures}


def score(
    predictor: Predictor, tiles: Tiles, batch_size: int = 8, *, losses: list[_Loss] | None = None,
    share: tuple[int, int] = (0, 1), advance: Any = lambda _: None, unseen: list[str] | None = None,
    precision: Precision = "float32",
) -> Scores:  # fmt: skip
    """Scores of a predictor on tiles with targets, in their order.

    Args:
        predictor: of a task whose target the tiles have.
        tiles: to be answered.
        batch_size: tiles at a time.
        losses: a list the loss of each batch is put on, with the number of its labels.
        share: this process's number and how many share the tiles out; scores are of all tiles in each.
        advance: called with the number of tiles done.
        unseen: a list the names of tiles without a valid value are put on; they are scored as not answered.
        precision: in what the encoder's matrices are multiplied.
    """
    task, sheet = predictor.task, predictor.task.metric().to(predictor.device)
    number, count = share
    if count == 1:  # other processes may have ended: nothing is to be had of them
        sheet.distributed_available_fn = lambda: False
    numbers = list(range(len(tiles)))[number::count]
    with keeping_ready(), evaluating(predictor), torch.inference_mode(), multiplying(precision, predictor.device):
        for start in range(0, len(numbers), batch_size):
            batch = Batch.of([tiles[index] for index in numbers[start : start + batch_size]])
            batch = batch.to(predictor.device)
            outputs, truth = predictor(predictor.of_dataset(batch)), batch.targets[task.target.name]
            task.score(sheet, outputs, truth)
            if unseen is not None:
                empty = outputs.flatten(1).isnan().all(1).tolist()
                unseen += [name for name, nothing in zip(batch.ids, empty, strict=True) if nothing]
            if losses is not None:
                losses.append((float(task.loss(outputs, truth)), int(labelled(task.target, truth).sum())))
            advance(len(batch))
    found: Scores = sheet.compute()
    return found


def _of_all_processes(mine: list[_Loss]) -> list[_Loss]:
    """What every process counted, in each of them: a mean of their means would count the labels of few for more."""
    _, count = _share()
    if count == 1:
        return mine
    found: list[Any] = [None] * count
    torch.distributed.all_gather_object(found, mine)
    return [loss for some in found for loss in some]


def _share() -> tuple[int, int]:
    """Number of this process and how many train together."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_rank(), torch.distributed.get_world_size()
    return 0, 1
