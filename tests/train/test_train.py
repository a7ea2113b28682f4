"""The engine: resuming, schedules, and what an update is."""

import math

import pytest
import torch

from anysat.train.config import EngineConfig, OptimiserConfig
from anysat.train.metrics import read_metrics
from anysat.train.module import Plateau, Training, learning_rate, seed_step
from toy_training import ACCUMULATED, NUM_STEPS, Toy, Watch, assert_same, losses_of, sources, tensors_of, train

# -- the same, however it is cut ---------------------------------------------------------------------


def test_three_steps_and_the_rest_equal_all_in_one_go(toy_run, toy_begun):
    train(toy_begun, resume=True)
    assert losses_of(toy_begun) == losses_of(toy_run)
    assert_same(tensors_of(toy_begun), tensors_of(toy_run))


def test_resuming_is_exact_with_accumulation_and_workers(toy_accumulated, tmp_path):
    engine = {"accumulate": 2}
    train(tmp_path / "cut", engine=engine, max_steps=3, **ACCUMULATED)
    train(tmp_path / "cut", engine=engine | {"num_workers": 1}, resume=True, **ACCUMULATED)
    assert losses_of(tmp_path / "cut") == losses_of(toy_accumulated)
    assert_same(tensors_of(tmp_path / "cut"), tensors_of(toy_accumulated))


def test_another_seed_gives_other_numbers(toy_run, tmp_path):
    train(tmp_path / "other", seed=2, max_steps=1)
    assert losses_of(tmp_path / "other")[0] != losses_of(toy_run)[0]


def test_random_draws_depend_on_seed_step_and_rank_alone():
    draws = set()
    for key in [(1, 0, 0), (2, 0, 0), (1, 1, 0), (1, 0, 1)]:
        torch.rand(7)
        generator = seed_step(*key)
        drawn = (torch.rand((), generator=generator).item(), torch.rand(()).item())
        generator = seed_step(*key)
        assert drawn == (torch.rand((), generator=generator).item(), torch.rand(()).item())
        draws |= set(drawn)
    assert len(draws) == 8


def test_resuming_where_nothing_is_begins(toy_run, tmp_path):
    train(tmp_path / "new", resume=True, max_steps=1)
    assert losses_of(tmp_path / "new") == losses_of(toy_run)[:1]


def test_a_finished_run_is_not_trained_further(toy_begun):
    objective = Toy()
    assert train(toy_begun, objective=objective, resume=True, max_steps=3).steps == 3
    assert objective.updates == []
    assert torch.equal(objective.predictor.bias, tensors_of(toy_begun)["objective/predictor.bias"])


# -- the learning rate -------------------------------------------------------------------------------


def test_cosine_rises_in_a_line_and_falls_to_its_end():
    config = OptimiserConfig(learning_rate=2.0, warmup_steps=4, final_learning_rate_frac=0.1)
    rates = [learning_rate(step, 104, config) for step in range(105)]
    assert rates[:4] == [0.5, 1.0, 1.5, 2.0]
    assert rates[4] == 2.0
    assert rates[54] == pytest.approx(2.0 * (0.1 + 0.9 / 2))
    assert rates[104] == pytest.approx(0.2)


def test_the_logged_learning_rate_is_that_of_the_schedule_whatever_the_factors_of_weights(tmp_path):
    objective = Toy()
    objective.learning_rate_scale = lambda name: 0.25
    train(tmp_path / "run", objective=objective, max_steps=3)
    config = OptimiserConfig(learning_rate=1e-2, warmup_steps=2)
    logged = read_metrics(tmp_path / "run" / "metrics.csv")["learning_rate"]
    assert logged == [(step + 1, pytest.approx(learning_rate(step, NUM_STEPS, config))) for step in range(3)]


def test_constant_stays_after_the_warm_up():
    config = OptimiserConfig(learning_rate=1.0, warmup_steps=2, schedule="constant")
    assert [learning_rate(step, 9, config) for step in range(4)] == [0.5, 1.0, 1.0, 1.0]


def test_plateau_falls_as_that_of_torch():
    config = OptimiserConfig(learning_rate=1.0, schedule="plateau", plateau_patience=2, plateau_factor=0.5)
    parameter = torch.nn.Parameter(torch.zeros(()))
    theirs = torch.optim.lr_scheduler.ReduceLROnPlateau(torch.optim.SGD([parameter], lr=1.0), factor=0.5, patience=2)
    plateau = Plateau()
    for value in [3.0, 2.0, 2.0, 1.9999, 2.5, 2.0, 2.0, 2.0, 1.0, 1.0, 1.0, 1.0, 1.0]:
        theirs.step(value)
        plateau = plateau.after(value, config)
        assert learning_rate(7, 9, config, plateau.factor) == theirs.get_last_lr()[0]


def test_plateau_goes_on_from_a_checkpoint(tmp_path):
    options = {
        "optimiser": {"schedule": "plateau", "plateau_patience": 1, "warmup_steps": 0}, "num_steps": 7,
        "monitors": [Watch([5.0] * 20)],
    }  # fmt: skip
    train(tmp_path / "whole", **options)
    for stop in (3, 5, None):  # stops between two measurements
        train(tmp_path / "cut", max_steps=stop, resume=True, **options)
    rates = [read_metrics(tmp_path / run / "metrics.csv")["learning_rate"] for run in ("whole", "cut")]
    assert rates[0] == rates[1] == [(step, 1e-2) for step in range(1, 7)] + [(7, pytest.approx(1e-3))]


def test_max_steps_stops_and_leaves_the_schedule_alone(toy_run, tmp_path):
    fitted = train(tmp_path / "run", max_steps=4)
    assert (fitted.steps, fitted.stopped_early, fitted.exit_status) == (4, True, 0)
    assert losses_of(tmp_path / "run") == losses_of(toy_run)[:4]
    rates = [read_metrics(run / "metrics.csv")["learning_rate"] for run in (tmp_path / "run", toy_run)]
    assert rates[0] == rates[1][:4]


def test_a_step_is_made_with_the_learning_rate_of_its_number(toy_run):
    config = OptimiserConfig(learning_rate=1e-2, warmup_steps=2)
    rates = read_metrics(toy_run / "metrics.csv")["learning_rate"]
    assert rates == [(step + 1, pytest.approx(learning_rate(step, 6, config))) for step in range(6)]


# -- an update ---------------------------------------------------------------------------------------


def test_the_teacher_moves_once_per_step_under_accumulation(tmp_path):
    objective = Toy()
    train(tmp_path / "run", objective=objective, engine={"accumulate": 3}, num_steps=2)
    assert objective.updates == [0, 1]


def test_the_teacher_follows_weights_that_are_updated_already(tmp_path):
    class Seeing(Toy):
        def after_update(self, step, num_steps):
            self.seen = (num_steps, self.predictor.weight.clone())

    objective = Seeing()
    train(tmp_path / "run", objective=objective, num_steps=3, max_steps=1)
    assert objective.seen[0] == 3
    assert torch.equal(objective.seen[1], objective.predictor.weight)


def test_a_skipped_step_does_not_move_the_teacher(tmp_path, monkeypatch):
    """A gradient scaler works out gradients and then leaves out a step whose gradients overflow."""
    objective, left = Toy(), iter([False, True, False])

    def optimizer_step(plugin, optimizer, model, closure, **kwargs):
        result = closure()
        plugin._after_closure(model, optimizer)
        return result if next(left) else optimizer.step(closure=lambda: result, **kwargs)

    monkeypatch.setattr("lightning.pytorch.plugins.precision.Precision.optimizer_step", optimizer_step)
    assert train(tmp_path / "run", objective=objective, num_steps=3).steps == 3
    assert objective.updates == [0, 2]


def test_a_scaler_that_finds_an_overflow_moves_neither_weights_nor_teacher():
    """The scaler of fp16 itself, with the optimiser as fp16 has it: not fused, for it steps then in any case."""
    objective = Toy()
    training = Training(
        objective, sources, optimiser=OptimiserConfig(learning_rate=1e-2), engine=EngineConfig(precision="float16"), seed=0,
        num_steps=9, start=0, stop=9, moments={}, plateau=Plateau(),
    )  # fmt: skip
    optimiser, scaler = training.configure_optimizers(), torch.amp.GradScaler("cpu", init_scale=2.0)
    weights = [weight for group in optimiser.param_groups for weight in group["params"]]
    before, moved = weights[0].detach().clone(), []
    for gradient in (float("inf"), 1.0):
        scaler.scale(torch.ones(()))
        for weight in weights:
            weight.grad = torch.full_like(weight, gradient)
        scaler.step(optimiser)
        scaler.update()
        moved.append((len(objective.updates), not torch.equal(weights[0], before)))
    assert moved == [(0, False), (1, True)]


def test_what_has_no_gradient_neither_decays_nor_has_moments(toy_run):
    before, after = Toy().state_dict(), tensors_of(toy_run)
    absent = [name for name in before if "projectors.l8" in name and name.startswith("student")]
    assert absent
    for name in absent:
        assert torch.equal(before[name], after[f"objective/{name}"]), name
        assert f"adam/exp_avg/{name}" not in after
    assert "adam/exp_avg/predictor.weight" in after


@pytest.mark.parametrize("decay_all", [False, True])
def test_norms_biases_and_tokens_decay_only_where_all_do(decay_all, tmp_path):
    objective = Toy()
    settings = OptimiserConfig(learning_rate=1.0, weight_decay=0.1, decay_all=decay_all)
    training = Training(
        objective,
        sources,
        optimiser=settings,
        engine=EngineConfig(),
        seed=0,
        num_steps=9,
        start=0,
        stop=9,
        moments={},
        plateau=Plateau(),
    )
    decays = {
        id(p): group["weight_decay"] for group in training.configure_optimizers().param_groups for p in group["params"]
    }
    named = dict(objective.named_parameters())
    assert decays[id(named["predictor.weight"])] == 0.1
    for name in ("predictor.bias", "student.fusion.tile_token", "student.spatial.norm.weight"):
        assert decays[id(named[name])] == (0.1 if decay_all else 0.0), name
    assert not any(id(p) in decays for p in objective.teacher.parameters())


def test_gradients_are_clipped_to_the_norm(tmp_path):
    lengths = []

    class Spy(Toy):
        def after_update(self, step, num_steps):
            lengths.append(
                math.sqrt(sum(p.grad.square().sum().item() for p in self.parameters() if p.grad is not None))
            )

    train(tmp_path / "run", objective=Spy(), optimiser={"clip_norm": 0.01}, num_steps=2)
    assert lengths == pytest.approx([0.01, 0.01], rel=1e-3)
    assert read_metrics(tmp_path / "run" / "metrics.csv")["grad_norm"][0][1] > 0.1


def test_bf16_computes_in_half_precision_and_keeps_whole_weights(toy_run, tmp_path):
    train(tmp_path / "run", engine={"precision": "bf16"}, max_steps=1)
    ours, theirs = losses_of(tmp_path / "run")[0][1], losses_of(toy_run)[0][1]
    assert ours != theirs
    assert ours == pytest.approx(theirs, rel=0.05)
    assert {t.dtype for t in tensors_of(tmp_path / "run").values() if t.is_floating_point()} == {torch.float32}


def test_a_module_keeps_its_own_mode(tmp_path):
    modes = []

    class Calm(Toy):
        def train(self, mode=True):
            super().train(mode)
            self.teacher.eval()
            return self

        def forward(self, draw, generator):
            modes.append((self.student.training, self.teacher.training))
            return super().forward(draw, generator)

    train(tmp_path / "run", objective=Calm(), monitors=[Watch([1.0] * 9, every_steps=1)], num_steps=2)
    assert modes == [(True, False)] * 2
