"""Polygons of a class map: the pixels of each class, at their place, and no others."""

import geopandas
import numpy as np
import pytest
import rasterio.features

from anysat.errors import RecordError, UnknownNameError
from anysat.geo.stores.layout import Layout
from anysat.geo.write.exports import export
from anysat.geo.write.maps import class_attributes
from geo_builders import SOUTH
from store_builders import GRID, NAMES, content, finished, patch_layout


@pytest.fixture
def layout() -> Layout:
    return Layout(name="classes", geobox=GRID, shard_px=4, chunk_px=2, kind="uint8", variable="class",
                  variable_attributes=class_attributes(NAMES, np.zeros((2, 3))))  # fmt: skip


def test_polygons_drawn_again_are_the_map(tmp_path, layout):
    store = finished(tmp_path / "a.zarr", [layout])
    done = []
    (out,) = export(store, tmp_path / "a.gpkg", advance=done.append)
    table = geopandas.read_file(out)
    assert (table.crs == SOUTH, sum(done)) == (True, 12)
    assert (table["class_name"] == np.array(NAMES)[table["class"]]).all()
    assert np.allclose(table["area_m2"], table.area)
    values, valid = content(layout)
    for period, month in enumerate((1, 7)):
        rows = table[table["start_datetime"].dt.month == month]
        drawn = rasterio.features.rasterize(
            zip(rows.geometry, rows["class"], strict=True),
            out_shape=GRID.shape,
            transform=GRID.affine,
            fill=255,
            dtype="uint8",
        )
        assert (drawn == np.where(valid[period], values[period], 255)).all()


def test_what_has_no_classes_has_no_polygons(tmp_path):
    store = finished(tmp_path / "a.zarr", [patch_layout()])
    with pytest.raises(RecordError, match="a class map of a.zarr, because a.gpkg has polygons"):
        export(store, tmp_path / "a.gpkg")
    with pytest.raises(UnknownNameError, match=r"unknown output format '.shp'"):
        export(store, tmp_path / "a.shp")
