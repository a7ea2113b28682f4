"""Intervals of metrics and paired differences: against slow loops, how wide they are, groups of tiles."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from anysat.errors import InputError, UnknownNameError
from anysat.tasks.metrics import ClassScores, LabelScores
from metric_builders import KINDS, generator, kinds, random_classes, scored, scores_of


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


@pytest.mark.parametrize("kind", ["classes", "values"])
def test_tiles_without_a_label_change_no_interval(kind):
    make, data = KINDS[kind]
    outputs, truth = data(8)
    nothing = torch.full_like(truth[:1].expand(30, *truth.shape[1:]), -1 if kind == "classes" else math.nan)
    all_outputs, all_truth = (
        torch.cat([outputs[:1].expand(30, *outputs.shape[1:]), outputs]),
        torch.cat([nothing, truth]),
    )
    groups = torch.arange(38) // 4  # the block of tiles 28 to 31 has both kinds
    few, many = scored(make(), (outputs, truth)), scored(make(), (all_outputs, all_truth))
    assert (many.num_groups, many.num_tiles) == (8, 38)
    blocks, all_blocks = replace(few, groups=groups[30:]), replace(many, groups=groups)
    assert all_blocks.num_groups == blocks.num_groups == 3
    for name in few.figures:
        assert many.interval(name) == pytest.approx(few.interval(name), rel=1e-9), name
        assert all_blocks.interval(name) == pytest.approx(blocks.interval(name), rel=1e-9), name
        assert many.difference(many, name) == (0.0, 0.0)


def test_one_labelled_tile_among_many_has_no_interval():
    outputs, truth = torch.randn(50, 2), torch.full((50,), -1)
    truth[7] = 1
    found = scored(ClassScores(2, ignore=-1), (outputs, truth))
    assert found.num_groups == 1
    assert all(map(math.isnan, found.interval("accuracy")))


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
