"""Fine-tuning: exactly what is meant to be trained is trained, and what is left is an ordinary encoder and head."""

import math
from dataclasses import replace

import pytest
import torch
from torch import nn

from anysat.data.loader import Draw
from anysat.errors import InputError, UnknownNameError
from anysat.modalities import MODALITIES
from anysat.tasks.adapt import adapt, depth_scale, merged
from anysat.tasks.base import make_task
from anysat.tasks.finetune import FineTuning, Scoring, score
from anysat.tasks.predictor import PREDICTOR_FILE, Predictor, View, load_task
from labelled import COVER, KEYS, KIND, meadow_batch, meadow_encoder, randomise
from meadow import FarMeadow, Meadow

TRAINED = ("head", "projectors", "lora", "all")
DEPTH = 2


def make_tuning(trained, target=COVER, **options):
    """A predictor in training, with patches of 10 and 20 m."""
    pixels = target.level == "pixel"
    view = View(patch_sizes_m=(10.0, 20.0), modalities=KEYS, dense="s2" if pixels else None)
    modalities = tuple(MODALITIES[key] for key in (*KEYS, "l8"))  # of which the meadow has no l8
    encoder = meadow_encoder(depth=DEPTH, modalities=modalities)
    predictor = Predictor(encoder, make_task(target), view, "dense" if pixels else "both")
    randomise(predictor.head)
    torch.manual_seed(0)
    return FineTuning(predictor, trained, **options).train()


def make_draw(size=20.0, batch=None):
    return Draw(step=0, dataset="meadow", patch_size_m=size, batch=batch or meadow_batch())


def loss_of(objective, size=20.0, batch=None):
    return objective(make_draw(size, batch), torch.Generator())["loss"]


def trainable(module):
    return {name for name, parameter in module.named_parameters() if parameter.requires_grad}


def randomise_additions(encoder):
    """As after some training."""
    torch.manual_seed(3)
    with torch.no_grad():
        for name, parameter in encoder.named_parameters():
            if name.endswith(".up"):
                parameter.normal_(std=0.05)


# --- what is trained


def wanted_names(encoder, trained):
    names = {name for name, _ in encoder.named_parameters()}
    return {
        "head": set(), "all": names, "projectors": {name for name in names if name.startswith("projectors.") and ".l8." not in name},
        "lora": {name for name in names if name.endswith((".weight.0.up", ".weight.0.down"))},
    }[trained]  # fmt: skip


@pytest.mark.parametrize("target", [COVER, KIND], ids=["pixels", "tiles"])
@pytest.mark.parametrize("trained", TRAINED)
def test_gradients_reach_exactly_what_is_trained(trained, target):
    objective = make_tuning(trained, target)
    encoder, head = objective.predictor.encoder, objective.predictor.head
    if trained == "lora":
        randomise_additions(encoder)  # else those below have no gradient yet
    loss_of(objective).backward()
    wanted = wanted_names(encoder, trained)
    assert trainable(encoder) == wanted
    assert trained == "head" or wanted
    with_gradient = {name for name, p in encoder.named_parameters() if p.grad is not None}
    assert with_gradient == {name for name in wanted if not name.startswith("projectors.l8.")}
    assert all(p.grad.isfinite().all() for _, p in encoder.named_parameters() if p.grad is not None)
    assert all(p.grad.abs().sum() > 0 for p in head.parameters())


@pytest.mark.parametrize(("trained", "frozen"), [
    ("head", {"projectors", "spatial", "fusion"}), ("lora", {"projectors", "spatial", "fusion"}),
    ("projectors", {"spatial", "fusion"}), ("all", set()),
])  # fmt: skip
def test_what_is_not_trained_stays_in_eval_mode(trained, frozen):
    objective = make_tuning(trained).eval().train()
    for name in ("projectors", "spatial", "fusion"):
        modes = {module.training for module in objective.predictor.encoder.get_submodule(name).modules()}
        assert modes == {name not in frozen}
    assert objective.predictor.head.training
    assert not any(module.training for module in objective.eval().modules())


def test_with_a_frozen_encoder_nothing_is_drawn():
    for trained in ("head", "lora"):
        objective = make_tuning(trained)
        assert loss_of(objective).item() == loss_of(objective).item()
    objective = make_tuning("all")
    assert loss_of(objective).item() != loss_of(objective).item(), "dropout"


def test_low_rank_additions_are_made_to_every_matrix_of_the_transformers_and_no_other():
    encoder = meadow_encoder(depth=DEPTH)
    plain = {
        name for part in ("spatial", "fusion") for name, layer in encoder.named_modules()
        if name.startswith(part) and isinstance(layer, nn.Linear)
    }  # fmt: skip
    adapt(encoder, "lora", rank=3)
    adapted = {name.split(".parametrizations")[0] for name in trainable(encoder)}
    assert adapted == plain
    assert len(plain) == 4 * DEPTH * 2 + 5
    sizes = {tuple(p.shape) for p in encoder.parameters() if p.requires_grad}
    assert {min(size) for size in sizes} == {3}


def test_an_unknown_part_is_refused():
    with pytest.raises(UnknownNameError, match="unknown part to train 'projector'; closest: projectors"):
        adapt(meadow_encoder(), "projector")


# --- low-rank additions


def test_low_rank_additions_begin_as_the_same_function():
    encoder, batch = meadow_encoder(), meadow_batch()
    with torch.inference_mode():
        before = encoder.encode(batch, 20.0)
    adapt(encoder, "lora")
    with torch.inference_mode():
        assert torch.equal(before.patch, encoder.encode(batch, 20.0).patch)


def test_the_merged_encoder_is_an_ordinary_one_with_the_same_outputs():
    encoder, batch = meadow_encoder(), meadow_batch()
    plain, before = meadow_encoder(), encoder.encode(batch, 20.0).patch
    adapt(encoder, "lora", rank=4)
    randomise_additions(encoder)
    with torch.no_grad():
        adapted, one = encoder.encode(batch, 20.0).patch, merged(encoder)
        assert not torch.allclose(adapted, before, atol=1e-3)
        assert torch.allclose(one.encode(batch, 20.0).patch, adapted, rtol=0, atol=1e-6)
    assert set(one.published_state_dict()) == set(plain.published_state_dict())
    assert (one.config, one.normaliser, one.provenance) == (plain.config, plain.normaliser, plain.provenance)
    assert merged(one) is one
    assert not one.training
    other = meadow_encoder()
    other.load_state_dict(one.state_dict())
    assert torch.equal(other.encode(batch, 20.0).patch, one.encode(batch, 20.0).patch)


def test_merging_leaves_the_encoder_in_training_as_it_is():
    """The engine merges at every checkpoint."""
    objective = make_tuning("lora")
    encoder = objective.predictor.encoder
    randomise_additions(encoder)
    before, names = loss_of(objective).item(), list(objective.state_dict())
    copy = objective.encoder()
    stored = {name: tensor.clone() for name, tensor in copy.state_dict().items()}
    assert loss_of(objective).item() == before
    assert list(objective.state_dict()) == names
    loss_of(objective).backward()
    assert trainable(encoder) == wanted_names(encoder, "lora")
    randomise(encoder)
    assert all(torch.equal(tensor, stored[name]) for name, tensor in copy.state_dict().items()), "memory is shared"
    assert not torch.equal(objective.encoder().state_dict()["fusion.blocks.0.mlp.fc1.weight"],
                           stored["fusion.blocks.0.mlp.fc1.weight"])  # fmt: skip


# --- learning rates by depth


def test_learning_rates_rise_from_the_projectors_to_the_pooling():
    decay, encoder = 0.5, meadow_encoder(depth=DEPTH)
    adapt(encoder, "lora")
    order = ["projectors.", *(f"{part}.blocks.{n}." for part in ("spatial", "fusion") for n in range(DEPTH))]
    wanted = {prefix: decay ** (2 * DEPTH + 1 - level) for level, prefix in enumerate([*order, "fusion.pooling."])}
    covered = set()
    for name, _ in encoder.named_parameters():
        found = depth_scale(name, DEPTH, decay)
        for prefix, scale in wanted.items():
            if name.startswith(prefix):
                covered.add(prefix)
                assert found == pytest.approx(scale), name
        assert wanted["projectors."] <= found <= 1, name
    assert covered == set(wanted)
    assert depth_scale("fusion.pooling.mlp.fc1.weight", DEPTH, decay) == 1


def test_the_head_learns_at_the_full_rate_and_no_decay_changes_nothing():
    decayed, plain = make_tuning("all", layer_decay=0.5), make_tuning("all")
    full = ("head.", "encoder.fusion.pooling.", "encoder.fusion.tile_token")
    for name, _ in decayed.named_parameters():
        is_full = name.removeprefix("predictor.").startswith(full)
        assert (decayed.learning_rate_scale(name) == 1) == is_full
        assert plain.learning_rate_scale(name) == 1


@pytest.mark.parametrize(("asked", "found"), [(None, {"s2": 0.0, "l8": 0.2}), (0.0, {"s2": 0.0, "l8": 0.0}),
                                              (0.3, {"s2": 0.3, "l8": 0.3})])  # fmt: skip
def test_dropout_of_pixels_is_that_of_the_weights_unless_one_is_asked_for(asked, found):
    """That of the temporal attention stays."""
    projectors = make_tuning("all", pixel_dropout_prob=asked).predictor.encoder.projectors
    for key, prob in found.items():
        layers = [layer for layer in projectors[key].modules() if isinstance(layer, torch.nn.Dropout)]
        others = [layer.p for layer in layers if layer is not projectors[key].pooling.dropout]
        assert others == [prob] * 6
        assert projectors[key].pooling.dropout.p == 0.1


def test_a_new_projector_learns_at_the_full_rate_and_one_that_is_known_at_that_of_its_place():
    tuned = make_tuning("all", layer_decay=0.5, new=["spot"])
    names = [name for name, _ in tuned.named_parameters() if name.startswith("predictor.encoder.projectors.")]
    scales = {name.split(".")[3]: tuned.learning_rate_scale(name) for name in names}
    assert scales["spot"] == 1
    assert all(scale == pytest.approx(0.5 ** (2 * DEPTH + 1)) for key, scale in scales.items() if key != "spot")
    assert len(scales) > 1


# --- the objective


@pytest.mark.parametrize("size", [10.0, 20.0])
def test_the_loss_is_the_tasks_at_the_patch_size_that_was_drawn(size):
    objective, batch = make_tuning("head"), meadow_batch()
    predictor = objective.predictor
    outputs = predictor.head(predictor.encoder.encode(batch, size, dense="s2"))
    wanted = nn.functional.cross_entropy(outputs.reshape(-1, 26), batch.targets["cover"].flatten())
    assert loss_of(objective, size, batch).item() == pytest.approx(wanted.item(), rel=1e-6)


def test_places_nobody_saw_make_no_nan_gradient_anywhere():
    objective, batch = make_tuning("all"), meadow_batch()
    valid = batch.observations["s2"].valid.clone()
    valid[0, ..., :3, 1:] = False
    gaps = {**batch.observations, "s2": replace(batch.observations["s2"], valid=valid)}
    loss = loss_of(objective, batch=replace(batch, observations=gaps))
    loss.backward()
    assert loss.isfinite()
    assert all(p.grad.isfinite().all() for p in objective.parameters() if p.grad is not None)


@pytest.mark.parametrize("trained", TRAINED)
def test_a_small_step_along_the_gradient_lowers_the_loss(trained):
    objective = make_tuning(trained, KIND).eval()  # without dropout
    randomise_additions(objective.predictor.encoder)
    loss = loss_of(objective)
    loss.backward()
    with torch.no_grad():
        for parameter in objective.parameters():
            if parameter.grad is not None:
                parameter -= 1e-4 * parameter.grad
        assert loss_of(objective) < loss


@pytest.mark.parametrize("trained", TRAINED)
def test_what_is_left_answers_as_what_was_trained_and_survives_its_file(trained, tmp_path):
    objective, batch = make_tuning(trained), meadow_batch()
    randomise_additions(objective.predictor.encoder)
    objective.eval()
    with torch.no_grad():
        outputs = objective.predictor(batch)
    done = objective.finished()
    found = done.predict(batch).outputs
    assert torch.allclose(found, outputs, rtol=0, atol=1e-5)
    assert (done.view, done.task) == (objective.predictor.view, objective.predictor.task)
    assert not any(module.training for module in done.modules())
    done.save(tmp_path / PREDICTOR_FILE)
    assert torch.equal(load_task(tmp_path).predict(batch).outputs, found)


# --- scores on held-out tiles


def test_scores_of_tiles_do_not_depend_on_the_batch_size_and_restore_every_mode():
    objective = make_tuning("head")
    modes = [module.training for module in objective.modules()]
    found = {size: score(objective.predictor, Meadow(5), size) for size in (1, 2, 5)}
    assert [module.training for module in objective.modules()] == modes
    batch = meadow_batch(5)
    right = objective.predictor.predict(batch).answer == batch.targets["cover"]
    for one in found.values():
        assert one.figures["accuracy"] == pytest.approx(right.float().mean().item())
        assert one.num_tiles == 5


def test_shares_of_the_tiles_make_up_all_of_them():
    predictor, done = make_tuning("head", KIND).predictor, []
    parts = [score(predictor, Meadow(5), 2, share=(n, 2), advance=done.append) for n in range(2)]
    assert [part.num_tiles for part in parts] == [3, 2]
    whole = score(predictor, Meadow(5)).confusion
    assert (parts[0].confusion + parts[1].confusion).tolist() == whole.tolist()
    assert sum(done) == 5


def test_scores_and_losses_do_not_depend_on_which_process_reads_the_tiles():
    predictor, losses, far_losses = make_tuning("head", KIND).predictor, [], []
    here = score(predictor, Meadow(5), 2, losses=losses)
    there = score(predictor, FarMeadow(5), 2, losses=far_losses, num_workers=2)
    assert (there.confusion.tolist(), far_losses) == (here.confusion.tolist(), losses)
    monitor = Scoring(every_steps=1, tiles=Meadow(5), batch_size=2)
    far_monitor = replace(monitor, tiles=FarMeadow(5), num_workers=2)
    objective = make_tuning("head", KIND)
    assert far_monitor(objective, 0) == monitor(objective, 0)


def test_scoring_tells_loss_and_scores_and_no_loss_where_there_is_no_tile():
    objective = make_tuning("head", KIND)
    found = Scoring(every_steps=1, tiles=Meadow(4), batch_size=2)(objective, 0)
    assert found["f1_macro"] == score(objective.predictor, Meadow(4)).figures["f1_macro"]
    with torch.no_grad():
        losses = []
        for first in (0, 2):
            batch = meadow_batch(2, first)
            losses.append(objective.predictor.task.loss(objective.predictor(batch), batch.targets["kind"]).item())
    assert found["loss"] == pytest.approx(sum(losses) / 2, rel=1e-5)
    with pytest.warns(UserWarning, match="before the ``update``"):
        assert math.isnan(Scoring(every_steps=1, tiles=Meadow(0))(objective, 0)["loss"])


def test_the_loss_of_weighted_classes_does_not_depend_on_the_batch_size():
    objective = make_tuning("head", KIND)
    objective.predictor.task = replace(objective.predictor.task, class_weights=(0.1, 1.0, 9.0))
    found = [Scoring(every_steps=1, tiles=Meadow(5), batch_size=size)(objective, 0)["loss"] for size in (1, 2, 5)]
    assert found == pytest.approx([found[-1]] * 3, rel=1e-5)


def test_a_batch_without_the_dense_modality_is_refused_in_training():
    batch = meadow_batch()
    without = replace(batch, observations={"modis": batch.observations["modis"]})
    with pytest.raises(InputError, match="expected the modality s2"):
        loss_of(make_tuning("head"), batch=without)
