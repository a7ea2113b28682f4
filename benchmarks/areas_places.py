"""How much of the difference between patches is due to their place in the window, before and after subtracting that.

python benchmarks/areas_places.py [--side-m 2560] [--patch-size-m 20] [--window 16]

A large tile of the generated world (Sentinel-2 and Sentinel-1) is embedded with the model that ships, in adjacent
windows without overlap or blending. Places explain the variance that is common to the patches at one place of all
windows, minus what is expected by chance (one divided by the number of windows).
"""

from __future__ import annotations

import argparse

import numpy as np
import odc.geo.xr
import torch
import xarray
from numpy.typing import NDArray
from odc.geo.geobox import GeoBox

from anysat.areas.job import Job
from anysat.areas.sample import measure_places
from anysat.data.world import World
from anysat.geo.area import Span
from anysat.workflows.embed import EmbedConfig
from anysat.workflows.embed.area import prepare

SEED, DATES = 321, 6


def cubes(side_m: float) -> dict[str, xarray.DataArray]:
    """Return the observations of both sensors for one tile, as georeferenced cubes."""
    tile = World(SEED).tile(0, extent_m=side_m)
    found = {}
    for key in ("s2", "s1"):
        seen = tile.observe(key, count=DATES)
        grid = GeoBox.from_bbox((600_000, 5_600_000, 600_000 + side_m, 5_600_000 + side_m), "EPSG:32631",
                                resolution=seen.modality.gsd_m)  # fmt: skip
        coords = {**odc.geo.xr.xr_coords(grid), "time": seen.dates.astype("datetime64[ns]"),
                  "band": list(seen.modality.band_names)}  # fmt: skip
        values = np.where(seen.valid, seen.values, np.nan)
        found[key] = xarray.DataArray(values, dims=("time", "band", "y", "x"), coords=coords, name=key)
    return found


def share(windows: NDArray[np.float64]) -> float:
    """Return the share of the variance of windows (window row col dim) that places explain, beyond chance."""
    windows = windows - windows.mean((0, 1, 2))
    found = (windows.mean(0) ** 2).mean() / (windows**2).mean()
    return float(found - (1 - found) / len(windows))


def fused(job: Job, span: Span) -> NDArray[np.float64]:
    """Embed one window separately: its patches (row col dim)."""
    tokens = job.encode(0, span, job.read(0, span))
    return job.fuse_window(0, tokens)["patch"][0].astype(np.float64)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--side-m", type=float, default=2560)
    parser.add_argument("--patch-size-m", type=float, default=20)
    parser.add_argument("--window", type=int, default=16)
    options = parser.parse_args()
    torch.set_num_threads(1)
    config = EmbedConfig(inputs=["s2", "s1"], out="none.zarr", patch_size_m=options.patch_size_m, weights="nano",
                         dataset="world", window=options.window)  # fmt: skip
    job = prepare(config, cubes(options.side_m)).jobs[0]
    places, (rows, cols) = measure_places(job).corrections, job.windowing.shape(job.area)
    spans = [span for span in job.area.span.cut(rows) if span.shape == (rows, cols)]
    windows = np.stack([fused(job, span) for span in spans])
    print(f"{len(spans)} windows of {rows} x {cols} patches of {options.patch_size_m:g} m")
    print(f"places explain {share(windows):.1%} as the encoder gives it, {share(windows - places):.1%} when taken away")


if __name__ == "__main__":
    main()
