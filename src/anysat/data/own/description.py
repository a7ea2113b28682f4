"""The YAML file that describes a user's own data, read into typed values; what is wrong is named by file and key."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

from anysat.data.base import Target
from anysat.data.own.sections import Section
from anysat.data.own.tables import SUFFIXES, is_no_label, read_table
from anysat.errors import MissingFileError, RecordError, UnknownNameError
from anysat.modalities import MODALITIES, NOT_RELEASED, UNITS, Modality, band_key, find_modality, read_modalities
from anysat.patches import centimetres, fitting_sizes_cm, patch_unit_m

SPLITS = ("train", "val", "test")
DEFAULT_SHARES = {"train": 0.7, "val": 0.15, "test": 0.15}
_FIELD = re.compile(r"{(\w+)}")
IGNORE = 255
"""Number of a pixel without a label unless the file says otherwise."""
SKIPPED = "-"
"""In `bands`, a stored band that is not read."""
MAX_TILE_M = 1e7
"""Metres above which a length is a mistake: a quarter of the Earth's girth."""
_CENTRES = ("files", "table")
_TEXTS = ("title", "about", "licence", "homepage", "citation")
_KEYS = ("name", *_TEXTS, "tile_m", "patch_sizes_m", "tiles", "centre",
         "modality_records", "modalities", "targets", "splits")  # fmt: skip
_TARGET_KEYS = ("column", "path", "classes", "values", "ignore", "gsd_m", "unit", "limits", "separator", "about")


@dataclass(frozen=True, kw_only=True)
class OwnModality:
    """Where the imagery of one modality lies."""

    record: Modality
    path: str
    """Below the data folder, with columns of the table in braces; `::PART` and `@DATE` as in `anysat embed`."""
    units: Mapping[tuple[str, str | None], str]
    bands: tuple[str, ...]
    is_optional: bool

    @property
    def key(self) -> str:
        """Key of the modality."""
        return self.record.key


@dataclass(frozen=True, kw_only=True)
class OwnTarget:
    """One thing to predict, and where it is written."""

    target: Target
    column: str | None
    """Column of the table; None for a raster."""
    path: str | None
    """Raster of each tile."""
    values: tuple[int, ...]
    """Stored number of each class of a raster."""
    separator: str | None
    """Between the labels of a cell."""


@dataclass(frozen=True, kw_only=True)
class OwnSplits:
    """How tiles are split: by a column, or by shares."""

    is_given: bool
    """False when the file does not say, so that a column `split` of the table does where there is one."""
    column: str | None
    members: Mapping[str, tuple[str, ...]]
    """Values of the column that make up each split."""
    shares: Mapping[str, float]
    seed: int
    block_m: float | None
    """Side of the squares of ground that stay together."""


@dataclass(frozen=True, kw_only=True)
class OwnData:
    """All that a YAML file says."""

    file: Path
    name: str
    texts: Mapping[str, str]
    """Title, licence and the like, where given."""
    tile_m: float
    patch_sizes_m: tuple[float, ...]
    tiles: str | None
    """Table of the tiles; None when they are found by their paths."""
    is_centred_on_table: bool
    """True when a tile lies around its place in the table, False when it is the middle of its files."""
    modalities: tuple[OwnModality, ...]
    targets: tuple[OwnTarget, ...]
    splits: OwnSplits

    def table_path(self, root: Path | None = None) -> Path | None:
        """Where the table lies: beside the YAML file, else in the data folder."""
        if self.tiles is None:
            return None
        beside = self.file.parent / self.tiles
        return beside if beside.exists() or root is None else root / self.tiles


def read_yaml(path: Path) -> OwnData:
    """What a YAML file says.

    Raises:
        MissingFileError: there is no such file.
        RecordError, UnknownNameError: a key is unknown, missing, or its value cannot be.
    """
    import yaml

    if not path.is_file():
        raise MissingFileError(path, "a YAML file that describes a dataset")
    try:
        content = yaml.safe_load(path.read_text("utf-8"))
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # ValueError: of a date or number that cannot be
        raise RecordError(str(path), str(error), "valid YAML") from error
    top = Section(content, str(path), _KEYS)
    centre = top.text("centre", "files")
    if centre not in _CENTRES:
        raise UnknownNameError(f"centre of {path}", centre, _CENTRES)
    tile_m = top.number("tile_m", most=MAX_TILE_M)
    modalities = _modalities(top, path)
    data = OwnData(
        file=path,
        name=_name(top),
        texts={key: text for key in _TEXTS if (text := top.text(key, "", may_be_empty=True))},
        tile_m=tile_m,
        patch_sizes_m=_patch_sizes_m(top, tile_m, [modality.record for modality in modalities]),
        tiles=_table_name(top),
        is_centred_on_table=centre == "table",
        modalities=modalities,
        targets=(),
        splits=_splits(top),
    )
    data = replace(data, targets=_targets(top, data))
    if data.tiles is None:
        _check_without_table(data)
    return data


def _name(top: Section) -> str:
    name: str = top.text("name")
    if not name.strip():
        raise top.refuse("name", "text that is not empty")
    return name


def _table_name(top: Section) -> str | None:
    name: str | None = top.text("tiles", None)
    if name is not None and Path(name).suffix.lower() not in SUFFIXES:
        raise top.refuse("tiles", f"a table of a kind that is read ({', '.join(SUFFIXES)}); save it as CSV")
    return name


def _check_without_table(data: OwnData) -> None:
    """Tiles are found by the path of the first modality; all else must follow from its fields."""
    where = f"{data.file}, tiles"
    if data.is_centred_on_table or data.splits.column or data.splits.block_m:
        raise RecordError(where, None, "a table, because `centre: table` and splits by column or block_m need one")
    first, *others = [own.path for own in sorted(data.modalities, key=lambda own: own.is_optional)]
    fields = set(_FIELD.findall(first))
    if "id" not in fields:
        raise RecordError(where, None, f"a table, because {first!r} has no {{id}} by which tiles could be found")
    for path in (*others, *(own.path for own in data.targets if own.path is not None)):
        for name in _FIELD.findall(path):
            if name not in fields:
                raise RecordError(where, None, f"a table, because {{{name}}} of {path!r} is not in {first!r}")


def _modalities(top: Section, file: Path) -> tuple[OwnModality, ...]:
    known = dict(MODALITIES)
    if top.has("modality_records"):
        known |= {record.key: record for record in read_modalities(file.parent / top.text("modality_records"))}
    given = top.get("modalities", dict, "at least one modality, such as `s2: {path: ...}`")
    if not given:
        raise top.refuse("modalities", "at least one modality")
    found = []
    for key, content in given.items():
        record = find_modality(key, known.values())
        section = top.part(f"modalities.{key}", content, ("path", "units", "bands", "optional"))
        found.append(
            OwnModality(
                record=record,
                path=_path(section),
                units=_units(section, record),
                bands=_bands(section, record),
                is_optional=bool(section.get("optional", bool, "true or false", False)),
            )
        )
    if all(modality.is_optional for modality in found):
        raise top.refuse("modalities", "one that every tile has, by which tiles are found")
    return tuple(found)


def _path(section: Section) -> str:
    path: str = section.text("path")
    parts = PurePosixPath(path)
    if parts.is_absolute() or ".." in parts.parts:
        raise section.refuse("path", "a path below the data folder")
    if set("{}") & set(_FIELD.sub("", path)):
        raise section.refuse("path", "columns of the table in braces, such as {id}")
    return path


def _bands(section: Section, record: Modality) -> tuple[str, ...]:
    """Names of the stored bands, all of the modality; `SKIPPED` for those not to read."""
    given = section.listed("bands", (str, type(None)), f"a list of names, null or {SKIPPED!r} for a band not to read")
    names = tuple(SKIPPED if name is None else name for name in given)
    read = [_find_band(section, "bands", record, name) for name in names if name != SKIPPED]
    if names and not read:
        raise section.refuse("bands", f"at least one band of {record.key}")
    if len(set(read)) < len(read):
        raise section.refuse("bands", "each band once")
    return names


def _find_band(section: Section, key: str, record: Modality, name: Any) -> int:
    for index, band in enumerate(record.bands):
        if isinstance(name, str) and band_key(name) in band.match_keys:
            return index
    known = {name for band in record.bands for name in (band.name, band.common_name) if name}
    advice = f"Write null or {SKIPPED!r} for a band that is not to be read" if key == "bands" else ""
    raise UnknownNameError(f"band of {section.where}, {key}", name, known, advice)


def _units(section: Section, record: Modality) -> dict[tuple[str, str | None], str]:
    given = section.content.get("units")
    by_band = {None: given} if isinstance(given, str) else given or {}
    if not isinstance(by_band, Mapping):
        raise section.refuse("units", "a unit, or a unit for each band")
    for unit in by_band.values():
        if unit not in UNITS:
            raise UnknownNameError(f"unit in {section.where}", unit, UNITS)
    return {
        (record.key, None if band is None else record.band_names[_find_band(section, "units", record, band)]): unit
        for band, unit in by_band.items()
    }


def _patch_sizes_m(top: Section, tile_m: float, records: Sequence[Modality]) -> tuple[float, ...]:
    """Those given, else all that divide the tile."""
    tiling = [record for record in records if not record.covers_tile] or list(records)
    is_own = any(MODALITIES.get(record.key) != record or record.key in NOT_RELEASED for record in tiling)
    unit_m = patch_unit_m(tiling, "raster" if is_own else "cell")
    side_cm = centimetres(tile_m, f"{top.where}, tile_m")
    fitting = [size / 100 for size in fitting_sizes_cm(side_cm, side_cm, centimetres(unit_m, "patch unit"))]
    if not fitting:
        names = ", ".join(record.key for record in tiling)
        raise top.refuse("tile_m", f"a multiple of {unit_m:g} m, to hold whole sub-patches of {names}")
    given = top.listed("patch_sizes_m", (int, float), "a list of metres")
    if not set(given) <= set(fitting):
        raise top.refuse("patch_sizes_m", f"sizes among {', '.join(f'{size:g}' for size in fitting)}")
    return tuple(float(size) for size in given) or tuple(fitting)


def _targets(top: Section, data: OwnData) -> tuple[OwnTarget, ...]:
    given = top.get("targets", dict, "targets by name", {})
    return tuple(
        _target(name, top.part(f"targets.{name}", content, _TARGET_KEYS), data) for name, content in given.items()
    )


def _target(name: str, section: Section, data: OwnData) -> OwnTarget:
    if section.has("column") == section.has("path"):
        raise section.refuse("column", "either a column of the table or the path of a raster")
    is_raster = section.has("path")
    unused: tuple[str, ...] = ("separator",) if is_raster else ("values", "gsd_m")
    unused += ("classes", "values", "separator", "ignore") if section.has("unit") else ("limits",)
    unused += ("ignore",) if section.has("separator") else ()  # a tile has the labels its cell names, and no others
    for key in unused:
        if section.has(key):
            raise section.refuse(key, "nothing, it has no effect here (a value has a `unit`, a class has `classes`)")
    if not is_raster and data.tiles is None:
        raise section.refuse("column", "a raster, because there is no table of tiles")
    classes = () if section.has("unit") else _classes(section, data)
    values = section.wholes("values")
    if values and len(set(values)) != len(classes):
        raise section.refuse("values", f"one number for each of the {len(classes)} classes")
    kind = "value" if section.has("unit") else "labels" if section.has("separator") else "class"
    default_ignore = IGNORE if is_raster and kind == "class" else None
    gsd_m = section.number("gsd_m") if is_raster else None
    if gsd_m is not None and centimetres(data.tile_m, "tile_m") % centimetres(gsd_m, f"{section.where}, gsd_m"):
        raise section.refuse("gsd_m", f"a spacing that divides the tile of {data.tile_m:g} m")
    ignore = section.whole("ignore", default_ignore)
    if ignore in values:
        raise section.refuse(
            "ignore", f"a number that is none of `values`, for pixels without a label, unlike {ignore}"
        )
    target = Target(
        name=name, level="pixel" if is_raster else "tile", kind=kind, classes=classes, gsd_m=gsd_m,
        ignore=ignore, unit=section.text("unit", "", may_be_empty=True), limits=_limits(section),
        about=section.text("about", "", may_be_empty=True),
    )  # fmt: skip
    return OwnTarget(
        target=target, column=section.text("column", None), path=_path(section) if is_raster else None,
        values=values or tuple(range(len(classes))), separator=section.text("separator", None),
    )  # fmt: skip


def _limits(section: Section) -> tuple[float, float] | None:
    if not section.has("limits"):
        return None
    expected = "the least and the greatest value, as [0, 50]"
    limits = section.numbers("limits", expected)
    if len(limits) != 2 or not limits[0] < limits[1]:
        raise section.refuse("limits", expected)
    return limits


def _classes(section: Section, data: OwnData) -> tuple[str, ...]:
    """Names given, else those found in the table, in alphabetical order."""
    given = section.listed("classes", (str, int), "a list of names (put yes, no, on and off in quotes)")
    if given:
        if len(set(map(str, given))) < len(given):
            raise section.refuse("classes", "each name once")
        if any(map(is_no_label, map(str, given))):
            raise section.refuse("classes", "names other than nan and the empty one, which stand for no label")
        return tuple(map(str, given))
    path = data.table_path()
    if section.has("path") or path is None:
        raise section.refuse("classes", "a list of names")
    if not path.is_file():
        raise MissingFileError(path, f"the table of {data.file}, tiles; give {section.where.rpartition(', ')[2]}, "
                               "classes, where the table lies in the data folder")  # fmt: skip
    column, separator = section.text("column"), section.text("separator", None)
    cells = [row[column] for row in read_table(path, (column,))]
    names = [name for cell in cells for name in (cell.split(separator) if separator else [cell])]
    return tuple(sorted({name.strip() for name in names if not is_no_label(name)}))


def _splits(top: Section) -> OwnSplits:
    known = ("column", *SPLITS, "shares", "seed", "block_m")
    section = top.part("splits", top.get("splits", dict, f"keys among {', '.join(known)}", {}), known)
    unused = ("shares", "seed", "block_m") if section.has("column") else SPLITS
    for key in unused:
        if section.has(key):
            raise section.refuse(key, "either a column with values for the splits, or shares with seed and block_m")
    shares = section.get("shares", dict, "a share for each split", dict(DEFAULT_SHARES))
    part = section.part("shares", shares, SPLITS)
    members = {split: tuple(map(str, section.listed(split, (str, int), "a list of values"))) for split in SPLITS}
    return OwnSplits(
        column=section.text("column", None),
        members={split: members[split] or (split,) for split in SPLITS},
        shares={split: part.number(split) for split in SPLITS if part.has(split)},
        is_given=top.has("splits"),
        seed=section.whole("seed", 0),
        block_m=section.number("block_m", None, least=0.01, most=MAX_TILE_M),
    )
