"""Real Sentinel-1 and Sentinel-2 data: probes of crops, land cover and water, and unlabelled tiles for pretraining.

The folder holds `crop_points_canada`, `terramesh_s1s2`, `sen1floods11` and `bigearthnet`. `points` and `scenes` never
give fold 0 of any set to a pretraining, and give no labels.

- crops: one pixel, 20 months of 2017 and 2018, its main crop; folds are groups of large hexagons (`h3_l3`).
- land cover: four scenes of one date in tiles of 320 m; folds are blocks of 640 m, or whole scenes.
- water: a hand-labelled chip, likewise in blocks of 1280 m; with both sensors and with radar alone.
- retrieval: pairs of Sentinel-1 and Sentinel-2 images, without labels.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from numpy.typing import NDArray
from pretraining_features import feature_sets, pixel_features
from pretraining_scores import FeatureSets, Samples
from pretraining_world import around, moments

from anysat.batch import Batch, Tile
from anysat.errors import InputError
from anysat.modalities import MODALITIES
from anysat.model.encoder import AnySat
from anysat.observation import Observation

POINTS, SCENES = "crop_points_canada", "scenes_s1s2"
"""Names under which statistics are stored."""
NUM_FOLDS, SIDE_PX, DRAWN, LEAST = 5, 32, 10, 60
"""Number of folds of the crops; side of a scene's tiles; largest number of pixels per class and tile; smallest number
of points of a main crop."""
S2_LIMIT = 20_000
"""Larger Sentinel-2 values are artefacts and are clipped to this."""
NOMINAL_DATE = "2020-07-01"
"""Date of the land-cover scenes, which come without one."""
_L2A = ("B01", "B02", "B03", "B04", "B05", "B06", "B07", "B08", "B8A", "B09", "B11", "B12")
_L1C = ("B1", "B2", "B3", "B4", "B5", "B6", "B7", "B8", "B8A", "B9", "B10", "B11", "B12")
_SNOW = 7  # only in one whole scene, and nothing else there


@dataclass(frozen=True, eq=False)
class RealTiles:
    """Unlabelled tiles in memory, for a part of a mixture."""

    name: str
    tiles: Sequence[Tile]

    @property
    def ids(self) -> list[str]:
        """Names of the tiles."""
        return [tile.id for tile in self.tiles]

    def __len__(self) -> int:
        return len(self.tiles)

    def __getitem__(self, index: int) -> Tile:
        return self.tiles[index]

    def labels(self) -> NDArray[np.int64]:
        """Raise InputError: there are no classes to balance."""
        raise InputError(f"dataset {self.name}", "one class per sample, to balance classes", "none")


@dataclass(frozen=True, eq=False)
class RealTask:
    """Pixels with a class, in tiles."""

    tiles: RealTiles
    patch_size_m: float
    place: NDArray[np.int64]
    """(sample 3): tile, row, column."""
    labels: NDArray[np.int64]
    """(sample), class numbers."""
    classes: tuple[str, ...]
    """Names by number."""
    groups: NDArray[np.int64]
    """(tile), groups that intervals draw together."""
    folds: Mapping[str, NDArray[np.int64]]
    """Ways to split: (tile), number of the fold, -1 for a tile that is not used."""
    is_series: bool = False
    fold_0_is_unseen: tuple[str, ...] = field(default=())
    """Splits whose fold 0 is left out by `points` and `scenes`."""

    @property
    def samples(self) -> Samples:
        """Labels and groups of the samples."""
        return Samples(self.labels, self.groups[self.place[:, 0]])

    def pixels(self, maps: NDArray[Any], tiles: Sequence[int]) -> NDArray[Any]:
        """Return the features (sample feature) at the samples of some tiles, from maps (tile feature row col)."""
        inside = self.place[np.isin(self.place[:, 0], tiles)]
        return maps[np.searchsorted(tiles, inside[:, 0]), :, inside[:, 1], inside[:, 2]]

    def batches(self) -> list[tuple[list[int], Batch]]:
        """Return all tiles with a sample, in batches."""
        used, count = np.unique(self.place[:, 0]), 256 if self.is_series else 8
        parts = np.split(used, range(count, len(used), count))
        return [(part.tolist(), Batch.of([self.tiles[index] for index in part])) for part in parts]

    def encoded(self, model: AnySat) -> NDArray[Any]:
        """Return an encoder's features of the samples, see `pixel_features`."""
        parts = [self.pixels(pixel_features(model, batch, self.patch_size_m), t) for t, batch in self.batches()]
        return np.concatenate(parts)

    def sets_of(self, features: NDArray[Any]) -> FeatureSets:
        """Return the sets `own`, `dense` and `all` of the columns of `encoded`, as in the generated world."""
        return feature_sets(features, ["fused", *self.tiles[0].observations])

    def baselines(self) -> dict[str, NDArray[Any]]:
        """Return features without a network: values and statistics of a series, or bands and surroundings of images."""
        found: dict[str, list[NDArray[Any]]] = {}
        for tiles, batch in self.batches():
            for name, maps in (_series if self.is_series else _surroundings)(batch).items():
                found.setdefault(name, []).append(self.pixels(maps, tiles))
        return {name: np.concatenate(parts) for name, parts in found.items()}


def _measured(batch: Batch) -> list[tuple[NDArray[Any], NDArray[Any]]]:
    """Return values and validity (time tile band row col) of each modality's measured bands with a valid value."""
    found = []
    for seen in batch.observations.values():
        kept = [n for n, band in enumerate(seen.modality.bands) if band.ratio_of is None]
        kept = [n for n in kept if bool(seen.valid[:, :, n].any())]
        found.append((seen.values[:, :, kept].numpy().swapaxes(0, 1), seen.valid[:, :, kept].numpy().swapaxes(0, 1)))
    return found


def _series(batch: Batch) -> dict[str, NDArray[Any]]:
    seen = _measured(batch)
    statistics = np.concatenate([part for pair in seen for part in moments(*pair)], axis=1)
    filled = [np.where(ok, values, moments(values, ok)[0]).swapaxes(0, 1) for values, ok in seen]
    return {"statistics": statistics,
            "series": np.concatenate([f.reshape(len(batch), -1, *f.shape[3:]) for f in filled], axis=1)}  # fmt: skip


def _surroundings(batch: Batch) -> dict[str, NDArray[Any]]:
    """Return the bands of images, and their mean and deviation over 50 m."""
    bands = np.concatenate([moments(*pair)[0] for pair in _measured(batch)], axis=1)
    return {"statistics": bands, "neighbourhood": np.stack([around(one) for one in bands])}


def tasks(data: Path) -> dict[str, RealTask]:
    """Return the labelled sets of the data folder."""
    return {"crops": _crops(data), "land cover": _land_cover(data), "water": _water(data, ("s2", "s1")),
            "water by radar": _water(data, ("s1",))}  # fmt: skip


def points(data: Path) -> RealTiles:
    """Return all points outside fold 0, whatever their crop: unlabelled tiles of one pixel (patch size 10 m)."""
    tiles, folds = _points(data)[:2]
    return RealTiles(POINTS, [tile for tile, fold in zip(tiles, folds, strict=True) if fold])


def scenes(data: Path) -> RealTiles:
    """Return unlabelled tiles of 320 m of all scenes, outside fold 0."""
    kept = [tile for name in ("terramesh", "floods", "pairs") for tile, fold in _blocks(data)[name] if fold]
    return RealTiles(SCENES, kept)


def pairs(data: Path) -> RealTiles:
    """Return the tiles for retrieval, from the pair that `scenes` leaves out."""
    return RealTiles(SCENES, [tile for tile, fold in _blocks(data)["pairs"] if not fold])


def unseen(data: Path) -> RealTiles:
    """Return the unlabelled tiles of 320 m that `scenes` leaves out."""
    return RealTiles(SCENES, [tile for tiles in _blocks(data).values() for tile, fold in tiles if not fold])


@cache
def _points(data: Path) -> tuple[list[Tile], NDArray[np.int64], NDArray[np.int64], NDArray[Any]]:
    """Return tiles, folds, numbers of the hexagons, and crop names."""
    with np.load(data / POINTS / "canada2017_monthly_s1s2.npz") as file:
        z = {name: file[name] for name in file.files}
    days = [f"{month}-15" for month in z["month"]]
    s2 = np.where(z["s2"] == 65535, np.nan, np.minimum(z["s2"], S2_LIMIT).astype(np.float64))
    digits = np.where((z["s1"] == 65535) | (z["s1"] == 0), np.nan, z["s1"].astype(np.float64))
    s1 = 20 * np.log10(digits) - 83

    def tile(n: int) -> Tile:
        seen = (
            Observation.of(MODALITIES[key], values[n][..., None, None], bands=z[f"{key}_bands"].tolist(), dates=days)
            for key, values in (("s2", s2), ("s1", s1))
        )
        return Tile.of(*seen, id=str(z["sample_id"][n]), dataset=POINTS)

    _, hexagons, counts = np.unique(z["h3_l3"], return_inverse=True, return_counts=True)
    fold_of, filled = np.zeros(len(counts), np.int64), np.zeros(NUM_FOLDS)
    for number in np.argsort(-counts, kind="stable"):  # the largest first, each to the emptiest fold
        emptiest = int(filled.argmin())
        filled[emptiest] += counts[number]
        fold_of[number] = NUM_FOLDS - 1 - emptiest  # fold 0 then has many hexagons and no very large one
    names = np.where(z["crop_code"] == 0, "", z["crop_name"])
    return [tile(n) for n in range(len(names))], fold_of[hexagons], hexagons, names


def _crops(data: Path) -> RealTask:
    tiles, folds, hexagons, names = _points(data)
    crops, counts = np.unique(names[names != ""], return_counts=True)
    main = crops[counts >= LEAST]
    chosen = np.flatnonzero(np.isin(names, main))
    place = np.stack([chosen, np.zeros_like(chosen), np.zeros_like(chosen)], axis=1)
    return RealTask(
        RealTiles(POINTS, tiles), 10.0, place, np.searchsorted(main, names[chosen]), tuple(map(str, main)),
        groups=hexagons, folds={"regions": folds}, is_series=True, fold_0_is_unseen=("regions",),
    )  # fmt: skip


@cache
def _blocks(data: Path) -> dict[str, list[tuple[Tile, int]]]:
    """Return the tiles of every scene with their fold."""
    terramesh = [
        (path.stem, _read(path), _L2A, _read(path.parents[1] / "S1RTC" / path.name), (NOMINAL_DATE, NOMINAL_DATE))
        for path in sorted((data / "terramesh_s1s2" / "S2L2A").glob("*.tif"))
    ]
    chip = data / "sen1floods11"
    floods = [
        (path.stem.removesuffix("_S2Hand"), _read(path), _L1C, _read(next((chip / "S1Hand").glob("*.tif"))),
         ("2019-09-18", "2019-09-17"))
        for path in sorted((chip / "S2Hand").glob("*.tif"))
    ]  # fmt: skip
    found = {"terramesh": _cut(terramesh, block=2), "floods": _cut(floods, block=4)}
    cut = [_cut([_pair(folder)], block=1) for folder in sorted((data / "bigearthnet" / "S2").iterdir())]
    found["pairs"] = [(tile, int(number < len(cut) - 1)) for number, tiles in enumerate(cut) for tile, _ in tiles]
    return found


def _read(path: Path) -> NDArray[Any]:
    with rasterio.open(path) as file:
        return file.read()


def _pair(folder: Path) -> tuple[str, NDArray[Any], tuple[str, ...], NDArray[Any], tuple[str, str]]:
    """A pair of BigEarthNet: 20 m bands repeated to 10 m."""
    names = [name for name in _L2A if name not in ("B01", "B09")]
    s2 = [_read(folder / f"{folder.name}_{name}.tif")[0] for name in names]
    full = max(len(band) for band in s2)
    s2 = [np.kron(band, np.ones((full // len(band),) * 2, band.dtype)) for band in s2]
    place = "_".join(folder.name.split("_")[-2:])
    radar = next((folder.parents[1] / "S1").glob(f"*_{place}"))
    s1 = [_read(radar / f"{radar.name}_{name}.tif")[0] for name in ("VV", "VH")]
    days = [re.search(r"_(\d{8})T", one.name) for one in (folder, radar)]
    assert all(days), (folder, radar)
    return place, np.stack(s2), tuple(names), np.stack(s1), tuple(day.group(1) for day in days if day)  # type: ignore[return-value]


def _cut(found: list[tuple[Any, ...]], block: int) -> list[tuple[Tile, int]]:
    """Whole tiles of scenes, with the fold (0 to 3) of their block of so many tiles."""
    tiles = []
    for name, s2, bands, s1, days in found:
        for row, col in np.ndindex(s2.shape[1] // SIDE_PX, s2.shape[2] // SIDE_PX):
            window = np.s_[:, row * SIDE_PX : (row + 1) * SIDE_PX, col * SIDE_PX : (col + 1) * SIDE_PX]
            kept = [n for n, band in enumerate(bands) if band not in ("B01", "B1", "B09", "B9", "B10")]
            seen = (
                Observation.of(MODALITIES["s2"], s2[window][kept][None], bands=[bands[n] for n in kept],
                               dates=days[:1], nodata=0),
                Observation.of(MODALITIES["s1"], s1[window][None], bands=["VV", "VH"], dates=days[1:]),
            )  # fmt: skip
            tile = Tile.of(*seen, id=f"{name}/{row}/{col}", dataset=SCENES)
            tiles.append((tile, (row // block + 2 * (col // block)) % 4))
    return tiles


def _land_cover(data: Path) -> RealTask:
    found = _blocks(data)["terramesh"]
    names = [tile.id.split("/")[0] for tile, _ in found]
    labels = {name: _read(data / "terramesh_s1s2" / "LULC" / f"{name}.tif")[0] for name in set(names)}
    _, scene = np.unique(names, return_inverse=True)
    shared = [number for number in range(1, 10) if sum(bool((one == number).any()) for one in labels.values()) > 1]
    place, label = _drawn(found, {name: np.where(one == _SNOW, 0, one) for name, one in labels.items()}, ignore=0)
    whole = np.array(["none", "water", "trees", "wetland", "crops", "built", "bare", "snow", "cloud", "rangeland"])
    kept = np.isin(label, shared)  # a class in only one scene cannot be learnt from the others
    return RealTask(
        RealTiles(SCENES, [tile for tile, _ in found]), 40.0, place[kept], label[kept], tuple(whole.tolist()),
        groups=np.arange(len(found)), fold_0_is_unseen=("blocks",),
        folds={"blocks": np.array([fold for _, fold in found]), "scenes": scene},
    )  # fmt: skip


def _water(data: Path, keys: tuple[str, ...]) -> RealTask:
    found = _blocks(data)["floods"]
    path = next((data / "sen1floods11" / "LabelHand").glob("*.tif"))
    place, label = _drawn(found, {path.stem.removesuffix("_LabelHand"): _read(path)[0]}, ignore=-1)
    tiles = [Tile.of(*(t.observations[key] for key in keys), id=t.id, dataset=t.dataset) for t, _ in found]
    return RealTask(
        RealTiles(SCENES, tiles), 40.0, place, label, ("dry", "water"), groups=np.arange(len(found)),
        folds={"blocks": np.array([fold for _, fold in found])}, fold_0_is_unseen=("blocks",),
    )  # fmt: skip


def _drawn(
    found: list[tuple[Tile, int]], labels: Mapping[str, NDArray[Any]], ignore: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """At most `DRAWN` pixels of every class and tile, and their class."""
    places = []
    for index, (tile, _) in enumerate(found):
        name, row, col = tile.id.split("/")
        inside = labels[name][int(row) * SIDE_PX :, int(col) * SIDE_PX :][:SIDE_PX, :SIDE_PX].astype(np.int64)
        rng = np.random.default_rng(index)
        for number in np.unique(inside[inside != ignore]):
            some = rng.permutation(np.argwhere(inside == number))[:DRAWN]
            places.append(np.c_[np.full(len(some), index), some, inside[tuple(some.T)]])
    drawn = np.concatenate(places)
    return drawn[:, :3], drawn[:, 3]
