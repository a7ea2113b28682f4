"""Training in little memory: gradients are freed one by one, checkpoints copy nothing, and the result is the same."""

import weakref
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from anysat.errors import RecordError
from anysat.train.checkpoints import Checkpoint
from anysat.train.config import EngineConfig, OptimiserConfig
from anysat.train.memory import update_in_backward
from anysat.train.module import Training
from anysat.train.tensors import training_tensors
from anysat.workflows.pretrain import pretrain
from labelled import meadow_encoder
from tiny_pretraining import STEPS, tiny, world

THRIFTY = EngineConfig(save_memory=True)


def grads_of(module):
    return [p for p in module.parameters() if p.grad is not None]


def trained(out, engine, **changes):
    """The tensors of the last checkpoint, and the losses and norms of gradients."""
    pretrain(tiny(out, world(tiles=12), engine=engine, **changes))
    lines = [line.split(",") for line in (out / "metrics.csv").read_text().splitlines()]
    curves = [row[1:] for row in lines if row[1] in ("train/loss", "grad_norm", "learning_rate")]
    return load_file(out / "checkpoints" / f"step-{STEPS:08d}" / "training.safetensors"), curves


@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_weights_moments_and_metrics_are_the_same_even_over_a_stop(tmp_path, precision):
    tensors, curves = trained(tmp_path / "usual", EngineConfig(precision=precision))
    thrifty = replace(THRIFTY, precision=precision)
    pretrain(tiny(tmp_path / "thrifty", world(tiles=12), engine=thrifty, max_steps=2))
    same, alike = trained(tmp_path / "thrifty", thrifty, resume=True)
    assert tensors.keys() == same.keys()
    assert all(torch.equal(tensor, same[name]) for name, tensor in tensors.items())
    assert len(curves) == len(alike) == 3 * STEPS
    for (name, value), (other, found) in zip(curves, alike, strict=True):
        assert name == other
        assert float(found) == pytest.approx(float(value), rel=1e-5)


def test_one_gradient_is_held_at_a_time_and_none_is_left():
    layers, held = nn.Sequential(*[nn.Linear(8, 8) for _ in range(5)]), []
    optimiser = torch.optim.AdamW(layers.parameters(), lr=1e-3, fused=True)
    hooks = update_in_backward(optimiser, lambda _: held.append(len(grads_of(layers))))
    layers(torch.randn(3, 8)).sum().backward()
    assert held == [1] * 10
    assert not grads_of(layers)
    for hook in hooks:
        hook.remove()
    layers(torch.randn(3, 8)).sum().backward()
    assert len(held) == 10
    assert len(grads_of(layers)) == 10


def test_a_training_that_fails_leaves_no_hooks(tmp_path, monkeypatch):
    seen = []

    def fail(training, *_):
        seen.append(training.objective)
        raise ValueError("as a test")

    monkeypatch.setattr(Training, "on_before_optimizer_step", fail)
    with pytest.raises(ValueError, match="as a test"):
        pretrain(tiny(tmp_path / "run", engine=THRIFTY))
    assert not any(weight._post_accumulate_grad_hooks for weight in seen[0].parameters())


@pytest.mark.parametrize(
    ("engine", "clip_norm", "message"),
    [
        ({"accumulate": 2}, None, "false with accumulate 2"),
        ({"precision": "float16"}, None, "false with precision float16"),
        ({"strategy": "ddp"}, None, "false with strategy ddp"),
        ({"devices": 2}, None, "false with 2 processes"),
        ({}, 1.0, "false with clip_norm"),
    ],
)
def test_what_needs_all_gradients_at_once_is_refused(tmp_path, engine, clip_norm, message):
    with pytest.raises(RecordError, match=message):
        pretrain(
            tiny(tmp_path / "run", engine=replace(THRIFTY, **engine), optimiser=OptimiserConfig(clip_norm=clip_norm))
        )


def test_what_a_checkpoint_keeps_is_not_copied_first():
    encoder = meadow_encoder().requires_grad_(True)
    optimiser = torch.optim.AdamW(encoder.parameters())
    sum(p.sum() for p in encoder.parameters()).backward()
    optimiser.step()
    tensors, own = training_tensors(encoder, optimiser, wanted=True), encoder.state_dict()
    assert all(tensors[f"objective/{name}"].data_ptr() == tensor.data_ptr() for name, tensor in own.items())
    assert not training_tensors(encoder, optimiser, wanted=False)


def test_weights_with_two_names_are_kept_under_both():
    tied = nn.ModuleList([nn.Linear(3, 3)])
    tied.append(tied[0])
    tensors = training_tensors(tied, torch.optim.AdamW(tied.parameters()), wanted=True)
    one, other = tensors["objective/0.weight"], tensors["objective/1.weight"]
    assert torch.equal(one, other)
    assert one.data_ptr() != other.data_ptr()


def test_a_resumed_training_lets_go_of_the_tensors_of_its_checkpoint(tmp_path, monkeypatch):
    pretrain(tiny(tmp_path / "run", max_steps=2))
    read, step, held, left = Checkpoint.tensors, Training.training_step, [], []

    def noted(checkpoint):
        tensors = read(checkpoint)
        held.extend(weakref.ref(tensor) for tensor in tensors.values())
        return tensors

    def counted(training, *given):
        left.append(sum(tensor() is not None for tensor in held))
        return step(training, *given)

    monkeypatch.setattr(Checkpoint, "tensors", noted)
    monkeypatch.setattr(Training, "training_step", counted)
    pretrain(tiny(tmp_path / "run", resume=True))
    assert held
    assert left == [0, 0]
