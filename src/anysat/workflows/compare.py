"""`anysat evaluate --compare`: the same models on band statistics, monthly pixels and embeddings, same splits."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from anysat.data.cache import cache_folder
from anysat.data.work import fingerprint, to_json, versions, write_whole
from anysat.errors import InputError
from anysat.model.checkpoint import load
from anysat.model.encoder import AnySat
from anysat.model.precision import find_device, find_precision
from anysat.probing.cache import Features, extract
from anysat.tasks.base import Task
from anysat.tasks.heads import dense_of, pooled
from anysat.tasks.scores import Scores
from anysat.tasks.simple import (
    SIMPLE,
    Places,
    at_places,
    check_models,
    draw_places,
    joined_places,
    models,
    outputs,
)
from anysat.workflows.compare_turns import SPLITS, TEST, TRAIN, VAL, Turns, make_turns
from anysat.workflows.evaluate import EvaluateConfig
from anysat.workflows.labelled_data import OpenData, open_data
from anysat.workflows.probe import Scored
from anysat.workflows.progress import progress_bar
from anysat.workflows.task_parts import described, fitted_task, make_view, number_days, with_statistics
from anysat.workflows.task_text import FIGURES, with_interval

BASELINE = "statistics"
"""Feature set that every other has to beat."""
Table = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True, eq=False)
class Line:
    """One feature set with one model."""

    features: str
    model: str
    scores: Scores
    num_features: int
    seconds: float
    """Of processor time, to tune and to fit."""


@dataclass(frozen=True, kw_only=True, eq=False)
class _Samples:
    """All labelled places, of the tiles of train, val and test one after the other."""

    places: Places
    shapes: tuple[tuple[int, int] | None, ...]
    """(tile) rows and columns of the target; None where samples are tiles."""
    turns: Turns

    def rows(self, turn: int, role: int) -> NDArray[np.int64]:
        """Numbers of the samples that have a role."""
        return np.flatnonzero(self.turns.roles[turn][self.places.tile] == role)


def compare(config: EvaluateConfig) -> Scored:
    """Fit every model to every feature set; all are tuned on validation tiles and scored once, on test tiles."""
    check_models(config.models)
    data = open_data(config.data, config.seed)
    samples = _samples(config, data)
    task = fitted_task(data.target, torch.as_tensor(samples.places.truth), balanced=False)
    lines = []
    for name, table in _feature_sets(config, data, samples):
        lines += _fitted(name, table, samples, task, config)
    content = _content(config, data, task, samples.turns, lines)
    if config.json is not None:
        write_whole(Path(config.json), to_json(content))
    return Scored(text=_text(task, lines, samples.turns))


def _samples(config: EvaluateConfig, data: OpenData) -> _Samples:
    """The places that are looked at: so many of each split, or of all tiles where folds take turns."""
    truths, geoboxes = [], []
    for split in SPLITS:
        tiles = getattr(data, split)
        with progress_bar(f"targets of {tiles.name}, {split}", len(tiles)) as advance:
            for number in range(len(tiles)):
                tile = tiles[number]
                truths.append(np.asarray(tile.targets[data.target.name]))
                geoboxes.append(tile.geobox)
                advance(1)
    turns = make_turns(config, data, geoboxes)
    together = [range(len(truths))] if turns.is_crossed else [np.flatnonzero(turns.roles[0] == r) for r in range(3)]
    drawn = [draw_places([truths[n] for n in tiles], data.target, config.max_pixels, config.seed) for tiles in together]
    shapes = tuple(one.shape[-2:] if one.ndim >= 2 else None for one in truths)
    samples = _Samples(places=joined_places(drawn, list(map(len, together))), shapes=shapes, turns=turns)
    for turn in range(len(turns.roles)):
        for role, split in enumerate(SPLITS):
            where = f"{data.record.name}, " + (f"{split} part of turn {turn + 1}" if turns.is_crossed else split)
            truth = samples.places.truth[samples.rows(turn, role)]
            if not len(truth):
                raise InputError(where, f"labels of {data.target.name!r}", "none")
            if role == TRAIN and data.target.kind == "class" and len(np.unique(truth)) < 2:
                raise InputError(where, "at least two classes", "one", "take fewer folds, or smaller blocks")
    return samples


def _feature_sets(config: EvaluateConfig, data: OpenData, samples: _Samples) -> Iterator[tuple[str, Table]]:
    """Name and table (sample feature) of each."""
    for name, make in SIMPLE.items():
        tables, first = [], 0
        for split in SPLITS:
            tiles = getattr(data, split)
            with progress_bar(f"{name}, {split}", len(tiles)) as advance:
                for number in range(len(tiles)):
                    tables.append(_at(make(tiles[number]), samples, first + number))
                    advance(1)
            first += len(tiles)
        yield name, _in_order(tables, len(samples.places))
    for weights in config.weights:
        yield from _embeddings(config, data, weights, samples)


def _at(maps: Mapping[str, Table], samples: _Samples, tile: int) -> tuple[NDArray[np.int64], Table]:
    """Samples of a tile and their features."""
    return samples.places.of(tile), at_places(maps, samples.places, tile, samples.shapes[tile])


def _embeddings(config: EvaluateConfig, data: OpenData, weights: str, samples: _Samples) -> Iterator[tuple[str, Table]]:
    """Every patch size and way of pooling of one encoder."""
    is_pixel = data.target.level == "pixel"
    for size in config.patch_sizes_m or data.record.patch_sizes_m[:1]:
        encoder = _encoder(weights, config.seed).to(find_device(config.device))
        number_days(encoder, data.record, None)
        modalities = config.data.modalities or list(data.record.modalities)
        view = make_view(encoder, data.record, data.target, modalities=modalities, patch_sizes_m=[size], dense=None,
                         needs_dense=is_pixel)  # fmt: skip
        folder = Path(config.cache) if config.cache is not None else cache_folder() / "features"
        folder.mkdir(parents=True, exist_ok=True)
        with_statistics(encoder, data, None, modalities, folder, config.seed)
        found = [
            extract(encoder, getattr(data, split), size, folder, modalities=modalities, dense=view.dense,
                    precision=find_precision(config.precision, encoder.device), progress=progress_bar)
            for split in SPLITS
        ]  # fmt: skip
        for name, vectors in (_OF_PIXELS if is_pixel else _OF_TILES).items():
            yield f"{weights}, {size:g} m, {name}", _vectors(vectors, found, samples)


def _encoder(weights: str, seed: int) -> AnySat:
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


def _vectors(vectors: Callable[[Any], torch.Tensor], found: Sequence[Features], samples: _Samples) -> Table:
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


def _fitted(name: str, table: Table, samples: _Samples, task: Task, config: EvaluateConfig) -> list[Line]:
    """A line for each model: in every turn tuned, then scored on one sheet for all."""
    lines = []
    with progress_bar(f"models on {name}", len(config.models)) as advance:
        for model in config.models:
            began, sheet = time.process_time(), task.metric()
            for turn in range(len(samples.turns.roles)):
                train, val, test = (samples.rows(turn, role) for role in (TRAIN, VAL, TEST))
                ready = _standardised(table, train)
                best: tuple[float, Any] | None = None
                for setting in models(task.target.kind, config.seed, len(train))[model]:
                    fitted = _fit(setting, ready[train], samples.places.truth[train])
                    trial = task.metric()
                    _score(trial, fitted, ready, val, samples, task)
                    found = trial.compute().figures[task.primary]
                    value = found if task.highest_is_best else -found
                    if best is None or value > best[0]:
                        best = value, fitted
                assert best is not None, model
                _score(sheet, best[1], ready, test, samples, task)
            lines.append(Line(features=name, model=model, scores=sheet.compute(), num_features=table.shape[1],
                              seconds=time.process_time() - began))  # fmt: skip
            advance(1)
    return lines


def _fit(setting: Any, features: Table, truth: NDArray[Any]) -> Any:
    from sklearn.base import clone
    from sklearn.exceptions import ConvergenceWarning

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # the validation split tells whether it is good enough
        return clone(setting).fit(features, truth)


def _standardised(table: Table, train: NDArray[np.int64]) -> Table:
    """Mean 0 and deviation 1 over the training samples; what is missing becomes the mean."""
    known = table[train]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # a feature that nobody has
        mean, spread = np.nanmean(known, axis=0), np.nanstd(known, axis=0)
    mean, spread = np.nan_to_num(mean), np.where(np.nan_to_num(spread) > 1e-9, spread, 1.0)
    return np.nan_to_num((table - mean) / spread)


def _score(sheet: Any, model: Any, ready: Table, rows: NDArray[np.int64], samples: _Samples, task: Task) -> None:
    """Put samples on a sheet, whose intervals are over the groups of the turns."""
    target = task.target
    told = torch.from_numpy(outputs(model, ready[rows], target.kind, len(target.classes)))
    truth = torch.as_tensor(samples.places.truth[rows])
    groups = torch.from_numpy(samples.turns.groups[samples.places.tile[rows]])
    if target.kind == "value":
        sheet.update(told[:, 0], truth.double(), groups)
    else:
        task.score(sheet, told, truth, groups)


def _content(config: EvaluateConfig, data: OpenData, task: Task, turns: Turns, lines: Sequence[Line]) -> dict[str, Any]:
    from dataclasses import asdict

    return {
        "target": task.target.name, "primary": task.primary,
        "selected_on": "the fold before" if turns.is_crossed else "val", "folds": turns.to_dict(),
        "config": asdict(config),
        "data": {split: {"tiles": len(getattr(data, split)), "fingerprint": fingerprint(getattr(data, split))}
                 for split in SPLITS},
        "versions": versions(),
        "lines": [{"features": one.features, "model": one.model, "num_features": one.num_features,
                   "cpu_s": round(one.seconds, 2), "below_baseline": _is_below(one, lines, task),
                   **described(one.scores, task)} for one in lines],
    }  # fmt: skip


def _is_below(line: Line, lines: Sequence[Line], task: Task) -> bool:
    """Whether a line is worse than the best model on band statistics."""
    sign = 1 if task.highest_is_best else -1
    baseline = max(sign * one.scores.figures[task.primary] for one in lines if one.features == BASELINE)
    return sign * line.scores.figures[task.primary] < baseline


def _text(task: Task, lines: Sequence[Line], turns: Turns) -> str:
    name = FIGURES.get(task.primary, task.primary)
    width = max(len(one.features) for one in lines)
    told = [f"{task.target.name}: {name} of {lines[0].scores.num_samples} test samples, {turns}"]
    for one in lines:
        mark = "  below band statistics" if _is_below(one, lines, task) else ""
        figure = with_interval(described(one.scores, task), task.primary)
        told.append(f"  {one.features:{width}}  {one.model:10}  {figure}  {one.num_features} features, "
                    f"{one.seconds:.1f} s{mark}")  # fmt: skip
    return "\n".join(told)
