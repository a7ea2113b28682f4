"""STAC through pystac-client and odc-stac: bands by name, scale and offset once, overlaps, two systems, two sensors, faults."""

import json
from pathlib import Path

import cloudpickle
import numpy as np
import pystac
import pytest
import rasterio.shutil

from anysat.errors import MissingFileError, RecordError, SourceError, UnknownNameError
from anysat.geo.read.sources import open_sources
from anysat.modalities import MODALITIES as M
from geo_builders import LEFT, TOP, geobox, ramp, source_of, write_tif
from stac_builders import BOX, L8, S2, band, flat, item, make_item, opened, write_catalog


def values(folder, *items, box=BOX, **described):
    """The first band, of the first date."""
    found = opened(write_catalog(folder, items), **described).observe(box)[0]
    return found.values[0, found.valid[0].any(axis=(1, 2))][0]


def test_bands_grids_and_dates_come_from_the_metadata(tmp_path):
    fine, coarse = ramp(20, 30), ramp(10, 15, start=5000)
    grid = geobox((10, 15), 20.0)
    items = [
        make_item(tmp_path / "files", f"scene{k}", f"2021-0{k}-03", collection=S2, assets={
            "blue": (fine + 1000 * k, BOX, band("blue", "blue")),
            "swir": (coarse + 1000 * k, grid, band("B11", "swir16")),
            "B09": (coarse, grid, band("B09")),
        }) for k in (2, 1)
    ]  # fmt: skip
    source = opened(write_catalog(tmp_path, items))
    assert source.bands == ("B2", "B11")
    assert source.dates.astype(str).tolist() == ["2021-01-03", "2021-02-03"]
    observation, how = source.observe(geobox((8, 10), left=LEFT + 50, top=TOP - 60))
    assert how == "exact and bilinear of 20 m pixels"
    np.testing.assert_array_equal(observation.values[:, 0], [fine[6:14, 5:15] + 1000, fine[6:14, 5:15] + 2000])
    assert observation.valid[:, 8].all()


def test_names_of_stac_1_1_are_known(tmp_path):
    made = item(tmp_path, "one", "2021-01-01", 4000, key="asset1", fields={
        "bands": [{"name": "B8A", "eo:common_name": "nir08"}], "raster:scale": 1e-4, "raster:offset": -0.1,
    })  # fmt: skip
    source = opened(write_catalog(tmp_path, [made]))
    assert source.bands == ("B8A",)
    assert source.observe(BOX)[0].values[0, 7] == pytest.approx(0.3)


def test_the_asset_of_one_band_counts_before_the_picture_and_the_other_format(tmp_path):
    made = make_item(tmp_path / "files", "one", "2021-01-01", collection=S2, assets={
        "visual": (flat(1), BOX, {"eo:bands": [{"name": "B04"}, {"name": "B03"}, {"name": "B02"}]}),
        "B02_60m": (flat(2, geobox((4, 5), 60.0)), geobox((4, 5), 60.0), band("B02") | {"gsd": 60}),
        "B02_10m": (flat(3), BOX, band("B02") | {"gsd": 10}),
    })  # fmt: skip
    assert set(np.unique(values(tmp_path, made))) == {3}


@pytest.mark.parametrize(
    ("said", "properties", "expected", "unit"),
    [
        ({}, {"s2:processing_baseline": "05.09"}, 1000, "reflectance_1e4"),
        ({}, {"s2:processing_baseline": "03.01"}, 2000, "reflectance_1e4"),
        ({}, {"processing:version": "05.10"}, 1000, "reflectance_1e4"),
        ({"scale": 1e-4, "offset": -0.1}, {"s2:processing_baseline": "05.09"}, 0.1, "reflectance"),
        ({"scale": 1e-4, "offset": 0}, {"s2:processing_baseline": "05.09"}, 0.2, "reflectance"),
        ({"scale": 1e-4}, {"s2:processing_baseline": "05.09"}, 0.1, "reflectance"),
        ({"scale": 1e-4, "offset": -0.1}, {"earthsearch:boa_offset_applied": True}, 0.2, "reflectance"),
        ({}, {"s2:processing_baseline": "05.09", "earthsearch:boa_offset_applied": True}, 2000, "reflectance_1e4"),
        ({"scale": 1e-4, "offset": -0.1}, {"earthsearch:boa_offset_applied": False}, 0.1, "reflectance"),
        ({"scale": 1e-4, "offset": -0.1}, {}, 0.1, "reflectance"),
    ],
)
def test_the_offset_of_2022_is_applied_once_and_never_twice(tmp_path, said, properties, expected, unit):
    made = item(tmp_path, "one", "2022-06-01", 2000, fields=band("B02", "blue", **said), **properties)
    source = opened(write_catalog(tmp_path, [made]))
    assert source.units[0] == unit
    assert source.observe(BOX)[0].values[0, 0] == pytest.approx(expected)


def test_a_version_of_another_sensor_is_no_baseline(tmp_path):
    made = item(tmp_path, "one", "2022-06-01", 2000, platform="landsat-8", **{"processing:version": "5.0"})
    assert (values(tmp_path, made) == 2000).all()


def test_what_the_user_says_of_scale_and_offset_replaces_the_metadata(tmp_path):
    made = item(tmp_path, "one", "2022-06-01", 2000, fields=band("B02", scale=1e-4, offset=-0.1),
                **{"s2:processing_baseline": "05.09"})  # fmt: skip
    late = item(tmp_path, "two", "2023-06-01", 2000)
    assert (values(tmp_path / "a", made, scale=1) == 2000).all()
    source = opened(write_catalog(tmp_path / "b", [made, late]), offset=-1000, offset_from="2023-01-01")
    assert source.observe(BOX)[0].values[:, 0, 0, 0].tolist() == [2000, 1000]


def test_a_scale_in_the_file_alone_is_applied_once(tmp_path):
    fields = band("B02") | {"header": {"scale": (1e-4, 0.05)}}
    made = item(tmp_path, "one", "2020-06-01", 2000, fields=fields)
    source = opened(write_catalog(tmp_path, [made]))
    assert source.observe(BOX)[0].values[0, 0] == pytest.approx(0.25)
    assert source.units[0] == "reflectance"


def test_files_of_one_collection_that_state_other_scales_are_refused(tmp_path):
    items = [
        item(tmp_path, f"i{k}", f"2020-06-0{k}", fields=band("B02") | {"header": {"scale": (k * 1e-4, 0)}})
        for k in (1, 2)
    ]
    source = opened(write_catalog(tmp_path, items))
    with pytest.raises(
        SourceError, match=r"i2_B02.tif: its header states scale and offset \(0.0002, 0.0\), but that of"
    ):
        source.observe(BOX)


def test_items_in_two_units_are_refused(tmp_path):
    items = [
        item(tmp_path, "a", "2020-06-01"),
        item(tmp_path, "b", "2020-06-02", fields=band("B02", scale=1e-4, offset=0)),
    ]
    with pytest.raises(SourceError, match="B2 is in reflectance here, but in reflectance_1e4 in another file"):
        opened(write_catalog(tmp_path, items))


@pytest.mark.parametrize("where", ["metadata", "header", "user"])
def test_nodata_is_invalid_wherever_it_is_stated(tmp_path, where):
    pixels = ramp(20, 30)
    fields = band("B02", **({"nodata": 107} if where == "metadata" else {}))
    fields |= {"header": {"nodata": 107}} if where == "header" else {}
    made = item(tmp_path, "one", "2020-06-01", pixels, fields=fields)
    described = {"nodata": 107} if where == "user" else {}
    valid = opened(write_catalog(tmp_path, [made]), **described).observe(BOX)[0].valid[0, 0]
    np.testing.assert_array_equal(valid, pixels != 107)


def test_overlapping_scenes_of_a_date_are_joined_the_first_in_time_and_name_counts(tmp_path):
    first, second = flat(1), flat(2)
    first[:, 20:] = 0
    items = [
        item(tmp_path, "a-late", "2020-06-01T12:00:00", flat(3), fields=band("B02", nodata=0)),
        item(tmp_path, "z-early", "2020-06-01T10:00:00", first, fields=band("B02", nodata=0)),
        item(tmp_path, "b-middle", "2020-06-01T11:00:00", second, fields=band("B02", nodata=0)),
    ]
    found = values(tmp_path, *items)
    assert (found[:, :20] == 1).all()
    assert (found[:, 20:] == 2).all()


def test_under_a_cloud_the_other_scene_of_the_date_counts(tmp_path):
    scl = np.full((10, 15), 4, np.uint8)
    scl[:5] = 9
    items = [
        make_item(tmp_path / "files", name, "2020-06-01", collection=S2, assets={
            "B02": (flat(value), BOX, band("B02")), "SCL": (classes, geobox((10, 15), 20.0), {}),
        }) for name, value, classes in (("a", 10, scl), ("b", 20, np.full((10, 15), 5, np.uint8)))
    ]  # fmt: skip
    found = values(tmp_path, *items, quality="scl")
    assert (found[:10] == 20).all()
    assert (found[10:] == 10).all()


def test_a_scene_is_masked_by_its_own_layer_not_by_one_of_a_like_name(tmp_path):
    """The one with the longer name comes first, and is all cloud."""
    items = [
        make_item(tmp_path / "files", name, f"2020-06-01T{hour}:00:00", collection=S2, assets={
            "B02": (flat(value), BOX, band("B02")), "SCL": (np.full((10, 15), number, np.uint8), geobox((10, 15), 20.0), {}),
        }) for name, hour, value, number in (("ab", "10", 10, 9), ("a", "11", 20, 4))
    ]  # fmt: skip
    assert set(np.unique(values(tmp_path, *items, quality="scl"))) == {20}


def test_scenes_in_two_systems_meet_on_one_grid(tmp_path):
    """The second lies in the next UTM zone; both show a plane, so that a shift would show."""
    east = geobox((60, 60), crs="EPSG:32736").crs
    x, y = np.meshgrid(np.arange(60), np.arange(60))
    plane = (1000 + 10 * x + 20 * y).astype(np.float32)
    first = geobox((60, 60))
    other = first.to_crs(east, resolution=10)
    from rasterio.warp import reproject

    moved = np.full(other.shape, np.nan, np.float32)
    reproject(plane, moved, src_transform=first.affine, src_crs=str(first.crs), dst_transform=other.affine,
              dst_crs=str(other.crs), src_nodata=np.nan, dst_nodata=np.nan, resampling=1)  # fmt: skip
    items = [item(tmp_path, "a", "2020-06-01", plane, first), item(tmp_path, "b", "2020-06-11", moved, other)]
    source = opened(write_catalog(tmp_path, items))
    assert len({str(box.crs) for box in source.footprint.geoboxes}) == 2
    inner = geobox((20, 20), left=LEFT + 200, top=TOP - 200)
    observation, how = source.observe(inner)
    assert how == "exact and bilinear of 10 m pixels"
    np.testing.assert_array_equal(observation.values[0, 0], plane[20:40, 20:40])
    assert np.abs(observation.values[1, 0] - plane[20:40, 20:40]).max() < 0.5


def test_two_sensors_of_a_catalog_are_told_apart(tmp_path):
    items = [
        item(tmp_path, "a", "2020-06-01", 10),
        item(tmp_path, "b", "2020-06-02", 20, collection=L8, key="blue", platform="landsat-8",
             fields=band("OLI_B2", "blue", scale=2e-5, offset=-0.2)),
    ]  # fmt: skip
    catalog = write_catalog(tmp_path, items)
    with pytest.raises(SourceError, match=rf"it holds several collections: {S2}, {L8}; choose with `collection`"):
        opened(catalog)
    sources = open_sources({"s2": {"stac": catalog, "collection": S2}, "l8": {"stac": catalog, "collection": L8}}, M)
    assert sources["s2"].observe(BOX)[0].values[0, 0, 0, 0] == 10
    assert sources["l8"].observe(BOX)[0].values[0, 2, 0, 0] == pytest.approx(20 * 2e-5 - 0.2)
    with pytest.raises(UnknownNameError, match=f"unknown collection of .*closest: {L8}"):
        opened(catalog, "l8", collection="landsat")


def test_a_stated_unit_counts(tmp_path):
    made = item(tmp_path, "b", "2020-06-02", 44177, collection=L8, key="lwir11", platform="landsat-8",
                fields=band("TIRS_B10", "lwir11", scale=0.00341802, offset=149, unit="kelvin"))  # fmt: skip
    source = opened(write_catalog(tmp_path, [made]), "l8")
    assert source.units == {9: "K"}
    assert source.observe(BOX)[0].values[0, 9, 0, 0] == pytest.approx(300, abs=0.01)


def test_bands_can_be_named(tmp_path):
    made = make_item(tmp_path / "files", "one", "2020-06-01", collection=S2, assets={
        "x1": (flat(1), BOX, {}), "x2": (flat(2), BOX, {}), "B02": (flat(3), BOX, {}),
    })  # fmt: skip
    catalog = write_catalog(tmp_path, [made])
    source = opened(catalog, bands={"B3": "x2", "B4": "x1"})
    assert source.observe(BOX)[0].values[0, :4, 0, 0].tolist() == [0, 2, 1, 0]
    with pytest.raises(UnknownNameError, match=r"unknown band of .*'x3'; closest: x2, x1.*It was given for B4"):
        opened(catalog, bands={"B3": "x2", "B4": "x3"})


def test_assets_nobody_knows_are_refused_with_their_names(tmp_path):
    catalog = write_catalog(tmp_path, [item(tmp_path, "a", "2020-06-01", key="tree")])
    with pytest.raises(SourceError, match=r"none of the assets of its 1 items \(tree\) is known to be a band of 's2'"):
        opened(catalog)


def test_a_date_may_be_the_start_of_a_range(tmp_path):
    made = item(tmp_path, "a", "2020-06-01", start_datetime="2020-06-05T00:00:00Z", end_datetime="2020-06-15T00:00:00Z")
    assert opened(write_catalog(tmp_path, [made])).dates.astype(str).tolist() == ["2020-06-05"]


def test_without_a_stated_grid_the_file_tells_it(tmp_path):
    made = item(tmp_path, "a", "2020-06-01", ramp(20, 30), has_grid=False)
    np.testing.assert_array_equal(values(tmp_path, made), ramp(20, 30))


def test_where_metadata_and_file_disagree_pixels_lie_where_the_file_says(tmp_path):
    made = item(tmp_path, "a", "2020-06-01", ramp(20, 30))
    grid = made.assets["B02"].extra_fields["proj:transform"]
    made.assets["B02"].extra_fields["proj:transform"] = [*grid[:2], grid[2] - 20, *grid[3:]]
    window = geobox((20, 20))
    found = opened(write_catalog(tmp_path, [made])).observe(window)[0]
    np.testing.assert_array_equal(found.values[0, 0], ramp(20, 30)[:, :20])


def test_a_window_opens_no_other_assets_than_those_it_touches(tmp_path):
    boxes = [geobox((20, 30), left=LEFT + 300 * k) for k in range(4)]
    items = [item(tmp_path, f"i{k}", "2020-06-01", 10 * k + 10, box, fields=band("B02", scale=1, offset=0))
             for k, box in enumerate(boxes)]  # fmt: skip
    source = opened(write_catalog(tmp_path, items))
    for k in (0, 1, 3):
        (tmp_path / "files" / f"i{k}_B02.tif").unlink()
    assert (source.observe(boxes[2])[0].values[0, 0] == 30).all()
    with pytest.raises(SourceError, match=r"i1_B02.tif: it cannot be read .*check that the file is complete"):
        source.observe(boxes[1])


def test_a_truncated_asset_is_named(tmp_path):
    noise = np.random.default_rng(0).integers(1, 9999, (256, 256)).astype(np.uint16)
    box = geobox((256, 256))
    catalog = write_catalog(tmp_path, [item(tmp_path, "a", "2020-06-01", noise, box)])
    path = tmp_path / "files" / "a_B02.tif"
    path.write_bytes(path.read_bytes()[:40_000])
    with pytest.raises(SourceError, match=r"a_B02.tif: it cannot be read"):
        opened(catalog).observe(box)


def test_a_virtual_raster_under_the_name_of_a_geotiff_leads_nowhere(tmp_path):
    made = item(tmp_path, "a", "2020-06-01", fields=band("B02", scale=1, offset=0))
    write_tif(tmp_path / "secret.tif", ramp(1, 20, 30), BOX)
    path = Path(made.assets["B02"].href)
    path.unlink()
    rasterio.shutil.copy(tmp_path / "secret.tif", path, driver="VRT")
    source = opened(write_catalog(tmp_path, [made]))
    with pytest.raises(SourceError, match=r"a_B02\.tif: it cannot be read"):
        source.observe(BOX)


def test_a_source_of_items_travels(tmp_path):
    source = opened(write_catalog(tmp_path, [item(tmp_path, "a", "2020-06-01", ramp(20, 30))]))
    copy = cloudpickle.loads(cloudpickle.dumps(source))
    np.testing.assert_array_equal(copy.observe(BOX)[0].values[0, 0], ramp(20, 30))


@pytest.mark.parametrize("kind", ["folder", "collection", "item", "list", "items in memory"])
def test_every_kind_of_static_document_is_an_entrance(tmp_path, kind):
    made = item(tmp_path, "a", "2020-06-01", ramp(20, 30))
    write_catalog(tmp_path, [made])
    if kind == "items in memory":
        source = source_of([made], M["s2"])
    else:
        listed = tmp_path / "list.json"
        content = pystac.ItemCollection([made]).to_dict()
        content["features"][0]["assets"]["B02"]["href"] = "files/a_B02.tif"  # beside the list
        content["features"][0]["links"] = []
        listed.write_text(json.dumps(content))
        place = {"folder": tmp_path, "collection": tmp_path / S2 / "collection.json",
                 "item": tmp_path / S2 / "a" / "a.json", "list": listed}[kind]  # fmt: skip
        source = opened(place)
    np.testing.assert_array_equal(source.observe(BOX)[0].values[0, 0], ramp(20, 30))


def test_a_word_may_name_a_catalog(tmp_path):
    catalog = write_catalog(tmp_path, [item(tmp_path, "a", "2020-06-01")])
    assert open_sources([f"s2={catalog}"], M)["s2"].bands == ("B2",)


def test_days_without_an_item_are_refused_with_those_there_are(tmp_path):
    catalog = write_catalog(tmp_path, [item(tmp_path, f"i{k}", f"2020-06-0{k}") for k in (1, 3)])
    days = np.datetime64("2021-01-01"), np.datetime64("2021-12-31")
    with pytest.raises(
        SourceError, match="none of its dates is between 2021-01-01 and 2021-12-31; it has 2 from 2020-06-01"
    ):
        opened(catalog, between=days)
    with pytest.raises(SourceError, match="none of its 2 items lies in the area"):
        opened(catalog, bbox=(10, 50, 11, 51))


def test_what_is_no_catalog_is_refused(tmp_path):
    with pytest.raises(MissingFileError, match=r"none.json: no such file or folder; expected a STAC catalog"):
        opened(tmp_path / "none.json")
    (tmp_path / "a.json").write_text("{]")
    with pytest.raises(SourceError, match=r"a.json: it cannot be read as STAC"):
        opened(tmp_path / "a.json")
    (tmp_path / "b.json").write_text('{"type": "Tree"}')
    with pytest.raises(SourceError, match=r"b.json: it is not a STAC document \(its type is 'Tree'\)"):
        opened(tmp_path / "b.json")
    with pytest.raises(RecordError, match="s2, path: expected either a path or a STAC address"):
        open_sources({"s2": {"path": "a", "stac": "b"}}, M)
