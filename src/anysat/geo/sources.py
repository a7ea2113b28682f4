"""From `MODALITY=PATH` to an `Observation` on a grid: bands by name, dates, units, one resampling.

A source is opened first (names, dates, grid; no pixels), so that the common grid can be planned, and
observed on that grid afterwards.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
from odc.geo.geobox import GeoBox

from anysat.errors import MissingFileError, RecordError, SourceError, UnknownNameError
from anysat.geo.formats import KINDS
from anysat.geo.grid import Footprint
from anysat.geo.layers import Layer, known_unit
from anysat.geo.resample import place
from anysat.modalities import UNITS, Modality, band_key
from anysat.observation import Dates, Observation

_SHOWN = 5
_UNIT_ONCE_SCALED = {"reflectance_1e4": "reflectance"}


@dataclass(frozen=True, kw_only=True)
class InputPath:
    """What the user typed for one input: `MODALITY=PATH`, with `::PART` and `@DATE` where needed.

    >>> InputPath.parse("s2=tile.h5::sen-2")
    InputPath(key='s2', path='tile.h5', part='sen-2', date=None)
    """

    key: str
    """Modality key."""
    path: str
    part: str | None = None
    """Series of an HDF5 file, or variable of a cube."""
    date: np.datetime64 | None = None
    """Date of an undated image, or the one date to take of several."""

    @classmethod
    def parse(cls, words: str) -> InputPath:
        """Split what was typed; refuses what is not `MODALITY=PATH`."""
        key, equals, path = words.partition("=")
        if not equals or not key or not path:
            raise RecordError("input", words, "MODALITY=PATH, such as s2=cube.nc")
        date = None
        if found := re.search(r"@(\d{4}-\d\d-\d\d)$", path):
            path = path[: found.start()]
            try:
                date = np.datetime64(found[1], "D")
            except ValueError:
                raise RecordError("input", words, "a calendar date after @") from None
        path, _, part = path.partition("::")
        return cls(key=key, path=path, part=part or None, date=date)

    def __str__(self) -> str:
        return self.path + (f"::{self.part}" if self.part else "")


class Chosen(NamedTuple):
    """A layer and what of it is used."""

    layer: Layer
    times: tuple[int, ...]
    """Its times that are read …"""
    steps: tuple[int, ...]
    """… and their places among the dates of the source."""
    bands: tuple[int, ...]
    """Its bands that are read …"""
    targets: tuple[int, ...]
    """… and the modality's bands they are."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Source:
    """An opened input: what it holds for its modality, and where."""

    name: str
    modality: Modality
    chosen: tuple[Chosen, ...]
    dates: Dates | None
    """Dates of a series; of an image the one it was taken at, where known."""
    units: Mapping[int, str]
    """Unit of each of the modality's bands that the source has."""
    notes: tuple[str, ...] = ()
    """What a user should know: unused bands, scale factors, where units come from."""

    @property
    def footprint(self) -> Footprint:
        """Where it lies."""
        boxes = tuple(chosen.layer.geobox for chosen in self.chosen if chosen.layer.geobox is not None)
        return Footprint(name=self.name, modality=self.modality, geoboxes=boxes, shape_px=self.chosen[0].layer.shape_px)

    @property
    def bands(self) -> tuple[str, ...]:
        """Bands it has, in the modality's order."""
        return tuple(self.modality.band_names[index] for index in sorted(self.units))

    def observe(self, geobox: GeoBox) -> tuple[Observation, str]:
        """Read it on a grid of the modality's pixel size; and how its pixels got there.

        Where several files of one date overlap, the first in name order that has data counts.

        Raises:
            SourceError: the pixels cannot be read.
        """
        order = sorted(self.units)
        num_times = 1 if self.dates is None else len(self.dates)
        values = np.full((num_times, len(order), *geobox.shape), np.nan, dtype=np.float32)
        ways: dict[str, None] = {}
        for layer, times, steps, bands, targets in self.chosen:
            was_located = layer.geobox is not None
            if not was_located:  # lies at the tile's corner, see `plan_grid`
                layer = layer.placed_at(geobox.affine.c, geobox.affine.f, geobox.affine.a, geobox.crs)
            pixels, how = place(layer, geobox, times, bands)
            ways[how if was_located else "centred"] = None
            index = np.ix_(steps, [order.index(target) for target in targets])
            here = values[index]
            values[index] = np.where(np.isfinite(here), here, pixels)
        observation = Observation.of(
            self.modality,
            values if self.modality.is_temporal else values[0],
            bands=[self.modality.band_names[target] for target in order],
            units=[self.units[target] for target in order],
            dates=self.dates if self.modality.is_temporal else None,
        )
        return observation, " and ".join(ways)


def parse_units(words: Sequence[str], modalities: Mapping[str, Modality]) -> dict[tuple[str, str | None], str]:
    """Units given as `MODALITY=UNIT` or `MODALITY.BAND=UNIT`, by modality key and band (None for all).

    >>> from anysat.modalities import MODALITIES
    >>> parse_units(["s1=linear", "l8.B10=K"], MODALITIES)
    {('s1', None): 'linear', ('l8', 'B10'): 'K'}
    """
    units: dict[tuple[str, str | None], str] = {}
    for word in words:
        target, equals, unit = word.partition("=")
        if not equals:
            raise RecordError("--units", word, "MODALITY=UNIT, such as s1=linear")
        key, _, band = target.partition(".")
        if key not in modalities:
            raise UnknownNameError("modality in --units", key, modalities, "Give units of the inputs only")
        if unit not in UNITS:
            raise UnknownNameError("unit", unit, UNITS, f"It was given as --units {word}")
        name = modalities[key].band_names[modalities[key].find_band(band)] if band else None
        units[key, name] = unit
    return units


def open_source(
    given: InputPath,
    modality: Modality,
    units: Mapping[tuple[str, str | None], str] | None = None,
    bands: Sequence[str] = (),
) -> Source:
    """Open an input: which of its bands and dates the modality takes, in which units, on which grid.

    Args:
        given: where it lies.
        modality: what it is to be.
        units: unit by modality key and band, None for all bands; the file's own where none is given.
        bands: names of the stored bands of every file; the file's own where none are given.

    Raises:
        MissingFileError: there is no such path.
        SourceError: it cannot be read, has no georeference, no band of the modality, or no dates.
        UnknownNameError: it has no part of that name.
    """
    path = Path(given.path)
    if not path.exists():
        raise MissingFileError(path, f"an input for {modality.key!r}")
    kind = next((kind for kind in KINDS if kind.fits(path)), None)
    if kind is None:
        raise SourceError(path, f"unknown kind of file {path.suffix!r}", f"give a {', '.join(k.name for k in KINDS)}")
    layers = [_named(layer, bands).north_up() for layer in kind.read(path, given.part, modality)]
    chosen, unused = _match_bands(given, layers, modality)
    chosen, dates = _match_dates(given, chosen, modality)
    chosen = [replaced for replaced in chosen if replaced.times]
    if not chosen:
        raise SourceError(given, "it holds no date", "give a series with at least one")
    without = [c.layer.path for c in chosen if c.layer.geobox is None]
    if without and (len(chosen) > 1 or kind.is_georeferenced):
        raise SourceError(
            _some(without), "it has no georeference (no reference system or no transform)",
            "write one into the file",
        )  # fmt: skip
    unit_of, notes = _units_of(chosen, modality, units or {})
    if unused:
        notes.insert(0, f"not used: {_some(unused)}")
    if any(not any(c.layer.bands[stored] for stored in c.bands) for c in chosen):
        notes.insert(0, "bands not named in the file, taken in the model's order")
    stated = [date for layer in layers if layer.dates is not None for date in layer.dates]
    if given.date is not None and stated and given.date not in stated:
        notes.insert(0, f"dated as given, though the file says {stated[0]}")
    return Source(
        name=str(given), modality=modality, chosen=tuple(chosen), dates=dates, units=unit_of, notes=tuple(notes)
    )


def _named(layer: Layer, bands: Sequence[str]) -> Layer:
    if bands and len(bands) != len(layer.bands):
        raise SourceError(
            layer.path, f"it has {len(layer.bands)} bands, and {len(bands)} are named: {', '.join(bands)}"
        )
    return replace(layer, bands=tuple((name,) for name in bands)) if bands else layer


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:_SHOWN]) + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")


def _match_bands(given: InputPath, layers: Sequence[Layer], modality: Modality) -> tuple[list[Chosen], list[str]]:
    """The layers with the bands that the modality has, and what is left out."""
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
            unused += [names[0] for i, names in enumerate(layer.bands) if i not in taken and names]
        else:
            unused.append(Path(layer.path).name)
    if not found:
        names = [names[0] for layer in layers for names in layer.bands if names]
        num_bands = sum(len(layer.bands) for layer in layers)
        what = f"({_some(names)}) is" if names else "has a name, so none is"
        raise SourceError(
            given, f"none of its {num_bands} bands {what} known to be of {modality.key!r}",
            f"name them in the file; the modality has {', '.join(modality.band_names)}",
        )  # fmt: skip
    return found, list(dict.fromkeys(unused))


def _pairs(layer: Layer, modality: Modality) -> list[tuple[int, int]]:
    """Stored band and the modality's band it is; by name, else in order when the numbers agree."""
    named = [
        (stored, target)
        for stored, names in enumerate(layer.bands)
        if (target := next((t for name in names if (t := _band_index(name, modality)) is not None), None)) is not None
    ]
    measured = [index for index, band in enumerate(modality.bands) if band.ratio_of is None]
    if named or (any(layer.bands) and len(layer.bands) > 1):
        return named
    if len(layer.bands) in (len(modality.bands), len(measured)):
        order = range(len(modality.bands)) if len(layer.bands) == len(modality.bands) else measured
        return list(enumerate(order))
    return []


def _band_index(name: str, modality: Modality) -> int | None:
    return next((index for index, band in enumerate(modality.bands) if band_key(name) in band.match_keys), None)


def _match_dates(given: InputPath, chosen: Sequence[Chosen], modality: Modality) -> tuple[list[Chosen], Dates | None]:
    """Each layer with the places of its times among the dates of the source."""
    undated = [c for c in chosen if c.layer.dates is None]
    if given.date is not None:
        own = np.array([given.date], "datetime64[D]")
        chosen = [c._replace(layer=replace(c.layer, dates=own)) if c.layer.dates is None else c for c in chosen]
    elif undated and (modality.is_temporal or len(undated) < len(chosen)):
        raise SourceError(
            _some([c.layer.path for c in undated]),
            f"no date in the file name or its tags, and {modality.key!r} needs one",
            f"give it: {modality.key}={given}@2020-06-01",
        )  # fmt: skip
    elif undated:
        return [c._replace(steps=(0,)) for c in chosen], None
    stamps = [np.asarray(c.layer.dates) for c in chosen]
    dates = stamps[0] if len(stamps) == 1 else np.unique(np.concatenate(stamps))
    if given.date is not None:
        if given.date not in dates:
            if len(dates) > 1:
                raise SourceError(given, f"it has no date {given.date}", f"it has {_some([str(d) for d in dates])}")
            stamps, dates = [np.array([given.date])] * len(stamps), np.array([given.date])
        dates = dates[dates == given.date]
    if not modality.is_temporal and len(dates) > 1:
        raise SourceError(
            given,
            f"{modality.key!r} is a single image, and this holds {len(dates)} dates ({_some([str(d) for d in dates])})",
            f"choose one: {modality.key}={given}@{dates[0]}",
        )  # fmt: skip
    return [_with_steps(c, own, dates, len(stamps) == 1) for c, own in zip(chosen, stamps, strict=True)], dates


def _with_steps(chosen: Chosen, own: Dates, dates: Dates, is_alone: bool) -> Chosen:
    times = tuple(np.flatnonzero(np.isin(own, dates)).tolist())
    steps = range(len(times)) if is_alone else np.searchsorted(dates, own[list(times)]).tolist()
    return chosen._replace(times=times, steps=tuple(steps))


def _units_of(
    chosen: Sequence[Chosen], modality: Modality, given: Mapping[tuple[str, str | None], str]
) -> tuple[dict[int, str], list[str]]:
    """Unit of each band: as given, else as the file says, else as the record has it; and where from."""
    units: dict[int, str] = {}
    notes: dict[str, None] = {}
    for layer, _, _, bands, targets in chosen:
        for stored, target in zip(bands, targets, strict=True):
            band, spelling = modality.bands[target], layer.units[stored]
            in_file, scaled = known_unit(spelling), bool(layer.scalings)
            asked = given.get((modality.key, band.name), given.get((modality.key, None)))
            if asked is not None and band.ratio_of is None:
                unit, origin = (
                    asked,
                    "as given" + (f", though the file says {in_file}" if in_file not in (None, asked) else ""),
                )
            elif in_file is not None:
                unit, origin = in_file, "as the file says"
            else:
                unit = _UNIT_ONCE_SCALED.get(band.unit, band.unit) if scaled else band.unit
                origin = "assumed" + (f": the file's {spelling!r} is no unit known here" if spelling else "")
            if units.setdefault(target, unit) != unit:
                raise SourceError(layer.path, f"{band.name} is in {unit} here, in {units[target]} in another file")
            notes[f"{unit} ({origin})"] = None
        if layer.scalings:
            pairs = dict.fromkeys(layer.scalings[stored] for stored in bands)
            notes["applied " + ", ".join(f"scale {scale:g} and offset {offset:g}" for scale, offset in pairs)] = None
    return units, list(notes)
