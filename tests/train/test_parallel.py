"""Several processes: two train as one that accumulates; weights in shards train as whole ones."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import anysat
import toy_training
from anysat.train.checkpoints import checkpoint_steps
from toy_training import ACCUMULATED, losses_of, tensors_of, train


def run_sessions(out, *sessions):
    """Train in several processes, started from a command line as Lightning needs it."""
    command = [sys.executable, toy_training.__file__, str(out), json.dumps(sessions)]
    own = ("PYTEST_CURRENT_TEST", "MASTER_ADDR", "MASTER_PORT")  # the port that a test in shards listens at
    environment = {name: value for name, value in os.environ.items() if name not in own}
    return subprocess.run(command, capture_output=True, text=True, timeout=150, env=environment, check=False)


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """A training of two processes in two sessions."""
    out = tmp_path_factory.mktemp("parallel") / "pair"
    sessions = [
        {"engine": {"devices": 2}, "max_steps": 2, **ACCUMULATED},
        {"engine": {"devices": 2}, "resume": True, **ACCUMULATED},
    ]
    done = run_sessions(out, *sessions)
    assert done.returncode == 0, done.stderr[-3000:]
    return out


def assert_near(run, other):
    """Two runs of several steps are the same but for rounding."""
    assert len(losses_of(run)) == ACCUMULATED["num_steps"]
    assert dict(losses_of(run)) == pytest.approx(dict(losses_of(other)), rel=0, abs=1e-6)
    ours, theirs = tensors_of(run), tensors_of(other)
    assert ours.keys() == theirs.keys()
    for name, tensor in theirs.items():
        torch.testing.assert_close(ours[name], tensor, rtol=0, atol=1e-6, msg=name)


def test_two_processes_equal_one_that_accumulates_two(pair, toy_accumulated):
    assert_near(pair, toy_accumulated)


def test_a_projector_that_is_in_no_batch_has_no_moments_on_any_rank(pair):
    having = [json.loads(Path(f"{pair}.{rank}.json").read_text()) for rank in (0, 1)]
    assert having[0] == having[1]
    assert "predictor.weight" in having[0]
    assert not [name for name in having[0] if "projectors.l8" in name]


def test_a_run_of_two_processes_is_gone_on_with_by_one(pair, toy_accumulated, tmp_path):
    shutil.copytree(pair, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "step-00000004")
    train(tmp_path / "run", engine={"accumulate": 2}, resume=True, **ACCUMULATED)
    assert_near(tmp_path / "run", toy_accumulated)


def test_a_collapse_that_one_process_finds_ends_all_with_a_checkpoint(tmp_path):
    done = run_sessions(tmp_path / "run", {"engine": {"devices": 2}, "collapsing_on": 1, **ACCUMULATED})
    assert done.returncode == 1
    assert done.stderr.count("CollapseError: the embeddings collapsed by step 2: all alike") >= 1
    assert checkpoint_steps(tmp_path / "run" / "checkpoints") == [2]


def test_weights_in_shards_train_as_whole_ones(tmp_path):
    class Measure:
        name, every_steps = "val", 2

        def __call__(self, objective, step):
            batch = toy_training.only(toy_training.sources(0, 1).draw(0).batch, "s2")
            return {"spread": float(objective.encoder().encode(batch, 20).tile.std())}

    options = {"num_steps": 4, "optimiser": {"learning_rate": 1e-4, "clip_norm": 0.1}, "monitors": [Measure()]}
    for name, strategy in (("whole", "auto"), ("shards", "fsdp")):
        for stop in (2, 4):
            train(tmp_path / name, engine={"strategy": strategy}, max_steps=stop, resume=True, **options)
    ours, theirs = tensors_of(tmp_path / "shards"), tensors_of(tmp_path / "whole")
    assert dict(losses_of(tmp_path / "shards")) == pytest.approx(dict(losses_of(tmp_path / "whole")), abs=1e-6)
    assert ours.keys() == theirs.keys()
    for name, tensor in theirs.items():
        torch.testing.assert_close(ours[name], tensor, rtol=1e-5, atol=1e-6, msg=name)
    assert set(anysat.load(tmp_path / "shards").state_dict()) == set(anysat.load(tmp_path / "whole").state_dict())
