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
