"""The report of a pretraining run: one HTML file that shows whether the run is learning and healthy.

It is made from the run's metrics and from what its caller measured, at any point of the run. It computes no embeddings.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from string import Template

import numpy as np
from numpy.typing import NDArray

from anysat.batch import Tile
from anysat.errors import MissingFileError
from anysat.pictures import fit_pca, pca_rgb, quicklook
from anysat.probing.health import ABOUT, MOSTLY_POSITION, HealthLimits, problems
from anysat.train.metrics import METRICS, read_metrics
from anysat.whole_files import write_output
from anysat.workflows.page import HEAD, STYLE, png_tag, row, rows, table
from anysat.workflows.pretrain.curves import HEALTH, Curves, curve_figure, panels_of

REPORT = "report.html"
_MOST_PX = 320
"""Largest side of a picture of imagery, in pixels. Finer ones are thinned out, to keep the page small."""


@dataclass(frozen=True, kw_only=True, eq=False)
class TileView:
    """A held-out tile: its imagery, and the embeddings of its patches."""

    name: str
    imagery: Sequence[tuple[str, NDArray[np.uint8]]]
    """Caption and picture (row col 3)."""
    patch: NDArray[np.floating]
    """(patch_row patch_col dim), NaN where nothing observed the patch."""

    @classmethod
    def of(cls, tile: Tile, patch: NDArray[np.floating]) -> TileView:
        """Create the view of a tile, with a quicklook of each modality that has a valid value."""
        seen = {key: seen for key, seen in tile.observations.items() if seen.valid.any()}
        return cls(name=tile.id, imagery=[(key, _thin(quicklook(each))) for key, each in seen.items()], patch=patch)


def _thin(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    step = -(-max(image.shape[:2]) // _MOST_PX)
    return image[::step, ::step]


@dataclass(frozen=True, kw_only=True)
class ProbeFigure:
    """A score of frozen embeddings, and scores to compare it with; None where not measured."""

    name: str
    ours: float
    untrained: float | None = None
    """Score of the same network before training."""
    simple: float | None = None
    """Score of means and deviations of the bands, without a network."""
    chance: float | None = None


@dataclass(frozen=True, kw_only=True, eq=False)
class ReportInput:
    """What the page shows besides the run's metrics."""

    title: str
    step: int
    """Number of steps done."""
    num_steps: int
    """Number of steps of the whole run. If fewer are done, it is not finished."""
    ended: str = ""
    """The error that ended the run; empty if there was none."""
    facts: Sequence[tuple[str, str]] = ()
    """Names and values: data, seed, parameters, versions, git state, time."""
    config: str = ""
    """Options of the run, as stored in its folder."""
    tiles: Sequence[TileView] = ()
    probes: Sequence[ProbeFigure] = ()
    limits: HealthLimits = field(default_factory=HealthLimits)


def write_report(run: Path, given: ReportInput) -> Path:
    """Write `report.html` into a run folder, and return its path. A failed write leaves no partial file.

    The curves are those logged so far; there may be none yet. Alarms cover the last health figures measured, and every
    metric whose last value is not finite.

    Raises:
        MissingFileError: There is no such folder.
        InputError: The embeddings of tiles have different dimensions.
        WriteError: The page could not be written.
    """
    if not run.is_dir():
        raise MissingFileError(run, "the folder of a run")
    path = run / REPORT
    curves = read_metrics(run / METRICS) if (run / METRICS).exists() else {}
    page = render(given, curves)
    write_output(path, page)
    return path


def render(given: ReportInput, curves: Curves) -> str:
    """Return the page as text. It loads nothing from elsewhere.

    Raises:
        InputError: The embeddings of tiles have different dimensions.
    """
    return _PAGE.substitute(
        style=STYLE,
        title=escape(given.title),
        state=_state(given),
        alarm=_alarm(curves, given.limits),
        facts=rows(given.facts),
        config=f"<details><summary>Config</summary><pre>{escape(given.config)}</pre></details>" if given.config else "",
        curves=_curves(curves, given.limits),
        tiles=_tiles(given.tiles),
        probes=_probes(given.probes),
    )


def _state(given: ReportInput) -> str:
    done = f"{given.step:,} of {given.num_steps:,} steps"
    state = f"<p>{done}.</p>" if given.step >= given.num_steps else f"<p><b>Not finished:</b> {done} so far.</p>"
    if given.ended:
        state += (
            f'<p class="banner untrained" role="alert"><strong>Ended with an error:</strong> {escape(given.ended)}</p>'
        )
    return state


def _alarm(curves: Curves, limits: HealthLimits) -> str:
    """Return a prominent box with all problems, or a quiet line."""
    last = {name: points[-1] for name, points in curves.items()}
    figures = {name.removeprefix("health/"): value for name, (_, value) in last.items() if name.startswith("health/")}
    step = max((step for name, (step, _) in last.items() if name.startswith("health/")), default=0)
    told = [
        f"{name} is {value} at step {at:,}: no longer a number. Go back to an earlier checkpoint with a lower "
        "learning rate or clipped gradients."
        for name, (at, value) in last.items()
        if not math.isfinite(value) and not name.startswith("health/")
    ]
    told += [f"At step {step:,}, {problem}" for problem in problems(figures, limits)]
    if told:
        items = "".join(f"<li>{escape(problem)}</li>" for problem in told)
        count = f"{len(told)} problem{'s' if len(told) > 1 else ''}"
        return f'<div class="banner untrained" role="alert"><strong>{count}</strong><ul>{items}</ul></div>'
    if not figures:
        return '<p class="banner trained">Health has not been measured yet.</p>'
    within = figures.get("position_within_share", 0.0)
    but = ""
    if within >= MOSTLY_POSITION:
        but = (f" But most of the difference between patches of a tile, {100 * within:.0f} %, is position, the same "
               "in every tile (position_within_share).")  # fmt: skip
    return f'<p class="banner trained">Healthy at step {step:,}: no metric is beyond its limit.{but}</p>'


def _curves(curves: Curves, limits: HealthLimits) -> str:
    parts = []
    for heading, panels in panels_of(curves, limits).items():
        figure = png_tag(curve_figure(panels), f"Curves: {heading}", "plot")
        latest = "".join(_latest(name, curves) for panel in panels for name in panel.lines.values())
        table = f'<table class="figures"><tr><th>metric</th><th>last</th><th>at step</th></tr>{latest}</table>'
        about = _about(curves) if heading == HEALTH else ""
        last = f"<details><summary>Last values</summary>{table}</details>"
        parts.append(f"<h3>{escape(heading)}</h3>{figure}{about}{last}")
    return "".join(parts) or '<p class="soft">Nothing has been logged yet.</p>'


def _about(curves: Curves) -> str:
    """Explain the health figures that were measured."""
    told = {name: about for name, about in ABOUT.items() if f"health/{name}" in curves}
    lines = "".join(f"<dt>{escape(name)}</dt><dd>{escape(about)}</dd>" for name, about in told.items())
    return f'<dl class="about">{lines}</dl>'


def _latest(name: str, curves: Curves) -> str:
    step, value = curves[name][-1]
    return f'<tr><th scope="row">{escape(name)}</th><td>{value:.4g}</td><td>{step:,}</td></tr>'


def _tiles(tiles: Sequence[TileView]) -> str:
    """Return imagery beside the colours of the patches, with one PCA basis for all tiles."""
    if not tiles:
        return ""
    whole, apart = _coloured([tile.patch for tile in tiles]), _coloured([_apart(tile.patch) for tile in tiles])
    parts = []
    for tile, as_they_are, set_apart in zip(tiles, whole, apart, strict=True):
        size = f"{tile.patch.shape[0]} x {tile.patch.shape[1]} patches"
        pictures = [*tile.imagery, (f"{size}, original", as_they_are), (f"{size}, centred", set_apart)]
        parts.append(f'<section class="pair"><h3>{escape(tile.name)}</h3>{row(tile.name, pictures)}</section>')
    return _TILES + "".join(parts)


def _coloured(patches: Sequence[NDArray[np.floating]]) -> list[NDArray[np.uint8]]:
    basis = fit_pca(patches)
    return [pca_rgb(patch, basis) for patch in patches]


def _apart(patch: NDArray[np.floating]) -> NDArray[np.floating]:
    """Subtract the mean of the tile from vectors."""
    seen = np.isfinite(patch).all(-1)
    return patch - patch[seen].mean(0) if seen.any() else patch


def _probes(probes: Sequence[ProbeFigure]) -> str:
    if not probes:
        return ""
    columns = {"this run": "ours", "untrained": "untrained", "band statistics": "simple", "chance": "chance"}
    shown = {head: name for head, name in columns.items() if any(getattr(each, name) is not None for each in probes)}
    lines = ["<tr><th>probe</th>" + "".join(f'<th scope="col">{head}</th>' for head in shown) + "</tr>"]
    for each in probes:
        values = [getattr(each, name) for name in shown.values()]
        cells = "".join(_score(value, values) for value in values)
        lines.append(f'<tr><th scope="row">{escape(each.name)}</th>{cells}</tr>')
    return f"<h2>Probes</h2><p>{_PROBES}</p>{table(lines)}"


def _score(value: float | None, others: Sequence[float | None]) -> str:
    if value is None:
        return "<td>–</td>"
    best = value == max(other for other in others if other is not None)
    return f"<td>{'<b>' if best else ''}{value:.3f}{'</b>' if best else ''}</td>"


_TILES = (
    "<h2>Held-out tiles</h2><p>Three principal components of the patch embeddings as red, green and blue, with one "
    "basis for all tiles: the same colour means similar vectors, in any tile. The centred map is without the mean of "
    "the tile and shows how its patches differ: stripes or a gradient that are the same in every tile are position, "
    "not content. Patches without data are white.</p>"
)
_PROBES = (
    "Frozen embeddings of held-out tiles; higher is better, the best of a row is bold. For classes: the share of each "
    "class that is found, averaged over classes. Every tile is predicted from other tiles only, by its nearest "
    "neighbours or by a linear probe, fitted in turn to three quarters of the tiles. The tiles are few: small "
    "differences mean nothing."
)

_PAGE = Template(
    HEAD
    + """h3 { margin-top: 1.2rem; }
.plot { image-rendering: auto; border-radius: .5rem; border: 1px solid var(--line); }
.row { grid-template-columns: repeat(auto-fit, minmax(9rem, 1fr)); }
.untrained li { margin: .3rem 0; } summary { cursor: pointer; color: var(--soft); padding: .3rem 0; }
pre { background: var(--card); border: 1px solid var(--line); border-radius: .25rem; padding: .6rem; overflow-x: auto;
  font-size: .85rem; }
.about { font-size: .85rem; color: var(--soft); display: grid; grid-template-columns: max-content 1fr; gap: 0 1rem; }
.about dd { margin: 0; }
</style>
</head>
<body>
<header>
<h1>$title</h1>
$state
$alarm
</header>

<h2>The run</h2>
<table class="facts">$facts</table>
$config

<h2>Curves</h2>
<p class="soft">Dashed red lines are health limits; dotted lines show the level of chance. Where there are many
values, the pale line shows what was logged and the strong line its moving average.</p>
$curves
$tiles
$probes
</body>
</html>
"""
)
