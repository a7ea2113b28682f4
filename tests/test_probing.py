"""Probing: every figure against an obvious reference, and the limits against collapses made on purpose."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor

from anysat.errors import InputError, RecordError
from anysat.probing import health, linear, neighbours, samples
from anysat.probing.health import HealthLimits, measure, problems


def _normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def _decaying(dim: int, power: float, num_tiles: int = 16) -> Tensor:
    turn = torch.linalg.qr(_normal(dim, dim, seed=1))[0]
    return _normal(num_tiles, 5, 5, dim) * torch.arange(1, dim + 1.0) ** -power @ turn


def _cosine(x: Tensor, y: Tensor) -> float:
    return float(x @ y / (x.norm() * y.norm()))


# --- health


def test_effective_rank_is_the_exponential_of_the_entropy_of_the_singular_values() -> None:
    features = _normal(30, 7) * torch.arange(1, 8) + 5
    mean = [sum(row[d] for row in features) / 30 for d in range(7)]
    centred = torch.tensor([[row[d] - mean[d] for d in range(7)] for row in features], dtype=torch.float64)
    values = torch.linalg.eigvalsh(centred.T @ centred).sqrt().tolist()
    entropy = -sum(v / sum(values) * math.log(v / sum(values)) for v in values)
    assert health.effective_rank(features) == pytest.approx(math.exp(entropy), rel=1e-9)


def test_a_constant_representation_has_effective_rank_1() -> None:
    assert health.effective_rank(_normal(1, 16).float().expand(40, -1)) == 1.0


@pytest.mark.parametrize("rank", [1, 2, 5])
def test_equal_orthogonal_directions_have_their_number_as_effective_rank(rank: int) -> None:
    directions = torch.linalg.qr(_normal(12, rank))[0].T
    assert health.effective_rank(torch.cat([directions, -directions]) + 3) == pytest.approx(rank)


def test_rounding_is_no_direction_in_float32() -> None:
    assert health.effective_rank((_normal(500, 1) @ _normal(1, 64) + 10).float()) == 1.0


def test_top_frac_is_the_largest_share_of_the_variance() -> None:
    features = torch.tensor([[3.0, 0, 0], [-3, 0, 0], [0, 1, 0], [0, -1, 0]])
    assert health.top_frac(features) == pytest.approx(18 / 20)


def test_top_frac_of_constant_vectors_is_1() -> None:
    assert health.top_frac(torch.ones(9, 4)) == 1


def test_spread_is_sqrt_of_one_minus_the_common_cosine() -> None:
    features = torch.eye(200, dtype=torch.float64) + 0.5
    cosine = _cosine(features[0], features[1])
    assert health.spread(features) == pytest.approx(math.sqrt((1 - cosine) * 199 / 200), rel=1e-9)


def test_spread_and_dead_dimensions_equal_loops() -> None:
    features = _normal(20, 6) * torch.tensor([1.0, 1, 4e-3, 2, 1e-5, 1])
    unit = [row / math.sqrt(sum(v * v for v in row)) for row in features]
    deviations = []
    for d in range(6):
        column = [float(row[d]) for row in unit]
        mean = sum(column) / 20
        deviations.append(math.sqrt(6 * sum((v - mean) ** 2 for v in column) / 20))
    assert health.spread(features) == pytest.approx(sum(deviations) / 6)
    assert health.dead_frac(features) == sum(d < 0.01 for d in deviations) / 6 == 2 / 6


def test_uniformity_is_the_log_mean_over_pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(samples, "_MAX_PAIRS", 30)  # several slices
    features = _normal(11, 5)
    pairs = [math.exp(-2 * (2 - 2 * _cosine(x, y))) for x, y in itertools.combinations(features, 2)]
    assert health.uniformity(features) == pytest.approx(math.log(sum(pairs) / len(pairs)))


def test_uniformity_of_constant_vectors_is_0() -> None:
    assert health.uniformity(torch.ones(9, 4)) == pytest.approx(0, abs=1e-9)


def test_alignment_is_the_mean_squared_distance_of_directions() -> None:
    one, other = _normal(13, 5), _normal(13, 5, seed=2)
    expected = sum(2 - 2 * _cosine(x, y) for x, y in zip(one, other, strict=True)) / 13
    assert health.alignment(one, 7 * other) == pytest.approx(expected)


def test_features_that_are_only_position_have_a_position_share_of_1() -> None:
    assert health.position_share(_normal(1, 4, 6, 32).expand(8, -1, -1, -1)) == pytest.approx(1)


@pytest.mark.parametrize("num_tiles", [2, 8, 100])
def test_features_without_position_have_a_position_share_near_0_however_few_the_tiles(num_tiles: int) -> None:
    assert health.position_share(_normal(num_tiles, 5, 5, 64)) < 0.02


def test_what_is_the_same_over_a_tile_is_not_position() -> None:
    tile, position, noise = _normal(200, 1, 1, 8), _normal(1, 4, 4, 8, seed=1), _normal(200, 4, 4, 8, seed=2)
    position = position - position.mean((1, 2), keepdim=True)
    expected = float((position**2).mean()) / float((tile**2).mean() + (position**2).mean() + (noise**2).mean())
    assert health.position_share(tile + position + noise) == pytest.approx(expected, abs=0.02)


def test_tiles_that_differ_do_not_hide_position() -> None:
    tile, position, noise = _normal(4, 1, 1, 16), 0.3 * _normal(1, 4, 4, 16, seed=1), 0.1 * _normal(4, 4, 4, 16, seed=2)
    assert health.position_share(tile + position + noise) > 0.05


def test_within_tiles_what_is_the_same_over_a_tile_does_not_count() -> None:
    tile, position, noise = 9 * _normal(50, 1, 1, 16), _normal(1, 4, 4, 16, seed=1), _normal(50, 4, 4, 16, seed=2)
    expected = health.position_share(position + noise, within_tiles=True)
    assert 0.4 < expected < 0.6
    assert health.position_share(tile + position + noise, within_tiles=True) == pytest.approx(expected)


def test_smooth_tiles_without_position_have_no_position_share_on_average() -> None:
    rows = torch.arange(6) / 6
    shares = []
    for seed in range(40):
        slopes = _normal(8, 1, 1, 4, seed=seed)  # every tile is one smooth slope
        flat = (slopes * rows[:, None, None]).expand(8, 6, 6, 4)
        between = 8 * float(((flat - flat.mean((0, 1, 2))).mean(0) ** 2).sum())
        shares.append((health.position_share(flat), between / float(((flat - flat.mean((0, 1, 2))) ** 2).sum())))
    corrected, plain = (sum(part) / 40 for part in zip(*shares, strict=True))
    assert corrected < 0.6 * plain


def test_retrieval_equals_a_search_by_loops(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(samples, "_MAX_PAIRS", 50)
    one = _normal(21, 6)
    other = one + _normal(21, 6, seed=3)
    right = 0
    for asked, among in ((one, other), (other, one)):
        for i in range(21):
            cosines = [_cosine(asked[i], y) for y in among]
            right += cosines.index(max(cosines)) == i
    assert 0 < right < 42
    assert health.cross_modal_retrieval(one, other) == (right / 42, 1 / 21)


def test_constant_tokens_are_retrieved_as_by_chance() -> None:
    rate, chance = health.cross_modal_retrieval(torch.ones(50, 4), torch.ones(50, 4))
    assert rate == chance == 1 / 50


COLLAPSED = {
    "constant": (_normal(1, 1, 1, 64).expand(8, 5, 5, 64), "spread"),
    "almost constant": (_normal(1, 1, 1, 64) + 0.01 * _normal(8, 5, 5, 64, seed=1), "spread"),
    "one direction": (_normal(8, 5, 5, 1) @ _normal(1, 64, seed=1), "top_frac"),
    "one direction and noise": (
        _normal(8, 5, 5, 1) @ _normal(1, 64, seed=1) + 0.05 * _normal(8, 5, 5, 64, seed=2),
        "top_frac",
    ),
    "three directions of 256": (_normal(16, 5, 5, 3) @ _normal(3, 256, seed=1), "rank_frac"),
    "only position": (_normal(1, 5, 5, 64).expand(8, -1, -1, -1), "position_share"),
    "position and a little else": (
        _normal(1, 5, 5, 64) + 0.3 * _normal(8, 5, 5, 64, seed=1),
        "position_share",
    ),
    "mostly dead": (_normal(8, 5, 5, 64) * (torch.arange(64) < 24), "dead_frac"),
}
HEALTHY = {
    "gaussian": _normal(16, 5, 5, 64),
    "fewer samples than dimensions": _normal(4, 2, 2, 256),
    "one patch a tile": _normal(8, 1, 1, 256),
    "1/k of 64": _decaying(64, 1),
    "k^-1.5 of 256": _decaying(256, 1.5),
    "k^-1.5 of 768": _decaying(768, 1.5, num_tiles=64),
    "a shared mean direction": _decaying(64, 1) + 1.5 * _normal(64, seed=5),
    "half position": _normal(1, 5, 5, 64) + _normal(8, 5, 5, 64, seed=1),
    "float32": _normal(16, 5, 5, 64).float(),
}


@pytest.mark.parametrize("name", COLLAPSED)
def test_a_collapse_is_told(name: str) -> None:
    patch, figure = COLLAPSED[name]
    told = measure(patch).problems()
    assert any(problem.startswith(f"{figure} is ") for problem in told), told


@pytest.mark.parametrize("name", HEALTHY)
def test_healthy_features_raise_no_alarm(name: str) -> None:
    assert measure(HEALTHY[name]).problems() == ()


def test_a_problem_tells_the_figure_the_limit_and_what_to_try() -> None:
    (told,) = problems({"spread": 0.01})
    assert told.startswith("spread is 0.01, less than 0.05: every patch gets almost the same vector. Try some weight")


def test_rank_is_compared_with_what_few_samples_can_have() -> None:
    found = measure(_normal(4, 2, 2, 256))
    assert found.rank_frac == found.effective_rank / 15
    assert found.rank_frac > 0.9


def test_limits_can_be_changed() -> None:
    assert problems({"spread": 0.01}, HealthLimits(spread_min=0.001)) == ()


def test_a_figure_that_is_nan_is_a_problem() -> None:
    assert len(problems({"spread": math.nan, "position_share": math.nan})) == 2


def test_a_limit_is_a_share() -> None:
    with pytest.raises(RecordError, match="spread_min: expected a share from 0 to 1"):
        HealthLimits(spread_min=3)


@pytest.mark.parametrize("content", [torch.nan, 1000.0])
def test_patches_nobody_saw_change_no_figure(content: float) -> None:
    patch, valid = _normal(9, 3, 4, 16), torch.ones(9, 3, 4, dtype=torch.bool)
    valid[8] = False
    expected = measure(patch[:8])
    patch[8] = content
    assert measure(patch, valid=valid) == expected


def test_vectors_that_are_not_finite_are_counted_and_make_no_figure_nan() -> None:
    patch = _normal(8, 3, 3, 16)
    patch[0, 0, 0] = torch.inf
    found = measure(patch)
    assert found.finite_frac == 71 / 72
    assert all(math.isfinite(value) for value in found.figures().values())
    assert found.problems()[0].startswith("finite_frac is 0.986, less than 1")


def test_vectors_that_are_all_nan_are_a_problem_and_no_error() -> None:
    found = measure(torch.full((4, 3, 3, 8), torch.nan))
    assert found.figures() == {"finite_frac": 0}
    assert len(found.problems()) == 1


def test_alignment_and_retrieval_are_measured_when_given() -> None:
    patch = _normal(4, 3, 3, 8)
    found = measure(patch, second=2 * patch, tokens=[(patch[0, 0], patch[0, 0]), (patch[1, 0], -patch[1, 0])])
    assert found.alignment == pytest.approx(0)
    assert (found.retrieval, found.retrieval_chance) == (0.5, pytest.approx(1 / 3))


def test_many_patches_are_measured_on_the_same_part_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(health, "MAX_SAMPLES", 50)
    found = measure(_normal(10, 4, 4, 8))
    assert found.num_samples == 50
    assert found == measure(_normal(10, 4, 4, 8))


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: health.effective_rank(torch.ones(1, 4)), "at least 2 samples"),
        (lambda: health.spread(torch.tensor([[1.0, torch.nan], [0, 1]])), "1 of 2 with NaN"),
        (lambda: health.uniformity(torch.ones(3, 4, 5)), "sample dim"),
        (lambda: health.alignment(torch.ones(3, 4), torch.ones(2, 4)), "the same samples"),
        (lambda: health.position_share(torch.ones(1, 3, 3, 4)), "at least 2 tiles"),
        (lambda: measure(torch.ones(3, 4)), "batch patch_row patch_col dim"),
        (lambda: measure(torch.ones(2, 1, 1, 4), valid=torch.zeros(2, 1, 1, dtype=torch.bool)), "that were seen"),
    ],
)
def test_what_cannot_be_measured_is_told(call, words: str) -> None:
    with pytest.raises(InputError, match=words):
        call()


# --- neighbours


def _labelled(count: int = 60, classes: int = 3, dim: int = 5) -> tuple[Tensor, Tensor]:
    labels = torch.arange(count) % classes
    return _normal(count, dim) + 1.5 * _normal(classes, dim, seed=7)[labels], labels


@pytest.mark.parametrize("grouped", [False, True])
def test_neighbours_equal_a_search_by_loops(monkeypatch: pytest.MonkeyPatch, grouped: bool) -> None:
    monkeypatch.setattr(samples, "_MAX_PAIRS", 500)
    features, labels = _labelled()
    labels[::7] = 2  # classes of different size
    groups = torch.arange(60) // 4 if grouped else torch.arange(60)
    right, of_class = 0, {c: [0, 0] for c in range(3)}
    for i in range(60):
        others = [j for j in range(60) if groups[j] != groups[i]]
        nearest = sorted(others, key=lambda j: -_cosine(features[i], features[j]))[:5]
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


def test_unseen_samples_are_told_by_the_known_ones() -> None:
    known, unseen = torch.tensor([[1.0, 0], [0, 1]]), torch.tensor([[2.0, 1], [1, 2], [3, 1]])
    assert neighbours.told(known, torch.tensor([4, 2]), unseen, num_neighbours=1).tolist() == [4, 2, 4]


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


# --- linear


def _ridge(features: Tensor, labels: Tensor, penalty: float, share: Tensor, mean: Tensor, scale: Tensor) -> Tensor:
    """Weights (dim + 1, class) by the normal equations, the last row the bias without penalty."""
    inputs = torch.cat([(features - mean) / scale, torch.ones(len(features), 1)], 1)
    wanted = 2 * torch.nn.functional.one_hot(labels).double() - 1
    punished = penalty * torch.eye(inputs.shape[1], dtype=torch.float64)
    punished[-1, -1] = 0
    normal = sum(s * torch.outer(x, x) for s, x in zip(share, inputs, strict=True)) + punished
    return torch.linalg.solve(normal, sum(s * torch.outer(x, y) for s, x, y in zip(share, inputs, wanted, strict=True)))


def _weighing(features: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    classes = len(labels.unique())
    share = torch.tensor([1 / (classes * int((labels == label).sum())) for label in labels], dtype=torch.float64)
    mean = share @ features
    return share, mean, (share @ (features - mean) ** 2).sqrt()


def _uneven(count: int = 48) -> tuple[Tensor, Tensor]:
    labels = torch.tensor([0, 0, 0, 1, 2, 0] * (count // 6))
    return _normal(count, 4) * torch.tensor([1, 10, 0.1, 3]) + 20 + _normal(3, 4, seed=4)[labels], labels


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
    noise = _normal(40, 60)  # more dimensions than groups: a small penalty fits noise
    noise[:, 0] += 3.0 * (2 * labels - 1)
    probe = linear.fit_linear(noise, labels, penalties=[1e-6, 10.0], groups=groups)
    scores = {
        p: linear.balanced_score(linear._left_out(linear._System.of(noise, labels, 2), p, groups).argmax(1), labels)
        for p in (1e-6, 10.0)
    }
    assert scores[10.0] != scores[1e-6]
    assert probe.penalty == max(scores, key=scores.__getitem__)


def test_the_penalty_is_the_best_one_on_the_validation_set() -> None:
    features, labels = _normal(20, 30), torch.arange(20) % 2
    features[:, 0] += 0.5 * (2 * labels - 1)
    fits = {p: linear.fit_linear(features, labels, penalties=[p]) for p in (1e-6, 1.0, 100.0)}
    unseen = _normal(400, 30, seed=9)
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
    features = _normal(2000, 1) + 2.0 * labels[:, None]
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
    features = _normal(24, 80)[groups] + 0.3 * _normal(96, 80, seed=3)  # four much alike: each would tell the others
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
