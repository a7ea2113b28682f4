"""Where and when: position codes in metres, relative-distance buckets, day codes.

All are fixed functions of a grid or of dates, never stored with the weights (paper equation A).
Coordinates are (row, col) integers; codes put the column first, as the published weights learned it.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int, Real
from torch import Tensor

NUM_BUCKETS = 8
SELF_BUCKET, SKIP_BUCKET = 3, 7
"""Bucket of a token with one of the same place, and of any pair with a token that has none: the tile, class and context
tokens."""


def raster_coordinates(rows: int, cols: int, device: torch.device | None = None) -> Int[Tensor, "cell 2"]:
    """Row and column of each cell of a grid, row by row."""
    row = torch.arange(rows, device=device)[:, None].expand(rows, cols)
    col = torch.arange(cols, device=device)[None, :].expand(rows, cols)
    return torch.stack([row, col], dim=-1).reshape(rows * cols, 2)


def cell_sequence(side: int, cell_side: int, device: torch.device | None = None) -> Int[Tensor, " sub"]:
    """Rank of each sub-patch, given row by row, when counted cell by cell.

    The published projectors emit sub-patches in this sequence (cells row by row, then the
    sub-patches of a cell row by row).
    """
    row, col = raster_coordinates(side, side, device).unbind(-1)
    cell = torch.div(row, cell_side, rounding_mode="floor") * (side // cell_side)
    cell = cell + torch.div(col, cell_side, rounding_mode="floor")
    return cell * cell_side**2 + (row % cell_side) * cell_side + col % cell_side


def subpatch_coordinates(side: int, cell_side: int, device: torch.device | None = None) -> Int[Tensor, "sub 2"]:
    """Row and column that the model believes each sub-patch of a patch has.

    With `cell_side=1` they are the true ones. Otherwise they are those of its rank in
    `cell_sequence`, read as a raster: the published weights learned these.
    """
    rank = cell_sequence(side, cell_side, device)
    return torch.stack([torch.div(rank, side, rounding_mode="floor"), rank % side], dim=-1)


def sincos_code(
    coordinates: Real[Tensor, "*tile place 2"], unit: float, dim: int
) -> Float[Tensor, "*tile place {dim}"]:
    """Sine-cosine code of places, in float32.

    Quarters of `dim`: sin and cos of the column, sin and cos of the row, each times `unit` and
    `10000 ** (-k / (dim / 4))`.
    """
    quarter = dim // 4
    rate = 10000.0 ** (-torch.arange(quarter, dtype=torch.float32, device=coordinates.device) / quarter)
    place = coordinates.to(torch.float32) * unit
    row, col = (place[..., axis, None] * rate for axis in (0, 1))
    return torch.cat([col.sin(), col.cos(), row.sin(), row.cos()], dim=-1)


def distance_buckets(coordinates: Int[Tensor, "*tile place 2"], num_skip: int) -> Int[Tensor, "*tile token token"]:
    """Bucket of each pair of tokens, `num_skip` tokens without a place first.

    Relative position encoding on rounded Euclidean distance (iRPE, ratio 1.9): 3 for the token itself,
    4 for distance 1, 5 for 2 and 3, 6 from 4 on, 7 for skip tokens; 0 to 2 are never used.
    """
    bucket = buckets_between(coordinates, coordinates).long()
    return torch.nn.functional.pad(bucket, (num_skip, 0, num_skip, 0), value=SKIP_BUCKET)


def buckets_between(
    asking: Int[Tensor, "*tile one 2"], asked: Int[Tensor, "*tile other 2"]
) -> Int[Tensor, "*tile one other"]:
    """Bucket of each pair of places, see `distance_buckets`, in bytes."""
    here, there = asking.float(), asked.float()  # far squares may round, small ones do not
    row, col = (here[..., :, None, axis] - there[..., None, :, axis] for axis in (0, 1))
    squared = row.mul_(row).add_(col.mul_(col))
    return (squared >= 1).to(torch.int8).add_(squared >= 3).add_(squared >= 13).add_(SELF_BUCKET)


def day_code(days: Real[Tensor, "*day"], period_days: int, dim: int) -> Float[Tensor, "*day {dim}"]:
    """Sine-cosine code of day numbers, in float32.

    Channel i has angle `day / period ** (2 * floor(i / 2) / dim)`, sine where i is even and
    cosine where it is odd.
    """
    channel = torch.arange(dim, device=days.device)
    exponent = 2 * torch.div(channel, 2, rounding_mode="floor").to(torch.float32) / dim
    angle = days.to(torch.float32)[..., None] / float(period_days) ** exponent
    return torch.where(channel % 2 == 0, angle.sin(), angle.cos())
