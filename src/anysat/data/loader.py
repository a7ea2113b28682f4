"""Batches from worker processes, in step order: every step is planned by a source and depends on nothing else.

A worker lays all tensors of a batch into one piece of shared memory that is filled again later, so that a
batch is not copied again and open files do not run out.
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
from anysat.data.buffers import Lent, Pool, Reader, own_bytes
from anysat.errors import AnySatError, RecordError

_ALIGN = 64


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What one step reads on one rank."""

    step: int
    dataset: str
    """Name of the one dataset of the step."""
    patch_size_m: float
    """Patch size of the step, the same on every rank."""
    indices: NDArray[np.int64]
    """Samples of this rank, numbers in the dataset."""
    seeds: tuple[tuple[int, ...], ...] = ()
    """Seed of each sample's augmentation, for `numpy.random.default_rng`; none where nothing is drawn."""
    part: int = 0
    """Place of the dataset among the parts of a mixture."""


@dataclass(frozen=True, kw_only=True)
class Draw:
    """One batch and where it comes from."""

    step: int
    dataset: str
    """Name of the one dataset of the batch."""
    patch_size_m: float
    """Patch size to encode it with."""
    batch: Batch


class Source(Protocol):
    """What batches come from: any step's tiles, without regard to the steps before it."""

    def plan(self, step: int) -> Plan:
        """What a step reads; cheap."""

    def read(self, plan: Plan) -> list[Tile]:
        """The tiles of a step, ready to be stacked."""


@dataclass(frozen=True, kw_only=True)
class Loader:
    """Draws of the steps from `start` up to `stop`, in their order, each time it is iterated.

    What comes does not depend on the number of workers. An error in the data is raised as it was in
    the worker.
    """

    source: Source
    start: int
    stop: int
    num_workers: int = 0
    """Processes that read ahead; 0 reads in this one, when a batch is asked for."""
    prefetch: int = 2
    """Batches each worker keeps ready."""
    pin_memory: bool = False
    """True to place batches in page-locked memory, for faster copies to a GPU."""
    start_method: str | None = None
    """How workers start: `fork`, `forkserver` or `spawn`; None for the platform's usual way."""

    def __post_init__(self) -> None:
        for name, least in (("start", 0), ("stop", self.start), ("num_workers", 0), ("prefetch", 1)):
            if getattr(self, name) < least:
                raise RecordError(f"loader, {name}", getattr(self, name), f"{least} or more")

    def __len__(self) -> int:
        return self.stop - self.start

    def __iter__(self) -> Iterator[Draw]:
        from torch.utils.data import DataLoader

        options: dict[str, Any] = {}
        pool = reader = None
        if self.num_workers:
            pool = Pool(self.num_workers, self.prefetch + 2)  # kept ready, at hand, and being filled
            reader = Reader(pool)
            options = {
                "prefetch_factor": self.prefetch, "multiprocessing_context": self.start_method,
                "worker_init_fn": _leave_stopping_to_the_parent,
            }  # fmt: skip
        steps = range(self.start, self.stop)
        loader: DataLoader[Any] = DataLoader(
            _Steps(self.source, pool), sampler=steps, batch_size=None, collate_fn=_as_it_is,  # type: ignore[arg-type]
            num_workers=self.num_workers, pin_memory=self.pin_memory, **options,
        )  # fmt: skip
        for step, item in zip(steps, loader, strict=True):
            if isinstance(item, AnySatError):
                item.add_note(f"while batch {step} was drawn")
                raise item
            yield item.open()
            del item
        assert reader is None or reader.pool is pool  # alive until here


def _as_it_is(item: Any) -> Any:
    return item


def _leave_stopping_to_the_parent(worker: int) -> None:  # noqa: ARG001
    """A signal to all processes of a job must not end those whose batches the parent waits for; it ends them itself.

    Of processes that were forked; others may have threads by then, which take the signal as before. To ignore SIGTERM
    would not do: the parent ends by it those that it has not told to end.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    if parent is not None and hasattr(signal, "sigwaitinfo"):  # Linux
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_end_by, args=(parent.pid,), daemon=True).start()


def _end_by(process: int) -> None:
    """End at once when this process sends SIGTERM, with the status that torch gives then."""
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != process:
        pass
    os._exit(0)


@dataclass(frozen=True)
class _Steps:
    """Steps by number, as torch asks for them in a worker."""

    source: Source
    pool: Pool | None

    def __getitem__(self, step: int) -> _Parcel | AnySatError:
        try:
            plan = self.source.plan(step)
            return self._fill(plan, self.source.read(plan))
        except AnySatError as error:
            return error

    def _fill(self, plan: Plan, tiles: list[Tile]) -> _Parcel:
        """Stack tiles, in a worker into memory it shares with the process that asked."""
        worker = torch.utils.data.get_worker_info()
        if self.pool is None or worker is None:
            buffer = own_bytes(_most_bytes(tiles))
            return _Parcel.of(plan, tiles, buffer, Lent(-1, None, buffer))
        return _Parcel.of(plan, tiles, *self.pool.take(worker.id, _most_bytes(tiles)))


@dataclass(frozen=True)
class _Place:
    """Where a tensor lies in a buffer."""

    offset: int
    shape: tuple[int, ...]
    dtype: torch.dtype

    def of(self, buffer: Tensor) -> Tensor:
        num_bytes = math.prod(self.shape) * self.dtype.itemsize
        return buffer[self.offset : self.offset + num_bytes].view(self.dtype).view(self.shape)


@dataclass(frozen=True)
class _Parcel:
    """A draw on its way between processes."""

    draw: Draw
    """With a `_Place` for each tensor."""
    lent: Lent
    """The memory they lie in."""
    used: int
    """Bytes of it that hold the batch."""
    pinned: Tensor | None = None
    """A page-locked copy of those."""

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
        """Called by torch where memory is to be page-locked."""
        return replace(self, pinned=self.lent.open()[: self.used].pin_memory())

    def open(self) -> Draw:
        """The draw with its tensors."""
        buffer = self.lent.open() if self.pinned is None else self.pinned
        return replace(self.draw, batch=self.draw.batch.map(lambda place: place.of(buffer)))  # type: ignore[attr-defined]


def _most_bytes(tiles: list[Tile]) -> int:
    """Enough for a batch of these tiles; what is not written to takes no memory."""
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
