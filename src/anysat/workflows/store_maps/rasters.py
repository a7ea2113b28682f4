"""Labels of a raster: a point for each patch of the stores whose middle has a label."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from anysat.data.own.rasters import read_nearest_if_met
from anysat.errors import InputError, MissingFileError
from anysat.geo.overlap import seen_before
from anysat.geo.samples import Patches, drawn
from anysat.workflows.store_maps.maps import Stores

LABEL = "label"
"""Column of the points with the label."""
_HELD = 2_000_000
"""Number of patches held before those that are too many are dropped."""


def read_points(stores: Stores, path: Path, periods: Sequence[int], most: int, *, values: bool) -> tuple[Any, int]:
    """Return a table of points in the middle of patches that were seen and have a label there, with these labels.

    If there are more than `most`, they are drawn: evenly over the classes, or of values, over all.

    Args:
        stores: The stores.
        path: A raster with one band in any reference system. Pixels without data have no label.
        periods: Numbers of the periods in which the labels hold.
        most: Largest number of points.
        values: Whether it holds values.

    Returns:
        The table, and the number of patches with a label.

    Raises:
        MissingFileError, SourceError: The raster is missing or cannot be read, or has several bands or no georeference.
        InputError: It does not hold whole numbers, and is not of values; or no patch that was seen has a label.
    """
    import geopandas

    if not path.exists():
        raise MissingFileError(path, "a raster of labels, or a vector file of labelled points or polygons")
    none = np.empty(0, np.int64)
    held, labels, total = Patches(none, none, none, none, np.empty(0)), np.empty(0), 0
    for number, group in enumerate(stores.groups):
        for unit in group.units(0):
            rows, cols = group.slices(unit)
            found = read_nearest_if_met(path, group.geobox[rows, cols])
            if found is None:
                continue
            seen = np.zeros(found.shape, bool)
            for period in periods:
                before = seen_before(stores.groups[:number], group, period, rows, cols)
                seen |= group.seen(period, rows, cols) & ~before
            row, col = np.nonzero(np.isfinite(found) & seen)
            new = found[row, col]
            if not values and (strange := new[new % 1 != 0]).size:
                raise InputError(str(path), "classes: whole numbers", strange[0], "for a map of values, give --values")
            kind = np.zeros(len(new), np.int64) if values else new.astype(np.int64)
            more = Patches(np.full(len(new), number), kind, row + rows.start, col + cols.start, np.ones(len(new)))
            held = Patches(*(np.concatenate(pair) for pair in zip(held, more, strict=True)))
            labels, total = np.concatenate([labels, new]), total + len(new)
            if len(labels) > _HELD + most:
                held, labels = held.where(chosen := drawn(held, most)), labels[chosen]
    if not total:
        raise InputError(str(path), f"labels on ground that {stores.name} has seen", "none",
                         "check its reference system and nodata value")  # fmt: skip
    held, labels = held.where(chosen := drawn(held, most)), labels[chosen]
    lon, lat = stores.places_deg(held).T
    return geopandas.GeoDataFrame({LABEL: labels}, geometry=geopandas.points_from_xy(lon, lat), crs=4326), total
