"""The forward pass as in the paper, step by step: all pixels, dates and tokens at once, nothing combined or left out.

It is a readable reference for tests, and the baseline of `benchmarks/speed.py`. It uses the weights of an encoder, but
of its arithmetic only the position codes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

import torch
from einops import rearrange, repeat
from torch import Tensor, nn
from torch.nn import functional

from anysat.model.encoder import AnySat
from anysat.model.inputs import PixelInput
from anysat.model.layers import Block, FeedForward
from anysat.model.positions import distance_buckets, raster_coordinates, sincos_code, subpatch_coordinates
from anysat.model.projectors import ImageProjector, SeriesProjector
from anysat.patches import cells_per_side, subpatches_per_side


class Plain(NamedTuple):
    """Fused tokens, and the sub-patch tokens of each modality."""

    tile: Tensor
    """(batch dim)"""
    patch: Tensor
    """(batch patch dim)"""
    sub: dict[str, Tensor]
    """(batch patch sub dim)"""


class PlainPatches(NamedTuple):
    """The tokens of one modality."""

    patch: Tensor
    """(batch patch dim)"""
    flag: Tensor
    """(batch patch), True where anything was observed"""
    sub: Tensor
    """(batch patch sub dim)"""


def plain(model: AnySat, inputs: Mapping[str, PixelInput], patch_size_m: float) -> Plain:
    """Return the tokens for checked inputs. Those of places that nothing observed are meaningless."""
    found = {key: seen(model, key, pixels, patch_size_m) for key, pixels in inputs.items()}
    rows, cols = model._count_patches(inputs, patch_size_m)
    context = {key for key in found if model.config.modality(key).covers_tile}
    of_tile = [placed(model, key, found[key], inputs[key].values.shape[-2:]) for key in found if key in context]
    tiling = [one for key, one in found.items() if key not in context]
    assert rows * cols == tiling[0].patch.shape[1]
    coordinates = raster_coordinates(rows, cols, tiling[0].patch.device)
    return Plain(
        *fused(model, of_tile, tiling, coordinates, patch_size_m), {key: one.sub for key, one in found.items()}
    )


def placed(model: AnySat, key: str, one: PlainPatches, shape: torch.Size) -> PlainPatches:
    """Add position codes to tokens that cover the whole tile, if there are several."""
    if math.prod(shape) == 1:
        return one
    unit = model.config.modality(key).subpatch_m / model.config.patch_position_unit_m
    code = sincos_code(raster_coordinates(shape[0], shape[1], one.patch.device), unit, model.config.dim)
    return one._replace(patch=one.patch + code.to(one.patch.dtype))


def seen(model: AnySat, key: str, pixels: PixelInput, patch_size_m: float) -> PlainPatches:
    """Apply projector and spatial transformer of one modality."""
    modality = model.config.modality(key)
    side = subpatches_per_side(patch_size_m, modality)
    projector = model.projectors[key]
    project = series if isinstance(projector, SeriesProjector) else image
    tokens, there = project(projector, pixels, side * modality.subpatch_px, side)
    order = subpatch_coordinates(
        side, cells_per_side(modality) if model.config.subpatch_order == "cell" else 1, tokens.device
    )
    code = sincos_code(order, modality.subpatch_m, model.config.dim).to(tokens.dtype)
    cls_token = model.spatial.cls_token.expand(len(tokens), -1, -1)
    x = torch.cat([cls_token, tokens + code], dim=1)
    bucket = distance_buckets(order, num_skip=1)
    for block in model.spatial.blocks:
        x = transformer_block(block, x, functional.pad(there, (1, 0), value=True), bucket)
    x = model.spatial.norm(x)
    patch, flag, sub = (
        rearrange(t, "(batch patch) ... -> batch patch ...", batch=len(pixels.values))
        for t in (x[:, 0], there.any(1), x[:, 1:])
    )
    return PlainPatches(patch, flag, sub)


def image(projector: ImageProjector, pixels: PixelInput, side_px: int, side: int) -> tuple[Tensor, Tensor]:
    """Apply convolution and MLP; return tokens (patch sub dim), and which of them have a valid value."""
    valid = torch.ones_like(pixels.values, dtype=torch.bool) if pixels.valid is None else pixels.valid
    cut = {"y": side_px, "x": side_px}
    squares, real = (
        rearrange(t, "batch band (pr y) (pc x) -> (batch pr pc) band y x", **cut)
        for t in (pixels.values.where(valid, 0.0), valid)
    )
    tokens = rearrange(projector.embed(squares), "patch dim sr sc -> patch (sr sc) dim")
    real = rearrange(real, "patch band (sr y) (sc x) -> patch (sr sc) (band y x)", sr=side, sc=side)
    return in_turn(projector.mlp, tokens), real.any(-1)


def in_turn(layers: nn.Sequential, x: Tensor) -> Tensor:
    """Apply layers with torch's plain functions, whatever their classes do."""
    for layer in layers:
        if isinstance(layer, nn.GroupNorm):
            x = functional.group_norm(x, layer.num_groups, layer.weight, layer.bias, layer.eps)
        elif isinstance(layer, nn.ReLU):
            x = functional.relu(x)
        else:
            x = layer(x)
    return x


def feed_forward(layer: FeedForward, x: Tensor) -> Tensor:
    """Apply two linear layers with a GELU in between."""
    return layer.fc2(functional.gelu(layer.fc1(x)))


def series(projector: SeriesProjector, pixels: PixelInput, side_px: int, side: int) -> tuple[Tensor, Tensor]:
    """Apply pixel MLP, norm over dates, day code, softmax over dates, MLP; return tokens (patch sub dim), validity."""
    assert side_px == side
    assert pixels.days is not None
    valid = torch.ones_like(pixels.values, dtype=torch.bool) if pixels.valid is None else pixels.valid
    layout = "batch time band (pr y) (pc x) -> (batch pr pc y x) time band"
    x = rearrange(pixels.values.where(valid, projector.fill), layout, y=side, x=side)
    present = rearrange(valid, layout, y=side, x=side).any(-1)
    num_pixels, num_dates, _ = x.shape
    x = in_turn(projector.pixel_mlp, x.flatten(0, 1)).view(num_pixels, num_dates, -1)
    if projector.date_norm is not None:
        x = norm_over_dates(projector.date_norm, x, present)
    pooling = projector.pooling
    heads, key_dim = pooling.query.shape
    code = repeat(projector.date_code(pixels.days), "batch time slice -> batch time (head slice)", head=heads)
    x = x + code.to(x.dtype).repeat_interleave(num_pixels // len(pixels.days), dim=0)
    keys = rearrange(pooling.key(x), "pixel time (head key) -> pixel head time key", head=heads)
    logits = torch.einsum("phtk,hk->pht", keys, pooling.query) / math.sqrt(key_dim)
    attended = present | ~present.any(-1, keepdim=True)
    share = logits.masked_fill(~attended[:, None], float("-inf")).softmax(-1)
    pooled = torch.einsum(
        "pht,pthd->phd", share, rearrange(x, "pixel time (head dim) -> pixel time head dim", head=heads)
    )
    tokens = in_turn(nn.Sequential(*projector.out_mlp, projector.out_norm), pooled.flatten(1))
    cut = "(patch sub) ... -> patch sub ..."
    return rearrange(tokens, cut, sub=side * side), rearrange(present.any(-1), cut, sub=side * side)


def norm_over_dates(norm: nn.GroupNorm, x: Tensor, present: Tensor) -> Tensor:
    """Normalise (pixel time dim) over the channels of a group and the valid dates of a pixel."""
    groups = rearrange(x, "pixel time (group dim) -> pixel group time dim", group=norm.num_groups)
    there = present[:, None, :, None].to(x.dtype)
    count = (there.sum((2, 3), keepdim=True) * groups.shape[-1]).clamp_min(1)
    mean = (groups * there).sum((2, 3), keepdim=True) / count
    variance = ((groups - mean).square() * there).sum((2, 3), keepdim=True) / count
    normal = (groups - mean) / (variance + norm.eps).sqrt()
    return rearrange(normal, "pixel group time dim -> pixel time (group dim)") * norm.weight + norm.bias


def transformer_block(block: Block, x: Tensor, seen: Tensor, bucket: Tensor | None) -> Tensor:
    """Apply attention and feed-forward layers, each with its norm and residual connection."""
    attention = block.attention
    layout = "batch token (three head dim) -> three batch head token dim"
    query, key, value = rearrange(
        attention.qkv(block.norm1(x)), layout, three=3, head=attention.num_heads
    ).unbind(0)  # fmt: skip
    if attention.within_token:  # heads attend to each other
        query, key, value = (t.transpose(1, 2) for t in (query, key, value))
        mixed = attend(query, key, value, None).transpose(1, 2)
    else:
        bias = seen.new_zeros(seen.shape, dtype=x.dtype).masked_fill(~seen, float("-inf"))[:, None, None]
        if attention.relative is not None and bucket is not None:
            bias = bias + attention.relative(query * query.shape[-1] ** -0.5, bucket)
        mixed = attend(query, key, value, bias)
    x = x + attention.out(rearrange(mixed, "batch head token dim -> batch token (head dim)"))
    return x + feed_forward(block.mlp, block.norm2(x))


def attend(query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None) -> Tensor:
    """Apply softmax attention, written out."""
    scores = query @ key.transpose(-2, -1) * query.shape[-1] ** -0.5
    return (scores if bias is None else scores + bias).softmax(-1) @ value


def fused(
    model: AnySat, context: list[PlainPatches], tiling: list[PlainPatches], coordinates: Tensor, patch_size_m: float
) -> tuple[Tensor, Tensor]:
    """Return tile token and fused patch tokens, from the tokens of context modalities and those that lie in patches."""
    fusion, first = model.fusion, tiling[0]
    code = sincos_code(coordinates, patch_size_m / model.config.patch_position_unit_m, model.config.dim)
    code = code.to(first.patch.dtype)
    tile = fusion.tile_token.expand(len(first.patch), -1, -1)
    x = torch.cat([tile, *(one.patch for one in context), *(one.patch + code for one in tiling)], dim=1)
    seen = torch.cat([first.flag.new_ones(len(tile), 1), *(one.flag for one in (*context, *tiling))], dim=1)
    for block in fusion.blocks:
        x = transformer_block(block, x, seen, None)
    pooling, attention = fusion.pooling, fusion.pooling.attention
    x = pooling.norm1(x)
    places = attention.query + functional.pad(code, (0, 0, 1, 0))
    split = "batch token (head dim) -> batch head token dim"
    query = rearrange(places, split, head=attention.num_heads)
    key, value = (rearrange(layer(x), split, head=attention.num_heads) for layer in (attention.key, attention.value))
    one = distance_buckets(coordinates, num_skip=1)
    of_tile = one[:, :1].repeat(1, 1 + sum(part.patch.shape[1] for part in context))
    bucket = torch.cat([of_tile, one[:, 1:].repeat(1, len(tiling))], dim=1)
    hidden = seen.new_zeros(seen.shape, dtype=x.dtype).masked_fill(~seen, float("-inf"))[:, None, None]
    mixed = attend(query, key, value, attention.relative(query, bucket) + hidden)
    x = attention.out(rearrange(mixed, "batch head place dim -> batch place (head dim)"))
    x = x + feed_forward(pooling.mlp, pooling.norm2(x))
    return x[:, 0], x[:, 1:]
