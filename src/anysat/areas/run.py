"""A job run to its end: on this machine, reading ahead and writing behind, or on a Dask cluster.

Both give the same numbers: the same blocks, windows and batches, in whatever order. Units that are written are not done
again, nor first steps that are kept.
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
from typing import Any, Protocol

import torch

from anysat.areas.job import Found, Read
from anysat.geo.area import Span
from anysat.geo.store import AreaStore, Unit
from anysat.model.ready import keeping_ready

WRITES_BEHIND = 2
"""Units that may wait to be written."""
UNITS_PER_THREAD, TRIES = 3, 2
"""Units under way on a cluster for each of its threads, and how often one that fails is tried again."""

Tick = Callable[[int, int], None]
"""Told after each step how many steps are done of how many; a unit has two."""


class Work(Protocol):
    """What is run: two steps for each unit, the second of which may wait for the first of others."""

    @property
    def model(self) -> Any:
        """What computes; it travels to other machines as a file."""

    def span(self, unit: Unit) -> Span:
        """Patches of a unit."""

    def needs(self, unit: Unit) -> list[Unit]:
        """Units whose first step must be done before the last of this one."""

    def blocks(self, unit: Unit) -> list[Span]:
        """Patches that the first step reads, part by part."""

    def read(self, period: int, span: Span) -> Read:
        """Pixels of a part; safe in threads."""

    def encode(self, period: int, span: Span, read: Read) -> Any:
        """What is computed of a part."""

    def keep(self, unit: Unit, parts: list[Any]) -> None:
        """End of the first step: on disk."""

    def is_made(self, unit: Unit) -> bool:
        """Whether the first step is done."""

    def finish(self, unit: Unit) -> tuple[dict[str, Any], Found]:
        """The last step: arrays of the store, and what is to be said."""

    def forget(self, unit: Unit) -> None:
        """Nobody waits for the first step any more."""

    def save_model(self, path: Path) -> None:
        """Write the model."""

    @property
    def load_model(self) -> Callable[..., Any]:
        """Reads it again, from a path and `device`."""


class _Plan:
    """What is still to be done, in which order, and what may be forgotten when."""

    def __init__(self, job: Work, store: AreaStore, tick: Tick) -> None:
        self._job, self._tick = job, tick
        self._needs = {unit: job.needs(unit) for unit in store.remaining()}
        self._waiting_for = {unit: len(others) for unit, others in self._needs.items()}
        self._waiting: dict[Unit, list[Unit]] = {}
        for unit, others in self._needs.items():
            for other in others:
                self._waiting.setdefault(other, []).append(unit)
        self._wanted = {other: len(units) for other, units in self._waiting.items()}
        self._total, self._done = len(self._needs) + len(self._wanted), 0

    def first_units(self) -> list[Unit]:
        """Units whose first step is wanted, as they are wanted: what can be finished early is finished early."""
        return list(self._wanted)

    def first_done(self, unit: Unit) -> list[Unit]:
        """Note the first step of a unit; the units whose last can be done now."""
        self._step()
        for other in self._waiting[unit]:
            self._waiting_for[other] -= 1
        return [other for other in self._waiting[unit] if not self._waiting_for[other]]

    def written(self, unit: Unit) -> None:
        """Note a unit that is written; first steps that nobody waits for any more are forgotten."""
        self._step()
        for other in self._needs[unit]:
            self._wanted[other] -= 1
            if not self._wanted[other]:
                self._job.forget(other)

    def _step(self) -> None:
        self._done += 1
        self._tick(self._done, self._total)


@dataclass
class Timing:
    """Where the seconds of a run went, and what it did; parts that run beside each other add up to more than `wall`."""

    read: float = 0.0
    """Of all readers together."""
    encode: float = 0.0
    finish: float = 0.0
    write: float = 0.0
    waiting: float = 0.0
    """Computing had nothing to do, because nothing was read yet."""
    wall: float = 0.0
    cpu: float = 0.0
    """Of all threads; 0 on a cluster, whose workers do not tell."""
    readers: int = 1
    num_cores: int = 1
    num_blocks: int = 0
    """Read and encoded."""
    num_patches: int = 0
    """Of units that were written."""

    @property
    def bound(self) -> float:
        """Seconds that no order of the same work beats: those of its slowest part, or of all cores at work."""
        parts = (self.read / self.readers, self.encode + self.finish, self.write, self.cpu / self.num_cores)
        return max(parts)


def run_here(job: Work, store: AreaStore, tick: Tick = lambda *_: None, *, readers: int = 2) -> Timing:
    """Do what remains, in this process: `readers` threads read ahead, one writes behind, this one computes.

    Raises:
        UnfinishedError: it cannot be written; what is done is kept.
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
    """That this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextmanager
def _quiet() -> Iterator[None]:
    """No warning that an array has no place: rasterio hushes its own as it warps, which threads undo for others."""
    from rasterio.errors import NotGeoreferencedWarning

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        yield


Ahead = Iterator[tuple[Span, "Future[tuple[Read, float]]"]]


def _reading(job: Work, plan: _Plan, pool: ThreadPoolExecutor, ahead: int) -> Iterator[tuple[Unit, Ahead]]:
    """Units whose first step is wanted, each with its blocks, of which the next ones are being read."""
    todo = ((unit, span) for unit in plan.first_units() if not job.is_made(unit) for span in job.blocks(unit))
    queue: deque[tuple[Unit, Span, Future[tuple[Read, float]]]] = deque()

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


def _read(job: Work, unit: Unit, span: Span) -> tuple[Read, float]:
    start = time.perf_counter()
    return job.read(unit.period, span), time.perf_counter() - start


def _make(job: Work, unit: Unit, spans: Ahead, timing: Timing) -> None:
    """The first step of a unit, unless it is done already."""
    if job.is_made(unit):
        return
    parts = []
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
    """Do what remains on a Dask cluster whose workers see the same disk; work of workers that are lost is done anew.

    Weights travel as a file that each worker loads once. At most a few units per thread are under way.

    Args:
        client: a `distributed.Client`.
        job: the work.
        store: where it goes.
        tick: told of each step.

    Raises:
        UnfinishedError: it cannot be written; what is done is kept, and nothing is under way any more.
    """
    from distributed import as_completed, wait

    plan, timing, start = _Plan(job, store, tick), Timing(), time.perf_counter()
    weights, device, threads = _saved(job, store.partial), str(job.model.device), torch.get_num_threads()
    light: Any = replace(job, model=None)  # type: ignore[type-var]
    todo = iter(plan.first_units())
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
        # none of them writes into what another run may go on with by then
        wait(list(under_way))  # type: ignore[no-untyped-call]
        raise
    timing.wall = time.perf_counter() - start
    return timing


def _saved(job: Work, folder: Path) -> Path:
    """The model in a file that is named after its content: workers, which outlive a run, know it by its name."""
    path = folder / "weights.safetensors"
    job.save_model(path)
    name = hashlib.blake2b(path.read_bytes(), digest_size=8).hexdigest()
    return path.replace(path.with_stem(f"{path.stem}-{name}"))


_Model = tuple[Path, str, int]
"""File of a model, device and threads of its computing: as here, so that sums are the same."""


def _first_task(light: Any, model: _Model, _store: AreaStore, unit: Unit) -> None:
    if not light.is_made(unit):
        job = _with_model(light, *model)
        with keeping_ready():
            job.keep(unit, [job.encode(unit.period, span, job.read(unit.period, span)) for span in job.blocks(unit)])


def _last_task(light: Any, model: _Model, store: AreaStore, unit: Unit) -> None:
    if store.is_done(unit):
        return
    for other in light.needs(unit):  # made long ago, but perhaps on a disk that lost it
        _first_task(light, model, store, other)
    with keeping_ready():
        arrays, found = _with_model(light, *model).finish(unit)
    store.write(unit, arrays, found.to_dict())


def _with_model(light: Any, weights: Path, device: str, threads: int) -> Work:
    """The whole of what was sent."""
    if torch.get_num_threads() != threads:
        torch.set_num_threads(threads)
    return replace(light, model=_model(light.load_model, weights, device))


@lru_cache(maxsize=1)
def _model(loader: Callable[..., Any], weights: Path, device: str) -> Any:
    """Loaded once by each worker."""
    return loader(weights, device=device)
