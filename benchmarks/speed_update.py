"""The cost of adding a date to a series, compared with computing all dates again.

python benchmarks/speed_update.py run [--times 5] [--json docs/experiments/speed-update.json]
python benchmarks/speed_update.py print docs/experiments/speed-update.json

A tile like those of PASTIS (320 m, SPOT, 40 dates of Sentinel-2 and Sentinel-1, patches of 40 m) gets a 41st date of
both, at the base size in float32. *Projector* computes the pixel tokens of one sensor from the data kept and the new
date, compared with all 41 dates. *Refresh* computes the embeddings of all patches when one sensor or both get a date,
from the data kept of their dates, the patch tokens of the others, and the new dates, compared with the whole forward
pass. The two take turns, and ratios are medians over turns. *Of operations* is the ratio of the operations in matrix
products.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from machine import machine_facts, measure_or_print, seconds_of
from speed import base_model
from speed_cases import PASTIS, Case
from torch.utils.flop_counter import FlopCounterMode

from anysat.model.encoder import CHUNK_ROWS, MAX_PAIRS, AnySat
from anysat.model.growth import Keep, Remembered, find_kind, grow, num_bytes
from anysat.model.inputs import PixelInput, read_published
from anysat.model.projectors import SeriesProjector
from anysat.model.ready import made_ready

CASE = Case({key: 41 if dates else 0 for key, dates in PASTIS.items()}, 320, 40)
SERIES = ("s1-asc", "s2")


def dates_of(pixels: PixelInput, which: slice) -> PixelInput:
    """Return some dates of a series."""
    assert pixels.days is not None, pixels
    return PixelInput(pixels.values[:, which], pixels.days[:, which], None)


def projector_ways(model: AnySat, inputs: dict[str, PixelInput], key: str, keep: Keep) -> list[Callable[[], Any]]:
    """Return two ways to compute the pixel tokens of a sensor: from all dates, or from the data kept and the last."""
    own = model.projectors[key]
    assert isinstance(own, SeriesProjector), key
    kind = find_kind(own, keep)
    with made_ready(own) as (made,):
        projector: Any = made
    values = projector.cut(inputs[key].values, 1).flatten(0, 1)
    code = projector.date_code(inputs[key].days)[0]
    step = CHUNK_ROWS // values.shape[1]
    parts = [values[start : start + step] for start in range(0, len(values), step)]
    kept = [kind.of(projector, part[:, :-1], code[:-1]) for part in parts]

    def anew() -> list[Any]:
        return [projector(part[None], code[None], None)[0] for part in parts]

    def updated() -> list[Any]:
        found = []
        for part, before in zip(parts, kept, strict=True):
            found.append(
                kind.tokens(projector, kind.joined(before, kind.of(projector, part[:, -1:], code[-1:])), code)[0]
            )
        return found

    torch.testing.assert_close(torch.cat(updated(), 1), torch.cat(anew(), 1), atol=1e-5, rtol=1e-5)
    return [anew, updated]


def grown(model: AnySat, key: str, pixels: PixelInput, before: Remembered | None, keep: Keep) -> tuple[Any, Remembered]:
    """Return the tokens of one sensor over all dates, and the data to keep."""
    projector: Any = model.projectors[key]
    return grow(
        projector, model.spatial, model.config, model.config.modality(key), before, pixels, CASE.patch_m,
        kind=find_kind(projector, keep), chunk_rows=CHUNK_ROWS,
    )  # fmt: skip


def refresh_ways(model: AnySat, inputs: dict[str, PixelInput], key: str, keep: Keep) -> list[Callable[[], Any]]:
    """Return two ways to compute all patch embeddings when series `key` or `all` get a date: again, or updated."""
    side, growing = round(CASE.side_m / CASE.patch_m), SERIES if key == "all" else (key,)
    others = {other: pixels for other, pixels in inputs.items() if other not in growing}
    still = model.see(others, CASE.patch_m, chunk_rows=CHUNK_ROWS)
    kept = {key: grown(model, key, dates_of(inputs[key], slice(0, -1)), None, keep)[1] for key in growing}

    def anew() -> Any:
        return model.core(inputs, CASE.patch_m, chunk_rows=CHUNK_ROWS).patch.flatten(1, 2)

    def updated() -> Any:
        seen = dict(still)
        for key in growing:
            last = dates_of(inputs[key], slice(-1, None))
            seen[key], _ = grown(model, key, last, kept[key], keep)
        ordered = {key: seen[key] for key in inputs}
        return model.fuse(ordered, (side, side), CASE.patch_m, max_pairs=MAX_PAIRS)[1]

    torch.testing.assert_close(updated(), anew(), atol=1e-5, rtol=1e-5)
    return [anew, updated]


def flops_of(way: Callable[[], Any]) -> int:
    """Return the number of operations in matrix products."""
    with FlopCounterMode(display=False) as counter:
        way()
    return int(counter.get_total_flops())


def run(times: int, others: float, path: Path | None) -> None:
    """Measure, print and save."""
    model = base_model()
    found: dict[str, Any] = {"machine": machine_facts(times, others), "rows": []}
    inputs = read_published(CASE.inputs(), model.config)
    works = [
        ("projector", key, keep, projector_ways)
        for key, keep in (("s1-asc", "series"), ("s2", "features"), ("s2", "series"))
    ]
    works += [("refresh", "s1-asc", "series", refresh_ways)]
    works += [("refresh", key, keep, refresh_ways) for key in ("s2", "all") for keep in ("series", "features")]
    with torch.inference_mode():
        for what, key, keep, make in works:
            one = make(model, inputs, key, keep)
            turns = [[seconds_of(way) for way in one] for _ in range(times)]
            anew, updated = (statistics.median(column) for column in zip(*turns, strict=True))
            flops_anew, flops_updated = map(flops_of, one)
            keys = SERIES if key == "all" else (key,)
            found["rows"].append({
                "what": what, "sensor": key, "keep": keep, "anew_s": anew, "updated_s": updated,
                "ratio": statistics.median(b / a for a, b in turns), "flops_ratio": flops_updated / flops_anew,
                "kept_bytes_per_pixel": sum(num_bytes(model.projectors[k], keep, 41) for k in keys),
            })  # fmt: skip
    print(table(found))
    if path is not None:
        path.write_text(json.dumps(found, indent=1) + "\n")


def table(found: dict[str, Any]) -> str:
    """Return a Markdown table."""
    machine = found["machine"]
    lines = [
        f"{machine['processor']}, {machine['threads']} threads, torch {machine['torch']}; medians of "
        f"{machine['times']}, {machine['load']:.1f} cores busy with something else.",
        "", "| what | of | kept | 41 dates anew, s | 41st date added, s | ratio | of operations | kept bytes a pixel |",
        "|---|---|---|---|---|---|---|---|",
    ]  # fmt: skip
    for row in found["rows"]:
        lines.append(
            f"| {row['what']} | {row['sensor']} | {row['keep']} | {row['anew_s']:.2f} | {row['updated_s']:.3f} | "
            f"{row['ratio']:.3f} | {row['flops_ratio']:.3f} | {row['kept_bytes_per_pixel']} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    measure_or_print(__doc__, run, table, times=5)
