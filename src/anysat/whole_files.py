"""Write files that appear complete or not at all, even in case of a power cut, and compute checksums of large ones."""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from anysat.errors import WriteError


@contextmanager
def appearing(path: Path, *, to_disk: bool = True) -> Iterator[Path]:
    """Provide another name in the same folder; when the block ends without error, that file takes the place of `path`.

    The file has the permissions of the one it replaces, or of a new one. Names are never shared, so several processes
    and threads may write the same file.

    Args:
        path: The file.
        to_disk: Wait until the content is on the disk.

    Raises:
        OSError: The file cannot be written. Nothing is left behind.
    """
    with _renamed_to(path) as new:
        new.touch()
        mode = (path if path.exists() else new).stat().st_mode
        yield new
        if new.stat().st_mode != mode:  # some libraries make files that only their owner can read
            new.chmod(mode)
        if to_disk:
            sync(new)


@contextmanager
def _renamed_to(path: Path) -> Iterator[Path]:
    """Provide an unused name in the same folder; rename that file at the end, or delete it after an error."""
    new = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        yield new
        new.replace(path)
    except BaseException:
        with suppress(OSError):
            new.unlink()
        raise


def write_whole(path: Path, content: bytes | str, *, to_disk: bool = True) -> None:
    """Write a file that appears complete or not at all, in UTF-8 if it is text; see `appearing`."""
    with appearing(path, to_disk=to_disk) as new:
        new.write_bytes(content.encode() if isinstance(content, str) else content)


def write_output(path: Path, content: bytes | str) -> None:
    """Write a file like `write_whole`, and create its folder.

    Raises:
        WriteError: The file cannot be written. Nothing is left behind.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, content)
    except OSError as error:
        raise WriteError(path, error) from error


def take_over(path: Path, source: Path) -> None:
    """Let a file appear that is the same as another: a hard link if possible, else a copy."""
    with _renamed_to(path) as new:
        try:
            os.link(source, new)
        except OSError:  # another disk, or one without links
            shutil.copyfile(source, new)
            sync(new)


def put_in_place(new: Path, final: Path, aside: Path) -> None:
    """Rename a finished file or folder. An older one is first moved to `aside`, and back if this fails."""
    if final.exists():
        final.rename(aside)
    try:
        new.rename(final)
    except OSError:
        if aside.exists():
            aside.rename(final)
        raise


def sweep(folder: Path) -> None:
    """Delete what killed processes left half-written in a folder to which no other process writes."""
    for path in folder.glob("*.tmp"):
        path.unlink(missing_ok=True)


def sync(path: Path) -> None:
    """Wait until a file, or the list of the files in a folder, is on the disk. Some disks do this only for files."""
    number = os.open(path, os.O_RDONLY)
    try:
        os.fsync(number)
    except OSError:
        if not path.is_dir():
            raise
    finally:
        os.close(number)


def read_object(path: Path, keys: Collection[str]) -> dict[str, Any] | None:
    """Read a JSON object with these entries; return None if it is missing or damaged, as after a power cut."""
    try:
        found = json.loads(path.read_text())
    except (FileNotFoundError, ValueError):
        return None
    return found if isinstance(found, dict) and found.keys() >= set(keys) else None


def stamps(path: Path) -> Iterator[tuple[Path, int, int]]:
    """Yield path, size in bytes and time of change of a file, or of all files in a folder; nothing if there is none."""
    for file in sorted(path.rglob("*")) if path.is_dir() else (path,):
        if file.is_file():
            facts = file.stat()
            yield file, facts.st_size, facts.st_mtime_ns


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file, as `sha256sum` writes it."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def checksum_of(path: Path) -> int:
    """Return the checksum of a shard's file as a number; 0 if there is no file."""
    found = checksum(path)
    return 0 if found is None else int(found["blake2b"], 16)


def checksum(path: Path, *, to_disk: bool = False) -> dict[str, Any] | None:
    """Return length and checksum of a file, None if there is no file; `to_disk` waits until it is on the disk."""
    if not path.exists():
        return None
    digest = hashlib.blake2b(digest_size=8)
    with path.open("rb") as file:
        if to_disk:
            os.fsync(file.fileno())
        while block := file.read(1 << 20):
            digest.update(block)
        return {"bytes": file.tell(), "blake2b": digest.hexdigest()}
