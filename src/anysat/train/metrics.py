"""The metrics file of a run: one row per step and name, in the order of measurement."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterable, Mapping
from pathlib import Path

from anysat.whole_files import write_whole

METRICS = "metrics.csv"
_HEAD = ("step", "name", "value")


def write_metrics(path: Path, step: int, metrics: Mapping[str, float]) -> None:
    """Append the metrics measured after `step` steps."""
    rows = [(step, name, repr(float(value))) for name, value in metrics.items()]
    new = not path.exists()
    with path.open("a", encoding="utf-8", newline="") as file:
        file.write(_text([_HEAD, *rows] if new else rows))


def read_metrics(path: Path) -> dict[str, list[tuple[int, float]]]:
    """Return the steps and values of each metric by name. Incomplete rows are left out."""
    found: dict[str, list[tuple[int, float]]] = {}
    for step, name, value in _rows(path):
        found.setdefault(name, []).append((step, value))
    return found


def cut_metrics(path: Path, step: int) -> None:
    """Remove the rows of steps after `step`."""
    if path.exists():
        kept = [(row_step, name, repr(value)) for row_step, name, value in _rows(path) if row_step <= step]
        write_whole(path, _text([_HEAD, *kept]).encode())


def _text(rows: Iterable[Iterable[object]]) -> str:
    """Return rows as CSV, in which names with commas are quoted."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()


def _rows(path: Path) -> list[tuple[int, str, float]]:
    content = path.read_bytes()
    whole = content[: content.rfind(b"\n") + 1].decode()
    rows = []
    for row in csv.reader(io.StringIO(whole, newline="")):
        if len(row) == len(_HEAD) and row[0].isdecimal():
            rows.append((int(row[0]), row[1], float(row[2]) if row[2] else math.nan))
    return rows
