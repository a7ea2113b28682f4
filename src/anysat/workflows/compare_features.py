"""What models are fitted to in a comparison: statistics of bands, their pixels, and what encoders make of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from anysat.data.base import Samples as TableOfTiles
from anysat.data.cache import cache_folder
from anysat.model.checkpoint import load
from anysat.model.digest import digest
from anysat.model.encoder import AnySat
from anysat.probing.cache import Features, extract
from anysat.tasks.heads import dense_of, pooled
from anysat.tasks.simple import SIMPLE, Places, at_places
from anysat.workflows.compare_turns import SPLITS, TRAIN, Turns
from anysat.workflows.evaluate import EvaluateConfig
from anysat.workflows.labelled_data import OpenData
from anysat.workflows.progress import progress_bar
from anysat.workflows.task_parts import make_view, with_statistics

Table = NDArray[np.float64]
"""(sample feature)"""


@dataclass(frozen=True, kw_only=True, eq=False)
class Samples:
    """All labelled places, of the tiles of train, val and test one after the other."""

    places: Places
    shapes: tuple[tuple[int, int] | None, ...]
    """(tile) rows and columns of the target; None where samples are tiles."""
    turns: Turns

    def rows(self, turn: int, role: int) -> NDArray[np.int64]:
        """Numbers of the samples that have a role."""
        return np.flatnonzero(self.turns.roles[turn][self.places.tile] == role)


@dataclass(frozen=True, kw_only=True, eq=False)
class FeatureSet:
    """One way to see all samples."""

    name: str
    tables: tuple[Table, ...]
    """(turn), one table for all unless training tiles have a part in it."""


def feature_sets(config: EvaluateConfig, data: OpenData, samples: Samples, folder: Path) -> Iterator[FeatureSet]:
    """Every feature set of a comparison.

    Args:
        config: what is compared.
        data: the tiles.
        samples: which places of them.
        folder: an empty one, for statistics of the training tiles of this comparison.
    """
    for name, make in SIMPLE.items():
        tables, first = [], 0
        for split in SPLITS:
            tiles = getattr(data, split)
            with progress_bar(f"{name}, {split}", len(tiles)) as advance:
                for number in range(len(tiles)):
                    tables.append(_at(make(tiles[number]), samples, first + number))
                    advance(1)
            first += len(tiles)
        yield FeatureSet(name=name, tables=_for_all(_in_order(tables, len(samples.places)), samples))
    for weights in config.weights:
        for size in config.patch_sizes_m or data.record.patch_sizes_m[:1]:
            yield from _embeddings(config, data, weights, size, samples, folder)


def _embeddings(
    config: EvaluateConfig, data: OpenData, weights: str, size: float, samples: Samples, folder: Path
) -> Iterator[FeatureSet]:
    """Every way of pooling of one encoder at one patch size."""
    is_pixel = data.target.level == "pixel"
    encoder = encoder_of(weights, config.seed)
    modalities = config.data.modalities or list(data.record.modalities)
    view = make_view(encoder, data.record, data.target, modalities=modalities, patch_sizes_m=[size], dense=None,
                     needs_dense=is_pixel)  # fmt: skip
    cache = Path(config.cache) if config.cache is not None else cache_folder() / "features"
    own, seen, of_turn = encoder.normaliser, {}, []
    for turn in range(len(samples.turns.roles)):
        home = folder / f"turn-{turn}"
        home.mkdir(exist_ok=True)
        encoder.normaliser = own
        with_statistics(encoder, _of_turn(data, samples.turns, turn), None, modalities, home, config.seed)
        name = digest(encoder, statistics=True)
        if name not in seen:
            seen[name] = [
                extract(encoder, getattr(data, split), size, cache, modalities=modalities, dense=view.dense,
                        progress=progress_bar)
                for split in SPLITS
            ]  # fmt: skip
        of_turn.append(name)
    for pooling, vectors in (_OF_PIXELS if is_pixel else _OF_TILES).items():
        tables = {name: _vectors(vectors, found, samples) for name, found in seen.items()}
        yield FeatureSet(name=f"{weights}, {size:g} m, {pooling}", tables=tuple(tables[name] for name in of_turn))


def _of_turn(data: OpenData, turns: Turns, turn: int) -> OpenData:
    """The data with the training tiles of a turn."""
    if not turns.is_crossed:
        return data
    tables = [getattr(data, split).samples.columns for split in SPLITS]
    every = TableOfTiles(**{name: np.concatenate([one[name] for one in tables]) for name in tables[0]})
    return replace(data, train=replace(data.train, samples=every.take(turns.roles[turn] == TRAIN)))


def encoder_of(weights: str, seed: int) -> AnySat:
    """Weights by name; `untrained:NAME` is new ones of the same shape and statistics."""
    if not weights.startswith("untrained:"):
        return load(weights).requires_grad_(False)
    kept = load(weights.removeprefix("untrained:"))
    torch.manual_seed(seed)
    return AnySat(kept.config, normaliser=kept.normaliser).eval().requires_grad_(False)


_OF_TILES: dict[str, Callable[[Any], torch.Tensor]] = {
    "tile": lambda seen: seen.tile,
    "patches": pooled,
    "tile + patches": lambda seen: torch.cat([seen.tile, pooled(seen)], dim=-1),
}
_OF_PIXELS: dict[str, Callable[[Any], torch.Tensor]] = {
    "patch": lambda seen: seen.patch,
    "dense": lambda seen: dense_of(seen)[0],
}


def _at(maps: Mapping[str, Table], samples: Samples, tile: int) -> tuple[NDArray[np.int64], Table]:
    """Samples of a tile and their features."""
    return samples.places.of(tile), at_places(maps, samples.places, tile, samples.shapes[tile])


def _vectors(vectors: Callable[[Any], torch.Tensor], found: Sequence[Features], samples: Samples) -> Table:
    parts, tile = [], 0
    for features in found:
        for number in range(len(features)):
            mine = samples.places.of(tile)
            if len(mine):
                one = vectors(features.embeddings([number]))[0].double().numpy()
                if one.ndim == 1:
                    parts.append((mine, np.repeat(one[None], len(mine), axis=0)))
                else:
                    parts.append(_at({"": np.moveaxis(one, -1, 0)}, samples, tile))
            tile += 1
    return _in_order(parts, len(samples.places))


def _in_order(parts: Sequence[tuple[NDArray[np.int64], Table]], count: int) -> Table:
    table = np.full((count, parts[0][1].shape[1]), np.nan)
    for mine, values in parts:
        table[mine] = values
    return table


def _for_all(table: Table, samples: Samples) -> tuple[Table, ...]:
    return (table,) * len(samples.turns.roles)
