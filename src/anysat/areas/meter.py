"""Measure the energy of the processors, if the kernel counts it (Linux powercap) and lets this process read it."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path

COUNTERS = Path("/sys/class/powercap")
_PACKAGE = re.compile(r"[a-z-]+:\d+")
"""Counter of a whole processor; those of its parts have a second number."""


def _is_processor(counter: Path) -> bool:
    """Return whether it counts a processor: not the whole machine, nor a processor again by another interface."""
    name = counter / "name"
    return "-mmio" not in counter.name and (not name.exists() or name.read_text().startswith("package"))


@dataclass
class Meter:
    """Adds up energy counters. Read it every few minutes, because a full counter starts again from 0."""

    counters: dict[Path, int]
    """File of each counter, in microjoules, and the number at which it starts again."""
    joules: float = 0.0
    _last: dict[Path, int] = field(default_factory=dict)

    @classmethod
    def find(cls, folder: Path = COUNTERS) -> Meter | None:
        """Return the meter of this machine; None if there is none, or it may not be read."""
        counters: dict[Path, int] = {}
        try:
            for one in sorted(folder.iterdir()):
                if _PACKAGE.fullmatch(one.name) and _is_processor(one):
                    counters[one / "energy_uj"] = int((one / "max_energy_range_uj").read_text())
            meter = cls(counters)
            meter.read()
        except (OSError, ValueError):
            return None
        return meter if counters else None

    def read(self) -> float:
        """Return the joules since the first reading, of everything that ran on the machine."""
        for path, full in self.counters.items():
            now = int(path.read_text())
            self.joules += (now - self._last.get(path, now)) % full / 1e6
            self._last[path] = now
        return self.joules
