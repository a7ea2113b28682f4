"""Export a class map as polygons: outlines of pixels of one class, one row of shards at a time, in little memory.

Polygons end where a row of shards ends, and are not joined with those of the next row.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from anysat.geo.grid import crs_of
from anysat.geo.stores.stored import StoredGroup
from anysat.geo.write.tables import times_of

Advance = Callable[[int], object]


def write_polygons(path: Path, group: StoredGroup, told: Mapping[str, Any], advance: Advance) -> None:
    """Write the polygons of a class map to NAME.gpkg with class, name, area and time; store `told` under `anysat`."""
    frame, is_begun = None, False
    for frame in _strips(group, advance):
        if len(frame):  # the first rows determine the types of the columns
            write_layer(frame, path, group.name, None if is_begun else told, geometry_type="Polygon")
            is_begun = True
    if not is_begun:
        write_layer(frame, path, group.name, told, geometry_type="Polygon")


def write_layer(frame: Any, path: Path, layer: str, told: Mapping[str, Any] | None, **options: Any) -> None:
    """Write a geopandas table to a layer of a GeoPackage, with metadata `told`; if that is None, append to the layer.

    Raises:
        OSError: It cannot be written.
    """
    meta = {} if told is None else {"layer_metadata": {"anysat": json.dumps(dict(told), default=str)}}
    mode = "a" if told is None else "w"
    try:
        frame.to_file(path, mode=mode, layer=layer, driver="GPKG", engine="pyogrio", index=False, **meta, **options)
    except RuntimeError as error:  # of pyogrio
        raise OSError(str(error)) from error


def _strips(group: StoredGroup, advance: Advance) -> Iterator[Any]:
    """Yield the polygons of one row of shards in one period, as a geopandas table."""
    import geopandas
    import shapely.geometry
    from rasterio.features import shapes

    crs, names = crs_of(group.geobox).to_wkt(), group.class_names
    for period in range(max(1, len(group.periods))):
        for row in range(group.shards[0]):
            units = [unit for unit in group.units(period) if unit.row == row]
            values = np.concatenate([group.codes(unit) for unit in units], axis=1)
            valid = np.concatenate([group.valid(unit) for unit in units], axis=1)
            place = group.geobox.translate_pix(0, group.slices(units[0])[0].start).affine
            found = list(shapes(values, mask=valid, transform=place))
            outlines = [shapely.geometry.shape(shape) for shape, _ in found]
            numbers = np.array([number for _, number in found], np.int32)
            columns = {
                "class": numbers, "class_name": [names[number] for number in numbers],
                "area_m2": shapely.area(outlines),
                **times_of(group.periods[period] if group.periods else None, len(found)),
            }  # fmt: skip
            yield geopandas.GeoDataFrame(columns, geometry=outlines, crs=crs)
            advance(len(units))
