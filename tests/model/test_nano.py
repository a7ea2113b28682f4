"""The model that ships: what it is, that its card and its record are of this very file, and that it says something."""

import json

import numpy as np
import pretraining_nano
import pytest
import torch
from safetensors import safe_open

import anysat
from anysat.data.world import World
from anysat.modalities import RELEASED
from anysat.model.checkpoint import SHIPPED
from anysat.probing.health import cross_modal_retrieval
from anysat.workflows.pretrain.presets import nano

WEIGHTS = SHIPPED["nano"]


@pytest.fixture(scope="module")
def model():
    return anysat.load("nano").requires_grad_(False)


def test_it_has_all_released_modalities_and_is_small(model):
    assert [m.key for m in model.config.modalities] == [m.key for m in RELEASED]
    assert WEIGHTS.stat().st_size < 6e6
    with safe_open(WEIGHTS, "pt") as file:
        assert {file.get_tensor(name).dtype for name in file.keys()} == {torch.bfloat16}  # noqa: SIM118
    assert model.device.type == "cpu"
    assert model.config == nano().model.config()


def test_it_says_where_it_comes_from(model):
    assert model.provenance["licence"] == "MIT"
    assert model.provenance["data"] == "world, bigearthnet_pairs"
    assert set(model.normaliser.statistics) == {"world", "bigearthnet_pairs"}


def test_its_record_and_its_card_are_of_this_file():
    kept = json.loads(pretraining_nano.RECORD.read_text())
    assert kept["about"]["sha256"] == pretraining_nano.digest_of(WEIGHTS)
    assert WEIGHTS.with_suffix(".md").read_text() == pretraining_nano.card(kept)


def test_a_folder_of_its_name_is_another_model(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "nano").mkdir()
    assert anysat.load("nano").config.dim == 160


def looks(keys, count=12, extent_m=120.0):
    """Tiles of a world that no training saw."""
    tiles = []
    for index in range(count):
        place = World(7).tile(index, extent_m=extent_m)
        tiles.append(anysat.Tile.of(*(place.observe(key) for key in keys), id=str(index), dataset="world"))
    return anysat.Batch.of(tiles)


def test_what_radar_sees_of_a_patch_is_found_in_what_optics_see_of_it(model):
    """Far more often than by chance."""
    batch = looks(("s2", "s1"))
    inputs, _ = model.prepare(batch, 20.0)
    seen = model.see(inputs, 20.0)
    s2, s1 = (seen[key].patch.flatten(0, 2) for key in ("s2", "s1"))
    found, chance = cross_modal_retrieval(s2 - s2.mean(0), s1 - s1.mean(0))
    assert found > 5 * chance


@pytest.mark.parametrize("keys", [("aerial",), ("spot", "naip"), ("l7", "alos", "modis"), ("s1-asc", "aerial-flair")])
def test_every_modality_tells_tiles_apart(model, keys):
    batch = looks(keys, count=3, extent_m=60.0)
    patch = model.encode(batch, 30.0).patch
    assert bool(patch.isfinite().all())
    assert np.asarray(patch).reshape(3, -1).std(0).max() > 0.1
