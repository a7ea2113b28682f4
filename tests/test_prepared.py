"""What is made ready for a pass is made for that pass: no weights of another day, and none for those that learn."""

import torch
from torch import nn

from anysat.model.layers import ChannelNorm, PreparedRows, RowLayers
from builders import random_input, random_model


def rows():
    torch.manual_seed(0)
    found = RowLayers(nn.Linear(10, 24), ChannelNorm(4, 24), nn.ReLU(inplace=True), nn.Dropout(0.5), nn.Linear(24, 8))
    nn.init.normal_(found[1].weight)
    nn.init.normal_(found[1].bias)
    return found.eval()


def test_a_norm_and_the_layer_before_it_are_one_with_the_same_numbers():
    layers, x = rows(), 5 + torch.randn(50, 10)
    with torch.inference_mode():
        ready = layers.prepared()
        assert isinstance(ready, PreparedRows)
        torch.testing.assert_close(ready(x), layers(x), atol=1e-6, rtol=1e-6)


def test_rows_that_are_all_alike_stay_finite():
    layers = rows()
    nn.init.zeros_(layers[0].weight)
    with torch.inference_mode():
        torch.testing.assert_close(layers.prepared()(torch.ones(3, 10)), layers(torch.ones(3, 10)))


def test_nothing_is_made_ready_where_something_learns_or_multiplies_in_another_type():
    layers = rows()
    assert layers.prepared() is layers
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        assert layers.prepared() is layers


def test_weights_that_change_in_any_way_are_those_that_are_used():
    model, x = random_model().eval(), random_input(("s1", "s2"), 20)
    changed = {name: 1.2 * tensor for name, tensor in model.state_dict().items()}
    with torch.inference_mode():
        before = model(x, 10)
    model.train()
    model.eval()
    with torch.inference_mode():
        torch.testing.assert_close(model(x, 10), before, rtol=0, atol=0)
    model.load_state_dict(changed)
    fresh = random_model().eval()
    fresh.load_state_dict(changed)
    with torch.inference_mode():
        torch.testing.assert_close(model(x, 10), fresh(x, 10), rtol=0, atol=0)
        for parameter in model.projectors["s1"].pixel_mlp.parameters():
            parameter.mul_(1.5)
        for parameter in fresh.projectors["s1"].pixel_mlp.parameters():
            parameter.mul_(1.5)
        after = model(x, 10)
        torch.testing.assert_close(after, fresh(x, 10), rtol=0, atol=0)
    assert float((after - before).abs().max()) > 1e-3
