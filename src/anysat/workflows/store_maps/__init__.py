"""The commands that make maps of finished stores, without encoding anything: their options and their runs."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from anysat.errors import RecordError
from anysat.geo.write.outputs import (
    ALSO_HELP,
    STORE,
    Result,
    check_also,
    check_output,
    formats_of,
    named,
    suffixes,
)
from anysat.workflows.answer import Answer

RASTERS = (".tif", ".tiff")
"""Suffixes of rasters of labels."""


@dataclass(frozen=True, kw_only=True)
class StoreMapOptions:
    """Stores to read, and the map to write."""

    store: list[str] = field(
        metadata={
            "positional": "STORE",
            "help": "NAME.zarr, written by `anysat embed`. For an area in several UTM zones, NAME.zarr stands for the "
            "stores of all zones, and there is a map for each. You can also list several stores of one kind.",
        }
    )
    out: str = field(metadata={"help": f"Map to write: {named(Result.AREA)}; a picture NAME.png is written beside it."})
    """Map to write."""
    also: str | None = field(default=None, metadata={"help": ALSO_HELP})
    """Formats to write besides a store."""
    group: str | None = None
    """Which embeddings of the store, such as dense; null for those of patches."""
    overwrite: bool = False
    """Replace existing outputs."""

    @property
    def formats(self) -> list[str]:
        """Suffixes of the formats to write besides a store."""
        return formats_of(self.also, Result.CLASSES)


@dataclass(frozen=True, kw_only=True)
class SimilarConfig(StoreMapOptions):
    """Search a store for places like given ones: write a map of the similarity of every patch, from -1 to 1."""

    to: str = field(
        metadata={
            "help": "Places to search for: longitude,latitude in degrees, such as 4.35,50.85, or a file of points and "
            "polygons (FILE:LAYER if it has several layers). Of several, the mean of their embeddings is searched for."
        }
    )
    """Places to search for."""
    unlike: str | None = None
    """Places that the others should not be like, given in the same way. The map is then the similarity to the first
    minus the similarity to these, from -2 to 2."""

    def __post_init__(self) -> None:
        check_output("--out", self.out, Result.AREA)
        check_also(self.also, self.out, Result.AREA)


def similar(config: SimilarConfig) -> Answer:
    """Search, and write the map.

    Raises:
        MissingFileError, SourceError, UnknownNameError, InputError, RecordError: A store or the places cannot be used.
        WriteError: An output exists or cannot be written. Nothing is left behind.
        InputError: Another process is writing the same output.
    """
    from anysat.workflows.progress import progress_bar
    from anysat.workflows.store_maps import similarity

    found = similarity.similar(config.store, config.to, config.out, unlike=config.unlike, group=config.group,
                        also=config.formats, overwrite=config.overwrite, bar=progress_bar)  # fmt: skip
    return Answer(found.report)


@dataclass(frozen=True, kw_only=True)
class ClassifyConfig(StoreMapOptions):
    """Fit a simple model to labelled points or polygons on a store, score it over blocks of ground, and write a map."""

    samples: str = field(
        default="",
        metadata={
            "positional": "SAMPLES",
            "optional": True,
            "help": "Labelled points or polygons: a GeoPackage, GeoJSON, Shapefile or GeoParquet file, in any "
            "reference system. A point takes the patch in which it lies, a polygon the patches mostly inside it. Or a "
            "GeoTIFF with one band of classes: a patch has the label of the pixel in its middle.",
        },
    )
    column: str | None = None
    """Column of SAMPLES with the class. Rows without one are left out. Null for a GeoTIFF."""
    out: str = field(
        metadata={"help": f"Map to write: {named(Result.CLASSES)} (polygons); a picture NAME.png is written beside it."}
    )
    """Map to write."""
    values: bool = False
    """The column holds numbers; map them by ridge regression instead of classes."""
    probabilities: bool = False
    """Also write the probability of every class, to NAME_probability.tif, or into the store."""
    dates: str | None = None
    """Days in which the labels hold, as FIRST/LAST: samples are taken from the periods of the store within them, and
    all periods are mapped. Null if they hold in all."""
    block_km: float | None = None
    """Side in kilometres of the blocks of ground that scores are over; null chooses the largest, up to 10, with which
    every class lies in enough blocks."""

    def __post_init__(self) -> None:
        if not self.samples and self.store:  # the command line puts all words into STORE
            object.__setattr__(self, "samples", self.store[-1])
            object.__setattr__(self, "store", self.store[:-1])
        if not self.store:
            raise RecordError("SAMPLES", None, f"a value, after one STORE or more, such as area{STORE} samples.gpkg")
        check_column(self.samples, self.column)
        check_options(self.out, self.also, values=self.values, probabilities=self.probabilities)


def check_column(samples: Any, column: str | None) -> None:
    """Check that a column is given if the samples have columns.

    Raises:
        RecordError: It is missing, or given for a raster.
    """
    if is_raster(samples) != (column is None):
        raise RecordError("--column", column, "null, because a raster has no columns" if column is not None else
                          "the column of SAMPLES with the class")  # fmt: skip


def is_raster(samples: Any) -> bool:
    """Return whether samples are a raster of labels, by the suffix."""
    return isinstance(samples, str | Path) and Path(samples).suffix.lower() in RASTERS


def check_options(out: str, also: str | None, *, values: bool, probabilities: bool) -> None:
    """Check that the output and the formats besides it can hold the result.

    Raises:
        UnknownNameError: There is no such format for the result.
        RecordError: The output cannot, or values are to have probabilities.
    """
    if values:
        check_output("--out", out, Result.AREA, because=", for values")
    check_output("--out", out, Result.CLASSES)
    check_also(also, out, Result.AREA if values else Result.CLASSES)
    if probabilities and (values or not out.endswith(suffixes(Result.AREA))):
        raise RecordError("--probabilities", True, "false, because values and polygons have none")


def classify(config: ClassifyConfig) -> Answer:
    """Fit, score, and write the map.

    Raises:
        MissingFileError, SourceError, UnknownNameError, InputError, RecordError: A store or the samples cannot be used.
        WriteError: An output exists or cannot be written. Nothing is left behind.
        InputError: Another process is writing the same output.
    """
    from anysat.workflows.progress import progress_bar
    from anysat.workflows.store_maps import classes

    found = classes.classify(
        config.store, config.samples, config.column, config.out, values=config.values, dates=config.dates,
        probabilities=config.probabilities, block_km=config.block_km, group=config.group,
        also=config.formats, overwrite=config.overwrite, bar=progress_bar,
    )  # fmt: skip
    return Answer(found.report)
