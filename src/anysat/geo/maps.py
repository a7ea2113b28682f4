"""Answers of a task to a georeferenced raster: classes with names and colours, probabilities, values."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from odc.geo.geobox import GeoBox

from anysat.geo.grid import crs_of

NO_CLASS = 255
"""Class number where nothing was seen."""
_BLOCK_PX = 256


def write_classes(
    path: Path, classes: NDArray[Any], geobox: GeoBox, names: Sequence[str], colours: NDArray[Any],
    tags: Mapping[str, Any],
) -> None:  # fmt: skip
    """A cloud-optimised GeoTIFF of class numbers (row col), -1 where nothing was seen; nodata is `NO_CLASS`.

    Args:
        path: the file.
        classes: numbers.
        geobox: where they lie.
        names: of the classes, kept as category names.
        colours: (class 3) from 0 to 1, the palette.
        tags: anything that turns into JSON.
    """
    values = np.where(classes < 0, NO_CLASS, classes).astype(np.uint8)
    palette = {n: (*(round(255 * float(part)) for part in colour), 255) for n, colour in enumerate(colours)}
    told = {f"CLASS_{number}": name for number, name in enumerate(names)}
    _write(path, values[None], geobox, NO_CLASS, tags, palette=palette, told=told)


def write_values(
    path: Path, values: NDArray[Any], geobox: GeoBox, names: Sequence[str], tags: Mapping[str, Any], unit: str = ""
) -> None:
    """A cloud-optimised GeoTIFF of numbers (band row col), NaN where nothing was seen; bands carry names."""
    _write(path, values.astype(np.float32), geobox, float("nan"), tags, names=names, unit=unit)


def _write(
    path: Path, bands: NDArray[Any], geobox: GeoBox, nodata: float, tags: Mapping[str, Any], *,
    palette: Mapping[int, Any] | None = None, told: Mapping[str, str] | None = None, names: Sequence[str] = (),
    unit: str = "",
) -> None:  # fmt: skip
    """Make the file in memory and then write it, so that a full disk says so."""
    from rasterio.io import MemoryFile

    with MemoryFile() as memory:
        with memory.open(
            driver="COG", count=len(bands), height=geobox.height, width=geobox.width, dtype=bands.dtype.name,
            nodata=nodata, crs=crs_of(geobox).to_wkt(), transform=geobox.affine, compress="DEFLATE",
            blocksize=_BLOCK_PX, overview_resampling="MODE" if palette else "AVERAGE", bigtiff="IF_SAFER",
        ) as file:  # fmt: skip
            file.write(np.ascontiguousarray(bands))
            if palette is not None:
                file.write_colormap(1, dict(palette))
            if names:
                file.descriptions = tuple(names)
            if unit:
                file.units = (unit,) * len(bands)
            file.update_tags(ANYSAT=json.dumps(tags), **(told or {}))
        path.write_bytes(memory.getbuffer())
