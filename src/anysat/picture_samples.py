"""A figure of a sample: all modalities with their dates, and the targets with a legend.

It is for looking at data before training. Pictures of embeddings are in `pictures`.
"""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from anysat.batch import Tile
from anysat.observation import Observation
from anysat.pictures import dated, extent_m, label, quicklook, rgb_of, shown_bands

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from anysat.data.base import Target

_PANEL_INCHES, _COLUMNS, _MAX_LEGEND = 3.4, 4, 24
_TITLE, _LINE_INCHES = 36, 0.17
"""Number of characters per line of the title for each column of panels, and the height of a line."""
_VALUE_COLOURS, IGNORED = "viridis", (0.85, 0.85, 0.85)


def sample_figure(tile: Tile, targets: Sequence[Target], source: str, told_as: str = "target") -> Figure:
    """Draw every modality and target of a tile, north up, with axes in metres.

    Series show the median over their valid dates, or curves over time if they have one pixel. Classes have the same
    colours in every sample. Places without a label are grey, invalid pixels white.

    Args:
        tile: Tile with targets.
        targets: Records of the targets. Those that the tile does not have are left out.
        source: Title of the dataset, or another origin of the tile.
        told_as: Name for what is shown as target: `target`, or `answer` for a prediction.
    """
    from matplotlib.figure import Figure

    rasters = [target for target in targets if target.level == "pixel" and target.name in tile.targets]
    words = [target for target in targets if target.level == "tile" and target.name in tile.targets]
    columns, places = _places(len(tile.observations), [len(target.classes) > 0 for target in rasters])
    rows = places[-1] // columns + 1
    told = _named(source, tile, _TITLE * columns)
    told += [_in_words(tile.targets[target.name], target) for target in words]
    lines = [line for part in told for line in textwrap.wrap(part, _TITLE * columns, break_on_hyphens=False)]
    height = (_PANEL_INCHES + 0.3) * rows + 0.25 + _LINE_INCHES * len(lines)
    figure = Figure(figsize=(_PANEL_INCHES * columns, height), layout="compressed", dpi=110)
    figure.suptitle("\n".join(lines), fontsize="medium")
    panels = list(figure.subplots(rows, columns, squeeze=False).flat)
    for place, observation in zip(places, tile.observations.values(), strict=False):
        _draw_observation(panels[place], observation)
    for place, target in zip(places[len(tile.observations) :], rasters, strict=True):
        raster = np.asarray(tile.targets[target.name])
        if not target.classes:
            _draw_values(panels[place], raster, target, told_as)
        else:
            _draw_classes(panels[place], panels[place + 1], raster, target, told_as)
    for axes in panels:
        if not axes.has_data():
            axes.set_axis_off()
    return figure


def _places(num_observations: int, has_legend: list[bool]) -> tuple[int, list[int]]:
    """Return the number of columns, and the cell of each panel. A legend takes the cell to the right of its raster."""
    cells = num_observations + sum(1 + legend for legend in has_legend)
    columns = max(2 if any(has_legend) else 1, min(_COLUMNS, cells if cells <= _COLUMNS else -(-cells // 2)))
    places, cell = [], 0
    for legend in [*[False] * num_observations, *has_legend]:
        if legend and cell % columns == columns - 1:
            cell += 1
        places.append(cell)
        cell += 1 + legend
    return columns, places


def class_colours(count: int) -> NDArray[np.float64]:
    """Return distinguishable colours (class 3), always the same for a class number.

    Of two classes, class 0 is light.
    """
    from matplotlib import colormaps

    if count == 2:
        return np.array([[0.93, 0.91, 0.82], [0.75, 0.12, 0.15]])
    names = ("tab10",) if count <= 10 else ("tab20", "tab20b", "tab20c")
    colours = np.concatenate([np.asarray(colormaps[name].colors) for name in names])  # type: ignore[attr-defined]
    return colours[np.arange(count) % len(colours)]


def colours_of(target: Target) -> NDArray[np.float64]:
    """Return the colours (class 3) of a target's classes, from 0 to 1: its own ones, or else the package's."""
    if not target.colours:
        return class_colours(len(target.classes))
    return rgb_of(target.colours) / 255


def class_image(raster: NDArray[np.generic], target: Target) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Return the colours (row col 3) of a raster of classes, from 0 to 1, grey without label; and where it has one."""
    numbers, colours = raster.astype(np.int64), colours_of(target)
    known = (numbers >= 0) & (numbers < len(colours)) & (numbers != (-1 if target.ignore is None else target.ignore))
    return np.where(known[..., None], colours[numbers.clip(0, len(colours) - 1)], IGNORED), known


def with_colours(target: Target) -> Target:
    """Return a target with the colours that it is drawn in, so that they are stored."""
    colours = (255 * colours_of(target)).round().astype(np.uint8)
    return replace(target, colours=tuple("#" + bytes(colour).hex() for colour in colours))


def _draw_observation(axes: Axes, observation: Observation) -> None:
    modality, shape_px = observation.modality, observation.shape_px
    if shape_px == (1, 1) and observation.dates is not None and len(observation.dates) > 1:
        _draw_curves(axes, observation)
        return
    extent = extent_m(shape_px, modality.gsd_m)
    axes.imshow(quicklook(observation), extent=extent, origin="upper", interpolation="nearest")
    bands = "one pixel" if shape_px == (1, 1) else shown_bands(observation)  # a single pixel is stretched to mid-grey
    label(axes, f"{modality.key}: {dated(observation)}\n{bands}, {observation.valid.mean():.0%} valid")


def _draw_curves(axes: Axes, observation: Observation) -> None:
    """Draw each band of one pixel over time, without invalid values and without ratios, whose scale differs."""
    from matplotlib.dates import AutoDateLocator, ConciseDateFormatter

    assert observation.dates is not None, observation
    modality, order = observation.modality, np.argsort(observation.dates, kind="stable")
    days = observation.dates[order]
    measured = [index for index, band in enumerate(modality.bands) if band.ratio_of is None]
    for index, colour in zip(measured, class_colours(max(3, len(measured))), strict=False):
        seen = observation.valid[order, index, 0, 0]
        if seen.any():
            axes.plot(days[seen], observation.values[order, index, 0, 0][seen], ".-", color=colour, linewidth=1,
                      markersize=4, label=modality.bands[index].name)  # fmt: skip
    locator = AutoDateLocator(minticks=3, maxticks=6)  # type: ignore[no-untyped-call]
    axes.xaxis.set_major_locator(locator)
    axes.xaxis.set_major_formatter(ConciseDateFormatter(locator))  # type: ignore[no-untyped-call]
    axes.tick_params(labelsize="small")
    axes.set_ylabel(", ".join(dict.fromkeys(observation.units[index] for index in measured)), fontsize="small")
    if axes.lines:
        axes.legend(fontsize="x-small", ncols=2, loc="best")
    span = f"{len(days)} dates, {days[0]} to {days[-1]}"
    axes.set_title(f"{modality.key}: {span}\none pixel, {observation.valid.mean():.0%} valid", fontsize="small")


def _draw_values(axes: Axes, raster: NDArray[np.generic], target: Target, told_as: str) -> None:
    image = axes.imshow(raster.astype(np.float64), extent=extent_m(raster.shape, target.gsd_m or 1.0), origin="upper",
                        interpolation="nearest", cmap=_VALUE_COLOURS)  # fmt: skip
    axes.get_figure(root=True).colorbar(image, ax=axes, shrink=0.8, label=target.unit)  # type: ignore[union-attr]
    label(axes, f"{target.name}: {told_as}\nvalues in {target.unit or 'no unit'}, {target.gsd_m:g} m")


def _draw_classes(axes: Axes, beside: Axes, raster: NDArray[np.generic], target: Target, told_as: str) -> None:
    """Draw the classes of a raster, and in the cell beside it a legend of those that occur, with their shares."""
    from matplotlib.patches import Patch

    (image, known), numbers, colours = class_image(raster, target), raster.astype(np.int64), colours_of(target)
    axes.imshow(image, extent=extent_m(raster.shape, target.gsd_m or 1.0), origin="upper", interpolation="nearest")
    label(axes, f"{target.name}: {told_as}\n{len(target.classes)} classes, {target.gsd_m:g} m")
    found, counts = np.unique(numbers[known], return_counts=True)
    entries = [(tuple(colours[found[i]]), f"{target.classes[found[i]]} ({_percent(counts[i] / numbers.size)})")
               for i in np.argsort(-counts)][:_MAX_LEGEND]  # fmt: skip
    if not known.all():
        entries.append((IGNORED, f"no label ({_percent(float((~known).mean()))})"))
    patches = [
        Patch(facecolor=colour, edgecolor="0.4", linewidth=0.5, label=textwrap.shorten(name, 38, placeholder="…"))
        for colour, name in entries
    ]
    beside.legend(handles=patches, loc="upper left", fontsize="small", frameon=False, borderaxespad=0)


def _in_words(value: NDArray[np.generic], target: Target) -> str:
    return f"{target.name}: {target.said(value) or ('none' if target.is_multilabel else 'no label')}"


def _named(source: str, tile: Tile, length: int) -> list[str]:
    """Return the name and the place of a tile, on one line if they fit."""
    name, where = f"{source}, {tile.id}", _where(tile)
    whole = f"{name} ({where})" if where else name
    return [whole] if len(whole) <= length or not where else [name, where]


def _where(tile: Tile) -> str:
    if tile.geobox is None or tile.geobox.crs is None:
        return ""
    from anysat.geo.degrees import centre_deg

    lon, lat = centre_deg(tile.geobox)
    return f"{abs(lat):.4f}° {'N' if lat >= 0 else 'S'}, {abs(lon):.4f}° {'E' if lon >= 0 else 'W'}"


def _percent(share: float) -> str:
    return f"{share:.0%}" if share >= 0.01 else "<1%"
