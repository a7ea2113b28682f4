"""The run of `anysat datasets embed`: open, standardise, embed, and write the table row group by row group."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from rich.text import Text

from anysat.data.base import DatasetRecord, Target
from anysat.data.kept_statistics import of_file
from anysat.data.open import find_dataset, open_dataset
from anysat.errors import InputError, UnknownNameError
from anysat.geo.claims import LOCK
from anysat.geo.stores.classes import counted_lines
from anysat.geo.write.tables import Kind, TileTable
from anysat.geo.write.writers import check_free, staged
from anysat.model.digest import made_by
from anysat.model.encoder import AnySat
from anysat.model.load import load
from anysat.model.precision import find_device, find_precision
from anysat.normalise import Normaliser
from anysat.probing.cache import TILES_PER_FILE, Features, extract
from anysat.train.run import STATISTICS
from anysat.workflows.answer import Answer
from anysat.workflows.datasets.embed import TableConfig
from anysat.workflows.ground_blocks import known_places
from anysat.workflows.progress import progress_bar
from anysat.workflows.supervised.parts import number_days, with_statistics
from anysat.workflows.tile_tables.columns import (
    ROWS,
    counts_line,
    dataset_facts,
    members_and_splits,
    target_columns,
    target_kinds,
    unseen_lines,
)

if TYPE_CHECKING:
    from anysat.data.base import TileDataset

_KEPT = re.compile(r"[0-9a-f]{64}\.safetensors|\..*\.tmp")
"""Files of finished embeddings, and files being written."""


@dataclass(frozen=True, kw_only=True)
class _Standard:
    """Tiles that statistics are computed from if none are known."""

    record: DatasetRecord
    train: Any
    normaliser: Normaliser | None = None


def run_embed_dataset(config: TableConfig) -> Answer:
    """Embed a dataset, see `embed_dataset`."""
    out = Path(config.out)
    partial = out.with_name(f"{out.name}.partial")
    check_free([out], overwrite=config.overwrite)
    _check_replaced(out)
    _check_unfinished(partial)
    record = find_dataset(config.name)
    targets = [target for target in record.targets if target.level == "tile"]
    tiles = open_dataset(config.name, config.path, config.split, modalities=config.modalities or None,
                         targets=[target.name for target in targets])  # fmt: skip
    if not len(tiles):
        raise InputError(f"{record.name}, split {config.split}", "at least one tile", "none")
    TileTable.check_names([name for target in targets for name in target_kinds(target)], _results())
    encoder = load(config.weights, device=find_device(config.device)).requires_grad_(False)
    number_days(encoder, record, config.day_convention)
    size = _checked_size(config, encoder, tiles)
    return _embedded(config, tiles, targets, encoder, size, partial)


def _embedded(
    config: TableConfig, tiles: TileDataset, targets: Sequence[Target], encoder: AnySat, size: float, partial: Path
) -> Answer:
    """Standardise, embed and write. Unfinished work is kept in `partial`, which is removed at the end."""
    out = Path(config.out)
    whose = with_statistics(encoder, _standard(config, tiles), config.statistics, tiles.modalities, partial, 0)
    precision = find_precision(config.precision, encoder.device)
    found = extract(encoder, tiles, size, partial, modalities=tiles.modalities, precision=precision,
                    num_workers=config.num_workers, progress=progress_bar)  # fmt: skip
    facts = {
        **made_by(encoder),
        "precision": precision,
        "statistics": whose,
        "patch_size_m": size,
        "day_convention": encoder.config.day_convention,
        "dataset": dataset_facts(tiles, config.split),
        "classes": {target.name: list(target.classes) for target in targets if target.classes},
    }  # fmt: skip
    _write(out, config.overwrite, tiles, targets, found, facts)
    told = "\n".join(_told(tiles, targets, found, facts, out))
    shutil.rmtree(partial, ignore_errors=True)
    return Answer(Text(told))


def _check_replaced(out: Path) -> None:
    """Check that an existing output is a table of embeddings, and not, for example, the dataset's own table.

    Raises:
        InputError: It is something else.
    """
    from pyarrow import ArrowException, parquet

    if not out.exists():
        return
    with suppress(OSError, ArrowException):
        schema = parquet.read_schema(out)
        if b"anysat" in (schema.metadata or {}) and {"id", "split", "seen_frac", "embedding"} <= set(schema.names):
            return
    raise InputError("--out", "a table of embeddings that `anysat datasets embed` wrote, to replace it",
                     f"another file, {out}", "give another --out, or move the file away")  # fmt: skip


def _check_unfinished(partial: Path) -> None:
    """Check that a folder holds only unfinished work of this command, because it will be removed.

    Raises:
        InputError: It holds another file, which is named.
    """
    statistics = Path(STATISTICS)
    own = {LOCK, statistics.name, of_file(statistics).name, statistics.with_suffix(".tmp").name}
    for name in sorted(child.name for child in partial.iterdir()) if partial.is_dir() else ():
        if name not in own and not _KEPT.fullmatch(name):
            raise InputError(
                str(partial), "unfinished work of this command", repr(name), "give another --out, or move it away"
            )


def _checked_size(config: TableConfig, encoder: AnySat, tiles: TileDataset) -> float:
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


def _standard(config: TableConfig, tiles: TileDataset) -> _Standard:
    """Return the training tiles, or if there are none, the tiles that are embedded."""
    train = open_dataset(config.name, config.path, "train", modalities=tiles.modalities, targets=())
    return _Standard(record=tiles.record, train=train if len(train) else replace(tiles, targets=()))


def _write(
    out: Path, overwrite: bool, tiles: TileDataset, targets: Sequence[Target], found: Features, facts: Mapping[str, Any]
) -> None:
    places = known_places(tiles, found.places)
    members, splits = members_and_splits(tiles)
    fields: dict[str, Kind] = {"member": "string"} if members != splits else {}
    for target in targets:
        fields |= target_kinds(target)
    (dim,) = found.embeddings([0]).tile.shape[1:]
    with (
        staged([out], overwrite=overwrite) as folder,
        TileTable(folder / out.name, fields, _results(dim), has_places=bool(np.isfinite(places).all(1).any()),
                  attributes=facts) as table,
        progress_bar(f"rows of {out.name}", len(found)) as advance,
    ):  # fmt: skip
        for start in range(0, len(found), ROWS):
            rows = slice(start, min(start + ROWS, len(found)))
            columns: dict[str, Any] = {"member": members[rows]} if members != splits else {}
            for target in targets:
                columns |= target_columns(target, found.targets[target.name][rows])
            vectors, seen = _vectors(found, rows)
            columns |= {"seen_frac": seen, "embedding": [None if np.isnan(one).all() else one for one in vectors]}
            table.add(ids=found.ids[rows], splits=splits[rows], places=places[rows], columns=columns)
            advance(rows.stop - rows.start)


def _results(dim: int = 0) -> dict[str, Kind]:
    """Return the computed columns: share of a tile's patches that were seen, and its embedding of length `dim`."""
    return {"seen_frac": "double", "embedding": ("float", dim)}


def _vectors(found: Features, rows: slice) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
    """Return tile embeddings (tile dim) and the fraction of each tile's patches that was observed."""
    vectors, seen = [], []
    for start in range(rows.start, rows.stop, TILES_PER_FILE):
        one = found.embeddings(range(start, min(start + TILES_PER_FILE, rows.stop)))
        vectors.append(one.tile.float().numpy())
        seen.append(one.valid.double().flatten(1).mean(1).numpy())
    return np.concatenate(vectors), np.concatenate(seen)


def _told(
    tiles: TileDataset, targets: Sequence[Target], found: Features, facts: Mapping[str, Any], out: Path
) -> Iterator[str]:
    dim, num_new = found.embeddings([0]).tile.shape[1], found.num_new
    yield counts_line(tiles)
    yield f"statistics: {facts['statistics']}"
    kept = f"; {len(found) - num_new:,} tiles were already embedded" if num_new < len(found) else ""
    yield (
        f"embeddings: {dim} numbers a tile, of {' '.join(tiles.modalities)} in patches of {facts['patch_size_m']:g} m, "
        f"multiplied in {facts['precision']}{kept}"
    )
    labels = ", ".join(target.name for target in targets)
    yield f"labels: {labels or 'none, because the dataset has no target per tile'}"
    for target in targets:
        yield from counted_lines(target.classes) if target.is_multiclass else ()
    if not np.isfinite(known_places(tiles, found.places)).all(1).any():
        yield "places: not known, so there are no columns lon, lat and geometry"
    yield from unseen_lines(found.unseen, "null in the table")
    yield f"wrote {out}: {len(found):,} rows"
