"""Nearest-neighbour scores: how often the neighbours of a sample are of its own class. Nothing is trained."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from anysat.errors import InputError
from anysat.probing.samples import checked, directions, distinct, slices


@dataclass(frozen=True, kw_only=True)
class NeighbourScore:
    """How often the class of the neighbours is that of the sample."""

    accuracy: float
    """Fraction of the samples whose class is found."""
    balanced_accuracy: float
    """Mean over classes of the fraction found."""
    chance: float
    """Balanced accuracy of guessing: 1 / classes."""
    num_samples: int
    """Number of samples."""


def leave_one_out(
    features: Tensor,
    labels: Tensor,
    *,
    groups: Tensor | None = None,
    num_neighbours: int = 10,
) -> NeighbourScore:
    """Predict the class of each sample from its nearest neighbours among the others, and score the predictions.

    Args:
        features: (sample dim) vectors, compared by cosine.
        labels: (sample) class numbers from 0.
        groups: (sample) group numbers, such as the tile of each patch. Neighbours of the sample's own group do not
            count, because patches of one tile are alike whatever was learned. None makes each sample its own group.
        num_neighbours: Number of neighbours. Their most frequent class is predicted; of equals, the lowest number.

    Raises:
        InputError: The lengths differ, there are fewer than two groups, or values are not finite.
    """
    own = torch.arange(len(features), device=features.device) if groups is None else groups.to(features.device)
    num_groups = len(distinct(own)[0])
    if own.shape != (len(features),) or num_groups < 2:
        got = f"{len(features)} samples, groups {tuple(own.shape)} of which {num_groups} differ"
        raise InputError("leave-one-out", "one group per sample and at least 2 groups", got)
    found = _told(features, labels, num_neighbours, own)
    return _score(found, labels.to(found.device))


def _told(features: Tensor, labels: Tensor, num_neighbours: int, groups: Tensor) -> Tensor:
    """Predict the class of every sample from its neighbours outside its group, in bounded memory."""
    known = directions(checked("features", features))
    _check(known, labels, num_neighbours)
    labels = labels.to(known.device)
    one_hot = torch.nn.functional.one_hot(labels, int(labels.max()) + 1)
    found = []
    for rows in slices(len(known), len(known)):
        cosine = known[rows] @ known.T
        cosine = cosine.masked_fill(groups[rows, None] == groups[None], -torch.inf)
        near, which = cosine.topk(min(num_neighbours, len(known)), dim=1)
        votes = one_hot[which] * (near > -torch.inf)[..., None]
        found.append(votes.sum(1).argmax(1))
    return torch.cat(found)


def _check(features: Tensor, labels: Tensor, num_neighbours: int) -> None:
    whole = not labels.is_floating_point() and labels.shape == (len(features),) and int(labels.min()) >= 0
    if not whole:
        got = f"{labels.dtype} of shape {tuple(labels.shape)}"
        raise InputError("labels", f"{len(features)} whole numbers from 0", got, "leave out samples without a label")
    if num_neighbours < 1:
        raise InputError("num_neighbours", "at least 1", num_neighbours)


def _score(found: Tensor, truth: Tensor) -> NeighbourScore:
    right = (found == truth).double()
    classes, places = distinct(truth)
    per_class = right.new_zeros(len(classes)).index_add(0, places, right) / places.bincount()
    return NeighbourScore(
        accuracy=float(right.mean()),
        balanced_accuracy=float(per_class.mean()),
        chance=1 / len(classes),
        num_samples=len(truth),
    )
