"""A digest that identifies what a model computes."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import torch
from torch import Tensor

import anysat
from anysat.model.encoder import AnySat


def digest(model: AnySat, *, statistics: bool = False) -> str:
    """Return the SHA-256 of a model's configuration and weights and, with `statistics`, of its statistics.

    Examples:
        >>> from anysat.model.config import ModelConfig
        >>> len(digest(AnySat(ModelConfig(dim=64, depth=1, num_heads=2))))
        64
    """
    facts: dict[str, Any] = {"config": model.config.to_dict(), "type": str(model.dtype)}
    if statistics:
        facts["statistics"] = None if model.normaliser is None else model.normaliser.to_dict()["statistics"]
    total = hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode())
    for name, tensor in sorted(model.state_dict().items()):
        total.update(name.encode())
        total.update(bytes_of(tensor))
    return total.hexdigest()


def made_by(model: AnySat) -> dict[str, Any]:
    """Return what every output records of the model it is made by: version of the package, weights, their digest."""
    return {"version": anysat.__version__, "weights": dict(model.provenance) | {"digest": digest(model)}}


def bytes_of(tensor: Tensor) -> memoryview:
    """Return the bytes of a tensor's values."""
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data
