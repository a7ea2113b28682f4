"""Miniatures as packed datasets, and the command that packs one."""

import functools
import tempfile
from pathlib import Path

import numpy as np

from anysat.data.open import open_dataset
from anysat.data.pack.write import pack_dataset
from miniatures import miniature

NAME = "treesatai_ts"


@functools.cache
def _home() -> tempfile.TemporaryDirectory:
    return tempfile.TemporaryDirectory(prefix="anysat-packs-")


@functools.cache
def pack_of(name: str) -> Path:
    """The packed folder of a miniature. Shared: copy it before changing anything."""
    return pack_dataset(open_dataset(name, miniature(name), "all"), Path(_home().name) / name, shard_mb=1.0)


def command(out, *more):
    """The words of the command that packs one of them as `pack_of` does."""
    words = ("datasets", "pack", NAME, str(miniature(NAME)), "--shard-mb", "1", "--num-workers", "1")
    return [*words, "--out", str(out), *more]


def content_of(root):
    return {path.name: path.read_bytes() for path in sorted(root.iterdir())}


def bits(array):
    return array.dtype.str, array.shape, np.ascontiguousarray(array).tobytes()


def assert_same(packed, loose):
    """Every value, flag, date, unit, target, name and place is the same to the last bit."""
    assert (packed.id, packed.dataset, packed.geobox) == (loose.id, loose.dataset, loose.geobox)
    assert list(packed.observations) == list(loose.observations)
    for key, seen in loose.observations.items():
        found = packed.observations[key]
        assert (found.modality, found.units) == (seen.modality, seen.units)
        assert bits(found.values) == bits(seen.values)
        assert bits(found.valid) == bits(seen.valid)
        assert (found.dates is None) == (seen.dates is None)
        assert seen.dates is None or bits(found.dates) == bits(seen.dates)
    assert list(packed.targets) == list(loose.targets)
    for name, target in loose.targets.items():
        assert bits(np.asarray(packed.targets[name])) == bits(np.asarray(target))
