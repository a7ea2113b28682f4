"""What keeps tokens spread over all their features."""

import pytest
import torch

from anysat.pretrain.losses import spread_loss
from objective_builders import drawn


def slow_spread(tokens):
    apart = tokens - tokens.mean(0)
    dim, terms = tokens.shape[1], []
    for one in range(dim):
        terms.append(max(0.0, 1.0 - (apart[:, one].square().mean().item() + 1e-4) ** 0.5))
    shared = [(apart[:, a] * apart[:, b]).mean().item() ** 2 for a in range(dim) for b in range(dim) if a != b]
    return sum(terms) / dim + 0.04 * sum(shared) / dim


def test_spread_is_the_formula_with_loops():
    tokens = drawn(40, 6) * torch.tensor([0.1, 0.5, 1.0, 2.0, 0.0, 1.0]) + 3.0
    tokens[:, 1] += tokens[:, 2]
    assert spread_loss(tokens).item() == pytest.approx(slow_spread(tokens), rel=1e-4)
    assert spread_loss(drawn(5000, 6) * 2).item() < 0.02
    assert spread_loss(torch.ones(40, 6)).item() == pytest.approx(0.99, abs=1e-3)


def test_one_token_spreads_nothing_and_has_a_gradient_of_0():
    token = torch.ones(1, 6, requires_grad=True)
    spread_loss(token).backward()
    assert bool((token.grad == 0).all())


def test_equal_tokens_are_driven_apart():
    """From tokens that differ by a thousandth, the gradient leads to a deviation of one in every feature."""
    tokens = (1.0 + 1e-3 * drawn(64, 8)).requires_grad_(True)
    optimiser = torch.optim.Adam([tokens], lr=0.05)
    for _ in range(200):
        optimiser.zero_grad()
        spread_loss(tokens).backward()
        optimiser.step()
    assert tokens.std(0).min() > 0.8
