"""Export a class map as polygons: outlines of pixels of one class, one row of shards at a time, in little memory.

Polygons end where a row of shards ends, and are not joined with those of the next row.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from affine import Affine
from numpy.typing import NDArray

from anysat.geo.grid import crs_of
from anysat.geo.layout import Period
from anysat.geo.stored import StoredGroup
from anysat.geo.tables import times_of

Advance = Callable[[int], object]


@dataclass(frozen=True, eq=False, kw_only=True)
class _Strip:
    """Polygons of one row of shards in one period."""

    shapes: NDArray[Any]
    numbers: NDArray[np.int32]
    period: Period | None


def write_polygons(path: Path, group: StoredGroup, told: Mapping[str, Any], advance: Advance) -> None:
    """Write the polygons of a class map to NAME.gpkg with class, name, area and time; store `told` under `anysat`."""
    import geopandas

    crs, frame, is_begun = crs_of(group.geobox).to_wkt(), None, False
    for strip in _strips(group, advance):
        frame = geopandas.GeoDataFrame(_columns(group, strip), geometry=list(strip.shapes), crs=crs)
        if len(frame):  # the first rows determine the types of the columns
            write_layer(frame, path, group.name, None if is_begun else told, geometry_type="Polygon")
            is_begun = True
    if frame is not None and not is_begun:
        write_layer(frame, path, group.name, told, geometry_type="Polygon")


def write_layer(frame: Any, path: Path, layer: str, told: Mapping[str, Any] | None, **options: Any) -> None:
    """Write a geopandas table to a layer of a GeoPackage, with metadata `told`; if that is None, append to the layer.

    Raises:
        OSError: It cannot be written.
    """
    import json

    meta = {} if told is None else {"layer_metadata": {"anysat": json.dumps(dict(told), default=str)}}
    mode = "a" if told is None else "w"
    try:
        frame.to_file(path, mode=mode, layer=layer, driver="GPKG", engine="pyogrio", index=False, **meta, **options)
    except RuntimeError as error:  # of pyogrio
        raise OSError(str(error)) from error


def _strips(group: StoredGroup, advance: Advance) -> Iterator[_Strip]:
    import shapely.geometry
    from rasterio.features import shapes

    a, _, left, _, e, top = tuple(group.geobox.affine)[:6]
    for period in range(max(1, len(group.periods))):
        for row in range(group.shards[0]):
            units = [unit for unit in group.units(period) if unit.row == row]
            values = np.concatenate([group.codes(unit) for unit in units], axis=1)
            valid = np.concatenate([group.valid(unit) for unit in units], axis=1)
            place = Affine(a, 0, left, 0, e, top + e * group.slices(units[0])[0].start)
            found = list(shapes(values, mask=valid, transform=place))
            yield _Strip(
                shapes=np.array([shapely.geometry.shape(shape) for shape, _ in found], dtype=object),
                numbers=np.array([number for _, number in found], np.int32),
                period=group.periods[period] if group.periods else None,
            )
            advance(len(units))


def _columns(group: StoredGroup, strip: _Strip) -> dict[str, Any]:
    import shapely

    names: Sequence[str] = group.variable_attributes["class_names"]
    return {
        "class": strip.numbers,
        "class_name": [names[number] for number in strip.numbers],
        "area_m2": shapely.area(strip.shapes),
        **times_of(strip.period, len(strip.shapes)),
    }
