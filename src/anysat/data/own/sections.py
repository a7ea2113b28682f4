"""One mapping of a YAML file, with checks of its keys, types and ranges. Errors name the file and the key."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from anysat.data.own.paths import as_pattern, is_pattern, leads_out
from anysat.errors import RecordError, UnknownNameError

MAX_INT = 2**63 - 1
"""Largest whole number that a label can have."""
WHOLE = f"a whole number from {-MAX_INT - 1} to {MAX_INT}"
_NEEDED = object()


class Section:
    """A mapping with known keys, and its place in the file."""

    def __init__(self, content: Any, where: str, known: Sequence[str]) -> None:
        if not isinstance(content, Mapping):
            raise RecordError(where, content, f"a mapping with keys among {', '.join(known)}")
        for key in content:
            if key not in known:
                raise UnknownNameError(f"key of {where}", key, known)
        self.content, self.where = content, where

    def has(self, key: str) -> bool:
        """Whether the key is given and not empty."""
        return self.content.get(key) is not None

    def refuse(self, key: str, expected: str) -> RecordError:
        """Return the error to raise about the value of a key."""
        return RecordError(f"{self.where}, {key}", self.content.get(key), expected)

    def get(self, key: str, kind: type | tuple[type, ...], expected: str, default: Any = _NEEDED) -> Any:
        """Return the value of a key, checking its type. Without a default, the key is required."""
        value = self.content.get(key)
        if value is None and default is not _NEEDED:
            return default
        if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
            raise self.refuse(key, expected)
        return value

    def text(self, key: str, default: Any = _NEEDED, *, may_be_empty: bool = False) -> Any:
        """Return a text; a number counts as text."""
        if not self.has(key) and default is not _NEEDED:
            return default
        text = str(self.get(key, (str, int), "text"))
        if not text and not may_be_empty:
            raise self.refuse(key, "text that is not empty")
        return text

    def number(self, key: str, default: Any = _NEEDED, *, least: float = 0, most: float = MAX_INT) -> Any:
        """Return a number above 0 and within a range."""
        value = self.get(key, (int, float), "a number above 0", default)
        if not self.has(key):
            return default
        if not 0 < value < float("inf"):
            raise self.refuse(key, "a number above 0")
        if not least <= value <= most:
            raise self.refuse(key, f"a number from {least:g} to {most:g}")
        return float(value)

    def whole(self, key: str, default: Any = _NEEDED) -> Any:
        """Return a whole number that fits in 64 bits."""
        value = self.get(key, int, "a whole number", default)
        if self.has(key) and not fits(value):
            raise self.refuse(key, WHOLE)
        return value

    def listed(self, key: str, kind: type | tuple[type, ...], expected: str) -> tuple[Any, ...]:
        """Return a list of values of a type; empty if the key is not given."""
        values = self.get(key, list, expected, [])
        if not all(isinstance(value, kind) and not isinstance(value, bool) for value in values):
            raise self.refuse(key, expected)
        return tuple(values)

    def path(self) -> str:
        """Return the value of the key `path`: a path below the data folder, with columns in braces."""
        path: str = self.text("path")
        if leads_out(path):
            raise self.refuse("path", "a path below the data folder")
        if not is_pattern(path):
            raise self.refuse("path", "columns of the table in braces, such as {id}")
        return as_pattern(path)

    def part(self, key: str, known: Sequence[str], default: Mapping[str, Any] | None = None) -> Section:
        """Return the mapping that is the value of a key; if it is not given, the default."""
        content = self.content.get(key)
        return Section((default or {}) if content is None else content, f"{self.where}, {key}", known)


def fits(value: int) -> bool:
    """Whether a whole number fits in 64 bits."""
    return -MAX_INT - 1 <= value <= MAX_INT
