"""Curves of a run's metrics: their division into panels, and a figure of panels."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from anysat.probing.health import HealthLimits

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Curves = Mapping[str, Sequence[tuple[int, float]]]
"""Steps and values of each metric, by name."""

_COLUMNS, _PANEL_INCHES, _DPI = 3, (3.9, 2.5), 110
_MANY, _FEW = 150, 40
"""Numbers of values: with more than the first a moving average is drawn, with up to the second each value is a dot."""
HEALTH = "Health"
_HEADINGS = {"train": "Training", "val": "Training", "health": HEALTH, "neighbours": "Nearest neighbours"}
_LINE_COLOURS = ("#1f7a5c", "#b5651d", "#3b5b92", "#7a3b7a")
_LIMIT_COLOUR, _CHANCE_COLOUR = "#b3261e", "#555555"


@dataclass(frozen=True, kw_only=True)
class Panel:
    """Metrics on the same axes."""

    name: str
    lines: dict[str, str] = field(default_factory=dict)
    """Names of metrics by label. The label `chance` is drawn dotted."""
    limits: tuple[float, ...] = ()
    points: dict[str, Sequence[tuple[int, float]]] = field(default_factory=dict)
    """Steps and values by label."""
    along: str = "step"
    """What the horizontal axis counts."""


def panels_of(curves: Curves, limits: HealthLimits) -> dict[str, list[Panel]]:
    """Return panels by heading, the loss first.

    Training and validation share a panel, as `loss` of `train/loss` and `val/loss`. Levels of chance (`chance`,
    `X_chance`) are in the panels they belong to, and health figures have their limits. Metrics of a single dataset are
    left out if there is no other, because they repeat those of the training.
    """
    groups: dict[str, dict[str, Panel]] = {}
    of_datasets = {name.rpartition("/")[0] for name in curves if name.startswith("train/") and name.count("/") > 1}
    again = next(iter(of_datasets)) + "/" if len(of_datasets) == 1 else None
    shown = (name for name in curves if not _is_chance(name) and not (again and name.startswith(again)))
    names = sorted(shown, key=lambda name: not name.endswith("/loss"))
    for name in names:
        prefix, _, short = name.rpartition("/")
        heading = _HEADINGS.get(prefix, prefix or "Other")
        panel = groups.setdefault(heading, {}).setdefault(short, Panel(name=short, limits=_limits(name, limits)))
        _add(panel, prefix if heading == "Training" else short, name, curves)
        for chance in (f"{prefix}/{short}_chance", f"{prefix}/chance"):
            if chance in curves:
                _add(panel, "chance", chance, curves)
    order = {heading: place for place, heading in enumerate(dict.fromkeys(_HEADINGS.values()))}
    return {key: list(groups[key].values()) for key in sorted(groups, key=lambda key: (order.get(key, 99), key))}


def _is_chance(name: str) -> bool:
    return name.rpartition("/")[2] == "chance" or name.endswith("_chance")


def _add(panel: Panel, label: str, name: str, curves: Curves) -> None:
    panel.lines[label], panel.points[label] = name, curves[name]


def _limits(name: str, limits: HealthLimits) -> tuple[float, ...]:
    prefix, _, short = name.rpartition("/")
    return tuple(limit for limit in limits.of(short) if limit is not None) if prefix == "health" else ()


def curve_figure(panels: Sequence[Panel]) -> bytes:
    """Draw panels as a PNG, at most three in a row."""
    from matplotlib.figure import Figure

    columns = min(_COLUMNS, len(panels))
    num_rows = -(-len(panels) // columns)
    width, height = _PANEL_INCHES
    figure = Figure(figsize=(width * _COLUMNS, height * num_rows), layout="constrained", dpi=_DPI)
    places = figure.subplots(num_rows, columns, squeeze=False).flatten()
    for axes, panel in zip(places, panels, strict=False):
        _draw(axes, panel)
    for axes in places[len(panels) :]:
        axes.set_axis_off()
    png = io.BytesIO()
    figure.savefig(png, format="png")
    return png.getvalue()


def _draw(axes: Axes, panel: Panel) -> None:
    from matplotlib.ticker import MaxNLocator

    for (label, points), colour in zip(panel.points.items(), _LINE_COLOURS * len(panel.points), strict=False):
        steps, values = np.array(points, dtype=np.float64).reshape(-1, 2).T
        values = np.where(np.isfinite(values), values, np.nan)
        if label == "chance":
            axes.plot(steps, values, ":", color=_CHANCE_COLOUR, label=label, marker="." if len(steps) == 1 else "")
            continue
        many, few = len(steps) > _MANY, len(steps) <= _FEW
        axes.plot(steps, values, color=colour, alpha=0.3 if many else 1, linewidth=1, marker="." if few else "",
                  label=None if many else label)  # fmt: skip
        if many:
            axes.plot(*_smooth(steps, values), color=colour, linewidth=1.6, label=label)
    for limit in panel.limits:
        axes.axhline(limit, linestyle="--", color=_LIMIT_COLOUR, linewidth=1, label=f"limit {limit:g}")
    axes.set_title(panel.name.replace("_", " "), fontsize="medium")
    axes.set_xlabel(panel.along, fontsize="small")
    axes.tick_params(labelsize="small")
    if len(every := {step for points in panel.points.values() for step, _ in points}) == 1:
        axes.set_xlim(min(every) - 1, max(every) + 1)
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes.grid(alpha=0.25)
    if len(axes.get_legend_handles_labels()[1]) > 1:
        axes.legend(fontsize="x-small", framealpha=0.7)


def _smooth(steps: NDArray[np.float64], values: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return a moving average over a fiftieth of the values, centred. Gaps stay gaps."""
    width = max(3, len(values) // 50)
    window = np.ones(width) / width
    return np.convolve(steps, window, "valid"), np.convolve(values, window, "valid")
