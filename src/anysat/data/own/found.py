"""Tiles found by the paths of their files, where there is no table of tiles."""

from __future__ import annotations

from pathlib import Path

from anysat.data.layout import SOURCE, DatasetFolder, Entry, Layout, glob_of
from anysat.data.own.paths import file_of, with_cell


def found_rows(folder: DatasetFolder, key: str) -> list[dict[str, str]]:
    """Return the fields of every file or folder of imagery at the path of an entry, without hidden ones."""
    kept = [row for row in folder.find(key) if not row["id"].startswith(".") and _is_imagery(folder.path(key, **row))]
    return [with_cell(row) for row in kept]


def unread_suffixes(folder: DatasetFolder, key: str) -> list[str]:
    """Return the suffixes of files at the path of an entry that are not imagery of a kind that can be read."""
    paths = (folder.path(key, **row) for row in folder.find(key) if not row["id"].startswith("."))
    return sorted({path.suffix or path.name for path in paths if not _is_imagery(path)})


def found_names(root: Path, pattern: str, field: str) -> list[str]:
    """Return the distinct names of a field among the tiles below a folder.

    Args:
        root: A folder; it may have no such files.
        pattern: Path pattern of the tiles, with `{id}`.
        field: One of its fields, by its name in a table.
    """
    entry = Entry(name="tiles", path=file_of(pattern), dtype=SOURCE, source="found")
    layout = Layout(name="own", marker=glob_of(entry.path), entries=(entry,))
    return list(dict.fromkeys(row[field] for row in found_rows(DatasetFolder(root, layout), entry.name)))


def _is_imagery(path: Path) -> bool:
    """Whether a file or folder is imagery of a kind that can be read."""
    from anysat.geo.read.formats import KINDS

    return any(kind.fits(path) for kind in KINDS)
