"""Quality layers: which numbers of a scene classification, flag bits or a mask mean that a pixel is invalid.

To add a product, add a record to `QUALITY_KINDS`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from odc.geo.geobox import GeoBox

from anysat.errors import RecordError, UnknownNameError
from anysat.geo.read.layers import Layer, band_index
from anysat.geo.read.resample import place
from anysat.modalities import Modality


@dataclass(frozen=True, kw_only=True)
class QualityKind:
    """How the quality layer of a product is read."""

    layers: tuple[str, ...]
    """Possible names of its layer."""
    invalid: tuple[int, ...]
    """Stored numbers, or bits counted from 0, that mark a pixel as invalid unless the user says otherwise."""
    has_bits: bool = False
    """Whether each bit is a flag; otherwise each number is a class."""


QUALITY_KINDS = {
    # Sentinel-2 scene classification: no data, saturated, cloud shadow, cloud (medium and high probability) and thin
    # cirrus are invalid; dark ground (2), unclassified (7) and snow (11) stay.
    "scl": QualityKind(layers=("SCL",), invalid=(0, 1, 3, 8, 9, 10)),
    # Landsat Collection 2: fill, dilated cloud, cirrus, cloud and cloud shadow are invalid; snow (5), water (7) stay.
    "qa_pixel": QualityKind(layers=("QA_PIXEL",), invalid=(0, 1, 2, 3, 4), has_bits=True),
    "values": QualityKind(layers=(), invalid=()),
    "bits": QualityKind(layers=(), invalid=(), has_bits=True),
}
"""Kinds of quality layers, by name."""


@dataclass(frozen=True, kw_only=True)
class Quality:
    """A layer that says which pixels are valid, date by date.

    Each pixel of the imagery takes the stored number under its centre; numbers are not interpolated. Ground that the
    layer does not cover is invalid, and so are dates that it lacks. A layer without dates holds for all dates.

    >>> Quality(kind="scl").is_clear(np.array([4.0, 8.0, np.nan])).tolist()
    [True, False, False]
    """

    kind: str = "values"
    """`scl` (Sentinel-2), `qa_pixel` (Landsat Collection 2), or `values` or `bits` for a layer of your own."""
    layer: str | None = None
    """Name of its band, asset or variable, a word in its file name, or the path of a raster or folder; None for the
    name that the kind is known by."""
    invalid: tuple[int, ...] = ()
    """Stored numbers (or bits, counted from 0) that mark invalid pixels, instead of those of the kind."""
    valid: tuple[int, ...] = ()
    """The only stored numbers that mark valid pixels. Give either this or `invalid`."""

    def __post_init__(self) -> None:
        if self.kind not in QUALITY_KINDS:
            raise UnknownNameError("kind of quality layer", self.kind, QUALITY_KINDS)
        for name in ("invalid", "valid"):
            given = getattr(self, name)
            is_list = isinstance(given, Iterable) and not isinstance(given, (str, bytes))
            numbers = tuple(given) if is_list else given
            if not is_list or not all(isinstance(one, int) and not isinstance(one, bool) for one in numbers):
                raise RecordError(f"quality, {name}", numbers, "a list of whole numbers")
            object.__setattr__(self, name, numbers)
        known = QUALITY_KINDS[self.kind]
        if self.valid and (self.invalid or known.has_bits):
            raise RecordError("quality, valid", self.valid, "nothing, since `invalid` or bits are given")
        if not (self.valid or self.invalid or known.invalid):
            raise RecordError("quality, invalid", self.invalid, f"the invalid numbers, for kind {self.kind!r}")
        if known.has_bits and not all(0 <= bit < 24 for bit in self.invalid):
            raise RecordError("quality, invalid", self.invalid, "bits from 0 to 23")
        if self.layer is None and not known.layers:
            raise RecordError("quality, layer", self.layer, f"the name or path of the layer, for kind {self.kind!r}")

    @property
    def names(self) -> tuple[str, ...]:
        """Possible names of its layer in the source."""
        return QUALITY_KINDS[self.kind].layers if self.layer is None else (self.layer,)

    def is_clear(self, stored: NDArray[np.float32]) -> NDArray[np.bool_]:
        """Return where stored numbers mark valid pixels. NaN never does."""
        known = np.isfinite(stored)
        if self.valid:
            return known & np.isin(stored, self.valid)
        if not QUALITY_KINDS[self.kind].has_bits:
            return known & ~np.isin(stored, self._marked)
        flags = np.where(known, stored, 0).astype(np.int64)
        return known & (flags & sum(1 << bit for bit in self._marked) == 0)

    @property
    def _marked(self) -> tuple[int, ...]:
        return self.invalid or QUALITY_KINDS[self.kind].invalid

    def __str__(self) -> str:
        said = f"only {list(self.valid)}" if self.valid else f"not {list(self._marked)}"
        return f"{self.kind} of {' or '.join(self.names)}, {said}"


class Found(NamedTuple):
    """A quality layer and its band that is used."""

    layer: Layer
    """The layer with its numbers as stored."""
    band: int


class Screen(NamedTuple):
    """A quality layer that masks another layer."""

    layer: Layer
    band: int
    time_of: tuple[int, ...]
    """For each time of the masked layer, the index of the quality layer's time; -1 if it has none."""


def find_quality(layers: Sequence[Layer], names: Sequence[str], modality: Modality) -> list[Found]:
    """Find quality layers by the names of their bands; only if there are none, by words in the names of files.

    Of several bands of one file or scene, those that fit best are taken: `SCL`, not `std_SCL`.
    Another band of the modality is never one, whatever its file is called.
    """

    def may_be(known: Sequence[str]) -> bool:
        others = (name for name in known if band_index(name, modality) is not None)
        return all(any(asked.upper().endswith(other.upper()) for asked in names) for other in others)

    own = [(layer, band) for layer in layers for band, known in enumerate(layer.bands) if may_be(known)]
    ranked = [(_rank(layer.spelled[band], names), layer, band) for layer, band in own]
    best: dict[str, float] = {}
    for rank, layer, _ in ranked:
        best[layer.scene] = min(best.get(layer.scene, math.inf), rank)
    found = [(layer, band) for rank, layer, band in ranked if rank == best[layer.scene] < math.inf]
    if not found:
        files = [(layer, band) for layer, band in own if len(layer.bands) == 1 and "::" not in layer.path]
        found = [(layer, band) for layer, band in files if any(_is_word(name, layer.scene) for name in names)]
    first = {id(layer): (layer, band) for layer, band in reversed(found)}
    return [Found(layer.as_stored(), band) for layer, band in reversed(first.values())]


def _rank(known: Sequence[str], names: Sequence[str]) -> float:
    """Return how well a band fits: the place of the first of its names that is asked for, infinity if none is."""
    asked = {name.upper() for name in names}
    return next((rank for rank, name in enumerate(known) if name.upper() in asked), math.inf)


def _is_word(name: str, stem: str) -> bool:
    """Return whether a name is a whole word of a file name, as in `T31UFS_20240301_SCL_20m`."""
    return re.search(rf"(?<![0-9A-Za-z]){re.escape(name)}(?![0-9A-Za-z])", stem, re.IGNORECASE) is not None


class Pairing:
    """The quality layers that belong to each layer: of its date, those of its scene, else of the most similar name."""

    def __init__(self, found: Sequence[Found]) -> None:
        self._found = found
        self._on: dict[object, list[tuple[int, int]]] = {}
        for number, (layer, _) in enumerate(found):
            dates = [None] if layer.dates is None else layer.dates.tolist()
            for time, date in enumerate(dates):
                self._on.setdefault(date, []).append((number, time))

    def screens(self, layer: Layer) -> tuple[Screen, ...]:
        """Return the masks of a layer. For each pixel, the first that covers it counts."""
        times_of: dict[int, list[int]] = {}
        for time, date in enumerate([None] if layer.dates is None else layer.dates.tolist()):
            for number, own_time in self._of_date(layer, time, date):
                times_of.setdefault(number, [-1] * layer.num_times)[time] = own_time
        return tuple(Screen(*self._found[number], tuple(times)) for number, times in sorted(times_of.items()))

    def _of_date(self, layer: Layer, time: int, date: object) -> list[tuple[int, int]]:
        """Return pairs of quality layer and its time that hold for a time of a layer, with each quality layer once."""
        known = self._on.get(date, []) or self._on.get(None, [])
        if same := [pair for pair in known if self._found[pair[0]].layer.scene == layer.scene]:
            known = same
        likeness = {number: _shared_start(self._found[number].layer.scene, layer.scene) for number, _ in known}
        best = [number for number, shared in likeness.items() if shared == max(likeness.values())]
        return [(number, self._time(number, [t for n, t in known if n == number], layer, time)) for number in best]

    def _time(self, number: int, times: Sequence[int], layer: Layer, time: int) -> int:
        """Choose among several times of one date: the one at the same index if both have the same dates."""
        own = self._found[number].layer.dates
        together = own is not None and layer.dates is not None and np.array_equal(own, layer.dates)
        return time if together else times[0]


def _shared_start(one: str, other: str) -> int:
    return next(
        (place for place, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other))
    )


class Clear:
    """The valid pixels of a grid. Each quality layer is read once, however many layers it masks."""

    def __init__(self, quality: Quality, geobox: GeoBox) -> None:
        self._quality, self._geobox = quality, geobox
        self._read: dict[tuple[int, tuple[int, ...]], NDArray[np.float32]] = {}

    def of(self, screens: Sequence[Screen], times: Sequence[int]) -> NDArray[np.bool_]:
        """Return validity (time row col) for some times of the masked layer."""
        stored = np.full((len(times), *self._geobox.shape), np.nan, np.float32)
        for screen in screens:
            told = [place for place, time in enumerate(times) if screen.time_of[time] >= 0]
            here = stored[told]
            if told and np.isnan(here).any():
                own_times = tuple(screen.time_of[times[place]] for place in told)
                stored[told] = np.where(np.isnan(here), self._numbers(screen, own_times), here)
        return self._quality.is_clear(stored)

    def _numbers(self, screen: Screen, times: tuple[int, ...]) -> NDArray[np.float32]:
        key = id(screen.layer), times
        if key not in self._read:
            self._read[key] = place(screen.layer, self._geobox, times, (screen.band,), "nearest")[0][:, 0]
        return self._read[key]
