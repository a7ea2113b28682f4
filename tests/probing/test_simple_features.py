"""Features without a network: a pixel's series on the calendar, against loops."""

from datetime import date, timedelta

import numpy as np
import pytest

from anysat.batch import Tile
from anysat.modalities import MODALITIES
from anysat.observation import Observation
from anysat.tasks.simple import CALENDAR_DAYS, SIMPLE, months, series

KEY = "s1"
BANDS = len(MODALITIES[KEY].bands)


def tile_of(days, values, valid=None, year=2021):
    """One tile of a radar series; days of the year count from 0."""
    dates = np.datetime64(f"{year}-01-01") + np.asarray(days)
    return Tile.of(Observation.of(MODALITIES[KEY], values.astype(np.float32), dates=dates, valid=valid))


def slowly(days, values, valid):
    """The value at a day of the calendar, by the valid dates on either side of it."""
    known = sorted((day, value) for day, value, is_valid in zip(days, values, valid, strict=True) if is_valid)
    found = []
    for day in CALENDAR_DAYS:
        before, after = [p for p in known if p[0] <= day], [p for p in known if p[0] > day]
        if not known:
            found.append(np.nan)
        elif not before or not after:
            found.append((before or after)[-1 if before else 0][1])
        else:
            (first, low), (second, high) = before[-1], after[0]
            found.append(low + (high - low) * (day - first) / (second - first))
    return found


def test_a_series_on_the_calendar_equals_a_loop_over_its_valid_dates():
    rng = np.random.default_rng(0)
    days = np.array([3, 17, 18, 90, 91, 150, 233, 364])
    values, valid = rng.normal(size=(8, BANDS, 3, 2)), rng.random((8, BANDS, 3, 2)) > 0.4
    valid[:, 0, 0, 0] = False
    found = series(tile_of(days, values, valid))[KEY].reshape(len(CALENDAR_DAYS), BANDS, 3, 2)
    for band, row, col in np.ndindex(BANDS, 3, 2):
        place = (slice(None), band, row, col)
        wanted = slowly(days, values.astype(np.float32).astype(float)[place], valid[place])
        assert found[place] == pytest.approx(wanted, rel=1e-6, nan_ok=True)
    assert np.isnan(found[:, 0, 0, 0]).all()


def test_samples_with_other_dates_have_features_of_the_same_days():
    slope = lambda days: np.broadcast_to(np.asarray(days, float)[:, None, None, None], (len(days), BANDS, 2, 2))  # noqa: E731
    some, others = [0, 100, 364], [0, 1, 40, 200, 300, 364]
    first, second = (
        series(tile_of(days, slope(days), year=year))[KEY] for days, year in ((some, 2019), (others, 2021))
    )
    assert first == pytest.approx(second, rel=1e-5)
    assert first.reshape(len(CALENDAR_DAYS), -1)[:, 0] == pytest.approx(np.minimum(CALENDAR_DAYS, 364), rel=1e-5)


def test_a_series_tells_what_happens_within_a_month():
    days = np.arange(0, 365, 5)
    first, second = (np.zeros((len(days), BANDS, 1, 1)) for _ in range(2))
    first[1], second[5] = 1.0, 1.0  # the 6th and the 26th of January
    tiles = [tile_of(days, values) for values in (first, second)]
    assert date(2021, 1, 1) + timedelta(days=25) < date(2021, 2, 1)
    assert (months(tiles[0])[KEY] == months(tiles[1])[KEY]).all()
    assert (series(tiles[0])[KEY] != series(tiles[1])[KEY]).any()


def test_an_image_has_its_values_in_every_feature_set_of_series():
    image = np.random.default_rng(1).random((4, 6, 6)).astype(np.float32)
    tile = Tile.of(Observation.of(MODALITIES["aerial"], image))
    assert all((make(tile)["aerial"] == image).all() for make in SIMPLE.values())
