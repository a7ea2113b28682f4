"""Temporary eval mode."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


def in_eval(module: nn.Module) -> nn.Module:
    """Return a copy of the module in eval mode that shares its weights. The given module keeps its mode."""
    found: nn.Module = object.__new__(type(module))  # parametrised layers refuse `copy`
    found.__dict__ = dict(module.__dict__)
    found._modules = {name: None if part is None else in_eval(part) for name, part in module._modules.items()}
    found.training = False
    return found


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Set eval mode within a `with` block, and afterwards restore the mode of every submodule."""
    modes = [(part, part.training) for part in module.modules()]
    try:
        module.eval()
        yield
    finally:
        for part, mode in modes:
            part.training = mode
