"""Sen1Floods11: flood water in Sentinel-1 and Sentinel-2 images, labelled by hand (paper, table C; spec 4.9)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from anysat.batch import Tile
from anysat.data.base import DatasetRecord, Row, Samples, Target
from anysat.data.layout import TEXT, DatasetFolder, Entry, Layout
from anysat.data.world import FACTORS, World
from anysat.errors import SourceError

CLASSES = ("dry", "water")
IGNORE = -1
TILE_M = 5120.0
LOCATIONS = {"Mekong": "Cambodia"}
"""Location in the metadata by the name that chips use, where the two differ."""
_BANDS = ("B1", "B2", "B3", "B4", "B5", "B6", "B7", "B8", "B8A", "B9", "B10", "B11", "B12")
_SPLITS = {"train": "train", "val": "valid", "test": "test"}
_HAND = "data/flood_events/HandLabeled"
_COARSE = 4  # the world is drawn in pixels of 40 m, so that miniatures stay small


def _list_entries(split: str) -> tuple[Entry, ...]:
    path = f"splits/flood_handlabeled/flood_{split}_data.csv"
    return tuple(
        Entry(name=f"{split}-{name}", path=path, key=key, dtype=TEXT, shape=("N",), unit="file names, without a header")
        for name, key in (("images", "#1"), ("labels", "#2"))
    )  # fmt: skip


PUBLISHED = Layout(
    name="published",
    marker="splits/flood_handlabeled",
    source="README of the release; spec 4.9",
    entries=(
        *(entry for split in _SPLITS.values() for entry in _list_entries(split)),
        Entry(name="metadata", path="Sen1Floods11_Metadata.geojson", key="features", dtype=TEXT,
              unit="`location`, `s1_date` and `s2_date` (year/month/day) of each flood"),
        Entry(name="s2", path=f"{_HAND}/S2Hand/{{id}}_S2Hand.tif", dtype="int16", shape=(13, 512, 512), modality="s2",
              bands=_BANDS, unit="reflectance_1e4", nodata=0, about="level 1C, top of the atmosphere"),
        Entry(name="s1", path=f"{_HAND}/S1Hand/{{id}}_S1Hand.tif", dtype="float32", shape=(2, 512, 512), modality="s1",
              bands=("VV", "VH"), unit="dB", about="NaN where there is no data"),
        Entry(name="label", path=f"{_HAND}/LabelHand/{{id}}_LabelHand.tif", dtype="int16", shape=(1, 512, 512),
              unit="-1 not labelled, 0 dry, 1 water"),
    ),
    checked_against="one real chip and the real metadata",
)  # fmt: skip


def list_samples(folder: DatasetFolder) -> Samples:
    """List the chips of the official lists, with the dates of their flood."""
    days = _days_by_location(folder)
    rows = []
    for split, listed in _SPLITS.items():
        for image, label in zip(*folder.read(f"{listed}-images", f"{listed}-labels"), strict=True):
            name = str(image).strip().removesuffix("_S1Hand.tif")
            if str(label).strip() != f"{name}_LabelHand.tif":
                raise SourceError(folder.path(f"{listed}-images"), f"a row has {str(image)!r} and {str(label)!r}",
                                  "expected <chip>_S1Hand.tif and <chip>_LabelHand.tif")  # fmt: skip
            location = name.rsplit("_", 1)[0]
            location = LOCATIONS.get(location, location)
            if location not in days:
                raise SourceError(folder.path("metadata"), f"it has no location {location!r}, needed for chip {name}",
                                  f"its locations: {', '.join(sorted(days))}")  # fmt: skip
            rows.append({"id": name, "split": split, **days[location]})
    return Samples.of_rows(rows)


def _days_by_location(folder: DatasetFolder) -> dict[str, dict[str, str]]:
    """Return the days of the Sentinel-1 and Sentinel-2 images of each flood."""
    features = folder.read("metadata")
    try:
        facts = [feature["properties"] for feature in features]
        return {
            fact["location"]: {key: fact[f"{key}_date"].replace("/", "-") for key in ("s1", "s2")} for fact in facts
        }
    except (KeyError, TypeError, AttributeError) as error:
        expected = f"expected {folder.layout['metadata'].unit}"
        raise SourceError(folder.path("metadata"), f"a feature cannot be read ({error!r})", expected) from error


def read_sample(folder: DatasetFolder, row: Row, modalities: Sequence[str]) -> Tile:
    """Read one chip of 512 x 512 pixels, whose pixel size is taken as 10 m."""
    observations = [folder.observe(key, folder.read(key, **row)[None], dates=[row[key]], **row) for key in modalities]
    targets = {}
    if folder.wants("flood"):
        label = folder.read("label", **row)[0].astype(np.int64)
        targets["flood"] = np.where(np.isin(label, (0, 1)), label, IGNORE)
    return Tile.of(*observations, targets=targets, geobox=folder.geobox(modalities[0], **row))


def write_miniature(folder: DatasetFolder, world: World, num_tiles: int) -> None:
    """Write tiles of the generated world as chips of two floods: of six, one for validation and one for testing."""
    chips: dict[str, list[str]] = {split: [] for split in _SPLITS.values()}
    floods = {location: _wettest(world, year) for location, year in (("Spain", 2019), ("Mekong", 2018))}
    for index in range(max(num_tiles, 3)):  # a list must not be empty
        tile = world.tile(index, extent_m=TILE_M, year=2019 - index % 2)
        location = list(floods)[index % 2]
        contents = {}
        for key, day in zip(("s1", "s2"), floods[location], strict=True):
            seen = tile.observe(key, dates=[day], gsd_m=10.0 * _COARSE, keep_clouds=True)
            contents[key] = _enlarged(folder.store(key, seen)[0])
        contents["s1"][:, :16, :16] = np.nan
        flood = _enlarged(tile.raster("flood", 10.0 * _COARSE, date=np.datetime64(floods[location][0])))
        contents["label"] = np.where(flood < 0, IGNORE, flood != FACTORS["flood"].index("dry"))[None]
        contents["label"][:, -16:, -16:] = IGNORE
        name = f"{location}_{index:06}"
        folder.write(contents, geobox=tile.geobox(10.0), id=name)
        turn = (index + index // 6) % 6
        chips[list(chips)[turn] if turn < 3 else "train"].append(name)
    for split, names in chips.items():
        images, labels = ([f"{name}_{kind}Hand.tif" for name in names] for kind in ("S1", "Label"))
        folder.write({f"{split}-images": np.array(images), f"{split}-labels": np.array(labels)})
    features = [
        {"type": "Feature", "geometry": None,
         "properties": {"location": LOCATIONS.get(location, location)}
         | {f"{key}_date": day.replace("-", "/") for key, day in zip(("s1", "s2"), days, strict=True)}}
        for location, days in floods.items()
    ]  # fmt: skip
    folder.write({"metadata": features})


def _wettest(world: World, year: int) -> tuple[str, str]:
    """Return the days of a Sentinel-1 and a Sentinel-2 image on which much of the world is under water."""
    tile = world.tile(0, extent_m=TILE_M, year=year)
    days = tile.dates("s1", 12)
    day = days[np.argmax([(tile.raster("flood", 80.0, date=day) > 0).sum() for day in days])]
    return str(day), str(day + 1)


def _enlarged(array: NDArray[Any]) -> NDArray[Any]:
    return array.repeat(_COARSE, -1).repeat(_COARSE, -2)


DATASET = DatasetRecord(
    name="sen1floods11",
    title="Sen1Floods11",
    about="Water in 431 chips of ten floods around the world, labelled by hand",
    modalities=("s2", "s1"),
    tile_m=TILE_M,
    patch_sizes_m=(80.0,),
    targets=(Target(name="flood", level="pixel", kind="class", classes=CLASSES, ignore=IGNORE, gsd_m=10.0),),
    splits={split: (split,) for split in _SPLITS},
    split_rule="official lists of hand-labelled chips; flood_bolivia_data.csv, 15 chips of a flood in no other list, "
    "is left out, as in the published experiments",
    date_rule="real, of the chip's flood in the metadata; Sentinel-1 and Sentinel-2 up to two days apart",
    licence="published openly with the paper, no licence stated",
    size="446 chips, 431 of them in the lists; 14 GB with the weakly labelled ones",
    homepage="https://github.com/cloudtostreet/Sen1Floods11",
    citation="Bonafilia et al. 2020",
    layouts=(PUBLISHED,),
    list_samples=list_samples,
    read_sample=read_sample,
    write_miniature=write_miniature,
    notes=(
        "The folder is v1.1 of the bucket.",
        "Sentinel-2 is top of the atmosphere (level 1C); bands B1, B9 and B10 are not read.",
        "Chips named Mekong get the dates of Cambodia, their name in the metadata; the published loader gives day 1 to "
        "a flood that it does not find.",
        "The ratio band is computed from decibels, as in the published loader.",
        "Pixels are 8.98e-5 degrees (EPSG:4326), about 10 m at the equator, and taken as 10 m.",
    ),
)  # fmt: skip
