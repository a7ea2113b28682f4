"""The imagery of the demo: Sentinel-1 and Sentinel-2 pairs out of the package bigearthnet-common.

The package ships two small archives of BigEarthNet patches; it is only looked up, never imported.
"""

from __future__ import annotations

import importlib.util
import json
import tarfile
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from anysat.errors import SourceError
from anysat.modalities import MODALITIES, band_key

if TYPE_CHECKING:
    from anysat.batch import Tile

PACKAGE = "bigearthnet_common"
INSTALL = "pip install --no-deps bigearthnet-common==2.8.0"
ARCHIVES = {"s1": "BigEarthNet-S1-Example.tar.bz2", "s2": "BigEarthNet-S2-Example.tar.bz2"}
METADATA = "_labels_metadata.json"


@dataclass(frozen=True, kw_only=True, eq=False)
class Pair:
    """One place, seen by both sensors."""

    tile: Tile
    labels: tuple[str, ...]
    """CORINE land-cover classes of the place."""
    latitude_deg: float
    """Of the centre, WGS 84."""
    longitude_deg: float


def find_archives() -> dict[str, Path]:
    """Where the two archives of the installed package lie, by modality key.

    Raises:
        SourceError: the package is not installed, or is a version without the archives.
    """
    try:
        spec = importlib.util.find_spec(PACKAGE)
    except ValueError:  # the name is blocked in sys.modules
        spec = None
    if spec is None or not spec.submodule_search_locations:
        raise SourceError("package bigearthnet-common", "not installed; it ships the demo's imagery", INSTALL)
    folder = Path(next(iter(spec.submodule_search_locations)))
    found = {key: folder / name for key, name in ARCHIVES.items()}
    for path in found.values():
        if not path.is_file():
            raise SourceError(path, "the installed package lacks this archive", INSTALL)
    return found


def read_pairs(archives: dict[str, Path]) -> list[Pair]:
    """Every co-located pair of the two archives, in the order of their names.

    Raises:
        SourceError: an archive or a raster cannot be read, or a pair does not share its ground.
    """
    with tempfile.TemporaryDirectory(prefix="anysat-demo-") as folder:
        for path in archives.values():
            _extract(path, Path(folder))
        patches = {path.name.removesuffix(METADATA): path for path in Path(folder).rglob(f"*{METADATA}")}
        pairs = []
        for name, path in sorted(patches.items()):
            partner = patches.get(_read_json(path).get("corresponding_s2_patch", ""))
            if partner is not None:
                pairs.append(_read_pair(name, path, partner))
    if not pairs:
        raise SourceError(archives["s1"], "holds no patch with a partner in the other archive", INSTALL)
    return pairs


def _extract(archive: Path, folder: Path) -> None:
    """Unpack regular files only; the `data` filter refuses paths that lead out of the folder."""
    try:
        with tarfile.open(archive) as tar:
            tar.extractall(folder, [member for member in tar if member.isfile()], filter="data")
    except (tarfile.TarError, OSError, EOFError) as error:
        raise SourceError(archive, f"cannot be unpacked ({error})", INSTALL) from error


def _read_pair(name: str, s1_path: Path, s2_path: Path) -> Pair:
    from anysat.batch import Tile
    from anysat.observation import Observation

    s1, s2 = _read_json(s1_path), _read_json(s2_path)
    polarisations, radar_place = _read_bands(s1_path.parent, "s1")
    bands, place = _read_bands(s2_path.parent, "s2")
    if radar_place != place:
        raise SourceError(name, f"lies at {radar_place}, its Sentinel-2 partner at {place}", INSTALL)
    observations = {
        "s2": Observation.of(
            MODALITIES["s2"],
            np.stack(list(bands.values()))[None],
            bands=list(bands),
            dates=[s2["acquisition_date"][:10]],
            nodata=0,
        ),
        "s1": Observation.of(
            MODALITIES["s1"],
            np.stack(list(polarisations.values()))[None],
            bands=list(polarisations),
            units="dB",
            dates=[s1["acquisition_time"][:10]],
        ),
    }
    tile = Tile(observations=observations, id=s2_path.parent.name, dataset="bigearthnet")
    longitude, latitude = _centre_deg(*place)
    return Pair(tile=tile, labels=tuple(s2["labels"]), latitude_deg=latitude, longitude_deg=longitude)


def _read_bands(folder: Path, key: str) -> tuple[dict[str, NDArray[Any]], tuple[str, tuple[float, ...]]]:
    """The bands a modality knows, at its pixel size, and the place: projection and bounds (x y x y)."""
    import rasterio
    from rasterio.enums import Resampling
    from rasterio.errors import RasterioError

    modality = MODALITIES[key]
    wanted = {name for band in modality.bands if band.ratio_of is None for name in band.match_keys}
    bands: dict[str, NDArray[Any]] = {}
    places = set()
    for path in sorted(folder.glob("*.tif")):
        name = path.stem.rpartition("_")[2]
        if band_key(name) not in wanted:
            continue
        try:
            with rasterio.open(path) as source:
                west, south, east, north = source.bounds
                shape = (round((north - south) / modality.gsd_m), round((east - west) / modality.gsd_m))
                bands[name] = source.read(1, out_shape=shape, resampling=Resampling.bilinear)
                places.add((source.crs.to_string(), (west, south, east, north)))
        except RasterioError as error:
            raise SourceError(path.name, f"cannot be read ({error})", INSTALL) from error
    if len(places) != 1:
        raise SourceError(folder.name, f"its bands lie in {len(places)} places instead of one", INSTALL)
    return bands, places.pop()


def _centre_deg(crs: str, bounds: tuple[float, ...]) -> tuple[float, float]:
    """Longitude and latitude of the middle of some bounds."""
    from rasterio.warp import transform

    west, south, east, north = bounds
    longitudes, latitudes = transform(crs, "EPSG:4326", [(west + east) / 2], [(south + north) / 2])
    return longitudes[0], latitudes[0]


def _read_json(path: Path) -> dict[str, Any]:
    return dict(json.loads(path.read_text()))


def crop(pair: Pair, side_m: float) -> Pair:
    """The square of this side in the middle of a pair."""
    observations = {}
    for key, observation in pair.tile.observations.items():
        side_px = round(side_m / observation.modality.gsd_m)
        top, left = ((length - side_px) // 2 for length in observation.shape_px)
        window = (..., slice(top, top + side_px), slice(left, left + side_px))
        observations[key] = replace(observation, values=observation.values[window], valid=observation.valid[window])
    return replace(pair, tile=replace(pair.tile, observations=observations))
