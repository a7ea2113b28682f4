"""Embed a few windows from all over an area, to measure what must be known before it is computed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from anysat.areas.job import Job, Period, Read
from anysat.areas.tokens import Flags, Floats, Tokens, joined
from anysat.errors import SourceError, UnreadableError
from anysat.geo.area import Area, Span
from anysat.geo.read.source import Source

NOTHING_SEEN = "no input has a valid pixel in the sampled windows"
SAMPLES = 8
"""Number of sampled windows."""
REMOVED = "removed, measured in the middle of equal parts of the ground"
"""What stores record of place corrections. It names the choice of windows, so that work is never continued with another
choice."""
PLACE_WINDOWS = 64
"""Number of windows from which place corrections are measured."""
_SIDE = 8
"""Largest number of patches along a side of a sampled tile."""
_ROUNDS = 6
"""Number of rounds that separate parts of places and patches. Each leaves about an eighth of the error."""
_LEAST_PROBES, _MOST_PROBES, _WINDOWS_PER_PROBE = 256, 10_000, 128
"""Limits of the number of single patches that are looked at to find windows with data, and windows per such patch."""
_NEAR = 256
"""Number of windows around those with data that are looked at."""
_FAILURES = 8
"""Number of reads that may fail before the search for windows with data ends."""

_Seen = TypeVar("_Seen")


class Sampled(Protocol):
    """Work on an area: embedding it, or predicting over it."""

    @property
    def area(self) -> Area:
        """The ground."""

    @property
    def sources(self) -> Mapping[str, Source]:
        """The inputs by modality."""

    @property
    def periods(self) -> tuple[Period, ...]:
        """The ranges of days."""


def seek(
    job: Sampled, shape: tuple[int, int], look: Callable[[int, Span], _Seen | None], count: int = SAMPLES
) -> list[_Seen]:
    """Look at windows all over the requested ground until some of them hold data, and return what was seen in those.

    The first windows lie in the middle of equal parts of the ground. If they do not suffice, a single patch and date
    are read at many other places, and windows are looked at where that shows data, then around those that hold data.
    The choice depends only on inputs, ground and shape.

    Args:
        job: The work. Its area must be at least as large as a window.
        shape: Rows and columns of a window, in patches.
        look: Reads a window, given how many were looked at before and its patches. Returns None if it holds no data.
        count: Number of windows with data that are wanted.
    """
    cells = np.argwhere(job.area.inside(job.area.span, shape))
    found: list[_Seen] = []
    tried: dict[int, bool] = {}
    """Windows looked at, by their place in `cells`, and whether they hold data."""

    def take(cell: int) -> None:
        seen = look(len(tried), _window(job, cells[cell], shape))
        tried[cell] = seen is not None
        if seen is not None:
            found.append(seen)

    for cell in _middles(cells, min(SAMPLES, len(cells))):
        if len(found) < count:
            take(cell)
    probe = _Probe(job, shape)
    for choose in (_spread, _around) if len(cells) > SAMPLES else ():
        for cell in choose(cells, [cell for cell, holds in tried.items() if holds]) if len(found) < count else ():
            if len(found) < count and cell not in tried and probe.shows(cell, cells[cell]):
                take(cell)
    return found


def spread(job: Sampled, shape: tuple[int, int]) -> tuple[NDArray[np.bool_], list[Span]]:
    """Return which windows touch the requested ground, and some of those from all over it, in random order."""
    inside = job.area.inside(job.area.span, shape)
    cells = np.argwhere(inside)
    return inside, [_window(job, cells[cell], shape) for cell in _spread(cells, ())]


def num_wanted(job: Job, shape: tuple[int, int]) -> int:
    """Return the number of windows that `seek` finds if the whole requested ground holds data."""
    return min(SAMPLES, int(job.area.inside(job.area.span, shape).sum()))


def _window(job: Sampled, cell: NDArray[np.int_], shape: tuple[int, int]) -> Span:
    """Return the patches of a window, given by its row and column of windows. The last ones end with the area."""
    (high, wide), (height, width), (row, col) = shape, job.area.span.shape, cell.tolist()
    top, left = min(row * high, height - high), min(col * wide, width - wide)
    return Span(top, top + high, left, left + wide)


def _middles(cells: NDArray[np.int_], count: int) -> list[int]:
    """Divide cells (cell 2) into equal parts, always across the longer side, and return the middle cell of each.

    If there are many cells, some from all over the ground stand for them.
    """
    parts: list[int] = []

    def divide(some: NDArray[np.int_], count: int) -> None:
        if count == 1:
            apart = cells[some] - cells[some].mean(0)
            parts.append(int(some[np.square(apart).sum(1).argmin()]))
            return
        along = cells[some][:, np.ptp(cells[some], axis=0).argmax()]
        order, half = some[np.argsort(along, kind="stable")], count // 2
        divide(order[: len(some) * half // count], half)
        divide(order[len(some) * half // count :], count - half)

    divide(np.sort(_spread(cells, ())), count)
    return parts


def _spread(cells: NDArray[np.int_], _seen: Sequence[int]) -> list[int]:
    """Return some of many cells (cell 2), spread evenly over the ground whatever its outline, in random order.

    Cells are numbered along a Z-order curve, which keeps neighbours together.
    """
    count = min(len(cells), max(_LEAST_PROBES, min(_MOST_PROBES, len(cells) // _WINDOWS_PER_PROBE)))
    along = np.zeros(len(cells), np.int64)
    for bit in range(int(cells.max()).bit_length()):
        along |= (cells[:, 0] >> bit & 1) << (2 * bit + 1) | (cells[:, 1] >> bit & 1) << (2 * bit)
    order = np.argsort(along)
    some = order[((np.arange(count) + 0.5) * len(order) / count).astype(int)]
    return [int(cell) for cell in np.random.default_rng(0).permutation(some)]


def _around(cells: NDArray[np.int_], seen: Sequence[int]) -> list[int]:
    """Return the cells nearest to some of them, nearest first."""
    if not seen:
        return []
    apart = np.min([np.abs(cells - cells[cell]).max(1) for cell in seen], axis=0)
    return [int(cell) for cell in np.argsort(apart, kind="stable")[:_NEAR]]


class _Probe:
    """Reads single patches to find windows with data."""

    def __init__(self, job: Sampled, shape: tuple[int, int]) -> None:
        self._job, self._shape, self._failures = job, shape, 0
        tiling = [source for source in job.sources.values() if not source.modality.covers_tile]
        self._sources = tiling or list(job.sources.values())

    def shows(self, number: int, cell: NDArray[np.int_]) -> bool:
        """Return whether an input has a valid pixel in the middle of a window, on one date of a period."""
        span, (high, wide) = _window(self._job, cell, self._shape), self._shape
        middle = Span(span.top + high // 2, span.top + high // 2 + 1, span.left + wide // 2, span.left + wide // 2 + 1)
        period = self._job.periods[number % len(self._job.periods)]
        for source in self._sources:
            if self._failures >= _FAILURES:
                return False
            grid = self._job.area.covering(middle, source.modality)
            steps = [step for one in source.touching(grid, period) for step in one.steps]
            if not steps:
                continue
            dates = source.dates if source.modality.is_temporal else None
            day = None if dates is None else dates[steps[number % len(steps)]]
            try:
                if source.observe(grid, between=None if day is None else (day, day))[0].valid.any():
                    return True
            except SourceError:
                self._failures += 1
        return False


def nothing_seen(problems: Sequence[str], advice: str) -> SourceError:
    """Return the error for samples without valid pixels. It says what could not be read, or else gives the advice."""
    told = list(dict.fromkeys(problems))
    return UnreadableError("the area", told) if told else SourceError("the area", NOTHING_SEEN, advice)


class Reads(NamedTuple):
    """What the inputs hold in sampled squares."""

    reads: list[Read]
    """One for each square with data and each period."""
    unreadable: tuple[str, ...]
    """What could not be read, and why."""
    num_missing: int
    """Number of squares that were sought and not found."""


def sample_reads(job: Job) -> Reads:
    """Read what the inputs hold in squares of one size, in each period."""
    side = min(_SIDE, job.block, *job.area.span.shape)
    problems: list[str] = []

    def look(_: int, span: Span) -> list[Read] | None:
        reads = [job.read(period, span, list(job.sources)) for period in range(len(job.periods))]
        problems.extend(problem for read in reads for problem in read.unreadable)
        return reads if any(read.tile is not None for read in reads) else None

    found = seek(job, (side, side), look)
    return Reads([read for reads in found for read in reads], tuple(problems),
                 num_wanted(job, (side, side)) - len(found))  # fmt: skip


def sample_vectors(job: Job) -> dict[str, Floats]:
    """Return valid embeddings (vector dim) of sampled windows, by layout.

    Raises:
        SourceError: Nothing was seen in them.
    """
    found: dict[str, list[Floats]] = {}
    problems: list[str] = []
    for period, tokens in _windows(job, job.windowing.shape(job.area), problems):
        for name, (vectors, valid) in job.fuse_window(period, tokens).items():
            found.setdefault(name, []).append(vectors[valid])
    if not found or not all(any(map(len, parts)) for parts in found.values()):
        raise nothing_seen(problems, "store float32 or float16, or check area and dates")
    return {name: np.concatenate(parts) for name, parts in found.items()}


class Places(NamedTuple):
    """Measured place corrections."""

    corrections: Floats
    """What each place in a window adds to its fused token (row col dim)."""
    num_windows: int
    """Number of windows from which they were measured."""
    num_missing: int
    """Number of windows that were sought and not found."""


def measure_places(job: Job) -> Places:
    """Measure place corrections: what the place of a patch in its window adds to its fused token.

    The encoder asks for fused tokens by place, so a part of each depends on the place alone. Sampled windows are
    rolled: what leaves on one side comes in on the other. A patch is thus seen at many places, next to its own
    neighbours. What patches at one place have beyond their own average is the part of the place.

    Raises:
        SourceError: Nothing was seen in the sampled windows.
    """
    rows, cols = job.windowing.shape(job.area)
    problems: list[str] = []
    seen = _windows(job, (rows, cols), problems)
    rng, found, flags, patches = np.random.default_rng(0), [], [], []
    numbers = np.arange(rows * cols).reshape(rows, cols)
    for number in range(PLACE_WINDOWS if seen else 0):
        which = number % len(seen)
        period, tokens = seen[which]
        by = int(rng.integers(rows)), int(rng.integers(cols))
        vectors, valid = job.fuse_window(period, _pushed(tokens, by))["patch"]
        found.append(vectors)
        flags.append(valid)
        patches.append(np.roll(numbers, by, (0, 1)) + which * rows * cols)
    if not found:
        raise nothing_seen(problems, "check area and dates, or leave what places add in it with --places kept")
    places = _of_places(np.stack(found), np.stack(flags), np.stack(patches))
    return Places(places, len(seen), num_wanted(job, (rows, cols)) - len(seen))


def _windows(job: Job, shape: tuple[int, int], problems: list[str]) -> list[tuple[int, Tokens]]:
    """Return the tokens of windows from all over the area, each with a period in which something was seen.

    What could not be read is appended to `problems`.
    """

    def look(number: int, span: Span) -> tuple[int, Tokens] | None:
        for later in range(len(job.periods)):
            period = (number + later) % len(job.periods)
            tokens = joined(span, [job.encode(period, part, job.read(period, part)) for part in span.cut(job.block)])
            problems.extend(tokens.unreadable)
            if tokens.valid.any():
                return period, tokens
        return None

    return seek(job, shape, look)


def _pushed(tokens: Tokens, by: tuple[int, int]) -> Tokens:
    """Roll the tokens of a window by some rows and columns."""
    patch = {key: (np.roll(some, by, (0, 1)), np.roll(seen, by, (0, 1))) for key, (some, seen) in tokens.patch.items()}
    return Tokens(tokens.span, patch)


def _of_places(found: Floats, valid: Flags, patches: NDArray[np.int_]) -> Floats:
    """Separate vectors (window row col dim) into a part of the patch and one of the place; return that (row col dim).

    Args:
        valid: Which of them are valid (window row col).
        patches: The number of each vector's patch (window row col). No number comes twice in a window.
    """
    windows = list(zip(found, valid[..., None], patches, strict=True))
    of_patch, of_place = np.zeros((int(patches.max()) + 1, found.shape[-1])), np.zeros(found.shape[1:])
    per_patch = np.maximum(np.bincount(patches.ravel(), valid.ravel(), len(of_patch)), 1)[:, None]
    per_place = np.maximum(valid.sum(0), 1)[..., None]
    for _ in range(_ROUNDS):
        of_patch[:] = 0
        for vectors, seen, numbers in windows:
            of_patch[numbers] += seen * (vectors - of_place)
        of_patch /= per_patch
        of_place = sum(seen * (vectors - of_patch[numbers]) for vectors, seen, numbers in windows) / per_place
        of_place -= of_place.mean((0, 1))
    return of_place.astype(np.float32)
