"""Tables of a user's own tiles: columns, places and properties are taken as they are, or refused by file and feature."""

import json

import pytest

from anysat.data.open import find_dataset, open_dataset
from anysat.data.own.tables import read_table
from anysat.errors import RecordError, SourceError, UnknownNameError
from own_builders import described, image, tabled


def _geojson(path, *features, **content):
    path.write_text(json.dumps({"type": "FeatureCollection", "features": list(features), **content}))
    return path


def _point(name="t0", **properties):
    geometry = {"type": "Point", "coordinates": [10.0, 50.0]}
    return {"type": "Feature", "properties": {"id": name, **properties}, "geometry": geometry}


def test_a_header_that_comes_twice_is_refused(tmp_path):
    with pytest.raises(SourceError, match=r"tiles\.csv: the header has 'crop' twice"):
        tabled(tmp_path, "id,crop,crop\nt0,rye,oat\n")


def test_spaces_around_the_names_of_a_header_do_not_count(tmp_path):
    """They come from commas with a space behind them."""
    dataset = tabled(tmp_path, "id, crop ,split\nt0, rye,train\n", targets={"crop": {"column": "crop"}})
    assert (dataset.ids, dataset.record.target("crop").classes) == (["t0"], ("rye",))
    with pytest.raises(SourceError, match=r"tiles\.csv: the header has 'crop' twice"):
        tabled(tmp_path, "id,crop, crop\nt0,rye,oat\n")


def test_columns_without_a_name_may_be_many(tmp_path):
    """Spreadsheets leave commas at the end of rows."""
    assert tabled(tmp_path, "id,crop,,\nt0,rye,,\n").ids == ["t0"]


def test_longitude_and_latitude_keep_their_names_beside_lon_and_lat(tmp_path):
    (tmp_path / "tiles.csv").write_text("id,longitude,latitude\nt0,10.5,50\n")
    row = {"id": "t0", "longitude": "10.5", "latitude": "50", "lon": "10.5", "lat": "50"}
    assert read_table(tmp_path / "tiles.csv") == [row]


def test_a_path_and_a_target_may_name_longitude_and_latitude(tmp_path):
    image(tmp_path / "s2" / "10.tif")
    dataset = tabled(
        tmp_path, "id,longitude,latitude\nt0,10,50\n", targets={"north": {"column": "latitude", "unit": "deg"}},
        modalities={"s2": {"path": "s2/{longitude}.tif"}},
    )  # fmt: skip
    assert float(dataset[0].targets["north"]) == 50


@pytest.mark.parametrize("name", ["self", "name", "root"])
def test_a_column_may_have_any_name(tmp_path, name):
    from anysat.data.check import check_dataset

    assert tabled(tmp_path, f"id,{name}\nt0,1\n").samples.row(0)[name] == "1"
    assert check_dataset(str(tmp_path / "mine.yaml"), tmp_path).num_read == 1


@pytest.mark.parametrize("value", [["beech", "oak"], {"first": "beech"}])
def test_a_property_that_is_a_list_is_no_class(tmp_path, value):
    path = _geojson(tmp_path / "tiles.geojson", _point(), _point("t1", crop=value))
    with pytest.raises(SourceError, match=r"tiles\.geojson: feature 2, id 't1', has a (list|dict) as 'crop'"):
        read_table(path, ["crop"])


def test_a_property_that_is_a_list_and_is_not_needed_is_left_alone(tmp_path):
    path = _geojson(tmp_path / "tiles.geojson", _point(tags=["a", "b"]))
    assert read_table(path, ["id"])[0]["id"] == "t0"


def test_whole_numbers_with_and_without_a_point_are_one_class(tmp_path):
    path = _geojson(tmp_path / "tiles.geojson", _point(crop=1), _point("t1", crop=1.0), _point("t2", crop=1.5))
    assert [row["crop"] for row in read_table(path)] == ["1", "1", "1.5"]


@pytest.mark.parametrize(
    "geometry",
    [
        {"type": "Polygon", "coordinates": []},
        {"type": "Polygonn", "coordinates": [[1, 2]]},
        {"type": "Polygon", "coordinates": [[[1, 2], [3, 4]]]},
        {"type": "GeometryCollection", "geometries": []},
        {"type": "Point", "coordinates": ["a", "b"]},
        {"coordinates": [1, 2]},
        "POINT (1 2)",
    ],
)
def test_a_geometry_that_is_none_is_named_by_feature_and_id(tmp_path, geometry):
    path = _geojson(tmp_path / "tiles.geojson", _point(), _point("t1") | {"geometry": geometry})
    with pytest.raises(SourceError, match=r"tiles\.geojson: feature 2, id 't1', has no place"):
        read_table(path)


@pytest.mark.parametrize("feature", [None, "t1", {"type": "Feature", "properties": ["t1"]}])
def test_a_feature_that_is_none_is_named(tmp_path, feature):
    path = _geojson(tmp_path / "tiles.geojson", _point(), feature)
    with pytest.raises(SourceError, match=r"tiles\.geojson: feature 2 is not a GeoJSON feature"):
        read_table(path)


@pytest.mark.parametrize("crs", ["EPSG:4326", {"type": "name", "properties": None}, None])
def test_a_reference_system_written_in_another_way_is_taken(tmp_path, crs):
    assert read_table(_geojson(tmp_path / "tiles.geojson", _point(), crs=crs))[0]["lon"] == "10"


@pytest.mark.parametrize("crs", ["EPSG:32632", ["EPSG:4326"], {"type": "link", "properties": "x"}])
def test_a_reference_system_that_is_not_in_degrees_or_unknown_is_refused(tmp_path, crs):
    with pytest.raises(SourceError, match=r"tiles\.geojson: its places are in"):
        read_table(_geojson(tmp_path / "tiles.geojson", _point(), crs=crs))


def _parquet(path, **columns):
    from pyarrow import parquet, table

    parquet.write_table(table(columns), path)


_LISTS = {"id": ["t0", "t1"], "labels": [["Pastures", "Arable land, irrigated"], ["Pastures"]], "split": ["train"] * 2}


@pytest.mark.parametrize("said", [{}, {"separator": "|"}, {"classes": ["Arable land, irrigated", "Pastures"]}])
def test_a_column_of_lists_is_several_labels(tmp_path, said):
    """As in the metadata.parquet of BigEarthNet v2."""
    image(tmp_path / "s2" / "t0.tif")
    image(tmp_path / "s2" / "t1.tif")
    _parquet(tmp_path / "tiles.parquet", **_LISTS)
    data = described(tmp_path, tiles="tiles.parquet", targets={"corine": {"column": "labels", **said}})
    dataset = open_dataset(data, tmp_path, "all")
    target = dataset.record.target("corine")
    assert (target.kind, target.classes) == ("labels", ("Arable land, irrigated", "Pastures"))
    assert [tile.targets["corine"].tolist() for tile in dataset] == [[1, 1], [0, 1]]


def test_a_property_of_lists_is_several_labels(tmp_path):
    image(tmp_path / "s2" / "t0.tif")
    _geojson(tmp_path / "tiles.geojson", _point(tags=["b", "a"]), _point("t1", tags="c"))
    data = described(tmp_path, tiles="tiles.geojson", targets={"tags": {"column": "tags"}})
    assert open_dataset(data, tmp_path, "all")[0].targets["tags"].tolist() == [1, 1, 0]


def test_a_label_that_contains_the_separator_asks_for_another(tmp_path):
    image(tmp_path / "s2" / "t0.tif")
    _parquet(tmp_path / "tiles.parquet", **_LISTS)
    said = {"column": "labels", "separator": ","}
    with pytest.raises(SourceError, match=r"row 1, id 't0', has the label 'Arable land, irrigated', .* separator ','"):
        open_dataset(described(tmp_path, tiles="tiles.parquet", targets={"corine": said}), tmp_path, "all")


def test_lists_of_a_table_in_the_data_folder_ask_for_a_separator(tmp_path):
    image(tmp_path / "data" / "s2" / "t0.tif")
    _parquet(tmp_path / "data" / "tiles.parquet", **_LISTS)
    said = {"column": "labels", "classes": ["Pastures"]}
    with pytest.raises(SourceError, match=r"row 1, id 't0', has a list as 'labels'.*give the target a `separator`"):
        open_dataset(described(tmp_path, tiles="tiles.parquet", targets={"corine": said}), tmp_path / "data", "all")


def test_a_column_that_can_be_no_label_is_said_to_be_there(tmp_path):
    _parquet(tmp_path / "tiles.parquet", id=["t0"], crop=[{"name": "rye"}])
    with pytest.raises(SourceError, match=r"column 'crop' holds struct<name: string>"):
        find_dataset(described(tmp_path, tiles="tiles.parquet", targets={"crop": {"column": "crop"}}))


def test_a_number_for_no_label_has_no_effect_on_lists(tmp_path):
    _parquet(tmp_path / "tiles.parquet", **_LISTS)
    said = {"column": "labels", "ignore": -1}
    with pytest.raises(RecordError, match="ignore: expected no value"):
        find_dataset(described(tmp_path, tiles="tiles.parquet", targets={"corine": said}))


_SQUARES = [(4.0, 50.0), (4.5, 50.5)]


def _parcels(path, crs="EPSG:32631", **columns):
    """Squares of 40 m around two places in degrees, and a third row without a geometry."""
    import geopandas
    import shapely

    places = geopandas.GeoSeries([shapely.Point(place) for place in _SQUARES], crs="EPSG:4326")
    squares = [*places.to_crs("EPSG:32631").buffer(20, cap_style="square"), None]
    frame = geopandas.GeoDataFrame(columns, geometry=geopandas.GeoSeries(squares, crs="EPSG:32631"))
    frame.to_crs(crs).to_file(path)
    return path


@pytest.mark.parametrize("crs", ["EPSG:32631", "EPSG:4326"])
@pytest.mark.parametrize("suffix", [".gpkg", ".shp"])
def test_polygons_of_a_geopackage_or_shapefile_are_placed_at_their_centroid(tmp_path, suffix, crs):
    path = _parcels(tmp_path / f"parcels{suffix}", crs, parcel=[1, 2, 3], crop=["rye", None, "oat"])
    rows = read_table(path, ["id", "crop"], id_column="parcel")
    assert [(row["id"], row["parcel"], row["crop"]) for row in rows] == [
        ("1", "1", "rye"),
        ("2", "2", ""),
        ("3", "3", "oat"),
    ]
    found = [(float(row["lon"]), float(row["lat"])) for row in rows[:2]]
    assert found == [pytest.approx(place, abs=1e-6) for place in _SQUARES]
    assert (rows[2]["lon"], rows[2]["lat"]) == ("", "")


def test_empty_numbers_and_days_of_a_geopackage_are_written_as_in_a_csv(tmp_path):
    from datetime import date, datetime

    days = [datetime(2020, 6, 1), None, datetime(2020, 6, 2)]
    path = _parcels(tmp_path / "parcels.gpkg", id=["a", "b", "c"], yield_t=[3.0, None, 1.5], day=days)
    rows = read_table(path)
    assert [row["yield_t"] for row in rows] == ["3", "", "1.5"]
    assert [row["day"] for row in rows] == [str(date(2020, 6, 1)), "", str(date(2020, 6, 2))]


def test_a_layer_of_parcels_is_a_dataset(tmp_path):
    """With the id in a column of the user's own name, for the path and the classes, too."""
    image(tmp_path / "s2" / "p1.tif")
    _parcels(tmp_path / "parcels.gpkg", parcel=["p1", "p2", "p3"], id=[7, 8, 9], crop=["rye", "oat", "rye"])
    targets = {"crop": {"column": "crop"}}
    data = described(tmp_path, tiles="parcels.gpkg", columns={"id": "parcel"}, targets=targets)
    dataset = open_dataset(data, tmp_path, "all")
    assert (dataset.ids, dataset.labels().tolist()) == (["p1", "p2", "p3"], [1, 0, 1])


def test_polygons_without_a_reference_system_are_refused(tmp_path):
    path = _parcels(tmp_path / "parcels.shp", id=[1, 2, 3])
    path.with_suffix(".prj").unlink()
    with pytest.raises(SourceError, match=r"parcels\.shp: its polygons have no reference system"):
        read_table(path)


def test_a_geopackage_of_several_layers_is_refused(tmp_path):
    import geopandas

    path = _parcels(tmp_path / "parcels.gpkg", id=[1, 2, 3])
    geopandas.read_file(path).to_file(path, layer="north")
    with pytest.raises(SourceError, match="it has several layers with geometries: parcels, north; save the layer of"):
        read_table(path)


def test_a_table_without_ids_says_how_to_name_their_column(tmp_path):
    with pytest.raises(UnknownNameError, match=r"'id'; .*parcel.* `columns: \{id: NAME\}`"):
        tabled(tmp_path, "parcel,crop\nt0,rye\n")
    with pytest.raises(UnknownNameError, match=r"'plot'; .*parcel"):
        tabled(tmp_path, "parcel,crop\nt0,rye\n", columns={"id": "plot"})
    assert tabled(tmp_path, "parcel,id\nt0,7\n", columns={"id": "parcel"}).ids == ["t0"]


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ({"columns": {"id": "parcel"}}, "columns: expected no value, because there is no table"),
        ({"columns": {"date": "day"}, "tiles": "t.csv"}, "unknown key of .*columns 'date'"),
        (
            {"columns": {"id": "parcel"}, "tiles": "t.csv", "targets": {"a": {"column": "id", "classes": ["b"]}}},
            "targets.a, column: expected a column with another name, because `id` is the name of a tile, from column 'parcel'",
        ),
    ],
)
def test_a_column_of_ids_without_effect_is_refused(tmp_path, content, told):
    with pytest.raises((RecordError, UnknownNameError), match=told):
        find_dataset(described(tmp_path, **content))
