"""The terms that are minimised, against their formulas with loops."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from anysat.modalities import MODALITIES
from anysat.pretrain.goals import describe
from anysat.pretrain.losses import contrast_loss, discrimination_loss, known_loss, prediction_loss, spread_loss
from objective_builders import generator


def contrast_by_loops(tokens, valid, temperature):
    """The formula of the paper's equation 2, as trained, token by token."""
    batch, modalities, patches, _ = tokens.shape
    places = [(m, b, p) for m in range(modalities) for b in range(batch) for p in range(patches)]
    total = 0.0
    for m, b, p in places:
        if not valid[b, m, p]:
            continue
        like = {
            (n, c, q): math.exp(
                float(nn.functional.cosine_similarity(tokens[b, m, p], tokens[c, n, q], dim=0)) / temperature
            )
            for n, c, q in places
            if valid[c, n, q] and not (n == m and c == b)
        }
        partners = [like[n, b, p] for n in range(modalities) if n != m and valid[b, n, p]]
        if like:
            total += math.log(sum(like.values()))
        if partners:
            total -= math.log(sum(partners))
    return total / len(places)


@pytest.mark.parametrize("masked", [False, True])
def test_the_contrast_is_the_formula_token_by_token(masked):
    """B2: validity belongs to the tokens it was made from, in batches of several tiles."""
    tokens = torch.randn(3, 3, 4, 8, generator=generator())
    valid = torch.rand(3, 3, 4, generator=generator(1)) > (0.4 if masked else -1)
    found = contrast_loss(tokens, valid if masked else None, 0.1)
    assert found.item() == pytest.approx(contrast_by_loops(tokens.double(), valid, 0.1), rel=1e-5)


def test_the_contrast_in_parts_is_the_contrast(monkeypatch):
    tokens = torch.randn(2, 3, 5, 8, generator=generator(), requires_grad=True)
    valid = torch.rand(2, 3, 5, generator=generator(1)) > 0.3
    whole = contrast_loss(tokens, valid, 0.1)
    (grad,) = torch.autograd.grad(whole, tokens)
    monkeypatch.setattr("anysat.pretrain.losses.ROWS", 7)
    parts = contrast_loss(tokens, valid, 0.1)
    (grad_of_parts,) = torch.autograd.grad(parts, tokens)
    assert parts.item() == pytest.approx(whole.item(), rel=1e-6)
    assert torch.allclose(grad, grad_of_parts, atol=1e-6)


def test_further_negatives_count_as_those_of_other_tiles():
    """Partners of other tiles are negatives already; alone, a batch has only its own."""
    tokens = torch.randn(4, 2, 3, 8, generator=generator())
    others = tokens[2:].flatten(0, 2), torch.ones(12, dtype=torch.bool)
    by_hand = 0.0
    features = nn.functional.normalize(tokens, dim=-1)
    for b in range(2):
        for m in range(2):
            for p in range(3):
                like = torch.exp(features @ features[b, m, p] / 0.1)
                partner = like[b, 1 - m, p]
                like[b, m] = 0.0
                by_hand += float((like.sum() / partner).log())
    assert contrast_loss(tokens[:2], None, 0.1, others).item() == pytest.approx(by_hand / 12, rel=1e-5)


def test_tokens_of_one_patch_that_agree_have_a_lower_contrast():
    one = torch.randn(4, 1, 9, 16, generator=generator())
    alike = torch.cat([one, one + 0.1 * torch.randn(one.shape, generator=generator(1))], 1)
    apart = torch.cat([one, torch.randn(one.shape, generator=generator(2))], 1)
    assert contrast_loss(alike, None, 0.1) < contrast_loss(apart, None, 0.1) - 1


def test_the_prediction_loss_counts_valid_tokens_only():
    predicted, target = torch.randn(2, 3, 4, generator=generator()), torch.randn(2, 3, 4, generator=generator(1))
    valid = torch.tensor([[True, False, True], [False, False, True]])
    target[~valid] = float("nan")
    by_hand = nn.functional.smooth_l1_loss(predicted[valid], target[valid])
    assert prediction_loss(predicted, target, valid).item() == pytest.approx(by_hand.item())
    squared = (predicted[valid] - target[valid]).square().mean()
    assert prediction_loss(predicted, target, valid, "l2").item() == pytest.approx(squared.item())


def test_patch_discrimination_is_cross_entropy_and_leaves_equal_targets_out():
    predicted, target = torch.randn(5, 8, generator=generator()), torch.randn(5, 8, generator=generator(1))
    target[3] = 2 * target[1]  # the same patch in two blocks
    valid = torch.tensor([True, True, True, True, False])
    found = discrimination_loss(predicted, target, valid, 0.1, 0.999).item()
    cosine = nn.functional.normalize(predicted[:4], dim=-1) @ nn.functional.normalize(target[:4], dim=-1).T / 0.1
    terms = []
    for i in range(4):
        candidates = [j for j in range(4) if j == i or {i, j} != {1, 3}]
        terms.append(-(cosine[i, i] - torch.logsumexp(cosine[i, candidates], 0)).item())
    assert found == pytest.approx(np.mean(terms), rel=1e-5)


def alike(num_modalities=3, noise=0.3):
    """Tokens whose modalities nearly agree, as they do late in a training."""
    patch = torch.randn(8, 1, 9, 64, generator=generator())
    return patch + noise * torch.randn(8, num_modalities, 9, 64, generator=generator(1))


LOSSES = {
    "contrast": lambda tokens: contrast_loss(tokens, None, 0.1),
    "spread": lambda tokens: spread_loss(tokens.flatten(0, 2)),
    "prediction": lambda tokens: prediction_loss(tokens, 1.1 * tokens.detach(), tokens.new_ones(8, 3, 9).bool()),
    "known": lambda tokens: known_loss(
        tokens.flatten(0, 2), tokens.detach().flatten(0, 2), torch.ones(216, 64, dtype=torch.bool)
    ),
    "discrimination": lambda tokens: discrimination_loss(
        tokens.flatten(0, 2), tokens.detach().flatten(0, 2).flip(0), torch.ones(216, dtype=torch.bool), 0.1, 0.999
    ),
}


@pytest.mark.parametrize("name", LOSSES)
def test_losses_are_computed_in_float32_whatever_the_student_multiplies_in(name):
    """Else the contrast loses its gradient once it is well learned: a small difference of large rounded numbers."""
    tokens = alike().requires_grad_()
    wanted = LOSSES[name](tokens)
    (grad,) = torch.autograd.grad(wanted, tokens)
    with torch.autocast("cpu", torch.bfloat16):
        found = LOSSES[name](tokens)
    assert found.dtype == torch.float32
    assert torch.equal(found, wanted)
    assert torch.equal(torch.autograd.grad(found, tokens)[0], grad)


def test_what_pixels_hold_is_told_in_float32_whatever_the_student_multiplies_in():
    values, days = torch.randn(4, 9, 12, 10, generator=generator()), torch.arange(1, 361, 30.0)[None]
    wanted, _ = describe(values, None, days, 2)
    with torch.autocast("cpu", torch.bfloat16):
        found, _ = describe(values, None, days, 2)
    assert wanted.shape[-1] == len(MODALITIES["s2"].bands) * 6
    assert torch.equal(found, wanted)
