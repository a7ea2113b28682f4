"""The result of a comparison: scores, differences to the best model on band statistics or others, and costs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

from anysat.data.work import fingerprint
from anysat.tasks.base import Task
from anysat.tasks.scores import Interval, Scores
from anysat.workflows.evaluate import CompareConfig
from anysat.workflows.evaluate.features import FeatureSet
from anysat.workflows.evaluate.given import given_lines
from anysat.workflows.evaluate.turns import Turns
from anysat.workflows.supervised.data import OpenData
from anysat.workflows.supervised.parts import all_versions, described
from anysat.workflows.supervised.text import FIGURES, with_interval


@dataclass(frozen=True, kw_only=True, eq=False)
class Line:
    """One feature set with one model."""

    features: FeatureSet
    model: str
    scores: Scores
    seconds: float
    """CPU time in seconds, to tune and to fit."""
    is_constant: bool = False
    """Whether all test samples of a turn get the same answer."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Comparison:
    """All lines of a comparison, on the same tiles."""

    lines: Sequence[Line]
    task: Task
    turns: Turns
    num_tiles: int
    """Number of tiles with a scored sample."""
    against: str = "statistics"
    """Features or weights to compare with."""

    @cached_property
    def baseline(self) -> Line:
        """The line of `against` that is best on the test tiles, which favours the baseline."""
        sign = 1 if self.task.highest_is_best else -1
        chosen = [
            one for one in self.lines if self.against in (one.features.name, (one.features.encoder or {}).get("name"))
        ]
        return max(chosen, key=lambda one: sign * one.scores.figures[self.task.primary])

    @cached_property
    def differences(self) -> list[Interval]:
        """Intervals of each line's score minus the baseline's, on the same draws."""
        return [one.scores.difference(self.baseline.scores, self.task.primary) for one in self.lines]

    @cached_property
    def sheets(self) -> list[dict[str, Any]]:
        """All scores of each line."""
        return [described(one.scores, self.turns.unit) for one in self.lines]

    @cached_property
    def given(self) -> dict[str, Mapping[str, Any]]:
        """Facts about the tables that features were read from, by name."""
        return {one.features.name: one.features.given for one in self.lines if one.features.given is not None}

    def verdict(self, number: int) -> str:
        """Return `better` or `worse` if the difference to the baseline is clear, that is, without 0 in its interval.

        Else return `not better`, or `baseline` for the baseline itself.
        """
        if self.lines[number] is self.baseline:
            return "baseline"
        low, high = self.differences[number]
        worst, best = (low, high) if self.task.highest_is_best else (-high, -low)
        return "better" if worst > 0 else "worse" if best < 0 else "not better"

    def to_dict(self, config: CompareConfig, data: OpenData) -> dict[str, Any]:
        """Return plain values for JSON."""
        encoders = {one.features.encoder["name"]: one.features.encoder for one in self.lines if one.features.encoder}
        return {
            "target": self.task.target.name, "primary": self.task.primary, "selected_on": self.turns.chosen_on,
            "seed": config.seed, "folds": self.turns.to_dict(), "baseline": self.against,
            "weights": {name: {k: v for k, v in one.items() if k not in _OF_A_LINE} for name, one in encoders.items()},
            "features": self.given, "config": asdict(config),
            "data": {split: {"tiles": len(tiles), "fingerprint": fingerprint(tiles)}
                     for split, tiles in data.splits.items()},
            "versions": all_versions(),
            "lines": [self._line(number) for number in range(len(self.lines))],
        }  # fmt: skip

    def _line(self, number: int) -> dict[str, Any]:
        one = self.lines[number]
        features, encoder = one.features, one.features.encoder or {}
        return {
            "features": features.name, "model": one.model, "num_features": features.num_features,
            "features_cpu_s": round(features.seconds, 2), "tiles_from_cache": features.num_kept,
            "weights": encoder.get("name"), "layer": encoder.get("layer"),
            "encoder_parameters": encoder.get("parameters", 0), "cpu_s": round(one.seconds, 2),
            "is_constant": one.is_constant, "against_baseline": self.verdict(number),
            "difference": [None if math.isnan(edge) else edge for edge in self.differences[number]],
            **self.sheets[number], "num_tiles": self.num_tiles, "num_labelled_tiles": self.num_tiles,
        }  # fmt: skip

    def __str__(self) -> str:
        primary, width = self.task.primary, max(len(one.features.name) for one in self.lines)
        name = FIGURES.get(primary, primary)
        against = "band statistics" if self.against == "statistics" else self.against
        told = [f"{self.task.target.name}: {name} on {self.lines[0].scores.num_samples} test samples, {self.turns}"]
        for number, one in enumerate(self.lines):
            verdict = self.verdict(number)
            mark = "the baseline" if verdict == "baseline" else f"{self._difference(number)} {verdict} than {against}"
            mark += "; constant" if one.is_constant else ""
            told.append(f"  {one.features.name:{width}}  {one.model:10}  {with_interval(self.sheets[number], primary)}"
                        f"  {mark}; {_cost(one)}")  # fmt: skip
        told += given_lines(self.given)
        if dense := {str(e["dense"]) for one in self.lines if (e := one.features.encoder) and e.get("dense")}:
            told.append(f"dense embeddings are of the sub-patches of {', '.join(sorted(dense))}")
        legend = _LEGEND.format(against) + (_CONSTANT if any(one.is_constant for one in self.lines) else "")
        return "\n".join([*told, f"{name}, {'more' if self.task.highest_is_best else 'less'} is better; {legend}"])

    def _difference(self, number: int) -> str:
        primary, (low, high) = self.task.primary, self.differences[number]
        less = self.lines[number].scores.figures[primary] - self.baseline.scores.figures[primary]
        return f"{less:+.3f} ({low:+.3f} to {high:+.3f})"


_OF_A_LINE = ("name", "layer", "parameters")
_LEGEND = (
    "the baseline is the best model on {}, chosen on the test samples, in its favour. Every other score "
    "is followed by its difference to the baseline, with a 95 % interval over the same draws. `Better` and `worse` "
    "mean that the whole interval agrees, `not better` that it contains 0. Seconds are of processor time."
)
_CONSTANT = (
    " `Constant`: all test samples get the same prediction, as they always do from boosting on fewer than 40 training "
    "samples."
)


def _cost(line: Line) -> str:
    features = line.features
    kept = f", {features.num_kept} tiles from the cache" if features.num_kept else ""
    by = f" by {features.encoder['parameters']:,} parameters" if features.encoder else ""
    cost = f"in {features.seconds:.1f} s{by}{kept}" if features.given is None else "from the table"
    return f"{features.num_features} features {cost}; fitted in {line.seconds:.1f} s"
