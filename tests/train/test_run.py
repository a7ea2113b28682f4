"""What a run measures, keeps, tells and refuses."""

import json
import math
import time
from dataclasses import replace
from fractions import Fraction

import pytest
import torch
import yaml
from lightning.fabric.utilities.rank_zero import rank_zero_only

import anysat
from anysat.errors import (
    CollapseError,
    DivergedError,
    InputError,
    RecordError,
    RunExistsError,
    SourceError,
    UnknownNameError,
    WriteError,
)
from anysat.train.checkpoints import TRAINING, checkpoint_steps, newest_checkpoint
from anysat.train.config import EngineConfig, KeepConfig, OptimiserConfig
from anysat.train.metrics import read_metrics
from anysat.train.run import open_run, spent
from toy_training import Toy, Watch, assert_same, losses_of, tensors_of, train

# -- monitors ----------------------------------------------------------------------------------------


def test_monitors_measure_before_between_and_after_in_eval_mode(tmp_path):
    watch = Watch([3.0, 2.0, 0.5], every_steps=2)
    fitted = train(tmp_path / "run", monitors=[watch], num_steps=3)
    assert [step for step, *_ in watch.seen] == [0, 2, 3]
    assert {(training, grad) for _, training, grad, _ in watch.seen} == {(False, False)}
    assert fitted.metrics["val/loss"] == 0.5
    assert read_metrics(tmp_path / "run" / "metrics.csv")["val/loss"] == [(0, 3.0), (2, 2.0), (3, 0.5)]


def test_patience_counts_measurements_where_they_come_after_a_step_and_a_half_each(tmp_path):
    watch = Watch([3.0, 2.0, 2.0], every_steps=Fraction(3, 2))
    fitted = train(tmp_path / "run", monitors=[watch], keep={"keep_best": "val/loss", "patience": 1})
    assert ([step for step, *_ in watch.seen], fitted.steps, fitted.finished) == ([0, 2, 3], 3, True)


def test_monitors_change_nothing_and_draw_the_same_after_a_resume(toy_run, tmp_path):
    watches = [Watch([1.0] * 20, every_steps=1) for _ in range(2)]
    train(tmp_path / "run", monitors=watches[:1])
    assert_same(tensors_of(tmp_path / "run"), tensors_of(toy_run))
    objective = Toy()
    torch.rand(7)
    train(tmp_path / "cut", objective=objective, monitors=watches[1:], max_steps=2)
    train(tmp_path / "cut", monitors=watches[1:], max_steps=4, resume=True)
    assert watches[1].seen == watches[0].seen[:5]
    assert len({drawn for *_, drawn in watches[0].seen}) == 7


def test_a_collapse_ends_the_run_after_a_checkpoint(tmp_path):
    class Alarm(Watch):
        def __call__(self, objective, step):
            if step == 3:
                raise CollapseError("effective rank 1.2, expected 4 or more", step=step)
            return {}

    with pytest.raises(CollapseError, match="collapsed by step 3: effective rank 1.2, expected 4 or more; raise"):
        train(tmp_path / "run", monitors=[Alarm([], every_steps=3)])
    assert checkpoint_steps(tmp_path / "run" / "checkpoints") == [2, 3]


def test_a_loss_that_is_no_number_ends_the_run_and_makes_no_checkpoint(tmp_path):
    class Bad(Toy):
        def forward(self, draw, generator):
            parts = super().forward(draw, generator)
            return parts | {"loss": parts["loss"] * (math.nan if draw.step == 2 else 1)}

    with pytest.raises(DivergedError, match="in one of the steps up to 4.*lower the learning rate"):
        train(tmp_path / "run", objective=Bad(), keep={"log_every": 100})
    assert checkpoint_steps(tmp_path / "run" / "checkpoints") == [2]


# -- what is kept ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("highest", "best"), [(False, 1), (True, 3)])
def test_the_last_checkpoints_and_the_best_are_kept_over_sessions(highest, best, tmp_path):
    values, keep = [3.0, 1.0, 2.0, 9.0, 4.0, 5.0, 6.0], {"keep_best": "val/loss", "best_is_highest": highest}
    for stop in (4, 6):
        watch = Watch(values[5 if stop == 6 else 0 :], every_steps=1)
        train(
            tmp_path / "run",
            monitors=[watch],
            keep={"keep_last": 1, "save_every": 3, **keep},
            max_steps=stop,
            resume=True,
        )
    assert checkpoint_steps(tmp_path / "run" / "checkpoints") == [best, 6]
    found = newest_checkpoint(tmp_path / "run" / "checkpoints").state["best"]
    assert found == {"name": "val/loss", "is_highest": highest, "value": values[best], "step": best}


def test_as_many_checkpoints_are_kept_as_asked_for(toy_run):
    assert checkpoint_steps(toy_run / "checkpoints") == [4, 6]


def test_a_run_folder_loads_as_its_encoder(tmp_path):
    objective = Toy()
    train(tmp_path / "run", objective=objective, num_steps=1)
    loaded = anysat.load(tmp_path / "run")
    assert loaded.normaliser == objective.teacher.normaliser
    assert_same(loaded.state_dict(), objective.teacher.state_dict())


def test_whoever_may_read_the_encoder_may_go_on_with_the_training(toy_run):
    checkpoint = newest_checkpoint(toy_run / "checkpoints").path
    assert (checkpoint / TRAINING).stat().st_mode == (toy_run / "model.safetensors").stat().st_mode


def test_metrics_have_each_step_once_after_a_resume(toy_run, toy_begun):
    rows = toy_begun / "metrics.csv"
    rows.write_text(rows.read_text() + "4,train/loss,0.5\n5,train/lo")
    train(toy_begun, resume=True)
    for name, values in read_metrics(rows).items():
        assert [step for step, _ in values] == list(range(1, 7)), name
    assert losses_of(toy_begun) == losses_of(toy_run)


def test_tiles_per_second_and_time_left_are_told(tmp_path, capsys):
    train(tmp_path / "run", num_steps=2, keep={"log_every": 1})
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("step ")]
    assert [line.split()[1] for line in lines] == ["1/2", "2/2"]
    for word in ("loss", "predict", "tiles/s", "waiting", "left"):
        assert word in lines[0]


def test_metrics_go_to_tensorboard(tmp_path):
    train(tmp_path / "run", num_steps=1, keep={"loggers": ["tensorboard"]})
    assert list((tmp_path / "run" / "tensorboard").glob("events*"))
    assert not (tmp_path / "run" / "metrics.csv").exists()


@pytest.mark.parametrize(("name", "logger"), [("wandb", "WandbLogger"), ("mlflow", "MLFlowLogger")])
def test_metrics_go_to_what_is_installed(name, logger, tmp_path, monkeypatch):
    made = []

    class Fake:
        def __init__(self, **options):
            self.options, self.steps, self.ended = options, {}, False
            made.append(self)

        def log_metrics(self, metrics, step):
            self.steps[step] = metrics

        def finalize(self, status):
            self.ended = True

    monkeypatch.setattr("anysat.train.config.find_spec", lambda name: name)
    monkeypatch.setattr(f"lightning.pytorch.loggers.{logger}", Fake)
    train(tmp_path / "run", num_steps=2, keep={"loggers": ["csv", name]})
    (fake,) = made
    assert str(fake.options["save_dir"]).startswith(str(tmp_path / "run"))
    assert "run" in (fake.options.get("name"), fake.options.get("run_name"))
    assert [(step, found["train/loss"]) for step, found in fake.steps.items()] == losses_of(tmp_path / "run")
    assert fake.ended


def test_facts_of_every_session_are_noted(tmp_path):
    for out in ("x", "y"):
        config = {"lr": (1, 2.5), "out": out}
        with open_run(tmp_path / "run", config=config, seed=7, resume=True):
            pass
    sessions = json.loads((tmp_path / "run" / "facts.json").read_text())["sessions"]
    assert [session["seed"] for session in sessions] == [7, 7]
    assert sessions[0]["versions"]["torch"] == torch.__version__
    assert {"date", "command", "devices", "git"} <= sessions[0].keys()
    assert yaml.safe_load((tmp_path / "run" / "config.yaml").read_text()) == {"lr": [1, 2.5], "out": "y"}


def test_what_the_sessions_of_a_run_took_is_summed_and_one_that_told_nothing_is_counted(tmp_path):
    for seconds in (0.2, 0.3):
        with open_run(tmp_path / "run", config={}, seed=7, resume=True):
            time.sleep(seconds)
    with pytest.raises(KeyboardInterrupt), open_run(tmp_path / "run", config={}, seed=7, resume=True):
        raise KeyboardInterrupt
    facts = tmp_path / "run" / "facts.json"
    content = json.loads(facts.read_text())
    first, second, third = content["sessions"]
    assert (first["wall_s"], second["wall_s"]) == pytest.approx((0.2, 0.3), abs=0.15)
    assert third["wall_s"] < 0.15
    assert first["cpu_s"] < 0.15
    first["wall_s"], second["wall_s"], second["cpu_s"] = 60, 30.2, 29
    del third["wall_s"]
    facts.write_text(json.dumps(content))
    found = spent(tmp_path / "run")
    assert found == {"wall_s": 90, "cpu_s": 29, "threads": first["threads"], "sessions": 3, "untimed": 1}


def test_seconds_of_parts_are_told_of_one_session_and_a_resumed_run_tells_those_of_all(tmp_path):
    with open_run(tmp_path / "run", config={}, seed=7) as run:
        assert run.seconds(embed=1.26, train=2) == {"embed": 1.3, "train": 2}
    facts = tmp_path / "run" / "facts.json"
    content = json.loads(facts.read_text())
    content["sessions"][0]["wall_s"] = 60
    content["sessions"].insert(0, {"seed": 7})
    facts.write_text(json.dumps(content))
    with open_run(tmp_path / "run", config={}, seed=7, resume=True) as run:
        assert run.seconds(embed=1.26, train=2) == {"all": 60, "sessions": 3, "untimed": 1}


@pytest.mark.parametrize(("rank", "node"), [(1, "0"), (0, "1")])
def test_a_process_that_trains_alone_writes_whatever_number_another_launcher_gave_it(rank, node, tmp_path, monkeypatch):
    """As each of `srun -n 4 anysat pretrain --seed …` does."""
    monkeypatch.setattr(rank_zero_only, "rank", rank)
    slurm = {"SLURM_NTASKS": "4", "SLURM_PROCID": "1", "SLURM_JOB_NAME": "four"}
    for name, value in {"NODE_RANK": node, **slurm}.items():
        monkeypatch.setenv(name, value)
    train(tmp_path / "run", num_steps=1, keep={"loggers": ["csv", "tensorboard"]})
    found = {path.name for path in (tmp_path / "run").iterdir()}
    assert {"config.yaml", "facts.json", "metrics.csv", "model.safetensors"} <= found
    (events,) = (tmp_path / "run" / "tensorboard").glob("events*")
    assert events.stat().st_size > 100
    assert rank_zero_only.rank == rank


def test_of_several_processes_that_train_together_the_first_writes(tmp_path, monkeypatch):
    monkeypatch.setattr(rank_zero_only, "rank", 1)
    with open_run(tmp_path / "run", config={}, seed=0, processes=2) as run:
        assert not run.is_writer
    assert not run.path.exists()


def test_compiled_parts_keep_their_names(tmp_path, monkeypatch):
    compiled = []
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self: compiled.append(type(self).__name__))
    train(tmp_path / "run", num_steps=1, engine={"compile": True})
    assert set(compiled) == {"Block"}


# -- what is refused ---------------------------------------------------------------------------------


def test_a_run_is_not_begun_over_another(toy_run):
    with pytest.raises(RunExistsError, match="already holds a run; continue it with --resume"):
        train(toy_run)


def test_a_run_is_not_begun_among_other_files(tmp_path):
    (tmp_path / "thesis.tex").write_text("")
    with pytest.raises(InputError, match="expected an empty folder or a run, got other files"):
        train(tmp_path)


@pytest.mark.parametrize("written", ["keep_config", "_write_facts"])
def test_a_run_that_was_killed_while_it_was_begun_is_gone_on_with(written, tmp_path, monkeypatch):
    class Killed(BaseException):
        pass

    def killed(*_):
        raise Killed

    options = {"config": {"a": 1}, "seed": 0, "resume": True}
    with monkeypatch.context() as begun:
        begun.setattr(f"anysat.train.run.{written}", killed)
        with pytest.raises(Killed), open_run(tmp_path / "run", **options):
            pass
    with open_run(tmp_path / "run", **options) as run:
        assert run.checkpoints.is_dir()


def refuse(folder, error, made=None, **options):
    """A run that ends by an error, with a file or without."""
    with open_run(folder, config={"a": 1}, seed=0, **options) as run:
        if made is not None:
            (run.path / made).touch()
        raise error


def test_a_run_that_is_refused_before_it_made_anything_can_be_begun_otherwise(tmp_path):
    with pytest.raises(RecordError, match="another"):
        refuse(tmp_path, RecordError("a", 1, "another"), "statistics.json", data={"train": 1})
    assert list(tmp_path.iterdir()) == []
    with open_run(tmp_path, config={"a": 2}, seed=0, resume=True):
        pass


@pytest.mark.parametrize("error", [RecordError("a", 1, "b"), OSError("a crash"), WriteError("disk", OSError("full"))])
@pytest.mark.parametrize("made", ["checkpoints/step", "metrics.csv", "statistics.tmp", None])
def test_a_run_is_kept_where_it_has_made_something_or_could_go_on(error, made, tmp_path):
    with pytest.raises(type(error)):
        refuse(tmp_path, error, made)
    kept = made is not None or not isinstance(error, RecordError)
    assert (tmp_path / "config.yaml").exists() == (tmp_path / "facts.json").exists() == kept


@pytest.mark.parametrize(("made", "kept"), [("statistics.json", True), (None, False)])
def test_statistics_that_were_computed_outlive_a_file_that_cannot_be_read(made, kept, tmp_path):
    with pytest.raises(SourceError, match="damaged"):
        refuse(tmp_path, SourceError("a.tif", "damaged", "get it anew"), made)
    assert (tmp_path / "statistics.json").exists() == (tmp_path / "config.yaml").exists() == kept


def test_a_run_that_was_killed_is_not_taken_away_by_a_refusal(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        refuse(tmp_path, KeyboardInterrupt())
    with pytest.raises(RecordError, match="1 or more"):
        refuse(tmp_path, RecordError("max_steps", 0, "1 or more"), resume=True)
    assert (tmp_path / "config.yaml").exists()


def test_two_processes_cannot_train_in_one_folder(tmp_path):
    options = {"config": {}, "seed": 1, "resume": True}
    with (
        open_run(tmp_path / "run", **options),
        pytest.raises(InputError, match="no other process"),
        open_run(tmp_path / "run", **options),
    ):
        pass


def test_other_mathematics_is_refused_by_name(toy_begun):
    message = r"optimiser.weight_decay, num_steps: expected 0.05, 6, as in the existing run.*got '0.1, 13'"
    with pytest.raises(RecordError, match=message):
        train(toy_begun, resume=True, num_steps=13, optimiser={"weight_decay": 0.1})
    with pytest.raises(RecordError, match="model.dim: expected absent, as in the existing run"):
        train(toy_begun, resume=True, config={"out": "there", "model": {"dim": 64}})
    with pytest.raises(RecordError, match="seed: expected 1, as in the existing run"):
        train(toy_begun, resume=True, seed=2)
    assert losses_of(toy_begun)[-1][0] == 3


def test_processes_may_become_accumulation_but_not_more_micro_batches(toy_begun):
    with pytest.raises(RecordError, match="micro_batches_per_step: expected 1, as in the existing run"):
        train(toy_begun, resume=True, engine={"accumulate": 2})


def test_a_metric_that_nothing_measures_is_refused(tmp_path):
    with pytest.raises(RecordError, match="keep_best: expected a metric that is measured"):
        train(tmp_path / "a", keep={"keep_best": "val/loss"})
    with pytest.raises(
        RecordError, match="keep_best: expected a metric that is measured: val/loss, got 'val/accuracy'"
    ):
        train(tmp_path / "b", keep={"keep_best": "val/accuracy"}, monitors=[Watch([1.0] * 9)])


@pytest.mark.parametrize(("warmup", "told"), [(1, False), (2, True)])
def test_a_learning_rate_that_only_rises_is_told(tmp_path, caplog, warmup, told):
    train(tmp_path / "run", num_steps=2, optimiser={"warmup_steps": warmup})
    assert ("the learning rate only rises" in caplog.text) == told


def test_float16_is_refused_on_a_cpu(tmp_path):
    with pytest.raises(RecordError, match="precision: expected float32 or bf16 on a CPU, got 'float16'"):
        train(tmp_path / "run", engine={"precision": "float16"})


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        (OptimiserConfig, {"learning_rate": 0}), (OptimiserConfig, {"learning_rate": 1, "betas": (0.9, 1)}),
        (OptimiserConfig, {"learning_rate": 1, "clip_norm": 0}),
        (EngineConfig, {"devices": 0}), (EngineConfig, {"accumulate": 0}),
        (EngineConfig, {"strategy": "fsdp", "precision": "float16"}), (KeepConfig, {"keep_last": 0}),
        (KeepConfig, {"log_every": True}),
    ],
)  # fmt: skip
def test_an_option_that_cannot_be_is_refused_by_its_name(kind, options):
    with pytest.raises(RecordError, match=f"^{list(options)[-1]}: expected"):
        kind(**options)


@pytest.mark.parametrize(
    ("kind", "options", "name"),
    [
        (OptimiserConfig, {"schedule": "step"}, "--optimiser.schedule 'step'"),
        (EngineConfig, {"precision": "64"}, "--engine.precision '64'"),
        (EngineConfig, {"strategy": "fsdp2"}, "--engine.strategy 'fsdp2'; closest: fsdp"),
        (KeepConfig, {"loggers": ("paper",)}, "--keep.loggers 'paper'"),
    ],
)
def test_a_choice_that_there_is_not_is_refused_by_its_option(kind, options, name):
    with pytest.raises(UnknownNameError, match=f"unknown {name}"):
        kind(**options)


def test_a_logger_that_is_not_installed_is_named(monkeypatch):
    monkeypatch.setattr("anysat.train.config.find_spec", lambda name: None)
    with pytest.raises(RecordError, match="pip install wandb"):
        replace(KeepConfig(), loggers=("wandb",))
