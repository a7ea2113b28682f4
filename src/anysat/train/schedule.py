"""The learning-rate schedules, and the state of `plateau`."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from anysat.train.config import OptimiserConfig

_LEAST_GAIN = 1e-4
"""Least relative improvement that counts, as in torch's `ReduceLROnPlateau`."""


def learning_rate(step: int, num_steps: int, config: OptimiserConfig, plateau_factor: float = 1.0) -> float:
    """Return the learning rate of a step, counted from 0, in a training of `num_steps` steps.

    >>> config = OptimiserConfig(learning_rate=1.0, warmup_steps=2)
    >>> [round(learning_rate(step, 6, config), 3) for step in range(6)]
    [0.5, 1.0, 1.0, 0.854, 0.5, 0.146]
    """
    highest = config.learning_rate
    if step < config.warmup_steps:
        return highest * (step + 1) / config.warmup_steps
    if config.schedule == "cosine":
        done = (step - config.warmup_steps) / max(1, num_steps - config.warmup_steps)
        least = config.final_learning_rate_frac
        return highest * (least + (1 - least) * (1 + math.cos(math.pi * min(done, 1.0))) / 2)
    return highest * (plateau_factor if config.schedule == "plateau" else 1.0)


@dataclass(frozen=True, kw_only=True)
class Plateau:
    """The state of the schedule `plateau`."""

    factor: float = 1.0
    """Factor of the learning rate."""
    best: float | None = None
    """Lowest value so far."""
    num_without_gain: int = 0
    """Number of consecutive measurements without improvement."""

    def after(self, value: float, config: OptimiserConfig) -> Plateau:
        """Return the state after one more measurement. NaN is not an improvement."""
        if not math.isnan(value) and (self.best is None or value < self.best - _LEAST_GAIN * abs(self.best)):
            return replace(self, best=value, num_without_gain=0)
        if self.num_without_gain < config.plateau_patience:
            return replace(self, num_without_gain=self.num_without_gain + 1)
        return replace(self, factor=self.factor * config.plateau_factor, num_without_gain=0)
