"""The exact share of each pixel that lies in each of many polygons, without a loop over pixels or polygons.

Each piece of an outline within a pixel adds the area to its right to that pixel, and its height to all pixels further
right in the row. With outlines clockwise and holes counter-clockwise, the sum from the left is the share covered.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

_LEAST = 1e-9
"""Smaller shares are rounding errors."""


class Coverage(NamedTuple):
    """Pixels that lie in polygons: one entry per pair of polygon and pixel, sorted by polygon, row and column."""

    shape: NDArray[np.int64]
    """Number of the polygon."""
    row: NDArray[np.int64]
    col: NDArray[np.int64]
    share: NDArray[np.float64]
    """Share of the pixel in the polygon, above 0 and at most 1."""

    def where(self, chosen: Any) -> Coverage:
        """Return some of the entries, by index or mask."""
        return Coverage(*(part[chosen] for part in self))


class _Edges(NamedTuple):
    """Straight edges with their sign: 1 if the inside is on their right, seen with y upwards."""

    shape: NDArray[np.int64]
    x: NDArray[np.float64]
    y: NDArray[np.float64]
    dx: NDArray[np.float64]
    dy: NDArray[np.float64]
    sign: NDArray[np.float64]


def cover(shapes: NDArray[Any], rows: slice, cols: slice) -> Coverage:
    """Return the pixels of a part of a grid that polygons cover, with the share covered.

    Args:
        shapes: Valid polygons and multi-polygons (shapely) in columns (x) and rows (y) of the grid.
        rows: Rows of the part.
        cols: Columns of the part.

    Example:
        >>> import shapely
        >>> found = cover(np.array([shapely.box(0.5, 0, 2, 1)]), slice(0, 4), slice(0, 4))
        >>> found.row.tolist(), found.col.tolist(), found.share.tolist()
        ([0, 0], [0, 1], [0.5, 1.0])
    """
    edges = _edges(shapes)
    edge, start, end = _pieces(edges, rows, cols)
    height = (end - start) * edges.dy[edge] * edges.sign[edge]
    middle = (start + end) / 2
    x = np.maximum(edges.x[edge] + middle * edges.dx[edge], cols.start)
    row = np.clip(np.floor(edges.y[edge] + middle * edges.dy[edge]).astype(np.int64), rows.start, rows.stop - 1)
    col = np.floor(x).astype(np.int64)
    width = cols.stop - cols.start + 1  # one more, for what begins to the right of all columns
    line = edges.shape[edge] * (rows.stop - rows.start) + (row - rows.start)
    key = line * width + np.minimum(col - cols.start, width - 1)
    is_within = x < cols.stop
    right = (x - col)[is_within] * height[is_within]
    keys, where = np.unique(np.concatenate([key[is_within], key[is_within] + 1]), return_inverse=True)
    steps = np.bincount(where, np.concatenate([height[is_within] - right, right])).astype(np.float64)
    return _runs(keys, steps, width, rows, cols)


def _runs(keys: NDArray[np.int64], steps: NDArray[np.float64], width: int, rows: slice, cols: slice) -> Coverage:
    """Return entries, given where the share changes along each row (`keys`) and by how much (`steps`)."""
    line, col = np.divmod(keys, width)
    begins = np.nonzero(np.diff(line, prepend=-1))[0]
    total = np.cumsum(steps)
    before = np.concatenate([[0.0], total])[begins]
    share = total - np.repeat(before, np.diff(begins, append=len(keys)))
    stop = np.append(col[1:], 0)
    stop[np.append(begins[1:], len(keys))[: len(begins)] - 1] = width - 1
    length = np.where(share > _LEAST, stop - col, 0)
    shape, row = np.divmod(line, rows.stop - rows.start)
    run, place = _ragged(length)
    return Coverage(shape[run], row[run] + rows.start, col[run] + place + cols.start, np.minimum(share[run], 1.0))


def _pieces(edges: _Edges, rows: slice, cols: slice) -> tuple[NDArray[np.int64], ...]:
    """Cut edges at pixel borders; return the edge of each piece, and its start and end along the edge (0 to 1)."""
    ends = np.sort([(rows.start - edges.y) / edges.dy, (rows.stop - edges.y) / edges.dy], axis=0).clip(0, 1)
    kept = np.nonzero(ends[0] < ends[1])[0]
    first, last = ends[:, kept]
    places, of = [first, last], [kept, kept]
    for start, step, limits in ((edges.y, edges.dy, rows), (edges.x, edges.dx, cols)):
        a, b = (start[kept] + part * step[kept] for part in (first, last))
        low = np.maximum(np.floor(np.minimum(a, b)) + 1, limits.start)
        high = np.minimum(np.ceil(np.maximum(a, b)) - 1, limits.stop)
        number, place = _ragged(np.maximum(high - low + 1, 0).astype(np.int64))
        chosen = kept[number]
        places.append(np.clip((low[number] + place - start[chosen]) / step[chosen], first[number], last[number]))
        of.append(chosen)
    edge, along = np.concatenate(of), np.concatenate(places)
    order = np.lexsort((along, edge))
    edge, along = edge[order], along[order]
    is_piece = (edge[:-1] == edge[1:]) & (along[:-1] < along[1:])
    return edge[:-1][is_piece], along[:-1][is_piece], along[1:][is_piece]


def _edges(shapes: NDArray[Any]) -> _Edges:
    """Return the edges of all rings, except horizontal ones, which have no height."""
    import shapely

    parts, of_part = shapely.get_parts(shapes, return_index=True)
    rings, of_ring = shapely.get_rings(parts, return_index=True)
    is_hole = np.diff(of_ring, prepend=-1) == 0
    points, of_point = shapely.get_coordinates(rings, return_index=True)
    x, y = points.T
    is_edge = np.append(of_point[1:] == of_point[:-1], False)[: len(points)]
    a = np.nonzero(is_edge)[0]
    ring, b = of_point[a], a + 1
    x0, y0 = x[a], y[a]
    origin = np.searchsorted(of_point, ring)  # the ring's first point; areas relative to it are more precise
    twice = (x0 - x[origin]) * (y[b] - y[origin]) - (x[b] - x[origin]) * (y0 - y[origin])
    turn = np.sign(np.bincount(ring, twice, len(rings))) * np.where(is_hole, 1, -1)
    found = _Edges(of_part[of_ring[ring]], x0, y0, x[b] - x0, y[b] - y0, turn[ring])
    return _Edges(*(part[found.dy != 0] for part in found))


def _ragged(lengths: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the number of each run, repeated for its length, and the index within the run."""
    number = np.repeat(np.arange(len(lengths)), lengths)
    return number, np.arange(len(number)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
