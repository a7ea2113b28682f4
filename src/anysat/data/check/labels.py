"""Checks of targets, extents and splits: labels in range, tiles of one size, no sample in two splits."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from anysat.data.base import Target
from anysat.data.check.evidence import Evidence, Hit, SeenTarget, SeenTile, is_nodata_number
from anysat.data.check.places import EXTENT_TOLERANCE, side_m
from anysat.data.files import read_file
from anysat.data.layout import TEXT
from anysat.errors import AnySatError

MIN_TILES = 8
"""Number of tiles from which a single class or value is reported."""
TILES_PER_CLASS = 20
"""Number of training tiles read per class from which a class that never occurs is reported."""
_SPLIT_WORDS = ("training", "valid", "validation", "testing")


def label_ranges(evidence: Evidence) -> Iterator[Hit]:
    """Class numbers and values that are impossible."""
    for tile, target, seen in _targets(evidence):
        odd, expected = _odd_values(target, seen.values)
        if len(odd):
            shown = ", ".join(str(value) for value in odd[:4]) + (" …" if len(odd) > 4 else "")
            yield Hit(subject=target.name, example=tile.id, message=f"labels {shown}, expected {expected}; correct the "
                      "files, or the target's classes, ignore or limits")  # fmt: skip


def _targets(evidence: Evidence) -> Iterator[tuple[SeenTile, Target, SeenTarget]]:
    for tile in evidence.tiles:
        for target in evidence.record.targets:
            if target.name in tile.targets:
                yield tile, target, tile.targets[target.name]


def _odd_values(target: Target, values: NDArray[Any]) -> tuple[NDArray[Any], str]:
    if not target.classes:
        low, high = target.limits or (-np.inf, np.inf)
        known = values[np.isfinite(values)]  # NaN: no label
        if target.limits is None:
            return known[
                is_nodata_number(known)
            ], "a measurement, as such a number stands for no data (write it into the files as nodata)"
        return known[(known < low) | (known > high)], f"{low:g} to {high:g} {target.unit}".strip()
    top = 1 if target.is_multilabel else len(target.classes) - 1
    odd = values[((values < 0) | (values > top)) & (values != (top if target.ignore is None else target.ignore))]
    return odd, f"0 to {top}" + ("" if target.ignore is None else f", and {target.ignore} for none")


def label_shapes(evidence: Evidence) -> Iterator[Hit]:
    """Targets of another shape or type than in the record."""
    for tile, target, seen in _targets(evidence):
        side = round(evidence.record.tile_m / target.gsd_m) if target.gsd_m else 0
        shape = (side, side) if side else (len(target.classes),) if target.is_multilabel else ()
        dtype = "int64" if target.classes else "float32"
        if (seen.shape, seen.dtype) != (shape, dtype):
            yield Hit(subject=target.name, example=tile.id, message=f"{seen.dtype} of shape {seen.shape}, expected "
                      f"{dtype} of shape {shape} for a tile of {evidence.record.tile_m:g} m")  # fmt: skip


def one_class(evidence: Evidence) -> Iterator[Hit]:
    """Targets that are the same everywhere, or missing everywhere."""
    if len(evidence.tiles) < MIN_TILES and not evidence.is_complete:
        return
    for target in evidence.record.targets:
        values = np.concatenate([np.zeros(0), *(seen.values for _, of, seen in _targets(evidence) if of is target)])
        given = np.unique(
            values[np.isfinite(values) & (values != (np.inf if target.ignore is None else target.ignore))]
        )
        if len(evidence.tiles) > 1 and len(given) < 2:
            came = "no label at all" if not len(given) else f"only {_named(target, given[0])}"
            yield Hit(subject=target.name, message=f"{came} in {len(evidence.tiles)} tiles, expected more than one "
                      "class or value; was the right column or file read?")  # fmt: skip


def _named(target: Target, value: float) -> str:
    return repr(target.plain(value)) if target.is_multiclass and target.plain(value) else f"{value:g}"


def unseen_classes(evidence: Evidence) -> Iterator[Hit]:
    """Classes that occur in validation or test but not in training."""
    for target in evidence.record.targets:
        if not target.is_multiclass:
            continue
        found: dict[str, set[float]] = defaultdict(set)
        num_read = 0
        for tile, of, seen in _targets(evidence):
            if of is target:
                found[evidence.split_of.get(tile.split, tile.split)] |= set(seen.values.tolist())
                num_read += evidence.split_of.get(tile.split) == "train"
        if num_read < TILES_PER_CLASS * len(target.classes):
            continue
        others = set().union(*(values for split, values in found.items() if split != "train"))
        for value in sorted(others - found["train"] - {target.ignore}):
            yield Hit(subject=target.name, message=f"class {_named(target, value)} occurs in validation or test, never "
                      f"in {num_read} training tiles; nothing can be learned about it")  # fmt: skip


def wrong_extents(evidence: Evidence) -> Iterator[Hit]:
    """Tiles that cover more or less ground than in the record."""
    expected = evidence.record.tile_m
    for tile, seen in evidence.each():
        sides = [round(side * seen.modality.gsd_m, 2) for side in seen.shape_px]
        if not seen.modality.covers_tile and sides != [expected, expected]:
            yield Hit(
                subject=seen.modality.key,
                example=tile.id,
                message=f"covers {sides[0]:g} x {sides[1]:g} m, expected {expected:g} m; cut or resample it",
            )
    for tile in evidence.tiles:
        side = side_m(tile.geobox)
        if side is not None and abs(side / expected - 1) > EXTENT_TOLERANCE:
            yield Hit(subject="georeference", example=tile.id, message=f"says {side:.6g} m from north to south, "
                      f"expected {expected:g} m; the pixel size in the file is not that of the modality")  # fmt: skip


def leaked_names(evidence: Evidence) -> Iterator[Hit]:
    """Samples that are listed in two splits."""
    ids, splits = (evidence.samples.columns[name] for name in ("id", "split"))
    names, counts = np.unique(ids, return_counts=True)
    for name in names[counts > 1]:
        where = sorted({str(split) for split in splits[ids == name]})
        yield Hit(subject="samples", example=str(name), message=f"the same name twice, in {' and '.join(where)}; every "
                  "sample belongs to one split")  # fmt: skip
    lists = list(_split_lists(evidence))
    for place, (first, rest, one) in enumerate(lists):
        for second, other_rest, other in lists[place + 1 :]:
            for name in sorted(one & other) if rest == other_rest else ():
                message = "both name it, expected lists that do not overlap; take it out of one"
                yield Hit(subject=f"{first} and {second}", example=name, message=message)


def _split_lists(evidence: Evidence) -> Iterator[tuple[str, str, set[str]]]:
    """Yield lists of names that each stand for a split (`train-list`, `test-list`): entry, what is listed, names."""
    words = {*evidence.record.splits, *evidence.split_of, *_SPLIT_WORDS}
    for entry in evidence.folder.layout.entries:
        word, _, rest = entry.name.partition("-")
        if entry.dtype != TEXT or entry.fields or not rest or word not in words:
            continue
        path = evidence.folder.path(entry.name)
        if path.is_file():
            try:
                (lines,) = read_file(path, [entry.key])
            except AnySatError:
                continue  # reported as a file that cannot be read
            if not isinstance(lines, dict):
                yield entry.name, rest, {str(line) for line in lines if isinstance(line, str)}


def repeated_tiles(evidence: Evidence) -> Iterator[Hit]:
    """Samples with the same values in every modality."""
    seen: dict[tuple[tuple[str, str], ...], SeenTile] = {}
    for tile in evidence.tiles:
        key = tuple((name, one.digest) for name, one in sorted(tile.modalities.items()) if one.digest)
        twin = seen.setdefault(key, tile) if key else tile
        if twin is not tile:
            splits = [evidence.split_of.get(one.split, one.split) for one in (twin, tile)]
            where = f"{splits[0]} and {splits[1]}" if splits[0] != splits[1] else f"{splits[0]} twice"
            yield Hit(
                subject=where,
                example=f"{twin.id} = {tile.id}",
                message="the same values in every modality, expected different tiles; scores on them are not "
                "those of unseen ground"
                if splits[0] != splits[1]
                else "the same values in every modality",
            )
