"""Miniatures of every dataset, written by the generated world once per test process."""

import functools
import tempfile
from pathlib import Path

from anysat.data.base import dataset_names, find_dataset
from anysat.data.datasets import world as generated
from anysat.data.layout import DatasetFolder
from anysat.data.world import World

TILES = 6
generated.observe = functools.cache(generated.observe)
"""Tiles of the dataset `world` are generated when they are read, a second each: once per test process is enough."""
LAYOUTS = [(name, layout.name) for name in dataset_names() for layout in find_dataset(name).layouts]


@functools.cache
def _home() -> tempfile.TemporaryDirectory:
    return tempfile.TemporaryDirectory(prefix="anysat-miniatures-")


def miniature(name: str, layout: str | None = None, tiles: int = TILES, seed: int = 0) -> Path:
    """The folder of a miniature. Shared: copy it before changing anything."""
    return _written(name, layout or find_dataset(name).layouts[0].name, tiles, seed)


@functools.cache
def _written(name: str, layout: str, tiles: int, seed: int) -> Path:
    record = find_dataset(name)
    root = Path(_home().name) / f"{name}-{layout}-{tiles}-{seed}"
    root.mkdir()
    record.write_miniature(DatasetFolder(root, record.layout(layout)), World(seed), tiles)
    return root
