"""SICKLE: paddy fields of the Cauvery Delta, India, in Sentinel and Landsat 8 series (paper, table 1; spec 4.7)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from anysat.batch import Tile
from anysat.data.absent import tile_of
from anysat.data.base import DatasetRecord, Row, Samples, Target
from anysat.data.layout import TEXT, DatasetFolder, Entry, Layout
from anysat.data.splits import split_by_name
from anysat.data.world import World, WorldTile
from anysat.errors import MissingFileError, MissingKeyError, SourceError
from anysat.modalities import MODALITIES
from anysat.observation import Observation

CLASSES = ("paddy", "non-paddy")
COLOURS = ("#3f8f3a", "#ede8d1")
IGNORE = -1
SIDE_PX, GSD_M = 32, 10.0
"""Every array is resampled to this grid by nearest neighbour, as in the published loader."""
_SHARES = {"train": 0.85, "val": 0.15}
"""Shares of the plots of the official training split."""
_TABLE = "sickle_dataset_tabular.csv"
_SENSORS = {"s2": "S2", "s1": "S1", "l8": "L8"}
_STORED = {
    "s2": {band: band for band in ("B2", "B3", "B4", "B5", "B6", "B7", "B8", "B8A", "B11", "B12")},
    "s1": {"VV": "VV", "VH": "VH"},
    "l8": {**{f"SR_B{number}": f"B{number}" for number in range(1, 8)}, "ST_B10": "B10"},
}
"""Band by its name in the files; bands are matched by name, whatever their order."""
_UNITS = {"s2": "reflectance_1e4", "s1": "dB", "l8": "DN"}
_SCALES = {"reflectance_1e4": (0.275, -2000.0), "K": (0.00341802, 149.0)}
"""Scale and offset of Landsat Collection 2 Level 2 (USGS), by the unit that results: 0.0000275 DN - 0.2 is
reflectance, 0.00341802 DN + 149 is kelvin."""
_ABOUT = {
    "s2": "Sentinel-2 L2A, reflectance times 10 000; 0 is no data",
    "s1": "Sentinel-1 GRD, decibels; NaN or 0 is no data",
    "l8": "Landsat 8 Collection 2 Level 2 as delivered: SR is 0.0000275 DN - 0.2, ST is 0.00341802 DN + 149 K; 0 is no "
    "data. The archive states no unit; names and size of the values are those of the raw product",
}


def _bands(modality: str) -> tuple[Entry, ...]:
    """Return one entry per band: a file holds one date, with an array per band at the sensor's own pixel size."""
    return tuple(
        Entry(name=f"{modality}-{band}", path=f"images/{_SENSORS[modality]}/npy/{{id}}/{{product}}.npz", key=key,
              dtype="float32", shape=("H", "W"), modality=modality, bands=(band,), unit=_UNITS[modality], nodata=0,
              is_optional=key == list(_STORED[modality])[-1], about=_ABOUT[modality])
        for key, band in _STORED[modality].items()
    )  # fmt: skip


PUBLISHED = Layout(
    name="published",
    marker=_TABLE,
    source="documentation and loader of the dataset's authors; spec 4.7",
    entries=(
        *(Entry(name=name, path=_TABLE, key=key, dtype=TEXT, unit=unit)
          for name, key, unit in (("ids", "UNIQUE_ID", "number of a sample"), ("plots", "PLOT_ID", "number of a plot"),
                                  ("splits", "SPLIT", "train, val or test"))),
        Entry(name="masks", path="masks/10m/{id}.tif", dtype="float32", shape=("C", "H", "W"),
              unit="plot number (first band), crop (second band: 1 paddy, above 1 other crops, else none)",
              about="later bands are sowing, transplanting and harvesting day, and yield"),
        *_bands("s2"), *_bands("s1"), *_bands("l8"),
    ),
)  # fmt: skip


def list_samples(folder: DatasetFolder) -> Samples:
    """List the rows of the table with their plot and split, without the official test samples that have no labels.

    The official validation samples are the test split here (spec 4.7).
    """
    ids, plots, official = (np.asarray(column).astype(str) for column in folder.read("ids", "plots", "splits"))
    unknown = set(official.tolist()) - {"train", "val", "test"}
    if unknown:
        raise SourceError(folder.path("splits"), f"column SPLIT has {sorted(unknown)}", "expected train, val or test")
    splits, is_train = np.full(len(ids), "test", "<U5"), official == "train"
    if is_train.any():
        splits[is_train] = split_by_name(plots[is_train].tolist(), _SHARES)
    samples = Samples(id=ids, split=splits, plot=plots)
    return samples.take([row["official"] != "test" or folder.has("masks", **row)
                         for row in samples.with_columns(official=official)])  # fmt: skip


def read_sample(folder: DatasetFolder, row: Row, modalities: Sequence[str]) -> Tile:
    """Read one tile of 320 m."""
    seen = (_observe(folder, key, row) for key in modalities)
    targets = {"paddy": _paddy(folder, row)} if folder.wants("paddy") else {}
    return tile_of(seen, modalities, SIDE_PX * GSD_M, targets=targets)


def _paddy(folder: DatasetFolder, row: Row) -> NDArray[np.int64]:
    """Return the labels of the plots of the sample's own split; plots of other splits are ignored."""
    table = folder.path("plots")
    facts = table.stat() if table.is_file() else None
    plots = _plots(folder, row["split"], facts and (facts.st_mtime_ns, facts.st_size))
    plot, crop = _nearest(folder.read("masks", **row)[:2])
    is_labelled = np.isin(plot, plots) & (plot > 0) & (crop >= 1)
    return np.where(is_labelled, (crop > 1).astype(np.int64), IGNORE)


@lru_cache(maxsize=16)
def _plots(folder: DatasetFolder, split: str, _version: tuple[int, int] | None) -> NDArray[np.float64]:
    """Return the plot numbers of a split; the table is read again when it changes."""
    try:
        return list_samples(folder).of(split).columns["plot"].astype(np.float64)
    except ValueError as error:
        raise SourceError(folder.path("plots"), f"a PLOT_ID is not a number ({error})") from error


def _observe(folder: DatasetFolder, key: str, row: Row) -> Observation | None:
    """Return all dates of a sensor; None if this sample has none, although others have."""
    entries = [entry for entry in folder.layout.entries if entry.modality == key]
    home = folder.path(entries[0].name, product="DATE", **row).parent
    paths = sorted(home.glob("*.npz"))
    if not home.parent.is_dir():
        raise MissingFileError(home.parent, f"npz files of {MODALITIES[key].sensor}, a folder for each sample")
    if not paths:
        return None
    dated = sorted((_date(key, path), path.stem) for path in paths)
    images = [_image(folder, entries, {**row, "product": product}) for _, product in dated]
    dates = np.array([date for date, _ in dated], "datetime64[D]")
    values = np.stack(images)
    values = np.where(values == entries[0].nodata, np.nan, values)
    units = [str(entry.unit) for entry in entries]
    if key == "l8":
        units = [MODALITIES[key].bands[MODALITIES[key].find_band(entry.bands[0])].unit for entry in entries]
        scale, offset = np.array([_SCALES[unit] for unit in units], np.float32).T[..., None, None]
        values = values * scale + offset
    names = [entry.bands[0] for entry in entries]
    return Observation.of(MODALITIES[key], values, bands=names, units=units, dates=dates)


def _image(folder: DatasetFolder, entries: Sequence[Entry], fields: Mapping[str, Any]) -> NDArray[np.float32]:
    """Read the bands of one date (band row col) on the common grid; the last is NaN where the file lacks it."""
    names = [entry.name for entry in entries]
    try:
        arrays = folder.read(*names, **fields)
    except MissingKeyError:
        needed = [entry.name for entry in entries if not entry.is_optional]
        found = dict(zip(needed, _as_tuple(folder.read(*needed, **fields)), strict=True))
        arrays = [found.get(name, np.full((1, 1), np.nan)) for name in names]
    return np.stack([_nearest(np.asarray(array, np.float32)) for array in arrays])


def _as_tuple(read: Any) -> tuple[Any, ...]:
    """Return the result of `read` as a tuple, even for a single entry."""
    return read if isinstance(read, tuple) else (read,)


def _nearest(array: NDArray[Any]) -> NDArray[Any]:
    """Resample the last two axes to the common grid by nearest neighbour."""
    rows, cols = (((np.arange(SIDE_PX) + 0.5) * side / SIDE_PX).astype(int) for side in array.shape[-2:])
    return array[..., rows[:, None], cols]


def _date(key: str, path: Path) -> str:
    """Return the date in a file name, where its position between underscores depends on the sensor."""
    words = path.stem.split("_")
    place = {"s1": 4, "l8": 2, "s2": 1 if path.stem.startswith("T") else 0}[key]
    word = words[place][:8] if place < len(words) else ""
    if len(word) != 8 or not word.isdigit():
        raise SourceError(path, "no date in its name", f"expected YYYYMMDD in part {place} between underscores")
    return f"{word[:4]}-{word[4:6]}-{word[6:]}"


def write_miniature(folder: DatasetFolder, world: World, num_tiles: int) -> None:
    """Write tiles of two plots each: the sample's own and its neighbour's, which is sometimes of another split."""
    num_tiles = max(num_tiles, 3)  # no list is empty
    splits = ["val" if index % 3 == 2 else "train" for index in range(num_tiles)]
    plots = _plot_numbers(splits)
    for index in range(num_tiles):
        tile, sample = world.tile(index, extent_m=320.0, year=2018), 100 + index
        _write_mask(folder, tile, sample, (plots[index], plots[(index + 1) % num_tiles]))
        for key in _SENSORS:
            _write_series(folder, tile, key, sample)
    ids = [100 + index for index in range(num_tiles)]
    folder.write({"ids": ids, "plots": plots, "splits": splits})


def _plot_numbers(splits: Sequence[str]) -> list[int]:
    """Number the samples' plots so that the hash puts at least one training plot into validation."""
    plots = [10 + index for index in range(len(splits))]
    training = [index for index, split in enumerate(splits) if split == "train"]
    if "val" not in split_by_name([str(plots[index]) for index in training], _SHARES):
        plots[training[-1]] = next(n for n in count(10 + len(splits)) if split_by_name([str(n)], _SHARES)[0] == "val")
    return plots


def _write_mask(folder: DatasetFolder, tile: WorldTile, sample: int, plots: tuple[int, int]) -> None:
    found = tile.raster("crop", GSD_M)
    mask = np.zeros((6, SIDE_PX, SIDE_PX), np.float32)
    mask[0, :, : SIDE_PX // 2], mask[0, :, SIDE_PX // 2 :] = plots
    mask[1] = np.where(found < 0, 3, 1 + found % 3)
    mask[1, :2] = 0
    mask[:, -3:] = 0
    folder.write({"masks": mask}, id=sample)


def _write_series(folder: DatasetFolder, tile: WorldTile, key: str, sample: int) -> None:
    """Write a file per date, on the sensor's own pixels, with gaps like those of real data."""
    grid = {"gsd_m": 30.0, "extent_m": 330.0} if key == "l8" else {}
    seen = tile.observe(key, count=4, keep_clouds=True, **grid)
    for place, date in enumerate(np.asarray(seen.dates)):
        stamp = str(date).replace("-", "")
        contents = {}
        for entry in (entry for entry in folder.layout.entries if entry.modality == key):
            index = seen.modality.find_band(entry.bands[0])
            values = seen.values[place, index].copy()
            if key == "l8":
                scale, offset = _SCALES[seen.units[index]]
                values = np.rint((values - offset) / scale)
            values[~seen.valid[place, index]] = 0
            if place == 0:
                values[:2] = np.nan if key == "s1" else 0
            if not (entry.key == "ST_B10" and place == 3):
                contents[entry.name] = values
        folder.write(contents, id=sample, product=_product(key, stamp, place))


def _product(key: str, stamp: str, place: int) -> str:
    if key == "s1":
        return f"S1A_IW_GRDH_1SDV_{stamp}T003045_{stamp}T003110_020036_02224F_1B2C"
    if key == "l8":
        return f"LC08_142053_{stamp}"
    return f"T44PLU_{stamp}T050211" if place % 2 else f"{stamp}T050211_{stamp}T051211_T44PLU"


DATASET = DatasetRecord(
    name="sickle",
    title="SICKLE",
    about="Paddy and other crops in 2,370 samples of 388 plots, Cauvery Delta, Tamil Nadu, 2018 to 2021",
    modalities=("s2", "s1", "l8"),
    tile_m=320.0,
    patch_sizes_m=(10.0,),
    targets=(
        Target(name="paddy", level="pixel", kind="class", classes=CLASSES, ignore=IGNORE, gsd_m=GSD_M, colours=COLOURS,
               about="pixels outside the surveyed plots of the sample's split are ignored"),
    ),
    split_rule="column SPLIT of the table: the official val split is test here, because the published code tests on "
               "the split it selects on; validation is 15 % of the training plots, by a seeded hash of the plot; "
               "official test samples are test if they have a mask, and left out otherwise",
    date_rule="real, from file names",
    licence="on request, for research (form of the dataset's authors)",
    size="2,370 tiles, about 209,000 images",
    homepage="https://sites.google.com/iiitd.ac.in/sickle/home",
    citation="Sani et al. 2024",
    layouts=(PUBLISHED,),
    list_samples=list_samples,
    read_sample=read_sample,
    write_miniature=write_miniature,
    notes=(
        "A sensor without a file of a sample is absent from its tile; a file without its last band lacks only that.",
        "The published training code reads the same files (spec 4.7). Bands are matched by name; it swaps B8 and B8A. "
        "The panchromatic, cirrus and second thermal bands of Landsat are absent in both.",
        "Landsat is converted from the numbers of Collection 2 to reflectance times 10 000 and kelvin.",
        "Everything is resampled to 32 x 32 pixels with the nearest pixel; a Landsat array of 11 or 12 pixels of 30 m, "
        "which covers a little more than the tile, is squeezed into it, as in the published code.",
        "Crop numbers below 1 are ignored; the published code counts negative ones as paddy.",
        "Samples lie close together and the archive has no coordinates: pixels of a training tile may be in a test "
        "tile, but its labels are not.",
        "All dates are kept; the loader of the dataset's authors leaves out images with a quarter of zeros.",
    ),
)  # fmt: skip
