"""Codes of position and date: position codes in metres, relative-distance buckets, day codes.

All are fixed functions of a grid or of dates and are not stored with the weights (paper equation A). Coordinates are
(row, col) integers. Codes put the column first, as the published weights learned it.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int, Real
from torch import Tensor

NUM_BUCKETS = 8
SELF_BUCKET, SKIP_BUCKET = 3, 7
"""Bucket of two tokens of the same place, and of any pair with a token that has no place (tile, class and context
tokens)."""


def raster_coordinates(rows: int, cols: int, device: torch.device | None = None) -> Int[Tensor, "cell 2"]:
    """Return the row and column of each cell of a grid, row by row."""
    row = torch.arange(rows, device=device)[:, None].expand(rows, cols)
    col = torch.arange(cols, device=device)[None, :].expand(rows, cols)
    return torch.stack([row, col], dim=-1).reshape(rows * cols, 2)


def cell_sequence(side: int, cell_side: int, device: torch.device | None = None) -> Int[Tensor, " sub"]:
    """Return the rank that each sub-patch, given row by row, has when counted cell by cell.

    The published projectors output sub-patches in this order: cells row by row, and within a cell its sub-patches row
    by row.
    """
    row, col = raster_coordinates(side, side, device).unbind(-1)
    cell = torch.div(row, cell_side, rounding_mode="floor") * (side // cell_side)
    cell = cell + torch.div(col, cell_side, rounding_mode="floor")
    return cell * cell_side**2 + (row % cell_side) * cell_side + col % cell_side


def subpatch_coordinates(side: int, cell_side: int, device: torch.device | None = None) -> Int[Tensor, "sub 2"]:
    """Return the row and column that the model assigns to each sub-patch of a patch.

    With `cell_side=1`, they are the true ones. Otherwise they are the position of its `cell_sequence` rank in a raster,
    as the published weights learned it.
    """
    rank = cell_sequence(side, cell_side, device)
    return torch.stack([torch.div(rank, side, rounding_mode="floor"), rank % side], dim=-1)


def sincos_code(
    coordinates: Real[Tensor, "*tile place 2"], unit: float, dim: int
) -> Float[Tensor, "*tile place {dim}"]:
    """Return the sine-cosine codes of places, in float32.

    The quarters of `dim` are sin and cos of the column, and sin and cos of the row, each times `unit` and
    `10000 ** (-k / (dim / 4))`.
    """
    quarter = dim // 4
    rate = 10000.0 ** (-torch.arange(quarter, dtype=torch.float32, device=coordinates.device) / quarter)
    place = coordinates.to(torch.float32) * unit
    row, col = (place[..., axis, None] * rate for axis in (0, 1))
    return torch.cat([col.sin(), col.cos(), row.sin(), row.cos()], dim=-1)


def distance_buckets(coordinates: Int[Tensor, "*tile place 2"], num_skip: int) -> Int[Tensor, "*tile token token"]:
    """Return the bucket of each pair of tokens. The first `num_skip` tokens have no place.

    Buckets are those of the relative position encoding iRPE (ratio 1.9) on rounded Euclidean distances: 3 for the token
    itself, 4 for distance 1, 5 for 2 and 3, 6 from 4 on, and 7 for tokens without a place. 0 to 2 are never used.
    """
    bucket = buckets_between(coordinates, coordinates).long()
    return torch.nn.functional.pad(bucket, (num_skip, 0, num_skip, 0), value=SKIP_BUCKET)


def buckets_between(
    asking: Int[Tensor, "*tile one 2"], asked: Int[Tensor, "*tile other 2"]
) -> Int[Tensor, "*tile one other"]:
    """Return the bucket of each pair of places as int8, see `distance_buckets`."""
    here, there = asking.float(), asked.float()  # far squares may round, small ones do not
    row, col = (here[..., :, None, axis] - there[..., None, :, axis] for axis in (0, 1))
    squared = row.mul_(row).add_(col.mul_(col))
    return (squared >= 1).to(torch.int8).add_(squared >= 3).add_(squared >= 13).add_(SELF_BUCKET)


def day_code(days: Real[Tensor, "*day"], period_days: int, dim: int) -> Float[Tensor, "*day {dim}"]:
    """Return the sine-cosine codes of day numbers, in float32.

    The angle of channel i is `day / period ** (2 * floor(i / 2) / dim)`. Even channels are its sine, odd channels its
    cosine.
    """
    channel = torch.arange(dim, device=days.device)
    exponent = 2 * torch.div(channel, 2, rounding_mode="floor").to(torch.float32) / dim
    angle = days.to(torch.float32)[..., None] / float(period_days) ** exponent
    return torch.where(channel % 2 == 0, angle.sin(), angle.cos())
