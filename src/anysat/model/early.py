"""Encoders that end after an earlier block, to evaluate features of other depths."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from anysat.errors import UnknownNameError
from anysat.model.chunks import slices
from anysat.model.encoder import AnySat
from anysat.model.fusion import BucketsOf
from anysat.model.positions import SELF_BUCKET

LAST = "last"
"""Name of the last layer, that is, of the whole encoder."""


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
