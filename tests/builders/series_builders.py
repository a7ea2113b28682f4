"""Folders of dated rasters that get more dates, and the words of commands for them."""

import numpy as np
import xarray

from anysat.modalities import MODALITIES as M
from geo_builders import geobox, write_tif

ROWS, COLS = 26, 30
S2_DAYS = ["2020-01-03", "2020-02-12", "2020-03-30", "2020-06-30"]
S1_DAYS = ["2020-01-05", "2020-03-01", "2020-05-11", "2020-07-01"]
KEYS = {"s2": S2_DAYS, "s1": S1_DAYS}


def write_dates(folder, key, days):
    """A GeoTIFF for each day, with a cloud of its own."""
    (folder / key).mkdir(exist_ok=True, parents=True)
    names = M[key].band_names
    for day in days:
        rng = np.random.default_rng(int(day.replace("-", "")))
        y, x = np.mgrid[:ROWS, :COLS]
        waves = np.sin(x / 4 + y / 6 + np.arange(len(names))[:, None, None] + int(day[5:7]))
        values = 1500 + 900 * waves if key == "s2" else -15 + 4 * waves
        values = (values + rng.normal(0, 0.05, values.shape)).astype(np.float32)
        row, col = rng.integers(20, size=2)
        values[:, row : row + 6, col : col + 8] = np.nan
        write_tif(folder / key / f"{day}.tif", values, geobox((ROWS, COLS)), names=names, nodata=np.nan)
    return f"{key}={folder / key}"


WAY = ["--patch-size-m=20", "--weights=nano", "--dataset=bigearthnet_pairs", "--places=kept", "--window=8",
       "--memory-gb=0.96", "--precision=float32"]  # fmt: skip


def patches(store, group="patch"):
    return xarray.open_zarr(store, group=group)
