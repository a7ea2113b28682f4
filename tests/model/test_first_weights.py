"""How weights begin: as published, or so that little of the pixels is lost."""

import pytest
import torch
from torch import nn

from anysat.model.config import ModelConfig
from anysat.model.encoder import AnySat
from anysat.model.first_weights import WHOLE_YEAR_HEADS, init_isometric
from objective_builders import drawn, make_batch, unit_statistics


def beginnings(seed=0, dim=128, **config):
    made = {}
    for name in ("published", "isometric"):
        torch.manual_seed(seed)
        made[name] = AnySat(ModelConfig(dim=dim, depth=2, num_heads=4, subpatch_order="raster", **config)).eval()
    init_isometric(made["isometric"])
    return made


def told(model, key, bands):
    """How much of normal pixels (R2) a linear map reads from what the pixel layers make of them."""
    pixels = drawn(3000, bands).double()
    with torch.no_grad():
        found = model.projectors[key].pixel_mlp(pixels.float()).double()
    found = torch.cat([found - found.mean(0), torch.ones(len(found), 1)], dim=1)
    train, test = slice(2000), slice(2000, None)
    square = found[train].T @ found[train] + 1e-3 * torch.eye(found.shape[1])
    weight = torch.linalg.solve(square, found[train].T @ pixels[train])
    rest = (pixels[test] - found[test] @ weight).square().sum() / pixels[test].square().sum()
    return 1 - rest.item()


def test_narrow_pixel_layers_forget_half_of_ten_bands_and_wide_ones_do_not():
    narrow, wide = beginnings()["published"], beginnings(pixel_widths=(128,))
    assert told(narrow, "s2", 10) < 0.6
    assert told(wide["published"], "s2", 10) > 0.9
    assert told(wide["isometric"], "s2", 10) > told(wide["published"], "s2", 10) + 0.02


@pytest.mark.parametrize("dim", [128, 160, 768])
def test_heads_of_the_temporal_pooling_begin_with_a_part_of_the_year_each(dim):
    projector = beginnings(dim=dim)["isometric"].projectors["s2"]
    days = torch.arange(1.0, 366.0)
    pooling, code = projector.pooling, projector.date_code(days[None])[0]
    heads, key_dim = pooling.query.shape
    asked = torch.einsum("hk,hkd->hd", pooling.query, pooling.key.weight.view(heads, key_dim, -1)) / key_dim**0.5
    share = (code @ asked.view(heads, heads, -1).sum(1).T).softmax(0)
    assert share[:, :WHOLE_YEAR_HEADS].max() < 3 / 365
    middles = (torch.arange(12) + 0.5) / 12 * 365.25
    peaks = days[share[:, WHOLE_YEAR_HEADS:].argmax(0)]
    assert (peaks - middles).abs().max() < 25, peaks
    within = (days[:, None] - middles).abs() < 60  # of a spread of 45 days, where the year does not end
    assert (share[:, WHOLE_YEAR_HEADS:] * within).sum(0)[2:-2].min() > 0.6


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
    assert moved["isometric"] > 10
    assert moved["published"] < 1.2
