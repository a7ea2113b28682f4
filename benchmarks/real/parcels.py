"""The task `parcels_belgium`: crop of every 10 m pixel, learnt in one place and year and asked in another."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from affine import Affine
from numpy.typing import NDArray
from odc.geo.geobox import GeoBox

from anysat.batch import Tile
from anysat.data.base import Target
from anysat.modalities import MODALITIES
from anysat.observation import Observation
from real.protocol import TEST, TRAIN, VALIDATION, RealTask

PATCHES = {"00002806639B424A": TRAIN, "000028085BF08E7E": TEST}
"""Flanders 2017-08 to 2018-11, and 2018-08 to 2019-11; the third patch of the folder, Tanzania, shares maize only."""
CROPS = {1200: "maize", 9120: "permanent grass", 5100: "potatoes"}
"""Codes of the crops that both patches have."""
IGNORE = -1
SIDE_PX = 16
"""Side of a tile, 160 m; a tile is a group."""
VALIDATION_TILES = (2, 7, 13)
"""Tiles of the training patch, row by row, set apart: maize and grass; all potatoes of the patch lie in tile 12."""
S2_BANDS = ("B5", "B6", "B7", "B8A", "B11", "B12")
"""The 20 m bands: the other patch has no more."""
CLEAR = (4, 5, 6, 7)
"""Scene classes of the clear ground: vegetation, bare, water, unclassified."""
_ORBIT_DAYS = 6
_CLEAR_FRAC_STEP = 0.02


def parcels_belgium(data: Path) -> RealTask:
    """Tiles of both patches with the crops that both have; others are not asked."""
    tiles, folds = [], []
    for name, part in PATCHES.items():
        cut = _tiles(name, data / "crop_patches_multisensor" / f"{name}.npz")
        tiles += cut
        folds += [VALIDATION if part == TRAIN and n in VALIDATION_TILES else part for n in range(len(cut))]
    target = Target(name="crop", level="pixel", kind="class", classes=tuple(CROPS.values()), ignore=IGNORE, gsd_m=10.0)
    return RealTask(
        "parcels_belgium", tiles, target, np.arange(len(tiles)), np.array(folds),
        "crop of a 10 m pixel by the 20 m bands of Sentinel-2 and by Sentinel-1; trained on one patch of 640 m and "
        "season, tested on another place and the season after; groups are blocks of 160 m",
        is_official=True,
    )  # fmt: skip


def _tiles(name: str, path: Path) -> list[Tile]:
    """Tiles of a patch, row by row."""
    with np.load(path) as file:
        z = {key: file[key] for key in file.files}
    clear = np.isin(z["s2_scl"], CLEAR)
    s2_days, s1_days = (z[f"{key}_dates"].astype("datetime64[D]") for key in ("s2", "s1"))
    s2_at, s1_at = _clearest(s2_days, clear.mean((1, 2))), _one_orbit(s1_days)
    s2, seen = _repeated(z["s2_20m"][s2_at]), _repeated(clear[s2_at][:, None])
    s1 = _repeated(z["s1"][s1_at])
    crop = np.full(z["label_ct"].shape, IGNORE)
    for number, code in enumerate(CROPS):
        crop[z["label_ct"] == code] = number
    ground = GeoBox(crop.shape, Affine(10, 0, z["x_10m"][0] - 5, 0, -10, z["y_10m"][0] + 5), f"EPSG:{int(z['epsg'])}")
    found = []
    for row, col in np.ndindex(crop.shape[0] // SIDE_PX, crop.shape[1] // SIDE_PX):
        window = np.s_[row * SIDE_PX : (row + 1) * SIDE_PX, col * SIDE_PX : (col + 1) * SIDE_PX]
        inside = np.s_[:, :, *window]
        optical = Observation.of(
            MODALITIES["s2"], s2[inside], bands=list(S2_BANDS), dates=s2_days[s2_at], valid=seen[inside], nodata=0
        )
        radar = Observation.of(MODALITIES["s1"], s1[inside], bands=["VV", "VH"], dates=s1_days[s1_at])
        found.append(
            Tile.of(optical, radar, id=f"{name}/{row}/{col}", dataset="crop_patches_multisensor",
                    geobox=ground[window], targets={"crop": crop[window].astype(np.int64)})
        )  # fmt: skip
    return found


def _repeated(coarse: NDArray[Any]) -> NDArray[Any]:
    """20 m pixels (… row col) at 10 m."""
    return coarse.repeat(2, axis=-2).repeat(2, axis=-1)


def _half_months(days: NDArray[np.datetime64]) -> NDArray[np.int64]:
    """Number of the half month of each day: halves part on the 16th."""
    months = days.astype("datetime64[M]")
    return 2 * months.astype(np.int64) + ((days - months.astype("datetime64[D]")).astype(np.int64) >= 15)


def _clearest(days: NDArray[np.datetime64], clear_frac: NDArray[np.float64]) -> NDArray[np.int64]:
    """The clearest date of each half month; of dates about as clear, the first."""
    halves = _half_months(days)
    steps = np.round(clear_frac / _CLEAR_FRAC_STEP)
    return np.array([members[steps[members].argmax()] for members in _members(halves)])


def _one_orbit(days: NDArray[np.datetime64]) -> NDArray[np.int64]:
    """The first date of each half month, of the orbit that has most: other orbits look from other angles."""
    phase = days.astype(np.int64) % _ORBIT_DAYS
    kept = np.flatnonzero(phase == np.bincount(phase).argmax())
    return np.array([kept[members[0]] for members in _members(_half_months(days[kept]))])


def _members(numbers: NDArray[np.int64]) -> list[NDArray[np.int64]]:
    return [np.flatnonzero(numbers == number) for number in np.unique(numbers)]
