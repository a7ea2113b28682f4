"""Sources described in YAML or a mapping: the page's example runs, every key does what it says, mistakes are named."""

import re
from pathlib import Path

import numpy as np
import pytest
import yaml

from anysat.errors import MissingExtraError, MissingFileError, RecordError, SourceError, UnknownNameError
from anysat.geo.read import descriptions
from anysat.geo.read.quality import QUALITY_KINDS, Quality
from anysat.geo.read.sources import SourceDescription, open_sources
from anysat.modalities import MODALITIES as M
from geo_builders import cube, geobox, ramp, write_nc, write_tif
from stac_builders import make_item, write_catalog

PAGE = (Path(__file__).parents[3] / "docs" / "howto" / "sources.md").read_text()
S2 = M["s2"].band_names
BOX = geobox((6, 8))


def block(kind):
    return re.search(rf"```{kind}\n(.*?)```", PAGE, re.S)[1]


@pytest.fixture
def page_folder(tmp_path, monkeypatch):
    """Files of the names the page uses, all of one ground."""
    monkeypatch.chdir(tmp_path)
    Path("sources.yaml").write_text(block("yaml"))
    scl = np.array([[4, 4, 4, 8]] * 3, np.uint8)
    items = [
        make_item(tmp_path / "files", date, date, collection="sentinel-2-l2a", platform="sentinel-2b", assets={
            "B02": (ramp(6, 8) + 1000, BOX, {}), "SCL": (scl, geobox((3, 4), 20.0), {}),
        }, **{"s2:processing_baseline": "05.10"}) for date in ("2024-02-01", "2024-04-01")
    ]  # fmt: skip
    write_catalog(tmp_path / "scenes", items)
    Path("landsat").mkdir()
    for name, values in (("B4", [[0, 10000]]), ("B10", [[9000, 9000]]), ("QA_PIXEL", [[1, 8]])):
        pixels = np.repeat(np.array(values, np.uint16), 2, 0)
        write_tif(Path(f"landsat/LC08_20240401_{name}.tif"), pixels[None], geobox((2, 2), 30.0))
    write_nc(Path("radar.nc"), cube(np.ones((1, 2, 6, 8), "float32"), BOX, ["2024-04-02"], ["VV", "VH"]))
    write_tif(Path("photo.tif"), ramp(4, 300, 400, dtype="uint8"), geobox((300, 400), 0.2))
    roofs = np.zeros((1, 30, 40), np.uint8)
    roofs[0, :15] = 1
    write_tif(Path("roofs.tif"), roofs, geobox((30, 40), 2.0))
    return tmp_path


def test_the_code_of_the_page_runs_on_its_files(page_folder, capsys):
    exec(block("python"), {})  # the page is ours
    said = capsys.readouterr().out
    assert "masked by scl of SCL" in said
    assert "applied scale 1 and offset -1000" in said


def test_the_page_s_description_does_what_it_says(page_folder):
    sources = open_sources("sources.yaml", M)
    s2 = sources["s2"].observe(BOX)[0]
    assert s2.dates.astype(str).tolist() == ["2024-04-01"]
    np.testing.assert_array_equal(s2.values[0, 0, :, :6], ramp(6, 8)[:, :6])
    assert s2.valid[0, 0].tolist() == [[True] * 6 + [False] * 2] * 6
    l8 = sources["l8"].observe(geobox((2, 2), 30.0))[0]
    assert l8.units[9] == "K"
    assert not l8.valid.any()  # fill, and a cloud
    aerial = sources["aerial"].observe(geobox((300, 400), 0.2))[0]
    assert not aerial.valid[:, :150].any()
    assert aerial.valid[:, 150:].all()
    assert sources["s1"].dates.astype(str).tolist() == ["2024-04-02"]


def test_every_key_and_kind_of_the_page_is_known():
    rows = re.findall(r"^\| (`[^|]+) \|", PAGE, re.M)
    written = {name for row in rows for name in re.findall(r"`(\w+)`", row)}
    known = set(SourceDescription.__dataclass_fields__)
    assert written == known | set(QUALITY_KINDS)


def series(folder, **options):
    for number, date in enumerate(("2022-01-24", "2022-01-25")):
        write_tif(folder / f"{date}.tif", ramp(10, 6, 8) + 2000 * number, BOX, names=S2, **options)
    return {"path": str(folder)}


def observed(described, key="s2", box=BOX):
    return open_sources({key: described}, M)[key].observe(box)[0]


def test_an_offset_may_hold_from_a_day_on(tmp_path):
    """Plain Sentinel-2 numbers as they were delivered before and after the change of January 2022."""
    described = series(tmp_path) | {"offset": -1000, "offset_from": "2022-01-25"}
    found = observed(described)
    assert found.values[:, 0, 0, 0].tolist() == [100, 1100]
    assert set(found.units) == {"reflectance_1e4"}
    assert observed(series(tmp_path) | {"offset": -50}).values[:, 0, 0, 0].tolist() == [50, 2050]


def test_the_date_typed_for_an_undated_file_decides_whether_the_offset_holds(tmp_path):
    path = write_tif(tmp_path / "a.tif", ramp(10, 6, 8), BOX, names=S2)
    for day, expected in (("2022-01-24", 100), ("2022-01-25", 50)):
        found = observed({"path": f"{path}@{day}", "offset": -50, "offset_from": "2022-01-25"})
        assert found.values[0, 0, 0, 0] == expected


def test_a_scale_of_the_user_replaces_that_of_the_file(tmp_path):
    described = series(tmp_path, scale=(1e-4, -0.1), nodata=101)
    assert observed(described).values[0, 0, 0, 0] == pytest.approx(0.01 - 0.1)
    found = observed(described | {"scale": 2e-4})
    assert found.values[0, 0, 0, 0] == pytest.approx(0.02)
    assert not found.valid[0, 0, 0, 1]
    assert set(found.units) == {"reflectance"}
    stored = observed(described | {"scale": 1})
    assert (stored.values[0, 0, 0, 0], stored.units[0]) == (100, "reflectance_1e4")


def test_files_of_two_units_are_refused(tmp_path):
    write_tif(tmp_path / "a_20200103.tif", ramp(10, 6, 8), BOX, names=S2)
    write_tif(tmp_path / "b_20200104.tif", ramp(10, 6, 8), BOX, names=S2, scale=(1e-4, 0))
    with pytest.raises(
        SourceError, match="B2 is in reflectance here, but in reflectance_1e4 in another file; give files"
    ):
        observed({"path": str(tmp_path)})
    assert observed({"path": str(tmp_path), "scale": 1}).values[:, 0, 0, 0].tolist() == [100, 100]


def test_nodata_of_the_user_replaces_that_of_the_file(tmp_path):
    found = observed(series(tmp_path, nodata=101) | {"nodata": 102})
    assert found.valid[0, 0, 0, :4].tolist() == [True, True, False, True]


def test_a_packed_cube_can_be_understood_anew(tmp_path):
    dataset = cube(np.full((1, 10, 6, 8), 0.25), BOX, ["2020-01-03"], S2)
    dataset["pixels"].values[0, 0, 0, 0] = np.nan
    dataset["pixels"].encoding |= {"scale_factor": 1e-4, "add_offset": -0.1, "dtype": "uint16", "_FillValue": 65535}
    path = str(write_nc(tmp_path / "c.nc", dataset))
    found = observed({"path": path, "scale": 1e-4})
    assert found.values[0, 1] == pytest.approx(0.35)
    assert not found.valid[0, 0, 0, 0]


def test_units_of_the_caller_count_before_those_described(tmp_path):
    described = series(tmp_path) | {"units": {"B2": "DN", "B3": "DN"}}
    source = open_sources({"s2": described}, M, {("s2", "B3"): "reflectance"})["s2"]
    assert [source.units[k] for k in (0, 1, 2)] == ["DN", "reflectance", "reflectance_1e4"]


def test_bands_may_be_mapped_or_listed(tmp_path):
    path = str(write_tif(tmp_path / "a_20200103.tif", ramp(3, 6, 8), BOX, names=("one", "two", "three")))
    mapped = observed({"path": path, "bands": {"B4": "one", "B2": "three"}})
    assert mapped.values[0, [0, 2], 0, 0].tolist() == [196, 100]
    assert mapped.valid[0, :, 0, 0].sum() == 2
    listed = observed({"path": path, "bands": ["B4", None, "blue"]})
    np.testing.assert_array_equal(listed.values, mapped.values)


def test_files_without_a_band_that_was_named_are_not_read(tmp_path):
    """Ten bands without a name would be taken for those of Sentinel-2, were not one named."""
    write_tif(tmp_path / "a_20200103.tif", ramp(1, 6, 8), BOX, names=("one",))
    write_tif(tmp_path / "b_20200104.tif", ramp(10, 6, 8), BOX)
    source = open_sources({"s2": {"path": str(tmp_path), "bands": {"B2": "one"}}}, M)["s2"]
    assert (source.bands, source.dates.astype(str).tolist()) == (("B2",), ["2020-01-03"])


def test_paths_of_a_yaml_begin_at_its_folder(tmp_path, monkeypatch):
    (tmp_path / "s2").mkdir()
    series(tmp_path / "s2")
    write_tif(tmp_path / "lake.tif", (ramp(1, 6, 8) == 100).astype("uint8"), BOX)
    (tmp_path / "sources.yaml").write_text("s2: {path: s2, quality: {layer: lake.tif, invalid: [1]}}")
    monkeypatch.chdir("/")
    source = open_sources([str(tmp_path / "sources.yaml")], M)["s2"]
    assert (~source.observe(BOX)[0].valid[0, 0]).sum() == 1


def test_words_and_yaml_go_together_each_modality_once(tmp_path):
    (tmp_path / "s2").mkdir()
    series(tmp_path / "s2")
    write_tif(tmp_path / "photo.tif", ramp(3, 60, 80), geobox((60, 80), 1.0))
    (tmp_path / "sources.yaml").write_text("s2: s2/")
    words = [str(tmp_path / "sources.yaml"), f"spot={tmp_path / 'photo.tif'}"]
    assert sorted(open_sources(words, M)) == ["s2", "spot"]
    with pytest.raises(RecordError, match="each modality once, and 's2' is"):
        open_sources([*words, f"s2={tmp_path / 's2'}"], M)


def test_what_is_given_and_what_is_described_are_both_ranges(tmp_path):
    described = series(tmp_path) | {"dates": ["2022-01-25", "2022-12-31"]}
    assert open_sources({"s2": described}, M)["s2"].dates.astype(str).tolist() == ["2022-01-25"]
    between = np.datetime64("2022-01-01"), np.datetime64("2022-01-24")
    with pytest.raises(SourceError, match="none of its dates is between 2022-01-01 and 2022-01-24"):
        open_sources({"s2": described}, M, between=between)


@pytest.mark.parametrize(
    ("described", "error", "message"),
    [
        ({"pth": "a"}, UnknownNameError, "unknown field of s2 'pth'; closest: path"),
        ({}, RecordError, "s2: expected a `path` or a `stac`"),
        ({"path": "a", "collection": "b"}, RecordError, "s2, collection: expected nothing, since `stac` is not given"),
        ({"path": "a", "scale": 0}, RecordError, "s2, scale: expected a number other than 0"),
        ({"path": "a", "offset": "-1000"}, RecordError, "s2, offset: expected a number, got '-1000'"),
        ({"path": "a", "offset_from": "2022-01-25"}, RecordError, "s2, offset_from: expected an `offset`"),
        ({"path": "a", "dates": ["2022-01-25"]}, RecordError, "s2, dates: expected the first and the last day"),
        ({"path": "a", "dates": ["2022-01-25", "2022"]}, RecordError, "s2, dates: expected a day such as 2024-03-01"),
        ({"path": "a", "dates": ["2022-01-25", None]}, RecordError, "s2, dates: expected a day such as 2024-03-01"),
        ({"path": "a", "dates": ["2022-02-25", "2022-01-25"]}, RecordError, "a first day that is not after the last"),
        ({"path": "a", "units": "decibel"}, UnknownNameError, "unknown unit 'decibel'; closest"),
        ({"path": "a", "bands": "B2"}, RecordError, r"s2, bands: expected {modality band: stored band}"),
        ({"path": "a", "bands": {"B2": 1}}, RecordError, "s2, bands: expected a name for each band"),
        ({"path": "a", "quality": "slc"}, UnknownNameError, "unknown kind of quality layer 'slc'; closest: scl"),
        ({"path": "a", "quality": {"layr": "x"}}, UnknownNameError, "unknown field of quality 'layr'; closest: layer"),
        ({"path": "a", "quality": {"kind": "values", "layer": "x"}}, RecordError, "quality, invalid: expected the invalid numbers"),
        ({"path": "a", "quality": {"kind": "values", "valid": [1]}}, RecordError, "quality, layer: expected the name"),
        ({"path": "a", "quality": {"kind": "scl", "invalid": "3"}}, RecordError, "quality, invalid: expected a list"),
        ({"path": "a", "quality": {"kind": "qa_pixel", "valid": [3]}}, RecordError, "quality, valid: expected nothing"),
        ({"path": "a", "quality": {"kind": "qa_pixel", "invalid": [99]}}, RecordError, "bits from 0 to 23"),
    ],
)  # fmt: skip
def test_a_mistake_in_a_description_is_named(described, error, message):
    with pytest.raises(error, match=message):
        open_sources({"s2": described}, M)


def test_mistakes_in_a_yaml_name_the_file_and_the_key(tmp_path):
    file = tmp_path / "sources.yaml"
    with pytest.raises(
        MissingFileError, match=r"sources.yaml: no such file or folder; expected a YAML file of sources"
    ):
        open_sources(str(file), M)
    file.write_text("s2: {path: [")
    with pytest.raises(RecordError, match=r"sources.yaml: expected valid YAML"):
        open_sources(str(file), M)
    file.write_text("- s2")
    with pytest.raises(RecordError, match=r"sources.yaml: expected modality keys"):
        open_sources(str(file), M)
    file.write_text("s2: {path: a, nodata: x}")
    with pytest.raises(RecordError, match=r"sources.yaml, s2, nodata: expected a number, got 'x'"):
        open_sources(str(file), M)
    file.write_text("s9: a.tif")
    with pytest.raises(UnknownNameError, match="unknown modality 's9'"):
        open_sources(str(file), M)


def test_nothing_is_refused():
    with pytest.raises(RecordError, match="at least one MODALITY=PATH, or a YAML file"):
        open_sources([], M)


def test_a_description_turns_into_yaml_and_back(tmp_path):
    described = SourceDescription(
        stac="a/catalog.json", collection=("x",), bands={"B2": "blue"}, offset=-1000.0, offset_from="2022-01-25",
        quality=Quality(kind="scl", invalid=(3, 8)), dates=("2022-01-01", "2022-12-31"),
    )  # fmt: skip
    text = yaml.safe_dump({"s2": described.to_dict()})
    again = descriptions.describe_sources({"s2": yaml.safe_load(text)["s2"]})["s2"]
    assert again == described


def test_a_missing_library_is_named_with_its_extra(tmp_path, monkeypatch):
    import sys

    (tmp_path / "a.json").write_text("{}")
    monkeypatch.setitem(sys.modules, "pystac_client", None)
    with pytest.raises(MissingExtraError, match=r"'pystac-client': pip install 'anysat\[geo\]'"):
        open_sources({"s2": {"stac": str(tmp_path / "a.json")}}, M)


KEYS = {
    "collection": ["sentinel-2-l2a"], "bands": {"B2": "B02"}, "units": "reflectance_1e4", "scale": 1.0, "offset": -1000,
    "offset_from": "2022-01-25", "nodata": 0, "quality": "scl", "dates": ["2020-01-01", "2022-12-31"],
}  # fmt: skip


@pytest.mark.parametrize("place", ["path", "stac"])
def test_a_description_with_every_key_passes_through_an_area(tmp_path, place):
    """It identifies unfinished work, so it is stored as plain values."""
    from anysat.workflows.areas.inputs import open_inputs
    from anysat.workflows.areas.options import AreaOptions

    scl = np.full((1, 6, 8), 4, np.uint8)
    if place == "path":
        (tmp_path / "s2").mkdir()
        for word, values in (("B02", ramp(1, 6, 8)), ("SCL", scl)):
            write_tif(tmp_path / "s2" / f"20220201_{word}.tif", values, BOX)
        given = {"path": str(tmp_path / "s2")} | {key: value for key, value in KEYS.items() if key != "collection"}
    else:
        assets = {"B02": (ramp(6, 8), BOX, {}), "SCL": (scl[0], BOX, {})}
        write_catalog(tmp_path, [make_item(tmp_path, "one", "2022-02-01", collection="sentinel-2-l2a", assets=assets)])
        given = {"stac": str(tmp_path / "catalog.json"), **KEYS}
    assert {*given, *({"stac", "collection"} if place == "path" else {"path"})} == {
        *SourceDescription.__dataclass_fields__
    }
    told = open_inputs(AreaOptions(), {"s2": given}, (), M).facts()["s2"]["described"]
    assert {key: told[key] for key in ("offset", "offset_from", "dates")} == {
        "offset": -1000, "offset_from": "2022-01-25", "dates": ["2020-01-01", "2022-12-31"]}  # fmt: skip
    assert told.keys() == given.keys()
