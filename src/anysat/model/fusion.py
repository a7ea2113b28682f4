"""The fusion transformer: the patch tokens of all modalities become fused patch tokens and a tile token.

Paper section 3.1, the modality combiner: self-attention over everything, then one cross-attention whose
queries are the places of the tile and its patches.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from anysat.model.chunks import slices
from anysat.model.config import ModelConfig
from anysat.model.layers import Block, FeedForward, RelativePosition, attend, masked_bias
from anysat.model.positions import SKIP_BUCKET, buckets_between, sincos_code

NORM_EPS = 1e-6
BucketsOf = Callable[[slice], Int[Tensor, "*tile place token"]]
"""Distance buckets of some places to all tokens."""


class Hidden(NamedTuple):
    """Patch tokens that are not shown."""

    where: Bool[Tensor, "batch modality patch"]
    """True where a token is hidden."""
    stand_in: Float[Tensor, " dim"]
    """What is there instead."""


class PlaceAttention(nn.Module):
    """Cross-attention with one query per place: a learned vector plus the place's code, not projected."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        dim = config.dim
        self.num_heads = config.num_heads
        self.query = nn.Parameter(torch.zeros(1, 1, dim))
        self.key = nn.Linear(dim, dim)
        self.value = nn.Linear(dim, dim)
        self.out = nn.Linear(dim, dim)
        self.relative = RelativePosition(dim // config.num_heads, config.rpe_heads)

    def forward(
        self,
        x: Float[Tensor, "batch token dim"],
        valid: Bool[Tensor, "batch token"] | None,
        code: Float[Tensor, "*tile place dim"],
        bucket_of: BucketsOf,
        max_pairs: int | None = None,
    ) -> Float[Tensor, "batch place dim"]:
        """What each place finds among the tokens.

        Args:
            x: tokens.
            valid: False for those that nobody may see.
            code: of each place.
            bucket_of: buckets (tile place token) of some of the places.
            max_pairs: pairs of place and token at once; None for all of them.
        """
        places = self.query + code.to(self.query.dtype)
        queries = rearrange(places, "one place (head dim) -> one head place dim", head=self.num_heads)
        key, value = (
            rearrange(layer(x), "batch token (head dim) -> batch head token dim", head=self.num_heads)
            for layer in (self.key, self.value)
        )

        def look(some: slice) -> Tensor:
            """What some of the places find."""
            query = queries[:, :, some]
            bias = masked_bias(self.relative(query, bucket_of(some)), valid)
            assert bias is not None
            mixed = attend(query.expand(x.shape[0], -1, -1, -1).to(key.dtype), key, value, bias)
            return rearrange(mixed, "batch head place dim -> batch place (head dim)")

        parts = slices(slice(0, queries.shape[2]), max_pairs, x.shape[0] * x.shape[1])
        if len(parts) > 1 and torch.is_grad_enabled():  # the pairs of all parts together would be the square again
            found = [checkpoint(look, some, use_reentrant=False) for some in parts]
        else:
            found = [look(some) for some in parts]
        return self.out(found[0] if len(found) == 1 else torch.cat(found, dim=1))


class PlacePooling(nn.Module):
    """Cross-attention and feed-forward; no residual around the attention."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(config.dim, eps=NORM_EPS)
        self.attention = PlaceAttention(config)
        self.norm2 = nn.LayerNorm(config.dim, eps=NORM_EPS)
        self.mlp = FeedForward(config.dim)

    def forward(
        self,
        x: Float[Tensor, "batch token dim"],
        valid: Bool[Tensor, "batch token"] | None,
        code: Float[Tensor, "*tile place dim"],
        bucket_of: BucketsOf,
        max_pairs: int | None = None,
    ) -> Float[Tensor, "batch place dim"]:
        """One fused token per place; arguments as of the attention."""
        x = self.attention(self.norm1(x), valid, code, bucket_of, max_pairs)
        return x + self.mlp(self.norm2(x))


class FusionTransformer(nn.Module):
    """Mixes modalities and patches."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.tile_token = nn.Parameter(torch.empty(1, 1, config.dim))
        nn.init.trunc_normal_(self.tile_token, std=0.02)
        self.blocks = nn.ModuleList(
            Block(config.dim, config.num_heads, NORM_EPS, within_token=config.fusion_attention == "within_token")
            for _ in range(config.depth)
        )
        self.pooling = PlacePooling(config)

    def forward(
        self,
        patches: Float[Tensor, "batch modality patch dim"],
        context: Float[Tensor, "batch context dim"],
        coordinates: Int[Tensor, "*tile patch 2"],
        unit: float,
        valid: Bool[Tensor, "batch token"] | None,
        hidden: Hidden | None = None,
        max_pairs: int | None = None,
        tile_alone: bool = False,
    ) -> tuple[Float[Tensor, "batch dim"], Float[Tensor, "batch fused dim"]]:
        """Fuse the tokens of one batch of tiles.

        Args:
            patches: tokens without positions; there may be no modality.
            context: tokens of the whole tile, placed already; there may be none.
            coordinates: row and column of each patch, the same for all tiles or those of each.
            unit: what one step of the coordinates is worth in the position code.
            valid: False for tokens nobody may see, context first; None for all True.
            hidden: tokens that another vector, without a place, stands in for (pretraining).
            max_pairs: pairs of place and token that are looked at at once, so that memory grows with the patches and
                not with their square; None for all of them.
            tile_alone: only the tile asks.

        Returns:
            The tile token and the fused patch tokens, none of which are there where the tile alone asks.
        """
        code = sincos_code(coordinates, unit, patches.shape[-1])
        placed = patches + code.unsqueeze(-3).to(self.tile_token.dtype)
        if hidden is not None:
            placed = torch.where(hidden.where[..., None], hidden.stand_in.to(placed.dtype), placed)
        tile = self.tile_token.expand(patches.shape[0], -1, -1)
        x = torch.cat([tile, context, rearrange(placed, "batch modality patch dim -> batch (modality patch) dim")], 1)
        seen = None if valid is None else functional.pad(valid, (1, 0), value=True)
        for block in self.blocks:
            x = block(x, seen)
        bucket_of = partial(self._place_buckets, coordinates, context.shape[1], patches.shape[1])
        places = functional.pad(code, (0, 0, 1, 0))
        x = self.pooling(x, seen, places[..., :1, :] if tile_alone else places, bucket_of, max_pairs)
        return x[:, 0], x[:, 1:]

    @staticmethod
    def _place_buckets(
        coordinates: Tensor, num_context: int, num_modalities: int, some: slice
    ) -> Int[Tensor, "*tile place token"]:
        """Buckets of some places (tile, patches) to the tokens (tile, context, patches of each modality)."""
        has_tile, num_patches = some.start == 0, coordinates.shape[-2]
        asking = coordinates[..., max(some.start - 1, 0) : some.stop - 1, :]
        near, num_skip = buckets_between(asking, coordinates), 1 + num_context
        shape = (*near.shape[:-2], near.shape[-2] + has_tile, num_skip + num_modalities * num_patches)
        found = torch.full(shape, SKIP_BUCKET, device=near.device)
        of_patches = found[..., int(has_tile) :, num_skip:]
        of_patches = of_patches.unflatten(-1, (num_modalities, num_patches))  # type: ignore[no-untyped-call]
        of_patches.copy_(near[..., None, :])
        return found
