"""Does memory stay flat while a dataset streams? Megabytes grown over thousands of samples, and seconds.

python benchmarks/data_memory.py --samples 10000 --datasets treesatai_ts
"""

import argparse
import os
import tempfile
import time
from pathlib import Path
from typing import Any

from anysat.batch import Batch
from anysat.data.layout import DatasetFolder
from anysat.data.mixture import Mixture, Part
from anysat.data.open import dataset_names, find_dataset, open_dataset
from anysat.data.transforms import Augmentation
from anysat.data.world import World


def resident_mb() -> float:
    """Return the memory that this process holds now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGESIZE") / 2**20


def grown(dataset: Any, samples: int, warm_up: int) -> tuple[float, float, float]:
    """Return megabytes after the warm-up, megabytes grown from then to the end, and seconds."""
    part = Part(
        tiles=dataset,
        batch_size=1,
        patch_sizes_m=dataset.record.patch_sizes_m,
        augmentation=Augmentation(turns_and_flips=True),
    )
    mixture = Mixture(parts=[part])
    before, start = 0.0, time.perf_counter()
    for step in range(samples):
        if step == warm_up:
            before = resident_mb()
        batch: Batch = mixture.draw(step).batch
        del batch
    return before, resident_mb() - before, time.perf_counter() - start


def main() -> None:
    """Measure each dataset, reading its miniature again and again."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--datasets", nargs="+", default=dataset_names())
    parser.add_argument("--samples", type=int, default=10_000)
    parser.add_argument("--warm-up", type=int, default=500)
    parser.add_argument("--tiles", type=int, default=6)
    parser.add_argument("--packed", action="store_true", help="read packed shards instead of the published files")
    options = parser.parse_args()
    print("| dataset | samples | MB after warm-up | MB grown | seconds |")
    print("|---|---|---|---|---|")
    for name in options.datasets:
        with tempfile.TemporaryDirectory() as folder:
            root = Path(folder)
            home = root / "loose"
            home.mkdir()
            record = find_dataset(name)
            record.write_miniature(DatasetFolder(home, record.layouts[0]), World(0), options.tiles)
            dataset: Any = open_dataset(name, home, "all")
            if options.packed:
                from anysat.data.pack.write import pack_dataset

                dataset = open_dataset(name, pack_dataset(dataset, root / "packed"), "all")
            before, more, seconds = grown(dataset, options.samples, min(options.warm_up, options.samples // 2))
        print(f"| {name} | {options.samples} | {before:.0f} | {more:+.1f} | {seconds:.0f} |", flush=True)


if __name__ == "__main__":
    main()
