"""The layout table: paths, reading and writing by it, observations in and out."""

import numpy as np
import pytest
from pyproj import Transformer

from anysat.data.base import DatasetRecord, Samples, Target
from anysat.data.layout import TEXT, DatasetFolder, Entry, Layout
from anysat.data.open import find_dataset, open_dataset
from anysat.data.splits import block_numbers, ground_m, split_by_name, split_by_place
from anysat.errors import InputError, MissingFileError, RecordError, SourceError, UnknownNameError
from anysat.modalities import MODALITIES
from anysat.observation import Observation
from miniatures import miniature

SERIES = Entry(name="s1", path="{place}/{id}.npz", key="s1", dtype="float32", shape=("T", 3, "H", "W"), modality="s1",
               bands=("VH", "angle", "VV"), unit="linear", nodata=-1, source="made up")  # fmt: skip
STAMPS = Entry(name="stamps", path="{place}/{id}.npz", key="t", dtype=TEXT, shape=("T",), source="made up")
LABEL = Entry(name="label", path="labels/{id}.tif", dtype="uint8", shape=(1, 4, 4), source="made up")
LAYOUT = Layout(name="made-up", marker="labels", entries=(SERIES, STAMPS, LABEL))


@pytest.fixture
def folder(tmp_path):
    return DatasetFolder(tmp_path, LAYOUT)


def _linear():
    power = np.arange(1, 65, dtype=np.float32).reshape(2, 2, 4, 4) / 100
    return Observation.of(MODALITIES["s1"], power, units="linear", dates=["2020-01-01", "2020-02-01"])


def test_what_is_stored_by_the_table_is_observed_by_it(folder):
    seen = _linear()
    folder.write({"s1": folder.store("s1", seen), "stamps": np.array(["a", "b"])}, place="north", id="7")
    stored, stamps = folder.read("s1", "stamps", place="north", id="7")
    back = folder.observe("s1", stored, dates=seen.dates)
    np.testing.assert_array_equal(back.values, seen.values)
    assert back.units == ("linear", "linear", "ratio")
    assert list(stamps) == ["a", "b"]


def test_stored_bands_are_in_the_order_of_the_table_and_unknown_ones_are_empty(folder):
    stored = folder.store("s1", _linear())
    np.testing.assert_array_equal(stored[:, 0], _linear().values[:, 1])
    np.testing.assert_array_equal(stored[:, 2], _linear().values[:, 0])
    assert (stored[:, 1] == -1).all()


def test_storing_converts_to_the_unit_of_the_table(folder):
    decibel = _linear().in_units("dB")
    np.testing.assert_allclose(folder.store("s1", decibel)[:, 2], _linear().values[:, 0], rtol=1e-5)


def test_nodata_of_the_table_is_invalid(folder):
    stored = folder.store("s1", _linear())
    stored[0, 2, 1, 1] = -1
    valid = folder.observe("s1", stored, dates=["2020-01-01", "2020-02-01"]).valid
    assert not valid[0, 0, 1, 1]
    assert not valid[0, 2, 1, 1]  # the ratio made from it
    assert valid[0, 1, 1, 1]


def test_integers_are_rounded_and_kept_in_range():
    entry = Entry(name="s2", path="x.npy", dtype="uint8", shape=(1, 1, 1, 1), modality="s2", bands=("B2",),
                  unit="reflectance_1e4", source="made up")  # fmt: skip
    folder = DatasetFolder(None, Layout(name="l", marker="x", entries=(entry,)))
    seen = Observation.of(
        MODALITIES["s2"],
        [
            [
                [[99.6]],
            ]
        ],
        bands=["B3"],
        dates=["2020-01-01"],
    )
    assert folder.store("s2", seen).item() == 0  # B2 is absent
    for value, stored in ((99.6, 100), (4000, 255)):
        seen = Observation.of(MODALITIES["s2"], [[[[value]]]], bands=["B2"], dates=["2020-01-01"])
        assert folder.store("s2", seen).item() == stored


def test_files_are_found_by_their_fields_in_name_order(folder):
    for place, name in (("north", "b"), ("north", "a"), ("south", "c")):
        folder.write({"s1": folder.store("s1", _linear()), "stamps": np.array(["", ""])}, place=place, id=name)
    assert list(folder.find("s1")) == [
        {"place": "north", "id": "a"}, {"place": "north", "id": "b"}, {"place": "south", "id": "c"},
    ]  # fmt: skip


def test_a_field_that_comes_twice_must_be_the_same(tmp_path):
    entry = Entry(name="x", path="{id}/{id}_x.npy", dtype="uint8", source="made up")
    folder = DatasetFolder(tmp_path, Layout(name="l", marker="*", entries=(entry,)))
    for path in ("a/a_x.npy", "a/b_x.npy"):
        (tmp_path / path).parent.mkdir(exist_ok=True)
        np.save(tmp_path / path, np.zeros(1, np.uint8))
    assert list(folder.find("x")) == [{"id": "a"}]


def test_other_places_are_tried_and_the_first_is_named_when_all_are_missing(tmp_path):
    entry = Entry(name="list", path="a.lst", also=("b/a.lst",), dtype=TEXT, source="made up")
    folder = DatasetFolder(tmp_path, Layout(name="l", marker="*", entries=(entry,)))
    with pytest.raises(MissingFileError, match=r"a\.lst: no such file.*expected list"):
        folder.read("list")
    (tmp_path / "b").mkdir()
    (tmp_path / "b/a.lst").write_text("one\n\ntwo\n")
    assert folder.read("list") == ["one", "two"]


@pytest.mark.parametrize("stored", [np.zeros((1, 4, 5), np.uint8), np.zeros((1, 4), np.uint8), np.full((1, 4, 4), "x")])
def test_another_shape_or_type_than_the_table_says_is_refused(folder, stored):
    with pytest.raises(SourceError, match=r"expected label, uint8 \(1, 4, 4\)"):
        folder.write({"label": stored}, id="7")


def test_dates_that_do_not_fit_are_refused_with_the_file(folder):
    with pytest.raises(SourceError, match=r"north/7\.npz.*2 dates"):
        folder.observe("s1", folder.store("s1", _linear()), dates=["2020-01-01"], place="north", id="7")


def test_an_entry_with_an_impossible_unit_is_refused():
    with pytest.raises(UnknownNameError, match="unknown unit 'decibel'.*entry 's2'"):
        Entry(name="s2", path="x", dtype="uint8", modality="s2", bands=("B2",), unit="decibel", source="made up")


def test_an_entry_with_a_modality_names_its_bands():
    with pytest.raises(RecordError, match="bands"):
        Entry(name="s2", path="x", dtype="uint8", modality="s2", unit="DN", source="made up")


def test_a_layout_has_each_entry_once():
    with pytest.raises(RecordError, match="each name once"):
        Layout(name="l", marker="x", entries=(LABEL, LABEL))


def test_a_split_by_name_does_not_depend_on_the_other_names():
    names = [f"tile{i}" for i in range(200)]
    shares = {"train": 0.7, "val": 0.1, "test": 0.2}
    every = dict(zip(names, split_by_name(names, shares), strict=True))
    few = names[50:60]
    assert [every[name] for name in few] == split_by_name(few, shares).tolist()


def test_a_split_has_about_its_shares_and_depends_on_the_seed():
    names = [str(i) for i in range(5000)]
    first, other = (split_by_name(names, {"train": 3, "val": 1}, seed) for seed in (0, 1))
    assert abs((first == "val").mean() - 0.25) < 0.02
    assert (first != other).mean() > 0.2


def test_neighbours_are_in_one_split():
    rng = np.random.default_rng(0)
    x, y = rng.uniform(0, 1e5, (2, 2000))
    split = split_by_place(x, y, {"train": 0.5, "test": 0.5}, block_m=10_000)
    block = (x // 10_000).astype(int) * 100 + (y // 10_000).astype(int)
    assert all(len(set(split[block == number])) == 1 for number in np.unique(block))
    assert set(split) == {"train", "test"}


SHARES = {"train": 0.7, "val": 0.15, "test": 0.15}


@pytest.mark.parametrize("seed", range(8))
def test_blocks_give_each_split_its_share_of_few_places(seed):
    """Asked for 15 %, blocks that were drawn each by itself gave 0 to 46 %."""
    x, y = np.random.default_rng(0).uniform(0, 640, (2, 46))
    split = split_by_place(x, y, SHARES, 160, seed)
    assert all(abs((split == name).mean() - share) < 0.05 for name, share in SHARES.items())
    assert (split == split_by_place(x[::-1], y[::-1], SHARES, 160, seed)[::-1]).all(), "whatever the order of places"
    assert (split != split_by_place(x, y, SHARES, 160, seed + 1)).any()


@pytest.mark.parametrize("counts", [[1, 1, 1], [90, 1, 1], [5, 4, 3, 1]])
@pytest.mark.parametrize("seed", range(4))
def test_no_split_is_empty_where_there_are_as_many_blocks(counts, seed):
    x = np.repeat(np.arange(len(counts)) * 10.0, counts)
    assert set(split_by_place(x, 0 * x, SHARES, 10, seed)) == set(SHARES)
    assert set(split_by_place(x, 0 * x, SHARES | {"val": 0.0}, 10, seed)) == {"train", "test"}


def test_large_and_small_blocks_come_into_each_split():
    """Otherwise the test would be on sparse ground only."""
    x, y = np.abs(np.random.default_rng(1).normal(0, 2e4, (2, 3000)))
    numbers = block_numbers(x, y, 5000)
    size = np.bincount(numbers)[numbers]
    found = [size[split_by_place(x, y, SHARES, 5000, seed) == "test"].mean() for seed in range(10)]
    assert np.mean(found) == pytest.approx(size.mean(), rel=0.1)


@pytest.mark.parametrize("lat", [-69.0, -33.0, 0.0, 52.0, 69.0])
def test_a_block_is_as_wide_as_it_is_high_wherever_it_is(lat):
    """At 52 degrees a square of an equal-area map would be 7 km wide and 14 km high."""
    to_m = Transformer.from_crs(f"+proj=aeqd +lon_0=21 +lat_0={lat}", "EPSG:4326", always_xy=True)
    side = np.arange(-30_000, 30_000, 200.0)
    x, y = (values.ravel() for values in np.meshgrid(side, side))
    numbers = block_numbers(*ground_m(*to_m.transform(x, y), 10_000), 10_000)
    inside = numbers == numbers[np.argmin(np.hypot(x, y))]
    assert np.ptp(x[inside]) + 200 == pytest.approx(10_000, rel=0.06)
    assert np.ptp(y[inside]) + 200 == pytest.approx(10_000, rel=0.06)


def test_blocks_end_at_180_degrees_which_is_one_place_east_and_west():
    lon, lat = np.array([180.0, -180.0, 179.999, -179.999, 0.0, -1e-9]), np.full(6, 52.0)
    numbers = block_numbers(*ground_m(lon, lat, 10_000), 10_000)
    assert numbers[0] == numbers[1] == numbers[3] != numbers[2]
    assert numbers[4] != numbers[5], "those west of Greenwich are others"
    assert len(set(block_numbers(*ground_m([60, 60, 170], [90.0, 88, 8], 1e8), 1e8))) == 1, "wider than the world"


def test_impossible_shares_are_refused():
    with pytest.raises(RecordError, match="split shares"):
        split_by_name(["a"], {})


def test_samples_need_columns_of_one_length():
    with pytest.raises(RecordError, match="columns of one length"):
        Samples(id=["a", "b"], split=["train"])


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"level": "patch"}, "tile"),
        ({"level": "pixel", "kind": "labels"}, "one of"),
        ({"classes": ()}, "names of classes"),
        ({"gsd_m": 10.0}, "none for a tile"),
        ({"ignore": 1}, "not a class"),
    ],
)
def test_an_impossible_target_is_refused(change, said):
    with pytest.raises(RecordError, match=said):
        Target(**{"name": "t", "level": "tile", "kind": "class", "classes": ("a", "b"), **change})


def test_an_unknown_dataset_names_the_closest():
    with pytest.raises(UnknownNameError, match="closest: treesatai_ts"):
        find_dataset("treesat")


def test_a_module_without_a_record_is_refused():
    with pytest.raises(InputError, match="exports DATASET"):
        find_dataset("anysat.errors")


def test_an_unknown_module_is_refused():
    with pytest.raises(UnknownNameError, match="dataset module"):
        find_dataset("nowhere.to_be_found")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"split": "training"}, "closest: train"),
        ({"modalities": ["s3"]}, "unknown modality of treesatai_ts 's3'"),
        ({"layout": "private"}, "unknown layout"),
    ],
)
def test_wrong_options_name_the_choices(options, said):
    with pytest.raises(UnknownNameError, match=said):
        open_dataset("treesatai_ts", miniature("treesatai_ts"), **options)


def test_a_split_may_be_joined_from_members():
    root = miniature("treesatai_ts", tiles=12)
    both = open_dataset("treesatai_ts", root, "val+test")
    assert set(both.samples.columns["split"]) == {"val", "test"}


def test_overlapping_splits_of_a_record_are_refused():
    record = find_dataset("treesatai_ts")
    fields = {name: getattr(record, name) for name in record.__dataclass_fields__}
    with pytest.raises(RecordError, match="do not overlap"):
        DatasetRecord(**{**fields, "splits": {"train": ("a",), "val": ("b",), "test": ("b",)}})
