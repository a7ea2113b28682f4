"""The contrast between two halves of a series' dates."""

from dataclasses import replace

import pytest
import torch
from torch.nn import functional

from anysat.errors import RecordError
from anysat.model.inputs import PixelInput
from anysat.pretrain.config import MaskingConfig, ObjectiveConfig
from anysat.pretrain.masking import every_other_date
from objective_builders import GOALS, generator, make_draw, make_objective, with_nothing

ONLY_DATES = {"predict_weight": 0.0, "complete_weight": 0.0, "dense_weight": 0.0, "contrast_weight": 0.0,
              "spread_weight": 0.0, "dates_weight": 1.0}  # fmt: skip
ALL_DATES = MaskingConfig(keep_dates_frac=(1.0, 1.0))


def slow_contrast(halves, temperature):
    """Of tokens (half tile patch dim): each told from those of other tiles and of the other half; mean of the terms."""
    halves = functional.normalize(halves - halves.mean((1, 2), keepdim=True), dim=-1)
    num_halves, num_tiles, num_patches, _ = halves.shape
    places = [(h, t, p) for h in range(num_halves) for t in range(num_tiles) for p in range(num_patches)]
    total = 0.0
    for half, tile, patch in places:
        alike = {(h, t, p): float(halves[half, tile, patch] @ halves[h, t, p]) / temperature for h, t, p in places}
        others = [alike[place] for place in places if place[:2] != (half, tile)]
        total += torch.tensor(others).logsumexp(0).item() - alike[1 - half, tile, patch]
    return total / len(places)


@pytest.mark.parametrize(("keys", "side_m", "patch_size_m"), [
    (("modis",), 250.0, 250.0), (("s2",), 20.0, 10.0), (("aerial", "s2", "s1-asc"), 20.0, 10.0),
])  # fmt: skip
def test_the_term_is_the_formula_with_loops_on_either_half_by_itself(keys, side_m, patch_size_m):
    objective = make_objective(masking=ALL_DATES, **ONLY_DATES)
    draw = make_draw(keys, patch_size_m, side_m=side_m, dates=5)
    found = objective(draw, generator())
    assert set(found) == {"loss", "dates"}
    inputs, grid = objective.student.prepare(draw.batch, patch_size_m)
    terms = []
    for key in keys:
        if (pixels := inputs[key]).days is not None:
            halves = [
                PixelInput(pixels.values[:, at], pixels.days[:, at], None if pixels.valid is None else pixels.valid[:, at])
                for at in ([0, 2, 4], [1, 3])
            ]  # fmt: skip
            tokens = [objective.student.see({key: half}, grid.patch_size_m)[key].patch.flatten(1, 2) for half in halves]
            terms.append(slow_contrast(torch.stack(tokens).detach(), objective.config.temperature))
    assert found["dates"].item() == pytest.approx(sum(terms) / len(terms), abs=1e-4)


def test_every_date_is_in_one_of_the_halves_in_its_order():
    pixels = PixelInput(
        torch.arange(10.0).view(2, 5, 1, 1, 1), torch.arange(10.0).view(2, 5), torch.ones(2, 5, 1, 1, 1) > 0
    )
    halves = [every_other_date(pixels, start) for start in (0, 1)]
    assert [half.days.tolist() for half in halves] == [[[0, 2, 4], [5, 7, 9]], [[1, 3], [6, 8]]]
    assert all(torch.equal(half.values.flatten(1), half.days) for half in halves)
    assert all(half.valid.shape == half.values.shape for half in halves)


@pytest.mark.parametrize("goal", GOALS)
def test_a_sensor_alone_is_asked_what_the_contrast_across_sensors_cannot_ask(goal):
    """A MODIS pixel by itself: nothing is contrasted across modalities, so that only dates give a gradient."""
    draw = make_draw(("modis",), 250.0, side_m=250.0, batch=3, dates=6)
    across = make_objective(goal, ALL_DATES, **{**ONLY_DATES, "dates_weight": 0.0, "contrast_weight": 1.0})
    found = across(draw, generator())
    found["loss"].backward()
    assert found["contrast"].item() == 0.0
    assert not any(p.grad.abs().max() > 0 for p in across.parameters() if p.grad is not None)
    over_dates = make_objective(goal, ALL_DATES, **ONLY_DATES)
    over_dates(draw, generator())["loss"].backward()
    touched = [p.grad for p in over_dates.student.projectors["modis"].parameters() if p.grad is not None]
    assert any(grad.abs().max() > 0 for grad in touched)


def test_images_and_series_of_one_date_have_no_halves():
    objective = make_objective(masking=ALL_DATES, **ONLY_DATES)
    for draw in (make_draw(("aerial",), 10.0, side_m=20.0), make_draw(("s2",), 10.0, side_m=20.0, dates=1)):
        found = objective(draw, generator())
        found["loss"].backward()
        assert found["dates"].item() == 0.0


def test_what_saw_nothing_in_one_half_is_left_out_and_poisons_nothing():
    draw = make_draw(("s2", "s1"), 20.0, batch=3, dates=4)
    seen = draw.batch.observations["s2"]
    valid = seen.valid.clone()
    valid[1, ::2] = False  # a tile whose first half is hidden
    hidden = replace(
        draw, batch=replace(draw.batch, observations={**draw.batch.observations, "s2": replace(seen, valid=valid)})
    )
    empty = replace(hidden, batch=with_nothing(hidden.batch, 0, "s1"))
    objective = make_objective(masking=ALL_DATES, **ONLY_DATES)
    found = objective(empty, generator())
    found["loss"].backward()
    assert torch.isfinite(found["loss"])
    assert all(torch.isfinite(p.grad).all() for p in objective.parameters() if p.grad is not None)
    poisoned = seen.values.clone()
    poisoned[1, ::2] = float("nan")
    other = replace(empty.batch.observations["s2"], values=poisoned)
    again = replace(empty, batch=replace(empty.batch, observations={**empty.batch.observations, "s2": other}))
    assert objective(again, generator())["loss"].item() == found["loss"].item()


def test_other_terms_are_the_same_beside_it():
    draw = make_draw(("s2", "s1"), 20.0, dates=4)
    alone, beside = (make_objective(dates_weight=weight)(draw, generator()) for weight in (0.0, 1.0))
    assert "dates" not in alone
    assert {name: part.item() for name, part in beside.items() if name not in ("loss", "dates")} == {
        name: part.item() for name, part in alone.items() if name != "loss"
    }
    assert beside["loss"].item() == pytest.approx(alone["loss"].item() + beside["dates"].item(), abs=1e-5)


def test_a_weight_below_0_is_refused():
    with pytest.raises(RecordError, match="dates_weight"):
        ObjectiveConfig(dates_weight=-1.0)
