"""Five tasks of the generated world for frozen encoders: samples, labels, and features of encoders and baselines.

Tasks, pixels, windows and labels are those of `world_difficulty.py`. Generated data are kept on disk.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from pretraining_features import feature_sets, pixel_features, remembered
from pretraining_scores import FeatureSets, Samples
from world_difficulty import DATES, EXTENT_M, PIXEL_M, PIXELS, SHARE, TASKS, WINDOW_PX

from anysat.batch import Batch, Tile
from anysat.data.world import FACTORS, PARAMETERS_SHA256, World, WorldTile
from anysat.data.world.map import flood_reach
from anysat.modalities import MODALITIES
from anysat.model.encoder import AnySat
from anysat.observation import Observation

SEED, NUM_TILES, DATASET = 100, 576, "world"
"""Seed for evaluation, which no pretraining may use; number of tiles; name under which statistics are stored."""
KEYS = ("s2", "s1")
BANDS = {"s2": 10, "s1": 2}
"""Number of measured bands that baselines use."""
WINDOWS = int(EXTENT_M // PIXEL_M) // WINDOW_PX
Maps = dict[str, NDArray[Any]]
"""Features of a tile: `pixel` and `flood` (feature row col), `window` (feature window_row window_col)."""


@dataclass(frozen=True, eq=False)
class WorldSet:
    """Observations of the tiles in source values, and the samples of every task."""

    arrays: Mapping[str, NDArray[Any]]
    """`s2`, `s1` (tile time band row col), their `_valid` and `_dates`; `highest` (tile), index of the flood date in
    s1; `<task>_place` (sample 3), tile, row and column; `<task>_label`."""

    @property
    def num_tiles(self) -> int:
        """Number of tiles."""
        return len(self.arrays["s2"])

    @property
    def num_train(self) -> int:
        """Number of training tiles, which are the first ones."""
        return round(self.num_tiles * 2 / 3)

    def samples(self, task: str) -> Samples:
        """Return the labels and tiles of a task's samples."""
        return Samples(self.arrays[f"{task}_label"], self.arrays[f"{task}_place"][:, 0])

    def batch(self, tiles: list[int], keys: tuple[str, ...] = KEYS, flood: bool = False) -> Batch:
        """Return some tiles as a batch; `flood` keeps only the date of the highest rivers."""
        return Batch.of([self._tile(index, keys, flood) for index in tiles])

    def _tile(self, index: int, keys: tuple[str, ...], flood: bool) -> Tile:
        dates = self.arrays["highest"][index : index + 1] if flood else slice(None)
        parts = {k: tuple(self.arrays[f"{k}{part}"][index][dates] for part in ("", "_valid", "_dates")) for k in keys}
        seen = [Observation.of(MODALITIES[k], v, valid=ok, dates=when) for k, (v, ok, when) in parts.items()]
        return Tile.of(*seen, id=f"world-{index}", dataset=DATASET)


def world_set(cache: Path | None = None, seed: int = SEED, num_tiles: int = NUM_TILES) -> WorldSet:
    """Return the evaluation set, generated or read from the folder `cache`."""
    path = None if cache is None else cache / f"world-{seed}-{num_tiles}-{PARAMETERS_SHA256[:8]}.npz"
    return WorldSet(remembered(path, lambda: _make(seed, num_tiles)))


def _make(seed: int, num_tiles: int) -> dict[str, NDArray[Any]]:
    made = [_generate(seed, index) for index in range(num_tiles)]
    return {
        name: (np.concatenate if name.endswith(("_place", "_label")) else np.stack)([one[name] for one in made])
        for name in made[0]
    }


def _generate(seed: int, index: int) -> dict[str, NDArray[Any]]:
    """Return observations, places and labels of one tile."""
    tile, rng = World(seed).tile(index, extent_m=EXTENT_M), np.random.default_rng([seed, index])
    arrays: dict[str, NDArray[Any]] = {}
    for key in KEYS:
        seen = tile.observe(key, count=DATES)
        arrays |= {key: seen.values, f"{key}_valid": seen.valid, f"{key}_dates": np.asarray(seen.dates)}
    dates = arrays["s1_dates"]
    highest = int(np.argmax([flood_reach(seed, date) for date in dates]))
    arrays["highest"] = np.array(highest)
    forest = tile.raster("species", PIXEL_M) >= 0
    for task in ("land_cover", "crop", "change", "flood"):
        label = tile.raster(task, PIXEL_M, date=dates[highest] if task == "flood" else None)
        label = np.where(forest, label, -1) if task == "change" else label
        some = [rng.permutation(np.argwhere(label == number))[:PIXELS] for number in np.unique(label[label >= 0])]
        place = np.concatenate([np.empty((0, 2), np.int64), *some])
        arrays |= _named(task, index, place, label[tuple(place.T)])
    return arrays | _named("species", index, *_windows(tile))


def _named(task: str, index: int, place: NDArray[Any], label: NDArray[Any]) -> dict[str, NDArray[Any]]:
    tile = np.full((len(place), 1), index)
    return {f"{task}_place": np.concatenate([tile, place], axis=1), f"{task}_label": label}


def _windows(tile: WorldTile) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return the windows that are mostly forest, and the species in them."""
    label = tile.raster("species", PIXEL_M)[: WINDOWS * WINDOW_PX, : WINDOWS * WINDOW_PX]
    cut = label.reshape(WINDOWS, WINDOW_PX, WINDOWS, WINDOW_PX)
    place = np.argwhere((cut >= 0).mean((1, 3)) > 0.5)
    shares = np.stack([(cut == number).mean((1, 3)) for number in range(len(FACTORS["species"]))], axis=-1)
    return place, (shares[tuple(place.T)] > SHARE).astype(np.int64)


def gather(world: WorldSet, maps_of: Callable[[list[int]], list[Maps]], tiles_at_once: int = 4) -> Maps:
    """Return the features (sample feature) of every task's samples, from the maps of each tile."""
    found: dict[str, list[NDArray[Any]]] = {task: [] for task in TASKS}
    for start in range(0, world.num_tiles, tiles_at_once):
        tiles = list(range(start, min(start + tiles_at_once, world.num_tiles)))
        for tile, maps in zip(tiles, maps_of(tiles), strict=True):
            for task in TASKS:
                place = world.arrays[f"{task}_place"]
                rows, cols = place[place[:, 0] == tile, 1:].T
                name = {"species": "window", "flood": "flood"}.get(task, "pixel")
                found[task].append(maps[name][:, rows, cols].T)
    return {task: np.concatenate(parts) for task, parts in found.items()}


def moments(values: NDArray[Any], valid: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return mean and deviation over the valid entries of the first axis."""
    count = np.maximum(valid.sum(0), 1)
    mean = (values * valid).sum(0) / count
    return mean, np.sqrt(((values - mean) ** 2 * valid).sum(0) / count)


def over_windows(values: NDArray[Any]) -> NDArray[Any]:
    """Return the pixels of each window (feature window_row window_col pixel)."""
    side = WINDOWS * WINDOW_PX
    cut = values[:, :side, :side].reshape(-1, WINDOWS, WINDOW_PX, WINDOWS, WINDOW_PX)
    return cut.transpose(0, 1, 3, 2, 4).reshape(len(values), WINDOWS, WINDOWS, -1)


def statistics(world: WorldSet) -> Maps:
    """Return mean and deviation of every band over the year, as in `world_difficulty.py`: of a pixel or of a window."""

    def maps(tile: int) -> Maps:
        seen = {key: _measured(world, tile, key) for key in KEYS}
        mean, spread = (np.concatenate(part) for part in zip(*(moments(*seen[key]) for key in KEYS), strict=True))
        means, spreads = over_windows(mean), over_windows(spread)
        total = np.sqrt((spreads**2).mean(-1) + means.var(-1))
        date = seen["s1"][0][world.arrays["highest"][tile]]
        flood = np.concatenate([date, mean[BANDS["s2"] :], spread[BANDS["s2"] :]])
        return {"pixel": np.concatenate([mean, spread]), "flood": flood,
                "window": np.concatenate([means.mean(-1), total])}  # fmt: skip

    return gather(world, lambda tiles: [maps(tile) for tile in tiles])


def around(pixels: NDArray[Any], side_px: int = 5) -> NDArray[Any]:
    """Return maps (feature row col), followed by their mean and deviation over a square around each pixel."""
    mean, square = (_mean_around(part.astype(np.float64), side_px) for part in (pixels, pixels**2))
    return np.concatenate([pixels, mean, np.sqrt(np.maximum(square - mean**2, 0))])


def neighbourhood(world: WorldSet) -> Maps:
    """Return the statistics of a pixel, and their mean and deviation over 50 m around it; for flood, of every band."""

    def maps(tile: int) -> Maps:
        seen = {key: _measured(world, tile, key) for key in KEYS}
        own = np.concatenate([part for key in KEYS for part in moments(*seen[key])])
        date, cut = seen["s1"][0][world.arrays["highest"][tile]], over_windows(own)
        return {"pixel": around(own), "flood": around(np.concatenate([date, own])),
                "window": np.concatenate([cut.mean(-1), cut.std(-1)])}  # fmt: skip

    return gather(world, lambda tiles: [maps(tile) for tile in tiles])


def _mean_around(pixels: NDArray[Any], side_px: int) -> NDArray[Any]:
    """Return the mean of each feature (feature row col) over a square around every pixel, mirrored at the edges."""
    half = side_px // 2
    wide = torch.from_numpy(np.pad(pixels, ((0, 0), (half, half), (half, half)), mode="symmetric"))
    return torch.nn.functional.avg_pool2d(wide, side_px, stride=1).numpy()


def series(world: WorldSet) -> Maps:
    """Return every band at every date, in order, with the pixel's mean where it is not valid."""

    def maps(tile: int) -> Maps:
        flat, seen = [], {key: _measured(world, tile, key) for key in KEYS}
        for values, valid in seen.values():
            flat.append(np.where(valid, values, moments(values, valid)[0]).reshape(-1, *values.shape[2:]))
        own, cut = np.concatenate(flat), over_windows(np.concatenate(flat))
        date = seen["s1"][0][world.arrays["highest"][tile]]
        return {"pixel": own, "flood": np.concatenate([date, own]),
                "window": np.concatenate([cut.mean(-1), cut.std(-1)])}  # fmt: skip

    return gather(world, lambda tiles: [maps(tile) for tile in tiles])


def _measured(world: WorldSet, tile: int, key: str) -> tuple[NDArray[Any], NDArray[Any]]:
    return tuple(world.arrays[name][tile][:, : BANDS[key]] for name in (key, f"{key}_valid"))  # type: ignore[return-value]


BASELINES = {"statistics": statistics, "neighbourhood": neighbourhood, "series": series}
"""Feature sets without a network."""


def encoded(world: WorldSet, model: AnySat, patch_size_m: float) -> Maps:
    """Return an encoder's features: for a pixel, its patch's fused token and its own token of each modality.

    `flood` adds the same for the one Sentinel-1 date; `window` is mean and deviation over the window's pixels.
    """

    def maps(tiles: list[int]) -> list[Maps]:
        year = pixel_features(model, world.batch(tiles), patch_size_m)
        date = pixel_features(model, world.batch(tiles, ("s1",), flood=True), patch_size_m)
        cut = [over_windows(one) for one in year]
        return [
            {"pixel": one, "flood": np.concatenate([one, flood]),
             "window": np.concatenate([windows.mean(-1), windows.std(-1)])}
            for one, flood, windows in zip(year, date, cut, strict=True)
        ]  # fmt: skip

    return gather(world, maps)


def sets_of(task: str, features: NDArray[Any]) -> FeatureSets:
    """Return the columns of `encoded` from which a probe chooses.

    `own` is each modality's token of the pixel; `dense` is the encoder's dense output, the fused patch token and the
    token of Sentinel-2; `all` is all of it.
    """
    year = ["fused", *KEYS]
    return feature_sets(features, {"species": year * 2, "flood": [*year, "fused", "date"]}.get(task, year))
