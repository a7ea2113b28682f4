"""What `check` looks at: facts of each sampled tile and file, small enough to keep for many of them.

Pixels are kept as a seeded sample of whole spectra, so that a rule about a dataset sees all its tiles at once.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from anysat.batch import Tile
from anysat.data.base import DatasetRecord, Samples
from anysat.data.layout import DatasetFolder
from anysat.modalities import Modality, band_key
from anysat.observation import Observation

SPECTRA_PER_TILE = 2000
"""Pixels (with their date) kept of one modality of one tile."""
FLOOR_PERCENT = 5.0
"""Percentile of a band on a date that stands for its dark pixels."""
FLOOR_PIXELS = 1024
"""Pixels of each date, evenly spread, from which it is taken."""
NODATA_NUMBERS = (-9999.0, -32768.0)
"""Numbers that stand for no data in many files, and are no measurement."""
MAX_NUMBER = 1e38
"""Beyond it lie the ends of 32-bit numbers, which stand for no data as well."""


@dataclass(frozen=True, kw_only=True)
class Hit:
    """One place where a rule is broken; hits of one subject become one finding."""

    subject: str
    """What it is about: an entry, a modality and band, a target."""
    message: str
    """What came, what was expected, what to do."""
    example: str = ""
    """The sample or file; empty where it is the dataset as a whole."""


@dataclass(frozen=True, kw_only=True)
class SeenFile:
    """One entry of one file, held against the layout table."""

    entry: str
    path: str
    problem: str = ""
    """`missing`, `unreadable`, or empty."""
    message: str = ""
    dtype: str = ""
    shape: tuple[int, ...] | None = None
    is_part: bool = False
    """True when only the first row of a large file was read."""
    nan_frac: float = 0.0


@dataclass(frozen=True, kw_only=True, eq=False)
class SeenModality:
    """One modality of one tile."""

    modality: Modality
    units: tuple[str, ...]
    shape_px: tuple[int, int]
    dates: NDArray[np.datetime64] | None
    valid_frac: NDArray[np.float64]
    """(band) share of valid values."""
    is_constant: NDArray[np.bool_]
    """(band) all valid values are the same."""
    top_frac: NDArray[np.float64]
    """(band) share of valid values at the band's greatest."""
    num_levels: NDArray[np.int64]
    """(band) different values in the kept spectra."""
    same_bands: tuple[tuple[int, int], ...]
    """Pairs of bands with the same values everywhere."""
    shared: tuple[float, float]
    """The number that most pixels have in all of their bands, and the share of pixels that have it."""
    blank_frac: float
    """Share of dates on which every valid value is the same."""
    floors: NDArray[np.float32]
    """(time band) dark pixels of each date, in the band's unit; NaN where nothing is valid."""
    spectra: NDArray[np.float32]
    """(pixel band) kept values, NaN where invalid."""
    digest: str
    """The same for the same values; empty where there is nothing to compare."""


@dataclass(frozen=True, kw_only=True, eq=False)
class SeenTarget:
    """One target of one tile."""

    dtype: str
    shape: tuple[int, ...]
    values: NDArray[Any]
    """Different values."""


@dataclass(frozen=True, kw_only=True, eq=False)
class SeenTile:
    """One tile."""

    id: str
    split: str
    geobox: Any
    modalities: Mapping[str, SeenModality]
    targets: Mapping[str, SeenTarget]
    notes: tuple[str, ...] = ()
    """What opening its files told."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Evidence:
    """Everything the rules may look at."""

    record: DatasetRecord
    folder: DatasetFolder
    samples: Samples
    """All samples that were asked for."""
    tiles: tuple[SeenTile, ...]
    """Those that were read."""
    files: tuple[SeenFile, ...]
    unread: tuple[Hit, ...]
    """Samples, or tables of them, that could not be read although their files could."""
    is_complete: bool
    """True when every sample was read."""
    num_looked_up: int = 0
    """Samples of which every required file was looked up."""
    split: str = "all"
    """What was asked for."""

    @property
    def is_own(self) -> bool:
        """Whether it is a user's own data, described in a YAML file."""
        return self.record.is_own

    @property
    def described_in(self) -> str:
        """Where what is known of the files is written, for advice."""
        return "the YAML file" if self.is_own else "the layout table"

    @cached_property
    def split_of(self) -> Mapping[str, str]:
        """`train`, `val` or `test`, by member of the table's own splits."""
        return {member: name for name, members in self.record.splits.items() for member in members}

    def each(self) -> Iterator[tuple[SeenTile, SeenModality]]:
        """Every modality of every tile."""
        for tile in self.tiles:
            for seen in tile.modalities.values():
                yield tile, seen

    @cached_property
    def by_modality(self) -> Mapping[str, list[tuple[SeenTile, SeenModality]]]:
        """The same, by modality; those without a valid value are left out."""
        found: dict[str, list[tuple[SeenTile, SeenModality]]] = {}
        for tile, seen in self.each():
            if seen.valid_frac.any():
                found.setdefault(seen.modality.key, []).append((tile, seen))
        return found

    def spectra(self, key: str) -> NDArray[np.float32]:
        """(pixel band) kept values of a modality over all tiles, the same number of each tile at most."""
        return np.concatenate([seen.spectra for _, seen in self.by_modality[key]])

    def stored_bands(self, modality: Modality) -> list[int]:
        """Indices of the bands that some entry of the layout holds."""
        stored = {
            band_key(name)
            for entry in self.folder.layout.entries
            if entry.modality == modality.key
            for name in entry.bands
        }
        return [index for index, band in enumerate(modality.bands) if band.match_keys & stored]


def see_tile(tile: Tile, sample_id: str, split: str, rng: np.random.Generator) -> SeenTile:
    """The facts of one tile."""
    return SeenTile(
        id=sample_id,
        split=split,
        geobox=tile.geobox,
        modalities={key: _see_modality(observation, rng) for key, observation in tile.observations.items()},
        targets={
            name: SeenTarget(
                dtype=np.asarray(array).dtype.name, shape=np.asarray(array).shape, values=np.unique(np.asarray(array))
            )
            for name, array in tile.targets.items()
        },
    )


def _see_modality(observation: Observation, rng: np.random.Generator) -> SeenModality:
    bands = observation.values.shape[-3]
    axes = tuple(axis for axis in range(observation.valid.ndim) if axis != observation.valid.ndim - 3)
    low, high = _ends(observation.values, observation.valid, axes)
    counts = observation.valid.sum(axis=axes)
    values = np.moveaxis(observation.values, -3, -1).reshape(-1, bands)
    valid = np.moveaxis(observation.valid, -3, -1).reshape(-1, bands)
    at_top = ((values == high) & valid).sum(axis=0)
    kept = _kept(valid, rng)
    spectra = np.where(valid[kept], values[kept], np.nan)
    digest = hashlib.sha256(observation.values.tobytes()).hexdigest()
    return SeenModality(
        modality=observation.modality,
        units=observation.units,
        shape_px=observation.shape_px,
        dates=observation.dates,
        valid_frac=counts / max(1, len(values)),
        is_constant=(low == high) & (counts > 1),
        top_frac=at_top / np.maximum(1, counts),
        num_levels=np.array([len(np.unique(band[np.isfinite(band)])) for band in spectra.T]),
        same_bands=_same_bands(observation, low, high),
        shared=_shared(observation.modality, values, valid),
        blank_frac=_blank_frac(observation),
        floors=_floors(observation),
        spectra=spectra,
        digest=digest if (low < high).any() else "",
    )


def _ends(
    values: NDArray[np.float32], valid: NDArray[np.bool_], axes: tuple[int, ...]
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Least and greatest valid value; infinity and minus infinity where there is none."""
    low = np.min(values, axis=axes, where=valid, initial=np.inf)
    return low, np.max(values, axis=axes, where=valid, initial=-np.inf)


def _kept(valid: NDArray[np.bool_], rng: np.random.Generator) -> NDArray[np.int64]:
    """Rows of whole spectra where there are any, else of partial ones."""
    whole = np.flatnonzero(valid.all(axis=1) if valid.all(axis=1).any() else valid.any(axis=1))
    return whole if len(whole) <= SPECTRA_PER_TILE else np.sort(rng.choice(whole, SPECTRA_PER_TILE, replace=False))


def _same_bands(
    observation: Observation, low: NDArray[np.float32], high: NDArray[np.float32]
) -> tuple[tuple[int, int], ...]:
    count = len(low)
    pairs = [
        (first, second)
        for first in range(count)
        for second in range(first + 1, count)
        if low[first] == low[second] < high[first] == high[second]
    ]
    planes = np.moveaxis(observation.values, -3, 0)
    return tuple(pair for pair in pairs if np.array_equal(planes[pair[0]], planes[pair[1]]))


def _shared(modality: Modality, values: NDArray[np.float32], valid: NDArray[np.bool_]) -> tuple[float, float]:
    """The number that most of the pixels (pixel band) have in all of their bands, and their share.

    Of a single band only numbers that stand for no data in many files count.
    """
    used = [index for index, band in enumerate(modality.bands) if band.ratio_of is None and valid[:, index].any()]
    whole = values[valid[:, used].all(axis=1)][:, used] if used else values[:0]
    same = is_nodata_number(whole[:, 0]) if len(used) == 1 else (whole == whole[:, :1]).all(axis=1)
    numbers, counts = np.unique(whole[same, :1], return_counts=True)
    return (float(numbers[counts.argmax()]), float(counts.max() / len(whole))) if len(counts) else (0.0, 0.0)


def is_nodata_number(values: NDArray[Any]) -> NDArray[np.bool_]:
    """Which numbers stand for no data in many files."""
    return np.isin(values, NODATA_NUMBERS) | (np.abs(values) > MAX_NUMBER)


def _blank_frac(observation: Observation) -> float:
    if observation.dates is None or np.prod(observation.shape_px) < 2:
        return 0.0
    low, high = _ends(observation.values, observation.valid, (-3, -2, -1))
    return float((low == high).mean())


def _floors(observation: Observation) -> NDArray[np.float32]:
    """Dark pixels of each date and band: a low percentile of evenly spread pixels."""
    values, valid = (
        part.reshape(-1, part.shape[-3], part.shape[-2] * part.shape[-1])
        for part in (observation.values, observation.valid)
    )
    step = max(1, values.shape[-1] // FLOOR_PIXELS)
    ordered = np.sort(np.where(valid[..., ::step], values[..., ::step], np.inf), axis=-1)
    counts = np.isfinite(ordered).sum(axis=-1, keepdims=True)
    places = (FLOOR_PERCENT / 100 * (counts - 1).clip(0)).astype(np.int64)
    floors = np.take_along_axis(ordered, places, axis=-1)[..., 0]
    return np.where(np.isfinite(floors), floors, np.nan).astype(np.float32)
