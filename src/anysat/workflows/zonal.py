"""The command that summarises a store by polygon: its options and its run."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from anysat.errors import RecordError
from anysat.workflows.answer import Answer

_SUFFIXES = (".parquet", ".gpkg", ".csv")


@dataclass(frozen=True, kw_only=True)
class ZonalConfig:
    """Summarise a store by polygon (zonal statistics): mean embedding or value, share of each class; a row for each."""

    store: str = field(
        metadata={"positional": "STORE", "help": "NAME.zarr, written by `anysat embed` or `anysat predict`."}
    )
    polygons: str = field(
        metadata={
            "positional": "POLYGONS",
            "help": "Fields, stands, districts …: a GeoPackage, GeoJSON, Shapefile or GeoParquet file, in any "
            "reference system. Its columns are kept.",
        }
    )
    out: str
    """Table with a row per polygon, and period if the store has several: NAME.parquet or NAME.gpkg, with the polygons,
    or NAME.csv, without."""
    group: str | None = None
    """Which product of the store, such as dense, probability or uncertainty; null for its main one: patch embeddings,
    else classes, values or probabilities."""
    overwrite: bool = False
    """Replace a table that exists."""

    def __post_init__(self) -> None:
        if Path(self.out).suffix not in _SUFFIXES:
            raise RecordError("--out", self.out, f"a name ending in {', '.join(_SUFFIXES)}")


def zonal(config: ZonalConfig) -> Answer:
    """Summarise the store in each polygon, and write the table.

    Raises:
        MissingFileError, SourceError, UnknownNameError, InputError: The store or the polygons cannot be used.
        WriteError: The table exists or cannot be written. Nothing is left behind.
    """
    from anysat.geo.stored import find_group, provenance_of
    from anysat.geo.writers import check_apart, check_free
    from anysat.geo.zonal import summarise, write_zonal
    from anysat.workflows.progress import progress_bar

    store, out = Path(config.store), Path(config.out)
    check_apart([out], [config.store, config.polygons])
    check_free([out], overwrite=config.overwrite)
    group = find_group(store, config.group)
    with progress_bar(f"reading {store.name}", group.shards[0] * group.shards[1]) as advance:
        table, notes = summarise(group, Path(config.polygons), advance=advance)
    told = {"store": store.name, "group": group.name, "polygons": config.polygons, **provenance_of(store)}
    write_zonal(table, out, told, overwrite=config.overwrite)
    seen, periods = table["seen_frac"], len(group.periods)
    several = f" in {periods} periods" if periods > 1 else ""
    lines = [
        f"{group.name} of {store.name}: {table['polygon'].nunique()} polygons{several}, of {len(table)} rows "
        f"{(seen > 0.999).sum()} seen whole, {((seen > 0) & (seen <= 0.999)).sum()} in part, {(seen == 0).sum()} not",
        *notes,
    ]
    if not (seen > 0).any():
        lines.append(f"no polygon lies on ground that was seen: check the reference system of {config.polygons}")
    return Answer("\n".join([*lines, f"wrote {out}"]))
