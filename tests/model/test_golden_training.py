"""The published numbers of one training step, with the tokens and validity aligned (spec 7, B1 and B2)."""

import json

import numpy as np
import pytest
import torch
from torch import nn

from anysat.model.checkpoint import published_name
from anysat.model.config import ModelConfig
from anysat.model.encoder import AnySat
from anysat.model.fusion import Hidden
from anysat.model.inputs import read_published
from anysat.model.positions import raster_coordinates, sincos_code
from anysat.model.steps import ShownPatches
from anysat.patches import PatchGrid
from anysat.pretrain.config import ObjectiveConfig
from anysat.pretrain.losses import prediction_loss
from anysat.pretrain.objective import Pretraining
from builders import GOLDEN, golden_input, golden_weight

CONTENT = json.loads((GOLDEN / "training.json").read_text())
CASES = CONTENT["jepa"]
NUMBERS = np.load(GOLDEN / "training.npz")
BOUND = {"rtol": 1e-4, "atol": 1e-6}
_PREDICTOR = {
    "embed.": "predictor_embed.", "blocks.": "predictor_blocks.", "norm.": "predictor_norm.", "out.": "predictor_proj.",
    "tile_token": "cls_token", "target_token": "mask_token",
}  # fmt: skip


def published_predictor_name(name):
    start = next(prefix for prefix in _PREDICTOR if name.startswith(prefix))
    name = _PREDICTOR[start] + name.removeprefix(start)
    return name.replace(".attention.", ".attn.").replace(".attn.out.", ".attn.proj.")


def seed_weights(module: nn.Module, name_of) -> None:
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            parameter.copy_(golden_weight(name_of(name), tuple(parameter.shape)))


@pytest.fixture(scope="module")
def objective():
    config = ModelConfig.tiny()
    made = Pretraining(AnySat(config), config=ObjectiveConfig(centred=False)).eval()
    seed_weights(made.student, lambda name: published_name(name, config.depth))
    seed_weights(made.goal.encoder, lambda name: "target_encoder." + published_name(name, config.depth))
    seed_weights(made.predictor, lambda name: "predictor." + published_predictor_name(name))
    return made


def published_code(rows, cols, unit, dim):
    """Codes as the published predictor gathers them: a zero row first, and indices that do not count it."""
    return nn.functional.pad(sincos_code(raster_coordinates(rows, cols), unit, dim), (0, 0, 1, 0))


@pytest.fixture(scope="module", params=CASES, ids=[case["name"] for case in CASES])
def step(request, objective):
    """Everything one training step makes, with the gradient of the sum of its losses."""
    case = request.param
    inputs = read_published(golden_input(case), objective.student.config)
    side = case["grid_side_10m"] // case["scale"]
    grid = PatchGrid(case["patch_size"], side, side)
    context = torch.tensor(case["context_indices"])[0]
    targets = torch.tensor(case["target_indices"])
    objective.zero_grad()
    seen = objective.see(inputs, grid)
    none_hidden = Hidden(
        torch.zeros(len(context), len(seen), context.shape[1], dtype=torch.bool), objective.hidden_token
    )
    shown = ShownPatches(context, torch.ones_like(context, dtype=torch.bool), none_hidden)
    _, fused = objective.student.fuse(seen, (side, side), grid.patch_size_m, shown)
    code = published_code(side, side, grid.patch_size_m / 10, objective.student.config.dim)
    predicted = objective.predictor(fused, None, code[context], code[targets])
    wanted = objective.goal(inputs, grid)["patch"].at(targets)
    losses = {
        "jepa_smooth_l1": prediction_loss(predicted, wanted.tokens, wanted.valid),
        "contrastive": objective.contrast(seen),
    }
    losses["total"] = losses["jepa_smooth_l1"] + losses["contrastive"]
    losses["total"].backward()
    made = {"predicted_tokens": predicted.flatten(0, 1), "target": wanted.tokens.flatten(0, 1)}
    made |= {f"tokens_{key}": part.patch.flatten(1, 2) for key, part in seen.items()}
    return case, made, losses


def test_teacher_targets_predictions_and_contrast_tokens_are_the_published_ones(step):
    case, made, _ = step
    for name, found in made.items():
        assert list(found.shape) == case["expected"][name]["shape"]
        expected = NUMBERS[f"{case['name']}/{name}"]
        index = np.arange(expected.size) * found.numel() // expected.size
        ours = found.detach().flatten().numpy()[index]
        # Values of unit spread are rounded to 1e-6 of it, here and there; where, depends on the number of threads.
        np.testing.assert_allclose(ours, expected, rtol=1e-4, atol=2e-6, err_msg=name)
        assert np.abs(ours - expected).max() < 1e-5, name
        assert found.double().norm().item() == pytest.approx(case["expected"][name]["l2"], rel=1e-5), name


def test_losses_are_the_published_ones(step):
    case, _, losses = step
    for name, expected in case["expected"]["losses"].items():
        np.testing.assert_allclose(losses[name].item(), expected, **BOUND, err_msg=name)


def test_gradient_norms_are_the_published_ones(step, objective):
    case, _, _ = step
    depth = objective.student.config.depth
    found = {f"encoder.{published_name(n, depth)}": p for n, p in objective.student.named_parameters()}
    found |= {f"predictor.{published_predictor_name(n)}": p for n, p in objective.predictor.named_parameters()}
    norms = {name: p.grad.double().norm().item() for name, p in found.items() if p.grad is not None}
    expected = case["expected"]["grad_l2"]
    assert set(norms) == set(expected)
    for name, norm in expected.items():
        np.testing.assert_allclose(norms[name], norm, **BOUND, err_msg=name)


def test_the_teacher_receives_no_gradient(step, objective):
    assert all(p.grad is None and not p.requires_grad for p in objective.goal.encoder.parameters())


def test_the_predictor_has_the_published_parameters(objective):
    found = {published_predictor_name(name): list(p.shape) for name, p in objective.predictor.named_parameters()}
    assert found == CONTENT["predictor"]
