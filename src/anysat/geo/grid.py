"""The grid of a tile: whole patches inside the ground that all inputs share.

Every modality gets a grid with its own pixel size over the same tile, so sources are read or resampled only once.
Nothing here opens a file.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
from affine import Affine
from numpy.typing import NDArray
from odc.geo import CRS
from odc.geo.geobox import GeoBox
from odc.geo.geom import BoundingBox, bbox_intersection

from anysat.errors import LargeGroundError, PatchSizeError, SourceError
from anysat.geo.degrees import WGS84, centre_deg, middle_deg
from anysat.geo.wide import is_wide, parts_near
from anysat.geo.zones import system_at
from anysat.modalities import Modality
from anysat.patches import PatchGrid, SubpatchOrder, centimetres, patch_unit_m

MAX_PATCHES = 4096
"""The most patches in a tile. The fusion transformer attends between all of them."""
MAX_SUBPATCHES = 262_144
"""The most sub-patches of one modality in a tile."""
ALIGNED_PX = 0.02
"""Grids that differ by less than this fraction of a pixel count as the same grid."""
SCALE_TOLERANCE = 0.03
"""Largest relative difference between a metre of a map projection and a metre on the ground."""
NOWHERE = BoundingBox(math.inf, math.inf, -math.inf, -math.inf)
"""Bounds of nothing."""
_EVERYWHERE = BoundingBox(-math.inf, -math.inf, math.inf, math.inf)
"""Bounds of ground whose bounds are unknown."""
_HALF_DEG = 180.0
_SHOWN_SIZES, _EDGE_POINTS, _WIDE_EDGE_POINTS = 12, 21, 181


@dataclass(frozen=True, kw_only=True)
class Footprint:
    """The ground that a source covers."""

    name: str
    """Path of the source, for messages."""
    modality: Modality
    """Modality of the source."""
    geoboxes: tuple[GeoBox, ...]
    """Grids of its rasters; empty if it has no georeference."""
    shape_px: tuple[int, int] = (0, 0)
    """Number of rows and columns of a source without georeference, in pixels of the modality."""


@dataclass(frozen=True, kw_only=True)
class TileGrid:
    """A tile on the ground: its patches, and the grid of each modality over it."""

    patches: PatchGrid
    """How the tile is divided into patches."""
    geobox: GeoBox
    """Grid with one pixel per patch, north-up. It has no reference system if the place of the tile is not known."""
    crs_reason: str
    """Why this reference system was chosen."""
    shared: BoundingBox
    """The ground shared by all inputs. The tile is the part of it that holds whole patches."""

    def of(self, modality: Modality) -> GeoBox:
        """Return the grid of a modality's pixels over the tile. That of a context modality is centred on it."""
        return self.at(modality.gsd_m, covers=modality.covers_tile)

    def dense(self, modality: Modality) -> GeoBox:
        """Return the grid of a modality's sub-patches."""
        return self.at(modality.subpatch_m, covers=modality.covers_tile)

    def at(self, pixel_m: float, *, covers: bool = False) -> GeoBox:
        """Return the grid of pixels of any size that divides the tile, or covers it and is centred on it."""
        return divided(self.geobox, (self.patches.height_m, self.patches.width_m), pixel_m, covers=covers)


def divided(ground: GeoBox, sides_m: tuple[float, float], pixel_m: float, *, covers: bool = False) -> GeoBox:
    """Return a grid of square pixels over ground with the given height and width.

    Args:
        ground: A north-up grid that begins at the north-west corner of the ground.
        sides_m: Height and width of the ground in metres.
        pixel_m: Side of a pixel in metres. It divides both sides, unless `covers`.
        covers: Whether the grid covers the ground with whole pixels, centred on it.
    """
    count = math.ceil if covers else round
    rows, cols = (count(round(side / pixel_m, 6)) for side in sides_m)
    left = ground.affine.c - (cols * pixel_m - sides_m[1]) / 2
    top = ground.affine.f + (rows * pixel_m - sides_m[0]) / 2
    return north_up(left, top, pixel_m, rows, cols, ground.crs)


def plan_grid(footprints: Sequence[Footprint], patch_size_m: float, order: SubpatchOrder = "cell") -> TileGrid:
    """Find the tile of whole patches in the ground that the sources share, from its north-west corner on.

    The reference system is that of the source with the finest pixels among those in true metres, or else the UTM zone
    of the centre, or polar stereographic where there are no UTM zones. If possible, the tile is aligned with the pixels
    of a source, so that this source, and all whose pixels fit with it, are not resampled. Sources without georeference
    are centred.

    Args:
        footprints: The ground of the sources.
        patch_size_m: Side of a patch in metres.
        order: Order of sub-patches, see `PatchGrid.fit`.

    Raises:
        SourceError: No source has a georeference, the sources do not overlap, or the ground is too large.
        PatchSizeError: A patch does not hold whole sub-patches, or is larger than the shared ground.
    """
    located, bounding, crs, reason, shared = _shared_ground(footprints)
    tiling = [f.modality for f in footprints if not f.modality.covers_tile] or [f.modality for f in footprints]
    floating = [footprint for footprint in footprints if not footprint.geoboxes]
    ground = snap(_centred(shared, floating), bounding, crs, inwards=not floating)
    patch_m = check_patch_size(patch_size_m, tiling, order, ground, located)
    slack = ALIGNED_PX * min(modality.gsd_m for modality in tiling) / patch_m
    rows, cols = (math.floor(side / patch_m + slack) for side in (ground.span_y, ground.span_x))
    _check_area(rows, cols, patch_m, tiling)
    shapes = {m: (round(rows * patch_m / m.gsd_m), round(cols * patch_m / m.gsd_m)) for m in tiling}
    geobox = north_up(ground.left, ground.top, patch_m, rows, cols, crs)
    return TileGrid(patches=PatchGrid.fit(shapes, patch_m, order), geobox=geobox, crs_reason=reason, shared=shared)


def plan_tile(footprints: Sequence[Footprint], side_m: float, lon_lat: tuple[float, float] | None = None) -> TileGrid:
    """Find one square tile in the middle of the ground that the sources share, or around a place.

    The ground of a source with several rasters, such as dates, is what all of them show if that contains the tile, so
    that a single larger raster does not move it; otherwise it is what they show together. Reference system and pixels
    are chosen as in `plan_grid`. The whole tile is one patch. Sources without georeference must have its size; they are
    centred. If no source has one, the tile has no place.

    Args:
        footprints: The ground of the sources.
        side_m: Side of the tile in metres.
        lon_lat: Longitude and latitude of the centre in WGS 84 degrees; None for the middle of the shared ground.

    Raises:
        SourceError: A source has no georeference and cannot be centred; the sources do not overlap; the shared ground
            is smaller than the tile by a pixel or more, or does not contain the place.
    """
    if lon_lat is None and not any(footprint.geoboxes for footprint in footprints):
        shared = _centred(BoundingBox(0, 0, side_m, side_m), footprints, "the tile")
        geobox, reason = north_up(0, side_m, side_m, 1, 1, None), "no input has a georeference"
        return TileGrid(patches=PatchGrid(side_m, 1, 1), geobox=geobox, crs_reason=reason, shared=shared)
    _, bounding, crs, reason, shared = _shared_ground(footprints, lon_lat)
    names = ", ".join(footprint.name for footprint in bounding)
    floating = [footprint for footprint in footprints if not footprint.geoboxes]
    if floating and lon_lat is not None:
        why = "it has no georeference, so its place in a tile around a given place is not known"
        raise SourceError(floating[0].name, why, "let the tile lie in the middle of the files, or write one into it")
    if lon_lat is not None:
        x, y = WGS84.transformer_to_crs(crs)(*lon_lat)
        if not (shared.left <= x <= shared.right and shared.bottom <= y <= shared.top):
            place = f"longitude {lon_lat[0]:g}, latitude {lon_lat[1]:g} degrees"
            raise SourceError(
                names, f"the ground {_told(shared)} does not contain the place {place}", "check the place"
            )
    else:
        shared = _centred(_shown_throughout(bounding, crs, shared, side_m), floating)
        _centred(BoundingBox(0, 0, side_m, side_m), floating, "the tile")
        x, y = (shared.left + shared.right) / 2, (shared.bottom + shared.top) / 2
        if side_m - min(shared.span_x, shared.span_y) >= max(f.modality.gsd_m for f in bounding):
            size = f"{shared.span_y:.1f} x {shared.span_x:.1f} m"
            raise SourceError(names, f"the ground shared here is {size}, smaller than the tile of {side_m:g} m")
    ground = BoundingBox(x - side_m / 2, y - side_m / 2, x + side_m / 2, y + side_m / 2)
    ground = snap(ground, bounding, crs, inwards=False)
    geobox = north_up(ground.left, ground.top, side_m, 1, 1, crs)
    return TileGrid(patches=PatchGrid(side_m, 1, 1), geobox=geobox, crs_reason=reason, shared=shared)


def _shown_throughout(bounding: Sequence[Footprint], crs: CRS, shared: BoundingBox, side_m: float) -> BoundingBox:
    """Reduce shared ground to what all rasters of a source show, if that has room for a tile, for each source."""
    for footprint in bounding:
        least = side_m - footprint.modality.gsd_m
        common = shared
        for geobox in footprint.geoboxes:
            common &= bounds_of([geobox], crs)
        if min(common.span_x, common.span_y) > max(least, 0):
            shared = common
    return shared


def _shared_ground(
    footprints: Sequence[Footprint], lon_lat: tuple[float, float] | None = None
) -> tuple[list[Footprint], list[Footprint], CRS, str, BoundingBox]:
    """Return located sources, those that bound the tile, a reference system and its reason, and the shared ground."""
    import shapely

    located = [footprint for footprint in footprints if footprint.geoboxes]
    if not located:
        raise SourceError(footprints[0].name, "it has no georeference",
                          "give it together with a georeferenced input of the same ground")  # fmt: skip
    bounding = [footprint for footprint in located if not footprint.modality.covers_tile] or located
    crs, reason = choose_crs(bounding, None if lon_lat is None else shapely.Point(*lon_lat))
    check_overlap([(footprint.name, bounds_of(footprint.geoboxes, crs)) for footprint in located])
    shared = bbox_intersection(bounds_of(footprint.geoboxes, crs) for footprint in bounding)
    return located, bounding, crs, reason, shared


def crs_of(geobox: GeoBox) -> CRS:
    """Return the reference system of a grid that has one."""
    assert geobox.crs is not None, geobox
    return geobox.crs


def boundary_in(geobox: GeoBox, crs: CRS) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return points around the edge of a grid in a reference system, not finite where it cannot show them.

    For a grid of whole continents, the points lie around its parts near the area that the system is made for.
    """
    x, y = mapped(geobox.affine, *geobox.boundary(_EDGE_POINTS).T)
    if geobox.crs == crs:
        return x, y
    if is_wide(geobox):
        edges = [mapped(part.affine, *part.boundary(_WIDE_EDGE_POINTS).T) for part in parts_near(geobox, crs)]
        if not edges:
            return np.array([math.inf]), np.array([math.inf])
        x, y = np.concatenate(edges, axis=1)
    return crs_of(geobox).transformer_to_crs(crs)(x, y)


def mapped(
    affine: Affine, x: NDArray[np.float64], y: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Apply an affine map to points."""
    return affine.a * x + affine.b * y + affine.c, affine.d * x + affine.e * y + affine.f


def north_up(left: float, top: float, pixel_m: float, rows: int, cols: int, crs: CRS | None) -> GeoBox:
    """Return a grid of square pixels from its north-west corner, which is rounded to tenths of a millimetre."""
    return GeoBox((rows, cols), Affine(pixel_m, 0, round(left, 4), 0, -pixel_m, round(top, 4)), crs)


def choose_crs(footprints: Sequence[Footprint], wanted: Any = None) -> tuple[CRS, str]:
    """Choose the reference system of the finest source in true metres, else that of the place, and say why.

    The place is the middle of the ground that all share, within `wanted` if given (shapely, in degrees).
    """
    metric = [
        (abs(geobox.affine.determinant) ** 0.5, footprint.name, crs_of(geobox))
        for footprint in footprints
        for geobox in footprint.geoboxes
        if is_metric(geobox)
    ]
    if metric:
        _, name, crs = min(metric, key=lambda found: found[0])
        return crs, f"that of {name}"
    ground = shared_degrees(footprints, wanted)
    is_known = not (ground.is_empty or ground.equals(_world()))
    return system_at(*(middle_deg(ground) if is_known else centre_deg(footprints[0].geoboxes[0])))


def shared_degrees(footprints: Sequence[Footprint], wanted: Any = None) -> Any:
    """Return the ground in degrees (shapely) that all sources show, within `wanted` if given."""
    import shapely

    ground = _world() if wanted is None else wanted
    for footprint in footprints:
        boxes = [bounds_of([geobox], WGS84) for geobox in footprint.geoboxes]
        if any(
            box.span_x >= _HALF_DEG and not crs_of(geobox).geographic
            for box, geobox in zip(boxes, footprint.geoboxes, strict=True)
        ):
            continue  # around a pole, or on both sides of 180 degrees: its bounds do not tell what it shows
        ground = ground.intersection(shapely.union_all(shapely.box(*np.array(boxes).T)))
    return ground


def _world() -> Any:
    import shapely

    return shapely.box(-_HALF_DEG, -_HALF_DEG / 2, _HALF_DEG, _HALF_DEG / 2)


def is_metric(geobox: GeoBox) -> bool:
    """Return whether one unit of the map is about a metre on the ground, in both directions."""
    from pyproj import Proj

    crs = crs_of(geobox)
    if not crs.projected or {axis.unit_name for axis in crs.proj.axis_info[:2]} != {"metre"}:
        return False
    factors = Proj(crs.proj).get_factors(*centre_deg(geobox))
    scales = (factors.meridional_scale, factors.parallel_scale)
    return all(abs(scale - 1) < SCALE_TOLERANCE for scale in scales)


def bounds_of(geoboxes: Iterable[GeoBox], crs: CRS) -> BoundingBox:
    """Return the bounds of rasters together in a reference system.

    They are infinite if the system shows only a part of a raster, and `NOWHERE` if it shows none of them.
    """
    found = NOWHERE
    for geobox in geoboxes:
        x, y = boundary_in(geobox, crs)
        seen = np.isfinite(x) & np.isfinite(y)
        if seen.all():
            found |= BoundingBox(float(x.min()), float(y.min()), float(x.max()), float(y.max()))
        elif seen.any():
            found = _EVERYWHERE
    return found


def is_empty(box: BoundingBox) -> bool:
    """Return whether bounds, such as those that two sources share, contain nothing."""
    return min(box.span_x, box.span_y) <= 0


def _told(box: BoundingBox) -> str:
    if box == NOWHERE:
        return "ground far away"
    return f"x {box.left:.1f}..{box.right:.1f}, y {box.bottom:.1f}..{box.top:.1f}"


def check_overlap(boxes: Sequence[tuple[str, BoundingBox]]) -> None:
    """Refuse named bounds if two of them do not overlap."""
    for (other, other_box), (name, box) in combinations(boxes, 2):
        if is_empty(box & other_box):
            problem = f"it covers {_told(box)}, which does not overlap {other} ({_told(other_box)})"
            raise SourceError(name, problem, "give files that cover the same ground")


def _centred(shared: BoundingBox, floating: Sequence[Footprint], whose: str = "the other inputs") -> BoundingBox:
    """Return the part of the shared ground where sources without georeference are centred."""
    height, width = shared.span_y, shared.span_x
    for footprint in floating:
        pixel = footprint.modality.gsd_m
        rows_m, cols_m = (side * pixel for side in footprint.shape_px)
        if max(abs(rows_m - shared.span_y), abs(cols_m - shared.span_x)) >= pixel:
            raise SourceError(
                footprint.name, f"it has no georeference, and its {rows_m:g} x {cols_m:g} m are not the "
                f"{shared.span_y:.1f} x {shared.span_x:.1f} m of {whose}",
                f"it can only be centred on ground that differs by less than its pixel of {pixel:g} m",
            )  # fmt: skip
        height, width = min(height, rows_m), min(width, cols_m)
    x, y = (shared.left + shared.right) / 2, (shared.bottom + shared.top) / 2
    return BoundingBox(x - width / 2, y - height / 2, x + width / 2, y + height / 2)


def snap(ground: BoundingBox, bounding: Sequence[Footprint], crs: CRS, inwards: bool) -> BoundingBox:
    """Move ground so that its north-west corner is aligned with the pixels of a source, or cut it `inwards` to that."""
    found = [
        (abs(geobox.affine.a / gsd_m - 1) < 1e-4, gsd_m, geobox)
        for gsd_m, geobox in ((f.modality.gsd_m, geobox) for f in bounding for geobox in f.geoboxes)
        if geobox.crs == crs and geobox.affine.b == 0 == geobox.affine.d
    ]
    if not found:
        return ground
    _, step, anchor = max(found, key=lambda candidate: candidate[:2])
    bounds = anchor.boundingbox
    west, south = (ground.left - bounds.left) / step, (bounds.top - ground.top) / step
    count = (lambda pixels: math.ceil(pixels - ALIGNED_PX)) if inwards else round
    left, top = bounds.left + count(west) * step, bounds.top - count(south) * step
    right, bottom = (ground.right, ground.bottom) if inwards else (left + ground.span_x, top - ground.span_y)
    return BoundingBox(left, bottom, right, top)


def check_patch_size(
    patch_size_m: float, tiling: Sequence[Modality], order: SubpatchOrder, ground: BoundingBox,
    located: Sequence[Footprint] = (),
) -> float:  # fmt: skip
    """Return the patch side in metres, rounded to centimetres; refuse one that does not fit sub-patches and ground."""
    unit_cm = centimetres(patch_unit_m(list(tiling), order), "patch unit")
    shorter_cm = math.floor(100 * (min(ground.span_x, ground.span_y) + ALIGNED_PX))
    fitting = [size / 100 for size in range(unit_cm, shorter_cm + 1, unit_cm)][:_SHOWN_SIZES]
    names = ", ".join(dict.fromkeys(modality.key for modality in tiling))
    if isinstance(patch_size_m, bool) or not (math.isfinite(patch_size_m) and patch_size_m >= 0.01):
        raise PatchSizeError(patch_size_m, "it must be a positive number of metres", fitting)
    if abs(patch_size_m * 100 / unit_cm - round(patch_size_m * 100 / unit_cm)) > 1e-6:
        raise PatchSizeError(
            patch_size_m, f"it must be a multiple of {unit_cm / 100:g} m to hold whole sub-patches of {names}", fitting
        )
    if located and patch_size_m * 100 > shorter_cm:
        files = ", ".join(footprint.name for footprint in located)
        reason = f"it is larger than the {ground.span_y:.1f} x {ground.span_x:.1f} m of ground shared by {files}"
        raise PatchSizeError(patch_size_m, reason, fitting)
    return round(patch_size_m * 100) / 100


def _check_area(rows: int, cols: int, patch_m: float, tiling: Sequence[Modality]) -> None:
    per_side = max(round(patch_m / modality.subpatch_m) for modality in tiling)
    if rows * cols <= MAX_PATCHES and rows * cols * per_side**2 <= MAX_SUBPATCHES:
        return
    most = min(math.isqrt(MAX_PATCHES), math.isqrt(MAX_SUBPATCHES) // per_side)
    raise LargeGroundError(
        "shared ground of the inputs",
        f"its {rows * patch_m:g} x {cols * patch_m:g} m hold {rows * cols} patches of {patch_m:g} m with "
        f"{per_side**2} sub-patches each, and one tile can have {MAX_PATCHES} patches and {MAX_SUBPATCHES} sub-patches",
        f"crop an input to at most {most * patch_m:g} x {most * patch_m:g} m"
        if most
        else f"take a smaller patch, at most {math.isqrt(MAX_SUBPATCHES) // per_side} sub-patches per side",
    )
