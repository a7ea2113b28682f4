"""Match the bands, dates and units of opened layers with a modality. No pixels are read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from anysat.dates import Dates
from anysat.errors import SourceError, UnknownNameError, some
from anysat.geo.read.descriptions import SKIPPED
from anysat.geo.read.layers import Layer, band_index, known_unit
from anysat.geo.read.quality import Screen
from anysat.modalities import Modality

Units = Mapping[tuple[str, str | None], str]
"""Unit by modality key and band, None for all bands."""
_MUCH_SMALLER = 0.1
"""A scale below this turns integers into physical values; a larger one, such as 10000, gives the model's numbers."""
_UNIT_ONCE_SCALED = {"reflectance_1e4": "reflectance"}


class Chosen(NamedTuple):
    """The part of a layer that is used."""

    layer: Layer
    times: tuple[int, ...]
    """Indices of its times that are read."""
    steps: tuple[int, ...]
    """Indices of these times among the dates of the source."""
    bands: tuple[int, ...]
    """Indices of its bands that are read."""
    targets: tuple[int, ...]
    """Indices of these bands in the modality."""
    screens: tuple[Screen, ...] = ()
    """Its masks. For each pixel, the first that covers it counts."""

    def taking(self, places: Sequence[int]) -> Chosen:
        """Return the same with only some of its times, by their index in `times`."""
        return self._replace(times=tuple(self.times[i] for i in places), steps=tuple(self.steps[i] for i in places))


def name_bands(layers: Sequence[Layer], bands: Sequence[str] | Mapping[str, str], modality: Modality) -> list[Layer]:
    """Rename the bands of layers as the user says: all in the order of the file, or some by the modality's band.

    Raises:
        SourceError: A file does not have as many bands as are named.
        UnknownNameError: There is no such band.
    """
    if not bands:
        return list(layers)
    if not isinstance(bands, Mapping):
        return [_named_in_order(layer, bands) for layer in layers]
    wanted = {name: modality.band_names[modality.find_band(band)] for band, name in bands.items()}
    renamed = [
        replace(layer, bands=tuple(tuple(wanted[name] for name in names if name in wanted) for names in layer.spelled))
        for layer in layers
    ]
    there = {name for layer in layers for names in layer.spelled for name in names if name}
    for name in wanted:
        if name not in there:
            raise UnknownNameError(f"band of {layers[0].path}", name, there, f"It was given for {wanted[name]}")
    return [layer for layer in renamed if any(layer.bands)]


def _named_in_order(layer: Layer, bands: Sequence[str]) -> Layer:
    if len(bands) != len(layer.bands):
        raise SourceError(
            layer.path, f"it has {len(layer.bands)} bands, but {len(bands)} are named: {', '.join(bands)}"
        )
    return replace(layer, bands=tuple((name,) for name in bands))


def match_bands(name: str, layers: Sequence[Layer], modality: Modality) -> tuple[list[Chosen], list[str]]:
    """Return the layers with the bands that the modality has, and the names of what is not used."""
    found, unused = [], []
    for layer in layers:
        pairs = _pairs(layer, modality)
        targets = [target for _, target in pairs]
        if len(set(targets)) < len(targets):
            twice = next(modality.band_names[t] for t in targets if targets.count(t) > 1)
            raise SourceError(
                layer.path, f"several of its bands are {twice} of {modality.key!r}", "name each band once"
            )
        if pairs:
            found.append(Chosen(layer, tuple(range(layer.num_times)), (), *map(tuple, zip(*pairs, strict=True))))
            taken = {stored for stored, _ in pairs}
            left = [names[0] for i, names in enumerate(layer.bands) if i not in taken and names]
            unused += [name for name in left if name != SKIPPED]
        else:
            unused.append(Path(layer.path).name.rpartition("::")[2])
    if not found:
        names = [names[0] for layer in layers for names in layer.bands if names]
        num_bands = sum(len(layer.bands) for layer in layers)
        what = f"({some(names)}) is" if names else "has a name, so none is"
        raise SourceError(
            name, f"none of its {num_bands} bands {what} known to be of {modality.key!r}",
            "name them in the file, or give `bands` in a description of the source; the modality has "
            + ", ".join(modality.band_names),
        )  # fmt: skip
    return found, list(dict.fromkeys(unused))


def _pairs(layer: Layer, modality: Modality) -> list[tuple[int, int]]:
    """Return pairs of stored band and modality band, matched by name, else by order if the numbers agree."""
    named = [
        (stored, target)
        for stored, names in enumerate(layer.bands)
        if (target := next((t for name in names if (t := band_index(name, modality)) is not None), None)) is not None
    ]
    measured = [index for index, band in enumerate(modality.bands) if band.ratio_of is None]
    if named or (any(layer.bands) and len(layer.bands) > 1):
        return named
    if len(layer.bands) in (len(modality.bands), len(measured)):
        order = range(len(modality.bands)) if len(layer.bands) == len(modality.bands) else measured
        return list(enumerate(order))
    return []


def match_dates(
    name: str, own: np.datetime64 | None, chosen: Sequence[Chosen], modality: Modality
) -> tuple[list[Chosen], Dates | None]:
    """Return the layers with their `steps`, and the dates of the source. `own` is the date that the user gave."""
    undated = [c for c in chosen if c.layer.dates is None]
    if undated and (modality.is_temporal or len(undated) < len(chosen)):
        give = (
            f"give it: {modality.key}={name}@2020-06-01; in YAML behind the `path:`, too, as @{{column}} of a table or "
            "@2020-06-01"
        )
        is_cube = all("::" in c.layer.path for c in undated)
        way = "give the cube a coordinate `time`" if is_cube else "write that of each into its name, as 20200601"
        raise SourceError(
            some([c.layer.path for c in undated]),
            f"no date in the file name or its tags, and {modality.key!r} needs one",
            way if twins(undated) else f"{way}; or {'for a file ' if is_cube else ''}{give}",
        )
    if undated:
        return [c._replace(steps=(0,)) for c in chosen], None
    stamps = [np.asarray(c.layer.dates) for c in chosen]
    dates = np.unique(np.concatenate(stamps))  # scenes of one day are joined, see `Source.observe`
    if own is not None:
        if own not in dates:
            if len(dates) > 1:
                raise SourceError(name, f"it has no date {own}", f"it has {some(dates.tolist())}")
            stamps, dates = [np.full(len(stamp), own) for stamp in stamps], np.array([own])
        dates = dates[dates == own]
    if not modality.is_temporal and len(dates) > 1:
        raise SourceError(
            name,
            f"{modality.key!r} is a single image, and this holds {len(dates)} dates ({some(dates.tolist())})",
            f"choose one: {modality.key}={name}@{dates[0]}, or of a cube in memory `cube.sel(time=...)`",
        )
    placed = [_with_steps(c, own, dates) for c, own in zip(chosen, stamps, strict=True)]
    return [c for c in placed if c.times], dates


def twins(undated: Sequence[Chosen]) -> list[str]:
    """Return the paths of undated layers that cannot be parts of one image, since some band shows the ground twice."""
    found: dict[object, dict[str, tuple[float, ...]]] = {}
    for c in undated:
        if (geobox := c.layer.geobox) is not None:
            grid = str(geobox.crs), round(geobox.resolution.x, 6)
            for target in c.targets:
                found.setdefault((target, *grid), {})[c.layer.path] = geobox.boundingbox.bbox
    alike = {tuple(boxes.items()) for boxes in found.values()}  # mostly, all bands of a file share one grid
    return sorted({path for boxes in alike for path in _alike(dict(boxes))})


def _alike(boxes: Mapping[str, tuple[float, ...]]) -> list[str]:
    """Return the paths of boxes (left bottom right top) that share more than half of the larger one with another."""
    import shapely

    paths, shapes = list(boxes), shapely.box(*np.array(list(boxes.values())).T)
    one, other = shapely.STRtree(shapes).query(shapes, predicate="intersects")
    one, other = one[one != other], other[one != other]
    shared = shapely.area(shapely.intersection(shapes[one], shapes[other]))
    most = np.maximum(shapely.area(shapes[one]), shapely.area(shapes[other]))
    return [paths[place] for place in np.unique(one[shared > most / 2])]


def _with_steps(chosen: Chosen, own: Dates, dates: Dates) -> Chosen:
    times = tuple(np.flatnonzero(np.isin(own, dates)).tolist())
    return chosen._replace(times=times, steps=tuple(np.searchsorted(dates, own[list(times)]).tolist()))


def units_of(
    chosen: Sequence[Chosen], modality: Modality, given: Units, trained: Units
) -> tuple[dict[int, str], list[str]]:
    """Return the unit of each band, and notes on its origin: as given, as in the file, as in training, or assumed."""
    units: dict[int, str] = {}
    notes: dict[str, None] = {}
    for layer, _, _, bands, targets, _ in chosen:
        for stored, target in zip(bands, targets, strict=True):
            band = modality.bands[target]
            unit, origin = _unit_of(layer, stored, modality, target, given, trained)
            if units.setdefault(target, unit) != unit:
                raise SourceError(
                    layer.path, f"{band.name} is in {unit} here, but in {units[target]} in another file",
                    "give files with the same unit, or read them as stored with scale: 1",
                )  # fmt: skip
            notes[f"{unit} ({origin})"] = None
        if layer.scalings:
            pairs = dict.fromkeys(layer.scalings[stored] for stored in bands)
            notes["applied " + ", ".join(f"scale {scale:g} and offset {offset:g}" for scale, offset in pairs)] = None
    return units, list(notes)


def _unit_of(
    layer: Layer, stored: int, modality: Modality, target: int, given: Units, trained: Units
) -> tuple[str, str]:
    """Return the unit of a stored band, and its origin."""
    band, spelling = modality.bands[target], layer.units[stored]
    in_file = known_unit(spelling)
    asked, before = (
        units.get((modality.key, band.name), units.get((modality.key, None))) for units in (given, trained)
    )
    if asked is not None and band.ratio_of is None:
        return asked, "as given" + (f", though the file says {in_file}" if in_file not in (None, asked) else "")
    if in_file is not None:
        return in_file, "as the file says" + (f", though in training {before}" if before not in (None, in_file) else "")
    if before is not None and band.ratio_of is None:
        return before, "as in training"
    unit = unit_once_scaled(band.unit, layer.scalings[stored][0]) if layer.scalings else band.unit
    return unit, "assumed" + (f": the file's {spelling!r} is not a known unit" if spelling else "")


def unit_once_scaled(unit: str, scale: float) -> str:
    """Return the unit that stored numbers have once a scale is applied, given their unit as stored.

    >>> unit_once_scaled("reflectance_1e4", 1e-4), unit_once_scaled("reflectance_1e4", 1.0)
    ('reflectance', 'reflectance_1e4')
    """
    return _UNIT_ONCE_SCALED.get(unit, unit) if abs(scale) < _MUCH_SMALLER else unit
