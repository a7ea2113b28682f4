"""BraDD-S1TS: deforestation in the Brazilian Amazon in Sentinel-1 series (paper, table C; spec 4.6)."""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from typing import Any

import numpy as np

from anysat.batch import Tile
from anysat.data.base import DatasetRecord, Row, Samples, Target
from anysat.data.layout import TEXT, DatasetFolder, Entry, Layout
from anysat.data.world import FACTORS, World
from anysat.errors import SourceError

CLASSES = ("forest or other", "deforested")
IGNORE = -1
TILE_M = 480.0
_SPLITS = ("train", "validation", "test")
_FILE = "Samples/{file}"

PUBLISHED = Layout(
    name="published",
    marker="meta.csv",
    source="code and notebook of its authors; spec 4.6",
    entries=(
        Entry(name="files", path="meta.csv", key="file", dtype=TEXT, shape=("N",), unit="file names below Samples"),
        Entry(name="splits", path="meta.csv", key="close_set", dtype=TEXT, shape=("N",),
              unit="train, validation or test"),
        Entry(name="s1", path=_FILE, key="image", dtype="float32", shape=("T", 2, 48, 48), modality="s1",
              bands=("VV", "VH"), unit="dB",
              about="decibels, judging from the range with which its authors scale it (VV -20 to 5, VH "
                    "-26 to -1)"),
        Entry(name="dates", path=_FILE, key="image_dates", dtype=TEXT, shape=("T",), unit="datetime"),
        Entry(name="label", path=_FILE, key="label", dtype="uint8", shape=("L", 48, 48), unit="0 and 1",
              about="cleared ground at each of the label dates; the second is the target"),
        Entry(name="label-dates", path=_FILE, key="label_dates", dtype=TEXT, shape=("L",), unit="datetime"),
    ),
)  # fmt: skip


def list_samples(folder: DatasetFolder) -> Samples:
    """List the rows of the table that belong to a split of the closed set."""
    files, splits = folder.read("files", "splits")
    listed = np.isin(splits, _SPLITS)
    ids = [str(file).rsplit(".", 1)[0] for file in files[listed]]
    return Samples(id=np.array(ids, str), split=splits[listed].astype(str), file=files[listed].astype(str))


def read_sample(folder: DatasetFolder, row: Row, modalities: Sequence[str]) -> Tile:
    """Read one tile of 480 m; dates without data are kept and marked invalid."""
    del modalities  # there is only one
    values, dates, label = folder.read("s1", "dates", "label", **row)
    if len(label) < 2:
        raise SourceError(
            folder.path("label", **row), f"it has {len(label)} label(s)", "expected one before, one after"
        )
    observation = folder.observe("s1", values, dates=list(dates), **row)
    cleared = label[1].astype(np.int64)
    target = np.where(np.isin(cleared, (0, 1)), cleared, IGNORE)
    return Tile.of(observation, targets={"deforestation": target})


def write_miniature(folder: DatasetFolder, world: World, num_tiles: int) -> None:
    """Write tiles of the generated world; of every six, one is for validation and one for testing."""
    rows: dict[str, list[str]] = {"files": [], "splits": []}
    for index in range(num_tiles):
        tile = world.tile(index, extent_m=TILE_M, year=2020 + index % 2)
        seen = tile.observe("s1", count=8 + index % 3)
        assert seen.dates is not None, seen
        values = folder.store("s1", seen)
        values[1, :, :, :5] = np.nan  # the edge of a swath
        ends = seen.dates[0], seen.dates[-1]
        change = np.stack([tile.raster("change", 10.0, date=date) for date in ends])
        label = (change == FACTORS["change"].index("cleared")).astype(np.uint8)
        name = f"{index:07}_{ends[1]}.pt"
        contents = {"s1": values, "dates": _moments(seen.dates), "label": label, "label-dates": _moments(ends)}
        folder.write(contents, file=name)
        rows["files"].append(name)
        turn = (index + index // 6) % 6
        rows["splits"].append(_SPLITS[turn] if turn < 3 else "train")
    folder.write({name: np.array(column) for name, column in rows.items()})


def _moments(dates: Any) -> list[datetime.datetime]:
    return [datetime.datetime.fromisoformat(str(date)) for date in dates]


DATASET = DatasetRecord(
    name="bradd_s1ts",
    title="BraDD-S1TS",
    about="Deforestation in 13,234 tiles of the Brazilian Amazon, each with 20 to 66 dates of Sentinel-1",
    modalities=("s1",),
    tile_m=TILE_M,
    patch_sizes_m=(10.0, 40.0),
    targets=(Target(name="deforestation", level="pixel", kind="class", classes=CLASSES, ignore=IGNORE, gsd_m=10.0,
                    about="cleared ground at the second label date"),),
    splits={"train": ("train",), "val": ("validation",), "test": ("test",)},
    split_rule="official, column close_set of meta.csv; rows without one of its three values are left out",
    date_rule="real, from image_dates",
    licence="see the record on Zenodo",
    size="13,234 tiles, 18 GB",
    homepage="https://zenodo.org/records/8060250",
    citation="Karaman, Sainte Fare Garnot and Wegner 2023",
    layouts=(PUBLISHED,),
    list_samples=list_samples,
    read_sample=read_sample,
    write_miniature=write_miniature,
    notes=(
        "The published loader counts days from the first date of each tile, which hides the season; here they are "
        "days of the year.",
        "The ratio band is computed from decibels, as in the published loader, with the guard 1e-10 instead of 1e-6.",
        "Sample files are pickles: they are read as tensors and dates only, and refused where they ask for more.",
        "The published experiments use patches of 40 m, the paper's table says 10 m.",
    ),
)  # fmt: skip
