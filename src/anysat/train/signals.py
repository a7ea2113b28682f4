"""SIGTERM and Ctrl-C as a wish to stop, which is granted at the next good moment; a second one stops at once."""

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
        """Take the signals from now on; only in a main thread can they be taken."""
        if threading.current_thread() is threading.main_thread():
            for number in _SIGNALS:
                signal.signal(number, self._note)

    def _note(self, number: int, frame: FrameType | None) -> None:  # noqa: ARG002
        if self.wished:
            raise KeyboardInterrupt
        self.wished = True


@contextlib.contextmanager
def handlers_put_back() -> Iterator[None]:
    """Signals are handled afterwards as they were before."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in _SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
