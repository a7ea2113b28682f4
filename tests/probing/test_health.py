"""Health of embeddings: every figure against an obvious reference, the limits against collapses made on purpose."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor

from anysat.errors import InputError, RecordError
from anysat.probing import health, samples
from anysat.probing.health import HealthLimits, measure, problems
from probing_builders import cosine, normal


def _decaying(dim: int, power: float, num_tiles: int = 16) -> Tensor:
    turn = torch.linalg.qr(normal(dim, dim, seed=1))[0]
    return normal(num_tiles, 5, 5, dim) * torch.arange(1, dim + 1.0) ** -power @ turn


def test_effective_rank_is_the_exponential_of_the_entropy_of_the_singular_values() -> None:
    features = normal(30, 7) * torch.arange(1, 8) + 5
    mean = [sum(row[d] for row in features) / 30 for d in range(7)]
    centred = torch.tensor([[row[d] - mean[d] for d in range(7)] for row in features], dtype=torch.float64)
    values = torch.linalg.eigvalsh(centred.T @ centred).sqrt().tolist()
    entropy = -sum(v / sum(values) * math.log(v / sum(values)) for v in values)
    assert health.effective_rank(features) == pytest.approx(math.exp(entropy), rel=1e-9)


def test_a_constant_representation_has_effective_rank_1() -> None:
    assert health.effective_rank(normal(1, 16).float().expand(40, -1)) == 1.0


@pytest.mark.parametrize("rank", [1, 2, 5])
def test_equal_orthogonal_directions_have_their_number_as_effective_rank(rank: int) -> None:
    directions = torch.linalg.qr(normal(12, rank))[0].T
    assert health.effective_rank(torch.cat([directions, -directions]) + 3) == pytest.approx(rank)


def test_rounding_is_no_direction_in_float32() -> None:
    assert health.effective_rank((normal(500, 1) @ normal(1, 64) + 10).float()) == 1.0


def test_top_frac_is_the_largest_share_of_the_variance() -> None:
    features = torch.tensor([[3.0, 0, 0], [-3, 0, 0], [0, 1, 0], [0, -1, 0]])
    assert health.top_frac(features) == pytest.approx(18 / 20)


def test_top_frac_of_constant_vectors_is_1() -> None:
    assert health.top_frac(torch.ones(9, 4)) == 1


def test_spread_is_sqrt_of_one_minus_the_common_cosine() -> None:
    features = torch.eye(200, dtype=torch.float64) + 0.5
    common = cosine(features[0], features[1])
    assert health.spread(features) == pytest.approx(math.sqrt((1 - common) * 199 / 200), rel=1e-9)


def test_spread_and_dead_dimensions_equal_loops() -> None:
    features = normal(20, 6) * torch.tensor([1.0, 1, 4e-3, 2, 1e-5, 1])
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
    features = normal(11, 5)
    pairs = [math.exp(-2 * (2 - 2 * cosine(x, y))) for x, y in itertools.combinations(features, 2)]
    assert health.uniformity(features) == pytest.approx(math.log(sum(pairs) / len(pairs)))


def test_uniformity_of_constant_vectors_is_0() -> None:
    assert health.uniformity(torch.ones(9, 4)) == pytest.approx(0, abs=1e-9)


def test_alignment_is_the_mean_squared_distance_of_directions() -> None:
    one, other = normal(13, 5), normal(13, 5, seed=2)
    expected = sum(2 - 2 * cosine(x, y) for x, y in zip(one, other, strict=True)) / 13
    assert health.alignment(one, 7 * other) == pytest.approx(expected)


def test_features_that_are_only_position_have_a_position_share_of_1() -> None:
    assert health.position_share(normal(1, 4, 6, 32).expand(8, -1, -1, -1)) == pytest.approx(1)


@pytest.mark.parametrize("num_tiles", [2, 8, 100])
def test_features_without_position_have_a_position_share_near_0_however_few_the_tiles(num_tiles: int) -> None:
    assert health.position_share(normal(num_tiles, 5, 5, 64)) < 0.02


def test_what_is_the_same_over_a_tile_is_not_position() -> None:
    tile, position, noise = normal(200, 1, 1, 8), normal(1, 4, 4, 8, seed=1), normal(200, 4, 4, 8, seed=2)
    position = position - position.mean((1, 2), keepdim=True)
    expected = float((position**2).mean()) / float((tile**2).mean() + (position**2).mean() + (noise**2).mean())
    assert health.position_share(tile + position + noise) == pytest.approx(expected, abs=0.02)


def test_tiles_that_differ_do_not_hide_position() -> None:
    tile, position, noise = normal(4, 1, 1, 16), 0.3 * normal(1, 4, 4, 16, seed=1), 0.1 * normal(4, 4, 4, 16, seed=2)
    assert health.position_share(tile + position + noise) > 0.05


def test_within_tiles_what_is_the_same_over_a_tile_does_not_count() -> None:
    tile, position, noise = 9 * normal(50, 1, 1, 16), normal(1, 4, 4, 16, seed=1), normal(50, 4, 4, 16, seed=2)
    expected = health.position_share(position + noise, within_tiles=True)
    assert 0.4 < expected < 0.6
    assert health.position_share(tile + position + noise, within_tiles=True) == pytest.approx(expected)


def test_smooth_tiles_without_position_have_no_position_share_on_average() -> None:
    rows = torch.arange(6) / 6
    shares = []
    for seed in range(40):
        slopes = normal(8, 1, 1, 4, seed=seed)  # every tile is one smooth slope
        flat = (slopes * rows[:, None, None]).expand(8, 6, 6, 4)
        between = 8 * float(((flat - flat.mean((0, 1, 2))).mean(0) ** 2).sum())
        shares.append((health.position_share(flat), between / float(((flat - flat.mean((0, 1, 2))) ** 2).sum())))
    corrected, plain = (sum(part) / 40 for part in zip(*shares, strict=True))
    assert corrected < 0.6 * plain


def test_retrieval_equals_a_search_by_loops(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(samples, "_MAX_PAIRS", 50)
    one = normal(21, 6)
    other = one + normal(21, 6, seed=3)
    right = 0
    for asked, among in ((one, other), (other, one)):
        for i in range(21):
            cosines = [cosine(asked[i], y) for y in among]
            right += cosines.index(max(cosines)) == i
    assert 0 < right < 42
    assert health.cross_modal_retrieval(one, other) == (right / 42, 1 / 21)


def test_constant_tokens_are_retrieved_as_by_chance() -> None:
    rate, chance = health.cross_modal_retrieval(torch.ones(50, 4), torch.ones(50, 4))
    assert rate == chance == 1 / 50


COLLAPSED = {
    "constant": (normal(1, 1, 1, 64).expand(8, 5, 5, 64), "spread"),
    "almost constant": (normal(1, 1, 1, 64) + 0.01 * normal(8, 5, 5, 64, seed=1), "spread"),
    "one direction": (normal(8, 5, 5, 1) @ normal(1, 64, seed=1), "top_frac"),
    "one direction and noise": (
        normal(8, 5, 5, 1) @ normal(1, 64, seed=1) + 0.05 * normal(8, 5, 5, 64, seed=2),
        "top_frac",
    ),
    "three directions of 256": (normal(16, 5, 5, 3) @ normal(3, 256, seed=1), "rank_frac"),
    "only position": (normal(1, 5, 5, 64).expand(8, -1, -1, -1), "position_share"),
    "position and a little else": (
        normal(1, 5, 5, 64) + 0.3 * normal(8, 5, 5, 64, seed=1),
        "position_share",
    ),
    "mostly dead": (normal(8, 5, 5, 64) * (torch.arange(64) < 24), "dead_frac"),
}
HEALTHY = {
    "gaussian": normal(16, 5, 5, 64),
    "fewer samples than dimensions": normal(4, 2, 2, 256),
    "one patch a tile": normal(8, 1, 1, 256),
    "1/k of 64": _decaying(64, 1),
    "k^-1.5 of 256": _decaying(256, 1.5),
    "k^-1.5 of 768": _decaying(768, 1.5, num_tiles=64),
    "a shared mean direction": _decaying(64, 1) + 1.5 * normal(64, seed=5),
    "half position": normal(1, 5, 5, 64) + normal(8, 5, 5, 64, seed=1),
    "float32": normal(16, 5, 5, 64).float(),
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
    found = measure(normal(4, 2, 2, 256))
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
    patch, valid = normal(9, 3, 4, 16), torch.ones(9, 3, 4, dtype=torch.bool)
    valid[8] = False
    expected = measure(patch[:8])
    patch[8] = content
    assert measure(patch, valid=valid) == expected


def test_vectors_that_are_not_finite_are_counted_and_make_no_figure_nan() -> None:
    patch = normal(8, 3, 3, 16)
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
    patch = normal(4, 3, 3, 8)
    found = measure(patch, second=2 * patch, tokens=[(patch[0, 0], patch[0, 0]), (patch[1, 0], -patch[1, 0])])
    assert found.alignment == pytest.approx(0)
    assert (found.retrieval, found.retrieval_chance) == (0.5, pytest.approx(1 / 3))


def test_many_patches_are_measured_on_the_same_part_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(health, "MAX_SAMPLES", 50)
    found = measure(normal(10, 4, 4, 8))
    assert found.num_samples == 50
    assert found == measure(normal(10, 4, 4, 8))


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
