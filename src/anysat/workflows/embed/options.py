"""Options of `anysat.embed` as Python values, and errors that name them as they are given in Python."""

from __future__ import annotations

import math
import os
import re
import reprlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields
from numbers import Integral, Real
from types import NoneType, UnionType
from typing import Any, get_args, get_origin, get_type_hints

from anysat.errors import AnySatError, InputError, UnknownNameError
from anysat.geo.ground import ground_of
from anysat.geo.read.descriptions import SourceDescription
from anysat.workflows.embed import EmbedConfig

_OF_FILES = {"out", "inputs", "store", "scheduler", "overwrite", "sensors", "also", "readers", "keep", "update"}
"""Options of the command that have no meaning for cubes in memory."""
_OWN = {"patch_size_m", "weights"}
OPTIONS = sorted({one.name for one in fields(EmbedConfig)} - _OF_FILES - _OWN)
"""Names of the options."""
_OPTION = re.compile(r"--([a-z]+(?:-[a-z]+)*)")
_EXPECTED = {int: "a whole number", float: "a number", list[str]: "units by input, such as {'s1': 'linear'}"}
_ADVICE = {
    "dense": "for several modalities, embed once for each",
    "statistics": "give a Normaliser to the model: `weights=anysat.load(..., statistics=...)`",
}


def read_options(given: Mapping[str, Any]) -> tuple[dict[str, Any], Any]:
    """Return options as `EmbedConfig` takes them, and the ground (None if it is not given as polygons).

    Raises:
        UnknownNameError: There is no such option.
        InputError: An option is of no use in Python, or a value has a wrong type.
        RecordError, SourceError: `dates` are not two days, or the polygons of `area` cannot be used.
    """
    if files := sorted(_OF_FILES & given.keys()):
        raise InputError("anysat.embed", "options that affect the result", ", ".join(files),
                         "use `anysat embed` to write files")  # fmt: skip
    for name in given:
        if name not in OPTIONS:
            raise UnknownNameError("option of anysat.embed", name, OPTIONS)
    found, ground = dict(given), None
    if found.get("area") is not None:
        found["area"], ground = _area(found["area"])
    if isinstance(days := found.get("dates"), Iterable) and not isinstance(days, str):
        found["dates"] = "/".join(map(str, SourceDescription(dates=tuple(days)).dates or ()))
    if isinstance(units := found.get("units"), Mapping):
        found["units"] = [f"{key}={unit}" for key, unit in units.items()]
    if isinstance(found.get("units"), str):
        found["units"] = [found["units"]]
    if type(found.get("device")).__name__ == "device":  # of torch
        found["device"] = str(found["device"])
    return {name: of_type(name, value) for name, value in found.items()}, ground


def of_type(name: str, value: Any) -> Any:
    """Return the value of an option as a text, a number or a list of texts.

    Raises:
        InputError: It has another type.
    """
    hint = get_type_hints(EmbedConfig)[name]
    value = os.fspath(value) if isinstance(value, os.PathLike) else value
    if get_origin(hint) is UnionType:
        if value is None and NoneType in get_args(hint):
            return None
        hint = next(one for one in get_args(hint) if one is not NoneType)
    if hint in (int, float):
        if type(value) is not bool and isinstance(value, Integral if hint is int else Real):
            return hint(value)
    elif hint == list[str]:
        if isinstance(value, (list, tuple)) and all(isinstance(one, str) for one in value):
            return list(value)
    elif isinstance(value, str):
        return value
    raise InputError(
        f"{name} of anysat.embed", _EXPECTED.get(hint, "one text"), reprlib.repr(value), _ADVICE.get(name, "")
    )


def _area(given: Any) -> tuple[Any, Any]:
    """Return the area as text, or else the ground."""
    if isinstance(given, (str, os.PathLike)):
        return given, None
    if hasattr(given, "geometry") or hasattr(given, "geom_type"):
        return None, ground_of(given)
    sides = list(given) if isinstance(given, Iterable) else []
    if len(sides) != 4 or not all(isinstance(side, Real) and math.isfinite(side) for side in sides):
        raise InputError("area of anysat.embed", "four numbers (west, south, east and north in degrees), a file of "
                         "polygons, a GeoDataFrame, or a shapely polygon in degrees", repr(given))  # fmt: skip
    return ",".join(str(float(side)) for side in sides), None


@contextmanager
def named_as_in_python() -> Iterator[None]:
    """Name options in errors as they are given in Python: `patch_size_m`, not `--patch-size-m`."""
    try:
        yield
    except AnySatError as error:
        error.args = tuple(_OPTION.sub(_keyword, part) if isinstance(part, str) else part for part in error.args)
        raise


def _keyword(found: re.Match[str]) -> str:
    name = found[1].replace("-", "_")
    return name if name in OPTIONS or name in _OWN else found[0]
