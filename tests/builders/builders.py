"""Ways to build models and inputs: the golden rules, and random inputs for any modality."""

import os
import sys
import zlib
from pathlib import Path

import numpy as np
import torch

from anysat.modalities import MODALITIES
from anysat.model.config import ModelConfig
from anysat.model.encoder import AnySat

BUILDERS = Path(__file__).parent
ROOT = BUILDERS.parents[1]
"""The repository."""
GOLDEN = ROOT / "tests" / "golden"
SHARED_DATA = ROOT.parent / "shared" / "data"


def child_environment(**changes: str) -> dict[str, str]:
    """Variables for another process of Python that shall import what this one does."""
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), **changes}


def rng(name: str) -> np.random.RandomState:
    return np.random.RandomState(zlib.crc32(name.encode()))


def golden_weight(key: str, shape: tuple[int, ...]) -> torch.Tensor:
    n = rng(key).standard_normal(shape)
    last = key.rsplit(".", 1)[-1]
    if last in ("cls_token", "mask_token", "masked_token", "q_learned", "pad_parameter"):
        n = 0.5 * n
    elif last == "lookup_table_weight":
        n = 0.2 * n
    elif last == "bias":
        n = 0.05 * n
    elif last == "weight":
        n = 1 + 0.1 * n if len(shape) == 1 else n / np.sqrt(np.prod(shape[1:]))
    return torch.tensor(np.asarray(n, dtype=np.float32))


def golden_state_dict(model: AnySat) -> dict[str, torch.Tensor]:
    return {key: golden_weight(key, tuple(t.shape)) for key, t in model.published_state_dict().items()}


def golden_input(case):
    x, batch = {}, case["batch"]
    for one in case["inputs"]:
        key, times, side = one["modality"], one["T"], one["side"]
        time = (times,) if times else ()
        shape = (batch, *time, len(MODALITIES[key].bands), side, side)
        x[key] = torch.tensor(rng(f"input:{key}").standard_normal(shape).astype(np.float32))
        if times:
            days = rng(f"input:{key}_dates").randint(0, 365, size=(batch, times))
            x[f"{key}_dates"] = torch.tensor(np.sort(days, axis=1).astype(np.float32))
        if one["mask"]:
            drawn = rng(f"input:{key}_mask").random_sample((batch, times, 1, side, side))
            x[f"{key}_mask"] = torch.tensor(drawn >= case.get("mask_q", 0.3))
    return x


def random_model(config: ModelConfig | None = None, **changes) -> AnySat:
    """A small model in eval mode whose every parameter is random, so that nothing hides behind a zero."""
    options = {"dim": 128, "depth": 2, "num_heads": 4, **changes}
    model = AnySat(config or ModelConfig(**options)).eval().requires_grad_(False)
    model.load_published_state_dict(golden_state_dict(model))
    return model


def random_input(keys, side_m=60.0, *, width_m=None, batch=2, times=3, seed=0, modalities=MODALITIES):
    """The published dict for these modalities over a tile: standard normal pixels, sorted random days."""
    generator = torch.Generator().manual_seed(seed)
    x = {}
    for key in keys:
        modality = modalities[key]
        rows, cols = (max(1, round(s / modality.gsd_m)) for s in (side_m, width_m or side_m))
        time = (times,) if modality.is_temporal else ()
        x[key] = torch.randn(batch, *time, len(modality.bands), rows, cols, generator=generator)
        if time:
            days = torch.randint(1, 367, (batch, times), generator=generator)
            x[f"{key}_dates"] = days.sort(dim=1).values
    return x
