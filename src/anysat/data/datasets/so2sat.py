"""So2Sat LCZ42: local climate zones in one image each of Sentinel-1 and Sentinel-2 (paper table C; spec 4.12)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from anysat.batch import Tile
from anysat.data.base import DatasetRecord, Row, Samples, Target
from anysat.data.layout import DatasetFolder, Entry, Layout
from anysat.data.world import FACTORS, World, WorldTile
from anysat.errors import SourceError
from anysat.geo.read.layers import reading
from anysat.observation import Observation

ZONES = (
    "compact high-rise", "compact mid-rise", "compact low-rise", "open high-rise", "open mid-rise", "open low-rise",
    "lightweight low-rise", "large low-rise", "sparsely built", "heavy industry", "dense trees", "scattered trees",
    "bush or scrub", "low plants", "bare rock or paved", "bare soil or sand", "water",
)  # fmt: skip
DATE = "2017-07-01"
"""Date given to every image: the files hold none. The images are of 2016 and 2017, of any season."""
_PARTS = ("training", "validation", "testing")
_SIDE = 32
_LABELS_AT_ONCE = 65_536
_SAR = (
    "VH real", "VH imaginary", "VV real", "VV imaginary", "VH", "VV", "covariance real", "covariance imaginary",
)  # fmt: skip

PUBLISHED = Layout(
    name="published",
    marker="training.h5",
    also=("validation.h5", "testing.h5"),
    source="file description of the authors (github.com/zhu-xlab/So2Sat-LCZ42); spec 4.12",
    entries=(
        Entry(name="s1", path="{part}.h5", key="sen1", dtype="float64", shape=("N", _SIDE, _SIDE, len(_SAR)),
              modality="s1", bands=_SAR, unit="linear",
              about="intensities VH and VV after a refined Lee filter, linear power; the complex values before it and "
              "the covariance of the two are not read"),
        Entry(name="s2", path="{part}.h5", key="sen2", dtype="float64", shape=("N", _SIDE, _SIDE, 10), modality="s2",
              bands=("B2", "B3", "B4", "B5", "B6", "B7", "B8", "B8A", "B11", "B12"), unit="reflectance"),
        Entry(name="labels", path="{part}.h5", key="label", dtype="float64", shape=("N", len(ZONES)),
              unit="1 at the zone, 0 elsewhere"),
    ),
    checked_against="layout fixtures of two samples per file (random 0 and 1 in 8-bit integers, not real values)",
)  # fmt: skip


def list_samples(folder: DatasetFolder) -> Samples:
    """List one sample per row of each of the three files that exist."""
    paths = {part: folder.path("labels", part=part) for part in _PARTS}
    counts = [_count(path) if path.exists() else 0 for path in paths.values()]
    rows = np.concatenate([np.arange(count) for count in counts])
    parts = np.repeat(_PARTS, counts)
    ids = np.array([f"{part}-{row:06d}" for part, row in zip(parts, rows, strict=True)])
    return Samples(id=ids, split=parts, row=rows)


def _count(path: Path) -> int:
    import h5py

    with reading(path), h5py.File(path) as file:
        return len(file["label"])


def read_sample(folder: DatasetFolder, row: Row, modalities: Sequence[str]) -> Tile:
    """Read one tile of 320 m; nothing but its row is read."""
    part, number = row["split"], int(row["row"])
    *stored, label = folder.read(*modalities, "labels", rows=number, part=part)
    observations: list[Observation] = [
        folder.observe(key, np.moveaxis(values, -1, 0)[None], dates=[DATE], part=part)
        for key, values in zip(modalities, stored, strict=True)
    ]
    return Tile.of(*observations, targets={"lcz": _zones(label, folder.path("labels", part=part), number)})


def list_labels(folder: DatasetFolder, samples: Samples) -> NDArray[np.int64]:
    """Return the zone of every sample; labels are read in batches of tens of thousands."""
    found = np.empty(len(samples), np.int64)
    for part in _PARTS:
        wanted = np.flatnonzero(samples.columns["split"] == part)
        rows = samples.columns["row"][wanted]
        for start in range(0, int(rows.max(initial=-1)) + 1, _LABELS_AT_ONCE):
            here = (rows >= start) & (rows < start + _LABELS_AT_ONCE)
            labels = folder.read("labels", rows=slice(start, start + _LABELS_AT_ONCE), part=part)
            path = folder.path("labels", part=part)
            found[wanted[here]] = _zones(labels[rows[here] - start], path, start)
    return found


def _zones(labels: NDArray[Any], path: Path, row: int) -> NDArray[np.int64]:
    """Return the zone numbers of one or many labels."""
    if not (np.count_nonzero(labels, axis=-1) == 1).all():
        raise SourceError(path, f"a label from row {row} on is not one zone", "expected a single 1 among zeros")
    return np.asarray(labels.argmax(axis=-1), np.int64)


def write_miniature(folder: DatasetFolder, world: World, num_tiles: int) -> None:
    """Write tiles of the generated world to the three files in turn; the zone follows from the land cover."""
    tiles = [world.tile(index, extent_m=320.0, year=2017) for index in range(num_tiles)]
    for place, part in enumerate(_PARTS):
        mine = tiles[place :: len(_PARTS)]
        contents: dict[str, Any] = {}
        for key in ("s1", "s2"):
            date = np.array([DATE], "datetime64[D]")
            seen = [tile.observe(key, dates=date, keep_clouds=True) for tile in mine]
            stored = [np.empty((0, len(folder.layout[key].bands), 32, 32)), *(folder.store(key, part) for part in seen)]
            contents[key] = np.moveaxis(np.nan_to_num(np.concatenate(stored)), 1, -1)
        contents["labels"] = np.eye(len(ZONES))[np.array([_zone(tile) for tile in mine], int)]
        folder.write(contents, part=part)


def _zone(tile: WorldTile) -> int:
    """Derive a zone from the two commonest land covers."""
    first, second = np.argsort(-tile.fractions("land_cover"), kind="stable")[:2]
    return int(first * len(FACTORS["land_cover"]) + second) % len(ZONES)


DATASET = DatasetRecord(
    name="so2sat",
    title="So2Sat LCZ42",
    about="Local climate zones of 400,673 places in 52 cities of the world",
    modalities=("s2", "s1"),
    tile_m=320.0,
    patch_sizes_m=(10.0, 80.0),
    targets=(Target(name="lcz", level="tile", kind="class", classes=ZONES, about="local climate zone"),),
    splits={"train": ("training",), "val": ("validation",), "test": ("testing",)},
    split_rule="official files: 42 cities to train; the western halves of 10 other cities to validate, the eastern "
    "halves of the same 10 to test",
    date_rule=f"the files have none; {DATE} is used for all, so a model does not know the season",
    has_real_dates=False,
    licence="CC-BY-4.0",
    size="400,673 tiles, 56 GB",
    homepage="https://mediatum.ub.tum.de/1483140",
    citation="Zhu et al. 2020, So2Sat LCZ42",
    layouts=(PUBLISHED,),
    list_samples=list_samples,
    read_sample=read_sample,
    list_labels=list_labels,
    write_miniature=write_miniature,
    notes=(
        "Sentinel-1 is the filtered intensities, linear power; the published loader takes the real parts of the "
        "complex values, which are noise around zero.",
        f"The published loader gives every image day 0; here it is the day of {DATE}.",
        "Rows and columns are as stored; the published loader swaps them.",
        "Rows are read one by one: no file is loaded whole.",
        "Validation and test share their cities, so test scores are slightly optimistic after selection on validation.",
        "The paper's table C gives patches of 10 m, the published configuration 80 m.",
    ),
)  # fmt: skip
