"""First weights for narrow encoders and short trainings, which keep what tells patches apart from the start.

The published beginning is what the modules themselves have (spec 2.13). In a narrow encoder what all tokens share is
then many times what tells them apart, and training may stay there (docs/experiments/pretraining.md).
"""

from __future__ import annotations

import torch
from torch import nn

from anysat.model.encoder import AnySat
from anysat.model.layers import init_transformer

BIAS_LIMIT = 0.2
SHARPNESS = 3.0
"""Factor on the identity with which a place asks for tokens near it. Each head has one quarter of the position code,
so that it looks along a row or a column."""


def isometric_std(dim: int) -> float:
    """Spread of weights that keep the length of a vector of so many numbers."""
    return float(dim**-0.5)


def init_isometric(encoder: AnySat) -> None:
    """New weights: orthogonal projectors, a spatial transformer that keeps lengths, places that see their own patch.

    Fused tokens begin as soft averages over rows and columns near them instead of averages of the whole tile. Draws
    from torch's global generator.
    """
    for projector in encoder.projectors.values():
        for layer in projector.modules():
            if isinstance(layer, nn.Linear):
                nn.init.orthogonal_(layer.weight)
                nn.init.uniform_(layer.bias, -BIAS_LIMIT, BIAS_LIMIT)
    init_transformer(encoder.spatial, encoder.spatial.blocks, isometric_std(encoder.config.dim))
    attention = encoder.fusion.pooling.attention
    with torch.no_grad():
        for layer, gain in ((attention.key, SHARPNESS), (attention.value, 1.0), (attention.out, 1.0)):
            nn.init.eye_(layer.weight).mul_(gain)
            nn.init.zeros_(layer.bias)
