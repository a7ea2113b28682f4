"""Matrices multiplied in bf16: near the same embeddings, from every door, and only where it is asked for or pays."""

from dataclasses import replace

import pytest
import torch

from anysat.areas.run import run_here
from anysat.errors import RecordError, UnknownNameError
from anysat.model import precision, ready
from anysat.tasks.base import make_task
from anysat.tasks.finetune import score
from anysat.tasks.predictor import Predictor, View
from anysat.train.config import EngineConfig
from anysat.train.trainer import device_of
from anysat.workflows.embed import EmbedConfig
from area_builders import area, arrays_of, job, small_model, store_of, waves
from labelled import COVER, KEYS, meadow_encoder
from meadow import Meadow

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


def test_auto_is_a_graphics_card_where_there_is_one(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert precision.find_device("auto") == CPU
    monkeypatch.undo()
    if torch.cuda.is_available():
        assert precision.find_device("auto").type == "cuda"
        return
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with pytest.raises(RecordError, match="cuda"):  # it was asked for the card
        precision.find_device("auto")


def test_a_device_that_is_not_there_is_refused():
    with pytest.raises(RecordError, match="--device.*a device of this machine such as cpu"):
        precision.find_device("cuda:99")


def test_fine_tuning_is_scored_where_it_was_trained(monkeypatch):
    for has_card, accelerator, expected in ((True, "auto", "cuda"), (True, "cpu", "cpu"), (False, "auto", "cpu")):
        monkeypatch.setattr(torch.cuda, "is_available", lambda has_card=has_card: has_card)
        assert device_of(EngineConfig(accelerator=accelerator)).type == expected


def test_only_the_encoder_is_scored_in_bf16_not_the_head_fitted_to_what_it_gave(monkeypatch):
    predictor = Predictor(meadow_encoder(), make_task(COVER), View(patch_sizes_m=(20.0,), modalities=KEYS, dense="s2"),
                          "dense")  # fmt: skip
    seen = []
    made = ready.ready
    monkeypatch.setattr(
        ready, "ready", lambda part, dtype: seen.append(("encoder", dtype == torch.bfloat16)) or made(part, dtype)
    )
    predictor.head.register_forward_pre_hook(lambda *_: seen.append(("head", torch.is_autocast_enabled("cpu"))))
    for wanted in ("float32", "bf16"):
        seen.clear()
        score(predictor, Meadow(2), precision=wanted)
        assert set(seen) >= {("head", False)}
        assert {on for name, on in seen if name == "head"} == {False}
        assert {on for name, on in seen if name == "encoder"} == {wanted == "bf16"}


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
