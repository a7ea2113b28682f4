"""`anysat probe` on small data: what it leaves, what it says, what it refuses."""

import csv
import json
import re
from dataclasses import replace

import numpy as np
import pytest
import torch

from anysat import AnySat, ModelConfig
from anysat.batch import Batch, Tile
from anysat.data.open import find_dataset
from anysat.data.world import World
from anysat.modalities import MODALITIES
from anysat.model.checkpoint import save
from anysat.model.digest import digest as sha256
from anysat.model.load import load
from anysat.tasks.predictor import load_task
from anysat.tasks.scores import ClassCounts
from anysat.workflows.supervised import data as labelled_data
from anysat.workflows.supervised.config import LabelledData
from task_commands import WORLD, digest, of_miniature, scores_of, world_words


def test_a_probe_leaves_predictor_scores_and_page(run_task, tmp_path):
    status, out, _ = run_task("probe", *world_words(), "--epochs=4", "--learning-rates=[0.01,0.001]")
    assert status == 0
    folder = tmp_path / "run"
    assert not (folder / "checkpoints").exists(), "of which a probe has none"
    found = scores_of(folder)
    assert len(found["selection"]["tried"]) == 4
    assert (found["selected_on"], found["primary"]) == ("val", "miou")
    assert found["selection"]["miou"] == pytest.approx(found["scores"]["val"]["figures"]["miou"], abs=1e-9)
    low, high = found["scores"]["test"]["intervals"]["accuracy"]
    assert low <= found["scores"]["test"]["figures"]["accuracy"] <= high
    assert found["data"]["test"]["fingerprint"]
    page = (folder / "report.html").read_text()
    for word in ("Confusions", "Worst and best tiles", "How it was chosen", "mean IoU"):
        assert word in page
    assert "http" not in re.sub(r"https?://www.w3.org\S*", "", page)
    assert re.search(r"mean IoU +0\.\d+ \(0\.\d+ to 0\.\d+\)", out)
    assert f"of each class: {folder / 'scores.csv'}" in out


def test_the_scores_of_each_class_lie_in_a_table(run_task, tmp_path):
    words = ["--epochs=1", "--learning-rates=[0.01]", "--report=false"]
    assert run_task("probe", *world_words(), *words)[0] == 0
    assert run_task("evaluate", str(tmp_path / "run"), f"--out={tmp_path / 'again.json'}")[0] == 0
    found = scores_of(tmp_path / "run")
    for path in (tmp_path / "run" / "scores.csv", tmp_path / "again_scores.csv"):
        with path.open() as file:
            rows = list(csv.DictReader(file))
        assert [row["class"] for row in rows] == found["classes"]
        for number, row in enumerate(rows):
            assert int(row["support"]) == found["scores"]["test"]["per_class"]["support"][number]
            counts = [int(row[f"predicted {name}"]) for name in found["classes"]] + [int(row["no prediction"])]
            assert counts == found["scores"]["test"]["confusion"][number]


def test_scores_of_values_have_no_table_of_classes(run_task, tmp_path):
    words = ["--epochs=1", "--learning-rates=[0.01]", "--report=false"]
    status, out, _ = run_task("probe", *of_miniature("biomassters"), *words)
    assert (status, "of each class" in out, (tmp_path / "run" / "scores.csv").exists()) == (0, False, False)


def test_a_sweep_leaves_every_setting_at_every_epoch(run_task, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    words = ["--epochs=3", "--learning-rates=[0.01,0.001]", "--weight-decays=[0,0.1]", "--report=false"]
    run_task("probe", *world_words(), *words)
    chosen = scores_of(tmp_path / "run")["selection"]
    for again in (False, True):
        if again:
            assert run_task("probe", *world_words(), *words, "--resume")[0] == 0
        with (tmp_path / "run" / "sweep.csv").open() as file:
            rows = list(csv.DictReader(file))
        assert len(rows) == 4 * 3
        (best,) = [row for row in rows if row["is_chosen"] == "1"]
        for name, value in (("learning_rate", chosen["learning_rate"]), ("weight_decay", chosen["weight_decay"]),
                            ("epoch", chosen["epoch"]), ("val_miou", chosen["miou"])):  # fmt: skip
            assert float(best[name]) == pytest.approx(value), name
        assert max(float(row["val_miou"]) for row in rows) == pytest.approx(chosen["miou"])
        folders = sorted(path.name for path in (tmp_path / "run" / "tensorboard").iterdir())
        assert len(folders) == 4
        name = f"learning_rate={chosen['learning_rate']:g},weight_decay={chosen['weight_decay']:g}"
        events = EventAccumulator(str(tmp_path / "run" / "tensorboard" / name)).Reload()
        assert [one.value for one in events.Scalars("val/miou")] == pytest.approx(
            [point["miou"] for point in chosen["curve"]]
        )


@pytest.mark.parametrize("head", ["patches", "conv", "tile", "pooled", "both"])
def test_a_probe_has_the_head_that_was_asked_for(head, run_task, tmp_path):
    of_tiles = head in ("tile", "pooled", "both")
    words = of_miniature("timesen2crop") if of_tiles else world_words()
    status, _, err = run_task(
        "probe", *words, f"--head={head}", "--epochs=1", "--learning-rates=[0.01]", "--report=false"
    )
    assert status == 0, err
    assert load_task(tmp_path / "run").head_config.name == head
    status, _, err = run_task("evaluate", str(tmp_path / "run"), f"--out={tmp_path / 'again.json'}")
    assert status == 0, err
    again = json.loads((tmp_path / "again.json").read_text())["scores"]["figures"]
    for name, value in scores_of(tmp_path / "run")["scores"]["test"]["figures"].items():
        assert again[name] == pytest.approx(value, abs=1e-6, nan_ok=True), name


def test_answers_of_several_patch_sizes_are_averaged(run_task, tmp_path):
    for sizes in ("30", "60", "30,60"):
        words = [word for word in world_words() if not word.startswith("--patch-sizes-m")]
        words += [f"--patch-sizes-m=[{sizes}]", "--epochs=1", "--learning-rates=[0.01]", "--report=false"]
        assert run_task("probe", *words, out=sizes)[0] == 0
        kept = load_task(tmp_path / sizes)
        assert kept.view.patch_sizes_m == tuple(float(size) for size in sizes.split(","))
    data = LabelledData(dataset="world", world=json.loads(WORLD), target="land_cover", modalities=["s2", "s1"])
    batch = Batch.of([labelled_data.open_data(data, 0).test[0]])
    both, each = kept.predict(batch).outputs, []
    for size in (30.0, 60.0):
        kept.view = replace(kept.view, patch_sizes_m=(size,))
        each.append(kept.predict(batch).outputs)
    assert not torch.allclose(*each, atol=1e-3)
    assert torch.allclose(both, (each[0] + each[1]) / 2, atol=1e-5)


def test_the_patch_size_that_nobody_gave_is_told_and_recorded(run_task, tmp_path):
    words = [word for word in world_words() if not word.startswith("--patch-sizes-m")]
    status, out, err = run_task("probe", *words, "--epochs=1", "--learning-rates=[0.01]")
    assert status == 0, err
    assert "patches: 30 m (default; others that fit: 60 120)" in err
    assert "  patches: 30 m\n" in out
    assert scores_of(tmp_path / "run")["patch_sizes_m"] == [30]
    assert '<th scope="row">Patches</th><td>30 m</td>' in (tmp_path / "run" / "report.html").read_text()


@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_a_run_scored_again_gives_the_same_figures(precision, run_task, tmp_path):
    words = ["--epochs=2", "--learning-rates=[0.01]", "--weight-decays=[0]", f"--precision={precision}"]
    run_task("probe", *world_words(), *words, "--device=auto")
    again = [f"--out={tmp_path / 'again.json'}", f"--precision={precision}"]
    status, out, _ = run_task("evaluate", str(tmp_path / "run"), *again)
    assert status == 0
    first, again = scores_of(tmp_path / "run")["scores"]["test"], json.loads((tmp_path / "again.json").read_text())
    for name, value in first["figures"].items():
        assert again["scores"]["figures"][name] == pytest.approx(value, abs=1e-6), name
    assert "chosen on val" in out


def test_a_record_tells_weights_seed_versions_and_what_was_selected_on(run_task, small_weights, tmp_path):
    """The encoder's digest is that of the file for a probe, and another after fine-tuning; so in a run scored again."""
    quick = ["--epochs=1", "--report=false"]
    began = sha256(load(small_weights))
    for command in ("probe", "finetune"):
        assert run_task(command, *world_words(), "--data.val=null", "--seed=3", *quick, out=command)[0] == 0
        found = scores_of(tmp_path / command)
        assert found["weights"]["sha256"] == sha256(load_task(tmp_path / command).encoder)
        assert (found["weights"]["sha256"] == began) == (command == "probe")
        assert (found["selected_on"], found["seed"]) == ("0.2 of train, held out", 3)
        run_task("evaluate", str(tmp_path / command), f"--out={tmp_path / 'again.json'}")
        again = json.loads((tmp_path / "again.json").read_text())
        for name in ("weights", "seed", "selected_on", "versions"):
            assert again[name] == found[name], (command, name)
        assert again["data"] == found["data"]["test"]["fingerprint"]
        for split in ("train", "val"):  # what was held out is not trained on
            words = [str(tmp_path / command), f"--split={split}", f"--out={tmp_path / 'again.json'}"]
            assert run_task("evaluate", *words)[0] == 0
            again = json.loads((tmp_path / "again.json").read_text())
            assert again["data"] == found["data"][split]["fingerprint"]
        assert again["split"] == "0.2 of train, held out"
        for name, value in found["scores"]["val"]["figures"].items():
            assert again["scores"]["figures"][name] == pytest.approx(value, abs=1e-6, nan_ok=True), name
    assert scores_of(tmp_path / "finetune")["began_with"]["sha256"] == began


def test_every_figure_has_an_interval_those_of_classes_too(run_task, tmp_path):
    run_task("probe", *world_words(), "--epochs=2", "--learning-rates=[0.01]")
    test = scores_of(tmp_path / "run")["scores"]["test"]
    assert set(test["intervals"]) == {name for name, value in test["figures"].items() if value is not None}
    assert {"kappa", "calibration_error"} <= set(test["intervals"])
    assert set(test["class_intervals"]) == set(test["per_class"]) - {"support"}
    for name, bounds in test["class_intervals"].items():
        for value, (low, high) in zip(test["per_class"][name], bounds, strict=True):
            assert value is None or low <= value <= high, name
    assert re.search(r"<small>\(0\.\d+ to [01]\.\d+\)</small>", (tmp_path / "run" / "report.html").read_text())


def test_the_mean_average_precision_of_labels_is_told(run_task, tmp_path):
    status, out, err = run_task("probe", *of_miniature("treesatai_ts"), "--epochs=1", "--learning-rates=[0.01]")
    assert status == 0, err
    assert "mean AP" in out
    assert "mean AP" in (tmp_path / "run" / "report.html").read_text()


@pytest.mark.parametrize("how", ["linear", "knn", "head"])
def test_weights_and_outputs_of_a_frozen_encoder_are_the_same_to_the_bit_after_a_probe(
    how, run_task, small_weights, tmp_path
):
    words = ["finetune", "--trained=head", "--epochs=1"] if how == "head" else ["probe", f"--method={how}"]
    words += ["--epochs=2"] if how == "linear" else []
    status, _, err = run_task(words[0], *world_words(), *words[1:], "--report=false")
    assert status == 0, err
    kept, before = load_task(tmp_path / "run"), load(small_weights)
    assert kept.tile_m == json.loads(WORLD)["extent_m"]
    assert digest(kept.encoder) == digest(before)
    before.normaliser = kept.encoder.normaliser
    place = World(0).tile(0, extent_m=60.0)
    tile = Tile.of(place.observe("s2", count=4), place.observe("s1", count=4))
    with torch.inference_mode():
        ours, theirs = (one.encode(Batch.of([tile]), 30, dense="s2") for one in (kept.encoder, before))
    for name in ("tile", "patch", "dense"):
        assert torch.equal(getattr(ours, name), getattr(theirs, name)), name


def test_a_resumed_probe_embeds_nothing_again(run_task, tmp_path, monkeypatch):
    words = [*world_words(), "--epochs=2", "--learning-rates=[0.01]", "--report=false"]
    run_task("probe", *words)
    before = scores_of(tmp_path / "run")["scores"]
    assert run_task("probe", *words)[0] == 2  # there is a run already
    monkeypatch.setattr(AnySat, "encode", None)
    status, _, err = run_task("probe", *words, "--resume")
    assert status == 0, err
    assert scores_of(tmp_path / "run")["scores"] == before
    assert scores_of(tmp_path / "run")["seconds"].keys() == {"all", "sessions"}


def test_a_resumed_probe_refuses_other_options(run_task):
    run_task("probe", *world_words(), "--epochs=1", "--learning-rates=[0.01]", "--report=false")
    status, _, err = run_task(
        "probe", *world_words(), "--epochs=2", "--learning-rates=[0.01]", "--report=false", "--resume"
    )
    assert status == 2
    assert "epochs" in err


def test_neighbours_are_asked_without_training(run_task, tmp_path):
    status, out, err = run_task("probe", *of_miniature("timesen2crop"), "--method=knn", "--num-neighbours=[1,3]")
    assert status == 0, err
    found = scores_of(tmp_path / "run")
    assert [one["num_neighbours"] for one in found["selection"]["tried"]] == [1, 3]
    assert found["selection"]["num_samples"] == found["data"]["train"]["tiles"]
    assert found["selection"]["f1_macro"] == found["scores"]["val"]["figures"]["f1_macro"]
    assert (found["head"], found["head_parameters"]) == ("neighbours", 0)
    assert "num neighbours" in (tmp_path / "run" / "report.html").read_text()
    assert "crop in" in out
    num_train = found["data"]["train"]["tiles"]
    for split in ("train", "train+test"):  # a training tile would be its own neighbour
        status, _, err = run_task("evaluate", str(tmp_path / "run"), f"--split={split}")
        assert status == 2
        assert f"--split {split}: expected tiles that are not among the nearest neighbours" in err
        assert f"{num_train} of " in err
    assert run_task("evaluate", str(tmp_path / "run"), "--split=val+test")[0] == 0


@pytest.mark.parametrize("name", ["timesen2crop", "treesatai_ts", "sickle", "world"])
def test_neighbours_answer_any_target_and_leave_a_predictor(name, run_task, tmp_path):
    words = world_words()[:5] if name == "world" else of_miniature(name)
    status, _, err = run_task("probe", *words, "--method=knn", "--report=false", "--device=auto")
    assert status == 0, err
    first, kept = scores_of(tmp_path / "run")["scores"]["test"], load_task(tmp_path / "run")
    assert not list(kept.head.parameters())
    assert kept.head_config.num_samples == len(kept.head.vectors) > 0
    status, _, err = run_task("evaluate", str(tmp_path / "run"), f"--out={tmp_path / 'again.json'}")
    assert status == 0, err
    again = json.loads((tmp_path / "again.json").read_text())["scores"]["figures"]
    assert again == pytest.approx(first["figures"], abs=1e-6, nan_ok=True)


def test_neighbours_take_no_head_and_no_class_weights(run_task):
    for word in ("--head=dense", "--class-weights=balanced"):
        status, _, err = run_task("probe", *world_words(), "--method=knn", word)
        assert status == 2
        assert "the default, with --method knn" in err
    status, _, err = run_task("probe", *world_words()[:4], "--patch-sizes-m=[30,60]", "--method=knn", "--report=false")
    assert status == 2
    assert "one, with --method knn" in err


def test_a_head_of_neighbours_is_not_to_be_trained(run_task):
    for command in ("probe", "finetune"):
        status, _, err = run_task(command, *world_words(), "--head=dense-neighbours", "--epochs=1", out=command)
        assert status == 2
        assert "create it with `anysat probe --method knn`" in err


@pytest.mark.parametrize("method", ["linear", "knn"])
def test_a_probe_without_any_validation_score_says_that_nothing_was_chosen(method, run_task, tmp_path, monkeypatch):
    monkeypatch.setitem(ClassCounts.formulas, "kappa", lambda totals: totals.right.sum(-1) * torch.nan)
    words = [*world_words(), f"--method={method}", "--monitor=kappa"]
    words += ["--epochs=3", "--patience=1", "--learning-rates=[0.01]"] if method == "linear" else []
    status, out, err = run_task("probe", *words)
    assert status == 0, err
    found = scores_of(tmp_path / "run")
    assert found["selected_on"] == "nothing"
    assert "chosen on nothing)" in out
    assert found["selection"].get("epoch", 3) == 3, "the weights are those of the last"
    assert "Settings chosen on nothing." in (tmp_path / "run" / "report.html").read_text()


@pytest.fixture
def darkness(monkeypatch):
    """Every third tile of any dataset has no valid value."""
    from anysat.data.base import TileDataset

    read = TileDataset.__getitem__

    def dark(self, index):
        tile = read(self, index)
        if index % 3:
            return tile
        seen = {key: replace(one, valid=np.zeros_like(one.valid)) for key, one in tile.observations.items()}
        return replace(tile, observations=seen)

    monkeypatch.setattr(TileDataset, "__getitem__", dark)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("timesen2crop", ["probe", "--epochs=2", "--learning-rates=[0.01]"]),
        ("timesen2crop", ["probe", "--method=knn", "--num-neighbours=[2]"]),
        ("treesatai_ts", ["probe", "--epochs=2", "--learning-rates=[0.01]", "--report=false"]),
        (
            "sickle",
            ["finetune", "--epochs=1", "--batch-size=2", "--report=false"],
        ),
        ("timesen2crop", ["finetune", "--epochs=1", "--batch-size=2", "--head=both"]),
    ],
    ids=lambda value: value if isinstance(value, str) else "-".join(value[:2]).replace("--", ""),
)
def test_tiles_that_nobody_saw_stop_nothing_and_are_named(name, words, run_task, tmp_path, darkness):
    status, out, err = run_task(words[0], *of_miniature(name), *words[1:])
    assert status == 0, err
    found = scores_of(tmp_path / "run")
    assert found["unseen"]["test"]
    of = r"( of \w+)?" if found["dense"] is not None else ""
    assert re.search(rf"without valid values{of}, not trained on and scored as not predicted", out)
    assert found["scores"]["test"]["num_tiles"] == found["data"]["test"]["tiles"], "they count"
    if (tmp_path / "run" / "predictor.safetensors").exists():
        kept = load_task(tmp_path / "run")
        assert all(torch.isfinite(p).all() for p in kept.parameters())


@pytest.mark.parametrize("command", ["probe", "finetune"])
@pytest.mark.parametrize(("head", "told"), [("tile", "'dense' or 'patches' or 'conv'"), ("dnse", "closest: dense")])
def test_a_head_that_does_not_fit_is_refused_before_anything_is_computed(command, head, told, run_task):
    status, _, err = run_task(command, *world_words(), f"--head={head}")
    assert status == 2
    assert told in err
    assert "statistics of" not in err
    assert "embeddings of" not in err


def test_a_tile_in_two_splits_is_refused(run_task):
    status, _, err = run_task("probe", *world_words(), "--data.test=val")
    assert status == 2
    assert "every tile in one split" in err


def test_a_modality_the_weights_do_not_know_is_refused(run_task, tmp_path):
    torch.manual_seed(0)
    save(AnySat(ModelConfig(dim=64, depth=1, num_heads=2, modalities=(MODALITIES["s2"],))), tmp_path / "s2.safetensors")
    status, _, err = run_task("probe", *world_words(), f"--weights={tmp_path / 's2.safetensors'}")
    assert status == 2
    assert "finetune" in err


@pytest.fixture
def counted_from_march(monkeypatch):
    """SICKLE, had it been published with days that are counted on."""
    record = replace(find_dataset("sickle"), day_convention="days_since 2018-03-01")
    monkeypatch.setattr(labelled_data, "find_dataset", lambda _: record)
    return record


@pytest.mark.parametrize("command", ["probe", "finetune"])
def test_days_are_numbered_as_the_weights_do_which_is_told_where_the_dataset_does_otherwise(
    command, run_task, tmp_path, counted_from_march
):
    words = [*of_miniature("sickle")[:-1], "--epochs=1", "--batch-size=2", "--report=false"]
    with pytest.warns(
        UserWarning, match=r"SICKLE numbers days by 'days_since 2018-03-01', these weights by 'day_of_year'"
    ):
        status, _, err = run_task(command, *words)
    assert status == 0, err
    assert load_task(tmp_path / "run").encoder.config.day_convention == "day_of_year"
    status, _, err = run_task(command, *words, "--day-convention=days_since 2018-03-01", out="asked")  # no warning
    assert status == 0, err
    assert load_task(tmp_path / "asked").encoder.config.day_convention == "days_since 2018-03-01"
    assert "day_of_year" in run_task(command, *words, "--day-convention=doy", out="wrong")[2]


def test_an_unknown_preset_is_named_with_those_there_are(run_task):
    status, _, err = run_task("probe", "--preset=pasttis")
    assert status == 2
    assert "pastis" in err
