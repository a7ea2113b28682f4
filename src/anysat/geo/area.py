"""Areas: ground of any size as a grid of patches, divided into shards that are computed and written one by one.

A tile is encoded at once; an area is not. Nothing here opens a raster.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
from affine import Affine
from numpy.typing import NDArray
from odc.geo import CRS
from odc.geo.geobox import GeoBox
from odc.geo.geom import BoundingBox, bbox_intersection

from anysat.errors import SourceError
from anysat.geo.degrees import WGS84, projected
from anysat.geo.grid import (
    Footprint,
    boundary_in,
    bounds_of,
    check_overlap,
    check_patch_size,
    choose_crs,
    crs_of,
    divided,
    is_empty,
    is_metric,
    north_up,
    shared_degrees,
    snap,
)
from anysat.geo.zones import NORTHERNMOST_DEG, SOUTHERNMOST_DEG
from anysat.modalities import Modality
from anysat.patches import SubpatchOrder

_ZONE_DEG, _FURTHEST_DEG, _STEP_DEG = 6.0, 84.0, 0.05
_ZONE_EDGE_DEG = 1e-9
_TOUCHES = 1e-3
"""Fraction of a patch by which ground may reach into it without the patch being included."""


class _Ground(NamedTuple):
    """The ground of a UTM zone, in degrees."""

    west: float
    east: float
    south: float = -_FURTHEST_DEG
    north: float = _FURTHEST_DEG


class Span(NamedTuple):
    """A rectangle of patches, given by rows and columns. `bottom` and `right` are not included."""

    top: int
    bottom: int
    left: int
    right: int

    @property
    def shape(self) -> tuple[int, int]:
        """Number of rows and columns."""
        return self.bottom - self.top, self.right - self.left

    @property
    def slices(self) -> tuple[slice, slice]:
        """Slices of the span in an array over the whole area."""
        return slice(self.top, self.bottom), slice(self.left, self.right)

    def within(self, outer: Span) -> tuple[slice, slice]:
        """Return the slices of the span in an array over another span that contains it."""
        return (slice(self.top - outer.top, self.bottom - outer.top),
                slice(self.left - outer.left, self.right - outer.left))  # fmt: skip

    def shared_with(self, other: Span) -> Span:
        """Return the span that both share. If there is none, one of its sides is not positive."""
        return Span(max(self.top, other.top), min(self.bottom, other.bottom),
                    max(self.left, other.left), min(self.right, other.right))  # fmt: skip

    def is_empty(self) -> bool:
        """Return whether it has no patch."""
        return min(self.shape) <= 0

    def cut(self, side: int) -> Iterator[Span]:
        """Yield squares of this side, row by row. The last of each row and column may be smaller."""
        for top in range(self.top, self.bottom, side):
            for left in range(self.left, self.right, side):
                yield Span(top, min(top + side, self.bottom), left, min(left + side, self.right))


@dataclass(frozen=True, eq=False, kw_only=True)
class Area:
    """Ground in one coordinate reference system, divided into patches and shards."""

    geobox: GeoBox
    """Grid with one pixel per patch, north-up."""
    patch_size_m: float
    """Side of a patch in metres."""
    shard: int
    """Number of patches along a side of a shard, the unit of work and of writing."""
    crs_reason: str
    """Why this reference system was chosen."""
    name: str = ""
    """Name of this part, if the area is split into several; otherwise empty."""
    wanted: Any = None
    """The requested ground (a shapely geometry in the reference system); None for all."""

    @property
    def span(self) -> Span:
        """All patches of the area."""
        return Span(0, self.geobox.height, 0, self.geobox.width)

    @property
    def shards(self) -> tuple[int, int]:
        """Number of rows and columns of shards."""
        return math.ceil(self.geobox.height / self.shard), math.ceil(self.geobox.width / self.shard)

    def shard_span(self, row: int, col: int) -> Span:
        """Return the patches of a shard. The last shards may be smaller."""
        whole = Span(row * self.shard, (row + 1) * self.shard, col * self.shard, (col + 1) * self.shard)
        return whole.shared_with(self.span)

    def patches(self, span: Span) -> GeoBox:
        """Return the grid of some patches, which may lie outside the area."""
        return self.pixels(span, self.patch_size_m)

    def pixels(self, span: Span, pixel_m: float, *, covers: bool = False) -> GeoBox:
        """Return the grid of pixels of a given side, which divides the patches or `covers` the span (`divided`)."""
        rows, cols = span.shape
        sides_m = rows * self.patch_size_m, cols * self.patch_size_m
        return divided(self.geobox.translate_pix(span.left, span.top), sides_m, pixel_m, covers=covers)

    def covering(self, span: Span, modality: Modality) -> GeoBox:
        """Return the grid of a modality over a span. That of a context modality covers it and is centred on it."""
        return self.pixels(span, modality.gsd_m, covers=modality.covers_tile)

    def inside(self, span: Span, cell: tuple[int, int] = (1, 1)) -> NDArray[np.bool_]:
        """Return which cells, of some rows and columns of patches each, touch the requested ground."""
        shape = math.ceil(span.shape[0] / cell[0]), math.ceil(span.shape[1] / cell[1])
        if self.wanted is None:
            return np.ones(shape, bool)
        from rasterio.features import geometry_mask

        corner, side_m = self.patches(span).affine, self.patch_size_m
        grid = Affine(cell[1] * side_m, 0, corner.c, 0, -cell[0] * side_m, corner.f)
        return geometry_mask([self.wanted], shape, grid, all_touched=True, invert=True)


def plan_areas(
    footprints: Sequence[Footprint], patch_size_m: float, order: SubpatchOrder, *, shard: int, wanted: Any = None
) -> list[Area]:
    """Divide the ground shared by the sources, or the requested part of it, into patches.

    Patches are counted from the north-west corner of the shared ground, so all areas cut from the same sources have the
    same patches. Those at the edges may extend beyond the ground. The reference system is that of the source with the
    finest pixels among those in true metres, or else that of the place. If the finest source lies in several UTM zones,
    or ground given in degrees extends over several, each zone becomes an area of its own. Zones are cut at their
    meridians, and those of the two hemispheres at the equator.

    Args:
        footprints: The ground of the sources. Each needs a georeference.
        patch_size_m: Side of a patch in metres.
        order: Order of sub-patches of the model, see `PatchGrid.fit`.
        shard: Number of patches along a side of a shard.
        wanted: The requested ground as a shapely geometry in degrees (`geo.ground.read_ground`); None for all.

    Returns:
        One area per reference system.

    Raises:
        SourceError: A source has no georeference, or the sources and the requested ground do not overlap.
        PatchSizeError: A patch does not hold whole sub-patches.
    """
    for footprint in footprints:
        if not footprint.geoboxes:
            raise SourceError(
                footprint.name, "it has no georeference, so its place in an area is not known", "write one into it"
            )
    tiling = [f for f in footprints if not f.modality.covers_tile] or list(footprints)
    zones = _zones(tiling, wanted)
    parts = []
    for crs, reason, zone in zones:
        ground = _clipped(wanted, zone)
        area = _area_in(crs, reason, zone, footprints, tiling, ground, patch_size_m, order, shard)
        if area is not None:
            parts.append(replace(area, name=_zone_name(crs) if len(zones) > 1 else ""))
    if not parts:
        names = ", ".join(footprint.name for footprint in footprints)
        raise SourceError(names, "the ground that they share does not overlap the area", "check its coordinates")
    return parts


def _area_in(
    crs: CRS, reason: str, zone: _Ground | None, footprints: Sequence[Footprint],
    tiling: Sequence[Footprint], ground: Any, patch_size_m: float, order: SubpatchOrder, shard: int,
) -> Area | None:  # fmt: skip
    """Return the part of the ground in one reference system; None if there is none."""
    import shapely

    boxes = [(f.name, bounds_of(f.geoboxes if zone is None else _of_zone(f, crs, zone), crs)) for f in footprints]
    if ground is None:
        check_overlap(boxes)
    data = bbox_intersection([bounds_of(_of_zone(f, crs, None), crs) for f in tiling])
    extent, wanted = bbox_intersection([box for _, box in boxes]), None
    if ground is not None:
        wanted = projected(shapely.segmentize(ground, _STEP_DEG), WGS84, crs)
        here = wanted.intersection(shapely.box(extent.left, extent.bottom, extent.right, extent.top))
        extent = extent & BoundingBox(*(here.bounds if not here.is_empty else (0, 0, 0, 0)))
    if is_empty(extent) or is_empty(data):
        return None
    patch_m = check_patch_size(patch_size_m, [f.modality for f in tiling], order, extent)
    left, _, _, top = snap(data, tiling, crs, inwards=False)  # patches count from its corner
    rows = _whole((top - extent.top) / patch_m, (top - extent.bottom) / patch_m)
    cols = _whole((extent.left - left) / patch_m, (extent.right - left) / patch_m)
    left, top = left + cols[0] * patch_m, top - rows[0] * patch_m
    geobox = north_up(left, top, patch_m, rows[1] - rows[0], cols[1] - cols[0], crs)
    return Area(geobox=geobox, patch_size_m=patch_m, shard=shard, crs_reason=reason, wanted=wanted)


def _whole(first: float, last: float) -> tuple[int, int]:
    """Return the first patch, and the one after the last, of a range given in patches."""
    start = math.floor(first + _TOUCHES)
    return start, max(math.ceil(last - _TOUCHES), start + 1)


def _of_zone(footprint: Footprint, crs: CRS, zone: _Ground | None) -> Sequence[GeoBox]:
    """Return the rasters of a source in a reference system and those that reach into its zone; if there are none, all.

    Near the border of two zones, the scene of one may be the only one that covers ground of the other.
    """
    own = tuple(
        geobox for geobox in footprint.geoboxes
        if geobox.crs == crs or (zone is not None and _reaches(geobox, zone))
    )  # fmt: skip
    return own or footprint.geoboxes


def _reaches(geobox: GeoBox, zone: _Ground) -> bool:
    longitudes, latitudes = boundary_in(geobox, WGS84)
    west, east = float(longitudes.min()), float(longitudes.max())
    return (
        east - west < 180  # does not cross the antimeridian
        and east > zone.west and west < zone.east
        and float(latitudes.max()) > zone.south and float(latitudes.min()) < zone.north
    )  # fmt: skip


def _zones(tiling: Sequence[Footprint], wanted: Any) -> list[tuple[CRS, str, _Ground | None]]:
    """Return the reference systems, the reason for each, and its ground if there are several."""
    crs, reason = choose_crs(tiling, wanted)
    finest = min((f for f in tiling if any(is_metric(box) for box in f.geoboxes)), key=_pixel_m, default=None)
    if finest is not None:
        systems = list(dict.fromkeys(crs_of(box) for box in finest.geoboxes if is_metric(box)))
        bands = [_utm_band(system) for system in systems]
        if len(systems) == 1 or None in bands:
            return [(crs, reason, None)]
        widened = _widened({band for band in bands if band is not None})
        return [
            (s, f"zones of {finest.name}", _hemisphere(s, widened[band], bands.count(band) > 1))
            for s, band in zip(systems, bands, strict=True)
        ]
    if _utm_band(crs) is None:  # beyond the zones, where one system is for all longitudes
        return [(crs, reason, None)]
    ground = shared_degrees(tiling, wanted)
    if ground.is_empty:
        return [(crs, reason, None)]
    west, south, east, north = ground.bounds
    first, last = (math.floor(longitude / _ZONE_DEG) for longitude in (west, east - _ZONE_EDGE_DEG))
    ranges = [(zone * _ZONE_DEG, (zone + 1) * _ZONE_DEG) for zone in range(first, last + 1)]
    ranges = [one for one in ranges if _lies_in(ground, one)]
    if len(ranges) < 2:
        return [(crs, reason, None)]
    latitude = min(max((south + north) / 2, SOUTHERNMOST_DEG), NORTHERNMOST_DEG)
    return [(CRS.utm(sum(one) / 2, latitude), "UTM zones, because no input is in true metres", _Ground(*one))
            for one in ranges]  # fmt: skip


def _lies_in(ground: Any, band: tuple[float, float]) -> bool:
    import shapely

    inner = shapely.box(band[0] + _ZONE_EDGE_DEG, -_FURTHEST_DEG, band[1] - _ZONE_EDGE_DEG, _FURTHEST_DEG)
    return bool(inner.intersects(ground))


def _widened(bands: Collection[tuple[float, float]]) -> dict[Any, tuple[float, float]]:
    """Return the longitudes of each zone, widened where a neighbour is missing, as some zones are (32V, 33X)."""
    found, ordered = {}, sorted(bands)
    for number, (west, east) in enumerate(ordered):
        before = ordered[number - 1][1] if number else -math.inf
        after = ordered[number + 1][0] if number + 1 < len(ordered) else math.inf
        reach = _ZONE_DEG / 2
        found[west, east] = max(west - reach, (before + west) / 2), min(east + reach, (east + after) / 2)
    return found


def _hemisphere(crs: CRS, band: tuple[float, float], is_cut: bool) -> _Ground:
    """Return the ground of a zone with these longitudes, cut at the equator if the other hemisphere has its own."""
    if not is_cut:
        return _Ground(*band)
    return _Ground(*band, south=0.0) if _is_northern(crs) else _Ground(*band, north=0.0)


def _pixel_m(footprint: Footprint) -> float:
    return min(abs(box.affine.determinant) ** 0.5 for box in footprint.geoboxes if is_metric(box))


def _utm_band(crs: CRS) -> tuple[float, float] | None:
    """Return the longitudes of a UTM zone (EPSG 326xx and 327xx); None for another system."""
    zone = (crs.epsg or 0) % 100
    if (crs.epsg or 0) // 100 not in (326, 327) or not 1 <= zone <= 60:
        return None
    return (zone - 31) * _ZONE_DEG, (zone - 30) * _ZONE_DEG


def _is_northern(crs: CRS) -> bool:
    return (crs.epsg or 0) // 100 == 326


def _zone_name(crs: CRS) -> str:
    return f"utm{(crs.epsg or 0) % 100:02d}{'n' if _is_northern(crs) else 's'}"


def _clipped(wanted: Any, zone: _Ground | None) -> Any:
    import shapely

    if zone is None:
        return wanted
    ground = shapely.box(zone.west, zone.south, zone.east, zone.north)
    return ground if wanted is None else wanted.intersection(ground)
