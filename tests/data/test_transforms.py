"""Augmentations: the ground moves as one, dates are dropped as one, nothing of the input changes."""

import itertools

import numpy as np
import pytest

from anysat.batch import Batch, Tile
from anysat.data.transforms import Augmentation, augment, crop, turn
from anysat.data.world import World
from anysat.errors import InputError, RecordError
from anysat.modalities import MODALITIES
from anysat.observation import Observation

DATES = np.datetime64("2020-01-01") + 10 * np.arange(6)


def numbered(keys=("aerial", "s2", "spot", "modis"), rows=6, cols=6, cell_m=10.0):
    """A tile in which every modality and target shows the number of each ground cell."""
    cells = 1.0 + np.arange(rows * cols).reshape(rows, cols)
    observations = []
    for key in keys:
        modality = MODALITIES[key]
        ground = np.ones((1, 1)) if modality.covers_tile else magnified(cells, round(cell_m / modality.gsd_m))
        shape = ((len(DATES),) if modality.is_temporal else ()) + (len(modality.bands), *ground.shape)
        dates = DATES if modality.is_temporal else None
        observations.append(Observation.of(modality, np.broadcast_to(ground, shape), dates=dates))
    targets = {
        "cover": cells.astype(np.int64),
        "height": magnified(cells, 5).astype(np.float32),
        "genera": np.eye(3)[0],
    }
    return Tile.of(*observations, targets=targets)


def magnified(cells, factor):
    return np.kron(cells, np.ones((factor, factor)))


def cells_seen(tile):
    """The ground cells (row col) as each modality and raster target shows them."""
    shown = {key: o.values for key, o in tile.observations.items() if not o.modality.covers_tile}
    shown |= {name: target for name, target in tile.targets.items() if np.ndim(target) == 2}
    found = {}
    for name, array in shown.items():
        factor = {"aerial": 50, "spot": 10, "height": 5}.get(name, 1)
        coarse = array[..., ::factor, ::factor]
        np.testing.assert_array_equal(np.kron(coarse, np.ones((factor, factor))), array)
        assert (coarse == coarse.reshape(-1, *coarse.shape[-2:])[0]).all()
        found[name] = coarse.reshape(-1, *coarse.shape[-2:])[0]
    return found


def rng(seed=0):
    return np.random.default_rng(seed)


@pytest.mark.parametrize("crop_m", [None, 40, 10])
@pytest.mark.parametrize("rows", [6, 4])
def test_what_lies_on_one_place_stays_on_one_place(crop_m, rows):
    tile = numbered(rows=rows)
    for seed in range(20):
        moved = augment(tile, Augmentation(turns_and_flips=True, crop_m=crop_m), rng(seed))
        seen = list(cells_seen(moved).values())
        assert len(seen) == 5
        for other in seen[1:]:
            np.testing.assert_array_equal(other, seen[0])


def test_the_eight_placements_of_a_square_are_distinct_and_all_drawn():
    tile = numbered(("s2",))
    made = {turn(tile, k, is_mirrored=m).targets["cover"].tobytes() for k, m in itertools.product(range(4), (0, 1))}
    drawn = {augment(tile, Augmentation(turns_and_flips=True), rng(s)).targets["cover"].tobytes() for s in range(100)}
    assert len(made) == 8
    assert drawn == made


def test_placements_are_closed_and_have_inverses():
    tile = numbered(("s2",), rows=2, cols=2)
    pairs = list(itertools.product(range(4), (False, True)))
    made = {turn(tile, k, is_mirrored=m).targets["cover"].tobytes() for k, m in pairs}
    start = tile.targets["cover"].tobytes()
    for k, m in pairs:
        once = turn(tile, k, is_mirrored=m)
        twice = {turn(once, a, is_mirrored=b).targets["cover"].tobytes() for a, b in pairs}
        assert twice == made
        assert start in twice
        undone = turn(once, k, is_mirrored=True) if m else turn(once, -k)
        assert undone.targets["cover"].tobytes() == start


def test_a_tile_that_is_no_square_keeps_its_shape_in_four_placements():
    tile = numbered(("s2", "spot"), rows=4)
    drawn = [augment(tile, Augmentation(turns_and_flips=True), rng(seed)) for seed in range(60)]
    assert {seen.observations["s2"].shape_px for seen in drawn} == {(4, 6)}
    assert len({seen.targets["cover"].tobytes() for seen in drawn}) == 4
    with pytest.raises(InputError, match="half turns, because the tile is not square, got 40 x 60 m"):
        turn(tile, 1)


def test_a_crop_is_a_slice_of_everything():
    tile = numbered()
    part = crop(tile, 10, 20, 30)
    aerial, s2 = tile.observations["aerial"], tile.observations["s2"]
    np.testing.assert_array_equal(part.observations["aerial"].values, aerial.values[:, 50:200, 100:250])
    np.testing.assert_array_equal(part.observations["s2"].values, s2.values[..., 1:4, 2:5])
    np.testing.assert_array_equal(part.observations["s2"].valid, s2.valid[..., 1:4, 2:5])
    np.testing.assert_array_equal(part.targets["height"], tile.targets["height"][5:20, 10:25])
    assert part.targets["genera"] is tile.targets["genera"]
    assert part.observations["modis"] is tile.observations["modis"]


def test_crops_fall_on_every_place_where_all_pixels_meet():
    tile = numbered()
    corners = {augment(tile, Augmentation(crop_m=40), rng(s)).targets["cover"][0, 0] for s in range(200)}
    assert corners == {1, 2, 3, 7, 8, 9, 13, 14, 15}


def test_crops_of_30_m_sensors_begin_at_their_pixels():
    tile = Tile.of(
        *(Observation.of(MODALITIES[key], np.broadcast_to(magnified(np.arange(1.0, 17).reshape(4, 4), factor),
                                                          (6, bands, 4 * factor, 4 * factor)), dates=DATES)
          for key, bands, factor in (("l7", 6, 1), ("s2", 10, 3)))
    )  # fmt: skip
    for seed in range(20):
        part = augment(tile, Augmentation(crop_m=60, turns_and_flips=True), rng(seed))
        np.testing.assert_array_equal(
            part.observations["s2"].values[0, 0], magnified(part.observations["l7"].values[0, 0], 3)
        )
    with pytest.raises(InputError, match="multiples of 30 m, so that no pixel is cut, got 40 m"):
        augment(tile, Augmentation(crop_m=40), rng())


def test_crops_that_do_not_fit_are_refused():
    with pytest.raises(InputError, match="a square inside 40 x 60 m, got 50 m at 0, 0 m"):
        crop(numbered(rows=4), 0, 0, 50)
    with pytest.raises(InputError, match="a square inside 60 x 60 m"):
        crop(numbered(), 40, 0, 30)
    modis = Observation.of(MODALITIES["modis"], np.ones((1, 7, 2, 2)), dates=["2020-01-01"])
    wide = Tile.of(modis, numbered(("s2",)).observations["s2"])
    with pytest.raises(InputError, match=r"modis: expected one pixel .* got \(2, 2\)"):
        augment(wide, Augmentation(crop_m=30), rng())
    odd = Tile.of(numbered(("s2",)).observations["s2"], targets={"cover": np.zeros((7, 7))})
    with pytest.raises(InputError, match="target 'cover': expected pixels of whole centimetres"):
        augment(odd, Augmentation(crop_m=30), rng())


def test_context_alone_is_the_ground_itself():
    modis = Observation.of(MODALITIES["modis"], np.arange(28.0).reshape(1, 7, 2, 2), dates=["2020-01-01"])
    part = crop(Tile.of(modis), 250, 0, 250)
    np.testing.assert_array_equal(part.observations["modis"].values, modis.values[..., 1:, :1])


def test_the_georeference_is_cut_with_the_ground_and_dropped_when_turned():
    place = World(0).tile(0, extent_m=60.0)
    tile = Tile.of(numbered(("s2", "spot")).observations["s2"], geobox=place.geobox(0.2))
    cut = crop(tile, 10, 20, 30).geobox
    whole = tile.geobox
    assert cut.shape == (150, 150)
    assert cut == whole[50:200, 100:250]
    assert turn(tile, 2).geobox is None
    assert turn(tile, 0).geobox is whole
    coarse = Tile.of(tile.observations["s2"], geobox=place.geobox(20.0))
    assert crop(coarse, 10, 0, 40).geobox.shape == (2, 2)
    assert crop(coarse, 10, 0, 30).geobox is None


@pytest.mark.parametrize(
    ("options", "kept"),
    [({"max_dates": 4}, 4), ({"keep_dates_frac": 0.5}, 3), ({"keep_dates_frac": 0.01}, 1), ({"max_dates": 9}, 6),
     ({"keep_dates_frac": 0.5, "max_dates": 2}, 2), ({"keep_dates_frac": 0.5, "keep_dates_frac_of": {"s2": 0.9}}, 5),
     ({"max_dates": 1, "max_dates_of": {"s2": 2}}, 2)],
)  # fmt: skip
def test_dates_are_dropped_alike_for_values_valid_and_dates_and_stay_in_order(options, kept):
    values = np.broadcast_to(np.arange(6.0)[:, None, None, None], (6, 10, 2, 2))
    valid = np.random.default_rng(1).random((6, 10, 2, 2)) > 0.2
    tile = Tile.of(Observation.of(MODALITIES["s2"], values, dates=DATES, valid=valid))
    choices = set()
    for seed in range(30):
        seen = augment(tile, Augmentation(**options), rng(seed)).observations["s2"]
        steps = np.searchsorted(DATES, seen.dates)
        assert len(steps) == kept
        assert (np.diff(steps) > 0).all()
        np.testing.assert_array_equal(seen.valid, valid[steps])
        np.testing.assert_array_equal(seen.values, np.where(valid, values, 0)[steps])
        choices.add(tuple(steps))
    assert (len(choices) > 1) == (kept < 6)


def test_one_date_with_a_valid_value_always_stays():
    tile = Tile.of(Observation.of(MODALITIES["s2"], np.ones((6, 10, 2, 2)), dates=DATES, valid=np.arange(6) == 4))
    for seed in range(30):
        seen = augment(tile, Augmentation(max_dates=2), rng(seed)).observations["s2"]
        assert seen.valid.any()
        assert len(set(seen.dates.tolist())) == 2


EVERYTHING = Augmentation(turns_and_flips=True, crop_m=40, keep_dates_frac=0.5, max_dates_of={"s2": 2})


def equal(one, other):
    return all(
        np.array_equal(getattr(o, field), getattr(other.observations[key], field))
        for key, o in one.observations.items()
        for field in ("values", "valid", "dates")
    ) and all(np.array_equal(one.targets[name], other.targets[name]) for name in one.targets)


def test_the_same_generator_state_gives_the_same_tile():
    tile = numbered()
    assert equal(augment(tile, EVERYTHING, rng(5)), augment(tile, EVERYTHING, rng(5)))
    assert not equal(augment(tile, EVERYTHING, rng(5)), augment(tile, EVERYTHING, rng(6)))


def test_nothing_of_the_tile_that_came_in_changes():
    tile, same = numbered(), numbered()
    for seed in range(5):
        augment(tile, EVERYTHING, rng(seed))
    assert equal(tile, same)


def test_no_augmentation_changes_nothing():
    tile = numbered()
    assert equal(augment(tile, Augmentation(), rng()), tile)


def test_changed_tiles_stack_into_a_batch():
    tile = numbered(("aerial", "s2"))
    batch = Batch.of([augment(tile, EVERYTHING, rng(seed)) for seed in range(8)])
    assert batch.observations["aerial"].values.shape == (8, 4, 200, 200)
    alone = augment(tile, EVERYTHING, rng(3)).observations["aerial"].values
    np.testing.assert_array_equal(batch.observations["aerial"].values[3].numpy(), alone)


@pytest.mark.parametrize(
    ("options", "message"),
    [({"max_dates": 0}, "max_dates: expected a number of dates, at least one"),
     ({"max_dates_of": {"s2": 0}}, "max_dates s2"), ({"keep_dates_frac": 0.0}, "keep_dates_frac: expected a share"),
     ({"keep_dates_frac_of": {"s1": 1.5}}, "keep_dates_frac s1"), ({"crop_m": -1}, "crop_m: expected a positive")],
)  # fmt: skip
def test_impossible_augmentations_are_refused(options, message):
    with pytest.raises(RecordError, match=message):
        Augmentation(**options)
