"""Write a task's predictions as a georeferenced raster: classes with names and colours, probabilities, or values."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from odc.geo.geobox import GeoBox

from anysat.errors import InputError
from anysat.geo.stores.layout import NO_CLASS
from anysat.geo.write.cogs import Cog, whole, write_cog


def write_classes(
    path: Path, classes: NDArray[Any], geobox: GeoBox, names: Sequence[str], colours: NDArray[Any],
    tags: Mapping[str, Any],
) -> None:  # fmt: skip
    """Write class numbers as a cloud-optimised GeoTIFF with the nodata value `NO_CLASS`.

    Args:
        path: The file.
        classes: Class numbers (row col), -1 where nothing was seen.
        geobox: Their grid.
        names: Names of the classes, written as tags.
        colours: Palette (class 3), from 0 to 1.
        tags: Anything that can be written as JSON.
    """
    found = class_attributes(names, colours)
    cog = Cog(
        geobox=geobox, dtype="uint8", names=["class"], nodata=NO_CLASS, resampling="mode", tags=tags,
        texts=class_tags(found), palette=palette_of(found),
    )  # fmt: skip
    write_cog(path, cog, [(whole(geobox), np.where(classes < 0, NO_CLASS, classes)[None])])


def write_values(
    path: Path, values: NDArray[Any], geobox: GeoBox, names: Sequence[str], tags: Mapping[str, Any], unit: str = ""
) -> None:
    """Write numbers (band row col), NaN where nothing was seen, as a cloud-optimised GeoTIFF with band names."""
    cog = Cog(geobox=geobox, dtype="float32", names=names or ["value"] * len(values), nodata=float("nan"),
              resampling="average", tags=tags, unit=unit)  # fmt: skip
    write_cog(path, cog, [(whole(geobox), values)])


def class_attributes(names: Sequence[str], colours: NDArray[Any]) -> dict[str, Any]:
    """Return the attributes of a class map's array: the classes as in CF, and their unchanged names and colours.

    Args:
        names: Names of the classes, by number.
        colours: Colours (class 3), from 0 to 1.

    Raises:
        InputError: There are too many classes.
    """
    if len(names) > NO_CLASS:
        raise InputError("map", f"at most {NO_CLASS} classes, which are stored as bytes", len(names))
    return {
        "flag_values": list(range(len(names))),
        "flag_meanings": " ".join(re.sub(r"[^\w.+@-]+", "_", name) or "_" for name in names),
        "class_names": list(names),
        "class_colours": ["#" + "".join(f"{round(255 * float(part)):02x}" for part in colour) for colour in colours],
    }


def palette_of(attributes: Mapping[str, Any]) -> dict[int, tuple[int, ...]]:
    """Return the colour (RGBA, 0 to 255) of each class number."""
    colours = (bytes.fromhex(colour[1:]) for colour in attributes["class_colours"])
    return {number: (*colour, 255) for number, colour in enumerate(colours)}


def class_tags(attributes: Mapping[str, Any]) -> dict[str, str]:
    """Return the names of the classes as tags of a GeoTIFF."""
    return {f"CLASS_{number}": name for number, name in enumerate(attributes["class_names"])}


def category_names(attributes: Mapping[str, Any]) -> str:
    """Return the content of NAME.tif.aux.xml, from which GDAL reads the names of the classes."""
    from xml.sax.saxutils import escape

    names = "".join(f"<Category>{escape(name)}</Category>" for name in attributes["class_names"])
    return f'<PAMDataset><PAMRasterBand band="1"><CategoryNames>{names}</CategoryNames></PAMRasterBand></PAMDataset>\n'
