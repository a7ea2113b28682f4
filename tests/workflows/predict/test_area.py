"""`anysat predict` on ground larger than a tile: maps with classes, values, probabilities and uncertainty."""

import json
import shutil
from dataclasses import replace

import geopandas
import numpy as np
import pytest
import rasterio
import shapely
import xarray

from anysat.cli import main
from anysat.errors import MisfitWarning
from anysat.geo.stores.stored import provenance_of
from anysat.modalities import MODALITIES as M
from area_builders import CROPS, HEIGHT, KIND, LABELS, predictor
from geo_builders import LEFT, TOP, cube, geobox, write_nc, write_tif


@pytest.fixture(scope="module")
def s2(tmp_path_factory):
    y, x = np.mgrid[:40, :56]
    values = np.sin(x / 5 + y / 7 + np.arange(2)[:, None, None, None] + np.arange(10)[:, None, None] / 3)
    values[:, :, :6, :8] = np.nan
    data = cube(values.astype(np.float32), geobox((40, 56)), ["2020-01-03", "2020-06-30"], M["s2"].band_names)
    return write_nc(tmp_path_factory.mktemp("cube") / "s2.nc", data)


@pytest.fixture
def run(s2, tmp_path, capsys):
    def call(target, *words, out="map.tif"):
        predictor(target, keys=("s2",)).save(tmp_path / "run.safetensors")
        argv = ["predict", tmp_path / "run.safetensors", f"s2={s2}", f"--out={tmp_path / out}", *words]
        status = main([str(word) for word in argv])
        said = capsys.readouterr()
        return status, said.out, said.err

    return call


AREA = "--dates=2020-01-01/2020-12-31"


@pytest.mark.parametrize("words", [["--window=32", AREA], []])
def test_a_report_says_which_numbers_of_classes_do_not_fit_a_map(run, tmp_path, words):
    status, said, _ = run(replace(CROPS, codes=(1, -2, 3)), *words)
    assert status == 0
    assert said.count("numbers of classes: counted from 0, because those of maps are 0 to 65534, and -2 does not") == 1
    with rasterio.open(tmp_path / "map.tif") as file:
        assert file.tags()["CLASS_1"] == "wheat"
    assert "numbers of classes" not in run(replace(CROPS, codes=(1, 2, 3)), *words, "--overwrite")[1]


def test_classes_of_an_area_are_those_of_its_tile(run, tmp_path):
    assert run(CROPS, out="tile.tif")[0] == 0
    status, said, errors = run(CROPS, AREA, "--window=32", out="area.tif")
    assert (status, errors) == (0, "")
    assert f"wrote {tmp_path / 'area.tif'}" in said
    with rasterio.open(tmp_path / "tile.tif") as tile, rasterio.open(tmp_path / "area.tif") as area:
        assert area.transform == tile.transform
        assert (area.transform.c, area.transform.f) == (LEFT, TOP)
        assert area.nodata == 255
        assert area.colormap(1)[1] == tile.colormap(1)[1]
        assert area.tags()["CLASS_1"] == "wheat"
        np.testing.assert_array_equal(area.read(1), tile.read(1))
        assert (area.read(1)[:6, :8] == 255).all()
    assert (tmp_path / "area.png").stat().st_size > 5000


def test_probabilities_and_uncertainty_are_written_beside(run, tmp_path):
    status, _, errors = run(CROPS, AREA, "--window=8", "--probabilities", "--variants=4")
    assert (status, errors) == (0, "")
    with rasterio.open(tmp_path / "map_probability.tif") as shares, rasterio.open(tmp_path / "map.tif") as classes:
        assert shares.descriptions == ("maize", "wheat", "grass")
        assert classes.descriptions == ("class",)
        assert "store" not in json.loads(classes.tags()["ANYSAT"])  # which was deleted
        values, numbers = shares.read(), classes.read(1)
        seen = numbers != 255
        np.testing.assert_allclose(values[:, seen].sum(0), 1, atol=1e-5)
        np.testing.assert_array_equal(values[:, seen].argmax(0), numbers[seen])
    with rasterio.open(tmp_path / "map_uncertainty.tif") as file:
        assert file.units == ("nat",)
        assert file.descriptions == ("uncertainty",)
        assert np.isfinite(file.read(1)[seen]).all()


def test_values_carry_their_unit(run, tmp_path):
    assert run(HEIGHT, AREA, out="map.zarr")[0] == 0
    found = xarray.open_zarr(tmp_path / "map.zarr", group="value")
    assert found.value.attrs["units"] == "m"
    assert found.value.shape == (1, 40, 56)
    assert np.isnan(found.value.values[0, :6, :8]).all()
    assert 5 < np.nanmean(found.value.values) < 35  # of about 20 m and not of 0 deviations


def test_outputs_that_would_replace_an_input_or_lie_in_one_are_refused(s2, tmp_path, capsys):
    folder = tmp_path / "s2"
    folder.mkdir()
    own = folder / "s2.nc"
    own.write_bytes(s2.read_bytes())
    predictor(HEIGHT, keys=("s2",)).save(tmp_path / "one.safetensors")
    photo = write_tif(folder / "photo.tif", np.ones((10, 6, 6), np.float32), geobox((6, 6)), names=M["s2"].band_names)
    before = photo.read_bytes()
    for words in (
        [f"s2={photo}", f"--out={photo}", "--overwrite"],
        [f"s2={folder}", f"--out={folder / 'map.tif'}"],
        [f"s2={folder}", f"--out={folder / 'map.zarr'}", AREA],
        [f"s2={own}", f"--out={own.with_suffix('.tif')}", "--overwrite", AREA],
    ):
        status = main(["predict", str(tmp_path / "one.safetensors"), *words])
        told = capsys.readouterr().err
        expected = "other than that of an input" if "s2.tif" not in words[1] else ""
        assert (status, expected in told) == (2 if expected else 0, True), (words, told)
        assert photo.read_bytes() == before
    assert {path.name for path in folder.iterdir()} == {"s2.nc", "photo.tif", "s2.tif", "s2.png"}


def test_the_file_of_an_area_is_an_input(run, tmp_path):
    path = tmp_path / "map.gpkg"
    field = geopandas.GeoDataFrame(geometry=[shapely.box(36, -4, 37, -3)], crs=4326)
    for layer in ("fields", "other"):
        field.to_file(path, layer=layer)
    before = path.read_bytes()
    words = (f"--area={path}:fields", "--also=.gpkg", "--overwrite")
    status, _, errors = run(CROPS, *words, out="map.zarr")
    assert (status, "other than that of an input" in errors) == (2, True), errors
    assert path.read_bytes() == before


def test_a_sensor_that_the_run_does_not_look_at_is_refused_of_a_tile_as_of_an_area(run, s2, tmp_path):
    for words in ([], [AREA]):
        status, _, errors = run(CROPS, f"l8={s2}", *words)
        assert status == 2
        assert "unknown modality 'l8'" in errors


def test_a_picture_of_something_else_is_not_replaced(run, tmp_path):
    assert run(CROPS, AREA, out="area.zarr")[0] == 0
    before = (tmp_path / "area.png").stat().st_mtime_ns
    assert run(HEIGHT, AREA, out="area.tif")[0] == 0
    assert (tmp_path / "area.tif.png").exists()
    assert run(CROPS, AREA, "--overwrite", out="area.tif")[0] == 0
    assert (tmp_path / "area.png").stat().st_mtime_ns == before
    for out, picture in (("area.zarr", "area.png"), ("area.tif", "area.tif.png")):
        status, _, errors = run(CROPS, AREA, out=out)
        assert (status, out in errors, " exist" in errors) == (2, True, True), errors
        assert (tmp_path / picture).exists()
    shutil.copy(tmp_path / "area.png", tmp_path / "other.png")  # its output does not lie beside it as `other`
    (tmp_path / "area.zarr").rename(tmp_path / "away.zarr")
    status, _, errors = run(CROPS, AREA, out="other.tif")
    assert (status, "other.png exists" in errors) == (2, True), errors


def test_every_file_that_will_be_made_is_looked_for_first(run, tmp_path, monkeypatch):
    monkeypatch.setattr("anysat.workflows.areas.run.run_here", None)  # nothing is computed
    for name, out in (("map.tif.aux.xml", "map.tif"), ("map_2020-04-01.tif", "map.tif"), ("map.stac", "map.zarr")):
        (tmp_path / name).write_text("mine")
        status, _, errors = run(CROPS, "--period=2020-01-01/2020-03-31,2020-04-01/2020-12-31"
                                if "04" in name else AREA, out=out)  # fmt: skip
        assert (status, f"{name} exists" in errors) == (2, True)
        (tmp_path / name).unlink()


def test_large_ground_whose_store_is_finished_goes_on_without_an_area_option(run, tmp_path, monkeypatch):
    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("anysat.geo.grid.MAX_PATCHES", 100)
    with monkeypatch.context() as patch:
        patch.setattr("anysat.workflows.areas.run.area_figure", stop)
        assert run(CROPS)[0] == 130
    assert (tmp_path / "map.tif").exists()
    status, said, errors = run(CROPS)
    assert (status, errors) == (0, "")
    assert "computed by an earlier run" in said
    assert run(CROPS)[0] == 2


@pytest.mark.parametrize("target", [KIND, LABELS])
def test_a_target_of_tiles_is_mapped_window_by_window(run, tmp_path, target):
    status, _, _ = run(target, AREA, "--window=8", out="map.zarr")
    assert status == 0
    group = "class" if target is KIND else "probability"
    found = xarray.open_zarr(tmp_path / "map.zarr", group=group)
    assert (found.sizes["y"], found.sizes["x"]) == (20, 28)
    assert found.valid.values.any()


def test_every_period_is_answered_for(run, tmp_path):
    assert run(CROPS, "--period=2020-01-01/2020-03-31,2020-04-01/2020-12-31", out="map.zarr")[0] == 0
    found = xarray.open_zarr(tmp_path / "map.zarr", group="class")
    assert found.sizes["time"] == 2
    assert (found["class"].values[0] != found["class"].values[1]).any()


def test_rows_of_a_table_name_their_class(run, tmp_path):
    import geopandas

    assert run(CROPS, AREA, out="map.parquet")[0] == 0
    table = geopandas.read_parquet(tmp_path / "map.parquet")
    assert len(table) == 40 * 56 - 48


def test_polygons_of_the_classes_are_written_beside_and_are_in_the_catalog(run, tmp_path):
    """Of the class map only, and not of what is told beside it; the same command again makes what was taken away."""
    import geopandas

    words = (AREA, "--also=.tif,.gpkg", "--probabilities", "--variants=2")
    status, said, errors = run(CROPS, *words, out="map.zarr")
    assert (status, errors, f"wrote {tmp_path / 'map.gpkg'}" in said) == (0, "", True)
    assert sorted(path.name for path in tmp_path.glob("*.gpkg")) == ["map.gpkg"]
    table = geopandas.read_file(tmp_path / "map.gpkg")
    found = xarray.open_zarr(tmp_path / "map.zarr", group="class")["class"].values[0]
    for number, name in enumerate(CROPS.classes):
        assert table.area[table["class_name"] == name].sum() == pytest.approx(100 * (found == number).sum())
    item = json.loads((tmp_path / "map.stac" / "class" / "item.json").read_text())
    assert item["assets"]["map_gpkg"]["type"] == "application/geopackage+sqlite3"
    assert main(["catalog", "validate", str(tmp_path / "map.zarr")]) == 0
    status, _, errors = run(CROPS, *words, out="map.zarr")
    assert (status, "map.zarr exists" in errors) == (2, True)
    (tmp_path / "map.gpkg").unlink()
    status, said, _ = run(CROPS, *words, out="map.zarr")
    assert (status, "computed by an earlier run" in said, (tmp_path / "map.gpkg").exists()) == (0, True, True)


def test_what_has_no_classes_has_no_polygons(run, tmp_path, capsys):
    for target, name in ((HEIGHT, "height"), (LABELS, "trees")):
        status, _, errors = run(target, "--also=.gpkg", out="map.zarr")
        assert status == 2
        assert f"--also: expected .tif or .parquet, because '{name}' has not one class per place" in errors
    assert main(["embed", "s2=a.nc", "--also=.gpkg", f"--out={tmp_path / 'a.zarr'}", "--patch-size-m=10"]) == 2
    assert "unknown --also '.gpkg'" in capsys.readouterr().err


def test_a_tile_tells_how_its_inputs_were_understood_and_which_are_not_given(s2, tmp_path, capsys):
    """As `anysat embed` does; of an area it says what is not given, too."""
    predictor(CROPS, keys=("s2", "s1")).save(tmp_path / "run.safetensors")
    for words in ([], [AREA]):
        argv = ["predict", tmp_path / "run.safetensors", f"s2={s2}", f"--out={tmp_path / f'{len(words)}.tif'}", *words]
        assert main([str(word) for word in argv]) == 0
        said = capsys.readouterr().out
        assert "not given, though the run was trained with it: s1" in said
        assert said.startswith("treated as an area because of --dates\n" if words else "read s2")
        assert f"s2: {s2}, 2 dates 2020-01-03 to 2020-06-30, bands B2 B3" in said
        assert "statistics: " in said
        if not words:
            for line in ("40 x 56 pixels of 10 m", "% valid, exact", "of the 400.0 x 560.0 m that the inputs share",
                         "computed in ", "inputs without valid values: none"):  # fmt: skip
                assert line in said


def saved_run(tmp_path, target=KIND, tile_m=80.0):
    """A run of patches of 20 m, trained on tiles of some side."""
    made = predictor(target, keys=("s2",))
    made.tile_m = tile_m
    made.save(tmp_path / "run.safetensors")
    return str(tmp_path / "run.safetensors")


def part_of(s2, tmp_path, rows, cols):
    """Some pixels of the cube."""
    with xarray.open_dataset(s2, decode_coords="all") as cube:
        return write_nc(tmp_path / "part.nc", cube.isel(y=slice(*rows), x=slice(*cols)).load())


def test_a_target_of_tiles_is_answered_for_ground_as_large_as_the_training_tiles(s2, tmp_path, capsys):
    """As the predictor answers for that ground alone, and not for the windows that embeddings have."""
    argv = ["predict", saved_run(tmp_path, tile_m=40.0), f"s2={s2}", "--precision=float32"]
    assert main([*argv, "--probabilities", f"--out={tmp_path / 'map.tif'}"]) == 0
    said = capsys.readouterr().out
    assert "treated as an area because 'kind' is per tile, and --out NAME.tif is a map" in said
    assert "one answer per 40 m window, as in training\n" in said
    with rasterio.open(tmp_path / "map_probability.tif") as file:
        shares = file.read()
    part = part_of(s2, tmp_path, (8, 12), (16, 20))
    assert main([*argv[:2], f"s2={part}", *argv[3:], f"--out={tmp_path / 'one.json'}"]) == 0
    answer = json.loads((tmp_path / "one.json").read_text())["probabilities"]
    expected = np.broadcast_to(np.reshape([*answer.values()], (2, 1, 1)), (2, 2, 2))
    np.testing.assert_allclose(shares[:, 4:6, 8:10], expected, atol=1e-5)
    assert np.ptp(shares[0, 4:6, 8:10]) == 0


def test_a_stride_of_one_patch_maps_a_target_of_tiles_finely(s2, tmp_path, capsys):
    argv = ["predict", saved_run(tmp_path), f"s2={part_of(s2, tmp_path, (10, 26), (10, 26))}", "--probabilities"]
    assert main([*argv, f"--out={tmp_path / 'map.zarr'}", "--overlap=0.99"]) == 0
    assert "as in training; one every 20 m, averaged where windows overlap\n" in capsys.readouterr().out
    shares = xarray.open_zarr(tmp_path / "map.zarr", group="probability").probability.values[0, 0]
    assert len(np.unique(shares)) == shares.size == 64


@pytest.mark.parametrize(("tile_m", "words", "expected"), [
    (80.0, ["--window=8"], "per 160 m window, though the run was trained on tiles of 80 m; leave out --window"),
    (None, [], "per 320 m window; the run does not say how large its training tiles were: give --window N"),
    (640.0, [], "the ground is smaller than the 640 m of a window: one answer for 400 x 560 m of it"),
    (90.0, [], "per 80 m window, though the run was trained on tiles of 90 m$"),
])  # fmt: skip
def test_windows_unlike_the_training_tiles_are_warned_of(s2, tmp_path, tile_m, words, expected):
    argv = ["predict", saved_run(tmp_path, tile_m=tile_m), f"s2={s2}", f"--out={tmp_path / 'a.tif'}", *words]
    with pytest.raises(MisfitWarning, match=expected):  # here warnings are errors
        main(argv)


def test_one_answer_for_ground_unlike_the_training_tiles_is_warned_of(s2, tmp_path):
    argv = ["predict", saved_run(tmp_path), f"s2={s2}", f"--out={tmp_path / 'a.json'}"]
    with pytest.raises(MisfitWarning, match="one answer for 400 x 560 m, though the run was trained on tiles of 80 m; for "
                                            "an answer per 80 m, give --out NAME.zarr"):  # fmt: skip
        main(argv)
    assert main([*argv, "--crop-m=80"]) == 0


@pytest.mark.parametrize(("target", "words"), [(KIND, []), (CROPS, ["--window=4"])])
def test_windows_are_answered_together_as_alone(tmp_path, monkeypatch, target, words):
    """Of a file with another cloud on each date, whose windows see other dates than their neighbours or none."""
    values = np.random.default_rng(0).normal(size=(5, 10, 42, 50)).astype(np.float32)
    for number, date in enumerate(values):
        date[:, 6 * number : 6 * number + 16, 30 - 5 * number :] = np.nan
    values[:, :, 20:32, 5:25] = np.nan
    days = [f"2020-0{month}-03" for month in range(1, 6)]
    s2 = write_nc(tmp_path / "cloudy.nc", cube(values, geobox((42, 50)), days, M["s2"].band_names))
    argv = ["predict", saved_run(tmp_path, target=target), f"s2={s2}", AREA, "--probabilities", "--variants=6", *words]
    found = []
    for tokens in (1, 4096):
        monkeypatch.setattr("anysat.workflows.predict.area.TOKENS_AT_ONCE", tokens)
        assert main([*argv, "--precision=float32", f"--out={tmp_path / f'{tokens}.zarr'}"]) == 0
        groups = [xarray.open_zarr(tmp_path / f"{tokens}.zarr", group=name) for name in ("probability", "uncertainty")]
        found.append([groups[0].probability.values, groups[1].uncertainty.values])
    for alone, together in zip(*found, strict=True):
        np.testing.assert_allclose(together, alone, atol=1e-5, equal_nan=True)
        assert 0 < np.isnan(alone).sum() < alone.size


def test_windows_of_a_target_of_pixels_are_those_of_embeddings(s2, tmp_path, capsys):
    argv = ["predict", saved_run(tmp_path, target=CROPS), f"s2={s2}", AREA]
    assert main([*argv, f"--out={tmp_path / 'map.zarr'}"]) == 0
    assert "one answer" not in capsys.readouterr().out
    made_from = provenance_of(tmp_path / "map.zarr")["made_from"]
    assert (made_from["trained_on_tiles_m"], made_from["options"]["window"]) == (80, 16)


def test_crops_of_a_tile_are_not_asked_of_the_map_of_a_target_of_tiles(s2, tmp_path, capsys):
    argv = ["predict", saved_run(tmp_path), f"s2={s2}", f"--out={tmp_path / 'map.tif'}", "--crop-m=80"]
    assert main(argv) == 2
    assert "--crop-m: expected null with --out NAME.tif: 'kind' is per tile" in capsys.readouterr().err
    assert not (tmp_path / "map.tif").exists()


def test_a_plan_of_a_map_writes_nothing_and_tells_its_windows(s2, tmp_path, capsys):
    run = saved_run(tmp_path)
    assert main(["plan", "--run", run, f"s2={s2}", "--overlap=0"]) == 0
    said = capsys.readouterr().out
    for words in ("one answer per 80 m window, as in training\n", "windows: 35 of 4 x 4 patches, 0% overlapping",
                  "to read: at most 179 kB, 4.48e+04 pixel values, in blocks of at most 16 x 16 windows", "output: 1.12 kB", "operations: ", "time: about",
                  "memory: at most"):  # fmt: skip
        assert words in said, said
    assert main(["plan", f"--run={run}", f"s2={s2}", "--measure=false", "--window=4"]) == 0
    assert "windows: 63 of 4 x 4 patches, 25% overlapping" in capsys.readouterr().out
    assert [path.name for path in tmp_path.iterdir()] == ["run.safetensors"]


def test_a_plan_of_a_map_measures_where_something_was_seen(s2, tmp_path, capsys):
    nothing = part_of(s2, tmp_path, (0, 4), (0, 8))
    argv = ["plan", "--run", saved_run(tmp_path, tile_m=40.0), f"s2={nothing}"]
    assert main(argv) == 2
    assert "no input has a valid pixel in the sampled windows; check area and dates" in capsys.readouterr().err
