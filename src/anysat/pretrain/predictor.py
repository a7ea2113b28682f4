"""The predictor: from the fused tokens of the context, and the places of hidden patches, to what these hold."""

from __future__ import annotations

import torch
from einops import rearrange, repeat
from jaxtyping import Bool, Float
from torch import Tensor, nn

from anysat.errors import RecordError
from anysat.model.layers import Block, init_transformer

NORM_EPS = 1e-5


class Completer(nn.Sequential):
    """From the fused token of a patch that the student saw in part to all that it holds."""

    def __init__(self, dim: int) -> None:
        super().__init__(nn.LayerNorm(dim, eps=NORM_EPS), nn.Linear(dim, 2 * dim), nn.GELU(), nn.Linear(2 * dim, dim))


class Predictor(nn.Module):
    """A narrow transformer over context and places to predict, block by block (paper section 3.2, spec 2.12)."""

    def __init__(self, dim: int, depth: int = 4, num_heads: int = 16) -> None:
        super().__init__()
        if dim % num_heads:
            raise RecordError("objective.predictor_heads", num_heads, f"a divisor of the model's width {dim}")
        self.embed = nn.Linear(dim, dim)
        self.blocks = nn.ModuleList(Block(dim, num_heads, NORM_EPS) for _ in range(depth))
        self.norm = nn.LayerNorm(dim, eps=NORM_EPS)
        self.out = nn.Linear(dim, dim)
        self.tile_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.target_token = nn.Parameter(torch.empty(1, 1, dim))
        nn.init.trunc_normal_(self.target_token, std=0.02)
        init_transformer(self, self.blocks)

    def forward(
        self,
        context: Float[Tensor, "batch shown dim"],
        context_valid: Bool[Tensor, "batch shown"] | None,
        context_code: Float[Tensor, "batch shown dim"],
        target_code: Float[Tensor, "block batch target dim"],
    ) -> Float[Tensor, "block batch target dim"]:
        """What stands at the targets; each block is predicted without regard to the others.

        Args:
            context: fused tokens of the student, the tile's left out.
            context_valid: False where a tile has fewer; None when all are valid.
            context_code: code of their places.
            target_code: code of the places to predict.
        """
        num_blocks, _, num_targets, _ = target_code.shape
        placed = self.embed(context) + context_code.to(context.dtype)
        placed = repeat(placed, "batch shown dim -> (block batch) shown dim", block=num_blocks)
        targets = rearrange(self.target_token + target_code, "block batch target dim -> (block batch) target dim")
        x = torch.cat(
            [self.tile_token.expand(len(placed), -1, -1).to(placed.dtype), placed, targets.to(placed.dtype)], 1
        )
        valid = None
        if context_valid is not None:
            seen = repeat(context_valid, "batch shown -> (block batch) shown", block=num_blocks)
            ones = seen.new_ones(len(seen), num_targets)
            valid = torch.cat([ones[:, :1], seen, ones], dim=1)
        for block in self.blocks:
            x = block(x, valid)
        found = self.out(self.norm(x[:, -num_targets:]))
        return rearrange(found, "(block batch) target dim -> block batch target dim", block=num_blocks)
