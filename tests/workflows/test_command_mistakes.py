"""What commands say: options as they are typed, nothing before it is refused, names and tables whole."""

from dataclasses import MISSING, fields
from importlib import import_module
from typing import get_type_hints

import pytest

from anysat.choices import choices_of
from anysat.cli import COMMANDS, _parse, main, make_parser
from anysat.data.open import open_dataset
from anysat.errors import UnknownNameError
from anysat.workflows.embed import EmbedConfig
from anysat.workflows.finetune import FinetuneConfig
from anysat.workflows.pretrain import PartConfig, PretrainConfig
from anysat.workflows.pretrain.run import _name_of
from miniatures import miniature


@pytest.mark.parametrize(
    ("words", "option"), [(["world", "make", "x"], "--layout"), (["predict", "run", "s2=x"], "--out")]
)
def test_an_option_that_is_missing_is_named_as_it_is_typed(words, option, capsys):
    assert main(words) == 2
    assert f"the following arguments are required: {option}\n" in capsys.readouterr().err


@pytest.mark.parametrize(("words", "name"), [
    ("datasets shwo a", "datasets show"), ("weights convrt a.pth", "weights convert"), ("world mkae", "world make"),
    ("datasts", "datasets list"), ("embd s2=a.nc", "embed"),
])  # fmt: skip
def test_a_mistyped_command_is_a_mistake_and_the_closest_are_named(words, name, capsys):
    assert main(words.split()) == 2
    out, said = capsys.readouterr()
    told = said.splitlines()[0]
    assert told.startswith("anysat: unknown command '")
    assert name in told.split("closest: ")[1]
    assert not out


@pytest.mark.parametrize("words", ["", "--help", "datasets", "weights -h", "world --help"])
def test_a_group_of_commands_alone_lists_them(words, capsys):
    assert main(words.split()) == 0
    listed = capsys.readouterr().out
    assert all(command in listed for command in COMMANDS)


@pytest.mark.parametrize("area", ["-8.9,49.6,9.1,49.7", "-.5,50,1,51", "4,50,5,51"])
@pytest.mark.parametrize("joint", ["=", " "])
def test_an_area_may_begin_west_of_greenwich(area, joint):
    words = f"s2=a.nc --area{joint}{area} --patch-size-m 20 --out a.zarr".split()
    found = _parse(make_parser("embed", EmbedConfig), EmbedConfig, words)
    assert (found.inputs, found.area, found.out) == (["s2=a.nc"], area, "a.zarr")


@pytest.mark.parametrize("words", [
    *(f"zonal a.zarr b.gpkg --out {place}x.csv" for place in ("s3://bucket/", "gs://b/", "https://host/", "/vsis3/b/")),
    "embed s2=a.nc --patch-size-m 20 --out s3://bucket/x.zarr", "embed --update s3://bucket/x.zarr",
    "evaluate run --out s3://bucket/x.json", "predict run s2=a.nc --out s3://bucket/x.tif",
    "world make s3://bucket/x --layout pastis_hd", "probe --preset world-land-cover --out s3://bucket/x",
    "pretrain --preset world-nano --out s3://bucket/x", "datasets pack treesatai_ts a --out s3://bucket/x",
    "similar a.zarr --to 1,2 --out s3://bucket/x.tif", "classify a.zarr b.gpkg --column c --out s3://bucket/x.tif",
    "weights convert a.pth --out s3://bucket/x.safetensors", "demo --out s3://bucket/x",
])  # fmt: skip
def test_nothing_is_written_to_an_address(words, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(words.split()) == 2
    said = capsys.readouterr().err
    assert "expected a local path, got '" in said
    assert "copy the result" in said
    assert not list(tmp_path.iterdir())


def test_an_option_whose_value_was_forgotten_does_not_take_the_next_option(capsys):
    assert main(["embed", "s2=a.nc", "--area", "--out", "a.zarr"]) == 2
    assert "expected one argument" in capsys.readouterr().err


@pytest.mark.parametrize(("words", "told"), [
    ("embed a --out=b --patch-size-m=20 --store=floot32", "unknown --store 'floot32'; closest: float32, float16"),
    ("embed a --out=b --patch-size-m=20 --keep serie", "unknown --keep 'serie'; closest: series, features"),
    ("embed a --out=b --patch-size-m=20 --overwrit", "unknown option '--overwrit'; closest: --overwrite,"),
    ("embed a --out=b --patch-size-m=20 --window four", "--window: expected a whole number or null, got 'four'"),
    ("embed a --out=b", "the following arguments are required: --patch-size-m"),
    ("embed --update a.zarr --window 4", "`anysat embed --update --help` lists all"),
    ("plan a --patch-size-m=20 --update=b.zarr", "unknown option '--update'"),
    ("evaluate --compare run", "unrecognized arguments: run"),
    ("sensors --modalities a.yaml", "unknown option '--modalities'; closest: --"),
    ("finetune --model.modality-files a.yaml", "`anysat finetune --help` lists all"),
    ("embed a --out b --patch-size-m 20 --json a.json", "'--json'; closest"),
    ("pretrain --engine.precision 32 --out=b", "unknown --engine.precision '32'; closest: float32"),
    ("pretrain --engine.devices many --out=b", "--engine.devices: expected auto or a whole number, got 'many'"),
    ("pretrain --data [{dataset:world,sampler:none}] --out=b", "--data"),
    ("pretrain --keep.loggers csv,tensor --out=b", "unknown --keep.loggers 'tensor'; closest: tensorboard"),
    ("pretrain --recompute=maybe --out=b", "--recompute: expected true or false, got 'maybe'"),
    ("probe --config none.yaml", "--config: File does not exist"),
    ("world make x --layout", "argument --layout: expected one argument"),
    ("plan --patch-size-m=20", "expected inputs, such as s2=cube.nc, got None"),
    ("datasets pack a b --verify --num-workers 3", "--num-workers: expected the default, without --out"),
    ("weights inspect nano --patch-size-m 10", "--patch-size-m: expected the default, without --inputs"),
])  # fmt: skip
def test_a_mistake_in_an_option_is_one_line(words, told, capsys):
    assert main(words.split()) == 2
    out, said = capsys.readouterr()
    assert not out
    assert told in said
    assert len(said.splitlines()) == 1
    command = max((name for name in COMMANDS if f"{words} ".startswith(f"{name} ") and "--" not in name), key=len)
    assert said.startswith(f"anysat {command}: ")


@pytest.mark.parametrize(("command", "text", "option"), [
    ("sensors", "modalities: a.yaml", "--modalities"), ("plan a --patch-size-m=20", "update: a.zarr", "--update"),
    ("evaluate run", "data: {dataset: world}", "--data.dataset"),
    ("finetune --out=run", "model: {modality_files: [a.yaml]}", "--model.modality-files"),
])  # fmt: skip
def test_an_unknown_option_in_a_file_is_told_like_a_typed_one(command, text, option, tmp_path, capsys):
    (tmp_path / "a.yaml").write_text(text)
    assert main([*command.split(), f"--config={tmp_path / 'a.yaml'}"]) == 2
    said = capsys.readouterr().err
    assert f"unknown option '{option}'; closest: --" in said
    assert "shtab" not in said
    assert len(said.splitlines()) == 1


@pytest.mark.parametrize("words", ["predict RUN s2=a.nc --out a.tif", "datasets predict RUN world a --out a.parquet"])
def test_a_run_over_folds_cannot_predict_but_its_folds_are_named(words, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "RUN").mkdir()
    (tmp_path / "RUN" / "folds.json").write_text('{"folds": {"fold1": {}, "seed1/fold2": {}}}')
    assert main(words.split()) == 2
    assert "give one of RUN/fold1, RUN/seed1/fold2" in capsys.readouterr().err


@pytest.mark.parametrize("word", ["--engine.compile", "--optimiser.decay-all", "--resume"])
def test_a_switch_needs_no_value(word, tmp_path):
    words = ["--out", str(tmp_path), word]
    found = _parse(make_parser("finetune", FinetuneConfig), FinetuneConfig, words)
    assert (found.engine.compile, found.optimiser.decay_all, found.resume).count(True) == 1


@pytest.mark.parametrize("command", COMMANDS)
def test_a_choice_is_told_in_python_as_on_the_command_line(command):
    """Every field with a fixed set of values is checked when its config is made."""
    module, name, _ = COMMANDS[command]
    config = getattr(import_module(module), name)
    required = {one.name: "a" for one in fields(config)
                if one.default is MISSING and one.default_factory is MISSING}  # fmt: skip
    for option, kind in get_type_hints(config).items():
        if choices_of(kind):
            with pytest.raises(UnknownNameError, match=f"unknown --{option.replace('_', '-')} 'nothing'"):
                config(**{**required, option: "nothing"})


def test_packing_into_a_folder_that_is_there_is_refused_before_anything_is_said_to_be_done(tmp_path, capsys):
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "file").touch()
    words = ["datasets", "pack", "treesatai_ts", str(miniature("treesatai_ts")), f"--out={tmp_path / 'there'}"]
    assert main(words) == 2
    said = capsys.readouterr().err
    assert "to do" not in said
    assert "exists; give another name" in said


def test_parts_of_one_dataset_are_told_apart_by_number_and_sensors():
    parts = [
        PartConfig(dataset=name, modalities=keys) for name, keys in (("world", ["s2"]), ("a", None), ("world", None))
    ]
    told = [_name_of(PretrainConfig(data=parts), number) for number in range(3)]
    assert told == [", part 1 of 3 (s2)", "", ", part 3 of 3"]


def test_every_split_of_a_small_sickle_has_a_sample(tmp_path):
    for tiles in (2, 3, 8):
        assert main(["world", "make", str(tmp_path / str(tiles)), "--layout=sickle", f"--tiles={tiles}"]) == 0
        splits = [len(open_dataset("sickle", tmp_path / str(tiles), split)) for split in ("train", "val", "test")]
        assert min(splits) > 0, (tiles, splits)


@pytest.mark.parametrize(("words", "held"), [
    ("sensors", "aerial orthophoto (TreeSatAI)"), ("datasets list", "CDLA-Permissive-1.0"),
    ("datasets describe flair", "building, pervious surface, impervious surface, bare soil, water, coniferous"),
])  # fmt: skip
def test_tables_are_whole_in_a_pipe_and_folded_where_lines_are_short(words, held, monkeypatch, capsys):
    monkeypatch.delenv("COLUMNS", raising=False)
    assert main(words.split()) == 0
    wide = capsys.readouterr().out
    assert held in wide
    monkeypatch.setenv("COLUMNS", "80")
    assert main(words.split()) == 0
    narrow = capsys.readouterr().out
    assert max(len(line) for line in narrow.splitlines() if line.startswith("│")) <= 80
    assert narrow.count("…") == wide.count("…") == 0
