"""Memory that is freed in one step serves the next, instead of going back to the system and being asked for again."""

from __future__ import annotations

import ctypes
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager

from anysat.model.chunks import LARGEST_KEPT

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
"""Numbers of what `mallopt` sets (malloc.h)."""
_MOST = 2**31 - 1


@contextmanager
def memory_kept() -> Iterator[None]:
    """Inside, glibc keeps whatever is freed; afterwards all that is free goes back.

    Gradients of a large model and activations of a step are gigabytes, which glibc gives back at once, page by page,
    and the system fills with zeros when the next step asks: about a tenth of a step in bf16 on a processor. The most
    memory that a training takes stays the same. Of the whole process; nothing happens without glibc, or where the
    environment tells what to keep. Processes forked inside keep what they free, too.
    """
    is_told = any(name.startswith("MALLOC_") or name == "GLIBC_TUNABLES" for name in os.environ)
    if platform.libc_ver()[0] != "glibc" or is_told:
        yield
        return
    libc = ctypes.CDLL(None)
    if not libc.mallopt(_MMAP_THRESHOLD, _MOST):  # as before 2.35, which keeps pieces of up to 32 MiB in any case
        yield
        return
    libc.mallopt(_TRIM_THRESHOLD, _MOST)
    try:
        yield
    finally:  # as glibc does by itself once a piece of this size was freed
        libc.mallopt(_MMAP_THRESHOLD, LARGEST_KEPT)
        libc.mallopt(_TRIM_THRESHOLD, 2 * LARGEST_KEPT)
        give_back()


def give_back() -> None:
    """Return all memory that is free to the system, in about 20 ms. Without glibc, nothing happens."""
    if platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).malloc_trim(0)
