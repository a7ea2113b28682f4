"""An encoder that ends early: its tokens are those that leave a block on the way, for features of other depths."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from anysat.errors import UnknownNameError
from anysat.model.chunks import slices
from anysat.model.encoder import AnySat
from anysat.model.fusion import BucketsOf
from anysat.model.positions import SELF_BUCKET

LAST = "last"
"""The whole encoder."""


class OwnTokens(nn.Module):
    """Stands where places ask for tokens: each gets the mean of its own, over modalities, and the tile its own.

    Args:
        keep_place: leave the code of its place in a patch's token.
    """

    def __init__(self, keep_place: bool) -> None:
        super().__init__()
        self.keep_place = keep_place

    def forward(
        self, x: Tensor, valid: Tensor | None, code: Tensor, bucket_of: BucketsOf, max_pairs: int | None = None
    ) -> Tensor:
        """One vector per place; arguments as of `PlacePooling`."""
        found = []
        for some in slices(slice(0, code.shape[-2]), max_pairs, x.shape[0] * x.shape[1]):
            own = bucket_of(some) == SELF_BUCKET
            own = (own if valid is None else own & valid[:, None]).to(x.dtype)
            found.append(own @ x / own.sum(-1, keepdim=True).clamp_min(1))
        mean = torch.cat(found, dim=1)
        patches = mean[:, 1:] if self.keep_place else mean[:, 1:] - code[..., 1:, :].to(x.dtype)
        return torch.cat([x[:, :1], patches], dim=1)


def layer_names(encoder: AnySat) -> list[str]:
    """Where an encoder may end: `last`, `spatial.N` after N blocks of the spatial transformer, `fusion.N` of fusion."""
    return [LAST, *(f"{part}.{n + 1}" for part in ("spatial", "fusion") for n in range(encoder.config.depth))]


def end_at(encoder: AnySat, layer: str) -> AnySat:
    """Make an encoder end at a layer; it is changed in place, and its tensors are fewer, so that its digest differs.

    At `fusion.N`, patches have the mean over modalities of their tokens after N blocks of fusion, and the tile has its
    token. At `spatial.N`, patches have the mean over modalities of the spatial transformer's tokens after N blocks and
    its norm, without their places; the tile's token is a constant. Dense halves are of the same spatial block.

    Raises:
        UnknownNameError: there is no such layer.
    """
    if layer not in layer_names(encoder):
        raise UnknownNameError("layer", layer, layer_names(encoder))
    if layer == LAST:
        return encoder
    part, _, depth = layer.partition(".")
    if part == "spatial":
        encoder.spatial.blocks = encoder.spatial.blocks[: int(depth)]
    encoder.fusion.blocks = encoder.fusion.blocks[: 0 if part == "spatial" else int(depth)]
    encoder.fusion.add_module("pooling", OwnTokens(keep_place=part == "fusion"))
    return encoder
