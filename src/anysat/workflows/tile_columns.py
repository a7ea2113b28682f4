"""Columns of split, place and labels in a table of a dataset's tiles."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from anysat.batch import Tile
from anysat.data.base import Target
from anysat.data.own.tables import PLACE, as_number
from anysat.geo.degrees import centre_deg, has_place
from anysat.geo.tables import Kind
from anysat.probing.cache import TILES_PER_FILE
from anysat.tasks.base import labelled

if TYPE_CHECKING:
    from anysat.data.work import AnyDataset

PLACE_DEG = "place of the tile"
"""Name under which a tile's longitude and latitude are passed along with its targets. No target has such a name."""
ROWS = 128 * TILES_PER_FILE
"""Number of tiles in a row group."""
_NAMED = 3
"""Largest number of tiles that are listed by name."""


@dataclass(frozen=True, eq=False)
class Placed:
    """Tiles that carry their longitude and latitude as an additional target, NaN if not known."""

    tiles: AnyDataset

    @property
    def name(self) -> str:
        """Name of the dataset."""
        return self.tiles.name

    @property
    def ids(self) -> list[str]:
        """Names of the tiles."""
        return self.tiles.ids

    def __len__(self) -> int:
        return len(self.tiles)

    def __getitem__(self, index: int) -> Tile:
        tile = self.tiles[index]
        row = self.tiles.samples.row(index)
        place = [as_number(str(row.get(name, ""))) for name in PLACE]
        if tile.geobox is not None and has_place(tile.geobox):
            place = list(centre_deg(tile.geobox))
        return replace(tile, targets={**tile.targets, PLACE_DEG: np.array(place)})

    def labels(self) -> NDArray[np.int64]:
        """Class number of every tile."""
        return self.tiles.labels()


def members_and_splits(tiles: AnyDataset) -> tuple[list[str], list[str]]:
    """Return each tile's member in the dataset's own table, such as a fold, and the split that this belongs to."""
    split_of = {member: split for split, members in tiles.record.splits.items() for member in members}
    members = [str(member) for member in tiles.samples.columns["split"]]
    return members, [split_of.get(member, member) for member in members]


def target_kinds(target: Target) -> dict[str, Kind]:
    """Return the columns of a target per tile and their types.

    A class has its number and its name, several labels have a list of 0 and 1 and a list of names.
    """
    if not target.classes:
        return {target.name: "double"}
    if target.is_multilabel:
        return {target.name: ("int8", len(target.classes)), f"{target.name}_names": "strings"}
    return {target.name: "int32", f"{target.name}_name": "string"}


def target_columns(target: Target, values: torch.Tensor) -> dict[str, list[Any]]:
    """Return the values of the columns in `target_kinds` for some tiles, None without a label."""
    known = labelled(target, values).reshape(len(values), -1).all(1)
    if target.is_multiclass:
        known = known & (values >= 0) & (values < len(target.classes))
    numbers = [one if is_known else None for one, is_known in zip(values.tolist(), known.tolist(), strict=True)]
    names = [None if one is None else target.plain(one) for one in numbers]
    return dict(zip(target_kinds(target), (numbers, names), strict=False))  # values have no names


def counts_line(tiles: AnyDataset) -> str:
    """Return a line with the number of tiles, in all and by split."""
    counts = Counter(members_and_splits(tiles)[1])
    return f"{tiles.name}: {len(tiles):,} tiles ({', '.join(f'{count:,} {name}' for name, count in counts.items())})"


def unseen_lines(names: Sequence[str], then: str, of: str = "") -> Iterator[str]:
    """Yield a line that lists some of the tiles without valid values, if there are any.

    Args:
        names: Names of all such tiles.
        then: What the output has for them.
        of: Modality that has no valid value; empty if none has.
    """
    if names:
        shown = ", ".join(names[:_NAMED]) + (", …" if len(names) > _NAMED else "")
        unit = "tile" if len(names) == 1 else "tiles"
        yield f"{len(names):,} {unit} without valid values{of and f' of {of}'}, {then}: {shown}"
