"""The features in a comparison: band statistics, pixel series, given tables, and embeddings."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from anysat.data.base import Samples as TableOfTiles
from anysat.data.base import Tiles
from anysat.data.cache import cache_folder
from anysat.data.loader import Loader
from anysat.data.mixture import OrderedPass
from anysat.data.splits import TEST, TRAIN
from anysat.model.digest import digest
from anysat.model.early import LAST, check_layer, end_at
from anysat.model.encoder import AnySat
from anysat.model.first_weights import init_isometric
from anysat.model.load import load
from anysat.model.precision import find_device, find_precision
from anysat.probing.cache import Features, extract
from anysat.tasks.heads import dense_of, pooled
from anysat.tasks.predictor import View
from anysat.tasks.simple import SIMPLE, Places, at_places
from anysat.workflows.evaluate import CompareConfig
from anysat.workflows.evaluate.given import GivenTable
from anysat.workflows.evaluate.turns import Turns
from anysat.workflows.progress import progress_bar
from anysat.workflows.supervised.data import OpenData
from anysat.workflows.supervised.parts import check_seen, known_weights, make_view, number_days, with_statistics

Table = NDArray[np.float64]
"""(sample feature)"""


@dataclass(frozen=True, kw_only=True, eq=False)
class Samples:
    """All labelled places, in the tiles of train, val and test, one after the other."""

    places: Places
    shapes: tuple[tuple[int, int] | None, ...]
    """(tile), rows and columns of the target; None if samples are tiles."""
    turns: Turns

    def rows(self, turn: int, role: int) -> NDArray[np.int64]:
        """Return the numbers of the samples with a role in a turn."""
        return np.flatnonzero(self.turns.roles[turn][self.places.tile] == role)

    @property
    def num_scored_tiles(self) -> int:
        """Number of tiles with a sample that is scored in any turn."""
        return len(np.unique(self.places.tile[(self.turns.roles == TEST).any(0)[self.places.tile]]))


@dataclass(frozen=True, kw_only=True)
class FeatureSet:
    """Facts about one set of features for all samples."""

    name: str
    num_features: int
    seconds: float
    """CPU time in seconds to compute it, in this process. Cached embeddings are only read."""
    num_kept: int = 0
    """Number of tiles whose embeddings were in the cache, counted once for each turn with its own statistics."""
    encoder: Mapping[str, Any] | None = None
    """Name, origin of the weights, digest, layer, parameters and dense modality; None without a network."""
    given: Mapping[str, Any] | None = None
    """Name, file, digest, columns and counts of the table that it was read from; None if it was computed."""


Made = tuple[FeatureSet, tuple[Table, ...]]
"""A feature set and its table in each turn, which is the same table unless it depends on the training tiles."""


def check_encoders(config: CompareConfig) -> None:
    """Check that all encoders can be loaded and have the layers, so that hours of work do not end in an error.

    Raises:
        UnknownNameError, MissingFileError, WeightsError: They cannot, or one has no such layer.
    """
    for weights in config.weights:
        encoder = _encoder(weights, config.seed)
        for layer in config.layers:
            check_layer(encoder, layer)


def feature_sets(
    config: CompareConfig, data: OpenData, samples: Samples, given: Sequence[GivenTable], folder: Path
) -> Iterator[Made]:
    """Yield every feature set of a comparison.

    Args:
        config: Options of the comparison.
        data: The tiles.
        samples: The places to use.
        given: Tables of features.
        folder: An empty folder for statistics of the training tiles.
    """
    names = [name for tiles in data.splits.values() for name in tiles.ids]
    ready = [_from_table(table, names, samples) for table in given]  # a tile may be missing
    yield from _without_a_network(config, data, samples)
    yield from ready
    for weights in config.weights:
        for size in config.patch_sizes_m or data.record.patch_sizes_m[:1]:
            for layer in config.layers:
                yield from _embeddings(config, data, weights, size, layer, samples, folder)


def _without_a_network(config: CompareConfig, data: OpenData, samples: Samples) -> Iterator[Made]:
    """Yield the feature sets that need no network. Each tile is read once for all of them."""
    tables: dict[str, list[tuple[NDArray[np.int64], Mapping[str, Table]]]] = {name: [] for name in SIMPLE}
    seconds, reading, number = dict.fromkeys(SIMPLE, 0.0), 0.0, 0
    for split, tiles in data.splits.items():
        with progress_bar(f"{', '.join(SIMPLE)} of {split}", len(tiles)) as advance:
            began = time.process_time()
            for draw in one_by_one(tiles, config.num_workers):
                tile = draw.batch.tile(0)
                reading += time.process_time() - began
                for name, make in SIMPLE.items():
                    began = time.process_time()
                    found = {key: _at({key: one}, samples, number)[1] for key, one in make(tile).items()}
                    tables[name].append((samples.places.of(number), found))
                    seconds[name] += time.process_time() - began
                number += 1
                advance(1)
                began = time.process_time()
    for name, parts in tables.items():
        table = _side_by_side(parts, len(samples.places))
        made = FeatureSet(name=name, num_features=table.shape[1], seconds=reading + seconds[name])
        yield made, (table,) * samples.turns.count


def _from_table(table: GivenTable, names: Sequence[str], samples: Samples) -> Made:
    """Return the features of a table for samples that are tiles."""
    began = time.process_time()
    found = table.of([names[tile] for tile in samples.places.tile])
    facts = table.facts(int(np.isnan(found).all(1).sum()))
    took = time.process_time() - began
    made = FeatureSet(name=table.name, num_features=found.shape[1], seconds=took, given=facts)
    return made, (found,) * samples.turns.count


def one_by_one(tiles: Tiles, num_workers: int) -> Loader:
    """Return a loader of batches of one tile each, in order."""
    return OrderedPass(tiles=tiles, batch_size=1, patch_size_m=0.0).loader(num_workers=num_workers)


def _embeddings(
    config: CompareConfig, data: OpenData, weights: str, size: float, layer: str, samples: Samples, folder: Path
) -> Iterator[Made]:
    """Yield every kind of pooling of one encoder at one patch size and layer."""
    began = time.process_time()
    encoder = _encoder(weights, config.seed).to(find_device(config.device))
    number_days(encoder, data.record, config.day_convention)
    facts = {"name": weights, **known_weights(encoder), "layer": layer}
    encoder = end_at(encoder, layer)
    facts["parameters"] = sum(p.numel() for p in encoder.parameters())
    modalities = config.data.modalities or list(data.record.modalities)
    is_pixel = data.target.level == "pixel"
    view = make_view(encoder, data.record, data.target, modalities=modalities, patch_sizes_m=[size], dense=config.dense,
                     needs_dense=is_pixel, held=lambda: data.held)  # fmt: skip
    check_seen(data, view.dense)
    facts["dense"] = view.dense
    seen = _extracted(config, data, encoder, view, samples.turns, folder)
    took, num_kept = time.process_time() - began, sum(len(one) - one.num_new for found in set(seen) for one in found)
    for pooling, vectors in (_OF_PIXELS if is_pixel else _OF_TILES).items():
        if pooling in _HAVE_TILE and layer.startswith("spatial"):
            continue  # no block has mixed other tokens into the tile token yet
        began = time.process_time()
        tables = {found: _vectors(vectors, found, samples) for found in set(seen)}
        yield FeatureSet(
            name=", ".join([weights, f"{size:g} m", *([] if layer == LAST else [layer]), pooling]),
            num_features=tables[seen[0]].shape[1], seconds=took + time.process_time() - began, num_kept=num_kept,
            encoder=facts,
        ), tuple(tables[found] for found in seen)  # fmt: skip


def _extracted(
    config: CompareConfig, data: OpenData, encoder: AnySat, view: View, turns: Turns, folder: Path
) -> list[tuple[Features, ...]]:
    """Return for each turn the embeddings of the three splits, standardised with statistics of its training tiles."""
    cache = Path(config.cache) if config.cache is not None else cache_folder() / "features"
    own, seen, of_turn = encoder.normaliser, {}, []
    for turn in range(turns.count):
        home = folder / f"turn-{turn}"
        home.mkdir(exist_ok=True)
        encoder.normaliser = own
        with_statistics(encoder, _of_turn(data, turns, turn), config.statistics, view.modalities, home, config.seed)
        name = digest(encoder, statistics=True)
        if name not in seen:
            seen[name] = tuple(
                extract(encoder, tiles, view.patch_sizes_m[0], cache, modalities=view.modalities,
                        dense=view.dense, precision=find_precision(config.precision, encoder.device),
                        num_workers=config.num_workers, progress=progress_bar)
                for tiles in data.splits.values()
            )  # fmt: skip
        of_turn.append(seen[name])
    return of_turn


def _of_turn(data: OpenData, turns: Turns, turn: int) -> OpenData:
    """Return the data with the training tiles of a turn."""
    if not turns.is_crossed:
        return data.uncut
    tables = [tiles.samples.columns for tiles in data.splits.values()]
    every = TableOfTiles(**{name: np.concatenate([one[name] for one in tables]) for name in tables[0]})
    return replace(data, train=replace(data.train, samples=every.take(turns.roles[turn] == TRAIN)))


def _encoder(weights: str, seed: int) -> AnySat:
    """Load weights by name. A word before the name gives new weights of the same shape and statistics."""
    begin, _, name = weights.partition(":")
    if begin not in _BEGINNINGS:
        return load(weights).requires_grad_(False)
    kept = load(name)
    torch.manual_seed(seed)
    encoder = AnySat(kept.config, normaliser=kept.normaliser)
    _BEGINNINGS[begin](encoder)
    return encoder.eval().requires_grad_(False)


_BEGINNINGS: dict[str, Callable[[AnySat], object]] = {"untrained": lambda _: None, "isometric": init_isometric}
"""Words before a name, and how they initialise a new encoder."""


def _patches(seen: Any) -> torch.Tensor:
    """Return the mean of the observed patches, NaN if there are none."""
    return pooled(seen).masked_fill(~seen.valid.flatten(1).any(1)[:, None], torch.nan)


_OF_TILES: dict[str, Callable[[Any], torch.Tensor]] = {
    "tile": lambda seen: seen.tile,
    "patches": _patches,
    "tile + patches": lambda seen: torch.cat([seen.tile, _patches(seen)], dim=-1),
}
_HAVE_TILE = ("tile", "tile + patches")
_OF_PIXELS: dict[str, Callable[[Any], torch.Tensor]] = {
    "patch": lambda seen: seen.patch,
    "dense": lambda seen: dense_of(seen)[0],
}


def _at(maps: Mapping[str, Table], samples: Samples, tile: int) -> tuple[NDArray[np.int64], Table]:
    """Return the samples of a tile and their features."""
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


def _side_by_side(parts: Sequence[tuple[NDArray[np.int64], Mapping[str, Table]]], count: int) -> Table:
    """Join features with separate columns for each modality. A tile that lacks a modality has NaN."""
    widths = {key: table.shape[1] for _, tables in parts for key, table in tables.items()}
    starts = dict(zip(widths, np.cumsum([0, *widths.values()]).tolist(), strict=False))
    joined = np.full((count, sum(widths.values())), np.nan)
    for mine, tables in parts:
        for key, table in tables.items():
            joined[mine, starts[key] : starts[key] + widths[key]] = table
    return joined


def _in_order(parts: Sequence[tuple[NDArray[np.int64], Table]], count: int) -> Table:
    table = np.full((count, parts[0][1].shape[1]), np.nan)
    for mine, values in parts:
        table[mine] = values
    return table
