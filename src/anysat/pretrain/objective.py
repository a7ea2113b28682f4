"""The objective of pretraining: hide, predict, contrast (paper section 3.2, spec 3.1 to 3.5).

The student sees part of the patches, modalities and dates of a tile; a predictor says what the hidden patches hold;
tokens of one patch in different modalities are drawn together.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Mapping
from typing import TYPE_CHECKING

import torch
from torch import Generator, Tensor, nn

from anysat.model.encoder import AnySat
from anysat.model.fusion import Hidden
from anysat.model.inputs import PixelInput
from anysat.model.positions import raster_coordinates, sincos_code
from anysat.model.steps import SeenPatches, ShownPatches
from anysat.patches import PatchGrid, subpatches_per_side
from anysat.pretrain.config import MaskingConfig, ObjectiveConfig
from anysat.pretrain.gather import from_other_ranks
from anysat.pretrain.goals import GOALS, AveragedTeacher, FrozenProjections, Targets, chunk_rows_on
from anysat.pretrain.losses import centred, contrast_loss, known_loss, spread_loss
from anysat.pretrain.masking import BlockMasks, draw_masks, drop_dates, every_other_date, hide_modalities
from anysat.pretrain.pixels import describe, num_numbers
from anysat.pretrain.predictor import Completer, Predictor

if TYPE_CHECKING:
    from anysat.data.loader import Draw

_log = logging.getLogger(__name__)


class Pretraining(nn.Module):
    """Student, predictor and what is to be predicted.

    Call it with a batch and a generator for the parts of the loss; call `after_update` once after every
    optimiser step; `encoder()` is what is kept.
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
        """True to compute activations of the student again for the gradient instead of keeping them."""
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
        """Parts of the loss of one batch, and `loss`, their weighted sum.

        Args:
            draw: a batch of source values and its patch size.
            generator: on the CPU; masks, hidden modalities and dropped dates are drawn from it alone.
        """
        inputs, grid = self.student.prepare(draw.batch, draw.patch_size_m, refuse_empty=False)
        if all(pixels.valid is not None and not bool(pixels.valid.any()) for pixels in inputs.values()):
            _log.warning("step %d teaches nothing: no valid value in %s, tiles %s", draw.step, draw.dataset,
                         ", ".join(draw.batch.ids))  # fmt: skip
        masks = draw_masks(grid.num_rows, grid.num_cols, len(draw.batch), self.masking, generator)
        thinned = {key: drop_dates(pixels, self.masking.keep_dates_frac, generator) for key, pixels in inputs.items()}
        seen = self.see(thinned, grid)
        parts: dict[str, Tensor] = {}
        config = self.config
        if config.predict_weight or config.complete_weight or config.spread_weight:
            shown = self.show(seen, grid, masks, generator)
            masks, fused = masks.to(shown.indices.device), self.fuse(seen, shown, grid)
        if config.predict_weight or config.complete_weight:
            wanted = self.goal(inputs, grid)
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
        """The student's tokens of every patch in each modality."""
        rows = chunk_rows_on(self.student.device)
        keep = tuple(inputs) if self.config.dense_weight else ()
        return self.student.see(inputs, grid.patch_size_m, keep, chunk_rows=rows, recompute=self.recompute)

    def show(
        self, seen: dict[str, SeenPatches], grid: PatchGrid, masks: BlockMasks, generator: Generator
    ) -> ShownPatches:
        """The patches of the context that somebody saw, with some of their modality tokens hidden."""
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
        """The student's fused tokens of the context (batch shown dim)."""
        return self.student.fuse(seen, (grid.num_rows, grid.num_cols), grid.patch_size_m, shown)[1]

    def predict(self, fused: Tensor, shown: ShownPatches, targets: Tensor, grid: PatchGrid) -> Tensor:
        """What the predictor says of some patches (block batch target), (block batch target dim)."""
        unit = grid.patch_size_m / self.student.config.patch_position_unit_m
        places = raster_coordinates(grid.num_rows, grid.num_cols, fused.device)
        code = sincos_code(places, unit, self.student.config.dim)
        valid = None if bool(shown.valid.all()) else shown.valid
        found: Tensor = self.predictor(fused, valid, code[shown.indices], code[targets])
        return found

    def predict_loss(
        self, fused: Tensor, shown: ShownPatches, masks: BlockMasks, wanted: Mapping[str, Targets], grid: PatchGrid
    ) -> Tensor:
        """How far what the predictor says of the hidden patches is from what they hold."""
        counts = (masks.targets_valid & shown.valid.any(1))[..., None].expand_as(masks.targets)
        predicted = self.predict(fused, shown, masks.targets, grid)
        return self.goal.loss(predicted, {key: target.at(masks.targets) for key, target in wanted.items()}, counts)

    def complete_loss(self, said: Tensor, shown: ShownPatches, wanted: Mapping[str, Targets]) -> Tensor:
        """How far what is said of the context's own patches (batch shown dim) is from all that they hold."""
        targets = {key: target.at(shown.indices[None]) for key, target in wanted.items()}
        return self.goal.loss(said[None], targets, shown.valid[None])

    def dense_loss(self, seen: Mapping[str, SeenPatches], inputs: Mapping[str, PixelInput], grid: PatchGrid) -> Tensor:
        """Mean over modalities of how far what sub-patches say of their pixels is from all that these hold."""
        terms = []
        for key, part in seen.items():
            assert part.sub is not None, key
            wanted, known = self._numbers(key, inputs[key], grid.patch_size_m)
            if part.sub_valid is not None:
                known = known & part.sub_valid.flatten(0, 2)[..., None]
            told = self.dense_heads[key](part.sub.flatten(0, 2))
            terms.append(known_loss(*(one.flatten(0, 1) for one in (told, wanted, known))))
        return torch.stack(terms).mean()

    @torch.no_grad()
    def _numbers(self, key: str, pixels: PixelInput, patch_size_m: float) -> tuple[Tensor, Tensor]:
        """What the sub-patches of a modality hold (patch sub number), and which of it is known."""
        side = subpatches_per_side(patch_size_m, self.student.config.modality(key))
        cut: Callable[[Tensor, int], Tensor] = self.student.projectors[key].cut  # type: ignore[assignment]
        valid = None if pixels.valid is None else cut(pixels.valid, side)
        return describe(cut(pixels.values, side), valid, pixels.days, self.config.harmonics)

    def spread(self, seen: Mapping[str, SeenPatches], fused: Tensor) -> Tensor:
        """Mean over the modalities' tokens and the fused ones (token dim) of how little they spread."""
        tokens = [fused]
        for part in seen.values():
            tokens.append(part.patch.flatten(0, 2) if part.patch_valid is None else part.patch[part.patch_valid])
        return torch.stack([spread_loss(one) for one in tokens]).mean()

    def contrast(self, seen: dict[str, SeenPatches]) -> Tensor:
        """Contrast between the modalities whose pixels lie in patches; 0 where there is only one."""
        tiling = {key: part for key, part in seen.items() if not self.student.config.modality(key).covers_tile}
        if len(tiling) < 2:  # other processes may have more, and wait for the tokens of this one: none
            alone = next(iter(seen.values())).patch.flatten(1, 2)[:, None].float()
            others = self._others(alone[:, :0], None)
            return alone.sum() * 0.0 if others is None else (alone.sum() + others[0].sum()) * 0.0
        tokens, valid = (
            torch.stack([part.patch.flatten(1, 2) for part in tiling.values()], 1),
            _validity(tiling.values()),
        )
        if self.config.centred:
            tokens = centred(tokens.float(), valid, (0, 2))
        return contrast_loss(tokens, valid, self.config.temperature, self._others(tokens, valid))

    def contrast_dates(self, inputs: Mapping[str, PixelInput], grid: PatchGrid) -> Tensor:
        """Mean over the series of the contrast between every other date and those between; 0 where there is none."""
        series = {key: pixels for key, pixels in inputs.items() if pixels.days is not None and pixels.days.shape[1] > 1}
        if not series:
            return self.hidden_token.float().sum() * 0.0
        rows, terms = chunk_rows_on(self.student.device), []
        first, second = (
            self.student.see({key: every_other_date(pixels, start) for key, pixels in series.items()},
                             grid.patch_size_m, chunk_rows=rows, recompute=self.recompute)
            for start in (0, 1)
        )  # fmt: skip
        for key in series:
            halves = (first[key], second[key])
            tokens, valid = torch.stack([half.patch.flatten(1, 2) for half in halves], 1), _validity(halves)
            if self.config.centred:
                tokens = centred(tokens.float(), valid, (0, 2))
            terms.append(contrast_loss(tokens, valid, self.config.temperature))
        return torch.stack(terms).mean()

    def _others(self, tokens: Tensor, valid: Tensor | None) -> tuple[Tensor, Tensor] | None:
        """Negatives of the other processes, one call of each in a step.

        Not in validation, where processes look at different numbers of batches, of different datasets.
        """
        return from_other_ranks(tokens, valid) if self.config.gather_negatives and self.training else None

    def after_update(self, step: int, num_steps: int) -> None:
        """Move the teacher; `step` is the number of the optimiser step that was just done, from 0."""
        self.goal.follow(self.student, step / num_steps)

    def encoder(self) -> AnySat:
        """The encoder that a run leaves: the teacher, or the student where there is none."""
        return self.goal.kept(self.student)

    def _flags(self, seen: dict[str, SeenPatches], grid: PatchGrid) -> Tensor:
        """Which patches each modality saw (batch modality patch), context of the tile left out."""
        tiling = [part for key, part in seen.items() if not self.student.config.modality(key).covers_tile]
        first = next(iter(seen.values())).patch
        everywhere = first.new_ones(len(first), grid.num_patches, dtype=torch.bool)
        flags = [everywhere if part.patch_valid is None else part.patch_valid.flatten(1) for part in tiling]
        return torch.stack(flags, 1) if flags else everywhere[:, None][:, :0]


def _validity(parts: Collection[SeenPatches]) -> Tensor | None:
    """Which patches each part saw (batch part patch); None where each saw all."""
    flags = [part.patch.new_ones(part.patch.shape[:3], dtype=torch.bool) if part.patch_valid is None
             else part.patch_valid for part in parts]  # fmt: skip
    valid = torch.stack([flag.flatten(1) for flag in flags], 1)
    return None if all(part.patch_valid is None for part in parts) else valid
