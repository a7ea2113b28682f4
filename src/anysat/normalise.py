"""Statistics with units, and the normaliser that standardises source values with them."""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from anysat.batch import Batch, StackedObservation, Tile
from anysat.errors import InputError, MissingFileError, StatisticsError, UnknownNameError
from anysat.misfit import Expected, Watch, sample
from anysat.modalities import UNITS
from anysat.observation import Observation
from anysat.whole_files import write_output

BETWEEN_SOURCES = "; "
"""Separates the sources of several joined datasets."""
LEAST_DEVIATION = 1e-30
"""The least standard deviation. Values divided by less would leave the range of float32, and count as missing."""


@dataclass(frozen=True, kw_only=True)
class BandStatistics:
    """Statistics of each band of one modality, in stated units.

    Raises:
        StatisticsError: The lengths differ, a number is not finite, or a standard deviation is not positive.
    """

    bands: tuple[str, ...]
    """Names of the bands, in the modality's order."""
    mean: tuple[float, ...]
    """Mean of each band."""
    std: tuple[float, ...]
    """Standard deviation of each band."""
    units: tuple[str, ...]
    """Unit of each band."""
    count: tuple[int, ...] = ()
    """Number of valid values of each band that were used; empty if not known."""
    invalid_frac: tuple[float, ...] = ()
    """Fraction of each band's values that were invalid, in the tiles that have the modality; empty if not known."""
    percentiles: Mapping[str, tuple[float, ...]] = field(default_factory=dict, hash=False)
    """Percentiles of each band, by percent as text: `0` is the minimum, `50` the median, `100` the maximum."""

    def __post_init__(self) -> None:
        for name in ("bands", "mean", "std", "units", "count", "invalid_frac"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        object.__setattr__(self, "percentiles", {str(k): tuple(v) for k, v in dict(self.percentiles).items()})
        where = ", ".join(self.bands)
        if unknown := [unit for unit in self.units if unit not in UNITS]:
            raise UnknownNameError("unit", unknown[0], UNITS, f"It was given in statistics of {where}")
        optional = {"count": self.count, "invalid_frac": self.invalid_frac, **self.percentiles}
        for name, figures in optional.items():
            if len(figures) not in (0, len(self.bands)) or not all(math.isfinite(figure) for figure in figures):
                raise StatisticsError(where, f"{name} {figures}", "give one finite figure per band, or none")
        if not len(self.bands) == len(self.mean) == len(self.std) == len(self.units):
            lengths = [len(part) for part in (self.bands, self.mean, self.std, self.units)]
            raise StatisticsError(where, f"lengths {lengths} differ", "give one mean, deviation and unit per band")
        if not all(math.isfinite(mean) for mean in self.mean) or not all(
            LEAST_DEVIATION <= std < math.inf for std in self.std
        ):
            raise StatisticsError(
                where,
                f"mean {self.mean}, deviation {self.std}",
                f"means are finite and deviations positive, {LEAST_DEVIATION:g} or more",
            )


GENERATED = "world"
"""Name of the dataset that the package generates, whose statistics do not fit real images."""


@dataclass(frozen=True, kw_only=True)
class Normaliser:
    """Statistics by dataset and modality, which standardise a batch: (value - mean) / standard deviation.

    Raises:
        StatisticsError: There are statistics of no dataset.

    Examples:
        >>> Normaliser.preset("treesatai_ts").statistics["treesatai_ts"]["aerial"].bands
        ('NIR', 'G', 'B', 'R')
    """

    statistics: Mapping[str, Mapping[str, BandStatistics]]
    """Statistics by dataset name, then by modality key."""
    source: str = "unknown"
    """Where the statistics come from; kept in checkpoints and outputs."""
    provenance: Mapping[str, Mapping[str, Any]] = field(default_factory=dict, hash=False)
    """What the statistics were computed from, by dataset: split, samples, seed, fingerprint, versions."""
    _watch: Watch = field(default_factory=Watch, init=False, repr=False, compare=False, hash=False)

    def __post_init__(self) -> None:
        if not self.statistics or not isinstance(self.statistics, Mapping):
            raise StatisticsError("normaliser", "no dataset", "give the statistics of at least one, by its name")

    def standardise(self, batch: Batch) -> dict[str, Tensor]:
        """Standardise the values of a batch, and warn of values that cannot fit.

        Returns:
            The standardised values by modality key, in the shapes of the batch, 0 where invalid.

        Raises:
            StatisticsError: There are no statistics for the dataset or a modality, or their bands or units differ from
                those of the batch.
        """
        table = self.table(batch.dataset)
        found = {key: _standardise(self._of(table, key), o) for key, o in batch.observations.items()}
        for key, observation in batch.observations.items():
            self._look(batch.dataset, table[key], observation)
        return found

    def in_units(self, tile: Tile) -> tuple[Tile, list[str]]:
        """Convert a tile to the units of the statistics, and warn of values that cannot fit.

        Returns:
            The converted tile, and one sentence for each modality that was converted.

        Raises:
            StatisticsError: There are no statistics for the dataset.
            InputError: There is no conversion from a band's unit to that of the statistics.
        """
        table, observations, said = self.table(tile.dataset), dict(tile.observations), []
        for key, observation in tile.observations.items():
            known = table.get(key)
            if known is None or known.bands != observation.modality.band_names:
                continue
            self._look(tile.dataset, known, observation)
            if known.units == observation.units:
                continue
            observations[key] = observation.in_units(known.units)
            pairs = zip(observation.units, observations[key].units, strict=True)
            changed = dict.fromkeys(f"{old} to {new}" for old, new in pairs if old != new)
            said.append(f"{key} converted from {', '.join(changed)}")
        return replace(tile, observations=observations), said

    def _look(self, dataset: str | None, known: BandStatistics, seen: Observation | StackedObservation) -> None:
        """Check the first values of each modality."""
        if self._watch.wants(dataset, seen.modality.key):
            expected = [Expected(*band) for band in zip(known.mean, known.std, known.units, strict=True)]
            self._watch.look(dataset, seen.modality, seen.units, expected, sample(seen.values, seen.valid))

    def table(self, dataset: str | None) -> Mapping[str, BandStatistics]:
        """Return the statistics of a dataset, by modality key.

        Args:
            dataset: Name of the dataset. None if there are statistics of one dataset only.

        Raises:
            StatisticsError: There are none for it, or `dataset` is None and there are several datasets.
        """
        if dataset is None and len(self.statistics) == 1:
            return next(iter(self.statistics.values()))
        if dataset is None:
            names = sorted(self.statistics, key=lambda name: (name == GENERATED, name))
            told = ", ".join(f"{name} (generated data)" if name == GENERATED else name for name in names)
            raise StatisticsError(
                "the weights" if len(self.source) > 60 else self.source,
                f"they are of {len(names)} datasets, {told}, and none is named",
                f"name the one whose values are like yours (`--dataset {names[0]}`; in Python, "
                f"`dataset=\"{names[0]}\"` of `embed` and `Tile`), or compute others from your data "
                "(`--statistics from-data`; in Python, `statistics=\"from-data\"`)",
            )  # fmt: skip
        if dataset not in self.statistics:
            raise StatisticsError(
                f"dataset {dataset!r}",
                "there are none",
                f"name one of {', '.join(sorted(self.statistics))} as the dataset, or compute them from the data",
            )
        return self.statistics[dataset]

    def source_of(self, dataset: str | None) -> str:
        """Return where the statistics of a dataset come from.

        Args:
            dataset: Name of the dataset. None if there are statistics of one dataset only.

        Raises:
            StatisticsError: There are none for it, or `dataset` is None and there are several datasets.
        """
        self.table(dataset)
        if len(self.statistics) == 1:
            return self.source
        own = [part for part in self.source.split(BETWEEN_SOURCES) if f" of {dataset}," in part]  # as computed
        return BETWEEN_SOURCES.join(own) if own else f"those of {dataset}, among: {self.source}"

    def _of(self, table: Mapping[str, BandStatistics], key: str) -> BandStatistics:
        if key not in table:
            raise StatisticsError(
                key, f"there are none in {self.source}, which has {', '.join(sorted(table))}",
                "pass statistics='from-data' or a file that has them",
            )  # fmt: skip
        return table[key]

    @classmethod
    def from_batch(cls, batch: Batch) -> Normaliser:
        """Compute statistics over the valid values of a batch.

        A band whose values are all equal gets a standard deviation of 1.

        Raises:
            InputError: It is no batch.
        """
        if not isinstance(batch, Batch):
            raise InputError("batch", "a Batch, such as Batch.of([tile])", type(batch).__name__)
        name = batch.dataset or "data"
        return cls(
            statistics={name: {key: _measure(o) for key, o in batch.observations.items()}},
            source=f"computed from {len(batch)} tiles",
        )

    @classmethod
    def preset(cls, name: str) -> Normaliser:
        """Return published statistics by name, see `PRESETS`.

        Raises:
            UnknownNameError: There are none of this name.
        """
        if name not in PRESETS:
            raise UnknownNameError("statistics preset", name, PRESETS)
        return replace(PRESETS[name])  # a copy with its own watch

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON. `from_dict` is the inverse."""
        content: dict[str, Any] = {
            "source": self.source,
            "statistics": {
                dataset: {key: _band_dict(s) for key, s in table.items()} for dataset, table in self.statistics.items()
            },
        }
        if self.provenance:
            content["provenance"] = {dataset: dict(facts) for dataset, facts in self.provenance.items()}
        return content

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> Normaliser:
        """Create a normaliser from plain values.

        Raises:
            StatisticsError: The values do not have the form of `to_dict`, or are not possible.
        """
        try:
            statistics = {
                dataset: {key: _of_band_dict(s) for key, s in table.items()}
                for dataset, table in content["statistics"].items()
            }
            provenance = {str(dataset): dict(facts) for dataset, facts in content.get("provenance", {}).items()}
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            if isinstance(error, StatisticsError):
                raise
            raise StatisticsError(
                "normaliser", f"unreadable content ({error!r})",
                'expected {"source": …, "statistics": {dataset: {modality: {bands, mean, std, units}}}}',
            ) from error  # fmt: skip
        return cls(statistics=statistics, source=str(content.get("source", "unknown")), provenance=provenance)

    @classmethod
    def joined(cls, normalisers: Iterable[Normaliser]) -> Normaliser:
        """Join the statistics of several datasets in one normaliser, for training on a mixture of them.

        Raises:
            StatisticsError: Two normalisers hold the same dataset.
        """
        parts = list(normalisers)
        names = [name for part in parts for name in part.statistics]
        for name in names:
            if names.count(name) > 1:
                raise StatisticsError(f"dataset {name!r}", "they are given twice", "leave one of them out")
        return cls(
            statistics={name: table for part in parts for name, table in part.statistics.items()},
            source=BETWEEN_SOURCES.join(dict.fromkeys(part.source for part in parts)),
            provenance={name: facts for part in parts for name, facts in part.provenance.items()},
        )

    def save(self, path: str | Path) -> None:
        """Write a JSON file, which `read` reads. A failed write leaves no partial file.

        Raises:
            WriteError: The file cannot be written.
        """
        write_output(Path(path), json.dumps(self.to_dict(), indent=1))

    @classmethod
    def read(cls, path: str | Path) -> Normaliser:
        """Read a JSON file written by `save`.

        Raises:
            MissingFileError: There is no such file.
            StatisticsError: The file does not hold valid statistics.
        """
        path = Path(path)
        if not path.is_file():
            raise MissingFileError(path, f"a JSON file of statistics, or a preset: {', '.join(PRESETS)}")
        try:
            content = json.loads(path.read_text())
        except ValueError as error:
            raise StatisticsError(str(path), f"no valid JSON ({error})", "write it with Normaliser.save") from error
        return cls.from_dict(content)


_FIELDS = ("bands", "mean", "std", "units")
_OPTIONAL = ("count", "invalid_frac")


def statistics_of(batch: Batch) -> Normaliser:
    """Compute statistics from a batch, with a warning that none were given."""
    warnings.warn(
        f"no statistics were given: standardising with those of this batch of {len(batch)} tiles. Embeddings of "
        "different batches will not be comparable; pass statistics= a file or a preset to anysat.load",
        stacklevel=5,
    )
    return Normaliser.from_batch(batch)


def _band_dict(statistics: BandStatistics) -> dict[str, Any]:
    """Return plain values; optional fields that are not known are left out."""
    content: dict[str, Any] = {name: list(getattr(statistics, name)) for name in _FIELDS}
    content |= {name: list(figures) for name in _OPTIONAL if (figures := getattr(statistics, name))}
    if statistics.percentiles:
        content["percentiles"] = {percent: list(figures) for percent, figures in statistics.percentiles.items()}
    return content


def _of_band_dict(content: Mapping[str, Any]) -> BandStatistics:
    given = {name: tuple(content[name]) for name in _FIELDS}
    given |= {name: tuple(content[name]) for name in _OPTIONAL if name in content}
    return BandStatistics(**given, percentiles=content.get("percentiles", {}))


def _measure(observation: StackedObservation) -> BandStatistics:
    axes = [axis for axis in range(observation.values.ndim) if axis != observation.values.ndim - 3]
    weight = observation.valid.double()
    count = weight.sum(axes).clamp_min(1)
    shape = (-1, 1, 1)
    values = observation.values.double()
    mean = (values * weight).sum(axes) / count
    variance = ((values - mean.view(shape)).square() * weight).sum(axes) / count
    std = torch.where(variance.sqrt() >= LEAST_DEVIATION, variance.sqrt(), 1.0)
    return BandStatistics(
        bands=observation.modality.band_names,
        mean=tuple(mean.tolist()),
        std=tuple(std.tolist()),
        units=observation.units,
    )


def _standardise(statistics: BandStatistics, observation: StackedObservation) -> Tensor:
    modality = observation.modality
    if statistics.bands != modality.band_names:
        raise StatisticsError(
            modality.key,
            f"they are for bands {', '.join(statistics.bands)}",
            f"needed: {', '.join(modality.band_names)}",
        )
    for band, ours, theirs in zip(statistics.bands, observation.units, statistics.units, strict=True):
        if ours != theirs and bool(observation.valid.any()):  # units do not matter if nothing is valid
            raise StatisticsError(
                f"{modality.key} band {band}",
                f"they are in {theirs!r}, the data in {ours!r}",
                f"convert the data with Observation.in_units({theirs!r}) or correct the unit",
            )
    values = observation.values  # the type of new tensors may differ
    mean, std = (values.new_tensor(figures).view(-1, 1, 1) for figures in (statistics.mean, statistics.std))
    return ((values - mean) / std).masked_fill(~observation.valid, 0.0)


_TREESATAI = {
    "aerial": BandStatistics(
        bands=("NIR", "G", "B", "R"),
        mean=(150.893, 92.714, 84.854, 80.704),
        std=(36.765, 27.625, 22.479, 26.734),
        units=("DN",) * 4,
    ),
    "s2": BandStatistics(
        bands=("B2", "B3", "B4", "B5", "B6", "B7", "B8", "B8A", "B11", "B12"),
        mean=(4304.330, 4159.267, 4057.777, 4328.951, 4571.221, 4644.871, 4837.247, 4700.258, 2823.264, 2319.970),
        std=(3537.998, 3324.234, 3270.070, 3250.530, 2897.391, 2754.497, 2821.521, 2625.952, 1731.563, 1549.303),
        units=("reflectance_1e4",) * 10,
    ),
}

PRESETS: dict[str, Normaliser] = {
    "treesatai_ts": Normaliser(
        statistics={"treesatai_ts": _TREESATAI},
        source="published with AnySat for TreeSatAI-TS (aerial and Sentinel-2)",
    )
}
"""Published statistics by name. Those for Sentinel-1 contradict the data and are left out."""
