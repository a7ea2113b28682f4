"""Blocks of ground, which intervals resample as a whole, because neighbouring tiles are alike."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray

from anysat.data.splits import block_numbers, ground_m
from anysat.errors import InputError
from anysat.tasks.scores import Scores


def blocks(places: Sequence[tuple[float, float]], names: Sequence[str], block_km: float) -> NDArray[np.int64]:
    """Return the number of the block that the centre of each tile lies in.

    Args:
        places: Longitude and latitude of each tile's centre; NaN if not known.
        names: Name of each tile.
        block_km: Side of a block in kilometres.

    Raises:
        InputError: A tile has no coordinates.
    """
    lon, lat = np.array(places, np.float64).reshape(-1, 2).T
    for name, is_known in zip(names, np.isfinite(lon + lat), strict=True):
        if not is_known:
            raise InputError("blocks of ground", "tiles with coordinates", f"tile {name!r} without",
                             "leave --block-km and --folds out")  # fmt: skip
    block_m = 1000 * block_km
    return block_numbers(*ground_m(lon, lat, block_m), block_m)


def over_blocks(
    found: Scores, places: Sequence[tuple[float, float]], names: Sequence[str], block_km: float | None
) -> Scores:
    """Return scores whose intervals resample whole blocks of ground, or tiles if `block_km` is None.

    Args:
        found: Scores of all the tiles, in order.
        places: Longitude and latitude of each tile's centre.
        names: Name of each tile.
        block_km: Side of a block in kilometres.

    Raises:
        InputError: A tile has no coordinates.
    """
    if block_km is None:
        return found
    return replace(found, groups=torch.from_numpy(blocks(places, names, block_km)))


def unit_of(block_km: float | None) -> str:
    """Return the name of what intervals resample."""
    return "tiles" if block_km is None else f"blocks of {block_km:g} km"
