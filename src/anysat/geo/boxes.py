"""Boxes: bounds in a reference system."""

from __future__ import annotations

import math
from typing import NamedTuple


class Box(NamedTuple):
    """Bounds in the units of a reference system, in metres for that of a tile."""

    left: float
    bottom: float
    right: float
    top: float

    def __str__(self) -> str:
        if self == NOWHERE:
            return "ground far away"
        return f"x {self.left:.1f}..{self.right:.1f}, y {self.bottom:.1f}..{self.top:.1f}"

    @property
    def width_m(self) -> float:
        """West-east side."""
        return self.right - self.left

    @property
    def height_m(self) -> float:
        """North-south side."""
        return self.top - self.bottom

    def shared_with(self, other: Box) -> Box:
        """Return the intersection. If there is none, a side of it is not positive."""
        return Box(
            max(self.left, other.left),
            max(self.bottom, other.bottom),
            min(self.right, other.right),
            min(self.top, other.top),
        )

    def joined_with(self, other: Box) -> Box:
        """Return the smallest box around both."""
        return Box(
            min(self.left, other.left),
            min(self.bottom, other.bottom),
            max(self.right, other.right),
            max(self.top, other.top),
        )

    def is_empty(self) -> bool:
        """Return whether there is nothing inside."""
        return min(self.width_m, self.height_m) <= 0


NOWHERE = Box(math.inf, math.inf, -math.inf, -math.inf)
"""Bounds of nothing."""
EVERYWHERE = Box(-math.inf, -math.inf, math.inf, math.inf)
"""Bounds of ground whose bounds are unknown."""
