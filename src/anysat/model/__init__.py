"""The encoder: layers, projectors, transformers, weights."""
