"""One mapping of a YAML file: its keys are known, its values have types and ranges, and an error names file and key."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from anysat.data.own.paths import as_pattern, is_pattern, leads_out
from anysat.errors import RecordError, UnknownNameError

MAX_INT = 2**63 - 1
"""Greatest whole number that labels are kept in."""
_WHOLE = f"a whole number from {-MAX_INT - 1} to {MAX_INT}"
_NEEDED = object()


class Section:
    """A mapping of the file whose keys are known, and where it stands."""

    def __init__(self, content: Any, where: str, known: Sequence[str]) -> None:
        if not isinstance(content, Mapping):
            raise RecordError(where, content, f"keys and values, keys among {', '.join(known)}")
        for key in content:
            if key not in known:
                raise UnknownNameError(f"key of {where}", key, known)
        self.content, self.where = content, where

    def has(self, key: str) -> bool:
        """Whether the key is given, and not empty."""
        return self.content.get(key) is not None

    def refuse(self, key: str, expected: str) -> RecordError:
        """The error about a key."""
        return RecordError(f"{self.where}, {key}", self.content.get(key), expected)

    def get(self, key: str, kind: type | tuple[type, ...], expected: str, default: Any = _NEEDED) -> Any:
        """Value of a key, of a type; needed when there is no default."""
        value = self.content.get(key)
        if value is None and default is not _NEEDED:
            return default
        if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
            raise self.refuse(key, expected)
        return value

    def text(self, key: str, default: Any = _NEEDED, *, may_be_empty: bool = False) -> Any:
        """Words, or a number that stands for them."""
        if not self.has(key) and default is not _NEEDED:
            return default
        text = str(self.get(key, (str, int), "text"))
        if not text and not may_be_empty:
            raise self.refuse(key, "text that is not empty")
        return text

    def number(self, key: str, default: Any = _NEEDED, *, least: float = 0, most: float = MAX_INT) -> Any:
        """A number above 0, and in a range."""
        value = self.get(key, (int, float), "a number above 0", default)
        if not self.has(key):
            return default
        if not 0 < value < float("inf"):
            raise self.refuse(key, "a number above 0")
        if not least <= value <= most:
            raise self.refuse(key, f"a number from {least:g} to {most:g}")
        return float(value)

    def whole(self, key: str, default: Any = _NEEDED) -> Any:
        """A whole number of 64 bits."""
        value = self.get(key, int, "a whole number", default)
        if self.has(key) and not fits(value):
            raise self.refuse(key, _WHOLE)
        return value

    def listed(self, key: str, kind: type | tuple[type, ...], expected: str) -> tuple[Any, ...]:
        """A list of values of a type; none when the key is not given."""
        values = self.get(key, list, expected, [])
        if not all(isinstance(value, kind) and not isinstance(value, bool) for value in values):
            raise self.refuse(key, expected)
        return tuple(values)

    def numbers(self, key: str, expected: str) -> tuple[float, ...]:
        """A list of finite numbers; none when the key is not given."""
        values = self.listed(key, (int, float), expected)
        if not all(abs(value) <= MAX_INT for value in values):
            raise self.refuse(key, f"{expected}, each a number in the range of 64 bits")
        return tuple(float(value) for value in values)

    def wholes(self, key: str) -> tuple[int, ...]:
        """A list of whole numbers of 64 bits; none when the key is not given."""
        values = self.listed(key, int, "a list of whole numbers")
        if not all(map(fits, values)):
            raise self.refuse(key, f"a list, each {_WHOLE}")
        return values

    def path(self) -> str:
        """Value of the key `path`: a path below the data folder, with columns in braces."""
        path: str = self.text("path")
        if leads_out(path):
            raise self.refuse("path", "a path below the data folder")
        if not is_pattern(path):
            raise self.refuse("path", "columns of the table in braces, such as {id}")
        return as_pattern(path)

    def part(self, key: str, content: Any, known: Sequence[str]) -> Section:
        """A mapping inside this one."""
        return Section(content, f"{self.where}, {key}", known)


def fits(value: int) -> bool:
    """Whether a whole number has a place in 64 bits."""
    return -MAX_INT - 1 <= value <= MAX_INT
