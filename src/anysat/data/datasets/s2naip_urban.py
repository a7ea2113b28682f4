"""S2NAIP-URBAN: aerial photos, Sentinel and Landsat series of cities of the United States (GeoPlex; spec 4.5).

Its tiles come from AI2-S2-NAIP. The list of the urban part was not distributed, so every tile in the folder is used.
"""

from __future__ import annotations

import csv
import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from affine import Affine
from numpy.typing import NDArray
from odc.geo.geobox import GeoBox

from anysat.batch import Tile
from anysat.data.absent import tile_of
from anysat.data.base import DatasetRecord, Row, Samples, Target
from anysat.data.cache import cached
from anysat.data.layout import TEXT, DatasetFolder, Entry, Layout
from anysat.data.splits import split_by_name
from anysat.data.world import World, WorldTile
from anysat.dates import Dates
from anysat.errors import SourceError
from anysat.modalities import MODALITIES
from anysat.observation import Observation

OSM_CLASSES = ("none", "building-like", "transport", "industry and energy", "water", "other")
CATEGORIES = (
    dict.fromkeys(("building", "communications_tower", "flagpole", "lighthouse", "obelisk", "observatory",
                   "water_tower"), 1)
    | dict.fromkeys(("aerialway_pylon", "aerodrome", "airport", "airstrip", "amenity_fuel", "gas_station", "helipad",
                     "highway", "parking", "road", "runway", "taxiway"), 2)
    | dict.fromkeys(("chimney", "crane", "generator_wind", "petroleum_well", "power_plant", "power_substation",
                     "power_tower", "satellite_dish", "silo", "storage_tank", "wind_turbine", "works"), 3)
    | dict.fromkeys(("fountain", "river"), 4)
)  # fmt: skip
"""Class by category of a feature; all others are `other`. The groups are those of spec 4.5, the members our choice."""
SHARES = {"train": 0.70, "val": 0.16, "test": 0.14}
"""Shares of the splits where there are no lists (359,046 and 82,140 of 515,270 tiles; spec 4.5)."""
BLOCK_TILES = 32
"""Side, in tiles, of the squares that stay in one split: 20.48 km, the tiles of one archive file."""
FIRST_RAISED = np.datetime64("2022-01-25", "D")
"""Where only dates are known, Sentinel-2 images from this day on are taken to have the offset of baseline 04.00."""
TILE_M, TILE_PX = 640, 512
_CARD = "spec 4.5; card of the dataset (huggingface.co/datasets/allenai/s2-naip)"
_PACKED = "the script by which its authors packed it"
_FIRST_DAY = np.datetime64("2000-01-01", "D")
_STACKED = "images one after another, all bands of each"
_STACKS = {"s2": ("s2-10m", "s2-20m"), "s1": ("s1",), "l8": ("l8-10m", "l8-20m")}
"""Entries of each series."""
_SCENES = {"s2": ("sentinel2.csv", 2), "s1": ("sentinel1.csv", 4), "l8": ("landsat.csv", 3)}
"""Table of scenes, and position of the date between the underscores of a scene's name."""


def _stack(name: str, path: str, bands: str, side_px: int, unit: str, about: str, source: str = "") -> Entry:
    names = tuple(bands.split())
    length = f"{len(names)}T" if len(names) > 1 else "T"
    dtype = "float32" if unit == "dB" else "uint16"
    return Entry(name=name, path=path, dtype=dtype, shape=(length, side_px, side_px), modality=name.split("-")[0],
                 bands=names, unit=unit, nodata=0, about=f"{about}; {_STACKED}", source=source)  # fmt: skip


_S2, _L8 = "Sentinel-2 L1C, reflectance times 10 000", "Landsat 8/9 level 1, digital numbers as delivered"
_IMAGES = (
    Entry(name="naip", path="naip/{id}.png", dtype="uint8", shape=(4, TILE_PX, TILE_PX), modality="naip",
          bands=("R", "G", "B", "NIR"), unit="DN", about="0 in all four bands: no data"),
    _stack("s2-10m", "sentinel2/{id}_8.tif", "B2 B3 B4 B8", 64, "reflectance_1e4", _S2),
    _stack("s2-20m", "sentinel2/{id}_16.tif", "B5 B6 B7 B11 B12 B8A", 32, "reflectance_1e4",
           f"{_S2}; B8A comes last (spec 4.5 has it fourth)", _PACKED),
    _stack("s1", "sentinel1/{id}.tif", "VV VH", 64, "dB", "Sentinel-1 GRD in decibels", f"{_CARD}; {_PACKED}"),
    _stack("l8-10m", "landsat/{id}_8.tif", "B8", 64, "DN", f"{_L8}: reflectance is about DN times 2e-5 minus 0.1"),
    _stack("l8-20m", "landsat/{id}_16.tif", "B1 B2 B3 B4 B5 B6 B7 B9 B10 B11", 32, "DN", _L8),
    Entry(name="osm", path="openstreetmap/{id}.geojson", dtype=TEXT,
          unit="features with a category, in pixels of the photo: column from the left, row from the top"),
)  # fmt: skip
PUBLISHED = Layout(
    name="published",
    marker="sentinel2.csv",
    source=_CARD,
    entries=(
        *_IMAGES,
        *(
            Entry(name=f"{key}-scenes", path=path, dtype=TEXT, source=f"{_CARD}; {_PACKED}",
                  unit="projection, col, row, index and scene: the name of each image of a tile, which holds its date")
            for key, (path, _) in _SCENES.items()
        ),
    ),
)  # fmt: skip
TRAINING = Layout(
    name="training",
    marker="*_dict.json",
    source=_CARD,
    entries=(
        *_IMAGES,
        *(
            Entry(name=f"{split}-dict", path=f"{split}_dict.json", dtype=TEXT, is_optional=True,
                  unit="columns name, s1_dates, s2_dates, l8_dates; lists of YYYYMMDD")
            for split in ("train", "val", "test")
        ),
    ),
)  # fmt: skip


def list_samples(folder: DatasetFolder) -> Samples:
    """List all tiles with a photo or a map; the dates of their series are kept in columns, two bytes each."""
    if "train-dict" in folder.layout:
        return _list_dictionaries(folder)
    homes = [home for home in (folder.root / "naip", folder.root / "openstreetmap") if home.is_dir()]
    tables = [folder.path(f"{key}-scenes") for key in _SCENES]
    if not all(table.is_file() for table in tables):
        folder.read(*(f"{key}-scenes" for key in _SCENES))  # raises an error that names the missing table
    found = dict(cached("s2naip-scenes", [*homes, *tables], lambda: _gather(folder, _names(homes)), version=3))
    names = np.char.decode(found.pop("name"), "utf-8")
    blocks = []
    for name in names.tolist():
        zone, col, row = _place(folder, name)
        blocks.append(f"{zone}/{col // BLOCK_TILES}/{row // BLOCK_TILES}")
    return Samples(id=names, split=split_by_name(blocks, SHARES), **found)


def _names(homes: Sequence[Path]) -> list[str]:
    """Return the names of the tiles that have a photo or a map."""
    parts = {entry.name.rpartition(".") for home in homes for entry in os.scandir(home)}
    return sorted({stem for stem, _, suffix in parts if suffix in ("png", "geojson")})


def _place(folder: DatasetFolder, name: str) -> tuple[int, int, int]:
    """Return the projection (EPSG), column and row in a tile's name."""
    found = re.fullmatch(r"(\d{5})_(-?\d+)_(-?\d+)", name)
    if found is None:
        raise SourceError(folder.path("naip", id=name), "its name is not a place", "expected EPSG_COLUMN_ROW.png")
    return int(found[1]), int(found[2]), int(found[3])


def _gather(folder: DatasetFolder, names: Sequence[str]) -> Mapping[str, NDArray[Any]]:
    """Return the tiles' names, the packed dates of their series, and which Sentinel-2 images have an offset."""
    columns = {"name": np.array([name.encode() for name in names], bytes)}
    for key in _SCENES:
        days, raised = _read_scenes(folder, key, names)
        columns[key] = np.array([bytes(days[name]) for name in names], bytes)
        if key == "s2":
            columns["s2_raised"] = np.array([bytes(raised[name]) for name in names], bytes)
    return columns


def _read_scenes(
    folder: DatasetFolder, key: str, names: Sequence[str]
) -> tuple[dict[str, bytearray], dict[str, bytearray]]:
    """Return the packed days of each tile's images, and `1` per image of baseline 04.00 or later, else `0`."""
    path, place = folder.path(f"{key}-scenes"), _SCENES[key][1]
    days, raised = ({name: bytearray() for name in names} for _ in range(2))
    known: dict[str, bytes] = {}
    with path.open(newline="", encoding="utf-8") as file:
        for line in csv.DictReader(file):
            try:
                tile, scene = f"{line['projection']}_{line['col']}_{line['row']}", line["scene"]
                if tile not in days:
                    continue
                word = scene.split("_")[place][:8]
                if word not in known:
                    known[word] = _pack([word])
                is_next = int(line["index"]) * 2 == len(days[tile])
            except (KeyError, IndexError, ValueError, AttributeError, TypeError):
                raise SourceError(path, f"a row is {line}", f"expected {folder.layout[f'{key}-scenes'].unit}") from None
            if not is_next:
                raise SourceError(path, f"image {line['index']} of tile {tile} is out of order", "expected 0, 1, 2 …")
            baseline = re.search(r"_N(\d{4})_", scene)
            days[tile] += known[word]
            raised[tile] += b"1" if baseline and 400 <= int(baseline[1]) < 9999 else b"0"
    return days, raised


def _pack(words: Iterable[Any]) -> bytes:
    """Pack dates (YYYYMMDD) as days since 2000, two bytes each, low byte first; the last byte is never 0 after 2000."""
    texts = [str(word) for word in words]
    dates = np.array([f"{text[:4]}-{text[4:6]}-{text[6:8]}" for text in texts], "datetime64[D]")
    return bytes((dates - _FIRST_DAY).astype("<u2").tobytes())


def _unpack(packed: bytes) -> Dates:
    return _FIRST_DAY + np.frombuffer(packed, "<u2").astype(np.int64)


def _list_dictionaries(folder: DatasetFolder) -> Samples:
    """List the tiles of the published training code's lists, which give splits and dates."""
    rows = []
    for split in SHARES:
        if not folder.has(f"{split}-dict"):
            continue
        table = folder.read(f"{split}-dict")
        with folder.understood(f"{split}-dict"):
            columns = {name: list(column.values() if isinstance(column, dict) else column)
                       for name, column in table.items()}  # fmt: skip
            for name, *dates in zip(columns["name"], *(columns[f"{key}_dates"] for key in _SCENES), strict=True):
                packed = {key: _pack(words) for key, words in zip(_SCENES, dates, strict=True)}
                raised = bytes(48 + (_unpack(packed["s2"]) >= FIRST_RAISED).astype(np.uint8))
                rows.append({"id": name, "split": split, "s2_raised": raised, **packed})
    return Samples.of_rows(rows)


def read_sample(folder: DatasetFolder, row: Row, modalities: Sequence[str]) -> Tile:
    """Read one tile of 640 m; series without a scene are left out, and the map is drawn only where it is asked for."""
    zone, col, line = _place(folder, row["id"])
    seen = [_photo(folder, row) if key == "naip" else _series(folder, key, row) for key in modalities]
    targets = {"osm": _draw_map(folder, row)} if folder.wants("osm") else {}
    return tile_of(seen, modalities, TILE_M, targets=targets, geobox=_geobox(zone, col, line))


def _geobox(zone: int, col: int, row: int) -> Any:
    gsd_m = TILE_M / TILE_PX
    return GeoBox((TILE_PX, TILE_PX), Affine(gsd_m, 0, col * TILE_M, 0, -gsd_m, -row * TILE_M), f"EPSG:{zone}")


def _photo(folder: DatasetFolder, row: Row) -> Observation:
    values = folder.read("naip", **row)
    return folder.observe("naip", values, valid=values.any(axis=0, keepdims=True), **row)


def _series(folder: DatasetFolder, key: str, row: Row) -> Observation | None:
    """Return all bands of a series on the 10 m grid; None if the tile has no scene."""
    dates = _unpack(row[key])
    if not len(dates):
        return None
    values, valid = zip(*(_read_stack(folder, name, row, len(dates)) for name in _STACKS[key]), strict=True)
    entries = [folder.layout[name] for name in _STACKS[key]]
    stacked = np.concatenate(values, axis=1)
    if key == "s2" and b"1" in row["s2_raised"]:
        stacked -= 1000.0 * (np.frombuffer(row["s2_raised"], np.uint8) == ord("1"))[:, None, None, None]
    return Observation.of(
        MODALITIES[key], stacked, bands=[band for entry in entries for band in entry.bands],
        units=[str(entry.unit) for entry in entries for _ in entry.bands], dates=dates,
        valid=np.concatenate(valid, axis=1),
    )  # fmt: skip


def _read_stack(
    folder: DatasetFolder, name: str, row: Row, num_dates: int
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Read values (time band row col) and their valid mask, on the 10 m grid."""
    entry, stored = folder.layout[name], folder.read(name, **row)
    num_bands = len(entry.bands)
    if len(stored) != num_dates * num_bands:
        raise SourceError(folder.path(name, **row), f"it has {len(stored)} layers",
                          f"expected {num_dates} images of {num_bands} bands, one for each known date")  # fmt: skip
    values = stored.reshape(num_dates, num_bands, *stored.shape[1:]).astype(np.float32)
    valid = np.isfinite(values) & (values != entry.nodata)
    values[~valid] = 0
    return (values, valid) if values.shape[-1] == 64 else (_refine(values), _refine(valid.astype(np.float32)) > 0.999)


def _refine(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """Double the number of pixels per side, bilinear between pixel centres, as in the published loader."""
    import torch

    finer = torch.nn.functional.interpolate(torch.from_numpy(values), scale_factor=2.0, mode="bilinear")
    return np.asarray(finer.numpy())


def _draw_map(folder: DatasetFolder, row: Row) -> NDArray[np.int64]:
    """Draw OpenStreetMap (row col): areas, then lines 2 px wide, then points of radius 1 px; lower classes on top."""
    from shapely.errors import ShapelyError

    document = folder.read("osm", **row) or {"features": []}
    try:
        features = [feature for feature in document["features"] if feature["geometry"]]
        numbers = np.array([CATEGORIES.get(feature["properties"]["category"], 5) for feature in features], np.int64)
        return rasterise([feature["geometry"] for feature in features], numbers)
    except (KeyError, TypeError, ValueError, AttributeError, ShapelyError) as error:
        expected = f"expected {folder.layout['osm'].unit}"
        raise SourceError(folder.path("osm", **row), f"it cannot be understood ({error!r})", expected) from error


def rasterise(geometries: Sequence[Mapping[str, Any]], numbers: NDArray[np.int64]) -> NDArray[np.int64]:
    """Draw GeoJSON geometries in pixels as a map (row col); where they overlap, the lowest number wins.

    Lines are 2 px wide, points have a radius of 1 px (spec 4.5).
    """
    import shapely
    from rasterio.features import rasterize

    shapes = shapely.from_geojson([json.dumps(geometry) for geometry in geometries])
    parts, index = shapely.get_parts(shapes, return_index=True)
    is_thin = shapely.get_dimensions(parts) < 2
    parts = np.where(is_thin, shapely.buffer(parts, 1.0), parts)
    order = np.lexsort((~is_thin, numbers[index]))[::-1]  # later shapes are painted over earlier ones
    painted = [(parts[i], int(numbers[index[i]])) for i in order if not parts[i].is_empty]
    if not painted:
        return np.zeros((TILE_PX, TILE_PX), np.int64)
    return np.asarray(rasterize(painted, out_shape=(TILE_PX, TILE_PX), dtype="uint8"), np.int64)


def write_miniature(folder: DatasetFolder, world: World, num_tiles: int) -> None:
    """Write tiles of the generated world with short series, named by the place where such a tile would lie."""
    lists: dict[str, dict[str, list[Any]]] = {split: {} for split in SHARES}
    scenes: dict[str, list[dict[str, Any]]] = {key: [] for key in _SCENES}
    used: set[tuple[int, int]] = set()
    for index in range(num_tiles):
        tile = world.tile(index, extent_m=float(TILE_M), year=2020)
        box = tile.geobox(TILE_M / TILE_PX)
        col, row = int(box.affine.c // TILE_M), int(-box.affine.f // TILE_M)
        while (col, row) in used:
            col += 1
        used.add((col, row))
        name = f"32632_{col}_{row}"
        dates = _write_tile(folder, tile, name, _geobox(32632, col, row))
        table = lists[("train", "train", "train", "train", "val", "test")[index % 6]]
        for column, value in {"name": name, **{f"{key}_dates": found for key, found in dates.items()}}.items():
            table.setdefault(column, []).append(value)
        for key, names in _SCENE_NAMES.items():
            place = {"projection": 32632, "col": col, "row": row}
            scenes[key] += [{**place, "index": i, "scene": names.format(day)} for i, day in enumerate(dates[key])]
    documents = {f"{split}-dict": table for split, table in lists.items() if table}
    is_training = "train-dict" in folder.layout
    folder.write(documents if is_training else {f"{key}-scenes": rows for key, rows in scenes.items()})


_SCENE_NAMES = {
    "s2": "S2A_MSIL1C_{}T174911_N0209_R141_T13SDA_20200601T213347",
    "s1": "S1A_IW_GRDH_1SDV_{}T005023_20200601T005048_032820_03CD2A_9F3B",
    "l8": "LC08_L1TP_033033_{}_20200820_02_T1",
}


def _write_tile(folder: DatasetFolder, tile: WorldTile, name: str, geobox: Any) -> dict[str, list[str]]:
    """Write the images and the map of a tile, and return the dates of its series as text."""
    folder.write({"naip": folder.store("naip", tile.observe("naip"))}, id=name)
    dates = {}
    for key, count in (("s2", 4), ("s1", 2), ("l8", 2)):
        days = tile.dates(key, count)
        dates[key] = [str(day).replace("-", "") for day in days]
        for entry in (folder.layout[entry] for entry in _STACKS[key]):
            gsd_m = TILE_M / int(entry.shape[1])
            seen = tile.observe(key, dates=days, gsd_m=gsd_m)
            stored = folder.store(entry.name, _digital_numbers(seen) if key == "l8" else seen)
            folder.write({entry.name: stored.reshape(-1, *stored.shape[2:])}, geobox.zoom_out(8 * gsd_m / 10), id=name)
    folder.write({"osm": _features(tile)}, id=name)
    return dates


def _digital_numbers(seen: Observation) -> Observation:
    """Turn reflectance and kelvin into digital numbers like Landsat level 1; the thermal scale is made up."""
    is_thermal = np.array([unit == "K" for unit in seen.units])[:, None, None]
    values = np.where(is_thermal, 300.0 * (seen.values - 200.0), 5.0 * seen.values + 5000.0)
    return replace(seen, values=np.where(seen.valid, values, 0).astype(np.float32), units=("DN",) * len(seen.units))


def _features(tile: WorldTile) -> dict[str, Any]:
    """Return the land cover of the world as areas of some categories, with a road and a power tower."""
    from rasterio.features import shapes

    names = ("river", "leisure", "parking", None, "building", "power_plant")
    cover = tile.raster("land_cover", 40.0).astype(np.int16)
    areas = [(shape, names[int(value) % len(names)]) for shape, value in shapes(cover, transform=Affine.scale(32))]
    areas.append(({"type": "LineString", "coordinates": [[0, 100], [512, 300]]}, "road"))
    areas.append(({"type": "Point", "coordinates": [400, 50]}, "power_tower"))
    features = [{"type": "Feature", "geometry": shape, "properties": {"category": name}}
                for shape, name in areas if name is not None]  # fmt: skip
    return {"type": "FeatureCollection", "features": features}


DATASET = DatasetRecord(
    name="s2naip_urban",
    title="S2NAIP-URBAN",
    about="515,270 urban tiles of the United States seen from the air and by three satellites",
    modalities=("naip", "l8", "s2", "s1"),
    tile_m=float(TILE_M),
    patch_sizes_m=(40.0, 80.0, 160.0),
    targets=(Target(name="osm", level="pixel", kind="class", classes=OSM_CLASSES, gsd_m=TILE_M / TILE_PX,
                    about="what OpenStreetMap shows, drawn from its features when asked for"),),
    split_rule=f"the lists of the published training were not distributed; without them, squares of {BLOCK_TILES} x "
    f"{BLOCK_TILES} tiles go to the splits by a seeded hash ({', '.join(f'{s} {x:.0%}' for s, x in SHARES.items())})",
    date_rule="real, from the names of the scenes",
    licence="Apache-2.0 (imagery: public domain and Copernicus; map: ODbL)",
    size="515,270 tiles",
    homepage="https://huggingface.co/datasets/allenai/s2-naip",
    citation="Wolters, Bastani and Kembhavi 2023; Astruc et al. 2025",
    layouts=(PUBLISHED, TRAINING),
    list_samples=list_samples,
    read_sample=read_sample,
    write_miniature=write_miniature,
    notes=(
        "The map is drawn only where its target is asked for; the published loader draws it for every sample.",
        "The offset that Sentinel-2 has since processing baseline 04.00 is subtracted, by the names of scenes; lists "
        f"of dates do not say the baseline, so there it is subtracted from {FIRST_RAISED} on.",
        "Values above 32,767 are kept; the published loader wraps them.",
        "Bands of 20 m are resampled to 10 m (bilinear); a missing pixel invalidates all pixels that it affects.",
        "B8A is taken as the last of the six 20 m bands of Sentinel-2, as the authors pack them.",
        "Landsat comes as digital numbers; without the sun's height they are not reflectance.",
    ),
)  # fmt: skip
