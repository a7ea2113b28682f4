"""The encoder, with all it saves, gives what the forward pass of the paper gives, step by step, on any shape and mask."""

import copy
import sys

import machine
import numpy as np
import pytest
import speed
import speed_step
import torch
from plain import plain
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from anysat.errors import EmptyTileError
from anysat.modalities import MODALITIES, RELEASED
from anysat.model import encoder, ready
from anysat.model.inputs import read_published
from anysat.patches import patch_unit_m
from builders import random_input, random_model

TILING = [modality.key for modality in RELEASED if not modality.covers_tile]


def drawn(seed, order):
    """A random tile (batch of at most 3), and its patch size; every modality comes first in some of the seeds."""
    rng, first = np.random.default_rng(seed), TILING[seed % len(TILING)]
    others = rng.permutation([key for key in TILING if key != first])[: rng.integers(3)]
    keys = (first, *map(str, others), *(["modis"] if rng.random() < 0.4 else []))
    patch_m = patch_unit_m([MODALITIES[key] for key in keys if key in TILING], order) * int(rng.integers(1, 3))
    rows, cols, batch = (int(rng.integers(1, 4)) for _ in range(3))
    x = random_input(
        keys, patch_m * rows, width_m=patch_m * cols, batch=batch, times=int(rng.integers(1, 5)), seed=seed
    )
    for key in keys[: rng.integers(len(keys) + 1)]:
        real = rng.random(x[key].shape) < rng.choice([0.2, 0.9])
        real &= rng.random((*x[key].shape[:-2], 1, 1)) < 0.7
        x[f"{key}_mask"] = torch.from_numpy(real)
        x[key] = x[key].masked_fill(~x[f"{key}_mask"], float("nan"))
    return x, patch_m


@pytest.fixture(scope="module")
def model():
    return random_model()


@pytest.mark.parametrize("seed", range(60))
def test_tokens_are_those_of_the_plain_forward_pass(model, seed, monkeypatch):
    """Made ready in three of four, as wherever nothing is learned; else as training computes."""
    x, patch_m = drawn(seed, model.config.subpatch_order)
    made = []
    monkeypatch.setattr(ready, "_made", lambda *of: made.append(of) or made_by(*of))
    learns = seed % 4 == 0
    check_tokens(copy.deepcopy(model).requires_grad_() if learns else model, x, patch_m, seed, monkeypatch)
    assert bool(made) == (not learns)


made_by = ready._made


def check_tokens(model, x, patch_m, seed, monkeypatch):
    monkeypatch.setattr(encoder, "CHUNK_ROWS", 50 if seed % 2 else encoder.CHUNK_ROWS)
    published = read_published(x, model.config)
    try:
        inputs, grid, _ = model._check(published, range(9), patch_m)
    except EmptyTileError:
        with pytest.raises(EmptyTileError):
            model(x, patch_m)
        return
    with torch.no_grad():  # in float64: what float32 rounds in the plain pass may be more than the bound
        exact = copy.deepcopy(model).double()
        doubled = {key: part.double() if part.is_floating_point() else part for key, part in x.items()}
        given, _, _ = exact._check(read_published(doubled, model.config), range(9), patch_m)
        wanted = plain(exact, given, patch_m)
    found = model(x, patch_m, "all").detach()
    seen = found.isfinite()
    assert seen[:, 0].all()
    assert (seen.all(-1) == seen.any(-1)).all()
    torch.testing.assert_close(
        found[seen], torch.cat([wanted.tile[:, None], wanted.patch], 1)[seen].float(), atol=1e-5, rtol=1e-5
    )
    torch.testing.assert_close(model(x, patch_m, "tile").detach(), found[:, 0], atol=1e-5, rtol=1e-5)
    key = next(iter(inputs))
    dense = model(x, patch_m, "dense", key).detach()[..., model.config.dim :]
    side = grid.subpatches_per_side(model.config.modality(key))
    sub = wanted.sub[key].unflatten(1, (dense.shape[1] // side, -1)).unflatten(3, (side, side))
    sub = sub.transpose(2, 3).flatten(1, 2).flatten(2, 3)
    seen = dense.isfinite()
    torch.testing.assert_close(dense[seen], sub[seen].float(), atol=4e-5, rtol=1e-5)


def test_multiplications_are_counted_by_shape(model):
    x = random_input(("s2", "aerial"), 20)
    with (
        torch.no_grad(),
        sdpa_kernel(SDPBackend.MATH),
        FlopCounterMode(display=False) as counter,
    ):  # it does not know the processor's own
        model(x, 10)
    counted = speed.multiplications(model, x, 10)
    assert sum(counted.flops.values()) == counter.get_total_flops()


def test_a_table_of_speed_says_what_was_compared():
    row = {"wall": 2.0, "cpu": 4.0, "gflop": 300.0, "floor_s": 1.5, "share": 0.75, "peak_gb": 1.0}
    rows = {
        "plain float32": row | {"ratio": 1.0},
        "float32": row | {"wall": 1.0, "ratio": 2.0, "worst": 1e-6, "relative": 1e-7},
    }
    machine = {"processor": "one", "threads": 2, "torch": "2", "gflop_per_s": 200.0, "times": 5}
    asked = machine | {"probed_gflop_per_s": 900.0}
    quiet = {"float32": {"turns": 3, "wall": 0.8}, "plain float32": {"turns": 3, "wall": 1.8}}
    every = {way: row | {"quiet": quiet[way]} for way, row in rows.items()}
    found = speed.table({"treesat": {"machine": asked, "ways": every}})
    cells = (
        "| treesat | 200 | 900 | 5 | float32 | 1.00 | 4.00 | 2.00 | 3 | 0.80 | 2.25 | 1.3 | 300 | 1.50 | 0.75 | 1.00 "
    )
    assert cells + "| 1.0e-06 | 1.0e-07 |" in found
    for turns, cells in ((2, "2 | 1.80 |"), (0, "0 |  |")):  # too few to compare with
        every["plain float32"]["quiet"] = {"turns": turns, "wall": 1.8 if turns else None}
        found = speed.table({"treesat": {"machine": asked, "ways": every}})
        assert f"| plain float32 | 2.00 | 4.00 | 1.00 | {cells}  |" in found
        assert "| float32 | 1.00 | 4.00 | 2.00 | 3 | 0.80 |  |" in found
    kept = speed.table({"large": {"machine": machine, "ways": {"float32": row}}})
    assert "| large | 200 |  | 5 | float32 | 2.00 | 4.00 |  |  |  |  |  | 300 |" in kept


def test_a_turn_is_quiet_where_the_machine_was_as_fast_before_as_after(model, monkeypatch):
    monkeypatch.setitem(speed.CASES, "small", speed.Case({"s2": 2}, 60, 10))
    monkeypatch.setattr(speed, "base_model", lambda: model)
    monkeypatch.setattr(speed, "Elsewhere", speed.Turns)
    rates = iter([1000, 900, 1000, 700, 790, 1000, *[850] * 6])  # before and after: plain, ours; three turns
    monkeypatch.setattr(speed, "probed_rate", lambda: next(rates))
    seconds = iter([0.1, 0.1, 5.0, 9.0, 4.0, 1.0, 6.0, 2.0])  # the first time each way warms up
    monkeypatch.setattr(speed, "seconds_of", lambda work: (work(), next(seconds))[1])
    monkeypatch.setattr(speed, "floor_seconds", lambda *_: 1.0)
    rows, best = speed.measured("small", 3, bf16=False)
    assert best == 900  # a turn's rate is the lower of both
    assert rows["plain float32"]["quiet"] == {"turns": 3, "wall": 5.0}
    assert rows["float32"]["quiet"] == {"turns": 2, "wall": 1.5}  # not the first, of 9 s
    assert rows["float32"]["wall"] == 2.0


def test_the_floor_of_large_products_is_that_of_a_few_of_them(monkeypatch):
    counted = speed.Multiplications()
    counted.found[6, 40, 20, 40] = 2
    timed = []
    monkeypatch.setattr(speed.torch, "bmm", lambda a, b, out: timed.append(len(a)))
    monkeypatch.setattr(speed, "seconds_of", lambda work: (work(), 1.0)[1])
    monkeypatch.setattr(speed, "MOST_NUMBERS", 3 * 40 * 40)
    assert speed.floor_seconds(counted, torch.float32) == pytest.approx(4.0)
    assert set(timed) == {3}


def test_a_case_is_measured_both_ways(model, monkeypatch):
    monkeypatch.setitem(speed.CASES, "small", speed.Case({"s2": 2, "aerial": 0}, 60, 10))
    monkeypatch.setattr(speed, "base_model", lambda: model)
    monkeypatch.setattr(speed, "Elsewhere", speed.Turns)
    rows, best = speed.measured("small", 2, bf16=True)
    assert best > 0
    assert list(rows) == ["plain float32", "float32", "bfloat16"]
    assert rows["plain float32"]["ratio"] == 1
    assert rows["float32"]["gflop"] < rows["plain float32"]["gflop"]
    assert rows["float32"]["worst"] < 1e-5
    assert 1e-4 < rows["bfloat16"]["relative"] < 0.02


@pytest.mark.parametrize("words", [["speed.py", "run"], ["speed.py", "growth"], ["speed_step.py", "run"]])
def test_nothing_is_reported_from_a_busy_machine_but_where_that_is_allowed(words, monkeypatch):
    started = []
    monkeypatch.setattr(machine, "load", lambda: 1.0)
    monkeypatch.setattr(speed, "has_fast_bf16", lambda _: started.append("speed") or False)
    monkeypatch.setattr(speed, "CASES", {})
    monkeypatch.setattr(speed, "QUICK", ())
    monkeypatch.setattr(speed, "GROWTH", {})
    monkeypatch.setattr(speed, "table", lambda _: "")
    monkeypatch.setattr(sys, "argv", words)

    def command():
        if words[0] == "speed.py":
            speed.main()
        else:
            machine.measure_or_print(speed_step.__doc__, lambda *_: started.append("step"), str, 3)

    with pytest.raises(SystemExit, match="not reported: stop what else is running"):
        command()
    assert not started
    monkeypatch.setattr(sys, "argv", [*words, "--busy"])
    command()
    assert started
