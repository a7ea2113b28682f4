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


class Lines:
    """Lines in a log that show how much work is done, at most one every half minute."""

    def __init__(self, what: str) -> None:
        self._what, self._told_s = what, monotonic()

    def tell(self, done: int, total: int) -> None:
        """Print a line, unless the last one is too recent."""
        now_s = monotonic()
        if now_s - self._told_s >= EVERY_S:
            self._told_s = now_s
            self.say(f"{done} of {total}")

    def say(self, words: str) -> None:
        """Print a line at once."""
        sys.stderr.write(f"{self._what}: {words}\n")
        sys.stderr.flush()


@contextmanager
def progress_bar(what: str, total: int) -> Iterator[Advance]:
    """Show a bar with the number of tiles done, elapsed time and time left. Yields a function to call with a count.

    If stderr is not a terminal, there is a line at the start and, for longer work, one every half minute.
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
    """Show a bar that disappears when done. Yields a function to call with the number done and the total.

    If stderr is not a terminal, there is a line every half minute.
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
    """Print the lines of work in a log. Returns a function to call with the number of items just done."""
    lines, done = Lines(what), 0
    lines.say(f"{total} to do")

    def advance(count: int) -> None:
        nonlocal done
        done += count
        lines.tell(done, total)

    return advance
