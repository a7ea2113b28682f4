"""The run of `anysat finetune`: data, encoder, head, training, scores, report."""

from __future__ import annotations

import math
import time
from dataclasses import replace
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch

from anysat.data.mixture import Mixture, Part
from anysat.data.transforms import Augmentation
from anysat.data.work import tiles_facts
from anysat.model.digest import digest
from anysat.model.encoder import AnySat
from anysat.model.load import load
from anysat.model.precision import Precision
from anysat.tasks.base import Task
from anysat.tasks.finetune import FineTuning, Scoring, score
from anysat.tasks.heads import DEFAULT_HEADS, HEADS, check_head
from anysat.tasks.predictor import Predictor
from anysat.train.checkpoints import Checkpoint, checkpoint_at, checkpoint_steps, newest_checkpoint
from anysat.train.metrics import METRICS, read_metrics
from anysat.train.objective import is_due
from anysat.train.run import RunFolder, open_run
from anysat.train.tensors import load_objective
from anysat.train.trainer import Fitted, device_of, fit, micro_batches_per_step, num_processes
from anysat.workflows.answer import Answer
from anysat.workflows.finetune import FinetuneConfig
from anysat.workflows.pretrain.objective import new_encoder
from anysat.workflows.progress import progress_bar
from anysat.workflows.supervised.answers import write_answers
from anysat.workflows.supervised.data import OpenData, has_list, open_data
from anysat.workflows.supervised.parts import (
    check_begun,
    check_seen,
    extended,
    finish,
    fitted_task,
    known_weights,
    make_view,
    number_days,
    result,
    with_statistics,
)
from anysat.workflows.supervised.text import NOTHING

MOST_TARGETS = 2000
"""Largest number of training tiles to get class weights, mean and deviation from, if the dataset does not list
classes."""


def run_finetuning(config: FinetuneConfig, out: Path, resume: bool) -> Answer:
    """Run fine-tuning, see `finetune`."""
    began = time.monotonic()
    data = open_data(config.data, config.seed)
    with open_run(
        out, config=config.to_dict(), seed=config.seed, resume=resume, may_change=config.MAY_CHANGE,
        processes=num_processes(config.engine),
        data={split: tiles_facts(tiles) for split, tiles in data.splits.items()},
    ) as run:  # fmt: skip
        predictor, whose, new = _prepared(config, data, run)
        began_with = known_weights(predictor.encoder)
        if config.trained != "head":
            predictor.encoder.provenance = _provenance(config, data, predictor.encoder)
        objective = FineTuning(
            predictor, config.trained, layer_decay=config.layer_decay, rank=config.lora_rank, new=new,
            pixel_dropout_prob=config.pixel_dropout_prob,
        )  # fmt: skip
        fitted = _fitted(config, data, objective, run)
        if fitted.stopped_early:
            text = f"stopped at step {fitted.steps} of {fitted.num_steps}; continue with --resume"
            return Answer(text, exit_status=fitted.exit_status)
        if not run.is_writer:  # the rest is done by one process
            return Answer("", exit_status=fitted.exit_status)
        best, is_chosen = _best(run)
        load_objective(objective, best.tensors(), best.path)
        done = objective.finished().to(device_of(config.engine))
        unseen: dict[str, list[str]] = {split: [] for split in data.splits}
        places: dict[str, list[tuple[float, float]]] = {split: [] for split in data.splits}
        answers: list[tuple[torch.Tensor, torch.Tensor]] = []
        is_table = data.target.level == "tile"
        scores = {
            split: _scored(config, done, data, split, unseen[split], places[split],
                           answers if is_table and split == "test" else None)
            for split in data.splits
        }  # fmt: skip
        per_epoch = _steps_per_epoch(config, data)
        selection = {
            "trained": config.trained, "step": best.step, "epoch": best.step // per_epoch,
            "curve": _curve(run.path / METRICS, done.task.primary, per_epoch, fitted.num_steps),
            **_start(run.path / METRICS, done.task, scores["val"].figures[done.task.primary]),
        }  # fmt: skip
        facts: dict[str, Any] = {
            "began_with": began_with,
            "statistics": whose, "seed": config.seed, "unseen": unseen,
            "seconds": run.seconds(all=time.monotonic() - began),
            "trained_parameters": sum(p.numel() for p in objective.parameters() if p.requires_grad),
        }  # fmt: skip
        if not is_chosen:
            facts["selected_on"] = NOTHING
        found = result("finetune", config.to_dict(), data, done, scores, selection, facts, places)
        write_answers(run.path, done.task, data.test, answers, places["test"])
        return Answer(finish(run.path, config, data, done, found), exit_status=fitted.exit_status)


def _prepared(config: FinetuneConfig, data: OpenData, run: RunFolder) -> tuple[Predictor, str, list[str]]:
    """Return the predictor to train, where its statistics come from, and the modalities with new projectors."""
    encoder = load(config.weights) if config.weights is not None else new_encoder(config.model, config.seed)
    read = None if config.weights is None else digest(encoder)
    number_days(encoder, data.record, config.day_convention)
    modalities = config.data.modalities or list(data.record.modalities)
    new: list[str] = []
    torch.manual_seed(config.seed)
    if config.trained in ("projectors", "all"):
        encoder, new = extended(encoder, modalities, data.record.sensors)
    head = config.head or DEFAULT_HEADS[data.target.level]
    check_head(head, data.target)  # before anything slow
    view = make_view(
        encoder, data.record, data.target, modalities=modalities, patch_sizes_m=config.patch_sizes_m,
        dense=config.dense, needs_dense=HEADS[head].dense, held=lambda: data.held,
    )  # fmt: skip
    check_seen(data, view.dense)  # before anything slow
    task = _task(config, data)
    whose = with_statistics(
        encoder, data.uncut, config.statistics, modalities, run.path, config.seed, is_writer=run.is_writer,
        are_used=bool(checkpoint_steps(run.checkpoints)),
    )  # fmt: skip
    check_begun(run, read, encoder.normaliser)
    torch.manual_seed(config.seed)
    return Predictor(encoder, task, view, head), whose, new


def _provenance(config: FinetuneConfig, data: OpenData, encoder: AnySat) -> dict[str, str]:
    """Return the provenance of a trained encoder. It keeps the licence of the weights it started from."""
    return {
        "weights": f"fine-tuned by anysat for {data.target.name} of {data.record.name}, trained {config.trained}",
        "data": data.record.name,
        "seed": str(config.seed),
        "begun_from": config.weights or f"random weights, {config.model.first_weights}",
        **{name: encoder.provenance[name] for name in ("licence", "new_projectors") if name in encoder.provenance},
    }


def _task(config: FinetuneConfig, data: OpenData) -> Task:
    """Return the task. Training targets are read only if it depends on them."""
    balanced, is_sample = config.class_weights == "balanced", False
    truth = torch.empty(0)
    if balanced and has_list(data):
        truth = torch.as_tensor(data.train.labels())
    elif balanced or not data.target.classes:
        numbers = range(0, len(data.train), -(-len(data.train) // MOST_TARGETS))
        is_sample = len(numbers) < len(data.train)
        if balanced and is_sample:  # at random, because classes may come one after the other
            numbers = np.random.default_rng(config.seed).permutation(len(data.train))[:MOST_TARGETS].tolist()
        with progress_bar(f"targets of {data.record.name}", len(numbers)) as advance:
            parts = []
            for number in numbers:
                parts.append(torch.as_tensor(data.train[number].targets[data.target.name]))
                advance(1)
        truth = torch.stack(parts)
    return fitted_task(
        data.target, truth, balanced, void_output=config.void_output, monitor=config.monitor, is_sample=is_sample
    )


def _fitted(config: FinetuneConfig, data: OpenData, objective: FineTuning, run: RunFolder) -> Fitted:
    per_epoch, task, view = _steps_per_epoch(config, data), objective.predictor.task, objective.predictor.view
    part = Part(
        tiles=data.train, batch_size=min(config.batch_size, len(data.train)), patch_sizes_m=view.patch_sizes_m,
        augmentation=Augmentation(turns_and_flips=config.turns_and_flips, keep_dates_frac=config.keep_dates_frac,
                                  cut_at_random=config.cut_at_random),
    )  # fmt: skip
    keep = replace(
        config.keep,
        keep_best=f"val/{task.primary}",
        best_is_highest=task.highest_is_best,
        patience=config.patience,
        min_steps=math.ceil(config.min_epochs * per_epoch),
    )
    optimiser = config.optimiser
    if config.warmup_epochs:
        optimiser = replace(optimiser, warmup_steps=math.ceil(config.warmup_epochs * per_epoch))
    return fit(
        objective,
        lambda rank, world_size: Mixture(parts=[part], seed=config.seed, rank=rank, world_size=world_size),
        optimiser=optimiser, engine=config.engine, keep=keep, seed=config.seed,
        num_steps=math.ceil(config.epochs * per_epoch), max_steps=config.max_steps, run=run,
        monitors=[Scoring(every_steps=per_epoch, tiles=data.val, batch_size=config.batch_size,
                          precision=_precision(config), num_workers=config.engine.num_workers)],
    )  # fmt: skip


def _steps_per_epoch(config: FinetuneConfig, data: OpenData) -> Fraction:
    """Return the steps of a pass over all training tiles, at least 1. A batch may span two passes."""
    in_a_step = min(config.batch_size, len(data.train)) * micro_batches_per_step(config.engine)
    return max(Fraction(1), Fraction(len(data.train), in_a_step))


def _curve(path: Path, primary: str, per_epoch: Fraction, num_steps: int) -> list[dict[str, float | None]]:
    """Return mean training loss, validation loss and score of each epoch. Empty if there is no metrics file.

    Measurements between two epochs, at the end of a session, are left out.
    """
    if not path.is_file():
        return []
    measured = read_metrics(path)
    losses = [(at, loss) for at, loss in measured.get("val/loss", []) if is_due(at, per_epoch) or at == num_steps]
    scores = dict(measured.get(f"val/{primary}", []))
    points: list[dict[str, float | None]] = []
    for (before, _), (step, loss) in pairwise(losses):  # the first is from before the first step
        trained = [value for at, value in measured.get("train/loss", []) if before < at <= step]
        mean = sum(trained) / len(trained) if trained else None
        points.append({"loss": mean, "val_loss": loss, primary: scores.get(step)})
    return points


def _start(path: Path, task: Task, kept: float) -> dict[str, Any]:
    """Return the validation score before training, and whether it is better than the final one, if it was measured.

    They are compared at the three digits that are printed.
    """
    measured = dict(read_metrics(path).get(f"val/{task.primary}", [])) if path.is_file() else {}
    if 0 not in measured:
        return {}
    before, after = round(measured[0], 3), round(kept, 3)
    return {"start": measured[0], "start_was_better": before > after if task.highest_is_best else before < after}


def _best(run: RunFolder) -> tuple[Checkpoint, bool]:
    """Return the best checkpoint on the validation split and True; if no score was a number, the last and False."""
    last = newest_checkpoint(run.checkpoints)
    assert last is not None, run.checkpoints
    best = last.state.get("best")
    kept = None if best is None else checkpoint_at(run.checkpoints, int(best["step"]))
    return (last, False) if kept is None else (kept, True)


def _precision(config: FinetuneConfig) -> Precision:
    """Return the precision of all scores, validation and final: bf16 if training used it."""
    return "bf16" if config.engine.precision == "bf16" else "float32"


def _scored(
    config: FinetuneConfig, predictor: Predictor, data: OpenData, split: str, unseen: list[str],
    places: list[tuple[float, float]], answers: list[tuple[torch.Tensor, torch.Tensor]] | None,
) -> Any:  # fmt: skip
    tiles = getattr(data, split)
    with progress_bar(f"scores of {split}", len(tiles)) as advance:
        return score(predictor, tiles, advance=advance, unseen=unseen, places=places, answers=answers,
                     precision=_precision(config), num_workers=config.engine.num_workers)  # fmt: skip
