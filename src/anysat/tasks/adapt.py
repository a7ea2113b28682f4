"""Choice of the parts of an encoder that are trained, and of the learning rates of its blocks."""

from __future__ import annotations

import copy
import math
import re
from collections.abc import Collection
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from anysat.errors import UnknownNameError
from anysat.model.encoder import AnySat
from anysat.model.projectors import SeriesProjector

Trained = Literal["head", "projectors", "lora", "all"]
_ADAPTED = re.compile(r"\.(attention\.(qkv|out|key|value)|mlp\.(fc1|fc2))$")
_SCALE = 16.0
"""Scale of low-rank additions. It is divided by their rank."""


class LowRank(nn.Module):
    """A weight matrix plus the product of two thin ones, which is zero at the start (LoRA, Hu et al. 2022)."""

    def __init__(self, weight: Tensor, rank: int) -> None:
        super().__init__()
        rows, columns = weight.shape
        rank = min(rank, rows, columns)
        self.down = nn.Parameter(torch.empty(rank, columns))
        self.up = nn.Parameter(torch.zeros(rows, rank))
        self.share = _SCALE / rank
        nn.init.kaiming_uniform_(self.down, a=math.sqrt(5))

    def forward(self, weight: Tensor) -> Tensor:
        """Return the weight with its addition."""
        return weight + self.share * (self.up @ self.down)


def adapt(encoder: AnySat, trained: Trained, *, rank: int = 8, modalities: Collection[str] | None = None) -> None:
    """Choose the weights of an encoder that are trained, in place. `lora` adds to every matrix of the transformers.

    Args:
        encoder: The encoder.
        trained: `head`, nothing of the encoder; `projectors`, which turn pixels into tokens (the paper's probe of new
            sensors); `lora`; or `all`.
        rank: Rank of the additions.
        modalities: Modalities whose projectors `projectors` trains; None for all.

    Raises:
        UnknownNameError: `trained` is none of these.
    """
    if trained not in get_args(Trained):
        raise UnknownNameError("part to train", trained, get_args(Trained))
    encoder.requires_grad_(trained == "all")
    if trained == "projectors":
        for key in encoder.projectors if modalities is None else modalities:
            encoder.projectors[key].requires_grad_(True)
    if trained == "lora":
        for name, layer in list(encoder.named_modules()):
            if isinstance(layer, nn.Linear) and _ADAPTED.search(name):
                addition = LowRank(layer.weight, rank).to(layer.weight.device, layer.weight.dtype)
                parametrize.register_parametrization(layer, "weight", addition)
                layer.get_parameter("parametrizations.weight.original").requires_grad_(False)


def frozen_parts(encoder: AnySat, trained: Trained) -> list[nn.Module]:
    """Return the parts that always stay in eval mode, without dropout, because their own weights are not trained."""
    if trained in ("head", "lora"):
        return [encoder]
    return [encoder.spatial, encoder.fusion] if trained == "projectors" else []


def set_pixel_dropout(encoder: AnySat, prob: float) -> None:
    """Set the dropout of pixels and of their tokens in all projectors of series, in place. That of attention stays."""
    for projector in encoder.projectors.values():
        if isinstance(projector, SeriesProjector):
            for layer in (*projector.pixel_mlp, projector.dropout):
                if isinstance(layer, nn.Dropout):
                    layer.p = prob


def merged(encoder: AnySat) -> AnySat:
    """Return the encoder with its low-rank additions merged into the weights, or itself if it has none."""
    if not any(parametrize.is_parametrized(module) for module in encoder.modules()):
        return encoder
    plain = copy.deepcopy(encoder)
    for module in plain.modules():
        if isinstance(module, nn.Linear) and parametrize.is_parametrized(module):
            # torch's own removal would change the class, which the layers of the original encoder share.
            weight = nn.Parameter(module.weight.detach(), requires_grad=False)
            del module.parametrizations
            module.__class__ = nn.Linear
            module.weight = weight
    return plain


def depth_scale(name: str, depth: int, decay: float) -> float:
    """Return the factor of the learning rate of an encoder's parameter: `decay` for each block above it.

    Projectors are below the spatial blocks, these below the fusion blocks, and the last pooling is at the top.
    """
    block = re.match(r"(spatial|fusion)\.blocks\.(\d+)\.", name)
    if block is not None:
        level = 1 + int(block[2]) + (depth if block[1] == "fusion" else 0)
    elif name.startswith("projectors."):
        level = 0
    elif name.startswith("spatial."):
        level = depth
    else:
        level = 2 * depth + 1
    return float(decay ** (2 * depth + 1 - level))
