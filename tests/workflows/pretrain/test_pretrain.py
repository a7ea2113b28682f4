"""The command `pretrain`: what a run leaves, going on exactly, mistakes in a call."""

import json
import re
import shutil
from dataclasses import replace

import pytest
import torch
import yaml
from safetensors.torch import load_file

import anysat
from anysat.batch import Batch
from anysat.cli import main
from anysat.errors import InputError, MissingFileError, RecordError, RunExistsError
from anysat.normalise import Normaliser
from anysat.pretrain.config import ObjectiveConfig
from anysat.train.metrics import read_metrics
from anysat.workflows.pretrain import ModelOptions, PartConfig, WatchConfig, pretrain
from tiny_pretraining import STEPS, held_out, tiny, world

GOALS = ("teacher", "projection")


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Runs of all steps in one go, by goal. Shared: never write into them."""
    home = tmp_path_factory.mktemp("pretrain")
    watch = WatchConfig(validate_every=2, val_batches=1, health_every=2, health_tiles=4, target="land_cover")
    pretrain(tiny(home / "teacher", watch=watch))
    pretrain(tiny(home / "projection", goal="projection"))
    return {goal: home / goal for goal in GOALS}


@pytest.fixture(scope="module")
def run(whole):
    return whole["teacher"]


def losses(run):
    return {name: rows for name, rows in read_metrics(run / "metrics.csv").items() if "loss" in name}


# what a run leaves


def test_a_run_leaves_options_facts_statistics_metrics_report_and_checkpoints(run):
    options = yaml.safe_load((run / "config.yaml").read_text())
    assert (options["num_steps"], options["model"]["dim"], options["data"][0]["dataset"]) == (STEPS, 64, "world")
    facts = json.loads((run / "facts.json").read_text())
    assert facts["sessions"][0]["seed"] == 0
    assert set(Normaliser.read(run / "statistics.json").statistics) == {"world"}
    assert "<figure>" in (run / "report.html").read_text()
    assert [folder.name[-1] for folder in sorted((run / "checkpoints").iterdir())] == ["2", "4"]


def test_a_run_is_an_encoder_with_statistics_that_embeds_a_tile(run):
    encoder = anysat.load(run)
    assert encoder.normaliser.statistics == Normaliser.read(run / "statistics.json").statistics
    assert "goal teacher" in encoder.provenance["weights"]
    found = encoder.encode(Batch.of([held_out(world())[0]]), 30)
    assert found.patch.shape == (1, 2, 2, 64)
    assert torch.isfinite(found.patch).all()


def test_the_encoder_is_the_one_in_training_when_the_run_ended(run):
    """The teacher has moved away from the first weights and is not the student."""
    tensors = load_file(next((run / "checkpoints").glob("*4")) / "training.safetensors")
    kept = load_file(run / "model.safetensors")
    name = "fusion.tile_token"
    teacher, student = (next(t for n, t in tensors.items() if n.endswith(f"{owner}.{name}")) for owner in
                        ("goal.encoder", "student"))  # fmt: skip
    assert torch.equal(kept[name], teacher)
    assert not torch.equal(teacher, student)


def test_health_figures_and_the_scores_of_the_labelled_handful_are_measured(run):
    found = read_metrics(run / "metrics.csv")
    scores = ("neighbours", "neighbours_chance", "linear", "linear_chance")
    for name in ("spread", "rank_frac", "position_share", "alignment", *scores):
        assert [step for step, _ in found[f"health/{name}"]] == [0, 2, 4]
    assert [step for step, _ in found["val/loss"]] == [0, 2, 4]


def test_the_report_tells_classes_by_a_linear_probe_beside_the_untrained_network_the_bands_and_chance(run):
    page = (run / "report.html").read_text()
    found = read_metrics(run / "metrics.csv")
    heads = re.findall(r'<th scope="col">([^<]*)</th>', page)
    assert heads == ["this run", "untrained", "band statistics", "chance"]
    row = re.search(r">class, by a linear probe</th>(.*?)</tr>", page).group(1)
    ours, untrained, simple, chance = (float(cell) for cell in re.findall(r"<td>(?:<b>)?([\d.]+)", row))
    assert ours == pytest.approx(found["health/linear"][-1][1], abs=6e-4)
    assert untrained == pytest.approx(found["health/linear"][0][1], abs=6e-4)
    assert chance == pytest.approx(found["health/linear_chance"][-1][1], abs=6e-4)
    assert 0 <= simple <= 1


# going on


def test_a_folder_with_a_run_is_refused_without_resume(run):
    with pytest.raises(RunExistsError, match="--resume"):
        pretrain(tiny(run))


@pytest.mark.parametrize("goal", GOALS)
def test_two_sessions_are_one_to_the_last_bit(goal, whole, tmp_path):
    config = yaml.safe_load((whole[goal] / "config.yaml").read_text())
    first = tiny(tmp_path / "run", goal=goal, watch=replace(WatchConfig(**config["watch"]), report=False))
    pretrain(replace(first, max_steps=2))
    pretrain(replace(first, resume=True))
    mine, theirs = (load_file(folder / "model.safetensors") for folder in (tmp_path / "run", whole[goal]))
    assert mine.keys() == theirs.keys()
    assert all(torch.equal(mine[name], theirs[name]) for name in mine)
    assert losses(tmp_path / "run") == losses(whole[goal])


def test_fewer_steps_do_not_change_the_schedule(whole, tmp_path):
    pretrain(tiny(tmp_path / "run", goal="projection", max_steps=2))
    mine, theirs = (
        read_metrics(folder / "metrics.csv")["learning_rate"] for folder in (tmp_path / "run", whole["projection"])
    )
    assert mine == theirs[:2]


def test_resume_alone_takes_the_options_of_the_run(tmp_path, capsys):
    file = tmp_path / "options.yaml"
    file.write_text(yaml.safe_dump(tiny(tmp_path / "run", max_steps=1).to_dict() | {"out": None}))
    out = ["--out", str(tmp_path / "run")]
    assert main(["pretrain", "--config", str(file), *out]) == 0
    assert "with earlier sessions" not in capsys.readouterr().out
    assert main(["pretrain", *out, "--resume", "--max-steps", "2"]) == 0
    assert re.search(r"^done at step 2 of 4;.*, \d+ s \(\d+ s with earlier sessions\)", capsys.readouterr().out)
    assert [step for step, _ in read_metrics(tmp_path / "run" / "metrics.csv")["train/loss"]] == [1, 2]


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("seed", {"seed": 4}),
        ("objective.temperature", {"objective": ObjectiveConfig(temperature=0.2)}),
        (r"data\.0\.batch_size", {"data": [world(batch_size=2)]}),
    ],
)
def test_a_run_is_not_gone_on_with_otherwise(name, changes, run):
    with pytest.raises(RecordError, match=rf"config.yaml, .*\b{name}\b"):
        pretrain(tiny(run, resume=True, **changes))


def test_a_run_that_lacks_an_option_of_parts_is_refused(whole, tmp_path, capsys):
    """What it was is not guessed."""
    shutil.copytree(whole["teacher"], tmp_path / "run")
    config = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    del config["data"][0]["cut_at_random"]
    (tmp_path / "run" / "config.yaml").write_text(yaml.safe_dump(config))
    assert main(["pretrain", "--out", str(tmp_path / "run"), "--resume"]) == 2
    assert "data.0.cut_at_random: expected absent" in capsys.readouterr().err


# mistakes


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--preset", "geoplx"], "unknown preset 'geoplx'; closest: geoplex"),
        (["--preset", "geoplex", "--out", "{out}"], "dataset 'treesatai_ts': .*--data-root FOLDER"),
        (["--preset", "geoplex", "--data-root", "{out}", "--out", "{out}/run"], "treesatai_ts: .*no such"),
        (["--preset", "world-nano"], "--out"),
        (["--out", "{out}", "--resume"], "config.yaml: no such file .* the options of the run to continue"),
        (["--out", "{out}"], "--data: .*--preset world-nano"),
        (["--preset", "world-nano", "--out", "{out}", "--masking.num_blocks", "0"], "masking.num_blocks"),
    ],
)
def test_a_mistake_in_a_call_is_told_in_its_own_words(words, told, capsys, tmp_path):
    assert main(["pretrain", *(word.format(out=tmp_path) for word in words)]) == 2
    error = " ".join(capsys.readouterr().err.split())
    assert re.search(told, error), error


def test_a_modality_that_the_model_lacks_is_named(tmp_path):
    with pytest.raises(InputError, match=r"dataset world: .*alos.*--model\.modalities"):
        pretrain(tiny(tmp_path / "run", model=ModelOptions(dim=64, depth=1, num_heads=2, modalities=["s1", "s2"])))


def test_a_folder_that_is_not_there_is_named(tmp_path):
    with pytest.raises(MissingFileError, match="nowhere"):
        pretrain(tiny(tmp_path / "run", PartConfig(dataset="planted", root=str(tmp_path / "nowhere"))))
