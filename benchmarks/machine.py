"""Shared parts of speed benchmarks: facts about the machine, whether it is idle, and the command line for one table."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import torch

BUSY = 0.3
"""Number of cores used by other work above which nothing is reported."""


def others_busy(is_allowed: bool) -> float:
    """Return the number of cores used by other work.

    Exits the program if there are too many, unless that is allowed.
    """
    others = load()
    print(f"busy with something else: {others:.2f} cores of {os.cpu_count()}", file=sys.stderr)
    if others > BUSY and not is_allowed:
        sys.exit("not reported: stop what else is running, or give --busy")
    return others


def load() -> float:
    """Measure the number of cores used by other work, for a second in which this process sleeps."""

    def busy() -> float:
        fields = [int(part) for part in Path("/proc/stat").read_text().splitlines()[0].split()[1:9]]
        return (sum(fields) - fields[3] - fields[4]) / os.sysconf("SC_CLK_TCK")

    before = busy()
    time.sleep(1)
    return busy() - before


def seconds_of(work: Callable[[], object]) -> float:
    """Return the duration of one call."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def machine_facts(times: int, others: float) -> dict[str, Any]:
    """Return the machine and the conditions of the measurement."""
    a, b, out = torch.randn(2048, 2048), torch.randn(2048, 2048), torch.empty(2048, 2048)
    rate = 2 * 2048**3 / min(seconds_of(lambda: torch.mm(a, b, out=out)) for _ in range(9)) / 1e9
    return {"processor": processor(), "threads": torch.get_num_threads(), "torch": torch.__version__,
            "gflop_per_s": rate, "load": others, "times": times}  # fmt: skip


@contextlib.contextmanager
def small_pages(wanted: bool = True) -> Iterator[None]:
    """Start processes with torch's own memory pages, not the large ones that this package requests for inference."""
    with mock.patch.dict(os.environ, {"THP_MEM_ALLOC_ENABLE": "0"} if wanted else {}):
        yield


def processor() -> str:
    """Return the name of the processor."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def measure_or_print(
    about: str, run: Callable[[int, float, Path | None], None], table: Callable[[dict[str, Any]], str], times: int
) -> None:
    """Run the command line of a benchmark with one table."""
    parser = argparse.ArgumentParser(description=about.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    measure = commands.add_parser("run")
    measure.add_argument("--times", type=int, default=times)
    measure.add_argument("--json", type=Path)
    measure.add_argument("--busy", action="store_true", help="report from a busy machine, too")
    shown = commands.add_parser("print")
    shown.add_argument("file", type=Path)
    options = parser.parse_args()
    if options.command == "run":
        run(options.times, others_busy(options.busy), options.json)
    else:
        print(table(json.loads(options.file.read_text())))
