"""HLS Burn Scars: burnt ground in the United States in Harmonized Landsat Sentinel-2 (paper, table C; spec 4.10)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from anysat.batch import Tile
from anysat.data.base import DatasetRecord, Row, Samples, Target
from anysat.data.layout import DatasetFolder, Entry, Layout
from anysat.data.splits import split_by_name
from anysat.data.world import FACTORS, World
from anysat.errors import SourceError

CLASSES = ("unburnt", "burnt")
IGNORE = -1
TILE_M = 15_360.0
FILLS = (9999.0, -9999.0)
"""Stored values that mean "no data": that of the published loader, then that of HLS products."""
_SHARES = {"train": 0.9, "val": 0.1}
_STEM = "{part}/subsetted_512x512_HLS.S30.{mgrs}.{day}.v1.4"
_LETTERS = "ABCDEFGHJKLMNPQRSTUV"  # of a Sentinel-2 tile's name
_COARSE = 2  # the world is drawn in pixels of 60 m, so that miniatures stay small

PUBLISHED = Layout(
    name="published",
    marker="training/*.mask.tif",
    also=("validation/*.mask.tif", "training/*_merged.tif", "validation/*_merged.tif"),
    source="dataset card of the release; spec 4.10",
    entries=(
        Entry(name="hls", path=f"{_STEM}_merged.tif", dtype="float32", shape=(6, 512, 512), modality="hls",
              bands=("B2", "B3", "B4", "B8A", "B11", "B12"), unit="reflectance", nodata=FILLS[0],
              about="`part` is training or validation, `mgrs` the Sentinel-2 tile (T10SDH), `day` the year and its day "
              "(2020248)"),
        Entry(name="burn", path=f"{_STEM}.mask.tif", dtype="int16", shape=(1, 512, 512),
              unit="-1 missing, 0 not burnt, 1 burn scar"),
    ),
)  # fmt: skip


def list_samples(folder: DatasetFolder) -> Samples:
    """List all scenes with an image or a mask; no Sentinel-2 tile has scenes in both training and validation."""
    rows = [row for row in folder.find("hls", "burn") if row["part"] in ("training", "validation")]
    drawn = split_by_name([row["mgrs"] for row in rows], _SHARES)
    return Samples.of_rows([
        {"id": f"{row['mgrs']}.{row['day']}", "split": str(split) if row["part"] == "training" else "test", **row}
        for row, split in zip(rows, drawn, strict=True)
    ])  # fmt: skip


def read_sample(folder: DatasetFolder, row: Row, modalities: Sequence[str]) -> Tile:
    """Read one scene of 512 x 512 pixels of 30 m."""
    del modalities  # there is only one
    values, targets = folder.read("hls", **row), {}
    observation = folder.observe(
        "hls", values[None], dates=[_date(folder, row)], valid=~np.isin(values, FILLS)[None], **row
    )
    if folder.wants("burn"):
        mask = folder.read("burn", **row)[0].astype(np.int64)
        targets["burn"] = np.where(np.isin(mask, (0, 1)), mask, IGNORE)
    return Tile.of(observation, targets=targets, geobox=folder.geobox("hls", **row))


def _date(folder: DatasetFolder, row: Row) -> np.datetime64:
    """Return the date of a scene from the year and day of the year (from 1) in its name."""
    day = str(row["day"])
    if len(day) == 7 and day.isdigit():
        date = np.datetime64(f"{day[:4]}-01-01") + (int(day[4:]) - 1)
        if str(date)[:4] == day[:4]:  # day 000 falls in the year before; day 366 in the next, except in a leap year
            return date
    raise SourceError(folder.path("hls", **row), f"its name has the date {day!r}",
                      "expected the year and its day, counted from 001, such as 2020248")  # fmt: skip


def write_miniature(folder: DatasetFolder, world: World, num_tiles: int) -> None:
    """Write scenes of the generated world, each on its own Sentinel-2 tile; every third goes into `validation`."""
    for index in range(num_tiles):
        year = 2018 + index % 4
        tile = world.tile(index, extent_m=TILE_M, year=year)
        date = tile.dates("hls", 6)[-1 - index % 3]
        seen = tile.observe("hls", dates=[date], gsd_m=30.0 * _COARSE, keep_clouds=True)
        hls = folder.store("hls", seen)[0].round(4).repeat(_COARSE, -1).repeat(_COARSE, -2)  # HLS has 4 decimals
        hls[:, :8], hls[:, 8:16] = FILLS[0], FILLS[1]
        burn = tile.raster("burn", 30.0 * _COARSE, date=date).repeat(_COARSE, -1).repeat(_COARSE, -2)
        burn = np.where(burn < 0, IGNORE, burn != FACTORS["burn"].index("unburnt"))
        burn[:8] = IGNORE
        part = "validation" if (index + index // 6) % 3 == 2 else "training"
        day = f"{year}{(date - np.datetime64(f'{year}-01-01')).astype(int) + 1:03}"
        fields = {"part": part, "mgrs": f"T1{index % 10}S{_LETTERS[index // 10 % 20]}H", "day": day}
        folder.write({"hls": hls, "burn": burn[None]}, geobox=tile.geobox(30.0), **fields)


DATASET = DatasetRecord(
    name="hls_burn_scars",
    title="HLS Burn Scars",
    about="Burn scars of 2018 to 2021 in 804 scenes of the contiguous United States",
    modalities=("hls",),
    tile_m=TILE_M,
    patch_sizes_m=(240.0,),
    targets=(Target(name="burn", level="pixel", kind="class", classes=CLASSES, ignore=IGNORE, gsd_m=30.0),),
    split_rule="the folder `validation` is the test split; a tenth of the Sentinel-2 tiles of the folder `training`, "
    "drawn by a seeded hash of the tile's name, is validation",
    date_rule="real, year and day of the year in the file name",
    licence="CC-BY-4.0",
    size="804 scenes, 5 GB",
    homepage="https://huggingface.co/datasets/ibm-nasa-geospatial/hls_burn_scars",
    citation="Phillips et al. 2023",
    layouts=(PUBLISHED,),
    list_samples=list_samples,
    read_sample=read_sample,
    write_miniature=write_miniature,
    notes=(
        "The published loader draws a tenth of the scenes for validation, so scenes of one place are in both splits; "
        "here Sentinel-2 tiles are drawn. The official test folder was drawn by scene.",
        "The published loader gives every scene day 0; here it is the date in the file name.",
        "Fill values are invalid; the published loader replaces 9999 by 0, a reflectance.",
        "Values are reflectances from 0 to 1, not times 10 000.",
    ),
)  # fmt: skip
