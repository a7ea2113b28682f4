"""Fine-tuning on a real task: tuned on an inner fold of whole groups, then trained on the whole training part."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from anysat.batch import Batch
from anysat.data.loader import Draw
from anysat.normalise import Normaliser
from anysat.tasks.base import Task, make_task
from anysat.tasks.finetune import FineTuning
from anysat.tasks.predictor import Predictor, View
from real.frozen import AT_ONCE, encoder_of, looks
from real.protocol import RealTask, blocked_folds, numbers

LEARNING_RATES = (4e-4, 1.2e-3)
INNER_FOLDS = 4


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How fine-tuning goes."""

    num_steps: int = 240
    batch_size: int = 64
    """Tiles of a step."""
    look_every: int = 20
    """Steps between two looks at the inner fold."""
    warmup_steps: int = 20
    weight_decay: float = 0.05
    averaging: float = 0.97
    """Of the weights over the steps, which are those that answer."""
    most_dates_dropped: float = 0.4
    """A share up to this is drawn for each tile, and that share of its dates is hidden."""
    label_smoothing: float = 0.05


RECIPES = {"crop_canada": Recipe(num_steps=480), "parcels_belgium": Recipe(batch_size=4)}
"""By task, where it differs."""


@dataclass(frozen=True, kw_only=True)
class Tuned:
    """What was chosen for a test fold."""

    learning_rate: float
    num_steps: int
    score: float
    """On the inner fold: accuracy, or RMSE with a minus."""


class Trainer:
    """Fine-tuning of one task from one kind of weights."""

    def __init__(self, task: RealTask, weights: str, recipe: Recipe) -> None:
        self.task, self.weights, self.recipe = task, weights, recipe
        self.batch = Batch.of(looks(task)[0])
        self.tile, self.row, self.col = (torch.from_numpy(part) for part in task.places().T)
        self.truth = task.truth()

    def tuned(self, train: NDArray[np.int64]) -> Tuned:
        """The best learning rate and number of steps by an inner fold; of equals the first."""
        is_value = self.task.target.kind == "value"
        truth = None if is_value else self._main_label()[train]
        folds = blocked_folds(numbers(self.task.groups[train]), truth, INNER_FOLDS)
        check, fit = train[folds == 0], train[folds != 0]
        tried = []
        for learning_rate in LEARNING_RATES:
            found = [
                (step, self.right(predictor, check))
                for step, predictor in self.trained(fit, learning_rate, self.recipe.num_steps, 0)
            ]
            scores = np.array([one for _, one in found])
            smooth = np.convolve(np.pad(scores, 1, mode="edge"), np.ones(3) / 3, mode="valid")
            best = int(smooth.argmax())
            tried.append(Tuned(learning_rate=learning_rate, num_steps=found[best][0], score=float(smooth[best])))
        return max(tried, key=lambda one: one.score)

    def _main_label(self) -> NDArray[np.int64]:
        """(tile) the commonest class of its samples, 0 where it has none."""
        count = np.zeros((len(self.task.tiles), len(self.task.target.classes)), np.int64)
        np.add.at(count, (self.tile.numpy(), self.truth), 1)
        return count.argmax(1)

    def right(self, predictor: Predictor, tiles: NDArray[np.int64]) -> float:
        """Accuracy at samples of some tiles, or RMSE with a minus."""
        inside = np.isin(self.tile.numpy(), tiles)
        found = self.answers(predictor, tiles)[inside]
        if self.task.target.kind == "value":
            return -float(np.sqrt(np.mean((found - self.truth[inside]) ** 2)))
        return float(np.mean(found == self.truth[inside]))

    @torch.inference_mode()
    def answers(self, predictor: Predictor, tiles: NDArray[np.int64]) -> NDArray[Any]:
        """(sample) answers to samples of some tiles, 0 elsewhere."""
        found = np.zeros(self.truth.shape, self.truth.dtype)
        at_once = AT_ONCE if self.task.target.level == "tile" else 4
        for some in np.array_split(tiles, max(1, len(tiles) // at_once)):
            inside = torch.from_numpy(np.isin(self.tile.numpy(), some))
            answer = predictor.predict(taken(self.batch, torch.from_numpy(some))).answer
            place = torch.from_numpy(np.searchsorted(some, self.tile[inside].numpy()))
            own = answer[place] if answer.ndim == 1 else answer[place, self.row[inside], self.col[inside]]
            found[inside.numpy()] = own.numpy()
        return found

    def trained(
        self, tiles: NDArray[np.int64], learning_rate: float, num_steps: int, seed: int
    ) -> Iterator[tuple[int, Predictor]]:
        """Numbers of steps and the averaged predictor after them, in eval mode; at the end as well."""
        recipe, task = self.recipe, self.task
        torch.manual_seed(seed)
        generator = torch.Generator().manual_seed(seed)
        objective = FineTuning(self._predictor(tiles, seed), "all").train()
        averaged = copy.deepcopy(objective.predictor).eval()
        groups = _groups(objective, recipe.weight_decay)
        optimiser = torch.optim.AdamW(groups, lr=learning_rate, betas=(0.9, 0.95), fused=True)
        moved, followed = list(averaged.parameters()), list(objective.predictor.parameters())
        labelled = torch.from_numpy(tiles[np.isin(tiles, self.tile.numpy())])
        order = _endless(labelled, recipe.batch_size, generator)
        for step in range(1, num_steps + 1):
            for group in optimiser.param_groups:
                group["lr"] = learning_rate * min(1.0, step / recipe.warmup_steps)
            batch = thinned(taken(self.batch, next(order)), recipe.most_dates_dropped, generator)
            loss = objective(Draw(step=step, dataset=task.name, patch_size_m=task.patch_size_m, batch=batch), generator)
            optimiser.zero_grad()
            loss["loss"].backward()
            torch.nn.utils.clip_grad_norm_(objective.parameters(), 1.0)
            optimiser.step()
            share = min(recipe.averaging, 1 - 1 / (1 + step / 4))
            with torch.no_grad():
                torch._foreach_lerp_(moved, followed, 1 - share)
            if step % recipe.look_every == 0 or step == num_steps:
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
    task: RealTask, weights: str, seed: int, kept: Callable[[int, int], Path], recipe: Recipe
) -> tuple[NDArray[Any], list[Any]]:
    """Answers (sample) to what is tested, and what was chosen for each test fold; `kept` names files by seed, split."""
    trainer = Trainer(task, weights, recipe)
    answers, chosen = np.zeros(trainer.truth.shape, trainer.truth.dtype), []
    for split, (train, test) in enumerate(task.splits()):
        tiles, tested = np.flatnonzero(train), np.flatnonzero(test)
        tuned = Tuned(**_kept(kept(0, split), lambda tiles=tiles: asdict(trainer.tuned(tiles))))

        def answer(tiles: Any = tiles, tested: Any = tested, tuned: Tuned = tuned) -> dict[str, Any]:
            *_, (_, last) = trainer.trained(tiles, tuned.learning_rate, tuned.num_steps, seed)
            return {"answers": trainer.answers(last, tested).tolist()}

        answers += np.array(_kept(kept(seed, split).with_suffix(".answers.json"), answer)["answers"], answers.dtype)
        chosen.append(asdict(tuned))
        print(f"{task.name}, {weights}, seed {seed}, split {split}: {tuned}", flush=True)
    return answers, chosen


def _kept(path: Path, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Plain values kept in a file, made where it is not there."""
    if not path.is_file():
        made = make()
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(".part")
        part.write_text(json.dumps(made))
        part.replace(path)
    found: dict[str, Any] = json.loads(path.read_text())
    return found
