"""Which tiles of a comparison are trained on, chosen on and scored: the splits, or folds that take turns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from anysat.data.splits import block_numbers, fold_numbers, ground_m
from anysat.errors import InputError
from anysat.geo.grid import centre_deg
from anysat.workflows.evaluate import EvaluateConfig
from anysat.workflows.labelled_data import OpenData

SPLITS = ("train", "val", "test")
TRAIN, VAL, TEST = range(3)


@dataclass(frozen=True, kw_only=True, eq=False)
class Turns:
    """What each tile is for. Tiles are those of train, val and test, one after the other."""

    roles: NDArray[np.int64]
    """(turn tile), `TRAIN`, `VAL` or `TEST`."""
    groups: NDArray[np.int64]
    """(tile), what intervals draw together."""
    unit: str = "tiles"
    """What the groups are."""

    @property
    def is_crossed(self) -> bool:
        """Whether every tile is scored once."""
        return len(self.roles) > 1

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {"turns": len(self.roles), "groups": len(np.unique(self.groups)), "groups_are": self.unit,
                "tiles": [{split: int((roles == role).sum()) for role, split in enumerate(SPLITS)}
                          for roles in self.roles]}  # fmt: skip

    def __str__(self) -> str:
        count = f"{len(np.unique(self.groups))} {self.unit}"
        if self.is_crossed:
            return f"{len(self.roles)} folds, 95 % interval over {count}; all models tuned on the fold before"
        return f"95 % interval over {self.unit}; all models tuned on the validation split"


def make_turns(config: EvaluateConfig, data: OpenData, geoboxes: Sequence[Any]) -> Turns:
    """The splits as they are, the members of `data.folds`, or folds of blocks.

    Args:
        config: `folds`, `block_km`, `data.folds` and `seed` count.
        data: the tiles.
        geoboxes: of each tile, None where it has no coordinates.

    Raises:
        InputError: two kinds of folds are asked for; tiles without coordinates, or fewer blocks than folds.
    """
    counts = [len(getattr(data, split)) for split in SPLITS]
    tiles = np.arange(sum(counts))
    if config.folds is None and config.data.folds is None:
        return Turns(roles=np.repeat(np.arange(3), counts)[None], groups=tiles)
    if config.folds is not None and config.data.folds is not None:
        raise InputError("--folds", "folds of blocks, or the members in --data.folds", "both")
    if config.folds is None:
        members = np.concatenate([getattr(data, split).samples.columns["split"] for split in SPLITS])
        folds = np.array([list(config.data.folds or ()).index(str(member)) for member in members])
        return Turns(roles=_roles(folds), groups=tiles)
    blocks = _blocks(geoboxes, config.block_km, [name for split in SPLITS for name in getattr(data, split).ids])
    if len(np.unique(blocks)) < config.folds:
        raise InputError(f"--folds {config.folds}", "at least as many blocks", f"{len(np.unique(blocks))} blocks of "
                         f"{config.block_km:g} km", "take fewer folds, or smaller blocks in --block-km")  # fmt: skip
    folds = fold_numbers(blocks, config.folds, config.seed)
    return Turns(roles=_roles(folds), groups=blocks, unit=f"blocks of {config.block_km:g} km")


def _roles(folds: NDArray[np.int64]) -> NDArray[np.int64]:
    """(turn tile): each fold is scored once, the one before it chooses, all others train."""
    count = int(folds.max()) + 1
    turn = np.arange(count)[:, None]
    return np.where(folds == turn, TEST, np.where(folds == (turn - 1) % count, VAL, TRAIN))


def _blocks(geoboxes: Sequence[Any], block_km: float, names: Sequence[str]) -> NDArray[np.int64]:
    for name, box in zip(names, geoboxes, strict=True):
        if box is None or box.crs is None:
            raise InputError("--folds", "tiles with coordinates", f"tile {name!r} without",
                             "leave it out to compare on the splits, or name members in --data.folds")  # fmt: skip
    lon, lat = np.array([centre_deg(box) for box in geoboxes]).T
    return block_numbers(*ground_m(lon, lat), 1000 * block_km)
