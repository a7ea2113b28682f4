"""Linear probes: against the normal equations, how the penalty is chosen, folds, balanced scores."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from anysat.errors import InputError
from anysat.probing import linear
from probing_builders import normal


def _ridge(features: Tensor, labels: Tensor, penalty: float, share: Tensor, mean: Tensor, scale: Tensor) -> Tensor:
    """Weights (dim + 1, class) by the normal equations, the last row the bias without penalty."""
    inputs = torch.cat([(features - mean) / scale, torch.ones(len(features), 1)], 1)
    wanted = 2 * torch.nn.functional.one_hot(labels).double() - 1
    punished = penalty * torch.eye(inputs.shape[1], dtype=torch.float64)
    punished[-1, -1] = 0
    matrix = sum(s * torch.outer(x, x) for s, x in zip(share, inputs, strict=True)) + punished
    return torch.linalg.solve(matrix, sum(s * torch.outer(x, y) for s, x, y in zip(share, inputs, wanted, strict=True)))


def _weighing(features: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    classes = len(labels.unique())
    share = torch.tensor([1 / (classes * int((labels == label).sum())) for label in labels], dtype=torch.float64)
    mean = share @ features
    return share, mean, (share @ (features - mean) ** 2).sqrt()


def _uneven(count: int = 48) -> tuple[Tensor, Tensor]:
    labels = torch.tensor([0, 0, 0, 1, 2, 0] * (count // 6))
    return normal(count, 4) * torch.tensor([1, 10, 0.1, 3]) + 20 + normal(3, 4, seed=4)[labels], labels


def test_a_linear_probe_is_weighted_ridge_regression() -> None:
    features, labels = _uneven()
    share, mean, scale = _weighing(features, labels)
    expected = _ridge(features, labels, 0.1, share, mean, scale)
    probe = linear.fit_linear(features, labels, penalties=[0.1])
    torch.testing.assert_close(probe.weight, expected[:-1] / scale[:, None])
    torch.testing.assert_close(probe.bias, expected[-1] - (mean / scale) @ expected[:-1])


def test_what_a_left_out_group_is_told_equals_a_fit_without_it() -> None:
    features, labels = _uneven()
    share, mean, scale = _weighing(features, labels)
    groups = torch.arange(48) % 7  # not in order
    system = linear._System.of(features, labels, 3)
    told = linear._left_out(system, 0.05, groups)
    for group in range(7):
        rest, inside = groups != group, groups == group
        weight = _ridge(features[rest], labels[rest], 0.05, share[rest], mean, scale)
        expected = (features[inside] - mean) / scale @ weight[:-1] + weight[-1]
        torch.testing.assert_close(told[inside], expected)


def test_the_penalty_is_the_best_one_when_groups_are_left_out() -> None:
    labels = torch.arange(40) % 2
    groups = torch.arange(40) // 2
    noise = normal(40, 60)  # more dimensions than groups: a small penalty fits noise
    noise[:, 0] += 3.0 * (2 * labels - 1)
    probe = linear.fit_linear(noise, labels, penalties=[1e-6, 10.0], groups=groups)
    scores = {
        p: linear.balanced_score(linear._left_out(linear._System.of(noise, labels, 2), p, groups).argmax(1), labels)
        for p in (1e-6, 10.0)
    }
    assert scores[10.0] != scores[1e-6]
    assert probe.penalty == max(scores, key=scores.__getitem__)


def test_the_penalty_is_the_best_one_on_the_validation_set() -> None:
    features, labels = normal(20, 30), torch.arange(20) % 2
    features[:, 0] += 0.5 * (2 * labels - 1)
    fits = {p: linear.fit_linear(features, labels, penalties=[p]) for p in (1e-6, 1.0, 100.0)}
    unseen = normal(400, 30, seed=9)
    truth = fits[1.0].predict(unseen)
    assert linear.fit_linear(features, labels, penalties=list(fits), validation=(unseen, truth)).penalty == 1.0


def test_of_equally_good_penalties_the_largest_is_taken() -> None:
    features, labels = torch.eye(2, dtype=torch.float64).repeat(10, 1), torch.arange(20) % 2
    assert linear.fit_linear(features, labels, penalties=[1e-3, 0.1, 1e-2]).penalty == 0.1


def test_classes_keep_their_numbers() -> None:
    features = torch.eye(2).repeat(10, 1)
    probe = linear.fit_linear(features, torch.tensor([7, 3] * 10))
    assert probe.predict(torch.eye(2)).tolist() == [7, 3]


def test_a_constant_dimension_says_nothing() -> None:
    features, labels = _uneven()
    probe = linear.fit_linear(torch.cat([features, torch.full((48, 1), 0.1)], 1), labels, penalties=[0.1])
    torch.testing.assert_close(probe.weight[:-1], linear.fit_linear(features, labels, penalties=[0.1]).weight)
    assert probe.weight[-1].tolist() == [0, 0, 0]


def test_a_probe_tells_a_rare_class_as_well_as_a_frequent_one() -> None:
    labels = (torch.arange(2000) % 50 == 0).long()
    features = normal(2000, 1) + 2.0 * labels[:, None]
    found = linear.fit_linear(features, labels, penalties=[1e-4]).predict(features)
    assert (found[labels == 1] == 1).double().mean() > 0.7


def test_every_fold_is_told_by_a_probe_of_the_others() -> None:
    features, labels = _uneven()
    groups = 10 * (torch.arange(48) % 8)  # the third and the seventh make the third fold
    told = linear.cross_told(features, labels, groups)
    inside = (groups == 20) | (groups == 60)
    probe = linear.fit_linear(features[~inside], labels[~inside], groups=groups[~inside])
    assert torch.equal(told[inside], probe.predict(features[inside]))
    assert linear.balanced_score(told, labels) > 0.5


def test_the_penalty_of_a_fold_is_chosen_between_groups() -> None:
    groups = torch.arange(24).repeat_interleave(4)
    labels = groups % 2
    features = normal(24, 80)[groups] + 0.3 * normal(96, 80, seed=3)  # four much alike: each would tell the others
    features[:, 0] += 2 * labels - 1
    penalties = [1e-6, 10.0]
    told = linear.cross_told(features, labels, groups, penalties=penalties)
    inside = groups % 4 == 0
    given = features[~inside], labels[~inside]
    between = linear.fit_linear(*given, groups=groups[~inside], penalties=penalties)
    within = linear.fit_linear(*given, penalties=penalties)
    assert between.penalty != within.penalty
    assert torch.equal(told[inside], between.predict(features[inside]))
    assert not torch.equal(told[inside], within.predict(features[inside]))


def test_labels_of_a_fold_do_not_change_what_it_is_told() -> None:
    features, labels = _uneven()
    groups = torch.arange(48) % 4
    turned = torch.where(groups == 1, (labels + 1) % 3, labels)
    one, other = (linear.cross_told(features, each, groups) for each in (labels, turned))
    assert torch.equal(one[groups == 1], other[groups == 1])
    assert not torch.equal(one, other)


def test_where_other_folds_hold_one_class_it_is_told() -> None:
    told = linear.cross_told(torch.eye(4), torch.tensor([5, 5, 5, 2]), torch.arange(4))
    assert int(told[3]) == 5


def test_two_groups_are_too_few_to_be_told_in_turn() -> None:
    with pytest.raises(InputError, match="one for each of 4 samples and at least 3"):
        linear.cross_told(torch.eye(4), torch.tensor([0, 1, 0, 1]), torch.tensor([0, 0, 1, 1]))


def test_guessing_scores_0_and_no_mistake_scores_1() -> None:
    truth = torch.tensor([0] * 90 + [1] * 9 + [5])
    assert linear.balanced_score(torch.zeros(100, dtype=torch.int64), truth) == pytest.approx(0)
    assert linear.balanced_score(truth, truth) == 1


def test_balanced_score_equals_loops() -> None:
    found, truth = torch.tensor([0, 1, 1, 2, 2, 9]), torch.tensor([0, 0, 1, 1, 2, 2])
    accuracy = sum(sum(f == t == c for f, t in zip(found, truth, strict=True)) / 2 for c in range(3)) / 3
    assert linear.balanced_score(found, truth) == pytest.approx((accuracy - 1 / 3) / (1 - 1 / 3))


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda f, y: linear.fit_linear(f, y * 0), "at least 2 classes, got only"),
        (lambda f, y: linear.fit_linear(f, y[:3]), "48 whole numbers"),
        (lambda f, y: linear.fit_linear(f, y, penalties=[0.0]), "penalties"),
        (lambda f, y: linear.fit_linear(f, y, groups=y * 0), "groups"),
        (lambda f, y: linear.fit_linear(f * torch.nan, y), "48 of 48 with NaN"),
        (lambda f, y: linear.fit_linear(f, y).predict(f[:, :2]), "4 dimensions as in training"),
    ],
)
def test_a_probe_that_cannot_be_fitted_is_told(call, words: str) -> None:
    with pytest.raises(InputError, match=words):
        call(*_uneven())
