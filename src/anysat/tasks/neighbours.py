"""Nearest-neighbour heads: the embeddings they store, and how many neighbours they use, chosen on validation tiles."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from anysat.probing.cache import TILES_PER_FILE, Features, batches
from anysat.probing.samples import directions
from anysat.tasks.base import Task
from anysat.tasks.heads import HeadConfig, NeighbourHead, averaged, make_head
from anysat.tasks.probe import is_better, nothing_seen

MOST_SAMPLES = 20_000
"""Largest number of training embeddings stored: 60 MB at the base size, or 120 MB of sub-patches."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Neighbours:
    """A head with the number of neighbours that is best on the validation tiles."""

    config: HeadConfig
    head: NeighbourHead
    score: float
    """Its primary score on them."""
    tried: tuple[tuple[int, float], ...]
    """Each number of neighbours and its score."""


def fit_neighbours(
    task: Task, config: HeadConfig, train: Features, val: Features, counts: Sequence[int], *, seed: int,
    most: int = MOST_SAMPLES, advance: Callable[[int], object] = lambda _: None,
) -> Neighbours:  # fmt: skip
    """Store embeddings of the training tiles, and choose the number of neighbours on `val`.

    Args:
        task: What is predicted.
        config: Configuration of a nearest-neighbour head. Its numbers of samples and neighbours are replaced.
        train: Features of the training tiles.
        val: Features of the validation tiles.
        counts: Numbers of neighbours to try. If several are equally good, the first is chosen.
        seed: Seed of the draw if there are more than `most` embeddings. Tiles are drawn, or as many sub-patches of
            each.
        most: Largest number of embeddings to store.
        advance: Called with the number of validation tiles done.

    Raises:
        InputError: No training embedding was observed and has a label.
    """
    begun = replace(config, num_samples=1, num_neighbours=max(counts))
    vectors, targets = _samples(task, _head(begun), train, seed, most)
    config = replace(begun, num_samples=len(vectors))
    head = _head(config)
    head.load_state_dict({"vectors": vectors, "targets": targets})
    sheets: list[Any] = [task.metric() for _ in counts]
    truth = val.targets[task.target.name]
    with torch.inference_mode():
        for indices in batches(len(val), TILES_PER_FILE):
            for sheet, outputs in zip(sheets, head.of_counts(val.embeddings(indices), counts), strict=True):
                task.score(sheet, outputs, truth[torch.from_numpy(indices)])
            advance(len(indices))
    tried = [(count, sheet.compute().figures[task.primary]) for count, sheet in zip(counts, sheets, strict=True)]
    best = tried[0]
    for one in tried[1:]:
        best = one if is_better(one[1], best[1], task) else best
    head.num_neighbours = best[0]
    return Neighbours(config=replace(config, num_neighbours=best[0]), head=head, score=best[1], tried=tuple(tried))


def _head(config: HeadConfig) -> NeighbourHead:
    made = make_head(config)
    assert isinstance(made, NeighbourHead), config
    return made.eval()


def _samples(task: Task, head: NeighbourHead, train: Features, seed: int, most: int) -> tuple[Tensor, Tensor]:
    """Return the directions (sample dim) of labelled places that were observed, and their targets (sample output)."""
    rng = np.random.default_rng([seed, 4])
    chosen = np.sort(rng.permutation(len(train))[:most])
    each = most // len(chosen)
    vectors, targets = [], []
    for start in range(0, len(chosen), TILES_PER_FILE):
        indices = chosen[start : start + TILES_PER_FILE]
        seen, valid = head.look(train.embeddings(indices))
        wanted, known = task.wanted(train.targets[task.target.name][torch.from_numpy(indices)])
        if head.dense:
            wanted, known = averaged(wanted, known, head.side)
        for number, kept in enumerate((valid & known).reshape(len(indices), -1)):
            places = rng.permutation(np.flatnonzero(kept.numpy()))[:each]
            vectors.append(seen[number].reshape(-1, seen.shape[-1])[places])
            targets.append(wanted[number].reshape(-1, wanted.shape[-1])[places])
    if not sum(map(len, vectors)):
        raise nothing_seen(task.target, train.dense_key if head.dense else None)
    return directions(torch.cat(vectors)), torch.cat(targets)
