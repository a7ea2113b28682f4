"""Pretraining without labels: masks, goals, losses and the objective that combines them."""
