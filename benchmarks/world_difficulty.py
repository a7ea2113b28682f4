"""How hard the generated world is: a linear model on band statistics, compared with the ceiling of the generating map.

python benchmarks/world_difficulty.py            # table of the five tasks, half a minute to two
python benchmarks/world_difficulty.py --seed 1 --tiles 60

Protocol. Tiles 0 to N-1 of a world, 320 m wide, of 2020; the first two thirds train, the rest test. Pixels are 10 m; at
most `PIXELS` of each class and tile are drawn. Features are mean and standard deviation over the valid dates of each
band of twelve Sentinel-2 and twelve Sentinel-1 dates. The model is ridge regression onto the classes, with equal class
weights. The tasks are:

- land cover, crop: the class at the pixel's centre.
- change: forest cut in the year or not, for pixels of forest.
- flood: under water at the Sentinel-1 date of the highest rivers. Features are Sentinel-1's bands of that date, and
  their mean and deviation over the year.
- species: windows of 60 m that are more than half forest; which species cover more than 7 % of the window, six
  yes-or-no questions. Features are mean and deviation over the window's pixels and dates.

The score is balanced accuracy (for species, its mean over the questions), rescaled so that guessing gives 0. The
ceiling is the score when the generating map is known: the majority class of the 25 points inside the pixel (for
species, shares from the map at 2 m). It is below 1 because pixels are mixed.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from anysat.data.world import FACTORS, World, WorldTile
from anysat.data.world.map import flood_reach

EXTENT_M, PIXEL_M, POINT_M, WINDOW_PX, DATES, PIXELS, SHARE = 320.0, 10.0, 2.0, 6, 12, 25, 0.07
TASKS = ("land_cover", "species", "crop", "change", "flood")


@dataclass
class Table:
    """Samples of one task: features, labels, labels from the generating map, and number of the tile."""

    features: list[NDArray] = field(default_factory=list)
    labels: list[NDArray] = field(default_factory=list)
    known: list[NDArray] = field(default_factory=list)
    tiles: list[NDArray] = field(default_factory=list)

    def add(self, tile: int, features: NDArray, labels: NDArray, known: NDArray) -> None:
        """Append the samples of a tile."""
        for part, values in zip((self.features, self.labels, self.known), (features, labels, known), strict=True):
            part.append(values)
        self.tiles.append(np.full(len(labels), tile))

    def stacked(self) -> tuple[NDArray, ...]:
        """Return all samples."""
        return tuple(np.concatenate(part) for part in (self.features, self.labels, self.known, self.tiles))


def collect(seed: int, num_tiles: int) -> dict[str, Table]:
    """Return the samples of every task from the tiles of a world."""
    tables = {task: Table() for task in TASKS}
    for index in range(num_tiles):
        tile = World(seed).tile(index, extent_m=EXTENT_M)
        rng = np.random.default_rng([seed, index])
        seen = [tile.observe(key, count=DATES) for key in ("s2", "s1")]
        values = [(o.values[:, : 10 if n == 0 else 2], o.valid[:, : 10 if n == 0 else 2]) for n, o in enumerate(seen)]
        moments = [_moments(*part) for part in values]
        pixels = np.concatenate([part for pair in moments for part in pair])  # (feature row col)
        forest = tile.raster("species", PIXEL_M) >= 0
        for task in ("land_cover", "crop", "change"):
            label, known = _labels(tile, task)
            label = np.where(forest, label, -1) if task == "change" else label
            _draw(tables[task], index, rng, pixels, label, known)
        _species(tables["species"], index, tile, pixels)
        dates = seen[1].dates
        highest = int(np.argmax([flood_reach(seed, date) for date in dates]))
        label, known = _labels(tile, "flood", dates[highest])
        features = np.concatenate([seen[1].values[highest, :2], *moments[1]])
        _draw(tables["flood"], index, rng, features, label, known)
    return tables


def _moments(values: NDArray, valid: NDArray) -> tuple[NDArray, NDArray]:
    """Return mean and deviation over valid dates (band row col)."""
    count = np.maximum(valid.sum(0), 1)
    mean = (values * valid).sum(0) / count
    return mean, np.sqrt(((values - mean) ** 2 * valid).sum(0) / count)


def _labels(tile: WorldTile, task: str, date: np.datetime64 | None = None) -> tuple[NDArray, NDArray]:
    """Return the class at the pixels' centres, and the majority of the points inside them."""
    label = tile.raster(task, PIXEL_M, date=date)
    points, fine = tile.raster(task, POINT_M, date=date), round(PIXEL_M / POINT_M)
    rows, cols = label.shape
    cut = points.reshape(rows, fine, cols, fine)
    counts = np.stack([(cut == number).sum((1, 3)) for number in range(len(FACTORS[task]))])
    return label, counts.argmax(0)


def _draw(
    table: Table, index: int, rng: np.random.Generator, features: NDArray, label: NDArray, known: NDArray
) -> None:
    for number in np.unique(label[label >= 0]):
        rows, cols = np.nonzero(label == number)
        some = rng.permutation(len(rows))[:PIXELS]
        rows, cols = rows[some], cols[some]
        table.add(index, features[:, rows, cols].T, label[rows, cols], known[rows, cols])


def _species(table: Table, index: int, tile: WorldTile, pixels: NDArray) -> None:
    """Add the windows of a tile: moments over the pixels' moments, and the species present."""
    label, points = tile.raster("species", PIXEL_M), tile.raster("species", POINT_M)
    fine, count = round(PIXEL_M / POINT_M), label.shape[0] // WINDOW_PX
    mean, deviation = (np.concatenate([pixels[k : k + 10], pixels[20 + j : 22 + j]]) for k, j in ((0, 0), (10, 2)))
    for row, col in np.ndindex(count, count):
        there = slice(row * WINDOW_PX, (row + 1) * WINDOW_PX), slice(col * WINDOW_PX, (col + 1) * WINDOW_PX)
        inside = label[there]
        if (inside >= 0).mean() <= 0.5:
            continue
        near = points[tuple(slice(part.start * fine, part.stop * fine) for part in there)]
        means, spread = mean[:, *there], deviation[:, *there]
        total = np.sqrt((spread**2).mean((1, 2)) + means.var((1, 2)))
        answers = [
            np.array([(part == number).mean() > SHARE for number in range(len(FACTORS["species"]))])
            for part in (inside, near)
        ]
        table.add(index, np.concatenate([means.mean((1, 2)), total])[None], answers[0][None], answers[1][None])


def scores(table: Table, num_tiles: int) -> tuple[float, float]:
    """Return the scores of the linear model and of the ceiling on the test tiles, 0 for guessing."""
    features, labels, known, tiles = table.stacked()
    train = tiles < round(num_tiles * 2 / 3)
    if labels.ndim == 1:
        found = ridge(features[train], labels[train], features[~train])
        return balanced(found, labels[~train]), balanced(known[~train], labels[~train])
    pairs = []
    for number in range(labels.shape[1]):
        found = ridge(features[train], labels[train, number].astype(int), features[~train])
        truth = labels[~train, number].astype(int)
        pairs.append((balanced(found, truth), balanced(known[~train, number].astype(int), truth)))
    linear, ceiling = np.mean(pairs, axis=0)
    return float(linear), float(ceiling)


def ridge(features: NDArray, labels: NDArray, unseen: NDArray, penalty: float = 1e-3) -> NDArray:
    """Predict unseen samples by ridge regression onto the classes, with equal class weights."""
    mean, deviation = features.mean(0), features.std(0) + 1e-6
    inputs, others = (np.c_[(part - mean) / deviation, np.ones(len(part))] for part in (features, unseen))
    classes, places = np.unique(labels, return_inverse=True)
    weight = (1 / np.bincount(places))[places] / len(classes)
    weighted = inputs * weight[:, None]
    wanted = 2.0 * np.eye(len(classes))[places] - 1
    solved = np.linalg.solve(weighted.T @ inputs + penalty * np.eye(inputs.shape[1]), weighted.T @ wanted)
    return classes[(others @ solved).argmax(1)]


def balanced(found: NDArray, truth: NDArray) -> float:
    """Return balanced accuracy, rescaled so that guessing gives 0 and no mistake gives 1."""
    classes = np.unique(truth)
    accuracy = np.mean([(found[truth == number] == number).mean() for number in classes])
    return float((accuracy - 1 / len(classes)) / (1 - 1 / len(classes)))


def measure(seed: int, num_tiles: int) -> dict[str, tuple[float, float]]:
    """Return the linear score and the ceiling of every task."""
    return {task: scores(table, num_tiles) for task, table in collect(seed, num_tiles).items()}


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--tiles", type=int, default=180)
    options = parser.parse_args()
    print(f"{'task':12} {'linear':>7} {'ceiling':>8} {'share':>6}   seed {options.seed}, {options.tiles} tiles")
    for task, (linear, ceiling) in measure(options.seed, options.tiles).items():
        print(f"{task:12} {linear:7.3f} {ceiling:8.3f} {linear / ceiling:6.0%}")


if __name__ == "__main__":
    main()
