"""Checks for the offset of 1000 that Sentinel-2 products carry since processing baseline 04.00.

Bright ground and clouds are bright too, so the level of one band proves nothing. A step in time must therefore be the
same in all bands, and a level that is merely high is only a warning.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from anysat.data.check.evidence import Evidence, Hit, SeenModality, SeenTile

Seen = list[tuple[SeenTile, SeenModality]]

SENSOR = "Sentinel-2"
"""The sensor whose products carry the offset."""
OFFSET_FROM = np.datetime64("2022-01-25")
"""First day of processing baseline 04.00, which adds 1000. The older archive was reprocessed likewise from 2023 on."""
MIN_STEP, MAX_STEP = 700.0, 1300.0
"""Range of steps of a dark band (reflectance times 10 000) that are taken for the offset of 1000."""
MIN_OTHER_STEP = 300.0
"""Least step of every other band: the offset less what a season may take away, as in the infrared of plants."""
RAISED, MAX_RAISED = 900.0, 1700.0
"""Dark pixels of data with the offset are above the first; those of dark bands are below the second."""
LEVEL_PERCENT = 20.0
"""Percentile over dates that gives the cloudless level of a band."""
MIN_DATES, MIN_SPAN_DAYS = 5, 90
"""Least number of dates, and of days they span, on each side of a step: a spell of clouds or snow is no step."""


def _carriers(evidence: Evidence) -> Iterator[tuple[str, Seen, list[int]]]:
    """Yield the modalities that may carry the offset, with their stored bands in its unit, by wavelength."""
    for key, seen in evidence.by_modality.items():
        modality, units = seen[0][1].modality, seen[0][1].units
        if modality.sensor.startswith(SENSOR):
            known: NDArray[np.bool_] = np.isfinite(evidence.spectra(key))
            there = np.atleast_1d(known.any(axis=0))
            bands = [i for i, unit in enumerate(units) if unit == "reflectance_1e4" and there[i]]
            if len(bands) > 1:
                waves = [band.wavelength_nm or 0.0 for band in modality.bands]
                yield key, seen, sorted(bands, key=waves.__getitem__)


def offset_steps(evidence: Evidence) -> Iterator[Hit]:
    """All bands rise by about 1000 from one date on: the offset of newer Sentinel-2 products was left in."""
    for key, seen, bands in _carriers(evidence):
        for day in _candidates(seen, bands):
            steps = [(tile.id, step) for tile, one in seen if (step := _step(one, bands, day)) is not None]
            stepped = [example for example, is_offset in steps if is_offset]
            if stepped and 2 * len(stepped) >= len(steps):
                for example in stepped:
                    yield Hit(subject=key, example=example, message=f"from {day} on all bands, dark ones too, are "
                              f"about 1000 higher than before in {len(stepped)} of {len(steps)} tiles: an offset was "
                              "left in; subtract what processing baseline 04.00 (25 January 2022) added, from those "
                              "dates only")  # fmt: skip
                break


def _candidates(seen: Seen, bands: list[int]) -> list[np.datetime64]:
    """Return the days to try: the first of the baseline, and the one after the last dark date of all tiles."""
    dark = [one.dates[_darkest(one, bands) < RAISED] for _, one in seen if one.dates is not None]
    last = max((dates.max() for dates in dark if len(dates)), default=None)
    return [OFFSET_FROM] if last is None else [OFFSET_FROM, last + 1]


def _darkest(one: SeenModality, bands: list[int]) -> NDArray[np.float32]:
    """Return the level (time) of the darkest band; NaN, which is never below anything, if nothing is valid."""
    floors = one.floors[:, bands]
    least = np.where(np.isfinite(floors), floors, np.inf).min(axis=1)
    return np.where(np.isfinite(least), least, np.nan)


def _step(one: SeenModality, bands: list[int], day: np.datetime64) -> bool | None:
    """Whether a tile has the offset from a day on; None if its dates do not allow a decision."""
    if one.dates is None:
        return None
    floors = one.floors[:, bands]
    sides = [np.isfinite(floors).all(axis=1) & side for side in (one.dates < day, one.dates >= day)]
    for side in sides:
        dates = one.dates[side]
        if len(dates) < MIN_DATES or (dates.max() - dates.min()).astype(int) < MIN_SPAN_DAYS:
            return None
    before, after = (np.percentile(floors[side], LEVEL_PERCENT, axis=0) for side in sides)
    steps = after - before
    dark = np.argsort(before)[: (len(bands) + 1) // 2]
    return bool((steps > MIN_OTHER_STEP).all() and ((steps[dark] > MIN_STEP) & (steps[dark] < MAX_STEP)).all())


def raised_levels(evidence: Evidence) -> Iterator[Hit]:
    """Dark pixels of visible and short-wave bands alike are at about 1000: the Sentinel-2 offset may be left in."""
    for key, seen, bands in _carriers(evidence):
        floors = np.concatenate([one.floors[:, bands] for _, one in seen])
        if _is_raised(floors):
            yield Hit(subject=key, message=f"dark pixels are at {_levels(floors)} by wavelength; {_advice(seen)}")
            continue
        for tile, one in seen:
            if _is_raised(one.floors[:, bands]):
                yield Hit(subject=key, example=tile.id,
                          message=f"dark pixels of these tiles are at {_levels(one.floors[:, bands])} by wavelength, "
                          f"those of others are lower; {_advice([(tile, one)])}")  # fmt: skip


def _is_raised(floors: NDArray[np.float32]) -> bool:
    """Whether cloudless dates look as if 1000 had been added, also to the longest wavelength.

    Without the offset, ground that is bright in the visible is far brighter in the short-wave infrared; snow and clouds
    are far brighter in the visible.
    """
    known = floors[np.isfinite(floors).all(axis=1)]
    if len(known) < 2 * MIN_DATES:
        return False
    levels = np.percentile(known, 5, axis=0)
    near = levels < MAX_RAISED
    return bool((levels >= RAISED).all() and near[-1] and 2 * near.sum() >= len(levels))


def _levels(floors: NDArray[np.float32]) -> str:
    known = floors[np.isfinite(floors).all(axis=1)]
    return " ".join(f"{level:.0f}" for level in np.percentile(known, 5, axis=0))


def _advice(seen: Seen) -> str:
    new = any(one.dates is not None and (one.dates >= OFFSET_FROM).any() for _, one in seen)
    carrier = "products of processing baseline 04.00 and later (from 25 January 2022)" if new else (
        "archive products that were processed again with baseline 05.00 (dates before 25 January 2022)")  # fmt: skip
    return (f"that fits an offset of 1000 left in, as {carrier} carry it, or bright ground. Look at the processing "
            "baseline of the products, and subtract 1000 only if it says so")  # fmt: skip
