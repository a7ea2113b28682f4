"""Handling of SIGTERM and Ctrl-C: the first asks the training to stop cleanly, the second stops it at once."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType

_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class StopWish:
    """Whether a signal has asked to stop."""

    def __init__(self) -> None:
        self.wished = False

    def listen(self) -> None:
        """Handle the signals from now on. Has no effect outside the main thread, where Python does not allow it."""
        if threading.current_thread() is threading.main_thread():
            for number in _SIGNALS:
                signal.signal(number, self._note)

    def _note(self, number: int, frame: FrameType | None) -> None:  # noqa: ARG002
        if self.wished:
            raise KeyboardInterrupt
        self.wished = True


@contextlib.contextmanager
def handlers_put_back() -> Iterator[None]:
    """Restore the signal handlers afterwards."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in _SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
