"""Claims on unfinished stores, so that only one process writes each. A claim ends with the process in any case."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from anysat.errors import WriteError

_LOCK = "lock"

_claims: dict[Path, int] = {}
"""Unfinished stores that this process has claimed, with the handle of the locked file."""


def claim(partial: Path) -> None:
    """Claim an unfinished store for this process. Without file locks, this does nothing.

    Raises:
        WriteError: Another process has claimed it.
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
    except OSError:  # a shared file system without locks
        os.close(handle)
        return
    _claims[partial] = handle


def release(partial: Path) -> None:
    """Give up the claim on an unfinished store, if there is one."""
    handle = _claims.pop(partial, None)
    if handle is not None:
        with suppress(OSError):
            os.close(handle)
