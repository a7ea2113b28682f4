"""What is predicted and contrasted once the common part is gone, the context's own patches, and how weights begin."""

import pytest
import torch

from anysat.model.encoder import AnySat
from anysat.model.steps import ShownPatches
from anysat.pretrain.losses import centred, prediction_loss, unit_spread
from objective_builders import GOALS, drawn, generator, make_batch, make_draw, make_objective, unit_statistics


def test_centred_tokens_have_no_mean_among_the_valid_ones():
    tokens, valid = drawn(3, 2, 5, 8) + 7, torch.rand(3, 2, 5, generator=generator(1)) > 0.3
    tokens[~valid] = float("nan")
    found = centred(tokens, valid, (0, 2))
    for modality in range(2):
        assert found[:, modality][valid[:, modality]].mean(0).abs().max() < 1e-5


def test_features_of_unit_spread_have_mean_0_and_deviation_1_among_the_valid_ones():
    tokens, valid = 3 * drawn(50, 4, 8) + 7, torch.rand(50, 4, generator=generator(1)) > 0.3
    tokens[~valid] = float("nan")
    found = unit_spread(tokens, valid)[valid]
    assert found.mean(0).abs().max() < 1e-4
    assert (found.std(0, correction=0) - 1).abs().max() < 1e-3


def test_what_all_tokens_of_a_modality_share_does_not_touch_the_centred_contrast():
    objective, apart = make_objective(centred=True), {}
    inputs, grid = objective.student.prepare(make_batch(("s2", "s1"), batch=3), 20.0)
    seen = objective.see(inputs, grid)
    shifted = {key: part._replace(patch=part.patch + drawn(128, seed=n)) for n, (key, part) in enumerate(seen.items())}
    for name, tokens in (("as it is", seen), ("shifted", shifted)):
        apart[name] = objective.contrast(tokens).item()
    assert apart["shifted"] == pytest.approx(apart["as it is"], rel=1e-4)


def test_the_published_contrast_sees_what_is_shared():
    objective = make_objective(centred=False)
    inputs, grid = objective.student.prepare(make_batch(("s2", "s1"), batch=3), 20.0)
    seen = objective.see(inputs, grid)
    shifted = {**seen, "s1": seen["s1"]._replace(patch=seen["s1"].patch + 5 * drawn(128))}
    assert objective.contrast(shifted).item() > objective.contrast(seen).item() + 0.5


def test_the_teachers_features_are_normalised_over_channels_then_over_the_batch():
    plain, scaled = make_objective(centred=False), make_objective(centred=True)
    inputs, grid = plain.student.prepare(make_batch(("s2", "s1"), batch=3), 20.0)
    tokens = plain.goal(inputs, grid)["patch"].tokens
    assert tokens.mean(-1).abs().max() < 1e-5
    assert (tokens.std(-1, correction=0) - 1).abs().max() < 1e-3
    found = scaled.goal(inputs, grid)["patch"].tokens
    assert torch.allclose(found, unit_spread(tokens, None), atol=1e-5)


@pytest.mark.parametrize("goal", GOALS)
def test_the_patches_of_the_context_are_predicted_too_unless_their_weight_is_0(goal):
    draw = make_draw(("s2", "s1"), 10.0)
    both, without = (make_objective(goal, complete_weight=weight)(draw, generator()) for weight in (1.0, 0.0))
    assert "complete" not in without
    assert both["predict"].item() == pytest.approx(without["predict"].item())
    assert both["loss"].item() == pytest.approx(sum(both[name].item() for name in both if name != "loss"))


@pytest.mark.parametrize("goal", GOALS)
def test_the_context_is_completed_to_what_its_own_patches_hold(goal):
    """Another target at a hidden patch changes nothing of `complete`; one at a patch that is shown does."""
    objective = make_objective(goal)
    indices = torch.tensor([[4, 1, 7], [0, 8, 2]])
    shown = ShownPatches(indices, torch.tensor([[True, True, True], [True, True, False]]))
    inputs, grid = objective.student.prepare(make_batch(("s2", "s1"), batch=2), 10.0)
    wanted, said = objective.goal(inputs, grid), drawn(2, 3, 128)

    def told(tile, patch):
        moved = {key: target._replace(tokens=target.tokens.clone()) for key, target in wanted.items()}
        for target in moved.values():
            target.tokens[tile, patch] = drawn(128, seed=5)
        return objective.complete_loss(said, shown, moved).item()

    before = objective.complete_loss(said, shown, wanted).item()
    assert all(told(tile, patch) == before for tile, patch in ((0, 0), (0, 8), (1, 1), (1, 2)))
    assert all(told(tile, patch) != before for tile, patch in ((0, 4), (0, 1), (0, 7), (1, 0), (1, 8)))


def test_frozen_projections_see_every_number_at_the_same_scale():
    """A description whose season is a thousandth of its mean is projected as one of equal parts."""
    objective = make_objective("projection")
    batch = make_batch(("s1",), batch=4)
    inputs, grid = objective.student.prepare(batch, 10.0)
    found, seen = objective.goal._describe(objective.student.config.modality("s1"), inputs["s1"], grid)
    assert bool(seen.all())
    spread = found.std(0, correction=0)
    assert ((spread - 1).abs() < 1e-2).logical_or(spread < 1e-2).all()  # one sub-patch deviates from nothing
    assert (spread > 0.5).sum() == found.shape[1] / 2


def test_projections_can_be_regressed():
    objective, draw = make_objective("projection", projection_loss="regress"), make_draw(("s2", "s1"), 20.0)
    inputs, grid = objective.student.prepare(draw.batch, 20.0)
    predicted, counts = drawn(1, 2, 9, 128), torch.ones(1, 2, 9, dtype=torch.bool)
    index = torch.arange(9).expand(1, 2, 9)
    wanted = {key: target.at(index) for key, target in objective.goal(inputs, grid).items()}
    terms = []
    for key, target in wanted.items():
        scaled = unit_spread(target.tokens.flatten(0, 2), None).view_as(target.tokens)
        terms.append(prediction_loss(objective.goal.heads[key](predicted), scaled, counts).item())
    assert objective.goal.loss(predicted, wanted, counts).item() == pytest.approx(sum(terms) / 2, rel=1e-5)


def test_a_modality_from_a_file_of_ones_own_gets_a_projector(tmp_path):
    from dataclasses import asdict, replace

    import yaml

    from anysat.errors import UnknownNameError
    from anysat.modalities import MODALITIES
    from anysat.workflows.pretrain import ModelOptions

    own = replace(MODALITIES["s2"], key="s2-own")
    file = tmp_path / "own.yaml"
    record = asdict(own) | {"bands": [asdict(band) for band in own.bands]}
    file.write_text(yaml.safe_dump(record))
    options = ModelOptions(dim=64, depth=1, num_heads=2, modalities=["s1", "s2-own"], sensors=[str(file)])
    assert "s2-own" in AnySat(options.config()).projectors
    with pytest.raises(UnknownNameError, match="s2-own"):
        ModelOptions(modalities=["s2-own"])


def test_context_pixels_that_lie_in_no_patch_give_no_target_and_no_error():
    """MODIS alone, four pixels in one patch: nothing to project, so nothing to tell apart."""
    objective = make_objective("projection")
    found = objective(make_draw(("modis",), 500.0, side_m=500.0), generator())
    assert found["predict"].item() == 0.0


def test_weights_of_another_habit_than_configured_are_refused(tmp_path):
    from dataclasses import replace

    from anysat.errors import InputError
    from anysat.model.checkpoint import save
    from anysat.workflows.pretrain import ModelOptions, PretrainConfig
    from anysat.workflows.pretrain.objective import make_objective as made

    options = ModelOptions(dim=64, depth=1, num_heads=2, modalities=["s2"], rpe_heads="each")
    save(AnySat(replace(options.config(), rpe_heads="first")), tmp_path / "w.safetensors")
    with pytest.raises(InputError, match="the same rpe_heads"):
        made(PretrainConfig(model=options, weights=str(tmp_path / "w.safetensors")), unit_statistics())
