"""Rasters and cubes of any sensors, of a tile or of any area, to georeferenced embeddings: what can be asked for."""

from __future__ import annotations

import gc
import math
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from anysat.errors import LargeGroundError, RecordError, UnknownNameError
from anysat.model.precision import PRECISIONS
from anysat.workflows.area_options import AREA_SUFFIXES, AreaOptions

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rich.text import Text

    from anysat.workflows.answer import Answer

FIRST = "first"
TILE_SUFFIXES = (".zarr", ".tif")
"""Formats of a tile; a name without suffix stands for both."""
PLACES = ("removed", "kept")
KEEPS = ("series", "features")
GIVEN_ANEW = frozenset(
    {"inputs", "update", "dates", "period", "also", "device", "memory_gb", "readers", "scheduler", "modalities"}
)
"""Options of an update; all others are those of the store."""
STORES = ("float32", "float16", "int8-power", "int8-scale")


@dataclass(frozen=True, kw_only=True)
class EmbedConfig(AreaOptions):
    """Embed co-located files of any sensors: georeferenced patch and dense embeddings, of a tile or of any area."""

    inputs: list[str] = field(
        default_factory=list,
        metadata={
            "positional": "MODALITY=PATH",
            "optional": True,
            "help": "Inputs: a modality key and its GeoTIFF, folder of dated GeoTIFFs, NetCDF or Zarr cube, or "
            "TreeSatAI-TS HDF5 file, such as s2=cube.nc s1=radar/ aerial=photo.tif; or one YAML file that describes "
            "all inputs, among them STAC catalogs (an API needs --area). PATH@2020-06-01 gives an "
            "undated image its date, PATH::NAME picks a series of an HDF5 file or a variable of a cube.",
        },
    )
    out: str = ""
    """Output: NAME.zarr, NAME.tif or NAME.parquet (as an area); a NAME without suffix makes the first two of a tile,
    and the first of an area. A picture NAME.png is written beside it. Needed, unless a store is updated."""
    patch_size_m: float = 0.0
    """Side of a patch in metres, needed, too; a multiple of 10 m for most sensors. A tile is cropped to whole
    patches."""
    dense: str | None = FIRST
    """Modality whose sub-patches get an embedding each; `first` is the first input of a tile and none of an area, null
    none."""
    store: str = "float32"
    """How an area's embeddings are stored: float32, float16, int8-power (directions, lengths beside them) or int8-scale
    (a step per dimension)."""
    places: str = "removed"
    """What a patch's place in its window adds to its embedding, whatever is there: `removed` from an area of several
    windows, in which it would draw a grid, or `kept`, as the encoder gives it."""
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
    """Device to compute on: cpu, cuda, cuda:1, mps, or auto, a graphics card where there is one."""
    precision: str = "auto"
    """In what matrices are multiplied: float32, bf16, or auto, bf16 where the device has units for it."""
    keep: str | None = None
    """What is kept in NAME.series beside an area's NAME.zarr, so that later dates can be added: `series`, sums over
    dates where they are enough and pixels where they are not (s2), or `features`, in place of pixels what each date
    shows, much larger and sooner updated. Its size is told first. Null for nothing."""
    update: str | None = None
    """Store, NAME.zarr made with `--keep`, to which the dates of the inputs that it lacks are added; earlier ones are
    not read again. Options are those it was made with, inputs that are not given those of the last
    time."""
    overwrite: bool = False
    """Replace outputs that exist."""

    def __post_init__(self) -> None:
        if self.update is None and not (self.out and self.inputs):
            missing = "--out" if self.inputs else "MODALITY=PATH"
            raise RecordError(missing, None, "a value, unless --update says which store is updated")
        if self.keep is not None and self.keep not in KEEPS:
            raise UnknownNameError("--keep", self.keep, KEEPS)
        if self.keep is not None and (Path(self.out).suffix not in ("", ".zarr") or self.precision == "bf16"):
            raise RecordError("--keep", self.keep, "--out NAME.zarr and float32, which is what can be gone on with")
        if self.update is not None and not (self.out and self.patch_size_m):  # these come from what is kept beside it
            return
        allowed = AREA_SUFFIXES if self.is_area else TILE_SUFFIXES
        if Path(self.out).suffix not in ("", *allowed) or not Path(self.out).name:
            raise RecordError("--out", self.out, f"a name ending in {', '.join(allowed)}, or without suffix")
        if not (math.isfinite(self.patch_size_m) and self.patch_size_m > 0):
            raise RecordError("--patch-size-m", self.patch_size_m, "a positive number of metres")
        if self.store not in STORES:
            raise UnknownNameError("store", self.store, STORES)
        if self.precision not in PRECISIONS:
            raise UnknownNameError("--precision", self.precision, PRECISIONS)
        if self.places not in PLACES:
            raise UnknownNameError("--places", self.places, PLACES)
        super().__post_init__()
        self.check_also(self.out)

    @property
    def weights_file(self) -> list[str]:
        """The weights, where they are a file or folder and no name."""
        from anysat.model.checkpoint import SHIPPED

        return [self.weights] if self.weights not in SHIPPED and Path(self.weights).exists() else []

    @property
    def asked_of_area(self) -> list[str]:
        """Options given that only an area has, as they are typed."""
        own = {"--store": self.store != "float32", "--places": self.places != "removed",
               "--keep": self.keep is not None, "--update": self.update is not None,
               f"--out NAME{Path(self.out).suffix}": Path(self.out).suffix not in ("", *TILE_SUFFIXES)}  # fmt: skip
        return [*super().asked_of_area, *(name for name, is_given in own.items() if is_given)]


def embed(config: EmbedConfig) -> Text | Answer:
    """Read, encode and write; returns a report of what was done.

    Raises:
        MissingFileError, SourceError, UnknownNameError: an input that cannot be used.
        PatchSizeError: the patch does not fit the sensors or the ground.
        WeightsError, StatisticsError, EmptyTileError: the model cannot take it.
        WriteError: an output exists or cannot be written; nothing is left behind of a tile, and of an area what is
            finished is kept, and gone on with by the same command.
    """
    if not config.is_area:  # imported where it is used: a small tile is there in the time that areas take to import
        with _uncollected(), suppress(LargeGroundError):
            from anysat.workflows.embed_tile import embed_tile

            return embed_tile(config)
    from anysat.workflows.embed_area import embed_area

    return embed_area(config)


@contextmanager
def _uncollected() -> Iterator[None]:
    """No garbage is looked for: a small tile leaves little, and the search among all its imports takes long."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()
