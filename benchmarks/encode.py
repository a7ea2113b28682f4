"""Seconds and peak memory of one forward pass of the base model, untrained, on random pixels.

python benchmarks/encode.py --modalities s2 --side-m 1280 --patch-size-m 40 --dates 12
"""

import argparse
import resource
import statistics
import time

import torch

from anysat.modalities import MODALITIES
from anysat.model.config import ModelConfig
from anysat.model.encoder import AnySat


def peak_gb() -> float:
    """Return the peak memory of this process, in gigabytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6


def main() -> None:
    """Measure one case."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--modalities", nargs="+", default=["s2"], choices=MODALITIES)
    parser.add_argument("--side-m", type=float, default=320)
    parser.add_argument("--patch-size-m", type=float, default=40)
    parser.add_argument("--dates", type=int, default=12)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--output", default="patch", choices=["tile", "patch", "dense"])
    parser.add_argument("--repeat", type=int, default=3)
    options = parser.parse_args()

    torch.manual_seed(0)
    model = AnySat(ModelConfig.base()).eval().requires_grad_(False)
    x = {}
    for key in options.modalities:
        modality = MODALITIES[key]
        side = max(1, round(options.side_m / modality.gsd_m))
        time_axis = (options.dates,) if modality.is_temporal else ()
        x[key] = torch.randn(options.batch, *time_axis, len(modality.bands), side, side)
        if time_axis:
            x[f"{key}_dates"] = torch.randint(1, 367, (options.batch, options.dates))
    before = peak_gb()
    seconds = []
    for _ in range(options.repeat):
        start = time.perf_counter()
        model(x, options.patch_size_m, options.output)
        seconds.append(time.perf_counter() - start)
    print(
        f"{' + '.join(options.modalities)}, {options.batch} tile(s) of {options.side_m:g} m, patches of "
        f"{options.patch_size_m:g} m, {options.dates} dates: median {statistics.median(seconds):.2f} s "
        f"of {options.repeat}, "
        f"peak memory {peak_gb():.2f} GB ({before:.2f} GB before the first pass), {torch.get_num_threads()} threads"
    )


if __name__ == "__main__":
    main()
