"""Shared memory that worker processes fill again and again.

New memory costs more than writing to it, because the system hands it out page by page, zeroed, in both processes. So
each worker has a few pieces, which it fills again as soon as nothing refers to them.
"""

from __future__ import annotations

import itertools
import weakref
from dataclasses import dataclass, field
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

_POOLS = itertools.count()
_READERS: weakref.WeakValueDictionary[int, Reader] = weakref.WeakValueDictionary()
_SLACK = 1.125
"""Factor by which a new piece is larger than asked for, for batches that differ a little."""


@dataclass(frozen=True)
class Lent:
    """A filled piece of memory on its way to the process that asked for it."""

    pool: int
    place: tuple[int, int] | None
    """Worker and number of the piece; None if it is not to be returned."""
    buffer: Tensor | None
    """The memory, when it is sent for the first time; the receiver keeps it."""

    def open(self) -> Tensor:
        """Return its bytes. They belong to the receiver until the last tensor over them is gone."""
        if self.place is None:
            assert self.buffer is not None, self
            return self.buffer
        return _READERS[self.pool].open(self.place, self.buffer)


class Pool:
    """The pieces of all workers, as the workers see them. Create it and its `Reader` before the workers start."""

    def __init__(self, num_workers: int, num_pieces: int) -> None:
        self.number = next(_POOLS)
        with torch.inference_mode(False):  # else it could not be written outside that mode
            self.in_use = shared_bytes(num_workers * num_pieces).view(num_workers, num_pieces).zero_()
        self._pieces: dict[int, Tensor] = {}

    def take(self, worker: int, num_bytes: int) -> tuple[Tensor, Lent]:
        """Return memory to fill, and what to send once it is filled."""
        free = [piece for piece, in_use in enumerate(self.in_use[worker].tolist()) if not in_use]
        if not free:
            buffer = shared_bytes(num_bytes)
            return buffer, Lent(self.number, None, buffer)
        lengths = {piece: len(self._pieces[piece]) if piece in self._pieces else 0 for piece in free}
        fitting = [piece for piece in free if lengths[piece] >= num_bytes]
        piece = min(fitting, key=lengths.__getitem__) if fitting else min(free, key=lengths.__getitem__)
        if not fitting:
            self._pieces[piece] = shared_bytes(int(num_bytes * _SLACK))
        self.in_use[worker, piece] = 1
        buffer = self._pieces[piece]
        return buffer, Lent(self.number, (worker, piece), None if fitting else buffer)


@dataclass(eq=False)
class Reader:
    """The pieces as the receiving process sees them. Each is returned when its last tensor is gone."""

    pool: Pool
    _arrays: dict[tuple[int, int], NDArray[Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _READERS[self.pool.number] = self

    def open(self, place: tuple[int, int], buffer: Tensor | None) -> Tensor:
        """Return a tensor over a piece; the piece is returned when the tensor is gone."""
        if buffer is not None:
            self._arrays[place] = buffer.numpy()
        array = self._arrays[place][:]  # a new object, which lives as long as any tensor made from it
        weakref.finalize(array, _give_back, self.pool.in_use, place).atexit = False
        return torch.from_numpy(array)


def _give_back(in_use: Tensor, place: tuple[int, int]) -> None:
    in_use[place] = 0


def shared_bytes(count: int) -> Tensor:
    """Return new memory that is passed between processes without a copy."""
    storage: Any = torch.UntypedStorage
    return torch.empty(0, dtype=torch.uint8).set_(storage._new_shared(count))  # as torch's own collation does
