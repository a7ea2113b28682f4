"""The YAML file that describes a user's own data, read into typed values. Errors name the file and the key."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from anysat.data.own.content import OwnData, OwnSplits
from anysat.data.own.modalities import read_own_modalities
from anysat.data.own.parcels import POLYGON_SUFFIXES
from anysat.data.own.paths import as_written, fields_of, file_of
from anysat.data.own.sections import Section
from anysat.data.own.tables import SUFFIXES
from anysat.data.own.targets import read_targets
from anysat.errors import MissingFileError, RecordError, UnknownNameError
from anysat.modalities import RELEASED, Modality
from anysat.patches import MAX_SUBPATCHES, centimetres, fitting_sizes_cm, patch_unit_m

SPLITS = ("train", "val", "test")
DEFAULT_SHARES = {"train": 0.7, "val": 0.15, "test": 0.15}
MAX_TILE_M = 1e7
"""Longest length that is accepted, in metres: a quarter of the Earth's circumference."""
DEFAULT_PATCHES_PER_SIDE = 16
"""The most patches along the side of a tile by default: small patches of a large tile take many times as long."""
_CENTRES = ("files", "table")
_TEXTS = ("title", "about", "licence", "homepage", "citation")
_KEYS = ("name", *_TEXTS, "tile_m", "patch_sizes_m", "tiles", "columns", "centre", "inside_only",
         "modality_records", "modalities", "targets", "splits")  # fmt: skip


def read_yaml(path: Path) -> OwnData:
    """Read a YAML file.

    Raises:
        MissingFileError: There is no such file.
        RecordError, UnknownNameError: A key is unknown or missing, or has an impossible value.
    """
    import yaml

    from anysat.yaml_files import parse_yaml

    if not path.is_file():
        raise MissingFileError(path, "a YAML file that describes a dataset")
    try:
        content = parse_yaml(path.read_text("utf-8"))
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # ValueError: an impossible date or number
        raise RecordError(str(path), str(error), "valid YAML") from error
    top = Section(content, str(path), _KEYS)
    centre = top.text("centre", "files")
    if centre not in _CENTRES:
        raise UnknownNameError(f"centre of {path}", centre, _CENTRES)
    modalities = read_own_modalities(top, path)
    first = next(own for own in modalities if not own.is_optional)
    tile_m = top.number("tile_m", *([] if first.columns is None else [first.record.gsd_m]), most=MAX_TILE_M)
    data = OwnData(
        file=path,
        name=_name(top),
        texts={key: text for key in _TEXTS if (text := top.text(key, "", may_be_empty=True))},
        tile_m=tile_m,
        patch_sizes_m=_patch_sizes_m(top, tile_m, [modality.record for modality in modalities]),
        tiles=_table_name(top) or (None if first.columns is None else first.path),
        id_column=top.part("columns", ("id",)).text("id", "id"),
        is_centred_on_table=centre == "table",
        is_inside_only=bool(top.get("inside_only", bool, "true or false", False)),
        modalities=modalities,
        targets=(),
        splits=_splits(top),
    )
    _check_tables(data, top)
    data = replace(data, targets=read_targets(top, data))
    refuse_id(data, data.id_column)
    if not data.has_files and (rasters := [own.target.name for own in data.targets if own.path is not None]):
        raise top.refuse("targets", f"columns, because {rasters[0]!r} is a raster and tables of series have no grid")
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


def _check_tables(data: OwnData, top: Section) -> None:
    """Check that a tile is one pixel of every modality that comes from a table."""
    for own in data.modalities:
        count = math.ceil if own.record.covers_tile else round  # as in `geo.grid.TileGrid.of`
        if own.columns is not None and count(round(data.tile_m / own.record.gsd_m, 6)) != 1:
            side = f"the pixel size of {own.key}, because a table holds single pixels"
            raise RecordError(f"{top.where}, tile_m", data.tile_m, f"{own.record.gsd_m:g}, {side}")
    if top.has("columns") and (data.tiles is None or data.tables_of_tiles):
        expected = "no value, because there is no table of `tiles`; the `columns` of a `table` are given beside it"
        raise top.refuse("columns", expected)
    if data.is_centred_on_table and not data.has_files:
        raise top.refuse("centre", "no value, because it has no effect on a table of series")
    if data.is_inside_only and (data.tiles is None or Path(data.tiles).suffix.lower() not in POLYGON_SUFFIXES):
        raise top.refuse("inside_only", f"a table of `tiles` with polygons ({', '.join(POLYGON_SUFFIXES)})")
    if data.is_inside_only and not data.has_files:
        raise top.refuse("inside_only", "no value, because it has no effect on a table of series")


def refuse_id(data: OwnData, id_column: str) -> None:
    """Refuse targets and splits from a column `id` that is not the column of the ids, which names the tiles.

    Raises:
        RecordError: One of them is.
    """
    asked = {f"targets.{own.target.name}": own.column for own in data.targets} | {"splits": data.splits.column}
    for key, name in asked.items():
        if name == "id" != id_column:
            expected = f"a column with another name, because `id` is the name of a tile, from column {id_column!r}"
            raise RecordError(f"{data.file}, {key}, column", name, expected)


def _check_without_table(data: OwnData) -> None:
    """Check that everything follows from the fields of the first modality's path, by which tiles are found."""
    where = f"{data.file}, tiles"
    if data.is_centred_on_table or data.splits.block_m:
        raise RecordError(where, None, "a table, because `centre: table` and splits by block_m need one")
    first = data.first.path
    fields = fields_of(file_of(first))
    if "id" not in fields:
        raise RecordError(where, None, f"a table, because {first!r} has no {{id}} by which tiles could be found")
    if data.splits.column is not None and data.splits.column not in fields:
        why = f"a table, because {as_written(first)!r} has no field for splits by column {data.splits.column!r}"
        raise RecordError(where, None, why)
    for path in data.patterns:
        for name in fields_of(path):
            if name not in fields:
                why = f"{{{name}}} of {as_written(path)!r} is not in {as_written(first)!r}"
                raise RecordError(where, None, f"a table, because {why}")


def _patch_sizes_m(top: Section, tile_m: float, records: Sequence[Modality]) -> tuple[float, ...]:
    """Return the given patch sizes, or all that divide the tile, with the default first."""
    tiling = [record for record in records if not record.covers_tile] or list(records)
    is_own = any(record not in RELEASED for record in tiling)
    unit_m = patch_unit_m(tiling, "raster" if is_own else "cell")
    side_cm = centimetres(tile_m, f"{top.where}, tile_m")
    fitting = [size / 100 for size in fitting_sizes_cm(side_cm, side_cm, centimetres(unit_m, "patch unit"))]
    if not fitting:
        names = ", ".join(record.key for record in tiling)
        raise top.refuse("tile_m", f"a multiple of {unit_m:g} m, to hold whole sub-patches of {names}")
    given = top.listed("patch_sizes_m", (int, float), "a list of metres")
    if not set(given) <= set(fitting):
        raise top.refuse("patch_sizes_m", f"sizes among {', '.join(f'{size:g}' for size in fitting)}")
    if given:
        return tuple(float(size) for size in given)
    largest_m = math.isqrt(MAX_SUBPATCHES) * min(record.subpatch_m for record in tiling)
    usable = [size for size in fitting if size <= largest_m] or fitting
    default = next((size for size in usable if tile_m / size <= DEFAULT_PATCHES_PER_SIDE), usable[-1])
    return default, *(size for size in fitting if size != default)


def _splits(top: Section) -> OwnSplits:
    known = ("column", *SPLITS, "shares", "seed", "block_m")
    section = top.part("splits", known)
    unused = ("shares", "seed", "block_m") if section.has("column") else SPLITS
    for key in unused:
        if section.has(key):
            raise section.refuse(key, "either a column with values for the splits, or shares with seed and block_m")
    shares = section.part("shares", SPLITS, DEFAULT_SHARES)
    members = {split: tuple(map(str, section.listed(split, (str, int), "a list of values"))) for split in SPLITS}
    return OwnSplits(
        column=section.text("column", None),
        members={split: members[split] or (split,) for split in SPLITS},
        shares={split: shares.number(split) for split in SPLITS if shares.has(split)},
        is_given=any(map(section.has, ("column", "shares", "block_m"))),
        seed=section.whole("seed", None),
        block_m=section.number("block_m", None, least=0.01, most=MAX_TILE_M),
    )
