"""Training of an objective. Lightning handles devices, precision and gradients."""
