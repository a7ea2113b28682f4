"""One rule from pixel to map: what is invalid takes no part, and what nobody saw is NaN."""

import copy
import dataclasses
from unittest import mock

import numpy as np
import pytest
import torch

from anysat.batch import Batch, Tile
from anysat.dates import day_numbers
from anysat.errors import EmptyTileError
from anysat.modalities import MODALITIES
from anysat.normalise import Normaliser
from anysat.observation import Observation
from builders import random_input, random_model

CLOSE = {"atol": 2e-6, "rtol": 1e-5}


def with_mask(x, key, valid):
    return {**x, f"{key}_mask": valid}


def all_valid(x, key):
    return torch.ones(x[key].shape, dtype=torch.bool)


@pytest.mark.parametrize("key", ["s2", "s1"])
def test_adding_padded_dates_changes_nothing(nano, key):
    x = random_input((key,), times=3)
    padded = {
        key: torch.cat([x[key], torch.full_like(x[key], 7.0)], 1),
        f"{key}_dates": torch.cat([x[f"{key}_dates"], torch.zeros(2, 3)], 1),
        f"{key}_mask": torch.tensor([[1, 1, 1, 0, 0, 0]] * 2),
    }
    assert torch.allclose(nano(x, 20, "dense"), nano(padded, 20, "dense"), **CLOSE)


def test_a_date_masked_at_one_pixel_is_as_if_it_had_never_been_taken_there(nano):
    x = random_input(("s2",), times=4)
    valid = all_valid(x, "s2")
    valid[:, 2, :, 1, 4] = False
    without = {"s2": x["s2"][:, [0, 1, 3]], "s2_dates": x["s2_dates"][:, [0, 1, 3]]}
    cell = nano(with_mask(x, "s2", valid), 20, "dense")[:, 1, 4, 128:]
    # the pixel's own token before the spatial transformer equals that of the shorter series
    projector = nano.projectors["s2"]
    masked, _ = projector(projector.cut(x["s2"], 6), projector.date_code(x["s2_dates"]), projector.cut(valid, 6))
    short, _ = projector(projector.cut(without["s2"], 6), projector.date_code(without["s2_dates"]), None)
    assert torch.allclose(masked[:, 6 + 4], short[:, 6 + 4], **CLOSE)
    assert cell.isfinite().all()


@pytest.mark.parametrize("learns", [False, True])
def test_dates_that_are_not_there_are_not_computed(nano, learns):
    x = random_input(("s2",), times=4)
    projector, counted = copy.deepcopy(nano.projectors["s2"]).requires_grad_(learns), []
    projector.pixel_mlp[0].register_forward_hook(lambda _, args, __: counted.append(len(args[0])))
    pixels, when = projector.cut(x["s2"], 6), projector.date_code(x["s2_dates"])
    valid = torch.zeros_like(pixels, dtype=torch.bool)
    valid[:, :, 1:3] = torch.rand(valid[:, :, 1:3].shape) > 0.3
    with torch.set_grad_enabled(learns):
        found, present = projector(pixels, when, valid)
        there = int(valid.any(-1).sum())
        assert (counted, there < 0.6 * valid[..., 0].numel()) == ([there], True)
        with mock.patch("anysat.model.projectors._worth_taking", return_value=None):
            wanted, same = projector(pixels, when, valid)
    assert torch.equal(present, same)
    assert torch.allclose(found[present], wanted[present], **CLOSE)
    if learns:
        weights = list(projector.parameters())
        mine, theirs = (torch.autograd.grad(tokens[present].square().sum(), weights) for tokens in (found, wanted))
        assert all(torch.allclose(one, other, atol=1e-5, rtol=1e-4) for one, other in zip(mine, theirs, strict=True))


def test_whole_series_and_those_without_any_date_are_computed_as_they_are(nano):
    x = random_input(("s2",), times=4)
    projector = nano.projectors["s2"]
    pixels, when = projector.cut(x["s2"], 6), projector.date_code(x["s2_dates"])
    for valid in (torch.ones_like(pixels, dtype=torch.bool), torch.zeros_like(pixels, dtype=torch.bool)):
        tokens, present = projector(pixels, when, valid)
        assert bool(present.all()) == bool(valid.all())
        assert tokens.isfinite().all()


def test_values_under_the_mask_do_not_matter(nano):
    x = random_input(("aerial", "s2", "s1"))
    x["s2_mask"] = torch.rand(2, 3, 1, 6, 6) > 0.4
    x["aerial_mask"] = torch.rand(2, 1, 300, 300) > 0.4
    changed = {
        **x,
        "s2": x["s2"].masked_fill(~x["s2_mask"], 1e4),
        "aerial": x["aerial"].masked_fill(~x["aerial_mask"], -9),
    }
    assert torch.allclose(nano(x, 20, "dense", "s2"), nano(changed, 20, "dense", "s2"), equal_nan=True, **CLOSE)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_a_value_that_is_not_finite_equals_a_masked_one_and_never_spreads(nano, bad):
    x = random_input(("s2", "s1"))
    valid = all_valid(x, "s2")
    valid[0, 1, 3, 2, 2] = False
    valid[1, 2] = False
    poisoned = {**x, "s2": x["s2"].masked_fill(~valid, bad)}
    expected = nano(with_mask(x, "s2", valid), 20, "all")
    assert expected.isfinite().all()
    assert torch.equal(nano(poisoned, 20, "all"), expected)


def test_an_all_missing_modality_equals_an_absent_one(nano):
    x = random_input(("s2", "s1", "modis", "l8"), side_m=120)
    for key in ("s1", "modis"):
        absent = {name: value for name, value in x.items() if name.removesuffix("_dates") != key}
        missing = with_mask(x, key, torch.zeros(2, 3))
        assert torch.allclose(nano(missing, 30, "all"), nano(absent, 30, "all"), **CLOSE)


def test_a_modality_missing_in_one_tile_leaves_that_tile_as_if_it_were_absent(nano):
    x = random_input(("s2", "s1"))
    missing = nano(with_mask(x, "s1", torch.tensor([[1, 1, 1], [0, 0, 0]])), 20, "all")
    assert torch.allclose(missing[0], nano(x, 20, "all")[0], **CLOSE)
    alone = {key: value for key, value in x.items() if "s1" not in key}
    assert torch.allclose(missing[1], nano(alone, 20, "all")[1], **CLOSE)


def test_an_invalid_subpatch_of_an_image_leaves_the_attention_and_a_partly_valid_one_stays(nano):
    x = random_input(("spot",), side_m=20, batch=1)
    valid = torch.ones(1, 1, 20, 20, dtype=torch.bool)
    valid[..., :10, :10] = False
    found = nano(with_mask(x, "spot", valid), 20, "dense")
    assert found[0, 0, 0].isnan().all()
    assert found[0, 1].isfinite().all()
    valid[..., 0, 0] = True
    assert nano(with_mask(x, "spot", valid), 20, "dense").isfinite().all()


def test_a_patch_nobody_saw_is_nan_and_its_neighbours_are_as_if_it_were_not_there(nano):
    x = random_input(("s2", "s1"))
    valid = torch.ones(2, 1, 1, 6, 6, dtype=torch.bool)
    valid[0, ..., :2, 2:4] = False
    both = with_mask(with_mask(x, "s2", valid), "s1", valid)
    patch = nano(both, 20, "patch")
    assert patch[0, 0, 1].isnan().all()
    assert patch.isnan().any(-1).sum() == 1
    one = nano(with_mask(x, "s2", valid), 20, "patch")
    assert one.isfinite().all()  # s1 still sees it


def test_a_missing_band_is_filled_and_the_others_still_count(nano):
    x = random_input(("s2",))
    valid = all_valid(x, "s2")
    valid[:, :, 7] = False
    found = nano(with_mask(x, "s2", valid), 20, "all")
    brighter = {**x, "s2": x["s2"] + 1}
    assert found.isfinite().all()
    assert (nano(with_mask(brighter, "s2", valid), 20, "all") - found).abs().max() > 1e-3


def test_masks_of_every_shape_that_broadcasts_say_the_same(nano):
    x = random_input(("s2",))
    dates = torch.tensor([[1, 0, 1], [1, 1, 0]])
    shapes = [dates, dates.bool()[..., None, None, None], dates[:, :, None, None, None].expand(2, 3, 10, 6, 6)]
    first, *others = (nano(with_mask(x, "s2", mask), 20, "all") for mask in shapes)
    assert all(torch.equal(first, other) for other in others)


def test_faithful_fills_masked_values_and_keeps_them_in_the_attention(nano):
    x = random_input(("s2",))
    mask = torch.tensor([[1, 0, 1], [1, 1, 1]])
    filled = {**x, "s2": torch.where(mask.bool()[..., None, None, None], x["s2"], nano.projectors["s2"].fill)}
    assert torch.allclose(nano(with_mask(x, "s2", mask), 20, "all", faithful=True), nano(filled, 20, "all"), **CLOSE)
    assert not torch.allclose(nano(with_mask(x, "s2", mask), 20, "all"), nano(filled, 20, "all"), **CLOSE)


@pytest.mark.parametrize("kept", ["s2", "modis"])
def test_faithful_keeps_a_modality_that_is_masked_as_a_whole_filled(kept, nano):
    x = random_input((kept, "s1"), side_m=500)
    masked = with_mask(x, "s1", torch.zeros(2, 3))
    filled = {**x, "s1": torch.zeros_like(x["s1"]) + nano.projectors["s1"].fill}
    for output in ("all", "tile"):
        found = nano(masked, 250, output, faithful=True)
        assert torch.allclose(found, nano(filled, 250, output), **CLOSE)
        assert not torch.allclose(found, nano({key: x[key] for key in (kept, f"{kept}_dates")}, 250, output), **CLOSE)
    with pytest.raises(EmptyTileError):
        nano(with_mask(masked, kept, torch.zeros(2, 3)), 250, faithful=True)


def test_a_patch_of_modis_alone_that_saw_nothing_is_nan(nano):
    x = random_input(("modis",), side_m=500)
    valid = torch.ones(2, 3, 1, 2, 2, dtype=torch.bool)
    valid[1, ..., 0, 1] = False
    patch = nano(with_mask(x, "modis", valid), 250, "patch")
    assert patch.isnan().all(-1).nonzero().tolist() == [[1, 0, 1]]


def series(key, values, dates, **options):
    return Observation.of(MODALITIES[key], values, dates=dates, **options)


def test_encode_counts_absent_modalities_and_names_empty_tiles():
    model = random_model()
    generator = np.random.default_rng(0)
    s2 = generator.normal(2000, 500, (3, 10, 6, 6))
    days = ["2020-01-05", "2020-04-01", "2020-08-01"]
    empty = series("s1", np.full((1, 2, 6, 6), np.nan), ["2020-01-01"])
    full = series("s1", generator.normal(-10, 2, (1, 2, 6, 6)), ["2020-01-01"])
    tiles = [
        Tile(id="a", observations={"s2": series("s2", s2, days), "s1": empty}),
        Tile(id="b", observations={"s2": series("s2", s2[:2], days[:2]), "s1": full}),
    ]
    model.normaliser = Normaliser.from_batch(Batch.of(tiles))
    found = model.encode(Batch.of(tiles), 20, dense="s2")
    assert found.absent == {"s1": 1}
    assert found.valid.all()
    assert found.dense.shape == (2, 6, 6, 256)
    assert {name: getattr(found, name).ndim for name in found.AXES} == {n: len(axes) for n, axes in found.AXES.items()}
    nothing = Tile(id="c", observations={"s2": series("s2", np.full((1, 10, 6, 6), np.nan), ["2020-01-05"])})
    with pytest.raises(EmptyTileError, match="of tile c: everything is nodata"):
        model.encode(Batch.of([tiles[0], nothing]), 20)


def test_encode_equals_the_published_call_on_standardised_values():
    model = random_model()
    generator = np.random.default_rng(1)
    values = generator.normal(2000, 500, (2, 10, 6, 6))
    batch = Batch.of([Tile(observations={"s2": series("s2", values, ["2020-01-01", "2020-12-31"])})])
    model.normaliser = Normaliser.from_batch(batch)
    statistics = model.normaliser.statistics["data"]["s2"]
    mean, std = (torch.tensor(part).view(-1, 1, 1) for part in (statistics.mean, statistics.std))
    x = {"s2": ((torch.from_numpy(values).float() - mean) / std)[None], "s2_dates": torch.tensor([[1, 366]])}
    assert torch.allclose(model.encode(batch, 20).patch, model(x, 20, "patch"), atol=1e-5)


def test_encode_without_statistics_computes_them_and_says_so():
    model = random_model()
    tile = Tile(observations={"s2": series("s2", np.random.default_rng(0).normal(size=(1, 10, 6, 6)), ["2020-01-01"])})
    with pytest.warns(UserWarning, match="no statistics were given"):
        model.encode(Batch.of([tile]), 20)


def test_context_alone_marks_no_patch_of_a_tile_that_nobody_else_saw(nano):
    x = random_input(("s2", "modis"), side_m=120)
    x["s2"][:] = float("nan")
    x["modis"][:, :, 2] = float("nan")
    patch = nano(x, 30, "patch")
    assert patch.shape == (2, 4, 4, 128)
    assert patch.isnan().all()
    assert torch.allclose(nano(x, 30, "tile"), nano(with_mask(x, "s2", torch.zeros(2, 3)), 30, "tile"), **CLOSE)
    assert nano(x, 30, "tile").isfinite().all()


def test_gradients_stay_finite_where_pixels_patches_and_modalities_are_missing():
    model = random_model().train().requires_grad_(True)
    x = random_input(("s2", "aerial", "s1"))
    x["s2"][0, :, :, :2, :2] = float("nan")
    x["aerial"][0, :, :100, :100] = float("nan")
    x["s1"][:] = float("nan")
    found = model(x, 20, "all")
    found[found.isfinite()].square().sum().backward()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


@pytest.mark.parametrize("shape", [(2, 3, 6, 6), (6, 6), (3,), (2, 3, 10, 6)])
def test_a_mask_that_lacks_an_axis_is_refused(nano, shape):
    with pytest.raises(ValueError, match="s2_mask: expected shape"):
        nano(with_mask(random_input(("s2",)), "s2", torch.ones(shape)), 20, "tile")


def test_a_record_that_the_model_was_not_made_with_is_refused_by_field():
    s2 = dataclasses.replace(MODALITIES["s2"], normalises_over_dates=False)
    tile = Tile.of(Observation.of(s2, np.ones((1, 10, 6, 6)), dates=["2020-01-01"]))
    with pytest.raises(ValueError, match="modality 's2', normalises_over_dates: expected True, as in the model"):
        random_model(dim=64).encode(Batch.of([tile]), 20)
    with pytest.raises(ValueError, match=r"a Batch, such as Batch.of\(\[tile\]\), got Tile"):
        random_model(dim=64).encode(tile, 20)


@pytest.mark.parametrize("convention", ["day_of_year", "days_since 2018-09-01"])
def test_faithful_batches_are_padded_with_day_0_as_the_published_ones(convention):
    model = random_model(day_convention=convention).eval()
    tiles = []
    for number, count in enumerate((2, 5)):
        values = np.random.default_rng(number).normal(size=(count, 10, 6, 6))
        days = np.datetime64("2019-03-01") + 31 * np.arange(count)
        tiles.append(Tile.of(Observation.of(MODALITIES["s2"], values, dates=days), id=str(number), dataset="d"))
    batch = Batch.of(tiles)
    model.normaliser = Normaliser.from_batch(batch)
    values = model.normaliser.standardise(batch)["s2"]
    days = np.zeros((2, 5), np.float32)
    for row, tile in zip(days, tiles, strict=True):
        seen = day_numbers(tile.observations["s2"].dates, convention)
        row[: len(seen)] = seen
    x = {"s2": values, "s2_dates": torch.from_numpy(days), "s2_mask": batch.observations["s2"].valid}
    found, wanted = model.encode(batch, 20, faithful=True).patch, model(x, 20, faithful=True)
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-5)
