"""PASTIS-HD: crops of France in SPOT 6/7 images and Sentinel series (paper, GeoPlex; spec 4.2)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from anysat.batch import Tile
from anysat.data.base import DatasetRecord, Row, Samples, Target
from anysat.data.layout import TEXT, DatasetFolder, Entry, Layout
from anysat.data.world import World, WorldTile
from anysat.dates import Dates
from anysat.errors import SourceError
from anysat.observation import Observation

CROPS = ("background", "meadow", "soft winter wheat", "corn", "winter barley", "winter rapeseed", "spring barley",
         "sunflower", "grapevine", "beet", "winter triticale", "winter durum wheat", "fruits, vegetables, flowers",
         "potatoes", "leguminous fodder", "soybeans", "orchard", "mixed cereal", "sorghum")  # fmt: skip
COLOURS = ("#8f8f8f", "#2ca02c", "#ffbb78", "#ff7f0e", "#dbdb8d", "#f2e205", "#c49c94", "#ff9896", "#9467bd",
           "#e377c2", "#8c564b", "#a88cc4", "#d62728", "#7b4173", "#98df8a", "#17becf", "#637939", "#00e0a0",
           "#843c39")  # fmt: skip
"""Colours of the crops; the background, which fills half of a picture, is grey."""
VOID = 19
"""Class number of pixels whose crop is unknown."""
LABEL_GSD_M = 10.0
_DRAWN_M = 4.0  # detail of the miniature's SPOT images, stored in pixels of 1 m: the world is slow to draw at 1 m
_S2 = ("B2", "B3", "B4", "B5", "B6", "B7", "B8", "B8A", "B11", "B12")
_RADAR = ("VV", "VH", "VV/VH")
_DATES_OF = {"s2": "dates-S2", "s1": "dates-S1A", "s1-des": "dates-S1D"}


def _radar(modality: str, letter: str, about: str) -> Entry:
    return Entry(
        name=modality, path=f"DATA_S1{letter}/S1{letter}_{{id}}.npy", dtype="float16", shape=("T", 3, "H", "W"),
        modality=modality, bands=_RADAR, unit=("dB", "dB", "ratio"), about=f"{about}; decibels, the third band is "
        "the ratio as stored, VV minus VH in decibels; NaN is no data",
    )  # fmt: skip


PUBLISHED = Layout(
    name="published",
    marker="DATA_S2",
    source="documentation of PASTIS-R and PASTIS-HD; spec 4.2",
    entries=(
        Entry(name="kind", path="metadata.geojson", key="type", dtype=TEXT, unit="FeatureCollection"),
        Entry(name="patches", path="metadata.geojson", key="features", dtype=TEXT, unit="one GeoJSON feature per patch",
              about="with ID_PATCH, Fold, and dates-S2, dates-S1A, dates-S1D: index to YYYYMMDD"),
        Entry(name="spot", path="DATA_SPOT/PASTIS_SPOT6_RVB_1M00_2019/SPOT6_RVB_1M00_2019_{id}.tif", dtype="uint8",
              shape=(3, "H x 10", "W x 10"), modality="spot", bands=("R", "G", "B"), unit="DN",
              about="SPOT 6/7 of 2019, resampled to 1 m"),
        Entry(name="s2", path="DATA_S2/S2_{id}.npy", dtype="int16", shape=("T", 10, "H", "W"), modality="s2",
              bands=_S2, unit="reflectance_1e4",
              about="Theia L2A; negative (-10000), or 0 in all bands of a pixel, is no data"),
        _radar("s1", "A", "Sentinel-1 ascending"),
        _radar("s1-des", "D", "Sentinel-1 descending"),
        Entry(name="crops", path="ANNOTATIONS/TARGET_{id}.npy", dtype="uint8", shape=("C", "H", "W"),
              unit="class number in the first channel", about="0 background, 1 to 18 crops, 19 void"),
    ),
)  # fmt: skip
"""Patches have 128 x 128 pixels. The layout leaves the sides open (`H`, `W`); `read_sample` refuses files of one
patch that do not cover the same ground."""


def list_samples(folder: DatasetFolder) -> Samples:
    """List all patches, with their fold as split and their dates as text."""
    path = folder.path("patches")
    rows = []
    with folder.understood("patches"):
        for place, feature in enumerate(folder.read("patches")):
            facts = feature.get("properties") or {}
            if "ID_PATCH" not in facts or "Fold" not in facts:
                raise SourceError(path, f"feature {place} has no ID_PATCH or no Fold, only {', '.join(facts)}")
            dates = {key: _listed(facts.get(key) or {}, path) for key in _DATES_OF.values()}
            rows.append({"id": str(facts["ID_PATCH"]), "split": f"fold{facts['Fold']}", **dates})
    return Samples.of_rows(rows)


def _listed(dates: Any, path: Path) -> str:
    """Return the dates in the order of their index; the keys are text, in which `10` would sort before `2`."""
    if not isinstance(dates, Mapping) or not all(key.isdigit() for key in dates):
        raise SourceError(path, f"dates are {str(dates)[:60]!r}", "expected index to YYYYMMDD")
    return ",".join(str(dates[key]) for key in sorted(dates, key=int))


def read_sample(folder: DatasetFolder, row: Row, modalities: Sequence[str]) -> Tile:
    """Read one tile of 1280 m.

    Raises:
        SourceError: the crops do not cover the ground of the observations, or a series has no dates.
    """
    observations = [_observe(folder, key, row) for key in modalities]
    targets = _targets(folder, row, observations) if folder.wants("crops", "crops_present") else {}
    geobox = folder.geobox("spot", **row) if "spot" in modalities else None
    return Tile.of(*observations, targets=targets, geobox=geobox)


def _targets(folder: DatasetFolder, row: Row, observations: Sequence[Observation]) -> dict[str, NDArray[np.int64]]:
    """Return the crops of each pixel and of the tile; check that they cover the ground of the observations."""
    stored = folder.read("crops", **row)[0]
    crops = np.where(stored < len(CROPS), stored, VOID).astype(np.int64)
    for seen in observations:
        sides_px = tuple(round(side * seen.modality.gsd_m / LABEL_GSD_M) for side in seen.shape_px)
        if sides_px != crops.shape:
            problem = f"crops of {crops.shape} pixels of {LABEL_GSD_M:g} m, but {seen.modality.key} covers {sides_px}"
            files = f"{folder.path(seen.modality.key, **row).name} and {folder.path('crops', **row).name}"
            advice = f"the files of a patch must cover the same ground: compare {files}"
            raise SourceError(folder.path("crops", **row), problem, advice)
    return {"crops": crops, "crops_present": np.isin(np.arange(1, len(CROPS)), crops).astype(np.int64)}


def _observe(folder: DatasetFolder, key: str, row: Row) -> Observation:
    values = folder.read(key, **row)
    if key == "spot":
        return folder.observe(key, values, **row)
    valid = (values >= 0) & values.any(axis=1, keepdims=True) if key == "s2" else None
    return folder.observe(key, values, dates=_dates(folder, key, row), valid=valid, **row)


def _dates(folder: DatasetFolder, key: str, row: Row) -> Dates:
    words = [word for word in row[_DATES_OF[key]].split(",") if word]
    if not words or any(len(word) != 8 or not word.isdigit() for word in words):
        problem = f"{_DATES_OF[key]} of patch {row['id']} is {row[_DATES_OF[key]]!r}"
        raise SourceError(folder.path("patches"), problem, "expected dates as YYYYMMDD, one per image")
    return np.array([f"{word[:4]}-{word[4:6]}-{word[6:]}" for word in words], "datetime64[D]")


def write_miniature(folder: DatasetFolder, world: World, num_tiles: int) -> None:
    """Write tiles of the generated world, one fold after another."""
    features = []
    for index in range(num_tiles):
        tile, patch = world.tile(index, extent_m=1280.0, year=2019), 10_000 + 7 * index
        dates = {"s2": tile.dates("s2", 11 if index == 0 else 3), "s1": tile.dates("s1", 3), "s1-des": tile.dates(
            "s1-des", 2)}  # fmt: skip
        facts: dict[str, Any] = {"ID_PATCH": patch, "Fold": index % 5 + 1}
        for key, name in _DATES_OF.items():
            stamps = [int(str(date).replace("-", "")) for date in dates[key]]
            facts[name] = dict(reversed([(str(place), stamp) for place, stamp in enumerate(stamps)]))
        features.append({"type": "Feature", "properties": facts, "geometry": _outline(tile)})
        contents: dict[str, Any] = {"crops": _crops_of(tile)}
        for key in dates:
            contents[key] = _series(folder, tile, key, dates[key])
        folder.write(contents, id=patch)
        spot = folder.store("spot", tile.observe("spot", gsd_m=_DRAWN_M))
        spot = spot.repeat(int(_DRAWN_M), axis=1).repeat(int(_DRAWN_M), axis=2)
        folder.write({"spot": spot}, geobox=tile.geobox(1.0), id=patch)
    folder.write({"kind": "FeatureCollection", "patches": features})


def _series(folder: DatasetFolder, tile: WorldTile, key: str, dates: Dates) -> NDArray[Any]:
    """Return the stored values of a series, with gaps like those of real data."""
    stored = folder.store(key, tile.observe(key, dates=dates))
    if key == "s2":
        stored[0, :, :2, :2] = -10_000
        stored[-1, :, -2:] = 0
        return stored
    stored[:, 2] = stored[:, 0] - stored[:, 1]
    stored[0, :, :3] = np.nan
    return stored


def _crops_of(tile: WorldTile) -> NDArray[np.uint8]:
    found = tile.raster("crop", LABEL_GSD_M)
    crops = np.where(found < 0, 0, 1 + (3 * found + tile.index) % 18)
    crops[:4], crops[:, -3:] = 0, VOID
    return np.stack([crops, np.zeros_like(crops), np.zeros_like(crops)]).astype(np.uint8)


def _outline(tile: WorldTile) -> dict[str, Any]:
    left, bottom, right, top = tile.geobox(10.0).boundingbox.bbox
    return {"type": "Polygon", "coordinates": [[[left, bottom], [right, bottom], [right, top], [left, top],
                                                [left, bottom]]]}  # fmt: skip


DATASET = DatasetRecord(
    name="pastis_hd",
    title="PASTIS-HD",
    about="Crops of agricultural parcels in 2,433 patches of metropolitan France, September 2018 to November 2019",
    modalities=("spot", "s2", "s1", "s1-des"),
    tile_m=1280.0,
    patch_sizes_m=(40.0, 80.0, 160.0),
    targets=(
        Target(name="crops", level="pixel", kind="class", classes=CROPS, ignore=VOID, gsd_m=LABEL_GSD_M,
               colours=COLOURS,
               about="crop of the parcel; void parcels are ignored"),
        Target(name="crops_present", level="tile", kind="labels", classes=CROPS[1:], colours=COLOURS[1:],
               about="crops that occur in the tile, without background and void"),
    ),
    splits={"train": ("fold1", "fold2", "fold3"), "val": ("fold4",), "test": ("fold5",)},
    split_rule="official folds: 1 to 3 train, 4 validation, 5 test; for the other turns of the cross-validation, name "
               "the folds, such as `fold2+fold3+fold4`",
    date_rule="real, from metadata.geojson",
    day_convention="days_since 2018-09-01",
    licence="etalab-2.0",
    size="2,433 tiles; PASTIS-R about 54 GB, plus the SPOT images",
    homepage="https://huggingface.co/datasets/IGNF/PASTIS-HD",
    citation="Garnot et al. 2021 and 2022 (PASTIS, PASTIS-R); Astruc et al. 2024 (PASTIS-HD)",
    layouts=(PUBLISHED,),
    list_samples=list_samples,
    read_sample=read_sample,
    write_miniature=write_miniature,
    notes=(
        "The published training code reads the same layout, with s1 the ascending series (spec 4.2); the published "
        "weights have no projector for the descending one, s1-des: leave it out with modalities=.",
        "All dates are kept in every split; the published loader draws at most 20 or 40 in training.",
        "Tiles are read whole; the published loader's option to cut a tile into k x k is left out.",
        "There is no cloud mask: cloudy pixels are valid.",
        "The georeference is that of the SPOT image, where it is read.",
        "Real patches have 128 x 128 pixels; files of another size are read if all files of a patch agree.",
    ),
)  # fmt: skip
