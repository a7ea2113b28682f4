"""TreeSatAI-TS: tree genera of Lower Saxony in aerial photos and Sentinel series (paper, GeoPlex; spec 4.1)."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from anysat.batch import Tile
from anysat.data.absent import tile_of
from anysat.data.base import DatasetRecord, Row, Samples, Target
from anysat.data.layout import TEXT, DatasetFolder, Entry, Layout
from anysat.data.splits import split_by_name
from anysat.data.world import FACTORS, World
from anysat.dates import Dates
from anysat.errors import MissingKeyError, SourceError
from anysat.observation import Observation

GENERA = ("Abies", "Acer", "Alnus", "Betula", "Cleared", "Fagus", "Fraxinus", "Larix", "Picea", "Pinus", "Populus",
          "Prunus", "Pseudotsuga", "Quercus", "Tilia")  # fmt: skip
MIN_AREA_FRAC = 0.07
"""Share of the tile above which a genus counts as present (spec 4.1)."""
CLOUD_PERCENT = 50
"""Cloud probability at and above which a pixel is invalid."""
_S2 = ("B2", "B3", "B4", "B5", "B6", "B7", "B8", "B8A", "B11", "B12")
_SPEC = "files of the archive; spec 4.1"
TILE_M, _TILE_PX = 60.0, 300
_CROP_PX = 2  # a photo of 304 px covers 60.8 m and the series 60 m, so the photo is cut to that


def _series(name: str, key: str, bands: tuple[str, ...], unit: str, modality: str, path: str) -> tuple[Entry, ...]:
    return (
        Entry(name=modality, path=path, key=f"{key}-data", dtype="float32", shape=("T", len(bands), 6, 6),
              modality=modality, bands=bands, unit=unit, about=name),
        Entry(name=f"{modality}-products", path=path, key=f"{key}-products", dtype=TEXT, shape=("T",),
              unit="product names, which hold the dates"),
    )  # fmt: skip


def _entries(series_path: str) -> tuple[Entry, ...]:
    return (
        Entry(name="aerial", path="aerial/{id}.tif", dtype="uint8", shape=(4, 304, 304), modality="aerial",
              bands=("NIR", "G", "B", "R"), unit="DN", about="0.2 m photo, infrared first"),
        *_series("Sentinel-2 L2A, reflectance x 10 000, above 0", "sen-2", _S2, "reflectance_1e4", "s2", series_path),
        Entry(name="s2-masks", path=series_path, key="sen-2-masks", dtype="float32", shape=("T", "C", 6, 6),
              unit="percent", about="probability of snow (first) and of cloud (second channel)"),
        *_series("Sentinel-1 ascending, linear power", "sen-1-asc", ("VV", "VH"), "linear", "s1-asc", series_path),
        *_series("Sentinel-1 descending, linear power", "sen-1-des", ("VV", "VH"), "linear", "s1-des", series_path),
        Entry(name="labels", path="labels/TreeSatBA_v9_60m_multi_labels.json", dtype=TEXT,
              unit="genus and share of the area, by file name"),
        *(
            Entry(name=f"{split}-list", path=f"{split}_filenames.lst",
                  also=(f"split/{split}_filenames.lst", f"labels/{split}_filenames.lst"), dtype=TEXT,
                  unit="file names of photos", is_optional=split == "val")
            for split in ("train", "val", "test")
        ),
    )  # fmt: skip


PUBLISHED = Layout(name="published", marker="sentinel-ts", entries=_entries("sentinel-ts/{id}_{year}.h5"), source=_SPEC,
                   checked_against="five real tiles")  # fmt: skip
TRAINING = Layout(name="training", marker="sentinel", entries=_entries("sentinel/{id}.h5"), source=_SPEC)


def list_samples(folder: DatasetFolder) -> Samples:
    """List the official tiles with a genus above the threshold; draw a validation list if there is none."""
    labels = folder.read("labels")
    split_of = {name: split for split in ("train", "test") for name in folder.read(f"{split}-list")}
    if folder.has("val-list"):
        split_of |= dict.fromkeys(folder.read("val-list"), "val")
    else:
        train = [name for name, split in split_of.items() if split == "train"]
        split_of |= dict(zip(train, split_by_name(train, {"train": 0.85, "val": 0.15}), strict=True))
    years = {found["id"]: found.get("year", "") for found in folder.find("s2")}
    rows = []
    for name, split in split_of.items():
        with folder.understood("labels"):
            if name not in labels:
                raise SourceError(folder.path("labels"), f"it has no labels for {name}, which is in a list")
            genera = [genus for genus, area in labels[name] if area > MIN_AREA_FRAC]
        if genera:
            stem = name.removesuffix(".tif")
            found = {"year": years.get(stem, "YEAR"), "genera": ",".join(genera)}
            rows.append({"id": stem, "split": str(split), **found})
    return Samples.of_rows(rows)


def read_sample(folder: DatasetFolder, row: Row, modalities: Sequence[str]) -> Tile:
    """Read one tile of 60 m from the middle of the photo."""
    return _read(folder, row, modalities, (_CROP_PX, _CROP_PX))


def read_drawn(folder: DatasetFolder, row: Row, modalities: Sequence[str], generator: np.random.Generator) -> Tile:
    """Read one tile of 60 m at a random place in the photo; the series stay the same (spec 4.1)."""
    top, left = generator.integers(2 * _CROP_PX + 1, size=2).tolist()
    return _read(folder, row, modalities, (top, left))


def _read(folder: DatasetFolder, row: Row, modalities: Sequence[str], corner: tuple[int, int]) -> Tile:
    """Read the tile whose upper left corner is at this pixel of the photo."""
    cut = (slice(corner[0], corner[0] + _TILE_PX), slice(corner[1], corner[1] + _TILE_PX))
    observations = [_observe(folder, key, row, cut) for key in modalities]
    present = np.isin(GENERA, row["genera"].split(",")).astype(np.int64)
    geobox = folder.geobox("aerial", **row) if "aerial" in modalities else None
    return tile_of(observations, modalities, TILE_M, targets={"genera": present}, geobox=geobox and geobox[cut])


def _observe(folder: DatasetFolder, key: str, row: Row, cut: tuple[slice, slice]) -> Observation | None:
    """Return the photo or a series; None for a series that the file lacks or that has no date."""
    if key == "aerial":
        return folder.observe(key, folder.read(key, **row)[:, *cut], **row)
    others = [f"{key}-products", *(["s2-masks"] if key == "s2" else [])]
    try:
        values, products, *masks = folder.read(key, *others, **row)
    except MissingKeyError:
        try:
            folder.read(key, **row)
        except MissingKeyError:
            return None
        raise  # the values are there, but something that belongs to them is missing
    if not len(values):
        return None
    if key != "s2":
        return folder.observe(key, values, dates=_dates(products, 4), **row)
    valid = (masks[0][:, 1:2] < CLOUD_PERCENT) & (values > 0)
    return folder.observe(key, values - _offset(products), dates=_dates(products, 2), valid=valid, **row)


def _dates(products: NDArray[Any], place: int) -> Dates:
    """Return the dates in product names, at this position between underscores."""
    words = [str(product, "utf-8").split("_")[place][:8] for product in products]
    return np.array([f"{word[:4]}-{word[4:6]}-{word[6:]}" for word in words], "datetime64[D]")


def _offset(products: NDArray[Any]) -> NDArray[np.float32]:
    """Return the offset that baselines from 04.00 (2022) on add to values; 99.99 marks custom processing."""
    found = [re.search(r"_N(\d{4})_", str(product, "utf-8")) for product in products]
    added = [1000 if match and 400 <= int(match[1]) < 9999 else 0 for match in found]
    return np.array(added, np.float32)[:, None, None, None]


def write_miniature(folder: DatasetFolder, world: World, num_tiles: int) -> None:
    """Write tiles of the generated world; every sixth, or the last of fewer, is for testing, so no list is empty."""
    num_tiles = max(num_tiles, 2)
    labels: dict[str, list[list[Any]]] = {}
    lists: dict[str, list[str]] = {"train": [], "test": []}
    for index in range(num_tiles):
        tile = world.tile(index, extent_m=60.0, year=2018)
        name, fields = f"World_{index}_{world.seed}_GEN_NLF", {"year": 2018}
        contents: dict[str, Any] = {
            "aerial": folder.store("aerial", tile.observe("aerial", extent_m=60.8, keep_clouds=True))
        }
        folder.write(contents, geobox=tile.geobox(0.2, 60.8), id=name)
        contents = {}
        for key, count, words in (
            ("s2", 24, "S2A_MSIL2A"),
            ("s1-asc", 15, "S1A_IW_GRDH_1SDV"),
            ("s1-des", 15, "S1A_IW_GRDH_1SDV"),
        ):
            seen = tile.observe(key, count=count, keep_clouds=True)
            stamps = [str(date).replace("-", "") for date in np.asarray(seen.dates)]
            contents[key] = folder.store(key, seen)
            contents[f"{key}-products"] = np.array([f"{words}_{stamp}T102421_N0207_R065_T32UNC" for stamp in stamps])
        cloudy = ~tile.observe("s2", count=24).valid.all(axis=1, keepdims=True)
        contents["s2-masks"] = np.concatenate([np.zeros_like(cloudy), cloudy], axis=1) * 100.0
        folder.write(contents, id=name, **fields)
        shares = tile.fractions("species")
        genera = [GENERA[3 * i % len(GENERA)] for i in range(len(FACTORS["species"]))]
        found = [[genus, round(float(share), 5)] for genus, share in zip(genera, shares, strict=True) if share > 0]
        labels[f"{name}.tif"] = found if shares.max() > MIN_AREA_FRAC else [*found, ["Cleared", 1.0]]
        is_test = index % 6 == 5 or (num_tiles < 6 and index == num_tiles - 1)
        lists["test" if is_test else "train"].append(f"{name}.tif")
    folder.write({"labels": labels, **{f"{split}-list": names for split, names in lists.items()}})


DATASET = DatasetRecord(
    name="treesatai_ts",
    title="TreeSatAI-TS",
    about="Genera of trees in 50,381 forest tiles of Lower Saxony, Germany",
    modalities=("aerial", "s2", "s1-asc", "s1-des"),
    tile_m=TILE_M,
    patch_sizes_m=(10.0, 20.0, 30.0),
    targets=(Target(name="genera", level="tile", kind="labels", classes=GENERA,
                    about=f"genera on more than {MIN_AREA_FRAC:.0%} of the tile"),),
    split_rule="official test list; validation is val_filenames.lst, or 15 % of the training list by a seeded hash of "
    "the name where that file is missing (it is not in the archive)",
    date_rule="real, from product names",
    licence="CC-BY-4.0",
    size="50,381 tiles",
    homepage="https://huggingface.co/datasets/IGNF/TreeSatAI-Time-Series",
    citation="Ahlswede et al. 2023; Astruc et al. 2024",
    layouts=(PUBLISHED, TRAINING),
    list_samples=list_samples,
    read_sample=read_sample,
    read_drawn=read_drawn,
    write_miniature=write_miniature,
    notes=(
        "The photo is cut to the 60 m of the series, at its centre or, in training, at a random place if the options "
        "say so; the published loader cuts at random in tests too.",
        "Sentinel-1 is linear power and keeps its own dates; dates without data are masked, not dropped.",
        f"Sentinel-2 pixels with a cloud probability of {CLOUD_PERCENT} % or more are invalid; the published loader "
        "keeps them, and the offset of products since 2022, which is subtracted here.",
    ),
)  # fmt: skip
