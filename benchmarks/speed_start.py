"""Seconds from the command to the finished embedding of a small file, including all imports and outputs.

python benchmarks/speed_start.py [--times 5]

`anysat embed` runs with the small model that ships, on a Sentinel-2 series of 120 m and three dates, and writes Zarr,
GeoTIFF and a picture. For comparison, `import torch` is timed in the same turns, because no user of torch can avoid it.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import odc.geo.xr  # noqa: F401  (gives xarray its `odc` accessor)
import xarray
from odc.geo.geobox import GeoBox

from anysat.modalities import MODALITIES


def series(path: Path) -> Path:
    """Write a cube of random reflectances (time band y x), and return its path."""
    names = MODALITIES["s2"].band_names
    values = np.random.default_rng(0).integers(100, 4000, (3, len(names), 12, 12)).astype(np.float32)
    days = np.array(["2020-01-03", "2020-06-30", "2020-09-11"], dtype="datetime64[ns]")
    cube = xarray.DataArray(values, dims=("time", "band", "y", "x"), coords={"time": days, "band": list(names)})
    box = GeoBox.from_bbox((400_000, 5_000_000, 400_120, 5_000_120), "EPSG:32632", resolution=10)
    cube.odc.assign_crs("EPSG:32632").assign_coords(xarray.Dataset(coords={
        "y": box.coordinates["y"].values, "x": box.coordinates["x"].values}).coords
    ).to_dataset(name="pixels").to_netcdf(path, engine="h5netcdf")  # fmt: skip
    return path


def main() -> None:
    """Take turns, and print the medians."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--times", type=int, default=5)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        cube = series(Path(folder) / "s2.nc")
        embed = ["-m", "anysat", "embed", f"s2={cube}", "--patch-size-m=20", "--weights=nano", "--dataset=world"]
        found: dict[str, list[float]] = {"anysat embed": [], "import torch": []}
        for turn in range(options.times):
            for name, words in (
                ("anysat embed", [*embed, f"--out={folder}/{turn}"]),
                ("import torch", ["-c", "import torch"]),
            ):
                begun = time.perf_counter()
                subprocess.run([sys.executable, *words], check=True, stdout=subprocess.DEVNULL)
                found[name].append(time.perf_counter() - begun)
    for name, seconds in found.items():
        print(f"{name}: {statistics.median(seconds):.2f} s ({min(seconds):.2f} to {max(seconds):.2f})")


if __name__ == "__main__":
    main()
