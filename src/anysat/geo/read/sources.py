"""Opening of sources: a path, a YAML file, a STAC catalog or a cube in memory becomes a `Source`. No pixels are read.

To add a kind of file, see `KINDS` in `anysat.geo.read.formats`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from odc.geo.geobox import GeoBox

from anysat.errors import EmptySourceError, MissingFileError, RecordError, SourceError, UnknownNameError, some
from anysat.geo.degrees import WGS84, has_place, is_on_earth
from anysat.geo.grid import bounds_of, crs_of
from anysat.geo.read.addresses import is_remote, unsigned
from anysat.geo.read.arrays import array_layers
from anysat.geo.read.descriptions import (
    Between,
    DescribedCube,
    InputPath,
    LonLatBox,
    SourceDescription,
    describe_sources,
)
from anysat.geo.read.formats import KINDS, Kind, Wanted, read_address
from anysat.geo.read.in_training import as_in_training, own_units
from anysat.geo.read.layers import Layer, band_index
from anysat.geo.read.matching import (
    Chosen,
    Units,
    match_bands,
    match_dates,
    name_bands,
    units_of,
)
from anysat.geo.read.notes import label_of, notes_on, told_apart
from anysat.geo.read.quality import QUALITY_KINDS, Found, Pairing, Quality, find_quality
from anysat.geo.read.rivals import Claim, without_rivals
from anysat.geo.read.source import Source
from anysat.modalities import UNITS, Modality, find_modality

__all__ = ["InputPath", "Source", "SourceDescription", "open_source", "open_sources", "parse_units"]


def parse_units(words: Sequence[str], modalities: Mapping[str, Modality]) -> dict[tuple[str, str | None], str]:
    """Parse units given as `MODALITY=UNIT` or `MODALITY.BAND=UNIT`, by modality key and band (None for all).

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


def open_sources(
    given: str | Path | Sequence[str] | Mapping[str, Any],
    modalities: Mapping[str, Modality],
    units: Units | None = None,
    *,
    bbox: LonLatBox | None = None,
    between: Between | None = None,
    trained: Mapping[str, Mapping[str, Any]] | None = None,
) -> dict[str, Source]:
    """Open all inputs, by modality key. `describe_sources` says what can be given.

    Args:
        given: Words `MODALITY=PATH` and YAML files, or a mapping.
        modalities: The modalities that may be given, by key.
        units: Units by modality key and band. They take precedence over those of a description.
        bbox: West, south, east and north of the area in degrees. STAC APIs are searched there, and the sources must
            touch it.
        between: First and last day to use, both included.
        trained: The description of the files used in training, by modality key (`SourceDescription.to_dict`). It
            applies where neither a file nor its own description says otherwise.

    Raises:
        MissingFileError, RecordError, UnknownNameError: A source does not exist, or its description is not valid.
        SourceError: A source cannot be read, has no such dates, or lies elsewhere.
    """
    sources = {}
    for key, described in describe_sources(given).items():
        modality = find_modality(key, modalities.values())
        if isinstance(described, SourceDescription):
            before = (trained or {}).get(key)
            known = None if before is None else SourceDescription(**before)
            source = _open(described, known, modality, units or {}, bbox, between)
        else:
            cube = described if isinstance(described, DescribedCube) else DescribedCube(described, SourceDescription())
            source = _of_data(key, *cube, modality, units or {}).within(between)
        _check_in_area(source, bbox)
        sources[key] = source
    return sources


def open_source(
    given: InputPath,
    modality: Modality,
    *,
    description: SourceDescription | None = None,
    may_float: bool = False,
) -> Source:
    """Open an input, and determine which of its bands and dates a modality uses, in which units and on which grid.

    Args:
        given: Path of the input.
        modality: The modality.
        description: Everything else that is known about it.
        may_float: Whether a single raster may lack a georeference.

    Raises:
        MissingFileError: There is no such path.
        SourceError: It cannot be read, or has no georeference, no band of the modality, or no dates.
        UnknownNameError: It has no part of that name.
    """
    return _of_file(given, description or SourceDescription(path=given.path), None, modality, {}, may_float)


def _of_data(name: str, data: Any, described: SourceDescription, modality: Modality, units: Units) -> Source:
    items = [] if hasattr(data, "dims") or not isinstance(data, Iterable) else list(data)
    if items and all(hasattr(item, "assets") for item in items):
        return _of_items(name, items, described, None, modality, units)
    layers = array_layers(name, data, _quality_names(described, None))
    return _assemble(name, layers, described, modality, units).within(described.dates)


def _open(
    described: SourceDescription, trained: SourceDescription | None, modality: Modality, units: Units,
    bbox: LonLatBox | None, between: Between | None,
) -> Source:  # fmt: skip
    if described.stac is None:
        given = InputPath.parse(f"{modality.key}={described.path}")
        return _of_file(given, described, trained, modality, units).within(between)
    from anysat.geo.read.stac.search import find_items

    days = _both(described, between)
    items = find_items(described.stac, described.collection, bbox=bbox, between=days)
    return _of_items(described.stac, items, described, trained, modality, units).within(days)


def _both(described: SourceDescription, between: Between | None) -> Between | None:
    """Return the range of days that is in both ranges; refuse ranges that share no day."""
    if described.dates is None or between is None:
        return described.dates or between
    days = max(described.dates[0], between[0]), min(described.dates[1], between[1])
    if days[0] > days[1]:
        raise SourceError(
            described.where, f"no date is both between {between[0]} and {between[1]} and between "
            f"{described.dates[0]} and {described.dates[1]}, its own `dates`",
        )  # fmt: skip
    return days


def _of_items(
    name: str, items: Sequence[Any], described: SourceDescription, trained: SourceDescription | None,
    modality: Modality, units: Units,
) -> Source:  # fmt: skip
    """Open STAC items. Their layers are read with the bands and the scale of the description."""
    from anysat.geo.read.stac.items import item_layers

    layers = item_layers(name, items, modality, described, _quality_names(described, trained))
    seen_to = replace(described, bands={}, scale=None, offset=None, offset_from=None, nodata=None)
    return _assemble(name, layers, seen_to, modality, units, trained=trained, is_stac=True).within(described.dates)


def _of_file(
    given: InputPath, described: SourceDescription, trained: SourceDescription | None, modality: Modality, units: Units,
    may_float: bool = False,
) -> Source:  # fmt: skip
    wanted = Wanted(modality, given.part, _quality_names(described, trained))
    if is_remote(given.path):
        layers, name = read_address(given.path, wanted), unsigned(given.path)
        source = _assemble(name, layers, described, modality, units, trained=trained, date=given.date)
        return source.within(described.dates)
    path = Path(given.path)
    if not path.exists():
        raise MissingFileError(path, f"an input for {modality.key!r}")
    kind = _kind_of(path)
    layers = kind.read(path, wanted)
    apart = told_apart(layers)
    try:
        source = _assemble(
            str(given), layers, described, modality, units, trained=trained, date=given.date,
            may_float=may_float or not kind.is_georeferenced,
        )  # fmt: skip
    except SourceError as error:
        error.args = (f"{error}; {apart}",) if apart else error.args
        raise
    left = kind.left_out(path)
    more = [apart] * bool(apart) + [f"not read, because only GeoTIFFs are: {some(left)}"] * bool(left)
    source = replace(source, notes=(*source.notes, *more), doubts=(*source.doubts, *more))
    return source.within(described.dates)


def _kind_of(path: Path) -> Kind:
    kind = next((kind for kind in KINDS if kind.fits(path)), None)
    if kind is None:
        raise SourceError(path, f"unknown kind of file {path.suffix!r}", f"give a {', '.join(k.name for k in KINDS)}")
    return kind


def _assemble(
    name: str, layers: Sequence[Layer], described: SourceDescription, modality: Modality, units: Units, *,
    trained: SourceDescription | None = None, date: np.datetime64 | None = None, may_float: bool = False,
    is_stac: bool = False,
) -> Source:  # fmt: skip
    """Make a source of opened layers.

    `date` is the date that the user gave. With `may_float`, the source may lack a georeference.
    """
    if not layers:
        raise EmptySourceError(name, "it is empty", "give data with at least one date")
    described, before, taken = as_in_training(described, trained, layers, modality, units, is_stac=is_stac)
    found = _quality_layers(name, layers, described.quality, modality) if described.quality is not None else []
    imagery, rivals = (layers, []) if is_stac else without_rivals(layers, _claim(described, modality))
    imagery = [_dated(layer, date) for layer in name_bands(imagery, described.bands, modality)]
    decoding = described.scaling, described.offset_from, described.nodata
    imagery = [layer.north_up().decoded_as(*decoding) for layer in imagery]
    chosen, unused = match_bands(name, imagery, modality)
    unused += rivals
    chosen, dates = match_dates(name, date, chosen, modality)
    if not chosen:
        raise EmptySourceError(name, "it has no dates", "give a series with at least one")
    _check_located(chosen, may_float)
    unit_of, unit_notes = units_of(chosen, modality, {**own_units(described.units, modality), **units}, before)
    doubts = [*notes_on(layers, chosen, unused, found, date, modality)]
    notes = [*doubts, *unit_notes, *taken]
    if described.quality is not None:
        chosen, masked, left_out = _screened(name, chosen, found, described.quality)
        doubts += left_out
        notes += [masked, *left_out]
    return Source(
        name=name, modality=modality, chosen=tuple(chosen), dates=dates, units=unit_of, notes=tuple(notes),
        doubts=tuple(doubts), quality=described.quality,
    )  # fmt: skip


def _claim(described: SourceDescription, modality: Modality) -> Claim:
    """Return a function from a band's name in a file to the modality's band, as described by the user if so."""
    if not described.bands:
        return lambda name: band_index(name, modality)
    if isinstance(described.bands, Mapping):
        wanted = {stored: modality.find_band(band) for band, stored in described.bands.items()}
        return wanted.get
    return lambda _: None  # names in order, whatever the file says


def _dated(layer: Layer, date: np.datetime64 | None) -> Layer:
    """Give a layer without a date the given one."""
    return layer if date is None or layer.dates is not None else replace(layer, dates=np.array([date], "datetime64[D]"))


def _check_located(chosen: Sequence[Chosen], may_float: bool) -> None:
    without = [c.layer.path for c in chosen if c.layer.geobox is None]
    if without and not (may_float and len(chosen) == 1 and not chosen[0].layer.has_crs):
        if all(c.layer.has_crs for c in chosen if c.layer.geobox is None):
            raise SourceError(
                some(without), "the size of its pixels is not known: it has one row or column, or no coordinates",
                "write a `GeoTransform` beside the reference system, as an attribute of `spatial_ref`",
            )  # fmt: skip
        raise SourceError(
            some(without), "it has no georeference (no reference system or no transform)",
            "write one into the file, or give a cube one with `.odc.assign_crs(...)`",
        )  # fmt: skip
    places = dict.fromkeys((c.layer.geobox, c.layer.path) for c in chosen if c.layer.geobox is not None)
    systems = {str(geobox.crs): (geobox, path) for geobox, path in places}
    lost = [path for geobox, path in systems.values() if not is_on_earth(crs_of(geobox))]
    if lost or (places and not any(has_place(geobox) for geobox, _ in places)):
        raise SourceError(
            some(lost or [path for _, path in places]), "its place on Earth is not known: its reference system does "
            "not say, or its transform is wrong", "write both into it, as with `gdal_edit.py -a_srs … -a_ullr …`",
        )  # fmt: skip


def _quality_names(described: SourceDescription, trained: SourceDescription | None) -> tuple[str, ...]:
    """Return the names of quality layers to look for: the requested ones, or all known ones."""
    if described.quality is not None:
        return described.quality.names
    before = () if trained is None or trained.quality is None else trained.quality.names
    return (*before, *(name for kind in QUALITY_KINDS.values() for name in kind.layers))


def _quality_layers(name: str, layers: Sequence[Layer], quality: Quality, modality: Modality) -> list[Found]:
    """Find the quality layers, in the source itself or in a raster of their own."""
    name_or_path = quality.names[0]
    given = InputPath(key=modality.key, path=name_or_path)
    if not Path(name_or_path).exists():
        given = InputPath.parse(f"{modality.key}={name_or_path}")
    path = Path(given.path)
    if quality.layer is not None and path.exists():
        found = [Found(layer.as_stored(), 0) for layer in _kind_of(path).read(path, Wanted(modality, given.part))]
    else:
        found = find_quality(layers, quality.names, modality)
    if not found:
        there = [names[0] for layer in layers for names in layer.bands if names]
        raise UnknownNameError(f"quality layer of {name}", " or ".join(quality.names), dict.fromkeys(there))
    found = [Found(layer.north_up(), band) for layer, band in found]
    if without := [layer.path for layer, _ in found if layer.geobox is None]:
        raise SourceError(some(without), "the quality layer has no georeference", "write one into the file")
    return found


def _screened(
    name: str, chosen: Sequence[Chosen], found: Sequence[Found], quality: Quality
) -> tuple[list[Chosen], str, list[str]]:
    """Return the layers with their masks, a note on what masks them, and notes on dates that it lacks."""
    pairing = Pairing(found)
    screened = [one._replace(screens=pairing.screens(one.layer)) for one in chosen]
    untold = {
        str(one.layer.dates[time]) if one.layer.dates is not None else "the image"
        for one in screened
        for time in one.times
        if all(screen.time_of[time] < 0 for screen in one.screens)
    }
    if untold and all(not one.screens for one in screened):
        raise SourceError(name, f"its quality layer ({quality}) has none of its dates", "check the dates")
    left_out = [f"left out, because the quality layer lacks them: {some(sorted(untold))}"] if untold else []
    used = dict.fromkeys((screen.layer, screen.band) for one in screened for screen in one.screens)
    return screened, f"masked by {quality} ({some([label_of(Found(*mask)) for mask in used])})", left_out


def _check_in_area(source: Source, bbox: LonLatBox | None) -> None:
    if bbox is None or not source.footprint.geoboxes:
        return
    area = GeoBox.from_bbox(bbox, WGS84, shape=(1, 1), tight=True)
    if not source.touching(area):
        west, south, east, north = bbox
        own = bounds_of(source.footprint.geoboxes, WGS84)
        raise SourceError(
            source.name, f"no part of it lies in the area, longitude {west:g} to {east:g} and latitude {south:g} to "
            f"{north:g} degrees", f"it lies in {own.left:.4f},{own.bottom:.4f},{own.right:.4f},{own.top:.4f} "
            "(WEST,SOUTH,EAST,NORTH); give sources that cover the same ground",
        )  # fmt: skip
