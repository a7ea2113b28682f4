"""What holds for every dataset, on its miniature in each of its layouts."""

import pickle
import shutil

import numpy as np
import pytest

from anysat.batch import Batch
from anysat.data.base import dataset_names, find_dataset, open_dataset
from anysat.data.layout import DatasetFolder
from anysat.data.world import World
from anysat.errors import AnySatError, MissingFileError
from anysat.modalities import MODALITIES, NOT_RELEASED
from anysat.patches import PatchGrid
from miniatures import LAYOUTS, TILES, miniature

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
            assert observation.modality is MODALITIES[key]
            assert observation.values.shape[-3] == len(MODALITIES[key].bands)
            if not observation.modality.covers_tile:
                sides = [round(side * observation.modality.gsd_m, 2) for side in observation.shape_px]
                assert sides == [record.tile_m, record.tile_m]
    assert seen == set(record.modalities)


@every_layout
def test_every_patch_size_of_the_record_fits(name, layout):
    record = find_dataset(name)
    tile = open_dataset(name, miniature(name, layout), "all")[0]
    shapes = {o.modality: o.shape_px for o in tile.observations.values()}
    order = "raster" if set(record.modalities) & NOT_RELEASED else "cell"
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


@every_layout
def test_every_file_that_is_missing_or_truncated_is_named(name, layout, tmp_path):
    """Each file in turn is taken away, then cut in half: reading names it, or never needed it."""
    record = find_dataset(name)
    root = tmp_path / "copy"
    shutil.copytree(miniature(name, layout), root)
    needed = {e.path for e in record.layout(layout).entries if not e.is_optional}
    files = [path for path in sorted(root.rglob("*")) if path.is_file()]
    one_per_kind = {path.suffix + path.parent.name: path for path in files}.values()
    assert needed
    assert one_per_kind
    for path in one_per_kind:
        content = path.read_bytes()
        for damaged in (None, content[: len(content) // 2]):
            path.unlink() if damaged is None else path.write_bytes(damaged)
            said = _complaint(name, root, layout)
            assert said is None or any(word in said for word in (path.name, path.stem, path.parent.name)), said
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
    assert record.homepage.startswith("https://")
    for layout in record.layouts:
        assert all(entry.source for entry in layout.entries)
