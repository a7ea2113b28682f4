"""Simple features and simple models, as a baseline for embeddings: what is possible without a network.

Features are arrays (sample feature). A sample is a tile, or a labelled pixel of one.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from anysat.batch import Tile
from anysat.data.targets import Target
from anysat.errors import UnknownNameError
from anysat.observation import Observation
from anysat.tasks.base import Task

Array = NDArray[Any]
_DAYS_PER_MONTH = 365.25 / 12
CALENDAR_DAYS = np.arange(5, 365, 10)
"""Days of the year, from 0: the middle of every ten days."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Places:
    """Samples: places in tiles, or whole tiles."""

    tile: NDArray[np.int64]
    """(sample) number of the tile."""
    row: NDArray[np.int64] | None
    """(sample) row in the target's raster; None if samples are tiles."""
    col: NDArray[np.int64] | None
    truth: Array
    """(sample) classes or values, or (sample label)."""

    def __len__(self) -> int:
        return len(self.tile)

    def of(self, tile: int) -> NDArray[np.int64]:
        """Return the numbers of a tile's samples."""
        return np.flatnonzero(self.tile == tile)


def draw_places(truths: Sequence[Array], target: Target, most: int, seed: int) -> Places:
    """Return all labelled places of some tiles, or at most `most` pixels drawn evenly over tiles.

    Args:
        truths: Target of each tile.
        target: Record of the target.
        most: Largest number of pixels. If more tiles than that have any, one is drawn of each of so many of them.
        seed: Seed of the draw.
    """
    if target.level == "tile":
        truth = np.stack([np.asarray(one) for one in truths])
        kept = np.flatnonzero(has_label(truth, target).reshape(len(truth), -1).all(1))
        return Places(tile=kept, row=None, col=None, truth=truth[kept])
    rng, found, known = np.random.default_rng([seed, 3]), [], []
    each = _of_each([int(has_label(np.asarray(raster), target).sum()) for raster in truths], most)
    for number, raster in enumerate(map(np.asarray, truths)):
        places = np.argwhere(has_label(raster, target))
        places = rng.permutation(places)[:each]
        known.append(raster[places[:, 0], places[:, 1]])
        found.append(np.concatenate([np.full((len(places), 1), number), places], axis=1))
    drawn, truth = np.concatenate(found), np.concatenate(known)
    if len(drawn) > most:
        kept = np.sort(rng.permutation(len(drawn))[:most])
        drawn, truth = drawn[kept], truth[kept]
    tile, row, col = drawn.T
    return Places(tile=tile, row=row, col=col, truth=truth)


def _of_each(counts: Sequence[int], most: int) -> int:
    """Return how many to draw at most of each tile, so that there are at most `most` in all, but at least 1."""
    low, high = 1, max([1, *counts])
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if np.minimum(counts, middle).sum() <= most else (low, middle - 1)
    return low


def joined_places(parts: Sequence[Places], num_tiles: Sequence[int]) -> Places:
    """Join the places of several sets of tiles, whose tiles are then numbered consecutively.

    Args:
        parts: Places of each set.
        num_tiles: Number of tiles of each set.
    """
    first = np.cumsum([0, *num_tiles[:-1]])
    rows, cols = ([getattr(one, name) for one in parts] for name in ("row", "col"))
    return Places(
        tile=np.concatenate([start + one.tile for start, one in zip(first, parts, strict=True)]),
        row=None if rows[0] is None else np.concatenate(rows), col=None if cols[0] is None else np.concatenate(cols),
        truth=np.concatenate([one.truth for one in parts]),
    )  # fmt: skip


def has_label(values: Array, target: Target) -> NDArray[np.bool_]:
    """Return where a value is finite and is not the number that marks places without a label."""
    known = np.isfinite(values) if np.issubdtype(values.dtype, np.floating) else np.ones(values.shape, dtype=bool)
    return known if target.ignore is None else known & (values != target.ignore)


def statistics(tile: Tile) -> dict[str, Array]:
    """Return mean and deviation of every band over its valid dates, as maps (feature row col) by modality."""
    return {key: np.concatenate(_moments(seen)) for key, seen in tile.observations.items()}


def months(tile: Tile) -> dict[str, Array]:
    """Return the mean of every band in each month of the year; images are returned as they are.

    A month without a valid date gets the mean of the whole series.
    """
    found = {}
    for key, seen in tile.observations.items():
        mean, _ = _moments(seen)
        if seen.dates is None:
            found[key] = mean
            continue
        month = np.minimum((_days_of_year(seen.dates) / _DAYS_PER_MONTH).astype(int), 11)
        parts = []
        for number in range(12):
            chosen = month == number
            count = seen.valid[chosen].sum(0)
            total = np.where(seen.valid[chosen], seen.values[chosen], 0).sum(0)
            parts.append(np.where(count > 0, total / np.maximum(count, 1), mean))
        found[key] = np.concatenate(parts)
    return found


def series(tile: Tile) -> dict[str, Array]:
    """Return every band at every ten days of the year, whatever the dates; images are returned as they are.

    Values are interpolated linearly between valid dates, and constant before the first and after the last. Dates of
    several years are treated as one year.
    """
    return {
        key: _moments(seen)[0] if seen.dates is None else _on_calendar(seen, _days_of_year(seen.dates))
        for key, seen in tile.observations.items()
    }


def _on_calendar(seen: Observation, days: NDArray[np.int64]) -> Array:
    """Return values at the calendar's days (feature row col), interpolated from (day band row col)."""
    order = np.argsort(days, kind="stable")
    days, values, valid = days[order], seen.values[order].astype(np.float64), seen.valid[order]
    number = np.arange(len(days), dtype=np.int32).reshape(-1, 1, 1, 1)
    nobody = len(days)
    last = np.maximum.accumulate(np.where(valid, number, -1), axis=0)
    following = np.minimum.accumulate(np.where(valid, number, nobody)[::-1], axis=0)[::-1]
    parts = []
    for day in CALENDAR_DAYS:
        place = int(np.searchsorted(days, day, side="right"))
        before = last[place - 1] if place else np.full_like(last[0], -1)
        after = following[place] if place < nobody else np.full_like(last[0], nobody)
        before, after = np.where(before < 0, after, before), np.where(after == nobody, before, after)
        unseen = (before < 0) | (before == nobody)
        before, after = (np.where(unseen, 0, one) for one in (before, after))
        first, second = (np.take_along_axis(values, one[None], axis=0)[0] for one in (before, after))
        share = (day - days[before]) / np.maximum(days[after] - days[before], 1)
        parts.append(np.where(unseen, np.nan, first + (second - first) * share))
    return np.concatenate(parts)


def _days_of_year(dates: NDArray[np.datetime64]) -> NDArray[np.int64]:
    """Return days of the year, from 0."""
    return (dates - dates.astype("datetime64[Y]")).astype(np.int64)


def _moments(seen: Observation) -> tuple[Array, Array]:
    """Return mean and deviation over dates (band row col); for an image, its values and an empty array."""
    values = np.where(seen.valid, seen.values.astype(np.float64), np.nan)
    return (values, np.empty((0, *values.shape[1:]))) if seen.dates is None else mean_and_spread(values, 0)


def mean_and_spread(values: Array, axes: int | tuple[int, ...]) -> tuple[Array, Array]:
    """Return mean and deviation over some axes of the values that are not NaN; NaN where all are."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # of numpy, where all are NaN
        return np.nanmean(values, axes), np.nanstd(values, axes)


SIMPLE: dict[str, Callable[[Tile], dict[str, Array]]] = {"statistics": statistics, "months": months, "series": series}
"""Features without a network, by name. Add new ones here."""


def at_places(maps: Mapping[str, Array], places: Places, tile: int, shape: tuple[int, int] | None) -> Array:
    """Return the features (sample feature) of a tile's samples from its maps.

    A place gets the pixel that covers it, or the mean of the pixels that it covers. A tile gets mean and deviation over
    its pixels.

    Args:
        maps: (feature row col) by modality.
        places: All samples.
        tile: Number of the tile.
        shape: Rows and columns of the target's raster; None if samples are tiles.
    """
    mine, parts = places.of(tile), []
    for values in maps.values():
        if places.row is None or places.col is None or shape is None:
            both = np.concatenate(mean_and_spread(values, (1, 2)))
            parts.append(np.repeat(both[None], len(mine), axis=0))
        else:
            values = _as_coarse(values, shape)
            row = places.row[mine] * values.shape[1] // shape[0]
            col = places.col[mine] * values.shape[2] // shape[1]
            parts.append(values[:, row, col].T)
    return np.concatenate(parts, axis=1)


def _as_coarse(values: Array, shape: tuple[int, int]) -> Array:
    """Average a map (feature row col) to the pixels of a raster, if its own are finer by a whole factor."""
    (_, rows, cols), (height, width) = values.shape, shape
    if rows <= height or cols <= width or rows % height or cols % width:
        return values
    squares = values.reshape(len(values), height, rows // height, width, cols // width)
    return mean_and_spread(squares, (2, 4))[0]


def models(target: Target, seed: int, num_samples: int) -> dict[str, list[Any]]:
    """Return several settings of each simple model, equally many, as unfitted scikit-learn estimators.

    Args:
        target: What is predicted.
        seed: Seed of the models that draw.
        num_samples: Number of training samples, which limits the number of neighbours.
    """
    from sklearn.ensemble import (
        HistGradientBoostingClassifier,
        HistGradientBoostingRegressor,
        RandomForestClassifier,
        RandomForestRegressor,
    )
    from sklearn.linear_model import LogisticRegression, Ridge
    from sklearn.multioutput import MultiOutputClassifier
    from sklearn.neighbors import KNeighborsClassifier, KNeighborsRegressor

    leaves, rates, strengths = (1, 3, 10), (0.03, 0.1, 0.3), (0.01, 0.1, 1.0)
    counts = tuple(min(count, num_samples) for count in (3, 10, 30))
    # By default boosting stops early for many samples, on a split that fails for a class with a single sample.
    boosting: dict[str, Any] = {"early_stopping": False, "random_state": seed}
    if not target.classes:
        return {
            "logistic": [Ridge(alpha=1 / strength) for strength in strengths],
            "neighbours": [KNeighborsRegressor(count) for count in counts],
            "forest": [RandomForestRegressor(300, min_samples_leaf=leaf, random_state=seed) for leaf in leaves],
            "boosting": [HistGradientBoostingRegressor(learning_rate=rate, **boosting) for rate in rates],
        }
    found: dict[str, list[Any]] = {
        "logistic": [LogisticRegression(C=strength, max_iter=1000) for strength in strengths],
        "neighbours": [KNeighborsClassifier(count) for count in counts],
        "forest": [RandomForestClassifier(300, min_samples_leaf=leaf, random_state=seed) for leaf in leaves],
        "boosting": [HistGradientBoostingClassifier(learning_rate=rate, **boosting) for rate in rates],
    }
    if target.is_multilabel:
        return {
            name: [MultiOutputClassifier(_or_constant(one)) for one in settings] for name, settings in found.items()
        }
    return found


def _or_constant(model: Any) -> Any:
    """Return a classifier that predicts a constant for a label that never or always occurs, which most cannot fit."""
    from sklearn.base import BaseEstimator, ClassifierMixin, clone
    from sklearn.dummy import DummyClassifier

    class OrConstant(ClassifierMixin, BaseEstimator):  # type: ignore[misc]
        def __init__(self, model: Any) -> None:
            self.model = model

        def fit(self, features: Array, truth: Array) -> OrConstant:
            chosen = DummyClassifier(strategy="prior") if len(np.unique(truth)) == 1 else clone(self.model)
            self.fitted_ = chosen.fit(features, truth)
            self.classes_ = self.fitted_.classes_
            return self

        def predict(self, features: Array) -> Array:
            return np.asarray(self.fitted_.predict(features))

        def predict_proba(self, features: Array) -> Array:
            return np.asarray(self.fitted_.predict_proba(features))

    return OrConstant(model)


MODELS = ("logistic", "neighbours", "forest", "boosting")


def called(model: str, target: Target) -> str:
    """Return the name of a model in reports: for values, `logistic` is a ridge regression."""
    return "ridge" if model == "logistic" and not target.classes else model


def check_models(names: Sequence[str]) -> None:
    """Check the names of models.

    Raises:
        UnknownNameError: There is no such model.
    """
    for name in names:
        if name not in MODELS:
            raise UnknownNameError("model", name, MODELS)


def outputs(model: Any, features: Array, task: Task) -> Tensor:
    """Return the outputs (sample output) that a head would give for what a fitted model predicts."""
    target = task.target
    if not target.classes:
        return task.outputs_of(task.wanted(torch.as_tensor(model.predict(features)))[0])
    if target.is_multilabel:
        parts = zip(model.estimators_, model.predict_proba(features), strict=True)
        return task.outputs_of(torch.as_tensor(np.stack([_positive(one, part) for one, part in parts], axis=1)))
    shares = torch.zeros(len(features), len(target.classes), dtype=torch.float64)
    shares[:, torch.as_tensor(model.classes_).long()] = torch.as_tensor(model.predict_proba(features)).double()
    of_classes, _ = task.wanted(torch.arange(len(target.classes)))
    return task.outputs_of(shares @ of_classes.double())


def _positive(model: Any, shares: Array) -> Array:
    """Return the probability of a label; 1 or 0 if it always or never occurred in training."""
    classes = list(model.classes_)
    return shares[:, classes.index(1)] if 1 in classes else np.zeros(len(shares))
