"""What a store holds within polygons: exact shares of pixels, means and classes as a slow sum over pixels has them."""

import json
import warnings

import geopandas
import numpy as np
import pyarrow.parquet
import pytest
import shapely

import anysat
from anysat.cli import main
from anysat.errors import InputError, SourceError, UnknownNameError
from anysat.geo.coverage import cover
from anysat.geo.stores.layout import Layout
from anysat.geo.write.maps import class_attributes
from geo_builders import LEFT, SOUTH, TOP
from store_builders import DIM, GRID, NAMES, PERIODS, content, finished, patch_layout

KINDS = ("float32", "float16", "int8-power", "int8-scale")
WORST = {"float32": 1e-6, "float16": 2e-3, "int8-power": 0.06, "int8-scale": 0.02}
EMBEDDING = [f"e{number}" for number in range(DIM)]


def star(x: float, y: float, inner: float, outer: float, seed: int = 0) -> shapely.Polygon:
    """A jagged outline, with edges shorter and longer than a pixel, and a hole."""
    angles, rng = np.linspace(0, 2 * np.pi, 60, endpoint=False), np.random.default_rng(seed)
    lengths = rng.uniform(inner, outer, len(angles))
    outline = shapely.Polygon(np.stack([x + lengths * np.cos(angles), y + lengths * np.sin(angles)], 1))
    return outline.difference(shapely.Point(x, y).buffer(inner / 2))


def fields() -> geopandas.GeoDataFrame:
    """In the grid: one over all shards, two apart as one, one smaller than a patch, one half outside, one outside."""
    shapes = [
        star(LEFT + 70, TOP - 110, 30, 65),
        shapely.MultiPolygon(
            [shapely.box(LEFT + 85, TOP - 55, LEFT + 133, TOP - 3), star(LEFT + 40, TOP - 180, 10, 30)]
        ),
        shapely.box(LEFT + 102, TOP - 138, LEFT + 107, TOP - 131),
        shapely.box(LEFT + 100, TOP - 200, LEFT + 180, TOP - 100),
        shapely.box(LEFT + 1000, TOP - 200, LEFT + 1100, TOP - 100),
    ]
    return geopandas.GeoDataFrame({"crop": list("abcde"), "ha": np.arange(5.0)}, geometry=shapes, crs=SOUTH)


def shares(shape: shapely.Geometry) -> np.ndarray:
    """Of each pixel (row col) of the grid, one after the other."""
    found = np.zeros(tuple(GRID.shape))
    for row, col in np.ndindex(*GRID.shape):
        box = shapely.box(LEFT + 20 * col, TOP - 20 * (row + 1), LEFT + 20 * (col + 1), TOP - 20 * row)
        found[row, col] = shape.intersection(box).area / 400
    return found


def map_layout(name: str, **options) -> Layout:
    return Layout(name=name, geobox=GRID, shard_px=4, chunk_px=2, variable=name, **options)


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """A group of each kind. Shared: never write into it."""
    told = class_attributes(NAMES, np.zeros((2, 3)))
    layouts = [patch_layout(kind, name="patch" if kind == "float32" else kind) for kind in KINDS]
    layouts += [map_layout("class", kind="uint8", variable_attributes=told), map_layout("value"),
                map_layout("probability", dim=2, bands=NAMES)]  # fmt: skip
    return finished(tmp_path_factory.mktemp("store") / "a.zarr", layouts)


@pytest.mark.parametrize(("rows", "cols"), [(slice(0, 64), slice(0, 64)), (slice(13, 50), slice(20, 41))])
def test_shares_of_pixels_are_those_of_intersections(rows, cols):
    shapes = np.array([
        star(31.3, 30.7, 8, 30), star(31.3, 30.7, 8, 30).reverse(), shapely.box(-9, -9, 99, 99), shapely.Polygon(),
        shapely.MultiPolygon([shapely.box(1.25, 1.5, 3, 30), shapely.box(20, 10, 22.5, 99)]), shapely.box(9, 9, 30, 30),
        shapely.box(30.2, 30.4, 30.5, 30.8), shapely.box(70, 70, 80, 80),
    ])  # fmt: skip
    found = cover(shapes, rows, cols)
    row, col = np.indices((64, 64))
    pixels = shapely.box(col, row, col + 1, row + 1)
    for number, shape in enumerate(shapes):
        ours, chosen = np.zeros((64, 64)), found.shape == number
        np.add.at(ours, (found.row[chosen], found.col[chosen]), found.share[chosen])
        expected = np.zeros((64, 64))
        expected[rows, cols] = shapely.area(shapely.intersection(shape, pixels))[rows, cols]
        np.testing.assert_allclose(ours, expected, atol=1e-9)
        assert chosen.sum() == (expected > 1e-9).sum()  # each pixel once


@pytest.mark.parametrize("kind", KINDS)
def test_the_mean_of_a_polygon_is_that_of_its_pixels_by_their_shares(store, kind):
    table = anysat.zonal(store, fields(), group="patch" if kind == "float32" else kind)
    values, valid = content(patch_layout())
    for number, period in np.ndindex(4, 2):
        row = table[table["polygon"] == number].iloc[period]
        weights = shares(fields().geometry[number]) * valid[period]
        assert row["start_datetime"].date() == PERIODS[period][0]
        assert row["end_datetime"].date() == PERIODS[period][1]
        assert row["num_patches"] == (weights > 0).sum()
        assert row["seen_frac"] == pytest.approx(weights.sum() * 400 / fields().geometry[number].area)
        if weights.any():
            expected = np.average(values[period].reshape(-1, DIM), axis=0, weights=weights.ravel())
            np.testing.assert_allclose(row[EMBEDDING].astype(float), expected, atol=WORST[kind])


def test_shares_of_classes_are_of_what_was_seen_and_the_largest_is_the_majority(store):
    table = anysat.zonal(store, fields(), group="class")
    values, valid = content(map_layout("class", kind="uint8"))
    for number, period in np.ndindex(4, 2):
        row = table[table["polygon"] == number].iloc[period]
        weights = shares(fields().geometry[number]) * valid[period]
        if not weights.any():
            assert row["majority"] is None
            continue
        water = weights[values[period] == 1].sum() / weights.sum()
        assert row["water_frac"] == pytest.approx(water)
        assert row["grass_frac"] == pytest.approx(1 - water)
        assert row["majority"] == ("water" if water > 0.5 else "grass")


def test_values_and_probabilities_have_their_mean_under_their_name(store):
    values, valid = content(map_layout("value"))
    weights = shares(fields().geometry[0]) * valid[1]
    row = anysat.zonal(store, fields(), group="value").iloc[1]
    assert row["value"] == pytest.approx(np.average(values[1], weights=weights), rel=1e-5)
    values, valid = content(map_layout("probability", dim=2))
    weights = shares(fields().geometry[0]) * valid[1]
    row = anysat.zonal(store, fields(), group="probability").iloc[1]
    assert row["water"] == pytest.approx(np.average(values[1, ..., 1], weights=weights), rel=1e-5)


def test_a_polygon_outside_or_without_a_shape_has_a_row_with_nothing(store):
    given = fields()
    given.loc[2, "geometry"] = None
    for group, column in (("patch", "e3"), ("class", "majority"), ("class", "water_frac")):
        rows = anysat.zonal(store, given, group=group)
        rows = rows[rows["polygon"].isin([2, 4])]
        assert rows["crop"].tolist() == list("ccee")
        assert (rows["num_patches"] == 0).all()
        assert (rows["seen_frac"] == 0).all()
        assert rows[column].isna().all()


def test_polygons_in_degrees_lie_where_they_did(store):
    """A long edge that is straight in metres is not in degrees: its points are those of the straight one."""
    given = fields()
    found, expected = (anysat.zonal(store, one)[[*EMBEDDING, "seen_frac"]] for one in (given.to_crs(4326), given))
    np.testing.assert_allclose(found, expected, atol=1e-4)
    far = shapely.box(-170, -80, -60, 80)
    world = geopandas.GeoDataFrame({"name": ["far", "here"]}, geometry=[far, given.to_crs(4326).geometry[0]], crs=4326)
    assert (anysat.zonal(store, world)["seen_frac"] > 0).tolist() == [False, False, True, True]


def test_edges_of_a_district_in_degrees_are_straight_in_degrees():
    """Over 3 degrees a straight edge bends by kilometres in UTM."""
    from anysat.geo.parcels import place_parcels

    district = geopandas.GeoDataFrame(geometry=[shapely.box(36, -4.5, 39, -3.5)], crs=4326)
    placed = place_parcels(district, "a", GRID).shapes[0]
    expected = district.to_crs(SOUTH).geometry[0]
    assert len(shapely.get_coordinates(placed)) > 600
    assert abs(placed.area * 400 / expected.area - 1) > 1e-5


def test_what_is_not_valid_is_repaired_and_told_and_what_is_no_polygon_refused(store):
    bow = shapely.Polygon(
        [(LEFT + 90, TOP - 90), (LEFT + 130, TOP - 130), (LEFT + 130, TOP - 90), (LEFT + 90, TOP - 130)]
    )
    given = fields()
    given.loc[1, "geometry"] = bow
    with pytest.warns(UserWarning, match="1 polygons were not valid and have been repaired .*number 1: Self-inter"):
        found = anysat.zonal(store, given)
    mended = fields()
    mended.loc[1, "geometry"] = shapely.make_valid(bow)
    np.testing.assert_allclose(found[EMBEDDING], anysat.zonal(store, mended)[EMBEDDING])
    lines = geopandas.GeoDataFrame(geometry=[shapely.LineString([(LEFT, TOP), (LEFT + 90, TOP)])], crs=SOUTH)
    with pytest.raises(SourceError, match="it holds LineString; give polygons or points"):
        anysat.zonal(store, lines)
    with pytest.raises(SourceError, match="it holds no polygon"):
        anysat.zonal(store, fields().iloc[:0])
    with pytest.raises(SourceError, match="its polygons have no reference system"):
        anysat.zonal(store, fields().set_crs(None, allow_override=True))
    with pytest.raises(InputError, match="expected a geopandas GeoDataFrame, or a file, got list"):
        anysat.zonal(store, [1])
    with pytest.raises(InputError, match="columns of polygons: .* got E1, Polygon; rename them"):
        anysat.zonal(store, fields().rename(columns={"crop": "E1", "ha": "Polygon"}))
    with pytest.raises(UnknownNameError, match="unknown group 'dense'"):
        anysat.zonal(store, fields(), group="dense")


def test_a_point_takes_the_patch_in_which_it_lies_in_any_reference_system(store):
    values, valid = content(patch_layout())
    shapes = [shapely.Point(LEFT + 85, TOP - 131), shapely.MultiPoint([(LEFT + 85, TOP - 131), (LEFT + 105, TOP - 131)]),
              shapely.Point(LEFT + 85, TOP + 1), shapely.Point()]  # fmt: skip
    points = geopandas.GeoDataFrame(geometry=shapes, crs=SOUTH)
    assert valid[1, 6, 4:6].all()
    for given in (points, points.to_crs(4326)):
        rows = anysat.zonal(store, given).iloc[1::2]
        assert rows["num_patches"].tolist() == [1, 2, 0, 0]
        np.testing.assert_allclose(rows["seen_frac"], [1, 1, 0, 0])
        np.testing.assert_allclose(rows[EMBEDDING].iloc[0].astype(float), values[1, 6, 4], rtol=1e-6)
        np.testing.assert_allclose(rows[EMBEDDING].iloc[1].astype(float), values[1, 6, 4:6].mean(0), rtol=1e-5)


def test_many_polygons_over_each_other_are_summed_batch_by_batch(store, monkeypatch):
    given = geopandas.GeoDataFrame(geometry=[star(LEFT + 70, TOP - 110, 20, 60, seed) for seed in range(8)], crs=SOUTH)
    expected = anysat.zonal(store, given)
    monkeypatch.setattr("anysat.geo.zonal._BLOCK_VALUES", 50)
    found = anysat.zonal(store, given)
    np.testing.assert_allclose(found[EMBEDDING], expected[EMBEDDING], atol=1e-6)
    assert (found["num_patches"] == expected["num_patches"]).all()


def test_the_main_group_is_the_answer_and_not_what_is_told_beside_it(tmp_path):
    finished(tmp_path / "a.zarr", [map_layout("value"), map_layout("uncertainty")])
    assert "value" in anysat.zonal(tmp_path / "a.zarr", fields()).columns


def call(capsys, *words):
    status = main(["zonal", *map(str, words)])
    told = capsys.readouterr()
    return status, told.out, told.err


def test_the_command_tells_points_from_polygons(store, tmp_path, capsys):
    shapes = [shapely.Point(LEFT + 85, TOP - 131), fields().geometry[0]]
    for count, kinds in ((1, "1 points"), (2, "2 points and polygons")):
        geopandas.GeoDataFrame(geometry=shapes[:count], crs=SOUTH).to_file(tmp_path / f"{count}.gpkg")
        _, told, _ = call(capsys, store, tmp_path / f"{count}.gpkg", "--out", tmp_path / f"{count}.csv")
        assert f"patch of a.zarr: {kinds} in 2 periods" in told


@pytest.mark.parametrize("suffix", [".parquet", ".gpkg", ".csv"])
def test_the_command_writes_rows_with_the_columns_of_the_polygons(store, tmp_path, capsys, suffix):
    given, out = fields().assign(fid=7), tmp_path / f"rows{suffix}"
    given.to_crs(4326).to_file(tmp_path / "fields.geojson")
    words = (store, tmp_path / "fields.geojson", "--out", out)
    status, told, _ = call(capsys, *words, "--group=class")
    assert (status, f"wrote {out}" in told) == (0, True)
    assert "class of a.zarr: 5 polygons in 2 periods, of 10 rows 2 seen whole, 6 in part, 2 not" in told
    if suffix == ".csv":
        import pandas

        table = pandas.read_csv(out)
    else:
        table = geopandas.read_parquet(out) if suffix == ".parquet" else geopandas.read_file(out)
        assert table.crs == "EPSG:4326"  # polygons are as they were given
        assert table.geometry.iloc[0].equals(geopandas.read_file(tmp_path / "fields.geojson").geometry[0])
    assert list(table["crop"]) == [letter for letter in "abcde" for _ in range(2)]
    assert (table["fid"] == 7).all()
    assert table["majority"].dropna().isin(NAMES).all()
    assert table["majority"].isna().sum() == 2
    assert str(table["start_datetime"].iloc[1])[:10] == "2020-07-01"
    status, _, errors = call(capsys, *words)
    assert (status, f"{out} exists" in errors) == (2, True)
    assert call(capsys, *words, "--overwrite")[0] == 0


def test_a_table_tells_what_it_is_made_from_and_readers_skip_by_place(store, tmp_path, capsys):
    fields().to_parquet(tmp_path / "fields.parquet")
    assert call(capsys, store, tmp_path / "fields.parquet", f"--out={tmp_path / 'a.parquet'}")[0] == 0
    meta = pyarrow.parquet.read_schema(tmp_path / "a.parquet").metadata
    assert json.loads(meta[b"anysat"])["store"] == "a.zarr"
    assert json.loads(meta[b"geo"])["version"] == "1.1.0"
    east = geopandas.read_parquet(tmp_path / "a.parquet", bbox=(LEFT + 900, TOP - 300, LEFT + 1200, TOP))
    assert set(east["polygon"]) == {4}


def test_mistakes_in_a_call_are_told(store, tmp_path, capsys):
    fields().to_file(tmp_path / "f.gpkg")
    for words, message in (
        ([store, tmp_path / "f.gpkg", "--out=a.shp"], "--out: expected a name ending in .parquet, .gpkg or .csv"),
        ([store, tmp_path / "f.gpkg", f"--out={tmp_path / 'f.gpkg'}", "--overwrite"], "other than that of an input"),
        ([store, tmp_path / "g.gpkg", "--out=a.csv"], "g.gpkg: no such file or folder; expected a vector file"),
        ([store, __file__, "--out=a.csv"], "give GeoJSON, GeoPackage, Shapefile or GeoParquet\n"),
        ([tmp_path / "b.zarr", tmp_path / "f.gpkg", "--out=a.csv"], "b.zarr: no such file"),
        ([store, "--out=a.csv"], "POLYGONS: expected a value"),
    ):
        status, _, errors = call(capsys, *words)
        assert (status, message in errors) == (2, True), errors


def test_polygons_that_all_lie_elsewhere_are_told(store, tmp_path, capsys):
    fields().iloc[4:].to_file(tmp_path / "f.gpkg")
    with warnings.catch_warnings():
        status, told, _ = call(capsys, store, tmp_path / "f.gpkg", f"--out={tmp_path / 'a.csv'}")
    assert (status, "no polygon lies on ground that was seen: check the reference system" in told) == (0, True)
