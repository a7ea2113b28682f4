"""Does memory stay flat and time grow linearly with the area? Lazy cubes of 1, 10 and 100 times the ground.

python benchmarks/areas_scale.py run [--times 3] [--json docs/experiments/areas/scale.json]
python benchmarks/areas_scale.py large    # 10,000 x 10,000 pixels: seconds to a plan, and to the first shard
python benchmarks/areas_scale.py fusion   # share of fusing overlapping windows, at the base size
python benchmarks/areas_scale.py maps [--times 5]    # windows per second of a map, one by one and in blocks

Each size is embedded in its own process with the model that ships, on one core, from a Sentinel-2 cube of three dates
that is generated block by block as it is read. `cpu_s` is the CPU time of reading, encoding and writing windows.
`all_cpu_s` also includes statistics and places, which are measured on the same number of windows for any area, weights,
formats and the catalog. Peak memory is that of the whole process. `share` is the time that the slowest step would take
alone, divided by the time taken. `fusion` uses all cores and one process; neither of its steps includes statistics and
places. `maps` predicts a class for each window of 60 m, with patches of 10 m and a head with random weights, from the
cube in a file, on one core, as windows per second of CPU time. The two ways take turns.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

SIDES = {1: 128, 10: 404, 100: 1280}
"""Pixels along a side of the ground, by how many times larger it is."""
DATES = ("2020-01-10", "2020-05-20", "2020-09-30")
MONTHLY = tuple(f"2020-{month:02}-10" for month in range(1, 13))
MAPPED, WINDOWS = 64, 16 * 16
"""Pixels along a side of the ground of a map, and number of its windows of 6 patches, which overlap by 2."""
FUSED = {40: 192, 20: 96, 10: 48}
"""Pixels along a side of ground whose windows overlap three times, by the patch size in metres."""


def lazy_cube(side_px: int, dates: Sequence[str] = DATES) -> Any:
    """Return ten bands of smooth ground that is generated when read."""
    import dask.array
    import numpy as np
    import xarray
    from odc.geo.geobox import GeoBox
    from odc.geo.xr import xr_coords

    from anysat.modalities import MODALITIES

    left, top = 600_000.0, 5_600_000.0
    grid = GeoBox.from_bbox((left, top - 10 * side_px, left + 10 * side_px, top), "EPSG:32631", resolution=10)

    def block(block_info: Any = None) -> Any:
        (t0, t1), (b0, b1), (r0, r1), (c0, c1) = block_info[None]["array-location"]
        row, col = np.ogrid[r0:r1, c0:c1]
        date, band = np.arange(t0, t1)[:, None, None, None], np.arange(b0, b1)[:, None, None]
        return (1500 + 900 * np.sin(row / 7 + col / 11 + date + band / 3)).astype(np.float32)

    cut = tuple(min(256, side_px - start) for start in range(0, side_px, 256))
    values = dask.array.map_blocks(block, chunks=((len(dates),), (10,), cut, cut), dtype=np.float32)
    names = MODALITIES["s2"].band_names
    coords = {**xr_coords(grid), "time": np.array(dates, "datetime64[ns]"), "band": list(names)}
    return xarray.DataArray(values, dims=("time", "band", "y", "x"), coords=coords, name="s2")


def embed_one(side_px: int) -> dict[str, float]:
    """Embed one size in this process."""
    import torch

    from anysat.areas.run import Timing
    from anysat.geo.stores.stored import provenance_of
    from anysat.workflows.embed import EmbedConfig
    from anysat.workflows.embed.area import embed_area

    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        config = EmbedConfig(
            inputs=["s2"], out=f"{folder}/out.zarr", patch_size_m=10, weights="nano", statistics="from-data",
            memory_gb=1.1, readers=1, dates="2020-01-01/2020-12-31",
        )  # fmt: skip
        start = time.process_time()
        said = embed_area(config, {"s2": lazy_cube(side_px)}).content
        all_cpu_s = time.process_time() - start
        run = provenance_of(Path(folder) / "out.zarr")["summary"]["last_run"]
    print(said, file=sys.stderr)
    timing = Timing(**{name: value for name, value in run.items() if name != "joules"})
    return {
        "cpu_s": timing.cpu,
        "all_cpu_s": all_cpu_s,
        "share": timing.bound / timing.wall,
        "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }


def run(times: int, path: Path | None) -> None:
    """Measure all sizes several times, each in its own process, and print a table."""
    found: dict[int, dict[str, float]] = {}
    for size, side in SIDES.items():
        made = []
        for _ in range(times):
            words = [sys.executable, __file__, "one", str(side)]
            done = subprocess.run(words, check=True, capture_output=True, text=True)
            made.append(json.loads(done.stdout.splitlines()[-1]))
            print(size, made[-1], file=sys.stderr, flush=True)
        found[size] = {name: statistics.median(one[name] for one in made) for name in made[0]}
    first = found[1]
    names = (
        "ground",
        "pixels",
        "CPU s",
        "CPU s per unit",
        "with all that is done once",
        "share",
        "peak MB",
        "to the smallest",
    )
    print(f"| {' | '.join(names)} |\n{'|---' * len(names)}|")
    for size, one in found.items():
        each = one["cpu_s"] / size
        ratio = one["peak_mb"] / first["peak_mb"]
        cells = (f"{size}", f"{SIDES[size]}²", f"{one['cpu_s']:.1f}", f"{each:.2f}", f"{one['all_cpu_s']:.1f}",
                 f"{one['share']:.0%}", f"{one['peak_mb']:.0f}", f"{ratio:.2f}")  # fmt: skip
        print(f"| {' | '.join(cells)} |")
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"times": times, "sizes": found}, indent=1) + "\n")


def large() -> None:
    """Measure the time to the plan of a very large scene, and to its first shard."""
    import torch

    from anysat.areas.run import run_here
    from anysat.geo.stores.store import AreaStore
    from anysat.workflows.embed import EmbedConfig
    from anysat.workflows.embed.area import measure_statistics, prepare

    class Enough(Exception):
        pass

    def tick(done: int, total: int) -> None:
        if store.is_done(next(store.units())):
            print(f"first shard written after {time.perf_counter() - start:.2f} s, step {done} of {total}")
            raise Enough

    torch.set_num_threads(1)
    cube = lazy_cube(10_000)
    with tempfile.TemporaryDirectory() as folder:
        config = EmbedConfig(inputs=["s2"], out=f"{folder}/out.zarr", patch_size_m=10, weights="nano",
                             statistics="from-data", dates="2020-01-01/2020-12-31")  # fmt: skip
        start = time.perf_counter()
        prepared = prepare(config, {"s2": cube})
        print(f"planned after {time.perf_counter() - start:.2f} s: {prepared.jobs[0].area.shards} shards")
        measure_statistics(prepared.jobs, prepared.model)
        part = prepared.part(prepared.jobs[0])
        store = AreaStore.open(part.store, part.layouts, part.periods, part.made_from)
        print(f"store ready after {time.perf_counter() - start:.2f} s")
        try:
            run_here(part.work(store.partial / "between"), store, tick)
        except Enough:
            store.close()


def fusion() -> None:
    """Measure both steps of an area, and the share of the second, fusing windows that overlap by a quarter."""
    import torch

    from anysat.geo.stores.stored import provenance_of
    from anysat.model.checkpoint import save
    from anysat.model.config import ModelConfig
    from anysat.model.encoder import AnySat
    from anysat.workflows.embed import EmbedConfig
    from anysat.workflows.embed.area import embed_area

    torch.manual_seed(0)
    print("| patch, m | patches | precision | encode, s | fuse, s | share of fusion |\n|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        weights = Path(folder) / "base.safetensors"
        save(AnySat(ModelConfig.base()), weights)
        for size_m, side_px in FUSED.items():
            for precision in ("float32", "bf16"):
                out = f"{folder}/{size_m}-{precision}.zarr"
                config = EmbedConfig(
                    inputs=["s2"], out=out, patch_size_m=size_m, weights=str(weights), statistics="from-data",
                    precision=precision, dates="2020-01-01/2020-12-31",
                )  # fmt: skip
                embed_area(config, {"s2": lazy_cube(side_px, MONTHLY)})
                last = provenance_of(Path(out))["summary"]["last_run"]
                encode, fuse = last["encode"], last["finish"]
                print(f"| {size_m} | {last['num_patches']} | {precision} | {encode:.1f} | {fuse:.1f} "
                      f"| {fuse / (encode + fuse):.0%} |", flush=True)  # fmt: skip


def map_one(folder: Path, tokens_at_once: int) -> float:
    """Map the scene in a folder with its predictor: return windows per second of CPU time."""
    import anysat.workflows.predict.area as maps
    from anysat.geo.stores.stored import provenance_of
    from anysat.workflows.predict import PredictConfig, predict

    maps.TOKENS_AT_ONCE = tokens_at_once
    out = folder / "map.zarr"
    predict(PredictConfig(run=str(folder / "run.safetensors"), inputs=[f"s2={folder / 's2.nc'}"], out=str(out),
                          readers=1, precision="float32", overwrite=True))  # fmt: skip
    return WINDOWS / float(provenance_of(out)["summary"]["last_run"]["cpu"])


def maps(times: int) -> None:
    """Measure a map of small windows, one by one and in blocks, and print all turns and the medians."""
    from dataclasses import replace

    import torch

    from anysat.data.targets import Target
    from anysat.model.load import load
    from anysat.tasks.base import make_task
    from anysat.tasks.predictor import Predictor, View

    torch.set_num_threads(1)
    encoder = load("nano")
    assert encoder.normaliser is not None
    encoder.normaliser = replace(encoder.normaliser, statistics={"world": encoder.normaliser.table("world")})
    task = make_task(Target(name="kind", level="tile", kind="class", classes=("town", "field")), None)
    predictor = Predictor(encoder, task, View(patch_sizes_m=(10.0,), modalities=("s2",)), "both")
    predictor.tile_m = 60.0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        predictor.save(folder / "run.safetensors")
        lazy_cube(MAPPED).to_netcdf(folder / "s2.nc")
        pairs = []
        for _ in range(times):
            pairs.append((map_one(folder, 1), map_one(folder, 4096)))
            print(*pairs[-1], file=sys.stderr, flush=True)
    print("| turn | one by one, windows/s | in blocks, windows/s | times as many |\n|---|---|---|---|")
    medians = [statistics.median(way) for way in zip(*pairs, strict=True)]
    for turn, (alone, together) in (*enumerate(pairs, 1), ("median", medians)):
        print(f"| {turn} | {alone:.0f} | {together:.0f} | {together / alone:.1f} |")


def main() -> None:
    """Run a command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    every = commands.add_parser("run")
    every.add_argument("--times", type=int, default=3)
    every.add_argument("--json", type=Path)
    one = commands.add_parser("one")
    one.add_argument("side", type=int)
    commands.add_parser("large")
    commands.add_parser("fusion")
    several = commands.add_parser("maps")
    several.add_argument("--times", type=int, default=5)
    options = parser.parse_args()
    if options.command == "run":
        run(options.times, options.json)
    elif options.command == "one":
        print(json.dumps(embed_one(options.side)))
    elif options.command == "large":
        large()
    elif options.command == "maps":
        maps(options.times)
    else:
        fusion()


if __name__ == "__main__":
    main()
