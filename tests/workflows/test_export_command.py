"""`anysat export`: the files of other software from a finished store."""

import geopandas
import numpy as np
import pytest
import rasterio

from anysat.cli import main
from anysat.geo.stores.layout import Layout
from anysat.geo.stores.stored import find_group
from geo_builders import geobox
from store_builders import begin, facts


def stored(path):
    """A store of two periods."""
    layout = Layout(name="patch", geobox=geobox((12, 20), 20.0), shard_px=8, chunk_px=4, dim=3, attributes=facts(dim=3))
    store = begin(path, [layout])
    for unit in store.remaining():
        shape = [part.stop - part.start for part in layout.shard_slices(unit.row, unit.col)]
        values = np.random.default_rng(unit.period).random((*shape, 3), np.float32)
        store.write(unit, {"patch": (values, np.ones(shape, bool))})
    return store.finish({})


def test_a_store_is_exported_with_a_file_for_each_period(tmp_path, capsys):
    path = stored(tmp_path / "a.zarr")
    assert main(["export", str(path), f"--out={tmp_path / 'b.tif'}"]) == 0
    files = sorted(tmp_path.glob("b*.tif"))
    assert capsys.readouterr().out.splitlines() == ["patch of a.zarr", *(f"wrote {file}" for file in files)]
    group = find_group(path)
    for period, file in enumerate(files):
        with rasterio.open(file) as opened:
            np.testing.assert_array_equal(
                np.moveaxis(opened.read(), 0, -1), group.window(period, slice(0, 12), slice(0, 20))[0]
            )
    assert main(["export", str(path), f"--out={tmp_path / 'b.tif'}"]) == 2
    assert "exist" in capsys.readouterr().err


def test_rows_may_be_points(tmp_path):
    path = stored(tmp_path / "a.zarr")
    assert main(["export", str(path), f"--out={tmp_path / 'b.parquet'}", "--geometry=point"]) == 0
    assert set(geopandas.read_parquet(tmp_path / "b.parquet").geom_type) == {"Point"}


def test_the_stores_of_all_zones_are_exported(tmp_path):
    for zone in ("utm31n", "utm32n"):
        stored(tmp_path / f"a-{zone}.zarr")
    assert main(["export", str(tmp_path / "a.zarr"), f"--out={tmp_path / 'b.parquet'}"]) == 0
    assert {file.name for file in tmp_path.glob("b*")} == {"b-utm31n.parquet", "b-utm32n.parquet"}


@pytest.mark.parametrize(("words", "message"), [
    ("export none.zarr --out b.tif", "none.zarr: no such file or folder"),
    ("export a.zarr --out b.zarr", "--out: expected a name ending in .tif, .parquet or .gpkg"),
    ("export a.zarr --out b.csv", "--out: expected a name ending in .tif, .parquet or .gpkg"),
    ("export a.zarr --out b.gpkg", "a class map of a.zarr, because b.gpkg has polygons"),
    ("export a.zarr --out b.tif --group dense", "unknown group 'dense'"),
    ("export a.zarr --out b.tif --geometry point", "polygon, because b.tif has pixels"),
])  # fmt: skip
def test_mistakes_are_told_and_nothing_is_left(words, message, tmp_path, monkeypatch, capsys):
    stored(tmp_path / "a.zarr")
    monkeypatch.chdir(tmp_path)
    assert main(words.split()) == 2
    assert message in capsys.readouterr().err
    assert [file.name for file in tmp_path.iterdir()] == ["a.zarr"]
