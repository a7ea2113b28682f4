"""Values that cannot fit the statistics are told once, with their likely cause; real scenes are not."""

import warnings
from dataclasses import replace

import numpy as np
import pytest

import anysat
from anysat.batch import Batch, Tile
from anysat.errors import MisfitWarning
from anysat.misfit import LOOKS
from anysat.modalities import MODALITIES as M
from anysat.normalise import BandStatistics, Normaliser
from anysat.observation import Observation


def statistics(**by_key):
    """Of one dataset; each modality's mean and deviation by unit."""
    table = {}
    for key, figures in by_key.items():
        modality = M[key.replace("_", "-")]
        mean, std = zip(*(figures.get(unit, (1.0, 1.0)) for unit in modality.units), strict=True)
        table[modality.key] = BandStatistics(bands=modality.band_names, mean=mean, std=std, units=modality.units)
    return Normaliser(statistics={"made": table})


def tile(key, around, spread, *, units=None, dataset=None):
    """All bands around one number, or around each its own."""
    modality = M[key]
    shape = ((2,) if modality.is_temporal else ()) + (len(modality.bands), 12, 12)
    noise = np.random.default_rng(0).normal(size=shape) * spread
    dates = ["2020-06-01", "2020-07-01"] if modality.is_temporal else None
    around = np.reshape(around, (-1, 1, 1))
    return Tile.of(Observation.of(modality, around + noise, units=units, dates=dates), dataset=dataset)


S2 = {"s2": {"reflectance_1e4": (1500, 700)}}
LOW = {"s2": {"reflectance_1e4": (800, 400)}}
S1 = {"s1_asc": {"dB": (-12, 3)}}
L8 = {"l8": {"reflectance_1e4": (1500, 700), "K": (287, 8.7)}}


def told(normaliser, *tiles):
    """What is warned of as tiles are standardised."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for one in tiles:
            normaliser.standardise(Batch.of([normaliser.in_units(one)[0]]))
    return [str(one.message) for one in caught if one.category is MisfitWarning]


def test_raw_numbers_of_landsat_are_told_with_band_median_statistics_distance_and_cause():
    around = [9000] * 9 + [22675, 21000]
    (said,) = told(statistics(**L8), tile("l8", around, 300))
    assert "B10: median 22," in said
    assert "K, statistics 287 ± 8.7 K, 2,5" in said
    assert "deviations away" in said
    assert "stored numbers of a Landsat Level-1 product" in said
    assert "`--units [l8=UNIT]`" in said
    assert "`--statistics`" in said
    assert "B8: median" in said  # far away, too, which alone would be no sign


@pytest.mark.parametrize(
    ("figures", "given", "cause"),
    [
        (S2, tile("s2", 0.15, 0.07), "they look like reflectance: give that unit"),
        (S2, tile("s2", 0.8, 0.1), "they look like reflectance: give that unit"),  # snow or clouds
        (LOW, tile("s2", 0.5, 0.2), "they look like reflectance: give that unit"),
        (S2, tile("s2", 1500, 700, units="reflectance"), "they look like reflectance_1e4: give that unit"),
        (S1, tile("s1-asc", 0.08, 0.01), "`--units [s1-asc=linear]`"),
        (S1, tile("s1-asc", -12, 2, units="linear"), "no value in dB"),
        (L8, tile("l8", [1500] * 9 + [14, 14], 2), "degrees Celsius"),
        (L8, tile("l8", [1500] * 9 + [40000, 40000], 2), "Landsat Collection 2 Level-2"),
        ({"aerial": {"DN": (90, 27)}}, tile("aerial", 0.4, 0.1), "values from 0 to 1"),
        (S2, tile("s2", 0.1, 1), "standardised already"),
    ],
)
def test_the_unit_that_fits_is_named(figures, given, cause):
    (said,) = told(statistics(**figures), given)
    assert cause in said


@pytest.mark.parametrize(
    ("figures", "given"),
    [
        (S2, tile("s2", 9500, 800)),  # snow
        (S2, tile("s2", 15, 5)),  # dark water
        (S2, tile("s2", 0, 0)),  # nothing at all
        (S2, tile("s2", 0.95, 0.1, units="reflectance")),
        (S1, tile("s1-asc", -25, 0.4)),
        (S1, tile("s1-asc", 0.08, 0.01, units="linear")),
        (L8, tile("l8", [1500] * 9 + [200, 200], 2)),  # the top of a storm
    ],
)
def test_scenes_far_from_the_mean_are_not_told(figures, given):
    assert told(statistics(**figures), given) == []


def test_a_modality_is_told_of_once_and_other_datasets_and_normalisers_by_themselves():
    odd, normaliser = tile("s2", 0.15, 0.07), statistics(**S2)
    assert len(told(normaliser, odd, odd)) == 1
    assert len(told(statistics(**S2), odd)) == 1
    both = replace(normaliser, statistics=dict.fromkeys(("a", "b"), normaliser.statistics["made"]))
    said = told(both, *(replace(odd, dataset=name) for name in "abab"))
    assert [of in text for of, text in zip(("of a,", "of b,"), said, strict=True)] == [True, True]


def test_some_tiles_are_looked_at_those_without_values_not_counted():
    right, odd = tile("s2", 1500, 700), tile("s2", 0.15, 0.07)
    empty = Tile.of(replace(odd.observations["s2"], valid=np.zeros_like(odd.observations["s2"].valid)))
    assert len(told(statistics(**S2), *[empty] * LOOKS, right, odd)) == 1
    assert told(statistics(**S2), *[right] * LOOKS, odd) == []


def test_values_never_misfit_their_own_statistics():
    batch = Batch.of([tile("s2", 0.15, 0.07)])
    Normaliser.from_batch(batch).standardise(batch)  # warnings are errors here


def test_the_command_says_so_in_plain_words(tmp_path):
    from anysat.cli import _plain_warnings, main
    from geo_builders import geobox, write_tif

    spectrum = np.reshape([0.06, 0.08, 0.085, 0.12, 0.2, 0.24, 0.26, 0.26, 0.2, 0.14], (10, 1, 1))
    values = (spectrum * np.random.default_rng(0).uniform(0.7, 1.3, (10, 8, 8))).astype(np.float32)
    write_tif(tmp_path / "s2_20200601.tif", values, geobox((8, 8)), names=list(M["s2"].band_names))
    with pytest.warns(
        MisfitWarning, match=r"^s2: values that cannot fit the statistics of world(.|\n)*like reflectance"
    ):
        main(["embed", f"s2={tmp_path / 's2_20200601.tif'}", "--patch-size-m=20", "--weights=nano", "--dataset=world",
              f"--out={tmp_path / 'out.tif'}"])  # fmt: skip
    with _plain_warnings("embed"):
        assert warnings.formatwarning(MisfitWarning("s2: …"), MisfitWarning, "job.py", 1) == "anysat embed: s2: …\n"
        assert "job.py" in warnings.formatwarning(UserWarning("s2: …"), UserWarning, "job.py", 1)


def test_models_with_the_same_preset_are_told_of_each_by_itself():
    first, second = (anysat.load("nano", statistics="treesatai_ts").normaliser for _ in range(2))
    assert told(first, *[tile("s2", 4300, 2500)] * LOOKS) == []
    assert len(told(second, tile("s2", 0.15, 0.07))) == 1


def test_a_warning_that_is_an_error_is_raised_each_time():
    normaliser, batch = statistics(**S2), Batch.of([tile("s2", 0.15, 0.07)])
    with warnings.catch_warnings():
        warnings.simplefilter("error", MisfitWarning)
        for _ in range(2):
            with pytest.raises(MisfitWarning, match="like reflectance"):
                normaliser.standardise(batch)
    assert len(told(normaliser, tile("s2", 0.15, 0.07))) == 1
