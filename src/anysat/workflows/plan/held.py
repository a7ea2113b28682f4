"""How much of the ground of an area holds data: found by reading windows all over it, which also times reading."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import NormalDist

from anysat.areas.job import Read
from anysat.areas.sample import Sampled, nothing_seen, seek, spread
from anysat.geo.area import Span

_MOST_S = 10.0
"""Seconds after which no further window is read."""
_CERTAINTY = 0.95
"""Probability that the true share lies in the interval that is told."""


@dataclass(frozen=True, kw_only=True)
class Held:
    """What windows from all over an area hold."""

    period: int
    """Period of a window with data."""
    span: Span
    """Patches of that window."""
    reads: list[Read]
    """What was read of that window, in one piece or several."""
    ground: float
    """Share of the windows that touch the requested ground."""
    num_windows: int
    """Number of those, counted once per period."""
    num_read: int
    """Number of windows that were read."""
    num_held: int
    """Number of those with data."""
    read_s: float
    """Seconds to read a window, on average over those with and without data."""

    @property
    def interval(self) -> tuple[float, float]:
        """Limits of the share of windows with data (Wilson 1927), corrected for the share of windows that were read."""
        share = self.num_held / self.num_read
        unread = (self.num_windows - self.num_read) / max(self.num_windows - 1, 1)
        z2 = NormalDist().inv_cdf((1 + _CERTAINTY) / 2) ** 2 * unread / self.num_read
        middle, half = share + z2 / 2, (z2 * (share * (1 - share) + z2 / 4)) ** 0.5
        return max(0.0, (middle - half) / (1 + z2)), min(1.0, (middle + half) / (1 + z2))

    @property
    def share(self) -> float:
        """Share of windows with data that is assumed. It is the upper limit if none of those that were read has any."""
        return self.num_held / self.num_read or self.interval[1]

    def __str__(self) -> str:
        told = f"data: at {self.num_held} of {self.num_read} places read all over the ground"
        if self.num_read == self.num_windows:
            return f"{told}, which are all"
        low, high = (f"{limit:.2%}" for limit in self.interval)
        return (
            f"{told}, out of {self.num_windows}; {self.share:.2%} are assumed to hold some ({low} to {high} with "
            f"{_CERTAINTY:.0%} certainty)"
        )


def look_around(work: Sampled, shape: tuple[int, int], read: Callable[[int, Span], list[Read]]) -> Held:
    """Read windows from all over an area, for a few seconds, and return what they hold and a window with data.

    Args:
        work: What is planned.
        shape: Rows and columns of a window, in patches.
        read: Reads a window in one piece or several, given a period and its patches.

    Raises:
        SourceError: No window that was tried has data.
    """
    problems: list[str] = []

    def look(number: int, span: Span) -> tuple[int, Span, list[Read]] | None:
        period = number % len(work.periods)
        found = read(period, span)
        problems.extend(problem for one in found for problem in one.unreadable)
        return (period, span, found) if any(one.tile is not None for one in found) else None

    def look_in_all(_: int, span: Span) -> tuple[int, Span, list[Read]] | None:
        return next((seen for period in range(len(work.periods)) if (seen := look(period, span))), None)

    inside, spans = spread(work, shape)
    example, num_read, num_held, start = None, 0, 0, time.perf_counter()
    while num_read < len(spans) and time.perf_counter() - start < _MOST_S:
        seen = look(num_read, spans[num_read])
        num_read, num_held, example = num_read + 1, num_held + (seen is not None), example or seen
    read_s = (time.perf_counter() - start) / num_read
    example = example or next(iter(seek(work, shape, look_in_all, count=1)), None)
    if example is None:
        raise nothing_seen(problems, "check area and dates, or plan with --measure false")
    period, span, reads = example
    return Held(
        period=period, span=span, reads=reads, ground=float(inside.mean()), num_read=num_read, num_held=num_held,
        num_windows=int(inside.sum()) * len(work.periods), read_s=read_s,
    )  # fmt: skip


def told_bytes(count: float) -> str:
    """Return a number of bytes in a fitting unit."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB"


def told_time(seconds: float) -> str:
    """Return a time in a fitting unit."""
    if seconds < 90:
        return f"{seconds:.2g} s"
    return f"{seconds / 60:.3g} min" if seconds < 5400 else f"{seconds / 3600:.3g} h"


def time_line(held: Held, num_windows: float, compute_s: float, readers: int) -> str:
    """Return a line with the time for an area.

    Args:
        held: What windows hold.
        num_windows: Number of windows to read, as large as those of `held`.
        compute_s: Seconds to compute everything, if all of it holds data.
        readers: Number of reading threads.
    """
    read_s = num_windows * held.read_s
    likely, low, high = (told_time(max(compute_s * share, read_s / readers)) for share in (held.share, *held.interval))
    between = "" if low == high else f" ({low} to {high})"
    return (
        f"time: about {likely}{between} on this machine ({told_time(compute_s * held.share)} computing, "
        f"{told_time(read_s)} reading in {readers} threads)"
    )
