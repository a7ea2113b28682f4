"""What is made ready for a pass is made for that pass: no weights of another day, and none for those that learn."""

import contextvars

import pytest
import torch
from torch import nn
from torch.nn.utils import prune

import anysat.model.ready as ready_module
from anysat.errors import InputError, UnknownNameError
from anysat.modalities import MODALITIES
from anysat.model.layers import ChannelNorm, RowLayers
from anysat.model.precision import multiplying
from anysat.model.ready import ReadyLinear, ReadyRows, keeping_ready, made_ready
from builders import random_input, random_model

CPU = torch.device("cpu")


def rows():
    torch.manual_seed(0)
    found = RowLayers(
        nn.Linear(10, 24), ChannelNorm(4, 24), nn.ReLU(inplace=True), nn.Dropout(0.5), nn.Linear(24, 32),
        ChannelNorm(4, 32), nn.ReLU(inplace=True), nn.Linear(32, 8),
    )  # fmt: skip
    for layer in found:
        if isinstance(layer, ChannelNorm):
            nn.init.normal_(layer.weight)
            nn.init.normal_(layer.bias)
    return found.eval()


def norm_of(layers, weight, bias):
    with torch.no_grad():
        layers[1].weight.copy_(torch.full((24,), weight))
        layers[1].bias.copy_(bias)
    return layers


def test_norms_and_the_layers_around_them_are_one_with_the_same_numbers():
    layers, x = rows(), 5 + torch.randn(50, 10)
    with torch.inference_mode():
        torch.testing.assert_close(ReadyRows(layers, None)(x), layers(x), atol=1e-6, rtol=1e-6)
        found, wanted = ReadyRows(layers, torch.bfloat16)(x).float(), layers(x)
    assert 1e-4 < float((found - wanted).norm() / wanted.norm()) < 0.02


@pytest.mark.parametrize("weight", [0.0, 1e-20, -1e-20, -2.0])
def test_norms_of_any_weight_are_folded(weight):
    layers, x = norm_of(rows(), weight, torch.linspace(-1, 1, 24)), torch.randn(50, 10)
    with torch.inference_mode():
        wanted = layers(x)
        torch.testing.assert_close(ReadyRows(layers, None)(x), wanted, atol=2e-6, rtol=2e-6)
        for dtype in (torch.bfloat16, torch.float16):
            found = ReadyRows(layers, dtype)(x).float()
            assert float((found - wanted).norm() / wanted.norm()) < 0.02


def test_norms_of_some_rows_at_a_time_give_the_same_numbers(monkeypatch):
    layers, x = rows(), torch.randn(50, 10)
    with torch.inference_mode():
        wanted = ReadyRows(layers, None)(x)
        monkeypatch.setattr(ready_module, "SCALED_TOGETHER", 7 * 24)
        assert torch.equal(ReadyRows(layers, None)(x), wanted)


def test_rows_that_are_all_alike_stay_finite():
    layers = rows()
    nn.init.zeros_(layers[0].weight)
    with torch.inference_mode():
        torch.testing.assert_close(ReadyRows(layers, None)(torch.ones(3, 10)), layers(torch.ones(3, 10)))


def test_nothing_is_made_ready_where_something_learns():
    layers = rows()
    with made_ready(layers) as (found,):
        assert found is layers
    with torch.no_grad(), made_ready(layers) as (found,):
        assert isinstance(found, ReadyRows)


def test_compiled_parts_stay_what_they_are():
    layers = nn.ModuleList([rows()])
    layers[0]._compiled_call_impl = layers[0].forward
    with torch.no_grad(), multiplying("bf16", CPU), made_ready(layers) as (found,):
        assert found is layers
        assert torch.is_autocast_enabled("cpu")


def test_layers_that_drop_out_values_are_not_folded():
    with torch.no_grad(), made_ready(rows().train()) as (found,):
        assert isinstance(found, RowLayers)


def test_what_is_ready_in_bf16_is_so_once_and_for_all_layers_of_many_inputs():
    model = random_model()
    with torch.inference_mode(), multiplying("bf16", CPU), made_ready(model.spatial) as (spatial,):
        linear = [layer for layer in spatial.modules() if isinstance(layer, nn.Linear | ReadyLinear)]
        assert {layer.weight.dtype for layer in linear} == {torch.bfloat16}
        assert spatial.norm is not model.spatial.norm
        assert not torch.is_autocast_enabled("cpu")
    assert all(weight.dtype == torch.float32 for weight in model.parameters())


@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_weights_that_change_in_any_way_are_those_that_are_used(precision):
    model, x = random_model().eval(), random_input(("s1", "s2", "aerial"), 20)
    changed = {name: 1.2 * tensor for name, tensor in model.state_dict().items()}

    def encoded(one):
        with torch.inference_mode(), multiplying(precision, CPU):
            return one(x, 10)

    before = encoded(model)
    model.train()
    model.eval()
    torch.testing.assert_close(encoded(model), before, rtol=0, atol=0)
    model.load_state_dict(changed)
    fresh = random_model().eval()
    fresh.load_state_dict(changed)
    torch.testing.assert_close(encoded(model), encoded(fresh), rtol=0, atol=0)
    for one in (model, fresh):
        for parameter in one.parameters():
            parameter.data.mul_(1.5)  # which no version counter tells
    after = encoded(model)
    torch.testing.assert_close(after, encoded(fresh), rtol=0, atol=0)
    assert float((after - before).abs().max()) > 1e-3


def _doubled(model):
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(2.0)


def _loaded(model):
    model.load_state_dict({name: 1.2 * tensor for name, tensor in model.state_dict().items()})


def _replaced(model):
    for layer in model.modules():
        if isinstance(layer, nn.Linear):
            layer.weight = nn.Parameter(1.3 * layer.weight.detach())


def _moved(model):
    for parameter in model.parameters():
        parameter.data = 1.1 * parameter.data  # as `Module.to` does


@pytest.mark.parametrize("change", [_doubled, _loaded, _replaced, _moved])
@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_what_a_loop_keeps_is_made_anew_when_weights_change(precision, change):
    model, x = random_model().eval(), random_input(("s1", "s2", "aerial"), 20)

    def encoded():
        with torch.inference_mode(), multiplying(precision, CPU):
            return model(x, 10)

    with keeping_ready():
        before = encoded()
        change(model)
        after = encoded()
    assert float((after - before).abs().max()) > 1e-3
    with keeping_ready():
        torch.testing.assert_close(after, encoded(), rtol=0, atol=0)
    rounding = 0.0 if precision == "float32" else 2e-2  # products of what is kept may be summed in another order
    torch.testing.assert_close(after, encoded(), rtol=rounding, atol=rounding)


def test_a_loop_makes_ready_once_for_each_precision_and_keeps_nothing_when_it_ends(monkeypatch):
    model, x, made = random_model().eval(), random_input(("s1", "s2"), 20), []
    ready = ready_module.ready
    monkeypatch.setattr(ready_module, "ready", lambda module, dtype: made.append(module) or ready(module, dtype))

    def encoded(precision):
        made.clear()
        with torch.inference_mode(), multiplying(precision, CPU):
            model(x, 10)
        return len(made)

    with keeping_ready():
        first = encoded("float32")
        assert first > 3
        assert encoded("float32") == 0
        assert encoded("bf16") == first
        assert (encoded("bf16"), encoded("float32"), encoded("bf16")) == (0, 0, 0)
        model.train()  # whose dropout is not folded
        assert encoded("bf16") > 0
        model.eval()
    assert encoded("bf16") == first
    assert encoded("bf16") == first


@pytest.mark.parametrize("is_fast", [True, False])
def test_matrices_in_bf16_lie_column_by_column_where_they_are_kept(is_fast, monkeypatch):
    monkeypatch.setattr(ready_module, "HAS_FUSED_LINEAR", is_fast)
    layer = torch.nn.Linear(40, 96)

    def stored(dtype):
        return ReadyLinear(layer, dtype).weight

    assert stored(torch.bfloat16).is_contiguous()
    with keeping_ready():
        kept = stored(torch.bfloat16)
        assert stored(torch.float32).data_ptr() == layer.weight.data_ptr()  # no copy
        assert torch.equal(kept, layer.weight.bfloat16())
        layer.bfloat16()
        assert stored(torch.bfloat16).data_ptr() == layer.weight.data_ptr()
    assert kept.t().is_contiguous() == is_fast
    assert kept.is_contiguous() != is_fast


def test_weights_whose_changes_no_counter_tells_are_not_kept(monkeypatch):
    with torch.inference_mode():
        layers = rows()
    x, found = torch.randn(5, 10), []
    ready = ready_module.ready
    monkeypatch.setattr(ready_module, "ready", lambda *of: found.append(ready_module._KEPT.get()) or ready(*of))
    with torch.inference_mode(), keeping_ready():
        before = _run(layers, x)
        layers[0].weight.mul_(2.0)
        after = _run(layers, x)
        torch.testing.assert_close(after, layers(x), atol=1e-5, rtol=1e-5)
        assert not torch.allclose(before, after)
        assert ready_module._KEPT.get() is not None
    assert set(found) == {None}  # nothing is laid out for a loop


def _run(layers, x):
    with made_ready(layers) as (found,):
        return found(x)


def _prune(model):
    prune.l1_unstructured(model.fusion.blocks[0].mlp.fc2, "weight", amount=0.5)
    model.fusion.blocks[0].mlp.fc2.weight_orig.data.mul_(1.5)  # what a hook makes weights of


def _hook(model):
    model.spatial.blocks[-1].attention.qkv.register_forward_hook(lambda layer, given, found: 2 * found)


def _substitute(model):
    class Twice(nn.Linear):
        def forward(self, x):
            return 2 * super().forward(x)

    for block in model.spatial.blocks:
        kept, block.mlp.fc1 = block.mlp.fc1, Twice(*block.mlp.fc1.weight.shape[::-1])
        block.mlp.fc1.load_state_dict(kept.state_dict())


def _own_forward(model):
    layer = model.spatial.blocks[0].attention.out
    layer.forward = lambda x: 2 * nn.functional.linear(x, layer.weight, layer.bias)


@pytest.mark.parametrize("change", [_prune, _hook, _substitute, _own_forward])
def test_hooks_and_foreign_layers_are_asked_where_nothing_is_learned_too(change):
    model, x = random_model().eval().requires_grad_(), random_input(("s1", "aerial"), 20)
    before = model(x, 10).detach()
    change(model)
    wanted = model(x, 10).detach()
    assert not torch.allclose(before, wanted, atol=1e-3)
    with torch.inference_mode():
        torch.testing.assert_close(model(x, 10), wanted, atol=1e-5, rtol=1e-5)


def _replica(model):
    """As `nn.DataParallel` makes one for each device: its weights are plain tensors."""
    made = {part: part._replicate_for_data_parallel() for part in model.modules()}
    for part, replica in made.items():
        for name, child in part._modules.items():
            replica._modules[name] = made.get(child)
        for name, weight in part._parameters.items():
            setattr(replica, name, None if weight is None else weight * 1)
    return made[model]


def test_a_replica_whose_weights_are_plain_tensors_runs_and_learns():
    model, x = random_model().eval().requires_grad_(), random_input(("s2", "aerial"), 20)
    wanted = model(x, 10)
    with torch.inference_mode():
        torch.testing.assert_close(_replica(model)(x, 10), wanted.detach(), atol=1e-5, rtol=1e-5)
    _replica(model)(x, 10).sum().backward()
    assert model.spatial.blocks[0].mlp.fc1.weight.grad.abs().sum() > 0


def test_frozen_weights_are_made_ready_without_being_told_and_it_is_said(caplog):
    model, x = random_model().eval().requires_grad_(), random_input(("s1", "s2"), 20)
    learning = model(x, 10)
    assert learning.requires_grad
    caplog.set_level("DEBUG", logger=ready_module.__name__)
    model.requires_grad_(False)
    torch.testing.assert_close(model(x, 10), learning.detach(), atol=1e-5, rtol=1e-5)
    assert [one.message for one in caplog.records] == [
        "SpatialTransformer runs made ready, products in the type of its weights",
        "FusionTransformer runs made ready, products in the type of its weights",
    ]
    caplog.clear()
    x["s2"].requires_grad_(True)  # what a pixel is worth can still be asked
    model(x, 10).sum().backward()
    assert x["s2"].grad.abs().sum() > 0
    assert caplog.records[0].message == "SpatialTransformer runs as it is: it learns"


@pytest.mark.parametrize("output", ["tile", "patch"])
def test_a_call_says_in_what_matrices_are_multiplied(output):
    model, x = random_model().eval().requires_grad_(False), random_input(("s1", "s2"), 20)
    exact = model(x, 10, output)
    with multiplying("bf16", CPU):
        rounded = model(x, 10, output)
        torch.testing.assert_close(model(x, 10, output, precision="float32"), exact, rtol=0, atol=0)
    assert not torch.equal(rounded, exact)
    torch.testing.assert_close(model(x, 10, output, precision="bf16"), rounded, rtol=0, atol=0)
    with pytest.raises(UnknownNameError, match="float32"):
        model(x, 10, output, precision="fp8")


def test_norms_of_a_device_that_mixes_no_types_get_the_type_of_their_weights():
    norm = ready_module.ready(nn.LayerNorm(8), torch.bfloat16)
    x = torch.randn(3, 8, dtype=torch.bfloat16)
    assert norm(x).dtype == torch.bfloat16
    assert norm.to("meta")(x.to("meta")).dtype == torch.float32


@pytest.mark.parametrize("precision", ["float32", "bf16"])
@pytest.mark.parametrize("name", ["attention", "attention.out", "norm2", "mlp", "mlp.fc2"])
def test_what_hooks_see_and_give_is_not_written_over(name, precision):
    model, x, seen = random_model().eval(), random_input(("s1", "aerial"), 20), []
    layer = model.spatial.blocks[0].get_submodule(name)
    layer.register_forward_hook(lambda _, given, found: seen.extend((t, t.clone()) for t in (given[0], found)))
    with torch.inference_mode():
        model(x, 10, precision=precision)
    assert len(seen) >= 2
    assert all(torch.equal(held, copied) for held, copied in seen)


def test_a_tensor_that_a_hook_gives_instead_is_not_written_to():
    model, x, given = random_model().eval(), random_input(("s1",), 20, batch=1), []

    def nothing(_, __, found):
        given.append(torch.zeros_like(found))
        return given[-1]

    model.spatial.blocks[0].mlp.register_forward_hook(nothing)
    with torch.inference_mode():
        model(x, 10)
    assert given
    assert all(not tensor.any() for tensor in given)


def test_norms_without_a_weight_are_folded_in_float16_too():
    layers, x = norm_of(rows(), 0.0, torch.full((24,), 5e-4)).half(), torch.randn(50, 10).half()
    with torch.inference_mode():
        found, wanted = ReadyRows(layers, None)(x).float(), layers(x).float()
    assert float((found - wanted).norm() / wanted.norm()) < 0.02


def test_rows_whose_squares_overflow_float16_are_normalised_in_it():
    layers, x = rows(), torch.randn(50, 10)
    x[3] *= 1e4
    with torch.inference_mode():
        found, wanted = ReadyRows(layers, torch.float16)(x).float(), layers(x)
    assert float((found - wanted).norm(dim=1).max() / wanted.norm(dim=1).min()) < 0.02


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16])
def test_bf16_is_refused_of_weights_that_it_does_not_fit(dtype):
    model, x = random_model().to(dtype).eval(), random_input(("s1",), 20)
    with pytest.raises(InputError, match="precision bf16: expected weights in float32 or bfloat16"):
        model(x, 10, precision="bf16")
    assert model(x, 10).dtype == dtype


@pytest.mark.parametrize("name", ["AdamW", "SGD"])
def test_the_step_of_a_fused_optimiser_is_seen(name):
    model, x = random_model(modalities=[MODALITIES["s2"]]).requires_grad_(), random_input(("s2",), 20)
    optimiser = getattr(torch.optim, name)(model.parameters(), lr=1e-2, fused=True)

    def encoded():
        with torch.no_grad():
            return model(x, 10)

    with keeping_ready():
        before = encoded()
        model(x, 10).sum().backward()
        encoded()  # as it was before the step
        optimiser.step()
        after = encoded()
    assert not torch.allclose(after, before, atol=1e-3)
    torch.testing.assert_close(after, encoded(), rtol=0, atol=0)


def test_a_pass_that_learns_forgets_what_was_kept():
    layers = rows()
    with keeping_ready():
        with torch.no_grad(), made_ready(layers) as (first,):
            pass
        with made_ready(layers):
            pass
        with torch.no_grad(), made_ready(layers) as (second,):
            assert second is not first


def _each(count):
    with keeping_ready():
        yield from range(count)


def test_loops_in_generators_that_end_in_any_order_keep_nothing():
    layers = rows()
    for _ in zip(_each(2), _each(3), strict=False):
        pass
    first, second = _each(2), _each(2)
    next(first), next(second)
    first.close()
    assert ready_module._keeping() is not None
    second.close()
    with torch.no_grad(), made_ready(layers) as (one,), made_ready(layers) as (other,):
        assert one is not other


def test_a_loop_in_a_generator_can_be_closed_from_another_context():
    begun = _each(2)
    next(begun)
    contextvars.Context().run(begun.close)
    assert ready_module._keeping() is None
