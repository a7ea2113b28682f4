"""Series that grow: what later dates need is kept, and gives what all dates at once give."""

from dataclasses import replace

import numpy as np
import pytest
import torch

import anysat
from anysat.errors import UnknownNameError
from anysat.modalities import MODALITIES, RELEASED
from anysat.model.growth import Sums, find_kind, grow, num_bytes
from anysat.model.influence import date_influence
from anysat.model.inputs import PixelInput, read_published
from builders import random_input, random_model

SERIES = [modality.key for modality in RELEASED if modality.is_temporal and not modality.covers_tile]


@pytest.fixture(scope="module")
def model():
    return random_model().eval()


def pixels_of(model, key, times, seed=0, share=0.8):
    """A tile of 3 x 2 patches of two sub-patches a side, some values and dates of which are not valid."""
    side = 2 * MODALITIES[key].gsd_m
    x = random_input((key,), 3 * side, width_m=2 * side, batch=1, times=times, seed=seed)
    pixels = read_published(x, model.config)[key]
    draw = torch.Generator().manual_seed(seed)
    valid = torch.rand(pixels.values.shape, generator=draw) < share
    valid[:, :, :, 0, 0] = False
    valid[:, 0, :, :2] = False
    return pixels._replace(valid=valid, values=pixels.values.masked_fill(~valid, float("nan"))), side


def some_dates(pixels, which):
    return PixelInput(pixels.values[:, which], pixels.days[:, which], pixels.valid[:, which])


def close(found, wanted):
    for name in ("patch", "sub"):
        one, other = getattr(found, name), getattr(wanted, name)
        flags = getattr(wanted, f"{name}_valid")
        torch.testing.assert_close(one[flags], other[flags], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(getattr(found, f"{name}_valid"), flags)


@pytest.mark.parametrize("keep", ["series", "features"])
@pytest.mark.parametrize("key", SERIES)
def test_dates_that_join_give_what_all_dates_at_once_give(model, key, keep):
    pixels, patch_m = pixels_of(model, key, times=9)
    projector, modality = model.projectors[key], model.config.modality(key)
    with torch.inference_mode():
        wanted = model.see({modality.key: pixels}, patch_m, (modality.key,))[modality.key]
        kept = None
        for which in ([6, 7, 1], [3], [0, 8, 2, 4, 5]):
            found, kept = grow(
                projector, model.spatial, model.config, modality, kept, some_dates(pixels, which), patch_m,
                kind=find_kind(projector, keep), keep_sub=True, chunk_rows=7,
            )  # fmt: skip
    close(found, wanted)
    assert kept.days.tolist() == pixels.days[0, [6, 7, 1, 3, 0, 8, 2, 4, 5]].tolist()
    assert sum(part.nbytes for part in kept.parts.values()) == num_bytes(projector, keep, 9) * 24


def test_dates_join_in_float32_whatever_is_around(model):
    x = read_published(random_input(("s1-asc",), 20, batch=1), model.config)["s1-asc"]
    modality, projector = model.config.modality("s1-asc"), model.projectors["s1-asc"]

    with torch.inference_mode():
        for keep in ("series", "features"):
            kind = find_kind(projector, keep)
            with torch.autocast("cpu", torch.bfloat16):
                _, kept = grow(projector, model.spatial, model.config, modality, None, x, 10, kind=kind)
            assert all(part.dtype == torch.float32 for part in kept.parts.values() if part.is_floating_point())


def test_sums_do_not_grow_with_dates(model):
    assert isinstance(find_kind(model.projectors["s1"], "series"), Sums)
    assert num_bytes(model.projectors["s1"], "series", 3) == num_bytes(model.projectors["s1"], "series", 300)
    assert not isinstance(find_kind(model.projectors["s2"], "series"), Sums)


@pytest.mark.parametrize("scale", [1.0, 1e3])
def test_a_date_that_outweighs_all_others_may_come_first_or_last(model, scale):
    """Sums are kept beside the largest logit, so that no weight runs over."""
    pixels, patch_m = pixels_of(model, "s1", times=4, seed=3)
    pixels = pixels._replace(values=pixels.values * scale)
    projector, modality = model.projectors["s1"], model.config.modality("s1")
    with torch.inference_mode():
        wanted = model.see({modality.key: pixels}, patch_m, (modality.key,))[modality.key]
        for order in ([0, 1, 2, 3], [3, 2, 1, 0]):
            kept = None
            for which in order:
                found, kept = grow(
                    projector, model.spatial, model.config, modality, kept, some_dates(pixels, [which]), patch_m,
                    kind=Sums(), keep_sub=True,
                )  # fmt: skip
            close(found, wanted)


def tile_of(seed, keys=("s2", "s1"), times=4):
    rng = np.random.default_rng(seed)
    observations = {}
    for key in keys:
        modality = MODALITIES[key]
        values = rng.normal(size=(times, len(modality.bands), 6, 4)).astype(np.float32)
        values[rng.random((times, 1, 6, 4)).repeat(len(modality.bands), 1) < 0.2] = np.nan
        values[1, :, :2, :2] = np.nan
        days = np.datetime64("2020-01-01") + np.sort(rng.choice(300, times, replace=False))
        units = [band.unit for band in modality.bands]
        observations[key] = anysat.Observation.of(
            modality, values, bands=list(modality.band_names), units=units, dates=days
        )
    return anysat.Tile(observations=observations)


@pytest.mark.parametrize("key", ["s2", "s1"])
def test_a_dates_influence_is_how_far_embeddings_turn_without_it(key):
    model, tile = random_model().eval(), tile_of(0)
    model.normaliser = anysat.Normaliser.from_batch(anysat.Batch.of([tile]))
    found = date_influence(model, tile, 20, key)
    with torch.inference_mode():
        whole = model.encode(anysat.Batch.of([tile]), 20).patch[0]
        for date in range(4):
            seen = tile.observations[key]
            valid = np.array(seen.valid)
            valid[date] = False
            without = replace(tile, observations=dict(tile.observations) | {key: replace(seen, valid=valid)})
            turned = model.encode(anysat.Batch.of([without]), 20).patch[0]
            wanted = 1 - torch.cosine_similarity(whole, turned, dim=-1)
            torch.testing.assert_close(found[date], wanted, atol=2e-6, rtol=1e-3)
    assert float(found.max()) > 1e-4


def test_a_place_that_one_date_alone_saw_has_no_influence_to_tell():
    model, tile = random_model().eval(), tile_of(1, keys=("s1",), times=2)
    seen = tile.observations["s1"]
    valid = np.ones_like(seen.valid)
    valid[0, :, :2, :2] = False
    tile = replace(tile, observations={"s1": replace(seen, valid=valid, values=np.nan_to_num(seen.values))})
    model.normaliser = anysat.Normaliser.from_batch(anysat.Batch.of([tile]))
    found = date_influence(model, tile, 20, "s1")
    assert bool(found[1, 0, 0].isnan())
    assert float(found[0, 0, 0]) > 0  # which did not see it, but the patches beside it
    assert int(found.isnan().sum()) == 1
    with pytest.raises(UnknownNameError, match="s2"):
        date_influence(model, tile, 20, "s2")
