"""The run of `anysat plan`: prepare as for embedding, time one window, and multiply."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

from torch.utils.flop_counter import FlopCounterMode

from anysat.areas.job import Job, Read
from anysat.areas.sample import nothing_seen, seek
from anysat.geo.area import Span
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
    windows = len(job.windowing.starts(rows)) * len(job.windowing.starts(cols))
    side = job.windowing.shape(job.area)
    shards = job.area.shards
    values = prepared.load.values * rows * cols * periods
    kept = prepared.load.kept_bytes * rows * cols * periods
    config, suffix = prepared.config, Path(prepared.config.out).suffix
    suffixes = config.formats if suffix in ("", STORE) else [suffix]
    space = DiskSpace.of(job.area, prepared.layouts(job), periods, suffixes, prepared.load)
    return [
        area_line(job.area),
        f"windows: {windows} of {side[0]} x {side[1]} patches, {job.windowing.overlap:.0%} overlapping, in "
        f"{shards[0]} x {shards[1]} shards of {job.area.shard} x {job.area.shard} patches"
        + (f", for each of {periods} periods" if periods > 1 else ""),
        f"to read: at most {_size(values * _VALUE_BYTES)}, {values:.3g} pixel values, in blocks of {job.block} x "
        f"{job.block} patches",
        f"output: {_size(space.stored)} before compression"
        + (f", and {_size(space.exported)} of GeoTIFFs" if space.exported else "")
        + f"; {_size(space.running)} more on disk while running"
        + (f"; {_size(kept)} kept for adding dates" if kept else ""),
    ]


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
        f"time: about {_time(wall_s)} on this machine ({_time(compute_s)} computing, {_time(read_s)} reading in "
        f"{prepared.config.readers} threads)",
    ]  # fmt: skip


def _times_fused(job: Job) -> float:
    """Return the number of windows that a patch is in, on average."""
    (rows, cols), (height, width) = job.windowing.shape(job.area), job.area.span.shape
    return len(job.windowing.starts(height)) * rows / height * len(job.windowing.starts(width)) * cols / width


def _measure(job: Job) -> Measured:
    """Read one window, encode and fuse it twice, and time the second."""
    period, span, read, read_s = _read_one(job)
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


def _read_one(job: Job) -> tuple[int, Span, Read, float]:
    """Read a window with valid values, and return also the seconds that took.

    Raises:
        SourceError: No window that was tried has any.
    """
    side = min(job.block, *job.windowing.shape(job.area))
    problems: list[str] = []

    def look(_: int, span: Span) -> tuple[int, Span, Read, float] | None:
        for period in range(len(job.periods)):
            start = time.perf_counter()
            read = job.read(period, span, list(job.sources))
            if read.tile is not None:
                return period, span, read, time.perf_counter() - start
            problems.extend(read.unreadable)
        return None

    if not (found := seek(job, (side, side), look, count=1)):
        raise nothing_seen(problems, "check area and dates, or plan with --measure false")
    return found[0]


def _size(count: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB"


def _time(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.2g} s"
    return f"{seconds / 60:.3g} min" if seconds < 5400 else f"{seconds / 3600:.3g} h"
