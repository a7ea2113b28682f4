"""Training on tiles of many patches: what is kept for the backward pass is bounded, and the gradient is the same."""

import pytest
import torch

from anysat.model import encoder as module
from labelled import KEYS, meadow_batch, meadow_encoder, randomise


def trained_once(monkeypatch, *, bounded):
    """Gradients of an encoder, and how many numbers were kept for them that are no weights."""
    monkeypatch.setattr(module, "RECOMPUTE_PATCHES", 0 if bounded else 10**9)
    monkeypatch.setattr(module, "MAX_PAIRS", 60 if bounded else 10**9)
    monkeypatch.setattr(module, "CHUNK_ROWS", 8)
    encoder, batch = randomise(meadow_encoder(pixel_dropout_prob=0.2).requires_grad_(True)).train(), meadow_batch(3)
    weights, kept = {p.data_ptr() for p in encoder.parameters()}, {}

    def keep(tensor):
        if tensor.data_ptr() not in weights:
            kept[tensor.data_ptr()] = tensor.numel()
        return tensor

    torch.manual_seed(0)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        found = encoder.encode(batch, 10.0, dense="s2")
    (found.dense.nan_to_num().square().mean() + found.tile.sum()).backward()
    return {name: p.grad for name, p in encoder.named_parameters() if p.grad is not None}, sum(kept.values())


def test_large_tiles_keep_less_and_learn_the_same(monkeypatch):
    plain, much = trained_once(monkeypatch, bounded=False)
    thrifty, little = trained_once(monkeypatch, bounded=True)
    assert plain.keys() == thrifty.keys()
    for name, gradient in plain.items():
        assert (gradient - thrifty[name]).norm() <= 1e-3 * gradient.norm() + 1e-5, name
    assert little < much / 3


@pytest.mark.parametrize("patches", [0, 10**9])
def test_without_gradients_nothing_is_computed_twice(monkeypatch, patches):
    monkeypatch.setattr(module, "RECOMPUTE_PATCHES", patches)
    encoder, calls = meadow_encoder().eval(), []
    encoder.spatial.register_forward_hook(lambda *_: calls.append(1))
    with torch.inference_mode():
        encoder.encode(meadow_batch(2, first=1), 10.0)
    assert len(calls) == len(KEYS)
