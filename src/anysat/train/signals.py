"""SIGTERM and Ctrl-C as a wish to stop, which is granted at the next good moment; a second one stops at once."""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import Any


class StopWish:
    """Whether a signal has asked to stop. Handlers are in place from `listen` to `forget`."""

    def __init__(self) -> None:
        self.wished = False
        self._before: dict[int, Any] = {}

    def listen(self) -> None:
        """Take the signals from now on; only in a main thread can they be taken."""
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                self._before.setdefault(number, signal.getsignal(number))
                signal.signal(number, self._note)

    def forget(self) -> None:
        """Put back what was there before."""
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before.clear()

    def _note(self, number: int, frame: FrameType | None) -> None:  # noqa: ARG002
        if self.wished:
            raise KeyboardInterrupt
        self.wished = True
