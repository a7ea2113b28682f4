"""Maps of a finished store: what is like given places, and classes from a few labels, whatever the store's form."""

import json

import geopandas
import numpy as np
import pandas
import pytest
import rasterio
import shapely
import xarray
import zarr
from rasterio.vrt import WarpedVRT

import anysat
from anysat.cli import main
from anysat.errors import AnySatError, InputError, MissingFileError, OutputExistsError, RecordError, UnknownNameError
from anysat.geo.parcels import place_parcels
from anysat.geo.samples import choose_patches
from anysat.geo.stores.layout import Layout
from anysat.geo.stores.store import AreaStore
from anysat.geo.stores.stored import find_group
from anysat.geo.write.maps import class_attributes
from anysat.geo.zonal import find_alike, read_shapes
from anysat.modalities import MODALITIES
from anysat.workflows.store_maps.labels import read_labelled
from anysat.workflows.store_maps.maps import Stores
from geo_builders import LEFT, SOUTH, TOP, cube, geobox, write_nc, write_tif
from store_builders import GRID, PERIODS, begin, facts, finished

DIM, SIDE = 12, 24
FIELD = 4
"""Patches along a side of a field."""
CLASSES = ("maize", "wheat")


def ground() -> np.ndarray:
    """Fields of two classes (row col)."""
    fields = np.random.default_rng(3).integers(0, 2, (SIDE // FIELD, SIDE // FIELD))
    return np.kron(fields, np.ones((FIELD, FIELD), int))


def embeddings(seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Vectors (row col dim) with a large part in common and two clear clusters, and validity (row col) with a hole."""
    rng = np.random.default_rng(seed)
    common, apart = 4 * np.ones(DIM), np.random.default_rng(9).standard_normal((2, DIM))
    valid = np.ones((SIDE, SIDE), bool)
    valid[9:12, 2:7] = False
    return (common + apart[ground()] + 0.15 * rng.standard_normal((SIDE, SIDE, DIM))).astype(np.float32), valid


def write(path, *, kind="float32", shard_px=8, left=LEFT, crs=SOUTH, periods=1):
    """A store of these embeddings; of a second period, all is seen and other noise."""
    scale = np.full(DIM, 10 / 127, np.float32) if kind == "int8-scale" else None
    layout = Layout(name="patch", geobox=geobox((SIDE, SIDE), 20.0, left=left, crs=crs), shard_px=shard_px, chunk_px=4,
                    dim=DIM, kind=kind, scale=scale, attributes=facts(kind, dim=DIM))  # fmt: skip
    store = begin(path, [layout]) if periods == 2 else begin_one(path, layout)
    for unit in store.remaining():
        values, valid = embeddings(unit.period)
        place = layout.shard_slices(unit.row, unit.col)
        store.write(unit, {"patch": (values[place], (valid | (unit.period == 1))[place])})
    return store.finish({})


def begin_one(path, layout):
    return AreaStore.open(path, [layout], PERIODS[:1], {"weights": "abc"})


def point(row, col):
    return shapely.Point(LEFT + 20 * col + 7, TOP - 20 * row - 11)


def points(each=5, crs=SOUTH):
    """Some points of either class."""
    places = [np.argwhere(ground() == number) for number in (0, 1)]
    chosen = [places[n][i] for n in (0, 1) for i in np.linspace(0, len(places[n]) - 1, each).astype(int)]
    table = geopandas.GeoDataFrame(
        {"crop": [name for name in CLASSES for _ in range(each)]}, geometry=[point(*one) for one in chosen], crs=SOUTH
    )
    return table.to_crs(crs)


def fields():
    """Two thirds of the fields as polygons, a little smaller than the fields."""
    shapes, names = [], []
    for row, col in np.ndindex(SIDE // FIELD, SIDE // FIELD):
        if (row + col) % 3:
            x, y, side = LEFT + 20 * FIELD * col, TOP - 20 * FIELD * row, 20 * FIELD
            shapes.append(shapely.box(x + 3, y - side + 3, x + side - 3, y - 3))
            names.append(CLASSES[ground()[row * FIELD, col * FIELD]])
    return geopandas.GeoDataFrame({"crop": names}, geometry=shapes, crs=SOUTH)


def read(path):
    with rasterio.open(path) as file:
        return file.read(1)


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """Shared: never write into it."""
    return write(tmp_path_factory.mktemp("store") / "a.zarr")


# --- similar


def test_a_search_finds_what_is_like_the_place(store, tmp_path):
    found = anysat.similar(store, points().iloc[:1], tmp_path / "s.tif")
    values, valid = embeddings()
    row, col = np.argwhere(ground() == 0)[0]
    centred = values - values[valid].mean(0)
    centred /= np.linalg.norm(centred, axis=-1, keepdims=True)
    expected = np.where(valid, centred @ centred[row, col], np.nan)
    with rasterio.open(tmp_path / "s.tif") as file:
        assert (file.dtypes, np.isnan(file.nodata), file.crs) == (
            ("float32",),
            True,
            rasterio.crs.CRS.from_user_input(SOUTH),
        )
    np.testing.assert_allclose(read(tmp_path / "s.tif"), expected, atol=1e-5)
    assert np.nanmin(expected[ground() == 0]) > 0.5 > -0.5 > np.nanmax(expected[ground() == 1])
    assert found.facts["at_places"] == [pytest.approx(1, abs=1e-5)]
    assert {file.name for file in found.files} == {"s.tif", "s.png"} == {file.name for file in tmp_path.iterdir()}


@pytest.mark.parametrize("options", [
    {"shard_px": 24}, {"kind": "float16"}, {"kind": "int8-power"}, {"kind": "int8-scale"}
])  # fmt: skip
def test_shards_and_one_byte_codes_hardly_change_a_map(store, tmp_path, options):
    other = write(tmp_path / "b.zarr", **options)
    for number, one in enumerate((store, other)):
        anysat.similar(one, points(), tmp_path / f"s{number}.tif", unlike=points().iloc[5:])
        anysat.classify(one, points(), "crop", tmp_path / f"c{number}.tif")
    close = 1e-5 if "shard_px" in options else 0.1
    np.testing.assert_allclose(read(tmp_path / "s0.tif"), read(tmp_path / "s1.tif"), atol=close)
    np.testing.assert_array_equal(read(tmp_path / "c0.tif"), read(tmp_path / "c1.tif"))


def test_unlike_is_subtracted_and_a_place_may_be_longitude_and_latitude(store, tmp_path):
    first, second = points().iloc[:1].assign(split="train"), points().iloc[5:6]
    for name, to, unlike in (("a", first, None), ("b", second, None), ("c", first, second)):
        anysat.similar(store, to, tmp_path / f"{name}.tif", unlike=unlike)
    a, b, c = (read(tmp_path / f"{name}.tif") for name in "abc")
    np.testing.assert_allclose(c, a - b, atol=1e-6)
    lon, lat = shapely.get_coordinates(points(crs=4326).geometry.values[0])[0]
    anysat.similar(store, f"{lon},{lat}", tmp_path / "d.tif")
    np.testing.assert_array_equal(read(tmp_path / "d.tif"), a)


def test_every_period_is_compared_with_the_places_in_it(tmp_path):
    store = write(tmp_path / "a.zarr", periods=2)
    in_hole = geopandas.GeoDataFrame(geometry=[point(10, 3)], crs=SOUTH)
    found = anysat.similar(store, in_hole, tmp_path / "s.tif")
    assert np.isnan(read(tmp_path / "s_2020-01-01.tif")).all()
    assert read(tmp_path / "s_2020-07-01.tif")[10, 3] == pytest.approx(1, abs=1e-5)
    assert "in 1 of 2 periods no place of places was seen" in found.report


def test_several_stores_give_a_map_each_around_one_mean(store, tmp_path):
    east = write(tmp_path / "east.zarr", left=LEFT + 20 * SIDE)
    found = anysat.similar([store, east], points().iloc[:1], tmp_path / "s.zarr")
    assert [file.name for file in found.files] == ["s-a.zarr", "s-a.png", "s-east.zarr", "s-east.png"]
    anysat.similar([store, east], points().iloc[:1], tmp_path / "s.tif", overwrite=True)
    np.testing.assert_allclose(read(tmp_path / "s-a.tif"), read(tmp_path / "s-east.tif"), atol=1e-6)
    assert find_group(tmp_path / "s-east.zarr").variable == "similarity"
    done = anysat.classify([store, east], points(), "crop", tmp_path / "c.tif")
    assert done.facts["num_samples"] == 10
    np.testing.assert_array_equal(read(tmp_path / "c-a.tif"), read(tmp_path / "c-east.tif"))


# --- classify


def test_the_store_of_a_tile_is_mapped_and_dated_by_its_inputs(tmp_path):
    values = np.full((2, 10, 24, 36), 700, np.float32) + np.random.default_rng(0).uniform(0, 200, (2, 10, 24, 36))
    values[..., 18:] += 2000
    data = cube(values.astype(np.float32), geobox((24, 36)), ["2020-06-30", "2020-07-30"], MODALITIES["s2"].band_names)
    given, tile = write_nc(tmp_path / "s2.nc", data), tmp_path / "t.zarr"
    options = ("--patch-size-m=20", "--weights=nano", "--statistics=from-data")
    assert main(["embed", f"s2={given}", f"--out={tile}", *options]) == 0
    table = geopandas.GeoDataFrame(
        {"crop": ["dark"] * 9 + ["bright"] * 9}, crs=SOUTH,
        geometry=[point(row, col) for col in (1, 4, 7, 10, 13, 16) for row in (1, 6, 10)],
    )  # fmt: skip
    for suffix in (".zarr", ".tif"):
        anysat.classify(tile, table, "crop", tmp_path / f"c{suffix}", overwrite=True)
    assert [str(day) for day in find_group(tmp_path / "c.zarr").periods[0]] == ["2020-06-30", "2020-07-30"]
    np.testing.assert_array_equal(read(tmp_path / "c.tif"), np.tile(np.arange(18) < 9, (12, 1)))
    root = zarr.open_group(tile, mode="r+")
    made = dict(root.attrs["anysat"])
    made["inputs"]["s2"]["dates"] = []
    root.attrs["anysat"] = made
    with pytest.raises(
        InputError, match="t.zarr: expected a store whose inputs state their dates, got none; embed them"
    ):
        anysat.similar(tile, table, tmp_path / "s.tif")


@pytest.mark.parametrize("given", [fields(), points(crs=4326)], ids=["fields", "points"])
def test_two_clear_clusters_are_mapped_right_from_polygons_or_five_points_each(store, tmp_path, given):
    found = anysat.classify(store, given, "crop", tmp_path / "c.tif", probabilities=True)
    _, valid = embeddings()
    with rasterio.open(tmp_path / "c.tif") as file:
        assert (file.nodata, file.tags()["CLASS_1"], len(file.colormap(1))) == (255, "wheat", 256)
        assert json.loads(file.tags()["ANYSAT"])["made_from"]["store"] == "a.zarr"
        assert "store" not in json.loads(file.tags()["ANYSAT"]), "the temporary one is gone"
    np.testing.assert_array_equal(read(tmp_path / "c.tif"), np.where(valid, ground(), 255))
    with rasterio.open(tmp_path / "c_probability.tif") as file:
        assert file.descriptions == CLASSES
        shares = file.read()
    np.testing.assert_allclose(shares.sum(0)[valid], 1, atol=1e-5)
    assert np.isnan(shares[:, ~valid]).all()
    assert found.facts["scores"]["figures"]["balanced_accuracy"] == 1
    assert found.facts["scores"]["intervals_over"].startswith("blocks of")
    assert "few labels (maize" in found.report
    assert {file.name for file in found.files} == {file.name for file in tmp_path.iterdir()}


def test_classes_that_are_whole_numbers_are_mapped_as_these(store, tmp_path):
    given = points().assign(crop=[{"maize": 211, "wheat": 311}[name] for name in points()["crop"]])
    anysat.classify(store, given, "crop", tmp_path / "c.tif")
    wanted = np.where(embeddings()[1], np.array([211, 311])[ground()], 65535)
    np.testing.assert_array_equal(read(tmp_path / "c.tif"), wanted)
    anysat.classify(store, given, "crop", tmp_path / "d.zarr")
    table = anysat.zonal(tmp_path / "d.zarr", fields())
    assert set(table["majority"].dropna()) == {"211", "311"}
    assert (table["211_frac"] + table["311_frac"]).dropna().round(5).eq(1).all()


def test_a_report_says_which_numbers_of_classes_do_not_fit_a_map(store, tmp_path):
    given = points().assign(crop=[{"maize": -1, "wheat": 70000}[name] for name in points()["crop"]])
    found = anysat.classify(store, given, "crop", tmp_path / "c.tif")
    assert found.report.count("counted from 0, because those of maps are 0 to 65534, and -1, 70000 do not fit") == 1
    assert set(np.unique(read(tmp_path / "c.tif"))) <= {0, 1, 255}


def test_a_score_is_of_ground_that_the_model_was_not_fitted_to(tmp_path):
    """Embeddings that only tell fields apart: neighbours are alike, and nothing tells the classes."""
    layout = Layout(name="patch", geobox=geobox((SIDE, SIDE), 20.0), shard_px=8, chunk_px=4, dim=60,
                    attributes=facts(dim=60))  # fmt: skip
    of_fields = np.random.default_rng(0).standard_normal((6, 6, 60), np.float32)
    of_fields = np.kron(of_fields, np.ones((FIELD, FIELD, 1), np.float32))
    store = begin_one(tmp_path / "a.zarr", layout)
    for unit in store.remaining():
        place = layout.shard_slices(unit.row, unit.col)
        store.write(unit, {"patch": (of_fields[place], np.ones(of_fields[place].shape[:2], bool))})
    found = anysat.classify(store.finish({}), fields(), "crop", tmp_path / "c.tif")
    assert found.facts["scores"]["figures"]["balanced_accuracy"] < 0.75
    assert found.facts["num_samples"] > 300


def test_a_polygon_takes_the_patches_mostly_inside_it_drawn_evenly_and_whatever_the_shards(store, tmp_path):
    shapes = [shapely.box(LEFT + 9, TOP - 100, LEFT + 100, TOP - 11), shapely.box(LEFT, TOP - 480, LEFT + 480, TOP)]
    table = read_shapes(geopandas.GeoDataFrame(geometry=shapes, crs=SOUTH))[1]
    drawn = []
    for path in (store, write(tmp_path / "b.zarr", shard_px=24)):
        groups = find_alike([path])
        placed = [place_parcels(table, "a", groups[0].geobox)]
        every = choose_patches(groups, placed, 1000)
        inside = every.where(every.shape == 0)
        assert (inside.row.min(), inside.col.min(), len(inside.row)) == (1, 0, 4 * 5)  # 9 of 20 m of row 0, 11 of col 0
        some = choose_patches(groups, placed, 30)
        assert np.bincount(some.shape).tolist() == [15, 15]
        drawn.append(some)
    for one, other in zip(*drawn, strict=True):
        np.testing.assert_allclose(one, other)


def test_ground_in_several_stores_is_taken_once_from_the_first(store, tmp_path):
    half = write(tmp_path / "half.zarr", left=LEFT + 10 * SIDE)  # its western half is the eastern one of the store
    beyond = geopandas.GeoDataFrame({"crop": CLASSES}, geometry=[point(2, SIDE + 4), point(20, SIDE + 8)], crs=SOUTH)
    given = geopandas.GeoDataFrame(pandas.concat([points(), beyond], ignore_index=True))
    inside = points().geometry.x > LEFT + 10 * SIDE
    alone = anysat.classify(store, points(), "crop", tmp_path / "a.tif")
    both = anysat.classify([store, write(tmp_path / "b.zarr")], points(), "crop", tmp_path / "b.tif")
    assert (both.facts["num_samples"], both.facts["scores"]) == (10, alone.facts["scores"])
    assert "stores overlap: 10 samples left out, of ground that a store named earlier has seen" in both.report
    some = anysat.classify([store, half], given, "crop", tmp_path / "c.tif")
    assert some.facts["num_samples"] == 12
    assert f"stores overlap: {inside.sum()} samples left out" in some.report
    place = geopandas.GeoDataFrame(geometry=[point(2, 20)], crs=SOUTH)
    like = anysat.similar([store, half], place, tmp_path / "s.tif")
    assert "ground that several have seen counts only in the store named first" in like.report
    values, valid = embeddings()
    centred = values - np.concatenate([values[valid], values[:, SIDE // 2 :].reshape(-1, DIM)]).mean(0)
    centred /= np.linalg.norm(centred, axis=-1, keepdims=True)
    wanted = np.where(valid, centred @ centred[2, 20], np.nan)
    np.testing.assert_allclose(read(tmp_path / "s-a.tif"), wanted, atol=1e-4)


def test_ground_that_the_first_store_has_not_seen_is_taken_from_the_next(tmp_path):
    two = [write(tmp_path / f"{left}.zarr", periods=2, left=LEFT - left) for left in (0, 80)]  # with other holes
    given = geopandas.GeoDataFrame({"crop": CLASSES}, geometry=[point(10, 5), point(20, 12)], crs=SOUTH)
    found = anysat.classify(two, given, "crop", tmp_path / "c.tif")
    assert found.facts["num_samples"] == 4
    assert "stores overlap: 3 samples left out" in found.report


def test_labels_that_overlap_are_named_and_said_to_prevent_a_score(store, tmp_path):
    """A polygon of one class over all: blocks whose labels share a patch are one, and a polygon lies in one."""
    over = geopandas.GeoDataFrame({"crop": ["maize"]}, geometry=[shapely.box(LEFT, TOP - 480, LEFT + 480, TOP)],
                                  crs=SOUTH)  # fmt: skip
    unlabelled = over.assign(crop=None)
    given = geopandas.GeoDataFrame(pandas.concat([unlabelled, fields(), over], ignore_index=True))
    found = anysat.classify(store, given, "crop", tmp_path / "c.tif")
    last = len(given) - 1
    assert f"most of them in row {last} (maize), row " in found.report
    assert (
        " more), all of which count: correct the rows of samples (counted from 0) that should not overlap"
        in found.report
    )
    assert found.facts["scores"] is None
    assert "km or more that share no patch: correct points and polygons that overlap, or add samples" in found.report
    clear = anysat.classify(store, fields(), "crop", tmp_path / "d.tif")
    assert "different labels" not in clear.report


def test_a_patch_is_never_both_fitted_to_and_scored(store):
    """Overlapping polygons share patches, and so do points beside the edge of a block."""
    stores, rng = Stores.open(store, None), np.random.default_rng(0)
    places = rng.uniform(20, 460, (60, 2)) * [1, -1] + [LEFT, TOP]
    shapes = [shapely.Point(place).buffer(35) if number % 2 else shapely.Point(place)
              for number, place in enumerate(places)]  # fmt: skip
    table = geopandas.GeoDataFrame({"crop": rng.choice(CLASSES, 60)}, geometry=shapes, crs=SOUTH)
    samples = read_labelled(stores, table, "crop", values=False, dates=None, block_km=0.1).samples
    place = np.unique(samples.vectors, axis=0, return_inverse=True)[1].reshape(-1)
    assert len(np.unique(place)) < len(place)
    assert len(np.unique(samples.groups)) > 4
    assert len(np.unique(np.stack([place, samples.groups]), axis=1).T) == len(np.unique(place))


def test_parts_of_a_multi_polygon_lie_in_blocks_of_their_own(store, tmp_path):
    found = anysat.classify(store, fields().dissolve("crop").reset_index(), "crop", tmp_path / "c.tif")
    assert found.facts["scores"]["figures"]["balanced_accuracy"] == 1
    assert found.facts["scores"]["num_intervals_over"] > 3


def test_classes_of_which_none_lies_in_two_blocks_are_mapped_and_not_scored(store, tmp_path):
    found = anysat.classify(store, points(1), "crop", tmp_path / "c.tif")
    assert found.facts["scores"] is None
    assert "is held out" not in found.report


def test_periods_are_mapped_each_and_labels_may_hold_in_one(tmp_path):
    store = write(tmp_path / "a.zarr", periods=2)
    each = anysat.classify(store, points(), "crop", tmp_path / "c.tif")
    one = anysat.classify(store, points(), "crop", tmp_path / "d.tif", dates="2020-01-01/2020-06-30")
    assert [found.facts["num_samples"] for found in (each, one)] == [20, 10]
    for name in ("c_2020-07-01", "d_2020-07-01"):
        np.testing.assert_array_equal(read(tmp_path / f"{name}.tif"), ground())
    with pytest.raises(RecordError, match="--dates: expected days that hold a period of a.zarr"):
        anysat.classify(store, points(), "crop", tmp_path / "f.tif", dates="2021-01-01/2021-06-30")


def test_values_are_mapped_by_ridge_regression(store, tmp_path):
    given = fields()
    given["height_m"] = np.where(given["crop"] == "maize", 2.0, 1.0)
    given.loc[0, "height_m"] = np.nan
    found = anysat.classify(store, given, "height_m", tmp_path / "v.tif", values=True)
    _, valid = embeddings()
    assert np.abs(read(tmp_path / "v.tif") - (2 - ground()))[valid].max() < 0.4
    assert found.facts["scores"]["figures"]["r2"] > 0.9
    assert "rows of samples without a label: 1" in found.report
    with pytest.raises(InputError, match="numbers, for --values, got 'wheat'|numbers, for --values, got 'maize'"):
        anysat.classify(store, given, "crop", tmp_path / "w.tif", values=True)


def test_labels_that_cannot_be_used_are_refused_and_nothing_is_left(store, tmp_path):
    given, out = points(), tmp_path / "new" / "c.tif"
    one_class = given.assign(crop="maize")
    one_seen = given.set_geometry([*given.geometry.values[:5], *[shapely.Point(0, 0)] * 5], crs=SOUTH)
    classes = write_classes(tmp_path / "classes.zarr")
    for stores, table, column, error, message in (
        (store, given, "crops", UnknownNameError, "unknown --column 'crops'; closest: crop. It must be one of"),
        (store, one_class, "crop", InputError, "expected two classes or values, or more, got maize; add samples of"),
        (store, one_seen, "crop", InputError, "classes or values on ground that a.zarr has seen, or more, got maize"),
        (store, given.translate(9e4).to_frame().assign(crop=["a", "b"] * 5), "crop", InputError, "got 10 elsewhere"),
        (classes, given, "crop", InputError, "group class of classes.zarr: expected embeddings, got a map"),
        (store, given.assign(also=given.geometry), "also", UnknownNameError, "unknown --column 'also'; known: crop"),
        (store, given, "geometry", UnknownNameError, "unknown --column 'geometry'; known: crop. It must be"),
        (store, given.assign(crop=np.arange(10) + 0.5), "crop", InputError, "got 0.5; for a map of values, give --val"),
        (store, [1], "crop", InputError, "expected a geopandas GeoDataFrame, or a file, got list"),
    ):
        with pytest.raises(error, match=message):
            anysat.classify(stores, table, column, out)
        assert not out.parent.exists()
    with pytest.raises(InputError, match="expected places on ground that a.zarr has seen, got 1 elsewhere"):
        anysat.similar(store, "3.5,50.5", out)
    with pytest.raises(RecordError, match="place: expected longitude,latitude in degrees"):
        anysat.similar(store, "50.5,103.5", out)
    assert not out.parent.exists()


def write_classes(path):
    told = class_attributes(("a", "b"), np.zeros((2, 3)))
    layout = Layout(name="class", variable="class", geobox=GRID, shard_px=4, chunk_px=2, kind="uint8",
                    variable_attributes=told)  # fmt: skip
    return finished(path, [layout])


def test_all_in_one_block_is_mapped_and_not_scored(store, tmp_path):
    found = anysat.classify(store, points(), "crop", tmp_path / "c.tif", block_km=100)
    assert "not scored, because that needs two classes in two blocks of 100 km or more: give a smaller" in found.report
    assert found.facts["scores"] is None
    np.testing.assert_array_equal(read(tmp_path / "c.tif") == 1, (ground() == 1) & embeddings()[1])


@pytest.mark.parametrize("stop", [KeyboardInterrupt, OSError(28, "No space left on device")])
def test_an_interrupted_map_leaves_the_older_one_and_nothing_else(store, tmp_path, monkeypatch, stop):
    out = tmp_path / "c.tif"
    anysat.classify(store, points(), "crop", out)
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    with pytest.raises(OutputExistsError, match="give another name"):
        anysat.classify(store, points(), "crop", out)

    def fail(*_, **__):
        raise stop

    monkeypatch.setattr("anysat.geo.stores.store.checksum", fail)  # called for every shard that was written
    with pytest.raises((KeyboardInterrupt, AnySatError)) as caught:
        anysat.classify(store, points().iloc[::-1], "crop", out, overwrite=True)
    assert "kept" not in str(caught.value)
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before


def test_the_commands_write_what_they_say(store, tmp_path, capsys):
    points().to_file(tmp_path / "p.gpkg")
    words = ["classify", store, tmp_path / "p.gpkg", "--column=crop"]
    for suffix in (".zarr", ".gpkg", ".tif"):
        assert main([*map(str, words), f"--out={tmp_path / 'c'}{suffix}", "--overwrite=true"]) == 0
    told = capsys.readouterr().out
    assert "patch of a.zarr: 10 samples of 'crop' at 10 points or polygons: maize 5, wheat 5" in told
    assert "most frequent mistakes, in samples: none" in told
    assert all(f"wrote {tmp_path / name}" in told for name in ("c.zarr", "c.tif", "c.gpkg", "c.png"))
    assert set(geopandas.read_file(tmp_path / "c.gpkg")["class_name"]) == set(CLASSES)
    with rasterio.open(tmp_path / "c.tif") as file:
        made = json.loads(file.tags()["ANYSAT"])["made_from"]
    assert (made["column"], made["store"], made["weights"]) == ("crop", "a.zarr", "abc")
    assert main(["catalog", "validate", str(tmp_path / "c.zarr")]) == 0
    capsys.readouterr()
    assert main(["similar", str(store), f"--to={tmp_path / 'p.gpkg'}", f"--out={tmp_path / 's.parquet'}"]) == 0
    told = capsys.readouterr().out
    assert f"similarity to {tmp_path / 'p.gpkg'} (10 places)" in told
    assert len(geopandas.read_parquet(tmp_path / "s.parquet")) == embeddings()[1].sum()


def test_the_scores_of_each_class_are_printed_and_lie_beside_the_map(store, tmp_path):
    labels = fields()
    labels.loc[labels.index[::4], "crop"] = "maize"  # some of them wrongly
    found = anysat.classify(store, labels, "crop", tmp_path / "c.tif", probabilities=True)
    scores, table = found.facts["scores"], pandas.read_csv(tmp_path / "c_scores.csv")
    assert tmp_path / "c_scores.csv" in found.files
    assert list(table["class"]) == list(CLASSES)
    for name in ("support", "precision", "recall", "f1"):
        np.testing.assert_allclose(table[name], scores["per_class"][name])
    np.testing.assert_array_equal(
        table[[*(f"predicted {name}" for name in CLASSES), "no prediction"]], scores["confusion"]
    )
    maize = table.iloc[0]
    line = f"  {'maize':18} {maize.support:8} {maize.precision:9.3f} {maize.recall:9.3f} {maize.f1:9.3f}"
    assert line in found.report.splitlines()


def test_a_map_without_scores_has_no_table_and_removes_an_older_one(store, tmp_path):
    anysat.classify(store, points(), "crop", tmp_path / "c.tif")
    with pytest.raises(OutputExistsError, match="c_scores.csv"):
        anysat.classify(store, points(), "crop", tmp_path / "c.parquet")
    found = anysat.classify(store, points(), "crop", tmp_path / "c.tif", block_km=100.0, overwrite=True)
    assert not (tmp_path / "c_scores.csv").exists()
    assert all(file.exists() for file in found.files)


def test_a_store_and_other_formats_are_written_at_once(store, tmp_path, capsys):
    points().to_file(tmp_path / "p.gpkg")
    words = ["classify", str(store), str(tmp_path / "p.gpkg"), "--column=crop", "--probabilities"]
    assert main([*words, f"--out={tmp_path / 'c.zarr'}", "--also=.tif,.gpkg"]) == 0
    told = capsys.readouterr().out
    names = {"c.zarr", "c.tif", "c.tif.aux.xml", "c_probability.tif", "c.gpkg", "c.png", "c_scores.csv"}
    assert {file.name for file in tmp_path.iterdir()} == names | {"p.gpkg"}
    assert all(f"wrote {tmp_path / name}" in told for name in names)
    alone = anysat.classify(store, points(), "crop", tmp_path / "alone.tif")
    np.testing.assert_array_equal(read(tmp_path / "c.tif"), read(alone.files[0]))
    anysat.similar(store, points(), tmp_path / "s.zarr", also=[".parquet"])
    assert len(geopandas.read_parquet(tmp_path / "s.parquet")) == embeddings()[1].sum()


def raster(path, numbers, *, gsd_m=20.0, crs=None, nodata=0):
    """A GeoTIFF of numbers (row col) or (band row col) on the ground of the store."""
    planes = np.atleast_3d(numbers.T).T
    write_tif(path, planes, geobox(planes.shape[1:], gsd_m, left=LEFT, crs=SOUTH), nodata=nodata)
    if crs is not None:
        with rasterio.open(path) as file, WarpedVRT(file, crs=crs) as warped:
            told, planes = warped.profile | {"driver": "GTiff"}, warped.read()
        with rasterio.open(path, "w", **told) as file:
            file.write(planes)
    return path


@pytest.mark.parametrize("options", [{}, {"gsd_m": 10.0}, {"crs": "EPSG:4326"}], ids=["same", "finer", "degrees"])
def test_a_raster_of_labels_is_mapped_right_and_by_its_own_numbers(store, tmp_path, options):
    labels = np.where(ground() == 1, 20, 10).astype(np.uint8)
    labels[:, 16:] = 0  # without label
    labels = np.kron(labels, np.ones((2, 2), np.uint8)) if "gsd_m" in options else labels
    path = raster(tmp_path / "labels.tif", labels, **options)
    found = anysat.classify(store, path, None, tmp_path / "c.tif")
    valid = embeddings()[1]
    np.testing.assert_array_equal(read(tmp_path / "c.tif"), np.where(valid, np.where(ground() == 1, 20, 10), 255))
    assert found.facts["classes"] == ["10", "20"]
    if "crs" not in options:
        assert found.facts["num_samples"] == valid[:, :16].sum()
        assert f"samples of '{path}' at {valid[:, :16].sum()} patches: 10 " in found.report


def test_of_a_large_raster_patches_are_drawn_evenly_over_classes(store, tmp_path, monkeypatch):
    monkeypatch.setattr("anysat.workflows.store_maps.labels.MOST", 60)
    labels = np.ones((SIDE, SIDE), np.uint8)
    labels[:2, :10] = 2
    found = anysat.classify(store, raster(tmp_path / "labels.tif", labels), None, tmp_path / "c.tif")
    assert "1 40, 2 20" in found.report
    assert f"60 of {embeddings()[1].sum()} labelled patches drawn, evenly over classes" in found.report


def test_a_raster_of_values_is_mapped(store, tmp_path):
    heights = np.where(ground() == 1, 7.5, 2.5).astype(np.float32)
    path = raster(tmp_path / "h.tif", heights, nodata=np.nan)
    anysat.classify(store, path, None, tmp_path / "c.tif", values=True)
    valid = embeddings()[1]
    assert np.abs(read(tmp_path / "c.tif") - heights)[valid].mean() < 0.5
    with pytest.raises(InputError, match=r"h.tif: expected classes: whole numbers, got [27].5; for a map of values"):
        anysat.classify(store, path, None, tmp_path / "d.tif")


def test_a_raster_gives_ground_in_several_stores_once(store, tmp_path):
    twice = write(tmp_path / "b.zarr")
    path = raster(tmp_path / "labels.tif", (ground() + 1).astype(np.uint8))
    found = anysat.classify([store, twice], path, None, tmp_path / "c.tif")
    assert found.facts["num_samples"] == embeddings()[1].sum()


def test_a_raster_elsewhere_or_of_several_bands_is_refused(store, tmp_path):
    path = raster(tmp_path / "labels.tif", np.zeros((SIDE, SIDE), np.uint8))
    with pytest.raises(InputError, match="labels on ground that a.zarr has seen, got none; check"):
        anysat.classify(store, path, None, tmp_path / "c.tif")
    raster(path, np.ones((2, SIDE, SIDE), np.uint8))
    with pytest.raises(AnySatError, match="it has 2 bands, expected one"):
        anysat.classify(store, path, None, tmp_path / "c.tif")
    with pytest.raises(MissingFileError, match="none.tif"):
        anysat.classify(store, tmp_path / "none.tif", None, tmp_path / "c.tif")
    assert not (tmp_path / "c.tif").exists()


@pytest.mark.parametrize("run", [
    lambda data, out: anysat.classify(data, points(), "crop", out),
    lambda data, out: anysat.similar([data], "4.35,50.85", out),
    lambda data, _: anysat.zonal(data, fields()),
], ids=["classify", "similar", "zonal"])  # fmt: skip
def test_embeddings_in_memory_are_refused_with_how_to_write_them(store, tmp_path, run):
    with pytest.raises(InputError, match=r"the path of a store, or several, got a Dataset; .*to_zarr"):
        run(xarray.open_zarr(store, group="patch", consolidated=False), tmp_path / "c.tif")


def test_a_map_that_is_a_file_is_refused_with_how_to_have_a_store(store, tmp_path, capsys):
    anysat.classify(store, points(), "crop", tmp_path / "c.tif")
    assert main(["zonal", str(tmp_path / "c.tif"), "f.gpkg", f"--out={tmp_path / 'z.csv'}"]) == 2
    assert "c.tif: it is a file, not a Zarr store; give the store that" in capsys.readouterr().err


@pytest.mark.parametrize(("words", "message"), [
    ("classify a.zarr --column c --out c.tif", "SAMPLES: expected a value, after one STORE or more"),
    ("classify a.zarr p.gpkg --out c.tif", "--column: expected the column of SAMPLES with the class, got None"),
    ("classify a.zarr p.tif --column c --out c.tif", "--column: expected null, because a raster has no columns"),
    ("classify a.zarr p.gpkg --column c --out c.csv", "--out: expected a name ending in .zarr, .tif, .parquet or .gpkg"),
    ("classify a.zarr p.gpkg --column c --out c.gpkg --values", "for values"),
    ("classify a.zarr p.gpkg --column c --out c.gpkg --probabilities", "--probabilities: expected false, because"),
    ("classify a.zarr p.gpkg --column c --out c.tif --also .gpkg", "--also: expected no value with --out c.tif"),
    ("classify a.zarr p.gpkg --column c --out c.zarr --also .gpkg --values", "--also"),
    ("similar a.zarr --to p.gpkg --out c.zarr --also .gpkg", "--also"),
    ("similar a.zarr --to p.gpkg --out c.gpkg", "--out: expected a name ending in .zarr, .tif or .parquet"),
    ("similar --to 1,2 --out c.tif", "STORE: expected a value"),
    ("similar a.zarr --out c.tif", "--to"),
    ("similar a.zarr --to 1,2 --out c.tif", "a.zarr: no such file"),
])  # fmt: skip
def test_mistakes_in_a_call_are_told(words, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(words.split()) == 2
    assert message in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
