"""Options for areas, shared by the commands."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import ClassVar

from anysat.errors import RecordError
from anysat.geo.write.outputs import ALSO_HELP, STORE, Result, formats_of

_ADDRESS = re.compile(r"inproc://\S+|(\w+://)?[^/\s]+:\d+/?")


@dataclass(frozen=True, kw_only=True)
class AreaOptions:
    """Place, time, and resources of this machine or of others."""

    area: str | None = None
    """Ground to use: WEST,SOUTH,EAST,NORTH in degrees, such as -5,50,-4,51, or a file of polygons (FILE:LAYER if it has
    several layers). Null uses all ground that the inputs share: as one tile if it has at most 4096 patches, and 262,144
    sub-patches per modality, else as an area, window by window. A small tile is also treated as an area if this option,
    or any from here to --scheduler, differs from its default. Embeddings are then written as Zarr; add --also .tif for
    GeoTIFF."""
    dates: str | None = None
    """Days of the series to use, as FIRST/LAST, such as 2020-01-01/2020-12-31; null uses all."""
    period: str = "all"
    """Time span that each embedding covers: all, month, season, year, or your own as FIRST/LAST,FIRST/LAST,…."""
    window: int | None = None
    """Side, in patches, of the windows in which the patches of an area see each other. Null is 16, or the side of the
    training tiles if `anysat predict` answers once per window."""
    overlap: float = 0.25
    """Share of a window's side that neighbouring windows have in common; there, their results are blended."""
    also: str | None = field(default=None, metadata={"help": ALSO_HELP})
    """Formats to write besides a store."""
    memory_gb: float = 4.0
    """Memory limit for an area, in gigabytes; the sizes of shards and blocks are chosen to fit."""
    readers: int = 2
    """Number of threads that read ahead."""
    scheduler: str | None = None
    """Address of a Dask scheduler whose workers see the same disk, such as tcp://10.0.0.1:8786; null computes on this
    machine."""

    made: ClassVar[Result] = Result.AREA
    """Kind of result."""

    def __post_init__(self) -> None:
        formats_of(self.also, self.made)
        if self.readers < 1:
            raise RecordError("--readers", self.readers, "one or more")
        if self.scheduler is not None and not _ADDRESS.fullmatch(self.scheduler):
            raise RecordError("--scheduler", self.scheduler, "a Dask scheduler's address, e.g. tcp://10.0.0.1:8786")
        if (self.scheduler or "").startswith("inproc:") and str(os.getpid()) not in str(self.scheduler).split("/"):
            raise RecordError(
                "--scheduler", self.scheduler, "one that other processes can reach, e.g. tcp://10.0.0.1:8786"
            )
        if not self.memory_gb > 0:
            raise RecordError("--memory-gb", self.memory_gb, "a positive number of gigabytes")
        if (self.window is not None and self.window < 1) or not 0 <= self.overlap < 1:
            raise RecordError("--window, --overlap", (self.window, self.overlap), "1 or more; 0 to less than 1")

    @property
    def formats(self) -> list[str]:
        """Suffixes of the formats to write besides a store."""
        return formats_of(self.also, self.made)

    @property
    def asked_of_area(self) -> list[str]:
        """The given options that only apply to areas, as typed."""
        given = (one.name for one in fields(AreaOptions) if getattr(self, one.name) != one.default)
        return [f"--{name.replace('_', '-')}" for name in given]

    @property
    def is_area(self) -> bool:
        """Whether an option is given that only applies to areas."""
        return bool(self.asked_of_area)

    def told_as_area(self, out: str) -> str:
        """Return why the ground is treated as an area, and how to get the output of a tile."""
        asked = self.asked_of_area
        why = f"because of {', '.join(asked)}" if asked else "because it is too large for a tile"
        is_alone = Path(out).suffix in ("", STORE) and ".tif" not in self.formats
        return f"treated as an area {why}" + ("; add --also .tif for GeoTIFF" if is_alone else "")
