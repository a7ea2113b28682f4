"""Fixtures shared by the suite."""

import os
import shutil
from pathlib import Path

import pytest
import torch

from anysat.model.config import ModelConfig
from anysat.model.encoder import AnySat
from builders import SHARED_DATA, golden_state_dict, random_model

if "PYTEST_XDIST_WORKER" in os.environ:
    torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory):
    """Generated tiles and lists are kept for the whole session, away from the user's cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.getbasetemp() / "cache"))
        yield


@pytest.fixture
def fresh_cache(tmp_path, monkeypatch):
    """A cache of one test alone, empty at first."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture(scope="session")
def golden_tiny() -> AnySat:
    """The tiny size with golden weights, in eval mode. Shared: never change it."""
    model = AnySat(ModelConfig.tiny()).eval()
    model.load_published_state_dict(golden_state_dict(model))
    return model.requires_grad_(False)


@pytest.fixture(scope="session")
def nano() -> AnySat:
    """A very small model with random weights, in eval mode. Shared: never change it."""
    return random_model()


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real imagery beside the repository; tests that need it skip where it is absent."""
    if not SHARED_DATA.is_dir():
        pytest.skip("no real imagery beside the repository (../shared/data)")
    return SHARED_DATA


@pytest.fixture(scope="session")
def toy_run(tmp_path_factory) -> Path:
    """A run of the toy training, all steps in one go. Shared: never write into it."""
    from toy_training import train

    out = tmp_path_factory.mktemp("toy") / "run"
    train(out)
    return out


@pytest.fixture(scope="session")
def _toy_begun(tmp_path_factory) -> Path:
    from toy_training import train

    out = tmp_path_factory.mktemp("toy") / "begun"
    train(out, max_steps=3)
    return out


@pytest.fixture
def toy_begun(_toy_begun, tmp_path) -> Path:
    """The same run, stopped after 3 steps, with checkpoints of 2 and 3; a copy of one's own."""
    return Path(shutil.copytree(_toy_begun, tmp_path / "begun"))


@pytest.fixture(scope="session")
def toy_accumulated(tmp_path_factory) -> Path:
    """A run of the toy training with two micro-batches a step. Shared: never write into it."""
    from toy_training import ACCUMULATED, train

    out = tmp_path_factory.mktemp("toy") / "accumulated"
    train(out, engine={"accumulate": 2}, **ACCUMULATED)
    return out


@pytest.fixture(scope="session")
def small_weights(tmp_path_factory) -> Path:
    """A file of first weights of a very small encoder of every modality in the table."""
    from anysat.model.checkpoint import save
    from task_commands import new_encoder

    path = tmp_path_factory.mktemp("weights") / "tiny.safetensors"
    save(new_encoder(dim=64, depth=1, num_heads=2), path)
    return path


@pytest.fixture
def run_task(small_weights, tmp_path, capsys):
    """Runs a command on labelled data into a folder, with small weights; gives its exit status, report and errors."""
    from anysat.cli import main

    def call(command, *words, out="run"):
        argv = [command, *words]
        argv += [f"--out={tmp_path / out}"] if command != "evaluate" else []
        if command in ("probe", "finetune") and not any(str(word).startswith("--weights") for word in words):
            argv.append(f"--weights={small_weights}")
        status = main([str(word) for word in argv])
        said = capsys.readouterr()
        return status, said.out, said.err

    return call
