"""Ground that several stores show: it counts once, in the store that is named first."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from odc.geo.geobox import GeoBox

from anysat.geo.grid import boundary_in, crs_of, mapped
from anysat.geo.stores.stored import StoredGroup


def seen_before(
    earlier: Sequence[StoredGroup], group: StoredGroup, period: int, rows: slice, cols: slice
) -> NDArray[np.bool_]:
    """Return the pixels (row col) of a group whose middle lies on ground that a group named earlier has seen.

    Args:
        earlier: The groups that are named before it, with the same periods.
        group: The group.
        period: Number of the period.
        rows: Rows of the group.
        cols: Its columns.
    """
    found = np.zeros((rows.stop - rows.start, cols.stop - cols.start), bool)
    if not (near := [other for other in earlier if _meet(group.geobox, other.geobox)]):
        return found
    col, row = np.meshgrid(np.arange(cols.start, cols.stop) + 0.5, np.arange(rows.start, rows.stop) + 0.5)
    x, y = mapped(group.geobox.affine, col.ravel(), row.ravel())
    for other in near:
        own, crs = crs_of(group.geobox), crs_of(other.geobox)
        to_x, to_y = (x, y) if own == crs else own.transformer_to_crs(crs)(x, y)
        col, row = (np.floor(part) for part in mapped(~other.geobox.affine, to_x, to_y))
        height, width = other.geobox.shape
        inside = np.nonzero((row >= 0) & (row < height) & (col >= 0) & (col < width))[0]
        if len(inside):
            row, col = row[inside].astype(np.int64), col[inside].astype(np.int64)
            place = slice(int(row.min()), int(row.max()) + 1), slice(int(col.min()), int(col.max()) + 1)
            found.reshape(-1)[inside] |= other.seen(period, *place)[row - place[0].start, col - place[1].start]
    return found


@lru_cache(maxsize=1024)
def _meet(one: GeoBox, other: GeoBox) -> bool:
    """Return whether the grids may share ground, by their bounds; so they may where a place cannot be projected."""
    (x, y), (left, bottom, right, top) = boundary_in(other, crs_of(one)), one.boundingbox.bbox
    return not (x.max() < left or x.min() > right or y.max() < bottom or y.min() > top)
