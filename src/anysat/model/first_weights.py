"""Initial weights for narrow encoders and short trainings, which keep the differences between patches from the start.

The modules themselves are initialised as published. In a narrow encoder, what all tokens have in common is then many
times larger than their differences, and training may not get beyond that (docs/experiments/pretraining.md).
"""

from __future__ import annotations

import math

import torch
from torch import nn

from anysat.model.encoder import AnySat
from anysat.model.layers import init_transformer
from anysat.model.positions import SELF_BUCKET, day_code
from anysat.model.projectors import SeriesProjector

BIAS_LIMIT = 0.5
"""Largest bias of the projectors: enough to tell bright from dark of one colour, which group norms would lose."""
NEARNESS = 6.0
"""Advantage, before the softmax, of the tokens of a place's own patch over all others."""
SEASON_DAYS = 45.0
"""Spread of the days that a head of the temporal pooling attends to."""
WHOLE_YEAR_HEADS = 4
"""Number of heads that attend to all dates equally."""
YEAR_DAYS = 365.25
DRAWN_SHARE = 0.1
"""Factor of the random queries and keys, beside the seasons."""


def isometric_std(dim: int) -> float:
    """Return the standard deviation of weights that preserve the length of vectors with `dim` numbers."""
    return float(dim**-0.5)


def init_isometric(encoder: AnySat) -> None:
    """Initialise an encoder with weights that lose little of the pixels. Draws from torch's global generator.

    Projectors are orthogonal, the heads of the temporal pooling attend to seasons, and the spatial transformer
    preserves lengths. Fused tokens start mostly as the mean of the patch's tokens over modalities, instead of averages
    of the whole tile: the relative-position term of distance 0 responds to a vector that is part of every query.
    """
    for projector in encoder.projectors.values():
        for layer in projector.modules():
            if isinstance(layer, nn.Linear):
                nn.init.orthogonal_(layer.weight)
                nn.init.uniform_(layer.bias, -BIAS_LIMIT, BIAS_LIMIT)
        if isinstance(projector, SeriesProjector):
            _look_at_seasons(projector)
    init_transformer(encoder.spatial, encoder.spatial.blocks, isometric_std(encoder.config.dim))
    attention = encoder.fusion.pooling.attention
    with torch.no_grad():
        for layer in (attention.key, attention.value, attention.out):
            nn.init.eye_(layer.weight)
            nn.init.zeros_(layer.bias)
        signs = torch.randint(2, (attention.relative.weight.shape[1],)).float() * 2 - 1
        attention.query.copy_(signs.repeat(attention.num_heads)[None, None])
        attention.relative.weight[0, :, SELF_BUCKET] = NEARNESS * signs / len(signs)


def _look_at_seasons(projector: SeriesProjector) -> None:
    """Let each head of the temporal pooling start with a part of the year, and some with all of it.

    The window of a head is a von Mises function of the fastest angle of the day code that makes at most one turn in a
    year. With widths below 128 there is no such angle, and heads attend to two parts of the year.
    """
    pooling, width = projector.pooling, projector.code_dim
    heads, key_dim = pooling.query.shape
    rate = [float(projector.period_days) ** (-2 * pair / width) for pair in range(width // 2)]
    pair = min((n for n, r in enumerate(rate) if r * YEAR_DAYS <= 2 * math.pi), default=len(rate) - 1)
    middles = (torch.arange(heads - WHOLE_YEAR_HEADS) + 0.5) / (heads - WHOLE_YEAR_HEADS) * YEAR_DAYS
    wanted = torch.zeros(heads, width)
    wanted[WHOLE_YEAR_HEADS:] = day_code(middles, projector.period_days, width) / (rate[pair] * SEASON_DAYS) ** 2
    other = torch.arange(width) // 2 != pair
    wanted[:, other] = 0.0
    with torch.no_grad():
        pooling.query.mul_(DRAWN_SHARE)
        pooling.query[:, 0] = math.sqrt(key_dim)
        nn.init.zeros_(pooling.key.bias)
        keys = pooling.key.weight.view(heads, key_dim, heads * width).mul_(DRAWN_SHARE)
        keys[:, 0] += wanted.repeat(1, heads) / heads
