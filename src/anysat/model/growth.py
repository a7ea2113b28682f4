"""Series that grow: what is kept of the dates seen so far, so that others can join them without their being seen again.

The temporal pooling is a softmax over dates with a fixed query, so that its sums are all that later dates need. Where
pixels are normalised over their dates (Sentinel-2), every date changes all others: their pixels are kept, or what each
date shows before that norm. Float32, outside training.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, Protocol, get_args

import torch
from jaxtyping import Float, Real
from torch import Tensor

from anysat.errors import UnknownNameError
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
"""What is kept where sums are not enough: the series' pixels, or the much larger features of each of their dates."""
Parts = Mapping[str, Tensor]
"""Arrays with a row for each pixel."""
_Codes = Float[Tensor, "time slice"]


@dataclass(frozen=True, eq=False)
class Remembered:
    """What is kept of the dates of one modality that were seen, for every pixel of some patches."""

    days: Real[Tensor, "time"]
    """Day numbers of the dates."""
    parts: Parts
    """Pixels follow each other patch by patch."""

    def to(self, device: torch.device) -> Remembered:
        """The same on another device."""
        return Remembered(self.days.to(device), {name: part.to(device) for name, part in self.parts.items()})


class Kind(Protocol):
    """A way to keep dates."""

    def of(self, projector: SeriesProjector, values: Float[Tensor, "pixel time band"], when: _Codes) -> Parts:
        """What is kept of some dates; values that are not valid are NaN."""

    def joined(self, some: Parts, others: Parts) -> Parts:
        """What is kept of both."""

    def tokens(self, projector: SeriesProjector, parts: Parts, when: _Codes) -> Tokens:
        """Tokens (1 pixel dim), and which pixels have a date."""


class Sums:
    """Of each head the sums of its weighted mean over dates: as much however many dates there are."""

    def of(self, projector: SeriesProjector, values: Float[Tensor, "pixel time band"], when: _Codes) -> Parts:
        """The sums of these dates."""
        features, present = projector.features(*_filled(values))
        sums = projector.pooling.sums(features, when[None].to(features.dtype), present)
        return {name: part[0] for name, part in sums._asdict().items()}

    def joined(self, some: Parts, others: Parts) -> Parts:
        """The sums of all."""
        return dict(DateSums(**some).joined(DateSums(**others))._asdict())

    def tokens(self, projector: SeriesProjector, parts: Parts, when: _Codes) -> Tokens:  # noqa: ARG002 - they are in the sums
        """From the sums alone."""
        sums = DateSums(**{name: part[None] for name, part in parts.items()})
        return projector.finished(sums.pooled), sums.present


class Pixels:
    """The values themselves, which are seen again whenever dates join them."""

    def of(self, projector: SeriesProjector, values: Float[Tensor, "pixel time band"], when: _Codes) -> Parts:  # noqa: ARG002
        """As they are."""
        return {"values": values}

    def joined(self, some: Parts, others: Parts) -> Parts:
        """One after the other."""
        return _one_after_the_other(some, others)

    def tokens(self, projector: SeriesProjector, parts: Parts, when: _Codes) -> Tokens:
        """Through the whole projector."""
        values, valid = _filled(parts["values"])
        tokens, present = projector(values, when[None], valid)
        return tokens, present


class Features:
    """What each date shows by itself, before the norm over dates: as wide as a token, for every pixel and date."""

    def of(self, projector: SeriesProjector, values: Float[Tensor, "pixel time band"], when: _Codes) -> Parts:  # noqa: ARG002
        """The features of these dates."""
        features, present = projector.features(*_filled(values))
        assert present is not None, values.shape
        return {"features": features[0], "present": present[0]}

    def joined(self, some: Parts, others: Parts) -> Parts:
        """One after the other."""
        return _one_after_the_other(some, others)

    def tokens(self, projector: SeriesProjector, parts: Parts, when: _Codes) -> Tokens:
        """From the norm over dates on."""
        features, present = parts["features"][None], parts["present"][None]
        absent = None if bool(present.all()) else present  # a norm over whole series takes half the time
        if projector.date_norm is not None:
            features = projector.date_norm(features, absent)
        pooled = projector.pooling(features, when[None].to(features.dtype), absent)
        return projector.finished(pooled), present.any(-1)


def find_kind(projector: SeriesProjector, keep: Keep) -> Kind:
    """How the dates of a projector are kept.

    Raises:
        UnknownNameError: `keep` is none of `Keep`.
    """
    if keep not in get_args(Keep):
        raise UnknownNameError("what is kept of series", keep, get_args(Keep))
    if projector.date_norm is None:
        return Sums()
    return Pixels() if keep == "series" else Features()


def num_bytes(projector: SeriesProjector, keep: Keep, num_dates: int) -> int:
    """What is kept of one pixel with so many dates."""
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
    """What one modality sees of all dates, given what is kept of the earlier ones and the pixels of the others.

    As `AnySat.see` on all dates at once, up to rounding, of one tile.

    Args:
        projector: of the modality.
        spatial: the shared transformer.
        config: of the model.
        modality: a series.
        before: what is kept; None where there are no earlier dates.
        pixels: of dates that are not among the earlier ones (batch of 1).
        patch_size_m: side of a patch.
        kind: how dates are kept, `find_kind`.
        keep_sub: whether the tokens of sub-patches are wanted.
        chunk_rows: pixel-dates at once.

    Returns:
        Tokens of patches, and what to keep of all dates.
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
            """What is kept of some pixels, their tokens, and which of them have a date."""
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
    """The spatial transformer over the tokens of pixels, patch by patch, of one tile of rows and columns of patches."""
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
    """As a projector takes them (1 pixel time band), and where they are valid."""
    return values[None], values[None].isfinite()


def _one_after_the_other(some: Parts, others: Parts) -> Parts:
    return {name: torch.cat([part, others[name]], dim=1) for name, part in some.items()}
