"""Embed a few windows from all over an area, to measure what must be known before it is computed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from anysat.areas.job import Job, Read
from anysat.areas.tokens import Flags, Floats, Tokens, joined
from anysat.errors import SourceError, UnreadableError
from anysat.geo.area import Span

NOTHING_SEEN = "no input has a valid pixel in the sampled windows"
SAMPLES = 8
"""Number of sampled windows."""
PLACE_WINDOWS = 64
"""Number of windows from which place corrections are measured."""
_SIDE = 8
"""Largest number of patches along a side of a sampled tile."""
_ROUNDS = 6
"""Number of rounds that separate parts of places and patches. Each leaves about an eighth of the error."""


def sample_spans(job: Job, shape: tuple[int, int]) -> list[Span]:
    """Return rectangles of patches of a shape, evenly over the requested ground. The area must be at least as large."""
    (high, wide), (height, width) = shape, job.area.span.shape
    rows, cols = np.nonzero(job.area.inside(job.area.span, shape))
    some = np.unique(np.linspace(0, len(rows) - 1, min(SAMPLES, len(rows))).round().astype(int))
    found = []
    for row, col in zip(rows[some].tolist(), cols[some].tolist(), strict=True):
        top, left = min(row * high, height - high), min(col * wide, width - wide)
        found.append(Span(top, top + high, left, left + wide))
    return found


def nothing_seen(problems: Sequence[str], advice: str) -> SourceError:
    """Return the error for samples without valid pixels. It says what could not be read, or else gives the advice."""
    told = list(dict.fromkeys(problems))
    return UnreadableError("the area", told) if told else SourceError("the area", NOTHING_SEEN, advice)


def sample_reads(job: Job) -> Iterator[Read]:
    """Yield what the inputs hold in sampled squares of one size, in each period."""
    side = min(_SIDE, job.block, *job.area.span.shape)
    for span in sample_spans(job, (side, side)):
        for period in range(len(job.periods)):
            yield job.read(period, span, list(job.sources))


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


def measure_places(job: Job) -> Floats:
    """Measure place corrections: what the place of a patch in its window adds to its fused token (row col dim).

    The encoder asks for fused tokens by place, so a part of each depends on the place alone. Sampled windows are
    rolled: what leaves on one side comes in on the other. A patch is thus seen at many places, next to its own
    neighbours. What patches at one place have beyond their own average is the part of the place.
    """
    rows, cols = job.windowing.shape(job.area)
    seen = list(_windows(job, (rows, cols), []))
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
        return np.zeros((rows, cols, job.model.config.dim), np.float32)
    return _of_places(np.stack(found), np.stack(flags), np.stack(patches))


def _windows(job: Job, shape: tuple[int, int], problems: list[str]) -> Iterator[tuple[int, Tokens]]:
    """Yield a period in which something was seen, and the tokens, of windows from all over the area.

    What could not be read is appended to `problems`.
    """
    for number, span in enumerate(sample_spans(job, shape)):
        for later in range(len(job.periods)):
            period = (number + later) % len(job.periods)
            tokens = joined(span, [job.encode(period, part, job.read(period, part)) for part in span.cut(job.block)])
            problems += tokens.unreadable
            if tokens.valid.any():
                yield period, tokens
                break


def _pushed(tokens: Tokens, by: tuple[int, int]) -> Tokens:
    """Roll the tokens of a window by some rows and columns."""
    patch = {key: (np.roll(some, by, (0, 1)), np.roll(seen, by, (0, 1))) for key, (some, seen) in tokens.patch.items()}
    return Tokens(tokens.span, patch)


def _of_places(found: Floats, valid: Flags, patches: NDArray[np.int_]) -> Floats:
    """Separate vectors (window row col dim) into a part of the patch and one of the place; return that (row col dim).

    Args:
        valid: Which of them are valid (window row col).
        patches: The number of each vector's patch (window row col).
    """
    dim, weight = found.shape[-1], valid[..., None].astype(np.float64)
    values, numbers, total = found * weight, patches.ravel(), int(patches.max()) + 1
    of_patch, of_place = np.zeros((total, dim)), np.zeros(found.shape[1:])
    counts = np.maximum(np.bincount(numbers, valid.ravel(), total), 1)[:, None]
    for _ in range(_ROUNDS):
        of_patch[:] = 0
        np.add.at(of_patch, numbers, (values - weight * of_place).reshape(-1, dim))
        left = values - weight * (of_patch / counts)[patches]
        of_place = left.sum(0) / np.maximum(weight.sum(0), 1)
        of_place -= of_place.mean((0, 1))
    return of_place.astype(np.float32)
