"""Validate a store: conventions, metadata, place, coordinates, nodata, gaps, values, checksums and model.

Nothing is downloaded, and nothing is changed.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from odc.geo import CRS

from anysat.errors import SourceError, some
from anysat.geo.grid import crs_of
from anysat.geo.stores.classes import free_code
from anysat.geo.stores.conventions import CONVENTIONS
from anysat.geo.stores.quantise import NODATA
from anysat.geo.stores.store import CHECKSUMS, Unit, partial_of
from anysat.geo.stores.stored import DAMAGED, StoredGroup, open_stored, provenance_of, told_of
from anysat.whole_files import checksum_of

_OFF_PX = 1e-3
"""Largest difference between two statements of one place, as a fraction of a pixel."""
_SHOWN = 4

Advance = Callable[[int], object]


@dataclass(frozen=True, kw_only=True)
class Finding:
    """The result of one check."""

    level: Literal["ok", "warning", "error"]
    where: str
    """Store, and group if the check is of one group."""
    check: str
    text: str


def validate_store(path: Path, *, reads_all: bool = True, advance: Advance = lambda _: None) -> list[Finding]:
    """Validate one store.

    Args:
        path: NAME.zarr.
        reads_all: Also compare checksums, and values with validity, which reads every byte.
        advance: Called with the number of shards just read, `num_steps` in all.

    Raises:
        MissingFileError, SourceError: There is no such store.
    """
    unfinished = path if path.name.endswith(".partial") else partial_of(path)
    found = []
    if unfinished.exists():
        done = len(list((unfinished / "done").glob("*.json")))
        found.append(Finding(level="error", where=unfinished.name, check="finished",
                             text=f"it is unfinished ({done} units done): give the same command again"))  # fmt: skip
        if not path.exists() or path == unfinished:
            return found
    groups = open_stored(path)
    for name, group in groups.items():
        looks = {
            "conventions": _conventions(group), "metadata": _metadata(path, group), "place": _place(group),
            "coordinates": _coordinates(path, group), "nodata": _nodata(group), "gaps": _gaps(path, group),
        } | ({"values": _contents(path, group, advance)} if reads_all else {})  # fmt: skip
        told = [line for check, look in looks.items() for line in _unless_damaged(check, look)]
        found += [
            Finding(level=level, where=f"{path.name}/{name}", check=check, text=text) for level, check, text in told
        ]
    whole = [*_unless_damaged("checksums", _lost(path, groups)), *_unread(path)]
    return [*found, *(Finding(level=level, where=path.name, check=check, text=text) for level, check, text in whole)]


def num_steps(path: Path) -> int:
    """Return the number of shards that `validate_store` reports to `advance`."""
    try:
        return sum(len(list(group.units())) for group in open_stored(path).values())
    except (SourceError, FileNotFoundError):
        return 0


def validate_models(paths: Sequence[Path]) -> list[Finding]:
    """Check that stores were made with the same weights; embeddings of different weights cannot be compared."""
    there = dict.fromkeys(path for path in paths if path.exists() and not path.name.endswith(".partial"))
    if len(there) < 2:
        return []
    names = Counter(path.name for path in there)
    weights = {path.name if names[path.name] == 1 else str(path): weights_of(path) for path in there}
    found = []
    known = {name: told for name, told in weights.items() if told}
    if unknown := ", ".join(name for name in weights if name not in known):
        text = f"unknown whether one model made them all: no digest of the weights in {unknown}; embed again"
        found.append(Finding(level="warning", where="all", check="model", text=text))
    if len(set(known.values())) > 1:
        text = "MIXED MODELS, embeddings are not comparable: " + "; ".join(f"{n} by {t}" for n, t in known.items())
        found.append(Finding(level="error", where="all", check="model", text=text))
    return found or [Finding(level="ok", where="all", check="model", text="made by one model")]


def weights_of(path: Path) -> str:
    """Return the digest of the weights that a store was made with; empty if it has none."""
    told = provenance_of(path)
    made_from = told.get("made_from")
    for place in (made_from, told):
        if isinstance(place, Mapping) and place.get("weights"):
            weights = place["weights"]
            if isinstance(weights, Mapping):
                weights = next((weights[key] for key in ("digest", "sha256") if weights.get(key)), "")
            return str(weights)
    return ""


Told = tuple[Literal["ok", "warning", "error"], str, str]


def _unless_damaged(check: str, look: Iterator[Told]) -> Iterator[Told]:
    """Yield the results of a check, or an error if what it reads is damaged."""
    try:
        yield from look
    except DAMAGED as error:
        yield "error", check, f"damaged ({told_of(error)})"


def _lost(path: Path, groups: Collection[str]) -> Iterator[Told]:
    """Report missing groups, for which there are checksums."""
    import zarr

    root: Any = zarr.open_group(path, mode="r", use_consolidated=False)
    if CHECKSUMS in root:
        kept = {str(array.attrs.get("array", "")).partition("/")[0] for _, array in root[CHECKSUMS].arrays()}
        for name in sorted(kept - {"", *groups}):
            yield "error", "group", f"{name} is missing, though checksums of its arrays exist"


def _unread(path: Path) -> Iterator[Told]:
    """Report inputs that could not be read when the store was made, as its provenance says."""
    summary = provenance_of(path).get("summary")
    problems = summary.get("unreadable") if isinstance(summary, Mapping) else None
    if isinstance(problems, list) and problems:
        told = some(problems, _SHOWN, " | ")
        yield "warning", "inputs", f"{len(problems)} could not be read when the store was made, left as nodata: {told}"


def _conventions(group: StoredGroup) -> Iterator[Told]:
    import zarr_cm

    problems = list(_geoemb_problems(group)) if group.is_embedding else []
    try:
        zarr_cm.validate_many(group.attributes, ["proj", "spatial"])
    except (ValueError, TypeError, KeyError) as error:
        problems.append(f"proj:, spatial: {error}")
    named = {c.get("uuid") for c in group.attributes.get("zarr_conventions", ())}
    wanted = [c for c in CONVENTIONS if group.is_embedding or c["name"] != "geoemb:"]
    problems += [f"{c['name']} is not named in zarr_conventions" for c in wanted if c["uuid"] not in named]
    if group.group.metadata.zarr_format != 3:
        problems.append(f"Zarr format {group.group.metadata.zarr_format}, expected 3")
    yield _verdict("conventions", problems, f"{', '.join(c['name'].strip(':') for c in wanted)} are followed")


def _geoemb_problems(group: StoredGroup) -> Iterator[str]:
    """Check the rules of the `geoemb:` schema, and that its values are true of the array."""
    facts = group.attributes
    kinds: dict[str, Any] = {"type": str, "dimensions": int, "model": str, "source_data": list, "data_type": str}
    for key, kind in kinds.items():
        if not isinstance(facts.get(f"geoemb:{key}"), kind):
            yield f"geoemb:{key} must be a {kind.__name__}, is {facts.get(f'geoemb:{key}')!r}"
    if facts.get("geoemb:type") not in ("chip", "pixel"):
        yield f"geoemb:type must be chip or pixel, is {facts.get('geoemb:type')!r}"
    if facts.get("geoemb:type") == "chip" and "geoemb:chip_layout" not in facts:
        yield "geoemb:chip_layout is missing, which the type chip requires"
    if facts.get("geoemb:source_data") == []:
        yield "geoemb:source_data is empty"
    if facts.get("geoemb:dimensions") != group.dim:
        yield f"geoemb:dimensions is {facts.get('geoemb:dimensions')}, the array has {group.dim}"
    dtype = group.array.dtype.name
    if facts.get("geoemb:data_type") != dtype:
        yield f"geoemb:data_type is {facts.get('geoemb:data_type')}, the array has {dtype}"
    if dtype == "int8":
        scale = facts.get("geoemb:quantization", {}).get("scale", {})
        if scale.get("array_name") not in group.group:
            yield f"geoemb:quantization names the array {scale.get('array_name')!r}, which is missing"


def _metadata(path: Path, group: StoredGroup) -> Iterator[Told]:
    """Check that the group's consolidated metadata equal those of its arrays, because readers use either."""
    import zarr

    try:
        gathered = zarr.open_group(path, path=group.name, mode="r", use_consolidated=True)
    except ValueError:  # nothing is consolidated, as in stores of tiles
        return
    kept = {name: array.metadata.to_dict() for name, array in gathered.arrays()}
    found = {name: array.metadata.to_dict() for name, array in group.group.arrays()}
    differing = [name for name in {**kept, **found} if not _same(kept.get(name), found.get(name))]
    problems = [f"the consolidated metadata of {name} differ from its own" for name in sorted(differing)]
    yield _verdict("metadata", problems, f"those of {len(found)} arrays are consolidated")


def _same(one: Any, other: Any) -> bool:
    return json.dumps(one, default=str, sort_keys=True) == json.dumps(other, default=str, sort_keys=True)


def _place(group: StoredGroup) -> Iterator[Told]:
    affine, shape = group.geobox.affine, group.geobox.shape
    facts, problems = group.attributes, []
    if list(facts.get("spatial:shape", ())) != list(shape):
        problems.append(f"spatial:shape {facts.get('spatial:shape')}, the array has {list(shape)}")
    bounds = group.geobox.boundingbox
    if not np.allclose(facts.get("spatial:bbox", bounds), bounds, rtol=0, atol=abs(affine.a) * _OFF_PX):
        problems.append(f"spatial:bbox {facts['spatial:bbox']}, the grid has {list(bounds)}")
    if affine.b or affine.d or affine.e >= 0 or affine.a <= 0:
        problems.append(f"spatial:transform {list(affine)[:6]} is not north-up")
    names = facts.get("spatial:dimensions", ["y", "x"])
    for name, start, step, count in zip(names, (affine.f, affine.c), (affine.e, affine.a), shape, strict=True):
        if name not in group.group:
            problems.append(f"coordinate {name} is missing")
            continue
        centres = _coordinate(group, name)
        off = np.abs((centres - start) / step - np.arange(len(centres)) - 0.5)
        if len(centres) != count:
            problems.append(f"coordinate {name} has {len(centres)} values")
        elif not np.isfinite(off).all():
            problems.append(f"coordinate {name} is not finite at {int((~np.isfinite(off)).sum())} of {count} places")
        elif off.max() > _OFF_PX:
            problems.append(f"coordinate {name} is {off.max():.3g} pixels off spatial:transform")
    problems += _reference_problems(group)
    yield _verdict("place", problems, f"{shape[0]} x {shape[1]} of {abs(affine.a):g} in {crs_of(group.geobox)}")


def _coordinate(group: StoredGroup, name: str) -> NDArray[Any]:
    """Read all of a small array, for which there is no checksum."""
    try:
        return np.asarray(group.group[name][:])
    except DAMAGED as error:
        raise SourceError(f"coordinate {name}", f"it cannot be read ({told_of(error)})") from error


def _coordinates(path: Path, group: StoredGroup) -> Iterator[Told]:
    """Check the other coordinates against each other, and against what the store was made from."""
    names: list[str] = []
    problems: list[str] = []
    if group.periods:
        names += ["time", "time_bnds"]
        problems += _period_problems(path, group)
    if "scale" in group.group:
        names.append("scale")
        steps = _coordinate(group, "scale")
        if wrong := int((~(np.isfinite(steps) & (steps > 0))).sum()):
            problems.append(f"scale has {wrong} of {len(steps)} steps that are not above 0")
    if group.bands:
        names.append("band")
        if "" in group.bands or len(set(group.bands)) < len(group.bands):
            problems.append(f"band has empty or repeated names: {', '.join(map(repr, group.bands[:_SHOWN]))}")
    if names:
        yield _verdict("coordinates", problems, f"{', '.join(names)} are valid")


def _period_problems(path: Path, group: StoredGroup) -> Iterator[str]:
    starts, bounds, count = _coordinate(group, "time"), _coordinate(group, "time_bnds"), group.array.shape[0]
    if not len(starts) == len(bounds) == count:
        yield f"time has {len(starts)} values and time_bnds {len(bounds)}, the array {count} periods"
    elif (starts != bounds[:, 0]).any():
        yield "time is not the beginning of the periods in time_bnds"
    told = [[str(first), str(last)] for first, last in group.periods]
    if wrong := [" to ".join(days) for days, (first, last) in zip(told, group.periods, strict=True) if first > last]:
        yield f"time_bnds ends before it begins: {', '.join(wrong[:_SHOWN])}"
    kept = provenance_of(path).get("periods")  # stores of others do not have it
    if kept is not None and kept != told:
        yield f"time_bnds says {told[:_SHOWN]}, but the store was made for {kept[:_SHOWN]}"


def _reference_problems(group: StoredGroup) -> list[str]:
    if "spatial_ref" not in group.group:
        return ["spatial_ref is missing, in which CF readers look for the reference system"]
    told = dict(group.group["spatial_ref"].attrs)
    problems = []
    if "crs_wkt" not in told or CRS(told["crs_wkt"]) != group.geobox.crs:
        problems.append(f"spatial_ref has another reference system than proj: ({crs_of(group.geobox)})")
    if "GeoTransform" in told:
        c, a, b, f, d, e = map(float, str(told["GeoTransform"]).split())
        if not np.allclose((a, b, c, d, e, f), list(group.geobox.affine)[:6], rtol=0, atol=abs(a) * _OFF_PX):
            problems.append(
                f"spatial_ref says {told['GeoTransform']}, spatial:transform {list(group.geobox.affine)[:6]}"
            )
    return problems


def _nodata(group: StoredGroup) -> Iterator[Told]:
    dtype = group.array.dtype
    fill, problems = group.array.fill_value, []
    wanted = {"int8": NODATA}.get(dtype.name) if dtype.kind != "u" else free_code(list(group.class_names))
    if "_FillValue" not in group.variable_attributes:
        problems.append(f"{group.variable} declares no _FillValue")
    if not (np.isnan(fill) if wanted is None else fill == wanted):
        problems.append(f"fill value {fill}, expected {'NaN' if wanted is None else wanted}")
    if "valid" not in group.group:
        problems.append("array valid is missing")
    yield _verdict("nodata", problems, f"{'NaN' if wanted is None else wanted} where nothing was seen")


def _gaps(path: Path, group: StoredGroup) -> Iterator[Told]:
    """Look for empty shards between shards with data, or with data in another period."""
    sums = _checksums(path, group, "valid")
    if sums is None:
        return
    there = sums > 0
    around = np.pad(there, ((0, 0), (1, 1), (1, 1)))
    between = (around[:, :-2, 1:-1] & around[:, 2:, 1:-1]) | (around[:, 1:-1, :-2] & around[:, 1:-1, 2:])
    gaps = [tuple(map(int, place)) for place in np.argwhere(~there & (between | there.any(axis=0)))]
    if gaps:
        shown = some((f"period {t} row {row} col {col}" for t, row, col in gaps), _SHOWN)
        yield "warning", "gaps", f"{len(gaps)} empty shards where others have data: {shown}"
    else:
        yield "ok", "gaps", f"none ({there.sum()} of {there.size} shards have data)"


def _contents(path: Path, group: StoredGroup, advance: Advance) -> Iterator[Told]:
    """Compare the files with their checksums, and values with validity."""
    sums = {name: _checksums(path, group, name) for name in group.arrays}
    broken, wrong = [], []
    for unit in group.units():
        bad = [
            name for name, kept in sums.items() if kept is not None and _sum(path, group, name, unit) != int(kept[unit])
        ]
        broken += [f"{name} of period {unit.period} row {unit.row} col {unit.col}" for name in bad]
        if not bad and "valid" in group.group and not _agrees(group, unit):
            wrong.append(f"period {unit.period} row {unit.row} col {unit.col}")
        advance(1)
    if all(kept is None for kept in sums.values()):
        yield "warning", "checksums", "the store has none"
    else:
        yield _verdict("checksums", broken, "all are right")
    yield _verdict("values", [f"nodata does not agree with valid: {text}" for text in wrong], "nodata where not valid")


def _checksums(path: Path, group: StoredGroup, name: str) -> NDArray[np.uint64] | None:
    import zarr

    root: Any = zarr.open_group(path, mode="r", use_consolidated=False)
    place = f"{CHECKSUMS}/{group.name}_{name}"
    return np.asarray(root[place][:]) if place in root else None


def _sum(path: Path, group: StoredGroup, name: str, unit: Unit) -> int:
    depth = ("0",) if name == group.variable and group.dim is not None else ()
    place = (str(unit.period), *depth, str(unit.row), str(unit.col))
    return checksum_of(path.joinpath(group.name, name, "c", *place))


def _agrees(group: StoredGroup, unit: Unit) -> bool:
    codes, valid = group.codes(unit), group.valid(unit)
    deep = codes if codes.ndim == 3 else codes[..., None]
    empty = np.isnan(deep) if deep.dtype.kind == "f" else deep == group.array.fill_value
    return bool((empty.all(-1) == ~valid).all() and not empty[valid].any())


def _verdict(check: str, problems: Sequence[str], fine: str) -> Told:
    return ("error", check, some(problems, _SHOWN, "; ")) if problems else ("ok", check, fine)
