"""Options of labelled tasks: what is refused, what a run that is gone on with knows, what is made before hours of work."""

import json
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml

import anysat
from anysat import AnySat, ModelConfig
from anysat.cli import main
from anysat.data.base import Target
from anysat.data.open import find_dataset, open_dataset
from anysat.data.splits import TEST
from anysat.errors import InputError, LargeGroundError, RecordError, UnknownNameError, WriteError
from anysat.geo.read.descriptions import SourceDescription
from anysat.tasks.simple import Places, at_places, models
from anysat.train.config import EngineConfig, KeepConfig
from anysat.train.run import STATISTICS, check_same, wait_for
from anysat.workflows import predict
from anysat.workflows.evaluate import CompareConfig, EvaluateConfig, compare
from anysat.workflows.evaluate.turns import make_turns
from anysat.workflows.finetune import FinetuneConfig
from anysat.workflows.finetune import run as finetune_run
from anysat.workflows.finetune.presets import PRESETS as FINETUNES
from anysat.workflows.predict import tile as predict_tile
from anysat.workflows.pretrain import ModelOptions, PretrainConfig
from anysat.workflows.probe import ProbeConfig
from anysat.workflows.probe.presets import PRESETS as PROBES
from anysat.workflows.supervised import parts as task_parts
from anysat.workflows.supervised.config import LabelledData
from anysat.workflows.supervised.data import OpenData, open_data, place_of
from anysat.workflows.supervised.parts import fitted_task, with_statistics
from area_builders import KIND, predictor
from miniatures import miniature
from own_builders import described, image
from task_commands import world_words


@pytest.mark.parametrize(("keep", "instead"), [
    ({"keep_best": "val/loss"}, "--monitor"), ({"best_is_highest": True}, "--monitor"),
    ({"min_steps": 5}, "--min-epochs"), ({"keep_best": "val/loss", "patience": 2}, "--monitor"),
])  # fmt: skip
def test_what_fine_tuning_has_options_of_its_own_for_is_refused_with_their_name(keep, instead):
    with pytest.raises(RecordError, match=instead):
        FinetuneConfig(keep=KeepConfig(**keep))


def test_the_shape_of_a_new_encoder_is_refused_beside_weights():
    shape = ModelOptions(dim=64, num_heads=4)
    with pytest.raises(RecordError, match="--weights null"):
        FinetuneConfig(model=shape)
    assert FinetuneConfig(model=shape, weights=None).model is shape
    FinetuneConfig(model=shape, resume=True)  # a run that was begun when nothing listened to it


def test_a_probe_tries_learning_rates_up_to_that_which_classes_of_pixels_want_and_published_ones_their_own():
    """Of land cover of the generated world 0.03, the largest before, was the best."""
    assert max(ProbeConfig().learning_rates) == 0.1
    assert PROBES["pastis"]().learning_rates == [5e-5]


def test_fine_tuning_in_shards_is_refused_before_it_begins():
    with pytest.raises(RecordError, match="fsdp"):
        FinetuneConfig(engine=EngineConfig(strategy="fsdp"))


@pytest.mark.parametrize("config", [FinetuneConfig, ProbeConfig, PretrainConfig])
def test_a_run_that_is_gone_on_with_has_the_options_it_was_begun_with(config, tmp_path):
    (tmp_path / "config.yaml").write_text(yaml.safe_dump({"seed": 7, "out": "x", "resume": False, "max_steps": 3}))
    assert config.starting_point({"out": str(tmp_path), "resume": True}) == {"seed": 7}
    assert config.starting_point({"out": str(tmp_path), "resume": False}) == {}
    assert config.starting_point({"out": str(tmp_path / "none"), "resume": True}) == {}


@pytest.mark.parametrize("value", [0.0, None])
def test_a_run_that_lacks_an_option_is_refused_because_nobody_knows_how_it_worked(value):
    with pytest.raises(RecordError, match=r"run, objective\.new: expected absent, as in the existing run"):
        check_same("run", {"objective": {"a": 1}}, {"objective": {"a": 1, "new": value}})


def test_a_label_that_every_tile_has_is_taught_like_any_other():
    target = Target(name="genera", level="tile", kind="labels", classes=("always", "never", "seldom"))
    truth = torch.tensor([[1, 0, 1], [1, 0, 0], [1, 0, 0], [1, 0, 0]])
    assert fitted_task(target, truth, balanced=True).class_weights == (1.0, 1.0, 3.0)


def test_boosting_takes_a_class_of_one_sample_among_many():
    features = np.random.default_rng(0).standard_normal((10_001, 2))
    truth = (features[:, 0] > 0).astype(int)
    truth[0] = 2
    target = Target(name="x", level="tile", kind="class", classes=("a", "b", "c"))
    model = models(target, 0, len(truth))["boosting"][0].set_params(max_iter=2)
    assert set(model.fit(features, truth).classes_) == {0, 1, 2}


def test_the_folder_of_scores_is_made_before_anything_is_computed(tmp_path):
    with pytest.raises(UnknownNameError, match="nonsense"):
        compare(CompareConfig(models=["nonsense"], out=str(tmp_path / "new" / "all.json")))
    assert (tmp_path / "new").is_dir()
    (tmp_path / "file").write_text("")
    with pytest.raises(WriteError, match="is a file"):
        compare(CompareConfig(out=str(tmp_path / "file" / "all.json")))


class Part(list):
    """Tiles by the member of the dataset's own splits that they are in."""

    @property
    def samples(self):
        return SimpleNamespace(columns={"split": np.array(self)})

    ids = property(list)


@pytest.mark.parametrize(("folds", "members", "tested"), [
    (["train", "val", "test"], ["fold1", "fold2", "fold3", "fold4", "fold5"], [0, 0, 0, 1, 2]),
    (["fold1+fold2", "fold3", "fold4+fold5"], ["fold1", "fold2", "fold3", "fold4", "fold5"], [0, 0, 1, 2, 2]),
    (["fold1+val", "fold2+fold3", "test"], ["fold1", "fold2", "fold3", "fold4", "fold5"], [0, 1, 1, 0, 2]),
    (["fold1", "fold2", "fold3"], ["fold1", "fold2", "fold3"], [0, 1, 2]),
])  # fmt: skip
def test_folds_may_be_splits_and_members_joined(folds, members, tested):
    record = find_dataset("pastis_hd")
    parts = [Part(part) for part in (members[:1], members[1:2], members[2:])]
    data = OpenData(record=record, target=record.targets[0], train=parts[0], val=parts[1], test=parts[2])
    config = CompareConfig(data=LabelledData(dataset="pastis_hd", folds=folds))
    turns = make_turns(config, data, [(np.nan, np.nan)] * len(members))
    assert np.argmax(turns.roles == TEST, axis=0).tolist() == tested


def test_a_list_of_bands_is_of_a_path_and_refused_of_a_catalog():
    assert SourceDescription(path="x.tif", bands=("R", "G")).bands == ("R", "G")
    with pytest.raises(RecordError, match="path"):
        SourceDescription(stac="https://example.org/api", bands=("R", "G"))


def test_answers_of_a_tile_are_not_asked_of_ground_that_is_too_large_for_one(tmp_path, monkeypatch):
    def too_large(*_):
        raise LargeGroundError("ground", "too large", "take less")

    monkeypatch.setattr(predict_tile, "predict_tile", too_large)
    monkeypatch.setattr("anysat.tasks.predictor.load_task", lambda *_, **__: predictor(KIND))
    config = predict.PredictConfig(run="run", inputs=["s2=x.tif"], out=str(tmp_path / "a.json"))
    with pytest.raises(LargeGroundError, match=r"a.json: it is one answer.* \(ground: too large; .*--out NAME.zarr"):
        predict.predict(config)
    assert not list(tmp_path.iterdir())


def test_answering_needs_no_package_of_training():
    said = subprocess.run(
        [sys.executable, "-c", "import sys; sys.modules['torchmetrics'] = None; import anysat.tasks.predictor"],
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert said.returncode == 0, said.stderr


def test_other_processes_wait_for_what_the_first_one_makes(tmp_path):
    path = tmp_path / "statistics.json"
    threading.Timer(0.5, lambda: path.write_text("{}")).start()
    began = time.monotonic()
    wait_for(path)
    assert path.is_file()
    assert time.monotonic() - began > 0.3


class Alternating(list):
    """Tiles whose classes come in turns; the third is seldom."""

    def __init__(self, count):
        numbers = [2 if n == count // 2 else n % 2 for n in range(count)]
        super().__init__(SimpleNamespace(targets={"kind": np.int64(number)}) for number in numbers)


@pytest.mark.parametrize("has_list", [True, False])
def test_balanced_classes_of_a_sample_leave_none_out(has_list, monkeypatch):
    monkeypatch.setattr(finetune_run, "MOST_TARGETS", 6)
    target = Target(name="kind", level="tile", kind="class", classes=("flood", "dry", "seldom"))
    tiles = Alternating(12)  # every second of which has one class
    if has_list:
        tiles.labels = lambda: np.array([int(tile.targets["kind"]) for tile in tiles])
    record = SimpleNamespace(name="own", targets=(target,), list_labels=(lambda: None) if has_list else None)
    config = SimpleNamespace(class_weights="balanced", void_output=False, monitor=None, seed=0)
    weights = finetune_run._task(config, SimpleNamespace(target=target, train=tiles, record=record)).class_weights
    assert min(weights) > 0
    if has_list:
        assert weights == pytest.approx([12 / 3 / 5, 12 / 3 / 6, 12 / 3])


@pytest.mark.parametrize(
    ("config", "words", "told"),
    [
        (EvaluateConfig, {"run": "r", "crop_m": 60.0, "batch_size": 2}, "--batch-size.*with --crop-m"),
        (CompareConfig, {"compare": False}, "--compare: expected true, or RUN without it"),
        (CompareConfig, {"data": {"folds": ["a", "b", "c"], "val": None}}, "--data.val: .*with --data.folds"),
        (CompareConfig, {"folds": 5, "data": {"train_frac": 0.1}}, "--data.train-frac.*folds"),
        (CompareConfig, {"data": {"train_frac": 0.1, "folds": ["a", "b", "c"]}}, "--data.train-frac.*folds"),
    ],
)
def test_what_would_not_be_heard_by_an_evaluation_is_refused(config, words, told):
    with pytest.raises(RecordError, match=told):
        config(**words)
    EvaluateConfig(run="r", data={"root": "/moved"}, split="val")
    CompareConfig(data={"train_frac": 0.1}, seed=5, cache="c", max_pixels=5)


@pytest.mark.parametrize("words", [
    "r --data.modalities s2", "r --patch-sizes-m 10", "r --max-pixels 5", "r --seed 5", "r --cache c",
    "--compare --batch-size 2", "--compare --split val", "--compare --crop-m 60",
])  # fmt: skip
def test_options_of_a_comparison_are_none_of_a_run_and_the_other_way_round(words, capsys):
    assert main(["evaluate", *words.split()]) == 2
    option = words.split()[-2]
    assert f"unknown option '{option}'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("config", "words", "told"),
    [
        (ProbeConfig, {"method": "knn", "learning_rates": [5.0]}, "--learning-rates: .*with --method knn"),
        (ProbeConfig, {"method": "knn", "weight_decays": [0.0]}, "--weight-decays: .*with --method knn"),
        (ProbeConfig, {"method": "knn", "epochs": 1}, "--epochs: .*with --method knn"),
        (ProbeConfig, {"method": "knn", "patience": None}, "--patience: .*with --method knn"),
        (ProbeConfig, {"method": "knn", "void_output": True}, "--void-output: .*with --method knn"),
        (ProbeConfig, {"method": "knn", "batch_size": 4}, "--batch-size: .*with --method knn"),
        (ProbeConfig, {"num_neighbours": [7]}, "--num-neighbours: .*with --method linear"),
        (ProbeConfig, {"data": {"folds": ["a", "b", "c"], "train": "x"}}, "--data.train: .*with --data.folds"),
        (FinetuneConfig, {"data": {"folds": ["a", "b", "c"], "test": "x"}}, "--data.test: .*with --data.folds"),
        (FinetuneConfig, {"data": {"folds": ["a", "b", "c"], "val_frac": 0.3}}, "--data.val-frac: .*with --data.folds"),
        (FinetuneConfig, {"trained": "head", "layer_decay": 0.5}, "--layer-decay: .*with --trained head"),
        (FinetuneConfig, {"trained": "all", "lora_rank": 4}, "--lora-rank: .*with --trained all"),
        (FinetuneConfig, {"trained": "head", "pixel_dropout_prob": 0.1}, "--pixel-dropout-prob: .*with --trained head"),
        (FinetuneConfig, {"trained": "lora", "pixel_dropout_prob": 0.1}, "--pixel-dropout-prob: .*with --trained lora"),
    ],
)
def test_options_that_what_is_asked_for_does_not_hear_are_refused(config, words, told):
    with pytest.raises(RecordError, match=told):
        config(**words)
    begun = config(**words, resume=True)  # by an earlier version, which accepted them
    assert begun.to_dict()["resume"] is False
    config(**{name: value for name, value in words.items() if name in ("method", "trained")})


def test_what_a_preset_has_that_is_not_heard_nobody_asked_for():
    pastis = PROBES["pastis"]()
    ProbeConfig(**{**vars(pastis), "preset": "pastis", "method": "knn", "head": None})
    with pytest.raises(RecordError, match="--epochs: .*with --method knn"):
        ProbeConfig(**{**vars(pastis), "preset": "pastis", "method": "knn", "head": None, "epochs": 3})
    recommended = {**vars(FINETUNES["bradd-recommended"]()), "preset": "bradd-recommended"}
    FinetuneConfig(**{**recommended, "trained": "head"})
    with pytest.raises(RecordError, match="--layer-decay: .*with --trained head"):
        FinetuneConfig(**{**recommended, "trained": "head", "layer_decay": 0.5})


@pytest.mark.parametrize("command", ["probe", "finetune"])
def test_a_run_that_was_begun_with_an_option_nobody_hears_can_be_gone_on_with(command, run_task, tmp_path):
    words = ["--method=knn"] if command == "probe" else ["--trained=head", "--epochs=1"]
    assert run_task(command, *world_words(), *words, "--report=false")[0] == 0
    kept = tmp_path / "run" / "config.yaml"
    old, new = ("epochs: 50", "epochs: 3") if command == "probe" else ("lora_rank: 8", "lora_rank: 4")
    assert old in kept.read_text()
    kept.write_text(kept.read_text().replace(old, new))
    status, _, err = run_task(command, "--resume")
    assert status == 0, err


def test_a_place_of_a_coarser_target_has_the_mean_of_the_pixels_it_covers():
    values = np.arange(64.0).reshape(1, 8, 8)
    values[0, 0, 0] = np.nan
    places = Places(tile=np.zeros(2, int), row=np.array([0, 3]), col=np.array([0, 2]), truth=np.zeros(2))
    found = at_places({"s2": values}, places, 0, (4, 4))
    np.testing.assert_allclose(found[:, 0], [(1 + 8 + 9) / 3, values[0, 6:8, 4:6].mean()])
    same = at_places({"s2": values[:, :4, :4]}, places, 0, (4, 4))
    np.testing.assert_array_equal(same[:, 0], [values[0, 0, 0], values[0, 3, 2]])


def test_what_no_pixel_of_a_tile_has_is_missing_and_not_zero():
    values = np.stack([np.full((2, 2), np.nan), [[1.0, np.nan], [3.0, np.nan]]])
    found = at_places({"s2": values}, Places(tile=np.zeros(1, int), row=None, col=None, truth=np.zeros(1)), 0, None)
    np.testing.assert_array_equal(found, [[np.nan, 2, np.nan, 1]])


@pytest.mark.parametrize("command", ["probe", "finetune"])
def test_a_run_that_an_option_kept_from_beginning_is_begun_with_the_right_one(command, run_task, tmp_path):
    words = [*world_words(), "--epochs=1", "--report=false"]
    status, _, err = run_task(command, *words, "--monitor=rmse")
    assert (status, "rmse" in err) == (2, True), err
    assert {path.name for path in (tmp_path / "run").iterdir()} <= {"features"}, "embeddings are kept"
    status, _, err = run_task(command, *words)
    assert status == 0, err
    assert (tmp_path / "run" / "scores.json").is_file()


def test_of_weights_with_several_datasets_a_run_keeps_the_statistics_and_the_source_of_its_own(tmp_path):
    encoder, name = anysat.load("nano"), "bigearthnet_pairs"
    assert "of world," in encoder.normaliser.source
    data = SimpleNamespace(record=SimpleNamespace(name=name), normaliser=None)
    with_statistics(encoder, data, None, ["s2"], tmp_path, 0)
    assert list(encoder.normaliser.statistics) == [name]
    assert f"of {name}," in encoder.normaliser.source
    assert "world" not in encoder.normaliser.source


def test_statistics_kept_by_a_probe_are_computed_again_where_they_are_of_other_tiles(tmp_path, monkeypatch):
    """As where tiles came to the data before `--resume`; where there are many, they are of a sample."""
    monkeypatch.setattr(task_parts, "MOST_STATISTICS_TILES", 4)
    parts = {}
    for tiles in (6, 9, 9):
        train = open_dataset("timesen2crop", miniature("timesen2crop", tiles=tiles), "all")
        encoder, data = AnySat(ModelConfig.tiny()), SimpleNamespace(record=train.record, train=train, normaliser=None)
        with_statistics(encoder, data, None, ["s2"], tmp_path, 0)
        parts.setdefault(tiles, []).append((tmp_path / STATISTICS).stat().st_mtime_ns)
        told = json.loads((tmp_path / STATISTICS).read_text())["provenance"]["timesen2crop"]
        assert (told["tiles"], told["tiles_available"]) == (4, tiles)
    assert len(set(parts[9])) == 1, "once"


def _in_blocks(root, num_blocks):
    """Own data of so many squares of ground, five tiles in each."""
    rows = [f"b{n}t{m},{0.05 + 0.2 * n},{52 + m / 1000},{'pq'[m % 2]}" for n in range(num_blocks) for m in range(5)]
    image(root / "s2" / "b0t0.tif")
    (root / "tiles.csv").write_text("id,lon,lat,kind\n" + "\n".join(rows) + "\n")
    found = described(root, tiles="tiles.csv", targets={"kind": {"column": "kind"}},
                      splits={"shares": {"train": 0.7, "test": 0.3}, "block_m": 3000, "seed": 1})  # fmt: skip
    return LabelledData(dataset=found, root=str(root))


def test_validation_is_held_out_by_the_blocks_of_ground_that_the_data_are_split_by(tmp_path):
    """Else every validation tile would have a training tile beside it."""
    data = open_data(_in_blocks(tmp_path, 12), 0)
    blocks = {name: {one[:-2] for one in getattr(data, name).ids} for name in ("train", "val", "test")}
    assert not blocks["val"] & blocks["train"]
    assert not (blocks["val"] | blocks["train"]) & blocks["test"]
    assert len(data.val) == 5 * len(blocks["val"]), "whole blocks"
    assert 0.2 <= len(data.val) / (len(data.train) + len(data.val)) < 0.2 + 5 / 30
    assert data.selected_on == "0.2 of train, held out by blocks of 3000 m"


def test_a_share_of_the_training_tiles_that_lacks_a_class_is_told(tmp_path):
    data = _in_blocks(tmp_path, 12)
    with pytest.warns(
        UserWarning, match=r"no training tile of [pq] among the 1 of \d+ that --data.train-frac 0.01 drew"
    ):
        found = open_data(replace(data, train_frac=0.01), 0)
    assert found.uncut.train.ids == open_data(data, 0).train.ids
    assert found.uncut.uncut.train.ids == found.uncut.train.ids
    open_data(replace(data, train_frac=0.9), 0)  # without a warning


@pytest.mark.filterwarnings("ignore:no training tile of")
@pytest.mark.parametrize("command", ["probe", "finetune"])
def test_statistics_are_those_of_all_training_tiles_whatever_share_of_their_labels_is_used(command, run_task, tmp_path):
    root = miniature("timesen2crop", tiles=12)
    status, _, err = run_task(command, "--data.dataset=timesen2crop", f"--data.root={root}", "--epochs=1",
                              "--data.train-frac=0.5", "--report=false")  # fmt: skip
    assert status == 0, err
    run, num_train = tmp_path / "run", len(open_dataset("timesen2crop", root, "train"))
    (told,) = json.loads((run / STATISTICS).read_text())["provenance"].values()
    assert told["tiles"] == num_train
    assert json.loads((run / "scores.json").read_text())["data"]["train"]["tiles"] == round(num_train / 2)


def test_validation_cannot_be_held_out_of_one_block(tmp_path):
    data = _in_blocks(tmp_path, 12)
    text = Path(data.dataset).read_text()
    Path(data.dataset).write_text(text.replace("block_m: 3000", "block_m: 2.0e+6").replace("test: 0.3", "test: 1.0e-9"))
    with pytest.raises(InputError, match="training tiles in two blocks of 2e.06 m or more, one of which is held out"):
        open_data(replace(data, test="train", val=None), 0)


def test_a_folder_beside_a_world_to_generate_is_refused():
    with pytest.raises(InputError, match=r"dataset 'world': .*`root`.*`world`.*root nowhere"):
        place_of(LabelledData(dataset="world", root="nowhere", world={"tiles": 4, "modalities": ["s1"]}))
