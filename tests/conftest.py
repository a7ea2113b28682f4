"""Fixtures shared by the suite."""

import os
from pathlib import Path

import pytest
import torch

from anysat.model.config import ModelConfig
from anysat.model.encoder import AnySat
from builders import SHARED_DATA, golden_state_dict, random_model

if "PYTEST_XDIST_WORKER" in os.environ:
    torch.set_num_threads(1)


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
