"""The metrics of a run as a file: one row per step and name, in the order they were measured."""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping
from pathlib import Path

from anysat.data.work import write_whole

METRICS = "metrics.csv"
_HEAD = "step,name,value"


def write_metrics(path: Path, step: int, metrics: Mapping[str, float]) -> None:
    """Add the metrics measured after `step` steps."""
    rows = "".join(f"{step},{name},{float(value)!r}\n" for name, value in metrics.items())
    new = not path.exists()
    with path.open("a", encoding="utf-8") as file:
        file.write(f"{_HEAD}\n{rows}" if new else rows)


def read_metrics(path: Path) -> dict[str, list[tuple[int, float]]]:
    """Steps and values of each metric, by its name; a row that was cut short is left out."""
    found: dict[str, list[tuple[int, float]]] = {}
    for step, name, value in _rows(path):
        found.setdefault(name, []).append((step, value))
    return found


def cut_metrics(path: Path, step: int) -> None:
    """Leave out the rows of later steps than this one."""
    if path.exists():
        kept = [f"{row_step},{name},{value!r}" for row_step, name, value in _rows(path) if row_step <= step]
        write_whole(path, "\n".join((_HEAD, *kept, "")).encode())


def _rows(path: Path) -> list[tuple[int, str, float]]:
    text = path.read_text("utf-8")
    lines = text.splitlines() if text.endswith("\n") else text.splitlines()[:-1]
    rows = []
    for row in csv.reader(lines[1:]):
        if len(row) == 3 and row[0].isdecimal():
            rows.append((int(row[0]), row[1], float(row[2]) if row[2] else math.nan))
    return rows
