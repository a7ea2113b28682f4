"""A stored curve of losses: a change of the mathematics is a visible act.

The stored values are compared within 1e-4, not exactly: sums are ordered, and multiplications fused, as processor and
library of linear algebra like, and training carries the difference on (AdamW has a large epsilon, so that it does not
blow up what is rounding; one thread). In one process the same steps are the same.
After a change that is meant: python tests/test_pretrain_curve.py
"""

import json

import pytest
import torch

from anysat.model.config import ModelConfig
from anysat.pretrain.config import ObjectiveConfig
from anysat.pretrain.objective import Pretraining
from builders import GOLDEN, random_model
from test_pretrain_objective import make_draw, unit_statistics

FILE = GOLDEN / "pretrain_curve.json"
STEPS = 30
GOALS = ("teacher", "projection")


def curve(goal):
    """Losses of a plain loop over three batches of different modalities and patch sizes."""
    draws = [
        make_draw(("s2", "s1"), 20.0, dates=4, seed=1),
        make_draw(("aerial", "s2"), 10.0, side_m=30.0, dates=3, seed=2),
        make_draw(("s2", "l7", "modis"), 30.0, dates=3, batch=3, seed=3),
    ]
    # Weights of unit size: what patches differ in is far above rounding from the first step on.
    student = random_model(ModelConfig(dim=64, depth=1, num_heads=2)).requires_grad_(True)
    student.normaliser = unit_statistics()
    torch.manual_seed(0)
    objective = Pretraining(student, config=ObjectiveConfig(goal=goal, predictor_depth=1, predictor_heads=2)).train()
    optimiser = torch.optim.AdamW([p for p in objective.parameters() if p.requires_grad], lr=1e-5, eps=1e-3)
    losses = []
    for step in range(STEPS):
        loss = objective(draws[step % 3], torch.Generator().manual_seed(step))["loss"]
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        objective.after_update(step, STEPS)
        losses.append(loss.item())
    return losses


@pytest.fixture(autouse=True)
def one_thread():
    count = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(count)


@pytest.mark.parametrize("goal", GOALS)
def test_losses_are_those_on_record_and_the_same_again(goal):
    found = curve(goal)
    assert found == pytest.approx(json.loads(FILE.read_text())[goal], rel=1e-4)
    assert curve(goal) == found


if __name__ == "__main__":
    torch.set_num_threads(1)
    FILE.write_text(json.dumps({goal: curve(goal) for goal in GOALS}, indent=1) + "\n")
