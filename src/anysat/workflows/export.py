"""The command that exports a finished store to formats of other software: its options and its run."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from anysat.choices import check_choices
from anysat.errors import RecordError
from anysat.geo.write.outputs import STORE, Result, named, suffixes
from anysat.workflows.answer import Answer

_FORMATS = named(Result.CLASSES, besides=STORE)


@dataclass(frozen=True, kw_only=True)
class ExportConfig:
    """Export a finished store to GeoTIFF, GeoParquet or, for class maps, polygons."""

    store: str = field(
        metadata={
            "positional": "STORE",
            "help": "NAME.zarr, written by embed, predict, similar or classify. For an area in several UTM zones, "
            "NAME.zarr stands for the stores of all zones, and there are files for each.",
        }
    )
    out: str = field(metadata={"help": f"File to write: {_FORMATS} (polygons, for class maps only)."})
    """File to write."""
    group: str | None = None
    """Which product of the store, such as dense, probability or uncertainty; null for its main one: patch embeddings,
    else classes, values or probabilities."""
    geometry: Literal["polygon", "point"] = "polygon"
    """Geometry of the rows of GeoParquet: the patch, or the point at its centre."""
    overwrite: bool = False
    """Replace existing outputs."""

    def __post_init__(self) -> None:
        check_choices(self)
        path = Path(self.out)
        if path.suffix == STORE or path.suffix not in suffixes(Result.CLASSES):
            raise RecordError("--out", self.out, f"a name ending in {named(Result.CLASSES, besides=STORE, name='')}")


def export(config: ExportConfig) -> Answer:
    """Export the store.

    Raises:
        MissingFileError, SourceError, UnknownNameError, RecordError: There is no such store or group, or the format
            does not suit it.
        WriteError: An output exists or cannot be written. Nothing is left behind of that store.
        InputError: Another process is writing the same output.
    """
    from anysat.geo.claims import alone_at

    with alone_at(Path(config.out)):
        return _exported(config)


def _exported(config: ExportConfig) -> Answer:
    from anysat.geo.stores.stored import find_group, zone_stores
    from anysat.geo.write.exports import Content, export, find_export
    from anysat.geo.write.writers import check_apart, check_free
    from anysat.workflows.progress import progress_bar

    out, given = Path(config.out), Path(config.store)
    stores, kind = zone_stores(given), find_export(out.suffix)
    outs = {store: out.with_stem(out.stem + store.stem.removeprefix(given.stem)) for store in stores}
    groups = {store: find_group(store, config.group) for store in stores}
    files = [file for store, group in groups.items() for file in kind.files(Content.of(group), outs[store])]
    check_apart(files, [str(store) for store in stores])
    check_free(files, overwrite=config.overwrite)
    lines = []
    with progress_bar(f"exporting {given.name}", sum(1 for one in groups.values() for _ in one.units())) as advance:
        for store, group in groups.items():
            written = export(store, outs[store], group=group.name, geometry=config.geometry,
                             overwrite=config.overwrite, advance=advance)  # fmt: skip
            lines += [f"{group.name} of {store.name}", *(f"wrote {file}" for file in written)]
    return Answer("\n".join(lines))
