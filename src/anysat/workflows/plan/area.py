"""The run of `anysat plan`: prepare as for embedding, time one window, and multiply."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from torch.utils.flop_counter import FlopCounterMode

from anysat.areas.job import Job, Read
from anysat.areas.sample import Sampled, nothing_seen, seek
from anysat.areas.windows import Windowing
from anysat.geo.area import Area, Span
from anysat.geo.write.outputs import STORE
from anysat.workflows.answer import Answer
from anysat.workflows.areas.disk import DiskSpace
from anysat.workflows.areas.run import area_line
from anysat.workflows.embed.area import Prepared, measure_statistics, prepare
from anysat.workflows.plan import PlanConfig

_VALUE_BYTES = 4


@dataclass(frozen=True)
class Measured:
    """Measurements of one window, per patch."""

    read_s: float
    encode_s: float
    fuse_s: float
    """Seconds to fuse one window, divided by its patches."""
    encode_flops: float
    fuse_flops: float


def plan_area(config: PlanConfig) -> Answer:
    """Estimate the work for an area, see `anysat.workflows.plan.plan`."""
    prepared = prepare(config)
    lines = prepared.inputs.told()
    if config.measure:
        lines.append(f"statistics: {measure_statistics(prepared.jobs, prepared.model)}")
    for job in prepared.jobs:
        lines += _counted(prepared, job)
        if config.measure:
            lines += _estimated(prepared, job)
    lines.append(f"memory: at most {prepared.sizes.peak_bytes / 1e9:.2g} GB of {config.memory_gb:g} GB")
    return Answer("\n".join(lines))


def _counted(prepared: Prepared, job: Job) -> list[str]:
    """Return lines about what is known without reading pixels."""
    (rows, cols), periods = job.area.span.shape, len(job.periods)
    values = prepared.load.values * rows * cols * periods
    kept = prepared.load.kept_bytes * rows * cols * periods
    config, suffix = prepared.config, Path(prepared.config.out).suffix
    suffixes = config.formats if suffix in ("", STORE) else [suffix]
    space = DiskSpace.of(job.area, prepared.layouts(job), periods, suffixes, prepared.load)
    return [
        area_line(job.area),
        windows_line(job.area, job.windowing, periods),
        f"to read: at most {told_bytes(values * _VALUE_BYTES)}, {values:.3g} pixel values, in blocks of {job.block} x "
        f"{job.block} patches",
        f"output: {told_bytes(space.stored)} before compression"
        + (f", and {told_bytes(space.exported)} of GeoTIFFs" if space.exported else "")
        + f"; {told_bytes(space.running)} more on disk while running"
        + (f"; {told_bytes(kept)} kept for adding dates" if kept else ""),
    ]


def windows_line(area: Area, windowing: Windowing, periods: int) -> str:
    """Describe the windows and shards of an area in a line."""
    (rows, cols), side, shards = area.span.shape, windowing.shape(area), area.shards
    return (
        f"windows: {len(windowing.starts(rows)) * len(windowing.starts(cols))} of {side[0]} x {side[1]} patches, "
        f"{windowing.overlap:.0%} overlapping, in {shards[0]} x {shards[1]} shards of {area.shard} x {area.shard} "
        "patches" + (f", for each of {periods} periods" if periods > 1 else "")
    )


def _estimated(prepared: Prepared, job: Job) -> list[str]:
    """Return lines with estimates from one window for the whole area."""
    one = _measure(job)
    patches = job.area.geobox.height * job.area.geobox.width * len(job.periods)
    again = _times_fused(job)
    fuse_flops = patches * one.fuse_flops * again
    flops = patches * one.encode_flops + fuse_flops
    compute_s, read_s = patches * (one.encode_s + one.fuse_s * again), patches * one.read_s
    wall_s = max(compute_s, read_s / prepared.config.readers)
    return [
        f"operations: {flops:.3g} FLOP, {fuse_flops / max(flops, 1):.0%} of it fusion, each patch in "
        f"{again:.2g} windows",
        f"time: about {told_time(wall_s)} on this machine ({told_time(compute_s)} computing, "
        f"{told_time(read_s)} reading in {prepared.config.readers} threads)",
    ]  # fmt: skip


def _times_fused(job: Job) -> float:
    """Return the number of windows that a patch is in, on average."""
    (rows, cols), (height, width) = job.windowing.shape(job.area), job.area.span.shape
    return len(job.windowing.starts(height)) * rows / height * len(job.windowing.starts(width)) * cols / width


def _measure(job: Job) -> Measured:
    """Read one window, encode and fuse it twice, and time the second."""
    side = min(job.block, *job.windowing.shape(job.area))
    period, span, read, read_s = read_one(
        job, (side, side), lambda period, span: job.read(period, span, list(job.sources))
    )
    count = span.shape[0] * span.shape[1]
    with FlopCounterMode(display=False) as encoding:
        tokens = job.encode(period, span, read)
    with FlopCounterMode(display=False) as fusing:
        job.fuse_window(period, tokens)
    start = time.perf_counter()
    tokens = job.encode(period, span, read)
    middle = time.perf_counter()
    job.fuse_window(period, tokens)
    end = time.perf_counter()
    return Measured(
        read_s / count, (middle - start) / count, (end - middle) / count, encoding.get_total_flops() / count,
        fusing.get_total_flops() / count,
    )  # fmt: skip


def read_one(work: Sampled, shape: tuple[int, int], read: Callable[[int, Span], Read]) -> tuple[int, Span, Read, float]:
    """Read a window with valid values: return its period, patches and content, and the seconds that took.

    Args:
        work: What is planned.
        shape: Rows and columns of a window, in patches.
        read: Reads a window, given a period and its patches.

    Raises:
        SourceError: No window that was tried has any.
    """
    problems: list[str] = []

    def look(_: int, span: Span) -> tuple[int, Span, Read, float] | None:
        for period in range(len(work.periods)):
            start = time.perf_counter()
            found = read(period, span)
            if found.tile is not None:
                return period, span, found, time.perf_counter() - start
            problems.extend(found.unreadable)
        return None

    if not (found := seek(work, shape, look, count=1)):
        raise nothing_seen(problems, "check area and dates, or plan with --measure false")
    return found[0]


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
