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
from anysat.probing.cache import Features, extract
from anysat.tasks.base import Task
from anysat.tasks.heads import dense_of, pooled
from anysat.tasks.scores import Scores
from anysat.tasks.simple import SIMPLE, Places, at_places, check_models, draw_places, models, outputs
from anysat.workflows.evaluate import EvaluateConfig
from anysat.workflows.labelled_data import OpenData, open_data
from anysat.workflows.probe import Scored
from anysat.workflows.progress import progress_bar
from anysat.workflows.task_parts import described, fitted_task, make_view, with_statistics
from anysat.workflows.task_text import FIGURES, with_interval

SPLITS = ("train", "val", "test")
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


def compare(config: EvaluateConfig) -> Scored:
    """Fit every model to every feature set; all are tuned on the validation split and scored once on the test split."""
    check_models(config.models)
    data = open_data(config.data, config.seed)
    target = data.target
    truths = {split: _truths(getattr(data, split), target.name) for split in SPLITS}
    places = {split: draw_places(truths[split], target, config.max_pixels, config.seed) for split in SPLITS}
    for split, found in places.items():
        if not len(found):
            raise InputError(f"{data.record.name}, {split} split", f"labels of {target.name!r}", "none")
    task = fitted_task(target, torch.as_tensor(places["train"].truth), balanced=False)
    lines = []
    for name, tables in _feature_sets(config, data, places, truths):
        lines += _fitted(name, tables, places, task, config)
    content = _content(config, data, task, lines)
    if config.json is not None:
        write_whole(Path(config.json), to_json(content))
    return Scored(text=_text(task, lines, places))


def _truths(tiles: Any, name: str) -> list[NDArray[Any]]:
    with progress_bar(f"targets of {tiles.name}", len(tiles)) as advance:
        found = []
        for number in range(len(tiles)):
            found.append(np.asarray(tiles[number].targets[name]))
            advance(1)
    return found


def _feature_sets(
    config: EvaluateConfig, data: OpenData, places: Mapping[str, Places], truths: Mapping[str, list[NDArray[Any]]]
) -> Iterator[tuple[str, dict[str, Table]]]:
    shapes = {split: [one.shape[-2:] if one.ndim >= 2 else None for one in truths[split]] for split in SPLITS}
    for name, make in SIMPLE.items():
        tables = {}
        for split in SPLITS:
            tiles, mine = getattr(data, split), places[split]
            with progress_bar(f"{name}, {split}", len(tiles)) as advance:
                parts = []
                for number in range(len(tiles)):
                    parts.append((mine.of(number), at_places(make(tiles[number]), mine, number, shapes[split][number])))
                    advance(1)
            tables[split] = _in_order(parts, len(mine))
        yield name, tables
    for weights in config.weights:
        yield from _embeddings(config, data, weights, places, shapes)


def _embeddings(
    config: EvaluateConfig, data: OpenData, weights: str, places: Mapping[str, Places],
    shapes: Mapping[str, list[Any]],
) -> Iterator[tuple[str, dict[str, Table]]]:  # fmt: skip
    """Every patch size and way of pooling of one encoder."""
    is_pixel = data.target.level == "pixel"
    for size in config.patch_sizes_m or data.record.patch_sizes_m[:1]:
        encoder = _encoder(weights, config.seed)
        modalities = config.data.modalities or list(data.record.modalities)
        view = make_view(encoder, data.record, data.target, modalities=modalities, patch_sizes_m=[size], dense=None,
                         needs_dense=is_pixel)  # fmt: skip
        folder = Path(config.cache) if config.cache is not None else cache_folder() / "features"
        folder.mkdir(parents=True, exist_ok=True)
        with_statistics(encoder, data, None, modalities, folder, config.seed)
        found = {
            split: extract(encoder, getattr(data, split), size, folder, modalities=modalities, dense=view.dense,
                           progress=progress_bar)
            for split in SPLITS
        }  # fmt: skip
        for name, vectors in (_OF_PIXELS if is_pixel else _OF_TILES).items():
            yield (
                f"{weights}, {size:g} m, {name}",
                {split: _vectors(vectors, found[split], places[split], shapes[split]) for split in SPLITS},
            )


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


def _vectors(vectors: Callable[[Any], torch.Tensor], found: Features, places: Places, shapes: Sequence[Any]) -> Table:
    parts = []
    for number in range(len(found)):
        mine = places.of(number)
        if len(mine):
            one = vectors(found.embeddings([number]))[0].double().numpy()
            if one.ndim == 1:
                parts.append((mine, np.repeat(one[None], len(mine), axis=0)))
            else:
                parts.append((mine, at_places({"": np.moveaxis(one, -1, 0)}, places, number, shapes[number])))
    return _in_order(parts, len(places))


def _in_order(parts: Sequence[tuple[NDArray[np.int64], Table]], count: int) -> Table:
    table = np.full((count, parts[0][1].shape[1]), np.nan)
    for mine, values in parts:
        table[mine] = values
    return table


def _fitted(
    name: str, tables: Mapping[str, Table], places: Mapping[str, Places], task: Task, config: EvaluateConfig
) -> list[Line]:
    ready, lines = _standardised(tables), []
    every = models(task.target.kind, config.seed, len(places["train"]))
    with progress_bar(f"models on {name}", len(config.models)) as advance:
        for model in config.models:
            began = time.process_time()
            best: tuple[float, Any] | None = None
            for setting in every[model]:
                fitted = _fit(setting, ready["train"], places["train"].truth)
                found = _score(fitted, ready["val"], places["val"], task).figures[task.primary]
                value = found if task.highest_is_best else -found
                if best is None or value > best[0]:
                    best = value, fitted
            assert best is not None, model
            scores = _score(best[1], ready["test"], places["test"], task)
            lines.append(Line(features=name, model=model, scores=scores, num_features=ready["train"].shape[1],
                              seconds=time.process_time() - began))  # fmt: skip
            advance(1)
    return lines


def _fit(setting: Any, features: Table, truth: NDArray[Any]) -> Any:
    from sklearn.base import clone
    from sklearn.exceptions import ConvergenceWarning

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # the validation split tells whether it is good enough
        return clone(setting).fit(features, truth)


def _standardised(tables: Mapping[str, Table]) -> dict[str, Table]:
    """Mean 0 and deviation 1 over the training samples; what is missing becomes the mean."""
    train = tables["train"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # a feature that nobody has
        mean, spread = np.nanmean(train, axis=0), np.nanstd(train, axis=0)
    mean, spread = np.nan_to_num(mean), np.where(np.nan_to_num(spread) > 1e-9, spread, 1.0)
    return {split: np.nan_to_num((table - mean) / spread) for split, table in tables.items()}


def _score(model: Any, features: Table, places: Places, task: Task) -> Scores:
    """Scores of samples, whose intervals are over tiles."""
    target, sheet = task.target, task.metric()
    told = torch.from_numpy(outputs(model, features, target.kind, len(target.classes)))
    truth, tiles = torch.as_tensor(places.truth), torch.from_numpy(places.tile)
    if target.kind == "value":
        sheet.update(told[:, 0], truth.double(), tiles)
    else:
        task.score(sheet, told, truth, tiles)
    found: Scores = sheet.compute()
    return found


def _content(config: EvaluateConfig, data: OpenData, task: Task, lines: Sequence[Line]) -> dict[str, Any]:
    from dataclasses import asdict

    return {
        "target": task.target.name, "primary": task.primary, "selected_on": "val", "config": asdict(config),
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


def _text(task: Task, lines: Sequence[Line], places: Mapping[str, Places]) -> str:
    name = FIGURES.get(task.primary, task.primary)
    width = max(len(one.features) for one in lines)
    told = [f"{task.target.name}: {name} of {len(places['test'])} test samples, 95 % interval over tiles; all models "
            "tuned on the validation split"]  # fmt: skip
    for one in lines:
        mark = "  below band statistics" if _is_below(one, lines, task) else ""
        figure = with_interval(described(one.scores, task), task.primary)
        told.append(f"  {one.features:{width}}  {one.model:10}  {figure}  {one.num_features} features, "
                    f"{one.seconds:.1f} s{mark}")  # fmt: skip
    return "\n".join(told)
