"""The fusion transformer, which turns the patch tokens of all modalities into fused patch tokens and a tile token.

It is the modality combiner of paper section 3.1: self-attention over all tokens, then one cross-attention whose queries
are the places of the tile and its patches.
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
"""A function that returns the distance buckets from some places to all tokens."""


class Hidden(NamedTuple):
    """Patch tokens that are hidden."""

    where: Bool[Tensor, "batch modality patch"]
    """True where a token is hidden."""
    stand_in: Float[Tensor, " dim"]
    """The vector that replaces them."""


class PlaceAttention(nn.Module):
    """Cross-attention with one query per place: a learned vector plus the position code, without projection."""

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
        """Attend from each place to the tokens.

        Args:
            valid: False for tokens that are left out; None if there are none.
            code: Position code of each place.
            bucket_of: Returns the distance buckets (tile place token) of some of the places.
            max_pairs: Number of pairs of place and token to compute at once; None for all.
        """
        places = self.query + code.to(self.query.dtype)
        queries = rearrange(places, "one place (head dim) -> one head place dim", head=self.num_heads)
        key, value = (
            rearrange(layer(x), "batch token (head dim) -> batch head token dim", head=self.num_heads)
            for layer in (self.key, self.value)
        )

        def look(some: slice) -> Tensor:
            """Attend from some of the places."""
            query = queries[:, :, some]
            bias = masked_bias(self.relative(query, bucket_of(some)), valid)
            assert bias is not None
            mixed = attend(query.expand(x.shape[0], -1, -1, -1).to(key.dtype), key, value, bias)
            return rearrange(mixed, "batch head place dim -> batch place (head dim)")

        parts = slices(slice(0, queries.shape[2]), max_pairs, x.shape[0] * x.shape[1])
        if len(parts) > 1 and torch.is_grad_enabled():  # do not hold the pairs of all parts together
            found = [checkpoint(look, some, use_reentrant=False) for some in parts]
        else:
            found = [look(some) for some in parts]
        return self.out(found[0] if len(found) == 1 else torch.cat(found, dim=1))


class PlacePooling(nn.Module):
    """Cross-attention and feed-forward layers, without a residual connection around the attention."""

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
        """Return one fused token per place. Arguments as of `PlaceAttention`."""
        x = self.attention(self.norm1(x), valid, code, bucket_of, max_pairs)
        return x + self.mlp(self.norm2(x))


class FusionTransformer(nn.Module):
    """The transformer that fuses modalities and patches."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.tile_token = nn.Parameter(torch.empty(1, 1, config.dim))
        nn.init.trunc_normal_(self.tile_token, std=0.02)
        self.blocks = nn.ModuleList(
            Block(config.dim, config.num_heads, NORM_EPS, within_token=config.fusion_attention == "within_token")
            for _ in range(config.depth)
        )
        self.pooling = PlacePooling(config)
        self.early = nn.ModuleDict()
        """Poolings of tokens on the way, by the number of blocks before them; none unless features of several layers
        are wanted (`early.joined_at`)."""

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
    ) -> tuple[Float[Tensor, "batch out"], Float[Tensor, "batch fused out"]]:
        """Fuse the tokens of one batch of tiles.

        Args:
            patches: Patch tokens without position codes; there may be no modality.
            context: Tokens of context modalities, with position codes; there may be none.
            coordinates: Row and column of each patch, the same for all tiles or those of each tile.
            unit: Value of one step of the coordinates in the position code.
            valid: False for tokens to leave out, context tokens first. None if all are valid.
            hidden: Tokens to replace by a vector without position code (pretraining).
            max_pairs: Number of pairs of place and token to compute at once, so that memory grows linearly with the
                number of patches. None for all.
            tile_alone: Compute only the tile token.

        Returns:
            The tile token and the fused patch tokens, of which there are none with `tile_alone`. If `early` has
            poolings, the vectors of each layer are joined, in the order of the layers.
        """
        code = sincos_code(coordinates, unit, patches.shape[-1])
        placed = patches + code.unsqueeze(-3).to(self.tile_token.dtype)
        if hidden is not None:
            placed = torch.where(hidden.where[..., None], hidden.stand_in.to(placed.dtype), placed)
        tile = self.tile_token.expand(patches.shape[0], -1, -1)
        x = torch.cat([tile, context, rearrange(placed, "batch modality patch dim -> batch (modality patch) dim")], 1)
        seen = None if valid is None else functional.pad(valid, (1, 0), value=True)
        bucket_of = partial(self._place_buckets, coordinates, context.shape[1], patches.shape[1])
        places = functional.pad(code, (0, 0, 1, 0))
        places = places[..., :1, :] if tile_alone else places
        found = []
        for number, block in enumerate((*self.blocks, None)):
            if str(number) in self.early:
                found.append(self.early[str(number)](x, seen, places, bucket_of, max_pairs))
            x = self.pooling(x, seen, places, bucket_of, max_pairs) if block is None else block(x, seen)
        x = torch.cat([*found, x], dim=-1) if found else x
        return x[:, 0], x[:, 1:]

    @staticmethod
    def _place_buckets(
        coordinates: Tensor, num_context: int, num_modalities: int, some: slice
    ) -> Int[Tensor, "*tile place token"]:
        """Return the buckets from some places (tile, patches) to all tokens (tile, context, patches by modality)."""
        has_tile, num_patches = some.start == 0, coordinates.shape[-2]
        asking = coordinates[..., max(some.start - 1, 0) : some.stop - 1, :]
        near, num_skip = buckets_between(asking, coordinates), 1 + num_context
        shape = (*near.shape[:-2], near.shape[-2] + has_tile, num_skip + num_modalities * num_patches)
        found = torch.full(shape, SKIP_BUCKET, device=near.device)
        of_patches = found[..., int(has_tile) :, num_skip:]
        of_patches = of_patches.unflatten(-1, (num_modalities, num_patches))  # type: ignore[no-untyped-call]
        of_patches.copy_(near[..., None, :])
        return found
