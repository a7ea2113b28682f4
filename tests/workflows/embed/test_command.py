"""`anysat embed` from files to files: real tiles, what it tells, and one clear error for each mistake."""

import gc
import json
import os
import resource
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import rasterio
import torch
import xarray

from anysat import AnySat, ModelConfig
from anysat.cli import main
from anysat.geo.validate import validate_models
from anysat.modalities import MODALITIES as M
from anysat.model.checkpoint import save
from anysat.normalise import BandStatistics, Normaliser
from anysat.pictures import picture_of
from geo_builders import LEFT, TOP, cube, geobox, ramp, write_nc, write_tif

DIM = 64
S2_NAMES = M["s2"].band_names
PATCHES = ("00002806639B424A", "000028085BF08E7E", "2021_TZA_COPERNICUS-GEOGLAM_POLY_1101950")
TREES = ("Abies_alba_1_1005", "Betula_spec._1_15679", "Betula_spec._5_17172", "Quercus_robur_3_86918",
         "Quercus_robur_7_86717")  # fmt: skip


@pytest.fixture(scope="session")
def weights(tmp_path_factory):
    """A very small model that also takes descending Sentinel-1."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "nano.safetensors"
    save(AnySat(ModelConfig(dim=DIM, depth=1, num_heads=2).with_modalities(M["s1-des"])), path)
    return path


@pytest.fixture
def run(weights, tmp_path, capsys):
    """Runs the command into `out` with the small model; gives its exit status, report and errors."""

    def call(*words, out="out.zarr", patch_size_m=20):
        argv = ["embed", *words, f"--out={tmp_path / out}", f"--patch-size-m={patch_size_m}"]
        if not any(str(word).startswith("--weights") for word in words):
            argv.append(f"--weights={weights}")
        status = main([str(word) for word in argv])
        said = capsys.readouterr()
        return status, said.out, said.err

    return call


@pytest.fixture
def s2(tmp_path):
    """A Sentinel-2 cube of 70 x 90 m with three dates, one pixel of it never seen."""
    values = np.random.default_rng(0).integers(100, 4000, (3, 10, 7, 9)).astype(np.float32)
    values[:, :, 1, 1] = np.nan
    dates = ["2020-01-03", "2020-06-30", "2021-02-11"]
    return f"s2={write_nc(tmp_path / 's2.nc', cube(values, geobox((7, 9)), dates, S2_NAMES))}"


@pytest.fixture
def aerial(tmp_path):
    values = np.random.default_rng(1).integers(1, 255, (4, 350, 500)).astype(np.uint8)
    return f"aerial={write_tif(tmp_path / 'photo.tif', values, geobox((350, 500), 0.2, LEFT - 6, TOP + 2))}"


@pytest.mark.parametrize("patch_size_m", [20, 37.123])
def test_garbage_is_collected_again_after_a_tile_whatever_came_of_it(patch_size_m, run, s2, monkeypatch):
    from anysat.workflows.embed import tile as embed_tile

    work, during = embed_tile.embed_tile, []
    monkeypatch.setattr(embed_tile, "embed_tile", lambda config: during.append(gc.isenabled()) or work(config))
    status, _, _ = run(s2, patch_size_m=patch_size_m)
    assert (status, during, gc.isenabled()) == (0 if patch_size_m == 20 else 2, [False], True)


def groups(path):
    return {name: xarray.open_zarr(path, group=name, consolidated=False).load() for name in ("patch", "dense")}


def left_behind(tmp_path):
    return sorted(path.name for path in tmp_path.iterdir() if path.name.startswith((".", "out")))


def test_two_sensors_become_embeddings_over_the_ground_they_share(run, tmp_path, s2, aerial):
    status, report, errors = run(s2, aerial, out="out")
    assert (status, errors) == (0, "")
    assert left_behind(tmp_path) == ["out.png", "out.tif", "out.zarr", "out_dense.tif"]
    assert [picture_of(tmp_path / name).name for name in ("out", "out.gpkg")] == ["out.png", "out.gpkg.png"]
    found = groups(tmp_path / "out.zarr")
    assert found["patch"]["embedding"].shape == (DIM, 3, 4)
    assert found["dense"]["embedding"].shape == (2 * DIM, 6, 8)
    assert found["patch"]["valid"].all()
    assert (~found["dense"]["valid"].values).nonzero()[0].tolist() == [1]
    assert found["patch"]["x"].values[0] == LEFT + 10
    for line in ("read s2: ", "3 dates 2020-01-03 to 2021-02-11", "% valid, exact", "3 x 4 patches of 20 m",
                 "statistics: computed from this tile", "12 of 12 patches have data, dense for s2", "inputs without valid values",
                 "wrote "):  # fmt: skip
        assert line in report


def test_a_small_tile_that_becomes_an_area_says_why_and_how_to_have_a_geotiff(run, s2):
    year = "--dates=2020-01-01/2020-12-31"
    for number, (words, told) in enumerate([
        ([year, "--store=float16"], "treated as an area because of --dates, --store; add --also .tif for GeoTIFF\n"),
        (["--also=.tif"], "treated as an area because of --also\n"),
        ([], None),
    ]):  # fmt: skip
        status, report, _ = run(s2, *words, out=f"{number}.zarr")
        assert (status, report.startswith(told or "read s2")) == (0, True)


def test_a_yaml_file_of_inputs_describes_a_tile_too(run, s2, tmp_path):
    (tmp_path / "sources.yaml").write_text("s2: s2.nc\n")
    assert "tile: 3 x 4 patches" in run(tmp_path / "sources.yaml")[1]


def test_of_several_datasets_the_statistics_of_the_chosen_one_are_told_and_kept(run, s2, tmp_path):
    for area, words in enumerate(([], ["--window=8"])):
        status, report, _ = run(s2, "--weights=nano", "--dataset=world", *words, out=f"{area}.zarr")
        assert status == 0
        assert "statistics: computed from 654 of 654 tiles of world, split train;" in report
        assert "bigearthnet" not in report
        known = json.loads((tmp_path / f"{area}.zarr" / "zarr.json").read_text())["attributes"]["anysat"]
        kept = known["made_from"]["statistics"]["source"] if area else known["statistics"]
        assert kept.startswith("computed from 654 of 654 tiles of world, split train")
        assert "bigearthnet" not in kept
    assert "bigearthnet" not in (tmp_path / "1.stac" / "model.json").read_text()


def test_dates_without_a_valid_value_are_told(run, tmp_path):
    values = np.full((3, 10, 6, 6), 900, np.float32)
    values[1] = np.nan
    dates = ["2020-01-03", "2020-06-30", "2021-02-11"]
    path = write_nc(tmp_path / "s2.nc", cube(values, geobox((6, 6)), dates, S2_NAMES))
    assert "3 dates 2020-01-03 to 2021-02-11, 1 of them without valid values here, bands" in run(f"s2={path}")[1]


def test_the_geotiff_and_the_zarr_hold_the_same(run, tmp_path, s2):
    assert run(s2, out="out")[0] == 0
    found = groups(tmp_path / "out.zarr")
    for name, file in (("patch", "out.tif"), ("dense", "out_dense.tif")):
        with rasterio.open(tmp_path / file) as tif:
            assert np.array_equal(tif.read(), found[name]["embedding"].values, equal_nan=True)


def test_the_output_tells_where_it_comes_from(run, tmp_path, s2):
    run(s2)
    known = json.loads((tmp_path / "out.zarr" / "zarr.json").read_text())["attributes"]["anysat"]
    assert known["patch_size_m"] == 20
    assert known["inputs"]["s2"]["dates"] == ["2020-01-03", "2020-06-30", "2021-02-11"]
    assert known["statistics"].startswith("computed from this tile")
    assert known["weights"]["weights"] == "untrained"


def test_tiles_and_areas_are_told_apart_by_their_weights_alone(run, tmp_path, s2):
    """What weights say of where they come from is no proof: two may say the same."""
    torch.manual_seed(1)
    save(AnySat(ModelConfig(dim=DIM, depth=1, num_heads=2).with_modalities(M["s1-des"])), tmp_path / "w.safetensors")
    run(s2, out="tile.zarr")
    run(s2, "--readers=1", out="area.zarr")
    run(s2, f"--weights={tmp_path / 'w.safetensors'}", out="other.zarr")
    tile, area, other = (tmp_path / f"{name}.zarr" for name in ("tile", "area", "other"))
    assert [found.level for found in validate_models([tile, area])] == ["ok"]
    assert [found.level for found in validate_models([tile, other])] == ["error"]


@pytest.mark.parametrize(("dense", "key"), [("aerial", "aerial"), ("first", "s2"), ("null", None)])
def test_the_dense_modality_is_a_choice(run, tmp_path, s2, aerial, dense, key):
    _, report, _ = run(s2, aerial, "--dense", dense, out="out.tif")
    assert (tmp_path / "out_dense.tif").exists() == (key is not None)
    assert (f"dense for {key}" if key else "no dense") in report


def test_data_in_other_units_than_the_statistics_are_converted(run, tmp_path):
    bands = ("VV", "VH", "VV/VH")
    statistics = BandStatistics(bands=bands, mean=(-10, -17, 1), std=(3, 3, 1), units=("dB", "dB", "ratio"))
    Normaliser(statistics={"d": {"s1": statistics}}, source="by hand").save(tmp_path / "s.json")
    power = np.random.default_rng(0).uniform(0.01, 0.3, (2, 2, 6, 6)).astype(np.float32)
    dates = ["2020-01-03", "2020-06-30"]
    for name, values in (("linear", power), ("dB", 10 * np.log10(power))):
        write_nc(tmp_path / f"{name}.nc", cube(values, geobox((6, 6)), dates, bands[:2], units=name))
        status, report, _ = run(f"s1={tmp_path / name}.nc", f"--statistics={tmp_path / 's.json'}", out=f"{name}.zarr")
        assert status == 0
        assert ("s1 converted from linear to dB" in report) == (name == "linear")
        assert "statistics: by hand" in report
    ours, theirs = (groups(tmp_path / f"{name}.zarr")["dense"]["embedding"].values for name in ("linear", "dB"))
    assert ours.shape == theirs.shape  # the ratio band differs, so the vectors may


def test_an_input_without_a_valid_value_is_told(run, tmp_path, s2):
    empty = write_tif(
        tmp_path / "s1_20200103.tif", np.full((2, 7, 9), np.nan, np.float32), geobox((7, 9)), names=("VV", "VH")
    )
    status, report, _ = run(f"s1={empty}", s2)
    assert status == 0
    assert "inputs without valid values: s1" in report
    assert "dense for s2" in report


MISTAKES = {
    "no such file": (("s2=nowhere.nc",), {}, "no such file or folder; expected an input for 's2'"),
    "no such modality": (("s3=a.nc",), {}, "unknown modality 's3'; closest"),
    "twice": (("S2", "S2"), {}, "each modality once"),
    "a patch that breaks sub-patches": (("S2",), {"patch_size_m": 25}, "must be a multiple of 10 m"),
    "a patch larger than the ground": (("S2",), {"patch_size_m": 80}, "larger than the 70.0 x 90.0 m"),
    "a patch of no size": (("S2",), {"patch_size_m": 0}, "--patch-size-m: expected a positive number"),
    "an output of another kind": (("S2",), {"out": "out.jpg"}, "a name ending in .zarr, .tif or .parquet, or without suffix"),
    "dense of what is not given": (("S2", "--dense=aerial"), {}, "unknown dense modality 'aerial'"),
    "a unit nobody knows": (("S2", "--units=[s2=percent]"), {}, "unknown unit 'percent'"),
    "a device that is not there": (("S2", "--device=abacus"), {}, "--device: expected a device of this machine"),
    "statistics of other sensors": (("S1", "--statistics=treesatai_ts"), {}, "statistics of s1: there are none in"),
    "statistics nobody knows": (("S2", "--statistics=treesat"), {}, "unknown statistics 'treesat'; closest: treesatai_ts"),
    "weights that are not there": (("S2", "--weights=w.pth"), {}, "w.pth: no such file or folder; expected a weight file"),
}  # fmt: skip


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_line_and_leaves_nothing(run, tmp_path, s2, mistake):
    s1 = write_tif(tmp_path / "s1_20200103.tif", ramp(2, 7, 9, dtype="float32"), geobox((7, 9)), names=("VV", "VH"))
    words, options, expected = MISTAKES[mistake]
    status, _, errors = run(*({"S2": s2, "S1": f"s1={s1}"}.get(word, word) for word in words), **options)
    assert status == 2
    assert expected in errors
    assert errors.startswith("anysat embed: ")
    assert errors.count("\n") == 1
    assert left_behind(tmp_path) == []


def test_a_tile_without_a_valid_value_is_refused(run, tmp_path):
    empty = write_tif(
        tmp_path / "s1_20200103.tif", np.full((2, 7, 9), np.nan, np.float32), geobox((7, 9)), names=("VV", "VH")
    )
    status, _, errors = run(f"s1={empty}")
    assert status == 2
    assert "no valid value in any modality of tile out" in errors
    assert left_behind(tmp_path) == []


def test_an_output_is_replaced_only_when_asked_to(run, tmp_path, s2):
    assert run(s2, out="out")[0] == 0
    status, _, errors = run(s2, out="out", patch_size_m=10)
    assert (status, "out.zarr" in errors, "replace it with --overwrite true" in errors) == (2, True, True)
    assert run(s2, "--overwrite=true", "--dense=null", out="out", patch_size_m=10)[0] == 0
    assert left_behind(tmp_path) == ["out.png", "out.tif", "out.zarr"]
    with rasterio.open(tmp_path / "out.tif") as tif:
        assert tif.shape == (7, 9)


@pytest.fixture
def full_at(monkeypatch):
    """A disk on which no file may be longer than some bytes."""
    usual, most = resource.getrlimit(resource.RLIMIT_FSIZE)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)  # Python would keep the beginning of a module
    yield lambda num_bytes: resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, most))
    resource.setrlimit(resource.RLIMIT_FSIZE, (usual, most))


@pytest.mark.parametrize("out", ["out.zarr", "out.tif", "out"])
@pytest.mark.parametrize("most_bytes", [2_000, 12_000])
def test_a_full_disk_leaves_nothing(run, tmp_path, s2, out, most_bytes, full_at):
    full_at(most_bytes)
    status, _, errors = run(s2, out=out, patch_size_m=10)
    assert status == 2, errors
    assert "could not be written" in errors
    assert "nothing was left behind" in errors
    assert left_behind(tmp_path) == []


def test_help_needs_not_even_numpy():
    program = (
        "import sys; from anysat.cli import main\ntry: main(['embed', '--help'])\nexcept SystemExit: pass\n"
        "assert not {'torch', 'xarray', 'rasterio', 'numpy'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "--patch-size-m" in done.stdout


@pytest.mark.parametrize("tile", TREES)
def test_a_treesatai_tile_with_all_its_sensors_is_embedded_in_one_call(run, tmp_path, shared_data, tile):
    aerial = next((shared_data / "treesatai_ts" / "aerial").glob(f"{tile}_*.tif"))
    series = next((shared_data / "treesatai_ts" / "sentinel-ts").glob(f"{tile}_*.h5"))
    keys = ("s2", "s1-asc", "s1-des")
    status, report, errors = run(f"aerial={aerial}", *(f"{key}={series}" for key in keys), patch_size_m=10)
    assert status == 0, errors
    assert "6 x 6 patches of 10 m, 60 x 60 m of the 60.8 x 60.8 m" in report
    found = groups(tmp_path / "out.zarr")
    assert np.isfinite(found["patch"]["embedding"]).all()
    assert np.isfinite(found["dense"]["embedding"]).all()
    assert found["dense"]["embedding"].shape == (2 * DIM, 30, 30)


def test_the_treesatai_preset_takes_aerial_and_sentinel_2(run, shared_data):
    aerial = next((shared_data / "treesatai_ts" / "aerial").glob(f"{TREES[0]}_*.tif"))
    series = next((shared_data / "treesatai_ts" / "sentinel-ts").glob(f"{TREES[0]}_*.h5"))
    status, report, _ = run(f"aerial={aerial}", f"s2={series}", "--statistics=treesatai_ts")
    assert status == 0
    assert "statistics: published with AnySat for TreeSatAI-TS" in report


@pytest.mark.parametrize("patch", PATCHES)
def test_a_640_m_crop_patch_with_dense_series_is_embedded(run, tmp_path, shared_data, patch):
    stored = dict(np.load(shared_data / "crop_patches_multisensor" / f"{patch}.npz"))
    crs = f"EPSG:{stored['epsg']}"
    left, top = stored["x_10m"][0] - 5, stored["y_10m"][0] + 5
    fine, coarse = (geobox((n, n), 640 / n, left, top, crs) for n in (64, 32))
    bands = ["B05", "B06", "B07", "B8A", "B11", "B12"]
    s2, box = stored["s2_20m"], coarse
    if "s2_10m" in stored:
        s2 = np.concatenate([stored["s2_10m"], s2.repeat(2, -1).repeat(2, -2)], axis=1)
        bands, box = ["B02", "B03", "B04", "B08", *bands], fine
    inputs = {"s2": cube(s2, box, stored["s2_dates"], bands, nodata=0),
              "s1": cube(stored["s1"], coarse, stored["s1_dates"], ["VV", "VH"], units="dB")}  # fmt: skip
    if "l8" in stored:
        names = ["B02", "B03", "B04", "B05", "B06", "B07", "B10", "B11"]
        inputs["l8"] = cube(stored["l8"], fine, stored["l8_dates"], names, nodata=0)
    words = [f"{key}={write_nc(tmp_path / f'{key}.nc', values)}" for key, values in inputs.items()]
    status, report, errors = run(*words, patch_size_m=80)
    assert status == 0, errors
    assert "8 x 8 patches of 80 m" in report
    assert "bilinear of 20 m pixels" in report
    found = groups(tmp_path / "out.zarr")
    assert np.isfinite(found["patch"]["embedding"]).all()
    assert found["dense"]["embedding"].shape == (2 * DIM, 64, 64)


def test_bigearthnet_folders_are_embedded_as_they_are_delivered(run, tmp_path, shared_data):
    folder = shared_data / "bigearthnet"
    s2 = folder / "S2" / "S2A_MSIL2A_20170613T101031_87_48"
    s1 = folder / "S1" / "S1A_IW_GRDH_1SDV_20170613T165043_33UUP_87_48"
    status, report, errors = run(f"s2={s2}", f"s1={s1}", patch_size_m=120)
    assert status == 0, errors
    assert "exact and bilinear of 20 m pixels" in report
    assert groups(tmp_path / "out.zarr")["patch"]["valid"].shape == (10, 10)


def test_inspect_compares_both_readings_of_the_fusion_attention(tmp_path, weights, shared_data, capsys, monkeypatch):
    from anysat.cli import main

    monkeypatch.setenv("COLUMNS", "200")
    aerial = next((shared_data / "treesatai_ts" / "aerial").glob(f"{TREES[0]}_*.tif"))
    series = next((shared_data / "treesatai_ts" / "sentinel-ts").glob(f"{TREES[0]}_*.h5"))
    assert main(["weights", "inspect", str(weights), f"--inputs=[aerial={aerial}, s2={series}]"]) == 0
    told = " ".join(capsys.readouterr().out.split())
    assert "agreement with fusion_attention within_token │ aerial and s2" in told
    assert main(["weights", "inspect", str(weights), f"--inputs=[s2={series}]"]) == 2
    capsys.readouterr()
    assert main(["weights", "inspect", str(weights), f"--inputs=[aerial={aerial}]"]) == 2
    assert "two sensors or more that lie in patches" in capsys.readouterr().err


def test_an_output_never_replaces_an_input(run, tmp_path, s2, weights):
    photo = write_tif(tmp_path / "out.tif", ramp(10, 6, 6), geobox((6, 6)), names=S2_NAMES)
    before = photo.read_bytes()
    for words, out in (([f"s2={photo}@2020-06-01"], "out.tif"), ([f"s2={photo}@2020-06-01"], "out"), ([s2], "s2.nc/x")):
        status, _, errors = run(*words, "--overwrite=true", out=out)
        assert status == 2
        assert "expected a path other than that of an input" in errors
    assert photo.read_bytes() == before


def test_one_folder_for_two_sensors_gives_the_same_tile_in_either_order(run, tmp_path):
    folder = tmp_path / "both"
    folder.mkdir()
    write_tif(folder / "S2_20200601.tif", ramp(10, 12, 12), geobox((12, 12)), names=S2_NAMES)
    write_tif(folder / "S1_20200601.tif", ramp(2, 6, 6, dtype="float32"), geobox((6, 6)), names=("VV", "VH"))
    for keys, out in ((("s2", "s1"), "a.zarr"), (("s1", "s2"), "b.zarr")):
        status, report, errors = run(*(f"{key}={folder}" for key in keys), out=out)
        assert status == 0, errors
        assert "60 x 60 m of the 60.0 x 60.0 m" in report


def test_bands_without_names_are_said_to_be_taken_in_order(run, aerial, s2):
    _, report, _ = run(aerial)
    assert "bands not named in the file, taken in the model's order" in report
    _, report, _ = run(s2, out="named.zarr")
    assert "not named" not in report


def test_a_grid_with_gaps_is_refused(run, tmp_path):
    dataset = cube(np.ones((1, 10, 6, 6), np.float32), geobox((6, 6)), ["2020-01-01"], S2_NAMES)
    x = dataset.x.values.copy()
    x[3:] += 20
    path = write_nc(tmp_path / "gap.nc", dataset.assign_coords(x=x))
    status, _, errors = run(f"s2={path}")
    assert status == 2
    assert "its coordinate 'x' is not evenly spaced: steps from 10 to 30" in errors


def test_dates_of_a_cube_may_be_compact_text_and_an_empty_series_is_refused(run, tmp_path):
    dataset = cube(np.ones((2, 10, 6, 6), np.float32), geobox((6, 6)), ["2020-01-01", "2020-02-01"], S2_NAMES)
    text = write_nc(tmp_path / "text.nc", dataset.assign_coords(time=["20200301", "20200601T101112"]))
    status, report, errors = run(f"s2={text}")
    assert status == 0, errors
    assert "2 dates 2020-03-01 to 2020-06-01" in report
    odd = write_nc(tmp_path / "odd.nc", dataset.assign_coords(time=["soon", "later"]))
    assert "'soon' on its axis 'time' is not a date" in run(f"s2={odd}", out="b.zarr")[2]
    none = write_nc(tmp_path / "none.nc", dataset.isel(time=slice(0, 0)))
    assert "it has no dates" in run(f"s2={none}", out="c.zarr")[2]


def test_a_date_given_against_the_files_own_is_said(run, tmp_path):
    path = write_tif(tmp_path / "scene_20200601.tif", ramp(10, 6, 6), geobox((6, 6)), names=S2_NAMES)
    assert "dated as given, though the file says 2020-06-01" in run(f"s2={path}@2021-01-15")[1]


def test_the_printed_config_runs_again(run, tmp_path, s2, weights, capsys):
    words = [s2, f"--out={tmp_path / 'out.zarr'}", "--patch-size-m=20", f"--weights={weights}"]
    with pytest.raises(SystemExit):
        main(["embed", *words, "--print-config"])
    (tmp_path / "run.yaml").write_text(capsys.readouterr().out)
    assert main(["embed", "--config", str(tmp_path / "run.yaml")]) == 0, capsys.readouterr().err
    assert (tmp_path / "out.zarr").is_dir()


def test_a_record_against_the_models_is_refused_by_field(run, tmp_path, s2):
    (tmp_path / "m.yaml").write_text(
        f"{{key: s2, sensor: x, bands: [{', '.join(S2_NAMES)}], gsd_m: 10, is_temporal: true}}"
    )
    status, _, errors = run(s2, f"--sensors={tmp_path / 'm.yaml'}")
    assert status == 2
    assert "modality 's2', normalises_over_dates: expected True, as in the model" in errors


def test_a_folder_that_was_made_for_nothing_is_removed(run, tmp_path, s2, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("anysat.geo.write.writers.ZarrWriter.write", full)
    status, _, errors = run(s2, out="new/out.zarr")
    assert status == 2
    assert "No space left" in errors
    assert not (tmp_path / "new").exists()


def test_a_run_that_is_told_to_stop_leaves_nothing(run, tmp_path, s2, monkeypatch):
    monkeypatch.setattr(
        "anysat.geo.write.writers.ZarrWriter.write",
        lambda *_: (tmp_path, os.kill(os.getpid(), signal.SIGTERM), time.sleep(1)),
    )
    before = signal.getsignal(signal.SIGTERM)
    try:
        status, _, errors = run(s2)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert (status, errors) == (130, "stopped\n")
    assert left_behind(tmp_path) == []
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]
