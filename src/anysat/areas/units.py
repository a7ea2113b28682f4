"""What is kept on disk of a unit of work between its two steps: one file each, complete or not there."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from anysat.errors import UnfinishedError
from anysat.geo.store import Unit


@dataclass(frozen=True)
class UnitFiles:
    """A folder with a file for each unit: named arrays, and what could not be read."""

    folder: Path

    def write(self, unit: Unit, arrays: Mapping[str, NDArray[Any]], unreadable: Sequence[str]) -> None:
        """Keep what was made of a unit; whole when the name appears.

        Raises:
            UnfinishedError: it cannot be written.
        """
        told = {"unreadable": json.dumps(list(unreadable))}
        content = save({name: np.ascontiguousarray(array) for name, array in arrays.items()}, told)
        path = self._path(unit)
        part = path.with_name(f".{path.name}.{os.getpid()}")  # two workers may make the same unit
        try:
            self.folder.mkdir(exist_ok=True)
            part.write_bytes(content)
            part.replace(path)
        except OSError as error:
            part.unlink(missing_ok=True)
            raise UnfinishedError(self.folder.parent, error.strerror or error) from error

    def adopt(self, unit: Unit, other: UnitFiles, theirs: Unit) -> None:
        """Keep what another folder keeps of a unit, on the same disk without a copy.

        Raises:
            UnfinishedError: it cannot be written.
        """
        path = self._path(unit)
        part = path.with_name(f".{path.name}.{os.getpid()}")
        try:
            self.folder.mkdir(exist_ok=True)
            part.unlink(missing_ok=True)
            try:
                os.link(other._path(theirs), part)
            except OSError:  # another disk, or one without links
                shutil.copyfile(other._path(theirs), part)
            part.replace(path)
        except OSError as error:
            part.unlink(missing_ok=True)
            raise UnfinishedError(self.folder.parent, error.strerror or error) from error

    @contextmanager
    def opened(self, unit: Unit) -> Iterator[Any]:
        """The file of a unit, of which arrays, or slices of them, are read."""
        with safe_open(self._path(unit), framework="np") as file:
            yield file

    def is_there(self, unit: Unit) -> bool:
        """Whether something is kept, and whole."""
        try:
            with self.opened(unit):
                return True
        except (OSError, SafetensorError):
            return False

    def forget(self, unit: Unit) -> None:
        """It is not needed any more."""
        self._path(unit).unlink(missing_ok=True)

    def _path(self, unit: Unit) -> Path:
        return self.folder / f"{unit.period}-{unit.row}-{unit.col}.safetensors"


def names_in(file: Any) -> list[str]:
    """Arrays of an opened file."""
    return list(file.keys())


def unreadable_in(file: Any) -> tuple[str, ...]:
    """What could not be read for what an opened file holds, and why."""
    return tuple(json.loads(file.metadata()["unreadable"]))
