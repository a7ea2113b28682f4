"""The bands of STAC items: their names, the asset to take, and the scale and offset that are still to be applied."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from anysat.errors import SourceError
from anysat.geo.read.layers import band_index, names_of
from anysat.modalities import Modality, band_key

_NO_IMAGERY = {"thumbnail", "overview", "visual", "metadata"}
"""Roles of assets without measurements."""
_MEDIA, _SUFFIXES = ("image/tiff", "image/jp2", "image/vnd"), (".tif", ".tiff", ".jp2")
"""Prefixes of media types, and file suffixes, of assets that are read. One of the two must fit."""


_BASELINE = re.compile(r"N?(\d{1,2}?)(\.?\d{2}|\.\d)?", re.IGNORECASE)
"""Such as 05.09, N0509 or 0509."""
_PLATFORM = re.compile(r"(sentinel[-_ ]?2|s2)[-_ ]?[a-d]?", re.IGNORECASE)
_PRODUCT = re.compile(r"s2[a-d]_msi|sentinel-?2.*l(1c|2a)", re.IGNORECASE)


def _is_baseline_4(properties: Mapping[str, Any]) -> bool:
    baseline = properties.get("s2:processing_baseline")
    stated = baseline or (properties.get("processing:version") if _is_sentinel_2(properties) else None)
    found = _BASELINE.fullmatch(str(stated or "").strip())
    if found is None and baseline:
        raise SourceError(
            properties.get("id", "STAC item"), f"its s2:processing_baseline {baseline!r} is not a baseline like 05.09, "
            "so whether its numbers are raised by 1000 is unknown", "give `offset`: -1000 if they are, else 0",
        )  # fmt: skip
    return found is not None and 4 <= int(found[1]) < 90


def _is_sentinel_2(properties: Mapping[str, Any]) -> bool:
    """Return whether an item is Sentinel-2 by its constellation or platform, else by its name or its collection's."""
    stated = properties.get("constellation") or properties.get("platform")
    if stated:
        return _PLATFORM.fullmatch(str(stated)) is not None
    return any(_PRODUCT.match(str(properties.get(name, ""))) for name in ("id", "collection"))


_OFFSET_OF_BASELINE_4 = -1000.0
"""In stored numbers of Sentinel-2, processing baseline 04.00 and later (2022-01-25), whether or not bands state it."""
_ALREADY_APPLIED = "boa_offset_applied"
"""Name, after the prefix, of the property which says that the provider has applied the offset."""


class AssetBand(NamedTuple):
    """A band of an asset, as the metadata describe it."""

    asset: str
    number: int
    """Counted from 1."""
    names: tuple[str, ...]
    said: Mapping[str, Any]
    rank: tuple[Any, ...]
    """Rank among several assets that hold the same band; the lowest is taken."""


def asset_bands(item: Any, names_in_file: Callable[[str], Sequence[str | None]] = lambda _: ()) -> Iterator[AssetBand]:
    """Yield all bands of the assets with measurements. `names_in_file` returns the band names in an asset's file."""
    for key, asset in item.assets.items():
        media = (asset.media_type or "image/tiff").lower()
        suffix = PurePosixPath(urlsplit(asset.href).path).suffix.lower()
        if _NO_IMAGERY & set(asset.roles or ()) or not (media.startswith(_MEDIA) or suffix in _SUFFIXES):
            continue
        fields = asset.to_dict()
        described = [fields.get(name) or [] for name in ("eo:bands", "raster:bands", "bands")]
        inside = names_in_file(key)
        num_bands = max(1, len(inside), *map(len, described))
        for place in range(num_bands):
            said = dict(fields)
            for bands in described:
                said |= bands[place] if place < len(bands) else {}
            own = [said.get("name"), said.get("common_name"), said.get("eo:common_name"), *inside[place : place + 1]]
            labels = [*([key] if num_bands == 1 else []), *(str(label) for label in own if label)]
            names = tuple(dict.fromkeys(n for label in labels for n in (label, *names_of(label))))
            gsd_m = said.get("spatial_resolution") or said.get("raster:spatial_resolution") or said.get("gsd") or 0
            yield AssetBand(key, place + 1, names, said, (num_bands, "jp2" in media, float(gsd_m), key))


def choose_bands(
    bands: Sequence[AssetBand], modality: Modality, named: Mapping[str, str] | Sequence[str]
) -> list[tuple[AssetBand, str]]:
    """Choose an asset's band for each band of the modality: as given by the user, else the best match by name."""
    if named and isinstance(named, Mapping):
        offers = [
            (modality.find_band(name), band.asset != asset, band)
            for name, asset in named.items()
            for band in bands
            if asset in band.names
        ]
    else:
        offers = list(_offers(bands, modality))
    ranked = sorted(offers, key=lambda offer: (offer[1], offer[2].rank), reverse=True)
    best = {target: band for target, _, band in ranked}  # the last one, with the lowest rank, stays
    return [(best[target], modality.band_names[target]) for target in sorted(best)]


def _offers(bands: Sequence[AssetBand], modality: Modality) -> Iterator[tuple[int, bool, AssetBand]]:
    """Yield modality band, whether the asset has another name than it, and the asset's band, without pictures.

    An asset with several bands, one of which has an asset of its own, is taken for a picture with other numbers.
    """
    known = [(band, _target(band, modality)) for band in bands]
    alone = {target for band, target in known if band.rank[0] == 1}
    pictures = {band.asset for band, target in known if band.rank[0] > 1 and target is not None and target in alone}
    for band, target in known:
        if target is not None and band.asset not in pictures:
            yield target, band_key(band.asset) not in modality.bands[target].match_keys, band


def _target(band: AssetBand, modality: Modality) -> int | None:
    return next((t for name in band.names if (t := band_index(name, modality)) is not None), None)


def said_scaling(said: Mapping[str, Any]) -> tuple[float | None, float | None]:
    """Return the scale and offset in the metadata of a band, by the names of STAC 1.0 and 1.1; None if not stated."""
    stated = []
    for name in ("scale", "offset"):
        value = said.get(name, said.get(f"raster:{name}"))
        stated.append(None if value is None else float(value))
    return stated[0], stated[1]


def said_nodata(item: Any, said: Mapping[str, Any]) -> float | None:
    """Return the nodata number in the metadata of a band or its item, by the names of STAC 1.0 and 1.1, or None."""
    stated = next((one for one in (said.get("nodata"), said.get("raster:nodata"), item.properties.get("nodata"))
                   if one is not None), None)  # fmt: skip
    try:
        return None if stated is None else float(stated)  # "nan" and "-inf" are numbers, too
    except (ValueError, TypeError) as error:
        raise SourceError(item.id, f"its nodata {stated!r} is not a number", "give `nodata`") from error


def scaling_of(
    properties: Mapping[str, Any],
    said: tuple[float | None, float | None],
    header: Sequence[tuple[float, float]] | None,
    number: int,
) -> tuple[float, float]:
    """Return the scale and offset that are still to be applied to a band, whose `number` counts from 1.

    An offset that the provider says it has applied is not applied again, even if the band states it (Earth Search).
    Otherwise the order is: the stated offset, a rule for the product, the header of the file.
    """
    of_file = header[number - 1] if header is not None and number <= len(header) else (1.0, 0.0)
    scale = of_file[0] if said[0] is None else said[0]
    if any(key.rpartition(":")[2] == _ALREADY_APPLIED and value is True for key, value in properties.items()):
        return scale, 0.0
    if said[1] is not None:
        return scale, said[1]
    if _is_baseline_4(properties) and of_file[1] == 0:
        return scale, _OFFSET_OF_BASELINE_4 * scale
    return scale, of_file[1]
