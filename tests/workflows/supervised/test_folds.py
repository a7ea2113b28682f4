"""`anysat probe` and `finetune` over folds that take turns: one command, one file, taken up where it stopped."""

import json
import math
import shutil
import statistics

import pytest
import torch

from anysat import AnySat, ModelConfig
from anysat.cli import main
from anysat.modalities import MODALITIES
from anysat.model.checkpoint import save
from anysat.model.digest import digest
from anysat.model.load import load
from anysat.workflows.finetune.presets import PRESETS as FINETUNES
from anysat.workflows.probe import run as probe_run
from anysat.workflows.probe.presets import PRESETS as PROBES
from anysat.workflows.supervised.folds import intervals_of, joined, spread_of
from anysat.workflows.supervised.folds_report import write_folds_report
from miniatures import miniature

WORLD = '{"tiles": 18, "seed": 7, "modalities": ["s1"], "extent_m": 60}'
MEMBERS = ("train", "val", "test")


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "tiny.safetensors"
    keys = ("s2", "s1", "spot")
    save(AnySat(ModelConfig(dim=64, depth=1, num_heads=2, subpatch_order="raster",
                            modalities=tuple(MODALITIES[key] for key in keys))), path)  # fmt: skip
    return path


@pytest.fixture
def run(weights, tmp_path, capsys):
    """Runs a command over the members of the world's split; gives exit status, report and errors."""

    def call(command, *words, members=MEMBERS):
        argv = [command, "--data.dataset=world", f"--data.world={WORLD}", "--data.target=land_cover",
                "--data.modalities=[s1]", "--patch-sizes-m=[30]", f"--weights={weights}", "--epochs=1",
                "--report=false", f"--data.folds=[{','.join(members)}]", f"--out={tmp_path / 'run'}"]  # fmt: skip
        argv += ["--learning-rates=[0.01]"] if command == "probe" else []
        status = main([*argv, *words])
        said = capsys.readouterr()
        return status, said.out, said.err

    return call


def test_every_fold_is_scored_once_and_one_file_tells_mean_and_spread(run, weights, tmp_path):
    status, out, err = run("probe")
    assert status == 0, err
    found = json.loads((tmp_path / "run" / "folds.json").read_text())
    single = {name: json.loads((tmp_path / "run" / name / "scores.json").read_text()) for name in MEMBERS}
    assert {name: one["data"]["test"]["tiles"] for name, one in found["folds"].items()} == {
        "train": 14, "val": 2, "test": 2,
    }  # fmt: skip
    for name in ("miou", "accuracy"):
        values = [one["scores"]["test"]["figures"][name] for one in single.values()]
        assert found["figures"][name]["mean"] == pytest.approx(statistics.mean(values))
        assert found["figures"][name]["deviation"] == pytest.approx(statistics.stdev(values))
        assert (found["figures"][name]["least"], found["figures"][name]["greatest"]) == (min(values), max(values))
    assert "land_cover in 3 folds, mean ± deviation" in out
    assert {name: one["selected_on"] for name, one in found["folds"].items()} == {
        "train": "test", "val": "train", "test": "val",
    }  # fmt: skip
    assert {one["weights"]["sha256"] for one in found["folds"].values()} == {digest(load(weights))}
    assert (found["seed"], found["selected_on"]) == (0, "the fold before")
    for name, one in single.items():
        data = one["config"]["data"]
        assert sorted([data["test"], data["val"], *data["train"].split("+")]) == sorted(MEMBERS)
        assert data["test"] == name


def test_a_run_over_folds_is_scored_again_fold_by_fold_and_has_a_page(run, tmp_path, capsys):
    status, _, err = run("probe", "--report=true")
    assert status == 0, err
    page = (tmp_path / "run" / "report.html").read_text()
    assert "3 folds" in page
    for name in MEMBERS:
        assert f'href="{name}/report.html"' in page
        assert (tmp_path / "run" / name / "report.html").is_file()
    first = json.loads((tmp_path / "run" / "folds.json").read_text())
    assert f"{first['figures']['miou']['mean']:.3f}" in page
    status = main(["evaluate", str(tmp_path / "run"), f"--out={tmp_path / 'again.json'}"])
    said = capsys.readouterr()
    assert status == 0, said.err
    again = json.loads((tmp_path / "again.json").read_text())
    assert {name: one["split"] for name, one in again["folds"].items()} == {name: name for name in MEMBERS}
    for name in ("miou", "accuracy"):
        assert again["figures"][name] == pytest.approx(first["figures"][name], abs=1e-6)
    assert "land_cover in 3 folds, mean ± deviation" in said.out
    status = main(["evaluate", str(tmp_path / "run"), "--split=all", f"--out={tmp_path / 'all.json'}"])
    assert status == 0, capsys.readouterr().err
    same = json.loads((tmp_path / "all.json").read_text())
    one = same["figures"]["accuracy"]
    half = 4.303 * one["deviation"] / math.sqrt(3)  # the same tiles in all runs
    assert same["intervals"]["accuracy"] == pytest.approx(
        [max(0, one["mean"] - half), min(1, one["mean"] + half)], abs=1e-4
    )


@pytest.mark.parametrize(("chosen", "told"), [
    (("test", "train", "val"), "the fold before"), (("nothing",) * 3, "nothing"),
    (("test", "nothing", "val"), "the fold before, in val nothing"),
])  # fmt: skip
def test_folds_in_which_nothing_was_chosen_are_told_as_such(tmp_path, chosen, told):
    one = {"scores": {"test": {"figures": {"rmse": 1.0}, "intervals": {}}}, "weights": {}, "data": {}, "selection": {},
           "command": "probe", "target": "height", "primary": "rmse", "seed": 0, "versions": {}}  # fmt: skip
    found = joined({name: one | {"selected_on": on} for name, on in zip(MEMBERS, chosen, strict=True)})
    assert found["selected_on"] == told
    content = found | {"config": {"data": {"dataset": "world"}, "weights": None}}
    assert f"settings were chosen on {told}." in write_folds_report(tmp_path, content).read_text()


def test_folds_that_are_done_are_not_run_again(run, tmp_path, monkeypatch):
    done, real = [], probe_run.run_probe

    def stopped(config, out, resume, **shared):
        if len(done) == 2:
            raise KeyboardInterrupt
        done.append(out.name)
        return real(config, out, resume, **shared)

    monkeypatch.setattr(probe_run, "run_probe", stopped)
    assert run("probe")[0] == 130
    assert not (tmp_path / "run" / "folds.json").exists()
    monkeypatch.setattr(
        probe_run,
        "run_probe",
        lambda config, out, resume, **shared: done.append(out.name) or real(config, out, resume, **shared),
    )
    assert run("probe")[0] == 2, "there is a run"
    assert len(done) == 3, "it was asked, and refused"
    done.pop()
    assert main(["probe", f"--out={tmp_path / 'run'}", "--resume"]) == 0, "with the options it has"
    assert done == list(MEMBERS)
    status, _, err = run("probe", "--resume", "--seed=3")
    assert status == 2
    assert "seed" in err


def test_a_fold_of_other_data_is_refused_before_it_enters_the_mean(run, tmp_path):
    """As where tiles came to the data after it was done."""
    assert run("probe")[0] == 0
    path = tmp_path / "run" / "val" / "scores.json"
    found = json.loads(path.read_text())
    found["data"]["train"] = {"tiles": 11, "fingerprint": "0123456789abcdef"}
    path.write_text(json.dumps(found))
    status, _, err = run("probe", "--resume")
    assert status == 2
    assert "fold val, train: expected the 11 tiles it was scored with" in err
    assert "others, 2" in err


@pytest.mark.parametrize("removed", ["scores.json", "val"])
def test_weights_that_changed_under_their_name_are_refused_before_another_fold(run, tmp_path, weights, removed):
    """As where a pretraining went on meanwhile; the fold is in the middle of its work, or not begun."""
    file = tmp_path / "own.safetensors"
    shutil.copy(weights, file)
    assert run("probe", f"--weights={file}")[0] == 0
    fold = tmp_path / "run" / "val"
    (fold / removed).unlink() if removed == "scores.json" else shutil.rmtree(fold)
    other = load(file)
    with torch.no_grad():
        next(other.parameters()).add_(1)
    save(other, file)
    status, _, err = run("probe", f"--weights={file}", "--resume")
    assert status == 2
    assert "weights: expected those it was started with (digest" in err
    assert not (fold / "scores.json").exists()
    shutil.copy(weights, file)
    assert run("probe", f"--weights={file}", "--resume")[0] == 0


def test_a_fold_that_stops_early_ends_the_command(run, tmp_path):
    status, out, err = run("finetune", "--max-steps=1", "--batch-size=1")
    assert status == 0, err
    assert "fold train: stopped at step 1" in out
    assert not (tmp_path / "run" / "val").exists()
    status, _, err = run("finetune", "--batch-size=1", "--resume")
    assert status == 0, err
    assert json.loads((tmp_path / "run" / "folds.json").read_text())["command"] == "finetune"


def test_folds_that_an_option_kept_from_beginning_are_begun_with_the_right_one(run, tmp_path):
    assert run("finetune", "--monitor=nothing")[0] == 2
    status, _, err = run("finetune", "--max-steps=1", "--batch-size=1")
    assert status == 0, err
    assert main(["finetune", f"--out={tmp_path / 'run'}", "--resume"]) == 0, "with the options that were right"


def test_folds_are_for_one_process(run):
    status, _, err = run("finetune", "--engine.devices=2")
    assert status == 2
    assert "expected one process" in err


def test_the_five_folds_of_pastis_are_the_published_turns():
    for config in (PROBES["pastis-folds"](), FINETUNES["pastis-folds"](), FINETUNES["pastis-labels-folds"]()):
        turns = config.data.turns()
        assert list(turns) == [f"fold{n}" for n in range(1, 6)]
        assert (turns["fold5"].train, turns["fold5"].val) == ("fold1+fold2+fold3", "fold4")
        assert (turns["fold1"].train, turns["fold1"].val) == ("fold2+fold3+fold4", "fold5")


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_pastis_over_its_five_folds_is_one_command(weights, tmp_path, capsys):
    words = ["probe", "--preset=pastis-folds", f"--data.root={miniature('pastis_hd')}", f"--weights={weights}",
             "--epochs=1", "--patch-sizes-m=[160]", "--report=false", f"--out={tmp_path / 'run'}"]  # fmt: skip
    assert main(words) == 0, capsys.readouterr().err
    found = json.loads((tmp_path / "run" / "folds.json").read_text())
    assert list(found["folds"]) == [f"fold{n}" for n in range(1, 6)]
    assert sum(one["data"]["test"]["tiles"] for one in found["folds"].values()) == 6
    assert "paper: mean IoU 0.427" in capsys.readouterr().out


def test_an_interval_stays_within_the_possible_values_of_a_score():
    """Of three folds, Student's interval is 2.5 deviations wide on either side, without the overlap."""
    name = ("accuracy", "kappa", "rmse", "r2", "bias", "own")
    figures = spread_of([dict.fromkeys(name, value) for value in (0.05, 0.5, 0.95)])
    found = intervals_of(figures, {"fold1": {"data": None}} | {"fold2": {"data": {
        "train": {"tiles": 2}, "test": {"tiles": 1, "fingerprint": "a"}}}})  # fmt: skip
    low, high = found["bias"]
    assert low < -0.1
    assert high > 1.1
    assert found == {"accuracy": [0, 1], "kappa": [low, 1], "rmse": [0, high], "r2": [low, 1],
                     "bias": [low, high], "own": [low, high]}  # fmt: skip
