"""Embeddings on disk, stored under a digest of everything that they depend on.

A file holds the embeddings of a few tiles. Its name is a digest of pixels, weights, statistics and options, so outdated
embeddings are never used, and an interrupted extraction continues where it stopped.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from anysat.batch import Batch, Embeddings
from anysat.data.base import Tiles
from anysat.data.mixture import OrderedPass
from anysat.data.prepare import Progress, silent
from anysat.geo.degrees import place_deg
from anysat.modalities import Modality
from anysat.model.digest import bytes_of, digest
from anysat.model.encoder import AnySat
from anysat.model.modes import evaluating
from anysat.model.precision import Precision, multiplying
from anysat.model.ready import keeping_ready
from anysat.model.validity import mark_unseen
from anysat.patches import PatchGrid
from anysat.whole_files import write_output

TILES_PER_FILE = 8
VERSION = 1
"""Version of the content. Raise it when the same input gives other embeddings."""
CHECKSUM = "sha256"
"""Metadata key of the digest of a file's content, which reveals changes on the disk."""
_OPEN_FILES = 64


@dataclass(frozen=True, kw_only=True, eq=False)
class Features:
    """Embeddings of many tiles, read from disk when asked for, and their targets in memory."""

    files: tuple[Path, ...]
    """Each has `TILES_PER_FILE` tiles, the last one what is left."""
    ids: tuple[str, ...]
    targets: dict[str, Tensor]
    """(tile …) by name."""
    grid: PatchGrid
    dense: Modality | None = None
    places: tuple[tuple[float, float], ...] = ()
    """Longitude and latitude of each tile's centre, NaN if not known."""
    num_new: int = field(default=0, compare=False)
    """Number of tiles that had to be embedded now."""
    unseen: tuple[str, ...] = ()
    """Names of tiles without a valid value, or without one of `dense` if that is set. Their embeddings are NaN."""
    rows: NDArray[np.int64] | None = None
    """Number of each tile in the files; None for all of them in order."""

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def dense_key(self) -> str | None:
        """Key of `dense`, or None."""
        return None if self.dense is None else self.dense.key

    def of(self, ids: Sequence[str]) -> Features:
        """Return those of some tiles, in the order of `ids`."""
        number = {name: place for place, name in enumerate(self.ids)}
        rows, wanted = np.array([number[name] for name in ids], np.int64), set(ids)
        targets = {name: target[torch.from_numpy(rows)] for name, target in self.targets.items()}
        return replace(
            self, ids=tuple(ids), targets=targets,
            places=tuple(self.places[row] for row in rows), rows=rows if self.rows is None else self.rows[rows],
            unseen=tuple(name for name in self.unseen if name in wanted),
        )  # fmt: skip

    def embeddings(self, indices: Sequence[int] | NDArray[np.int64]) -> Embeddings:
        """Return the embeddings of some tiles, in the order of `indices`."""
        found: dict[str, list[Tensor]] = {}
        chosen = np.asarray(indices) if self.rows is None else self.rows[np.asarray(indices)]
        for place in chosen.tolist():
            number, row = divmod(place, TILES_PER_FILE)
            for name, tiles in _open(self.files[number], _version(self.files[number])).items():
                found.setdefault(name, []).append(tiles[row : row + 1])
        return _joined({name: torch.cat(parts) for name, parts in found.items()}, self.grid, self.dense)


def extract(
    encoder: AnySat, tiles: Tiles, patch_size_m: float, folder: Path, *, modalities: Sequence[str],
    dense: str | None = None, precision: Precision = "float32", num_workers: int = 0, progress: Progress = silent,
) -> Features:  # fmt: skip
    """Embed all tiles of a dataset, reusing what is in the folder.

    Pixels are read each time, because file names contain their digest. The encoder is used in eval mode, without
    gradients, and not changed.

    Args:
        encoder: An encoder with a normaliser, so that embeddings do not depend on the batch.
        tiles: Tiles with the targets to return.
        dense: Key of the modality whose sub-patches are embedded as well.
        precision: Type of matrix products. Embeddings are stored in the type of the weights.
        progress: Creates a progress bar from a title and a number of tiles.

    Raises:
        WriteError: The folder cannot be written.
    """
    own = _digest_of(encoder, patch_size_m, tuple(modalities), dense, precision)
    reading = OrderedPass(tiles=tiles, batch_size=TILES_PER_FILE, patch_size_m=patch_size_m)
    files: list[Path] = []
    targets: dict[str, list[Tensor]] = {}
    grid, num_new = None, 0
    unseen: list[str] = []
    places: list[tuple[float, float]] = []
    with keeping_ready(), progress(f"embeddings of {tiles.name}", len(tiles)) as advance:
        for draw in reading.loader(num_workers=num_workers, pin_memory=encoder.device.type == "cuda"):
            kept = {key: draw.batch.observations[key] for key in modalities if key in draw.batch.observations}
            batch = replace(draw.batch, observations=kept, targets={})
            if dense is not None:
                batch = batch.having(encoder.config.modality(dense))
            path = folder / f"{_digest(batch, own)}.safetensors"
            if grid is None:
                grid = encoder.grid(batch, patch_size_m)
            made = _checked(path)
            if made is None:
                num_new += len(batch)
                made = _embedded(encoder, batch, patch_size_m, dense, precision)
                write_output(path, save(made, metadata={CHECKSUM: _sum_of(made)}))
            seen = made["sub_valid"].flatten(1).any(1) if "sub_valid" in made else ~made["tile"].isnan().all(1)
            unseen += [name for name, is_seen in zip(batch.ids, seen.tolist(), strict=True) if not is_seen]
            files.append(path)
            places += map(place_deg, batch.geoboxes)
            for name, target in draw.batch.targets.items():
                targets.setdefault(name, []).append(target.clone())
            advance(len(batch))
    assert grid is not None, tiles
    return Features(
        files=tuple(files), ids=tuple(tiles.ids), grid=grid, places=tuple(places), num_new=num_new,
        unseen=tuple(unseen),
        targets={name: torch.cat(parts) for name, parts in targets.items()},
        dense=None if dense is None else encoder.config.modality(dense),
    )  # fmt: skip


def _embedded(
    encoder: AnySat, batch: Batch, patch_size_m: float, dense: str | None, precision: Precision
) -> dict[str, Tensor]:
    """Return what to store of a batch.

    Of dense embeddings, that is the half that does not repeat the patch embedding.
    """
    with evaluating(encoder), torch.inference_mode(), multiplying(precision, encoder.device):
        found = encoder.encode(batch, patch_size_m, dense=dense, refuse_empty=False)
    kept = {"tile": found.tile, "patch": found.patch, "valid": found.valid}
    if found.dense is not None and found.dense_valid is not None:
        kept |= {"sub": found.dense[..., encoder.config.dim :], "sub_valid": found.dense_valid}
    return {name: tensor.cpu().contiguous() for name, tensor in kept.items()}


def _joined(found: dict[str, Tensor], grid: PatchGrid, dense: Modality | None) -> Embeddings:
    patch, sub = found["patch"], found.get("sub")
    whole = None
    if sub is not None:
        side = sub.shape[1] // patch.shape[1]
        whole = torch.cat([patch.repeat_interleave(side, 1).repeat_interleave(side, 2), sub], dim=-1)
        whole = mark_unseen(whole, found["sub_valid"])
    return Embeddings(
        tile=found["tile"], patch=patch, valid=found["valid"], grid=grid, dense=whole,
        dense_valid=found.get("sub_valid"), dense_modality=dense,
    )  # fmt: skip


def _digest_of(
    encoder: AnySat, patch_size_m: float, modalities: tuple[str, ...], dense: str | None, precision: Precision
) -> bytes:
    """Return the digest of weights, configuration, statistics and options."""
    facts = (VERSION, digest(encoder, statistics=True), patch_size_m, modalities, dense, precision)
    return hashlib.sha256(repr(facts).encode()).digest()


def _digest(batch: Batch, own: bytes) -> str:
    """Return the digest of everything in a batch that embeddings depend on."""
    total = hashlib.sha256(own)
    total.update(str(batch.dataset).encode())
    for key, seen in batch.observations.items():
        total.update(repr((key, seen.modality, seen.units, tuple(seen.values.shape))).encode())
        for tensor in (seen.values, seen.valid, seen.dates):
            total.update(b"-" if tensor is None else bytes_of(tensor))
    return total.hexdigest()


def _checked(path: Path) -> dict[str, Tensor] | None:
    """Return the content of an intact file, or None if it has to be written again."""
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
            is_same = (file.metadata() or {}).get(CHECKSUM) == _sum_of(tensors)
    except (SafetensorError, OSError, ValueError):
        return None
    return tensors if is_same and "tile" in tensors else None


def _sum_of(tensors: dict[str, Tensor]) -> str:
    """Return the SHA-256 of names, types, shapes and values."""
    total = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        total.update(repr((name, str(tensor.dtype), tuple(tensor.shape))).encode())
        total.update(bytes_of(tensor))
    return total.hexdigest()


def _version(path: Path) -> tuple[int, int]:
    """Return a value that changes when the file is replaced."""
    found = path.stat()
    return found.st_ino, found.st_mtime_ns


@lru_cache(maxsize=_OPEN_FILES)
def _open(path: Path, version: tuple[int, int]) -> dict[str, Any]:  # noqa: ARG001 - part of the cache key
    """Return the tensors of a file by name, without reading them: only slices are read, so memory stays bounded."""
    file: Any = safe_open(path, framework="pt")
    return {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 - not a dict


def batches(
    num_tiles: int, batch_size: int, generator: np.random.Generator | None = None
) -> Iterator[NDArray[np.int64]]:
    """Yield the numbers of all tiles in batches, shuffled if a generator is given."""
    order = np.arange(num_tiles) if generator is None else generator.permutation(num_tiles)
    for start in range(0, num_tiles, batch_size):
        yield order[start : start + batch_size]
