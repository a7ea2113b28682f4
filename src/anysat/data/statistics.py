"""Statistics of the bands of a dataset over its valid values: mean, deviation, percentiles, fraction that is invalid.

They are computed for chunks of tiles and joined in the order of the tiles, so the result does not depend on the number
of processes or on interruptions.
"""

from __future__ import annotations

import io
import math
import shutil
import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from anysat.data.files import read_file
from anysat.data.work import Advance, TileFiles, begin, fingerprint, place_facts, versions, work_through
from anysat.errors import (
    AnySatError,
    InputError,
    MissingFileError,
    RecordError,
    SourceError,
    StatisticsError,
    UnfinishedError,
)  # fmt: skip
from anysat.geo.claims import alone_in
from anysat.normalise import LEAST_DEVIATION, BandStatistics, Normaliser
from anysat.observation import Observation
from anysat.whole_files import write_whole

if TYPE_CHECKING:
    from anysat.data.base import TileDataset

PERCENTS = (0, 1, 2, 5, 25, 50, 75, 95, 98, 99, 100)
"""Percentiles that are computed; 0 and 100 are the minimum and the maximum."""
RESOLUTION = 2.0**-10
"""Largest relative error of a percentile. Whole numbers below 1024 are exact."""
_CODE_BITS, _DROPPED_BITS = 18, 14
_MOST_CHUNKS = 200
_FORMAT = 1


@dataclass(eq=False, kw_only=True)
class BandSums:
    """Running sums of one modality. Every array has one entry per band."""

    bands: tuple[str, ...]
    units: tuple[str, ...]
    total: NDArray[np.int64]
    """Number of values, valid or not."""
    count: NDArray[np.int64]
    """Number of valid values."""
    mean: NDArray[np.float64]
    squares: NDArray[np.float64]
    """Sum of squared distances from the mean."""
    least: NDArray[np.float64]
    greatest: NDArray[np.float64]
    is_whole: NDArray[np.bool_]
    """True if every value was a whole number."""
    histogram: NDArray[np.int64] = field(repr=False)
    """(band code), counts by the leading 18 bits of a value: 2 MB per band."""

    @classmethod
    def empty(cls, bands: Sequence[str], units: Sequence[str]) -> BandSums:
        """Return the sums of no tiles."""
        num = len(bands)
        return cls(
            bands=tuple(bands), units=tuple(units), total=np.zeros(num, np.int64), count=np.zeros(num, np.int64),
            mean=np.zeros(num), squares=np.zeros(num), least=np.full(num, np.inf), greatest=np.full(num, -np.inf),
            is_whole=np.ones(num, bool), histogram=np.zeros((num, 1 << _CODE_BITS), np.int64),
        )  # fmt: skip

    def require_units(self, units: Sequence[str], where: str) -> None:
        """Check that valid values have the units of those before. Before the first valid value, any units are taken.

        Raises:
            StatisticsError: The units differ.
        """
        if not self.count.any():
            self.units = tuple(units)
        elif self.units != tuple(units):
            raise StatisticsError(where, f"its units are {', '.join(units)}, but earlier tiles have "
                                  f"{', '.join(self.units)}", "one dataset has one unit per band")  # fmt: skip

    def add(self, observation: Observation) -> None:
        """Add the values of one tile."""
        for index in range(len(self.bands)):
            valid = observation.valid[..., index, :, :]
            values = observation.values[..., index, :, :][valid]
            self.total[index] += valid.size
            if not values.size:
                continue
            exact = values.astype(np.float64)
            mean = exact.mean()
            self._join(index, values.size, mean, np.square(exact - mean).sum())
            self.least[index] = min(self.least[index], exact.min())
            self.greatest[index] = max(self.greatest[index], exact.max())
            self.is_whole[index] &= bool((values == np.rint(values)).all())
            _tally(self.histogram[index], _codes(values))

    def join_arrays(self, sums: NDArray[np.float64], histogram: NDArray[np.int64]) -> None:
        """Add the output of `arrays` for later tiles."""
        total, count, mean, squares, least, greatest, is_whole = sums
        for index in np.flatnonzero(count).tolist():
            self._join(index, int(count[index]), mean[index], squares[index])
        self.total += total.astype(np.int64)
        self.least, self.greatest = np.minimum(self.least, least), np.maximum(self.greatest, greatest)
        self.is_whole &= is_whole.astype(bool)
        band, code, tally = histogram
        self.histogram[band, code] += tally

    def _join(self, index: int, count: int, mean: float, squares: float) -> None:
        """Update the mean and squared distances with those of another set (Chan, Golub and LeVeque 1983)."""
        before = int(self.count[index])
        total = before + count
        distance = mean - self.mean[index]
        self.mean[index] += distance * (count / total)
        self.squares[index] += squares + distance * distance * (before * (count / total))
        self.count[index] = total

    def statistics(self) -> BandStatistics:
        """Return the statistics. A constant band has a deviation of 1; a band that is never valid also has mean 0."""
        seen = self.count > 0
        varies = seen & (self.greatest > self.least)
        std = np.where(varies, np.sqrt(self.squares / np.maximum(self.count, 1)), 1.0)
        mean = np.where(varies, self.mean, np.where(seen, self.least, 0.0))
        columns = [self._percentiles(index) for index in range(len(self.bands))]
        return BandStatistics(
            bands=self.bands,
            mean=tuple(mean.tolist()),
            std=tuple(np.where(std >= LEAST_DEVIATION, std, 1.0).tolist()),
            units=self.units,
            count=tuple(self.count.tolist()),
            invalid_frac=tuple((1.0 - self.count / np.maximum(self.total, 1)).tolist()),
            percentiles={str(p): tuple(column[place] for column in columns) for place, p in enumerate(PERCENTS)},
        )

    def _percentiles(self, index: int) -> list[float]:
        """Return for each percent the smallest value such that at least that percent of the values are not larger."""
        count = int(self.count[index])
        if not count:
            return [0.0] * len(PERCENTS)
        ranks = [max(1, -(-percent * count // 100)) for percent in PERCENTS]
        values = _centres(np.searchsorted(np.cumsum(self.histogram[index]), ranks))
        values = np.trunc(values) if self.is_whole[index] else values
        values = values.clip(self.least[index], self.greatest[index])
        values[0], values[-1] = self.least[index], self.greatest[index]
        return [float(value) for value in values]

    def arrays(self) -> tuple[NDArray[np.str_], NDArray[np.float64], NDArray[np.int64]]:
        """Return plain arrays to store in a file: names and units, sums, and the histogram without zeros."""
        codes = [np.flatnonzero(row != 0) for row in self.histogram]
        band, code = np.repeat(np.arange(len(codes)), [len(part) for part in codes]), np.concatenate(codes)
        sums = (self.total, self.count, self.mean, self.squares, self.least, self.greatest, self.is_whole)
        named = np.array([self.bands, self.units])
        return (
            named,
            np.stack([part.astype(np.float64) for part in sums]),
            np.stack([band, code, self.histogram[band, code]]),
        )


_ARRAYS = ("names", "sums", "histogram")


def _codes(values: NDArray[np.float32]) -> NDArray[np.int64]:
    """Return the leading bits of each value, as numbers that grow with the value."""
    bits = (values + np.float32(0)).view(np.uint32)  # adding 0 turns -0 into 0
    ordered = np.where(bits >> 31, ~bits, bits | np.uint32(1 << 31))
    return (ordered >> _DROPPED_BITS).astype(np.int64)


def _centres(codes: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return the middle of the values that have a code."""
    ordered = (codes.astype(np.uint32) << _DROPPED_BITS) | np.uint32(1 << (_DROPPED_BITS - 1))
    bits = np.where(ordered >> 31, ordered & np.uint32((1 << 31) - 1), ~ordered)
    return bits.astype(np.uint32).view(np.float32).astype(np.float64)


def _tally(histogram: NDArray[np.int64], codes: NDArray[np.int64]) -> None:
    if len(codes) > 1 << 16:
        histogram += np.bincount(codes, minlength=len(histogram))
    else:
        found, counts = np.unique(codes, return_counts=True)
        histogram[found] += counts


@dataclass(frozen=True, kw_only=True)
class _Chunks:
    """The work in units; one unit is the sums of `tiles` consecutive tiles."""

    dataset: TileDataset
    folder: Path
    tiles: int
    files: TileFiles

    def path(self, unit: int) -> Path:
        return self.folder / f"chunk-{unit:05d}.npz"

    def members(self, unit: int) -> range:
        return range(unit * self.tiles, min((unit + 1) * self.tiles, len(self.dataset)))

    def is_done(self, unit: int) -> bool:
        """Whether the file of a unit exists and the tiles' files have not changed since."""
        try:
            (digest,) = read_file(self.path(unit), ["files"])
        except (SourceError, MissingFileError):
            return False
        return str(digest) == self.files.digest(self.members(unit))

    def __call__(self, unit: int, advance: Advance) -> None:
        digest = self.files.digest(self.members(unit))  # first: files changed meanwhile are read again
        sums: dict[str, BandSums] = {}
        for index in self.members(unit):
            tile = self.dataset[index]
            for key, observation in tile.observations.items():
                if key not in sums:
                    sums[key] = BandSums.empty(observation.modality.band_names, observation.units)
                if observation.valid.any():
                    where = f"{key} in tile {tile.id} of {self.dataset.name}"
                    sums[key].require_units(observation.units, where)
                sums[key].add(observation)
            advance(1)
        content: dict[str, Any] = {
            f"{key}.{name}": array for key, s in sums.items() for name, array in zip(_ARRAYS, s.arrays(), strict=True)
        }
        file = io.BytesIO()
        np.savez_compressed(file, modalities=np.array(list(sums), dtype=str), files=np.array(digest), **content)
        write_whole(self.path(unit), file.getvalue())


def compute_statistics(
    dataset: TileDataset, *, partial: Path | None = None, workers: int = 1, num_samples: int | None = None,
    seed: int = 0, advance: Advance = lambda _: None, keep: Callable[[Normaliser], object] = lambda _: None,
) -> Normaliser:  # fmt: skip
    """Compute the statistics of a dataset's bands over all valid values of its tiles.

    The standard deviation is that of all values together; the published code averages the deviations of single samples.
    Whole tiles are read, with all dates.

    Args:
        dataset: A dataset from `open_dataset`, usually the training split.
        partial: Folder for finished chunks, from which interrupted work continues. It is removed at the end. None uses
            a temporary folder.
        workers: Number of processes.
        num_samples: Number of tiles to use, drawn evenly over the dataset; None for all.
        seed: Seed of that draw.
        advance: Called with numbers of finished tiles to add up, including those of an earlier call.
        keep: Called with the statistics before `partial` is removed, to write them.

    Returns:
        A normaliser with the statistics of the dataset.

    Raises:
        InputError: `partial` holds other work, another process is working in it, or the dataset has no tiles.
        UnfinishedError: The disk is full. The finished chunks are kept in `partial`.
        StatisticsError: Tiles of the dataset have different units.
        MissingFileError, SourceError: A tile cannot be read.
    """
    if partial is None:
        with tempfile.TemporaryDirectory(prefix="anysat-statistics-") as folder:
            return compute_statistics(dataset, partial=Path(folder) / "partial", workers=workers,
                                      num_samples=num_samples, seed=seed, advance=advance, keep=keep)  # fmt: skip
    available = len(dataset)
    if not available:
        raise InputError(f"dataset {dataset.name}, split {dataset.split}", "at least one tile", "none")
    dataset = taken(dataset, num_samples, seed)
    facts = _facts(dataset, available, seed)
    with alone_in(partial):
        sums = _work(dataset, facts, partial, workers, advance)
        normaliser = Normaliser(
            statistics={dataset.name: {key: sums[key].statistics() for key in dataset.modalities if key in sums}},
            source=f"computed from {len(dataset)} of {available} tiles of {dataset.name}, split {dataset.split}",
            provenance={dataset.name: facts},
        )
        try:
            keep(normaliser)
        except OSError as error:
            raise error if isinstance(error, AnySatError) else UnfinishedError(partial, error) from error
        shutil.rmtree(partial)
    return normaliser


def taken(dataset: TileDataset, num_samples: int | None, seed: int) -> TileDataset:
    """Return the tiles that `compute_statistics` uses."""
    if num_samples is None or num_samples >= len(dataset):
        return dataset
    return dataset.take(draw_evenly(len(dataset), num_samples, seed))


def _work(dataset: TileDataset, facts: Any, partial: Path, workers: int, advance: Advance) -> dict[str, BandSums]:
    """Compute the chunks that are not finished, and join all."""
    tiles = math.ceil(len(dataset) / _MOST_CHUNKS)
    begin(partial, {"format": _FORMAT, "tiles_per_chunk": tiles, **facts, **place_facts(dataset)})
    job = _Chunks(dataset=dataset, folder=partial, tiles=tiles, files=TileFiles(dataset))
    units = range(math.ceil(len(dataset) / tiles))
    left = [unit for unit in units if not job.is_done(unit)]
    advance(len(dataset) - sum(len(job.members(unit)) for unit in left))
    work_through(job, left, workers=workers, advance=advance, kept_in=partial)
    return _joined(job.path(unit) for unit in units)


def _facts(dataset: TileDataset, available: int, seed: int) -> dict[str, Any]:
    """Return the provenance, without anything about the machine or the time, so that equal work gives equal files."""
    is_part = len(dataset) < available
    return {
        "dataset": dataset.name, "folder": dataset.folder.root.resolve().name, "layout": dataset.folder.layout.name,
        "split": dataset.split, "modalities": list(dataset.modalities), "tiles": len(dataset),
        "tiles_available": available, "seed": seed if is_part else None, "fingerprint": fingerprint(dataset),
        "deviation": "of all valid values together (population)", "percentile_error": RESOLUTION,
        "versions": versions(),
    }  # fmt: skip


def _joined(paths: Iterable[Path]) -> dict[str, BandSums]:
    sums: dict[str, BandSums] = {}
    for path in paths:
        (keys,) = read_file(path, ["modalities"])
        for key in keys.tolist():
            names, figures, histogram = read_file(path, [f"{key}.{name}" for name in _ARRAYS])
            bands, units = names.tolist()
            if key not in sums:
                sums[key] = BandSums.empty(bands, units)
            if figures[1].any():  # there are valid values
                sums[key].require_units(units, f"{key} in {path}")
            sums[key].join_arrays(figures, histogram)
    return sums


def draw_evenly(available: int, wanted: int, seed: int) -> NDArray[np.int64]:
    """Draw numbers of tiles spread over a dataset: one at random from each of `wanted` equal parts, in order."""
    if not 1 <= wanted <= available:
        raise RecordError("--samples", wanted, f"a number from 1 to {available}")
    ends = np.arange(wanted + 1) * available // wanted
    return np.random.default_rng(seed).integers(ends[:-1], ends[1:])


def never_valid(normaliser: Normaliser) -> list[str]:
    """Return the bands without a valid value, as `modality band`. Their statistics are mean 0 and deviation 1."""
    return [
        f"{key} {band}"
        for table in normaliser.statistics.values()
        for key, statistics in table.items()
        for band, share in zip(statistics.bands, statistics.invalid_frac, strict=False)
        if share == 1.0
    ]
