"""Speed of the encoder, compared with the plain forward pass and with the machine's rate of matrix products.

python benchmarks/speed.py run [--cases treesat …] [--times 5] [--json docs/experiments/speed.json]
python benchmarks/speed.py growth            # seconds and memory as tiles, dates, batches and patches grow
python benchmarks/speed.py print docs/experiments/speed.json

`make bench` runs the first two. A case is a batch of tiles of random pixels, encoded by the untrained base model.
Several ways to compute it take turns, each in its own process, so that other work on the machine affects all alike: the
plain float32 forward pass of `plain.py`, with torch's own memory pages, and the encoder's in float32 and, if the
machine has units for it, in bfloat16, made ready once for all turns. Seconds are medians, and ratios are medians over
turns.

Machines that are shared with others change their speed. A product is timed before and after each turn, and the lower
rate is the turn's. A turn is *quiet* if its rate is at least four fifths of the best of all turns of the case. Medians
and ratios of quiet turns are given separately. The floor is the time of the remaining products alone, at the rate at
which this machine multiplies matrices of these shapes one after the other; its share is the floor divided by the time
taken. Nothing is reported from a machine that is busy with other work, unless `--busy` is given.
"""

from __future__ import annotations

import argparse
import copy
import json
import multiprocessing
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping
from functools import lru_cache
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from machine import machine_facts, others_busy, seconds_of, small_pages
from plain import plain
from speed_cases import CASES, GROWTH, QUICK, Case
from speed_table import table
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from anysat.model.config import ModelConfig
from anysat.model.encoder import AnySat
from anysat.model.inputs import read_published
from anysat.model.precision import has_fast_bf16, multiplying
from anysat.model.projectors import SeriesProjector
from anysat.model.ready import keeping_ready

FLOORED = 0.98
"""Fraction of the operations whose shapes are timed for the floor. The others are assumed to be as fast."""
QUIET = 0.8
"""Fraction of the best turn's rate from which a turn counts as quiet."""
MOST_NUMBERS = 2**28
"""Largest number of entries in the result of a product that is timed for the floor. Of larger batches only a part
is."""


def base_model() -> AnySat:
    """Return the base model with the initial weights of a seed."""
    torch.manual_seed(0)
    return AnySat(ModelConfig.base()).eval().requires_grad_(False)


def plainly(model: AnySat, x: Mapping[str, Tensor], patch_m: float) -> Tensor:
    """Return patch tokens (batch row col dim) by the plain forward pass."""
    inputs, grid, _ = model._check(read_published(x, model.config), range(10_000), patch_m)
    return plain(model, inputs, patch_m).patch.unflatten(1, (grid.num_rows, grid.num_cols))


@lru_cache(maxsize=1)
def compiled(model: AnySat) -> AnySat:
    """Return a copy with frozen weights whose largest parts are compiled on their first call, for each shape."""
    torch._inductor.config.freezing = True
    found = copy.deepcopy(model)
    found.spatial.compile(dynamic=False)
    for projector in found.projectors.values():
        if isinstance(projector, SeriesProjector):
            projector.pixel_mlp.compile(dynamic=False)
    return found


def ways(
    has_plain: bool, bf16: bool, with_compiled: bool
) -> dict[str, Callable[[AnySat, Mapping[str, Tensor], float], Tensor]]:
    """Return the ways to compute that take turns."""

    def ours(model: AnySat, x: Mapping[str, Tensor], patch_m: float) -> Tensor:
        return model(x, patch_m, "patch")

    def ours_bf16(model: AnySat, x: Mapping[str, Tensor], patch_m: float) -> Tensor:
        with multiplying("bf16", model.device):
            return model(x, patch_m, "patch")

    def ours_compiled(model: AnySat, x: Mapping[str, Tensor], patch_m: float) -> Tensor:
        with torch.no_grad():
            return compiled(model)(x, patch_m, "patch")

    def ours_compiled_bf16(model: AnySat, x: Mapping[str, Tensor], patch_m: float) -> Tensor:
        with multiplying("bf16", model.device):
            return ours_compiled(model, x, patch_m)

    found = {"plain float32": plainly} if has_plain else {}
    found |= {"float32": ours} | ({"bfloat16": ours_bf16} if bf16 else {})
    if with_compiled:
        found |= {"compiled float32": ours_compiled} | ({"compiled bfloat16": ours_compiled_bf16} if bf16 else {})
    return found


Shape = tuple[int, int, int, int]
"""Shape of a product: batch, rows, inner length, columns."""


class Multiplications(TorchDispatchMode):
    """Counts matrix products by their shape."""

    def __init__(self, found: Mapping[Shape, int] = MappingProxyType({})) -> None:
        super().__init__()
        self.found: Counter[Shape] = Counter(found)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Count an operation and run it."""
        name, packet = func.name(), func.overloadpacket
        if packet in (torch.ops.aten.mm, torch.ops.aten.addmm, torch.ops.aten.bmm):
            a, b = args[-2:]
            self.found[1 if a.ndim == 2 else len(a), a.shape[-2], a.shape[-1], b.shape[-1]] += 1
        elif "scaled_dot_product" in name:
            query, key = args[:2]
            count, rows, dim, others = query.shape[0] * query.shape[1], query.shape[2], query.shape[3], key.shape[2]
            self.found[count, rows, dim, others] += 1
            self.found[count, rows, others, dim] += 1
        return func(*args, **(kwargs or {}))

    @property
    def flops(self) -> dict[Shape, float]:
        """Floating-point operations by shape."""
        return {shape: 2.0 * times * shape[0] * shape[1] * shape[2] * shape[3] for shape, times in self.found.items()}


def multiplications(way: Callable[..., Tensor], *args: Any) -> Multiplications:
    """Count the products of a way to compute."""
    with torch.inference_mode(False), torch.no_grad(), Multiplications() as counted:  # else layers stay whole
        way(*args)
    return counted


def floor_seconds(counted: Multiplications, dtype: torch.dtype) -> float:
    """Return the seconds of the products alone, each shape timed by itself with existing output memory."""
    flops = sorted(counted.flops.items(), key=lambda item: -item[1])
    total, timed, seconds = sum(counted.flops.values()), 0.0, 0.0
    for (count, rows, inner, cols), some in flops:
        if timed >= FLOORED * total:
            break
        few = min(count, max(1, MOST_NUMBERS // (rows * cols)))
        a, b = torch.randn(few, rows, inner, dtype=dtype), torch.randn(few, inner, cols, dtype=dtype)
        out = torch.empty(few, rows, cols, dtype=dtype)
        best = min(seconds_of(lambda a=a, b=b, out=out: torch.bmm(a, b, out=out)) for _ in range(7))
        seconds, timed = seconds + best * count / few * counted.found[count, rows, inner, cols], timed + some
    return seconds * total / timed


def peak_gb() -> float:
    """Return the peak memory of this process."""
    lines = Path("/proc/self/status").read_text().splitlines()  # getrusage starts with the parent's peak
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1e6


class Turns:
    """One way to compute one case, in this process."""

    def __init__(self, name: str, way: str) -> None:
        self.case, self.model, self.way = CASES[name], base_model(), way
        self.call, self.x = ways(True, True, True)[way], CASES[name].inputs()

    def begin(self) -> tuple[dict[Shape, int], float]:
        """Return the number of products by shape (for plain and float32), and the seconds of this first call."""
        counted: dict[Shape, int] = {}

        def call() -> None:
            if self.way in ("plain float32", "float32"):
                counted.update(multiplications(self.call, self.model, self.x, self.case.patch_m).found)
            else:
                self._run()

        return counted, seconds_of(call)

    def turn(self) -> tuple[float, float, float]:
        """Return wall-clock seconds, CPU seconds, and the lower of the machine's rates before and after."""
        before, cpu = probed_rate(), time.process_time()
        wall = seconds_of(self._run)
        cpu = time.process_time() - cpu
        return wall, cpu, min(before, probed_rate())

    def _run(self) -> None:
        with torch.inference_mode():
            self.call(self.model, self.x, self.case.patch_m)

    def peak_gb(self) -> float:
        """Return the peak memory."""
        return peak_gb()


def working(name: str, way: str, pipe: Any) -> None:
    """Answer requests from a pipe until None arrives."""
    one = Turns(name, way)
    with keeping_ready():  # as in every loop over tiles in the package
        while (asked := pipe.recv()) is not None:
            pipe.send(getattr(one, asked)())


class Elsewhere:
    """`Turns` in its own process, as for a user who computes in one way, without the memory of other ways."""

    def __init__(self, name: str, way: str) -> None:
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self.worker = context.Process(target=working, args=(name, way, theirs), daemon=True)
        with small_pages(way.startswith("plain")):
            self.worker.start()
        theirs.close()

    def _ask(self, word: str) -> Any:
        self.pipe.send(word)
        return self.pipe.recv()

    def begin(self) -> tuple[dict[Shape, int], float]:
        """See `Turns`."""
        found: tuple[dict[Shape, int], float] = self._ask("begin")
        return found

    def turn(self) -> tuple[float, float, float]:
        """See `Turns`."""
        found: tuple[float, float, float] = self._ask("turn")
        return found

    def peak_gb(self) -> float:
        """See `Turns`. Ends the process."""
        found: float = self._ask("peak_gb")
        self.pipe.send(None)
        self.worker.join()
        return found


def measured(name: str, times: int, bf16: bool, with_compiled: bool = False) -> tuple[dict[str, Any], float]:
    """Measure one case: seconds, ratios, memory, operations, floor, error of each way, and the best rate in GFLOP/s."""
    case = CASES[name]
    is_compiled = with_compiled and not case.clouds  # compiled for one shape, which clouds change
    every = ways(case.is_plain_possible, bf16, is_compiled)
    rows: dict[str, Any] = {way: {"wall": [], "cpu": [], "rates": []} for way in every}
    takers = {way: Elsewhere(name, way) for way in every}
    counted = {}
    for way, taker in takers.items():
        counted[way], first = taker.begin()
        rows[way]["first_s"] = first if way.startswith("compiled") else None
    for _ in range(times):
        for way, taker in takers.items():
            for what, value in zip(("wall", "cpu", "rates"), taker.turn(), strict=True):
                rows[way][what].append(value)
    for way, row in rows.items():
        row["peak_gb"] = takers[way].peak_gb()
        multiplied = Multiplications(counted[way] or counted["float32"])  # all but the plain way multiply the same
        row["gflop"] = sum(multiplied.flops.values()) / 1e9
        row["floor_s"] = floor_seconds(multiplied, torch.bfloat16 if "bfloat16" in way else torch.float32)
        row["share"] = row["floor_s"] / statistics.median(row["wall"])
        if "plain float32" in rows:
            turns = zip(rows["plain float32"]["wall"], row["wall"], strict=True)
            row["ratio"] = statistics.median(plain_s / own_s for plain_s, own_s in turns)
    if case.is_plain_possible and case.side_m * case.batch <= 640:
        for way, error in errors(case, every).items():
            rows[way] |= error
    best = max(rate for row in rows.values() for rate in row["rates"])
    for row in rows.values():
        quiet = [wall for wall, rate in zip(row["wall"], row.pop("rates"), strict=True) if rate >= QUIET * best]
        row["quiet"] = {"turns": len(quiet), "wall": statistics.median(quiet) if quiet else None}
    for row in rows.values():
        row |= {what: statistics.median(row[what]) for what in ("wall", "cpu")}
    return rows, best


def errors(case: Case, every: Mapping[str, Callable[..., Tensor]]) -> dict[str, dict[str, float]]:
    """Return the deviation of each way from the plain one in float64: the largest, and the relative norm."""
    model, x = base_model(), case.inputs()
    with torch.inference_mode():
        exact = plainly(model.double(), {key: values.double() for key, values in x.items()}, case.patch_m)
        model.float()
        off = {way: call(model, x, case.patch_m).double() - exact for way, call in every.items()}
    return {way: {"worst": float(one.abs().max()), "relative": float(one.norm() / exact.norm())}
            for way, one in off.items()}  # fmt: skip


@lru_cache(maxsize=1)
def _probe() -> Callable[[], object]:
    """Return a product that the fastest unit for matrices computes in a few milliseconds."""
    dtype = torch.bfloat16 if has_fast_bf16(torch.device("cpu")) else torch.float32
    a, b, out = (torch.randn(shape, dtype=dtype) for shape in ((1984, 768), (768, 3072), (1984, 3072)))
    torch.mm(a, b, out=out)
    return lambda: torch.mm(a, b, out=out)


def probed_rate() -> float:
    """Return the machine's present rate in GFLOP/s, in bfloat16 if it has units for it."""
    product = _probe()
    return 8 * 2 * 1984 * 768 * 3072 / 1e9 / seconds_of(lambda: [product() for _ in range(8)])


def run(names: list[str], times: int, path: Path | None, is_busy_allowed: bool, with_compiled: bool) -> None:
    """Measure cases, add them to the file, and print the table."""
    others = others_busy(is_busy_allowed)
    found: dict[str, Any] = json.loads(path.read_text()) if path is not None and path.exists() else {}
    has_bf16 = has_fast_bf16(torch.device("cpu"))
    for name in names:
        facts = machine_facts(times, others)
        rows, facts["probed_gflop_per_s"] = measured(name, times, has_bf16, with_compiled)
        found[name] = {"machine": facts, "ways": rows}
        print(name, json.dumps(found[name]), file=sys.stderr, flush=True)
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(found, indent=1) + "\n")
    print(table(found))


def growth(times: int, is_busy_allowed: bool) -> None:
    """Print how seconds and memory of the encoder grow, with each case in its own process."""
    others_busy(is_busy_allowed)
    ways = ("float32", *(["bfloat16"] if has_fast_bf16(torch.device("cpu")) else []))
    columns = " | ".join(f"{way}, s | peak GB" for way in ways)
    print(f"| grows | case | patches | {columns} |\n{'|---' * (3 + 2 * len(ways))}|")
    for what, cases in GROWTH.items():
        for number, case in enumerate(cases):
            cells = []
            for way in ways:
                words = [sys.executable, __file__, "one", f"{what}:{number}", "--times", str(times), "--way", way]
                done = subprocess.run(words, check=True, capture_output=True, text=True).stdout.split()
                cells.append(f"{float(done[-2]):.2f} | {float(done[-1]):.2f}")
            patches = round(case.side_m / case.patch_m) ** 2 * case.batch
            dates = ", ".join(f"{key} {count}" for key, count in case.dates.items())
            print(f"| {what} | {dates}, {case.side_m:g} m, batch {case.batch} | {patches} of {case.patch_m:g} m "
                  f"| {' | '.join(cells)} |", flush=True)  # fmt: skip


def one(name: str, way: str, times: int) -> None:
    """Print the median seconds and the peak memory of one way to compute one case."""
    kind, _, number = name.partition(":")
    case = GROWTH[kind][int(number)] if number else CASES[name]
    model, x, call = base_model(), case.inputs(), ways(True, True, True)[way]
    with torch.inference_mode(), keeping_ready():
        seconds = [seconds_of(lambda: call(model, x, case.patch_m)) for _ in range(times)]
    print(statistics.median(seconds))
    print(peak_gb())


def main() -> None:
    """Run a command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    every = commands.add_parser("run")
    every.add_argument("--cases", nargs="+", default=list(QUICK), choices=CASES)
    every.add_argument("--times", type=int, default=5)
    every.add_argument("--json", type=Path)
    every.add_argument("--compiled", action="store_true", help="a copy compiled for these shapes, too")
    single = commands.add_parser("one")
    single.add_argument("case")
    single.add_argument("--way", default="float32")
    single.add_argument("--times", type=int, default=1)
    grown = commands.add_parser("growth")
    grown.add_argument("--times", type=int, default=3)
    for timed in (every, grown):
        timed.add_argument("--busy", action="store_true", help="report from a busy machine, too")
    shown = commands.add_parser("print")
    shown.add_argument("file", type=Path)
    options = parser.parse_args()
    if options.command == "run":
        run(options.cases, options.times, options.json, options.busy, options.compiled)
    elif options.command == "one":
        one(options.case, options.way, options.times)
    elif options.command == "growth":
        growth(options.times, options.busy)
    else:
        print(table(json.loads(options.file.read_text())))


if __name__ == "__main__":
    main()
