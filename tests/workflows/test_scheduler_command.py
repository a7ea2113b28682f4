"""`--scheduler`: the commands on a Dask cluster of other processes, with the numbers of this one."""

import numpy as np
import pytest

from anysat.cli import main
from anysat.geo.stores.stored import open_stored
from area_builders import CROPS, predictor
from series_builders import S1_DAYS, S2_DAYS, WAY, patches, write_dates

distributed = pytest.importorskip("distributed")


@pytest.fixture(scope="module")
def scheduler():
    options = {"n_workers": 2, "threads_per_worker": 1, "processes": True, "dashboard_address": ":0"}
    with distributed.LocalCluster(**options) as cluster:
        yield f"--scheduler={cluster.scheduler_address}"


def test_embeddings_and_their_updates_are_those_of_this_process(tmp_path, scheduler):
    stores = {}
    for name, words in (("here", []), ("there", [scheduler])):
        inputs = [write_dates(tmp_path / name, "s2", S2_DAYS[:-1]), write_dates(tmp_path / name, "s1", S1_DAYS[:-1])]
        out = tmp_path / f"of-{name}.zarr"
        assert main(["embed", *inputs, f"--out={out}", *WAY, "--keep=series", *words]) == 0
        first = patches(out).embedding.values
        write_dates(tmp_path / name, "s1", S1_DAYS[-1:])
        assert main(["embed", "--update", str(out), *words]) == 0
        stores[name] = first, patches(out).embedding.values
    for here, there in zip(stores["here"], stores["there"], strict=True):
        np.testing.assert_array_equal(here, there)


def test_maps_are_those_of_this_process(tmp_path, scheduler):
    predictor(CROPS, keys=("s2",)).save(tmp_path / "run.safetensors")
    given = write_dates(tmp_path / "in", "s2", S2_DAYS)
    found = []
    for name, words in (("here", []), ("there", [scheduler])):
        out = tmp_path / f"{name}.zarr"
        dates = "--dates=2020-01-01/2020-12-31"
        assert main(["predict", str(tmp_path / "run.safetensors"), given, f"--out={out}", dates, *words]) == 0
        found.append(next(iter(open_stored(out).values())).array[:])
    np.testing.assert_array_equal(*found)
