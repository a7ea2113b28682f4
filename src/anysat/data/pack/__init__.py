"""Packed datasets: the tiles of a dataset in shards (plain tar files), read in order or at random.

`pack.write` makes them, `open_dataset` opens them. An index beside the shards gives the place and the checksum of
each tile, so that a tile is read with two short reads.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import zlib
from collections import Counter, OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from anysat.batch import Tile
from anysat.data.base import PACK_INDEX, DatasetRecord, Row, Samples, TileDataset
from anysat.data.files import read_file
from anysat.data.layout import DatasetFolder, Layout
from anysat.data.pack.record import changes
from anysat.data.pack.tile import build_tile, parts_are_sound
from anysat.errors import AnySatError, MissingFileError, SourceError, some
from anysat.modalities import MODALITIES, Band, Modality
from anysat.whole_files import sha256_of

FORMAT = 2
SAMPLES = "samples.npz"
LAYOUT = Layout(name="packed", marker=PACK_INDEX, entries=(), checked_against="its own index and checksums")
PLACES = ("shard", "offset", "size", "head", "crc")
"""Place of a tile: number of its shard, first byte and bytes in it, bytes of header and targets, their CRC-32."""
COLUMNS = tuple(f"pack_{name}" for name in (*PLACES, "label"))
"""Columns that a pack adds to the table of samples."""
_CRAFTED = (KeyError, ValueError, TypeError, AttributeError, IndexError)
"""Errors raised by plain values that are not as expected."""
_MOST_OPEN = 64
_LARGE = 2**22
"""Size in bytes from which reads go into memory of numpy."""


class _OpenFile:
    """A file descriptor that is closed when it is no longer referenced."""

    def __init__(self, path: Path) -> None:
        self.number = os.open(path, os.O_RDONLY)

    def __del__(self) -> None:
        with contextlib.suppress(AttributeError, OSError):
            os.close(self.number)


class Shards:
    """The shards of a folder, opened when first read. Several threads and processes may read them."""

    def __init__(self, root: Path, names: Sequence[str]) -> None:
        self.root, self.names = root, tuple(names)
        self._open: OrderedDict[int, _OpenFile] = OrderedDict()

    def __reduce__(self) -> Any:
        return Shards, (self.root, self.names)

    def read(self, shard: int, offset: int, size: int) -> bytes | memoryview:
        """Read bytes of a shard; fewer at its end."""
        file = self._open.get(shard)
        if file is None:
            path = self.root / self.names[shard]
            if not path.is_file():
                raise MissingFileError(path, "a shard of the packed dataset")
            file = self._open[shard] = _OpenFile(path)
            if len(self._open) > _MOST_OPEN:
                with contextlib.suppress(KeyError):
                    self._open.popitem(last=False)
        size = min(size, max(0, os.fstat(file.number).st_size - offset))
        if size < _LARGE:
            return os.pread(file.number, size, offset)
        content = np.empty(size, np.uint8)  # numpy asks for huge pages, which the system provides several times faster
        done = 0
        while count := os.preadv(file.number, [content.data[done:]], offset + done):  # 2 GiB at most at once
            done += count
            if done == size:
                break
        return content.data[:done]


@dataclass(frozen=True, eq=False)
class Pack:
    """The content of a packed folder, from which a `TileDataset` reads its tiles."""

    shards: Shards
    records: Mapping[str, Modality]
    """Modalities by key."""
    targets: tuple[str, ...]
    """Names of the targets that were packed."""

    def read(
        self, row: Row, modalities: Sequence[str], targets: Sequence[str] | None, tile_m: float, as_stored: bool
    ) -> Tile:
        """Read one tile, only with the modalities and targets asked for.

        Args:
            row: The sample, with the columns `pack_…`.
            modalities: Keys of the modalities.
            targets: Names of the targets; None for all.
            tile_m: Side in metres of what stands in for a tile that has none of the modalities.
            as_stored: Keep values in their stored type, see `build_tile`.

        Raises:
            MissingFileError, SourceError: The shard is missing or damaged.
        """
        shard, offset, _, head_size, crc = (row[f"pack_{name}"] for name in PLACES)
        try:
            head = bytes(self.shards.read(shard, offset, head_size))
            if zlib.crc32(head) != crc:
                raise SourceError("packed tile", "its header or targets are damaged: their checksum differs")
            return build_tile(head, lambda start, size: self.shards.read(shard, offset + start, size), modalities,
                              targets, self.records, as_stored, tile_m)  # fmt: skip
        except MissingFileError:
            raise
        except (AnySatError, ValueError, OSError) as error:
            path = self.shards.root / self.shards.names[shard]
            raise SourceError(path, f"sample {row['id']}: {error}", _advice(error)) from error


def _advice(error: Exception) -> str:
    """Return advice; if the system could not read, that does not mean that the file is damaged."""
    if not isinstance(error, OSError):
        return "pack the dataset again, or copy the shard again; `anysat datasets pack --verify true` checks all"
    if error.errno in (errno.EMFILE, errno.ENFILE):
        return "let processes have more files open (`ulimit -n`), or read with fewer workers"
    if error.errno in (errno.EACCES, errno.EPERM):
        return "check the permissions of the file"
    return "the disk or the network failed: try again, and check them if that does not help"


def open_pack(record: DatasetRecord, root: Path) -> TileDataset:
    """Open all samples of a packed folder.

    Raises:
        SourceError: The folder is not packed, holds another dataset, or does not match the record's targets and
            modalities; or its index is damaged or of another version.
    """
    if root.exists() and not (root / PACK_INDEX).is_file():
        raise SourceError(root, f"it is not packed: there is no {PACK_INDEX} in it", "leave the layout out, or pack "
                          "the dataset with `anysat datasets pack`")  # fmt: skip
    content = read_index(root)
    if content["dataset"] != record.name:
        raise SourceError(root / PACK_INDEX, f"it holds the packed {content['dataset']}, not {record.name}")
    try:
        if found := changes(record, content):
            raise SourceError(
                root / PACK_INDEX, f"the record of {record.name} has changed since it was packed: {'; '.join(found)}",
                "pack the dataset again, or undo the change",
            )  # fmt: skip
        samples = _read_samples(root, content)
        own = {*record.sensors, *(content["records"] if record.is_own else ())}  # may reuse keys of the package
        records = {key: _modality(facts, root, is_own=key in own) for key, facts in content["records"].items()}
    except _CRAFTED as error:
        if isinstance(error, AnySatError):
            raise
        raise SourceError(root / PACK_INDEX, f"its index is damaged ({error!r})", "pack the dataset again") from error
    shards = Shards(root, [shard["file"] for shard in content["shards"]])
    targets = tuple(target.name for target in record.targets if target.name not in content["targets_left_out"])
    pack = Pack(shards, records, targets)
    return TileDataset(record, DatasetFolder(root, LAYOUT), samples, tuple(records), "all", pack=pack)


def read_index(root: Path) -> dict[str, Any]:
    """Read the index of a packed folder.

    Raises:
        MissingFileError, SourceError: There is no index, or none that this version can read.
    """
    path = root / PACK_INDEX
    (content,) = read_file(path, expected="the index of a packed dataset, made by `anysat datasets pack`")
    known = {"dataset", "records", "shards", "samples_sha256", "targets", "columns", "has_labels", "modalities",
             "targets_left_out", "tile_m", "split_names", "description"}  # fmt: skip
    if not isinstance(content, dict) or "format" not in content:
        raise SourceError(path, "it is not the index of a packed dataset", "made by `anysat datasets pack`")
    if content["format"] != FORMAT:
        problem = f"format {content['format']}, this version reads {FORMAT}"
        raise SourceError(path, problem, "update anysat, or pack the dataset again")
    if not known <= set(content):
        raise SourceError(path, f"it lacks {', '.join(sorted(known - set(content)))}", "pack the dataset again")
    shards = content["shards"]
    for shard in shards if isinstance(shards, list) else [shards]:
        name = shard.get("file") if isinstance(shard, dict) else None
        if not isinstance(name, str) or not re.fullmatch(r"[\w.-]+\.tar", name):
            raise SourceError(path, f"it names the shard {name!r}, which is not a file of this folder", "pack it again")
    names = [shard["file"] for shard in shards]
    if twice := [name for name, count in Counter(names).items() if count > 1]:
        problem = f"it names the shard {twice[0]!r} twice, so that tiles of one are lost"
        raise SourceError(path, problem, "pack the dataset again")
    return content


def _read_samples(root: Path, content: Mapping[str, Any]) -> Samples:
    path = root / SAMPLES
    columns = [*content["columns"], *COLUMNS[: len(PLACES)], *["pack_label"] * content["has_labels"]]
    arrays = read_file(path, columns, expected="the table of samples of a packed dataset")
    samples = Samples(**dict(zip(columns, arrays, strict=True)))
    numbers = samples.columns["pack_shard"]
    if len(samples) and not 0 <= int(numbers.min()) <= int(numbers.max()) < len(content["shards"]):
        raise SourceError(path, "it names a shard that the index does not", "pack the dataset again")
    return samples


def _modality(facts: Mapping[str, Any], root: Path, *, is_own: bool) -> Modality:
    """Build a modality from the fields of its record."""
    bands = tuple(Band(**band) for band in facts["bands"])
    made = Modality(**{**facts, "bands": bands})
    known = MODALITIES.get(made.key)
    if known is None or is_own:
        return known if known == made else made
    if known.band_names != made.band_names or known.gsd_m != made.gsd_m:
        raise SourceError(root / PACK_INDEX, f"its {made.key} has bands {', '.join(made.band_names)} at "
                          f"{made.gsd_m:g} m, this version's {', '.join(known.band_names)} at {known.gsd_m:g} m",
                          "pack the dataset again")  # fmt: skip
    return known


def verify_pack(root: Path, advance: Callable[[int], object] = lambda _: None) -> int:
    """Check every byte of a packed dataset against its checksums, and return the number of tiles.

    Args:
        root: The packed folder.
        advance: Called with numbers of checked tiles to add up.

    Raises:
        MissingFileError, SourceError: Something is missing or differs. All damaged shards and tiles are named.
    """
    content = read_index(root)
    if sha256_of(root / SAMPLES) != content["samples_sha256"]:
        raise SourceError(root / SAMPLES, "its checksum differs", "pack the dataset again, or copy the file again")
    samples = _read_samples(root, content)
    found = []
    for number, shard in enumerate(content["shards"]):
        path = root / shard["file"]
        if not path.is_file():
            raise MissingFileError(path, "a shard of the packed dataset")
        inside = samples.take(samples.columns["pack_shard"] == number)
        if sha256_of(path) != shard["sha256"]:
            names = _damaged_tiles(root, inside, content)
            where = f"in sample {some(names)}" if names else "outside of its samples"
            found.append(f"shard {shard['file']} differs, {where}")
        advance(len(inside))
    if found:
        raise SourceError(root, "; ".join(found), "pack the dataset again, or copy these shards again")
    return len(samples)


def _damaged_tiles(root: Path, samples: Samples, content: Mapping[str, Any]) -> list[str]:
    """Return the names of the tiles that cannot be read."""
    shards = Shards(root, [shard["file"] for shard in content["shards"]])
    damaged = []
    for row in samples:
        tile = bytes(shards.read(row["pack_shard"], row["pack_offset"], row["pack_size"]))
        head = tile[: row["pack_head"]]
        is_sound = len(tile) == row["pack_size"] and zlib.crc32(head) == row["pack_crc"]
        if not is_sound or not parts_are_sound(tile):
            damaged.append(str(row["id"]))
    return damaged
