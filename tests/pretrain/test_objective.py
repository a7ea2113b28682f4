"""The objective: nothing leaks, tokens and flags refer to the same patches, the teacher stays a teacher."""

import copy
from dataclasses import replace

import pytest
import torch

from anysat.data.loader import Draw
from anysat.errors import EmptyTileError, RecordError
from anysat.model import chunks, steps
from anysat.model.config import ModelConfig
from anysat.model.encoder import AnySat
from anysat.model.fusion import Hidden
from anysat.model.positions import raster_coordinates, sincos_code
from anysat.model.steps import ShownPatches
from anysat.pretrain.config import MaskingConfig, ObjectiveConfig
from anysat.pretrain.masking import draw_masks
from anysat.pretrain.objective import Pretraining
from objective_builders import GOALS, generator, make_batch, make_draw, make_objective, with_nothing


def changed_pixels(draw, patches, grid_cols, seed=1):
    """The batch with other values under some patches (batch patch) of every modality that lies in patches."""
    noise, observations = torch.Generator().manual_seed(seed), {}
    rows = patches.shape[1] // grid_cols
    for key, seen in draw.batch.observations.items():
        if not seen.modality.covers_tile:
            side = seen.values.shape[-1] // grid_cols
            where = patches.view(-1, rows, grid_cols).repeat_interleave(side, 1).repeat_interleave(side, 2)
            where = where.view(len(where), *(1,) * (seen.values.ndim - 3), *where.shape[1:])
            other = torch.where(where, torch.randn(seen.values.shape, generator=noise), seen.values)
            seen = replace(seen, values=other)
        observations[key] = seen
    return replace(draw, batch=replace(draw.batch, observations=observations))


def context_view(objective, draw, seed=0):
    """Masks, the patches shown, and what the predictor is given."""
    drawn = generator(seed)
    inputs, grid = objective.student.prepare(draw.batch, draw.patch_size_m)
    masks = draw_masks(grid.num_rows, grid.num_cols, len(draw.batch), objective.masking, drawn)
    seen = objective.see(inputs, grid)
    shown = objective.show(seen, grid, masks, drawn)
    given = []
    hook = objective.predictor.register_forward_pre_hook(lambda _, inputs: given.extend(inputs))
    with torch.no_grad():
        predicted = objective.predict(objective.fuse(seen, shown, grid), shown, masks.targets, grid)
    hook.remove()
    return masks, shown, given, predicted, grid


@pytest.mark.parametrize(("keys", "side_m", "patch_size_m"), [
    (("aerial", "s2", "s1-asc"), 60.0, 10.0), (("aerial", "s2", "s1-asc"), 60.0, 20.0), (("s2", "s1"), 60.0, 30.0),
    (("s2", "s1", "l7", "alos", "modis"), 120.0, 30.0), (("spot", "s2"), 80.0, 40.0), (("s2", "l7"), 240.0, 60.0),
    (("s2", "s1"), 240.0, 80.0), (("s2", "s1"), 480.0, 160.0),
])  # fmt: skip
def test_pixels_under_the_targets_change_nothing_the_predictor_is_given(keys, side_m, patch_size_m):
    objective = make_objective()
    draw = make_draw(keys, patch_size_m, side_m=side_m)
    masks, _, given, predicted, grid = context_view(objective, draw)
    other = changed_pixels(draw, ~masks.context, grid.num_cols)
    _, _, given_other, predicted_other, _ = context_view(objective, other)
    for one, two in zip(given, given_other, strict=True):
        assert one is None or torch.equal(one, two)
    assert torch.equal(predicted, predicted_other)


def test_pixels_under_the_context_do_change_it():
    objective, draw = make_objective(), make_draw(("s2", "s1"), 20.0)
    masks, _, _, predicted, grid = context_view(objective, draw)
    _, _, _, other, _ = context_view(objective, changed_pixels(draw, masks.context, grid.num_cols))
    assert not torch.allclose(predicted, other)


def test_context_tokens_of_every_modality_are_those_of_the_same_patches():
    """B1: tokens marked with the number of their patch keep it through the gather, with MODIS and without."""
    for keys in (("s2", "s1", "l7"), ("s2", "s1", "l7", "modis")):
        objective = make_objective()
        draw = make_draw(keys, 30.0, side_m=120.0)
        inputs, grid = objective.student.prepare(draw.batch, 30.0)
        seen = objective.see(inputs, grid)
        number = torch.arange(16.0).view(1, 4, 4, 1)
        marked = {
            key: part._replace(patch=number.expand(2, -1, -1, 128) if key != "modis" else part.patch)
            for key, part in seen.items()
        }
        indices = torch.tensor([[3, 7, 12], [0, 5, 6]])
        caught = []
        hook = objective.student.fusion.register_forward_pre_hook(lambda _, given, kept=caught: kept.append(given[0]))
        objective.student.fuse(marked, (4, 4), 30.0, ShownPatches(indices, torch.ones_like(indices, dtype=torch.bool)))
        hook.remove()
        assert caught[0].shape == (2, 3, 3, 128)
        assert torch.equal(caught[0][..., 0], indices[:, None].expand(-1, 3, -1).float())


def test_showing_every_patch_is_the_plain_forward_pass():
    """B4 too: with MODIS the places of the queries are those of the patches."""
    objective = make_objective()
    for keys in (("s2", "s1"), ("s2", "l7", "modis")):
        inputs, grid = objective.student.prepare(make_batch(keys, 60.0), 30.0)
        seen = objective.see(inputs, grid)
        indices = torch.arange(4).expand(2, -1)
        shown = ShownPatches(indices, torch.ones_like(indices, dtype=torch.bool))
        for found, plain in zip(
            objective.student.fuse(seen, (2, 2), 30.0, shown), objective.student.fuse(seen, (2, 2), 30.0), strict=True
        ):
            assert torch.allclose(found, plain, atol=1e-5)


def test_a_tile_alone_and_beside_one_that_shows_more_patches_is_fused_the_same():
    objective = make_objective()
    inputs, grid = objective.student.prepare(make_batch(("s2", "s1"), 60.0), 20.0)
    seen = objective.see(inputs, grid)
    few = torch.tensor([[1, 4]])
    alone = {key: part._replace(patch=part.patch[:1]) for key, part in seen.items()}
    _, one = objective.student.fuse(alone, (3, 3), 20.0, ShownPatches(few, torch.ones_like(few, dtype=torch.bool)))
    both = torch.tensor([[1, 4, 0, 0], [2, 3, 5, 8]])
    valid = torch.tensor([[True, True, False, False], [True] * 4])
    _, two = objective.student.fuse(seen, (3, 3), 20.0, ShownPatches(both, valid))
    assert torch.allclose(one[0], two[0, :2], atol=1e-5)


def test_patches_are_predicted_at_their_true_places():
    """B3: the first patch has the code of row 0 and column 0, not none; the next one that of its own column."""
    objective, draw = make_objective(), make_draw(("s2", "s1"), 20.0)
    masks, shown, given, _, _ = context_view(objective, draw)
    code = sincos_code(raster_coordinates(3, 3), 2.0, 128)
    assert torch.equal(given[2], code[shown.indices])
    assert torch.equal(given[3], code[masks.targets])


def test_positions_are_seen_by_the_predictor():
    objective, draw = make_objective(), make_draw(("s2", "s1"), 20.0)
    _, _, given, _, _ = context_view(objective, draw)
    with torch.no_grad():
        found = objective.predictor(given[0], None, given[2], given[3])
        moved = objective.predictor(given[0], None, given[2], given[3].flip(2))
    assert torch.allclose(found.flip(2), moved, atol=1e-5)
    assert not torch.allclose(found, moved)


def test_hidden_tokens_carry_nothing_and_no_place():
    objective = make_objective()
    inputs, grid = objective.student.prepare(make_batch(("s2", "s1"), 60.0), 20.0)
    seen = objective.see(inputs, grid)
    indices = torch.arange(9).expand(2, -1)
    where = torch.zeros(2, 2, 9, dtype=torch.bool)
    where[:, 1] = True
    shown = ShownPatches(indices, torch.ones_like(indices, dtype=torch.bool), Hidden(where, objective.hidden_token))
    other = {**seen, "s1": seen["s1"]._replace(patch=torch.randn_like(seen["s1"].patch))}
    _, one = objective.student.fuse(seen, (3, 3), 20.0, shown)
    _, two = objective.student.fuse(other, (3, 3), 20.0, shown)
    assert torch.equal(one, two)


@pytest.mark.parametrize("goal", GOALS)
@pytest.mark.parametrize(("keys", "side_m", "patch_size_m"), [
    (("s2", "s1"), 10.0, 10.0), (("modis",), 250.0, 250.0), (("s2", "modis"), 10.0, 10.0), (("s2",), 20.0, 10.0),
    (("aerial", "s2", "s1-asc"), 20.0, 10.0), (("s2", "s1", "l7", "alos", "modis"), 30.0, 30.0),
])  # fmt: skip
def test_every_kind_of_tile_gives_a_finite_loss_and_gradient(keys, side_m, patch_size_m, goal):
    """B5, B8: no window is hard-coded; a single pixel, MODIS alone and MODIS beside others learn."""
    objective = make_objective(goal).train()
    found = objective(make_draw(keys, patch_size_m, side_m=side_m), generator())
    found["loss"].backward()
    assert all(torch.isfinite(part) for part in found.values())
    touched = [p.grad for p in objective.parameters() if p.grad is not None]
    assert all(torch.isfinite(grad).all() for grad in touched)
    assert any(grad.abs().max() > 0 for grad in touched)


def test_oblong_tiles_learn():
    objective = make_objective()
    draw = Draw(step=0, dataset="d", patch_size_m=10.0, batch=make_batch(("s2", "s1"), 20.0, width_m=60.0))
    assert torch.isfinite(objective(draw, generator())["loss"])


def test_a_single_pixel_is_predicted_from_half_its_dates():
    objective = make_objective(masking=MaskingConfig(), contrast_weight=0.0)
    draw = make_draw(("s2",), 10.0, side_m=10.0, dates=6)
    taken = []
    hook = objective.student.projectors["s2"].register_forward_pre_hook(
        lambda _, given: taken.append(given[0].shape[2])
    )
    objective(draw, generator())
    hook.remove()
    assert taken == [3]  # the student's; the teacher has its own projectors


def test_a_modality_that_is_not_in_the_step_gets_no_gradient():
    objective = make_objective()
    objective(make_draw(("s2", "s1"), 20.0), generator())["loss"].backward()
    assert all(p.grad is None for p in objective.student.projectors["aerial"].parameters())
    assert any(p.grad is not None for p in objective.student.projectors["s1"].parameters())


def test_the_teacher_drops_nothing_and_has_no_gradient():
    objective = make_objective().train()
    assert not objective.goal.encoder.training
    objective(make_draw(("s2", "s1"), 20.0), generator())["loss"].backward()
    assert all(p.grad is None for p in objective.goal.parameters())


def test_the_teacher_follows_the_student_in_a_line():
    objective = make_objective(momentum=0.9)
    with torch.no_grad():
        for parameter in objective.student.parameters():
            parameter.add_(1.0)
    before = objective.goal.encoder.fusion.tile_token.clone()
    objective.after_update(0, 10)
    assert torch.allclose(objective.goal.encoder.fusion.tile_token, before + 0.1, atol=1e-6)
    objective.after_update(5, 10)  # momentum 0.95
    assert torch.allclose(objective.goal.encoder.fusion.tile_token, before + 0.1 + 0.05 * 0.9, atol=1e-6)


def test_momentum_one_leaves_the_teacher_as_it_is():
    objective = make_objective(momentum=1.0)
    before = copy.deepcopy(objective.goal.encoder.state_dict())
    with torch.no_grad():
        for parameter in objective.student.parameters():
            parameter.add_(1.0)
    objective.after_update(3, 10)
    assert all(torch.equal(before[name], t) for name, t in objective.goal.encoder.state_dict().items())


@pytest.mark.parametrize("goal", GOALS)
def test_what_is_kept_is_an_encoder_that_embeds(goal):
    objective = make_objective(goal)
    found = objective.encoder().encode(make_batch(("s2", "s1")), 20.0)
    assert isinstance(objective.encoder(), AnySat)
    assert torch.isfinite(found.patch).all()


@pytest.mark.parametrize("goal", GOALS)
def test_the_same_generator_gives_the_same_loss_and_another_one_another(goal):
    objective, draw = make_objective(goal), make_draw(("s2", "s1"), 10.0)
    first, again, other = (objective(draw, generator(seed))["loss"].item() for seed in (0, 0, 1))
    assert first == again != other


def test_keeping_activations_or_not_gives_the_same_gradient():
    found = []
    for recompute in (False, True):
        objective = make_objective()
        objective.recompute = recompute
        torch.manual_seed(0)
        objective(make_draw(("aerial", "s2"), 20.0), generator())["loss"].backward()
        found.append({name: p.grad for name, p in objective.named_parameters() if p.grad is not None})
    assert found[0].keys() == found[1].keys()
    assert all(torch.allclose(found[0][name], found[1][name], atol=1e-5) for name in found[0])


def test_activations_are_computed_again_a_quarter_of_a_chunk_at_a_time(monkeypatch):
    rows = []

    def counted(part_of, part, **options):
        rows.append((part.stop - part.start) * 4)  # 4 sub-patches of 10 m in each patch of 20 m
        return part_of(part)

    monkeypatch.setattr(steps, "checkpoint", counted)
    monkeypatch.setattr(chunks, "LEAST_CHUNK", 8)
    monkeypatch.setattr("anysat.pretrain.objective.chunk_rows_on", lambda _: 64)
    objective = make_objective()
    objective.recompute = True
    objective(make_draw(("s2",), 20.0), generator())
    assert sum(rows) == 2 * 9 * 4
    assert max(rows) == 16
    with torch.no_grad():
        objective(make_draw(("s2",), 20.0), generator())
    assert sum(rows) == 2 * 9 * 4


@pytest.mark.parametrize("goal", GOALS)
def test_a_tile_that_saw_nothing_changes_no_other_and_no_gradient_is_nan(goal):
    draw = make_draw(("s2", "s1"), 20.0, batch=3)
    empty = replace(draw, batch=with_nothing(with_nothing(draw.batch, 1, "s2"), 1, "s1"))
    objective = make_objective(goal)
    found = objective(empty, generator())
    found["loss"].backward()
    assert torch.isfinite(found["loss"])
    assert all(torch.isfinite(p.grad).all() for p in objective.parameters() if p.grad is not None)
    poisoned = replace(empty.batch.observations["s2"], values=empty.batch.observations["s2"].values.clone())
    poisoned.values[1] = float("nan")
    again = replace(empty, batch=replace(empty.batch, observations={**empty.batch.observations, "s2": poisoned}))
    assert objective(again, generator())["loss"].item() == found["loss"].item()


@pytest.mark.parametrize("keys", [("s2",), ("s2", "s1"), ("s2", "modis")])
@pytest.mark.parametrize("goal", GOALS)
def test_a_batch_that_saw_nothing_teaches_nothing_and_ends_no_run(goal, keys, caplog):
    """Of one tile, say, which comes after hours, and again whenever the run is gone on with."""
    draw = make_draw(keys, 20.0, batch=1)
    batch = draw.batch
    for key in keys:
        batch = with_nothing(batch, 0, key)
    objective = make_objective(goal, dates_weight=1.0)
    found = objective(replace(draw, batch=batch), generator())
    assert "step 0 teaches nothing: no valid value in" in caplog.text
    found["loss"].backward()
    assert torch.isfinite(found["loss"])
    assert all(torch.isfinite(p.grad).all() for p in objective.parameters() if p.grad is not None)
    with pytest.raises(EmptyTileError):
        objective.student.prepare(batch, 20.0)


def test_projections_are_frozen_and_the_same_in_every_model():
    first, second = make_objective("projection"), make_objective("projection")
    batch = make_batch(("aerial", "s2"), 60.0)
    found = []
    for objective in (first, second):
        with torch.no_grad():
            for parameter in objective.student.parameters():
                parameter.add_(torch.randn_like(parameter))
        inputs, grid = objective.student.prepare(batch, 20.0)
        found.append(objective.goal(inputs, grid))
    assert set(found[0]) == {"aerial", "s2"}
    for key in found[0]:
        assert torch.equal(found[0][key].tokens, found[1][key].tokens)
        assert not found[0][key].tokens.requires_grad


def test_projections_do_not_depend_on_what_is_invalid():
    objective = make_objective("projection")
    batch = make_batch(("s2", "s1"), 60.0)
    seen = batch.observations["s2"]
    valid = torch.rand(seen.valid.shape, generator=generator()) > 0.3
    found = []
    for filled in (0.0, 7.0):
        values = torch.where(valid, seen.values, filled)
        changed = replace(batch, observations={**batch.observations, "s2": replace(seen, values=values, valid=valid)})
        inputs, grid = objective.student.prepare(changed, 20.0)
        found.append(objective.goal(inputs, grid)["s2"].tokens)
    assert torch.equal(*found)


def test_a_predictor_that_cannot_be_is_refused():
    with pytest.raises(RecordError, match="predictor_heads"):
        Pretraining(AnySat(ModelConfig(dim=64, depth=1, num_heads=2)), config=ObjectiveConfig(predictor_heads=7))
