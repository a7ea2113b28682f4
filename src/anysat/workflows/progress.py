"""How far long work is, on stderr: a bar where there is a terminal, else a line now and then."""

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


class Lines:
    """Lines of a log that tell how much of some work is done, not more often than every half minute."""

    def __init__(self, what: str) -> None:
        self._what, self._told_s = what, monotonic()

    def tell(self, done: int, total: int) -> None:
        """So many are done, of so many."""
        now_s = monotonic()
        if now_s - self._told_s >= EVERY_S:
            self._told_s = now_s
            self.say(f"{done} of {total}")

    def say(self, words: str) -> None:
        """A line at once."""
        sys.stderr.write(f"{self._what}: {words}\n")
        sys.stderr.flush()


@contextmanager
def progress_bar(what: str, total: int) -> Iterator[Advance]:
    """A bar with the number of tiles done, the time gone by and the time left; call what it gives with a count.

    Where stderr is no terminal it is a line at the beginning and, of what takes longer, one every half minute.
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
        yield _counted(what, total)
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
               TextColumn("left"), TimeRemainingColumn())  # fmt: skip
    with Progress(*columns, console=console) as progress:
        task = progress.add_task(what, total=total)
        yield lambda count: progress.advance(task, count)


@contextmanager
def tick_bar(what: str) -> Iterator[Tick]:
    """A bar, gone when done; call what it gives with how many are done and how many there are.

    Where stderr is no terminal it is a line every half minute.
    """
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    console = Console(stderr=True)
    if not console.is_terminal:
        yield Lines(what).tell
        return
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), TextColumn("{task.completed}/{task.total}"),
               TimeElapsedColumn(), TimeRemainingColumn())  # fmt: skip
    with Progress(*columns, console=console, transient=True) as bars:
        bar = bars.add_task(what, total=None)
        yield lambda done, total: bars.update(bar, completed=done, total=total)


def _counted(what: str, total: int) -> Advance:
    """The lines of work in a log, told how much more is done."""
    lines, done = Lines(what), 0
    lines.say(f"{total} to do")

    def advance(count: int) -> None:
        nonlocal done
        done += count
        lines.tell(done, total)

    return advance
