"""A packed dataset is the loose one to the last bit, only quicker; its shards are read by others, too."""

import gc
import pickle
import tarfile
import warnings

import numpy as np
import pytest

from anysat.batch import Batch
from anysat.data.open import dataset_names, open_dataset
from anysat.data.pack.tile import decode_tile
from anysat.data.pack.write import MEMBER, pack_dataset
from anysat.data.statistics import compute_statistics
from anysat.errors import InputError, SourceError, UnknownNameError
from miniatures import miniature
from pack_builders import NAME, assert_same, bits, pack_of

every_dataset = pytest.mark.parametrize("name", dataset_names())


@every_dataset
def test_a_packed_dataset_is_the_loose_one(name):
    loose = open_dataset(name, miniature(name), "all")
    packed = open_dataset(name, pack_of(name), "all")
    assert packed.pack is not None
    assert (packed.name, packed.ids, packed.modalities) == (loose.name, loose.ids, loose.modalities)
    for index in range(len(loose)):
        assert_same(packed[index], loose[index])


@every_dataset
def test_splits_and_labels_are_those_of_the_loose_dataset(name):
    for split in ("train", "val", "test"):
        loose, packed = (open_dataset(name, root, split) for root in (miniature(name), pack_of(name)))
        assert packed.ids == loose.ids
        if loose.record.list_labels is not None:
            np.testing.assert_array_equal(packed.labels(), loose.labels())
        else:
            with pytest.raises(InputError, match="one class per sample"):
                packed.labels()


@every_dataset
def test_modalities_and_targets_not_asked_for_are_not_read(name):
    loose = open_dataset(name, miniature(name), "all")
    for key in loose.modalities:
        packed = open_dataset(name, pack_of(name), "all", modalities=[key], targets=())
        number = next(i for i in range(len(loose)) if key in loose[i].observations)
        tile = packed[number]
        assert set(tile.observations) == {key}
        assert not tile.targets
        assert bits(tile.observations[key].values) == bits(loose[number].observations[key].values)


def test_bytes_of_other_modalities_are_not_touched():
    packed = open_dataset(NAME, pack_of(NAME), "all", modalities=["s1-asc"])
    read, original = [], packed.pack.shards.read
    packed.pack.shards.read = lambda shard, offset, size: (read.append(size), original(shard, offset, size))[1]
    assert packed[0]
    assert sum(read) < 10_000 < packed.samples.columns["pack_size"][0]


def test_a_packed_dataset_travels_to_a_worker_process():
    packed = open_dataset(NAME, pack_of(NAME), "all")
    assert packed[0]
    assert_same(pickle.loads(pickle.dumps(packed))[1], packed[1])


def test_packed_tiles_stack_without_a_warning():
    packed = open_dataset(NAME, pack_of(NAME), "all")
    assert len(Batch.of([packed[0], packed[1]])) == 2


def test_taking_some_samples_keeps_their_places():
    packed = open_dataset(NAME, pack_of(NAME), "all")
    assert_same(packed.take([4, 1])[0], packed[4])
    assert packed.take([4, 1]).ids == [packed.ids[4], packed.ids[1]]


def test_statistics_of_the_packed_dataset_are_those_of_the_loose_one():
    loose, packed = (open_dataset(NAME, root) for root in (miniature(NAME), pack_of(NAME)))
    assert compute_statistics(packed).statistics == compute_statistics(loose).statistics


def test_a_modality_that_was_not_packed_is_said(tmp_path):
    loose = open_dataset(NAME, miniature(NAME), "all", modalities=["s2"])
    root = pack_dataset(loose, tmp_path / "s2")
    assert open_dataset(NAME, root).modalities == ("s2",)
    with pytest.raises(SourceError, match="aerial was not packed, only s2"):
        open_dataset(NAME, root, modalities=["aerial"])


def test_a_packed_folder_of_another_dataset_is_refused():
    with pytest.raises(SourceError, match="holds the packed treesatai_ts, not pastis_hd"):
        open_dataset("pastis_hd", pack_of(NAME))


def test_unknown_splits_are_refused():
    with pytest.raises(UnknownNameError, match="split of treesatai_ts"):
        open_dataset(NAME, pack_of(NAME), "tain")


# Shards


def test_webdataset_reads_the_shards():
    import webdataset

    loose = open_dataset(NAME, miniature(NAME), "all")
    shards = sorted(str(path) for path in pack_of(NAME).glob("*.tar"))
    assert len(shards) > 2
    found = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # it leaves files open
        for sample in webdataset.WebDataset(shards, shardshuffle=False):
            tile = decode_tile(sample[MEMBER])
            found[tile.id] = tile
            assert loose.ids[int(sample["__key__"])] == tile.id
        gc.collect()
    for index, name in enumerate(loose.ids):
        assert_same(found[name], loose[index])


def test_the_index_says_where_each_tile_lies():
    packed = open_dataset(NAME, pack_of(NAME), "all")
    places = {}
    for number, name in enumerate(packed.pack.shards.names):
        with tarfile.open(pack_of(NAME) / name) as file:
            places |= {(number, m.offset_data, m.size): (m.mtime, m.uid, m.gid, m.name) for m in file.getmembers()}
    columns = (packed.samples.columns[f"pack_{name}"].tolist() for name in ("shard", "offset", "size"))
    assert set(zip(*columns, strict=True)) == set(places)
    assert {facts[:3] for facts in places.values()} == {(0, 0, 0)}


def test_a_shard_holds_one_split_only():
    columns = open_dataset(NAME, pack_of(NAME), "all").samples.columns
    for shard in np.unique(columns["pack_shard"]):
        assert len(set(columns["split"][columns["pack_shard"] == shard])) == 1


def test_shards_are_about_as_large_as_asked():
    sizes = [path.stat().st_size for path in pack_of(NAME).glob("train*.tar")]
    assert 0.6e6 < max(sizes) < 1.5e6
