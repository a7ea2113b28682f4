"""Parts that somebody changed, wrapped or hooked do what they do with gradients where nothing is learned, too."""

import pytest
import torch
from torch import nn
from torch.nn.modules.module import register_module_forward_hook
from torch.nn.utils import parametrizations, parametrize

from anysat.modalities import MODALITIES
from anysat.model.layers import ChannelNorm, RowLayers
from anysat.model.ready import ReadyRows, keeping_ready, made_ready
from builders import random_input, random_model


def small_model():
    return random_model(modalities=[MODALITIES[key] for key in ("s2", "s1", "aerial")])


class Lora(nn.Module):
    """A layer of somebody else: what it wraps, and something of small rank."""

    def __init__(self, base):
        super().__init__()
        width = base(torch.zeros(1, base.in_features)).shape[-1]
        self.base, self.down, self.up = base, nn.Linear(base.in_features, 2), nn.Linear(2, width)

    def forward(self, x):
        return self.base(x) + self.up(self.down(x))


def linear_like(layer, bias=False):
    found = nn.Linear(layer.in_features, layer.out_features, bias=bias)
    found.load_state_dict({name: layer.state_dict()[name] for name in found.state_dict()})
    return found


class Doubled(nn.Module):
    """A parametrisation."""

    def forward(self, weight):
        return 2 * weight


def _fc1_with_dropout(model):
    model.spatial.blocks[0].mlp.fc1 = nn.Sequential(model.spatial.blocks[0].mlp.fc1, nn.Dropout(0.1)).eval()


def _fc1_without_bias(model):
    model.spatial.blocks[0].mlp.fc1 = linear_like(model.spatial.blocks[0].mlp.fc1)


def _qkv_without_bias(model):
    model.spatial.blocks[-1].attention.qkv = linear_like(model.spatial.blocks[-1].attention.qkv)


def _pixels_without_bias(model):
    model.projectors["s2"].pixel_mlp[0] = linear_like(model.projectors["s2"].pixel_mlp[0])


def _rows_with_more_rows(model):
    model.projectors["s2"].pixel_mlp[4] = nn.Sequential(model.projectors["s2"].pixel_mlp[4]).eval()


def _rows_with_an_activation_that_learns(model):
    model.projectors["s2"].pixel_mlp[2] = nn.PReLU().eval()


def _norm_without_weight(model):
    model.fusion.blocks[0].norm1 = nn.LayerNorm(model.config.dim, elementwise_affine=False)


def _image_layer_in_a_row(model):
    model.projectors["aerial"].mlp[0] = nn.Sequential(model.projectors["aerial"].mlp[0]).eval()


def _embed_with_bias(model):
    old = model.projectors["aerial"].embed
    model.projectors["aerial"].embed = nn.Conv2d(4, old.out_channels, old.kernel_size, stride=old.stride)
    model.projectors["aerial"].embed.weight = old.weight


def _embed_hooked(model):
    model.projectors["aerial"].embed.register_forward_hook(lambda layer, given, found: 2 * found)


def _embed_normed(model):
    parametrizations.weight_norm(model.projectors["aerial"].embed)


def _key_hooked(model):
    model.projectors["s2"].pooling.key.register_forward_hook(lambda layer, given, found: 2 * found)


def _key_wrapped(model):
    model.projectors["s2"].pooling.key = Lora(model.projectors["s2"].pooling.key)


def _query_doubled(model):
    parametrize.register_parametrization(model.projectors["s2"].pooling, "query", Doubled())


def _norm_doubled(model):
    parametrize.register_parametrization(model.spatial.blocks[0].norm1, "weight", Doubled())


def _distances_doubled(model):
    parametrize.register_parametrization(model.spatial.blocks[0].attention.relative, "weight", Doubled())


def _tile_doubled(model):
    parametrize.register_parametrization(model.fusion, "tile_token", Doubled())


CHANGES = [
    _fc1_with_dropout, _fc1_without_bias, _qkv_without_bias, _pixels_without_bias, _rows_with_more_rows,
    _rows_with_an_activation_that_learns, _norm_without_weight, _image_layer_in_a_row, _embed_with_bias, _embed_hooked,
    _embed_normed, _key_hooked, _key_wrapped, _query_doubled, _norm_doubled, _distances_doubled, _tile_doubled,
]  # fmt: skip


@pytest.mark.parametrize("change", CHANGES)
def test_changed_parts_give_what_they_give_with_gradients(change):
    torch.manual_seed(0)
    model, x = small_model().eval().requires_grad_(), random_input(("s2", "aerial"), 20)
    change(model)
    wanted = model(x, 10)
    assert wanted.requires_grad
    with torch.inference_mode():
        torch.testing.assert_close(model(x, 10), wanted.detach(), atol=1e-5, rtol=1e-5)
        rounded = model(x, 10, precision="bf16")
    assert float((rounded - wanted.detach()).norm() / wanted.detach().norm()) < 0.05


@pytest.mark.parametrize("change", [_embed_with_bias, _embed_hooked, _key_hooked, _key_wrapped])
def test_changes_of_layers_whose_weights_are_folded_are_seen(change):
    torch.manual_seed(0)
    model, x = small_model().eval().requires_grad_(), random_input(("s2", "aerial"), 20)
    before = model(x, 10).detach()
    change(model)
    assert float((model(x, 10).detach() - before).abs().max()) > 1e-3


def test_keys_that_are_asked_one_by_one_are_those_that_are_folded():
    model, x = small_model().eval().requires_grad_(), random_input(("s2", "s1"), 20)
    wanted = model(x, 10)
    for projector in model.projectors.values():
        if hasattr(projector, "pooling"):
            projector.pooling.key.register_forward_hook(lambda layer, given, found: None)
    torch.testing.assert_close(model(x, 10), wanted, atol=1e-5, rtol=1e-5)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore:torch.quantize_per_tensor")
def test_models_of_which_torch_quantised_the_linear_layers_run():
    model, x = small_model().eval(), random_input(("s2", "aerial"), 20)
    wanted = model(x, 10)
    found = torch.ao.quantization.quantize_dynamic(model, {nn.Linear})(x, 10)
    assert float((found - wanted).norm() / wanted.norm()) < 0.1


def test_one_dropout_in_training_is_kept_where_nothing_is_learned():
    layers = RowLayers(nn.Linear(10, 24), ChannelNorm(4, 24), nn.ReLU(inplace=True), nn.Dropout(0.5)).eval()
    x = torch.randn(50, 10)
    with torch.no_grad(), made_ready(layers) as (found,):
        assert isinstance(found, ReadyRows)
    layers[3].train()
    with torch.no_grad(), made_ready(layers) as (found,):
        assert not torch.equal(found(x), found(x))


def _prompt(model):
    prompt = nn.Parameter(torch.zeros(model.config.dim))
    model.spatial.blocks[0].register_forward_hook(lambda layer, given, found: found + prompt)
    return prompt


def _plain_tensor(model):
    layer = model.fusion.blocks[0].mlp.fc2
    weight = layer.weight.detach().clone().requires_grad_()
    del layer.weight
    layer.weight = weight
    return weight


@pytest.mark.parametrize("change", [_prompt, _plain_tensor])
def test_what_learns_beside_frozen_weights_gets_a_gradient(change):
    model, x = small_model().eval().requires_grad_(False), random_input(("s2",), 20)
    learns = change(model)
    model(x, 10).sum().backward()
    assert learns.grad.abs().sum() > 0


def test_a_weight_that_is_a_plain_tensor_is_not_kept():
    model, x = small_model().eval(), random_input(("s2",), 20)
    weight = _plain_tensor(model)
    with torch.no_grad(), keeping_ready():
        before = model(x, 10)
        weight.mul_(2.0)
        assert float((model(x, 10) - before).abs().max()) > 1e-3


@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_what_a_hook_of_all_modules_sees_is_not_written_over(precision):
    model, x, seen = small_model().eval(), random_input(("s1", "aerial"), 20), []

    def keep(layer, given, found):
        if isinstance(layer, nn.Linear):
            seen.append((found, found.clone()))

    handle = register_module_forward_hook(keep)
    try:
        with torch.inference_mode():
            model(x, 10, precision=precision)
    finally:
        handle.remove()
    assert len(seen) > 10
    assert all(torch.equal(held, copied) for held, copied in seen)


def test_what_hooks_in_a_row_see_is_not_written_over():
    model, x, seen = small_model().eval(), random_input(("aerial",), 20), []
    layer = model.spatial.blocks[0].mlp.fc2
    model.spatial.blocks[0].mlp.fc2 = nn.Sequential(layer).eval()
    layer.register_forward_hook(lambda _, given, found: seen.append((found, found.clone())))
    with torch.inference_mode():
        model(x, 10)
    assert seen
    assert all(torch.equal(held, copied) for held, copied in seen)
