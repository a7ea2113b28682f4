"""Each non-trivial layer equals a slow, obvious reference."""

import importlib
import inspect
import math
import typing

import numpy as np
import pytest
import torch
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

from anysat.model import layers
from anysat.model.config import ModelConfig
from anysat.model.layers import Attention, Block, RelativePosition, attend, masked_bias
from anysat.model.positions import (
    buckets_between,
    cell_sequence,
    day_code,
    distance_buckets,
    raster_coordinates,
    sincos_code,
    subpatch_coordinates,
)
from anysat.model.projectors import DateNorm, SeriesProjector, TemporalPooling
from anysat.model.spatial import SpatialTransformer
from builders import random_model


def bucket_by_formula(distance: float) -> int:
    """Piecewise index of iRPE: ratio 1.9, so alpha 1.9, beta 3.8, gamma 15.2; bucket 3 is distance 0."""
    alpha, beta, gamma = 1.9, 3.8, 15.2
    d = round(distance)
    if d <= alpha:
        return 3 + d
    index = round(alpha + math.log(d / alpha) / math.log(gamma / alpha) * (beta - alpha))
    return 3 + min(index, int(beta))


def test_places_that_are_very_far_apart_are_far():
    place = torch.tensor([[0, 0], [0, 70_000], [46_341, 1]])
    assert buckets_between(place, place).tolist() == [[3, 6, 6], [6, 3, 6], [6, 6, 3]]


def test_distance_buckets_follow_the_published_formula_and_skip_tokens_get_their_own():
    coordinates = raster_coordinates(16, 11)
    buckets = distance_buckets(coordinates, num_skip=2)
    for i, (row, col) in enumerate(coordinates.tolist()):
        for j, (other_row, other_col) in enumerate(coordinates.tolist()):
            assert buckets[i + 2, j + 2] == bucket_by_formula(math.hypot(row - other_row, col - other_col))
    assert (buckets[:2] == 7).all()
    assert (buckets[:, :2] == 7).all()


def test_bucket_table_of_small_distances():
    row = distance_buckets(raster_coordinates(1, 8), num_skip=0)[0]
    assert row.tolist() == [3, 4, 5, 5, 6, 6, 6, 6]


def test_position_code_puts_the_column_first_and_sines_before_cosines():
    code = sincos_code(raster_coordinates(3, 4), unit=2.0, dim=16)
    for index, (row, col) in enumerate((r, c) for r in range(3) for c in range(4)):
        rate = [10000 ** (-k / 4) for k in range(4)]
        parts = [f(2.0 * place * w) for place in (col, row) for f in (math.sin, math.cos) for w in rate]
        assert np.allclose(code[index], parts, atol=1e-6)


def test_day_code_alternates_sine_and_cosine_of_slowing_angles():
    code = day_code(torch.tensor([[1.0, 200.0]]), period_days=367, dim=6)
    for k, day in enumerate((1.0, 200.0)):
        for i in range(6):
            angle = day / 367 ** (2 * (i // 2) / 6)
            assert code[0, k, i] == pytest.approx(math.sin(angle) if i % 2 == 0 else math.cos(angle), abs=1e-5)


def test_cell_sequence_counts_cells_row_by_row_then_their_subpatches():
    assert cell_sequence(10, 5)[:10].tolist() == [0, 1, 2, 3, 4, 25, 26, 27, 28, 29]
    assert sorted(cell_sequence(10, 5).tolist()) == list(range(100))
    assert torch.equal(cell_sequence(4, 1), torch.arange(16))


def test_believed_coordinates_are_the_true_ones_unless_cells_hold_several_subpatches():
    assert torch.equal(subpatch_coordinates(4, 1), raster_coordinates(4, 4))
    assert torch.equal(subpatch_coordinates(5, 5), raster_coordinates(5, 5))
    assert not torch.equal(subpatch_coordinates(10, 5), raster_coordinates(10, 10))


@pytest.mark.parametrize("heads", ["first", "each"])
def test_relative_term_is_the_query_times_the_table_of_the_bucket(heads):
    torch.manual_seed(0)
    relative = RelativePosition(head_dim=4, heads=heads)
    query, bucket = torch.randn(2, 3, 5, 4), torch.randint(0, 8, (5, 6))
    found = relative(query, bucket).expand(2, 3, 5, 6).detach()
    for b, h, i, j in np.ndindex(2, 3, 5, 6):
        asking = query[b, 0 if heads == "first" else h, i]
        assert found[b, h, i, j].item() == pytest.approx(
            (asking @ relative.weight[0, :, bucket[i, j]]).item(), abs=1e-5
        )


def test_attention_equals_softmax_of_scaled_products_plus_the_relative_term():
    torch.manual_seed(0)
    attention = Attention(8, num_heads=2, relative_heads="first")
    x, valid = torch.randn(2, 5, 8), torch.tensor([[True] * 5, [True, True, False, True, False]])
    bucket = distance_buckets(raster_coordinates(2, 2), num_skip=1)
    q, k, v = attention.qkv(x).view(2, 5, 3, 2, 4).permute(2, 0, 3, 1, 4)
    q = q * 4**-0.5
    logits = q @ k.transpose(-1, -2) + attention.relative(q, bucket)
    logits = logits.masked_fill(~valid[:, None, None], -torch.inf)
    mixed = (logits.softmax(-1) @ v).transpose(1, 2).reshape(2, 5, 8)
    assert torch.allclose(attention(x, valid, bucket), attention.out(mixed), atol=1e-6)


def test_attention_within_token_never_mixes_tokens():
    torch.manual_seed(0)
    attention = Attention(8, num_heads=2, within_token=True)
    x = torch.randn(1, 5, 8)
    changed = x.clone()
    changed[:, 0] += 1
    assert torch.equal(attention(x)[:, 1:], attention(changed)[:, 1:])
    assert not torch.allclose(attention(x)[:, 0], attention(changed)[:, 0])


def test_date_norm_is_a_group_norm_over_channels_and_dates():
    torch.manual_seed(0)
    norm, reference = DateNorm(16, 32), torch.nn.GroupNorm(16, 32)
    reference.weight.data, reference.bias.data = norm.weight.data.normal_(), norm.bias.data.normal_()
    x = torch.randn(2, 3, 5, 32) * 3 + 1
    expected = reference(x.flatten(0, 1).transpose(1, 2)).transpose(1, 2).view_as(x)
    assert torch.allclose(norm(x), expected, atol=1e-5)


def test_date_norm_ignores_absent_dates():
    torch.manual_seed(0)
    norm = DateNorm(16, 32)
    x, extra = torch.randn(2, 3, 4, 32), torch.randn(2, 3, 2, 32) * 100
    present = torch.cat([torch.ones(2, 3, 4), torch.zeros(2, 3, 2)], 2).bool()
    assert torch.allclose(norm(torch.cat([x, extra], 2), present)[:, :, :4], norm(x), atol=1e-5)


def test_temporal_pooling_equals_the_unfolded_attention():
    """Keys from position-encoded features, one learned query per head, values the encoded features themselves."""
    torch.manual_seed(0)
    pooling = TemporalPooling(ModelConfig(dim=64, num_heads=4)).eval()
    x, days = torch.randn(2, 3, 5, 64), torch.randint(1, 366, (2, 5)).float()
    encoded = x + day_code(days, 367, 4).tile(1, 1, 16)[:, None]
    keys = pooling.key(encoded).view(2, 3, 5, 16, 8)
    logits = (keys * pooling.query).sum(-1) / math.sqrt(8)
    values = encoded.view(2, 3, 5, 16, 4)
    expected = (logits.softmax(2)[..., None] * values).sum(2).flatten(-2)
    assert torch.allclose(pooling(x, day_code(days, 367, 4)), expected, atol=1e-5)


def test_temporal_pooling_ignores_absent_dates():
    torch.manual_seed(0)
    pooling = TemporalPooling(ModelConfig(dim=64, num_heads=4)).eval()
    x, days = torch.randn(2, 3, 5, 64), torch.randint(1, 366, (2, 5)).float()
    present = torch.ones(2, 3, 5, dtype=torch.bool)
    present[:, :, 3:] = False
    when = day_code(days, 367, 4)
    assert torch.allclose(pooling(x, when, present), pooling(x[:, :, :3], when[:, :3]), atol=1e-5)


def test_image_projection_is_a_convolution_with_stride_its_kernel(nano):
    projector = nano.projectors["aerial"]
    image = torch.randn(2, 4, 40, 60)
    convolved = functional.conv2d(image, projector.embed.weight, stride=10)  # (batch dim 4 6)
    expected = projector.mlp(convolved.permute(0, 2, 3, 1))
    tokens, _ = projector(projector.cut(image, num_sub=2), None, None)
    found = tokens.view(2, 2, 3, 2, 2, -1).transpose(2, 3).reshape(2, 4, 6, -1)
    assert torch.allclose(found, expected, atol=1e-5)


def test_series_projector_sees_each_pixel_by_itself():
    projector = random_model().projectors["s2"]
    assert isinstance(projector, SeriesProjector)
    series, days = torch.randn(1, 3, 10, 4, 4), torch.tensor([[5.0, 100.0, 200.0]])
    changed = series.clone()
    changed[..., 1, 2] += 1
    when = projector.date_code(days)
    before, after = (projector(projector.cut(s, num_sub=4), when, None)[0].view(4, 4, -1) for s in (series, changed))
    moved = (before - after).abs().amax(-1) > 1e-6
    assert moved.nonzero().tolist() == [[1, 2]]


@pytest.mark.parametrize(("dtype", "most"), [(torch.float32, 2e-7), (torch.bfloat16, 4e-3)])
@pytest.mark.parametrize("queries", [1, 2])
def test_attention_of_two_tokens_is_that_of_any_number(queries, dtype, most):
    torch.manual_seed(0)
    query, key, value = (torch.randn(5, 3, 2, 16) for _ in range(3))
    valid = torch.tensor([[True, False], [True, True], [False, True], [True, True], [True, False]])
    query, bias = query[:, :, :queries], masked_bias(torch.randn(5, 1, queries, 2), valid)
    wanted = (query @ key.transpose(2, 3) / 4 + bias).softmax(-1) @ value
    with torch.inference_mode():
        found = attend(*(one.to(dtype) for one in (query, key, value)), bias).float()
        unhidden = attend(query, key, value, None)
    assert float((found - wanted).norm() / wanted.norm()) < most
    torch.testing.assert_close(unhidden, (query @ key.transpose(2, 3) / 4).softmax(-1) @ value)


@pytest.mark.parametrize(("dtype", "most"), [(torch.float32, 1e-6), (torch.bfloat16, 1.2e-2)])
@pytest.mark.parametrize("pairs", [0, layers.LEARNT_PAIRS], ids=["by-torch", "written-out"])
@pytest.mark.parametrize("has_bias", [False, True])
def test_gradients_of_attention_are_those_of_its_definition(has_bias, pairs, dtype, most, monkeypatch):
    monkeypatch.setattr(layers, "LEARNT_PAIRS", pairs)
    torch.manual_seed(0)
    parts = [torch.randn(3, 2, 9, 16, dtype=torch.float64, requires_grad=True) for _ in range(3)]
    table = torch.randn(3, 1, 9, 9, dtype=torch.float64, requires_grad=True)
    valid = torch.rand(3, 9) > 0.3
    valid[:, 0] = True
    given = [*parts, *[table] * has_bias]

    def gradients(dtype, attention):
        query, key, value, *bias = (part.detach().to(dtype).requires_grad_() for part in given)
        found = attention(query, key, value, masked_bias(bias[0], valid) if bias else None)
        return found, *torch.autograd.grad(found.square().sum(), [query, key, value, *bias])

    def defined(query, key, value, bias):
        scores = query @ key.transpose(2, 3) / 4
        return (scores if bias is None else scores + bias).softmax(-1) @ value

    for found, wanted in zip(gradients(dtype, attend), gradients(torch.float64, defined), strict=True):
        assert found.dtype == dtype
        assert float((found - wanted).detach().norm() / wanted.detach().norm()) < most


def test_attention_that_is_learnt_asks_torch_where_scores_would_fill_the_memory(monkeypatch):
    query = torch.zeros(1, 1, 1, 8, dtype=torch.bfloat16, requires_grad=True).expand(1, 12, 1024, 8)
    asked = []
    monkeypatch.setattr(
        layers.functional, "scaled_dot_product_attention", lambda query, *_, **__: asked.append(1) or query
    )
    attend(query, query, query, None)
    assert asked
    few = query[:, :, :512]
    assert attend(few, few, few, None).shape == few.shape
    assert len(asked) == 1
    attend(few.float(), few.float(), few.float(), None)  # whose own gradient is as quick
    assert len(asked) == 2
    learnt = torch.zeros(1, 1, 1024, 1024, requires_grad=True)  # with which torch fuses nothing
    assert attend(query, query, query, learnt).shape == query.shape
    assert len(asked) == 2


def test_an_invalid_subpatch_leaves_the_spatial_attention():
    spatial = random_model().spatial
    tokens = torch.randn(2, 9, 128)
    coordinates = raster_coordinates(3, 3)
    code, bucket = sincos_code(coordinates, 10.0, 128), distance_buckets(coordinates, 1)
    keep = torch.tensor([0, 1, 2, 4, 5, 7])
    valid = torch.zeros(2, 9, dtype=torch.bool)
    valid[:, keep] = True
    with_skip = torch.cat([torch.zeros(1, dtype=torch.long), keep + 1])
    expected, _ = spatial(tokens[:, keep], None, code[keep], bucket[with_skip][:, with_skip])
    assert torch.allclose(spatial(tokens, valid, code, bucket)[0], expected, atol=2e-6)


@pytest.mark.parametrize("name", ["layers", "positions", "projectors", "spatial", "fusion", "validity"])
def test_every_shape_in_a_signature_can_be_read(name):
    module = importlib.import_module(f"anysat.model.{name}")
    functions = [f for f in vars(module).values() if inspect.isfunction(f)]
    classes = [c for c in vars(module).values() if inspect.isclass(c) and c.__module__ == module.__name__]
    functions += [f for c in classes for f in vars(c).values() if inspect.isfunction(f)]
    assert functions
    for function in functions:
        typing.get_type_hints(function)


@pytest.mark.parametrize("within_token", [False, True])
@pytest.mark.parametrize("is_masked", [False, True])
def test_a_block_that_answers_for_the_first_token_alone_gives_it_the_same(within_token, is_masked):
    torch.manual_seed(0)
    block = Block(64, 2, 1e-5, relative_heads=None if within_token else "each", within_token=within_token).eval()
    x, bucket = torch.randn(5, 10, 64), distance_buckets(subpatch_coordinates(3, 1), num_skip=1)
    valid = torch.rand(5, 10) > 0.4 if is_masked else None
    if valid is not None:
        valid[:, 0] = True
    both = (None if within_token else valid), (None if within_token else bucket)
    torch.testing.assert_close(block(x, *both, first_alone=True), block(x, *both)[:, :1], rtol=0, atol=2e-6)


def test_patches_alone_cost_a_tenth_less_than_patches_with_their_sub_patches():
    spatial = SpatialTransformer(ModelConfig(dim=64, depth=6, num_heads=2)).eval()
    coordinates = subpatch_coordinates(5, 1)
    given = torch.randn(8, 25, 64), None, torch.randn(25, 64), distance_buckets(coordinates, num_skip=1)
    flops = []
    for keep_sub in (True, False):
        with torch.inference_mode(), FlopCounterMode(display=False) as counter:
            _, sub = spatial(*given, keep_sub)
        flops.append(counter.get_total_flops())
        assert (sub is None) != keep_sub
    assert 0.84 < flops[1] / flops[0] < 0.9


@pytest.mark.parametrize("weights", [torch.float32, torch.bfloat16])
def test_a_norm_over_dates_of_low_precision_tells_small_differences_of_large_numbers(weights):
    norm, x = DateNorm(16, 64), 10 + torch.randn(200, 1, 4, 64, generator=torch.Generator().manual_seed(0))
    rounded = x.bfloat16()
    with torch.no_grad():
        exact, found = norm.double()(rounded.double()), norm.to(weights)(rounded).double()
    assert float((found - exact).norm() / exact.norm()) < 0.05


@pytest.mark.skipif(not layers.HAS_FUSED_LINEAR, reason="this processor has no product in bf16 that adds a bias")
@pytest.mark.parametrize("rows", [0, 640, 641, 872, 1535, 1536])
@pytest.mark.parametrize("stored", ["by row", "by column", "part"])
def test_products_in_parts_are_those_of_all_rows(rows, stored, monkeypatch):
    generator = torch.Generator().manual_seed(rows)
    x, weight = torch.randn(rows, 2, 32, generator=generator)[:, 0], torch.randn(900, 32, generator=generator)
    bias, weight = torch.randn(768, generator=generator), weight.bfloat16()
    weight = weight[:768] if stored == "by row" else weight.t().contiguous().t()[:768]
    weight = weight.t().contiguous().t() if stored == "by column" else weight
    taken, multiplied = [], torch.ops.mkldnn._linear_pointwise

    def noted(part, dense, *others):
        taken.append(len(part))
        assert dense.is_contiguous() or dense.t().is_contiguous()
        return multiplied(part, dense, *others)

    monkeypatch.setattr(layers.torch.ops.mkldnn, "_linear_pointwise", noted)
    monkeypatch.setattr(layers.torch, "get_num_threads", lambda: 2)
    found = layers.linear(x, weight, bias.bfloat16(), "gelu")
    wanted = functional.gelu(functional.linear(x.bfloat16().double(), weight.double(), bias.bfloat16().double()))
    torch.testing.assert_close(found.double(), wanted, atol=0.02, rtol=0.01)
    assert sum(taken) == rows
    assert len(taken) == {641: 2, 872: 2, 1535: 3}.get(rows, 1)
    assert max(taken) <= 640 or rows == 1536
