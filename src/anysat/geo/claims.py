"""Which process writes an unfinished store: one claims it, and the claim ends with the process, however that ends."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from anysat.errors import WriteError

_LOCK = "lock"

_claims: dict[Path, int] = {}
"""Unfinished stores that this process writes, and the open file that says so to others."""


def claim(partial: Path) -> None:
    """Claim an unfinished store for this process.

    Raises:
        WriteError: another process has.
    """
    if partial in _claims:
        return
    try:
        import fcntl
    except ImportError:  # no such locks on this system
        return
    handle = os.open(partial / _LOCK, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError) as error:
        os.close(handle)
        raise WriteError(partial, "another process is writing it") from error
    except OSError:  # a shared disk without locks
        os.close(handle)
        return
    _claims[partial] = handle


def release(partial: Path) -> None:
    """Give it up."""
    handle = _claims.pop(partial, None)
    if handle is not None:
        with suppress(OSError):
            os.close(handle)
