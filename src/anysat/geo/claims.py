"""Locks on outputs, so that only one process writes each. A lock ends with its process, however that ends."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from anysat.errors import InputError, WriteError

LOCK = "lock"
_claims: dict[Path, ExitStack] = {}
"""Folders that this process has claimed, with what releases them."""


def make_folder(folder: Path) -> None:
    """Create a folder and its parents.

    Raises:
        WriteError: The folder cannot be created.
    """
    above = next((parent for parent in (folder, *folder.parents) if parent.exists()), folder)
    if above.is_file():
        raise WriteError(folder, f"{above} is a file, not a folder: give another --out")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise WriteError(folder, f"{error}: give another --out") from error


@contextmanager
def alone_in(folder: Path, *, waits: bool = False) -> Iterator[None]:
    """Create a folder of unfinished work and lock it; the lock of a dead process does not count.

    Args:
        folder: The folder.
        waits: Wait until no other process works in it.

    Raises:
        InputError: Another process is working in it.
        WriteError: The folder cannot be created.
    """
    with _locked(folder / LOCK, f"unfinished work in {folder}", waits):
        yield


@contextmanager
def alone_at(out: Path) -> Iterator[None]:
    """Lock outputs of one name, with any suffix, against other processes; the lock of a dead process does not count.

    The folder of the output is created, and removed again if it stays empty. If it cannot be created, there is no lock;
    the later attempt to write there reports the reason.

    Raises:
        InputError: Another process is writing them.
    """
    out = out.absolute()
    made = [folder for folder in out.parents if not folder.exists()]
    try:
        with ExitStack() as held:
            with suppress(WriteError):
                held.enter_context(_locked(out.with_name(f".{out.stem}.{LOCK}"), str(out)))
            yield
    finally:
        for folder in made:  # the innermost first
            with suppress(OSError):
                folder.rmdir()


def claim(folder: Path) -> None:
    """Lock a folder of unfinished work until `release`, or until the process ends. Claiming it again changes nothing.

    Raises:
        InputError: Another process is working in it.
    """
    if folder not in _claims:
        held = ExitStack()
        held.enter_context(alone_in(folder))
        _claims[folder] = held


def release(folder: Path) -> None:
    """Give up the claim on a folder, if there is one."""
    if (held := _claims.pop(folder, None)) is not None:
        held.close()


@contextmanager
def _locked(path: Path, where: str, waits: bool = False) -> Iterator[None]:
    """Create and hold a lock file, with its folder; delete it at the end. `where` names in messages what is locked."""
    try:
        import fcntl
    except ImportError:  # no such locks on this system
        make_folder(path.parent)
        yield
        return
    while True:
        make_folder(path.parent)
        try:
            number = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        except FileNotFoundError:  # another process has just removed the folder
            continue
        except OSError as error:
            raise WriteError(path.parent, error.strerror or error) from error
        try:
            fcntl.flock(number, fcntl.LOCK_EX | (0 if waits else fcntl.LOCK_NB))
        except BlockingIOError:
            process = os.pread(number, 64, 0).decode(errors="replace").strip()
            os.close(number)
            raise InputError(where, "no other process working there", f"process {process}",
                             "wait until it ends, or give another --out") from None  # fmt: skip
        except OSError:  # the disk does not support locks
            break
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(number), path.stat()):
                break
        os.close(number)  # the folder was finished in the meantime
    try:
        with suppress(OSError):  # the disk is full: the lock holds without the number, which is for messages
            os.ftruncate(number, 0)
            os.pwrite(number, f"{os.getpid()}\n".encode(), 0)
        yield
    finally:
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(number), path.stat()):
                path.unlink()
        os.close(number)
