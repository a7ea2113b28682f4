"""The spatial transformer, which turns the sub-patch tokens of a patch into one token (paper section 3.1)."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional

from anysat.model.config import ModelConfig
from anysat.model.layers import Block, init_transformer

NORM_EPS = 1e-5


class SpatialTransformer(nn.Module):
    """A transformer over the sub-patch tokens of a patch, with the same weights for all modalities and patch sizes."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.cls_token = nn.Parameter(torch.zeros(1, 1, config.dim))
        self.blocks = nn.ModuleList(
            Block(config.dim, config.num_heads, NORM_EPS, relative_heads=config.rpe_heads) for _ in range(config.depth)
        )
        self.norm = nn.LayerNorm(config.dim, eps=NORM_EPS)
        init_transformer(self, self.blocks)

    def forward(
        self,
        tokens: Float[Tensor, "patch sub dim"],
        valid: Bool[Tensor, "patch sub"] | None,
        code: Float[Tensor, "sub dim"],
        bucket: Int[Tensor, "1+sub 1+sub"],
        keep_sub: bool = True,
    ) -> tuple[Float[Tensor, "patch dim"], Float[Tensor, "patch sub dim"] | None]:
        """Return one token per patch, and the refined sub-patch tokens if `keep_sub` is set.

        Tokens that are not `valid` are not attended to. Without `keep_sub`, the last block computes only the token of a
        patch, which saves a tenth of the whole forward pass.
        """
        cls_token = self.cls_token.expand(tokens.shape[0], -1, -1)
        x = torch.cat([cls_token, tokens + code.to(cls_token.dtype)], dim=1)
        seen = None if valid is None else functional.pad(valid, (1, 0), value=True)
        last = len(self.blocks) - 1
        for number, block in enumerate(self.blocks):
            x = block(x, seen, bucket, first_alone=number == last and not keep_sub)
        x = self.norm(x)
        return x[:, 0], x[:, 1:] if keep_sub else None
