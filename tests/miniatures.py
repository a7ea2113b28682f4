"""Miniatures of every dataset, written by the generated world once per test process."""

import functools
import tempfile
from pathlib import Path

from anysat.data.base import dataset_names, find_dataset
from anysat.data.layout import DatasetFolder
from anysat.data.world import World

TILES = 6
LAYOUTS = [(name, layout.name) for name in dataset_names() for layout in find_dataset(name).layouts]


@functools.cache
def _home() -> tempfile.TemporaryDirectory:
    return tempfile.TemporaryDirectory(prefix="anysat-miniatures-")


@functools.cache
def miniature(name: str, layout: str | None = None, tiles: int = TILES, seed: int = 0) -> Path:
    """The folder of a miniature. Shared: copy it before changing anything."""
    record = find_dataset(name)
    chosen = record.layouts[0] if layout is None else record.layout(layout)
    root = Path(_home().name) / f"{name}-{chosen.name}-{tiles}-{seed}"
    root.mkdir()
    record.write_miniature(DatasetFolder(root, chosen), World(seed), tiles)
    return root
