"""Long work says how far it is where stderr is no terminal, too: at its beginning, and not more often than twice a minute."""

import pytest

from anysat.workflows import progress


@pytest.fixture
def clock(monkeypatch):
    """A clock that goes ten seconds forward each time it is looked at."""
    seen = iter(range(0, 10_000, 10))
    monkeypatch.setattr(progress, "monotonic", lambda: float(next(seen)))


@pytest.mark.usefixtures("clock")
def test_work_in_a_log_is_told_at_its_beginning_and_every_half_minute(capsys):
    with progress.progress_bar("embeddings of world", 60) as advance:
        assert capsys.readouterr().err == "embeddings of world: 60 to do\n"
        for _ in range(7):
            advance(8)
    said = capsys.readouterr()
    assert said.err == "embeddings of world: 24 of 60\nembeddings of world: 48 of 60\n"
    assert said.out == ""


def test_short_work_in_a_log_is_one_line(capsys):
    with progress.progress_bar("packing [x]", 2) as advance:
        advance(2)
    assert capsys.readouterr().err == "packing [x]: 2 to do\n"


@pytest.mark.usefixtures("clock")
def test_an_area_in_a_log_is_told_every_half_minute(capsys):
    with progress.tick_bar("windows") as tick:
        for done in range(1, 5):
            tick(done, 9)
    assert capsys.readouterr().err == "windows: 3 of 9\n"
