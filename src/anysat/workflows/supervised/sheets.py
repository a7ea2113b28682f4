"""Files of scores, and the scores of each class: a table that spreadsheets open, or lines of text."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from anysat.data.work import to_json
from anysat.whole_files import write_whole

SCORES = "scores.json"
"""File of all scores of a run."""
CLASS_SCORES = "scores.csv"
"""Table of the scores of each class of a run."""
_COLUMNS = ("support", "precision", "recall", "f1", "iou", "average_precision")
_MOST_LINES = 30
"""Largest number of classes that are printed."""


def write_scores(run: Path, found: Mapping[str, Any]) -> None:
    """Write the scores of a run, and a table of those of each class beside them if there are classes."""
    write_whole(run / SCORES, to_json(found))
    table = class_table(found["scores"]["test"], found["classes"])
    if table is not None:
        write_whole(run / CLASS_SCORES, table)


def class_table_of(path: Path) -> Path:
    """Return the path of the table of a file of scores, or of a map: NAME_scores.csv."""
    return path.with_name(f"{path.stem}_scores.csv")


def class_table(scores: Mapping[str, Any] | None, classes: Sequence[str]) -> str | None:
    """Return a table as CSV with a row per class: its scores, then how often it was predicted as each class.

    Args:
        scores: Plain scores (`described`), or None.
        classes: Names of the classes, by number.

    Returns:
        The text. Scores that are not defined, such as the precision of a class that was never predicted, are empty.
        None if there are no scores, or they are of values.
    """
    if scores is None or not scores["per_class"]:
        return None
    names = [name for name in _COLUMNS if name in scores["per_class"]]
    confusion = scores["confusion"]
    predicted = [] if confusion is None else [*(f"predicted {name}" for name in classes), "no prediction"]
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(["class", *names, *predicted])
    for number, name in enumerate(classes):
        counts = [] if confusion is None else confusion[number]
        table.writerow([name, *(_cell(key, scores["per_class"][key][number]) for key in names), *counts])
    return text.getvalue()


def _cell(name: str, value: float | None) -> Any:
    return int(value) if name == "support" and value is not None else value


def class_lines(scores: Mapping[str, Any], classes: Sequence[str]) -> list[str]:
    """Return lines with the samples, precision, recall and F1 of each class, the most frequent ones if there are many.

    Args:
        scores: Plain scores of classes (`described`).
        classes: Names of the classes, by number.
    """
    names = ("precision", "recall", "f1")
    support, each = scores["per_class"]["support"], [scores["per_class"][name] for name in names]
    shown = sorted(sorted(range(len(classes)), key=lambda number: -support[number])[:_MOST_LINES])
    width = max(18, *(len(classes[number]) for number in shown))
    lines = [f"  {'class':{width}} {'samples':>8} {'precision':>9} {'recall':>9} {'F1':>9}"]
    for number in shown:
        cells = " ".join(f"{'–' if one[number] is None else format(one[number], '.3f'):>9}" for one in each)
        lines.append(f"  {classes[number]:{width}} {int(support[number]):8} {cells}")
    if left_out := len(classes) - len(shown):
        lines.append(f"  and {left_out} classes with fewer samples, which the table holds")
    return lines
