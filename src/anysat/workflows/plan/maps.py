"""The run of `anysat plan --run`: prepare as for a map, time one window, and multiply."""

from __future__ import annotations

import time
from pathlib import Path

from torch.utils.flop_counter import FlopCounterMode

from anysat.geo.area import Area
from anysat.model.precision import find_device
from anysat.tasks.predictor import load_task
from anysat.workflows.answer import Answer
from anysat.workflows.areas.run import area_line
from anysat.workflows.plan import PlanMapConfig
from anysat.workflows.plan.area import read_one, told_bytes, told_time, windows_line
from anysat.workflows.predict.area import Prepared, prepare

_VALUE_BYTES = 4


def plan_map(config: PlanMapConfig) -> Answer:
    """Estimate the work for a map, see `anysat.workflows.plan.plan_map`."""
    prepared = prepare(config, load_task(config.run, device=find_device(config.device)))
    lines = prepared.told()
    for area in prepared.areas:
        lines += _counted(prepared, area)
        if config.measure:
            lines += _estimated(prepared, area)
    lines.append(f"memory: at most {prepared.sizes.peak_bytes / 1e9:.2g} GB of {config.memory_gb:g} GB")
    return Answer("\n".join(lines))


def _counted(prepared: Prepared, area: Area) -> list[str]:
    """Return lines about what is known without reading pixels."""
    periods = len(prepared.inputs.periods)
    rows, cols = prepared.windowing.shape(area)
    values = prepared.load.values * rows * cols * _num_windows(prepared, area) * periods
    stored = sum(
        layout.geobox.height
        * layout.geobox.width
        * (1 + max(layout.dim or 1, 1) * (1 if layout.kind == "uint8" else 4))
        for layout in prepared.layouts(area)
    )
    return [
        area_line(area),
        windows_line(area, prepared.windowing, periods),
        f"to read: at most {told_bytes(values * _VALUE_BYTES)}, {values:.3g} pixel values, window by window",
        f"output: {told_bytes(stored * periods)} before compression",
    ]


def _num_windows(prepared: Prepared, area: Area) -> int:
    rows, cols = area.span.shape
    return len(prepared.windowing.starts(rows)) * len(prepared.windowing.starts(cols))


def _estimated(prepared: Prepared, area: Area) -> list[str]:
    """Return lines with estimates from one window for the whole area."""
    work = prepared.work(area, Path())
    period, span, read, read_s = read_one(work, work.windowing.shape(work.area), work.read)
    with FlopCounterMode(display=False) as counting:
        work.encode(period, span, read)
    start = time.perf_counter()
    work.encode(period, span, read)
    count, compute_s = _num_windows(prepared, area) * len(work.periods), time.perf_counter() - start
    wall_s = count * max(compute_s, read_s / prepared.config.readers)
    return [
        f"operations: {count * counting.get_total_flops():.3g} FLOP",
        f"time: about {told_time(wall_s)} on this machine ({told_time(count * compute_s)} computing, "
        f"{told_time(count * read_s)} reading in {prepared.config.readers} threads)",
    ]  # fmt: skip
