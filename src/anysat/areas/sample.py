"""A few windows from all over an area, to measure what must be known before it is computed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from anysat.areas.job import Job
from anysat.areas.tokens import Floats, Tokens, joined
from anysat.batch import Tile
from anysat.geo.area import Span

SAMPLES = 8
"""Windows that are looked at."""
PLACE_WINDOWS = 64
"""Windows of dealt-out patches from which the part of the place is measured."""


def sample_spans(job: Job, side: int, count: int = SAMPLES) -> list[Span]:
    """Squares of patches, evenly over the area, that touch what is wanted."""
    rows, cols = (max(1, length // side) for length in job.area.span.shape)
    numbers = np.unique(np.linspace(0, rows * cols - 1, min(count * 4, rows * cols)).round().astype(int)).tolist()
    spans = [Span(r * side, (r + 1) * side, c * side, (c + 1) * side) for r, c in (divmod(n, cols) for n in numbers)]
    spans = [span for one in spans if not (span := one.shared_with(job.area.span)).is_empty()]
    wanted = [span for span in spans if job.area.inside(span).any()]
    return [wanted[n] for n in np.unique(np.linspace(0, len(wanted) - 1, min(count, len(wanted))).round().astype(int))]


def sample_tiles(job: Job, side: int = 8) -> Iterator[Tile]:
    """What the inputs hold there, in each period; squares of one size, without those that hold nothing."""
    side = min(side, job.block, *job.area.span.shape)
    for span in sample_spans(job, side):
        for period in range(len(job.periods)):
            tile = job.read(period, span, list(job.sources)).tile
            if tile is not None:
                yield tile


def sample_vectors(job: Job) -> dict[str, Floats]:
    """Embeddings (vector dim) of windows of the area, by layout."""
    found: dict[str, list[Floats]] = {}
    for span in sample_spans(job, min(job.block, job.windowing.side), count=4):
        for period in range(len(job.periods)):
            for name, (vectors, valid) in job.window(period, span).items():
                found.setdefault(name, []).append(vectors[valid])
    return {name: np.concatenate(parts) for name, parts in found.items()}


def measure_places(job: Job, *, windows: int = PLACE_WINDOWS) -> Floats:
    """What a patch's place in its window adds to its fused token (row col dim), the same for all content.

    The encoder asks for fused tokens by place, so that they tell of it. Patches from all over the area are dealt out to
    the places of windows at random, many times: what a place has on average, and others have not, is its own.
    """
    rows, cols = job.windowing.shape(job.area)
    pool = _pool([job.encode(span, job.read(0, span)) for span in sample_spans(job, min(rows, cols, job.block))])
    rng, total = np.random.default_rng(0), np.zeros((rows, cols, job.model.config.dim))
    candidates = np.flatnonzero(pool.valid[0]) if pool.patch else np.empty(0, np.int64)
    if not len(candidates):
        return total.astype(np.float32)
    span = Span(0, rows, 0, cols)
    for _ in range(windows):
        dealt = rng.permutation(np.resize(rng.permutation(candidates), rows * cols)).reshape(rows, cols)
        patch = {key: (vectors[0, dealt], valid[0, dealt]) for key, (vectors, valid) in pool.patch.items()}
        total += job.fuse_window(0, span, Tokens(span, patch))["patch"][0]
    return (total / windows - total.mean((0, 1)) / windows).astype(np.float32)


def _pool(parts: Sequence[Tokens]) -> Tokens:
    """The patches of all parts in one row."""
    counts = [part.valid.size for part in parts]
    ends = np.cumsum(counts).tolist()
    found = []
    for part, count, end in zip(parts, counts, ends, strict=True):
        patch = {
            k: (vectors.reshape(1, count, -1), valid.reshape(1, count)) for k, (vectors, valid) in part.patch.items()
        }
        found.append(Tokens(Span(0, 1, end - count, end), patch))
    return joined(Span(0, 1, 0, ends[-1] if ends else 0), found)
