"""Faults that a training survives without a sound: the wrong flag, the wrong place, a term that is not there."""

from dataclasses import replace

import pytest
import torch

from anysat.model.steps import ShownPatches
from anysat.pretrain.config import MaskingConfig
from anysat.pretrain.losses import contrast_loss
from test_pretrain_objective import changed_pixels, generator, make_draw, make_objective


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
