"""`anysat finetune` on small data: what it trains, and how it ends."""

from types import SimpleNamespace

import pytest
import torch

import anysat
from anysat import AnySat, ModelConfig
from anysat.errors import InputError
from anysat.modalities import MODALITIES
from anysat.model.checkpoint import save
from anysat.model.load import load
from anysat.normalise import Normaliser
from anysat.tasks.base import make_task
from anysat.tasks.finetune import FineTuning
from anysat.tasks.predictor import load_task
from anysat.train.checkpoints import checkpoint_steps
from anysat.train.config import EngineConfig
from anysat.train.metrics import read_metrics
from anysat.train.objective import is_due
from anysat.train.run import RunFolder
from anysat.workflows.finetune import FinetuneConfig
from anysat.workflows.finetune import run as finetune_run
from anysat.workflows.finetune.run import _steps_per_epoch
from anysat.workflows.supervised.parts import check_begun
from labelled import KIND, meadow_batch
from meadow import Meadow
from task_commands import scores_of, world_words


@pytest.mark.parametrize("trained", ["head", "projectors", "lora", "all"])
def test_fine_tuning_changes_what_it_should_and_nothing_else(trained, run_task, small_weights, tmp_path):
    status, _, err = run_task("finetune", *world_words(), f"--trained={trained}", "--epochs=1", "--report=false")
    assert status == 0, err
    before, after = load(small_weights).state_dict(), load_task(tmp_path / "run").encoder.state_dict()
    changed = {name.partition(".")[0] for name in before if not torch.equal(before[name], after[name])}
    wanted = {"head": set(), "projectors": {"projectors"}, "lora": {"spatial", "fusion"}}
    assert changed == wanted.get(trained, {"projectors", "spatial", "fusion"})
    assert anysat.load(tmp_path / "run").config == load(small_weights).config


@pytest.mark.parametrize("trained", ["head", "lora"])
def test_an_encoder_that_is_trained_says_for_what_and_from_what(trained, run_task, small_weights, tmp_path):
    """It is no longer what it began from; one that was kept is."""
    model = load(small_weights)
    model.provenance = {"weights": "pretrained", "name": "nano", "data": "world", "licence": "MIT"}
    save(model, tmp_path / "named.safetensors")
    words = [f"--weights={tmp_path / 'named.safetensors'}", f"--trained={trained}", "--epochs=1", "--report=false"]
    status, _, err = run_task("finetune", *world_words(), *words)
    assert status == 0, err
    told = {
        "weights": "fine-tuned by anysat for land_cover of world, trained lora", "data": "world", "seed": "0",
        "begun_from": str(tmp_path / "named.safetensors"), "licence": "MIT",
    }  # fmt: skip
    wanted = model.provenance if trained == "head" else told
    assert load_task(tmp_path / "run").encoder.provenance == anysat.load(tmp_path / "run").provenance == wanted
    assert scores_of(tmp_path / "run")["began_with"]["name"] == "nano"


def test_a_run_goes_on_with_the_weights_it_was_begun_with_only(run_task, small_weights, tmp_path):
    weights, model = tmp_path / "own.safetensors", load(small_weights)
    words = [*world_words(), "--batch-size=2", "--report=false", f"--weights={weights}"]
    save(model, weights)
    assert run_task("finetune", *words, "--max-steps=1")[0] == 0
    with torch.no_grad():
        next(model.parameters()).add_(1.0)
    save(model, weights)
    status, _, err = run_task("finetune", *words, "--resume", "--max-steps=2")
    assert (status, "weights: expected those that the run was started with" in err) == (2, True), err
    save(load(small_weights), weights)
    assert run_task("finetune", *words, "--resume", "--max-steps=2")[0] == 0


def test_a_run_goes_on_with_the_statistics_it_was_begun_with_only(tmp_path):
    run, tables = RunFolder(path=tmp_path), [Normaliser.from_batch(meadow_batch(count)) for count in (2, 3)]
    check_begun(run, "abc", tables[0])
    check_begun(run, "abc", tables[0])
    with pytest.raises(InputError, match="statistics: expected those that the run was started with"):
        check_begun(run, "abc", tables[1])


def test_an_epoch_is_one_of_the_processes_that_train(monkeypatch):
    """On a processor one, however many graphics cards there are."""
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 8)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    data = SimpleNamespace(train=range(320))
    for accelerator, steps in (("cpu", 80), ("auto", 10)):
        config = SimpleNamespace(batch_size=4, engine=EngineConfig(devices="auto", accelerator=accelerator))
        assert _steps_per_epoch(config, data) == steps


@pytest.mark.parametrize(("tiles", "steps"), [(31, [2, 4, 6, 8, 10]), (17, [2, 3, 4, 5, 6]), (3, [1, 2, 3, 4, 5])])
def test_epochs_are_passes_over_all_tiles(tiles, steps, monkeypatch, tmp_path):
    """Of 31 tiles in batches of 16 five epochs are 10 steps, not 5; of 17 they are 6."""
    monkeypatch.setattr(finetune_run, "fit", lambda *_, **given: given)
    data = SimpleNamespace(train=Meadow(tiles), val=Meadow(2))
    predictor = SimpleNamespace(task=make_task(KIND), view=SimpleNamespace(patch_sizes_m=(10.0,)))
    config = FinetuneConfig(epochs=5, warmup_epochs=3, min_epochs=4)
    given = finetune_run._fitted(config, data, SimpleNamespace(predictor=predictor), tmp_path)
    (scoring,) = given["monitors"]
    assert [step for step in range(1, given["num_steps"] + 1) if is_due(step, scoring.every_steps)] == steps
    assert (given["optimiser"].warmup_steps, given["keep"].min_steps) == (steps[2], steps[3])


def test_fine_tuning_has_the_dropout_of_pixels_that_is_asked_for(run_task, monkeypatch):
    made = {}

    def noted(*_, **given):
        made.update(given)
        raise KeyboardInterrupt

    monkeypatch.setattr(finetune_run, "FineTuning", noted)
    run_task("finetune", *world_words(), "--pixel-dropout-prob=0.3")
    assert made["pixel_dropout_prob"] == 0.3


def test_layer_decay_moves_what_lies_below_less(run_task, small_weights, tmp_path):
    words = [*world_words(), "--epochs=1", "--batch-size=4", "--report=false", "--warmup-epochs=0"]
    words += ["--optimiser.schedule=constant", "--optimiser.weight-decay=0"]
    before, moved = load(small_weights).projectors.state_dict(), []
    for decay in (1.0, 0.1):
        status, _, err = run_task("finetune", *words, f"--layer-decay={decay}", out=f"run{decay}")
        assert status == 0, err
        after = load_task(tmp_path / f"run{decay}").encoder.projectors.state_dict()
        moved.append(
            sum((after[name] - before[name]).abs().sum() for name in before if before[name].is_floating_point())
        )
    assert 0 < moved[1] < 0.2 * moved[0]


@pytest.mark.parametrize("trained", ["lora", "all"])
def test_fine_tuning_in_bf16_leaves_weights_in_float32(trained, run_task, tmp_path):
    words = [*world_words(), f"--trained={trained}", "--epochs=1", "--engine.precision=bf16", "--report=false"]
    status, _, err = run_task("finetune", *words)
    assert status == 0, err
    left = load_task(tmp_path / "run").state_dict()
    assert {tensor.dtype for tensor in left.values() if tensor.is_floating_point()} == {torch.float32}
    assert all(tensor.isfinite().all() for tensor in left.values())
    assert 0 <= scores_of(tmp_path / "run")["scores"]["test"]["figures"]["miou"] <= 1


def test_fine_tuning_in_two_sessions_equals_one(run_task, tmp_path):
    words = [*world_words(), "--epochs=2", "--batch-size=4", "--report=false", "--keep.save-every=1"]
    run_task("finetune", *words, out="whole")
    assert run_task("finetune", *words, "--max-steps=3", out="parts")[0] == 0
    assert not (tmp_path / "parts" / "scores.json").exists()
    assert run_task("finetune", "--resume", out="parts")[0] == 0, "with the options it has"
    took = [scores_of(tmp_path / name)["seconds"] for name in ("whole", "parts")]
    assert (took[0].keys(), took[1].keys()) == ({"all"}, {"all", "sessions"})
    whole, parts = (load_task(tmp_path / name).state_dict() for name in ("whole", "parts"))
    assert all(torch.equal(whole[name], parts[name]) for name in whole)
    one, two = (scores_of(tmp_path / name)["selection"] for name in ("whole", "parts"))
    curves = [[(point["val_loss"], point["miou"]) for point in found["curve"]] for found in (one, two)]
    assert (one["step"], curves[0]) == (two["step"], curves[1])
    measured = [step for step, _ in read_metrics(tmp_path / "parts" / "metrics.csv")["val/loss"]]
    assert 3 in measured, "where a session stopped, in the middle of an epoch"


def test_fine_tuning_ends_when_nothing_becomes_better(run_task, tmp_path):
    words = [*world_words(), "--epochs=30", "--patience=1", "--optimiser.learning-rate=1e-12", "--report=false"]
    status, _, err = run_task("finetune", *words)
    assert status == 0, err
    assert max(checkpoint_steps(tmp_path / "run" / "checkpoints")) <= 4
    before = scores_of(tmp_path / "run")["selection"]
    assert run_task("finetune", *words, "--resume")[0] == 0
    assert scores_of(tmp_path / "run")["selection"] == before


def test_a_short_training_has_a_training_loss_in_every_epoch(run_task, tmp_path):
    words = [*world_words(), "--epochs=3", "--keep.log-every=1000", "--report=false"]
    assert run_task("finetune", *words)[0] == 0
    curve = scores_of(tmp_path / "run")["selection"]["curve"]
    assert len(curve) == 3
    assert all(point["loss"] > 0 for point in curve)


def test_fine_tuning_ends_no_earlier_than_it_may_and_warms_up_by_epochs(run_task, tmp_path):
    words = [*world_words(), "--epochs=30", "--patience=1", "--min-epochs=4", "--warmup-epochs=4", "--batch-size=7"]
    words += ["--optimiser.learning-rate=1e-12", "--keep.log-every=1", "--monitor=accuracy"]
    status, _, err = run_task("finetune", *words)
    assert status == 0, err
    found = scores_of(tmp_path / "run")
    assert (found["primary"], "accuracy" in found["scores"]["val"]["intervals"]) == ("accuracy", True)
    measured = read_metrics(tmp_path / "run" / "metrics.csv")
    assert len(measured["val/loss"]) - 1 == 4, "as many epochs as it must last, after what was there before"
    curve = found["selection"]["curve"]
    assert [point["val_loss"] for point in curve] == [value for _, value in measured["val/loss"][1:]]
    assert curve[-1]["accuracy"] == measured["val/accuracy"][-1][1]
    per_epoch = measured["val/loss"][1][0]
    last = [value for step, value in measured["train/loss"] if step > 3 * per_epoch]
    assert curve[-1]["loss"] == pytest.approx(sum(last) / per_epoch), "the mean over the epoch"
    assert "Curves of loss and validation score" in (tmp_path / "run" / "report.html").read_text()
    rates = [value for _, value in measured["learning_rate"]]
    assert rates == pytest.approx([1e-12 * (n + 1) / (4 * per_epoch) for n in range(4 * per_epoch)])
    assert "0 if --optimiser.warmup-steps is given" in run_task("finetune", *words, "--optimiser.warmup-steps=3")[2]


@pytest.mark.parametrize(("rate", "is_better"), [(1e-12, False), (10.0, True)])
def test_a_training_that_only_made_it_worse_tells_so(rate, is_better, run_task, tmp_path):
    words = [*world_words(), "--trained=head", "--epochs=1", "--warmup-epochs=0", "--report=false"]
    words += ["--monitor=calibration_error", f"--optimiser.learning-rate={rate}"]
    status, out, err = run_task("finetune", *words)
    assert status == 0, err
    found = scores_of(tmp_path / "run")
    first = read_metrics(tmp_path / "run" / "metrics.csv")["val/calibration_error"][0][1]
    assert found["selection"]["start"] == first
    assert (found["scores"]["val"]["figures"]["calibration_error"] > first + 1e-4) == is_better
    assert ("was better before training" in out) == is_better


def test_new_sensors_get_projectors_of_their_own(run_task, tmp_path, monkeypatch):
    made = []
    monkeypatch.setattr(
        finetune_run, "FineTuning", lambda *given, **how: made.append(how["new"]) or FineTuning(*given, **how)
    )
    torch.manual_seed(0)
    save(AnySat(ModelConfig(dim=64, depth=1, num_heads=2, modalities=(MODALITIES["s2"],))), tmp_path / "s2.safetensors")
    words = [*world_words(), f"--weights={tmp_path / 's2.safetensors'}", "--trained=projectors", "--epochs=1"]
    status, _, err = run_task("finetune", *words, "--report=false")
    assert status == 0, err
    left = load_task(tmp_path / "run").encoder
    assert set(left.projectors) == {"s2", "s1"}
    assert left.provenance["new_projectors"] == "s1"
    assert made == [["s1"]], "which learn at the full rate"
