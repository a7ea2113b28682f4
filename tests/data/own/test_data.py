"""A user's own files become a dataset by a short YAML: the page's example runs, rasters meet on the ground, mistakes are named."""

import json
import pickle
import re
from pathlib import Path

import numpy as np
import pytest
import yaml
from affine import Affine
from odc.geo.geobox import GeoBox

from anysat.cli import main
from anysat.data.check import check_dataset
from anysat.data.open import find_dataset, open_dataset
from anysat.data.world import World
from anysat.errors import AnySatError, MissingFileError, RecordError, SourceError, UnknownNameError
from anysat.modalities import MODALITIES
from geo_builders import LEFT, SOUTH, TOP, cube, geobox, ramp, write_nc, write_tif

HOWTO = Path(__file__).parents[3] / "docs" / "howto"
PAGE = (HOWTO / "own-data.md").read_text()
S2 = MODALITIES["s2"].band_names
IDS = ("a01", "a02", "a03", "a04")


def _block(kind: str) -> str:
    return re.search(rf"```{kind}\n(.*?)```", PAGE, re.S)[1]


@pytest.fixture(scope="module")
def page_forest(tmp_path_factory) -> Path:
    """The folder of the page, its files larger than the tile, seen in the generated world."""
    home = tmp_path_factory.mktemp("page")
    root = home / "forest"
    root.mkdir()
    (root / "my_forest.yaml").write_text(_block("yaml"))
    (root / "tiles.csv").write_text(_block("csv"))
    for folder in ("aerial", "cover"):
        (root / folder).mkdir()
    for index, name in enumerate(IDS):
        (root / "s2" / name).mkdir(parents=True)
        tile = World(0).tile(index, extent_m=80, year=2020)
        seen = tile.observe("s2", dates=np.array(["2020-04-12", "2020-07-01"], "datetime64[D]"), keep_clouds=True)
        for date, values in zip(("20200412", "20200701"), seen.values, strict=True):
            write_tif(root / "s2" / name / f"{date}.tif", values.astype("uint16"), tile.geobox(10), names=S2)
        if name != "a04":
            photo = tile.observe("aerial", extent_m=62.0).values[[3, 1, 2, 0]].astype("uint8")  # as R, G, B, NIR
            write_tif(root / "aerial" / f"{name}.tif", photo, tile.geobox(0.2, 62.0))
        cover = tile.raster("land_cover", 10) % 3
        write_tif(root / "cover" / f"{name}.tif", cover[None].astype("uint8"), tile.geobox(10))
    return home


def test_the_code_of_the_page_runs_on_its_folder(page_forest, monkeypatch):
    monkeypatch.chdir(page_forest)
    said = {}
    exec(_block("python"), said)  # the page is ours
    assert said["tile"].targets["cover"].shape == (6, 6)
    assert len(said["batch"]) == 2


def test_which_date_matters_is_told_of_the_page_s_folder(page_forest, monkeypatch):
    """The lines of docs/howto/areas.md, with the statistics that they ask for."""
    monkeypatch.chdir(page_forest)
    assert main(["datasets", "stats", "forest/my_forest.yaml", "forest", "--out", "forest.json"]) == 0
    said = {}
    exec(re.search(r"matters\?\n.*?```python\n(.*?)```", (HOWTO / "areas.md").read_text(), re.S)[1], said)
    assert (said["turned"].numpy() > 0).all(axis=(1, 2)).tolist() == [True] * len(said["dates"])


def _page(home, split="all"):
    return open_dataset(str(home / "forest" / "my_forest.yaml"), home / "forest", split)


def test_every_split_of_the_page_s_table_holds_a_tile(page_forest):
    """So that the next page's command trains, with photos among its tiles."""
    assert [len(_page(page_forest, split)) for split in ("train", "val", "test")] == [2, 1, 1]
    assert all("aerial" in tile.observations for tile in _page(page_forest, "train"))


def test_files_are_cut_to_the_tile_at_their_middle(page_forest):
    tile = _page(page_forest)[1]
    world = World(0).tile(1, extent_m=80, year=2020)
    s2 = world.observe("s2", dates=np.array(["2020-04-12"], "datetime64[D]"), keep_clouds=True)
    np.testing.assert_array_equal(tile.observations["s2"].values[0], s2.values[0, :, 1:-1, 1:-1].astype("uint16"))
    np.testing.assert_array_equal(tile.targets["cover"], world.raster("land_cover", 10)[1:-1, 1:-1] % 3)


def test_bands_named_in_the_yaml_reach_the_modality_s_order(page_forest):
    photo = _page(page_forest)[0].observations["aerial"]
    world = World(0).tile(0, extent_m=80, year=2020).observe("aerial", extent_m=62.0)
    np.testing.assert_array_equal(photo.values, world.values[:, 5:-5, 5:-5].astype("uint8"))


def test_columns_become_targets_and_empty_cells_are_ignored(page_forest):
    dataset = _page(page_forest)
    assert dataset.record.target("species").classes == ("beech", "spruce")
    assert dataset.labels().tolist() == [0, 1, 0, -1]
    assert [float(tile.targets["height"]) for tile in dataset] == [24.5, 18.0, 27.5, 3.0]


def test_optional_imagery_may_be_missing(page_forest):
    assert [sorted(tile.observations) for tile in _page(page_forest)][2:] == [["aerial", "s2"], ["s2"]]


def test_an_own_dataset_travels_to_a_worker_process_in_another_folder(page_forest, monkeypatch, tmp_path):
    monkeypatch.chdir(page_forest)
    packed = pickle.dumps(open_dataset("forest/my_forest.yaml", page_forest / "forest", "all"))
    monkeypatch.chdir(tmp_path)
    copy = pickle.loads(packed)
    assert copy[0].id == "a01"
    assert copy.record.found_as == str(page_forest / "forest" / "my_forest.yaml")


def test_every_key_of_the_page_s_table_is_known(page_forest):
    """The keys the reader knows and those the page explains are the same."""
    from anysat.data.own import description, modalities, targets

    rows = re.findall(r"^\| ([^|]+) \|", PAGE.split("## The keys")[1], re.M)[1:]
    written = {name for row in rows for name in re.findall(r"`(?:… )?(\w+)`", row)}
    known = {*description._KEYS, *targets._KEYS, *modalities._KEYS, "block_m", "seed"}
    assert written == known - {"column", "path", "classes", "gsd_m", "unit"}


# Small folders made in the test: one modality of 10 m, values that all differ.


def _own(root: Path, files=("t0", "t1"), **content) -> dict:
    """One date of 10 m pixels as `s2/<id>.tif` and the YAML content that reads it."""
    (root / "s2").mkdir(exist_ok=True)
    for number, name in enumerate(files):
        values = ramp(len(S2), 8, 8, start=1000 * number)
        write_tif(root / "s2" / f"{name}.tif", values, geobox((8, 8)), names=S2, tags={"DATETIME": "2020:06:01"})
    return {"name": "mine", "tile_m": 40, "modalities": {"s2": {"path": "s2/{id}.tif"}}, **content}


def _open(root: Path, content: dict, split="all", **options):
    (root / "mine.yaml").write_text(yaml.safe_dump(content))
    return open_dataset(str(root / "mine.yaml"), root, split, **options)


def test_the_ground_of_a_tile_does_not_depend_on_what_is_asked_for(tmp_path):
    """A photo of the south-eastern part decides where the tile lies, asked for or not."""
    content = _own(tmp_path)
    content["modalities"]["aerial"] = {"path": "aerial/{id}.tif", "optional": True}
    (tmp_path / "aerial").mkdir()
    write_tif(
        tmp_path / "aerial" / "t0.tif", np.ones((4, 200, 200), "uint8"), geobox((200, 200), 0.2, LEFT + 40, TOP - 40)
    )
    band = ramp(len(S2), 8, 8, start=0)[0]
    for options in ({}, {"modalities": ["s2"]}):
        s2 = _open(tmp_path, content, **options)[0].observations["s2"]
        np.testing.assert_array_equal(s2.values[0, 0], band[4:, 4:])


def test_tiles_are_found_by_their_paths_without_a_table(tmp_path):
    assert _open(tmp_path, _own(tmp_path)).ids == ["t0", "t1"]


def test_other_words_of_a_path_are_columns(tmp_path):
    content = _own(tmp_path)
    (tmp_path / "2020").mkdir()
    (tmp_path / "s2" / "t0.tif").rename(tmp_path / "2020" / "t0.tif")
    content["modalities"]["s2"]["path"] = "{year}/{id}.tif"
    dataset = _open(tmp_path, content)
    assert dataset.samples.columns["year"].tolist() == ["2020"] + ["s2"] * (len(dataset) - 1)
    assert dataset[0].observations["s2"].valid.all()


def _cover(path: Path, left_m: float, top_m: float, pixel_m=10.0, shape=(12, 12), dtype="uint8", **options):
    path.parent.mkdir(exist_ok=True)
    box = geobox(shape, pixel_m, LEFT + left_m, TOP + top_m)
    return write_tif(path, (ramp(1, *shape, start=0) % 200).astype(dtype), box, **options)


def _with_cover(root, **target):
    names = [f"c{number}" for number in range(200)]
    return _own(root, targets={"cover": {"path": "cover/{id}.tif", "classes": names, "gsd_m": 10, **target}})


def test_a_label_raster_with_another_origin_is_read_where_it_lies(tmp_path):
    """The imagery begins at (0, 0), the tile at (20, -20); the labels begin at (-10, 30) and are wider."""
    content = _with_cover(tmp_path)
    _cover(tmp_path / "cover" / "t0.tif", left_m=-10, top_m=30)
    expected = (np.arange(144).reshape(12, 12) % 200)[5:9, 3:7]
    np.testing.assert_array_equal(_open(tmp_path, content)[0].targets["cover"], expected)


def test_a_label_raster_off_the_grid_takes_the_nearest_stored_label_unmixed(tmp_path):
    content = _with_cover(tmp_path)
    _cover(tmp_path / "cover" / "t0.tif", left_m=-10 + 3, top_m=30 - 4)
    expected = (np.arange(144).reshape(12, 12) % 200)[5:9, 3:7]
    np.testing.assert_array_equal(_open(tmp_path, content)[0].targets["cover"], expected)


def test_finer_labels_give_the_one_under_the_centre_of_the_pixel(tmp_path):
    content = _with_cover(tmp_path)
    _cover(tmp_path / "cover" / "t0.tif", left_m=0, top_m=0, pixel_m=10 / 3, shape=(30, 30))
    expected = (np.arange(900).reshape(30, 30) % 200)[7:19:3, 7:19:3]
    np.testing.assert_array_equal(_open(tmp_path, content)[0].targets["cover"], expected)


def test_labels_are_ignored_outside_their_raster_and_where_they_are_nodata(tmp_path):
    content = _with_cover(tmp_path, ignore=-1)
    _cover(tmp_path / "cover" / "t0.tif", left_m=30, top_m=-20, nodata=14)
    cover = _open(tmp_path, content)[0].targets["cover"]
    np.testing.assert_array_equal(cover[:, 0], [-1] * 4)
    np.testing.assert_array_equal(cover[:2, 1:], [[0, 1, 2], [12, 13, -1]])


def test_labels_in_another_reference_system_land_on_the_same_ground(tmp_path):
    import rasterio
    from rasterio.warp import reproject

    content = _with_cover(tmp_path)
    source = _cover(tmp_path / "utm.tif", left_m=-10, top_m=30)
    with rasterio.open(source) as file:
        degree = 1 / 111_320
        west, north = rasterio.warp.transform(SOUTH, "EPSG:4326", [LEFT - 60], [TOP + 60])
        fine = np.full((400, 400), 255, "uint8")
        transform = Affine(degree, 0, west[0], 0, -degree, north[0])
        reproject(rasterio.band(file, 1), fine, dst_transform=transform, dst_crs="EPSG:4326", resampling=0)
    (tmp_path / "cover").mkdir()
    write_tif(tmp_path / "cover" / "t0.tif", fine[None], GeoBox(fine.shape, transform, "EPSG:4326"))
    expected = (np.arange(144).reshape(12, 12) % 200)[5:9, 3:7]
    np.testing.assert_array_equal(_open(tmp_path, content)[0].targets["cover"], expected)


def test_stored_numbers_of_classes_may_be_any(tmp_path):
    content = _own(tmp_path, targets={"cover": {"path": "cover/{id}.tif", "gsd_m": 20, "classes": ["b", "a"],
                                                "values": [65, 52]}})  # fmt: skip
    (tmp_path / "cover").mkdir()
    stored = np.array([[[65, 52], [255, 65]]], "uint8")
    write_tif(tmp_path / "cover" / "t0.tif", stored, geobox((2, 2), 20.0, LEFT + 20, TOP - 20))
    assert _open(tmp_path, content)[0].targets["cover"].tolist() == [[0, 1], [255, 0]]


def test_a_stored_number_that_is_no_class_is_named_with_its_file(tmp_path):
    content = _own(tmp_path, targets={"cover": {"path": "cover/{id}.tif", "gsd_m": 10, "classes": ["a", "b"]}})
    _cover(tmp_path / "cover" / "t0.tif", left_m=0, top_m=0)
    with pytest.raises(SourceError, match=r"t0\.tif: it holds 26, 27.*not a class of 'cover'"):
        _open(tmp_path, content)[0]


def test_a_value_raster_is_scaled_and_empty_where_it_has_no_data(tmp_path):
    content = _own(tmp_path, targets={"height": {"path": "h/{id}.tif", "unit": "m", "gsd_m": 20}})
    (tmp_path / "h").mkdir()
    stored = np.array([[[10, 20], [-99, 40]]], "int16")
    box = geobox((2, 2), 20.0, LEFT + 20, TOP - 20)
    write_tif(tmp_path / "h" / "t0.tif", stored, box, nodata=-99, scale=(0.1, 0.5))
    height = _open(tmp_path, content)[0].targets["height"]
    assert height.dtype == np.float32
    np.testing.assert_allclose(height, [[1.5, 2.5], [np.nan, 4.5]])


def test_a_label_raster_elsewhere_is_refused(tmp_path):
    content = _with_cover(tmp_path)
    _cover(tmp_path / "cover" / "t0.tif", left_m=5000, top_m=0)
    with pytest.raises(SourceError, match=r"t0\.tif: it does not overlap the imagery"):
        _open(tmp_path, content)[0]


@pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
def test_a_label_raster_without_georeference_is_refused(tmp_path):
    content = _with_cover(tmp_path)
    (tmp_path / "cover").mkdir()
    write_tif(tmp_path / "cover" / "t0.tif", np.zeros((1, 4, 4), "uint8"), None)
    with pytest.raises(SourceError, match=r"t0\.tif: it has no georeference"):
        _open(tmp_path, content)[0]


def test_imagery_smaller_than_the_tile_is_refused(tmp_path):
    content = _own(tmp_path) | {"tile_m": 160}
    with pytest.raises(SourceError, match=r"t0\.tif.*80\.0 x 80\.0 m, smaller than the tile of 160 m"):
        _open(tmp_path, content)[0]


def _places(root: Path, places, column="name", **properties) -> None:
    """A GeoJSON of points given in metres from the imagery's corner."""
    from pyproj import Transformer

    to_degrees = Transformer.from_crs(SOUTH, "EPSG:4326", always_xy=True)
    features = [
        {"type": "Feature", "properties": {"id": f"p{number}", **{k: v[number] for k, v in properties.items()}},
         "geometry": {"type": "Point", "coordinates": to_degrees.transform(LEFT + x, TOP - y)}}
        for number, (x, y) in enumerate(places)
    ]  # fmt: skip
    (root / "points.geojson").write_text(json.dumps({"type": "FeatureCollection", "features": features}))


def test_one_raster_serves_all_places_of_a_geojson(tmp_path):
    """The raster is 8 x 8 pixels; the tiles are around pixel corners (3, 2) and (5, 6), columns before rows."""
    content = _own(tmp_path, files=["mosaic"], tiles="points.geojson", centre="table",
                   targets={"crop": {"column": "crop"}})  # fmt: skip
    content["modalities"]["s2"]["path"] = "s2/mosaic.tif"
    _places(tmp_path, [(30, 20), (50, 60)], crop=["wheat", "maize"])
    dataset = _open(tmp_path, content)
    band = ramp(1, len(S2), 8, 8, start=0)[0, 0]
    np.testing.assert_array_equal(dataset[0].observations["s2"].values[0, 0], band[0:4, 1:5])
    np.testing.assert_array_equal(dataset[1].observations["s2"].values[0, 0], band[4:8, 3:7])
    assert dataset.labels().tolist() == [1, 0]


def test_a_place_off_the_imagery_is_refused(tmp_path):
    content = _own(tmp_path, files=["mosaic"], tiles="points.geojson", centre="table")
    content["modalities"]["s2"]["path"] = "s2/mosaic.tif"
    _places(tmp_path, [(300, 20)])
    with pytest.raises(SourceError, match=r"mosaic\.tif.*does not contain the place longitude"):
        _open(tmp_path, content)[0]


def test_a_geojson_in_metres_is_refused(tmp_path):
    content = _own(tmp_path, tiles="points.geojson")
    _places(tmp_path, [(0, 0)])
    path = tmp_path / "points.geojson"
    crs = {"type": "name", "properties": {"name": "urn:ogc:def:crs:EPSG::2154"}}
    path.write_text(json.dumps(json.loads(path.read_text()) | {"crs": crs}))
    with pytest.raises(SourceError, match=r"points.geojson: its places are in urn:ogc:def:crs:EPSG::2154"):
        _open(tmp_path, content)


def test_shares_by_place_keep_a_block_of_ground_together(tmp_path):
    places = [(x, y) for x in range(0, 40_000, 500) for y in (0, 500, 1000)]
    content = _own(tmp_path, tiles="points.geojson", splits={"block_m": 10_000})
    _places(tmp_path, places)
    samples = _open(tmp_path, content).samples
    runs = sum(a != b for a, b in zip(samples.columns["split"][::3], samples.columns["split"][3::3], strict=False))
    assert len(set(samples.columns["split"].tolist())) > 1
    assert runs <= 5


def test_a_tile_without_a_place_cannot_be_split_by_place(tmp_path):
    (tmp_path / "tiles.csv").write_text("id,lon,lat\nt0,10,50\nt1,,\n")
    content = _own(tmp_path, tiles="tiles.csv", splits={"block_m": 1000})
    with pytest.raises(SourceError, match=r"tiles\.csv: tile 't1' has no lon in degrees"):
        _open(tmp_path, content)


def test_a_column_splits_by_its_values(tmp_path):
    (tmp_path / "tiles.csv").write_text("id,fold\nt0,1\nt1,4\n")
    content = _own(tmp_path, tiles="tiles.csv", splits={"column": "fold", "train": [1, 2], "test": [4]})
    assert _open(tmp_path, content, "train").ids == ["t0"]
    assert _open(tmp_path, content, "test").ids == ["t1"]


def test_a_value_of_the_split_column_that_is_no_split_is_named(tmp_path):
    (tmp_path / "tiles.csv").write_text("id,part\nt0,train\nt1,trian\n")
    with pytest.raises(UnknownNameError, match=r"column 'part' of .*tiles\.csv 'trian'; closest: train"):
        _open(tmp_path, _own(tmp_path, tiles="tiles.csv", splits={"column": "part"}))


def test_several_labels_in_one_cell(tmp_path):
    (tmp_path / "tiles.csv").write_text("id,genera\nt0,oak; beech;pine;alder\nt1,beech;larch\n")
    content = _own(tmp_path, tiles="tiles.csv", targets={"genera": {"column": "genera", "separator": ";"}})
    dataset = _open(tmp_path, content)
    assert dataset.record.target("genera").classes == ("alder", "beech", "larch", "oak", "pine")
    assert [tile.targets["genera"].tolist() for tile in dataset] == [[1, 1, 0, 1, 1], [0, 1, 1, 0, 0]]


def test_a_cell_that_is_no_class_is_named_with_its_tile(tmp_path):
    (tmp_path / "tiles.csv").write_text("id,crop\nt0,wheat\nt1,\n")
    content = _own(tmp_path, tiles="tiles.csv", targets={"crop": {"column": "crop"}})
    with pytest.raises(SourceError, match=r"tiles\.csv: tile 't1' has '' in column 'crop'.*`ignore`"):
        _open(tmp_path, content)


def test_an_id_that_comes_twice_is_refused(tmp_path):
    (tmp_path / "tiles.csv").write_text("id\nt0\nt0\n")
    with pytest.raises(SourceError, match=r"tiles\.csv: several tiles are called 't0'"):
        _open(tmp_path, _own(tmp_path, tiles="tiles.csv"))


def test_a_tile_of_the_table_without_its_file_is_named(tmp_path):
    (tmp_path / "tiles.csv").write_text("id\nt0\nt9\n")
    with pytest.raises(MissingFileError, match=r"s2/t9\.tif: no such file"):
        _open(tmp_path, _own(tmp_path, tiles="tiles.csv"))[1]


def test_units_of_the_yaml_count_even_by_band(tmp_path):
    content = _own(tmp_path)
    content["modalities"]["s2"]["units"] = {"B2": "DN"}
    units = _open(tmp_path, content)[0].observations["s2"].units
    assert units[:2] == ("DN", "reflectance_1e4")


def test_parts_and_dates_are_written_in_the_path_as_for_embed(tmp_path):
    content = _own(tmp_path, files=[])
    values = ramp(2, len(S2), 8, 8).astype("float32")
    write_nc(tmp_path / "s2" / "t0.nc", cube(values, geobox((8, 8)), ["2020-06-01", "2020-07-01"], S2))
    content["modalities"]["s2"]["path"] = "s2/{id}.nc::pixels@2020-07-01"
    dataset = _open(tmp_path, content)
    assert dataset.ids == ["t0"]
    assert [str(date) for date in dataset[0].observations["s2"].dates] == ["2020-07-01"]


def test_own_sensors_are_read_from_their_own_records(tmp_path):
    (tmp_path / "sensors.yaml").write_text(
        yaml.safe_dump({"key": "drone", "sensor": "a drone", "bands": ["R", "NIR"], "gsd_m": 5, "is_temporal": False})
    )
    (tmp_path / "drone").mkdir()
    write_tif(tmp_path / "drone" / "t0.tif", ramp(2, 8, 8, dtype="uint8", start=0), geobox((8, 8), 5.0))
    content = _own(tmp_path, modality_records="sensors.yaml")
    content["modalities"]["drone"] = {"path": "drone/{id}.tif", "bands": ["NIR", "R"]}
    seen = _open(tmp_path, content)[0].observations
    np.testing.assert_array_equal(seen["drone"].values, ramp(2, 8, 8, dtype="uint8", start=0)[::-1])
    assert seen["s2"].shape_px == (4, 4)


def test_patch_sizes_are_all_that_fit_unless_given(tmp_path):
    assert _open(tmp_path, _own(tmp_path)).record.patch_sizes_m == (10.0, 20.0, 40.0)
    assert _open(tmp_path, _own(tmp_path, patch_sizes_m=[20])).record.patch_sizes_m == (20.0,)


@pytest.mark.parametrize(("key", "tile_m", "first_m"), [("s2", 160, 10), ("s2", 560, 40), ("aerial", 3840, 120)])
def test_the_default_patch_size_comes_first_and_makes_neither_too_many_patches_nor_too_large_ones(
    tmp_path, key, tile_m, first_m
):
    content = {"name": "mine", "tile_m": tile_m, "modalities": {key: {"path": "{id}.tif"}}}
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(content))
    sizes = find_dataset(str(tmp_path / "mine.yaml")).patch_sizes_m
    assert sizes[0] == first_m
    assert set(sizes) >= {10, 20, 40, tile_m}


def test_the_check_finds_a_raster_that_is_missing_and_takes_folders_and_cubes_as_they_are(tmp_path):
    content = _with_cover(tmp_path)
    _cover(tmp_path / "cover" / "t0.tif", left_m=0, top_m=0)
    _open(tmp_path, content)
    report = check_dataset(str(tmp_path / "mine.yaml"), tmp_path)
    assert [(f.kind, f.where) for f in report.findings if f.severity == "error"] == [
        ("missing-file", "cover-raster: cover/t1.tif")
    ]


@pytest.mark.parametrize(("key", "least_m"), [("aerial", 10.0), ("planet", 12.0)])
def test_patches_of_released_sensors_hold_whole_cells_of_10_m_others_whole_sub_patches(tmp_path, key, least_m):
    (tmp_path / "mine.yaml").write_text(
        yaml.safe_dump({"name": "mine", "tile_m": 120, "modalities": {key: {"path": "{id}.tif"}}})
    )
    assert find_dataset(str(tmp_path / "mine.yaml")).patch_sizes_m[0] == least_m


def test_entries_name_the_files_so_that_missing_ones_are_found(tmp_path):
    layout = _open(tmp_path, _with_cover(tmp_path)).folder.layout
    assert {entry.name: entry.path for entry in layout.entries} == {
        "s2": "s2/{id}.tif",
        "cover-raster": "cover/{id}.tif",
    }


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tile": 40}, r"unknown key of .*mine\.yaml 'tile'; closest: ti"),
        ({"modalities": {"s2": {"pth": "x"}}}, r"unknown key of .*mine\.yaml, modalities\.s2 'pth'; closest: path"),
        ({"modalities": {"s3": {"path": "x/{id}"}}}, r"unknown modality 's3'; closest: s2"),
        ({"modalities": {}}, r"mine\.yaml, modalities: expected at least one modality, got \{\}"),
        ({"modalities": {"s2": {"path": "/data/{id}"}}}, r"modalities\.s2, path: expected a path below the data"),
        ({"modalities": {"s2": {"path": "{id:03d}.tif"}}}, r"modalities\.s2, path: expected columns .* in braces"),
        ({"modalities": {"s2": {"path": "a.tif"}}}, r"mine\.yaml, tiles: expected a table, because 'a.tif' has no"),
        ({"modalities": {"s2": {"path": "{id}.nc", "units": "percent"}}}, r"unit in .*modalities\.s2 'percent'"),
        ({"modalities": {"s2": {"path": "{id}.nc", "optional": True}}}, r"modalities: expected one that every tile"),
        ({"tile_m": "wide"}, r"mine\.yaml, tile_m: expected a number above 0, got 'wide'"),
        ({"tile_m": -40}, r"mine\.yaml, tile_m: expected a number above 0, got -40"),
        ({"tile_m": 45}, r"mine\.yaml, tile_m: expected a multiple of 10 m.*got 45"),
        ({"name": None}, r"mine\.yaml, name: expected text, got None"),
        ({"patch_sizes_m": [30]}, r"patch_sizes_m: expected sizes among 10, 20, 40, got \[30\]"),
        ({"centre": "tabel"}, r"centre of .*mine\.yaml 'tabel'; closest: table"),
        ({"centre": "table"}, r"mine\.yaml, tiles: expected a table, because"),
        ({"targets": {"a": {"classes": ["b"]}}}, r"targets\.a, column: expected either a column .* or the path"),
        ({"targets": {"a": {"column": "b"}}}, r"targets\.a, column: expected a raster, or a field of .*no table"),
        ({"targets": {"a": {"path": "c/{id}.tif", "gsd_m": 10}}}, r"targets\.a, classes: expected a list of names"),
        ({"targets": {"a": {"path": "c/{id}.tif", "classes": ["b"]}}}, r"targets\.a, gsd_m: expected a number above 0"),
        ({"targets": {"a": {"path": "c/{id}.tif", "classes": ["b"], "gsd_m": 15}}}, r"gsd_m: expected a spacing that"),
        ({"targets": {"a": {"path": "c/{id}.tif", "classes": [True], "gsd_m": 10}}}, r"classes: .*in quotes"),
        ({"targets": {"a": {"path": "{year}.tif", "unit": "m", "gsd_m": 10}}}, r"tiles: expected a table, .*\{year\}"),
        (
            {"targets": {"a": {"path": "{id}.tif", "unit": "m", "gsd_m": 10, "ignore": 3}}},
            r"ignore: expected no value, it has no",
        ),
        ({"splits": {"shares": {"train": 1}, "train": [1]}}, r"splits, train: expected either a column .* or shares"),
        ({"splits": {"shares": {"training": 1}}}, r"unknown key of .*mine\.yaml, splits, shares 'training'; closest"),
    ],
)
def test_a_mistake_in_the_yaml_is_named_by_file_and_key(tmp_path, change, message):
    with pytest.raises((RecordError, UnknownNameError), match=message):
        _open(tmp_path, _own(tmp_path) | change)


def test_a_table_s_missing_column_is_named(tmp_path):
    (tmp_path / "tiles.csv").write_text("id,crops\nt0,wheat\n")
    content = _own(tmp_path, tiles="tiles.csv", targets={"crop": {"column": "crop", "classes": ["wheat"]}})
    with pytest.raises(UnknownNameError, match=r"column of .*tiles\.csv 'crop'; closest: crops"):
        _open(tmp_path, content)


@pytest.mark.parametrize("text", ["a: [", "- 1", ""])
def test_a_file_that_is_no_description_says_so(tmp_path, text):
    (tmp_path / "mine.yaml").write_text(text)
    with pytest.raises(AnySatError, match=r"mine\.yaml"):
        find_dataset(str(tmp_path / "mine.yaml"))


def test_a_folder_without_the_files_names_the_pattern(tmp_path):
    content = _own(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(content))
    with pytest.raises(MissingFileError, match=r"empty/s2/\*\.tif"):
        open_dataset(str(tmp_path / "mine.yaml"), tmp_path / "empty")


def _without_place(root: Path, *, side_px=8, label_px=4) -> dict:
    """Two chips and their labels without georeference, and the YAML content that reads them."""
    (root / "img").mkdir()
    (root / "label").mkdir()
    for number, name in enumerate(("t0", "t1")):
        values = ramp(len(S2), side_px, side_px, start=1000 * number)
        write_tif(root / "img" / f"{name}.tif", values, None, names=S2)
        labels = np.arange(label_px**2, dtype="uint8").reshape(1, label_px, label_px) % 3
        write_tif(root / "label" / f"{name}.tif", labels, None, nodata=2)
    targets = {"cover": {"path": "label/{id}.tif", "classes": ["a", "b"], "gsd_m": 20}}
    return {"name": "mine", "tile_m": 80, "modalities": {"s2": {"path": "img/{id}.tif@2020-06-15"}}, "targets": targets}


@pytest.mark.filterwarnings("error::rasterio.errors.NotGeoreferencedWarning")
def test_chips_without_georeference_are_tiles_without_a_place(tmp_path):
    dataset = _open(tmp_path, _without_place(tmp_path))
    tile = dataset[1]
    assert tile.geobox is None
    seen = tile.observations["s2"]
    np.testing.assert_array_equal(seen.values[0], ramp(len(S2), 8, 8, start=1000))
    assert seen.dates.astype(str).tolist() == ["2020-06-15"]
    cover = tile.targets["cover"]
    np.testing.assert_array_equal(cover, np.array([0, 1, 255] * 5 + [0]).reshape(4, 4))
    report = check_dataset(str(tmp_path / "mine.yaml"), tmp_path)
    assert not [finding for finding in report.findings if finding.severity == "error"]


@pytest.mark.filterwarnings("error::rasterio.errors.NotGeoreferencedWarning")
@pytest.mark.parametrize(("sizes", "change", "message"), [
    ({"side_px": 7}, {}, r"t0\.tif.*: it has no georeference, and its 70 x 70 m are not the 80.0 x 80.0 m of the tile"),
    ({"label_px": 8}, {}, r"t0\.tif: its 8 x 8 pixels are not the 4 x 4 of its tile"),
    ({}, {"tiles": "tiles.csv", "centre": "table"}, "it has no georeference"),
])  # fmt: skip
def test_chips_without_georeference_of_another_size_or_centred_on_a_table_are_refused(tmp_path, sizes, change, message):
    (tmp_path / "tiles.csv").write_text("id,lon,lat\nt0,10,50\nt1,10.1,50\n")
    with pytest.raises(SourceError, match=message):
        _open(tmp_path, _without_place(tmp_path, **sizes) | change)[0]


def test_files_of_a_kind_that_is_not_read_are_named(tmp_path):
    (tmp_path / "img").mkdir()
    for name in ("t0.png", "t1.png"):
        (tmp_path / "img" / name).write_bytes(b"")
    content = {"name": "mine", "tile_m": 80, "modalities": {"s2": {"path": "img/{id}.png@2020-06-15"}}}
    with pytest.raises(SourceError, match=r"files match the path, but their kind is not read: \.png; convert them"):
        _open(tmp_path, content)
