"""An opened source: which of its layers, dates and bands a modality takes, read window by window.

Only what touches the window is read. Opening is in `anysat.geo.sources`.
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

from anysat.errors import EmptySourceError
from anysat.geo.descriptions import Between
from anysat.geo.grid import Footprint, boundary_in
from anysat.geo.matching import Chosen, some
from anysat.geo.quality import Clear, Quality
from anysat.geo.resample import place
from anysat.modalities import Modality
from anysat.observation import Dates, Observation

_MARGIN_PX, _MARGIN_FRAC = 0.5, 0.01
"""Source pixels and share of the window around it within which a layer counts as touching: edges bend in other maps."""


Attempt = Callable[[Callable[[], Any]], Any]
"""Makes a read and gives what it gave, or None where it is to count as nodata."""


def once(read: Callable[[], Any]) -> Any:
    """An attempt that fails when the read does."""
    return read()


@dataclass(frozen=True, eq=False, kw_only=True)
class Source:
    """An opened input: what it holds for its modality, and where. Several threads may observe it at once."""

    name: str
    modality: Modality
    chosen: tuple[Chosen, ...]
    dates: Dates | None
    """Dates of a series; of an image the one it was taken at, where known."""
    units: Mapping[int, str]
    """Unit of each of the modality's bands that the source has."""
    notes: tuple[str, ...] = ()
    """What a user should know: unused bands, scale factors, where units come from."""
    quality: Quality | None = None
    """What masks it."""

    @property
    def footprint(self) -> Footprint:
        """Where it lies."""
        boxes = dict.fromkeys(chosen.layer.geobox for chosen in self.chosen if chosen.layer.geobox is not None)
        shape_px = self.chosen[0].layer.shape_px
        return Footprint(name=self.name, modality=self.modality, geoboxes=tuple(boxes), shape_px=shape_px)

    @property
    def bands(self) -> tuple[str, ...]:
        """Bands it has, in the modality's order."""
        return tuple(self.modality.band_names[index] for index in sorted(self.units))

    def within(self, between: Between | None) -> Source:
        """The same source with no other dates than these; an image, which is no series, stays as it is.

        Raises:
            EmptySourceError: none of its dates is among them.
        """
        if between is None or not self.modality.is_temporal or self.dates is None:
            return self
        kept = np.flatnonzero(_inside(self.dates, between))
        if not len(kept):
            first, last = min(self.dates), max(self.dates)
            there = str(first) if first == last else f"{len(self.dates)} dates from {first} to {last}"
            raise EmptySourceError(
                self.name, f"no date of it is between {between[0]} and {between[1]}", f"it has {there}: "
                f"{some(np.unique(self.dates).tolist())}",
            )  # fmt: skip
        return self._taking(kept)

    def without(self, dates: Dates) -> Source | None:
        """The same source with no other dates than those that are not among these; None where there is no other."""
        assert self.dates is not None, self.name
        kept = np.flatnonzero(~np.isin(self.dates, dates))
        return self._taking(kept) if len(kept) else None

    def _taking(self, kept: NDArray[np.intp]) -> Source:
        """Some of its dates, by their places."""
        assert self.dates is not None, self.name
        place_of = {int(step): place for place, step in enumerate(kept)}
        chosen = []
        for one in self.chosen:
            some_times = one.taking([place for place, step in enumerate(one.steps) if step in place_of])
            if some_times.times:
                chosen.append(some_times._replace(steps=tuple(place_of[step] for step in some_times.steps)))
        return replace(self, chosen=tuple(chosen), dates=self.dates[kept])

    def touching(self, geobox: GeoBox, between: Between | None = None) -> list[Chosen]:
        """What of it a window needs, in the order in which it counts; opens nothing."""
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
        """Read it on a grid of the modality's pixel size; and how its pixels got there.

        Where several layers of one date overlap, the first in name (STAC: time and name) order that has valid data
        counts, pixel by pixel; so do scenes of one day in a cube, in the order of its time axis. Dates of a series
        without a valid pixel here are left out; where none remains, there is one date without a valid pixel.

        Args:
            geobox: the grid.
            between: first and last day to read, both included; None for all. An image is read whatever its date.
            attempt: makes each read, one file at a time; it may try again, or give None where there is to be nodata.

        Raises:
            SourceError: the pixels cannot be read.
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
                for place, own, empty in zip(places, pixels, missing, strict=True):  # of which several may be one day
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
        return observation, " and ".join(ways) or "nothing of it lies here"

    def _dates_at(self, steps: Sequence[int], between: Between | None) -> Dates:
        """Dates of these steps; where nothing was read, the first day asked for or the first there is."""
        assert self.dates is not None, self.name
        if steps == [-1]:
            return np.array([min(self.dates) if between is None else between[0]], "datetime64[D]")
        return self.dates[list(steps)]

    def _clear(
        self, geobox: GeoBox, found: Sequence[Chosen], attempt: Attempt
    ) -> list[tuple[Chosen, NDArray[np.bool_] | None]]:
        """What is read, without the times that are masked all over the window, and where it is clear."""
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
        """Places in `chosen`, bounds (left bottom right top) and margins, by reference system."""
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
    """Which of several boxes a window may touch; a few too many do no harm."""
    x, y = boundary_in(geobox, crs)
    seen = np.isfinite(x) & np.isfinite(y)
    if not seen.all():  # beyond what this system can show
        return bool(seen.any())
    margins = margins + _MARGIN_FRAC * max(np.ptp(x), np.ptp(y))
    left, bottom, right, top = bounds.T
    beside = (x.max() + margins < left) | (x.min() - margins > right)
    return ~(beside | (y.max() + margins < bottom) | (y.min() - margins > top))


def _pixels(chosen: Chosen, geobox: GeoBox) -> tuple[NDArray[np.float32], str]:
    layer = chosen.layer
    if layer.geobox is None:  # lies at the tile's corner, see `plan_grid`
        layer = layer.placed_at(geobox.affine.c, geobox.affine.f, geobox.affine.a, geobox.crs)
        return place(layer, geobox, chosen.times, chosen.bands)[0], "centred"
    return place(layer, geobox, chosen.times, chosen.bands)
