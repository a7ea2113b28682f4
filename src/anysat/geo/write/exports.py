"""Export a finished store to formats that other software opens: cloud-optimised GeoTIFF, GeoParquet, GeoPackage.

The suffix of the output chooses the format. Files are written shard by shard, in little memory, and appear once they
are complete.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np

from anysat.errors import RecordError
from anysat.geo.periods import Period
from anysat.geo.stores.layout import Layout
from anysat.geo.stores.stored import StoredGroup, find_group, provenance_of
from anysat.geo.write.cogs import Block, Cog, write_cog
from anysat.geo.write.maps import class_document, class_tags, palette_of
from anysat.geo.write.outputs import Result, find_writer, suffixes
from anysat.geo.write.polygons import write_polygons
from anysat.geo.write.tables import Geometry, PatchTable
from anysat.geo.write.writers import staged

Advance = Callable[[int], object]
"""Called with the number of shards that are done."""


class Content(NamedTuple):
    """The properties of a group that decide which files are made of it."""

    periods: Sequence[Period]
    has_norm: bool
    has_classes: bool

    @classmethod
    def of(cls, group: StoredGroup) -> Content:
        """Return the content of a stored group."""
        return cls(group.periods, "norm" in group.group, bool(group.class_names))

    @classmethod
    def planned(cls, layout: Layout, periods: Sequence[Period]) -> Content:
        """Return the content of a group that will be stored with a layout."""
        return cls(periods, "norm" in layout.arrays, "class_names" in layout.variable_attributes)


class Export(Protocol):
    """One export format."""

    def files(self, content: Content, out: Path) -> tuple[Path, ...]:
        """Return the files that `write` makes of a group; none if the format does not suit it."""

    def write(self, group: StoredGroup, folder: Path, out: Path, tags: Mapping[str, Any], advance: Advance) -> None:
        """Write the files of `out` into a folder, under their final names."""


class CogExport:
    """One GeoTIFF per period, with one band per dimension or band name.

    Quantised codes have their scale in the tags, and the vectors' lengths are in NAME_norm.tif. Classes in bytes
    have a palette; the names of classes are in the tags and in NAME.tif.aux.xml.
    """

    def files(self, content: Content, out: Path) -> tuple[Path, ...]:
        """Return NAME.tif, or NAME_2020-01-01.tif … for several periods, and the files beside them."""
        return tuple(path for paths in self._by_period(content, out).values() for path in paths)

    def write(self, group: StoredGroup, folder: Path, out: Path, tags: Mapping[str, Any], advance: Advance) -> None:
        """Write the GeoTIFFs, shard by shard."""
        for period, (path, *beside) in self._by_period(Content.of(group), out).items():
            told = dict(tags) | {"period": [str(day) for day in group.periods[period]] if group.periods else None}
            main = _blocks(group, period, group.variable, advance)
            write_cog(folder / path.name, _cog_of(group, group.variable, told), main)
            if beside and "norm" in group.group:
                norms = _blocks(group, period, "norm", lambda _: None)
                write_cog(folder / beside[0].name, _cog_of(group, "norm", told), norms)
            elif beside:
                (folder / beside[0].name).write_text(class_document(group.variable_attributes))

    def _by_period(self, content: Content, out: Path) -> dict[int, tuple[Path, ...]]:
        found, names = {}, _period_names(content.periods)
        for number, name in enumerate(names):
            several = f"_{name}" if len(names) > 1 else ""
            path = out.with_name(f"{out.stem}{several}{out.suffix}")
            beside = []
            if content.has_norm:
                beside = [path.with_name(f"{path.stem}_norm{path.suffix}")]
            elif content.has_classes:
                beside = [path.with_name(path.name + ".aux.xml")]
            found[number] = (path, *beside)
        return found


def _period_names(periods: Sequence[Period]) -> list[str]:
    """Return first days, with the last day if several periods begin alike; one empty name if there is no period."""
    first = [str(begin) for begin, _ in periods]
    return [str(begin) if first.count(str(begin)) == 1 else f"{begin}_{end}" for begin, end in periods] or [""]


class TableExport:
    """One GeoParquet file with one row per patch that was seen and one row group per shard. Codes stay codes."""

    geometry: Geometry = "polygon"

    def files(self, content: Content, out: Path) -> tuple[Path, ...]:  # noqa: ARG002 - the file, whatever the group
        """Return the one file, whatever the group."""
        return (out,)

    def write(self, group: StoredGroup, folder: Path, out: Path, tags: Mapping[str, Any], advance: Advance) -> None:
        """Write the rows, shard by shard."""
        scale = group.scale
        told = dict(tags) | ({} if scale is None else {"scale": [float(step) for step in scale]})
        table = PatchTable(
            folder / out.name, group.geobox, variable=group.variable, dim=group.dim, dtype=group.array.dtype,
            bands=group.bands, classes=group.class_names, has_norm="norm" in group.group, geometry=self.geometry,
            attributes=told,
        )  # fmt: skip
        names = _period_names(group.periods)
        with table:
            for unit in group.units():
                period = group.periods[unit.period] if group.periods else None
                rows, cols = group.slices(unit)
                start = f"{names[unit.period]}_" if period else ""
                table.add(
                    group.codes(unit), group.valid(unit), corner=(rows.start, cols.start), period=period,
                    tile_id=f"{start}{unit.row}_{unit.col}", norms=group.norms(unit),
                )  # fmt: skip
                advance(1)


class PointExport(TableExport):
    """A `TableExport` with the centre of each patch as its geometry."""

    geometry: Geometry = "point"


class PolygonExport:
    """One GeoPackage with the polygons of a class map (`anysat.geo.write.polygons`)."""

    def files(self, content: Content, out: Path) -> tuple[Path, ...]:
        """Return the file if the group is a class map."""
        return (out,) if content.has_classes else ()

    def write(self, group: StoredGroup, folder: Path, out: Path, tags: Mapping[str, Any], advance: Advance) -> None:
        """Write the polygons of every period."""
        write_polygons(folder / out.name, group, tags, advance)


def find_export(suffix: str) -> Export:
    """Return the export format for a file's suffix, from the table in `anysat.geo.write.outputs`.

    Raises:
        UnknownNameError: No format has this suffix.
    """
    is_for_others = suffix in suffixes(Result.AREA) and suffix not in suffixes(Result.CLASSES)
    found: Export = find_writer(Result.AREA if is_for_others else Result.CLASSES, suffix)()
    return found


def export(
    store: Path, out: Path, *, group: str | None = None, geometry: Geometry = "polygon", overwrite: bool = False,
    advance: Advance = lambda _: None,
) -> tuple[Path, ...]:  # fmt: skip
    """Export one group of a finished store to the format that the suffix chooses, and return the files.

    Args:
        store: NAME.zarr.
        out: NAME.tif, NAME.parquet or, for a class map, NAME.gpkg.
        group: Name of the group; None for the main one (`find_group`).
        geometry: Geometry of the rows of a table: the patch, or its centre.
        overwrite: Replace existing files.
        advance: Called with the number of shards just done, `num_steps` in all.

    Raises:
        SourceError, MissingFileError, UnknownNameError: There is no such store, group or format.
        RecordError: The format does not suit the group.
        WriteError: A file exists or cannot be written. Nothing is left behind.
    """
    chosen, found = find_export(out.suffix), find_group(store, group)
    if geometry == "point":
        if not isinstance(chosen, TableExport):
            raise RecordError("geometry", geometry, f"polygon, because {out.name} has pixels")
        chosen = PointExport()
    finals = chosen.files(Content.of(found), out)
    if not finals:
        raise RecordError("group", found.name, f"a class map of {store.name}, because {out.name} has polygons")
    named = {} if store.name.startswith(".") else {"store": store.name}  # a hidden one is deleted afterwards
    tags = {**named, "group": found.name, **_facts(found), **provenance_of(store)}
    with staged(finals, overwrite=overwrite) as folder:
        chosen.write(found, folder, out, tags, advance)
    return finals


def num_steps(store: Path, group: str | None = None) -> int:
    """Return the number of shards that `export` reports to `advance`."""
    return sum(1 for _ in find_group(store, group).units())


def _facts(group: StoredGroup) -> dict[str, Any]:
    return {key: value for key, value in group.attributes.items() if key.startswith("geoemb:")}


def _cog_of(group: StoredGroup, variable: str, tags: Mapping[str, Any]) -> Cog:
    is_main, attributes = variable == group.variable, group.variable_attributes
    if not is_main:
        return Cog(geobox=group.geobox, dtype="float32", names=[variable], nodata=float("nan"),
                   resampling="nearest", tags=tags)  # fmt: skip
    dtype = group.array.dtype.name.replace("float16", "float32")  # which GDAL 3.10 does not have
    is_class = bool(group.class_names)
    scale = group.scale
    return Cog(
        geobox=group.geobox, dtype=dtype, tags=tags,
        names=group.bands or _band_names(group),
        nodata=float("nan") if dtype == "float32" else int(group.array.fill_value),
        resampling="mode" if is_class else "nearest" if group.is_embedding else "average",
        texts=class_tags(attributes) if is_class else {}, palette=palette_of(attributes) if is_class else {},
        scales=() if scale is None else [float(step) for step in scale], unit=str(attributes.get("units", "")),
    )  # fmt: skip


def _band_names(group: StoredGroup) -> list[str]:
    return [group.name] if group.dim is None else [f"{group.name}_{index}" for index in range(group.dim)]


def _blocks(group: StoredGroup, period: int, variable: str, advance: Advance) -> Iterator[Block]:
    for unit in group.units(period):
        values = group.codes(unit) if variable == group.variable else group.part(variable, unit)
        yield group.slices(unit), np.moveaxis(values, -1, 0) if values.ndim == 3 else values[None]
        advance(1)
