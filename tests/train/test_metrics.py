"""The file of a run's metrics: names as they are, rows that were cut short, rows of steps that are done again."""

import csv

import pytest

from anysat.train.metrics import cut_metrics, read_metrics, write_metrics

NAMES = ("train/north, 2020/loss", 'train/the "far" north/loss', "train/two\nlines/loss", "train/north\u2028/loss")


@pytest.mark.parametrize("name", NAMES)
def test_a_metric_is_read_under_the_name_it_was_written_with_before_and_after_a_resume(name, tmp_path):
    file = tmp_path / "metrics.csv"
    for step in (1, 2, 3):
        write_metrics(file, step, {name: step / 2, "loss": 0.25})
    assert read_metrics(file) == {name: [(1, 0.5), (2, 1.0), (3, 1.5)], "loss": [(1, 0.25), (2, 0.25), (3, 0.25)]}
    cut_metrics(file, 2)
    assert read_metrics(file) == {name: [(1, 0.5), (2, 1.0)], "loss": [(1, 0.25), (2, 0.25)]}
    with file.open(newline="", encoding="utf-8") as rows:
        assert next(csv.reader(rows)) == ["step", "name", "value"]


def test_rows_of_plain_names_are_as_they_always_were(tmp_path):
    file = tmp_path / "metrics.csv"
    write_metrics(file, 1, {"train/loss": 0.5})
    assert file.read_bytes() == b"step,name,value\n1,train/loss,0.5\n"
    cut_metrics(file, 1)
    assert file.read_bytes() == b"step,name,value\n1,train/loss,0.5\n"


def test_a_row_that_was_cut_short_is_left_out(tmp_path):
    file = tmp_path / "metrics.csv"
    write_metrics(file, 1, {"a, b": 0.5})
    with file.open("a") as rows:
        rows.write('2,"a, b",0.2')
    assert read_metrics(file) == {"a, b": [(1, 0.5)]}
