"""`anysat catalog validate` finds what is wrong, says where, and exits with 1; on a good store it says so."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import zarr

from anysat.cli import main
from anysat.geo.stores.store import AreaStore
from anysat.geo.write.catalog import write_catalog
from store_builders import GRID, MADE_FROM, PERIODS, begin, class_layout, finished, patch_layout, run_facts

KINDS = ("float32", "float16", "int8-power", "int8-scale")


@pytest.fixture(scope="module")
def good(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("good")
    layouts = [*(patch_layout(kind, name="patch" if kind == "float32" else kind) for kind in KINDS), class_layout()]
    write_catalog(finished(folder / "a.zarr", layouts), run_facts())
    return folder


@pytest.fixture
def folder(good, tmp_path) -> Path:
    """A copy of one's own."""
    return Path(shutil.copytree(good, tmp_path / "copy"))


def errors(capsys, *words: object) -> list[str]:
    """What is wrong: `where check: text`."""
    status = main(["catalog", "validate", *map(str, words), "--json"])
    found = [
        f"{f['where']} {f['check']}: {f['text']}" for f in json.loads(capsys.readouterr().out) if f["level"] == "error"
    ]
    assert status == (1 if found else 0)
    return found


def attributes(path: Path, **changes):
    told = json.loads((path / "zarr.json").read_text())
    for key, value in changes.items():
        told["attributes"][key.replace("__", ":")] = value
        if value is None:
            del told["attributes"][key.replace("__", ":")]
    (path / "zarr.json").write_text(json.dumps(told))


def test_a_good_store_and_its_documents_pass(capsys, good):
    assert main(["catalog", "validate", str(good / "a.zarr")]) == 0
    told = capsys.readouterr().out
    assert "0 errors, 0 warnings in 52 checks" in told
    assert "11 x 7 of 20 in EPSG:32737" in told
    assert errors(capsys, good / "a.stac", "--quick") == []


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"geoemb__model": None}, "patch conventions: geoemb:model must be a str, is None"),
        ({"geoemb__dimensions": 7}, "patch conventions: geoemb:dimensions is 7, the array has 6"),
        ({"geoemb__type": "tile"}, "geoemb:type must be chip or pixel, is 'tile'"),
        ({"zarr_conventions": []}, "proj: is not named in zarr_conventions"),
        ({"proj__code": "32737"}, "patch conventions: proj:, spatial:"),
        ({"spatial__transform": [20, 0, 260910, 0, -20, 9595800]}, "coordinate x is 0.5 pixels off spatial:transform"),
        ({"spatial__transform": [20, 0, 260900, 0, 20, 9595800]}, "is not north-up"),
        ({"spatial__shape": [7, 11]}, "spatial:shape [7, 11], the array has [11, 7]"),
        ({"spatial__bbox": [0, 0, 1, 1]}, "spatial:bbox [0, 0, 1, 1], the grid has"),
        ({"proj__code": "EPSG:32736"}, "spatial_ref has another reference system than proj: (EPSG:32736)"),
    ],
)
def test_what_the_attributes_get_wrong_is_told(capsys, folder, change, told):
    attributes(folder / "a.zarr" / "patch", **change)
    found = errors(capsys, folder / "a.zarr", "--quick")
    assert any(told in line for line in found), found


def test_a_nodata_value_that_is_not_declared_is_told(capsys, folder):
    attributes(folder / "a.zarr" / "patch" / "embedding", _FillValue=None)
    assert errors(capsys, folder / "a.zarr", "--quick") == [
        "a.zarr/patch metadata: the consolidated metadata of embedding differ from its own",
        "a.zarr/patch nodata: embedding declares no _FillValue",
    ]


def test_a_shard_that_is_changed_or_lost_is_told(capsys, folder):
    shard = folder / "a.zarr" / "patch" / "embedding" / "c" / "1" / "0" / "2" / "0"
    content = bytearray(shard.read_bytes())
    content[40] ^= 1
    shard.write_bytes(content)
    (folder / "a.zarr" / "classes" / "valid" / "c" / "0" / "2" / "1").unlink()
    assert errors(capsys, folder / "a.zarr") == [
        "a.zarr/classes checksums: valid of period 0 row 2 col 1",
        "a.zarr/patch checksums: embedding of period 1 row 2 col 0",
    ]
    assert errors(capsys, folder / "a.zarr", "--quick") == []


def test_values_where_nothing_is_valid_are_told(capsys, folder):
    array = zarr.open_array(folder / "a.zarr", path="int8-power/valid", mode="r+")
    array[0, 8:11, 4:7] = ~array[0, 8:11, 4:7]
    shutil.rmtree(folder / "a.zarr" / "checksums")
    found = errors(capsys, folder / "a.zarr")
    assert "a.zarr/int8-power values: nodata does not agree with valid: period 0 row 2 col 1" in found


def test_empty_shards_between_others_are_told_as_gaps(capsys, tmp_path):
    layout = patch_layout()
    store = begin(tmp_path / "a.zarr", [layout])
    for unit in store.remaining():
        rows, cols = layout.shard_slices(unit.row, unit.col)
        seen = np.full((rows.stop - rows.start, cols.stop - cols.start), (unit.row, unit.col) != (1, 0))
        store.write(unit, {"patch": (np.where(seen[..., None], np.float32(1), np.nan).repeat(6, -1), seen)})
    store.finish()
    assert main(["catalog", "validate", str(tmp_path / "a.zarr")]) == 0
    told = capsys.readouterr().out
    assert "gaps: 2 empty shards where others have data: period 0 row 1 col 0, period 1 row 1 col 0" in told


def test_stores_of_different_weights_are_loudly_refused(capsys, tmp_path):
    finished(tmp_path / "a.zarr")
    finished(tmp_path / "b.zarr", made_from=MADE_FROM | {"weights": "xyz"})
    finished(tmp_path / "c.zarr")
    assert errors(capsys, tmp_path / "a.zarr", tmp_path / "c.zarr", "--quick") == []
    (told,) = errors(capsys, tmp_path / "a.zarr", tmp_path / "b.zarr", "--quick")
    assert "MIXED MODELS, embeddings are not comparable: a.zarr by abc; b.zarr by xyz" in told
    finished(tmp_path / "other" / "a.zarr", made_from=MADE_FROM | {"weights": "xyz"})
    (told,) = errors(capsys, tmp_path / "a.zarr", tmp_path / "other" / "a.zarr", "--quick")
    assert f"{tmp_path / 'a.zarr'} by abc; {tmp_path / 'other' / 'a.zarr'} by xyz" in told


def test_of_a_store_without_a_digest_of_its_weights_it_is_not_known_who_made_it(capsys, tmp_path):
    for name, weights in (("a", {"name": "nano", "digest": "abc"}), ("b", {"name": "nano"}), ("c", {"name": "nano"})):
        finished(tmp_path / f"{name}.zarr", made_from=MADE_FROM | {"weights": weights})
    stores = [str(tmp_path / f"{name}.zarr") for name in "abc"]
    assert main(["catalog", "validate", *stores, "--quick"]) == 0
    (told,) = [line for line in capsys.readouterr().out.splitlines() if "model:" in line]
    assert told.startswith("warning")
    assert "unknown whether one model made them all: no digest of the weights in b.zarr, c.zarr" in told


def test_an_unfinished_store_is_told(capsys, tmp_path):
    store = begin(tmp_path / "a.zarr", [patch_layout()])
    for path in (tmp_path / "a.zarr", tmp_path / "a.zarr.partial"):
        (told,) = errors(capsys, path)
        assert "a.zarr.partial finished: it is unfinished (0 units done)" in told
    store.close()


def test_documents_that_lie_are_told(capsys, folder):
    path = folder / "a.stac" / "patch" / "item.json"
    told = json.loads(path.read_text())
    told["properties"] |= {"proj:shape": [1, 2], "anysat:weights": "other"}
    told["assets"]["more"] = {"href": "../nothing.tif"}
    del told["assets"]["embeddings"]
    path.write_text(json.dumps(told))
    (folder / "a.stac" / "codes.json").write_text("{}")
    (form, found) = errors(capsys, folder / "a.zarr", "--quick")
    assert "a.stac/codes.json documents: pystac cannot read it" in form
    for text in ("no asset is called embeddings", "asset more leads to ../nothing.tif, which does not exist",
                 "proj:shape [1, 2], the store has [11, 7]", "anysat:weights other, the store says abc"):  # fmt: skip
        assert text in found


def test_what_is_no_store_exits_with_2(capsys, tmp_path):
    assert main(["catalog", "validate", str(tmp_path / "none.zarr")]) == 2
    assert "none.zarr: no such file or folder" in capsys.readouterr().err
    (tmp_path / "x.zarr").mkdir()
    assert main(["catalog", "validate", str(tmp_path / "x.zarr")]) == 2
    assert "it is not a Zarr store" in capsys.readouterr().err
    assert main(["catalog", "validate"]) == 2


def test_an_area_with_one_period_and_no_checksums_group_name_clash(tmp_path):
    """The name of the group of checksums is not free for a layout."""
    from anysat.errors import RecordError

    with pytest.raises(RecordError, match="none of them 'checksums'"):
        AreaStore.open(tmp_path / "a.zarr", [patch_layout(name="checksums", grid=GRID)], PERIODS[:1], {})


# Coordinates, of which no checksum is kept


@pytest.mark.parametrize(
    ("array", "told"),
    [
        ("patch/y", "patch place: coordinate y is not finite at 11 of 11 places"),
        ("patch/x", "patch place: coordinate x is not finite at 7 of 7 places"),
        ("patch/time", "patch coordinates: time is not the beginning of the periods in time_bnds"),
        ("patch/time_bnds", "time_bnds ends before it begins: 1970-01-01 to 1969-12-31"),
        ("int8-scale/scale", "int8-scale coordinates: scale has 6 of 6 steps that are not above 0"),
    ],
)
def test_coordinates_that_are_lost_are_told(capsys, folder, array, told):
    shutil.rmtree(folder / "a.zarr" / array / "c")
    found = errors(capsys, folder / "a.zarr", "--quick")
    assert any(told in line for line in found), found


def test_a_coordinate_that_cannot_be_read_is_named(capsys, folder):
    (folder / "a.zarr" / "patch" / "y" / "c" / "0").write_bytes(b"no such frame")
    (told,) = errors(capsys, folder / "a.zarr", "--quick")
    assert "a.zarr/patch place: damaged (coordinate y: it cannot be read (" in told


def test_periods_that_are_not_those_the_store_is_made_for_are_told(capsys, folder):
    for name in ("time", "time_bnds"):
        array = zarr.open_array(folder / "a.zarr", path=f"classes/{name}", mode="r+")
        array[:] = array[:] + 1
    (told, item) = errors(capsys, folder / "a.zarr", "--quick")
    assert "classes coordinates: time_bnds says [['2020-01-02', '2020-07-01']" in told
    assert "classes/item.json documents: anysat:periods" in item


def test_a_group_that_is_lost_is_told(capsys, folder):
    shutil.rmtree(folder / "a.zarr" / "float16")
    assert "a.zarr group: float16 is missing, though checksums of its arrays exist" in errors(capsys, folder / "a.zarr")


# What is damaged


@pytest.mark.parametrize(
    ("file", "text", "told"),
    [
        ("zarr.json", "[]", "a.zarr/zarr.json: it is not a Zarr store, or it is damaged"),
        (
            "patch/embedding/zarr.json",
            "{",
            "a.zarr/patch/embedding/zarr.json: it is not a Zarr store, or it is damaged",
        ),
        ("checksums/zarr.json", "", "a.zarr/checksums/zarr.json: it is not a Zarr store, or it is damaged"),
    ],
)
def test_damaged_metadata_are_named(capsys, folder, file, text, told):
    (folder / "a.zarr" / file).write_text(text)
    assert main(["catalog", "validate", str(folder / "a.zarr")]) == 2
    assert told in capsys.readouterr().err


@pytest.mark.parametrize("given", ["x", [1, 2], None])
def test_a_transform_that_is_none_names_its_file(capsys, folder, given):
    attributes(folder / "a.zarr" / "patch", spatial__transform=given or [None] * 6)
    assert main(["catalog", "validate", str(folder / "a.zarr")]) == 2
    assert "a.zarr/patch/zarr.json: spatial:transform is" in capsys.readouterr().err


def test_one_damaged_store_or_document_does_not_hide_the_others(capsys, folder, tmp_path):
    finished(tmp_path / "b.zarr")
    (tmp_path / "b.zarr" / "patch" / "zarr.json").write_text("{")
    (folder / "a.stac" / "patch" / "item.json").write_text("{")
    found = errors(capsys, folder / "a.zarr", tmp_path / "b.zarr", "--quick")
    assert [line.partition(" ")[0] for line in found] == ["a.stac/patch/item.json", "b.zarr"], found
    assert "it is not JSON" in found[0]


@pytest.mark.parametrize(
    ("name", "change", "told"),
    [
        ("item", lambda d: d["bbox"].__setitem__(0, d["bbox"][0] + 1), "bbox [3"),
        ("item", lambda d: d["geometry"]["coordinates"][0][3].__setitem__(0, 0.0), "its geometry lies within"),
        ("item", lambda d: d["properties"].__setitem__("proj:transform", "x"), "damaged"),
        ("collection", lambda d: d["extent"]["spatial"]["bbox"][0].__setitem__(3, 1.0), "bbox [3"),
    ],
)
def test_documents_of_another_place_are_told(capsys, folder, name, change, told):
    path = folder / "a.stac" / "patch" / f"{name}.json"
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document))
    (found,) = errors(capsys, folder / "a.zarr", "--quick")
    assert found.startswith(f"a.stac/patch/{name}.json documents: ")
    assert told in found
