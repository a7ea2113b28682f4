"""What a dataset is: a record of facts and three functions; and the datasets found by name.

To add a dataset, write one file in `data/datasets/` (or any importable module) that exports `DATASET`, a
`DatasetRecord`. Command line, contract tests, documentation, mixtures and shards follow from it.
"""

from __future__ import annotations

import importlib
import pkgutil
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from anysat.batch import Tile
from anysat.data.layout import DatasetFolder, Layout
from anysat.data.samples import Row as Row
from anysat.data.samples import Samples as Samples
from anysat.errors import AnySatError, InputError, MissingFileError, RecordError, SourceError, UnknownNameError

if TYPE_CHECKING:
    from anysat.data.pack import PackedDataset
    from anysat.data.transforms import Crops
    from anysat.data.world import World
    from anysat.modalities import Modality

_DATASETS = "anysat.data.datasets"
PACK_INDEX = "anysat-pack.json"
"""File by which a folder written by `anysat datasets pack` is recognised."""
LEVELS, KINDS = ("tile", "pixel"), ("class", "labels", "value")


@dataclass(frozen=True, kw_only=True)
class Target:
    """One thing to predict.

    A tile's class is an integer (), its labels 0 and 1 (class), a value a float (); of pixels it is a raster (row col).
    """

    name: str
    level: str
    """`tile` or `pixel`."""
    kind: str
    """`class` (one of several), `labels` (any of several, tile only) or `value` (regression)."""
    classes: tuple[str, ...] = ()
    """Names of the classes, in the order of their numbers."""
    colours: tuple[str, ...] = ()
    """Of the classes in maps and pictures, each as #rrggbb; none for those the package gives."""
    ignore: int | None = None
    """Number of pixels or tiles without a label, outside the classes."""
    gsd_m: float | None = None
    """Pixel side of a raster."""
    unit: str = ""
    """Unit of a value."""
    limits: tuple[float, float] | None = None
    """Least and greatest value that can be."""
    about: str = ""

    def __post_init__(self) -> None:
        where = f"target {self.name!r}"
        if self.level not in LEVELS or self.kind not in KINDS or (self.level, self.kind) == ("pixel", "labels"):
            raise RecordError(where, (self.level, self.kind), f"one of {LEVELS} and one of {KINDS}")
        if (self.kind != "value") != bool(self.classes):
            raise RecordError(f"{where}, classes", self.classes, "names of classes, none for a value")
        if self.colours and not re.fullmatch(f"(#[0-9a-f]{{6}}){{{len(self.classes)}}}", "".join(self.colours)):
            raise RecordError(f"{where}, colours", self.colours, f"none, or {len(self.classes)} as #rrggbb")
        if (self.level == "pixel") != (self.gsd_m is not None):
            raise RecordError(f"{where}, gsd_m", self.gsd_m, "a pixel size for a raster, none for a tile")
        if self.ignore is not None and 0 <= self.ignore < len(self.classes):
            raise RecordError(f"{where}, ignore", self.ignore, "a number that is no class")


@dataclass(frozen=True, kw_only=True)
class DatasetRecord:
    """Everything the package knows of one dataset."""

    name: str
    """Name on the command line and under which statistics are kept: `pastis_hd`."""
    title: str
    """Name as its authors write it."""
    about: str
    """One sentence: what, where, how many."""
    modalities: tuple[str, ...]
    """Keys of its modalities; where pixels are told by the finest, the first of equals tells them."""
    tile_m: float
    """Side of a tile as it is read."""
    patch_sizes_m: tuple[float, ...]
    """Patch sizes it is used with (spec 3.6 and 5, paper table C)."""
    targets: tuple[Target, ...]
    """What can be predicted; may be empty."""
    splits: Mapping[str, tuple[str, ...]]
    """Values of the column `split` that make up `train`, `val`, `test`; they never overlap."""
    split_rule: str
    """Where the splits come from, in a sentence."""
    date_rule: str
    """Where dates come from, in a sentence."""
    block_m: float | None = None
    """Side of the squares of ground whose tiles stay in one split, by `lon` and `lat` of the table; None where they do
    not."""
    has_real_dates: bool = True
    """False where day, month or year stand for others, so that season or year mean nothing."""
    day_convention: str = "day_of_year"
    """Day number recommended for its dates, see `day_numbers`; `notes` say where the published loader counts others."""
    licence: str
    size: str
    """Number of tiles and bytes to download."""
    homepage: str
    """Where to get it; nothing is downloaded by this package."""
    citation: str
    layouts: tuple[Layout, ...]
    """Ways in which it may lie on disk, the first that is recognised is read."""
    list_samples: Callable[[DatasetFolder], Samples]
    """All samples of a folder, with their splits; reads lists and names, no pixels."""
    read_sample: Callable[[DatasetFolder, Row, Sequence[str]], Tile]
    """One sample: folder, row of its table, modalities wanted. Targets that `folder.wants` does not may be left out."""
    read_drawn: Callable[[DatasetFolder, Row, Sequence[str], np.random.Generator], Tile] | None = None
    """A sample for training, of which what is larger than a tile is cut at a place that the generator draws; None where
    nothing is larger."""
    read_target: Callable[[DatasetFolder, Row, str], NDArray[Any]] | None = None
    """A target that `read_sample` leaves out because making it takes long, made when asked for: folder, row, name."""
    read_crops: Callable[[DatasetFolder, Row, Sequence[str]], Crops] | None = None
    """Tiles that together cover all of a sample that is larger than a tile, as its authors score it; None where a tile
    is the sample."""
    read_notes: Callable[[DatasetFolder, Row], Mapping[str, Sequence[str]]] | None = None
    """What opening the files of a sample tells, by modality, for `check`; None where the layout table says it all."""
    list_labels: Callable[[DatasetFolder, Samples], NDArray[np.int64]] | None = None
    """Class number of every sample, for samplers that balance classes; may take long. None where there is none."""
    write_miniature: Callable[[DatasetFolder, World, int], None] | None = None
    """Write so many tiles of the generated world in this layout."""
    fetch: Callable[[Path], Path] | None = None
    """Makes the folder from an installed package and gives it back; None where it has to be got from `homepage`."""
    notes: tuple[str, ...] = ()
    """What differs from the published loader, and what a user should know."""
    found_as: str = ""
    """What `find_dataset` was asked for; other processes find the record by it."""
    sources: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """How a user says that the files of a modality are to be understood, by its key: fields of a `SourceDescription`,
    without places and days. A predictor keeps them, for other files of the same kind."""
    sensors: Mapping[str, Modality] = field(default_factory=dict)
    """Records of the user's own sensors, by key of the modality."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "splits", MappingProxyType(dict(self.splits)))
        members = [member for group in self.splits.values() for member in group]
        if len(set(members)) < len(members):
            raise RecordError(f"dataset {self.name!r}, splits", dict(self.splits), "splits that do not overlap")

    def __reduce__(self) -> Any:
        return find_dataset, (self.found_as or self.name,)

    @property
    def is_own(self) -> bool:
        """Whether it is a user's own data, described in the YAML file `found_as`."""
        return self.found_as.endswith((".yaml", ".yml"))

    def target(self, name: str) -> Target:
        """The target of this name."""
        for target in self.targets:
            if target.name == name:
                return target
        raise UnknownNameError(f"target of {self.name}", name, [target.name for target in self.targets])

    def layout(self, name: str) -> Layout:
        """The layout of this name."""
        for layout in self.layouts:
            if layout.name == name:
                return layout
        raise UnknownNameError(f"layout of {self.name}", name, [layout.name for layout in self.layouts])

    def folder(self, root: str | Path, layout: str | None = None) -> DatasetFolder:
        """The dataset's folder, its layout recognised by its marker where it is not named.

        Raises:
            UnknownNameError: there is no layout of this name.
            MissingFileError: there is no such folder, or no layout is recognised in it.
            SourceError: it is a file.
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
        if layout is not None:
            return DatasetFolder(root, self.layout(layout))
        for known in self.layouts:
            if known.is_at(root):
                return DatasetFolder(root, known)
        raise MissingFileError(root / self.layouts[0].marker, expected)


class Tiles(Protocol):
    """Tiles by number: what streams, statistics and shards are made from; a loose or a packed dataset."""

    @property
    def name(self) -> str:
        """Name of the dataset, under which statistics are kept."""

    @property
    def ids(self) -> list[str]:
        """Names of the samples."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Tile:
        """One tile, in source values."""

    def labels(self) -> NDArray[np.int64]:
        """Class number of every sample, for samplers that balance classes."""


@dataclass(frozen=True, eq=False)
class TileDataset:
    """Samples of one split, read when asked for; open it with `open_dataset`."""

    record: DatasetRecord
    folder: DatasetFolder
    samples: Samples
    modalities: tuple[str, ...]
    split: str = "train"
    """Name of the split, for messages."""
    targets: tuple[str, ...] | None = None
    """Targets to read; None for all."""

    @property
    def name(self) -> str:
        """Name of the dataset, under which statistics are kept."""
        return self.record.name

    @property
    def ids(self) -> list[str]:
        """Names of the samples."""
        return [str(name) for name in self.samples.columns["id"]]

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> Tile:
        """One tile, in source values.

        Raises:
            MissingFileError, SourceError: a file of it is missing, truncated or not what it should be.
        """
        return self._read(index, self.record.read_sample)

    def drawn(self, index: int, generator: np.random.Generator) -> Tile:
        """One tile for training: where photos are larger than tiles, cut at a place drawn anew. Raises as by index."""
        read = self.record.read_drawn
        if read is None:
            return self[index]
        return self._read(index, lambda folder, row, keys: read(folder, row, keys, generator))

    def _read(self, index: int, read: Callable[[DatasetFolder, Row, Sequence[str]], Tile]) -> Tile:
        row = self.samples.row(range(len(self))[index])
        try:
            tile = read(replace(self.folder, targets=self.targets), row, self.modalities)
            targets = self._targets(tile, row)
        except (MissingFileError, SourceError):
            raise
        except (AnySatError, ValueError, IndexError) as error:  # such as a date that is none
            raise SourceError(f"{self.folder.root}, sample {row['id']} of {self.record.title}", str(error)) from error
        return replace(tile, id=str(row["id"]), dataset=self.name, targets=targets)

    def _targets(self, tile: Tile, row: Row) -> dict[str, NDArray[Any]]:
        """Targets asked for; those that take long are made only then."""
        make, found = self.record.read_target, dict(tile.targets)
        if make is not None:
            asked = [target.name for target in self.record.targets] if self.targets is None else self.targets
            found |= {name: make(self.folder, row, name) for name in asked if name not in found}
        return found if self.targets is None else {name: found[name] for name in self.targets if name in found}

    def __iter__(self) -> Iterator[Tile]:
        return (self[index] for index in range(len(self)))

    def labels(self) -> NDArray[np.int64]:
        """Class number of every sample, for samplers that balance classes.

        Raises:
            InputError: a sample of this dataset has no single class.
        """
        if self.record.list_labels is None:
            raise InputError(f"dataset {self.name}", "one class per sample, to balance classes", "none")
        return self.record.list_labels(self.folder, self.samples)

    def take(self, indices: ArrayLike) -> TileDataset:
        """Some samples, by number or by a mask."""
        return replace(self, samples=self.samples.take(indices))


def open_dataset(
    name: str, root: str | Path, split: str = "train", *, modalities: Sequence[str] | None = None,
    layout: str | None = None, targets: Sequence[str] | None = None,
) -> TileDataset | PackedDataset:  # fmt: skip
    """A dataset that lies on disk, loose or packed.

    Args:
        name: one of `dataset_names()`, the dotted name of a module that exports `DATASET`, or a YAML file (see
            `data.own`).
        root: its folder.
        split: `train`, `val`, `test` or `all`; or members of the table's own splits joined by `+`, as `fold1+fold2`.
        modalities: keys to read; None for all it has.
        layout: name of a layout, `packed` for one written by `anysat datasets pack`; None to recognise it.
        targets: names of targets to read; None for all, empty for none, as in pretraining.

    Raises:
        UnknownNameError: of a dataset, split, modality, layout or target.
        MissingFileError, SourceError: the folder does not hold the dataset.
    """
    record = find_dataset(name)
    for key in modalities or ():
        if key not in record.modalities:
            raise UnknownNameError(f"modality of {record.name}", key, record.modalities)
    for target in targets or ():
        record.target(target)
    dataset = _open_all(record, Path(root), layout)
    samples = dataset.samples if split == "all" else dataset.samples.of(*_members(record, dataset.samples, split))
    for key in modalities or ():
        if key not in dataset.modalities:
            raise SourceError(root, f"{key} was not packed, only {', '.join(dataset.modalities)}", "pack it anew")
    wanted = tuple(key for key in dataset.modalities if modalities is None or key in modalities)
    asked = None if targets is None else tuple(targets)
    return replace(dataset, samples=samples, modalities=wanted, split=split, targets=asked)


def _open_all(record: DatasetRecord, root: Path, layout: str | None) -> TileDataset | PackedDataset:
    """All samples of a folder."""
    if layout == "packed" or (layout is None and (root / PACK_INDEX).is_file()):
        from anysat.data.pack import open_pack

        return open_pack(record, root)
    folder = record.folder(root, layout)
    try:
        samples = record.list_samples(folder)
    except AnySatError:
        raise
    except (AttributeError, IndexError, KeyError, OSError, TypeError, ValueError) as error:
        expected = f"expected the lists and folders of {record.title}, layout {folder.layout.name!r}"
        raise SourceError(folder.root, f"its samples cannot be listed ({error!r})", expected) from error
    if not len(samples):
        raise SourceError(folder.root, f"no sample of {record.title} was found", f"layout {folder.layout.name!r}")
    return TileDataset(record, folder, samples, record.modalities)


def _members(record: DatasetRecord, samples: Samples, split: str) -> tuple[str, ...]:
    if split in record.splits:
        return record.splits[split]
    members = tuple(member for name in split.split("+") for member in record.splits.get(name, (name,)))
    known = {name for group in record.splits.values() for name in group} | set(map(str, samples.columns["split"]))
    for member in members:
        if member not in known:
            raise UnknownNameError(f"split of {record.name}", member, {*record.splits, *known, "all"})
    return members


def dataset_names() -> list[str]:
    """Names of the datasets the package ships."""
    return sorted(module.name for module in pkgutil.iter_modules(importlib.import_module(_DATASETS).__path__))


def _not_found(name: str, error: ModuleNotFoundError) -> str:
    """What Python did not find, and where the command line does not look, if that may be why."""
    if error.name != name.partition(".")[0]:
        return str(error)
    return (f"{error}. The command `anysat` does not look into the current folder: run `python -m anysat …` there, or "
            "set PYTHONPATH=.")  # fmt: skip


def find_dataset(name: str) -> DatasetRecord:
    """The record of a dataset: shipped, of an importable module by dotted name, or of a YAML file.

    Raises:
        UnknownNameError: there is none.
    """
    if name.endswith((".yaml", ".yml")):
        from anysat.data.own import read_record

        return read_record(Path(name))
    if name in dataset_names():
        module = importlib.import_module(f"{_DATASETS}.{name}")
    elif "." in name:
        try:
            module = importlib.import_module(name)
        except ModuleNotFoundError as error:
            raise UnknownNameError("dataset module", name, dataset_names(), _not_found(name, error)) from error
    else:
        raise UnknownNameError("dataset", name, dataset_names(), "`anysat datasets list` tells about all")
    record = getattr(module, "DATASET", None)
    if not isinstance(record, DatasetRecord):
        raise InputError(name, "a module that exports DATASET, a DatasetRecord", type(record).__name__)
    return replace(record, found_as=name)
