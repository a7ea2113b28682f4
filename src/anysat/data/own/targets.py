"""Targets of a user's own data as described in the YAML file: a column of the table, or a raster for each tile."""

from __future__ import annotations

import re
from pathlib import Path, PurePosixPath

from anysat.data.base import Target
from anysat.data.own.columns import LONG_SUFFIXES, check_column, column_names, read_items, read_texts
from anysat.data.own.content import OwnData, OwnTarget
from anysat.data.own.found import found_names
from anysat.data.own.paths import as_written, fields_of, file_of
from anysat.data.own.sections import MAX_INT, WHOLE, Section, fits
from anysat.data.own.tables import as_number, holds_lists, is_missing_word, is_no_label, read_table
from anysat.errors import MissingFileError, SourceError, some
from anysat.patches import centimetres

IGNORE = 255
"""Stored number of pixels without a label, unless the file gives another."""
_NO_CLASS = -1
"""Number of pixels without a label if there are so many classes that `IGNORE` is one of them."""
_BETWEEN_ITEMS = ";"
"""Stands between the items of a list, unless the file gives another separator."""
_KEYS = ("column", "path", "classes", "values", "ignore", "gsd_m", "unit", "limits", "separator", "colours", "about")
_POLYGONS = (".gpkg", ".geojson", ".json", ".shp", ".fgb", ".kml", ".gml", ".parquet", ".gdb")
"""Suffixes of files of polygons, which cannot be label rasters."""


def read_targets(top: Section, data: OwnData) -> tuple[OwnTarget, ...]:
    """Read the targets of a file. Classes of a column that are not listed are looked up in the table or the folders.

    Args:
        top: The whole file.
        data: Its content without the targets. Its table is taken to lie beside the file; without one, the fields of
            the path by which tiles are found are the columns.

    Raises:
        RecordError, UnknownNameError: A key is unknown or missing, or has an impossible value.
        MissingFileError, SourceError: Classes must be looked up in a table that is not there or where they are unclear.
    """
    given = top.get("targets", dict, "targets by name", {})
    return tuple(
        _target(name, Section(content, f"{top.where}, targets.{name}", _KEYS), data) for name, content in given.items()
    )


def _target(name: str, section: Section, data: OwnData) -> OwnTarget:
    if section.has("column") == section.has("path"):
        raise section.refuse("column", "either a column of the table or the path of a raster")
    is_raster = section.has("path")
    separator = _separator(section, data.table_path())
    _refuse_unused(section, is_raster, has_several=separator is not None)
    found_by = data.first.path
    if not is_raster and data.tiles is None and section.text("column") not in fields_of(file_of(found_by)):
        raise section.refuse(
            "column", f"a raster, or a field of the path {as_written(found_by)!r}, because there is no table of tiles"
        )
    classes = () if section.has("unit") else _classes(section, data, separator)
    values = _values(section, classes, is_raster)
    kind = "value" if section.has("unit") else "labels" if separator is not None else "class"
    ignore = section.whole("ignore", IGNORE if is_raster and kind == "class" else None)
    if is_raster and ignore in values:
        other = "give the number that each class is stored as in `values`"
        if not section.has("ignore"):
            other = f"pixels of {ignore} have none unless `ignore` says otherwise"
        raise section.refuse(
            "ignore",
            f"a number that is none of `values` ({some(values)}), for pixels without a label, unlike {ignore}; {other}",
        )
    if not is_raster and ignore is not None and str(ignore) in classes:
        raise section.refuse(
            "ignore", f"a number that is none of `classes`, for cells without a label, unlike {ignore}"
        )
    is_free = ignore is None or not 0 <= ignore < len(classes)
    target = Target(
        name=name, level="pixel" if is_raster else "tile", kind=kind, classes=classes,
        codes=values if is_raster else (),
        gsd_m=_gsd_m(section, data.tile_m) if is_raster else None,
        ignore=ignore if is_free else IGNORE if len(classes) <= IGNORE else _NO_CLASS,
        unit=section.text("unit", "", may_be_empty=True), limits=_limits(section), colours=_colours(section, classes),
        about=section.text("about", "", may_be_empty=True),
    )  # fmt: skip
    return OwnTarget(
        target=target, column=section.text("column", None), path=_path(section) if is_raster else None, values=values,
        ignore=ignore, separator=separator,
    )  # fmt: skip


def _separator(section: Section, table: Path | None) -> str | None:
    """Return the text between the labels of a cell, also of a column of lists; None for one class or value."""
    given: str | None = section.text("separator", None)
    is_class = section.has("column") and not section.has("unit")
    if (
        given is None
        and is_class
        and table is not None
        and table.is_file()
        and holds_lists(table, section.text("column"))
    ):
        return _BETWEEN_ITEMS
    return given


def _refuse_unused(section: Section, is_raster: bool, *, has_several: bool) -> None:
    unused: tuple[str, ...] = ("separator",) if is_raster else ("values", "gsd_m")
    unused += ("classes", "values", "separator", "ignore", "colours") if section.has("unit") else ("limits",)
    unused += ("ignore",) if has_several else ()  # a tile has exactly the labels that its cell names
    for key in unused:
        if section.has(key):
            raise section.refuse(key, "no value, it has no effect here (a value has a `unit`, a class has `classes`)")


def _path(section: Section) -> str:
    path = section.path()
    if PurePosixPath(path).suffix.lower() in _POLYGONS:
        raise section.refuse(
            "path", "a GeoTIFF for labels of pixels: make one of the polygons first (`gdal_rasterize -a COLUMN -tr …`)"
        )
    return path


def _gsd_m(section: Section, tile_m: float) -> float:
    gsd_m: float = section.number("gsd_m")
    if centimetres(tile_m, "tile_m") % centimetres(gsd_m, f"{section.where}, gsd_m"):
        raise section.refuse("gsd_m", f"a spacing that divides the tile of {tile_m:g} m")
    return gsd_m


def _limits(section: Section) -> tuple[float, float] | None:
    if not section.has("limits"):
        return None
    expected = "the least and the greatest value, such as [0, 50]"
    limits = section.listed("limits", (int, float), expected)
    if len(limits) != 2 or not -MAX_INT <= limits[0] < limits[1] <= MAX_INT:
        raise section.refuse("limits", expected)
    return float(limits[0]), float(limits[1])


def _colours(section: Section, classes: tuple[str, ...]) -> tuple[str, ...]:
    """Return the colours of the classes in maps and pictures, in the order of the classes; none if not given."""
    expected = f"a colour for each of the {len(classes)} classes ({some(classes)}), such as '#1f77b4' in quotes"
    given = section.get("colours", (list, dict), expected, [])
    if isinstance(given, dict):
        by_name = {str(name): colour for name, colour in given.items()}
        given = [by_name.pop(name, None) for name in classes] + list(by_name)  # what is left is no class
    if given and not (len(given) == len(classes) and all(re.fullmatch("#[0-9a-fA-F]{6}", str(one)) for one in given)):
        raise section.refuse("colours", expected)
    return tuple(one.lower() for one in given)


def _values(section: Section, classes: tuple[str, ...], is_raster: bool) -> tuple[int, ...]:
    """Return the stored number of each class: as given, else its name if all are whole numbers, else counted from 0."""
    values = section.listed("values", int, "a list of whole numbers")
    key = "values" if values else "classes"
    if not values and is_raster and all(re.fullmatch("-?[0-9]+", name) for name in classes):
        values = tuple(map(int, classes))
    if not all(map(fits, values)):
        raise section.refuse(key, f"a list, each {WHOLE}")
    if values and not len(classes) == len(values) == len(set(values)):
        raise section.refuse("values", f"one number for each of the {len(classes)} classes, each once")
    return values or tuple(range(len(classes)))


def _cells(table: Path, column: str, separator: str | None) -> list[str]:
    """Return the cells of a column, or the items of its lists. They may repeat."""
    if table.suffix.lower() not in LONG_SUFFIXES:
        separators = {} if separator is None else {column: separator}
        return [row[column] for row in read_table(table, (column,), separators=separators)]
    if holds_lists(table, column):
        return read_items(table, column)
    check_column(table, column, column_names(table))
    cells: list[str] = read_texts(table, [column])[column].names
    return cells


def _classes(section: Section, data: OwnData, separator: str | None) -> tuple[str, ...]:
    """Return the names given, or those found in the table or among the files, in alphabetical order."""
    given = section.listed("classes", (str, int), "a list of names (put yes, no, on and off in quotes)")
    if given:
        if len(set(map(str, given))) < len(given):
            raise section.refuse("classes", "each name once")
        if any(map(is_no_label, map(str, given))):
            raise section.refuse("classes", "names other than nan and the empty one, which stand for no label")
        return tuple(map(str, given))
    if section.has("path"):
        raise section.refuse("classes", "a list of names")
    table, column = data.table_path(), section.text("column")
    if table is None:
        found = found_names(data.file.parent, data.first.path, column)
        if not found:
            file, path = data.file.name, as_written(data.first.path)
            expected = f"a list of names, because no file beside {file} fits the path {path!r}"
            raise section.refuse("classes", f"{expected}; or move {file} into the data folder")
        return tuple(sorted(found))
    if not table.is_file():
        raise MissingFileError(table, f"the table of {data.file}, tiles; give {section.where.rpartition(', ')[2]}, "
                               "classes, where the table lies in the data folder")  # fmt: skip
    cells = _cells(table, column, separator)
    ignore = section.whole("ignore", None)
    names = {name.strip() for cell in cells for name in (cell.split(separator) if separator else [cell])}
    if unclear := sorted(filter(is_missing_word, names)):
        raise SourceError(
            table, f"{unclear[0]!r} in column {column!r} may be a class or may stand for no label",
            "leave cells without a label empty, or list it among the `classes` of the target",
        )  # fmt: skip
    return tuple(sorted(name for name in names if not is_unlabelled(name, ignore)))


def is_unlabelled(cell: str, ignore: int | None) -> bool:
    """Whether a cell says that there is no class: it is empty, NaN, or the number that `ignore` is."""
    return is_no_label(cell) or (ignore is not None and as_number(cell) == ignore)
