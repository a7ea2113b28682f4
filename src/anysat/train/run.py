"""The folder of a run: what it was made with, who is at work in it, and whether it may be gone on with."""

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
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import yaml

from anysat.data.work import LOCK, alone_in, make_folder, to_json, write_whole
from anysat.errors import (
    AnySatError,
    InputError,
    MissingFileError,
    RecordError,
    RunExistsError,
    SourceError,
    WriteError,
)
from anysat.normalise import Normaliser

CONFIG, FACTS, STATISTICS, DATA = "config.yaml", "facts.json", "statistics.json", "data.json"
BEGUN_WITH = "begun-with.json"
"""Digests of files that a run was begun with."""
MAY_CHANGE = frozenset({
    "max_steps", "resume", "out", "devices", "num_nodes", "accelerator", "strategy", "accumulate", "num_workers",
    "threads", "save_every", "keep_last", "keep_best", "best_is_highest", "log_every", "loggers",
})  # fmt: skip
"""Options that another session of a run may have otherwise; `fit` sees to it that the micro-batches stay as many."""
_PACKAGES = ("anysat", "torch", "lightning", "numpy", "safetensors")


@dataclass(frozen=True, kw_only=True)
class RunFolder:
    """An open run, which no other process can open."""

    path: Path
    is_writer: bool = True
    """False in processes other than the first of several that train together; they write nothing."""

    @property
    def checkpoints(self) -> Path:
        """Where checkpoints lie."""
        return self.path / "checkpoints"


_PATIENCE_S = 3600.0


def wait_for(path: Path) -> None:
    """Until the first process has made a file that all need, an hour at most; for the others."""
    until = time.monotonic() + _PATIENCE_S
    while not path.is_file() and time.monotonic() < until:
        time.sleep(0.2)


@contextmanager
def open_run(
    path: Path, *, config: Mapping[str, Any], seed: int, resume: bool = False,
    normaliser: Normaliser | None = None, may_change: Collection[str] = (), defaults: Mapping[str, Any] | None = None,
    data: Mapping[str, Any] | None = None, caches: Collection[str] = (), processes: int = 1,
) -> Iterator[RunFolder]:  # fmt: skip
    """Make a run folder, or open it to go on; what a run consists of besides checkpoints and metrics is written here.

    A run that is begun here and refused before it has made anything leaves none, so that it can be begun otherwise.

    Args:
        path: the folder.
        config: everything the run was asked for, as plain values.
        seed: of the run.
        resume: go on with what is there; where nothing is, begin.
        normaliser: statistics of the data.
        may_change: names of options, wherever they stand in `config`, that may differ besides `MAY_CHANGE`.
        defaults: options as they are where nothing is asked for; a run of an earlier version lacks newer ones.
        data: which tiles are used for what, as `tiles_facts` tells; a run of an earlier version has none.
        caches: names of folders in it whose files tell by themselves what they are of, so that any run may find them.
        processes: how many train together, as `num_processes` tells; one that is alone writes, whatever number a
            launcher of other work has given it.

    Raises:
        RunExistsError: there is a run, and `resume` is False.
        InputError: another process is at work there; it holds something else; it was begun with other tiles.
        RecordError: the run was begun with other options.
        WriteError: it cannot be written.
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
            _check_same(path / CONFIG, plain, MAY_CHANGE | set(may_change), json.loads(json.dumps(defaults or {})))
            _check_data(path, data or {})
        try:
            keep_config(path, plain)  # first, for by it a folder is known as a run
            _write_facts(path / FACTS, seed)
            if data and not (path / DATA).is_file():
                write_whole(path / DATA, to_json(data))
            if normaliser is not None:
                write_whole(path / STATISTICS, to_json(normaliser.to_dict()))
            make_folder(path / "checkpoints")
        except OSError as error:
            raise WriteError(path, error) from error
        began = time.monotonic(), time.process_time()
        try:
            yield RunFolder(path=path)
        except AnySatError as error:
            has_computed = normaliser is None and (path / STATISTICS).exists()  # which took long, and is true still
            after = (WriteError, SourceError, MissingFileError) if has_computed else WriteError
            if not begun and not isinstance(error, after):  # a full disk, a file: mended, and gone on after
                _take_away(path, caches)
            raise
        finally:
            _note_time(path / FACTS, *began)


def _take_away(path: Path, caches: Collection[str]) -> None:
    """What makes a folder a run, where there is no more than that in it: nothing trained, nor begun to be computed."""
    written = (STATISTICS, BEGUN_WITH, DATA, FACTS, CONFIG)  # the options last, for by them it is known as a run
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
    where: str, begun: Mapping[str, Any], given: Mapping[str, Any], may_change: Collection[str],
    defaults: Mapping[str, Any] | None = None,
) -> None:  # fmt: skip
    """Refuse options that differ from those a run was begun with, but for some.

    What the run did not know is as in `defaults`, which must be what it did.

    Raises:
        RecordError: naming each that differs.
    """
    old, new = _flat(begun), _flat(given)
    old = {**{name: value for name, value in _flat(defaults or {}).items() if name not in old and name in new}, **old}
    differing = [
        name for name in dict.fromkeys((*old, *new))
        if old.get(name) != new.get(name) and not set(name.split(".")) & set(may_change)
    ]  # fmt: skip
    if differing:
        raise RecordError(
            f"{where}, {', '.join(differing)}", ", ".join(str(new.get(name)) for name in differing),
            f"{', '.join(str(old.get(name)) for name in differing)}, as the run was begun (or another --out)",
        )  # fmt: skip


def _check_same(
    path: Path, config: Mapping[str, Any], may_change: Collection[str], defaults: Mapping[str, Any]
) -> None:
    try:
        begun = yaml.safe_load(path.read_text("utf-8"))
    except yaml.YAMLError as error:
        raise InputError(str(path), "the options of the run", f"no valid YAML ({error})") from error
    check_same(str(path), begun if isinstance(begun, Mapping) else {}, config, may_change, defaults)


def _check_data(path: Path, data: Mapping[str, Any]) -> None:
    """What is drawn, and what is held out, follows from which tiles there are, in their order."""
    begun = json.loads((path / DATA).read_text("utf-8")) if data and (path / DATA).is_file() else {}
    for what in dict.fromkeys((*begun, *data)) if begun else ():
        old, new = begun.get(what), data.get(what)
        if old != new:
            raise InputError(
                f"{path}, {what}",
                f"{_counted(old, 'the', 'tiles')} the run was begun with, of the same names, splits and order",
                _counted(new, "", "others"), "put the data back as they were, or begin another run with another --out",
            )  # fmt: skip


def _counted(facts: Mapping[str, Any] | None, before: str, after: str) -> str:
    return "none" if facts is None else f"{before} {facts['tiles']} {after}".strip()


def _flat(config: Any, prefix: str = "") -> dict[str, Any]:
    """Values by their dotted names; of a list of tables each table is named by its number."""
    if isinstance(config, list) and config and all(isinstance(part, Mapping) for part in config):
        config = dict(enumerate(config))
    if not isinstance(config, Mapping):
        return {prefix: config}
    return {
        name: value
        for key, part in config.items()
        for name, value in _flat(part, f"{prefix}.{key}" if prefix else str(key)).items()
    }


def _is_first_process() -> bool:
    """Of those that train together, however they were started."""
    from lightning.fabric.utilities.rank_zero import rank_zero_only

    return int(getattr(rank_zero_only, "rank", 0) or 0) == 0 and int(os.environ.get("NODE_RANK", 0)) == 0


def _write_facts(path: Path, seed: int) -> None:
    """Note this session; earlier ones stay."""
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
    """Note how long this session took; one that is killed, or whose disk is full, tells nothing."""
    import torch

    with contextlib.suppress(OSError, ValueError):
        *earlier, session = json.loads(path.read_text("utf-8"))["sessions"]
        session["wall_s"] = round(time.monotonic() - began_s, 1)
        session["cpu_s"] = round(time.process_time() - began_cpu_s, 1)
        session["threads"] = torch.get_num_threads()
        write_whole(path, to_json({"sessions": [*earlier, session]}))


def spent(run: Path) -> dict[str, Any]:
    """What the sessions of a run took together: seconds by the clock and of the processor, and threads.

    Of the first process alone, without its workers. A session that was killed told nothing; `untimed` counts those.
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
    import torch

    gpus = [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())]
    return gpus or [platform.processor() or platform.machine()]


def _git_state() -> dict[str, Any] | None:
    """Commit of the working directory, else of the package, where that is a git checkout."""
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
