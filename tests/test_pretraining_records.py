"""Records of pretraining experiments: each is of a training that was done."""

import json

import pretraining_experiments as experiments
import pytest

from anysat.workflows.pretrain import Pretrained

RECORDS = sorted(experiments.RECORDS.glob("*.json"))
TEXT = (experiments.RECORDS.parent / "pretraining.md").read_text("utf-8")


def of_kind(kind):
    found = {path.stem: json.loads(path.read_text()) for path in RECORDS}
    return {name: record for name, record in found.items() if record["kind"] == kind}


@pytest.mark.parametrize("path", RECORDS, ids=lambda path: path.stem)
def test_the_last_look_of_a_record_is_at_the_last_step_of_its_schedule(path):
    about = json.loads(path.read_text())["about"]
    if about.get("detector"):
        assert max(map(int, about["detector"])) == about["steps"]
    else:
        assert "variant" not in about


def test_the_detector_speaks_at_every_look_at_the_broken_run_and_never_at_the_others():
    for name, record in of_kind("world").items():
        spoke = [bool(said) for said in record["about"].get("detector", {}).values()]
        assert set(spoke) <= {name.startswith("broken")}, name


def test_every_record_of_the_generated_world_has_its_row_in_the_page():
    for name, record in of_kind("world").items():
        scores = [f"{task['encoder']['score']:.2f}" for task in record["tasks"].values()]
        row = f"| {' | '.join(scores)} | {100 * record['retrieval']['centred']:.1f} % |"
        assert row in TEXT, (name, row)


def test_every_record_of_real_data_has_its_row_in_the_page():
    for name, record in of_kind("real").items():
        row = " | ".join(f"{task['cross']['encoder']['score']:.2f}" for task in record["tasks"].values())
        assert f"| {row} |" in TEXT, (name, row)


def test_a_training_that_a_signal_ended_leaves_no_record(tmp_path, monkeypatch):
    monkeypatch.setattr(experiments, "RECORDS", tmp_path)
    monkeypatch.setattr(experiments, "run_pretraining", lambda *_, **__: Pretrained(text="stopped", exit_status=130))
    with pytest.raises(SystemExit) as ended:
        experiments.run("teacher", 0, tmp_path / "runs")
    assert ended.value.code == 130
    assert list(tmp_path.glob("*.json")) == []
