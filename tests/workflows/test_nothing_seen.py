"""Samples of which no sensor asked for has anything: wholly invalid tiles, which end no training."""

import json
import shutil
from dataclasses import replace

import h5py
import numpy as np
import pytest

from anysat.batch import Batch, Tile
from anysat.data.base import PACK_INDEX
from anysat.data.open import open_dataset
from anysat.data.pack.tile import decode_tile, encode_tile
from anysat.data.pack.write import pack_dataset
from anysat.data.statistics import compute_statistics
from anysat.errors import InputError, StatisticsError
from anysat.modalities import MODALITIES
from anysat.normalise import Normaliser
from anysat.observation import Observation
from meadow import Meadow
from miniatures import copied

S2 = MODALITIES["s2"]


def s2(units, **options):
    return Tile.of(Observation.of(S2, np.ones((1, 10, 4, 4)), dates=["2020-06-01"], units=units, **options))


def without(batch, key):
    return replace(batch, observations={k: seen for k, seen in batch.observations.items() if k != key})


def test_a_modality_no_tile_has_is_standardised_by_statistics_in_any_unit():
    """Statistics of a dataset in reflectance; the table has reflectance times 10 000."""
    tiles = [replace(Meadow()[1], observations={**Meadow()[1].observations, **s2("reflectance").observations})]
    batch, statistics = Batch.of(tiles), Normaliser.from_batch(Batch.of(tiles))
    standardised = statistics.standardise(without(batch, "s2").having(S2))
    assert not standardised["s2"].any()


def test_values_in_another_unit_than_the_statistics_are_refused_as_before():
    statistics = Normaliser.from_batch(Batch.of([s2("reflectance")]))
    with pytest.raises(StatisticsError, match="they are in 'reflectance', the data in 'reflectance_1e4'"):
        statistics.standardise(Batch.of([s2("reflectance_1e4")]))


@pytest.mark.parametrize("turn", [1, -1])
def test_a_tile_without_a_valid_value_takes_the_unit_of_its_neighbours(turn):
    tiles = [s2("reflectance_1e4", valid=[False]), s2("reflectance")][::turn]
    assert Batch.of(tiles).observations["s2"].units == ("reflectance",) * 10
    with pytest.raises(InputError, match="one record and units"):
        Batch.of([s2("reflectance_1e4"), s2("reflectance")])


def opened(name, layout, tmp_path, spoil, modalities):
    root = copied(name, tmp_path, layout)
    spoil(root)
    return open_dataset(name, root, "all", modalities=modalities, targets=())


def no_alos(root):
    for path in root.glob("train/*/*_alos*.npz"):
        path.unlink()


def no_radar_scenes(root):
    (root / "sentinel1.csv").write_text("projection,col,row,index,scene\n")


def no_optical_months(root):
    for path in root.glob("train_features/*_S2_*.tif"):
        path.unlink()


def one_sickle_sample_without_images(root):
    for sensor in ("S1", "L8"):
        shutil.rmtree(root / "images" / sensor / "npy" / "100")


CASES = [
    ("planted", "training", no_alos, ["alos"], (1, 3, 4, 4)),
    ("s2naip_urban", "published", no_radar_scenes, ["s1"], (1, 3, 64, 64)),
    ("biomassters", "training", no_optical_months, ["s2"], (1, 10, 256, 256)),
    ("sickle", "published", one_sickle_sample_without_images, ["s1", "l8"], (1, 3, 32, 32)),
]


@pytest.mark.parametrize(("name", "layout", "spoil", "keys", "shape"), CASES, ids=[case[0] for case in CASES])
def test_a_sample_with_nothing_that_is_asked_for_is_a_tile_without_a_valid_value(
    name, layout, spoil, keys, shape, tmp_path
):
    tile = opened(name, layout, tmp_path, spoil, keys)[0]
    (seen,) = tile.observations.values()
    assert (seen.modality.key, seen.values.shape) == (keys[0], shape)
    assert not seen.valid.any()
    assert len(seen.dates) == 1


def test_it_stacks_beside_tiles_that_have_something_and_is_packed(tmp_path):
    def spoil(root):
        sample = sorted((root / "train").glob("*/"))[0]
        for path in sample.glob("*_s1*.npz"):
            path.unlink()

    tiles = opened("planted", "training", tmp_path, spoil, ["s1"])
    batch = Batch.of([tiles[0], tiles[1]])
    assert batch.observations["s1"].valid.flatten(1).any(1).tolist() == [False, True]
    assert batch.observations["s1"].units == tiles[1].observations["s1"].units
    back = decode_tile(encode_tile(tiles[0])[0])
    assert not back.observations["s1"].valid.any()


def no_first_radar(root):
    path = sorted(root.glob("sentinel/*.h5"))[0]
    with h5py.File(path, "a") as file:
        del file["sen-1-asc-data"]


def test_statistics_and_packs_have_the_unit_of_what_was_seen(tmp_path):
    """TreeSatAI's radar is linear, that of the table is in dB, which is what a tile without any says."""
    tiles = opened("treesatai_ts", "training", tmp_path, no_first_radar, ["s1-asc"])
    units = {tile.observations["s1-asc"].units[0] for tile in tiles}
    assert units == {"dB", "linear"}
    assert compute_statistics(tiles).statistics["treesatai_ts"]["s1-asc"].units[0] == "linear"
    pack_dataset(tiles, tmp_path / "packed")
    assert json.loads((tmp_path / "packed" / PACK_INDEX).read_text())["units"]["s1-asc"][0] == "linear"


def test_asking_for_nothing_at_all_is_still_refused():
    with pytest.raises(InputError, match="at least one modality"):
        Tile.of()
