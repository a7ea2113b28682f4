"""`anysat evaluate --compare` on small data, and intervals over blocks of ground."""

import json
import re
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from anysat.data.base import Target, TileDataset
from anysat.data.open import open_dataset
from anysat.model.digest import digest as sha256
from anysat.model.load import load
from anysat.tasks.base import make_task
from anysat.tasks.simple import MODELS, called, draw_places
from anysat.workflows.evaluate import comparison as compare_module
from anysat.workflows.evaluate.features import FeatureSet
from anysat.workflows.evaluate.told import Comparison, Line
from anysat.workflows.evaluate.turns import Turns
from miniatures import miniature
from task_commands import of_miniature, scores_of, world_words


def test_a_comparison_tells_who_is_worse_than_band_statistics(run_task, small_weights, tmp_path):
    words = ["--compare", *world_words()[:4], "--patch-sizes-m=[30]", "--models=[logistic,neighbours]",
             f"--weights=[{small_weights}]", "--max-pixels=200", f"--cache={tmp_path / 'cache'}"]  # fmt: skip
    status, out, err = run_task("evaluate", *words, f"--out={tmp_path / 'all.json'}")
    assert status == 0, err
    lines = json.loads((tmp_path / "all.json").read_text())["lines"]
    assert {line["features"].rpartition(", ")[2] for line in lines} == {
        "statistics",
        "months",
        "series",
        "patch",
        "dense",
    }
    worse = [line for line in lines if line["against_baseline"] == "worse"]
    assert all(line["difference"][1] < 0 for line in worse)
    assert len(re.findall(r"\) worse than band statistics", out)) == len(worse)
    num_weights = sum(p.numel() for p in load(small_weights).parameters())
    for line in lines:
        has_encoder = line["features"].endswith(("patch", "dense"))
        assert line["encoder_parameters"] == (num_weights if has_encoder else 0)
        assert line["features_cpu_s"] >= 0
    seconds = re.findall(rf"features in ([\d.]+) s by {num_weights:,} parameters; fitted in", out)
    assert float(seconds[-1]) == pytest.approx(lines[-1]["features_cpu_s"], abs=0.06)  # rounded otherwise


def test_a_comparison_has_layers_and_says_what_the_cache_held(run_task, small_weights, tmp_path):
    words = ["--compare", "--data.dataset=timesen2crop", f"--data.root={miniature('timesen2crop', tiles=12)}",
             "--models=[neighbours]", f"--weights=[{small_weights}]", "--layers=[last,spatial.1,fusion.1]",
             f"--cache={tmp_path / 'cache'}", f"--out={tmp_path / 'all.json'}"]  # fmt: skip
    status, out, err = run_task("evaluate", *words)
    assert status == 0, err
    content = json.loads((tmp_path / "all.json").read_text())
    ours = [line for line in content["lines"] if line["weights"]]
    assert [(line["layer"], line["features"].rpartition(" m, ")[2]) for line in ours] == [
        ("last", "tile"), ("last", "patches"), ("last", "tile + patches"), ("spatial.1", "spatial.1, patches"),
        ("fusion.1", "fusion.1, tile"), ("fusion.1", "fusion.1, patches"), ("fusion.1", "fusion.1, tile + patches"),
    ]  # fmt: skip
    assert len({line["encoder_parameters"] for line in ours}) == 3
    assert {line["tiles_from_cache"] for line in ours} == {0}
    assert "from the cache" not in out
    again = run_task("evaluate", *words)[1]
    assert again.count("12 tiles from the cache") == len(ours)
    assert (content["weights"][str(small_weights)]["sha256"], content["seed"]) == (sha256(load(small_weights)), 0)
    assert {"anysat", "numpy", "torch", "scikit-learn"} <= set(content["versions"])
    status, _, err = run_task("evaluate", *words, "--layers=[fusion.7]")
    assert status == 2
    assert "fusion.1" in err


@pytest.fixture
def reads(monkeypatch):
    """Names of the tiles that were read."""
    found = []

    def noted(read):
        return lambda self, index, *args, **options: (
            found.append(self.ids[index]) or read(self, index, *args, **options)
        )

    monkeypatch.setattr(TileDataset, "_read", noted(TileDataset._read))
    return found


def test_a_comparison_reads_a_tile_for_its_labels_for_all_simple_features_and_for_its_embedding(
    reads, run_task, small_weights, tmp_path
):
    words = ["--compare", *of_miniature("timesen2crop")[:2], f"--data.root={miniature('timesen2crop', tiles=12)}",
             "--models=[neighbours]", f"--weights=[{small_weights}]", f"--cache={tmp_path / 'cache'}"]  # fmt: skip
    status, _, err = run_task("evaluate", *words, f"--out={tmp_path / 'here.json'}")
    assert status == 0, err
    tested = open_dataset("timesen2crop", miniature("timesen2crop", tiles=12), "test").ids
    assert {reads.count(name) for name in tested} == {3}
    reads.clear()
    status, _, err = run_task("evaluate", *words, "--num-workers=2", f"--out={tmp_path / 'there.json'}")
    assert status == 0, err
    assert not set(reads) & set(tested), "other processes read them"
    scores = [[line["figures"] for line in json.loads((tmp_path / name).read_text())["lines"]]
              for name in ("here.json", "there.json")]  # fmt: skip
    assert scores[0] == scores[1]


@pytest.mark.parametrize(("words", "told"), [("--layers=[foo]", "layer 'foo'"), ("--weights=[none.pth]", "none.pth"),
                                             ("--against=foo", "--against 'foo'")])  # fmt: skip
def test_a_name_that_a_comparison_does_not_know_is_told_before_a_tile_is_read(words, told, reads, run_task):
    given = [*of_miniature("timesen2crop")[:2], f"--data.root={miniature('timesen2crop', tiles=12)}", words]
    status, _, err = run_task("evaluate", "--compare", *given)
    assert status == 2
    assert told in err
    assert not reads


def test_a_comparison_of_tiles_counts_every_tile(run_task, small_weights, tmp_path):
    words = ["--compare", "--data.dataset=timesen2crop", f"--data.root={miniature('timesen2crop', tiles=12)}",
             "--models=[neighbours,forest]", f"--weights=[{small_weights}]", f"--cache={tmp_path / 'cache'}"]  # fmt: skip
    status, _, err = run_task("evaluate", *words, f"--out={tmp_path / 'all.json'}")
    assert status == 0, err
    content = json.loads((tmp_path / "all.json").read_text())
    assert {line["num_samples"] for line in content["lines"]} == {content["data"]["test"]["tiles"]}


BLOCK_KM = 300
"""Of the world's tiles, which lie anywhere, two or three in a block."""


@pytest.mark.parametrize("command", ["probe", "finetune"])
def test_intervals_are_over_blocks_of_ground_where_asked_for(command, run_task, reads, tmp_path):
    words = [*world_words(), "--epochs=1", "--report=false"]
    assert run_task(command, *words, out="tiles")[0] == 0
    status, _, err = run_task(command, *words, f"--block-km={BLOCK_KM}")
    assert status == 0, err
    plain, blocked = (scores_of(tmp_path / name)["scores"]["train"] for name in ("tiles", "run"))
    assert (plain["intervals_over"], blocked["intervals_over"]) == ("tiles", f"blocks of {BLOCK_KM} km")
    assert 2 <= blocked["num_intervals_over"] < plain["num_intervals_over"] == plain["num_tiles"]
    assert plain["figures"] == blocked["figures"]
    assert plain["intervals"] != blocked["intervals"]
    reads.clear()
    status, _, err = run_task("evaluate", str(tmp_path / 'tiles'), f"--block-km={BLOCK_KM}", "--split=train",
                         f"--out={tmp_path / 'again.json'}")  # fmt: skip
    assert status == 0, err
    assert len(set(reads)) == len(reads) == plain["num_tiles"]
    again = json.loads((tmp_path / "again.json").read_text())["scores"]
    assert again["intervals_over"] == f"blocks of {BLOCK_KM} km"
    for name, bounds in blocked["intervals"].items():
        assert again["intervals"][name] == pytest.approx(bounds, abs=1e-5), name
    assert run_task(command, *words, "--block-km=0", out="other")[0] == 2


def test_blocks_need_tiles_with_coordinates(run_task):
    status, _, err = run_task("probe", *of_miniature("timesen2crop"), "--epochs=1", "--block-km=5")
    assert status == 2
    assert "tiles with coordinates" in err


def test_evaluate_wants_a_run_or_a_comparison(run_task):
    status, _, err = run_task("evaluate")
    assert status == 2
    assert "RUN: expected a run to score, or --compare" in err


@pytest.mark.parametrize(("limits", "wanted"), [((0.0, 100.0), [0.0, 40.0, 100.0]), (None, [-5.0, 40.0, 130.0])])
def test_answers_of_simple_models_are_kept_within_the_limits_of_a_target(limits, wanted, monkeypatch):
    target = Target(name="biomass", level="tile", kind="value", unit="Mg/ha", limits=limits)
    places = SimpleNamespace(truth=np.array([0.0, 40.0, 100.0]), tile=np.arange(3))
    samples = SimpleNamespace(places=places, turns=SimpleNamespace(groups=np.arange(3)))
    model = SimpleNamespace(predict=lambda features: np.array([-5.0, 40.0, 130.0]))
    told = []
    sheet = SimpleNamespace(
        update=lambda values, truth, groups: told.extend([values.tolist(), len(truth), len(groups)])
    )
    task = make_task(target, {"mean": 30.0, "deviation": 7.0})
    compare_module._score(sheet, model, np.zeros((3, 1)), np.arange(3), samples, task)
    assert told == [pytest.approx(wanted, rel=1e-6), 3, 3]


def test_what_is_fitted_to_values_is_called_what_it_is():
    classes = Target(name="x", level="tile", kind="class", classes=("a", "b"))
    assert called("logistic", Target(name="x", level="tile", kind="value")) == "ridge"
    assert [called(model, classes) for model in MODELS] == list(MODELS)


@pytest.mark.parametrize(("kind", "told", "wanted"), [
    ("value", [[3.0], [3.0]], True), ("value", [[3.0], [4.0]], False), ("class", [[0.1, 0.9], [0.1, 0.9]], True),
])  # fmt: skip
def test_a_model_that_gives_one_answer_for_all_is_known(kind, told, wanted, monkeypatch):
    """Boosting on fewer than forty samples never splits."""
    target = Target(name="x", level="tile", kind=kind, classes=("a", "b") if kind == "class" else ())
    samples = SimpleNamespace(places=SimpleNamespace(truth=np.array([0, 1]), tile=np.arange(2)),
                              turns=SimpleNamespace(groups=np.arange(2)))  # fmt: skip
    monkeypatch.setattr(compare_module, "outputs", lambda *_: torch.tensor(told))
    task = make_task(target)
    assert compare_module._score(task.metric(), None, np.zeros((2, 1)), np.arange(2), samples, task) == wanted


def test_a_first_setting_whose_score_is_undefined_does_not_win_over_one_that_has_a_score(monkeypatch):
    class Sheet:
        def compute(self):
            return SimpleNamespace(figures={"miou": self.figure})

    tried, asked = {"first": float("nan"), "second": 0.4, "third": float("nan")}, []

    def scored(sheet, setting, *_):
        sheet.figure = tried[setting]
        asked.append(setting)
        return False

    monkeypatch.setattr(compare_module, "models", lambda *_: {"logistic": list(tried)})
    monkeypatch.setattr(compare_module, "_fit", lambda setting, *_: setting)
    monkeypatch.setattr(compare_module, "_score", scored)
    task = SimpleNamespace(
        metric=Sheet, primary="miou", highest_is_best=True, target=SimpleNamespace(classes=("a", "b"))
    )
    places, config = SimpleNamespace(truth=np.zeros(3)), SimpleNamespace(models=["logistic"], seed=0)
    samples = SimpleNamespace(turns=SimpleNamespace(roles=np.zeros((1, 3))), places=places, rows=lambda *_: [0])
    made = FeatureSet(name="ours", num_features=1, seconds=0.0)
    compare_module._fitted(made, [np.zeros((3, 1))], samples, task, config)
    assert asked == [*tried, "second"]


def test_values_are_told_as_worse_where_the_error_is_larger_and_constants_as_such():
    task = make_task(Target(name="height", level="tile", kind="value"))
    truth = torch.linspace(0, 10, 60)

    def line(features, model, values, **facts):
        sheet = task.metric()
        sheet.update(values, truth)
        made = FeatureSet(name=features, num_features=1, seconds=0.0)
        return Line(features=made, model=model, scores=sheet.compute(), seconds=0.0, **facts)

    both = [line("statistics", "ridge", truth + 0.1), line("ours", "boosting", 5 + 0 * truth, is_constant=True)]
    turns = Turns(roles=np.full((1, 60), 2), groups=np.arange(60), unit="tiles", selected_on="val")
    told = str(Comparison(lines=both, task=task, turns=turns, num_tiles=60))
    assert re.search(r"boosting .*\+2\.\d+ \(\+.*\) worse than band statistics; constant; ", told), told
    assert "ridge" in told
    assert "fewer than 40 training samples" in told.splitlines()[-1]


@pytest.mark.parametrize(("counts", "most", "wanted"), [
    ([0] * 90 + [36] * 10, 200, [20] * 10), ([2, 2, 36, 36], 40, [2, 2, 18, 18]), ([3, 4], 40, [3, 4]),
    ([36] * 4, 40, [10] * 4),
])  # fmt: skip
def test_as_many_pixels_are_drawn_as_allowed_where_few_have_a_label(counts, most, wanted):
    target = Target(name="cover", level="pixel", kind="class", classes=("a", "b"), gsd_m=10.0, ignore=-1)
    truths = [np.where(np.arange(36) < count, 1, -1).reshape(6, 6) for count in counts]
    drawn = np.bincount(draw_places(truths, target, most, seed=0).tile, minlength=len(counts))
    assert drawn[np.array(counts) > 0].tolist() == wanted


def test_no_more_pixels_are_drawn_than_allowed_of_more_tiles():
    target = Target(name="cover", level="pixel", kind="class", classes=("a", "b"), gsd_m=10.0, ignore=-1)
    truths = [np.full((6, 6), number) for number in range(9)]
    drawn = draw_places(truths, target, 4, seed=0)
    assert len(drawn) == len(np.unique(drawn.tile)) == 4
    assert drawn.truth.tolist() == drawn.tile.tolist() == sorted(drawn.tile)
    assert drawn.tile.tolist() == draw_places(truths, target, 4, seed=0).tile.tolist()
