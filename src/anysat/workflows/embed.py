"""The command that embeds rasters and cubes of any sensors, for a tile or an area: its options and its run."""

from __future__ import annotations

import gc
import math
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from anysat.errors import LargeGroundError, RecordError, UnknownNameError
from anysat.geo.outputs import STORE, Result, check_output, named, suffixes
from anysat.model.precision import PRECISIONS
from anysat.workflows.area_options import AreaOptions

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rich.text import Text

    from anysat.workflows.answer import Answer

FIRST = "first"
PLACES = ("removed", "kept")
KEEPS = ("series", "features")
GIVEN_ANEW = frozenset(
    {"inputs", "update", "dates", "period", "also", "device", "memory_gb", "readers", "scheduler", "modalities"}
)
"""Options that an update takes. All others are those of the store."""
STORES = ("float32", "float16", "int8-power", "int8-scale")


@dataclass(frozen=True, kw_only=True)
class EmbedConfig(AreaOptions):
    """Embed georeferenced files of any sensors over the same ground, as a tile or as an area of any size."""

    inputs: list[str] = field(
        default_factory=list,
        metadata={
            "positional": "MODALITY=PATH",
            "optional": True,
            "help": "Inputs as modality key and path, such as s2=cube.nc s1=radar/ aerial=photo.tif. A path is a "
            "GeoTIFF, a folder of dated GeoTIFFs, a NetCDF or Zarr cube, or a TreeSatAI-TS HDF5 file. PATH@2020-06-01 "
            "gives an undated image its date; PATH::NAME selects a series of an HDF5 file or a variable of a cube. Or "
            "one YAML file that describes all inputs, including STAC catalogs (a STAC API needs --area).",
        },
    )
    out: str = field(
        default="",
        metadata={
            "help": f"Output: {named(Result.TILE)} for a tile, {named(Result.AREA)} for an area. A NAME without suffix "
            f"writes all of a tile's formats, and NAME{STORE} for an area. A picture, NAME.png, is always written as "
            "well. Required, except with --update."
        },
    )
    """Output, whose suffix decides the format."""
    patch_size_m: float = 0.0
    """Side of a patch in metres; for most sensors a multiple of 10 m. A tile is cropped to whole patches. Required,
    except with --update."""
    dense: str | None = FIRST
    """Modality for which every sub-patch gets an embedding. `first` is the first input for a tile, and none for an
    area; null is none."""
    store: str = "float32"
    """How the embeddings of an area are stored: float32, float16, int8-power (directions, with lengths stored
    separately) or int8-scale (one step per dimension)."""
    places: str = "removed"
    """The position of a patch in its window leaves a constant trace in its embedding, which draws a grid over an area
    of several windows. `removed` takes it out there; `kept` leaves embeddings as the encoder gives them."""
    weights: str = "g-astruc/AnySat"
    """Weights: a hub id, a published .pth, a .safetensors file or a folder. For a fine-tuning run, the
    description of its training files also applies to inputs that do not say otherwise."""
    statistics: str | None = None
    """Statistics that standardise the values: a JSON file, a preset such as treesatai_ts, or from-data. Null uses those
    stored with the weights, or from-data if there are none; embeddings of different runs then cannot be compared."""
    dataset: str | None = None
    """Name of the dataset whose statistics to use, if the file holds those of several."""
    units: list[str] = field(default_factory=list)
    """Units of inputs whose files do not state them, such as [s1=linear, l8.B10=K]; they take precedence over what a
    file says."""
    modalities: str | None = None
    """YAML file with your own modality records; the weights must have been trained with them."""
    device: str = "cpu"
    """Device to compute on: cpu, cuda, cuda:1, mps, or auto, which uses a GPU if there is one."""
    precision: str = "auto"
    """Precision of matrix products: float32, bf16, or auto, which uses bf16 if the device has units for it."""
    keep: str | None = None
    """What to keep in NAME.series beside an area's NAME.zarr, so that new dates can be added later. `series` keeps sums
    over dates where these are enough, and pixels where they are not (s2). `features` keeps, instead of those pixels,
    what each date shows: much larger, but faster to update. The size is printed first. Null keeps nothing."""
    update: str | None = None
    """Store NAME.zarr, made with --keep, to which to add the dates of the inputs that it lacks. Earlier dates are not
    read again. Options are those the store was made with; inputs that you do not give are those of the last run."""
    overwrite: bool = False
    """Replace existing outputs."""
    typed: ClassVar[frozenset[str] | None] = None
    """Names of the options given on the command line, even at their default. None takes those not at their default."""

    def __post_init__(self) -> None:
        if self.update is None and not (self.out and self.inputs):
            missing = "--out" if self.inputs else "MODALITY=PATH"
            raise RecordError(missing, None, "a value, unless --update names a store")
        if self.keep is not None and self.keep not in KEEPS:
            raise UnknownNameError("--keep", self.keep, KEEPS)
        if self.keep is not None and (Path(self.out).suffix not in ("", STORE) or self.precision == "bf16"):
            raise RecordError("--keep", self.keep, "--out NAME.zarr and precision float32, which updates need")
        if self.update is not None and not (self.out and self.patch_size_m):  # these come from the earlier run
            return
        check_output("--out", self.out, *(() if self.is_area else (Result.TILE,)), Result.AREA, may_lack=True)
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
        """The weights if they are a file or folder, not a name."""
        from anysat.model.checkpoint import SHIPPED

        return [self.weights] if self.weights not in SHIPPED and Path(self.weights).exists() else []

    @property
    def asked_of_area(self) -> list[str]:
        """The given options that only apply to areas, as typed."""
        suffix, of_tile = Path(self.out).suffix, ("", *suffixes(Result.TILE))
        own = {"--store": self.store != "float32", "--places": self.places != "removed",
               "--keep": self.keep is not None, "--update": self.update is not None,
               f"--out NAME{suffix}": suffix in suffixes(Result.AREA) and suffix not in of_tile}  # fmt: skip
        return [*super().asked_of_area, *(name for name, is_given in own.items() if is_given)]


def embed(config: EmbedConfig) -> Text | Answer:
    """Read, encode and write, and return a report.

    Raises:
        MissingFileError, SourceError, UnknownNameError: An input cannot be used.
        PatchSizeError: The patch size does not fit the sensors or the ground.
        WeightsError, StatisticsError, EmptyTileError: The weights, the statistics or the values cannot be used.
        WriteError: An output exists or cannot be written. For a tile nothing is left behind; for an area the finished
            part is kept, and the same command continues it.
        InputError: Another process is writing the same output.
    """
    from anysat.geo.claims import alone_at

    with alone_at(Path(config.update or config.out)):
        if not config.is_area:  # a small tile takes less time than the imports for areas
            with _uncollected(), suppress(LargeGroundError):
                from anysat.workflows.embed_tile import embed_tile

                return embed_tile(config)
        from anysat.workflows.embed_area import embed_area

        return embed_area(config)


@contextmanager
def _uncollected() -> Iterator[None]:
    """Disable garbage collection: a small tile leaves little garbage, and searching all imported objects takes long."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()
