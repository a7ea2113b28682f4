"""Samples of stores at labelled places: which patches polygons and points take, and the embeddings there."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from anysat.geo.coverage import cover
from anysat.geo.overlap import seen_before
from anysat.geo.parcels import Parcels
from anysat.geo.stores.stored import StoredGroup
from anysat.geo.zonal import batches

LEAST_SHARE = 0.5
"""Share of a patch that a polygon must cover to take it."""
_HELD = 2_000_000
"""Number of patches held before those that are too many are dropped."""


class Patches(NamedTuple):
    """Patches of stores that shapes take: one entry per pair of shape and patch."""

    store: NDArray[np.int64]
    """Number of the store."""
    shape: NDArray[np.int64]
    """Number of the polygon or point."""
    row: NDArray[np.int64]
    col: NDArray[np.int64]
    share: NDArray[np.float64]
    """Share of the patch that the shape covers, at least `LEAST_SHARE`."""

    def where(self, chosen: Any) -> Patches:
        """Return some of the entries, by index or mask."""
        return Patches(*(part[chosen] for part in self))


def choose_patches(groups: Sequence[StoredGroup], placed: Sequence[Parcels], most: int) -> Patches:
    """Return the patches that shapes take: a point the one in which it lies, a polygon those mostly inside it.

    If there are more than `most`, they are drawn evenly over the shapes. The draw is always the same, and does not
    depend on shards.

    Args:
        groups: One group of each store.
        placed: The shapes on the grid of each group.
        most: Largest number of patches.
    """
    none = np.empty(0, np.int64)
    parts = [Patches(none, none, none, none, np.empty(0))]
    held = 0
    for number, (group, parcels) in enumerate(zip(groups, placed, strict=True)):
        for unit in group.units(0):
            rows, cols = group.slices(unit)
            for chosen in batches(parcels.bounds, rows, cols):
                found = cover(parcels.shapes[chosen], rows, cols)
                found = found.where(found.share >= LEAST_SHARE)
                store = np.full(len(found.row), number)
                parts.append(Patches(store, chosen[found.shape], found.row, found.col, found.share))
                held += len(store)
                if held > _HELD + most:
                    parts, held = [_first(parts, most)], most
    return _first(parts, most)


def _first(parts: Sequence[Patches], most: int) -> Patches:
    """Return at most `most` patches, in order (`drawn`)."""
    every = Patches(*(np.concatenate(columns) for columns in zip(*parts, strict=True)))
    every = every.where(drawn(every, most))
    return every.where(np.lexsort((every.col, every.row, every.store, every.shape)))


def drawn(patches: Patches, most: int) -> NDArray[np.int64]:
    """Return the indices of at most `most` patches, in a fixed random order and evenly over the shapes."""
    mixed = _mixed(patches)
    order = np.lexsort((mixed, patches.shape))
    if len(order) > most:
        shape = patches.shape[order]
        turn = np.arange(len(order)) - np.searchsorted(shape, shape)
        order = order[np.lexsort((mixed[order], turn))[:most]]
    return order


def _mixed(patches: Patches) -> NDArray[np.uint64]:
    """Return a number for each patch that looks random but depends on its place alone (the mixer of SplitMix64)."""
    found = (patches.store.astype(np.uint64) << np.uint64(58)) ^ (patches.row.astype(np.uint64) << np.uint64(29))
    found ^= patches.col.astype(np.uint64)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        found = (found ^ (found >> np.uint64(shift))) * np.uint64(factor)
    return found ^ (found >> np.uint64(31))


def read_vectors(
    groups: Sequence[StoredGroup], patches: Patches, periods: Sequence[int]
) -> tuple[NDArray[np.float32], NDArray[np.bool_], int]:
    """Read the embeddings of patches (period patch dim), and where they were seen (period patch).

    Of ground that several stores have seen, only the first shows it. The last answer is how many samples this left out.
    """
    values = np.zeros((len(periods), len(patches.row), groups[0].dim or 1), np.float32)
    seen, num_twice = np.zeros(values.shape[:2], bool), 0
    sides = np.array([(int(group.array.chunks[-2]), group.shard_px) for group in groups])[patches.store]
    key = np.stack([patches.store, patches.row // sides[:, 0], patches.col // sides[:, 1]])  # what is read at once
    order = np.lexsort(key[::-1])
    for mine in np.split(order, np.nonzero(np.diff(key[:, order], axis=1).any(axis=0))[0] + 1):
        if not len(mine):
            continue
        row, col = patches.row[mine], patches.col[mine]
        rows, cols = (slice(int(one.min()), int(one.max()) + 1) for one in (row, col))
        store = int(patches.store[mine[0]])
        for number, period in enumerate(periods):
            read, valid = read_window(groups[store], period, rows, cols)
            before = seen_before(groups[:store], groups[store], period, rows, cols)
            place = row - rows.start, col - cols.start
            num_twice += int((valid & before)[place].sum())
            seen[number, mine] = (valid & ~before)[place]
            values[number, mine] = read[place]
    return values, seen, num_twice


def read_window(
    group: StoredGroup, period: int, rows: slice, cols: slice
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Read embeddings (row col dim), decoded, and where they were seen (row col)."""
    values, valid = group.window(period, rows, cols)
    return values.astype(np.float32, copy=False), valid & np.isfinite(values).all(-1)
