"""Work in units that are finished one by one: spread over processes, and taken up again where it was interrupted.

What comes out may only depend on the units, never on who did them or when: each unit writes its own file, whole.
"""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Mapping, Sequence
from multiprocessing.connection import wait
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

import anysat
from anysat.errors import AnySatError, InputError, UnfinishedError

if TYPE_CHECKING:
    from anysat.data.base import TileDataset
    from anysat.data.pack import PackedDataset

    AnyDataset = TileDataset | PackedDataset

Advance = Callable[[int], object]
"""Told how many tiles have been done."""
Job = Callable[[int, Advance], object]
"""Does one unit, by number; must travel to another process."""
PLAN = "plan.json"
_WATCH_SECONDS = 0.2


def fingerprint(dataset: AnyDataset, **options: Any) -> str:
    """A short text that is another for another dataset, split, layout, list of tiles or set of modalities."""
    facts = {
        "dataset": dataset.name,
        "layout": dataset.folder.layout.name,
        "split": dataset.split,
        "modalities": list(dataset.modalities),
        "ids": dataset.ids,
        **options,
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]


def versions() -> dict[str, str]:
    """Versions that results may depend on."""
    return {"anysat": anysat.__version__, "numpy": np.__version__}


def write_whole(path: Path, content: bytes) -> None:
    """Write a file that appears whole or not at all."""
    partial = path.with_name(f".{path.name}.tmp")
    try:
        with partial.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except OSError:
        partial.unlink(missing_ok=True)
        raise


def to_json(content: Any) -> bytes:
    """JSON as the package writes it: the same bytes for the same content."""
    return (json.dumps(content, indent=1, ensure_ascii=False) + "\n").encode()


def begin(folder: Path, plan: Mapping[str, Any]) -> None:
    """Open the folder of unfinished work, or find it as it was left.

    Raises:
        InputError: what lies there is the beginning of something else.
    """
    path = folder / PLAN
    if not folder.exists():
        folder.mkdir(parents=True)
    if not path.exists() and any(child for child in folder.iterdir() if not child.name.endswith(".tmp")):
        raise InputError(str(folder), "an empty folder or unfinished work", "other files", "give another --out")
    if not path.exists():
        write_whole(path, to_json(plan))
    compare(folder, json.loads(path.read_text("utf-8")), plan)


def compare(folder: Path, found: Mapping[str, Any], plan: Mapping[str, Any]) -> None:
    """Refuse to go on with work that was begun by another plan.

    Raises:
        InputError: a fact of the plan differs from what was found.
    """
    differing = [key for key, fact in json.loads(to_json(plan)).items() if found.get(key) != fact]
    if differing:
        raise InputError(
            f"unfinished work in {folder}", f"the beginning of this ({_shown(plan, differing)})",
            f"that of something else ({_shown(found, differing)})", "remove that folder, or give another --out",
        )  # fmt: skip


def _shown(plan: Mapping[str, Any], keys: Sequence[str]) -> str:
    return ", ".join(f"{key} {plan.get(key)!r}" for key in keys)


def work_through(job: Job, units: Sequence[int], *, workers: int, advance: Advance, kept_in: Path) -> None:
    """Do every unit, here (`workers` up to 1) or in so many processes.

    Args:
        job: does one unit.
        units: numbers of the units that are still to be done.
        workers: processes at a time.
        advance: told of progress, from this process.
        kept_in: where finished units lie, for messages.

    Raises:
        UnfinishedError: the disk is full, or a process was killed; what was finished is kept.
        AnySatError: whatever a unit raises.
    """
    if workers <= 1 or len(units) < 2:
        for unit in units:
            try:
                job(unit, advance)
            except OSError as error:
                raise _unfinished(kept_in, error) from error
        return
    methods = multiprocessing.get_all_start_methods()
    context: Any = multiprocessing.get_context("forkserver" if "forkserver" in methods else "spawn")
    context.set_forkserver_preload(["anysat.data.pack.write", "anysat.data.statistics"])
    taken, done, errors = context.Value("q", 0), context.Value("q", 0), context.SimpleQueue()
    processes = [
        context.Process(target=_work, args=(job, list(units), taken, done, errors), daemon=True)
        for _ in range(min(workers, len(units)))
    ]
    try:
        for process in processes:
            process.start()
        _watch(processes, done, errors, advance, kept_in)
    finally:
        for process in processes:
            if process.pid is not None:
                process.terminate()
                process.join()


def _watch(processes: Sequence[Any], done: Any, errors: Any, advance: Advance, kept_in: Path) -> None:
    shown, running = 0, list(processes)
    while running:
        wait([process.sentinel for process in running], timeout=_WATCH_SECONDS)
        count = int(done.value)
        advance(count - shown)
        shown = count
        if not errors.empty():
            error = errors.get()
            raise _unfinished(kept_in, error) if isinstance(error, OSError) else error
        failed = [process.exitcode for process in running if process.exitcode]
        if failed:
            raise UnfinishedError(kept_in, f"a worker process ended with status {failed[0]}: out of memory?")
        running = [process for process in running if process.exitcode is None]
    advance(int(done.value) - shown)


def _unfinished(kept_in: Path, error: OSError) -> Exception:
    return error if isinstance(error, AnySatError) else UnfinishedError(kept_in, error)


def _work(job: Job, units: Sequence[int], taken: Any, done: Any, errors: Any) -> None:
    """What a worker process does: take the next unit until there is none, and end when its parent does."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()

    def advance(count: int) -> None:
        with done.get_lock():
            done.value += count

    while True:
        with taken.get_lock():
            place = int(taken.value)
            taken.value += 1
        if place >= len(units):
            return
        try:
            job(units[place], advance)
        except (AnySatError, OSError) as error:
            errors.put(error)
            return


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
