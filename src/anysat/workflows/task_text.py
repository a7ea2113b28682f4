"""What is said of a result, in a few lines."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

FIGURES = {
    "accuracy": "accuracy", "balanced_accuracy": "balanced accuracy", "f1_macro": "macro F1",
    "f1_weighted": "weighted F1", "f1_micro": "micro F1", "miou": "mean IoU", "calibration_error": "calibration error",
    "kappa": "kappa", "rmse": "RMSE", "mae": "MAE", "bias": "bias", "r2": "R²",
}  # fmt: skip
"""Names of scores for readers."""


def summary(found: Mapping[str, Any], run: Path) -> str:
    """The test scores with intervals, what they were chosen on, and the paper's figure where there is one."""
    test = found["scores"]["test"]
    lines = score_lines(test, found["command"], str(found["config"].get("preset")))
    chosen = f"chosen on {found['selected_on']}: {FIGURES.get(found['primary'], found['primary'])} "
    chosen += with_interval(found["scores"]["val"], found["primary"]) if "val" in found["scores"] else "–"
    tiles = test["num_tiles"]
    head = f"{found['head']} head, {found['head_parameters']:,} parameters"
    return "\n".join(
        [f"{found['target']} in {tiles} test tiles ({head}; {chosen})", *lines, *_unseen_lines(found),
         f"scores: {run / 'scores.json'}"]
    )  # fmt: skip


def _unseen_lines(found: Mapping[str, Any]) -> list[str]:
    """Which tiles had no valid value, if any."""
    return [
        f"  {len(names)} tiles of {split} without a valid value, never trained on and scored as not answered: "
        f"{', '.join(names[:3])}{', …' if len(names) > 3 else ''}"
        for split, names in found.get("unseen", {}).items() if names
    ]  # fmt: skip


def score_lines(scores: Mapping[str, Any], command: str, preset: str) -> list[str]:
    """A line for each figure, with intervals, and the paper's for the same preset."""
    lines = [
        f"  {title:18} {with_interval(scores, name)}" for name, title in FIGURES.items() if name in scores["figures"]
    ]
    return lines + paper_line(command, preset)


def paper_line(command: str, preset: str) -> list[str]:
    """The paper's figure for a preset, where there is one."""
    from anysat.workflows.task_presets import PAPER, RECOMMENDED

    paper = PAPER.get((command, preset.removesuffix(RECOMMENDED)))
    return (
        [] if paper is None else [f"  paper: {FIGURES.get(paper.score, paper.score)} {paper.value:.3f} ({paper.where})"]
    )


def with_interval(scores: Mapping[str, Any], name: str) -> str:
    """A figure with the 95 % interval over tiles."""
    value = scores["figures"].get(name)
    if value is None:
        return "–"
    low, high = scores["intervals"].get(name, (None, None))
    return f"{value:.3f}" + (f" ({low:.3f} to {high:.3f})" if low is not None and high is not None else "")
