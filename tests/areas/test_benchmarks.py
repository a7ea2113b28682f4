"""The benchmarks of areas run, on little ground."""

import areas_places
import areas_scale
import pytest


@pytest.fixture(autouse=True)
def same_threads(monkeypatch):
    monkeypatch.setattr("torch.set_num_threads", lambda count: None)


def test_the_share_of_places_is_measured(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["areas_places.py", "--side-m=320", "--patch-size-m=40", "--window=4"])
    areas_places.main()
    assert capsys.readouterr().out.startswith("4 windows of 4 x 4 patches of 40 m\nplaces explain ")


def test_one_size_of_ground_is_embedded_and_measured():
    found = areas_scale.embed_one(24)
    assert 0 < found["cpu_s"] <= found["all_cpu_s"]
    assert found["peak_mb"] > 0


def test_windows_of_a_map_are_counted(monkeypatch, capsys):
    monkeypatch.setattr(areas_scale, "MAPPED", 10)
    monkeypatch.setattr("anysat.workflows.predict.area.TOKENS_AT_ONCE", 1)  # put back afterwards
    areas_scale.maps(1)
    table = [line for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    assert (len(table), table[2][3:]) == (4, table[3][8:])
