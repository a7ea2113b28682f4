"""Growing series: what is stored of earlier dates, so that new dates can be added without encoding all again.

The temporal pooling is a softmax over dates with a fixed query, so its sums are all that later dates need. If pixels
are normalised over their dates (Sentinel-2), every date changes all others; then their pixels are stored, or the
features of each date before that norm. All is computed in float32, outside training.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Real
from torch import Tensor

from anysat.modalities import Modality
from anysat.model.chunks import each, rows_of_each, slices
from anysat.model.config import ModelConfig
from anysat.model.inputs import PixelInput
from anysat.model.projectors import DateSums, SeriesProjector, Tokens
from anysat.model.ready import made_ready, num_workers_of
from anysat.model.spatial import SpatialTransformer
from anysat.model.steps import SeenPatches, carry_out, plan_patches
from anysat.patches import subpatches_per_side

Keep = Literal["series", "features"]
"""What is stored if sums are not enough: the pixels of the series, or the much larger features of each date."""
Parts = Mapping[str, Tensor]
"""Arrays with one row per pixel."""
_Codes = Float[Tensor, "time slice"]


@dataclass(frozen=True, eq=False)
class Remembered:
    """What is stored of the encoded dates of one modality, for every pixel of some patches."""

    days: Real[Tensor, "time"]
    """Day numbers of the dates."""
    parts: Parts
    """The stored arrays, with the pixels ordered patch by patch."""

    def to(self, device: torch.device) -> Remembered:
        """Return the same on another device."""
        return Remembered(self.days.to(device), {name: part.to(device) for name, part in self.parts.items()})


class Sums:
    """Stores the sums of the temporal pooling, whose size does not depend on the number of dates."""

    def of(self, projector: SeriesProjector, values: Float[Tensor, "pixel time band"], when: _Codes) -> Parts:
        """Return the sums of these dates."""
        features, present = projector.features(*_filled(values))
        sums = projector.pooling.sums(features, when[None].to(features.dtype), present)
        return {name: part[0] for name, part in sums._asdict().items()}

    def joined(self, some: Parts, others: Parts) -> Parts:
        """Return the sums over both sets of dates."""
        return dict(DateSums(**some).joined(DateSums(**others))._asdict())

    def tokens(self, projector: SeriesProjector, parts: Parts, when: _Codes) -> Tokens:  # noqa: ARG002 - they are in the sums
        """Compute the tokens from the sums."""
        sums = DateSums(**{name: part[None] for name, part in parts.items()})
        return projector.finished(sums.pooled), sums.present


class Pixels:
    """Stores the values, which are encoded again whenever dates are added."""

    def of(self, projector: SeriesProjector, values: Float[Tensor, "pixel time band"], when: _Codes) -> Parts:  # noqa: ARG002
        """Return the values unchanged."""
        return {"values": values}

    def joined(self, some: Parts, others: Parts) -> Parts:
        """Concatenate the dates."""
        return _one_after_the_other(some, others)

    def tokens(self, projector: SeriesProjector, parts: Parts, when: _Codes) -> Tokens:
        """Apply the whole projector."""
        values, valid = _filled(parts["values"])
        tokens, present = projector(values, when[None], valid)
        return tokens, present


class Features:
    """Stores the features of each date before the norm over dates: a vector of token width per pixel and date."""

    def of(self, projector: SeriesProjector, values: Float[Tensor, "pixel time band"], when: _Codes) -> Parts:  # noqa: ARG002
        """Return the features of these dates."""
        features, present = projector.features(*_filled(values))
        assert present is not None, values.shape
        return {"features": features[0], "present": present[0]}

    def joined(self, some: Parts, others: Parts) -> Parts:
        """Concatenate the dates."""
        return _one_after_the_other(some, others)

    def tokens(self, projector: SeriesProjector, parts: Parts, when: _Codes) -> Tokens:
        """Apply the projector from the norm over dates on."""
        features, present = parts["features"][None], parts["present"][None]
        absent = None if bool(present.all()) else present  # a norm over whole series takes half the time
        if projector.date_norm is not None:
            features = projector.date_norm(features, absent)
        pooled = projector.pooling(features, when[None].to(features.dtype), absent)
        return projector.finished(pooled), present.any(-1)


Kind = Sums | Pixels | Features
"""A way to store dates."""


def find_kind(projector: SeriesProjector, keep: Keep) -> Kind:
    """Return how the dates of a projector are stored."""
    if projector.date_norm is None:
        return Sums()
    return Pixels() if keep == "series" else Features()


def num_bytes(projector: SeriesProjector, keep: Keep, num_dates: int) -> int:
    """Return the number of bytes that are stored for one pixel with `num_dates` dates."""
    with torch.inference_mode():
        device = projector.fill.device
        values = torch.zeros(1, 1, projector.num_bands, device=device)
        when = projector.date_code(torch.zeros(1, 1, device=device))[0]
        kind = find_kind(projector, keep)
        each = sum(part.nbytes for part in kind.of(projector, values, when).values())
    return each if isinstance(kind, Sums) else each * num_dates


def grow(
    projector: SeriesProjector,
    spatial: SpatialTransformer,
    config: ModelConfig,
    modality: Modality,
    before: Remembered | None,
    pixels: PixelInput,
    patch_size_m: float,
    *,
    kind: Kind,
    keep_sub: bool = False,
    chunk_rows: int | None = None,
) -> tuple[SeenPatches, Remembered]:
    """Encode one modality of one tile over all dates, from what is stored of earlier dates and the pixels of new ones.

    The result is that of `AnySat.see` on all dates at once, up to rounding.

    Args:
        before: What is stored of the earlier dates; None if there are none.
        pixels: Pixels of the new dates (batch of 1), none of them among the earlier ones.
        chunk_rows: Number of pixel-dates to compute at once; None for all.

    Returns:
        The tokens, and what to store of all dates.
    """
    side = subpatches_per_side(patch_size_m, modality)
    rows, cols = (length // side for length in pixels.values.shape[-2:])
    values = pixels.values
    if before is not None:
        before = before.to(values.device)
    if pixels.valid is not None:
        values = values.masked_fill(~pixels.valid, float("nan"))
    values = projector.cut(values, side).flatten(0, 1)
    assert pixels.days is not None, modality.key
    assert len(pixels.days) == 1, pixels.days.shape
    days = pixels.days[0] if before is None else torch.cat([before.days, pixels.days[0].to(before.days.dtype)])
    code = projector.date_code(days[None])[0]
    new = code[len(days) - values.shape[1] :]

    own = projector, spatial
    with torch.autocast(values.device.type, enabled=False), made_ready(*own) as made:  # float32 alone
        workers = num_workers_of(own, made)

        def take(some: slice) -> tuple[Parts, Tensor, Tensor]:
            """Return what is stored of some pixels, their tokens, and which of them have a date."""
            parts = kind.of(made[0], values[some], new)
            if before is not None:
                parts = kind.joined({name: part[some] for name, part in before.parts.items()}, parts)
            tokens, present = kind.tokens(made[0], parts, code)
            return (
                parts,
                tokens[0],
                tokens.new_ones(tokens.shape[1], dtype=torch.bool) if present is None else present[0],
            )

        rows_at_once = rows_of_each(chunk_rows, workers)
        several = slices(slice(0, len(values)), rows_at_once, len(days), workers)
        found, tokens, present = zip(*each(take, several, workers), strict=True)
        kept = Remembered(days, {name: torch.cat([parts[name] for parts in found]) for name in found[0]})
        seen_of = seen_again(
            made[1], config, modality, (rows, cols), torch.cat(tokens), torch.cat(present), patch_size_m,
            keep_sub=keep_sub, chunk_rows=rows_at_once, workers=workers,
        )  # fmt: skip
    return seen_of, kept


def seen_again(
    spatial: SpatialTransformer,
    config: ModelConfig,
    modality: Modality,
    grid: tuple[int, int],
    tokens: Float[Tensor, "pixel dim"],
    present: Tensor,
    patch_size_m: float,
    *,
    keep_sub: bool = False,
    chunk_rows: int | None = None,
    workers: int = 1,
) -> SeenPatches:
    """Apply the spatial transformer to the tokens of one tile's pixels, ordered patch by patch.

    `grid` is the number of rows and columns of patches.
    """
    num_sub = subpatches_per_side(patch_size_m, modality) ** 2
    by_patch = tokens.view(-1, num_sub, tokens.shape[-1])
    present_of = None if bool(present.all()) else present.view(-1, num_sub)

    def project(part: slice) -> tuple[Tensor, Tensor | None]:
        return by_patch[part], None if present_of is None else present_of[part]

    planned = plan_patches(
        spatial, config, modality, patch_size_m, (1, *grid), project, keep_sub=keep_sub, chunk_rows=chunk_rows,
        workers=workers,
    )  # fmt: skip
    return carry_out({modality.key: planned}, workers)[modality.key]


def _filled(values: Float[Tensor, "pixel time band"]) -> tuple[Tensor, Tensor]:
    """Return values in the shape for a projector (1 pixel time band), and where they are valid."""
    return values[None], values[None].isfinite()


def _one_after_the_other(some: Parts, others: Parts) -> Parts:
    return {name: torch.cat([part, others[name]], dim=1) for name, part in some.items()}
