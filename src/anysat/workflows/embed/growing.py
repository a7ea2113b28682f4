"""Data kept beside an area's store so that `anysat embed --update` can add dates.

`NAME.series` holds a folder for the current store, named by the store's fingerprint, with the data of each block and
`about.json`. An update writes the next folder beside it, which becomes valid when the new store is renamed.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from affine import Affine
from numpy.typing import NDArray
from odc.geo.geobox import GeoBox

from anysat.areas.growing import Growing
from anysat.areas.job import Job
from anysat.areas.tokens import Floats
from anysat.areas.units import UnitFiles
from anysat.errors import RecordError, SourceError
from anysat.geo.area import Area
from anysat.geo.periods import Period
from anysat.geo.read.descriptions import InputPath, describe_sources
from anysat.geo.read.source import Source
from anysat.geo.stores.store import AreaStore
from anysat.geo.stores.stored import open_stored, provenance_of, zone_stores
from anysat.normalise import Normaliser
from anysat.whole_files import write_whole
from anysat.workflows.areas.inputs import content_of
from anysat.workflows.embed import UNCHANGED, EmbedConfig, UpdateConfig

if TYPE_CHECKING:
    from anysat.model.growth import Keep

_ABOUT, _PLACES = "about.json", "places.npy"
_KEPT = {one.name for one in fields(EmbedConfig)} - {"device", "memory_gb", "readers", "scheduler", "out", "overwrite"}
_MAYBE_PATHS = ("weights", "area", "sensors", "statistics")


def series_of(store: Path) -> Path:
    """Return the folder of the data kept for a store."""
    return store.with_suffix(".series")


@dataclass(frozen=True, eq=False, kw_only=True)
class Earlier:
    """What an earlier run kept, and the record in its store."""

    store: Path
    folder: Path
    about: Mapping[str, Any]
    made_from: Mapping[str, Any]
    has_unreadable: bool
    """Whether something could not be read. Its blocks are then computed again from all dates."""

    @classmethod
    def read(cls, store: Path) -> Earlier:
        """Read what was kept for a store.

        Raises:
            MissingFileError: There is no store.
            SourceError: It is not a store of this package or one of several zones, or nothing was kept, or that is
                damaged or of another version.
        """
        AreaStore.bring_back(store)
        if zones := [path.name for path in zone_stores(store) if path != store]:
            raise SourceError(store, f"no such file, but one store per zone: {', '.join(zones)}", "update each of them")
        open_stored(store)
        told = provenance_of(store)
        if not told:
            raise SourceError(
                store, "it does not record how it was made", "give a store written by `anysat embed --keep`"
            )
        folder, beside = series_of(store) / str(told.get("fingerprint")), series_of(store)
        if not (folder / _ABOUT).is_file():
            problem = (
                f"the data for updates are not in {beside.name}" if beside.exists() else "it was made without --keep"
            )
            raise SourceError(store, problem, "embed again with --keep series")
        try:
            about = json.loads((folder / _ABOUT).read_text())
        except ValueError as error:
            raise SourceError(folder / _ABOUT, f"it is damaged ({error})", "embed again with --overwrite") from error
        if other := sorted(about["config"].keys() ^ _KEPT):
            problem = f"another version made it, with other options ({', '.join(other)})"
            raise SourceError(store, problem, "embed again with --overwrite")
        unreadable = bool(told["summary"]["unreadable"])
        return cls(store=store, folder=folder, about=about, made_from=told["made_from"], has_unreadable=unreadable)

    def config(self, given: UpdateConfig) -> EmbedConfig:
        """Return the options of the earlier run with those given now.

        Inputs that are not given are those of the earlier run.
        """
        kept = self.about["config"]
        anew = {name: value for name, value in vars(given).items() if name != "update" and value != UNCHANGED}
        replaced = describe_sources(given.inputs).keys() if given.inputs else set()
        unchanged = [word for word in kept["inputs"] if not _is_replaced(word, replaced)]
        return EmbedConfig(**{**kept, **anew, "inputs": [*unchanged, *given.inputs], "out": str(self.store)})

    @property
    def periods(self) -> list[Period]:
        """First and last day of each period."""
        return [(date.fromisoformat(first), date.fromisoformat(last)) for first, last in self.about["periods"]]

    @property
    def area(self) -> Area:
        """The area of the earlier run."""
        import shapely

        kept = self.about["area"]
        geobox = GeoBox(kept["shape"], Affine(*kept["affine"]), kept["crs"])
        wanted = None if kept["wanted"] is None else shapely.from_wkb(kept["wanted"])
        return Area(geobox=geobox, patch_size_m=kept["patch_size_m"], shard=kept["shard"],
                    crs_reason=kept["crs_reason"], wanted=wanted)  # fmt: skip

    @property
    def block(self) -> int:
        """Number of patches along a side of a block."""
        return int(self.about["block"])

    @property
    def statistics(self) -> Normaliser | None:
        """Statistics that the values were standardised with."""
        kept = self.about["statistics"]
        return None if kept is None else Normaliser.from_dict(kept)

    @property
    def places(self) -> Floats | None:
        """The part of embeddings that depends only on the place in a window, as measured; None if there is none."""
        path = self.folder / _PLACES
        return np.load(path) if path.exists() else None

    def scale(self, name: str) -> Floats | None:
        """Return the steps of the linear codes in which a group is stored."""
        return open_stored(self.store)[name].scale

    @property
    def ground(self) -> Any:
        """The ground that was asked for, in degrees; None for all ground that the inputs share."""
        import shapely

        return None if self.about["ground"] is None else shapely.from_wkb(self.about["ground"])

    def dates(self, key: str, period: Period | None = None) -> NDArray[np.datetime64]:
        """Return the dates of an input that are in a period, or in any period of the store."""
        dates = np.array(self.made_from["inputs"][key]["dates"], "datetime64[D]")
        return dates[_within(dates, self.periods if period is None else [period])]

    def check_inputs(self, sources: Mapping[str, Source], facts: Mapping[str, Any]) -> None:
        """Check that an update gives the same as embedding all dates at once.

        Raises:
            SourceError: The sensors or an image differ from the store's, or dates that are needed again are missing.
        """
        if sources.keys() != self.made_from["inputs"].keys():
            raise SourceError(self.store, f"it was made from {', '.join(self.made_from['inputs'])}, not from "
                              f"{', '.join(sources)}", "embed other inputs to a new store")  # fmt: skip
        for key, source in sources.items():
            modality, was = source.modality, self.made_from["inputs"][key]
            is_same = facts[key]["version"] == was["version"]  # otherwise it may have been moved or copied
            if not (modality.is_temporal or is_same or content_of(source) == self.about.get("images", {}).get(key)):
                raise SourceError(source.name, f"it is not the {key} image that the store was made from",
                                  "give that one; an update cannot replace images")  # fmt: skip
            why = "because some of them could not be read before" if self.has_unreadable else ""
            why = "because whole windows see them" if modality.covers_tile else why
            there = np.array([], "datetime64[D]") if source.dates is None else source.dates
            missing = np.setdiff1d(self.dates(key), there)
            if why and modality.is_temporal and len(missing):
                raise SourceError(source.name, f"dates of {key} that the store has are needed again, {why}: "
                                  f"{', '.join(map(str, missing[:3]))}", "give inputs that include them")  # fmt: skip

    def new(self, sources: Mapping[str, Source], periods: Sequence[Period]) -> dict[int, dict[str, Source]]:
        """Return for each period the series with the new dates that touch the area."""
        found: dict[int, dict[str, Source]] = {}
        was, area = self.was(periods), self.area
        for number, period in enumerate(periods):
            old = self.periods[was[number]] if number in was else None
            found[number] = {}
            for key, source in sources.items():
                if source.dates is None or not source.modality.is_temporal:
                    continue
                known = np.array([], "datetime64[D]") if old is None else self.dates(key, old)
                outside = source.dates[~_within(source.dates, [period])]
                others = source.without(np.concatenate([known, outside]))
                if others is not None and (others := _touching(others, area)) is not None:
                    found[number][key] = others
        return found

    def was(self, periods: Sequence[Period]) -> dict[int, int]:
        """Return the store's period that each of some periods contains, by their numbers.

        Raises:
            RecordError: A period of the store is cut, or merged with another.
        """
        found: dict[int, int] = {}
        for number, (first, last) in enumerate(self.periods):
            holding = [n for n, (start, end) in enumerate(periods) if start <= first and end >= last and n not in found]
            same = [n for n in holding if periods[n] == (first, last)] or holding
            if not same:
                raise RecordError("periods", [f"{a} to {b}" for a, b in periods], f"one that contains {first} to "
                                  f"{last}, a period of the store, and no other of its periods")  # fmt: skip
            found[same[0]] = number
        return found


def _within(dates: NDArray[np.datetime64], periods: Sequence[Period]) -> NDArray[np.bool_]:
    found = np.zeros(len(dates), bool)
    for first, last in periods:
        found |= (dates >= np.datetime64(first, "D")) & (dates <= np.datetime64(last, "D"))
    return found


def _touching(source: Source, area: Area) -> Source | None:
    """Return a series with only the dates that touch the area."""
    assert source.dates is not None, source.name
    steps = sorted({step for one in source.touching(area.geobox) for step in one.steps})
    return source.without(np.delete(source.dates, steps))


def added_dates(new: Mapping[int, Mapping[str, Source]], key: str) -> list[str]:
    """Return the dates of an input that an update adds."""
    sources = [series[key] for series in new.values() if key in series]
    return sorted({str(day) for source in sources if source.dates is not None for day in source.dates})


def grown_inputs(earlier: Earlier, facts: Mapping[str, Any], new: Mapping[int, Mapping[str, Source]]) -> dict[str, Any]:
    """Return what a store is made from after an update. Inputs without new dates stay as they were."""
    found = {}
    for key, was in earlier.made_from["inputs"].items():
        added = added_dates(new, key)
        dates = sorted({*map(str, earlier.dates(key)), *added})
        found[key] = {**facts[key], "dates": dates} if added else was
    return found


def keep_about(
    folder: Path, config: EmbedConfig, job: Job, periods: Sequence[Period], ground: Any, statistics: Normaliser | None
) -> None:
    """Write the facts that an update needs."""
    area = job.area
    about = {
        "config": {name: value for name, value in asdict(config).items() if name in _KEPT}
        | {"inputs": [_absolute(word) for word in config.inputs]}
        | {name: _path_or_name(getattr(config, name)) for name in _MAYBE_PATHS},
        "periods": [[str(first), str(last)] for first, last in periods],
        "area": {
            "shape": list(area.geobox.shape), "affine": list(area.geobox.affine)[:6], "crs": str(area.geobox.crs),
            "patch_size_m": area.patch_size_m, "shard": area.shard, "crs_reason": area.crs_reason,
            "wanted": None if area.wanted is None else area.wanted.wkb_hex,
        },
        "ground": None if ground is None else ground.wkb_hex,
        "block": job.block,
        "images": {key: content_of(one) for key, one in job.sources.items() if not one.modality.is_temporal},
        "statistics": None if statistics is None else statistics.to_dict(),
    }  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    if job.places is not None:
        np.save(folder / _PLACES, job.places, allow_pickle=False)
    write_whole(folder / _ABOUT, json.dumps(about, indent=1).encode())


def growing_of(folder: Path, keep: Keep, earlier: Earlier | None, periods: Sequence[Period],
               new: Mapping[int, Mapping[str, Source]]) -> Growing:  # fmt: skip
    """Return how a job keeps data for updates and uses data that was kept."""
    if earlier is None:
        return Growing(files=UnitFiles(folder), keep=keep)
    return Growing(
        files=UnitFiles(folder), keep=keep, earlier=UnitFiles(earlier.folder), was=earlier.was(periods), new=new
    )


def sweep(store: Path, fingerprint: str | None) -> None:
    """Remove data kept for earlier states of a store.

    With `fingerprint` None, nothing is kept for the present one either.
    """
    for other in {path.parent for path in series_of(store).glob(f"*/{_ABOUT}")}:
        if other.name != fingerprint:
            shutil.rmtree(other, ignore_errors=True)
    if fingerprint is None and series_of(store).exists() and not any(series_of(store).iterdir()):
        series_of(store).rmdir()


def _is_replaced(word: str, keys: Collection[str]) -> bool:
    """Whether an input of the earlier run is given anew.

    So is a YAML file that no longer exists, if any input is given.
    """
    if keys and "=" not in word and not Path(word).exists():
        return True
    return bool(describe_sources([word]).keys() & set(keys))


def _absolute(word: str) -> str:
    """Make an input's path absolute."""
    if "=" not in word:
        return str(Path(word).absolute())
    key, _, path = word.partition("=")
    return f"{key}={Path(path).absolute()}" if Path(InputPath.parse(word).path).exists() else word


def _path_or_name(word: str | None) -> str | None:
    return str(Path(word).absolute()) if word is not None and Path(word).exists() else word
