"""Work shared out to processes: how one of them ends is told."""

import os
import signal
from dataclasses import dataclass
from pathlib import Path

import pytest

from anysat.data import work
from anysat.errors import OtherWorkError, SourceError, UnfinishedError


@dataclass
class Ending:
    """Work whose second unit ends its process in some way."""

    way: str

    def __call__(self, unit, advance):
        if unit == 1:
            if self.way == "killed":
                os.kill(os.getpid(), signal.SIGKILL)
            if self.way == "left":
                os._exit(3)
            raise KeyError("B04")
        advance(1)


@pytest.mark.parametrize(
    ("way", "told"),
    [
        ("killed", "a worker process was ended by signal 9: out of memory?"),
        ("left", r"a worker process ended with status 3\)"),
        ("raised", "a worker process ended with KeyError: 'B04'"),
    ],
)
def test_the_end_of_a_worker_is_told_as_it_was(way, told, capfd):
    with pytest.raises(UnfinishedError, match=told):
        work.work_through(Ending(way), [0, 1], workers=2, advance=lambda _: None, kept_in=Path("here"))


class Ended:
    """A process that has just put its error and ended, while the one that watches looked elsewhere."""

    def __init__(self, errors):
        self.errors, self.asked = errors, 0

    @property
    def exitcode(self):
        self.asked += 1
        return None if self.asked < 2 else 0

    @property
    def sentinel(self):
        return os.pipe()[0]


class Late:
    """A queue into which the error comes just after it was found empty."""

    def __init__(self):
        self.looks = 0

    def empty(self):
        self.looks += 1
        return self.looks == 1

    def get(self):
        return SourceError("tile 1", "damaged")


def test_an_error_that_comes_with_the_end_of_the_last_worker_is_not_lost(monkeypatch):
    class Done:
        value = 0

    monkeypatch.setattr(work, "_WATCH_SECONDS", 0.01)
    errors = Late()
    with pytest.raises(SourceError, match="damaged"):
        work._watch([Ended(errors)], Done(), errors, lambda _: None, Path("here"))


def test_unfinished_work_of_which_nothing_was_done_is_begun_anew(tmp_path):
    work.begin(tmp_path, {"tiles": 3})
    work.begin(tmp_path, {"tiles": 4})  # as after a table was corrected
    (tmp_path / "0.npz").write_bytes(b"done")
    work.begin(tmp_path, {"tiles": 4})
    with pytest.raises(OtherWorkError, match="tiles 5.*tiles 4"):
        work.begin(tmp_path, {"tiles": 5})
