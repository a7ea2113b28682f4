"""The public names, the command line, and a stranger's modality: changing what is frozen here is a visible act."""

import subprocess
import sys

import pytest
import torch

import anysat
from anysat.cli import COMMANDS, main, make_parser
from anysat.modalities import read_modalities
from anysat.model import checkpoint
from anysat.model.config import ModelConfig
from builders import random_input, random_model

PUBLIC = [
    "AnySat", "AnySatError", "Band", "Batch", "Embeddings", "MODALITIES", "Modality", "ModelConfig", "Normaliser",
    "Observation", "PatchGrid", "Tile", "__version__", "classify", "embed", "load", "load_task", "open_dataset",
    "read_modalities", "similar", "zonal",
]  # fmt: skip

AREA = {"area", "dates", "period", "window", "overlap", "also", "memory_gb", "readers", "scheduler"}
EMBED = {
    *AREA, "inputs", "out", "patch_size_m", "dense", "store", "places", "weights", "statistics", "dataset", "units",
    "sensors", "device", "precision", "keep", "overwrite",
}  # fmt: skip
PREDICT = {
    *AREA, "run", "crop_m", "inputs", "out", "probabilities", "variants", "units", "device", "precision", "overwrite",
}  # fmt: skip
OPTIONS = {
    "embed": EMBED,
    "embed --update": {
        "inputs",
        "update",
        "dates",
        "period",
        "also",
        "sensors",
        "device",
        "memory_gb",
        "readers",
        "scheduler",
    },
    "plan": EMBED | {"measure"},
    "plan --run": PREDICT | {"measure"},
    "pretrain": {
        "preset",
        "out",
        "resume",
        "max_steps",
        "data_root",
        "data",
        "num_steps",
        "seed",
        "weights",
        "statistics",
        "statistics_tiles",
        "recompute",
        "model",
        "masking",
        "objective",
        "optimiser",
        "engine",
        "keep",
        "watch",
    },
    "probe": {
        "folds",
        "repeats",
        "preset",
        "out",
        "resume",
        "weights",
        "data",
        "patch_sizes_m",
        "dense",
        "head",
        "method",
        "learning_rates",
        "weight_decays",
        "epochs",
        "patience",
        "min_epochs",
        "monitor",
        "schedule",
        "warmup_epochs",
        "clip_norm",
        "batch_size",
        "class_weights",
        "void_output",
        "day_convention",
        "statistics",
        "block_km",
        "num_neighbours",
        "seed",
        "cache",
        "device",
        "precision",
        "num_workers",
        "report",
    },
    "finetune": {
        "folds",
        "repeats",
        "preset",
        "out",
        "resume",
        "max_steps",
        "weights",
        "trained",
        "data",
        "patch_sizes_m",
        "dense",
        "head",
        "epochs",
        "batch_size",
        "layer_decay",
        "pixel_dropout_prob",
        "lora_rank",
        "class_weights",
        "void_output",
        "cut_at_random",
        "turns_and_flips",
        "keep_dates_frac",
        "day_convention",
        "statistics",
        "block_km",
        "seed",
        "model",
        "optimiser",
        "engine",
        "patience",
        "min_epochs",
        "monitor",
        "warmup_epochs",
        "keep",
        "report",
    },
    "evaluate": {
        "run",
        "split",
        "crop_m",
        "data",
        "block_km",
        "out",
        "device",
        "precision",
        "batch_size",
        "num_workers",
    },
    "evaluate --compare": {
        "compare",
        "data",
        "weights",
        "features",
        "against",
        "patch_sizes_m",
        "dense",
        "day_convention",
        "statistics",
        "layers",
        "models",
        "max_pixels",
        "folds",
        "block_km",
        "seed",
        "cache",
        "out",
        "device",
        "precision",
        "num_workers",
    },
    "predict": PREDICT,
    "zonal": {"store", "polygons", "out", "group", "overwrite"},
    "export": {"store", "out", "group", "geometry", "overwrite"},
    "similar": {"store", "to", "unlike", "out", "also", "group", "overwrite"},
    "classify": {
        "store",
        "samples",
        "column",
        "out",
        "also",
        "values",
        "probabilities",
        "dates",
        "block_km",
        "group",
        "overwrite",
    },
    "weights convert": {"dtype", "source", "out", "size", "statistics", "fusion_attention", "overwrite"},
    "weights inspect": {"source", "size", "inputs", "patch_size_m", "dataset"},
    "datasets list": {"json"},
    "datasets describe": {"name", "json"},
    "datasets check": {"name", "path", "split", "samples", "seed", "form", "json"},
    "datasets show": {"name", "path", "split", "index", "out", "form", "overwrite"},
    "datasets stats": {"name", "path", "out", "split", "modalities", "samples", "seed", "num_workers", "overwrite"},
    "datasets pack": {
        "name",
        "path",
        "out",
        "split",
        "modalities",
        "shard_mb",
        "num_workers",
        "verify",
        "overwrite",
    },
    "datasets embed": {
        "name",
        "path",
        "out",
        "weights",
        "split",
        "patch_size_m",
        "modalities",
        "statistics",
        "day_convention",
        "device",
        "precision",
        "num_workers",
        "overwrite",
    },
    "datasets predict": {
        "run",
        "name",
        "path",
        "out",
        "split",
        "labels",
        "probabilities",
        "device",
        "precision",
        "batch_size",
        "num_workers",
        "overwrite",
    },
    "catalog validate": {"paths", "quick", "json"},
    "world make": {"out", "layout", "form", "tiles", "seed", "overwrite"},
    "sensors": {"sensors"},
    "demo": {"out", "weights", "patch_sizes_m", "crop_m"},
}


def test_public_names_are_the_ones_on_record():
    assert sorted(anysat.__all__) == sorted(PUBLIC)
    for name in PUBLIC:
        assert getattr(anysat, name) is not None
    with pytest.raises(AttributeError, match="has no attribute 'Encoder'; it has AnySat"):
        anysat.Encoder  # noqa: B018


@pytest.mark.parametrize("command", COMMANDS)
def test_command_line_options_are_the_ones_on_record(command):
    from importlib import import_module

    module, config, _ = COMMANDS[command]
    parser = make_parser(command, getattr(import_module(module), config))
    names = {action.dest for action in parser._actions} - {"help", "config", "print_config"}
    found = {name for name in names if "." not in name and ".help" not in name}
    assert found | {name.partition(".")[0] for name in names} == OPTIONS[command]


HELP = """
import contextlib, io, sys
heavy = ("torch", "xarray", "rasterio", "matplotlib", "zarr", "h5py", "huggingface_hub")
if sys.argv[1] == "absent":
    sys.modules.update(dict.fromkeys(heavy))
from anysat.cli import COMMANDS, main
for command in ("", *COMMANDS):
    with contextlib.redirect_stdout(io.StringIO()) as told:
        try:
            main([*command.split(), "--help"])
        except SystemExit as stop:
            assert not stop.code, command
    page = told.getvalue()
    assert "usage: anysat" in page, (command, page)
    assert "_" not in " ".join(word for word in page.split() if word.startswith("--")), (command, page)
    loaded = [name for name in heavy if sys.modules.get(name)]
    assert not loaded, (command, loaded)
"""


@pytest.mark.parametrize("command", ["probe", "finetune", "evaluate --compare"])
def test_an_option_that_a_command_fills_in_is_not_in_its_help(command, capsys):
    with pytest.raises(SystemExit):
        main([*command.split(), "--help"])
    told = capsys.readouterr().out
    assert "--data.folds" in told
    assert "--data.fold" not in told.replace("--data.folds", "")


@pytest.mark.parametrize("packages", ["installed", "absent"])
def test_help_of_every_command_needs_no_torch_and_no_extra_and_does_not_load_them(packages):
    done = subprocess.run([sys.executable, "-c", HELP, packages], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-800:]


def test_without_the_geo_extra_weights_are_inspected_and_embed_names_the_extra(tmp_path):
    checkpoint.save(random_model(dim=64, depth=1, num_heads=2), tmp_path / "w.safetensors")
    script = (
        "import sys\n"
        "geo = ['affine', 'dask', 'h5netcdf', 'h5py', 'matplotlib', 'odc', 'pyproj', 'rasterio', 'xarray', 'zarr']\n"
        "sys.modules.update(dict.fromkeys([*geo, 'huggingface_hub']))  # which only a hub's files need\n"
        "from anysat.cli import main\n"
        "assert main(['weights', 'inspect', sys.argv[1]]) == 0\n"
        "assert main(['embed', 's2=a.nc', '--out=b', '--patch-size-m=10', '--weights=' + sys.argv[1]]) == 2\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "w.safetensors")], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-800:]
    assert "pip install 'anysat[geo]'" in done.stderr


def test_mistakes_in_a_call_exit_with_2_and_one_line(capsys, tmp_path):
    assert main(["weights", "inspect", str(tmp_path / "none.pth")]) == 2
    assert "none.pth: no such file or folder" in capsys.readouterr().err
    assert main(["wieghts"]) == 2
    assert "unknown command 'wieghts'" in capsys.readouterr().err
    assert main(["weights", "convert", str(tmp_path / "a.pth"), "--out", "b.pth"]) == 2
    assert "--out: expected a name ending in .safetensors" in capsys.readouterr().err


def test_overview_lists_every_command_and_version_prints(capsys):
    assert main([]) == 0
    listed = capsys.readouterr().out
    assert all(command in listed for command in COMMANDS)
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.strip() == anysat.__version__


def test_sensors_lists_shipped_and_own_records(capsys, tmp_path):
    (tmp_path / "drone.yaml").write_text("{key: drone, sensor: x, bands: [R], gsd_m: 0.5, is_temporal: false}")
    assert main(["sensors", "--sensors", str(tmp_path / "drone.yaml")]) == 0
    listed = capsys.readouterr().out
    assert all(key in listed for key in (*anysat.MODALITIES, "drone"))


def test_convert_writes_half_the_size_when_asked(capsys, tmp_path):
    checkpoint.save(random_model(ModelConfig(dim=64, depth=1, num_heads=2)), tmp_path / "a.safetensors")
    words = ["weights", "convert", str(tmp_path / "a.safetensors"), "--out", str(tmp_path / "b.safetensors"), "--dtype"]
    assert main([*words, "bfloat16"]) == 0
    assert (tmp_path / "b.safetensors").stat().st_size < 0.6 * (tmp_path / "a.safetensors").stat().st_size
    whole, half = (anysat.load(tmp_path / f"{name}.safetensors") for name in "ab")
    assert all(torch.allclose(one, other, rtol=1e-2, atol=1e-3) for one, other in
               zip(whole.state_dict().values(), half.state_dict().values(), strict=True))  # fmt: skip
    assert main([*words, "int8"]) == 2
    assert "unknown --dtype 'int8'; known: bfloat16, float32" in capsys.readouterr().err
    size = (tmp_path / "b.safetensors").stat().st_size
    assert main([*words, "float32"]) == 2
    assert "b.safetensors exists" in capsys.readouterr().err
    assert (tmp_path / "b.safetensors").stat().st_size == size
    assert main([*words, "float32", "--overwrite"]) == 0
    assert (tmp_path / "b.safetensors").stat().st_size > size


def test_convert_writes_a_file_that_loads_and_inspect_describes_it(capsys, tmp_path):
    config = ModelConfig(dim=64, depth=1, num_heads=2)
    checkpoint.save(random_model(config), tmp_path / "a.safetensors")
    out = tmp_path / "b.safetensors"
    words = ["weights", "convert", str(tmp_path / "a.safetensors"), "--out", str(out), "--statistics", "treesatai_ts"]
    assert main([*words, "--fusion-attention", "within_token"]) == 0
    loaded = anysat.load(out)
    assert loaded.config.fusion_attention == "within_token"
    assert loaded.normaliser == anysat.Normaliser.preset("treesatai_ts")
    assert main(["weights", "inspect", str(out)]) == 0
    told = capsys.readouterr().out
    for fact in ("within_token", "treesatai_ts", "293", "s1-asc"):
        assert fact in told


def test_words_and_options_come_in_any_order(tmp_path):
    from anysat.cli import COMMANDS, _parse, make_parser
    from anysat.workflows.predict import PredictConfig

    assert COMMANDS["predict"][1] == "PredictConfig"
    (tmp_path / "o.yaml").write_text("inputs: [s2=other.nc]\nvariants: 4\n")
    orders = (
        ["run", "s2=a.nc", "--out", "m.tif"], ["run", "--out", "m.tif", "s2=a.nc"], ["--out=m.tif", "run", "s2=a.nc"],
        ["run", "s2=a.nc", "--config", str(tmp_path / "o.yaml"), "--out", "m.tif", "--overwrite"],
    )  # fmt: skip
    for words in orders:
        found = _parse(make_parser("predict", PredictConfig), PredictConfig, words)
        assert (found.run, found.inputs, found.out) == ("run", ["s2=a.nc"], "m.tif"), words
    assert (found.variants, found.overwrite) == (4, True)


@pytest.mark.parametrize(
    ("words", "name", "wanted"),
    [
        ("probe --patch-sizes-m 20", "patch_sizes_m", [20.0]),
        ("probe --patch-sizes-m=20,40", "patch_sizes_m", [20.0, 40.0]),
        ("probe --patch-sizes-m [20]", "patch_sizes_m", [20.0]),
        ("probe --data.modalities s2", "data.modalities", ["s2"]),
        ("probe --data.modalities null", "data.modalities", None),
        ("pretrain --model.pixel-widths 8", "model.pixel_widths", [8]),
        ("datasets stats world here --out s.json --modalities s2", "modalities", ["s2"]),
        ("evaluate --compare --weights isometric:nano", "weights", ["isometric:nano"]),
        ("evaluate --compare --features theirs=t.parquet", "features", ["theirs=t.parquet"]),
        ("pretrain --keep.loggers csv", "keep.loggers", ("csv",)),
        ("embed s2=a.nc --units s1=dB --out m.tif --patch-size-m 20", "units", ["s1=dB"]),
    ],
)
def test_a_list_may_be_given_as_its_one_value(words, name, wanted):
    from importlib import import_module

    from anysat.cli import _parse, make_parser

    words = words.split()
    command = next(name for name in (" ".join(words[:2]), words[0]) if name in COMMANDS)
    options = words[len(command.split()) :]
    module, config, _ = COMMANDS[command]
    config = getattr(import_module(module), config)
    found = _parse(make_parser(command, config), config, options)
    for part in name.split("."):
        found = getattr(found, part)
    assert found == wanted


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["runs/forest"], "MODALITY=PATH: expected inputs, such as s2=cube.nc, got none"),
        (
            ["s2=series.nc"],
            "RUN: expected the run's folder, or its predictor file, as the first argument, got s2=series.nc",
        ),
        (["s2=a.nc", "s1=b.nc"], "as the first argument, got s2=a.nc"),
        ([], "RUN: expected a value"),
    ],
)
def test_predict_says_which_of_its_words_is_missing(words, message, capsys):
    assert main(["predict", *words, "--out=map.tif"]) == 2
    assert message in capsys.readouterr().err


def test_brackets_in_what_is_told_are_told(capsys, monkeypatch):
    monkeypatch.setattr("anysat.workflows.weights.convert", lambda _: "wrote /d/out[v2]/x [/x] :smile:")
    assert main(["weights", "convert", "a.pth", "--out", "b.safetensors"]) == 0
    assert capsys.readouterr().out == "wrote /d/out[v2]/x [/x] :smile:\n"


def test_a_strangers_modality_works_without_touching_the_package(tmp_path):
    (tmp_path / "thermal.yaml").write_text(
        "{key: thermal, sensor: my plane, bands: [{name: T, unit: K}], gsd_m: 5, is_temporal: true, normalises_over_dates: true}"
    )
    modalities = {**anysat.MODALITIES, **{m.key: m for m in read_modalities(tmp_path / "thermal.yaml")}}
    config = ModelConfig(dim=64, depth=1, num_heads=2).with_modalities(modalities["thermal"])
    model = random_model(config)
    x = random_input(("thermal", "s2", "aerial"), modalities=modalities)
    assert model(x, 20, "dense", "thermal").shape == (2, 12, 12, 128)
    checkpoint.save(model, tmp_path / "thermal.safetensors")
    with torch.no_grad():
        assert torch.equal(anysat.load(tmp_path / "thermal.safetensors")(x, 20, "all"), model(x, 20, "all"))


@pytest.mark.parametrize(
    "words", [["datasets", "list"], ["datasets", "describe", "pastis_hd"], ["catalog", "validate", "no"]]
)
def test_commands_without_a_model_load_no_torch(words):
    program = f"import sys; from anysat.cli import main; main({words}); import anysat.geo.zonal; assert 'torch' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
