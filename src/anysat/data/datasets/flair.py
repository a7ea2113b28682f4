"""FLAIR #2: land cover of France in aerial photos and Sentinel-2 series (paper, GeoPlex; spec 4.3)."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from anysat.batch import Tile
from anysat.data.base import DatasetRecord, Row, Samples, Target
from anysat.data.layout import TEXT, DatasetFolder, Entry, Layout
from anysat.data.splits import split_by_name
from anysat.data.transforms import Crops
from anysat.data.world import World, WorldTile
from anysat.dates import Dates
from anysat.errors import MissingFileError, SourceError
from anysat.observation import Observation

CLASSES = ("building", "pervious surface", "impervious surface", "bare soil", "water", "coniferous", "deciduous",
           "brushwood", "vineyard", "herbaceous vegetation", "agricultural land", "plowed land")  # fmt: skip
OTHER = 12
"""Class number of pixels of rare or unclear classes, stored as 13 to 19."""
CLOUD_PERCENT = 50
"""Cloud probability at and above which a pixel is invalid."""
VAL_DOMAINS = ("D004_2021", "D014_2020", "D029_2021", "D031_2019", "D058_2020", "D066_2021", "D067_2021", "D077_2021")
"""Validation domains of the dataset authors' baseline: 8 of the 40 training domains."""
_S2 = ("B2", "B3", "B4", "B5", "B6", "B7", "B8", "B8A", "B11", "B12")
TILE_M = 100.0
SIDE_PX, _CROP_PX = 512, 6  # a photo of 512 px covers 102.4 m: cut to the 100 m that 10 px of Sentinel-2 cover
_HALF_PX = 5
_SEN = "{prefix}_sen_{part}/{domain}/{area}/sen/SEN2_sp_{domain}-{area}"

PUBLISHED = Layout(
    name="published",
    marker="flair*_aerial_*",
    source="documentation of FLAIR #2; spec 4.3",
    entries=(
        Entry(name="aerial-flair", path="{prefix}_aerial_{part}/{domain}/{area}/img/IMG_{number}.tif", dtype="uint8",
              shape=(5, 512, 512), modality="aerial-flair", bands=("R", "G", "B", "NIR", "elevation"), unit="DN",
              about="0.2 m photo; the fifth band is height above ground, in steps of 0.2 m"),
        Entry(name="s2", path=f"{_SEN}_data.npy", dtype="uint16", shape=("T", 10, "H", "W"), modality="s2", bands=_S2,
              unit="reflectance_1e4", nodata=0, about="Sentinel-2 L2A of a year, over the whole area"),
        Entry(name="s2-masks", path=f"{_SEN}_masks.npy", dtype="uint8", shape=("T", 2, "H", "W"), unit="percent",
              about="probability of snow (first) and of cloud (second channel)"),
        Entry(name="s2-products", path=f"{_SEN}_products.txt", dtype=TEXT, unit="product names, one per line",
              about="characters 11 to 19 are the date"),
        Entry(name="labels", path="{prefix}_labels_{part}/{domain}/{area}/msk/MSK_{number}.tif", dtype="uint8",
              shape=(1, 512, 512), unit="class number from 1", about="12 of the 19 classes are used"),
        Entry(name="centroids", path="flair-2_centroids_sp_to_patch.json",
              also=("flair_2_centroids_sp_to_patch.json", "centroids_sp_to_patch.json",
                    "flair_2_centroids_sp_to_patch/flair-2_centroids_sp_to_patch.json"),
              dtype=TEXT, unit="row and column of a photo's centre in the Sentinel-2 array of its area, by file name"),
        Entry(name="splits", path="splits.json", dtype=TEXT, is_optional=True, unit="domains by split",
              about="a file of the published training code's authors, not distributed", source="spec 4.3"),
    ),
)  # fmt: skip
"""`prefix` is `flair` for `train`, `flair_2` for `test`."""


def list_samples(folder: DatasetFolder) -> Samples:
    """List all photos found by their own or their labels' names, with the split of their domain and their centre."""
    photos = list(folder.find("aerial-flair", "labels"))
    has_places = folder.has("centroids")
    places = folder.read("centroids") if has_places else {}
    split_of = _splits(folder, {(photo["part"], photo["domain"]) for photo in photos})
    rows = []
    for photo in photos:
        split = split_of.get((photo["part"], photo["domain"]))
        if split is not None:
            name = "/".join(photo[field] for field in ("domain", "area", "number"))
            row_px, col_px = _centroid(folder, places, photo["number"]) if has_places else (-1, -1)
            rows.append({"id": name, "split": split, **photo, "row_px": row_px, "col_px": col_px})
    return Samples.of_rows(rows)


def _splits(folder: DatasetFolder, domains: set[tuple[str, str]]) -> dict[tuple[str, str], str]:
    """Return the split by folder (`train`, `test`) and domain; domains stay whole, to keep neighbours together."""
    if folder.has("splits"):
        listed = {domain: split for split, names in folder.read("splits").items() for domain in names}
        for split in set(listed.values()) - {"train", "val", "test"}:
            raise SourceError(folder.path("splits"), f"it has a split {split!r}", "expected train, val and test")
        return {(part, domain): listed[domain] for part, domain in domains if domain in listed}
    training = sorted(domain for part, domain in domains if part == "train")
    held_out = set(training) & set(VAL_DOMAINS)
    if not held_out:
        drawn = split_by_name(training, {"train": 0.8, "val": 0.2})
        held_out = {domain for domain, split in zip(training, drawn, strict=True) if split == "val"}
    chosen = {("train", domain): "val" if domain in held_out else "train" for domain in training}
    return {(part, domain): chosen.get((part, domain), "test") for part, domain in domains}


def _centroid(folder: DatasetFolder, centroids: Mapping[str, Sequence[int]], number: str) -> tuple[int, int]:
    name = f"IMG_{number}.tif"
    with folder.understood("centroids"):
        place = centroids.get(name)
        if place is None or len(place) != 2:
            raise SourceError(folder.path("centroids"), f"place of {name} is {place}", "expected its row and column")
        return round(place[0]), round(place[1])


def read_sample(folder: DatasetFolder, row: Row, modalities: Sequence[str]) -> Tile:
    """Read one tile of 100 m from the middle of the photo."""
    return _read(folder, row, modalities, ((_CROP_PX, _CROP_PX),))[0][0]


def read_drawn(folder: DatasetFolder, row: Row, modalities: Sequence[str], generator: np.random.Generator) -> Tile:
    """Read one tile of 100 m at a random place in the photo; the Sentinel-2 series stays the same (spec section 5)."""
    top, left = generator.integers(2 * _CROP_PX + 1, size=2).tolist()
    return _read(folder, row, modalities, ((top, left),))[0][0]


def read_crops(folder: DatasetFolder, row: Row, modalities: Sequence[str]) -> Crops:
    """Read tiles of 100 m at the four corners and in the middle of the photo, all with the same Sentinel-2 series."""
    sides = (0, 2 * _CROP_PX)
    corners = (*((top, left) for top in sides for left in sides), (_CROP_PX, _CROP_PX))
    tiles, labels = _read(folder, row, modalities, corners)
    assert labels is not None, folder
    gsd_m = TILE_M / (SIDE_PX - 2 * _CROP_PX)
    return Crops(tiles=tuple(tiles), corners_m=tuple((top * gsd_m, left * gsd_m) for top, left in corners),
                 extent_m=(SIDE_PX * gsd_m, SIDE_PX * gsd_m), targets=_targets(labels),
                 geobox=tiles[-1].geobox)  # fmt: skip


def _read(
    folder: DatasetFolder, row: Row, modalities: Sequence[str], corners: Sequence[tuple[int, int]]
) -> tuple[list[Tile], NDArray[np.int64] | None]:
    """Read the tiles with their upper left corners at these pixels of the photo, and all its labels where wanted."""
    labels = _labels(folder, row) if folder.wants("land_cover", "land_cover_present") else None
    has_photo = "aerial-flair" in modalities
    photo = folder.read("aerial-flair", **row) if has_photo else None
    geobox = folder.geobox("aerial-flair", **row) if has_photo else None
    series = [_series(folder, row)] if "s2" in modalities else []
    tiles = []
    for corner in corners:
        cut = tuple(slice(start, start + SIDE_PX - 2 * _CROP_PX) for start in corner)
        seen = [] if photo is None else [folder.observe("aerial-flair", photo[:, *cut], **row)]
        targets = {} if labels is None else _targets(labels[cut])
        tiles.append(Tile.of(*seen, *series, targets=targets, geobox=geobox[cut] if geobox else None))
    return tiles, labels


def _labels(folder: DatasetFolder, row: Row) -> NDArray[np.int64]:
    """Return the class of each pixel of the photo."""
    stored = folder.read("labels", **row)[0]
    return np.where((stored >= 1) & (stored <= len(CLASSES)), stored.astype(np.int64) - 1, OTHER)


def _targets(labels: NDArray[np.int64]) -> dict[str, NDArray[np.int64]]:
    return {"land_cover": labels, "land_cover_present": np.isin(np.arange(len(CLASSES)), labels).astype(np.int64)}


def _series(folder: DatasetFolder, row: Row) -> Observation:
    """Return the 10 x 10 pixels around the photo's centre; pixels outside the array are invalid."""
    if row["row_px"] < 0:
        raise MissingFileError(
            folder.path("centroids"),
            "the row and column of each photo in the Sentinel-2 array of its area; the arrays have no georeference, so "
            "the place is not known without it: get the file with the dataset, or read modalities=['aerial-flair']",
        )
    whole, masked = (folder.shape(name, **row) for name in ("s2", "s2-masks"))
    if (masked[:1], masked[2:]) != (whole[:1], whole[2:]):
        problem = f"masks of shape {masked} for {folder.path('s2', **row).name} of shape {whole}"
        raise SourceError(folder.path("s2-masks", **row), problem, "they must have the same dates and pixels")
    shape = whole[2:]
    if not (row["row_px"] < shape[0] and row["col_px"] < shape[1]):
        problem = f"IMG_{row['number']}.tif lies at ({row['row_px']}, {row['col_px']}), outside {shape} pixels"
        raise SourceError(folder.path("s2", **row), problem, f"compare {folder.path('centroids').name}")
    starts = [row[name] - _HALF_PX for name in ("row_px", "col_px")]
    inside = tuple(slice(max(start, 0), start + 2 * _HALF_PX) for start in starts)
    stored, masks = (folder.read(name, rows=(slice(None), slice(None), *inside), **row) for name in ("s2", "s2-masks"))
    before = [max(-start, 0) for start in starts]
    around = [(short, 2 * _HALF_PX - short - side) for short, side in zip(before, stored.shape[2:], strict=True)]
    window, clouds = (np.pad(array, ((0, 0), (0, 0), *around)) for array in (stored, masks[:, 1:]))  # 0 is no data
    dates = _dates(folder, folder.read("s2-products", **row), row)
    return folder.observe("s2", window, dates=dates, valid=clouds < CLOUD_PERCENT, **row)


def _dates(folder: DatasetFolder, products: Sequence[str], row: Row) -> Dates:
    words = [product[11:19] for product in products]
    for product, word in zip(products, words, strict=True):
        if len(word) != 8 or not word.isdigit():
            raise SourceError(folder.path("s2-products", **row), f"no date in {product!r}", "expected it at 11 to 19")
    return np.array([f"{word[:4]}-{word[4:6]}-{word[6:]}" for word in words], "datetime64[D]")


def write_miniature(folder: DatasetFolder, world: World, num_tiles: int) -> None:
    """Write areas of two photos each; every third is for testing and, of five others, the second for validation."""
    domains = itertools.cycle(["D012_2019", VAL_DOMAINS[0], "D033_2021", "D055_2018", "D072_2019"])
    centroids: dict[str, list[int]] = {}
    for area in range((num_tiles + 1) // 2):
        is_test = area % 3 == 2
        fields = {"prefix": "flair_2" if is_test else "flair", "part": "test" if is_test else "train",
                  "domain": "D064_2021" if is_test else next(domains), "area": f"Z{area + 1}_UU"}  # fmt: skip
        tiles = [
            world.tile(index, extent_m=100.0, year=2020) for index in range(2 * area, min(2 * area + 2, num_tiles))
        ]
        # Numbers run against the order in the array, so that only names match photo, label and place.
        numbers = [f"{900 - tile.index:06d}" for tile in tiles]
        places = _write_super_patch(folder, tiles, area, fields)
        for tile, number, place in zip(tiles, numbers, places, strict=True):
            photo = folder.store("aerial-flair", tile.observe("aerial-flair", extent_m=102.4))
            cover = 1 + (3 * tile.raster("land_cover", 0.2, 102.4)) % 18
            contents = {"aerial-flair": photo, "labels": cover[None]}
            folder.write(contents, geobox=tile.geobox(0.2, 102.4), number=number, **fields)
            centroids[f"IMG_{number}.tif"] = place
    folder.write({"centroids": centroids})


def _write_super_patch(
    folder: DatasetFolder, tiles: Sequence[WorldTile], area: int, fields: Mapping[str, str]
) -> list[list[int]]:
    """Write two neighbourhoods of 300 m side by side, without their top rows; return row and column of tile centres.

    In every second area, a tile's window reaches two rows beyond the edge.
    """
    dates = tiles[0].dates("s2", 5)
    first_row = 12 if area % 2 else 4
    seen = [tile.observe("s2", dates=dates, extent_m=300.0, keep_clouds=True) for tile in tiles]
    clear = [tile.observe("s2", dates=dates, extent_m=300.0).valid.all(axis=1) for tile in tiles]
    cloud = ~np.concatenate(clear, axis=-1)[:, first_row:]
    cloud[0, :8] = True
    contents = {
        "s2": np.concatenate([folder.store("s2", part) for part in seen], axis=-1)[:, :, first_row:],
        "s2-masks": 100 * np.stack([np.zeros_like(cloud), cloud], axis=1),
        "s2-products": [f"S2A_MSIL2A_{str(date).replace('-', '')}T105401_N0211_R051_T31TDN" for date in dates],
    }
    folder.write(contents, **fields)
    return [[15 - first_row, 15 + 30 * place] for place in range(len(tiles))]


DATASET = DatasetRecord(
    name="flair",
    title="FLAIR #2",
    about="Land cover of 77,762 aerial photos in 50 spatial domains of metropolitan France, with Sentinel-2 series",
    modalities=("aerial-flair", "s2"),
    tile_m=TILE_M,
    patch_sizes_m=(10.0, 20.0, 50.0),
    targets=(
        Target(name="land_cover", level="pixel", kind="class", classes=CLASSES, ignore=OTHER, gsd_m=0.2,
               about="rare and unclear classes (13 to 19 as stored) are ignored"),
        Target(name="land_cover_present", level="tile", kind="labels", classes=CLASSES,
               about="classes that occur in the tile"),
    ),
    split_rule="by whole domains: splits.json if it lies beside the data (it is not distributed); otherwise the test "
    "folders are the test split and validation is the eight domains of the baseline of the dataset's authors "
    f"({', '.join(VAL_DOMAINS)}), or 20 % of the training domains by a seeded hash of their names if a copy has "
    "none of the eight",
    date_rule="real, from product names",
    licence="etalab-2.0",
    size="77,762 tiles",
    homepage="https://ignf.github.io/FLAIR/",
    citation="Garioud et al. 2023",
    layouts=(PUBLISHED,),
    list_samples=list_samples,
    read_sample=read_sample,
    read_drawn=read_drawn,
    read_crops=read_crops,
    write_miniature=write_miniature,
    notes=(
        "The published training code reads the same folders (spec 4.3); it validates on the test folders, which is not "
        "done here.",
        "Photo and labels are cut to the 100 m of the Sentinel-2 window, at their centre or, in training, at a random "
        "place; `anysat evaluate --crop-m 100` covers the whole photo with five overlapping tiles, as published.",
        "Photo, labels, series and place are matched by names; the published loader pairs sorted lists.",
        "Sentinel-2 pixels outside the array of their area are invalid, never wrapped to its other side.",
        f"Sentinel-2 pixels with a cloud probability of {CLOUD_PERCENT} % or more are invalid, unlike in the published "
        "loader; snow is kept.",
        "The processing offset of 2022 is not removed: images are of 2018 to 2021.",
    ),
)  # fmt: skip
