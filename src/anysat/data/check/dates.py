"""Checks of the dates of series: after the launch of their sensor, in order, and not one date for all."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from anysat.data.check.evidence import Evidence, Hit
from anysat.modalities import Modality

FIRST_DATES = {
    "Sentinel-1": "2014-04-03",
    "Sentinel-2": "2015-06-23",
    "Landsat 8": "2013-02-11",
    "Landsat 7": "1999-04-15",
    "ALOS-2": "2014-05-24",
    "MODIS": "1999-12-18",
    "PlanetScope": "2013-04-19",
    "Harmonized Landsat Sentinel-2": "2013-02-11",
}
"""Launch date by the beginning of a sensor's name (operators' mission pages). Nothing can be older."""
MAX_BACKWARD_FRAC = 0.1
"""Share of steps back in time accepted in a series: sorted series have none, shuffled ones go back on half of them."""
MAX_REPEATED_FRAC = 0.55
"""Share of repeated dates accepted in a series. Two slices of one pass give at most 0.5 (TreeSatAI-TS)."""


def first_date(modality: Modality) -> np.datetime64:
    """Return the launch of a sensor; by default 1970-01-02, because empty fields become 1970-01-01."""
    known = (date for name, date in FIRST_DATES.items() if modality.sensor.startswith(name))
    return np.datetime64(next(known, "1970-01-02"), "D")


def impossible_dates(evidence: Evidence) -> Iterator[Hit]:
    """Dates before the launch of the sensor, or after today."""
    tomorrow = np.datetime64("today", "D") + 1
    for tile, seen in evidence.each():
        if seen.dates is None:
            continue
        begin = first_date(seen.modality)
        for odd, expected in (
            (seen.dates[seen.dates < begin], f"{begin} or later, when {seen.modality.sensor} was launched"),
            (seen.dates[seen.dates > tomorrow], "no date in the future"),
        ):
            if len(odd):
                yield Hit(
                    subject=seen.modality.key,
                    example=tile.id,
                    message=f"{len(odd)} of {len(seen.dates)} dates such as {odd[0]}, expected {expected}; "
                    "check how dates are stored: the year, the origin of day numbers, day or month first",
                )


def unordered_dates(evidence: Evidence) -> Iterator[Hit]:
    """Series whose dates go back in time: dates and images may not belong together."""
    for tile, seen in evidence.each():
        if seen.dates is None or len(seen.dates) < 3:
            continue
        backward = float((np.diff(seen.dates).astype(np.int64) < 0).mean())
        if backward > MAX_BACKWARD_FRAC:
            yield Hit(subject=seen.modality.key, example=tile.id,
                      message=f"dates go back in time on {backward:.0%} of the steps, expected in order; check that "
                      "each date belongs to its image")  # fmt: skip


def repeated_dates(evidence: Evidence) -> Iterator[Hit]:
    """Series that repeat the same date many times."""
    for tile, seen in evidence.each():
        if seen.dates is None or len(seen.dates) < 3:
            continue
        repeated = 1 - len(np.unique(seen.dates)) / len(seen.dates)
        if repeated > MAX_REPEATED_FRAC:
            yield Hit(subject=seen.modality.key, example=tile.id,
                      message=f"{len(seen.dates)} time steps have {len(np.unique(seen.dates))} different dates, "
                      "expected one each; was one date written for all?")  # fmt: skip
