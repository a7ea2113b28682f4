"""How much disk space an area needs, estimated from above: without compression, as if all of its ground held data."""

from __future__ import annotations

import shutil
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from anysat.areas.sizes import Load
from anysat.geo.area import Area
from anysat.geo.stores.layout import Layout

_OVERVIEWS = 4 / 3
"""Size of a raster with its overviews, relative to one without."""
_SHARD_ROWS = 3
"""Rows of shards whose tokens are on disk at once."""


class DiskSpace(NamedTuple):
    """Bytes on disk."""

    stored: float
    """Bytes of the store."""
    tokens: float
    """Bytes of tokens between the two steps of the work."""
    raw: float
    """Bytes of the largest plain GeoTIFF, of which a cloud-optimised one is made; 0 if none is."""
    exported: float
    """Bytes of all GeoTIFFs."""

    @classmethod
    def of(
        cls, area: Area, layouts: Sequence[Layout], num_periods: int, suffixes: Collection[str],
        load: Load | None = None,
    ) -> DiskSpace:  # fmt: skip
        """Compute what an area needs.

        Args:
            area: The area.
            layouts: Groups of the store.
            num_periods: Number of periods.
            suffixes: Formats that are exported.
            load: The amount of data per patch; None for maps, which have no tokens.
        """
        rows = min(area.geobox.height, _SHARD_ROWS * area.shard)
        tokens = 0.0 if load is None else rows * area.geobox.width * load.tokens_bytes
        raw = [_raster_bytes(layout) for layout in layouts] if ".tif" in suffixes else []
        stored = num_periods * sum(_stored_bytes(layout) for layout in layouts)
        return cls(stored, tokens, max(raw, default=0.0), num_periods * sum(raw))

    @property
    def running(self) -> float:
        """Bytes besides the results while a command runs. Tokens are gone before the first GeoTIFF is written."""
        return max(self.tokens, self.raw)

    @property
    def most(self) -> float:
        """Bytes of everything at once."""
        return self.stored + max(self.tokens, self.raw + self.exported)


def told_short(area: Area, space: DiskSpace, output: Path) -> str:
    """Return a warning if the disk may be too small; empty if it is large enough.

    It is no error, because ground without data takes no space, and compression may save much.
    """
    share = float(area.inside(area.span, (area.shard, area.shard)).mean())  # shards outside take none
    free = shutil.disk_usage(next(path for path in output.parents if path.exists())).free
    if space.most * share <= free:
        return ""
    return (
        f"this may need up to {space.most * share / 1e9:.2g} GB in {output.parent} before compression, but "
        f"{free / 1e9:.2g} GB are free; if the disk fills up, what is finished is kept"
    )


def _stored_bytes(layout: Layout) -> float:
    """Return the bytes of one period of a group: numbers, whether they are valid, and lengths of vectors."""
    beside = 1 + (4 if "norm" in layout.arrays else 0)
    return float(layout.geobox.height * layout.geobox.width) * ((layout.dim or 1) * layout.dtype.itemsize + beside)


def _raster_bytes(layout: Layout) -> float:
    """Return the bytes of one period of a group as a plain GeoTIFF, which has no float16."""
    size = 4 if layout.dtype == np.float16 else layout.dtype.itemsize
    return float(layout.geobox.height * layout.geobox.width) * (layout.dim or 1) * size * _OVERVIEWS
