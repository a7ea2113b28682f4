"""Which steps a loader reads, and what a batch takes in memory where its tiles differ."""

import multiprocessing
from dataclasses import dataclass

import numpy as np
import pytest
import torch

from anysat.batch import Batch, Tile
from anysat.data.loader import Loader, Plan
from anysat.modalities import MODALITIES
from anysat.observation import Observation
from builders import child_environment
from meadow import Meadow


@dataclass
class Rasters:
    """Steps of two small tiles with a raster of each of some types."""

    types: tuple[str, ...]

    def plan(self, step):
        return Plan(step=step, dataset="rasters", patch_size_m=10.0, indices=np.arange(2))

    def read(self, plan):
        return [
            Tile.of(
                Observation.of(MODALITIES["s2"], np.ones((1, 10, 4, 4)), dates=["2020-01-01"]),
                id=str(index), dataset="rasters", targets={"cover": np.ones((200, 200), kind)},
            )
            for index, kind in zip(plan.indices, self.types, strict=True)
        ]  # fmt: skip


KEPT = []


def leave_open():
    """Ends while a loader is read, as where an error's trace keeps it."""
    KEPT.append(iter(Loader(source=Rasters(("u1", "u1")), start=0, stop=1000, num_workers=1)))
    next(KEPT[0])


def test_a_process_that_ends_with_a_loader_open_ends_those_that_read(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", child_environment()["PYTHONPATH"])
    process = multiprocessing.get_context("spawn").Process(target=leave_open)
    process.start()
    process.join(60)
    try:
        assert process.exitcode == 0
    finally:
        process.kill()


@pytest.mark.parametrize(("types", "wanted"), [(("u1", "i2"), torch.int16), (("u1", "f8"), torch.float64),
                                               (("u1", "i1"), torch.int16), (("u1", "u1"), torch.uint8)])  # fmt: skip
def test_targets_whose_tiles_are_of_several_types_fit(types, wanted):
    (draw,) = Loader(source=Rasters(types), start=0, stop=1)
    assert draw.batch.targets["cover"].dtype == wanted
    assert bool((draw.batch.targets["cover"] == 1).all())


def test_only_the_bytes_of_a_batch_are_pinned(monkeypatch):
    """The memory is that of the largest batch so far."""
    from anysat.data import loader

    pinned = []
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: pinned.append(len(tensor)) or tensor.clone())
    monkeypatch.setattr(loader, "_most_bytes", lambda tiles: 10_000_000)
    draw = loader._Steps(Rasters(("u1", "u1")), None)[0].pin_memory().open()
    needed = sum(t.nbytes for t in (draw.batch.targets["cover"], draw.batch.observations["s2"].values))
    assert needed <= pinned[0] < 2 * needed


def test_a_loader_works_in_inference_mode():
    with torch.inference_mode():
        steps = [draw.step for draw in Loader(source=Rasters(("u1", "u1")), start=0, stop=3, num_workers=1)]
    assert steps == [0, 1, 2]


def test_a_loader_can_leave_steps_to_others():
    loader = Loader(source=Rasters(("u1", "u1")), start=1, stop=8, stride=3, num_workers=2)
    assert [draw.step for draw in loader] == [1, 4, 7]
    assert len(loader) == 3


def test_a_tile_taken_from_a_batch_is_as_it_was():
    tiles = [Meadow()[1], Meadow()[2]]  # the second has more dates
    back = Batch.of(tiles).tile(0)
    assert (back.id, back.dataset, list(back.observations)) == ("m1", "meadow", list(tiles[0].observations))
    for key, seen in back.observations.items():
        own = tiles[0].observations[key]
        assert (seen.modality, seen.units) == (own.modality, own.units)
        for name in ("values", "valid", "dates"):
            assert np.array_equal(getattr(seen, name), getattr(own, name)), (key, name)
    assert all(np.array_equal(found, tiles[0].targets[name]) for name, found in back.targets.items())
