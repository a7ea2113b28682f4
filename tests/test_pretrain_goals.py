"""What is predicted and contrasted once the common part is gone, the context's own patches, and how weights begin."""

import pytest
import torch
from torch import nn

from anysat.model.config import ModelConfig
from anysat.model.encoder import AnySat
from anysat.model.first_weights import init_isometric
from anysat.pretrain.config import MaskingConfig
from anysat.pretrain.losses import centred, prediction_loss, unit_spread
from test_pretrain_objective import GOALS, generator, make_batch, make_draw, make_objective, unit_statistics


def drawn(*shape, seed=0):
    return torch.randn(*shape, generator=generator(seed))


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
    assert both["loss"].item() == pytest.approx(sum(both[n].item() for n in ("predict", "complete", "contrast")))


def test_a_context_that_hides_nothing_is_completed_from_its_own_places():
    """The targets of `complete` are the patches shown: another value under a hidden patch changes nothing of it."""
    objective = make_objective("projection", MaskingConfig(hide_modalities_frac=0.0, keep_dates_frac=1.0),
                               predict_weight=0.0, contrast_weight=0.0)  # fmt: skip
    from test_pretrain_objective import changed_pixels, context_view

    draw = make_draw(("s2", "s1"), 10.0)
    masks, _, _, _, grid = context_view(objective, draw)
    other = changed_pixels(draw, ~masks.context, grid.num_cols)
    assert objective(draw, generator())["loss"].item() == objective(other, generator())["loss"].item()


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


def beginnings(seed=0, dim=128):
    made = {}
    for name in ("published", "isometric"):
        torch.manual_seed(seed)
        made[name] = AnySat(ModelConfig(dim=dim, depth=2, num_heads=4, subpatch_order="raster")).eval()
    init_isometric(made["isometric"])
    return made


def apart(tokens):
    """Share of the mean square of tokens (token dim) that tells them apart."""
    return ((tokens - tokens.mean(0)).square().sum() / tokens.square().sum()).item()


def test_isometric_projectors_keep_pixels_apart():
    shares = {name: apart(model.projectors["s1"].pixel_mlp(drawn(500, 3))) for name, model in beginnings().items()}
    assert shares["isometric"] > 1.5 * shares["published"]


def test_isometric_weights_keep_lengths():
    model = beginnings(dim=64)["isometric"]
    weight = next(layer.weight for layer in model.projectors["s2"].out_mlp if isinstance(layer, nn.Linear))
    assert torch.allclose(weight @ weight.T, torch.eye(64), atol=1e-5)
    qkv = model.spatial.blocks[0].attention.qkv
    assert qkv.weight.std().item() == pytest.approx(64**-0.5, rel=0.05)


def test_fused_tokens_begin_with_what_their_own_patch_holds():
    """Another value in one patch moves the fused token of that patch most, which the published beginning does not."""
    moved = {}
    for name, model in beginnings().items():
        model.normaliser = unit_statistics()
        inputs, _ = model.prepare(make_batch(("s2",), batch=1), 10.0)
        seen = model.see(inputs, 10.0)
        other = seen["s2"].patch.clone()
        other[0, 2, 3] = drawn(128)
        fused = [model.fuse({"s2": seen["s2"]._replace(patch=p)}, (6, 6), 10.0)[1] for p in (seen["s2"].patch, other)]
        change = (fused[0] - fused[1])[0].square().sum(-1)
        moved[name] = (change[15] / change.mean()).item()
    assert moved["isometric"] > 1.7
    assert moved["published"] < 1.2


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
    options = ModelOptions(dim=64, depth=1, num_heads=2, modalities=["s1", "s2-own"], modality_files=[str(file)])
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
    from anysat.workflows.pretrain_run import make_objective as made
    from test_pretrain_objective import unit_statistics

    options = ModelOptions(dim=64, depth=1, num_heads=2, modalities=["s2"], rpe_heads="each")
    save(AnySat(replace(options.config(), rpe_heads="first")), tmp_path / "w.safetensors")
    with pytest.raises(InputError, match="the same rpe_heads"):
        made(PretrainConfig(model=options, weights=str(tmp_path / "w.safetensors")), unit_statistics())
