"""Complete the description of a source from that of the data that a predictor was trained on."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

from anysat.geo.read.descriptions import SourceDescription
from anysat.geo.read.layers import Layer, band_index, known_unit
from anysat.geo.read.matching import Units
from anysat.geo.read.quality import find_quality
from anysat.modalities import Modality


class Completed(NamedTuple):
    """A description completed with that of training."""

    described: SourceDescription
    units: Units
    """Units in training, for bands whose unit the source does not say."""
    notes: tuple[str, ...]
    """What was taken over, and what could not be."""


def own_units(units: str | Mapping[str, str], modality: Modality) -> Units:
    """Return the units of a description by modality key and band (None for all bands)."""
    if isinstance(units, str):
        return {(modality.key, None): units}
    return {(modality.key, modality.band_names[modality.find_band(band)]): unit for band, unit in units.items()}


def as_in_training(
    described: SourceDescription, trained: SourceDescription | None, layers: Sequence[Layer], modality: Modality,
    units: Units, *, is_stac: bool,
) -> Completed:  # fmt: skip
    """Complete a description.

    Band names are taken over if the files name no band of the modality. Unit, scale and offset belong together: they
    are taken over if the source states none of them. Description and options take precedence.

    Args:
        described: Description of the source.
        trained: Description in training, without paths and dates; None for nothing.
        layers: Layers of the source, as in its files.
        modality: The modality.
        units: Units from the options.
        is_stac: Whether it is a STAC catalog, which states bands, scale and nodata in its own way.
    """
    if trained is None:
        return Completed(described, {}, ())
    taken: list[str] = []
    missed: list[str] = []
    if trained.bands and not described.bands and not is_stac and not _are_named(layers, modality):
        counts = {len(layer.bands) for layer in layers}
        if counts == {len(trained.bands)}:
            described = replace(described, bands=trained.bands)
            taken.append(f"bands {' '.join(trained.bands)}")
        else:
            missed.append(f"in training files had {len(trained.bands)} bands, {' '.join(trained.bands)}")
    before: Units = {}
    if described.scale is None and described.offset is None and not any(layer.scalings for layer in layers):
        before = own_units(trained.units, modality)
        is_given = described.units or any(key == modality.key for key, _ in units)
        has_unit = is_given or any(known_unit(unit) for layer in layers for unit in layer.units)
        if not (is_stac or has_unit) and (trained.scale is not None or trained.offset is not None):
            scale, offset, first = trained.scale, trained.offset, trained.offset_from
            described = replace(described, scale=scale, offset=offset, offset_from=first)
            taken += [f"scale {scale:g}"] if scale is not None else []
            taken += [f"offset {offset:g}" + (f" from {first}" if first else "")] if offset is not None else []
    if trained.nodata is not None and described.nodata is None and not is_stac:
        stated = {layer.nodata for layer in layers if layer.nodata is not None}
        if stated - {trained.nodata}:
            missed.append(f"nodata is {min(stated):g} as the file says, though in training {trained.nodata:g}")
        elif not stated:
            described = replace(described, nodata=trained.nodata)
            taken.append(f"nodata {trained.nodata:g}")
    if trained.quality is not None and described.quality is None:
        if find_quality(layers, trained.quality.names, modality):
            described = replace(described, quality=trained.quality)
            taken.append("quality")
        else:
            missed.append(f"nothing is masked; in training it was, by {trained.quality}, which is missing here")
    notes = [f"as in training: {', '.join(taken)}"] if taken else []
    return Completed(described, before, (*notes, *missed))


def _are_named(layers: Iterable[Layer], modality: Modality) -> bool:
    return any(band_index(name, modality) is not None for layer in layers for names in layer.bands for name in names)
