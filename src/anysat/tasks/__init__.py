"""Supervised tasks: targets, heads, losses, metrics."""
