"""Make maps of stores: read embeddings part by part, compute numbers from them, and write these in any format."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from anysat.errors import InputError, RecordError, UnfinishedError, WriteError
from anysat.geo.ground import file_and_layer
from anysat.geo.periods import Period
from anysat.geo.samples import View, check_embeddings, views_of, window_of
from anysat.geo.stores.layout import Layout
from anysat.geo.stores.store import AreaStore, Unit
from anysat.geo.stores.stored import StoredGroup, provenance_of
from anysat.geo.write.catalog import catalog_of
from anysat.geo.write.exports import Content, export, find_export
from anysat.geo.write.outputs import STORE
from anysat.geo.write.writers import check_apart, check_free, staged
from anysat.geo.zonal import Advance, find_alike, find_stores
from anysat.picture_areas import area_figure

Bar = Callable[[str, int], AbstractContextManager[Advance]]
"""Shows progress: a title and a number of steps in, a context out whose value is told the steps just done."""
Compute = Callable[[int, NDArray[np.float32]], Mapping[str, NDArray[Any]]]
"""Returns the numbers of each layer (patch …), NaN for none, from the number of a view and its vectors (patch dim)."""


@dataclass(frozen=True, kw_only=True)
class Mapped:
    """Maps of stores that were written."""

    files: tuple[Path, ...]
    """All files, one set per store."""
    report: str
    """What the command prints."""
    facts: Mapping[str, Any]
    """Plain values, such as scores. They are also in the provenance of the maps."""


@contextmanager
def no_bar(what: str, total: int) -> Iterator[Advance]:  # noqa: ARG001 - shows nothing
    """Show no progress."""
    yield lambda _: None


@dataclass(frozen=True, eq=False, kw_only=True)
class Stores:
    """Opened stores of embeddings, all of one kind."""

    paths: Sequence[Path]
    groups: Sequence[StoredGroup]
    views: Sequence[View]
    periods: Sequence[Period]
    """First and last day of each view."""
    name: str = field(init=False)
    """Names of the stores, for messages."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "name", ", ".join(path.name for path in self.paths))

    @classmethod
    def open(cls, given: Any, group: str | None, *, together: bool = False) -> Stores:
        """Open stores, or one.

        Raises:
            MissingFileError, SourceError, UnknownNameError: A store or group cannot be used.
            InputError: It holds no embeddings, or the stores are not of one kind.
        """
        paths = find_stores([given] if isinstance(given, str | Path) else given)
        groups = find_alike(paths, group)
        check_embeddings(groups, [path.name for path in paths])
        views, days = views_of(groups[0], together=together), groups[0].periods or (_days_of_tile(paths[0]),)
        periods = [(min(days[one][0] for one in view), max(days[one][1] for one in view)) for view in views]
        return cls(paths=paths, groups=groups, views=views, periods=periods)

    @property
    def num_shards(self) -> int:
        """Number of shards of one period in all stores."""
        return sum(rows * cols for rows, cols in (group.shards for group in self.groups))

    def parts(self, view: View, advance: Advance) -> Iterator[NDArray[np.float32]]:
        """Yield the embeddings that were seen (patch dim), a few rows of chunks at a time."""
        for group in self.groups:
            for unit in group.units(0):
                for rows, cols in group.strips(unit):
                    values, seen = window_of(group, view, rows, cols)
                    yield values[seen]
                advance(1)


def _days_of_tile(path: Path) -> Period:
    """Return the first and last date of the inputs of a tile, whose store has no time axis."""
    inputs = provenance_of(path).get("inputs", {})
    days = [date.fromisoformat(str(day)[:10]) for one in inputs.values() for day in one.get("dates", ())]
    if not days:
        raise InputError(path.name, "a store whose inputs state their dates", "none",
                         "embed them as an area, with --dates FIRST/LAST")  # fmt: skip
    return min(days), max(days)


@dataclass(frozen=True, eq=False, kw_only=True)
class MapPlan:
    """What to write."""

    stores: Stores
    out: Path
    formats: Sequence[str]
    """Suffixes; that of the output first."""
    layers: Mapping[str, Mapping[str, Any]]
    """For each layer, the main one first, further fields of its `Layout`."""

    def layouts(self, group: StoredGroup) -> list[Layout]:
        """Return the layouts of a map: the grid and the shards of the store."""
        return [
            Layout(name=name, variable=name, geobox=group.geobox, shard_px=group.shard_px,
                   chunk_px=int(group.array.chunks[-1]), **told)
            for name, told in self.layers.items()
        ]  # fmt: skip

    def output(self, number: int) -> Path:
        """Return the output for a store: the given name, to which that of the zone or the store is added if several."""
        if len(self.stores.paths) == 1:
            return self.out
        stem = self.stores.paths[number].stem
        zone = re.search(r"-(utm\d+[ns])$", stem)
        return self.out.with_stem(f"{self.out.stem}-{zone[1] if zone else stem}")

    def exports(self, number: int) -> dict[tuple[str, Path], tuple[Path, ...]]:
        """Return the files to export for a store, by layer and output."""
        found, out = {}, self.output(number)
        for place, layout in enumerate(self.layouts(self.stores.groups[number])):
            content = Content.planned(layout, self.stores.periods)
            for suffix in self.formats:
                path = out.with_suffix(suffix) if place == 0 else out.with_name(f"{out.stem}_{layout.name}{suffix}")
                if suffix != STORE and (files := find_export(suffix).files(content, path)):
                    found[layout.name, path] = files
        return found

    def finals(self, number: int) -> list[Path]:
        """Return all outputs for a store."""
        out = self.output(number)
        own = [out, catalog_of(out)] if out.suffix == STORE else []  # the catalog of an older map goes
        return [*own, *(file for files in self.exports(number).values() for file in files), out.with_suffix(".png")]

    def check(self, shapes: Sequence[Any], *, overwrite: bool) -> None:
        """Check that the outputs are free and apart from the inputs, the stores and files of shapes.

        Raises:
            RecordError: Two stores have one name, or an output is an input.
            OutputExistsError: An output exists.
        """
        every = [path for number in range(len(self.stores.paths)) for path in self.finals(number)]
        if len(set(every)) < len(every):
            raise RecordError("STORE", self.stores.name, "stores with different names, which are added to --out")
        files = [str(file_and_layer(str(one))[0]) for one in shapes if isinstance(one, str | Path)]
        check_apart(every, [*map(str, self.stores.paths), *files])
        check_free(every, overwrite=overwrite)


def write_maps(
    plan: MapPlan, compute: Compute, told: Mapping[str, Any], *, overwrite: bool, bar: Bar
) -> tuple[Path, ...]:  # fmt: skip
    """Compute the maps of all stores and write them, with a picture each. Memory holds about a shard of the map.

    Args:
        plan: What to write.
        compute: Computes the numbers of a few patches.
        told: Provenance, as plain values; what is known of the store is added.
        overwrite: Replace existing outputs.
        bar: Shows progress.

    Raises:
        WriteError: An output exists or cannot be written. Nothing is left behind of that store.
    """
    stores, written = plan.stores, []
    with bar(f"mapping {plan.out.name}", stores.num_shards * len(stores.views)) as advance:
        for number, (path, group) in enumerate(zip(stores.paths, stores.groups, strict=True)):
            out, made = plan.output(number), provenance_of(path)
            known = made.get("made_from", made)
            told_of = {**{name: known[name] for name in ("weights", "statistics") if name in known}, **told,
                       "store": path.name, "group": group.name, "made_from": known}  # fmt: skip
            with staged(plan.finals(number), overwrite=overwrite) as folder:
                store = _computed(plan, group, folder / f"{out.stem}{STORE}", compute, told_of, advance)
                for layer, file in plan.exports(number):
                    export(store, folder / file.name, group=layer)
                title = f"{out.name}, from {group.name} of {path.name}"
                area_figure(store, title).savefig(folder / f"{out.stem}.png")
            written += [file for file in plan.finals(number) if file != catalog_of(out)]
    return tuple(written)


def _computed(
    plan: MapPlan, group: StoredGroup, path: Path, compute: Compute, told: Mapping[str, Any], advance: Advance
) -> Path:  # fmt: skip
    """Write the store of a map into a temporary folder."""
    layouts = plan.layouts(group)
    store = AreaStore.open(path, layouts, plan.stores.periods, told)
    try:
        for unit in store.units():
            store.write(unit, _arrays(group, plan.stores.views[unit.period], layouts, unit, compute))
            advance(1)
        return store.finish()
    except UnfinishedError as error:  # nothing is kept here
        raise WriteError(plan.out, error.__cause__ or error) from error
    finally:
        store.close()


def _arrays(
    group: StoredGroup, view: View, layouts: Sequence[Layout], unit: Unit, compute: Compute
) -> dict[str, tuple[NDArray[Any], NDArray[np.bool_]]]:
    """Return values and validity of each layer over a shard."""
    rows, cols = group.slices(unit)
    shape = rows.stop - rows.start, cols.stop - cols.start
    found: dict[str, tuple[NDArray[Any], NDArray[np.bool_]]] = {}
    for layout in layouts:
        depth = () if layout.dim is None else (layout.dim,)
        empty = 0 if layout.dtype.kind == "u" else np.nan
        found[layout.name] = np.full((*shape, *depth), empty, layout.dtype), np.zeros(shape, bool)
    for some, _ in group.strips(unit):
        vectors, seen = window_of(group, view, some, cols)
        part = slice(some.start - rows.start, some.stop - rows.start)
        for name, numbers in compute(unit.period, vectors[seen]).items():
            values, valid = found[name]
            values[part][seen] = numbers
            valid[part][seen] = np.isfinite(numbers).reshape(len(numbers), -1).all(1)
    return found
