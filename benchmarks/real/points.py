"""Tasks of single points: one pixel, a series, a class or a value.

- `crop_canada`: field survey of 2017, 20 months of Sentinel-1 and Sentinel-2; whole hexagons in folds.
- `landcover_global`: points of the whole world, 12 months of both; whole cells of one degree in folds.
- `landuse_modis`: Mato Grosso, a year of MODIS; whole places in folds, for a place comes back in other years.
- `fuel_moisture`: live fuel moisture of the western United States, three composites of 30 days.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from anysat.batch import Tile
from anysat.data.base import Target
from anysat.modalities import MODALITIES
from anysat.observation import Observation
from real.protocol import RealTask, blocked_folds, cells, numbers

MISSING, S2_LIMIT = 65535, 20_000
"""Fill of the integer sets; larger Sentinel-2 values are artefacts and are cut to this."""
LEAST_CROP, LEAST_LAND_COVER = 60, 30
"""Points that a class must have."""
NO_ECHO_DB = -45.0
"""Weaker radar values of the fuel moisture set are its fill (exactly -49.94) or nothing that Sentinel-1 can measure."""
LAND_COVER = {
    10: "annual or perennial crops", 11: "temporary crops", 12: "perennial crops", 13: "grassland", 20: "herbaceous",
    30: "shrub", 40: "trees", 41: "trees 41", 42: "trees 42", 50: "bare", 60: "built-up", 70: "water", 98: "98",
    99: "not cropland",
}  # fmt: skip
"""Names of the land-cover codes."""
_MODIS_BANDS = {"B1": "red", "B2": "nir", "B3": "blue", "B7": "mir"}
_DAYS_OF_MONTH = 365.25 / 12


def crop_canada(data: Path) -> RealTask:
    """Crop type of Canadian fields; folds as in `pretraining_real.py`, over all points of the file."""
    z = _columns(data / "crop_points_canada" / "canada2017_monthly_s1s2.npz")
    codes, counts = np.unique(z["crop_code"], return_counts=True)
    main = codes[counts >= LEAST_CROP]
    chosen = np.flatnonzero(np.isin(z["crop_code"], main))
    label = np.searchsorted(main, z["crop_code"][chosen])
    names = [str(z["crop_name"][z["crop_code"] == code][0]) for code in main]
    hexagons = numbers(z["h3_l3"])
    days = np.array([f"{month}-15" for month in z["month"]], "datetime64[D]")
    target = Target(name="crop", level="tile", kind="class", classes=tuple(names))
    return RealTask(
        "crop_canada", _radar_and_optical("crop_points_canada", z, chosen, np.tile(days, (len(chosen), 1)),
                                          z["sample_id"][chosen], {"crop": label}),
        target, hexagons[chosen], blocked_folds(hexagons)[chosen],
        f"crop or no crop (`Unknown`) at a field point, classes with {LEAST_CROP} points or more; "
        "5 folds of whole hexagons",
    )  # fmt: skip


def landcover_global(data: Path) -> RealTask:
    """Land cover at points of the whole world.

    A step is a month counted from `start_date`, which may be any day: its date is that month's middle. By these
    dates northern vegetation peaks in the same weeks whatever the day of the start.
    """
    z = _columns(data / "crop_points_global" / "global500_monthly_s1s2.npz")
    codes, counts = np.unique(z["landcover_code"], return_counts=True)
    main = codes[counts >= LEAST_LAND_COVER]
    chosen = np.flatnonzero(np.isin(z["landcover_code"], main))
    label = np.searchsorted(main, z["landcover_code"][chosen])
    middles = np.round((np.arange(z["s2"].shape[1]) + 0.5) * _DAYS_OF_MONTH).astype("timedelta64[D]")
    dates = z["start_date"][chosen].astype("datetime64[D]")[:, None] + middles
    places = cells(z["lat"][chosen], z["lon"][chosen], 0)
    names = tuple(LAND_COVER[int(code)] for code in main)
    return RealTask(
        "landcover_global", _radar_and_optical("crop_points_global", z, chosen, dates, chosen, {"land_cover": label}),
        Target(name="land_cover", level="tile", kind="class", classes=names), places, blocked_folds(places, label),
        f"land cover at a point, classes with {LEAST_LAND_COVER} points or more; 5 folds of whole cells of one degree",
    )  # fmt: skip


def landuse_modis(data: Path) -> RealTask:
    """Land use by a year of MODIS vegetation composites of 250 m."""
    z = _columns(data / "modis_mato_grosso" / "points_9classes.npz")
    classes, label = np.unique(z["label"], return_inverse=True)
    at = [z["bands"].tolist().index(name) for name in _MODIS_BANDS.values()]
    values = z["series"][..., at] * 1e4
    valid = values >= 0  # as the product's own valid range
    tiles = [
        Tile.of(
            _series("modis", values[n], z["dates"][n], tuple(_MODIS_BANDS), valid[n]),
            id=str(n), dataset="modis_mato_grosso", targets={"land_use": np.asarray(label[n], np.int64)},
        )
        for n in range(len(label))
    ]  # fmt: skip
    places = cells(z["lat"], z["lon"], 2)
    return RealTask(
        "landuse_modis", tiles, Target(name="land_use", level="tile", kind="class", classes=tuple(map(str, classes))),
        places, blocked_folds(places, label),
        "land use at a place and year; 5 folds of whole places, latitude and longitude rounded to 0.01 degrees",
        patch_size_m=MODALITIES["modis"].gsd_m,
    )  # fmt: skip


def fuel_moisture(data: Path) -> RealTask:
    """Live fuel moisture by radar and optical composites; weather and terrain of the file are not given.

    The official test part is not at hand: folds are made of the official training part. Sentinel-2 is L1C here.
    """
    z = _columns(data / "s1s2_pixel_tasks" / "fuel_moisture.npz")
    channels = z["channels"].tolist()
    wanted = [band.name for band in MODALITIES["s2"].bands]
    s2 = z["series"][..., [channels.index(name) for name in wanted]]
    s1 = z["series"][..., [channels.index(name) for name in ("VV", "VH")]]
    dates = {months: _composite_dates(months) for months in map(tuple, np.unique(z["month"], axis=0).tolist())}
    tiles = []
    for n, months in enumerate(map(tuple, z["month"].tolist())):
        seen = (
            _series("s2", s2[n], dates[months], wanted, s2[n] > 0),
            _series("s1", s1[n], dates[months], ("VV", "VH"), s1[n] > NO_ECHO_DB),
        )
        asked = {"fuel_moisture": np.asarray(z["target"][n], np.float32)}
        tiles.append(Tile.of(*seen, id=str(n), dataset="s1s2_pixel_tasks", targets=asked))
    lat, lon = z["latlon"].T
    places = cells(lat, lon, 0)
    target = Target(name="fuel_moisture", level="tile", kind="value", unit="%", limits=(0.0, 400.0))
    return RealTask(
        "fuel_moisture", tiles, target, places, blocked_folds(places),
        "live fuel moisture in % by Sentinel-1 and -2 alone; 5 folds of whole cells of one degree, made of the "
        "official training part",
    )  # fmt: skip


def _columns(path: Path) -> dict[str, NDArray[Any]]:
    with np.load(path) as file:
        return {name: file[name] for name in file.files}


def _series(
    key: str, values: NDArray[Any], dates: NDArray[Any], bands: Sequence[str], valid: NDArray[np.bool_]
) -> Observation:
    """One pixel's series (time band)."""
    return Observation.of(
        MODALITIES[key], values[..., None, None], bands=list(bands), dates=dates, valid=valid[..., None, None]
    )


def _radar_and_optical(
    dataset: str,
    z: Mapping[str, NDArray[Any]],
    chosen: NDArray[np.int64],
    dates: NDArray[np.datetime64],
    ids: NDArray[Any],
    labels: Mapping[str, NDArray[np.int64]],
) -> list[Tile]:
    """Tiles of chosen rows of a `crop_points_*` file; dates (tile time)."""
    s2, digits = z["s2"][chosen], z["s1"][chosen]
    has_s2, has_s1 = (s2 != MISSING) & (s2 > 0), (digits != MISSING) & (digits > 0)
    cut = np.minimum(s2, S2_LIMIT)
    decibels = 20 * np.log10(np.where(has_s1, digits, 1).astype(np.float64)) - 83
    return [
        Tile.of(
            _series("s2", cut[n], dates[n], z["s2_bands"].tolist(), has_s2[n]),
            _series("s1", decibels[n], dates[n], z["s1_bands"].tolist(), has_s1[n]),
            id=str(ids[n]), dataset=dataset,
            targets={name: np.asarray(label[n], np.int64) for name, label in labels.items()},
        )
        for n in range(len(chosen))
    ]  # fmt: skip


def _composite_dates(months: tuple[int, ...]) -> NDArray[np.datetime64]:
    """Middles of three composites of 30 days, from the months (0 to 11) in which they begin; the year is nominal.

    The file tells months only, and two composites may begin in one. Its labels are of month ends and the composites
    are the 90 days before: that gives all the months there are, and so the days. Ends of January and February look
    the same, the first is taken; the year is 2018, or 2016 where only a leap year fits.
    """
    for year in ("2018", "2016"):
        for end in np.arange(f"{year}-02", f"{int(year) + 1}-02", dtype="datetime64[M]").astype("datetime64[D]") - 1:
            begins = end + np.array([-90, -60, -30])
            if tuple((begins.astype("datetime64[M]").astype(int) % 12).tolist()) == months:
                return begins + 15
    raise AssertionError(months)
