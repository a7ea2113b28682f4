"""Facts of the datasets of events: BraDD-S1TS, Sen1Floods11, HLS Burn Scars, SpaceNet 7."""

import datetime
import json
import pickle
import zipfile
from itertools import islice

import numpy as np
import pytest
import rasterio
import torch
from affine import Affine
from odc.geo.geobox import GeoBox

from anysat.data.datasets import spacenet7
from anysat.data.files import read_file, write_file
from anysat.data.layout import DatasetFolder
from anysat.data.open import find_dataset, open_dataset
from anysat.data.world import FACTORS, World
from anysat.errors import SourceError
from miniatures import LAYOUTS, copied, miniature

YEARS = {
    "bradd_s1ts": lambda index: 2020 + index % 2,
    "sen1floods11": lambda index: 2019 - index % 2,
    "hls_burn_scars": lambda index: 2018 + index % 4,
    "spacenet7": lambda _: 2018,
}
STEPS = {"bradd_s1ts": 1, "sen1floods11": 4, "hls_burn_scars": 2, "spacenet7": 8}
"""Pixels of a miniature that show one pixel of the world, in each direction."""
every_layout = pytest.mark.parametrize(("name", "layout"), [pair for pair in LAYOUTS if pair[0] in YEARS])
HAND = "data/flood_events/HandLabeled"
CHIP = "Spain_7370579"


def _tiles_by_place(name, layout):
    """Tiles of a miniature beside the places of the world they were written from."""
    record, dataset = find_dataset(name), open_dataset(name, miniature(name, layout), "all")
    places = [World(0).tile(i, extent_m=record.tile_m, year=YEARS[name](i)) for i in range(len(dataset))]
    by_ground = {place.geobox(record.targets[0].gsd_m).affine[:6]: place for place in places}
    for tile in dataset:
        yield tile, by_ground[tile.geobox.affine[:6]] if tile.geobox is not None else places[int(tile.id[:7])]


@every_layout
def test_values_read_are_those_the_world_showed(name, layout):
    """Bands in other places, units mistaken or rows and columns swapped would differ."""
    step = STEPS[name]
    for tile, place in islice(_tiles_by_place(name, layout), 2):
        for key, observation in tile.observations.items():
            gsd_m = place.extent_m / observation.shape_px[0] * step
            shown = place.observe(key, dates=observation.dates, gsd_m=gsd_m, keep_clouds=step > 1)
            shown = shown.in_units(observation.units)
            read, both = observation.values[..., ::step, ::step], observation.valid[..., ::step, ::step] & shown.valid
            assert both.mean() > 0.5
            for band, unit in enumerate(observation.units):
                rounding = {"DN": 0.51, "reflectance_1e4": 0.51, "reflectance": 6e-5}.get(unit, 1e-5)
                at = both[..., band, :, :]
                np.testing.assert_allclose(
                    read[..., band, :, :][at], shown.values[..., band, :, :][at], atol=rounding, rtol=1e-5
                )


@pytest.mark.parametrize(
    ("name", "entry", "bands", "unit"),
    [
        ("bradd_s1ts", "s1", "VV VH", "dB"),
        ("sen1floods11", "s1", "VV VH", "dB"),
        ("sen1floods11", "s2", "B1 B2 B3 B4 B5 B6 B7 B8 B8A B9 B10 B11 B12", "reflectance_1e4"),
        ("hls_burn_scars", "hls", "B2 B3 B4 B8A B11 B12", "reflectance"),
        ("spacenet7", "planet", "R G B alpha", "DN"),
    ],
)
def test_bands_and_units_are_those_the_release_documents(name, entry, bands, unit):
    for layout in find_dataset(name).layouts:
        assert layout[entry].bands == tuple(bands.split())
        assert layout[entry].unit == unit


@every_layout
def test_targets_read_are_the_map_of_the_world(name, layout):
    factor, event = {
        "bradd_s1ts": ("change", "cleared"),
        "sen1floods11": ("flood", "flooded"),
        "hls_burn_scars": ("burn", "burnt"),
        "spacenet7": ("building", "building"),
    }[name]
    for tile, place in _tiles_by_place(name, layout):
        target, dates = *tile.targets.values(), list(tile.observations.values())[-1].dates
        date = None if dates is None else dates[-1]
        shown = place.raster(factor, place.extent_m / len(target) * STEPS[name], date=date)
        read = target[:: STEPS[name], :: STEPS[name]]
        assert (read >= 0).mean() > 0.5
        np.testing.assert_array_equal((read == 1)[read >= 0], (shown == FACTORS[factor].index(event))[read >= 0])


# Files that could run code, and tables without a header


class _Evil:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (self.path, "w"))


def test_a_sample_that_would_run_code_is_refused_and_does_not(tmp_path):
    root = copied("bradd_s1ts", tmp_path)
    victim = sorted((root / "Samples").iterdir())[0]
    content = torch.load(victim, weights_only=False)
    torch.save({**content, "image_dates": _Evil(str(tmp_path / "ran"))}, victim)
    with pytest.raises(SourceError, match=f"{victim.name}.*could run code"):
        list(open_dataset("bradd_s1ts", root, "all"))
    assert not (tmp_path / "ran").exists()


def test_arrays_in_tensor_files_are_read_under_the_names_of_numpy_1(tmp_path):
    new, old = tmp_path / "new.pt", tmp_path / "old.pt"
    torch.save({"image": np.arange(6.0).reshape(2, 3), "one": np.float32(7)}, new)
    with zipfile.ZipFile(new) as source, zipfile.ZipFile(old, "w") as target:
        for name in source.namelist():
            target.writestr(name, source.read(name).replace(b"numpy._core.", b"numpy.core."))
    assert b"numpy.core." in old.read_bytes()
    image, one = read_file(old, ["image", "one"])
    assert (image.tolist(), float(one)) == ([[0, 1, 2], [3, 4, 5]], 7)


def test_an_array_of_objects_in_a_tensor_file_is_refused(tmp_path):
    torch.save({"image": np.array([{}, []], object)}, tmp_path / "objects.pt")
    with pytest.raises(SourceError, match="objects.pt"):
        read_file(tmp_path / "objects.pt", ["image"])


def test_a_bare_pickle_is_refused(tmp_path):
    (tmp_path / "bare.pt").write_bytes(pickle.dumps(_Evil(str(tmp_path / "ran")), protocol=2))
    with pytest.raises(SourceError, match="bare.pt"):
        read_file(tmp_path / "bare.pt", ["image"])
    assert not (tmp_path / "ran").exists()


def test_columns_without_a_header_go_by_number(tmp_path):
    path = tmp_path / "list.csv"
    write_file(path, {"#1": np.array(["a", "c"]), "#2": np.array(["b", "d"])})
    assert path.read_text().split() == ["a,b", "c,d"]
    second, first = read_file(path, ["#2", "#1"])
    assert (list(first), list(second)) == (["a", "c"], ["b", "d"])


# BraDD-S1TS


def _bradd(tmp_path, **changes):
    """The first tile of a miniature whose sample file was changed."""
    root = copied("bradd_s1ts", tmp_path)
    path = sorted((root / "Samples").iterdir())[0]
    content = torch.load(path, weights_only=False)
    torch.save(content | {name: change(content[name]) for name, change in changes.items()}, path)
    return open_dataset("bradd_s1ts", root, "all")[0]


@pytest.mark.parametrize(
    "kind",
    [lambda moment: moment.date(), lambda moment: moment.replace(hour=9, minute=59),
     lambda moment: moment.replace(hour=23, tzinfo=datetime.UTC),
     lambda moment: moment.replace(hour=1, tzinfo=datetime.UTC).astimezone(datetime.timezone(-datetime.timedelta(hours=3)))],
)  # fmt: skip
def test_dates_of_any_kind_are_days(tmp_path, kind):
    expected = open_dataset("bradd_s1ts", miniature("bradd_s1ts"), "all")[0].observations["s1"].dates
    tile = _bradd(tmp_path, image_dates=lambda moments: [kind(moment) for moment in moments])
    np.testing.assert_array_equal(tile.observations["s1"].dates, expected)


def test_radar_without_data_is_invalid_and_its_date_stays(tmp_path):
    def emptied(image):
        image[2] = torch.nan
        return image

    observation = _bradd(tmp_path, image=emptied).observations["s1"]
    assert not observation.valid[2].any()
    assert not observation.valid[1, :, :, :5].any()
    assert observation.valid[3].all()


def test_the_second_label_is_the_target_and_other_numbers_are_ignored(tmp_path):
    def marked(label):
        label[1, 0, 0], label[0] = 255, 1 - label[1]
        return label

    before = open_dataset("bradd_s1ts", miniature("bradd_s1ts"), "all")[0].targets["deforestation"]
    after = _bradd(tmp_path, label=marked).targets["deforestation"]
    assert after[0, 0] == -1
    np.testing.assert_array_equal(after.ravel()[1:], before.ravel()[1:])


def test_a_sample_with_a_single_label_is_refused(tmp_path):
    with pytest.raises(SourceError, match=r"0000000_.*\.pt: it has 1 label"):
        _bradd(tmp_path, label=lambda label: label[:1])


def test_rows_outside_the_closed_split_are_left_out(tmp_path):
    root = copied("bradd_s1ts", tmp_path)
    table = (root / "meta.csv").read_text().replace("test", "")
    (root / "meta.csv").write_text(table)
    assert len(open_dataset("bradd_s1ts", root, "all")) == 5


# Sen1Floods11


@pytest.fixture
def real_chip(shared_data, tmp_path):
    """A folder in the published layout around the real chip."""
    source = shared_data / "sen1floods11"
    (tmp_path / HAND).mkdir(parents=True)
    for name in ("S1Hand", "S2Hand", "LabelHand"):
        (tmp_path / HAND / name).symlink_to(source / name)
    (tmp_path / "Sen1Floods11_Metadata.geojson").symlink_to(source / "Sen1Floods11_Metadata.geojson")
    lists = tmp_path / "splits/flood_handlabeled"
    lists.mkdir(parents=True)
    for split, chip in (("train", CHIP), ("valid", "Spain_1"), ("test", "Spain_2")):
        (lists / f"flood_{split}_data.csv").write_text(f"{chip}_S1Hand.tif,{chip}_LabelHand.tif\n")
    return tmp_path


def test_the_real_chip_is_read_by_the_names_of_its_bands(real_chip):
    tile = open_dataset("sen1floods11", real_chip)[0]
    for key, kind in (("s1", "S1Hand"), ("s2", "S2Hand")):
        observation = tile.observations[key]
        with rasterio.open(real_chip / HAND / kind / f"{CHIP}_{kind}.tif") as file:
            stored = dict(zip(file.descriptions, file.read(), strict=True))
        for band, name in enumerate(observation.modality.band_names):
            expected = stored["VV"] / stored["VH"] if name == "VV/VH" else stored[name]
            np.testing.assert_allclose(observation.values[0, band], expected, rtol=1e-5)
        assert observation.valid.all()


def test_the_real_chip_is_in_decibels_and_reflectance_times_10_000(real_chip):
    tile = open_dataset("sen1floods11", real_chip)[0]
    assert tile.observations["s1"].units == ("dB", "dB", "ratio")
    assert set(tile.observations["s2"].units) == {"reflectance_1e4"}
    assert -20 < np.median(tile.observations["s1"].values[0, 0]) < 0
    assert 500 < np.median(tile.observations["s2"].values[0, 2]) < 3000


def test_the_real_chip_has_the_dates_of_its_flood(real_chip):
    tile = open_dataset("sen1floods11", real_chip)[0]
    days = {key: str(observation.dates[0]) for key, observation in tile.observations.items()}
    assert days == {"s2": "2019-09-18", "s1": "2019-09-17"}


def test_the_real_chip_lies_where_its_metadata_say(real_chip):
    tile = open_dataset("sen1floods11", real_chip)[0]
    features = json.loads((real_chip / "Sen1Floods11_Metadata.geojson").read_text())["features"]
    outline = next(f["geometry"] for f in features if f["properties"]["location"] == "Spain")
    x, y = np.array(outline["coordinates"][0]).T
    box = tile.geobox.boundingbox
    assert tile.geobox.shape == (512, 512)
    assert x.min() < box.left < box.right < x.max()
    assert y.min() < box.bottom < box.top < y.max()


def test_the_real_label_is_water_where_radar_is_dark(real_chip):
    tile = open_dataset("sen1floods11", real_chip)[0]
    label, vv = tile.targets["flood"], tile.observations["s1"].values[0, 0]
    assert set(np.unique(label)) == {-1, 0, 1}
    assert np.median(vv[label == 1]) < np.median(vv[label == 0]) - 3


@pytest.mark.parametrize("location", ["Ghana", "India", "Mekong", "Nigeria", "Pakistan", "Paraguay", "Somalia",
                                      "Sri-Lanka", "USA"])  # fmt: skip
def test_the_real_metadata_have_a_date_for_every_flood(real_chip, location):
    row = f"{location}_1_S1Hand.tif,{location}_1_LabelHand.tif\n"
    (real_chip / "splits/flood_handlabeled/flood_test_data.csv").write_text(row)
    dataset = open_dataset("sen1floods11", real_chip, "test")
    assert "2016" <= dataset.samples.row(0)["s2"][:4] <= "2019"


def test_chips_named_mekong_have_the_dates_of_cambodia():
    features = json.loads((miniature("sen1floods11") / "Sen1Floods11_Metadata.geojson").read_text())["features"]
    assert "Cambodia" in {feature["properties"]["location"] for feature in features}
    samples = open_dataset("sen1floods11", miniature("sen1floods11"), "all").samples
    assert {row["s1"][:4] for row in samples if row["id"].startswith("Mekong")} == {"2018"}


def test_a_flood_without_dates_is_named(tmp_path):
    root = copied("sen1floods11", tmp_path)
    path = root / "Sen1Floods11_Metadata.geojson"
    path.write_text(path.read_text().replace("Cambodia", "Elsewhere"))
    with pytest.raises(SourceError, match=r"Metadata\.geojson: it has no location 'Cambodia', needed for chip Mekong_"):
        open_dataset("sen1floods11", root)


def test_metadata_of_another_form_are_named(tmp_path):
    root = copied("sen1floods11", tmp_path)
    (root / "Sen1Floods11_Metadata.geojson").write_text('{"features": [{"properties": {"location": "Spain"}}]}')
    with pytest.raises(SourceError, match=r"Metadata\.geojson: a feature cannot be read \(KeyError\('s1_date'\)\)"):
        open_dataset("sen1floods11", root)


def test_zeros_of_optical_bands_are_no_data(tmp_path):
    root = copied("sen1floods11", tmp_path)
    folder = find_dataset("sen1floods11").folder(root)
    name = open_dataset("sen1floods11", root).ids[0]
    stored = folder.read("s2", id=name)
    stored[2, 100, 7] = 0  # B3, the modality's second band
    folder.write({"s2": stored}, id=name)
    valid = open_dataset("sen1floods11", root)[0].observations["s2"].valid[0]
    assert not valid[1, 100, 7]
    assert valid[0, 100, 7]


def test_a_list_that_pairs_two_chips_is_refused(tmp_path):
    root = copied("sen1floods11", tmp_path)
    path = root / "splits/flood_handlabeled/flood_test_data.csv"
    path.write_text("Spain_1_S1Hand.tif,Spain_2_LabelHand.tif\n")
    with pytest.raises(SourceError, match=r"flood_test_data\.csv: a row has 'Spain_1_S1Hand\.tif'"):
        open_dataset("sen1floods11", root)


# HLS Burn Scars


def _named(root, part, mgrs, day):
    path = root / part / f"subsetted_512x512_HLS.S30.{mgrs}.{day}.v1.4_merged.tif"
    path.parent.mkdir(exist_ok=True)
    path.touch()
    (path.parent / "one.mask.tif").touch()


def test_the_date_of_a_scene_is_the_day_in_its_name():
    dataset = open_dataset("hls_burn_scars", miniature("hls_burn_scars"), "all")
    for tile, row in zip(dataset, dataset.samples, strict=True):
        date = datetime.datetime.strptime(row["day"], "%Y%j").date()
        assert tile.observations["hls"].dates.tolist() == [date]


def test_a_scene_without_a_date_in_its_name_is_refused(tmp_path):
    root = copied("hls_burn_scars", tmp_path)
    for path in (root / "training").iterdir():
        place, day = path.name.split("2018")[0], "2018400"
        if "2018" in path.name:
            path.rename(path.with_name(f"{place}{day}.v1.4{path.name.split('.v1.4')[1]}"))
    with pytest.raises(SourceError, match=r"2018400\.v1\.4_merged\.tif: its name has the date '2018400'"):
        list(open_dataset("hls_burn_scars", root, "all"))


def test_scenes_of_a_place_are_in_one_of_training_and_validation(tmp_path):
    for place in range(40):
        for day in ("2018200", "2019210", "2020220"):
            _named(tmp_path, "training", f"T{place:02}SDH", day)
    samples = open_dataset("hls_burn_scars", tmp_path, "all").samples
    places = [set(samples.of(split).columns["mgrs"].tolist()) for split in ("train", "val")]
    assert not places[0] & places[1]
    assert 1 <= len(places[1]) <= 10
    assert len(samples) == 120


def test_the_validation_folder_is_the_test_split():
    samples = open_dataset("hls_burn_scars", miniature("hls_burn_scars"), "all").samples
    assert set(samples.of("test").columns["part"].tolist()) == {"validation"}
    assert set(samples.of("train", "val").columns["part"].tolist()) == {"training"}


def test_both_fill_values_are_no_data():
    tile = open_dataset("hls_burn_scars", miniature("hls_burn_scars"), "all")[0]
    valid = tile.observations["hls"].valid[0]
    assert not valid[:, :16].any()
    assert valid[:, 16:].all()


# SpaceNet 7


def test_the_lists_have_30_15_and_14_areas():
    splits = list(spacenet7.SPLIT_OF.values())
    assert [splits.count(split) for split in ("train", "val", "test")] == [30, 15, 14]
    assert all(aoi.startswith("L15-") and aoi.endswith("_13") for aoi in spacenet7.SPLIT_OF)


@pytest.mark.parametrize("content", ['{"L15": [{"aoi": "L15"}]}', "[]", '{"L15": 3}'])
def test_a_table_of_another_form_is_named(tmp_path, content):
    (tmp_path / "metadata_train.json").write_text(content)
    with pytest.raises(SourceError, match=r"metadata_train\.json: an entry cannot be read"):
        open_dataset("spacenet7", tmp_path)


@pytest.mark.parametrize("layout", ["published", "training"])
def test_areas_in_no_list_are_left_out(tmp_path, layout):
    root = copied("spacenet7", tmp_path, layout)
    before = open_dataset("spacenet7", root, "all").ids
    first = before[0][: before[0].index("_13_") + 3]
    for path in sorted(root.rglob(f"*{first}*"), reverse=True):
        path.rename(path.with_name(path.name.replace(first, "L15-elsewhere")))
    table = root / "metadata_train.json"
    if table.exists():
        table.write_text(table.read_text().replace(first, "L15-elsewhere"))
    assert open_dataset("spacenet7", root, "all").ids == before[1:]


def test_months_without_labels_are_left_out(tmp_path):
    root = copied("spacenet7", tmp_path, "training")
    table = root / "metadata_train.json"
    content = json.loads(table.read_text())
    next(iter(content.values()))[0]["label"] = False
    table.write_text(json.dumps(content))
    assert len(open_dataset("spacenet7", root, "all")) == 5


def test_a_mosaic_one_column_short_is_padded_and_ignored_there():
    for tile in open_dataset("spacenet7", miniature("spacenet7"), "all"):
        valid, target = tile.observations["planet"].valid, tile.targets["buildings"]
        assert tile.geobox.shape == (1024, 1024)
        assert valid[:, :-200].any()
        if not valid[:, :, -1].any():
            assert (target[:, -1] == -1).all()
            assert valid[:, :200, -2].all()
            return
    pytest.fail("no mosaic of the miniature is short")


def test_masked_pixels_and_areas_are_invalid_and_ignored():
    ignored = []
    for tile in open_dataset("spacenet7", miniature("spacenet7"), "all"):
        valid, target = tile.observations["planet"].valid, tile.targets["buildings"]
        assert not valid[:, :96, :96].any()  # alpha
        np.testing.assert_array_equal(valid.all(axis=0), target >= 0)
        assert (target == -1).mean() < 0.05
        ignored.append(bool((target[-128:, -128:] == -1).all()))  # the polygon of unusable data
    assert sorted(ignored) == [False] * 3 + [True] * 3


def test_footprints_drawn_are_the_rasters_of_the_other_layout():
    drawn, stored = (
        {
            tile.id: tile.targets["buildings"]
            for tile in open_dataset("spacenet7", miniature("spacenet7", layout), "all")
        }
        for layout in ("published", "training")
    )
    assert drawn.keys() == stored.keys()
    for name, target in drawn.items():
        known = target >= 0
        np.testing.assert_array_equal(target[known], stored[name][known])


def _mosaic(tmp_path, geobox, side=1024, outline=None):
    """A folder with one mosaic and one footprint."""
    folder = DatasetFolder(tmp_path, find_dataset("spacenet7").layout("published"))
    row = {"aoi": next(iter(spacenet7.SPLIT_OF)), "year": "2019", "month": "07"}
    folder.write({"planet": np.full((4, side, side), 255, np.uint8)}, geobox=geobox, **row)
    feature = {"geometry": None if outline is None else {"type": "Polygon", "coordinates": [outline]}}
    folder.write({"buildings": [feature]}, **row)
    return open_dataset("spacenet7", tmp_path)


def _web_mercator(side=1024):
    return GeoBox((side, side), Affine(4.777314, 0, 1_000_000, 0, -4.777314, 5_000_000), "EPSG:3857")


def test_a_footprint_in_degrees_covers_the_pixels_of_a_web_mercator_mosaic(tmp_path):
    corners = [(100.6, 200.6), (110.4, 200.6), (110.4, 203.4), (100.6, 203.4), (100.6, 200.6)]
    radius_m = 6378137.0
    outline = []
    for col, row in corners:
        x, y = _web_mercator().affine @ (col, row)
        outline.append([np.degrees(x / radius_m), np.degrees(2 * np.arctan(np.exp(y / radius_m)) - np.pi / 2)])
    expected = np.zeros((1024, 1024), np.int64)
    expected[201:203, 101:110] = 1
    target = _mosaic(tmp_path, _web_mercator(), outline=outline)[0].targets["buildings"]
    np.testing.assert_array_equal(target, expected)


def test_a_month_without_buildings_has_none(tmp_path):
    assert not _mosaic(tmp_path, _web_mercator())[0].targets["buildings"].any()


@pytest.mark.parametrize("outline", ["somewhere", [[1, 2], ["a", "b"]]])
def test_footprints_that_cannot_be_drawn_are_named(tmp_path, outline):
    with pytest.raises(SourceError, match=r"mosaic_L15.*_Buildings\.geojson: a feature cannot be drawn"):
        _mosaic(tmp_path, _web_mercator(), outline=outline)[0]


def test_a_mosaic_without_georeference_is_refused(tmp_path):
    with pytest.raises(SourceError, match=r"mosaic_L15.*\.tif: it has no georeference"):
        _mosaic(tmp_path, None)[0]


def test_a_mosaic_of_another_size_is_refused(tmp_path):
    with pytest.raises(SourceError, match=r"mosaic_L15.*\.tif: it has 512 x 512 pixels"):
        _mosaic(tmp_path, _web_mercator(512), side=512)[0]
