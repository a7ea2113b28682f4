"""Nearest neighbours: scores against a search by loops, groups, what cannot be searched."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from anysat.errors import InputError
from anysat.probing import neighbours, samples
from probing_builders import cosine, normal


def _labelled(count: int = 60, classes: int = 3, dim: int = 5) -> tuple[Tensor, Tensor]:
    labels = torch.arange(count) % classes
    return normal(count, dim) + 1.5 * normal(classes, dim, seed=7)[labels], labels


@pytest.mark.parametrize("grouped", [False, True])
def test_neighbours_equal_a_search_by_loops(monkeypatch: pytest.MonkeyPatch, grouped: bool) -> None:
    monkeypatch.setattr(samples, "_MAX_PAIRS", 500)
    features, labels = _labelled()
    labels[::7] = 2  # classes of different size
    groups = torch.arange(60) // 4 if grouped else torch.arange(60)
    right, of_class = 0, {c: [0, 0] for c in range(3)}
    for i in range(60):
        others = [j for j in range(60) if groups[j] != groups[i]]
        nearest = sorted(others, key=lambda j: -cosine(features[i], features[j]))[:5]
        votes = [0, 0, 0]
        for j in nearest:
            votes[int(labels[j])] += 1
        hit = votes.index(max(votes)) == int(labels[i])
        right += hit
        of_class[int(labels[i])][0] += hit
        of_class[int(labels[i])][1] += 1
    score = neighbours.leave_one_out(features, labels, groups=groups if grouped else None, num_neighbours=5)
    assert score.accuracy == pytest.approx(right / 60)
    assert score.balanced_accuracy == pytest.approx(sum(hit / of for hit, of in of_class.values()) / 3)
    assert (score.chance, score.num_samples) == (1 / 3, 60)


def test_duplicates_in_the_same_group_are_not_neighbours() -> None:
    features = torch.eye(6).repeat_interleave(2, 0)
    labels, groups = torch.arange(12) // 2, torch.arange(12) // 2
    assert neighbours.leave_one_out(features, labels, num_neighbours=1).accuracy == 1
    assert neighbours.leave_one_out(features, labels, groups=groups, num_neighbours=1).accuracy == 0


def test_a_sample_is_not_its_own_neighbour() -> None:
    assert neighbours.leave_one_out(torch.eye(4), torch.arange(4), num_neighbours=1).accuracy == 0


def test_more_neighbours_than_other_groups_have_takes_all_of_them() -> None:
    features, labels = torch.eye(4)[[0, 0, 1, 1]], torch.tensor([0, 1, 1, 1])
    groups = torch.tensor([0, 0, 1, 1])
    assert neighbours.leave_one_out(features, labels, groups=groups, num_neighbours=50).accuracy == 1 / 4


def test_length_of_a_vector_does_not_change_its_neighbours() -> None:
    features, labels = _labelled()
    lengths = torch.logspace(-200, 200, 60, dtype=torch.float64)[:, None]
    assert neighbours.leave_one_out(features * lengths, labels) == neighbours.leave_one_out(features, labels)


def test_half_precision_finds_the_neighbours_of_its_values() -> None:
    features, labels = _labelled(200)
    half = features.bfloat16()
    assert neighbours.leave_one_out(half, labels) == neighbours.leave_one_out(half.float(), labels)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"groups": torch.zeros(60)}, "at least 2 groups"),
        ({"groups": torch.arange(5)}, "one group per sample"),
        ({"labels": torch.full((60,), -1)}, "leave out samples without a label"),
        ({"num_neighbours": 0}, "num_neighbours"),
    ],
)
def test_neighbours_that_cannot_be_found_are_told(changes: dict, words: str) -> None:
    features, labels = _labelled()
    with pytest.raises(InputError, match=words):
        neighbours.leave_one_out(**{"features": features, "labels": labels} | changes)
