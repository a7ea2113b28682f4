"""Targets: what can be predicted, and how it is stored.

To add a kind of target, add it to `KINDS`, and its task to `anysat.tasks.base.TASKS` (docs/howto/tasks.md).
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Any, Literal

from anysat.errors import RecordError

LEVELS = ("tile", "pixel")
KINDS: dict[str, Literal["class", "labels", "value"]] = {"class": "class", "labels": "labels", "value": "value"}
"""Kinds of target, each with how its targets are stored: the number of one of several classes, 0 and 1 for each of
several labels, or a number. Files, maps and pictures depend on this; the task depends on the kind."""
NOBODY = -1
"""Class number where nothing was predicted."""


@dataclass(frozen=True, kw_only=True)
class Target:
    """A quantity that can be predicted for a tile or for each of its pixels.

    For a tile, a class is an integer (), labels are 0 and 1 (class), a value is a float (). For pixels: (row col).
    """

    name: str
    level: str
    """`tile` or `pixel`."""
    kind: str
    """`class` (one of several), `labels` (any of several; tiles only), `value` (regression), or another of `KINDS`."""
    classes: tuple[str, ...] = ()
    """Names of the classes or labels, in the order of their numbers; empty for a value."""
    codes: tuple[int, ...] = ()
    """Numbers by which the user's files store the classes; maps take them (`anysat.geo.stores.classes`)."""
    colours: tuple[str, ...] = ()
    """Colours of the classes in maps and pictures, each as #rrggbb. Empty for the package's own colours."""
    ignore: int | None = None
    """Number that marks pixels or tiles without a label. It cannot be the number of a class."""
    gsd_m: float | None = None
    """Side of a pixel in metres; None for a target of tiles."""
    unit: str = ""
    """Unit of a value."""
    limits: tuple[float, float] | None = None
    """Least and greatest possible value."""
    about: str = ""

    def __post_init__(self) -> None:
        where = f"target {self.name!r}"
        if self.level not in LEVELS or self.kind not in KINDS or (self.level == "pixel" and self.is_multilabel):
            raise RecordError(where, (self.level, self.kind), f"one of {LEVELS} and one of {tuple(KINDS)}")
        if (KINDS[self.kind] != "value") != bool(self.classes):
            raise RecordError(f"{where}, classes", self.classes, "names of classes, none for a value")
        if self.codes and len(self.codes) != len(self.classes):
            raise RecordError(f"{where}, codes", self.codes, f"none, or {len(self.classes)} numbers")
        if self.colours and not re.fullmatch(f"(#[0-9a-f]{{6}}){{{len(self.classes)}}}", "".join(self.colours)):
            raise RecordError(f"{where}, colours", self.colours, f"none, or {len(self.classes)} as #rrggbb")
        if (self.level == "pixel") != (self.gsd_m is not None):
            raise RecordError(f"{where}, gsd_m", self.gsd_m, "a pixel size for a raster, none for a tile")
        if self.ignore is not None and 0 <= self.ignore < len(self.classes):
            raise RecordError(f"{where}, ignore", self.ignore, "a number that is not a class")

    @property
    def is_multiclass(self) -> bool:
        """Whether each place has one of the classes, stored as its number."""
        return KINDS[self.kind] == "class"

    @property
    def is_multilabel(self) -> bool:
        """Whether each tile has any of the classes, stored as 0 and 1."""
        return KINDS[self.kind] == "labels"

    def of_answers(self) -> Target:
        """Return the target as answers are stored: `NOBODY` marks places without an answer; for values, NaN does."""
        return replace(self, ignore=NOBODY if self.classes else None)

    def plain(self, value: Any) -> str | list[str] | float | None:
        """Return what a tile's value stands for: the name of its class or None, the names of its labels, or a number.

        Args:
            value: A number, or 0 and 1 (class), in an array, a tensor or a list.
        """
        if self.is_multilabel:
            return [name for name, given in zip(self.classes, value, strict=True) if given > 0]
        if not self.classes:
            return float(value)
        return self.classes[int(value)] if 0 <= int(value) < len(self.classes) else None

    def said(self, value: Any) -> str:
        """Return what a tile's value stands for as text, a number with its unit; empty for no class or label."""
        found = self.plain(value)
        if isinstance(found, float):
            return f"{found:.4g} {self.unit}".rstrip()
        return ", ".join(found) if isinstance(found, list) else found or ""
