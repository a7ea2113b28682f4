"""Stopping: kills, signals, full disks and damaged files cost at most the steps since the last checkpoint."""

import errno
import itertools
import multiprocessing
import os
import random
import re
import shutil
import signal
import sys
import time
from pathlib import Path

import pytest
import torch

import anysat
from anysat import whole_files
from anysat.errors import RunStoppedError
from anysat.model import checkpoint as model_checkpoint
from anysat.train import checkpoints
from anysat.train.checkpoints import checkpoint_steps, newest_checkpoint
from builders import child_environment
from toy_training import ACCUMULATED, NUM_STEPS, Toy, assert_same, losses_of, tensors_of, train


class Lingering(Toy):
    """Does not end of itself: what is to be killed has to be alive."""

    def forward(self, draw, generator):
        if draw.step == NUM_STEPS - 1:
            time.sleep(60)
        return super().forward(draw, generator)


MANY_STEPS = 400


def begin_long(out):
    """Many more steps than are done before it is killed."""
    train(out, resume=True, num_steps=MANY_STEPS)


def begin(out):
    """Train in another process, from what there is."""
    train(out, objective=Lingering(), resume=True)


class Slow(Toy):
    """Leaves time to be stopped between two steps."""

    def forward(self, draw, generator):
        time.sleep(0.1)
        return super().forward(draw, generator)


def begin_as_a_job(out):
    """Train, with processes that read, in a group of processes of its own."""
    os.setpgrp()
    fitted = train(out, objective=Slow(), num_steps=200, keep={"save_every": 100}, engine={"num_workers": 2})
    sys.exit(fitted.exit_status)


@pytest.fixture
def context(monkeypatch):
    """Starts processes that have imported what they need."""
    monkeypatch.setenv("PYTHONPATH", child_environment()["PYTHONPATH"])
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["toy_training"])
    return context


def kill_and_resume(context, out, moments):
    """Kill a run so many seconds after each of some steps, then let it end."""
    metrics = Path(out) / "metrics.csv"
    for step, seconds in moments:
        process = context.Process(target=begin, args=(out,))
        process.start()
        while process.is_alive() and not (metrics.exists() and f"\n{step}," in metrics.read_text()):
            time.sleep(0.005)
        time.sleep(seconds)
        process.kill()
        process.join()
        assert process.exitcode == -signal.SIGKILL
    train(out, resume=True)


def test_two_kills_change_nothing(context, toy_run, tmp_path):
    draw = random.Random(os.getpid())
    moments = [(draw.randint(low, low + 1), draw.uniform(0, 0.1)) for low in (1, 3)]
    kill_and_resume(context, tmp_path / "run", moments)
    assert_same(tensors_of(tmp_path / "run"), tensors_of(toy_run))
    assert losses_of(tmp_path / "run") == losses_of(toy_run)


@pytest.mark.slow
def test_twenty_kills_change_nothing(context, tmp_path):
    """Each some steps after the run has gone on, at any moment of a step; no session ends by itself."""
    draw, out, killed_at = random.Random(os.getpid()), tmp_path / "run", []
    for _ in range(20):
        begun = _last_step(out)
        process = context.Process(target=begin_long, args=(out,))
        process.start()
        while process.is_alive() and _last_step(out) < begun + draw.randint(3, 6):
            time.sleep(0.002)
        time.sleep(draw.uniform(0, 0.05))
        process.kill()
        process.join()
        assert process.exitcode == -signal.SIGKILL
        killed_at.append(_last_step(out))
    assert all(later > earlier for earlier, later in itertools.pairwise(killed_at))
    train(out, resume=True, num_steps=MANY_STEPS)
    train(tmp_path / "whole", num_steps=MANY_STEPS)
    assert_same(tensors_of(out), tensors_of(tmp_path / "whole"))
    assert losses_of(out) == losses_of(tmp_path / "whole")


def _last_step(out):
    """The newest step that a run has told of."""
    file = out / "metrics.csv"
    steps = re.findall(r"^(\d+),train/loss,", file.read_text(), re.M) if file.exists() else []
    return int(steps[-1]) if steps else 0


@pytest.fixture
def handler():
    """What handles signals outside of a training; a process in the background begins by ignoring some."""
    before = {number: signal.signal(number, signal.default_int_handler) for number in (signal.SIGTERM, signal.SIGINT)}
    yield signal.default_int_handler
    for number, theirs in before.items():
        signal.signal(number, theirs)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_and_ends(number, handler, toy_run, tmp_path):
    class Signalled(Toy):
        def forward(self, draw, generator):
            if draw.step == 2:
                os.kill(os.getpid(), number)
            return super().forward(draw, generator)

    fitted = train(tmp_path / "run", objective=Signalled(), keep={"save_every": 100})
    assert (fitted.steps, fitted.interrupted, fitted.exit_status) == (3, True, 130)
    assert checkpoint_steps(tmp_path / "run" / "checkpoints") == [3]
    assert signal.getsignal(number) is handler
    train(tmp_path / "run", resume=True)
    assert_same(tensors_of(tmp_path / "run"), tensors_of(toy_run))


def test_a_signal_to_all_processes_of_a_job_saves_and_ends(context, tmp_path):
    """As schedulers send it: those that read are told, too, and wait for the training to end them."""
    process = context.Process(target=begin_as_a_job, args=(tmp_path / "run",))
    process.start()
    while process.is_alive() and _last_step(tmp_path / "run") < 2:
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGTERM)
    process.join()
    assert process.exitcode == 130
    (step,) = checkpoint_steps(tmp_path / "run" / "checkpoints")
    assert step < 100


def test_a_signal_within_an_accumulated_step_leaves_that_step_to_be_done_again(toy_accumulated, tmp_path):
    calls = []

    class Signalled(Toy):
        def forward(self, draw, generator):
            calls.append(draw.step)
            if calls == [0, 0, 1, 1, 2]:
                os.kill(os.getpid(), signal.SIGTERM)
            return super().forward(draw, generator)

    engine = {"accumulate": 2}
    fitted = train(tmp_path / "run", objective=Signalled(), engine=engine, **ACCUMULATED)
    assert (calls, fitted.steps) == ([0, 0, 1, 1, 2], 2)
    train(tmp_path / "run", engine=engine, resume=True, **ACCUMULATED)
    assert_same(tensors_of(tmp_path / "run"), tensors_of(toy_accumulated))


def test_a_second_signal_stops_at_once(handler, tmp_path):
    class Impatient(Toy):
        def forward(self, draw, generator):
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)
            return super().forward(draw, generator)

    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "run", objective=Impatient())
    assert signal.getsignal(signal.SIGINT) is handler
    assert checkpoint_steps(tmp_path / "run" / "checkpoints") == []


def refuse(*args, **kwargs):
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize(
    ("module", "name"), [(checkpoints, "save_file"), (model_checkpoint, "save_file"), (checkpoints, "to_json")]
)
def test_a_full_disk_keeps_the_last_good_checkpoint(module, name, toy_run, toy_begun, monkeypatch):
    with monkeypatch.context() as full:
        full.setattr(module, name, refuse)
        with pytest.raises(RunStoppedError, match="training stopped at step 4 .*No space left.*continue with --resume"):
            train(toy_begun, resume=True)
    left = sorted(path.name for path in (toy_begun / "checkpoints").iterdir())
    assert left == ["step-00000002", "step-00000003"]
    anysat.load(toy_begun)
    train(toy_begun, resume=True)
    assert_same(tensors_of(toy_begun), tensors_of(toy_run))


def test_metrics_that_cannot_be_written_end_the_run_clearly(toy_begun, monkeypatch):
    monkeypatch.setattr("anysat.train.keeper.write_metrics", refuse)
    with pytest.raises(RunStoppedError, match="training stopped at step 4 .*No space left"):
        train(toy_begun, resume=True)
    assert checkpoint_steps(toy_begun / "checkpoints") == [2, 3]


@pytest.mark.parametrize("file", ["training.safetensors", "model.safetensors", "state.json"])
@pytest.mark.parametrize("how", ["cut", "gone", "changed"])
def test_a_damaged_checkpoint_is_not_used(file, how, toy_begun):
    path = toy_begun / "checkpoints" / "step-00000003" / file
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 255
    path.unlink()
    if how != "gone":
        path.write_bytes(content if how == "changed" else content[: len(content) // 2])
    with pytest.warns(UserWarning, match="step-00000003 is damaged .* and is not used"):
        assert newest_checkpoint(toy_begun / "checkpoints").step == 2


@pytest.mark.parametrize("damaged", [{3}, {2, 3}])
def test_a_run_goes_on_from_what_is_whole_and_writes_what_was_lost_again(damaged, toy_run, toy_begun):
    folder = toy_begun / "checkpoints"
    for step in damaged:
        (folder / f"step-{step:08d}" / "state.json").unlink()
    with pytest.warns(UserWarning, match="damaged"):
        train(toy_begun, resume=True, max_steps=4)
    assert losses_of(toy_begun) == losses_of(toy_run)[:4]
    assert all((folder / f"damaged-step-{step:08d}").is_dir() for step in damaged)
    assert checkpoint_steps(folder) == [2, 4]


def test_what_a_kill_left_half_written_is_swept(toy_begun):
    half = toy_begun / "checkpoints" / "step-00000004.tmp"
    half.mkdir()
    (half / "training.safetensors").write_bytes(b"half")
    train(toy_begun, max_steps=3, resume=True)
    assert not half.exists()


def test_a_checkpoint_is_found_only_when_all_of_it_is_on_the_disk(toy_begun, monkeypatch):
    """Whatever moment of the writing a kill falls on, the newest checkpoint that is found is whole."""
    found, sync, folder = [], whole_files.sync, toy_begun / "checkpoints"

    def look(path):
        if path == toy_begun or folder in (path, *path.parents):
            found.append((newest_checkpoint(folder).step, re.sub(r"^\.(.+)\.\w{8}\.tmp$", r"\1", path.name)))
        sync(path)

    monkeypatch.setattr(whole_files, "sync", look)
    monkeypatch.setattr(checkpoints, "sync", look)
    train(toy_begun, resume=True, max_steps=4)
    before = {name for step, name in found if step == 3} - {toy_begun.name}
    assert before == {"training.safetensors", "model.safetensors", "state.json", "step-00000004.tmp"}
    assert found[-2:] == [(4, "checkpoints"), (4, toy_begun.name)]
    assert [step for step, _ in found] == sorted(step for step, _ in found)


def test_a_run_loads_while_it_is_trained(toy_begun):
    class Curious(Toy):
        def forward(self, draw, generator):
            if draw.step == 4:
                kept = newest_checkpoint(toy_begun / "checkpoints")
                assert kept.step == 4
                loaded, tensors = anysat.load(toy_begun).state_dict(), kept.tensors()
                assert all(torch.equal(t, tensors[f"objective/teacher.{name}"]) for name, t in loaded.items())
                self.looked = True
            return super().forward(draw, generator)

    objective = Curious()
    train(toy_begun, objective=objective, max_steps=5, resume=True)
    assert objective.looked


def test_the_encoder_of_a_run_is_that_of_its_checkpoint_again_after_a_kill_between_the_two(toy_begun):
    shutil.copyfile(toy_begun / "checkpoints" / "step-00000002" / "model.safetensors", toy_begun / "model.safetensors")
    train(toy_begun, max_steps=3, resume=True)
    kept = toy_begun / "checkpoints" / "step-00000003" / "model.safetensors"
    assert (toy_begun / "model.safetensors").read_bytes() == kept.read_bytes()
