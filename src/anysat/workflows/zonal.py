"""The command that summarises a store by polygon: its options and its run."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from anysat.errors import RecordError
from anysat.geo.write.outputs import Result, check_output, named
from anysat.workflows.answer import Answer


@dataclass(frozen=True, kw_only=True)
class ZonalConfig:
    """Summarise a store by polygon (zonal statistics): mean embedding or value, share of each class; a row for each."""

    store: list[str] = field(
        metadata={
            "positional": "STORE",
            "help": "NAME.zarr, written by `anysat embed` or `anysat predict`. For an area in several UTM zones, "
            "NAME.zarr stands for the stores of all zones. You can also list several stores of one kind.",
        }
    )
    polygons: str = field(
        default="",
        metadata={
            "positional": "POLYGONS",
            "optional": True,
            "help": "Fields, stands, districts …: a GeoPackage, GeoJSON, Shapefile or GeoParquet file, in any "
            "reference system. Its columns are kept. A point takes the patch in which it lies.",
        },
    )
    out: str = field(
        metadata={
            "help": f"Table with a row per polygon, and period if the store has several: {named(Result.POLYGONS)}, "
            "which has no polygons."
        }
    )
    """Table to write."""
    group: str | None = None
    """Which product of the store, such as dense, probability or uncertainty; null for its main one: patch embeddings,
    else classes, values or probabilities."""
    overwrite: bool = False
    """Replace a table that exists."""

    def __post_init__(self) -> None:
        if not self.polygons and self.store:  # the command line puts all words into STORE
            object.__setattr__(self, "polygons", self.store[-1])
            object.__setattr__(self, "store", self.store[:-1])
        if not self.store:
            raise RecordError("POLYGONS", None, "a value, after one STORE or more")
        check_output("--out", self.out, Result.POLYGONS)


def zonal(config: ZonalConfig) -> Answer:
    """Summarise the store in each polygon, and write the table.

    Raises:
        MissingFileError, SourceError, UnknownNameError, InputError: The store or the polygons cannot be used.
        WriteError: The table exists or cannot be written. Nothing is left behind.
        InputError: Another process is writing the same output.
    """
    from anysat.geo.claims import alone_at

    with alone_at(Path(config.out)):
        return _zonal(config)


def _zonal(config: ZonalConfig) -> Answer:
    from anysat.geo.ground import file_and_layer
    from anysat.geo.stores.stored import provenance_of
    from anysat.geo.write.writers import check_apart, check_free
    from anysat.geo.zonal import find_alike, find_stores, prepare, summarise, write_zonal
    from anysat.workflows.progress import progress_bar

    stores, out = find_stores(config.store), Path(config.out)
    check_apart([out], [*map(str, stores), str(file_and_layer(config.polygons)[0])])
    check_free([out], overwrite=config.overwrite)
    groups = find_alike(stores, config.group)
    asked = prepare(groups, config.polygons, out.suffix)
    name = ", ".join(store.name for store in stores)
    with progress_bar(f"reading {name}", sum(rows * cols for rows, cols in (one.shards for one in groups))) as advance:
        table, notes = summarise(asked, advance=advance)
    group, made = groups[0], {one.name: provenance_of(one) for one in stores}
    told: dict[str, Any] = {"store": name, "group": group.name, "polygons": config.polygons}
    told |= made[name] if len(stores) == 1 else {"stores": made}
    write_zonal(table, out, told, overwrite=config.overwrite)
    seen, periods = table["seen_frac"], len(group.periods)
    several = f" in {periods} periods" if periods > 1 else ""
    kinds = " and ".join(sorted({"points" if "Point" in str(kind) else "polygons" for kind in table.geom_type}))
    lines = [
        f"{group.name} of {name}: {table['polygon'].nunique()} {kinds}{several}, of {len(table)} rows "
        f"{(seen > 0.999).sum()} seen whole, {((seen > 0) & (seen <= 0.999)).sum()} in part, {(seen == 0).sum()} not",
        *notes,
    ]
    if not (seen > 0).any():
        lines.append(f"no polygon lies on ground that was seen: check the reference system of {config.polygons}")
    return Answer("\n".join([*lines, f"wrote {out}"]))
