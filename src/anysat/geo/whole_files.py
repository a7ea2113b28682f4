"""Write small files atomically, even in case of a power cut, and compute checksums of large ones."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Collection
from pathlib import Path
from typing import Any


def checksum_of(path: Path) -> int:
    """Return the checksum of a shard's file as a number; 0 if there is no file."""
    found = checksum(path)
    return 0 if found is None else int(found["blake2b"], 16)


def read_object(path: Path, keys: Collection[str]) -> dict[str, Any] | None:
    """Read a JSON object with these entries; return None if it is missing or damaged, as after a power cut."""
    try:
        found = json.loads(path.read_text())
    except (FileNotFoundError, ValueError):
        return None
    return found if isinstance(found, dict) and found.keys() >= set(keys) else None


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


def write_whole(path: Path, text: str, *, to_disk: bool = True) -> None:
    """Write a file that appears only once it is complete; `to_disk` waits until its content is on the disk."""
    new = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        with new.open("w") as file:
            file.write(text)
            if to_disk:
                file.flush()
                os.fsync(file.fileno())
        new.replace(path)
    except BaseException:
        new.unlink(missing_ok=True)
        raise
