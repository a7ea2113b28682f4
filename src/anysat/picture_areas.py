"""A picture of the store of an area as a whole."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from anysat.geo.stores.stored import StoredGroup, open_stored
from anysat.pictures import fit_pca, pca_rgb, rgb_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LONGEST_PX = 600
"""Number of pixels along the longer side of a panel."""
BASIS_PX = 96
"""Number of pixels along the longer side from which the colours of vectors are chosen."""
MOST_PANELS = 6
_INCHES, _MOST_CLASSES = 4.2, 12
_Planned = tuple[str, StoredGroup, range]
"""A group by name, and the periods that are shown."""


def area_figure(store: Path, title: str, advance: Callable[[], object] = lambda: None) -> Figure:
    """Draw a panel for each group and period of a store, at most `MOST_PANELS`: colours of vectors, classes or values.

    The title says what is left out. Colours of vectors are three principal components of all shown periods together, so
    they can be compared between periods. Every shard shown is read, twice for vectors, and `advance` is called after
    each.
    """
    from matplotlib.figure import Figure

    planned = _planned(store)
    shown, left_out = _shown(planned), _left_out(planned)
    images = {name: _images(group, periods, advance) for name, group, periods in shown}
    count = sum(len(periods) for _, _, periods in shown)
    cols = min(count, 3)
    rows = -(-count // cols)
    figure = Figure(figsize=(_INCHES * cols, _INCHES * rows + 0.5), layout="constrained", dpi=120)
    figure.suptitle("\n".join([title, *left_out]))
    places = iter(figure.subplots(rows, cols, squeeze=False).ravel())
    for name, group, periods in shown:
        for period, image in zip(periods, images[name], strict=True):
            axes = next(places)
            days = f"\n{group.periods[period][0]} to {group.periods[period][1]}" if group.periods else ""
            bounds = group.geobox.boundingbox
            axes.set_title(f"{name}{days}", fontsize="medium")
            extent = (0, (bounds.right - bounds.left) / 1000, 0, (bounds.top - bounds.bottom) / 1000)
            drawn = axes.imshow(image, extent=extent, origin="upper", interpolation="nearest")
            axes.set_xlabel("east (km)")
            axes.set_ylabel("north (km)")
            if image.ndim == 2:
                figure.colorbar(drawn, ax=axes, shrink=0.7, label=str(group.variable_attributes.get("units", "")))
            elif "class_names" in group.variable_attributes:
                _legend(axes, group)
    for axes in places:
        axes.set_axis_off()
    return figure


def num_shards(store: Path) -> int:
    """Return the number of shards that `area_figure` shows."""
    return sum(len(periods) * group.shards[0] * group.shards[1] for _, group, periods in _shown(_planned(store)))


def overview(
    group: StoredGroup, period: int, advance: Callable[[], object] = lambda: None, *, longest_px: int = LONGEST_PX,
    change: Callable[[NDArray[Any]], NDArray[Any]] = lambda values: values,
) -> NDArray[Any]:  # fmt: skip
    """Return pixels of a group at regular steps, (row col dim) or (row col), NaN where nothing was observed.

    `change` is applied to the values of each shard.
    """
    step = max(1, -(-max(group.geobox.shape) // longest_px))
    strips: dict[int, list[NDArray[Any]]] = {}
    for unit in group.units(period):
        rows, cols = (slice(-part.start % step, None, step) for part in group.slices(unit))
        values, valid = group.values(unit)[rows, cols], group.valid(unit)[rows, cols]
        values = values.astype(np.float32)
        values[~valid] = np.nan
        strips.setdefault(unit.row, []).append(change(values))
        advance()
    return np.concatenate([np.concatenate(parts, axis=1) for _, parts in sorted(strips.items())])


def _planned(store: Path) -> list[_Planned]:
    """Return the groups, each with as many periods as there are panels for."""
    planned, left = [], MOST_PANELS
    for name, group in open_stored(store).items():
        if group.name != "dense" and not (group.bands and name == "probability"):
            count = min(left, max(1, len(group.periods)))
            planned.append((name, group, range(count)))
            left -= count
    return planned or [(name, group, range(1)) for name, group in list(open_stored(store).items())[:1]]


def _shown(planned: Sequence[_Planned]) -> list[_Planned]:
    return [one for one in planned if one[2]]


def _left_out(planned: Sequence[_Planned]) -> list[str]:
    """Return a line about what there was no panel for. Empty if everything is shown."""
    told = []
    for name, group, periods in planned:
        of = f" of {name}" if len(planned) > 1 else ""
        if 0 < len(periods) < len(group.periods):
            told.append(f"first {len(periods)} of {len(group.periods)} periods{of}")
        elif not periods:
            told.append(f"no {name}")
    return [", ".join(told)] if told else []


def _images(group: StoredGroup, periods: range, advance: Callable[[], object]) -> list[NDArray[Any]]:
    """Return images (row col 3), or values (row col) for a colour bar.

    Vectors are reduced to colours shard by shard.
    """
    attributes = group.variable_attributes
    if group.dim is None:
        images = [overview(group, period, advance) for period in periods]
        if "class_colours" not in attributes:
            return images
        palette = rgb_of(attributes["class_colours"])
        return [np.where(np.isfinite(one)[..., None], palette[np.nan_to_num(one).astype(int)], 255) for one in images]
    basis = fit_pca([overview(group, period, longest_px=BASIS_PX) for period in periods])
    return [overview(group, period, advance, change=lambda values: pca_rgb(values, basis)) for period in periods]


def _legend(axes: Any, group: StoredGroup) -> None:
    from matplotlib.patches import Patch

    names, colours = (group.variable_attributes[key] for key in ("class_names", "class_colours"))
    keys = [Patch(color=colour, label=name) for name, colour in zip(names, colours, strict=True)]
    if len(keys) <= _MOST_CLASSES:
        axes.legend(handles=keys, fontsize="x-small", loc="upper left", bbox_to_anchor=(1.0, 1.0))
