"""What would end a training late, or spoil it in silence, is seen to at once."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from anysat.errors import CollapseError, DivergedError, RecordError
from anysat.train.checkpoints import checkpoint_steps
from anysat.train.config import OptimiserConfig
from anysat.train.keeper import Keeper
from anysat.train.metrics import read_metrics
from anysat.train.module import Plateau
from anysat.train.run import check_same
from anysat.train.tensors import load_moments
from toy_training import Toy, Watch, train


@pytest.mark.parametrize("fused", [True, False])
def test_the_number_of_steps_lies_where_the_update_wants_it(fused):
    """A fused update on a graphics card refuses one on the processor."""
    layer = nn.Linear(2, 2, device="meta")
    optimiser = torch.optim.AdamW(layer.parameters())
    optimiser.param_groups[0]["fused"] = fused
    tensors = {f"adam/{name}/weight": torch.ones(2, 2) for name in ("exp_avg", "exp_avg_sq")}
    load_moments(layer, optimiser, tensors | {"adam/step/weight": torch.tensor(3.0)})
    found = optimiser.state[layer.weight]
    assert found["step"].device.type == ("meta" if fused else "cpu")
    assert found["exp_avg"].device.type == "meta"


class Overflowing(Toy):
    """From the second step on its loss is a number, and its gradient is none."""

    def forward(self, draw, generator):
        found = super().forward(draw, generator)
        if draw.step >= 1:
            found["loss"] = found["loss"] + (self.predictor.bias * 0).abs().sqrt().sum()  # 0, of gradient 0 / 0
        return found


def test_a_gradient_that_is_no_number_makes_no_checkpoint(tmp_path):
    with pytest.raises(DivergedError, match="in one of the steps up to 2; the checkpoint of step 1 is kept in"):
        train(tmp_path / "run", objective=Overflowing(), keep={"save_every": 1, "log_every": 100})
    assert checkpoint_steps(tmp_path / "run" / "checkpoints") == [1]


def test_a_training_that_diverges_before_its_first_checkpoint_does_not_say_that_one_is_kept(tmp_path):
    with pytest.raises(DivergedError, match=r"no checkpoint is in .*run yet: lower the learning rate"):
        train(tmp_path / "run", objective=Overflowing(), keep={"save_every": 3, "log_every": 100})
    assert checkpoint_steps(tmp_path / "run" / "checkpoints") == []


@pytest.mark.parametrize("scale", [2.0**-30, 2.0**10])
def test_half_precision_that_overflows_at_every_scale_is_told(scale, tmp_path):
    keeper = object.__new__(Keeper)
    keeper.run, keeper._saved = SimpleNamespace(path=tmp_path), 4
    scaler = SimpleNamespace(get_scale=lambda: scale)
    strategy = SimpleNamespace(reduce_boolean_decision=lambda decision, all: decision)
    trainer = SimpleNamespace(precision_plugin=SimpleNamespace(scaler=scaler), strategy=strategy)
    training = SimpleNamespace(finite=torch.tensor(False), steps_done=7, objective=Toy())
    if scale < 1:
        with pytest.raises(DivergedError, match="every scale"):
            keeper._check_finite(trainer, training)
    else:
        keeper._check_finite(trainer, training)


@pytest.mark.parametrize(
    "options",
    [
        {"keep": {"keep_best": "val/los"}},
        {"optimiser": {"schedule": "plateau", "plateau_metric": "val/los"}},
    ],
)
def test_a_metric_that_is_not_measured_is_told_before_the_first_step(options, tmp_path):
    objective = Toy()
    with pytest.raises(RecordError, match="val/loss, got 'val/los'"):
        train(tmp_path / "run", objective=objective, monitors=[Watch([1.0] * 9)], **options)
    assert objective.updates == []


def test_a_metric_that_is_not_measured_is_told_when_a_run_goes_on(tmp_path):
    train(tmp_path / "run", monitors=[Watch([1.0] * 9)], max_steps=2)
    objective = Toy()
    with pytest.raises(RecordError, match="val/los"):
        train(tmp_path / "run", objective=objective, monitors=[Watch([1.0] * 9)], resume=True,
              keep={"keep_best": "val/los"})  # fmt: skip
    assert objective.updates == []


def test_a_metric_of_a_monitor_that_has_not_measured_yet_is_not_refused(tmp_path):
    """As when a session ended between another monitor's first measurement and its own."""

    class Other(Watch):
        name = "health"

    train(tmp_path / "run", monitors=[Other([1.0] * 9)], max_steps=2)
    train(tmp_path / "run", monitors=[Other([1.0] * 9), Watch([1.0] * 9)], resume=True, keep={"keep_best": "val/loss"})


class Collapsing(Watch):
    """There is nothing to tell after the start."""

    name = "health"

    def __call__(self, objective, step):
        if step:
            raise CollapseError("all alike", step=step)
        return {"spread": 1.0}


def test_a_collapse_before_the_metric_of_a_plateau_is_told_as_one(tmp_path):
    options = {"schedule": "plateau", "plateau_metric": "health/spread"}
    with pytest.raises(CollapseError):
        train(tmp_path / "run", monitors=[Collapsing([])], optimiser=options)
    assert checkpoint_steps(tmp_path / "run" / "checkpoints") == [2]


class Two(Watch):
    def __call__(self, objective, step):
        return {"small": 0.01 * (1 + step), "large": 5.0 - 0.1 * step}


def test_the_best_of_another_metric_is_not_compared_with(tmp_path):
    watch = Two([])
    train(tmp_path / "run", monitors=[watch], keep={"keep_best": "val/small"}, max_steps=2)
    train(tmp_path / "run", monitors=[watch], keep={"keep_best": "val/large", "keep_last": 1}, resume=True)
    assert checkpoint_steps(tmp_path / "run" / "checkpoints") == [6]  # the best of the large one is the last


def test_a_measurement_that_is_no_number_is_no_gain():
    config = OptimiserConfig(learning_rate=1.0, schedule="plateau", plateau_patience=5)
    plateau = Plateau().after(float("nan"), config).after(2.0, config)
    assert (plateau.best, plateau.num_without_gain) == (2.0, 0)


@pytest.mark.parametrize("kind", [np.float64, torch.tensor])
def test_a_run_whose_monitors_give_numbers_of_other_types_is_gone_on_with(kind, tmp_path):
    class Typed(Watch):
        def __call__(self, objective, step):
            return {"loss": kind(1 - step / 8)}

    train(tmp_path / "run", monitors=[Typed([])], max_steps=2)
    train(tmp_path / "run", monitors=[Typed([])], max_steps=4, resume=True)
    assert read_metrics(tmp_path / "run" / "metrics.csv")["val/loss"] == [(0, 1.0), (2, 0.75), (4, 0.5)]


def test_options_in_a_list_of_tables_are_compared_one_by_one():
    begun = {"data": [{"dataset": "flair", "root": "/old", "weight": 1}]}
    given = {"data": [{"dataset": "flair", "root": "/new", "weight": 1}]}
    check_same("run", begun, given, {"root"})
    with pytest.raises(RecordError, match=r"data\.0\.root"):
        check_same("run", begun, given)
    with pytest.raises(RecordError, match=r"data\.1\.dataset"):
        check_same("run", begun, {"data": [*given["data"], {"dataset": "s2naip"}]}, {"root"})
