"""Predictors: the file gives back the same answers, what does not fit is refused, and predicting changes nothing."""

import json
import pickle
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

import anysat
from anysat.batch import Batch
from anysat.data.base import Target
from anysat.errors import InputError, MissingFileError, RecordError, UnknownNameError, WeightsError, WriteError
from anysat.model.checkpoint import save
from anysat.model.weight_files import TASK_FORMAT, read_tensors
from anysat.picture_samples import class_colours, colours_of, with_colours
from anysat.tasks.base import make_task
from anysat.tasks.heads import HEADS, TileHead
from anysat.tasks.predictor import PREDICTOR_FILE, Predictor, View, load_task
from labelled import COVER, KEYS, KIND, meadow_batch, meadow_encoder, randomise

LABELS = Target(name="genera", level="tile", kind="labels", classes=("Abies", "Acer"))
MASS = Target(
    name="mass", level="pixel", kind="value", gsd_m=20.0, unit="t/ha", limits=(0.0, 50.0), ignore=-9, about="of wood"
)
WHOLE = View(patch_sizes_m=(20.0,), modalities=KEYS)
DENSE = replace(WHOLE, dense="s2")


def make_predictor(target=KIND, view=WHOLE, head="both", options=None, encoder=None, **more):
    made = Predictor(encoder or meadow_encoder(), make_task(target, options), view, head, **more)
    randomise(made.head)
    return made.eval()


@pytest.fixture(scope="module")
def predictor():
    """Of classes of pixels. Shared: never change it."""
    return make_predictor(COVER, DENSE, "dense")


@pytest.fixture
def saved(predictor, tmp_path):
    """Its file."""
    predictor.save(tmp_path / PREDICTOR_FILE)
    return tmp_path / PREDICTOR_FILE


def same(ours, theirs):
    """Whether two predictions are the same to the bit."""
    return all(
        (one is None and other is None) or torch.equal(one.nan_to_num(nan=77), other.nan_to_num(nan=77))
        for one, other in zip(ours, theirs, strict=True)
    )


def without(batch, key):
    return replace(batch, observations={k: seen for k, seen in batch.observations.items() if k != key})


def with_gap(batch):
    """The batch without the Sentinel-2 pixel in row 1 and column 2 of the first tile."""
    valid = batch.observations["s2"].valid.clone()
    valid[0, ..., 1, 2] = False
    return replace(batch, observations={**batch.observations, "s2": replace(batch.observations["s2"], valid=valid)})


# --- the file


@pytest.mark.parametrize(("target", "view", "head", "options"), [
    (COVER, replace(DENSE, patch_sizes_m=(10.0, 20.0)), "dense", {"class_weights": (0.1,) * 26, "void_output": True}),
    (COVER, DENSE, "conv", {"label_smoothing": 0.1}), (KIND, WHOLE, "both", None),
    (LABELS, WHOLE, "pooled", {"threshold": 0.3, "class_weights": [1.0, 2.0]}),
    (MASS, DENSE, "dense", {"mean": 0.1 + 0.2, "deviation": 7.7, "distance": "smooth_l1"}),
    (MASS, replace(WHOLE, modalities=("spot", "s2")), "patches", None),
])  # fmt: skip
def test_a_file_gives_back_the_same_answers_and_everything_that_was_known(target, view, head, options, tmp_path):
    encoder = meadow_encoder(day_convention="days_since 2019-03-07")
    encoder.provenance = {"weights": "meadow", "licence": "MIT"}
    made = make_predictor(target, view, head, options, encoder, **({"width": 16} if head == "conv" else {}))
    made.provenance = {"scores": {"val": {"miou": 0.5}}, "selection": {"epoch": 3}}
    made.tile_m = 80.0
    made.save(tmp_path / "new" / PREDICTOR_FILE)
    found = load_task(tmp_path / "new")
    batch = with_gap(meadow_batch())
    assert same(found.predict(batch), made.predict(batch))
    assert (found.task, found.view, found.head_config) == (made.task, made.view, made.head_config)
    assert found.encoder.config == made.encoder.config
    assert found.encoder.config.day_convention == "days_since 2019-03-07"
    assert found.encoder.normaliser == made.encoder.normaliser
    assert (found.provenance, found.encoder.provenance) == (made.provenance, made.encoder.provenance)
    assert found.tile_m == 80.0
    assert not any(module.training for module in found.modules())


@pytest.mark.parametrize("key", ["tile_m", "sources"])
def test_a_file_without_the_side_or_the_sources_of_the_training_tiles_is_refused(key, saved):
    meta, tensors = read_tensors(saved)
    del meta[key]
    save_file(tensors, saved, {"anysat": json.dumps(meta)})
    with pytest.raises(WeightsError, match=f"unreadable content .'{key}'"):
        load_task(saved)


def test_the_door_opens_folder_and_file_alike(predictor, saved):
    for source in (saved, str(saved), saved.parent):
        assert anysat.load_task(source).view == predictor.view


def test_a_file_holds_tensors_and_json_only(predictor, saved):
    with safe_open(saved, framework="pt") as file:
        assert json.loads(file.metadata()["anysat"])["format"] == TASK_FORMAT
        assert set(file.keys()) == set(predictor.state_dict())


def test_a_pickle_is_refused_and_nothing_of_it_is_run(tmp_path):
    path = tmp_path / PREDICTOR_FILE

    class Evil:
        def __reduce__(self):
            return (tmp_path / "was run").touch, ()

    for write in (lambda: path.write_bytes(pickle.dumps(Evil())), lambda: torch.save({"x": Evil()}, path)):
        write()
        with pytest.raises(WeightsError, match="not a readable safetensors file"):
            load_task(path)
    assert not (tmp_path / "was run").exists()


def test_an_encoder_file_is_refused_saying_what_takes_it(tmp_path):
    save(meadow_encoder(), tmp_path / "model.safetensors")
    with pytest.raises(
        WeightsError, match="format 'anysat-1'.*which reads 'anysat-task-1'; load encoders with `anysat.load`"
    ):
        load_task(tmp_path / "model.safetensors")


def test_a_predictor_file_is_no_encoder(saved):
    with pytest.raises(WeightsError, match="a predictor of a task.*'anysat-task-1'.*give it, .*, to `anysat predict`"):
        anysat.load(saved)


@pytest.mark.parametrize("kept", [0.0, 0.0001, 0.01, 0.5, 0.9999])
def test_a_truncated_file_is_refused_with_its_name(saved, kept):
    content = saved.read_bytes()
    saved.write_bytes(content[: int(kept * len(content))])
    with pytest.raises(WeightsError, match=f"{PREDICTOR_FILE}.*not a readable safetensors file"):
        load_task(saved)


def test_a_missing_file_says_what_is_expected(tmp_path):
    for source in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(MissingFileError, match="folder of a finished probe or fine-tuning run"):
            load_task(source)


@pytest.mark.parametrize(("part", "content"), [
    ("head", None), ("head", {"name": "cloud", "dim": 64, "num_outputs": 26}), ("view", {"sizes": [1]}), ("task", 3),
    ("encoder", {"width": 5}), ("normaliser", {"source": "?"}), ("target", {"name": "x", "level": "pixel", "kind": "y"}),
    ("encoder_provenance", 5), ("task", {"class_weights": [1.0]}), ("provenance", 5), ("view", None), ("tile_m", "wide"),
])  # fmt: skip
def test_damaged_metadata_are_refused_as_such(saved, part, content):
    with safe_open(saved, framework="pt") as file:
        meta = json.loads(file.metadata()["anysat"])
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    meta[part] = content
    save_file(tensors, saved, {"anysat": json.dumps(meta)})
    with pytest.raises(WeightsError, match="unreadable content"):
        load_task(saved)


def test_tensors_of_another_shape_or_name_are_refused(saved):
    with safe_open(saved, framework="pt") as file:
        meta, tensors = file.metadata(), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    for name, tensor in (("head.linear.bias", torch.zeros(3)), ("head.more", torch.zeros(3))):
        save_file({**tensors, name: tensor}, saved, meta)
        with pytest.raises(WeightsError, match=f"(?s)unreadable content.*{name}"):
            load_task(saved)


def test_a_file_that_cannot_be_written_says_so(predictor, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(WriteError, match="could not be written"):
        predictor.save(tmp_path / "file" / PREDICTOR_FILE)


# --- predicting


def test_outputs_of_several_patch_sizes_are_averaged():
    encoder, view = meadow_encoder(), replace(DENSE, patch_sizes_m=(10.0, 40.0, 20.0))
    made, batch = make_predictor(COVER, view, "dense", encoder=encoder), meadow_batch()
    with torch.inference_mode():
        single = [made.head(encoder.encode(batch, size, dense="s2")) for size in (10.0, 40.0, 20.0)]
        outputs = made(batch)
    assert not torch.allclose(single[0], single[1], atol=1e-3)
    torch.testing.assert_close(outputs, (single[0] + single[1] + single[2]) / 3)
    found = made.predict(batch)
    assert torch.equal(found.answer, outputs.argmax(-1))
    torch.testing.assert_close(found.probabilities, outputs.softmax(-1))


def test_modalities_outside_the_view_are_ignored():
    made = make_predictor(view=replace(WHOLE, modalities=("s2", "modis")))
    batch = meadow_batch()
    assert "spot" in batch.observations
    assert same(made.predict(batch), made.predict(without(batch, "spot")))
    broken = replace(batch.observations["spot"], values=torch.full_like(batch.observations["spot"].values, 1e30))
    spoilt = replace(batch, observations={**batch.observations, "spot": broken})
    assert same(made.predict(batch), made.predict(spoilt))


def test_the_order_of_modalities_in_the_batch_changes_nothing(predictor):
    batch = meadow_batch()
    turned = replace(batch, observations=dict(reversed(batch.observations.items())))
    assert list(turned.observations) != list(batch.observations)
    assert same(predictor.predict(batch), predictor.predict(turned))


def test_a_modality_of_the_view_may_be_absent_but_not_all_nor_the_dense_one(predictor):
    batch = meadow_batch()
    assert predictor.predict(without(batch, "spot")).answer.shape == (3, 4, 4)
    with pytest.raises(InputError, match="batch: expected the modality s2, got .*modis"):
        predictor.predict(without(batch, "s2"))
    only_spot = make_predictor(view=replace(WHOLE, modalities=("spot",)))
    with pytest.raises(InputError, match="batch: expected the modality spot, got s2, modis"):
        only_spot.predict(without(batch, "spot"))


def test_what_nobody_saw_gets_no_class(predictor):
    found = predictor.predict(with_gap(meadow_batch()))
    assert [place.tolist() for place in torch.nonzero(found.answer == -1)] == [[0, 1, 2]]
    assert torch.equal(found.outputs.isnan().all(-1), found.answer == -1)


def test_a_dense_modality_that_nobody_saw_makes_answers_of_nothing(predictor):
    batch = meadow_batch()
    dark = replace(batch.observations["s2"], valid=torch.zeros_like(batch.observations["s2"].valid))
    found = predictor.predict(replace(batch, observations={**batch.observations, "s2": dark}))
    assert (found.answer == -1).all()
    assert found.outputs.isnan().all()


def test_statistics_inside_are_used_whatever_the_batch_is_called(predictor):
    batch = meadow_batch()
    assert same(predictor.predict(batch), predictor.predict(replace(batch, dataset="elsewhere")))


@pytest.mark.parametrize("stays", ["encoder", "encoder.fusion"])
def test_predicting_leaves_every_mode_as_it_was(stays):
    """A frozen part in eval mode inside a predictor in training, as in fine-tuning."""
    made = make_predictor().train()
    made.get_submodule(stays).eval()
    modes = [module.training for module in made.modules()]
    made.predict(meadow_batch())
    assert [module.training for module in made.modules()] == modes
    with pytest.raises(InputError):
        made.predict(without(without(without(meadow_batch(), "s2"), "modis"), "spot"))
    assert [module.training for module in made.modules()] == modes


def test_predicting_is_without_dropout_and_gradients():
    made, batch = make_predictor().train(), meadow_batch()
    assert same(made.predict(batch), made.predict(batch))
    assert made.predict(batch).outputs.is_inference()
    torch.manual_seed(0)
    assert not torch.equal(made(batch), made(batch)), "there is dropout in training"


# --- what cannot be


def test_a_head_whose_shape_depends_on_the_patch_size_takes_only_one():
    with pytest.raises(InputError, match="head 'patches': expected one patch size"):
        make_predictor(COVER, replace(WHOLE, patch_sizes_m=(10.0, 20.0)), "patches")


def test_a_view_that_cannot_be_is_refused():
    with pytest.raises(InputError, match="patch_sizes_m: expected at least one"):
        View(patch_sizes_m=(), modalities=KEYS)
    with pytest.raises(InputError, match="dense: expected one of the modalities s2, spot, modis, got s1"):
        View(patch_sizes_m=(20.0,), modalities=KEYS, dense="s1")
    with pytest.raises(UnknownNameError, match="unknown modality 'l8'"):
        make_predictor(COVER, View(patch_sizes_m=(20.0,), modalities=("l8",), dense="l8"), "dense")


def test_a_batch_of_nothing_but_other_modalities_is_no_batch(predictor):
    empty = Batch(observations={}, ids=("a",))
    with pytest.raises(InputError, match="batch: expected the modality s2 or spot or modis"):
        predictor.predict(empty)


def test_a_palette_is_a_colour_for_each_class():
    assert np.allclose(colours_of(with_colours(KIND)), class_colours(3), atol=1 / 500), "what it was drawn in stays"
    assert colours_of(replace(KIND, colours=("#000000", "#ff0000", "#0000ff"))).tolist() == [
        [0, 0, 0],
        [1, 0, 0],
        [0, 0, 1],
    ]
    for wrong in (("#000000",), ("#000000", "#ff0000", "blue"), ("#00000", "#ff0000f", "#0000ff")):
        with pytest.raises(RecordError, match="none, or 3 as #rrggbb"):
            replace(KIND, colours=wrong)


def test_a_predictor_of_a_head_that_is_not_known_here_names_the_module_to_import(tmp_path, monkeypatch):
    class Mine(TileHead):
        """A head of somebody's own."""

    Mine.__module__ = "my_package.heads"
    monkeypatch.setitem(HEADS, "mine", Mine)
    made = make_predictor(KIND, WHOLE, "mine")
    made.save(tmp_path / "mine.safetensors")
    assert load_task(tmp_path / "mine.safetensors").head_config.name == "mine"
    monkeypatch.delitem(HEADS, "mine")
    with pytest.raises(WeightsError, match="head 'mine' is not registered; `import my_package.heads`.*howto/tasks"):
        load_task(tmp_path / "mine.safetensors")
