"""Modalities, patches, observations, tiles, batches, statistics: what they accept, refuse and compute."""

import json
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

from anysat import modalities
from anysat.batch import Batch, Tile
from anysat.dates import day_numbers
from anysat.errors import (
    ExtentError,
    InputError,
    MissingFileError,
    PatchSizeError,
    RecordError,
    StatisticsError,
    UnknownNameError,
)
from anysat.modalities import MODALITIES, RELEASED, Band, Modality, band_key, read_modalities
from anysat.model.config import ModelConfig
from anysat.model.positions import cell_sequence
from anysat.normalise import BandStatistics, Normaliser
from anysat.observation import Observation
from anysat.patches import PatchGrid, cells_per_side

S2, S1, AERIAL, MODIS, L7 = (MODALITIES[key] for key in ("s2", "s1", "aerial", "modis", "l7"))
DATES = ["2020-03-01", "2020-01-05", "2021-12-31"]


def observe(modality=S2, shape=(3, 10, 6, 6), dates=DATES, seed=0, **options):
    values = np.random.default_rng(seed).normal(100, 10, shape)
    return Observation.of(modality, values, dates=dates if modality.is_temporal else None, **options)


# -- modalities ------------------------------------------------------------------------------------


def test_the_table_holds_the_eleven_released_modalities_and_more():
    assert [m.key for m in RELEASED] == [
        "aerial", "aerial-flair", "alos", "l7", "l8", "modis", "naip", "s1", "s1-asc", "s2", "spot"
    ]  # fmt: skip
    assert {"s1-des", "hls", "planet"} <= set(MODALITIES) - {m.key for m in RELEASED}


def test_a_record_added_to_the_table_does_not_change_the_published_model(monkeypatch):
    first = "_RECORDS = (\n"
    record = 'Modality(key="enmap", sensor="EnMAP", bands=_optical("DN", B1=423), gsd_m=30.0, is_temporal=False),\n'
    source = Path(modalities.__file__).read_text().replace(first, first + record)
    module = ModuleType("more_modalities")
    monkeypatch.setitem(sys.modules, module.__name__, module)  # dataclasses look their module up
    exec(compile(source, module.__name__, "exec"), vars(module))
    assert set(module.MODALITIES) == {*MODALITIES, "enmap"}
    assert [m.key for m in module.RELEASED] == [m.key for m in RELEASED]


@pytest.mark.parametrize("modality", MODALITIES.values(), ids=MODALITIES)
def test_every_record_survives_plain_values_and_names_what_it_measures(modality):
    assert Modality.from_dict(json.loads(json.dumps(modality.to_dict()))) == modality
    for band in modality.bands:
        if band.ratio_of is None and band.name != "elevation":
            assert (band.polarisation if modality.is_radar else band.wavelength_nm) is not None


@pytest.mark.parametrize(
    ("key", "channels", "gsd_m", "subpatch_m"),
    [("aerial", 4, 0.2, 2), ("aerial-flair", 5, 0.2, 2), ("spot", 3, 1, 10), ("naip", 4, 1.25, 10), ("s2", 10, 10, 10),
     ("s1", 3, 10, 10), ("s1-asc", 2, 10, 10), ("s1-des", 2, 10, 10), ("l8", 11, 10, 10), ("l7", 6, 30, 30),
     ("alos", 3, 30, 30), ("modis", 7, 250, 250), ("planet", 3, 3, 12), ("hls", 6, 30, 30)],
)  # fmt: skip
def test_spacings_and_bands_are_the_published_ones(key, channels, gsd_m, subpatch_m):
    modality = MODALITIES[key]
    assert (len(modality.bands), modality.gsd_m, modality.subpatch_m) == (channels, gsd_m, subpatch_m)


def test_aerial_bands_are_in_the_order_the_weights_were_trained_on():
    assert AERIAL.band_names == ("NIR", "G", "B", "R")


@pytest.mark.parametrize(
    ("written", "band"),
    [("B02", "B2"), ("b2", "B2"), ("blue", "B2"), ("B8A", "B8A"), ("B08", "B8"), ("nir08", "B8A"), ("B11", "B11")],
)
def test_bands_are_found_under_their_usual_spellings(written, band):
    assert S2.band_names[S2.find_band(written)] == band


def test_band_keys_keep_what_distinguishes_bands():
    assert band_key("B1") != band_key("B11")
    assert band_key("B10") == "B10"
    assert band_key(" vv ") == "VV"


def test_a_users_yaml_record_enters_by_the_same_door(tmp_path):
    path = tmp_path / "drone.yaml"
    path.write_text(
        "key: drone\nsensor: my drone\nbands: [red, green, {name: lidar, unit: m}]\ngsd_m: 0.5\nis_temporal: false\nsubpatch_px: 4\n"
    )
    (drone,) = read_modalities(path)
    assert drone == Modality(
        key="drone", sensor="my drone", bands=(Band(name="red"), Band(name="green"), Band(name="lidar", unit="m")),
        gsd_m=0.5, is_temporal=False, subpatch_px=4,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        ("key: a\nsensr: b", UnknownNameError, "unknown modality field 'sensr'; closest: sensor"),
        ("key: a\nsensor: b\nbands: [x]\n", RecordError, "all required fields"),
        ("key: a b\nsensor: b\nbands: [x]\ngsd_m: 1\nis_temporal: true", RecordError, "a short name without spaces"),
        ("key: 8\nsensor: b\nbands: [x]\ngsd_m: 1\nis_temporal: true", RecordError, "key: expected a short name"),
        (
            "key: values\nsensor: b\nbands: [x]\ngsd_m: 1\nis_temporal: true",
            RecordError,
            "key: expected another name.*got 'values'",
        ),
        ("key: a\nsensor: b\nbands: [x, x]\ngsd_m: 1\nis_temporal: true", RecordError, "each name once"),
        ("key: a\nsensor: b\nbands: [x]\ngsd_m: -1\nis_temporal: true", RecordError, "positive number of metres"),
        ("key: a\nsensor: b\nbands: [x]\ngsd_m: 1\nis_temporal: true\nsubpatch_px: 2", RecordError, "1 for a series"),
        ("key: a\nsensor: b\nbands: [{name: x, unit: furlong}]\ngsd_m: 1\nis_temporal: true", UnknownNameError, "unit"),
        ("just text", RecordError, "one record or a list"),
        ("key: [", RecordError, "valid YAML"),
    ],
)
def test_a_wrong_record_is_refused_with_the_field_named(tmp_path, text, error, message):
    path = tmp_path / "modality.yaml"
    path.write_text(text)
    with pytest.raises(error, match=message):
        read_modalities(path)


def test_a_missing_record_file_says_what_was_expected(tmp_path):
    with pytest.raises(MissingFileError, match="expected a YAML file"):
        read_modalities(tmp_path / "none.yaml")


def test_configurations_survive_plain_values_and_refuse_unknown_options():
    config = ModelConfig.tiny(rpe_heads="each").with_modalities(MODALITIES["hls"])
    assert ModelConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    assert len(config.modalities) == 12
    with pytest.raises(UnknownNameError, match="unknown model option 'dims'; closest: dim"):
        ModelConfig.from_dict({"dims": 3})


# -- patches ---------------------------------------------------------------------------------------


def test_metres_become_counts_for_sensors_from_20_cm_to_250_m_together():
    keys = ("aerial", "spot", "naip", "s2", "l7", "modis")
    shapes = {MODALITIES[key]: (round(300 / MODALITIES[key].gsd_m), round(600 / MODALITIES[key].gsd_m)) for key in keys}
    shapes[MODIS] = (2, 3)
    grid = PatchGrid.fit(shapes, 60)
    assert (grid.num_rows, grid.num_cols, grid.num_patches) == (5, 10, 50)
    assert (grid.height_m, grid.width_m) == (300, 600)
    sides = {key: grid.subpatches_per_side(MODALITIES[key]) for key in keys}
    assert sides == {"aerial": 30, "spot": 6, "naip": 6, "s2": 6, "l7": 2, "modis": 1}


def test_a_patch_that_does_not_fit_is_refused_with_all_sizes_that_do():
    with pytest.raises(PatchSizeError, match="multiple of 30 m to hold whole sub-patches of s2, l7; .* 30, 60, 120 m"):
        PatchGrid.fit({S2: (12, 12), L7: (4, 4)}, 20)
    with pytest.raises(PatchSizeError, match="does not divide the 70 m side of the 60 x 70 m tile"):
        PatchGrid.fit({S2: (6, 7)}, 20)
    with pytest.raises(PatchSizeError, match="no patch size fits this tile: crop it first"):
        PatchGrid.fit({AERIAL: (304, 304)}, 20)


def test_extents_that_differ_are_refused_with_the_ground_they_share():
    with pytest.raises(ExtentError, match=r"aerial-flair 102.4 x 102.4 m, s2 100 x 100 m; .*at most 100 x 100 m"):
        PatchGrid.fit({MODALITIES["aerial-flair"]: (512, 512), S2: (10, 10)}, 10)


def test_context_must_cover_the_tile_and_no_more():
    assert PatchGrid.fit({S2: (12, 12), MODIS: (1, 1)}, 30).num_patches == 16
    with pytest.raises(
        InputError, match="modis: expected 2 x 2 pixels of 250 m to cover the 300 x 300 m tile, got 1 x 1"
    ):
        PatchGrid.fit({S2: (30, 30), MODIS: (1, 1)}, 30)
    with pytest.raises(InputError, match="expected 1 x 1 pixels"):
        PatchGrid.fit({S2: (12, 12), MODIS: (12, 12)}, 30)


def test_cells_hold_five_by_five_aerial_subpatches():
    assert {key: cells_per_side(m) for key, m in MODALITIES.items() if cells_per_side(m) > 1} == {
        "aerial": 5, "aerial-flair": 5
    }  # fmt: skip


# -- observations ----------------------------------------------------------------------------------


def test_days_count_from_one_and_wrap_at_new_year():
    dates = np.array(["2019-01-01", "2019-12-31", "2020-12-31", "2021-01-01"], "datetime64[D]")
    assert day_numbers(dates).tolist() == [1, 365, 366, 1]


def test_days_can_count_on_from_a_date():
    dates = np.array(["2018-09-01", "2019-09-01"], "datetime64[D]")
    assert day_numbers(dates, "days_since 2018-09-01").tolist() == [0, 365]
    for wrong in ("doy", "days_since", "days_since yesterday", "day_of_year 1"):
        with pytest.raises(RecordError, match="day convention"):
            day_numbers(dates, wrong)


def test_bands_are_put_into_the_models_order_by_name():
    values = np.stack([np.full((2, 2), float(i)) for i in range(4)])
    found = Observation.of(AERIAL, values, bands=["R", "green", "B", "nir"])
    assert found.values[:, 0, 0].tolist() == [3, 1, 2, 0]


def test_a_band_the_source_lacks_is_invalid():
    names = [name for name in S2.band_names if name != "B8A"]
    found = observe(shape=(3, 9, 6, 6), bands=names)
    assert not found.valid[:, 7].any()
    assert found.valid.sum() == 3 * 9 * 36


def test_a_ratio_band_is_made_from_its_parts():
    values = np.array([[[[4.0]], [[2.0]]]])
    found = Observation.of(S1, values, units="linear", dates=["2020-01-01"])
    assert found.values.ravel().tolist() == pytest.approx([4, 2, 2])
    gone = Observation.of(S1, np.array([[[[4.0]], [[np.nan]]]]), units="linear", dates=["2020-01-01"])
    assert gone.valid.ravel().tolist() == [True, False, False]


def test_nan_infinity_nodata_and_masks_are_invalid():
    values = np.ones((1, 10, 2, 2))
    values[0, 0, 0] = [np.nan, np.inf]
    values[0, 1, 0, 0] = -9999
    mask = np.ones((1, 1, 2, 2), bool)
    mask[..., 1, 1] = False
    found = Observation.of(S2, values, dates=["2020-01-01"], nodata=-9999, valid=mask)
    assert (~found.valid[0, 0]).tolist() == [[True, True], [False, True]]
    assert (~found.valid[0, 1]).tolist() == [[True, False], [False, True]]
    assert np.isfinite(found.values).all()


def test_units_convert_both_ways_and_what_cannot_be_converted_is_refused():
    power = Observation.of(S1, np.array([[[[0.1, 0.0]], [[1.0, 0.5]]]]), units="linear", dates=["2020-01-01"])
    decibel = power.in_units("dB")
    assert decibel.values[0, 0, 0].tolist() == pytest.approx([-10, 0])
    assert decibel.valid[0, :2, 0].tolist() == [[True, False], [True, True]]  # no power has no decibel
    assert decibel.units == ("dB", "dB", "ratio")
    assert decibel.in_units("linear").values[0, 0, 0, 0] == pytest.approx(0.1)
    with pytest.raises(InputError, match=r"s1 band VV: expected a unit that converts to 'K', got 'linear'"):
        power.in_units("K")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: observe(shape=(10, 6, 6)), r"s2: expected \(time band row col\), rank 4, got shape \(10, 6, 6\)"),
        (lambda: observe(shape=(3, 9, 6, 6)), r"expected 10 bands .*, got 9; name them with bands="),
        (lambda: observe(shape=(0, 10, 6, 6), dates=[]), "at least one of each axis"),
        (lambda: observe(dates=DATES[:2]), "expected 3 dates, one per time step"),
        (lambda: observe(dates=None), r"got none; pass dates="),
        (lambda: observe(dates=["2020-01-01", "soon", "2020-01-03"]), "expected dates such as 2020-06-01"),
        (lambda: observe(dates=["2020-01-01", "NaT", "2020-01-03"]), "no date at step 1"),
        (lambda: observe(bands=["B2", "B2", *S2.band_names[2:]]), "each band once"),
        (lambda: observe(bands=["B2", "B3"]), "10 names, one per stored band, got 2"),
        (lambda: observe(bands=["X1", *S2.band_names[1:]]), "unknown band 'X1'"),
        (lambda: observe(units="mph"), "unknown unit 'mph'"),
        (lambda: observe(units=["dB"]), "one unit, or 10"),
        (lambda: observe(valid=np.ones((6, 6), bool)), r"of shape \(3, 10, 6, 6\), or 1 for an axis .* or \(time,\), got bool of shape \(6, 6\)"),
        (lambda: Observation.of(AERIAL, np.ones((4, 5, 5)), dates=DATES), "it is a single image, got 3 dates"),
        (lambda: Observation.of(AERIAL, np.ones((4, 5, 5), complex)), "real numbers, got type complex128"),
        (lambda: Observation.of(AERIAL, np.full((4, 5, 5), "x")), "real numbers"),
    ],
)  # fmt: skip
def test_an_observation_that_cannot_be_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


# -- tiles and batches -----------------------------------------------------------------------------


def test_ragged_dates_are_padded_under_the_mask():
    tiles = [
        Tile(
            id=str(n), observations={"s2": observe(shape=(n, 10, 4, 4), dates=DATES[:n])}, targets={"crop": np.int64(n)}
        )
        for n in (3, 1)
    ]
    batch = Batch.of(tiles)
    s2 = batch.observations["s2"]
    assert s2.values.shape == (2, 3, 10, 4, 4)
    assert s2.valid[0].all()
    assert s2.valid[1, 0].all()
    assert not s2.valid[1, 1:].any()
    assert s2.dates[1, 0] == np.datetime64(DATES[0]).astype(int)
    assert batch.targets["crop"].tolist() == [3, 1]
    assert batch.ids == ("3", "1")


def test_a_modality_that_some_tiles_lack_is_invalid_there():
    tiles = [
        Tile(observations={"s2": observe(), "s1": observe(S1, (3, 2, 6, 6))}),
        Tile(observations={"s2": observe()}),
    ]
    s1 = Batch.of(tiles).observations["s1"]
    assert s1.valid[0].all()
    assert not s1.valid[1].any()


def test_tiles_that_do_not_belong_together_are_refused():
    s2 = Tile(observations={"s2": observe()})
    with pytest.raises(InputError, match="at least one tile"):
        Batch.of([])
    with pytest.raises(InputError, match=r"tiles of \(6, 6\) pixels, got \(8, 8\)"):
        Batch.of([s2, Tile(observations={"s2": observe(shape=(3, 10, 8, 8))})])
    with pytest.raises(InputError, match="one record and units"):
        Batch.of([s2, Tile(observations={"s2": observe(units="reflectance")})])
    with pytest.raises(InputError, match="tiles of one dataset, got None, x"):
        Batch.of([s2, Tile(observations={"s2": observe()}, dataset="x")])
    with pytest.raises(InputError, match="the same targets"):
        Batch.of([s2, Tile(observations={"s2": observe()}, targets={"y": np.int64(1)})])
    with pytest.raises(InputError, match="under that key"):
        Tile(observations={"s1": observe()})
    with pytest.raises(ExtentError, match="s2 60 x 60 m, aerial 61 x 60 m"):
        Tile(observations={"s2": observe(), "aerial": observe(AERIAL, (4, 305, 300))})


def test_values_say_what_they_are_in_one_line():
    tile = Tile(id="forest", observations={"s2": observe()})
    assert repr(tile) == "Tile('forest', Observation(s2, 6 x 6 px, 3 dates 2020-01-05..2021-12-31, 100% valid))"
    assert repr(Batch.of([tile])) == "Batch(1 tiles, s2 (1, 3, 10, 6, 6))"


# -- statistics ------------------------------------------------------------------------------------


def test_statistics_equal_a_direct_computation_over_valid_values():
    observation = observe(valid=np.random.default_rng(3).random((3, 10, 6, 6)) > 0.3)
    normaliser = Normaliser.from_batch(Batch.of([Tile(observations={"s2": observation})]))
    statistics = normaliser.statistics["data"]["s2"]
    for band in range(10):
        direct = observation.values[:, band][observation.valid[:, band]].astype(float)
        assert statistics.mean[band] == pytest.approx(direct.mean())
        assert statistics.std[band] == pytest.approx(direct.std())


def test_standardised_values_have_mean_zero_and_deviation_one_and_are_zero_where_invalid():
    batch = Batch.of([Tile(observations={"s2": observe(valid=np.broadcast_to(np.arange(6) > 1, (1, 1, 1, 6)))})])
    found = Normaliser.from_batch(batch).standardise(batch)["s2"]
    valid = batch.observations["s2"].valid
    assert found[valid].mean().abs() < 1e-5
    assert (found[valid].std() - 1).abs() < 1e-2
    assert (found[~valid] == 0).all()


def test_a_constant_band_does_not_divide_by_zero():
    tile = Tile(observations={"s2": Observation.of(S2, np.ones((1, 10, 2, 2)), dates=["2020-01-01"])})
    batch = Batch.of([tile])
    assert torch.equal(Normaliser.from_batch(batch).standardise(batch)["s2"], torch.zeros(1, 1, 10, 2, 2))


def test_statistics_survive_a_file(tmp_path):
    preset = Normaliser.preset("treesatai_ts")
    preset.save(tmp_path / "statistics.json")
    assert Normaliser.read(tmp_path / "statistics.json") == preset


def test_the_published_figures_are_shipped_without_the_radar_ones():
    table = Normaliser.preset("treesatai_ts").statistics["treesatai_ts"]
    assert set(table) == {"aerial", "s2"}
    assert table["aerial"].mean[0] == 150.893
    assert table["s2"].std[-1] == 1549.303


def test_statistics_that_do_not_fit_are_refused(tmp_path):
    batch = Batch.of([Tile(observations={"s2": observe(units="reflectance")})])
    preset = Normaliser.preset("treesatai_ts")
    with pytest.raises(
        StatisticsError, match=r"band B2: they are in 'reflectance_1e4', the data in 'reflectance'; convert"
    ):
        preset.standardise(batch)
    radar = Batch.of([Tile(observations={"s1": observe(S1, (3, 2, 6, 6))})])
    with pytest.raises(StatisticsError, match="s1: there are none in published"):
        preset.standardise(radar)
    elsewhere = Batch.of([Tile(observations={"s2": observe()}, dataset="mine")])
    with pytest.raises(StatisticsError, match="dataset 'mine': there are none; name one of treesatai_ts"):
        preset.standardise(elsewhere)
    both = Normaliser.joined([Normaliser.from_batch(replace(batch, dataset=name)) for name in ("world", "alps")])
    with pytest.raises(
        StatisticsError,
        match=r"2 datasets, alps, world \(generated data\), and none.*--dataset alps`.*dataset=\"alps\".*--statistics from-data",
    ):
        both.table(None)
    with pytest.raises(UnknownNameError, match="unknown statistics preset 'tree'; closest: treesatai_ts"):
        Normaliser.preset("tree")
    with pytest.raises(StatisticsError, match="deviations positive"):
        BandStatistics(bands=("a",), mean=(0,), std=(0,), units=("DN",))
    with pytest.raises(StatisticsError, match=r"lengths \[1, 2, 1, 1\] differ"):
        BandStatistics(bands=("a",), mean=(0, 1), std=(1,), units=("DN",))
    with pytest.raises(MissingFileError, match="a JSON file of statistics"):
        Normaliser.read(tmp_path / "none.json")
    (tmp_path / "bad.json").write_text("{")
    with pytest.raises(StatisticsError, match="no valid JSON"):
        Normaliser.read(tmp_path / "bad.json")
    (tmp_path / "other.json").write_text("{}")
    with pytest.raises(StatisticsError, match="unreadable content"):
        Normaliser.read(tmp_path / "other.json")


def test_a_ratio_band_follows_its_parts_into_other_units():
    power = Observation.of(S1, np.array([[[[0.1]], [[0.01]]]]), units="linear", dates=["2020-01-01"])
    decibel = Observation.of(S1, np.array([[[[-10.0]], [[-20.0]]]]), units="dB", dates=["2020-01-01"])
    assert power.values.ravel().tolist() == pytest.approx([0.1, 0.01, 10])
    assert power.in_units("dB").values.ravel().tolist() == pytest.approx(decibel.values.ravel().tolist())


def test_masked_arrays_and_values_beyond_float32_are_invalid():
    values = np.ma.masked_greater(np.arange(40.0).reshape(1, 10, 2, 2), 20)
    assert Observation.of(S2, values, dates=["2020-01-01"]).valid.sum() == 21
    lowest = np.full((1, 10, 2, 2), np.finfo(np.float64).min)
    assert not Observation.of(S2, lowest, dates=["2020-01-01"]).valid.any()


def test_day_numbers_are_not_dates():
    with pytest.raises(InputError, match="expected dates such as 2020-06-01, got numbers; day numbers belong to"):
        observe(dates=[10, 120, 200])


def test_sizes_from_numpy_are_numbers():
    for number in (np.int64(20), np.float32(20), np.float64(20)):
        assert PatchGrid.fit({S2: (6, 6)}, number).num_patches == 9


def test_a_patch_of_more_subpatches_than_attention_can_hold_is_refused():
    with pytest.raises(
        PatchSizeError, match="more than 4096 sub-patches of one modality; sizes that fit here: .* 640 m"
    ):
        PatchGrid.fit({S2: (256, 256)}, 2560)


@pytest.mark.parametrize(
    ("gsd_m", "subpatch_px"), [(0.6, 10), (3.0, 1), (4.0, 1), (0.3, 10), (0.5, 10), (0.2, 10), (12.0, 1)]
)
def test_every_subpatch_of_an_odd_sensor_has_a_place_of_its_own(gsd_m, subpatch_px):
    odd = Modality(
        key="odd", sensor="x", bands=(Band(name="R"),), gsd_m=gsd_m, is_temporal=False, subpatch_px=subpatch_px
    )
    cell = cells_per_side(odd)
    side = 4 * cell
    assert sorted(cell_sequence(side, cell).tolist()) == list(range(side * side))
    assert cell == 1 or cell * odd.subpatch_m == 10


@pytest.mark.parametrize(
    "dates", [["20200301", "20200105", "20211231"], ["2020-03-01T10:11:12", "2020-01-05 23:59", "2021-12-31Z"]]
)
def test_dates_are_read_in_their_usual_spellings(dates):
    assert [str(date) for date in observe(dates=dates).dates] == DATES


@pytest.mark.parametrize(
    "dates", [["now"] * 3, ["2020"] * 3, ["20200301-01-01"] * 3, ["0020-03-01"] * 3, ["2020-02-30"] * 3]
)
def test_what_is_no_calendar_date_is_never_guessed(dates):
    with pytest.raises(InputError, match="s2 dates: expected dates"):
        observe(dates=dates)


def test_things_of_the_wrong_kind_are_named():
    with pytest.raises(InputError, match="one observation of each modality, got s2, s2"):
        Tile.of(observe(), observe())
    with pytest.raises(InputError, match="a list of tiles, got Tile"):
        Batch.of(Tile.of(observe()))
    with pytest.raises(InputError, match=r"a record such as anysat.MODALITIES\['s2'\], got 's2'"):
        Observation.of("s2", np.ones((1, 10, 2, 2)), dates=["2020-01-01"])


def test_a_tensor_with_gradient_is_read():
    values = torch.ones(1, 10, 2, 2, requires_grad=True)
    assert Observation.of(S2, values, dates=["2020-01-01"]).valid.all()


@pytest.mark.parametrize("bands", ["", "[1, 2]", "[[x]]"])
def test_bands_that_are_none_are_refused(tmp_path, bands):
    (tmp_path / "m.yaml").write_text(f"key: a\nsensor: b\nbands: {bands}\ngsd_m: 1\nis_temporal: true")
    with pytest.raises(RecordError, match="band"):
        read_modalities(tmp_path / "m.yaml")


@pytest.mark.parametrize("bands", ["red", "{red: 1}", "3"])
def test_bands_that_are_no_list_are_refused(tmp_path, bands):
    (tmp_path / "m.yaml").write_text(f"key: a\nsensor: b\nbands: {bands}\ngsd_m: 1\nis_temporal: true")
    with pytest.raises(RecordError, match=r"modality 'a', bands: expected a list of bands, such as \[red, nir\]"):
        read_modalities(tmp_path / "m.yaml")
    with pytest.raises(RecordError, match="a list of bands"):
        Modality(key="a", sensor="b", bands="red", gsd_m=1, is_temporal=True)


@pytest.mark.parametrize("flag", ["is_temporal", "is_radar", "covers_tile", "normalises_over_dates"])
@pytest.mark.parametrize("value", ['"false"', "0", "null", "[]"])
def test_flags_that_are_neither_true_nor_false_are_refused(tmp_path, flag, value):
    text = f"key: a\nsensor: b\nbands: [red]\ngsd_m: 1\n{flag}: {value}\n"
    (tmp_path / "m.yaml").write_text(text + "is_temporal: true" * (flag != "is_temporal"))
    with pytest.raises(RecordError, match=f"modality 'a', {flag}: expected true or false"):
        read_modalities(tmp_path / "m.yaml")
