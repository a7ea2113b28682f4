"""The run of `anysat plan`: prepare as for embedding, read windows all over the area, time one, and multiply."""

from __future__ import annotations

import time
from pathlib import Path
from typing import NamedTuple

from torch.utils.flop_counter import FlopCounterMode

from anysat.areas.job import Job, Read
from anysat.areas.windows import Windowing
from anysat.geo.area import Area, Span
from anysat.geo.write.outputs import STORE
from anysat.workflows.answer import Answer
from anysat.workflows.areas.disk import DiskSpace
from anysat.workflows.areas.run import area_line
from anysat.workflows.embed.area import Prepared, measure_statistics, prepare
from anysat.workflows.plan import PlanConfig
from anysat.workflows.plan.held import Held, look_around, time_line, told_bytes

_VALUE_BYTES = 4


class Measured(NamedTuple):
    """Measurements of one window, per patch."""

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
        + f", if all of the ground holds data; {told_bytes(space.running)} more on disk while running"
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
    """Return lines with estimates for the whole area, from windows all over it."""
    rows, cols = (min(job.block, side) for side in job.windowing.shape(job.area))
    held = look_around(job, (rows, cols), lambda period, span: [_read(job, period, span)])
    one, again = _measure(job, held), _times_fused(job)
    patches = job.area.geobox.height * job.area.geobox.width * len(job.periods) * held.ground
    fuse_flops = patches * one.fuse_flops * again
    flops = patches * one.encode_flops + fuse_flops
    return [
        str(held),
        f"operations: {flops * held.share:.3g} FLOP, {fuse_flops / max(flops, 1):.0%} of it fusion, each patch in "
        f"{again:.2g} windows",
        time_line(
            held, patches / (rows * cols), patches * (one.encode_s + one.fuse_s * again), prepared.config.readers
        ),
    ]


def _read(job: Job, period: int, span: Span) -> Read:
    """Read a block of all inputs. What only context modalities have seen is nothing, unless there are no others."""
    found, context = job.read(period, span, list(job.sources)), job.context.keys()
    is_patch = found.tile is not None and (context == job.sources.keys() or found.tile.observations.keys() - context)
    return found if is_patch else found._replace(tile=None)


def _times_fused(job: Job) -> float:
    """Return the number of windows that a patch is in, on average."""
    (rows, cols), (height, width) = job.windowing.shape(job.area), job.area.span.shape
    return len(job.windowing.starts(height)) * rows / height * len(job.windowing.starts(width)) * cols / width


def _measure(job: Job, held: Held) -> Measured:
    """Encode and fuse a window with data twice, and time the second."""
    period, span, (read,) = held.period, held.span, held.reads
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
        (middle - start) / count, (end - middle) / count, encoding.get_total_flops() / count,
        fusing.get_total_flops() / count,
    )  # fmt: skip
