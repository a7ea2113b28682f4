"""Pretraining on several datasets at once, and on those of strangers."""

from dataclasses import replace

import numpy as np
import torch

import anysat
from anysat.batch import Batch, Tile
from anysat.data.mixture import Mixture, Part
from anysat.data.world import World
from anysat.modalities import MODALITIES, read_modalities
from anysat.model.config import ModelConfig
from anysat.model.encoder import AnySat
from anysat.normalise import Normaliser
from anysat.observation import Observation
from anysat.pretrain.config import ObjectiveConfig
from anysat.pretrain.objective import Pretraining
from anysat.train.config import EngineConfig, KeepConfig, OptimiserConfig
from anysat.train.metrics import read_metrics
from anysat.train.run import open_run
from anysat.train.trainer import fit
from anysat.workflows.pretrain import PretrainConfig, pretrain
from anysat.workflows.pretrain.presets import PRESETS
from anysat.workflows.pretrain.run import open_part
from miniatures import miniature
from tiny_pretraining import tiny, world


def test_parts_of_the_world_share_statistics(tmp_path):
    pretrain(tiny(tmp_path / "run", world(), world("s1", "alos", "l7", tiles=6), max_steps=1))
    table = Normaliser.read(tmp_path / "run" / "statistics.json").statistics
    assert set(table) == {"world"}
    assert set(table["world"]) == {"alos", "s1", "l7"}
    assert table["world"]["s1"] == open_part(PretrainConfig(), world()).normaliser.statistics["world"]["s1"]


def test_held_out_tiles_keep_all_their_dates():
    opened = open_part(PretrainConfig(), replace(world(), max_dates=3))
    assert opened.part(opened.train).augmentation.max_dates == 3
    assert opened.part(opened.train, validation=True).augmentation.max_dates is None


def test_geoplex_in_miniature_trains_a_step_of_each_dataset(tmp_path):
    parts = [
        replace(
            part, root=str(miniature(part.dataset, tiles=6)), batch_size=1, patch_sizes_m=[max(part.patch_sizes_m)],
            crop_m=320.0 if part.dataset in ("pastis_hd", "s2naip_urban") else None, split="all", val_split=None,
            max_dates=3, weight=1,
        )
        for part in PRESETS["geoplex"]().data
    ]  # fmt: skip
    config = tiny(tmp_path / "run", *parts, num_steps=14, statistics_tiles=1)
    pretrain(config)
    found = read_metrics(tmp_path / "run" / "metrics.csv")
    for part in parts:
        assert all(np.isfinite(value) for _, value in found[f"train/{part.dataset}/loss"])
    assert set(Normaliser.read(tmp_path / "run" / "statistics.json").statistics) == {part.dataset for part in parts}


class Strips:
    """A stranger's plane and Sentinel-1, in memory."""

    name, modalities = "strips", ("thermal", "s1")

    def __init__(self, thermal):
        self.thermal, self.ids = thermal, [f"strip{index}" for index in range(6)]

    def __len__(self):
        return len(self.ids)

    def __getitem__(self, index):
        draw = np.random.default_rng(index)
        seen = Observation.of(self.thermal, draw.normal(290, 5, (1, 12, 12)))
        radar = World(0).tile(index, extent_m=60.0).observe("s1", count=3)
        return Tile.of(seen, radar, id=self.ids[index], dataset=self.name)


def test_a_stranger_s_dataset_and_modality_train(tmp_path):
    file = tmp_path / "thermal.yaml"
    file.write_text("{key: thermal, sensor: plane, bands: [{name: T, unit: K}], gsd_m: 5, is_temporal: false}")
    (thermal,) = read_modalities(file)
    strips = Strips(thermal)
    statistics = Normaliser.from_batch(Batch.of(list(strips)))
    config = ModelConfig(dim=64, depth=1, num_heads=2, modalities=(thermal, MODALITIES["s1"]))
    torch.manual_seed(0)
    objective = Pretraining(
        AnySat(config, normaliser=statistics), config=ObjectiveConfig(predictor_depth=1, predictor_heads=2)
    )
    part = Part(tiles=strips, batch_size=3, patch_sizes_m=(20.0, 30.0))
    with open_run(tmp_path / "run", config={}, seed=0) as run:
        fitted = fit(
            objective, lambda rank, world_size: Mixture(parts=[part], seed=0, rank=rank, world_size=world_size),
            optimiser=OptimiserConfig(), engine=EngineConfig(), keep=KeepConfig(loggers=("csv",)), seed=0, num_steps=2,
            run=run,
        )  # fmt: skip
    assert fitted.steps == 2
    found = anysat.load(tmp_path / "run")
    assert found.config.modality("thermal") == thermal
    assert torch.isfinite(found.encode(Batch.of([strips[0]]), 20).patch).all()
