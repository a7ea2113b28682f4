"""The roles of tiles in a comparison (train, choose, score): from the splits, or from folds that take turns."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from anysat.data.splits import TEST, fold_numbers, roles_of
from anysat.errors import InputError
from anysat.workflows.evaluate import CompareConfig
from anysat.workflows.ground_blocks import Places, blocks, unit_of
from anysat.workflows.supervised.config import BLOCK_KM
from anysat.workflows.supervised.data import OpenData, check_blocks

SPLITS = ("train", "val", "test")


@dataclass(frozen=True, kw_only=True, eq=False)
class Turns:
    """The role of each tile. Tiles are those of train, val and test, in this order."""

    roles: NDArray[np.int64]
    """(turn tile), `TRAIN`, `VAL` or `TEST`."""
    groups: NDArray[np.int64]
    """(tile), numbers of groups that intervals draw together."""
    unit: str
    """What the groups are."""
    selected_on: str
    """The split on which settings are chosen, if folds do not take turns."""

    @property
    def count(self) -> int:
        """Number of turns."""
        return len(self.roles)

    @property
    def is_crossed(self) -> bool:
        """Whether every tile is scored once."""
        return len(self.roles) > 1

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return {"turns": len(self.roles), "groups": len(np.unique(self.groups)), "groups_are": self.unit,
                "tiles": [{split: int((roles == role).sum()) for role, split in enumerate(SPLITS)}
                          for roles in self.roles]}  # fmt: skip

    @property
    def chosen_on(self) -> str:
        """What settings are chosen on, in words."""
        return "the fold before" if self.is_crossed else self.selected_on

    def __str__(self) -> str:
        scored = np.unique(self.groups[(self.roles == TEST).any(0)])
        folds = f"{len(self.roles)} folds, " if self.is_crossed else ""
        return f"{folds}95 % interval over {len(scored)} {self.unit}; all models tuned on {self.chosen_on}"


def make_turns(config: CompareConfig, data: OpenData, places: Places) -> Turns:
    """Return the turns: the given splits, the members of `data.folds`, or folds of blocks.

    Args:
        config: Options of the command, of which `folds`, `block_km`, `data.folds` and `seed` are used.
        data: The tiles.
        places: Longitude and latitude of each tile's centre; NaN if not known.

    Raises:
        InputError: Both kinds of folds are given, tiles have no coordinates, or there are fewer blocks than folds.
    """
    if config.folds is not None and config.data.folds is not None:
        raise InputError("--folds", "folds of blocks, or the members in --data.folds", "both")
    counts = [len(tiles) for tiles in data.splits.values()]
    km = config.block_km if config.folds is None else config.block_km or BLOCK_KM
    groups = np.arange(sum(counts))
    if km is not None:
        groups = blocks(places, [name for tiles in data.splits.values() for name in tiles.ids], km)
    if config.folds is not None:
        check_blocks(groups, config.folds, km)
        roles = roles_of(fold_numbers(groups, config.folds, config.seed))
    elif config.data.folds is not None:
        members = np.concatenate([tiles.samples.columns["split"] for tiles in data.splits.values()])
        number = {
            member: fold for fold, name in enumerate(config.data.folds)
            for part in name.split("+") for member in data.record.splits.get(part, (part,))
        }  # fmt: skip
        roles = roles_of(np.array([number[str(member)] for member in members]))
    else:
        roles = np.repeat(np.arange(3), counts)[None]
    return Turns(roles=roles, groups=groups, unit=unit_of(km), selected_on=data.selected_on)
