"""Write a task's predictions as a georeferenced raster: classes with names and colours, probabilities, or values."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from odc.geo.geobox import GeoBox

from anysat.errors import InputError
from anysat.geo.stores.classes import MOST_CLASSES, class_codes, free_code, kind_of
from anysat.geo.write.cogs import Cog, whole, write_cog


def write_classes(
    path: Path, classes: NDArray[Any], geobox: GeoBox, told: Mapping[str, Any], tags: Mapping[str, Any]
) -> None:  # fmt: skip
    """Write classes as a cloud-optimised GeoTIFF of their codes. Its nodata value is a number that is no code.

    Args:
        path: The file.
        classes: Numbers of the classes from 0 (row col), -1 where nothing was seen.
        geobox: Their grid.
        told: Codes, names and colours of the classes (`class_attributes`).
        tags: Anything that can be written as JSON.
    """
    codes = told["flag_values"]
    cog = Cog(
        geobox=geobox, dtype=kind_of(codes), names=["class"], nodata=free_code(codes), resampling="mode", tags=tags,
        texts=class_tags(told), palette=palette_of(told),
    )  # fmt: skip
    write_cog(path, cog, [(whole(geobox), np.array([*codes, free_code(codes)])[classes][None])])


def write_values(
    path: Path, values: NDArray[Any], geobox: GeoBox, names: Sequence[str], tags: Mapping[str, Any], unit: str = ""
) -> None:
    """Write numbers (band row col), NaN where nothing was seen, as a cloud-optimised GeoTIFF with band names."""
    cog = Cog(geobox=geobox, dtype="float32", names=names or ["value"] * len(values), nodata=float("nan"),
              resampling="average", tags=tags, unit=unit)  # fmt: skip
    write_cog(path, cog, [(whole(geobox), values)])


def class_layer(names: Sequence[str], colours: NDArray[Any], codes: Sequence[int] = ()) -> dict[str, Any]:
    """Return the fields of a class map's `Layout`: its type and the attributes of its array, see `class_attributes`."""
    told = class_attributes(names, colours, codes)
    return {"kind": kind_of(told["flag_values"]), "variable_attributes": told}


def class_attributes(names: Sequence[str], colours: NDArray[Any], codes: Sequence[int] = ()) -> dict[str, Any]:
    """Return the attributes of a class map's array: the classes as in CF, and their unchanged names and colours.

    Args:
        names: Names of the classes, by number.
        colours: Colours (class 3), from 0 to 1.
        codes: The user's own codes, if there are any besides the names (`class_codes`).

    Raises:
        InputError: There are too many classes.
    """
    if len(names) > MOST_CLASSES:
        raise InputError("map", f"at most {MOST_CLASSES} classes, which are stored as 16 bits", len(names))
    return {
        "flag_values": list(class_codes(names, codes)),
        "flag_meanings": " ".join(re.sub(r"[^\w.+@-]+", "_", name) or "_" for name in names),
        "class_names": list(names),
        "class_colours": ["#" + "".join(f"{round(255 * float(part)):02x}" for part in colour) for colour in colours],
    }


def palette_of(attributes: Mapping[str, Any]) -> dict[int, tuple[int, ...]]:
    """Return the colour (RGBA, 0 to 255) of each code; none for 16 bits, whose palette takes 400 kB in each file."""
    codes = attributes["flag_values"]
    if kind_of(codes) != "uint8":
        return {}
    return {code: (*rgb, 255) for code, rgb in zip(codes, _rgb(attributes), strict=True)}


def class_tags(attributes: Mapping[str, Any]) -> dict[str, str]:
    """Return the names of the classes as tags of a GeoTIFF."""
    return {f"CLASS_{code}": name for code, name in _by_code(attributes)}


def class_document(attributes: Mapping[str, Any]) -> str:
    """Return the content of NAME.tif.aux.xml, from which GDAL reads the names of the classes.

    Of bytes, whose colours are in the palette, they are names of categories by number. Of 16 bits, they are an
    attribute table with colours.
    """
    from xml.sax.saxutils import escape

    if kind_of(attributes["flag_values"]) == "uint8":
        names = dict(_by_code(attributes))
        listed = (f"<Category>{escape(names.get(code, ''))}</Category>" for code in range(max(names, default=-1) + 1))
        found = f"<CategoryNames>{''.join(listed)}</CategoryNames>"
    else:
        fields = enumerate((("Value", 0, 5), ("Class", 2, 2), ("Red", 0, 6), ("Green", 0, 7), ("Blue", 0, 8)))
        found = "".join(
            f'<FieldDefn index="{n}"><Name>{name}</Name><Type>{kind}</Type><Usage>{usage}</Usage></FieldDefn>'
            for n, (name, kind, usage) in fields
        )  # types: 0 whole number, 2 text; usages: 5 value, 2 name, 6 to 8 colours
        for n, ((code, name), rgb) in enumerate(zip(_by_code(attributes), _rgb(attributes), strict=True)):
            cells = "".join(f"<F>{cell}</F>" for cell in (code, escape(name), *rgb))
            found += f'<Row index="{n}">{cells}</Row>'
        found = f'<GDALRasterAttributeTable tableType="thematic">{found}</GDALRasterAttributeTable>'
    return f'<PAMDataset><PAMRasterBand band="1">{found}</PAMRasterBand></PAMDataset>\n'


def _by_code(attributes: Mapping[str, Any]) -> Iterator[tuple[int, str]]:
    return zip(attributes["flag_values"], attributes["class_names"], strict=True)


def _rgb(attributes: Mapping[str, Any]) -> list[bytes]:
    return [bytes.fromhex(colour[1:]) for colour in attributes["class_colours"]]
