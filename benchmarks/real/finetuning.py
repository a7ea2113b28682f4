"""Fine-tuning on a real task: each encoder leaves two folds out, and serves both.

An encoder that saw neither fold 0 nor fold 1 is one of those that answer for fold 0, stopped by its answers for fold 1,
and the other way round. So every training is used twice, and nothing of a test fold is in what its answers come from.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from pretraining_features import remembered
from torch import Tensor

from anysat.batch import Batch
from anysat.data.loader import Draw
from anysat.normalise import Normaliser
from anysat.tasks.base import Task, make_task
from anysat.tasks.finetune import FineTuning
from anysat.tasks.predictor import Predictor, View
from real.frozen import AT_ONCE, encoder_of, looks
from real.protocol import RealTask, blocked_folds, numbers


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How fine-tuning goes."""

    members: int = 2
    """Encoders that answer together for a test fold. Of five folds 2 or 4: what else they leave out is the next fold
    and the one before, then those two away. Of one official test part up to `inner_folds`."""
    inner_folds: int = 5
    """Of whole groups of the training part, where there is one official test part."""
    num_steps: int = 200
    """Of the schedule: a warm-up, then a cosine to zero."""
    learning_rate: float = 1.5e-3
    batch_size: int = 128
    """Tiles of a step."""
    looks: int = 8
    """At what was left out, evenly spread over the steps: one of them is where to stop."""
    warmup_steps: int = 20
    weight_decay: float = 0.05
    averaging: float = 0.97
    """Of the weights over the steps, which are those that answer."""
    most_dates_dropped: float = 0.4
    """A share up to this is drawn for each tile, and that share of its dates is hidden."""
    label_smoothing: float = 0.05


RECIPES = {
    "crop_canada": Recipe(num_steps=400),
    "landuse_modis": Recipe(num_steps=400),
    "fuel_moisture": Recipe(num_steps=60, members=4),
    "landcover_global": Recipe(num_steps=100, batch_size=64, members=4),
    "parcels_belgium": Recipe(num_steps=120, batch_size=4, members=5),
}
"""By task, where it differs."""


class Trainer:
    """Fine-tuning of one task from one kind of weights."""

    def __init__(self, task: RealTask, weights: str, recipe: Recipe) -> None:
        self.task, self.weights, self.recipe = task, weights, recipe
        self.batch = Batch.of(looks(task)[0])
        self.tile, self.row, self.col = (torch.from_numpy(part) for part in task.places().T)
        self.truth = task.truth()

    def member(self, left_out: NDArray[np.int64], seed: int) -> dict[str, NDArray[Any]]:
        """An encoder trained on the other tiles: `steps` (look), what it tells of what it left out, and `cpu_s`.

        `told` is (look sample) or (look sample class), `at` (sample) the numbers of these samples.
        """
        begun = time.process_time()
        fit = np.setdiff1d(np.arange(len(self.task.tiles)), left_out)
        found = [(step, self.outputs(predictor, left_out)) for step, predictor in self.trained(fit, seed)]
        return {"steps": np.array([step for step, _ in found]), "told": np.stack([told for _, told in found]),
                "at": self.samples_of(left_out), "cpu_s": np.array(time.process_time() - begun)}  # fmt: skip

    def samples_of(self, tiles: NDArray[np.int64]) -> NDArray[np.int64]:
        """Numbers of the samples of some tiles."""
        return np.flatnonzero(np.isin(self.tile.numpy(), tiles))

    def pairs(self) -> Iterator[tuple[NDArray[np.int64], list[tuple[str, NDArray[np.int64]]]]]:
        """For each test fold its tiles, and of each member a name and the tiles that it is stopped by.

        A name stands for what is left out, so the same one comes for two test folds.
        """
        task, count = self.task, self.recipe.members
        if task.is_official:
            for train, test in task.splits():
                tiles = np.flatnonzero(train)
                inner = self.inner_folds(tiles)
                yield np.flatnonzero(test), [(f"inner{n}", tiles[inner == n]) for n in range(count)]
            return
        folds = np.unique(task.folds)
        assert count in range(2, len(folds), 2), (count, folds)
        for number, fold in enumerate(folds):
            away = [sign * far for far in range(1, count // 2 + 1) for sign in (1, -1)]
            others = [folds[(number + n) % len(folds)] for n in away]
            yield (
                np.flatnonzero(task.folds == fold),
                [(f"{min(fold, other)}{max(fold, other)}", np.flatnonzero(task.folds == other)) for other in others],
            )

    def inner_folds(self, train: NDArray[np.int64]) -> NDArray[np.int64]:
        """Number of the inner fold of each training tile."""
        truth = None if self.task.target.kind == "value" else self._main_label()[train]
        return blocked_folds(numbers(self.task.groups[train]), truth, self.recipe.inner_folds)

    def _main_label(self) -> NDArray[np.int64]:
        """(tile) the commonest class of its samples, 0 where it has none."""
        count = np.zeros((len(self.task.tiles), len(self.task.target.classes)), np.int64)
        np.add.at(count, (self.tile.numpy(), self.truth), 1)
        return count.argmax(1)

    @torch.inference_mode()
    def outputs(self, predictor: Predictor, tiles: NDArray[np.int64]) -> NDArray[np.float32]:
        """Probabilities (sample class), or values (sample), at the samples of some tiles."""
        at_once = AT_ONCE if self.task.target.level == "tile" else 4
        found = []
        for some in np.array_split(tiles, max(1, len(tiles) // at_once)):
            inside = torch.from_numpy(np.isin(self.tile.numpy(), some))
            said = predictor.predict(taken(self.batch, torch.from_numpy(some)))
            told = said.answer if said.probabilities is None else said.probabilities
            place = torch.from_numpy(np.searchsorted(some, self.tile[inside].numpy()))
            is_tile = self.task.target.level == "tile"
            found.append(told[place] if is_tile else told[place, self.row[inside], self.col[inside]])
        return torch.cat(found).float().numpy()

    def trained(self, tiles: NDArray[np.int64], seed: int) -> Iterator[tuple[int, Predictor]]:
        """Numbers of steps and the averaged predictor after them, in eval mode; the last at the end."""
        recipe, task = self.recipe, self.task
        torch.manual_seed(seed)
        generator = torch.Generator().manual_seed(seed)
        objective = FineTuning(self._predictor(tiles, seed), "all").train()
        averaged = copy.deepcopy(objective.predictor).eval()
        groups = _groups(objective, recipe.weight_decay)
        optimiser = torch.optim.AdamW(groups, lr=recipe.learning_rate, betas=(0.9, 0.95), fused=True)
        moved, followed = list(averaged.parameters()), list(objective.predictor.parameters())
        labelled = torch.from_numpy(tiles[np.isin(tiles, self.tile.numpy())])
        order = _endless(labelled, recipe.batch_size, generator)
        look_every = max(1, recipe.num_steps // recipe.looks)
        for step in range(1, recipe.num_steps + 1):
            for group in optimiser.param_groups:
                group["lr"] = recipe.learning_rate * scale(step, recipe)
            batch = thinned(taken(self.batch, next(order)), recipe.most_dates_dropped, generator)
            loss = objective(Draw(step=step, dataset=task.name, patch_size_m=task.patch_size_m, batch=batch), generator)
            optimiser.zero_grad()
            loss["loss"].backward()
            torch.nn.utils.clip_grad_norm_(objective.parameters(), 1.0)
            optimiser.step()
            share = min(recipe.averaging, 1 - 1 / (1 + step / 4))
            with torch.no_grad():
                torch._foreach_lerp_(moved, followed, 1 - share)
            if step % look_every == 0 or step == recipe.num_steps:
                yield step, averaged

    def _predictor(self, tiles: NDArray[np.int64], seed: int) -> Predictor:
        encoder = encoder_of(self.weights, seed)
        for key in set(encoder.projectors) - set(self.batch.observations):
            del encoder.projectors[key]  # nothing of it is trained or asked
        encoder.normaliser = Normaliser.from_batch(taken(self.batch, torch.from_numpy(tiles)))
        target, keys = self.task.target, tuple(self.batch.observations)
        is_pixel = target.level == "pixel"
        view = View(patch_sizes_m=(self.task.patch_size_m,), modalities=keys, dense=keys[0] if is_pixel else None)
        torch.manual_seed(seed)
        return Predictor(encoder, self._made_task(tiles), view, "dense" if is_pixel else "both")

    def _made_task(self, tiles: NDArray[np.int64]) -> Task:
        target = self.task.target
        if target.kind == "class":
            return make_task(target, {"label_smoothing": self.recipe.label_smoothing})
        own = self.truth[np.isin(self.tile.numpy(), tiles)]
        return make_task(target, {"mean": float(own.mean()), "deviation": float(own.std())})


def scale(step: int, recipe: Recipe) -> float:
    """What the learning rate is multiplied with at a step, counted from 1."""
    return min(1.0, step / recipe.warmup_steps) * 0.5 * (1 + math.cos(math.pi * (step - 1) / recipe.num_steps))


def _groups(objective: FineTuning, weight_decay: float) -> list[dict[str, Any]]:
    """Only weight matrices decay."""
    trained = [p for p in objective.parameters() if p.requires_grad]
    return [{"params": [p for p in trained if p.ndim > 1], "weight_decay": weight_decay},
            {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0}]  # fmt: skip


def _endless(tiles: Tensor, batch_size: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Batches of tile numbers, each tile once in a round; what is left of a round is joined with the next one."""
    left = tiles[:0]
    while True:
        while len(left) < batch_size:
            left = torch.cat([left, tiles[torch.randperm(len(tiles), generator=generator)]])
        yield left[:batch_size].sort().values
        left = left[batch_size:]


def taken(batch: Batch, index: Tensor) -> Batch:
    """Some tiles of a batch."""
    return replace(batch.map(lambda tensor: tensor[index]), ids=tuple(batch.ids[n] for n in index.tolist()))


def thinned(batch: Batch, most: float, generator: torch.Generator) -> Batch:
    """A batch with some dates of each tile hidden, but never all that were seen."""
    if not most:
        return batch
    kept = {}
    for key, seen in batch.observations.items():
        count, dates = seen.valid.shape[:2]
        share = most * torch.rand(count, 1, generator=generator)
        hidden = torch.rand(count, dates, generator=generator) < share
        valid = seen.valid & ~hidden[:, :, None, None, None]
        is_left = valid.flatten(1).any(1)
        valid = torch.where(is_left[:, None, None, None, None], valid, seen.valid)
        kept[key] = replace(seen, valid=valid, values=seen.values.masked_fill(~valid, 0.0))
    return replace(batch, observations=kept)


def finetuned(
    task: RealTask, weights: str, seed: int, kept: Callable[[int, str], Path], recipe: Recipe
) -> tuple[NDArray[Any], list[dict[str, Any]], float]:
    """Answers (sample) to what is tested, 0 elsewhere; what was chosen for each test fold; seconds of CPU.

    `kept` names the file of an encoder by seed and what it leaves out.
    """
    trainer = Trainer(task, weights, recipe)
    answers, chosen = np.zeros(trainer.truth.shape, trainer.truth.dtype), []
    seconds: dict[str, float] = {}
    for test, pairs in trainer.pairs():
        members, checks = [], []
        for name, check in pairs:
            drawn = 100 * seed + list(seconds | {name: 0.0}).index(name)
            left_out = np.sort(np.concatenate([test, check]))
            made = remembered(kept(seed, name), lambda left_out=left_out, drawn=drawn: trainer.member(left_out, drawn))
            members.append(made)
            seconds[name] = float(made["cpu_s"])
            checks.append(trainer.samples_of(check))
        tested = trainer.samples_of(test)
        answers[tested], setting = together(trainer.truth, members, checks, tested)
        chosen.append(setting)
        print(f"{task.name}, {weights}, seed {seed}, split {len(chosen) - 1}: {setting}", flush=True)
    return answers, chosen, sum(seconds.values())


def together(
    truth: NDArray[Any],
    members: list[dict[str, NDArray[Any]]],
    checks: list[NDArray[np.int64]],
    tested: NDArray[np.int64],
) -> tuple[NDArray[Any], dict[str, Any]]:
    """What all members answer to what is tested (sample), after the number of steps with the least errors in checks.

    Errors are wrong answers or squares, averaged over neighbouring looks; `truth` is read in the checks alone.
    """
    is_value = members[0]["told"].ndim == 2
    wrong = []
    for one, check in zip(members, checks, strict=True):
        told = one["told"][:, np.searchsorted(one["at"], check)]
        wrong.append((told - truth[check]) ** 2 if is_value else told.argmax(-1) != truth[check])
    error = np.concatenate(wrong, axis=1).mean(1)
    smooth = np.convolve(np.pad(error, 1, mode="edge"), np.ones(3) / 3, mode="valid")
    best = int(smooth.argmin())
    told = np.mean([one["told"][best, np.searchsorted(one["at"], tested)] for one in members], axis=0)
    score = -float(np.sqrt(smooth[best])) if is_value else 1 - float(smooth[best])
    setting = {"num_steps": int(members[0]["steps"][best]), "score": round(score, 4)}
    return told if is_value else told.argmax(-1), setting
