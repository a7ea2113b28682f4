"""Metrics: every figure against slow loops and the libraries' own, what is left out, ranks, intervals.

Run as a script, this file is one of two ranks (see `two_ranks`).
"""

import json
import math
import os
import pickle
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest
import torch

from anysat.errors import InputError, RecordError, UnknownNameError
from anysat.tasks.metrics import ClassScores, LabelScores, ValueScores

NAN = float("nan")


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def random_classes(*shape, num_classes=4, ignore=-1, seed=0):
    """Logits (… class) somewhat better than guesses, and truth of which about a fifth is ignored."""
    g = generator(seed)
    truth = torch.randint(num_classes, shape, generator=g)
    outputs = torch.randn(*shape, num_classes, generator=g) + torch.nn.functional.one_hot(truth, num_classes)
    return outputs, truth.where(torch.rand(shape, generator=g) > 0.2, ignore)


def random_labels(num_tiles, num_labels=5, seed=0):
    g = generator(seed)
    truth = (torch.rand(num_tiles, num_labels, generator=g) < 0.3).long()
    return torch.randn(num_tiles, num_labels, generator=g) + 2 * truth - 1, truth


def random_values(*shape, seed=0):
    g = generator(seed)
    truth = 3 * torch.randn(shape, generator=g) + 7
    return truth + torch.randn(shape, generator=g) + 0.5, truth.where(torch.rand(shape, generator=g) > 0.2, NAN)


KINDS = {
    "classes": (lambda: ClassScores(4, ignore=-1), lambda n, seed=0: random_classes(n, 3, 5, seed=seed)),
    "labels": (lambda: LabelScores(5), lambda n, seed=0: random_labels(n, seed=seed)),
    "values": (ValueScores, lambda n, seed=0: random_values(n, 3, 5, seed=seed)),
}
kinds = pytest.mark.parametrize("kind", KINDS)


def scored(sheet, *batches):
    for batch in batches:
        sheet.update(*batch)
    return sheet.compute()


def scores_of(kind, num_tiles=12, seed=0, groups=None):
    make, data = KINDS[kind]
    return scored(make(), (*data(num_tiles, seed), groups))


def same(ours, theirs, rel=1e-12):
    """Two dictionaries of figures, or lists of them, are the same; NaN is NaN."""
    if isinstance(ours, dict):
        return ours.keys() == theirs.keys() and all(same(ours[name], theirs[name], rel) for name in ours)
    return ours == pytest.approx(theirs, rel=rel, abs=1e-12, nan_ok=True)


# --- one of several classes


def share(part, whole):
    return part / whole if whole else NAN


def mean(values):
    values = [value for value in values if not math.isnan(value)]
    return share(sum(values), len(values))


def slow_classes(outputs, truth, num_classes, ignore):
    """Figures and figures of each class, place by place."""
    pairs, bins = [], {}
    for row, wanted in zip(outputs.reshape(-1, num_classes).tolist(), truth.flatten().tolist(), strict=True):
        if wanted == ignore:
            continue
        if any(math.isnan(value) for value in row):
            pairs.append((wanted, None))
            continue
        found = row.index(max(row))
        confidence = math.exp(row[found]) / sum(math.exp(value) for value in row)
        bins.setdefault(min(int(confidence * 15), 14), []).append((confidence, found == wanted))
        pairs.append((wanted, None if found == ignore else found))
    total = len(pairs)
    per_class = {"iou": [], "f1": [], "precision": [], "recall": [], "support": []}
    chance = 0.0
    for c in range(num_classes):
        hits = sum(wanted == found == c for wanted, found in pairs)
        misses = sum(wanted == c != found for wanted, found in pairs)
        alarms = sum(wanted != c == found for wanted, found in pairs)
        per_class["iou"].append(share(hits, hits + misses + alarms))
        per_class["f1"].append(share(hits, hits + (misses + alarms) / 2))
        per_class["precision"].append(share(hits, hits + alarms))
        per_class["recall"].append(share(hits, hits + misses))
        per_class["support"].append(hits + misses)
        chance += share((hits + misses) * (hits + alarms), total**2)
    right = sum(wanted == found for wanted, found in pairs)
    given = sum(found is not None for _, found in pairs)
    weighted = [f * n for f, n in zip(per_class["f1"], per_class["support"], strict=True) if n]
    gaps = [abs(sum(c for c, _ in of_bin) - sum(r for _, r in of_bin)) for of_bin in bins.values()]
    figures = {
        "accuracy": share(right, total), "balanced_accuracy": mean(per_class["recall"]),
        "f1_macro": mean(per_class["f1"]), "f1_micro": share(2 * right, total + given),
        "f1_weighted": share(sum(weighted), total), "miou": mean(per_class["iou"]),
        "kappa": share(right / total - chance, 1 - chance) if total else NAN,
        "calibration_error": share(sum(gaps), sum(map(len, bins.values()))),
    }  # fmt: skip
    return figures, per_class


@pytest.mark.parametrize("ignore", [None, -1, 255, 2])
@pytest.mark.parametrize("shape", [(6, 4, 5), (40,)])
@pytest.mark.parametrize("num_missing", [0, 5])
def test_class_figures_equal_loops(ignore, shape, num_missing):
    outputs, truth = random_classes(*shape, num_classes=5, ignore=0 if ignore is None else ignore, seed=3)
    outputs = outputs.double()  # as the loops reckon
    outputs.view(-1, 5)[:num_missing, 1] = NAN
    ours = scored(ClassScores(5, ignore=ignore), (outputs, truth))
    figures, per_class = slow_classes(outputs, truth, 5, ignore)
    assert same(ours.figures, figures)
    assert same(ours.per_class, per_class)


def test_class_figures_equal_those_of_torchmetrics():
    from torchmetrics.functional import classification as theirs

    outputs, truth = random_classes(8, 16, 16)
    found = scored(ClassScores(4, ignore=-1), (outputs, truth)).figures
    flat, wanted = outputs.flatten(0, -2), truth.flatten()
    options = {"num_classes": 4, "ignore_index": -1}
    f1 = {
        f"f1_{kind}": theirs.multiclass_f1_score(flat, wanted, average=kind, **options)
        for kind in ("macro", "micro", "weighted")
    }
    calibration = theirs.multiclass_calibration_error(flat, wanted, n_bins=15, norm="l1", **options)
    wanted_figures = {
        **f1, "accuracy": theirs.multiclass_accuracy(flat, wanted, average="micro", **options),
        "balanced_accuracy": theirs.multiclass_accuracy(flat, wanted, average="macro", **options),
        "miou": theirs.multiclass_jaccard_index(flat, wanted, average="macro", **options),
        "kappa": theirs.multiclass_cohen_kappa(flat, wanted, **options), "calibration_error": calibration,
    }  # fmt: skip
    assert same(found, {name: float(value) for name, value in wanted_figures.items()}, rel=2e-6)


def test_class_figures_equal_those_of_scikit_learn():
    metrics = pytest.importorskip("sklearn.metrics")
    outputs, truth = random_classes(8, 16, 16, seed=1)
    ours = scored(ClassScores(4, ignore=-1), (outputs, truth))
    wanted, found = truth[truth >= 0], outputs.argmax(-1)[truth >= 0]
    assert ours.figures["miou"] == pytest.approx(metrics.jaccard_score(wanted, found, average="macro"))
    assert ours.figures["kappa"] == pytest.approx(metrics.cohen_kappa_score(wanted, found))
    assert ours.figures["balanced_accuracy"] == pytest.approx(metrics.balanced_accuracy_score(wanted, found))
    theirs = metrics.precision_recall_fscore_support(wanted, found)
    for name, values in zip(("precision", "recall", "f1", "support"), theirs, strict=True):
        assert ours.per_class[name] == pytest.approx(values.tolist()), name
    np.testing.assert_array_equal(ours.confusion[:, :4], metrics.confusion_matrix(wanted, found))


def published_miou(outputs, truth, void):
    """Mean IoU as published (spec 7, C3): the void class leaves the rows and the columns of the confusion matrix."""
    pairs = [pair for pair in zip(truth.tolist(), outputs.argmax(-1).tolist(), strict=True) if void not in pair]
    ious = []
    for c in {wanted for wanted, _ in pairs}:
        ious.append(pairs.count((c, c)) / sum(c in pair for pair in pairs))
    return sum(ious) / len(ious)


def random_logits(seed, num_tiles, side, num_classes):
    g = generator(seed)
    truth = torch.randint(num_classes, (num_tiles, side, side), generator=g)
    return torch.randn(num_tiles, num_classes, side, side, generator=g).movedim(1, -1), truth


def test_the_published_figures_of_random_logits_are_had_and_only_the_true_one_is_ours():
    # Spec 7, C3 gives 0.346 as published and 0.263 as true, without the set-up. This one, found by search, gives both:
    # three classes of which the last is void, 4 tiles of 20 x 20, seed 1, truth drawn before the logits.
    outputs, truth = random_logits(1, 4, 20, 3)
    figures, _ = slow_classes(outputs, truth, 3, 2)
    assert round(published_miou(outputs.reshape(-1, 3), truth.flatten(), 2), 3) == 0.346
    assert round(figures["miou"], 3) == 0.263
    assert scored(ClassScores(3, ignore=2), (outputs, truth)).figures["miou"] == pytest.approx(figures["miou"])


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("num_classes", [3, 6, 13])
def test_leaving_a_class_out_of_the_columns_flatters(seed, num_classes):
    outputs, truth = random_logits(seed, 2, 32, num_classes)
    ours = scored(ClassScores(num_classes, ignore=num_classes - 1), (outputs, truth)).figures["miou"]
    assert published_miou(outputs.flatten(0, -2), truth.flatten(), num_classes - 1) > ours


def test_a_labelled_pixel_that_is_predicted_as_the_ignored_class_counts():
    truth = torch.tensor([[0, 0, 1, 3, 3]])
    ours = scored(ClassScores(4, ignore=3), (torch.tensor([0.0, 0, 0, 9]).expand(1, 5, 4), truth))
    assert ours.per_class["support"] == [2, 1, 0, 0]
    assert ours.per_class["recall"][:2] == [0, 0]
    assert ours.figures["miou"] == ours.figures["accuracy"] == 0
    assert ours.confusion.sum() == 3


def test_what_is_predicted_without_a_label_changes_nothing():
    outputs, truth = random_classes(5, 4, 4)
    other = outputs.clone()
    other[truth == -1] = torch.tensor([NAN, 5, 7, -1])
    ours, theirs = scored(ClassScores(4, -1), (outputs, truth)), scored(ClassScores(4, -1), (other, truth))
    assert ours.to_dict() == theirs.to_dict()


def test_a_class_in_neither_truth_nor_predictions_is_left_out_of_means():
    outputs, truth = random_classes(6, 8)
    wide = torch.cat([outputs, torch.full((6, 8, 2), -torch.inf)], -1)
    ours, theirs = scored(ClassScores(6, -1), (wide, truth)), scored(ClassScores(4, -1), (outputs, truth))
    assert same(ours.figures, theirs.figures)
    assert math.isnan(ours.per_class["iou"][5])


def test_a_class_that_is_predicted_but_never_true_counts_as_zero():
    ours = scored(ClassScores(3), (torch.eye(3)[None, [0, 0, 1, 2]], torch.tensor([[0, 0, 1, 1]])))
    assert ours.per_class["iou"] == [1, 0.5, 0]
    assert ours.figures["miou"] == 0.5
    assert ours.figures["balanced_accuracy"] == 0.75  # recall goes over classes in truth


@pytest.mark.parametrize("num_tiles", [0, 3])
def test_figures_are_undefined_when_all_is_ignored_or_there_is_nothing(num_tiles):
    ours = scored(ClassScores(4, ignore=-1), (torch.randn(num_tiles, 2, 2, 4), torch.full((num_tiles, 2, 2), -1)))
    assert all(map(math.isnan, ours.figures.values()))
    assert (ours.num_tiles, ours.num_samples, ours.confusion.sum()) == (num_tiles, 0, 0)
    assert all(map(math.isnan, ours.interval("miou")))


@pytest.mark.parametrize("kind", ["labels", "values"])
def test_figures_are_undefined_without_a_tile(kind):
    ours = scores_of(kind, 0)
    assert all(map(math.isnan, ours.figures.values()))
    assert ours.num_tiles == ours.num_samples == 0


@pytest.mark.parametrize("error", [0, 1])
def test_certainty_is_a_confidence_too(error):
    truth = torch.tensor([0, 1, 1])
    ours = scored(ClassScores(2), (1000 * torch.eye(2)[(truth + error) % 2], truth))
    assert ours.figures["calibration_error"] == error


def test_unseen_places_lower_recall_and_accuracy_but_not_precision():
    outputs, truth = random_classes(4, 6, ignore=0)
    seen = scored(ClassScores(4), (outputs, truth))
    unseen = scored(ClassScores(4), (outputs, truth), (torch.full_like(outputs, NAN), truth))
    for name, factor in (("recall", 0.5), ("precision", 1)):
        assert unseen.per_class[name] == pytest.approx([factor * value for value in seen.per_class[name]])
    assert unseen.figures["accuracy"] == pytest.approx(seen.figures["accuracy"] / 2)
    assert unseen.figures["calibration_error"] == seen.figures["calibration_error"]
    assert unseen.confusion[:, 4].tolist() == seen.per_class["support"]


@pytest.mark.parametrize(("value", "ignore"), [(4, None), (-1, None), (255, -1), (-1, 4)])
def test_a_truth_that_is_no_class_is_refused(value, ignore):
    outputs, truth = random_classes(2, 3, ignore=0)
    truth[1, 2] = value
    sheet = ClassScores(4, ignore=ignore)
    with pytest.raises(InputError, match=rf"truth: expected classes 0 to 3, got 1 others, such as \[{value}\]"):
        sheet.update(outputs, truth)
    assert sheet.compute().num_samples == 0  # nothing stays of a batch that was refused


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int32])
def test_the_type_of_whole_numbers_does_not_matter(dtype):
    outputs, truth = random_classes(5, 4, ignore=255)
    ours = scored(ClassScores(4, ignore=255), (outputs, truth.to(dtype)))
    assert same(ours.figures, scored(ClassScores(4, ignore=255), (outputs, truth)).figures)


def test_short_types_of_logits_are_told_apart_as_they_are():
    outputs, truth = random_classes(5, 40)
    outputs = outputs.bfloat16()
    ours = scored(ClassScores(4, ignore=-1), (outputs, truth))
    assert same(ours.figures, scored(ClassScores(4, ignore=-1), (outputs.float(), truth)).figures)


@pytest.mark.parametrize("wrong", [
    (torch.zeros(2, 4, 3), torch.zeros(2, 3, dtype=torch.long)),  # channels first
    (torch.zeros(2, 3, 4), torch.zeros(2, 3)),
    (torch.zeros(2, 3, 4, dtype=torch.long), torch.zeros(2, 3, dtype=torch.long)),
    (torch.zeros(2, 3, 4), torch.zeros(2, dtype=torch.long)),
])  # fmt: skip
def test_classes_of_another_shape_or_type_are_refused(wrong):
    with pytest.raises(InputError, match=r"expected logits \(tile … class\) of 4 classes .*got torch"):
        ClassScores(4).update(*wrong)


@pytest.mark.parametrize("make", [
    lambda: ClassScores(1), lambda: LabelScores(0), lambda: LabelScores(2, 1.5)
])  # fmt: skip
def test_options_that_cannot_be_are_refused(make):
    with pytest.raises(RecordError, match=r"(num_classes|num_labels|threshold): expected"):
        make()


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


# --- batches and ranks


@kinds
def test_batches_do_not_change_the_scores(kind):
    make, data = KINDS[kind]
    outputs, truth = data(7)
    whole = scored(make(), (outputs, truth))
    parts = scored(make(), *((outputs[part], truth[part]) for part in (slice(0, 3), slice(3, 3), slice(3, 7))))
    assert same(parts.to_dict()["figures"], whole.to_dict()["figures"])
    assert parts.interval("f1_macro" if kind != "values" else "rmse") == pytest.approx(
        whole.interval("f1_macro" if kind != "values" else "rmse")
    )


@kinds
def test_reset_forgets_everything(kind):
    make, data = KINDS[kind]
    sheet = make()
    scored(sheet, (*data(9, seed=1), torch.arange(9)))
    sheet.reset()
    ours, fresh = scored(sheet, data(5)), scored(make(), data(5))
    assert ours.to_dict() == fresh.to_dict()
    assert ours.groups is None


@kinds
def test_scores_are_not_changed_by_what_comes_after(kind):
    make, data = KINDS[kind]
    sheet = make()
    first = scored(sheet, data(5))
    before = first.to_dict(), first.interval(next(iter(first.figures)))
    assert scored(sheet, data(6, seed=1)).num_tiles == 11
    sheet.reset()
    assert (first.to_dict(), first.interval(next(iter(first.figures)))) == before


@kinds
def test_sheets_work_as_lightning_uses_them(kind):
    make, data = KINDS[kind]
    sheet = make()
    with torch.inference_mode():
        sheet.update(*data(4))
    assert sheet(*data(5, seed=1)).num_tiles == 5  # of this batch alone
    again = pickle.loads(pickle.dumps(sheet))
    assert again.compute().to_dict() == sheet.clone().compute().to_dict() == sheet.compute().to_dict()
    assert again.compute().num_tiles == 9


def test_working_in_small_slices_changes_nothing(monkeypatch):
    wanted = {kind: scores_of(kind).to_dict() for kind in KINDS}
    bounds = {kind: scores_of(kind).interval(next(iter(wanted[kind]["figures"])), resamples=99) for kind in KINDS}
    monkeypatch.setattr("anysat.probing.samples._MAX_PAIRS", 50)
    assert {kind: scores_of(kind).to_dict() for kind in KINDS} == wanted
    for kind, bound in bounds.items():
        name = next(iter(wanted[kind]["figures"]))
        assert scores_of(kind).interval(name, resamples=99) == pytest.approx(bound)


RANK_TILES = {
    "uneven": ((0, 8), (8, 11)), "empty batch": ((0, 11), (11, 11)),
    "no batch": (None, (0, 11)), "no batch after another epoch": (None, (0, 11)),
}  # fmt: skip


def run_rank(rank, store, out):
    """One of two ranks: scores of every kind and way to share 11 tiles."""
    torch.distributed.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    found = {}
    for kind, (make, data) in KINDS.items():
        for name, shares in RANK_TILES.items():
            sheet = make()
            if "epoch" in name:
                sheet.update(*data(3, seed=1))
                sheet.reset()
            if shares[rank] is not None:
                part = slice(*shares[rank])
                sheet.update(*(tensor[part] for tensor in data(11)), torch.arange(11)[part] // 2)
            else:
                sheet._update_count = 1  # torchmetrics warns of a sheet without an update
            ours = sheet.compute()
            assert sum(len(rows) for rows in sheet.groups) == len(range(*(shares[rank] or (0, 0))))  # its own again
            found[f"{kind}, {name}"] = [ours.to_dict(), ours.interval(next(iter(ours.figures)), resamples=50)]
    Path(out).write_text(json.dumps(found))
    torch.distributed.destroy_process_group()


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    outs = [folder / f"{rank}.json" for rank in (0, 1)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    ranks = [
        subprocess.Popen([sys.executable, __file__, str(rank), str(folder / "store"), str(out)],
                         stderr=subprocess.PIPE, text=True, env=environment)
        for rank, out in enumerate(outs)
    ]  # fmt: skip
    try:
        told = [rank.communicate(timeout=200)[1] for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
    assert [rank.returncode for rank in ranks] == [0, 0], "\n".join(text[-3000:] for text in told)
    return [json.loads(out.read_text()) for out in outs]


@kinds
@pytest.mark.parametrize("shares", RANK_TILES)
def test_two_ranks_score_as_one_process_that_sees_all(two_ranks, kind, shares):
    whole = scores_of(kind, 11, groups=torch.arange(11) // 2)
    bounds = whole.interval(next(iter(whole.figures)), resamples=50)
    for found, found_bounds in (rank[f"{kind}, {shares}"] for rank in two_ranks):
        assert {**found, "figures": None} == {**whole.to_dict(), "figures": None}
        assert found["figures"] == pytest.approx(whole.figures, rel=1e-12)
        assert found_bounds == pytest.approx(bounds, rel=1e-12)


# --- intervals


@kinds
def test_draws_equal_scores_of_the_tiles_that_were_drawn(kind):
    make, data = KINDS[kind]
    outputs, truth = data(8)
    ours = scored(make(), (outputs, truth))
    tiles = torch.randint(8, (25, 8), generator=generator(5))
    drawn = [scored(make(), (outputs[some], truth[some])).figures for some in tiles]
    for name in ours.figures:
        bounds = np.nanquantile([figures[name] for figures in drawn], [0.1, 0.9]).tolist()
        assert ours.interval(name, 0.8, resamples=25, seed=5) == pytest.approx(bounds, rel=1e-9), name


@kinds
def test_all_intervals_at_once_are_those_one_by_one(kind):
    ours = scores_of(kind, 12)
    figures, _ = ours.intervals(0.9, resamples=60, seed=2)
    assert set(figures) == set(ours.figures)
    for name, bounds in figures.items():
        assert bounds == pytest.approx(ours.interval(name, 0.9, resamples=60, seed=2), rel=1e-12, nan_ok=True), name


@kinds
def test_intervals_of_classes_equal_scores_of_the_tiles_that_were_drawn(kind):
    make, data = KINDS[kind]
    outputs, truth = data(8)
    _, classes = scored(make(), (outputs, truth)).intervals(0.8, resamples=25, seed=5)
    tiles = torch.randint(8, (25, 8), generator=generator(5))
    drawn = [scored(make(), (outputs[some], truth[some])).per_class for some in tiles]
    assert set(classes) == set(drawn[0]) - {"support"}
    for name, bounds in classes.items():
        wanted = np.nanquantile([one[name] for one in drawn], [0.1, 0.9], axis=0)
        assert np.array(bounds) == pytest.approx(wanted.T, rel=1e-9), name


@kinds
def test_intervals_hold_the_figure(kind):
    ours = scores_of(kind, 60)
    for name, figure in ours.figures.items():
        low, high = ours.interval(name, resamples=500)
        assert low < figure < high, name


@kinds
def test_intervals_shrink_with_more_tiles(kind):
    for name in scores_of(kind).figures:
        widths = [np.ptp(scores_of(kind, num_tiles).interval(name, resamples=300)) for num_tiles in (20, 500)]
        assert widths[1] < widths[0] / 2, name


def test_intervals_hold_the_truth_as_often_as_they_say():
    held = 0
    for seed in range(200):
        right = torch.rand(80, generator=generator(seed)) < 0.7
        outputs = torch.nn.functional.one_hot((~right).long(), 2).float()
        low, high = scored(ClassScores(2), (outputs, torch.zeros(80, dtype=torch.long))).interval(
            "accuracy", 0.9, resamples=400, seed=seed
        )
        held += low <= 0.7 <= high
    assert 0.84 < held / 200 < 0.95


def test_a_higher_level_gives_a_wider_interval():
    ours = scores_of("classes")
    (low, high), (lower, higher) = ours.interval("miou", 0.8), ours.interval("miou", 0.99)
    assert lower < low < high < higher


@kinds
def test_copies_in_a_group_tell_nothing_new(kind):
    make, data = KINDS[kind]
    outputs, truth = data(10)
    once = scored(make(), (outputs, truth))
    copies = (outputs.repeat(4, *[1] * (outputs.ndim - 1)), truth.repeat(4, *[1] * (truth.ndim - 1)))
    groups = torch.arange(10).repeat(4)
    blind, grouped = scored(make(), copies), scored(make(), (*copies, groups))
    for name in once.figures:
        wanted = once.interval(name)
        assert np.ptp(blind.interval(name)) < 0.7 * np.ptp(wanted), name
        assert grouped.interval(name) == pytest.approx(wanted, rel=1e-6), name
        assert blind.interval(name, groups=[f"block {group}" for group in groups]) == grouped.interval(name), name


def test_one_tile_or_one_group_has_no_interval():
    assert all(map(math.isnan, scores_of("classes", 1).interval("miou")))
    assert all(map(math.isnan, scores_of("classes", 5, groups=torch.zeros(5, dtype=torch.long)).interval("miou")))
    assert 0 < scores_of("classes", 1).figures["miou"] < 1


def test_intervals_are_the_same_for_a_seed_and_others_for_another():
    ours, again = scores_of("classes"), scores_of("classes")
    assert ours.interval("miou", seed=3) == again.interval("miou", seed=3) != ours.interval("miou", seed=4)


def test_draws_without_the_figure_are_left_out():
    outputs, truth = torch.randn(3, 2), torch.tensor([[1, 0], [0, 0], [0, 0]])
    assert scored(LabelScores(2), (outputs, truth)).interval("map_macro")[0] > 0  # some draws have no positive


@kinds
def test_a_thing_differs_from_itself_by_nothing(kind):
    ours, again = scores_of(kind), scores_of(kind)
    assert {name: ours.difference(again, name) for name in ours.figures} == dict.fromkeys(ours.figures, (0.0, 0.0))


def test_a_paired_difference_is_surer_than_two_intervals():
    outputs, truth = random_classes(40, 6, 6)
    outputs[::2] += 2 * torch.nn.functional.one_hot(truth[::2].clamp_min(0), 4)  # every other tile is easy
    worse = outputs + torch.randn(outputs.shape, generator=generator(9))
    ours, theirs = scored(ClassScores(4, -1), (outputs, truth)), scored(ClassScores(4, -1), (worse, truth))
    low, high = ours.difference(theirs, "miou")
    assert 0 < low < ours.figures["miou"] - theirs.figures["miou"] < high
    assert theirs.difference(ours, "miou") == pytest.approx((-high, -low), rel=1e-9)
    assert high - low < 0.7 * min(np.ptp(one.interval("miou")) for one in (ours, theirs))


def test_a_difference_is_of_the_same_tiles_only():
    ours = scores_of("classes", 6)
    with pytest.raises(InputError, match="the same 6 tiles in the same order, got 5 tiles"):
        ours.difference(scores_of("classes", 5), "miou")
    for other in (scores_of("classes", 6, seed=1), scores_of("labels", 6)):
        with pytest.raises(InputError, match="same tiles in the same order, got tiles with another truth"):
            ours.difference(other, "f1_macro")


def test_questions_that_cannot_be_answered_are_refused():
    ours = scores_of("classes", 6)
    with pytest.raises(UnknownNameError, match="unknown figure 'mIoU'; closest: miou"):
        ours.interval("mIoU")
    with pytest.raises(InputError, match=r"a level between 0 and 1 and at least one draw, got \(95, 2000\)"):
        ours.interval("miou", 95)
    with pytest.raises(InputError, match="at least one draw"):
        ours.interval("miou", resamples=0)
    with pytest.raises(InputError, match="groups: expected one for each of 6 tiles"):
        ours.interval("miou", groups=[1, 2])


def test_groups_are_numbers_for_all_tiles_or_none():
    sheet, batch = ClassScores(4, ignore=-1), random_classes(3, 2)
    for groups in (torch.arange(2), torch.zeros(3)):
        with pytest.raises(InputError, match="groups: expected a whole number for each of 3 tiles"):
            sheet.update(*batch, groups)
    sheet.update(*batch, torch.arange(3))
    sheet.update(*batch)
    with pytest.raises(InputError, match="groups: expected one for every tile or for none, got none for 3 of 6"):
        sheet.compute()


def test_scores_are_plain_values_for_json():
    ours = scored(ClassScores(3), (torch.eye(3)[[0, 1]], torch.tensor([0, 0]))).to_dict()
    assert json.loads(json.dumps(ours, allow_nan=False)) == ours
    assert ours["per_class"]["iou"] == [0.5, 0, None]
    assert ours["confusion"] == [[1, 1, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]]
    assert (ours["num_tiles"], ours["num_samples"]) == (2, 2)


if __name__ == "__main__":
    run_rank(int(sys.argv[1]), sys.argv[2], sys.argv[3])
