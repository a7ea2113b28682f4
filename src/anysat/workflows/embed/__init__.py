"""The command that embeds rasters and cubes of any sensors, for a tile or an area: its options and its run."""

from __future__ import annotations

import gc
import math
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from anysat.choices import check_choices
from anysat.errors import LargeGroundError, RecordError
from anysat.geo.write.outputs import STORE, Result, check_also, check_output, named, suffixes
from anysat.model.precision import AnyPrecision
from anysat.workflows.areas.options import AreaOptions

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rich.text import Text

    from anysat.workflows.answer import Answer

FIRST = "first"
UNCHANGED = "unchanged"
"""Value of an option of an update that is that of the store."""


@dataclass(frozen=True, kw_only=True)
class EmbedConfig(AreaOptions):
    """Embed georeferenced files of any sensors over the same ground, as a tile or as an area of any size."""

    inputs: list[str] = field(
        metadata={
            "positional": "MODALITY=PATH",
            "expected": "inputs, such as s2=cube.nc",
            "help": "Inputs as modality key and path, such as s2=cube.nc s1=radar/ aerial=photo.tif. A path is a "
            "GeoTIFF, a folder of dated GeoTIFFs, a NetCDF or Zarr cube, or a TreeSatAI-TS HDF5 file. PATH@2020-06-01 "
            "gives an undated image its date; PATH::NAME selects a series of an HDF5 file or a variable of a cube. Or "
            "one YAML file that describes all inputs, including STAC catalogs (a STAC API needs --area).",
        },
    )
    out: str = field(
        metadata={
            "help": f"Output: {named(Result.TILE)} for a tile, {named(Result.AREA)} for an area. A NAME without suffix "
            f"writes all of a tile's formats, and NAME{STORE} for an area. A picture, NAME.png, is always written as "
            "well."
        },
    )
    """Output, whose suffix decides the format."""
    patch_size_m: float
    """Side of a patch in metres; for most sensors a multiple of 10 m. A tile is cropped to whole patches."""
    dense: str | None = FIRST
    """Modality for which every sub-patch gets an embedding. `first` is the first input for a tile, and none for an
    area; null is none."""
    store: Literal["float32", "float16", "int8-power", "int8-scale"] = "float32"
    """How the embeddings of an area are stored: as floating-point numbers, as `int8-power` (directions, with lengths
    stored separately) or as `int8-scale` (one step per dimension)."""
    places: Literal["removed", "kept"] = "removed"
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
    sensors: str | None = None
    """YAML file with your own modality records; the weights must have been trained with them."""
    device: str = "cpu"
    """Device to compute on: cpu, cuda, cuda:1, mps, or auto, which uses a GPU if there is one."""
    precision: AnyPrecision = "auto"
    """Precision of matrix products; auto uses bf16 if the device has units for it."""
    keep: Literal["series", "features"] | None = None
    """What to keep in NAME.series beside an area's NAME.zarr, for `anysat embed --update`. `series` keeps sums
    over dates where these are enough, and pixels where they are not (s2). `features` keeps, instead of those pixels,
    what each date shows: much larger, but faster to update. The size is printed first. Null keeps nothing."""
    overwrite: bool = False
    """Replace existing outputs."""

    def __post_init__(self) -> None:
        check_choices(self)
        if self.keep is not None and (Path(self.out).suffix not in ("", STORE) or self.precision == "bf16"):
            raise RecordError("--keep", self.keep, "--out NAME.zarr and precision float32, which updates need")
        check_output("--out", self.out, *(() if self.is_area else (Result.TILE,)), Result.AREA, may_lack=True)
        if not (math.isfinite(self.patch_size_m) and self.patch_size_m > 0):
            raise RecordError("--patch-size-m", self.patch_size_m, "a positive number of metres")
        super().__post_init__()
        check_also(self.also, self.out, self.made)

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
               "--keep": self.keep is not None,
               f"--out NAME{suffix}": suffix in suffixes(Result.AREA) and suffix not in of_tile}  # fmt: skip
        return [*super().asked_of_area, *(name for name, is_given in own.items() if is_given)]


@dataclass(frozen=True, kw_only=True)
class UpdateConfig:
    """Add the dates that a store of embeddings lacks. Earlier dates are not read again.

    All other options are those that the store was made with.
    """

    inputs: list[str] = field(
        default_factory=list,
        metadata={
            "positional": "MODALITY=PATH",
            "optional": True,
            "help": "Inputs, as for `anysat embed`. Those not given are those of the last run.",
        },
    )
    update: str
    """Store to which to add dates: NAME.zarr, made by `anysat embed --keep`."""
    dates: str | None = UNCHANGED
    """Days of the series to use, as FIRST/LAST; null uses all."""
    period: str = UNCHANGED
    """Time span that each embedding covers, as for `anysat embed`. Each period of the store must lie in one."""
    also: str | None = UNCHANGED
    """Formats to write besides NAME.zarr, as for `anysat embed`; null for none."""
    sensors: str | None = UNCHANGED
    """YAML file with your own modality records; null for none."""
    device: str = "cpu"
    """Device to compute on: cpu, cuda, cuda:1, mps, or auto, which uses a GPU if there is one."""
    memory_gb: float = 4.0
    """Memory limit, in gigabytes."""
    readers: int = 2
    """Number of threads that read ahead."""
    scheduler: str | None = None
    """Address of a Dask scheduler whose workers see the same disk, such as tcp://10.0.0.1:8786; null computes on this
    machine."""


def update(config: UpdateConfig) -> Answer:
    """Read the new dates, and replace the store.

    Raises:
        MissingFileError, SourceError, UnknownNameError: The store, what was kept for it, or an input cannot be used.
        RecordError: A period of the store would be cut.
        WeightsError: The weights are not those of the store.
        WriteError: The store cannot be written. The finished part is kept, and the same command continues it.
        InputError: Another process is writing the same store.
    """
    from anysat.geo.claims import alone_at
    from anysat.workflows.embed.area import update_area

    with alone_at(Path(config.update)):
        return update_area(config)


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

    with alone_at(Path(config.out)):
        if not config.is_area:  # a small tile takes less time than the imports for areas
            with _uncollected(), suppress(LargeGroundError):
                from anysat.workflows.embed.tile import embed_tile

                return embed_tile(config)
        from anysat.workflows.embed.area import embed_area

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
