"""Six real places seen by Sentinel-2 and Sentinel-1: BigEarthNet examples that a Python package ships.

The package bigearthnet-common holds them in two small archives. It is only located, never imported.
"""

from __future__ import annotations

import importlib.util
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from anysat.batch import Tile
from anysat.data.base import DatasetRecord, Row, Samples
from anysat.data.layout import TEXT, DatasetFolder, Entry, Layout
from anysat.data.world import World
from anysat.errors import SourceError
from anysat.modalities import MODALITIES
from anysat.observation import Observation

PACKAGE = "bigearthnet_common"
INSTALL = "pip install --no-deps bigearthnet-common==2.8.0"
ARCHIVES = {"s1": "BigEarthNet-S1-Example.tar.bz2", "s2": "BigEarthNet-S2-Example.tar.bz2"}
METADATA = "_labels_metadata.json"
TILE_M, GSD_M, SIDE_PX, VAL_EVERY = 1200.0, 10, 120, 6
_GSD_M = {"B02": 10, "B03": 10, "B04": 10, "B05": 20, "B06": 20, "B07": 20, "B08": 10, "B8A": 20, "B11": 20, "B12": 20}
_S1, _S2 = (f"BigEarthNet-{key}-Example/{{{key.lower()}}}/{{{key.lower()}}}" for key in ("S1", "S2"))

PUBLISHED = Layout(
    name="published",
    marker=f"BigEarthNet-S1-Example/*/*{METADATA}",
    source="files of the archives; guide of BigEarthNet-MM",
    entries=(
        *(Entry(name=name, path=path + METADATA, key=key, dtype=TEXT, unit=unit)
          for name, path, key, unit in (
              ("partner", _S1, "corresponding_s2_patch", "name of the Sentinel-2 patch of the same ground"),
              ("s1-time", _S1, "acquisition_time", "date and time"),
              ("s2-time", _S2, "acquisition_date", "date and time"))),
        *(Entry(name=f"s2-{band}", path=f"{_S2}_{band}.tif", dtype="uint16",
                shape=(1, round(TILE_M) // gsd_m, round(TILE_M) // gsd_m), modality="s2", bands=(band,),
                unit="reflectance_1e4", nodata=0, about=f"L2A, reflectance times 10 000, {gsd_m} m; 0 is no data")
          for band, gsd_m in _GSD_M.items()),
        *(Entry(name=f"s1-{band}", path=f"{_S1}_{band}.tif", dtype="float32", shape=(1, SIDE_PX, SIDE_PX),
                modality="s1", bands=(band,), unit="dB", about="GRD, decibels, on the grid of Sentinel-2")
          for band in ("VV", "VH")),
    ),
    checked_against="six real pairs",
)  # fmt: skip


def list_samples(folder: DatasetFolder) -> Samples:
    """List the pairs in the order of their Sentinel-1 names; every sixth is for validation."""
    rows = []
    for place, found in enumerate(folder.find("partner", "s1-VV")):
        partner = str(folder.read("partner", s1=found["s1"]))
        split = "val" if place % VAL_EVERY == VAL_EVERY - 1 else "train"
        rows.append({"id": partner, "split": split, "s1": found["s1"], "s2": partner})
    return Samples.of_rows(rows)


def read_sample(folder: DatasetFolder, row: Row, modalities: Sequence[str]) -> Tile:
    """Read one pair of 1200 m, or one image of it."""
    return Tile.of(*(_observe(folder, key, row) for key in modalities), geobox=folder.geobox("s2-B02", **row))


def _observe(folder: DatasetFolder, key: str, row: Row) -> Observation:
    """Return one date on the 10 m grid; a pixel of 20 m becomes four of 10 m."""
    entries = [entry for entry in folder.layout.entries if entry.modality == key]
    planes = []
    for plane in folder.read(*(entry.name for entry in entries), **row):
        times = SIDE_PX // plane.shape[-1]
        planes.append(plane.repeat(times, axis=-2).repeat(times, axis=-1))
    date = np.datetime64(str(folder.read(f"{key}-time", **row))[:10], "D")
    bands = [entry.bands[0] for entry in entries]
    return Observation.of(MODALITIES[key], np.stack(planes, axis=1), bands=bands, units=str(entries[0].unit),
                          dates=[date], nodata=entries[0].nodata)  # fmt: skip


def write_miniature(folder: DatasetFolder, world: World, num_tiles: int) -> None:
    """Write tiles of the generated world, each a pair of images."""
    for index in range(num_tiles):
        tile = world.tile(index, extent_m=TILE_M, year=2017)
        looks = {key: tile.observe(key, count=1) for key in ("s2", "s1")}
        day = {key: str(np.asarray(seen.dates)[0]) for key, seen in looks.items()}
        names = {"s1": f"S1A_IW_GRDH_1SDV_{day['s1'].replace('-', '')}T165043_32TNT_{index}_{world.seed}",
                 "s2": f"S2A_MSIL2A_{day['s2'].replace('-', '')}T101031_{index}_{world.seed}"}  # fmt: skip
        for key, seen in looks.items():
            for entry in (entry for entry in folder.layout.entries if entry.modality == key):
                gsd_m = _GSD_M.get(entry.bands[0], GSD_M)
                stored = folder.store(entry.name, seen)[0, :, :: gsd_m // GSD_M, :: gsd_m // GSD_M]
                folder.write({entry.name: stored}, geobox=tile.geobox(gsd_m), **names)
        folder.write({"partner": names["s2"], "s1-time": f"{day['s1']}T16:50:43"}, **names)
        folder.write({"s2-time": f"{day['s2']} 10:10:31"}, **names)


def find_archives() -> dict[str, Path]:
    """Return the paths of the two archives of the installed package, by modality key.

    Raises:
        SourceError: the package is not installed, or this version lacks the archives.
    """
    try:
        spec = importlib.util.find_spec(PACKAGE)
    except ValueError:  # the name is blocked in sys.modules
        spec = None
    if spec is None or not spec.submodule_search_locations:
        raise SourceError("package bigearthnet-common", "not installed; it ships the real imagery", INSTALL)
    folder = Path(next(iter(spec.submodule_search_locations)))
    found = {key: folder / name for key, name in ARCHIVES.items()}
    for path in found.values():
        if not path.is_file():
            raise SourceError(path, "the installed package lacks this archive", INSTALL)
    return found


def write_pairs(root: Path, archives: Mapping[str, Path] | None = None) -> Path:
    """Unpack the pairs into a folder for `open_dataset`; a second call writes the same files again.

    Unpacks regular files only, and refuses paths that lead out of the folder.

    Args:
        root: The folder, created if needed.
        archives: Paths by modality key; by default those of `find_archives`.

    Raises:
        SourceError: the package is not installed, or an archive cannot be unpacked.
    """
    for archive in (find_archives() if archives is None else archives).values():
        try:
            with tarfile.open(archive) as tar:
                tar.extractall(root, [member for member in tar if member.isfile()], filter="data")
        except (tarfile.TarError, OSError, EOFError) as error:
            raise SourceError(archive, f"cannot be unpacked ({error})", INSTALL) from error
    return root


DATASET = DatasetRecord(
    name="bigearthnet_pairs",
    title="BigEarthNet example pairs",
    about="Six places in Austria, Ireland, Finland and Portugal, each in one image of Sentinel-2 and one of Sentinel-1",
    modalities=("s2", "s1"),
    tile_m=TILE_M,
    patch_sizes_m=(10.0, 20.0, 30.0, 40.0, 60.0, 120.0),
    targets=(),
    split_rule="every sixth pair in the order of names is validation, the others are training; there is no test split",
    date_rule="real, from the metadata file of each patch",
    licence="CDLA-Permissive-1.0",
    size="6 tiles, 1.8 MB",
    homepage="https://pypi.org/project/bigearthnet-common/2.8.0/",
    citation="Sumbul et al. 2021 (BigEarthNet-MM)",
    layouts=(PUBLISHED,),
    list_samples=list_samples,
    read_sample=read_sample,
    write_miniature=write_miniature,
    fetch=write_pairs,
    notes=(
        f"`{INSTALL}` gets the archives; `anysat.data.datasets.bigearthnet_pairs.write_pairs(FOLDER)` unpacks them.",
        "Bands of 20 m are resampled to 10 m by repeating pixels; B01 and B09 (60 m) belong to no modality.",
        "Six tiles are too few to train a useful model; they show that real files work.",
    ),
)  # fmt: skip
