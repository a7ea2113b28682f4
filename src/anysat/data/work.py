"""Work in independent units, shared among processes and resumed after an interruption.

The result may depend only on the units, not on which process does them or when. Each unit writes its own whole file.
"""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from multiprocessing.connection import wait
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

import anysat
from anysat.data.layout import FIELD, DatasetFolder, Layout
from anysat.errors import AnySatError, OtherWorkError, UnfinishedError
from anysat.geo.claims import LOCK, make_folder
from anysat.whole_files import sha256_of, stamps, write_whole

if TYPE_CHECKING:
    from anysat.data.base import TileDataset

Advance = Callable[[int], object]
"""Called with the number of tiles done since the last call."""
Job = Callable[[int, Advance], object]
"""Does the unit of a number; must be picklable."""
PLAN = "plan.json"
_WORDS = ("source", "about", "sensor")
"""Fields of a record that do not affect what is read."""
_WATCH_SECONDS = 0.2


def fingerprint(dataset: TileDataset, **options: Any) -> str:
    """Return a short text that identifies the dataset, split, table of samples, modalities and record.

    It does not depend on colours, the place of the files, or their content; see `place_facts` and `TileFiles`.
    """
    record, layout = dataset.record, dataset.folder.layout
    facts = {
        "dataset": dataset.name,
        "layout": layout.name,
        "entries": [_plain(entry) for entry in layout.entries],
        "targets": [_plain(replace(target, colours=())) for target in record.targets],
        "split": dataset.split,
        "modalities": list(dataset.modalities),
        "samples": {name: _column_digest(column) for name, column in dataset.samples.columns.items()},
        **options,
    }
    if record.sensors:
        facts["sensors"] = {key: _plain(sensor) for key, sensor in record.sensors.items()}
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]


def tiles_facts(dataset: TileDataset, *, by_class: bool = False) -> dict[str, Any]:
    """Return the number of tiles, and a checksum of their names, splits and order, wherever they are stored.

    With `by_class`, the checksum also covers the classes.
    """
    told: list[Any] = [dataset.samples.columns[name].astype(str).tolist() for name in ("id", "split")]
    told += [dataset.labels().tolist()] if by_class else []
    return {"tiles": len(dataset), "sha256": hashlib.sha256(json.dumps(told).encode()).hexdigest()}


def _plain(record: Any) -> dict[str, Any]:
    return {name: fact for name, fact in asdict(record).items() if name not in _WORDS}


def _column_digest(column: NDArray[Any]) -> str:
    column = column.astype(str) if column.dtype.kind == "O" else np.ascontiguousarray(column)
    return hashlib.sha256(f"{column.dtype.str} {column.shape}".encode() + column.tobytes()).hexdigest()


def place_facts(dataset: TileDataset) -> dict[str, Any]:
    """Return what resumed work must share besides the fingerprint, without effect on the result: where it reads."""
    facts: dict[str, Any] = {"source": str(dataset.folder.root.resolve()), "targets_read": dataset.targets}
    description = Path(dataset.record.found_as)
    if description.suffix in (".yaml", ".yml") and description.is_file():
        facts["description_sha256"] = sha256_of(description)
    return facts


class TileFiles:
    """The files that tiles are read from, by the layout's paths, and whether they have changed.

    If only some fields of a path are columns of the samples, the path belongs to every tile that matches those.
    """

    def __init__(self, dataset: TileDataset) -> None:
        self.samples, self.root = dataset.samples, dataset.folder.root
        self._patterns: list[tuple[str, tuple[str, ...], dict[tuple[str, ...], list[Path]] | None]] = []
        seen: set[str] = set()
        for entry in dataset.folder.layout.entries:
            for pattern in (entry.path, *entry.also):
                if pattern not in seen:
                    seen.add(pattern)
                    only = Layout(name="one", marker="", entries=(replace(entry, path=pattern, also=()),))
                    self._add(pattern, DatasetFolder(self.root, only), entry.name)

    def _add(self, pattern: str, folder: DatasetFolder, name: str) -> None:
        fields = tuple(dict.fromkeys(FIELD.findall(pattern)))
        known = tuple(field for field in fields if field in self.samples.columns)
        rows = range(len(self.samples))
        if known == fields:
            if any((self.root / pattern.format(**self.samples.row(index))).exists() for index in rows):
                self._patterns.append((pattern, known, None))
                return
            known = ()  # the columns do not match the fields: any of these files may be read
        found: dict[tuple[str, ...], list[Path]] = {}
        for values in folder.find(name):
            key = tuple(values[field] for field in known)
            found.setdefault(key, []).append(self.root / pattern.format(**values))
        if known and not any(self._key(known, self.samples.row(index)) in found for index in rows):
            known, found = (), {(): [path for paths in found.values() for path in paths]}
        self._patterns.append((pattern, known, found))

    def _key(self, known: Sequence[str], row: Mapping[str, Any]) -> tuple[str, ...]:
        return tuple(str(row[field]) for field in known)

    def digest(self, indices: Iterable[int]) -> str:
        """Return a checksum that changes when a file of these tiles appears, disappears, or changes in size or time."""
        paths: set[Path] = set()
        numbers = [int(index) for index in indices]
        for index in numbers:
            row = self.samples.row(index)
            for pattern, known, found in self._patterns:
                if found is None:
                    paths.add(self.root / pattern.format(**row))
                else:
                    paths.update(found.get(self._key(known, row), ()))
        told = [(str(file.relative_to(self.root)), *facts) for path in sorted(paths) for file, *facts in stamps(path)]
        return hashlib.sha256(json.dumps([numbers, told]).encode()).hexdigest()


def versions() -> dict[str, str]:
    """Return the versions that results may depend on."""
    return {"anysat": anysat.__version__, "numpy": np.__version__}


def to_json(content: Any) -> bytes:
    """Return JSON as the package writes it: equal content gives equal bytes."""
    return (json.dumps(content, indent=1, ensure_ascii=False) + "\n").encode()


def begin(folder: Path, plan: Mapping[str, Any]) -> None:
    """Open the folder of unfinished work; start over if nothing was done in it.

    Raises:
        OtherWorkError: The folder holds other files, or unfinished work of something else.
    """
    path = folder / PLAN
    make_folder(folder)
    known = (LOCK, PLAN)
    is_empty = all(child.name in known or child.name.endswith(".tmp") for child in folder.iterdir())
    if not path.exists() and not is_empty:
        raise OtherWorkError(str(folder), "an empty folder or unfinished work", "other files", "give another --out")
    if is_empty:  # nothing was done for an earlier plan
        write_whole(path, to_json(plan))
    compare(folder, json.loads(path.read_text("utf-8")), plan)


def compare(folder: Path, found: Mapping[str, Any], plan: Mapping[str, Any]) -> None:
    """Refuse to continue work that was begun with another plan.

    Raises:
        OtherWorkError: A fact of the plan differs from what was found.
    """
    differing = [key for key, fact in json.loads(to_json(plan)).items() if found.get(key) != fact]
    if differing:
        raise OtherWorkError(
            f"unfinished work in {folder}", f"the same work ({_shown(plan, differing)})",
            f"other work ({_shown(found, differing)})", "remove that folder, or give another --out",
        )  # fmt: skip


def _shown(plan: Mapping[str, Any], keys: Sequence[str]) -> str:
    return ", ".join(f"{key} {plan.get(key)!r}" for key in keys)


def work_through(job: Job, units: Sequence[int], *, workers: int, advance: Advance, kept_in: Path) -> None:
    """Do every unit, in this process if `workers` is at most 1, or in so many processes.

    Args:
        job: Does one unit.
        units: Numbers of the units still to be done.
        workers: Number of processes.
        advance: Called with progress, in this process.
        kept_in: Where finished units are, for messages.

    Raises:
        UnfinishedError: The disk is full, or a process was killed or failed. Finished units are kept.
        AnySatError: An error of a unit.
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
        ended = [process for process in running if process.exitcode is not None]  # before reading what they left
        count = int(done.value)
        advance(count - shown)
        shown = count
        if not errors.empty():
            error = errors.get()
            if isinstance(error, str):
                raise UnfinishedError(kept_in, f"a worker process ended with {error}")
            raise _unfinished(kept_in, error) if isinstance(error, OSError) else error
        for process in ended:
            running.remove(process)
            if process.exitcode:
                raise UnfinishedError(kept_in, f"a worker process {_ending(process.exitcode)}")
    advance(int(done.value) - shown)


def _ending(status: int) -> str:
    return f"ended with status {status}" if status > 0 else f"was ended by signal {-status}: out of memory?"


def _unfinished(kept_in: Path, error: OSError) -> Exception:
    return error if isinstance(error, AnySatError) else UnfinishedError(kept_in, error)


def _work(job: Job, units: Sequence[int], taken: Any, done: Any, errors: Any) -> None:
    """Run a worker process: do the next unit until none is left, and end when the parent does."""
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
        except Exception as error:  # may not be picklable; the process prints its traceback
            errors.put(f"{type(error).__name__}: {error}")
            raise


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
