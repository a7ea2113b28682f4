"""Paths of a user's own files as written in the YAML file: columns in braces, optionally `::PART` and `@DATE`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from anysat.data.layout import FIELD
from anysat.data.own.tables import SPLIT

SPLIT_CELL = "split_cell"
"""Field that replaces `{split}` in a path: the table's own cell, because `split` is the split that a tile is put in."""
_DATE = re.compile(r"@(\d{4}-\d\d-\d\d|(?:[\d-]*{\w+})+[\d-]*)$")
"""A day at the end of a path, or columns that make one."""
State = tuple[tuple[str, int, int], ...]
"""Name, time of change and size of a file, or of each entry of a folder."""


def as_pattern(path: str) -> str:
    """Return the internal form of a path as the user writes it."""
    return path.replace(f"{{{SPLIT}}}", f"{{{SPLIT_CELL}}}")


def as_written(pattern: str) -> str:
    """Return a path as the user writes it, for messages; the inverse of `as_pattern`."""
    return pattern.replace(f"{{{SPLIT_CELL}}}", f"{{{SPLIT}}}")


def fields_of(pattern: str) -> tuple[str, ...]:
    """Return the columns that a path needs, by their names in the table.

    >>> fields_of("{split_cell}/{id}.tif")
    ('split', 'id')
    """
    return tuple(SPLIT if name == SPLIT_CELL else name for name in dict.fromkeys(FIELD.findall(pattern)))


def file_of(pattern: str) -> str:
    """Return the file or folder of a path, without part and date.

    >>> file_of("cube.nc::s2@2024-06-01"), file_of("{id}.tif@{day}"), file_of("{id}@20cm.tif")
    ('cube.nc', '{id}.tif', '{id}@20cm.tif')
    """
    return parts_of(pattern)[0]


def parts_of(pattern: str) -> tuple[str, str, str]:
    """Return the file or folder of a path, its part and its day; the last two are empty if not given.

    They are separated before columns are filled in, so that a cell may hold any name.

    >>> parts_of("{id}.nc::s2@{year}-06-01"), parts_of("{id}@20cm.tif")
    (('{id}.nc', 's2', '{year}-06-01'), ('{id}@20cm.tif', '', ''))
    """
    found = _DATE.search(pattern)
    file, _, part = pattern[: found.start() if found else None].partition("::")
    return file, part, found[1] if found else ""


def empty_field(pattern: str, row: Mapping[str, Any]) -> str | None:
    """Return the first column that a path needs and that is empty in a row, by its name in the table; None if none is.

    >>> empty_field("s2/{scene}", {"id": "a", "scene": ""})
    'scene'
    """
    found = (name for name in FIELD.findall(pattern) if row.get(name) == "")
    return next((SPLIT if name == SPLIT_CELL else name for name in found), None)


def leads_out(path: str) -> bool:
    """Whether a path leads out of the data folder."""
    parts = PurePosixPath(path.replace("\\", "/"))
    return parts.is_absolute() or ".." in parts.parts


def is_pattern(path: str) -> bool:
    """Whether the braces of a path hold nothing but names of columns."""
    return not set("{}") & set(FIELD.sub("", path))


def with_cell(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return a row, or the fields of a path, with `split` under both its names."""
    if SPLIT_CELL in row:
        return {**row, SPLIT: row[SPLIT_CELL]}
    return {**row, SPLIT_CELL: row[SPLIT]} if SPLIT in row else dict(row)


def state_of(path: Path) -> State:
    """Return the state of a file or folder, by which a change is seen; empty if there is neither."""
    entries = path.iterdir() if path.is_dir() else [path]
    found = ((entry.name, entry.stat()) for entry in entries if entry.exists())  # no link to nothing
    return tuple((name, stat.st_mtime_ns, stat.st_size) for name, stat in found)
