"""Tell files and variables that are a band from those whose names merely contain its name, like `B4_std` and `B4`."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from anysat.errors import SourceError
from anysat.geo.grid import is_empty
from anysat.geo.read.layers import Layer, names_in_stem

_PLAIN = re.compile(r"\d+|\d+(m|cm)|v\d+\w*|\d{8}t\w*|doy\d+", re.IGNORECASE)
"""Words after the name of a band that do not say what its numbers are: pixel size, date, version."""
_NO_BAND = {
    "count", "counts", "num", "std", "stdev", "stddev", "stderr", "var", "variance", "uncertainty", "mask", "cloudmask",
    "qa", "flag", "flags",
}  # fmt: skip
"""Words in a file's name which say that it is not a band, but something about one."""
Claim = Callable[[str], int | None]
"""A function that returns the index of the modality's band of a name, or None."""


class _File(NamedTuple):
    layer: Layer
    target: int
    before: tuple[str, ...]
    """Words before the band's name."""
    after: frozenset[str]
    """Words after it, in lower case, without those of `_PLAIN`."""


def without_rivals(layers: Sequence[Layer], claim: Claim) -> tuple[list[Layer], list[str]]:
    """Remove layers that only look like a band; return the others, and the names of those removed.

    Of the variables of a cube that may be one band, the one whose name fits best is kept. Of the files of a folder,
    those are kept whose words after the band's name occur with all bands; of several that show the same ground, the
    one with the fewest words.

    A file whose name says that it is a count, a deviation or a mask of a band is removed, even if it is the only one.

    Raises:
        SourceError: It is ambiguous which one is the band, or no file is one.
    """
    left_out = _rival_variables(layers, claim) | _rival_files(layers, claim)
    kept = [layer for layer in layers if layer.path not in left_out]
    other = {layer.path: None for layer in kept if _is_no_band(layer, claim)}
    if other and len(other) == len(kept):
        paths = [Path(path) for path in other]
        raise SourceError(
            paths[0].parent, f"{', '.join(path.name for path in paths[:3])}: by the name, this is not a band, but a "
            "statistic or mask of one",
            "if it is a band, rename it, or give a list of `bands` in a description of the source",
        )  # fmt: skip
    left_out |= other
    kept = [layer for layer in kept if layer.path not in other]
    return kept, [Path(path).name.rpartition("::")[2] for path in left_out]


def _rival_variables(layers: Sequence[Layer], claim: Claim) -> dict[str, None]:
    found: dict[tuple[str, int], list[tuple[int, Layer]]] = {}
    for layer in layers:
        cube, is_variable, _ = layer.path.rpartition("::")
        if is_variable and len(layer.bands) == 1:
            ranked = [(rank, target) for rank, name in enumerate(layer.bands[0]) if (target := claim(name)) is not None]
            for rank, target in ranked[:1]:
                found.setdefault((cube, target), []).append((rank, layer))
    left_out: dict[str, None] = {}
    for (cube, _), rivals in found.items():
        best = min(rank for rank, _ in rivals)
        exact = [layer.path for rank, layer in rivals if rank == best]
        if len(exact) > 1:
            names = [path.rpartition("::")[2] for path in exact]
            raise SourceError(
                cube, f"several of its variables may be one band: {', '.join(names)}",
                "choose one, for example with `bands` in a description of the source, or leave the others out",
            )  # fmt: skip
        left_out |= {layer.path: None for rank, layer in rivals if rank != best}
    return left_out


def _rival_files(layers: Sequence[Layer], claim: Claim) -> dict[str, None]:
    files = [file for layer in layers if (file := _file(layer, claim)) is not None]
    targets = {file.target for file in files}
    seen: dict[str, set[int]] = {}
    for file in files:
        for word in file.after:
            seen.setdefault(word, set()).add(file.target)
    common = {word for word, of in seen.items() if of == targets}
    kept = [file for file in files if file.after <= common]
    if not kept:
        return {}
    left_out = {file.layer.path: None for file in files if not file.after <= common}
    groups: dict[tuple[int, tuple[str, ...]], list[_File]] = {}
    for file in kept:
        groups.setdefault((file.target, file.before), []).append(file)
    for group in groups.values():
        if len({file.after for file in group}) > 1:
            left_out |= _rivals_of_ground(group)
    return left_out


def _file(layer: Layer, claim: Claim) -> _File | None:
    """Return a layer as a `_File` if it has a single band, which is named by the file name; else None."""
    words = names_in_stem(Path(layer.path))
    if len(layer.bands) != 1 or layer.bands[0] != words:
        return None
    for number, word in enumerate(words):
        if (target := claim(word)) is not None:
            after = frozenset(other.lower() for other in words[:number] if not _PLAIN.fullmatch(other))
            return _File(layer, target, words[number + 1 :], after)
    return None


def _is_no_band(layer: Layer, claim: Claim) -> bool:
    """Return whether one word of a file's name is a band, and another one of `_NO_BAND`."""
    others = (word.lower() for word in names_in_stem(Path(layer.path)) if claim(word) is None)
    return _file(layer, claim) is not None and any(word in _NO_BAND for word in others)


def _rivals_of_ground(group: Sequence[_File]) -> dict[str, None]:
    """Return the files with more words than another that shows most of the same ground on a common day."""
    pairs = [(file, other) for file in group for other in group if _one_image(file.layer, other.layer)]
    left_out = {file.layer.path: None for file, other in pairs if file.after > other.after}
    for file, other in pairs:
        if file.after != other.after and not {file.layer.path, other.layer.path} & set(left_out):
            raise SourceError(
                Path(file.layer.path).parent, "several of its files may be one band of one image: "
                f"{Path(file.layer.path).name}, {Path(other.layer.path).name}",
                "leave only the right one in the folder",
            )  # fmt: skip
    return left_out


def _one_image(one: Layer, other: Layer) -> bool:
    if one.geobox is None or other.geobox is None or one.geobox.crs != other.geobox.crs:
        return False
    if one.dates is not None and other.dates is not None and not set(one.dates) & set(other.dates):
        return False
    a, b = one.geobox.boundingbox, other.geobox.boundingbox
    shared, smaller = a & b, min(a.span_x * a.span_y, b.span_x * b.span_y)
    return not is_empty(shared) and shared.span_x * shared.span_y > smaller / 2
