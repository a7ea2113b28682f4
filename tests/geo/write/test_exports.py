"""A finished store to COG and GeoParquet: the same values at the same place, in the tools others open them with."""

import json
import re
import subprocess
import sys
from pathlib import Path

import geopandas
import numpy as np
import pyarrow.parquet
import pytest
import rasterio
import shapely
import zarr
from rio_cogeo.cogeo import cog_validate

from anysat.errors import MissingFileError, OutputExistsError, RecordError, SourceError, UnknownNameError, WriteError
from anysat.geo.stores.layout import Layout
from anysat.geo.stores.quantise import from_power
from anysat.geo.stores.store import AreaStore, Unit
from anysat.geo.stores.stored import find_group, open_stored
from anysat.geo.validate import validate_store
from anysat.geo.write.exports import export, num_steps
from anysat.geo.write.maps import class_attributes, class_layer
from anysat.geo.write.outputs import OUTPUTS, Output, Result
from geo_builders import LEFT, SOUTH, TOP, geobox
from store_builders import DIM, GRID, NAMES, PERIODS, begin, class_layout, content, finished, patch_layout

FILES = ("a_2020-01-01.tif", "a_2020-07-01.tif")
KINDS = ("float32", "float16", "int8-power", "int8-scale")


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> Path:
    """A store with one group of each kind. Shared: never write into it."""
    layouts = [*(patch_layout(kind, name="patch" if kind == "float32" else kind) for kind in KINDS), class_layout()]
    layouts.append(Layout(name="probability", geobox=GRID, shard_px=4, chunk_px=2, dim=2, bands=NAMES,
                          variable="probability", variable_attributes={"units": "1"}))  # fmt: skip
    return finished(tmp_path_factory.mktemp("store") / "a.zarr", layouts, attributes={"version": "0"})


def test_a_cog_of_each_period_holds_the_vectors_at_their_place(tmp_path, store):
    done = []
    assert export(store, tmp_path / "a.tif", advance=done.append) == tuple(tmp_path / name for name in FILES)
    assert sum(done) == num_steps(store) == 12
    values, valid = content(patch_layout())
    for period, name in enumerate(FILES):
        assert cog_validate(tmp_path / name, strict=True, quiet=True)[0]
        with rasterio.open(tmp_path / name) as file:
            assert (file.crs, file.transform, file.shape) == (SOUTH, GRID.affine, GRID.shape)
            assert file.transform.e < 0
            assert np.isnan(file.nodata)
            assert file.descriptions == tuple(f"patch_{index}" for index in range(DIM))
            expected = np.where(valid[period][..., None], values[period], np.nan)
            assert np.array_equal(np.moveaxis(file.read(), 0, -1), expected, equal_nan=True)
            told = json.loads(file.tags()["ANYSAT"])
            assert (told["version"], told["period"][0]) == ("0", str(PERIODS[period][0]))
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(FILES)


def test_a_point_of_the_ground_has_its_vector_in_every_tool(tmp_path, store):
    """Sub-pixel: the middle of the patch in row 6, column 5 of the second period, computed by hand."""
    x, y, vector = LEFT + 5.5 * 20, TOP - 6.5 * 20, content(patch_layout())[0][1, 6, 5]
    assert content(patch_layout())[1][1, 6, 5]
    export(store, tmp_path / "a.tif")
    export(store, tmp_path / "a.parquet")
    with rasterio.open(tmp_path / FILES[1]) as file:
        assert np.array_equal(next(file.sample([(x, y)])), vector)
    table = geopandas.read_parquet(tmp_path / "a.parquet")
    here = table[table.contains(shapely.Point(x, y)) & (table["start_datetime"].dt.month == 7)]
    assert np.array_equal(np.stack(here["embedding"]), vector[None])
    assert here.geometry.iloc[0].equals(shapely.box(x - 10, y - 10, x + 10, y + 10))
    assert (here["patch_row"].iloc[0], here["patch_col"].iloc[0], here["tile_id"].iloc[0]) == (6, 5, "2020-07-01_1_1")


def test_codes_of_the_power_rule_come_with_their_lengths(tmp_path, store):
    export(store, tmp_path / "a.tif", group="int8-power")
    values, valid = content(patch_layout())
    with rasterio.open(tmp_path / FILES[0]) as codes, rasterio.open(tmp_path / "a_2020-01-01_norm.tif") as norms:
        assert (codes.dtypes[0], codes.nodata) == ("int8", -128)
        found = from_power(np.moveaxis(codes.read(), 0, -1), norms.read(1))
        assert np.allclose(found[valid[0]], values[0][valid[0]], atol=0.06)
        assert np.isnan(found[~valid[0]]).all()


def test_linear_codes_carry_their_steps(tmp_path, store):
    export(store, tmp_path / "a.tif", group="int8-scale")
    values, valid = content(patch_layout())
    with rasterio.open(tmp_path / FILES[0]) as file:
        found = np.moveaxis(file.read(), 0, -1) * np.array(file.scales)
        assert np.abs(found - values[0])[valid[0]].max() <= 0.51 * 4 / 127


def test_class_maps_have_a_palette_names_and_the_most_frequent_class_in_overviews(tmp_path):
    grid, colours = geobox((1100, 600)), np.array([[0.0, 1.0, 0.0], [0.0, 0.0, 1.0]])
    told = class_attributes(["tall grass", "water"], colours)
    layout = Layout(name="classes", geobox=grid, shard_px=512, kind="uint8", variable="class", variable_attributes=told)
    store = AreaStore.open(tmp_path / "a.zarr", [layout], PERIODS[:1], {})
    for unit in store.remaining():
        rows, cols = layout.shard_slices(unit.row, unit.col)
        shape = rows.stop - rows.start, cols.stop - cols.start
        values = (np.arange(shape[0])[:, None] % 2 > 0) | (np.arange(shape[1]) % 2 > 0)
        store.write(unit, {"classes": (values.astype(np.uint8), np.ones(shape, bool))})
    export(store.finish(), tmp_path / "a.tif")
    assert cog_validate(tmp_path / "a.tif", strict=True, quiet=True)[0]
    with rasterio.open(tmp_path / "a.tif") as file:
        assert file.colormap(1)[1] == (0, 0, 255, 255)
        assert file.descriptions == ("classes",)
        assert file.tags()["CLASS_0"] == "tall grass"
        assert file.nodata == 255
        assert file.overviews(1)
        with rasterio.open(tmp_path / "a.tif", overview_level=0) as overview:
            assert (overview.read(1) == 1).all()
    assert "<Category>tall grass</Category>" in (tmp_path / "a.tif.aux.xml").read_text()


def test_named_bands_become_bands_and_columns(tmp_path, store):
    export(store, tmp_path / "a.tif", group="probability")
    export(store, tmp_path / "a.parquet", group="probability")
    with rasterio.open(tmp_path / FILES[0]) as file:
        assert (file.descriptions, file.units) == (NAMES, ("1", "1"))
    table = geopandas.read_parquet(tmp_path / "a.parquet")
    values, valid = content(Layout(name="x", geobox=GRID, shard_px=4, dim=2))
    assert len(table) == valid.sum()
    first = table.iloc[0]
    assert first["water"] == values[0, first["patch_row"], first["patch_col"], 1]


@pytest.mark.parametrize("kind", KINDS)
def test_a_table_has_a_row_per_patch_that_was_seen_and_a_row_group_per_shard(tmp_path, store, kind):
    export(store, tmp_path / "a.parquet", group="patch" if kind == "float32" else kind)
    file = pyarrow.parquet.ParquetFile(tmp_path / "a.parquet")
    _, valid = content(patch_layout())
    assert (file.metadata.num_rows, file.metadata.num_row_groups) == (valid.sum(), 10)  # 2 of 12 shards are empty
    listed = file.schema_arrow.field("embedding").type
    dtype = "int8" if kind.startswith("int8") else {"float32": "float", "float16": "halffloat"}[kind]
    assert (listed.list_size, str(listed.value_type)) == (DIM, dtype)
    assert ("norm" in file.schema_arrow.names) == (kind == "int8-power")
    geo = json.loads(file.schema_arrow.metadata[b"geo"])
    assert (geo["version"], geo["columns"]["geometry"]["encoding"]) == ("1.1.0", "WKB")


def test_readers_skip_by_the_bbox_column(tmp_path, store):
    export(store, tmp_path / "a.parquet")
    box = (LEFT + 101, TOP - 219, LEFT + 139, TOP - 161)  # two columns, three rows, in the south-eastern shard
    table = geopandas.read_parquet(tmp_path / "a.parquet", bbox=box)
    assert set(table["tile_id"]) == {"2020-01-01_2_1", "2020-07-01_2_1"}
    assert table.crs == SOUTH
    assert len(table) == content(patch_layout())[1][:, 8:11, 5:7].sum()


def test_points_are_the_middles_of_patches(tmp_path, store):
    export(store, tmp_path / "a.parquet", geometry="point")
    first = geopandas.read_parquet(tmp_path / "a.parquet").iloc[0]
    assert first.geometry == shapely.Point(LEFT + 20 * (first.patch_col + 0.5), TOP - 20 * (first.patch_row + 0.5))
    with pytest.raises(RecordError, match="expected polygon, because a.tif has pixels"):
        export(store, tmp_path / "a.tif", geometry="point")


def test_classes_are_named_in_a_table(tmp_path):
    told = class_attributes(NAMES, np.zeros((2, 3)))
    layout = Layout(
        name="classes", geobox=GRID, shard_px=4, chunk_px=2, kind="uint8", variable="class", variable_attributes=told
    )
    finished(tmp_path / "a.zarr", [layout])
    export(tmp_path / "a.zarr", tmp_path / "a.parquet")
    table = geopandas.read_parquet(tmp_path / "a.parquet")
    assert (table["class_name"] == np.array(NAMES)[table["class"]]).all()
    assert set(table["class"]) == {0, 1}


@pytest.mark.parametrize(
    ("names", "given", "codes", "dtype", "nodata"),
    [
        (("10", "20"), (), (10, 20), "uint8", 255),
        (("tall grass", "water"), (20, 10), (20, 10), "uint8", 255),
        (("0", "255"), (), (0, 255), "uint8", 254),
        (("111", "523"), (), (111, 523), "uint16", 65535),
        (("tall grass", "water"), (), (0, 1), "uint8", 255),
        (("-1", "3"), (), (0, 1), "uint8", 255),
        (("07", "8"), (), (0, 1), "uint8", 255),
        (("1", "3301010100"), (), (0, 1), "uint8", 255),
    ],
)
def test_class_maps_hold_the_codes_of_the_classes_in_every_format(tmp_path, names, given, codes, dtype, nodata):
    layer = class_layer(names, np.array([[0.0, 1.0, 0.0], [0.0, 0.0, 1.0]]), given)
    layout = Layout(name="class", geobox=GRID, shard_px=4, chunk_px=2, variable="class", **layer)
    (numbers, *_), (valid, *_) = content(class_layout())
    store = AreaStore.open(tmp_path / "a.zarr", [layout], PERIODS[:1], {})
    for unit in store.remaining():
        place = layout.shard_slices(unit.row, unit.col)
        store.write(unit, {"class": (numbers[place], valid[place])})
    path = store.finish()
    stored = zarr.open_array(path, path="class/class", mode="r")
    wanted = np.where(valid, np.array(codes)[numbers], nodata)
    np.testing.assert_array_equal(stored[0], wanted)
    assert (stored.dtype, stored.attrs["flag_values"], stored.attrs["_FillValue"]) == (dtype, list(codes), nodata)
    for out in ("a.tif", "a.parquet", "a.gpkg"):
        export(path, tmp_path / out)
    document = (tmp_path / "a.tif.aux.xml").read_text()
    with rasterio.open(tmp_path / "a.tif") as file:
        np.testing.assert_array_equal(file.read(1), wanted)
        assert (file.dtypes[0], file.nodata, file.tags()[f"CLASS_{codes[1]}"]) == (dtype, nodata, names[1])
        if dtype == "uint8":
            assert file.colormap(1)[codes[1]] == (0, 0, 255, 255)
            listed = re.findall("<Category>(.*?)</Category>", document)
            assert [listed[code] for code in codes] == list(names)
        else:
            assert f"<F>{codes[1]}</F><F>{names[1]}</F><F>0</F><F>0</F><F>255</F>" in document
    for table in (geopandas.read_parquet(tmp_path / "a.parquet"), geopandas.read_file(tmp_path / "a.gpkg")):
        assert set(zip(table["class"], table["class_name"], strict=True)) == set(zip(codes, names, strict=True))
    window = find_group(path).window(0, slice(4, 8), slice(4, 7))
    np.testing.assert_array_equal(window[0][window[1]], numbers[4:8, 4:7][valid[4:8, 4:7]])
    assert [one.level for one in validate_store(path) if one.check == "nodata"] == ["ok"]


def test_codes_turn_back_into_values(store):
    groups = open_stored(store)
    values, valid = content(patch_layout())
    seen, unit = valid[0, 8:11, 4:7], Unit(0, 2, 1)
    for kind, worst in (("patch", 0), ("float16", 2e-3), ("int8-power", 0.06), ("int8-scale", 0.02)):
        assert np.abs(groups[kind].values(unit) - values[0, 8:11, 4:7])[seen].max() <= worst
    assert groups["patch"].periods == tuple(PERIODS)


def test_what_cannot_be_exported_says_why(tmp_path, store):
    with pytest.raises(UnknownNameError, match=r"unknown output format '.shp'"):
        export(store, tmp_path / "a.shp")
    with pytest.raises(UnknownNameError, match=r"unknown group 'dense'"):
        export(store, tmp_path / "a.tif", group="dense")
    with pytest.raises(MissingFileError, match="b.zarr: no such file"):
        export(tmp_path / "b.zarr", tmp_path / "a.tif")
    begin(tmp_path / "b.zarr", [patch_layout()])
    with pytest.raises(SourceError, match="it is unfinished"):
        export(tmp_path / "b.zarr", tmp_path / "a.tif")
    (tmp_path / "a.parquet").write_text("old")
    with pytest.raises(OutputExistsError, match="a.parquet exists"):
        export(store, tmp_path / "a.parquet")
    export(store, tmp_path / "a.parquet", overwrite=True)


def test_a_strangers_format_may_hold_other_areas_than_class_maps(tmp_path, store, monkeypatch):
    new = Output(title="Same", media_type="image/tiff", writers={Result.AREA: "anysat.geo.write.exports:CogExport"})
    monkeypatch.setitem(OUTPUTS, ".cog", new)
    assert export(store, tmp_path / "a.cog") == (tmp_path / "a_2020-01-01.cog", tmp_path / "a_2020-07-01.cog")


@pytest.mark.parametrize("name", ["a.tif", "a.parquet"])
def test_a_disk_that_fills_up_leaves_nothing(tmp_path, name):
    """A limit on the size of files, as the system enforces it: GDAL would be silent."""
    layout = Layout(name="patch", geobox=geobox((64, 64)), shard_px=64, dim=64)
    store = AreaStore.open(tmp_path / "a.zarr", [layout], PERIODS[:1], {})
    values = np.random.default_rng(0).standard_normal((64, 64, 64), dtype=np.float32)
    store.write(Unit(0, 0, 0), {"patch": (values, np.ones((64, 64), bool))})
    store.finish()
    script = (
        "import resource, sys; from pathlib import Path; from anysat.geo.write.exports import export; from anysat.errors import WriteError\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[3]), resource.RLIM_INFINITY))\n"
        "try: export(Path(sys.argv[1]), Path(sys.argv[2]))\n"
        "except WriteError as error: print('refused', error); sys.exit(3)\n"
    )
    for limit in (100_000, 900_000):
        words = [sys.executable, "-c", script, str(tmp_path / "a.zarr"), str(tmp_path / name), str(limit)]
        done = subprocess.run(words, capture_output=True, text=True, check=False)
        assert (done.returncode, "could not be written" in done.stdout) == (3, True), done.stderr[-500:]
        assert [path.name for path in tmp_path.iterdir()] == ["a.zarr"]


def test_a_tile_store_is_read_by_the_same_reader(tmp_path):
    group = find_group(finished(tmp_path / "a.zarr"))
    assert (group.name, group.dim, group.bands, group.is_embedding) == ("patch", DIM, (), True)


def test_a_geotiff_that_cannot_be_read_again_is_not_delivered(tmp_path, store, monkeypatch):
    import rasterio.shutil

    copy = rasterio.shutil.copy

    def cut_short(source, target, **options):
        copy(source, target, **options)
        target.write_bytes(target.read_bytes()[:-400])

    monkeypatch.setattr(rasterio.shutil, "copy", cut_short)
    with pytest.raises(WriteError, match="could not be written"):
        export(store, tmp_path / "a.tif")
    assert not list(tmp_path.iterdir())
