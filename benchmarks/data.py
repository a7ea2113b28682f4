"""How fast tiles are read from disk, loose and packed, and how long a consumer waits for batches.

python benchmarks/data.py speed --datasets treesatai_ts pastis_hd
python benchmarks/data.py wait --workers 2 --step-ms 50 --runs 5
"""

import argparse
import json
import resource
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from anysat.batch import Batch
from anysat.data.layout import DatasetFolder
from anysat.data.mixture import GEOPLEX, Mixture, Part
from anysat.data.open import dataset_names, find_dataset, open_dataset
from anysat.data.pack.write import pack_dataset
from anysat.data.transforms import Augmentation, augment
from anysat.data.world import World

PASTIS_DATES = {"s2": 61, "s1": 70}
"""Number of dates of a real tile; the miniature has fewer."""


def write_miniature(name: str, root: Path, num_tiles: int) -> Path:
    """Write tiles of the generated world in the dataset's first layout."""
    record, home = find_dataset(name), root / name
    home.mkdir()
    record.write_miniature(DatasetFolder(home, record.layouts[0]), World(0), num_tiles)
    return home


def lengthen(home: Path, dates_of: dict[str, int]) -> None:
    """Repeat the dates of a PASTIS miniature until series are as long as real ones."""
    folder = find_dataset("pastis_hd").folder(home)
    table = home / "metadata.geojson"
    metadata = json.loads(table.read_text("utf-8"))
    for feature in metadata["features"]:
        facts = feature["properties"]
        for key, count in dates_of.items():
            series = folder.read(key, id=facts["ID_PATCH"])
            folder.write({key: np.resize(series, (count, *series.shape[1:]))}, id=facts["ID_PATCH"])
            days = np.datetime64("2018-09-15") + np.arange(count) * 400 // count
            stamps = {str(place): int(str(day).replace("-", "")) for place, day in enumerate(days)}
            facts[{"s2": "dates-S2", "s1": "dates-S1A"}[key]] = stamps
    table.write_text(json.dumps(metadata), "utf-8")


def measure(dataset: Any, augmentation: Augmentation, seconds: float, batch_size: int) -> tuple[float, float]:
    """Return tiles per second of CPU time, and the fraction of it spent reading and decoding."""
    reading = whole = 0.0
    count, read = 0, getattr(dataset, "as_stored", dataset.__getitem__)  # as a mixture reads
    indices = iter_forever(len(dataset))
    while whole < seconds or not count:
        start = time.process_time()
        tiles = [read(next(indices)) for _ in range(batch_size)]
        reading += time.process_time() - start
        generators = [np.random.default_rng(count + place) for place in range(batch_size)]
        batch = Batch.of([augment(tile, augmentation, g) for tile, g in zip(tiles, generators, strict=True)])
        whole += time.process_time() - start
        count += len(batch)
    return count / whole, reading / whole


def iter_forever(count: int) -> Iterator[int]:
    """Yield 0, 1, … and again."""
    while True:
        yield from range(count)


def speed(names: Sequence[str], num_tiles: int, seconds: float) -> None:
    """Print one row per dataset."""
    print("| dataset | loose, tiles/s | of it reading | packed, tiles/s | of it reading | packed / loose |")
    print("|---|---|---|---|---|---|")
    for name in names:
        with tempfile.TemporaryDirectory() as folder:
            root = Path(folder)
            home = write_miniature(name, root, num_tiles)
            if name == "pastis_hd":
                lengthen(home, PASTIS_DATES)
            loose = open_dataset(name, home, "all")
            pack_dataset(loose, root / "packed")
            packed = open_dataset(name, root / "packed", "all")
            plain = Augmentation(turns_and_flips=True)
            rows = []
            for dataset in (loose, packed):
                measure(dataset, plain, 0.1, 1)
                rows.append(measure(dataset, plain, seconds, 1))
            cells = [f"{rate:.1f} | {share:.0%}" for rate, share in rows]
            print(f"| {name} | {cells[0]} | {cells[1]} | {rows[1][0] / rows[0][0]:.1f} |", flush=True)


def two_datasets(root: Path, options: argparse.Namespace) -> list[Part]:
    """Return the parts of the mixture. Their files are written if they do not exist yet."""
    parts = []
    for name, batch_size, max_dates, count in (("treesatai_ts", 32, None, 48), ("pastis_hd", 1, 40, 6)):
        keys, packed = GEOPLEX[name].modalities, root / f"{name}-packed"
        if not packed.exists():
            home = write_miniature(name, root, count)
            if name == "pastis_hd":
                lengthen(home, PASTIS_DATES)
            pack_dataset(open_dataset(name, home, "all", modalities=keys), packed)
        tiles = open_dataset(name, root / name if options.loose else packed, "all", modalities=keys)
        changes = Augmentation(turns_and_flips=not options.still, max_dates=max_dates)
        parts.append(Part(tiles=tiles, batch_size=batch_size, patch_sizes_m=GEOPLEX[name].patch_sizes_m,
                          augmentation=changes))  # fmt: skip
    return parts


def wait(root: Path, options: argparse.Namespace) -> None:
    """Print the fraction of the time that a consumer waits for batches."""
    parts = two_datasets(root, options)
    mixture = Mixture(parts=parts, seed=0)
    for part in parts:
        report_cost(part)
    before = workers_s()
    shares = [waited(mixture, options) for _ in range(options.runs)]
    batches = options.runs * (options.warm_up + options.steps + options.workers * options.prefetch)
    print(f"workers: {1000 * (workers_s() - before) / batches:.0f} ms of processor time per batch")
    listed = ", ".join(f"{share:.1%}" for share in shares)
    print(f"{options.workers} workers, {options.step_ms:g} ms a step, {options.steps} steps after "
          f"{options.warm_up}: waiting {statistics.median(shares):.1%} of the time (runs: {listed})")  # fmt: skip


def workers_s() -> float:
    """Return the CPU time of worker processes that have ended."""
    spent = resource.getrusage(resource.RUSAGE_CHILDREN)
    return spent.ru_utime + spent.ru_stime


def report_cost(part: Part) -> None:
    """Print the CPU time of one batch."""
    mixture = Mixture(parts=[part])
    mixture.draw(0)
    start = time.process_time()
    for step in range(1, 11):
        mixture.draw(step)
    cost_ms = 100 * (time.process_time() - start)
    print(f"{part.tiles.name}, batch of {part.batch_size}: {cost_ms:.0f} ms of processor time without workers")


def waited(mixture: Mixture, options: argparse.Namespace) -> float:
    """Return the fraction of the time that a consumer with a fixed time per step waits for the next batch."""
    batches = iter(mixture.loader(num_workers=options.workers, prefetch=options.prefetch))
    waiting = 0.0
    for step in range(options.warm_up + options.steps):
        if step == options.warm_up:
            began, waiting = time.perf_counter(), 0.0
        start = time.perf_counter()
        draw = next(batches)
        waiting += time.perf_counter() - start
        del draw
        time.sleep(options.step_ms / 1000)
    return waiting / (time.perf_counter() - began)


def main() -> None:
    """Run a command."""
    torch.set_num_threads(1)
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    one = commands.add_parser("speed", help="tiles per second of each dataset")
    one.add_argument("--datasets", nargs="+", default=dataset_names())
    one.add_argument("--tiles", type=int, default=6)
    one.add_argument("--seconds", type=float, default=3.0)
    two = commands.add_parser("wait", help="share of time a consumer waits")
    two.add_argument("--workers", type=int, default=2)
    two.add_argument("--prefetch", type=int, default=4)
    two.add_argument("--step-ms", type=float, default=50.0)
    two.add_argument("--warm-up", type=int, default=100)
    two.add_argument("--steps", type=int, default=100)
    two.add_argument("--runs", type=int, default=5)
    two.add_argument("--data", type=Path, help="folder in which the files are kept for the next time")
    two.add_argument("--loose", action="store_true", help="read the files as published")
    two.add_argument("--still", action="store_true", help="no flips and turns")
    options = parser.parse_args()
    if options.command == "speed":
        speed(options.datasets, options.tiles, options.seconds)
    elif options.data is not None:
        options.data.mkdir(exist_ok=True)
        wait(options.data, options)
    else:
        with tempfile.TemporaryDirectory() as folder:
            wait(Path(folder), options)


if __name__ == "__main__":
    main()
