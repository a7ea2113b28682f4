"""The tables of docs/experiments/pretraining.md from the records. The page contains them exactly as printed here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

BASELINES = {
    "statistics": "statistics: mean and deviation of the bands",
    "neighbourhood": "neighbourhood: the same, over 50 m too",
    "series": "series: every band at every date",
}
TITLES = {
    "no-contrast": "no contrast",
    "random-tokens": "random tokens instead of blocks",
    "dates": "contrast of halves of the dates too",
    "all-dates": "no date left out",
    "all-modalities": "no modality hidden",
    "projection-discriminate": "projection, patch discrimination",
    "broken-as-asked": "momentum 0, no contrast",
    "no-dense": "no dense term",
    "as-published": "as published",
    "real-projection": "real, projection",
}
"""Titles of variants that are called differently on the page."""
Records = Mapping[str, dict[str, Any]]
"""Records by the name of their file, in the order of the rows."""


def title(name: str) -> str:
    """Return the title of a run in a table."""
    variant, _, seed = name.rpartition("-")
    return f"{TITLES.get(variant, variant)}, seed {seed}" if seed.isdigit() else name


def scores(records: Records, part: str | None = None) -> str:
    """Return a row for each feature set without a network, each untrained network, and each run, with the retrieval."""
    tasks = _tasks(records, part)
    chance = next(iter(records.values()))["retrieval"]["chance"]
    lines = [["run" if part is None else part, *(task.replace("_", " ") for task in tasks),
              f"retrieval (chance {chance:.2%})".replace("%", " %")]]  # fmt: skip
    lines.append(["---"] * len(lines[0]))
    first = next(iter(records.values()))
    for name, words in BASELINES.items():
        found = [_of(first, task, part).get(name) for task in tasks]
        if any(found):
            lines.append([words, *(_score(one) for one in found), ""])
    begun: dict[str, list[str]] = {}
    for record in records.values():
        cells = [_score(_of(record, task, part).get("untrained")) for task in tasks]
        begun[f"untrained, seed {record['twin_seed']}"] = [*cells, _retrieval(record.get("untrained"))]
    lines += [[name, *cells] for name, cells in sorted(begun.items())]
    for name, record in records.items():
        cells = [_score(_of(record, task, part)["encoder"]) for task in tasks]
        lines.append([title(name), *cells, _retrieval(record)])
    return _table(lines)


def differences(records: Records, part: str | None = None, *, each: bool = False) -> str:
    """Return the gains of variants over statistics and untrained networks, pooled over seeds, and of `each` run."""
    tasks, variants = _tasks(records, part), {title(name): [record] for name, record in records.items() if each}
    for name, record in records.items():
        variant = name.rpartition("-")[0] if "variant" in record["about"] else name
        variants.setdefault(variant, []).append(record)
    head = "difference" if part is None else f"difference, {part}"
    lines = [[head, *(task.replace("_", " ") for task in tasks)], ["---"] * (len(tasks) + 1)]
    for variant, found in variants.items():
        seeds = f" ({len(found)} seeds)" if len(found) > 1 else ""
        for other in ("statistics", "untrained"):
            cells = [_difference(*pooled([_of(record, task, part) for record in found], other)) for task in tasks]
            lines.append([f"{TITLES.get(variant, variant)}{seeds} minus {other}", *cells])
    return _table(lines)


def pooled(tasks: Sequence[Mapping[str, Any]], other: str) -> tuple[float, float, float]:
    """Return the mean over seeds of the difference to another feature set, and its 95 % interval over tiles.

    All seeds predict the same tiles, and their intervals come from the same draws. The mean of the intervals' ends
    therefore contains the interval of the mean, and equals it if a draw changes all seeds alike.
    """
    found = [task["encoder"]["minus"][other] for task in tasks]
    low, high = np.mean([one["interval"] for one in found], axis=0)
    return float(np.mean([one["difference"] for one in found])), float(low), float(high)


def looks(records: Records) -> str:
    """Return how often the detector reported a problem in each run, and the last problem."""
    lines = [["run", "looks", "spoke", "said last"], ["---"] * 4]
    for name, record in records.items():
        said = record["about"].get("detector", {})
        if said:
            last = next((words[0] for words in reversed(said.values()) if words), "")
            lines.append([title(name), str(len(said)), str(sum(map(bool, said.values()))), last])
    return _table(lines)


def _tasks(records: Records, part: str | None) -> list[str]:
    first = next(iter(records.values()))["tasks"]
    return [task for task, found in first.items() if part is None or part in found]


def _of(record: Mapping[str, Any], task: str, part: str | None) -> Mapping[str, Any]:
    found: Mapping[str, Any] = record["tasks"][task]
    return found if part is None else found[part]


def _score(found: Mapping[str, Any] | None) -> str:
    return "–" if found is None else f"{found['score']:.2f}"


def _retrieval(found: Mapping[str, Any] | None) -> str:
    return "–" if found is None else f"{100 * found['retrieval']['centred']:.1f} %"


def _difference(value: float, low: float, high: float) -> str:
    return f"{value:+.2f} ({low:+.2f} to {high:+.2f})"


def _table(lines: Sequence[Sequence[str]]) -> str:
    rows = [f"| {' | '.join(line)} |" for line in lines]
    return "\n".join([rows[0], "|" + "---|" * len(lines[0]), *rows[2:]]).replace("|  |", "| |")
