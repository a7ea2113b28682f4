"""Paths of a user's own files, as its YAML file writes them: columns in braces, with `::PART` and `@DATE`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import Any

from anysat.data.layout import FIELD
from anysat.data.own.tables import SPLIT

SPLIT_CELL = "split_cell"
"""Field of a path that is written `{split}`: the table's own cell, as `split` is the split that a tile is in."""
_DATE = re.compile(r"@(\d{4}-\d\d-\d\d|(?:[\d-]*{\w+})+[\d-]*)$")
"""A day behind a path, or columns that make one."""


def as_pattern(path: str) -> str:
    """A path as it is kept, of one as it is written."""
    return path.replace(f"{{{SPLIT}}}", f"{{{SPLIT_CELL}}}")


def as_written(pattern: str) -> str:
    """The inverse, for messages."""
    return pattern.replace(f"{{{SPLIT_CELL}}}", f"{{{SPLIT}}}")


def fields_of(pattern: str) -> tuple[str, ...]:
    """Columns that a path needs, as the table calls them.

    >>> fields_of("{split_cell}/{id}.tif")
    ('split', 'id')
    """
    return tuple(SPLIT if name == SPLIT_CELL else name for name in dict.fromkeys(FIELD.findall(pattern)))


def file_of(pattern: str) -> str:
    """The file or folder of a path that may name a part and a date.

    >>> file_of("cube.nc::s2@2024-06-01"), file_of("{id}.tif@{day}"), file_of("{id}@20cm.tif")
    ('cube.nc', '{id}.tif', '{id}@20cm.tif')
    """
    return parts_of(pattern)[0]


def parts_of(pattern: str) -> tuple[str, str, str]:
    """The file or folder of a path, the part of it and its day, which are empty where none is written.

    They are told apart before columns are filled in, so that a cell may hold any name.

    >>> parts_of("{id}.nc::s2@{year}-06-01"), parts_of("{id}@20cm.tif")
    (('{id}.nc', 's2', '{year}-06-01'), ('{id}@20cm.tif', '', ''))
    """
    found = _DATE.search(pattern)
    file, _, part = pattern[: found.start() if found else None].partition("::")
    return file, part, found[1] if found else ""


def empty_field(pattern: str, row: Mapping[str, Any]) -> str | None:
    """The first column that a path needs and that is empty in a row, as the table calls it; None where none is.

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
    """Whether braces of a path hold names of columns, and nothing else."""
    return not set("{}") & set(FIELD.sub("", path))


def with_cell(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row of a table, or the fields of a path, with `split` under both of its names."""
    if SPLIT_CELL in row:
        return {**row, SPLIT: row[SPLIT_CELL]}
    return {**row, SPLIT_CELL: row[SPLIT]} if SPLIT in row else dict(row)
