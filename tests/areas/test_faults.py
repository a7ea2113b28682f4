"""What goes wrong on the way to an area: nothing is mixed, nothing is lost, and one message says what it was."""

import dataclasses
import datetime
import warnings

import geopandas
import numpy as np
import pystac
import pytest
import torch
import xarray
from shapely.geometry import box

import anysat
from anysat.areas.job import Read
from anysat.areas.maps import MapJob
from anysat.areas.run import run_here, run_on
from anysat.areas.sample import measure_places, sample_reads, sample_vectors, seek
from anysat.areas.units import UnitFiles
from anysat.areas.windows import Windowing
from anysat.batch import Tile
from anysat.cli import main
from anysat.errors import InputError, SourceError
from anysat.geo.stores.stored import provenance_of
from anysat.modalities import MODALITIES as M
from anysat.tasks.predictor import load_task
from anysat.workflows.areas.inputs import AreaInputs
from anysat.workflows.plan import area as plan_area
from anysat.workflows.plan.held import look_around
from area_builders import CROPS, HEIGHT, PERIOD, area, arrays_of, job, predictor, small_model, store_of, waves
from area_builders import LEFT as WAVES_LEFT
from area_builders import TOP as WAVES_TOP
from geo_builders import LEFT, SOUTH, TOP, cube, geobox, source_of, write_nc, write_tif
from stac_builders import BOX, write_cog
from stac_builders import item as stac_item

NAMES = M["s2"].band_names
DAYS = "--dates=2020-01-01/2020-12-31"


def values(rows, cols, dates=2):
    y, x = np.mgrid[:rows, :cols]
    found = np.sin(x / 5 + y / 7 + np.arange(dates)[:, None, None, None] + np.arange(10)[:, None, None] / 3)
    return (1500 + 900 * found).astype(np.float32)


@pytest.fixture
def s2(tmp_path):
    return write_nc(tmp_path / "s2.nc", cube(values(46, 38), geobox((46, 38)), ["2020-01-03", "2020-06-30"], NAMES))


@pytest.fixture
def run(tmp_path, capsys):
    def call(*words, command="embed"):
        own = [] if command == "predict" else ["--patch-size-m=20", "--weights=nano", "--statistics=from-data"]
        status = main([command, *map(str, words), *own])
        said = capsys.readouterr()
        return status, said.out, said.err

    return call


def stop(*_, **__):
    raise KeyboardInterrupt


def stopped(monkeypatch, name, call):
    """Run until a function of the area's run is called."""
    with monkeypatch.context() as patch:
        patch.setattr(f"anysat.workflows.areas.run.{name}", stop)
        assert call()[0] == 130


@pytest.mark.parametrize("out", ["a.tif", "a.zarr"])
@pytest.mark.parametrize("at", ["export", "area_figure"])
def test_an_area_that_stopped_after_its_store_was_finished_goes_on(run, s2, tmp_path, monkeypatch, out, at):
    words = f"s2={s2}", DAYS, f"--out={tmp_path / out}", *(["--also=.tif"] if out == "a.zarr" else [])
    stopped(monkeypatch, at, lambda: run(*words))
    monkeypatch.setattr("anysat.workflows.areas.run.run_here", stop)  # nothing is computed again
    status, said, errors = run(*words)
    assert (status, errors) == (0, "")
    assert "computed by an earlier run" in said
    made = {"a.tif", "a.png", "s2.nc"} | ({"a.zarr", "a.stac"} if out == "a.zarr" else set())
    assert {path.name for path in tmp_path.iterdir()} == made
    status, _, errors = run(*words)
    assert status == 2
    assert ("a.zarr exists; give" if out == "a.zarr" else "a.png exist; give") in errors


@pytest.mark.parametrize("suffix", ["zarr", "tif"])
def test_a_zone_that_is_finished_is_not_computed_again(run, tmp_path, monkeypatch, suffix):
    from pyproj import Transformer

    folder = tmp_path / "s2"
    folder.mkdir()
    for crs, longitude in (("EPSG:32631", 5.99), ("EPSG:32632", 6.005)):
        to = Transformer.from_crs("EPSG:4326", crs, always_xy=True)
        left, top = (round(place, -1) for place in to.transform(longitude, 50.0))
        grid = geobox((40, 40), left=left, top=top, crs=crs)
        write_tif(folder / f"2020-01-03_{crs[-2:]}.tif", values(40, 40, 1)[0], grid, names=NAMES)
    words = f"s2={folder}", DAYS, f"--out={tmp_path / 'a'}.{suffix}"
    runs = []

    def first_alone(*given, **options):
        runs.append(given)
        return run_here(*given, **options) if len(runs) != 2 else stop()

    monkeypatch.setattr("anysat.workflows.areas.run.run_here", first_alone)
    assert run(*words)[0] == 130
    assert run(*words)[0] == 0
    assert len(runs) == 3
    made = {path.name for path in tmp_path.iterdir() if path.suffix != ".stac"}
    assert made == {"s2", *(f"a-utm{zone}n.{kind}" for zone in (31, 32) for kind in (suffix, "png"))}


@pytest.mark.parametrize("change", ["offset: -1000", "nodata: 1500", "dates: [2020-01-01, 2020-02-01]"])
def test_an_input_that_is_read_otherwise_is_not_mixed_in(run, s2, tmp_path, monkeypatch, change):
    given = tmp_path / "given.yaml"
    given.write_text(f"s2:\n  path: {s2}\n")
    words = given, DAYS, f"--out={tmp_path / 'a.zarr'}", "--dataset=world"
    stopped(monkeypatch, "run_here", lambda: run(*words))
    given.write_text(f"s2:\n  path: {s2}\n  {change}\n")
    status, _, errors = run(*words)
    assert status == 2
    assert f"described.{change.split(':')[0]}" in errors


@pytest.mark.parametrize("change", ["file", "scale", "nodata", "transform"])
def test_a_catalog_whose_files_or_items_changed_is_not_mixed_in(tmp_path, change):
    """A signature in the address of a file, which is another each time, changes nothing."""
    stac_item(tmp_path, "a", "2020-06-01", 2000)
    path = tmp_path / "files" / "a_B02.tif"

    def facts(href=str(path), **raster):
        made = pystac.Item("a", None, None, datetime.datetime(2020, 6, 1), {"proj:code": SOUTH}, collection="s2")
        left = raster.pop("left", BOX.affine.c)
        grid = {"proj:shape": list(BOX.shape), "proj:transform": [10, 0, left, 0, -10, BOX.affine.f]}
        fields = {**grid, "raster:bands": [{"scale": 1e-4, "offset": 0.0, **raster}]}
        made.add_asset("B02", pystac.Asset(href, media_type="image/tiff", extra_fields=fields))
        sources = {"s2": source_of([made], M["s2"])}
        return AreaInputs(sources=sources, periods=(), ground=None, described={}).facts()

    before = facts()
    assert facts() == before
    if change == "file":
        write_cog(path, np.full(BOX.shape, 3000, np.uint16), BOX)
    changed = {"scale": {"scale": 2e-4}, "nodata": {"nodata": 7}, "transform": {"left": BOX.affine.c + 10}}
    assert facts(**changed.get(change, {})) != before
    signed = [facts(f"http://127.0.0.1:9/a.tif?sig={number}") for number in range(2)]
    assert signed[0] == signed[1]


def test_polygons_that_changed_are_not_mixed_in(run, s2, tmp_path, monkeypatch):
    def draw(*boxes):
        places = [box(LEFT + a, TOP - b, LEFT + c, TOP - d) for a, b, c, d in boxes]
        geopandas.GeoDataFrame(geometry=places, crs=SOUTH).to_file(tmp_path / "area.gpkg")

    words = f"s2={s2}", f"--area={tmp_path / 'area.gpkg'}", f"--out={tmp_path / 'a.zarr'}", "--dataset=world"
    draw((5, 300, 300, 5))
    stopped(monkeypatch, "run_here", lambda: run(*words))
    draw((5, 300, 300, 290), (5, 20, 10, 5))  # of the same bounds
    status, _, errors = run(*words)
    assert status == 2
    assert "ground" in errors


def test_another_head_is_not_mixed_in(run, s2, tmp_path, monkeypatch):
    made = predictor(CROPS, keys=("s2",))
    made.save(tmp_path / "run.safetensors")
    words = tmp_path / "run.safetensors", f"s2={s2}", DAYS, f"--out={tmp_path / 'a.zarr'}"
    stopped(monkeypatch, "run_here", lambda: run(*words, command="predict"))
    for parameter in made.head.parameters():
        torch.nn.init.normal_(parameter)
    made.save(tmp_path / "run.safetensors")
    status, _, errors = run(*words, command="predict")
    assert status == 2
    assert "head was" in errors


def test_workers_that_outlive_a_run_compute_with_the_weights_of_the_next(tmp_path):
    distributed = pytest.importorskip("distributed")
    first, second = (
        job(small_model("s2"), waves("s2"), area(6, 5), tmp_path / name, block=8) for name in ("one", "two")
    )
    with torch.no_grad():
        second.model.fusion.tile_token.add_(1)
        for parameter in second.model.fusion.parameters():
            parameter.mul_(1.1)
    store, work = store_of(second, tmp_path / "alone.zarr")
    run_here(work, store)
    alone = arrays_of(store.finish())[0]
    options = {"n_workers": 1, "threads_per_worker": 1, "processes": False, "dashboard_address": ":0"}
    with distributed.LocalCluster(**options) as cluster, distributed.Client(cluster) as client:
        for made in (first, second):
            store, work = store_of(made, tmp_path / "a.zarr", overwrite=True)
            run_on(client, work, store)
            store.finish()
    np.testing.assert_allclose(arrays_of(tmp_path / "a.zarr")[0], alone, atol=1e-6)


@pytest.mark.parametrize("out", ["a.zarr", "a.tif"])
def test_a_map_needs_the_modality_that_it_answers_for(run, tmp_path, out):
    predictor(CROPS).save(tmp_path / "run.safetensors")
    data = cube(np.ones((2, 2, 40, 40), np.float32), geobox((40, 40)), ["2020-01-03", "2020-06-30"], ["VV", "VH"])
    words = f"s1={write_nc(tmp_path / 's1.nc', data)}", "--units=[s1=dB]", f"--out={tmp_path / out}"
    status, _, errors = run(tmp_path / "run.safetensors", *words, command="predict")
    assert status == 2
    assert "the modality s2, whose sub-patches the run classifies, got s1; the run was trained on s2, s1" in errors


def map_job(made, tmp_path, **options):
    return MapJob(
        model=made, load_model=load_task, sources={}, area=area(4, 4), periods=(PERIOD,), kept=UnitFiles(tmp_path),
        windowing=Windowing(side=4, overlap=0), target=CROPS, per_patch=2, **options,
    )  # fmt: skip


def seen(*keys):
    ground = area(4, 4)
    found = [s.observe(ground.covering(ground.span, s.modality))[0] for s in waves(*keys).values()]
    return Tile.of(*found)


def test_a_predictor_that_fails_is_not_taken_for_ground_that_nobody_saw(tmp_path):
    made = predictor(CROPS)
    with torch.no_grad():
        made.encoder.fusion.tile_token.fill_(float("nan"))
    work = map_job(made, tmp_path)
    with pytest.raises(InputError, match="finite"):
        work.encode(0, work.area.span, [Read(seen("s2", "s1"))])


def test_a_half_of_the_dates_that_saw_nothing_does_not_take_the_answer_away(tmp_path):
    tile = seen("s2")
    valid = tile.observations["s2"].valid.copy()
    valid[1::2] = False
    part = dataclasses.replace(tile, observations={"s2": dataclasses.replace(tile.observations["s2"], valid=valid)})
    work = map_job(predictor(CROPS, keys=("s2",)), tmp_path, variants=8)
    (found,) = work.encode(0, work.area.span, [Read(part)])
    assert found.values is not None
    assert np.isfinite(found.values).any()


def test_a_few_small_polygons_in_a_large_area_are_found(tmp_path):
    wanted = box(WAVES_LEFT + 3705, WAVES_TOP - 2915, WAVES_LEFT + 3708, WAVES_TOP - 2905)
    work = job(small_model("s2"), waves("s2"), area(300, 301, wanted=wanted), tmp_path / "t")
    (span,) = seek(work, (8, 8), lambda _, span: span)
    assert work.area.inside(span).any()


def island(tmp_path, half_side_m, *, x_m=3000, y_m=6050, side=400):
    """Work on ground whose only data lie in a square, which none of eight evenly spaced windows meets."""
    sources = waves("s2", only=(WAVES_LEFT + x_m, WAVES_TOP - y_m, half_side_m))
    return job(small_model("s2"), sources, area(side, side), tmp_path / "t")


def test_what_must_be_known_of_an_area_is_measured_where_its_data_are(tmp_path):
    work = island(tmp_path, 600)
    found = measure_places(work)
    assert (found.num_windows, found.num_missing) == (8, 0)
    assert np.abs(found.corrections).max() > 0.1
    np.testing.assert_array_equal(found.corrections, measure_places(work).corrections)
    assert len(sample_vectors(dataclasses.replace(work, places=found.corrections))["patch"]) > 64
    read = sample_reads(work)
    assert len(read.reads) == 8
    assert all(one.tile is not None for one in read.reads)
    assert read.num_missing == 0


@pytest.mark.parametrize("shape", [(160, 16), (16, 160), (80, 80), (96, 64)])
def test_sampled_windows_lie_in_all_parts_of_the_ground(tmp_path, shape):
    """No place is farther from the next of eight windows than in a regular grid of eight, or a little more."""
    work = job(small_model("s2"), waves("s2"), area(*shape), tmp_path / "t")
    spans = seek(work, (4, 4), lambda _, span: span)
    middles = np.array([((one.top + one.bottom) / 2, (one.left + one.right) / 2) for one in spans])
    away = np.linalg.norm(np.argwhere(np.ones(shape, bool))[:, None] + 0.5 - middles, axis=2).min(1)
    rows, cols = next((r, 8 // r) for r in (1, 2, 4, 8) if shape[0] / r <= 1.5 * shape[1] * r / 8)
    assert len(spans) == 8
    assert away.max() < 1.25 * np.hypot(shape[0] / rows, shape[1] / cols) / 2
    assert spans == seek(work, (4, 4), lambda _, span: span)


def test_an_area_of_context_alone_does_not_say_that_places_were_removed(tmp_path):
    data = cube(np.ones((2, 7, 30, 30), np.float32), geobox((30, 30), pixel_m=250.0), ["2020-01-03", "2020-06-30"],
                M["modis"].band_names)  # fmt: skip
    path = write_nc(tmp_path / "modis.nc", data)
    argv = ["embed", f"modis={path}", "--units=[modis=reflectance_1e4]", f"--out={tmp_path / 'a.zarr'}", "--window=8",
            "--patch-size-m=250", "--weights=nano", "--statistics=from-data"]  # fmt: skip
    assert main(argv) == 0
    assert provenance_of(tmp_path / "a.zarr")["made_from"]["options"]["places"] == "kept"


def test_places_of_another_sample_are_not_mixed_in(run, s2, tmp_path, monkeypatch):
    words = f"s2={s2}", f"--out={tmp_path / 'a.zarr'}", "--window=8"
    with monkeypatch.context() as patch:
        patch.setattr("anysat.workflows.embed.area.REMOVED", "removed")
        stopped(patch, "_run", lambda: run(*words))
    status, _, errors = run(*words)
    assert status == 2
    assert "places" in errors


def test_a_plan_tells_how_much_of_the_ground_holds_data(tmp_path):
    work = island(tmp_path, 600)  # it touches 64 windows
    held = look_around(work, (8, 8), lambda period, span: [work.read(period, span)])
    low, high = held.interval
    assert (held.num_windows, held.ground) == (2500, 1.0)
    assert low < 64 / 2500 < high < 0.1
    assert low < held.share < high
    assert held.reads[0].tile is not None
    assert f"out of 2500; {held.share:.2%} are assumed to hold some ({low:.2%} to {high:.2%} with 95% cert" in str(held)
    none = dataclasses.replace(held, num_held=0)
    assert none.interval[0] == 0
    assert none.share == none.interval[1] < 0.03
    every = dataclasses.replace(held, num_read=2500, num_held=300)
    assert every.interval == pytest.approx((0.12, 0.12))


def test_ground_that_only_context_has_seen_is_no_data_in_a_plan(tmp_path):
    sources = waves("s2", only=(WAVES_LEFT + 40, WAVES_TOP - 40, 30)) | waves("modis")
    work = job(small_model("s2", "modis"), sources, area(8, 8), tmp_path / "t")
    assert [plan_area._read(work, 0, span).tile is not None for span in area(8, 8).span.cut(4)] == [True, *[False] * 3]
    alone = dataclasses.replace(work, sources=waves("modis"))
    assert all(plan_area._read(alone, 0, span).tile is not None for span in area(8, 8).span.cut(4))


def test_few_windows_with_data_are_counted(tmp_path):
    found = measure_places(island(tmp_path, 60, x_m=730, y_m=890, side=120))
    assert (found.num_windows, found.num_missing) == (1, 7)


def test_places_are_not_said_to_be_removed_if_no_window_holds_data(tmp_path):
    with pytest.raises(SourceError, match="--places kept"):
        measure_places(island(tmp_path, 0))


def test_a_search_for_data_ends_if_files_cannot_be_read(tmp_path, monkeypatch):
    monkeypatch.setattr("anysat.areas.job.RETRY_AFTER_S", 0.0)
    work = job(small_model("s2"), waves("s2", fails=-1), area(400, 400), tmp_path / "t")
    with pytest.raises(SourceError, match="the disk said no"):
        measure_places(work)
    assert len(work.sources["s2"].reads) < 200


def test_steps_of_codes_are_measured_where_windows_are_larger_than_blocks(tmp_path):
    work = job(small_model("s2"), waves("s2"), area(21, 19), tmp_path / "t", block=4)
    work = dataclasses.replace(work, places=np.zeros((8, 8, work.model.config.dim), np.float32))
    assert len(sample_vectors(work)["patch"]) > 64


def test_a_plan_is_measured_where_something_was_seen(run, tmp_path):
    pixels = values(120, 120)
    pixels[..., :40, :40] = np.nan
    data = cube(pixels, geobox((120, 120)), ["2020-01-03", "2020-06-30"], NAMES)
    status, said, _ = run(f"s2={write_nc(tmp_path / 's2.nc', data)}", DAYS, command="plan")
    assert status == 0
    assert "operations: " in said
    assert "all of the ground holds data" in said
    assert "data: at 15 of 16 places read all over the ground, which are all\n" in said


def test_cubes_in_python_tell_what_could_not_be_read(s2, tmp_path, monkeypatch):
    monkeypatch.setattr("anysat.areas.job.RETRY_AFTER_S", 0.0)
    pixels = xarray.open_dataset(s2, decode_coords="all").pixels.chunk({"x": 19, "y": 23})
    data = pixels.to_dataset("band").assign_coords(spatial_ref=pixels.spatial_ref)
    for variable in data.variables.values():
        variable.encoding = {}
    data.to_zarr(tmp_path / "s2.zarr", zarr_format=3, consolidated=False)
    chunk = next(path for path in (tmp_path / "s2.zarr" / "B2" / "c").rglob("*") if path.is_file())
    chunk.write_bytes(chunk.read_bytes()[:50])
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        anysat.embed({"s2": str(tmp_path / "s2.zarr")}, 20, weights="nano", dataset="world")
    assert any("could not be read, left as NaN" in str(one.message) for one in told)


def test_what_is_asked_of_an_area_makes_one(run, s2, tmp_path):
    status, said, _ = run(f"s2={s2}", f"--out={tmp_path / 'a.zarr'}", "--window=8")
    assert status == 0
    assert "seam score" in said


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--device=cuda:7", "--out=a.zarr"], "--device"),
        (["--scheduler=nowhere", "--out=a.zarr"], "--scheduler"),
        (["--also=.parquet", "--out=a.tif"], "--also"),
        (["--period=2020-01-01/2021-12-31", "--out=a.zarr"], "--dates"),
        (["--also=.tif", "--out=mine.zarr"], "mine.tif exists"),
        (["--period=2020-01-01/2020-06-30,2020-01-01/2020-06-30", "--out=a.zarr"], "one of them is given twice"),
        (["--scheduler=inproc://10.0.0.1/1/1", "--out=a.zarr"], "one that other processes can reach"),
    ],
)
def test_what_cannot_be_is_said_before_anything_is_computed(run, s2, tmp_path, monkeypatch, words, told):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("anysat.workflows.areas.run.run_here", stop)
    (tmp_path / "mine.tif").write_text("mine")
    status, _, errors = run(f"s2={s2}", DAYS, *words)
    assert status == 2
    assert told in errors
    assert len(errors.strip().splitlines()) == 1


@pytest.mark.parametrize("words", [[DAYS], []])  # of an area, and of a tile
def test_values_have_no_probabilities(run, s2, tmp_path, words):
    predictor(HEIGHT, keys=("s2",)).save(tmp_path / "run.safetensors")
    words = tmp_path / "run.safetensors", f"s2={s2}", *words, "--probabilities", f"--out={tmp_path / 'a.tif'}"
    status, _, errors = run(*words, command="predict")
    assert status == 2
    assert "--probabilities" in errors


def test_options_that_change_nothing_in_python_are_refused(s2):
    with pytest.raises(InputError, match="also"):
        anysat.embed({"s2": str(s2)}, 20, weights="nano", also=".tif")


def test_large_ground_that_stopped_after_its_store_was_finished_goes_on_by_the_same_command(
    run, s2, tmp_path, monkeypatch
):
    monkeypatch.setattr("anysat.geo.grid.MAX_PATCHES", 100)
    words = f"s2={s2}", f"--out={tmp_path / 'a'}"
    stopped(monkeypatch, "area_figure", lambda: run(*words))
    monkeypatch.setattr("anysat.workflows.areas.run.run_here", stop)
    status, said, errors = run(*words)
    assert (status, errors) == (0, "")
    assert "computed by an earlier run" in said
    assert (tmp_path / "a.png").exists()


def test_an_area_that_is_finished_says_so_before_anything_is_measured(run, s2, tmp_path, monkeypatch):
    words = f"s2={s2}", DAYS, "--window=8", f"--out={tmp_path / 'a.zarr'}"
    assert run(*words)[0] == 0
    monkeypatch.setattr("anysat.workflows.embed.area.measure_places", stop)
    status, _, errors = run(*words)
    assert status == 2
    assert "exists" in errors


def test_a_name_of_weights_is_no_place(run, s2, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert run(f"s2={s2}", "--out=nano/tile.tif")[0] == 0
    assert run(f"s2={s2}", DAYS, "--out=nano.zarr")[0] == 0


def test_a_model_that_embeds_data_stays_in_its_mode():
    model = small_model("s2").train()
    torch.nn.utils.parametrizations.spectral_norm(model.fusion.blocks[0].mlp.fc1)  # which no copy is made of
    data = {"s2": cube(values(6, 6), geobox((6, 6)), ["2020-01-03", "2020-06-30"], NAMES)}
    anysat.embed(data, 20.0, weights=model)
    assert all(part.training for part in model.modules())


@pytest.mark.parametrize(
    ("given", "out", "words", "status"),
    [("s2", "s2.zarr", [], 0), ("s2.tif", "s2.zarr", [], 0), ("s2.tif", "s2.zarr", ["--also=.tif"], 2)],
)
def test_an_output_may_be_named_like_an_input_that_it_does_not_replace(run, tmp_path, given, out, words, status):
    path = tmp_path / given / "2020-01-03.tif" if given == "s2" else tmp_path / given
    path.parent.mkdir(exist_ok=True)
    write_tif(path, values(46, 38, 1)[0], geobox((46, 38)), names=NAMES)
    word = f"s2={tmp_path / given}" + ("" if given == "s2" else "@2020-01-03")
    found, _, errors = run(word, DAYS, f"--out={tmp_path / out}", *words)
    assert found == status, errors
    assert ("expected a path other than that of an input" in errors) == (status == 2)


def test_the_file_of_an_area_is_an_input(run, s2, tmp_path):
    path = tmp_path / "a.parquet"
    geopandas.GeoDataFrame(geometry=[box(36, -4, 37, -3)], crs=4326).to_parquet(path)
    before = path.read_bytes()
    words = (f"--area={path}", f"--out={tmp_path / 'a.zarr'}", "--also=.parquet", "--overwrite")
    status, _, errors = run(f"s2={s2}", DAYS, *words)
    assert (status, "other than that of an input" in errors) == (2, True), errors
    assert path.read_bytes() == before


def test_periods_come_in_the_order_of_time(run, s2, tmp_path):
    status, said, _ = run(
        f"s2={s2}", "--period=2020-06-01/2020-06-30,2020-01-01/2020-05-31", f"--out={tmp_path / 'a.zarr'}"
    )
    assert status == 0
    assert "days: 2020-01-01 to 2020-06-30 in 2 periods" in said
    with xarray.open_zarr(tmp_path / "a.zarr", group="patch") as found:
        assert [str(day)[:10] for day in found.time.values] == ["2020-01-01", "2020-06-01"]


def test_a_scheduler_is_asked_before_anything_is_measured(run, s2, tmp_path, monkeypatch):
    import dask

    monkeypatch.setattr("anysat.workflows.embed.area.prepare", stop)
    with dask.config.set({"distributed.comm.timeouts.connect": "100ms"}):
        status, _, errors = run(f"s2={s2}", "--scheduler=tcp://127.0.0.1:9", f"--out={tmp_path / 'a.zarr'}")
    assert status == 2
    assert "--scheduler: expected a Dask scheduler that answers" in errors
    assert [path.name for path in tmp_path.iterdir()] == ["s2.nc"]
