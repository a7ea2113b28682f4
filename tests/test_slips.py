"""A stored example that tells silent slips: a probe of tree species, which a wrong day or band confuses.

The probe was fitted once to embeddings of the shipped `nano` on some tiles of the generated world, and lies in
`golden/slips.npz` with what it scored. What the package makes of the same tiles must score the same; so a slip
anywhere between files and embeddings shows, also one that training and test would share. Where `nano` itself is made
anew: `PYTHONPATH=tests/builders python tests/test_slips.py` writes the example anew.
"""

import itertools
import json
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.linear_model import RidgeClassifier
from sklearn.preprocessing import StandardScaler
from sklearn.utils.class_weight import compute_sample_weight

import anysat
from anysat.batch import Batch
from anysat.data.open import find_dataset, open_dataset
from anysat.tasks.base import make_task
from builders import GOLDEN

WORLD = {"tiles": 24, "seed": 3, "modalities": ["s2"], "extent_m": 60.0, "dates": 8}
PENALTY = 1e-3
STORED = GOLDEN / "slips.npz"
SAME = {"accuracy": 0.01, "miou": 0.01, "error": 5e-4}
"""How far figures may lie from the stored ones, on another machine."""


def stored_tiles():
    folder = Path(tempfile.mkdtemp())
    (folder / "world.json").write_text(json.dumps(WORLD))
    return Batch.of(list(open_dataset("world", folder, "all", modalities=["s2"], targets=("species",))))


@pytest.fixture(scope="module")
def example():
    """Encoder, tiles, stored probe."""
    return anysat.load("nano").requires_grad_(False), stored_tiles(), np.load(STORED)


@torch.inference_mode()
def vectors(encoder, batch):
    """Of each pixel (tile row col dim)."""
    return encoder.encode(batch, 30.0, dense="s2").dense


def scored(found, truth, weight, bias):
    """Accuracy, mean IoU, and squared error of what the probe says of vectors."""
    outputs = found.double() @ torch.from_numpy(weight) + torch.from_numpy(bias)
    task = make_task(find_dataset("world").target("species"))
    sheet = task.metric()
    task.score(sheet, outputs, truth)
    known = truth >= 0
    wanted = 2.0 * torch.nn.functional.one_hot(truth[known], outputs.shape[-1]) - 1
    figures = sheet.compute().figures
    error = float((outputs[known] - wanted).square().mean())
    return {"accuracy": figures["accuracy"], "miou": figures["miou"], "error": error}


def score_of(example, change=lambda seen: seen):
    encoder, batch, kept = example
    changed = replace(batch, observations={"s2": change(batch.observations["s2"])})
    return scored(vectors(encoder, changed), batch.targets["species"], kept["weight"], kept["bias"])


def later(days):
    return lambda seen: replace(seen, dates=seen.dates + days)


def swapped(one, other):
    order = list(range(10))
    order[one], order[other] = other, one
    return lambda seen: replace(seen, values=seen.values[:, :, order], valid=seen.valid[:, :, order])


def test_the_stored_example_scores_as_it_did(example):
    found = score_of(example)
    assert found["accuracy"] > 0.9
    for name, value in found.items():
        assert value == pytest.approx(float(example[2][name]), abs=SAME[name]), name


@pytest.mark.parametrize("days", [-1, 1])
def test_a_day_base_off_by_one_is_seen_in_the_score(example, days):
    found = score_of(example, later(days))
    for name in ("accuracy", "miou"):
        assert found[name] < float(example[2][name]) - 10 * SAME[name], name


def test_two_bands_swapped_are_seen_in_the_score(example):
    for one, other in itertools.combinations(range(10), 2):
        found = score_of(example, swapped(one, other))
        assert found["error"] > float(example[2]["error"]) + 2 * SAME["error"], (one, other)
        if not {one, other} <= {5, 6, 7}:  # neighbours in the near infrared, which look alike
            assert found["accuracy"] < float(example[2]["accuracy"]) - 5 * SAME["accuracy"], (one, other)


def fitted(features, labels):
    """Weight (dim class) and bias (class) of ridge regression of standardised features, where every class weighs alike."""
    weights = compute_sample_weight("balanced", labels)
    scaler = StandardScaler().fit(features, sample_weight=weights)
    ridge = RidgeClassifier(PENALTY * len(labels)).fit(scaler.transform(features), labels, sample_weight=weights)
    assert ridge.classes_.tolist() == list(range(6)), ridge.classes_
    weight = ridge.coef_.T / scaler.scale_[:, None]
    return weight, ridge.intercept_ - scaler.mean_ @ weight


def write():
    """Fit the probe and store it with its figures."""
    encoder, batch = anysat.load("nano").requires_grad_(False), stored_tiles()
    found, truth = vectors(encoder, batch), batch.targets["species"]
    weight, bias = fitted(found[truth >= 0].double().numpy(), truth[truth >= 0].numpy())
    np.savez(STORED, weight=weight, bias=bias, **scored(found, truth, weight, bias))


if __name__ == "__main__":
    write()
