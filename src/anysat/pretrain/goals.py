"""The prediction goals for hidden patches: features of an averaged teacher, or frozen projections of their pixels.

Both use the same masks and the same predictor. `ObjectiveConfig.goal` selects one.
"""

from __future__ import annotations

import copy
import math
import zlib
from collections.abc import Callable, Mapping
from typing import NamedTuple, Self

import torch
from jaxtyping import Bool, Float, Real
from torch import Generator, Tensor, nn
from torch.nn import functional

from anysat.modalities import Modality
from anysat.model.encoder import CHUNK_ROWS, AnySat
from anysat.model.inputs import PixelInput
from anysat.model.precision import multiplying
from anysat.patches import PatchGrid, subpatches_per_side
from anysat.pretrain.config import ObjectiveConfig
from anysat.pretrain.losses import discrimination_loss, prediction_loss, unit_spread

FEATURE_NORM_EPS = 1e-5
YEAR_DAYS = 365.25
Cut = Callable[[Tensor, int], Tensor]
"""The `cut` of a projector."""


class Targets(NamedTuple):
    """The prediction target of every patch."""

    tokens: Tensor
    """(batch patch dim)"""
    valid: Tensor
    """(batch patch)"""

    def at(self, indices: Tensor) -> Targets:
        """Return the targets of the patches with these numbers (block batch target)."""
        tokens, valid = (part.expand(len(indices), *part.shape) for part in self)
        return Targets(
            tokens.gather(2, indices[..., None].expand(-1, -1, -1, tokens.shape[-1])), valid.gather(2, indices)
        )


class AveragedTeacher(nn.Module):
    """A copy of the encoder that sees everything, has no gradient, and follows the student as a moving average."""

    def __init__(self, student: AnySat, config: ObjectiveConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = copy.deepcopy(student).requires_grad_(False).eval()

    def train(self, mode: bool = True) -> Self:
        """Set the mode; the teacher's encoder always stays in eval mode."""
        super().train(mode)
        self.encoder.eval()
        return self

    @torch.no_grad()
    def forward(self, inputs: Mapping[str, PixelInput], grid: PatchGrid) -> dict[str, Targets]:
        """Return the fused features of every patch, normalised over the channels."""
        found = self.encoder.core(inputs, grid.patch_size_m, chunk_rows=chunk_rows_on(self.encoder.device))
        tokens = found.patch.flatten(1, 2).float()
        tokens = functional.layer_norm(tokens, tokens.shape[-1:], eps=FEATURE_NORM_EPS)
        valid = found.patch_valid if found.patch_valid is None else found.patch_valid.flatten(1)
        if self.config.centred:
            tokens = unit_spread(tokens, valid)
        everywhere = tokens.new_ones(tokens.shape[:2], dtype=torch.bool)
        return {"patch": Targets(tokens, everywhere if valid is None else valid)}

    def loss(self, predicted: Tensor, wanted: Mapping[str, Targets], counts: Tensor) -> Tensor:
        """Compute the loss between predictions (block batch target dim) and features where `counts` is True.

        `counts` is (block batch target).
        """
        target = wanted["patch"]
        return prediction_loss(predicted, target.tokens, target.valid & counts, self.config.distance)

    @torch.no_grad()
    def follow(self, student: AnySat, progress_frac: float) -> None:
        """Update the average by one step.

        The momentum changes linearly from its first to its final value; `progress_frac` is the part done.
        """
        first, last = self.config.momentum, self.config.final_momentum
        momentum = first + (last - first) * progress_frac
        for own, other in zip(self.encoder.parameters(), student.parameters(), strict=True):
            own.lerp_(other, 1.0 - momentum)

    def kept(self, student: AnySat) -> AnySat:  # noqa: ARG002 - one interface for both goals
        """Return the encoder to keep: the teacher."""
        return self.encoder


class FrozenProjections(nn.Module):
    """Random projections of the pixels of each patch, one per modality, fixed before training.

    They follow the frozen targets of OlmoEarth (2025) and UniverSat (2026). A patch is described by the mean and
    standard deviation, over its sub-patches, of the numbers from `describe`. Each is scaled to unit spread in the batch
    before it is projected, so that small seasonal numbers count.
    """

    def __init__(self, student: AnySat, config: ObjectiveConfig) -> None:
        super().__init__()
        self.config, self.modalities = config, {m.key: m for m in student.config.modalities}
        dim = student.config.dim
        self.heads = nn.ModuleDict({key: nn.Linear(dim, dim) for key in self.modalities})
        self._cuts: dict[str, Cut] = {key: projector.cut for key, projector in student.projectors.items()}  # type: ignore[misc]
        self.matrices = nn.Module()  # drawn from the key, so there is nothing to save
        for key, modality in self.modalities.items():
            inputs = num_numbers(modality, config.harmonics)
            drawn = torch.randn(2 * inputs, dim, generator=Generator().manual_seed(zlib.crc32(key.encode())))
            self.matrices.register_buffer(key, drawn / math.sqrt(2 * inputs), persistent=False)

    @torch.no_grad()
    def forward(self, inputs: Mapping[str, PixelInput], grid: PatchGrid) -> dict[str, Targets]:
        """Return the projections of every patch for each modality, without context modalities if there are others."""
        found = {}
        for key, pixels in inputs.items():
            modality = self.modalities[key]
            values, valid = self._describe(modality, pixels, grid)
            if len(values) == len(pixels.values) * grid.num_patches:
                matrix = getattr(self.matrices, key)
                with multiplying("float32", matrix.device):  # targets are never rounded to bf16
                    tokens = values.to(matrix.dtype) @ matrix
                shape = (len(pixels.values), grid.num_patches)
                found[key] = Targets(tokens.view(*shape, -1), valid.view(shape))
        tiling = {key: target for key, target in found.items() if not self.modalities[key].covers_tile}
        return tiling or found

    def _describe(self, modality: Modality, pixels: PixelInput, grid: PatchGrid) -> tuple[Tensor, Tensor]:
        """Return the mean and deviation over sub-patches ((batch patch) feature), and which patches are valid."""
        cut = self._cuts[modality.key]
        values, valid = numbers_of(cut, modality, pixels, grid.patch_size_m, self.config.harmonics)
        count = valid.sum(1).clamp_min(1)
        mean = values.sum(1) / count
        deviation = (((values - mean[:, None]) * valid).square().sum(1) / count).sqrt()
        seen = valid.flatten(1).any(1)
        return unit_spread(torch.cat([mean, deviation], dim=-1), seen), seen

    def loss(self, predicted: Tensor, wanted: Mapping[str, Targets], counts: Tensor) -> Tensor:
        """Compute the loss of predictions (block batch target dim) where `counts` is True; the mean over modalities."""
        config, terms = self.config, []
        for key, target in wanted.items():
            valid, found = target.valid & counts, self.heads[key](predicted)
            if config.projection_loss == "regress":
                scaled = unit_spread(target.tokens.flatten(0, 2), valid.flatten()).view_as(target.tokens)
                terms.append(prediction_loss(found, scaled, valid, config.distance))
            else:
                terms.append(discrimination_loss(found.flatten(0, 2), target.tokens.flatten(0, 2), valid.flatten(),
                                                 config.projection_temperature, config.same_target_cosine))  # fmt: skip
        return torch.stack(terms).mean() if terms else predicted.float().sum() * 0.0

    def follow(self, student: AnySat, progress_frac: float) -> None:
        """Do nothing: the projections are fixed."""

    def kept(self, student: AnySat) -> AnySat:
        """Return the encoder to keep: the student."""
        return student


GOALS: dict[str, type[AveragedTeacher] | type[FrozenProjections]] = {
    "teacher": AveragedTeacher,
    "projection": FrozenProjections,
}
"""Goals by `ObjectiveConfig.goal`. Add new ones here."""


def chunk_rows_on(device: torch.device) -> int:
    """Return the number of pixel-dates to compute at once: what fits the caches of a CPU, and more on a GPU."""
    return CHUNK_ROWS if device.type == "cpu" else 64 * CHUNK_ROWS


@torch.no_grad()
def numbers_of(
    cut: Cut, modality: Modality, pixels: PixelInput, patch_size_m: float, harmonics: int
) -> tuple[Tensor, Tensor]:
    """Return the numbers that describe the sub-patches (patch sub number), and which are known; see `describe`."""
    side = subpatches_per_side(patch_size_m, modality)
    valid = None if pixels.valid is None else cut(pixels.valid, side)
    return describe(cut(pixels.values, side), valid, pixels.days, harmonics)


def num_numbers(modality: Modality, harmonics: int) -> int:
    """Return how many numbers describe a sub-patch. Series are described by `harmonics` of the year."""
    return len(modality.bands) * (2 + 2 * harmonics if modality.is_temporal else modality.subpatch_px**2)


def describe(
    values: Float[Tensor, "patch sub *rest"],
    valid: Bool[Tensor, "patch sub *rest"] | None,
    days: Real[Tensor, "batch time"] | None,
    harmonics: int,
) -> tuple[Float[Tensor, "patch sub number"], Bool[Tensor, "patch sub number"]]:
    """Describe every sub-patch by numbers.

    For an image, these are all its pixels. For a series, they are for each band the mean, the mean weighted by each
    yearly harmonic of the day, and the standard deviation over the dates.

    Args:
        values: The output of a projector's `cut`: (patch sub pixel), or (patch sub time band) for a series.
        valid: Same shape; None if all are valid.
        days: (batch time) day numbers of a series. All tiles have the same number of patches.
        harmonics: Number of harmonics of the year, for a series.

    Returns:
        The numbers and which of them are known, (patch sub number) each.
    """
    known = torch.ones_like(values, dtype=torch.bool) if valid is None else valid
    values = values.masked_fill(~known, 0.0)
    if days is None:
        return values, known
    turns = torch.arange(1, harmonics + 1, device=values.device) / YEAR_DAYS
    angle = 2 * math.pi * days[..., None] * turns
    waves = torch.cat([torch.ones_like(days)[..., None], angle.cos(), angle.sin()], dim=-1)
    waves = waves.repeat_interleave(len(values) // len(waves), dim=0)
    with multiplying("float32", values.device):
        total = torch.einsum("pstb,ptw->psbw", values, waves.to(values.dtype))
    dates = known.sum(2).clamp_min(1)
    means = total / dates[..., None]
    over_dates = ((values - means[:, :, None, :, 0]) * known).square().sum(2) / dates
    numbers = torch.cat([means, over_dates.sqrt()[..., None]], dim=-1)
    return numbers.flatten(2), known.any(2).repeat_interleave(numbers.shape[-1], dim=-1)
