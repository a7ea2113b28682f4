"""Tables of a user's own tiles (CSV, Parquet, or files of geometries) as rows of text by column, with their places."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from datetime import datetime, time
from pathlib import Path
from typing import Any

import numpy as np

from anysat.data.files import read_file
from anysat.errors import MissingFileError, SourceError, UnknownNameError
from anysat.geo.read.layers import reading

PLACE = ("lon", "lat")
"""Columns that hold the place of a tile in degrees (WGS 84), as text; empty if unknown."""
_MISSING_WORDS = ("na", "n/a", "#n/a", "<na>", "null", "none")
"""What programs write for a missing value, but what may also be a name."""
_SPELLINGS = {"longitude": "lon", "latitude": "lat"}
_GEOJSON, _VECTORS = (".geojson", ".json"), (".gpkg", ".shp")
SUFFIXES = (".csv", *_GEOJSON, ".parquet", *_VECTORS)
"""Suffixes of tables that can be read."""
SPLIT = "split"
"""Column that gives the split if the file says nothing else."""
_ONE_TEXT = "write one text or number; if it holds several labels, give the target a `separator`, such as ';'"
_WGS84 = ("CRS84", "4326")


def read_table(
    path: Path, needed: Sequence[str] = (), *, separators: Mapping[str, str] | None = None, id_column: str = "id"
) -> list[dict[str, str]]:
    """Read rows of text by column; every row has the same columns.

    Args:
        path: A CSV with a header; a Parquet file, whose geometries are left out; or a GeoJSON, GeoPackage or Shapefile,
            whose geometries give the place.
        needed: Columns that the table must have.
        separators: By column, the text to put between the items of a cell that is a list.
        id_column: Column that becomes `id` in the rows; another column of that name is left out.

    Raises:
        MissingFileError: There is no such file.
        SourceError: The table cannot be read or has no rows, the geometry of a feature is invalid or not in degrees, a
            needed cell is a list without a separator, or an item contains its separator.
        UnknownNameError: A column is missing, or the file has another suffix.
    """
    if path.suffix.lower() not in SUFFIXES:
        raise UnknownNameError(f"kind of table {path}", path.suffix, SUFFIXES)
    rows = _rows(path)
    if not rows:
        raise SourceError(path, "the table has no rows")
    names = dict.fromkeys(name for row in rows for name in row)
    if None in names:
        raise SourceError(path, "a row has more values than the header", "put values that hold a comma in quotes")
    for column in (id_column if name == "id" else name for name in needed):
        if column not in names:
            raise UnknownNameError(f"column of {path}", column, names, say_column("id") if column == id_column else "")
    kind = "feature" if path.suffix.lower() in (*_GEOJSON, *_VECTORS) else "row"
    if id_column in names and id_column != "id":
        rows, names = [{**row, "id": row.get(id_column)} for row in rows], {**names, "id": None}
    for number, row in enumerate(rows, 1):
        where = f"{kind} {number}, id {as_text(row.get('id'))!r},"
        for column, separator in (separators or {}).items():
            row[column] = _joined(path, where, row.get(column), separator)
        for column in needed:
            if isinstance(row.get(column), (list, dict)):
                raise SourceError(path, f"{where} has a {type(row[column]).__name__} as {column!r}", _ONE_TEXT)
    return with_place([{name: as_text(row.get(name)) for name in names} for row in rows])


def _joined(path: Path, where: str, cell: Any, separator: str) -> Any:
    """Return a list of labels as one text; any other cell as it is."""
    if not isinstance(cell, list) or any(isinstance(item, (list, dict)) for item in cell):
        return cell
    items = [as_text(item) for item in cell]
    if unclear := [item for item in items if separator in item]:
        problem = f"{where} has the label {unclear[0]!r}, which contains the separator {separator!r}"
        raise SourceError(path, problem, "give the target another `separator`, which no label contains")
    return separator.join(items)


def holds_lists(path: Path, column: str) -> bool:
    """Whether a column of a Parquet file, or a property of a GeoJSON, holds lists.

    Raises:
        SourceError: The table cannot be read.
    """
    if path.suffix.lower() in _GEOJSON:
        return any(isinstance(row.get(column), list) for row in _rows(path))
    if path.suffix.lower() != ".parquet":
        return False
    from pyarrow import types

    schema = _schema(path)
    return column in schema.names and bool(
        types.is_list(kind := schema.field(column).type) or types.is_large_list(kind)
    )


def say_column(key: str) -> str:
    """Return advice for a missing column."""
    return f"Say which it is as `columns: {{{key}: NAME}}`"


def with_place(rows: Sequence[Mapping[str, str]]) -> list[dict[str, str]]:
    """Return the rows with longitude and latitude also under the names of `PLACE`, if their columns are spelt out.

    >>> with_place([{"longitude": "10.5"}])
    [{'longitude': '10.5', 'lon': '10.5'}]
    """
    names = rows[0] if rows else {}
    spelt = {name: other for other, name in _SPELLINGS.items() if other in names and name not in names}
    return [{**row, **{name: row[other] for name, other in spelt.items()}} for row in rows]


def place_columns(names: Collection[str]) -> list[str]:
    """Those of some columns that longitude and latitude are read from.

    >>> place_columns(["id", "longitude", "lat", "latitude"])
    ['longitude', 'lat']
    """
    spelt = {name: other for other, name in _SPELLINGS.items()}
    found = [name if name in names else spelt[name] for name in PLACE]
    return [name for name in found if name in names]


def _rows(path: Path) -> list[dict[str, Any]]:
    """Read the rows as they are stored."""
    if not path.is_file():
        raise MissingFileError(path, "the table of the tiles")
    if path.suffix.lower() == ".parquet":
        return _of_parquet(path)
    if path.suffix.lower() in _VECTORS:
        return _of_vectors(path)
    (content,) = read_file(path, expected="the table of the tiles, CSV or GeoJSON")
    return list(content) if path.suffix.lower() == ".csv" else _of_geojson(path, content)


def is_no_label(cell: str) -> bool:
    """Whether a cell means "no label": it is empty or NaN, as tables write missing values.

    >>> is_no_label(" "), is_no_label("NaN"), is_no_label("none")
    (True, True, False)
    """
    return cell.strip().lower() in ("", "nan")


def is_no_id(cell: str) -> bool:
    """Whether a cell names nobody: it is empty or NaN.

    >>> is_no_id(""), is_no_id("nan"), is_no_id("Nan")
    (True, True, False)
    """
    return cell in ("", "nan", "NaN")


def is_missing_word(name: str) -> bool:
    """Whether a name may mean "no label", as in R and elsewhere, but may also be a class.

    >>> is_missing_word("NA"), is_missing_word("None"), is_missing_word("Nassau")
    (True, True, False)
    """
    return name.strip().lower() in _MISSING_WORDS


def as_number(cell: Any) -> float:
    """Return a cell as a number; NaN if it is none.

    >>> as_number("10.5"), as_number("")
    (10.5, nan)
    """
    try:
        return float(cell)
    except ValueError:
        return float("nan")


def as_text(value: Any) -> str:
    """Return a cell as text. Whole numbers are written without a decimal point, so that 1 and 1.0 are the same.

    >>> as_text(1.0), as_text(None), as_text(" a ")
    ('1', '', 'a')
    """
    whole = isinstance(value, float) and value.is_integer()
    return "" if value is None else str(int(value) if whole else value).strip()


def _of_parquet(path: Path) -> list[dict[str, Any]]:
    from pyarrow import parquet, types

    names = [field.name for field in _schema(path) if not types.is_binary(field.type)]
    with reading(path):
        rows: list[dict[str, Any]] = parquet.read_table(path, columns=names).to_pylist()
    return rows


def _schema(path: Path) -> Any:
    from pyarrow import parquet

    with reading(path):
        return parquet.read_schema(path)


def _of_geojson(path: Path, content: Any) -> list[dict[str, Any]]:
    if not isinstance(content, Mapping) or not isinstance(content.get("features"), list):
        raise SourceError(path, "it is not a feature collection", "write a GeoJSON FeatureCollection")
    crs = _crs_name(content.get("crs"))
    if not crs.endswith(_WGS84):
        raise SourceError(path, f"its places are in {crs}", "write them as longitude and latitude, as GeoJSON asks for")
    return [_row_of(path, number, feature) for number, feature in enumerate(content["features"], 1)]


def _crs_name(crs: Any) -> str:
    """Return the name of a reference system as in older GeoJSON; by default that of longitude and latitude."""
    if isinstance(crs, Mapping):
        crs = crs.get("properties")
    if isinstance(crs, Mapping):
        crs = crs.get("name")
    return _WGS84[0] if crs is None else str(crs)


def _row_of(path: Path, number: int, feature: Any) -> dict[str, Any]:
    """Return the properties of a feature, with its place."""
    from shapely.errors import ShapelyError
    from shapely.geometry import shape

    properties = feature.get("properties") or {} if isinstance(feature, Mapping) else None
    if not isinstance(properties, Mapping):
        advice = "write an object with `properties` and `geometry`"
        raise SourceError(path, f"feature {number} is not a GeoJSON feature, but {_shown(feature)}", advice)
    row = dict(properties)
    if feature.get("geometry"):
        try:
            centre = shape(feature["geometry"]).centroid
            row |= dict(zip(PLACE, (centre.x, centre.y), strict=True))
        except (ShapelyError, ValueError, TypeError, KeyError, IndexError, AttributeError) as error:
            problem = f"feature {number}, id {as_text(row.get('id'))!r}, has no place: {_shown(feature['geometry'])}"
            raise SourceError(path, problem, "correct its geometry, or leave it out (null)") from error
    return row


def _of_vectors(path: Path) -> list[dict[str, Any]]:
    """Return the columns of a file of geometries as plain values, with the centroids as places."""
    import geopandas
    import shapely
    from pyproj import Transformer

    from anysat.geo import ground

    with reading(path):
        layers = geopandas.list_layers(path)
        names = layers["name"][layers["geometry_type"].notna()].tolist()
    if len(names) > 1:
        advice = "save the layer of the tiles as a file of its own"
        raise SourceError(path, f"it has several layers with geometries: {', '.join(names)}", advice)
    table = ground.read_table(path, *names)
    if table.crs is None:
        raise SourceError(path, ground.NO_SYSTEM, "write one into the file")
    with_degrees = Transformer.from_crs(table.crs, "EPSG:4326", always_xy=True)
    centres = shapely.centroid(np.asarray(table.geometry.values))
    places = with_degrees.transform(shapely.get_x(centres), shapely.get_y(centres))
    columns = table.drop(columns=table.geometry.name)
    rows = [{str(name): plain(value) for name, value in row.items()} for row in columns.to_dict("records")]
    for number, (row, lon, lat) in enumerate(zip(rows, *places, strict=True), 1):
        if math.isfinite(lon) and math.isfinite(lat):
            row |= dict(zip(PLACE, (float(lon), float(lat)), strict=True))
        elif not (shapely.is_missing(centres[number - 1]) or shapely.is_empty(centres[number - 1])):
            raise SourceError(path, f"the place of feature {number} cannot be given in degrees", "check its geometry")
    return rows


def plain(value: Any) -> Any:
    """Return a value of a data frame as None if it is missing, and as a date if it is the start of a day."""
    if value is None or value != value:  # as NaN and NaT alone are
        return None
    if isinstance(value, datetime) and value.time() == time():
        return value.date()
    return value


def _shown(value: Any, length: int = 60) -> str:
    text = repr(value)
    return text if len(text) <= length else f"{text[:length]} …"
