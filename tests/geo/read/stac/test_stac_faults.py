"""STAC items whose metadata are wanting, odd or wrong: what the files say counts as it does by their paths, or it is told."""

import datetime
import warnings
from pathlib import Path

import numpy as np
import pystac
import pytest
import rasterio

from anysat.errors import SourceError
from anysat.geo.read.sources import open_sources
from anysat.geo.read.stac.search import day_of
from anysat.modalities import MODALITIES as M
from geo_builders import geobox, ramp, source_of, write_tif
from stac_builders import BOX, S2, band, item, make_item, opened, write_catalog

COARSE = geobox((10, 15), 20.0)
WITHOUT_OFFSET = {"earthsearch:boa_offset_applied": True}


def grid_of(box):
    return {"proj:shape": list(box.shape), "proj:transform": list(box.affine)[:6]}


def seen(*items, box=BOX, **described):
    return source_of(list(items), M["s2"]).observe(box)


def by_path(path):
    return open_sources({"s2": {"path": f"{path}@2020-06-01", "bands": {"B2": "B02"}}}, M)["s2"].observe(BOX)[0]


@pytest.mark.parametrize("kind", ["mask", "alpha", "mask beside nodata", "alpha beside nodata"])
def test_a_file_s_own_mask_counts_as_it_does_by_path(tmp_path, kind):
    made = item(tmp_path, "a", "2020-06-01", ramp(20, 30), fields={"eo:bands": [{"name": "B02"}, {"name": "X"}]})
    path, half = Path(made.assets["B02"].href), np.full(BOX.shape, 255, np.uint16)
    half[:, :10] = 0
    path.unlink()
    write_tif(path, np.stack([ramp(20, 30), half]), BOX, names=["B02", "X"], nodata=107 if "nodata" in kind else None)
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True), rasterio.open(path, "r+") as file:
        if "alpha" in kind:
            file.colorinterp = [rasterio.enums.ColorInterp.gray, rasterio.enums.ColorInterp.alpha]
        else:
            file.write_mask(half > 0)
    found = seen(made)[0]
    np.testing.assert_array_equal(found.valid, by_path(path).valid)
    is_number = ramp(20, 30) != 107 if kind == "alpha beside nodata" else True  # GDAL prefers a mask to nodata
    np.testing.assert_array_equal(found.valid[0, 0], (half > 0) & is_number)
    made.assets["B02"].extra_fields["raster:bands"] = [{"nodata": 120}, {}]
    np.testing.assert_array_equal(seen(made)[0].valid[0, 0], (half > 0) & (ramp(20, 30) != 120))


@pytest.mark.parametrize("half", [{"proj:code": None, "proj:epsg": None}, {"proj:shape": [20]},
                                  {"proj:transform": [10, 0, 1]}, {"proj:code": "EPSG:999999"}])  # fmt: skip
def test_a_stated_nodata_counts_though_the_grid_is_stated_by_half(tmp_path, half):
    pixels = ramp(20, 30)
    made = item(tmp_path, "a", "2020-06-01", pixels, fields=band("B02", nodata=107))
    (made.properties if set(half) & set(made.properties) else made.assets["B02"].extra_fields).update(half)
    found, how = seen(made)
    assert how == "exact"
    np.testing.assert_array_equal(found.valid[0, 0], pixels != 107)


@pytest.mark.parametrize("transform", [[260_900, 10, 0, 9_595_800, 0, -10], [0, 0, 260_900, 0, 0, 9_595_800],
                                       [10, 0, float("nan"), 0, -10, 0]])  # fmt: skip
def test_where_a_stated_grid_is_no_place_the_file_tells_it(tmp_path, transform):
    made = item(tmp_path, "a", "2020-06-01", ramp(20, 30))
    made.assets["B02"].extra_fields["proj:transform"] = transform
    np.testing.assert_array_equal(seen(made)[0].values[0, 0], ramp(20, 30))


def test_a_stated_grid_counts_whether_the_extension_is_declared_or_not(tmp_path):
    """Nothing but the metadata is looked at: a file that is gone is found out when it is read."""
    made = item(tmp_path, "a", "2020-06-01", fields=band("B02", scale=1, offset=0))
    made.stac_extensions = []
    Path(made.assets["B02"].href).unlink()
    source = source_of([made], M["s2"])
    assert source.footprint.geoboxes[0].shape == BOX.shape
    with pytest.raises(SourceError, match=r"a_B02.tif: it cannot be read"):
        source.observe(BOX)


def mixed(folder, name="a", date="2020-06-01"):
    """An item that states the grid of its 10 m assets for all."""
    made = make_item(folder / "files", name, date, collection=S2, assets={
        "B02": (ramp(20, 30), BOX, band("B02")), "B11": (ramp(10, 15), COARSE, band("B11")),
    }, **grid_of(BOX))  # fmt: skip
    for asset in made.assets.values():
        for name in grid_of(BOX):
            del asset.extra_fields[name]
    return made


def test_the_grid_of_an_item_is_not_that_of_an_asset_with_other_pixels(tmp_path):
    found, how = seen(mixed(tmp_path), mixed(tmp_path, "b", "2020-07-01"))
    assert how == "exact and bilinear of 20 m pixels"
    own, _ = seen(make_item(tmp_path / "own", "a", "2020-06-01", {"B11": (ramp(10, 15), COARSE, band("B11"))}))
    np.testing.assert_array_equal(found.values[1, 8], own.values[0, 8])
    np.testing.assert_array_equal(found.values[1, 0], ramp(20, 30))


def test_an_asset_that_states_other_pixels_than_its_file_has_is_named(tmp_path):
    made = item(tmp_path, "a", "2020-06-01", ramp(10, 15), COARSE, key="B11")
    made.assets["B11"].extra_fields |= grid_of(BOX)
    with pytest.raises(
        SourceError, match=r"a_B11.tif: its pixels \(10 x 15 of 20 in EPSG:32737\) are not those of its"
    ):
        seen(made)


def off(made, left_m, down_m):
    grid = made.assets["B02"].extra_fields["proj:transform"]
    made.assets["B02"].extra_fields["proj:transform"] = [*grid[:2], grid[2] + left_m, *grid[3:5], grid[5] - down_m]
    return made


def test_pixels_half_a_pixel_from_where_they_are_stated_are_read(tmp_path):
    made = off(item(tmp_path, "a", "2020-06-01", ramp(20, 30)), 5, 5)
    moved = geobox((20, 30), left=BOX.affine.c + 5, top=BOX.affine.f - 5)
    assert (seen(made, box=moved)[0].values[0, 0] > 0).sum() >= 19 * 29


@pytest.mark.parametrize("by_m", [5, -5, 3])
def test_where_items_state_a_part_of_a_pixel_more_the_files_tell_the_place(tmp_path, by_m):
    made = [off(item(tmp_path, name, f"2020-0{name}-01", ramp(20, 30)), by_m, by_m) for name in "67"]
    source = source_of(made, M["s2"])
    found, how = source.observe(BOX)
    assert how == "exact"
    np.testing.assert_array_equal(found.values[:, 0], [ramp(20, 30)] * 2)
    told = f"placed as the files say; the grids in the items are off by {by_m / 10:+g} rows and {by_m / 10:+g} columns"
    assert told in source.notes


def test_a_file_that_lies_a_part_of_a_pixel_elsewhere_than_those_before_is_refused(tmp_path):
    made = [item(tmp_path, "a", "2020-06-01", ramp(20, 30)), off(item(tmp_path, "b", "2020-07-01", ramp(20, 30)), 5, 5)]
    with pytest.raises(
        SourceError, match=r"b_B02.tif: its pixels .* are not those of its .*off by 0.5 rows and 0.5 columns"
    ):
        seen(*made)


def test_items_that_lie_nowhere_are_refused(tmp_path):
    made = item(tmp_path, "a", "2020-06-01", has_grid=False)
    path = Path(made.assets["B02"].href)
    path.unlink()
    write_tif(path, ramp(1, 20, 30), None)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(SourceError, match=r"a_B02.tif: it has no georeference, and its STAC item has none"):
            seen(made)
    made.assets["B02"].extra_fields |= grid_of(BOX)
    np.testing.assert_array_equal(seen(made)[0].values[0, 0], ramp(20, 30))


@pytest.mark.parametrize("properties", [
    {"s2:processing_baseline": "N0509"}, {"s2:processing_baseline": "0509"}, {"s2:processing_baseline": "05.09"},
    {"s2:processing_baseline": 5.1}, {"s2:processing_baseline": "0400"},
    {"platform": "S2A", "processing:version": "05.09"}, {"platform": "sentinel-2c", "processing:version": "N0511"},
    {"platform": None, "processing:version": "05.09"},
])  # fmt: skip
def test_a_baseline_is_read_however_it_is_written(tmp_path, properties):
    made = item(tmp_path, "a", "2022-06-01", 2000, **{"platform": "sentinel-2a"} | properties)
    assert set(np.unique(seen(made)[0].values[0, 0])) == {1000}


@pytest.mark.parametrize("properties", [
    {"s2:processing_baseline": "N0301"}, {"s2:processing_baseline": "0214"}, {"s2:processing_baseline": "99.99"},
    {"platform": "S2A", "processing:version": "collection 5.1.2"}, {"platform": "landsat-8", "processing:version": "05.09"},
])  # fmt: skip
def test_other_baselines_and_versions_carry_no_offset(tmp_path, properties):
    made = item(tmp_path, "a", "2022-06-01", 2000, **{"platform": "sentinel-2a"} | properties)
    assert set(np.unique(seen(made)[0].values[0, 0])) == {2000}


def test_a_baseline_that_cannot_be_read_is_told_unless_the_offset_is_known(tmp_path):
    made = item(tmp_path, "a", "2022-06-01", 2000, **{"s2:processing_baseline": "newest"})
    with pytest.raises(
        SourceError, match=r"a: its s2:processing_baseline 'newest' is not a baseline like 05.09, .*; give `offs"
    ):
        seen(made)
    catalog = write_catalog(tmp_path, [made])
    assert opened(catalog, offset=0).observe(BOX)[0].values[0, 0, 0, 0] == 2000
    made.properties |= WITHOUT_OFFSET
    assert set(np.unique(seen(made)[0].values[0, 0])) == {2000}


@pytest.mark.parametrize(("moment", "day"), [
    ("2020-01-10T23:30-05:00", "2020-01-11"), ("2020-01-10T00:30+02:00", "2020-01-09"), ("2020-01-10T23:30", "2020-01-10"),
])  # fmt: skip
def test_the_day_of_an_item_is_that_of_greenwich(moment, day):
    when = datetime.datetime.fromisoformat(moment)
    assert str(day_of(pystac.Item("a", None, None, when, {}))) == day


def test_of_two_times_the_earlier_counts_whatever_their_offset(tmp_path):
    items = [item(tmp_path, "a", "2020-06-01T11:00:00+02:00", 1), item(tmp_path, "b", "2020-06-01T10:00:00+00:00", 2)]
    assert set(np.unique(seen(*items)[0].values[0, 0])) == {1}


def several(folder, names, **fields):
    made = item(folder, "a", "2020-06-01", fields=fields, key="data")
    path = Path(made.assets["data"].href)
    path.unlink()
    write_tif(path, ramp(2, 20, 30), BOX, names=names)
    return made


@pytest.mark.parametrize("fields", [{}, {"raster:bands": [{"nodata": 0}, {"nodata": 0}]}])
def test_an_asset_of_several_bands_takes_the_names_of_its_file(tmp_path, fields):
    source = source_of([several(tmp_path, ["B03", "B02"], **fields)], M["s2"])
    assert source.bands == ("B2", "B3")
    np.testing.assert_array_equal(source.observe(BOX)[0].values[0, 1::-1], ramp(2, 20, 30))


def test_an_asset_of_several_bands_that_nobody_names_is_refused_with_what_can_be_done(tmp_path):
    with pytest.raises(
        SourceError,
        match="it is not known which bands of 's2' the 2 bands of its asset 'data' are: .*give the files by `path`",
    ):
        seen(several(tmp_path, None))


def test_a_geotiff_is_known_by_its_name_where_its_type_is_odd(tmp_path):
    made = item(tmp_path, "a", "2020-06-01", ramp(20, 30), fields=band("B02") | {"media": "image/x.geotiff"})
    np.testing.assert_array_equal(seen(made)[0].values[0, 0], ramp(20, 30))


def test_assets_of_no_kind_that_is_read_are_refused_with_their_types(tmp_path):
    made = item(tmp_path, "a", "2020-06-01")
    made.assets["B02"].media_type, made.assets["B02"].href = "image/png", "a.png"
    with pytest.raises(
        SourceError, match=r"none of its 1 items has an asset that can be read, .*; their types are image/png;"
    ):
        seen(made)


def test_a_collection_is_found_though_an_item_of_another_is_gone(tmp_path):
    items = [item(tmp_path, "a", "2020-06-01"), item(tmp_path, "b", "2020-06-02", collection="other")]
    catalog = write_catalog(tmp_path, items)
    (tmp_path / "other" / "b" / "b.json").unlink()
    assert opened(catalog, collection=S2).dates.astype(str).tolist() == ["2020-06-01"]
    with pytest.raises(SourceError, match="it cannot be read as STAC"):
        opened(catalog, collection="other")


def test_items_of_catalogs_within_a_collection_are_its_own(tmp_path):
    catalog = pystac.Catalog.from_file(write_catalog(tmp_path, [item(tmp_path, "a", "2020-06-01")]))
    year = pystac.Catalog("2021", "a year of it")
    catalog.get_child(S2).add_child(year)
    year.add_item(item(tmp_path, "b", "2021-06-01"))
    catalog.normalize_and_save(str(tmp_path), pystac.CatalogType.SELF_CONTAINED)
    assert len(opened(tmp_path, collection=S2).dates) == 2
