"""Progress of long work on stderr: a bar on a terminal, otherwise a line now and then."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from time import monotonic
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from anysat.areas.run import Tick
    from anysat.data.work import Advance


EVERY_S = 30.0
"""Seconds between two lines in a log."""


@contextmanager
def progress_bar(what: str, total: int) -> Iterator[Advance]:
    """Show a bar with the number of tiles done, elapsed time and time left. Yields a function to call with a count.

    If stderr is not a terminal, there is a line at the start and, for longer work, one every half minute.
    """
    with tick_bar(what, total, transient=False) as tick:
        yield counted(tick, total)


@contextmanager
def tick_bar(what: str, total: int | None = None, *, transient: bool = True) -> Iterator[Tick]:
    """Show a bar, which disappears when done. Yields a function to call with the number done and the total.

    If stderr is not a terminal, there is a line at the start, if the total is known, and one every half minute.
    """
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    console = Console(stderr=True)
    if not console.is_terminal:
        if total is not None:
            say(f"{what}: {total} to do")
        yield _lines(what)
        return
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
               TextColumn("left"), TimeRemainingColumn())  # fmt: skip
    with Progress(*columns, console=console, transient=transient) as bars:
        bar = bars.add_task(what, total=total)
        yield lambda done, total: bars.update(bar, completed=done, total=total)


def counted(tick: Tick, total: int) -> Advance:
    """Return a function to call with the number of items just done, which `tick` is told as a sum."""
    done = 0

    def advance(count: int) -> None:
        nonlocal done
        done += count
        tick(done, total)

    return advance


def _lines(what: str) -> Tick:
    """Return a function that prints how much is done, unless the last line is too recent."""
    told_s = monotonic()

    def tick(done: int, total: int) -> None:
        nonlocal told_s
        now_s = monotonic()
        if now_s - told_s >= EVERY_S:
            told_s = now_s
            say(f"{what}: {done} of {total}")

    return tick


def say(line: str) -> None:
    """Print a line on stderr."""
    sys.stderr.write(f"{line}\n")
    sys.stderr.flush()
