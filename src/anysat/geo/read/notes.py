"""What a user should know about an opened source, because it may be a mistake."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from anysat.errors import some
from anysat.geo.degrees import WGS84, has_place, is_on_earth
from anysat.geo.grid import bounds_of, crs_of
from anysat.geo.read.layers import Layer
from anysat.geo.read.matching import Chosen, twins
from anysat.geo.read.quality import QUALITY_KINDS, Found, find_quality
from anysat.modalities import Modality

_APART_DEG = 0.001
"""Files closer than this, about 100 m, lie in one place."""


def told_apart(layers: Sequence[Layer]) -> str:
    """Return a note if the files of a folder lie in several places that share no ground; else an empty text."""
    import shapely

    given = dict.fromkeys(layer.geobox for layer in layers if layer.geobox is not None and "::" not in layer.path)
    boxes = [box for box in given if box.crs is not None and is_on_earth(crs_of(box)) and has_place(box)]
    if len(boxes) < 2:
        return ""
    bounds = [bounds_of([box], WGS84) for box in boxes]
    near = [shapely.box(b.left, b.bottom, b.right, b.top).buffer(_APART_DEG / 2, join_style="mitre") for b in bounds]
    num = len(shapely.get_parts(shapely.union_all(near)))
    if num < 2:
        return ""
    return (
        f"its files lie in {num} places that share no ground; to embed each by itself, describe them as a dataset and "
        "use `anysat datasets embed` (see docs/howto/own-data.md)"
    )


def notes_on(
    layers: Sequence[Layer], chosen: Sequence[Chosen], unused: Sequence[str], found: Sequence[Found],
    date: np.datetime64 | None, modality: Modality,
) -> Iterator[str]:  # fmt: skip
    """Yield what may be a mistake in an opened source, or in its description."""
    stated = [day for layer in layers if layer.dates is not None for day in layer.dates]
    if date is not None and stated and date not in stated:
        yield f"dated as given, though the file says {stated[0]}"
    undated = {layer.path for layer in layers if layer.dates is None}
    if hidden := twins([c for c in chosen if c.layer.path in undated]):
        names = some([Path(path).name for path in hidden])
        yield f"files without a date that show the same ground are merged into one image, the first on top: {names}"
    yield from dict.fromkeys(note for c in chosen for note in c.layer.notes)
    if any(not any(c.layer.bands[stored] for stored in c.bands) for c in chosen):
        yield "bands not named in the file, taken in the model's order"
    have = {target for c in chosen for target in c.targets}
    if lacks := [band.name for i, band in enumerate(modality.bands) if i not in have and band.ratio_of is None]:
        yield f"lacks {some(lacks)}"
    known = {} if found else {key: find_quality(layers, kind.layers, modality) for key, kind in QUALITY_KINDS.items()}
    masks = {label for some_found in (found, *known.values()) for mask in some_found for label in _labels(mask)}
    if left := [label for label in unused if label not in masks]:
        yield f"not used: {some(left)}"
    for kind, layer in known.items():
        if layer:
            yield f"nothing is masked, though it has a layer for `quality: {kind}`"


def label_of(mask: Found) -> str:
    """Return the file of a quality layer, with its variable, and the name of its band if there are several."""
    name, bands = Path(mask.layer.path).name, mask.layer.bands
    return name if len(bands) == 1 else f"{name}, band {next(iter(bands[mask.band]), mask.band + 1)}"


def _labels(mask: Found) -> tuple[str, ...]:
    """Return the names by which a quality layer would be reported as not used."""
    return (Path(mask.layer.path).name, *mask.layer.bands[mask.band][:1])
