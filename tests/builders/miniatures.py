"""Miniatures of every dataset, written by the generated world once per test process."""

import functools
import shutil
import tempfile
from pathlib import Path

import numpy as np

from anysat.data.datasets import world as generated
from anysat.data.layout import DatasetFolder
from anysat.data.open import dataset_names, find_dataset, open_dataset
from anysat.data.world import World
from anysat.modalities import MODALITIES

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


def samples_of(name, split="all", root=None, **options):
    """A miniature opened, or the dataset in another folder."""
    return open_dataset(name, root or miniature(name), split, **options)


def copied(name, tmp_path, layout=None):
    """A copy of a miniature, which a test may change."""
    return shutil.copytree(miniature(name, layout), tmp_path / f"{name}-{layout or 'copy'}")


def folder_of(name, root, layout="published"):
    """The files of a dataset, with nothing listed."""
    return find_dataset(name).folder(root, layout)


def index_of(key, band):
    """Place of a band in its modality."""
    return MODALITIES[key].find_band(band)


def gap(seen, shown):
    """Greatest difference of the values both have, in the bands of the modality that are shown."""
    both = seen.valid & shown.valid
    assert both.mean() > 0.3
    return np.abs(seen.values - shown.values)[both].max()
