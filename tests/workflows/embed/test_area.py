"""`anysat embed`, `plan` and `anysat.embed` on ground larger than a tile, from files to files."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import numpy as np
import pytest
import rasterio
import rasterio.shutil
import xarray

import anysat
from anysat.cli import main
from anysat.geo.stores.store import AreaStore
from anysat.modalities import MODALITIES as M
from geo_builders import LEFT, SOUTH, TOP, cube, geobox, write_nc, write_tif

S2_NAMES = M["s2"].band_names
ROWS, COLS = 46, 38
DATES = ["2020-01-03", "2020-03-30", "2020-06-30", "2020-09-11"]


def pixels(rows=ROWS, cols=COLS, dates=4, seed=0):
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:rows, :cols]
    waves = np.sin(x / 5 + y / 7 + np.arange(dates)[:, None, None, None] + np.arange(10)[:, None, None] / 3)
    values = 1500 + 900 * waves + rng.normal(0, 60, (dates, 10, rows, cols))
    values[:, :, 8:12, 20:26] = np.nan
    return values.astype(np.float32)


@pytest.fixture(scope="module")
def s2(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cube")
    return write_nc(folder / "s2.nc", cube(pixels(), geobox((ROWS, COLS)), DATES, S2_NAMES))


@pytest.fixture
def run(tmp_path, capsys):
    def call(*words, command="embed", out="out.zarr", patch_size_m=20):
        argv = [command, f"--patch-size-m={patch_size_m}", *words, "--weights=nano", "--statistics=from-data"]
        argv += [f"--out={tmp_path / out}"]
        status = main([str(word) for word in argv])
        said = capsys.readouterr()
        return status, said.out, said.err

    return call


def degrees(left, bottom, right, top):
    """Bounds in degrees of a box in the cube's reference system, drawn in a little."""
    from pyproj import Transformer

    to = Transformer.from_crs(SOUTH, "EPSG:4326", always_xy=True)
    west, south = to.transform(left, bottom)
    east, north = to.transform(right, top)
    return f"{west},{south},{east},{north}"


ALL = degrees(LEFT - 500, TOP - 900, LEFT + 900, TOP + 500)


def test_an_area_is_written_where_it_lies(run, s2, tmp_path):
    status, said, errors = run(f"s2={s2}", f"--area={ALL}")
    assert (status, errors) == (0, "")
    assert "seen: 431 of 437 patches" in said
    found = xarray.open_zarr(tmp_path / "out.zarr", group="patch")
    assert found.embedding.dims == ("time", "dim", "y", "x")
    assert found.embedding.shape == (1, 160, 23, 19)
    assert float(found.x[0]) == LEFT + 10
    assert float(found.y[0]) == TOP - 10
    assert int((~found.valid).sum()) == 6
    assert np.isnan(found.embedding.values[0, :, 4, 10]).all()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.png", "out.stac", "out.zarr"]


@pytest.mark.parametrize("words", [[], ["--readers=1"]], ids=["tile", "area"])
def test_weights_that_ship_have_an_address_that_is_the_same_everywhere(run, s2, tmp_path, words):
    status, _, err = run(f"s2={s2}", *words)
    assert status == 0, err
    told = json.loads((tmp_path / "out.zarr" / "patch" / "zarr.json").read_text())["attributes"]
    assert told["geoemb:model"] == "pkg:generic/anysat#model/weights/nano.safetensors"
    if words:
        model = json.loads((tmp_path / "out.stac" / "model.json").read_text())
        assert (model["assets"]["weights"]["href"], model["properties"]["mlm:name"]) == (told["geoemb:model"], "nano")
        assert main(["catalog", "validate", str(tmp_path / "out.zarr")]) == 0


def test_formats_hold_the_same(run, s2, tmp_path):
    import geopandas

    assert run(f"s2={s2}", f"--area={ALL}", "--also=.tif,.parquet", out="a.zarr")[0] == 0
    assert (tmp_path / "a.stac" / "catalog.json").exists()
    assert main(["catalog", "validate", str(tmp_path / "a.zarr"), str(tmp_path / "a.stac" / "catalog.json")]) == 0
    for out in ("b.tif", "c.parquet"):
        assert run(f"s2={s2}", f"--area={ALL}", out=out)[0] == 0
    with rasterio.open(tmp_path / "a.tif") as beside, rasterio.open(tmp_path / "b.tif") as alone:
        np.testing.assert_array_equal(beside.read(), alone.read())
    cube_of = xarray.open_zarr(tmp_path / "a.zarr", group="patch").embedding.values[0]
    with rasterio.open(tmp_path / "a.tif") as file:
        np.testing.assert_array_equal(file.read(), cube_of)
        assert file.transform.c == LEFT
        assert file.transform.f == TOP
    table = geopandas.read_parquet(tmp_path / "a.parquet")
    assert len(table) == 431
    bounds = table.geometry.iloc[0].bounds
    assert bounds == (LEFT, TOP - 20, LEFT + 20, TOP)
    np.testing.assert_array_equal(np.asarray(table.embedding.iloc[0]), cube_of[:, 0, 0])


def test_part_of_the_ground_has_the_same_patches(run, s2, tmp_path):
    run(f"s2={s2}", f"--area={ALL}", "--window=4", out="all.zarr")
    part = degrees(LEFT + 95, TOP - 215, LEFT + 225, TOP - 105)
    status, said, _ = run(f"s2={s2}", f"--area={part}", "--window=4", out="part.zarr")
    assert status == 0
    assert "(that of" in said
    one, all_of = (xarray.open_zarr(tmp_path / f"{name}.zarr", group="patch") for name in ("part", "all"))
    assert set(one.x.values) < set(all_of.x.values)
    assert set(one.y.values) < set(all_of.y.values)
    assert one.sizes["x"] in (8, 9)


def test_only_patches_that_touch_the_polygons_are_computed(run, s2, tmp_path):
    import geopandas
    from shapely.geometry import Polygon

    triangle = Polygon([(LEFT + 5, TOP - 5), (LEFT + 300, TOP - 5), (LEFT + 5, TOP - 300)])
    geopandas.GeoDataFrame(geometry=[triangle], crs=SOUTH).to_file(tmp_path / "area.gpkg")
    status, _, errors = run(f"s2={s2}", f"--area={tmp_path / 'area.gpkg'}")
    assert (status, errors) == (0, "")
    valid = xarray.open_zarr(tmp_path / "out.zarr", group="patch").valid.values[0]
    assert valid[0].all()
    assert valid[:, 0].all()
    assert not valid[-1, 2:].any()
    assert not valid[10, 10]


def test_each_month_gets_its_own_embedding(run, s2, tmp_path):
    status, said, _ = run(f"s2={s2}", "--period=season", "--dates=2020-01-01/2020-12-31")
    assert status == 0
    assert "in 5 periods" in said
    found = xarray.open_zarr(tmp_path / "out.zarr", group="patch")
    assert [str(day)[:10] for day in found.time.values] == [
        "2020-01-01", "2020-03-01", "2020-06-01", "2020-09-01", "2020-12-01"]  # fmt: skip
    assert found.valid.values[:4].any(axis=(1, 2)).all()
    assert not found.valid.values[4].any()


def test_ground_that_is_too_large_for_a_tile_is_an_area(run, tmp_path):
    rng = np.random.default_rng(0)
    values = rng.integers(100, 4000, (1, 10, 66, 130)).astype(np.float32)
    path = write_nc(tmp_path / "s2.nc", cube(values, geobox((66, 130)), DATES[:1], S2_NAMES))
    status, said, _ = run(f"s2={path}", patch_size_m=10)
    assert status == 0
    assert "seen: 8580 of 8580 patches, seam score" in said


def test_dense_embeddings_are_written_beside_patches(run, s2, tmp_path):
    run(f"s2={s2}", f"--area={ALL}", "--dense=s2", "--window=32")
    run(f"s2={s2}", "--dense=s2", out="tile.zarr")
    area, tile = (
        xarray.open_zarr(tmp_path / f"{name}.zarr", group="dense", consolidated=False) for name in ("out", "tile")
    )
    np.testing.assert_array_equal(area.valid.values[0], tile.valid.values)
    assert area.embedding.shape == (1, 320, ROWS, COLS)
    np.testing.assert_array_equal(area.x.values, tile.x.values)


@pytest.mark.parametrize(("store", "limit"), [("float16", 1e-3), ("int8-power", 0.02), ("int8-scale", 0.05)])
def test_smaller_numbers_lose_little_and_say_how_much(run, s2, tmp_path, store, limit):
    run(f"s2={s2}", f"--area={ALL}", out="whole.zarr")
    assert run(f"s2={s2}", f"--area={ALL}", f"--store={store}")[0] == 0
    kept = xarray.open_zarr(tmp_path / "out.zarr", group="patch").attrs["quantisation_loss"]
    assert 0 < kept["relative_l2"] < limit
    assert kept["vectors"] == 431


def test_cubes_in_python_are_embedded_as_files_are_and_stay_lazy(run, s2, tmp_path):
    run(f"s2={s2}", f"--area={ALL}")
    files = xarray.open_zarr(tmp_path / "out.zarr", group="patch")
    given = xarray.open_dataset(s2, decode_coords="all", chunks={"x": 16, "y": 16})
    lazy = anysat.embed({"s2": given}, 20, weights="nano", statistics="from-data", area=ALL, memory_gb=4)
    assert lazy.embedding.chunks is not None
    np.testing.assert_array_equal(lazy.embedding.values, files.embedding.values)
    np.testing.assert_array_equal(lazy.x.values, files.x.values)
    assert lazy.odc.geobox == files.odc.geobox
    eager = anysat.embed({"s2": given.compute()}, 20, weights="nano", statistics="from-data", area=ALL)
    np.testing.assert_array_equal(eager.embedding.values, files.embedding.values)


def test_a_model_given_to_embed_is_left_as_it_was(s2):
    model = anysat.load("nano")
    model.normaliser = None
    anysat.embed({"s2": xarray.open_dataset(s2, decode_coords="all")}, 20, weights=model)
    assert model.normaliser is None


def test_a_plan_writes_nothing_and_tells_what_will_be(run, s2, tmp_path):
    status, said, _ = run(f"s2={s2}", f"--area={ALL}", command="plan")
    assert status == 0
    for words in ("23 x 19 patches of 20 m", "windows: 4 of 16 x 16 patches", "to read:", "operations:", "time: about",
                  "memory: at most", "output:"):  # fmt: skip
        assert words in said
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("store", "size"), [("float32", "2.52 MB"), ("int8-power", "640 kB"), ("int8-scale", "631 kB")]
)
def test_a_plan_without_measuring_reads_no_pixel(run, s2, store, size, monkeypatch):
    monkeypatch.setattr("anysat.areas.job.Job.read", None)
    status, said, _ = run(f"s2={s2}", f"--area={ALL}", "--dense=s2", f"--store={store}", "--measure=false",
                          command="plan")  # fmt: skip
    assert status == 0
    assert f"output: {size} before compression" in said


def test_a_plan_counts_what_is_on_disk_only_while_running(run, s2):
    words = f"s2={s2}", f"--area={ALL}", "--measure=false"
    assert "; 280 kB more on disk while running" in run(*words, command="plan")[1]  # 437 patches of 160 numbers
    assert "; 1.4 MB more on disk while running" in run(*words, "--dense=s2", command="plan")[1]
    _, said, _ = run(*words, "--store=float16", "--also=.tif", command="plan")
    assert (
        "output: 140 kB before compression, and 373 kB of GeoTIFFs, if all of the ground holds data; 373 kB more on disk while running"
        in said
    )


def test_a_disk_that_may_be_too_small_is_told_of_before(run, s2, tmp_path, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=400_000))
    status, _, errors = run(f"s2={s2}", f"--area={ALL}")
    assert status == 0
    assert f"may need up to 0.00056 GB in {tmp_path} before compression, but 0.0004 GB are free" in errors


def test_other_inputs_are_not_mixed_into_an_unfinished_store(run, s2, tmp_path, monkeypatch):
    def stop(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("anysat.workflows.areas.run.run_here", stop)
    assert run(f"s2={s2}", f"--area={ALL}")[0] == 130
    monkeypatch.undo()
    assert (tmp_path / "out.zarr.partial").exists()
    assert not (tmp_path / "out.zarr").exists()
    status, _, said = run(f"s2={s2}", f"--area={ALL}", patch_size_m=40)
    assert status == 2
    assert "patch_size_m was 20" in said
    assert run(f"s2={s2}", f"--area={ALL}")[0] == 0


def test_figures_of_the_last_session_are_not_those_of_the_product(run, s2, tmp_path, monkeypatch):
    monkeypatch.setattr("anysat.areas.sizes.SHARDS", (8, 4, 2, 1))
    asked, written = (f"s2={s2}", f"--area={ALL}", "--window=8"), []

    def write(self, unit, *others):
        if len(written) == 2:
            raise KeyboardInterrupt
        written.append(unit)
        return kept(self, unit, *others)

    kept = AreaStore.write
    with monkeypatch.context() as patch:
        patch.setattr(AreaStore, "write", write)
        assert run(*asked)[0] == 130
    status, said, err = run(*asked)
    assert status == 0, err
    assert "continued: 2 of 9 shards were there" in said
    assert "km2/s" not in said
    assert "place corrections: measured on" in said
    item = json.loads((tmp_path / "out.stac" / "patch" / "item.json").read_text())
    assert not {"anysat:seconds", "emb:energy"} & item["properties"].keys()
    status, said, _ = run(*asked, "--overwrite")
    assert "km2/s" in said
    assert "anysat:seconds" in json.loads((tmp_path / "out.stac" / "patch" / "item.json").read_text())["properties"]


def test_a_finished_store_is_kept_unless_it_is_to_be_replaced(run, s2):
    run(f"s2={s2}", f"--area={ALL}")
    status, _, said = run(f"s2={s2}", f"--area={ALL}")
    assert status == 2
    assert "--overwrite" in said
    assert run(f"s2={s2}", f"--area={ALL}", "--overwrite")[0] == 0


def test_files_made_from_a_store_go_with_it_and_those_of_others_stay(run, s2, tmp_path):
    assert run(f"s2={s2}", f"--area={ALL}", "--also=.tif,.parquet")[0] == 0
    (tmp_path / "out_mine.tif").write_text("not of the store")
    status, said, _ = run(f"s2={s2}", f"--area={ALL}", "--overwrite", patch_size_m=40)
    assert status == 0
    left = ["out.png", "out.stac", "out.zarr", "out_mine.tif"]
    assert sorted(path.name for path in tmp_path.iterdir()) == left
    for name in ("out.tif", "out.parquet"):
        assert f"removed {tmp_path / name}, made from the store as it was before" in said


def killed(*_, **__):
    raise KeyboardInterrupt


@pytest.mark.parametrize("words", [["--also=.tif"], []], ids=["beside a store", "alone"])
def test_what_was_stopped_between_store_and_geotiff_goes_on_with_the_geotiff(run, s2, tmp_path, monkeypatch, words):
    asked, out = (f"s2={s2}", f"--area={ALL}", *words), "out.zarr" if words else "out.tif"
    assert run(*asked, out=out)[0] == 0
    before = (tmp_path / "out.tif").stat().st_size
    monkeypatch.setattr("anysat.workflows.areas.run.export", killed)
    assert run(*asked, "--overwrite", out=out, patch_size_m=40)[0] == 130
    monkeypatch.undo()
    status, said, err = run(*asked, out=out, patch_size_m=40)
    assert status == 0, err
    assert "computed by an earlier run" in said
    with rasterio.open(tmp_path / "out.tif") as file:
        assert file.res == (40, 40)
    assert (tmp_path / "out.tif").stat().st_size < before
    assert not list(tmp_path.glob(".*"))


def test_what_was_stopped_before_its_geotiff_is_not_gone_on_with_by_other_options(run, s2, tmp_path, monkeypatch):
    monkeypatch.setattr("anysat.workflows.areas.run.export", killed)
    assert run(f"s2={s2}", f"--area={ALL}", out="out.tif")[0] == 130
    monkeypatch.undo()
    status, _, err = run(f"s2={s2}", f"--area={ALL}", out="out.tif", patch_size_m=40)
    assert status == 2
    assert "patch_size_m was 20" in err
    assert run(f"s2={s2}", f"--area={ALL}", "--overwrite", out="out.tif", patch_size_m=40)[0] == 0


def test_a_file_that_cannot_be_read_is_named_and_left_out(run, tmp_path, monkeypatch):
    monkeypatch.setattr("anysat.areas.job.RETRY_AFTER_S", 0.0)
    folder = tmp_path / "s2"
    folder.mkdir()
    for number, date in enumerate(DATES[:2]):
        values = pixels(20, 24, 1, seed=number)[0]
        values[~np.isfinite(values)] = 1000
        write_tif(folder / f"{date}.tif", values, geobox((20, 24)), names=S2_NAMES)
    broken = folder / f"{DATES[1]}.tif"
    rasterio.shutil.copy(broken, tmp_path / "whole.tif", driver="COG")  # what says where pixels lie comes first
    content = (tmp_path / "whole.tif").read_bytes()
    broken.write_bytes(content[: len(content) // 2])
    status, said, errors = run(f"s2={folder}", f"--area={ALL}")
    assert (status, errors) == (1, "")
    assert f"{DATES[1]}.tif" in said
    assert "seen: 120 of 120 patches" in said  # by the other date


MISTAKES = [
    (["--area=4,50,5,51"], "area"),
    (["--area=170,10,-170,20"], "two areas"),
    (["--area=10,80,20,89"], "UTM"),
    (["--area=1,2,3"], "no such"),
    (["--dates=2020-05-01"], "FIRST/LAST"),
    (["--dates=2031-01-01/2031-12-31"], "2020-01-03"),
    (["--dates=2020-01-01/2020-12-31", "--period=fortnight"], "month, season, year"),
    (["--dates=2020-01-01/2020-12-31", "--store=int4"], "int8-power"),
    (["--dates=2020-01-01/2020-12-31", "--dense=s1"], "s2"),
    (["--dates=2020-01-01/2020-12-31", "--memory-gb=0.5"], "at least"),
    (["--dates=2020-01-01/2020-12-31", "--overlap=1"], "0 to less than 1"),
    (["--dates=2020-01-01/2020-12-31", "--patch-size-m=15"], "multiple"),
]


@pytest.mark.parametrize(("words", "told"), MISTAKES)
def test_a_mistake_has_one_clear_message(run, s2, tmp_path, words, told):
    status, said, errors = run(f"s2={s2}", *words)
    assert status == 2
    assert said == ""
    assert told in errors
    assert len(errors.strip().splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


def test_a_polygon_that_crosses_itself_is_refused(run, s2, tmp_path):
    import geopandas
    from shapely.geometry import Polygon

    bow = Polygon([(LEFT, TOP), (LEFT + 200, TOP - 200), (LEFT + 200, TOP), (LEFT, TOP - 200)])
    geopandas.GeoDataFrame(geometry=[bow], crs=SOUTH).to_file(tmp_path / "area.gpkg")
    status, _, errors = run(f"s2={s2}", f"--area={tmp_path / 'area.gpkg'}")
    assert status == 2
    assert "Self-intersection" in errors


def test_an_area_smaller_than_a_patch_is_one_patch(run, s2, tmp_path):
    inside = degrees(LEFT + 43, TOP - 57, LEFT + 47, TOP - 52)
    assert run(f"s2={s2}", f"--area={inside}", out="small.zarr")[0] == 0
    assert xarray.open_zarr(tmp_path / "small.zarr", group="patch").embedding.shape[2:] == (1, 1)


def _start(folder, s2, out):
    words = ["embed", f"s2={s2}", f"--out={folder / out}", "--patch-size-m=10", "--weights=nano", "--statistics=from-data",
             f"--area={ALL}", "--window=4", "--memory-gb=1.0"]  # fmt: skip
    return subprocess.Popen([sys.executable, "-m", "anysat.cli", *words], env=os.environ, stdout=subprocess.DEVNULL)


@pytest.mark.parametrize("kills", [2, pytest.param(20, marks=[pytest.mark.slow, pytest.mark.timeout(1500)])])
def test_an_area_that_is_killed_goes_on_to_the_same_bits(s2, tmp_path, kills):
    start = time.monotonic()
    assert _start(tmp_path, s2, "plain.zarr").wait(120) == 0
    took, rng = time.monotonic() - start, random.Random(kills)
    for _ in range(kills):
        process = _start(tmp_path, s2, "killed.zarr")
        time.sleep(took * rng.uniform(0.3, 0.98))
        process.send_signal(signal.SIGKILL)
        process.wait(30)
        if (tmp_path / "killed.zarr").exists():  # whole, or not there
            xarray.open_zarr(tmp_path / "killed.zarr", group="patch").embedding.values.sum()
            for name in ("zarr", "stac"):
                shutil.rmtree(tmp_path / f"killed.{name}", ignore_errors=True)
            (tmp_path / "killed.png").unlink(missing_ok=True)
    assert _start(tmp_path, s2, "killed.zarr").wait(120) == 0
    plain, killed = (xarray.open_zarr(tmp_path / f"{name}.zarr", group="patch") for name in ("plain", "killed"))
    np.testing.assert_array_equal(plain.embedding.values, killed.embedding.values)
    assert not (tmp_path / "killed.zarr.partial").exists()
