"""The objective of fine-tuning, which is the task's loss, and the monitor that scores held-out tiles."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Self

import torch
from torch import Generator, Tensor, nn

from anysat.batch import Batch
from anysat.data.base import Tiles
from anysat.data.loader import Draw, place_among_processes
from anysat.data.mixture import OrderedPass
from anysat.geo.degrees import place_deg
from anysat.model.encoder import AnySat
from anysat.model.precision import Precision
from anysat.tasks.adapt import Trained, adapt, depth_scale, frozen_parts, merged, set_pixel_dropout
from anysat.tasks.base import mean_loss
from anysat.tasks.predictor import Predictor, each_batch, names_of_empty
from anysat.tasks.scores import Scores


class FineTuning(nn.Module):
    """A predictor in training, as an objective for the training loop.

    Args:
        predictor: Encoder, head and task. It is trained in place.
        trained: The part of the encoder to train.
        layer_decay: Factor of the learning rate of each block relative to the block above; 1 for none.
        rank: Rank for `lora`.
        new: Modalities whose projectors have random weights and therefore learn at the full rate.
        pixel_dropout_prob: Dropout in the projectors of series; None keeps theirs.
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
        """Set the mode of everything that is not frozen. Frozen parts stay in eval mode."""
        super().train(mode)
        for part in frozen_parts(self.predictor.encoder, self.trained):
            part.eval()
        return self

    def forward(self, draw: Draw, generator: Generator) -> dict[str, Tensor]:  # noqa: ARG002 - nothing is drawn here
        """Return the task's loss of a batch at its patch size."""
        predictor = self.predictor
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.trained != "head"):
            seen = predictor.see(predictor.of_dataset(draw.batch), draw.patch_size_m)
        loss = predictor.task.loss(predictor.head(seen), draw.batch.targets[predictor.task.target.name])
        looked_at = seen.dense_valid if predictor.head.dense else seen.valid
        if bool(loss.isnan()) and looked_at is not None and not bool(looked_at.any()):  # nothing was observed
            loss = torch.stack([p.sum() for p in self.parameters() if p.requires_grad]).sum() * 0.0
        return {"loss": loss}

    def after_update(self, step: int, num_steps: int) -> None:
        """Do nothing."""

    def encoder(self) -> AnySat:
        """Return the encoder, with low-rank additions merged into its weights."""
        return merged(self.predictor.encoder)

    def learning_rate_scale(self, name: str) -> float:
        """Return a lower rate for lower blocks of the encoder, and 1 for the head and for new projectors."""
        of_encoder = name.removeprefix("predictor.encoder.")
        if self.layer_decay == 1 or of_encoder == name or of_encoder.startswith(self._new):
            return 1.0
        return depth_scale(of_encoder, self.predictor.encoder.config.depth, self.layer_decay)

    def finished(self) -> Predictor:
        """Return the trained predictor, in eval mode."""
        own = self.predictor
        done = Predictor(merged(own.encoder), own.task, own.view, own.head_config.name, width=own.head_config.width)
        done.head.load_state_dict(own.head.state_dict())
        return done.to(own.encoder.device).eval()


_Loss = tuple[float, float]
"""Loss of a batch, and its `Task.loss_weight`."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Scoring:
    """Loss and scores on held-out tiles, shared among the processes. `val/<score>` covers the tiles of all of them."""

    every_steps: int | Fraction
    tiles: Tiles
    batch_size: int = 8
    precision: Precision = "float32"
    """Type of the encoder's matrix products."""
    num_workers: int = 0
    """Number of processes that read tiles ahead; 0 reads in this process."""
    name: str = "val"

    def __call__(self, objective: nn.Module, step: int) -> Mapping[str, float]:  # noqa: ARG002 - the same at each step
        """Return loss and scores by name."""
        predictor: Any = objective.predictor
        losses: list[_Loss] = []
        found = score(predictor, self.tiles, self.batch_size, losses=losses, share=place_among_processes(),
                      precision=self.precision, num_workers=self.num_workers)  # fmt: skip
        return {"loss": mean_loss(_of_all_processes(losses)), **found.figures}


def score(
    predictor: Predictor, tiles: Tiles, batch_size: int = 8, *, losses: list[_Loss] | None = None,
    share: tuple[int, int] = (0, 1), advance: Any = lambda _: None, unseen: list[str] | None = None,
    places: list[tuple[float, float]] | None = None, answers: list[tuple[Tensor, Tensor]] | None = None,
    precision: Precision = "float32", num_workers: int = 0,
) -> Scores:  # fmt: skip
    """Return the scores of a predictor on tiles with targets.

    Args:
        predictor: Predictor of a task whose target the tiles have.
        tiles: Tiles to predict, in order.
        batch_size: Number of tiles predicted at once.
        losses: List to which the loss of each batch and its weight are appended.
        share: Number of this process, and of processes that share the tiles. Each returns the scores of all tiles.
        advance: Called with the number of tiles done.
        unseen: List to which the names of tiles without a valid value are appended. They count as not answered.
        places: List to which longitude and latitude of each tile's centre are appended; NaN if not known.
        answers: List to which outputs and targets of each batch are appended, on the CPU.
        precision: Type of the encoder's matrix products.
        num_workers: Number of processes that read tiles ahead; 0 reads in this process. Scores do not depend on it.
    """
    task, sheet = predictor.task, predictor.task.metric().to(predictor.device)
    number, count = share
    if count == 1:  # other processes may have ended and must not be waited for
        sheet.distributed_available_fn = lambda: False
    reading = OrderedPass(tiles=tiles, batch_size=batch_size, patch_size_m=predictor.view.patch_sizes_m[0],
                          rank=number, world_size=count)  # fmt: skip

    def take(batch: Batch, outputs: Tensor) -> None:
        truth = batch.targets[task.target.name]
        task.score(sheet, outputs, truth)
        if unseen is not None:
            unseen.extend(names_of_empty(batch, outputs))
        if losses is not None:
            losses.append((float(task.loss(outputs, truth)), task.loss_weight(outputs, truth)))
        if answers is not None:
            answers.append((outputs.cpu(), truth.cpu().clone()))
        if places is not None:
            places.extend(map(place_deg, batch.geoboxes))
        advance(len(batch))

    loader = reading.loader(num_workers=num_workers, pin_memory=predictor.device.type == "cuda")
    each_batch(predictor, (draw.batch for draw in loader), take, precision)
    found: Scores = sheet.compute()
    return found


def _of_all_processes(mine: list[_Loss]) -> list[_Loss]:
    """Return what all processes counted, because a mean of their means would weight places unequally."""
    _, count = place_among_processes()
    if count == 1:
        return mine
    found: list[Any] = [None] * count
    torch.distributed.all_gather_object(found, mine)
    return [loss for some in found for loss in some]
