"""Polygons over several stores, as of an area in two zones: one table, in which ground counts by its area."""

import json
import re

import geopandas
import numpy as np
import pyarrow.parquet
import pytest
import shapely
from pyproj import Transformer

import anysat
from anysat.cli import main
from anysat.errors import InputError, MissingFileError
from anysat.geo.overlap import seen_before
from anysat.geo.stores.stored import find_group
from geo_builders import geobox
from store_builders import DIM, MADE_FROM, PERIODS, begin, patch_layout

LAT, SIDE_M = 45.0, 240.0


def grid(zone, shift_m=0.0):
    """Twelve patches a side that end, or begin, at 6 degrees east."""
    crs = f"EPSG:326{zone}"
    x, y = Transformer.from_crs(4326, crs, always_xy=True).transform(6.0, LAT)
    left = x - (SIDE_M if zone == 31 else 0) + shift_m
    return geobox((12, 12), 20.0, left=round(left), top=round(y + SIDE_M / 2), crs=crs)


def write(path, zone, shift_m=0.0, **options):
    """A store of which all was seen, and all values are the number of its zone."""
    layout = patch_layout(grid=grid(zone, shift_m))
    store = begin(path, [layout], **options)
    for unit in store.remaining():
        rows, cols = (part.stop - part.start for part in layout.shard_slices(unit.row, unit.col))
        values = np.full((rows, cols, DIM), zone, np.float32)
        store.write(unit, {"patch": (values, np.ones((rows, cols), bool))}, {"seconds": 1.0})
    return store.finish({})


@pytest.fixture(scope="module")
def area(tmp_path_factory):
    """The name of an area of two zones. Shared: never write into it."""
    name = tmp_path_factory.mktemp("area") / "a.zarr"
    for zone in (31, 32):
        write(name.with_name(f"a-utm{zone}n.zarr"), zone)
    return name


def stores(area):
    return sorted(area.parent.glob("*.zarr"))


def fields():
    """A third of it in zone 31 and the rest in 32; in 31 alone; in neither."""
    shapes = [shapely.box(6 + west, LAT - 5e-4, 6 + east, LAT + 5e-4)
              for west, east in ((-5e-4, 1e-3), (-2e-3, -1e-3), (0.1, 0.2))]  # fmt: skip
    return geopandas.GeoDataFrame({"crop": list("abc")}, geometry=shapes, crs=4326)


def test_a_polygon_over_two_zones_is_the_mean_of_both_by_area(area):
    parts = []
    for zone in (31, 32):
        placed = fields().segmentize(1e-4).to_crs(f"EPSG:326{zone}").geometry
        parts.append(placed.intersection(grid(zone).extent.geom).area.values / placed.area.values)
    west, east = np.array(parts)
    for given in (area, stores(area), stores(area)[::-1]):
        table = anysat.zonal(given, fields())
        assert list(table["crop"]) == list("aabbcc")
        first = table.iloc[0]
        assert first["seen_frac"] == pytest.approx(min(west[0] + east[0], 1), abs=1e-6)
        assert first["e0"] == pytest.approx((31 * west[0] + 32 * east[0]) / (west[0] + east[0]), rel=1e-6)
        assert 0.3 < west[0] < 0.37
        assert table["e3"].iloc[2] == 31
        assert table["seen_frac"].iloc[[2, 4]].tolist() == [pytest.approx(1), 0]


def test_ground_that_two_stores_show_counts_in_the_first_and_is_told(area, tmp_path):
    other = write(tmp_path / "b.zarr", 31, shift_m=-40.0)
    once = anysat.zonal(stores(area)[0], fields().iloc[1:])
    with pytest.warns(
        UserWarning, match="stores overlap: in 1 polygons or points, ground that several have seen counts"
    ):
        table = anysat.zonal([stores(area)[0], other], fields().iloc[1:])
    assert table["num_patches"].tolist() == once["num_patches"].tolist()
    assert (table["seen_frac"].iloc[0], table["e0"].iloc[0]) == (pytest.approx(1), 31)


def test_ground_of_two_zones_is_compared_in_metres_of_each(area, tmp_path):
    west, east = (find_group(path) for path in (stores(area)[0], write(tmp_path / "b.zarr", 32, shift_m=-100.0)))
    before = seen_before([west], east, 0, slice(0, 12), slice(0, 12))
    assert before.mean(0)[[0, 3, 6, 11]].tolist() == [1, 1, 0, 0]
    assert not seen_before([east], west, 0, slice(0, 12), slice(0, 6)).any()
    assert not seen_before([], west, 0, slice(0, 12), slice(0, 12)).any()


@pytest.mark.parametrize(("what", "options"), [
    ("weights", {"made_from": {**MADE_FROM, "weights": {"digest": "xyz"}}}),
    ("statistics", {"made_from": {**MADE_FROM, "statistics": {"digest": "xyz"}}}),
])  # fmt: skip
def test_stores_that_do_not_compare_are_refused(area, tmp_path, what, options):
    other = write(tmp_path / "b.zarr", 32, **options)
    with pytest.raises(InputError, match=f"{what} of b.zarr: expected the same as in a-utm31n.zarr .*, got xyz"):
        anysat.zonal([stores(area)[0], other], fields())


def test_the_command_takes_the_name_of_the_area_or_all_its_stores(area, tmp_path, capsys):
    fields().to_file(tmp_path / "f.gpkg")
    for number, given in enumerate(([area], stores(area))):
        out = tmp_path / f"{number}.parquet"
        assert main(["zonal", *map(str, given), str(tmp_path / "f.gpkg"), f"--out={out}"]) == 0
        told = capsys.readouterr().out
        assert "patch of a-utm31n.zarr, a-utm32n.zarr: 3 polygons in 2 periods, of 6 rows" in told
        meta = json.loads(pyarrow.parquet.read_schema(out).metadata[b"anysat"])
        assert list(meta["stores"]) == ["a-utm31n.zarr", "a-utm32n.zarr"]
    tables = [geopandas.read_parquet(tmp_path / f"{number}.parquet") for number in (0, 1)]
    assert tables[0].equals(tables[1])
    assert len(PERIODS) == 2


def test_a_zone_that_is_unfinished_is_told(tmp_path, capsys):
    write(tmp_path / "a-utm31n.zarr", 31)
    begin(tmp_path / "a-utm32n.zarr", [patch_layout(grid=grid(32))])
    fields().to_file(tmp_path / "f.gpkg")
    assert main(["zonal", str(tmp_path / "a.zarr"), str(tmp_path / "f.gpkg"), f"--out={tmp_path / 'a.csv'}"]) == 2
    assert "a-utm32n.zarr: it is unfinished" in capsys.readouterr().err


def test_no_store_and_a_name_of_none_are_told(tmp_path):
    for none in ([], None):
        with pytest.raises(InputError, match=r"store: expected the path of a store, or several, got \[\]"):
            anysat.zonal(none, None)
    for name in ("area", "area[1].zarr"):
        with pytest.raises(MissingFileError, match=f"{re.escape(name)}: no such file or folder; expected a store"):
            anysat.zonal(tmp_path / name, None)
