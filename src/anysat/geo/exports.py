"""A finished store to the files others open: cloud-optimised GeoTIFFs, GeoParquet, polygons of classes.

They are written shard by shard, in little memory. What a file of a name is to hold is chosen by its suffix. Files
appear when they are whole.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np

from anysat.errors import RecordError, UnknownNameError
from anysat.geo.cogs import Block, Cog, write_cog
from anysat.geo.layout import Layout, Period
from anysat.geo.maps import NO_CLASS, category_names, class_tags, palette_of
from anysat.geo.polygons import write_polygons
from anysat.geo.quantise import NODATA
from anysat.geo.stored import StoredGroup, find_group, provenance_of
from anysat.geo.tables import Geometry, PatchTable
from anysat.geo.writers import staged

Advance = Callable[[int], object]
"""Called with the number of shards that are done."""


class Content(NamedTuple):
    """What of a group decides which files are made of it."""

    periods: Sequence[Period]
    has_norm: bool
    has_classes: bool

    @classmethod
    def of(cls, group: StoredGroup) -> Content:
        """Of one that is stored."""
        return cls(group.periods, "norm" in group.group, "class_names" in group.variable_attributes)

    @classmethod
    def planned(cls, layout: Layout, periods: Sequence[Period]) -> Content:
        """Of one that will be."""
        return cls(periods, "norm" in layout.arrays, "class_names" in layout.variable_attributes)


class Export(Protocol):
    """One format."""

    media_type: str
    """In documents."""

    def files(self, content: Content, out: Path) -> tuple[Path, ...]:
        """What `write` makes of a group; nothing of one that the format is not for."""

    def write(self, group: StoredGroup, folder: Path, out: Path, tags: Mapping[str, Any], advance: Advance) -> None:
        """Write the files into a folder, under their names."""


class CogExport:
    """One GeoTIFF per period: a band per dimension or name.

    Codes come with their rule in the tags, and lengths in NAME_norm.tif; classes with a palette, and with their names
    in the tags and in NAME.tif.aux.xml.
    """

    media_type = "image/tiff; application=geotiff; profile=cloud-optimized"

    def files(self, content: Content, out: Path) -> tuple[Path, ...]:
        """NAME.tif, or NAME_2020-01-01.tif … where there are several periods."""
        return tuple(path for paths in self._by_period(content, out).values() for path in paths)

    def write(self, group: StoredGroup, folder: Path, out: Path, tags: Mapping[str, Any], advance: Advance) -> None:
        """Write shards into a plain GeoTIFF, and copy that."""
        for period, (path, *beside) in self._by_period(Content.of(group), out).items():
            told = dict(tags) | {"period": [str(day) for day in group.periods[period]] if group.periods else None}
            main = _blocks(group, period, group.variable, advance)
            write_cog(folder / path.name, _cog_of(group, group.variable, told), main)
            if beside and "norm" in group.group:
                norms = _blocks(group, period, "norm", lambda _: None)
                write_cog(folder / beside[0].name, _cog_of(group, "norm", told), norms)
            elif beside:
                (folder / beside[0].name).write_text(category_names(group.variable_attributes))

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
    """First days of the periods, with the last day where several begin alike; one empty name where there is none."""
    first = [str(begin) for begin, _ in periods]
    return [str(begin) if first.count(str(begin)) == 1 else f"{begin}_{end}" for begin, end in periods] or [""]


class TableExport:
    """One GeoParquet file: a row per patch that was seen, a row group per shard; codes as they are stored."""

    media_type = "application/vnd.apache.parquet"
    geometry: Geometry = "polygon"

    def files(self, content: Content, out: Path) -> tuple[Path, ...]:  # noqa: ARG002 - the file, whatever the group
        """The file, whatever the group."""
        return (out,)

    def write(self, group: StoredGroup, folder: Path, out: Path, tags: Mapping[str, Any], advance: Advance) -> None:
        """Write period by period, shard by shard."""
        classes = group.variable_attributes.get("class_names", ())
        scale = group.scale
        told = dict(tags) | ({} if scale is None else {"scale": [float(step) for step in scale]})
        table = PatchTable(
            folder / out.name, group.geobox, variable=group.variable, dim=group.dim, dtype=group.array.dtype,
            bands=group.bands, classes=classes, has_norm="norm" in group.group, geometry=self.geometry, attributes=told,
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
    """The same with the middle of each patch as its geometry."""

    geometry: Geometry = "point"


class PolygonExport:
    """One GeoPackage: the outlines of the classes of a map (`anysat.geo.polygons`)."""

    media_type = "application/geopackage+sqlite3"

    def files(self, content: Content, out: Path) -> tuple[Path, ...]:
        """The file of a class map."""
        return (out,) if content.has_classes else ()

    def write(self, group: StoredGroup, folder: Path, out: Path, tags: Mapping[str, Any], advance: Advance) -> None:
        """Write period by period, row of shards by row of shards."""
        write_polygons(folder / out.name, group, tags, advance)


EXPORTS: dict[str, Export] = {".tif": CogExport(), ".parquet": TableExport(), ".gpkg": PolygonExport()}
"""Formats by suffix; add one here."""


def find_export(suffix: str) -> Export:
    """The format of a file's suffix.

    Raises:
        UnknownNameError: there is none.
    """
    if suffix not in EXPORTS:
        raise UnknownNameError("export format", suffix, EXPORTS)
    return EXPORTS[suffix]


def export(
    store: Path, out: Path, *, group: str | None = None, geometry: Geometry = "polygon", overwrite: bool = False,
    advance: Advance = lambda _: None,
) -> tuple[Path, ...]:  # fmt: skip
    """One group of a finished store to a format chosen by suffix; returns the files.

    Args:
        store: NAME.zarr.
        out: NAME.tif or NAME.parquet, of a class map NAME.gpkg, too.
        group: which; None for the main one (`find_group`).
        geometry: of the rows of a table.
        overwrite: replace files that exist.
        advance: called as shards are done; `num_steps` of them.

    Raises:
        SourceError, MissingFileError, UnknownNameError: there is no such store, group or format.
        RecordError: the format is not for such a group.
        WriteError: a file exists or cannot be written; nothing is left behind.
    """
    chosen, found = find_export(out.suffix), find_group(store, group)
    if geometry == "point":
        if not isinstance(chosen, TableExport):
            raise RecordError("geometry", geometry, f"polygon, because {out.name} has pixels")
        chosen = PointExport()
    finals = chosen.files(Content.of(found), out)
    if not finals:
        raise RecordError("group", found.name, f"a class map of {store.name}, because {out.name} has polygons")
    tags = {"store": store.name, "group": found.name, **_facts(found), **provenance_of(store)}
    with staged(finals, overwrite=overwrite) as folder:
        chosen.write(found, folder, out, tags, advance)
    return finals


def num_steps(store: Path, group: str | None = None) -> int:
    """Shards that `export` tells of."""
    return sum(1 for _ in find_group(store, group).units())


def _facts(group: StoredGroup) -> dict[str, Any]:
    return {key: value for key, value in group.attributes.items() if key.startswith("geoemb:")}


def _cog_of(group: StoredGroup, variable: str, tags: Mapping[str, Any]) -> Cog:
    is_main, attributes = variable == group.variable, group.variable_attributes
    if not is_main:
        return Cog(geobox=group.geobox, dtype="float32", names=[variable], nodata=float("nan"),
                   resampling="nearest", tags=tags)  # fmt: skip
    dtype = group.array.dtype.name.replace("float16", "float32")  # which GDAL 3.10 does not have
    is_class = "class_names" in attributes
    scale = group.scale
    return Cog(
        geobox=group.geobox, dtype=dtype, tags=tags,
        names=group.bands or [f"{group.name}_{index}" for index in range(group.dim or 1)],
        nodata={"int8": NODATA, "uint8": NO_CLASS}.get(dtype, float("nan")),
        resampling="mode" if is_class else "nearest" if group.is_embedding else "average",
        texts=class_tags(attributes) if is_class else {}, palette=palette_of(attributes) if is_class else {},
        scales=() if scale is None else [float(step) for step in scale], unit=str(attributes.get("units", "")),
    )  # fmt: skip


def _blocks(group: StoredGroup, period: int, variable: str, advance: Advance) -> Iterator[Block]:
    for unit in group.units(period):
        values = group.codes(unit) if variable == group.variable else group.part(variable, unit)
        yield group.slices(unit), np.moveaxis(values, -1, 0) if values.ndim == 3 else values[None]
        advance(1)
