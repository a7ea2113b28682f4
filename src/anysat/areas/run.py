"""Running of a job, on this machine (reading ahead and writing in the background) or on a Dask cluster.

Both give the same numbers, because blocks, windows and batches are the same, whatever their order. Written units, and
stored first steps, are not done again.
"""

from __future__ import annotations

import hashlib
import math
import os
import time
import warnings
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from anysat.areas.job import Found, Job
from anysat.areas.maps import MapJob
from anysat.geo.area import Span
from anysat.geo.stores.store import AreaStore, Unit
from anysat.model.ready import keeping_ready

WRITES_BEHIND = 2
"""Number of units that may wait to be written."""
UNITS_PER_THREAD, TRIES = 3, 2
"""Number of units in progress per thread of a cluster, and how often a failed one is retried."""

Tick = Callable[[int, int], None]
"""Called after each step with the number of finished steps and of all steps. A unit has two."""


Work = Job | MapJob
"""Work with two steps for each unit, the second of which may need the first steps of other units."""


class _Plan:
    """The remaining work, its order, and when results of first steps can be deleted.

    Counts are kept only for units under way, so memory grows by three bytes per unit of the area. No lists of waiting
    units are needed, because `Work.needs` is symmetric.
    """

    def __init__(self, job: Work, store: AreaStore, tick: Tick) -> None:
        self._job, self._tick = job, tick
        self._remaining = store.unwritten()
        self._left: dict[Unit, int] = {}
        """Number of first steps that a unit still waits for, once one of them is done."""
        self._wanted: dict[Unit, int] = {}
        """Number of unwritten units that need the first step of a unit, once one of them is written."""
        first = self._remaining.size if self._remaining.all() else sum(1 for _ in self.first_units())
        self._total = int(self._remaining.sum()) + first
        self._done = 0

    def first_units(self) -> Iterator[Unit]:
        """Yield the units whose first step is needed, in an order that lets units finish early."""
        told = np.zeros_like(self._remaining)
        for index in np.ndindex(self._remaining.shape):
            if self._remaining[index]:
                for other in self._job.needs(Unit(*index)):
                    if not told[other]:
                        told[other] = True
                        yield other

    def first_done(self, unit: Unit) -> list[Unit]:
        """Record that the first step of a unit is done, and return the units whose last step can now be done."""
        self._step()
        return [other for other in self._waiting(unit) if not _count_down(self._left, other, self._job.needs)]

    def written(self, unit: Unit) -> None:
        """Record that a unit is written, and delete results of first steps that are no longer needed."""
        self._step()
        for other in self._job.needs(unit):
            if not _count_down(self._wanted, other, self._waiting):
                self._job.kept.forget(other)

    def _waiting(self, unit: Unit) -> list[Unit]:
        """Return the units that need the first step of a unit and were not written when the run began."""
        return [other for other in self._job.needs(unit) if self._remaining[other]]

    def _step(self) -> None:
        self._done += 1
        self._tick(self._done, self._total)


def _count_down(counts: dict[Unit, int], unit: Unit, begin: Callable[[Unit], list[Unit]]) -> int:
    """Lower a unit's count and return it. It starts as the number of units that `begin` returns; 0 is not stored."""
    left = (counts.pop(unit) if unit in counts else len(begin(unit))) - 1
    if left:
        counts[unit] = left
    return left


@dataclass
class Timing:
    """Seconds of each part of a run, and how much it did. Parts that run in parallel can add up to more than `wall`."""

    read: float = 0.0
    """Reading, by all readers together."""
    encode: float = 0.0
    """First steps."""
    finish: float = 0.0
    """Last steps."""
    write: float = 0.0
    """Writing."""
    waiting: float = 0.0
    """Time in which the computation waited for reads."""
    wall: float = 0.0
    """The whole run."""
    cpu: float = 0.0
    """CPU time of all threads; 0 on a cluster, where it is not known."""
    readers: int = 1
    """Number of reading threads."""
    num_cores: int = 1
    """Number of CPU cores."""
    num_blocks: int = 0
    """Number of blocks read and encoded."""
    num_patches: int = 0
    """Number of patches in written units."""

    @property
    def bound(self) -> float:
        """Lower bound in seconds for the same work in any order: its slowest part, or all cores fully used."""
        parts = (self.read / self.readers, self.encode + self.finish, self.write, self.cpu / self.num_cores)
        return max(parts)


def run_here(job: Work, store: AreaStore, tick: Tick = lambda *_: None, *, readers: int = 2) -> Timing:
    """Do the remaining work in this process, with threads that read ahead and one that writes in the background.

    Raises:
        UnfinishedError: The store cannot be written. Finished units are kept.
    """
    plan, timing = _Plan(job, store, tick), Timing(readers=readers, num_cores=_num_cores())
    start, cpu = time.perf_counter(), time.process_time()
    with (
        keeping_ready(),
        _quiet(),
        ThreadPoolExecutor(readers, "read") as pool,
        ThreadPoolExecutor(1, "write") as writer,
    ):
        behind: deque[tuple[Unit, Future[float]]] = deque()

        def settle() -> None:
            unit, future = behind.popleft()
            timing.write += future.result()
            timing.num_patches += math.prod(job.span(unit).shape)
            plan.written(unit)

        try:
            for unit, spans in _reading(job, plan, pool, readers + 1):
                _make(job, unit, spans, timing)
                for other in plan.first_done(unit):
                    before = time.perf_counter()
                    arrays, found = job.finish(other)
                    timing.finish += time.perf_counter() - before
                    behind.append((other, writer.submit(_write, store, other, arrays, found)))
                    while len(behind) > WRITES_BEHIND:
                        settle()
            while behind:
                settle()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    timing.wall, timing.cpu = time.perf_counter() - start, time.process_time() - cpu
    return timing


def _num_cores() -> int:
    """Return the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence rasterio's NotGeoreferencedWarning, because its own way of doing so is not thread-safe."""
    from rasterio.errors import NotGeoreferencedWarning

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        yield


Ahead = Iterator[tuple[Span, "Future[tuple[Any, float]]"]]


def _reading(job: Work, plan: _Plan, pool: ThreadPoolExecutor, ahead: int) -> Iterator[tuple[Unit, Ahead]]:
    """Yield the units whose first step is needed, each with its blocks, while the next blocks are being read."""
    todo = ((unit, span) for unit in plan.first_units() if not job.kept.is_there(unit) for span in job.blocks(unit))
    queue: deque[tuple[Unit, Span, Future[tuple[Any, float]]]] = deque()

    def fill() -> None:
        while len(queue) < ahead and (following := next(todo, None)) is not None:
            queue.append((*following, pool.submit(_read, job, *following)))

    def of(unit: Unit) -> Ahead:
        fill()
        while queue and queue[0][0] == unit:
            _, span, read = queue.popleft()
            fill()
            yield span, read

    for unit in plan.first_units():
        yield unit, of(unit)


def _read(job: Work, unit: Unit, span: Span) -> tuple[Any, float]:
    """Read a block: return what `encode` of the same job takes, and the seconds it took."""
    start = time.perf_counter()
    return job.read(unit.period, span), time.perf_counter() - start


def _make(job: Work, unit: Unit, spans: Ahead, timing: Timing) -> None:
    """Do the first step of a unit, unless it is done already."""
    if job.kept.is_there(unit):
        return
    parts: list[Any] = []
    for span, reading in spans:
        start = time.perf_counter()
        read, took = reading.result()
        middle = time.perf_counter()
        parts.append(job.encode(unit.period, span, read))
        timing.read += took
        timing.waiting += middle - start
        timing.encode += time.perf_counter() - middle
        timing.num_blocks += 1
    before = time.perf_counter()
    job.keep(unit, parts)
    timing.encode += time.perf_counter() - before


def _write(store: AreaStore, unit: Unit, arrays: Any, found: Found) -> float:
    start = time.perf_counter()
    store.write(unit, arrays, found.to_dict())
    return time.perf_counter() - start


def run_on(client: Any, job: Work, store: AreaStore, tick: Tick = lambda *_: None) -> Timing:
    """Do the remaining work on a Dask cluster whose workers see the same disk. The work of lost workers is repeated.

    Weights are sent as a file that each worker loads once. Only a few units per thread are in progress at a time.

    Args:
        client: A `distributed.Client`.

    Raises:
        UnfinishedError: The store cannot be written. Finished units are kept, and nothing is in progress any more.
    """
    from distributed import as_completed, wait

    plan, timing, start = _Plan(job, store, tick), Timing(), time.perf_counter()
    weights, device, threads = _saved(job, store.partial), str(job.model.device), torch.get_num_threads()
    light: Any = replace(job, model=None)  # type: ignore[arg-type]
    todo = plan.first_units()
    under_way: dict[Any, tuple[bool, Unit]] = {}
    futures: Any = as_completed()  # type: ignore[no-untyped-call]

    def submit(work: Callable[..., None], is_last: bool, unit: Unit) -> None:
        made = client.submit(work, light, (weights, device, threads), store, unit, retries=TRIES, pure=False,
                             priority=1 if is_last else 0)  # fmt: skip
        under_way[made] = is_last, unit
        futures.add(made)

    def fill() -> None:
        most = UNITS_PER_THREAD * max(1, sum(client.nthreads().values()))
        while len(under_way) < most and (unit := next(todo, None)) is not None:
            submit(_first_task, False, unit)

    fill()
    try:
        for future in futures:
            is_last, unit = under_way.pop(future)
            future.result()
            if is_last:
                timing.num_patches += math.prod(job.span(unit).shape)
                plan.written(unit)
            else:
                for ready in plan.first_done(unit):
                    submit(_last_task, True, ready)
            fill()
    except Exception:
        # no task may still be writing when another run continues this work
        wait(list(under_way))  # type: ignore[no-untyped-call]
        raise
    timing.wall = time.perf_counter() - start
    return timing


def _saved(job: Work, folder: Path) -> Path:
    """Write the model to a file named after its content, by which workers, which outlive a run, recognise it."""
    path = folder / "weights.safetensors"
    job.save_model(path)
    name = hashlib.blake2b(path.read_bytes(), digest_size=8).hexdigest()
    return path.replace(path.with_stem(f"{path.stem}-{name}"))


_Model = tuple[Path, str, int]
"""File of a model, its device and number of threads, the same as here so that sums are the same."""


def _first_task(light: Any, model: _Model, _store: AreaStore, unit: Unit) -> None:
    if not light.kept.is_there(unit):
        job = _with_model(light, *model)
        with keeping_ready():
            job.keep(unit, [job.encode(unit.period, span, job.read(unit.period, span)) for span in job.blocks(unit)])


def _last_task(light: Any, model: _Model, store: AreaStore, unit: Unit) -> None:
    if store.is_done(unit):
        return
    for other in light.needs(unit):  # done before, but perhaps on a disk that lost it
        _first_task(light, model, store, other)
    with keeping_ready():
        arrays, found = _with_model(light, *model).finish(unit)
    store.write(unit, arrays, found.to_dict())


def _with_model(light: Any, weights: Path, device: str, threads: int) -> Any:
    """Return the job with its model loaded."""
    if torch.get_num_threads() != threads:
        torch.set_num_threads(threads)
    return replace(light, model=_model(light.load_model, weights, device))


@lru_cache(maxsize=1)
def _model(loader: Callable[..., Any], weights: Path, device: str) -> Any:
    """Load the model, once per worker."""
    return loader(weights, device=device)
