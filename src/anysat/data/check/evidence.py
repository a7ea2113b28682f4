"""The facts of sampled tiles and files that `check` looks at, small enough to keep for many of them.

Pixels are kept as a seeded sample of whole spectra, so that a rule sees all tiles of a dataset at once.
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
"""Number of pixels, with their date, that are kept of a modality of a tile."""
FLOOR_PERCENT = 5.0
"""Percentile of a band on a date that represents its dark pixels."""
FLOOR_PIXELS = 1024
"""Number of pixels of each date, evenly spread, from which that percentile is taken."""
NODATA_NUMBERS = (-9999.0, -32768.0)
"""Numbers that mean no data in many files and are never measurements."""
MAX_NUMBER = 1e38
"""Size above which numbers are limits of 32-bit floats, which mean no data as well."""


@dataclass(frozen=True, kw_only=True)
class Hit:
    """A place where a rule is broken. Hits of one subject become one finding."""

    subject: str
    """What it is about: an entry, a modality and band, or a target."""
    message: str
    """What was found, what was expected, what to do."""
    example: str = ""
    """The sample or file; empty for the dataset as a whole."""


@dataclass(frozen=True, kw_only=True)
class SeenFile:
    """One entry of one file, compared with the layout table."""

    entry: str
    path: str
    problem: str = ""
    """`missing`, `unreadable`, or empty."""
    message: str = ""
    dtype: str = ""
    shape: tuple[int, ...] | None = None
    is_part: bool = False
    """True if only the first row of a large file was read."""
    nan_frac: float = 0.0


@dataclass(frozen=True, kw_only=True, eq=False)
class SeenModality:
    """One modality of one tile."""

    modality: Modality
    units: tuple[str, ...]
    shape_px: tuple[int, int]
    dates: NDArray[np.datetime64] | None
    valid_frac: NDArray[np.float64]
    """(band) Share of valid values."""
    is_constant: NDArray[np.bool_]
    """(band) True if all valid values are the same."""
    top_frac: NDArray[np.float64]
    """(band) Share of valid values that equal the band's maximum."""
    num_levels: NDArray[np.int64]
    """(band) Number of distinct values in the kept spectra."""
    same_bands: tuple[tuple[int, int], ...]
    """Pairs of bands with the same values everywhere."""
    shared: tuple[float, float]
    """The number that the most pixels have in all of their bands, and the share of these pixels."""
    blank_frac: float
    """Share of dates on which every valid value is the same."""
    floors: NDArray[np.float32]
    """(time band) Level of the dark pixels of each date, in the band's unit; NaN if nothing is valid."""
    spectra: NDArray[np.float32]
    """(pixel band) Kept values, NaN where invalid."""
    digest: str
    """Checksum of the values; empty if there is nothing to compare."""


@dataclass(frozen=True, kw_only=True, eq=False)
class SeenTarget:
    """One target of one tile."""

    dtype: str
    shape: tuple[int, ...]
    values: NDArray[Any]
    """The distinct values."""


@dataclass(frozen=True, kw_only=True, eq=False)
class SeenTile:
    """One tile."""

    id: str
    split: str
    geobox: Any
    modalities: Mapping[str, SeenModality]
    targets: Mapping[str, SeenTarget]
    notes: tuple[str, ...] = ()
    """Notes from opening its files."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Evidence:
    """Everything that the rules may look at."""

    record: DatasetRecord
    folder: DatasetFolder
    samples: Samples
    """All samples of the requested split."""
    tiles: tuple[SeenTile, ...]
    """The tiles that were read."""
    files: tuple[SeenFile, ...]
    unread: tuple[Hit, ...]
    """Samples, or tables of samples, that could not be read although their files could."""
    is_complete: bool
    """True if every sample was read."""
    num_looked_up: int = 0
    """Number of samples whose required files were all looked up."""
    split: str = "all"
    """The requested split."""

    @property
    def is_own(self) -> bool:
        """Whether it is a user's own data, described in a YAML file."""
        return self.record.is_own

    @property
    def described_in(self) -> str:
        """Where the description of the files is written, for advice."""
        return "the YAML file" if self.is_own else "the layout table"

    @cached_property
    def split_of(self) -> Mapping[str, str]:
        """`train`, `val` or `test`, by member of the table's own splits."""
        return {member: name for name, members in self.record.splits.items() for member in members}

    def each(self) -> Iterator[tuple[SeenTile, SeenModality]]:
        """Yield every modality of every tile."""
        for tile in self.tiles:
            for seen in tile.modalities.values():
                yield tile, seen

    @cached_property
    def by_modality(self) -> Mapping[str, list[tuple[SeenTile, SeenModality]]]:
        """Every modality of every tile, by modality key, without those that have no valid value."""
        found: dict[str, list[tuple[SeenTile, SeenModality]]] = {}
        for tile, seen in self.each():
            if seen.valid_frac.any():
                found.setdefault(seen.modality.key, []).append((tile, seen))
        return found

    def spectra(self, key: str) -> NDArray[np.float32]:
        """Return the kept values (pixel band) of a modality over all tiles, from each the same number at most."""
        return np.concatenate([seen.spectra for _, seen in self.by_modality[key]])

    def stored_bands(self, modality: Modality) -> list[int]:
        """Return the indices of the bands that some entry of the layout holds."""
        stored = {
            band_key(name)
            for entry in self.folder.layout.entries
            if entry.modality == modality.key
            for name in entry.bands
        }
        return [index for index, band in enumerate(modality.bands) if band.match_keys & stored]


def see_tile(tile: Tile, sample_id: str, split: str, rng: np.random.Generator) -> SeenTile:
    """Return the facts of one tile."""
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
    """Return the least and greatest valid value; infinity and minus infinity if there is none."""
    low = np.min(values, axis=axes, where=valid, initial=np.inf)
    return low, np.max(values, axis=axes, where=valid, initial=-np.inf)


def _kept(valid: NDArray[np.bool_], rng: np.random.Generator) -> NDArray[np.int64]:
    """Choose rows of whole spectra or, if there are none, of partial ones."""
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
    """Return the number that the most pixels (pixel band) have in all of their bands, and the share of these pixels.

    In a single band, only numbers that mean no data in many files count.
    """
    used = [index for index, band in enumerate(modality.bands) if band.ratio_of is None and valid[:, index].any()]
    whole = values[valid[:, used].all(axis=1)][:, used] if used else values[:0]
    same = is_nodata_number(whole[:, 0]) if len(used) == 1 else (whole == whole[:, :1]).all(axis=1)
    numbers, counts = np.unique(whole[same, :1], return_counts=True)
    return (float(numbers[counts.argmax()]), float(counts.max() / len(whole))) if len(counts) else (0.0, 0.0)


def is_nodata_number(values: NDArray[Any]) -> NDArray[np.bool_]:
    """Return which numbers mean no data in many files."""
    return np.isin(values, NODATA_NUMBERS) | (np.abs(values) > MAX_NUMBER)


def _blank_frac(observation: Observation) -> float:
    if observation.dates is None or np.prod(observation.shape_px) < 2:
        return 0.0
    low, high = _ends(observation.values, observation.valid, (-3, -2, -1))
    return float((low == high).mean())


def _floors(observation: Observation) -> NDArray[np.float32]:
    """Return the level of dark pixels of each date and band: a low percentile of evenly spread pixels."""
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
