"""The progress of a training on stderr: a bar on a terminal, otherwise a line whenever metrics are logged."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from datetime import timedelta

_SHOWN = ("tiles_per_s", "wait_frac")


class TrainingProgress:
    """A bar over the steps of a session, with loss terms, speed, share of time spent waiting for data, time left."""

    def __init__(self, start: int, stop: int, *, shown: bool) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

        console = Console(stderr=True)
        self._start, self._stop, self._begun = start, stop, time.monotonic()
        self._lines = shown and not console.is_terminal
        columns = (BarColumn(bar_width=20), MofNCompleteColumn(), TextColumn("{task.fields[figures]}"))
        self._bar = Progress(*columns, console=console, disable=not shown or not console.is_terminal)
        self._task = self._bar.add_task("steps", total=stop, completed=start, figures="")
        self._bar.start()

    def advance(self, step: int) -> None:
        """Show that `step` steps are done."""
        self._bar.update(self._task, completed=step)

    def tell(self, step: int, metrics: Mapping[str, float]) -> None:
        """Show metrics."""
        parts = {name.removeprefix("train/"): value for name, value in metrics.items() if name.count("/") == 1}
        figures = "  ".join(f"{name} {value:.4g}" for name, value in parts.items())
        if set(_SHOWN) <= metrics.keys():
            figures += f"  {metrics['tiles_per_s']:.3g} tiles/s  waiting {metrics['wait_frac']:.0%}"
        done_s = time.monotonic() - self._begun
        left_s = done_s / max(1, step - self._start) * (self._stop - step)
        figures += f"  left {timedelta(seconds=round(left_s))}" if step > self._start else ""
        self._bar.update(self._task, figures=figures)
        if self._lines:
            sys.stderr.write(f"step {step}/{self._stop}  {figures}\n")
            sys.stderr.flush()

    def close(self) -> None:
        """Stop updating the bar and leave it on the screen."""
        self._bar.stop()
