"""Datasets: the records that describe them, and their tiles. `anysat.data.open` finds and opens them.

To add a dataset, write one file in `data/datasets/` (or any importable module) that exports `DATASET`, a
`DatasetRecord`. Command line, contract tests, documentation, mixtures and shards follow from it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from operator import index as as_index
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from anysat.batch import Tile
from anysat.data.layout import DatasetFolder, Layout
from anysat.data.samples import Row as Row
from anysat.data.samples import Samples as Samples
from anysat.data.targets import Target as Target
from anysat.errors import AnySatError, InputError, MissingFileError, RecordError, SourceError, UnknownNameError

if TYPE_CHECKING:
    from anysat.data.transforms import Crops
    from anysat.data.world import World
    from anysat.modalities import Modality

PACK_INDEX = "anysat-pack.json"
"""The file that marks a folder written by `anysat datasets pack`."""


@dataclass(frozen=True, kw_only=True)
class DatasetRecord:
    """Everything that the package knows about a dataset."""

    name: str
    """Name of the dataset on the command line and of its statistics, such as `pastis_hd`."""
    title: str
    """Name as its authors write it."""
    about: str
    """One sentence: what, where, how many."""
    modalities: tuple[str, ...]
    """Keys of its modalities. Pixel targets are by default predicted from the finest; if several, from the first."""
    tile_m: float
    """Side of a tile as it is read, in metres."""
    patch_sizes_m: tuple[float, ...]
    """Patch sizes to use it with, in metres, the default first. Source: paper table C and the published code."""
    targets: tuple[Target, ...]
    """What can be predicted; may be empty."""
    splits: Mapping[str, tuple[str, ...]] = field(default_factory=lambda: {s: (s,) for s in ("train", "val", "test")})
    """Values of the column `split` of the samples that make up `train`, `val` and `test`; they never overlap."""
    split_rule: str
    """Where the splits come from, in a sentence."""
    date_rule: str
    """Where dates come from, in a sentence."""
    block_m: float | None = None
    """Side in metres of squares of ground, located by the columns `lon` and `lat`, whose tiles are all in one split.
    None if splits do not keep such squares together."""
    has_real_dates: bool = True
    """False if day, month or year are placeholders, so that season or year mean nothing."""
    day_convention: str = "day_of_year"
    """Recommended day numbers, see `day_numbers`. `notes` say where the published loader uses others."""
    licence: str
    size: str
    """Number of tiles and bytes to download."""
    homepage: str
    """Where to get it; the package downloads nothing."""
    citation: str
    layouts: tuple[Layout, ...]
    """Ways in which it may be stored on disk. The first one that is recognised is read."""
    list_samples: Callable[[DatasetFolder], Samples]
    """List all samples of a folder, with their splits. Reads lists and file names, no pixels."""
    read_sample: Callable[[DatasetFolder, Row, Sequence[str]], Tile]
    """Read a sample: folder, row of `Samples`, modality keys. May leave out targets that `folder.wants` does not."""
    read_drawn: Callable[[DatasetFolder, Row, Sequence[str], np.random.Generator], Tile] | None = None
    """Read a sample for training, where samples are larger than tiles: cut at a place that the generator draws. None if
    samples are not larger."""
    read_crops: Callable[[DatasetFolder, Row, Sequence[str]], Crops] | None = None
    """Read tiles that together cover a sample larger than a tile, as its authors score it. None if a sample is one
    tile."""
    read_notes: Callable[[DatasetFolder, Row], Mapping[str, Sequence[str]]] | None = None
    """Return notes from opening a sample's files, by modality, for `check`. None if the layout says everything."""
    list_labels: Callable[[DatasetFolder, Samples], NDArray[np.int64]] | None = None
    """Return the class of every sample, for samplers that balance classes; may be slow. None if there is none."""
    write_miniature: Callable[[DatasetFolder, World, int], None] | None = None
    """Write a given number of tiles of the generated world in this layout."""
    fetch: Callable[[Path], Path] | None = None
    """Create the folder from an installed package and return it. None if the dataset comes from `homepage`."""
    notes: tuple[str, ...] = ()
    """What differs from the published loader, and what a user should know."""
    found_as: str = ""
    """The name that was given to `find_dataset`, by which other processes find the record."""
    sources: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """The user's description of the files of a modality, by its key: fields of a `SourceDescription` without places and
    days. A predictor keeps them, for other files of the same kind."""
    sensors: Mapping[str, Modality] = field(default_factory=dict)
    """Records of sensors that the table of modalities lacks or describes differently, by modality key."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "splits", MappingProxyType(dict(self.splits)))
        members = [member for group in self.splits.values() for member in group]
        if len(set(members)) < len(members):
            raise RecordError(f"dataset {self.name!r}, splits", dict(self.splits), "splits that do not overlap")

    @property
    def is_own(self) -> bool:
        """Whether this is a user's own data, described in the YAML file `found_as`."""
        return self.found_as.endswith((".yaml", ".yml"))

    def target(self, name: str) -> Target:
        """Return the target of this name."""
        for target in self.targets:
            if target.name == name:
                return target
        raise UnknownNameError(f"target of {self.name}", name, [target.name for target in self.targets])

    def layout(self, name: str) -> Layout:
        """Return the layout of this name."""
        for layout in self.layouts:
            if layout.name == name:
                return layout
        raise UnknownNameError(f"layout of {self.name}", name, [layout.name for layout in self.layouts])

    def folder(self, root: str | Path, layout: str | None = None) -> DatasetFolder:
        """Return the folder of the dataset at `root`. If no layout is named, it is recognised by its marker.

        Raises:
            UnknownNameError: There is no layout of this name.
            MissingFileError: There is no such folder, or no layout is recognised in it.
            SourceError: `root` is a file.
        """
        root = Path(root)
        markers = " or ".join(
            f"{' or '.join((known.marker, *known.also))} ({known.name} layout)" for known in self.layouts
        )
        expected = f"the folder of {self.title}, with {markers}; get it from {self.homepage}"
        if root.is_file():
            raise SourceError(root, "it is a file, not a folder", f"give {expected}")
        if not root.is_dir():
            raise MissingFileError(root, expected)
        there = (known for known in self.layouts if known.is_at(root))
        found = next(there, None) if layout is None else self.layout(layout)
        if found is None:
            raise MissingFileError(root / self.layouts[0].marker, expected)
        return DatasetFolder(root, found, sensors=self.sensors)


class Tiles(Protocol):
    """A sequence of tiles, loose or packed, from which streams, statistics and shards are made."""

    @property
    def name(self) -> str:
        """Name of the dataset and of its statistics."""

    @property
    def ids(self) -> list[str]:
        """Names of the samples."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Tile:
        """Read one tile, in source values."""

    def labels(self) -> NDArray[np.int64]:
        """Return the class number of every sample, for samplers that balance classes."""


class Packed(Protocol):
    """Shards that tiles are read from; see `anysat.data.pack.Pack`."""

    @property
    def targets(self) -> tuple[str, ...]:
        """Names of the targets that were packed."""

    def read(
        self, row: Row, modalities: Sequence[str], targets: Sequence[str] | None, tile_m: float, as_stored: bool
    ) -> Tile:
        """Read one tile, only with the modalities and targets asked for."""


@dataclass(frozen=True, eq=False, repr=False)
class TileDataset:
    """The samples of one split as a sequence of tiles, read on access. Open it with `open_dataset`."""

    record: DatasetRecord
    folder: DatasetFolder
    samples: Samples
    modalities: tuple[str, ...]
    split: str = "train"
    """Name of the split, for messages."""
    targets: tuple[str, ...] | None = None
    """Names of the targets to read; None for all."""
    pack: Packed | None = None
    """The shards that tiles are read from, if the dataset is packed."""

    @property
    def name(self) -> str:
        """Name of the dataset and of its statistics."""
        return self.record.name

    @property
    def ids(self) -> list[str]:
        """Names of the samples."""
        return [str(name) for name in self.samples.columns["id"]]

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> Tile:
        """Read one tile, in source values.

        Raises:
            InputError: `index` is not one number. `take` chooses several tiles.
            MissingFileError, SourceError: A file is missing, truncated or not as described.
        """
        return self._read(index)

    def as_stored(self, index: int) -> Tile:
        """Read one tile for stacking, which copies it: packed values stay in their stored type, read-only."""
        return self[index] if self.pack is None else self._read(index, as_stored=True)

    def drawn(self, index: int, generator: np.random.Generator) -> Tile:
        """Read one tile for training, cut at a random place if loose samples are larger than tiles."""
        is_cut = self.pack is None and self.record.read_drawn is not None
        return self._read(index, generator) if is_cut else self.as_stored(index)

    def _read(self, index: int, generator: np.random.Generator | None = None, *, as_stored: bool = False) -> Tile:
        try:
            number = as_index(index)
        except TypeError:
            advice = "choose several with `take`, such as dataset.take(range(2))"
            raise InputError(f"dataset {self.name}", "the number of one tile", repr(index), advice) from None
        row = self.samples.row(range(len(self))[number])
        if self.pack is not None:
            return self.pack.read(row, self.modalities, self.targets, self.record.tile_m, as_stored)
        folder, drawn = replace(self.folder, targets=self.targets), self.record.read_drawn
        try:
            if generator is None or drawn is None:
                tile = self.record.read_sample(folder, row, self.modalities)
            else:
                tile = drawn(folder, row, self.modalities, generator)
        except (MissingFileError, SourceError):
            raise
        except (AnySatError, ValueError, IndexError) as error:  # such as an invalid date
            raise SourceError(f"{self.folder.root}, sample {row['id']} of {self.record.title}", str(error)) from error
        targets = {name: made for name, made in tile.targets.items() if self.targets is None or name in self.targets}
        return replace(tile, id=str(row["id"]), dataset=self.name, targets=targets)

    def __repr__(self) -> str:
        return f"TileDataset({self.name}, {self.split}, {len(self)} tiles, {', '.join(self.modalities)})"

    def __iter__(self) -> Iterator[Tile]:
        return (self[index] for index in range(len(self)))

    def labels(self) -> NDArray[np.int64]:
        """Return the class number of every sample, for samplers that balance classes.

        Raises:
            InputError: The samples of this dataset do not have one class each.
        """
        if "pack_label" in self.samples.columns:
            return self.samples.columns["pack_label"]
        if self.record.list_labels is None or self.pack is not None:
            raise InputError(f"dataset {self.name}", "one class per sample, to balance classes", "none")
        return self.record.list_labels(self.folder, self.samples)

    def take(self, indices: ArrayLike) -> TileDataset:
        """Return a dataset of some of the samples, chosen by number or by a mask."""
        return replace(self, samples=self.samples.take(indices))
