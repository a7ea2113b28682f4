"""First weights for narrow encoders and short trainings, which keep what tells patches apart from the start.

The published beginning is what the modules themselves have (spec 2.13). In a narrow encoder what all tokens share is
then many times what tells them apart, and training may stay there (docs/experiments/pretraining.md).
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
"""Of the projectors: enough to tell bright from dark of one colour, which group norms forget without."""
NEARNESS = 6.0
"""What a place's tokens of its own patch have above all others before the softmax."""
SEASON_DAYS = 45.0
"""Spread of the days that a head of the temporal pooling looks at."""
WHOLE_YEAR_HEADS = 4
"""Heads that look at every date alike."""
YEAR_DAYS = 365.25
DRAWN_SHARE = 0.1
"""What is left of the drawn queries and keys beside the seasons."""


def isometric_std(dim: int) -> float:
    """Spread of weights that keep the length of a vector of so many numbers."""
    return float(dim**-0.5)


def init_isometric(encoder: AnySat) -> None:
    """New weights that lose little of the pixels: isometric maps, seasons, places that see their own patch.

    Projectors are orthogonal, series are seen season by season, the spatial transformer keeps lengths. Fused tokens
    begin as the mean of what the modalities saw of the patch, mostly, instead of averages of the whole tile: the
    relative-position term of distance 0 answers a vector that is part of every query. Draws from torch's global
    generator.
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
    """Each head of the temporal pooling begins with a part of the year, some with all of it.

    A head's window is a von Mises one in the fastest angle of the day code that does not turn twice in a year; widths
    below 128 have none, and see two parts of the year.
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
