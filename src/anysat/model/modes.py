"""Eval mode for a while."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


def in_eval(module: nn.Module) -> nn.Module:
    """The same weights in modules of their own, in eval mode: those that were given stay in theirs."""
    found: nn.Module = object.__new__(type(module))  # not by `copy`, which parametrised layers refuse
    found.__dict__ = dict(module.__dict__)
    found._modules = {name: None if part is None else in_eval(part) for name, part in module._modules.items()}
    found.training = False
    return found


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Eval mode; every part is in its own mode again afterwards, for some may have stayed in eval mode."""
    modes = [(part, part.training) for part in module.modules()]
    try:
        module.eval()
        yield
    finally:
        for part, mode in modes:
            part.training = mode
