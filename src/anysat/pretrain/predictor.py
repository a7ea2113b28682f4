"""The predictor of hidden patches from the fused tokens of the context and the positions of the hidden patches."""

from __future__ import annotations

import torch
from einops import rearrange, repeat
from jaxtyping import Bool, Float
from torch import Tensor, nn

from anysat.errors import RecordError
from anysat.model.layers import Block, init_transformer

NORM_EPS = 1e-5


class Completer(nn.Sequential):
    """Predicts the target of a patch that the student saw in part, from its fused token."""

    def __init__(self, dim: int) -> None:
        super().__init__(nn.LayerNorm(dim, eps=NORM_EPS), nn.Linear(dim, 2 * dim), nn.GELU(), nn.Linear(2 * dim, dim))


class Predictor(nn.Module):
    """A transformer over the context and the positions to predict, one block at a time (paper section 3.2).

    Raises:
        RecordError: `num_heads` does not divide `dim`.
    """

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
        """Predict the targets. Each block is predicted independently of the others.

        Args:
            context: Fused tokens of the student, without the tile token.
            context_valid: False where a tile has fewer tokens; None if all are valid.
            context_code: Position codes of the context.
            target_code: Position codes of the patches to predict.
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
