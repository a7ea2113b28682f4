"""What holds for every dataset, on its miniature in each of its layouts."""

import pickle
import re

import numpy as np
import pytest

from anysat.batch import Batch
from anysat.data.files import read_file, write_file
from anysat.data.layout import TEXT, DatasetFolder
from anysat.data.open import dataset_names, find_dataset, open_dataset
from anysat.data.world import World
from anysat.errors import AnySatError, MissingFileError
from anysat.modalities import MODALITIES, RELEASED
from anysat.patches import PatchGrid
from miniatures import LAYOUTS, TILES, copied, miniature

every_layout = pytest.mark.parametrize(("name", "layout"), LAYOUTS)


@every_layout
def test_layout_is_recognised_by_its_marker(name, layout):
    assert find_dataset(name).folder(miniature(name, layout)).layout.name == layout


@every_layout
def test_the_same_seed_writes_the_same_bytes(name, layout, tmp_path):
    record = find_dataset(name)
    written = []
    for part in ("one", "other"):
        root = tmp_path / part
        root.mkdir()
        record.write_miniature(DatasetFolder(root, record.layout(layout)), World(3), 1)
        written.append({p.relative_to(root): p.read_bytes() for p in root.rglob("*") if p.is_file()})
    assert written[0] == written[1]


@every_layout
def test_every_tile_is_read_and_named(name, layout):
    dataset = open_dataset(name, miniature(name, layout), "all")
    assert len(dataset) >= TILES
    tiles = list(dataset)
    assert [tile.id for tile in tiles] == dataset.ids
    assert len(set(dataset.ids)) == len(dataset)
    assert {tile.dataset for tile in tiles} == {name}


@every_layout
def test_splits_are_disjoint_and_cover_all(name, layout):
    record, root = find_dataset(name), miniature(name, layout)
    every = open_dataset(name, root, "all").samples
    members = [member for group in record.splits.values() for member in group]
    ids = [set(every.of(*group).columns["id"].tolist()) for group in record.splits.values()]
    assert set(every.columns["split"].tolist()) <= set(members)
    assert sum(map(len, ids)) == len(set().union(*ids)) == len(every)


@every_layout
def test_tiles_have_the_size_bands_and_modalities_of_the_record(name, layout):
    record = find_dataset(name)
    seen = set()
    for tile in open_dataset(name, miniature(name, layout), "all"):
        seen |= set(tile.observations)
        for key, observation in tile.observations.items():
            assert observation.modality is {**MODALITIES, **record.sensors}[key]
            assert observation.values.shape[-3] == len(observation.modality.bands)
            if not observation.modality.covers_tile:
                sides = [round(side * observation.modality.gsd_m, 2) for side in observation.shape_px]
                assert sides == [record.tile_m, record.tile_m]
    assert seen == set(record.modalities)


@every_layout
def test_every_patch_size_of_the_record_fits(name, layout):
    record = find_dataset(name)
    tile = open_dataset(name, miniature(name, layout), "all")[0]
    shapes = {o.modality: o.shape_px for o in tile.observations.values()}
    order = "cell" if all({**MODALITIES, **record.sensors}[key] in RELEASED for key in record.modalities) else "raster"
    for patch_size_m in record.patch_sizes_m:
        PatchGrid.fit(shapes, patch_size_m, order)


@every_layout
def test_dates_are_real_and_in_the_years_of_the_sensors(name, layout):
    for tile in open_dataset(name, miniature(name, layout), "all"):
        for observation in tile.observations.values():
            if observation.dates is not None:
                years = observation.dates.astype("datetime64[Y]").astype(int) + 1970
                assert years.min() >= 1999
                assert years.max() <= 2026


@every_layout
def test_something_is_valid_and_what_is_invalid_is_zero(name, layout):
    for tile in open_dataset(name, miniature(name, layout), "all"):
        for observation in tile.observations.values():
            assert observation.valid.any()
            assert np.isfinite(observation.values).all()
            assert not observation.values[~observation.valid].any()


@every_layout
def test_targets_are_what_the_record_says(name, layout):
    record = find_dataset(name)
    for tile in open_dataset(name, miniature(name, layout), "all"):
        assert set(tile.targets) == {target.name for target in record.targets}
        for target in record.targets:
            array = np.asarray(tile.targets[target.name])
            if target.level == "pixel":
                side = round(record.tile_m / target.gsd_m)
                assert array.shape == (side, side)
            else:
                assert array.shape == ((len(target.classes),) if target.kind == "labels" else ())
            if target.kind == "class":
                assert set(np.unique(array)) <= {*range(len(target.classes)), target.ignore}
                assert array.dtype == np.int64
            elif target.kind == "labels":
                assert set(np.unique(array)) <= {0, 1}
            else:
                assert array.dtype == np.float32


@every_layout
def test_targets_vary(name, layout):
    record = find_dataset(name)
    tiles = list(open_dataset(name, miniature(name, layout), "all"))
    for target in record.targets:
        values = np.concatenate([np.ravel(tile.targets[target.name]) for tile in tiles])
        assert len(np.unique(values)) > 1, target.name


@every_layout
def test_modalities_not_asked_for_are_not_read(name, layout):
    record = find_dataset(name)
    for key in record.modalities:
        tiles = open_dataset(name, miniature(name, layout), "all", modalities=[key])
        assert set(tiles[0].observations) <= {key}


@every_layout
def test_tiles_stack_into_a_batch(name, layout):
    dataset = open_dataset(name, miniature(name, layout), "all")
    assert len(Batch.of([dataset[0], dataset[1]])) == 2


@every_layout
def test_a_dataset_travels_to_a_worker_process(name, layout):
    dataset = open_dataset(name, miniature(name, layout), "all")
    copy = pickle.loads(pickle.dumps(dataset))
    for key, observation in dataset[0].observations.items():
        np.testing.assert_array_equal(copy[0].observations[key].values, observation.values)


def _complaint(name, root, layout):
    try:
        list(open_dataset(name, root, "all", layout=layout))
    except AnySatError as error:
        return str(error)
    return None


UNNOTICED = {
    ("biomassters", "s1-ascending", "missing"): "the training layout has no list of months: one less is read",
    ("biomassters", "s2", "missing"): "the training layout has no list of months: one less is read",
    ("flair", "s2-products", "truncated"): "the series is named, which has more dates than the text",
    ("planted", "species", "missing"): "a split of one shard that is not there was not downloaded",
    ("s2naip_urban", "s2-scenes", "truncated"): "a text cut within a row: scenes of later tiles are unknown",
    ("s2naip_urban", "s1-scenes", "truncated"): "a text cut within a row: scenes of later tiles are unknown",
    ("sen1floods11", "train-images", "truncated"): "a list cut at the end of a row is a shorter list",
    ("so2sat", "s1", "missing"): "a split whose file is not there was not downloaded",
    ("sickle", "s2-B2", "missing"): "a date is a file: one less is read",
    ("sickle", "s1-VV", "missing"): "a date is a file: one less is read",
    ("sickle", "l8-B1", "missing"): "a date is a file: one less is read",
    ("sickle", "ids", "truncated"): "a table cut within a row is a shorter table",
    ("timesen2crop", "dates", "missing"): "the first tile is of the year that is left out",
    ("timesen2crop", "dates", "truncated"): "the first tile is of the year that is left out",
    ("treesatai_ts", "s2", "missing"): "the year in the name is not known without the file: its stem is named",
    ("treesatai_ts", "train-list", "truncated"): "a list is cut within a name: the name without labels is given",
    ("treesatai_ts", "test-list", "truncated"): "a list is cut within a name: the name without labels is given",
    ("sickle", "any", "another shape"): "arrays of any size are brought to the grid",
}
"""Damage whose file is not named: dataset, entry and kind of damage, with the reason."""


def _files_of(root, entry):
    """The files of an entry, in any of its places."""
    return [path for place in (entry.path, *entry.also) for path in sorted(root.glob(re.sub(r"{\w+}", "*", place)))]


@every_layout
@pytest.mark.parametrize("damage", ["missing", "truncated"])
def test_a_needed_file_that_is_missing_or_truncated_is_named(name, layout, damage, tmp_path):
    """Of every entry in turn one file is taken away, or cut in half: reading refuses and names it."""
    record = find_dataset(name)
    root = copied(name, tmp_path, layout)
    needed: dict = {}
    for entry in record.layout(layout).entries:
        for path in _files_of(root, entry)[: not entry.is_optional]:
            needed.setdefault(path, entry)
    assert needed
    for path, entry in needed.items():
        content = path.read_bytes()
        path.unlink() if damage == "missing" else path.write_bytes(content[: len(content) // 2])
        said = _complaint(name, root, layout)
        if (name, entry.name, damage) not in UNNOTICED:
            assert path.name in str(said), (entry.name, path, said)
        path.write_bytes(content)


@every_layout
def test_a_needed_array_of_another_shape_is_refused_with_its_file(name, layout, tmp_path):
    record = find_dataset(name)
    root = copied(name, tmp_path, layout)
    entries = record.layout(layout).entries
    for entry in entries:
        if entry.is_optional or entry.dtype == TEXT or not entry.shape:
            continue
        path = next(iter(_files_of(root, entry)), None)
        if path is None:
            continue
        content = path.read_bytes()
        keys = [other.key for other in entries if other.path == entry.path]
        values = dict(zip(keys, read_file(path, keys), strict=True))
        values[entry.key] = np.zeros((*np.shape(values[entry.key])[:-2], 7, 5), np.asarray(values[entry.key]).dtype)
        write_file(path, values)
        said = _complaint(name, root, layout)
        if (name, "any", "another shape") not in UNNOTICED:
            assert path.name in str(said), (entry.name, path, said)
        path.write_bytes(content)


@pytest.mark.parametrize("name", dataset_names())
def test_a_folder_without_the_dataset_says_what_was_expected(name, tmp_path):
    record = find_dataset(name)
    with pytest.raises(MissingFileError, match="expected the folder of") as caught:
        open_dataset(name, tmp_path)
    assert record.homepage in str(caught.value)


@pytest.mark.parametrize("name", dataset_names())
def test_every_record_says_where_it_comes_from(name):
    record = find_dataset(name)
    assert record.name == name
    assert {"train", "val", "test"} == set(record.splits)
    for text in (
        record.title,
        record.about,
        record.licence,
        record.size,
        record.citation,
        record.split_rule,
        record.date_rule,
    ):
        assert text
    assert record.homepage.startswith(("https://", "`anysat world make "))
    for layout in record.layouts:
        assert all(entry.source or layout.source for entry in layout.entries)
