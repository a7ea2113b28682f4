"""Areas on a Dask cluster: the same bits as on one machine, whoever dies."""

import os
import signal
import time
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import zarr

from anysat.areas.run import run_here, run_on
from anysat.areas.units import UnitFiles
from area_builders import CROPS, area, arrays_of, job, map_job, map_store, predictor, small_model, store_of, waves

distributed = pytest.importorskip("distributed")


@pytest.fixture(scope="module")
def client():
    options = {"n_workers": 2, "threads_per_worker": 1, "processes": True, "dashboard_address": ":0"}
    with distributed.LocalCluster(**options) as cluster, distributed.Client(cluster) as found:
        yield found


@pytest.fixture
def work(tmp_path):
    return job(small_model("s2", "modis"), waves("s2", "modis"), area(19, 17, shard=8), tmp_path / "t")


def test_a_cluster_gives_the_same_bits_as_this_machine(work, tmp_path, client):
    store, here = store_of(work, tmp_path / "a.zarr")
    run_here(here, store)
    alone = arrays_of(store.finish())
    store, there = store_of(work, tmp_path / "b.zarr")
    ticks = []
    run_on(client, there, store, lambda done, total: ticks.append((done, total)))
    together = arrays_of(store.finish())
    np.testing.assert_array_equal(alone[0], together[0])
    np.testing.assert_array_equal(alone[1], together[1])
    assert ticks[-1][0] == ticks[-1][1] == 18


def test_a_worker_that_is_killed_loses_nothing(work, tmp_path, client):
    store, here = store_of(work, tmp_path / "a.zarr")
    run_here(here, store)
    alone = arrays_of(store.finish())
    store, there = store_of(work, tmp_path / "b.zarr")
    pids = list(client.run(os.getpid).values())

    def kill_one(done, _):
        if done == 5:
            os.kill(pids[0], signal.SIGKILL)
            time.sleep(0.2)

    run_on(client, there, store, kill_one)
    np.testing.assert_array_equal(alone[0], arrays_of(store.finish())[0])


def test_a_map_of_a_cluster_has_the_same_bits_as_one_of_this_machine(tmp_path, client):
    made, found = predictor(CROPS), []
    for name, run in (("a", run_here), ("b", partial(run_on, client))):
        work = map_job(made, waves("s2", "s1"), area(9, 7, shard=4), tmp_path / name)
        store = map_store(work, tmp_path / f"{name}.zarr")
        run(replace(work, kept=UnitFiles(store.partial / "between")), store)
        group = zarr.open_group(store.finish(), mode="r")["class"]
        found.append((group["class"][:], group["valid"][:]))
    np.testing.assert_array_equal(found[0], found[1])


def test_tokens_that_were_lost_are_made_anew(work, tmp_path, client):
    store, here = store_of(work, tmp_path / "a.zarr")
    run_here(here, store)
    alone = arrays_of(store.finish())
    store, there = store_of(work, tmp_path / "b.zarr")

    def lose(done, _):
        if done == 4:
            for path in there.kept.folder.glob("*.safetensors"):
                path.unlink()

    run_on(client, there, store, lose)
    np.testing.assert_array_equal(alone[0], arrays_of(store.finish())[0])


def test_when_a_task_fails_nothing_is_under_way_any_more(work, tmp_path, client):
    store, there = store_of(replace(work, block=0), tmp_path / "a.zarr")
    with pytest.raises(ValueError, match="must not be zero"):
        run_on(client, there, store)
    assert not any(client.processing().values())
