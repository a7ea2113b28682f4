"""`anysat probe`, `finetune`, `evaluate` and `predict`, each one command on small files: what they leave and say."""

import csv
import hashlib
import json
import re
from dataclasses import replace

import numpy as np
import pytest
import rasterio
import torch

import anysat
from anysat import AnySat, ModelConfig
from anysat.batch import Batch, Tile
from anysat.cli import main
from anysat.data.base import dataset_names, find_dataset, open_dataset
from anysat.data.loader import Draw
from anysat.data.transforms import crop, extent_m
from anysat.data.world import World
from anysat.modalities import MODALITIES
from anysat.model.checkpoint import load, save
from anysat.model.digest import digest as sha256
from anysat.normalise import Normaliser
from anysat.tasks.finetune import FineTuning
from anysat.tasks.predictor import Predictor, load_task
from anysat.train.checkpoints import checkpoint_steps
from anysat.train.metrics import read_metrics
from anysat.workflows import labelled_data
from anysat.workflows.task_parts import fitted_task, make_view, number_days
from miniatures import miniature

DATASETS = [name for name in dataset_names() if name not in ("world", "bigearthnet_pairs")]
QUICK = ("timesen2crop", "sickle", "treesatai_ts")
"""Whose miniatures are small; the others run in the slow lane."""
LEARNT_TILES = 10
LEARNT, OFF = 0.95, 0.25
"""Score of who has learnt by heart; of values, the error in deviations."""
WORLD = '{"tiles": 18, "seed": 7, "modalities": ["s2", "s1"], "extent_m": 60}'


@pytest.fixture(scope="session")
def weights(tmp_path_factory):
    """A very small encoder of every modality in the table."""
    torch.manual_seed(0)
    released = ModelConfig(dim=64, depth=1, num_heads=2, subpatch_order="raster", pixel_dropout_prob=0.0)
    others = [m for m in MODALITIES.values() if m.key not in {one.key for one in released.modalities}]
    for modality in others:
        released = released.with_modalities(modality)
    path = tmp_path_factory.mktemp("weights") / "tiny.safetensors"
    save(AnySat(released), path)
    return path


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    """Generated tiles are kept for the whole session, away from the user's cache."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.getbasetemp() / "cache"))


@pytest.fixture
def run(weights, tmp_path, capsys):
    """Runs a command into a folder with the small encoder; gives its exit status, report and errors."""

    def call(command, *words, out="run"):
        argv = [command, *words]
        argv += [f"--out={tmp_path / out}"] if command != "evaluate" else []
        if command in ("probe", "finetune") and not any(str(word).startswith("--weights") for word in words):
            argv.append(f"--weights={weights}")
        status = main([str(word) for word in argv])
        said = capsys.readouterr()
        return status, said.out, said.err

    return call


def world_words(target="land_cover", patch=30):
    return ["--data.dataset=world", f"--data.world={WORLD}", f"--data.target={target}", "--data.modalities=[s2,s1]",
            f"--patch-sizes-m=[{patch}]", "--dense=s2"]  # fmt: skip


def of_miniature(name):
    record = find_dataset(name)
    return [f"--data.dataset={name}", f"--data.root={miniature(name)}", f"--data.target={record.targets[0].name}",
            f"--patch-sizes-m=[{record.patch_sizes_m[0]:g}]", f"--day-convention={record.day_convention}"]  # fmt: skip


def scores_of(folder):
    return json.loads((folder / "scores.json").read_text())


def digest(model):
    return hashlib.sha256(b"".join(t.numpy().tobytes() for t in model.state_dict().values())).hexdigest()


# -- every dataset, one command each ------------------------------------------------------------------

EVERY = [
    pytest.param(name, marks=() if name in QUICK else [pytest.mark.slow, pytest.mark.timeout(900)]) for name in DATASETS
]


@pytest.mark.parametrize("name", EVERY)
def test_a_probe_runs_on_every_dataset(name, run, tmp_path):
    status, out, err = run("probe", *of_miniature(name), "--epochs=2", "--learning-rates=[0.01]", "--batch-size=2")
    assert status == 0, err
    found = scores_of(tmp_path / "run")
    assert found["scores"]["test"]["num_tiles"] == found["data"]["test"]["tiles"] > 0
    assert load_task(tmp_path / "run").task.target.name == found["target"]
    assert "test tiles" in out


@pytest.mark.parametrize("name", EVERY)
def test_fine_tuning_runs_on_every_dataset(name, run, tmp_path):
    status, _, err = run("finetune", *of_miniature(name), "--epochs=1", "--batch-size=2", "--report=false")
    assert status == 0, err
    assert scores_of(tmp_path / "run")["selection"]["trained"] == "all"


@pytest.mark.timeout(900)
@pytest.mark.parametrize("trained", ["head", "all"])
@pytest.mark.parametrize("name", EVERY)
def test_ten_tiles_are_learnt_by_heart(name, trained, weights):
    """The classic test: whoever cannot overfit has a broken loop. Large tiles are cut to a few patches."""
    record = find_dataset(name)
    size, target = record.patch_sizes_m[0], record.targets[0]
    every = open_dataset(name, miniature(name, tiles=LEARNT_TILES), "all", targets=(target.name,))
    batch = Batch.of([_cut(every[n], size, target) for n in range(LEARNT_TILES)])
    encoder = load(weights)
    encoder.normaliser = Normaliser.from_batch(batch)
    number_days(encoder, record, record.day_convention)
    is_pixel = target.level == "pixel"
    view = make_view(encoder, record, target, modalities=list(batch.observations), patch_sizes_m=[size], dense=None,
                     needs_dense=is_pixel)  # fmt: skip
    head = "both" if not is_pixel else "conv" if trained == "head" else "dense"
    torch.manual_seed(0)
    predictor = Predictor(encoder, fitted_task(target, batch.targets[target.name], balanced=False), view, head)
    objective = FineTuning(predictor, trained).train()
    found = _learnt(objective, Draw(step=0, dataset=name, patch_size_m=size, batch=batch))
    task = predictor.task
    assert found > LEARNT if task.highest_is_best else found < OFF * task.deviation, found


def _learnt(objective, draw):
    """The score of one batch after some hundred steps on it; what is frozen is computed once."""
    task, truth = objective.predictor.task, draw.batch.targets[objective.predictor.task.target.name]
    with torch.no_grad():
        seen = objective.predictor.see(draw.batch, draw.patch_size_m)
    is_frozen = objective.trained == "head"
    weights = [p for p in objective.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(weights, lr=1e-2 if is_frozen else 2e-3, weight_decay=0.0)
    for step in range(600 if is_frozen else 400):
        optimiser.zero_grad()
        now = seen if is_frozen else objective.predictor.see(draw.batch, draw.patch_size_m)
        outputs = objective.predictor.head(now)
        if step % 20 == 0:
            sheet = task.metric()
            task.score(sheet, outputs.detach(), truth)
            score = sheet.compute().figures[task.primary]
            if score > LEARNT if task.highest_is_best else score < OFF * task.deviation:
                break
        task.loss(outputs, truth).backward()
        optimiser.step()
    return score


def _cut(tile, patch_size_m, target):
    """Of large tiles the middle, of at most two patches a side or forty pixels of the target."""
    extent = min(extent_m(tile))
    fits = 2 if target.gsd_m is None else max(1, min(2, int(40 * target.gsd_m / patch_size_m)))
    side, start = patch_size_m * fits, patch_size_m * (extent // (2 * patch_size_m))
    return crop(tile, start, start, side) if extent >= start + side and extent > side else tile


def test_trees_of_five_real_tiles_are_probed_and_fine_tuned_and_scored(run, tmp_path, shared_data):
    """Three tiles to train on and choose by, two to score; too few to tell anything but that it runs."""
    source, root = shared_data.resolve() / "treesatai_ts", tmp_path / "trees"
    root.mkdir()
    for part in ("aerial", "sentinel-ts", "labels"):
        (root / part).symlink_to(source / part)
    names = sorted(path.name for path in (source / "aerial").glob("*.tif"))
    for split, listed in (("train", names[:3]), ("test", names[3:])):
        (root / f"{split}_filenames.lst").write_text("".join(f"{name}\n" for name in listed))
    words = ["--data.dataset=treesatai_ts", f"--data.root={root}", "--data.train=train+val", "--data.val=null",
             "--data.modalities=[aerial,s2,s1-asc]", "--patch-sizes-m=[10]", "--epochs=2", "--batch-size=2"]  # fmt: skip
    for command in ("probe", "finetune"):
        status, _, err = run(command, *words, out=command)
        assert status == 0, err
        found = scores_of(tmp_path / command)
        assert (found["data"]["test"]["tiles"], found["scores"]["test"]["num_tiles"]) == (2, 2)
        assert 0 <= found["scores"]["test"]["figures"]["f1_weighted"] <= 1
        assert "Worst and best tiles" in (tmp_path / command / "report.html").read_text()


# -- a probe ------------------------------------------------------------------------------------------


def test_a_probe_leaves_predictor_scores_and_page(run, tmp_path):
    status, out, _ = run("probe", *world_words(), "--epochs=4", "--learning-rates=[0.01,0.001]")
    assert status == 0
    folder = tmp_path / "run"
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


def test_a_sweep_leaves_every_setting_at_every_epoch(run, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    words = ["--epochs=3", "--learning-rates=[0.01,0.001]", "--weight-decays=[0,0.1]", "--report=false"]
    run("probe", *world_words(), *words)
    chosen = scores_of(tmp_path / "run")["selection"]
    for again in (False, True):
        if again:
            assert run("probe", *world_words(), *words, "--resume")[0] == 0
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


@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_a_run_scored_again_gives_the_same_figures(precision, run, tmp_path):
    words = ["--epochs=2", "--learning-rates=[0.01]", "--weight-decays=[0]", f"--precision={precision}"]
    run("probe", *world_words(), *words, "--device=auto")
    again = [f"--json={tmp_path / 'again.json'}", f"--precision={precision}"]
    status, out, _ = run("evaluate", f"--run={tmp_path / 'run'}", *again)
    assert status == 0
    first, again = scores_of(tmp_path / "run")["scores"]["test"], json.loads((tmp_path / "again.json").read_text())
    for name, value in first["figures"].items():
        assert again["scores"]["figures"][name] == pytest.approx(value, abs=1e-6), name
    assert "chosen on val" in out


def test_a_record_tells_weights_seed_versions_and_what_was_selected_on(run, weights, tmp_path):
    """The encoder's digest is that of the file for a probe, and another after fine-tuning; so in a run scored again."""
    quick = ["--epochs=1", "--report=false"]
    began = sha256(load(weights))
    for command in ("probe", "finetune"):
        assert run(command, *world_words(), "--data.val=null", "--seed=3", *quick, out=command)[0] == 0
        found = scores_of(tmp_path / command)
        assert found["weights"]["sha256"] == sha256(load_task(tmp_path / command).encoder)
        assert (found["weights"]["sha256"] == began) == (command == "probe")
        assert (found["selected_on"], found["seed"]) == ("0.2 of train, held out", 3)
        run("evaluate", f"--run={tmp_path / command}", f"--json={tmp_path / 'again.json'}")
        again = json.loads((tmp_path / "again.json").read_text())
        for name in ("weights", "seed", "selected_on", "versions"):
            assert again[name] == found[name], (command, name)
        assert again["data"] == found["data"]["test"]["fingerprint"]
    assert scores_of(tmp_path / "finetune")["began_with"]["sha256"] == began


def test_every_figure_has_an_interval_those_of_classes_too(run, tmp_path):
    run("probe", *world_words(), "--epochs=2", "--learning-rates=[0.01]")
    test = scores_of(tmp_path / "run")["scores"]["test"]
    assert set(test["intervals"]) == {name for name, value in test["figures"].items() if value is not None}
    assert {"kappa", "calibration_error"} <= set(test["intervals"])
    assert set(test["class_intervals"]) == set(test["per_class"]) - {"support"}
    for name, bounds in test["class_intervals"].items():
        for value, (low, high) in zip(test["per_class"][name], bounds, strict=True):
            assert value is None or low <= value <= high, name
    assert re.search(r"<small>\(0\.\d+ to [01]\.\d+\)</small>", (tmp_path / "run" / "report.html").read_text())


def test_the_mean_average_precision_of_labels_is_told(run, tmp_path):
    status, out, err = run("probe", *of_miniature("treesatai_ts"), "--epochs=1", "--learning-rates=[0.01]")
    assert status == 0, err
    assert "mean AP" in out
    assert "mean AP" in (tmp_path / "run" / "report.html").read_text()


@pytest.mark.parametrize("how", ["linear", "knn", "head"])
def test_weights_and_outputs_of_a_frozen_encoder_are_the_same_to_the_bit_after_a_probe(how, run, weights, tmp_path):
    words = (
        ["finetune", "--trained=head", "--epochs=1"] if how == "head" else ["probe", f"--method={how}", "--epochs=2"]
    )
    status, _, err = run(words[0], *world_words(), *words[1:], "--report=false")
    assert status == 0, err
    kept, before = load_task(tmp_path / "run"), load(weights)
    assert digest(kept.encoder) == digest(before)
    before.normaliser = kept.encoder.normaliser
    place = World(0).tile(0, extent_m=60.0)
    tile = Tile.of(place.observe("s2", count=4), place.observe("s1", count=4))
    with torch.inference_mode():
        ours, theirs = (one.encode(Batch.of([tile]), 30, dense="s2") for one in (kept.encoder, before))
    for name in ("tile", "patch", "dense"):
        assert torch.equal(getattr(ours, name), getattr(theirs, name)), name


def test_a_resumed_probe_embeds_nothing_again(run, tmp_path, monkeypatch):
    words = [*world_words(), "--epochs=2", "--learning-rates=[0.01]", "--report=false"]
    run("probe", *words)
    before = scores_of(tmp_path / "run")["scores"]
    assert run("probe", *words)[0] == 2  # there is a run already
    monkeypatch.setattr(AnySat, "encode", None)
    status, _, err = run("probe", *words, "--resume")
    assert status == 0, err
    assert scores_of(tmp_path / "run")["scores"] == before


def test_a_resumed_probe_refuses_other_options(run):
    run("probe", *world_words(), "--epochs=1", "--learning-rates=[0.01]", "--report=false")
    status, _, err = run("probe", *world_words(), "--epochs=2", "--learning-rates=[0.01]", "--report=false", "--resume")
    assert status == 2
    assert "epochs" in err


def test_neighbours_are_asked_without_training(run, tmp_path):
    status, out, err = run("probe", *of_miniature("timesen2crop"), "--method=knn", "--num-neighbours=[1,3]")
    assert status == 0, err
    found = scores_of(tmp_path / "run")
    assert [one["num_neighbours"] for one in found["selection"]["tried"]] == [1, 3]
    assert found["selection"]["num_samples"] == found["data"]["train"]["tiles"]
    assert found["selection"]["f1_macro"] == found["scores"]["val"]["figures"]["f1_macro"]
    assert (found["head"], found["head_parameters"]) == ("neighbours", 0)
    assert "num neighbours" in (tmp_path / "run" / "report.html").read_text()
    assert "crop in" in out


@pytest.mark.parametrize("name", ["timesen2crop", "treesatai_ts", "sickle", "world"])
def test_neighbours_answer_any_target_and_leave_a_predictor(name, run, tmp_path):
    words = world_words()[:5] if name == "world" else of_miniature(name)
    status, _, err = run("probe", *words, "--method=knn", "--report=false", "--device=auto")
    assert status == 0, err
    first, kept = scores_of(tmp_path / "run")["scores"]["test"], load_task(tmp_path / "run")
    assert not list(kept.head.parameters())
    assert kept.head_config.num_samples == len(kept.head.vectors) > 0
    status, _, err = run("evaluate", f"--run={tmp_path / 'run'}", f"--json={tmp_path / 'again.json'}")
    assert status == 0, err
    again = json.loads((tmp_path / "again.json").read_text())["scores"]["figures"]
    assert again == pytest.approx(first["figures"], abs=1e-6, nan_ok=True)


def test_neighbours_take_no_head_and_no_class_weights(run):
    for word in ("--head=dense", "--class-weights=balanced"):
        status, _, err = run("probe", *world_words(), "--method=knn", word)
        assert status == 2
        assert "what is the default, with --method knn" in err
    status, _, err = run("probe", *world_words()[:4], "--patch-sizes-m=[30,60]", "--method=knn", "--report=false")
    assert status == 2
    assert "one, with --method knn" in err


def test_a_head_of_neighbours_is_not_to_be_trained(run):
    for command in ("probe", "finetune"):
        status, _, err = run(command, *world_words(), "--head=dense-neighbours", "--epochs=1", out=command)
        assert status == 2
        assert "`anysat probe --method knn` makes it" in err


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
def test_tiles_that_nobody_saw_stop_nothing_and_are_named(name, words, run, tmp_path, darkness):
    status, out, err = run(words[0], *of_miniature(name), *words[1:])
    assert status == 0, err
    found = scores_of(tmp_path / "run")
    assert found["unseen"]["test"]
    assert "without a valid value, never trained on and scored as not answered" in out
    assert found["scores"]["test"]["num_tiles"] == found["data"]["test"]["tiles"], "they count"
    if (tmp_path / "run" / "predictor.safetensors").exists():
        kept = load_task(tmp_path / "run")
        assert all(torch.isfinite(p).all() for p in kept.parameters())


def test_a_head_of_another_level_is_refused(run):
    status, _, err = run("probe", *world_words(), "--head=tile")
    assert status == 2
    assert "'dense' or 'patches' or 'conv'" in err


def test_a_tile_in_two_splits_is_refused(run):
    status, _, err = run("probe", *world_words(), "--data.test=val")
    assert status == 2
    assert "every tile in one split" in err


def test_a_modality_the_weights_do_not_know_is_refused(run, tmp_path):
    torch.manual_seed(0)
    save(AnySat(ModelConfig(dim=64, depth=1, num_heads=2, modalities=(MODALITIES["s2"],))), tmp_path / "s2.safetensors")
    status, _, err = run("probe", *world_words(), f"--weights={tmp_path / 's2.safetensors'}")
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
    command, run, tmp_path, counted_from_march
):
    words = [*of_miniature("sickle")[:-1], "--epochs=1", "--batch-size=2", "--report=false"]
    with pytest.warns(
        UserWarning, match=r"SICKLE numbers days by 'days_since 2018-03-01', these weights by 'day_of_year'"
    ):
        status, _, err = run(command, *words)
    assert status == 0, err
    assert load_task(tmp_path / "run").encoder.config.day_convention == "day_of_year"
    status, _, err = run(command, *words, "--day-convention=days_since 2018-03-01", out="asked")  # no warning
    assert status == 0, err
    assert load_task(tmp_path / "asked").encoder.config.day_convention == "days_since 2018-03-01"
    assert "day_of_year" in run(command, *words, "--day-convention=doy", out="wrong")[2]


def test_an_unknown_preset_is_named_with_those_there_are(run):
    status, _, err = run("probe", "--preset=pasttis")
    assert status == 2
    assert "pastis" in err


# -- fine-tuning --------------------------------------------------------------------------------------


@pytest.mark.parametrize("trained", ["head", "projectors", "lora", "all"])
def test_fine_tuning_changes_what_it_should_and_nothing_else(trained, run, weights, tmp_path):
    status, _, err = run("finetune", *world_words(), f"--trained={trained}", "--epochs=1", "--report=false")
    assert status == 0, err
    before, after = load(weights).state_dict(), load_task(tmp_path / "run").encoder.state_dict()
    changed = {name.partition(".")[0] for name in before if not torch.equal(before[name], after[name])}
    wanted = {"head": set(), "projectors": {"projectors"}, "lora": {"spatial", "fusion"}}
    assert changed == wanted.get(trained, {"projectors", "spatial", "fusion"})
    assert anysat.load(tmp_path / "run").config == load(weights).config


def test_fine_tuning_in_two_sessions_equals_one(run, tmp_path):
    words = [*world_words(), "--epochs=2", "--batch-size=4", "--report=false", "--keep.save-every=1"]
    run("finetune", *words, out="whole")
    assert run("finetune", *words, "--max-steps=3", out="parts")[0] == 0
    assert not (tmp_path / "parts" / "scores.json").exists()
    assert run("finetune", *words, "--resume", out="parts")[0] == 0
    whole, parts = (load_task(tmp_path / name).state_dict() for name in ("whole", "parts"))
    assert all(torch.equal(whole[name], parts[name]) for name in whole)


def test_fine_tuning_ends_when_nothing_becomes_better(run, tmp_path):
    words = [*world_words(), "--epochs=30", "--patience=1", "--optimiser.learning-rate=1e-12", "--report=false"]
    status, _, err = run("finetune", *words)
    assert status == 0, err
    assert max(checkpoint_steps(tmp_path / "run" / "checkpoints")) <= 4
    before = scores_of(tmp_path / "run")["selection"]
    assert run("finetune", *words, "--resume")[0] == 0
    assert scores_of(tmp_path / "run")["selection"] == before


def test_fine_tuning_ends_no_earlier_than_it_may_and_warms_up_by_epochs(run, tmp_path):
    words = [*world_words(), "--epochs=30", "--patience=1", "--min-epochs=4", "--warmup-epochs=4", "--batch-size=7"]
    words += ["--optimiser.learning-rate=1e-12", "--keep.log-every=1", "--monitor=accuracy"]
    status, _, err = run("finetune", *words)
    assert status == 0, err
    found = scores_of(tmp_path / "run")
    assert (found["primary"], "accuracy" in found["scores"]["val"]["intervals"]) == ("accuracy", True)
    measured = read_metrics(tmp_path / "run" / "metrics.csv")
    assert len(measured["val/loss"]) - 1 == 4, "as many epochs as it must last, after what was there before"
    curve = found["selection"]["curve"]
    assert [point["val_loss"] for point in curve] == [value for _, value in measured["val/loss"][1:]]
    assert curve[-1]["accuracy"] == measured["val/accuracy"][-1][1]
    per_epoch = measured["val/loss"][1][0]
    last = [value for step, value in measured["train/loss"] if step > 3 * per_epoch]
    assert curve[-1]["loss"] == pytest.approx(sum(last) / per_epoch), "the mean over the epoch"
    assert "Curves of loss and validation score" in (tmp_path / "run" / "report.html").read_text()
    rates = [value for _, value in measured["learning_rate"]]
    assert rates == pytest.approx([1e-12 * (n + 1) / (4 * per_epoch) for n in range(4 * per_epoch)])
    assert "0 where --optimiser.warmup-steps is given" in run("finetune", *words, "--optimiser.warmup-steps=3")[2]


def test_new_sensors_get_projectors_of_their_own(run, tmp_path):
    torch.manual_seed(0)
    save(AnySat(ModelConfig(dim=64, depth=1, num_heads=2, modalities=(MODALITIES["s2"],))), tmp_path / "s2.safetensors")
    words = [*world_words(), f"--weights={tmp_path / 's2.safetensors'}", "--trained=projectors", "--epochs=1"]
    status, _, err = run("finetune", *words, "--report=false")
    assert status == 0, err
    left = load_task(tmp_path / "run").encoder
    assert set(left.projectors) == {"s2", "s1"}
    assert left.provenance["new_projectors"] == "s1"


# -- prediction ---------------------------------------------------------------------------------------


def test_a_map_lies_where_its_inputs_lie(run, tmp_path):
    from geo_builders import cube, geobox, write_nc

    words = ["--data.dataset=world", f"--data.world={WORLD}", "--data.target=land_cover", "--data.modalities=[s2]"]
    run("probe", *words, "--patch-sizes-m=[30]", "--epochs=1", "--learning-rates=[0.01]", "--report=false")
    values = np.random.default_rng(0).integers(100, 4000, (3, 10, 9, 12)).astype(np.float32)
    values[:, :, 0, 0] = np.nan
    box = geobox((9, 12))
    write_nc(
        tmp_path / "s2.nc", cube(values, box, ["2020-01-03", "2020-06-30", "2020-09-11"], MODALITIES["s2"].band_names)
    )
    status, out, err = run("predict", tmp_path / "run", f"s2={tmp_path / 's2.nc'}", "--probabilities", out="map.tif")
    assert status == 0, err
    with rasterio.open(tmp_path / "map.tif") as file:
        classes, names = file.read(1), file.tags()
        assert (file.transform, file.nodata) == (box.affine, 255)
        assert file.colormap(1)[0][3] == 255
    assert classes.shape == (9, 12)
    assert classes[0, 0] == 255
    assert (classes[classes != 255] < 7).all()
    assert names["CLASS_1"] == "forest"
    with rasterio.open(tmp_path / "map_probabilities.tif") as file:
        shares = file.read()
        assert file.descriptions[1] == "forest"
    assert np.nansum(shares, axis=0)[1, 1] == pytest.approx(1, abs=1e-5)
    assert (shares.argmax(0)[1:] == classes[1:]).all()
    assert (tmp_path / "map.png").stat().st_size > 1000
    assert "9 x 12 pixels of 10 m" in out
    with rasterio.open(tmp_path / "map.tif") as file:
        table = file.colormap(1)
    kept = load_task(tmp_path / "run")
    assert [table[n][:3] for n in range(7)] == [tuple(bytes.fromhex(c[1:])) for c in kept.task.target.colours]
    kept.task = replace(kept.task, target=replace(kept.task.target, colours=tuple(f"#0{n}2030" for n in range(7))))
    kept.save(tmp_path / "recoloured.safetensors")
    assert run("predict", tmp_path / "recoloured.safetensors", f"s2={tmp_path / 's2.nc'}", out="other.tif")[0] == 0
    with rasterio.open(tmp_path / "other.tif") as file:
        assert [file.colormap(1)[n] for n in range(7)] == [(n, 32, 48, 255) for n in range(7)]
    assert (tmp_path / "other.png").read_bytes() != (tmp_path / "map.png").read_bytes()
    assert run("predict", tmp_path / "run", f"s2={tmp_path / 's2.nc'}", out="map.json")[0] == 2
    status, _, err = run("predict", tmp_path / "run", f"s2={tmp_path / 's2.nc'}", "--crop-m=60", out="crops.tif")
    assert status == 0, err
    with rasterio.open(tmp_path / "crops.tif") as file:
        assert ((file.read(1) == 255) == (classes == 255)).all()
    words = ["predict", tmp_path / "run", f"s2={tmp_path / 's2.nc'}", "--crop-m=60", "--variants=2"]
    assert "areas have --overlap" in run(*words, out="area.tif")[2]


# -- comparison ---------------------------------------------------------------------------------------


def test_a_comparison_tells_who_is_below_band_statistics(run, weights, tmp_path):
    words = ["--compare", *world_words()[:4], "--patch-sizes-m=[30]", "--models=[logistic,neighbours]",
             f"--weights=[{weights}]", "--max-pixels=200", f"--cache={tmp_path / 'cache'}"]  # fmt: skip
    status, out, err = run("evaluate", *words, f"--json={tmp_path / 'all.json'}")
    assert status == 0, err
    lines = json.loads((tmp_path / "all.json").read_text())["lines"]
    assert {line["features"].rpartition(", ")[2] for line in lines} == {
        "statistics",
        "months",
        "series",
        "patch",
        "dense",
    }
    below = [line for line in lines if line["against_baseline"] == "below"]
    assert all(line["difference"][1] < 0 for line in below)
    assert len(re.findall(r"\) below band statistics", out)) == len(below)
    num_weights = sum(p.numel() for p in load(weights).parameters())
    for line in lines:
        has_encoder = line["features"].endswith(("patch", "dense"))
        assert line["encoder_parameters"] == (num_weights if has_encoder else 0)
        assert line["features_cpu_s"] >= 0
    assert f"features in {lines[-1]['features_cpu_s']:.1f} s by {num_weights:,} parameters; fitted in" in out


def test_a_comparison_has_layers_and_says_what_the_cache_held(run, weights, tmp_path):
    words = ["--compare", "--data.dataset=timesen2crop", f"--data.root={miniature('timesen2crop', tiles=12)}",
             "--models=[neighbours]", f"--weights=[{weights}]", "--layers=[last,spatial.1,fusion.1]",
             f"--cache={tmp_path / 'cache'}", f"--json={tmp_path / 'all.json'}"]  # fmt: skip
    status, out, err = run("evaluate", *words)
    assert status == 0, err
    content = json.loads((tmp_path / "all.json").read_text())
    ours = [line for line in content["lines"] if line["weights"]]
    assert [(line["layer"], line["features"].rpartition(" m, ")[2]) for line in ours] == [
        ("last", "tile"), ("last", "patches"), ("last", "tile + patches"), ("spatial.1", "spatial.1, patches"),
        ("fusion.1", "fusion.1, tile"), ("fusion.1", "fusion.1, patches"), ("fusion.1", "fusion.1, tile + patches"),
    ]  # fmt: skip
    assert len({line["encoder_parameters"] for line in ours}) == 3
    assert {line["tiles_from_cache"] for line in ours} == {0}
    assert "found in the cache" not in out
    again = run("evaluate", *words)[1]
    assert again.count("12 tiles found in the cache") == len(ours)
    assert (content["weights"][str(weights)]["sha256"], content["seed"]) == (sha256(load(weights)), 0)
    assert {"anysat", "numpy", "torch", "scikit-learn"} <= set(content["versions"])
    status, _, err = run("evaluate", *words, "--layers=[fusion.7]")
    assert status == 2
    assert "fusion.1" in err


def test_a_comparison_of_tiles_counts_every_tile(run, weights, tmp_path):
    words = ["--compare", "--data.dataset=timesen2crop", f"--data.root={miniature('timesen2crop', tiles=12)}",
             "--models=[neighbours,forest]", f"--weights=[{weights}]", f"--cache={tmp_path / 'cache'}"]  # fmt: skip
    status, _, err = run("evaluate", *words, f"--json={tmp_path / 'all.json'}")
    assert status == 0, err
    content = json.loads((tmp_path / "all.json").read_text())
    assert {line["num_samples"] for line in content["lines"]} == {content["data"]["test"]["tiles"]}


BLOCK_KM = 300
"""Of the world's tiles, which lie anywhere, two or three in a block."""


@pytest.mark.parametrize("command", ["probe", "finetune"])
def test_intervals_are_over_blocks_of_ground_where_asked_for(command, run, tmp_path):
    words = [*world_words(), "--epochs=1", "--report=false"]
    assert run(command, *words, out="tiles")[0] == 0
    status, _, err = run(command, *words, f"--block-km={BLOCK_KM}")
    assert status == 0, err
    plain, blocked = (scores_of(tmp_path / name)["scores"]["train"] for name in ("tiles", "run"))
    assert (plain["intervals_over"], blocked["intervals_over"]) == ("tiles", f"blocks of {BLOCK_KM} km")
    assert plain["figures"] == blocked["figures"]
    assert plain["intervals"] != blocked["intervals"]
    status, _, err = run("evaluate", f"--run={tmp_path / 'tiles'}", f"--block-km={BLOCK_KM}", "--split=train",
                         f"--json={tmp_path / 'again.json'}")  # fmt: skip
    assert status == 0, err
    again = json.loads((tmp_path / "again.json").read_text())["scores"]
    assert again["intervals_over"] == f"blocks of {BLOCK_KM} km"
    for name, bounds in blocked["intervals"].items():
        assert again["intervals"][name] == pytest.approx(bounds, abs=1e-5), name
    assert run(command, *words, "--block-km=0", out="other")[0] == 2


def test_blocks_need_tiles_with_coordinates(run):
    status, _, err = run("probe", *of_miniature("timesen2crop"), "--epochs=1", "--block-km=5")
    assert status == 2
    assert "tiles with coordinates" in err


def test_evaluate_wants_a_run_or_a_comparison(run):
    status, _, err = run("evaluate")
    assert status == 2
    assert "either --run RUN or --compare" in err
