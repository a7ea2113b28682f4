"""A warning about values that cannot fit the statistics they are standardised with. Nothing is refused.

Distance from the mean alone is no sign, because snow and clouds are far from it, too. One sign is a median more than
`MAX_DEVIATIONS` away that its unit cannot have; then all bands of the modality that are as far away are reported. The
other sign is that the values of all bands in a unit are nearly constant, but read as something else they are what the
statistics expect.
"""

from __future__ import annotations

import math
import threading
import warnings
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from anysat.errors import MisfitWarning
from anysat.modalities import Modality
from anysat.observation import CONVERSIONS

MAX_DEVIATIONS = 10.0
"""Distance of a median from the mean, in standard deviations, above which it is far away."""
FITTING_DEVIATIONS = 3.0
"""Distance of a median from the mean, in standard deviations, up to which a reading of the values fits the
statistics."""
FLAT_DEVIATIONS = 0.01
"""Spread of a band's values, in standard deviations, below which no real ground is: their unit is too large."""
MIN_WIDER = 10.0
"""How many times wider the values must spread in a reading for the given ones to count as nearly constant."""
POSSIBLE = {
    "reflectance": (-0.3, 2.0), "reflectance_1e4": (-3000.0, 20_000.0), "dB": (-60.0, 30.0), "linear": (0.0, 20.0),
    "K": (150.0, 400.0), "m": (-500.0, 9000.0),
}  # fmt: skip
"""Smallest and largest plausible median in a unit. Digital numbers can be anything."""
SAMPLE, MIN_SEEN, LOOKS = 2000, 16, 8
"""Number of places to look at in a batch, of valid values a band needs there, and of batches of a modality to look
at."""
_QUANTILES = (0.1, 0.5, 0.9)

Numbers = NDArray[np.float64]


class Expected(NamedTuple):
    """The statistics of a band."""

    mean: float
    std: float
    unit: str


class Reading(NamedTuple):
    """Something else that the values may be."""

    what: str
    convert: Callable[[Numbers], Numbers]
    """Converts to the unit of the statistics."""
    advice: str
    unit: str | None = None
    """Name of the unit, if that is what should be given."""


def _scaled(what: str, scale: float, offset: float, to: float = 1.0) -> Reading:
    advice = f"with `scale` {scale:g} and `offset` {offset:g} in the file or a YAML of sources they are converted"
    return Reading(what, lambda number: (number * scale + offset) * to, advice)


def _kelvin_of_counts(number: Numbers) -> Numbers:
    """Convert digital numbers of Landsat 8 and 9 to brightness temperature with the constants of band 10.

    Those of band 11 give about the same.
    """
    return 1321.0789 / np.log1p(774.8853 / (number * 3.342e-4 + 0.1))


_LEVEL_1 = "stored numbers of a Landsat Level-1 product"
_LEVEL_2 = "stored numbers of a Landsat Collection 2 Level-2 product"
_NUMBER_OF_RADAR = Reading(
    "numbers of a radar product whose decibels are 20 log10(number) - 83", lambda number: 20 * np.log10(number) - 83,
    "convert them",
)  # fmt: skip
READINGS = {
    "K": (
        _scaled("degrees Celsius", 1, 273.15),
        Reading(_LEVEL_1, _kelvin_of_counts, "convert them with the constants of its metadata, or take Level 2"),
        _scaled(_LEVEL_2, 0.00341802, 149.0),
    ),
    "reflectance": (_scaled(_LEVEL_1, 2e-5, -0.1), _scaled(_LEVEL_2, 2.75e-5, -0.2)),
    "reflectance_1e4": (_scaled(_LEVEL_1, 2e-5, -0.1, 1e4), _scaled(_LEVEL_2, 2.75e-5, -0.2, 1e4)),
    "dB": (_NUMBER_OF_RADAR,),
    "DN": (_scaled("values from 0 to 1", 255, 0), _scaled("numbers of 16 bits", 1 / 257, 0)),
}
"""What values may be, by unit of the statistics, besides other units that convert to it."""
_STANDARDISED = Reading(
    "values that are standardised already", lambda number: number, "give the values that they were made from"
)


class Misfit(NamedTuple):
    """A band that does not fit."""

    band: str
    median: float
    unit: str
    expected: Expected
    deviations: float
    """Distance of the median from the mean; NaN if it has no value in the unit of the statistics."""
    reading: Reading | None
    """What the values look like, if known."""

    def __str__(self) -> str:
        mean, std, unit = self.expected
        away, distance = f"no value in {unit}", abs(self.deviations)
        if np.isfinite(distance):
            away = f"{distance:,.{0 if distance >= 10 else 1}f} deviations away"
            away += "" if distance > MAX_DEVIATIONS else ", and nearly all the same"
        return f"{self.band}: median {self.median:,.5g} {self.unit}, statistics {mean:,.4g} ± {std:,.4g} {unit}, {away}"


class Watch:
    """Looks at the first values of each dataset and modality, and warns once, or raises each time if it is an error."""

    def __init__(self) -> None:
        self._left: dict[tuple[str | None, str], int] = {}

    def wants(self, dataset: str | None, key: str) -> bool:
        """Whether to look at more values of a modality."""
        return self._left.get((dataset, key), LOOKS) > 0

    def look(
        self, dataset: str | None, modality: Modality, units: Sequence[str], expected: Sequence[Expected],
        sample: tuple[NDArray[Any], NDArray[Any]],
    ) -> None:  # fmt: skip
        """Warn about bands that do not fit.

        Args:
            dataset: Dataset whose statistics standardise the values.
            modality: The modality of the values.
            units: Unit of each band.
            expected: Statistics of each band.
            sample: Values and whether they are valid, (place band) each.
        """
        seen = _quantiles(*sample)
        if np.isnan(seen).all():
            return
        found = find_misfits(modality, units, expected, seen)
        with _LOCK:  # areas are read by several threads
            left = self._left.get((dataset, modality.key), LOOKS)
            self._left[dataset, modality.key] = 0 if found else left - 1
        if found and left > 0:
            try:
                warnings.warn(_message(modality, found, dataset), MisfitWarning, stacklevel=5)
            except MisfitWarning:  # a filter makes it an error, which no later values shall pass
                self._left[dataset, modality.key] = left
                raise


_LOCK = threading.Lock()


def sample(values: Any, valid: Any) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return values at evenly spread places, and whether they are valid, (place band) each.

    The input is an array or tensor (… band row col).
    """
    *before, _, rows, cols = values.shape
    count = math.prod((*before, rows, cols))
    chosen = np.linspace(0, count - 1, min(count, SAMPLE)).astype(np.intp)
    places = np.unravel_index(chosen, (*before, rows, cols))
    if isinstance(values, np.ndarray):
        return np.moveaxis(values, -3, -1)[places], np.moveaxis(valid, -3, -1)[places]
    where = tuple(torch.from_numpy(index).to(values.device) for index in places)
    found, seen = (some.detach().movedim(-3, -1)[where].cpu().numpy() for some in (values, valid))
    return found, seen


def _quantiles(values: NDArray[Any], valid: NDArray[Any]) -> Numbers:
    """Return three quantiles of each band (band quantile), NaN for a band with too few valid values."""
    found = np.full((values.shape[1], len(_QUANTILES)), np.nan)
    for band in np.flatnonzero(valid.sum(0) >= min(MIN_SEEN, len(values))):
        seen = np.sort(values[valid[:, band], band])
        found[band] = [seen[round(share * (len(seen) - 1))] for share in _QUANTILES]
    return found


def find_misfits(modality: Modality, units: Sequence[str], expected: Sequence[Expected], seen: Numbers) -> list[Misfit]:
    """Return the bands that do not fit, given three quantiles of each (band quantile). Bands with NaN are left out.

    >>> from anysat.modalities import MODALITIES
    >>> bands = [Expected(-12, 3, "dB"), Expected(-18, 3, "dB"), Expected(0.7, 0.1, "ratio")]
    >>> power = np.array([[0.04, 0.07, 0.2], [0.01, 0.02, 0.04], [3, 4, 6]])
    >>> [found.reading.what for found in find_misfits(MODALITIES["s1"], ["dB", "dB", "ratio"], bands, power)]
    ['linear', 'linear']
    """
    by_unit: dict[tuple[str, str], list[int]] = {}
    for index, band in enumerate(modality.bands):
        if band.ratio_of is None and np.isfinite(seen[index]).all():  # a ratio is wrong if its parts are
            by_unit.setdefault((units[index], expected[index].unit), []).append(index)
    with np.errstate(all="ignore"):
        groups = [_Group.of(bands, *pair, expected, seen) for pair, bands in by_unit.items()]
    is_impossible = any(group.is_impossible for group in groups)
    found = []
    for group in groups:
        for place, index in enumerate(group.bands):
            away = float(group.deviations[place])
            if group.is_alike or (is_impossible and not abs(away) <= MAX_DEVIATIONS):
                name, median = modality.bands[index].name, float(seen[index, 1])
                found.append(Misfit(name, median, units[index], expected[index], away, group.reading))
    return found


class _Group(NamedTuple):
    """Bands in one unit whose statistics are in one unit, too."""

    bands: Sequence[int]
    deviations: Numbers
    """Distances of their medians from the means; NaN without a value in the unit of the statistics."""
    is_impossible: bool
    """Whether a median is far away and outside what the unit can have."""
    is_alike: bool
    """Whether the values are nearly constant, but would spread in the best reading."""
    reading: Reading | None
    """What all of them look like, if known."""

    @classmethod
    def of(
        cls, bands: Sequence[int], unit: str, wanted: str, expected: Sequence[Expected], seen: Numbers
    ) -> _Group:  # fmt: skip
        mean, std = np.array([expected[index][:2] for index in bands]).T[..., None]
        numbers, convert = seen[bands], CONVERSIONS.get((unit, wanted), _as_it_is)  # other pairs are refused elsewhere
        now = (convert(numbers) - mean) / std
        far = ~(np.abs(now[:, 1]) <= MAX_DEVIATIONS)
        is_impossible = bool((far & ~_is_possible(numbers[:, 1], unit, of_any=False)).any())
        spread = _spread(now)
        is_flat = bool(((spread > 0) & (spread < FLAT_DEVIATIONS)).all())
        reading, read = _best(unit, wanted, numbers, mean, std, is_impossible, is_flat)
        wider = spread * (1 if far.all() else MIN_WIDER) < _spread(read)
        is_alike = reading is not None and bool(wider.all())
        return cls(bands, now[:, 1], is_impossible, is_alike, reading)


def _best(
    unit: str, wanted: str, seen: Numbers, mean: Numbers, std: Numbers, is_impossible: bool, is_flat: bool
) -> tuple[Reading | None, Numbers]:
    """Return what all of some bands look like most, and their deviations in this reading.

    For impossible values, any reading that makes them possible will do, and for flat ones any such unit: snow and
    clouds do not fit the statistics in their own unit either.
    """
    found: list[tuple[bool, bool, bool, float, Reading, Numbers]] = []
    for reading in _readings(unit, wanted):
        values = reading.convert(seen)
        read = (values - mean) / std
        fits = bool((np.abs(read[:, 1]) <= FITTING_DEVIATIONS).all())
        if (fits or is_impossible or (is_flat and reading.unit)) and _is_possible(values, wanted, of_any=fits).all():
            distance = float(np.abs(read[:, 1]).mean())
            is_unit = reading.unit is not None
            found.append((is_flat and not is_unit, not fits, not fits and not is_unit, distance, reading, read))
    if found:
        return min(found, key=lambda one: one[:4])[4:]
    is_about_zero = (seen[:, 0] < 0) & (seen[:, 2] > 0) & (np.abs(seen[:, 1]) <= FITTING_DEVIATIONS)
    return (_STANDARDISED, seen) if is_about_zero.all() else (None, seen)


def _readings(unit: str, wanted: str) -> list[Reading]:
    """Return what values given in one unit may be, for statistics in another."""
    converting = {one: to for (one, target), to in CONVERSIONS.items() if target == wanted} | {wanted: _as_it_is}
    others = [Reading(one, to, "give that unit", one) for one, to in converting.items() if one != unit]
    return [*others, *READINGS.get(wanted, ())]


def _is_possible(values: Numbers, unit: str, *, of_any: bool) -> NDArray[np.bool_]:
    """Whether a unit can have the values. If it can have any, return `of_any`."""
    if unit not in POSSIBLE:
        return np.full(values.shape, of_any)
    low, high = POSSIBLE[unit]
    return (low <= values) & (values <= high)


def _as_it_is(number: Numbers) -> Numbers:
    return number


def _spread(deviations: Numbers) -> Numbers:
    return np.nan_to_num(deviations[:, 2] - deviations[:, 0])


def _message(modality: Modality, found: Sequence[Misfit], dataset: str | None) -> str:
    of = "" if dataset is None else f" of {dataset}"
    lines = [f"{modality.key}: values that cannot fit the statistics{of}, with which they are standardised:"]
    by_reading: dict[Reading | None, list[Misfit]] = {}
    for misfit in found:
        by_reading.setdefault(misfit.reading, []).append(misfit)
    for reading, some in by_reading.items():
        lines += [f"  {misfit}" for misfit in some]
        if reading is not None:
            lines.append(f"  they look like {reading.what}: {reading.advice}")
    unit = next((reading.unit for reading in by_reading if reading is not None and reading.unit), "UNIT")
    return "\n".join([
        *lines, "Nothing is refused, but embeddings of such values mean little. Give the unit that they are in "
        f"(`--units [{modality.key}={unit}]`, `units=`, `units:` in YAML), convert them, or give other statistics "
        "(`--statistics`, `statistics=`).",
    ])  # fmt: skip
