"""Training: the engine around an objective. Devices, precision and gradients are Lightning's."""
