"""Opening a dataset: lists that are not what they should be are named, and what is kept fits what is there."""

import json

import numpy as np
import pytest
from torch.utils.data import Subset

from anysat.batch import Batch
from anysat.data import cache
from anysat.data.datasets import s2naip_urban
from anysat.data.layout import DatasetFolder
from anysat.data.open import find_dataset, open_dataset
from anysat.data.world import World
from anysat.errors import InputError, MissingFileError, RecordError, SourceError
from miniatures import copied, miniature

PLACES = "flair-2_centroids_sp_to_patch.json"
GENERA = "labels/TreeSatBA_v9_60m_multi_labels.json"
BROKEN = [
    ("flair", "published", PLACES, []),
    ("flair", "published", PLACES, None),
    ("flair", "published", PLACES, {"IMG_000900.tif": ["a", "b"]}),
    ("flair", "published", PLACES, {"IMG_000900.tif": 15}),
    ("pastis_hd", "published", "metadata.geojson", {"type": "FeatureCollection", "features": None}),
    ("pastis_hd", "published", "metadata.geojson", {"type": "FeatureCollection", "features": [None]}),
    ("pastis_hd", "published", "metadata.geojson", {"type": "F", "features": [{"properties": [1]}]}),
    ("treesatai_ts", "published", GENERA, None),
    ("treesatai_ts", "published", GENERA, {f"World_{n}_0_GEN_NLF.tif": None for n in range(6)}),
    ("treesatai_ts", "published", GENERA, {f"World_{n}_0_GEN_NLF.tif": [["Abies", "much"]] for n in range(6)}),
    ("planted", "training", "train/labels2.json", None),
    ("planted", "training", "train/labels2.json", [1, 2]),
]


@pytest.mark.parametrize(("name", "layout", "file", "content"), BROKEN, ids=lambda part: str(part)[:40])
def test_a_list_of_another_form_is_named(name, layout, file, content, tmp_path):
    root = copied(name, tmp_path, layout)
    (root / file).write_text(json.dumps(content))
    with pytest.raises(SourceError, match=f"{file}: "):
        open_dataset(name, root, "all", layout=layout)


@pytest.mark.parametrize("name", ["timesen2crop", "planted"])
def test_a_folder_that_is_not_there_is_named_whatever_the_layout(name, tmp_path):
    layout = find_dataset(name).layouts[0].name
    with pytest.raises(MissingFileError, match="nowhere: no such file or folder; expected the folder of"):
        open_dataset(name, tmp_path / "nowhere", layout=layout)


@pytest.mark.parametrize(
    "error", [KeyError("split"), TypeError("no"), AttributeError("no"), OSError("no"), ValueError()]
)
def test_whatever_goes_wrong_with_a_list_names_the_folder(error, tmp_path, monkeypatch):
    def broken(folder):
        raise error

    record = find_dataset("world")
    object.__setattr__(record, "list_samples", broken)
    monkeypatch.setattr("anysat.data.open.find_dataset", lambda name: record)
    with pytest.raises(SourceError, match=r"world-generated.*: its samples cannot be listed") as caught:
        open_dataset("world", miniature("world"))
    assert caught.value.__cause__ is error


@pytest.fixture
def kept(fresh_cache, monkeypatch):
    monkeypatch.setattr(cache, "WORTH_S", -1.0)


def test_a_tile_that_arrives_while_others_are_listed_spoils_nothing(tmp_path, kept, monkeypatch):
    root = copied("s2naip_urban", tmp_path)
    late = sorted((root / "naip").glob("*.png"))[0]
    fingerprint = cache._fingerprint

    def arriving(files, version):
        (root / "naip/32632_9_-9.png").write_bytes(late.read_bytes())
        return fingerprint(files, version)

    monkeypatch.setattr(cache, "_fingerprint", arriving)
    first = open_dataset("s2naip_urban", root, "all")
    monkeypatch.setattr(cache, "_fingerprint", fingerprint)
    again = open_dataset("s2naip_urban", root, "all")
    assert "32632_9_-9" in again.ids
    assert first.ids == again.ids
    assert first.samples.columns["s2"].tolist() == again.samples.columns["s2"].tolist()


def test_names_that_are_kept_are_those_of_the_tiles(tmp_path, kept):
    folder = DatasetFolder(miniature("s2naip_urban"), find_dataset("s2naip_urban").layout("published"))
    made, read = s2naip_urban.list_samples(folder), s2naip_urban.list_samples(folder)
    for name, column in made.columns.items():
        assert column.dtype == read.columns[name].dtype
        np.testing.assert_array_equal(column, read.columns[name])


def test_what_is_kept_holds_the_arrays_and_no_more(tmp_path, kept, monkeypatch):
    """NumPy before 2.1 took `allow_pickle` for the name of an array."""
    given, savez = [], np.savez
    monkeypatch.setattr(np, "savez", lambda file, **arrays: given.append(set(arrays)) or savez(file, **arrays))
    found = cache.cached("test", [], lambda: {"numbers": np.arange(3)})
    assert given == [{"numbers"}]
    assert cache.cached("test", [], dict).keys() == found.keys()


def test_objects_are_never_kept(tmp_path, kept):
    with pytest.raises(RecordError, match="'names'.*plain values"):
        cache.cached("test", [], lambda: {"names": np.array([None], object)})
    assert not list(tmp_path.rglob("*.npz"))


@pytest.mark.parametrize(("name", "layout"), [("treesatai_ts", "published"), ("treesatai_ts", "training"),
                                              ("biomassters", "training")])  # fmt: skip
@pytest.mark.parametrize("tiles", [1, 2, 3, 5])
def test_a_generated_set_of_few_tiles_can_be_opened(name, layout, tiles, tmp_path):
    record = find_dataset(name)
    record.write_miniature(DatasetFolder(tmp_path, record.layout(layout)), World(0), tiles)
    dataset = open_dataset(name, tmp_path, "all", layout=layout)
    assert len(dataset) >= tiles
    assert {"train", "test"} <= set(dataset.samples.columns["split"].tolist())


def test_a_dataset_is_one_line_one_tile_by_number_and_several_by_take():
    dataset = open_dataset("world", miniature("world"), "all", modalities=["s2", "aerial"])
    assert repr(dataset) == f"TileDataset(world, all, {len(dataset)} tiles, aerial, s2)"
    assert dataset[np.int64(-1)].id == dataset.ids[-1]
    for index in (slice(0, 2), [0, 1], "0", 1.0, np.array([0, 1])):
        with pytest.raises(
            InputError, match=r"dataset world: expected the number of one tile, got .*; .*take\(range\(2"
        ):
            dataset[index]
    with pytest.raises(IndexError):
        dataset[len(dataset)]


def test_batches_are_made_of_any_sequence_of_tiles():
    dataset = open_dataset("world", miniature("world"), "all", modalities=["s2"]).take(range(2))
    for tiles in (dataset, Subset(dataset, [0, 1]), (dataset[n] for n in range(2))):
        assert Batch.of(tiles).ids == tuple(dataset.ids)
