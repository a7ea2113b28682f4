"""One byte per value and back: the published rule, a step per dimension, and the loss that is measured."""

import numpy as np
import pytest

from anysat.geo.stores.quantise import HEADROOM, NODATA, Loss, fit_scale, from_power, from_scale, to_power, to_scale

VECTORS = np.random.default_rng(0).standard_normal((500, 64)).astype(np.float32) * 3


def test_the_power_rule_is_the_published_one():
    """q = round(127.5 sign(x) sqrt|x|), clipped to 127, of the unit vector, written with a loop."""
    codes, norms = to_power(VECTORS)
    for vector, code, norm in zip(VECTORS[:20].astype(float), codes, norms, strict=False):
        unit = vector / np.sqrt((vector**2).sum())
        expected = [max(-127, min(127, round(127.5 * np.sign(x) * abs(x) ** 0.5))) for x in unit]
        assert code.tolist() == expected
        assert norm == pytest.approx(np.sqrt((vector**2).sum()), rel=1e-6)
    assert to_power(np.array([[1.0, 0.0]]))[0].tolist() == [[127, 0]]


def test_power_codes_turn_back_into_unit_vectors_or_with_lengths_into_vectors():
    codes, norms = to_power(VECTORS)
    units = VECTORS / np.linalg.norm(VECTORS, axis=1, keepdims=True)
    assert np.abs(from_power(codes) - units).max() < 0.006
    assert np.linalg.norm(from_power(codes, norms) - VECTORS) / np.linalg.norm(VECTORS) < 0.02
    zero, length = to_power(np.zeros((1, 4), np.float32))
    assert (zero == 0).all()
    assert (from_power(zero, length) == 0).all()


def test_nodata_codes_turn_into_nan():
    codes = np.full((1, 3), NODATA, np.int8)
    assert np.isnan(from_power(codes)).all()
    assert np.isnan(from_scale(codes, np.ones(3, np.float32))).all()


def test_a_step_per_dimension_loses_at_most_half_a_step():
    wide = VECTORS * np.logspace(-3, 3, 64, dtype=np.float32)
    scale = fit_scale(wide)
    codes, clipped = to_scale(wide, scale)
    assert clipped == 0
    assert (np.abs(from_scale(codes, scale) - wide) <= 0.5001 * scale).all()
    assert (fit_scale(np.zeros((3, 2), np.float32)) == 1).all()


def test_values_beyond_the_sample_are_clipped_and_counted():
    scale = fit_scale(VECTORS)
    codes, clipped = to_scale(VECTORS * HEADROOM**2, scale)
    beyond = np.abs(VECTORS * HEADROOM**2) > 127.5 * scale
    assert clipped == beyond.sum() > 0
    assert np.abs(codes).max() == 127


def test_the_loss_of_parts_is_that_of_the_whole():
    restored = VECTORS + np.random.default_rng(1).normal(0, 0.05, VECTORS.shape).astype(np.float32)
    parts = [Loss.between(VECTORS[part], restored[part], 2) for part in (slice(0, 100), slice(100, 500), slice(0, 0))]
    found = Loss(**(parts[0] + parts[1] + parts[2]).to_dict()).summary()
    error, length = (np.linalg.norm(x.astype(float), axis=1) for x in (VECTORS - restored, VECTORS))
    cosine = [
        a @ b / np.linalg.norm(a) / np.linalg.norm(b)
        for a, b in zip(VECTORS.astype(float), restored.astype(float), strict=True)
    ]
    expected = {
        "vectors": 500, "relative_l2": np.sqrt((error**2).sum() / (length**2).sum()),
        "relative_l2_mean": (error / length).mean(), "relative_l2_worst": (error / length).max(),
        "cosine_mean": np.mean(cosine), "cosine_worst": np.min(cosine), "clipped_values": 4,
    }  # fmt: skip
    assert found == pytest.approx(expected, rel=1e-4)


def test_nothing_lost_is_no_loss_even_of_zeros():
    found = Loss.between(np.zeros((2, 3)), np.zeros((2, 3))).summary()
    assert (found["relative_l2"], found["cosine_worst"]) == (0.0, 1.0)
    assert Loss().summary() == {"vectors": 0}
