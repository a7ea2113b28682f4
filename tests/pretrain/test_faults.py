"""Faults that a training survives without a sound: the wrong flag, the wrong place, a term that is not there."""

from dataclasses import replace

import pytest
import torch

from anysat.model.fusion import Hidden
from anysat.model.steps import ShownPatches
from anysat.pretrain.masking import draw_masks
from anysat.workflows.pretrain.watch import _pairs
from builders import random_model
from objective_builders import generator, make_draw, make_objective, make_tiles, unit_statistics


def seen_of(objective, keys, side_m=60.0, patch_size_m=30.0):
    inputs, grid = objective.student.prepare(make_draw(keys, patch_size_m, side_m=side_m).batch, patch_size_m)
    return objective.see(inputs, grid), grid


def flags(seed, rows=2):
    """(batch row col), some False, other ones in each tile."""
    return torch.rand(2, rows, rows, generator=generator(seed)) > 0.4


def test_a_token_s_flag_is_that_of_its_own_patch():
    objective = make_objective()
    seen, _ = seen_of(objective, ("s2", "s1", "modis"), 120.0)
    marked = {key: seen[key]._replace(patch_valid=flags(number, 4)) for number, key in enumerate(("s2", "s1"))}
    indices = torch.tensor([[3, 7, 12], [0, 5, 6]])
    caught = []
    hook = objective.student.fusion.register_forward_pre_hook(lambda _, given: caught.append(given[4]))
    objective.student.fuse(
        {**marked, "modis": seen["modis"]}, (4, 4), 30.0,
        ShownPatches(indices, torch.ones_like(indices, dtype=torch.bool)),
    )  # fmt: skip
    hook.remove()
    expected = [part.patch_valid.flatten(1).gather(1, indices) for part in marked.values()]
    assert torch.equal(caught[0][:, -6:], torch.cat(expected, 1))


@pytest.mark.parametrize("patch_size_m", [10.0, 30.0])
def test_masked_pixels_take_their_own_patch_out_of_the_contrast(patch_size_m):
    """B5: the flag of a patch is that of its pixels, at every patch size, and what they hold does not matter."""
    objective, draw = make_objective(), make_draw(("s2", "s1"), patch_size_m)
    s2, side = draw.batch.observations["s2"], round(patch_size_m / 10)
    where = torch.zeros(2, 6, 6, dtype=torch.bool)
    where[1, side : 2 * side, :side] = True  # of the second tile, second row, first patch
    found = []
    for filler in (0.0, 1e4):
        pixels = where[:, None, None].expand_as(s2.values)
        values = torch.where(pixels, torch.full_like(s2.values, filler), s2.values)
        masked = replace(s2, values=values, valid=s2.valid & ~pixels)
        batch = replace(draw.batch, observations={**draw.batch.observations, "s2": masked})
        inputs, grid = objective.student.prepare(batch, patch_size_m)
        seen = objective.see(inputs, grid)
        flags = seen["s2"].patch_valid
        assert torch.equal((~flags).nonzero(), torch.tensor([[1, 1, 0]]))
        assert seen["s1"].patch_valid is None or bool(seen["s1"].patch_valid.all())
        found.append(objective.contrast(seen).item())
    assert found[0] == found[1]


def test_negatives_of_other_processes_are_gathered_where_something_learns_alone(monkeypatch):
    """In validation processes look at different numbers of batches: who gathers would wait for ever."""
    asked = []
    monkeypatch.setattr("anysat.pretrain.objective.from_other_ranks", lambda *_: asked.append(1))
    objective = make_objective(gather_negatives=True)
    seen, _ = seen_of(objective, ("s2", "s1"))
    objective.contrast(seen)
    assert asked == []
    objective.train().contrast(seen)
    assert asked == [1]


@pytest.mark.parametrize("is_centred", [False, True])
def test_the_contrast_looks_at_valid_tokens_of_each_tile(is_centred):
    """B2 in the objective: what is invalid may hold anything, and what is valid may not."""
    objective = make_objective(centred=is_centred)
    seen, _ = seen_of(objective, ("s2", "s1", "l7"))
    valid = {key: flags(number) for number, key in enumerate(seen)}
    found = []
    for where in (None, "invalid", "valid"):
        changed = {}
        for key, part in seen.items():
            at = torch.zeros_like(valid[key]) if where is None else valid[key] == (where == "valid")
            other = torch.randn(part.patch.shape, generator=generator(5))
            changed[key] = part._replace(patch=torch.where(at[..., None], other, part.patch), patch_valid=valid[key])
        found.append(objective.contrast(changed).item())
    assert found[1] == pytest.approx(found[0], rel=1e-6)
    assert found[2] != pytest.approx(found[0], rel=1e-3)


def test_hidden_tokens_are_the_stand_in_without_a_place():
    objective = make_objective()
    seen, _ = seen_of(objective, ("s2", "s1"))
    indices, where = torch.arange(4).expand(2, -1), torch.zeros(2, 2, 4, dtype=torch.bool)
    where[:, 1] = True
    caught = []
    hook = objective.student.fusion.blocks[0].register_forward_pre_hook(lambda _, given: caught.append(given[0]))
    shown = ShownPatches(indices, torch.ones_like(indices, dtype=torch.bool), Hidden(where, objective.hidden_token))
    objective.student.fuse(seen, (2, 2), 30.0, shown)
    hook.remove()
    assert torch.equal(caught[0][:, -4:], objective.hidden_token.expand(2, 4, -1))


def shown_of(objective, seen, grid, seed=0):
    masks = draw_masks(grid.num_rows, grid.num_cols, 2, objective.masking, generator(seed))
    return masks, objective.show(seen, grid, masks, generator(seed))


def test_half_of_the_tokens_that_can_be_are_hidden_and_a_valid_one_stays():
    objective = make_objective()
    seen, grid = seen_of(objective, ("s2", "s1"), 120.0, 20.0)
    seen["s1"] = seen["s1"]._replace(patch_valid=flags(3, 6))
    for seed in range(5):
        _, shown = shown_of(objective, seen, grid, seed)
        saw = torch.stack([torch.ones(2, 36, dtype=torch.bool), seen["s1"].patch_valid.flatten(1)], 1)
        saw = saw.gather(2, shown.indices[:, None].expand(-1, 2, -1)) & shown.valid[:, None]
        hidden = shown.hidden.where
        others = saw.sum((1, 2)) - saw.any(1).sum(1)
        assert torch.equal(hidden.sum((1, 2)), others - others // 2)
        assert not (hidden & ~saw).any()
        assert torch.equal((saw & ~hidden).any(1), shown.valid)


def test_a_tile_of_one_patch_hides_some_of_its_modalities_and_predicts_the_patch():
    objective = make_objective()
    seen, grid = seen_of(objective, ("s2", "s1", "l7"), 30.0, 30.0)
    kept = set()
    for seed in range(12):
        masks, shown = shown_of(objective, seen, grid, seed)
        assert shown.indices.tolist() == masks.targets[0].tolist() == [[0], [0]]
        hidden = shown.hidden.where[..., 0]
        assert hidden.sum(1).tolist() == [1, 1]  # of the two besides the one that stays, half
        kept |= {tuple(one) for one in (~hidden).tolist()}
    assert len(kept) == 3


def test_every_patch_of_the_context_is_shown_in_every_tile():
    """Cut to the tile with the fewest, the others would lose their last rows."""
    objective = make_objective()
    seen, grid = seen_of(objective, ("s2", "s1"), 120.0, 20.0)
    for seed in range(5):
        masks, shown = shown_of(objective, seen, grid, seed)
        found = torch.zeros(2, 36, dtype=torch.bool)
        for tile in range(2):
            found[tile, shown.indices[tile][shown.valid[tile]]] = True
        assert torch.equal(found, masks.context)


def test_the_teacher_sees_every_date_and_the_student_half_of_them():
    objective, taken = make_objective(), []
    for name, encoder in (("student", objective.student), ("teacher", objective.goal.encoder)):
        encoder.projectors["s2"].register_forward_pre_hook(
            lambda _, given, name=name: taken.append((name, given[0].shape[2]))
        )
    objective(make_draw(("s2", "s1"), 30.0, dates=6), generator())
    assert set(taken) == {("student", 3), ("teacher", 6)}
    assert taken[0] == ("teacher", 6), "the teacher comes first, before activations of the student are kept"


@pytest.mark.parametrize("keys", [("s2", "s1", "modis", "l7"), ("modis", "s2", "s1", "l7")])
def test_a_modality_that_covers_the_tile_is_not_looked_for_in_another(keys):
    """B6: MODIS has one token for all patches, which no patch could be told by."""
    encoder = random_model()
    encoder.normaliser = unit_statistics()
    tiles = make_tiles(keys, 60.0)
    found = _pairs(encoder, tiles, 30.0)
    alone = _pairs(
        encoder,
        [replace(t, observations={k: o for k, o in t.observations.items() if k != "modis"}) for t in tiles],
        30.0,
    )
    assert [(one.shape, other.shape) for one, other in found] == [((8, 128), (8, 128))] * 2
    for pair, without in zip(found, alone, strict=True):
        assert all(torch.equal(one, other) for one, other in zip(pair, without, strict=True))
