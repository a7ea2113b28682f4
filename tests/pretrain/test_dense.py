"""What sub-patch tokens are asked: to tell their own pixels, those of dates that the student misses included."""

import math

import pytest
import torch

from anysat.modalities import MODALITIES, RELEASED
from anysat.pretrain.config import MaskingConfig
from anysat.pretrain.goals import describe, num_numbers
from anysat.pretrain.losses import known_loss
from anysat.pretrain.masking import draw_masks, drop_dates
from objective_builders import GOALS, drawn, generator, make_draw, make_objective

ONLY_DENSE = {"predict_weight": 0.0, "complete_weight": 0.0, "contrast_weight": 0.0, "spread_weight": 0.0}


def slow_numbers(series, valid, days, harmonics):
    """Of one pixel and band: mean, harmonics cosine first, deviation, over the valid dates."""
    seen = [(value, day) for value, ok, day in zip(series, valid, days, strict=True) if ok]
    if not seen:
        return [0.0] * (2 + 2 * harmonics)
    turns = [2 * math.pi * turn / 365.25 for turn in range(1, 1 + harmonics)]
    waves = [lambda _: 1.0]
    waves += [lambda day, turn=turn, wave=wave: wave(turn * day) for wave in (math.cos, math.sin) for turn in turns]
    means = [sum(value * wave(day) for value, day in seen) / len(seen) for wave in waves]
    return [*means, (sum((value - means[0]) ** 2 for value, _ in seen) / len(seen)) ** 0.5]


@pytest.mark.parametrize("harmonics", [1, 2, 6])
def test_a_series_is_told_by_mean_harmonics_and_deviation_over_its_valid_dates(harmonics):
    values, days = drawn(4, 3, 5, 2), torch.tensor([[3.0, 60, 150, 200, 333], [10, 20, 30, 40, 50]])
    valid = torch.rand(values.shape, generator=generator()) > 0.4
    valid[0, 0, :, 1] = False
    numbers, known = describe(values, valid, days, harmonics)
    count = 2 + 2 * harmonics
    for patch in range(4):
        for sub in range(3):
            for band in range(2):
                one = (values[patch, sub, :, band], valid[patch, sub, :, band], days[patch // 2])
                wanted = slow_numbers(*(part.tolist() for part in one), harmonics)
                part = slice(count * band, count * (band + 1))
                assert numbers[patch, sub, part].tolist() == pytest.approx(wanted, abs=1e-5)
                assert known[patch, sub, part].tolist() == [bool(valid[patch, sub, :, band].any())] * count


def test_an_image_is_told_by_all_its_pixels():
    values = drawn(2, 3, 8)
    valid = torch.rand(values.shape, generator=generator()) > 0.3
    numbers, known = describe(values, valid, None, 2)
    assert torch.equal(numbers, values * valid)
    assert torch.equal(known, valid)


@pytest.mark.parametrize("harmonics", [2, 5])
@pytest.mark.parametrize("key", [modality.key for modality in RELEASED])
def test_as_many_numbers_as_announced(key, harmonics):
    modality = MODALITIES[key]
    bands, side = len(modality.bands), modality.subpatch_px
    values = drawn(1, 2, 3, bands) if modality.is_temporal else drawn(1, 2, bands * side * side)
    days = torch.tensor([[1.0, 100, 200]]) if modality.is_temporal else None
    assert describe(values, None, days, harmonics)[0].shape[-1] == num_numbers(modality, harmonics)


def test_the_loss_is_1_for_who_tells_the_mean_and_0_for_who_tells_all():
    wanted, known = 7 + 3 * drawn(50, 4), torch.rand(50, 4, generator=generator()) > 0.3
    assert known_loss(torch.zeros(50, 4), wanted, known).item() == pytest.approx(1.0, abs=1e-4)
    scaled = torch.empty(50, 4)
    for number in range(4):
        seen = wanted[known[:, number], number]
        scaled[:, number] = (wanted[:, number] - seen.mean()) / seen.std(correction=0)
    assert known_loss(scaled, wanted, known).item() == pytest.approx(0.0, abs=1e-6)
    unknown = torch.where(known, wanted, 1e6)
    assert known_loss(scaled, unknown, known).item() == pytest.approx(0.0, abs=1e-6)
    assert known_loss(scaled, wanted, torch.zeros_like(known)).item() == 0.0


@pytest.mark.parametrize("goal", GOALS)
def test_the_student_is_asked_for_the_dates_it_misses(goal):
    """Its tokens are of some dates, what they are to tell of all."""
    objective, draw = make_objective(goal, **ONLY_DENSE, harmonics=3), make_draw(("s2", "aerial"), 20.0)
    parts = objective(draw, generator())
    inputs, grid = objective.student.prepare(draw.batch, draw.patch_size_m)
    random = generator()
    draw_masks(grid.num_rows, grid.num_cols, len(draw.batch), objective.masking, random)
    terms = []
    for key, pixels in inputs.items():
        thinned = drop_dates(pixels, objective.masking.keep_dates_frac, random)
        if pixels.days is not None:
            assert thinned.days.shape[1] < pixels.days.shape[1]
        sub = objective.student.see({key: thinned}, 20.0, (key,))[key].sub
        told = objective.dense_heads[key](sub)
        pixels_of = objective.student.projectors[key].cut(pixels.values, round(sub.shape[3] ** 0.5))
        wanted, known = describe(pixels_of, None, pixels.days, 3)
        terms.append(known_loss(told.flatten(0, 3), wanted.flatten(0, 1), known.flatten(0, 1)))
    assert set(parts) == {"loss", "dense"}
    assert parts["dense"].item() == pytest.approx(torch.stack(terms).mean().item(), rel=1e-4)


def test_sub_patches_that_nobody_saw_are_not_asked():
    objective, draw = make_objective("projection", **ONLY_DENSE), make_draw(("s2", "s1"), 20.0)
    observation = draw.batch.observations["s2"]
    observation.valid[:, :, :, :2, :2] = False
    observation.values[:, :, :, :2, :2] = 1e6
    assert objective(draw, generator())["dense"].item() < 10


def test_without_weight_there_are_no_heads_and_no_tokens_are_kept():
    objective, draw = make_objective("teacher", dense_weight=0.0), make_draw(("s2", "s1"), 20.0)
    assert "dense" not in objective(draw, generator())
    assert not len(objective.dense_heads)
    inputs, grid = objective.student.prepare(draw.batch, draw.patch_size_m)
    assert all(part.sub is None for part in objective.see(inputs, grid).values())


def test_pixels_can_be_read_from_tokens_after_a_few_steps():
    """Of one batch, all dates shown, a small encoder learns to tell most of what its pixels hold."""
    draw = make_draw(("s2",), 20.0, batch=4)
    objective = make_objective("projection", MaskingConfig(keep_dates_frac=(1.0, 1.0)), **ONLY_DENSE)
    first = objective(draw, generator())["dense"].item()
    optimiser = torch.optim.Adam(objective.parameters(), lr=3e-3)
    for _ in range(150):
        optimiser.zero_grad()
        objective(draw, generator())["loss"].backward()
        optimiser.step()
    assert objective(draw, generator())["dense"].item() < 0.5 < 0.9 < first
