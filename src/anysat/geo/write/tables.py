"""Write vectors and values as rows of GeoParquet 1.1, one per patch that was seen, or one per tile."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from datetime import UTC, datetime, time
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
from numpy.typing import NDArray
from odc.geo.geobox import GeoBox

from anysat.errors import RecordError
from anysat.geo.grid import crs_of, mapped
from anysat.geo.periods import Period

Geometry = Literal["polygon", "point"]
_BOUNDS = ("xmin", "ymin", "xmax", "ymax")
_TIMES = ("datetime", "start_datetime", "end_datetime")


class _ParquetRows:
    """A Parquet file that is written row group by row group; a context that closes the file."""

    _file: Any

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *raised: object) -> None:
        self._file.close()


class PatchTable(_ParquetRows):
    """A GeoParquet file of patches, written one block per row group; a context that closes the file.

    Columns: `id`, `tile_id`, `patch_row`, `patch_col` (counted over the whole grid, from the north-west), `datetime`
    (same as `start_datetime`), `start_datetime`, `end_datetime`, the values, `geometry` and `bbox` in the reference
    system of the grid.
    """

    def __init__(
        self, path: Path, geobox: GeoBox, *, variable: str, dim: int | None, dtype: np.dtype[Any],
        bands: Sequence[str] = (), classes: Mapping[int, str] | None = None, has_norm: bool = False,
        geometry: Geometry = "polygon", attributes: Mapping[str, Any] | None = None,
    ) -> None:  # fmt: skip
        """Open the file.

        Args:
            path: The file.
            geobox: The whole grid.
            variable: Name of the column of vectors or numbers.
            dim: Length of a vector; None for one number per patch.
            dtype: Type of the values.
            bands: Names of the values in a vector; each gets its own column.
            classes: Names of classes by their code, for a column `VARIABLE_name`.
            has_norm: Whether the vectors' lengths are stored beside codes.
            geometry: Geometry of a row: the patch, or its centre.
            attributes: Anything that can be written as JSON, stored in the file under `anysat`.
        """
        import pyarrow.parquet

        if geometry not in ("polygon", "point"):
            raise RecordError("geometry", geometry, "polygon or point")
        self._geobox, self._geometry, self._variable = geobox, geometry, variable
        self._dim, self._bands, self._classes, self._has_norm = dim, tuple(bands), dict(classes or {}), has_norm
        number = pyarrow.from_numpy_dtype(dtype)
        columns = {"id": pyarrow.string(), "tile_id": pyarrow.string()}
        columns |= dict.fromkeys(("patch_row", "patch_col"), pyarrow.int32())
        columns |= dict.fromkeys(_TIMES, pyarrow.timestamp("us", tz="UTC"))
        if self._bands:
            columns |= dict.fromkeys(self._bands, number)
        else:
            columns[variable] = number if dim is None else pyarrow.list_(number, dim)
        if self._classes:
            columns[f"{variable}_name"] = pyarrow.string()
        if has_norm:
            columns["norm"] = pyarrow.float32()
        kind = "Polygon" if geometry == "polygon" else "Point"
        self._schema = geo_schema(columns, geobox, kind, attributes or {})
        self._file = pyarrow.parquet.ParquetWriter(path, self._schema, compression="zstd")

    def add(
        self, values: NDArray[Any], valid: NDArray[np.bool_], *, corner: tuple[int, int], tile_id: str,
        period: Period | None, norms: NDArray[Any] | None = None,
    ) -> int:  # fmt: skip
        """Write the valid patches of a block as rows, and return their number.

        Args:
            values: Values (row col dim) or (row col).
            valid: Validity (row col).
            corner: Row and column of the block's first patch in the whole grid.
            tile_id: Name of the block.
            period: First and last day; None if unknown.
            norms: Lengths (row col) beside codes.
        """
        import pyarrow

        rows, cols = (index.astype(np.int32) for index in np.nonzero(valid))
        if not len(rows):
            return 0
        found, rows, cols = values[valid], rows + corner[0], cols + corner[1]
        columns: dict[str, Any] = {
            "id": [f"{tile_id}_{row}_{col}" for row, col in zip(rows, cols, strict=True)],
            "tile_id": [tile_id] * len(rows),
            "patch_row": rows,
            "patch_col": cols,
        }
        columns |= times_of(period, len(rows))
        if self._bands:
            columns |= {name: found[:, place] for place, name in enumerate(self._bands)}
        elif self._dim is not None:
            flat = pyarrow.array(np.ascontiguousarray(found).reshape(-1))
            columns[self._variable] = pyarrow.FixedSizeListArray.from_arrays(flat, self._dim)
        else:
            columns[self._variable] = found
        if self._classes:
            columns[f"{self._variable}_name"] = [self._classes[number] for number in found]
        if norms is not None:
            columns["norm"] = norms[valid].astype(np.float32)
        shapes, bounds = _places(self._geobox, rows, cols, self._geometry)
        write_rows(self._file, self._schema, columns, shapes, bounds)
        return len(rows)


Kind = str | tuple[str, int]
"""Type of a column: a pyarrow name, `strings` for lists of text, or pyarrow name and length for lists of numbers."""


class TileTable(_ParquetRows):
    """A Parquet file with one row per tile, written row group by row group; a context that closes the file.

    Columns: `id`, `split`, the given fields, then the given results. With places it is GeoParquet and also has `lon`
    and `lat` (centre, WGS 84 degrees) before the results, and `geometry`, the same as a point, at the end. These are
    null if the place is unknown.
    """

    OWN = ("id", "split", "member", "lon", "lat", "geometry")

    def __init__(
        self, path: Path, fields: Mapping[str, Kind], results: Mapping[str, Kind], *, has_places: bool,
        attributes: Mapping[str, Any],
    ) -> None:  # fmt: skip
        """Open the file.

        Args:
            path: The file.
            fields: Types of the columns of what is known of tiles, such as labels, by name.
            results: Types of the columns of what is computed, by name.
            has_places: Whether the place of any tile may be known.
            attributes: Anything that can be written as JSON, stored in the file under `anysat`.
        """
        import pyarrow.parquet

        self._has_places = has_places
        kinds: dict[str, Kind] = {"id": "string", "split": "string", **fields}
        if has_places:
            kinds |= {"lon": "double", "lat": "double"}
        columns = {name: _type_of(kind) for name, kind in {**kinds, **results}.items()}
        told = {"anysat": json.dumps(dict(attributes))}
        if has_places:  # in longitude and latitude, the default of GeoParquet
            columns["geometry"] = pyarrow.binary()
            place = {"encoding": "WKB", "geometry_types": ["Point"]}
            told["geo"] = json.dumps({"version": "1.1.0", "primary_column": "geometry", "columns": {"geometry": place}})
        self._schema = pyarrow.schema(list(columns.items()), metadata=told)
        self._file = pyarrow.parquet.ParquetWriter(path, self._schema, compression="zstd")

    @classmethod
    def check_names(cls, fields: Sequence[str], results: Collection[str]) -> None:
        """Check the names of the columns of targets.

        Args:
            fields: Columns of targets.
            results: Columns of what is computed.

        Raises:
            RecordError: One is the name of another column.
        """
        taken = (*cls.OWN, *results)
        for name in fields:
            if name in taken or fields.count(name) > 1:
                raise RecordError("target", name, f"a name other than those of other columns ({', '.join(taken)})")

    def add(
        self, *, ids: Sequence[str], splits: Sequence[str], places: NDArray[np.float64],
        columns: Mapping[str, Sequence[Any] | NDArray[Any]],
    ) -> None:  # fmt: skip
        """Write a row group of tiles.

        Args:
            ids: Names of the tiles.
            splits: Splits of the tiles.
            places: Longitude and latitude (tile 2), NaN if unknown.
            columns: Values of the fields and results.
        """
        import pyarrow
        import shapely

        given: dict[str, Any] = {"id": list(ids), "split": list(splits), **columns}
        if self._has_places:
            is_known = np.isfinite(places).all(1)
            given |= {name: np.where(is_known, places[:, axis], np.nan) for axis, name in enumerate(("lon", "lat"))}
            points = np.where(is_known, shapely.points(places), None)
            given["geometry"] = shapely.to_wkb(points).tolist()
        arrays = [pyarrow.array(given[field.name], field.type, from_pandas=True) for field in self._schema]
        self._file.write_table(pyarrow.Table.from_arrays(arrays, schema=self._schema), row_group_size=len(ids))


def _type_of(kind: Kind) -> Any:
    """Return the pyarrow type of a column."""
    import pyarrow

    if isinstance(kind, tuple):
        return pyarrow.list_(pyarrow.type_for_alias(kind[0]), kind[1])
    return pyarrow.list_(pyarrow.string()) if kind == "strings" else pyarrow.type_for_alias(kind)


def geo_schema(columns: Mapping[str, Any], geobox: GeoBox, kind: str, attributes: Mapping[str, Any]) -> Any:
    """Return a GeoParquet 1.1 schema of columns, with a `bbox` column by which readers can skip row groups."""
    import pyarrow

    bounds = geobox.boundingbox
    place = {
        "encoding": "WKB",
        "geometry_types": [kind],
        "crs": crs_of(geobox).proj.to_json_dict(),
        "edges": "planar",
        "bbox": [bounds.left, bounds.bottom, bounds.right, bounds.top],
        "covering": {"bbox": {name: ["bbox", name] for name in _BOUNDS}},
    }
    geo = {"version": "1.1.0", "primary_column": "geometry", "columns": {"geometry": place}}
    box = pyarrow.struct([(name, pyarrow.float64()) for name in _BOUNDS])
    fields = [*columns.items(), ("geometry", pyarrow.binary()), ("bbox", box)]
    told = {"geo": json.dumps(geo), "anysat": json.dumps(dict(attributes))}
    return pyarrow.schema(fields, metadata=told)


def write_rows(
    file: Any, schema: Any, columns: Mapping[str, Any], shapes: NDArray[Any], bounds: NDArray[np.float64]
) -> None:
    """Write a row group of shapely geometries with their bounds (row 4) and columns."""
    import pyarrow
    import shapely

    boxes = pyarrow.StructArray.from_arrays([pyarrow.array(column) for column in bounds.T], names=list(_BOUNDS))
    given = {**columns, "geometry": shapely.to_wkb(shapes), "bbox": boxes}
    file.write_table(pyarrow.table(given, schema=schema), row_group_size=len(shapes))


def times_of(period: Period | None, count: int) -> dict[str, list[datetime | None]]:
    """Return the time columns, from the first second of the first day to the last second of the last."""
    first = None if period is None else datetime.combine(period[0], time.min, UTC)
    last = None if period is None else datetime.combine(period[1], time(23, 59, 59), UTC)
    return {name: [value] * count for name, value in zip(_TIMES, (first, first, last), strict=True)}


def _places(
    geobox: GeoBox, rows: NDArray[Any], cols: NDArray[Any], geometry: Geometry
) -> tuple[NDArray[Any], NDArray[np.float64]]:
    import shapely

    if geometry == "point":
        x, y = mapped(geobox.affine, cols + 0.5, rows + 0.5)
        return shapely.points(x, y), np.stack([x, y, x, y], axis=1)
    left, top = mapped(geobox.affine, cols.astype(np.float64), rows.astype(np.float64))
    right, bottom = mapped(geobox.affine, cols + 1.0, rows + 1.0)
    return shapely.box(left, bottom, right, top), np.stack([left, bottom, right, top], axis=1)
