"""The inputs of a tile or an area: their records, opened sources, periods, and facts that identify them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np

from anysat.areas.sizes import num_dates
from anysat.errors import RecordError, SourceError
from anysat.geo.ground import read_ground
from anysat.geo.periods import Period, cut_periods, read_range
from anysat.geo.read.addresses import unsigned
from anysat.geo.read.descriptions import DescribedCube, SourceDescription, describe_sources
from anysat.geo.read.layers import Layer
from anysat.geo.read.source import Source
from anysat.geo.read.sources import open_sources, parse_units
from anysat.modalities import Modality, read_modalities
from anysat.model.encoder import AnySat
from anysat.whole_files import stamps
from anysat.workflows.areas.options import AreaOptions

Days = tuple[np.datetime64, np.datetime64]
_BLOCK, _BLOCKS = 1 << 20, 64
"""Size in bytes and number of the pieces of a file that are hashed. A file that is no larger is hashed completely."""


@dataclass(frozen=True, eq=False, kw_only=True)
class AreaInputs:
    """Opened inputs, of which no pixel has been read."""

    sources: Mapping[str, Source]
    periods: tuple[Period, ...]
    ground: Any
    """The ground that is asked for, in degrees (a shapely geometry); None for all ground that the inputs share."""
    described: Mapping[str, Any]
    """Description of each input by key; for a cube without one, the cube."""

    @property
    def days(self) -> tuple[Days, ...]:
        """The periods as numpy dates."""
        return tuple((np.datetime64(first, "D"), np.datetime64(last, "D")) for first, last in self.periods)

    @property
    def ground_digest(self) -> str | None:
        """Digest of the ground, which tells polygons in a changed file apart."""
        return None if self.ground is None else hashlib.sha256(self.ground.wkb).hexdigest()[:16]

    def told(self) -> list[str]:
        """Return a line for each input, and one for the days."""
        lines = []
        for key, source in self.sources.items():
            bands = f"bands {' '.join(source.bands)}"
            lines.append(", ".join([f"input {key}: {source.name}", dates_told(source), bands, *source.notes]))
        several = f" in {len(self.periods)} periods" if len(self.periods) > 1 else ""
        return [*lines, f"days: {self.periods[0][0]} to {max(last for _, last in self.periods)}{several}"]

    def facts(self) -> dict[str, Any]:
        """Return facts that must stay the same for unfinished work to be continued."""
        return {key: _facts(source, self.described.get(key)) for key, source in self.sources.items()}


def open_inputs(
    options: AreaOptions, given: Sequence[str] | Mapping[str, Any], units: Sequence[str],
    records: Mapping[str, Modality], *, known: Period | None = None,
    known_ground: Any = None, trained: Mapping[str, Mapping[str, Any]] | None = None,
) -> AreaInputs:  # fmt: skip
    """Open the inputs of an area, and divide the days into periods.

    Args:
        known: First and last day in a store that is updated. Its ground is then used instead of the options'.
        known_ground: Ground of that store, or polygons in memory, if the options have no area.
        trained: Descriptions of the training inputs, see `open_sources`.

    Raises:
        MissingFileError, SourceError, UnknownNameError, RecordError: An input, the area or the days cannot be used.
    """
    ground = known_ground
    if options.area is not None and known is None:
        ground = read_ground(options.area)
    between = None if options.dates is None else read_range(options.dates)
    days = None if between is None else (np.datetime64(between[0], "D"), np.datetime64(between[1], "D"))
    bounds = None if ground is None else ground.bounds
    sources = open_sources(given, records, parse_units(units, records), bbox=bounds, between=days, trained=trained)
    periods = tuple(cut_periods(options.period, between or _with(_all_days(sources), known)))
    if between is not None and any(first < between[0] or last > between[1] for first, last in periods):
        raise RecordError("--period", options.period, f"days within --dates {options.dates}")
    found = AreaInputs(sources=sources, periods=periods, ground=ground, described=describe_sources(given))
    is_seen = [num_dates(source, day) for source in sources.values() for day in found.days]
    if not any(is_seen):
        first, last = _all_days(sources)
        asked = " and ".join(f"{a} to {b}" for a, b in found.periods)
        raise SourceError(", ".join(source.name for source in sources.values()), f"no dates in {asked}",
                          f"available dates are {first} to {last}")  # fmt: skip
    return found


def records_of(model: AnySat, keys: Iterable[str], file: str | None) -> dict[str, Modality]:
    """Return the record of each input: the user's own, else the model's. Other records in the file are ignored.

    Args:
        model: The model, which must have all the modalities.
        file: YAML file with the user's own records; None for none.

    Raises:
        UnknownNameError: The model does not have a modality.
        RecordError: The user's own record differs from the model's in a way that matters to the model.
    """
    own = {modality.key: modality for modality in read_modalities(file)} if file else {}
    known = {key: model.config.modality(key) for key in keys}
    for key, modality in known.items():
        modality.check_same(own.get(key, modality))
    return {key: own.get(key, modality) for key, modality in known.items()}


def dates_told(source: Source) -> str:
    """Describe the dates of a source."""
    if source.dates is None:
        return "undated"
    first, last = min(source.dates), max(source.dates)
    return str(first) if first == last else f"{len(source.dates)} dates {first} to {last}"


def _with(days: Period, known: Period | None) -> Period:
    return days if known is None else (min(days[0], known[0]), max(days[1], known[1]))


def _all_days(sources: Mapping[str, Source]) -> Period:
    """Return the first and last date of all series, or of the images if there is no series."""
    for series in (True, False):
        dates = [s.dates for s in sources.values() if s.dates is not None and s.modality.is_temporal == series]
        if dates:
            first, last = (end(np.concatenate(dates)).astype(date) for end in (np.min, np.max))
            return first, last
    names = ", ".join(source.name for source in sources.values())
    raise RecordError("--dates", None, f"FIRST/LAST, such as 2020-01-01/2020-12-31: {names} state no dates")


def _facts(source: Source, described: Any) -> dict[str, Any]:
    described = described.description if isinstance(described, DescribedCube) else described
    dates = [] if source.dates is None else [str(day) for day in source.dates]
    return {
        "path": source.name, "bands": list(source.bands), "units": [source.units[i] for i in sorted(source.units)],
        "dates": dates, "version": _version_of(source),
        "described": _said(described) if isinstance(described, SourceDescription) else {},
    }  # fmt: skip


def _said(described: SourceDescription) -> dict[str, Any]:
    """Return the content of a description as plain values, with addresses without their signatures."""
    given = {
        name: str(value) if isinstance(value, np.datetime64) else value for name, value in asdict(described).items()
    }
    said = {name: value for name, value in given.items() if value not in (None, (), {})}
    said |= {name: unsigned(said[name]) for name in ("path", "stac") if name in said}
    plain: dict[str, Any] = json.loads(json.dumps(said, default=str))
    return plain


def content_of(source: Source) -> str:
    """Return a digest of the content of a source's files, wherever they are. Of large files, only pieces are hashed."""
    told = [*(_bytes_of(place) for layer in _layers_of(source) for place in (layer.path, *layer.files)),
            *_stated(source)]  # fmt: skip
    return hashlib.sha256("\n".join(told).encode()).hexdigest()[:16]


def _bytes_of(name: str) -> str:
    path = Path(name.split("::")[0])
    if not path.exists():
        return name
    found = hashlib.sha256()
    for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
        if file.is_file():
            size = file.stat().st_size
            found.update(f"{file.relative_to(path)} {size} ".encode())
            with file.open("rb") as content:
                for start in np.unique(np.linspace(0, max(0, size - _BLOCK), _BLOCKS).astype(np.int64)):
                    content.seek(int(start))
                    found.update(content.read(_BLOCK))
    return found.hexdigest()


def _layers_of(source: Source) -> list[Layer]:
    masks = [screen.layer for one in source.chosen for screen in one.screens]
    layers = [*(one.layer for one in source.chosen), *masks]
    return list({(layer.path, layer.files, layer.stated): layer for layer in layers}.values())


def _stated(source: Source) -> list[str]:
    return [layer.stated for layer in _layers_of(source) if layer.stated]


def _version_of(source: Source) -> str:
    """Return a digest that changes with the inputs: names, sizes and times of local files, and what catalogs state."""
    files = (place for layer in _layers_of(source) for place in (layer.path, *layer.files))
    places = dict.fromkeys([source.name, *files])
    told = dict.fromkeys([*(line for place in places for line in _told_of(place)), *_stated(source)])
    return hashlib.sha256("\n".join(told).encode()).hexdigest()[:16]


def _told_of(name: str) -> list[str]:
    path = Path(name.split("::")[0]).absolute()
    return [" ".join(map(str, one)) for one in stamps(path)] if path.exists() else [name]
