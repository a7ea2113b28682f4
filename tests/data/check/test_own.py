"""What the check says of a user's own files: numbers that mean no data, absent bands, ground shared by splits."""

import numpy as np
import pytest
import yaml

from anysat.data.check import check_dataset
from anysat.data.open import open_dataset
from anysat.data.pack.write import pack_dataset
from geo_builders import LEFT, SOUTH, TOP, geobox, write_tif
from own_builders import COVER, S2, described, image

RNG = np.random.default_rng(0)


def _noise(*shape, low=300, high=3000):
    return RNG.integers(low, high, shape).astype("uint16")


def _tiles(root, count=4, values=lambda index: _noise(len(S2), 8, 8), **options):
    for index in range(count):
        image(root / "s2" / f"t{index}.tif", values(index), **options)


def _findings(root, samples=64, **content):
    report = check_dataset(described(root, **content), root, samples=samples)
    return {finding.kind: finding for finding in report.findings}, report


def test_a_missing_file_does_not_hide_a_later_sample_that_cannot_be_read(tmp_path):
    _tiles(tmp_path)
    (tmp_path / "cover").mkdir()
    for index in (1, 2, 3):
        labels = np.full((1, 8, 8), 77 if index > 1 else 0, "uint8")
        write_tif(tmp_path / "cover" / f"t{index}.tif", labels, geobox((8, 8)))
    found, _ = _findings(tmp_path, targets={"cover": COVER})
    assert found["missing-file"].count == 1
    assert found["unreadable-sample"].where == "samples: t2, t3"


def test_a_file_that_many_samples_share_is_reported_once(tmp_path):
    _tiles(tmp_path)
    (tmp_path / "tiles.csv").write_text("id\n" + "".join(f"t{index}\n" for index in range(4)))
    target = {"cover": COVER | {"path": "cover.tif"}}
    found, _ = _findings(tmp_path, targets=target, tiles="tiles.csv")
    assert "missing-file" in found
    assert "unreadable-sample" not in found


def test_a_band_that_no_file_has_is_reported(tmp_path):
    _tiles(tmp_path, names=[*S2[:-1], "other"])
    found, _ = _findings(tmp_path)
    assert found["empty-band"].where.startswith("s2, B12: t0")
    assert "no file has it by this name" in found["empty-band"].message


def test_a_band_that_the_description_leaves_out_is_not_missed(tmp_path):
    _tiles(tmp_path, names=None)
    source = {"s2": {"path": "s2/{id}.tif", "bands": [*S2[:-1], "-"]}}
    assert "empty-band" not in _findings(tmp_path, modalities=source)[0]


def test_what_opening_the_files_told_is_told(tmp_path):
    _tiles(tmp_path, names=[*S2[:-1], "other"])
    _, report = _findings(tmp_path)
    assert any(note.startswith("s2: not used: other") and note.endswith("(4 tiles)") for note in report.notes)


def test_files_of_a_folder_per_tile_that_are_not_used_are_told_once(tmp_path):
    """As in BigEarthNet, whose files carry the name of their tile."""
    for name in ("t0", "t1", "u_2"):
        for band in (*S2, "B01", "B09"):
            image(tmp_path / "s2" / name / f"{name}_{band}.tif", _noise(1, 8, 8), names=[band])
    report = check_dataset(described(tmp_path, modalities={"s2": {"path": "s2/{id}"}}), tmp_path)
    assert [note for note in report.notes if "not used" in note] == [
        "s2: not used: {id}_B01.tif, {id}_B09.tif (3 tiles)"
    ]


def test_a_tile_named_like_a_modality_changes_no_note(tmp_path):
    for name in ("s2", "t1"):
        image(tmp_path / "s2" / f"{name}.tif", _noise(len(S2), 8, 8), names=[*S2[:-1], "other"])
    report = check_dataset(described(tmp_path), tmp_path)
    assert [note for note in report.notes if "not used" in note] == ["s2: not used: other (2 tiles)"]


def test_a_band_that_the_description_leaves_out_is_not_told_as_not_used(tmp_path):
    _tiles(tmp_path, names=None)
    source = {"s2": {"path": "s2/{id}.tif", "bands": [*S2[:-1], "-"]}}
    assert not any("not used" in note for note in _findings(tmp_path, modalities=source)[1].notes)


def test_advice_about_own_data_speaks_of_the_yaml_file(tmp_path):
    _tiles(tmp_path, values=lambda index: _noise(len(S2), 8, 8) + np.uint16(40_000))
    found, _ = _findings(tmp_path)
    assert "in the YAML file" in found["wrong-unit"].message


@pytest.mark.parametrize(
    ("value", "unit"), [(0, "reflectance_1e4"), (-9999, "reflectance"), (65535, "reflectance_1e4")]
)
def test_one_number_in_all_bands_of_many_pixels_looks_like_no_data(tmp_path, value, unit):
    def values(index):
        made = _noise(len(S2), 8, 8) / (1e4 if unit == "reflectance" else 1)
        made[:, 3] = value
        return made.astype("float32")

    _tiles(tmp_path, values=values)
    source = {"s2": {"path": "s2/{id}.tif", "units": unit}}
    found, _ = _findings(tmp_path, modalities=source)
    assert found["hidden-nodata"].count == 4
    assert f"25% of the pixels are {value} in all bands" in found["hidden-nodata"].message
    source["s2"]["nodata"] = value
    assert "hidden-nodata" not in _findings(tmp_path, modalities=source)[0]


def test_one_band_at_zero_on_many_pixels_is_ground(tmp_path):
    def values(index):
        made = _noise(len(S2), 8, 8)
        made[-1, 3] = 0
        return made

    _tiles(tmp_path, values=values)
    assert "hidden-nodata" not in _findings(tmp_path)[0]


@pytest.mark.parametrize("value", [-9999, -32768, -3.4028234663852886e38])
@pytest.mark.parametrize("limits", [None, [-1e39, 50]])
def test_numbers_that_stand_for_no_data_are_no_values_to_predict(tmp_path, value, limits):
    _tiles(tmp_path)
    (tmp_path / "h").mkdir()
    for index in range(4):
        heights = RNG.random((1, 8, 8)).astype("float32")
        heights[:, 3] = value
        write_tif(tmp_path / "h" / f"t{index}.tif", heights, geobox((8, 8)))
    target = {"path": "h/{id}.tif", "unit": "m", "gsd_m": 10}
    if limits is not None:
        limits = [min(value, -20_000) if value > -1e30 else -1e18, 50]
        target["limits"] = limits
    found, _ = _findings(tmp_path, targets={"h": target})
    assert ("label-range" in found) == (limits is None or value < limits[0])


def _pairs(root, places, table=None):
    """Tiles of training and test in turn, at (left, top, reference system)."""
    (root / "s2").mkdir()
    for index, (left, top, crs) in enumerate(places):
        box = geobox((8, 8), 10.0, left, top, crs)
        tags = {"DATETIME": "2020:06:01"}
        write_tif(root / "s2" / f"t{index}.tif", _noise(len(S2), 8, 8), box, names=S2, tags=tags)
    split = ["train", "test"]
    text = table or "id,split\n" + "".join(f"t{index},{split[index % 2]}\n" for index in range(len(places)))
    (root / "tiles.csv").write_text(text)


def test_ground_shared_by_splits_is_seen_over_the_border_of_a_zone(tmp_path):
    from pyproj import Transformer

    other = Transformer.from_crs("EPSG:32632", "EPSG:32633", always_xy=True).transform(740_000, 5_500_000)
    _pairs(tmp_path, [(740_000, 5_500_000, "EPSG:32632"), (round(other[0], -1), round(other[1], -1), "EPSG:32633")])
    assert "share ground" in _findings(tmp_path, tiles="tiles.csv")[0]["leaked-place"].message


def test_neighbours_that_touch_share_no_ground(tmp_path):
    _pairs(tmp_path, [(LEFT, TOP, SOUTH), (LEFT + 40, TOP, SOUTH), (LEFT + 40, TOP + 40, SOUTH)])
    assert "leaked-place" not in _findings(tmp_path, tiles="tiles.csv")[0]


def test_places_of_the_table_tell_of_tiles_that_are_not_read(tmp_path):
    """One of 300 tiles of test lies on one of training, and other tiles are read."""
    lons = [9 + index / 1000 for index in range(300)]
    lons[200] = lons[101] + 1e-5
    rows = [f"t{index},{lon},50,{'train' if index % 2 else 'test'}\n" for index, lon in enumerate(lons)]
    _pairs(tmp_path, [], "id,lon,lat,split\n" + "".join(rows))
    box = geobox((40, 2200), 10.0, 499_900, 5_538_900, "EPSG:32632")
    write_tif(tmp_path / "s2" / "all.tif", _noise(len(S2), 40, 2200), box, names=S2, tags={"DATETIME": "2020:06:01"})
    source = {"s2": {"path": "s2/all.tif"}}
    found, report = _findings(tmp_path, samples=2, tiles="tiles.csv", modalities=source, centre="table")
    assert (report.num_read, "unreadable-sample" in found) == (2, False)
    assert found["leaked-place"].where == "test and train: t101 and t200"


def test_places_of_the_table_tell_of_packed_tiles_too(tmp_path):
    """Of four tiles two of which lie on one place, one of each split is read."""
    from pyproj import Transformer

    tops = (TOP, TOP + 1000, TOP + 2000, TOP)
    _pairs(tmp_path, [(LEFT, top, SOUTH) for top in tops], "id\n")
    to_degrees = Transformer.from_crs(SOUTH, "EPSG:4326", always_xy=True).transform
    places = [to_degrees(LEFT + 40, top - 40) for top in tops]
    rows = [f"t{i},{lon},{lat},{'test' if i == 3 else 'train'}\n" for i, (lon, lat) in enumerate(places)]
    (tmp_path / "tiles.csv").write_text("id,lon,lat,split\n" + "".join(rows))
    name = described(tmp_path, tiles="tiles.csv")
    pack_dataset(open_dataset(name, tmp_path, "all"), tmp_path / "packed")
    for root in (tmp_path, tmp_path / "packed"):
        found = check_dataset(name, root, samples=1).findings
        assert [one.where for one in found if one.kind == "leaked-place"] == ["test and train: t3 and t0"]
        assert all("`block_m` in the YAML file" in one.message for one in found if one.kind == "leaked-place")


def test_few_pixels_do_not_tell_that_bands_are_exchanged(tmp_path):
    """Series of single pixels, whose correlations are those of a handful of fields."""
    path = tmp_path / "mine.yaml"
    fields = np.cumsum(RNG.normal(size=(len(S2), 30)), axis=0)[RNG.permutation(len(S2))] * 200 + 2000
    for index in range(3):
        for date in range(8):
            values = np.clip(fields[:, (index * 8 + date) % 30], 1, 9000).astype("uint16").reshape(-1, 1, 1)
            target = tmp_path / "s2" / f"t{index}" / f"2020{date + 1:02d}01.tif"
            target.parent.mkdir(parents=True, exist_ok=True)
            write_tif(target, values, geobox((1, 1), 10.0, LEFT + 500 * index), names=S2)
    path.write_text(yaml.safe_dump({"name": "mine", "tile_m": 10, "modalities": {"s2": {"path": "s2/{id}"}}}))
    assert "swapped-bands" not in {finding.kind for finding in check_dataset(str(path), tmp_path).findings}


def test_a_split_that_the_draw_leaves_empty_is_noted(tmp_path):
    for name in ("t0", "t1"):
        image(tmp_path / "s2" / f"{name}.tif")
    report = check_dataset(described(tmp_path, splits={"shares": {"val": 1}}), tmp_path)
    assert report.notes[:2] == ("no sample of the split train", "no sample of the split test")
