"""Blocks of ground, which intervals resample as a whole, because neighbouring tiles are alike."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from anysat.data.own.tables import PLACE, as_number
from anysat.data.splits import block_numbers, ground_m
from anysat.errors import InputError
from anysat.geo.degrees import place_deg
from anysat.tasks.scores import Scores

if TYPE_CHECKING:
    from anysat.data.base import TileDataset

Places = Sequence[tuple[float, float]] | NDArray[np.float64]
"""Longitude and latitude of each tile's centre (WGS 84), NaN if not known."""


def listed_places(tiles: TileDataset) -> NDArray[np.float64]:
    """Return longitude and latitude (tile 2) in the dataset's own table of tiles, NaN where it has none."""
    nothing = np.full(len(tiles), np.nan)
    columns = tiles.samples.columns
    return np.stack(
        [np.array([as_number(str(cell)) for cell in columns[name].tolist()]) if name in columns else nothing
         for name in PLACE], axis=1,
    )  # fmt: skip


def known_places(tiles: TileDataset, places: Places) -> NDArray[np.float64]:
    """Return the places of tiles (tile 2), those of the dataset's own table where `places` are not known."""
    given = np.array(places, np.float64).reshape(-1, 2)
    return np.where(np.isfinite(given).all(1, keepdims=True), given, listed_places(tiles))


def places_of(geoboxes: Iterable[Any]) -> NDArray[np.float64]:
    """Return the places of georeferences (tile 2)."""
    return np.array([place_deg(box) for box in geoboxes], np.float64).reshape(-1, 2)


def blocks(places: Places, names: Sequence[str], block_km: float) -> NDArray[np.int64]:
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


def over_blocks(found: Scores, places: Places, tiles: TileDataset, block_km: float | None) -> Scores:
    """Return scores whose intervals resample whole blocks of ground, or tiles if `block_km` is None.

    Args:
        found: Scores of all the tiles, in order.
        places: Longitude and latitude of each tile's centre; that of the dataset's table if not known.
        tiles: The tiles.
        block_km: Side of a block in kilometres.

    Raises:
        InputError: A tile has no coordinates.
    """
    if block_km is None:
        return found
    return replace(found, groups=torch.from_numpy(blocks(known_places(tiles, places), tiles.ids, block_km)))


def unit_of(block_km: float | None) -> str:
    """Return the name of what intervals resample."""
    return "tiles" if block_km is None else f"blocks of {block_km:g} km"
