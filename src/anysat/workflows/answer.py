"""The result of a command."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Answer:
    """What a command prints, and its exit status."""

    content: Any
    """Anything that rich can print."""
    exit_status: int = 0

    def __rich__(self) -> Any:
        return self.content
