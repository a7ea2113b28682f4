"""The ground: georeferenced files in, georeferenced files out. Never sees a model."""
