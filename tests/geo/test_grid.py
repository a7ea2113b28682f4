"""The common ground grid: which system, which corner, how many patches, and what is refused."""

import numpy as np
import pytest

from anysat.errors import PatchSizeError, SourceError
from anysat.geo.grid import MAX_PATCHES, Footprint, plan_grid, plan_tile
from anysat.modalities import MODALITIES as M
from anysat.patches import patch_unit_m
from geo_builders import LEFT, SOUTH, TOP, geobox


def footprint(key, box, name=None):
    return Footprint(name=name or f"{key}.tif", modality=M[key], geoboxes=(box,))


def floating(key, shape_px):
    return Footprint(name=f"{key}.h5", modality=M[key], geoboxes=(), shape_px=shape_px)


def corner(box):
    return box.affine.c, box.affine.f


def test_the_tile_is_the_shared_ground_cropped_to_whole_patches():
    wide, tall = geobox((7, 12)), geobox((11, 8), left=LEFT + 20, top=TOP - 10)
    grid = plan_grid([footprint("s2", wide), footprint("s1", tall)], 20)
    assert (grid.patches.num_rows, grid.patches.num_cols) == (3, 4)
    assert corner(grid.geobox) == (LEFT + 20, TOP - 10)
    assert grid.of(M["s2"]).shape == (6, 8)


def test_a_larger_date_does_not_move_a_tile():
    chip, wide = geobox((10, 10)), geobox((110, 110))
    dates = Footprint(name="s2", modality=M["s2"], geoboxes=(chip, wide, geobox((12, 12))))
    assert corner(plan_tile([dates], 60.0).geobox) == (LEFT + 20, TOP - 20)
    assert corner(plan_tile([dates], 600.0).geobox) == (LEFT + 250, TOP - 250)  # which only one of them holds


def test_pieces_of_a_date_make_one_ground():
    pieces = Footprint(name="s2", modality=M["s2"], geoboxes=(geobox((10, 6)), geobox((10, 6), left=LEFT + 40)))
    assert corner(plan_tile([pieces], 60.0).geobox) == (LEFT + 20, TOP - 20)


def test_the_tile_lies_on_the_pixels_of_the_coarser_source():
    aerial = geobox((300, 400), 0.2, LEFT + 7.4, TOP - 3.2)
    grid = plan_grid([footprint("aerial", aerial), footprint("s2", geobox((20, 20)))], 10)
    assert corner(grid.geobox) == (LEFT + 10, TOP - 10)
    assert (grid.patches.num_rows, grid.patches.num_cols) == (5, 7)
    assert grid.of(M["aerial"]).shape == (250, 350)


def test_the_reference_system_is_that_of_the_finest_pixels():
    inputs = [
        footprint("s2", geobox((30, 30), crs="EPSG:32736", left=927_500, top=TOP - 350)),
        footprint("spot", geobox((200, 200), 1.0)),
    ]
    assert plan_grid(inputs, 10).geobox.crs == SOUTH


@pytest.mark.parametrize("crs", ["EPSG:4326", "EPSG:3857"])
def test_systems_that_are_not_in_true_metres_give_way_to_the_utm_zone(crs):
    box = geobox((120, 120), crs="EPSG:32633", left=500_000, top=6_700_000).to_crs(crs)
    grid = plan_grid([footprint("s2", box)], 100)
    assert grid.geobox.crs == "EPSG:32633"
    assert "UTM" in grid.crs_reason


def test_the_southern_hemisphere_gets_a_southern_zone():
    box = geobox((60, 60)).to_crs("EPSG:4326")
    assert plan_grid([footprint("s2", box)], 50).geobox.crs == SOUTH


def test_a_context_modality_covers_the_tile_and_does_not_bound_it():
    modis = geobox((1, 1), 250.0, LEFT - 100, TOP + 100)
    grid = plan_grid([footprint("s2", geobox((30, 60))), footprint("modis", modis)], 100)
    assert (grid.patches.height_m, grid.patches.width_m) == (300, 600)
    assert grid.of(M["modis"]).shape == (2, 3)
    bounds = grid.of(M["modis"]).boundingbox
    assert ((bounds.left + bounds.right) / 2, (bounds.bottom + bounds.top) / 2) == (LEFT + 300, TOP - 150)


def test_a_context_modality_alone_is_the_tile():
    grid = plan_grid([footprint("modis", geobox((2, 3), 250.0))], 250)
    assert grid.of(M["modis"]).shape == (grid.patches.num_rows, grid.patches.num_cols) == (2, 3)


def test_a_series_without_georeference_is_centred():
    aerial = geobox((304, 304), 0.2)
    grid = plan_grid([footprint("aerial", aerial), floating("s2", (6, 6))], 10)
    assert corner(grid.geobox) == pytest.approx((LEFT + 0.4, TOP - 0.4))
    assert grid.patches.num_patches == 36


def test_a_series_of_another_size_is_not_centred():
    with pytest.raises(
        SourceError, match=r"s2.h5: it has no georeference, and its 50 x 60 m are not the 60.8 x 60.8 m"
    ):
        plan_grid([footprint("aerial", geobox((304, 304), 0.2)), floating("s2", (5, 6))], 10)


def test_of_a_tile_of_a_given_size_a_series_without_georeference_is_centred_too():
    photo = footprint("aerial", geobox((304, 304), 0.2))
    assert corner(plan_tile([photo, floating("s2", (6, 6))], 60.0).geobox) == pytest.approx((LEFT + 0.4, TOP - 0.4))
    with pytest.raises(SourceError, match="its 120 x 120 m are not the 60.8 x 60.8 m of the other inputs"):
        plan_tile([photo, floating("s2", (12, 12))], 60.0)
    with pytest.raises(SourceError, match="its 60 x 60 m are not the 40.0 x 40.0 m of the tile"):
        plan_tile([photo, floating("s2", (6, 6))], 40.0)
    with pytest.raises(SourceError, match="so its place in a tile around a given place is not known"):
        plan_tile([photo, floating("s2", (6, 6))], 60.0, (36.85, -1.3))


def test_nothing_with_a_georeference_is_refused():
    with pytest.raises(SourceError, match="together with a georeferenced input"):
        plan_grid([floating("s2", (6, 6))], 10)


def test_files_that_do_not_overlap_are_both_named_with_their_bounds():
    away = geobox((6, 6), left=LEFT + 60)
    with pytest.raises(
        SourceError, match=r"b.tif: it covers x 260960.0..261020.0.*overlap a.tif \(x 260900.0..260960.0"
    ):
        plan_grid([footprint("s2", geobox((6, 6)), "a.tif"), footprint("s1", away, "b.tif")], 10)


def test_a_patch_that_breaks_sub_patches_is_refused_with_sizes_that_fit():
    with pytest.raises(PatchSizeError, match="multiple of 30 m to hold whole sub-patches of s2, l7; .*: 30, 60 m"):
        plan_grid([footprint("s2", geobox((6, 9))), footprint("l7", geobox((2, 3), 30.0))], 20)


def test_a_patch_larger_than_the_ground_is_refused_with_the_ground():
    with pytest.raises(
        PatchSizeError, match=r"larger than the 60.0 x 90.0 m of ground shared by s2.tif; .*: 10, 20, 30"
    ):
        plan_grid([footprint("s2", geobox((6, 9)))], 70)


@pytest.mark.parametrize(
    ("key", "shape_px", "pixel_m", "most_m"), [("s2", (65, 64), 10.0, 640), ("aerial", (5150, 5150), 0.2, 640)]
)
def test_too_many_patches_are_refused_with_the_side_that_fits(key, shape_px, pixel_m, most_m):
    with pytest.raises(SourceError, match=f"{MAX_PATCHES} patches.*at most {most_m} x {most_m} m"):
        plan_grid([footprint(key, geobox(shape_px, pixel_m))], 10)


def test_too_many_sub_patches_are_refused_with_the_side_that_fits():
    with pytest.raises(SourceError, match="262144 sub-patches; crop an input to at most 1000 x 1000 m"):
        plan_grid([footprint("aerial", geobox((5500, 5500), 0.2))], 100)


def test_the_largest_tile_is_taken():
    assert plan_grid([footprint("s2", geobox((64, 64)))], 10).patches.num_patches == MAX_PATCHES


def _shape(key):
    return round(130 / M[key].gsd_m), round(170 / M[key].gsd_m)


def test_every_modality_nests_in_the_tile():
    keys = [key for key, modality in M.items() if not modality.covers_tile]
    for key in keys:
        grid = plan_grid(
            [footprint(key, geobox(_shape(key), M[key].gsd_m, LEFT + 0.37, TOP - 0.11))], patch_unit_m([M[key]], "cell")
        )
        sides = np.array(grid.of(M[key]).shape) * M[key].gsd_m
        assert np.allclose(sides, (grid.patches.height_m, grid.patches.width_m)), key


def test_a_planned_tile_lies_on_the_pixels_of_the_coarsest_source_of_its_own_spacing():
    """A photo whose edge is off the series' grid by 3 m does not move the series."""
    series = Footprint(name="s2", modality=M["s2"], geoboxes=(geobox((8, 8)),))
    photo = Footprint(name="photo", modality=M["aerial"], geoboxes=(geobox((400, 400), 0.2, LEFT + 3, TOP - 3),))
    grid = plan_tile([series, photo], 40.0)
    assert (grid.geobox.affine.c - LEFT) % 10 == (TOP - grid.geobox.affine.f) % 10 == 0
