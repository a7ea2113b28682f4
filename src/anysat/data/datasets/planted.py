"""PLANTED: planted tree species of the world seen by five satellites (GeoPlex; spec 4.4, appendix X1).

Reads the TFRecord shards as released, without TensorFlow, or a folder of arrays per sample.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from anysat.batch import Tile
from anysat.data.absent import tile_of
from anysat.data.base import DatasetRecord, Row, Samples, Target
from anysat.data.cache import cached, watched
from anysat.data.files.tfrecord_files import (
    Feature,
    index_records,
    numbers_of,
    read_feature_table,
    read_record,
    read_shard_lengths,
    read_texts,
    require_all_shards,
    text_of,
    write_records,
)
from anysat.data.layout import TEXT, DatasetFolder, Entry, Layout
from anysat.data.world import FACTORS, World, WorldTile
from anysat.errors import SourceError
from anysat.observation import Observation

SPECIES = (
    "Elaeis guineensis", "Pinus taeda", "Pinus rigida", "Pinus koraiensis", "Pinus densiflora", "Abies sachalinensis",
    "Pinus elliottii", "Shorea robusta", "Castanea crenata", "Pseudotsuga menziesii", "Eucalyptus globulus",
    "Pinus radiata", "Robinia pseudoacacia", "Pinus thunbergii", "Pinus echinata", "Thea sinensis", "Betula pendula",
    "Hevea brasiliensis", "Picea glehnii", "Quercus acutissima", "Eucalyptus nitens", "Cocos nucifera",
    "Anacardium occidentale", "Zelkova serrata", "Acer pictum", "Prunus serrulata", "Prunus dulcis", "Picea jezoensis",
    "Quercus variabilis", "Fraxinus rhynchophylla", "Ginkgo biloba", "Pasania edulis", "Dendropanax morbiferus",
    "Machilus thunbergii", "Cryptomeria japonica", "Acacia melanoxylon", "Malus pumila", "Picea mariana",
    "Cornus controversa", "Theobroma cacao",
)  # fmt: skip
"""Classes in the order of their numbers (spec, appendix X1)."""
NO_SPECIES = -1
"""Class number of a sample whose species is missing or not among the classes."""
TILE_M = 120.0
SPLITS = {"train": "train", "validation": "val", "test": "test"}  # by the word in the shards' names
_SHARD = "planted_public-{split}.tfrecord-{shard}-of-{shards}"
_SPEC = "spec 4.4"
_GEE = f"{_SPEC}; unit by the conventions of Earth Engine, from which the data come, not stated in the release"
_ANGLE = "a third stored channel, the incidence angle in degrees, is left out"
_ORDER = "axes (time row col band)"
_S2 = ("B2", "B3", "B4", "B5", "B6", "B7", "B8", "B8A", "B11", "B12")


class _Sensor(NamedTuple):
    dates: int
    side_px: int
    channels: int
    """Number of stored channels; those after the bands are not read."""
    bands: tuple[str, ...]
    unit: str
    about: str


_SENSORS = {
    "s2": _Sensor(8, 12, 10, _S2, "reflectance_1e4", "Sentinel-2, reflectance times 10 000"),
    "s1": _Sensor(8, 12, 3, ("VV", "VH"), "dB", f"Sentinel-1 GRD in decibels; {_ANGLE}"),
    "l7": _Sensor(20, 4, 6, ("B1", "B2", "B3", "B4", "B5", "B7"), "reflectance_1e4",
                  "Landsat-7, taken as reflectance times 10 000: check the values before mixing it with another "
                  "source"),
    "alos": _Sensor(4, 4, 3, ("HH", "HV"), "DN", f"yearly PALSAR-2 mosaics, amplitude as digital number; {_ANGLE}"),
    "modis": _Sensor(60, 1, 7, ("B1", "B2", "B3", "B4", "B5", "B6", "B7"), "reflectance_1e4",
                     "MODIS, reflectance times 10 000, one pixel for the whole tile"),
}  # fmt: skip


def _series(path: str, keys: tuple[str, str, str]) -> Iterator[Entry]:
    """Yield the entries of values, mask and times of every sensor; `{m}` in paths and keys stands for the modality."""
    for m, sensor in _SENSORS.items():
        found = [(part.replace("{m}", m), path.replace("{m}", m).replace("{part}", suffix))
                 for part, suffix in zip(keys, ("", "_mask", "_timestamp"), strict=True)]  # fmt: skip
        length: int | str = sensor.dates if path == _SHARD else "T"
        shape = (length, sensor.side_px, sensor.side_px, sensor.channels)
        yield Entry(name=m, path=found[0][1], key=found[0][0], dtype="float32", shape=shape, modality=m,
                    bands=sensor.bands, unit=sensor.unit, is_optional=True, about=f"{sensor.about}; {_ORDER}",
                    source=_GEE)  # fmt: skip
        yield Entry(name=f"{m}-mask", path=found[1][1], key=found[1][0], dtype="int64", shape=shape, is_optional=True,
                    unit="1 where the value is valid, 0 where not", source=f"{_SPEC}; meaning by the published reader",
                    about=_ORDER)  # fmt: skip
        yield Entry(name=f"{m}-timestamps", path=found[2][1], key=found[2][0], dtype="int64", shape=(length,),
                    unit="milliseconds since 1970-01-01 UTC", is_optional=True,
                    about="0 or less: no image")  # fmt: skip


PUBLISHED = Layout(
    name="published",
    marker="planted_public-*.tfrecord-*-of-*",
    source=_SPEC,
    entries=(
        Entry(name="features", path="features.json", also=("../features.json",), dtype=TEXT,
              about="type and shape of every feature"),
        Entry(name="dataset-info", path="dataset_info.json", also=("../dataset_info.json",), dtype=TEXT,
              about="number of records in each shard", is_optional=True),
        Entry(name="species", path=_SHARD, key="species", dtype=TEXT, unit="Latin name, one of 40"),
        Entry(name="id", path=_SHARD, key="id", dtype=TEXT, is_optional=True,
              about="not read: samples are named by split, shard and position, which needs no record to be opened"),
        *_series(_SHARD, ("{m}", "{m}_mask", "{m}_timestamps")),
    ),
)  # fmt: skip
TRAINING = Layout(
    name="training",
    marker="*/labels2.json",
    also=("labels2.json",),
    source=_SPEC,
    entries=(
        Entry(name="labels", path="{split}/labels2.json", also=("labels2.json",), dtype=TEXT,
              unit="number of the species by sample", about="one for each split, or one for all"),
        *_series("{split}/{id}/{id}_{m}{part}.npz", ("arr_0", "arr_0", "arr_0")),
    ),
)  # fmt: skip


def list_samples(folder: DatasetFolder) -> Samples:
    """List the records of the shards from their headers, or the folders of samples."""
    return _list_folders(folder) if "labels" in folder.layout else _list_records(folder)


def _list_records(folder: DatasetFolder) -> Samples:
    shards = [shard for shard in folder.find("species") if shard["split"] in SPLITS]
    paths = [folder.path("species", **shard) for shard in shards]
    require_all_shards(paths)
    found = cached("planted-records", paths, lambda: _index(paths))
    counts = found["counts"]
    if folder.has("dataset-info"):
        _check_counts(folder, shards, counts, paths)
    splits = [SPLITS[shard["split"]] for shard in shards]
    numbers = np.array([(int(shard["shard"]), int(shard["shards"])) for shard in shards], np.int32).reshape(-1, 2)
    ids = [f"{split}-{number}-{place}" for split, number, count in zip(splits, numbers[:, 0], counts, strict=True)
           for place in range(count)]  # fmt: skip
    split_of = np.repeat(np.array(splits, str), counts)
    position = np.zeros(len(split_of), np.int32)
    for split in set(splits):
        position[split_of == split] = np.arange(np.count_nonzero(split_of == split))
    shard, total = np.repeat(numbers, counts, axis=0).T
    return Samples(id=np.array(ids, str), split=split_of, position=position, shard=shard, shards=total,
                   at=found["at"], length=found["length"].astype(np.int32))  # fmt: skip


def _index(paths: Sequence[Path]) -> Mapping[str, NDArray[Any]]:
    places = [index_records(path) for path in watched(paths, "Records of PLANTED")]
    at, length = np.concatenate(places).T if places else np.zeros((2, 0), np.int64)
    return {"counts": np.array([len(part) for part in places], np.int64), "at": at, "length": length}


def _check_counts(
    folder: DatasetFolder, shards: Sequence[Mapping[str, str]], counts: NDArray[np.int64], paths: Sequence[Path]
) -> None:
    """Refuse a shard that is cut off between two records."""
    known = read_shard_lengths(folder.read("dataset-info"), folder.path("dataset-info"))
    for shard, count, path in zip(shards, counts.tolist(), paths, strict=True):
        lengths = known.get(shard["split"])
        if lengths and len(lengths) != int(shard["shards"]):
            raise SourceError(
                path, f"it is one of {int(shard['shards'])} shards", f"{len(lengths)} by dataset_info.json"
            )
        if lengths and lengths[int(shard["shard"])] != count:
            raise SourceError(path, f"it has {count} records", f"{lengths[int(shard['shard'])]} by dataset_info.json")


def _list_folders(folder: DatasetFolder) -> Samples:
    tables: dict[Path, Any] = {}
    ids, splits, species = list[str](), list[str](), list[int]()
    for split in ("train", "val", "test"):
        home, path = folder.root / split, folder.path("labels", split=split)
        names = sorted(entry.name for entry in os.scandir(home) if entry.is_dir()) if home.is_dir() else []
        if names and path not in tables:
            tables[path] = folder.read("labels", split=split)
        ids, splits = ids + names, splits + [split] * len(names)
        with folder.understood("labels", split=split):
            species += [_number_of(tables[path], name, path) for name in names]
    return Samples(id=np.array(ids, str), split=np.array(splits, str), species=np.array(species, np.int64))


def read_sample(folder: DatasetFolder, row: Row, modalities: Sequence[str]) -> Tile:
    """Read one tile of 120 m; sensors without an image of it are left out."""
    if "labels" in folder.layout:
        species = row["species"]
        arrays = {key: tuple(folder.read(part, **row) for part in _names(key))
                  for key in modalities if folder.has(key, **row)}  # fmt: skip
    else:
        species, arrays = _read_example(folder, row, modalities)
    seen = (_observe(folder, key, row, *found) for key, found in arrays.items())
    return tile_of(seen, modalities, TILE_M, targets={"species": np.array(species, np.int64)})


def _names(key: str) -> tuple[str, str, str]:
    return key, f"{key}-mask", f"{key}-timestamps"


def _fields(row: Row) -> dict[str, str]:
    """Return the fields that make the path of a record's shard."""
    split = next(word for word, split in SPLITS.items() if split == row["split"])
    return {"split": split, "shard": f"{row['shard']:05d}", "shards": f"{row['shards']:05d}"}


def _read_example(
    folder: DatasetFolder, row: Row, modalities: Sequence[str]
) -> tuple[int, dict[str, tuple[NDArray[Any], ...]]]:
    """Return the class and the arrays of a record."""
    path = folder.path("species", **_fields(row))
    where = f"{path}, record at byte {row['at']}"
    table = read_feature_table(folder.read_kept("features"), folder.path("features"))
    found = read_record(path, row["at"], row["length"])
    arrays = {}
    for modality in modalities:
        entries = [folder.layout[name] for name in _names(modality)]
        if str(entries[0].key) in found:
            arrays[modality] = tuple(_numbers(found, entry, table, where) for entry in entries)
    return _class_of(text_of(found.get("species"), "species", where)), arrays


def _numbers(found: Mapping[str, Any], entry: Entry, table: Mapping[str, Feature], where: str) -> NDArray[Any]:
    name = str(entry.key)
    for home, names in (("it", found), ("features.json", table)):
        if name not in names:
            raise SourceError(where, f"{home} has no {name!r}", f"expected {entry.described}")
    array = numbers_of(found[name], table[name], name, where)
    if array.shape[1:] != entry.shape[1:]:
        raise SourceError(where, f"{name} has shape {array.shape}", f"expected {entry.described}")
    return array


def _number_of(table: Any, sample: str, path: Path) -> int:
    if sample not in table:
        raise SourceError(path, f"it has no class for sample {sample!r}, which has a folder")
    if str(stored := table[sample]).isdigit() and int(stored) < len(SPECIES):
        return int(stored)
    raise SourceError(path, f"a class is {stored!r}", f"expected a number from 0 to {len(SPECIES) - 1}")


def _class_of(name: str) -> int:
    """Return the class number of a species, whether its words are joined by spaces or underscores."""
    plain = name.replace("_", " ").strip().capitalize()
    return SPECIES.index(plain) if plain in SPECIES else NO_SPECIES


def _observe(
    folder: DatasetFolder, key: str, row: Row, values: NDArray[Any], mask: NDArray[Any], times: NDArray[Any]
) -> Observation | None:
    """Return the observation of the dates that have an image; None if there is none."""
    fields = row if "labels" in folder.layout else _fields(row)
    if not len(values) == len(mask) == len(times):
        raise SourceError(folder.path(key, **fields), f"{len(values)} images, {len(mask)} masks, {len(times)} times")
    kept = times > 0
    if not kept.any():
        return None
    bands = slice(0, len(folder.layout[key].bands))
    values, mask = (np.moveaxis(part[kept], 3, 1)[:, bands] for part in (values, mask))
    dates = times[kept].astype(np.int64).astype("datetime64[ms]").astype("datetime64[D]")
    return folder.observe(key, values, dates=dates, valid=mask != 0, **fields)


def list_labels(folder: DatasetFolder, samples: Samples) -> NDArray[np.int64]:
    """Return the class of every sample; in shards, read every record once, show progress and cache the result."""
    if "species" in samples.columns:
        return samples.columns["species"]
    labels = np.zeros(len(samples), np.int64)
    every = _list_records(folder)
    for split in np.unique(samples.columns["split"]):
        chosen = samples.columns["split"] == split
        labels[chosen] = _species_of(folder, every.of(split))[samples.columns["position"][chosen]]
    return labels


def _species_of(folder: DatasetFolder, samples: Samples) -> NDArray[np.int64]:
    """Return the class of every record of one split, in order."""
    numbers, first = np.unique(samples.columns["shard"], return_index=True)
    paths = [folder.path("species", **_fields(samples.row(index))) for index in first.tolist()]
    places = np.stack([samples.columns["at"], samples.columns["length"]], axis=1)

    def gather() -> Mapping[str, NDArray[Any]]:
        names: list[int] = []
        shards = list(zip(numbers, paths, strict=True))
        for number, path in watched(shards, "Species of PLANTED"):
            texts = read_texts(path, places[samples.columns["shard"] == number], "species")
            names += [_class_of(text) for text in texts]
        return {"species": np.array(names, np.int64)}

    return cached("planted-species", paths, gather)["species"]


def write_miniature(folder: DatasetFolder, world: World, num_tiles: int) -> None:
    """Write tiles of the generated world; of six, one is for validation, one for testing; two lack an ALOS image."""
    tiles: dict[str, dict[str, dict[str, Any]]] = {split: {} for split in SPLITS}
    for index in range(num_tiles):
        tile = world.tile(index, extent_m=120.0, year=2017)
        arrays = {key: _shown(folder, tile, key) for key in _SENSORS}
        if index % 3 == 1:  # the last image of ALOS is missing
            values, mask, times = arrays["alos"]
            values[-1], mask[-1], times[-1] = 0, 0, 0
        cover = tile.raster("species", 10.0)
        number = int(cover[cover.shape[0] // 2, cover.shape[1] // 2])
        contents: dict[str, Any] = {"species": (7 * number + index // len(FACTORS["species"])) % len(SPECIES)}
        contents |= {name: array for key in _SENSORS for name, array in zip(_names(key), arrays[key], strict=True)}
        split = {4: "validation", 5: "test"}.get(index % 6, "train")
        tiles[split][f"{world.seed}{index:06d}"] = contents
    (_write_folders if "labels" in folder.layout else _write_shards)(folder, tiles)


def _shown(folder: DatasetFolder, tile: WorldTile, key: str) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
    """Values, mask and times as stored: bands last, the incidence angle behind the polarisations."""
    sensor = _SENSORS[key]
    seen = tile.observe(key, count=sensor.dates)
    values = np.moveaxis(folder.store(key, seen), 1, 3)
    mask = np.moveaxis(seen.valid[:, : len(sensor.bands)], 1, 3).astype(np.int64)
    extra = ((0, 0), (0, 0), (0, 0), (0, sensor.channels - len(sensor.bands)))
    values = np.pad(np.nan_to_num(values), extra, constant_values=38.5)
    times = np.asarray(seen.dates).astype("datetime64[ms]").astype(np.int64) + 23 * 3_600_000
    return values, np.pad(mask, extra, constant_values=1), times


def _write_shards(folder: DatasetFolder, tiles: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> None:
    """Write two shards of training samples, one of each other split, and both documents of TensorFlow Datasets."""
    splits = []
    for split, samples in tiles.items():
        every = [{str(folder.layout[name].key): value for name, value in contents.items()}
                 | {"id": sample, "species": SPECIES[contents["species"]]}
                 for sample, contents in samples.items()]  # fmt: skip
        shards = [every[0::2], every[1::2]] if split == "train" else [every]
        for number, records in enumerate(shards):
            fields = {"split": split, "shard": f"{number:05d}", "shards": f"{len(shards):05d}"}
            write_records(folder.path("species", **fields), records)
        splits.append({"name": split, "shardLengths": [str(len(records)) for records in shards]})
    described: dict[str, Any] = {"species": {"text": {}}, "id": {"text": {}}}
    for entry in (folder.layout[name] for key in _SENSORS for name in _names(key)):
        lengths = {"dimensions": [str(length) for length in entry.shape]}
        described[str(entry.key)] = {"tensor": {"shape": lengths, "dtype": entry.dtype, "encoding": "none"}}
    info = {"name": "planted_public", "splits": splits, "version": "1.0.1"}
    folder.write({"features": {"featuresDict": {"features": described}}, "dataset-info": info})


def _write_folders(folder: DatasetFolder, tiles: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> None:
    for split, samples in tiles.items():
        for sample, contents in samples.items():
            folder.write({name: contents[name] for key in _SENSORS for name in _names(key)}, split=SPLITS[split],
                         id=sample)  # fmt: skip
        labels = {sample: contents["species"] for sample, contents in samples.items()}
        folder.write({"labels": labels}, split=SPLITS[split])


DATASET = DatasetRecord(
    name="planted",
    title="PLANTED",
    about="Planted tree species at 1,346,662 places in 41 countries",
    modalities=("s2", "s1", "l7", "alos", "modis"),
    tile_m=TILE_M,
    patch_sizes_m=(30.0, 60.0),
    targets=(Target(name="species", level="tile", kind="class", classes=SPECIES, ignore=NO_SPECIES,
                    about="planted species; records without one of the 40 are ignored"),),
    split_rule="official",
    date_rule="real, from time stamps in milliseconds, as days of UTC",
    licence="as stated where the shards are offered; not checked here",
    size="1,346,662 tiles, by their shapes about 120 GB",
    homepage="https://arxiv.org/abs/2406.18554",
    citation="Pazos-Outón et al. 2024",
    layouts=(PUBLISHED, TRAINING),
    list_samples=list_samples,
    read_sample=read_sample,
    list_labels=list_labels,
    write_miniature=write_miniature,
    notes=(
        "Days are those of UTC; the published loader takes the time zone of the machine.",
        "Radar ratios are made of the stored values; the stored incidence angle is left out.",
        "Images without a time are dropped; a sensor without an image is absent.",
        "Samples are named by split, shard and position, so that a million can be listed without opening a record.",
        "Balanced sampling needs the classes of all samples: they take one pass over all shards, and are then cached.",
        "A record without a species, or with one that is not among the 40, has the class -1, which is ignored.",
        "Units follow the conventions of Earth Engine; the release does not state them.",
    ),
)  # fmt: skip
