"""Files that hold the results of units of work between their two steps. A file is complete once it exists."""

from __future__ import annotations

import json
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
from anysat.geo.stores.store import Unit
from anysat.whole_files import take_over, write_whole


@dataclass(frozen=True)
class UnitFiles:
    """A folder with one file per unit, which holds named arrays, and what could not be read."""

    folder: Path

    def write(self, unit: Unit, arrays: Mapping[str, NDArray[Any]], unreadable: Sequence[str]) -> None:
        """Store the arrays of a unit. The file appears once it is complete.

        Raises:
            UnfinishedError: It cannot be written.
        """
        told = {"unreadable": json.dumps(list(unreadable))}
        content = save({name: np.ascontiguousarray(array) for name, array in arrays.items()}, told)
        try:
            self.folder.mkdir(exist_ok=True)
            write_whole(self._path(unit), content, to_disk=False)
        except OSError as error:
            raise UnfinishedError(self.folder.parent, error.strerror or error) from error

    def adopt(self, unit: Unit, other: UnitFiles, theirs: Unit) -> None:
        """Take over the file of a unit from another folder, as a hard link if possible, else as a copy.

        Raises:
            UnfinishedError: It cannot be written.
        """
        try:
            self.folder.mkdir(exist_ok=True)
            take_over(self._path(unit), other._path(theirs))
        except OSError as error:
            raise UnfinishedError(self.folder.parent, error.strerror or error) from error

    @contextmanager
    def opened(self, unit: Unit) -> Iterator[Any]:
        """Open the file of a unit, to read arrays or slices of them."""
        with safe_open(self._path(unit), framework="np") as file:
            yield file

    def is_there(self, unit: Unit) -> bool:
        """Return whether there is a readable file of a unit."""
        try:
            with self.opened(unit):
                return True
        except (OSError, SafetensorError):
            return False

    def forget(self, unit: Unit) -> None:
        """Delete the file of a unit."""
        self._path(unit).unlink(missing_ok=True)

    def _path(self, unit: Unit) -> Path:
        return self.folder / f"{unit.period}-{unit.row}-{unit.col}.safetensors"


def names_in(file: Any) -> list[str]:
    """Return the names of the arrays in an opened file."""
    return list(file.keys())


def unreadable_in(file: Any) -> tuple[str, ...]:
    """Return what could not be read for the arrays of an opened file, and why."""
    return tuple(json.loads(file.metadata()["unreadable"]))
