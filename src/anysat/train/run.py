"""The folder of a run: its options and facts, its lock, and whether it can be resumed."""

from __future__ import annotations

import contextlib
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
import yaml

from anysat.data.kept_statistics import of_file
from anysat.data.work import to_json
from anysat.errors import (
    AnySatError,
    InputError,
    MissingFileError,
    RecordError,
    RunExistsError,
    SourceError,
    WriteError,
)
from anysat.geo.claims import LOCK, alone_in, make_folder
from anysat.geo.stores.fingerprints import differing
from anysat.whole_files import write_whole

CONFIG, FACTS, STATISTICS, DATA = "config.yaml", "facts.json", "statistics.json", "data.json"
BEGUN_WITH = "begun-with.json"
"""Digests of files that a run was started with."""
MAY_CHANGE = frozenset({
    "max_steps", "resume", "out", "devices", "num_nodes", "accelerator", "strategy", "accumulate", "num_workers",
    "threads", "save_every", "keep_last", "keep_best", "best_is_highest", "log_every", "loggers",
})  # fmt: skip
"""Options that may differ in another session of a run. `fit` ensures that the number of micro-batches is the same."""
_PACKAGES = ("anysat", "torch", "lightning", "numpy", "safetensors")


@dataclass(frozen=True, kw_only=True)
class RunFolder:
    """The folder of an open run, which no other process can open. Get one by `open_run`."""

    path: Path
    is_writer: bool = True
    """False in all but the first of several processes that train together: they write nothing."""
    began: tuple[float, float] = field(default_factory=lambda: (time.monotonic(), time.process_time()))
    """Wall-clock time and CPU time at which this session began."""

    @property
    def checkpoints(self) -> Path:
        """The folder of the checkpoints."""
        return self.path / "checkpoints"

    def seconds(self, **parts: float) -> dict[str, float]:
        """Return the seconds of parts of the run, or, of a resumed run, those of all sessions together.

        `untimed` is the number of sessions whose seconds are not known, because they were killed.
        """
        if self.is_writer:
            _note_time(self.path / FACTS, *self.began)
            found = spent(self.path)
            if found["sessions"] > 1:
                counts = {name: found[name] for name in ("sessions", "untimed") if found[name]}
                return {"all": found["wall_s"], **counts}
        return {name: round(seconds, 1) for name, seconds in parts.items()}


_PATIENCE_S = 3600.0


def wait_for(path: Path) -> None:
    """Wait until the first process has made a file that all processes need, for at most an hour."""
    until = time.monotonic() + _PATIENCE_S
    while not path.is_file() and time.monotonic() < until:
        time.sleep(0.2)


@contextmanager
def open_run(
    path: Path, *, config: Mapping[str, Any], seed: int, resume: bool = False, may_change: Collection[str] = (),
    data: Mapping[str, Any] | None = None, caches: Collection[str] = (), processes: int = 1,
) -> Iterator[RunFolder]:  # fmt: skip
    """Create a run folder, or open an existing one to resume. Writes everything except checkpoints and metrics.

    If a new run fails before it has produced anything, its folder is cleared, so that it can be started differently.

    Args:
        config: All options of the run, as plain values.
        resume: Continue an existing run. If there is none, start a new one.
        may_change: Names of options, at any place in `config`, that may differ in addition to `MAY_CHANGE`.
        data: Which tiles are used for what, from `tiles_facts`.
        caches: Names of subfolders whose files identify themselves, so that any run may use them.
        processes: Number of processes that train together, from `num_processes`. A single process always writes,
            whatever rank a launcher has given it.

    Raises:
        RunExistsError: There is a run, and `resume` is False.
        InputError: Another process is using the folder, it holds other files, or its run was started with other tiles.
        RecordError: The run was started with other options.
        WriteError: The folder cannot be written.
    """
    if processes > 1 and not _is_first_process():
        yield RunFolder(path=path, is_writer=False)
        return
    with alone_in(path):
        plain = json.loads(json.dumps(config))
        begun = (path / CONFIG).exists()
        if not begun and any(c.name not in (LOCK, *caches) and not c.name.endswith(".tmp") for c in path.iterdir()):
            raise InputError(str(path), "an empty folder or a run", "other files", "give another --out")
        if begun and not resume:
            raise RunExistsError(path)
        if begun:
            check_same(str(path / CONFIG), _begun_with(path / CONFIG), plain, MAY_CHANGE | set(may_change))
            _check_data(path, data or {})
        try:
            keep_config(path, plain)  # first, because it marks the folder as a run
            _write_facts(path / FACTS, seed)
            if data and not (path / DATA).is_file():
                write_whole(path / DATA, to_json(data))
            make_folder(path / "checkpoints")
        except OSError as error:
            raise WriteError(path, error) from error
        run = RunFolder(path=path)
        try:
            yield run
        except AnySatError as error:
            has_computed = (path / STATISTICS).exists()  # slow to compute, and still valid
            after = (WriteError, SourceError, MissingFileError) if has_computed else WriteError
            if not begun and not isinstance(error, after):  # those can be fixed and resumed
                _take_away(path, caches)
            raise
        finally:
            _note_time(path / FACTS, *run.began)


def _take_away(path: Path, caches: Collection[str]) -> None:
    """Remove the files that make a folder a run, if it holds nothing else: nothing was trained or computed yet."""
    # options last, because they mark a run
    written = (STATISTICS, of_file(Path(STATISTICS)).name, BEGUN_WITH, DATA, FACTS, CONFIG)
    found = {one.name for one in path.iterdir()}
    if found - {LOCK, "checkpoints", *written, *caches} or any((path / "checkpoints").iterdir()):
        return
    with contextlib.suppress(OSError):
        (path / "checkpoints").rmdir()
        for name in written:
            (path / name).unlink(missing_ok=True)


def keep_config(path: Path, config: Mapping[str, Any]) -> None:
    """Write the options of a run into its folder."""
    plain = json.loads(json.dumps(config))
    write_whole(path / CONFIG, yaml.safe_dump(plain, sort_keys=False, allow_unicode=True).encode())


def check_same(
    where: str, begun: Mapping[str, Any], given: Mapping[str, Any], may_change: Collection[str] = ()
) -> None:
    """Check that options are those that a run was started with, except for some.

    Args:
        where: What the options belong to, for messages.

    Raises:
        RecordError: Options differ. The message names each.
    """
    if found := differing(begun, given, may_change):
        was, now = (", ".join(map(str, values)) for values in zip(*found.values(), strict=True))
        where = f"{where}, {', '.join(found)}"
        raise RecordError(where, now, f"{was}, as in the existing run (or give another --out)")


def _begun_with(path: Path) -> Mapping[str, Any]:
    """Read the options that a run was started with."""
    try:
        begun = yaml.safe_load(path.read_text("utf-8"))
    except yaml.YAMLError as error:
        raise InputError(str(path), "the options of the run", f"no valid YAML ({error})") from error
    return begun if isinstance(begun, Mapping) else {}


def _check_data(path: Path, data: Mapping[str, Any]) -> None:
    """Check that the tiles are those of the run: their order determines what is drawn and held out."""
    begun = json.loads((path / DATA).read_text("utf-8")) if data and (path / DATA).is_file() else {}
    for what in dict.fromkeys((*begun, *data)) if begun else ():
        old, new = begun.get(what), data.get(what)
        if old != new:
            raise InputError(
                f"{path}, {what}",
                f"{_counted(old, 'the', 'tiles')} that the run was started with, with the same names, splits and order",
                _counted(new, "", "others"), "restore the data, or start another run with another --out",
            )  # fmt: skip


def _counted(facts: Mapping[str, Any] | None, before: str, after: str) -> str:
    return "none" if facts is None else f"{before} {facts['tiles']} {after}".strip()


def _is_first_process() -> bool:
    """Whether this is the first of the processes that train together, however they were started."""
    from lightning.fabric.utilities.rank_zero import rank_zero_only

    return int(getattr(rank_zero_only, "rank", 0) or 0) == 0 and int(os.environ.get("NODE_RANK", 0)) == 0


def _write_facts(path: Path, seed: int) -> None:
    """Add the facts of this session to those of earlier ones."""
    sessions = []
    with contextlib.suppress(OSError, ValueError):
        sessions = json.loads(path.read_text("utf-8"))["sessions"]
    session = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": sys.argv,
        "seed": seed,
        "versions": {name: _version(name) for name in _PACKAGES} | {"python": platform.python_version()},
        "devices": _devices(),
        "git": _git_state(),
    }
    write_whole(path, to_json({"sessions": [*sessions, session]}))


def _note_time(path: Path, began_s: float, began_cpu_s: float) -> None:
    """Record how long this session took. Nothing is recorded if it is killed or the disk is full."""
    with contextlib.suppress(OSError, ValueError):
        *earlier, session = json.loads(path.read_text("utf-8"))["sessions"]
        session["wall_s"] = round(time.monotonic() - began_s, 1)
        session["cpu_s"] = round(time.process_time() - began_cpu_s, 1)
        session["threads"] = torch.get_num_threads()
        write_whole(path, to_json({"sessions": [*earlier, session]}))


def spent(run: Path) -> dict[str, Any]:
    """Return what all sessions of a run took together: wall-clock seconds, CPU seconds, and threads.

    Only the first process counts, without its workers. `untimed` is the number of sessions without times, which were
    killed.
    """
    sessions = json.loads((run / FACTS).read_text("utf-8"))["sessions"]
    told = [session for session in sessions if "wall_s" in session]
    return {
        "wall_s": round(sum(session["wall_s"] for session in told)),
        "cpu_s": round(sum(session["cpu_s"] for session in told)),
        "threads": max((session["threads"] for session in told), default=None),
        "sessions": len(sessions),
        "untimed": len(sessions) - len(told),
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _devices() -> list[str]:
    gpus = [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())]
    return gpus or [platform.processor() or platform.machine()]


def _git_state() -> dict[str, Any] | None:
    """Return the commit of the working directory, or else of the package, if it is a git checkout."""
    for folder in (Path.cwd(), Path(__file__).parent):
        commit = _git(folder, "rev-parse", "HEAD")
        if commit:
            return {"commit": commit.strip(), "has_changes": bool(_git(folder, "status", "--porcelain"))}
    return None


def _git(folder: Path, *words: str) -> str | None:
    try:
        done = subprocess.run(["git", *words], cwd=folder, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout if done.returncode == 0 else None
