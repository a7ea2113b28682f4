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

from anysat.errors import SourceError
from anysat.modalities import MODALITIES

if TYPE_CHECKING:
    from anysat.batch import Tile

PACKAGE = "bigearthnet_common"
INSTALL = "pip install --no-deps bigearthnet-common==2.8.0"
ARCHIVES = {"s1": "BigEarthNet-S1-Example.tar.bz2", "s2": "BigEarthNet-S2-Example.tar.bz2"}
METADATA = "_labels_metadata.json"
GRID_M = 40.0
"""The pairs are cut to whole squares of this side; they are 1200 m wide."""


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
        for _, path in sorted(patches.items()):
            partner = patches.get(_read_json(path).get("corresponding_s2_patch", ""))
            if partner is not None:
                pairs.append(_read_pair(path, partner))
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


def _read_pair(s1_path: Path, s2_path: Path) -> Pair:
    from anysat.batch import Tile
    from anysat.geo.grid import centre_deg, plan_grid
    from anysat.geo.sources import InputPath, open_source

    sources = {
        key: open_source(InputPath(key=key, path=str(path.parent)), MODALITIES[key])
        for key, path in (("s2", s2_path), ("s1", s1_path))
    }
    grid = plan_grid([source.footprint for source in sources.values()], GRID_M)
    observations = {key: source.observe(grid.of(source.modality))[0] for key, source in sources.items()}
    tile = Tile(observations=observations, id=s2_path.parent.name, dataset="bigearthnet", geobox=grid.geobox)
    longitude, latitude = centre_deg(grid.geobox)
    labels = tuple(_read_json(s2_path)["labels"])
    return Pair(tile=tile, labels=labels, latitude_deg=latitude, longitude_deg=longitude)


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
    return replace(pair, tile=replace(pair.tile, observations=observations, geobox=None))
