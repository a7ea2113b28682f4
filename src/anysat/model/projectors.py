"""Projectors, which turn the pixels of one modality into sub-patch tokens (paper section 3.1).

There is one for images and one for time series, with the same interface: `cut` divides the pixels of tiles into
patches, and `forward` turns the pixels of any number of patches into tokens. The modality's record determines which.
"""

from __future__ import annotations

import math
from itertools import pairwise
from typing import NamedTuple

import torch
from einops import rearrange
from jaxtyping import Bool, Float, Real, Shaped
from torch import Tensor, nn
from torch.nn import functional

from anysat.modalities import Modality
from anysat.model.config import NUM_TEMPORAL_HEADS, ModelConfig
from anysat.model.layers import ChannelNorm, RowLayers, is_plain, is_plain_linear
from anysat.model.positions import day_code

Tokens = tuple[Float[Tensor, "patch sub dim"], Bool[Tensor, "patch sub"] | None]
"""Sub-patch tokens, and which of them are valid; None if all are."""


class ImageProjector(nn.Module):
    """Projector of single images: a square of pixels becomes one token."""

    def __init__(self, modality: Modality, config: ModelConfig) -> None:
        super().__init__()
        self.side_px = modality.subpatch_px
        dim = config.dim
        self.embed = nn.Conv2d(len(modality.bands), dim, self.side_px, stride=self.side_px, bias=False)
        self.mlp = nn.Sequential(
            nn.Linear(dim, 2 * dim),
            nn.LayerNorm(2 * dim),
            nn.ReLU(inplace=True),
            nn.Linear(2 * dim, dim),
            nn.LayerNorm(dim),
            nn.ReLU(inplace=True),
        )

    def cut(self, values: Shaped[Tensor, "batch band row col"], num_sub: int) -> Shaped[Tensor, "patch sub pixel"]:
        """Gather the pixels of each sub-patch. Patches and sub-patches are ordered row by row."""
        return rearrange(
            values,
            "batch band (pr sr y) (pc sc x) -> (batch pr pc) (sr sc) (band y x)",
            sr=num_sub,
            sc=num_sub,
            y=self.side_px,
            x=self.side_px,
        )

    def date_code(self, days: None) -> None:
        """Return None: an image has no dates."""

    def forward(
        self,
        pixels: Float[Tensor, "patch sub pixel"],
        when: None,  # noqa: ARG002 - for the same interface as SeriesProjector
        valid: Bool[Tensor, "patch sub pixel"] | None,
        leave_out: bool = True,
    ) -> Tokens:
        """Return the tokens and their validity. Invalid values count as 0, the mean.

        A sub-patch without a valid value is invalid, unless `leave_out` is False.
        """
        present = None
        if valid is not None:
            pixels = pixels.masked_fill(~valid, 0.0)
            present = valid.any(-1) if leave_out else None
        return self.project(pixels), present

    def project(self, pixels: Float[Tensor, "patch sub pixel"]) -> Float[Tensor, "patch sub dim"]:
        """Apply the convolution and the MLP."""
        if self.is_embedding_plain:
            return self.mlp(functional.linear(pixels, self.embed.weight.flatten(1)))
        squares = rearrange(pixels, "patch sub (band y x) -> (patch sub) band y x", y=self.side_px, x=self.side_px)
        return self.mlp(self.embed(squares).flatten(1).unflatten(0, pixels.shape[:2]))

    @property
    def is_embedding_plain(self) -> bool:
        """Whether the convolution is determined by its weights alone, so that it can be computed as a product."""
        return type(self.embed) is nn.Conv2d and self.embed.bias is None and is_plain(self.embed)


LEAST_ABSENT = 0.05
"""Fraction of absent dates above which they are left out, instead of being computed and discarded."""


def _worth_taking(present: Bool[Tensor, "patch sub time"]) -> Tensor | None:
    """Return the numbers of the present dates; None if all should be computed.

    That is the case if it is as fast, or if shapes must not depend on values.
    """
    if torch.compiler.is_compiling() or torch.compiler.is_exporting():
        return None
    seen = present.flatten().nonzero().squeeze(1)
    # If no date is present, all are computed, so that every weight gets a gradient.
    is_worth = 0 < len(seen) < (1 - LEAST_ABSENT) * present.numel()
    return seen if is_worth else None


class DateNorm(nn.GroupNorm):
    """Group norm of the features of a pixel, over the channels of a group and all valid dates."""

    def forward(
        self, x: Float[Tensor, "patch sub time dim"], present: Bool[Tensor, "patch sub time"] | None = None
    ) -> Float[Tensor, "patch sub time dim"]:
        """Normalise the features. Dates that are not `present` do not count."""
        groups = rearrange(x, "patch sub time (group dim) -> patch sub time group dim", group=self.num_groups)
        # First the sums of each date and group, which are few: the general variance is ten times as slow. They are in
        # float32 at least, whatever type the weights have: the difference of two large numbers needs it.
        own = torch.promote_types(self.weight.dtype, torch.float32)
        exact = groups.to(own)  # once, not in each sum
        mean, square = exact.sum(-1), torch.linalg.vector_norm(exact, dim=-1).square()
        share = None if present is None else present[..., None] / present.sum(2)[..., None, None].clamp_min(1)
        mean, square = (_over_dates(part / groups.shape[-1], share) for part in (mean, square))
        scale = torch.rsqrt((square - mean.square()).clamp_min(0.0) + self.eps)
        scale, shift = (part.repeat_interleave(groups.shape[-1], dim=-1) for part in (scale, -mean * scale))
        scale, shift = scale * self.weight, self.bias + shift * self.weight
        return torch.addcmul(shift.to(x.dtype), x, scale.to(x.dtype))  # once over the dates


def _over_dates(
    part: Float[Tensor, "patch sub time group"], share: Float[Tensor, "patch sub time one"] | None
) -> Float[Tensor, "patch sub one group"]:
    """Return the mean over the dates, or the sum weighted by `share`."""
    return part.mean(2, keepdim=True) if share is None else (part * share).sum(2, keepdim=True)


class DateSums(NamedTuple):
    """The sums over dates in the temporal pooling of each pixel, to which later dates can be added."""

    largest: Float[Tensor, "*pixel head"]
    """The largest logit of a date; minus infinity if there is no date."""
    total: Float[Tensor, "*pixel head"]
    """Sum of the weights, where that of the date with the largest logit is 1."""
    weighted: Float[Tensor, "*pixel dim"]
    """Sum of the weighted features."""

    def joined(self, others: DateSums) -> DateSums:
        """Return the sums over both sets of dates."""
        largest = torch.maximum(self.largest, others.largest)
        mine, theirs = ((one.largest - _finite(largest)).exp() for one in (self, others))
        weighted = self._slices * mine[..., None] + others._slices * theirs[..., None]
        return DateSums(largest, self.total * mine + others.total * theirs, weighted.flatten(-2))

    @property
    def present(self) -> Bool[Tensor, "*pixel"]:
        """Which pixels have a date."""
        return self.total[..., 0] > 0

    @property
    def pooled(self) -> Float[Tensor, "*pixel dim"]:
        """The weighted means; 0 if there is no date."""
        least = torch.finfo(self.total.dtype).tiny
        return (self._slices / self.total.clamp_min(least)[..., None]).flatten(-2)

    @property
    def _slices(self) -> Float[Tensor, "*pixel head slice"]:
        return self.weighted.view(*self.total.shape, -1)


def _finite(largest: Tensor) -> Tensor:
    return largest.clamp_min(torch.finfo(largest.dtype).min)


class TemporalPooling(nn.Module):
    """Attention over the dates of a pixel, with one learned query per head and no value projection (L-TAE).

    The computation is the published one in another order. The query is multiplied into the key projection, if that is a
    plain linear layer, and the day code, which is the same for all pixels of a tile, is added after the weighted sum.
    """

    def __init__(self, config: ModelConfig, key_dim: int = 8) -> None:
        super().__init__()
        self.query = nn.Parameter(torch.randn(NUM_TEMPORAL_HEADS, key_dim) * math.sqrt(2.0 / key_dim))
        self.key = nn.Linear(config.dim, NUM_TEMPORAL_HEADS * key_dim)
        nn.init.normal_(self.key.weight, std=math.sqrt(2.0 / key_dim))
        self.dropout = nn.Dropout(config.temporal_dropout_prob)

    def forward(
        self,
        x: Float[Tensor, "patch sub time dim"],
        when: Float[Tensor, "patch time slice"],
        present: Bool[Tensor, "patch sub time"] | None = None,
    ) -> Float[Tensor, "patch sub dim"]:
        """Return the weighted sum over dates with the codes `when`. Dates that are not `present` do not count."""
        logits = self._asked(x, when)
        if present is not None:
            # A pixel without any date attends to all: its token is left out later, but must be finite.
            attended = present | ~present.any(-1, keepdim=True)
            logits = logits.masked_fill(~attended[..., None], float("-inf"))
        return self._summed(self.dropout(logits.softmax(dim=2)), x, when)

    def sums(
        self,
        x: Float[Tensor, "patch sub time dim"],
        when: Float[Tensor, "patch time slice"],
        present: Bool[Tensor, "patch sub time"] | None = None,
    ) -> DateSums:
        """Return the sums over dates, to which those of other dates can be added. Without dropout."""
        logits = self._asked(x, when)
        if present is not None:
            logits = logits.masked_fill(~present[..., None], float("-inf"))
        largest = logits.amax(2)
        weight = (logits - _finite(largest)[:, :, None]).exp()
        return DateSums(largest, weight.sum(2), self._summed(weight, x, when))

    def _asked(self, x: Tensor, when: Tensor) -> Float[Tensor, "patch sub time head"]:
        """Return the logit of each date for the query of each head."""
        heads, key_dim = self.query.shape
        if not is_plain_linear(self.key):
            keys = self.key(x + when.repeat(1, 1, heads)[:, None])
            return torch.einsum("psthk,hk->psth", keys.unflatten(-1, (heads, key_dim)), self.query) / math.sqrt(key_dim)
        weight = rearrange(self.key.weight, "(head key) dim -> head key dim", head=heads)
        asked = torch.einsum("hk,hkd->hd", self.query, weight) / math.sqrt(key_dim)
        offset = (self.query * self.key.bias.view(heads, key_dim)).sum(-1) / math.sqrt(key_dim)
        asked_of_day = rearrange(asked, "head (slice dim) -> head slice dim", slice=heads).sum(1)
        of_values = functional.linear(x, asked.to(x.dtype), offset.to(x.dtype))
        return of_values + functional.linear(when, asked_of_day)[:, None]

    def _summed(self, share: Tensor, x: Tensor, when: Tensor) -> Float[Tensor, "patch sub dim"]:
        heads = len(self.query)
        # Every head sums all channels and keeps its slice: sixteen times the products, but no copy of each date.
        whole = share.to(x.dtype).transpose(2, 3) @ x
        own = rearrange(whole, "patch sub head (slice dim) -> patch sub head slice dim", slice=heads)
        pooled = own.diagonal(dim1=2, dim2=3).transpose(2, 3)
        return (pooled + torch.einsum("psth,ptd->pshd", share, when)).flatten(-2)


class SeriesProjector(nn.Module):
    """Projector of time series: the dates of a pixel become one token."""

    def __init__(self, modality: Modality, config: ModelConfig) -> None:
        super().__init__()
        dim, dropout_prob = config.dim, config.pixel_dropout_prob
        dropout_prob = modality.dropout_prob if dropout_prob is None else dropout_prob
        self.period_days, self.code_dim = modality.date_period_days, dim // NUM_TEMPORAL_HEADS
        hidden = config.pixel_widths or (dim // 8, dim // 2, dim, 2 * dim)
        widths = [len(modality.bands), *hidden, dim]
        self.num_bands = len(modality.bands)
        self.fill = nn.Parameter(torch.zeros(()))
        self.pixel_mlp = RowLayers()
        for width_in, width_out in pairwise(widths):
            self.pixel_mlp.extend(
                [
                    nn.Linear(width_in, width_out),
                    ChannelNorm(4, width_out),
                    nn.ReLU(inplace=True),
                    nn.Dropout(dropout_prob),
                ]
            )
        self.date_norm = DateNorm(NUM_TEMPORAL_HEADS, dim) if modality.normalises_over_dates else None
        self.pooling = TemporalPooling(config)
        self.out_mlp = RowLayers(nn.Linear(dim, dim), ChannelNorm(4, dim), nn.ReLU(inplace=True))
        self.dropout = nn.Dropout(dropout_prob)
        self.out_norm = ChannelNorm(NUM_TEMPORAL_HEADS, dim)

    def cut(
        self, values: Shaped[Tensor, "batch time band row col"], num_sub: int
    ) -> Shaped[Tensor, "patch sub time band"]:
        """Gather the dates of each pixel. Patches and sub-patches are ordered row by row."""
        return rearrange(
            values,
            "batch time band (pr sr) (pc sc) -> (batch pr pc) (sr sc) time band",
            sr=num_sub,
            sc=num_sub,
        )

    def date_code(self, days: Real[Tensor, "batch time"]) -> Float[Tensor, "batch time slice"]:
        """Return the code of each date, which all pixels of a tile share."""
        return day_code(days, self.period_days, self.code_dim)

    def forward(
        self,
        pixels: Float[Tensor, "patch sub time band"],
        when: Float[Tensor, "patch time slice"],
        valid: Bool[Tensor, "patch sub time band"] | None,
        leave_out: bool = True,
    ) -> Tokens:
        """Return the tokens of pixels and their validity, given the codes of their dates.

        Invalid values are replaced by the learned fill value. Dates without a valid band are left out, unless
        `leave_out` is False (as in the published code).
        """
        features, present = self.features(pixels, valid, leave_out)
        if self.date_norm is not None:
            features = self.date_norm(features, present)
        tokens = self.finished(self.pooling(features, when.to(self.fill.dtype), present))
        return tokens, None if present is None else present.any(-1)

    def features(
        self,
        pixels: Float[Tensor, "patch sub time band"],
        valid: Bool[Tensor, "patch sub time band"] | None,
        leave_out: bool = True,
    ) -> tuple[Float[Tensor, "patch sub time dim"], Bool[Tensor, "patch sub time"] | None]:
        """Return the features of each date, before any norm over dates, and which dates have a valid band.

        The features of a date without a valid band are 0 and cost almost nothing: clouds, and dates that pad a series
        to the longest of a batch, are not computed. If all dates take part, None is returned instead of which.
        """
        if valid is not None:
            pixels = torch.where(valid, pixels, self.fill)
        present, rows = valid.any(-1) if valid is not None and leave_out else None, pixels.flatten(0, 2)
        seen = None if present is None else _worth_taking(present)
        if seen is None:
            features = self.pixel_mlp(rows)
        else:
            taken = self.pixel_mlp(rows.index_select(0, seen))
            features = taken.new_zeros(len(rows), taken.shape[1]).index_copy_(0, seen, taken)
        return features.view(*pixels.shape[:3], -1), present

    def finished(self, pooled: Float[Tensor, "patch sub dim"]) -> Float[Tensor, "patch sub dim"]:
        """Return the tokens of pixels from their features pooled over dates."""
        shape = pooled.shape
        return self.out_norm(self.dropout(self.out_mlp(pooled.flatten(0, 1)))).view(shape)


def make_projector(modality: Modality, config: ModelConfig) -> ImageProjector | SeriesProjector:
    """Create the projector for a modality."""
    return SeriesProjector(modality, config) if modality.is_temporal else ImageProjector(modality, config)
