"""Numbers that describe the pixels of a sub-patch, from which frozen targets are made."""

from __future__ import annotations

import math

import torch
from jaxtyping import Bool, Float, Real
from torch import Tensor

from anysat.modalities import Modality
from anysat.model.precision import multiplying

YEAR_DAYS = 365.25


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
