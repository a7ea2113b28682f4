"""A small dataset in memory: ragged series, a context pixel, an image that some tiles lack, a raster target."""

import functools
import os
from dataclasses import replace

import numpy as np

from anysat.batch import Batch, Tile
from anysat.errors import SourceError
from anysat.modalities import MODALITIES
from anysat.observation import Observation


def _observe(key, *shape):
    """Random values, a fifth of them invalid."""
    draw = np.random.default_rng(shape)
    dates = np.datetime64("2020-01-01") + 9 * np.arange(shape[0]) if MODALITIES[key].is_temporal else None
    return Observation.of(MODALITIES[key], draw.normal(100, 10, shape), dates=dates, valid=draw.random(shape) > 0.2)


@functools.cache
def _tile(index):
    seen = [_observe("s2", 3 + index % 3, 10, 4, 4), _observe("modis", 2, 7, 1, 1)]
    seen += [_observe("spot", 3, 40, 40)] if index % 4 else []  # some tiles lack it
    targets = {"cover": np.arange(16).reshape(4, 4) + index, "kind": np.int64(index % 3)}
    return Tile.of(*seen, id=f"m{index}", targets=targets)


class Meadow:
    """Tiles of 40 m; the numbers of its tiles are in their ids."""

    def __init__(self, count=11, broken=None, name="meadow"):
        self.count, self.broken, self.name = count, broken, name

    @property
    def ids(self):
        return [f"m{index}" for index in range(self.count)]

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        if index == self.broken:
            raise SourceError(f"meadow/{index}.tif", "it is truncated", "get it again")
        return replace(_tile(index), dataset=self.name)

    def labels(self):
        return np.repeat([0, 1, 2], [self.count - 5, 4, 1])


class FarMeadow(Meadow):
    """Tiles that can be read in any process but the one that made it."""

    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        self.home = os.getpid()

    def __getitem__(self, index):
        assert os.getpid() != self.home
        return super().__getitem__(index)


def tensors(batch: Batch):
    """Every tensor of a batch, by name."""
    for key, seen in batch.observations.items():
        for field in ("values", "valid", "dates"):
            if getattr(seen, field) is not None:
                yield f"{key} {field}", getattr(seen, field)
    yield from batch.targets.items()
