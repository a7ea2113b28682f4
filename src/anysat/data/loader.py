"""A loader that reads batches ahead in worker processes and returns them in the order of their steps.

A step depends only on its plan. A worker puts all tensors of a batch into one block of shared memory, which is reused
later, so batches are not copied and the number of open files stays small.
"""

from __future__ import annotations

import math
import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from anysat.batch import Batch, Tile
from anysat.data.buffers import Lent, Pool, Reader
from anysat.errors import AnySatError, RecordError

_ALIGN = 64


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What one step reads on one rank."""

    step: int
    """Number of the step."""
    dataset: str
    """Name of the step's dataset."""
    patch_size_m: float
    """Patch size of the step in metres, the same on every rank."""
    indices: NDArray[np.int64]
    """Numbers of this rank's samples in the dataset."""
    seeds: tuple[tuple[int, ...], ...] = ()
    """Seed of each sample's augmentation, for `numpy.random.default_rng`; empty if nothing is random."""
    part: int = 0
    """Number of the dataset among the parts of a mixture."""


@dataclass(frozen=True, kw_only=True)
class Draw:
    """One batch, with its dataset and patch size."""

    step: int
    """Number of the step."""
    dataset: str
    """Name of the batch's dataset."""
    patch_size_m: float
    """Patch size in metres to encode the batch with."""
    batch: Batch
    """The tiles, in source values."""


class Source(Protocol):
    """A source of batches, which gives the tiles of any step independently of the steps before."""

    def plan(self, step: int) -> Plan:
        """Return what a step reads, without reading it."""

    def read(self, plan: Plan) -> list[Tile]:
        """Read the tiles of a step, ready to be stacked."""


@dataclass(frozen=True, kw_only=True)
class Loader:
    """An iterable over the batches of the steps from `start` up to but excluding `stop`, in order.

    The batches do not depend on the number of workers. An error in the data is raised here as it was raised in the
    worker.
    """

    source: Source
    """Where the tiles come from."""
    start: int
    """First step."""
    stop: int
    """Step after the last."""
    num_workers: int = 0
    """Number of processes that read ahead; 0 reads each batch in this process when it is needed."""
    prefetch: int = 2
    """Number of batches that each worker keeps ready."""
    pin_memory: bool = False
    """Put batches in page-locked memory, for faster copies to a GPU."""
    stride: int = 1
    """Distance from one step to the next, for processes that take turns."""

    def __post_init__(self) -> None:
        for name, least in (("start", 0), ("stop", self.start), ("num_workers", 0), ("prefetch", 1), ("stride", 1)):
            if getattr(self, name) < least:
                raise RecordError(f"loader, {name}", getattr(self, name), f"{least} or more")

    def __len__(self) -> int:
        return len(self._steps)

    @property
    def _steps(self) -> range:
        return range(self.start, self.stop, self.stride)

    def __iter__(self) -> Iterator[Draw]:
        from torch.utils.data import DataLoader

        options: dict[str, Any] = {}
        pool = reader = None
        steps = self._steps
        num_workers = min(self.num_workers, len(steps))
        if num_workers:
            pool = Pool(num_workers, self.prefetch + 2)  # the ready ones, one in use, one being filled
            reader = Reader(pool)
            options = {"prefetch_factor": self.prefetch, "worker_init_fn": _leave_stopping_to_the_parent}
        loader: DataLoader[Any] = DataLoader(
            _Steps(self.source, pool), sampler=steps, batch_size=None,  # type: ignore[arg-type]
            num_workers=num_workers, pin_memory=self.pin_memory, **options,
        )  # fmt: skip
        for step, item in zip(steps, loader, strict=True):
            if isinstance(item, AnySatError):
                item.add_note(f"while batch {step} was drawn")
                raise item
            yield item.open()
            del item
        assert reader is None or reader.pool is pool  # alive until here


def _leave_stopping_to_the_parent(worker: int) -> None:  # noqa: ARG001
    """Keep a worker alive when a signal is sent to all processes of a job: the parent still waits for its batches.

    The parent ends its workers itself, partly by SIGTERM, so SIGTERM from the parent must still work. This is certain
    only for forked workers; others may already have threads, which take the signal as before.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    if parent is not None and hasattr(signal, "sigwaitinfo"):  # Linux
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_end_by, args=(parent.pid,), daemon=True).start()


def _end_by(process: int) -> None:
    """End at once when `process` sends SIGTERM, with the exit status that torch uses."""
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != process:
        pass
    os._exit(0)


@dataclass(frozen=True)
class _Steps:
    """A dataset for torch whose items are steps."""

    source: Source
    pool: Pool | None

    def __getitem__(self, step: int) -> _Parcel | AnySatError:
        try:
            plan = self.source.plan(step)
            return self._fill(plan, self.source.read(plan))
        except AnySatError as error:
            return error

    def _fill(self, plan: Plan, tiles: list[Tile]) -> _Parcel:
        """Stack tiles; in a worker, into memory shared with the parent process."""
        worker = torch.utils.data.get_worker_info()
        if self.pool is None or worker is None:
            buffer = torch.from_numpy(np.empty(_most_bytes(tiles), np.uint8))
            return _Parcel.of(plan, tiles, buffer, Lent(-1, None, buffer))
        return _Parcel.of(plan, tiles, *self.pool.take(worker.id, _most_bytes(tiles)))


@dataclass(frozen=True)
class _Place:
    """The place of a tensor in a buffer."""

    offset: int
    shape: tuple[int, ...]
    dtype: torch.dtype

    def of(self, buffer: Tensor) -> Tensor:
        num_bytes = math.prod(self.shape) * self.dtype.itemsize
        return buffer[self.offset : self.offset + num_bytes].view(self.dtype).view(self.shape)


@dataclass(frozen=True)
class _Parcel:
    """A draw that is passed between processes."""

    draw: Draw
    """The draw, with a `_Place` instead of each tensor."""
    lent: Lent
    """The memory that holds the tensors."""
    used: int
    """Number of its bytes that hold the batch."""
    pinned: Tensor | None = None
    """A page-locked copy of these bytes."""

    @classmethod
    def of(cls, plan: Plan, tiles: list[Tile], buffer: Tensor, lent: Lent) -> _Parcel:
        """Stack tiles into a buffer."""
        used, placed = 0, {}

        def allocate(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
            nonlocal used
            place = _Place(used, shape, dtype)
            tensor = place.of(buffer)
            used += -(-tensor.nbytes // _ALIGN) * _ALIGN
            placed[id(tensor)] = place
            return tensor

        batch = Batch.of(tiles, allocate).map(lambda tensor: placed[id(tensor)])  # type: ignore[arg-type,return-value]
        draw = Draw(step=plan.step, dataset=plan.dataset, patch_size_m=plan.patch_size_m, batch=batch)
        return cls(draw, lent, used)

    def pin_memory(self) -> _Parcel:
        """Copy the batch to page-locked memory; called by torch."""
        return replace(self, pinned=self.lent.open()[: self.used].pin_memory())

    def open(self) -> Draw:
        """Return the draw with its tensors."""
        buffer = self.lent.open() if self.pinned is None else self.pinned
        return replace(self.draw, batch=self.draw.batch.map(lambda place: place.of(buffer)))  # type: ignore[attr-defined]


def place_among_processes() -> tuple[int, int]:
    """Return the number of this process, and how many train together."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_rank(), torch.distributed.get_world_size()
    return 0, 1


def _most_bytes(tiles: list[Tile]) -> int:
    """Return a number of bytes that is enough for a batch of these tiles. Bytes never written take no memory."""
    most: dict[str, int] = {}
    for tile in tiles:
        for key, seen in tile.observations.items():
            dates = 0 if seen.dates is None else 8 * len(seen.dates)
            most[key] = max(most.get(key, 0), 5 * seen.values.size + dates)
    targets = 0
    for name in tiles[0].targets:
        arrays = [np.asarray(tile.targets[name]) for tile in tiles if name in tile.targets]
        targets += max(array.size for array in arrays) * np.result_type(*arrays).itemsize
    return len(tiles) * (sum(most.values()) + targets) + _ALIGN * (3 * len(most) + len(tiles[0].targets) + 1)
