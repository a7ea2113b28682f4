"""Areas on a Dask cluster: the same bits as on one machine, whoever dies."""

import os
import signal
import time

import numpy as np
import pytest

from anysat.areas.run import run_here, run_on
from area_builders import area, arrays_of, job, small_model, store_of, waves

distributed = pytest.importorskip("distributed")


@pytest.fixture(scope="module")
def client():
    options = {"n_workers": 2, "threads_per_worker": 1, "processes": True, "dashboard_address": None}
    with distributed.LocalCluster(**options) as cluster, distributed.Client(cluster) as found:
        yield found


@pytest.fixture
def work(tmp_path):
    import torch

    found = job(small_model("s2", "modis"), waves("s2", "modis"), area(19, 17, shard=8), tmp_path / "t")
    return type(found)(**{**found.__dict__, "threads": torch.get_num_threads()})


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
