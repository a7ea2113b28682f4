"""Training of heads on cached embeddings, for many settings at once. The encoder is not needed."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from anysat.batch import Embeddings
from anysat.data.base import Target
from anysat.errors import InputError, RecordError
from anysat.probing.cache import TILES_PER_FILE, Features, batches
from anysat.tasks.base import Task, labelled, mean_loss
from anysat.tasks.scores import Scores

WARMUP_FRAC = 0.1
"""Fraction of the steps that warm up, by default."""
PLATEAU_EPOCHS = 10
"""With `plateau`, the learning rate is divided by ten if the validation loss has not fallen for more epochs than
this."""


@dataclass(frozen=True, kw_only=True)
class Setting:
    """Options for training a head."""

    learning_rate: float
    weight_decay: float

    def __post_init__(self) -> None:
        if not self.learning_rate > 0 or not self.weight_decay >= 0:
            got = (self.learning_rate, self.weight_decay)
            raise RecordError("learning rate and weight decay", got, "above 0, and 0 or more")


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Options that all settings share: the learning-rate schedule, and when training may end."""

    schedule: str = "cosine"
    """`cosine` falls to 0 over the epochs; `plateau` divides by ten when the validation loss no longer falls."""
    warmup_epochs: int | None = None
    """Number of warm-up epochs for `cosine`; None for a tenth of all epochs."""
    clip_norm: float | None = 1.0
    """Largest norm of the gradient; None does not clip."""
    min_epochs: int = 0
    """Number of epochs before which patience does not end the training."""

    def __post_init__(self) -> None:
        if self.schedule not in ("cosine", "plateau"):
            raise RecordError("schedule", self.schedule, "'cosine' or 'plateau'")
        if self.schedule == "plateau" and self.warmup_epochs is not None:
            raise RecordError("warmup_epochs", self.warmup_epochs, "null with schedule plateau, which has none")


@dataclass(frozen=True, kw_only=True, eq=False)
class TrainedHead:
    """The best of all settings and epochs on the validation tiles."""

    head: nn.Module
    setting: Setting
    epoch: int
    """Number of the best epoch, from 1. 0 if no score was a number; the weights are then the last ones."""
    score: float
    """Its primary score on the validation tiles."""
    curve: tuple[Mapping[str, float], ...]
    """Loss, validation loss and score of the chosen setting after each epoch."""
    tried: tuple[tuple[Setting, float, int], ...]
    """Each setting, its best score, and the epoch of that, 0 if there is none."""
    curves: tuple[tuple[Mapping[str, float], ...], ...]
    """The curve of each setting, in the same order."""


@dataclass(eq=False)
class _Runner:
    """The training of one setting."""

    setting: Setting
    head: nn.Module
    optimiser: torch.optim.AdamW
    plateau: torch.optim.lr_scheduler.ReduceLROnPlateau
    best_score: float = math.nan
    best_epoch: int = 0
    best_state: dict[str, Tensor] | None = None
    curve: list[dict[str, float]] | None = None


def fit_heads(
    task: Task, make: Callable[[], nn.Module], train: Sequence[Features], val: Sequence[Features],
    settings: Sequence[Setting], *, epochs: int, batch_size: int, seed: int, patience: int | None = None,
    recipe: Recipe = Recipe(), advance: Callable[[int], object] = lambda _: None,
) -> TrainedHead:  # fmt: skip
    """Train a head for every setting on the same batches, and choose the best epoch of the best setting on `val`.

    The optimiser is AdamW, and every setting starts from the same weights. An epoch has no score, because the head has
    diverged, if it has no training loss or if the head then gives fewer finite outputs than at the start.

    Args:
        task: What is predicted. The features must have its target.
        make: Creates a new head.
        train: Features of the training tiles, one for each patch size. Outputs are averaged over them.
        val: The same for the validation tiles. Settings and epochs are chosen only on these.
        settings: Learning rates and weight decays to try.
        epochs: Number of passes over the training tiles.
        batch_size: Tiles per step.
        seed: Seed of first weights and order.
        patience: Number of epochs without an improvement of any setting after which training ends, counted from the
            first score that is a number; None never ends it early.
        recipe: Options that all settings share.
        advance: Called after each epoch.

    Raises:
        RecordError: There are no settings, epochs or tiles.
    """
    counts = {"settings": len(settings), "epochs": epochs, "batch_size": batch_size, "training tiles": len(train[0])}
    for name, count in counts.items():
        if count < 1:
            raise RecordError(name, count, "1 or more")
    truth, num_tiles = train[0].targets[task.target.name], len(train[0])
    runners = [_begin(make, setting, seed) for setting in settings]
    per_epoch, step = -(-num_tiles // batch_size), 0
    num_seen, since = sum(int(one.isfinite().all(-1).sum()) for one in outputs_on(runners[0].head, val)), 0
    for epoch in range(1, epochs + 1):
        losses: list[list[float]] = []
        for indices in batches(num_tiles, batch_size, np.random.default_rng([seed, epoch])):
            seen, wanted = [one.embeddings(indices) for one in train], truth[torch.from_numpy(indices)]
            factor, step = _factor(step, epochs * per_epoch, per_epoch, recipe), step + 1
            losses.append([_step(runner, task, seen, wanted, factor, recipe.clip_norm) for runner in runners])
        val_losses: list[float] = []
        answered: list[int] = []
        scores = score_heads(task, [runner.head for runner in runners], val, val_losses, answered, batch_size)
        improved, means = False, torch.tensor(losses).nanmean(0).tolist()  # NaN for batches that observed nothing
        for runner, loss, val_loss, found, count in zip(runners, means, val_losses, scores, answered, strict=True):
            runner.plateau.step(val_loss)
            score = math.nan if math.isnan(loss) or count < num_seen else found.figures[task.primary]
            improved |= _note(runner, task, epoch, {"loss": loss, "val_loss": val_loss}, score)
        advance(1)
        since = since + 1 if not improved and any(runner.best_epoch for runner in runners) else 0
        if patience is not None and since >= patience and epoch >= recipe.min_epochs:
            break
    return _chosen(task, runners)


def check_labelled(target: Target, truth: Tensor, what: str) -> None:
    """Check that some tile has a label.

    Raises:
        InputError: None has. The message says which tiles, and how many they are.
    """
    if not bool(labelled(target, truth).any()):
        raise InputError(
            f"{what} tiles, {target.name}", "at least one label", f"none in {len(truth)} tiles",
            "use more tiles, or check which number marks places without a label",
        )  # fmt: skip


def check_answered(task: Task, head: nn.Module, train: Sequence[Features]) -> None:
    """Check that some labelled place of the training tiles was observed. Otherwise a head would learn nothing.

    Args:
        task: What is predicted.
        head: A head with any weights.
        train: Features of the training tiles, one for each patch size. Only as many as needed are read.

    Raises:
        InputError: None was. The message names the modality that pixels are predicted from.
    """
    truth = train[0].targets[task.target.name]
    with torch.inference_mode():
        for indices in batches(len(train[0]), TILES_PER_FILE):
            seen = outputs_of(head.eval(), [one.embeddings(indices) for one in train]).isfinite().all(-1)
            known = labelled(task.target, truth[torch.from_numpy(indices)])
            if bool(((known.any(-1) if known.ndim > seen.ndim else known) & seen).any()):
                return
    raise nothing_seen(task.target, train[0].dense_key)


def nothing_seen(target: Target, dense: str | None) -> InputError:
    """Return the error for training tiles in which no label has a valid value at its place."""
    if dense is None:
        return InputError(f"training tiles, {target.name}", "one with a label and a valid value", "none")
    return InputError(
        f"training tiles, {target.name}", f"a labelled pixel with a valid value of {dense} (--dense)",
        "none", "select a modality that the tiles have",
    )  # fmt: skip


def score_heads(
    task: Task, heads: Sequence[nn.Module], features: Sequence[Features],
    losses: list[float] | None = None, answered: list[int] | None = None, batch_size: int = TILES_PER_FILE,
) -> list[Scores]:  # fmt: skip
    """Return the scores of several heads on the same tiles, of which `batch_size` are read at a time.

    The mean loss of each head is appended to `losses`, and its number of places with finite outputs to `answered`.
    """
    counts = [0] * len(heads)
    sheets = [task.metric() for _ in heads]
    of_batches: list[list[tuple[float, float]]] = [[] for _ in heads]
    with torch.inference_mode():
        for indices in batches(len(features[0]), batch_size):
            truth = features[0].targets[task.target.name][torch.from_numpy(indices)]
            seen = [one.embeddings(indices) for one in features]
            for number, head in enumerate(heads):
                outputs = outputs_of(head.eval(), seen)
                task.score(sheets[number], outputs, truth)
                counts[number] += int(outputs.isfinite().all(-1).sum())
                if losses is not None:
                    of_batches[number].append((float(task.loss(outputs, truth)), task.loss_weight(outputs, truth)))
    if losses is not None:
        losses += [mean_loss(mine) for mine in of_batches]
    if answered is not None:
        answered += counts
    return [sheet.compute() for sheet in sheets]


def outputs_on(head: nn.Module, features: Sequence[Features]) -> Iterator[Tensor]:
    """Yield the outputs of a head for a few tiles at a time, in order."""
    for indices in batches(len(features[0]), TILES_PER_FILE):
        with torch.inference_mode():
            outputs = outputs_of(head.eval(), [one.embeddings(indices) for one in features])
        yield outputs


def outputs_of(head: nn.Module, seen: Sequence[Embeddings]) -> Tensor:
    """Return a head's outputs, averaged over patch sizes."""
    outputs = [head(one) for one in seen]
    return outputs[0] if len(outputs) == 1 else torch.stack(outputs).mean(0)


def _begin(make: Callable[[], nn.Module], setting: Setting, seed: int) -> _Runner:
    torch.manual_seed(seed)
    head = make()
    matrices = [p for p in head.parameters() if p.ndim > 1]
    others = [p for p in head.parameters() if p.ndim <= 1]
    groups = [{"params": matrices, "weight_decay": setting.weight_decay}, {"params": others, "weight_decay": 0.0}]
    optimiser = torch.optim.AdamW(groups, lr=setting.learning_rate)
    plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(optimiser, factor=0.1, patience=PLATEAU_EPOCHS)
    return _Runner(setting, head, optimiser, plateau, curve=[])


def _factor(step: int, num_steps: int, per_epoch: int, recipe: Recipe) -> float | None:
    """Return the factor of the learning rate, or None if `plateau` sets it."""
    if recipe.schedule == "plateau":
        return None
    epochs = recipe.warmup_epochs
    warmup = max(1, round(WARMUP_FRAC * num_steps) if epochs is None else epochs * per_epoch)
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, num_steps - warmup)))


def _step(
    runner: _Runner,
    task: Task,
    seen: Sequence[Embeddings],
    wanted: Tensor,
    factor: float | None,
    clip_norm: float | None,
) -> float:
    runner.head.train()
    if factor is not None:
        for group in runner.optimiser.param_groups:
            group["lr"] = factor * runner.setting.learning_rate
    loss = task.loss(outputs_of(runner.head, seen), wanted)
    runner.optimiser.zero_grad(set_to_none=True)
    loss.backward()  # type: ignore[no-untyped-call]
    if clip_norm is not None:
        nn.utils.clip_grad_norm_(runner.head.parameters(), clip_norm)
    runner.optimiser.step()
    return float(loss.detach())


def _note(runner: _Runner, task: Task, epoch: int, losses: Mapping[str, float], score: float) -> bool:
    """Record an epoch of a setting, and return whether it is the best so far."""
    assert runner.curve is not None, epoch
    runner.curve.append({**losses, task.primary: score})
    if not is_better(score, runner.best_score, task):
        return False
    runner.best_score, runner.best_epoch = score, epoch
    runner.best_state = copy.deepcopy(runner.head.state_dict())
    return True


def is_better(score: float, than: float, task: Task) -> bool:
    """Whether a primary score is better than another. Every number is better than NaN."""
    if math.isnan(score):
        return False
    return math.isnan(than) or (score > than if task.highest_is_best else score < than)


def _chosen(task: Task, runners: Sequence[_Runner]) -> TrainedHead:
    best = runners[0]
    for runner in runners[1:]:
        if is_better(runner.best_score, best.best_score, task):
            best = runner
    if best.best_state is not None:
        best.head.load_state_dict(best.best_state)
    assert best.curve is not None, best
    return TrainedHead(
        head=best.head.eval(), setting=best.setting, epoch=best.best_epoch, score=best.best_score,
        curve=tuple(best.curve), tried=tuple((r.setting, r.best_score, r.best_epoch) for r in runners),
        curves=tuple(tuple(r.curve or ()) for r in runners),
    )  # fmt: skip


def grid(learning_rates: Sequence[float], weight_decays: Sequence[float]) -> Iterator[Setting]:
    """Return each combination of learning rate and weight decay."""
    for learning_rate in learning_rates:
        for weight_decay in weight_decays:
            yield Setting(learning_rate=learning_rate, weight_decay=weight_decay)
