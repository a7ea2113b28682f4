"""From the pixels of one modality to sub-patch tokens: images and time series (paper section 3.1).

Both projectors have one interface: `cut` brings a tile's pixels into patches, `forward` turns the
pixels of any number of patches into tokens. A modality's fields choose the projector.
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
"""Sub-patch tokens, and which of them saw anything; None means all did."""


class ImageProjector(nn.Module):
    """A square of pixels of a single-date image becomes one token."""

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
        """Bring the pixels of each sub-patch together; patches and sub-patches row by row."""
        return rearrange(
            values,
            "batch band (pr sr y) (pc sc x) -> (batch pr pc) (sr sc) (band y x)",
            sr=num_sub,
            sc=num_sub,
            y=self.side_px,
            x=self.side_px,
        )

    def date_code(self, days: None) -> None:
        """An image has no dates."""

    def forward(
        self,
        pixels: Float[Tensor, "patch sub pixel"],
        when: None,  # noqa: ARG002 - an image has none; one interface for both projectors
        valid: Bool[Tensor, "patch sub pixel"] | None,
        leave_out: bool = True,
    ) -> Tokens:
        """An invalid value counts as 0, the mean; a sub-patch without a valid one is marked so."""
        present = None
        if valid is not None:
            pixels = pixels.masked_fill(~valid, 0.0)
            present = valid.any(-1) if leave_out else None
        return self.project(pixels), present

    def project(self, pixels: Float[Tensor, "patch sub pixel"]) -> Float[Tensor, "patch sub dim"]:
        """Convolution and MLP."""
        if self.is_embedding_plain:
            return self.mlp(functional.linear(pixels, self.embed.weight.flatten(1)))
        squares = rearrange(pixels, "patch sub (band y x) -> (patch sub) band y x", y=self.side_px, x=self.side_px)
        return self.mlp(self.embed(squares).flatten(1).unflatten(0, pixels.shape[:2]))

    @property
    def is_embedding_plain(self) -> bool:
        """Whether the convolution is its weights alone, so that it can be a product."""
        return type(self.embed) is nn.Conv2d and self.embed.bias is None and is_plain(self.embed)


LEAST_ABSENT = 0.05
"""Share of the dates above which those that are absent are left out, instead of computed and forgotten."""


def _worth_taking(present: Bool[Tensor, "patch sub time"]) -> Tensor | None:
    """Numbers of the dates that are there; None where taking all is as quick, or shapes must not depend on values."""
    if torch.compiler.is_compiling() or torch.compiler.is_exporting():
        return None
    seen = present.flatten().nonzero().squeeze(1)
    is_worth = 0 < len(seen) < (1 - LEAST_ABSENT) * present.numel()  # of none at all every weight keeps its gradient
    return seen if is_worth else None


class DateNorm(nn.GroupNorm):
    """Group norm of a pixel's features over the channels of a group and all its valid dates."""

    def forward(
        self, x: Float[Tensor, "patch sub time dim"], present: Bool[Tensor, "patch sub time"] | None = None
    ) -> Float[Tensor, "patch sub time dim"]:
        """Normalise; dates that are not `present` do not count."""
        groups = rearrange(x, "patch sub time (group dim) -> patch sub time group dim", group=self.num_groups)
        # Sums of each date and group first, for these are few; the general variance is ten times as slow.
        # In float32 at least, in which the difference of two large numbers is told, whatever type the weights have.
        own = torch.promote_types(self.weight.dtype, torch.float32)
        exact = groups.to(own)  # once: each sum would do it by itself
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
    """Mean over the dates, or with these shares."""
    return part.mean(2, keepdim=True) if share is None else (part * share).sum(2, keepdim=True)


class DateSums(NamedTuple):
    """What the dates seen so far come to in the temporal pooling of each pixel; later dates can be added to it."""

    largest: Float[Tensor, "*pixel head"]
    """What the query says of the date that fits it best; minus infinity where there is none."""
    total: Float[Tensor, "*pixel head"]
    """Sum of the weights, that of the best date being 1."""
    weighted: Float[Tensor, "*pixel dim"]
    """Sum of the weighted features."""

    def joined(self, others: DateSums) -> DateSums:
        """Of both sets of dates."""
        largest = torch.maximum(self.largest, others.largest)
        mine, theirs = ((one.largest - _finite(largest)).exp() for one in (self, others))
        weighted = self._slices * mine[..., None] + others._slices * theirs[..., None]
        return DateSums(largest, self.total * mine + others.total * theirs, weighted.flatten(-2))

    @property
    def present(self) -> Bool[Tensor, "*pixel"]:
        """Pixels that have a date."""
        return self.total[..., 0] > 0

    @property
    def pooled(self) -> Float[Tensor, "*pixel dim"]:
        """The weighted means; 0 where there is no date."""
        least = torch.finfo(self.total.dtype).tiny
        return (self._slices / self.total.clamp_min(least)[..., None]).flatten(-2)

    @property
    def _slices(self) -> Float[Tensor, "*pixel head slice"]:
        return self.weighted.view(*self.total.shape, -1)


def _finite(largest: Tensor) -> Tensor:
    return largest.clamp_min(torch.finfo(largest.dtype).min)


class TemporalPooling(nn.Module):
    """Attention over the dates of a pixel with one learned query per head; no value projection (L-TAE).

    The query is folded into the key projection, where that is a linear layer and nothing else, and the day code, the
    same for all pixels of a tile, joins after the weighted sum: the published arithmetic, in another order.
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
        """Weighted sum over dates with these codes; those that are not `present` do not count."""
        logits = self._asked(x, when)
        if present is not None:
            # A pixel without any date keeps all of them: its token is left out later, and must be finite.
            attended = present | ~present.any(-1, keepdim=True)
            logits = logits.masked_fill(~attended[..., None], float("-inf"))
        return self._summed(self.dropout(logits.softmax(dim=2)), x, when)

    def sums(
        self,
        x: Float[Tensor, "patch sub time dim"],
        when: Float[Tensor, "patch time slice"],
        present: Bool[Tensor, "patch sub time"] | None = None,
    ) -> DateSums:
        """The weighted sum in parts to which those of other dates can be added; without dropout."""
        logits = self._asked(x, when)
        if present is not None:
            logits = logits.masked_fill(~present[..., None], float("-inf"))
        largest = logits.amax(2)
        weight = (logits - _finite(largest)[:, :, None]).exp()
        return DateSums(largest, weight.sum(2), self._summed(weight, x, when))

    def _asked(self, x: Tensor, when: Tensor) -> Float[Tensor, "patch sub time head"]:
        """What the query of each head says of each date."""
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
        # Every head asks all channels, and keeps its slice: sixteen times the products, and not a copy of each date.
        whole = share.to(x.dtype).transpose(2, 3) @ x
        own = rearrange(whole, "patch sub head (slice dim) -> patch sub head slice dim", slice=heads)
        pooled = own.diagonal(dim1=2, dim2=3).transpose(2, 3)
        return (pooled + torch.einsum("psth,ptd->pshd", share, when)).flatten(-2)


class SeriesProjector(nn.Module):
    """The dates of one pixel of a time series become one token."""

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
        """Bring the dates of each pixel together; patches and sub-patches row by row."""
        return rearrange(
            values,
            "batch time band (pr sr) (pc sc) -> (batch pr pc) (sr sc) time band",
            sr=num_sub,
            sc=num_sub,
        )

    def date_code(self, days: Real[Tensor, "batch time"]) -> Float[Tensor, "batch time slice"]:
        """Code of each date, made once for all pixels of a tile."""
        return day_code(days, self.period_days, self.code_dim)

    def forward(
        self,
        pixels: Float[Tensor, "patch sub time band"],
        when: Float[Tensor, "patch time slice"],
        valid: Bool[Tensor, "patch sub time band"] | None,
        leave_out: bool = True,
    ) -> Tokens:
        """Tokens of the pixels, given the code of their dates.

        An invalid value is replaced by the learned fill. A date without a valid band takes no
        part, unless `leave_out` is False (the published arithmetic).
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
        """What each date shows by itself, before any norm over dates, and which dates have a valid band.

        A date without one shows 0, and costs next to nothing: neither clouds nor dates padded to the longest series of
        a batch are computed. None instead of which dates: all take part.
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
        """Tokens of pixels from what was pooled over their dates."""
        shape = pooled.shape
        return self.out_norm(self.dropout(self.out_mlp(pooled.flatten(0, 1)))).view(shape)


def make_projector(modality: Modality, config: ModelConfig) -> ImageProjector | SeriesProjector:
    """The projector that fits a modality's record."""
    return SeriesProjector(modality, config) if modality.is_temporal else ImageProjector(modality, config)
