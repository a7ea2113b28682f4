"""Matrices multiplied in bf16: near the same embeddings, from every door, and only where it is asked for or pays."""

from dataclasses import replace

import pytest
import torch

from anysat.areas.run import run_here
from anysat.errors import UnknownNameError
from anysat.model import precision
from anysat.workflows.embed import EmbedConfig
from area_builders import area, arrays_of, job, small_model, store_of, waves

CPU = torch.device("cpu")


def test_auto_is_what_the_device_is_fast_in(monkeypatch):
    for is_fast, expected in ((True, "bf16"), (False, "float32")):
        monkeypatch.setattr(precision, "has_fast_bf16", lambda _, is_fast=is_fast: is_fast)
        assert precision.find_precision("auto", CPU) == expected
        assert precision.find_precision("float32", CPU) == "float32"
        assert precision.find_precision("bf16", CPU) == "bf16"


def test_another_name_is_refused():
    with pytest.raises(UnknownNameError, match="float16"):
        precision.find_precision("float16", CPU)
    with pytest.raises(UnknownNameError, match="--precision"):
        EmbedConfig(inputs=["s2=a.nc"], out="a.zarr", patch_size_m=10, precision="half")


def test_an_area_in_bf16_is_that_in_float32_but_for_its_rounding(tmp_path):
    work, found = job(small_model("s2"), waves("s2"), area(6, 5), tmp_path / "t"), {}
    for name in ("float32", "bf16"):
        store, one = store_of(replace(work, precision=name), tmp_path / f"{name}.zarr")
        run_here(one, store)
        found[name] = torch.from_numpy(arrays_of(store.finish())[0])
    off = (found["bf16"] - found["float32"]).norm() / found["float32"].norm()
    assert 1e-4 < off < 0.02


def test_a_tile_in_bf16_has_the_type_of_the_weights():
    from builders import random_input, random_model

    model, x = random_model(), random_input(("s2", "aerial"), 20)
    with torch.inference_mode(), precision.multiplying("bf16", CPU):
        found = model(x, 10, "dense")
    assert found.dtype == torch.float32
    off = (found - model(x, 10, "dense")).norm() / found.norm()
    assert 1e-4 < off < 0.02
