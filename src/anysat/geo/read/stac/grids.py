"""Pixel grids stated by STAC items in `proj:*` fields, whether or not they declare the extension."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from affine import Affine
from odc.geo import CRS
from odc.geo.geobox import GeoBox

from anysat.geo.degrees import has_place
from anysat.geo.grid import ALIGNED_PX, boundary_in, crs_of, mapped

_EDGE_POINTS = 21
_BEND_PX = 0.5
"""Largest distance between the edges of a file and those that its item states, after a shift between their centres."""
_PART_PX = 0.1
"""Largest difference of a shift from whole pixels."""
_TIE_PX = 1e-4
"""Shifts of half a pixel, within this rounding error, are rounded towards zero, so that no row or column is lost."""
_LEAN_FRAC = 1e-3
"""Largest cosine of the angle between the sides of a pixel that counts as a right angle."""


class StatedGrid(NamedTuple):
    """A grid that an item states for an asset."""

    geobox: GeoBox
    is_own: bool
    """Whether the asset itself states it. The grid of an item is a default, and its assets may have other pixels."""


def stated_grid(item: Any, key: str) -> StatedGrid | None:
    """Return the grid that is stated for an asset; None if it is missing, incomplete, or not on Earth."""
    own, common = item.assets[key].extra_fields, item.properties
    said = [own.get(name, common.get(name)) for name in ("proj:shape", "proj:transform")]
    shape_px, affine, crs = _shape(said[0]), _affine(said[1]), _crs(own) or _crs(common)
    if shape_px is None or affine is None or crs is None:
        return None
    geobox = GeoBox(shape_px, affine, crs)
    is_own = own.get("proj:shape") is not None and own.get("proj:transform") is not None
    return StatedGrid(geobox, is_own) if has_place(geobox) else None


def drift_px(stated: GeoBox, shape_px: tuple[int, int], of_file: GeoBox | None) -> tuple[float, float] | None:
    """Return the row and column of a file, with fractions, where a stated grid begins; None if its pixels differ.

    The pixels of a file without georeference are taken for the stated ones if their number is the same.
    """
    if of_file is None:
        return (0.0, 0.0) if tuple(stated.shape) == shape_px else None
    x, y = boundary_in(stated, crs_of(of_file))
    col, row = mapped(~of_file.affine, x, y)
    own_col, own_row = stated.boundary(_EDGE_POINTS).T
    drift = np.array([row - own_row, col - own_col])
    if not np.isfinite(drift).all():
        return None
    top, left = (float(middle) for middle in (drift.max(axis=1) + drift.min(axis=1)) / 2)
    return (top, left) if np.abs(drift - [[top], [left]]).max() <= _BEND_PX else None


def part_px(drift: tuple[float, float]) -> tuple[float, float]:
    """Return the fractions of a row and of a column in a drift; 0 if the grids count as aligned."""
    parts = tuple(round(one - round(one - math.copysign(_TIE_PX, one)), 6) for one in drift)
    return (parts[0], parts[1]) if max(map(abs, parts)) > ALIGNED_PX else (0.0, 0.0)


def shift_px(drift: tuple[float, float]) -> tuple[int, int] | None:
    """Return the whole rows and columns of a drift; None if it is not whole."""
    top, left = map(round, drift)
    return (top, left) if max(abs(drift[0] - top), abs(drift[1] - left)) <= _PART_PX else None


def _numbers(given: Any, counts: Sequence[int]) -> list[float] | None:
    """Return a list of finite numbers if it has one of the given lengths, else None."""
    if not isinstance(given, (list, tuple)) or len(given) not in counts:
        return None
    if not all(isinstance(number, (int, float)) and math.isfinite(number) for number in given):
        return None
    return [float(number) for number in given]


def _shape(given: Any) -> tuple[int, int] | None:
    sides = _numbers(given, [2])
    return None if sides is None or min(sides) < 1 else (int(sides[0]), int(sides[1]))


def _affine(given: Any) -> Affine | None:
    numbers = _numbers(given, [6, 9])
    if numbers is None or numbers[6:] not in ([], [0, 0, 1]):
        return None
    affine = Affine(*numbers[:6])
    along_row, along_col = math.hypot(affine.a, affine.d), math.hypot(affine.b, affine.e)
    lean = abs(affine.a * affine.b + affine.d * affine.e)  # large if the numbers are in GDAL's order
    return None if affine.is_degenerate or lean > _LEAN_FRAC * along_row * along_col else affine


def _crs(fields: Mapping[str, Any]) -> CRS | None:
    """Return the reference system that fields state, by the names of all versions: the first that is known, or None."""
    from pyproj.exceptions import CRSError

    stated = [fields.get(f"proj:{name}") for name in ("code", "epsg", "wkt2", "projjson")]
    if stated[1]:
        stated[1] = f"EPSG:{str(stated[1]).rpartition(':')[2]}"
    for spelling in stated:
        if spelling:
            try:
                return CRS(spelling if isinstance(spelling, str) else json.dumps(spelling))
            except (CRSError, ValueError):  # an unknown code
                continue
    return None
