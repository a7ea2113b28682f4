"""The core exports with free batch, dates and size, in a process without the test suite's shape checks."""

import subprocess
import sys

import pytest

from anysat.errors import InputError
from anysat.model.export import export
from builders import child_environment, random_input, random_model

SCRIPT = """
import sys, io, torch
from builders import random_input, random_model
from anysat.model.export import export
keys, dense, patch = sys.argv[1].split(","), sys.argv[2] or None, float(sys.argv[3])
model = random_model(modalities=[m for m in random_model().config.modalities if m.key in keys])
buffer = io.BytesIO()
torch.export.save(export(model, keys, patch, dense=dense), buffer)
buffer.seek(0)
program = torch.export.load(buffer).module()
model.requires_grad_()  # so that it computes as the program, nothing made ready
for batch, times, height, width in ((3, 5, 120.0, 180.0), (1, 2, 240.0, 120.0)):
    x = random_input(keys, side_m=height, width_m=width, batch=batch, times=times)
    days = {k: x[k + "_dates"].float() for k in keys if k + "_dates" in x}
    found = program({k: x[k] for k in keys}, days)
    outputs = ["tile", "patch"] + ["dense"] * bool(dense)
    for name, tensor in zip(outputs, found, strict=True):
        expected = model(x, patch, name, dense if name == "dense" else None).detach()
        assert tensor.shape == expected.shape, (name, tensor.shape, expected.shape)
        assert torch.allclose(tensor, expected, atol=1e-5), name
print("same")
"""


@pytest.mark.parametrize(("keys", "dense", "patch"), [("s2", "s2", 20), ("spot,s2,l7", "", 60)])
def test_the_exported_core_gives_the_same_numbers_at_other_batch_dates_and_sizes(keys, dense, patch):
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, keys, dense, str(patch)],
        capture_output=True, text=True, check=False, env=child_environment(),
    )  # fmt: skip
    assert done.stdout.strip().endswith("same"), done.stderr[-2000:]


def test_what_cannot_be_exported_is_refused():
    model = random_model()
    with pytest.raises(InputError, match="modalities that lie in patches of a multiple of 30 m, got .*'l7'.*, 20 m"):
        export(model, ["s2", "l7"], 20)
    with pytest.raises(InputError, match="lie in patches"):
        export(model, ["modis"], 250)
    with pytest.raises(InputError, match="export: expected at least one modality, got none"):
        export(model, [], 20)


@pytest.mark.parametrize("guard", ["no_grad", "inference_mode"])
def test_a_program_is_free_and_drops_nothing_however_the_model_is_held(guard):
    """Made where nothing is learned, of a model in training."""
    done = subprocess.run(
        [sys.executable, "-c", HELD, guard], capture_output=True, text=True, check=False, env=child_environment()
    )
    assert done.stdout.strip() == "same", done.stderr[-2000:]


HELD = """
import sys, torch
from anysat.modalities import MODALITIES
from anysat.model.export import export
from builders import random_input, random_model
model = random_model(modalities=[MODALITIES["s2"]]).train()
model.spatial.eval()
with getattr(torch, sys.argv[1])():
    program = export(model, ["s2"], 20).module()
assert model.training and model.projectors["s2"].dropout.training and not model.spatial.training
x = random_input(("s2",), 120, width_m=180, batch=3, times=5)
found = program({"s2": x["s2"]}, {"s2": x["s2_dates"].float()})
torch.testing.assert_close(found[1], model.eval()(x, 20), atol=1e-5, rtol=1e-5)
print("same")
"""


def test_state_dicts_survive_a_round_trip():
    model, other = random_model(), random_model(depth=2)
    other.load_state_dict(model.state_dict())
    other.load_published_state_dict(model.published_state_dict())
    x = random_input(("s2",))
    assert (model(x, 20, "tile") == other(x, 20, "tile")).all()


def test_attention_of_low_precision_is_exported_for_any_number_of_tokens():
    """Which way few tokens take must not be fixed by the example."""
    done = subprocess.run([sys.executable, "-c", LOW_PRECISION], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "same", done.stderr[-2000:]


LOW_PRECISION = """
import torch
from anysat.model.layers import Attention
layer, tokens = Attention(64, 2).bfloat16(), torch.export.Dim("tokens", min=2, max=500)
with torch.no_grad():
    made = torch.export.export(layer, (torch.randn(2, 6, 64).bfloat16(),), dynamic_shapes=({1: tokens}, ))
    x = torch.randn(2, 30, 64).bfloat16()
    torch.testing.assert_close(made.module()(x), layer(x), atol=1e-2, rtol=1e-2)
print("same")
"""
