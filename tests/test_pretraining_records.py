"""Records of pretraining experiments: each is of a training that was done."""

import json

import pretraining_experiments as experiments
import pytest

from anysat.workflows.pretrain import Pretrained

RECORDS = sorted(experiments.RECORDS.glob("*.json"))


@pytest.mark.parametrize("path", RECORDS, ids=lambda path: path.stem)
def test_the_last_look_of_a_record_is_at_the_last_step_of_its_schedule(path):
    about = json.loads(path.read_text())["about"]
    if about.get("detector"):
        assert max(map(int, about["detector"])) == about["steps"]
    else:
        assert "variant" not in about


def test_a_training_that_a_signal_ended_leaves_no_record(tmp_path, monkeypatch):
    monkeypatch.setattr(experiments, "RECORDS", tmp_path)
    monkeypatch.setattr(experiments, "run_pretraining", lambda *_, **__: Pretrained(text="stopped", exit_status=130))
    with pytest.raises(SystemExit) as ended:
        experiments.run("teacher", 0, tmp_path / "runs")
    assert ended.value.code == 130
    assert list(tmp_path.glob("*.json")) == []
