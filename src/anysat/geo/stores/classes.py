"""The numbers by which classes are stored in maps and tables: the user's own codes where there are some."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Literal

_LARGEST = {"uint8": 255, "uint16": 65_535}
MOST_CLASSES = 65_535
"""Largest number of classes; the codes of 16 bits without the one for nothing seen."""


def class_codes(names: Sequence[str], given: Sequence[int] = ()) -> tuple[int, ...]:
    """Return the stored number of each class.

    They are the user's own codes, so that a map can be compared with the labels: the given ones, or else the names if
    all are whole numbers. Codes outside 0 to 65534 do not fit a raster with classes, and are not used: like classes
    with other names, these are counted from 0.

    Args:
        names: Names of the classes.
        given: Codes by which the user's label rasters store them; empty if there are none.
    """
    codes = tuple(given)
    if not codes and all(re.fullmatch("0|[1-9][0-9]{0,4}", name) for name in names):
        codes = tuple(map(int, names))
    is_fit = all(0 <= code < MOST_CLASSES for code in codes) and len(set(codes)) == len(names)
    return codes if is_fit else tuple(range(len(names)))


def kind_of(codes: Sequence[int]) -> Literal["uint8", "uint16"]:
    """Return the smallest type that has room for the codes and a number for nothing seen."""
    return "uint8" if max(codes, default=0) <= 255 and len(codes) <= 255 else "uint16"


def free_code(codes: Sequence[int]) -> int:
    """Return the number stored where nothing was seen: the largest of the type that is no class."""
    return next(number for number in range(_LARGEST[kind_of(codes)], -1, -1) if number not in codes)
