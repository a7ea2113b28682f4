"""Blocks of ground, which intervals resample as a whole, because neighbouring tiles are alike."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from anysat.data.splits import block_numbers, ground_m
from anysat.errors import InputError
from anysat.geo.degrees import centre_deg
from anysat.tasks.scores import Scores


def blocks(geoboxes: Sequence[Any], names: Sequence[str], block_km: float) -> NDArray[np.int64]:
    """Return the number of the block that the centre of each tile lies in.

    Raises:
        InputError: A tile has no coordinates.
    """
    for name, box in zip(names, geoboxes, strict=True):
        if box is None or box.crs is None:
            raise InputError("blocks of ground", "tiles with coordinates", f"tile {name!r} without",
                             "leave --block-km and --folds out")  # fmt: skip
    lon, lat = np.array([centre_deg(box) for box in geoboxes]).T
    block_m = 1000 * block_km
    return block_numbers(*ground_m(lon, lat, block_m), block_m)


def over_blocks(found: Scores, tiles: Any, block_km: float | None) -> Scores:
    """Return scores whose intervals resample whole blocks of ground, or tiles if `block_km` is None.

    Args:
        found: Scores of all the tiles, in order.
        tiles: Tiles with coordinates.
        block_km: Side of a block in kilometres.
    """
    if block_km is None:
        return found
    numbers = blocks([tiles[index].geobox for index in range(len(tiles))], tiles.ids, block_km)
    return replace(found, groups=torch.from_numpy(numbers))


def unit_of(block_km: float | None) -> str:
    """Return the name of what intervals resample."""
    return "tiles" if block_km is None else f"blocks of {block_km:g} km"
