"""Polygons of the table of tiles, such as parcels: which pixels of a tile lie in its own polygon."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from anysat.data.own.paths import State, state_of
from anysat.data.own.tables import as_text, plain
from anysat.errors import SourceError
from anysat.geo.ground import read_table
from anysat.observation import Observation

if TYPE_CHECKING:
    from odc.geo.geobox import GeoBox

POLYGON = "polygon_sha256"
"""Column that is added to the tiles, with a checksum of the polygon of each."""
POLYGON_SUFFIXES = (".geojson", ".json", ".gpkg", ".shp", ".parquet")
"""Suffixes of tables of tiles that can hold polygons; Parquet if it is GeoParquet."""
_LEAST_SHARE = 0.5
"""Share of a pixel in a polygon from which on it lies inside."""


class Parcel(NamedTuple):
    """The polygon of one tile."""

    table: Path
    name: str
    """Id of the tile, for messages."""
    rows: Any
    """Geopandas table of this one polygon."""

    def holds(self, geobox: GeoBox) -> NDArray[np.bool_]:
        """Return which pixels (row col) lie inside by at least half; in a smaller polygon, which it touches.

        Raises:
            SourceError: It touches none of them, or is not a polygon.
        """
        from anysat.geo.coverage import cover
        from anysat.geo.parcels import place_parcels

        found = cover(place_parcels(self.rows, f"{self.table}, tile {self.name!r}", geobox).shapes,
                      slice(0, geobox.height), slice(0, geobox.width))  # fmt: skip
        if not len(found.share):
            raise SourceError(self.table, f"the polygon of tile {self.name!r} does not touch the tile",
                              "check its place, or centre tiles on it with `centre: table`")  # fmt: skip
        share = np.zeros(geobox.shape)
        share[found.row, found.col] = found.share
        inside = share >= _LEAST_SHARE
        return inside if inside.any() else share > 0

    def mask(self, seen: Observation, geobox: GeoBox) -> Observation:
        """Return an observation without what lies outside."""
        valid = seen.valid & self.holds(geobox)
        return replace(seen, valid=valid, values=np.where(valid, seen.values, 0))


def find_parcel(table: Path, id_column: str, name: str) -> Parcel:
    """Return the polygon of a tile.

    Raises:
        SourceError: The table cannot be read as polygons.
    """
    polygons, row_of = _polygons(table, id_column, state_of(table))
    return Parcel(table, name, polygons.iloc[[row_of[name]]])


def check_parcels(table: Path, id_column: str, names: Sequence[str]) -> list[str]:
    """Refuse tiles without a polygon, and return a checksum of each one's, by which a change is seen.

    Raises:
        SourceError: A tile has none, or the table cannot be read as polygons.
    """
    polygons, row_of = _polygons(table, id_column, state_of(table))
    is_polygon = polygons.geometry.geom_type.isin(("Polygon", "MultiPolygon")).to_numpy()
    if without := [name for name in names if name not in row_of or not is_polygon[row_of[name]]]:
        problem = f"{len(without)} tiles have no polygon, such as {without[0]!r}, and `inside_only` needs one"
        raise SourceError(table, problem, "leave them out of the table, or draw their polygons")
    shapes = polygons.geometry.iloc[[row_of[name] for name in names]].to_wkb()
    return [hashlib.sha256(f"{polygons.crs} ".encode() + shape).hexdigest()[:16] for shape in shapes]


@lru_cache(maxsize=4)
def _polygons(table: Path, id_column: str, _: State) -> tuple[Any, dict[str, int]]:
    """Read the polygons as a geopandas table, once per process, and return the row of each tile."""
    found = read_table(table)
    ids = found[id_column] if id_column in found.columns else found.reset_index()[id_column]
    return found, {as_text(plain(name)): row for row, name in enumerate(ids)}
