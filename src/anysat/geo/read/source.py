"""An opened source: the layers, dates and bands of it that a modality uses, read window by window.

Only what touches a window is read. Sources are opened by `anysat.geo.read.sources`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from odc.geo import CRS
from odc.geo.geobox import GeoBox

from anysat.dates import Dates
from anysat.errors import EmptySourceError, some
from anysat.geo.degrees import turns_of
from anysat.geo.grid import Footprint, boundary_in
from anysat.geo.read.descriptions import Between
from anysat.geo.read.matching import Chosen
from anysat.geo.read.quality import Clear, Quality
from anysat.geo.read.resample import place
from anysat.modalities import Modality
from anysat.observation import Observation

_MARGIN_PX, _MARGIN_FRAC = 0.5, 0.01
"""Margin around a window, in source pixels and as a fraction of the window, because edges bend between projections."""


Attempt = Callable[[Callable[[], Any]], Any]
"""A function that performs a read and returns its result, or None if it should count as nodata."""


def once(read: Callable[[], Any]) -> Any:
    """Read once; errors are raised."""
    return read()


@dataclass(frozen=True, eq=False, kw_only=True)
class Source:
    """An opened input for a modality. Several threads may observe it at once."""

    name: str
    """Name in messages."""
    modality: Modality
    """The modality that it is observed as."""
    chosen: tuple[Chosen, ...]
    """The layers that are used, with their bands and dates."""
    dates: Dates | None
    """Dates of a series. For an image, the date it was taken, if known."""
    units: Mapping[int, str]
    """Unit of each of the modality's bands that the source has, by the band's index."""
    notes: tuple[str, ...] = ()
    """What a user should know: unused bands, scale factors, where units come from."""
    doubts: tuple[str, ...] = ()
    """Those of the notes that may point to a mistake: bands that it lacks or that are not used, masks not applied."""
    quality: Quality | None = None
    """How it is masked, or None."""

    @property
    def footprint(self) -> Footprint:
        """The ground that it covers."""
        boxes = dict.fromkeys(chosen.layer.geobox for chosen in self.chosen if chosen.layer.geobox is not None)
        shape_px = self.chosen[0].layer.shape_px
        return Footprint(name=self.name, modality=self.modality, geoboxes=tuple(boxes), shape_px=shape_px)

    @property
    def bands(self) -> tuple[str, ...]:
        """Names of the bands that it has, in the modality's order."""
        return tuple(self.modality.band_names[index] for index in sorted(self.units))

    def within(self, between: Between | None) -> Source:
        """Return the source with only the dates in a range of days. A single image stays unchanged.

        Raises:
            EmptySourceError: None of its dates is in the range.
        """
        if between is None or not self.modality.is_temporal or self.dates is None:
            return self
        kept = np.flatnonzero(_inside(self.dates, between))
        if not len(kept):
            first, last = min(self.dates), max(self.dates)
            there = str(first) if first == last else f"{len(self.dates)} dates from {first} to {last}"
            raise EmptySourceError(
                self.name, f"none of its dates is between {between[0]} and {between[1]}", f"it has {there}: "
                f"{some(np.unique(self.dates).tolist())}",
            )  # fmt: skip
        return self._taking(kept)

    def without(self, dates: Dates) -> Source | None:
        """Return the source without these dates; None if no date is left."""
        assert self.dates is not None, self.name
        kept = np.flatnonzero(~np.isin(self.dates, dates))
        return self._taking(kept) if len(kept) else None

    def _taking(self, kept: NDArray[np.intp]) -> Source:
        """Return the source with only some of its dates, given by their places."""
        assert self.dates is not None, self.name
        place_of = {int(step): place for place, step in enumerate(kept)}
        chosen = []
        for one in self.chosen:
            some_times = one.taking([place for place, step in enumerate(one.steps) if step in place_of])
            if some_times.times:
                chosen.append(some_times._replace(steps=tuple(place_of[step] for step in some_times.steps)))
        return replace(self, chosen=tuple(chosen), dates=self.dates[kept])

    def touching(self, geobox: GeoBox, between: Between | None = None) -> list[Chosen]:
        """Return the layers that a window needs, in order of precedence. Opens no files."""
        touched = np.zeros(len(self.chosen), dtype=bool)
        for crs, places, bounds, margins in self._bounds:
            touched[places] = crs is None or _touches(geobox, crs, bounds, margins)
        found = [self.chosen[place] for place in np.flatnonzero(touched)]
        if between is None or self.dates is None or not self.modality.is_temporal:
            return found
        inside = _inside(self.dates, between)
        found = [one.taking([place for place, step in enumerate(one.steps) if inside[step]]) for one in found]
        return [one for one in found if one.times]

    def observe(
        self, geobox: GeoBox, *, between: Between | None = None, attempt: Attempt = once
    ) -> tuple[Observation, str]:
        """Read the source on a grid with the modality's pixel size.

        Where several layers of one date overlap, each pixel is taken from the first one with valid data, in the order
        of their names (for STAC, of time and name). The same holds for scenes of one day in a cube, in the order of its
        time axis. Dates of a series without a valid pixel on the grid are left out. If none is left, the series has one
        date without a valid pixel.

        Args:
            geobox: The grid.
            between: First and last day to read, both included; None for all. An image is read whatever its date.
            attempt: Performs each read, of one file at a time. It may retry, or return None for nodata.

        Returns:
            The observation, and a description of how its pixels were made.

        Raises:
            SourceError: The pixels cannot be read.
        """
        order = sorted(self.units)
        wanted = self._clear(geobox, self.touching(geobox, between), attempt)
        steps = sorted({step for one, _ in wanted for step in one.steps}) or [-1]
        place_of = {step: place for place, step in enumerate(steps)}
        values = np.full((len(steps), len(order), *geobox.shape), np.nan, dtype=np.float32)
        ways: dict[str, None] = {}
        for one, clear in wanted:
            places, targets = [place_of[step] for step in one.steps], [order.index(target) for target in one.targets]
            missing = np.isnan(values[np.ix_(places, targets)])
            if missing.any():
                read = attempt(partial(_pixels, one, geobox))
                if read is None:
                    continue
                pixels, how = read
                ways[how] = None
                missing &= True if clear is None else clear[:, None]
                for place, own, empty in zip(places, pixels, missing, strict=True):  # several may be one day
                    here = values[place, targets]
                    values[place, targets] = np.where(empty & np.isnan(here), own, here)
        dates = None
        if self.modality.is_temporal:
            kept = np.flatnonzero(np.isfinite(values).any(axis=(1, 2, 3)))
            kept = kept if len(kept) else np.array([0])
            dates = self._dates_at([steps[place] for place in kept], between)
            values = values if len(kept) == len(values) else values[kept]
        observation = Observation.of(
            self.modality,
            values if self.modality.is_temporal else values[0],
            bands=[self.modality.band_names[target] for target in order],
            units=[self.units[target] for target in order],
            dates=dates,
        )
        return observation, " and ".join(ways) or "it has no data here"

    def _dates_at(self, steps: Sequence[int], between: Between | None) -> Dates:
        """Return the dates of some steps. If nothing was read, it is the first requested or the first existing day."""
        assert self.dates is not None, self.name
        if steps == [-1]:
            return np.array([min(self.dates) if between is None else between[0]], "datetime64[D]")
        return self.dates[list(steps)]

    def _clear(
        self, geobox: GeoBox, found: Sequence[Chosen], attempt: Attempt
    ) -> list[tuple[Chosen, NDArray[np.bool_] | None]]:
        """Return what to read, without dates that are masked in the whole window, and where it is clear."""
        if self.quality is None:
            return [(one, None) for one in found]
        clear = Clear(self.quality, geobox)
        kept: list[tuple[Chosen, NDArray[np.bool_] | None]] = []
        for one in found:
            seen = attempt(partial(clear.of, one.screens, one.times))
            if seen is None:
                continue
            places = np.flatnonzero(seen.any(axis=(1, 2)))
            if len(places):
                kept.append((one.taking(places.tolist()), seen[places]))
        return kept

    @cached_property
    def _bounds(self) -> list[tuple[CRS | None, NDArray[np.intp], NDArray[np.float64], NDArray[np.float64]]]:
        """Places in `chosen`, bounds (left bottom right top) and margins, by coordinate reference system."""
        by_crs: dict[CRS | None, list[int]] = {}
        for number, (layer, *_) in enumerate(self.chosen):
            by_crs.setdefault(None if layer.geobox is None else layer.geobox.crs, []).append(number)
        found = []
        for crs, numbers in by_crs.items():
            boxes = [box for number in numbers if (box := self.chosen[number].layer.geobox) is not None]
            bounds = np.array([tuple(box.boundingbox.bbox) for box in boxes])
            margins = np.array([_MARGIN_PX * abs(box.affine.determinant) ** 0.5 for box in boxes])
            found.append((crs, np.array(numbers), bounds, margins))
        return found


def _inside(dates: Dates, between: Between) -> NDArray[np.bool_]:
    return (dates >= between[0]) & (dates <= between[1])


def _touches(
    geobox: GeoBox, crs: CRS, bounds: NDArray[np.float64], margins: NDArray[np.float64]
) -> NDArray[np.bool_] | bool:
    """Return which of several boxes a window may touch. A few too many do no harm."""
    x, y = boundary_in(geobox, crs)
    seen = np.isfinite(x) & np.isfinite(y)
    if not seen.all():  # beyond what this system can show
        return bool(seen.any())
    x, turns = turns_of(crs, x)
    margins = margins + _MARGIN_FRAC * max(np.ptp(x), np.ptp(y))
    left, bottom, right, top = bounds.T
    beside = np.all([(x.max() + turn + margins < left) | (x.min() + turn - margins > right) for turn in turns], axis=0)
    return ~(beside | (y.max() + margins < bottom) | (y.min() - margins > top))


def _pixels(chosen: Chosen, geobox: GeoBox) -> tuple[NDArray[np.float32], str]:
    layer = chosen.layer
    if layer.geobox is None:  # lies at the tile's corner, see `plan_grid`
        layer = replace(layer, geobox=GeoBox(layer.shape_px, geobox.affine, geobox.crs))
        return place(layer, geobox, chosen.times, chosen.bands)[0], "centred"
    return place(layer, geobox, chosen.times, chosen.bands)
