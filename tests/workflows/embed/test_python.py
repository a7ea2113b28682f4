"""`anysat.embed` and `anysat.zonal` in Python: what may be given, what is told, and what is done with the result."""

import datetime
import json
import warnings

import geopandas
import numpy as np
import odc.geo.xr  # noqa: F401
import pandas
import pytest
import shapely
import xarray

import anysat
from anysat.errors import AnySatError, InputError, RecordError, SourceError, SourceWarning, UnknownNameError
from anysat.modalities import MODALITIES as M
from anysat.model.checkpoint import save
from anysat.normalise import Normaliser
from geo_builders import LEFT, TOP, cube, geobox, write_nc

S2 = M["s2"].band_names
BOX = geobox((12, 16))
DATES = ["2020-01-03", "2022-06-30"]


def imagery(names=S2, *, dates=DATES, box=BOX):
    """A variable per band, as catalogs are opened."""
    values = np.random.default_rng(0).uniform(300, 3000, (len(dates), len(names), *box.shape)).astype(np.float32)
    stacked = cube(values, box, dates, names).pixels
    return stacked.to_dataset("band").odc.assign_crs(str(box.crs))


def cloudy():
    """With a scene classification: cloud in the first two rows of patches."""
    data = imagery()
    classes = np.full((2, *BOX.shape), 4, np.uint8)
    classes[:, :4] = 9
    return data.assign(SCL=(("time", "y", "x"), classes))


def embed(data, **options):
    if not isinstance(data, dict):
        data = {"s2": data}
    return anysat.embed(data, 20, **{"weights": "nano", "dataset": "bigearthnet_pairs"} | options)


def degrees(shapes):
    return geopandas.GeoSeries(shapes, crs=str(BOX.crs)).to_crs(4326)


def told(data, **options):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", SourceWarning)
        found = embed(data, **options)
    return [str(one.message) for one in caught if one.category is SourceWarning], found


def test_the_first_modality_s_sub_patches_can_be_asked_for_without_its_name():
    xarray.testing.assert_identical(embed(imagery(), dense="first"), embed(imagery(), dense="s2"))
    given = {"modis": imagery(M["modis"].band_names, box=geobox((4, 4), pixel_m=250.0)), "s2": imagery()}
    options = {"statistics": "from-data", "dataset": None, "units": {"modis": "reflectance_1e4"}}
    assert embed(given, dense="first", **options).sizes["x"] == BOX.width  # a pixel of MODIS is larger than a patch


def test_what_may_be_a_mistake_is_told_once_per_input_and_the_notes_are_kept():
    said, found = told(cloudy().drop_vars("B8A").assign(B09=cloudy().B2))
    assert said == [
        "s2: lacks B8A; not used: B09; nothing is masked, though it has a layer for `quality: scl`",
    ]
    (notes,) = json.loads(found.attrs["anysat"])["notes"].values()
    assert set(said[0][4:].split("; ")) < set(notes)
    assert found.valid.all()


def test_a_cube_that_is_used_whole_warns_of_nothing():
    said, found = told(imagery())
    assert said == []
    assert json.loads(found.attrs["anysat"])["notes"] == {"s2": ["reflectance_1e4 (assumed)"]}


def test_a_cube_is_masked_by_its_quality_layer():
    said, found = told({"s2": {"cube": cloudy(), "quality": "scl"}})
    assert said == []
    assert not found.valid[0, :2].any()
    assert found.valid[0, 2:].all()
    assert json.loads(found.attrs["anysat"])["inputs"]["s2"]["described"]["quality"]["kind"] == "scl"


def test_what_is_said_of_a_cube_has_the_effect_that_it_has_for_a_file(tmp_path):
    names = [f"obs_{number}" for number in range(len(S2))]
    said = {"bands": dict(zip(S2, names, strict=True)), "scale": 2, "offset": -1000, "offset_from": "2022-01-25",
            "units": "reflectance_1e4", "dates": ["2020-01-01", "2022-12-31"]}  # fmt: skip
    path = write_nc(tmp_path / "c.nc", imagery(names))
    of_file = embed({"s2": {"path": str(path), **said}}).embedding.values
    of_cube = embed({"s2": {"cube": imagery(names), **said}})
    np.testing.assert_array_equal(of_cube.embedding.values, of_file)
    lazy = embed({"s2": {"cube": imagery(names).chunk(), **said}})
    assert lazy.embedding.chunks is not None
    assert not np.allclose(embed({"s2": {"cube": imagery(names), **said, "offset": 0, "offset_from": None}}).embedding,
                           of_file)  # fmt: skip


@pytest.mark.parametrize(
    ("said", "kind", "match"),
    [({"qualty": "scl"}, UnknownNameError, "field of s2 'qualty'; closest: quality"),
     ({"path": "a.nc"}, UnknownNameError, "field of s2 'path'"),
     ({"scale": "2"}, RecordError, "s2, scale: expected a number, got '2'"),
     ({"quality": "qa_pixel"}, UnknownNameError, "quality layer of s2 'QA_PIXEL'")],
)  # fmt: skip
def test_a_wrong_description_of_a_cube_is_named(said, kind, match):
    with pytest.raises(kind, match=match):
        embed({"s2": {"cube": imagery(), **said}})


def test_the_area_may_be_given_as_numbers_files_or_polygons(tmp_path):
    part = shapely.box(LEFT + 42, TOP - 78, LEFT + 118, TOP - 2)
    west, south, east, north = degrees([part])[0].bounds
    whole = embed(imagery(), area=f"{west},{south},{east},{north}")
    assert whole.embedding.shape[2:] == (4, 4)
    for area in ([west, south, east, north], np.array([west, south, east, north])):
        xarray.testing.assert_identical(embed(imagery(), area=area), whole)
    frame = geopandas.GeoDataFrame(geometry=[part], crs=str(BOX.crs))
    frame.to_file(tmp_path / "a.gpkg")
    of_file = embed(imagery(), area=tmp_path / "a.gpkg")
    for area in (frame, frame.geometry, degrees([part])[0]):
        np.testing.assert_array_equal(embed(imagery(), area=area).embedding, of_file.embedding)
    with pytest.raises(SourceError, match="no reference system"):
        embed(imagery(), area=geopandas.GeoDataFrame(geometry=[part]))


def test_dates_units_and_devices_may_be_given_as_python_has_them():
    import torch

    first = embed(imagery(), dates="2020-01-01/2020-12-31")
    days = datetime.date(2020, 1, 1), pandas.Timestamp("2020-12-31")
    for given in (days, [np.datetime64("2020-01-01"), "2020-12-31"]):
        xarray.testing.assert_identical(embed(imagery(), dates=given, device=torch.device("cpu")), first)
    for units in ({"s2": "reflectance_1e4"}, "s2=reflectance_1e4", ("s2=reflectance_1e4",)):
        assert "as given" in json.loads(embed(imagery(), units=units).attrs["anysat"])["notes"]["s2"][0]


@pytest.mark.parametrize(
    ("options", "kind", "match"),
    [({"aera": "1,2,3,4"}, UnknownNameError, "option of anysat.embed 'aera'; closest: area"),
     ({"area": (1, 2, 3)}, InputError, "area of anysat.embed: expected four numbers"),
     ({"dates": ["2020-01-01"]}, RecordError, "dates: expected the first and the last day"),
     ({"dense": ["s2", "s1"]}, InputError, r"dense .*expected one text, got \['s2', 's1'\]; .* embed once for each"),
     ({"area": [np.nan] * 4}, InputError, "area of anysat.embed: expected four numbers"),
     ({"weights": None}, InputError, "weights of anysat.embed: expected a name, a path, a hub id or a model, got None"),
     ({"statistics": Normaliser.preset("treesatai_ts")}, InputError, r"got Normaliser\(.{9,30}\); give .* to the model"),
     ({"window": "16"}, InputError, "window of anysat.embed: expected a whole number, got '16'"),
     ({"overlap": "0.5"}, InputError, "overlap of anysat.embed: expected a number, got '0.5'"),
     ({"window": True}, InputError, "expected a whole number, got True"),
     ({"units": ["s2", 1]}, InputError, "units by input"),
     ({"precision": "fp8"}, UnknownNameError, "^unknown precision 'fp8'"),
     ({"memory_gb": 0}, RecordError, "^memory_gb: expected"),
     ({"memory_gb": 0.1}, RecordError, "^memory_gb: expected at least")],
)  # fmt: skip
def test_a_wrong_option_is_named_as_it_was_given(options, kind, match):
    with pytest.raises(kind, match=match):
        embed(imagery(), **options)


def test_a_patch_size_that_is_no_number_is_refused():
    with pytest.raises(InputError, match="patch_size_m of anysat.embed: expected a number, got '20'"):
        anysat.embed({"s2": imagery()}, "20", weights="nano")
    with pytest.raises(RecordError, match="^patch_size_m: expected a positive number"):
        anysat.embed({"s2": imagery()}, -20, weights="nano")


@pytest.mark.parametrize("data", [imagery(), imagery().B2, [imagery()]], ids=["Dataset", "DataArray", "list"])
def test_data_that_names_no_modality_is_refused(data):
    with pytest.raises(InputError, match='cubes by modality, got a .*give a mapping such as {"s2": cube}'):
        anysat.embed(data, 20, weights="nano")


@pytest.mark.parametrize(
    ("data", "match"),
    [(imagery().isel(time=0, drop=True), "give the cube a coordinate `time`"),
     (imagery(["one", "two"]), "give `bands` in a description of the source")],
)  # fmt: skip
def test_advice_on_a_cube_can_be_followed_in_python(data, match):
    with pytest.raises(AnySatError, match=match):
        embed(data)


def test_the_model_that_was_used_is_named(tmp_path):
    shipped = "pkg:generic/anysat#model/weights/nano.safetensors"
    assert embed(imagery()).attrs["geoemb:model"] == shipped
    model = anysat.load("nano")
    own = embed(imagery(), weights=model)
    used = json.loads(own.attrs["anysat"])["weights"]["digest"]
    assert own.attrs["geoemb:model"] == f"hash://sha256/{used}"
    save(model, tmp_path / "w.safetensors")
    saved = embed(imagery(), weights=tmp_path / "w.safetensors")
    assert saved.attrs["geoemb:model"] == (tmp_path / "w.safetensors").as_uri()


def test_the_result_can_be_written_and_read_again(tmp_path):
    found = embed(imagery(), period="year", dates=("2020-01-01", "2021-12-31"))
    found.to_netcdf(tmp_path / "a.nc", engine="h5netcdf")
    found.to_zarr(tmp_path / "a.zarr", group="patch", consolidated=False)
    for again in (xarray.open_dataset(tmp_path / "a.nc", decode_coords="all"),
                  xarray.open_zarr(tmp_path / "a.zarr", group="patch", consolidated=False, decode_coords="all")):  # fmt: skip
        np.testing.assert_array_equal(again.embedding, found.embedding)
        assert again.odc.geobox == found.odc.geobox
        assert again.attrs.keys() == found.attrs.keys()
        assert json.loads(again.attrs["anysat"])["options"]["patch_size_m"] == 20


def test_a_result_that_was_written_as_zarr_is_summarised_by_field(tmp_path):
    found = embed(imagery())
    fields = geopandas.GeoDataFrame(geometry=[shapely.box(LEFT, TOP - 40, LEFT + 40, TOP)], crs=str(BOX.crs))
    with pytest.raises(InputError, match='got a Dataset; .* `data.to_zarr."area.zarr", group="patch".`'):
        anysat.zonal(found, fields)
    found.to_zarr(tmp_path / "area.zarr", group="patch", consolidated=False)
    table = anysat.zonal(tmp_path / "area.zarr", fields)
    np.testing.assert_allclose(table.e0[0], found.embedding[0, 0, :2, :2].mean(), rtol=1e-5)
    assert str(table.end_datetime[0])[:10] == "2022-06-30"
