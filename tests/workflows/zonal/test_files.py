"""Files of polygons as they are found, and tables of them: columns are kept, inputs too; mistakes are told at once."""

import json

import geopandas
import numpy as np
import pandas
import pytest
import shapely

from anysat.cli import main
from anysat.geo.stores.layout import Layout
from anysat.geo.write.maps import class_attributes
from geo_builders import LEFT, SOUTH, TOP
from store_builders import GRID, finished

SUFFIXES = [".parquet", ".gpkg", ".csv"]


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """Shared: never write into it."""
    return finished(tmp_path_factory.mktemp("store") / "a.zarr")


def fields(**columns):
    shapes = [shapely.box(LEFT + west, TOP - 120, LEFT + west + 40, TOP - 20) for west in (30, 90)]
    return geopandas.GeoDataFrame(columns, geometry=shapes, crs=SOUTH)


def summarised(store, given, out, *options):
    """Columns of what the command writes of a table that is given as GeoParquet."""
    given.to_parquet(out.with_name("given.parquet"))
    assert main(["zonal", str(store), str(out.with_name("given.parquet")), f"--out={out}", *options]) == 0
    read = {".csv": pandas.read_csv, ".parquet": geopandas.read_parquet, ".gpkg": geopandas.read_file}[out.suffix]
    return read(out)


def refused(capsys, *words):
    assert main(["zonal", *map(str, words)]) == 2
    return capsys.readouterr().err


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_an_index_that_has_a_name_is_a_column(store, tmp_path, suffix):
    given = fields(field_id=["x", "y"], year=[1, 2], crop=[3, 4])
    for number, index in enumerate(("field_id", ["field_id", "year"])):
        table = summarised(store, given.set_index(index), tmp_path / f"{number}{suffix}")
        assert list(table["field_id"]) == ["x", "x", "y", "y"]
        assert list(table["year"]) == [1, 1, 2, 2]


def test_a_file_that_a_layer_is_read_from_is_not_replaced(store, tmp_path, capsys):
    path = tmp_path / "a.gpkg"
    for layer in ("fields", "other"):
        fields(a=[1, 2]).to_file(path, layer=layer)
    assert "other than that of an input" in refused(
        capsys, store, f"{path}:fields", f"--out={path}", "--overwrite=true"
    )
    assert len(geopandas.list_layers(path)) == 2


@pytest.mark.filterwarnings("ignore:Non closed ring")  # of GDAL
@pytest.mark.parametrize("ring", [[[0, 0], [1, 0]], [[0, 0], [1, 0], [1, 1], [0, 1]]])
def test_a_ring_that_is_not_closed_is_told(store, tmp_path, capsys, ring):
    shape = {"type": "Polygon", "coordinates": [ring]}
    features = [{"type": "Feature", "properties": {}, "geometry": shape}]
    path = tmp_path / "a.geojson"
    path.write_text(json.dumps({"type": "FeatureCollection", "features": features}))
    errors = refused(capsys, store, path, f"--out={tmp_path / 'a.csv'}")
    assert "a.geojson: it cannot be read (IllegalArgumentException: Points of LinearRing do not form a closed" in errors


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_names_that_formats_use_themselves_are_free(store, tmp_path, suffix):
    columns = {"bbox": ["a", "b"], "geom": ["c", "d"], "fid": [5, 6], "row": [7, 8]}
    table = summarised(store, fields(**columns), tmp_path / f"rows{suffix}")
    for name, (first, second) in columns.items():
        assert list(table[name]) == [first, first, second, second]


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_second_geometry_is_kept_as_text_where_the_format_has_one(store, tmp_path, suffix):
    table = summarised(store, fields(centre=fields().centroid), tmp_path / f"rows{suffix}")
    point = table["centre"].iloc[2]
    assert (shapely.from_wkt(point) if isinstance(point, str) else point).equals(fields().centroid[1])


def test_columns_that_a_geopackage_cannot_hold_are_told_before_the_store_is_read(store, tmp_path, capsys):
    path = tmp_path / "given.parquet"
    for columns, message in (
        ({"ID": [1, 2], "id": [3, 4]}, "expected names that differ in more than case, for a GeoPackage, got ID, id"),
        (
            {"age": pandas.to_timedelta([1, 2], "D")},
            "expected types that a GeoPackage can hold, got field type is not supp",
        ),
    ):
        fields(**columns).to_parquet(path)
        errors = refused(capsys, store, path, f"--out={tmp_path / 'a.gpkg'}")
        assert f"columns of {path}: {message}" in errors
        assert "reading" not in errors
        assert main(["zonal", str(store), str(path), f"--out={tmp_path / 'a.csv'}", "--overwrite=true"]) == 0
        capsys.readouterr()


@pytest.mark.parametrize(("suffix", "is_refused"), [(".gpkg", True), (".csv", False)])
def test_classes_that_differ_only_in_case_are_not_lost_in_a_geopackage(tmp_path, capsys, suffix, is_refused):
    """Its columns have names without case; other formats keep both columns."""
    told = class_attributes(["Wheat", "wheat"], np.zeros((2, 3)))
    layout = Layout(name="class", geobox=GRID, shard_px=4, chunk_px=2, variable="class", kind="uint8",
                    variable_attributes=told)  # fmt: skip
    store, path, out = finished(tmp_path / "map.zarr", [layout]), tmp_path / "given.parquet", tmp_path / f"a{suffix}"
    fields().to_parquet(path)
    if is_refused:
        errors = refused(capsys, store, path, f"--out={out}")
        assert "names that differ in more than case, for a GeoPackage, got Wheat_frac, wheat_frac" in errors
        assert "reading" not in errors
    else:
        assert {"Wheat_frac", "wheat_frac"} <= set(summarised(store, fields(), out))


def test_mistakes_in_polygons_are_told_before_the_store_is_read(store, tmp_path, capsys):
    path, out = tmp_path / "a.parquet", f"--out={tmp_path / 'a.csv'}"
    for given, message in (
        (fields().set_crs(None, allow_override=True), "no reference system"),
        (fields(polygon=[1, 2]), "rename them"),
    ):
        given.to_parquet(path)
        errors = refused(capsys, store, path, out)
        assert message in errors
        assert "reading" not in errors
