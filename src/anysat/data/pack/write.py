"""Writing of packed datasets. One shard is one unit of work and holds a fixed number of tiles."""

from __future__ import annotations

import io
import itertools
import json
import re
import shutil
import tarfile
import unicodedata
import zipfile
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from anysat.data.base import PACK_INDEX
from anysat.data.files import read_file
from anysat.data.pack import COLUMNS, FORMAT, SAMPLES
from anysat.data.pack.record import record_facts
from anysat.data.pack.tile import encode_tile
from anysat.data.statistics import draw_evenly
from anysat.data.work import Advance, TileFiles, begin, fingerprint, place_facts, to_json, versions, work_through
from anysat.errors import InputError, OutputExistsError, SourceError, UnfinishedError
from anysat.geo.claims import alone_in
from anysat.whole_files import appearing, put_in_place, sha256_of, sweep, write_whole

if TYPE_CHECKING:
    from anysat.data.base import TileDataset

MEMBER = "tile.safetensors"
"""Name of a tile's member in a shard, after its number and a dot."""
_PARTS = "unfinished"
_PROBES = 8
_TAR_HEADER = 512
_OWNER = "anysat"


@dataclass(frozen=True, kw_only=True)
class _ShardPlan:
    name: str
    samples: NDArray[np.int64]
    """Numbers of its tiles in the dataset."""


@dataclass(frozen=True, kw_only=True)
class _Pack:
    """The work in units; one unit is one shard. A shard is finished when its record exists, which is written last."""

    dataset: TileDataset
    folder: Path
    shards: tuple[_ShardPlan, ...]
    files: TileFiles

    def record(self, unit: int) -> Path:
        return self.folder / _PARTS / f"{self.shards[unit].name}.json"

    def is_done(self, unit: int) -> bool:
        path = self.folder / self.shards[unit].name
        if not self.record(unit).exists() or not path.exists():
            return False
        facts = json.loads(self.record(unit).read_text())
        return bool(facts["bytes"] == path.stat().st_size and facts["files"] == self._files_digest(unit))

    def _files_digest(self, unit: int) -> str:
        return self.files.digest(self.shards[unit].samples.tolist())

    def __call__(self, unit: int, advance: Advance) -> None:
        shard = self.shards[unit]
        path = self.folder / shard.name
        files = self._files_digest(unit)  # first: files changed meanwhile are read again
        with appearing(path) as new:
            with new.open("wb") as file:
                places, units, modalities = self._write(shard, file, advance)
            digest = sha256_of(new)
        facts = {"file": shard.name, "samples": len(shard.samples), "bytes": path.stat().st_size, "sha256": digest}
        found = {"places": places, "units": units, "modalities": modalities, "files": files}
        write_whole(self.record(unit), to_json({**facts, **found}))

    def _write(self, shard: _ShardPlan, file: IO[bytes], advance: Advance) -> tuple[list[list[int]], Any, Any]:
        """Write the archive, and return the place of each tile, and units and records by modality."""
        places: list[list[int]] = []
        units: dict[str, list[str]] = {}
        modalities: dict[str, Any] = {}
        with tarfile.open(fileobj=file, mode="w") as archive:
            for index in shard.samples.tolist():
                tile = self.dataset[index]
                content, head = encode_tile(tile)
                member = tarfile.TarInfo(f"{index:09d}.{MEMBER}")
                member.size, member.mode, member.uname, member.gname = len(content), 0o444, _OWNER, _OWNER
                places.append([archive.offset + _TAR_HEADER, len(content), head, zlib.crc32(content[:head])])
                archive.addfile(member, io.BytesIO(content))
                for key, observation in tile.observations.items():
                    if observation.valid.any():  # units do not matter where nothing is valid
                        units.setdefault(key, list(observation.units))
                    modalities.setdefault(key, asdict(observation.modality))
                advance(1)
        return places, units, modalities


def pack_dataset(
    dataset: TileDataset, out: Path, *, shard_mb: float = 256.0, workers: int = 1, overwrite: bool = False,
    advance: Callable[[int], object] = lambda _: None,
) -> Path:  # fmt: skip
    """Write the tiles of a dataset into shards.

    The folder appears when everything is written. Until then, finished shards are kept in a folder with `.partial`
    added to its name, from which interrupted work continues. Equal tiles give equal bytes, whatever the number of
    processes and interruptions.

    Args:
        dataset: A dataset from `open_dataset`, usually with split `all`.
        out: Folder to write.
        shard_mb: Approximate size of a shard in megabytes, estimated from a few tiles spread over the dataset.
        workers: Number of processes.
        overwrite: Replace `out` if it is a packed dataset.
        advance: Called with numbers of finished tiles to add up, including those of an earlier call.

    Returns:
        The folder `out`.

    Raises:
        OutputExistsError: `out` exists.
        InputError: The partial folder holds other work, another process is working in it, the dataset has no tiles, or
            a column of its samples has a name that a pack adds.
        UnfinishedError: The disk is full. The finished shards are kept.
        WriteError: The folder cannot be created.
        MissingFileError, SourceError: A tile cannot be read, or `out` is a link or not a packed dataset.
    """
    check_out(out, overwrite)
    if not len(dataset):
        raise InputError(f"dataset {dataset.name}, split {dataset.split}", "at least one tile", "none")
    for column in COLUMNS:
        if column in dataset.samples.columns and dataset.pack is None:
            raise InputError(f"table of {dataset.name}", f"no column {column}, which a pack adds", "one", "rename it")
    partial = out.with_name(f"{out.name}.partial")
    plan = {"format": FORMAT, "fingerprint": fingerprint(dataset), "dataset": dataset.name, "split": dataset.split,
            "layout": dataset.folder.layout.name, "modalities": list(dataset.modalities), "tiles": len(dataset),
            "shard_mb": shard_mb, "versions": versions()}  # fmt: skip
    with alone_in(partial / _PARTS):
        begin(partial / _PARTS, {**plan, **place_facts(dataset)})
        sweep(partial)
        shards = _cut(dataset, _tiles_per_shard(dataset, shard_mb))
        job = _Pack(dataset=dataset, folder=partial, shards=shards, files=TileFiles(dataset))
        units = range(len(shards))
        left = [unit for unit in units if not job.is_done(unit)]
        advance(len(dataset) - sum(len(shards[unit].samples) for unit in left))
        work_through(job, left, workers=workers, advance=advance, kept_in=partial)
        check_out(out, overwrite)  # another run may have finished first
        try:
            _finish(job, plan)
            _appear(job, out)
        except OSError as error:
            raise UnfinishedError(partial, error) from error
    return out


def _appear(job: _Pack, out: Path) -> None:
    """Remove files that are not of this pack, put the folder in its place, then remove the old one and the records."""
    known = {PACK_INDEX, SAMPLES, _PARTS, *(shard.name for shard in job.shards)}
    for path in job.folder.iterdir():
        if path.name not in known and path.suffix == ".tar":
            path.unlink()
    aside = out.with_name(f".{out.name}.old")
    if aside.exists():
        shutil.rmtree(aside)
    put_in_place(job.folder, out, aside)
    shutil.rmtree(aside, ignore_errors=True)
    shutil.rmtree(out / _PARTS, ignore_errors=True)


def check_out(out: Path, overwrite: bool) -> None:
    """Check that a packed dataset can be written to `out`.

    Raises:
        OutputExistsError: `out` exists.
        SourceError: `out` is a link, or is not a packed dataset and therefore not replaced.
    """
    if out.is_symlink():
        advice = "give the folder it points to, or remove the link"
        raise SourceError(out, "it is a link, which is neither followed nor replaced", advice)
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    if not overwrite:
        raise OutputExistsError([out])
    if not (out / PACK_INDEX).is_file():
        raise SourceError(out, "it is not a packed dataset, so it is not replaced", "give another --out")


def _tiles_per_shard(dataset: TileDataset, shard_mb: float) -> int:
    probes = draw_evenly(len(dataset), min(_PROBES, len(dataset)), seed=0)
    sizes = [len(encode_tile(dataset[index])[0]) + _TAR_HEADER for index in probes.tolist()]
    return max(1, round(shard_mb * 1e6 / (sum(sizes) / len(sizes))))


def _cut(dataset: TileDataset, tiles_per_shard: int) -> tuple[_ShardPlan, ...]:
    """Divide the tiles into shards of one split each, in the order of the dataset."""
    splits = dataset.samples.columns["split"].astype(str)
    shards = []
    for split, name in _shard_names(np.unique(splits).tolist()).items():
        members = np.flatnonzero(splits == split)
        for number, start in enumerate(range(0, len(members), tiles_per_shard)):
            part = members[start : start + tiles_per_shard]
            shards.append(_ShardPlan(name=f"{name}-{number:06d}.tar", samples=part))
    assert len({shard.name for shard in shards}) == len(shards), shards
    return tuple(shards)


def _shard_names(splits: Sequence[str]) -> dict[str, str]:
    """Return names for the shards of each split, distinct even on disks that ignore case and the encoding of accents.

    >>> _shard_names(["Fold 1", "fold 1", "fold-2"])
    {'Fold 1': 'Fold-1', 'fold 1': 'fold-1-2', 'fold-2': 'fold-2'}
    """
    names: dict[str, str] = {}
    taken: set[str] = set()
    for split in splits:
        cleaned = re.sub(r"[^\w.-]+", "-", unicodedata.normalize("NFC", split))
        tries = (cleaned if number == 1 else f"{cleaned}-{number}" for number in itertools.count(1))
        names[split] = next(name for name in tries if name.casefold() not in taken)
        taken.add(names[split].casefold())
    return names


def _finish(job: _Pack, plan: Mapping[str, Any]) -> None:
    """Write the table of samples and the index."""
    dataset = job.dataset
    found = [read_file(job.record(unit))[0] for unit in range(len(job.shards))]
    table = np.zeros((len(dataset), 5), np.int64)
    for number, (shard, facts) in enumerate(zip(job.shards, found, strict=True)):
        table[shard.samples, 0] = number
        table[shard.samples, 1:] = facts["places"]
    kinds = {"shard": np.int32, "offset": np.int64, "size": np.int64, "head": np.int32, "crc": np.uint32}
    columns = {name: column for name, column in dataset.samples.columns.items() if name not in COLUMNS}
    arrays = {**columns, **{f"pack_{name}": table[:, i].astype(kind) for i, (name, kind) in enumerate(kinds.items())}}
    has_labels = dataset.record.list_labels is not None
    if has_labels:
        arrays["pack_label"] = dataset.labels()
    write_whole(job.folder / SAMPLES, _npz(arrays))
    units = {key: part for facts in reversed(found) for key, part in facts["units"].items()}
    modalities = {key: part for facts in found for key, part in facts["modalities"].items()}
    content = {
        **plan, "folder": dataset.folder.root.resolve().name, "title": dataset.record.title,
        "licence": dataset.record.licence, "has_labels": has_labels,
        **record_facts(dataset.record, dataset.modalities, _targets_read(dataset)), "columns": list(columns),
        "samples_sha256": sha256_of(job.folder / SAMPLES),
        "records": {key: modalities[key] for key in dataset.modalities if key in modalities}, "units": units,
        "shards": [{key: facts[key] for key in ("file", "samples", "bytes", "sha256")} for facts in found],
    }  # fmt: skip
    write_whole(job.folder / PACK_INDEX, to_json(content))


def _targets_read(dataset: TileDataset) -> list[str]:
    """Return the names of the targets that the tiles have."""
    every = [target.name for target in dataset.record.targets] if dataset.targets is None else dataset.targets
    return [name for name in every if dataset.pack is None or name in dataset.pack.targets]


def _npz(arrays: Mapping[str, NDArray[Any]]) -> bytes:
    """Return the content of an .npz file, the same bytes for the same arrays; `np.savez` takes no column `file`."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, array in arrays.items():
            member = io.BytesIO()
            np.save(member, array, allow_pickle=False)
            archive.writestr(zipfile.ZipInfo(f"{name}.npy"), member.getvalue(), zipfile.ZIP_DEFLATED)
    return file.getvalue()
