"""TimeSen2Crop: crop types of Austria in single Sentinel-2 pixels over a farming year (spec 4.8)."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from anysat.batch import Tile
from anysat.data.base import DatasetRecord, Row, Samples, Target
from anysat.data.files import read_file
from anysat.data.layout import TEXT, DatasetFolder, Entry, Layout
from anysat.data.world import World
from anysat.errors import SourceError

CROPS = ("Legumes", "Grassland", "Maize", "Potato", "Sunflower", "Soy", "Winter Barley", "Winter Caraway", "Rye",
         "Rapeseed", "Beet", "Spring Cereals", "Winter Wheat", "Winter Triticale", "Permanent Plantation",
         "Other Crops")  # fmt: skip
"""Classes in the order of their numbers, which name the folders."""
SPLIT_OF = {"33TWN": "val", "33UVP": "test"}
"""Split by Sentinel-2 tile; tiles not listed here are `train` (spec 4.8)."""
LEFT_OUT = ("2019_33UVP",)
"""Folders of another year, which belong to no split."""
CLEAR, CLOUD, SHADOW, SNOW = range(4)
_BANDS = ("B2", "B3", "B4", "B5", "B6", "B7", "B8A", "B11", "B12")
_NAMED, _NUMBERED = (*_BANDS, "Flag"), (*(f"B{place}" for place in range(1, 10)), "Flag")
"""Headers of a series: with band names, or as released, where `B1` to `B9` merely number the nine bands."""
_SERIES = "{id}.csv"

PUBLISHED = Layout(
    name="published",
    marker="*/dates.csv",
    source="spec 4.8; description of the dataset (ai4europe.eu/research/ai-catalog/timesen2crop)",
    entries=(
        Entry(name="s2", path=_SERIES, dtype="int16", modality="s2", bands=_BANDS, unit="reflectance_1e4", nodata=0,
              about="a row for each date, a column for each band but B8, named B1 to B9 in their order, or by the "
              "bands; `id` is S2 tile, number of the class, sample"),
        Entry(name="flag", path=_SERIES, key="Flag", dtype=TEXT, shape=("T",),
              unit="0 clear, 1 cloud, 2 shadow, 3 snow"),
        Entry(name="dates", path="{s2_tile}/dates.csv", key="acquisition_date", dtype=TEXT, shape=("T",),
              unit="YYYYMMDD", about="dates of every series of this Sentinel-2 tile"),
    ),
)  # fmt: skip


def list_samples(folder: DatasetFolder) -> Samples:
    """List all series by the names of folders and files; none is opened."""
    ids: list[str] = []
    counts, splits, crops = [], [], []
    for place in _folders(folder.root):
        if place in LEFT_OUT or not (folder.root / place / "dates.csv").is_file():
            continue
        for crop in _folders(folder.root / place):
            if crop not in _NUMBERS:
                raise SourceError(folder.root / place / crop, f"{crop!r} is not a class", "expected a folder 0 to 15")
            names = [entry.name for entry in os.scandir(folder.root / place / crop)]
            found = sorted(f"{place}/{crop}/{name[:-4]}" for name in names if name.endswith(".csv"))
            ids += found
            counts.append(len(found))
            splits.append(SPLIT_OF.get(place, "train"))
            crops.append(_NUMBERS[crop])
    return Samples(id=np.array(ids, str), split=np.repeat(np.array(splits, str), counts),
                   crop=np.repeat(np.array(crops, np.int8), counts))  # fmt: skip


_NUMBERS = {str(number): number for number in range(len(CROPS))}


def _folders(home: Path) -> list[str]:
    return sorted(entry.name for entry in os.scandir(home) if entry.is_dir() and not entry.name.startswith("."))


def read_sample(folder: DatasetFolder, row: Row, modalities: Sequence[str]) -> Tile:
    """Read one pixel of 10 m; dates with cloud, shadow or no flag are invalid, snow is valid."""
    del modalities  # there is one
    path = folder.path("s2", **row)
    (rows,) = read_file(path, expected=folder.layout["s2"].described)
    names = _columns(list(rows[0]), path) if rows else _NUMBERED
    try:
        table = np.array([[line[name].strip() or "nan" for name in names] for line in rows], np.float32)
    except ValueError as error:
        raise SourceError(path, f"it cannot be understood ({error})", "expected numbers, or nothing") from None
    s2_tile = row["id"].split("/")[0]
    dates = folder.read_kept("dates", s2_tile=s2_tile)
    if len(table) != len(dates) or not len(table):
        raise SourceError(
            path, f"it has {len(table)} rows", f"{folder.path('dates', s2_tile=s2_tile)} has {len(dates)}"
        )
    clear = ~np.isin(table[:, -1], (CLOUD, SHADOW)) & np.isfinite(table[:, -1])
    values = table[:, :-1, None, None]
    observation = folder.observe("s2", values, dates=dates, valid=clear, **row)
    return Tile.of(observation, targets={"crop": np.array(row["crop"], np.int64)})


def _columns(header: Sequence[str], path: Path) -> Sequence[str]:
    """Return the names of bands and flag in a header: `B2` counts as the second of nine if the header is numbered."""
    if set(_NAMED) <= set(header):
        return _NAMED
    if [name for name in header if name in _NUMBERED] == list(_NUMBERED):
        return _NUMBERED
    wanted = " or ".join(f"{', '.join(names[:-1])} and Flag" for names in (_NUMBERED, _NAMED))
    raise SourceError(path, f"it has columns {', '.join(header)}", f"expected columns {wanted}")


def list_labels(folder: DatasetFolder, samples: Samples) -> NDArray[np.int64]:
    """Return the class of every sample, from the folders' names."""
    del folder
    return samples.columns["crop"].astype(np.int64)


def write_miniature(folder: DatasetFolder, world: World, num_tiles: int) -> None:
    """Write pixels of the generated world in four Sentinel-2 tiles, and dates of one that is left out."""
    places = ("33UVP", "33TWN", "32TNT", "32TPT")
    dates = {place: world.tile(index, extent_m=10.0, year=2018).dates("s2", 29) for index, place in enumerate(places)}
    for index in range(num_tiles):
        place = places[index % len(places)]
        tile = world.tile(index, extent_m=10.0, year=2018)
        seen = tile.observe("s2", dates=dates[place], keep_clouds=True)
        is_clear = tile.observe("s2", dates=dates[place]).valid.all(axis=(1, 2, 3))
        values = folder.store("s2", seen)[:, :, 0, 0]
        crop = (5 * max(int(tile.raster("crop", 10.0)[0, 0]), -1) + index) % len(CROPS)
        table = np.column_stack([values, np.where(is_clear, CLEAR, CLOUD)])
        rows = [dict(zip(_NUMBERED, line, strict=True)) for line in table.tolist()]
        folder.write({"s2": rows}, id=f"{place}/{crop}/{index}")
        folder.write({"dates": [str(date).replace("-", "") for date in dates[place]]}, s2_tile=place)
    folder.write({"dates": ["20190615"]}, s2_tile=LEFT_OUT[0])


DATASET = DatasetRecord(
    name="timesen2crop",
    title="TimeSen2Crop",
    about="16 crop types of 1,212,224 single pixels in Austria, September 2017 to August 2018",
    modalities=("s2",),
    tile_m=10.0,
    patch_sizes_m=(10.0,),
    targets=(Target(name="crop", level="tile", kind="class", classes=CROPS, about="declared crop"),),
    split_rule="by Sentinel-2 tile: 33TWN is validation, 33UVP is test, the others are training; the folder "
    "2019_33UVP, another year of the test tile, is not listed",
    date_rule="real, from the dates of each Sentinel-2 tile",
    licence="CC-BY-4.0",
    size="1,212,224 pixels",
    homepage="https://zenodo.org/records/4715631",
    citation="Weikmann, Paris and Bruzzone 2021",
    layouts=(PUBLISHED,),
    list_samples=list_samples,
    read_sample=read_sample,
    list_labels=list_labels,
    write_miniature=write_miniature,
    notes=(
        "Columns B1 to B9 of the files are B2 to B7, B8A, B11 and B12 in this order.",
        "A row without values is a date without values.",
        "B8 is not among the bands and stays invalid; the published loader puts B8A in its place.",
        "Dates flagged as cloud or shadow are invalid, snow is not; the published loader uses them all.",
    ),
)
