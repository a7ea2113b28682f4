"""The command `pretrain`: what a run leaves, going on exactly, mistakes in a call, what is watched, many datasets."""

import json
import re
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file

import anysat
from anysat.batch import Batch, Tile
from anysat.cli import main
from anysat.data.base import DatasetRecord, Target
from anysat.data.mixture import Mixture, Part
from anysat.data.world import World
from anysat.errors import CollapseError, InputError, MissingFileError, RecordError, RunExistsError
from anysat.modalities import MODALITIES, read_modalities
from anysat.model.config import ModelConfig
from anysat.model.encoder import AnySat
from anysat.normalise import Normaliser
from anysat.observation import Observation
from anysat.pretrain.config import ObjectiveConfig
from anysat.pretrain.objective import Pretraining
from anysat.train.config import EngineConfig, KeepConfig, OptimiserConfig
from anysat.train.metrics import read_metrics
from anysat.train.run import open_run
from anysat.train.trainer import fit
from anysat.workflows.pretrain import ModelOptions, PartConfig, PretrainConfig, WatchConfig, pretrain
from anysat.workflows.pretrain_objective import make_objective
from anysat.workflows.pretrain_presets import PRESETS
from anysat.workflows.pretrain_run import monitors, open_part
from miniatures import miniature
from tiny_pretraining import STEPS, tiny, world

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


def tiles_of(part, split="val", targets=()):
    opened = open_part(PretrainConfig(data=[part]), part)
    return anysat.open_dataset("world", opened.train.folder.root, split, targets=targets)


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
    found = encoder.encode(Batch.of([tiles_of(world())[0]]), 30)
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
    assert main(["pretrain", *out, "--resume", "--max-steps", "2"]) == 0, capsys.readouterr().err
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


def test_a_run_of_before_an_option_of_parts_goes_on_as_it_was(whole, tmp_path):
    """Photos were not cut at random before there was `cut_at_random`."""
    shutil.copytree(whole["teacher"], tmp_path / "run")
    config = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    del config["data"][0]["cut_at_random"]
    (tmp_path / "run" / "config.yaml").write_text(yaml.safe_dump(config))
    watch = WatchConfig(validate_every=2, val_batches=1, health_every=2, health_tiles=4, target="land_cover")
    with pytest.raises(RecordError, match=r"data\.0\.cut_at_random"):
        pretrain(tiny(tmp_path / "run", watch=watch, resume=True))
    assert main(["pretrain", "--out", str(tmp_path / "run"), "--resume"]) == 0


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


# presets


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_survives_being_written_down(name):
    made = PRESETS[name]()
    assert made.preset == name
    plain = json.loads(json.dumps(made.to_dict()))
    parts = {
        "model": ModelOptions, "masking": type(made.masking), "objective": ObjectiveConfig, "optimiser": OptimiserConfig,
        "engine": type(made.engine), "keep": KeepConfig, "watch": WatchConfig,
    }  # fmt: skip
    again = PretrainConfig(**plain | {key: kind(**plain[key]) for key, kind in parts.items()})
    assert again == made
    assert made.model.config().depth == made.model.depth


def of_parts(config, name):
    return [getattr(part, name) for part in config.data]


def test_geoplex_has_the_settings_of_the_published_code():
    """Spec 3.2 to 3.7."""
    found = PRESETS["geoplex"]()
    assert of_parts(found, "dataset") == ["treesatai_ts", "pastis_hd", "flair", "planted", "s2naip_urban"]
    assert of_parts(found, "weight") == [1, 1, 1, 2, 4]
    assert of_parts(found, "batch_size") == [128, 1, 32, 256, 2]
    assert of_parts(found, "patch_sizes_m") == [[10, 20], [40, 80, 160], [10, 20], [30], [40, 80, 160]]
    assert of_parts(found, "modalities") == [
        ["aerial", "s2", "s1-asc"], ["spot", "s2", "s1"], ["aerial-flair", "s2"], ["s2", "s1", "l7", "alos", "modis"],
        ["naip", "l8", "s2", "s1"],
    ]  # fmt: skip
    assert of_parts(found, "max_dates") == [None, 20, None, None, None]
    assert of_parts(found, "split") == ["train"] * 5
    assert not any(of_parts(found, "turns_and_flips"))
    assert (found.num_steps, found.seed) == (448_800, 32)
    shape = found.model
    assert (shape.dim, shape.depth, shape.num_heads, shape.subpatch_order, shape.rpe_heads) == (
        768, 6, 12, "cell", "first",
    )  # fmt: skip
    masking, objective, optimiser = found.masking, found.objective, found.optimiser
    assert (masking.pattern, masking.num_blocks, masking.block_area_frac, masking.block_aspect) == (
        "blocks", 4, (0.2, 0.8), (0.75, 1.5),
    )  # fmt: skip
    assert (masking.context_area_frac, masking.keep_dates_frac) == ((0.85, 1), (0.5, 0.5))
    assert masking.hide_modalities_frac == 0.5
    assert (objective.goal, objective.distance, objective.momentum, objective.final_momentum) == (
        "teacher", "smooth_l1", 0.996, 1,
    )  # fmt: skip
    assert (objective.predict_weight, objective.contrast_weight, objective.complete_weight) == (1, 1, 0)
    assert objective.spread_weight == 0
    assert (objective.temperature, objective.centred, objective.gather_negatives) == (0.1, False, False)
    assert (objective.predictor_depth, objective.predictor_heads) == (4, 16)
    assert (optimiser.learning_rate, optimiser.weight_decay, optimiser.decay_all) == (5e-5, 0.05, True)
    assert (optimiser.betas, optimiser.warmup_steps, optimiser.clip_norm) == ((0.9, 0.999), 0, None)
    assert (optimiser.schedule, optimiser.plateau_metric, optimiser.plateau_factor, optimiser.plateau_patience) == (
        "plateau", "val/loss", 0.1, 10,
    )  # fmt: skip
    assert (found.engine.devices, found.engine.precision, found.engine.accumulate) == (8, "float16", 1)
    assert found.watch.validate_every == 2244  # once per epoch, which the patience counts
    on_each_device = round(found.watch.val_batches * len(found.data) / found.engine.devices)
    assert on_each_device == 513


def test_geoplex_paper_differs_where_the_paper_does():
    """Spec 3.6 and 7 D; batches of the whole machine are shared out among its devices."""
    code, found = PRESETS["geoplex"](), PRESETS["geoplex-paper"]()
    devices = found.engine.devices
    assert [devices * size for size in of_parts(found, "batch_size")] == [384, 8, 96, 2048, 16]
    assert of_parts(found, "patch_sizes_m") == [[10, 20, 30], [40, 80, 160], [10, 20, 50], [30, 60], [40, 80, 160]]
    assert of_parts(found, "split") == ["train", "all", "train", "train", "train"]
    assert of_parts(found, "val_split") == ["val", None, "val", "val", "val"]  # nothing is held out of all folds
    assert (found.masking.num_blocks, found.masking.context_area_frac) == (5, (1, 1))
    objective = found.objective
    assert (objective.distance, objective.momentum, objective.final_momentum, objective.predictor_depth) == (
        "l2", 0.996, 0.996, 3,
    )  # fmt: skip
    assert (objective.centred, objective.complete_weight) == (False, 0)
    in_metres = replace(code.model, patch_position_unit_m=1.0)
    assert (found.optimiser, found.model, found.num_steps) == (code.optimiser, in_metres, code.num_steps)


def test_geoplex_fixed_has_neither_the_code_s_places_nor_its_decay_of_everything():
    found = PRESETS["geoplex-fixed"]()
    assert (found.model.subpatch_order, found.model.rpe_heads) == ("raster", "each")
    assert not found.optimiser.decay_all
    assert (found.optimiser.schedule, found.optimiser.clip_norm, found.engine.precision) == ("cosine", 1.0, "bf16")
    assert found.optimiser.warmup_steps == 5 * 2244
    assert all(of_parts(found, "turns_and_flips"))
    assert of_parts(found, "split") == ["train"] * 5


def test_world_nano_sees_every_released_modality():
    keys = {key for part in PRESETS["world-nano"]().data for key in part.modalities}
    assert keys == {modality.key for modality in anysat.modalities.RELEASED}


def test_world_nano_loses_ten_steps_at_most_and_keeps_the_best():
    keep = PRESETS["world-nano"]().keep
    assert (keep.save_every, keep.keep_best) == (10, "val/loss")


# what is watched


def prepared(config, normaliser=None):
    """Parts, objective and monitors of a configuration, without a run."""
    parts = [open_part(config, part) for part in config.data]
    given = normaliser or parts[0].normaliser
    return parts, make_objective(config, given), monitors(config, parts)


def test_validation_is_the_same_number_at_the_same_weights_whatever_the_step():
    _, objective, (validation, _) = prepared(tiny("none"))
    objective.eval()
    found = []
    for step in (0, 4000):
        torch.manual_seed(step)
        with torch.no_grad():
            found.append(validation(objective, step))
    first, again = found
    assert again == first
    assert {"loss", "predict", "contrast"} <= set(first)


def test_validation_sees_held_out_tiles_only():
    parts, _, (validation, _) = prepared(tiny("none"))
    held = {tile.id for tile in tiles_of(world())}
    drawn = {
        name for number in range(3) for name in Mixture(parts=validation.mixture_parts, seed=1).draw(number).batch.ids
    }
    assert drawn <= held
    assert not held & set(parts[0].train.ids)


def test_validation_is_the_same_number_whatever_the_number_of_processes(monkeypatch):
    """Each looks at its batches, of which there may be different numbers, and of different datasets."""
    _, _, (validation, _) = prepared(tiny("none"))
    several = replace(validation, steps=3)

    def loss(draw, generator):
        return {"loss": torch.tensor(float(generator.initial_seed() % 5) ** 2)}

    alone = several(loss, 0)
    found: dict[int, dict] = {}
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    monkeypatch.setattr(torch.distributed, "all_gather_object",
                        lambda every, own: found.update({len(own): own}) or every.__setitem__(slice(None), found.values()))  # fmt: skip
    for rank in (0, 1):
        monkeypatch.setattr(torch.distributed, "get_rank", lambda rank=rank: rank)
        told = several(loss, 0)
    assert told == alone
    _, _, (far, _) = prepared(tiny("none", engine=EngineConfig(accelerator="cpu", num_workers=2)))
    assert far.num_workers == 2
    assert replace(several, num_workers=2)(loss, 0) == alone


def test_held_out_tiles_that_hold_nothing_end_no_run():
    _, objective, (_, health) = prepared(tiny("none"))
    tiles = health.chosen()
    empty = {k: replace(o, valid=np.zeros_like(o.valid)) for k, o in tiles[1].observations.items()}
    tiles[1] = replace(tiles[1], observations=empty)
    found = replace(health, tiles=tiles, target=None)(objective.eval(), 0)
    assert np.isfinite(list(found.values())).all()


def test_held_out_tiles_are_cut_to_whole_patches():
    """Of 60 m and patches of 40 m, which a crop to 40 m makes right for training."""
    part = world("s1", "s2", patch_sizes_m=[40], crop_m=40)
    _, objective, (_, health) = prepared(tiny("none", part))
    assert {tile.observations["s1"].shape_px for tile in health.chosen()} == {(4, 4)}
    assert np.isfinite(list(health(objective.eval(), 0).values())).all()


@pytest.mark.parametrize(
    ("part", "watch", "told"),
    [
        (world(val_split=None), {"target": "land_cover"}, "watch.target.*held-out"),
        (world(val_split=None), {"stop_on_collapse": True}, "watch.stop_on_collapse.*held-out"),
    ],
)
def test_what_could_not_be_watched_is_refused(part, watch, told, tmp_path):
    config = tiny(tmp_path / "run", part)
    with pytest.raises(RecordError, match=told):
        pretrain(replace(config, watch=replace(config.watch, **watch)))
    assert not (tmp_path / "run").exists()


def test_only_a_target_of_classes_can_be_watched(monkeypatch, tmp_path):
    value = Target(name="height", level="pixel", kind="value", gsd_m=10.0, unit="m")
    monkeypatch.setattr(DatasetRecord, "target", lambda self, name: value)
    config = tiny(tmp_path / "run")
    with pytest.raises(RecordError, match="watch.target.*classes"):
        pretrain(replace(config, watch=replace(config.watch, target="height")))
    assert not (tmp_path / "run").exists()


def collapse(objective):
    """Every patch gets the same vector."""
    with torch.no_grad():
        for parameter in objective.encoder().fusion.parameters():
            parameter.zero_()


def test_collapsed_embeddings_are_named_and_end_the_run_if_asked(capsys):
    _, objective, (_, health) = prepared(tiny("none"))
    collapse(objective.eval())
    assert health(objective, 3)["spread"] < 0.05
    assert "possible collapse" in capsys.readouterr().err
    strict = replace(health, stop_on_collapse=True)
    strict(objective, 0)  # before the first step it says nothing of the training
    with pytest.raises(CollapseError, match="almost the same vector"):
        strict(objective, 3)


def test_a_run_that_collapses_stops_with_a_checkpoint(tmp_path, monkeypatch):
    watch = WatchConfig(
        validate_every=40, val_batches=1, health_every=3, health_tiles=4, stop_on_collapse=True, report=False
    )
    updated = Pretraining.after_update

    def broken(objective, step, num_steps):
        updated(objective, step, num_steps)
        collapse(objective)

    monkeypatch.setattr(Pretraining, "after_update", broken)
    with pytest.raises(CollapseError, match="step 3"):
        pretrain(tiny(tmp_path / "run", num_steps=40, watch=watch))
    assert max(folder.name for folder in (tmp_path / "run" / "checkpoints").iterdir()) == "step-00000003"
    assert anysat.load(tmp_path / "run").config.dim == 64


# many datasets


def test_parts_of_the_world_share_statistics(tmp_path):
    pretrain(tiny(tmp_path / "run", world(), world("s1", "alos", "l7", tiles=6), max_steps=1))
    table = Normaliser.read(tmp_path / "run" / "statistics.json").statistics
    assert set(table) == {"world"}
    assert set(table["world"]) == {"alos", "s1", "l7"}
    assert table["world"]["s1"] == open_part(PretrainConfig(), world()).normaliser.statistics["world"]["s1"]


def test_geoplex_in_miniature_trains_a_step_of_each_dataset(tmp_path):
    parts = [
        replace(
            part, root=str(miniature(part.dataset, tiles=6)), batch_size=1, patch_sizes_m=[max(part.patch_sizes_m)],
            crop_m=320.0 if part.dataset in ("pastis_hd", "s2naip_urban") else None, split="all", val_split=None,
            max_dates=3, weight=1,
        )
        for part in PRESETS["geoplex"]().data
    ]  # fmt: skip
    config = tiny(tmp_path / "run", *parts, num_steps=14, statistics_tiles=1)
    pretrain(config)
    found = read_metrics(tmp_path / "run" / "metrics.csv")
    for part in parts:
        assert all(np.isfinite(value) for _, value in found[f"train/{part.dataset}/loss"])
    assert set(Normaliser.read(tmp_path / "run" / "statistics.json").statistics) == {part.dataset for part in parts}


class Strips:
    """A stranger's plane and Sentinel-1, in memory."""

    name, modalities = "strips", ("thermal", "s1")

    def __init__(self, thermal):
        self.thermal, self.ids = thermal, [f"strip{index}" for index in range(6)]

    def __len__(self):
        return len(self.ids)

    def __getitem__(self, index):
        draw = np.random.default_rng(index)
        seen = Observation.of(self.thermal, draw.normal(290, 5, (1, 12, 12)))
        radar = World(0).tile(index, extent_m=60.0).observe("s1", count=3)
        return Tile.of(seen, radar, id=self.ids[index], dataset=self.name)


def test_a_stranger_s_dataset_and_modality_train(tmp_path):
    file = tmp_path / "thermal.yaml"
    file.write_text("{key: thermal, sensor: plane, bands: [{name: T, unit: K}], gsd_m: 5, is_temporal: false}")
    (thermal,) = read_modalities(file)
    strips = Strips(thermal)
    statistics = Normaliser.from_batch(Batch.of(list(strips)))
    config = ModelConfig(dim=64, depth=1, num_heads=2, modalities=(thermal, MODALITIES["s1"]))
    torch.manual_seed(0)
    objective = Pretraining(
        AnySat(config, normaliser=statistics), config=ObjectiveConfig(predictor_depth=1, predictor_heads=2)
    )
    part = Part(tiles=strips, batch_size=3, patch_sizes_m=(20.0, 30.0))
    with open_run(tmp_path / "run", config={}, seed=0, normaliser=statistics) as run:
        fitted = fit(
            objective, lambda rank, world_size: Mixture(parts=[part], seed=0, rank=rank, world_size=world_size),
            optimiser=OptimiserConfig(), engine=EngineConfig(), keep=KeepConfig(loggers=("csv",)), seed=0, num_steps=2,
            run=run,
        )  # fmt: skip
    assert fitted.steps == 2
    found = anysat.load(tmp_path / "run")
    assert found.config.modality("thermal") == thermal
    assert torch.isfinite(found.encode(Batch.of([strips[0]]), 20).patch).all()
