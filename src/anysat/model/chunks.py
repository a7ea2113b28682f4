"""Computation in parts, so that memory does not grow with the tile, and by several threads."""

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
"""Size in bytes of the largest block of memory that glibc keeps for reuse, once a block of this size was freed. Others
(before that, smaller ones, too) are returned to the system, which fills them with zeros at each use."""

torch.empty(LARGEST_KEPT, dtype=torch.uint8, device="cpu")  # freed at once: makes a bf16 pass a tenth faster


FEWEST_ROWS = 64
"""Least number of rows per Python thread: starting a thread takes as long as a few rows."""

LEAST_CHUNK = 640
"""Least number of rows to compute at once, in one of many threads or when recomputing: fewer are multiplied slowly."""

Part = TypeVar("Part")
Found = TypeVar("Found")


def slices(whole: slice, chunk_rows: int | None, rows_each: int, workers: int = 1) -> list[slice]:
    """Divide a slice into consecutive parts of at most `chunk_rows` rows, but at least one item.

    The parts have similar sizes, because a small last one would be multiplied slowly. If there are enough rows, every
    worker gets the same number of parts.

    Args:
        chunk_rows: Largest number of rows in a part; None for no limit, which gives one part.
        rows_each: Number of rows per item.
        workers: Number of threads that share the parts.
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
    """Concatenate each of several results over all parts. A result that is None in all parts stays None."""
    return [
        None if found[0] is None else torch.cat([one for one in found if one is not None], dim)
        for found in zip(*parts, strict=True)
    ]


def num_workers(device: torch.device) -> int:
    """Return the number of Python threads that may share a pass: on a CPU, the number of torch's threads.

    It is 1 if something watches the pass that would not see other threads (a profiler, a counter of operations, a
    compiler, a global hook), or if the program is ending and cannot start threads.
    """
    is_watched = (
        torch._C._len_torch_dispatch_stack() or torch._C._len_torch_function_stack()
        or torch._C._autograd._profiler_enabled() or torch.compiler.is_compiling() or all_are_hooked()
    )  # fmt: skip
    if device.type != "cpu" or is_watched or not threading.main_thread().is_alive():
        return 1
    return torch.get_num_threads()


def all_are_hooked() -> bool:
    """Whether there are global hooks, which are called for every module."""
    return bool(torch_module._global_forward_hooks or torch_module._global_forward_pre_hooks)


def rows_of_each(chunk_rows: int | None, workers: int) -> int | None:
    """Return the number of rows that each worker computes at once.

    One or two workers take `chunk_rows` each; more workers together take twice as many. Each takes at least
    `LEAST_CHUNK`, so memory grows with the number of workers if there are many.
    """
    if chunk_rows is None or workers <= 2:
        return chunk_rows
    return max(2 * chunk_rows // workers, min(chunk_rows, LEAST_CHUNK))


def rows_recomputed(chunk_rows: int | None) -> int | None:
    """Return the number of rows to recompute at once: a quarter, if not too few, because all activations are held."""
    return None if chunk_rows is None else min(chunk_rows, max(LEAST_CHUNK, chunk_rows // 4))


def each(work: Callable[[Part], Found], parts: Sequence[Part], workers: int) -> list[Found]:
    """Apply `work` to each part, in several Python threads, and return the results in order.

    Each thread computes with one of torch's threads, so that none waits for another after every operation. For work
    without gradients. With one worker, this thread does everything.
    """
    count = min(workers, len(parts))
    if count < 2:
        return [work(part) for part in parts]
    threads, is_inference = torch.get_num_threads(), torch.is_inference_mode_enabled()

    def begin() -> None:
        torch.get_num_threads()  # first, because it initialises the number for a new thread
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
        except BaseException:  # such as when no more threads can start: release those that wait
            all_have_begun.abort()
            raise
        finally:
            torch.set_num_threads(threads)  # for threads started from now on, which take the last number set
        return list(pool.map(run, parts))
