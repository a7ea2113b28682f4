"""Packed datasets: the tiles of a dataset in shards (plain tar files) that are read in long strokes or by place.

`pack.write` makes them, `open_dataset` opens them. An index beside the shards says where each tile lies, so that
one is read with two short reads, and what its checksum is.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import zlib
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from anysat.batch import Tile
from anysat.data.base import PACK_INDEX, DatasetRecord, Samples
from anysat.data.files import read_file
from anysat.data.layout import DatasetFolder, Layout
from anysat.data.pack.tile import build_tile, parts_are_sound, read_header
from anysat.errors import AnySatError, InputError, MissingFileError, SourceError
from anysat.modalities import MODALITIES, Band, Modality

FORMAT = 1
SAMPLES = "samples.npz"
LAYOUT = Layout(name="packed", marker=PACK_INDEX, entries=())
PLACES = ("shard", "offset", "size", "head", "crc")
"""Where a tile lies: number of the shard, first byte and bytes in it, bytes of header and targets, their CRC-32."""
_MOST_OPEN = 64
_LARGE = 2**22
"""Bytes from which numpy's memory is used to read into."""


class _OpenFile:
    """A file descriptor that is closed when nobody needs it."""

    def __init__(self, path: Path) -> None:
        self.number = os.open(path, os.O_RDONLY)

    def __del__(self) -> None:
        with contextlib.suppress(AttributeError, OSError):
            os.close(self.number)


class Shards:
    """The shards of a folder, opened when first read; reads may come from several threads and processes."""

    def __init__(self, root: Path, names: Sequence[str]) -> None:
        self.root, self.names = root, tuple(names)
        self._open: OrderedDict[int, _OpenFile] = OrderedDict()

    def __reduce__(self) -> Any:
        return Shards, (self.root, self.names)

    def read(self, shard: int, offset: int, size: int) -> bytes | memoryview:
        """So many bytes of a shard, fewer where it ends."""
        file = self._open.get(shard)
        if file is None:
            path = self.root / self.names[shard]
            if not path.is_file():
                raise MissingFileError(path, "a shard of the packed dataset")
            file = self._open[shard] = _OpenFile(path)
            if len(self._open) > _MOST_OPEN:
                with contextlib.suppress(KeyError):
                    self._open.popitem(last=False)
        if size < _LARGE:
            return os.pread(file.number, size, offset)
        content = np.empty(size, np.uint8)  # numpy asks for large pages, which are handed out several times faster
        return content.data[: os.preadv(file.number, [content.data], offset)]


@dataclass(frozen=True, eq=False)
class PackedDataset:
    """Samples of one split of a packed dataset, with the surface of `TileDataset`; open it with `open_dataset`."""

    record: DatasetRecord
    folder: DatasetFolder
    samples: Samples
    """The table of the dataset it was made from, and in columns `pack_…` where each tile lies."""
    modalities: tuple[str, ...]
    split: str
    targets: tuple[str, ...] | None
    shards: Shards = field(repr=False)
    records: Mapping[str, Modality] = field(repr=False)
    """Modalities by key."""

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
        """One tile, in source values; only the modalities asked for are read.

        Raises:
            MissingFileError, SourceError: its shard is missing, or its bytes are not those that were written.
        """
        return self._read(index)

    def as_stored(self, index: int) -> Tile:
        """The same tile for stacking, which copies it: values in the type they are stored in, read-only."""
        return self._read(index, as_stored=True)

    def _read(self, index: int, *, as_stored: bool = False) -> Tile:
        index = range(len(self))[index]
        shard, offset, _, head_size, crc = self._place(index)
        try:
            head = bytes(self.shards.read(shard, offset, head_size))
            if zlib.crc32(head) != crc:
                raise SourceError("packed tile", "its header or targets are damaged: their checksum differs")
            header, facts = read_header(head)
            start = 8 + int.from_bytes(head[:8], "little")
            return build_tile(
                header, facts, head[start:], lambda begin, size: self.shards.read(shard, offset + begin, size), start,
                self.modalities, self.targets, self.records, as_stored,
            )  # fmt: skip
        except MissingFileError:
            raise
        except (AnySatError, OSError) as error:
            raise self._damaged(index, error) from error

    def _damaged(self, index: int, error: Exception) -> SourceError:
        path = self.folder.root / self.shards.names[self._place(index)[0]]
        advice = "pack the dataset anew, or copy the shard again; `anysat datasets pack --verify true` checks all"
        return SourceError(path, f"sample {self.samples.columns['id'][index]}: {error}", advice)

    def _place(self, index: int) -> list[int]:
        return [int(self.samples.columns[f"pack_{name}"][index]) for name in PLACES]

    def __iter__(self) -> Iterator[Tile]:
        return (self[index] for index in range(len(self)))

    def labels(self) -> NDArray[np.int64]:
        """Class number of every sample, for samplers that balance classes.

        Raises:
            InputError: a sample of this dataset has no single class.
        """
        if "pack_label" not in self.samples.columns:
            raise InputError(f"dataset {self.name}", "one class per sample, to balance classes", "none")
        return self.samples.columns["pack_label"]

    def take(self, indices: ArrayLike) -> PackedDataset:
        """Some samples, by number or by a mask."""
        return replace(self, samples=self.samples.take(indices))


def open_pack(record: DatasetRecord, root: Path) -> PackedDataset:
    """All samples of a packed folder.

    Raises:
        SourceError: it holds another dataset, or its index is damaged or of a later version.
    """
    content = read_index(root)
    if content["dataset"] != record.name:
        raise SourceError(root / PACK_INDEX, f"it holds the packed {content['dataset']}, not {record.name}")
    samples = _read_samples(root, content)
    records = {key: _modality(facts, root) for key, facts in content["records"].items()}
    shards = Shards(root, [shard["file"] for shard in content["shards"]])
    return PackedDataset(record, DatasetFolder(root, LAYOUT), samples, tuple(records), "all", None, shards, records)


def read_index(root: Path) -> dict[str, Any]:
    """Content of the index of a packed folder.

    Raises:
        MissingFileError, SourceError: there is none, or none that this version reads.
    """
    path = root / PACK_INDEX
    (content,) = read_file(path, expected="the index of a packed dataset, made by `anysat datasets pack`")
    known = {"format", "dataset", "records", "shards", "samples_sha256"}
    if not isinstance(content, dict) or not known <= set(content):
        raise SourceError(path, "it is no index of a packed dataset", "made by `anysat datasets pack`")
    if content["format"] != FORMAT:
        raise SourceError(path, f"format {content['format']}, this version reads {FORMAT}", "update anysat")
    return content


def _read_samples(root: Path, content: Mapping[str, Any]) -> Samples:
    path = root / SAMPLES
    columns = [*content["columns"], *(f"pack_{name}" for name in PLACES), *["pack_label"] * content["has_labels"]]
    arrays = read_file(path, columns, expected="the table of samples of a packed dataset")
    samples = Samples(**dict(zip(columns, arrays, strict=True)))
    if len(samples) and int(samples.columns["pack_shard"].max()) >= len(content["shards"]):
        raise SourceError(path, "it names a shard that the index does not", "pack the dataset anew")
    return samples


def modality_facts(modality: Modality) -> dict[str, Any]:
    """A modality as plain values; `open_pack` reads them."""
    return asdict(modality)


def _modality(facts: Mapping[str, Any], root: Path) -> Modality:
    bands = tuple(Band(**band) for band in facts["bands"])
    made = Modality(**{**facts, "bands": bands})
    known = MODALITIES.get(made.key)
    if known is None:
        return made
    if known.band_names != made.band_names or known.gsd_m != made.gsd_m:
        raise SourceError(root / PACK_INDEX, f"its {made.key} has bands {', '.join(made.band_names)} at "
                          f"{made.gsd_m:g} m, this version's {', '.join(known.band_names)} at {known.gsd_m:g} m",
                          "pack the dataset anew")  # fmt: skip
    return known


def verify_pack(root: Path, advance: Callable[[int], object] = lambda _: None) -> int:
    """Check every byte of a packed dataset against its checksums; how many tiles there are.

    Args:
        root: the packed folder.
        advance: told how many tiles have been checked.

    Raises:
        MissingFileError, SourceError: something is missing or differs; all damaged shards and tiles are named.
    """
    content = read_index(root)
    if _sha256(root / SAMPLES) != content["samples_sha256"]:
        raise SourceError(root / SAMPLES, "its checksum differs", "pack the dataset anew, or copy the file again")
    samples = _read_samples(root, content)
    found = []
    for number, shard in enumerate(content["shards"]):
        path = root / shard["file"]
        if not path.is_file():
            raise MissingFileError(path, "a shard of the packed dataset")
        inside = samples.take(samples.columns["pack_shard"] == number)
        if _sha256(path) != shard["sha256"]:
            names = _damaged_tiles(root, inside, content)
            found.append(f"shard {shard['file']} differs, {_named(names)}")
        advance(len(inside))
    if found:
        raise SourceError(root, "; ".join(found), "pack the dataset anew, or copy these shards again")
    return len(samples)


def _named(names: Sequence[str]) -> str:
    if not names:
        return "outside of its samples"
    return f"in sample {', '.join(names[:5])}" + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def _damaged_tiles(root: Path, samples: Samples, content: Mapping[str, Any]) -> list[str]:
    """Names of the tiles that cannot be read."""
    shards = Shards(root, [shard["file"] for shard in content["shards"]])
    damaged = []
    for row in samples:
        tile = bytes(shards.read(row["pack_shard"], row["pack_offset"], row["pack_size"]))
        head = tile[: row["pack_head"]]
        is_sound = len(tile) == row["pack_size"] and zlib.crc32(head) == row["pack_crc"]
        if not is_sound or not parts_are_sound(tile):
            damaged.append(str(row["id"]))
    return damaged


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
