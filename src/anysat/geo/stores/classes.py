"""The numbers by which classes are stored in maps and tables: the user's own codes where there are some."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Literal

from anysat.errors import some

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
    codes = _own_codes(names, given)
    is_fit = all(0 <= code < MOST_CLASSES for code in codes) and len(set(codes)) == len(names)
    return codes if is_fit else tuple(range(len(names)))


def counted_lines(names: Sequence[str], given: Sequence[int] = ()) -> list[str]:
    """Return a line if the user's own codes are not used, for reports; see `class_codes`."""
    own = _own_codes(names, given)
    if not own or class_codes(names, given) == own:
        return []
    wrong = [code for code in own if not 0 <= code < MOST_CLASSES]
    why = f"{some(wrong)} {'does' if len(wrong) == 1 else 'do'} not fit" if wrong else "yours repeat"
    return [f"numbers of classes: counted from 0, because those of maps are 0 to {MOST_CLASSES - 1}, and {why}"]


def _own_codes(names: Sequence[str], given: Sequence[int]) -> tuple[int, ...]:
    """Return the user's own codes, whether or not they fit; empty if there are none."""
    if given or not all(re.fullmatch("0|-?[1-9][0-9]{0,17}", name) for name in names):
        return tuple(given)
    return tuple(map(int, names))


def kind_of(codes: Sequence[int]) -> Literal["uint8", "uint16"]:
    """Return the smallest type that has room for the codes and a number for nothing seen."""
    return "uint8" if max(codes, default=0) <= 255 and len(codes) <= 255 else "uint16"


def free_code(codes: Sequence[int]) -> int:
    """Return the number stored where nothing was seen: the largest of the type that is no class."""
    return next(number for number in range(_LARGEST[kind_of(codes)], -1, -1) if number not in codes)
