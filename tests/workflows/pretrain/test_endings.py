"""A pretraining that an error ends leaves a report that says so, unless the disk is full."""

import errno
from dataclasses import replace

import pytest
import torch

from anysat.data import statistics
from anysat.errors import CollapseError, DivergedError, RunStoppedError, WriteError
from anysat.normalise import Normaliser
from anysat.pretrain.objective import Pretraining
from anysat.train import checkpoints
from anysat.workflows.pretrain import pretrain
from anysat.workflows.pretrain import report as pretrain_report
from anysat.workflows.pretrain.run import open_part
from tiny_pretraining import RADAR, tiny, world


def reported(out):
    """A run of a few steps that ends in a report, and stops where embeddings collapse."""
    config = tiny(out)
    return replace(config, watch=replace(config.watch, health_every=3, report=True, stop_on_collapse=True))


def spoil(monkeypatch, value):
    """From the second step on, all weights of the fusion have one value."""
    updated = Pretraining.after_update

    def after(objective, step, num_steps):
        updated(objective, step, num_steps)
        if step >= 1:
            with torch.no_grad():
                for owner in (objective.student, objective.encoder()):
                    for parameter in owner.fusion.parameters():
                        parameter.fill_(value)

    monkeypatch.setattr(Pretraining, "after_update", after)


def test_a_collapse_is_told_in_the_report(tmp_path, monkeypatch):
    spoil(monkeypatch, 0.0)
    with pytest.raises(CollapseError):
        pretrain(reported(tmp_path / "run"))
    page = (tmp_path / "run" / "report.html").read_text()
    assert "<b>Not finished:</b> 3 of 4 steps" in page
    assert "the embeddings collapsed by step 3: spread is" in page


def test_a_weight_that_is_no_number_is_told_in_the_report(tmp_path, monkeypatch):
    spoil(monkeypatch, torch.nan)
    config = reported(tmp_path / "run")
    with pytest.raises(DivergedError):
        pretrain(replace(config, watch=replace(config.watch, stop_on_collapse=False)))
    page = (tmp_path / "run" / "report.html").read_text()
    assert "<b>Not finished:</b> 0 of 4 steps" in page
    assert "a weight was NaN or infinite" in page


def test_statistics_of_two_parts_of_one_dataset_go_on_where_they_stopped(tmp_path, monkeypatch):
    class Stopped(Exception):
        pass

    config = tiny(tmp_path / "run", world(val_split=None), world("s1", val_split=None), resume=True, max_steps=1)
    parts = [open_part(config, part) for part in config.data]
    config = replace(config, data=[replace(one, world=None, root=str(opened.train.folder.root))
                                   for one, opened in zip(config.data, parts, strict=True)])  # fmt: skip
    done, do = [], statistics._Chunks.__call__

    def stop_within_the_second(job, unit, advance):
        if job.dataset.modalities == ("s1",) and unit == 3 and len(done) < 100:
            done.extend([None] * 100)
            raise Stopped
        done.append(job.dataset.modalities)
        do(job, unit, advance)

    monkeypatch.setattr(statistics._Chunks, "__call__", stop_within_the_second)
    with pytest.raises(Stopped):
        pretrain(config)
    pretrain(config)
    after = done[done.index(None) :]
    assert RADAR not in [tuple(sorted(one)) for one in after if one]
    kept = Normaliser.read(tmp_path / "run" / "statistics.json")
    assert set(kept.table("world")) == {"alos", "s1"}
    assert {path.name for path in (tmp_path / "run").glob("statistics*")} == {"statistics.json", "statistics.of.json"}


def refuse(*args, **kwargs):
    raise OSError(errno.ENOSPC, "No space left on device")


def refuse_output(path, content):
    raise WriteError(path, "No space left on device")


def test_a_checkpoint_that_could_not_be_written_is_told_in_the_report(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoints, "save_file", refuse)
    with pytest.raises(RunStoppedError):
        pretrain(reported(tmp_path / "run"))
    assert (
        "training stopped at step 2 ([Errno 28] No space left on device)"
        in (tmp_path / "run" / "report.html").read_text()
    )


def test_a_full_disk_that_takes_no_report_either_is_told_as_what_it_is(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoints, "save_file", refuse)
    monkeypatch.setattr(pretrain_report, "write_output", refuse_output)
    with pytest.raises(RunStoppedError, match="step 2"):
        pretrain(reported(tmp_path / "run"))
    assert not (tmp_path / "run" / "report.html").exists()
