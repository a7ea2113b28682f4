"""Supervised tasks: targets, heads, losses, metrics."""

from anysat.tasks import classification, regression  # noqa: F401 - they add their tasks to `base.TASKS`
