"""The result of a command."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.text import Text


@dataclass(frozen=True)
class Answer:
    """What a command prints, and its exit status."""

    content: Any
    """Anything that rich can print."""
    exit_status: int = 0

    def __rich__(self) -> Any:
        return self.content


def as_json(content: Any) -> Text:
    """Return plain values as JSON to print."""
    from rich.text import Text

    return Text(json.dumps(content, indent=1, ensure_ascii=False))
