"""Tiles that are parcels: with `inside_only`, only pixels inside a tile's own polygon count."""

import geopandas
import numpy as np
import pytest
import shapely
import yaml

from anysat.data.open import open_dataset
from anysat.data.pack.write import pack_dataset
from anysat.data.work import fingerprint
from anysat.errors import RecordError, SourceError
from anysat.modalities import MODALITIES
from geo_builders import LEFT, SOUTH, TOP, geobox, write_tif
from own_builders import COVER, described, image

SQUARE = shapely.box(LEFT + 30, TOP - 50, LEFT + 50, TOP - 30)
"""Two by two pixels in the middle of the image and of the tile."""
SUFFIXES = [".gpkg", ".shp", ".geojson", ".parquet"]


def parcels(root, *shapes, suffix=".gpkg", crs=SOUTH, **content):
    """The dataset of parcels that lie in one image, whose tile is its middle."""
    image(root / "s2" / "t.tif")
    path, numbers = root / f"parcels{suffix}", range(1, len(shapes) + 1)
    frame = geopandas.GeoDataFrame({"parcel": numbers}, geometry=list(shapes), crs=SOUTH).to_crs(crs)
    frame.to_parquet(path) if suffix == ".parquet" else frame.to_file(path)
    given = {"inside_only": True, "columns": {"id": "parcel"}, "modalities": {"s2": {"path": "s2/t.tif"}}}
    return open_dataset(described(root, tiles=path.name, **given | content), root, "all")


def inside(dataset):
    """Which pixels of the first tile count, in all bands."""
    seen = dataset[0].observations["s2"]
    assert (seen.valid == seen.valid[:, :1]).all()
    assert (seen.values[~seen.valid] == 0).all()
    return seen.valid[0, 0]


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_pixels_outside_the_polygon_do_not_count(tmp_path, suffix):
    crs = "EPSG:4326" if suffix == ".geojson" else SOUTH
    dataset = parcels(tmp_path, SQUARE, suffix=suffix, crs=crs)
    expected = np.zeros((4, 4), bool)
    expected[1:3, 1:3] = True
    np.testing.assert_array_equal(inside(dataset), expected)


def test_without_the_key_the_whole_tile_counts(tmp_path):
    assert inside(parcels(tmp_path, SQUARE, inside_only=False)).all()


def test_a_pixel_counts_if_half_of_it_lies_inside(tmp_path):
    wide = shapely.box(LEFT + 30, TOP - 50, LEFT + 56, TOP - 26.5)
    assert inside(parcels(tmp_path, wide)).sum(0).tolist() == [0, 2, 2, 2]


def test_a_parcel_smaller_than_a_pixel_has_the_pixels_it_touches(tmp_path):
    assert inside(parcels(tmp_path, shapely.Point(LEFT + 40, TOP - 34).buffer(2))).sum() == 2


def test_labels_outside_the_polygon_are_none(tmp_path):
    """Of values, too."""
    rasters = {"cover": COVER, "height": {"path": "height/{id}.tif", "unit": "m", "gsd_m": 20}}
    for name in rasters:
        (tmp_path / name).mkdir()
        write_tif(tmp_path / name / "1.tif", np.ones((1, 2, 2), "uint8"), geobox((2, 2), 20.0, LEFT + 20, TOP - 20))
    left = shapely.box(LEFT + 20, TOP - 60, LEFT + 40, TOP - 20)
    targets = parcels(tmp_path, left, targets=rasters)[0].targets
    assert targets["cover"].tolist() == [[1, 255], [1, 255]]
    np.testing.assert_array_equal(targets["height"], [[1, np.nan], [1, np.nan]])


@pytest.mark.parametrize("shape", [None, shapely.Point(LEFT + 40, TOP - 40)])
def test_a_tile_without_a_polygon_is_refused(tmp_path, shape):
    suffix = ".geojson"  # may hold several kinds of geometries
    with pytest.raises(SourceError, match=r"parcels\.geojson: 1 tiles have no polygon, such as '2', and `inside_only`"):
        parcels(tmp_path, SQUARE, shape, suffix=suffix, crs="EPSG:4326")


def test_a_polygon_beside_its_tile_is_refused(tmp_path):
    beside = shapely.box(LEFT + 300, TOP - 50, LEFT + 350, TOP - 30)
    with pytest.raises(
        SourceError, match="the polygon of tile '1' does not touch the tile; check its place, or centre"
    ):
        parcels(tmp_path, beside)[0]


def test_polygons_need_a_table_that_holds_them(tmp_path):
    (tmp_path / "tiles.csv").write_text("id\nt\n")
    with pytest.raises(RecordError, match=r"inside_only.*a table of `tiles` with polygons \(\.geojson, \.json, \.gpkg"):
        open_dataset(described(tmp_path, tiles="tiles.csv", inside_only=True), tmp_path, "all")


def test_a_table_of_polygons_may_end_in_capitals(tmp_path):
    parcels(tmp_path, SQUARE, suffix=".parquet")
    (tmp_path / "parcels.parquet").rename(tmp_path / "parcels.PARQUET")
    content = yaml.safe_load((tmp_path / "mine.yaml").read_text()) | {"tiles": "parcels.PARQUET"}
    assert inside(open_dataset(described(tmp_path, **content), tmp_path, "all")).sum() == 4


@pytest.mark.parametrize("suffix", [".gpkg", ".parquet"])
def test_other_polygons_are_other_data(tmp_path, suffix):
    """Also with the same place: kept statistics, unfinished packs and finished folds are not taken for those of them."""
    first = parcels(tmp_path, SQUARE, suffix=suffix)
    assert fingerprint(first) == fingerprint(parcels(tmp_path, SQUARE, suffix=suffix))
    for other in ({"inside_only": False}, {}):
        shape = SQUARE if other else SQUARE.buffer(10, join_style="mitre")
        assert fingerprint(parcels(tmp_path, shape, suffix=suffix, **other)) != fingerprint(first)


def test_packed_parcels_are_refused_once_the_whole_tile_counts(tmp_path):
    out = pack_dataset(parcels(tmp_path, SQUARE), tmp_path / "packed")
    yaml_file = str(tmp_path / "mine.yaml")
    assert inside(open_dataset(yaml_file, out, "all")).sum() == 4
    content = yaml.safe_load((tmp_path / "mine.yaml").read_text()) | {"inside_only": False}
    with pytest.raises(SourceError, match="the record of mine has changed since it was packed: inside_only of"):
        open_dataset(described(tmp_path, **content), out, "all")


def test_parcels_in_a_chip_without_georeference_are_refused(tmp_path):
    """A polygon has no place in such a tile."""
    dataset = parcels(tmp_path, SQUARE, tile_m=80, modalities={"s2": {"path": "s2/t.tif@2020-06-01"}})
    write_tif(tmp_path / "s2" / "t.tif", np.ones((10, 8, 8), np.uint16), None, names=MODALITIES["s2"].band_names)
    with pytest.raises(SourceError, match="no file of tile '1' has a georeference, .*or leave `inside_only` out"):
        dataset[0]
