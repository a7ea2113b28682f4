"""The real labelled tasks by name, each a `RealTask`; see `points.py`, `parcels.py` and `trees.py` for protocols.

>>> from real.tasks import TASKS, load  # doctest: +SKIP
>>> load("crop_canada", Path("data")).target.classes  # doctest: +SKIP
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from anysat.errors import MissingFileError, UnknownNameError
from real.parcels import parcels_belgium
from real.points import crop_canada, fuel_moisture, landcover_global, landuse_modis
from real.protocol import RealTask
from real.trees import trees_smoke

__all__ = ["SMOKE", "TASKS", "RealTask", "load"]

TASKS: dict[str, Callable[[Path], RealTask]] = {
    made.__name__: made
    for made in (crop_canada, landcover_global, landuse_modis, fuel_moisture, parcels_belgium, trees_smoke)
}
"""Every task, made from the folder of the real data."""
SMOKE = frozenset({"trees_smoke"})
"""Tasks that are too small to be scored."""


def load(name: str, data: Path) -> RealTask:
    """A task by its name.

    Raises:
        UnknownNameError: there is no such task.
        MissingFileError: there is no such folder.
    """
    if name not in TASKS:
        raise UnknownNameError("real task", name, TASKS)
    if not data.is_dir():
        raise MissingFileError(data, "the folder of the real data")
    return TASKS[name](data)
