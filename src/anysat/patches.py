"""How a tile is divided into patches, and patches into sub-patches.

Lengths are given in metres and computed exactly, in whole centimetres. The published code's `scale` is the patch side
divided by ten metres, and its `input_res` is the sub-patch side in metres.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from numbers import Real
from typing import Literal

from anysat.errors import ExtentError, InputError, PatchSizeError, RecordError
from anysat.modalities import Modality

SubpatchOrder = Literal["cell", "raster"]
MAX_SUBPATCHES = 4096
"""The most sub-patches of one modality in a patch. The spatial transformer attends between all of them."""
CELL_M = 10.0
"""Side in metres of the ground cells by which the published weights order sub-patches smaller than a cell."""


def centimetres(length_m: object, what: str) -> int:
    """Convert a length in metres to whole centimetres.

    Raises:
        RecordError: It is not a positive length in whole centimetres. The message names `what` it is the length of.

    Examples:
        >>> centimetres(1.25, "pixel")
        125
    """
    if isinstance(length_m, bool) or not isinstance(length_m, Real) or not math.isfinite(length_m):
        raise RecordError(what, length_m, "a number of metres")
    length_cm = round(float(length_m) * 100)
    if length_cm <= 0 or abs(length_cm - float(length_m) * 100) > 1e-4:
        raise RecordError(what, length_m, "a positive length in whole centimetres")
    return length_cm


def cells_per_side(modality: Modality) -> int:
    """Return the number of sub-patches per side of a 10 m ground cell.

    It is 1 if a cell does not hold a whole number of sub-patches; cells then play no part in their order.

    Examples:
        >>> from anysat.modalities import MODALITIES
        >>> cells_per_side(MODALITIES["aerial"]), cells_per_side(MODALITIES["l7"])
        (5, 1)
    """
    cell_cm, side_cm = centimetres(CELL_M, "cell"), _subpatch_cm(modality)
    return cell_cm // side_cm if cell_cm % side_cm == 0 else 1


def patch_unit_m(modalities: list[Modality], order: SubpatchOrder) -> float:
    """Return the smallest patch side, in metres, that holds whole sub-patches of all modalities.

    In cell order, patches also hold whole 10 m cells of the modalities whose sub-patches are ordered by them.
    """
    sides_cm = [_subpatch_cm(modality) for modality in modalities]
    if order == "cell":
        sides_cm += [centimetres(CELL_M, "cell") for modality in modalities if cells_per_side(modality) > 1]
    return math.lcm(*sides_cm) / 100


def _subpatch_cm(modality: Modality) -> int:
    return centimetres(modality.subpatch_m, f"sub-patch of {modality.key!r}")


@dataclass(frozen=True)
class PatchGrid:
    """How a tile is divided into patches. Create it with `PatchGrid.fit`, which checks that everything fits.

    Examples:
        >>> from anysat.modalities import MODALITIES as M
        >>> grid = PatchGrid.fit({M["s2"]: (6, 6), M["aerial"]: (300, 300)}, patch_size_m=20)
        >>> grid.num_rows, grid.num_cols, grid.subpatches_per_side(M["aerial"])
        (3, 3, 10)
    """

    patch_size_m: float
    """Side of a patch on the ground, in metres."""
    num_rows: int
    """Number of patches from north to south."""
    num_cols: int
    """Number of patches from west to east."""

    @property
    def height_m(self) -> float:
        """North-south side of the tile, in metres."""
        return self.num_rows * self.patch_size_m

    @property
    def width_m(self) -> float:
        """East-west side of the tile, in metres."""
        return self.num_cols * self.patch_size_m

    @property
    def num_patches(self) -> int:
        """Number of patches in the tile."""
        return self.num_rows * self.num_cols

    def subpatches_per_side(self, modality: Modality) -> int:
        """Return the number of sub-patches along one side of a patch; 1 for a context modality."""
        return subpatches_per_side(self.patch_size_m, modality)

    @classmethod
    def fit(
        cls, shapes_px: Mapping[Modality, tuple[int, int]], patch_size_m: float, order: SubpatchOrder = "cell"
    ) -> PatchGrid:
        """Divide a tile into patches.

        Context modalities (`Modality.covers_tile`) must cover the ground of the others and do not restrict the patch
        size. If there are only context modalities, the tile is their extent.

        Args:
            shapes_px: Number of rows and columns of each modality, in pixels.
            patch_size_m: Side of a patch in metres.
            order: Order of sub-patches smaller than 10 m, see `ModelConfig.subpatch_order`. With `cell`, patches must
                hold whole 10 m cells of such modalities.

        Raises:
            InputError: There is no modality, one is no record, one has no pixels, or a context modality does not cover
                the tile.
            ExtentError: The modalities do not cover the same ground.
            PatchSizeError: The patch does not divide the tile, does not hold whole sub-patches, or holds more than
                4096 of one modality. The message lists the sizes that fit.
        """
        if not shapes_px:
            raise InputError("tile", "at least one modality", "none")
        if odd := [key for key in shapes_px if not isinstance(key, Modality)]:
            raise InputError("tile", "shapes by record, such as anysat.MODALITIES['s2']", f"one by {odd[0]!r}")
        tiling = {m: shape for m, shape in shapes_px.items() if not m.covers_tile} or dict(shapes_px)
        height_cm, width_cm = _common_extent(tiling)
        for modality, shape in shapes_px.items():
            if modality not in tiling:
                _check_context(modality, shape, height_cm, width_cm)
        unit_cm = centimetres(patch_unit_m(list(tiling), order), "patch unit")
        nesting_cm = fitting_sizes_cm(height_cm, width_cm, unit_cm)
        largest_cm = math.isqrt(MAX_SUBPATCHES) * min(map(_subpatch_cm, tiling))
        fitting_cm = [size for size in nesting_cm if size <= largest_cm]
        fitting_m = [size / 100 for size in fitting_cm]
        try:
            patch_cm = centimetres(patch_size_m, "patch size")
        except RecordError:
            raise PatchSizeError(
                patch_size_m, "it must be a positive number of metres, to the centimetre", fitting_m
            ) from None
        if patch_cm not in fitting_cm:
            reason = _misfit(patch_cm, height_cm, width_cm, unit_cm, tiling)
            if patch_cm in nesting_cm:
                reason = f"it holds more than {MAX_SUBPATCHES} sub-patches of one modality"
            raise PatchSizeError(patch_size_m, reason, fitting_m)
        return cls(patch_cm / 100, height_cm // patch_cm, width_cm // patch_cm)


def subpatches_per_side(patch_size_m: float, modality: Modality) -> int:
    """Return the number of sub-patches of a modality along one side of a patch; 1 for a context modality."""
    if modality.covers_tile:
        return 1
    return centimetres(patch_size_m, "patch size") // centimetres(modality.subpatch_m, "sub-patch")


def fitting_sizes_cm(height_cm: int, width_cm: int, unit_cm: int) -> list[int]:
    """Return the patch sides that are multiples of the unit and divide both sides of the tile, in centimetres."""
    common = math.gcd(height_cm, width_cm)
    return [size for size in range(unit_cm, common + 1, unit_cm) if common % size == 0]


def _common_extent(shapes_px: Mapping[Modality, tuple[int, int]]) -> tuple[int, int]:
    extents = {}
    for modality, (rows, cols) in shapes_px.items():
        if rows < 1 or cols < 1:
            raise InputError(modality.key, "at least one row and one column", f"{rows} x {cols}")
        gsd_cm = centimetres(modality.gsd_m, f"gsd_m of {modality.key!r}")
        extents[modality.key] = (rows * gsd_cm, cols * gsd_cm)
    if len(set(extents.values())) > 1:
        height = min(height for height, _ in extents.values())
        width = min(width for _, width in extents.values())
        advice = f"crop all to the ground they share, at most {height / 100:g} x {width / 100:g} m"
        raise ExtentError({key: (h / 100, w / 100) for key, (h, w) in extents.items()}, advice)
    return next(iter(extents.values()))


def _check_context(modality: Modality, shape_px: tuple[int, int], height_cm: int, width_cm: int) -> None:
    gsd_cm = centimetres(modality.gsd_m, f"gsd_m of {modality.key!r}")
    needed = tuple(-(-side // gsd_cm) for side in (height_cm, width_cm))
    if tuple(shape_px) != needed:
        raise InputError(
            modality.key,
            f"{needed[0]} x {needed[1]} pixels of {modality.gsd_m:g} m to cover the "
            f"{height_cm / 100:g} x {width_cm / 100:g} m tile",
            f"{shape_px[0]} x {shape_px[1]}",
        )


def _misfit(
    patch_cm: int, height_cm: int, width_cm: int, unit_cm: int, tiling: Mapping[Modality, tuple[int, int]]
) -> str:
    names = ", ".join(modality.key for modality in tiling)
    if patch_cm % unit_cm:
        return f"it must be a multiple of {unit_cm / 100:g} m to hold whole sub-patches of {names}"
    side = height_cm if height_cm % patch_cm else width_cm
    tile = f"{height_cm / 100:g} x {width_cm / 100:g} m tile of {names}"
    return f"it does not divide the {side / 100:g} m side of the {tile}"
