"""Make maps of stores: read embeddings part by part, compute numbers from them, and write these in any format."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from anysat.errors import InputError, RecordError, UnfinishedError, WriteError
from anysat.geo.degrees import WGS84
from anysat.geo.grid import crs_of, mapped
from anysat.geo.ground import file_and_layer
from anysat.geo.periods import Period
from anysat.geo.samples import Patches, read_window
from anysat.geo.stores.layout import Layout
from anysat.geo.stores.store import AreaStore, Unit
from anysat.geo.stores.stored import StoredGroup, provenance_of
from anysat.geo.write.catalog import catalog_of
from anysat.geo.write.exports import Content, export, find_export
from anysat.geo.write.outputs import STORE
from anysat.geo.write.writers import check_apart, check_free, staged
from anysat.geo.zonal import Advance, find_alike, find_stores
from anysat.picture_areas import area_figure
from anysat.pictures import picture_of, save_picture

Bar = Callable[[str, int], AbstractContextManager[Advance]]
"""Shows progress: a title and a number of steps in, a context out whose value is told the steps just done."""
Compute = Callable[[int, NDArray[np.float32]], Mapping[str, NDArray[Any]]]
"""Returns the numbers of each layer (patch …) from the number of a period and vectors (patch dim); NaN for none."""


@dataclass(frozen=True, kw_only=True)
class Mapped:
    """Maps of stores that were written."""

    files: tuple[Path, ...]
    """All files, one set per store."""
    report: str
    """What the command prints."""
    facts: Mapping[str, Any]
    """Plain values, such as scores. Those of `classify` are also in the provenance of the maps."""


@contextmanager
def no_bar(what: str, total: int) -> Iterator[Advance]:  # noqa: ARG001 - shows nothing
    """Show no progress."""
    yield lambda _: None


@dataclass(frozen=True, eq=False, kw_only=True)
class Stores:
    """Opened stores of embeddings, all of one kind."""

    paths: Sequence[Path]
    groups: Sequence[StoredGroup]
    periods: Sequence[Period]
    """First and last day of each period."""
    name: str
    """Names of the stores, for messages."""

    @classmethod
    def open(cls, given: Any, group: str | None) -> Stores:
        """Open stores, or one.

        Raises:
            MissingFileError, SourceError, UnknownNameError: A store or group cannot be used.
            InputError: It is not a path or holds no embeddings, or the stores are not of one kind.
        """
        paths = find_stores(given)
        groups, name = find_alike(paths, group), ", ".join(path.name for path in paths)
        first = groups[0]
        if not first.is_embedding or first.dim is None:
            raise InputError(f"group {first.name} of {name}", "embeddings", f"a map ({first.variable})",
                             "give a store written by `anysat embed`")  # fmt: skip
        return cls(paths=paths, groups=groups, periods=first.periods or (_days_of_tile(paths[0]),), name=name)

    def places_deg(self, patches: Patches) -> NDArray[np.float64]:
        """Return longitude and latitude (patch 2) of the centres of patches."""
        found = np.empty((len(patches.row), 2))
        for number, group in enumerate(self.groups):
            mine, crs = patches.store == number, crs_of(group.geobox)
            x, y = mapped(group.geobox.affine, patches.col[mine] + 0.5, patches.row[mine] + 0.5)
            found[mine] = np.stack(crs.transformer_to_crs(WGS84)(x, y), axis=1)
        return found

    @property
    def num_steps(self) -> int:
        """Number of shards of all stores and periods."""
        return len(self.periods) * sum(rows * cols for rows, cols in (group.shards for group in self.groups))


def _days_of_tile(path: Path) -> Period:
    """Return the first and last date of the inputs of a tile, whose store has no time axis."""
    inputs = provenance_of(path).get("inputs", {})
    days = [date.fromisoformat(str(day)[:10]) for one in inputs.values() for day in one.get("dates", ())]
    if not days:
        raise InputError(path.name, "a store whose inputs state their dates", "none",
                         "embed them as an area, with --dates FIRST/LAST")  # fmt: skip
    return min(days), max(days)


def seen_parts(group: StoredGroup, unit: Unit) -> Iterator[tuple[slice, NDArray[np.float32], NDArray[np.bool_]]]:
    """Yield parts of a shard: rows, the vectors that were seen (patch dim), and where they are in these rows."""
    for rows, cols in group.strips(unit):
        vectors, seen = read_window(group, unit.period, rows, cols)
        yield rows, vectors[seen], seen


@dataclass(frozen=True, eq=False, kw_only=True)
class MapPlan:
    """What to write."""

    stores: Stores
    out: Path
    layers: Mapping[str, Mapping[str, Any]]
    """For each layer, the main one first, further fields of its `Layout`."""
    also: Sequence[str] = ()
    """Suffixes of the formats to write besides a store."""
    beside: Sequence[Path] = ()
    """Texts to write with the map of the first store."""

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

    def exports(self, number: int) -> list[tuple[Layout, Path, tuple[Path, ...]]]:
        """Return the layers that are exported for a store, each with the output and its files."""
        out, layouts = self.output(number), self.layouts(self.stores.groups[number])
        found = []
        for suffix in self.also if out.suffix == STORE else (out.suffix,):
            for layout in layouts:
                path = out.with_name(f"{out.stem}{'' if layout is layouts[0] else f'_{layout.name}'}{suffix}")
                if files := find_export(suffix).files(Content.planned(layout, self.stores.periods), path):
                    found.append((layout, path, files))
        return found

    def finals(self, number: int) -> list[Path]:
        """Return all outputs for a store."""
        out = self.output(number)
        own = [out, catalog_of(out)] if out.suffix == STORE else []  # the catalog of an older map goes
        exported = (file for _, _, files in self.exports(number) for file in files)
        return [*own, *exported, picture_of(out), *(self.beside if number == 0 else ())]

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
    plan: MapPlan, compute: Compute, told: Mapping[str, Any], *, overwrite: bool, bar: Bar,
    texts: Mapping[Path, str] | None = None,
) -> tuple[Path, ...]:  # fmt: skip
    """Compute the maps of all stores and write them, with a picture each. Memory holds about a shard of the map.

    Args:
        plan: What to write.
        compute: Computes the numbers of a few patches.
        told: Provenance, as plain values; what is known of the store is added.
        overwrite: Replace existing outputs.
        bar: Shows progress.
        texts: The content of those `MapPlan.beside` that there are.

    Returns:
        The files that were written.

    Raises:
        WriteError: An output exists or cannot be written. Nothing is left behind of that store.
    """
    stores, written = plan.stores, []
    with bar(f"mapping {plan.out.name}", stores.num_steps) as advance:
        for number, (path, group) in enumerate(zip(stores.paths, stores.groups, strict=True)):
            out, made = plan.output(number), provenance_of(path)
            known = made.get("made_from", made)
            told_of = {**{name: known[name] for name in ("weights", "statistics") if name in known}, **told,
                       "store": path.name, "group": group.name, "made_from": known}  # fmt: skip
            with staged(plan.finals(number), overwrite=overwrite) as folder:
                is_kept = out.suffix == STORE  # else it is hidden, and goes with the folder
                name = out.name if is_kept else f".{out.stem}{STORE}"
                store = _computed(plan, group, folder / name, compute, told_of, advance)
                for layout, file, _ in plan.exports(number):
                    export(store, folder / file.name, group=layout.name)
                title = f"{out.name}, from {group.name} of {path.name}"
                save_picture(area_figure(store, title), folder / picture_of(out).name, out.name)
                for file, text in (texts or {}).items() if number == 0 else ():
                    (folder / file.name).write_text(text, "utf-8")
            written += [file for file in plan.finals(number) if file.exists()]
    return tuple(written)


def _computed(
    plan: MapPlan, group: StoredGroup, path: Path, compute: Compute, told: Mapping[str, Any], advance: Advance
) -> Path:  # fmt: skip
    """Write the store of a map into a temporary folder."""
    layouts = plan.layouts(group)
    store = AreaStore.open(path, layouts, plan.stores.periods, told)
    try:
        for unit in store.units():
            store.write(unit, _arrays(group, layouts, unit, compute))
            advance(1)
        return store.finish()
    except UnfinishedError as error:  # nothing is kept here
        raise WriteError(plan.out, error.__cause__ or error) from error
    finally:
        store.close()


def _arrays(
    group: StoredGroup, layouts: Sequence[Layout], unit: Unit, compute: Compute
) -> dict[str, tuple[NDArray[Any], NDArray[np.bool_]]]:
    """Return values and validity of each layer over a shard."""
    rows, cols = group.slices(unit)
    shape = rows.stop - rows.start, cols.stop - cols.start
    found = {
        one.name: (np.zeros(shape if one.dim is None else (*shape, one.dim), one.dtype), np.zeros(shape, bool))
        for one in layouts
    }
    for some, vectors, seen in seen_parts(group, unit):
        part = slice(some.start - rows.start, some.stop - rows.start)
        for name, numbers in compute(unit.period, vectors).items() if len(vectors) else ():
            values, valid = found[name]
            values[part][seen] = numbers
            valid[part][seen] = np.isfinite(numbers).reshape(len(numbers), -1).all(1)
    return found
