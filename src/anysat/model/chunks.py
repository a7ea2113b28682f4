"""Work in parts, so that memory does not grow with the tile."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch
from torch import Tensor
from torch.nn.modules import module as torch_module

LARGEST_KEPT = 2**25 - 2**16
"""Bytes of the largest piece of memory that glibc keeps for the next of its kind once one was freed; larger and, at
first, smaller ones it gives back to the system, which fills them with zeros at each use."""

torch.empty(LARGEST_KEPT, dtype=torch.uint8, device="cpu")  # freed at once: a pass in bfloat16 takes a tenth less


FEWEST_ROWS = 64
"""Rows that a thread of Python takes at least: to start one takes as long as a few of them."""

LEAST_CHUNK = 640
"""Rows taken at once at least, by one of many threads or where activations are computed again: fewer are multiplied
slowly."""

Part = TypeVar("Part")
Found = TypeVar("Found")


def slices(whole: slice, chunk_rows: int | None, rows_each: int, workers: int = 1) -> list[slice]:
    """Consecutive parts of at most `chunk_rows` rows, one item at least; everything at once without a limit.

    Parts are alike in size: a small last one would be multiplied slowly. There are as many for each of the workers, if
    there are rows enough.
    """
    length = whole.stop - whole.start
    if chunk_rows is None:
        return [whole]
    if not length:
        return []
    count = math.ceil(length / max(1, chunk_rows // rows_each))
    workers = min(workers, length * rows_each // FEWEST_ROWS)
    count = min(length, math.ceil(count / workers) * workers) if workers > 1 else count
    step = math.ceil(length / count)
    return [slice(start, min(start + step, whole.stop)) for start in range(whole.start, whole.stop, step)]


def joined(parts: Sequence[Sequence[Tensor | None]], dim: int) -> list[Tensor | None]:
    """Each of several results over all parts; None stays None, which it is in every part or in none."""
    return [
        None if found[0] is None else torch.cat([one for one in found if one is not None], dim)
        for found in zip(*parts, strict=True)
    ]


def num_workers(device: torch.device) -> int:
    """Threads of Python that may share the work of a pass: those that torch has on a processor.

    One where somebody looks on, who would not see other threads: a profiler, a counter of operations, a compiler, a
    hook of all modules; and when the program is about to end, and begins no threads.
    """
    is_watched = (
        torch._C._len_torch_dispatch_stack() or torch._C._len_torch_function_stack()
        or torch._C._autograd._profiler_enabled() or torch.compiler.is_compiling() or all_are_hooked()
    )  # fmt: skip
    if device.type != "cpu" or is_watched or not threading.main_thread().is_alive():
        return 1
    return torch.get_num_threads()


def all_are_hooked() -> bool:
    """Whether a hook is called for every module there is."""
    return bool(torch_module._global_forward_hooks or torch_module._global_forward_pre_hooks)


def rows_of_each(chunk_rows: int | None, workers: int) -> int | None:
    """Rows that each of the workers takes at once: two take as many as one, more together twice as many.

    Not fewer than `LEAST_CHUNK`, so that memory grows with the workers where they are many.
    """
    if chunk_rows is None or workers <= 2:
        return chunk_rows
    return max(2 * chunk_rows // workers, min(chunk_rows, LEAST_CHUNK))


def rows_recomputed(chunk_rows: int | None) -> int | None:
    """Rows taken at once where activations are computed again, all of which are held: a quarter, if not too few."""
    return None if chunk_rows is None else min(chunk_rows, max(LEAST_CHUNK, chunk_rows // 4))


def each(work: Callable[[Part], Found], parts: Sequence[Part], workers: int) -> list[Found]:
    """What some work finds in each part, which so many threads of Python take in turn; one takes them itself.

    Each multiplies with one of torch's threads, of which none waits for another after every operation. For work in
    which nothing is learned.
    """
    count = min(workers, len(parts))
    if count < 2:
        return [work(part) for part in parts]
    threads, is_inference = torch.get_num_threads(), torch.is_inference_mode_enabled()

    def begin() -> None:
        torch.get_num_threads()  # which sets those of a new thread, and would undo what is set before it
        torch.set_num_threads(1)

    def run(part: Part) -> Found:
        with torch.inference_mode(is_inference), torch.no_grad():
            return work(part)

    all_have_begun = threading.Barrier(count + 1)
    with ThreadPoolExecutor(count, initializer=begin) as pool:
        try:
            for _ in range(count):
                pool.submit(all_have_begun.wait)
            all_have_begun.wait()
        except BaseException:  # such as that no thread can begin any more: the others wait no longer
            all_have_begun.abort()
            raise
        finally:
            torch.set_num_threads(threads)  # of threads that others begin from now on, which take the last number set
        return list(pool.map(run, parts))
