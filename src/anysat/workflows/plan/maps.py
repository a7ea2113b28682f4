"""The run of `anysat plan --run`: prepare as for a map, read blocks all over the area, time one, and multiply."""

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
from anysat.workflows.plan.area import windows_line
from anysat.workflows.plan.held import look_around, time_line, told_bytes
from anysat.workflows.predict.area import Prepared, prepare

_VALUE_BYTES = 4
_MEASURED = 32
"""Number of patches along a side of the windows that are measured, if more than one window is."""


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
    periods, across = len(prepared.inputs.periods), prepared.across
    rows, cols = (sum(stop - start for start, stop in prepared.windowing.along(length, across))
                  for length in area.span.shape)  # fmt: skip
    values = prepared.load.values * rows * cols * periods
    stored = sum(
        layout.geobox.height * layout.geobox.width * (1 + max(layout.dim or 1, 1) * layout.dtype.itemsize)
        for layout in prepared.layouts(area)
    )
    return [
        area_line(area),
        windows_line(area, prepared.windowing, periods),
        f"to read: at most {told_bytes(values * _VALUE_BYTES)}, {values:.3g} pixel values, in blocks of at most "
        f"{across} x {across} windows",
        f"output: {told_bytes(stored * periods)} before compression, if all of the ground holds data",
    ]


def _num_windows(prepared: Prepared, area: Area) -> int:
    rows, cols = area.span.shape
    return len(prepared.windowing.starts(rows)) * len(prepared.windowing.starts(cols))


def _estimated(prepared: Prepared, area: Area) -> list[str]:
    """Return lines with estimates for the whole area, from blocks all over it."""
    work = prepared.work(area, Path())
    across = min(work.across, max(1, _MEASURED // work.windowing.side))
    rows, cols = (work.windowing.along(length, across)[0][1] for length in area.span.shape)
    held = look_around(work, (rows, cols), work.read)
    with FlopCounterMode(display=False) as counting:
        work.encode(held.period, held.span, held.reads)
    start = time.perf_counter()
    work.encode(held.period, held.span, held.reads)
    encode_s = time.perf_counter() - start
    count = _num_windows(prepared, area) * len(work.periods) * held.ground / len(held.reads)
    return [
        str(held),
        f"operations: {count * held.share * counting.get_total_flops():.3g} FLOP",
        time_line(held, count, count * encode_s, prepared.config.readers),
    ]
