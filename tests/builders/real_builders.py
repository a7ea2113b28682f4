"""The real labelled tasks, loaded once, and a small one that is made up."""

from functools import cache

import numpy as np
from real import protocol
from real.tasks import load

from anysat.batch import Tile
from anysat.data.base import Target
from anysat.modalities import MODALITIES
from anysat.observation import Observation

once = cache(load)


def made_task(num_tiles=60, seed=0):
    """Two classes told apart by one band, two dates, one of them missing in places."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(2, size=num_tiles)
    tiles = []
    for n, label in enumerate(labels):
        values = rng.normal(size=(2, 2, 1, 1)) + 3 * label
        valid = np.array([True, n % 3 > 0])
        seen = Observation.of(MODALITIES["s1-asc"], values, dates=["2020-01-01", "2020-07-01"], valid=valid)
        tiles.append(Tile.of(seen, targets={"kind": np.asarray(label)}))
    target = Target(name="kind", level="tile", kind="class", classes=("low", "high"))
    groups = np.arange(num_tiles) // 4
    return protocol.RealTask("made", tiles, target, groups, protocol.blocked_folds(groups), "made up")
