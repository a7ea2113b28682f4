"""Records of pretraining experiments: each is of a training that was done."""

import json

import numpy as np
import pretraining_collapse as collapse
import pretraining_experiments as experiments
import pretraining_scores as scores
import pretraining_tables as pages
import pretraining_unlabelled as unlabelled
import pytest

from anysat.workflows.answer import Answer

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
    for name, record in (of_kind("world") | of_kind("real")).items():
        spoke = [bool(said) for said in record["about"].get("detector", {}).values()]
        assert set(spoke) <= {name.rpartition("-")[0] == "broken"}, name


def _collapse():
    return [collapse.table(json.loads(collapse.RECORD.read_text())["rows"])]


@pytest.mark.parametrize("made", [experiments.tables, unlabelled.tables, _collapse], ids=["world", "real", "collapse"])
def test_the_page_holds_the_tables_as_they_are_printed(made):
    for table in made():
        assert table in TEXT, table


def test_a_pooled_difference_is_the_mean_over_seeds_with_the_mean_of_their_intervals():
    def task(difference, low, high):
        return {"encoder": {"minus": {"untrained": {"difference": difference, "interval": [low, high]}}}}

    assert pages.pooled([task(0.0, -0.2, 0.1), task(0.1, 0.0, 0.3)], "untrained") == pytest.approx((0.05, -0.1, 0.2))


def test_the_interval_of_a_mean_over_seeds_lies_within_the_mean_of_their_intervals():
    """As drawn: the same draws of tiles, answers of two encoders that are alike in part."""
    rng = np.random.default_rng(0)
    total = np.full((60, 1, 2), 20.0)
    easy = rng.uniform(0.4, 0.9, size=total.shape)
    answers = [
        scores.Answers(rng.binomial(20, np.clip(easy + gain, 0, 1)).astype(float), total) for gain in (0, 0.05, 0.1)
    ]
    base, seeds = answers[0], answers[1:]
    found = [{"encoder": scores.compare(one, {"base": base})} for one in seeds]
    mean, low, high = pages.pooled(found, "base")
    weight = np.random.default_rng(0).multinomial(60, np.full(60, 1 / 60), scores.RESAMPLES).astype(float)
    drawn = np.mean([one.score(weight) - base.score(weight) for one in seeds], axis=0)
    inner = np.percentile(drawn, (2.5, 97.5))
    assert low <= inner[0] <= mean <= inner[1] <= high


def test_a_training_that_a_signal_ended_leaves_no_record(tmp_path, monkeypatch):
    monkeypatch.setattr(experiments, "RECORDS", tmp_path)
    monkeypatch.setattr(experiments, "run_pretraining", lambda *_, **__: Answer("stopped", exit_status=130))
    with pytest.raises(SystemExit) as ended:
        experiments.run("teacher", 0, tmp_path / "runs")
    assert ended.value.code == 130
    assert list(tmp_path.glob("*.json")) == []
