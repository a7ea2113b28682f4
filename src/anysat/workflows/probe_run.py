"""A probe put together: data, frozen encoder, cached embeddings, heads, scores, the page."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from anysat.data.work import to_json, write_whole
from anysat.errors import InputError
from anysat.model.checkpoint import load
from anysat.model.precision import find_device, find_precision
from anysat.probing.cache import Features, extract
from anysat.probing.neighbours import told
from anysat.tasks.base import Task
from anysat.tasks.heads import HEADS, make_head
from anysat.tasks.predictor import PREDICTOR_FILE, Predictor
from anysat.tasks.probe import Recipe, Trained, check_labelled, fit_heads, grid, score_heads
from anysat.tasks.scores import Scores
from anysat.train.run import RunFolder, open_run
from anysat.workflows.labelled_data import OpenData, open_data
from anysat.workflows.probe import ProbeConfig, Scored
from anysat.workflows.probe_logs import write_sweep
from anysat.workflows.progress import progress_bar
from anysat.workflows.task_parts import SCORES, fitted_task, make_view, number_days, result, with_statistics
from anysat.workflows.task_text import summary

DEFAULT_HEADS = {"tile": "both", "pixel": "dense"}
SURE = 20.0
"""Output of what a neighbour says."""


def run_probe(config: ProbeConfig, out: Path, resume: bool) -> Scored:
    """See `probe`."""
    began = time.monotonic()
    data = open_data(config.data, config.seed)
    _check_knn(config, data)
    with open_run(out, config=config.to_dict(), seed=config.seed, resume=resume, may_change=config.MAY_CHANGE) as run:
        predictor, features, whose = _prepared(config, data, run)
        counted = time.monotonic()
        if config.method == "knn":
            scores, selection = _neighbours(config, predictor.task, features), {"num_neighbours": config.num_neighbours}
        else:
            trained = _fitted(config, predictor, features)
            predictor.head.load_state_dict(trained.head.state_dict())
            selection = _selection(trained, predictor.task)
            write_sweep(run.path, trained, predictor.task.primary)
            scores = {split: score_heads(predictor.task, [predictor.head], features[split])[0] for split in features}
        facts = {
            "statistics": whose, "seed": config.seed, "unseen": {k: list(v[0].unseen) for k, v in features.items()},
            "seconds": {"embed": round(counted - began, 1), "train": round(time.monotonic() - counted, 1)},
        }  # fmt: skip
        found = result("probe", config.to_dict(), data, predictor, scores, selection, facts)
        if config.method != "knn":
            predictor.to(predictor.device)  # the head was fitted to embeddings on the processor
            predictor.provenance = {k: found[k] for k in ("selected_on", "selection", "scores", "data", "seed")}
            predictor.save(run.path / PREDICTOR_FILE)
        write_whole(run.path / SCORES, to_json(found))
        told_ = summary(json.loads((run.path / SCORES).read_text()), run.path)
        if config.report:
            from anysat.workflows.task_report import write_report

            shown = predictor if config.method != "knn" else None
            told_ += f"\nreport: {write_report(run.path, found, data, shown)}"
    return Scored(text=told_)


def _prepared(config: ProbeConfig, data: OpenData, run: RunFolder) -> tuple[Predictor, dict[str, list[Features]], str]:
    """An untrained head on the frozen encoder, and the embeddings of the three splits."""
    encoder = load(config.weights, device=find_device(config.device)).requires_grad_(False)
    number_days(encoder, data.record, config.day_convention)
    modalities = config.data.modalities or list(data.record.modalities)
    head = config.head or DEFAULT_HEADS[data.target.level]
    needs_dense = head in HEADS and HEADS[head].dense
    view = make_view(
        encoder, data.record, data.target, modalities=modalities, patch_sizes_m=config.patch_sizes_m,
        dense=config.dense, needs_dense=needs_dense,
    )  # fmt: skip
    whose = with_statistics(encoder, data, config.statistics, modalities, run.path, config.seed)
    precision = find_precision(config.precision, encoder.device)
    cache = Path(config.cache) if config.cache is not None else run.path / "features"
    features = {
        split: [
            extract(encoder, tiles, size, cache, modalities=modalities, dense=view.dense,
                    precision=precision, num_workers=config.num_workers, progress=progress_bar)
            for size in view.patch_sizes_m
        ]
        for split, tiles in (("train", data.train), ("val", data.val), ("test", data.test))
    }  # fmt: skip
    for what, split in (("training", "train"), ("validation", "val")):
        check_labelled(data.target, features[split][0].targets[data.target.name], what)
    truth = features["train"][0].targets[data.target.name]
    task = fitted_task(data.target, truth, config.class_weights == "balanced", void_output=config.void_output,
                       monitor=config.monitor)  # fmt: skip
    return Predictor(encoder, task, view, head), features, whose


def _fitted(config: ProbeConfig, predictor: Predictor, features: dict[str, list[Features]]) -> Trained:
    settings = list(grid(config.learning_rates, config.weight_decays))
    recipe = Recipe(schedule=config.schedule, warmup_epochs=config.warmup_epochs, clip_norm=config.clip_norm,
                    min_epochs=config.min_epochs)  # fmt: skip
    make: Callable[[], torch.nn.Module] = lambda: make_head(predictor.head_config)  # noqa: E731
    with progress_bar("epochs", config.epochs) as advance:
        return fit_heads(
            predictor.task, make, features["train"], features["val"], settings, epochs=config.epochs,
            batch_size=config.batch_size, seed=config.seed, patience=config.patience, recipe=recipe, advance=advance,
        )  # fmt: skip


def _selection(trained: Trained, task: Task) -> dict[str, Any]:
    return {
        **asdict(trained.setting),
        "epoch": trained.epoch,
        task.primary: trained.score,
        "curve": [dict(point) for point in trained.curve],
        "tried": [{**asdict(setting), task.primary: score, "epoch": epoch} for setting, score, epoch in trained.tried],
    }


def _check_knn(config: ProbeConfig, data: OpenData) -> None:
    if config.method == "knn" and (data.target.level, data.target.kind) != ("tile", "class"):
        got = f"{data.target.name!r}, {data.target.kind} of each {data.target.level}"
        raise InputError("--method knn", "a target that is one class of each tile", got, "take --method linear")


def _neighbours(config: ProbeConfig, task: Task, features: dict[str, list[Features]]) -> dict[str, Scores]:
    """Scores of what the neighbours among the training tiles say."""
    known, labels = _tiles(features["train"], task)
    labelled = known.isfinite().all(1) & (labels != (-1 if task.target.ignore is None else task.target.ignore))
    found = {}
    for split in ("val", "test"):  # each training tile would be its own neighbour
        asked, truth = _tiles(features[split], task)
        seen = asked.isfinite().all(1)
        answer = told(known[labelled], labels[labelled], asked[seen], num_neighbours=config.num_neighbours)
        outputs = torch.full((len(asked), len(task.target.classes)), torch.nan)
        outputs[seen] = SURE * torch.nn.functional.one_hot(answer, len(task.target.classes)).float()
        sheet = task.metric()
        task.score(sheet, outputs, truth)
        found[split] = sheet.compute()
    return found


def _tiles(features: Sequence[Features], task: Task) -> tuple[torch.Tensor, torch.Tensor]:
    """Tile embeddings, of several patch sizes side by side, and classes."""
    seen = [torch.cat([one.embeddings(range(len(one))).tile]) for one in features]
    return torch.cat(seen, dim=1), features[0].targets[task.target.name].long()
