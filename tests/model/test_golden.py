"""The published numbers: every golden case, parameter counts, names."""

import copy
import json

import numpy as np
import pytest
import torch

from anysat.model.config import SIZES, ModelConfig
from anysat.model.encoder import AnySat
from builders import GOLDEN, golden_input

CASES = json.loads((GOLDEN / "forward.json").read_text())
NUMBERS = np.load(GOLDEN / "forward.npz")
PUBLISHED = json.loads((GOLDEN / "state_dict.json").read_text())


@pytest.mark.parametrize("is_ready", [False, True], ids=["as trained", "made ready"])
@pytest.mark.parametrize("case", CASES, ids=[case["name"] for case in CASES])
def test_faithful_outputs_are_the_published_ones(case, is_ready, golden_tiny):
    x = golden_input(case)
    for output in case["outputs"]:
        kind, _, modality = output.partition(":")
        model = golden_tiny if is_ready else copy.deepcopy(golden_tiny).requires_grad_()
        found = model(x, case["patch_size"], kind, modality or None, faithful=True).detach()
        assert list(found.shape) == case["expected"][output]["shape"]
        expected = NUMBERS[f"{case['name']}/{output}"]
        index = np.arange(expected.size) * found.numel() // expected.size
        worst = np.abs(found.flatten().numpy()[index] - expected).max()
        assert worst <= (4e-5 if kind == "dense" else 1e-5), f"{output}: {worst:.2e}"
        assert found.double().norm() == pytest.approx(case["expected"][output]["l2"], rel=1e-5)


UNMASKED = [case for case in CASES if not any(one["mask"] for one in case["inputs"])]


@pytest.mark.parametrize("case", UNMASKED, ids=[case["name"] for case in UNMASKED])
def test_without_masks_the_default_tile_and_patch_outputs_are_the_published_ones_too(case, golden_tiny):
    x = golden_input(case)
    assert torch.equal(
        golden_tiny(x, case["patch_size"], "all"), golden_tiny(x, case["patch_size"], "all", faithful=True)
    )


@pytest.mark.parametrize("size", SIZES)
def test_parameter_counts_are_the_published_ones(size):
    expected = PUBLISHED["counts"][size]
    with torch.device("meta"):
        model = AnySat(SIZES[size]())
    counts = {f"projector_{key}": sum(p.numel() for p in m.parameters()) for key, m in model.projectors.items()}
    counts["spatial_encoder"] = sum(p.numel() for p in model.spatial.parameters())
    counts["blocks.self"] = sum(p.numel() for p in model.fusion.blocks.parameters())
    counts["blocks.cross"] = sum(p.numel() for p in model.fusion.pooling.parameters())
    counts["cls_token"] = model.fusion.tile_token.numel()
    assert counts == expected["components"]
    assert sum(p.numel() for p in model.parameters()) == expected["total"]
    assert len(model.published_state_dict()) == expected["n_keys"]


def test_base_has_exactly_the_published_names_and_shapes():
    with torch.device("meta"):
        model = AnySat(ModelConfig.base())
    found = {name: list(tensor.shape) for name, tensor in model.published_state_dict().items()}
    assert found == PUBLISHED["base"]
    assert len(found) == 418
    assert sum(t.numel() for t in model.published_state_dict().values()) == 125_905_447
