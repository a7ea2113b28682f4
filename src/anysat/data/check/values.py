"""Checks of the values of bands: their order, their unit, and bands without content.

Rules ask what a modality is (radar or optical, wavelengths, units), never which one. Each looks at all sampled tiles
at once, so that one odd tile, snow, open sea or a cloudy day is not a finding. The numbers in the constants were
measured on real Sentinel-1, Sentinel-2, Landsat, MODIS and aerial imagery.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray

from anysat.data.check.evidence import Evidence, Hit, SeenModality, SeenTile
from anysat.modalities import Modality

MIN_CO_FRAC = 0.35
"""Least share of pixels where VV exceeds VH (or HH HV): over 0.93 on real tiles, below 0.07 if exchanged."""
MAX_GAP_NM = 120.0
"""Largest step in wavelength from red to infrared at which neighbours must look alike (Sentinel-2: 50)."""
MIN_ORDER_GAIN = 0.4
"""Least gain in the neighbours' correlations by exchanging two bands that counts: below 0.3 on most real tiles; most
exchanges between the visible, infrared and short-wave groups give 0.5 to 4."""
MIN_AGREEING = 0.3
"""Share of the votes that may gain less: few tiles, or few dates, agree on much by accident."""
GROUP_EDGES_NM = (690.0, 1000.0)
"""Limits of those groups; bands of one group are too similar to be told apart."""
GROUP_SPECTRA = 500
"""Number of spectra whose correlations count as one vote."""
MIN_TILES = 3
"""Least number of tiles for a vote: the fields of one or two may be in any order."""
INDEX_EDGE, MIN_REVERSED_FRAC = 0.15, 0.2
"""Size of the normalised difference of infrared and red at which a pixel votes, and least share of reversed votes."""
MIN_BRIGHTER = 1.25
"""Least ratio of red to green and blue for red to be infrared; water, also reversed, is darkest in red."""
MAX_TOP_FRAC, MIN_LEVELS = 0.2, 20
"""Share of values at a band's maximum above which it is saturated, if the band has more than this many values."""
MIN_SHARE = 0.5
"""Share of tiles with a duplicated or saturated band from which it is no accident of dark or uniform ground."""
MAX_BLANK_FRAC = 0.1
"""Largest share of dates with a single value everywhere."""
MAX_SHARED_FRAC = 0.05
"""Share of pixels with one number in all bands above which that number seems to mean no data."""
MIN_VALID_FRAC = 0.01
"""Share of valid values below which a modality is as good as missing."""


def swapped_bands(evidence: Evidence) -> Iterator[Hit]:
    """Bands that look exchanged: VV and VH, infrared and red, or bands out of the order of their wavelengths."""
    for key, seen in evidence.by_modality.items():
        modality = seen[0][1].modality
        if modality.is_radar:
            yield from _weak_co_polarisation(modality, seen, evidence.described_in)
        else:
            spectra = evidence.spectra(key)
            found = _out_of_order(modality, spectra, len(seen)) or _reversed_red(modality, spectra)
            if found:
                yield Hit(subject=key, message=f"{found}; correct the order of the bands in {evidence.described_in}")


def _weak_co_polarisation(
    modality: Modality, seen: list[tuple[SeenTile, SeenModality]], described_in: str
) -> Iterator[Hit]:
    polarisations = [band.polarisation or "" for band in modality.bands]
    for co, sent_received in enumerate(polarisations):
        crossed = {"VV": "VH", "HH": "HV"}.get(sent_received)
        if crossed is None or crossed not in polarisations:
            continue
        cross = polarisations.index(crossed)
        shares = [_share(one.spectra[:, co] > one.spectra[:, cross], one.spectra[:, [co, cross]]) for _, one in seen]
        share = float(np.nanmedian(shares)) if np.isfinite(shares).any() else 1.0
        if share < MIN_CO_FRAC:
            yield Hit(subject=f"{modality.key}, {sent_received} and {crossed}",
                      message=f"{sent_received} exceeds {crossed} on {share:.0%} of the pixels (median of tiles), "
                      f"expected most; they look exchanged: correct their order in {described_in}")  # fmt: skip


def _share(votes: NDArray[np.bool_], spectra: NDArray[np.float32]) -> float:
    whole = np.isfinite(spectra).all(axis=1)
    return float(votes[whole].mean()) if whole.any() else float("nan")


def _out_of_order(modality: Modality, spectra: NDArray[np.float32], num_tiles: int) -> str:
    """Say which exchange of two bands would help, for sensors with many bands between red and infrared."""
    optical = [(b.wavelength_nm, i) for i, b in enumerate(modality.bands) if b.wavelength_nm and b.wavelength_nm < 3000]
    order = [index for _, index in sorted(optical) if np.isfinite(spectra[:, index]).any()]
    waves = np.array([modality.bands[index].wavelength_nm for index in order], float)
    steps = np.diff(waves)[(waves[:-1] >= 600) & (waves[:-1] < 850)]
    if len(steps) < 3 or steps.max() > MAX_GAP_NM:
        return ""
    whole = spectra[np.isfinite(spectra[:, order]).all(axis=1)][:, order].astype(np.float64)
    if num_tiles < MIN_TILES or len(whole) < GROUP_SPECTRA:
        return ""
    groups = np.array_split(whole, len(whole) // GROUP_SPECTRA)
    gains = np.array([gain for group in groups if (gain := _exchange_gains(group)) is not None])
    if not len(gains):
        return ""
    group = np.searchsorted(GROUP_EDGES_NM, waves)
    gain = np.where(group[:, None] != group, np.quantile(gains, MIN_AGREEING, axis=0), 0)
    first, second = np.unravel_index(gain.argmax(), gain.shape)
    if gain[first, second] <= MIN_ORDER_GAIN:
        return ""
    names = [modality.bands[order[place]].name for place in sorted((int(first), int(second)))]
    return (f"{names[0]} and {names[1]} look exchanged: each is more like the neighbours of the other, as if its "
            "wavelength were the other's")  # fmt: skip


def _exchange_gains(spectra: NDArray[np.float64]) -> NDArray[np.float64] | None:
    """Return the gain (band band) in the sum of neighbours' correlations if two bands are exchanged, without clouds.

    A cloud is bright in every band, so the half of the pixels with the darker darkest band is kept.
    """
    if len(spectra) < 20:
        return None
    darkest = spectra.min(axis=1)
    clear = spectra[darkest <= np.median(darkest)]
    if (clear.std(axis=0) == 0).any():
        return None
    likeness = np.corrcoef(clear.T)
    count = len(likeness)
    gains = np.zeros((count, count))
    base = np.trace(likeness, offset=1)
    for first in range(count):
        for second in range(first + 1, count):
            order = np.arange(count)
            order[[first, second]] = second, first
            gains[first, second] = np.trace(likeness[np.ix_(order, order)], offset=1) - base
    return gains


def _reversed_red(modality: Modality, spectra: NDArray[np.float32]) -> str:
    """Say that the bands are exchanged if the red of plants is bright and their infrared dark."""
    named = {band.common_name: index for index, band in enumerate(modality.bands)}
    nir = named.get("nir", named.get("nir08"))
    if nir is None or not {"red", "green", "blue"} <= set(named):
        return ""
    spectra = spectra[:, [nir, named["red"], named["green"], named["blue"]]]
    infrared, red, green, blue = spectra[np.isfinite(spectra).all(axis=1) & (spectra > 0).all(axis=1)].T
    if not len(red):
        return ""
    index = (infrared - red) / (infrared + red)
    reversed_frac = float(((index < -INDEX_EDGE) & (red > MIN_BRIGHTER * np.maximum(green, blue))).mean())
    if reversed_frac < max(MIN_REVERSED_FRAC, 2 * float((index > INDEX_EDGE).mean())):
        return ""
    names = modality.bands[named["red"]].name, modality.bands[nir].name
    return (f"{names[0]} outshines {names[1]} and the other colours on {reversed_frac:.0%} of the pixels, as infrared "
            f"does over plants: {names[0]} and {names[1]} look exchanged")  # fmt: skip


def wrong_units(evidence: Evidence) -> Iterator[Hit]:
    """Values that do not fit the unit in the layout table."""
    for key, seen in evidence.by_modality.items():
        one, spectra = seen[0][1], evidence.spectra(key)
        for unit in dict.fromkeys(one.units):
            bands = [i for i, other in enumerate(one.units) if other == unit and np.isfinite(spectra[:, i]).any()]
            found = [(i, text) for i in bands if (text := _unit_problem(unit, spectra[:, i]))]
            if found and 2 * len(found) >= len(bands):
                names = " ".join(one.modality.bands[i].name for i, _ in found)
                low, middle, high = np.nanpercentile(spectra[:, found[0][0]], (1, 50, 99))
                yield Hit(
                    subject=f"{key}, {names}",
                    message=f"declared as {unit}, but values (1 %, median, 99 %: {low:.4g}, {middle:.4g}, "
                    f"{high:.4g}) {found[0][1]}; correct the unit in {evidence.described_in} or convert the files",
                )


def _unit_problem(unit: str, values: NDArray[np.float32]) -> str:
    """Return what the values look like instead; empty if they fit."""
    seen = values[np.isfinite(values)]
    rule = UNIT_RULES.get(unit)
    if rule is None or not len(seen):
        return ""
    low, middle, high = np.percentile(seen, (1, 50, 99)).tolist()
    return rule(low, middle, high, float((seen < 0).mean()))


def _decibel(low: float, middle: float, high: float, _negative: float) -> str:
    if low >= 0:
        return "are never negative, so they look like linear power" if high < 10 else "are never negative, like counts"
    return "lie outside -60 to 30 dB" if middle < -60 or high > 30 else ""


def _linear(_low: float, middle: float, _high: float, negative: float) -> str:
    if negative > 0.01 and middle < 0:
        return "are negative, so they look like dB"
    return "are far above 1, so they look like counts" if middle > 20 else ""


def _ten_thousand(_low: float, middle: float, high: float, negative: float) -> str:
    if negative > 0.2:
        return "are often negative, so they look standardised already"
    if high <= 2.5:
        return "look like reflectance from 0 to 1"
    if high <= 255:
        return "do not exceed 255, so they look like 8-bit counts"
    return "are far above 10 000, so they look like unscaled counts" if middle > 20_000 else ""


def _reflectance(_low: float, middle: float, high: float, negative: float) -> str:
    if negative > 0.2:
        return "are often negative, so they look standardised already"
    return "look like reflectance times 10 000 or counts" if middle > 3 and high > 10 else ""


def _counts(_low: float, _middle: float, high: float, negative: float) -> str:
    if negative > 0.2:
        return "are often negative, so they look standardised already"
    return "lie between 0 and 1, so they look scaled already" if 0 < high <= 1 else ""


def _kelvin(_low: float, middle: float, _high: float, _negative: float) -> str:
    if 150 <= middle <= 400:
        return ""
    return "look like degrees Celsius" if -90 < middle < 100 else "lie outside 150 to 400 K"


def _metres(low: float, _middle: float, high: float, _negative: float) -> str:
    return "lie outside -500 to 9000 m" if low < -500 or high > 9000 else ""


UNIT_RULES: dict[str, Callable[[float, float, float, float], str]] = {
    "dB": _decibel, "linear": _linear, "reflectance_1e4": _ten_thousand, "reflectance": _reflectance,
    "DN": _counts, "K": _kelvin, "m": _metres,
}  # fmt: skip
"""Rules by unit: from percentiles 1, 50 and 99 and the share below 0 to a problem in words, or to nothing."""


def constant_bands(evidence: Evidence) -> Iterator[Hit]:
    """Bands with a single value all over a tile, and series with blank dates."""
    for tile, seen in evidence.each():
        names = [seen.modality.bands[index].name for index in np.flatnonzero(seen.is_constant)]
        if len(names) == np.count_nonzero(seen.valid_frac) > 1:
            names = ["all bands"]
        for name in names:
            message = (
                "a single value all over the tile, expected a picture; was a band left out, or is its nodata "
                f"value missing in {evidence.described_in}?"
            )
            yield Hit(subject=f"{seen.modality.key}, {name}", example=tile.id, message=message)
        if seen.blank_frac > MAX_BLANK_FRAC and not seen.is_constant.all():
            yield Hit(subject=f"{seen.modality.key}, dates", example=tile.id,
                      message=f"{seen.blank_frac:.0%} of the dates hold a single value everywhere; are they "
                      f"gaps whose nodata value is missing in {evidence.described_in}?")  # fmt: skip


def empty_bands(evidence: Evidence) -> Iterator[Hit]:
    """Bands of the files that have no valid value in a tile where other bands have some."""
    for tile, seen in evidence.each():
        stored = evidence.stored_bands(seen.modality)
        empty = [index for index in stored if not seen.valid_frac[index]]
        if len(empty) < len(stored):
            for index in empty:
                yield Hit(
                    subject=f"{seen.modality.key}, {seen.modality.bands[index].name}",
                    example=tile.id,
                    message=_why_empty(evidence),
                )


def _why_empty(evidence: Evidence) -> str:
    if not evidence.is_own:
        return "no valid value though other bands have some; everything is nodata or NaN"
    return ("no valid value though other bands have some: no file has it by this name, or everything is nodata. Where "
            "it was not measured, list the stored `bands` in the YAML file")  # fmt: skip


def hidden_nodata(evidence: Evidence) -> Iterator[Hit]:
    """Many pixels with the same number in all bands: probably an undeclared nodata value."""
    advice = "`nodata` in the YAML file" if evidence.is_own else "its nodata value in the layout table"
    for tile, seen in evidence.each():
        value, frac = seen.shared
        if frac > MAX_SHARED_FRAC and not seen.is_constant[seen.valid_frac > 0].all():
            yield Hit(subject=seen.modality.key, example=tile.id,
                      message=f"{frac:.0%} of the pixels are {value:g} in all bands, expected a picture; if this "
                      f"means no data, give {advice}")  # fmt: skip


def nothing_valid(evidence: Evidence) -> Iterator[Hit]:
    """Modalities with almost no valid value in a tile."""
    for tile, seen in evidence.each():
        frac = float(seen.valid_frac.max())
        if frac < MIN_VALID_FRAC:
            yield Hit(subject=seen.modality.key, example=tile.id,
                      message=f"{frac:.1%} of the values are valid; everything else is nodata, NaN or masked. Leave "
                      "such tiles out, or look at nodata value and mask")  # fmt: skip


def duplicated_bands(evidence: Evidence) -> Iterator[Hit]:
    """Two bands with the same values."""
    for key, seen in evidence.by_modality.items():
        modality = seen[0][1].modality
        for first, second in dict.fromkeys(pair for _, one in seen for pair in one.same_bands):
            tiles = [tile.id for tile, one in seen if (first, second) in one.same_bands]
            if len(tiles) >= MIN_SHARE * len(seen):
                names = modality.bands[first].name, modality.bands[second].name
                for example in tiles:
                    yield Hit(subject=f"{key}, {names[0]} and {names[1]}", example=example,
                              message="hold the same values, expected two bands; was one written twice?")  # fmt: skip


def saturated_bands(evidence: Evidence) -> Iterator[Hit]:
    """Bands with a large share of values at the maximum."""
    for key, seen in evidence.by_modality.items():
        for index, band in enumerate(seen[0][1].modality.bands):
            tops = [(one.top_frac[index], tile.id) for tile, one in seen if one.num_levels[index] > MIN_LEVELS]
            clipped = [example for frac, example in tops if frac > MAX_TOP_FRAC]
            if len(clipped) > MIN_SHARE * len(tops):
                for example in clipped:
                    yield Hit(subject=f"{key}, {band.name}", example=example,
                              message=f"more than {MAX_TOP_FRAC:.0%} of the values are at the maximum; was it clipped "
                              "while converting?")  # fmt: skip
