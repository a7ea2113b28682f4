"""Tasks: losses, answers and shares against slow loops; what has no label or was not seen counts nowhere."""

import math

import pytest
import torch

from anysat.data.base import Target
from anysat.errors import InputError, RecordError, UnknownNameError
from anysat.tasks.base import make_task, options_of
from anysat.tasks.classification import Classification, MultiLabel, inverse_frequency
from anysat.tasks.regression import Regression
from anysat.workflows.supervised.parts import fitted_task

NAN = math.nan
CROPS = Target(name="crops", level="pixel", kind="class", classes=("wheat", "maize", "beet"), ignore=9, gsd_m=10.0)
KIND = Target(name="kind", level="tile", kind="class", classes=("a", "b", "c"), ignore=-1)
GENERA = Target(name="genera", level="tile", kind="labels", classes=("Abies", "Acer", "Alnus"))
MASS = Target(name="mass", level="pixel", kind="value", gsd_m=10.0, unit="t/ha", limits=(0.0, 50.0))


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def some_crops(num_outputs=3, seed=0):
    """Outputs (2 3 4 output), NaN at some places, and truth of which some is ignored."""
    g = torch.Generator().manual_seed(seed)
    truth = torch.randint(3, (2, 3, 4), generator=g)
    truth = truth.where(torch.rand(truth.shape, generator=g) > 0.3, 9)
    unseen = torch.rand(truth.shape, generator=g) < 0.3
    return normal(2, 3, 4, num_outputs, seed=seed + 1).masked_fill(unseen[..., None], NAN), truth


def some_mass(seed=0):
    g = torch.Generator().manual_seed(seed)
    truth = 20 + 10 * normal(2, 3, 4, seed=seed)
    truth = truth.where(torch.rand(truth.shape, generator=g) > 0.3, NAN)
    unseen = torch.rand(truth.shape, generator=g) < 0.3
    return normal(2, 3, 4, 1, seed=seed + 1).masked_fill(unseen[..., None], NAN), truth


def labelled_and_seen(outputs, truth):
    """Outputs and truth, place by place."""
    for place in torch.cartesian_prod(*(torch.arange(length) for length in truth.shape)).reshape(-1, truth.ndim):
        place = tuple(place.tolist())
        if not (truth[place] == 9 or truth[place].isnan() or outputs[place].isnan().any()):
            yield outputs[place].tolist(), truth[place].item()


def log_share(outputs, index):
    return outputs[index] - math.log(sum(math.exp(o) for o in outputs))


# --- classes


@pytest.mark.parametrize("weights", [None, (1.0, 0.2, 3.0)])
@pytest.mark.parametrize("void", [False, True])
def test_loss_of_classes_is_the_weighted_mean_over_what_has_a_label_and_was_seen(weights, void):
    outputs, truth = some_crops(3 + void)
    total = weight = 0.0
    for found, wanted in labelled_and_seen(outputs, truth):
        share = 1.0 if weights is None else weights[wanted]
        total, weight = total - share * log_share(found, wanted), weight + share
    task = Classification(target=CROPS, class_weights=weights, void_output=void)
    assert float(task.loss(outputs, truth)) == pytest.approx(total / weight, rel=1e-5)


def test_label_smoothing_spreads_over_the_classes_and_never_over_the_void_output():
    outputs = normal(1, 4).requires_grad_()
    Classification(target=KIND, void_output=True, label_smoothing=0.3).loss(outputs, torch.tensor([0])).backward()
    hard = normal(1, 4).requires_grad_()
    Classification(target=KIND, void_output=True).loss(hard, torch.tensor([0])).backward()
    assert float(hard.grad[0, 3]) > 0, "pushed down"
    assert float(outputs.grad[0, 3]) / float(hard.grad[0, 3]) == pytest.approx(1 - 0.3 / 4), "by all that is wanted"


def test_ignored_and_unseen_places_take_no_gradient():
    outputs, truth = some_crops()
    outputs.requires_grad_()
    Classification(target=CROPS).loss(outputs, truth).backward()
    assert torch.equal(outputs.grad.abs().sum(-1) > 0, (truth != 9) & ~outputs.isnan().any(-1))


MODES = {
    "classes": (Classification(target=CROPS), some_crops()[0], torch.full((2, 3, 4), 9)),
    "values": (Regression(target=MASS), some_mass()[0], torch.full((2, 3, 4), NAN)),
    "weightless": (Classification(target=KIND, class_weights=(0.0, 1.0, 1.0)), normal(2, 3), torch.zeros(2)),
    "tiles": (Classification(target=KIND), normal(2, 3), torch.tensor([-1, -1])),
}


@pytest.mark.parametrize("name", MODES)
def test_a_batch_without_anything_to_learn_has_a_loss_of_0_and_a_gradient_of_0(name):
    task, outputs, truth = MODES[name]
    outputs = outputs.clone().requires_grad_()
    loss = task.loss(outputs, truth)
    loss.backward()
    assert loss.item() == 0
    assert torch.equal(outputs.grad, torch.zeros_like(outputs))


@pytest.mark.parametrize("task", [Classification(target=CROPS), Regression(target=MASS)], ids=["classes", "values"])
def test_a_model_of_which_no_output_is_a_number_has_no_loss_of_0(task):
    """It has diverged: the encoder refuses a batch nobody saw anything of."""
    outputs = torch.full((2, 3, 4, task.num_outputs), NAN)
    assert task.loss(outputs, torch.ones(2, 3, 4)).isnan()


@pytest.mark.parametrize("strange", [3, -1, 255])
def test_a_label_that_is_no_class_is_refused_naming_target_and_number(strange):
    truth = torch.tensor([[[0, 1, strange, 9]]])
    with pytest.raises(
        InputError, match=f"'crops'.*classes 0 to 2, got also .{strange}.*without a label are marked by 9"
    ):
        Classification(target=CROPS).loss(normal(1, 1, 4, 3), truth)


def test_the_void_output_is_no_answer_and_has_no_probability():
    task = Classification(target=CROPS, void_output=True)
    outputs = torch.tensor([[[[1.0, 3.0, 2.0, 50.0]]]])
    assert task.num_outputs == 4
    assert task.answer(outputs).tolist() == [[[1]]]
    torch.testing.assert_close(task.probabilities(outputs), outputs[..., :3].softmax(-1))
    sheet = task.metric()
    task.score(sheet, outputs, torch.tensor([[[1]]]))
    assert sheet.compute().figures["accuracy"] == 1


def test_places_nobody_saw_get_no_class_and_are_scored_as_mistakes():
    outputs, truth = torch.tensor([[[[5.0, 0, 0], [NAN] * 3, [NAN] * 3]]]), torch.tensor([[[0, 0, 9]]])
    task = Classification(target=CROPS)
    assert task.answer(outputs).tolist() == [[[0, -1, -1]]]
    sheet = task.metric()
    task.score(sheet, outputs, truth)
    assert sheet.compute().figures["accuracy"] == 0.5


def test_right_is_the_share_of_a_tiles_labelled_pixels_that_are_answered_rightly():
    outputs, truth = some_crops(seed=4)
    truth = torch.cat([truth, torch.full((1, 3, 4), 9)])
    outputs = torch.cat([outputs, normal(1, 3, 4, 3)])
    found = Classification(target=CROPS).right(outputs, truth).tolist()
    for tile in range(2):
        right = count = 0
        for output, wanted in zip(outputs[tile].reshape(-1, 3).tolist(), truth[tile].flatten().tolist(), strict=True):
            count += wanted != 9
            right += wanted != 9 and output.index(max(output)) == wanted
        assert found[tile] == pytest.approx(right / count)
    assert math.isnan(found[2])


def test_right_of_tiles_is_1_or_0_and_nan_without_a_label():
    found = Classification(target=KIND).right(torch.eye(3), torch.tensor([0, 2, -1]))
    assert found[:2].tolist() == [1, 0]
    assert found[2].isnan()


@pytest.mark.parametrize("weights", [(1.0, 2.0), (1.0, -1.0, 1.0), (1.0, NAN, 1.0)])
@pytest.mark.parametrize("kind", [(Classification, KIND), (MultiLabel, GENERA)], ids=["class", "labels"])
def test_class_weights_that_cannot_be_are_refused(kind, weights):
    with pytest.raises(RecordError, match="class_weights: expected 3 numbers from 0"):
        kind[0](target=kind[1], class_weights=weights)


def test_inverse_frequency_makes_all_classes_weigh_the_same():
    counts = torch.tensor([60, 30, 0, 10])
    weights = inverse_frequency(counts)
    assert weights[2] == 0
    assert [count * weights[n] for n, count in enumerate(counts.tolist())] == pytest.approx(
        [100 / 3, 100 / 3, 0, 100 / 3]
    )
    assert inverse_frequency(torch.zeros(3, dtype=torch.long)) == (0, 0, 0)


# --- labels


@pytest.mark.parametrize("weights", [None, (1.0, 0.2, 3.0)])
def test_loss_of_labels_is_the_mean_over_tiles_and_labels_with_positives_weighted(weights):
    outputs, truth = normal(4, 3), torch.tensor([[0, 1, 1], [1, 0, 0], [0, 0, 1], [1, 1, 1]])
    total = 0.0
    for tile in range(4):
        for label in range(3):
            share = 1 / (1 + math.exp(-float(outputs[tile, label])))
            positive = (1.0 if weights is None else weights[label]) * math.log(share)
            total -= positive if truth[tile, label] else math.log(1 - share)
    task = MultiLabel(target=GENERA, class_weights=weights)
    assert float(task.loss(outputs, truth)) == pytest.approx(total / 12, rel=1e-5)
    assert float(task.loss(torch.cat([outputs, torch.full((1, 3), NAN)]), truth[[0, 1, 2, 3, 3]])) == pytest.approx(
        total / 12, rel=1e-5
    )


def test_labels_are_given_above_the_threshold():
    task = MultiLabel(target=GENERA, threshold=0.7)
    outputs = torch.tensor([[0.5, 0.9, -2.0]])  # probabilities 0.62, 0.71, 0.12
    assert task.answer(outputs).tolist() == [[0, 1, 0]]
    torch.testing.assert_close(task.probabilities(outputs)[0, 0], torch.tensor(1 / (1 + math.exp(-0.5))))
    assert task.right(outputs, torch.tensor([[0, 1, 1]])).tolist() == pytest.approx([2 / 3])


def test_a_label_that_is_neither_0_nor_1_is_refused_in_training():
    with pytest.raises(InputError, match="'genera': expected labels 0 and 1, got also .255"):
        MultiLabel(target=GENERA).loss(normal(1, 3), torch.tensor([[0, 1, 255]]))


@pytest.mark.parametrize("threshold", [0.0, 1.0, NAN])
def test_a_threshold_outside_of_probabilities_is_refused(threshold):
    with pytest.raises(RecordError, match="threshold"):
        MultiLabel(target=GENERA, threshold=threshold)


# --- values


@pytest.mark.parametrize("distance", ["l2", "smooth_l1"])
def test_loss_of_values_is_in_units_of_the_deviation_and_leaves_out_nan(distance):
    outputs, truth = some_mass()
    apart = [abs(found[0] - (wanted - 20) / 5) for found, wanted in labelled_and_seen(outputs, truth)]
    wanted = [d**2 if distance == "l2" else (d**2 / 2 if d < 1 else d - 0.5) for d in apart]
    task = Regression(target=MASS, mean=20.0, deviation=5.0, distance=distance)
    assert float(task.loss(outputs, truth)) == pytest.approx(sum(wanted) / len(wanted), rel=1e-5)


def test_the_number_of_what_has_no_value_is_left_out_of_loss_and_share():
    target = Target(name="mass", level="tile", kind="value", ignore=-9)
    task, outputs = Regression(target=target), torch.tensor([[1.0], [500.0]])
    assert float(task.loss(outputs, torch.tensor([3, -9]))) == 4
    assert task.right(outputs, torch.tensor([3, -9])).nan_to_num(nan=7).tolist() == [-2, 7]


def test_answers_are_in_the_targets_unit_and_within_its_limits():
    task = Regression(target=MASS, mean=20.0, deviation=5.0)
    found = task.answer(torch.tensor([[[[0.5], [100.0], [-100.0], [NAN]]]]))
    assert found[0, 0, :3].tolist() == [22.5, 50, 0]
    assert found[0, 0, 3].isnan()
    assert task.probabilities(normal(1, 1)) is None


def test_values_nobody_saw_are_scored_as_if_the_mean_had_been_said():
    task = Regression(target=MASS, mean=20.0, deviation=5.0)
    outputs, truth = torch.tensor([[[[0.0], [NAN], [NAN]]]]), torch.tensor([[[20.0, 26.0, NAN]]])
    sheet = task.metric()
    task.score(sheet, outputs, truth)
    assert sheet.compute().figures["mae"] == pytest.approx(3)
    assert task.right(outputs, truth).tolist() == [-3]


def test_right_of_values_is_the_negative_mean_distance_of_each_tile():
    outputs, truth = some_mass(seed=3)
    outputs = outputs.nan_to_num(nan=0.3)
    task = Regression(target=MASS, mean=20.0, deviation=5.0)
    found = task.right(outputs, torch.cat([truth[:1], torch.full((1, 3, 4), NAN)])).tolist()
    apart = [abs(min(max(5 * o[0] + 20, 0), 50) - t) for o, t in labelled_and_seen(outputs[:1], truth[:1])]
    assert found[0] == pytest.approx(-sum(apart) / len(apart), rel=1e-5)
    assert math.isnan(found[1])


@pytest.mark.parametrize("options", [{"deviation": 0.0}, {"deviation": NAN}, {"distance": "l1"}])
def test_options_of_values_that_cannot_be_are_refused(options):
    with pytest.raises(RecordError, match=next(iter(options))):
        Regression(target=MASS, **options)


# --- all kinds


@pytest.mark.parametrize("task", [
    Classification(target=CROPS, class_weights=(1.0, 0.5, 2.0), label_smoothing=0.1, void_output=True),
    Classification(target=KIND), MultiLabel(target=GENERA, class_weights=(1.0, 3.0, 2.0), threshold=0.4),
    Regression(target=MASS, mean=0.1 + 0.2, deviation=1 / 3, distance="smooth_l1"),
], ids=lambda task: f"{type(task).__name__}-{task.target.name}")  # fmt: skip
def test_a_task_survives_plain_values(task):
    assert make_task(task.target, options_of(task)) == task


def test_the_score_that_chooses_is_one_the_sheet_has():
    for target in (CROPS, KIND, GENERA, MASS):
        task = make_task(target)
        truth = {"labels": torch.eye(3).long(), "value": torch.ones(3, 1, 1)}.get(target.kind, torch.arange(3))
        truth = truth.reshape(3, 1, 1) if target is CROPS else truth
        sheet = task.metric()
        task.score(sheet, normal(*truth.shape, task.num_outputs) if target is not GENERA else normal(3, 3), truth)
        assert task.primary in sheet.compute().figures
        assert task.highest_is_best == (target is not MASS)


def test_an_option_a_task_does_not_have_is_refused_naming_close_ones():
    with pytest.raises(UnknownNameError, match="option of Classification 'class_weight'; closest: class_weights"):
        make_task(KIND, {"class_weight": None})


def test_balanced_classes_weigh_alike_whatever_their_number():
    target = Target(
        name="cover", level="pixel", kind="class", classes=("rare", "common", "never"), ignore=9, gsd_m=10.0
    )
    truth = torch.tensor([[0, 1, 1, 1], [1, 1, 1, 9]])
    weights = torch.tensor(fitted_task(target, truth, balanced=True).class_weights)
    assert weights[0] / weights[1] == pytest.approx(6.0)
    labels = Target(name="genera", level="tile", kind="labels", classes=("oak", "never"))
    found = fitted_task(labels, torch.tensor([[1, 0], [0, 0], [0, 0], [0, 0]]), balanced=True).class_weights
    assert found == pytest.approx((3.0, 1.0))


@pytest.mark.parametrize(("answers", "wanted"), [([1, 1, 1], 1.0), ([1, 0, 1], 0.0)])
def test_kappa_of_one_class_is_one_where_all_is_right_so_that_a_perfect_head_can_be_chosen(answers, wanted):
    target = Target(name="kind", level="tile", kind="class", classes=("a", "b"))
    task = make_task(target, {"monitor": "kappa"})
    sheet = task.metric()
    task.score(sheet, torch.eye(2)[answers], torch.ones(3, dtype=torch.long))
    assert sheet.compute().figures["kappa"] == wanted
