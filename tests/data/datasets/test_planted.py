"""PLANTED: what its records hold is what is read, and damage is named with shard and byte."""

import json
import shutil
import struct
import time
import tracemalloc
import zlib

import numpy as np
import pytest

from anysat.data import cache
from anysat.data.datasets import planted
from anysat.data.files import tfrecord_files
from anysat.data.files.tfrecord_files import Feature, index_records, numbers_of, read_record, write_records
from anysat.data.open import find_dataset, open_dataset
from anysat.data.world import World
from anysat.errors import MissingFileError, SourceError
from miniatures import copied, folder_of, miniature

pytestmark = pytest.mark.usefixtures("fresh_cache")


def shard_of(root, split="train", number=0):
    return next(root.glob(f"planted_public-{split}.tfrecord-{number:05d}-of-*"))


def test_shards_are_read_by_an_independent_loader():
    import tfrecord

    root = miniature("planted", "published")
    loaded = list(tfrecord.tfrecord_loader(str(shard_of(root)), None, {"s2": "float", "species": "byte"}))
    tiles = [tile for tile in open_dataset("planted", root) if tile.id.startswith("train-0-")]
    assert len(loaded) == len(tiles) == 2
    for record, tile in zip(loaded, tiles, strict=True):
        seen = tile.observations["s2"]
        stored = np.moveaxis(record["s2"].reshape(8, 12, 12, 10), 3, 1)
        np.testing.assert_array_equal(seen.values, np.where(seen.valid, stored, 0))
        assert bytes(record["species"]).decode() == planted.SPECIES[int(tile.targets["species"])]


@pytest.mark.parametrize("layout", ["published", "training"])
@pytest.mark.parametrize("key", ["s2", "s1", "l7", "modis"])
def test_planted_shows_what_the_world_showed(layout, key):
    tile = open_dataset("planted", miniature("planted", layout), "train")[0]
    shown = World(0).tile(0, extent_m=120.0, year=2017).observe(key, count=len(tile.observations[key].dates))
    seen = tile.observations[key]
    np.testing.assert_array_equal(seen.valid, shown.valid)
    np.testing.assert_allclose(seen.values, shown.values, rtol=1e-5)
    np.testing.assert_array_equal(seen.dates, shown.dates)
    assert seen.units == shown.units


def test_both_layouts_of_planted_give_the_same_tiles():
    published = list(open_dataset("planted", miniature("planted", "published"), "test"))
    training = list(open_dataset("planted", miniature("planted", "training"), "test"))
    assert len(published) == len(training) == 1
    for key, seen in published[0].observations.items():
        np.testing.assert_array_equal(seen.values, training[0].observations[key].values)
    assert published[0].targets == training[0].targets


def damaged(path, at, byte=0xFF):
    content = bytearray(path.read_bytes())
    content[at] ^= byte
    path.write_bytes(content)


def test_a_shard_cut_within_a_record_is_named_with_the_byte(tmp_path):
    root = copied("planted", tmp_path)
    path = shard_of(root)
    second = index_records(path)[1][0]
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(SourceError, match=f"{path.name}.*the record at byte {second} ends"):
        open_dataset("planted", root)


def test_a_shard_cut_within_a_header_is_named_with_the_byte(tmp_path):
    root = copied("planted", tmp_path)
    path = shard_of(root)
    second = index_records(path)[1][0]
    path.write_bytes(path.read_bytes()[: second + 5])
    with pytest.raises(SourceError, match=f"{path.name}.*ends within the header at byte {second}"):
        open_dataset("planted", root)


def test_a_shard_that_lost_whole_records_is_noticed(tmp_path):
    root = copied("planted", tmp_path)
    path = shard_of(root)
    path.write_bytes(path.read_bytes()[: index_records(path)[1][0]])
    with pytest.raises(SourceError, match=f"{path.name}.*it has 1 records; 2 by dataset_info.json"):
        open_dataset("planted", root)


@pytest.mark.parametrize("number", [0, 1])
def test_a_shard_that_is_missing_is_named(tmp_path, number):
    root = copied("planted", tmp_path)
    path = shard_of(root, number=number)
    path.unlink()
    with pytest.raises(MissingFileError, match=f"{path.name}.*expected all 2 shards"):
        open_dataset("planted", root)


def test_a_split_that_was_not_downloaded_may_be_missing(tmp_path):
    root = copied("planted", tmp_path)
    shard_of(root, "validation").unlink()
    assert len(open_dataset("planted", root, "all")) == 5


def test_shards_of_two_versions_are_refused(tmp_path):
    root = copied("planted", tmp_path)
    shutil.copy(shard_of(root, "test"), root / "planted_public-test.tfrecord-00000-of-00002")
    with pytest.raises(SourceError, match="test.tfrecord-0000.-of-0000.*another shard is one of"):
        open_dataset("planted", root)


def test_another_number_of_shards_than_described_is_refused(tmp_path):
    root = copied("planted", tmp_path)
    info = json.loads((root / "dataset_info.json").read_text())
    info["splits"][0]["shardLengths"].append("2")
    (root / "dataset_info.json").write_text(json.dumps(info))
    with pytest.raises(SourceError, match="it is one of 2 shards; 3 by dataset_info.json"):
        open_dataset("planted", root)


def test_a_description_that_counts_no_records_is_named(tmp_path):
    root = copied("planted", tmp_path)
    (root / "dataset_info.json").write_text('{"splits": [{"name": "train", "shardLengths": ["two"]}]}')
    with pytest.raises(SourceError, match=r"dataset_info\.json: it does not count records"):
        open_dataset("planted", root)


def test_a_damaged_record_is_named_with_shard_and_byte_when_read(tmp_path):
    root = copied("planted", tmp_path)
    path = shard_of(root)
    at = int(index_records(path)[1][0])
    damaged(path, at + 5000)
    dataset = open_dataset("planted", root)
    assert dataset[0].observations
    with pytest.raises(SourceError, match=f"{path.name}.*the record at byte {at} does not fit its checksum"):
        list(dataset)


def test_a_damaged_length_is_named_with_the_byte(tmp_path):
    root = copied("planted", tmp_path)
    at = int(index_records(shard_of(root))[1][0])
    damaged(shard_of(root), at + 1)
    with pytest.raises(SourceError, match=f"no record begins at byte {at}"):
        open_dataset("planted", root)


def test_listing_records_reads_headers_only(tmp_path):
    root = copied("planted", tmp_path)
    for path in root.glob("planted_public-*"):
        for at, _ in index_records(path).tolist():
            damaged(path, at + 100)
    assert len(open_dataset("planted", root, "all")) == 6


def test_features_json_may_lie_in_the_parent_folder(tmp_path):
    root = copied("planted", tmp_path)
    home = root / "1.0.1"
    home.mkdir()
    for path in root.glob("planted_public-*"):
        path.rename(home / path.name)
    assert len(list(open_dataset("planted", home, "all"))) == 6


@pytest.mark.parametrize("encoding", ["bytes", "zlib"])
def test_a_feature_stored_as_raw_bytes_is_the_same_array(tmp_path, encoding):
    from tfrecord import example_pb2

    wanted = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
    raw = wanted.tobytes() if encoding == "bytes" else zlib.compress(wanted.tobytes())
    feature = example_pb2.Feature(bytes_list=example_pb2.BytesList(value=[raw]))
    np.testing.assert_array_equal(numbers_of(feature, Feature("float32", (2, 3, 4), encoding), "s2", "here"), wanted)


def packed(raw):
    from tfrecord import example_pb2

    return example_pb2.Feature(bytes_list=example_pb2.BytesList(value=[raw]))


@pytest.mark.parametrize("shape", [(2, 3), (-1, 3)])
def test_a_feature_that_unpacks_to_more_than_described_is_refused_before_it_fills_memory(shape, monkeypatch):
    monkeypatch.setattr(tfrecord_files, "_MOST_BYTES", 1000)
    feature = packed(zlib.compress(bytes(50_000_000), 9))
    tracemalloc.start()
    with pytest.raises(SourceError, match=r"here: feature 's2' cannot be unpacked \(more than"):
        numbers_of(feature, Feature("float32", shape, "zlib"), "s2", "here")
    assert tracemalloc.get_traced_memory()[1] < 5_000_000
    tracemalloc.stop()


@pytest.mark.parametrize(
    ("raw", "encoding"), [(b"no zlib", "zlib"), (zlib.compress(bytes(24))[:-6], "zlib"), (bytes(23), "bytes")]
)
def test_a_feature_that_cannot_be_unpacked_is_named(raw, encoding):
    with pytest.raises(SourceError, match="here: feature 's2' cannot be unpacked"):
        numbers_of(packed(raw), Feature("float32", (2, 3), encoding), "s2", "here")


@pytest.mark.parametrize("dtype", ["bfloat16", "object", "datetime64[D]", "S8", None])
def test_a_type_that_is_no_type_of_numbers_is_refused_with_the_file(tmp_path, dtype):
    document = {"featuresDict": {"features": {"s2": {"tensor": {"dtype": dtype, "shape": {"dimensions": ["2"]}}}}}}
    with pytest.raises(SourceError, match=r"features\.json: it does not describe features"):
        tfrecord_files.read_feature_table(document, tmp_path / "features.json")


def test_a_record_that_is_no_example_is_named(tmp_path):
    path, content = tmp_path / "one.tfrecord", b"\xff\xff\xff"
    length = struct.pack("<Q", len(content))
    sums = [struct.pack("<I", tfrecord_files._masked_crc(part)) for part in (length, content)]
    path.write_bytes(length + sums[0] + content + sums[1])
    with pytest.raises(SourceError, match="one.tfrecord, record at byte 0: it is not an Example"):
        read_record(path, *index_records(path)[0].tolist())


def test_a_feature_of_another_length_than_described_is_refused(tmp_path):
    path = tmp_path / "one.tfrecord"
    write_records(path, [{"s2": np.zeros(5, np.float32)}])
    found = read_record(path, *index_records(path)[0].tolist())
    with pytest.raises(SourceError, match=r"'s2' has 5 numbers; expected \(2, 3\)"):
        numbers_of(found["s2"], Feature("float32", (2, 3)), "s2", path)


def rewritten(root, change):
    """The first training shard with its first record changed, both documents as before."""
    folder, path = folder_of("planted", root), shard_of(root)
    table = tfrecord_files.read_feature_table(folder.read("features"), path)
    records = []
    for number, (at, length) in enumerate(index_records(path).tolist()):
        found = read_record(path, at, length)
        record = {name: tfrecord_files.text_of(value, name, path) if table[name].dtype == "string"
                  else numbers_of(value, table[name], name, path).copy() for name, value in found.items()}  # fmt: skip
        if number == 0:
            change(record)
        records.append(record)
    write_records(path, records)
    return next(iter(open_dataset("planted", root)))


def test_a_value_is_valid_where_the_mask_is_not_zero(tmp_path):
    def change(record):
        record["l7_mask"][:] = 1
        record["l7_mask"][3, 1, 2, 5] = 0

    valid = rewritten(copied("planted", tmp_path), change).observations["l7"].valid
    assert not valid[3, 5, 1, 2]
    assert valid.sum() == valid.size - 1


def test_images_without_a_time_are_dropped(tmp_path):
    def change(record):
        record["s2_timestamps"][[2, 5]] = 0, -1

    assert len(rewritten(copied("planted", tmp_path), change).observations["s2"].dates) == 6


def test_a_sensor_without_an_image_is_absent(tmp_path):
    tile = rewritten(copied("planted", tmp_path), lambda record: record["s1_timestamps"].fill(0))
    assert set(tile.observations) == {"s2", "l7", "alos", "modis"}


def test_a_sensor_the_record_lacks_is_absent(tmp_path):
    tile = rewritten(copied("planted", tmp_path), lambda record: record.pop("l7"))
    assert set(tile.observations) == {"s2", "s1", "alos", "modis"}


def test_values_without_their_mask_are_refused(tmp_path):
    with pytest.raises(SourceError, match="record at byte 0: it has no 'l7_mask'; expected 'l7_mask': l7-mask"):
        rewritten(copied("planted", tmp_path), lambda record: record.pop("l7_mask"))


def test_the_incidence_angle_is_left_out_and_ratios_come_from_their_parts(tmp_path):
    def change(record):
        record["alos"][..., 0], record["alos"][..., 1], record["alos"][..., 2] = 6000, 3000, 77
        record["alos_mask"][:] = 1

    seen = rewritten(copied("planted", tmp_path), change).observations["alos"]
    np.testing.assert_allclose(seen.values[:, :, 0, 0], [[6000, 3000, 2]] * len(seen.dates))


@pytest.mark.parametrize("zone", ["Asia/Tokyo", "America/Los_Angeles"])
def test_days_are_those_of_utc_in_every_time_zone(tmp_path, monkeypatch, zone):
    moment = np.array("2017-03-01T22:30", "datetime64[ms]").astype(np.int64)
    monkeypatch.setenv("TZ", zone)
    time.tzset()
    try:
        tile = rewritten(copied("planted", tmp_path), lambda record: record["s2_timestamps"].fill(moment))
    finally:
        monkeypatch.undo()
        time.tzset()
    assert set(tile.observations["s2"].dates.astype(str)) == {"2017-03-01"}


@pytest.mark.parametrize("species", ["", "Pinus", None])
def test_a_record_without_one_of_the_species_is_read_and_has_none(tmp_path, species):
    root = copied("planted", tmp_path)
    change = (
        (lambda record: record.pop("species")) if species is None else lambda record: record.update(species=species)
    )
    assert rewritten(root, change).targets["species"] == find_dataset("planted").target("species").ignore == -1
    assert open_dataset("planted", root).labels()[0] == -1


def test_a_species_may_be_spelt_with_underscores(tmp_path):
    tile = rewritten(copied("planted", tmp_path), lambda record: record.update(species="pinus_taeda"))
    assert tile.targets["species"] == 1


@pytest.mark.parametrize("layout", ["published", "training"])
@pytest.mark.parametrize("split", ["train", "val", "all"])
def test_labels_of_planted_are_the_targets_of_its_tiles(layout, split):
    dataset = open_dataset("planted", miniature("planted", layout), split)
    assert dataset.labels().tolist() == [int(tile.targets["species"]) for tile in dataset]
    turned = dataset.take(np.arange(len(dataset))[::-1])
    assert turned.labels().tolist() == dataset.labels().tolist()[::-1]


def test_labels_that_took_long_are_kept_until_a_shard_changes(tmp_path, monkeypatch):
    root = copied("planted", tmp_path)
    monkeypatch.setattr(cache, "WORTH_S", 0.0)
    labels = open_dataset("planted", root).labels()
    asked = []
    read_texts = planted.read_texts
    monkeypatch.setattr(planted, "read_texts", lambda *args: asked.append(args[0].name) or read_texts(*args))
    assert open_dataset("planted", root).labels().tolist() == labels.tolist()
    assert not asked
    rewritten(root, lambda record: record.update(species="Theobroma cacao"))
    assert open_dataset("planted", root).labels()[0] == 39
    assert asked


def test_a_spoilt_cache_is_made_anew(monkeypatch, tmp_path):
    root = copied("planted", tmp_path)
    monkeypatch.setattr(cache, "WORTH_S", 0.0)
    labels = open_dataset("planted", root).labels()
    kept = list((tmp_path / "cache/anysat").rglob("*.npz"))
    assert kept
    for path in kept:
        path.write_bytes(path.read_bytes()[:40])
    assert open_dataset("planted", root).labels().tolist() == labels.tolist()


def test_quick_work_is_neither_kept_nor_shown(tmp_path, capfd):
    open_dataset("planted", copied("planted", tmp_path)).labels()
    assert not (tmp_path / "cache").exists()
    assert capfd.readouterr() == ("", "")


def test_progress_is_shown_on_the_error_stream_only(tmp_path, monkeypatch, capfd):
    monkeypatch.setenv("FORCE_COLOR", "1")  # as a terminal
    open_dataset("planted", copied("planted", tmp_path)).labels()
    out, err = capfd.readouterr()
    assert out == ""
    assert "Species of PLANTED" in err


def test_pickled_time_stamps_are_refused_and_do_not_run(tmp_path):
    class Canary:
        def __reduce__(self):
            return (tmp_path / "ran").touch, ()

    root = copied("planted", tmp_path, "training")
    path = next(root.glob("train/*/*_s2_timestamp.npz"))
    np.savez(path, arr_0=np.array([Canary()], object))
    with pytest.raises(SourceError, match=path.name):
        list(open_dataset("planted", root))
    assert not (tmp_path / "ran").exists()


def test_a_folder_without_a_class_is_named(tmp_path):
    root = copied("planted", tmp_path, "training")
    path = root / "train" / "labels2.json"
    labels = json.loads(path.read_text())
    gone = labels.popitem()[0]
    path.write_text(json.dumps(labels))
    with pytest.raises(SourceError, match=f"train/labels2.json.*no class for sample '{gone}'"):
        open_dataset("planted", root)


@pytest.mark.parametrize("stored", [40, -1, "Pinus taeda", True, None])
def test_a_class_that_is_no_number_of_a_species_is_refused(tmp_path, stored):
    path = copied("planted", tmp_path, "training") / "val" / "labels2.json"
    path.write_text(json.dumps(dict.fromkeys(json.loads(path.read_text()), stored)))
    with pytest.raises(SourceError, match="val/labels2.json: a class is .*expected a number from 0 to 39"):
        open_dataset("planted", path.parent.parent)


def test_one_file_of_classes_for_all_splits_is_read_as_well(tmp_path):
    root, labels = copied("planted", tmp_path, "training"), {}
    before = open_dataset("planted", root, "all").labels()
    for path in root.glob("*/labels2.json"):
        labels |= json.loads(path.read_text())
        path.unlink()
    (root / "labels2.json").write_text(json.dumps(labels))
    dataset = open_dataset("planted", root, "all")
    assert dataset.folder.layout.name == "training"
    assert dataset.labels().tolist() == before.tolist()


def test_each_split_has_its_own_file_of_classes(tmp_path):
    root = copied("planted", tmp_path, "training")
    assert {path.parent.name for path in root.glob("*/labels2.json")} == {"train", "val", "test"}
    path = root / "test" / "labels2.json"
    path.write_text(json.dumps(dict.fromkeys(json.loads(path.read_text()), 39)))
    assert open_dataset("planted", root, "test").labels().tolist() == [39]


def test_a_sensor_without_a_file_is_absent(tmp_path):
    root = copied("planted", tmp_path, "training")
    for path in root.glob("*/*/*_alos.npz"):
        path.unlink()
    assert "alos" not in open_dataset("planted", root)[0].observations
