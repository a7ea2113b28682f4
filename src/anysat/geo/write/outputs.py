"""The table of output formats: which suffix means which format, what it can hold, and what writes it.

Loads nothing else, because the help of commands is made from it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

from anysat.errors import RecordError, UnknownNameError


class Result(Enum):
    """A kind of result that is written to files."""

    TILE = "the embeddings of a tile"
    AREA = "an area"
    CLASSES = "a class map of an area"
    MAP = "the map of a tile"
    ANSWER = "the answer for a tile"
    POLYGONS = "a row per polygon"
    TILES = "a row per tile"
    PICTURE = "a picture"
    FIGURES = "figures"
    WEIGHTS = "weights"


@dataclass(frozen=True, kw_only=True)
class Output:
    """An output format."""

    title: str
    media_type: str
    """Media type in STAC documents."""
    writers: Mapping[Result, str]
    """For each result that it can hold, MODULE:NAME of what writes it; empty if the command itself does."""


_COG = "anysat.geo.write.exports:CogExport"
_TABLE = "anysat.geo.write.exports:TableExport"
STORE = ".zarr"
"""Format in which areas are computed. Their other formats are made from it."""
OUTPUTS: dict[str, Output] = {
    STORE: Output(
        title="Zarr", media_type="application/vnd.zarr; version=3",
        writers={Result.TILE: "anysat.geo.write.writers:ZarrWriter", Result.AREA: "", Result.CLASSES: ""},
    ),
    ".tif": Output(
        title="GeoTIFF", media_type="image/tiff; application=geotiff; profile=cloud-optimized",
        writers={Result.TILE: "anysat.geo.write.writers:CogWriter", Result.AREA: _COG, Result.CLASSES: _COG,
                 Result.MAP: ""},
    ),
    ".parquet": Output(
        title="GeoParquet", media_type="application/vnd.apache.parquet",
        writers={Result.AREA: _TABLE, Result.CLASSES: _TABLE, Result.POLYGONS: "anysat.geo.zonal:write_parquet",
                 Result.TILES: ""},
    ),
    ".gpkg": Output(
        title="GeoPackage", media_type="application/geopackage+sqlite3",
        writers={Result.CLASSES: "anysat.geo.write.exports:PolygonExport",
                 Result.POLYGONS: "anysat.geo.zonal:write_package"},
    ),
    ".csv": Output(title="CSV", media_type="text/csv", writers={Result.POLYGONS: "anysat.geo.zonal:write_csv"}),
    ".json": Output(title="JSON", media_type="application/json", writers={Result.ANSWER: "", Result.FIGURES: ""}),
    ".png": Output(title="PNG", media_type="image/png", writers={Result.PICTURE: ""}),
    ".pdf": Output(title="PDF", media_type="application/pdf", writers={Result.PICTURE: ""}),
    ".svg": Output(title="SVG", media_type="image/svg+xml", writers={Result.PICTURE: ""}),
    ".safetensors": Output(title="safetensors", media_type="application/octet-stream", writers={Result.WEIGHTS: ""}),
}  # fmt: skip
"""Formats by suffix; add one here."""


def suffixes(*results: Result) -> tuple[str, ...]:
    """Return the suffixes of the formats that can hold any of these results.

    >>> suffixes(Result.CLASSES)
    ('.zarr', '.tif', '.parquet', '.gpkg')
    """
    return tuple(suffix for suffix, output in OUTPUTS.items() if not output.writers.keys().isdisjoint(results))


def named(*results: Result, besides: str = "", name: str = "NAME") -> str:
    """Return the suffixes for help and messages, after a name, and without the one in `besides`.

    >>> named(Result.AREA)
    'NAME.zarr, NAME.tif or NAME.parquet'
    """
    *first, last = (f"{name}{suffix}" for suffix in suffixes(*results) if suffix != besides)
    return f"{', '.join(first)} or {last}" if first else last


ALSO_HELP = (
    f"Formats to write besides an area's NAME{STORE}: {named(Result.CLASSES, besides=STORE, name='')} (polygons, for "
    "class maps only); several separated by commas."
)


def formats_of(also: str | None, result: Result) -> list[str]:
    """Return the suffixes in `--also`.

    Raises:
        UnknownNameError: No format besides a store can hold the result and has this suffix.

    >>> formats_of(".tif, .gpkg", Result.CLASSES)
    ['.tif', '.gpkg']
    """
    found = [] if also is None else list(dict.fromkeys(word.strip() for word in also.split(",")))
    known = [suffix for suffix in suffixes(result) if suffix != STORE]
    for suffix in found:
        if suffix not in known:
            raise UnknownNameError("--also", suffix, known)
    return found


def check_also(also: str | None, out: str | Path, result: Result) -> None:
    """Check that formats that can hold the result are only added to a store.

    Raises:
        UnknownNameError: See `formats_of`.
        RecordError: The output is no store.
    """
    if formats_of(also, result) and Path(out).suffix not in ("", STORE):
        raise RecordError("--also", also, f"no value with --out {Path(out).name}; it needs --out NAME{STORE}")


def check_output(option: str, out: str | Path, *results: Result, may_lack: bool = False, because: str = "") -> None:
    """Check that the suffix of an output is that of a format that can hold one of these results.

    Args:
        option: The option, for messages.
        out: The output.
        results: Kinds of results.
        may_lack: Whether the suffix may be missing.
        because: The reason, for messages.

    Raises:
        RecordError: It is not, or the output has no name.
    """
    path = Path(out)
    if path.suffix not in (*suffixes(*results), *([""] if may_lack else [])) or not path.name:
        lacking = ", or without suffix" if may_lack else ""
        raise RecordError(option, str(out), f"a name ending in {named(*results, name='')}{lacking}{because}")


def find_writer(result: Result, suffix: str) -> Any:
    """Return what writes a result to the format with a suffix.

    Raises:
        UnknownNameError: No format that can hold the result has this suffix.
    """
    if suffix not in suffixes(result) or not (place := OUTPUTS[suffix].writers[result]):
        known = [one for one in suffixes(result) if OUTPUTS[one].writers[result]]
        raise UnknownNameError("output format", suffix, known)
    return resolve_name(place)
