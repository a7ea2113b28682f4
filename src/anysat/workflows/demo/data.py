"""The imagery of the demo: Sentinel-1 and Sentinel-2 pairs from the package bigearthnet-common."""

from __future__ import annotations

import json
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from anysat.batch import Tile
from anysat.data.datasets.bigearthnet_pairs import INSTALL, METADATA, write_pairs
from anysat.errors import SourceError
from anysat.modalities import MODALITIES

if TYPE_CHECKING:
    from anysat.batch import Tile

GRID_M = 40.0
"""The pairs, 1200 m wide, are cut to whole squares of this side in metres."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Pair:
    """One place, observed by both sensors."""

    tile: Tile
    labels: tuple[str, ...]
    """CORINE land-cover classes of the place."""


def read_pairs(archives: dict[str, Path]) -> list[Pair]:
    """Return every co-located pair of the two archives, ordered by name.

    Raises:
        SourceError: An archive or a raster cannot be read, or the images of a pair do not overlap.
    """
    with tempfile.TemporaryDirectory(prefix="anysat-demo-") as folder:
        write_pairs(Path(folder), archives)
        patches = {path.name.removesuffix(METADATA): path for path in Path(folder).rglob(f"*{METADATA}")}
        pairs = []
        for _, path in sorted(patches.items()):
            partner = patches.get(_read_json(path).get("corresponding_s2_patch", ""))
            if partner is not None:
                pairs.append(_read_pair(path, partner))
    if not pairs:
        raise SourceError(archives["s1"], "holds no patch with a partner in the other archive", INSTALL)
    return pairs


def _read_pair(s1_path: Path, s2_path: Path) -> Pair:
    from anysat.geo.grid import plan_grid
    from anysat.geo.read.sources import InputPath, open_source

    sources = {
        key: open_source(InputPath(key=key, path=str(path.parent)), MODALITIES[key])
        for key, path in {"s2": s2_path, "s1": s1_path}.items()
    }
    grid = plan_grid([source.footprint for source in sources.values()], GRID_M)
    observations = {key: source.observe(grid.of(source.modality))[0] for key, source in sources.items()}
    tile = Tile(observations=observations, id=s2_path.parent.name, dataset="bigearthnet", geobox=grid.geobox)
    return Pair(tile=tile, labels=tuple(_read_json(s2_path)["labels"]))


def _read_json(path: Path) -> dict[str, Any]:
    return dict(json.loads(path.read_text()))


def crop(pair: Pair, side_m: float) -> Pair:
    """Return the central square of a pair with this side in metres."""
    from anysat.data import transforms

    seen = pair.tile.observations["s2"]
    top_m, left_m = ((length * seen.modality.gsd_m - side_m) // 20 * 10 for length in seen.shape_px)
    return replace(pair, tile=transforms.crop(pair.tile, top_m, left_m, side_m))
