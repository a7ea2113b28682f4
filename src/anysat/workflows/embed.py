"""Tile-sized files of any sensors to georeferenced embeddings: what can be asked for."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from anysat.errors import RecordError

if TYPE_CHECKING:
    from rich.text import Text

FIRST = "first"
SUFFIXES = (".zarr", ".tif")
"""Formats a name without suffix stands for."""


@dataclass(frozen=True, kw_only=True)
class EmbedConfig:
    """Embed co-located files of any sensors: georeferenced patch and dense embeddings."""

    inputs: list[str] = field(
        metadata={
            "positional": "MODALITY=PATH",
            "help": "Inputs: a modality key and its GeoTIFF, folder of dated GeoTIFFs, NetCDF or Zarr cube, or "
            "TreeSatAI-TS HDF5 file, such as s2=cube.nc s1=radar/ aerial=photo.tif. PATH@2020-06-01 gives an "
            "undated image its date, PATH::NAME picks a series of an HDF5 file or a variable of a cube.",
        }
    )
    out: str
    """Output: NAME.zarr or NAME.tif; a NAME without suffix makes both. A picture NAME.png is written beside it."""
    patch_size_m: float
    """Side of a patch in metres; a multiple of 10 m for most sensors. The tile is cropped to whole patches."""
    dense: str | None = FIRST
    """Modality whose sub-patches get an embedding each; `first` is the first input, null none."""
    weights: str = "g-astruc/AnySat"
    """Weights: hub id, published .pth, .safetensors file or folder."""
    statistics: str | None = None
    """What values are standardised with: a JSON file, a preset such as treesatai_ts, or from-data. Null takes those
    kept with the weights, else from-data, which makes embeddings of different runs incomparable."""
    dataset: str | None = None
    """Name under which statistics are looked up, where a file keeps those of several datasets."""
    units: list[str] = field(default_factory=list)
    """Units of the inputs where files do not tell, as [s1=linear, l8.B10=K]; they count before what a file says."""
    modalities: str | None = None
    """YAML file with your own modality records; the weights must have been made with them."""
    device: str = "cpu"
    """Device to compute on: cpu, cuda, cuda:1, mps."""
    overwrite: bool = False
    """Replace outputs that exist."""

    def __post_init__(self) -> None:
        if Path(self.out).suffix not in ("", *SUFFIXES) or not Path(self.out).name:
            raise RecordError("--out", self.out, "a name ending in .zarr or .tif, or without suffix for both")
        if not (math.isfinite(self.patch_size_m) and self.patch_size_m > 0):
            raise RecordError("--patch-size-m", self.patch_size_m, "a positive number of metres")


def embed(config: EmbedConfig) -> Text:
    """Read, encode and write; returns a report of what was done.

    Raises:
        MissingFileError, SourceError, UnknownNameError: an input that cannot be used.
        PatchSizeError: the patch does not fit the sensors or the ground.
        WeightsError, StatisticsError, EmptyTileError: the model cannot take it.
        WriteError: an output exists or cannot be written; nothing is left behind.
    """
    from anysat.workflows.embed_tile import embed_tile

    return embed_tile(config)
