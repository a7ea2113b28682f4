"""The page of a probe or fine-tuning run: scores with intervals, confusions, classes, curves, best and worst tiles."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from string import Template
from typing import Any

import numpy as np
from numpy.typing import NDArray

from anysat.batch import Batch, Tile
from anysat.data.base import Target
from anysat.picture_samples import IGNORED, class_image, colours_of
from anysat.pictures import quicklook
from anysat.tasks.predictor import Predictor
from anysat.tasks.simple import has_label
from anysat.whole_files import write_output
from anysat.workflows.page import HEAD, STYLE, png_tag, row, rows, table
from anysat.workflows.supervised.data import OpenData
from anysat.workflows.supervised.text import FIGURES, intervals_told, patches_told, tiles_told, with_interval

REPORT = "report.html"
SHOWN = 3
"""Number of best and of worst tiles on the page."""
LOOKED_AT = 200
"""Largest number of test tiles that they are chosen from, spread over the split."""
MOST_CELLS = 40
"""Largest number of classes for which the confusion matrix is shown."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Shown:
    """One tile on the page."""

    tile: Tile
    right: float
    """How well it was predicted, from `Task.right`."""
    answer: NDArray[Any]
    probabilities: NDArray[Any] | None


def write_report(run: Path, found: Mapping[str, Any], data: OpenData, predictor: Predictor | None) -> Path:
    """Write the page into the run folder. A failed write leaves no partial file.

    Args:
        run: The run folder.
        found: Content of `scores.json`.
        data: Data whose test tiles are shown.
        predictor: Predicts them. If None, no tiles are shown.

    Raises:
        WriteError: The page cannot be written.
    """
    chosen = [] if predictor is None else best_and_worst(predictor, data.test)
    page = render(found, data.target, chosen)
    write_output(run / REPORT, page)
    return run / REPORT


def best_and_worst(predictor: Predictor, tiles: Any) -> list[Shown]:
    """Return the worst and then the best of some labelled tiles."""
    places = np.unique(np.linspace(0, len(tiles) - 1, min(LOOKED_AT, len(tiles))).astype(int))
    right: list[tuple[float, int]] = []
    name = predictor.task.target.name
    for place in places.tolist():
        batch = predictor.of_dataset(Batch.of([tiles[place]])).to(predictor.device)
        found = predictor.predict(batch)
        share = float(predictor.task.right(found.outputs, batch.targets[name])[0])
        if not math.isnan(share):
            right.append((share, place))
    right.sort()
    chosen = right if len(right) <= 2 * SHOWN else [*right[:SHOWN], *right[-SHOWN:]]
    return [_shown(predictor, tiles[place], share) for share, place in chosen]


def _shown(predictor: Predictor, tile: Tile, right: float) -> Shown:
    found = predictor.predict(predictor.of_dataset(Batch.of([tile])).to(predictor.device))
    probabilities = None if found.probabilities is None else found.probabilities[0].cpu().numpy()
    return Shown(tile=tile, right=right, answer=found.answer[0].cpu().numpy(), probabilities=probabilities)


def render(found: Mapping[str, Any], target: Target, tiles: Sequence[Shown]) -> str:
    """Return the page as text. It loads nothing from elsewhere."""
    title = f"{target.name}: {tiles_told(found['scores']['test'], 'test tiles')}"
    return _PAGE.substitute(
        style=STYLE,
        title=escape(title),
        lead=_lead(found),
        scores=_scores(found),
        classes=_classes(found, target),
        confusion=_confusion(found),
        curve=_selection(found),
        tiles=_tiles(tiles, target),
        facts=rows(_facts(found)),
    )


def _lead(found: Mapping[str, Any]) -> str:
    name, test = found["primary"], found["scores"]["test"]
    title = FIGURES.get(name, name)
    told = f"<b>{escape(title)} {with_interval(test, name)}</b> on the test split, with a 95 % interval over "
    told += f"{escape(intervals_told(test))}. Settings chosen on {escape(found['selected_on'])}."
    if unanswered := test.get("num_unanswered", 0):
        told += f" Not predicted, because nothing was observed there: {unanswered:,} of {test['num_samples']:,} labels."
    return f'<p class="banner trained">{told}</p><p>{escape(_INTERVALS)}</p>'


_INTERVALS = (
    "Intervals come from 2,000 bootstrap draws of as many tiles or blocks as there are. A draw that lacks a class "
    "leaves it out of means over classes; no interval is shown if all draws agree. With few tiles, or few of a class, "
    "intervals are too narrow."
)


def _scores(found: Mapping[str, Any]) -> str:
    splits = [split for split in ("val", "test") if split in found["scores"]]
    head = "".join(f'<th scope="col">{"validation" if split == "val" else split}</th>' for split in splits)
    lines = [f"<tr><th>score</th>{head}</tr>"]
    for name, title in FIGURES.items():
        if name in found["scores"]["test"]["figures"]:
            cells = "".join(f"<td>{with_interval(found['scores'][split], name)}</td>" for split in splits)
            lines.append(f'<tr><th scope="row">{escape(title)}</th>{cells}</tr>')
    return table(lines)


def _classes(found: Mapping[str, Any], target: Target) -> str:
    per_class, bounds = (found["scores"]["test"][name] for name in ("per_class", "class_intervals"))
    if not per_class:
        return ""
    names = list(per_class)
    titles = {"support": f"support, {target.level}s"}
    head = "".join(f'<th scope="col">{escape(titles.get(name, name))}</th>' for name in names)
    lines = [f"<tr><th>class</th>{head}</tr>"]
    for number, class_name in enumerate(found["classes"]):
        cells = "".join(
            f"<td>{_number(int(value) if name == 'support' else value)}"
            f"{_bounds(bounds[name][number]) if name in bounds else ''}</td>"
            for name in names for value in [per_class[name][number]]
        )  # fmt: skip
        lines.append(f'<tr><th scope="row">{escape(class_name)}</th>{cells}</tr>')
    return f"<h2>Classes</h2>{table(lines)}"


def _bounds(interval: Sequence[float | None]) -> str:
    return (
        ""
        if None in interval or interval[0] == interval[1]
        else " <small>({} to {})</small>".format(*map(_number, interval))
    )


def _number(value: float | int | None) -> str:
    if value is None or math.isnan(value):
        return "–"
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:,.4g}" if abs(value) > 1.5 else f"{value:.3f}"


def _confusion(found: Mapping[str, Any]) -> str:
    """Return the confusion matrix as shares of each true class, in darker colours for larger ones."""
    matrix = found["scores"]["test"].get("confusion")
    if not matrix or len(matrix) > MOST_CELLS:
        return ""
    names = [*found["classes"], "no prediction"]
    counts = np.asarray(matrix)
    columns = [n for n in range(counts.shape[1]) if n < len(names) - 1 or counts[:, n].any()]
    head = "".join(f'<th scope="col">{escape(names[n])}</th>' for n in columns)
    lines = [f"<tr><th>truth / prediction</th>{head}</tr>"]
    for number, line in enumerate(counts):
        shares = line / max(1, line.sum())
        cells = "".join(
            f'<td style="background: color-mix(in srgb, var(--{"accent" if n == number else "warn"}) '
            f'{round(100 * float(shares[n]))}%, transparent)" title="{int(line[n]):,}">{shares[n]:.0%}</td>'
            for n in columns
        )
        lines.append(f'<tr><th scope="row">{escape(names[number])}</th>{cells}</tr>')
    return f"<h2>Confusions</h2><p>Each row shows how places of one class were predicted.</p>{table(lines)}"


def _selection(found: Mapping[str, Any]) -> str:
    """Return the settings that were tried, and the curve of the chosen one."""
    selection, name = found["selection"], found["primary"]
    parts = []
    if selection.get("curve"):
        from anysat.workflows.pretrain.curves import Panel, curve_figure

        curve = list(enumerate(selection["curve"], start=1))
        points = {key: [(n, float(point[key])) for n, point in curve if point[key] is not None] for key in curve[0][1]}
        panels = [
            Panel(name=FIGURES.get(key, key), lines={key: key}, points={key: line}, along="epoch")
            for key, line in points.items()
        ]
        if len(selection.get("tried", ())) > 1:
            parts.append("<p>Curves of the chosen setting. Those of all settings are in sweep.csv.</p>")
        parts.append(png_tag(curve_figure(panels), "Curves of loss and validation score by epoch", "plot"))
    if selection.get("tried"):
        titles = {name: f"{FIGURES.get(name, name)}, validation"}
        head = "".join(f"<th>{escape(titles.get(key, key.replace('_', ' ')))}</th>" for key in selection["tried"][0])
        lines = [f"<tr>{head}</tr>"]
        for one in selection["tried"]:
            cells = (_number(value) if key == name else f"{value:g}" for key, value in one.items())
            lines.append(f"<tr>{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>")
        parts.append(table(lines))
    return f"<h2>How it was chosen</h2>{''.join(parts)}" if parts else ""


def _tiles(tiles: Sequence[Shown], target: Target) -> str:
    if not tiles:
        return ""
    span = _span(tiles, target)
    parts = [f"<h2>Worst and best tiles</h2>{_legend(tiles, target, span)}"]
    for one in tiles:
        pictures = [(key, quicklook(seen)) for key, seen in one.tile.observations.items()]
        truth = np.asarray(one.tile.targets[target.name])
        if target.level == "pixel":
            pictures += [("prediction", _raster(one.answer, target, span)), ("truth", _raster(truth, target, span))]
        words = "" if target.level == "pixel" else f"<p>{escape(_in_words(one, truth, target))}</p>"
        told = f"{one.right:.0%} correct" if target.classes else f"off by {-one.right:.3g} {target.unit}"
        parts.append(f'<section class="pair"><h3>{escape(one.tile.id)}, {escape(told)}</h3>{words}'
                     f"{row(one.tile.id, pictures)}</section>")  # fmt: skip
    return "".join(parts)


def _span(tiles: Sequence[Shown], target: Target) -> tuple[float, float]:
    """Return the smallest and largest value of truth and predictions on the page, so that colours compare.

    They are 0 and 1 if there are no values.
    """
    rasters = [np.asarray(part) for one in tiles for part in (one.answer, one.tile.targets[target.name])]
    known = [raster[has_label(raster, target)] for raster in rasters if not target.classes]
    every = np.concatenate(known) if known else np.zeros(0)
    return (float(every.min()), float(every.max())) if len(every) else (0.0, 1.0)


def _raster(values: NDArray[Any], target: Target, span: tuple[float, float]) -> NDArray[np.uint8]:
    """Colour a raster: classes in their colours, values in greens, and grey without a label or prediction."""
    if target.classes:
        image, _ = class_image(values, target)
    else:
        known, (low, high) = has_label(values, target), span
        share = ((np.where(known, values, low) - low) / max(high - low, 1e-9)).clip(0, 1)
        image = np.where(known[..., None], np.stack([1 - share, 1 - 0.5 * share, 1 - share], axis=-1), IGNORED)
    return np.asarray(image * 255, dtype=np.uint8)


def _legend(tiles: Sequence[Shown], target: Target, span: tuple[float, float]) -> str:
    """Return the legend: the classes that occur on the page, or the ends of the scale."""
    if target.level != "pixel":
        return ""
    if not target.classes:
        ends = zip(("rgb(255, 255, 255)", "rgb(0, 127, 0)"), span, strict=True)
        items = "".join(f'<li><i style="background: {colour}"></i>{_number(end)} {escape(target.unit)}</li>'
                        for colour, end in ends)  # fmt: skip
        return f'<ul class="labels">{items}{_grey(tiles, target)}</ul>'
    seen = {int(n) for one in tiles for part in (one.answer, one.tile.targets[target.name]) for n in np.unique(part)}
    colours = (colours_of(target) * 255).astype(int)
    items = "".join(
        f'<li><i style="background: rgb({", ".join(map(str, colours[n]))})"></i>{escape(target.classes[n])}</li>'
        for n in sorted(seen) if 0 <= n < len(target.classes)
    )  # fmt: skip
    return f'<ul class="labels">{items}{_grey(tiles, target)}</ul>'


def _grey(tiles: Sequence[Shown], target: Target) -> str:
    """Return the legend's entry for grey, if there is any on the page."""
    told = {
        "no label": any(not has_label(np.asarray(one.tile.targets[target.name]), target).all() for one in tiles),
        "no prediction": any(not has_label(one.answer, target.of_answers()).all() for one in tiles),
    }
    words = " or ".join(word for word, is_there in told.items() if is_there)
    return f'<li><i style="background: #d9d9d9"></i>{words}</li>' if words else ""


def _in_words(one: Shown, truth: NDArray[Any], target: Target) -> str:
    sure = ""
    if target.is_multiclass and one.probabilities is not None and int(one.answer) >= 0:
        sure = f" ({float(one.probabilities.max()):.0%})"
    return f"truth: {target.said(truth) or 'none'}; prediction: {target.said(one.answer) or 'none'}{sure}"


def _facts(found: Mapping[str, Any]) -> list[tuple[str, str]]:
    config, seconds = found["config"], found.get("seconds", {})
    facts = [
        ("Weights", f"{config['weights']}: {found.get('began_with', found['weights']).get('weights', '')}"),
        ("Data", f"{config['data']['dataset']}, " + ", ".join(f"{v['tiles']} {k}" for k, v in found["data"].items())),
        ("Head", f"{found['head']}, {found['head_parameters']:,} parameters"),
        ("Patches", patches_told(found)),
        ("Dense modality", found.get("dense") or ""),
        ("Encoder", f"{found['encoder_parameters']:,} parameters"),
        ("Statistics", str(found.get("statistics", ""))),
        ("Seed", str(found.get("seed", ""))),
        ("Seconds", ", ".join(f"{name} {value}" for name, value in seconds.items())),
        ("Versions", ", ".join(f"{name} {value}" for name, value in found["versions"].items())),
    ]
    return [(name, value) for name, value in facts if value]


_PAGE = Template(
    HEAD
    + """.plot { image-rendering: auto; border-radius: .5rem; border: 1px solid var(--line); margin: .6rem 0; }
.row { grid-template-columns: repeat(auto-fit, minmax(9rem, 1fr)); }
.labels i { display: inline-block; width: .8rem; height: .8rem; margin-right: .4rem; border: 1px solid var(--line); }
@media print { body { max-width: none; padding: 0; } * { print-color-adjust: exact; } }
</style>
</head>
<body>
<header>
<h1>$title</h1>
$lead
</header>
<h2>Scores</h2>
$scores
$classes
$confusion
$tiles
$curve
<h2>The run</h2>
<table class="facts">$facts</table>
</body>
</html>
"""
)
