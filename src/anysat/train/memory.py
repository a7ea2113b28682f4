"""Memory of a training: kept between steps, or given back as early as possible."""

from __future__ import annotations

import ctypes
import os
import platform
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from anysat.model.chunks import LARGEST_KEPT

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
"""Numbers of the parameters of `mallopt` (malloc.h)."""
_MOST = 2**31 - 1


@contextmanager
def memory_kept() -> Iterator[None]:
    """Make glibc keep freed memory inside this context, and return all free memory to the system at its end.

    The gradients and activations of a step of a large model take gigabytes. By default glibc returns them to the system
    at once, page by page, and the system fills them with zeros for the next step, which takes about a tenth of a step
    in bf16 on a CPU. Peak memory stays the same.

    This holds for the whole process and for processes forked inside the context. It does nothing without glibc, or if
    environment variables (`MALLOC_…`, `GLIBC_TUNABLES`) configure glibc.
    """
    is_told = any(name.startswith("MALLOC_") or name == "GLIBC_TUNABLES" for name in os.environ)
    if platform.libc_ver()[0] != "glibc" or is_told:
        yield
        return
    libc = ctypes.CDLL(None)
    if not libc.mallopt(_MMAP_THRESHOLD, _MOST):  # glibc before 2.35 refuses; it keeps pieces of up to 32 MiB anyway
        yield
        return
    libc.mallopt(_TRIM_THRESHOLD, _MOST)
    try:
        yield
    finally:  # what glibc sets itself once a piece of this size is freed
        libc.mallopt(_MMAP_THRESHOLD, LARGEST_KEPT)
        libc.mallopt(_TRIM_THRESHOLD, 2 * LARGEST_KEPT)
        give_back()


def give_back() -> None:
    """Return all free memory to the system, which takes about 20 ms. Does nothing without glibc."""
    if platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).malloc_trim(0)


def update_in_backward(optimiser: torch.optim.AdamW, seen: Callable[[Tensor], None]) -> list[RemovableHandle]:
    """Update each weight as soon as its gradient is complete, and free the gradient.

    AdamW treats every weight on its own, so the result is the same as that of one update after the backward pass.
    `optimiser.step` then has nothing left to do.

    Args:
        optimiser: AdamW, whose learning rates and moments are used and updated in place.
        seen: Called with each weight's gradient before the update.

    Returns:
        The hooks, to be removed when training ends.
    """
    return [
        weight.register_post_accumulate_grad_hook(_update_of(weight, group, optimiser, seen))
        for group in optimiser.param_groups
        for weight in group["params"]
    ]


def _update_of(
    weight: nn.Parameter, group: dict[str, object], optimiser: torch.optim.AdamW, seen: Callable[[Tensor], None]
) -> Callable[[Tensor], None]:
    alone = torch.optim.AdamW([{**group, "params": [weight]}])
    alone.state = optimiser.state

    def update(_: Tensor) -> None:
        assert weight.grad is not None
        seen(weight.grad)
        alone.param_groups[0]["lr"] = group["lr"]
        alone.step()
        weight.grad = None

    return update
