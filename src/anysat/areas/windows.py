"""Windows of patches over an area: their places, their weights, and how well they agree.

The tokens of patches do not depend on windows, but the fusion transformer mixes all patches of a window, so the
embedding of a patch depends on the window. Windows therefore overlap, and their results are averaged with weights that
fade towards the edges.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from anysat.geo.area import Area, Span

SIDE = 16
"""Number of patches along a side of a window, if nothing else is asked for."""


@dataclass(frozen=True, kw_only=True)
class Windowing:
    """Size and overlap of windows."""

    side: int = SIDE
    """Number of patches along a side. A smaller area is one window."""
    overlap: float = 0.25
    """Fraction of a side that the next window covers again."""

    @property
    def step(self) -> int:
        """Number of patches from one window to the next."""
        return max(1, round(self.side * (1 - self.overlap)))

    def starts(self, length: int) -> list[int]:
        """Return the first patch of each window along an axis of `length` patches. The last window ends with the axis.

        Examples:
            >>> Windowing(side=4, overlap=0.5).starts(9)
            [0, 2, 4, 5]
        """
        last = max(length - self.side, 0)
        return [*range(0, last, self.step), last]

    def shape(self, area: Area) -> tuple[int, int]:
        """Return the number of rows and columns of every window of an area."""
        return min(self.side, area.geobox.height), min(self.side, area.geobox.width)

    def touching(self, area: Area, span: Span) -> list[Span]:
        """Return the windows that share a patch with a span, row by row."""
        return self.cut(self.around(area, span))

    def cut(self, around: Span, count: int = 1) -> list[Span]:
        """Return the windows over a span that begins and ends with one, such as that of `around`, row by row.

        Args:
            around: The span.
            count: More than 1 returns blocks of at most so many windows along a side. Each window is in one block.
        """
        rows, cols = (self.along(length, count) for length in around.shape)
        return [Span(around.top + top, around.top + bottom, around.left + left, around.left + right)
                for top, bottom in rows for left, right in cols]  # fmt: skip

    def along(self, length: int, count: int) -> list[tuple[int, int]]:
        """Return the ranges of patches of blocks of at most `count` windows, along an axis of `length` patches.

        Examples:
            >>> Windowing(side=4, overlap=0.5).along(9, 3)
            [(0, 6), (4, 9)]
        """
        starts, side = self.starts(length), min(self.side, length)
        parts = np.array_split(starts, math.ceil(len(starts) / count))
        return [(int(part[0]), int(part[-1]) + side) for part in parts]

    def around(self, area: Area, span: Span) -> Span:
        """Return the span of all windows that touch a span."""
        rows = self._reach(area.geobox.height, span.top, span.bottom)
        return Span(*rows, *self._reach(area.geobox.width, span.left, span.right))

    def _reach(self, length: int, start: int, stop: int) -> tuple[int, int]:
        """Return the range of patches of all windows that touch a range."""
        side, end = min(self.side, length), max(length - self.side, 0)
        first = min(max(0, (start - side) // self.step + 1) * self.step, end)
        last = end if end < stop else (stop - 1) // self.step * self.step
        return first, last + side

    def borders(self, area: Area) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
        """Return where windows start, end or begin to weigh most, for rows and columns of the area but the first."""
        found = []
        for length, side in zip(area.span.shape, self.shape(area), strict=True):
            at = np.zeros(length, bool)
            starts = self.starts(length)
            ends = [start + side for start in starts]
            middles = [(end + start) // 2 for end, start in zip(ends[:-1], starts[1:], strict=True)]
            at[[place for place in (*starts, *ends, *middles) if 0 < place < length]] = True
            found.append(at[1:])
        return found[0], found[1]


def fade(shape: tuple[int, int]) -> NDArray[np.float32]:
    """Return the weights (row col) over a window: a raised cosine along each side, above 0 everywhere.

    Examples:
        >>> [round(float(weight), 2) for weight in fade((1, 4))[0]]
        [0.15, 0.85, 0.85, 0.15]
    """
    along = (np.sin(np.pi * (np.arange(side) + 0.5) / side).astype(np.float32) ** 2 for side in shape)
    return np.outer(*along)


class Blend:
    """The weighted mean of windows over a span, with its validity. Each patch has `side` values along a side."""

    def __init__(self, span: Span, dim: int, side: int = 1) -> None:
        self._span, self._side = span, side
        shape = span.shape[0] * side, span.shape[1] * side
        self._sum = np.zeros((*shape, dim), np.float32)
        self._weight = np.zeros((*shape, 1), np.float32)

    def add(
        self, window: Span, vectors: NDArray[np.float32], valid: NDArray[np.bool_], weight: NDArray[np.float32]
    ) -> None:
        """Add the vectors (row col dim) of a window where they are valid (row col)."""
        part = window.shared_with(self._span)
        mine, theirs = (self._fine(part.within(outer)) for outer in (self._span, window))
        counts = (weight * valid)[theirs][..., None]
        self._sum[mine] += counts * np.where(valid[theirs][..., None], vectors[theirs], 0)
        self._weight[mine] += counts

    def result(self) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        """Return the mean (row col dim), NaN where not valid, and validity (row col)."""
        seen = self._weight[..., 0] > 0
        return np.where(seen[..., None], self._sum / np.where(seen[..., None], self._weight, 1), np.nan), seen

    def _fine(self, slices: tuple[slice, slice]) -> tuple[slice, ...]:
        return tuple(slice(one.start * self._side, one.stop * self._side) for one in slices)


@dataclass(frozen=True)
class Seams:
    """Differences between neighbouring patches, at the borders of windows and elsewhere.

    The seam score is the mean of the former over that of the latter. It is 1 if borders do not show.
    """

    border: float = 0.0
    """Sum of the distances between neighbours across a border."""
    num_border: int = 0
    inside: float = 0.0
    """Sum of the distances between other neighbours."""
    num_inside: int = 0

    @property
    def score(self) -> float | None:
        """The seam score; None if there are no neighbours of a kind, or the others are all equal."""
        if not (self.num_border and self.num_inside and self.inside):
            return None
        return (self.border / self.num_border) / (self.inside / self.num_inside)

    def __add__(self, other: Seams) -> Seams:
        return Seams(self.border + other.border, self.num_border + other.num_border,
                     self.inside + other.inside, self.num_inside + other.num_inside)  # fmt: skip

    @classmethod
    def of(
        cls, vectors: NDArray[np.float32], valid: NDArray[np.bool_], span: Span, area: Area, windowing: Windowing
    ) -> Seams:
        """Measure the differences between the patches (row col dim) of a span."""
        total = cls()
        at_rows, at_cols = windowing.borders(area)
        for axis, borders in ((0, at_rows[span.top : span.bottom - 1]), (1, at_cols[span.left : span.right - 1])):
            along, known = np.moveaxis(vectors, axis, 0), np.moveaxis(valid, axis, 0)
            both = known[1:] & known[:-1]
            apart = np.where(both, np.linalg.norm(np.where(both[..., None], along[1:] - along[:-1], 0), axis=-1), 0)
            here = both & borders[:, None]
            total += cls(float(apart[here].sum(dtype=np.float64)), int(here.sum()),
                         float(apart[both & ~here].sum(dtype=np.float64)), int((both & ~here).sum()))  # fmt: skip
        return total
