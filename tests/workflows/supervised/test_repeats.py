"""`--folds` and `--repeats`: tiles dealt into folds, seeds in turn, one summary, and the answer for every tile."""

import json
import math
import re
import statistics
from pathlib import Path

import numpy as np
import pandas
import pyarrow.parquet
import pytest
from scipy.stats import t

from anysat.cli import main
from anysat.data.splits import fold_numbers
from anysat.errors import InputError, RecordError
from anysat.geo.degrees import place_deg
from anysat.workflows.finetune import FinetuneConfig
from anysat.workflows.ground_blocks import blocks, known_places
from anysat.workflows.probe import ProbeConfig
from anysat.workflows.supervised.config import LabelledData
from anysat.workflows.supervised.data import open_data, open_every
from geo_builders import LEFT, geobox, ramp, write_tif
from own_builders import S2, described
from task_commands import scores_of

NAMES = [f"t{number:02}" for number in range(24)]
BLOCK_KM = 3
TARGETS = {"species": {"column": "species"}, "height": {"column": "height_m", "unit": "m"}}


@pytest.fixture(scope="module")
def forest(tmp_path_factory):
    """24 tiles in a row, one every kilometre. Shared: never change it."""
    root = tmp_path_factory.mktemp("forest")
    (root / "s2").mkdir()
    rows = ["id,species,height_m,split"]
    for number, name in enumerate(NAMES):
        values = ramp(len(S2), 8, 8) * (1 + number % 5)
        write_tif(root / "s2" / f"{name}.tif", values, geobox((8, 8), left=LEFT + 1000 * number), names=S2,
                  tags={"DATETIME": "2020:06:01"}, nodata=0)  # fmt: skip
        rows.append(f"{name},{'oak' if number % 5 < 2 else 'beech'},{number}.5,{('train', 'val', 'test')[number % 3]}")
    (root / "tiles.csv").write_text("\n".join(rows))
    described(root, tiles="tiles.csv", targets=TARGETS)
    return root


@pytest.fixture
def run(forest, run_task, tmp_path):
    """Runs a command on the forest; gives its folder and report."""

    def call(command, *words, target="species"):
        fast = ["--learning-rates=[0.01]", "--weight-decays=[0]"] if command == "probe" else []
        status, out, err = run_task(
            command, f"--data.dataset={forest}/mine.yaml", f"--data.root={forest}", f"--data.target={target}",
            "--patch-sizes-m=[20]", "--epochs=2", "--report=false", *fast, *words,
        )  # fmt: skip
        assert status == 0, err
        return tmp_path / "run", out

    return call


def test_in_every_repeat_each_tile_is_answered_once_by_a_run_that_did_not_see_it(forest, run):
    out, told = run("probe", "--folds=3", "--repeats=2", f"--block-km={BLOCK_KM}", "--seed=5")
    runs = [f"seed{seed}/fold{fold}" for seed in (5, 6) for fold in (1, 2, 3)]
    found = json.loads((out / "folds.json").read_text())
    assert (list(found["folds"]), found["seeds"], found["selected_on"]) == (runs, [5, 6], "the fold before")
    assert "species in 2 repeats of 3 folds, mean ± deviation" in told
    rows = pandas.read_parquet(out / "predictions.parquet")
    assert sorted(rows["id"]) == sorted(2 * NAMES)
    assert list(rows) == ["id", "split", "fold", "seed", "truth", "truth_name", "lon", "lat", "predicted",
                          "predicted_name", "confidence", "geometry"]  # fmt: skip
    assert b"geo" in pyarrow.parquet.read_schema(out / "predictions.parquet").metadata
    assert rows["truth_name"].tolist() == ["oak" if int(name[1:]) % 5 < 2 else "beech" for name in rows["id"]]
    for (seed, fold), some in rows.groupby(["seed", "fold"]):
        accuracy = found["folds"][f"seed{seed}/{fold}"]["figures"]["accuracy"]
        assert accuracy == pytest.approx((some["truth"] == some["predicted"]).mean())
    assert rows["confidence"].between(0.5, 1).all(), "the larger of two"
    every, _ = open_every(LabelledData(dataset=f"{forest}/mine.yaml", root=str(forest), target="species"))
    groups = blocks([place_deg(every[n].geobox) for n in range(24)], NAMES, BLOCK_KM)
    for seed in (5, 6):
        mine = rows[rows["seed"] == seed].set_index("id")["fold"][NAMES]
        assert mine.tolist() == [f"fold{n + 1}" for n in fold_numbers(groups, 3, seed)], "as `evaluate --folds`"


def test_the_interval_of_the_mean_counts_what_training_sets_share(run):
    out, told = run("probe", "--folds=3", "--repeats=2", f"--block-km={BLOCK_KM}", target="height")
    found = json.loads((out / "folds.json").read_text())
    sizes = [one["data"] for one in found["folds"].values()]
    ratio = statistics.fmean(one["test"]["tiles"] / one["train"]["tiles"] for one in sizes)
    wanted = {}
    for name in ("bias", "rmse"):
        values = [one["figures"][name] for one in found["folds"].values()]
        half = t.ppf(0.975, 5) * statistics.stdev(values) * math.sqrt(1 / 6 + ratio)
        mean = statistics.fmean(values)
        wanted[name] = [mean - half, mean + half]
    assert found["intervals"]["bias"] == pytest.approx(wanted["bias"])
    low, high = found["intervals"]["rmse"]
    assert [low, high] == pytest.approx([max(0, wanted["rmse"][0]), wanted["rmse"][1]])
    assert f"{low:.3f} to {high:.3f}" in told


def test_tiles_are_embedded_once_for_all_folds_and_repeats(run):
    out, _ = run("probe", "--folds=3", "--repeats=2", f"--block-km={BLOCK_KM}")
    assert len(list((out / "features").glob("*.safetensors"))) == 24 / 8
    assert not list(out.glob("seed*/fold*/features"))
    assert len({path.read_bytes() for path in out.glob("seed*/fold*/begun-with.json")}) == 1, "the same statistics"
    assert scores_of(out / "seed0" / "fold1")["statistics"] == "computed from the training tiles of all runs"


def test_own_folds_of_a_dataset_have_statistics_of_their_own_training_tiles_each(run):
    out, _ = run("probe", "--data.folds=[train,val,test]")
    assert len({path.read_bytes() for path in out.glob("*/begun-with.json")}) == 3
    assert scores_of(out / "train")["statistics"] == "computed from the training split"


def test_repeats_alone_keep_the_splits_and_change_the_seed(run):
    out, told = run("finetune", "--repeats=2", "--trained=head", "--batch-size=4")
    found = json.loads((out / "folds.json").read_text())
    assert (list(found["folds"]), found["selected_on"]) == (["seed0", "seed1"], "val")
    assert "species in 2 repeats, mean" in told
    assert {one["data"]["test"]["tiles"] for one in found["folds"].values()} == {8}
    values = [one["figures"]["f1_macro"] for one in found["folds"].values()]
    half = t.ppf(0.975, 1) * statistics.stdev(values) * math.sqrt(1 / 2)
    assert np.diff(found["intervals"]["f1_macro"])[0] == pytest.approx(2 * half)
    rows = pandas.read_parquet(out / "predictions.parquet")
    assert "fold" not in rows
    assert rows["seed"].tolist() == [0] * 8 + [1] * 8


def test_a_run_over_folds_is_scored_again_on_its_own_folds_and_gone_on_with(run, tmp_path, capsys):
    out, _ = run("probe", "--folds=3", f"--block-km={BLOCK_KM}")
    first = json.loads((out / "folds.json").read_text())
    assert list(first["folds"]) == ["fold1", "fold2", "fold3"]
    assert main(["evaluate", str(out), f"--out={tmp_path / 'again.json'}"]) == 0, capsys.readouterr().err
    again = json.loads((tmp_path / "again.json").read_text())
    assert again["figures"]["accuracy"] == pytest.approx(first["figures"]["accuracy"], abs=1e-6)
    assert again["intervals"]["accuracy"] == pytest.approx(first["intervals"]["accuracy"], abs=1e-6)
    (out / "fold2" / "scores.json").unlink()
    assert main(["probe", f"--out={out}", "--resume"]) == 0, capsys.readouterr().err
    assert json.loads((out / "folds.json").read_text())["figures"] == first["figures"]


@pytest.mark.parametrize("command", ["probe", "finetune"])
def test_a_run_leaves_the_answer_for_each_test_tile(command, run):
    out, _ = run(command)
    rows = pandas.read_parquet(out / "predictions.parquet")
    assert rows["id"].tolist() == [name for number, name in enumerate(NAMES) if number % 3 == 2]
    accuracy = scores_of(out)["scores"]["test"]["figures"]["accuracy"]
    assert accuracy == pytest.approx((rows["truth"] == rows["predicted"]).mean())


def test_answers_that_are_values_have_no_confidence(run):
    out, _ = run("probe", target="height")
    rows = pandas.read_parquet(out / "predictions.parquet")
    assert list(rows) == ["id", "split", "truth", "lon", "lat", "predicted", "geometry"]
    error = math.sqrt(((rows["truth"] - rows["predicted"]) ** 2).mean())
    assert scores_of(out)["scores"]["test"]["figures"]["rmse"] == pytest.approx(error)


def test_a_place_that_no_file_has_is_that_of_the_table(forest):
    data = open_data(LabelledData(dataset=f"{forest}/mine.yaml", root=str(forest), target="species"), 0)
    columns = data.test.samples.columns | {"lon": np.array(["7.5"] * 8), "lat": np.array(["46.5"] * 7 + [""])}
    tiles = type(data.test)(**{**vars(data.test), "samples": type(data.test.samples)(**columns)})
    places = known_places(tiles, [(1.0, 2.0)] + [(math.nan, math.nan)] * 7)
    assert places[:7].tolist() == [[1.0, 2.0]] + [[7.5, 46.5]] * 6
    assert np.isnan(places[7]).any()


def test_more_folds_than_blocks_of_ground_are_refused(forest):
    fold = {"folds": 5, "scored": 0, "side_km": 50.0, "seed": 0}
    with pytest.raises(InputError, match=r"--folds 5: expected at least as many blocks.*smaller blocks in --block-km"):
        open_data(LabelledData(dataset=f"{forest}/mine.yaml", root=str(forest), target="species", fold=fold), 0)


@pytest.mark.parametrize("config", [ProbeConfig, FinetuneConfig])
@pytest.mark.parametrize(("words", "told"), [
    ({"folds": 2}, "--folds: .*3 or more"), ({"repeats": 0}, "--repeats: .*1 or more"),
    ({"folds": 3, "data": {"folds": ["a", "b", "c"]}}, "--folds: .*null with --data.folds"),
    ({"data": {"fold": {"folds": 3}}}, "data.fold: .*side_km"),
])  # fmt: skip
def test_folds_and_repeats_that_are_not_possible_are_refused(config, words, told):
    with pytest.raises(RecordError, match=told):
        config(**words)


def test_the_page_s_lines_name_the_tiles_that_are_often_wrong_and_have_a_label(tmp_path, monkeypatch):
    """Its command is about a target per tile, because other runs leave no such table."""
    page = (Path(__file__).parents[3] / "docs/howto/tasks.md").read_text().split("## Score a few hundred labels")[1]
    assert "--data.target species" in re.search(r"```bash\n(.*?)```", page, re.S)[1]
    folder = tmp_path / "runs" / "forest-folds"
    folder.mkdir(parents=True)
    rows = {"id": ["a", "b", "c", "a", "b", "c"], "truth": [0, 1, None] * 2, "predicted": [1, 1, 0, 1, 0, 0]}
    pandas.DataFrame(rows).astype({"truth": "Int32"}).to_parquet(folder / "predictions.parquet")
    monkeypatch.chdir(tmp_path)
    found = {}
    exec(re.search(r"```python\n(.*?)```", page, re.S)[1], found)  # the page is ours
    assert found["wrong"].to_dict() == {"b": 1, "a": 2}
