"""The run of `anysat probe`: data, frozen encoder, cached embeddings, heads, scores, report."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from anysat.data.base import Target
from anysat.errors import InputError
from anysat.model.digest import digest
from anysat.model.encoder import AnySat
from anysat.model.load import load
from anysat.model.precision import find_device, find_precision
from anysat.probing.cache import Features, extract
from anysat.tasks.base import Task
from anysat.tasks.heads import DEFAULT_HEADS, HEADS, NEIGHBOURS, check_head, make_head
from anysat.tasks.neighbours import fit_neighbours
from anysat.tasks.predictor import Predictor, View, head_of
from anysat.tasks.probe import (
    Recipe,
    TrainedHead,
    check_answered,
    check_labelled,
    fit_heads,
    grid,
    outputs_on,
    score_heads,
)
from anysat.train.run import RunFolder, open_run
from anysat.workflows.answer import Answer
from anysat.workflows.probe import ProbeConfig
from anysat.workflows.probe.logs import write_sweep
from anysat.workflows.progress import progress_bar
from anysat.workflows.supervised.answers import write_answers
from anysat.workflows.supervised.data import OpenData, open_data, open_every
from anysat.workflows.supervised.folds import run_all
from anysat.workflows.supervised.parts import (
    COMPUTED,
    check_begun,
    check_seen,
    finish,
    fitted_task,
    make_view,
    number_days,
    result,
    with_statistics,
)
from anysat.workflows.supervised.text import NOTHING

FEATURES = "features"
"""Folder in a run that holds embeddings."""


@dataclass(frozen=True, kw_only=True)
class Pool:
    """What the runs of a command over folds or repeats share, so that no tile is embedded twice."""

    folder: Path
    """Folder of statistics and embeddings."""
    seed: int
    tiles: Any
    """All tiles of all runs."""
    train: Any
    """Those that train in any run. Statistics, which need no labels, are of these."""
    embedded: dict[tuple[float, str | None], Features] = field(default_factory=dict)
    """Embeddings of all tiles by patch size and dense modality, filled by the first run that needs them."""


def run_probes(config: ProbeConfig, out: Path, resume: bool) -> Answer:
    """Run a probe, or one for each fold and repeat, see `probe`.

    The dataset's own folds, if run once, have statistics of their own training tiles each, as in the paper.
    """
    if config.folds is None and config.repeats == 1:
        return run_all(config, out, resume, run_probe)
    open_data(next(iter(config.runs().values())).data, config.seed)  # refused before anything is made
    every, train = open_every(config.data)
    pool = Pool(folder=out, seed=config.seed, tiles=every, train=every if config.folds is not None else train)
    return run_all(config, out, resume, partial(run_probe, pool=pool))


def run_probe(config: ProbeConfig, out: Path, resume: bool, pool: Pool | None = None) -> Answer:
    """Run one probe. If others share the pool with it, statistics and embeddings are those of the pool."""
    began = time.monotonic()
    data = open_data(config.data, config.seed)
    with open_run(
        out, config=config.to_dict(), seed=config.seed, resume=resume, may_change=config.MAY_CHANGE,
        caches=(FEATURES,),
    ) as run:  # fmt: skip
        encoder, task, view, features, whose = _prepared(config, data, run, pool)
        counted = time.monotonic()
        if config.method == "knn":
            predictor, selection = _asked(config, encoder, task, view, features)
        else:
            predictor, selection = _fitted(config, encoder, task, view, features, run.path)
        splits = ("val", "test") if config.method == "knn" else tuple(features)  # a training tile is its own neighbour
        scores = {split: score_heads(task, [predictor.head], features[split])[0] for split in splits}
        facts: dict[str, Any] = {
            "statistics": whose, "seed": config.seed, "unseen": {k: list(v[0].unseen) for k, v in features.items()},
            "seconds": run.seconds(embed=counted - began, train=time.monotonic() - counted),
        }  # fmt: skip
        if math.isnan(selection[task.primary]):
            facts["selected_on"] = NOTHING
        found = result("probe", config.to_dict(), data, predictor, scores, selection, facts,
                       {split: features[split][0].places for split in scores})  # fmt: skip
        if data.target.level == "tile":
            outputs = torch.cat(list(outputs_on(predictor.head, features["test"])))
            answers = [(outputs, features["test"][0].targets[data.target.name])]
            write_answers(run.path, task, data.test, answers, features["test"][0].places)
        predictor.to(predictor.device)  # the head was fitted to embeddings on the CPU
        told = finish(run.path, config, data, predictor, found)
        with contextlib.suppress(OSError):  # not empty only if the folder also holds another run
            run.checkpoints.rmdir()
    return Answer(told)


def _prepared(
    config: ProbeConfig, data: OpenData, run: RunFolder, pool: Pool | None
) -> tuple[AnySat, Task, View, dict[str, list[Features]], str]:
    """Return encoder, task, view, embeddings of the three splits, and where the statistics come from."""
    encoder = load(config.weights, device=find_device(config.device)).requires_grad_(False)
    read = digest(encoder)
    number_days(encoder, data.record, config.day_convention)
    modalities = config.data.modalities or list(data.record.modalities)
    head = _head_name(config, data.target)
    check_head(head, data.target)  # before anything slow
    view = make_view(
        encoder, data.record, data.target, modalities=modalities, patch_sizes_m=config.patch_sizes_m,
        dense=config.dense, needs_dense=HEADS[head].dense, held=lambda: data.held,
    )  # fmt: skip
    check_seen(data, view.dense)
    if pool is None:
        whose = with_statistics(encoder, data.uncut, config.statistics, modalities, run.path, config.seed)
    else:
        standard = replace(data, train=pool.train)
        whose = with_statistics(encoder, standard, config.statistics, modalities, pool.folder, pool.seed)
        whose = "computed from the training tiles of all runs" if whose == COMPUTED else whose
    check_begun(run, read, encoder.normaliser)
    precision = find_precision(config.precision, encoder.device)
    cache = Path(config.cache or (run.path if pool is None else pool.folder) / FEATURES)

    def embedded(tiles: Any, size: float) -> Features:
        return extract(encoder, tiles, size, cache, modalities=modalities, dense=view.dense, precision=precision,
                       num_workers=config.num_workers, progress=progress_bar)  # fmt: skip

    if pool is None:
        features = {
            split: [embedded(tiles, size) for size in view.patch_sizes_m] for split, tiles in data.splits.items()
        }
    else:
        for size in view.patch_sizes_m:
            if (size, view.dense) not in pool.embedded:
                pool.embedded[size, view.dense] = embedded(pool.tiles, size)
        every = [pool.embedded[size, view.dense] for size in view.patch_sizes_m]
        features = {split: [one.of(tiles.ids) for one in every] for split, tiles in data.splits.items()}
    for what, split in (("training", "train"), ("validation", "val")):
        check_labelled(data.target, features[split][0].targets[data.target.name], what)
    truth = features["train"][0].targets[data.target.name]
    task = fitted_task(data.target, truth, config.class_weights == "balanced", void_output=config.void_output,
                       monitor=config.monitor)  # fmt: skip
    return encoder, task, view, features, whose


def _head_name(config: ProbeConfig, target: Target) -> str:
    return NEIGHBOURS[target.level] if config.method == "knn" else config.head or DEFAULT_HEADS[target.level]


def _fitted(
    config: ProbeConfig, encoder: AnySat, task: Task, view: View, features: dict[str, list[Features]], run: Path
) -> tuple[Predictor, dict[str, Any]]:
    """Return a predictor with the best trained head, and how it was selected."""
    predictor = Predictor(encoder, task, view, _head_name(config, task.target))
    check_answered(task, make_head(predictor.head_config), features["train"])
    settings = list(grid(config.learning_rates, config.weight_decays))
    recipe = Recipe(schedule=config.schedule, warmup_epochs=config.warmup_epochs, clip_norm=config.clip_norm,
                    min_epochs=config.min_epochs)  # fmt: skip
    make: Callable[[], torch.nn.Module] = lambda: make_head(predictor.head_config)  # noqa: E731
    with progress_bar("epochs", config.epochs) as advance:
        trained = fit_heads(
            task, make, features["train"], features["val"], settings, epochs=config.epochs,
            batch_size=config.batch_size, seed=config.seed, patience=config.patience, recipe=recipe, advance=advance,
        )  # fmt: skip
    predictor.head.load_state_dict(trained.head.state_dict())
    write_sweep(run, trained, task.primary)
    return predictor, _selection(trained, task)


def _asked(
    config: ProbeConfig, encoder: AnySat, task: Task, view: View, features: dict[str, list[Features]]
) -> tuple[Predictor, dict[str, Any]]:
    """Return a predictor with nearest neighbours, and how their number was selected."""
    if len(view.patch_sizes_m) > 1:
        raise InputError("--patch-sizes-m", "one, with --method knn", list(view.patch_sizes_m))
    name = _head_name(config, task.target)
    with progress_bar("neighbours", len(features["val"][0])) as advance:
        found = fit_neighbours(
            task, head_of(encoder, task, view, name), features["train"][0], features["val"][0], config.num_neighbours,
            seed=config.seed, advance=advance,
        )  # fmt: skip
    predictor = Predictor(encoder, task, view, found.config)
    predictor.head.load_state_dict(found.head.state_dict())
    selection = {
        "num_neighbours": found.config.num_neighbours, "num_samples": found.config.num_samples,
        task.primary: found.score,
        "tried": [{"num_neighbours": count, task.primary: score} for count, score in found.tried],
    }  # fmt: skip
    return predictor, selection


def _selection(trained: TrainedHead, task: Task) -> dict[str, Any]:
    """Return how a head was selected. If no score was a number, the head is that of the last epoch."""
    return {
        **asdict(trained.setting),
        "epoch": trained.epoch or len(trained.curve),
        task.primary: trained.score,
        "curve": [dict(point) for point in trained.curve],
        "tried": [{**asdict(setting), task.primary: score, "epoch": epoch} for setting, score, epoch in trained.tried],
    }
