"""Values as callers happen to have them: tensors, numbers and coordinates are read as what they are, or refused."""

from dataclasses import replace
from datetime import datetime, timedelta, timezone

import numpy as np
import pytest
import torch

import anysat
from anysat.batch import Batch, Tile
from anysat.errors import InputError, RecordError, StatisticsError, UnknownNameError
from anysat.modalities import MODALITIES
from anysat.model.config import ModelConfig
from anysat.normalise import BandStatistics, Normaliser
from anysat.observation import Observation
from anysat.patches import PatchGrid
from builders import random_model

S2, AERIAL = MODALITIES["s2"], MODALITIES["aerial"]
DAY = ["2020-01-01"]


def filled(fill, dtype=np.float32):
    values = np.ones((1, 10, 2, 2), dtype)
    values[0, 0, 0, 0] = fill
    return values


@pytest.mark.parametrize("kind", [float, np.float64, np.array, torch.tensor])
@pytest.mark.parametrize("fill", [1e20, 0.1, -3.4e38])
def test_a_fill_that_is_no_number_of_float32_is_still_no_data(fill, kind):
    found = Observation.of(S2, filled(fill), dates=DAY, nodata=kind(fill))
    assert (~found.valid).sum() == 1


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64", "uint8"])
def test_a_fill_is_told_in_tensors_of_any_type(dtype):
    tensor = torch.from_numpy(filled(201.0)).to(getattr(torch, dtype))
    assert (~Observation.of(S2, tensor, dates=DAY, nodata=201).valid).sum() == 1
    assert Observation.of(S2, tensor, dates=DAY, nodata=-9999).valid.all()
    assert Observation.of(S2, tensor, dates=DAY, nodata=float("nan")).valid.all()


def test_a_fill_is_rounded_as_the_values_are():
    tensor = torch.from_numpy(filled(-9999.0)).bfloat16()
    assert (~Observation.of(S2, tensor, dates=DAY, nodata=-9999).valid).sum() == 1


@pytest.mark.parametrize("name", ["nodata", "_FillValue"])
def test_a_fill_in_the_attributes_of_an_array_is_no_data_unless_another_is_given(name):
    xarray = pytest.importorskip("xarray")
    array = xarray.DataArray(filled(201, np.uint16), dims=("time", "band", "y", "x"), attrs={name: np.float64(201)})
    assert (~Observation.of(S2, array, dates=DAY).valid).sum() == 1
    assert Observation.of(S2, array, dates=DAY, nodata=202).valid.all()
    assert Observation.of(S2, array.assign_attrs({name: np.nan}), dates=DAY).valid.all()


@pytest.mark.parametrize("said", ["unknown", "None", (0, 255), None, float("nan")])
def test_attributes_that_are_no_number_are_no_fill(said):
    xarray = pytest.importorskip("xarray")
    array = xarray.DataArray(filled(201), dims=("time", "band", "y", "x"), attrs={"nodata": said})
    assert Observation.of(S2, array, dates=DAY).valid.all()
    told = Observation.of(S2, array.assign_attrs(_FillValue=201), dates=DAY)
    assert (~told.valid).sum() == (~Observation.of(S2, filled(201), dates=DAY, nodata=201).valid).sum() > 0


@pytest.mark.parametrize("nodata", ["255", [0, 255], True, None.__class__])
def test_what_is_no_number_is_no_fill(nodata):
    with pytest.raises(InputError, match="s2 nodata: expected one number such as -9999, got"):
        Observation.of(S2, filled(0), dates=DAY, nodata=nodata)


def test_bands_are_named_by_anything_that_goes_through_them():
    names = list(S2.band_names)[::-1]
    values = np.arange(10.0)[None, :, None, None]
    wanted = Observation.of(S2, values, bands=names, dates=DAY).values
    xarray = pytest.importorskip("xarray")
    cube = xarray.DataArray(values, dims=("time", "band", "y", "x"), coords={"band": names})
    for bands in (cube.band, (name for name in names), np.array(names)):
        assert np.array_equal(Observation.of(S2, values, bands=bands, dates=DAY).values, wanted)
    with pytest.raises(UnknownNameError, match="unknown band '1'"):
        Observation.of(S2, values, bands=range(1, 11), dates=DAY)


def test_valid_masks_that_take_part_in_a_gradient_are_read():
    mask = torch.ones(1, 10, 2, 2, requires_grad=True)
    assert Observation.of(S2, filled(0), dates=DAY, valid=mask).valid.all()


def test_a_mask_with_nan_is_refused_for_what_it_holds_and_not_for_its_shape():
    mask = np.ones((4, 2, 2))
    mask[1, 0, 1] = np.nan
    with pytest.raises(InputError, match="^aerial valid mask: expected True and False, or 1 and 0, got nan$"):
        Observation.of(AERIAL, np.ones((4, 2, 2)), valid=mask)
    x = {"aerial": torch.zeros(1, 4, 50, 50), "aerial_mask": torch.full((1, 4, 50, 50), float("nan"))}
    with pytest.raises(InputError, match="^aerial_mask: expected 1 where data is real and 0 elsewhere, got nan$"):
        random_model(modalities=[AERIAL])(x, 10)


def test_a_mask_of_another_shape_is_told_which_it_should_have():
    with pytest.raises(InputError, match=r"of shape \(4, 2, 2\), or 1 for an axis that does not matter, got"):
        Observation.of(AERIAL, np.ones((4, 2, 2)), valid=np.ones((3, 3)))
    x = {"aerial": torch.zeros(1, 4, 50, 50), "aerial_mask": torch.ones(3, 3)}
    with pytest.raises(
        InputError, match=r"shape \(1, 4, 50, 50\), or 1 for an axis that does not matter, got \(3, 3\)"
    ):
        random_model(modalities=[AERIAL])(x, 10)


def test_a_masked_date_is_no_date():
    dates = np.ma.array(["2020-01-01", "2020-02-01"], "datetime64[D]", mask=[False, True])
    with pytest.raises(InputError, match="s2 dates: expected a date at every time step, got a masked one at step 1"):
        Observation.of(S2, np.ones((2, 10, 2, 2)), dates=dates)
    dates.mask = False
    assert len(Observation.of(S2, np.ones((2, 10, 2, 2)), dates=dates).dates) == 2


@pytest.mark.parametrize("day", [20200601, 2020153, 1.59e9, -719163.0])
def test_numbers_that_are_no_day_numbers_are_refused_in_the_published_call(day):
    x = {"s2": torch.zeros(1, 2, 10, 2, 2), "s2_dates": torch.tensor([[32, day]])}
    told = rf"s2_dates: expected day numbers, such as 32 for 1 February, got {day:.0f}; .*day_numbers"
    with pytest.raises(InputError, match=told):
        random_model(modalities=[S2])(x, 10)


def test_day_numbers_since_any_day_of_three_centuries_are_taken():
    x = {"s2": torch.zeros(1, 2, 10, 2, 2), "s2_dates": torch.tensor([[-109572, 109572]])}
    assert random_model(modalities=[S2])(x, 10).isfinite().all()


@pytest.mark.parametrize("given", [lambda seen: [seen], lambda seen: seen.values])
def test_a_tile_takes_observations_one_by_one(given):
    with pytest.raises(InputError, match=r"observations one by one, such as Tile.of\(s2, aerial\), got (list|ndarray)"):
        Tile.of(given(Observation.of(S2, filled(0), dates=DAY)))


def test_tiles_of_different_sizes_without_a_common_modality_are_no_batch():
    large = Tile.of(Observation.of(S2, np.ones((1, 10, 4, 4)), dates=DAY))
    small = Tile.of(Observation.of(AERIAL, np.ones((4, 50, 50))))
    with pytest.raises(InputError, match="batch: expected tiles of one size, got 40 x 40 m, 10 x 10 m"):
        Batch.of([large, small])
    modis = Tile.of(Observation.of(MODALITIES["modis"], np.ones((1, 7, 1, 1)), dates=DAY))
    assert len(Batch.of([large, modis])) == 2


@pytest.mark.parametrize("given", [torch.zeros(1, 1, 10, 4, 4), [torch.zeros(1, 1, 10, 4, 4)], "batch"])
def test_the_published_call_takes_a_dict_and_says_where_a_batch_goes(given):
    if given == "batch":
        given = Batch.of([Tile.of(Observation.of(S2, filled(0), dates=DAY))])
    with pytest.raises(
        InputError, match="input: expected a dict of tensors .* a Batch of source values is for `encode`"
    ):
        random_model(modalities=[S2])(given, 20)


def test_batches_are_made_in_ordinary_memory_wherever_torch_makes_tensors():
    tile = Tile.of(Observation.of(S2, filled(0), dates=DAY), targets={"label": np.array(1)})
    torch.set_default_device("meta")
    try:
        found = Batch.of([tile])
    finally:
        torch.set_default_device(None)
    assert found.observations["s2"].values.device.type == "cpu"
    assert found.targets["label"].tolist() == [1]


def test_a_deviation_that_values_overflow_by_is_no_deviation():
    """Standardised, they would be infinite and count as missing."""
    with pytest.raises(StatisticsError, match="deviations positive, 1e-30 or more"):
        BandStatistics(bands=("a",), mean=(100.0,), std=(1e-37,), units=("DN",))
    nearly_constant = np.ones((4, 2, 2), np.float32) * 1e-40
    nearly_constant[:, 0, 0] = 0
    found = Normaliser.from_batch(Batch.of([Tile.of(Observation.of(AERIAL, nearly_constant))]))
    assert found.statistics["data"]["aerial"].std == (1.0,) * 4


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_statistics_are_those_of_the_values_whatever_type_torch_makes_tensors_in(dtype):
    batch, normaliser = (
        Batch.of([Tile.of(Observation.of(AERIAL, np.full((4, 2, 2), 93.0)))]),
        Normaliser.preset("treesatai_ts"),
    )
    wanted = normaliser.standardise(batch)["aerial"]
    torch.set_default_dtype(dtype)
    try:
        found = normaliser.standardise(batch)["aerial"]
    finally:
        torch.set_default_dtype(torch.float32)
    assert found.dtype == torch.float32
    assert torch.equal(found, wanted)


def test_tiles_whose_records_differ_are_told_in_which_field():
    one, other = (
        Tile.of(Observation.of(replace(S2, sensor=sensor), filled(1), dates=DAY)) for sensor in ("MSI", "HLS 10 m")
    )
    with pytest.raises(InputError, match="batch, s2: expected one record, with sensor 'MSI', got 'HLS 10 m'"):
        Batch.of([one, other])


def test_units_that_are_none_or_too_few_are_told():
    seen = Observation.of(S2, filled(1), dates=DAY)
    with pytest.raises(InputError, match=r"s2 units: expected one unit, or 10, .* got \['reflectance'\]"):
        seen.in_units(["reflectance"])
    with pytest.raises(UnknownNameError, match="unknown unit 'reflctance'; closest: reflectance"):
        seen.in_units("reflctance")
    with pytest.raises(UnknownNameError, match="unknown unit 'furlong'"):
        BandStatistics(bands=("a",), mean=(0,), std=(1,), units=("furlong",))


@pytest.mark.parametrize("text", [
    "2020-01-01Tgarbage", "2020-01-01 garbage", "2020-01-01T", "2020-01-01T12:00 o'clock", "2020-01-01Zx",
])  # fmt: skip
def test_a_date_with_something_behind_it_is_none(text):
    with pytest.raises(InputError, match="s2 dates: expected dates such as 2020-06-01, got"):
        Observation.of(S2, filled(1), dates=[text])


@pytest.mark.parametrize("text", [
    "2020-01-01", " 20200101 ", "2020-01-01Z", "2020-01-01T12:00:00.123Z", "2020-01-01 12:00 UTC", "20200101T120000",
    "2020-01-01T12:00:00.000000000", "2020-01-01T12:00:00+00:00",
])  # fmt: skip
def test_moments_are_days(text):
    assert Observation.of(S2, filled(1), dates=[text]).dates.astype(str).tolist() == ["2020-01-01"]


def test_dates_that_are_missing_or_of_year_one_are_told():
    nat = pytest.importorskip("pandas").NaT
    for missing in (nat, float("nan")):
        with pytest.raises(InputError, match="s2 dates: expected a date at every time step, got no date at step 0"):
            Observation.of(S2, filled(1), dates=np.array([missing], object))
    early = datetime(1, 1, 1, tzinfo=timezone(timedelta(hours=5)))
    for date in (early, "0001-01-01T00:00:00+05:00"):
        with pytest.raises(InputError, match="s2 dates: expected dates"):
            Observation.of(S2, filled(1), dates=[date])


@pytest.mark.parametrize("dims", [("time", "band", "x", "y"), ("band", "time", "y", "x"), ("Lat", "lon", "bands", "t")])
def test_axes_with_names_are_known_by_them(dims):
    xarray = pytest.importorskip("xarray")
    values = np.random.default_rng(0).uniform(size=(10, 10, 10, 10)).astype(np.float32)
    names = [{"x": 3, "lon": 3, "y": 2, "Lat": 2, "band": 1, "bands": 1}.get(dim, 0) for dim in dims]
    given = xarray.DataArray(values.transpose(names), dims=dims)
    days = [f"2020-01-{day:02}" for day in range(1, 11)]
    clear = given.isel({dims[names.index(1)]: 0}, drop=True) > 0.5
    seen = Observation.of(S2, given, dates=days, valid=clear)
    wanted = Observation.of(S2, values, dates=days, valid=values[:, :1] > 0.5)
    np.testing.assert_array_equal(seen.values, wanted.values)
    np.testing.assert_array_equal(seen.valid, wanted.valid)


def test_bands_and_dates_of_coordinates_are_used_and_never_contradicted():
    xarray = pytest.importorskip("xarray")
    names, days = list(S2.band_names[::-1]), np.array(["2020-06-01", "2020-07-01"], "datetime64[ns]")
    values = np.random.default_rng(0).uniform(100, 3000, (2, 10, 4, 4)).astype(np.float32)
    given = xarray.DataArray(values, dims=("time", "band", "y", "x"), coords={"band": names, "time": days})
    found = Observation.of(S2, given)
    assert np.array_equal(found.values, values[:, ::-1])
    assert found.dates.tolist() == days.astype("datetime64[D]").tolist()
    assert np.array_equal(
        Observation.of(S2, given, bands=names, dates=["2020-06-01", "2020-07-01"]).values, found.values
    )
    with pytest.raises(InputError, match="s2 bands: expected those of the coordinate, B12, B11, .* got B2, B3"):
        Observation.of(S2, given, bands=S2.band_names)
    with pytest.raises(InputError, match="s2 dates: expected those of the coordinate, 2020-06-01 …, got others"):
        Observation.of(S2, given, dates=["2020-06-02", "2020-07-01"])
    numbered = given.assign_coords(band=[f"band_{number}" for number in range(10)])
    assert np.array_equal(Observation.of(S2, numbered, bands=names).values, found.values)
    with pytest.raises(UnknownNameError, match="band_0"):
        Observation.of(S2, numbered)


@pytest.mark.parametrize("dims", [("time", "band", "dim_2", "x"), ("time", "band", "y", "lat"), ("band", "y", "x")])
def test_axes_with_other_names_are_refused(dims):
    xarray = pytest.importorskip("xarray")
    given = xarray.DataArray(np.ones((1, 10, 4, 4)[4 - len(dims) :]), dims=dims)
    told = rf"s2: expected the dimensions time, band, y, x, in any order, got \({', '.join(dims)}\); rename them"
    with pytest.raises(InputError, match=told):
        Observation.of(S2, given, dates=DAY)
    with pytest.raises(InputError, match=r"aerial valid mask: expected the dimensions band, y, x, .* got \(time, x\)"):
        Observation.of(AERIAL, np.ones((4, 5, 5)), valid=xarray.DataArray(np.ones((5, 5)), dims=("time", "x")))


@pytest.mark.parametrize("dates", [
    np.array([150, 180], object), [np.datetime64("2020-01-01"), 150], np.array([True, False], object),
    np.array([5, 6], "timedelta64[D]"), [datetime(2020, 1, 1), np.int64(150)],
])  # fmt: skip
def test_numbers_among_dates_are_no_days_of_1970(dates):
    with pytest.raises(InputError, match="s2 dates: expected dates such as 2020-06-01, got (the number|numbers)"):
        Observation.of(S2, np.ones((2, 10, 2, 2)), dates=dates)


def test_months_and_years_are_no_dates():
    pandas = pytest.importorskip("pandas")
    for unit in "YMW":
        with pytest.raises(InputError, match=r"s2 dates: .* got 2020\S*, which is longer than a day"):
            Observation.of(S2, filled(1), dates=np.array(["2020-01-02"], f"datetime64[{unit}]").astype(f"M8[{unit}]"))
    for freq in ("Y", "Q", "M", "W"):
        with pytest.raises(InputError, match=r"s2 dates: .* got 20\S+, which is longer than a day"):
            Observation.of(S2, filled(1), dates=pandas.period_range("2020-03-01", periods=1, freq=freq))
    for freq in ("D", "h"):
        seen = Observation.of(S2, filled(1), dates=pandas.period_range("2020-03-01", periods=1, freq=freq))
        assert str(seen.dates[0]) == "2020-03-01"


@pytest.mark.parametrize("given", [lambda seen: [seen], lambda seen: {"s2": seen.values}, lambda seen: seen])
def test_a_tile_holds_observations_by_key(given):
    with pytest.raises(InputError, match=r"tile 'tile': expected observations by modality key, got .*Tile.of\(s2"):
        Tile(observations=given(Observation.of(S2, filled(0), dates=DAY)))


@pytest.mark.parametrize("given", [lambda seen: [seen], lambda seen: "s2"])
def test_a_batch_of_other_things_names_them(given):
    with pytest.raises(InputError, match="batch: expected a list of tiles, got one with (Observation|str)"):
        Batch.of(given(Observation.of(S2, filled(0), dates=DAY)))


def test_records_are_asked_for_where_a_key_is_given():
    with pytest.raises(InputError, match=r"tile: expected shapes by record, .*MODALITIES\['s2'\], got one by 's2'"):
        PatchGrid.fit({"s2": (6, 6)}, 20)
    with pytest.raises(RecordError, match=r"with_modalities: expected records, .*MODALITIES\['s2'\], got 'drone'"):
        ModelConfig.tiny().with_modalities("drone")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"values": [[1, 2], [3]]}, r"s2: expected an array \(time band row col\), got a list \("),
        ({"values": torch.ones(1, 10, 2, 2).to_sparse()}, "s2: expected an array .*, got a Tensor .*Sparse layout"),
        ({"values": "file.tif"}, r"s2: expected an array \(time band row col\), got a str$"),
        ({"bands": "B2"}, "s2 bands: expected a list of names, one per stored band, got 'B2'"),
        ({"bands": 3}, "s2 bands: expected a list of names, one per stored band, got 3"),
        ({"units": 3}, "s2 units: expected one unit, or 10, one per stored band, got 3"),
        ({"units": dict.fromkeys(S2.band_names, "reflectance")}, "s2 units: .* one per stored band, got {'B2': "),
    ],
)
def test_pixels_bands_and_units_of_other_kinds_are_told(given, message):
    with pytest.raises(InputError, match=message):
        Observation.of(S2, **{"values": filled(1.0), "dates": DAY, **given})


def test_units_of_other_kinds_are_told_where_they_are_converted():
    with pytest.raises(InputError, match="s2 units: expected one unit, or 10, .* got None"):
        Observation.of(S2, filled(1.0), dates=DAY).in_units(None)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"modalities": None}, "ModelConfig.modalities: expected records"),
        ({"day_convention": 3}, "ModelConfig.day_convention: expected 'day_of_year' or"),
        ({"temporal_dropout_prob": "0.1"}, "ModelConfig.temporal_dropout_prob: expected a number, got '0.1'"),
        ({"pixel_dropout_prob": "0.1"}, "ModelConfig.pixel_dropout_prob: expected a number, got '0.1'"),
        ({"patch_position_unit_m": None}, "ModelConfig.patch_position_unit_m: expected a number, got None"),
        ({"pixel_widths": 16}, "ModelConfig.pixel_widths: expected multiples of 4"),
    ],
)
def test_fields_of_a_configuration_of_other_kinds_are_told(change, message):
    with pytest.raises(RecordError, match=message):
        ModelConfig(**change)
    with pytest.raises(RecordError, match="ModelConfig: expected its fields by name, got 3"):
        ModelConfig.from_dict(3)


def test_statistics_and_keys_of_other_kinds_are_told():
    with pytest.raises(StatisticsError, match="give the statistics of at least one, by its name"):
        Normaliser(statistics=3)
    with pytest.raises(InputError, match=r"batch: expected a Batch, such as Batch.of\(\[tile\]\), got list"):
        Normaliser.from_batch([])
    model = random_model(dim=64, depth=1, num_heads=2, modalities=(AERIAL,))
    with pytest.raises(InputError, match="input: expected keys such as 's2' and 's2_dates', got 1"):
        model({1: torch.ones(1, 4, 50, 50)}, 10)
    with pytest.raises(UnknownNameError, match=r"unknown dense modality \['aerial'\]"):
        model.encode_standardised({"aerial": torch.ones(1, 4, 50, 50)}, 10, dense=["aerial"])


@pytest.mark.parametrize("given", [None, 3])
def test_runs_and_datasets_are_given_by_path(given, tmp_path):
    with pytest.raises(
        InputError, match="run: expected the folder of a run, or its predictor file, got (NoneType|int)"
    ):
        anysat.load_task(given)
    with pytest.raises(InputError, match="root of the dataset: expected a name or a path, got (NoneType|int)"):
        anysat.open_dataset("pastis_hd", given)
    with pytest.raises(InputError, match="name of the dataset: expected a name or a path, got (NoneType|int)"):
        anysat.open_dataset(given, tmp_path)
