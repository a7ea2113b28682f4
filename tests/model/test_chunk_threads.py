"""Work in parts that threads share: the same numbers, and nobody outside notices."""

import subprocess
import sys
import threading
import time

import pytest
import torch
from torch.nn.modules.module import register_module_forward_hook
from torch.utils.flop_counter import FlopCounterMode

import anysat.model.ready as ready
import anysat.model.steps as steps
from anysat.model.chunks import each, num_workers, rows_of_each, slices
from anysat.model.growth import find_kind, grow
from anysat.model.inputs import PixelInput, read_published
from anysat.model.precision import multiplying
from builders import random_input, random_model

CPU = torch.device("cpu")


@pytest.fixture
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def takers(monkeypatch):
    """Which threads took parts of which passes."""
    found = []

    def noting(work, parts, workers):
        names = set()

        def noted(part):
            names.add(threading.current_thread().name)
            return work(part)

        result = each(noted, parts, workers)
        found.append(names)
        return result

    monkeypatch.setattr(steps, "each", noting)
    return found


def test_parts_are_as_many_for_each_worker_where_there_are_rows_enough():
    assert [len(slices(slice(0, 288), 2560, 26, workers)) for workers in (1, 2, 3, 4)] == [3, 4, 3, 4]
    assert len(slices(slice(0, 5), 2560, 26, 2)) == 2
    assert len(slices(slice(0, 4), 2560, 26, 2)) == 1
    assert len(slices(slice(0, 3), 2560, 2500, 8)) == 3
    assert slices(slice(0, 0), 2560, 26, 2) == []
    assert slices(slice(0, 9), None, 26, 2) == [slice(0, 9)]


def test_many_workers_take_fewer_rows_each():
    assert [rows_of_each(2560, workers) for workers in (1, 2, 4, 8, 64)] == [2560, 2560, 1280, 640, 640]
    assert (rows_of_each(100, 8), rows_of_each(None, 8)) == (100, None)


def test_each_part_is_taken_once_and_found_in_order_as_outside(two_threads):
    def work(part):
        return part, torch.get_num_threads(), torch.is_inference_mode_enabled(), torch.is_grad_enabled()

    parts = slices(slice(0, 100), 10, 1)
    for is_inference in (False, True):
        with torch.inference_mode(is_inference), torch.no_grad():
            assert each(work, parts, 2) == [(part, 1, is_inference, False) for part in parts]
            assert each(work, parts, 1) == [(part, 2, is_inference, False) for part in parts]


def test_threads_that_begin_later_have_as_many_as_before(two_threads):
    each(lambda part: torch.ones(2) + part.start, slices(slice(0, 4), 1, 1), 2)
    found = []
    later = threading.Thread(target=lambda: found.append(torch.get_num_threads()))
    later.start()
    later.join()
    assert (torch.get_num_threads(), found) == (2, [2])


def test_threads_that_begin_meanwhile_have_as_many_as_before(two_threads):
    found = []

    def work(part):
        later = threading.Thread(target=lambda: found.append(torch.get_num_threads()))
        later.start()
        later.join()
        return torch.get_num_threads()

    assert each(work, slices(slice(0, 4), 1, 1), 2) == [1, 1, 1, 1]
    assert found == [2, 2, 2, 2]


def test_a_thread_that_cannot_begin_is_told(two_threads, monkeypatch):
    begin, begun = threading.Thread.start, []

    def start(thread):
        begun.append(thread)
        if len(begun) == 2:
            raise RuntimeError("can't start new thread")
        begin(thread)

    monkeypatch.setattr(threading.Thread, "start", start)
    with pytest.raises(RuntimeError, match="can't start"):
        each(lambda part: part, slices(slice(0, 4), 1, 1), 2)
    assert torch.get_num_threads() == 2


def test_what_goes_wrong_in_a_part_is_told_and_the_rest_is_left(two_threads):
    taken = []

    def work(part):
        taken.append(part)
        time.sleep(0.002)  # a thousand of them take longer than it takes to notice the first
        raise ValueError(part.start)

    with pytest.raises(ValueError, match="0"):
        each(work, slices(slice(0, 1000), 1, 1), 2)
    assert len(taken) < 1000
    assert torch.get_num_threads() == 2


@pytest.mark.parametrize("workers", [2, 3])
@pytest.mark.parametrize("dtype", [None, "bf16"])
def test_threads_give_what_one_gives(dtype, workers, takers, monkeypatch):
    model, x = random_model(), random_input(("aerial", "s2", "s1-asc"), side_m=120, batch=2)
    found = []
    for count in (1, workers):
        monkeypatch.setattr(ready, "num_workers", lambda _, count=count: count)
        with torch.inference_mode(), multiplying(dtype, CPU):
            found.append([model(x, 20, output) for output in ("patch", "dense")])
    assert max(map(len, takers)) == workers
    bound = {"atol": 1e-6, "rtol": 1e-5} if dtype is None else {"atol": 0.05, "rtol": 0.05}
    for one, many in zip(*found, strict=True):
        torch.testing.assert_close(many, one, **bound)


def test_a_pass_that_learns_or_is_looked_at_stays_in_its_thread(two_threads, takers):
    model, x = random_model(), random_input(("aerial", "s2"), side_m=120, batch=2)
    here = {threading.current_thread().name}

    def passes():
        takers.clear()
        model(x, 20)
        return takers

    with torch.inference_mode():
        assert passes()[0] != here
        with FlopCounterMode(display=False):
            assert passes() == [here]
        with torch.autograd.profiler.profile():
            assert passes() == [here]
        hook = model.spatial.register_forward_hook(lambda *_: None)
        assert passes()[0] == here
        hook.remove()
        model.projectors["aerial"].mlp[0].train()  # draws of dropout would come in any order
        assert passes()[0] == here
        model.eval()
        hook = register_module_forward_hook(lambda *_: None)
        assert passes() == [here]
        hook.remove()
    model.requires_grad_(True)
    assert passes() == [here]


def test_threads_share_the_parts_of_all_modalities_and_then_the_tiles_that_are_fused(two_threads, takers):
    model = random_model()
    with torch.inference_mode():
        model(random_input(("aerial", "s2"), side_m=120, batch=2), 20)
        model(random_input(("aerial", "s2"), side_m=120, batch=1), 20)
    assert [len(names) for names in takers] == [2, 2, 2]


@pytest.mark.parametrize("keep", ["series", "features"])
@pytest.mark.parametrize("key", ["s1", "s2"])
def test_threads_let_a_series_grow_as_one_does(key, keep, monkeypatch):
    model = random_model()
    pixels = read_published(random_input((key,), side_m=120, batch=1), model.config)[key]
    projector, modality, found = model.projectors[key], model.config.modality(key), []
    for count in (1, 3):
        monkeypatch.setattr(ready, "num_workers", lambda _, count=count: count)
        kept = None
        with torch.inference_mode():
            for some in (slice(0, 2), slice(2, None)):
                given = PixelInput(pixels.values[:, some], pixels.days[:, some], None)
                seen, kept = grow(
                    projector, model.spatial, model.config, modality, kept, given, 20,
                    kind=find_kind(projector, keep), chunk_rows=100,
                )  # fmt: skip
        found.append((seen.patch, kept.parts))
    torch.testing.assert_close(found[1], found[0], atol=1e-5, rtol=1e-5)


def test_there_are_as_many_workers_as_torch_has_threads_on_a_processor(two_threads):
    assert (num_workers(CPU), num_workers(torch.device("cuda"))) == (2, 1)


def test_a_thread_that_outlives_the_program_embeds_by_itself():
    code = """
import threading, time, torch
from anysat.model.chunks import each, num_workers
torch.set_num_threads(2)
def late():
    threading.main_thread().join()
    workers = num_workers(torch.device("cpu"))
    print(workers, each(lambda part: part, [1, 2], workers))
threading.Thread(target=late).start()
"""
    found = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert (found.stdout, found.stderr) == ("1 [1, 2]\n", "")
