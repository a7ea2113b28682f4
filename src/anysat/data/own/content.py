"""What a YAML file about a user's own data says, once it is read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from anysat.data.own.modalities import OwnModality
from anysat.data.targets import Target


@dataclass(frozen=True, kw_only=True)
class OwnTarget:
    """A target, and where its values are stored."""

    target: Target
    column: str | None
    """Column of the table, or field of the path by which tiles are found; None for a raster."""
    path: str | None
    """Path of each tile's raster; None for a column."""
    values: tuple[int, ...]
    """Stored number of each class in a raster."""
    ignore: int | None
    """Stored number of pixels without a label, or None; it is read as `target.ignore`."""
    separator: str | None
    """Text between the labels in a cell; None if a cell holds one class or value."""


@dataclass(frozen=True, kw_only=True)
class OwnSplits:
    """How tiles are split: by a column, or by shares."""

    is_given: bool
    """False if none of `column`, `shares` and `block_m` is given; a column `split` of the table then counts, if any."""
    column: str | None
    members: Mapping[str, tuple[str, ...]]
    """Values of the column that make up each split."""
    shares: Mapping[str, float]
    seed: int | None
    """None if it is not given, which draws as 0 does."""
    block_m: float | None
    """Side in metres of the squares of ground whose tiles share a split; None to split tile by tile."""


@dataclass(frozen=True, kw_only=True)
class OwnData:
    """The content of a YAML file."""

    file: Path
    name: str
    texts: Mapping[str, str]
    """Title, licence and other texts that are given."""
    tile_m: float
    patch_sizes_m: tuple[float, ...]
    tiles: str | None
    """Table of the tiles; None if tiles are found by the paths of their files."""
    id_column: str
    """Column of the table that holds the ids."""
    is_centred_on_table: bool
    """True to centre a tile on its place in the table, False to take the middle of its files."""
    is_inside_only: bool
    """Whether pixels outside a tile's polygon in the table are invalid."""
    modalities: tuple[OwnModality, ...]
    targets: tuple[OwnTarget, ...]
    splits: OwnSplits

    @property
    def first(self) -> OwnModality:
        """The first modality that every tile has; without a table, its files define the tiles."""
        return next(own for own in self.modalities if not own.is_optional)

    @property
    def has_files(self) -> bool:
        """Whether any of its imagery is in files rather than tables of series."""
        return any(own.columns is None for own in self.modalities)

    @property
    def tables_of_tiles(self) -> tuple[OwnModality, ...]:
        """Modalities whose table of series is also the table of the tiles."""
        return tuple(own for own in self.modalities if own.columns is not None and own.path == self.tiles)

    @property
    def patterns(self) -> tuple[str, ...]:
        """All paths below the data folder, with fields in braces."""
        of_modalities = (pattern for own in self.modalities for pattern in own.patterns)
        return (*of_modalities, *(own.path for own in self.targets if own.path is not None))

    def table_path(self, root: Path | None = None) -> Path | None:
        """Return the path of the table: beside the YAML file, else in the data folder, as for tables of series."""
        if self.tiles is None:
            return None
        if root is not None and self.tables_of_tiles:
            return root / self.tiles
        beside = self.file.parent / self.tiles
        return beside if beside.exists() or root is None else root / self.tiles
