"""The pretraining objective: masks, prediction and contrast (paper section 3.2).

The student sees some of the patches, modalities and dates of a tile. A predictor predicts the hidden patches, and the
tokens of one patch in different modalities are pulled together.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING

import torch
from torch import Generator, Tensor, distributed, nn
from torch.distributed import _functional_collectives as collectives
from torch.nn import functional

from anysat.model.encoder import AnySat
from anysat.model.fusion import Hidden
from anysat.model.inputs import PixelInput
from anysat.model.positions import raster_coordinates, sincos_code
from anysat.model.steps import SeenPatches, ShownPatches
from anysat.model.validity import valid_or_all
from anysat.patches import PatchGrid
from anysat.pretrain.config import MaskingConfig, ObjectiveConfig
from anysat.pretrain.goals import (
    GOALS,
    AveragedTeacher,
    FrozenProjections,
    Targets,
    chunk_rows_on,
    num_numbers,
    numbers_of,
)
from anysat.pretrain.losses import centred, contrast_loss, known_loss, spread_loss
from anysat.pretrain.masking import BlockMasks, draw_masks, drop_dates, every_other_date, hide_modalities
from anysat.pretrain.predictor import Completer, Predictor

if TYPE_CHECKING:
    from anysat.data.loader import Draw

_log = logging.getLogger(__name__)
_gather = getattr(collectives, "all_gather_single_autograd", None) or collectives.all_gather_tensor_autograd
"""The name since torch 2.13, else the older one."""


class Pretraining(nn.Module):
    """The student with its predictor and prediction goal.

    Call it with a batch and a generator to get the terms of the loss, and call `after_update` once after every
    optimiser step. `encoder()` returns the trained encoder.

    Args:
        student: The encoder to train.
        masking: What is hidden from the student; by default the default options.
        config: What is learned; by default the default options.
        recompute: Recompute the student's activations for the backward pass instead of keeping them.
    """

    def __init__(
        self,
        student: AnySat,
        masking: MaskingConfig | None = None,
        config: ObjectiveConfig | None = None,
        *,
        recompute: bool = False,
    ) -> None:
        super().__init__()
        self.masking, self.config = masking or MaskingConfig(), config or ObjectiveConfig()
        self.recompute = recompute
        """Recompute the student's activations for the backward pass instead of keeping them."""
        self.student = student
        self.goal: AveragedTeacher | FrozenProjections = GOALS[self.config.goal](student, self.config)
        dim = student.config.dim
        self.predictor = Predictor(dim, self.config.predictor_depth, self.config.predictor_heads)
        self.completer = Completer(dim) if self.config.complete_weight else None
        self.dense_heads = nn.ModuleDict()
        if self.config.dense_weight:
            numbers = {m.key: num_numbers(m, self.config.harmonics) for m in student.config.modalities}
            self.dense_heads.update({key: nn.Linear(dim, count) for key, count in numbers.items()})
        self.hidden_token = nn.Parameter(torch.zeros(dim))

    def forward(self, draw: Draw, generator: Generator) -> dict[str, Tensor]:
        """Compute the loss of one batch.

        Args:
            draw: A batch of source values with its patch size.
            generator: A generator on the CPU, the only source of masks, hidden modalities and dropped dates.

        Returns:
            The terms of the loss by name, and their weighted sum, `loss`.
        """
        inputs, grid = self.student.prepare(draw.batch, draw.patch_size_m, refuse_empty=False)
        if all(pixels.valid is not None and not bool(pixels.valid.any()) for pixels in inputs.values()):
            _log.warning("step %d teaches nothing: no valid value in %s, tiles %s", draw.step, draw.dataset,
                         ", ".join(draw.batch.ids))  # fmt: skip
        masks = draw_masks(grid.num_rows, grid.num_cols, len(draw.batch), self.masking, generator)
        config = self.config
        is_compared = bool(config.predict_weight or config.complete_weight)
        wanted = self.goal(inputs, grid) if is_compared else {}  # before the student, whose activations are kept
        thinned = {key: drop_dates(pixels, self.masking.keep_dates_frac, generator) for key, pixels in inputs.items()}
        seen = self.see(thinned, grid)
        parts: dict[str, Tensor] = {}
        if is_compared or config.spread_weight:
            shown = self.show(seen, grid, masks, generator)
            masks, fused = masks.to(shown.indices.device), self.fuse(seen, shown, grid)
        if config.predict_weight:
            parts["predict"] = self.predict_loss(fused, shown, masks, wanted, grid)
        if self.completer is not None:
            parts["complete"] = self.complete_loss(self.completer(fused), shown, wanted)
        if config.dense_weight:
            parts["dense"] = self.dense_loss(seen, inputs, grid)
        if config.contrast_weight:
            parts["contrast"] = self.contrast(seen)
        if config.dates_weight:
            parts["dates"] = self.contrast_dates(thinned, grid)
        if config.spread_weight:
            parts["spread"] = self.spread(seen, fused[shown.valid])
        weighted = [getattr(config, f"{name}_weight") * part for name, part in parts.items()]
        return {"loss": torch.stack(weighted).sum(), **parts}

    def see(self, inputs: dict[str, PixelInput], grid: PatchGrid) -> dict[str, SeenPatches]:
        """Return the student's tokens of every patch in each modality."""
        rows = chunk_rows_on(self.student.device)
        keep = tuple(inputs) if self.config.dense_weight else ()
        return self.student.see(inputs, grid.patch_size_m, keep, chunk_rows=rows, recompute=self.recompute)

    def show(
        self, seen: dict[str, SeenPatches], grid: PatchGrid, masks: BlockMasks, generator: Generator
    ) -> ShownPatches:
        """Return the observed patches of the context, with some of their modality tokens hidden."""
        flags = self._flags(seen, grid)  # (batch modality patch)
        context = masks.context & flags.any(1).cpu() if flags.shape[1] else masks.context
        count = max(1, int(context.sum(1).max()))
        indices = (~context).long().argsort(dim=1, stable=True)[:, :count]
        valid = context.gather(1, indices)
        chosen = flags.cpu().gather(2, indices[:, None].expand(-1, flags.shape[1], -1)) & valid[:, None]
        hidden = torch.zeros_like(chosen)
        if flags.shape[1] > 1 and self.masking.hide_modalities_frac:
            hidden = hide_modalities(chosen, self.masking.hide_modalities_frac, generator)
        device = self.hidden_token.device
        return ShownPatches(indices.to(device), valid.to(device), Hidden(hidden.to(device), self.hidden_token))

    def fuse(self, seen: dict[str, SeenPatches], shown: ShownPatches, grid: PatchGrid) -> Tensor:
        """Return the student's fused tokens of the context (batch shown dim)."""
        return self.student.fuse(seen, (grid.num_rows, grid.num_cols), grid.patch_size_m, shown)[1]

    def predict(self, fused: Tensor, shown: ShownPatches, targets: Tensor, grid: PatchGrid) -> Tensor:
        """Predict the patches `targets` (block batch target) from the context; returns (block batch target dim)."""
        unit = grid.patch_size_m / self.student.config.patch_position_unit_m
        places = raster_coordinates(grid.num_rows, grid.num_cols, fused.device)
        code = sincos_code(places, unit, self.student.config.dim)
        valid = None if bool(shown.valid.all()) else shown.valid
        found: Tensor = self.predictor(fused, valid, code[shown.indices], code[targets])
        return found

    def predict_loss(
        self, fused: Tensor, shown: ShownPatches, masks: BlockMasks, wanted: Mapping[str, Targets], grid: PatchGrid
    ) -> Tensor:
        """Compute the loss between the predictions for the hidden patches and their targets."""
        counts = (masks.targets_valid & shown.valid.any(1))[..., None].expand_as(masks.targets)
        predicted = self.predict(fused, shown, masks.targets, grid)
        return self.goal.loss(predicted, {key: target.at(masks.targets) for key, target in wanted.items()}, counts)

    def complete_loss(self, said: Tensor, shown: ShownPatches, wanted: Mapping[str, Targets]) -> Tensor:
        """Compute the loss between predictions `said` for the context patches (batch shown dim) and their targets."""
        targets = {key: target.at(shown.indices[None]) for key, target in wanted.items()}
        return self.goal.loss(said[None], targets, shown.valid[None])

    def dense_loss(self, seen: Mapping[str, SeenPatches], inputs: Mapping[str, PixelInput], grid: PatchGrid) -> Tensor:
        """Compute the loss between predictions from sub-patch tokens and their pixels; the mean over modalities."""
        terms = []
        for key, part in seen.items():
            assert part.sub is not None, key
            cut, modality = self.student.projectors[key].cut, self.student.config.modality(key)
            wanted, known = numbers_of(cut, modality, inputs[key], grid.patch_size_m, self.config.harmonics)  # type: ignore[arg-type]
            if part.sub_valid is not None:
                known = known & part.sub_valid.flatten(0, 2)[..., None]
            told = self.dense_heads[key](part.sub.flatten(0, 2))
            terms.append(known_loss(*(one.flatten(0, 1) for one in (told, wanted, known))))
        return torch.stack(terms).mean()

    def spread(self, seen: Mapping[str, SeenPatches], fused: Tensor) -> Tensor:
        """Compute the spread loss; the mean over the tokens of each modality and the fused ones (token dim)."""
        tokens = [fused]
        for part in seen.values():
            tokens.append(part.patch.flatten(0, 2) if part.patch_valid is None else part.patch[part.patch_valid])
        return torch.stack([spread_loss(one) for one in tokens]).mean()

    def contrast(self, seen: dict[str, SeenPatches]) -> Tensor:
        """Compute the contrast between modalities, without context modalities. It is 0 if there is only one."""
        tiling = {key: part for key, part in seen.items() if not self.student.config.modality(key).covers_tile}
        if len(tiling) < 2:  # others may have more modalities and wait for this process
            alone = next(iter(seen.values())).patch.flatten(1, 2)[:, None].float()
            others = self._others(alone[:, :0], None)
            return alone.sum() * 0.0 if others is None else (alone.sum() + others[0].sum()) * 0.0
        tokens, valid = self._contrasted(tiling.values())
        return contrast_loss(tokens, valid, self.config.temperature, self._others(tokens, valid))

    def contrast_dates(self, inputs: Mapping[str, PixelInput], grid: PatchGrid) -> Tensor:
        """Compute the contrast between even and odd dates; the mean over the series, 0 if there is none."""
        series = {key: pixels for key, pixels in inputs.items() if pixels.days is not None and pixels.days.shape[1] > 1}
        if not series:
            return self.hidden_token.float().sum() * 0.0
        rows = chunk_rows_on(self.student.device)
        first, second = (
            self.student.see({key: every_other_date(pixels, start) for key, pixels in series.items()},
                             grid.patch_size_m, chunk_rows=rows, recompute=self.recompute)
            for start in (0, 1)
        )  # fmt: skip
        halves = (self._contrasted((first[key], second[key])) for key in series)
        return torch.stack([contrast_loss(*both, self.config.temperature) for both in halves]).mean()

    def _contrasted(self, parts: Collection[SeenPatches]) -> tuple[Tensor, Tensor | None]:
        """Return tokens to contrast (batch part patch dim), and which are valid; None if all are."""
        tokens, valid = torch.stack([part.patch.flatten(1, 2) for part in parts], 1), None
        if any(part.patch_valid is not None for part in parts):
            valid = torch.stack([valid_or_all(part.patch, part.patch_valid).flatten(1) for part in parts], 1)
        return centred(tokens.float(), valid, (0, 2)) if self.config.centred else tokens, valid

    def _others(self, tokens: Tensor, valid: Tensor | None) -> tuple[Tensor, Tensor] | None:
        """Return the negatives of the other processes. All of them must call this once in a step.

        Validation has none, because processes then see different numbers of batches of different datasets.
        """
        return from_other_ranks(tokens, valid) if self.config.gather_negatives and self.training else None

    def after_update(self, step: int, num_steps: int) -> None:
        """Update the teacher; `step` is the number of the optimiser step just done, from 0."""
        self.goal.follow(self.student, step / num_steps)

    def encoder(self) -> AnySat:
        """Return the encoder to keep: the teacher, or the student if there is none."""
        return self.goal.kept(self.student)

    def _flags(self, seen: dict[str, SeenPatches], grid: PatchGrid) -> Tensor:
        """Return which patches each modality observed (batch modality patch), without context modalities."""
        tiling = [part for key, part in seen.items() if not self.student.config.modality(key).covers_tile]
        first = next(iter(seen.values())).patch
        flags = [valid_or_all(part.patch, part.patch_valid).flatten(1) for part in tiling]
        return torch.stack(flags, 1) if flags else first.new_zeros(len(first), 0, grid.num_patches, dtype=torch.bool)


def from_other_ranks(tokens: Tensor, valid: Tensor | None) -> tuple[Tensor, Tensor] | None:
    """Gather the tokens of all other ranks, with gradients. Ranks may have different numbers of tokens.

    Args:
        tokens: (batch modality patch dim) of this rank.
        valid: (batch modality patch); None if all are valid.

    Returns:
        Tokens (other dim) and validity (other) of the other ranks; None for a single process.
    """
    if not (distributed.is_available() and distributed.is_initialized()) or distributed.get_world_size() == 1:
        return None
    flat = tokens.flatten(0, 2)
    seen = flat.new_ones(len(flat), dtype=torch.bool) if valid is None else valid.flatten()
    most = torch.tensor(len(flat), device=flat.device)
    distributed.all_reduce(most, distributed.ReduceOp.MAX)
    if int(most) == 0:  # the same in all processes
        return flat, seen
    missing = int(most) - len(flat)
    padded = functional.pad(flat, (0, 0, 0, missing))
    everyone = distributed.group.WORLD
    assert everyone is not None, "there is a group, as checked above"
    gathered = _gather(padded, 0, everyone)
    all_tokens = gathered.unflatten(0, (-1, int(most)))
    all_seen = [torch.empty(int(most), dtype=torch.bool, device=flat.device) for _ in all_tokens]
    distributed.all_gather(all_seen, functional.pad(seen, (0, missing)))
    own = distributed.get_rank()
    others = [rank for rank in range(len(all_tokens)) if rank != own]
    return torch.cat([all_tokens[rank] for rank in others]), torch.cat([all_seen[rank] for rank in others])
