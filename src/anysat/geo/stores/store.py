"""The Zarr store of an area, written shard by shard by threads or processes, and resumable.

Until it is finished, everything lies in `OUT.partial`: the store itself, a marker with checksums for each finished
unit, and what the store is made from. A unit is one shard of one period in every array. Each is written once, as a
whole, by one thread, in any order.
"""

from __future__ import annotations

import glob
import json
import os
import re
import secrets
import shutil
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from anysat.errors import OutputExistsError, RecordError, StoreMismatchError, UnfinishedError, WriteError
from anysat.geo.claims import claim, release
from anysat.geo.periods import Period
from anysat.geo.stores.fingerprints import differences, facts_of, fingerprint_of
from anysat.geo.stores.layout import Layout, create_group
from anysat.geo.stores.quantise import Loss
from anysat.whole_files import checksum, put_in_place, read_object, sweep, write_whole

_DATA, _DONE, _FACTS, _OLD = "store.zarr", "done", "made-from.json", "replaced"
_MARKER = re.compile(r"(\d+)-(\d+)-(\d+)\.json")
CHECKSUMS = "checksums"
"""Group of a finished store with a checksum per shard of each array (blake2b, 8 bytes), 0 if there is no file."""


class Unit(NamedTuple):
    """One shard of one period, in every array."""

    period: int
    row: int
    col: int


class AreaStore:
    """A store that is being written. Get one by `AreaStore.open`. It can be sent to other processes.

    Example:
        >>> from datetime import date
        >>> from odc.geo.geobox import GeoBox
        >>> grid = GeoBox.from_bbox((500000, 5000000, 500060, 5000040), "EPSG:32631", resolution=10)
        >>> folder = getfixture("tmp_path")
        >>> layouts = [Layout(name="patch", geobox=grid, dim=3, shard_px=4, chunk_px=2)]
        >>> made_from = {"weights": "nano", "inputs": ["s2.nc"]}
        >>> store = AreaStore.open(folder / "a.zarr", layouts, [(date(2020, 1, 1), date(2020, 12, 31))], made_from)
        >>> for unit in store.remaining():
        ...     rows, cols = store.layouts["patch"].shard_slices(unit.row, unit.col)
        ...     seen = np.ones((rows.stop - rows.start, cols.stop - cols.start), bool)
        ...     store.write(unit, {"patch": (np.ones((*seen.shape, 3), np.float32), seen)})
        >>> store.finish({"seam_score": 1.0}).name
        'a.zarr'
    """

    def __init__(self, final: Path, layouts: Sequence[Layout], num_periods: int) -> None:
        self.final = final
        self.partial = partial_of(final)
        self.layouts = {layout.name: layout for layout in layouts}
        self.num_periods = num_periods
        self.is_continued = False
        """Whether an unfinished store was taken up."""
        self.begun_anew = ""
        """Why an unfinished store was not continued; empty if it was, or if there was none."""

    @classmethod
    def open(
        cls, final: Path, layouts: Sequence[Layout], periods: Sequence[Period], made_from: Mapping[str, Any], *,
        attributes: Mapping[str, Any] | None = None, overwrite: bool = False,
    ) -> AreaStore:  # fmt: skip
        """Continue an unfinished store, or start a new one. Only one process may do this at a time.

        Args:
            final: Path of the finished store, NAME.zarr.
            layouts: Groups of the store.
            periods: First and last day of each period.
            made_from: What the store is made from, as JSON-serialisable values: inputs, dates, weights, options. An
                unfinished store is continued only if they are the same.
            attributes: Attributes of the root group, stored under `anysat`.
            overwrite: Replace a finished store once this one is finished, and discard an unfinished one that was made
                from something else.

        Raises:
            OutputExistsError: There is a finished store, and `overwrite` is False.
            StoreMismatchError: There is an unfinished store that was made from something else.
            WriteError: The store cannot be written.
            InputError: Another process is writing it.
        """
        _check(layouts, periods)
        store = cls(Path(final).absolute(), layouts, len(periods))
        if store.final.exists() and not store.data.exists():  # stopped at the very end of `finish`
            shutil.rmtree(store.partial, ignore_errors=True)
        if store.final.exists() and not overwrite:
            raise OutputExistsError([store.final])
        facts = facts_of(layouts, periods, made_from)
        try:
            store.is_continued = store._take_up(facts, throw_away=overwrite)
            if not store.is_continued:
                store._begin(facts, periods, attributes or {})
            store._sweep()
        except OSError as error:
            if isinstance(error, WriteError):
                raise
            raise WriteError(store.final, error.strerror or error) from error
        return store

    @classmethod
    def is_made(
        cls, final: Path, layouts: Sequence[Layout], periods: Sequence[Period], made_from: Mapping[str, Any]
    ) -> bool:
        """Return whether there is a finished store that was made from the same."""
        import zarr

        if not (final / "zarr.json").exists() or partial_of(final).joinpath(_DATA).exists():
            return False
        kept: Any = zarr.open_group(final, mode="r").attrs.get("anysat", {})
        return bool(kept.get("fingerprint") == fingerprint_of(facts_of(layouts, periods, made_from)))

    @staticmethod
    def check_same(
        final: Path, layouts: Sequence[Layout], periods: Sequence[Period], made_from: Mapping[str, Any]
    ) -> None:
        """Check that a finished store, if there is one, was made from the same.

        Raises:
            StoreMismatchError: It was made from something else. The message lists the differences.
        """
        import zarr

        if (final / "zarr.json").exists() and not AreaStore.is_made(final, layouts, periods, made_from):
            kept: Any = zarr.open_group(final, mode="r").attrs.get("anysat", {})
            facts = facts_of(layouts, periods, made_from)
            differing = differences({name: kept.get(name, value) for name, value in facts.items()}, facts)
            raise StoreMismatchError(final, differing or ["its values are stored in another way"])

    @staticmethod
    def fingerprint(layouts: Sequence[Layout], periods: Sequence[Period], made_from: Mapping[str, Any]) -> str:
        """Return the fingerprint of what a store is made from, as stored in its attributes."""
        return fingerprint_of(facts_of(layouts, periods, made_from))

    @staticmethod
    def bring_back(final: Path) -> None:
        """Restore an older store if its replacement was interrupted between the two renames of `finish`."""
        old = partial_of(final) / _OLD
        if old.exists() and not final.exists():
            old.rename(final)

    @property
    def data(self) -> Path:
        """Path of the unfinished Zarr store, in which only finished units are reliable."""
        return self.partial / _DATA

    @property
    def shape(self) -> tuple[int, int, int]:
        """Number of periods, and of rows and columns of shards."""
        return (self.num_periods, *next(iter(self.layouts.values())).shards)

    def units(self) -> Iterator[Unit]:
        """Return all units, period by period, row by row."""
        return (Unit(*map(int, index)) for index in np.ndindex(self.shape))

    def is_done(self, unit: Unit) -> bool:
        """Return whether a unit is written."""
        return self._marker(unit).exists()

    def unwritten(self) -> NDArray[np.bool_]:
        """Return which units are not written yet (period row col), one byte each."""
        found = np.ones(self.shape, bool)
        for entry in os.scandir(self.partial / _DONE):
            if (unit := _MARKER.fullmatch(entry.name)) is not None:
                found[tuple(map(int, unit.groups()))] = False
        return found

    def remaining(self) -> list[Unit]:
        """Return the units that are not written yet."""
        return [Unit(*index) for index in np.argwhere(self.unwritten()).tolist()]

    def notes(self) -> Iterator[tuple[Unit, dict[str, Any]]]:
        """Yield each finished unit with its notes (see `write`)."""
        for unit in self.units():
            if (kept := self._kept(unit)) is not None:
                yield unit, kept["notes"]

    def losses(self) -> dict[str, Loss]:
        """Return the loss of all finished units by storage in less than float32, by layout."""
        found: dict[str, Loss] = {}
        for unit in self.units():
            if (kept := self._kept(unit)) is not None:
                for name, loss in kept["losses"].items():
                    found[name] = found.get(name, Loss()) + Loss(**loss)
        return found

    def write(
        self, unit: Unit, arrays: Mapping[str, tuple[NDArray[Any], NDArray[np.bool_]]],
        notes: Mapping[str, Any] | None = None,
    ) -> None:  # fmt: skip
        """Write a unit, and then its marker. A unit without a marker does not count as written.

        Args:
            unit: The unit.
            arrays: By layout, values (row col dim) or (row col) and validity (row col). The last shards are smaller.
            notes: Anything that can be written as JSON; `notes()` returns it.

        Raises:
            InputError: Shapes do not fit, or valid values are not finite.
            UnfinishedError: The unit could not be written. Units written before are kept.
        """
        if arrays.keys() != self.layouts.keys():
            raise RecordError("arrays of a unit", sorted(arrays), f"all of {', '.join(self.layouts)}")
        files: dict[str, Any] = {}
        losses: dict[str, Any] = {}
        try:
            for name, (values, valid) in arrays.items():
                stored, loss = self.layouts[name].stored(values, valid)
                for array, part in stored.items():
                    files[f"{name}/{array}"] = self._write_shard(unit, name, array, part)
                if loss is not None:
                    losses[name] = loss.to_dict()
            kept = {"files": files, "losses": losses, "notes": dict(notes or {})}
            write_whole(self._marker(unit), json.dumps(kept), to_disk=any(files.values()))
        except OSError as error:
            raise UnfinishedError(self.partial, error.strerror or error) from error

    def finish(self, summary: Mapping[str, Any] | None = None) -> Path:
        """Write checksums and attributes, move the store to its final path, and return that.

        Args:
            summary: Anything that can be written as JSON, stored in the root's attributes.

        Raises:
            UnfinishedError: Units are missing, or the store cannot be written. Finished units are kept.
        """
        missing = self.unwritten()
        if missing.any():
            few = ", ".join(str(tuple(index)) for index in np.argwhere(missing)[:4].tolist())
            raise UnfinishedError(self.partial, f"{missing.sum()} of {np.prod(self.shape)} units are missing: {few} …")
        try:
            self._complete(dict(summary or {}))
            if self.final.exists():
                shutil.rmtree(self.partial / _OLD, ignore_errors=True)
            put_in_place(self.data, self.final, self.partial / _OLD)
            shutil.rmtree(self.partial, ignore_errors=True)
        except OSError as error:
            raise UnfinishedError(self.partial, error.strerror or error) from error
        release(self.partial)
        return self.final

    def discard(self) -> None:
        """Delete the unfinished store, if nothing in it is worth keeping. A finished store stays."""
        self.bring_back(self.final)
        shutil.rmtree(self.partial, ignore_errors=True)
        release(self.partial)

    def close(self) -> None:
        """Release the unfinished store for other processes. This also happens when the process ends."""
        release(self.partial)

    def _marker(self, unit: Unit) -> Path:
        return self.partial / _DONE / f"{unit.period}-{unit.row}-{unit.col}.json"

    def _kept(self, unit: Unit) -> dict[str, Any] | None:
        """Return the content of a unit's marker; None if it is missing or damaged."""
        return read_object(self._marker(unit), ("files", "losses", "notes"))

    def _shard_file(self, unit: Unit, name: str, array: str) -> Path:
        layout = self.layouts[name]
        depth = ("0",) if array == layout.variable and layout.dim else ()
        place = (str(unit.period), *depth, str(unit.row), str(unit.col))
        return self.data.joinpath(name, array, "c", *place)

    def _write_shard(self, unit: Unit, name: str, array: str, part: NDArray[Any]) -> dict[str, Any] | None:
        """Write a shard, and return size and checksum of its file; None if it has only fill values, and so no file."""
        import zarr

        path = self._shard_file(unit, name, array)
        path.unlink(missing_ok=True)  # else the rest of a killed writer's file would be read and merged
        rows, cols = self.layouts[name].shard_slices(unit.row, unit.col)
        target = zarr.open_array(self.data, path=f"{name}/{array}", mode="r+")
        target[(unit.period, ..., rows, cols)] = part
        return checksum(path, to_disk=True)

    def _begin(self, facts: Mapping[str, Any], periods: Sequence[Period], attributes: Mapping[str, Any]) -> None:
        """Create the empty store under a temporary name, so that an unfinished store can always be continued."""
        import zarr

        self.partial.parent.mkdir(parents=True, exist_ok=True)
        new = self.partial.with_name(f".{self.partial.name}-{secrets.token_hex(4)}")
        try:
            new.mkdir()
            zarr.create_group(new / _DATA, attributes={"anysat": dict(attributes)}, overwrite=True)
            for layout in self.layouts.values():
                create_group(new / _DATA, layout, periods)
            (new / _DONE).mkdir()
            write_whole(new / _FACTS, json.dumps(facts))
            new.rename(self.partial)
        finally:
            shutil.rmtree(new, ignore_errors=True)
        claim(self.partial)

    def _take_up(self, facts: Mapping[str, Any], *, throw_away: bool) -> bool:
        """Claim the unfinished store, if any, and return whether it can be continued. If not, remove it or raise."""
        if not self.partial.exists():
            return False
        claim(self.partial)
        kept = read_object(self.partial / _FACTS, ("made_from", "periods", "layouts"))
        if kept == facts:
            return True
        if kept is not None and not throw_away:
            raise StoreMismatchError(self.partial, differences(kept, facts))
        if kept is None and (self.partial / _DONE).exists():
            self.begun_anew = f"started again, because {self.partial / _FACTS} (what it is made from) cannot be read"
        self.discard()
        return False

    def _sweep(self) -> None:
        """Remove leftovers of killed writers, and markers of units whose files are missing or have another size."""
        for path in self.partial.parent.glob(f".{glob.escape(self.partial.name)}-*"):
            shutil.rmtree(path, ignore_errors=True)
        sweep(self.partial / _DONE)
        for path in self.partial.rglob("*.partial"):
            path.unlink(missing_ok=True)
        for unit in self.units():
            if self.is_done(unit) and not self._is_whole(unit):
                self._marker(unit).unlink()

    def _is_whole(self, unit: Unit) -> bool:
        found = self._kept(unit)
        if found is None:
            return False
        files = [(self._shard_file(unit, *key.split("/")), kept) for key, kept in found["files"].items()]
        return all(kept is None or (path.exists() and path.stat().st_size == kept["bytes"]) for path, kept in files)

    def _complete(self, summary: dict[str, Any]) -> None:
        """Write checksums, losses, summary and consolidated metadata."""
        import zarr

        self._write_checksums()
        root = zarr.open_group(self.data, mode="r+")
        losses = {name: loss.summary() for name, loss in self.losses().items()}
        kept: Any = root.attrs.get("anysat", {})
        facts = json.loads((self.partial / _FACTS).read_text())
        found = {**kept, "made_from": facts["made_from"], "periods": facts["periods"],
                 "fingerprint": fingerprint_of(facts), "summary": summary}  # fmt: skip
        root.attrs["anysat"] = found | ({"quantisation_loss": losses} if losses else {})
        for name, loss in losses.items():
            root[name].attrs["quantisation_loss"] = loss
        consolidate(self.data, (*self.layouts, ""))

    def _write_checksums(self) -> None:
        import zarr

        sums = {
            f"{x.name}/{array}": np.zeros(self.shape, np.uint64) for x in self.layouts.values() for array in x.arrays
        }
        for unit in self.units():
            found = self._kept(unit)
            if found is None:
                raise UnfinishedError(self.partial, f"the marker of unit {tuple(unit)} is damaged")
            for key, kept in found["files"].items():
                sums[key][unit] = 0 if kept is None else int(kept["blake2b"], 16)
        group = zarr.open_group(self.data, mode="r+").create_group(CHECKSUMS, overwrite=True)
        for key, values in sums.items():
            array = group.create_array(
                key.replace("/", "_"), data=values, dimension_names=("time", "shard_row", "shard_col")
            )
            array.attrs["array"] = key


def partial_of(final: Path) -> Path:
    """Return the path of a store until it is finished."""
    return final.with_name(final.name + ".partial")


def consolidate(store: Path, groups: Sequence[str]) -> None:
    """Consolidate the metadata below each group, so that it is opened with one read, and without a warning."""
    import zarr

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Consolidated metadata")
        for group in groups:
            zarr.consolidate_metadata(store, path=group or None, zarr_format=3)


def _check(layouts: Sequence[Layout], periods: Sequence[Period]) -> None:
    if not layouts or not periods:
        raise RecordError("layouts, periods", (len(layouts), len(periods)), "one or more of each")
    if len({layout.name for layout in layouts} | {CHECKSUMS}) <= len(layouts):
        raise RecordError("layouts", [x.name for x in layouts], f"different names, none of them {CHECKSUMS!r}")
    if len({layout.shards for layout in layouts}) > 1:
        raise RecordError("layouts", {x.name: x.shards for x in layouts}, "the same number of shards in all")
