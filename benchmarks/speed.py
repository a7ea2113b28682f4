"""Seconds of the encoder, against the plain forward pass and against what the machine's matrix rate allows.

python benchmarks/speed.py run [--cases treesat …] [--times 5] [--json docs/experiments/speed.json]
python benchmarks/speed.py growth            # seconds and memory as tiles, dates, batches and patches grow
python benchmarks/speed.py print docs/experiments/speed.json

`make bench` does the first two. A case is a tile of random pixels seen by the base model with the first weights of a
seed. Ways of computing it take turns, each in a process of its own, so that whatever else the machine does meets all of
them: the plain float32 forward pass of `plain.py`, with memory in pages as torch has them by itself, the encoder's own
in float32 and, where the machine computes with it, in bfloat16, made ready once for all turns. Seconds are medians,
ratios those of each turn. Machines that are shared with others change their rate. A product is timed before and after
each turn, and the lower rate is the turn's; a turn is *quiet* where it is four fifths or more of the best of all turns
of the case. Medians of quiet turns are told by themselves, with their ratio. The floor is what remains to be multiplied
at the rate at which this machine multiplies matrices of those very shapes, one after the other; its share is that over
the seconds taken. Nothing is reported from a machine that is busy with something else, unless `--busy` is given.
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
"""Share of the multiplications whose shapes are timed for the floor; the others are taken to be as fast as these."""
QUIET = 0.8
"""Share of the best turn's rate at which a turn counts as quiet."""
MOST_NUMBERS = 2**28
"""In a product that is timed for the floor; of a pile of larger ones a few are."""


def base_model() -> AnySat:
    """The base size with the first weights of a seed."""
    torch.manual_seed(0)
    return AnySat(ModelConfig.base()).eval().requires_grad_(False)


def plainly(model: AnySat, x: Mapping[str, Tensor], patch_m: float) -> Tensor:
    """Patch tokens (batch row col dim) by the plain forward pass."""
    inputs, grid, _ = model._check(read_published(x, model.config), range(10_000), patch_m)
    return plain(model, inputs, patch_m).patch.unflatten(1, (grid.num_rows, grid.num_cols))


@lru_cache(maxsize=1)
def compiled(model: AnySat) -> AnySat:
    """A copy whose largest parts are compiled on their first call, for each shape, with frozen weights."""
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
    """What takes turns."""

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
"""Of products: how many, rows, inner length, columns."""


class Multiplications(TorchDispatchMode):
    """Counts matrix products by their shape."""

    def __init__(self, found: Mapping[Shape, int] = MappingProxyType({})) -> None:
        super().__init__()
        self.found: Counter[Shape] = Counter(found)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Note it, and do it."""
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
        """By shape."""
        return {shape: 2.0 * times * shape[0] * shape[1] * shape[2] * shape[3] for shape, times in self.found.items()}


def multiplications(way: Callable[..., Tensor], *args: Any) -> Multiplications:
    """What a way multiplies."""
    with torch.inference_mode(False), torch.no_grad(), Multiplications() as counted:  # inference keeps layers whole
        way(*args)
    return counted


def floor_seconds(counted: Multiplications, dtype: torch.dtype) -> float:
    """Seconds of the products alone, each shape timed by itself into memory that is there already."""
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
    """The most memory this process has held."""
    lines = Path("/proc/self/status").read_text().splitlines()  # getrusage begins with what the parent held
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1e6


class Turns:
    """One way of computing one case, in this process."""

    def __init__(self, name: str, way: str) -> None:
        self.case, self.model, self.way = CASES[name], base_model(), way
        self.call, self.x = ways(True, True, True)[way], CASES[name].inputs()

    def begin(self) -> tuple[dict[Shape, int], float]:
        """How often what is multiplied, told by plain and float32, and seconds of this first time, which warms up."""
        counted: dict[Shape, int] = {}

        def call() -> None:
            if self.way in ("plain float32", "float32"):
                counted.update(multiplications(self.call, self.model, self.x, self.case.patch_m).found)
            else:
                self._run()

        return counted, seconds_of(call)

    def turn(self) -> tuple[float, float, float]:
        """Seconds, those of all threads, and the lower of the machine's rates before and after."""
        before, cpu = probed_rate(), time.process_time()
        wall = seconds_of(self._run)
        cpu = time.process_time() - cpu
        return wall, cpu, min(before, probed_rate())

    def _run(self) -> None:
        with torch.inference_mode():
            self.call(self.model, self.x, self.case.patch_m)

    def peak_gb(self) -> float:
        """The most memory that was held."""
        return peak_gb()


def working(name: str, way: str, pipe: Any) -> None:
    """Do what is asked for, until nothing is."""
    one = Turns(name, way)
    with keeping_ready():  # as every loop over tiles of the package
        while (asked := pipe.recv()) is not None:
            pipe.send(getattr(one, asked)())


class Elsewhere:
    """The same in a process of its own, as whoever computes in one way has it: no memory of others is in the way."""

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
        """As `Turns`."""
        found: tuple[dict[Shape, int], float] = self._ask("begin")
        return found

    def turn(self) -> tuple[float, float, float]:
        """As `Turns`."""
        found: tuple[float, float, float] = self._ask("turn")
        return found

    def peak_gb(self) -> float:
        """As `Turns`; the process ends."""
        found: float = self._ask("peak_gb")
        self.pipe.send(None)
        self.worker.join()
        return found


def measured(name: str, times: int, bf16: bool, with_compiled: bool = False) -> tuple[dict[str, Any], float]:
    """One case: seconds, ratios, memory, multiplications, floor and error of each way; the best rate, GFLOP/s."""
    case = CASES[name]
    is_compiled = with_compiled and not case.clouds  # for one shape, which clouds change
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
        multiplied = Multiplications(counted[way] or counted["float32"])  # all but the plain one multiply the same
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
    """How far each way is from the plain one in float64: the worst number, and all of them relative to their length."""
    model, x = base_model(), case.inputs()
    with torch.inference_mode():
        exact = plainly(model.double(), {key: values.double() for key, values in x.items()}, case.patch_m)
        model.float()
        off = {way: call(model, x, case.patch_m).double() - exact for way, call in every.items()}
    return {way: {"worst": float(one.abs().max()), "relative": float(one.norm() / exact.norm())}
            for way, one in off.items()}  # fmt: skip


@lru_cache(maxsize=1)
def _probe() -> Callable[[], object]:
    """A product that the fastest unit for matrices does in a few milliseconds."""
    dtype = torch.bfloat16 if has_fast_bf16(torch.device("cpu")) else torch.float32
    a, b, out = (torch.randn(shape, dtype=dtype) for shape in ((1984, 768), (768, 3072), (1984, 3072)))
    torch.mm(a, b, out=out)
    return lambda: torch.mm(a, b, out=out)


def probed_rate() -> float:
    """How fast the machine multiplies right now, in bfloat16 where it has units for it: GFLOP/s."""
    product = _probe()
    return 8 * 2 * 1984 * 768 * 3072 / 1e9 / seconds_of(lambda: [product() for _ in range(8)])


def run(names: list[str], times: int, path: Path | None, is_busy_allowed: bool, with_compiled: bool) -> None:
    """Measure cases, keep them beside those of the file, and print the table."""
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
    """How the encoder's seconds and memory grow, each case in a process of its own."""
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
    """Median seconds and peak memory of one way of one case."""
    kind, _, number = name.partition(":")
    case = GROWTH[kind][int(number)] if number else CASES[name]
    model, x, call = base_model(), case.inputs(), ways(True, True, True)[way]
    with torch.inference_mode(), keeping_ready():
        seconds = [seconds_of(lambda: call(model, x, case.patch_m)) for _ in range(times)]
    print(statistics.median(seconds))
    print(peak_gb())


def main() -> None:
    """Measure, or print what was measured."""
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
