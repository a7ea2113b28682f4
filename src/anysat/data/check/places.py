"""Checks that no ground is in two splits, in any reference system, and also for tiles that were not read."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from anysat.data.check.evidence import Evidence, Hit
from anysat.data.own.tables import PLACE, as_number
from anysat.errors import AnySatError

if TYPE_CHECKING:
    from odc.geo.geobox import GeoBox

EXTENT_TOLERANCE = 0.05
"""Relative deviation accepted between the ground of a georeferenced tile and the record, for cropped edges."""
MIN_OVERLAP_FRAC = 0.1
"""Share of a tile that must lie in a tile of another split to count: neighbours may share an edge."""
MAX_FOOTPRINTS = 4000
"""Number of samples whose georeference is read, spread over the dataset."""
_METRES_PER_DEGREE = 111_320.0
_EQUAL_AREA = "EPSG:6933"
_EAST, _NORTH = (0, 1, 1, 0), (0, 0, 1, 1)
"""Corners of a box, as fractions of its width and height."""
_HALF_WORLD_M = 17_367_530.45
"""Width of the equal-area map from its middle to its eastern edge."""


def side_m(geobox: Any) -> float | None:
    """Return the length of a tile from north to south; None without a CRS or in Web Mercator, which distorts it."""
    if geobox is None or geobox.crs is None or geobox.crs.epsg == 3857:
        return None
    box = geobox.extent.boundingbox
    return float((box.top - box.bottom) * (_METRES_PER_DEGREE if geobox.crs.geographic else 1.0))


def leaked_places(evidence: Evidence) -> Iterator[Hit]:
    """Georeferenced tiles of different splits on the same ground."""
    from shapely import STRtree, polygons

    footprints = list(_footprints(evidence))
    grounds = zip(footprints, _corners_m([box for _, _, box in footprints]), strict=True)
    found = [(name, split, ground) for (name, split, _), ground in grounds]
    found += _listed(evidence, {name for name, _, _ in footprints})
    names = [name for name, _, _ in found]
    splits = [evidence.split_of.get(split, split) for _, split, _ in found]
    corners = [ground for _, _, ground in found]
    located = [place for place, ground in enumerate(corners) if np.isfinite(ground).all()]
    shapes = polygons(np.array([corners[place] for place in located]).reshape(-1, 4, 2))
    for one, other in STRtree(shapes).query(shapes, predicate="intersects").T.tolist():
        first, second = located[one], located[other]
        if first < second and splits[first] != splits[second]:
            frac = shapes[one].intersection(shapes[other]).area / min(shapes[one].area, shapes[other].area)
            if frac > MIN_OVERLAP_FRAC:
                by = "" if second < len(footprints) else ", by lon and lat of the table"
                example = f"{names[first]} and {names[second]}"
                subject = " and ".join(sorted((splits[first], splits[second])))
                yield Hit(subject=subject, example=example, message=_shared_ground(evidence, frac, by))


def _shared_ground(evidence: Evidence, frac: float, by: str) -> str:
    advice = "`block_m` in the YAML file" if evidence.is_own else "see `split_by_place`"
    return f"tiles of two splits share ground ({frac:.0%}{by}), expected none; split by place, {advice}"


def _corners_m(boxes: Sequence[GeoBox]) -> list[NDArray[np.float64]]:
    """Return the corners (corner x/y) of each box on one equal-area map, in metres, or unchanged without a CRS.

    A box across the edge of that map extends beyond it.
    """
    from pyproj import Transformer

    found = np.full((len(boxes), 4, 2), np.nan)
    groups: dict[str, list[int]] = defaultdict(list)
    for place, box in enumerate(boxes):
        groups[str(box.crs)].append(place)
    for places in groups.values():
        bounds = np.array([boxes[place].extent.boundingbox for place in places]).reshape(-1, 4)
        x, y = bounds[:, [0, 2]][:, _EAST], bounds[:, [1, 3]][:, _NORTH]
        crs = boxes[places[0]].crs
        if crs is not None:
            x, y = Transformer.from_crs(crs.to_wkt(), _EQUAL_AREA, always_xy=True).transform(x, y)
        found[places] = np.stack([_unbroken(x), y], axis=-1)
    return list(found)


def _unbroken(x_m: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return eastings (box corner) of which none jumps from one edge of the map to the other."""
    is_torn = np.ptp(x_m, axis=1, keepdims=True) > _HALF_WORLD_M
    return np.where(is_torn & (x_m < 0), x_m + 2 * _HALF_WORLD_M, x_m)


def _listed(evidence: Evidence, known: set[str]) -> Iterator[tuple[str, str, NDArray[np.float64]]]:
    """Yield id, split and corners of a user's own tiles that are not known otherwise, by their place in the table."""
    from pyproj import Transformer

    columns = evidence.samples.columns
    if not evidence.is_own or not set(PLACE) <= set(columns):
        return
    lon, lat = (np.array([as_number(cell) for cell in columns[name].tolist()]) for name in PLACE)
    kept = (np.abs(lon) <= 180) & (np.abs(lat) < 90) & ~np.isin(columns["id"], list(known))
    keys = np.stack([lon[kept], lat[kept], np.unique(columns["split"][kept], return_inverse=True)[1]], axis=-1)
    places = np.flatnonzero(kept)[np.sort(np.unique(keys, axis=0, return_index=True)[1])]
    lon, lat = lon[places, None], lat[places, None]
    high = evidence.record.tile_m / _METRES_PER_DEGREE
    wide = high / np.cos(np.radians(lat))
    x, y = lon + (np.array(_EAST) - 0.5) * wide, lat + (np.array(_NORTH) - 0.5) * high
    x_m, y_m = Transformer.from_crs("EPSG:4326", _EQUAL_AREA, always_xy=True).transform(x, y)
    for place, corners in zip(places, np.stack([_unbroken(x_m), y_m], axis=-1), strict=True):
        yield str(columns["id"][place]), str(columns["split"][place]), corners


def _footprints(evidence: Evidence) -> Iterator[tuple[str, str, GeoBox]]:
    """Yield id, split and georeference of the tiles that were read, and of many others with a tile-sized raster."""
    read = [(tile.id, tile.split, tile.geobox) for tile in evidence.tiles if tile.geobox is not None]
    yield from read
    known = {name for name, _, _ in read}
    side = next((side for _, _, box in read if (side := side_m(box)) is not None), None)
    entry = _georeferenced_entry(evidence, side) if side is not None else None
    if entry is not None:
        samples, count = evidence.samples, min(MAX_FOOTPRINTS, len(evidence.samples))
        for row in samples.take(np.unique(np.linspace(0, len(samples) - 1, count).round().astype(int))):
            if row["id"] not in known and evidence.folder.has(entry, **row):
                try:
                    box = evidence.folder.geobox(entry, **row)
                except AnySatError:
                    continue  # files that cannot be read are reported by the file rules, for the samples that are read
                if box is not None:
                    yield str(row["id"]), str(row["split"]), box


def _georeferenced_entry(evidence: Evidence, expected_m: float) -> str | None:
    """Find an entry whose rasters cover one tile each."""
    row = evidence.samples.row(0) if len(evidence.samples) else {}
    for entry in evidence.folder.layout.entries:
        is_raster = entry.modality is not None and entry.path.lower().endswith((".tif", ".tiff"))
        if is_raster and set(entry.fields) <= set(row) and evidence.folder.has(entry.name, **row):
            try:
                side = side_m(evidence.folder.geobox(entry.name, **row))
            except AnySatError:
                continue
            if side is not None and abs(side / expected_m - 1) <= EXTENT_TOLERANCE:
                return entry.name
    return None
