"""The real objective in several processes: two train as one that accumulates, shards as whole weights."""

import itertools
import os
import subprocess
import sys

import pytest
import torch
import yaml

import tiny_pretraining
from anysat.model import ready
from anysat.train.config import EngineConfig, OptimiserConfig
from anysat.workflows.pretrain import pretrain
from tiny_pretraining import STEPS, tiny, world
from toy_training import losses_of, tensors_of

pytestmark = pytest.mark.slow  # processes of the whole command, which take a minute and want the cores alone


def options(out, **engine):
    """Two datasets in turn; one has a projector that the other lacks."""
    parts = [world("alos", "s1", batch_size=2), world("s1", "l7", tiles=12, batch_size=2, val_split=None)]
    # A low rate: AdamW makes of what is rounding at first a step of the whole rate.
    rate = OptimiserConfig(learning_rate=1e-4, warmup_steps=2)
    return tiny(out, *parts, optimiser=rate, engine=EngineConfig(accelerator="cpu", threads=1, **engine))


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run of one process that accumulates two micro-batches."""
    threads, out = torch.get_num_threads(), tmp_path_factory.mktemp("whole") / "run"
    pretrain(options(out, accumulate=2))
    torch.set_num_threads(threads)
    return out


@pytest.fixture(scope="module")
def pair(whole, tmp_path_factory):
    """The same from the command line, in two processes."""
    home = tmp_path_factory.mktemp("pair")
    out, file = home / "run", home / "options.yaml"
    file.write_text(yaml.safe_dump(options(out).to_dict() | {"out": None}))
    command = [sys.executable, tiny_pretraining.__file__, str(out), "pretrain", "--config", str(file), "--out", str(out),
               "--engine.devices", "2"]  # fmt: skip
    own = ("PYTEST_CURRENT_TEST", "MASTER_ADDR", "MASTER_PORT")  # the port that a test in shards listens at
    environment = {name: value for name, value in os.environ.items() if name not in own}
    done = subprocess.run(command, capture_output=True, text=True, timeout=280, env=environment, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return out


def assert_near(run, other, bound):
    """Two runs of several steps are the same but for rounding: of tensors, a share of their largest value."""
    assert len(losses_of(run)) == STEPS
    assert dict(losses_of(run)) == pytest.approx(dict(losses_of(other)), rel=1e-6, abs=0)
    ours, theirs = tensors_of(run), tensors_of(other)
    assert ours.keys() == theirs.keys()
    for name, tensor in theirs.items():
        # What is added to all keys of a softmax has a gradient of rounding, of which AdamW makes a step.
        if name.endswith("qkv.bias") and tensor.ndim:
            pairs = zip(ours[name].chunk(3)[::2], tensor.chunk(3)[::2], strict=True)
        else:
            pairs = [] if name.endswith("key.bias") else [(ours[name], tensor)]
        for own, wanted in pairs:
            within = bound * wanted.abs().max().item() + 1e-9
            torch.testing.assert_close(own, wanted, rtol=0, atol=within, msg=f"{name} {within}")


def test_the_command_in_two_processes_equals_one_that_accumulates_two(pair, whole):
    assert_near(pair, whole, 1e-6)


def test_a_projector_that_is_not_in_a_step_is_left_as_it_was_on_every_rank(pair):
    """Also one that was in the step before, and has moments."""
    ranks = [torch.load(f"{pair}.{rank}.pt") for rank in (0, 1)]
    assert [step["keys"] for step in ranks[0]] == [step["keys"] for step in ranks[1]]
    left = 0
    for steps in ranks:
        for before, now in itertools.pairwise(steps):
            out = [name for name in now["projectors"] if name.split(".")[0] not in now["keys"]]
            for name in out:
                found, earlier = now["projectors"][name], before["projectors"][name]
                left += "exp_avg" in earlier
                assert "grad" not in found, name
                assert found.keys() == earlier.keys() - {"grad"}
                assert all(torch.equal(found[key], earlier[key]) for key in found), name
    assert left > 0
    for one, other in zip(*ranks, strict=True):
        for name, found in one["projectors"].items():
            assert all(torch.equal(found[key], other["projectors"][name][key]) for key in found), name


def test_weights_in_shards_train_as_whole_ones(tmp_path, monkeypatch):
    """Modules in shards are not made ready, so neither are the whole ones: they would round otherwise."""
    threads = torch.get_num_threads()
    pretrain(options(tmp_path / "shards", accumulate=2, strategy="fsdp"))
    monkeypatch.setattr(ready, "is_special", lambda module: True)
    pretrain(options(tmp_path / "whole", accumulate=2))
    torch.set_num_threads(threads)
    assert_near(tmp_path / "shards", tmp_path / "whole", 1e-4)
