"""Metrics of labels and of values: every figure against slow loops and the libraries' own; what is left out."""

import math
from collections import defaultdict

import pytest
import torch

from anysat.errors import InputError
from anysat.tasks.metrics import LabelScores, ValueScores
from metric_builders import NAN, mean, random_labels, random_values, same, scored, scores_of, share


@pytest.mark.parametrize("kind", ["labels", "values"])
def test_figures_are_undefined_without_a_tile(kind):
    ours = scores_of(kind, 0)
    assert all(map(math.isnan, ours.figures.values()))
    assert ours.num_tiles == ours.num_samples == 0


# --- any of several labels


@pytest.mark.parametrize("threshold", [0.5, 0.3])
def test_label_figures_equal_loops(threshold):
    outputs, truth = random_labels(30)
    truth[:, 4] = 0  # never true,
    outputs[:, 4] = -9  # never predicted: left out
    ours = scored(LabelScores(5, threshold), (outputs, truth))
    hits, misses, alarms = [0] * 5, [0] * 5, [0] * 5
    for row, wanted in zip(outputs.tolist(), truth.tolist(), strict=True):
        for label in range(5):
            found = 1 / (1 + math.exp(-row[label])) > threshold
            hits[label] += found and wanted[label]
            misses[label] += (not found) and wanted[label]
            alarms[label] += found and not wanted[label]
    f1 = [share(2 * h, 2 * h + m + a) for h, m, a in zip(hits, misses, alarms, strict=True)]
    support = [h + m for h, m in zip(hits, misses, strict=True)]
    average = []
    for label in range(5):
        above = [[(other, t) for other, t in zip(outputs[:, label].tolist(), truth[:, label].tolist(), strict=True)
                  if other >= value] for value in outputs[truth[:, label] == 1, label].tolist()]  # fmt: skip
        average.append(mean([sum(t for _, t in one) / len(one) for one in above]))
    bins = defaultdict(list)
    for output, wanted in zip(outputs.flatten().tolist(), truth.flatten().tolist(), strict=True):
        bins[int(15 / (1 + math.exp(-output)))].append(1 / (1 + math.exp(-output)) - wanted)
    figures = {
        "accuracy": 1 - (sum(misses) + sum(alarms)) / 150, "f1_macro": mean(f1),
        "f1_micro": 2 * sum(hits) / (2 * sum(hits) + sum(misses) + sum(alarms)),
        "f1_weighted": sum(f * n for f, n in zip(f1, support, strict=True) if n) / sum(support),
        "map_macro": mean(average), "calibration_error": sum(abs(sum(one)) for one in bins.values()) / 150,
    }  # fmt: skip
    per_class = {
        "f1": f1, "precision": [share(h, h + a) for h, a in zip(hits, alarms, strict=True)],
        "recall": [share(h, n) for h, n in zip(hits, support, strict=True)],
        "average_precision": average, "support": support,
    }  # fmt: skip
    assert same(ours.figures, figures)
    assert same(ours.per_class, per_class)


def test_label_figures_equal_those_of_torchmetrics_also_for_equal_outputs():
    from torchmetrics.functional import classification as theirs

    outputs, truth = random_labels(80)
    outputs = (2 * outputs).round() / 2 + 0.1
    found = scored(LabelScores(5), (outputs, truth)).figures
    wanted = {f"f1_{kind}": theirs.multilabel_f1_score(outputs, truth, num_labels=5, average=kind)
              for kind in ("macro", "micro", "weighted")}  # fmt: skip
    wanted["accuracy"] = theirs.multilabel_accuracy(outputs, truth, num_labels=5, average="micro")
    wanted["map_macro"] = theirs.multilabel_average_precision(outputs, truth, num_labels=5, average="macro")
    shares = outputs.sigmoid().flatten()
    wanted["calibration_error"] = theirs.binary_calibration_error(shares, truth.flatten(), n_bins=15, norm="l1")
    assert same(found, {name: float(value) for name, value in wanted.items()}, rel=2e-6)


def test_average_precision_equals_that_of_scikit_learn():
    metrics = pytest.importorskip("sklearn.metrics")
    outputs, truth = random_labels(60, seed=2)
    ours = scored(LabelScores(5), (outputs, truth)).figures["map_macro"]
    assert ours == pytest.approx(metrics.average_precision_score(truth, outputs, average="macro"))


def test_a_tile_that_nobody_saw_has_no_label_and_no_confidence():
    outputs, truth = random_labels(20)
    dark = torch.cat([outputs, torch.full((3, 5), torch.nan)]), torch.cat([truth, truth[:3]])
    seen, ours = scored(LabelScores(5), (outputs, truth)), scored(LabelScores(5), dark)
    assert ours.figures["calibration_error"] == seen.figures["calibration_error"]
    assert ours.per_class["support"] == (truth.sum(0) + truth[:3].sum(0)).tolist()
    assert ours.figures["map_macro"] <= seen.figures["map_macro"]
    mistakes = (1 - seen.figures["accuracy"]) * 100 + float(truth[:3].sum())
    assert ours.figures["accuracy"] == pytest.approx(1 - mistakes / 115)


def test_a_label_without_a_positive_has_no_average_precision():
    outputs, truth = random_labels(20)
    truth[:, 2] = 0
    ours = scored(LabelScores(5), (outputs, truth))
    assert math.isnan(ours.per_class["average_precision"][2])
    assert ours.figures["map_macro"] == pytest.approx(mean(ours.per_class["average_precision"]))


@pytest.mark.parametrize(("outputs", "truth", "match"), [
    (torch.zeros(2, 3), torch.full((2, 3), 2), "truth: expected 0 or 1, got 6 others"),
    (torch.zeros(2, 4), torch.zeros(2, 4), r"\(tile label\) with 3 labels, got torch.float32 of shape \(2, 4\)"),
])  # fmt: skip
def test_labels_that_cannot_be_are_refused(outputs, truth, match):
    with pytest.raises(InputError, match=match):
        LabelScores(3).update(outputs, truth)


# --- values


def test_value_figures_equal_loops():
    outputs, truth = random_values(4, 5, 6)
    pairs = [(o, t) for o, t in zip(outputs.flatten().tolist(), truth.flatten().tolist(), strict=True) if t == t]
    errors, wanted = [o - t for o, t in pairs], [t for _, t in pairs]
    spread = sum((t - mean(wanted)) ** 2 for t in wanted)
    figures = {"rmse": math.sqrt(mean([e * e for e in errors])), "mae": mean([abs(e) for e in errors]),
               "bias": mean(errors), "r2": 1 - sum(e * e for e in errors) / spread}  # fmt: skip
    ours = scored(ValueScores(), (outputs, truth))
    assert same(ours.figures, figures)
    assert (ours.num_tiles, ours.num_samples) == (4, len(pairs))


def test_value_figures_equal_those_of_scikit_learn():
    metrics = pytest.importorskip("sklearn.metrics")
    outputs, truth = random_values(20)
    known = ~truth.isnan()
    ours = scored(ValueScores(), (outputs, truth)).figures
    assert ours["r2"] == pytest.approx(metrics.r2_score(truth[known], outputs[known]))
    assert ours["rmse"] == pytest.approx(metrics.root_mean_squared_error(truth[known], outputs[known]))
    assert ours["mae"] == pytest.approx(metrics.mean_absolute_error(truth[known], outputs[known]))


def test_r2_does_not_change_with_an_offset_of_the_truth():
    outputs, truth = (values.double() for values in random_values(6, 50))
    near, far = scored(ValueScores(), (outputs, truth)), scored(ValueScores(), (outputs + 1e7, truth + 1e7))
    assert far.figures["r2"] == pytest.approx(near.figures["r2"], rel=1e-6)
    assert far.interval("r2", resamples=50) == pytest.approx(near.interval("r2", resamples=50), rel=1e-6)


@pytest.mark.parametrize("value", [0.0, 0.1, 1e6])
def test_r2_is_undefined_where_the_truth_is_constant(value):
    outputs = torch.randn(7, 7, dtype=torch.float64)
    truth = torch.full_like(outputs, value)  # 49 times 0.1 has a mean that is not 0.1
    ours = scored(ValueScores(), (outputs, truth))
    assert math.isnan(ours.figures["r2"])
    assert ours.figures["rmse"] > 0


def test_an_ignored_value_is_left_out_whatever_was_predicted():
    outputs, truth = random_values(4, 9)
    ours = scored(ValueScores(ignore=-9999), (outputs.where(~truth.isnan(), NAN), truth.nan_to_num(-9999)))
    assert same(ours.figures, scored(ValueScores(), (outputs, truth)).figures)


def test_an_axis_of_one_output_may_be_there():
    outputs, truth = random_values(4, 3, 2)
    ours = scored(ValueScores(), (outputs[..., None], truth))
    assert ours.to_dict() == scored(ValueScores(), (outputs, truth)).to_dict()


@pytest.mark.parametrize(("outputs", "truth", "match"), [
    (torch.tensor([NAN, 1]), torch.zeros(2), "1 of 2 NaN or infinite"),
    (torch.zeros(2), torch.tensor([torch.inf, 1]), "truth: expected finite values"),
    (torch.zeros(2, 3), torch.zeros(3, 2), r"\(tile …\) or \(tile … 1\)"),
])  # fmt: skip
def test_values_that_cannot_be_are_refused(outputs, truth, match):
    with pytest.raises(InputError, match=match):
        ValueScores().update(outputs, truth)
