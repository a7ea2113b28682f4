"""BioMassters: biomass of Finnish forests in monthly Sentinel-1 and Sentinel-2 images of a year (spec 4.13)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from anysat.batch import Tile
from anysat.data.absent import tile_of
from anysat.data.base import DatasetRecord, Row, Samples, Target
from anysat.data.layout import TEXT, DatasetFolder, Entry, Layout
from anysat.data.splits import split_by_name
from anysat.data.world import World, WorldTile
from anysat.dates import Dates
from anysat.errors import SourceError
from anysat.observation import Observation

CLOUD_PERCENT = 50
"""Cloud probability at and above which a pixel is invalid, which includes 255, "not known"."""
FIRST_MONTH = "2018-09"
"""Taken as the September of every tile: the files hold no year. The images are of 2016 to 2021."""
VAL_FRAC = TEST_FRAC = 0.15
"""Shares of the training chips that are held out where there is no list."""
_SIDE = 256
TILE_M = 10.0 * _SIDE
_S2 = ("B2", "B3", "B4", "B5", "B6", "B7", "B8", "B8A", "B11", "B12")
_ORBITS = ("s1-ascending", "s1-descending")
_SOURCE = "problem description of the challenge (drivendata.org/competitions/99); spec 4.13"
_TABLES = (
    "biomassters_features_metadata.csv", "The_BioMassters_-_features_metadata.csv.csv", "features_metadata.csv",
)  # fmt: skip


def _features() -> tuple[Entry, ...]:
    radar = "monthly, VV and VH of ascending then of descending orbits"
    path = "{part}_features/{id}_S1_{month}.tif"
    return (
        Entry(name="s1-ascending", path=path, dtype="float32", shape=(4, _SIDE, _SIDE), modality="s1", unit="dB",
              bands=("VV", "VH", "VV descending", "VH descending"), nodata=-9999, about=radar),
        Entry(name="s1-descending", path=path, dtype="float32", shape=(4, _SIDE, _SIDE), modality="s1", unit="dB",
              bands=("VV ascending", "VH ascending", "VV", "VH"), nodata=-9999, about=radar),
        Entry(name="s2", path="{part}_features/{id}_S2_{month}.tif", dtype="uint16", shape=(11, _SIDE, _SIDE),
              modality="s2", bands=(*_S2, "cloud probability"), unit="reflectance_1e4",
              about="month 00 is September; the last channel is cloud probability in percent, 255 where not known"),
        Entry(name="biomass", path="{part}_agbm/{id}_agbm.tif", dtype="float32", shape=(1, _SIDE, _SIDE),
              unit="tonnes per hectare", about="above-ground biomass"),
    )  # fmt: skip


PUBLISHED = Layout(
    name="published",
    marker="*features_metadata*.csv",
    source=_SOURCE,
    entries=(
        Entry(name="table", path=_TABLES[0], also=_TABLES[1:], dtype=TEXT, unit="one row per image: file name, chip, "
              "satellite, split, month"),
        *_features(),
    ),
    checked_against="layout fixtures of two chips (random integers of 32 x 32 pixels, not real values)",
)  # fmt: skip
TRAINING = Layout(
    name="training",
    marker="train_Data_list.csv",
    source=_SOURCE,
    entries=(
        *(
            Entry(name=f"{split}-list", path=f"{split}_Data_list.csv", key="chip_id", dtype=TEXT,
                  unit="names of chips")
            for split in ("train", "val", "test")
        ),
        *_features(),
    ),
)  # fmt: skip


def list_samples(folder: DatasetFolder) -> Samples:
    """List the labelled chips, with the months of each sensor as text (`00,01,05`)."""
    return _of_lists(folder) if "train-list" in folder.layout else _of_table(folder)


def _of_table(folder: DatasetFolder) -> Samples:
    """List the chips of the challenge's table, without those of its test part if their labels are missing."""
    chips: dict[tuple[str, str], dict[str, list[str]]] = {}
    for row in folder.read("table"):
        try:
            chip, part, sensor, name = (row[column] for column in ("chip_id", "split", "satellite", "filename"))
        except KeyError as error:
            raise SourceError(folder.path("table"), f"it has no column {error}", f"it has {', '.join(row)}") from error
        months = chips.setdefault((part, chip), {"S1": [], "S2": []})
        months.setdefault(sensor, []).append(name.removesuffix(".tif").rpartition("_")[2])
    has_test = (folder.root / "test_agbm").is_dir()
    train = [chip for part, chip in chips if part == "train"]
    shares = {"train": 1 - VAL_FRAC, "val": VAL_FRAC}
    if not has_test:
        shares = {"train": 1 - VAL_FRAC - TEST_FRAC, "val": VAL_FRAC, "test": TEST_FRAC}
    split_of = dict(zip(train, split_by_name(train, shares), strict=True)) if train else {}
    return Samples.of_rows([
        _row(chip, str(split_of[chip]) if part == "train" else "test", part, months["S1"], months["S2"])
        for (part, chip), months in chips.items()
        if part == "train" or has_test
    ])  # fmt: skip


def _of_lists(folder: DatasetFolder) -> Samples:
    """List the chips of the published training code's lists, with the months that have files."""
    months: dict[str, dict[tuple[str, str], list[str]]] = {}
    for name in ("s1-ascending", "s2"):
        months[name] = {}
        for found in folder.find(name):
            months[name].setdefault((found["part"], found["id"]), []).append(found["month"])
    rows = []
    for split in ("train", "val", "test"):
        for chip in map(str, folder.read(f"{split}-list")):
            part = next((part for part in ("train", "test") if any((part, chip) in of for of in months.values())), None)
            if part is None:
                where = folder.path("s1-ascending", part="train", id=chip, month="00")
                raise SourceError(folder.path(f"{split}-list"), f"it names {chip!r}, which has no image",
                                  f"expected files such as {where}")  # fmt: skip
            rows.append(_row(chip, split, part, *(months[name].get((part, chip), []) for name in months)))
    return Samples.of_rows(rows)


def _row(chip: str, split: str, part: str, s1: Iterable[str], s2: Iterable[str]) -> dict[str, Any]:
    return {"id": chip, "split": split, "part": part, "s1": ",".join(sorted(s1)), "s2": ",".join(sorted(s2))}


def read_sample(folder: DatasetFolder, row: Row, modalities: Sequence[str]) -> Tile:
    """Read one tile of 2560 m; sensors without any month are left out."""
    where: dict[str, Any] = {"part": row["part"], "id": row["id"]}
    read = {"s1": _read_s1, "s2": _read_s2}
    observations = [read[key](folder, row[key].split(","), where) for key in modalities if row[key]]
    targets = {}
    if folder.wants("biomass"):
        targets["biomass"] = folder.read("biomass", **where)[0].astype(np.float32)
    return tile_of(observations, modalities, TILE_M, targets=targets)


def _read_s1(folder: DatasetFolder, months: Sequence[str], where: dict[str, Any]) -> Observation:
    """Read two time steps per month, ascending then descending, both dated in the middle of the month."""
    stored = np.stack([folder.read(_ORBITS[0], month=month, **where) for month in months])
    dates = _dates(months)
    up, down = (folder.observe(name, stored, dates=dates, month=months[0], **where) for name in _ORBITS)
    shape = (-1, *up.values.shape[1:])
    values = np.stack((up.values, down.values), axis=1).reshape(shape)
    valid = np.stack((up.valid, down.valid), axis=1).reshape(shape)
    return replace(up, values=values, valid=valid, dates=np.repeat(dates, 2))


def _read_s2(folder: DatasetFolder, months: Sequence[str], where: dict[str, Any]) -> Observation:
    stored = np.stack([folder.read("s2", month=month, **where) for month in months])
    clear = stored[:, -1:] < CLOUD_PERCENT
    return folder.observe("s2", stored, dates=_dates(months), valid=clear, month=months[0], **where)


def _dates(months: Sequence[str]) -> Dates:
    """Return the 15th of each month; 00 is September."""
    return (np.datetime64(FIRST_MONTH, "M") + np.array(months, int)).astype("datetime64[D]") + 14


def write_miniature(folder: DatasetFolder, world: World, num_tiles: int) -> None:
    """Write tiles of the generated world, a few months each; every sixth, or the last of fewer, is for testing.

    Only a quarter of a tile is generated and then mirrored, which is faster.
    """
    num_tiles = max(num_tiles, 3)  # no list is empty
    table: list[dict[str, str]] = []
    lists: dict[str, list[str]] = {"train": [], "val": [], "test": []}
    for index in range(num_tiles):
        turn = (index if num_tiles > 5 else 6 - num_tiles + index) % 6
        part = "test" if turn == 5 else "train"
        chip = f"{index:04x}{world.seed:04x}"
        lists["val" if turn == 4 else part].append(chip)
        tile = world.tile(index, extent_m=5.0 * _SIDE, year=2018)
        months = {"S1": ["00", "09"], "S2": _clearest(tile, 1 + index % 2)}
        _write_chip(folder, tile, months, {"part": part, "id": chip})
        table += [
            {"filename": f"{chip}_{sensor}_{month}.tif", "chip_id": chip, "satellite": sensor, "split": part,
             "month": str(_dates([month])[0]), "corresponding_agbm": f"{chip}_agbm.tif"}
            for sensor, of in months.items() for month in of
        ]  # fmt: skip
    if "table" in folder.layout:
        folder.write({"table": table})
    else:
        folder.write({f"{split}-list": np.array(chips, str) for split, chips in lists.items()})


def _clearest(tile: WorldTile, count: int) -> list[str]:
    """Return the months with the fewest clouds."""
    months = [f"{month:02d}" for month in range(12)]
    clear = tile.observe("s2", dates=_dates(months), gsd_m=160.0).valid.mean(axis=(1, 2, 3))
    return sorted(months[place] for place in np.argsort(-clear, kind="stable")[:count])


def _write_chip(
    folder: DatasetFolder, tile: WorldTile, months: Mapping[str, Sequence[str]], where: dict[str, Any]
) -> None:
    dates = _dates(months["S1"])
    seen = tile.observe("s1", dates=np.concatenate([dates - 5, dates + 5]))
    up, down = (folder.store(name, seen)[part] for name, part in zip(_ORBITS, (slice(2), slice(2, None)), strict=True))
    for month, values in zip(months["S1"], _mirrored(np.where(up == -9999, down, up)), strict=True):
        folder.write({_ORBITS[0]: values}, month=month, **where)
    seen = tile.observe("s2", dates=_dates(months["S2"]))
    stored = folder.store("s2", seen)
    stored[:, -1] = np.where(seen.valid.all(axis=1), 0, 100)
    for month, values in zip(months["S2"], _mirrored(stored), strict=True):
        folder.write({"s2": values}, month=month, **where)
    folder.write({"biomass": _mirrored(tile.biomass(10.0)[None])}, **where)


def _mirrored(quarter: NDArray[Any]) -> NDArray[Any]:
    """Double the last two axes by mirroring."""
    half = np.concatenate([quarter, quarter[..., ::-1]], axis=-1)
    return np.concatenate([half, half[..., ::-1, :]], axis=-2)


DATASET = DatasetRecord(
    name="biomassters",
    title="BioMassters",
    about="Above-ground biomass of 11,462 squares of Finnish forest",
    modalities=("s2", "s1"),
    tile_m=TILE_M,
    patch_sizes_m=(40.0, 80.0, 160.0),
    targets=(Target(name="biomass", level="pixel", kind="value", gsd_m=10.0, unit="t/ha", limits=(0.0, 10_000.0),
                    about="above-ground biomass, from airborne laser scans and field plots"),),
    split_rule=f"official test chips; {VAL_FRAC:.0%} of the official training chips, by a seeded hash of the name, "
    f"are validation; if the folder test_agbm is missing, another {TEST_FRAC:.0%} of them are test and the official "
    "test chips are left out. The training layout has lists",
    date_rule="the 15th of the month in the file name, counted from September; no year is released, "
    f"so every September is taken as {FIRST_MONTH}; the two orbits of a month share its date",
    has_real_dates=False,
    licence="CC-BY-4.0",
    size="11,462 tiles, 291 GB",
    homepage="https://huggingface.co/datasets/nascetti-a/BioMassters",
    citation="Nascetti et al. 2023, BioMassters",
    layouts=(PUBLISHED, TRAINING),
    list_samples=list_samples,
    read_sample=read_sample,
    write_miniature=write_miniature,
    notes=(
        "Months run from September to August; the published loader takes 00 as January, and computes days as 30 per "
        "month plus 15; here they are days of the year.",
        f"Sentinel-2 pixels with a cloud probability of {CLOUD_PERCENT} % or more, or not known, are invalid.",
        "Sentinel-1 is in dB; -9999 is invalid (the published loader makes it 0 dB).",
        "Chips have no georeference, so they cannot be split by place.",
        "No patch sizes are published; these divide the tile.",
    ),
)  # fmt: skip
