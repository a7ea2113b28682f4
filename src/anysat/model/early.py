"""Encoders that end after an earlier block or return the features of several, to use features of other depths."""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from itertools import pairwise
from typing import TypeVar

import torch
from torch import Tensor, nn

from anysat.errors import InputError, UnknownNameError
from anysat.model.chunks import slices
from anysat.model.encoder import AnySat
from anysat.model.fusion import BucketsOf
from anysat.model.positions import SELF_BUCKET

LAST = "last"
"""Name of the last layer, that is, of the whole encoder."""

Part = TypeVar("Part", bound=nn.Module)


class OwnTokens(nn.Module):
    """Replacement for `PlacePooling`: each patch gets the mean of its own tokens over modalities, the tile its token.

    Args:
        keep_place: Leave the position code in the token of a patch.
    """

    def __init__(self, keep_place: bool) -> None:
        super().__init__()
        self.keep_place = keep_place

    def forward(
        self, x: Tensor, valid: Tensor | None, code: Tensor, bucket_of: BucketsOf, max_pairs: int | None = None
    ) -> Tensor:
        """Return one vector per place. Arguments as of `PlacePooling`."""
        found = []
        for some in slices(slice(0, code.shape[-2]), max_pairs, x.shape[0] * x.shape[1]):
            own = bucket_of(some) == SELF_BUCKET
            own = (own if valid is None else own & valid[:, None]).to(x.dtype)
            found.append(own @ x / own.sum(-1, keepdim=True).clamp_min(1))
        mean = torch.cat(found, dim=1)
        patches = mean[:, 1:] if self.keep_place else mean[:, 1:] - code[..., 1:, :].to(x.dtype)
        return torch.cat([x[:, :1], patches], dim=1)


def layer_names(encoder: AnySat) -> list[str]:
    """Return the layers at which an encoder can end.

    They are `last`, `spatial.N` (after N blocks of the spatial transformer) and `fusion.N` (of the fusion transformer).
    """
    return [LAST, *(f"{part}.{n + 1}" for part in ("spatial", "fusion") for n in range(encoder.config.depth))]


def check_layer(encoder: AnySat, layer: str) -> None:
    """Check that an encoder can end at a layer.

    Raises:
        UnknownNameError: It cannot.
    """
    if layer not in layer_names(encoder):
        raise UnknownNameError("layer", layer, layer_names(encoder))


def end_at(encoder: AnySat, layer: str) -> AnySat:
    """Make an encoder end at a layer. It is changed in place and loses tensors, so its digest changes.

    At `fusion.N`, the embedding of a patch is the mean over modalities of its tokens after N blocks of the fusion
    transformer, and the tile embedding is the tile token. At `spatial.N`, the embedding of a patch is the mean over
    modalities of the tokens after N blocks of the spatial transformer and its norm, without positions, and the tile
    embedding is a constant. The sub-patch halves of dense embeddings come from the same spatial block.

    Raises:
        UnknownNameError: There is no such layer.
    """
    check_layer(encoder, layer)
    if layer == LAST:
        return encoder
    part, _, depth = layer.partition(".")
    if part == "spatial":
        encoder.spatial.blocks = encoder.spatial.blocks[: int(depth)]
    encoder.fusion.blocks = encoder.fusion.blocks[: 0 if part == "spatial" else int(depth)]
    encoder.fusion.add_module("pooling", OwnTokens(keep_place=part == "fusion"))
    return encoder


def joinable_layers(encoder: AnySat) -> list[str]:
    """Return the layers that one forward pass can return together, by depth: those of fusion, and what enters it."""
    depth = encoder.config.depth
    return [f"spatial.{depth}", *(f"fusion.{n + 1}" for n in range(depth)), LAST]


def joined_at(encoder: AnySat, layers: Sequence[str]) -> AnySat:
    """Return an encoder whose tile and patch embeddings are those of several layers, joined along the last axis.

    The embeddings of each layer are as of `end_at`. The encoder ends at the last of the layers. It shares its weights
    with the given one, which is unchanged.

    Args:
        encoder: The encoder to take the weights from.
        layers: One or more of `joinable_layers`, by depth, each once.

    Raises:
        UnknownNameError: One of the layers cannot be joined with others.
        InputError: There are no layers, or they are not in the order of their depth.
    """
    known = joinable_layers(encoder)
    for layer in layers:
        if layer not in known:
            raise UnknownNameError("layer", layer, known)
    numbers = [known.index(layer) for layer in layers]
    if not numbers or any(a >= b for a, b in pairwise(numbers)):
        raise InputError("layers", f"some of {', '.join(known)}, in this order", ", ".join(layers) or "none")
    found = _beside(encoder)
    found.spatial, found.fusion = _beside(encoder.spatial), _beside(encoder.fusion)
    found.fusion.early = nn.ModuleDict({str(number): OwnTokens(keep_place=number > 0) for number in numbers[:-1]})
    return end_at(found, layers[-1])


def _beside(module: Part) -> Part:
    """Return a copy of a module that shares its weights and parts, so that parts of the copy can be replaced."""
    found = copy(module)
    found._modules = dict(module._modules)
    return found
