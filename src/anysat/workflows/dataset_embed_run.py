"""The run of `anysat datasets embed`: open, standardise, embed, and write the table row group by row group."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.text import Text

import anysat
from anysat.batch import Tile
from anysat.data.base import DatasetRecord, Target, find_dataset, open_dataset
from anysat.data.own.tables import PLACE, as_number
from anysat.data.work import fingerprint, make_folder
from anysat.errors import InputError, UnknownNameError
from anysat.geo.degrees import centre_deg, has_place
from anysat.geo.tables import TileTable
from anysat.geo.writers import check_free, staged
from anysat.model.checkpoint import load
from anysat.model.digest import digest
from anysat.model.encoder import AnySat
from anysat.model.precision import find_device, find_precision
from anysat.normalise import Normaliser
from anysat.probing.cache import TILES_PER_FILE, Features, extract
from anysat.tasks.base import labelled
from anysat.workflows.answer import Answer
from anysat.workflows.dataset_embed import TableConfig
from anysat.workflows.progress import progress_bar
from anysat.workflows.task_parts import number_days, with_statistics

if TYPE_CHECKING:
    from anysat.data.work import AnyDataset

ROWS = 128 * TILES_PER_FILE
"""Number of tiles in a row group."""
_PLACE = "place of the tile"
"""Name under which a tile's longitude and latitude are passed along with its targets. No target has such a name."""
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
        return replace(tile, targets={**tile.targets, _PLACE: np.array(place)})

    def labels(self) -> NDArray[np.int64]:
        """Class number of every tile."""
        return self.tiles.labels()


@dataclass(frozen=True, kw_only=True)
class _Standard:
    """Tiles that statistics are computed from if none are known."""

    record: DatasetRecord
    train: Any
    normaliser: Normaliser | None = None


def run_embed_dataset(config: TableConfig) -> Answer:
    """Embed a dataset, see `embed_dataset`."""
    out = Path(config.out)
    check_free([out], overwrite=config.overwrite)
    record = find_dataset(config.name)
    targets = [target for target in record.targets if target.level == "tile"]
    tiles = open_dataset(config.name, config.path, config.split, modalities=config.modalities or None,
                         targets=[target.name for target in targets])  # fmt: skip
    if not len(tiles):
        raise InputError(f"{record.name}, split {config.split}", "at least one tile", "none")
    TileTable.check_names([name for target in targets for name in _fields(target)])
    encoder = load(config.weights, device=find_device(config.device)).requires_grad_(False)
    number_days(encoder, record, config.day_convention)
    size = _checked_size(config, encoder, tiles)
    partial = out.with_name(f"{out.name}.partial")
    make_folder(partial)
    whose = with_statistics(encoder, _standard(config, tiles), config.statistics, tiles.modalities, partial, 0)
    precision = find_precision(config.precision, encoder.device)
    found = extract(encoder, Placed(tiles), size, partial, modalities=tiles.modalities, precision=precision,
                    num_workers=config.workers, progress=progress_bar)  # fmt: skip
    facts = {
        "version": anysat.__version__,
        "weights": dict(encoder.provenance) | {"digest": digest(encoder)},
        "precision": precision,
        "statistics": whose,
        "patch_size_m": size,
        "day_convention": encoder.config.day_convention,
        "dataset": {"name": record.name, "split": config.split, "modalities": list(tiles.modalities),
                    "fingerprint": fingerprint(tiles)},
        "classes": {target.name: list(target.classes) for target in targets if target.classes},
    }  # fmt: skip
    _write(out, config.overwrite, tiles, targets, found, facts)
    told = "\n".join(_told(tiles, targets, found, facts, out))
    shutil.rmtree(partial, ignore_errors=True)
    return Answer(Text(told))


def _checked_size(config: TableConfig, encoder: AnySat, tiles: AnyDataset) -> float:
    """Return the patch size in metres, and check that the encoder knows all modalities of the tiles.

    Raises:
        UnknownNameError: It does not.
        InputError: No patch size is given, and the dataset recommends none.
    """
    known = [modality.key for modality in encoder.config.modalities]
    common = ",".join(key for key in tiles.modalities if key in known)
    for key in tiles.modalities:
        if key not in known:
            advice = f"Leave it out: --modalities [{common}]" if common else ""
            raise UnknownNameError("modality of the weights", key, known, advice)
    sizes = tiles.record.patch_sizes_m
    if config.patch_size_m is None and not sizes:
        raise InputError("--patch-size-m", "a patch size in metres", "none, and the dataset recommends none")
    return sizes[0] if config.patch_size_m is None else config.patch_size_m


def _standard(config: TableConfig, tiles: AnyDataset) -> _Standard:
    """Return the training tiles, or if there are none, the tiles that are embedded."""
    train = open_dataset(config.name, config.path, "train", modalities=tiles.modalities, targets=())
    return _Standard(record=tiles.record, train=train if len(train) else replace(tiles, targets=()))


def _write(
    out: Path, overwrite: bool, tiles: AnyDataset, targets: Sequence[Target], found: Features, facts: Mapping[str, Any]
) -> None:
    places = found.targets[_PLACE].numpy()
    members, splits = _splits(tiles)
    fields = {name: kind for target in targets for name, kind in _fields(target).items()}
    if members != splits:
        fields = {"member": "string"} | fields
    (dim,) = found.embeddings([0]).tile.shape[1:]
    with (
        staged([out], overwrite=overwrite) as folder,
        TileTable(folder / out.name, fields, dim=dim, has_places=bool(np.isfinite(places).all(1).any()),
                  attributes=facts) as table,
        progress_bar(f"rows of {out.name}", len(found)) as advance,
    ):  # fmt: skip
        for start in range(0, len(found), ROWS):
            rows = slice(start, min(start + ROWS, len(found)))
            columns = {"member": members[rows]} if members != splits else {}
            for target in targets:
                columns |= _labels(target, found.targets[target.name][rows])
            vectors, seen = _vectors(found, rows)
            table.add(vectors, seen, ids=found.ids[rows], splits=splits[rows], places=places[rows], columns=columns)
            advance(rows.stop - rows.start)


def _splits(tiles: AnyDataset) -> tuple[list[str], list[str]]:
    """Return each tile's member in the dataset's own table, such as a fold, and the split that this belongs to."""
    split_of = {member: split for split, members in tiles.record.splits.items() for member in members}
    members = [str(member) for member in tiles.samples.columns["split"]]
    return members, [split_of.get(member, member) for member in members]


def _vectors(found: Features, rows: slice) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
    """Return tile embeddings (tile dim) and the fraction of each tile's patches that was observed."""
    vectors, seen = [], []
    for start in range(rows.start, rows.stop, TILES_PER_FILE):
        one = found.embeddings(range(start, min(start + TILES_PER_FILE, rows.stop)))
        vectors.append(one.tile.float().numpy())
        seen.append(one.valid.double().flatten(1).mean(1).numpy())
    return np.concatenate(vectors), np.concatenate(seen)


def _fields(target: Target) -> dict[str, Any]:
    """Return the columns of a target and their types, as pyarrow spells them. A number means a list of 0 and 1."""
    if target.kind == "value":
        return {target.name: "double"}
    if target.kind == "labels":
        return {target.name: len(target.classes), f"{target.name}_names": "strings"}
    return {target.name: "int32", f"{target.name}_name": "string"}


def _labels(target: Target, truth: torch.Tensor) -> dict[str, list[Any]]:
    """Return the values of the columns in `_fields` for some tiles, None without a label."""
    known, values = labelled(target, truth), truth.tolist()
    if target.kind == "labels":
        numbers = [one if is_known else None for one, is_known in zip(values, known.all(1).tolist(), strict=True)]
        names = [None if one is None else [target.classes[n] for n in np.flatnonzero(one)] for one in numbers]
        return {target.name: numbers, f"{target.name}_names": names}
    if target.kind == "class":
        known = known & (truth >= 0) & (truth < len(target.classes))
    numbers = [one if is_known else None for one, is_known in zip(values, known.tolist(), strict=True)]
    if target.kind == "value":
        return {target.name: numbers}
    return {target.name: numbers, f"{target.name}_name": [None if n is None else target.classes[n] for n in numbers]}


def _told(
    tiles: AnyDataset, targets: Sequence[Target], found: Features, facts: Mapping[str, Any], out: Path
) -> Iterator[str]:
    counts = Counter(_splits(tiles)[1])
    dim, num_new = found.embeddings([0]).tile.shape[1], found.num_new
    yield f"{tiles.name}: {len(found):,} tiles ({', '.join(f'{count:,} {name}' for name, count in counts.items())})"
    yield f"statistics: {facts['statistics']}"
    kept = f"; {len(found) - num_new:,} tiles were already embedded" if num_new < len(found) else ""
    yield (
        f"embeddings: {dim} numbers a tile, of {' '.join(tiles.modalities)} in patches of {facts['patch_size_m']:g} m, "
        f"multiplied in {facts['precision']}{kept}"
    )
    labels = ", ".join(target.name for target in targets)
    yield f"labels: {labels or 'none, because the dataset has no target per tile'}"
    if not np.isfinite(found.targets[_PLACE].numpy()).all(1).any():
        yield "places: not known, so there are no columns lon, lat and geometry"
    if names := found.unseen:
        shown = ", ".join(names[:_NAMED]) + (", …" if len(names) > _NAMED else "")
        unit = "tile" if len(names) == 1 else "tiles"
        yield f"{len(names):,} {unit} without valid values, null in the table: {shown}"
    yield f"wrote {out}: {len(found):,} rows"
