"""Tables of a user's own tiles: CSV or GeoJSON, as rows of text by column, with longitude and latitude where known."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from anysat.data.files import read_file
from anysat.errors import SourceError, UnknownNameError

PLACE = ("lon", "lat")
"""Columns of the place of a tile, degrees WGS 84, as text; empty where it is not known."""
_SPELLINGS = {"longitude": "lon", "latitude": "lat"}
SUFFIXES = (".csv", ".geojson", ".json")
"""Kinds of tables that are read."""
SPLIT = "split"
"""Column that splits where nothing else is said."""
_WGS84 = ("CRS84", "4326")


def read_table(path: Path, needed: Sequence[str] = ()) -> list[dict[str, str]]:
    """Rows of text by column, every row with the same columns.

    Args:
        path: a CSV with a header, or a GeoJSON whose properties are the columns and whose geometry is the place.
        needed: columns it must have.

    Raises:
        MissingFileError: there is no such file.
        SourceError: it cannot be read, has no rows, or its geometry is not in degrees.
        UnknownNameError: it lacks a column, or is of another kind.
    """
    if path.suffix.lower() not in SUFFIXES:
        raise UnknownNameError(f"kind of table {path}", path.suffix, SUFFIXES)
    (content,) = read_file(path, expected="the table of the tiles, CSV or GeoJSON")
    rows = list(content) if path.suffix.lower() == ".csv" else _of_geojson(path, content)
    if not rows:
        raise SourceError(path, "the table has no rows")
    names = dict.fromkeys(name for row in rows for name in row)
    if None in names:
        raise SourceError(path, "a row has more values than the header", "put values that hold a comma in quotes")
    for column in needed:
        if column not in names:
            raise UnknownNameError(f"column of {path}", column, names)
    return [{_SPELLINGS.get(name, name): _text(row.get(name)) for name in names} for row in rows]


def is_no_label(cell: str) -> bool:
    """Whether a cell says that there is no label: it is empty or NaN, as tables write what is missing.

    >>> is_no_label(" "), is_no_label("NaN"), is_no_label("none")
    (True, True, False)
    """
    return cell.strip().lower() in ("", "nan")


def _text(value: Any) -> str:
    return "" if value is None else str(value).strip()


def _of_geojson(path: Path, content: Any) -> list[dict[str, Any]]:
    from shapely.geometry import shape

    if not isinstance(content, Mapping) or not isinstance(content.get("features"), list):
        raise SourceError(path, "it is no collection of features", "write a GeoJSON FeatureCollection")
    crs = str((content.get("crs") or {}).get("properties", {}).get("name", _WGS84[0]))
    if not crs.endswith(_WGS84):
        raise SourceError(path, f"its places are in {crs}", "write them as longitude and latitude, as GeoJSON asks for")
    rows = []
    for feature in content["features"]:
        row = dict(feature.get("properties") or {})
        if feature.get("geometry"):
            centre = shape(feature["geometry"]).centroid
            row |= dict(zip(PLACE, (centre.x, centre.y), strict=True))
        rows.append(row)
    return rows
